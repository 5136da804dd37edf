"""What a package index shows of the README: links into the repository lead nowhere there, so they are made absolute.

The address is that of ``[project.urls]``; as long as there is none, the path is told instead.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

CODE_OR_LINK = re.compile(r"^```.*?^```$|(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", re.MULTILINE | re.DOTALL)


def elsewhere(text: str, source: str, version: str) -> str:
    """A document of the repository, as it can be read outside of it.

    Args:
        text: Markdown with links relative to the repository's root.
        source: address of the repository, or nothing.
        version: its tag is what the links lead to.
    """

    def link(found: re.Match[str]) -> str:
        image, words, path = found.groups()
        if path is None:  # a block of code
            return found[0]
        if not source:
            return f"{words} (`{path}`)"
        return f"{image}[{words}]({source}/{'raw' if image else 'blob'}/v{version}/{path})"

    return CODE_OR_LINK.sub(link, text)


class Readme(MetadataHookInterface):
    """Gives the package its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source", "")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": elsewhere(text, source, metadata["version"]),
        }

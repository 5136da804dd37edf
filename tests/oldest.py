"""The lowest versions that pyproject.toml allows, as requirements for ``make test-oldest``; not a test module."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

FOR_THE_REPOSITORY = ("all", "dev", "docs")
OF_ONE_TORCH = ("executorch", "torchao")  # each release needs one release of torch, and newer numpy than all others


def oldest(project: dict[str, Any], torch: str) -> list[str]:
    """Each package that the library or an extra needs at its lower bound; torch at the version given."""
    extras = project["optional-dependencies"]
    optional = [need for extra, needs in extras.items() if extra not in FOR_THE_REPOSITORY for need in needs]
    declared = [re.match(r"([\w.-]+)>=([\d.]+)", need) for need in (*project["dependencies"], *optional)]
    bounds = {**{found[1]: found[2] for found in declared}, "torch": torch}
    return [f"{name}=={version}" for name, version in bounds.items() if name not in OF_ONE_TORCH]


if __name__ == "__main__":
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    print("\n".join(oldest(tomllib.loads(text)["project"], sys.argv[1])))

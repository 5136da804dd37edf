"""Pages of the site that lie elsewhere in the repository, and a page for each module; run by mkdocs (`make docs`)."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")

GUIDES = {
    "Start in five minutes": "start.md",
    "Choose a method": "choose.md",
    "Plan for your data and devices": "plan.md",
    "Reports and comparisons": "reports.md",
    "Sweeps": "sweeps.md",
    "Fair comparisons": "evidence.md",
    "What the papers claim": "claims.md",
    "What it costs": "costs.md",
    "How a run grows": "scale.md",
    "Codecs": "codecs.md",
    "Fewest bytes": "smallest.md",
    "Compose methods": "composing.md",
    "Your own model and data": "your-own-model-and-data.md",
    "Data of any kind": "data.md",
    "What goes with what": "tasks.md",
    "Differential privacy": "privacy.md",
    "What each recipe bears": "trust.md",
    "Begin with weights that exist": "pretrained.md",
    "Your own method": "your-own-method.md",
    "Your own gate, criterion or codec stage": "extend.md",
    "Masks that compute less": "sparse.md",
    "Devices that lie": "robust.md",
    "Side by side with others": "peers.md",
    "Real devices": "flower.md",
    "A secure sum": "secure.md",
    "Threat model": "threat-model.md",
    "Take the model home": "export.md",
    "Reproduce a paper": "reproduce.md",
    "All results": "results.md",
    "The wire format": "wire.md",
    "Make a release": "release.md",
}
ELSEWHERE = {"README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md"}
ELSEWHERE["CHANGELOG.md"] = "changelog.md"


def title(text: str) -> str:
    """First heading of a page."""
    return next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))


def places() -> dict[str, str]:
    """Where each document of the repository stands on the site, by its path from the root."""
    cards = sorted((ROOT / "src" / "fedbonsai" / "methods").glob("*/README.md"))
    found = dict(ELSEWHERE)
    found |= {card.relative_to(ROOT).as_posix(): f"methods/{card.parent.name}.md" for card in cards}
    found |= {
        page.relative_to(ROOT).as_posix(): page.relative_to(ROOT / "docs").as_posix()
        for page in (ROOT / "docs").rglob("*.md")
    }
    return found


def moved(text: str, source: str, where: dict[str, str]) -> str:
    """A document with its links as they are on the site; what is not on it is told by its path."""

    def link(match: re.Match[str]) -> str:
        image, words, path, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if image:  # they lie in docs/, which is the site's root
            seen = posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(where[source]) or ".")
            return f"![{words}]({seen})"
        if target not in where:
            return f"{words} (`{target}`)"
        return f"[{words}]({posixpath.relpath(where[target], posixpath.dirname(where[source]) or '.')}{anchor or ''})"

    return LINK.sub(link, text)


def listed(where: dict[str, str], folder: str) -> list[str]:
    """Lines of the navigation for all documents of a folder."""
    found = sorted((source, page) for source, page in where.items() if source.startswith(folder))
    return [f"    - [{title((ROOT / source).read_text())}]({page})" for source, page in found]


def build() -> None:
    """Write all pages and the navigation.

    Raises:
        ValueError: a guide is not in the navigation, or not there.
    """
    if odd := set(GUIDES.values()) ^ {page.name for page in (ROOT / "docs").glob("*.md")}:
        raise ValueError(f"{sorted(odd)}: GUIDES and docs/ must have the same pages")
    where = places()
    lines = ["- [Start](index.md)", "- Guides"]
    lines += [f"    - [{name}]({page})" for name, page in GUIDES.items()]
    lines.append("- Methods")
    for source, page in where.items():
        text = (ROOT / source).read_text()
        with mkdocs_gen_files.open(page, "w") as file:
            file.write(moved(text, source, where))
        if page.startswith("methods/"):
            lines.append(f"    - [{title(text)}]({page})")
    lines += ["- Specifications", *listed(where, "docs/specs/")]
    lines += ["- How it is built", "    - [Architecture](architecture.md)"]
    lines += listed(where, "docs/adr/")
    lines += ["- [Contributing](contributing.md)", "- [Changelog](changelog.md)", "- Reference"]
    for module in sorted((ROOT / "src" / "fedbonsai").rglob("*.py")):
        parts = module.relative_to(ROOT / "src").with_suffix("").parts
        if parts[-1].startswith("__"):
            continue
        page = f"reference/{'/'.join(parts[1:])}.md"
        with mkdocs_gen_files.open(page, "w") as file:
            file.write(f"# {'.'.join(parts)}\n\n::: {'.'.join(parts)}\n    options:\n      show_root_heading: false\n")
        lines.append(f"    - [{'.'.join(parts[1:])}]({page})")
    with mkdocs_gen_files.open("summary.md", "w") as file:
        file.write("\n".join(lines) + "\n")


build()

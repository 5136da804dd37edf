"""What cites a specification cites a place that is there; ``docs/specs/README.md`` has the form of a citation."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPECS = ROOT / "docs" / "specs"
PAGES = sorted(page.stem for page in SPECS.glob("*.md") if page.stem != "README")

NUMBER = r"\d+(?:\.\d+)*"
PLACE = rf"(?:§{NUMBER}(?: (?:item|step) \d+)?|\(\d+'?\)|check \d+|[A-Z]\d+[a-z]?\b|P-[a-z]\b)"
CITATION = re.compile(rf"(?<![\w/])specs/([\w-]+)((?: {PLACE}(?:(?:, and |, | and | to ){PLACE})*)?)")
ALONE = re.compile(
    rf"§|\b[Ss]ections? {NUMBER}(?![\d.]| of arXiv)|\b[Ee]quations? \(\d|\b[Cc]hecks? [\dC]|\bspecification, \d"
)
ALONE_AFTER_CODE = re.compile(r"# [1-9]\.\d\d?(?: [a-d])?(?=$|[,:])", re.MULTILINE)


def flat(text: str) -> str:
    """A text without its line breaks, since citations are wrapped as other words are; comments lose their signs too."""
    return re.sub(r"\n\s*(?:#+ )?", " ", text)


def cited(text: str) -> Iterator[tuple[str, str]]:
    """Page and place of all citations of a text; a page without a place has the place ``""``."""
    for found in CITATION.finditer(flat(text)):
        for place in re.findall(PLACE, found[2]) or [""]:
            yield found[1], place


def alone(text: str) -> list[str]:
    """What a text cites by a number that no page stands before."""
    return ALONE.findall(CITATION.sub("", flat(text))) + ALONE_AFTER_CODE.findall(text)


def places(text: str) -> set[str]:
    """What of a page can be cited: sections, their numbered items and steps, equations, checks, and lettered rows."""
    found: set[str] = set()
    section, checks = "", False
    for line in text.splitlines():
        if heading := re.match(rf"#+ (?:({NUMBER})\.? )?(.*)", line):
            section, checks = f"§{heading[1]}" if heading[1] else "", "cceptance checks" in heading[2]
            found |= {section} - {""}
        elif item := re.match(r"(\d+)\. ", line):
            found |= {f"{section} item {item[1]}"} | ({f"check {item[1]}"} if checks else set())
        elif step := re.match(r" +(\d+) +\S", line):
            found.add(f"{section} step {step[1]}")
        elif equation := re.match(r" {4}.*\S {2,}(\(\d+'?\))$", line):
            found.add(equation[1])
        elif row := re.match(r"(?:\| |- )(?:\*\*)?([A-Z]\d+[a-z]?|P-[a-z])\b", line):
            found.add(row[1])
    return found


@cache
def of_page(name: str) -> set[str]:
    return places((SPECS / f"{name}.md").read_text())


def lost(text: str) -> list[tuple[str, str]]:
    """Citations of a text that lead nowhere."""
    return [(page, place) for page, place in cited(text) if page not in PAGES or place not in of_page(page)]


def readers(*folders: str) -> list[Path]:
    """Texts that may cite: whatever lies in the folders, so that a file is read wherever it moves."""
    found = {path for folder in folders for kind in ("py", "md", "toml") for path in (ROOT / folder).rglob(f"*.{kind}")}
    return sorted(found - {Path(__file__), *(SPECS / f"{page}.md" for page in PAGES)})


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- the rule ------------------------------------------------------------------------------------------------------


def test_every_citation_leads_to_its_place():
    texts = {label(path): path.read_text() for path in readers("src", "tests", "experiments", "bench", "docs")}
    gone = {where: found for where, text in texts.items() if (found := lost(text))}
    assert not gone, f"expected places of {PAGES}, in the form that docs/specs/README.md tells"
    assert {page for text in texts.values() for page, _ in cited(text)} == set(PAGES), "nobody cites a page"


def test_nothing_is_cited_by_its_number_alone():
    texts = {label(path): path.read_text() for path in readers("src", "tests", "bench", "docs")}
    assert not {where: found for where, text in texts.items() if (found := alone(text))}, "say specs/PAGE before it"


def test_who_speaks_of_a_specification_says_where():
    texts = {label(path): path.read_text() for path in readers("src", "tests")}
    assert not [where for where, text in texts.items() if re.search("[Ss]pecification", text) and "specs/" not in text]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_refers_to_sections_that_it_has(page):
    own = re.findall(rf"§{NUMBER}(?: item \d+)?", (SPECS / f"{page}.md").read_text())
    assert set(own) <= of_page(page)


# --- the reader of citations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("(specs/fedtiny §2.5).", [("fedtiny", "§2.5")]),
        ("as specs/fedtiny\n    # §2.1 to §2.3, and (3') have", [("fedtiny", p) for p in ("§2.1", "§2.3", "(3')")]),
        ("specs/prunefl §7 item 8: k", [("prunefl", "§7 item 8")]),
        ("specs/collaborative C12b and P-a, which", [("collaborative", "C12b"), ("collaborative", "P-a")]),
        ("specs/fl-pqsu check 1 to check 13", [("fl-pqsu", "check 1"), ("fl-pqsu", "check 13")]),
        ("[prunefl](../docs/specs/prunefl.md), and specs/wireless says", [("wireless", "")]),
    ],
)
def test_citations_are_read(text, want):
    assert list(cited(text)) == want


@pytest.mark.parametrize(
    "text",
    [
        "specs/fedtiny §2.9",
        "specs/fedtiny §2.5 and (7)",
        "specs/fl-pqsu check 20",
        "specs/prunefl §7 item 17",
        "specs/wireless §1.3 step 8",
        "specs/collaborative C20",
        "specs/unknown §1",
        "specs/wireless, 4.3",
    ],
)
def test_what_leads_nowhere_is_found(text):
    assert lost(text)


@pytest.mark.parametrize(
    "text",
    [
        "see section 2.5",
        "Equations (4)\nand (5)",
        "(specification, 4.4)",
        "# --- check 9: masks",
        "as §4 says",
        "def test():  # 8.3, 8.4",
        "specs/fedtiny §2.5, or section 3",
    ],
)
def test_a_number_alone_is_found(text):
    assert alone(text)


def test_sections_of_papers_may_be_named():
    assert not alone("(DGC, section 3.3 of arXiv 1712.01887; specs/fedtiny §3, appendix F of FedRTS)")

"""What the documents say is run: their code blocks, their commands, their links and their tables.

Each document is played in a process and a folder of its own, since its modules register methods and networks. A block
whose first line names a file is written to that file; a bash block that begins with ``# needs:`` is checked, not run.
Runs end after two rounds, unless a test looks at what the page says that they came to.
"""

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from fedbonsai.forked import context, process
from tests.moments import HANGS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src").rglob("*.md"),
    ]
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:#|<!--) ([\w./-]+\.(?:py|toml|md))(?: -->)?\n")
ROUNDS = 2  # at most, of a run in a page whose numbers are not looked at
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The file that the block is, if it is one."""
        found = FILE.match(self.text)
        return found[1] if found else ""


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in BLOCK.finditer(text)]


def label(document: Path) -> str:
    return str(document.relative_to(ROOT))


# --- playing a document: in a process of its own -------------------------------------------------------------------


def play(document: Path) -> None:
    """Write its files, execute its Python and run its commands, in order, in the current folder."""
    sys.path.insert(0, os.getcwd())
    most = 10**6 if label(document) in ELSEWHERE else ROUNDS
    for block in blocks(document):
        print(f"--- {label(document)}, line {block.line}: {block.kind}", flush=True)
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.kind == "python":
            exec(compile(block.text, f"{document}:{block.line}", "exec"), {"__name__": "__main__"})
        elif block.kind == "bash":
            script(block.text, most)


def script(text: str, most: int) -> None:
    only_check = text.startswith("# needs:")
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            command(words, only_check, most)


def command(words: list[str], only_check: bool, most: int) -> None:
    """Run one of fedbonsai's commands, or check that what another one needs is there; unknown ones fail."""
    tool, *rest = words
    if tool == "export":
        assert rest == ["PYTHONPATH=."], "only that is set up here"
    elif tool == "fedbonsai":
        ours(rest, only_check, most)
    elif tool == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), f"make has {targets}"
    elif tool == "pip":
        installed(rest)
    elif tool == "python":
        module = rest[rest.index("-m") + 1] if "-m" in rest else ""
        sys.path.insert(0, str(ROOT))
        if not module and Path(rest[0]).exists() and not only_check:  # a block above wrote it
            subprocess.run([sys.executable, *rest], check=True, env=os.environ | {"PYTHONPATH": "."})
        else:
            assert importlib.util.find_spec(module) if module else (ROOT / rest[0]).exists() or Path(rest[0]).exists()
    else:
        assert tool == "git", f"{tool} is not a command that this test knows"


def ours(words: list[str], only_check: bool, most: int) -> None:
    from fedbonsai.cli import main
    from fedbonsai.runs import recipes
    from fedbonsai.runs.setup import options_of

    if only_check and words[0] == "run":  # what it needs is not here, so that only the settings can be checked
        options_of(recipes.load(words[1], "", recipes.overrides_of(words[2:])))
        return
    if only_check and words[0] == "sweep":
        plan = Path(words[1]) if Path(words[1]).exists() else ROOT / words[1]
        words = ["sweep", str(plan), *words[2:], "--plan"]
    if only_check and words[0] == "plan":
        planned(words[1:])
        return
    try:
        if words[0] in ("run", "compare"):
            words = [*short(words, most), *["--quiet"] * (words[0] == "run")]
        code = main(words)
    except SystemExit as end:  # of --help, or of words that the parser refuses
        code = end.code or 0
    assert code == 0, f"fedbonsai {shlex.join(words)} gave {code}"


def short(words: list[str], most: int) -> list[str]:
    """A run of at most so many rounds."""
    if "--rounds" not in words:
        return words
    at = words.index("--rounds") + 1
    return [*words[:at], str(min(most, int(words[at]))), *words[at + 1 :]]


def planned(words: list[str]) -> None:
    """Check limits, settings and devices of a plan whose data are not here."""
    from fedbonsai.cli import plan
    from fedbonsai.planning.limits import Limits
    from fedbonsai.planning.question import shared
    from fedbonsai.runs import recipes
    from fedbonsai.runs.config import RunConfig
    from fedbonsai.runs.setup import clock_of
    from fedbonsai.runs.structure import structure

    parser = argparse.ArgumentParser()
    plan.arguments(parser)
    settings, limits = plan.parted(recipes.overrides_of(parser.parse_known_args(words)[1]))
    Limits.of(limits)
    config = structure({**shared(settings), "method": {"name": "averaging"}}, RunConfig)
    clock_of(config.clock, ["a", "b"], 0)


def installed(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for flag, value in pairwise(words):
        if flag in ("-c", "-r"):
            assert (ROOT / value).exists()
        if flag == "-e" and "[" in value:
            assert set(value.partition("[")[2].rstrip("]").split(",")) <= extras.keys()


# --- tests ---------------------------------------------------------------------------------------------------------

PLAYED = [document for document in DOCUMENTS if any(block.kind in ("python", "bash") for block in blocks(document))]
LIKE = {"docs/start.md", "docs/choose.md"}  # their commands are those of README.md and docs/reports.md in other words
ELSEWHERE = {"docs/pretrained.md"}  # played by tests/runs/test_lora.py, which looks at what its runs left


@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(d, id=label(d), marks=[pytest.mark.exhaustive] * (label(d) in LIKE))
        for d in PLAYED
        if label(d) not in ELSEWHERE
    ],
)
def test_blocks_run(document, tmp_path):
    played(document, tmp_path)


def played(document: Path, home: Path) -> Path:
    """The folder in which a document was played, in a process of its own."""
    folder, said = home / "folder", home / "said.txt"
    folder.mkdir()
    worker = process(context(), play_in, folder, said, document)
    worker.start()
    worker.join(HANGS)
    worker.kill()
    assert worker.exitcode == 0, said.read_text()[-6000:]
    return folder


def play_in(folder: Path, said: Path, document: Path) -> None:
    """What such a process does; all that it says goes into a file."""
    with said.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["HF_HOME"] = str(folder.parent / "hub")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])  # of processes that the document starts
    play(document)


@pytest.mark.slow
def test_the_four_files_of_contributing_pass_the_conformance_suite(tmp_path):
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.new"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if block.file == "tests/cases.py":
            row = block.text.partition("\n")[2].strip().rstrip(",")
            with (tmp_path / block.file).open("a") as file:
                file.write(f"\nCASES.append({row})\n")
        elif block.file:
            assert not (tmp_path / block.file).exists(), (
                f"{block.file} is part of the library now: choose another example"
            )
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
    (block,) = (block for block in blocks(ROOT / "CONTRIBUTING.md") if "tests/conformance.py" in block.text)
    for line in block.text.splitlines()[1:]:
        tool, *words = shlex.split(line)
        assert tool == "python"
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTEST_ADDOPTS": "-p no:cacheprovider"},
            capture_output=True,
            text=True,
            timeout=HANGS,
        )
        assert not done.returncode, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 15


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_links_lead_somewhere(document):
    prose = BLOCK.sub("", document.read_text())
    broken = [link for link in LINK.findall(prose) if not (document.parent / link).exists()]
    assert not broken


@pytest.mark.slow
def test_the_tables_are_those_of_the_results():
    from experiments.table import (
        CLAIMS,
        EXPORT,
        GUIDE,
        PAGE,
        ROBUST,
        attacks,
        claimed,
        exports,
        guide,
        held,
        page,
        section,
    )

    assert held(ROOT / "README.md") == section(), "run: python -m experiments.table --write"
    assert held(EXPORT) == "\n".join(exports()), "run: python -m experiments.table --write"
    assert held(ROBUST) == "\n".join(attacks()), "run: python -m experiments.table --write"
    assert held(GUIDE) == "\n".join(guide()), "run: python -m experiments.table --write"
    assert PAGE.read_text() == page(), "run: python -m experiments.table --write"
    assert CLAIMS.read_text() == claimed(), "run: python -m experiments.table --write"


COLUMNS = (("0.2", "0.1", "0.05", "0.01"), ("mixed", "few"))  # of tables in cards: how runs' names go on


def tabled(document: Path) -> list[tuple[str, str, str]]:
    """Cells of a document's tables over densities or fleets: experiment, name of the run, and the cell.

    Such a table is of the experiment that the text names last before it.
    """
    cells: list[tuple[str, str, str]] = []
    for columns in COLUMNS:
        before, *tables = document.read_text().split(f"| recipe | {' | '.join(columns)} |")
        for part in tables:
            experiment = re.findall(r"`experiments/(\w+)`", before)[-1]
            for row in part.strip().splitlines()[1:]:
                if not row.startswith("|"):
                    break
                label, *figures = [cell.strip() for cell in row.strip("|").split("|")]
                run = re.match(r"`([\w-]+)`", label)[1]
                cells += [
                    (experiment, f"{run}-{column}", figure) for column, figure in zip(columns, figures, strict=True)
                ]
            before += part
    return cells


def test_tables_of_cards_are_those_of_the_results_that_they_name():
    from statistics import mean, stdev

    from experiments.table import groups, parameters

    every = {(experiment, name): results for experiment, name, results in groups()}
    seen = 0
    for document in DOCUMENTS:
        for experiment, name, cell in tabled(document):
            results = every[experiment, name]
            scores = [100 * result["last five"] for result in results]
            if "±" not in cell:
                right = f"{mean(map(parameters, results)):,.0f}"
            else:
                right = f"{mean(scores):.1f} ± {stdev(scores):.1f}"
                if "MB" in cell:
                    right += f", {mean(sum(result['bytes'].values()) for result in results) / 1e6:.1f} MB"
            assert cell == right, f"{label(document)}: {name} of {experiment}"
            seen += 1
    assert seen >= 100


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(file.parent.name for file in (ROOT / "experiments").glob("*/checks.py")))
def test_lists_of_checks_are_those_of_the_results(folder, capsys):
    import runpy

    runpy.run_module(f"experiments.{folder}.checks", run_name="__main__")
    written = (ROOT / "experiments" / folder / "checks.md").read_text()
    assert capsys.readouterr().out.strip() == written.strip(), f"run: python -m experiments.{folder}.checks --write"

"""The guide's adapters: only they and the classifier travel, and the numbers that it gives of their bytes are so."""

import re
import subprocess
import sys

import pytest
from tests.moments import HANGS
from tests.test_docs import ROOT, played

import fedbonsai

PAGE = ROOT / "docs" / "pretrained.md"


def rows(mark):
    """Cells of a table of the page."""
    text = re.search(rf"<!-- {mark}:begin -->\n(.*?)<!-- {mark}:end -->", PAGE.read_text(), re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return played(PAGE, tmp_path_factory.mktemp("page"))


@pytest.mark.slow
def test_the_page_can_be_played_and_its_first_table_is_so(folder):
    for (_, count, *cells, accuracy), name in zip(rows("pretrained"), ("whole", "classifier"), strict=True):
        run = fedbonsai.load(folder / "runs" / name)
        last = run.metrics[-1]
        once = sum(size for _, kind, size in run.info["kinds"] if kind.startswith("base/"))
        told = [last["bytes_down"], last["bytes_up"], once, sum(run.bytes.values())]
        assert [f"{cell:,}" for cell in told] == cells
        assert abs(100 * run.accuracy - float(accuracy)) < 10
        assert (count == "650") is (name == "classifier")


@pytest.mark.slow
def test_adapters_travel_alone_and_the_table_is_so(folder):
    pytest.importorskip("peft")
    done = subprocess.run([sys.executable, "lora.py"], cwd=folder, capture_output=True, text=True, timeout=HANGS)
    assert not done.returncode, done.stderr[-3000:]
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line[0] == "|"
    ]
    assert [row[:-1] for row in found] == [row[:-1] for row in rows("lora")]
    assert all(abs(float(a[-1]) - float(b[-1])) < 10 for a, b in zip(found, rows("lora"), strict=True))
    run = fedbonsai.load(folder / "runs/rows-lora adapters and classifier")
    names = [name for name in run.model.weights if "lora_" in name or "classifier" in name]
    learned = sum(run.model.weights[name].numel() for name in names)
    ups = [row["bytes"] for row in run.ledger() if row["kind"] == "update@1"]
    assert 4 * learned < ups[0] < 4 * learned + 2000

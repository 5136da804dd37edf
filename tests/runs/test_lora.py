"""The guide's adapters: only they and the classifier travel, and the numbers that it gives of their bytes are so."""

import re
import subprocess
import sys

import pytest
from tests.moments import HANGS
from tests.test_docs import ROOT, blocks

import fedbonsai

PAGE = ROOT / "docs" / "pretrained.md"


def rows(mark):
    """Cells of a table of the page."""
    text = re.search(rf"<!-- {mark}:begin -->\n(.*?)<!-- {mark}:end -->", PAGE.read_text(), re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


@pytest.mark.slow
def test_adapters_travel_alone_and_the_table_is_so(tmp_path):
    pytest.importorskip("peft")
    for block in blocks(PAGE):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    done = subprocess.run([sys.executable, "lora.py"], cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert not done.returncode, done.stderr[-3000:]
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line[0] == "|"
    ]
    assert [row[:-1] for row in found] == [row[:-1] for row in rows("lora")]
    assert all(abs(float(a[-1]) - float(b[-1])) < 10 for a, b in zip(found, rows("lora"), strict=True))
    run = fedbonsai.load(tmp_path / "runs/rows-lora adapters and classifier")
    names = [name for name in run.model.weights if "lora_" in name or "classifier" in name]
    learned = sum(run.model.weights[name].numel() for name in names)
    ups = [row["bytes"] for row in run.ledger() if row["kind"] == "update@1"]
    assert 4 * learned < ups[0] < 4 * learned + 2000


@pytest.mark.slow
def test_the_first_table_is_so(tmp_path):
    program = "\n".join(block.text for block in blocks(PAGE) if block.kind == "python" and not block.file)
    first, _, _ = program.partition("from fedbonsai import load")
    done = subprocess.run([sys.executable, "-c", first], cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert not done.returncode, done.stderr[-3000:]
    for (_, count, *cells, accuracy), patterns in zip(rows("pretrained"), ([], ["classifier.*"]), strict=True):
        settings = {"model__weights": str(tmp_path / "even.pt"), "model__trainable": patterns}
        run = fedbonsai.run("fedavg", runs=tmp_path, name=f"n{len(patterns)}", rounds=5, progress=False, **settings)
        last = run.metrics[-1]
        once = sum(size for _, kind, size in run.info["kinds"] if kind.startswith("base/"))
        told = [last["bytes_down"], last["bytes_up"], once, sum(run.bytes.values())]
        assert [f"{cell:,}" for cell in told] == cells
        assert abs(100 * run.accuracy - float(accuracy)) < 10
        assert (count == "650") is bool(patterns)

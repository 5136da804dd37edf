"""The notebook of the documents, executed by a kernel as a reader does, and what is committed of its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.moments import HANGS

FILE = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
MOST = 60_000  # bytes of the file


def read() -> Any:
    return nbformat.read(FILE, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]


def result(notebook: Any, inside: str) -> Any:
    """What the cell with some text in it gave."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and inside in cell.source]
    return cell.outputs[-1]


def test_what_is_committed_is_small_whole_and_says_nothing_of_a_machine():
    notebook, text = read(), FILE.read_text(encoding="utf-8")
    assert len(text) < MOST
    assert not any(word in text for word in ("/tmp", "/home", "/root", "site-packages"))
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {each.output_type for each in outputs(notebook)} <= {"stream", "execute_result", "display_data"}
    assert {each.name for each in outputs(notebook) if each.output_type == "stream"} == {"stdout"}
    links = [link for cell in notebook.cells for link in cell.source.split("](")[1:] if cell.cell_type == "markdown"]
    assert links
    assert all((FILE.parent / link.partition(")")[0]).exists() for link in links)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's client warns of itself
def test_it_runs_from_top_to_bottom(tmp_path):
    notebook, committed = read(), read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=HANGS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = result(notebook, 'name="narrow"').data
    assert shown["text/html"].startswith("<table><tr><th>folder</th><td>runs/narrow</td>")
    assert "rounds 4 of 4" in shown["text/plain"]
    assert result(notebook, "out_features").data["text/plain"] == "[8, 64]"  # the second definition counts
    assert "prunefl" in result(notebook, "network = wide").data["text/html"]
    assert "total_bytes_up" in result(notebook, "import pandas").data["text/html"]
    assert "image/png" in result(notebook, "plot(").data
    before, after = (result(each, "count_nonzero").data["text/plain"].split()[-6:] for each in (committed, notebook))
    kept = dict(zip(after[::2], map(int, after[1::2]), strict=True))
    assert kept["pruned"] < 0.6 * kept["wide"]
    assert before[::2] == after[::2]
    assert "same answers: 100%" in result(notebook, "export(").text
    assert (tmp_path / "pruned.bonsai").stat().st_size < 5000

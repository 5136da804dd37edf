"""Every recipe with each protection, as the table of ``docs/trust.md`` says."""

import pytest

from fedbonsai.runs import recipes
from tests.trust import COLUMNS, PAGE, outcome, stands, table


@pytest.mark.slow
@pytest.mark.parametrize(
    "column",
    [COLUMNS[0], *(pytest.param(column, marks=pytest.mark.exhaustive) for column in COLUMNS[1:])],
    ids=lambda column: column.words,
)
def test_each_cell_is_what_happens(column):
    said = stands(PAGE.read_text(encoding="utf-8"))
    place = 2 + COLUMNS.index(column)
    rows = {
        line.split("|")[1].strip(" `"): line.split("|")[place].strip() for line in said.splitlines() if "| `" in line
    }
    assert rows.keys() == recipes.shipped().keys(), "python -m tests.trust writes the table anew"
    for recipe, cell in rows.items():
        found = outcome(recipe, column)
        assert (cell == "yes") == (found == "yes"), (recipe, found)
        if cell != "yes":
            assert f"\n{cell.removeprefix('no [').removesuffix(']')}. {found}\n" in said


def test_the_table_numbers_each_reason_once():
    found = {(recipe, column.words): "yes" for recipe in ("a", "b", "c") for column in COLUMNS}
    found["a", COLUMNS[0].words] = found["b", COLUMNS[0].words] = "because"
    text = table(found)
    assert text.count("because") == 1
    assert text.count("no [1]") == 2

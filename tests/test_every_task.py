"""Every method on every kind of task, as the table of ``docs/tasks.md`` says."""

import pytest

from tests.every_task import KINDS, PAGE, RECIPES, outcome, stands, states, table


@pytest.fixture(scope="module")
def found():
    return {}


QUICK = ("fedavg", "fl-pqsu", "prunefl", "fedtiny", "static-magnitude")  # the others are left to `make test-all`


def some(recipes, quick=QUICK):
    return [pytest.param(each, marks=[] if each in quick else [pytest.mark.exhaustive]) for each in recipes]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", some(RECIPES))
def test_a_method_ends_the_same_or_refuses_by_name(recipe, found):
    rows = [
        line for line in stands(PAGE.read_text(encoding="utf-8")).splitlines() if line.startswith(f"| `{recipe}` |")
    ]
    cells = [cell.strip() for cell in rows[0].split("|")[2:-1]]
    for kind, cell in zip(KINDS, cells, strict=True):
        said = outcome(recipe, kind)
        assert said.split()[0] == "yes" if cell == "yes" else said != "yes", (kind.words, said)
        if cell != "yes":
            number = int(cell.removeprefix("no [").removesuffix("]"))
            assert f"\n{number}. {said}\n" in stands(PAGE.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", some(["fedavg", "prunefl", "splitfed-v1"], ["fedavg"]))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.words)
def test_states_are_equal_without_the_wire(recipe, kind):
    assert states(recipe, kind) == states(recipe, kind, wire=False)


def test_the_table_numbers_each_reason_once():
    said = {(recipe, kind.words): "yes" for recipe in RECIPES for kind in KINDS}
    said["fedavg", KINDS[0].words] = said["moon", KINDS[1].words] = "because"
    assert table(said).count("because") == 1
    assert table(said).count("no [1]") == 2

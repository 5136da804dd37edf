"""Every method on every kind of task, as the table of ``docs/tasks.md`` says."""

import pytest

from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.runs.setup import clients
from tests.every_task import KINDS, PAGE, RECIPES, ROUNDS, outcome, replayed, resumed, stands, states, table


def cells(recipe: str) -> dict[str, str]:
    """What the page says of a recipe, by kind of task."""
    text = stands(PAGE.read_text(encoding="utf-8"))
    row = next(line for line in text.splitlines() if line.startswith(f"| `{recipe}` |"))
    return dict(zip((kind.words for kind in KINDS), map(str.strip, row.split("|")[2:-1]), strict=True))


QUICK = ("fedavg", "fl-pqsu", "prunefl", "fedtiny", "static-magnitude")  # the others are left to `make test-all`


def some(recipes, quick=QUICK):
    return [pytest.param(each, marks=[] if each in quick else [pytest.mark.exhaustive]) for each in recipes]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", some(RECIPES))
def test_a_method_ends_or_refuses_by_name(recipe):
    for kind in KINDS:
        cell = cells(recipe)[kind.words]
        said = outcome(recipe, kind)
        assert said.split()[0] == "yes" if cell == "yes" else said != "yes", (kind.words, said)
        if cell != "yes":
            number = int(cell.removeprefix("no [").removesuffix("]"))
            assert f"\n{number}. {said}\n" in stands(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pools():
    """Two worker processes with a task's data: of one task at a time."""
    held: dict[str, PoolFleet] = {}

    def of(kind) -> PoolFleet:
        if kind.words not in held:
            close()
            held[kind.words] = PoolFleet(clients(kind.task.data()), 2)
        held[kind.words].restore({})
        return held[kind.words]

    def close():
        for words in list(held):
            held.pop(words).close()

    yield of
    close()


PAIRS = [(kind, recipe) for kind in KINDS for recipe in RECIPES if cells(recipe)[kind.words] == "yes"]
FEW = {("square picture", "fedavg"), ("series, gru", "prunefl"), ("tokens, transformer", "fedavg")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "recipe"),
    [pytest.param(*each, marks=[] if (each[0].words, each[1]) in FEW else [pytest.mark.exhaustive]) for each in PAIRS],
    ids=lambda value: getattr(value, "words", value),
)
def test_a_state_is_the_same_in_process_in_workers_resumed_and_replayed(kind, recipe, pools, tmp_path):
    here = states(recipe, kind)
    assert states(recipe, kind, wire=False) == here
    assert states(recipe, kind, pools(kind)) == here
    assert replayed(recipe, kind, tmp_path / "answers") == here
    for t in range(-1, ROUNDS):
        assert resumed(recipe, kind, tmp_path / f"killed {t}", t) == here[-1], f"killed in round {t}"


def test_the_table_numbers_each_reason_once():
    said = {(recipe, kind.words): "yes" for recipe in RECIPES for kind in KINDS}
    said["fedavg", KINDS[0].words] = said["moon", KINDS[1].words] = "because"
    assert table(said).count("because") == 1
    assert table(said).count("no [1]") == 2

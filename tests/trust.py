"""Every shipped recipe with each protection: it runs and the protection shows, or it is refused by name before it trains.

``python -m tests.trust`` writes the table into ``docs/trust.md``; ``tests/test_trust.py`` keeps it true. A protection is a
setting: one more is one more `Column`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import Outcome, loop
from fedbonsai.runs.setup import run_context
from fedbonsai.wire import encode
from tests.cases import SMALL

PAGE = Path(__file__).parents[1] / "docs" / "trust.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
MANY = {"data.clients": 40, "data.limit": 600, "data.minimum": 1, "rounds": 1}  # no cohort is larger
OWN: Mapping[str, Mapping[str, object]] = {  # what a recipe needs on digits
    "feddst": {"method.optimizer.epochs": 2},
    "fedsgc": {"method.optimizer.epochs": 2},
    "fedpm": {"method.optimizer.name": "sgd"},
    "fedtiny": {"model.name": "cnn-bn", "model.options": {"norm": "batch"}},
    "fedtiny-gated": {"model.name": "cnn-bn", "model.options": {"norm": "batch"}},
    "motion": {"data.transforms": []},
}


@dataclass(frozen=True)
class Column:
    """A protection."""

    words: str
    settings: Mapping[str, object]
    shows: Callable[[Outcome, Callable[[], Outcome], Collection[str]], bool]
    """Whether a run had it, by how it ended, how the recipe ends without it, and the tasks that devices did."""
    own: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Settings that a recipe needs instead."""


COLUMNS = (
    Column(
        "central differential privacy",
        {"method.privacy": {"clip": 0.5, "delta": 1e-3}},
        lambda ended, *_: ended.rows[-1]["epsilon"] > 0,
    ),
    Column(
        "distributed differential privacy",
        {"method.privacy": {"clip": 0.5, "delta": 1e-3, "where": "devices"}, "method.secure": {"bits": 16}},
        lambda ended, _, tasks: ended.rows[-1]["epsilon"] > 0 and "secure/reveal" in tasks,
    ),
    Column(
        "secure sum",
        {"method.secure": {"bits": 8}},
        lambda _, __, tasks: "secure/reveal" in tasks,
        {"fedpm": {"method.secure": {"bits": 1}}},
    ),
    Column(
        "robust mean",
        {"method.mean": "median"},
        lambda ended, plain, _: encode(ended.state) != encode(plain().state),
    ),
)


class Watched(Wrapper):
    """Says what clients were asked for."""

    def __init__(self, inner):
        super().__init__(inner)
        self.asked = set()

    def ask(self, task, send, at_least=1):
        self.asked.add(task.name)
        return self.inner.ask(task, send, at_least)


def outcome(recipe: str, column: Column) -> str:
    """``yes``, or why it is refused."""
    small = {**SMALL, **MANY, **OWN.get(recipe, {})}
    settings = {**small, **column.own.get(recipe, column.settings)}
    fleet: Watched | None = None
    try:
        config = recipes.load(recipe, "", settings)
        made = run_context(config)
        made.fleet = fleet = Watched(made.fleet)
        ended = loop(config, made, "run")
    except ConfigError as error:
        assert fleet is None or not fleet.asked, f"{recipe} refuses {column.words} only after clients worked"
        said = " ".join(str(error).split())
        return said.partition("; known here")[0].partition("; did you mean")[0].partition(" known here")[0]

    def plain() -> Outcome:
        config = recipes.load(recipe, "", small)
        return loop(config, run_context(config), "run")

    assert column.shows(ended, plain, fleet.asked), f"{recipe} runs without {column.words}"
    return "yes"


def everything() -> dict[tuple[str, str], str]:
    """All outcomes."""
    return {(recipe, column.words): outcome(recipe, column) for recipe in recipes.shipped() for column in COLUMNS}


def table(found: Mapping[tuple[str, str], str]) -> str:
    """Recipes and protections as Markdown; reasons stand below, numbered."""
    reasons: dict[str, int] = {}
    lines = [f"| recipe | {' | '.join(column.words for column in COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for recipe in dict.fromkeys(recipe for recipe, _ in found):
        said = [found[recipe, column.words] for column in COLUMNS]
        cells = ["yes" if each == "yes" else f"no [{reasons.setdefault(each, len(reasons) + 1)}]" for each in said]
        lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {said}" for said, number in reasons.items())]) + "\n"


def stands(text: str) -> str:
    """The table of a page."""
    return text.split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, after = PAGE.read_text(encoding="utf-8").split(BEGIN)[0], PAGE.read_text(encoding="utf-8").split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{table(everything())}{END}{after}", encoding="utf-8")

"""Every method on every kind of task: it ends, the same wherever clients work, or refuses by name before it trains.

``python -m tests.every_task`` writes the table into ``docs/tasks.md``; ``tests/test_every_task.py`` keeps it true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import fedbonsai.data
from fedbonsai.core import Fleet, Scope, scope
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Recorded, Replayed, Wrapper
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import RunContext, clients, run_context
from fedbonsai.runs.structure import unstructure
from fedbonsai.wire import decode, encode
from tests.mortal import Killed, Mortal
from tests.tasks import BINARY, CONV1D, GRU, LANGUAGE, REGRESSION, SQUARE, WIDE, Task

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
ROUNDS = 2


@dataclass(frozen=True)
class Kind:
    """A task with a shipped network that has all that methods can need: batch normalisation where its kind has it, and parts."""

    words: str
    task: Task
    network: str
    options: Mapping[str, object]


KINDS = (
    Kind("square picture", SQUARE, "cnn-bn", {}),
    Kind("picture 6x10", WIDE, "cnn-bn", {}),
    Kind("series, conv1d", CONV1D, "cnn1d", {"widths": [8, 12, 16]}),
    Kind("series, gru", GRU, "gru", {"hidden": 12}),
    Kind("table, binary", BINARY, "tabular-mlp", {"widths": [16, 16]}),
    Kind("table, regression", REGRESSION, "tabular-mlp", {"widths": [16, 16]}),
    Kind("tokens, transformer", LANGUAGE, "tiny-transformer", {"width": 16, "heads": 2, "layers": 1, "hidden": 32}),
)
RECIPES: Mapping[str, Mapping[str, object]] = {  # one of each method, with what makes it small
    "fedavg": {},
    "fedadam": {},
    "topk-ef": {},
    "fedprox": {},
    "scaffold": {"momentum": 0.0},
    "moon": {},
    "fl-pqsu": {"method.pretrain": 0, "method.finetune": 0, "method.score": "l1"},
    "prunefl": {"steps": 3, "method.scouting": {"iterations": 20, "every": 5, "gate": 0.0}},
    "fedtiny": {"method.density": 0.5, "method.selection.pool": 3},
    "wireless-pruning": {},
    "splitfed-v1": {},
    "local-loss": {},
    "feddct": {"method.size": 2},
    "static-magnitude": {},
    "feddst": {},
    "fedrolex": {},
    "fiarse": {},
    "fjord": {},
    "heterofl": {},
    "fedmef": {"method.readjustment": {"interval": 1, "stop": 9}},
    "fedpm": {"method.optimizer.name": "sgd"},
    "fedrts": {"method.readjustment": {"interval": 1, "stop": 9}},
    "fedsgc": {"method.readjustment": {"interval": 1, "stop": 9}},
    "lotteryfl": {},
    "online": {},
    "sparsyfed": {"method.density": 0.3},
    "small-dense": {"method.density": 0.6},
    "fedgkt": {},
}


def opened(recipe: str, kind: Kind) -> tuple[RunConfig, RunContext]:
    """A run of two rounds on the task's data, and all that it needs.

    Raises:
        ConfigError: the method refuses this task.
    """
    how = dict(RECIPES[recipe])
    training = {name: how.pop(name) for name in ("momentum", "steps") if name in how}
    config = recipes.load(
        recipe,
        "",
        {
            "rounds": ROUNDS,
            "objective": unstructure(kind.task.objective),
            "model.name": kind.network,
            "model.options": dict(kind.options),
            "method.optimizer": {"lr": 0.05, "batch": 8, "epochs": 2, "momentum": 0.5, **training},
            "data.clients": 4,
            **how,
        },
    )
    data, load = kind.task.data(), fedbonsai.data.load
    fedbonsai.data.load = lambda *_: data
    try:
        return config, run_context(config)
    finally:
        fedbonsai.data.load = load


def states(recipe: str, kind: Kind, fleet: Fleet | None = None, wire: bool = True) -> list[bytes]:
    """Bytes of the state after begin and each round, in this process where no fleet is given.

    Raises:
        ConfigError: the method refuses this task.
    """
    _, made = opened(recipe, kind)
    fleet = fleet or LocalFleet(clients(made.federation), wire)
    with scope(fleet, Scope("run", 0, -1, 0)) as open_:
        state = made.method.begin(made.model, open_, made.server)
        open_.commit()
    seen = [bytes(encode(state))]
    for t in range(ROUNDS):
        with scope(fleet, Scope("run", 0, t, 0)) as open_:
            state = made.method.round(decode(seen[-1]), t, open_)
            open_.commit()
        seen.append(bytes(encode(state)))
    return seen


def replayed(recipe: str, kind: Kind, folder: Path) -> list[bytes]:
    """As `states`, where a first run writes the answers down and a second one has no clients, only what was written."""
    fleet = LocalFleet(clients(kind.task.data()))
    states(recipe, kind, Recorded(fleet, folder))
    return states(recipe, kind, Replayed(fleet.devices, folder))


def resumed(recipe: str, kind: Kind, folder: Path, t: int) -> bytes:
    """Bytes of the last state of a run that is killed in round ``t`` (-1: before the first) and goes on from its folder."""
    config, made = opened(recipe, kind)
    made.fleet = Mortal(made.fleet, t, after=1)
    try:
        loop(config, made, "run", Folder(folder))
    except Killed:
        pass
    else:
        assert t == -1, "the round asked nobody"  # a method whose begin asks nobody cannot be killed there
    return bytes(encode(loop(*opened(recipe, kind), "run", Folder(folder)).state))


class Watched(Wrapper):
    """Says whether clients were asked for anything."""

    asked = False

    def ask(self, task, send, at_least=1):
        self.asked = True
        return self.inner.ask(task, send, at_least)


def outcome(recipe: str, kind: Kind) -> str:
    """``yes``, or why the method refuses, before it asks a client for anything."""
    fleet = Watched(LocalFleet(clients(kind.task.data())))
    try:
        states(recipe, kind, fleet)
    except ConfigError as error:
        if fleet.asked:
            raise AssertionError(f"{recipe} refuses {kind.words} only after clients worked") from error
        return str(error)
    return "yes"


def table(found: Mapping[tuple[str, str], str]) -> str:
    """What goes with what, as Markdown; reasons stand below, numbered."""
    reasons: dict[str, int] = {}
    lines = [
        f"| recipe | {' | '.join(kind.words for kind in KINDS)} |",
        f"|---|{'---|' * len(KINDS)}",
    ]
    for recipe in RECIPES:
        cells = []
        for kind in KINDS:
            said = found[recipe, kind.words]
            cells.append("yes" if said == "yes" else f"no [{reasons.setdefault(said, len(reasons) + 1)}]")
        lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {said}" for said, number in reasons.items())]) + "\n"


def everything() -> dict[tuple[str, str], str]:
    """All outcomes."""
    return {(recipe, kind.words): outcome(recipe, kind) for recipe in RECIPES for kind in KINDS}


def stands(text: str) -> str:
    """The table of a page."""
    return text.split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table(everything()) + END + rest.split(END)[1], encoding="utf-8")

"""A runner that looks settings up instead of training them: the search itself, its journal and its sampler are the real ones."""

from collections.abc import Callable, Mapping, Sequence

from fedbonsai.objectives import Classification
from fedbonsai.planning.journal import Journal
from fedbonsai.planning.limits import Limits
from fedbonsai.planning.probe import Probe
from fedbonsai.planning.question import Aim, Question
from fedbonsai.planning.search import Search, directions
from fedbonsai.planning.space import Knob, Space
from fedbonsai.planning.standing import Standing

ROUNDS = 9
SPACE = Space(
    {"fedavg": {}, "fedtiny": {}},
    {"large": {"model.name": "cnn-bn"}, "small": {"model.name": "mlp"}},
    (
        Knob("lr", {name: {"method.optimizer.lr": float(name)} for name in ("0.05", "0.1", "0.2", "0.4")}),
        Knob("density", {name: {"method.density": float(name)} for name in ("0.1", "0.2", "0.5")}, ("fedtiny",)),
        Knob("codec", {name: {} for name in ("fp32", "coded")}, ("fedavg",)),
    ),
)


class Stopped(Exception):
    """The process was killed, as far as the search can tell."""


def curve(labels: Mapping[str, str]) -> Standing:
    """A made-up run: the higher lr the better, fedtiny below fedavg, and a price by network and codec."""
    best = 0.5 + float(labels["lr"]) - 0.2 * (labels["recipe"] == "fedtiny") + 0.05 * (labels["network"] == "large")
    values = tuple(best * (1 - 0.5 ** (t + 1)) for t in range(ROUNDS))
    price = (100.0 if labels["network"] == "large" else 30.0) / (10 if labels.get("codec") == "coded" else 1)
    return Standing(
        values=values, tests=values, bytes=tuple(price * (t + 1) for t in range(ROUNDS)), ended=True, took=1.0
    )


class Lookup:
    """The runner.

    Args:
        limits: that end a run.
        kill: calls after which `Stopped` is raised; 0: never.
        refused: networks that cannot run.
    """

    def __init__(self, limits: Limits, kill: int = 0, refused: str = "") -> None:
        self.limits, self.kill, self.refused, self.calls = limits, kill, refused, 0
        self.walked: list[tuple[int, int]] = []

    def _called(self) -> None:
        self.calls += 1
        if self.calls == self.kill:
            raise Stopped

    def probe(self, labels: Sequence[Mapping[str, str]]) -> Sequence[Probe]:
        self._called()
        found = []
        for each in labels:
            held = curve(each)
            refused = each["network"] == self.refused
            each_round = {"bytes": held.bytes[0]}
            made = Probe(begin=each_round, each=each_round, fixed={})
            found.append(Probe("needs 9 GB on a raspberry-pi-4", "memory above the device's") if refused else made)
        return found

    def walk(
        self, legs: Sequence[tuple[int, Mapping[str, str], int, int]], came: Callable[[int, Standing], object]
    ) -> None:
        for number, labels, length, upto in legs:
            self._called()
            self.walked.append((number, upto))
            came(number, curve(labels).first(min(upto, length)))

    def left(self, number: int) -> Standing | None:
        return None


def question(aim: Aim = Aim(), **limits: float) -> Question:  # noqa: B008 - frozen
    return Question({"seed": 0}, Limits(**limits), aim, SPACE, ROUNDS, Classification())


def search(folder, asked: Question, runner: Lookup, trials: int = 0, seed: int = 0) -> Search:
    folder.mkdir(exist_ok=True)
    return Search(asked, Journal(folder, asked.space, directions(asked), seed), runner, trials, lambda text: None)


def story(done: Search) -> list[object]:
    """All that a search found: settings, where they stand, what was told."""
    told = [(each.number, each.labels, each.over) for each in done.journal.asked()]
    return [
        told,
        [(each.number, each.length, each.rung, each.out, each.standing) for each in done.candidates.values()],
        [each.number for each in done.feasible()],
        [(each.state.name, each.values) for each in done.journal._study.trials if "number" in each.user_attrs],
    ]

"""What every method must do, checked for every row of `CASES`. A new method adds one row.

A row names a recipe, what makes it small enough for a test, how often a round asks the fleet, and what kinds of
messages go each way. Everything else is the same for all: equal bytes wherever the clients run and in whatever order
they work, restart after every round, silence, seeds, purity, learning, and a card that is true.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from fedbonsai.core import Answers, Scope, scope
from fedbonsai.errors import Unanswered
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.fleets.wrappers import Flaky, Metered, Wrapper
from fedbonsai.methods.registry import methods
from fedbonsai.runs import recipes
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import RunContext, clients, federation, initial_model, run_context
from fedbonsai.training.evaluate import evaluate
from fedbonsai.wire import decode, encode, name_of
from tests.cases import ALIKE, CASES, LEARNS_ALIKE, ROUNDS, Case, some
from tests.digests import digests, machine, recorded
from tests.mortal import Killed, Mortal

# `make check` runs the first row only, and of it what is quick; `make test` runs all
SUITE = [pytest.param(case, marks=[pytest.mark.slow] if number else []) for number, case in enumerate(CASES)]
each = pytest.mark.parametrize("case", SUITE, ids=str)


def also(*values):
    """Values that another one of the same test stands for: left to `make test-all`."""
    return [pytest.param(value, marks=pytest.mark.exhaustive) for value in values]


def stage(case: Case, fleet=None, seed: int = 0) -> RunContext:
    config = case.config(seed=seed)
    made = run_context(config)
    if fleet is not None:
        made.fleet = fleet
    return made


def people(case: Case):
    return clients(federation(case.config()))


def states(case: Case, fleet=None, seed: int = 0, rounds: int = ROUNDS) -> list[bytes]:
    """Bytes of the state after begin and after every round."""
    made = stage(case, fleet, seed)
    with scope(made.fleet, Scope("run", seed, -1, 0)) as open_:
        state = made.method.begin(made.model, open_, made.server)
        open_.commit()
    seen = [bytes(encode(state))]
    for t in range(rounds):
        with scope(made.fleet, Scope("run", seed, t, 0)) as open_:
            state = made.method.round(decode(encode(state)), t, open_)  # from its bytes: the state holds all there is
            open_.commit()
        seen.append(bytes(encode(state)))
    return seen


def kept(make):
    """The same function of a case, which does its work once for each of them."""
    known = {}

    def of(case: Case):
        if str(case) not in known:
            known[str(case)] = make(case)
        return known[str(case)]

    return of


@pytest.fixture(scope="module")
def reference():
    return kept(states)


@pytest.fixture(scope="module")
def pools():
    made: dict[tuple[int, int], PoolFleet] = {}
    held = people(CASES[0])

    def of(workers: int, batch: int = 1) -> PoolFleet:
        if (workers, batch) not in made:
            made[workers, batch] = PoolFleet(held, workers, batch)
        made[workers, batch].restore({})
        return made[workers, batch]

    yield of
    for pool in made.values():
        pool.close()


def test_every_method_has_a_row_and_every_recipe_is_valid():
    assert {case.config().method.method_name for case in CASES} == set(methods())
    for name, text in recipes.shipped().items():
        recipes.load(name)
        assert recipes.summary(text), f"{name}.toml must begin with one line that says what it is"


@each
def test_the_bytes_are_those_of_before(case, reference):
    if str(case) not in recorded():
        pytest.skip("a new case; record it: python -m tests.digests")
    known, found = recorded()[str(case)], digests(reference(case))
    assert found["forms"] == known["forms"]
    if recorded()["machine"] == machine() and known["bytes"]:  # a case that was added on another machine has none
        assert found["bytes"] == known["bytes"]


def test_every_case_is_recorded():
    found = recorded().keys() ^ {"machine", *map(str, CASES)}
    assert not found, "python -m tests.digests records new cases, and leaves the others as they are"


class Watching(Wrapper):
    """Remembers what was sent, as bytes, and the messages themselves."""

    def __init__(self, inner):
        super().__init__(inner)
        self.sent: list[tuple[object, bytes]] = []
        self.asks: list[int] = []

    def ask(self, task, send, at_least=1):
        self.asks.append(self._scope.round)
        self.sent += [(message, bytes(encode(message))) for message in send.values()]
        return self.inner.ask(task, send, at_least)


@each
def test_same_state_without_the_wire_and_nothing_that_was_sent_is_written_into(case, reference):
    fleet = Watching(LocalFleet(people(case), wire=False))
    assert states(case, fleet) == reference(case)
    assert fleet.sent
    for message, before in fleet.sent:
        assert bytes(encode(message)) == before


@pytest.mark.slow
@each
@pytest.mark.parametrize("workers", [2, *also(1, 3)])
def test_same_state_in_worker_processes(case, reference, pools, workers):
    assert states(case, pools(workers)) == reference(case)


TOGETHER = {  # each trains in another way; the rest is left to `make test-all`
    *(
        "fedavg",
        "topk-ef",
        "distance-weights",
        "sparse-collaborative-local-loss",
        "scaffold",
        "moon",
        "fedgkt",
        "heterofl",
    ),
    *("fedtiny", "fl-pqsu", "prunefl", "feddst", "wireless-pruning", "fedtiny-gated"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [case if str(case) in TOGETHER else also(case)[0] for case in CASES], ids=str)
def test_clients_that_train_together(case, reference, pools):
    """Byte-equal wherever they do, and what they learn is what each learns alone, but for the last bits."""
    state = states(case, LocalFleet(people(case), batch=2), rounds=1)
    assert states(case, pools(1, 2), rounds=1) == state
    ours, alone = (stage(case).method.model(decode(end)).weights for end in (state[-1], reference(case)[1]))
    gaps = torch.cat([(ours[name].double() - value.double()).abs().flatten() for name, value in alone.items()])
    # which values are the largest may turn on a last bit
    assert float((gaps < 1e-5).double().mean()) > 0.99


class Backwards(Wrapper):
    """Clients work in the reverse order; answers are still given in the order of the question."""

    def ask(self, task, send, at_least=1):
        answers = self.inner.ask(task, dict(reversed(send.items())), 0)
        got = {answer.device: answer for answer in answers}
        return Answers([got.get(device) or answers.silent[device] for device in send], at_least)


@pytest.mark.parametrize("case", some(CASES, ALIKE), ids=str)
def test_same_state_when_clients_work_in_another_order(case, reference):
    assert states(case, Backwards(LocalFleet(people(case)))) == reference(case)


@pytest.mark.slow
@each
def test_another_seed_gives_another_state_from_the_first_round_on(case, reference):
    assert states(case, seed=1, rounds=1)[1] != reference(case)[1]  # that the same one gives the same is tested above


def written(folder: Folder) -> tuple[list[object], list[object]]:
    """Ledger and metrics of a run, without the time that it took."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in folder.rows()]
    return list(folder.ledger_rows()), rows


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """What a run writes that nothing kills."""

    def whole(case: Case) -> tuple[list[object], list[object]]:
        folder = Folder(tmp_path_factory.mktemp("whole") / "run")
        loop(case.config(), stage(case), "run", folder)
        return written(folder)

    return kept(whole)


@pytest.mark.parametrize("case", some(CASES, ALIKE), ids=str)
@pytest.mark.parametrize("t", [-1, 1, *also(0, *range(2, ROUNDS))])
def test_a_run_that_is_killed_in_any_round_ends_in_the_same_state(case, reference, untouched, tmp_path, t):
    config, folder = case.config(), Folder(tmp_path / "run")
    made = stage(case)
    made.fleet = Mortal(made.fleet, t, after=1)
    try:
        loop(config, made, "run", folder)
        # a method whose begin asks nobody cannot be killed there, nor a round whose private sample is empty
        assert t == -1 or (case.private and not made.method.secure), "the round asked nobody"
    except Killed:
        pass
    again = stage(case)
    outcome = loop(config, again, "run", folder)
    assert bytes(encode(outcome.state)) == reference(case)[-1]
    assert [row["round"] for row in outcome.rows] == list(range(ROUNDS))
    assert written(folder) == untouched(case)


class Silent(Wrapper):
    """Chosen devices never answer in rounds, though they do in begin."""

    def __init__(self, inner, ids):
        super().__init__(inner)
        self.ids = ids

    def ask(self, task, send, at_least=1):
        if self._scope.round < 0:
            return self.inner.ask(task, send, at_least)
        return self.inner.ask(task, {d: m for d, m in send.items() if d.id not in self.ids}, at_least)


@pytest.mark.parametrize("case", some(CASES, ALIKE), ids=str)
def test_one_silent_client_does_not_stop_a_round(case):
    held = people(case)
    seen = states(case, Silent(LocalFleet(held), {held[1].id}))
    model = stage(case).method.model(decode(seen[-1]))
    assert all(bool(torch.isfinite(value).all()) for value in model.weights.values())


@each
def test_when_all_are_silent_nothing_is_averaged(case):
    held = people(case)
    fleet = Silent(LocalFleet(held), {person.id for person in held})
    if case.private and not stage(case).method.secure:  # the server's noise is released, whoever is silent
        assert stage(case).method.account(decode(states(case, fleet)[-1])).releases[0].rounds == ROUNDS
        return
    with pytest.raises(Unanswered):
        states(case, fleet)


@pytest.mark.parametrize("case", some(CASES, ALIKE), ids=str)
def test_a_flaky_fleet_is_survived_and_still_decided_by_the_seed(case):
    config = case.config(retries=3)

    def end():
        made = stage(case)
        made.fleet = Flaky(made.fleet, 0.25 if case.asks < 5 else 0.01)
        outcome = loop(config, made, "run")
        assert not all(row["skipped"] for row in outcome.rows), "nothing was compared"
        return bytes(encode(outcome.state))

    assert end() == end()


@each
def test_exchanges_and_message_kinds_are_as_declared(case):
    ledger = Ledger()
    fleet = Watching(Metered(LocalFleet(people(case)), ledger))
    states(case, fleet)
    assert [fleet.asks.count(t) for t in range(ROUNDS)] == [case.asks] * ROUNDS
    in_rounds = [row for row in ledger.take() if row["round"] >= 0]
    assert {row["kind"] for row in in_rounds if row["direction"] == "down"} == case.down
    assert {row["kind"] for row in in_rounds if row["direction"] == "up"} == case.up
    assert all(row["bytes"] > 0 for row in in_rounds)


@each
def test_state_travels_and_has_a_name(case, reference):
    state = decode(reference(case)[-1])
    assert "@" in name_of(state)


@pytest.mark.parametrize("case", [CASES[0], *some(CASES[1:], LEARNS_ALIKE)], ids=str)
def test_it_learns(case):
    # of a tenth of the weights nothing learns in so few rounds under noise
    wider = {"method.density": 0.3} if case.private and hasattr(case.config().method, "density") else {}
    config = case.config(rounds=12, **{"data.limit": 0}, **wider)
    made = run_context(config)
    first = evaluate(initial_model(config, made.federation), made.federation.test)
    last = loop(config, made, "run").rows[-1]
    assert last[case.learns] > max(0.75, first.accuracy + 0.3)
    assert last["loss"] < first.loss
    assert case.private or math.isfinite(last["train_loss"])


HEADINGS = (
    "## What and why",
    "## Citation",
    "## Algorithm",
    "## State, memory, exchanges, bytes",
    "## Hyper-parameters",
    "## Deviations",
    "## Results",
    "## Composes with",
)


@pytest.mark.parametrize("name", sorted(methods()))
def test_the_card_has_its_headings_and_names_every_setting(name):
    module = methods()[name].__module__
    card = Path(__import__(module, fromlist=["x"]).__file__).with_name("README.md").read_text()
    places = [card.find(heading) for heading in HEADINGS]
    assert -1 not in places, f"missing: {[h for h, p in zip(HEADINGS, places, strict=True) if p < 0]}"
    assert places == sorted(places)
    for setting in (entry.name for entry in fields(methods()[name])):
        assert f"`{setting}`" in card, f"the card does not explain {setting}"

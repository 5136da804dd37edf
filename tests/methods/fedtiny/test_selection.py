"""The choice of a candidate against the numbers of specs/fedtiny §8, and who has a part in it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedbonsai.core import Answers, Scope, Silence, scope
from fedbonsai.errors import Unanswered
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Metered, Wrapper
from fedbonsai.methods.fedtiny.pool import Selection
from fedbonsai.methods.fedtiny.selection import Evaluate, Evaluated, best, evaluate, measure, select
from fedbonsai.model import Model
from fedbonsai.stages.norm_statistics import merged
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.updates import statistics_of
from tests.methods.fedtiny.pools import CNN, drawn, person, request


def chosen(people, how, counts=None, model=None):
    model = model or Model.init(CNN, 0)
    fleet, ledger = LocalFleet(people), Ledger()
    with scope(Metered(fleet, ledger), Scope("r", 0, -1, 0)) as open_:
        found = select(model, counts or drawn(model), how, open_)
        open_.commit()
    return found, ledger.take(), fleet


class Changed(Wrapper):
    """Some devices' answers of one exchange are something else, or are lost."""

    def __init__(self, people, task, change):
        super().__init__(LocalFleet(people))
        self.task, self.change = task, change

    def ask(self, task, send, at_least=1):
        answers = self.inner.ask(task, send, 0)

        def seen():
            for answer in answers:
                value = self.change(answer.device.id, answer.value) if task is self.task else answer.value
                if value is None:
                    self.inner.reject(answer.device)
                yield replace(answer, value=value) if value is not None else Silence(answer.device, "lost")
            yield from answers.silent.values()

        return Answers(seen(), at_least)

    def select(self, how=None):
        model = Model.init(CNN, 0)
        with scope(self, Scope("r", 0, -1, 0)) as open_:
            found = select(model, drawn(model), how or Selection(), open_)
            open_.commit()
        return found


TWO = [person("a", 30, 1), person("b", 10, 2, scale=3.0)]


def lost(id, value):
    return None if id == "b" else value


def measured_by(people):
    sent = request(Model.init(CNN, 0), drawn(Model.init(CNN, 0)))
    answers = [measure.run(sent, me, {})[0] for me in people]
    return [SimpleNamespace(count=answer.examples, found=answer.statistics) for answer in answers]


def test_the_numbers_of_the_selection():
    judged = [Evaluated((1.00, 1.12), 30), Evaluated((1.40, 1.10), 10)]
    assert best(judged) == (0, pytest.approx((1.100, 1.115)))
    assert best(judged, weighted=False) == (1, pytest.approx((1.20, 1.11)))
    assert best([Evaluated((2.0, 1.0, 1.0), 5)])[0] == 1  # ties to the lowest index
    assert best([Evaluated((math.nan, 3.0), 5)]) == (1, (math.inf, 3.0))


@pytest.mark.slow
def test_selection_end_to_end():
    people = [person("a", 30, 1), person("b", 10, 2, scale=3.0)]
    model, how = Model.init(CNN, 0), Selection()
    counts = drawn(model)
    found, ledger, fleet = chosen(people, how)
    assert found.losses[found.index] == min(found.losses)
    assert len(found.losses) == 3
    assert {name: int(mask.sum()) for name, mask in found.masks.items()} == counts[found.index]
    for name, value in found.model.weights.items():
        if name.endswith(("running_mean", "running_var")):
            assert not torch.equal(value, model.weights[name])
        else:
            assert torch.equal(value, masked(model.weights, found.masks)[name])
    assert [row["kind"] for row in ledger if row["direction"] == "up"] == ["candidates/measured@1"] * 2 + [
        "candidates/judged@1"
    ] * 2
    assert fleet._slots.memory("a") == {}  # the candidates are gone after pass B
    backwards, *_ = chosen(people[::-1], how)
    assert backwards.index == found.index
    assert all(torch.equal(value, backwards.model.weights[name]) for name, value in found.model.weights.items())
    separate, *_ = chosen(people, Selection(nested=False))
    assert separate.index == found.index
    assert separate.losses == found.losses


def test_vanilla_judges_with_the_servers_statistics():
    model = Model.init(CNN, 0)
    found, *_ = chosen([person()], Selection(by="vanilla"), model=model)
    own = statistics_of(model.weights)
    assert all(torch.equal(found.model.weights[name], value) for name, value in own.items())


def test_sending_the_union_costs_less_than_sending_each():
    people = [person()]
    down = [
        sum(
            row["bytes"] for row in chosen(people, Selection(nested=nested))[1] if row["kind"] == "candidates/measure@1"
        )
        for nested in (True, False)
    ]
    assert down[0] < 0.6 * down[1]


def test_statistics_that_are_not_finite_are_dropped():
    people = [person("a"), person("b", scale=float("nan"))]
    found, *_ = chosen(people, Selection())
    alone, *_ = chosen(people[:1], Selection())
    assert found.losses == alone.losses
    with pytest.raises(Unanswered, match="no statistics"):
        chosen(people[1:], Selection())


@pytest.mark.slow
def test_whoever_is_silent_has_no_part_in_the_mean_of_that_exchange():
    alone = Changed(TWO[:1], measure, lost).select()
    without_b = Changed(TWO, measure, lost).select()
    assert without_b.losses == alone.losses  # not asked to judge either
    both = Changed(TWO, None, lost).select()
    half = Changed(TWO, evaluate, lost).select()  # its statistics count, its losses do not
    assert half.losses not in (alone.losses, both.losses)
    by_a, _ = evaluate.run(
        Evaluate(
            tuple(
                merged([(person.count, person.found[c]) for person in measured_by(TWO)])
                for c in range(len(half.losses))
            )
        ),
        TWO[0],
        {"candidates": request(Model.init(CNN, 0), drawn(Model.init(CNN, 0)))},
    )
    assert half.losses == pytest.approx(by_a.losses)


@pytest.mark.parametrize(
    "lie",
    [
        lambda name, value: value.double(),
        lambda name, value: -value.abs() - 1 if name.endswith("var") else value,
        lambda name, value: value[:-1],
    ],
    ids=["type", "negative variance", "shape"],
)
@pytest.mark.parametrize("how", [Selection(), Selection(merge="averaged")], ids=lambda how: how.merge)
def test_statistics_that_cannot_be_are_dropped(lie, how):
    def lying(id, value):
        if id == "a":
            return value
        return replace(value, statistics=tuple({n: lie(n, v) for n, v in each.items()} for each in value.statistics))

    found = Changed(TWO, measure, lying).select(how)
    assert found.losses == Changed(TWO[:1], None, lost).select(how).losses
    assert {value.dtype for value in found.model.weights.values()} == {torch.float32}


def test_a_device_to_which_every_loss_is_no_number_does_not_decide():
    def lying(id, value):
        return value if id == "a" else replace(value, losses=(math.nan,) * len(value.losses))

    found = Changed(TWO, evaluate, lying).select()
    assert all(map(math.isfinite, found.losses))
    assert found.losses[found.index] == min(found.losses)
    with pytest.raises(Unanswered, match="no losses"):
        Changed(TWO[1:], evaluate, lying).select()


def test_a_channel_of_no_variance_stays_a_number():
    model = Model.init(CNN, 0)
    weights = dict(model.weights) | {"features.conv1.weight": torch.zeros_like(model.weights["features.conv1.weight"])}
    found, *_ = chosen([person()], Selection(), model=model.replace(weights), counts=drawn(model))
    assert not found.model.weights["features.norm1.running_var"].any()
    assert all(map(math.isfinite, found.losses))


@pytest.mark.parametrize("wrong", [{"pool": -1}, {"batch": 1}, {"noise": 2.0}, {"momentum": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Selection(**wrong)

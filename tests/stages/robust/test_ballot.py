"""A round's updates under a robust mean: what counts, what is refused, and what it cannot stand beside."""

import pytest
import torch

from fedbonsai.core import Answer, Device
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.runs import recipes
from fedbonsai.stages.codec import Chain, parse
from fedbonsai.stages.robust import Ballot, Bounded, Krum, Median, Trimmed
from fedbonsai.stages.updates import Update, combine

START = {"w": torch.tensor([1.0, 2.0]), "n.running_var": torch.tensor([1.0]), "n.count": torch.tensor(3)}


class Seen:
    """A fleet that writes down whose answer was rejected."""

    def __init__(self):
        self.rejected = []

    def reject(self, device, why=""):
        self.rejected.append(device.id)


def answers(*weights, examples=10, losses=None, coded=()):
    for place, row in enumerate(weights):
        new = {"w": torch.tensor(row[:2]), "n.running_var": torch.tensor(row[2:3]), "n.count": torch.tensor(5)}
        loss = losses[place] if losses else 0.5
        result = new
        if place in coded:
            change = {name: value - START[name] for name, value in new.items() if value.is_floating_point()}
            result = Chain(parse(["fp16"]).stages).pack(change, 0)
        yield Answer(Device("abcdefgh"[place]), Update(result, examples, 1, loss))


ROWS = ([1.5, 2.0, 1.0], [2.0, 2.5, 2.0], [9e3, -9e3, 9e3], [1.0, 3.0, 3.0], [1.5, 2.0, 1.0])


def test_weights_that_came_as_they_are_stay_weights():
    found = combine(answers(*ROWS, losses=[1, 2, 900, 3, 1]), START, Seen(), rule=Median())
    assert found.whole
    assert found.mean["w"].tolist() == [1.5, 2.0]
    assert found.mean["n.running_var"].tolist() == [2.0]
    assert found.mean["n.count"].item() == 3  # what is no floating tensor stays
    assert list(found.mean) == list(START)
    assert found.loss == 2  # the median of what is told
    assert found.shares == dict.fromkeys("abcde", 0.2)


def test_claims_of_samples_count_for_nothing():
    mixed = [*answers(*ROWS[:4]), *answers(ROWS[2], examples=10**12)]
    assert combine(mixed, START, Seen(), rule=Trimmed(0.4)).mean["w"].tolist() == [2.0, 2.0]


def test_statistics_vote_apart_from_what_is_learned():
    # nearest in what is learned are a and b, in the statistics c and d: the latter decide nothing about the former
    rows = ([1.0, 2.0, 9.0], [1.1, 2.0, 1.0], [3.0, 2.0, 5.0], [5.0, 2.0, 5.1], [9.0, 2.0, -3.0])
    found = combine(answers(*rows), START, Seen(), rule=Krum(0.2))
    assert found.mean["w"].tolist() == [pytest.approx(1.1), 2.0]
    assert found.mean["n.running_var"].tolist() == [pytest.approx(5.1, abs=0.11)]
    lying = combine(answers(*[[1.0, 2.0, -7.0]] * 3), START, Seen(), rule=Median())
    assert lying.mean["n.running_var"].tolist() == [0.0]  # a variance is never negative


def test_a_change_far_too_long_is_refused_by_name():
    fleet = Seen()
    found = combine(answers(*ROWS), START, fleet, rule=Bounded(refuse=10))
    assert fleet.rejected == ["c"]
    assert found.dropped == 1
    assert found.devices == ("a", "b", "d", "e")


def test_too_few_answers_for_the_rule_are_no_round():
    with pytest.raises(Unanswered, match=r"of 4 devices is less than one, .*4 answers could be used"):
        combine(answers(*ROWS[:4]), START, Seen(), rule=Trimmed(0.2))


@pytest.mark.parametrize("rule", [None, Median()], ids=["plain", "median"])
def test_a_change_where_weights_are_asked_for_is_refused(rule):
    # the last answer's kind decided once what the mean of all was taken for: one device could double the model
    fleet, more = Seen(), {"rule": rule} if rule else {}
    found = combine(answers(*ROWS, coded=[4]), START, fleet, **more)
    assert fleet.rejected == ["e"]
    assert found.whole
    fleet = Seen()
    found = combine(answers(*ROWS, coded=[0, 1, 2, 4]), START, fleet, coded=True, **more)
    assert fleet.rejected == ["d"]
    assert not found.whole


def test_a_mean_beyond_its_type_is_no_mean():
    rows = [[3e38, 0.0, 1.0]] * 3
    with pytest.raises(Unanswered, match=r"beyond what its type holds; .* or set method.mean"):
        combine(answers(*rows), START, Seen())
    assert combine(answers([1.0, 0.0, 1.0], *rows[:1], [2.0, 0.0, 1.0]), START, Seen(), rule=Median()).mean["w"][0] == 2


def test_coordinates_that_were_not_sent_stay():
    ballot = Ballot(Median(), START)
    masks = {"w": torch.tensor([True, False])}
    for place in range(4):
        change = {"w": torch.tensor([float(place), 5.0]), "n.running_var": torch.tensor([0.5])}
        ballot.add(Device(str(place)), change, masks if place > 1 else {})
    elected = ballot.close(Seen())
    assert elected.weights["w"].tolist() == [2.5, 2.0]


@pytest.mark.parametrize(
    ("recipe", "settings", "text"),
    [
        ("ef21", {}, "ef21 sends changes of an estimate, which no mean bears that lets all devices count alike"),
        ("fedavg", {"method.weighting.beta": 1.0}, "weighting says how much each device counts"),
        ("fedavg", {"method.weighting.prior": "uniform"}, "weighting says"),
        ("fedavg", {"method.cohort": 4, "method.sticky": {"group": 6, "fresh": 1}}, "sticky counts devices"),
        (
            "topk",
            {"method.aggregate_feedback": True, "method.downlink.delta": True},
            "aggregate_feedback needs the mean of what devices left out",
        ),
        ("fjord", {}, "weigh = 'examples' counts devices by samples"),
        ("heterofl", {"method.weigh": "examples"}, "weigh = 'examples' counts devices by samples"),
        ("fedrolex", {"method.weigh": "examples"}, "weigh = 'examples' counts devices by samples"),
        ("fedavg", {"data.clients": 2}, "mean = median: 2 devices, among which nobody is in the middle"),
        ("fedavg", {"method.cohort": 2}, "mean = median: 2 devices"),
        ("fedavg", {"fleet.kind": "flower"}, "mean = median: 2 devices"),
        ("fedpm", {}, "there is no such setting"),
    ],
)
def test_what_a_robust_mean_cannot_stand_beside(recipe, settings, text):
    with pytest.raises(ConfigError, match=text):
        recipes.load(recipe, "", {**settings, "method.mean": "median"})

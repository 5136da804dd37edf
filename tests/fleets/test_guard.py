"""What a server refuses of an answer: it is named, counted as rejected, and enters no mean."""

import pytest

from fedbonsai.core import Answer, Answers, Device, Scope, Silence, scope
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.counted import Counted
from fedbonsai.fleets.guard import Guard, GuardConfig, claim_of
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import run_context
from fedbonsai.runs.trouble import of_round
from fedbonsai.stages.updates import Update
from fedbonsai.stages.width.submodel import Trained
from tests.fleets.test_liars import TINY


class Told(Wrapper):
    """A fleet whose devices answer what they are told."""

    def __init__(self, *answers):
        self.answers, self.dropped = answers, []

    def ask(self, task, send, at_least=1):
        return Answers(iter(self.answers), at_least)

    def reject(self, device, why=""):
        self.dropped.append(device.id)

    def open(self, scope):
        pass

    def abort(self):
        pass


def says(name, examples, up=100):
    return Answer(Device(name), Update({}, examples, 1, 0.5), 10, up)


def heard(limits, *answers):
    fleet = Counted(Guard(Told(*answers), limits))
    with scope(fleet, Scope("r", 0, 0, 0)):
        used = [answer.device.id for answer in fleet.ask(None, {answer.device: None for answer in answers})]
    return used, fleet.take(), fleet.inner.inner.dropped


def test_a_claim_far_above_the_median_of_all_is_refused():
    used, row, dropped = heard(GuardConfig(claims=10), says("a", 10**12), says("b", 40), says("c", 60), says("d", 600))
    assert used == ["b", "c", "d"]  # the median of four is 330, and ten times that is more than 600
    assert dropped == ["a"]
    assert (row["answered"], row["silent"], row["rejected"]) == (3, 0, 1)
    assert row["reasons"][0]["rejected"]
    assert of_round(row) == "1 rejected (a: 1000000000000 samples claimed, more than 3300 (fleet.guard.claims = 10))"


def test_two_claims_have_no_median_that_one_does_not_make():
    assert heard(GuardConfig(claims=2), says("a", 10**12), says("b", 1))[0] == ["a", "b"]


def test_claims_and_bytes_above_a_number_are_refused_as_they_come():
    silent = Silence(Device("d"), "no answer")
    limits = GuardConfig(bytes=100, examples=50)
    used, row, dropped = heard(limits, says("a", 51), says("b", 50), says("c", 1, up=101), silent)
    assert used == ["b"]
    assert dropped == ["a", "c"]
    assert (row["silent"], row["rejected"]) == (1, 2)
    assert {each["reason"] for each in row["reasons"]} == {
        "51 samples claimed, more than fleet.guard.examples = 50",
        "101 bytes came, more than fleet.guard.bytes = 100",
        "no answer",
    }


def test_a_claim_is_found_inside_a_message_of_a_message():
    assert claim_of(Trained(Update({}, 7, 1, 0.5), (1,))) == 7
    assert claim_of({"examples": 3}) == 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fleet.guard.claims": 0.5}, "claims = 0.5: expected 0, or at least 1 time the median"),
        ({"fleet.guard.bytes": -1}, "bytes = -1: expected a number >= 0"),
        ({"fleet.guard.bytes": 5, "fleet.wire": False}, "without the wire nothing has bytes"),
    ],
)
def test_what_cannot_be_meant(settings, text):
    with pytest.raises(ConfigError, match=text):
        recipes.load("fedavg", "", settings)


@pytest.mark.slow
def test_a_device_of_very_many_samples_ends_a_run_without_a_guard_and_not_with_one():
    def run(**more):
        told = {**TINY, "rounds": 2, "fleet.liars": {"share": 0.1, "attack": "claim"}, **more}
        config = recipes.load("fedavg", "", told)
        return loop(config, run_context(config), "guard").rows

    free, guarded = run(), run(**{"fleet.guard.claims": 100})
    assert free[-1]["accuracy"] < 0.2 < 0.5 < guarded[-1]["accuracy"]
    assert [row["rejected"] for row in guarded] == [1, 1]

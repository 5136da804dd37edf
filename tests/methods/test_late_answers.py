"""Methods that open an answer before they average it leave it what it counts: how old it is, and how much less for that."""

from types import SimpleNamespace

import pytest
import torch

from fedbonsai.core import Answer, Answers, Device
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.fedtiny import aggregate as fedtiny
from fedbonsai.methods.fedtiny.client import Trained
from fedbonsai.methods.online import method as online
from fedbonsai.methods.prunefl import aggregate as prunefl
from fedbonsai.methods.prunefl.client import Result
from fedbonsai.methods.prunefl.importance import Wanted
from fedbonsai.stages.held_masks import pack
from fedbonsai.stages.pruning import under_masks
from fedbonsai.stages.robust import Plain
from fedbonsai.stages.updates import Update

START = {"w": torch.tensor([1.0, 0.0])}
MASKS = {"w": torch.tensor([True, False])}
PACKED = pack({"w": torch.tensor([3.0, 0.0])}, MASKS, 0)
SENT = Update(PACKED, 10, 1, 0.5)
FLEET = LocalFleet([])


def by_masks(late, _):
    return under_masks.opened([late(SENT)], START, MASKS)


def by_online(late, _):
    state = SimpleNamespace(
        size=(1,), classes=2, model=SimpleNamespace(weights=START), held=SimpleNamespace(masks=MASKS)
    )
    shown = torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)
    return online.opened([late(online.Trained(SENT, *shown))], state, 0, {})


def averaged(module, monkeypatch, call):
    """What comes to the mean."""
    seen = []
    monkeypatch.setattr(module, "combine_if_any", lambda _, updates, *rest, **more: seen.extend(updates))
    call()
    return seen


def by_prunefl(late, monkeypatch):
    wanted, answers = Wanted(False, False, True, 0), Answers([late(Result(SENT))])
    return averaged(prunefl, monkeypatch, lambda: prunefl.aggregate(answers, START, MASKS, wanted, 0.1, FLEET, Plain()))


def by_fedtiny(late, monkeypatch):
    answers = Answers([late(Trained(PACKED, 10, 1, 0.5, {}))])
    return averaged(fedtiny, monkeypatch, lambda: fedtiny.aggregate(answers, START, MASKS, {}, False, FLEET, Plain()))


@pytest.mark.parametrize("opens", [by_masks, by_online, by_prunefl, by_fedtiny])
def test_an_opened_answer_keeps_its_age_and_its_weight(opens, monkeypatch):
    (found,) = opens(lambda value: Answer(Device("b"), value, 3, 4, stale=2, weight=0.5), monkeypatch)
    assert found.value.result["w"].tolist() == [3.0, 0.0]
    assert (found.device, found.down, found.up, found.stale, found.weight) == (Device("b"), 3, 4, 2, 0.5)

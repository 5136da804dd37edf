"""Devices are asked about their data with the messages of a simulation; what heads have no room for comes in a body."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai import bases
from fedbonsai.core import Scope, scope
from fedbonsai.data.survey import Ask, sums
from fedbonsai.errors import BadMessage
from fedbonsai.fleets.based import UNSCALED
from fedbonsai.fleets.flower.client import client_app
from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.frames import FORMLESS, ROOM, Form, hold_form, in_head, whole
from fedbonsai.fleets.flower.grid import InProcessGrid
from fedbonsai.fleets.flower.limits import HEAD
from fedbonsai.fleets.flower.memory import Store
from fedbonsai.fleets.flower.samples import Own
from fedbonsai.fleets.flower.worker import Worker
from fedbonsai.runs import recipes
from fedbonsai.runs.flower import behind
from fedbonsai.runs.run import execute
from fedbonsai.wire import decode, encode

PLACES = {"ann": (20, 10.0), "bea": (30, 20.0), "cid": (40, 30.0)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path_factory.mktemp("cache")))


def arrays(count, place, features, seed):
    x = np.random.default_rng(seed).normal(place, 2, (count, features)).astype(np.float32)
    return x, (np.arange(count) % 3 == 0).astype(np.int64)


def written(tmp_path, features):
    """Files of the server, whose values lie elsewhere, and of three devices."""
    for name, (count, place) in {"train": (60, -5.0), "test": (30, 20.0), **PLACES}.items():
        folder = tmp_path / ("server" if name in ("train", "test") else "own")
        folder.mkdir(exist_ok=True)
        x, y = arrays(count, place, features, len(name) + count)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return tmp_path


def hands_of(tmp_path, names=tuple(PLACES)):
    """Devices; those of one process hold in common what they are given, so a test of what is lost has one."""
    return {
        node: Worker(name, Own(str(tmp_path / "own" / f"{name}.npz"), 0.1, name), Store(tmp_path / "memory" / name))
        for node, name in enumerate(names, 1)
    }


def grid_of(hands):
    return InProcessGrid(client_app(lambda context: hands[context.node_id]), {node: {} for node in hands})


def config(tmp_path, transforms, **more):
    settings = {
        "rounds": 2,
        "data.path": str(tmp_path / "server"),
        "data.partition": "iid",
        "data.clients": 2,
        "data.transforms": transforms,
        "model.name": "tabular-mlp",
        "fleet.kind": "flower",
        "fleet.flower.devices": 3,
        "fleet.flower.patience": 5.0,
    }
    return recipes.load("fedavg", "", settings | more)


def test_devices_say_what_the_server_cannot_know(tmp_path):
    written(tmp_path, 4)
    settings = config(tmp_path, [{"standardise": {"from": "clients"}}], **{"objective.weights": "balanced"})
    run = execute(settings, tmp_path / "run", build=behind(grid_of(hands := hands_of(tmp_path))))
    x = np.concatenate([arrays(*PLACES[name], 4, len(name) + PLACES[name][0])[0] for name in PLACES]).astype(np.float64)
    assert run.info["data"]["mean"] == pytest.approx(x.mean(0).tolist(), rel=1e-9)
    assert run.info["data"]["std"] == pytest.approx(x.std(0).tolist(), rel=1e-9)
    assert run.info["survey"]["examples"] == 90
    trained = [hand._held[1].train.y for hand in hands.values()]
    assert run.info["survey"]["targets"] == torch.cat(trained).bincount().tolist()
    kinds = {(row["kind"], row["client"]): row["messages"] for row in run.ledger() if row["round"] < 0}
    assert kinds == dict.fromkeys(
        [(f"{kind}@1", name) for kind in ("survey/ask", "survey/sums", "scale/hold", "scale/held") for name in PLACES],
        1,
    )


def test_a_device_that_lost_what_normalises_its_data_gets_it_again(tmp_path):
    written(tmp_path, 4)
    settings = config(tmp_path, [{"standardise": "clients"}], **{"fleet.flower.devices": 1, "rounds": 3})
    disk = tmp_path / "memory/ann/.bases"

    class Forgets:
        """The process of the device is new in each round, and its disk after the first."""

        def begin(self, config, scene, first):
            bases._held.clear()

        def round(self, row, net):
            self.begin(None, None, 0)
            if row["round"] == 0:
                (file,) = disk.iterdir()
                file.unlink()

        def end(self, rows):
            pass

    build = behind(grid_of(hands_of(tmp_path, ["ann"])))
    run = execute(settings, tmp_path / "run", observers=[Forgets()], build=build)
    assert [(row["attempt"], row["answered"]) for row in run.metrics] == [(0, 1), (0, 0), (0, 1)]
    (reason,) = run.metrics[1]["reasons"]
    assert reason["reason"].startswith(UNSCALED)
    held = [(row["round"], row["attempt"]) for row in run.ledger() if row["kind"] == "scale/held@1"]
    assert held == [(-1, 0), (2, 0)]


@pytest.mark.parametrize("transforms", [["standardise"], [{"standardise": "clients"}]], ids=str)
def test_more_features_than_a_head_has_room_for(tmp_path, transforms):
    """The form has 8,000 deviations, and the column of lists as many values; whoever loses it is introduced again."""
    written(tmp_path, 8000)
    hands = hands_of(tmp_path)
    told = []
    for hand in hands.values():
        real = hand.perform
        hand.perform = lambda raw, payload, real=real: told.append(len(raw)) or real(raw, payload)
    run = execute(config(tmp_path, transforms), tmp_path / "run", build=behind(grid_of(hands)))
    assert [row["answered"] for row in run.metrics] == [3, 3]
    assert max(told) < ROOM
    if transforms == ["standardise"]:
        assert len(encode(Form((8000,), (), (0.1,) * 8000, (0.1,) * 8000))) > HEAD


def test_a_form_that_fits_stays_in_the_head_and_another_is_held(tmp_path):
    small = Form((1, 4, 4), ("a", "b"), (0.5,), (0.25,))
    assert in_head(small) == (small, b"")
    large = replace(small, names=tuple(map(str, range(3000))))
    short, body = in_head(large)
    assert len(encode(short)) < 200
    assert (decode(encode(short)), whole(small)) == (short, small)
    with pytest.raises(Exception, match=FORMLESS):
        whole(short)
    hold_form(short, body)
    assert whole(short) == large
    with pytest.raises(BadMessage, match="the form that came is not"):
        hold_form(replace(short, whole="0" * 32), body)
    for noise in (bytes(encode(3)), bytes(encode({"form": 3}))):
        with pytest.raises(BadMessage, match="the form that came is not"):
            hold_form(short, noise)
    name = bases.hold({"form": torch.tensor([1, 2], dtype=torch.uint8)})
    with pytest.raises(BadMessage):
        whole(replace(short, whole=name))


def test_a_device_that_lost_the_form_is_introduced_again(tmp_path):
    written(tmp_path, 4)
    form = Form((4,), tuple(map(str, range(2000))), (0.0,) * 4, (1.0,) * 4, False, reading_of(tmp_path))
    bases._held.clear()
    fleet = FlowerFleet(grid_of(hands_of(tmp_path, ["ann"])), form, expect=1, poll=0.01)
    answered = []
    for t in range(4):
        bases._held.clear()
        fleet._grid = grid_of(hands_of(tmp_path, ["ann"]))  # its process is new in each round
        if t == 2:
            (tmp_path / "memory/ann/.bases" / in_head(form)[0].whole).unlink()
        with scope(fleet, Scope("run", 0, t, 0)) as there:
            answers = there.ask(sums, dict.fromkeys(there.devices, Ask(4, None, 0)), 0)
            answered.append(len(list(answers)))
            assert all(silence.reason.startswith(FORMLESS) for silence in answers.silent.values())
    assert answered == [1, 1, 0, 1]


def reading_of(tmp_path):
    from fedbonsai.data import DataConfig
    from fedbonsai.data.federation import load

    return load(DataConfig(path=str(tmp_path / "server"), partition="iid", clients=2), 0).reading

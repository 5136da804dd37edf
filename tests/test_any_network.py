"""Whatever network a user brings: equal reruns, resume and worker processes, and a trained model or a refusal before training."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

from fedbonsai.core import Scope, scope
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.run import execute, load
from fedbonsai.runs.setup import clients, federation, initial_model, run_context
from fedbonsai.wire import encode
from tests import nets  # noqa: F401  registers the networks
from tests.cases import ALIKE, CASES, Case

ROUNDS = 2
EACH = {case.recipe: case for case in reversed(CASES)}  # the first row of each recipe
START = (
    int.from_bytes(os.urandom(3), "little") if "FEDBONSAI_DRAW" in os.environ else 0
)  # `make test-all` draws new ones


def numbers(count: int, few: Collection[str] = ()):
    """A recipe, and the number of a network; `make test` takes one for each recipe that no other one stands for.

    Args:
        count: networks of each recipe.
        few: rows that stand for all others; empty: those that no other one stands for.
    """
    left = pytest.mark.exhaustive
    return [
        pytest.param(
            case,
            START + zlib.crc32(f"{recipe} {turn}".encode()),
            marks=[left] * (turn > 0 or (str(case) not in few if few else str(case) in ALIKE)),
        )
        for turn in range(count)
        for recipe, case in sorted(EACH.items())
    ]


def small(case: Case, number: int, **more: object):
    return case.config(
        **{"rounds": ROUNDS, "data.limit": 120, "model.name": "drawn", "model.options": {"number": number}, **more}
    )


class Cut:
    """Interrupts a run after its first round."""

    def begin(self, config, scene, first):
        pass

    def round(self, row, model):
        raise KeyboardInterrupt

    def end(self, rows):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("case", "number"), numbers(6), ids=str)
def test_reruns_and_resumed_runs_are_equal_and_learn_or_are_refused(case, number, tmp_path):
    config = small(case, number)
    try:
        whole = execute(config, tmp_path / "whole")
    except ConfigError:
        assert not Folder(tmp_path / "whole").rows()  # refused before training
        return
    with suppress(KeyboardInterrupt):
        execute(config, tmp_path / "cut", observers=[Cut()])
    assert len(load(tmp_path / "cut").metrics) == 1
    execute(config, tmp_path / "cut", resume=True)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two
    assert not any(row["skipped"] for row in whole.metrics)
    start = initial_model(config, federation(config)).weights
    trained = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in trained.values() if value.is_floating_point())
    assert any(name not in start or not torch.equal(value, start[name]) for name, value in trained.items())


@pytest.fixture(scope="module")
def pool():
    made = PoolFleet(clients(federation(small(CASES[0], 0))), 2)
    yield made
    made.close()


def states(config, fleet=None) -> list[bytes]:
    """Bytes of the state after begin and after every round; nothing where the network is refused."""
    try:
        made = run_context(config)
        made.fleet = fleet or made.fleet
        with scope(made.fleet, Scope("run", 0, -1, 0)) as open_:
            state = made.method.begin(made.model, open_, made.server)
            open_.commit()
    except ConfigError:
        return []
    seen = [bytes(encode(state))]
    for t in range(ROUNDS):
        with scope(made.fleet, Scope("run", 0, t, 0)) as open_:
            state = made.method.round(state, t, open_)
            open_.commit()
        seen.append(bytes(encode(state)))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("case", "number"), numbers(4, ("fedavg", "fedtiny", "prunefl", "moon", "fjord")), ids=str)
def test_worker_processes_give_the_same_bytes(case, number, pool):
    config = small(case, number)
    pool.restore({})
    assert states(config) == states(config, pool)

"""An unmodified FedAvg app with the two lines that compress its clients' updates."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.codec import CompressedStrategy, codec_mod
from fedbonsai.fleets.flower.grid import InProcessGrid, run_in_process
from tests.moments import HANGS

SIZE, STEP = 4000, np.float32(0.05)


def client(mods, break_node=0):
    app = ClientApp(mods=mods)

    @app.train()
    def train(message, context):
        """A step of each client towards its own target; their mean is 1."""
        held = {name: array.numpy().copy() for name, array in message.content["arrays"].items()}
        target = 0.5 if context.node_id == 1 else 1.5
        held["w"] = held["w"] + STEP * (np.float32(target) - held["w"])
        held["seen"] = held["seen"] + 1
        if context.node_id == break_node:
            held["w"][0] = np.nan
        arrays = ArrayRecord({name: Array(value) for name, value in held.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        far = float(np.abs(message.content["arrays"]["w"].numpy() - 1).mean())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "far": far})}), reply_to=message)

    return app


class Counting(InProcessGrid):
    """Adds up the bytes of the arrays that clients send."""

    up = 0

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            if reply.has_content():
                Counting.up += sum(len(a.data) for r in reply.content.array_records.values() for a in r.values())
        return replies


def run(monkeypatch, mods, wrap=lambda strategy: strategy, rounds=8, break_node=0):
    found = []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        strategy = wrap(FedAvg(min_available_nodes=2))
        strategy.summary = lambda: None
        start = ArrayRecord({"w": Array(np.zeros(SIZE, np.float32)), "seen": Array(np.zeros(1, np.int64))})
        found.append(strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, timeout=HANGS))

    monkeypatch.setattr("fedbonsai.fleets.flower.grid.InProcessGrid", Counting)
    Counting.up = 0
    run_in_process(server, client(mods, break_node), {1: {}, 2: {}})
    (result,) = found
    return {name: array.numpy() for name, array in result.arrays.items()}, result, Counting.up


def test_without_stages_the_result_is_that_of_the_plain_app(monkeypatch):
    plain, _, _ = run(monkeypatch, [])
    packed, _, _ = run(monkeypatch, [codec_mod], lambda strategy: CompressedStrategy(strategy, []))
    np.testing.assert_allclose(packed["w"], plain["w"], rtol=0, atol=1e-6)
    assert float(plain["seen"][0]) == float(packed["seen"][0]) == 8


@pytest.mark.slow
def test_a_codec_shrinks_what_clients_send_and_the_app_still_learns(monkeypatch):
    plain, _, dense = run(monkeypatch, [], rounds=100)
    chain = ["ef14", {"topk": 0.1}, {"signmag": 8}]
    packed, result, small = run(
        monkeypatch, [codec_mod], lambda strategy: CompressedStrategy(strategy, chain), rounds=100
    )
    assert dense / small > 10
    assert abs(plain["w"].mean() - 1) < 0.01
    assert np.abs(packed["w"] - 1).mean() < 0.15
    assert result.evaluate_metrics_clientapp[100]["far"] < result.evaluate_metrics_clientapp[1]["far"] / 4


def test_an_update_that_is_not_finite_or_not_packed_is_left_out(monkeypatch):
    def wrap(strategy):
        return CompressedStrategy(strategy, [])

    alone, _, _ = run(monkeypatch, [codec_mod], wrap, rounds=1, break_node=2)
    np.testing.assert_allclose(alone["w"], 0.025, rtol=1e-6)  # one step of node 1 on its way to 0.5
    nobody, result, _ = run(monkeypatch, [], wrap, rounds=1)
    assert (nobody, result.train_metrics_clientapp) == ({}, {})


def test_a_codec_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="use ef14"):
        CompressedStrategy(FedAvg(), ["ef21", {"topk": 0.1}])
    with pytest.raises(ConfigError, match="topk and topk"):
        CompressedStrategy(FedAvg(), [{"topk": 0.1}, {"topk": 0.2}])

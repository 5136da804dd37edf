"""An unmodified Flower app, FedAvg included, runs in this process."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedbonsai.fleets.flower.grid import InProcessGrid, run_in_process
from tests.moments import HANGS


def app():
    client = ClientApp()

    @client.train()
    def train(message, context):
        (weights,) = message.content["arrays"].to_numpy_ndarrays()
        calls = int(context.state.config_records.get("calls", {"n": 0})["n"]) + 1
        context.state["calls"] = ConfigRecord({"n": calls})
        examples = 1 + context.node_config["partition-id"]
        arrays = ArrayRecord([weights + examples])
        return FlowerMessage(
            RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": examples, "calls": calls})}),
            reply_to=message,
        )

    return client


def test_an_unmodified_fedavg_app_runs_and_averages():
    seen = []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=2)
        strategy.summary = lambda: None
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord([np.zeros(3, np.float32)]),
            num_rounds=context.run_config["rounds"],
            timeout=HANGS,
        )
        seen.append((result.arrays.to_numpy_ndarrays()[0], result.train_metrics_clientapp))

    run_in_process(server, app(), {7: {"partition-id": 0}, 9: {"partition-id": 1}}, {"rounds": 2})
    ((weights, metrics),) = seen
    # each round adds the mean of 1 and 2 with weights 1 and 2, which is 5/3
    np.testing.assert_allclose(weights, 2 * 5 / 3, rtol=1e-6)
    assert metrics[2]["calls"] == 2  # Context.state lives on from message to message


def test_a_failing_client_is_an_error_reply_and_an_unknown_node_too():
    grid = InProcessGrid(app(), {7: {}})
    broken = FlowerMessage(RecordDict({"arrays": ArrayRecord({})}), 7, "train")
    strange = FlowerMessage(RecordDict(), 8, "train")
    replies = grid.send_and_receive([broken, strange])
    assert [reply.has_error() for reply in replies] == [True, True]
    assert "no such node" in replies[1].error.reason


def test_packed_bytes_are_refused_by_whoever_would_average_them():
    array = Array("uint8", (3,), "fedbonsai/1", b"abc")
    try:
        array.numpy()
    except TypeError:
        return
    raise AssertionError("Flower read an array of a foreign type as numbers")

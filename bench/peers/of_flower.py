"""The work in Flower, with its own FedAvg: ``python -m bench.peers.of_flower --engine ray``, or ``in-process``.

The in-process engine is this library's (`fedbonsai.fleets.flower.grid`); strategy, apps and messages are Flower's.
Bytes are those of the messages as Flower serialises them; on neither engine do they cross a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402

from bench.peers.shared import Clock, Work, arguments, leave, network, trained  # noqa: E402

_held: dict[Path, Work] = {}  # one copy of the work in each process


def client_app(file: Path) -> ClientApp:
    """A client: load the arrays, train, send them back."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        if file not in _held:
            _held[file] = Work(file)
        work = _held[file]
        k = int(context.node_config["partition-id"])
        module = network("group", message.content["arrays"].to_torch_state_dict())
        t = int(message.content["config"]["server-round"]) - 1
        trained(module, work.batches(t, k), work.facts["lr"])
        examples = len(work.tensor(f"train/y/{k}"))
        arrays, metrics = ArrayRecord(module.state_dict()), MetricRecord({"num-examples": examples})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


class Weighed(FedAvg):
    """FedAvg as it is, whose messages are weighed as they pass, and whose rounds are timed."""

    def __init__(self, clients: int, clock: Clock) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.bytes, self.clock = {"down": 0, "up": 0}, clock
        self._size = import_module("flwr.common.serde").message_to_proto

    def configure_train(self, server_round: int, *args: Any, **named: Any) -> Iterable[Message]:
        """Flower's, and the clock starts with the first round."""
        if server_round == 1:
            self.clock.start()
        return self._weighed(super().configure_train(server_round, *args, **named), "down")

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Flower's; a round has ended."""
        found = super().aggregate_train(server_round, self._weighed(replies, "up"))
        self.clock.round()
        return found

    def _weighed(self, messages: Iterable[Message], way: str) -> list[Message]:
        messages = list(messages)
        assert not any(message.has_error() for message in messages), [m.error for m in messages if m.has_error()]
        self.bytes[way] += sum(self._size(message).ByteSize() for message in messages)
        return messages


def server_app(work: Work, out: Path, clock: Clock) -> ServerApp:
    """The server: Flower's strategy from the common start."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Weighed(len(work.clients), clock)
        start = ArrayRecord(network("group", work.weights("group")).state_dict())
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=work.rounds)
        leave(
            out,
            result.arrays.to_torch_state_dict(),
            clock,
            **strategy.bytes,
            versions={"torch": torch.__version__, "flwr": version("flwr")},
        )

    return app


def main() -> None:
    args = arguments(engine=str)
    work, clock = Work(args.work), Clock()
    client, server = client_app(args.work), server_app(work, args.out, clock)
    if args.engine == "ray":
        simulate = import_module("flwr.simulation").run_simulation
        simulate(server, client, len(work.clients), "ray", {"client_resources": {"num_cpus": 1}})
    else:
        run = import_module("fedbonsai.fleets.flower.grid").run_in_process
        run(server, client, {k + 1: {"partition-id": k} for k in work.clients})


if __name__ == "__main__":
    # by its name: Ray's processes cannot import the functions of a __main__
    import_module("bench.peers.of_flower").main()

"""The work in FedPruning: ``mpirun -np 11 python -m bench.peers.of_fedpruning --checkout PATH --method fedavg``.

Rank 0 is its server, every other rank a client. Its own managers, aggregators and trainers run, started by the function
that its main scripts call; the communicator that this function takes is one that counts. The defaults are those of its
main scripts (model as lists of numbers, ERK by magnitude), and numbers of the work stand where the work has them. The
run ends when the server has averaged the last round, by `Abort` as it does itself.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_MODE", "disabled")

import torch
from torch.utils.data import DataLoader, TensorDataset

from bench.peers.shared import Clock, Passes, Work, arguments, leave, network

METHODS = {  # its package, its API's module, the function, the aggregator, and the network's normalisation
    "fedavg": ("fedavg", "FedAvgAPI", "FedML_FedAvg_distributed", "FedAVGAggregator", "group"),
    "fedtiny": (
        "fedtinyclean", "FedTinyCleanAPI", "FedML_FedTinyClean_distributed", "FedTinyCleanAggregator", "batch"
    ),
    "prunefl": ("prunefl", "PruneFLAPI", "FedML_PruneFL_distributed", "PruneFLAggregator", "batch"),
}  # fmt: skip
NEVER = 1 << 30


class Counted:
    """An MPI communicator whose messages are weighed: the pickles that mpi4py sends and receives."""

    def __init__(self, comm: Any, mpi: Any) -> None:
        self._comm, self._mpi = comm, mpi
        self.sent = self.received = 0

    def send(self, message: Any, dest: int) -> None:
        """What mpi4py does for any object, with its length kept."""
        data = self._mpi.pickle.dumps(message)
        self.sent += len(data)
        self._comm.Send([data, self._mpi.BYTE], dest=dest)

    def recv(self) -> Any:
        """A message from anybody."""
        status = self._mpi.Status()
        message = self._comm.recv(status=status)
        self.received += status.Get_count(self._mpi.BYTE)
        return message


def settings(work: Work, lists: int) -> Namespace:
    """What its parsers would have given."""
    facts = work.facts
    return Namespace(
        dataset="digits",
        client_num_in_total=len(work.clients),
        client_num_per_round=len(work.clients),
        batch_size=facts["batch"],
        initial_lr=facts["lr"],
        final_lr=facts["lr"],
        lr=facts["lr"],
        epochs=1,  # a pass of our iterator is as many steps as the work says
        adjustment_epochs=None,
        comm_round=work.rounds + 100,  # its clients and its full evaluations end the run near this number; we do before
        frequency_of_the_test=NEVER,
        num_eval=-1,
        is_mobile=lists,
        backend="MPI",
        wd=0.001,
        client_optimizer="sgd",
        delta_T=facts["interval"],
        T_end=facts["stop"],
        adjust_alpha=facts["share"],
        growth_data_mode="batch",
        ci=0,
    )


def kept(module: torch.nn.Module) -> float:
    """Share of the parameters that are not zero."""
    return sum(int(p.count_nonzero()) for p in module.parameters()) / sum(p.numel() for p in module.parameters())


def main() -> None:
    args = arguments(checkout=Path, method=str, lists=int)
    sys.path.insert(0, str(args.checkout))
    logging.basicConfig(level=logging.WARNING)
    mpi = import_module("mpi4py.MPI")
    package, api, start, aggregator, norm = METHODS[args.method]
    home = f"api.distributed.{package}"
    begin = getattr(import_module(f"{home}.{api}"), start)
    work, comm = Work(args.work), Counted(mpi.COMM_WORLD, mpi)
    rank, size = mpi.COMM_WORLD.Get_rank(), mpi.COMM_WORLD.Get_size()
    plain = model = network(norm, work.weights(norm))
    if args.method != "fedavg":
        model = import_module("api.pruning.model_pruning").SparseModel(plain, target_density=work.facts["density"])
    mpi.COMM_WORLD.Barrier()  # all have imported: what comes now are the rounds
    clock = Clock()

    def ended(self: Any, t: int) -> None:
        clock.round()
        if t < work.rounds - 1:
            return
        release = {name: import_module(name).__version__ for name in ("torch", "mpi4py")}
        facts: dict[str, Any] = {"down": comm.sent, "up": comm.received, "versions": release}
        if model is not plain:
            facts["kept_before_mask"] = kept(plain)
            model.apply_mask()  # as its forward pass does
        leave(args.out, plain.state_dict(), clock, **facts)
        mpi.COMM_WORLD.Abort(0)

    # its server calls this after every average; its own evaluation, which would cost time here only, is left out
    getattr(import_module(f"{home}.{aggregator}"), aggregator).test_on_server_for_all_clients = ended
    counts = {k: len(work.tensor(f"train/y/{k}")) for k in work.clients}
    begin(
        rank,
        size,
        torch.device("cpu"),
        comm,
        model,
        sum(counts.values()),
        None,
        DataLoader(TensorDataset(*work.test()), batch_size=512),
        counts,
        {k: Passes(work, k) for k in work.clients},
        None,
        settings(work, args.lists),
    )


if __name__ == "__main__":
    main()

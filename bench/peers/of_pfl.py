"""The work in pfl-research, with its FederatedAveraging: ``python -m bench.peers.of_pfl --checkout PATH``.

pfl simulates in one process: no message is made, so there are no bytes to count.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.peers.shared import Clock, Work, arguments, leave, network

WHOLE = 1 << 30  # batch size by which pfl's own evaluation, which it does in its first round, is told from training


def run(work: Work, out: Path) -> None:
    """Train, through pfl's public classes alone."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDatasetBase
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    clock, module = Clock(), network("group", work.weights("group"))

    def loss(x: Tensor, y: Tensor, **_: Any) -> Tensor:
        return F.cross_entropy(module.train()(x), y)

    def metrics(x: Tensor, y: Tensor, **_: Any) -> dict[str, Any]:
        return {"loss": Weighted(F.cross_entropy(module.eval()(x), y, reduction="sum").item(), len(y))}

    module.loss, module.metrics = loss, metrics  # type: ignore[assignment]  # what pfl asks of a module

    class Fixed(Dataset):
        """A client's samples, whose batches are those of the work."""

        round = 0

        def iter(self, batch_size: int | None) -> Iterator[Any]:
            if batch_size == WHOLE:
                return iter([self.raw_data])
            self.round += 1
            return work.batches(self.round - 1, int(self.user_id))

    class Everybody(FederatedDatasetBase):
        """All clients in every round, in order."""

        def __init__(self) -> None:
            super().__init__()
            self.people = [Fixed(work.samples(k), user_id=str(k)) for k in work.clients]

        def __next__(self) -> Any:
            raise NotImplementedError("whole cohorts only")

        def get_cohort(self, cohort_size: int) -> Iterator[Any]:
            return ((person, 0) for person in self.people[:cohort_size])

    class Timed(TrainingProcessCallback):
        def after_central_iteration(self, *args: Any, **named: Any) -> Any:
            clock.round()
            return False, Metrics()

    people = Everybody()
    backend = SimulatedBackend(people, people, [WeightByDatapoints()])
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    clock.start()
    FederatedAveraging().run(
        NNAlgorithmParams(work.rounds, work.rounds + 1, len(work.clients), 0),
        backend,
        model,
        NNTrainHyperParams(work.facts["batch"], 1, work.facts["lr"]),
        NNEvalHyperParams(WHOLE),
        callbacks=[Timed()],
        send_metrics_to_platform=False,
    )
    try:
        release = version("pfl")
    except PackageNotFoundError:
        release = "a checkout"
    leave(out, module.state_dict(), clock, versions={"torch": torch.__version__, "pfl": release})


def main() -> None:
    args = arguments(checkout=Path)
    sys.path.insert(0, str(args.checkout))
    run(Work(args.work), args.out)


if __name__ == "__main__":
    main()

"""Optimisers of the server, which take a round's mean change for a gradient.

Momentum: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
2019 (FedAvgM). The others: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2: FedAdagrad, FedYogi and
FedAdam, without correction of the bias and with v_-1 = tau^2.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedbonsai import tree
from fedbonsai.choice import Choice, choice
from fedbonsai.settings import PART, POSITIVE, out_of_range, raise_all
from fedbonsai.stages.updates import STATISTICS
from fedbonsai.tree import Tree, Weights

Moments = Mapping[str, Mapping[str, Tensor]]  # by kind and name; none before the first round


class ServerOptimizer(Choice):
    """How the server steps along the mean change of a round."""

    def direction(self, change: Tree, moments: Moments) -> tuple[Weights, Moments]:
        """Where to go, in units of the server's rate, and what is remembered of this round."""
        raise NotImplementedError

    def step(self, weights: Tree, change: Tree, rate: float, moments: Moments) -> tuple[Weights, Moments]:
        """The new weights, and what is remembered. Statistics are measured, not learned: they move by their change.

        Args:
            weights: of the server.
            change: mean of the round.
            rate: eta of the server.
            moments: of the round before.
        """
        learned = {name: value for name, value in change.items() if not name.endswith(STATISTICS)}
        measured = {name: value for name, value in change.items() if name not in learned}
        way, moments = self.direction(learned, moments)
        return tree.add(tree.add(weights, way, rate), measured), moments


@choice("plain")
class Plain(ServerOptimizer):
    """The change itself: FedAvg."""

    def direction(self, change: Tree, moments: Moments) -> tuple[Weights, Moments]:
        """The change."""
        return dict(change), {}


@choice("momentum")
class Momentum(ServerOptimizer):
    """FedAvgM: the change and a part of the last step."""

    beta: float = 0.9
    """Part of the last step."""

    def __post_init__(self) -> None:
        """Refuse what is no part."""
        raise_all(out_of_range(self, beta=PART))

    def direction(self, change: Tree, moments: Moments) -> tuple[Weights, Moments]:
        """V = beta v + change."""
        before = moments.get("v", {})
        v = {name: self.beta * before[name] + value if name in before else value for name, value in change.items()}
        return v, {"v": v}


class _Adaptive(ServerOptimizer):
    """The mean of changes over the root of a second moment; what the moment is tells the three apart."""

    beta1: float
    tau: float

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment after a round whose change has this square."""
        raise NotImplementedError

    def direction(self, change: Tree, moments: Moments) -> tuple[Weights, Moments]:
        """M / (sqrt v + tau)."""
        first, second = moments.get("m", {}), moments.get("v", {})
        m: Weights = {}
        v: Weights = {}
        for name, value in change.items():
            m[name] = (1 - self.beta1) * value + (self.beta1 * first[name] if name in first else 0)
            square = value.square()
            v[name] = self.second(second[name] if name in second else square.new_full((), self.tau**2), square)
        return {name: m[name] / (v[name].sqrt() + self.tau) for name in m}, {"m": m, "v": v}


@choice("adagrad")
class Adagrad(_Adaptive):
    """FedAdagrad: v adds up the squares of all rounds."""

    beta1: float = 0.0
    """Part of the mean change of before."""
    tau: float = 1e-3
    """Degree of adaptivity: the smaller, the more alike all coordinates step."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, beta1=PART, tau=POSITIVE))

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """V + square."""
        return v + square


@choice("adam")
class Adam(_Adaptive):
    """FedAdam: v is a running mean of the squares."""

    beta1: float = 0.9
    """Part of the mean change of before."""
    beta2: float = 0.99
    """Part of the second moment of before."""
    tau: float = 1e-3
    """Degree of adaptivity: the smaller, the more alike all coordinates step."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, beta1=PART, beta2=PART, tau=POSITIVE))

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """Beta2 v + (1 - beta2) square."""
        return self.beta2 * v + (1 - self.beta2) * square


@choice("yogi")
class Yogi(Adam):
    """FedYogi: v moves by a share of the square towards it, whatever the distance."""

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """V - (1 - beta2) square sign(v - square)."""
        return v - (1 - self.beta2) * square * (v - square).sign()

"""Parts of other networks, and several of them side by side: what split learning trains in different places.

Every network of this package is a stem, features and a classifier; the cut is behind the stem.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.arch import Arch, network
from fedbonsai.errors import ConfigError
from fedbonsai.zoo.parts import Mean, Turned, chain

Options = Mapping[str, Any]


@network("front")
def front(of: str, options: Options) -> nn.Module:
    """The stem of another network: what stays with the owner of the data."""
    return chain(stem=_whole(of, options).stem)


@network("back")
def back(of: str, options: Options) -> nn.Module:
    """Everything behind the stem of another network."""
    whole = _whole(of, options)
    return chain(features=whole.features, classifier=whole.classifier)


@network("auxiliary")
def auxiliary(of: str, options: Options) -> nn.Module:
    """The stem of another network with a small classifier of its own, for a local loss."""
    whole = _whole(of, options)
    with torch.no_grad():
        shape = whole.stem.eval()(_blank(options)).shape
    channels_first = len(shape) == 4 or any(isinstance(layer, Turned) for layer in whole.stem.modules())
    if channels_first:
        pool = [nn.AdaptiveAvgPool2d(1) if len(shape) == 4 else nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    else:
        pool = [Mean()] if len(shape) == 3 and "vocabulary" not in options else []
    head = nn.Linear(shape[1 if channels_first else -1], whole_of(options, "classes"))
    return chain(stem=whole.stem, head=nn.Sequential(*pool, head))


@network("ensemble")
def ensemble(of: str, options: Options, count: int) -> nn.Module:
    """Several networks side by side; the score is the mean of theirs."""
    return Ensemble([_whole(of, options) for _ in range(count)])


class Ensemble(nn.Module):
    """Fronts and backs of several networks; scores [samples, classes] are the mean over them."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.fronts = nn.ModuleList([chain(stem=member.get_submodule("stem")) for member in members])
        self.backs = nn.ModuleList(
            [chain(features=m.get_submodule("features"), classifier=m.get_submodule("classifier")) for m in members]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mean of the members' scores."""
        return torch.stack([g(f(x)) for f, g in zip(self.fronts, self.backs, strict=True)]).mean(0)


def whole_of(options: Options, name: str) -> int:
    """An option that says what the data are like.

    Raises:
        ConfigError: it is not among the options.
    """
    if name not in options:
        raise ConfigError(
            f"a part of a network is built by its option {name!r}, which comes from the data: give its builder "
            f"a parameter of that name"
        )
    return int(options[name])


def _blank(options: Options) -> Tensor:
    """An input of zeros, as the options say that the data are: tokens, a series or table, a picture."""
    if "vocabulary" in options:
        return torch.zeros(1, whole_of(options, "length"), dtype=torch.int64)
    if "features" in options:
        return torch.zeros(1, *(int(options[name]) for name in ("length", "features") if name in options))
    sides = ("height", "width") if "height" in options else ("size", "size")
    return torch.zeros(1, *(whole_of(options, name) for name in ("channels", *sides)))


def _whole(of: str, options: Options) -> Any:
    return Arch(of, options).build()

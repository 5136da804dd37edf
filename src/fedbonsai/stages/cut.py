"""Which networks can be cut in two: those that are their stem, features and classifier in a row."""

from __future__ import annotations

import torch
from torch import Tensor

from fedbonsai.arch import shared
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.needs import all_trained_needed, one_input_needed
from fedbonsai.tree import dtype_of, generator, seeded

PARTS = ("stem", "features", "classifier")


def cuttable(model: Model, blank: Tensor, who: str) -> None:
    """Refuse a network that is not its stem, features and classifier in a row.

    Args:
        model: network.
        blank: two inputs, of any values (`Samples.blank`).
        who: needs it, for the text.

    Raises:
        ConfigError: a part of it is not trained, it has other parts, does something beside them, or shares weights between them.
    """
    all_trained_needed(model, who, "cuts the network in parts")
    one_input_needed(model, who, "cuts the network in parts in a row")
    net = model.build().eval()
    found = tuple(name for name, _ in net.named_children())
    want = f"{who} needs a network of the parts {', '.join(PARTS)} in a row; every network of fedbonsai.zoo has them"
    if found != PARTS:
        raise ConfigError(f"{want}, {model.arch.name!r} has {list(found)}")
    if crossing := sorted(shared(net)):
        raise ConfigError(
            f"{want}; {model.arch.name!r} ties weights ({', '.join(crossing[:4])}), which no cut may part"
        )
    x = (
        torch.randn(blank.shape, generator=generator(0)).to(dtype_of(model.weights))
        if blank.is_floating_point()
        else blank
    )
    with torch.no_grad(), seeded(0):
        one = net(x)
        for name in PARTS:
            x = net.get_submodule(name)(x)
    if one.shape != x.shape or not torch.allclose(one, x, rtol=1e-3, atol=1e-5):
        raise ConfigError(f"{want}; what {model.arch.name!r} gives is not what its three parts give in a row")

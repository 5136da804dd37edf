"""One step of a network on real samples before anything runs, so that what cannot train is refused in words."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai.core import Samples
from fedbonsai.data.federation import Federation
from fedbonsai.errors import ConfigError, FedbonsaiError
from fedbonsai.local import SGD, autocast, epochs, gradients
from fedbonsai.model import Model, skeleton
from fedbonsai.tree import generator, seeded


@contextmanager
def told(beginning: str) -> Generator[None]:
    """Whatever a user's network raises, in one text.

    Raises:
        ConfigError: it raised.
    """
    try:
        yield
    except FedbonsaiError as error:
        raise ConfigError(f"{beginning}: {error}") from None
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{beginning}: {type(error).__name__}: {text[:400]}") from error


def rehearse(model: Model, data: Federation, sgd: SGD, device: str = "cpu") -> list[str]:
    """Take one training step, and score samples, as devices will; neither model nor data change.

    Args:
        model: with its initial weights.
        data: whose smallest batches are tried; those of the test set where no client's data are here.
        sgd: local training.
        device: torch device.

    Returns:
        What to say of batches that are too small for the network, while others are not.

    Raises:
        ConfigError: the network cannot be trained on these data; the text names the network and what it says.
    """
    name = repr(model.arch.name)
    parts = [(id, part) for id, part in zip(data.ids, data.train, strict=True) if len(part)]
    parts = parts or [("", data.test[: sgd.batch])]
    batches = sorted(((id, _smallest(part, sgd)) for id, part in parts), key=lambda pair: len(pair[1]))
    id, largest = batches[-1]
    with told(f"model {name} cannot take a training step with {len(largest)} samples"):
        _step(model, largest, data.classes, sgd, device)
    with told(f"model {name} cannot score 2 samples of {_shape(largest)}"):
        _score(model, _twice(largest), data.classes, device)
    said: list[str] = []
    try:
        with told(f"model {name} cannot score 1 sample of {_shape(largest)} alone"):
            _score(model, largest[:1], data.classes, device)
    except ConfigError as error:
        if error.__cause__ is None:  # a wrong shape is a fault; what fails for one sample may do for more
            raise
        said.append(str(error))
    id, least = batches[0]
    try:
        with told(f"client {id} will stay silent: its smallest batch has {len(least)} samples, and the network"):
            _step(model, least, data.classes, sgd, device)
    except ConfigError as error:
        alike = sum(len(batch) == len(least) for _, batch in batches) - 1
        said.append(f"{error}" + f" (so {alike} more clients)" * (alike > 0))
    return said


def _smallest(part: Samples, sgd: SGD) -> Samples:
    """The smallest batch that an epoch of these samples is cut into."""
    _, cuts = next(epochs(len(part), SGD(batch=sgd.batch), generator(0)))
    return part[: min(end - begin for begin, end in cuts)]


def _twice(batch: Samples) -> Samples:
    return Samples(torch.cat([batch.x[:1], batch.x[-1:]]), torch.cat([batch.y[:1], batch.y[-1:]]))


def _shape(batch: Samples) -> tuple[int, ...]:
    return tuple(batch.x.shape[1:])


def _step(model: Model, batch: Samples, classes: int, sgd: SGD, device: str) -> None:
    net, batch = skeleton(model, device, sgd.channels_last), batch.to(device)
    with seeded(0, device):
        with autocast(sgd.precision, device):
            scores = _scores(net.module.train(), batch.x.clone(), classes)
            loss = F.cross_entropy(scores, batch.y)
        if net.parameters and not loss.requires_grad:
            raise ConfigError("no parameter that is trained has an effect on what it gives")
        if not bool(torch.isfinite(loss)):
            raise ConfigError(f"its loss is {float(loss.detach())} with initial weights: expected a finite number")
        gradients(loss, list(net.parameters.values()))


def _score(model: Model, batch: Samples, classes: int, device: str) -> None:
    net = skeleton(model, device).module.eval()
    with torch.inference_mode(), seeded(0, device):
        scores = _scores(net, batch.to(device).x.clone(), classes)
        if not bool(torch.isfinite(scores).all()):
            raise ConfigError("its scores are not finite with initial weights")


def _scores(net: nn.Module, x: Tensor, classes: int) -> Tensor:
    before = x.clone()
    scores: object = net(x)
    if not torch.equal(x, before):
        raise ConfigError("it writes into its input: let its first layer work on a copy (inplace=False)")
    if not isinstance(scores, Tensor):
        mode = "training" if net.training else "evaluation"
        raise ConfigError(
            f"it gives a {type(scores).__name__} in {mode}: expected one tensor of scores [samples, {classes}]; "
            "leave auxiliary outputs out"
        )
    if tuple(scores.shape) != (len(x), classes) or not scores.is_floating_point():
        raise ConfigError(
            f"it gives {_words(scores.shape)} of {scores.dtype} for {len(x)} samples: expected scores [{len(x)}, {classes}], "
            f"since the data has {classes} classes"
        )
    return scores


def _words(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"

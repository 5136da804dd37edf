"""One step of a network on real samples before anything runs, so that what cannot train is refused in words."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai import errors
from fedbonsai.arch import fresh
from fedbonsai.core import Samples, together
from fedbonsai.data.federation import Federation
from fedbonsai.errors import ConfigError, FedbonsaiError
from fedbonsai.model import Model, cached_module
from fedbonsai.training.batches import cut
from fedbonsai.training.evaluate import TOGETHER
from fedbonsai.training.gradients import gradients
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import autocast
from fedbonsai.tree import same, seeded

HERE = Path(errors.__file__).parent


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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a network's code may leave by sys.exit, or by whatever it calls an exception
        raise ConfigError(f"{beginning}: {errors.said(error)}{_where(error)}") from error


def _where(error: BaseException) -> str:
    """The line of the user's own code that raised."""
    for place in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(place.filename)
        if HERE not in path.parents and "site-packages" not in path.parts:
            return f" ({path.name}, line {place.lineno})"
    return ""


def rehearse(model: Model, data: Federation, sgd: Optimizer, device: str = "cpu") -> list[str]:
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
    if sgd.channels_last and not any(value.ndim == 4 for value in model.weights.values()):
        raise ConfigError(
            f"channels_last = true has no effect on model {name}, which has no convolutions of pictures: leave it out"
        )
    parts = [(id, part) for id, part in zip(data.ids, data.train, strict=True) if len(part)]
    parts = parts or [("", data.test[: sgd.batch])]
    sizes = {count: _smallest(count, sgd) for count in {len(part) for _, part in parts}}
    order = sorted(parts, key=lambda pair: sizes[len(pair[1])])
    (id, few), (_, many) = order[0], order[-1]
    least, largest = few[: sizes[len(few)]], many[: sizes[len(many)]]
    with told(f"model {name} cannot be built anew for each client"):
        _built_alike(model)
    if not model.arch.inputs:
        _takes_one(model)
    with told(f"model {name} cannot take a training step with {len(largest)} samples"):
        _repeated(lambda: _step(model, largest, data.classes, sgd, device), device)
    with told(f"model {name} cannot score 2 samples of {list(largest.shape)}"):
        _repeated(lambda: _score(model, _twice(largest), data.classes, device), device)
    said: list[str] = []
    try:
        with told(f"model {name} cannot score 1 sample of {list(largest.shape)} alone"):
            _score(model, largest[:1], data.classes, device)
    except ConfigError as error:
        if error.__cause__ is None or len(data.test) % TOGETHER == 1:
            raise  # a wrong shape is a fault; what fails for one sample may do for more, where it never comes to one
        said.append(str(error))
    try:
        with told(f"client {id} will stay silent: its smallest batch has {len(least)} samples, and the network"):
            _step(model, least, data.classes, sgd, device)
    except ConfigError as error:
        alike = sum(sizes[len(part)] == len(least) for _, part in parts) - 1
        said.append(f"{error}" + f" (so {alike} more clients)" * (alike > 0))
    return said


def _smallest(count: int, sgd: Optimizer) -> int:
    """Samples of the smallest batch that an epoch of so many is cut into."""
    return min(end - begin for begin, end in cut(count, sgd.batch))


def _twice(batch: Samples) -> Samples:
    return together([batch[:1], batch[-1:]])


def _step(model: Model, batch: Samples, classes: int, sgd: Optimizer, device: str) -> list[Tensor]:
    """Loss, gradients and what is held after a step's forward and backward pass."""
    net, batch = cached_module(model, device, sgd.channels_last), batch.to(device)
    held = dict(net.module.named_parameters(remove_duplicate=False))
    with seeded(0, device):
        with autocast(sgd.precision, device):
            outputs = _outputs(_in_mode(net.module, True), model, batch, classes)
            loss = model.arch.objective.loss(outputs, batch.y)
        _registered(net.module, held, loss)
        if net.parameters and not loss.requires_grad:
            raise ConfigError("no parameter that is trained has an effect on what it gives")
        if not bool(torch.isfinite(loss)):
            raise ConfigError(
                f"its loss is {float(loss.detach())} with initial weights: expected a finite number; bring inputs to one scale "
                "(data.transforms = ['standardise']), or begin with smaller weights"
            )
        grads = gradients(loss, list(net.parameters.values()))
    after = net.snapshot()
    if not net.parameters and all(same(value, model.weights[name]) for name, value in after.items()):
        raise ConfigError(
            "nothing in it can learn: no parameter needs a gradient, and a step changes none of its buffers"
        )
    return [loss.detach(), *grads, *after.values()]


def _score(model: Model, batch: Samples, classes: int, device: str) -> list[Tensor]:
    net = cached_module(model, device).module
    held = dict(net.named_parameters(remove_duplicate=False))
    with torch.inference_mode(), seeded(0, device):
        outputs = _outputs(_in_mode(net, False), model, batch.to(device), classes)
        _registered(net, held)
        if not bool(torch.isfinite(outputs).all()):
            raise ConfigError("its outputs are not finite with initial weights")
    return [outputs]


def _in_mode(net: nn.Module, training: bool) -> nn.Module:
    if (net.train() if training else net.eval()) is not net:
        verb = "train" if training else "eval"
        raise ConfigError(f"its own {verb}() does not give the network back: end it with `return self`")
    return net


def _registered(net: nn.Module, held: Mapping[str, Tensor], loss: Tensor | None = None) -> None:
    """Refuse what would neither be trained nor travel: parameters made in a forward pass, or kept where torch does not look.

    Raises:
        ConfigError: there are some.
    """
    now = dict(net.named_parameters(remove_duplicate=False))
    if made := [name for name, value in now.items() if held.get(name) is not value]:
        raise ConfigError(
            f"its forward pass makes parameters ({', '.join(made[:5])}), which are neither trained nor sent: make all of "
            "them when it is built"
        )
    known = {id(value) for value in held.values()}
    hidden = [value for value in _leaves(loss) if isinstance(value, nn.Parameter) and id(value) not in known]
    if hidden:
        raise ConfigError(
            f"it computes with {len(hidden)} parameters that are not registered in it, such as one of shape "
            f"{_words(hidden[0].shape)}, and that are neither trained nor sent: keep layers in nn.ModuleList or "
            "nn.ModuleDict instead of lists and dictionaries, parameters in nn.ParameterList"
        )


def _leaves(value: Tensor | None) -> Iterator[Tensor]:
    """What gradients of a value end at."""
    seen: set[Any] = set()
    ahead: list[Any] = [None if value is None else value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        ahead += [each for each, _ in node.next_functions]


def _built_alike(model: Model) -> None:
    """Refuse a builder that is no function of its arguments and of the seed.

    Raises:
        ConfigError: it gives one network twice, or other weights for the same seed.
    """
    seed = max(0, model.drawn)
    held, again = cached_module(model).module, fresh(model.arch, seed)
    one, two = ({id(each) for each in (*net.modules(), *net.parameters())} for net in (held, again))
    if one & two:
        raise ConfigError(
            "its builder gives the same network or layers in every call: make new ones in it, or give copy.deepcopy of them"
        )
    drawn = model.arch.weights(again)
    first = model.weights if model.drawn >= 0 else Model.init(model.arch, seed).weights  # those of a file are not drawn
    if other := [name for name, value in first.items() if name not in drawn or not same(value, drawn[name])]:
        raise ConfigError(
            f"its builder gives other weights in every call ({', '.join(other[:5])}), with the same seed: draw them from the "
            "global generators of torch, NumPy or Python, and from nothing else that changes"
        )


def _takes_one(model: Model) -> None:
    """Refuse a network of several inputs where the data have one.

    Raises:
        ConfigError: so it is.
    """
    try:
        every = inspect.signature(cached_module(model).module.forward).parameters.values()
    except (ValueError, TypeError):  # written in C, as scripted modules are
        return
    needed = [one.name for one in every if one.default is one.empty and one.kind == one.POSITIONAL_OR_KEYWORD]
    if len(needed) > 1:
        raise ConfigError(
            f"model {model.arch.name!r} takes {', '.join(needed)} and the data have one input: say in data.inputs which columns "
            "each is, as in data.inputs = {" + ", ".join(f'{name} = {{ x = "column" }}' for name in needed) + "}"
        )


def _repeated(pass_: Callable[[], list[Tensor]], device: str) -> None:
    """Make a pass twice, and refuse a network that is no function of its weights, samples and seed.

    Not on accelerators, which may differ in the last bits.

    Raises:
        ConfigError: two passes gave different values.
    """
    once, twice = pass_(), pass_()
    if torch.device(device).type == "cpu" and not all(map(same, once, twice)):
        raise ConfigError(
            "the same pass gives other values the second time, so no run could be repeated: it draws from a generator of its "
            "own, or keeps something outside of itself (a global, an attribute of its class); keep it in buffers or attributes"
        )


def _outputs(net: nn.Module, model: Model, batch: Samples, classes: int) -> Tensor:
    x, before = batch.x.clone(), batch.x
    outputs: object = net(x)
    if not torch.equal(x, before):
        raise ConfigError("it writes into its input: let its first layer work on a copy (inplace=False)")
    objective = model.arch.objective
    want = (len(batch), *objective.width(batch.y, classes))
    if not isinstance(outputs, Tensor):
        mode = "training" if net.training else "evaluation"
        raise ConfigError(
            f"it gives a {type(outputs).__name__} in {mode}: expected one tensor of outputs {_words(want)}; leave auxiliary "
            "outputs out"
        )
    if tuple(outputs.shape) != want or not outputs.is_floating_point():
        since = f", since the data has {classes} classes" if classes in want else ""
        raise ConfigError(
            f"it gives {_words(outputs.shape)} of {outputs.dtype} for {len(batch)} samples: objective "
            f"{objective.choice_name} expects {_words(want)}{since}"
        )
    return outputs


def _words(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"

"""The one training loop, the one gradient and the one evaluation: plain SGD on one network object, no optimiser object.

Constructing an optimiser and loading a state dict for each client costs up to a third of a small client's time, so
weights are copied in place and the update is a handful of fused calls (``torch._foreach_*``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai import work
from fedbonsai.core import Client, Samples
from fedbonsai.errors import ConfigError, NotFinite
from fedbonsai.model import Model, renew_by_hand, skeleton
from fedbonsai.tree import Tree, Weights, dtype_of, finite, generator, seeded
from fedbonsai.wire import message

if TYPE_CHECKING:
    from fedbonsai.sparse.convert import SparseNet

Hook = Callable[[Mapping[str, Tensor]], None]  # sees each step's gradients, by parameter name
Rows = Callable[[str, int, Tensor], None]  # sees gradients in parts: parameter name, first row, the rows from there on
TOGETHER = 512  # samples that are scored at a time
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # network, images, labels -> mean loss of the batch


@message("sgd@1")
class SGD:
    """Local stochastic gradient descent."""

    lr: float = 0.1
    """Learning rate."""
    momentum: float = 0.0
    """Heavy-ball momentum; the buffer starts at zero in every round."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""
    batch: int = 20
    """Samples in a batch; the last one of an epoch may be shorter."""
    epochs: int = 1
    """Passes over the client's training samples in a round."""
    steps: int = 0
    """If positive: exactly this many steps instead of whole epochs."""
    proximal: float = 0.0
    """FedProx: mu of the term mu/2 * ||w - w_received||^2."""
    clip: float = 0.0
    """If positive: largest norm of a step's whole gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights stay fp32."""
    channels_last: bool = False
    """Keep images and convolution weights in channels-last layout."""
    sparse: Literal["off", "auto", "on"] = "off"
    """Under a mask on a CPU, multiply kept weights alone: in layers that this machine has faster so, or in all."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        faults = [
            f"{name} = {getattr(self, name)}: expected {want}"
            for name, want, fine in (
                ("lr", "a finite number >= 0", 0 <= self.lr < inf),
                ("momentum", "a number in [0, 1)", 0 <= self.momentum < 1),
                ("weight_decay", "a finite number >= 0", 0 <= self.weight_decay < inf),
                ("batch", "at least 1", self.batch >= 1),
                ("epochs", "at least 1 (or set steps)", self.epochs >= 1 or self.steps > 0),
                ("steps", "0 (whole epochs), or a number of steps", self.steps >= 0),
                ("proximal", "a finite number >= 0", 0 <= self.proximal < inf),
                ("clip", "0 (none), or a finite norm", 0 <= self.clip < inf),
                ("precision", "'fp32' or 'bf16'", self.precision in ("fp32", "bf16")),
                ("sparse", "'off', 'auto' or 'on'", self.sparse in ("off", "auto", "on")),
            )
            if not fine
        ]
        if self.sparse != "off":
            faults += [
                f"{name} = {getattr(self, name)} with sparse = {self.sparse}: {why}; leave one of them out"
                for name, idle, why in (
                    ("clip", 0.0, "the norm is of the whole gradient, which sparse layers do not compute"),
                    ("precision", "fp32", "sparse layers compute in fp32"),
                    ("channels_last", False, "sparse layers have an order of their own"),
                )
                if getattr(self, name) != idle
            ]
        if faults:
            raise ValueError("; ".join(faults))


@dataclass(frozen=True)
class Trained:
    """What local training gives: ``loss`` is the mean over the samples that were seen."""

    weights: Weights
    examples: int
    steps: int
    loss: float

    def finite(self) -> Trained:
        """The same.

        Raises:
            NotFinite: a weight is NaN or infinite; a client whose task lets this pass counts as silent, its memory stays.
        """
        if not finite(self.weights):
            raise NotFinite(f"training gave values that are not finite (loss {self.loss}); lower the learning rate")
        return self


def train(
    model: Model,
    me: Client,
    sgd: SGD,
    mask: Tree | None = None,
    hook: Hook | None = None,
    loss: Loss | None = None,
    shift: Tree | None = None,
    frozen: Collection[str] = (),
    growth: Rows | None = None,
) -> Trained:
    """Train a model on a client's samples.

    Args:
        model: weights to start from; never written into.
        me: whose samples, seed and torch device.
        sgd: hyper-parameters. With a hook, a loss of one's own, or on an accelerator nothing is computed sparsely.
        mask: by parameter name, True where a weight is kept; elsewhere it is exactly zero after every step.
        hook: sees the gradients of every step, before momentum and mask.
        loss: what is minimised instead of the mean cross-entropy.
        shift: by parameter name, what is added to the gradients of every step: after the clip, before momentum.
        frozen: names of parameters that stay as they are, of which no gradient is taken; ``work`` counts whole passes.
        growth: sees the same as a hook, pruned weights too, and leaves layers sparse: the gradient of a sparse layer comes
            in tiles of a few rows and never exists as a whole, that of any other in one part. It must not keep the rows.

    Raises:
        ConfigError: the client has no samples.
    """
    if not len(me.train):
        raise ConfigError(f"client {me.id} has no training samples; ask for a larger minimum per client (data.minimum)")
    renew_by_hand()
    sparse = sparse_form(model, me, sgd, mask) if hook is None and loss is None else None
    net = sparse or skeleton(model, me.device, sgd.channels_last)
    net.module.train()
    names = [name for name in net.parameters if name not in frozen]
    params = [net.parameters[name] for name in names]
    start = [p.detach().clone() for p in params] if sgd.proximal else []
    momentum = [torch.zeros_like(p) for p in params] if sgd.momentum else []
    held = [
        (net.parameters[name], keep.to(me.device, net.parameters[name].dtype))
        for name, keep in (mask or {}).items()
        if sparse is None or name not in sparse.layers
    ]
    shift = sparse.compact(shift) if sparse is not None and shift is not None else shift
    shifts = [shift[name].to(me.device) for name in names] if shift is not None else []
    objective = loss or _cross_entropy
    cast = autocast(sgd.precision, me.device)
    # nothing is decided per step that can be decided here: at batch 20 the interpreter is a third of a small net's time
    loss_sum = torch.zeros((), device=me.device)
    steps = seen = 0
    _apply(held)
    with seeded(me.seed, me.device, net.foreign):
        for batch in batches(me, sgd):
            x = batch.x.to(memory_format=torch.channels_last) if sgd.channels_last else batch.x
            with tiles(sparse, growth, names):
                with cast:
                    value = objective(net.module, x, batch.y)
                # statistics may be all that learns; a parameter that the loss does not depend on has no gradient
                found: Any = list(torch.autograd.grad(value, params, allow_unused=True)) if params else []
            used = [i for i, grad in enumerate(found) if grad is not None]
            grads: list[Tensor] = found if len(used) == len(found) else _filled(found, params)
            if hook is not None:
                hook(dict(zip(names, grads, strict=True)))
            if growth is not None:
                for name, grad in zip(names, grads, strict=True):
                    if sparse is None or name not in sparse.layers:
                        growth(name, 0, grad)
            with torch.no_grad():
                if len(used) == len(params) > 0:
                    descend(params, grads, sgd, momentum, start, shifts)
                elif used:  # what is not used in a step is not moved by it, as in torch.optim
                    parts = ([every[i] for i in used] if every else [] for every in (momentum, start, shifts))
                    descend([params[i] for i in used], [grads[i] for i in used], sgd, *parts)
                _apply(held)
                loss_sum += value.detach() * len(batch)
            del grads, found, value  # kept until the next ones exist they would double the memory of the gradients
            steps += 1
            seen += len(batch)
    work.report(
        model,
        me.train.x.shape[1:],
        backward=seen,
        passes=steps,
        steps=steps,
        batch=min(sgd.batch, len(me.train)),
        held=work.size_of(start, momentum, shifts, (keep for _, keep in held)) + _sample_bytes(me),
        masks=mask,
        sparse=() if sparse is None else sparse.layers,
        grown=() if sparse is None or growth is None else [name for name in names if name in sparse.layers],
    )
    return Trained(net.snapshot(), len(me.train), steps, float(loss_sum) / seen)


def sparse_form(model: Model, me: Client, sgd: SGD, mask: Tree | None) -> SparseNet | None:
    """The network that multiplies kept weights alone, loaded; None where nothing shall be computed so, or can be.

    That is with ``sparse = "off"``, without a mask, on an accelerator, and with ``auto`` where no layer is faster so on this
    machine, or numba is missing. Arguments are those of `train`.
    """
    if not mask or sgd.sparse == "off" or me.device != "cpu":
        return None
    if sgd.sparse == "auto" and find_spec("numba") is None:
        return None
    from fedbonsai.sparse.convert import sparse_net  # needs an extra

    sample, batch = tuple(me.train.x.shape[1:]), min(sgd.batch, len(me.train))
    return sparse_net(model, mask, sample, batch, "on" if sgd.sparse == "on" else "auto")


def tiles(sparse: SparseNet | None, growth: Rows | None, names: Iterable[str]) -> AbstractContextManager[object]:
    """Inside which passes backward show the gradients of sparse layers to ``growth``, tile by tile.

    Args:
        sparse: network; None where nothing is sparse.
        growth: sees them.
        names: of weights; those whose layers are dense are left out.
    """
    if sparse is None or growth is None:
        return nullcontext()
    from fedbonsai.sparse.growth import watching

    return watching(sparse, [name for name in names if name in sparse.layers], growth)


def _sample_bytes(me: Client) -> int:
    """Bytes of a client's samples, of an epoch of them as `batches` gathers it, and of that epoch augmented."""
    return work.size_of([me.train.x]) * (2 + me.augment) + 2 * work.size_of([me.train.y])


def gradients(value: Tensor, of: Sequence[Tensor], outer: Tensor | None = None) -> list[Tensor]:
    """Gradients of a scalar, or of a tensor with the gradient ``outer`` behind it; zeros where it does not depend on one."""
    return list(torch.autograd.grad(value, of, outer, allow_unused=True, materialize_grads=True)) if len(of) else []


def draws(model: Model, sample: Sequence[int]) -> bool:
    """Whether the network draws random numbers in training, as dropout in all its forms does.

    Args:
        model: network.
        sample: shape of one input.
    """
    net = skeleton(model).module.train()
    with seeded(0), torch.no_grad():
        before = torch.default_generator.get_state()
        net(torch.zeros(2, *sample, dtype=dtype_of(model.weights)))
        return not torch.equal(before, torch.default_generator.get_state())


def _filled(grads: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with zeros where there is none."""
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(params, grads, strict=True)]


def _cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def descend(
    params: list[Tensor],
    grads: list[Tensor],
    sgd: SGD,
    momentum: list[Tensor],
    start: tuple[Tensor, ...] | list[Tensor] = (),
    shifts: tuple[Tensor, ...] | list[Tensor] = (),
) -> None:
    """One step, in place: ``grads`` is used up, ``momentum`` (empty where there is none) moves on.

    Args:
        params: what moves; gradients must be off.
        grads: of the loss, in the same order.
        sgd: hyper-parameters.
        momentum: buffers.
        start: weights that the proximal term pulls to.
        shifts: added to the gradients after the clip.
    """
    if not params:  # of a part that is frozen
        return
    if sgd.proximal:
        torch._foreach_add_(grads, torch._foreach_sub(params, start), alpha=sgd.proximal)
    if sgd.weight_decay:
        torch._foreach_add_(grads, params, alpha=sgd.weight_decay)
    if sgd.clip:
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (sgd.clip / (total + 1e-6)).clamp(max=1.0))
    if shifts:
        torch._foreach_add_(grads, shifts)
    if momentum:
        torch._foreach_mul_(momentum, sgd.momentum)
        torch._foreach_add_(momentum, grads)
        grads = momentum
    torch._foreach_add_(params, grads, alpha=-sgd.lr)


def _apply(held: list[tuple[Tensor, Tensor]]) -> None:
    for parameter, keep in held:
        parameter.data.mul_(keep)


def batches(me: Client, sgd: SGD) -> Iterator[Samples]:
    """Shuffled batches of a client's training samples: whole epochs, or exactly ``sgd.steps`` of them.

    Each epoch is gathered once and cut into views. A last batch of a single sample joins the one before, because a
    normalisation layer has no statistics of one value.
    """
    random = generator(me.seed)
    samples = me.train.to(me.device)
    for order, cuts in epochs(len(samples), sgd, random):
        x, y = samples.x[order.to(me.device)], samples.y[order.to(me.device)]
        if me.augment:
            x = augmented(x, random)
        for begin, end in cuts:
            yield Samples(x[begin:end], y[begin:end])


def epochs(count: int, sgd: SGD, random: torch.Generator) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Order of the samples and the cuts into batches, epoch by epoch: whole epochs, or exactly ``sgd.steps`` batches."""
    begins = list(range(0, count, sgd.batch))
    if len(begins) > 1 and sgd.batch > 1 and count - begins[-1] == 1:
        begins.pop()
    cuts = list(zip(begins, [*begins[1:], count], strict=True))
    left = sgd.steps or max(1, sgd.epochs) * len(cuts)
    while left > 0:
        yield torch.randperm(count, generator=random), cuts[:left]
        left -= len(cuts)


def augmented(x: Tensor, random: torch.Generator, pad: int = 4) -> Tensor:
    """Random crop after zero padding by an eighth of the width (at most ``pad``) and random horizontal flip.

    Args:
        x: [samples, channels, height, width], already normalised, so that the padding is the mean colour.
        random: of the client and round.
        pad: pixels.
    """
    count, _, height, width = x.shape
    pad = min(pad, width // 8)
    top, left = (torch.randint(0, 2 * pad + 1, (count,), generator=random) for _ in range(2))
    flip = torch.rand(count, generator=random) < 0.5
    rows = top[:, None] + torch.arange(height)
    columns = torch.where(flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width)) + left[:, None]
    padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    index = (torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    return padded[tuple(i.to(x.device) for i in index)].permute(0, 3, 1, 2).contiguous()


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """Arithmetic of the forward pass."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Score:
    """Evaluation on a set of samples: mean cross-entropy and fraction of correct predictions."""

    loss: float
    accuracy: float
    examples: int


def evaluate(model: Model, samples: Samples, device: str = "cpu", batch: int = TOGETHER) -> Score:
    """Evaluate in eval mode and fp32.

    Raises:
        ConfigError: there are no samples.
    """
    loss, correct = judged(model, samples, device, batch)
    return Score(loss, int(correct.sum()) / len(samples), len(samples))


def judged(model: Model, samples: Samples, device: str = "cpu", batch: int = TOGETHER) -> tuple[float, Tensor]:
    """Mean cross-entropy, and for each sample whether its class was chosen (on the CPU).

    Raises:
        ConfigError: there are no samples.
    """
    if not len(samples):
        raise ConfigError("nothing to evaluate on: the set of samples is empty")
    renew_by_hand()
    net = skeleton(model, device)
    net.module.eval()
    loss, correct = 0.0, list[Tensor]()
    with torch.inference_mode(), seeded(0, device, net.foreign):  # a network may draw even here
        for begin in range(0, len(samples), batch):
            part = samples[begin : begin + batch].to(device)
            scores = net.module(part.x)
            loss += float(F.cross_entropy(scores, part.y, reduction="sum"))
            correct.append((scores.argmax(1) == part.y).cpu())
    passes = -(-len(samples) // batch)
    work.report(model, samples.x.shape[1:], forward=len(samples), passes=passes, batch=min(batch, len(samples)))
    return loss / len(samples), torch.cat(correct)


def gradient(model: Model, samples: Samples, device: str = "cpu", batch: int = 256, training: bool = False) -> Weights:
    """Gradient of the mean cross-entropy over all samples, by parameter name, on the CPU.

    Args:
        model: where it is taken.
        samples: over which; summed over batches, so memory is that of one batch.
        device: torch device.
        batch: samples at a time.
        training: batch statistics instead of running ones in normalisation layers.
    """
    renew_by_hand()
    net = skeleton(model, device)
    net.module.train(training)
    params = list(net.parameters.values())
    total = [torch.zeros_like(p) for p in params]
    with seeded(0, device, net.foreign):
        for begin in range(0, len(samples), batch):
            part = samples[begin : begin + batch].to(device)
            loss = F.cross_entropy(net.module(part.x), part.y, reduction="sum")
            torch._foreach_add_(total, gradients(loss, params))
    work.report(
        model,
        samples.x.shape[1:],
        backward=len(samples),
        passes=-(-len(samples) // batch),
        batch=min(batch, len(samples)),
        held=work.size_of(total),
    )
    torch._foreach_div_(total, max(1, len(samples)))
    return {name: value.cpu() for name, value in zip(net.parameters, total, strict=True)}

"""What a task computed: cheap records that are made while it runs, one for each loop over samples.

Whatever runs a network on a client says so in one call of `report`, after its loop and never in it. A fleet runs the
task inside `collecting`; outside of it, as when the run itself evaluates, a report is nothing. Only a clock turns
records into operations, seconds and bytes (`fedbonsai.devices`): here nothing is counted but samples.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field, replace

from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.tree import Tree
from fedbonsai.wire import message


@message("work/episode@1")
class Episode:
    """Samples that went through one network, or through one part of it."""

    arch: Arch
    shapes: Mapping[str, tuple[int, ...]]
    """Of the weights as they are now; of those that are missing the builder knows."""
    sample: tuple[int, ...]
    """Shape of one input."""
    kept: Mapping[str, float] = field(default_factory=dict[str, float])
    """Kept fraction by name of the weight, where a mask is held."""
    forward: int = 0
    """Samples that went through a forward pass and no backward pass."""
    backward: int = 0
    """Samples that went through a forward and a backward pass."""
    passes: int = 0
    """Batches of either kind."""
    steps: int = 0
    """Steps of the optimiser."""
    batch: int = 0
    """Samples of the largest batch."""
    held: int = 0
    """Bytes held beside weights, one gradient and activations: momentum, masks, anchors, the samples of an epoch."""
    inward: bool = False
    """Whether the gradient by the input was taken as well, as behind a cut."""
    part: str = ""
    """Submodule through which the samples went; empty is the whole network."""
    sparse: tuple[str, ...] = ()
    """Weights of layers that multiplied the kept places alone (`fedbonsai.sparse`)."""
    grown: tuple[str, ...] = ()
    """Of these, the ones whose gradient was taken at all places as well, because a mask may grow."""


Work = tuple[Episode, ...]

_open: ContextVar[list[Episode] | None] = ContextVar("work", default=None)


@contextmanager
def collecting() -> Generator[list[Episode]]:
    """Collect what is reported in this thread until the end of the block."""
    found: list[Episode] = []
    token = _open.set(found)
    try:
        yield found
    finally:
        _open.reset(token)


def report(
    model: Model,
    sample: Iterable[int],
    *,
    forward: int = 0,
    backward: int = 0,
    passes: int = 1,
    steps: int = 0,
    batch: int = 0,
    held: int = 0,
    masks: Tree | None = None,
    inward: bool = False,
    part: str = "",
    sparse: Iterable[str] = (),
    grown: Iterable[str] = (),
) -> None:
    """Say that a network ran; arguments are the fields of `Episode`.

    Reports that differ only in counts are added up, so that split training leaves a few records and not one a batch.

    Args:
        model: network; only its architecture and the shapes of its weights count.
        sample: shape of one input.
        forward: samples of forward passes alone.
        backward: samples of forward and backward passes.
        passes: batches.
        steps: of the optimiser.
        batch: samples of the largest batch; 0 means all samples in one.
        held: bytes beside weights, gradient and activations.
        masks: by name of the weight, true where it is kept.
        inward: whether the gradient by the input was taken.
        part: submodule; empty is the whole network.
        sparse: names of the weights whose layers multiplied kept places alone.
        grown: of these, the ones whose gradient was taken at all places as well.
    """
    found = _open.get()
    if found is None or not forward + backward:
        return
    shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
    kept = {name: int(mask.count_nonzero()) / max(1, mask.numel()) for name, mask in (masks or {}).items()}
    new = Episode(
        model.arch,
        shapes,
        tuple(sample),
        kept,
        forward,
        backward,
        passes,
        steps,
        batch or forward + backward,
        held,
        inward,
        part,
        tuple(sparse),
        tuple(grown),
    )
    if found and _alike(found[-1], new):
        found[-1] = _sum(found[-1], new)
    else:
        for place, old in enumerate(found):
            if _alike(old, new):
                found[place] = _sum(old, new)
                return
        found.append(new)


def size_of(*groups: Iterable[Tensor]) -> int:
    """Bytes of tensors, for `report`'s ``held``."""
    return sum(value.numel() * value.element_size() for group in groups for value in group)


def _alike(old: Episode, new: Episode) -> bool:
    return _kind(old) == _kind(new)


def _kind(episode: Episode) -> tuple[object, ...]:
    learns = bool(episode.backward)
    same = episode.arch, episode.shapes, episode.sample, episode.kept, episode.inward, episode.part
    return *same, episode.sparse, episode.grown, learns


def _sum(old: Episode, new: Episode) -> Episode:
    return replace(
        old,
        forward=old.forward + new.forward,
        backward=old.backward + new.backward,
        passes=old.passes + new.passes,
        steps=old.steps + new.steps,
        batch=max(old.batch, new.batch),
        held=max(old.held, new.held),
    )


def spent(error: BaseException) -> Work:
    """What was computed before a task gave up, as `note` left it on the error."""
    found = vars(error).get("work", ())
    return found if isinstance(found, tuple) else ()


def note(error: BaseException, done: list[Episode]) -> None:
    """Leave what was computed on the error that says why there is no answer."""
    vars(error)["work"] = tuple(done)

"""Peak memory of training, predicted from what a step allocates.

One step is played without values (torch's meta device; on the processor where that has operators of its own, as for
attention and recurrent layers), and every buffer is followed from its making to its end: so activations, gradients and
temporary buffers need no rule for each kind of layer. Added to it are the weights (as they were received, of the network
object, and their copy at the end), what the task held beside them, and what the kernels of convolutions need inside of
one call, where the processor's library reorders inputs, weights and outputs.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedbonsai import bases
from fedbonsai.devices.networks import key, layers, like, network
from fedbonsai.devices.profile import Profile
from fedbonsai.model import blank
from fedbonsai.tree import tensors
from fedbonsai.work import Episode

_held: OrderedDict[object, tuple[int, int]] = OrderedDict()  # bytes and buffers of a step
KEEP = 1024


class _Watch(TorchDispatchMode):
    """Follows buffers: bytes that are alive, the most there were at any call, and the most buffers."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._meta = device == "meta"
        self.alive = self.peak = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._meta and func.overloadpacket is torch.ops.aten._safe_softmax:
            raise NotImplementedError("attention by other operators than on a processor")
        out = func(*args, **(kwargs or {}))
        inside = 0
        if func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            given = [value for value in tensors([*args, out]) if value.ndim > 1]
            inside = sum(value.numel() * value.element_size() for value in given)
        for value in tensors(out):
            self._follow(value)
        self.peak = max(self.peak, self.alive + inside)
        return out

    def _follow(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self.most = max(self.most, len(self._known))
        self.alive += size
        weakref.finalize(storage, self._gone, name, size)

    def _gone(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.alive -= size


def step_bytes(episode: Episode) -> int:
    """Bytes that a batch of the episode allocates at its peak: activations, gradients, temporary buffers, no weights.

    Between the batches of `around` it is the chord, which lies above, since the peak is the largest of several
    quantities that grow in proportion.
    """
    low, high = around(episode.batch)
    below, _ = _at(replace(episode, batch=low))
    if low == high:
        return below
    above, _ = _at(replace(episode, batch=high))
    return below + (above - below) * (episode.batch - low) // (high - low)


def around(batch: int) -> tuple[int, int]:
    """The nearest batch sizes that are played, four to a doubling, so that clients of many sizes cost few plays.

    >>> [around(batch) for batch in (7, 20, 21, 100)]
    [(7, 7), (20, 20), (20, 24), (96, 112)]
    """
    step = max(1, 1 << max(0, batch.bit_length() - 3))
    low = batch // step * step
    return (low, low) if low == batch else (low, low + step)


def _at(episode: Episode) -> tuple[int, int]:
    name = (key(episode), episode.batch, episode.inward, bool(episode.backward))
    if name not in _held:
        _held[name] = _played(episode)
        while len(_held) > KEEP:
            _held.popitem(last=False)
    _held.move_to_end(name)
    return _held[name]


def _played(episode: Episode) -> tuple[int, int]:
    with torch.inference_mode(False), torch.enable_grad():  # whoever reads answers may have gradients off
        try:
            return _step(episode, "meta")
        except (NotImplementedError, RuntimeError):  # or a network of one's own looks at values
            return _step(episode, "cpu")


def _step(episode: Episode, device: str) -> tuple[int, int]:
    net = network(episode, device).train(bool(episode.backward))
    if device == "meta" and any(isinstance(layer, nn.RNNBase) for layer in net.modules()):
        raise NotImplementedError("recurrent layers by other operators than on a processor")
    batch = max(episode.batch, 2) if episode.backward else episode.batch  # statistics of one value do not exist
    x = blank(episode.arch, episode.sample, batch, device, episode.part)
    x = x.requires_grad_(episode.inward) if x.is_floating_point() else x
    params = [value for value in net.parameters() if value.requires_grad]
    with _Watch(device) as watch:
        if not episode.backward:
            with torch.no_grad():
                net(x)
        else:
            out = net(x)
            wanted = [*params, x] if x.requires_grad else params
            gradients = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
            del gradients, out
    return watch.peak, watch.most


def weight_bytes(episode: Episode) -> int:
    """Bytes of one copy of the network's weights and buffers."""
    return sum(value.numel() * value.element_size() for value in like(episode).values())


def base_bytes(episode: Episode) -> int:
    """Bytes of the parameters that are not trained, which a process holds once, whatever it does with them."""
    if not episode.arch.base:
        return 0
    return sum(value.numel() * value.element_size() for value in bases.of(episode.arch.base).values())


COPIES = 3  # as received, as trained, and the answer's
RECORD = (
    6500  # bytes that each buffer of a step costs beside its values: its node of the graph, gaps between small ones
)


def peak_bytes(work: Sequence[Episode]) -> int:
    """Bytes at the peak of a task, above a process that has made such a step before; 0 where no network ran."""
    return max((_peak(episode) for episode in work), default=0)


def _peak(episode: Episode) -> int:
    copies = COPIES if episode.steps else COPIES - 1
    _, buffers = _at(replace(episode, batch=around(episode.batch)[0]))
    during = step_bytes(episode) + RECORD * buffers + (copies - 1) * weight_bytes(episode)
    after = copies * weight_bytes(episode)
    return max(during, after) + base_bytes(episode) + episode.held


def process_bytes(profile: Profile, work: Sequence[Episode]) -> int:
    """Bytes of the whole process at the peak of a task: Python, torch, this library, kernels and the step itself."""
    if not work:
        return round(profile.runtime.value)
    convolves = any(layer.kind == "conv" for episode in work for layer in layers(episode))
    once = profile.runtime.value + profile.library.value + profile.kernels.value * convolves
    return round(once) + peak_bytes(work)

"""A model is an architecture and its weights; any process that knows the builder's name can rebuild it.

The architecture on the wire is the builder's name, its keyword arguments and the shapes of the weights themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedbonsai import bases
from fedbonsai.arch import Arch, fresh, state
from fedbonsai.cached_module import CachedModule
from fedbonsai.errors import ConfigError
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


@message("model@1")
class Model:
    """Architecture and weights: parameters and buffers by name, in the module's order (see `state`)."""

    arch: Arch
    weights: Mapping[str, Tensor]
    drawn: int = -1
    """Seed from which `init` drew these very weights, so that others can draw them too; -1 once they have moved."""

    @staticmethod
    def init(arch: Arch, seed: int) -> Model:
        """Weights drawn by the network's own rules from ``seed``.

        Raises:
            ConfigError: no such network, or it has weights that cannot travel.
        """
        module = fresh(arch, seed)
        _travels(module, arch.name)
        return Model(arch, {name: value.detach().clone() for name, value in arch.weights(module).items()}, seed)

    def replace(self, weights: Tree) -> Model:
        """The same architecture with other weights."""
        return Model(self.arch, weights)

    def based(self) -> Model:
        """The same model, whose parameters that are not trained are the base of its architecture from now on."""
        if not self.arch.trainable or self.arch.base:
            return self
        module = fresh(self.arch)
        fixed = {n: self.weights[n] for n, value in module.named_parameters() if not value.requires_grad}
        if not fixed:
            return self
        rest = {name: value for name, value in self.weights.items() if name not in fixed}
        return Model(replace(self.arch, base=bases.hold(fixed)), rest, self.drawn)

    def whole(self) -> Model:
        """The same model with all of its parameters among its weights."""
        if not self.arch.base:
            return self
        known = {**bases.of(self.arch.base), **self.weights}
        names = state(fresh(self.arch))
        return Model(replace(self.arch, base=""), {name: known[name] for name in names}, self.drawn)

    def build(self) -> nn.Module:
        """A network of one's own with these weights, resized where its layers were pruned."""
        module = CachedModule(self.arch, self.weights).load(self.weights).module
        if self.arch.base:
            for value in module.parameters():
                if not value.requires_grad:
                    value.data = value.data.clone()
        return module


def _travels(module: nn.Module, name: str) -> None:
    """Refuse tensors that no message can carry or no step can move.

    Raises:
        ConfigError: lazy or complex ones, or state that is no tensor.
    """
    faults: list[str] = []
    for key, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            faults.append(
                f"{key} is no tensor ({type(value).__name__}): keep what the network must remember in buffers"
            )
        elif nn.parameter.is_lazy(value):
            faults.append(f"{key} is lazy: give its layer the size of its input")
        elif value.is_complex():
            faults.append(f"{key} is complex: keep real and imaginary parts as two tensors")
        elif value.layout != torch.strided or value.is_quantized:
            faults.append(f"{key} is sparse or quantized: keep it as a plain tensor")
    if faults:
        raise ConfigError(f"model {name!r}: " + "; ".join(faults))


_forms: dict[object, Weights] = {}


def parameter_specs(arch: Arch) -> Weights:
    """Names, types and shapes of an architecture's weights as its builder makes them; the values mean nothing."""
    if arch.key not in _forms:
        _forms[arch.key] = {name: value.detach() for name, value in arch.weights(fresh(arch)).items()}
    return _forms[arch.key]


def blank(arch: Arch, sample: Sequence[int], count: int = 1, device: str = "cpu", part: str = "") -> Tensor:
    """Inputs of zeros, for a look at what a network does with them.

    They are whole numbers where it refuses others and takes these, as a network of tokens does.

    Args:
        arch: network.
        sample: shape of one input.
        count: of inputs.
        device: torch device.
        part: submodule that takes them; empty is the whole network.
    """
    key = arch.key, tuple(sample), part
    if key not in _whole:
        _whole[key] = not _takes(arch, sample, part, torch.float32) and _takes(arch, sample, part, torch.int64)
    return torch.zeros(count, *sample, dtype=torch.int64 if _whole[key] else torch.float32, device=device)


def tokens(module: nn.Module) -> int:
    """How many tokens a network knows: rows of its first embedding; 1 where it has none."""
    return next((layer.num_embeddings for layer in module.modules() if isinstance(layer, nn.Embedding)), 1)


_whole: dict[object, bool] = {}


def _takes(arch: Arch, sample: Sequence[int], part: str, kind: torch.dtype) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            fresh(arch).eval().get_submodule(part)(torch.zeros(2, *sample, dtype=kind))
    except Exception:  # whatever a network says of inputs that it does not take
        return False
    return True


_skeletons: OrderedDict[object, CachedModule] = OrderedDict()


def cached_module(model: Model, device: str = "cpu", channels_last: bool = False, keep: int = 8) -> CachedModule:
    """This process's network object for an architecture and its shapes, with the model's weights loaded.

    The last few are kept, so that a client costs a copy of its weights and no construction.
    """
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in model.weights.items())
    key = (model.arch.key, shapes, device, channels_last)
    if key not in _skeletons:
        made = CachedModule(model.arch, model.weights, device, channels_last)
        if not made.keeps:
            return made.load(model.weights)
        _skeletons[key] = made
        while len(_skeletons) > keep:
            _skeletons.popitem(last=False)
    _skeletons.move_to_end(key)
    return _skeletons[key].load(model.weights)

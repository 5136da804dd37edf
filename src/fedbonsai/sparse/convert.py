"""From a model and its masks to a network that computes sparsely where that pays, and back to dense weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fedbonsai.arch import shared
from fedbonsai.cached_module import CachedModule
from fedbonsai.model import Model
from fedbonsai.sparse.breakeven import breakeven
from fedbonsai.sparse.layers import Masked, has_sparse_form, sparse
from fedbonsai.sparse.order import keeping, last
from fedbonsai.sparse.pattern import kept
from fedbonsai.tree import Tree, Weights, seeded

Where = Literal["auto", "on"]
Place = tuple[nn.Module, tuple[int, ...]]  # a layer without its values, and the shape of one sample of its input


class SparseNet:
    """One network object with sparse layers, whose weights and masks are overwritten in place for each client.

    Attributes:
        module: the network, with the inputs and outputs of the dense one.
        parameters: by the name that each has in the dense network; those of sparse layers are the kept values alone.
        layers: sparse layers, by the name of their weight.
        keeps, foreign: as of the dense network.
    """

    def __init__(self, model: Model, masks: Tree, names: Iterable[str]) -> None:
        """Build.

        Args:
            model: exactly zero wherever a mask is false.
            masks: by name, true where a weight is kept.
            names: of the weights whose layers compute sparsely.
        """
        self._dense = CachedModule(model.arch, model.weights).load(model.weights)
        self.module, self.names = self._dense.module, self._dense.names
        self.keeps, self.foreign = self._dense.keeps, self._dense.foreign
        self.layers: dict[str, Masked] = {}
        self._biases: dict[str, nn.Parameter] = {}
        chosen = set(names)
        for path, layer in list(self.module.named_modules()):
            name = f"{path}.weight" if path else "weight"
            new = sparse(layer, masks[name]) if name in chosen else keeping(layer)
            if new is None:
                continue
            if isinstance(new, Masked):
                self.layers[name] = new
                if new.bias is not None:
                    self._biases[f"{path}.bias" if path else "bias"] = new.bias
            self.module = _replaced(self.module, path, new)
        self.module.register_forward_pre_hook(_turn)
        self._order = list(self._dense.parameters)
        dense = {name: value for name, value in self._dense.parameters.items() if name not in self.layers}
        self._trained = dense | {name: bias for name, bias in self._biases.items() if name in dense}
        self._dense.parameters, self._dense.module = dense, self.module
        self._dense.release([*self.layers, *self._biases])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by the names of the dense network."""
        return {name: self.layers[name].values if name in self.layers else self._trained[name] for name in self._order}

    def load(self, weights: Tree, masks: Tree) -> SparseNet:
        """Copy weights in place; a layer whose mask is another one than before keeps other places from now on."""
        self._dense.load(weights)
        for name, layer in self.layers.items():
            layer.load(weights[name], masks[name])
        with torch.no_grad():
            for name, bias in self._biases.items():
                bias.copy_(weights[name])
        return self

    def compact(self, weights: Tree) -> Weights:
        """Of what has the shape of the weights, the entries that are trained: kept places alone in sparse layers."""
        return {
            name: self.layers[name].pattern.gathered(value) if name in self.layers else value
            for name, value in weights.items()
        }

    def snapshot(self) -> Weights:
        """Dense copies of the weights as they are now."""
        return {name: self._value(name) for name in self.names}

    def _value(self, name: str) -> Tensor:
        if name in self.layers:
            return self.layers[name].dense()
        return self._biases[name].detach().clone() if name in self._biases else self._dense.value(name)


def sparse_net(
    model: Model, masks: Tree, sample: tuple[int, ...], batch: int, where: Where = "auto", keep: int = 4
) -> SparseNet | None:
    """This process's sparse network for a model under masks, loaded; None where no layer is better sparse.

    Args:
        model: exactly zero wherever a mask is false.
        masks: by name, true where a weight is kept.
        sample: shape of one input.
        batch: samples of a step.
        where: ``auto`` for the layers that are faster by this machine's `breakeven`, ``on`` for all that have a form.
        keep: networks that are kept, so that a client costs a copy of its values and no construction.
    """
    names = tuple(chosen(model, masks, sample, batch, where))
    if not names:
        return None
    key = (_form(model), names)
    if key not in _nets:
        made = SparseNet(model, masks, names)
        if not made.keeps:
            return made
        _nets[key] = made
        while len(_nets) > keep:
            _nets.popitem(last=False)
    _nets.move_to_end(key)
    return _nets[key].load(model.weights, masks)


def chosen(model: Model, masks: Tree, sample: tuple[int, ...], batch: int, where: Where = "auto") -> list[str]:
    """Names of the weights whose layers shall compute sparsely; arguments are those of `sparse_net`."""
    key = (_form(model), sample)
    if key not in _inputs:
        _inputs[key] = inputs(CachedModule(model.arch, model.weights), sample)
        while len(_inputs) > 32:
            _inputs.popitem(last=False)
    names: list[str] = []
    for name, (layer, image) in _inputs[key].items():
        if name not in masks or not has_sparse_form(layer):
            continue
        density = kept(masks[name]) / masks[name].numel()
        if where == "on" or density < breakeven(layer, image, batch):
            names.append(name)
    return names


def inputs(net: CachedModule, sample: tuple[int, ...]) -> dict[str, Place]:
    """By name of the weight: each linear and convolution layer that a sample goes through once, and its input's shape.

    Only those whose weight is trained and no other layer's too. Layers on the meta device stand for those of the network, so
    that shapes are all that is kept.
    """
    module, tied = net.module, shared(net.module)
    seen: dict[str, list[tuple[int, ...]]] = {}
    layers = {path: m for path, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)}
    training = module.training
    with torch.no_grad(), seeded(0):
        try:
            _look(module.eval(), layers, torch.zeros(1, *sample), seen)
        except RuntimeError:  # a network of tokens
            seen.clear()
            _look(module, layers, torch.zeros(1, *sample, dtype=torch.int64), seen)
        finally:
            module.train(training)
    names = {path: f"{path}.weight" if path else "weight" for path in seen}
    return {
        names[path]: (layers[path].to("meta"), shapes[0])
        for path, shapes in seen.items()
        if len(shapes) == 1 and names[path] in net.parameters and names[path] not in tied
    }


_nets: OrderedDict[object, SparseNet] = OrderedDict()
_inputs: OrderedDict[object, dict[str, Place]] = OrderedDict()


def _look(
    module: nn.Module, layers: Mapping[str, nn.Module], x: Tensor, seen: dict[str, list[tuple[int, ...]]]
) -> None:
    """Note the shapes of one sample that layers get."""
    hooks = [layer.register_forward_pre_hook(_noting(seen.setdefault(path, []))) for path, layer in layers.items()]
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()


def _turn(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (last(given[0]), *given[1:])


def _noting(shapes: list[tuple[int, ...]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        shapes.append(tuple(given[0].shape[1:]))

    return note


def _form(model: Model) -> object:
    shapes = tuple((name, tuple(value.shape)) for name, value in model.weights.items())
    return model.arch.key, shapes


def _replaced(module: nn.Module, path: str, new: nn.Module) -> nn.Module:
    if not path:
        return new
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
    return module

"""Whole filters, neurons, recurrent units and heads go, and what reads them too: a smaller dense network, no mask.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017: the units of least L1 norm, scored on the weights before
anything was removed. What must shrink together (normalisation, residual sums, the next layer's inputs) is found by the
dependency graph of Fang et al., "DepGraph", CVPR 2023, in their library torch-pruning, which only a server needs: a
device rebuilds the smaller network from the shapes alone.

Finding units and checking that the network without them computes what is left stand in this one file, because neither is
understood without the other.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fedbonsai.arch import Arch, shared, state
from fedbonsai.cached_module import RESIZED
from fedbonsai.errors import BadMessage, ConfigError, FedbonsaiError, Missing
from fedbonsai.model import Model, blank, cached_module, parameter_specs, tokens
from fedbonsai.stages.pruning.count import Size
from fedbonsai.stages.pruning.masks import keep_top
from fedbonsai.stages.pruning.scores import filters
from fedbonsai.tree import Tree, Weights, cast, dtype_of, generator
from fedbonsai.wire import message

STATISTICS = ("running_mean", "running_var")


Shapes = Mapping[str, tuple[int, ...]]  # by name of weight


@message("units/units@1")
class Units:
    """Filters, neurons, recurrent units or heads of one layer, or of layers that must keep the same ones.

    Those are layers whose outputs are added up, convolutions of each channel for itself, and the parts of an attention.

    Attributes:
        name: of the first layer that makes them.
        width: how many there are.
        groups: of a group normalisation behind them; each keeps as many, so that a unit stays in its group.
        makers: weights with rows for each unit, which score it.
        rows: all tensors with ``each`` entries for a unit along dimension 0, ``makers`` among them; those of the gates of a
            recurrent layer have all units once for each gate.
        readers: weights that read them along dimension 1, with the number of columns for each (pixels where flattened).
        each: outputs of a layer that are one unit, as those of a head.
    """

    name: str
    width: int
    groups: int
    makers: tuple[str, ...]
    rows: tuple[str, ...]
    readers: tuple[tuple[str, int], ...]
    each: int = 1

    def entries(self, index: Tensor, count: int) -> Tensor:
        """Where some units are among the ``count`` entries of a tensor of ``rows``."""
        return _spread(torch.arange(count // (self.width * self.each)), self.width, index, self.each)


def _spread(gates: Tensor, width: int, index: Tensor, each: int) -> Tensor:
    """Entries of units, ``each`` in a row, for each of the gates."""
    units = gates[:, None] * width + index
    return (units[..., None] * each + torch.arange(each)).flatten()


def units(model: Model, size: Size) -> list[Units]:
    """All units that may go, in the order of their layers.

    Those that nothing reads, the outputs, stay, and those on which a layer depends that cannot be resized: what is added
    to embeddings, or normalised by LayerNorm, keeps its width, and so do layers that are joined to others along channels. A
    module whose outputs go in runs only, as heads do, says so in an attribute ``runs``: how many by the name of the layer.

    Args:
        model: convolutions, linear and recurrent layers, batch and group normalisation, attention, sums and flattening.
        size: of one input.

    Raises:
        Missing: torch-pruning is not installed.
        ConfigError: no units may go, or the network without some of its units would not compute what is left of it.
    """
    pruning = _torch_pruning()
    module = model.build().eval()
    fixed = _fixed(module, shared(module))
    many = {f"{path}.{name}" if path else name: count for path, name, count in runs(module)}
    for value in module.parameters():  # the graph follows gradients
        value.requires_grad_(value.is_floating_point())
    recurrent = {
        path: layer for path, layer in module.named_modules() if isinstance(layer, nn.GRU) and path not in fixed
    }
    for path, layer in recurrent.items():
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, _StandIn(layer))
    paths = {id(layer): path.removesuffix(f".{INSIDE}") for path, layer in module.named_modules()}
    found: list[Units] = []
    done: set[str] = set()
    try:
        drawn = example(model, size, 1)
        graph = pruning.DependencyGraph().build_dependency(module, example_inputs=drawn, verbose=False)
        for layer in module.modules():
            path = paths[id(layer)]
            if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) or path in done | fixed.keys():
                continue
            each, cut = many.get(path, 1), graph.get_pruner_of_module(layer).prune_out_channels
            group = graph.get_pruning_group(layer, cut, idxs=list(range(each)))
            items = _items(group, paths, graph)
            if any(item[0] in fixed or not isinstance(item[1], RESIZED) for item in items):
                continue
            if _joined(group, items, paths, layer.weight.shape[0] // each, each):
                fixed[path] = "joined to others along channels"
                continue
            made = _units(path, layer.weight.shape[0] // each, each, items, recurrent)
            done |= {maker.rpartition(".")[0] for maker in made.makers}
            if made.readers:
                found.append(made)
    except FedbonsaiError:
        raise
    except Exception as error:  # whatever torch-pruning raises at a layer that it does not know
        raise _unfit(model, fixed, f"its layers cannot be followed ({type(error).__name__}: {error})") from error
    fixed |= {path: f"a {type(layer).__name__}" for path, layer in recurrent.items()}
    if not found:
        raise _unfit(model, fixed, "no layer has units that another one of a known kind reads")
    if why := _wrong(model, found, size):
        raise _unfit(model, fixed, why)
    return found


def _unfit(model: Model, fixed: Mapping[str, str], why: str) -> ConfigError:
    named = "; ".join(f"{path!r} is {kind}" for path, kind in fixed.items())
    return ConfigError(
        f"network {model.arch.name!r} cannot be pruned by units: {why}{'; ' * bool(named)}{named}. Convolutions of images "
        "and series, linear layers, batch and group normalisation, single GRU layers can be; for others use masks"
    )


INSIDE = "inside"


class _StandIn(nn.Module):
    """A linear layer in place of a recurrent one, which torch-pruning could not follow from step to step."""

    def __init__(self, layer: nn.GRU) -> None:
        super().__init__()
        self.inside = nn.Linear(layer.input_size, layer.hidden_size, dtype=dtype_of(dict(layer.named_parameters())))
        self.batch_first = layer.batch_first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inside(x)
        return y, (y[:, -1] if self.batch_first else y[-1])[None]


def runs(module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Layers whose outputs go in runs: path of the module that says so, name of the layer, length of a run."""
    for path, layer in module.named_modules():
        said = getattr(layer, "runs", None)
        for name, count in said.items() if isinstance(said, dict) else ():
            yield path, str(name), int(count)


def example(model: Model, size: Size, count: int) -> Tensor:
    """Inputs that are drawn: tokens, or numbers in the type of the weights."""
    random = generator(0)
    if not (zeros := blank(model.arch, size, count)).is_floating_point():
        return torch.randint(tokens(cached_module(model).module), zeros.shape, generator=random)
    drawn, begin = torch.randn(zeros.shape, generator=random).to(dtype_of(model.weights)), 0
    for each in model.arch.inputs:
        end = begin + math.prod(each.shape)
        if each.whole:
            most = tokens(cached_module(model).module)
            drawn[:, begin:end] = torch.randint(most, (count, end - begin), generator=random).to(drawn.dtype)
        begin = end
    return drawn


def _fixed(module: nn.Module, tied: Collection[str]) -> dict[str, str]:
    """Layers that cannot be resized, by path, and what they are."""
    found: dict[str, str] = {}
    whole: list[str] = []  # whose parts are parts of its own weights
    for path, layer in module.named_modules():
        if any(path.startswith(f"{outer}.") for outer in whole):
            continue
        prefix = f"{path}." if path else ""
        names = [name for name, _ in layer.named_parameters(recurse=False)]
        if is_parametrized(layer) or any(
            isinstance(h, WeightNorm | SpectralNorm) for h in layer._forward_pre_hooks.values()
        ):
            found[path] = f"a {type(layer).__name__.removeprefix('Parametrized')} whose weight is computed from others"
            whole.append(path)
        elif isinstance(layer, nn.MultiheadAttention):
            found[path] = f"a {type(layer).__name__}"
            whole.append(path)
        elif names and path and (not isinstance(layer, RESIZED) or not _single(layer)):
            found[path] = f"a {type(layer).__name__}"
        elif path and not all(value.requires_grad for value in layer.parameters(recurse=False)):
            found[path] = f"a {type(layer).__name__} that is not trained"
        elif isinstance(layer, RESIZED) and any(prefix + name in tied for name in names):
            found[path] = f"a {type(layer).__name__} that shares its weights"
        elif isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups > 1 and not _of_each_channel(layer):
            found[path] = f"a {type(layer).__name__} of {layer.groups} groups"
    return found


def _single(layer: nn.Module) -> bool:
    """Not a recurrent layer of several layers or directions, or of a class of one's own."""
    return not isinstance(layer, nn.GRU) or (
        type(layer) is nn.GRU and layer.num_layers == 1 and not layer.bidirectional
    )


def _of_each_channel(layer: nn.Conv1d | nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels


Item = tuple[str, nn.Module, bool, int]  # path, layer, whether its outputs go, how many entries for a unit


def _joined(group: Any, items: Sequence[Item], paths: Mapping[int, str], width: int, each: int) -> bool:
    """Whether units are beside those of another layer where they are read or normalised."""
    if any(list(at)[:1] != [0] for item, at in group if id(item.target.module) in paths):
        return True
    for _, layer, out, count in items:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            if (layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features) != width * each:
                return True
        elif isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and not out:
            wide = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            if wide != width * count:
                return True
    return False


def _items(group: Any, paths: Mapping[int, str], graph: Any) -> list[Item]:
    return [
        (paths[id(item.target.module)], item.target.module, graph.is_out_channel_pruning_fn(item.handler), len(at))
        for item, at in group
        if id(item.target.module) in paths and any(True for _ in item.target.module.parameters())
    ]


def _units(name: str, width: int, each: int, items: Sequence[Item], recurrent: Mapping[str, nn.GRU]) -> Units:
    makers: list[str] = []
    rows: list[str] = []
    readers: list[tuple[str, int]] = []
    groups = 1
    for path, layer, out, count in sorted(dict.fromkeys(items), key=lambda item: item[0] != name):
        if path in recurrent:
            if out:
                makers += [f"{path}.weight_ih_l0", f"{path}.weight_hh_l0"]
                rows += [f"{path}.{entry}" for entry in state(recurrent[path])]
                readers.append((f"{path}.weight_hh_l0", count))
            else:
                readers.append((f"{path}.weight_ih_l0", count))
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            rows += [f"{path}.{entry}" for entry in state(layer)]
            groups = max(groups, layer.num_groups) if isinstance(layer, nn.GroupNorm) else groups
        elif out:
            makers.append(f"{path}.weight")
            rows += [f"{path}.{entry}" for entry in state(layer)]
        else:
            readers.append((f"{path}.weight", count))
    return Units(name, width, groups, tuple(makers), tuple(rows), tuple(readers), each)


def _wrong(model: Model, groups: Sequence[Units], size: Size) -> str:
    """Try it, and say what is wrong; empty where nothing is.

    A tensor that is no layer's, a joined channel or an output that is read again is not in the groups. With weights that are
    drawn, since those of the model may be zero where it matters, and with two choices of units, so that none fits by
    chance. Group normalisation sees fewer values in the smaller network: it is left out of both.
    """
    try:
        agree = all(_agree(model, groups, kept, size) for kept in (_first(groups), _some(groups)))
    except (RuntimeError, IndexError) as error:
        return str(error)
    return "" if agree else "without some of them it does not compute what the others did"


def _first(groups: Sequence[Units]) -> list[Tensor]:
    """The first half of the units, of each group of a normalisation."""
    parts = [torch.arange(group.width).reshape(group.groups, -1) for group in groups]
    return [part[:, : -(-part.shape[1] // 2)].flatten() for part in parts]


def _some(groups: Sequence[Units]) -> list[Tensor]:
    """Any third of the units, of each group of a normalisation."""
    random, found = generator(0), list[Tensor]()
    for group in groups:
        parts = torch.arange(group.width).reshape(group.groups, -1)
        places = torch.rand(parts.shape, generator=random).argsort(1)[:, : -(-parts.shape[1] // 3)].sort(1).values
        found.append(parts.gather(1, places).flatten())
    return found


def _agree(model: Model, groups: Sequence[Units], kept: Sequence[Tensor], size: Size) -> bool:
    for weights in (_drawn(model), model.weights):  # its own where what is drawn gives no numbers, as by a root
        try:
            gap, bound = _gap(model.replace(cast(weights, torch.float64)), groups, kept, size), 1e-6
        except RuntimeError:  # a network of one's own may name its types
            own = dtype_of(weights)
            gap, bound = _gap(model.replace(weights), groups, kept, size), max(1e-3, 8 * torch.finfo(own).eps)
        if math.isfinite(gap):
            return gap <= bound
    return False


def _drawn(model: Model) -> Weights:
    """Weights and statistics of normalisation that are nowhere zero; other buffers as they are."""
    random, found = generator(1), dict(model.weights)
    learned = dict(model.build().named_parameters())
    for name, value in model.weights.items():
        if name in learned and value.ndim > 1:
            found[name] = torch.randn(value.shape, generator=random) * (value.shape[0] / value.numel()) ** 0.5
        elif name in learned or name.endswith(STATISTICS):
            found[name] = 0.5 + torch.rand(value.shape, generator=random)
    return found


def _gap(model: Model, groups: Sequence[Units], kept: Sequence[Tensor], size: Size) -> float:
    """Largest difference of an output between the smaller network and the silenced one, by the largest output."""
    x = example(model, size, 2)
    outputs: list[Tensor] = []
    for each in (prune(model, groups, kept), silenced(model, groups, kept)):
        net = each.build().eval()
        for layer in net.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.register_forward_hook(_unscaled)
        with torch.inference_mode():
            outputs.append(net(x).double())
    small, rest = outputs
    return float((small - rest).abs().max() / rest.abs().max()) if small.shape == rest.shape else math.inf


def _unscaled(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    """What a group normalisation gives without normalising: gain and bias alone."""
    x, held = inputs[0], dict(layer.named_parameters())
    form = (1, -1, *(1,) * (x.ndim - 2))
    return x * held["weight"].reshape(form) + held["bias"].reshape(form) if held else x


def _torch_pruning() -> Any:
    if importlib.util.find_spec("torch_pruning") is None:
        raise Missing("pruning by filters needs torch-pruning on the server: pip install 'fedbonsai[prune]'")
    return importlib.import_module("torch_pruning")


def select(weights: Tree, groups: Sequence[Units], widths: Sequence[int]) -> list[Tensor]:
    """Indices of the units that stay, ascending: the largest L1 norms, summed over the layers that make a unit.

    Args:
        weights: of the unpruned network; or other values of the same form, whose magnitudes count instead.
        groups: from `units`.
        widths: how many of each stay.
    """
    found: list[Tensor] = []
    for group, width in zip(groups, widths, strict=True):
        if not 0 < width <= group.width or width % group.groups:
            many = f" in multiples of {group.groups} (its normalisation has as many groups)" * (group.groups > 1)
            raise ConfigError(f"{width} units of {group.name!r}: expected 1 to {group.width}{many}")
        score = torch.stack([_norms(filters(weights[name].double()), group) for name in group.makers]).sum(0)
        parts = [keep_top(part, width // group.groups) for part in score.chunk(group.groups)]
        found.append(torch.cat(parts).nonzero().flatten())
    return found


def _norms(rows: Tensor, group: Units) -> Tensor:
    """L1 norms of units from those of rows: over a unit's rows, of all gates."""
    return rows.reshape(-1, group.width, group.each).sum((0, 2)) if len(rows) > group.width else rows


Places = Mapping[str, tuple[Tensor | None, Tensor | None]]  # by name: entries along dimensions 0 and 1; None: all


def places(groups: Sequence[Units], kept: Sequence[Tensor], weights: Tree) -> Places:
    """Where the entries of some units are: rows, their biases and normalisation, and the columns that read them."""
    rows: Weights = {}
    columns: Weights = {}
    for group, index in zip(groups, kept, strict=True):
        for name in group.rows:
            rows[name] = group.entries(index, len(weights[name]))
        for name, each in group.readers:
            columns[name] = (index[:, None] * each + torch.arange(each)).flatten()
    return {name: (rows.get(name), columns.get(name)) for name in weights if name in rows or name in columns}


def prune(model: Model, groups: Sequence[Units], kept: Sequence[Tensor]) -> Model:
    """The smaller network: what belongs to the units that are kept, by explicit indices."""
    return model.replace(taken(model.weights, places(groups, kept, model.weights)))


def taken(weights: Tree, where: Places) -> Weights:
    """Tensors without the entries that are not among these places; gradients pass."""
    found = dict(weights)
    for name in weights.keys() & where.keys():
        for dimension, index in enumerate(where[name]):
            found[name] = (
                found[name] if index is None else found[name].index_select(dimension, index.to(found[name].device))
            )
    return found


def silenced(model: Model, groups: Sequence[Units], kept: Sequence[Tensor]) -> Model:
    """The full network with what `prune` removes set to zero instead: in evaluation mode it computes the same."""
    weights = {name: value.clone() for name, value in model.weights.items()}
    for group, index in zip(groups, kept, strict=True):
        for name in group.rows:
            if not name.endswith(STATISTICS):
                gone = torch.ones(len(weights[name]), dtype=torch.bool)
                gone[group.entries(index, len(gone))] = False
                weights[name][gone] = 0
    return model.replace(weights)


def narrowed(model: Model) -> Shapes:
    """Shapes of the weights that are smaller than their builder makes them: what tells a device the architecture."""
    full = parameter_specs(model.arch)
    return {n: tuple(value.shape) for n, value in model.weights.items() if value.shape != full[n].shape}


def forms_of(arch: Arch, shapes: Shapes) -> Weights:
    """Names, types and shapes of a pruned network's weights; the values mean nothing.

    Raises:
        BadMessage: a name that the network lacks, or a shape that is not within its own.
    """
    found = dict(parameter_specs(arch))
    for name, shape in shapes.items():
        full = found.get(name)
        fits = full is not None and len(shape) == full.ndim
        if full is None or not fits or not all(0 < a <= b for a, b in zip(shape, full.shape, strict=True)):
            raise BadMessage(f"weights {name!r} of shape {list(shape)} are no part of network {arch.name!r}")
        found[name] = full[tuple(slice(length) for length in shape)]
    return found

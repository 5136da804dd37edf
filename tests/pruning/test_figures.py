import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.training.optimizers import SGD


def test_figures_of_a_masked_network():
    model = Model.init(Arch("mlp", {"widths": (3,), "size": 2, "classes": 2}), 0)
    names = [name for name, value in model.weights.items() if value.ndim > 1]
    masks = {name: torch.zeros(model.weights[name].shape, dtype=torch.bool) for name in names}
    for mask in masks.values():
        mask[0, 0] = True
    found = figures(model, masks, (1, 2, 2), SGD(batch=10), dense=2)
    assert found["density"] == pytest.approx(2 / 18)
    assert (found["kept"], found["parameters"], found["macs"]) == (2, 7, 2)
    # weights in the cheapest format, activations of a batch, and dense: gradient and buffers of 23 values each
    held = count.storage_bytes(model.weights, masks) + count.activation_bytes(model, (1, 2, 2), 10)
    assert found["training_memory"] == held + 2 * 4 * 23
    more = figures(model, masks, (1, 2, 2), SGD(batch=10, momentum=0.5), dense=4)
    assert more["training_memory"] == held + 4 * 4 * 23
    sparse = figures(model, masks, (1, 2, 2), SGD(batch=10, momentum=0.5), buffers={names[0]: 3})
    activations = count.activation_bytes(model, (1, 2, 2), 10)
    assert sparse["training_memory"] == 3 * count.storage_bytes(model.weights, masks) + activations + 8 * 3

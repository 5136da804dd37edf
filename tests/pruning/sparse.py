"""A pruned network and a client for the tests of progressive pruning."""

import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.model import Model
from fedbonsai.stages.pruning.masks import keep_each, masked

CNN = Arch("cnn-bn", {"size": 8})


def person(count=24, seed=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(count, 1, 8, 8, generator=random), torch.randint(0, 10, (count,), generator=random)
    return Client("a", 7, Samples(x, y), Samples(x[:0], y[:0]))


def sparse_model(density=0.3):
    model = Model.init(CNN, 0)
    names = ["features.conv1.weight", "features.conv2.weight"]
    kept = {name: round(density * model.weights[name].numel()) for name in names}
    masks = keep_each({name: model.weights[name].abs() for name in names}, kept)
    return model.replace(masked(model.weights, masks)), masks

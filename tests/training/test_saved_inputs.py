"""Inputs that are saved in part: what comes out and what goes back are exact, slopes of weights are of the part."""

import pytest
import torch
from torch import nn

from fedbonsai.training.saved_inputs import pruned


class Turned(nn.Linear):
    """Of inputs that come with channels before places, as behind a convolution of a series."""

    def __call__(self, x):
        return super().__call__(x.transpose(1, 2))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 3), (4, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 3), (4, 5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 3, bias=False), (4, 5, 6)),
    "linear of turned sequences": (lambda: Turned(6, 3), (4, 6, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (4, 2, 7)),
    "grouped conv2d": (lambda: nn.Conv2d(2, 4, 3, groups=2), (4, 2, 7, 5)),
}


def slopes(net, x, share=1.0):
    with pruned(net, {"0.weight": share}):
        y = net(x)
        return y, torch.autograd.grad((y * torch.arange(y.numel()).reshape(y.shape)).sum(), [x, net[0].weight])


@pytest.mark.parametrize("name", LAYERS)
def test_slopes_of_weights_are_those_of_the_largest_values(name):
    make, shape = LAYERS[name]
    torch.manual_seed(1)
    net, x = nn.Sequential(make()), torch.randn(shape, requires_grad=True)
    y, (of_x, of_weight) = slopes(net, x)
    cut, (of_x_too, of_weight_cut) = slopes(net, x, 0.4)
    assert torch.equal(cut, y)
    assert torch.equal(of_x_too, of_x)
    least = x.detach().abs().flatten().topk(int(0.4 * x.numel())).values.min()
    part = torch.where(x.detach().abs() >= least, x.detach(), 0).requires_grad_()
    torch.testing.assert_close(of_weight_cut, slopes(net, part)[1][1])
    assert not torch.allclose(of_weight_cut, of_weight)


def test_afterwards_everything_is_saved_again_and_an_error_leaves_nothing_behind():
    net, x = nn.Sequential(nn.Linear(6, 3)), torch.randn(4, 6, requires_grad=True)
    before = slopes(net, x)[1][1]
    with pytest.raises(RuntimeError, match="shapes"), pruned(net, {"0.weight": 0.2}):
        net(torch.zeros(4, 5))
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: seen.append(value) or value, lambda value: value):
        net(x)
    assert any(value.data_ptr() == x.data_ptr() for value in seen)
    assert torch.equal(slopes(net, x)[1][1], before)


def test_at_least_one_value_is_saved():
    net, x = nn.Sequential(nn.Linear(3, 1, bias=False)), torch.tensor([[1.0, -3.0, 2.0]], requires_grad=True)
    with pruned(net, {"0.weight": 0.01}):
        (found,) = torch.autograd.grad(net(x).sum(), [net[0].weight])
    assert found.tolist() == [[0.0, -3.0, 0.0]]

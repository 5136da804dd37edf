"""A network that cannot learn from two samples; workers import this module by name."""

from torch import nn

from fedbonsai.arch import network


class Choosy(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.out = nn.Linear(features, classes)

    def forward(self, x):
        if self.training and len(x) < 3:
            raise ValueError(f"a batch of {len(x)},\nat least 3 needed")
        return self.out(x.flatten(1))


class Sated(Choosy):
    def forward(self, x):
        if self.training and len(x) > 6:
            raise ValueError(f"a batch of {len(x)},\nat most 6 taken")
        return self.out(x.flatten(1))


@network("test-sated")
def sated(channels=1, size=8, classes=10):
    return Sated(channels * size * size, classes)


@network("test-choosy")
def choosy(channels=1, size=8, classes=10):
    return Choosy(channels * size * size, classes)

"""Two rounds of FedAvg, and of FedTiny, on four clients: weights from and to files, so that processors can be compared.

python -m tests.arm.rounds DATA.npz START.npz END.npz
"""

import sys

import numpy as np
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.model import Model
from fedbonsai.training.optimizers import SGD

ARCH = Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10, "norm": "batch"})
SGD_ = SGD(lr=0.05, momentum=0.9, batch=16, epochs=1)
METHODS = {"fedavg": Averaging(optimizer=SGD_), "fedtiny": FedTiny(optimizer=SGD_, density=0.2)}


def main(data: str, start: str, end: str) -> None:
    torch.set_num_threads(1)
    held, first = np.load(data), np.load(start)
    x, y = torch.from_numpy(held["x"]), torch.from_numpy(held["y"])
    people = [
        Client(f"{n}", 0, Samples(x[n::4][:60], y[n::4][:60]), Samples(x[n::4][60:80], y[n::4][60:80]))
        for n in range(4)
    ]
    weights = {name: torch.from_numpy(first[name]) for name in first.files}
    found = {}
    for name, method in METHODS.items():
        fleet, server = LocalFleet(people), Client("server", 0, people[0].train[:0], people[0].train[:0])
        with scope(fleet, Scope("run", 0, -1, 0)) as opened:
            state = method.begin(Model(ARCH, weights), opened, server)
            opened.commit()
        for t in range(2):
            with scope(fleet, Scope("run", 0, t, 0)) as opened:
                state = method.round(state, t, opened)
                opened.commit()
        found |= {f"{name}/{key}": value.numpy() for key, value in method.model(state).weights.items()}
    np.savez(end, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

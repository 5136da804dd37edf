"""Checksums of networks as a seed draws them."""

from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import checksum

NETWORKS = (
    Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10, "norm": "batch"}),
    Arch("lenet5", {"channels": 1, "size": 28, "classes": 10}),
    Arch("mlp", {"channels": 1, "size": 8, "classes": 10, "widths": [16]}),
)


def said() -> str:
    """A line for each network."""
    return "".join(f"{arch.name} {checksum(Model.init(arch, 7).weights)}\n" for arch in NETWORKS)


if __name__ == "__main__":
    print(said(), end="")

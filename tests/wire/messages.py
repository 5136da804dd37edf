"""Message classes and values that the tests of the wire share."""

from typing import Literal

import torch
from torch import Tensor

from fedbonsai.wire import message


@message("test/leaf@1")
class Leaf:
    count: int
    share: float = 0.5


@message("test/node@1")
class Node:
    name: str
    leaves: tuple[Leaf, ...] = ()
    pair: tuple[int, str] = (0, "")
    weights: dict[str, Tensor] | None = None
    mode: Literal["a", "b"] = "a"
    blob: bytes = b""

    def __post_init__(self):
        if self.name == "refused":
            raise ValueError("this name is refused")


def samples():
    """Values by name, each with a golden file."""
    count = torch.arange(6)
    return {
        "plain": (None, True, False, 0, -1, 2**63 - 1, -(2**63), 1.5, float("inf"), "", "naïve 木", b"", b"\x00\xff"),
        "nested": {"a": (1, (2, (3, {"b": ()}))), "c": {}},
        "messages": (
            Node("x", (Leaf(1), Leaf(-2, 0.25)), (3, "p"), {"w": torch.ones(2, 3)}, "b", b"ab"),
            Node("y", (Leaf(7),), blob=b"c"),
        ),
        "dtypes": {
            "bool": torch.tensor([True, False, True, True, False, False, True, False, True]),
            "uint8": count.to(torch.uint8),
            "int8": count.to(torch.int8) - 3,
            "int16": count.to(torch.int16) - 300,
            "int32": count.to(torch.int32) * 100_000,
            "int64": count * 10**12,
            "float16": count.to(torch.float16) / 3,
            "bfloat16": count.to(torch.bfloat16) / 3,
            "float32": count.to(torch.float32) / 3,
            "float64": count.to(torch.float64) / 3,
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 4),
            "matrix": count.reshape(2, 3).to(torch.float32),
        },
        "alignment": (
            b"x",
            torch.ones(1, dtype=torch.float64),
            b"yz",
            torch.ones(3, dtype=torch.int16),
            torch.tensor(True),
        ),
    }

"""Encoding and decoding against a copy of the same bytes: ``python -m bench.wire``.

A 45 MB model (ResNet-18), one thread; a copy into memory that is new each time, which is what encoding has to do.
"""

from __future__ import annotations

import torch

from bench.record import interleaved, save
from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.wire import decode, encode


def main() -> None:
    torch.set_num_threads(1)
    model = Model.init(Arch("resnet18", {"channels": 3, "size": 32, "classes": 10}), 0)
    flat = torch.cat([value.reshape(-1) for value in model.weights.values()])
    warm = flat.clone()
    data = encode(model)
    times = interleaved(
        {
            "copy into new memory": lambda: flat.clone(),
            "copy into warm memory": lambda: warm.copy_(flat),
            "encode": lambda: encode(model),
            "decode": lambda: decode(data),
            "decode, read-only bytes": lambda fixed=bytes(data): decode(fixed),
        },
        repeats=25,
        warm=3,
    )
    floor = times["copy into new memory"]["median"]
    rows = {
        name: {**each, "ratio": each["median"] / floor, "GB/s": len(data) / each["median"] / 1e9}
        for name, each in times.items()
    }
    print("| work on 44.7 MB | ms | ratio to a copy |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {1e3 * row['median']:.2f} | {row['ratio']:.3f} |")
    save("wire", {"bytes": len(data), "overhead over the tensors": len(data) - 4 * flat.numel(), "times": rows})


if __name__ == "__main__":
    main()

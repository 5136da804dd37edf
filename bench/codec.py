"""Bytes and speed of the codecs beside what users have today: ``python -m bench.codec``.

11.17 million values, one thread, everything in turn in one run; seconds are the thread's on the processor, as others may
work there too. ``--before COMMIT`` has the chains of an earlier commit take their turns too.

The unit of speed is a copy of the fp32 tensor into warm memory. A clone is no unit: it costs one such copy or ten, as the
allocator has warm memory to give or new pages; it is measured beside. Selection is part of every chain that selects.
"""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import zstandard

from bench.record import interleaved, save
from fedbonsai import wire
from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.stages import codec
from fedbonsai.stages.codec import entropy_bound, positions
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.tree import Weights

BEFORE = "before: "
N = 11_170_000
DENSITIES = (0.5, 0.1, 0.01, 0.001)
CHAINS = {
    "topk .01, signmag 8": [{"topk": 0.01}, {"signmag": 8}],
    "topk .01, signmag 8, fastest": [{"topk": 0.01}, {"signmag": 8}, {"positions": {"prefer": "fastest"}}],
    "topk .01, signmag 8, zstd": [{"topk": 0.01}, {"signmag": 8}, {"entropy": "zstd"}],
    "topk .01, signmag 8, range": [{"topk": 0.01}, {"signmag": 8}, {"positions": "range"}, {"entropy": "range"}],
    "topk .01 global, signmag 8": [{"topk": {"fraction": 0.01, "scope": "global"}}, {"signmag": 8}],
    "topk .01, ternary (STC)": [{"topk": 0.01}, "ternary"],
    "topk .1, signmag 4": [{"topk": 0.1}, {"signmag": 4}],
    "randk .01, fp16": [{"randk": 0.01}, "fp16"],
    "fp16": ["fp16"],
    "affine 8": [{"affine": 8}],
    "affine 8 per channel": [{"affine": {"bits": 8, "scope": "channel"}}],
    "affine 4, zstd": [{"affine": 4}, {"entropy": "zstd"}],
    "qsgd 16, zstd": [{"qsgd": 16}, {"entropy": "zstd"}],
    "drive": ["drive"],
    "no stages": [],
}
Bytes = bytes | bytearray
Pair = tuple[Callable[[], Bytes], Callable[[Bytes], object]]
Work = dict[str, Pair]


def on_positions(mask: np.ndarray) -> Work:
    """Codecs of positions, ours and others', as pairs of encode and decode."""
    k = len(mask)

    def bitmap() -> bytes:
        flags = np.zeros(N, np.uint8)
        flags[mask] = 1
        return np.packbits(flags).tobytes()

    def ours(codec: positions.Codec) -> Pair:
        def pack() -> bytes:
            code, parts = positions.encode(mask, N, codec)
            return bytes([code]) + b"".join(memoryview(part) for part in parts)

        return pack, lambda data: positions.decode(data[0], Cursor(memoryview(data)[1:]), N, k)

    work: Work = {codec: ours(codec) for codec in ("auto", "bitmap", "rice", "gaps", "range")}
    work["raw bitmap"] = bitmap, lambda data: np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), count=N))
    work["int32 indices"] = lambda: mask.astype(np.int32).tobytes(), lambda data: np.frombuffer(data, np.int32).copy()
    work["int32 indices, zstd 3"] = (
        lambda: zstandard.compress(mask.astype(np.int32).tobytes(), 3),
        lambda data: np.frombuffer(zstandard.decompress(data), np.int32).copy(),
    )
    return work


def chains(tree: Weights, codec: Any, wire: Any) -> Work:
    """Whole chains by the codecs and the wire format of one version of this library."""

    def chain(spec: list[object]) -> Pair:
        stages = codec.parse(spec)
        return lambda: wire.encode(stages.pack(tree, 1)), lambda data: wire.decode(data).dense(tree)

    return {name: chain(spec) for name, spec in CHAINS.items()}


def earlier(commit: str, folder: str) -> tuple[Any, Any]:
    """Codecs and wire format of an earlier commit, loaded beside those of today."""
    packed = subprocess.run(["git", "archive", commit, "src"], check=True, capture_output=True).stdout
    with tarfile.TarFile(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")

    def ours() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "fedbonsai"]

    today = {name: sys.modules.pop(name) for name in ours()}
    sys.path.insert(0, str(Path(folder) / "src"))
    try:
        found = import_module("fedbonsai.stages.codec"), import_module("fedbonsai.wire")
        assert all(str(module.__file__).startswith(folder) for module in found)
        return found
    finally:
        sys.path.pop(0)
        for name in ours():
            del sys.modules[name]
        sys.modules.update(today)


def on_trees(tree: Weights, before: tuple[Any, Any] | None) -> Work:
    """Whole chains, those of an earlier version if there is one, and what is written by hand today."""

    def pickled(values: Weights) -> bytes:
        out = io.BytesIO()
        pickle.dump({name: value.numpy() for name, value in values.items()}, out, protocol=5)
        return out.getvalue()

    def load(data: bytes) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in pickle.loads(data).items()}

    def top() -> Weights:
        out: Weights = {}
        for name, value in tree.items():
            flat = value.reshape(-1).float()
            chosen = flat.abs().topk(max(1, flat.numel() // 100)).indices
            out[name] = torch.zeros_like(flat).index_copy_(0, chosen, flat[chosen]).reshape(value.shape)
        return out

    def sparse() -> bytes:
        out: Weights = {}
        for name, value in tree.items():
            flat = value.reshape(-1).float()
            out[name] = chosen = flat.abs().topk(max(1, flat.numel() // 100)).indices.int()
            out[name + " values"] = flat[chosen]
        return pickled(out)

    def from_sparse(data: bytes) -> Weights:
        sent = load(data)
        return {
            name: torch.zeros(like.numel()).index_copy_(0, sent[name].long(), sent[name + " values"]).view_as(like)
            for name, like in tree.items()
        }

    zstd, unzstd = (lambda data: zstandard.compress(data, 3)), zstandard.decompress
    work = chains(tree, codec, wire)
    if before is not None:
        old = chains(tree, *before)
        assert all(old[name][0]() == work[name][0]() for name in work), "bytes differ from those of the earlier commit"
        work |= {BEFORE + name: pair for name, pair in old.items()}
    work["today: pickled tensors"] = lambda: pickled(tree), load
    work["today: pickled, zlib"] = lambda: zlib.compress(pickled(tree)), lambda data: load(zlib.decompress(data))
    work["today: pickled, zstd 3"] = lambda: zstd(pickled(tree)), lambda data: load(unzstd(data))
    work["today: top-k .01 as dense zeros, pickled"] = lambda: pickled(top()), load
    work["today: top-k .01 as dense zeros, zstd 3"] = lambda: zstd(pickled(top())), lambda data: load(unzstd(data))
    work["today: top-k .01 as int32 indices and fp32"] = sparse, from_sparse
    return work


def measure(work: Work, flat: torch.Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Bytes, milliseconds and multiples of a warm copy, for each piece of work."""
    data = {name: pack() for name, (pack, _) in work.items()}
    warm = flat.clone()
    runs: dict[str, Callable[[], object]] = {"copy": lambda: warm.copy_(flat), "clone": flat.clone}
    for name, (pack, unpack) in work.items():
        runs[name + "/encode"] = pack
        runs[name + "/decode"] = lambda unpack=unpack, name=name: unpack(data[name])
    times = interleaved(runs, repeats, clock=time.thread_time)
    copy = times["copy"]["median"]
    rows: dict[str, dict[str, float]] = {
        name: {"bytes": 4 * flat.numel(), "ms": 1e3 * times[name]["median"], "least ms": 1e3 * times[name]["min"]}
        for name in ("copy", "clone")
    }
    for name in work:
        rows[name] = {"bytes": len(data[name])}
        for way in ("encode", "decode"):
            took = times[f"{name}/{way}"]
            rows[name] |= {f"{way} ms": 1e3 * took["median"], f"{way} least ms": 1e3 * took["min"]}
            rows[name][f"{way} copies"] = took["median"] / copy
    return rows


def budget(rows: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    """Encode and decode of one chain in units of a copy, by either kind of copy, medians and least times."""
    row = rows[name]
    both = {"median": row["encode ms"] + row["decode ms"], "least": row["encode least ms"] + row["decode least ms"]}
    return {
        f"{kind} of {unit}": time / rows[unit]["ms" if kind == "median" else "least ms"]
        for kind, time in both.items()
        for unit in ("copy", "clone")
    }


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--before", metavar="COMMIT", help="chains of an earlier commit, for comparison")
    commit = reader.parse_args().before
    with TemporaryDirectory() as folder:
        compare(earlier(commit, folder) if commit else None, commit)


def compare(before: tuple[Any, Any] | None, commit: str | None) -> None:
    """Measure everything, print tables, and write the file of results."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    flat = torch.from_numpy(rng.laplace(size=N).astype(np.float32))
    masks: dict[str, object] = {}
    print(
        "| density | positions | bytes | over the bound | encode, copies | decode, copies |\n|---|---|---|---|---|---|"
    )
    for density in DENSITIES:
        mask = np.sort(rng.choice(N, round(density * N), replace=False))
        bound = entropy_bound(N, len(mask)) / 8
        rows = measure(on_positions(mask), flat, 5)
        for name, row in rows.items():
            if name not in ("copy", "clone"):
                row["over the bound"] = row["bytes"] / bound
                print(
                    f"| {density} | {name} | {row['bytes']:,} | {row['over the bound']:.3f} "
                    f"| {row['encode copies']:.2f} | {row['decode copies']:.2f} |"
                )
        masks[str(density)] = {"bound bytes": bound, "codecs": rows}

    model = Model.init(Arch("resnet18", {"channels": 3, "size": 32, "classes": 10}), 0)
    network = {
        name: torch.from_numpy(rng.laplace(size=tuple(value.shape)).astype(np.float32))
        for name, value in model.weights.items()
        if value.is_floating_point()
    }
    alone = {name: each for name, each in on_trees({"w": flat}, before).items() if not name.startswith("today")}
    one = measure(alone, flat, 9)
    many = measure(on_trees(network, before), torch.cat([value.reshape(-1) for value in network.values()]), 5)
    print("\n| ResNet-18 | bytes | smaller than fp32 | encode, copies | decode, copies | both, as one tensor |")
    print("|---|---|---|---|---|---|")
    whole = many["copy"]["bytes"]
    for name, row in many.items():
        if name not in ("copy", "clone"):
            row["smaller"] = whole / row["bytes"]
            single = f"{one[name]['encode copies'] + one[name]['decode copies']:.1f}" if name in one else ""
            print(
                f"| {name} | {row['bytes']:,} | {row['smaller']:.1f} "
                f"| {row['encode copies']:.1f} | {row['decode copies']:.1f} | {single} |"
            )
    within = budget(one, "topk .01, signmag 8")
    print("\ngoal, at most 5: " + ", ".join(f"{name} {value:.1f}" for name, value in within.items()))
    found = {"values": N, "positions": masks, "one tensor": one, "resnet18": many, "budget": within}
    save("codec", found | ({"before": commit} if commit else {}))


if __name__ == "__main__":
    main()

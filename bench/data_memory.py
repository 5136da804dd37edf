"""Peak memory of reading data, against the bytes of their arrays: ``python -m bench.data_memory``.

Each case reads its files in a process of its own with an empty cache, and once more from what was kept; counted is what lies
above the process after it has imported torch and what reads and divides data. Pages of files that are only mapped count as
long as they lie in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np

from bench.record import save

COUNT = 50_000
GIGABYTE = 1 << 30
CHILD = """
import json, sys, time
import flwr_datasets.partitioner, pyarrow.parquet, torch
from fedbonsai.data import DataConfig, load
from fedbonsai.devices.footprint import _resident
before, start = _resident(False), time.perf_counter()
held = load(DataConfig(path=sys.argv[1], partition="iid", clients=10), 0)
read = time.perf_counter() - start
peak = _resident(True) - before
batches = [part[:32].x for part in held.train]
print(json.dumps({"peak": peak, "held": _resident(False) - before, "seconds": read}))
"""


def pictures(count: int) -> np.ndarray:
    """Bytes [count, 32, 32, 3] that are as smooth as photographs: PNG files of about 2 kB."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2) // 2 + random.integers(0, 16, (count, 32, 32, 3), dtype=np.uint8)


def encoded(folder: Path) -> int:
    """CIFAR-10's size as PNG in Parquet; bytes of the array."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    x = pictures(COUNT)
    cells: list[dict[str, object]] = []
    for picture in x:
        with BytesIO() as out:
            Image.fromarray(picture).save(out, "png", compress_level=1)
            cells.append({"bytes": out.getvalue(), "path": None})
    for split, part in (("train", slice(None)), ("test", slice(0, 1000))):
        table = {"img": cells[part], "label": (np.arange(COUNT) % 10)[part]}
        pq.write_table(pa.table(table), folder / f"{split}-0.parquet")
    return x.nbytes


def floats(folder: Path) -> int:
    """The same as lists of 3,072 float32 in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    x = pictures(COUNT).astype(np.float32).reshape(COUNT, -1) / 255
    for split, part in (("train", slice(None)), ("test", slice(0, 1000))):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x[part].reshape(-1)), x.shape[1])
        told = {"shape": json.dumps({"shape": [3, 32, 32]})}
        table = pa.table({"x": lists, "label": (np.arange(COUNT) % 10)[part]}).replace_schema_metadata(told)
        pq.write_table(table, folder / f"{split}-0.parquet", compression="none", use_dictionary=False)
    return x.nbytes


def arrays(folder: Path, ending: str, count: int) -> int:
    """Pictures as one array of bytes, in `x.npy` and `y.npy`, or in a `.npz` that is not compressed."""
    block = pictures(COUNT)
    for split, size in (("train", count), ("test", 1000)):
        place = folder / split
        place.mkdir()
        x = np.lib.format.open_memmap(place / "x.npy", "w+", np.uint8, (size, *block.shape[1:]))
        for begin in range(0, size, COUNT):
            x[begin : begin + COUNT] = block[: size - begin]
        np.save(place / "y.npy", np.arange(size) % 10)
        if ending == "npz":
            np.savez(folder / f"{split}.npz", x=x, y=np.arange(size) % 10)
            (place / "x.npy").unlink()
            (place / "y.npy").unlink()
            place.rmdir()
    return count * block[0].nbytes


LARGE = GIGABYTE // (32 * 32 * 3)
CASES: dict[str, Callable[[Path], int]] = {
    "50,000 images as PNG in Parquet": encoded,
    "the same as lists of float32 in Parquet": floats,
    "1 GiB of bytes in `.npz`": lambda folder: arrays(folder, "npz", LARGE),
    "1 GiB of bytes in `.npy`": lambda folder: arrays(folder, "npy", LARGE),
}


def measured(folder: Path, cache: Path) -> dict[str, float]:
    """Read once in a process of its own."""
    env = os.environ | {"FEDBONSAI_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    if child.returncode:
        raise SystemExit(child.stderr[-1000:])
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    rows: list[dict[str, object]] = []
    print("| data | array, MB | peak, MB | of the array | again, MB | seconds, again |\n|---|---|---|---|---|---|")
    for name, make in CASES.items():
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
            folder, cache = Path(place) / "data", Path(place) / "cache"
            folder.mkdir()
            size = make(folder)
            once, again = measured(folder, cache), measured(folder, cache)
        rows.append({"data": name, "array": size, "first": once, "again": again})
        print(
            f"| {name} | {size / 1e6:.0f} | {once['peak'] / 1e6:.0f} | {once['peak'] / size:.2f} | {again['peak'] / 1e6:.0f} "
            f"| {once['seconds']:.1f}, {again['seconds']:.1f} |",
            flush=True,
        )
    if len(sys.argv) == 1:
        save("data_memory", {"bytes above torch": rows})


if __name__ == "__main__":
    main()

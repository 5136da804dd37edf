"""The folder of a run, and its checkpoint: everything that a resumed run needs, nothing written twice.

A checkpoint is a manifest plus one file for the server's state and one for each client memory that changed. The
manifest is replaced last and atomically, so a run that is killed at any instant continues from the last whole round.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedbonsai.core import SavedMemory
from fedbonsai.data.extras import extra
from fedbonsai.disk import writing
from fedbonsai.errors import BadMessage, ConfigError, Unwritable
from fedbonsai.lock import Lock, hold, holder
from fedbonsai.wire import OWN, decode, encode


@contextmanager
def reading(path: Path, then: str) -> Generator[None]:
    """Say in one line that a file is not what a run wrote there, and what to do ``then``.

    Raises:
        ConfigError: so it is.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, BadMessage) as error:  # of JSON, Parquet and our own format
        raise ConfigError(
            f"{path} is damaged: {' '.join(str(error).split()) or type(error).__name__}; {then}"
        ) from None


def write(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that after a crash either the old or the new content is there, never a part.

    Raises:
        Unwritable: the disk refused.
    """
    fresh = path.with_name(path.name + ".new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)  # a full disk needs its room
            raise
        entry = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


class Folder:
    """Files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.split = path / "split.json"
        self.metrics = path / "metrics.jsonl"
        self.info = path / "run.json"
        self.model = path / "model.safetensors"
        self.start = path / "start.safetensors"
        self.answers = path / "answers"
        self.lock = path / "run.lock"
        self._held: Lock | None = None

    @contextmanager
    def alone(self) -> Generator[None]:
        """Make the folder and be its only writer meanwhile; one that nothing came into is taken away again.

        Raises:
            ConfigError: another process writes here, or the folder cannot be written.
        """
        with writing(self.path):
            missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._held = hold(self.lock)
        if self._held is None:
            raise ConfigError(
                f"{self.path} is being written by {holder(self.lock)}; wait for its end, end that process, or choose "
                "another --name"
            )
        try:
            yield
        finally:
            self._held.close()
            with suppress(OSError):
                for each in missing:
                    each.rmdir()

    def check(self) -> None:
        """See that the folder is still the one that `alone` made.

        Raises:
            Unwritable: it was deleted, or another one lies there now.
        """
        if self._held is not None and self._held.lost():
            raise Unwritable(f"{self.path} was deleted or replaced while its run went on; run it again from the start")

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says, and as ``status`` what is so: how a run ended, ``running`` while it writes, else ``died``.

        A run that goes on says nothing of it in the file, where nobody could take it back once the process is killed.

        Raises:
            ConfigError: there is no such file, or it is damaged.
        """
        goes_on = holder(self.lock)
        known = self.noted()
        if known.get("status", "running") == "running":
            known["status"] = "running" if goes_on or holder(self.lock) else "died"
        return known

    def noted(self) -> dict[str, Any]:
        """What ``run.json`` says, word for word.

        Raises:
            ConfigError: there is no such file, or it is damaged.
        """
        if not self.info.exists():
            raise ConfigError(f"{self.path} holds no whole run (no {self.info.name}); was it deleted? Run it anew")
        with reading(self.info, "bring back a copy of it, or run it anew under another --name"):
            known: object = json.loads(self.info.read_text(encoding="utf-8"))
            if not isinstance(known, dict):
                raise ValueError(f"expected a table, it holds {known!r:.40}")
            return cast("dict[str, Any]", known)

    def rows(self) -> list[dict[str, Any]]:
        """Whole lines of the metrics file; one without its end is being written, or its writer was killed."""
        if not self.metrics.exists():
            return []
        found: list[dict[str, Any]] = []
        with reading(self.metrics, "bring back a copy of it, or run it anew under another --name"):
            for number, line in enumerate(self.metrics.read_text(encoding="utf-8").split("\n")[:-1]):
                row = json.loads(line)
                if row["round"] != number:
                    raise ValueError(f"line {number + 1} is of round {row['round'] + 1}")
                found.append(row)
        return found

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line to the metrics file and flush it to the disk."""
        self.check()
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def ledger(self, rows: list[dict[str, Any]], round: int) -> None:
        """Write the ledger's part of one round."""
        self._write_part("ledger", LEDGER, rows, round)

    def ledger_rows(self) -> Iterator[dict[str, Any]]:
        """All rows of the ledger."""
        return self._parts("ledger")

    def costs(self, rows: list[dict[str, Any]], round: int) -> None:
        """Write what the virtual clock booked in one round."""
        self._write_part("costs", COSTS, rows, round)

    def cost_rows(self) -> Iterator[dict[str, Any]]:
        """All that the virtual clock booked; nothing where there was none."""
        return self._parts("costs")

    def _write_part(self, table: str, columns: Mapping[str, str], rows: list[dict[str, Any]], round: int) -> None:
        self.check()
        pa, pq = extra("pyarrow"), extra("pyarrow.parquet")
        arrays = [_column(pa, kind, [row[name] for row in rows]) for name, kind in columns.items()]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), sink)
        # begin is round 0 here
        write(self.path / table / f"round-{round + 1:05d}.parquet", sink.getvalue().to_pybytes())

    def _parts(self, table: str) -> Iterator[dict[str, Any]]:
        pq = extra("pyarrow.parquet")  # which would look for a file's name in UTF-8, whatever the system calls it
        for part in sorted((self.path / table).glob("*.parquet")):
            with reading(part, "bring back a copy of it, or run it anew under another --name"):
                rows = cast("list[dict[str, Any]]", pq.read_table(BytesIO(part.read_bytes())).to_pylist())
            yield from rows

    def set_info(self, **facts: Any) -> dict[str, Any]:
        """Merge facts into ``run.json``; a status of None is taken away."""
        self.check()
        known = (self.noted() if self.info.exists() else {}) | facts
        if known.get("status", "") is None:
            del known["status"]
        write(self.info, json.dumps(known, indent=2).encode())
        return known


def _column(pa: Any, kind: str, values: list[Any]) -> Any:
    """Values as an Arrow array, by its buffers: given a list, Arrow would first import pandas, which takes half a second."""
    if kind != "string":
        data = np.array(values, kind)
        return pa.Array.from_buffers(getattr(pa, kind)(), len(values), [None, pa.py_buffer(data)])
    texts = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])


LEDGER = {
    "round": "int32",
    "attempt": "int32",
    "client": "string",
    "direction": "string",
    "kind": "string",
    "messages": "int32",
    "bytes": "int64",
}

COSTS = {
    "round": "int32",
    "attempt": "int32",
    "client": "string",  # empty in the row that holds how long an attempt took
    "profile": "string",
    "asks": "int32",
    "dropped": "int32",
    "elapsed": "float64",
    "down_seconds": "float64",
    "compute_seconds": "float64",
    "up_seconds": "float64",
    "idle_seconds": "float64",
    "joules": "float64",
    "macs": "int64",
    "kept_macs": "int64",
    "peak_memory": "int64",
}


class Checkpoint:
    """State and client memories after the last whole round."""

    def __init__(self, folder: Folder) -> None:
        self.path = folder.path / "checkpoint"
        self._folder = folder
        self._manifest: dict[str, Any] = {"round": None, "state": "", "memories": {}}

    def save(self, round: int, state: object, changed: Mapping[str, SavedMemory]) -> None:
        """Write what changed, then the manifest, then delete what it no longer names."""
        self._folder.check()
        memories: dict[str, str] = dict(self._manifest["memories"])
        stale = [self._manifest["state"], *(memories[id] for id in changed if id in memories)]
        for index, (id, kept) in enumerate(changed.items()):
            safe = "".join(char if char.isalnum() or char in "-_" else "_" for char in id)[:40]
            memories[id] = f"memory/{safe}-{index}-{kept.round}-{kept.attempt}.msg"
            write(self.path / memories[id], encode(kept))
        name = f"state-{round}.msg"
        write(self.path / name, encode(state))
        self._manifest = {"round": round, "state": name, "memories": memories}
        write(self.path / "manifest.json", json.dumps(self._manifest).encode())
        for old in {*stale} - {
            "",
            name,
            *(memories[id] for id in changed),
        }:  # a name has its client's round, so no other's
            (self.path / old).unlink(missing_ok=True)

    def load(self) -> tuple[int, Any, dict[str, SavedMemory]] | None:
        """Round, state and memories, or nothing if no round was ever finished; later leftovers are cut away.

        Raises:
            ConfigError: a file of the checkpoint is damaged.
        """
        manifest = self.path / "manifest.json"
        if not manifest.exists():
            return None
        with reading(self.path, "its rounds cannot go on; run it anew under another --name"):
            self._manifest = json.loads(manifest.read_text(encoding="utf-8"))
            last = int(self._manifest["round"])
            state = decode((self.path / self._manifest["state"]).read_bytes(), OWN)
            memories = {
                id: cast(SavedMemory, decode((self.path / name).read_bytes(), OWN))
                for id, name in self._manifest["memories"].items()
            }
        self._trim(last)
        return last, state, memories

    def _trim(self, last: int) -> None:
        folder = self._folder
        lines = [json.dumps(row) for row in folder.rows() if row["round"] <= last]
        if len(lines) <= last:
            raise ConfigError(
                f"{folder.metrics} has the lines of {len(lines)} rounds, the checkpoint is that of round {last + 1}: "
                "bring back a copy of it, or run it anew under another --name"
            )
        write(folder.metrics, "".join(line + "\n" for line in lines).encode())
        for part in [*folder.path.glob("ledger/round-*.parquet"), *folder.path.glob("costs/round-*.parquet")]:
            if int(part.stem.split("-")[1]) - 1 > last:
                part.unlink()

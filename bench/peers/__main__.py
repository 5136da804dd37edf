"""The same work here and elsewhere: ``python -m bench.peers``; docs/peers.md says how to install the others.

    python -m bench.peers --plan
    python -m bench.peers --flower-python PYTHON --pfl CHECKOUT --pfl-python PYTHON
    python -m bench.peers --fedpruning CHECKOUT --fedpruning-python PYTHON --seeds 1
    python -m bench.peers --write

Rows that were measured go to the results file, in place of rows of the same name and seed; all others stay. A peer that
is not here is skipped, with the reason. ``--write`` puts what bench/results has into docs/peers.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers.peers import ROOT, Peer, Places, described, peers
from bench.peers.shared import Work, accuracy
from bench.peers.table import PAGE, markdown, section, written
from bench.peers.watched import watch
from bench.peers.work import Settings, write
from bench.record import facts as machine

RESULTS = ROOT / "bench" / "results" / "peers.json"


def measured(peer: Peer, work: Path, folder: Path, limit: float) -> dict[str, Any]:
    """Run one peer on one file of work, and judge what it leaves.

    Raises:
        RuntimeError: it left no result; the text has the end of what it printed.
    """
    folder.mkdir()
    took = watch(peer.command(work, folder), peer.environment(), folder, limit)
    if not (folder / "facts.json").exists():
        why = f"ended after {limit:.0f} s" if took.status is None else f"exit status {took.status}"
        said = (folder / "output.txt").read_text(errors="replace", encoding="utf-8").strip().splitlines()[-12:]
        raise RuntimeError("\n    ".join([why, *said]))
    return judged(peer, Work(work), folder) | asdict(took)


def judged(peer: Peer, work: Work, folder: Path) -> dict[str, Any]:
    """Test accuracy and kept weights of a result, and what the adapter knows."""
    weights = {name: torch.from_numpy(value) for name, value in np.load(folder / "weights.npz").items()}
    moved = [value for name, value in weights.items() if not name.endswith(("running_mean", "running_var"))]
    return {
        **json.loads((folder / "facts.json").read_text(encoding="utf-8")),
        "accuracy": accuracy(peer.norm, weights, work),
        "kept": sum(int(value.count_nonzero()) for value in moved) / sum(value.numel() for value in moved),
    }


def apart(one: Path, other: Path) -> float:
    """Largest difference between the final weights of two results."""
    a, b = np.load(one / "weights.npz"), np.load(other / "weights.npz")
    return max(float(np.abs(a[name] - b[name]).max()) for name in a.files)


def planned(those: Sequence[Peer], seeds: Sequence[int], how: Settings) -> dict[str, str]:
    """Print what will run and what will not; the reasons, by name."""
    print(
        f"{how.data}, {how.clients} clients, {how.rounds} rounds of {how.steps} steps, batch {how.batch}, "
        f"seeds {', '.join(map(str, seeds))}"
    )
    reasons = {peer.name: peer.missing() for peer in those}
    for peer in those:
        reason = reasons[peer.name]
        print(f"  {peer.group:<8} {peer.name:<58} {f'skipped: {reason}' if reason else 'runs'}", flush=True)
    return reasons


def run(those: Sequence[Peer], seeds: Sequence[int], how: Settings, file: Path, limit: float) -> int:
    """Run all that can run, one after another, and keep each row as soon as it is there; how many failed."""
    reasons, failed = planned(those, seeds, how), 0
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            write(how, seed, place / "work.npz")
            first: dict[str, Path] = {}
            for number, peer in enumerate(those):
                if reasons[peer.name]:
                    continue
                folder = place / str(number)
                try:
                    row = measured(peer, place / "work.npz", folder, limit)
                except RuntimeError as error:
                    failed += 1
                    print(f"  {peer.name}, seed {seed}: failed, {error}", flush=True)
                    continue
                if peer.group == "FedAvg":
                    row["apart"] = apart(first.setdefault(peer.group, folder), folder)
                    row["apart_from"] = next(p.name for n, p in enumerate(those) if place / str(n) == first["FedAvg"])
                keep(file, how, peer, seed, row)
                print(f"  {peer.name}, seed {seed}: {100 * row['accuracy']:.2f} %, {row['seconds']:.1f} s", flush=True)
    return failed


def keep(file: Path, how: Settings, peer: Peer, seed: int, row: dict[str, Any]) -> None:
    """Put one row into the file, with where and by what it was measured."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"work": asdict(how), "rows": []}
    key = {"name": peer.name, "group": peer.group, "seed": seed}
    about = {"booked": peer.booked, "code": dict(described(peer)), "measured": machine()}
    rows = [each for each in found["rows"] if any(each[part] != value for part, value in key.items())]
    rows.append({**key, **about, **row})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"work": found["work"], "rows": rows}, indent=1) + "\n", encoding="utf-8")


def absolute(path: str) -> str:
    """A path as it is from any folder; a bare name is looked up on the system's path."""
    return str(Path(path).expanduser().absolute()) if "/" in path or (path and Path(path).is_dir()) else path


def other_work(file: Path, how: Settings) -> bool:
    """Whether a file holds rows of other work."""
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["work"] != asdict(how)


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 0 if all that could run did."""
    parser = argparse.ArgumentParser(prog="bench.peers", description=(__doc__ or "").splitlines()[0])
    for place in fields(Places):
        parser.add_argument(f"--{place.name.replace('_', '-')}", default=place.default, metavar="PATH")
    for setting in fields(Settings):
        kind = type(setting.default)
        parser.add_argument(f"--{setting.name}", type=kind, default=setting.default, metavar=kind.__name__.upper())
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first of the seeds")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="rows whose names contain one of these")
    parser.add_argument("--limit-seconds", type=float, default=300, metavar="S", help="of each run")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--plan", action="store_true", help="say what would run, and stop")
    parser.add_argument("--write", action="store_true", help="write the committed rows into docs/peers.md")
    args = parser.parse_args(words)
    if args.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), section(RESULTS.parent)), encoding="utf-8")
        print("wrote docs/peers.md")
        return 0
    how = Settings(**{setting.name: getattr(args, setting.name) for setting in fields(Settings)})
    places = Places(**{place.name: absolute(getattr(args, place.name)) for place in fields(Places)})
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    those = [p for p in peers(places, how.clients) if not args.only or any(text in p.name for text in args.only)]
    if args.plan:
        planned(those, seeds, how)
        return 0
    if other_work(args.out, how):
        parser.exit(2, f"{args.out} holds rows of other work; give these settings a file of their own: --out FILE\n")
    failed = run(those, seeds, how, args.out, args.limit_seconds)
    if args.out.exists():
        print(f"\n{markdown(json.loads(args.out.read_text(encoding='utf-8')))}\n\nrows are in {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

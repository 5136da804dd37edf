"""A federation's folder as its processes leave it, with as many devices as wanted, written by the code that writes it."""

import json
import math

import tomli_w

from fedbonsai.core import Answer, Device, Scope, Silence
from fedbonsai.fleets.flower import certificates
from fedbonsai.fleets.flower.federation import Federation
from fedbonsai.fleets.flower.logbook import Logbook, logbook_of
from fedbonsai.runs.flower import result_of
from fedbonsai.runs.folder import Folder

NOW = 1_780_000_000.0
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&quot;'\x1b[31m\n"


def federation_in(folder, names=(), seen=None):
    """A federation that let these devices in."""
    certificates.make_server(folder, ["localhost"])
    made = Federation(folder)
    for each in (made.devices, made.jobs):
        each.mkdir()
    known = {name: {"key": f"ecdsa-sha2-nistp384 {name}", "node": str(number)} for number, name in enumerate(names)}
    made.known.write_text(json.dumps(known))
    made.seen.write_text(json.dumps(seen or {}))
    return made


def run_in(federation, name, rounds=0, *, of=30, status=None, reason="", method="averaging", **more):
    """A run that was handed in and has so many rounds behind it; its job's file."""
    folder = Folder(federation.folder.parent / "runs" / name)
    folder.path.mkdir(parents=True)
    job = federation.jobs / f"{name}-0a1b2c3d.toml"
    job.write_text(tomli_w.dumps({"folder": str(folder.path), "config": {"rounds": of, "method": {"name": method}}}))
    if rounds or status:
        folder.set_info(metric="accuracy", status=status, reason=reason)
    for t in range(rounds):
        moved = {"total_bytes_down": 3000 * (t + 1), "total_bytes_up": 1000 * (t + 1)}
        good = {"accuracy": 0.9 - 0.8 * math.exp(-t / 6), "loss": 2.3 * math.exp(-t / 8)}
        folder.append(
            {"round": t, "skipped": False, "seconds": 4.5, "answered": 195, "silent": 0, **moved, **good, **more}
        )
    if status in ("finished", "failed"):
        result_of(job).write_text(json.dumps({"status": status, "reason": reason}))
    return job


def many(folder, count=200, now=NOW, said=HOSTILE):
    """A federation of many devices, some away, one refused, one that says hostile things, and three runs."""
    names = [f"pi-{number:03}" for number in range(count)]
    seen = dict.fromkeys(names[: count - 5], now - 2) | {names[-5]: now - 7200.0, names[-4]: now - 400.0}
    federation = federation_in(folder, names, seen)
    (federation.devices / "pi-new.pub").write_text("ecdsa-sha2-nistp384 AAAA")
    run_in(federation, "fedavg-mnist-0", 30, status="finished")
    run_in(
        federation,
        "fedtiny-mnist-0",
        4,
        status="failed",
        reason="3 rounds in a row brought no update",
        method="fedtiny",
    )
    job = run_in(
        federation, "prunefl-mnist-0", 12, method="prunefl", silent=1, reasons=[{"client": names[7], "reason": said}]
    )
    book = Logbook(logbook_of(job))
    for number, name in enumerate(names[: count - 4]):
        book.met(name, "0.1.0", "aarch64" if number % 3 else "x86_64", 540, 60)
        for t in range(12):
            item = Answer(Device(name), None, 61_000, 9_000)
            if number == 7 and t == 11:
                item = Silence(Device(name), said, 61_000)
            list(book.heard(iter([item]), Scope("r", 0, t, 0), {name: 2.0 + number / 50}))
    book.met("pi-003", "0.0.9", "armv7l", 0, 0)
    book.refused(
        "pi-003", "has fedbonsai 0.0.9, this server 0.1.0; on the device: pip install 'fedbonsai[flower]==0.1.0'"
    )
    for entry in book.entries.values():
        entry.met, entry.error_at, entry.answered_at = now - 60, now - 5 if entry.error else 0.0, now - 30
    book.write()
    return federation

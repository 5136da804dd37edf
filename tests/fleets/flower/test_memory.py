"""Memory in files: what is read is what was written, or the device says that it forgot."""

import os
import resource
from dataclasses import replace

import pytest
import torch

from fedbonsai.errors import BadMessage, ConfigError, Silent
from fedbonsai.fleets.envelope import Envelope
from fedbonsai.fleets.flower.memory import RUNS, Lost, Slot, Store

HEAD = Envelope("run", 3, 0, 0, "test/count", "00", 1, (2, 0))


def test_what_is_read_is_what_was_written_and_only_its_owner_may_read_it(tmp_path):
    store = Store(tmp_path / "memory")
    held = {"calls": 2, "residual": torch.arange(5.0)}
    slot = store.save(HEAD, None, held)
    again = Store(tmp_path / "memory").load("run", slot)
    assert again["calls"] == 2
    assert torch.equal(again["residual"], held["residual"])
    assert (tmp_path / "memory").stat().st_mode & 0o077 == 0
    (file,) = (tmp_path / "memory" / "run").iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_no_memory_needs_no_file_but_one_that_became_empty_does(tmp_path):
    store = Store(tmp_path)
    assert store.load("run", None) == {}
    assert store.save(HEAD, None, {}) is None
    assert list(tmp_path.iterdir()) == []
    first = store.save(HEAD, None, {"calls": 1})
    assert store.load("run", store.save(HEAD, first, {})) == {}


def test_a_damaged_or_missing_memory_is_forgotten_and_never_read(tmp_path):
    store = Store(tmp_path)
    slot = store.save(HEAD, None, {"calls": 1})
    file = tmp_path / "run" / slot.name
    whole = file.read_bytes()
    for damage in (whole[:-1], b"", whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0"):
        file.write_bytes(damage)
        with pytest.raises(Lost, match="damaged"):
            store.load("run", slot)
    file.unlink()
    with pytest.raises(Lost, match="round 3 is not here"):
        store.load("run", slot)
    with pytest.raises(Lost):
        store.load("another", slot)


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path):
    store = Store(tmp_path)
    before = store.save(HEAD, None, {"calls": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(Silent, match=r"cannot be written .* free some space"):
            store.save(replace(HEAD, ask=1), before, {"residual": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in (tmp_path / "run").iterdir()] == [before.name]
    assert store.load("run", before) == {"calls": 1}


def test_slots_older_than_the_accepted_one_go_and_those_that_may_be_named_stay(tmp_path):
    store = Store(tmp_path)

    def save(round, attempt, ask):
        return store.save(replace(HEAD, round=round, attempt=attempt, ask=ask), None, {"at": (round, attempt, ask)})

    old, other, accepted = save(1, 0, 0), save(2, 1, 0), save(2, 0, 5)
    first, second = save(3, 0, 0), save(3, 0, 1)
    store.tidy(replace(HEAD, ask=2), second)  # HEAD names (2, 0) as accepted
    there = {file.name for file in (tmp_path / "run").iterdir()}
    assert there == {accepted.name, second.name}
    assert not {old.name, other.name, first.name} & there


def test_memories_of_old_runs_go(tmp_path):
    store = Store(tmp_path)
    for number in range(RUNS + 2):
        head = replace(HEAD, run=f"run-{number}")
        store.save(head, None, {"calls": 1})
        (tmp_path / head.run).touch()
        os.utime(tmp_path / head.run, (number, number))
    store.tidy(HEAD, None)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"run-{n}" for n in range(2, RUNS + 2)]


@pytest.mark.parametrize("run", ["", "..", "a/b", "../../etc", "x" * 65, "a\0b", "."])
def test_no_run_names_a_folder_elsewhere(tmp_path, run):
    store = Store(tmp_path / "memory")
    with pytest.raises(BadMessage):
        store.save(replace(HEAD, run=run), None, {"calls": 1})
    with pytest.raises(BadMessage):
        store.load(run, Slot(0, 0, 0, "0" * 32))
    with pytest.raises(ValueError, match="slot"):
        Slot(0, 0, 0, "../" + "0" * 29)


def test_a_folder_that_cannot_be_made_is_a_clear_fault(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose a folder"):
        Store(tmp_path / "file" / "memory")


def test_a_file_that_goes_away_meanwhile_does_not_stop_the_tidying(tmp_path):
    store = Store(tmp_path)
    slot = store.save(HEAD, None, {"calls": 1})
    for folder in (tmp_path, tmp_path / "run"):
        (folder / "0-gone").symlink_to(tmp_path / "nowhere")  # listed, and not there when it is looked at
    store.tidy(HEAD, slot)
    assert store.load("run", slot) == {"calls": 1}


def test_tidying_removes_nothing_outside_of_its_folder(tmp_path):
    store = Store(tmp_path / "memory")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tmp_path / "memory" / "old").symlink_to(outside)
    os.utime(outside, (0, 0))
    for number in range(RUNS + 1):
        store.save(replace(HEAD, run=f"run-{number}"), None, {"calls": 1})
    store.tidy(replace(HEAD, run="run-1"), None)
    assert (outside / "file").exists()


def test_two_runs_at_once_keep_their_memories_apart(tmp_path):
    store = Store(tmp_path)
    heads = [replace(HEAD, run=run, round=round, base=(round - 1, 0)) for run, round in (("a", 9), ("b", 1))]
    slots = [store.save(head, None, {"of": head.run}) for head in heads]
    for head, slot in zip(heads, slots, strict=True):
        store.tidy(head, slot)
    assert [store.load(head.run, slot) for head, slot in zip(heads, slots, strict=True)] == [{"of": "a"}, {"of": "b"}]

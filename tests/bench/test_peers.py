"""The benchmark beside other projects: the common work, who can run, what a command took, and the table."""

import json
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench.peers import of_flower, table, watched
from bench.peers.__main__ import absolute, apart, judged, keep, main
from bench.peers.of_fedbonsai import method_of, settings_of
from bench.peers.peers import Places, peers, unimportable
from bench.peers.shared import Clock, Passes, Work, accuracy, leave, network
from bench.peers.watched import PROC, watch
from bench.peers.work import NORMS, Settings, arch, write

from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.fleets.flower.grid import run_in_process
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.model import Model
from fedbonsai.training.batches import batches
from fedbonsai.tree import seed_of
from tests.moments import HANGS

SMALL = Settings(clients=3, rounds=2, steps=3)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("work") / "work.npz"
    write(SMALL, 1, file)
    return file


@pytest.fixture
def work(file):
    return Work(file)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.slow
def test_the_plain_network_is_that_of_the_zoo(norm, work):
    model = Model.init(arch(norm, 8), 1)
    plain, x = network(norm, work.weights(norm)), work.test()[0][:5]
    assert all(torch.equal(value, work.weights(norm)[name]) for name, value in model.weights.items())
    assert torch.equal(plain.eval()(x), model.build().eval()(x))
    assert sum(p.numel() for p in plain.parameters()) == table.PARAMETERS


def test_batches_are_those_that_the_library_would_take(work):
    id = work.facts["ids"][2]
    samples = Samples(*work.samples(2))
    me = Client(id, seed_of(1, id, 1, 0), samples, samples)
    ours = list(batches(me, SMALL.sgd))
    for mine, (x, y) in zip(ours, work.batches(1, 2), strict=True):
        assert torch.equal(mine.x, x)
        assert torch.equal(mine.y, y)
    assert len(ours) == SMALL.steps


def test_only_whole_passes_count_as_rounds(work):
    passes = Passes(work, 0)

    def same(found, t):
        return all(torch.equal(a[0], b[0]) for a, b in zip(found, work.batches(t, 0), strict=True))

    assert same(list(passes), 0)
    next(iter(passes))  # as a trainer does that wants one batch for a gradient
    assert same(list(passes), 1)
    assert same(list(passes), 0)  # after the last round it begins again


@pytest.mark.slow
def test_the_library_and_flowers_fedavg_end_at_the_same_weights(file, work, tmp_path):
    people = [Client(work.facts["ids"][k], 0, *[Samples(*work.samples(k))] * 2) for k in work.clients]
    fleet, method = LocalFleet(people), method_of("fedavg", settings_of(work.facts))
    state = method.begin(Model.init(arch("group", 8), 1), fleet, people[0])
    for t in range(work.rounds):
        with scope(fleet, Scope("peers", 1, t, 0)):
            state = method.round(state, t, fleet)
            fleet.commit()
    folders = [tmp_path / name for name in ("ours", "flower")]
    for folder in folders:
        folder.mkdir()
    leave(folders[0], method.model(state).weights, Clock())
    run_in_process(
        of_flower.server_app(work, folders[1], Clock()),
        of_flower.client_app(file),
        {k + 1: {"partition-id": k} for k in work.clients},
    )
    assert 0 < apart(*folders) < 1e-5  # the order of the sums differs
    facts = json.loads((folders[1] / "facts.json").read_text())
    models = 4 * table.PARAMETERS * work.rounds * len(work.clients)
    assert all(models < facts[way] < 1.05 * models for way in ("up", "down"))
    assert len(facts["round_seconds"]) == work.rounds


def test_a_result_is_judged_on_the_test_set_and_by_its_weights_that_are_not_zero(work, tmp_path):
    weights = work.weights("batch")
    pruned = {
        name: value * (value.abs() > 0.1) if name.endswith("conv.weight") else value for name, value in weights.items()
    }
    leave(tmp_path, pruned, Clock(), up=3)
    peer = next(p for p in peers(Places(), 3) if p.norm == "batch")
    found = judged(peer, work, tmp_path)
    assert found["accuracy"] == accuracy("batch", pruned, work)
    assert found["up"] == 3
    parameters = dict(network("batch", pruned).named_parameters())
    zero = sum(int((value == 0).sum()) for value in parameters.values())
    assert found["kept"] == pytest.approx(1 - zero / table.PARAMETERS)


# --- who can run -----------------------------------------------------------------------------------------------------


def why(name, **places):
    return next(p for p in peers(Places(**places), 10) if p.name == name).missing()


@pytest.mark.slow
def test_a_missing_peer_says_what_is_missing_and_what_to_do(tmp_path):
    assert "give --fedpruning PATH" in why("FedPruning, fedavg")
    assert "github.com/apple/pfl-research and give --pfl PATH" in why("pfl-research")
    assert "no such folder" in why("pfl-research", pfl=str(tmp_path / "nowhere"))
    assert "install an MPI" in why("FedPruning, fedavg", fedpruning=str(tmp_path), mpirun="no-such-mpirun")
    assert "no such Python" in why("Flower on Ray", flower_python=str(tmp_path / "python"))
    (tmp_path / "pfl").mkdir()
    assert "No module named 'pfl.model'" in why("pfl-research", pfl=str(tmp_path))


def test_what_cannot_be_imported_is_named():
    assert unimportable(sys.executable, ("json",)) == ""
    assert "No module named 'no_such_thing'" in unimportable(sys.executable, ("json", "no_such_thing"))


def test_a_plan_names_what_runs_and_what_does_not(capsys, tmp_path):
    out = tmp_path / "out.json"
    assert main(["--plan", "--only", "pfl", "pool", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "fedbonsai, pool of 2" in said
    assert "skipped: no checkout of pfl-research" in said
    assert not out.exists()


def test_paths_are_those_of_the_folder_in_which_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkout").mkdir()
    assert absolute("checkout") == str(tmp_path / "checkout")
    assert absolute("env/bin/python") == str(tmp_path / "env/bin/python")
    assert [absolute(name) for name in ("mpirun", "")] == ["mpirun", ""]


def test_other_work_gets_no_row_in_a_file(tmp_path):
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"work": {"rounds": 1}, "rows": []}))
    with pytest.raises(SystemExit):
        main(["--out", str(out)])
    assert json.loads(out.read_text())["rows"] == []


# --- what a command took ---------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not PROC.exists(), reason="reads /proc")
CHILD = """
import os, signal, time
held, ready = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # nobody waits for this one: {mark}
        memory, begin = bytearray(80_000_000), time.process_time()
        for i in range(0, len(memory), 4096):
            memory[i] = 1
        while time.process_time() - begin < 0.4:
            pass
        os.write(ready, b"x")
        signal.pause()
    os._exit(0)
os.wait()
os.read(held, 1)
{then}
"""


def child(then):
    """A command that leaves one process behind which has worked and now stays; and what the processes are known by."""
    mark = uuid.uuid4().hex
    return [sys.executable, "-c", CHILD.format(mark=mark, then=then)], mark


@pytest.fixture
def looks(monkeypatch, tmp_path):
    """A file that grows by a byte with every look at the processes of a command."""
    look, file = watched.Family.look, tmp_path / "looks"
    file.touch()

    def noted(family):
        left = look(family)
        with file.open("a") as end:
            end.write(".")
        return left

    monkeypatch.setattr(watched.Family, "look", noted)
    return file


@pytest.mark.slow
@linux
def test_all_processes_of_a_command_are_counted_even_those_that_left_it(tmp_path, looks):
    looked = f"os.path.getsize({str(looks)!r})"
    command, _ = child(f"seen = {looked}\nwhile {looked} < seen + 2:\n    time.sleep(0.1)")  # one look began after it
    took = watch(command, {}, tmp_path, HANGS)
    assert took.status == 0
    assert took.processor > 0.3
    assert took.memory > 80_000_000
    assert took.processes >= 2
    assert took.seconds > 0.4  # what one of them computed, and the command waited for


@linux
def test_a_command_that_takes_too_long_is_ended_with_what_it_left(tmp_path, monkeypatch):
    command, mark = child(f"open({str(tmp_path / 'ready')!r}, 'w').close()\nsignal.pause()")
    real = watched.time.perf_counter
    late = SimpleNamespace(sleep=time.sleep, perf_counter=lambda: real() + HANGS * (tmp_path / "ready").exists())
    monkeypatch.setattr(watched, "time", late)  # the limit is over as soon as all of its processes are there
    took = watch(command, {"X": "1"}, tmp_path, HANGS)
    assert took.status is None
    until = time.monotonic() + HANGS
    while [p for p in PROC.glob("[0-9]*/cmdline") if mark.encode() in _bytes(p)]:  # killed ones need a moment to go
        assert time.monotonic() < until
        time.sleep(0.05)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- the table -------------------------------------------------------------------------------------------------------

ROW = {
    "name": "who", "group": "FedAvg", "seed": 0, "booked": "ledger", "code": {"project": "a", "commit": "123"},
    "measured": {"machine": {"processor": "P", "cores": 2}, "commit": "c", "date": "d"},
    "versions": {"torch": "2"}, "round_seconds": [1.0, 2.0], "accuracy": 0.5, "kept": 1.0,
    "seconds": 4.0, "processor": 6.0, "memory": 2_000_000, "processes": 2, "up": 1_000_000, "down": 3_000_000,
}  # fmt: skip


def test_a_row_has_means_over_seeds_and_the_spread_of_accuracy():
    other = ROW | {"seed": 1, "accuracy": 0.6, "seconds": 6.0, "up": 2_000_000, "processes": 3}
    line = table.line("who", [ROW, other], {"rounds": 1, "clients": 1})
    assert line == "| who | 2 | 55.00 ± 7.07 | 1.000 | 1.50 | 3.00 | 5.0 | 3.0 | 6.0 | 2 | 3 |  |"


def test_who_sends_nothing_has_an_estimate_that_is_called_one():
    silent = {key: value for key, value in ROW.items() if key not in ("up", "down")}
    line = table.line("who", [silent | {"memory": None}], {"rounds": 20, "clients": 10})
    assert line.count("none (estimate 19.25)") == 2  # 4 bytes x 24,058 x 20 x 10
    assert "not measured" in line


def test_a_row_takes_the_place_of_the_same_name_and_seed(tmp_path):
    out, peer = tmp_path / "out.json", peers(Places(), 10)[0]
    for seed, value in ((0, 0.1), (1, 0.2), (0, 0.3)):
        keep(out, SMALL, peer, seed, {"accuracy": value})
    rows = json.loads(out.read_text())["rows"]
    assert sorted((row["seed"], row["accuracy"]) for row in rows) == [(0, 0.3), (1, 0.2)]
    assert {row["name"] for row in rows} == {"fedbonsai, one process"}


def test_agreement_is_the_largest_distance_of_a_short_run():
    rows = [
        ROW | {"name": name, "apart": apart, "apart_from": "who"}
        for name, apart in (("who", 0), ("b", 2e-7), ("a", 4e-7))
    ]
    said = table.agreement({"work": {"rounds": 3}, "rows": [*rows, ROW | {"group": "FedTiny"}]})
    assert said == "After 3 rounds the weights of all rows of FedAvg are at most 4e-07 from those of who (a, b)."


def test_the_page_has_the_committed_results():
    text = table.section(table.PAGE.parents[1] / "bench" / "results")
    assert table.held(table.PAGE.read_text()) == text, "run: python -m bench.peers --write"
    with pytest.raises(ValueError, match="markers"):
        table.written("no place", text)


@pytest.mark.slow
def test_a_row_from_its_command_to_the_table(tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["--only", "one process", "in-process", "--seeds", "1", "--clients", "3", "--rounds", "2", "--steps", "2"]
    assert main([*words, "--out", str(out)]) == 0
    assert "| fedbonsai, one process | 1 |" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["fedbonsai, one process"]["apart"] == 0
    assert 0 < rows["Flower on our in-process Grid"]["apart"] < 1e-5
    assert np.isfinite(rows["fedbonsai, one process"]["accuracy"])

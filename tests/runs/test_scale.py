"""What a run's start imports, and what grows with clients that are registered but not asked."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.registry import find_method, methods
from fedbonsai.runs import recipes
from fedbonsai.runs.folder import COSTS, LEDGER, Folder
from fedbonsai.runs.run import execute

BEGUN = """
import sys
from fedbonsai.cli import main
from fedbonsai.fleets.local import LocalFleet
opened = LocalFleet.open
def noted(fleet, scope):
    if scope.round == 0:
        print("IMPORTED", *sys.modules)
    opened(fleet, scope)
LocalFleet.open = noted
main(["run", "fedavg", "--rounds", "1", "--runs", sys.argv[1], "--quiet"])
"""
NOT_WANTED = {  # by a run of FedAvg on digits whose split was drawn before
    *("pandas", "datasets", "flwr", "flwr_datasets", "sklearn", "scipy", "matplotlib", "PIL", "torchmetrics"),
    *("torchvision", "numba", "greenlet", "optuna", "tensorboard", "mlflow", "ray", "onnx", "peft", "transformers"),
    *("torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "pyarrow.compute", "pyarrow.dataset"),
    *("fedbonsai.fleets.flower", "fedbonsai.training.stacked.fit", "fedbonsai.export", "fedbonsai.reports"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Modules that are there when the first round of a run begins, its split and data being in the cache."""
    for name in ("before", "after"):
        words = [sys.executable, "-c", BEGUN, str(tmp_path_factory.mktemp(name))]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(next(line for line in done.stdout.splitlines() if line.startswith("IMPORTED")).split()[1:])


@pytest.mark.slow
def test_a_run_begins_without_what_it_does_not_need(begun):
    assert "fedbonsai.runs.loop" in begun
    assert sorted(begun & NOT_WANTED) == []


def test_a_run_begins_without_other_methods(begun):
    rooms = {name.split(".")[2] for name in begun if name.startswith("fedbonsai.methods.")}
    # split is there for states of earlier releases
    assert rooms == {"averaging", "split", "registry"}


def test_a_method_is_found_by_its_name_however_its_room_is_called():
    for name, made in methods().items():
        assert find_method(name) is made
    assert find_method("static_mask") is None, "a room's name is no method's"


@pytest.mark.slow
def test_a_shipped_name_is_taken_before_its_room_is_imported():
    code = (
        "from fedbonsai.methods.registry import method, method_class\n"
        "method('feddst')(type('Mine', (), {'__module__': 'mine'}))\n"
        "method_class('feddst')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "method 'feddst' is taken" in done.stderr


EACH = 4  # samples of a client


def federation(place, registered):
    """A run's configuration: so many clients of four pictures, of whom ten are asked a round."""
    random = np.random.default_rng(0)
    for part, count in {"train": EACH * registered, "test": 40}.items():
        who = np.char.add("c", np.arange(count).__floordiv__(EACH).astype(str))
        np.savez(
            place / f"{part}.npz", x=random.integers(0, 256, (count, 8, 8), np.uint8), y=np.arange(count) % 4, who=who
        )
    return recipes.load(
        "fedavg",
        overrides={
            "data.path": str(place), "data.client": "who", "data.partition": "natural", "data.clients": registered,
            "rounds": 3, "method.cohort": 10, "model.name": "mlp", "model.options": {"widths": [8]}, "data.minimum": 2,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """By number of registered clients: calls of functions in the last round but one, and the run's folder."""
    found = {}
    for registered in (100, 1100):
        place = tmp_path_factory.mktemp(str(registered))
        (place / "data").mkdir()
        calls = [0, 0, 0]
        now = []
        opened = LocalFleet.open

        def counted(fleet, scope, opened=opened, now=now):
            now[:] = [scope.round] if scope.round >= 0 else []
            opened(fleet, scope)

        def count(frame, event, arg, calls=calls, now=now):
            if now and event in ("call", "c_call"):
                calls[now[0]] += 1

        config = federation(place / "data", registered)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalFleet, "open", counted)
            sys.setprofile(count)
            try:
                run = execute(config, place / "run")
            finally:
                sys.setprofile(None)
        found[registered] = calls[1], run
    return found


@pytest.mark.slow
def test_a_client_that_is_not_asked_costs_a_round_a_few_calls(grown):
    few, many = (calls for calls, _ in grown.values())
    assert few > 1000
    # its validation part is judged in every round: a look at its length, and its samples in one batch with all others
    assert (many - few) / 1000 < 15


@pytest.mark.slow
def test_checkpoint_and_ledger_do_not_grow_with_clients_that_are_not_asked(grown):
    sizes = []
    for _, run in grown.values():
        assert len(run.metrics) == 3
        sizes.append(
            [sum(file.stat().st_size for file in (run.path / part).iterdir()) for part in ("checkpoint", "ledger")]
        )
    few, many = sizes
    assert many[0] <= 1.01 * few[0]
    assert many[1] <= 1.1 * few[1], "longer names are all that it has more"


@pytest.mark.parametrize("count", [0, 1, 300])
@pytest.mark.parametrize(("table", "columns"), [("ledger", LEDGER), ("costs", COSTS)])
def test_tables_are_written_as_arrow_would_from_a_list(table, columns, count, tmp_path):
    values = {"string": "grüße {}".format, "float64": lambda i: i / 3, "int64": lambda i: i << 40, "int32": lambda i: i}
    rows = [{name: values[kind](i) for name, kind in columns.items()} for i in range(count)]
    getattr(Folder(tmp_path), table)(rows, 0)
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.items()])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    assert (tmp_path / table / "round-00001.parquet").read_bytes() == sink.getvalue().to_pybytes()

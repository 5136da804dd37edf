"""What TensorBoard and MLflow read back is what the metrics file says."""

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.run import execute
from fedbonsai.runs.writers import flat, scalars, writer

SMALL = {"rounds": 2, "data.clients": 3, "data.limit": 120, "model.name": "mlp", "model.options": {"widths": [8]}}


def test_numbers_are_taken_and_texts_left():
    row = {"round": 3, "accuracy": 0.5, "skipped": False, "unanswered": ["x"], "layers": {"a": 0.25}}
    assert scalars(row) == {"accuracy": 0.5, "skipped": 0.0, "layers/a": 0.25}
    assert flat({"a": {"b": 1, "c": [2]}, "d": "e"}) == {"a.b": "1", "a.c": "[2]", "d": "e"}


def test_unknown_writers_are_named(tmp_path):
    with pytest.raises(ConfigError, match="expected one of tensorboard, mlflow"):
        writer("wandb", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_the_curve(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    run = execute(recipes.load("fedavg", "", SMALL), folder, observers=[writer("tensorboard", folder)])
    read = events.EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in read.Scalars("accuracy")] == [
        (row["round"] + 1, row["accuracy"]) for row in run.metrics
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_settings_and_curve(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path / "run"
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    run = execute(recipes.load("fedavg", "", SMALL), folder, observers=[writer("mlflow", folder)])
    client = mlflow.MlflowClient(uri)
    id = (folder / "mlflow.id").read_text()
    assert client.get_run(id).data.params["model.name"] == "mlp"
    history = client.get_metric_history(id, "accuracy")
    assert [(m.step, m.value) for m in history] == [(row["round"] + 1, row["accuracy"]) for row in run.metrics]

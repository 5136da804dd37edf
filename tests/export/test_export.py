"""Exported files run in their own runtimes and say what the trained model says."""

import re
import shutil

import onnx
import pytest
import torch
from safetensors import safe_open
from torch import nn

import fedbonsai
from fedbonsai.arch import Arch, network
from fedbonsai.cli import main
from fedbonsai.core import Samples
from fedbonsai.errors import ConfigError
from fedbonsai.export.compact import load, save
from fedbonsai.export.formats import FORMATS, format_named
from fedbonsai.export.parity import compare
from fedbonsai.export.personal import owners
from fedbonsai.export.trained import Trained
from fedbonsai.model import Model


def sparse(density: float = 0.05, seed: int = 0) -> Model:
    """A network most of whose weights are zero."""
    model = Model.init(Arch("mlp", {"channels": 1, "size": 8, "classes": 10, "widths": (64, 32)}), seed)
    random = torch.Generator().manual_seed(seed)
    return model.replace(
        {
            name: value * (torch.rand(value.shape, generator=random) < density) if value.dim() > 1 else value
            for name, value in model.weights.items()
        }
    )


def test_a_compact_file_gives_the_same_weights_back(tmp_path):
    model = sparse()
    save(model, tmp_path / "m.bonsai", notes={"mean": "[0.3]"})
    back = load(tmp_path / "m.bonsai")
    assert back.arch == model.arch
    assert all(torch.equal(back.weights[name], value) for name, value in model.weights.items())
    dense = sum(4 * value.numel() for value in model.weights.values())
    # at 5 %: 4 bytes a value and less than a byte for its position, instead of 80 bytes of zeros
    assert (tmp_path / "m.bonsai").stat().st_size < 0.12 * dense


def test_8_bit_values_are_within_half_a_step(tmp_path):
    model = sparse()
    save(model, tmp_path / "m.bonsai", "int8")
    back = load(tmp_path / "m.bonsai")
    for name, value in model.weights.items():
        if value.dim() > 1:
            assert float((back.weights[name] - value).abs().max()) <= float(value.abs().max()) / 127 / 2 * 1.001


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8"])
def test_a_compact_file_keeps_every_type(tmp_path, values):
    model = sparse()
    weights = {
        "a": torch.randn(30, 20).bfloat16(),
        "b": torch.randn(30, 20).half(),
        "c": torch.randn(30, 20),
        "d": torch.arange(300) - 150,
        "e": torch.arange(300) % 3 == 0,
        "f": torch.randn(30, 20).double(),
        "g": torch.tensor(3, dtype=torch.uint8),
    }
    save(model.replace(weights), tmp_path / "m.bonsai", values)
    back = load(tmp_path / "m.bonsai").weights
    assert {name: value.dtype for name, value in back.items()} == {name: v.dtype for name, v in weights.items()}
    assert all(torch.equal(back[name], weights[name]) for name in "deg")
    if values == "fp32":
        assert all(torch.equal(back[name], weights[name]) for name in "abc")
        assert torch.equal(back["f"], weights["f"].float().double())


@network("test-export-narrow")
def narrow(insists: bool = False) -> nn.Module:
    """A network in bfloat16."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(64, 8).bfloat16(), nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kind = torch.bfloat16 if insists else self.inner.weight.dtype
            return self.out(self.inner(x.flatten(1).to(kind)).relu().float())

    return Net()


def test_runtimes_get_float32_or_a_reason():
    x = torch.randn(4, 1, 8, 8)
    samples = Samples(x, torch.zeros(4, dtype=torch.int64))
    for insists in (False, True):
        model = Model.init(Arch("test-export-narrow", {"insists": insists}), 0)
        trained = Trained(model, {}, samples, samples, model)
        if insists:
            with pytest.raises(ConfigError, match="'test-export-narrow' does not compute in float32"):
                trained.single()
        else:
            single = trained.single()
            assert {value.dtype for value in single.parameters()} == {torch.float32}
            torch.testing.assert_close(single(x), trained.network()(x), rtol=0.05, atol=0.05)


@network("test-export-odd")
def odd(how: str) -> nn.Module:
    """A network that runtimes cannot have: it looks at values, or takes no sample alone; or one that is compiled."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.norm = nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=how != "batch")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.out(x.flatten(1)))
            return x * 2 if how == "looks" and float(x.sum()) > 0 else x

    return torch.compile(Net(), backend="eager") if how == "compiled" else Net()


@pytest.mark.slow
def test_a_network_that_cannot_be_followed_is_refused_and_a_compiled_one_is_not(tmp_path):
    x = torch.randn(4, 1, 8, 8)
    samples = Samples(x, torch.zeros(4, dtype=torch.int64))
    for how, text in (
        ("looks", "cannot be written in this format: "),
        ("batch", "one sample at a time"),
        ("compiled", ""),
    ):
        model = Model.init(Arch("test-export-odd", {"how": how}), 0)
        trained = Trained(model, {"mean": [0.0], "std": [1.0], "classes": []}, samples, samples, model)
        if text:
            with pytest.raises(ConfigError, match=f"'test-export-odd'.*{text}.*safetensors or compact"):
                FORMATS["onnx"].write(trained, tmp_path / "m.onnx", False)
        else:
            FORMATS["onnx"].write(trained, tmp_path / "m.onnx", False)
            scores = FORMATS["onnx"].runner(trained, tmp_path / "m.onnx")(x)
            torch.testing.assert_close(torch.as_tensor(scores), trained.single()(x), rtol=1e-4, atol=1e-4)


def test_a_damaged_compact_file_is_refused(tmp_path):
    file = tmp_path / "m.bonsai"
    save(sparse(), file)
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"PK" + whole[2:]):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"m\.bonsai is not a compact model"):
            load(file)
    with pytest.raises(ConfigError, match="not a compact model"):
        load(tmp_path / "none.bonsai")


def test_unknown_formats_are_named():
    with pytest.raises(ConfigError, match="known: onnx, executorch, safetensors, compact"):
        format_named("tflite")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dense, a physically smaller and a sparse network, trained far enough to be sure of their answers."""
    home = tmp_path_factory.mktemp("runs")
    common = {"rounds": 8, "data__clients": 4, "model__name": "cnn-bn"}
    return {
        recipe: fedbonsai.run(recipe, runs=home, name=recipe, **common, **more)
        for recipe, more in (
            ("fedavg", {}),
            ("fl-pqsu", {"model__options__norm": "group"}),
            ("fedtiny", {"model__options__norm": "batch"}),
        )
    }


SMALLER = {("executorch", True)}  # the physically smaller network stands for the dense one
CASES = [
    *(
        pytest.param("fedavg", name, int8, marks=[pytest.mark.exhaustive] * ((name, int8) in SMALLER))
        for name, form in FORMATS.items()
        for int8 in ([False, True] if form.int8 else [False])
    ),
    ("fl-pqsu", "onnx", True),
    ("fl-pqsu", "executorch", True),
    ("fedtiny", "compact", True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "name", "int8"), CASES)
@pytest.mark.filterwarnings("ignore")  # the exporters warn of themselves
def test_an_exported_file_agrees_with_the_trained_model(runs, tmp_path, recipe, name, int8):
    trained = Trained.of(runs[recipe])
    form = FORMATS[name]
    target = tmp_path / f"model.{form.ending}"
    form.write(trained, target, int8)
    found = compare(
        name, target, form.runner(trained, target), trained.network(), trained.test, trained.model.arch.objective
    )
    assert found.agreement >= 0.99
    assert found.bytes == target.stat().st_size
    if not int8:
        assert found.agreement == 1.0
        assert found.difference < 1e-4
    if recipe != "fedavg":
        dense = sum(value.numel() * 4 for value in runs["fedavg"].model.weights.values())
        assert found.bytes < 0.75 * dense, "smaller than the dense network in float32"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_files_carry_what_whoever_runs_them_must_know(runs, tmp_path):
    trained = Trained.of(runs["fedavg"])
    FORMATS["onnx"].write(trained, tmp_path / "m.onnx", False)
    FORMATS["safetensors"].write(trained, tmp_path / "m.safetensors", False)
    graph = onnx.load(str(tmp_path / "m.onnx"))
    assert {entry.key for entry in graph.metadata_props} >= {"mean", "std", "classes", "input"}
    with safe_open(str(tmp_path / "m.safetensors"), "pt") as file:
        assert file.metadata()["std"] == trained.notes()["std"]
    with pytest.raises(ConfigError, match="keeps weights as they are"):
        FORMATS["safetensors"].write(trained, tmp_path / "m8.safetensors", True)


@pytest.mark.slow
def test_the_runs_own_files_are_not_written_over(runs, tmp_path, monkeypatch, capsys):
    run = next(iter(runs.values()))
    monkeypatch.chdir(run.path.parent)
    own = {file: file.read_bytes() for file in run.path.iterdir() if file.is_file()}
    (tmp_path / "file").write_text("")
    for words, why in (
        (
            ["--to", "safetensors", "--out", f"./{run.path.name}/../{run.path.name}/model.safetensors"],
            "is the run's own",
        ),
        (["--to", "compact", "--out", f"{run.path}/config.toml"], "is the run's own"),
        (["--to", "compact", "--out", str(tmp_path)], "is a folder"),
        (["--to", "compact", "--out", str(tmp_path / "file" / "x.bonsai")], "cannot be written"),
        (["--to", "tflite"], "known: onnx"),
    ):
        assert main(["export", str(run.path), *words]) == 2
        assert why in capsys.readouterr().err
    assert main(["export", str(run.path), "--to", "safetensors"]) == 0
    assert (run.path / "exported.safetensors").is_file()
    assert {file: file.read_bytes() for file in own} == own


@pytest.fixture(scope="module")
def personal(tmp_path_factory):
    """A run whose clients have heads of their own."""
    small = {"rounds": 2, "data__clients": 3, "data__limit": 300, "data__valid": 0.2}
    return fedbonsai.run("wireless-pruning", runs=tmp_path_factory.mktemp("own"), name="own", **small)


@pytest.mark.slow
def test_a_client_takes_its_own_model_home(personal, tmp_path, capsys):
    assert owners(personal) == ["000", "001", "002"]
    models = [Trained.of(personal, id).model for id in owners(personal)]
    head = [name for name in personal.model.weights if name.startswith("classifier")]
    for name, value in personal.model.weights.items():
        assert all(torch.equal(model.weights[name], value) for model in models) != (name in head)
    target = tmp_path / "mine.bonsai"
    assert main(["export", str(personal.path), "--to", "compact", "--client", "001", "--out", str(target)]) == 0
    assert all(torch.equal(load(target).weights[name], models[1].weights[name]) for name in head)
    assert main(["export", str(personal.path), "--to", "compact", "--client", "9"]) == 2
    assert "it has those of 000, 001, 002" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_checkpoint_was_deleted_is_exported_all_the_same(personal, tmp_path, capsys):
    home = tmp_path / "run"
    shutil.copytree(personal.path, home, ignore=shutil.ignore_patterns("checkpoint"))
    assert main(["export", str(home), "--to", "compact"]) == 0
    assert main(["export", str(home), "--to", "compact", "--client", "001"]) == 2
    assert "checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_who_has_no_personal_model_is_told_so_and_the_table_names_the_dense_one(runs, capsys):
    path = str(runs["fl-pqsu"].path)
    assert main(["export", path, "--to", "compact", "--client", "000"]) == 2
    assert "no client of it has any" in capsys.readouterr().err
    assert main(["export", path, "--to", "compact", "--int8"]) == 0
    out = capsys.readouterr().out
    assert "dense fp32 as compact" in out
    assert (
        float(re.search(r"wrote .*: ([0-9.]+) times smaller", out)[1]) > 4
    )  # half of the weights, a byte instead of four

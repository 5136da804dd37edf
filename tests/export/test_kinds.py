"""Exported networks of series, tables and tokens, and what parity means for each objective."""

import json
import math
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fedbonsai import arch
from fedbonsai.arch import Arch
from fedbonsai.core import Samples, Scale
from fedbonsai.export.compact import load, save
from fedbonsai.export.formats import FORMATS
from fedbonsai.export.parity import compare
from fedbonsai.export.trained import Trained
from fedbonsai.model import Model
from fedbonsai.objectives import Binary, Classification, Regression, Tokens
from tests.zoo.kinds import KINDS, WORDS, inputs, model


def trained(kind, objective=None, **options):
    """An untrained network as if it were trained, with drawn samples."""
    made = model(kind, **options)
    if objective is not None:
        made = Model.init(Arch(made.arch.name, made.arch.options, objective), 0)
    x = inputs(kind, 32, **options)
    labels = torch.arange(32) % KINDS[kind][1]["classes"]
    if kind in WORDS:
        y = x
    elif made.arch.objective.choice_name == "regression":
        y = labels.float() + 0.5
    else:
        y = labels
    samples = Samples(x, y)
    return Trained(made, {"classes": [], "mean": [0.0], "std": [1.0]}, samples, samples, made)


def written(what, form, target, int8=False):
    """Write a file, and hold it against the network."""
    file = target / f"model.{FORMATS[form].ending}"
    FORMATS[form].write(what, file, int8)
    runner, objective = FORMATS[form].runner(what, file), what.model.arch.objective
    return compare("file", file, runner, what.network(), what.test, objective)


# by ExecuTorch, seconds each; the rest is left to `make test-all`, and pictures to test_export
LOWERED = {("char-gru", False)}
# as char-gru and tokens, and as ds-cnn; a network of pictures is written by test_export, too
ALIKE = {
    ("series", "onnx", True),
    ("char-gru", "onnx", True),
    *((kind, "onnx", int8) for kind in ("gru", "mobilenet-v2-small") for int8 in (False, True)),
}
FILES = [
    pytest.param(
        kind,
        form,
        int8,
        marks=[
            pytest.mark.slow,
            *[pytest.mark.exhaustive]
            * (((kind, int8) not in LOWERED and form == "executorch") or (kind, form, int8) in ALIKE),
        ],
    )
    for kind in KINDS
    for form in ("onnx", "executorch")
    if (kind, form) != ("gru", "executorch")  # unrolled twice it takes half a minute; char-gru stands for it
    for int8 in (False, True)
]


@pytest.mark.parametrize(("kind", "form", "int8"), FILES)
@pytest.mark.filterwarnings("ignore")
def test_runtimes_say_what_the_network_says(tmp_path, kind, form, int8):
    # ExecuTorch unrolls what is recurrent: three steps of it are lowered in a third of the time of nine
    short = {"length": 3} if (kind, form) == ("char-gru", "executorch") else {}
    found = written(trained(kind, **short), form, tmp_path, int8)
    assert found.relative < (0.1 if int8 else 1e-5)
    assert found.agreement >= (0.9 if int8 else 1.0)  # untrained networks are not sure of their answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["safetensors", "compact"])
def test_weights_come_back(tmp_path, kind, form):
    what = trained(kind)
    found = written(what, form, tmp_path)
    assert (found.agreement, found.difference) == (1.0, 0.0)
    if form == "compact":
        assert load(tmp_path / "model.bonsai").arch == what.model.arch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_rows_of_tokens_may_be_shorter(tmp_path):
    what, file = trained("tokens"), tmp_path / "model.onnx"
    FORMATS["onnx"].write(what, file, False)
    for length in (2, 5, 9):
        x = inputs("tokens")[:, :length]
        torch.testing.assert_close(FORMATS["onnx"].runner(what, file)(x), what.network()(x), rtol=1e-4, atol=1e-5)
    notes = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert notes["input"] == "int64 [batch, 9]"
    assert json.loads(notes["objective"])["name"] == "tokens"
    assert onnxruntime.InferenceSession(file).get_inputs()[0].name == "inputs"


def test_numbers_are_held_against_the_largest_and_choices_against_each_other(tmp_path):
    file = tmp_path / "none"
    file.write_bytes(b"")
    x, y = torch.randn(20, 1), torch.arange(20) % 2

    def off(by):
        return lambda x: x + by

    number = compare("a", file, off(0.5), off(0.0), Samples(x, y.float()), Regression(scale=1.0))
    assert math.isnan(number.agreement)
    assert number.difference == pytest.approx(0.5)
    assert number.relative == pytest.approx(0.5 / float(x.abs().max()))
    assert not number.good
    assert compare("a", file, off(1e-4), off(0.0), Samples(x, y.float()), Regression(scale=1.0)).good
    yes = compare("a", file, off(10.0), off(0.0), Samples(x, y), Binary(metric="accuracy"))
    assert yes.agreement == pytest.approx(float((x > 0).float().mean()))
    assert yes.value == 0.5
    two = torch.cat([x, -x], 1)
    same = compare("a", file, off(1.0), off(0.0), Samples(two, y), Classification())
    assert same.agreement == 1.0
    assert same.good


def test_files_say_what_they_take():
    what = trained("cnn1d", Regression(scale=2.0))
    scaled = Trained(what.model, {}, what.calibration, what.test, what.dense, Scale(torch.zeros(3), torch.ones(3)))
    notes = scaled.notes()
    assert notes["input"] == "float32 [batch, 20, 3]; (value - mean) / std"
    assert notes["output"].startswith("float32 [batch, values]: offset + scale")
    assert json.loads(notes["objective"])["scale"] == 2.0
    assert np.allclose(json.loads(notes["std"]), 1)
    assert "mean" in trained("mobilenet-v2-small").notes()


def test_a_compact_file_keeps_the_objective(tmp_path):
    made = trained("tabular-mlp", Binary(metric="auroc", positive=2.0)).model
    save(made, tmp_path / "m.bonsai")
    assert load(tmp_path / "m.bonsai").arch.objective == Binary(metric="auroc", positive=2.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_exports_of_recurrent_layers_have_any_length_whatever_was_exported_before(tmp_path):
    what, file = trained("char-gru"), tmp_path / "model.onnx"
    FORMATS["onnx"].write(trained("gru"), tmp_path / "of one length.onnx", False)
    for _ in range(2):
        assert FORMATS["onnx"].write(what, file, False) == ""
    assert {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}["length"] == "2 to 9"
    x = inputs("char-gru")[:, :4]
    torch.testing.assert_close(FORMATS["onnx"].runner(what, file)(x), what.network()(x), rtol=1e-4, atol=1e-5)


class Insists(torch.nn.Module):
    """Scores of tokens by a layer over all places at once."""

    def __init__(self):
        super().__init__()
        self.table, self.mix = torch.nn.Embedding(11, 4), torch.nn.Linear(36, 99)

    def forward(self, x):
        return self.mix(self.table(x).flatten(1)).unflatten(1, (9, 11))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_one_length_says_so(tmp_path):
    arch.network("insists")(Insists)
    made, x = Model.init(Arch("insists", {}, Tokens()), 0), inputs("tokens", 32)
    what = Trained(made, {}, Samples(x, x), Samples(x, x), made)
    for int8, why in ((False, ": "), (True, ": ranges of 8 bits are of one length")):
        said = FORMATS["onnx"].write(what, tmp_path / "model.onnx", int8)
        assert said.startswith("the file takes rows of exactly 9 tokens: ")
        assert why in said
        graph = onnx.load(str(tmp_path / "model.onnx"))
        assert {entry.key: entry.value for entry in graph.metadata_props}["length"] == "9"


def test_numbers_with_three_axes_are_no_pictures():
    what = trained("mobilenet-v2-small")
    assert what.notes()["input"].endswith("(value / 255 - mean) / std for each channel")
    assert replace(what, kind="numbers").notes()["input"] == "float32 [batch, 3, 8, 8]"

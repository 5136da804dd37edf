"""A network with a picture and a row of a table: from arrays and files to masks, pools, devices and exported files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from torch import Tensor, nn

import fedbonsai
from fedbonsai import data, network
from fedbonsai.arch import Arch
from fedbonsai.core import Scope, scope
from fedbonsai.data import DataConfig, InputConfig
from fedbonsai.devices.memory import step_bytes
from fedbonsai.errors import ConfigError
from fedbonsai.export.formats import FORMATS
from fedbonsai.export.parity import compare
from fedbonsai.export.trained import Trained
from fedbonsai.fleets.flower.samples import Own, form_of
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.inputs import Input, parted
from fedbonsai.model import Model
from fedbonsai.runs import recipes
from fedbonsai.runs.setup import clients, run_context
from fedbonsai.runs.structure import structure, unstructure
from fedbonsai.stages.pruning.count import macs
from fedbonsai.stages.pruning.units import units
from fedbonsai.training.sparse import sparse_form
from fedbonsai.wire import decode, encode
from fedbonsai.work import Episode

PICTURE, ROW = (1, 8, 8), (3,)


class Joined(nn.Module):
    """What is found in a picture beside what is found in a row."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.row = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(3, 8)
        self.mid, self.head = nn.Linear(16, 16), nn.Linear(16, classes)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        seen = self.second(self.norm(self.first(image)).relu()).relu().mean((2, 3))
        return self.head(self.mid(torch.cat([seen, self.row(row).relu()], 1)).relu())


class Cut(Joined):
    """The same, of one row that it cuts itself."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x[:, :64].reshape(-1, *PICTURE), x[:, 64:])


@network("test-named-inputs")
def joined(shapes: dict[str, list[int]], classes: int = 2) -> nn.Module:
    assert {name: tuple(shape) for name, shape in shapes.items()} == {"image": PICTURE, "row": ROW}
    return Joined(classes)


@network("test-cut-row")
def cut(classes: int = 2) -> nn.Module:
    return Cut(classes)


@network("test-parts")
def parts(classes: int = 2) -> nn.Module:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.features, self.classifier = nn.Linear(64, 4), nn.Linear(4, 4), nn.Linear(4, classes)

        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            return self.classifier(self.features(self.stem(image.flatten(1)))) + row[:, :1]

    return Whole()


def drawn(seed: int, count: int = 48) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A sign in the picture and one in the row; the answer is whether they differ."""
    random = np.random.default_rng(seed)
    above, high = random.integers(0, 2, (2, count))
    image = random.integers(0, 60, (count, 8, 8)).astype(np.uint8)
    image[above == 1, :4] += 120
    row = random.normal(0, 1, (count, 3))
    row[:, 0] += 100 + 4 * np.where(high, 1, -1)
    return {"image": image, "row": row}, above ^ high


@pytest.fixture(scope="module")
def given() -> data.Given:
    return data.of({f"c{client}": drawn(client) for client in range(4)}, drawn(9), classes=("same", "other"))


SETTINGS = {
    "rounds": 2,
    "model.name": "test-named-inputs",
    "model.options": {},
    "data.clients": 4,
    "data.partition": "natural",
    "data.inputs.row.transforms": ["standardise"],
    "method.optimizer": {"lr": 0.1, "batch": 16, "epochs": 2, "momentum": 0.5},
}


def config(given: data.Given, recipe: str = "fedavg", **more: object):
    return recipes.load(recipe, "", {**given.settings, **SETTINGS, **more})


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return fedbonsai.run("fedavg", data=given, progress=False, runs=place, **{**SETTINGS, "rounds": 30})


def states(config, fleet=None) -> list[bytes]:
    made = run_context(config)
    used = fleet or made.fleet
    with scope(used, Scope("run", 0, -1, 0)) as open_:
        state = made.method.begin(made.model, open_, made.server)
        open_.commit()
    seen = [bytes(encode(state))]
    for t in range(2):
        with scope(used, Scope("run", 0, t, 0)) as open_:
            state = made.method.round(decode(seen[-1]), t, open_)
            open_.commit()
        seen.append(bytes(encode(state)))
    return seen


def test_a_row_is_parted_in_the_order_of_the_inputs():
    inputs = (Input("a", (2, 2)), Input("b", (1,), whole=True), Input("c", (2,)))
    found = parted(inputs, torch.tensor([[1.0, 2, 3, 4, 7, 0.5, -1], [5.0, 6, 7, 8, 9, 1.5, -2]]))
    assert found["a"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert found["b"].tolist() == [[7], [9]]
    assert found["b"].dtype == torch.int64
    assert found["c"].tolist() == [[0.5, -1], [1.5, -2]]
    assert all(value.is_contiguous() for value in found.values())


def test_each_input_is_read_and_normalised_as_it_is_alone(given):
    held = data.load(config(given).data, 0)
    assert held.inputs == (Input("image", PICTURE), Input("row", ROW))
    assert held.options == {"shapes": {"image": PICTURE, "row": ROW}, "vocabulary": 0, "classes": 2, "outputs": 2}
    found = parted(held.inputs, held.samples.x)
    for name, more in (("image", {}), ("row", {"transforms": ("standardise",)})):
        alone = data.load(DataConfig(path=given.path, client="client", clients=4, x=(name,), y=("y",), **more), 0)
        assert torch.equal(alone.samples.y, held.samples.y)
        assert torch.equal(alone.samples.x, found[name])


@pytest.mark.slow
def test_the_network_is_called_by_name_and_learns(finished):
    run = finished
    assert run.score > 0.85
    net, inputs = run.model.build().eval(), run.model.arch.inputs
    rows = data.load(run.config.data, 0).test.x
    assert torch.equal(net(rows), net(**parted(inputs, rows)))
    assert structure(unstructure(run.model.arch), Arch) == run.model.arch


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fedavg", "static-magnitude", "prunefl"])
def test_it_trains_as_a_network_that_cuts_one_row_itself(given, recipe):
    named = run_context(config(given, recipe))
    one = named.model.arch.options | {}
    one.pop("shapes")
    plain = Model(replace(named.model.arch, name="test-cut-row", options=one, inputs=()), named.model.weights)
    ends = []
    for model in (named.model, plain):
        fleet = LocalFleet(clients(named.federation))
        with scope(fleet, Scope("run", 0, -1, 0)) as open_:
            state = named.method.begin(model, open_, named.server)
            open_.commit()
        with scope(fleet, Scope("run", 0, 0, 0)) as open_:
            state = named.method.round(state, 0, open_)
        ends.append(named.method.model(state).weights)
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    assert any(not torch.equal(ends[0][name], value) for name, value in named.model.weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fedavg", "static-magnitude"])
def test_states_are_equal_wherever_clients_work(given, recipe):
    wanted = config(given, recipe)
    held = clients(data.load(wanted.data, 0))
    pool = PoolFleet(held, 2)
    try:
        assert states(wanted) == states(wanted, LocalFleet(held, wire=False)) == states(wanted, pool)
    finally:
        pool.close()


def test_operations_and_memory_are_those_of_the_same_network_of_one_row(given):
    named = run_context(config(given)).model
    plain = Model(Arch("test-cut-row", {}), named.weights)
    # picture: 64 places, 9 * 1 * 8 and 9 * 8 * 8 products; row: 3 * 8; joined: 16 * 16 and 16 * 2
    assert macs(named, (67,)) == macs(plain, (67,)) == 64 * (72 + 576) + 24 + 256 + 32
    shapes = {name: tuple(value.shape) for name, value in named.weights.items()}
    steps = [step_bytes(Episode(model.arch, shapes, (67,), forward=8, backward=8, batch=8)) for model in (named, plain)]
    rows = 8 * 67 * 4  # the picture and the row of a batch are copied out of it by name
    assert 0 <= steps[0] - steps[1] <= 2 * rows


def test_masked_layers_are_computed_sparsely_behind_the_names(given):
    made = run_context(config(given))
    me = clients(made.federation)[0]
    masks = {"second.weight": torch.zeros(8, 8, 3, 3, dtype=torch.bool)}
    masks["second.weight"][:2] = True
    sgd = made.method.optimizer  # type: ignore[attr-defined]
    found = sparse_form(made.model, me, sgd, masks)
    assert found is None or "second.weight" in found.layers


def test_units_go_where_one_layer_reads_them_alone(given, tmp_path):
    made = run_context(config(given))
    assert [group.name for group in units(made.model, made.federation.samples.shape)] == ["first", "mid"]
    small = fedbonsai.run(
        "fl-pqsu",
        data=given,
        progress=False,
        runs=tmp_path,
        **{**SETTINGS, "method.keep": {"name": "target", "share": 0.6}, "method.pretrain": 0, "method.finetune": 0},
    )
    assert small.model.weights["first.weight"].shape[0] < 8
    assert small.model.weights["second.weight"].shape[0] == small.model.weights["row.weight"].shape[0] == 8


@pytest.mark.parametrize("recipe", ["moon", "splitfed-v1", "local-loss", "feddct", "fedgkt"])
def test_methods_that_cut_a_network_refuse_it_by_name(given, recipe):
    more = {"method.size": 2} if recipe == "feddct" else {}
    with pytest.raises(ConfigError, match=r"data\.inputs = image, row: .*needs one input"):
        states(config(given, recipe, **{"model.name": "test-parts", **more}))


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_onnx_takes_each_input_by_its_name(finished, int8, tmp_path):
    trained = Trained.of(finished)
    kind, file = FORMATS["onnx"], tmp_path / "net.onnx"
    kind.write(trained, file, int8)
    graph = onnx.load(str(file))
    assert [each.name for each in graph.graph.input] == ["image", "row"]
    notes = {entry.key: entry.value for entry in graph.metadata_props}
    assert '"name": "row", "shape": [3], "type": "float32", "mean": [100.' in notes["inputs"]
    exported = kind.runner(trained, file)
    same = compare("onnx", file, exported, trained.network(), trained.test, trained.model.arch.objective)
    assert same.difference < (1.0 if int8 else 1e-4)
    assert same.good or int8
    assert exported(trained.test.x[:3]).shape == (3, 2)  # any batch


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("executorch", marks=pytest.mark.exhaustive), "compact", "safetensors"])
def test_other_formats_take_the_row(finished, name, tmp_path):
    trained = Trained.of(finished)
    kind, file = FORMATS[name], tmp_path / "net"
    kind.write(trained, file, False)
    exported = kind.runner(trained, file)
    few = trained.test[:5]
    assert compare(name, file, exported, trained.network(), few, trained.model.arch.objective).difference < 1e-4


def test_a_device_reads_its_own_files_as_the_server_did(given, tmp_path):
    held = data.load(config(given).data, 0)
    inputs, y = drawn(2)
    np.savez(tmp_path / "own.npz", y=y, **inputs, names=np.array(["same", "other"]))
    train, _ = Own(str(tmp_path / "own.npz"), 0.0, "pi")(form_of(held))
    place = held.ids.index("c2")
    both = torch.cat([held.train[place].x, held.valid[place].x])
    assert torch.equal(train.x.sum(1).sort().values, both.sum(1).sort().values)
    for other, text in (
        ({"row": inputs["row"][:, :2]}, r"'row' has 2 values a row, \[2\]; expected \[3\]"),
        (
            {"image": inputs["image"][:, 1:]},
            r"data\.inputs\.image has samples of \[1, 7, 8\], the training samples .*\[1, 8, 8\]",
        ),
    ):
        np.savez(tmp_path / "own.npz", y=y, **{**inputs, **other})
        with pytest.raises(ConfigError, match=text):
            Own(str(tmp_path / "own.npz"), 0.0, "pi")(form_of(held))


def test_files_with_a_picture_and_columns_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path / "cache"))
    inputs, y = drawn(0)
    rows = {
        "photo": [Pillow.fromarray(picture) for picture in inputs["image"]],
        "warm": inputs["row"][:, 0].tolist(),
        "damp": inputs["row"][:, 1].tolist(),
        "label": y.tolist(),
    }
    kinds = Features({"photo": Image(), "warm": Value("float64"), "damp": Value("float64"), "label": Value("int64")})
    for split in ("train", "test"):
        Dataset.from_dict(rows, kinds).to_parquet(str(tmp_path / "set" / f"{split}-0.parquet"))
    wanted = {
        "path": str(tmp_path / "set"),
        "clients": 2,
        "partition": "iid",
        "inputs": {
            "image": {"x": "photo", "transforms": [{"resize": 4}]},
            "row": {"x": ["warm", "damp"], "transforms": ["standardise"]},
        },
    }
    for held in (
        DataConfig.of(wanted),
        structure({"data": wanted, "method": {"name": "averaging"}}, type(recipes.load("fedavg"))).data,
    ):
        for _ in range(2):  # the second time from the cache
            found = data.load(held, 0)
            assert found.inputs == (Input("image", (1, 4, 4)), Input("row", (2,)))
            named = parted(found.inputs, found.samples.x)
            assert named["row"].mean(0).tolist() == pytest.approx([0, 0], abs=1e-5)
            assert named["image"].std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_two_sensors_of_different_rate_and_tokens():
    random = np.random.default_rng(0)
    x = {
        "fast": random.normal(size=(40, 50, 3)),
        "slow": random.normal(size=(40, 5, 1)),
        "words": random.integers(0, 7, (40, 6)),
    }
    given = data.of((x, random.integers(0, 2, 40)))
    wanted = recipes.load("fedavg", "", {**given.settings, "data.inputs.words.transforms": [{"tokens": 7}]}).data
    held = data.load(replace(wanted, clients=2, partition="iid"), 0)
    assert held.inputs == (Input("fast", (50, 3)), Input("slow", (5, 1)), Input("words", (6,), whole=True))
    words = [parted(held.inputs, part.x)["words"] for part in (held.samples, held.test)]
    assert words[0].dtype == torch.int64
    assert sorted(torch.cat(words).tolist()) == sorted(x["words"].tolist())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"augment": True}, "augment = True: expected nothing beside inputs"),
        ({"x": ("row",)}, "x = .*expected nothing beside inputs"),
        ({"inputs": {"my input": InputConfig()}}, "my input: expected names of arguments"),
        ({"inputs": {"class": InputConfig()}}, "class: expected names of arguments"),
        (
            {"inputs": {"row": InputConfig(transforms=("standardize",))}},
            "inputs.row.transforms: .*did you mean 'standardise'",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given, settings, text):
    with pytest.raises(ValueError, match=text):
        DataConfig(**{"path": given.path, "inputs": {"row": InputConfig()}, **settings})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"data.inputs": {"picture": {"x": "image"}, "row": {}}}, r"takes forward\(image.*the data have picture, row"),
        (
            {"data.inputs": {"image": {}}},
            r"takes forward\(image.*the data have image \(missing a required argument: 'row'\)",
        ),
        ({"data.inputs": {"image": {}, "roe": {}}}, "'roe': no such column in .*did you mean 'row'"),
        ({"data.inputs.row.transforms": [{"clip": 0}]}, r"data\.inputs\.row change the targets"),
        ({"data.inputs": {"image": {}, "row": {"colums": ["row"]}}}, "no such setting"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(given, settings, text):
    options = {"model.name": "test-joined-any"}
    base = {key: value for key, value in SETTINGS.items() if "inputs" not in key}
    with pytest.raises(ConfigError, match=text):
        run_context(recipes.load("fedavg", "", {**given.settings, **base, **options, **settings}))


@network("test-joined-any")
def any_shapes(classes: int = 2) -> nn.Module:
    return Joined(classes)


def test_an_input_cannot_be_called_as_the_targets_are():
    x, y = drawn(0)
    with pytest.raises(ConfigError, match="inputs are called image, y; expected names other than y and client"):
        data.of(({"image": x["image"], "y": y}, y))


def test_a_model_of_one_input_is_on_the_wire_as_before():
    assert b"inputs" not in encode(Arch("mlp", {}))
    named = Arch("test-joined-any", {}, inputs=(Input("image", PICTURE), Input("row", ROW)))
    assert decode(encode(named)) == named


def test_clients_are_asked_for_sums_of_one_input_alone(given):
    asking = config(given, **{"data.inputs.row.transforms": [{"standardise": "clients"}]})
    with pytest.raises(ConfigError, match="of one input alone"):
        data.load(asking.data, 0)

"""The configuration: defaults, help texts, and every fault at once; no torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest

from fedbonsai.data import DataConfig, config


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, fedbonsai.data; fedbonsai.data.DataConfig(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_every_field_has_its_help() -> None:
    tree = ast.parse(inspect.getsource(config))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DataConfig")
    helped = {
        node.target.id
        for node, after in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    assert helped == {field.name for field in fields(DataConfig)}


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="mnist") as caught:
        DataConfig(name="mnits", clients=0, alpha=0, valid=1.0, minimum=0)
    text = str(caught.value)
    assert all(f"{name} = " in text for name in ("name", "clients", "alpha", "valid", "minimum"))
    assert "'mnist'?" in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"partition": "dirichelt"}, "one of iid, dirichlet"),
        ({"by": "writer_id", "client": "writer"}, "by = 'writer_id': expected the same as client"),
        ({"client": "writer", "partition": "iid", "clients": 0}, "clients = 0: expected at least 1"),
        ({"shape": (3, 0)}, "shape = "),
        ({"transforms": ("resise",)}, "transforms: transform 1: 'resise' is not known; did you mean 'resize'"),
        (
            {"transforms": ({"resize": 0}, {"chars": {"windw": 3}})},
            "transform 1: size = 0.*transform 2: chars has no field",
        ),
        ({"seed": -1}, "seed = -1"),
        ({"server": -1}, "server = -1"),
        ({"limit": -1}, "limit = -1"),
        ({"classes_per_client": 0}, "classes_per_client = 0"),
        ({"shards_per_client": 0}, "shards_per_client = 0"),
    ],
)
def test_faults(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DataConfig(**given)


def test_names_of_the_hub_and_of_folders_are_free() -> None:
    DataConfig(name="owner/data")
    DataConfig(name="my own", path="somewhere")
    DataConfig(partition="natural", by="writer_id", clients=0)


def test_unknown_attribute() -> None:
    import fedbonsai.data

    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = fedbonsai.data.lod


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: config.SeriesConfig(length=-1, stride=0), "length = -1.*stride = 0"),
        (lambda: config.HoldoutConfig(clients=1, later=0.2), "only one of clients, names and later"),
        (lambda: config.HoldoutConfig(later=1.0), "later = 1.0"),
    ],
)
def test_faults_of_parts(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_the_old_name_of_the_client_column() -> None:
    held = DataConfig(by="writer_id")
    assert (held.client, held.by) == ("writer_id", "")


def test_a_table_of_plain_values_is_read_back() -> None:
    from dataclasses import asdict

    held = DataConfig(
        x=("a", "b"), series=config.SeriesConfig(3, order=("t",)), transforms=({"clip": 3},), client="who"
    )
    table = {name: value for name, value in asdict(held).items() if value is not None}
    assert DataConfig.of(table) == held

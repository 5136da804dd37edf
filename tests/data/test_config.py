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
        ({"partition": "natural"}, "by = ''"),
        ({"by": "writer_id"}, "unless partition is natural"),
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

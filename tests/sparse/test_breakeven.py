"""Break-even densities: measured once, kept in a file."""

import json

import pytest
from torch import nn

pytest.importorskip("numba")

from fedbonsai import measured
from fedbonsai.sparse import breakeven


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "_known", {})
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    return tmp_path / "breakeven.json"


LAYER = nn.Conv2d(8, 16, 3, 2, 1)


def test_a_shape_is_measured_once(cache, monkeypatch):
    found = breakeven.breakeven(LAYER, (8, 10, 10), 4)
    assert list(json.loads(cache.read_text()).values()) == [found]
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]
    monkeypatch.setattr(measured, "_known", {})  # as in a new process
    written = cache.stat().st_mtime_ns
    assert breakeven.breakeven(LAYER, (8, 10, 10), 4) == found
    assert cache.stat().st_mtime_ns == written
    breakeven.breakeven(LAYER, (8, 10, 10), 5)
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "NUMBA_CPU_FEATURES"])
def test_a_restricted_processor_is_another_one(cache, monkeypatch, name):
    breakeven.breakeven(LAYER, (8, 10, 10), 4)
    monkeypatch.setenv(name, "less")
    breakeven.breakeven(LAYER, (8, 10, 10), 4)
    first, second = sorted(json.loads(cache.read_text()), key=len)
    assert second.replace(f" {name}=less", "") == first


@pytest.mark.parametrize(
    ("sparse", "density"),
    [([5, 6, 7, 8], 0.0), ([1, 2, 3, 3.5], 0.5), ([1, 2, 6, 12], 0.125), ([3, 5, 2, 9], 0.03), ([1, 2, 3, 5], 0.35)],
)
def test_the_first_crossing_counts(sparse, density):
    assert breakeven.crossing(4.0, sparse) == pytest.approx(density)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "b"}'])
def test_a_damaged_file_is_written_anew(cache, text):
    cache.write_text(text)
    found = breakeven.breakeven(LAYER, (8, 10, 10), 4)
    assert list(json.loads(cache.read_text()).values()) == [found]


def test_a_wide_linear_layer_is_faster_sparse_at_one_percent(cache):
    assert breakeven.breakeven(nn.Linear(1024, 1024), (1024,), 20) > 0.01


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, padding="same")]
)
def test_what_has_no_sparse_form_stays_dense(cache, layer):
    assert breakeven.breakeven(layer, (8, 10, 10), 4) == 0
    assert not cache.exists()

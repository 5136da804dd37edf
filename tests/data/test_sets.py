"""Real sets of every kind, where ``FEDBONSAI_DATA`` says that they lie: right shapes, clients and test sets by few settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedbonsai.data import DataConfig, load

HOME = Path(os.environ.get("FEDBONSAI_DATA", ""))
HEART = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal")
AIR = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
HOURS = {"length": 24, "order": ["year", "month", "day", "hour"], "horizon": 1, "stride": 6}
CYCLES = {"length": 30, "order": ["cycle"], "scored": "last"}

SETS: dict[str, tuple[dict[str, Any], tuple[int, ...], Any, int, int, str]] = {
    # settings, shape of a sample, its type as it is stored, classes, clients, test set
    "har-phone-watch": ({"client": "client"}, (100, 6), torch.int16, 5, 18, "2,177 samples of 5 other clients"),
    "speech-commands-ar-mfcc": ({"client": "client"}, (49, 10), torch.int8, 40, 24, "2,400 samples of 6 other clients"),
    "fsdd": (
        {"client": "client", "x": "wav", "transforms": [{"window": 8000}, {"logmel": 32}, "standardise"]},
        (61, 32), torch.float32, 10, 6, "300 samples of the same 6 clients",
    ),
    "ecg-pvc": ({"client": "client", "shape": [256]}, (256,), torch.int16, 2, 7, "10,822 samples of 5 other clients"),
    "air-quality": (
        {"client": "client", "x": AIR, "y": "PM2.5", "series": HOURS, "impute": "last", "drop_missing_targets": True,
         "transforms": ["standardise"]},
        (24, 11), torch.float32, 0, 12, "17,037 samples of the same 12 clients",
    ),
    "cmapss-fd001": (
        {"client": "client", "x": ["setting_*", "sensor_*"], "y": "rul", "series": CYCLES,
         "transforms": [{"clip": 125}, "standardise"]},
        (30, 24), torch.float32, 0, 100, "100 samples of 100 other clients",
    ),
    "credit-default": ({"x": "*", "transforms": ["standardise"]}, (23,), torch.float32, 2, 10, "6,000 samples"),
    "heart-hospitals": (
        {"client": "client", "x": HEART, "y": "label", "impute": "median", "transforms": ["standardise"]},
        (13,), torch.float32, 2, 4, "307 samples of the same 4 clients",
    ),
    "shakespeare-roles": (
        {"client": "client", "transforms": [{"chars": 80}]},
        (80,), torch.int64, 71, 660, "10,141 samples of 968 clients, 308 of them without training",
    ),
    "omniglot-small": (
        {"client": "client", "transforms": [{"resize": 28}]}, (1, 28, 28), torch.uint8, 242, 120,
        "1,210 samples of 40 other clients",
    ),
    "mnist": ({}, (1, 28, 28), torch.uint8, 10, 10, "10,000 samples"),
    "cifar10": ({}, (3, 32, 32), torch.uint8, 10, 10, "10,000 samples"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_as_it_is(name: str) -> None:
    if not os.environ.get("FEDBONSAI_DATA") or not (HOME / name).is_dir():
        pytest.skip(f"FEDBONSAI_DATA has no folder {name}")
    settings, shape, stored, classes, clients, tested = SETS[name]
    held = load(DataConfig.of({"path": str(HOME / name), **settings}), 0)
    assert (held.samples.shape, held.samples.stored.dtype, held.classes) == (shape, stored, classes)
    assert (len(held.ids), held.tested) == (clients, tested)
    some = held.samples[:64].x
    assert bool(torch.isfinite(some).all())
    assert some.dtype == (torch.int64 if stored == torch.int64 else torch.float32)
    if stored == torch.uint8:  # a quarter of what float32 would take
        assert held.samples.stored.nbytes <= 0.26 * held.samples.bytes

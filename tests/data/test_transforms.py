"""Transforms as data: what they make, what they learn of the training set, and one of a user's own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedbonsai.data.reading import Reading
from fedbonsai.data.statistics import mean_and_deviation, moments
from fedbonsai.data.transforms import Part, Transform, parse, transform
from fedbonsai.errors import ConfigError


def part(x: Any, y: Any = None, training: bool = True, **more: Any) -> Part:
    count = len(x)
    return Part("training", x, np.zeros(count) if y is None else np.asarray(y), np.empty(0, np.str_), training, **more)


def made(spec: Any, given: Part) -> Part:
    (each,) = parse([spec])
    return each.fitted(given)(given)


def test_clip_bounds_training_targets_only() -> None:
    y = [0, 100, 200]
    assert made({"clip": 125}, part(np.zeros(3), y)).y.tolist() == [0, 100, 125]
    assert made({"clip": {"least": 1}}, part(np.zeros(3), y)).y.tolist() == [1, 100, 200]
    assert made({"clip": 125}, part(np.zeros(3), y, training=False)).y.tolist() == y


def test_window_cuts_and_fills_up() -> None:
    cut = made({"window": 3}, part([np.arange(5), np.arange(2)]))
    assert cut.x.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert made({"window": 2}, part(np.ones((4, 3, 6)))).x.shape == (4, 2, 6)


def test_resize_and_picture() -> None:
    assert made({"resize": 6}, part(np.zeros((2, 4, 5, 3), np.uint8))).x.shape == (2, 6, 6, 3)
    series = np.tile(np.arange(8, dtype=np.float32), (2, 4, 1))
    resized = made({"resize": [4, 16]}, part(series)).x
    assert resized.shape == (2, 4, 16)
    assert np.all(np.diff(resized[0, 0]) >= 0)
    assert made("picture", part(series)).x.shape == (2, 1, 4, 8)


def test_onehot_learns_its_values() -> None:
    (each,) = parse([{"onehot": ["wind"]}])
    each = each.learned({"wind": ["N", "S", None], "t": np.array([1.0, 2.0, 3.0])})
    found = each.columns({"wind": ["S", "W"], "t": np.array([1.0, 2.0])}, "test")
    assert {name: list(values) for name, values in found.items()} == {
        "wind=N": [0, 0],
        "wind=S": [1, 0],
        "t": [1.0, 2.0],
    }
    with pytest.raises(ConfigError, match="no such column"):
        parse([{"onehot": "w"}])[0].learned({"wind": []})


def test_characters_are_windows_with_the_next_as_targets() -> None:
    (each,) = parse([{"chars": 4}])
    texts = (
        part(["abc", "x", "de"], owners=None)
        if False
        else replace(part(["abc", "x", "de"]), owners=np.array(["p", "q", "p"]))
    )
    each = each.fitted(texts)
    found = each(texts)
    names = found.names
    read = ["".join(names[token] for token in row) for row in found.x]
    assert read == ["abc\n", "de\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"]
    assert found.owners.tolist() == ["p", "p"]  # a text of one character has nothing to predict
    assert [names[token] for token in found.y[0]] == ["b", "c", "\n", "d"]
    assert found.y[1].tolist() == [names.index("e"), -1, -1, -1]
    unknown = each(replace(part(["aZb"]), owners=np.array(["p"])))
    assert unknown.x[0, 1] == 0
    assert unknown.y[0, 0] == 0  # counts, and cannot be right
    assert found.vocabulary == len(names)


def test_logmel_hears_a_tone_in_its_band() -> None:
    tone = (8000 * np.sin(2 * np.pi * 1000 / 8000 * np.arange(4000))).astype(np.int16)
    found = made({"logmel": {"bands": 20, "low": 0}}, part(np.stack([tone, tone]), rate=8000)).x
    assert found.dtype == np.float32
    edges = np.linspace(0, 1127 * np.log1p(4000 / 700), 22)[1:-1]
    assert set(found[0].argmax(1)) == {int(np.abs(edges - 1127 * np.log1p(1000 / 700)).argmin())}
    assert np.array_equal(found[0], found[1])
    with pytest.raises(ConfigError, match="are no recordings"):
        made("logmel", part(np.zeros((2, 4000))))
    with pytest.raises(ConfigError, match="shorter than a frame"):
        made("logmel", part(np.zeros((2, 100), np.int16), rate=8000))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (["logmell"], "did you mean 'logmel'"),
        ([{"picture": 3}], "picture takes no value, got 3"),
        ([{"standardise": 3}], "standardise = 3: expected 'clients' or 'server', or no value"),
        ([{"standardise": {"of": "clients"}}], "standardise has no field of; it has from"),
        ([{"resize": {"height": 3}}], "resize has no field height; it has size"),
        (["resize"], "resize needs size"),
        ([{"resize": 3, "clip": 2}], "expected one transform"),
        ([3, {"window": "a"}], "transform 1: 3: expected one.*transform 2: length = 'a'"),
    ],
)
def test_faults_are_told_together(spec: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse(spec)


def test_one_of_a_users_own() -> None:
    @transform("tests-halve", "times")
    class Halve(Transform):
        times: int = 1

        def __call__(self, part: Part) -> Part:
            return replace(part, x=part.array("halve") / 2**self.times)

    assert made({"tests-halve": 2}, part(np.array([8.0]))).x.tolist() == [2.0]
    assert isinstance(parse(["tests-halve"])[0], Halve)


def test_a_reading_travels_as_text() -> None:
    (chars,) = parse([{"chars": 4}])
    held = Reading(("a",), (), "who", "text", None, transforms=(replace(chars, alphabet="abé\n"),), fill={"a": 0.1})
    assert Reading.of(held.text()) == held
    body = json.loads(held.text()) | {"transforms": [{"unheard": {}}]}
    with pytest.raises(ConfigError, match="'unheard' is not known"):
        Reading.of(json.dumps(body))
    for text in ("", "[]", "{}", json.dumps(json.loads(held.text()) | {"more": 1})):
        with pytest.raises(ConfigError, match="cannot be understood here"):
            Reading.of(text)


def test_reshape_keeps_the_order_of_values() -> None:
    x = np.arange(12, dtype=np.int16).reshape(2, 6)
    assert made({"reshape": [3, 2]}, part(x)).x.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert made({"reshape": [6, 1]}, part(x)).x.dtype == np.int16
    assert made({"reshape": [1, 2, 3]}, replace(part(x), units=(0.5,))).units == (0.5,)
    with pytest.raises(ConfigError, match=r"\[6\], 6 values; expected as many as \[4, 2\] has, 8"):
        made({"reshape": [4, 2]}, part(x))
    with pytest.raises(ConfigError, match="have 6 scales, one for each of 6 features"):
        made({"reshape": [3, 2]}, replace(part(x), units=(1.0,) * 6))
    for wrong in (3, [], [0, 6], ["a"]):
        with pytest.raises(ConfigError, match="shape = "):
            parse([{"reshape": wrong}])


def test_statistics_are_sums_over_clients() -> None:
    x = np.random.default_rng(0).normal(3, 5, (90, 4, 3)).astype(np.float32)
    x[..., 2] = 7
    mean, deviation = mean_and_deviation(map(moments, (x[:10], x[10:60], x[60:])))
    assert np.allclose(mean, x.mean((0, 1)))
    assert np.allclose(deviation, [*x.std((0, 1))[:2], 1])

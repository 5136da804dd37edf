import copy
import tomllib

import pytest

from fedbonsai.devices.figures import Figure, shipped
from fedbonsai.devices.link import link
from fedbonsai.devices.profile import Curve, profile, read
from fedbonsai.errors import ConfigError

NAMES = sorted(shipped("profiles"))


def table(name="raspberry-pi-4"):
    return tomllib.loads(shipped("profiles")[name])


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profiles_have_a_source_beside_every_number(name):
    found = profile(name)
    assert found.name == name
    link(found.link)
    figures = [value for value in vars(found).values() if isinstance(value, Figure)]
    assert len(figures) == 12
    assert all(figure.source and figure.mark in ("measured", "published", "assumed") for figure in figures)
    if found.sparse is not None:
        assert found.sparse.source
        assert found.sparse.mark == "measured"
        assert 0 < found.sparse.at(0.01) <= found.sparse.at(1.0)
    for curve in (found.structured, found.masked):
        assert curve.source
        assert curve.at(1.0) == pytest.approx(1.0, abs=1e-6)
        assert 0 < curve.at(0.0) <= curve.at(0.1) <= curve.at(0.5) <= 1 + 1e-9
    assert found.idle.value <= min(found.compute.value, found.transmit.value, found.receive.value)


def test_a_mask_saves_no_time_on_the_shipped_devices_because_their_kernels_are_dense():
    assert all(profile(name).masked.at(0.1) == profile(name).masked.at(1.0) for name in NAMES)


def test_the_curve_of_sparse_layers_may_be_missing_and_need_not_end_at_one():
    held = table()
    assert read(held).sparse is None
    held["sparse"] = {"mark": "measured", "source": "x", "affine": [0.2, 2.3, 0.99]}
    assert read(held).sparse == Curve("measured", "x", 0.2, 2.3, 0.99)
    held["sparse"] = {"mark": "measured", "source": "x", "kept": [0.1, 1.0], "relative": [0.4, 2.5]}
    found = read(held).sparse
    assert found is not None
    assert found.at(0.55) == pytest.approx(1.45)
    for wrong, text in (
        ({"affine": [0.0, 0.0, 1.0]}, "not both 0"),
        ({"affine": [-0.1, 1.0, 1.0]}, ">= 0"),
        ({"kept": [0.1, 1.0], "relative": [0.0, 1.0]}, "positive times"),
        ({"kept": [0.1, 0.9], "relative": [0.3, 1.0]}, "up to kept 1"),
        ({"affine": [0.2, 2.3, 0.99], "mark": "guessed"}, "expected a mark"),
    ):
        held["sparse"] = {"mark": "assumed", "source": "x", **wrong}
        with pytest.raises(ConfigError, match=text):
            read(held)


def test_curves_by_hand():
    line = Curve("assumed", "test", 0.2, 0.8)
    assert line.at(0.5) == pytest.approx(0.6)
    assert line.line() == (0.2, 0.8)
    bent = Curve("assumed", "test", kept=(0.2, 0.6, 1.0), relative=(0.4, 0.5, 1.0))
    assert [bent.at(x) for x in (0.0, 0.2, 0.4, 0.8)] == pytest.approx([0.4, 0.4, 0.45, 0.75])
    assert bent.line() == pytest.approx((0.25, 0.75))  # the chord


def test_every_fault_is_named_at_once():
    broken = copy.deepcopy(table())
    broken["memory"]["total"]["mark"] = "guessed"
    broken["compute"]["conv"]["value"] = 0
    broken["power"]["idle"] = 3
    broken["structured"]["affine"] = [0.5, 0.6, 1.0]
    broken["power"]["sleep"] = {"value": 1, "mark": "assumed", "source": "x"}
    del broken["power"]["compute"]["source"]
    with pytest.raises(ConfigError) as error:
        read(broken)
    for text in (
        "memory.total.mark",
        "compute.conv.value",
        "power.idle",
        "sum to 1",
        "power.sleep",
        "power.compute.source",
    ):
        assert text in str(error.value)


def test_a_piecewise_curve_must_rise_to_one():
    broken = table()
    broken["masked"] = {"mark": "assumed", "source": "x", "kept": [0.1, 1.0], "relative": [1.2, 1.0]}
    with pytest.raises(ConfigError, match="both rising"):
        read(broken)


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'raspberry-pi-4'"):
        profile("raspbery-pi-4")
    with pytest.raises(ConfigError, match="does not exist"):
        profile(str(tmp_path / "none.toml"))
    own = tmp_path / "own.toml"
    own.write_text(shipped("profiles")["jetson-nano"])
    assert profile(str(own)) == profile("jetson-nano")
    own.write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        profile(str(own))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "8", True])
def test_what_is_no_finite_number_is_refused(value, tmp_path):
    for path in (("memory", "total"), ("compute", "overhead"), ("power", "idle")):
        wrong = table()
        wrong[path[0]][path[1]]["value"] = value
        with pytest.raises(ConfigError, match=r"expected a number"):
            read(wrong)
    wrong = table()
    wrong["masked"]["affine"] = [value, 0.0, 1.0]
    with pytest.raises(ConfigError, match="expected a list of numbers"):
        read(wrong)


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "my device.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"my device\.toml cannot be read"):
        profile(str(file))

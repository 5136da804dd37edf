"""Quantities with units, as people write them."""

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.planning.plan import hours
from fedbonsai.planning.quantities import quantity, said


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("5MB", "bytes", 5e6),
        ("5 MB", "bytes", 5e6),
        ("1.5 KiB", "bytes", 1536),
        ("2e3", "bytes", 2000),
        (300, "bytes", 300),
        ("500ms", "seconds", 0.5),
        ("2h", "seconds", 7200),
        ("1 d", "seconds", 86400),
        ("0.5 Wh", "joules", 1800),
    ],
)
def test_a_number_and_a_unit(text, kind, value):
    assert quantity(text, kind, "limit.x") == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "MB", "-5MB", "0", "5 parsecs", "5MBs", "1.2.3", "nan", "inf", True, None, "5MB 3kB"]
)
def test_what_is_none_is_told_with_what_is_expected(text):
    with pytest.raises(ConfigError, match=r"limit\.bytes = .*: expected a number above 0 \(bytes\), or one with B, kB"):
        quantity(text, "bytes", "limit.bytes")


def test_hours_are_hours_without_a_unit():
    assert hours("0.2") == 720
    assert hours("90s") == 90
    with pytest.raises(ConfigError, match="--hours = 'soon'"):
        hours("soon")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (5e6, "bytes", "5 MB"),
        (999, "bytes", "999 B"),
        (0.0005, "seconds", "0.5 ms"),
        (90, "seconds", "1.5 min"),
        (3.2e6, "joules", "3.2 MJ"),
    ],
)
def test_three_digits_and_a_unit(value, kind, text):
    assert said(value, kind) == text

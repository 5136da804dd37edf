"""Combinations without a meaning are refused with the reason: one case for each row of the table in docs/composing.md."""

import re
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.errors import ConfigError

COMPOSING = Path(__file__).parents[2] / "docs" / "composing.md"
FEW = {"rounds": 1, "data__limit": 200, "data__clients": 4}

# the first cell of the row, recipe, settings, and words of the reason
CASES = [
    ("`fedtiny` with `topk`", "fedtiny", {"method__uplink": [{"topk": 0.1}]}, "topk chooses positions anew"),
    ("`fedtiny` with `topk`", "fedtiny", {"method__uplink": [{"threshold": 0.1}]}, "threshold chooses positions anew"),
    ("`fedtiny` with `topk`", "fedtiny", {"method__uplink": [{"randk": 0.1}]}, "randk chooses positions anew"),
    ("`fedtiny` with `known`", "fedtiny", {"method__uplink": ["known", {"signmag": 4}]}, "leave it out"),
    ("`fedtiny` with `ef21`", "fedtiny-gated", {"method__uplink": ["ef21", {"signmag": 4}]}, "ef21 keeps an estimate"),
    (
        "`fedtiny` with `affine` per channel",
        "fedtiny",
        {"method__uplink": [{"affine": {"bits": 8, "scope": "channel"}}]},
        "channel",
    ),
    ("`fedtiny` with gate `lazy`", "fedtiny", {"method__gate": {"name": "lazy"}}, "masks that may have changed"),
    (
        "`averaging`: `ef21` with `weighting` or `ramp`",
        "ef21",
        {"method__weighting": {"beta": 1.0}},
        "ef21 sends changes of an estimate",
    ),
    (
        "`averaging`: `ef21` with `weighting` or `ramp`",
        "ef21",
        {"method__ramp": 2},
        "ef21 sends changes of an estimate",
    ),
    ("`averaging`: `warmup` with `ramp`", "dgc", {"method__ramp": 2}, "warmup = 8 and ramp = 2"),
    (
        "`averaging`: `sticky` with `ef21` or weights by distance",
        "ef21",
        {"method__cohort": 2, "method__sticky": {"group": 2, "fresh": 1}},
        "sticky counts updates by how likely their devices were asked",
    ),
    (
        "`averaging`: `sticky` with `ef21` or weights by distance",
        "distance-weights",
        {"method__cohort": 2, "method__sticky": {"group": 2, "fresh": 1}},
        "sticky counts updates by how likely their devices were asked",
    ),
    *(
        (
            "`averaging`: `aggregate_feedback` with `ef14`, `ef21`, `ramp` or weights by distance",
            recipe,
            {"method__aggregate_feedback": True, "method__downlink": {"delta": True}, **more},
            "aggregate_feedback takes the place of ef14 and ef21",
        )
        for recipe, more in (
            ("topk-ef", {}),
            ("ef21", {}),
            ("topk", {"method__ramp": 1}),
            ("topk", {"method__weighting": {"beta": 1.0}}),
        )
    ),
    (
        "`averaging`: `aggregate_feedback` without `downlink.delta`",
        "topk",
        {"method__aggregate_feedback": True},
        "set downlink.delta = true",
    ),
    (
        "`downlink.shift` without `topk` by fraction",
        "fedavg",
        {"method__downlink": {"delta": True, "shift": 0.5, "chain": [{"randk": 0.1}]}},
        "shift",
    ),
    (
        "`downlink.merge` without `grid`",
        "fedavg",
        {"method__downlink": {"delta": True, "merge": 3, "chain": [{"topk": 0.1}]}},
        "sums of changes are exact on a grid alone",
    ),
    *(
        (
            "`mean` other than `plain`",
            recipe,
            {"method__mean": "median", **more},
            "which no mean bears that lets all devices count alike",
        )
        for recipe, more in (
            ("ef21", {}),
            ("distance-weights", {}),
            ("fedavg", {"method__cohort": 3, "method__sticky": {"group": 3, "fresh": 1}}),
            ("topk", {"method__aggregate_feedback": True, "method__downlink": {"delta": True}}),
            ("fjord", {}),
        )
    ),
    *(
        ("`averaging`: `secure` with codecs", recipe, {"method__secure": {"bits": 8}, **more}, "cannot be with secure")
        for recipe, more in (
            ("topk", {}),
            ("fedavg", {"method__weighting": {"beta": 1.0}}),
            ("fedavg", {"method__cohort": 3, "method__sticky": {"group": 3, "fresh": 1}}),
        )
    ),
    (
        "`prunefl`: `secure` with",
        "prunefl",
        {"method__secure": {"bits": 8}},
        "scouting.iterations cannot be with secure",
    ),
    (
        "`prunefl`: `secure` with",
        "prunefl",
        {"method__secure": {"bits": 8}, "method__scouting": {"iterations": 0}, "method__judge": 2},
        "judge cannot be with secure",
    ),
    ("`fedtiny`: `secure` with", "fedtiny", {"method__secure": {"bits": 8}}, "selection.by cannot be with secure"),
    *(
        ("two of `mean`, `privacy`, `secure`", recipe, two, why)
        for recipe in ("fedavg", "random-mask")
        for two, why in (
            ({"method__mean": "median", "method__privacy": {"clip": 1.0, "delta": 1e-3}}, "privacy clips every change"),
            ({"method__mean": "median", "method__secure": {"bits": 8}}, "secure shows no single change"),
            (
                {"method__privacy": {"clip": 1.0, "delta": 1e-3}, "method__secure": {"bits": 8}},
                "privacy cannot be with secure",
            ),
        )
    ),
    *(
        (
            "`buffer.size` with",
            recipe,
            {"buffer__size": 2, "clock__devices": "raspberry-pi-4", **more},
            "buffer.size = 2",
        )
        for recipe, more in (("fedavg", {}), ("ef21", {}), ("fedtiny", {}), ("topk", {"method__mean": "median"}))
    ),
    ("`averaging`: `ef21` with `reset`", "ef21", {"method__uplink": [{"ef21": 3}, {"topk": 0.1}]}, "ef21.reset = 3"),
    ("`ef14` around a chain that loses nothing", "fedavg", {"method__uplink": ["ef14", "entropy"]}, "ef14"),
    ("`wireless-pruning`: `feedback` with 32 bits", "wireless-pruning", {"method__feedback": True}, "lose nothing"),
    (
        "`prunefl`: `personal` that leaves nothing shared",
        "prunefl-personal",
        {"method__personal": ["*"]},
        "no shared weights that may be pruned; share more",
    ),
    (
        "`fl-pqsu`: a sparse chain of weights",
        "fl-pqsu",
        {"method__uplink": [{"topk": 0.1}], "method__changes": False},
        "weights cannot be sparse; set changes = true",
    ),
    *(
        (
            "`model.trainable` where a network is cut or made narrower",
            recipe,
            {"model__trainable": ["classifier.*"]},
            "every parameter must be trained",
        )
        for recipe in (
            *("fedrolex", "fjord", "fl-pqsu", "heterofl", "small-dense"),
            *("splitfed-v2", "local-loss", "sparse-collaborative", "fedgkt", "fedpm"),
        )
    ),
]


@pytest.mark.parametrize(("row", "recipe", "settings", "why"), CASES, ids=[f"{c[1]}-{n}" for n, c in enumerate(CASES)])
def test_what_has_no_meaning_is_refused_with_the_reason(tmp_path, row, recipe, settings, why):
    with pytest.raises(ConfigError, match=re.escape(why)):
        fedbonsai.run(recipe, runs=tmp_path, name="run", **FEW, **settings)
    assert not list(tmp_path.glob("run/metrics.jsonl")), "refused before anything ran"


def test_every_row_of_the_page_has_a_case():
    text = COMPOSING.read_text().partition("## What is refused, and why")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 24
    assert {row for row in rows for case in CASES if row.startswith(case[0])} == set(rows)

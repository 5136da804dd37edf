"""One row for each method and setting that the conformance suite runs; a new method adds one row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedbonsai.runs import recipes

ROUNDS = 3
SMALL = {
    "rounds": ROUNDS,
    "data.name": "digits",
    "data.clients": 4,
    "data.limit": 240,
    "data.partition": "iid",
    "model.name": "mlp",
    "model.options": {"widths": [16]},
    "method.optimizer": {"lr": 0.1, "momentum": 0.5, "batch": 10, "epochs": 1},
}


@dataclass(frozen=True)
class Case:
    """One method as it is tested."""

    recipe: str
    asks: int  # of a round, when everybody answers
    down: frozenset[str]
    up: frozenset[str]
    preset: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    label: str = ""
    learns: str = "accuracy"  # the figure that must rise: personal models are judged by their own
    private: bool = False  # its rounds release noise, whoever is silent, and tell no losses of devices

    def __str__(self) -> str:
        return "-".join(part for part in (self.recipe, self.preset, self.label) if part)

    def config(self, **more: object):
        return recipes.load(self.recipe, self.preset, {**SMALL, **self.settings, **more})


AVERAGING = {"asks": 1, "down": frozenset({"averaging/train@1"}), "up": frozenset({"update@1"})}
WIDTH = {"asks": 1, "down": frozenset({"width/train@1"}), "up": frozenset({"width/trained@1"})}
SECURE = {
    "asks": 5,
    "up": frozenset(f"secure/{name}@1" for name in ("keys", "shares", "masked", "agreed", "revealed")),
}
STEPS = frozenset(f"secure/{name}@1" for name in ("neighbours", "inbox", "survivors", "agreement"))
CASES = [
    Case("fedavg", **AVERAGING),
    Case("fedprox", **AVERAGING),
    Case("fedavg", **AVERAGING, settings={"method.mean": "median"}, label="median"),
    Case("fedavg", **AVERAGING, settings={"method.cohort": 2}, label="cohort"),
    Case("topk-ef", **AVERAGING, settings={"method.cohort": 3}),
    Case("ef21", **AVERAGING, settings={"method.uplink": ["ef21", {"topk": 0.2}]}),
    Case("stc", **AVERAGING, settings={"method.cohort": 2, "method.uplink": ["ef14", {"topk": 0.1}, "ternary"]}),
    Case(
        "stc",
        **AVERAGING | {"down": frozenset({"averaging/train@1", "averaging/again@1"})},
        settings={
            "method.cohort": 3,
            "method.sticky": {"group": 3, "fresh": 1},
            "method.uplink": ["ef14", {"topk": 0.2}, "ternary"],
            "method.downlink": {
                "chain": [{"threshold": {"tau": 0.02, "min_numel": 0}}, {"grid": 0.03125}],
                "delta": True,
                "merge": 2,
            },
        },
        label="merged",
    ),
    Case(
        "topk",
        **AVERAGING,
        settings={
            "method.cohort": 3,
            "method.aggregate_feedback": True,
            "method.uplink": [{"topk": 0.3}],
            "method.downlink": {"chain": [{"topk": 0.3}], "delta": True},
        },
        label="against-last",
    ),
    Case("qsgd", **AVERAGING),
    Case(
        "dp-fedavg",
        **AVERAGING,
        settings={"method.cohort": 3, "method.privacy.noise": 0.05, "data.valid": 0.1, "data.minimum": 10},
        private=True,
    ),
    Case("fedavg-momentum", **AVERAGING),
    Case("fedadam", **AVERAGING),
    Case("fedyogi", **AVERAGING),
    Case("fedadagrad", **AVERAGING),
    Case(
        "sparse-collaborative",
        asks=52,
        down=frozenset(f"cluster/{k}@1" for k in ("place", "own", "forward", "judge", "backward", "finish")),
        up=frozenset(
            f"cluster/{k}@1" for k in ("placed", "activations", "fronts", "logits", "judged", "gradient", "updates")
        ),
    ),
    Case("distance-weights", **AVERAGING),
    Case(
        "sparse-collaborative",
        asks=7,
        down=frozenset({"split/front@1", "split/gradient@1"}),
        up=frozenset({"split/activations@1", "update@1"}),
        settings={"method.topology": "split"},
        label="split",
    ),
    Case(
        "sparse-collaborative",
        asks=7,
        down=frozenset({"split/front@1", "split/gradient@1"}),
        up=frozenset({"split/activations@1", "update@1"}),
        settings={"method.topology": {"name": "split", "version": 2}},
        label="split-2",
    ),
    Case(
        "sparse-collaborative",
        asks=2,
        down=frozenset({"local-loss/train@1", "local-loss/show@1"}),
        up=frozenset({"split/activations@1", "update@1"}),
        settings={"method.topology": "local-loss"},
        label="local-loss",
    ),
    Case("dgc", **AVERAGING),
    Case("moon", asks=1, down=frozenset({"moon/train@1"}), up=frozenset({"update@1"})),
    Case(
        "scaffold",
        asks=1,
        down=frozenset({"scaffold/train@1"}),
        up=frozenset({"scaffold/update@1"}),
        settings={"method.optimizer": {"lr": 0.1, "batch": 10, "epochs": 1}},
    ),
    Case(
        "fedgkt",
        asks=1,
        down=frozenset({"fedgkt/train@1"}),
        up=frozenset({"fedgkt/knowledge@1"}),
        settings={"model.options": {"widths": [24, 16]}},
    ),
    Case(
        "fedtiny",
        asks=1,
        down=frozenset({"fedtiny/train@1"}),
        up=frozenset({"fedtiny/trained@1"}),
        settings={"model.name": "cnn-bn", "model.options": {}, "method.growth": {"interval": 1, "stop": 3}},
    ),
    Case(
        "fl-pqsu",
        asks=1,
        down=frozenset({"fl-pqsu/train@1"}),
        up=frozenset({"fl-pqsu/upload@1", "fl-pqsu/skip@1"}),
        settings={
            "data.server": 0,
            "method.pretrain": 0,
            "method.finetune": 0,
            "method.gate": {"name": "loss", "rule": "best", "statistic": "last"},
        },
    ),
    Case(
        "prunefl",
        asks=1,
        down=frozenset({"prunefl/train@1"}),
        up=frozenset({"prunefl/update@1"}),
        settings={
            "method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10},
            "method.interval": 1,
            "method.scouting": {"iterations": 60, "batches": 5, "every": 5},
        },
    ),
    *(
        Case(
            recipe,
            asks=1,
            down=frozenset({"under-masks/train@1"}),
            up=frozenset({"update@1"}),
            settings={"method.density": 0.3, **settings},
        )
        for recipe, settings in (
            ("random-mask", {}),
            ("static-magnitude", {}),
            ("snip", {}),
            ("synflow", {}),
            ("iterative-pruning", {"method.schedule": {"first": 0, "every": 1, "times": 3}}),
            ("lottery-ticket", {"method.schedule.first": 1}),
        )
    ),
    Case(
        "random-mask",
        asks=1,
        down=frozenset({"under-masks/train@1"}),
        up=frozenset({"update@1"}),
        settings={"method.cohort": 3, "method.privacy": {"clip": 0.5, "noise": 0.05, "delta": 1e-3}},
        label="private",
        private=True,
    ),
    Case(
        "feddst",
        asks=1,
        down=frozenset({"under-masks/train@1", "feddst/readjust@1"}),
        up=frozenset({"update@1", "feddst/readjusted@1"}),
        settings={
            "method.density": 0.3,
            "method.optimizer.epochs": 2,
            "method.readjustment": {"interval": 2, "stop": 9},
        },
    ),
    Case("fedrolex", **WIDTH),
    Case("fiarse", asks=1, down=frozenset({"fiarse/train@1"}), up=frozenset({"update@1"})),
    Case("fjord", asks=1, down=frozenset({"fjord/train@1"}), up=frozenset({"width/trained@1"})),
    Case("heterofl", **WIDTH),
    Case(
        "fedmef",
        asks=1,
        down=frozenset({"fedmef/train@1"}),
        up=frozenset({"fedmef/trained@1"}),
        settings={"method.density": 0.3, "method.readjustment": {"interval": 2, "stop": 9}},
    ),
    Case(
        "fedpm",
        asks=1,
        down=frozenset({"fedpm/train@1"}),
        up=frozenset({"fedpm/sampled@1"}),
        settings={
            "model.options": {"widths": [64]},
            "method.optimizer": {"name": "adam", "lr": 0.3, "batch": 10, "epochs": 1},
        },
    ),
    Case(
        "fedrts",
        asks=1,
        down=frozenset({"fedrts/train@1"}),
        up=frozenset({"fedrts/trained@1"}),
        settings={"method.density": 0.3, "method.readjustment": {"interval": 2, "stop": 9}},
    ),
    Case(
        "fedsgc",
        asks=1,
        down=frozenset({"under-masks/train@1", "fedsgc/readjust@1"}),
        up=frozenset({"update@1", "fedsgc/readjusted@1"}),
        settings={
            "method.density": 0.3,
            "method.optimizer.epochs": 2,
            "method.readjustment": {"interval": 2, "stop": 9},
        },
    ),
    Case(
        "lotteryfl",
        asks=1,
        down=frozenset({"lotteryfl/train@1"}),
        up=frozenset({"lotteryfl/trained@1"}),
        settings={"method.rule": {"threshold": 0.1, "target": 0.6}},
    ),
    Case(
        "online",
        asks=1,
        down=frozenset({"online/train@1"}),
        up=frozenset({"online/trained@1"}),
        settings={"method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10}, "method.warmup": 1},
    ),
    Case(
        "sparsyfed",
        asks=1,
        down=frozenset({"sparsyfed/train@1"}),
        up=frozenset({"update@1"}),
        settings={"method.density": 0.3},
    ),
    Case(
        "small-dense",
        asks=1,
        down=frozenset({"small-dense/train@1"}),
        up=frozenset({"update@1"}),
        settings={"method.density": 0.5},
    ),
    Case(
        "fl-pqsu",
        preset="random-skip",
        asks=1,
        down=frozenset({"fl-pqsu/train@1"}),
        up=frozenset({"fl-pqsu/upload@1", "fl-pqsu/skip@1"}),
        settings={"data.server": 0, "method.pretrain": 0, "method.finetune": 0, "method.gate.share": 0.5},
    ),
    Case(
        "fl-pqsu",
        preset="lazy",
        asks=1,
        down=frozenset({"fl-pqsu/train@1"}),
        up=frozenset({"fl-pqsu/upload@1"}),
        settings={"data.server": 0, "method.pretrain": 0, "method.finetune": 0},
    ),
    *(
        Case(
            recipe,
            asks=2,
            down=frozenset({"wireless-pruning/train@1", "personal/judge@1"}),
            up=frozenset({"wireless-pruning/trained@1", "personal/judged@1"}),
            preset=preset,
            settings={"method.personal": [], "data.valid": 0.1},  # clients as in the first row
        )
        for recipe, preset in (
            ("wireless-pruning", ""),
            ("wireless-pruning", "published"),
            ("wireless-baselines", "fedavg"),
        )
    ),
    Case(
        "fedavg",
        **SECURE,
        down=STEPS | {"averaging/secure@1"},
        settings={"method.secure": {"bits": 8, "clip": 0.2, "examples": 60}},
        label="secure",
    ),
    Case(
        "random-mask",
        **SECURE,
        down=STEPS | {"under-masks/secure@1"},
        settings={"method.density": 0.3, "method.secure": {"bits": 8, "clip": 0.2, "examples": 60}},
        label="secure",
    ),
    Case(
        "random-mask",
        **SECURE,
        down=STEPS | {"under-masks/secure@1"},
        settings={
            "method.density": 0.3,
            "method.privacy": {"clip": 0.5, "noise": 0.05, "delta": 1e-3, "where": "devices"},
            "method.secure": {"bits": 16, "threshold": 0.5},
        },
        label="private-by-devices",
        private=True,
    ),
    Case(
        "prunefl",
        **SECURE,
        down=STEPS | {"prunefl/secure@1"},
        settings={
            "method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10},
            "method.interval": 1,
            "method.scouting": {"iterations": 0},
            "method.secure": {"bits": 8, "clip": 0.2, "examples": 100},
        },
        label="secure",
    ),
    # mixtures of docs/composing.md; personal heads, and clients as in the first row
    Case(
        "wireless-feedback",
        asks=2,
        down=frozenset({"wireless-pruning/owing@1", "personal/judge@1"}),
        up=frozenset({"wireless-pruning/trained@1", "personal/judged@1"}),
        settings={"data.valid": 0.1},
        learns="personal_accuracy",
    ),
    Case(
        "fedtiny-gated",
        asks=1,
        down=frozenset({"fedtiny/selective@1"}),
        up=frozenset({"fedtiny/trained@1", "masked-upload/skip@1"}),
        settings={
            "model.name": "cnn-bn",
            "model.options": {},
            "method.growth": {"interval": 1, "stop": 3},
            "method.gate": {"name": "chance", "share": 0.5},
        },
    ),
    Case(
        "prunefl-personal",
        asks=2,
        down=frozenset({"prunefl/own-train@1", "own-part/judge@1"}),
        up=frozenset({"prunefl/update@1", "personal/judged@1"}),
        settings={
            "data.valid": 0.1,
            "model.options": {"widths": [24, 16]},
            "method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10},
            "method.interval": 1,
            "method.judge": 1,
            "method.scouting": {"iterations": 60, "batches": 5, "every": 5},
        },
        learns="personal_accuracy",
    ),
]
ALIKE = {  # rows that keep and send what another one does, of which they change a draw, a score or a step of the server
    *("fedprox", "fedavg-cohort", "qsgd", "fedyogi", "fedadagrad", "random-mask", "static-magnitude"),
    *("sparse-collaborative-split-2", "wireless-baselines-fedavg", "fedrolex", "snip", "iterative-pruning"),
}
LEARNS_ALIKE = ALIKE | {  # and rows that keep and send something else, but learn as another one does
    *("sparse-collaborative", "dgc", "ef21", "fedavg-momentum", "fl-pqsu-random-skip", "fl-pqsu-lazy", "fedtiny-gated"),
    *("wireless-pruning-published", "prunefl-personal", "stc-merged", "random-mask-private", "random-mask-secure"),
    *("random-mask-private-by-devices", "sparse-collaborative-split"),
}


def some(cases: Sequence[Case], alike: Collection[str]) -> list[Any]:
    """Rows of a slow test: those that others stand for are left to `make test-all`."""
    left = pytest.mark.exhaustive
    return [pytest.param(case, marks=[pytest.mark.slow, *[left] * (str(case) in alike)]) for case in cases]

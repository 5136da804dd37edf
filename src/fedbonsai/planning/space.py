"""What may vary, as data: recipes, networks by the kind of data, and knobs, each a list of named settings.

A setting of the space is a choice of labels, such as ``{"recipe": "fedtiny", "density": "0.1"}``; only here it becomes
settings of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from fedbonsai.errors import ConfigError

Settings = Mapping[str, object]
Labels = dict[str, str]

BATCH_NORM = ("fedtiny", "fedtiny-gated")  # recipes that select by running statistics
NORMED = ("cnn-bn", "resnet-tiny", "mobilenet-v2-small", "cnn1d", "ds-cnn")  # networks with a choice of normalisation


@dataclass(frozen=True)
class Knob:
    """One thing that varies.

    Attributes:
        name: of the parameter.
        values: settings by label; the first is where nothing is known.
        recipes: with which it does; empty: with all.
    """

    name: str
    values: Mapping[str, Settings]
    recipes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """All that may be chosen."""

    recipes: Mapping[str, Settings]
    """Names of recipes, or paths of TOML files, with the settings in which they are tried."""
    networks: Mapping[str, Settings]
    """By label; the first is the usual one."""
    knobs: tuple[Knob, ...]
    advice: tuple[Labels, ...] = field(default=())
    """Settings that are tried before any others."""

    def choose(self, pick: Callable[[str, Sequence[str]], str]) -> Labels:
        """A setting, each label by ``pick(name, labels)``."""
        labels = {"recipe": pick("recipe", tuple(self.recipes)), "network": pick("network", tuple(self.networks))}
        for knob in self.knobs:
            if not knob.recipes or labels["recipe"] in knob.recipes:
                labels[knob.name] = pick(knob.name, tuple(knob.values))
        return labels

    def settings(self, labels: Labels) -> dict[str, Any]:
        """The settings of a run behind labels, by dotted path."""
        recipe = labels["recipe"]
        found: dict[str, Any] = {**self.networks[labels["network"]], **self.recipes[recipe]}
        if found.get("model.name") in NORMED:
            norm = "batch" if recipe in BATCH_NORM else "group"
            found["model.options"] = {**found.get("model.options", {}), "norm": norm}
        for knob in self.knobs:
            if knob.name in labels:
                found |= knob.values[labels[knob.name]]
        return found

    def whole(self, labels: Mapping[str, str]) -> Labels:
        """Labels with the first value of every knob that they do not say."""
        return self.choose(lambda name, values: labels[name] if labels.get(name) in values else values[0])

    def only(self, recipes: Sequence[str] = (), networks: Sequence[str] = ()) -> Space:
        """A part of the space; a recipe of one's own (a TOML file) and a network that it does not know are added.

        Raises:
            ConfigError: no such recipe or network.
        """
        from fedbonsai.arch import networks as builders
        from fedbonsai.runs.recipes import text

        for name in recipes:
            text(name)
        for name in networks:
            known = {*self.networks, *builders()}
            if name not in known and ":" not in name:
                near = get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ConfigError(f"network {name!r} is not known{hint} `fedbonsai ls models` lists them")
        kept = {
            label: settings
            for label, settings in self.networks.items()
            if label in networks or settings["model.name"] in networks
        }
        known = {str(settings["model.name"]) for settings in kept.values()} | kept.keys()
        kept |= {name: {"model.name": name} for name in networks if name not in known}
        return replace(
            self,
            recipes={name: self.recipes.get(name, {}) for name in recipes} if recipes else self.recipes,
            networks=kept if networks else self.networks,
            advice=tuple(
                labels
                for labels in self.advice
                if (not recipes or labels["recipe"] in recipes) and (not networks or labels["network"] in kept)
            ),
        )


NETWORKS: dict[str, dict[str, Settings]] = {
    "pictures": {
        "cnn-bn": {"model.name": "cnn-bn"},
        "mlp": {"model.name": "mlp"},
        "lenet5": {"model.name": "lenet5"},
        "mobilenet-v2-small": {"model.name": "mobilenet-v2-small"},
        "resnet-tiny": {"model.name": "resnet-tiny"},
    },
    "series": {
        "cnn1d 16-24-32": {"model.name": "cnn1d", "model.options": {"widths": [16, 24, 32]}},
        "cnn1d 8-12-16": {"model.name": "cnn1d", "model.options": {"widths": [8, 12, 16]}},
        "cnn1d 32-48-64": {"model.name": "cnn1d", "model.options": {"widths": [32, 48, 64]}},
        "ds-cnn": {"model.name": "ds-cnn"},
        "gru 32": {"model.name": "gru", "model.options": {"hidden": 32}},
    },
    "tables": {
        "tabular-mlp 64-32": {"model.name": "tabular-mlp"},
        "tabular-mlp 32": {"model.name": "tabular-mlp", "model.options": {"widths": [32]}},
        "linear": {"model.name": "tabular-mlp", "model.options": {"widths": []}},
    },
    "tokens": {
        "char-gru": {"model.name": "char-gru"},
        "tiny-transformer": {"model.name": "tiny-transformer"},
    },
}

ROWS = {"fraction": 0.005, "scope": "global", "min_numel": 0}
CODECS: dict[str, Settings] = {  # of the recipes below, both ways
    "fp32": {},
    "8 bits": {
        "method.uplink": ["ef14", {"signmag": 8}, {"entropy": "zstd"}],
        "method.downlink": {"chain": [{"signmag": 8}, {"entropy": "zstd"}], "delta": True},
    },
    "top 5 %, 8 bits": {
        "method.uplink": ["ef14", {"topk": 0.05}, {"signmag": 8}, {"entropy": "zstd"}],
        "method.downlink": {"chain": [{"topk": 0.1}, {"signmag": 8}, {"entropy": "zstd"}], "delta": True},
    },
    "top 0.5 %, ternary": {
        "method.uplink": ["ef14", {"topk": ROWS}, "ternary"],
        "method.downlink": {"chain": [{"topk": ROWS}, "ternary"], "delta": True},
    },
}
UNSERVED: Settings = {"method.pretrain": 0, "method.finetune": 0, "method.score": "l1"}  # no samples on the server


def kind_of(kind: str, shape: Sequence[int]) -> str:
    """Under which networks stand: pictures, series, tables or tokens.

    Args:
        kind: of the data, `Federation.kind`.
        shape: of one input.
    """
    return {"pictures": "pictures", "tokens": "tokens"}.get(kind) or ("tables", "series", "pictures")[len(shape) - 1]


def usual(kind: str, clients: int, server: int) -> Space:
    """The space for data of a kind.

    Args:
        kind: pictures, series, tables or tokens.
        clients: how many there are.
        server: samples that the server has.
    """
    networks = NETWORKS[kind]
    recipes: dict[str, Settings] = {
        "fedavg": {},
        "small-dense": {},
        "fl-pqsu": {} if server else UNSERVED,
        "fedtiny": {},
        "prunefl": {},
        "synflow": {},
        "feddst": {},
        "scaffold": {},
    }
    lr = {name: {"method.optimizer.lr": float(name)} for name in ("0.05", "0.02", "0.1", "0.2")}
    epochs = {name: {"method.optimizer.epochs": int(name)} for name in ("2", "1", "4")}
    part = max(1, clients // 2 if clients <= 20 else clients // 5)
    cohort: dict[str, Settings] = {"all": {"method.cohort": 0}}
    if part < clients:
        cohort[f"{part} of {clients}"] = {"method.cohort": part}
    densities = {name: {"method.density": float(name)} for name in ("0.2", "0.05", "0.1", "0.5")}
    shares = {name: {"method.keep.share": float(name)} for name in ("0.5", "0.25", "0.75")}
    knobs = (
        Knob("lr", lr),
        Knob("epochs", epochs),
        Knob("cohort", cohort),
        Knob("codec", CODECS, ("fedavg",)),
        Knob("density", densities, ("small-dense", "fedtiny", "synflow", "feddst")),
        Knob("share", shares, ("fl-pqsu",)),
    )
    space = Space(recipes, networks, knobs)
    begun = (
        {"recipe": "fedavg"},
        {"recipe": "fedavg", "codec": "top 5 %, 8 bits"},
        {"recipe": "fedavg", "codec": "top 0.5 %, ternary"},
        {"recipe": "fedavg", "codec": "8 bits", "lr": "0.1"},
        {"recipe": "fedtiny"},  # with the first network, which has the statistics that it needs
        {"recipe": "fl-pqsu"},
        {"recipe": "small-dense"},
        {"recipe": "fedavg", "lr": "0.1"},
        {"recipe": "fedavg", "codec": "top 5 %, 8 bits", "lr": "0.1", "epochs": "4"},
    )
    return replace(space, advice=in_turn(space, begun))


def in_turn(space: Space, begun: Sequence[Mapping[str, str]]) -> tuple[Labels, ...]:
    """Settings with the first two networks in turn, since nobody knows yet which of them suits the data."""
    names = list(space.networks)[:2]
    return tuple(space.whole({"network": names[i % len(names)], **labels}) for i, labels in enumerate(begun))

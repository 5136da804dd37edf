"""The file of a sweep: base recipes, settings that are crossed or changed one at a time, seeds.

A *variant* is one configuration of a sweep, which is run with every seed: a row of the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

from fedbonsai.errors import ConfigError
from fedbonsai.runs.config import check_name
from fedbonsai.runs.recipes import SHORT
from fedbonsai.runs.structure import structure
from fedbonsai.text import text_of, toml

FORMAT = 1
SECTIONS = ("method", "data", "model", "objective", "fleet", "clock", "budget")


@dataclass(frozen=True)
class Recipe:
    """One of a plan's ``[[runs]]``."""

    recipe: str
    """Name of a recipe, or a .toml file."""
    name: str = ""
    """In tables and of folders; empty: the recipe's, and the preset's."""
    preset: str = ""
    """A preset of the recipe."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """By dotted path; they come before the plan's."""
    grid: dict[str, Any] | None = None
    """Settings that are crossed, in place of the plan's grid."""
    vary: dict[str, Any] | None = None
    """Settings of which one at a time is changed, in place of the plan's grid."""
    seeds: tuple[int, ...] = ()
    """In place of the plan's."""


@dataclass(frozen=True)
class Tune:
    """Trials by which each variant chooses some of its settings before its runs (see `tuned`)."""

    grid: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings that are crossed and tried, as in the plan's grid; empty: nothing is chosen."""
    rounds: int = 20
    """Of a trial; fewer where the runs have fewer."""
    seed: int = 1000
    """Of the trials: none of those that results have."""


@dataclass(frozen=True)
class PlanFile:
    """What may stand in the file of a plan."""

    runs: tuple[Recipe, ...]
    """Base recipes."""
    format: int = FORMAT
    """Version of this format."""
    name: str = ""
    """Of the sweep's folder; empty: the file's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every variant is run with each."""
    baseline: str = ""
    """A variant against which all others are held, or the name of a run: then each against its variant of equal settings."""
    metric: str = ""
    """Column of the metrics that is held against each other; empty: the measure that decides."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of all runs, by dotted path."""
    grid: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings that are crossed: lists of values, or tables of values by the names that they shall have."""
    tune: Tune = field(default_factory=Tune)
    """Trials by which each variant chooses settings such as its learning rate."""
    tool: dict[str, Any] = field(default_factory=dict[str, Any])
    """What other programs note here; it is not read."""


@dataclass(frozen=True)
class Variant:
    """One configuration of a sweep.

    Attributes:
        name: of the row, and of its folders before the seed.
        run: name in the plan.
        recipe: of which it is made.
        preset: of the recipe.
        settings: by dotted path.
        varied: those of the grid, with the values or the names that they have there.
        seeds: with each of which it is run.
        tuned: settings that its trials chose, with the values or the names that the grid of trials has.
    """

    name: str
    run: str
    recipe: str
    preset: str
    settings: Mapping[str, Any]
    varied: Mapping[str, Any]
    seeds: tuple[int, ...]
    tuned: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Plan:
    """A sweep as it was meant."""

    name: str
    variants: tuple[Variant, ...]
    baseline: str = ""
    metric: str = ""
    tool: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tune: Tune = field(default_factory=Tune)

    def beside(self, variant: Variant) -> str:
        """Name of the variant that another one is held against; empty where it is the baseline, or there is none."""
        if not self.baseline or self.baseline in (variant.name, variant.run):
            return ""
        if any(each.name == self.baseline for each in self.variants):
            return self.baseline
        alike = [each for each in self.variants if each.run == self.baseline and each.varied == variant.varied]
        return alike[0].name if alike else ""


def read(plan: str | Path | Mapping[str, Any]) -> Plan:
    """A plan from its file, or from a table such as the file would give.

    Raises:
        ConfigError: every fault of it at once.
    """
    if isinstance(plan, Mapping):
        return planned(dict(plan), "sweep", "plan")
    path = Path(plan)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the file of a plan, such as {path / 'plan.toml'}")
    if not path.exists():
        raise ConfigError(f"file {path} does not exist: give the file of a plan (docs/sweeps.md says what is in one)")
    stem = path.resolve().parent.name if path.stem == "plan" else path.stem
    return planned(toml(text_of(path), str(path)), stem, str(path))


def planned(table: dict[str, Any], name: str, what: str) -> Plan:
    """The plan in a table.

    Args:
        table: as TOML gives it.
        name: of the sweep, where the table has none.
        what: file, for errors.

    Raises:
        ConfigError: every fault of it at once.
    """
    version: object = table.get("format", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise ConfigError(
            f"{what}: format = {version}, a plan of a later fedbonsai: this one reads up to format {FORMAT}; bring it up to date"
        )
    try:
        found = structure(table, PlanFile)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{what}: {line}" for line in str(error).splitlines())) from None
    faults = list(_faults(found))
    if not faults:
        variants = tuple(each for run in found.runs for each in _variants(found, run))
        faults += _of_names(found, variants)
        if not faults:
            check_name("name", found.name or name)
            tune = replace(found.tune, grid=dotted(found.tune.grid))
            return Plan(found.name or name, variants, found.baseline, found.metric, found.tool, tune)
    raise ConfigError("\n".join(f"{what}: {fault}" for fault in faults))


def _faults(plan: PlanFile) -> Iterator[str]:
    if plan.format != FORMAT:
        yield f"format = {plan.format}: expected {FORMAT}"
    if not plan.runs:
        yield "runs: expected at least one table [[runs]] with a recipe"
    places: list[tuple[str, Mapping[str, Any]]] = [("grid", plan.grid), ("settings", plan.settings)]
    for place, run in enumerate(plan.runs):
        here = f"runs[{place}]"
        if run.grid is not None and run.vary is not None:
            yield f"{here}: grid and vary exclude each other: the first crosses settings, the second changes one at a time"
        places += [(f"{here}.{key}", getattr(run, key) or {}) for key in ("settings", "grid", "vary")]
    for key, seeds in [("seeds", plan.seeds), *((f"runs[{i}].seeds", run.seeds) for i, run in enumerate(plan.runs))]:
        if key == "seeds" and not seeds:
            yield "seeds = []: expected at least one"
        if twice := [seed for seed, count in Counter(seeds).items() if count > 1]:
            yield f"{key}: {twice[0]} stands there twice"
        if below := [seed for seed in seeds if seed < 0]:
            yield f"{key}: {below[0]}: expected numbers >= 0"
    if plan.tune.grid:
        places.append(("tune.grid", plan.tune.grid))
        yield from _of_trials(plan)
    for where, table in places:
        for path, value in dotted(table).items():
            if path in ("seed", "name"):
                yield f"{where}.{path}: is set by the sweep; use {'seeds' if path == 'seed' else 'runs.name'}"
            if not where.endswith("settings"):
                yield from (f"{where}.{path}: {fault}" for fault in _of_values(value))


def _of_trials(plan: PlanFile) -> Iterator[str]:
    """What is wrong with the trials of a plan, but for the values that they try."""
    tune = plan.tune
    if tune.rounds < 1 or tune.seed < 0:
        yield f"tune: rounds = {tune.rounds}, seed = {tune.seed}: expected at least 1 round, and a seed >= 0"
    if tune.seed in {*plan.seeds, *(seed for run in plan.runs for seed in run.seeds)}:
        yield f"tune.seed = {tune.seed}: results have it, too; take one that none has, so that no result was looked at before"
    given = {path for run in plan.runs for table in (run.grid, run.vary) for path in dotted(table or {})}
    if twice := sorted(dotted(tune.grid).keys() & (dotted(plan.grid).keys() | given)):
        yield f"tune.grid: {twice[0]} is in the plan's grid, too; leave it out here or there"
    fixed = {path for table in (plan.settings, *(run.settings for run in plan.runs)) for path in dotted(table)}
    if twice := sorted(dotted(tune.grid).keys() & fixed):
        yield f"tune.grid: {twice[0]} is in settings, too, which would have no effect; leave it out here or there"
    if twice := sorted(dotted(tune.grid).keys() & {"rounds", "patience", "target"}):
        yield f"tune.grid: {twice[0]} is the same for all trials; set tune.rounds, or leave it to the runs"


def _of_values(values: object) -> Iterator[str]:
    """What is wrong with the values of a grid."""
    if isinstance(values, dict):
        if not values:
            yield "expected at least one value"
        return
    if not isinstance(values, list) or not values:
        yield f"expected a list of values, got {values!r}"
        return
    given = cast("list[object]", values)
    if any(isinstance(value, dict | list) for value in given):
        yield "lists and tables need names: give a table such as { small = {...}, large = {...} }"
    elif twice := [text for text, count in Counter(map(_word, given)).items() if count > 1]:
        yield f"{twice[0]} stands there twice"


def _of_names(plan: PlanFile, variants: Sequence[Variant]) -> Iterator[str]:
    folders = Counter(f"{each.name}-{seed}" for each in variants for seed in each.seeds)
    for name, count in folders.items():
        if count > 1:
            yield f"{count} runs would have the folder {name!r}: give their [[runs]] other names"
    for name in dict.fromkeys(each.name for each in variants):
        try:
            check_name("name of a run", name)
        except ConfigError as error:
            yield str(error)
    known = {each.name for each in variants} | {each.run for each in variants}
    if plan.baseline and plan.baseline not in known:
        yield f"baseline = {plan.baseline!r}: no run or variant has that name; there are {', '.join(sorted(known))}"


def _variants(plan: PlanFile, run: Recipe) -> Iterator[Variant]:
    base = run.name or "-".join([Path(run.recipe).stem, *([run.preset] if run.preset else [])])
    common = dotted(plan.settings) | dotted(run.settings)
    for settings, varied in _choices(plan, run):
        name = "-".join([base, *words(varied, len(varied) > 1 or len(run.vary or ()) > 1)])
        yield Variant(name, base, run.recipe, run.preset, common | settings, varied, run.seeds or plan.seeds)


def _choices(plan: PlanFile, run: Recipe) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings, and what the grid calls them: all that are crossed, or each that is changed alone."""
    if run.vary is not None:
        grids = [{path: values} for path, values in dotted(run.vary).items()]
    else:
        grids = [dotted(plan.grid if run.grid is None else run.grid)]
    for grid in grids:
        axes = [axis(path, values) for path, values in grid.items()]
        for point in product(*axes):
            yield {path: value for path, _, value in point}, {path: label for path, label, _ in point}


def words(varied: Mapping[str, Any], named: bool) -> list[str]:
    """Values of a grid as parts of a variant's name, with the names of their settings where values alone say too little."""
    plain = [_word(value) for value in varied.values()]
    return [f"{path.rpartition('.')[2]}={word}" for path, word in zip(varied, plain, strict=True)] if named else plain


def axis(path: str, values: Any) -> list[tuple[str, Any, Any]]:
    """Path, name and value of each point on an axis; a value is its own name."""
    named = values.items() if isinstance(values, dict) else [(value, value) for value in values]
    return [(path, name, value) for name, value in named]


def _word(value: object) -> str:
    """A value as a part of a folder's name."""
    return str(value).lower() if isinstance(value, bool) else str(value).replace("/", "-")


def dotted(table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted path, whether they were written so or as tables such as ``[settings.data]``."""
    found: dict[str, Any] = {}
    for path, value in table.items():
        if path in SECTIONS and isinstance(value, dict):
            found |= {f"{path}.{name}": inner for name, inner in value.items()}
        else:
            found[SHORT.get(path, path)] = value
    return found

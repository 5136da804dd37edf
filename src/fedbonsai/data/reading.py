"""How columns become samples, with all that was learned of the training set: the same for a test set and on a device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data import targets
from fedbonsai.data.arrays import NOBODY
from fedbonsai.data.audio import recordings
from fedbonsai.data.classes import few
from fedbonsai.data.columns import decode
from fedbonsai.data.config import DataConfig, SeriesConfig
from fedbonsai.data.kinds import Kind, Values
from fedbonsai.data.mapped import blocks
from fedbonsai.data.missing import filled, fills, refuse
from fedbonsai.data.series import ordered, windows
from fedbonsai.data.tables import Table, missing, taken
from fedbonsai.data.transforms import Part, Transform, data_of, parse
from fedbonsai.data.transforms.pictures import Resize
from fedbonsai.errors import ConfigError
from fedbonsai.telling import doing

SMALL = ("int8", "uint8", "int16")  # types that are stored as they are where all features have them


@dataclass(frozen=True)
class Reading:
    """Columns to samples.

    Attributes:
        x, y: columns of inputs and targets; no ``y`` where a transform makes the targets.
        client: column that says whose samples are; empty where nobody knows.
        role: of the inputs: number, picture, sound or text.
        shape: of an input that is one column; None for columns of single numbers.
        units: what stored inputs are multiplied with.
        targets: `classes` or `numbers`.
        names: of the classes; empty where they are bare numbers.
        series: windows of rows.
        impute, fill: how missing inputs are filled in, and with what.
        drop: whether samples without a target are left out.
        transforms: with what they learned.
        dtype: of stored inputs.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    client: str
    role: str
    shape: tuple[int, ...] | None
    units: tuple[float, ...] = ()
    targets: str = ""
    names: tuple[str, ...] = ()
    series: SeriesConfig = field(default_factory=SeriesConfig)
    impute: str = ""
    fill: Mapping[str, float] = field(default_factory=dict[str, float])
    drop: bool = False
    transforms: tuple[Transform, ...] = ()
    dtype: str = ""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of all columns that it needs."""
        series = (self.series.by, *self.series.order) if self.series.length else ()
        return tuple(dict.fromkeys(name for name in (*self.x, *self.y, self.client, *series) if name))

    def again(self, **changes: Any) -> Reading:
        """The same with other settings."""
        return replace(self, **changes)

    def text(self) -> str:
        """It as JSON, for devices."""
        body = {name: getattr(self, name) for name in self.__dataclass_fields__}
        body |= {"series": asdict(self.series), "transforms": [data_of(each) for each in self.transforms]}
        return json.dumps(body)

    @staticmethod
    def of(text: str) -> Reading:
        """What `text` wrote.

        Raises:
            ConfigError: it is none, or names a transform that is not known here.
        """
        try:
            body: dict[str, Any] = json.loads(text)
            body = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
            series: dict[str, Any] = body.pop("series")
            order = tuple(series.pop("order"))
            transforms = parse(body.pop("transforms"))
            return Reading(**body, series=SeriesConfig(**series, order=order), transforms=transforms)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"how the task's data are read cannot be understood here: {error}") from None

    def learned(self, table: Table) -> tuple[Reading, Part]:
        """The same with what it must know of the training set, and its samples."""
        columns = {name: table.columns[name] for name in self.x}
        transforms = tuple(each.learned(columns) for each in self.transforms)
        made = replace(self, transforms=transforms)
        if self.impute:
            made = replace(made, fill=fills(made._columns(table), self.impute))
        part = made._raw(table, True)
        if not made.names and part.y.dtype.kind in "OU":
            made = replace(made, targets="classes", names=targets.classes(part.y))
        part = replace(part, y=targets.numbered(part.y, made.targets, made.names, table.what), names=made.names)
        fitted: list[Transform] = []
        for each in made.transforms:
            fitted.append(each.fitted(part))
            part = fitted[-1](part)
        part = _stored(part, table.what)
        return replace(made, transforms=tuple(fitted), dtype=str(cast("NDArray[Any]", part.x).dtype)), part

    def __call__(self, table: Table, training: bool = False, scored: NDArray[np.bool_] | None = None) -> Part:
        """Samples of other rows: a test set, or a device's own.

        Raises:
            ConfigError: they do not fit.
        """
        part = self._raw(table, training, scored)
        part = replace(part, y=targets.numbered(part.y, self.targets, self.names, table.what), names=self.names)
        for each in self.transforms:
            part = each(part)
        return _stored(part, table.what)

    def _columns(self, table: Table) -> Mapping[str, Values]:
        columns: Mapping[str, Values] = {name: table.columns[name] for name in self.x}
        for each in self.transforms:
            columns = each.columns(columns, table.what)
        return columns

    def _raw(self, table: Table, training: bool, scored: NDArray[np.bool_] | None = None) -> Part:
        """Inputs as they were, or in windows, and targets as they were."""
        owners = table.text(self.client, "data.client =") if self.client in table.columns else NOBODY
        y = targets.stored(table, self.y)
        parts: Sequence[NDArray[np.int64]] = [np.arange(len(table))]
        if self.series.length or self.impute == "last":
            parts = self._series(table, owners)
        if self.role == "number":
            x = self._numbers(table, parts)
        elif self.role == "picture":
            x = self._pictures(table)
        else:
            x = table.columns[self.x[0]]
            if (absent := missing(x)).any():
                raise ConfigError(
                    f"{table.what}: {int(absent.sum())} values of {self.x[0]!r} are missing; drop these rows"
                )
        rate = 0
        if self.role == "sound":
            x, rate = recordings(cast("list[Any]", x), table.what)
        if self.series.length:
            rows, ends = windows(parts, self.series, scored)
            x, y = cast("NDArray[Any]", x)[rows], y[ends]
            owners = owners[ends] if owners.size else owners
        present = targets.present(y, self.y, self.drop, table.what)
        if len(present) < len(y):
            x, y, owners = taken(x, present), y[present], owners[present] if owners.size else owners
        y = targets.whole(y, [table.kinds[name] for name in self.y])
        if not len(y) and not self._makes_targets():
            raise ConfigError(f"{table.what}: no samples are left; expected at least one")
        return Part(table.what, x, y, owners, training, self.names, self.units, rate)

    def _makes_targets(self) -> bool:
        return any(each.makes_targets for each in self.transforms)

    def _series(self, table: Table, owners: NDArray[np.str_]) -> list[NDArray[np.int64]]:
        keys = owners if owners.size else np.zeros(len(table), np.str_)
        if self.series.by and self.series.by != self.client:  # two clients may call theirs alike
            runs = table.text(self.series.by, "data.series.by =")
            keys = np.char.add(np.char.add(keys, "\n"), runs)
        order: list[NDArray[Any]] = []
        for name in self.series.order:
            if missing(table.columns[name]).any():
                raise ConfigError(f"{table.what}: data.series.order = {name!r} is missing in some rows; drop these")
            order.append(np.asarray(table.columns[name]))
        return ordered(keys, order)

    def _numbers(self, table: Table, parts: Sequence[NDArray[np.int64]]) -> Values:
        columns = self._columns(table)
        if self.impute:
            columns = filled(columns, self.fill, self.impute, parts)
        refuse(columns, table.what)
        if words := [name for name, values in columns.items() if isinstance(values, list) and _is_text(values)]:
            raise ConfigError(
                f"{table.what}: {few([repr(name) for name in words])} hold text, expected numbers; leave these columns out of "
                f"data.x, or set data.transforms = [{{onehot = {words}}}, ...]"
            )
        if self.shape is None:
            if wrong := [name for name, values in columns.items() if len(values) and np.ndim(values[0])]:
                raise ConfigError(
                    f"{table.what}: {', '.join(wrong)}: lists beside other columns; give each alone as data.x"
                )
            kind = np.result_type(*(np.asarray(values).dtype for values in columns.values()))
            kind = kind if str(kind) in SMALL else np.dtype(np.float32)
            return np.stack([np.asarray(values).astype(kind) for values in columns.values()], 1)
        (values,) = columns.values()
        if isinstance(values, list):
            shapes = sorted({np.shape(value) for value in values})
            if len(shapes) > 1 and not any(each.short == "window" for each in self.transforms):
                raise ConfigError(
                    f"{table.what}: values of {self.x[0]!r} have {len(shapes)} shapes, such as {list(shapes[0])} and "
                    f"{list(shapes[-1])}; bring them to one length: data.transforms = [{{window = {max(shapes)[0]}}}]"
                )
            return np.stack(values) if len(shapes) == 1 else values
        if prod(values.shape[1:]) != prod(self.shape):
            raise ConfigError(
                f"{table.what}: {self.x[0]!r} has {prod(values.shape[1:])} values a row, {list(values.shape[1:])}; expected "
                f"{list(self.shape)} (data.shape)"
            )
        return values.reshape(-1, *self.shape)

    def _pictures(self, table: Table) -> Values:
        values = table.columns[self.x[0]]
        if isinstance(values, np.ndarray):
            return _channels_last(values)
        first = self.transforms[0] if self.transforms else None
        resize = first.size if isinstance(first, Resize) else None
        with doing(f"decoding {table.what} images", len(values)) as told:
            return decode(values, table.what, told, resize)


def _is_text(values: list[Any]) -> bool:
    return any(isinstance(value, str) for value in values)


def _channels_last(x: NDArray[Any]) -> NDArray[Any]:
    """Bytes [samples, height, width], or with channels first or last, as [samples, height, width, channels]."""
    if x.ndim == 3:
        return x[..., None]
    return x if x.shape[3] in (1, 3) or x.shape[1] not in (1, 3) else np.moveaxis(x, 1, 3)


def _stored(part: Part, what: str) -> Part:
    """Inputs in the type that they are stored in.

    Raises:
        ConfigError: they are no array of numbers, or not finite.
    """
    if not isinstance(part.x, np.ndarray):
        kind = "text" if part.x and isinstance(part.x[0], str) else "of lengths of their own"
        advice = "[{chars = 80}]" if kind == "text" else "[{window = 8000}], for recordings with 'logmel' behind it"
        raise ConfigError(f"{what}: inputs are {kind}; set data.transforms = {advice}")
    x = part.x
    if x.dtype.kind == "f" and (bad := sum(int((~np.isfinite(block)).sum()) for block in blocks(x))):
        raise ConfigError(f"{what}: {bad:,} input values are NaN or infinite; clean the data first")
    if not part.vocabulary and str(x.dtype) not in SMALL:
        x = x.astype(np.float32, copy=False)
    return replace(part, x=x)


def reading_of(table: Table, config: DataConfig, x: tuple[str, ...], y: tuple[str, ...], client: str) -> Reading:
    """How the columns of a training set are read, before anything is learned of it.

    Raises:
        ConfigError: columns of kinds that do not go together, or settings that have no meaning for them.
    """
    first, transforms = table.kinds[x[0]], parse(config.transforms)
    role = _role([table.kinds[name] for name in x], x, table.what, any(each.short == "onehot" for each in transforms))
    lists = len(x) == 1 and first.shape != () and role == "number"
    if config.shape and not lists:
        raise ConfigError(f"data.shape = {list(config.shape)}: {', '.join(x)} are no lists; leave it out")
    if config.series.length and (role != "number" or lists):
        raise ConfigError(
            "data.series gathers rows of single numbers; leave it out where each row is a sample of its own"
        )
    shape = (config.shape or first.shape or (0,)) if lists else None
    names = table.kinds[y[0]].names if len(y) == 1 else ()
    return Reading(
        x,
        y,
        client,
        role,
        shape=shape,
        units=_units(first.units, shape, table.what) if shape and first.units else (),
        targets=config.targets or ("classes" if names else ""),
        names=names,
        series=config.series,
        impute=config.impute,
        drop=config.drop_missing_targets,
        transforms=transforms,
    )


def _units(units: tuple[float, ...], shape: tuple[int, ...], what: str) -> tuple[float, ...]:
    """One unit for each of the last axis; where that runs over several rows of the file's own shape, they are repeated."""
    if len(units) == 1 or len(units) == shape[-1]:
        return units
    if len(shape) == 1 and shape[0] % len(units) == 0:
        return units * (shape[0] // len(units))
    raise ConfigError(
        f"{what}: the files give {len(units)} scales, data.shape = {list(shape)} ends with {shape[-1]} features"
    )


def _role(kinds: Sequence[Kind], names: Sequence[str], what: str, categories: bool) -> str:
    """What inputs are: number, picture, sound or text."""
    odd = ("other", "time") if len(kinds) == 1 else ("other", "time", "picture", "sound", "bytes")
    if wrong := [f"{name!r} ({kind.words})" for name, kind in zip(names, kinds, strict=True) if kind.role in odd]:
        raise ConfigError(
            f"{what}: {few(wrong)}: expected columns of numbers, or one of images, sounds or text as data.x"
        )
    role = kinds[0].role if len(kinds) == 1 else "number"
    return {"class": "number", "bytes": "sound", "text": "number" if categories else "text"}.get(role, role)

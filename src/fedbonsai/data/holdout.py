"""A test set taken out of the data: other clients, or later samples of the same ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.classes import few
from fedbonsai.data.config import DataConfig
from fedbonsai.data.series import ordered
from fedbonsai.data.tables import Table, together
from fedbonsai.errors import ConfigError

TENTH = 10


def divided(train: Table, test: Table | None, config: DataConfig, client: str) -> tuple[Table, Table]:
    """Training and test rows: the test files, what `holdout` asks for, or every tenth training row by a fixed draw.

    Raises:
        ConfigError: the clients that are asked for are not there, or nobody says whose rows are.
    """
    wanted = config.holdout
    if not wanted:
        if test is not None:
            return train, test
        if config.series.length:
            raise ConfigError(
                "data.series: there are no test files, and single rows cannot be taken out of series; set data.holdout, such "
                "as {clients = 2} or {later = 0.2}"
            )
        count = len(train)
        chosen = np.zeros(count, bool)
        chosen[np.random.default_rng(0).permutation(count)[: max(1, count // TENTH)]] = True
    else:
        if not client:
            raise ConfigError(
                "data.holdout takes samples of clients: set data.client to the column that says whose they are"
            )
        train = train if test is None else together([train, test])
        owners = train.text(client, "data.client =")
        chosen = _later(train, owners, config) if wanted.later else _of_clients(owners, config)
    parts = [np.flatnonzero(~chosen), np.flatnonzero(chosen)]
    if not all(map(len, parts)):
        raise ConfigError(
            f"data.holdout leaves {len(parts[0])} rows for training and {len(parts[1])} for the test of {len(train)}; expected "
            "some of each"
        )
    return train.take(parts[0]), replace(train, what="test").take(parts[1])


def _of_clients(owners: NDArray[np.str_], config: DataConfig) -> NDArray[np.bool_]:
    known = np.unique(owners)
    names = list(config.holdout.names)
    if strange := [name for name in names if name not in known]:
        raise ConfigError(
            f"data.holdout.names: {few(strange)}: no such clients; there are {few([str(each) for each in known])}"
        )
    if config.holdout.clients:
        if config.holdout.clients >= len(known):
            raise ConfigError(
                f"data.holdout.clients = {config.holdout.clients}: there are {len(known)} clients; leave some for training"
            )
        names = np.random.default_rng(0).permutation(known)[: config.holdout.clients].tolist()
    return np.isin(owners, names)


def _later(table: Table, owners: NDArray[np.str_], config: DataConfig) -> NDArray[np.bool_]:
    order = config.holdout.order or config.series.order
    chosen = np.zeros(len(table), bool)
    for rows in ordered(owners, [np.asarray(table.columns[name]) for name in order]):
        chosen[rows[len(rows) - round(config.holdout.later * len(rows)) :]] = True
    return chosen

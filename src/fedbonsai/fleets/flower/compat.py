"""What of Flower is private, moves between its releases, or must be told before it is imported: all of it is here."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedbonsai.errors import Missing

CLIENT_FAILED = 2  # Flower's error code for an exception in a ClientApp
EXPIRED = 3  # and for a question whose time was over before an answer came
QUIET = {  # daemons and apps that we start neither call home nor fetch anything
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def require() -> str:
    """Version of Flower.

    Raises:
        Missing: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return version("flwr")
    except PackageNotFoundError:
        raise Missing("real devices need Flower; install it with: pip install 'fedbonsai[flower]'") from None


def release() -> tuple[int, int]:
    """Release of Flower, such as (1, 41)."""
    major, minor = require().split(".")[:2]
    return int(major), int(minor)


def act_as_server(run: int) -> None:
    """Let this process create instructions outside of a run that Flower started; from 1.38 on it must say who it is."""
    try:
        identity = import_module("flwr.supercore.task_identity").TaskIdentity
    except ImportError:
        return  # older than 1.38: whoever asks may create messages
    identity.task_id, identity.run_id, identity.node_id = 1, run, 1


def set_id(message: Any, id: str) -> None:
    """Give a message its id, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = id


def empty_run(run: int) -> Any:
    """Description of a run that no SuperLink knows."""
    for home in ("flwr.supercore.run", "flwr.common.typing"):
        try:
            kind = import_module(home).Run
        except (ImportError, AttributeError):
            continue
        return kind.create_empty(run)
    raise Missing(f"flwr {require()} has no Run; install a tested one: pip install 'fedbonsai[flower]'")

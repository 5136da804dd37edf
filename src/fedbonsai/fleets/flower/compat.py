"""What of Flower is private, moves between its releases, or must be told before it is imported: all of it is here."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedbonsai.errors import ConfigError, Missing

OLDEST = (
    1,
    40,
)  # the first release whose SuperLink speaks HTTP on one port, which `gate` relies on; also in pyproject.toml
CLIENT_FAILED = 2  # Flower's error code for an exception in a ClientApp
POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"  # environment: seconds between looks for a message to start an app for
EXPIRED = 3  # and for a question whose time was over before an answer came
QUIET = {  # daemons and apps that we start neither call home nor fetch anything
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def require() -> None:
    """See that Flower is here and new enough, and keep it quiet.

    Raises:
        Missing: it is not installed.
        ConfigError: it is too old.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise Missing("real devices need Flower; install it with: pip install 'fedbonsai[flower]'") from None

    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(f"flwr {found} is too old; {oldest} or newer is needed: pip install -U 'fedbonsai[flower]'")


def act_as_server(run: int) -> None:
    """Let this process create instructions outside of a run that Flower started: it must say who it is."""
    identity = import_module("flwr.supercore.task_identity").TaskIdentity
    identity.task_id, identity.run_id, identity.node_id = 1, run, 1


def set_id(message: Any, id: str) -> None:
    """Give a message its id, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = id


def empty_run(run: int) -> Any:
    """Description of a run that no SuperLink knows."""
    return import_module("flwr.supercore.run").Run.create_empty(run)


def executor() -> tuple[Any, Any, Any]:
    """Main function of the SuperExec, the module in which it starts processes, and the main function of an app."""
    return (
        import_module("flwr.supercore.cli").flower_superexec,
        import_module("flwr.supercore.superexec.executor.subprocess_executor"),
        import_module("flwr.supernode.cli").flwr_clientapp,
    )

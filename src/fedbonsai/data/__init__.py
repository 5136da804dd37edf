"""Data sets and how their samples are divided among clients. Importing this package does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedbonsai.data.config import DataConfig, HoldoutConfig, InputConfig, SeriesConfig

if TYPE_CHECKING:
    from fedbonsai.data.federation import Federation, load
    from fedbonsai.data.given import Given, of
    from fedbonsai.data.split import Split

__all__ = ["DataConfig", "Federation", "Given", "HoldoutConfig", "InputConfig", "SeriesConfig", "Split", "load", "of"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: a command line must answer ``--help`` at once."""
    if name in ("Federation", "load"):
        from fedbonsai.data import federation

        return getattr(federation, name)
    if name in ("Given", "of"):
        from fedbonsai.data import given

        return getattr(given, name)
    if name == "Split":
        from fedbonsai.data.split import Split

        return Split
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

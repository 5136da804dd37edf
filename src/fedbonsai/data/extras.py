"""The optional packages that data sets need, imported when they are needed and kept quiet."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from typing import Any

from fedbonsai.errors import Missing


def extra(module: str) -> Any:
    """Import a module of the ``sim`` extra.

    Raises:
        Missing: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise Missing(f"data sets need {module} ({error}); install it with: pip install 'fedbonsai[sim]'") from error


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars and no warnings of those libraries: what matters in them becomes an error of ours."""
    datasets = extra("datasets")
    shown: bool = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        # flwr-datasets draws a bar of its own straight to stderr
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()

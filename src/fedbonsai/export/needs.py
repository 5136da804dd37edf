"""The optional packages of an export, imported when one is made and kept quiet: they warn of what no user can change."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from fedbonsai.errors import Missing


def need(module: str) -> Any:
    """Import a module of the ``export`` extra.

    Raises:
        Missing: it is not installed.
    """
    try:
        with quiet():
            return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise Missing(f"this export needs {name} ({error}); install it: pip install 'fedbonsai[export]'") from error


@contextmanager
def quiet() -> Generator[None]:
    """Neither warnings nor log lines of those packages."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

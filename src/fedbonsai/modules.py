"""Modules of a user's own, imported by name: methods, networks and data that this library does not know."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fedbonsai.errors import ConfigError


def own(name: str) -> ModuleType:
    """A module that lies in the current folder or is installed.

    Raises:
        ConfigError: it is not there, or it raises; the text has its file and line.
    """
    here = str(Path.cwd())
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise ConfigError(f"imports: expected names of modules, as Python imports them, such as my_nets; got {name!r}")
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"imports: module {name!r} cannot be imported: {_why(name, error, here)}") from None


def _why(name: str, error: BaseException, here: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        hint = (
            f"; write it without .py: {name[:-3]}"
            if name.endswith(".py")
            else "; is it spelled so, and installed here?"
        )
        return f"there is no such module in {here} or among those installed{hint}"
    text = " ".join(str(error).split()) or "no text"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    raised = [place for place in traceback.extract_tb(error.__traceback__) if not place.filename.startswith("<")]
    raised = [place for place in raised if place.filename != __file__ and "importlib" not in Path(place.filename).parts]
    where = f"{raised[-1].filename}, line {raised[-1].lineno}: " if raised else ""
    return f"{where}{type(error).__name__}: {text}"

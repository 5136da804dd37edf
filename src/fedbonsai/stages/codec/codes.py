"""Numbers in a payload, and the classes that they stand for."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Generic, TypeVar

from fedbonsai.errors import BadMessage

C = TypeVar("C")
R = TypeVar("R")


class Codes(Generic[C]):
    """One field of the payload.

    Args:
        field: what stands there.
        own: numbers for stages of a user's own; the others are this library's.
    """

    def __init__(self, field: str, own: range) -> None:
        self.field, self.own = field, own
        self._held: dict[int, type[C]] = {}

    def claim(self, code: int, cls: type[C], own: bool) -> None:
        """Have a number stand for a class.

        Raises:
            ValueError: it is taken, or is not one of a user's own.
        """
        held = self._held.get(code)
        if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"{cls.__name__}: code {code} of {self.field} is taken by {held.__module__}.{held.__qualname__}; "
                f"choose another of {self._range}"
            )
        if own and code not in self.own:
            raise ValueError(f"{cls.__name__}: code {code} of {self.field}: expected one of {self._range}")
        self._held[code] = cls

    def read(self, code: int, by: Callable[[type[C]], R]) -> R:
        """Decode by the class that a number stands for; whatever a user's own raises over damaged bytes is `BadMessage`.

        Raises:
            BadMessage: no class that is known here, or it cannot read what is there.
        """
        if code not in self._held:
            missing = "import the module of that stage here too" if code in self.own else "the sender may be newer"
            raise BadMessage(f"unknown codec {code} of {self.field}; {missing}")
        kind = self._held[code]
        if code not in self.own:
            return by(kind)
        try:
            return by(kind)
        except (ValueError, TypeError, ArithmeticError, LookupError, struct.error) as error:
            raise BadMessage(f"{kind.__name__}: {error}") from error

    @property
    def _range(self) -> str:
        return f"{self.own.start} to {self.own.stop - 1}, which are for stages of one's own"

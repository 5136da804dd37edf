"""Classes by name and by number: a label means what its name says, whatever number a file gives it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from fedbonsai.data.arrays import Labels
from fedbonsai.errors import ConfigError

SHOWN = 5  # names or numbers in one error


def numbers(names: Iterable[str]) -> dict[str, int]:
    """Number of each class by its name, which is one however its accents are encoded (macOS takes them apart)."""
    return {plain(name): number for number, name in enumerate(names)}


def plain(name: str) -> str:
    """A name in the one form that names are compared in."""
    return unicodedata.normalize("NFC", name)


def joined(parts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All names of several files, each once, in the order in which they are first declared."""
    found: dict[str, str] = {}
    for names in parts:
        for name in names:
            found.setdefault(plain(name), name)
    return tuple(found.values())


def counted(names: Sequence[str]) -> bool:
    """Whether the names are but the numbers 0 to n - 1."""
    return list(names) == [str(number) for number in range(len(names))]


def translated(y: Labels, own: Sequence[str], names: Sequence[str], what: str) -> Labels:
    """Labels of one file as numbers of the common names.

    Args:
        y: as the file gives them.
        own: names that the file declares; none where its labels are bare numbers.
        names: the common ones; none where no training file declares any.
        what: which file, for error texts.

    Raises:
        ConfigError: a label whose name is not among the common ones, or bare numbers on one side and names on the other.
    """
    if not own or not names:
        if counted(own) and counted(names):
            return y
        raise ConfigError(
            f"labels of {what} are {'names' if own else 'bare numbers'}, those of other files are "
            f"{'names' if names else 'bare numbers'} ({few(own or names)}): which is which cannot be told; "
            "write all files with the same ClassLabel"
        )
    known = numbers(names)
    table = np.array([known.get(plain(name), -1) for name in own], np.int64)
    found = table[y]
    if strange := sorted({str(own[number]) for number in y[found < 0].tolist()}):
        raise ConfigError(
            f"{what} holds classes that the training files do not name: {few(strange)}; theirs are {few(names)}"
        )
    return found


def contiguous(y: Labels, test: Labels) -> tuple[str, ...]:
    """Names of classes that are but numbers: those of both sets, which must be 0 to n - 1.

    Raises:
        ConfigError: there are gaps, each of which would be an output that nothing trains.
    """
    found = np.union1d(y, test)
    largest = int(found[-1])
    if largest >= len(found):
        first = int(np.flatnonzero(found != np.arange(len(found)))[0])
        raise ConfigError(
            f"labels are {len(found)} different numbers from {int(found[0])} to {largest}, without {first} "
            f"({largest + 1 - len(found)} are missing in all): number the classes 0 to {len(found) - 1}, or declare the "
            "names of all as a ClassLabel (datasets: class_encode_column); quantities are data.targets = 'numbers'"
        )
    return tuple(str(number) for number in range(len(found)))


def few(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

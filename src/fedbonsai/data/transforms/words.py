"""Text as windows of tokens, each with the one that follows it as its target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.transforms.base import Part, Transform, learned, transform, whole
from fedbonsai.errors import ConfigError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # token 0: a character that the training text has not
PADDING = -1  # target that does not count


@transform("chars", "window")
class Chars(Transform):
    """Characters, in windows with the next ones as targets; texts of one client are joined first, in their order.

    Token 0 stands for characters that the training text does not have. The last window of a text is filled up with it, and
    targets of -1, which do not count.
    """

    window: int = 80
    """Characters of a sample."""
    stride: int = 0
    """Characters from one window to the next; 0: as many as it has."""
    between: str = "\n"
    """What stands between the texts of one client."""
    alphabet: str = learned("")

    makes_targets = True

    def __post_init__(self) -> None:
        """Refuse windows that cannot be meant."""
        whole(self.window, "window")
        whole(self.stride, "stride", 0)

    def fitted(self, part: Part) -> Chars:
        """With the characters of the training text, sorted."""
        return replace(self, alphabet="".join(sorted(set().union(self.between, *part.x))))

    def __call__(self, part: Part) -> Part:
        """Windows [samples, window] of each client's text."""
        owners = part.owners if part.owners.size else np.asarray([str(row) for row in range(len(part.x))], np.str_)
        texts: dict[str, list[str]] = {}
        for owner, text in zip(owners.tolist(), part.x, strict=True):
            if not isinstance(text, str):
                raise ConfigError(f"chars: {part.what} hold {type(text).__name__}; expected text")
            texts.setdefault(owner, []).append(text)
        cut = {owner: self._windows(self.between.join(rows)) for owner, rows in texts.items()}
        whose = [owner for owner, windows in cut.items() for _ in windows]
        every = np.concatenate([*cut.values()]) if cut else np.empty((0, self.window + 1), np.int64)
        x = np.where(every[:, :-1] == PADDING, 0, every[:, :-1])
        return replace(
            part,
            x=x,
            y=every[:, 1:].copy(),
            owners=np.asarray(whose, np.str_) if part.owners.size else part.owners,
            names=(UNKNOWN, *self.alphabet),
            vocabulary=1 + len(self.alphabet),
        )

    def _windows(self, text: str) -> NDArray[np.int64]:
        """Tokens [windows, window + 1], -1 behind the end."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.frombuffer(self.alphabet.encode("utf-32-le"), np.uint32)  # sorted, as its characters are
        place = np.minimum(np.searchsorted(known, points), len(known) - 1)
        tokens: NDArray[Any] = np.where(known[place] == points, place + 1, 0)
        stride = self.stride or self.window
        begins = range(0, max(1, len(tokens) - 1), stride) if len(tokens) > 1 else range(0)
        out = np.full((len(begins), self.window + 1), PADDING, np.int64)
        for row, begin in enumerate(begins):
            part = tokens[begin : begin + self.window + 1]
            out[row, : len(part)] = part
        return out

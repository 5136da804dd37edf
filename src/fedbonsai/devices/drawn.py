"""Which kind of device each of several ids is said to be, drawn by seed: as many of each kind as its share says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fedbonsai.errors import ConfigError
from fedbonsai.tree import seed_of

K = TypeVar("K")


def shared_out(names: str, ids: Sequence[str], seed: int) -> dict[str, str]:
    """Names for devices by a setting such as ``raspberry-pi-4 0.7, jetson-nano 0.3``; who gets which is drawn.

    Raises:
        ConfigError: shares are missing, or do not sum to 1.
    """
    if "," not in names and names.strip() and share_of(names)[0] is None:
        return dict.fromkeys(ids, names.strip())
    parts = [share_of(part) for part in names.split(",")]
    shares = [(name, share) for share, name in parts if share is not None and share > 0 and name]
    if len(shares) < len(parts) or not abs(sum(share for _, share in shares) - 1) <= 1e-6:
        raise ConfigError(f"{names!r}: expected one name, or names with shares that sum to 1, such as 'a 0.7, b 0.3'")
    return dealt([name for name, _ in shares], [share for _, share in shares], ids, seed, f"clock/share {names}")


def dealt(kinds: Sequence[K], shares: Sequence[float], ids: Sequence[str], seed: int, use: str) -> dict[str, K]:
    """One of several kinds for each id, as many of each as its share says.

    Args:
        kinds: names or numbers.
        shares: of the ids, which sum to 1.
        ids: of devices.
        seed: of the run.
        use: what is drawn, in words that no other use has.
    """
    drawn = sorted(ids, key=lambda id: seed_of(seed, f"{use} {id}", -1, 0))
    found: dict[str, K] = {}
    begin = total = 0.0
    for kind, share in zip(kinds, shares, strict=True):
        total += share
        end = round(total * len(drawn))
        found |= dict.fromkeys(drawn[int(begin) : end], kind)
        begin = end
    return found


def share_of(part: str) -> tuple[float | None, str]:
    """The share at the end of a part such as ``my device.toml 0.7``, None where there is none, and the name before it."""
    name, _, share = part.strip().rpartition(" ")
    try:
        return float(share), name.strip()
    except ValueError:
        return None, part.strip()

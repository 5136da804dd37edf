"""The one error of the encoder; whatever is wrong with received bytes is `BadMessage`."""

from __future__ import annotations

from fedbonsai.errors import FedbonsaiError


class NotFinite(FedbonsaiError, ValueError):
    """A value that is NaN, infinite, or too large for the codec; the client's task reports instead of sending."""

"""The few errors of this library; each text says what was given, what was expected and what to do."""


class FedbonsaiError(Exception):
    """Base of all errors that this library raises on purpose."""


class BadMessage(FedbonsaiError):
    """Bytes that are not a message of this library: truncated, altered, oversized or lying."""


class ConfigError(FedbonsaiError):
    """A configuration that cannot be run; the text lists every fault at once."""


class Unwritable(ConfigError):
    """A disk that is full, or a folder that cannot be written; the text says which, and what to do."""


class Unanswered(FedbonsaiError):
    """Fewer devices answered than the method needs; the state of the round before stands.

    ``forgot`` names devices that said they lost what they held: what a server believes of them must be mended even so.
    """

    def __init__(self, text: str, forgot: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.forgot = forgot


class Silent(FedbonsaiError):
    """Raised by a task that has no answer to give; the device counts as silent, with this text as the reason."""


class Forgotten(Silent):
    """The client lost what it should hold."""


class NotFinite(Silent, ValueError):
    """Values that are NaN or infinite; they never enter an aggregate."""


class Missing(FedbonsaiError):
    """An optional part is not installed; the text names the extra that brings it."""

"""The few errors of this library; each text says what was given, what was expected and what to do."""


class FedbonsaiError(Exception):
    """Base of all errors that this library raises on purpose."""


class BadMessage(FedbonsaiError):
    """Bytes that are not a message of this library: truncated, altered, oversized or lying."""


class ConfigError(FedbonsaiError):
    """A configuration that cannot be run; the text lists every fault at once."""


class Unwritable(ConfigError):
    """A disk that is full, or a folder that cannot be written; the text says which, and what to do."""


class DiskFull(Unwritable):
    """A disk without room; whatever is written there goes on once there is some."""


class Unanswered(FedbonsaiError):
    """Fewer devices answered than the method needs; the state of the round before stands.

    ``forgot`` names devices that said they lost what they held: what a server believes of them must be mended even so.
    """

    def __init__(self, text: str, forgot: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.forgot = forgot


class NothingLearned(Unanswered):
    """Rounds in a row brought no update; the text has the reason and what to do."""


class Silent(FedbonsaiError):
    """Raised by a task that has no answer to give; the device counts as silent, with this text as the reason."""


class Failed(Silent):
    """A task raised on a client, which is therefore silent; ``trace`` is the traceback."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


class TaskFailed(FedbonsaiError):
    """A task fails alike on all clients: the fault is not a client's. The first traceback is a note of the error."""


class Forgotten(Silent):
    """The client lost what it should hold."""


class NotFinite(Silent, ValueError):
    """Values that are NaN or infinite; they never enter an aggregate."""


class Missing(FedbonsaiError):
    """An optional part is not installed; the text names the extra that brings it."""


def said(error: BaseException, most: int = 400) -> str:
    """Type and text of any exception on one line of printable characters; a text that cannot be had is left out."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # whatever a user's own exception does instead of giving its text
        text = f"{type(error).__name__} (its text cannot be shown)"
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line[:most].rstrip(": ")


def exit_code(error: BaseException) -> int:
    """Exit code of a command that ends with an error: 3 too few answers, 2 wrong input, 1 a fault in this library."""
    return 3 if isinstance(error, Unanswered) else 2 if isinstance(error, FedbonsaiError) else 1

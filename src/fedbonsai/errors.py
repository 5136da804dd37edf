"""The few errors of this library; each text says what was given, what was expected and what to do."""


class FedbonsaiError(Exception):
    """Base of all errors that this library raises on purpose."""


class BadMessage(FedbonsaiError):
    """Bytes that are not a message of this library: truncated, altered, oversized or lying."""


class ConfigError(FedbonsaiError):
    """A configuration that cannot be run; the text lists every fault at once."""


class Unanswered(FedbonsaiError):
    """Fewer devices answered than the method needs; the state of the round before stands."""


class Forgotten(FedbonsaiError):
    """Raised by a task whose client lost what it should hold; the device counts as silent."""


class Missing(FedbonsaiError):
    """An optional part is not installed; the text names the extra that brings it."""

"""Every way lite-probe refuses to go on.

An error says what was expected, what came, and what to do about it. The message carries the first two,
the hint the third. The kind fixes the exit code of the command line; nothing else in the library exits.
"""

from typing import ClassVar


class LiteProbeError(Exception):
    """Base of every error a user can cause or meet.

    Args:
        message: What was expected and what came, with the names involved.
        hint: What to do about it; may be empty where the message says it all.
        sample: Lines to copy, such as a file to start from; printed below as they are.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "", sample: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sample = sample

    def __str__(self) -> str:
        said = f"{self.message}; {self.hint}" if self.hint else self.message
        return f"{said}\n{self.sample}" if self.sample else said


class UsageError(LiteProbeError):
    """The request itself makes no sense: an option out of range, options that exclude each other."""

    exit_code = 2


class InputError(LiteProbeError):
    """A file or value was refused: not a checkpoint, truncated, the wrong shape, too short."""

    exit_code = 3


class UnsafePickleError(InputError):
    """A pickle asks for a name outside the allow-list; it was refused before it ran."""


class NumericsError(LiteProbeError):
    """Numbers went bad: NaN weights, a loss that is not finite, a loss that is not deterministic."""

    exit_code = 4


class ReplayError(LiteProbeError):
    """A replay could not be carried out."""

    exit_code = 5


class ThresholdError(LiteProbeError):
    """What was measured misses a threshold that it was to keep."""

    exit_code = 5


class OutputError(LiteProbeError):
    """A result cannot be written: no space, no permission, a file where a folder should be."""

    exit_code = 6


class PeerError(LiteProbeError):
    """Another process of the same run failed, was killed, or sent nothing in time."""

    exit_code = 7


def shown(value: object, limit: int = 80) -> str:
    """Return a value out of a file as a message can show it: on one line, and short however large it is.

    Args:
        value: A number, a text, or a list or tuple of these; of anything else hardly more than its type is told.
        limit: Characters of a text.
    """
    if isinstance(value, str | bytes):
        return repr(value[:limit]) + ("…" if len(value) > limit else "")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 256 else f"a whole number of {value.bit_length():,} bits"
    if isinstance(value, list | tuple):
        members = ["…" if isinstance(member, list | tuple) else shown(member, limit) for member in value[:6]]
        members += ["…"] if len(value) > 6 else []
        inner = ", ".join(members)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(members) == 1 else ''})"
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    return f"a {type(value).__name__}"


def shown_name(name: object, limit: int = 200) -> str:
    """Return a name out of a file without quotes, its control characters escaped, and no longer than a line or two."""
    text = name[:limit] if isinstance(name, str) else shown(name)
    return repr(text)[1:-1] + ("…" if isinstance(name, str) and len(name) > limit else "")

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
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


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


class OutputError(LiteProbeError):
    """A result cannot be written: no space, no permission, a file where a folder should be."""

    exit_code = 6

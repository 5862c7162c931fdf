"""What a hyperparameter may be: its default, its range, its words; each value of each optimizer is checked here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lite_probe.errors import UsageError
from lite_probe.results.blocks import BLOCK_NAMES


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the largest value, and how messages write them."""

    low: float
    high: float
    text: str  # "[0, 1)"


BELOW_ONE = Bounds(0.0, math.nextafter(1.0, 0.0), "[0, 1)")
SHARE = Bounds(0.0, 1.0, "[0, 1]")
UP_TO_MILLION = Bounds(0.0, 1e6, "[0, 1e6]")
POSITIVE = Bounds(0.0, 1e12, "[0, 1e12]")
DAMPING = Bounds(-1e6, 1e6, "[-1e6, 1e6]")
RATIO = Bounds(1.0, 1e6, "[1, 1e6]")
STEPS = Bounds(1, 100, "[1, 100]")
PERIOD = Bounds(1, 10**9, "[1, 1e9]")
COUNT = Bounds(0, 10**9, "[0, 1e9]")
RANK = Bounds(1, 10**9, "[1, 1e9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One hyperparameter of an optimizer.

    Values are of the default's kind: a number, a whole number, a name, True or False, some numbers, numbers by block.
    Where the default is None they are None, a number or a name; where that of a block is, any block's may be None.
    """

    default: Any
    bounds: Bounds | None = None  # of each number
    choices: tuple[str, ...] = ()  # the names there are; () for any
    is_whole: bool = False  # whether numbers by block are whole numbers
    is_settable: bool = True  # else it stays at its default, which the geometry reads
    is_ramp: bool = False  # one of `Schedule`'s: of the whole optimizer, not of its groups

    def complete(self, name: str, value: Any) -> Any:
        """Return a value for every block where the default has one: blocks that are not named keep theirs.

        Numbers are Python's own: those of `numpy.linspace` would not come back from a file of tensors and numbers.

        Raises:
            UsageError: If a block is unknown.
        """
        value = _plain(value)
        if not isinstance(self.default, Mapping):
            return value
        if not isinstance(value, Mapping):
            return dict.fromkeys(BLOCK_NAMES, value)
        unknown = sorted(set(value) - set(BLOCK_NAMES))
        if unknown:
            raise UsageError(f"expected {name} for blocks among {', '.join(BLOCK_NAMES)}, got {', '.join(unknown)}")
        return {**self.default, **value}

    def require(self, name: str, value: Any) -> None:
        """Refuse a value that is out of range, none of the words, or of another kind than the default.

        Raises:
            UsageError: If it is one.
        """
        if value is None is self.default:
            return
        if self.bounds is not None:
            self._require_range(name, value, self.bounds)
        if self.choices and value not in list(self.choices):
            words = ", ".join(self.choices)
            among = f"{name} {words} or None" if self.default is None else f"{name} among {words}"
            raise UsageError(f"expected {among}, got {_shown(value)}")
        kind, is_right = self._kind(value)
        if not is_right:
            raise UsageError(f"expected {name} to be {kind}, got {_shown(value)}")

    def _require_range(self, name: str, value: Any, bounds: Bounds) -> None:
        is_right = _is_whole if self.is_whole or _is_whole(self.default) else _is_number
        for one in _values(value):
            if one is None and self._may_be_none:
                continue
            if not is_right(one) or not bounds.low <= one <= bounds.high:
                what = f"{name} None or" if self._may_be_none else name
                raise UsageError(f"expected {what} in {bounds.text}, got {_shown(one)}")

    def _kind(self, value: Any) -> tuple[str, bool]:
        """Return the default's kind in words, and whether a value is of it."""
        default = self.default
        if default is None:
            return "a number, a name or None", value is None or isinstance(value, str) or _is_number(value)
        if isinstance(default, bool):
            return "True or False", isinstance(value, bool)
        if isinstance(default, int):
            return "a whole number", _is_whole(value)
        if isinstance(default, str):
            return "a name", isinstance(value, str)
        if isinstance(default, tuple):
            is_right = isinstance(value, tuple | list) and len(value) == len(default) and all(map(_is_number, value))
            return f"{len(default)} numbers", is_right
        if isinstance(default, Mapping):
            numbers = [one for one in _values(value) if one is not None or not self._may_be_none]
            return "a number, or one for each block", all(map(_is_number, numbers))
        return "a number", _is_number(value)

    @property
    def _may_be_none(self) -> bool:
        """Whether None is a default, if only that of a block."""
        return None in _values(self.default)


LEARNING_RATE = Hyperparameter(default=1.0, bounds=UP_TO_MILLION)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return a value, or what holds some, with Python's own numbers."""
    if isinstance(value, Mapping):
        return {key: _plain_number(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        numbers = [_plain_number(one) for one in value]
        return numbers if isinstance(value, list) else tuple(numbers)
    return _plain_number(value)


def _plain_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _values(value: Any) -> list[Any]:
    """Return the numbers of one hyperparameter: several by block, two betas."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else [value]


def _shown(value: Any) -> str:
    """Return a value as a message can show it: of a huge or nested one the beginning."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list deeper than Python goes
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."

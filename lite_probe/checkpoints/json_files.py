"""JSON beside a checkpoint, read with limits: a file that is no JSON object never gets further than here."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lite_probe.errors import InputError, shown
from lite_probe.files import read_bounded

MAX_DEPTH = 32
MAX_VALUES = 2**18  # of a config; the labels of a large classifier are 2¹⁶
MAX_JSON_BYTES = 64 * 2**20  # the index of a trillion-parameter model has 10 MiB
MAX_JSON_VALUES = 2**22  # of a file: 64 MiB of empty objects would take gigabytes
_CHARACTERS_PER_VALUE = 16
_MAX_NUMBER_BITS = 64
FLOAT_KEY = "__float__"
_NOT_FINITE = ("Infinity", "-Infinity", "NaN")


def read_json_object(path: Path, *, max_values: int = MAX_JSON_VALUES) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        path: The file.
        max_values: That it may hold.

    Returns:
        The object.

    Raises:
        InputError: If the file cannot be read, is larger than 64 MiB, holds more values, or is not one JSON object.
    """
    content = read_bounded(path, "a JSON object", max_bytes=MAX_JSON_BYTES)
    if num_values(content) > max_values:
        raise InputError(
            f"expected a JSON object of at most {max_values:,} values in {path.name}, got more",
            "check that this file belongs to the checkpoint",
        )
    try:
        found = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise InputError(
            f"expected a JSON object in {path.name}, got one nested too deeply to read", "restore the file"
        ) from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(
            f"expected a JSON object in {path.name}, got {error}", "restore the file from its source"
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"expected a JSON object in {path.name}, got a JSON {type(found).__name__}",
            "restore the file from its source",
        )
    return found


def num_values(content: bytes) -> int:
    """Return a bound on the values in a JSON text, before it is parsed."""
    return sum(content.count(sign) for sign in (b",", b"{", b"["))


def as_json(value: object) -> Any:
    """Return a config value as JSON would hold it: text keys, lists, and the names of dtypes.

    A number that is not finite becomes {"__float__": "Infinity"}, as transformers writes it: JSON has no such number.

    Args:
        value: From a JSON file, a pickle or a caller.

    Raises:
        InputError: If it is nested more than 32 deep, holds more than 2¹⁸ values, a text as long as 16 values counting
            as another one, or a whole number of more than 64 bits; a pickle can hold a dict that contains itself.
    """
    return _as_json(value, MAX_DEPTH, count())


def _as_json(value: object, depth: int, taken: Iterator[int]) -> Any:
    size = len(value) if isinstance(value, str) else 0
    if any(next(taken) >= MAX_VALUES for _ in range(1 + size // _CHARACTERS_PER_VALUE)):
        raise InputError(f"expected a model config of at most {MAX_VALUES:,} values, got more", "restore it")
    if depth == 0:
        raise InputError(f"expected a model config nested at most {MAX_DEPTH} deep, got a deeper one", "restore it")
    if isinstance(value, Mapping):
        return {_as_key(key): _as_json(member, depth - 1, taken) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(member, depth - 1, taken) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT_KEY: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, int) and value.bit_length() > _MAX_NUMBER_BITS:
        raise InputError(
            f"expected whole numbers of at most {_MAX_NUMBER_BITS} bits in a model config, got {shown(value)}",
            "restore it",
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value).removeprefix("torch.")


def _as_key(key: object) -> str:
    return key if isinstance(key, str) else shown(key)


def with_floats(value: Any) -> Any:
    """Return what `as_json` returned with its numbers that are not finite as floats."""
    if isinstance(value, dict):
        if set(value) == {FLOAT_KEY} and value[FLOAT_KEY] in _NOT_FINITE:
            return float(value[FLOAT_KEY])
        return {key: with_floats(member) for key, member in value.items()}
    if isinstance(value, list):
        return [with_floats(member) for member in value]
    return value


def whole_number(value: object) -> int | None:
    """Return a step counter as an int, or None if the value is not one (a bool, a string, a negative)."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value >= 0 else None

"""Frozen dataclasses as JSON and arrays, and back, driven by their type annotations.

`encode_record` leaves each array in a table under its dotted path (`whole.eigenvalues`) and `{"array": path}`
in its place; `decode_record` wants exactly the fields and arrays that the dataclass declares. Results outlive versions:
a field that has a default may be missing, and one that had another name, see `formerly`, may still have that.
"""

import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lite_probe.errors import NumericsError

Array = NDArray[Any]

_FORMERLY = "formerly"


class ArraySource(Protocol):
    """Where the arrays of a record are read from."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every array there."""

    def read(self, name: str) -> Array:
        """Return one of them."""


def encode_record(record: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """Take a dataclass apart into JSON values and arrays.

    Tuples and lists become lists, mappings keep their order and need string keys.

    Args:
        record: A dataclass instance.

    Returns:
        The JSON object, and dotted path → array.

    Raises:
        NumericsError: If a number is NaN or infinite; JSON has neither, and null means missing.
        TypeError: If a value has no JSON form, or an array another element type than declared.
    """
    arrays: dict[str, Array] = {}
    return _encode_fields(record, "", arrays), arrays


def _encode_fields(record: Any, path: str, arrays: dict[str, Array]) -> dict[str, Any]:
    """Encode a dataclass field by field."""
    hints = _hints_of(type(record))
    encoded = {}
    for field in fields(record):
        value, place = getattr(record, field.name), f"{path}{field.name}"
        if isinstance(value, np.ndarray):
            _check_dtype(value, hints[field.name], place)
        encoded[field.name] = _encode(value, place, arrays)
    return encoded


def _encode(value: Any, place: str, arrays: dict[str, Array]) -> Any:
    """Encode one value; `place` is its dotted path."""
    if isinstance(value, np.ndarray):
        arrays[place] = value
        return {"array": place}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise NumericsError(
            f"expected a finite number in {place}, got {value}", "the measurement that made it went wrong"
        )
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise NumericsError(
            f"expected a number that a float64 holds in {place}, got one of {len(str(value))} digits",
            "the measurement that made it went wrong",
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value):
        return _encode_fields(value, f"{place}.", arrays)
    if isinstance(value, tuple | list):
        return [_encode(item, f"{place}.{index}", arrays) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"expected names as keys of {place}, got {key!r}")
        return {key: _encode(item, f"{place}.{key}", arrays) for key, item in value.items()}
    raise TypeError(f"expected a value with a JSON form in {place}, got {type(value).__name__}")


def decode_record(record: type, encoded: Any, arrays: ArraySource | None) -> Any:
    """Put a dataclass together again.

    Lists become tuples, as a frozen record has them.

    Args:
        record: The dataclass.
        encoded: The JSON object.
        arrays: Where its arrays are; None where it has none.

    Returns:
        An instance of `record`.

    Raises:
        ValueError: If a field or array is missing, unknown or of the wrong type, or the dataclass refuses it.
        OverflowError: If a number is too large for a float64.
    """
    used: set[str] = set()
    decoded = _decode_fields(record, encoded, "", arrays, used)
    unused = sorted(set(arrays.names) - used) if arrays is not None else []
    if unused:
        raise ValueError(f"arrays that no field names: {', '.join(unused)}")
    return decoded


def _decode_fields(record: type, encoded: Any, path: str, arrays: ArraySource | None, used: set[str]) -> Any:
    """Decode a dataclass field by field."""
    place = path.rstrip(".") or "result"
    if not isinstance(encoded, dict):
        raise ValueError(f"{type(encoded).__name__} instead of the fields of {place}")
    known = {field.name: field for field in fields(record)}
    stored = {name: _stored_name(field, encoded) for name, field in known.items()}
    # What has a default is not in files from before it was measured.
    needed = [name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    if missing := sorted(name for name in needed if stored[name] not in encoded):
        raise ValueError(f"no {', '.join(missing)} in {place}")
    if unknown := sorted(encoded.keys() - set(stored.values())):
        raise ValueError(f"unknown fields {', '.join(unknown)} in {place}")
    hints = _hints_of(record)
    found = sorted(name for name in known if stored[name] in encoded)
    return record(
        **{name: _decode(hints[name], encoded[stored[name]], f"{path}{stored[name]}", arrays, used) for name in found}
    )


_HINTS: dict[type, dict[str, Any]] = {}


def _hints_of(record: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; looked up once, since a replay is a record of many."""
    if record not in _HINTS:
        _HINTS[record] = get_type_hints(record)
    return _HINTS[record]


def formerly(*names: str) -> dict[str, tuple[str, ...]]:
    """Return the metadata of a field that had other names in earlier versions: `field(metadata=formerly("atoms"))`."""
    return {_FORMERLY: names}


def _stored_name(field: Field[Any], encoded: Mapping[str, Any]) -> str:
    """Return what a field is called in a file: its name, or one that it had."""
    names = (field.name, *field.metadata.get(_FORMERLY, ()))
    return next((name for name in names if name in encoded), field.name)


def _decode(hint: Any, value: Any, place: str, arrays: ArraySource | None, used: set[str]) -> Any:
    """Decode one value as its annotation asks."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _decode(hint, value, place, arrays, used)
    if origin is np.ndarray:
        return _decode_array(hint, value, place, arrays, used)
    if is_dataclass(hint):
        return _decode_fields(hint, value, f"{place}.", arrays, used)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{place}.{index}", arrays, used) for index, item in enumerate(value))
    if origin in (Mapping, dict) and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{place}.{key}", arrays, used) for key, item in value.items()}
    if origin is Literal and value in arguments:
        return value
    if hint in (object, Any):
        return _freeze(value)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        if isinstance(value, int):
            float(value)  # one that no float64 holds would break whatever is computed from it: OverflowError
        return value
    raise ValueError(f"{shown(value)} instead of {getattr(hint, '__name__', hint)} in {place}")


def _decode_array(hint: Any, value: Any, place: str, arrays: ArraySource | None, used: set[str]) -> Array:
    """Fetch an array and check its element type."""
    if not (isinstance(value, dict) and value == {"array": place}):
        raise ValueError(f"{shown(value)} instead of the array {place}")
    if arrays is None or place not in arrays.names:
        raise ValueError(f"no array {place}")
    used.add(place)
    array = arrays.read(place)
    try:
        _check_dtype(array, hint, place)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return array


def _check_dtype(array: Array, hint: Any, place: str) -> None:
    """Compare an array's element type with `NDArray[...]`, which may be one arm of a union."""
    for candidate in (hint, *get_args(hint)):
        if get_origin(candidate) is np.ndarray:
            declared = np.dtype(get_args(get_args(candidate)[1])[0])
            if array.dtype != declared:
                raise TypeError(f"expected elements of type {declared} in {place}, got {array.dtype}")
            return


def shown(value: object) -> str:
    """Return a JSON value for an error message: in full where it is short, else what it is."""
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


def _freeze(value: Any) -> Any:
    """Turn lists into tuples, all the way down."""
    if isinstance(value, list):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return value

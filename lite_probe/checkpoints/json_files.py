"""JSON beside a checkpoint, read with limits: a file that is no JSON object never gets further than here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_probe.errors import InputError

MAX_DEPTH = 32
MAX_JSON_BYTES = 64 * 2**20  # the index of a trillion-parameter model has 10 MiB


def read_json_object(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        InputError: If the file cannot be read, is larger than 64 MiB, or is not one JSON object.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_JSON_BYTES:
            raise InputError(
                f"expected a JSON object of at most {MAX_JSON_BYTES:,} bytes in {path.name}, got {num_bytes:,}",
                "check that this file belongs to the checkpoint",
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise InputError(
            f"expected a JSON object in {path.name}, got one nested too deeply to read", "restore the file"
        ) from error
    except (ValueError, OSError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(
            f"expected a JSON object in {path.name}, got {error}", "restore the file from its source"
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"expected a JSON object in {path.name}, got a JSON {type(found).__name__}",
            "restore the file from its source",
        )
    return found


def as_json(value: object, depth: int = MAX_DEPTH) -> Any:
    """Return a config value as JSON would hold it: text keys, lists, and the names of dtypes.

    Args:
        value: From a JSON file, a pickle or a caller.
        depth: How many levels of nesting to accept.

    Raises:
        InputError: If it is nested deeper; a pickle can hold a dict that contains itself.
    """
    if depth == 0:
        raise InputError(f"expected a model config nested at most {MAX_DEPTH} deep, got a deeper one", "restore it")
    if isinstance(value, Mapping):
        return {str(key): as_json(member, depth - 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(member, depth - 1) for member in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value).removeprefix("torch.")


def whole_number(value: object) -> int | None:
    """Return a step counter as an int, or None if the value is not one (a bool, a string, a negative)."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value >= 0 else None

"""JSON that can tell whether it is still what was written: a digest travels beside the content.

The digest finds damage and careless edits; it is no signature, and whoever makes one anew is believed.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from lite_probe.errors import InputError
from lite_probe.files import read_bounded

MAX_JSON_BYTES = 1 << 24  # parsed they take up to thirty times as much memory


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value: of its compact ASCII text, keys in the order they have.

    White space and escapes of a file do not matter, since numbers and strings survive parsing exactly; the order of
    keys does, since a result's mappings are in the order that was asked for.
    """
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def seal(content: Any) -> bytes:
    """Return a JSON object that holds `content` and its digest."""
    return json.dumps({"digest": digest_of(content), "content": content}).encode()


def unseal(path: Path, expected: str) -> Any:
    """Read what `seal` wrote.

    Args:
        path: The file.
        expected: What it is for, as in "expected … at PATH".

    Raises:
        InputError: As `read_json`, or if content and digest do not belong together.
    """
    found = read_json(path, expected)
    try:
        if digest_of(found["content"]) == found["digest"]:
            return found["content"]
    except (KeyError, TypeError, IndexError, RecursionError):
        pass  # never sealed, or so deep that nothing of ours is
    raise InputError(f"expected {expected} with its own digest at {path}, got another", "it was changed or cut off")


def read_json(path: Path, expected: str) -> Any:
    """Parse a small JSON file, which somebody else may have written.

    Args:
        path: A regular file, or a link to one.
        expected: What it is for, as in "expected … at PATH".

    Raises:
        InputError: If it is no regular file, is larger than 16 MiB, or is no JSON of finite numbers.
    """
    content = read_bounded(path, expected, max_bytes=MAX_JSON_BYTES)
    try:
        return json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"expected {expected} at {path}, got: {error}",
            "the file is truncated or was changed; measure again with --fresh",
        ) from error


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name}, where JSON has null")


def _finite(digits: str) -> float:
    """Refuse a number such as 1e999, which Python takes for infinity."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]}, which no float64 holds")
    return value

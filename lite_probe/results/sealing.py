"""Files that can tell whether they still hold what was written: a digest travels beside the content.

The digest finds damage and careless edits; it is no signature, and whoever makes one anew is believed.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from lite_probe.errors import InputError
from lite_probe.files import open_regular, read_bounded

MAX_JSON_BYTES = 1 << 24  # parsed they take up to thirty times as much memory
_LINE_BYTES = 64 + 1 + 64 + 1 + 20 + 1  # owner, digest, size
_PIECE_BYTES = 1 << 20  # that are hashed at a time
_LINE = re.compile(rb"[0-9a-f]{64} [0-9a-f]{64} [0-9]{20}\n")


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value: of its compact ASCII text, keys in the order they have.

    White space and escapes of a file do not matter, since numbers and strings survive parsing exactly; the order of
    keys does, since a result's mappings are in the order that was asked for.
    """
    return hashlib.sha256(_compact(value)).hexdigest()


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def seal(content: Any) -> bytes:
    """Return a JSON object that holds `content` and its digest."""
    text = _compact(content)
    return b'{"digest":"%s","content":%s}' % (hashlib.sha256(text).hexdigest().encode(), text)


def unseal(path: Path, expected: str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read what `seal` wrote.

    Args:
        path: The file.
        expected: What it is for, as in "expected … at PATH".
        max_bytes: More is refused before it is read.

    Raises:
        InputError: As `read_json`, or if content and digest do not belong together.
    """
    found = read_json(path, expected, max_bytes=max_bytes)
    try:
        if digest_of(found["content"]) == found["digest"]:
            return found["content"]
    except (KeyError, TypeError, IndexError, RecursionError):
        pass  # never sealed, or so deep that nothing of ours is
    raise InputError(f"expected {expected} with its own digest at {path}, got another", "it was changed or cut off")


def read_json(path: Path, expected: str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a small JSON file, which somebody else may have written.

    Args:
        path: A regular file, or a link to one.
        expected: What it is for, as in "expected … at PATH".
        max_bytes: More is refused before it is read.

    Raises:
        InputError: If it is no regular file, is too large, or is no JSON of finite numbers.
    """
    content = read_bounded(path, expected, max_bytes=max_bytes)
    try:
        return json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"expected {expected} at {path}, got: {error}",
            "the file is truncated or was changed; measure again with --fresh",
        ) from error


def write_sealed(file: BinaryIO, owner: str, write: Callable[[BinaryIO], object]) -> None:
    """Write a large content behind a line that says whose it is, how long, and its digest.

    Args:
        file: Open for writing, at its start.
        owner: Any text; `open_sealed` wants the same.
        write: Called with a file to write the content to, from its first byte to its last.

    Raises:
        OSError: If the file does not take it, whatever `write` makes of that: `torch.save` tells of an odd position.
    """
    file.write(b" " * _LINE_BYTES)
    content = _HashingWriter(file)
    try:
        write(cast(BinaryIO, content))
    except Exception as error:
        if content.refused is not None and error is not content.refused:
            raise content.refused from error
        raise
    file.seek(0)
    file.write(_line_of(owner, content.digest.hexdigest(), content.size))


@contextmanager
def open_sealed(path: Path, owner: str, expected: str) -> Iterator[BinaryIO | None]:
    """Open what `write_sealed` wrote, at the first byte of the content; None where it is another owner's.

    Args:
        path: The file.
        owner: As it was written.
        expected: What it is for, as in "expected … at PATH".

    Raises:
        InputError: If it is no regular file, or not the content that was written.

    Cost: a pass over the file, a piece of it in memory.
    """
    with open_regular(path, expected) as file:
        line = file.read(_LINE_BYTES)
        if _LINE.fullmatch(line) and line[:64] != _line_of(owner, "", 0)[:64]:
            yield None
            return
        size = os.fstat(file.fileno()).st_size - _LINE_BYTES
        digest, left = hashlib.sha256(), size
        # The length is part of the line: of one that does not fit nothing is read.
        while line.endswith(f" {size:020d}\n".encode()) and (piece := file.read(min(left, _PIECE_BYTES))):
            digest.update(piece)
            left -= len(piece)
        if line != _line_of(owner, digest.hexdigest(), size):
            raise InputError(
                f"expected {expected} with its own digest at {path}, got another", "it was changed or cut off"
            )
        file.seek(_LINE_BYTES)
        yield file


def _line_of(owner: str, digest: str, size: int) -> bytes:
    return f"{hashlib.sha256(owner.encode()).hexdigest()} {digest} {size:020d}\n".encode()


class _HashingWriter:
    """Passes on what is written, and hashes it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.refused: OSError | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name}, where JSON has null")


def _finite(digits: str) -> float:
    """Refuse a number such as 1e999, which Python takes for infinity."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]}, which no float64 holds")
    return value

"""Files that somebody else may have written, opened so that none of them can hang or fill the memory.

Only regular files are read: opening a pipe waits for a writer, and a device has no end. How much may be read is
decided before the first byte. What is written never goes through a link that was put in its place.
"""

import os
import stat
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from lite_probe.errors import InputError


def open_regular(path: Path, expected: str) -> BinaryIO:
    """Open a regular file, following links.

    Args:
        path: The file.
        expected: What it is for, as in "expected … at PATH".

    Returns:
        The open file, for reading bytes.

    Raises:
        InputError: If it is missing, may not be read, or is a folder, a pipe, a socket or a device.
    """
    try:
        # Without O_NONBLOCK a pipe would be waited for before anyone could see that it is one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"expected {expected} at {path}, got {reason}", "check the path") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"expected {expected} at {path}, which is no regular file", "write it to disk first")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def read_bounded(path: Path, expected: str, *, max_bytes: int) -> bytes:
    """Read a whole small file.

    Args:
        path: A regular file, or a link to one.
        expected: What it is for, as in "expected … at PATH".
        max_bytes: More is refused before it is read.

    Returns:
        Its content.

    Raises:
        InputError: If it cannot be opened as `open_regular` does, or holds more than `max_bytes`.
    """
    with open_regular(path, expected) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(max_bytes + 1) if size <= max_bytes else b""
        if max(size, len(content)) > max_bytes:
            raise InputError(
                f"expected {expected} of at most {max_bytes:,} bytes at {path}, got {max(size, len(content)):,}",
                "check that it is the file you mean",
            )
    return content


def read_toml(path: Path, expected: str, *, max_bytes: int, example: str) -> dict[str, Any]:
    """Read a small TOML file.

    Args:
        path: A regular file, or a link to one.
        expected: What it is for, as in "expected … at PATH".
        max_bytes: More is refused before it is read.
        example: What to write in it, for the hint.

    Raises:
        InputError: If it cannot be read as `read_bounded` does, or is no TOML.
    """
    content = read_bounded(path, expected, max_bytes=max_bytes)
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise InputError(f"expected TOML in {path}, got values nested too deeply", example) from None
    except ValueError as error:  # also of bytes that are no UTF-8, and numbers of thousands of digits
        raise InputError(f"expected TOML in {path}, got {error}", example) from error


def create_anew(path: Path) -> BinaryIO:
    """Create a file and open it for writing and reading bytes; what had its name before is removed.

    A link of this name is not followed: what it points at may be anybody's.

    Raises:
        OSError: If it cannot be created, or a folder has the name.
    """
    path.unlink(missing_ok=True)
    return path.open("x+b")

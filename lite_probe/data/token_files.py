"""Token ids on disk: flat .bin files as nanoGPT, llm.c and modded-nanogpt write them, and .npy arrays.

Both are memory-mapped: a file of many gigabytes costs only the pages that batches are drawn from.
"""

import os
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lite_probe.errors import InputError, UsageError
from lite_probe.files import open_regular
from lite_probe.results.provenance import Note

TokenDtype = Literal["uint16", "uint32"]
TokenArray = NDArray[np.integer[Any]]

# llm.c's data_common.py: (first word, version) of its 256-word header, and the type of the ids after it.
_HEADER_WORDS = 256
_HEADERS: dict[tuple[int, int], TokenDtype] = {(20240520, 1): "uint16", (20240801, 7): "uint32"}

# A flat file does not tell its type. Where the upper halves of all its first 32-bit words stay below 16, ids
# of 16 bits would have to be tiny in every second place and only there; ids of 32 bits up to a million are so.
_PROBE_WORDS = 4096
_SMALL_HALF = 16

_NUMPY_MAGIC = b"\x93NUMPY"


def open_bin(path: Path, *, token_dtype: TokenDtype | None, on_note: Callable[[Note], None] | None) -> TokenArray:
    """Map a .bin file of token ids.

    Args:
        path: Little-endian ids without a header (nanoGPT), or behind llm.c's header.
        token_dtype: "uint16" or "uint32"; None decides by header or content.
        on_note: Told where the content made it uint32.

    Returns:
        (n,) ids, memory-mapped.

    Raises:
        InputError: If the file is empty or ends within an id.
        UsageError: If the type is another.
    """
    if token_dtype not in (None, "uint16", "uint32"):
        raise UsageError(f"expected a token type of uint16 or uint32, got {token_dtype!r}")
    with open_regular(path, "token ids") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(4 * _PROBE_WORDS)
    offset, dtype = 0, token_dtype
    header = np.frombuffer(head[:8] if len(head) >= 8 else b"", dtype="<i4")
    known = _HEADERS.get((int(header[0]), int(header[1]))) if len(header) else None
    if known is not None:
        offset, dtype = 4 * _HEADER_WORDS, known
    elif dtype is None:
        dtype = _guess_dtype(head, size, path.name, on_note)
    width = np.dtype(dtype).itemsize
    if size <= offset or (size - offset) % width:
        raise InputError(
            f"expected {dtype} token ids in {path.name}, got {max(size - offset, 0):,} bytes of them",
            f"a whole file holds a positive multiple of {width} bytes: copy it again",
        )
    return np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r", offset=offset)


def _guess_dtype(head: bytes, size: int, name: str, on_note: Callable[[Note], None] | None) -> TokenDtype:
    halves = np.frombuffer(head[: len(head) // 2 * 2], dtype="<u2")
    lower, upper = halves[0::2], halves[1::2]
    if size % 4 or not len(upper) or upper.max() >= _SMALL_HALF or lower.max() < _SMALL_HALF:
        return "uint16"
    if on_note:
        message = f"{name} was read as uint32 token ids: every second 16-bit word is below {_SMALL_HALF}."
        on_note(Note(code="token-type", message=message))
    return "uint32"


def open_npy(path: Path) -> TokenArray:
    """Map a .npy file of token ids; pickled objects are never read.

    Args:
        path: A one-dimensional array of integers.

    Returns:
        (n,) ids, memory-mapped.

    Raises:
        InputError: If it is no such array.
    """
    with open_regular(path, "a .npy array") as file:
        magic = file.read(len(_NUMPY_MAGIC))
    if magic != _NUMPY_MAGIC:  # np.load would go on to try zip files and pickles
        raise InputError(f"expected a .npy array, got first bytes {magic!r} in {path.name}", "save ids with numpy.save")
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    # numpy reads the header with ast and tokenize, whose errors it lets through.
    except (
        ValueError,
        OSError,
        EOFError,
        TypeError,
        KeyError,
        OverflowError,
        SyntaxError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"expected a .npy array, got {first} in {path.name}", "the file is damaged: save it again"
        ) from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(
            f"expected token ids (n,) of an integer type, got {ids.dtype} {ids.shape} in {path.name}",
            "flatten the ids and save them as integers",
        )
    mapped: TokenArray = ids
    return mapped

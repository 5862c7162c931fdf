"""Named numpy arrays in one safetensors file: streamed out, mapped in.

The safetensors library copies every array into bytes before it writes and again when it reads: eigenvectors
of gigabytes would need their size twice. The format is a length, a JSON header and the raw bytes, so it is
written and mapped here; `safetensors.numpy.load_file` reads the files.
"""

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lite_probe.errors import InputError, NumericsError
from lite_probe.files import open_regular

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "BOOL": np.dtype(bool),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

CHUNK_BYTES = 1 << 24
LARGE_BYTES = 1 << 26  # above: mapped instead of read, and digested by samples
SAMPLES = 256  # blocks of a large array that enter the digest
SAMPLE_BYTES = 1 << 14
MAX_HEADER_BYTES = 1 << 24  # a hundred bytes an array


def write_arrays(file: BinaryIO, arrays: Mapping[str, Array]) -> str:
    """Write arrays in the safetensors format, the widest element type first so that all are aligned.

    Args:
        file: Open for writing, at its start.
        arrays: Name → float64, float32, int64 or bool array of any shape and memory order.

    Returns:
        The SHA-256 of everything written, in hexadecimal.

    Raises:
        TypeError: If an array is of another type.
        NumericsError: If a number is NaN or infinite.

    Cost: one buffer of 16 MiB, one hash at the speed of SHA-256.
    """
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise TypeError(f"expected {', '.join(map(str, _NAMES))} for {name}, got {array.dtype}")
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[1].nbytes, item[0]))
    header: dict[str, object] = {}
    offset = 0
    for name, array in ordered:
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": span}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = struct.pack("<Q", len(text)) + text
    file.write(prefix)
    state = hashlib.sha256(prefix)
    for name, array in ordered:
        for rows in _row_chunks(array):
            if not np.isfinite(rows).all():
                raise NumericsError(
                    f"expected finite numbers in {name}, got NaN or infinity",
                    "what was measured there overflowed; check the checkpoint, or measure in float64",
                )
            content = np.ascontiguousarray(rows).data
            file.write(content)
            state.update(content)
            give_back(array)
    return state.hexdigest()


def give_back(array: Array) -> None:
    """Let go of the pages read of a mapped array, or it would fill the memory after all; nothing of one in memory."""
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    if owner is not None:
        owner.madvise(mmap.MADV_DONTNEED)


def _row_chunks(array: Array) -> Iterator[Array]:
    """Cut an array into runs of rows of about `CHUNK_BYTES`."""
    if array.nbytes == 0:
        return
    if array.ndim == 0:
        yield array
        return
    step = max(1, CHUNK_BYTES // max(1, array.nbytes // len(array)))
    for start in range(0, len(array), step):
        yield array[start : start + step]


class ArraysFile:
    """A safetensors file whose header has been read and found consistent.

    Args:
        path: The file.

    Raises:
        InputError: If the header is no safetensors header, or the arrays do not fill the file exactly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self._size = os.fstat(file.fileno()).st_size
            self._header = self._read_header(file)

    def _open(self) -> BinaryIO:
        return open_regular(self.path, "the arrays of a result")

    def _refusal(self, got: str) -> InputError:
        """Return the error for a file that is not as it was written."""
        return InputError(
            f"expected a whole safetensors file in {self.path.name}, got {got}",
            "the file is truncated or was changed; measure again with --fresh",
        )

    def _read_header(self, file: BinaryIO) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]:
        """Return name → (element type, shape, offset in the file), in file order."""
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, self._size - 8):
            raise self._refusal(f"{self._size:,} bytes with no room for its header")
        header: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        expected_start = 0
        try:
            described = json.loads(file.read(length))
            entries = sorted(described.items(), key=lambda item: item[1]["data_offsets"])
            for name, entry in entries:
                dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
                start, stop = entry["data_offsets"]
                if not all(type(size) is int and size >= 0 for size in (*shape, start, stop)):
                    raise ValueError(f"sizes {shape} at {start}:{stop} for {name}")
                if start != expected_start or stop - start != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{stop - start} bytes at {start} for {name} of shape {shape}")
                header[name] = (dtype, shape, 8 + length + start)
                expected_start = stop
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._refusal(f"a header that says otherwise ({error})") from error
        if 8 + length + expected_start != self._size:
            raise self._refusal(f"{self._size:,} bytes instead of {8 + length + expected_start:,}")
        return header

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays, in file order."""
        return tuple(self._header)

    def read(self, name: str) -> Array:
        """Return one array, read-only: in memory when small, mapped from the file above 64 MiB."""
        dtype, shape, offset = self._header[name]
        if math.prod(shape) * dtype.itemsize > LARGE_BYTES:
            with self._open() as file:
                return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)
        with self._open() as file:
            file.seek(offset)
            array = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype=dtype).reshape(shape)
        array.setflags(write=False)
        return array

    def digest(self) -> str:
        """Return the SHA-256 of the header and the arrays, of a large array 256 evenly spaced blocks.

        Small arrays are covered to the last bit. The samples tell the eigenvectors of one measurement from those of
        another without reading gigabytes, but damage between two of them goes unseen: `full_digest` sees it.
        """
        state = hashlib.sha256()
        with self._open() as file:
            first = min((offset for _, _, offset in self._header.values()), default=self._size)
            state.update(file.read(first))
            for dtype, shape, offset in self._header.values():
                size = math.prod(shape) * dtype.itemsize
                for start, length in _digested_spans(size):
                    file.seek(offset + start)
                    state.update(file.read(length))
        return state.hexdigest()

    def full_digest(self) -> str:
        """Return the SHA-256 of the whole file, that which `write_arrays` returned. Cost: one pass over it."""
        state = hashlib.sha256()
        with self._open() as file:
            while chunk := file.read(CHUNK_BYTES):
                state.update(chunk)
        return state.hexdigest()


def _digested_spans(size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of what enters the digest of an array of `size` bytes."""
    if size > LARGE_BYTES:
        last = size - SAMPLE_BYTES
        yield from ((last * index // (SAMPLES - 1), SAMPLE_BYTES) for index in range(SAMPLES))
        return
    for start in range(0, size, CHUNK_BYTES):
        yield start, min(CHUNK_BYTES, size - start)

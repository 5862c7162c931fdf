"""A measurement in progress on disk, so that the same command continues after a kill with the same numbers.

A folder per operator holds `head.json` and two kinds of vector files: `basis-E.bin` grows by appending while epoch E
lasts (a restart begins a new one), `vectors-S.bin` is written anew by save S. The head names its files and how
much of them counts, and is put in place last: whatever moment a kill hits, head and files belong together.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import OutputError
from lite_probe.results.store import write_atomically
from lite_probe.spectra.basis import KrylovBasis

_LONGEST_INTERVAL = 50.0  # seconds between saves; a kill loses at most about a minute
_COST_FACTOR = 20.0  # a save that took s seconds is followed by at least 20 s without one: at most 5% overhead


class SavedState:
    """Saves and restores one operator's Lanczos run.

    Args:
        directory: Where to; None saves nothing.
        fingerprint: Of the measurement; a state of another one is not continued.
    """

    def __init__(self, directory: Path | None, fingerprint: str) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self._serial = 0
        self._epoch = -1
        self._rows_written = 0
        self._last_end = time.monotonic()
        self._last_cost = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to save: a minute has passed, or saving is cheap beside what passed."""
        waited = time.monotonic() - self._last_end
        return self.directory is not None and waited >= min(_LONGEST_INTERVAL, _COST_FACTOR * self._last_cost)

    def save(self, head: dict[str, Any], *, basis: KrylovBasis, epoch: int, vectors: Sequence[Tensor]) -> None:
        """Write one consistent state.

        Args:
            head: JSON values; floats come back exactly.
            basis: Within one epoch its earlier rows have not changed.
            epoch: Number of times the basis was rotated.
            vectors: Further blocks (·, n).

        Raises:
            OutputError: No space or no permission.
        """
        if self.directory is None:
            return
        started = time.monotonic()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._append_basis(basis, epoch)
            self._serial += 1
            with self._vectors_path(self._serial).open("wb") as file:
                for row in (row for block in vectors for row in block):
                    _write_row(file, row.detach().cpu().contiguous().numpy())
                _sync(file)
        except OSError as error:
            raise OutputError(
                f"expected to save the measurement's state in {self.directory}, got {error.strerror}",
                "free some space or choose another --scratch",
            ) from error
        text = json.dumps(
            {
                "fingerprint": self.fingerprint,
                "serial": self._serial,
                "epoch": epoch,
                "basis_rows": basis.size,
                "vector_rows": [len(block) for block in vectors],
                "head": head,
            }
        )
        write_atomically(self.directory / "head.json", lambda file: file.write(text.encode()))
        self._remove_superseded()
        self._last_end = time.monotonic()
        self._last_cost = self._last_end - started

    def load(self, size: int, dtype: torch.dtype) -> tuple[dict[str, Any], Iterator[Tensor], list[Tensor]] | None:
        """Return head, basis and vectors of the last save; None where there is none to continue.

        The basis comes row by row: it may be larger than memory.
        """
        if self.directory is None or not (self.directory / "head.json").is_file():
            return None
        try:
            saved = json.loads((self.directory / "head.json").read_text())
            if saved["fingerprint"] != self.fingerprint:
                return None
            basis = _rows_of(self._basis_path(saved["epoch"]), saved["basis_rows"], size, dtype)
            vectors = [*_rows_of(self._vectors_path(saved["serial"]), sum(saved["vector_rows"]), size, dtype)]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # cut off before its first save was whole, or not ours: start anew
        self._serial, self._epoch, self._rows_written = saved["serial"], saved["epoch"], saved["basis_rows"]
        blocks = []
        for count in saved["vector_rows"]:
            empty = torch.empty(0, size, dtype=dtype)
            blocks.append(torch.stack(vectors[:count]) if count else empty)
            vectors = vectors[count:]
        return saved["head"], basis, blocks

    def discard(self) -> None:
        """Remove the state."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _append_basis(self, basis: KrylovBasis, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._rows_written = epoch, 0
        path = self._basis_path(epoch)
        with path.open("r+b" if path.exists() else "wb") as file:
            # A kill may have left more than the head counts: go on from where the head stands.
            file.seek(self._rows_written * basis.vector_size * basis.rows.element_size())
            file.truncate()
            for row in basis.each(self._rows_written):
                _write_row(file, row)
            _sync(file)
        self._rows_written = basis.size

    def _remove_superseded(self) -> None:
        kept = {"head.json", self._basis_path(self._epoch).name, self._vectors_path(self._serial).name}
        for path in self.directory.iterdir() if self.directory is not None else ():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _basis_path(self, epoch: int) -> Path:
        return (self.directory or Path()) / f"basis-{epoch}.bin"

    def _vectors_path(self, serial: int) -> Path:
        return (self.directory or Path()) / f"vectors-{serial}.bin"


def _write_row(file: Any, row: NDArray[Any]) -> None:
    file.write(row.data.cast("B"))


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _rows_of(path: Path, count: int, size: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the first rows of a file one by one, after a check that they are all there.

    Raises:
        OSError: If the file is missing.
        ValueError: If it is too short.
    """
    kind = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    if path.stat().st_size < count * size * kind.itemsize:
        raise ValueError(f"expected {count} rows of {size} in {path}, got {path.stat().st_size} bytes")
    offsets = range(0, count * size * kind.itemsize, size * kind.itemsize)
    return (torch.from_numpy(np.fromfile(path, dtype=kind, count=size, offset=offset)) for offset in offsets)

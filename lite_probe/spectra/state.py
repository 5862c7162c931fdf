"""A measurement in progress on disk, so that the same command continues after a kill with the same numbers.

A folder per operator holds `head.json` and two kinds of vector files: `basis-E.bin` grows by appending while epoch E
lasts (a restart begins a new one), `vectors-S.bin` is written anew by save S. Of a basis on disk `basis-E.bin` is its
own file by a second name, where the file system has those: rows are only ever added to it, and a restart writes another
file. The head names its files, how much of them counts and the digests of that, and is put in place last: whatever
moment a kill hits, head and files belong together, and what was changed since is not continued from.

Of several ranks each has a folder in that folder for its slices of the vectors. The head is rank 0's, who writes it
once all have written theirs; what it supersedes is removed once it is there.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import InputError, OutputError
from lite_probe.files import create_anew, open_regular
from lite_probe.results.sealing import seal, unseal
from lite_probe.results.store import write_atomically
from lite_probe.runtime.resumable import SaveClock, real_folder, remove
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.ranks import ALONE, Ranks

_MOST_HEAD_BYTES = 1 << 28  # T of three thousand basis vectors
_READ_BYTES = 1 << 24


class SavedState:
    """Saves and restores one operator's Lanczos run.

    Args:
        directory: Where to; None saves nothing.
        fingerprint: Of the measurement; a state of another one is not continued.
        ranks: That save their slices.

    Attributes:
        damage: Why a state that was there was not continued from; None where there was none, or it was whole.
    """

    def __init__(self, directory: Path | None, fingerprint: str, ranks: Ranks = ALONE) -> None:
        self.directory = directory
        self.ranks = ranks
        self._own = directory if directory is None or ranks.count == 1 else directory / ranks.name
        self.fingerprint = fingerprint
        self._serial = 0
        self._epoch = -1
        self._rows_written = 0
        self._basis_digest = hashlib.sha256()  # of the rows written
        self.damage: InputError | None = None
        self._clock = SaveClock()

    @property
    def due(self) -> bool:
        """Whether it is time to save, by rank 0's clock."""
        return self.directory is not None and self.ranks.once(lambda: self._clock.due)

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
        if self.directory is not None:
            with self._clock.saving():
                self._save(self.directory, head, basis, epoch, vectors)

    def _save(
        self, directory: Path, head: dict[str, Any], basis: KrylovBasis, epoch: int, vectors: Sequence[Tensor]
    ) -> None:
        try:
            real_folder(self._own or directory).mkdir(parents=True, exist_ok=True)
            self._append_basis(basis, epoch)
            self._serial += 1
            vectors_digest = hashlib.sha256()
            with create_anew(self._vectors_path(self._serial)) as file:
                for row in (row for block in vectors for row in block):
                    _write_row(file, row.detach().cpu().contiguous().numpy(), vectors_digest)
                _sync(file)
        except OSError as error:
            raise OutputError(
                f"expected to save the measurement's state in {directory}, got {error.strerror}",
                "free some space or choose another --scratch",
            ) from error
        own = [self._basis_digest.hexdigest(), vectors_digest.hexdigest()]
        digests = self.ranks.from_every(own)  # all slices are written by now
        if self.ranks.is_first:
            content = seal(
                {
                    "fingerprint": self.fingerprint,
                    "serial": self._serial,
                    "epoch": epoch,
                    "basis_rows": basis.size,
                    "vector_rows": [len(block) for block in vectors],
                    "digests": digests,
                    "head": head,
                }
            )
            write_atomically(directory / "head.json", lambda file: file.write(content))
        self.ranks.once(lambda: None)  # the head is there
        self._remove_superseded()

    def load(self, size: int, dtype: torch.dtype) -> tuple[dict[str, Any], Iterator[Tensor], list[Tensor]] | None:
        """Return head, basis and vectors of the last save; None where there is none to continue.

        A state that its digests do not fit is removed, and `damage` says why. The basis comes row by row: it may be
        larger than memory.

        Args:
            size: Of this rank's slice of a vector.
            dtype: Of the vectors.

        Cost: two passes over the files, one of them a hash.
        """
        if self.directory is None:
            return None
        saved, damage = self.ranks.once(self._head)
        real_folder(self._own or self.directory)  # those above it rank 0 has seen to by now
        basis_path, vectors_path, basis_digest = Path(), Path(), hashlib.sha256()
        if saved is not None:
            row_bytes = size * _kind_of(dtype).itemsize
            basis_path, vectors_path = self._basis_path(saved["epoch"]), self._vectors_path(saved["serial"])
            try:
                digests = saved["digests"][self.ranks.rank]
                basis_digest = _digest_of(basis_path, saved["basis_rows"] * row_bytes, digests[0])
                _digest_of(vectors_path, sum(saved["vector_rows"]) * row_bytes, digests[1])
            except InputError as error:
                damage = error
        self.damage = next((one for one in self.ranks.from_every(damage) if one is not None), None)
        if self.damage is not None:
            self.discard()
        if saved is None or self.damage is not None:
            return None
        self._serial, self._epoch, self._rows_written = saved["serial"], saved["epoch"], saved["basis_rows"]
        self._basis_digest = basis_digest
        vectors = _rows_of(vectors_path, sum(saved["vector_rows"]), size, dtype)
        blocks = []
        for count in saved["vector_rows"]:
            rows = [next(vectors) for _ in range(count)]
            blocks.append(torch.stack(rows) if rows else torch.empty(0, size, dtype=dtype))
        return saved["head"], _rows_of(basis_path, saved["basis_rows"], size, dtype), blocks

    def _head(self) -> tuple[dict[str, Any] | None, InputError | None]:
        """Return the head, None where there is none of this measurement, and why it is damaged."""
        path = (self.directory or Path()) / "head.json"
        if not os.path.lexists(path):
            return None, None
        try:
            saved = unseal(path, "saved state", max_bytes=_MOST_HEAD_BYTES)
        except InputError as error:
            return None, error
        is_ours = isinstance(saved, dict) and saved.get("fingerprint") == self.fingerprint
        return (saved if is_ours and len(saved["digests"]) == self.ranks.count else None), None

    def discard(self) -> None:
        """Remove the state."""
        for path in (self._own, self.directory if self.ranks.is_first else None):
            if path is not None:
                remove(path)

    def _append_basis(self, basis: KrylovBasis, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._rows_written, self._basis_digest = epoch, 0, hashlib.sha256()
        path = self._basis_path(epoch)
        if basis.link_to(path):
            for row in basis.each(self._rows_written):
                self._basis_digest.update(_bytes(row))
            self._rows_written = basis.size
            return
        with path.open("r+b") if self._rows_written else create_anew(path) as file:
            # A kill may have left more than the head counts: go on from where the head stands.
            file.seek(self._rows_written * basis.vector_size * basis.rows.element_size())
            file.truncate()
            for row in basis.each(self._rows_written):
                _write_row(file, row, self._basis_digest)
            _sync(file)
        self._rows_written = basis.size

    def _remove_superseded(self) -> None:
        kept = {self._basis_path(self._epoch), self._vectors_path(self._serial)}
        for path in self._own.glob("*-*.bin") if self._own is not None else ():
            if path not in kept:
                remove(path)

    def _basis_path(self, epoch: int) -> Path:
        return (self._own or Path()) / f"basis-{epoch}.bin"

    def _vectors_path(self, serial: int) -> Path:
        return (self._own or Path()) / f"vectors-{serial}.bin"


def _write_row(file: Any, row: NDArray[Any], digest: Any) -> None:
    content = _bytes(row)
    file.write(content)
    digest.update(content)


def _bytes(row: NDArray[Any]) -> memoryview:
    return row.view(np.uint8).data  # also of no entries, which a memoryview cannot cast


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _kind_of(dtype: torch.dtype) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def _digest_of(path: Path, size: int, expected: str) -> Any:
    """Return the SHA-256 of the first `size` bytes of a file, to go on with.

    Raises:
        InputError: If it is no regular file, a link, too short, or has another digest than expected.
    """
    if path.is_symlink():  # what is written next would go where it points
        raise InputError(f"expected saved vectors at {path}, got a link")
    digest, left = hashlib.sha256(), size
    with open_regular(path, "saved vectors") as file:
        while left and (chunk := file.read(min(left, _READ_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    if left or digest.hexdigest() != expected:
        raise InputError(f"expected saved vectors with digest {expected[:12]} at {path}, got others")
    return digest


def _rows_of(path: Path, count: int, size: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the first rows of a file one by one."""
    kind = _kind_of(dtype)
    offsets = (index * size * kind.itemsize for index in range(count))
    return (torch.from_numpy(np.fromfile(path, dtype=kind, count=size, offset=offset)) for offset in offsets)

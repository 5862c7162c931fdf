"""A Krylov basis of m vectors of length n, in memory or on disk, orthonormal to float64-accumulated rounding.

Vectors are contiguous rows, so that a chunk of the whole basis is a matrix that fits the cache. Where the operator
lives on an accelerator and the basis does not, only the vectors of one block travel. A basis on disk is a mapped file
whose pages are given back after every stretch of columns: the process stays small, and the system caches what it can.
Every second pass goes through the stretches backwards, where that cache is warm: of a file that is somewhat larger
than it, passes in one direction would find nothing there.

Several ranks hold a slice of every vector each. What is a sum over entries is then added up over the ranks.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import OutputError
from lite_probe.files import create_anew
from lite_probe.vectors.ranks import ALONE, Ranks
from lite_probe.vectors.reductions import CHUNK, dot, norm, norms, project, subtract, subtract_and_project

_STRETCH_BYTES = 1 << 27  # of a basis on disk that are mapped at a time
_ROTATED_BYTES = 1 << 28  # of a basis on an accelerator that are in float64 at a time


class KrylovBasis:
    """Rows 0 … size−1 of an array (capacity, n), or this rank's columns of it: n below is their number then.

    Args:
        size: Of a whole vector.
        capacity: Rows to make room for. The memory or disk space is taken at once.
        dtype: Of the rows.
        device: Where the rows live.
        file: Put the rows into this file instead.
        ranks: That hold slices of the vectors.

    Attributes:
        rows_read: Rows gone through so far, one as often as it was read.
        rows_written: Likewise.

    Raises:
        OutputError: If the file cannot be made or there is no space for it.
    """

    def __init__(
        self,
        size: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        file: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.whole_size = size
        self.ranks = ranks
        self.part = ranks.part(size)
        size = self.part.stop - self.part.start
        self.vector_size = size
        self.capacity = capacity
        self.size = 0
        self.rows_read = self.rows_written = 0
        self._file = file if size else None
        self._map: mmap.mmap | None = None
        if self._file is None:
            self.rows = torch.empty(capacity, size, dtype=dtype, device=device)
        else:
            self._map, self._inode = _reserve(self._file, capacity * size * dtype.itemsize)
            self.rows = torch.from_numpy(self._mapped(self._map, capacity, dtype))

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self.rows.device

    @property
    def filled(self) -> Tensor:
        """(size, n) the rows in use, a view."""
        return self.rows[: self.size]

    def each(self, start: int) -> Iterator[NDArray[Any]]:
        """Yield the rows from `start` on as numpy arrays, one at a time."""
        for index in range(start, self.size):
            self.rows_read += 1
            yield self.rows[index].cpu().numpy()
            self._give_back()

    def vectors(self, count: int) -> NDArray[Any]:
        """Return the first rows, (count, n), as numpy: on the CPU a view, of a basis on disk the mapped file."""
        if self._map is None:
            return self.rows[:count].cpu().numpy()
        return self._mapped(self._map, count, self.rows.dtype)

    def link_to(self, path: Path) -> bool:
        """Put the rows' file on disk and give it a second name, in place of what has it; `rotate` leaves it there.

        Returns:
            False where the rows have no file, or its file system has no second names.
        """
        if self._file is None or self._map is None:
            return False
        self._map.flush()
        if _inode_of(path) == self._inode:
            return True
        beside = path.with_name(f"{path.name}.new")
        try:
            beside.unlink(missing_ok=True)
            os.link(self._file, beside, follow_symlinks=False)
            if _inode_of(beside) != self._inode:  # somebody else's, by our file's name
                beside.unlink()
                return False
            beside.replace(path)
        except OSError:
            return False
        return True

    def append(self, vectors: Iterable[Tensor]) -> None:
        """Store vectors (n,) behind the others; they must be orthonormal to them already."""
        for row in vectors:
            self.rows[self.size].copy_(row)
            self.size += 1
            self.rows_written += 1
            self._give_back()

    def project(self, block: Tensor, count: int | None = None) -> Tensor:
        """Return the inner products of the first `count` rows, or all, with `block` (b, n): (count, b) float64."""
        rows = self.filled[:count]
        total = torch.zeros(rows.shape[0], block.shape[0], dtype=torch.float64, device=block.device)
        for part in self._stretches(rows.shape[0]):
            total += project(rows[:, part], block[:, part])
        return self.ranks.add_up(total)

    def subtract(self, block: Tensor, coefficients: Tensor, *, backward: bool = False) -> None:
        """Take coefficientsᵀ · the first rows out of `block` (b, n) in place; coefficients (count, b). One pass."""
        count = coefficients.shape[0]
        for part in self._stretches(count, backward):
            subtract(block[:, part], self.rows[:count, part], coefficients)

    def inner(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the inner products of vectors (b, n) with others (c, n), none of them rows: (b, c) float64."""
        return self.ranks.add_up(project(first, second))

    def dot(self, first: Tensor, second: Tensor) -> float:
        """Return the inner product of two vectors (n,)."""
        return self.ranks.total(dot(first, second))

    def norm(self, vector: Tensor) -> float:
        """Return the norm of a vector (n,)."""
        return self.ranks.hypot(norm(vector))

    def norms(self, block: Tensor) -> list[float]:
        """Return the norms of vectors (b, n)."""
        return [self.ranks.hypot(own) for own in norms(block)]

    def whole(self, rows: Tensor) -> Tensor:
        """Return whole vectors from this rank's slices of them, the rows of a tensor."""
        return self.ranks.whole(rows, self.whole_size)

    def remove(self, block: Tensor, count: int) -> None:
        """Take the span of the first `count` rows out of `block` (b, n) in place, once. Cost: two passes."""
        self.subtract(block, self.project(block, count), backward=True)

    def combine(self, weights: Tensor) -> Tensor:
        """Return Σ_i weights[i] · row_i over the first rows, (count,) → (n,). Cost: one pass."""
        result = torch.zeros(1, self.vector_size, dtype=self.rows.dtype, device=self.device)
        self.subtract(result, -weights.unsqueeze(1))
        return result.squeeze(0)

    def orthogonalize(self, block: Tensor) -> Tensor:
        """Take the span of the basis out of `block` in place, twice; return the coefficients removed.

        Classical Gram–Schmidt as matrix products, repeated once, which leaves an error of a rounding
        ("twice is enough", Giraud et al. 2005). The second projection reads the basis together with the
        first subtraction.

        Args:
            block: (b, n) on the basis's device.

        Returns:
            (size, b) float64: basis · blockᵀ of the block that came in.

        Cost: three passes over the basis.
        """
        if self.size == 0:
            return torch.zeros(0, block.shape[0], dtype=torch.float64, device=block.device)
        first = self.project(block)
        second = self._subtract_and_project(block, first, block, backward=True)
        self.subtract(block, second)
        return first + second

    def extend(self, vectors: Tensor, owed: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        """Append vectors, and take the span of the basis, them included, out of `image`, all but a rounding of it.

        The second subtraction of `orthogonalize` has to wait for all of the second projection, and would read the
        basis once more. Here it is put off until what is left of `image` is appended itself: then the basis is read
        anyway (delayed reorthogonalisation, Bielich et al. 2022).

        Args:
            vectors: (b, n) orthonormal; what is owed is taken out in place.
            owed: (size, b) float64, what they still hold of the rows before them; None if nothing.
            image: (c, n), changed in place.

        Returns:
            (size + b, c) float64: basis · imageᵀ of the image that came in, and of it what is left to take out.

        Cost: two passes over the basis.
        """
        first = self.project(image) if owed is None else self._subtract_and_project(vectors, owed, image)
        first = torch.cat([first, self.inner(vectors, image)])
        self.append(vectors)
        left = self._subtract_and_project(image, first, image, backward=True)
        return first + left, left

    def rotate(self, coefficients: Tensor) -> None:
        """Replace the basis by coefficientsᵀ · basis, chunk by chunk: in memory in place, on disk by a new file.

        Args:
            coefficients: (size, p) float64 with orthonormal columns, p ≤ size.

        Raises:
            OutputError: If there is no space for the new file.

        Cost: one pass, 2·size·p·n operations.
        """
        weights = coefficients.T.to(device=self.device, dtype=torch.float64)
        kept = coefficients.shape[1]
        width = CHUNK
        if self.device.type != "cpu":  # where the time goes into starting kernels
            width = max(CHUNK, _ROTATED_BYTES // (8 * max(1, self.size)) // CHUNK * CHUNK)
        rotated, target = None, self.rows
        if self._file is not None:
            rotated, inode = _reserve(self._file, self.rows.nbytes)
            target = torch.from_numpy(self._mapped(rotated, self.capacity, self.rows.dtype))
        for part in self._stretches(self.size):
            for start in range(part.start, part.stop, width):
                chunk = slice(start, min(start + width, part.stop))
                # float64 within the chunk: restarts repeat this, and float32 rounding would pile up.
                target[:kept, chunk] = (weights @ self.filled[:, chunk].double()).to(self.rows.dtype)
            if rotated is not None:
                rotated.madvise(mmap.MADV_DONTNEED)
        if rotated is not None:
            self._map, self._inode, self.rows = rotated, inode, target
        self.rows_written += kept
        self.size = kept

    def _mapped(self, mapped: mmap.mmap, count: int, dtype: torch.dtype) -> NDArray[Any]:
        kind = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        return np.frombuffer(mapped, dtype=kind, count=count * self.vector_size).reshape(count, self.vector_size)

    def _subtract_and_project(
        self, block: Tensor, coefficients: Tensor, projected: Tensor, *, backward: bool = False
    ) -> Tensor:
        """Take coefficientsᵀ · basis out of `block` (b, n) in place; return basis · projectedᵀ then. One pass."""
        found = [
            subtract_and_project(block[:, part], self.filled[:, part], coefficients, projected[:, part])
            for part in self._stretches(self.size, backward)
        ]
        total = torch.zeros(self.size, projected.shape[0], dtype=torch.float64, device=block.device)
        for one in reversed(found) if backward else found:  # the direction decides no bit
            total += one
        return self.ranks.add_up(total)

    def _stretches(self, count: int, backward: bool = False) -> Iterator[slice]:
        """Cut the columns into stretches of `count` rows to go through one by one: one in memory, more on disk."""
        self.rows_read += count
        width = max(1, self.vector_size)
        if self._map is not None:
            row_bytes = max(1, self.size) * self.rows.element_size()
            width = max(CHUNK, _STRETCH_BYTES // row_bytes // CHUNK * CHUNK)
        starts = range(0, self.vector_size, width)
        for start in reversed(starts) if backward else starts:
            yield slice(start, min(start + width, self.vector_size))
            self._give_back()

    def _give_back(self) -> None:
        """Let go of mapped pages; what was written to them stays in the file."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def _reserve(file: Path, size: int) -> tuple[mmap.mmap, tuple[int, int]]:
    """Make a file of this size, its space taken, and map it: a full disk shows here and not as a fault later."""
    try:
        with create_anew(file) as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
            status = os.fstat(opened.fileno())
            return mmap.mmap(opened.fileno(), size), (status.st_dev, status.st_ino)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise OutputError(
            f"expected {size / 2**30:.1f} GiB of disk for a basis in {file.parent}, got: {error.strerror}",
            "free some space, choose another --scratch, or allow more --memory",
        ) from error


def _inode_of(path: Path) -> tuple[int, int] | None:
    """Return which file has this name, a link itself and not what it leads to; None where none has."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino

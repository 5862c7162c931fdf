"""A Krylov basis of m vectors of length n, in memory or on disk, orthonormal to float64-accumulated rounding.

Vectors are contiguous rows, so that a chunk of the whole basis is a matrix that fits the cache. Where the operator
lives on an accelerator and the basis does not, only the vectors of one block travel.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lite_probe.operators.reductions import CHUNK, project, subtract, subtract_and_project


class KrylovBasis:
    """Rows 0 … size−1 of an array (capacity, n).

    Args:
        size: n.
        capacity: Rows to make room for. The memory is taken at once.
        dtype: Of the rows.
        device: Where the rows live.
        file: Put the rows into this file instead, memory-mapped.
    """

    def __init__(
        self,
        size: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        file: Path | None = None,
    ) -> None:
        self.vector_size = size
        self.capacity = capacity
        self.size = 0
        if file is None:
            self.rows = torch.empty(capacity, size, dtype=dtype, device=device)
        else:
            kind = np.float64 if dtype == torch.float64 else np.float32
            self.rows = torch.from_numpy(np.memmap(file, dtype=kind, mode="w+", shape=(capacity, size)))

    @property
    def filled(self) -> Tensor:
        """(size, n) the rows in use, a view."""
        return self.rows[: self.size]

    def append(self, block: Tensor) -> None:
        """Store b vectors (b, n) behind the others; they must be orthonormal to them already."""
        self.rows[self.size : self.size + block.shape[0]].copy_(block)
        self.size += block.shape[0]

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
        first = project(self.filled, block)
        second = subtract_and_project(block, self.filled, first)
        subtract(block, self.filled, second)
        return first + second

    def rotate(self, coefficients: Tensor) -> None:
        """Replace the basis by coefficientsᵀ · basis, in place and chunk by chunk.

        Args:
            coefficients: (size, p) float64 with orthonormal columns, p ≤ size.

        Cost: one pass, 2·size·p·n operations.
        """
        weights = coefficients.T.to(device=self.rows.device, dtype=torch.float64)
        kept = coefficients.shape[1]
        for start in range(0, self.vector_size, CHUNK):
            stop = start + CHUNK
            # float64 within the chunk: restarts repeat this, and float32 rounding would pile up.
            piece = self.filled[:, start:stop].double()
            self.rows[:kept, start:stop] = (weights @ piece).to(self.rows.dtype)
        self.size = kept

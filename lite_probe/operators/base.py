"""Symmetric operators: all that Lanczos, density and trace ever see of a model."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SymmetricOperator(ABC):
    """A symmetric linear map on R^n that is known by its products.

    The public methods check shapes and count; a subclass writes `_products` only.

    Attributes:
        size: n.
        device: Where vectors must live.
        dtype: Precision of vectors and products.
        vector_size: Entries of a vector that it takes: n, or those of this rank's slice.
        num_products: Products made so far, one per vector.
        vectors_per_pass: Vectors that one pass serves at no extra memory; callers batch up to this many.
    """

    vectors_per_pass: int = 1

    def __init__(self, size: int, *, device: torch.device, dtype: torch.dtype, vector_size: int | None = None) -> None:
        self.size = size
        self.vector_size = size if vector_size is None else vector_size
        self.device = device
        self.dtype = dtype
        self.num_products = 0

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H v, (n,) → (n,). Cost: one product."""
        return self.matmat(vector.unsqueeze(1)).squeeze(1)

    def matmat(self, matrix: Tensor) -> Tensor:
        """Return H V for column vectors, (n, b) → (n, b). Cost: b products.

        Raises:
            ValueError: If shape, dtype or device is not the operator's.
        """
        if matrix.ndim != 2 or matrix.shape[0] != self.vector_size:
            raise ValueError(f"expected vectors of shape ({self.vector_size}, b), got {tuple(matrix.shape)}")
        if matrix.dtype != self.dtype or matrix.device != self.device:
            raise ValueError(f"expected {self.dtype} on {self.device}, got {matrix.dtype} on {matrix.device}")
        self.num_products += matrix.shape[1]
        return self._products(matrix.T.contiguous()).T

    def __matmul__(self, other: Tensor) -> Tensor:
        """Apply to a vector or to columns."""
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    @abstractmethod
    def _products(self, rows: Tensor) -> Tensor:
        """Return the products of b contiguous vectors, (b, n) → (b, n)."""


class MatrixOperator(SymmetricOperator):
    """A known symmetric matrix, for tests and small problems.

    Args:
        matrix: (n, n), symmetric.
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[0], device=matrix.device, dtype=matrix.dtype)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"expected a square matrix, got shape {tuple(matrix.shape)}")
        self.matrix = matrix

    def _products(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix.T

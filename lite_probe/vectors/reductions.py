"""Sums over all N parameters, accumulated in float64.

A float32 sum over millions of entries is biased on a CPU: once the running sum dwarfs the terms, each addition
rounds the same way. Here float32 arithmetic stays within a chunk that fits the cache, and chunks add up in float64.
Rows are vectors: a basis of m vectors is (m, n), each contiguous.
"""

import math

import torch
from torch import Tensor

CHUNK = 16_384  # entries of one partial sum; 64 KiB of float32, so 45 rows of it stay in a 4 MiB cache


def project(rows: Tensor, vectors: Tensor) -> Tensor:
    """Return rows · vectorsᵀ, (m, n) × (b, n) → (m, b) float64, on the rows' device.

    Cost: one pass over `rows`.
    """
    total = torch.zeros(rows.shape[0], vectors.shape[0], dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], CHUNK):
        stop = start + CHUNK
        total += (rows[:, start:stop] @ vectors[:, start:stop].T).double()
    return total


def subtract(vectors: Tensor, rows: Tensor, coefficients: Tensor) -> None:
    """Take coefficientsᵀ · rows from `vectors` in place; coefficients (m, b).

    Cost: one pass over `rows`.
    """
    weights = coefficients.T.to(rows.dtype)
    for start in range(0, rows.shape[1], CHUNK):
        stop = start + CHUNK
        vectors[:, start:stop].addmm_(weights, rows[:, start:stop], alpha=-1.0)


def subtract_and_project(vectors: Tensor, rows: Tensor, coefficients: Tensor) -> Tensor:
    """Do `subtract`, then `project`, in one pass: each chunk of `rows` is read once for both."""
    weights = coefficients.T.to(rows.dtype)
    total = torch.zeros(rows.shape[0], vectors.shape[0], dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], CHUNK):
        piece = rows[:, start : start + CHUNK]
        target = vectors[:, start : start + CHUNK]
        target.addmm_(weights, piece, alpha=-1.0)
        total += (piece @ target.T).double()
    return total


def dot(first: Tensor, second: Tensor) -> float:
    """Return the inner product of two (n,) vectors."""
    return float(project(first.unsqueeze(0), second.unsqueeze(0)))


def norm(vector: Tensor) -> float:
    """Return the Euclidean norm of an (n,) vector.

    The vector is scaled by its largest entry first, so that squares neither overflow nor vanish.
    """
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    if largest == 0.0 or largest != largest or largest == float("inf"):
        return largest
    if 1e-12 < largest < 1e12:
        return math.sqrt(dot(vector, vector))
    scaled = vector.double() / largest
    return largest * math.sqrt(dot(scaled, scaled))

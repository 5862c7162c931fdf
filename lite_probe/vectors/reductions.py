"""Sums over all N parameters, accumulated in float64.

A float32 sum over millions of entries is biased on a CPU: once the running sum dwarfs the terms, each addition
rounds the same way. Here float32 arithmetic stays within a chunk that fits the cache, and chunks add up in float64.
Rows are vectors: a basis of m vectors is (m, n), each contiguous.

A CPU takes one chunk after the other, which keeps it in the cache. On an accelerator, where starting a kernel takes
longer than a chunk, the chunks of a long stretch are the batch of one batched product.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

CHUNK = 16_384  # entries of one partial sum; 64 KiB of float32, so 45 rows of it stay in a 4 MiB cache
_MOST_CHUNKS = 16_384  # of one batched product; 64 KiB of partial sums for each pair of vectors
_VIEWS = 256  # pieces that are cut at a time; one by one, cutting takes a fifth of a pass over a single row on a CPU

_LONGEST_STRIDE = 2**31 - 1  # that BLAS libraries take between rows
_COPIED_BYTES = 1 << 28  # of longer rows at a time
_SMALLEST_SQUARE = 1e-30  # mean square of entries whose norm is taken without scaling them


def project(rows: Tensor, vectors: Tensor) -> Tensor:
    """Return rows · vectorsᵀ, (m, n) × (b, n) → (m, b) float64, on the rows' device.

    Cost: one pass over `rows`.
    """
    total = torch.zeros(rows.shape[0], vectors.shape[0], dtype=torch.float64, device=rows.device)
    for piece, columns in _pieces(rows, vectors):
        total += _product(_near(piece), _near(columns))
    return total


def subtract(vectors: Tensor, rows: Tensor, coefficients: Tensor) -> None:
    """Take coefficientsᵀ · rows from `vectors` in place; coefficients (m, b).

    Cost: one pass over `rows`.
    """
    weights = coefficients.T.to(rows.dtype)
    for piece, target in _pieces(rows, vectors):
        _subtract(target, weights, _near(piece))


def subtract_and_project(
    vectors: Tensor, rows: Tensor, coefficients: Tensor, projected: Tensor | None = None
) -> Tensor:
    """Do `subtract`, then `project`, in one pass: on a CPU each chunk of `rows` is read once for both.

    Args:
        vectors: (b, n) to subtract from.
        rows: (m, n).
        coefficients: (m, b).
        projected: (c, n) to project; by default `vectors`, with what was subtracted gone.

    Returns:
        (m, c) float64.
    """
    onto = vectors if projected is None else projected
    weights = coefficients.T.to(rows.dtype)
    total = torch.zeros(rows.shape[0], onto.shape[0], dtype=torch.float64, device=rows.device)
    for far, target, columns in _pieces(rows, vectors, onto):
        piece = _near(far)
        _subtract(target, weights, piece)
        total += _product(piece, _near(columns))
    return total


def dot(first: Tensor, second: Tensor) -> float:
    """Return the inner product of two (n,) vectors."""
    return dots([(first, second)])[0]


def dots(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the inner products of pairs of (n,) vectors, one pair after another; a device is waited for once."""
    found = [project(first.unsqueeze(0), second.unsqueeze(0)).view(()) for first, second in pairs]
    products: list[float] = torch.stack(found).tolist() if found else []
    return products


def norm(vector: Tensor) -> float:
    """Return the Euclidean norm of an (n,) vector."""
    return norms(vector.unsqueeze(0))[0]


def norms(vectors: Tensor) -> list[float]:
    """Return the Euclidean norms of vectors (b, n). Cost: one pass, and on an accelerator one wait for all."""
    size = vectors.shape[1]
    squares = torch.stack([project(row, row).view(()) for row in vectors.unsqueeze(1)]) if len(vectors) else vectors
    return [
        # Squares that float32 cannot hold, below 1.2e-38, are next to nothing beside such a sum.
        math.sqrt(square) if _SMALLEST_SQUARE * size < square < math.inf else _scaled_norm(vector)
        for square, vector in zip(squares.tolist(), vectors, strict=True)
    ]


def _scaled_norm(vector: Tensor) -> float:
    """Scale by the largest entry first, so that squares neither overflow nor vanish."""
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = vector.double() / largest
    return largest * math.sqrt(dot(scaled, scaled))


def _pieces(rows: Tensor, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """View the columns of all of them in pieces for one product: a chunk or several whole ones, last what is none."""
    size, width = rows.shape[1], CHUNK * _chunks_at_once(rows.device)
    if size and _is_too_wide(rows):
        width = min(width, max(1, _COPIED_BYTES // (rows[:, :CHUNK].nbytes or 1)) * CHUNK)
    whole = size - size % CHUNK
    for begin, end in ((0, whole), (whole, size)):
        for start in range(begin, end, width * _VIEWS):
            stop = min(start + width * _VIEWS, end)
            yield from zip(*(torch.split(one[:, start:stop], width, dim=1) for one in (rows, *vectors)), strict=True)


def _chunks_at_once(device: torch.device) -> int:
    return 1 if device.type == "cpu" else _MOST_CHUNKS


def _is_too_wide(rows: Tensor) -> bool:
    return rows.stride(0) > _LONGEST_STRIDE


def _near(piece: Tensor) -> Tensor:
    """Return a piece as it is, or copied where its rows lie too far apart for BLAS, unless it is one row."""
    return piece.reshape(-1).view(piece.shape) if _is_too_wide(piece) else piece


def _subtract(target: Tensor, weights: Tensor, piece: Tensor) -> None:
    near = _near(target)
    near.addmm_(weights, piece, alpha=-1.0)
    if near is not target and len(target) > 1:
        target.copy_(near)


def _product(rows: Tensor, vectors: Tensor) -> Tensor:
    """Return rows · vectorsᵀ of at most a chunk, or of whole ones, in which float64 adds them up."""
    if rows.shape[1] <= CHUNK:
        return rows @ vectors.T
    return torch.bmm(_by_chunk(rows), _by_chunk(vectors).mT).sum(0, dtype=torch.float64)


def _by_chunk(rows: Tensor) -> Tensor:
    """View (m, chunks · CHUNK) as (chunks, m, CHUNK)."""
    return rows.view(rows.shape[0], rows.shape[1] // CHUNK, CHUNK).transpose(0, 1)

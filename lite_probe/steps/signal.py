"""Signal or noise: whether two halves of the batches find the same leading singular directions.

LITE's gain was seen to grow with the share on which they agree, which grows with the batch.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lite_probe.optim import LiteOptimizer
from lite_probe.optim.leading import first_basis
from lite_probe.seeds import derive_seed
from lite_probe.vectors.random import random_vector

AGREEMENT = 0.7  # |u_A·u_B||v_A·v_B| above which two singular directions are one


def momenta(optimizer: LiteOptimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield (block, momentum) of every matrix that Muon orthogonalises, each (m, n)."""
    for piece in optimizer.pieces:
        if piece.geometry.name == "orthogonal":
            stack = optimizer.state[piece.parameter][f"momentum{piece.suffix}"]
            yield from ((piece.block, matrix) for matrix in stack.reshape(-1, *piece.shape[-2:]))


def agreeing_directions(first: Tensor, second: Tensor, rank: int) -> int:
    """Count the leading singular directions of one matrix that another one has among its own, in whatever order.

    Args:
        first: (m, n).
        second: (m, n).
        rank: r, of the first's directions that are looked at, and so many of the second's.

    Returns:
        How many of r have |u_A·u_B||v_A·v_B| > 0.7 with one of the other's r.

    Cost: two eigendecompositions of the smaller side in float64.
    """
    left, right = [], []
    for matrix in (first, second):
        exact = matrix.double()
        (found,) = first_basis(exact.unsqueeze(0), rank)
        left.append(torch.linalg.qr(exact @ found)[0])
        right.append(found)
    overlaps = (left[0].mT @ left[1]).abs() * (right[0].mT @ right[1]).abs()
    return int((overlaps.amax(dim=1) > AGREEMENT).sum())


def random_like(matrix: Tensor, seed: int, *path: str | int) -> Tensor:
    """Return a matrix of independent Gaussian entries of another one's shape."""
    drawn = random_vector(
        matrix.numel(), seed=derive_seed(seed, "random matrix", *path), dtype=matrix.dtype, device=matrix.device
    )
    return drawn.view(matrix.shape)


def leading(shape: Sequence[int], sharp_ratio: float) -> int:
    """Return r, how many directions of an (m, n) matrix LITE calls sharp at this ratio; at least one."""
    small = min(shape)
    return max(1, min(int(sharp_ratio * small) + 1, small - 1))

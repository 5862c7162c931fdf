"""The k leading right singular directions of a stack of matrices that drift from step to step.

An eigensolver each step would take longer than the step, and wait for the device. A subspace a little wider than k is
kept instead, and moved along with the matrices by power iterations; in its own coordinates, where everything is small,
the k leading directions are then separated from the others, which decides at once where two of them changed places.
"""

import torch
from torch import Tensor

_GUARDS = 8  # directions, or k, that are kept besides the k: those that may come next
_PASSES = 4  # power iterations a step
_SEPARATIONS = 6  # in the subspace's own coordinates
_LEAST_RADIUS = 0.05  # of an interval, over the distance from its centre to the least eigenvalue that is wanted


def kept_width(rows: int, columns: int, rank: int) -> int:
    """Return how many directions of an (m, n) matrix are kept for its k leading ones."""
    leading_ones = capped_rank(rows, columns, rank)
    return min(leading_ones + max(_GUARDS, leading_ones), rows, columns)


def capped_rank(rows: int, columns: int, rank: int) -> int:
    """Return k, at most min(m, n) − 1: something stays flat."""
    return min(rank, min(rows, columns) - 1)


def first_basis(matrices: Tensor, width: int) -> Tensor:
    """Return the leading right singular vectors of each M as columns, largest first, from those of a Gram matrix.

    Args:
        matrices: M, (stack, m, n).
        width: How many, at most min(m, n).

    Returns:
        (stack, n, width), orthonormal columns of M's dtype.

    Cost: a product and an eigendecomposition of the smaller of MMᵀ and MᵀM, in float64; it waits for the device.
    """
    found = []
    for matrix in matrices:  # one after another: in float64 each is twice as large
        exact = matrix.double()
        basis = gram_vectors(exact)[..., :width]
        found.append((basis if exact.shape[0] >= exact.shape[1] else _orthonormal(exact.mT @ basis)).to(matrix.dtype))
    return torch.stack(found)


def gram_vectors(matrices: Tensor) -> Tensor:
    """Return the eigenvectors of the smaller of MMᵀ and MᵀM of each M (…, m, n) as columns, the largest one's first.

    They are singular vectors, all but those of a σ below √eps of the largest, whose square rounding hides: of these
    they span the space. To be called in float64, where that is 1e-8.
    """
    tall = matrices.shape[-2] >= matrices.shape[-1]
    gram = matrices.mT @ matrices if tall else matrices @ matrices.mT
    vectors: Tensor = torch.linalg.eigh(gram)[1]
    return vectors.flip(-1)


def _orthonormal(matrix: Tensor) -> Tensor:
    found: Tensor = torch.linalg.qr(matrix)[0]
    return found


def followed_basis(matrices: Tensor, basis: Tensor) -> Tensor:
    """Move a basis along with its matrices: V ← orth(Mᵀ orth(MV)), four times.

    The subspace comes nearer to that of the leading directions by (σ_{w+1}/σ_k)² each time, w being its width. M itself
    is applied, not MᵀM, which would square the rounding of small singular values.

    Cost: 16·m·n·w multiplications and additions a matrix, and QRs of (m, w) and (n, w).
    """
    for _ in range(_PASSES):
        left: Tensor = torch.linalg.qr(torch.bmm(matrices, basis))[0]
        basis = torch.linalg.qr(torch.bmm(matrices.mT, left))[0]
    return basis


def leading(matrices: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return a basis of the same subspace whose first k columns lead, and these columns.

    With `followed_basis`, for momenta of Muon (θ = 0.95) of noisy gradients whose directions turn by 2% and whose sizes
    vary by 30% each step, in float32, the sine of the largest angle to the exact subspace stays below 3e-5 for k = 1,
    3e-3 for 4 and 2e-2 for 12 where σ_k > 1.05·σ_{k+1}, and is a tenth of that in the median or less, for 12 a third.
    Nearer to each other two directions take some steps to change places; which of them is sharp matters little there.

    Args:
        matrices: M, (stack, m, n).
        basis: From `first_basis` or `followed_basis`, (stack, n, w), w > k.
        rank: k.

    Returns:
        The basis, and its first k columns, of which those are zero that M maps to no more than its rounding: no
        direction of a zero matrix leads.

    Cost: a product with M; the rest in matrices of (w, w), in float64.
    """
    image = torch.bmm(matrices, basis).double()
    turn = _separating_turn(torch.bmm(image.mT, image), rank)
    basis = torch.bmm(basis, turn.to(basis.dtype))
    sizes = torch.linalg.vector_norm(torch.bmm(image, turn), dim=-2, keepdim=True)
    rounding = max(matrices.shape[-2:]) * torch.finfo(matrices.dtype).eps
    counts = sizes > rounding * sizes.amax(dim=-1, keepdim=True)
    return basis, (basis * counts)[..., :rank]


def _separating_turn(gram: Tensor, rank: int) -> Tensor:
    """Return an orthogonal W whose first k columns span the leading eigenvectors of a small symmetric T.

    A few steps of orthogonal iteration, W ← orth(p(T)W) in the order of the diagonal, with the Chebyshev polynomial p
    of degree 4 that is at most 1 on the eigenvalues behind the k-th, as the diagonal tells them. Unlike an
    eigensolver, none of that asks the device for anything.

    Args:
        gram: T, (stack, w, w), float64.
        rank: k < w.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    whole = identity.expand_as(gram)
    numbers = torch.finfo(gram.dtype)
    for _ in range(_SEPARATIONS):
        values, order = gram.diagonal(dim1=-2, dim2=-1).sort(dim=-1, descending=True, stable=True)
        largest, last, high, low = (values[:, place, None, None] for place in (0, rank - 1, rank, -1))
        centre = 0.5 * (high + low)
        radius = torch.maximum(0.5 * (high - low), _LEAST_RADIUS * (last - centre))
        radius = torch.maximum(radius, numbers.eps * largest).clamp(min=numbers.tiny)
        scaled = (gram - centre * identity) / radius
        twice = 2.0 * torch.bmm(scaled, scaled) - identity
        filtered = 2.0 * torch.bmm(twice, twice) - identity
        turn: Tensor = torch.linalg.qr(filtered.gather(2, order.unsqueeze(1).expand_as(filtered)))[0]
        gram = torch.bmm(torch.bmm(turn.mT, gram), turn)
        gram = 0.5 * (gram + gram.mT)
        whole = torch.bmm(whole, turn)
    return whole

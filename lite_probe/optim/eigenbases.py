"""Orthonormal bases of a whole space from what is known of part of it, such that rounding moves them by rounding.

A gradient of m × n numbers has at most min(m, n) singular directions, and a batch with few tokens fewer: of the
remaining ones an eigensolver returns whatever basis its rounding leads to, another one for a gradient times 1 + 1e-7,
on another machine or number of threads. An optimizer that treats coordinates one by one then makes another step. Here
directions that no rounding can tell from null are completed by the orthonormal vectors nearest to given ones, which
depend on the known directions' span alone, and continuously.
"""

import math

import scipy.linalg
import torch
from torch import Tensor


def resolution(length: int, dtype: torch.dtype) -> float:
    """Return n·eps, the eigenvalue over the largest below which rounding makes the eigenvectors of an n × n factor."""
    return length * torch.finfo(dtype).eps


def singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors of GGᵀ and of GᵀG that rounding leaves, as columns, the largest eigenvalue first.

    They are G's singular vectors with a σ² above `resolution` of the largest. Of a G in float32 the smaller product in
    float64 knows them to 1e-12; of one in float64 it would lose those with a small σ, and G itself is decomposed.

    Args:
        matrix: G, (m, n).

    Returns:
        (m, r) and (n, r), float64; r = 0 where G is zero.

    Cost: an eigendecomposition of the smaller product in float64; of a float64 G a singular value decomposition.
    """
    if matrix.dtype != torch.float64:
        return _of_product(matrix.double(), resolution(max(matrix.shape), matrix.dtype))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    known = values > math.sqrt(resolution(max(matrix.shape), matrix.dtype)) * values[0]
    return left[:, known], right.mT[:, known]


def _of_product(matrix: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Return `singular_vectors` of a G whose σ² are known down to a share `least` of the largest."""
    tall = matrix.shape[0] >= matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix if tall else matrix @ matrix.mT)
    known = values.flip(0) > least * values[-1]
    short = vectors.flip(1)[:, known]
    image = (matrix if tall else matrix.mT) @ short
    long = image / torch.linalg.vector_norm(image, dim=0)
    return (long, short) if tall else (short, long)


def whole_basis(known: Tensor) -> Tensor:
    """Return V (n, r) with the orthonormal vectors behind it that complete it, the nearest to coordinate vectors."""
    if known.shape[1] == len(known):
        return known
    rest = torch.ones(len(known), dtype=torch.bool, device=known.device)
    if known.shape[1]:
        rest[_telling_rows(known)] = False
    return torch.cat([known, completed(known, rest)], dim=1)


def renewed_basis(factor: Tensor, basis: Tensor) -> Tensor:
    """Return the Q of LQ = QR: one power iteration, orthonormalised from the first column on.

    Columns of which L leaves no more than `resolution` of the largest, beyond what the others span, are noise. In
    their places stand the orthonormal vectors that complete the others, the nearest to those that stood there.

    Args:
        factor: L, (n, n), symmetric positive semidefinite.
        basis: Q, (n, n), the sharpest direction first.

    Cost: a product and a QR in float64; a second one and what `completed` takes where there is noise.
    """
    frame = basis.double()
    image = factor.double() @ frame
    found: Tensor
    found, triangle = torch.linalg.qr(image)
    sizes = triangle.diagonal().abs()
    noise = sizes <= resolution(len(factor), factor.dtype) * sizes.amax()
    if bool(noise.any()):
        known = torch.linalg.qr(image[:, ~noise])[0]
        found = torch.empty_like(frame)
        found[:, ~noise] = known
        found[:, noise] = frame @ completed(frame.mT @ known, noise)
    return found.to(basis.dtype)


def completed(known: Tensor, rest: Tensor) -> Tensor:
    """Return the orthonormal basis of the complement of V's span that is nearest to some of the coordinate vectors.

    With V_I and V_J the rows of V outside and inside J, U the orthogonal polar factor of V_I and H = (V_IᵀV_I)^½, its
    rows are −UV_Jᵀ and I − V_J(I + H)⁻¹V_Jᵀ. That is the polar factor of (I − VVᵀ)E_J, written without a division by
    what may be small.

    Args:
        known: V, (n, r), orthonormal columns.
        rest: (n,), true for the n − r coordinates of J.

    Returns:
        (n, n − r), in the order of J. Vectors of V that are rotated among themselves leave it as it is, and a change
        of the span changes it by that over the smallest singular value of V_I.

    Cost: 2n(n − r)r multiplications and additions and a singular value decomposition of (r, r).
    """
    inside, rest = (chosen.nonzero()[:, 0] for chosen in (~rest, rest))
    inner, outer = known[inside], known[rest]
    left, cosines, right = torch.linalg.svd(inner)
    turned = outer @ right.mT
    found = known.new_empty(len(known), len(outer))
    found[inside] = -left @ turned.mT
    found[rest] = torch.eye(len(outer), dtype=known.dtype, device=known.device) - (turned / (1.0 + cosines)) @ turned.mT
    return found


def _telling_rows(known: Tensor) -> Tensor:
    """Return r rows of V (n, r) that are far from singular together: the pivots of a QR of Vᵀ.

    They depend on VVᵀ alone. A row of zeros, that of a token which does not occur, is none of them.
    """
    pivots = scipy.linalg.qr(known.mT.cpu().numpy(), mode="r", pivoting=True)[1]
    return torch.from_numpy(pivots[: known.shape[1]]).to(known.device, torch.int64)

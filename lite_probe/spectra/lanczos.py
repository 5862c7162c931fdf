"""Block Lanczos with thick restart for both ends of a spectrum.

The basis Q grows by blocks, T = QᵀHQ is filled from the coefficients that orthogonalisation removes anyway, and
Ritz pairs of T converge at both ends at once. What H adds outside the span of Q is `pending`, X with
HQ = QT + XSᵀ on the last block's columns, so ‖S y‖ is the residual of a Ritz pair without another product.
When the basis is full it is rotated onto its leading Ritz vectors and the run goes on: thick restart (Wu & Simon
2000), which needs no new formula here, since T is a projection and not assumed to be tridiagonal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.operators.base import SymmetricOperator
from lite_probe.seeds import derive_seed
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import subtract

FloatArray = NDArray[np.float64]

_NEGLIGIBLE = 0.1  # of the tolerance: an eigenvalue below this share of ‖H‖ times it need not be resolved
_NOT_NEGATIVE = 1.0  # likewise for the lowest of a spectrum, where it is not negative
_MOST_OWED = 0.1  # of √eps: what is put off to the next step changes lengths by half its square


@dataclass(slots=True)
class RitzPairs:
    """The wanted Ritz pairs of a run: the `top` largest, then the `bottom` smallest."""

    values: FloatArray  # (k + j,) the largest descending, then the smallest ascending
    coefficients: FloatArray  # (m, k + j) in the basis
    residual_norms: FloatArray  # (k + j,) by the recurrence
    num_top: int  # k


class Lanczos:
    """A Lanczos run that can be stepped, saved, restored and extended.

    Args:
        operator: Products only; never asked for anything else.
        top: Pairs wanted at the upper end.
        bottom: Pairs wanted at the lower end.
        basis: Room for at least top + bottom + 2 vectors.
        seed: Of the start vector and of any vector drawn later.
        block: Vectors per step.
        by_magnitude: Want the `top` pairs of largest |λ| instead, whichever end they are at; `bottom` is 0 then.

    Attributes:
        projected: (m, m) float64, T.
        pending: (b, n) orthonormal vectors that the next step multiplies; this rank's slices of them.
        owed: (m, b) float64, what the pending vectors still hold of the basis, a rounding; None where nothing.
        coupling: (b, c) S: what the pending vectors contribute to H times the last c basis vectors.
        restarts: Thick restarts so far.
        first_quadrature: Nodes and weights as they stood before T was first rotated, see `quadrature`.
        settled: Whether the basis consists of Ritz vectors and T is diagonal.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        *,
        top: int,
        bottom: int,
        basis: KrylovBasis,
        seed: int,
        block: int = 1,
        by_magnitude: bool = False,
    ) -> None:
        self.operator = operator
        self.by_magnitude = by_magnitude
        self.top = top
        self.bottom = bottom
        self.basis = basis
        self.seed = seed
        self.projected: FloatArray = np.zeros((0, 0))
        self.coupling: FloatArray = np.zeros((0, 0))
        self.owed: FloatArray | None = None
        self.restarts = 0
        self.num_drawn = 0
        self.first_quadrature: tuple[FloatArray, FloatArray] | None = None
        self.scale = 0.0  # largest |Ritz value| seen
        self.settled = False
        self._pairs: RitzPairs | None = None
        self.pending = torch.empty(0, basis.vector_size, dtype=operator.dtype, device=operator.device)
        self.start_block = block
        self.insert_random(block)

    # -- growing -------------------------------------------------------------------------------------------------

    def insert(self, vectors: Tensor) -> int:
        """Add vectors (b, n) to the pending block, made orthonormal to everything; return how many were new."""
        self._take_out_owed()
        count = self.pending.shape[0]
        fresh = vectors.to(self.basis.device)
        self.basis.orthogonalize(fresh)
        joined = torch.cat([self.pending.to(fresh.device), fresh])
        self.pending, _ = _orthonormalize(joined, self.basis, tolerance=0.5 * torch.finfo(fresh.dtype).eps)
        added = self.pending.shape[0] - count
        self.coupling = np.vstack([self.coupling, np.zeros((added, self.coupling.shape[1]))])
        return added

    def insert_random(self, count: int) -> None:
        """Add random vectors to the pending block, as many as the space still has room for."""
        room = self.operator.size - self.basis.size - self.pending.shape[0]
        for _ in range(min(count, room)):
            seed = derive_seed(self.seed, "lanczos", self.num_drawn)
            self.num_drawn += 1
            self.insert(draw(self.basis, seed=seed).unsqueeze(0))

    def step(self) -> None:
        """Multiply the pending block, extend basis and T, and find the next pending block.

        Cost: one product per pending vector, two passes over the basis.

        Raises:
            NumericsError: If a product is not finite.
        """
        if self.basis.size + self.pending.shape[0] > self.basis.capacity:
            self.restart()
        self.settled, self._pairs = False, None
        vectors, owed = self.pending, self.owed
        image = multiply(self.operator, self.basis, vectors)
        length = max(self.basis.norms(image))
        if not math.isfinite(length):
            raise NumericsError("expected finite Hessian products, got NaN or infinity", "check the checkpoint")
        given = None if owed is None else torch.from_numpy(owed).to(image.device)
        removed, left = (found.cpu().numpy() for found in self.basis.extend(vectors, given, image))
        if owed is not None:
            # The product was of x + Qs with s owed: HQs = QTs, x's share of it aside, is not x's own.
            size = owed.shape[0]
            removed[:size] -= self.projected @ owed
            removed[size:] -= removed[:size].T @ owed
        self._extend_projection(removed, vectors.shape[0])
        # What is left of Hx is rounding where it is this small beside Hx: the space is invariant there.
        self.scale = max(self.scale, length)
        threshold = 20.0 * torch.finfo(image.dtype).eps * self.scale
        self.pending, self.coupling = _orthonormalize(image, self.basis, tolerance=threshold)
        self.owed = left @ self.basis.ranks.once(lambda: np.linalg.pinv(self.coupling))
        owing = float(np.linalg.norm(self.owed, axis=0).max(initial=0.0))
        if owing > _MOST_OWED * math.sqrt(torch.finfo(image.dtype).eps):
            # Normalising a small remainder blows up the rounding in it.
            self.basis.orthogonalize(self.pending)
            self.pending, _ = _orthonormalize(self.pending, self.basis, tolerance=0.0)
            self.owed = None

    def _take_out_owed(self) -> None:
        """Finish the pending vectors. Cost: one pass over the basis, where something is owed."""
        if self.owed is not None:
            self.basis.subtract(self.pending, torch.from_numpy(self.owed).to(self.pending.device))
            self.owed = None

    def _extend_projection(self, coefficients: FloatArray, count: int) -> None:
        """Append `count` rows and columns to T; the new diagonal block is symmetrised."""
        size = self.basis.size
        grown = np.zeros((size, size))
        grown[: size - count, : size - count] = self.projected
        corner = coefficients[size - count :]
        grown[:, size - count :] = coefficients
        grown[size - count :, :] = coefficients.T
        grown[size - count :, size - count :] = 0.5 * (corner + corner.T)
        self.projected = grown

    def _solved(self) -> tuple[FloatArray, FloatArray]:
        """Return eigenvalues and eigenvectors of T, solved once for all ranks."""
        values, vectors = self.basis.ranks.once(lambda: linalg.eigh(self.projected))
        return values, vectors

    def restart(self) -> None:
        """Rotate the basis onto its leading Ritz vectors and go on from there.

        Kept are the wanted pairs and half of the rest from both ends, which speeds up what comes next.
        """
        self._take_out_owed()
        if self.first_quadrature is None:
            self.first_quadrature = self.quadrature()
        values, vectors = self._solved()
        size = len(values)
        room = self.basis.capacity - self.pending.shape[0]
        spare = max(0, (room - self.top - self.bottom) // 2)
        top, bottom = self._wanted(values)
        share = top / max(1, top + bottom)
        above = min(size - 1, top + round(spare * share))
        below = min(size - 1 - above, bottom + spare - round(spare * share))
        kept = np.r_[0:below, size - above : size]
        last = self.coupling.shape[1]
        self.coupling = self.coupling @ vectors[size - last :, kept]
        self.basis.rotate(torch.from_numpy(np.ascontiguousarray(vectors[:, kept])))
        self.projected = np.diag(values[kept])
        self.restarts += 1

    # -- reading -------------------------------------------------------------------------------------------------

    def ritz_pairs(self) -> RitzPairs:
        """Return the wanted pairs of the current basis, fewer while it is smaller than they are."""
        if self._pairs is None:
            self._pairs = self._solve()
        return self._pairs

    def _solve(self) -> RitzPairs:
        values, vectors = self._solved()
        size = len(values)
        top, bottom = self._wanted(values)
        wanted = np.r_[size - 1 : size - 1 - top : -1, 0:bottom]
        last = self.coupling.shape[1]
        residuals = np.linalg.norm(self.coupling @ vectors[size - last :, wanted], axis=0)
        if not self.coupling.size:
            residuals = np.zeros(len(wanted))
        self.scale = max(self.scale, float(np.abs(values).max(initial=0.0)))
        return RitzPairs(values[wanted], vectors[:, wanted], residuals, top)

    def _wanted(self, values: FloatArray) -> tuple[int, int]:
        """Return how many of the ascending Ritz values are wanted at the upper and at the lower end."""
        size = len(values)
        if self.by_magnitude:
            chosen = np.argsort(-np.abs(values), kind="stable")[: self.top]
            above = int(np.count_nonzero(values[chosen] >= 0.0))
            return above, len(chosen) - above
        top = min(self.top, size)
        return top, min(self.bottom, size - top)

    @property
    def floor(self) -> float:
        """The residual that rounding alone leaves: products in this precision cannot do better."""
        return 50.0 * float(torch.finfo(self.operator.dtype).eps) * self.scale

    def converged(self, pairs: RitzPairs, tolerance: float) -> NDArray[np.bool_]:
        """Tell which pairs have ‖Hv − λv‖ ≤ max(tolerance·|λ|, floor)."""
        allowed = np.maximum(tolerance * np.abs(pairs.values), self.floor)
        return np.asarray(pairs.residual_norms <= allowed)

    def negligible(self, pairs: RitzPairs, residual_norms: FloatArray, tolerance: float) -> NDArray[np.bool_]:
        """Tell which pairs lie so near zero, beside ‖H‖, that more products would say nothing.

        A singular operator has a cluster of them at one end, and no residual gets small beside an eigenvalue of zero.
        Hence |λ| + ‖Hv − λv‖ ≤ tolerance·‖H‖/10; at the lower end ≤ tolerance·‖H‖ where the Ritz value is not
        negative: it only falls from there, and what is asked is whether there is negative curvature. A negative one
        has proved it, and is followed.
        """
        values = pairs.values
        share = np.full(len(values), _NEGLIGIBLE)
        share[pairs.num_top :][values[pairs.num_top :] >= -self.floor] = _NOT_NEGATIVE
        return np.asarray(np.abs(values) + residual_norms <= share * tolerance * self.scale)

    def quadrature(self) -> tuple[FloatArray, FloatArray]:
        """Return nodes and weights of the Gauss rule that the run's start vector defines.

        T before any restart belongs to the start block Q₁; for eigenpairs (θ, y) of T the weights are
        ‖Q₁ᵀQy‖²/b, which sum to 1.
        """
        if self.first_quadrature is not None:
            return self.first_quadrature
        values, vectors = self._solved()
        block = min(self.start_block, len(values))
        return values, (vectors[:block] ** 2).sum(axis=0) / max(block, 1)

    def rotate_to_ritz(self) -> RitzPairs:
        """Rotate the basis onto all its Ritz vectors, the wanted ones first, and return the wanted pairs.

        Afterwards `basis.filled[: k + j]` are the Ritz vectors of the returned pairs and T is diagonal.
        """
        if self.settled:
            return self.ritz_pairs()
        self._take_out_owed()
        if self.first_quadrature is None:
            self.first_quadrature = self.quadrature()
        values, vectors = self._solved()
        size = len(values)
        pairs = self.ritz_pairs()
        top, bottom = pairs.num_top, len(pairs.values) - pairs.num_top
        order = np.r_[size - 1 : size - 1 - top : -1, 0:bottom, bottom : size - top]
        last = self.coupling.shape[1]
        self.coupling = self.coupling @ vectors[size - last :, order]
        self.basis.rotate(torch.from_numpy(np.ascontiguousarray(vectors[:, order])))
        self.projected = np.diag(values[order])
        self.settled, self._pairs = True, None
        return self.ritz_pairs()


def lanczos(
    operator: SymmetricOperator,
    *,
    top: int,
    bottom: int = 0,
    tolerance: float = 1e-3,
    max_products: int | None = None,
    basis: KrylovBasis | None = None,
    seed: int = 0,
    block: int = 1,
    by_magnitude: bool = False,
    on_step: Callable[[Lanczos], None] | None = None,
    run: Lanczos | None = None,
) -> tuple[Lanczos, str]:
    """Run Lanczos until the wanted pairs have converged.

    Args:
        operator: Symmetric, size n.
        top: Pairs wanted at the upper end, algebraically largest first.
        bottom: Pairs wanted at the lower end, smallest first.
        tolerance: A pair has converged when ‖Hv − λv‖ ≤ tolerance·|λ| or at the rounding floor.
        max_products: Stop there whatever has converged; by default 20 products per pair and 100 more.
        basis: Where vectors go; by default room for every product in memory.
        seed: Of the random start.
        block: Vectors per step.
        by_magnitude: Want the `top` pairs of largest |λ| instead, whichever end they are at.
        on_step: Called after every step, to report or save.
        run: Continue this run.

    Returns:
        The run and why it stopped: "converged" (or negligible); "breakdown" (converged, and the space is invariant);
        "complete" (the basis spans the whole space); "max-products".

    Cost: for ten leading pairs of a language model's Hessian about 45 products.
    """
    limit = max_products if max_products is not None else 100 + 20 * (top + bottom)
    if run is None:
        if basis is None:
            capacity = min(operator.size, limit + block)
            basis = KrylovBasis(operator.size, capacity, dtype=operator.dtype, device=operator.device)
        run = Lanczos(operator, top=top, bottom=bottom, basis=basis, seed=seed, block=block, by_magnitude=by_magnitude)
    spent = operator.num_products
    while True:
        if run.basis.size >= operator.size:
            return run, "complete"
        if run.projected.size:
            pairs = run.ritz_pairs()
            enough = len(pairs.values) >= min(top + bottom, operator.size)
            done = run.converged(pairs, tolerance) | run.negligible(pairs, pairs.residual_norms, tolerance)
            if enough and bool(done.all()):
                return run, "converged" if run.pending.shape[0] else "breakdown"
        if run.pending.shape[0] == 0:
            run.insert_random(1)
        if operator.num_products - spent >= limit:
            return run, "max-products"
        run.step()
        if on_step is not None:
            on_step(run)


def check_residuals(run: Lanczos, pairs: RitzPairs, *, seed: int) -> float:
    """Measure by one product how far the recurrence's residuals can be from the true ones.

    With random signs c the vector Σ c_i v_i is multiplied afresh; what its image holds beyond
    Σ c_i (λ_i v_i + r_i), r_i the recurrence's residual, is Σ c_i e_i, whose squared norm is Σ‖e_i‖² in
    expectation. Every pair's true residual is within about that norm of the recurrence's.

    The run must be settled. Cost: one product.

    Returns:
        ‖Σ c_i e_i‖, in units of the eigenvalues.
    """
    count = len(pairs.values)
    signs = torch.randn(count, generator=torch.Generator().manual_seed(derive_seed(seed, "signs"))).sign()
    basis = run.basis
    signs = signs.to(device=basis.device, dtype=torch.float64)
    image = multiply(run.operator, basis, basis.combine(signs).unsqueeze(0)).squeeze(0)
    image -= basis.combine(signs * torch.from_numpy(pairs.values).to(signs))
    if run.coupling.size:
        towards = torch.from_numpy(run.coupling[:, :count]).to(signs) @ signs
        image -= towards.to(image) @ run.pending.to(image.device)
    return basis.norm(image)


def multiply(operator: SymmetricOperator, basis: KrylovBasis, rows: Tensor) -> Tensor:
    """Return the products of vectors of a basis, (b, n) → (b, n) on its device, each rank's slices of them.

    An operator on shards takes and gives slices; any other one whole vectors.

    Cost: b products.
    """
    if basis.ranks.is_sharded:
        return operator.matmat(rows.to(operator.device).T).T.contiguous().to(basis.device)
    whole = basis.whole(rows.to(operator.device))
    images = operator.matmat(whole.T).T
    return images[:, basis.part].contiguous().to(basis.device)


def draw(basis: KrylovBasis, *, seed: int) -> Tensor:
    """Return a standard normal vector for a basis, (n,): this rank's slice of one that any number of ranks draws."""
    return random_vector(
        basis.whole_size,
        seed=seed,
        dtype=basis.rows.dtype,
        device=basis.device,
        start=basis.part.start,
        stop=basis.part.stop,
    )


def _orthonormalize(block: Tensor, basis: KrylovBasis, *, tolerance: float) -> tuple[Tensor, FloatArray]:
    """Make rows orthonormal by Gram–Schmidt, done twice; drop those that depend on earlier ones.

    Args:
        block: (b, n); overwritten.
        basis: That its rows are for.
        tolerance: A remainder of at most this norm counts as zero.

    Returns:
        (r, n) orthonormal rows, r ≤ b, the first of the block, and (r, b) float64 with block = tableᵀ · rows.
    """
    table = np.zeros((block.shape[0], block.shape[0]))
    overlaps: list[Tensor] = []  # read once the last row is done, which takes one wait for all
    count = 0
    for index, row in enumerate(block.unsqueeze(1)):
        kept = block[:count]
        overlap = torch.zeros(count, 1, dtype=torch.float64, device=block.device)
        for _ in range(2 if count else 0):
            found = basis.inner(kept, row)
            subtract(row, kept, found)
            overlap += found
        overlaps.append(overlap.view(-1))
        (length,) = basis.norms(row)
        if length > tolerance and length > 0.0:
            block[count] = row.div_(length).view(-1)
            table[count, index] = length
            count += 1
    if overlaps:
        read = iter(torch.cat(overlaps).tolist())
        for index, overlap in enumerate(overlaps):
            table[: len(overlap), index] = [next(read) for _ in range(len(overlap))]
    return block[:count], table[:count]

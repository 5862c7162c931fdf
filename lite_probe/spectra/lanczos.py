"""Block Lanczos with thick restart for both ends of a spectrum.

The basis Q grows by blocks, T = QᵀHQ is filled from the coefficients that orthogonalisation removes anyway, and
Ritz pairs of T converge at both ends at once. What H adds outside the span of Q is `pending`, X with
HQ = QT + XSᵀ on the last block's columns, so ‖S y‖ is the residual of a Ritz pair without another product.
When the basis is full it is rotated onto its leading Ritz vectors and the run goes on: thick restart (Wu & Simon
2000), which needs no new formula here, since T is a projection and not assumed to be tridiagonal.

Products may be taken from a fast operator F that errs by some ε. `polish` then multiplies the wanted Ritz vectors V
exactly, puts that into T, and what it leaves outside the basis becomes pending. T's entries beside V come from the
recurrence from there on, by symmetry: the operator of the run is H on either side of V, and errs by
(I − VVᵀ)(F − H)(I − VVᵀ), which moves the wanted pairs by ε² only. Fast products bring them to the tolerance.
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
from lite_probe.vectors.reductions import CHUNK, subtract

FloatArray = NDArray[np.float64]

_NEGLIGIBLE = 0.1  # of the tolerance: an eigenvalue below this share of ‖H‖ times it need not be resolved
_NOT_NEGATIVE = 1.0  # likewise for the lowest of a spectrum, where it is not negative
_LEAST_RELATIVE = 1e-3  # of ‖H‖: residuals of smaller eigenvalues are weighed as if they were that large
_CANCELLED = 0.02  # a remainder this small beside Hx has lost digits to cancellation
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
        fast: The same operator with products that are cheap and err.

    Attributes:
        is_fast: Whether steps take their products from `fast`.
        is_poor: Whether fast products err by too much for anything, probes included.
        is_polished: Whether T holds exact products; a new column of T then has what the recurrence says, and not what
            the product says.
        projected: (m, m) float64, T.
        pending: (b, n) orthonormal vectors that the next steps multiply; this rank's slices of them.
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
        fast: SymmetricOperator | None = None,
    ) -> None:
        self.operator = operator
        self.fast = fast
        self.is_fast = False
        self.is_poor = False
        self.is_polished = False
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

    @property
    def num_products(self) -> int:
        """Products made so far, fast ones included."""
        return self.operator.num_products + (self.fast.num_products if self.fast is not None else 0)

    @property
    def multiplier(self) -> SymmetricOperator:
        """What steps take their products from."""
        return self.fast if self.is_fast and self.fast is not None else self.operator

    @property
    def _width(self) -> int:
        """Pending vectors that the next step multiplies: all, but of those that `polish` left few at a time."""
        waiting = self.pending.shape[0]
        return min(waiting, self.multiplier.vectors_per_pass) if self.is_polished else waiting

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
        """Multiply the pending block, or its first vectors, extend basis and T, and find the next pending block.

        Cost: one product per vector, two passes over the basis; three in a polished run.

        Raises:
            NumericsError: If a product is not finite.
        """
        count = self._width
        if self.basis.size + count > self.basis.capacity:
            self.restart()
        if count < self.pending.shape[0]:
            self._turn_pending()
        self.settled, self._pairs = False, None
        vectors = self.pending[:count]
        image = multiply(self.multiplier, self.basis, vectors)
        length = max(self.basis.norms(image))
        if not math.isfinite(length):
            raise NumericsError("expected finite Hessian products, got NaN or infinity", "check the checkpoint")
        # What is left of Hx is rounding where it is this small beside Hx: the space is invariant there.
        self.scale = max(self.scale, length)
        threshold = 20.0 * torch.finfo(image.dtype).eps * self.scale
        if self.is_polished:
            self._extend_polished(vectors, image, length, threshold)
        else:
            self._extend(vectors, image, threshold)

    def _extend(self, vectors: Tensor, image: Tensor, threshold: float) -> None:
        """Append the pending block, and take its image into T and into the next one."""
        owed = self.owed
        given = None if owed is None else torch.from_numpy(owed).to(image.device)
        removed, left = torch.stack(self.basis.extend(vectors, given, image)).cpu().numpy()
        if owed is not None:
            # The product was of x + Qs with s owed: HQs = QTs, x's share of it aside, is not x's own.
            size = owed.shape[0]
            removed[:size] -= self.projected @ owed
            removed[size:] -= removed[:size].T @ owed
        self._extend_projection(removed, vectors.shape[0])
        self.pending, self.coupling = _orthonormalize(image, self.basis, tolerance=threshold)
        # What is left of Hx, in the pending vectors that Hx is made of. In units of their coupling, or the inverse of
        # a tiny one would overflow.
        unit = float(np.abs(self.coupling).max(initial=0.0)) or 1.0
        self.owed = (left / unit) @ self.basis.ranks.once(lambda: np.linalg.pinv(self.coupling / unit))
        owing = float(np.linalg.norm(self.owed, axis=0).max(initial=0.0))
        if owing > _MOST_OWED * math.sqrt(torch.finfo(image.dtype).eps):
            # Normalising a small remainder blows up the rounding in it.
            self.basis.orthogonalize(self.pending)
            self.pending, _ = _orthonormalize(self.pending, self.basis, tolerance=0.0)
            self.owed = None

    def _extend_polished(self, vectors: Tensor, image: Tensor, length: float, threshold: float) -> None:
        """Append the first pending vectors, take the recurrence into T, and their image behind those that wait."""
        count, waiting = vectors.shape[0], self.pending[vectors.shape[0] :]
        self.basis.append(vectors)
        coefficients = self.basis.orthogonalize(image).cpu().numpy()
        coefficients[:-count] = 0.0
        reach = self.coupling.shape[1]
        coefficients[self.basis.size - count - reach : self.basis.size - count] = self.coupling[:count].T
        self._extend_projection(coefficients, count)
        overlaps = _remove(waiting, image, self.basis)
        found, table = _orthonormalize(image, self.basis, tolerance=threshold)
        smallest = float(np.abs(np.diag(table)).min(initial=np.inf)) if table.size else np.inf
        if smallest < _CANCELLED * length:
            # Normalising a small remainder blows up the rounding in it; once more against the basis.
            self.basis.orthogonalize(found)
            _remove(waiting, found, self.basis)
            found, _ = _orthonormalize(found, self.basis, tolerance=0.0)
        if waiting.shape[0]:
            above = np.hstack([self.coupling[count:], overlaps])
            below = np.hstack([np.zeros((len(table), self.coupling.shape[1])), table])
            self.pending, self.coupling = torch.cat([waiting, found]), np.vstack([above, below])
        else:
            self.pending, self.coupling = found, table

    def _take_out_owed(self) -> None:
        """Finish the pending vectors. Cost: one pass over the basis, where something is owed."""
        if self.owed is not None:
            self.basis.subtract(self.pending, torch.from_numpy(self.owed).to(self.pending.device))
            self.owed = None

    def _turn_pending(self) -> None:
        """Put first what the next step shall multiply: a fresh vector, else the directions of the largest residuals."""
        fresh = ~self.coupling.any(axis=1)
        if fresh.any():
            order = np.argsort(~fresh, kind="stable")
            self.pending, self.coupling = self.pending[order.tolist()], self.coupling[order]
            return
        pairs = self.ritz_pairs()
        last = self.coupling.shape[1]
        residuals = self.coupling @ pairs.coefficients[len(self.projected) - last :]
        weighed = residuals / np.maximum(np.abs(pairs.values), _LEAST_RELATIVE * self.scale)
        directions = self.basis.ranks.once(lambda: linalg.svd(weighed)[0])
        self.coupling = directions.T @ self.coupling
        turned = torch.from_numpy(np.ascontiguousarray(directions.T)).to(self.pending.device)
        for start in range(0, self.pending.shape[1], CHUNK):
            chunk = self.pending[:, start : start + CHUNK]
            chunk.copy_(turned @ chunk.double())

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

    def polish(self, count: int, *, alone: bool = False) -> None:
        """Put exact products of the first `count` basis vectors into T, and what they leave into the pending block.

        The run must be settled.

        Args:
            count: The wanted pairs.
            alone: Drop the other basis vectors and pending vectors, so that nothing of fast products is left.

        Cost: `count` exact products.
        """
        if alone:
            self.basis.size = count
            self.projected, self.coupling = self.projected[:count, :count], self.coupling[:0, :count]
            self.pending = self.pending[:0]
        joined = torch.empty(
            count + self.pending.shape[0], self.basis.vector_size, dtype=self.operator.dtype, device=self.basis.device
        )
        columns = []
        for start in range(0, count, self.operator.vectors_per_pass):
            part = slice(start, min(start + self.operator.vectors_per_pass, count))
            joined[part] = multiply(self.operator, self.basis, self.basis.rows[part])
            columns.append(self.basis.orthogonalize(joined[part]).cpu().numpy())
        exact = np.hstack(columns)  # (m, count)
        joined[count:] = self.pending
        corner = exact[:count]
        self.projected[:, :count], self.projected[:count, :] = exact, exact.T
        self.projected[:count, :count] = 0.5 * (corner + corner.T)
        threshold = 20.0 * torch.finfo(joined.dtype).eps * self.scale
        self.pending, table = _orthonormalize(joined, self.basis, tolerance=threshold)
        coupling = np.zeros((len(table), self.basis.size))
        coupling[:, :count] = table[:, :count]
        if self.coupling.size:
            coupling[:, count:] = table[:, count:] @ self.coupling[:, count:]
        self.coupling = coupling
        self.settled, self.is_polished, self._pairs = False, True, None

    def restart(self) -> None:
        """Rotate the basis onto its leading Ritz vectors and go on from there.

        Kept are the wanted pairs and half of the rest from both ends, which speeds up what comes next.
        """
        self._take_out_owed()
        if self.first_quadrature is None:
            self.first_quadrature = self.quadrature()
        values, vectors = self._solved()
        size = len(values)
        room = self.basis.capacity - self._width
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
        self._pairs = None

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
        return np.asarray(np.abs(pairs.values) + residual_norms <= self._resolved(pairs) * tolerance)

    def _resolved(self, pairs: RitzPairs) -> FloatArray:
        """Return what, times the tolerance, |λ| + ‖Hv − λv‖ of each pair must exceed not to be negligible."""
        share = np.full(len(pairs.values), _NEGLIGIBLE)
        share[pairs.num_top :][pairs.values[pairs.num_top :] >= -self.floor] = _NOT_NEGATIVE
        return share * self.scale

    def yardsticks(self, pairs: RitzPairs, tolerance: float) -> FloatArray:
        """Return what each residual is measured by: |λ|, and for a pair that is negligible what makes it that."""
        least = np.where(self.negligible(pairs, pairs.residual_norms, tolerance), self._resolved(pairs), self.floor)
        return np.asarray(np.maximum(np.abs(pairs.values), least))

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
    spent = run.num_products
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
        if run.num_products - spent >= limit:
            return run, "max-products"
        run.step()
        if on_step is not None:
            on_step(run)


def check_residuals(run: Lanczos, pairs: RitzPairs, *, seed: int, units: FloatArray | None = None) -> float:
    """Measure by one exact product how far the recurrence's residuals can be from the true ones.

    With random signs c the vector Σ c_i v_i/u_i is multiplied afresh; what its image holds beyond
    Σ c_i (λ_i v_i + r_i)/u_i, r_i the recurrence's residual, is Σ c_i e_i/u_i, whose squared norm is Σ‖e_i/u_i‖² in
    expectation. Every pair's true residual is within about that norm, times u_i, of the recurrence's.

    The run must be settled. Cost: one product.

    Args:
        run: Its exact operator multiplies.
        pairs: The wanted ones.
        seed: Of the signs.
        units: (k + j,) u; 1 by default.

    Returns:
        ‖Σ c_i e_i/u_i‖, in units of the eigenvalues where u is 1.
    """
    count = len(pairs.values)
    signs = torch.randn(count, generator=torch.Generator().manual_seed(derive_seed(seed, "signs"))).sign()
    basis = run.basis
    signs = signs.to(device=basis.device, dtype=torch.float64)
    if units is not None:
        signs /= torch.from_numpy(units).to(signs)
    image = multiply(run.operator, basis, basis.combine(signs).unsqueeze(0)).squeeze(0)
    image -= basis.combine(signs * torch.from_numpy(pairs.values).to(signs))
    if run.coupling.size:
        towards = torch.from_numpy(run.coupling[:, :count]).to(signs) @ signs
        subtract(image.unsqueeze(0), run.pending.to(image.device), towards.unsqueeze(1))
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


def _remove(rows: Tensor, block: Tensor, basis: KrylovBasis) -> FloatArray:
    """Take orthonormal rows (r, n) out of `block` (b, n) in place, twice; return the coefficients, (r, b) float64."""
    total = np.zeros((rows.shape[0], block.shape[0]))
    for _ in range(2 if rows.shape[0] else 0):
        coefficients = basis.inner(rows, block)
        subtract(block, rows, coefficients)
        total += coefficients.cpu().numpy()
    return total


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

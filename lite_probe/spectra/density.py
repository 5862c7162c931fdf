"""Stochastic Lanczos quadrature in the complement of the converged pairs.

Each probe z ⊥ V runs its own three-term recurrence on (I − VVᵀ)H(I − VVᵀ); eigenpairs (θ, y) of its tridiagonal
matrix are nodes θ with weights (e₁ᵀy)². Probes that share a rebuilt graph go through the operator together; where
graphs are kept, one probe follows the other, which needs the vectors of one. Only two vectors per probe are held: a
Gauss rule from a recurrence without full reorthogonalisation stays accurate, since copies of a converged node share
its weight (Greenbaum 1989, Knizhnerman 1996); V is projected out at every step, so the outliers cannot come back.

The first product of each probe also gives its sample of the trace in the complement of the whole Krylov basis Q
(Hutch++, Meyer et al. 2020), whose own part of the trace is known exactly.

Where the run has fast products, which err, each probe's first product is exact all the same: its samples of the traces
have no bias. The basis's part is then known for the wanted pairs alone, and the rest of it serves as a control variate:
A = WΘWᵀ with a known trace, whatever Θ is worth.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.results.estimate import Estimate
from lite_probe.seeds import derive_seed
from lite_probe.spectra.lanczos import Lanczos, draw, multiply
from lite_probe.vectors.reductions import subtract

FloatArray = NDArray[np.float64]


@dataclass(slots=True)
class Probes:
    """The state of p probes between steps; everything a save needs.

    They run in groups, one group after another: as many at a time as share a rebuilt graph. Only the group that is
    running holds vectors.

    Attributes:
        count: p.
        current: (g, n) the vectors that the running group's next step multiplies.
        previous: (g, n) those of the step before.
        diagonals, offdiagonals: Per probe started so far, the recurrence.
        alive: Per probe started so far, False where its Krylov space was exhausted.
        trace_samples: Per probe started so far, wᵀHw/wᵀw for w the probe's part outside Q.
        square_samples: ‖Hw‖²/wᵀw.
    """

    count: int
    current: Tensor
    previous: Tensor
    diagonals: list[list[float]] = field(default_factory=list)
    offdiagonals: list[list[float]] = field(default_factory=list)
    alive: list[bool] = field(default_factory=list)
    trace_samples: list[float] = field(default_factory=list)
    square_samples: list[float] = field(default_factory=list)

    @property
    def running(self) -> range:
        """The probes of the group that is running."""
        started = len(self.alive)
        return range(started - self.current.shape[0], started)

    @property
    def steps(self) -> int:
        """Steps made by all probes together."""
        return sum(len(diagonal) for diagonal in self.diagonals)


def no_probes(run: Lanczos, count: int) -> Probes:
    """Return the state of `count` probes before the first group."""
    empty = torch.empty(0, run.basis.vector_size, dtype=run.operator.dtype, device=run.basis.device)
    return Probes(count, empty, empty)


def advance_probes(run: Lanczos, num_deflated: int, probes: Probes, steps: int, *, seed: int) -> bool:
    """Make one step with the running group, or start the next; return False once all have made `steps`.

    Cost: one product per living probe of the group, two passes over the deflated vectors for all together.
    """
    living = [index for index in probes.running if probes.alive[index] and len(probes.diagonals[index]) < steps]
    if not living:
        if len(probes.alive) == probes.count:
            return False
        _start_group(run, num_deflated, probes, seed)
        living = list(probes.running)
    _step(run, num_deflated, probes, living)
    return True


def _start_group(run: Lanczos, num_deflated: int, probes: Probes, seed: int) -> None:
    """Draw the next probes uniformly from the unit sphere of the complement of the first `num_deflated` vectors."""
    operator, first = run.operator, len(probes.alive)
    size = min(operator.vectors_per_pass, probes.count - first)
    probes.current = torch.empty(size, run.basis.vector_size, dtype=operator.dtype, device=run.basis.device)
    for row in range(size):
        probes.current[row] = draw(run.basis, seed=derive_seed(seed, "probe", first + row))
    for _ in range(2):
        run.basis.remove(probes.current, num_deflated)
    for vector, length in zip(probes.current, run.basis.norms(probes.current), strict=True):
        vector.div_(length)
    probes.previous = torch.zeros_like(probes.current)
    for _ in range(size):
        probes.diagonals.append([])
        probes.offdiagonals.append([])
        probes.alive.append(True)


def _step(run: Lanczos, num_deflated: int, probes: Probes, living: list[int]) -> None:
    """Advance the living probes of the running group by one step."""
    first = probes.running.start
    rows = [index - first for index in living]
    vectors = probes.current if len(rows) == len(probes.current) else probes.current[rows]
    fast = run.fast if probes.diagonals[first] and not run.is_poor else None
    images = multiply(fast or run.operator, run.basis, vectors)
    del vectors
    if not probes.diagonals[first]:
        try:
            _sample_traces(run, probes, images)
        except OverflowError as error:
            raise NumericsError(
                "expected Hessian products whose squares a float64 holds, got larger ones", "check the checkpoint"
            ) from error
    lengths = run.basis.norms(images)
    if not all(map(math.isfinite, lengths)):
        raise NumericsError("expected finite Hessian products, got NaN or infinity", "check the checkpoint")
    centers = torch.zeros(len(rows), dtype=torch.float64, device=images.device)
    for position, (row, index) in enumerate(zip(rows, living, strict=True)):
        image, current = images[position : position + 1], probes.current[row : row + 1]
        if probes.offdiagonals[index]:
            image.sub_(probes.previous[row], alpha=probes.offdiagonals[index][-1])
        for _ in range(2):
            center = run.basis.inner(current, image)
            subtract(image, current, center)
            centers[position] += center.view(())
    # Once is enough: H blows up what rounding leaves here, and the next step takes that out before it adds up.
    run.basis.remove(images, num_deflated)
    remainders = run.basis.norms(images)
    results = zip(rows, living, lengths, centers.tolist(), remainders, strict=True)
    for image, (row, index, length, center_value, remainder) in zip(images, results, strict=True):
        probes.diagonals[index].append(center_value)
        run.scale = max(run.scale, length)
        if remainder <= 20.0 * torch.finfo(image.dtype).eps * run.scale:
            probes.alive[index] = False
            continue
        probes.offdiagonals[index].append(remainder)
        probes.previous[row] = probes.current[row]
        probes.current[row] = image.div_(remainder)


def _sample_traces(run: Lanczos, probes: Probes, images: Tensor) -> None:
    """Take wᵀHw and ‖Hw‖² of each probe's part w = (I − QQᵀ)z out of the product Hz.

    With HQ = QΘ + XS (the run is settled: Θ diagonal) and a = Qᵀz, c = QᵀHz:
    wᵀHw = zᵀHz − 2aᵀc + aᵀΘa and Hw = Hz − QΘa − XSa; no further product is needed.
    """
    values = np.diag(run.projected)
    inside = run.basis.project(probes.current).cpu().numpy()
    if run.fast is not None:
        lengths = run.basis.norms(images)
        for z, image, length, a in zip(probes.current, images, lengths, inside.T, strict=True):
            probes.trace_samples.append(run.basis.dot(z, image) - float(a @ (values * a)))
            probes.square_samples.append(length**2 - float(((values * a) ** 2).sum()))
        return
    images_inside = run.basis.project(images).cpu().numpy()
    outward: FloatArray | None = None
    if run.pending.shape[0]:
        outward = run.basis.inner(run.pending.to(images.device), images).cpu().numpy()
    squares = [length**2 for length in run.basis.norms(images)]
    for index in range(images.shape[0]):
        a, c = inside[:, index], images_inside[:, index]
        share = 1.0 - float(a @ a)
        form = run.basis.dot(probes.current[index], images[index]) - 2.0 * float(a @ c) + float(a @ (values * a))
        square = squares[index] - 2.0 * float(c @ (values * a)) + float(((values * a) ** 2).sum())
        if outward is not None and run.coupling.size:
            beyond = run.coupling @ a
            square += float(beyond @ beyond) - 2.0 * float(outward[:, index] @ beyond)
        probes.trace_samples.append(form / share)
        probes.square_samples.append(max(square, 0.0) / share)


def quadratures(probes: Probes) -> list[tuple[FloatArray, FloatArray]]:
    """Return nodes and weights of each probe; the weights of one probe sum to 1."""
    rules: list[tuple[FloatArray, FloatArray]] = []
    for diagonal, offdiagonal in zip(probes.diagonals, probes.offdiagonals, strict=True):
        count = len(diagonal)
        nodes, vectors = linalg.eigh_tridiagonal(np.array(diagonal), np.array(offdiagonal[: count - 1]))
        rules.append((np.asarray(nodes, dtype=np.float64), np.asarray(vectors[0], dtype=np.float64) ** 2))
    return rules


def deflate_rule(
    rule: tuple[FloatArray, FloatArray], atoms: FloatArray, errors: FloatArray
) -> tuple[FloatArray, FloatArray] | None:
    """Take the converged eigenvalues out of the run's own Gauss rule, and scale its weights to 1.

    The rule of the start vector q has a node at each converged λ_i with weight (q·v_i)²; without these it is the
    rule of q's part in the complement; None where q has no such part.
    """
    nodes, weights = rule
    remaining = np.ones(len(nodes), dtype=bool)
    for atom, error in zip(atoms, errors, strict=True):
        distance = np.where(remaining, np.abs(nodes - atom), np.inf)
        nearest = int(np.argmin(distance))
        if distance[nearest] <= error:
            remaining[nearest] = False
    left = weights[remaining]
    return (nodes[remaining], left / left.sum()) if left.sum() > 0 else None


def trace_estimates(run: Lanczos, probes: Probes, residual_norms: FloatArray) -> tuple[Estimate, Estimate]:
    """Return tr H and tr H², the part inside the Krylov basis exact, the rest from the probes.

    tr H = Σθ + (N−m)·E[wᵀHw/wᵀw] and tr H² = Σθ² + ‖S‖² + (N−m)·E[‖Hw‖²/wᵀw], w in the complement of Q. Where the run
    has fast products, tr H = Σθ + (N−k)·E[zᵀ(H − A)z] and likewise tr H², z in the complement of the k wanted pairs;
    their θ may be off by their residuals, which widens the intervals.

    Args:
        run: Settled.
        probes: That have made their first step.
        residual_norms: (k,) of the wanted pairs.
    """
    values = np.diag(run.projected)
    samples, squares = np.array(probes.trace_samples), np.array(probes.square_samples)
    exact, exact_square = float(values.sum()), float((values**2).sum())
    if run.fast is None:
        outside = run.operator.size - len(values)
        exact_square += float((run.coupling**2).sum())
        return (
            Estimate.from_samples(outside * samples, exact=exact),
            Estimate.from_samples(outside * squares, exact=exact_square),
        )
    known = np.abs(values[: len(residual_norms)])
    outside = run.operator.size - len(residual_norms)
    off, off_square = float(residual_norms.sum()), float((residual_norms * (2.0 * known + residual_norms)).sum())
    return (
        Estimate.from_samples(outside * samples, exact=exact).widened(off),
        Estimate.from_samples(outside * squares, exact=exact_square).widened(off_square),
    )

"""Stochastic Lanczos quadrature in the complement of the converged pairs, all probes in lockstep.

Each probe z ⊥ V runs its own three-term recurrence on (I − VVᵀ)H(I − VVᵀ); eigenpairs (θ, y) of its tridiagonal
matrix are nodes θ with weights (e₁ᵀy)². The products of all probes of one step go through the operator together,
which shares a rebuilt graph among them. Only two vectors per probe are held: a Gauss rule from a recurrence
without full reorthogonalisation stays accurate, since copies of a converged node share its weight (Greenbaum 1989,
Knizhnerman 1996); V is projected out at every step, so the outliers cannot come back.

The first product of each probe also gives its sample of the trace in the complement of the whole Krylov basis Q
(Hutch++, Meyer et al. 2020), whose own part of the trace is known exactly.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from lite_probe.operators.reductions import dot, norm, project, subtract
from lite_probe.results.estimate import Estimate
from lite_probe.seeds import derive_seed
from lite_probe.spectra.lanczos import Lanczos, random_vectors

FloatArray = NDArray[np.float64]


@dataclass(slots=True)
class Probes:
    """The state of p probes between steps; everything a save needs.

    Attributes:
        current: (p, n) the vectors that the next step multiplies.
        previous: (p, n) those of the step before.
        diagonals, offdiagonals: Per probe, the recurrence so far.
        alive: (p,) False where a probe's Krylov space was exhausted.
        trace_samples: (p,) wᵀHw/wᵀw for w the probe's part outside Q.
        square_samples: (p,) ‖Hw‖²/wᵀw.
    """

    current: Tensor
    previous: Tensor
    diagonals: list[list[float]]
    offdiagonals: list[list[float]]
    alive: list[bool]
    trace_samples: list[float] = field(default_factory=list)
    square_samples: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps made so far by the longest-lived probe."""
        return max((len(diagonal) for diagonal in self.diagonals), default=0)


def start_probes(run: Lanczos, num_deflated: int, count: int, *, seed: int) -> Probes:
    """Draw probes uniformly from the unit sphere of the complement of the first `num_deflated` basis vectors."""
    operator = run.operator
    vectors = random_vectors(
        count, operator.size, seed=derive_seed(seed, "probes"), dtype=operator.dtype, device=operator.device
    ).to(run.basis.rows.device)
    deflated = run.basis.rows[:num_deflated]
    for _ in range(2):
        subtract(vectors, deflated, project(deflated, vectors))
    for vector in vectors:
        vector.div_(norm(vector))
    return Probes(
        current=vectors,
        previous=torch.zeros_like(vectors),
        diagonals=[[] for _ in range(count)],
        offdiagonals=[[] for _ in range(count)],
        alive=[True] * count,
    )


def step_probes(run: Lanczos, num_deflated: int, probes: Probes) -> None:
    """Advance every living probe by one step. Cost: one product per living probe."""
    living = [index for index, alive in enumerate(probes.alive) if alive]
    vectors = probes.current[living]
    images = run.operator.matmat(vectors.to(run.operator.device).T).T.contiguous().to(vectors.device)
    if probes.steps == 0:
        _sample_traces(run, probes, images)
    deflated = run.basis.rows[:num_deflated]
    subtract(images, deflated, project(deflated, images))
    for image, index in zip(images, living, strict=True):
        before = probes.offdiagonals[index][-1] if probes.offdiagonals[index] else 0.0
        length = norm(image)
        image.sub_(probes.previous[index], alpha=before)
        center = dot(probes.current[index], image)
        image.sub_(probes.current[index], alpha=center)
        center_again = dot(probes.current[index], image)
        image.sub_(probes.current[index], alpha=center_again)
        probes.diagonals[index].append(center + center_again)
        image -= project(deflated, image.unsqueeze(0)).squeeze(1).to(image.dtype) @ deflated
        remainder = norm(image)
        run.scale = max(run.scale, length)
        if remainder <= 20.0 * torch.finfo(image.dtype).eps * run.scale:
            probes.alive[index] = False
            continue
        probes.offdiagonals[index].append(remainder)
        probes.previous[index] = probes.current[index]
        probes.current[index] = image.div_(remainder)


def _sample_traces(run: Lanczos, probes: Probes, images: Tensor) -> None:
    """Take wᵀHw and ‖Hw‖² of each probe's part w = (I − QQᵀ)z out of the product Hz.

    With HQ = QΘ + XS (the run is settled: Θ diagonal) and a = Qᵀz, c = QᵀHz:
    wᵀHw = zᵀHz − 2aᵀc + aᵀΘa and Hw = Hz − QΘa − XSa; no further product is needed.
    """
    values = np.diag(run.projected)
    inside = project(run.basis.filled, probes.current).cpu().numpy()
    images_inside = project(run.basis.filled, images).cpu().numpy()
    outward = project(run.pending.to(images.device), images).cpu().numpy() if run.pending.shape[0] else None
    for index in range(images.shape[0]):
        a, c = inside[:, index], images_inside[:, index]
        share = 1.0 - float(a @ a)
        form = dot(probes.current[index], images[index]) - 2.0 * float(a @ c) + float(a @ (values * a))
        square = norm(images[index]) ** 2 - 2.0 * float(c @ (values * a)) + float(((values * a) ** 2).sum())
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


def trace_estimates(run: Lanczos, probes: Probes) -> tuple[Estimate, Estimate]:
    """Return tr H and tr H², the part inside the Krylov basis exact, the rest from the probes.

    tr H = Σθ + (N−m)·E[wᵀHw/wᵀw] and tr H² = Σθ² + ‖S‖² + (N−m)·E[‖Hw‖²/wᵀw], w in the complement of Q.
    """
    values = np.diag(run.projected)
    outside = run.operator.size - len(values)
    exact = float(values.sum())
    exact_square = float((values**2).sum() + (run.coupling**2).sum())
    return (
        Estimate.from_samples(outside * np.array(probes.trace_samples), exact=exact),
        Estimate.from_samples(outside * np.array(probes.square_samples), exact=exact_square),
    )

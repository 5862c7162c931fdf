"""Whether a sharp subspace is the data's or the batch's, and whether operators agree on it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from lite_probe.operators.base import SymmetricOperator
from lite_probe.results.estimate import Estimate
from lite_probe.results.subspace import Overlap
from lite_probe.seeds import derive_seed
from lite_probe.spectra import lanczos
from lite_probe.spectra.lanczos import check_residuals
from lite_probe.subspaces.subspace import Subspace, principal_angles
from lite_probe.task import Batch, Task
from lite_probe.task.batches import map_leaves, num_samples
from lite_probe.vectors.basis import KrylovBasis

TOLERANCE = 1e-2  # of the pairs behind an overlap: vectors are then known to about that over their relative gap


def expected_products(size: int) -> int:
    """Return the products that `sharp_subspace` took on trained language models, for plans and progress bars."""
    return 10 + 2 * size + 1


def sharp_subspace(
    operator: SymmetricOperator,
    size: int,
    *,
    basis: KrylovBasis,
    seed: int,
    keeps_basis: bool = False,
    on_product: Callable[[], None] | None = None,
) -> Subspace:
    """Return the span of an operator's leading eigenvectors, to a residual of 1e-2 of each eigenvalue.

    Args:
        operator: Size n.
        size: k.
        basis: Empty, with room for more than k vectors.
        seed: Of the start vector.
        keeps_basis: Leave float32 vectors in the basis, all of which stays then: no second copy of them is made.
        on_product: Called after every product.

    Returns:
        Float32 vectors with the true residuals of their pairs, as `check_residuals` found them.

    Cost: about 2k + 10 products.
    """
    run, _ = lanczos(
        operator,
        top=size,
        tolerance=TOLERANCE,
        basis=basis,
        seed=derive_seed(seed, "pairs"),
        on_step=None if on_product is None else lambda run: on_product(),
    )
    pairs = run.rotate_to_ritz()
    count = pairs.num_top
    missed = 0.0
    if run.basis.size < operator.size:  # else every pair is known, to rounding
        missed = check_residuals(run, pairs, seed=derive_seed(seed, "check"))
        if on_product is not None:
            on_product()
    values, residuals = pairs.values[:count], np.hypot(pairs.residual_norms[:count], missed)
    if keeps_basis and run.basis.ranks.count == 1 and run.basis.rows.dtype == torch.float32:
        return Subspace(mapped=run.basis.vectors(count).T, eigenvalues=values, residual_norms=residuals)
    if run.basis.ranks.count > 1:
        # Of the device a rank's plan counts a slice of each: they are put together on its host, one by one.
        whole = torch.stack([run.basis.whole(row.unsqueeze(0))[0].float().cpu() for row in run.basis.rows[:count]])
        return Subspace(mapped=whole.numpy().T, eigenvalues=values, residual_norms=residuals)
    # The basis holds many more vectors than these.
    return Subspace(run.basis.rows[:count].float().clone(), eigenvalues=values, residual_norms=residuals)


def overlap_of(kind: str, first: tuple[str, Subspace], second: tuple[str, Subspace]) -> Overlap:
    """Compare two named subspaces of equal dimension."""
    residuals = [one.relative_residual for _, one in (first, second)]
    return Overlap(
        kind=kind,
        first=first[0],
        second=second[0],
        angles=principal_angles(first[1], second[1]),
        num_parameters=first[1].num_parameters,
        residual=float(np.max(residuals)),
    )


def halves(task: Task) -> tuple[Task, Task] | None:
    """Divide a task's evaluation batches in two: every other batch, or of one batch every other sample.

    Returns:
        Two tasks on the same model; None where one batch is of one sample, or of something that cannot be divided.
    """
    batches = list(task.evaluation)
    if len(batches) >= 2:
        parts: Sequence[list[Batch]] = (batches[::2], batches[1::2])
    elif num_samples(batches[0]) >= 2:
        parts = ([map_leaves(lambda leaf: leaf[::2], batches[0])], [map_leaves(lambda leaf: leaf[1::2], batches[0])])
    else:
        return None
    first, second = (replace(task, evaluation=part) for part in parts)
    return first, second


def random_energy_share(size: int, num_parameters: int) -> Estimate:
    """Return the share of any vector's energy in a random subspace of k = `size` of N dimensions.

    It is distributed as Beta(k/2, (N−k)/2): mean k/N; the interval holds 95% of subspaces, and the standard error is
    the distribution's deviation. Nothing is drawn, so no samples are counted.
    """
    if size >= num_parameters:
        return Estimate.certain(1.0)
    law = stats.beta(size / 2, (num_parameters - size) / 2)
    low, high = (float(law.ppf(level)) for level in (0.025, 0.975))
    return Estimate(value=size / num_parameters, stderr=float(law.std()), low=low, high=high, num_samples=0)

"""Whether a sharp subspace is the data's or the batch's, and whether operators agree on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lite_probe.operators.base import SymmetricOperator
from lite_probe.results.subspace import Overlap
from lite_probe.spectra import lanczos
from lite_probe.spectra.basis import KrylovBasis
from lite_probe.subspaces.subspace import Subspace, principal_angles
from lite_probe.task import Batch, Task

TOLERANCE = 1e-2  # of the pairs behind an overlap: vectors are then known to about that over their relative gap


def sharp_subspace(
    operator: SymmetricOperator, size: int, *, seed: int, on_product: Callable[[], None] | None = None
) -> Subspace:
    """Return the span of an operator's leading eigenvectors, to a residual of 1e-2 of each eigenvalue.

    Args:
        operator: Size n.
        size: k.
        seed: Of the start vector.
        on_product: Called after every product.

    Cost: about 3k products, and a basis of up to 3k + 30 vectors.
    """
    capacity = min(operator.size, 3 * size + 30)
    basis = KrylovBasis(operator.size, capacity, dtype=operator.dtype, device=operator.device)
    run, _ = lanczos(
        operator,
        top=size,
        tolerance=TOLERANCE,
        basis=basis,
        seed=seed,
        on_step=None if on_product is None else lambda run: on_product(),
    )
    pairs = run.settle()
    count = pairs.num_top
    # The basis holds many more vectors than these.
    return Subspace(
        run.basis.rows[:count].clone(), eigenvalues=pairs.values[:count], residual_norms=pairs.residual_norms[:count]
    )


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
    else:
        divided = [_every_other(batches[0], start) for start in (0, 1)]
        if any(part is None for part in divided):
            return None
        parts = ([divided[0]], [divided[1]])
    first, second = (replace(task, evaluation=part) for part in parts)
    return first, second


def _every_other(batch: Any, start: int) -> Any | None:
    """Return every other sample of a batch, None where that leaves nothing or the batch has no samples to tell."""
    if isinstance(batch, Tensor):
        return batch[start::2] if batch.ndim and len(batch) >= 2 else None
    if isinstance(batch, Mapping):
        members = {key: _every_other(part, start) for key, part in batch.items()}
        return None if any(part is None for part in members.values()) else members
    if type(batch) in (list, tuple):
        sequence = [_every_other(part, start) for part in batch]
        return None if any(part is None for part in sequence) else type(batch)(sequence)
    return None


def random_energy_share(gradient: Tensor, size: int, *, seed: int) -> float:
    """Return the share of a vector's energy in k random directions, which in many dimensions are orthogonal.

    Cost: k passes over the vector.
    """
    generator = torch.Generator().manual_seed(seed)
    total = float(gradient.double().square().sum())
    share = 0.0
    for _ in range(size):
        vector = torch.randn(len(gradient), generator=generator).to(gradient)
        share += float(vector.double() @ gradient.double()) ** 2 / float(vector.double().square().sum())
    return share / total if total else 0.0

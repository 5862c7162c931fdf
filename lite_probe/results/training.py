"""The course of a training run, as cheap measurements along it saw it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lite_probe.results.provenance import Note, Provenance

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPoint:
    """What was measured at the weights after `step` updates, and along the update d that followed.

    The critical step is the least multiple c of d at which the loss on the evaluation batches is above the start's.
    Where it is above at every multiple tried `critical_low` is 0; where it is at none both are the largest tried.
    """

    step: int
    loss: float  # on the evaluation batches
    gradient_norm: float  # loss/param
    learning_rate: float | None  # of the first parameter group, for the update that followed
    update_norm: float | None  # ‖d‖; None where it was not finite
    eigenvalues: tuple[float, ...]  # (k,) descending, loss/param²; empty where no curvature was measured
    residual_norms: tuple[float, ...]  # (k,)
    gradient_share: float | None  # ‖Vᵀg‖²/‖g‖² in the span of the k eigenvectors
    critical_low: float | None  # a multiple at which the loss is not above the start's; None where d is zero
    critical_high: float | None  # one at which it is
    num_hvps: int
    evaluations: int  # of the loss, for the critical step
    seconds: float

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ValueError: If counts or order do not fit.
        """
        if len(self.eigenvalues) != len(self.residual_norms):
            raise ValueError(f"{len(self.eigenvalues)} eigenvalues and {len(self.residual_norms)} residuals")
        if any(first < second for first, second in pairwise(self.eigenvalues)):
            raise ValueError(f"eigenvalues that do not descend at step {self.step}")
        bracket = (self.critical_low, self.critical_high)
        if (bracket[0] is None) != (bracket[1] is None):
            raise ValueError(f"half a bracket of the critical step at step {self.step}")
        if bracket[0] is not None and bracket[1] is not None and not 0.0 <= bracket[0] <= bracket[1]:
            raise ValueError(f"a critical step between {bracket[0]} and {bracket[1]} at step {self.step}")

    @property
    def critical_bounds(self) -> tuple[float, float] | None:
        """The multiples that the critical step lies between; None where none was found."""
        low, high = self.critical_low, self.critical_high
        return (low, high) if low is not None and high is not None and 0.0 < low < high else None

    @property
    def always_rises(self) -> bool:
        """Whether every multiple of the update that was tried raised the loss."""
        return self.critical_low == 0.0

    @property
    def never_rises(self) -> bool:
        """Whether no multiple of the update that was tried raised the loss."""
        return self.critical_low is not None and self.critical_low > 0.0 and self.critical_low == self.critical_high

    @property
    def edge_ratio(self) -> float | None:
        """The step taken over the critical one, 1/c by the middle of the bracket; above 1 the step raised the loss."""
        bounds = self.critical_bounds
        return None if bounds is None else 1.0 / math.sqrt(bounds[0] * bounds[1])

    @property
    def critical_lr(self) -> float | None:
        """The learning rate at which the update would have been critical."""
        ratio = self.edge_ratio
        return None if ratio is None or self.learning_rate is None else self.learning_rate / ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPoint:
    """A step at which something could not be measured."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training run, measured at some of its steps."""

    points: tuple[TrainingPoint, ...]  # by step, ascending
    skipped: tuple[int, ...]  # steps that the schedule named and the budget left out
    failed: tuple[FailedPoint, ...]
    top: int  # eigenpairs that were asked for, k
    tolerance: float  # a pair has converged when its residual is at most so much of it
    num_parameters: int  # N, that train
    config: Mapping[str, object]
    fingerprint: str  # of batches, parameters' names and shapes, and config
    notes: tuple[Note, ...] = ()
    provenance: Provenance

    def __post_init__(self) -> None:
        """Check the order of the steps.

        Raises:
            ValueError: If they do not ascend.
        """
        steps = [point.step for point in self.points]
        if steps != sorted(set(steps)):
            raise ValueError(f"steps that do not ascend: {steps[:10]}")

    @property
    def steps(self) -> NDArray[np.int64]:
        """(s,) updates completed at each point."""
        return np.array([point.step for point in self.points], dtype=np.int64)

    @property
    def loss(self) -> FloatArray:
        """(s,) on the evaluation batches."""
        return self._column(lambda point: point.loss)

    @property
    def learning_rate(self) -> FloatArray:
        """(s,) of the first parameter group; NaN where it is not known."""
        return self._column(lambda point: point.learning_rate)

    @property
    def sharpest(self) -> FloatArray:
        """(s,) λ₁, loss/param²; NaN where it was not measured."""
        return self._column(lambda point: next(iter(point.eigenvalues), None))

    @property
    def residual(self) -> FloatArray:
        """(s,) ‖Hv − λ₁v‖: an eigenvalue lies within it."""
        return self._column(lambda point: next(iter(point.residual_norms), None))

    @property
    def converged(self) -> NDArray[np.bool_]:
        """(s,) whether λ₁ was measured and its residual is within the tolerance."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.residual <= self.tolerance * np.abs(self.sharpest))

    @property
    def gradient_share(self) -> FloatArray:
        """(s,) of the gradient's squared norm along the k leading eigenvectors; NaN where it was not measured."""
        return self._column(lambda point: point.gradient_share)

    @property
    def expected_share(self) -> float:
        """What a random gradient has there, k/N."""
        return self.top / self.num_parameters

    @property
    def edge_ratio(self) -> FloatArray:
        """(s,) the step taken over the critical one; NaN where none was found."""
        return self._column(lambda point: point.edge_ratio)

    @property
    def critical_lr(self) -> FloatArray:
        """(s,) the learning rate at which the update would have been critical; NaN where none was found."""
        return self._column(lambda point: point.critical_lr)

    @property
    def seconds(self) -> FloatArray:
        """(s,) that each point took."""
        return self._column(lambda point: point.seconds)

    def _column(self, read: Callable[[TrainingPoint], float | None]) -> FloatArray:
        values = [read(point) for point in self.points]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

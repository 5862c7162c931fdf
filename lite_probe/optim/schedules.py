"""Schedules as pure functions of the step: the learning rate's, and the ramps of LITE's own hyperparameters.

Steps count completed updates from 0. Nothing here holds a counter: whoever asks says which step it is.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lite_probe.errors import UsageError

ScheduleName = Literal["constant", "cosine", "wsd", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How learning rate, Hessian damping and flat learning-rate ratio move over a run of T steps, W of them warm-up.

    Args:
        name: "constant", "linear" (from 1 to r after the warm-up), "cosine", or "wsd": warm-up, stable, linear decay.
        total_steps: T; None where the end is not known, which only "constant" allows.
        warmup_steps: W, in [0, T).
        min_lr_ratio: r, the learning rate at T over the peak.
        stable_ratio: The share of T at which "wsd" begins to decay.

    Raises:
        UsageError: If the numbers make no schedule.

    Reference: LITE (arXiv 2602.22681) and its published runs.
    """

    name: ScheduleName = "constant"
    total_steps: int | None = None
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    stable_ratio: float = 0.8

    def __post_init__(self) -> None:
        """Refuse numbers that make no schedule."""
        if self.name not in get_args(ScheduleName):
            raise UsageError(f"expected a schedule among {', '.join(get_args(ScheduleName))}, got {self.name!r}")
        if self.total_steps is None and self.name != "constant":
            raise UsageError(f"expected total_steps with a {self.name} schedule, got None", "say how long the run is")
        if self.warmup_steps < 0 or (self.total_steps is not None and self.warmup_steps >= self.total_steps):
            raise UsageError(
                f"expected warmup_steps in [0, total_steps), got {self.warmup_steps} of {self.total_steps}"
            )
        for what in ("min_lr_ratio", "stable_ratio"):
            if not 0.0 <= getattr(self, what) <= 1.0:
                raise UsageError(f"expected {what} in [0, 1], got {getattr(self, what)}")

    def lr_factor(self, step: int) -> float:
        """Return f(t), the learning rate at step t over its peak; what `LambdaLR` takes.

        f = t/W in the warm-up; then 1 (constant), r + (1−r)·½(1 + cos πs) (cosine), 1 − (1−r)s (linear), with
        s = (t−W)/(T−W); wsd: 1 until ⌊stable_ratio·T⌋, then r + (1−r)(T−t)/(T − that).
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        total, r = self.total_steps, self.min_lr_ratio
        if total is None or self.name == "constant":
            return 1.0
        step = min(step, total)
        if self.name == "wsd":
            stable = math.floor(self.stable_ratio * total)
            return 1.0 if step < stable or stable >= total else r + (1.0 - r) * (total - step) / (total - stable)
        if self.name == "linear":
            return 1.0 - (1.0 - r) * self._progress(step)
        return r + (1.0 - r) * 0.5 * (1.0 + math.cos(math.pi * self._progress(step)))

    def damping(self, step: int, beta1: float, beta2: float) -> float:
        """Return β₂ at step k: β₁ until W, linear from β₁ to β₂ until T_β = ⌊T_f(T − W)⌋ + W, then β₂.

        T_f is 0.5 for a cosine schedule and 2W/T for any other: without a warm-up the first step has β₁, and all others
        β₂, as published. Without `total_steps` T is taken to be infinite, and T_β = 3W.
        """
        start = self.warmup_steps
        if self.total_steps is None:
            end = 3 * start
        else:
            end = math.floor(self._ramp_share * (self.total_steps - start)) + start
        if step <= start:
            return beta1
        if step >= end:
            return beta2
        return beta1 + (beta2 - beta1) * (step - start) / (end - start)

    def flat_lr_ratio(self, step: int, ratio: float, *, hidden_matrix: bool) -> float:
        """Return χ at step k.

        It is constant unless the schedule is cosine. There it falls from χ to 1 as cos(k; χ, r/χ)/cos(k; 1, r), and
        for hidden matrices first rises from 1 at the end of the warm-up, by (χ−1)/T_f over the rest of the run:

            cos(k; a, r) = a(k+1)/W for k < W, else a(r + (1−r)·½(1 + cos(π(k−W)/(T−W))))

        Args:
            step: k.
            ratio: χ.
            hidden_matrix: Whether this is a matrix other than embedding and head.
        """
        if self.name != "cosine" or self.total_steps is None:
            return ratio
        r = self.min_lr_ratio
        falling = self._cosine(step, ratio, r / ratio) / (self._cosine(step, 1.0, r) + 1e-9)
        if not hidden_matrix:
            return falling
        if step <= self.warmup_steps:
            return 1.0
        rising = 1.0 + self._progress(step) * (ratio - 1.0) / self._ramp_share
        return min(falling, rising)

    def _progress(self, step: int) -> float:
        """Return (k−W)/(T−W), at most 1."""
        total = self.total_steps or 1
        return min(1.0, (step - self.warmup_steps) / (total - self.warmup_steps))

    def _cosine(self, step: int, peak: float, floor: float) -> float:
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * self._progress(step))))

    @property
    def _ramp_share(self) -> float:
        """T_f, the share of the run that LITE's ramps take."""
        return 0.5 if self.name == "cosine" else 2.0 * self.warmup_steps / (self.total_steps or 1)

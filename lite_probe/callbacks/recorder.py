"""When a training run is measured, and the record of it; knows no trainer.

At step s, after s updates, θ_s is kept just before the optimizer moves on, and the point is measured just after: loss,
λ₁ and gradient at θ_s, and the critical step along the update d = θ_{s+1} − θ_s that the optimizer made there. So all
numbers of a point are those of the checkpoint of that step. Then θ_{s+1} is put back.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.callbacks.point import Measured, PointRequest, measure_point
from lite_probe.callbacks.unmoved import unmoved
from lite_probe.errors import InputError, LiteProbeError, UsageError
from lite_probe.operators.guards import require_precision
from lite_probe.results.provenance import Note
from lite_probe.results.store import load, save
from lite_probe.results.training import FailedPoint, Training, TrainingPoint
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.provenance import provenance_of
from lite_probe.task import Batch, Task
from lite_probe.task.batches import map_leaves
from lite_probe.vectors.layout import ParameterLayout

UPDATE = "change of the parameters in the optimizer's step from there, decay included"
_SHARDED = ("device_mesh", "ds_id", "_is_flat_param")  # marks of FSDP's and DeepSpeed's parameters
_NAMED = 5  # steps that a note names


@dataclass(slots=True)
class _Held:
    """A step whose point waits for the optimizer."""

    step: int
    layout: ParameterLayout
    start: Tensor  # θ_s, (N,)
    learning_rate: float | None
    seconds: float  # that holding it took


class Recorder:
    """Measures a training run at some of its steps, into a folder.

    A trainer, or a loop, calls `begin`, then around every optimizer step `before_update` and `after_update`, then
    `end`. What goes wrong in a measurement is warned of and noted in the record; the training goes on.

    Args:
        task: Whose loss and evaluation batches are used; the model measured is the one that trains.
        every: Steps between two points.
        folder: Where `training.json` goes, written anew after every point.
        early: Measure at steps 1, 2, 4, 8, … below `every`, too.
        budget: The share of the wall time since `begin` that points may take. A step is skipped while those before it
            have taken more, so that the first is always measured. The clock decides which steps are measured, never
            what is measured there. None skips none.
        top: Leading eigenpairs, k.
        tolerance: A pair has converged when ‖Hv − λv‖ ≤ tolerance·|λ|.
        max_products: Stop looking for pairs there.
        seed: Of the start vector.
        clock: Seconds, of which differences count.

    Raises:
        UsageError: If a number is out of range.
        InputError: If the task has no evaluation batches.
    """

    def __init__(
        self,
        task: Task,
        *,
        every: int = 100,
        folder: str | Path = "probe/run",
        early: bool = False,
        budget: float | None = 0.05,
        top: int = 1,
        tolerance: float = 1e-2,
        max_products: int = 40,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        for name, number in (("every", every), ("top", top), ("max_products", max_products)):
            if number < 1:
                raise UsageError(f"expected {name} of at least 1, got {number}")
        if budget is not None and not 0.0 < budget <= 1.0:
            raise UsageError(
                f"expected a budget above 0 and at most 1, a share of the wall time, got {budget}",
                "pass None to measure at every step of the schedule",
            )
        if not 0.0 < tolerance < 1.0:
            raise UsageError(f"expected a tolerance between 0 and 1, got {tolerance}")
        if not len(task.evaluation):
            raise InputError("expected at least one evaluation batch, got none", "give the task evaluation batches")
        self.task = task
        self.every = every
        self.folder = Path(folder)
        self.early = early
        self.budget = budget
        self.request = PointRequest(top=top, tolerance=tolerance, max_products=max_products, seed=seed)
        self.clock = clock
        self._own: Task | None = None  # None: nothing is measured
        self._held: _Held | None = None
        self._points: dict[int, TrainingPoint] = {}
        self._skipped: list[int] = []
        self._failed: list[FailedPoint] = []
        self._spent = 0.0
        self._started = 0.0
        self._started_at = ""
        self._count = 0
        self._is_tested = False

    # -- what a trainer calls ------------------------------------------------------------------------------------

    def begin(self, model: nn.Module, step: int = 0) -> None:
        """Start with a model that trains.

        Args:
            model: Its own parameters are measured, in place.
            step: Updates completed. Where a run is resumed the points before it are kept, those from it on replaced.

        Raises:
            InputError: If a run is resumed and the folder holds the record of another one, or a damaged one.
            UsageError: If more pairs are wanted than there are parameters.
        """
        self._own, self._held, self._is_tested = None, None, False
        self._points, self._skipped, self._failed = {}, [], []
        self._spent, self._started = 0.0, self.clock()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        problem = _unfit(model)
        if problem is not None:
            warnings.warn(f"lite-probe measures nothing: {problem}", stacklevel=2)
            return
        layout = ParameterLayout(list(model.named_parameters()))
        if layout.size < self.request.top:
            raise UsageError(
                f"expected top of at most {layout.size:,}, the number of parameters that train, got {self.request.top}"
            )
        device = layout.parameters[0].device
        info = self.task.info
        if info.checkpoint_name == "in memory":
            info = replace(info, checkpoint_name=self.folder.name)
        self._own = Task(
            model=model,
            predict=self.task.predict,
            criterion=self.task.criterion,
            evaluation=[_moved(batch, device) for batch in self.task.evaluation],
            info=replace(info, checkpoint_step=None),
        )
        if step > 0:
            self._continue(self._own, layout, step)

    def before_update(self, step: int, learning_rate: float | None = None) -> None:
        """Keep the parameters, where the point of this step is to be measured.

        Args:
            step: Updates completed.
            learning_rate: Of the update that follows.
        """
        own = self._own
        if own is None or (self._held is not None and self._held.step == step) or not self._is_scheduled(step):
            return
        if self.budget is not None and self._spent > self.budget * (self.clock() - self._started):
            self._skipped.append(step)
            return
        started = self._now()
        try:
            layout = ParameterLayout(list(own.model.named_parameters()))
            self._held = _Held(step, layout, layout.read(), learning_rate, 0.0)
        except RuntimeError as error:  # no memory
            self._note_failure(step, _described(error))
        else:
            self._held.seconds = self._now() - started

    def after_update(self) -> None:
        """Measure the point whose parameters were kept, and save the record."""
        held, self._held = self._held, None
        if held is None or self._own is None:
            return
        started = self._now()
        try:
            measured = self._measure(self._own, held)
        # Whatever a model or a loss of the user's raises, their training is worth more than this point.
        except Exception as error:  # noqa: BLE001
            self._note_failure(held.step, error.message if isinstance(error, LiteProbeError) else _described(error))
        else:
            for problem in measured.problems:
                self._note_failure(held.step, problem)
            self._count, self._is_tested = measured.count, True
            self._points[held.step] = _point(held, measured, held.seconds + self._now() - started)
        self._spent += held.seconds + self._now() - started
        self._save(self._own)

    def end(self) -> None:
        """Save what came after the last point: skipped steps."""
        self._held = None
        if self._own is not None and (self._points or self._skipped or self._failed):
            self._save(self._own)

    # -- when ----------------------------------------------------------------------------------------------------

    def _is_scheduled(self, step: int) -> bool:
        """Whether the schedule names a step."""
        is_early = self.early and 0 < step < self.every and step & (step - 1) == 0
        return step % self.every == 0 or is_early

    def _now(self) -> float:
        """Return the time when the device has done what it was asked for."""
        if self._own is not None and self._own.device.type == "cuda":
            torch.cuda.synchronize(self._own.device)
        return self.clock()

    # -- what ----------------------------------------------------------------------------------------------------

    def _measure(self, task: Task, held: _Held) -> Measured:
        end = held.layout.read()
        with unmoved(task.model, held.layout, end):
            return measure_point(task, held.layout, held.start, end, self.request, is_first=not self._is_tested)

    def _note_failure(self, step: int, reason: str) -> None:
        self._failed.append(FailedPoint(step=step, reason=reason))
        warnings.warn(f"lite-probe at step {step}: {reason}", stacklevel=3)

    # -- the record ----------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        """Return what changes the numbers of a point."""
        return {**asdict(self.request), "update": UPDATE}

    def _fingerprint(self, task: Task, layout: ParameterLayout) -> str:
        """Hash what all points of a run share."""
        shapes = [(name, list(one.shape)) for name, one in zip(layout.names, layout.parameters, strict=True)]
        shared = [self._config(), shapes, batches_digest(task.evaluation)]
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    def _continue(self, task: Task, layout: ParameterLayout, step: int) -> None:
        """Take over the points before a step from the record in the folder, where there is one."""
        if not (self.folder / "training.json").exists():
            return
        earlier: Training = load(self.folder, "training")
        if earlier.fingerprint != self._fingerprint(task, layout):
            raise InputError(
                f"expected the record of the run that is resumed in {self.folder}, got one of another model, of other "
                "batches or of other settings",
                "name another folder, or use the settings that it was made with",
            )
        self._points = {point.step: point for point in earlier.points if point.step < step}
        self._skipped = [one for one in earlier.skipped if one < step]
        self._failed = [one for one in earlier.failed if one.step < step]
        self._count = earlier.provenance.num_tokens

    def _save(self, task: Task) -> None:
        """Write the record; a disk that is full must not end the training."""
        layout = ParameterLayout(list(task.model.named_parameters()))
        details = {
            "update": UPDATE,
            "schedule": f"every {self.every} steps" + (", and at powers of two before" if self.early else ""),
            "budget": "none" if self.budget is None else f"{self.budget:g} of the wall time",
        }
        try:
            training = Training(
                points=tuple(self._points[step] for step in sorted(self._points)),
                skipped=tuple(self._skipped),
                failed=tuple(self._failed),
                top=self.request.top,
                tolerance=self.request.tolerance,
                num_parameters=layout.size,
                config=self._config(),
                fingerprint=self._fingerprint(task, layout),
                notes=tuple(_notes(len(self._points), self._skipped, self._failed, self.budget)),
                provenance=provenance_of(
                    task,
                    split="evaluation",
                    seed=self.request.seed,
                    count=self._count,
                    command="",
                    started_at=self._started_at,
                    seconds=self._spent,
                    details=details,
                ),
            )
            save(training, self.folder)
        except LiteProbeError as error:
            warnings.warn(f"lite-probe could not save its record: {error}", stacklevel=3)


def learning_rate_of(optimizer: Any) -> float | None:
    """Return the learning rate of an optimizer's first parameter group; None where it has none."""
    groups = getattr(optimizer, "param_groups", None)
    rate = groups[0].get("lr") if groups else None
    return None if rate is None else float(rate)


def _point(held: _Held, measured: Measured, seconds: float) -> TrainingPoint:
    curvature, critical = measured.curvature, measured.critical
    return TrainingPoint(
        step=held.step,
        loss=measured.loss,
        gradient_norm=measured.gradient_norm,
        learning_rate=held.learning_rate,
        update_norm=measured.update_norm,
        eigenvalues=() if curvature is None else curvature.eigenvalues,
        residual_norms=() if curvature is None else curvature.residual_norms,
        gradient_share=None if curvature is None else curvature.gradient_share,
        critical_low=None if critical is None else critical.low,
        critical_high=None if critical is None else critical.high,
        num_hvps=0 if curvature is None else curvature.num_hvps,
        evaluations=0 if critical is None else critical.evaluations,
        seconds=seconds,
    )


def _notes(num_points: int, skipped: Sequence[int], failed: Sequence[FailedPoint], budget: float | None) -> list[Note]:
    """Say what the reader of a record should know."""
    notes = []
    if skipped:
        scheduled = num_points + len(skipped)
        allowed = "" if budget is None else f" of {100.0 * budget:g}% of the training's time"
        message = (
            f"{len(skipped)} of {scheduled} scheduled steps were skipped for the budget{allowed}: {_named(skipped)}."
        )
        notes.append(Note(code="steps-skipped", message=message))
    reasons: dict[str, list[int]] = {}
    for one in failed:
        reasons.setdefault(one.reason, []).append(one.step)
    notes += [
        Note(code="not-measured", message=f"Not measured at step {_named(steps)}: {reason}.")
        for reason, steps in reasons.items()
    ]
    return notes


def _named(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - _NAMED} more" if len(steps) > _NAMED else ""
    return ", ".join(f"{step:,}" for step in steps[:_NAMED]) + more


def _unfit(model: nn.Module) -> str | None:
    """Say why a model cannot be measured while it trains; None where it can."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return "expected a model with trainable parameters, got none"
    if any(hasattr(parameter, mark) for parameter in trained for mark in _SHARDED):
        return "expected whole parameters in this process, got sharded ones (FSDP or DeepSpeed)"
    try:
        require_precision(model)
    except InputError as error:
        return error.message
    return None


def _described(error: Exception) -> str:
    """Return an error of the user's code, or of torch, in a line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on a device."""
    return map_leaves(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)

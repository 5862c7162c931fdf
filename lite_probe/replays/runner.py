"""One optimizer on one segment: trains, and watches itself train without changing a bit of it."""

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lite_probe.errors import InputError, NumericsError
from lite_probe.operators.gradient import finite_sum, require_finite
from lite_probe.operators.precision import multiplying_large
from lite_probe.optim.interface import Replayable, make_step, set_learning_rate
from lite_probe.replays.allocation import ROUNDINGS, Point, Rule, StepChange, evaluate, integrate_step
from lite_probe.replays.horizon import QuadraticModel, logged_steps
from lite_probe.replays.ramp import rate_at
from lite_probe.replays.recorder import OF_BANDS, Recorder
from lite_probe.replays.segments import Segment
from lite_probe.replays.stored import OptimizerState, load_start, read_tensors, write_tensors
from lite_probe.replays.sweep import Trial
from lite_probe.results.replay import ReplayRun
from lite_probe.runtime.memory import return_freed_memory
from lite_probe.runtime.resumable import SaveClock, remove
from lite_probe.subspaces import Subspace, drop_gradients, set_gradients
from lite_probe.task import Split, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import norm

Ablation = Literal["none", "dominant", "bulk"]

# Entries of `ReplayRun` that a step adds to, whatever is recorded of it.
_PER_STEP = ("train_losses", "losses", "update_norms")
_RECORDED = ("allocations", "closure_errors", "gradients_used", "slopes", "curvatures")
_MODELLED = ("logged_steps", "predicted_losses")  # of some steps
_SAME_BATCH = ("same_batch_allocations", "same_batch_closure_errors", "same_batch_gradients_used")
FIRST = 5  # steps of a trial, or those of a longer ramp, after each of which the loss is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run: which optimizer on which batches, and what is projected away."""

    optimizer: str
    lr: float
    seed: int
    segment: Segment
    ramp: int  # steps over which the rate rises to lr
    ablation: Ablation = "none"

    @property
    def key(self) -> str:
        """Its name, for files."""
        return f"{self.optimizer}.{self.ablation}.{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingConfig:
    """How a run is watched."""

    recorder: Recorder
    rule: Rule
    tolerance: float


class Runner:
    """Runs optimizers from one θ₀, one after another.

    Args:
        task: Its parameters are moved; the caller puts them back.
        start: θ₀, (N,).
        start_point: Loss and gradient there, on the batches of `split`.
        split: The batches that losses and allocations are of.
        same_point: Likewise on the batches that the eigenvectors were measured on, where they are others.
        model: Predicts the losses of watched runs after some of their steps; None predicts none.
        fingerprint: Of the replay; a saved run of another one is not continued.
        state_file: Where a run in progress is kept; None keeps nothing.
        on_damaged: Told why a run in progress was not continued.
        on_step: Told the completed steps of a run, its losses so far and the flat share of its progress.
        on_gradients: Told how many gradients were made.
    """

    def __init__(
        self,
        task: Task,
        layout: ParameterLayout,
        start: Tensor,
        start_point: Point,
        *,
        split: Split = "evaluation",
        same_point: Point | None = None,
        model: QuadraticModel | None = None,
        fingerprint: str = "",
        state_file: Path | None = None,
        on_damaged: Callable[[InputError], object] | None = None,
        on_step: Callable[[RunRequest, int, float | None, float | None], None] | None = None,
        on_gradients: Callable[[int], None] | None = None,
    ) -> None:
        self.task = task
        self.layout = layout
        self.start = start
        self.start_point = start_point
        self.split = split
        self.same_point = same_point
        self.model = model
        self.fingerprint = fingerprint
        self.state_file = state_file
        self.on_damaged = on_damaged
        self.on_step = on_step
        self.on_gradients = on_gradients
        self._clock = SaveClock()
        self._has_loaded = False  # a state, since the last step

    def trial(self, optimizer: Replayable, state: OptimizerState, request: RunRequest) -> Trial:
        """Train without watching; return the loss at the end, and whether it rose above the start's in the first steps.

        Cost: a gradient and a step per batch, one evaluation of the loss, and one after each of the first steps.
        """
        self._begin(optimizer, state, request.lr)
        start = self.start_point.loss
        allowed = start + ROUNDINGS * torch.finfo(self.start.dtype).eps * abs(start)
        rises = False
        try:
            for step, batch in enumerate(request.segment.batches):
                set_gradients(self.task, self.layout.parameters, batch, f"training batch {step}")
                self._step(optimizer, request, step)
                if step < max(request.ramp, FIRST):
                    rises = rises or evaluate_loss(self.task, self.split) > allowed
                self._tell(request, step + 1, None, None, 1)
            return Trial(evaluate_loss(self.task, self.split), rises)
        except NumericsError:
            return Trial(None, True)

    def first_update(self, optimizer: Replayable, state: OptimizerState, request: RunRequest) -> Tensor | None:
        """Return the update at θ₀ on the segment's first batch, at the full rate, (N,); None where it is none.

        The parameters come back to θ₀.

        Cost: a gradient and a step; two vectors of N.
        """
        self._begin(optimizer, state, request.lr)
        try:
            set_gradients(self.task, self.layout.parameters, request.segment.batches[0], "training batch 0")
            make_step(optimizer)
            update = self.layout.read().sub_(self.start)
        except NumericsError:
            return None
        finally:
            self.layout.write(self.start)
        if self.on_gradients is not None:
            self.on_gradients(1)
        return update if 0.0 < norm(update) < math.inf else None

    def follow(self, optimizer: Replayable, state: OptimizerState, request: RunRequest, steps: int) -> Iterator[Tensor]:
        """Train again what a run has trained, without watching; yield θ_t − θ₀, (N,), after each of its steps.

        On a CPU they are those of the run, bitwise.

        Cost: a gradient and a step per batch; a vector of N.
        """
        self._begin(optimizer, state, request.lr)
        for step, batch in enumerate(request.segment.batches[:steps]):
            set_gradients(self.task, self.layout.parameters, batch, f"training batch {step}")
            self._step(optimizer, request, step)
            if self.on_gradients is not None:
                self.on_gradients(1)
            yield self.layout.read().sub_(self.start)

    def run(
        self,
        optimizer: Replayable,
        state: OptimizerState,
        request: RunRequest,
        *,
        watching: RecordingConfig | None,
        subspace: Subspace | None = None,
    ) -> ReplayRun:
        """Train a segment; return what happened at each step.

        Args:
            optimizer: Of the task's parameters.
            state: What it starts from.
            request: The run.
            watching: Records progress per direction; None records losses only.
            subspace: What an ablation projects on.

        Cost: per step one gradient and a step of the optimizer; watched, the gradients of the rule and the projections,
        else one evaluation of the loss; all but the projections twice where two sets of batches are looked at. Watched
        beside a model, a Hessian product after each of the logged steps.
        """
        run = _Progress(_columns(watching, has_same=self.same_point is not None))
        if not self._continue(optimizer, request, run):
            self._begin(optimizer, state, request.lr)
            run.add({"losses": self.start_point.loss})
            if self.same_point is not None:
                run.add({"same_batch_losses": self.same_point.loss})
        points = self._points(run.steps == 0) if watching is not None else None
        before = self.layout.read()
        diverged_at = None
        for step in range(run.steps, len(request.segment.batches)):
            started = time.perf_counter()
            try:
                train_loss = set_gradients(
                    self.task, self.layout.parameters, request.segment.batches[step], f"training batch {step}"
                )
                self._step(optimizer, request, step)
                after = self._project(before, request.ablation, subspace)
                update = after - before
                found: dict[str, Any] = {"train_losses": train_loss, "update_norms": norm(update)}
                if watching is not None and points is not None:
                    recorded, points = self._watch(watching, points, before, after, update, run)
                    found |= recorded
                else:
                    found |= self._losses()
                _require_finite(found)
            except NumericsError:
                diverged_at = step
                break
            before = after
            run.add(found)
            run.seconds += time.perf_counter() - started
            if watching is not None:
                self._predict(run, after, len(request.segment.batches))
            used = sum(int(found.get(name, 0)) for name in ("gradients_used", "same_batch_gradients_used"))
            self._tell(request, run.steps, run.last_loss, run.flat_share, 1 + used)
            self._save_if_due(optimizer, request, run)
        if watching is not None and diverged_at:
            self._predict(run, before, diverged_at)
        return run.result(request, diverged_at, 0.0 if self.model is None else self.model.noise)

    def _predict(self, run: "_Progress", where: Tensor, steps: int) -> None:
        """Ask the model where a run is, unless it was asked there; `steps` is the last of the run."""
        if self.model is not None and run.steps in logged_steps(steps) and not run.is_logged:
            run.add({"logged_steps": run.steps, "predicted_losses": self.model.loss_at(where)})

    def _begin(self, optimizer: Replayable, state: OptimizerState, lr: float) -> None:
        self.layout.write(self.start)
        load_start(optimizer, state)
        self._has_loaded = True
        set_learning_rate(optimizer, lr)

    def _step(self, optimizer: Replayable, request: RunRequest, step: int) -> None:
        """Make a step, on the ramp at its own rate; after it nobody touches the rate."""
        if step < request.ramp:
            set_learning_rate(optimizer, rate_at(request.lr, request.ramp, step))
        make_step(optimizer)
        drop_gradients(self.layout.parameters)
        if self._has_loaded:
            return_freed_memory()  # the step has stacked the state anew
            self._has_loaded = False

    def _project(self, before: Tensor, ablation: Ablation, subspace: Subspace | None) -> Tensor:
        """Return where the step ends; an ablation moves the parameters there."""
        after = self.layout.read()
        if ablation == "none" or subspace is None:
            return after
        update = after - before
        dominant = subspace.component(update)
        after = before + (dominant if ablation == "dominant" else update - dominant)
        self.layout.write(after)
        return after

    def _points(self, is_start: bool) -> tuple[Point, Point | None]:
        """Return loss and gradient where the parameters are, on the batches of the losses and on the eigenvectors'."""
        if is_start:
            return self.start_point, self.same_point
        same = evaluate(self.task, self.layout) if self.same_point is not None else None
        return evaluate(self.task, self.layout, self.split), same

    def _losses(self) -> dict[str, float]:
        """Return the losses where the parameters are, likewise."""
        losses = {"losses": evaluate_loss(self.task, self.split)}
        if self.same_point is not None:
            losses["same_batch_losses"] = evaluate_loss(self.task)
        return losses

    def _watch(
        self,
        watching: RecordingConfig,
        points: tuple[Point, Point | None],
        before: Tensor,
        after: Tensor,
        update: Tensor,
        run: "_Progress",
    ) -> tuple[dict[str, Any], tuple[Point, Point | None]]:
        """Return a step's records, and loss and gradient at its end."""

        def integrate(start: Point, split: Split, losses: str) -> StepChange:
            return integrate_step(
                self.task,
                self.layout,
                start,
                before,
                after,
                update,
                rule=watching.rule,
                tolerance=watching.tolerance,
                scale=run.scale(losses),
                split=split,
            )

        start, same = points
        change = integrate(start, self.split, "losses")
        found = {
            "losses": change.end.loss,
            "allocations": change.allocation,
            "closure_errors": change.closure_error,
            "gradients_used": change.gradients,
            "slopes": change.slope,
            "curvatures": change.curvature,
            **watching.recorder.record(change, start.gradient, update),
        }
        end = change.end
        if same is None:
            return found, (end, None)
        del change  # its mean gradient, while another is made
        change = integrate(same, "evaluation", "same_batch_losses")
        found |= {
            "same_batch_losses": change.end.loss,
            "same_batch_allocations": change.allocation,
            "same_batch_closure_errors": change.closure_error,
            "same_batch_gradients_used": change.gradients,
            "same_batch_sharp_allocations": watching.recorder.allot(change, found["sharp_updates"]),
        }
        return found, (end, change.end)

    def _tell(
        self, request: RunRequest, steps: int, loss: float | None, flat_share: float | None, gradients: int
    ) -> None:
        if self.on_gradients is not None:
            self.on_gradients(gradients)
        if self.on_step is not None:
            self.on_step(request, steps, loss, flat_share)

    # -- a run in progress on disk -------------------------------------------------------------------------------

    def _save_if_due(self, optimizer: Replayable, request: RunRequest, run: "_Progress") -> None:
        """Keep the run so far: parameters, optimizer state and records, whole or not at all."""
        if self.state_file is None or not self._clock.due:
            return
        with self._clock.saving():
            saved = {
                "parameters": self.layout.read().cpu(),
                "optimizer": optimizer.state_dict(),
                "records": run.tensors(),
                "seconds": run.seconds,
            }
            write_tensors(self.state_file, self._owner(request), saved)

    def _owner(self, request: RunRequest) -> str:
        return json.dumps([self.fingerprint, request.key, request.lr, request.segment.digest])

    def _continue(self, optimizer: Replayable, request: RunRequest, run: "_Progress") -> bool:
        """Take up a run where an earlier process left it; return whether there was one."""
        if self.state_file is None or not os.path.lexists(self.state_file):
            return False
        try:
            # In main memory: records are read there, and the optimizer takes its state to the device piece by piece.
            saved = read_tensors(self.state_file, self._owner(request), "a run in progress", torch.device("cpu"))
        except InputError as error:
            if self.on_damaged is not None:
                self.on_damaged(error)
            remove(self.state_file)
            return False
        except pickle.UnpicklingError:
            return False  # an optimizer that is not ours may keep what only a pickle that runs code could bring back
        if saved is None:
            return False  # of another run
        run.restore(saved["records"], saved["seconds"])
        self.layout.write(saved["parameters"])
        optimizer.load_state_dict(saved["optimizer"])
        self._has_loaded = True
        return True


class _Progress:
    """The records of a run as they grow."""

    def __init__(self, columns: Mapping[str, int]) -> None:
        self._columns = columns
        self._records: dict[str, list[Any]] = {name: [] for name in columns}
        self.seconds = 0.0

    @property
    def steps(self) -> int:
        return len(self._records["train_losses"])

    @property
    def is_logged(self) -> bool:
        """Whether the model was asked after the last step."""
        logged = self._records["logged_steps"]
        return bool(logged) and logged[-1] == self.steps

    @property
    def last_loss(self) -> float:
        return float(self._records["losses"][-1])

    def scale(self, losses_name: str) -> float:
        """Return a typical |ΔL| of a step so far, of one of the records of losses."""
        losses = self._records[losses_name]
        return float(np.mean(np.abs(np.diff(losses)))) if len(losses) > 1 else 0.0

    @property
    def flat_share(self) -> float | None:
        """Share of the loss change so far that fell to the flat complement; None where nothing is recorded."""
        total = math.fsum(self._records["allocations"]) if self._records["allocations"] else 0.0
        if not total:
            return None
        return 1.0 - float(np.sum(self._records["sharp_allocations"])) / total

    def add(self, found: Mapping[str, Any]) -> None:
        for name, value in found.items():
            self._records[name].append(value)

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(values)) for name, values in self._records.items() if values}

    def restore(self, records: Mapping[str, Tensor], seconds: float) -> None:
        self._records = {name: list(records[name].numpy()) if name in records else [] for name in self._columns}
        self.seconds = seconds

    def result(self, request: RunRequest, diverged_at: int | None, loss_noise: float) -> ReplayRun:
        arrays: dict[str, Any] = {}
        for name, width in self._columns.items():
            kind = np.int64 if name.endswith(("gradients_used", "logged_steps")) else np.float64
            array = np.array(self._records[name], dtype=kind)
            arrays[name] = array.reshape(len(array), width) if width else array
        return ReplayRun(
            optimizer=request.optimizer,
            ablation=request.ablation,
            seed=request.seed,
            batches_digest=request.segment.digest,
            diverged_at=diverged_at,
            seconds=self.seconds,
            loss_noise=loss_noise,
            **arrays,
        )


def _columns(watching: RecordingConfig | None, *, has_same: bool) -> dict[str, int]:
    """Return the arrays of a run with their columns; 0 for those of one number per step."""
    widths = watching.recorder.widths if watching is not None else dict.fromkeys(_WIDE, 0)
    columns = {**dict.fromkeys((*_PER_STEP, *_RECORDED, *_MODELLED, "same_batch_losses", *_SAME_BATCH), 0), **widths}
    return {name: width for name, width in columns.items() if has_same or not name.startswith("same_batch")}


_WIDE = (
    "sharp_allocations",
    "sharp_updates",
    "sharp_gradients",
    *OF_BANDS,
    "same_batch_sharp_allocations",
)


def _require_finite(found: Mapping[str, Any]) -> None:
    """Take a step whose records overflowed for one that diverged: nothing could be said of it.

    Raises:
        NumericsError: If a record is not finite.
    """
    for name, value in found.items():
        if not np.isfinite(value).all():
            raise NumericsError(f"expected finite {name}, got NaN or infinity", "the replay diverged")


@torch.no_grad()
def evaluate_loss(task: Task, split: Split = "evaluation") -> float:
    """Return the loss on a set of batches. Cost: a forward pass.

    Raises:
        NumericsError: If it is not finite.
    """
    losses: list[tuple[int, Tensor]] = []
    count = 0
    for index, batch in task.own_batches(split):
        with multiplying_large(task.model, batch):
            loss, batch_count = task.loss(batch)
        losses.append((index, loss.reshape(())))
        count += batch_count
    total, bad = finite_sum(losses)
    require_finite(task.ranks.from_every(bad), split)
    sums = task.ranks.add_up(torch.tensor([total, count], dtype=torch.float64))
    return float(sums[0]) / float(sums[1])

"""The last stage of a replay: the loss around θ₀, along lines and on a plane with every optimizer's path.

The plane's flat direction is known only when every run is, and where a run went along it only by going there again: one
run of each optimizer is made anew, without watching. Directions, each optimizer and the plane are stages that are kept.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch import Tensor

from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.replays.landscape import (
    DIFFERENCE_GRADIENTS,
    SETTLING_GRADIENTS,
    Direction,
    LossAround,
    directions_of,
    plane_axes,
    survey_line,
    survey_plane,
)
from lite_probe.replays.recipes import Prepared
from lite_probe.replays.runner import Runner, RunRequest
from lite_probe.results.landscape import Landscape, LossLine, LossPlane, PlanePath
from lite_probe.results.provenance import Note
from lite_probe.results.replay import ReplayRun
from lite_probe.results.store import register
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.seeds import derive_seed
from lite_probe.subspaces import Subspace
from lite_probe.vectors.reductions import dots, norm

_MISSED = 0.1  # of a run's loss change: where allocations miss by more, they do not say who made progress
_SAME = 1e-3  # of the longest way from θ₀: by less, a run that is made again has gone the same way


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surveyed:
    """What a stage has seen, as it waits on disk for the others."""

    fingerprint: str
    lines: tuple[LossLine, ...] = ()
    paths: tuple[PlanePath, ...] = ()
    plane: LossPlane | None = None
    notes: tuple[Note, ...] = ()
    num_losses: int = 0
    num_gradients: int = 0
    num_hvps: int = 0
    seconds: float = 0.0


register("replay-landscape", _Surveyed, schema_version=1)


class LandscapeSurvey:
    """Looks around θ₀ when all runs are made.

    Args:
        runner: Of the replay; its `start_point` is of the batches that losses are of.
        subspace: The sharp one.
        hessian: On those batches, for one product per line.
        runs: All of them; those of the first seed have the paths.
        asked: What is asked of a run of the first seed, by optimizer.
        prepared: Returns an optimizer with the state that its runs start from.
        state: Keeps the stages.
        say: Told what is being done, in words.
        seed: The user's.
        by_differences: Whether products are differences of gradients.

    Attributes:
        notes: What a reader should know.
    """

    def __init__(
        self,
        runner: Runner,
        subspace: Subspace,
        hessian: SymmetricOperator,
        runs: Sequence[ReplayRun],
        *,
        asked: Mapping[str, RunRequest],
        prepared: Callable[[str], Prepared],
        state: ResumableRun,
        say: Callable[[str], None],
        seed: int,
        by_differences: bool,
    ) -> None:
        self.runner = runner
        self.subspace = subspace
        self.hessian = hessian
        self.asked = asked
        self.prepared = prepared
        self.state = state
        self.say = say
        self.seed = seed
        self.by_differences = by_differences
        self.notes: list[Note] = []
        self._label = ""
        self._gradients = 0
        self._runs = {run.optimizer: run for run in runs if run.seed == 0 and run.ablation == "none" and run.num_steps}
        self._loss = LossAround(
            runner.task,
            runner.layout,
            runner.start,
            runner.start_point,
            runner.split,
            on_loss=lambda: self.say(self._label),
        )

    def survey(self) -> Landscape:
        """Look along every line, follow every run, and look at the plane.

        Cost: that of `landscape_costs`.
        """
        settling = self._settle()
        parts = [self._stage("directions", self._directions)]
        parts += [self._stage(f"of-{name}", partial(self._optimizer, name)) for name in self.asked]
        paths = [path for part in parts for path in part.paths]
        if paths:
            parts.append(self._stage("plane", lambda: self._seen(plane=self._plane(paths))))
        self.notes += [note for part in parts for note in part.notes]
        return Landscape(
            start_loss=self.runner.start_point.loss,
            lines=tuple(line for part in parts for line in part.lines),
            plane=parts[-1].plane,
            split=self.runner.split,
            num_batches=len(self.runner.task.batches(self.runner.split)),
            seed=self.seed,
            by_differences=self.by_differences,
            num_losses=sum(part.num_losses for part in parts),
            num_gradients=settling + sum(part.num_gradients for part in parts),
            num_hvps=sum(part.num_hvps for part in parts),
            seconds=sum(part.seconds for part in parts),
        )

    def _settle(self) -> int:
        """Choose the step of differences, whoever continues the same; return the gradients that takes."""
        if not isinstance(self.hessian, FiniteDifferenceOperator):
            return 0
        self._begin("step of differences")
        self.hessian.settle(derive_seed(self.seed, "replay", "landscape", "differences"))
        self.state.advance(SETTLING_GRADIENTS, self._label)
        return SETTLING_GRADIENTS

    # -- stages --------------------------------------------------------------------------------------------------

    def _stage(self, name: str, look: Callable[[], _Surveyed]) -> _Surveyed:
        """Return what a stage has seen, with what it cost."""

        def measure() -> _Surveyed:
            started = time.perf_counter()
            losses, products, gradients = self._loss.num_losses, self.hessian.num_products, self._gradients
            seen = look()
            return replace(
                seen,
                num_losses=self._loss.num_losses - losses,
                num_gradients=self._gradients - gradients,
                num_hvps=0 if self.by_differences else self.hessian.num_products - products,
                seconds=time.perf_counter() - started,
            )

        return self.state.stage(f"landscape-{name}", "replay-landscape", measure)

    def _seen(self, **found: Any) -> _Surveyed:
        """Return what a stage sees, before its cost is known."""
        return _Surveyed(fingerprint=self.state.fingerprint, **found)

    def _directions(self) -> _Surveyed:
        """Look along eigenvectors and a random flat direction."""
        makers = directions_of(self.subspace, self.runner.start, self.seed)
        return self._along(self._line(make()) for make in makers)

    def _along(self, looked: Iterable[tuple[str, LossLine | None]]) -> _Surveyed:
        """Return the lines that there are, and say where there is none."""
        found = dict(looked)
        notes = [
            Note(
                code="landscape-no-line",
                message=f"The loss along the {name} is not finite beside the start, or has no finite curvature there: "
                "it is not drawn.",
            )
            for name, line in found.items()
            if line is None
        ]
        return self._seen(lines=tuple(line for line in found.values() if line is not None), notes=tuple(notes))

    def _optimizer(self, name: str) -> _Surveyed:
        """Look along an optimizer's own update, and see where its run of the first seed went on the plane."""
        flat = self._flat  # first: finding it takes an optimizer with its state
        request, prepared = self.asked[name], self.prepared(name)
        self._begin(f"update of {name}")
        self._gradients += 1
        update = self.runner.first_update(prepared.optimizer, prepared.state, request)
        line = None
        if update is not None:
            _, line = self._line(Direction(f"update of {name}", "update", update, name))
        del update
        seen = self._along([(f"update of {name}", line)])
        prepared.rest()
        if flat is None or name not in self._runs:
            return seen
        path, apart = self._follow(self._runs[name], flat, prepared)
        prepared.rest()
        if apart <= _SAME:
            return replace(seen, paths=(path,))
        message = (
            f"A run of {name} that was made again for the landscape went another way, {apart:.1%} of its length apart: "
            "where it is drawn along the flat direction is the second run's."
        )
        return replace(seen, paths=(path,), notes=(*seen.notes, Note(code="landscape-path", message=message)))

    def _plane(self, paths: Sequence[PlanePath]) -> LossPlane:
        if self._flat is None or self._furthest is None:
            raise ValueError("expected a flat direction beside paths, got none")
        self._begin("plane")
        x, y = plane_axes(paths, float(self.subspace.eigenvalues[0]), self._scale)
        losses, is_missing = survey_plane(self._loss, self._sharpest, self._flat, x, y)
        furthest = self._furthest.optimizer
        return LossPlane(optimizer=furthest, x=x, y=y, losses=losses, is_missing=is_missing, paths=tuple(paths))

    # -- parts of them -------------------------------------------------------------------------------------------

    def _line(self, direction: Direction) -> tuple[str, LossLine | None]:
        self._begin(direction.name)
        before = self.hessian.num_products
        line = survey_line(self._loss, direction, self.hessian, self._scale)
        if self.by_differences:
            made = DIFFERENCE_GRADIENTS * (self.hessian.num_products - before)
            self._gradients += made
            self.state.advance(made, self._label)
        return direction.name, line

    @cached_property
    def _scale(self) -> float:
        """The largest loss change of the runs that reached the end, else of all; a change that matters."""
        whole = [run for run in self._runs.values() if run.diverged_at is None] or list(self._runs.values())
        changes = [float(np.abs(run.losses - run.losses[0]).max()) for run in whole]
        return max(changes, default=0.0) or 1e-3 * abs(self.runner.start_point.loss)

    @property
    def _sharpest(self) -> Tensor:
        return self.subspace.vector(0).to(self.runner.start)

    @property
    def _furthest(self) -> ReplayRun | None:
        """The run with the most flat progress, of those that reached the end and whose allocations account for theirs.

        Where there is none of these, of those that reached the end; and else of all.
        """
        whole = [run for run in self._runs.values() if run.diverged_at is None]
        told = [run for run in whole if run.closure_error <= _MISSED * abs(run.loss_change)]
        runs = told or whole or list(self._runs.values())
        return min(runs, key=lambda run: float(run.flat_allocations.sum()), default=None)

    @cached_property
    def _flat(self) -> Tensor | None:
        """The unit vector along that run's displacement, off the sharp subspace; None where there is none."""
        run = self._furthest
        if run is None or self.subspace.size == self.runner.layout.size:
            return None
        prepared, displacement = self.prepared(run.optimizer), None
        self._begin(f"way of {run.optimizer}")
        for displacement in self._again(run, prepared):  # noqa: B007 - the last is wanted
            pass
        prepared.rest()
        if displacement is None:
            return None
        displacement -= self.subspace.component(displacement)
        length = norm(displacement)
        return displacement / length if length > 0.0 else None

    def _again(self, run: ReplayRun, prepared: Prepared) -> Iterator[Tensor]:
        request = self.asked[run.optimizer]
        for way in self.runner.follow(prepared.optimizer, prepared.state, request, run.num_steps):
            self._gradients += 1
            yield way

    def _follow(self, run: ReplayRun, flat: Tensor, prepared: Prepared) -> tuple[PlanePath, float]:
        """Return a run's path, and how far from it it went this time, as a share of its longest way from θ₀."""
        self._begin(f"path of {run.optimizer}")
        sharpest = self._sharpest
        seen = [(0.0, 0.0, 0.0)]
        for way in self._again(run, prepared):
            first, second = dots([(sharpest, way), (flat, way)])
            seen.append((first, second, norm(way)))
        across, up, lengths = np.array(seen).T
        x = np.concatenate([[0.0], np.cumsum(run.sharp_updates[:, 0])])
        apart = float(np.abs(across - x).max() / lengths.max()) if lengths.max() > 0.0 else 0.0
        path = PlanePath(
            optimizer=run.optimizer, x=x, y=up, losses=run.losses, lengths=lengths, diverged_at=run.diverged_at
        )
        return path, apart

    def _begin(self, label: str) -> None:
        self._label = f"landscape · {label}"
        self.say(self._label)

"""How every measurement is planned and run; what differs between kinds is in a file per kind."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch

from lite_probe.errors import UsageError
from lite_probe.measurements.requests import OnProgress, Request
from lite_probe.operators.guards import preserve_state
from lite_probe.results.kinds import KINDS
from lite_probe.results.provenance import Note, join_notes
from lite_probe.results.spectrum import Spectrum
from lite_probe.runtime.disk import held_bytes, require_room
from lite_probe.runtime.fingerprint import landscape, task_fingerprint
from lite_probe.runtime.provenance import provenance_of
from lite_probe.runtime.resumable import Begun, ResumableRun, remove
from lite_probe.task import Split, Task
from lite_probe.version import __version__

Result = TypeVar("Result")
OnEvent = Callable[[Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run has measured, to become a result.

    Attributes:
        fields: Of the kind's record, but for those that all records have.
        count: Tokens or samples behind the loss.
        split: The batches that the loss is of, where they are not those of the plan's key.
        notes: For the reader.
        details: Of the provenance.
    """

    fields: Mapping[str, Any]
    count: int
    split: Split | None = None
    notes: Sequence[Note] = ()
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(ABC, Generic[Result]):
    """What a measurement will do, and what that takes; a kind adds its own.

    Attributes:
        request: What was asked, without open choices.
        num_parameters: N.
        seconds: Expected.
        memory_bytes: Expected peak of the process (CPU) or of the device's allocations.
        most_memory_bytes: The highest that it can be, where that is another: pairs may be harder to find.
        scratch_bytes: On disk at the worst moment, while it runs.
        result_bytes: Of the saved result.
        fingerprint: Of checkpoint content, batches and request: a result's key.
    """

    #: What an interrupted run keeps to; None where it may go on in any way.
    begun: ClassVar[type[Begun] | None] = None
    #: What `--dry-run --json` prints of a plan.
    shown: ClassVar[tuple[str, ...]] = (
        *("num_parameters", "seconds", "memory_bytes", "scratch_bytes", "result_bytes", "fingerprint"),
    )

    request: Any
    num_parameters: int
    seconds: float
    memory_bytes: int
    most_memory_bytes: int | None = None
    scratch_bytes: int
    result_bytes: int = 0
    fingerprint: str

    # -- what a kind says ----------------------------------------------------------------------------------------

    @classmethod
    def vet(cls, request: Any) -> None:
        """Refuse what can be refused before a checkpoint is opened.

        Raises:
            UsageError, InputError: As the kind says.
        """

    @classmethod
    def checked(cls, task: Task, request: Any) -> Any:
        """Refuse what cannot be measured on a task; return the request without open choices. See `Request.checked`."""
        return request

    @classmethod
    @abstractmethod
    def of(cls, task: Task, request: Any, on_progress: OnProgress | None) -> Self:
        """Plan a checked request. See `Request.plan`."""

    @classmethod
    def identity(cls, task: Task, request: Any) -> Mapping[str, Any]:
        """Return what a result depends on beside configuration, weights and the batches it is measured on."""
        return {}

    @abstractmethod
    def summary(self) -> str:
        """Return the plan as one line for people."""

    def laid_out_as(self, task: Task, begun: Any) -> Self:
        """Return the plan in the way that a run began, an instance of its `begun`, with what that takes."""
        return self

    @property
    def time_and_memory(self) -> str:
        """Say what it takes, for `summary`."""
        return f"~{duration(self.seconds)}, {self.memory_text}"

    @property
    def memory_text(self) -> str:
        """Say what memory it takes."""
        sizes = (self.memory_bytes, self.most_memory_bytes or self.memory_bytes)
        expected, most = (f"{size / 2**30:.1f}" for size in sizes)
        return f"{expected} GiB" if most == expected else f"{expected} to {most} GiB"

    @abstractmethod
    def measure(self, task: Task, run: ResumableRun, on_event: OnEvent | None) -> Outcome:
        """Measure; finished stages are kept in `run`, which has its progress, too."""

    # -- what all have -------------------------------------------------------------------------------------------

    @classmethod
    def config(cls, task: Task, request: Request) -> dict[str, Any]:
        """Return everything that was asked and changes the numbers, and what computes them."""
        return {
            **request.config,
            "device": task.device.type,
            "precision": precision_of(task),
            **({"sharded": True} if task.ranks.is_sharded else {}),
            "lite_probe": __version__,
            "torch": torch.__version__,
        }

    @classmethod
    def key(cls, task: Task, request: Any, loss: float) -> str:
        """Return the fingerprint of what a checked request comes to on a task.

        Args:
            task: Its weights and batches are hashed.
            request: Checked.
            loss: On the batches that are measured.

        Cost: one hash of weights and batches.
        """
        per_block = bool(getattr(request, "per_block", True))
        asked = {**cls.config(task, request), **landscape(task, loss, per_block), **cls.identity(task, request)}
        return task_fingerprint(task, cls.split(request), asked)

    def as_begun(self, task: Task, state_directory: Path) -> Self:
        """Return the plan laid out as an interrupted run of it began, where there is one that fits; nothing is changed.

        Args:
            task: That it was planned on.
            state_directory: As of `run`.
        """
        if self.begun is None:
            return self
        folder = _state_folder(state_directory, self.request.kind)
        begun = ResumableRun(folder, self.fingerprint, ranks=task.ranks).begun(self.begun)
        if begun is None:
            return self
        plan, memory = self.laid_out_as(task, begun), self.request.memory
        # What is free varies, and what a plan counts varies a little: only less than was asked for so far ends it.
        goes_on = memory is None or (begun.memory is not None and begun.memory <= memory)
        return plan if goes_on or (plan.most_memory_bytes or plan.memory_bytes) <= memory else self

    def room(self, state_directory: Path) -> tuple[Path, int]:
        """Return a folder for working files, and the bytes that they take there beside a state to continue from."""
        held = held_bytes(_state_folder(state_directory, self.request.kind))
        return state_directory, max(self.scratch_bytes - held, 0)

    @staticmethod
    def split(request: Any) -> Split:
        """Return the batches that are measured on."""
        split: Split = getattr(request, "split", "evaluation")
        return split

    def run(
        self,
        task: Task,
        *,
        state_directory: Path | None = None,
        on_progress: OnProgress | None = None,
        on_event: OnEvent | None = None,
        command: str = "",
    ) -> Result:
        """Measure what was planned.

        Args:
            task: That it was planned on; comes back bitwise as it was. Several ranks call this together.
            state_directory: Working files lie there, `scratch_bytes` of them. The same call continues after a kill,
                with the same numbers bitwise on a CPU; `discard_state` removes them once the result is saved.
            on_progress: Told `(done, expected, label)`.
            on_event: Told what the kind has to say of its steps.
            command: For provenance.

        Raises:
            OutputError: If the state directory's disk has no room for the working files.
            UsageError: If another number of ranks has begun.
            NumericsError: Numbers that are not finite.
        """
        started = time.perf_counter()
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        folder, plan = None, self
        if state_directory is not None:
            plan = self.as_begun(task, state_directory)
            require_room([plan.room(Path(state_directory))])
            folder = _state_folder(state_directory, self.request.kind)
        run = ResumableRun(folder, self.fingerprint, on_progress, task.ranks)
        run.require_ranks()
        with preserve_state(task.model, fused_attention=task.ranks.is_sharded):
            outcome = plan.measure(task, run, on_event)
        result: Result = KINDS[self.request.kind].load("record")(
            **outcome.fields,
            config=self.config(task, self.request),
            fingerprint=self.fingerprint,
            notes=join_notes(outcome.notes, run.notes),
            provenance=provenance_of(
                task,
                split=outcome.split or self.split(self.request),
                seed=self.request.seed,
                count=outcome.count,
                command=command,
                started_at=started_at,
                seconds=time.perf_counter() - started,
                details=outcome.details
                if task.ranks.count == 1
                else {**outcome.details, "ranks": str(task.ranks.count)},
            ),
        )
        return result


def discard_state(state_directory: Path, kind: str) -> None:
    """Remove what `Plan.run` kept of a kind of measurement to continue from, once the result is saved."""
    remove(_state_folder(state_directory, kind))


def _state_folder(state_directory: Path, kind: str) -> Path:
    return Path(state_directory) / f"{kind}.state"


def duration(seconds: float) -> str:
    """Write a duration for people: `8 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def precision_of(task: Task) -> str:
    """Name the element type of a task's parameters."""
    return str(next(task.model.parameters()).dtype).removeprefix("torch.")


def spectrum_of(request: Any) -> Spectrum:
    """Return the spectrum that a measurement starts from.

    Raises:
        UsageError: If none was given.
    """
    if request.spectrum is None:
        raise UsageError("expected a spectrum to start from, got none", "measure one: lp.measure_spectrum(task)")
    spectrum: Spectrum = request.spectrum
    return spectrum

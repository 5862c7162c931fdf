"""A kind of measurement that lite-probe has never seen, from what can be asked to its part of a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lite_probe.measurements.base import OnEvent, Outcome, Plan
from lite_probe.measurements.requests import OnProgress, Request, option
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.reports.sections.section import Block, Figures, Part, Section
from lite_probe.reports.verdict import Verdict
from lite_probe.results.provenance import Note, Provenance
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Steepness:
    """What was measured."""

    loss: float
    gradient_norm: float
    num_parameters: int
    config: Mapping[str, object]
    fingerprint: str
    notes: tuple[Note, ...] = ()
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class SteepnessRequest(Request):
    """How steep the loss is."""

    kind: ClassVar[str] = "steepness"
    scale: int = option(1, "What the norm is multiplied by.", least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteepnessPlan(Plan[Steepness]):
    @classmethod
    def of(cls, task: Task, request: SteepnessRequest, on_progress: OnProgress | None) -> "SteepnessPlan":
        layout = ParameterLayout(list(task.model.named_parameters()))
        loss = loss_and_gradient(task, layout, "evaluation").loss
        size, key = layout.size, cls.key(task, request, loss)
        return cls(
            request=request, num_parameters=size, seconds=1.0, memory_bytes=4 * size, scratch_bytes=0, fingerprint=key
        )

    def summary(self) -> str:
        return f"one gradient, {self.time_and_memory}"

    def measure(self, task: Task, run: ResumableRun, on_event: OnEvent | None) -> Outcome:
        layout = ParameterLayout(list(task.model.named_parameters()))
        found = loss_and_gradient(task, layout, "evaluation")
        run.advance(1, "gradient")
        size = self.request.scale * norm(found.gradient)
        fields = {"loss": found.loss, "gradient_norm": size, "num_parameters": layout.size}
        return Outcome(fields=fields, count=found.count)


class SteepnessSection(Section):
    heading = "Steepness"
    template = Path(__file__).with_name("steepness.html.j2")

    def subject(self, results: Sequence[Steepness]) -> str:
        return "steepness"

    def facts(self, result: Steepness) -> Mapping[str, str]:
        return {}

    def verdict(self, result: Steepness) -> Verdict:
        return Verdict(lead=f"The gradient's norm is {result.gradient_norm:.3g}.", points=())

    def summary(self, result: Steepness) -> Sequence[Block]:
        return [Figures([f"loss {result.loss:.4g}"])]

    def json_object(self, result: Steepness) -> dict[str, Any]:
        return {"gradient_norm": result.gradient_norm}

    def part(self, labelled: Sequence[tuple[str, Steepness]]) -> Part:
        return Part(view=labelled, leads=[(label, self.verdict(one).lead) for label, one in labelled])


SECTION = SteepnessSection()

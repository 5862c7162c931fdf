"""Plans as tests ask for them: the fields of a request as keywords."""

from dataclasses import replace
from typing import Any

from lite_probe.measurements.replay import ReplayPlan
from lite_probe.measurements.requests import OnProgress
from lite_probe.measurements.requests.optimizers import Asked
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.measurements.requests.spectrum import SpectrumRequest
from lite_probe.measurements.requests.subspace import SubspaceRequest
from lite_probe.measurements.spectrum import SpectrumPlan
from lite_probe.measurements.subspace import SubspacePlan
from lite_probe.results.spectrum import Spectrum
from lite_probe.task import Task


def plan_spectrum(task: Task, *, on_progress: OnProgress | None = None, **asked: Any) -> SpectrumPlan:
    plan = SpectrumRequest(**asked).plan(task, on_progress)
    assert isinstance(plan, SpectrumPlan)
    return plan


def plan_subspace(
    task: Task, spectrum: Spectrum, *, on_progress: OnProgress | None = None, **asked: Any
) -> SubspacePlan:
    plan = SubspaceRequest(spectrum=spectrum, **asked).plan(task, on_progress)
    assert isinstance(plan, SubspacePlan)
    return plan


def plan_replay(
    task: Task,
    optimizers: Asked | list[Asked],
    *,
    spectrum: Spectrum,
    on_progress: OnProgress | None = None,
    **asked: Any,
) -> ReplayPlan:
    plan = ReplayRequest(optimizers=optimizers, spectrum=spectrum, **asked).plan(task, on_progress)
    assert isinstance(plan, ReplayPlan)
    return plan


def laid_out(plan: Any, **layout: Any) -> Any:
    """Return a plan with another layout in memory; `graph_mode` goes with it."""
    mode = {"graph_mode": layout.pop("graph_mode")} if "graph_mode" in layout else {}
    return replace(plan, layout=replace(plan.layout, **layout), **mode)

"""Loss change allocation on smooth models: its closure, its refinement, and the curvature that comes with it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.measurements.replay import replay
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GraphStore, HessianOperator
from lite_probe.replays.allocation import Point, StepChange, _gradients_at, evaluate, integrate_step
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models
from tests.replays.conftest import spectrum_of, with_training


def step_of(
    task: Task, size: float, *, rule: str = "simpson", tolerance: float = 5e-3, scale: float = 0.0
) -> tuple[StepChange, Tensor, Point]:
    """One step of the given length against the gradient, integrated; with the update and the start."""
    layout = ParameterLayout(list(task.model.named_parameters()))
    start = evaluate(task, layout)
    before = layout.read()
    update = start.gradient * (-size / float(start.gradient.norm()))
    after = before + update
    layout.write(after)
    change = integrate_step(
        task,
        layout,
        start,
        before,
        after,
        after - before,
        rule=rule,  # type: ignore[arg-type]
        tolerance=tolerance,
        scale=scale,
    )
    assert torch.equal(layout.read(), after)  # bitwise, wherever the gradients were taken
    return change, after - before, start


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lr"), [("mlp", 0.01), ("llama", 0.002)])
def test_simpson_closes_to_a_millionth_and_the_trapezoid_to_a_hundredth(name: str, lr: float) -> None:
    """MATH section 7: in float64, over a replay at an ordinary learning rate."""
    task = with_training(name, 40, torch.float64)
    with_rule = {}
    for rule in ("simpson", "trapezoid"):
        found = replay(
            task,
            ["sgd"],
            spectrum=spectrum_of(task),
            steps=20,
            seeds=1,
            landscape=False,
            lr=lr,
            warm_batches=5,
            rule=rule,  # type: ignore[arg-type]
            tolerance=0.5,
        )
        run = found.runs_of("sgd")[0]
        with_rule[rule] = run.closure_error / abs(run.loss_change)
        assert run.band_allocations.sum() == pytest.approx(run.allocations.sum(), rel=1e-10)
        parts = run.sharp_allocations.sum() + run.flat_allocations.sum()
        assert parts == pytest.approx(run.allocations.sum(), rel=1e-12)
    assert with_rule["simpson"] < 1e-6
    assert 1e-6 < with_rule["trapezoid"] < 1e-2


def test_halving_earns_its_place() -> None:
    """A step so long that Simpson's rule misses by more than the tolerance is refined until it does not."""
    coarse, _, _ = step_of(models.make_task("llama"), 1.0, tolerance=1e9)
    fine, _, _ = step_of(models.make_task("llama"), 1.0, tolerance=1e-4)
    assert coarse.gradients == 2
    assert fine.gradients > 2
    assert fine.gradients in (4, 8, 16, 32, 64)  # halvings keep every gradient
    change = fine.allocation - fine.closure_error
    assert abs(coarse.closure_error) > 1e-4 * abs(change)
    assert abs(fine.closure_error) <= 1e-4 * abs(change)
    assert coarse.allocation - coarse.closure_error == pytest.approx(change, rel=1e-12)


def test_a_step_that_changes_little_need_not_close_better_than_others() -> None:
    """The tolerance is relative to a typical change where that is larger than the step's own."""
    coarse, _, _ = step_of(models.make_task("llama"), 1.0, tolerance=1e9)
    change = abs(coarse.allocation - coarse.closure_error)
    tolerance = 0.5 * abs(coarse.closure_error) / change
    for scale, gradients in ((0.0, 4), (1.9 * change, 4), (2.1 * change, 2)):
        step, _, _ = step_of(models.make_task("llama"), 1.0, tolerance=tolerance, scale=scale)
        assert step.gradients == gradients


def test_a_replay_refines_the_steps_that_need_it() -> None:
    """Steps so long that some miss the tolerance; those that do not stay with two gradients."""
    task = with_training("mlp", 40, torch.float64)
    spectrum, closed = spectrum_of(task), {}
    for tolerance in (0.99, 1e-4):
        made: list[int] = []
        found = replay(
            task,
            ["sgd"],
            spectrum=spectrum,
            steps=20,
            seeds=1,
            lr=0.5,
            warm_batches=5,
            landscape=False,
            curvature_probes=0,
            tolerance=tolerance,
            on_progress=lambda done, total, label: made.append(done),  # noqa: B023
        )
        run = found.runs_of("sgd")[0]
        closed[tolerance] = np.abs(run.closure_errors)
        refined = run.gradients_used > 2
        assert made[-1] == 2 * 5 + 20 + run.gradients_used.sum()
        if tolerance == 0.99:
            assert not refined.any()
            assert "refined" not in {note.code for note in found.notes}
            continue
        assert 0 < refined.sum() < 20
        # A step that was settled by its first two gradients is as it was.
        assert (closed[1e-4][~refined] == closed[0.99][~refined]).all()
        assert (closed[1e-4][refined] < closed[0.99][refined]).all()
        (note,) = [note for note in found.notes if note.code == "refined"]
        assert f"{refined.sum()} of 20 steps missed the closure tolerance with 2 gradients" in note.message


def test_the_mean_gradient_is_what_the_allocation_is_made_of() -> None:
    change, update, _ = step_of(models.make_task("mlp"), 2.0, tolerance=1e-6)
    assert change.gradients > 2
    assert float(change.mean_gradient @ update) == pytest.approx(change.allocation, rel=1e-12)


def test_curvature_comes_free() -> None:
    """dᵀHd of an exact Hessian product; three slopes miss it by a fourth derivative, two by a third.

    Halving the step must lower the relative errors by 4 and 2.
    """
    errors = {}
    for rule in ("simpson", "trapezoid"):
        for size in (0.04, 0.02):
            task = models.make_task("mlp")
            layout = ParameterLayout(list(task.model.named_parameters()))
            change, update, start = step_of(models.make_task("mlp"), size, rule=rule)
            with preserve_state(task.model):
                operator = HessianOperator(task, layout, count=start.count, graphs=GraphStore(0))
                exact = float(update @ operator.matvec(update))
            errors[rule, size] = abs(change.curvature / exact - 1.0)
            assert change.slope == pytest.approx(float(start.gradient @ update), rel=1e-12)
    assert errors["simpson", 0.02] < 1e-4
    assert errors["simpson", 0.04] / errors["simpson", 0.02] == pytest.approx(4.0, rel=0.2)
    assert errors["trapezoid", 0.04] / errors["trapezoid", 0.02] == pytest.approx(2.0, rel=0.1)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    task = models.make_task("mlp")
    layout = ParameterLayout(list(task.model.named_parameters()))
    with torch.no_grad():
        layout.parameters[0].fill_(np.nan)
    with pytest.raises(NumericsError, match="expected a finite loss, got nan on evaluation batch 0"):
        evaluate(task, layout)


def test_a_mean_over_no_places_is_an_error() -> None:
    task = models.make_task("mlp")
    layout = ParameterLayout(list(task.model.named_parameters()))
    with pytest.raises(ValueError, match="expected at least one place, got none"):
        _gradients_at(task, layout, "evaluation", layout.read(), layout.read(), [])


def test_an_infinite_gradient_of_a_finite_loss_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from lite_probe.operators.gradient import LossAndGradient
    from lite_probe.replays import allocation

    task = models.make_task("mlp")
    layout = ParameterLayout(list(task.model.named_parameters()))
    broken = LossAndGradient(1.0, torch.full((layout.size,), torch.inf), 1, ())
    monkeypatch.setattr(allocation, "loss_and_gradient", lambda *_: broken)
    with pytest.raises(NumericsError, match="expected a finite evaluation gradient"):
        evaluate(task, layout)

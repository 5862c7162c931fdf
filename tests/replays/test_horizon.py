"""For how many steps the quadratic model at θ₀ predicts the loss: against losses whose expansion is known."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from lite_probe.errors import NumericsError
from lite_probe.measurements.replay import replay
from lite_probe.measurements.replay_session import ReplayStep
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.replays.allocation import evaluate
from lite_probe.replays.horizon import QuadraticModel, logged_steps
from lite_probe.results.replay import Horizon, ReplayRun
from lite_probe.results.store import load, save
from lite_probe.runtime import resumable
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests.oracles import matrix_with
from tests.plans import plan_replay
from tests.replays.conftest import HalfForm, quadratic_task, spectrum_of, with_training

pytestmark = pytest.mark.slow

EIGENVALUES = [4.0, 2.0, 1.0, 0.3, 0.1, 0.02, -0.1]
SLOPE = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
START = torch.linspace(1.0, -0.7, 7, dtype=torch.float64)
STEPS, SEEDS, WARM, LR = 12, 2, 4, 0.1
ASKED: dict[str, Any] = {
    "steps": STEPS,
    "seeds": SEEDS,
    "warm_batches": WARM,
    "ramp": 0,
    "curvature_probes": 0,
    "landscape": False,
}
LOGGED = [1, 2, 4, 8, 12]


class Quartic(HalfForm):
    """The half form and κ/4 Σθ⁴ for every sample."""

    def __init__(self, matrix: Tensor, kappa: float) -> None:
        super().__init__(matrix)
        self.kappa = kappa

    def __call__(self, outputs: Tensor, batch: Tensor) -> tuple[Tensor, int]:
        loss, count = super().__call__(outputs, batch)
        return loss + 0.25 * self.kappa * len(batch) * outputs.pow(4).sum(), count


def quartic_task(kappa: float) -> Task:
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), START)
    task.criterion = Quartic(task.criterion.matrix, kappa)  # type: ignore[attr-defined]
    return task


def classifier() -> Task:
    """A small network, with batches of every kind."""
    task = with_training("mlp", WARM + STEPS * (SEEDS + 1) + 2)
    task.train, task.heldout = task.train[2:], task.train[:2]
    return task


def figures(run: ReplayRun, *left_out: str) -> dict[str, Any]:
    """Everything measured, but for seconds."""
    values = {one.name: getattr(run, one.name) for one in fields(ReplayRun) if one.name not in ("seconds", *left_out)}
    return {name: one.tobytes() if isinstance(one, np.ndarray) else one for name, one in values.items()}


@pytest.mark.parametrize(
    ("steps", "logged"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (50, (1, 2, 4, 8, 16, 32, 50))]
)
def test_steps_are_logged_at_powers_of_two_and_at_the_last(steps: int, logged: tuple[int, ...]) -> None:
    assert logged_steps(steps) == logged


@pytest.mark.parametrize("held_out", [False, True])
def test_a_quadratic_is_never_missed(held_out: bool) -> None:
    """Noisy steps on a saddle; the held-out loss has a slope of its own, which the model must have too."""
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), START, slope=SLOPE)
    if held_out:
        task.heldout = [torch.tensor([[-3.0, 0.7], [-4.0, 0.7]], dtype=torch.float64)]
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), lr=LR, horizon=True, **ASKED)
    for run in found.runs:
        assert run.logged_steps.tolist() == LOGGED
        # Losses of order ten from sums of some fifty terms: 50 · 10 · 2e-16.
        np.testing.assert_allclose(run.predicted_losses, run.losses[LOGGED], atol=1e-13)
        assert run.horizon == Horizon(low=STEPS, high=None)
    assert len({run.losses[-1] for run in found.runs}) == SEEDS
    assert found.horizons("sgd") == (Horizon(low=STEPS, high=None),) * SEEDS


def descend(kappa: float, lr: float) -> list[NDArray[np.float64]]:
    """Gradient descent on the quartic, in plain numpy: θ after every step."""
    h, theta = matrix_with(EIGENVALUES, seed=5).numpy(), START.numpy()
    found = [theta]
    for _ in range(STEPS):
        theta = theta - lr * (h @ theta + kappa * theta**3)
        found.append(theta)
    return found


@pytest.mark.parametrize(
    ("kappa", "lr", "low", "high"),
    [(0.2, 0.1, 12, None), (1.0, 0.03, 8, 12), (1.0, 0.05, 4, 8), (1.0, 0.1, 2, 4), (4.0, 0.1, 0, 1)],
)
def test_a_quartic_is_missed_where_its_higher_orders_are_a_tenth(
    kappa: float, lr: float, low: int, high: int | None
) -> None:
    """Beyond the second order κ/4 Σθ⁴ has κ Σθ₀δ³ + κ/4 Σδ⁴, exactly: no Hessian is needed to know the miss."""
    task = quartic_task(kappa)
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), lr=lr, horizon=True, **ASKED)
    h, way = task.criterion.matrix.numpy(), descend(kappa, lr)  # type: ignore[attr-defined]
    losses = np.array([0.5 * theta @ h @ theta + 0.25 * kappa * (theta**4).sum() for theta in way])
    deltas = [theta - way[0] for theta in way]
    beyond = np.array([kappa * (way[0] * d**3).sum() + 0.25 * kappa * (d**4).sum() for d in deltas])
    misses = np.abs(beyond[LOGGED]) > 0.1 * np.abs(losses[LOGGED] - losses[0])
    before = [*misses, True].index(True)
    assert (low, high) == ([0, *LOGGED][before], [*LOGGED, None][before])
    for run in found.runs:
        np.testing.assert_allclose(run.losses, losses, rtol=1e-12)
        np.testing.assert_allclose(run.predicted_losses, (losses - beyond)[LOGGED], rtol=1e-12)
        assert run.model_missed.tolist() == misses.tolist()
        assert run.horizon == Horizon(low=low, high=high)
    for one, share in zip(
        found.modelled_changes("sgd"), (beyond[1:] / (losses - losses[0])[1:])[np.array(LOGGED) - 1], strict=True
    ):
        assert one.miss == pytest.approx(abs(share), rel=1e-9)
        assert (one.count, one.missed) == (SEEDS, SEEDS * (abs(share) > 0.1))


def test_a_replay_with_it_is_the_same_as_without() -> None:
    """Every number of every run, of those with projected updates too; and the parameters at the end, bitwise."""
    task = classifier()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    random = torch.get_rng_state()
    asked: dict[str, Any] = {**ASKED, "ramp": 3, "spectrum": spectrum_of(task), "lr": 0.01, "ablations": True}
    without = replay(task, ["muon", "soap"], **asked)
    found = replay(task, ["muon", "soap"], horizon=True, **asked)
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    own = ("logged_steps", "predicted_losses", "loss_noise")
    for one, other in zip(found.runs, without.runs, strict=True):
        assert figures(one, *own) == figures(other, *own)
        assert one.logged_steps.tolist() == (LOGGED if one.ablation == "none" else [])
        assert other.horizon is None
        assert not len(other.logged_steps)
    assert without.modelled_changes("muon") == ()
    same = found.on_same_batches()
    assert same is not None
    assert same.horizons("muon") == ()  # the model is that of the held-out loss


def test_parameters_are_where_they_were_after_a_prediction() -> None:
    task = classifier()
    layout = ParameterLayout(list(task.model.named_parameters()))
    start = layout.read()
    model = QuadraticModel(task, layout, start, evaluate(task, layout), "evaluation")
    where = start + 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(2))
    layout.write(where)
    model.loss_at(where)
    assert torch.equal(layout.read(), where)
    assert model.loss_at(start) == model.point.loss
    # A third of a loss of about one, in float32.
    assert 1e-6 < model.noise < 1e-5


def test_a_way_that_is_too_long_for_its_square_is_predicted_too_high() -> None:
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), START)
    layout = ParameterLayout(list(task.model.named_parameters()))
    start = layout.read()
    model = QuadraticModel(task, layout, start, evaluate(task, layout), "evaluation")
    assert model.loss_at(start + 1e200) == 1e300


@pytest.mark.parametrize("where", [(0, 1), (0, 2), (0, 3), (1, 8), (1, 9), (1, STEPS)])
def test_a_stopped_one_goes_on_with_the_same_bits(
    where: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a logged step, which is told before it is saved, and behind one."""
    monkeypatch.setattr(resumable, "_COST_FACTOR", 0.0)
    task = classifier()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 0.01, "horizon": True, **ASKED}
    made = list[int]()
    loss_at = QuadraticModel.loss_at

    def counting(self: QuadraticModel, theta: Tensor) -> float:
        made.append(1)
        return loss_at(self, theta)

    monkeypatch.setattr(QuadraticModel, "loss_at", counting)

    def stop(step: ReplayStep) -> None:
        if (step.phase, step.seed, step.step) == ("replay", *where):
            raise KeyboardInterrupt

    whole = replay(task, ["soap"], **asked)
    products = len(made)
    assert products == SEEDS * len(LOGGED)
    with pytest.raises(KeyboardInterrupt):
        replay(task, ["soap"], **asked, state_directory=tmp_path, on_step=stop)
    again = replay(task, ["soap"], **asked, state_directory=tmp_path)
    assert [figures(run) for run in again.runs] == [figures(run) for run in whole.runs]
    # What was saved is not made again: the step that was lost alone.
    assert len(made) == 2 * products + (where[1] in LOGGED)
    save(again, tmp_path)
    assert [figures(run) for run in load(tmp_path, "replay").runs] == [figures(run) for run in whole.runs]


def test_one_that_diverges_is_predicted_as_far_as_it_came() -> None:
    """With η = 1e100 the second step's loss overflows; with 1e30 in float32 the first one's does."""
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), START)
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), lr=1e100, horizon=True, **ASKED)
    for run in found.runs:
        assert run.diverged_at == 1
        assert run.logged_steps.tolist() == [1]
        assert run.predicted_losses[0] == pytest.approx(run.losses[1], rel=1e-9)
    small = classifier()
    lost = replay(small, ["sgd"], spectrum=spectrum_of(small), lr=1e30, horizon=True, **ASKED)
    assert [(run.diverged_at, len(run.logged_steps)) for run in lost.runs] == [(0, 0)] * SEEDS


@pytest.mark.parametrize(("last", "logged"), [(6, [1, 2, 4, 6]), (4, [1, 2, 4])])
def test_the_last_step_of_one_that_diverges_is_logged_once(last: int, logged: list[int]) -> None:
    """Between powers of two, and at one, which is logged anyway: training losses overflow behind that step."""
    task, steps = quadratic_task(matrix_with(EIGENVALUES, seed=5), START), [0]
    spectrum, form = spectrum_of(task), task.criterion

    def breaking(outputs: Tensor, batch: Tensor) -> tuple[Tensor, int]:
        loss, count = form(outputs, batch)
        is_training = bool(batch[0, 0] >= 0.0)
        return (loss * torch.inf if is_training and steps[-1] == last else loss), count

    task.criterion = breaking
    asked = {**ASKED, "seeds": 1, "spectrum": spectrum, "lr": LR, "horizon": True}
    found = replay(task, ["sgd"], **asked, on_step=lambda step: steps.append(step.step))
    (run,) = found.runs
    assert run.diverged_at == last
    assert run.logged_steps.tolist() == logged
    assert run.horizon == Horizon(low=last, high=None)
    assert found.horizons("sgd") == (run.horizon,)


def test_the_plan_counts_the_products() -> None:
    task = classifier()
    asked = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    plain, plan = (plan_replay(task, ["muon", "soap"], horizon=one, **asked) for one in (False, True))
    assert plain.num_hvps == 0
    assert plan.num_hvps == 2 * SEEDS * len(LOGGED)
    assert plan.num_gradients == plain.num_gradients
    assert "gradients and 20 Hessian products, " in plan.summary()
    assert "Hessian" not in plain.summary()
    # A step and a loss each.
    assert plan.result_bytes - plain.result_bytes == 16 * plan.num_hvps


def test_what_does_not_ask_for_it_keeps_its_key() -> None:
    """The configuration does not know of a horizon where there is none."""
    task = classifier()
    asked = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    plain, plan = (plan_replay(task, ["muon"], horizon=one, **asked) for one in (False, True))
    assert plain.fingerprint != plan.fingerprint
    assert plain.fingerprint == plan_replay(task, ["muon"], **asked).fingerprint
    assert sorted(ReplayRequest(landscape=False).config) == [
        *("ablations", "bands", "curvature_probes", "hyperparameters", "lr", "optimizers", "ramp", "rule", "seed"),
        *("seeds", "state", "steps", "tolerance", "warm_batches"),
    ]
    assert ReplayRequest(horizon=True).config == {**ReplayRequest().config, "horizon": True}


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        return gradient * (1.0 - inputs.tanh() ** 2)


def with_criterion(change: Callable[[Tensor], Tensor]) -> tuple[Task, Any]:
    """A task whose loss has a part more, and a spectrum of it as it was before: at θ₀ that part is zero."""
    task = classifier()
    spectrum, whole = spectrum_of(task), task.criterion

    def more(outputs: Tensor, batch: Any) -> tuple[Tensor, int]:
        loss, count = whole(outputs, batch)
        return loss + change(0.0 * outputs).sum(), count

    task.criterion = more
    return task, spectrum


def test_a_model_that_cannot_be_differentiated_twice_is_refused_before_anything_is_replayed() -> None:
    task, spectrum = with_criterion(_Once.apply)
    asked = {"spectrum": spectrum, "lr": 0.01, **ASKED}
    plan_replay(task, ["muon"], **asked)
    with pytest.raises(NumericsError, match="expected a model that can be differentiated twice, got _Once") as error:
        plan_replay(task, ["muon"], horizon=True, **asked)
    assert error.value.hint == "replay without --horizon"


def test_a_product_that_is_not_finite_is_refused() -> None:
    """|z|^1.5 has a gradient at 0, and no second derivative."""
    task, spectrum = with_criterion(lambda zero: zero.abs() ** 1.5)
    with pytest.raises(NumericsError, match="expected a finite Hessian product at the start, got nan") as error:
        replay(task, ["sgd"], spectrum=spectrum, lr=0.01, horizon=True, **ASKED)
    assert error.value.hint == "replay without --horizon"


def test_held_out_losses_are_those_predicted() -> None:
    """Not those of the eigenvectors' batches, which differ."""
    task = classifier()
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), lr=1e-3, horizon=True, **ASKED)
    for run in found.runs:
        # The way is short: the second order is all there is.
        held_out, same = (losses[LOGGED] - losses[0] for losses in (run.losses, run.same_batch_losses))
        predicted = run.predicted_losses - run.losses[0]
        assert np.abs(predicted - held_out).max() < 0.05 * np.abs(predicted - same).max()

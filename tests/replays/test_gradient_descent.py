"""Gradient descent on ½θᵀHθ: everything a replay reports is known in closed form.

Along an eigenvector with curvature λ the coordinate after t steps is (1 − ηλ)ᵗc₀, the gradient λ times that, and the
loss change of all steps ½λc₀²((1 − ηλ)^2t − 1). All in float64, on a dense H; but eigenvectors are kept in float32,
which leaves 1e-7 of the whole gradient (about 3) in every component.
"""

import numpy as np
import pytest
import torch

from lite_probe.replays import plan_replay, replay
from lite_probe.results.replay import Replay, ReplayRun
from lite_probe.task import Task
from tests.oracles import matrix_with
from tests.replays.conftest import powers, quadratic_task, spectrum_of

EIGENVALUES = [4.0, 2.0, 1.0, 0.25, 0.1, 0.02, 0.005]
LR, STEPS = 0.4, 12
ROUNDED = 1e-6  # what float32 eigenvectors leave, absolute and relative


@pytest.fixture(scope="module")
def replayed() -> tuple[Replay, Task, np.ndarray, np.ndarray]:
    matrix = matrix_with(EIGENVALUES, seed=5)
    start = torch.linspace(1.0, -0.7, 7, dtype=torch.float64)
    task = quadratic_task(matrix, start)
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), steps=STEPS, seeds=2, lr=LR, warm_batches=4)
    values, vectors = np.linalg.eigh(matrix.numpy())
    order = np.argsort(-values)[:3]
    return found, task, values[order], vectors[:, order].T @ start.numpy()


def only(found: Replay) -> ReplayRun:
    return found.runs_of("sgd")[0]


def test_coordinates_shrink_by_one_minus_eta_lambda(replayed: tuple[Replay, Task, np.ndarray, np.ndarray]) -> None:
    found, _, values, start = replayed
    expected = values * start * powers(1.0 - LR * values, STEPS - 1)
    np.testing.assert_allclose(np.abs(only(found).sharp_gradients), np.abs(expected), rtol=ROUNDED, atol=ROUNDED)


def test_progress_along_an_eigenvector_is_exact(replayed: tuple[Replay, Task, np.ndarray, np.ndarray]) -> None:
    found, _, values, start = replayed
    expected = 0.5 * values * start**2 * (1.0 - (1.0 - LR * values) ** (2 * STEPS))
    progress = found.eigenvector_progress("sgd")
    assert progress is not None
    np.testing.assert_allclose(progress[0], expected, rtol=ROUNDED)
    assert progress[1].tolist() == [0.0, 0.0, 0.0]  # the batches do not matter, so neither do seeds


def test_the_sum_over_directions_is_the_loss_change(replayed: tuple[Replay, Task, np.ndarray, np.ndarray]) -> None:
    found, _, _, _ = replayed
    run = only(found)
    # Simpson's rule is exact on a quadratic: what is left are roundings.
    assert run.closure_error < 1e-12 * abs(run.loss_change)
    total = run.sharp_allocations.sum() + run.flat_allocations.sum()
    assert total == pytest.approx(run.loss_change, rel=1e-12)
    assert run.band_allocations.sum() == pytest.approx(run.loss_change, rel=1e-12)
    assert run.gradients_used.tolist() == [2] * STEPS


def test_effective_learning_rate_exponent_and_oscillation(
    replayed: tuple[Replay, Task, np.ndarray, np.ndarray],
) -> None:
    found, _, values, _ = replayed
    rates, oscillation = found.effective_lrs("sgd"), found.oscillation("sgd")
    exponent = found.exponent("sgd")
    assert rates is not None
    assert oscillation is not None
    assert exponent is not None
    np.testing.assert_allclose(rates[0], LR, rtol=ROUNDED)
    assert abs(exponent.value) < ROUNDED
    factors = 1.0 - LR * values
    moves = factors[None, :] ** np.arange(STEPS)[:, None]
    np.testing.assert_allclose(oscillation[0], 1 - np.abs(moves.sum(0)) / np.abs(moves).sum(0), atol=ROUNDED)
    assert oscillation[0][0] > 0.3  # 1 − ηλ₁ = −0.6: to and fro
    assert oscillation[0][2] < ROUNDED  # 1 − ηλ₃ = 0.6: straight


def test_curvature_along_the_update_is_that_of_the_matrix(
    replayed: tuple[Replay, Task, np.ndarray, np.ndarray],
) -> None:
    found, task, _, _ = replayed
    matrix = task.criterion.matrix.numpy()  # type: ignore[attr-defined]
    theta = task.model.flat.detach().numpy()  # type: ignore[union-attr]
    run = only(found)
    for step in range(STEPS):
        update = -LR * matrix @ theta
        assert run.curvatures[step] == pytest.approx(update @ matrix @ update, rel=1e-9)
        assert run.directional_sharpness[step] == pytest.approx(update @ matrix @ update / (update @ update), rel=1e-9)
        assert run.predicted_changes[step] == pytest.approx(run.losses[step + 1] - run.losses[step], rel=1e-9)
        theta = theta + update


def test_the_linear_theory_is_exact(replayed: tuple[Replay, Task, np.ndarray, np.ndarray]) -> None:
    found, _, values, _ = replayed
    theory, measured = found.theory["sgd"], found.decay_rates("sgd")
    assert measured is not None
    np.testing.assert_allclose(theory.effective_lrs, LR, rtol=1e-6)
    np.testing.assert_allclose(theory.rates, np.abs(1.0 - LR * values), rtol=1e-6)
    np.testing.assert_allclose(measured[0], theory.rates, rtol=1e-3)  # the last gradients are down to the rounding


def test_the_trapezoid_rule_is_exact_here_too_and_takes_a_gradient_less() -> None:
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), torch.ones(7, dtype=torch.float64))
    arguments = {"spectrum": spectrum_of(task), "steps": 4, "seeds": 1, "lr": LR, "warm_batches": 4}
    found = replay(task, ["sgd"], rule="trapezoid", **arguments)  # type: ignore[arg-type]
    run = only(found)
    assert run.closure_error < 1e-12 * abs(run.loss_change)
    assert run.gradients_used.tolist() == [1] * 4
    plan = plan_replay(task, ["sgd"], rule="trapezoid", **arguments)  # type: ignore[arg-type]
    # Bands and optimizer are warmed on 4 batches each; every step takes a training and an evaluation gradient.
    assert plan.num_gradients == 2 * 4 + 4 * 2


def test_a_step_beyond_two_over_lambda_diverges_along_the_sharpest_direction_alone() -> None:
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), torch.ones(7, dtype=torch.float64))
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), steps=8, seeds=1, lr=0.6, warm_batches=4)
    progress = found.eigenvector_progress("sgd")
    assert progress is not None
    assert progress[0][0] < 0.0 < progress[0][1]  # 0.6 · 4 > 2 > 0.6 · 2
    assert found.theory["sgd"].rates[0] == pytest.approx(1.4, rel=1e-6)

"""Gradient descent on ½θᵀHθ: everything a replay reports is known in closed form.

Along an eigenvector with curvature λ the coordinate after t steps is (1 − ηλ)ᵗc₀, the gradient λ times that, and the
loss change of all steps ½λc₀²((1 − ηλ)^2t − 1). All in float64, on a dense H.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.measurements.replay import replay
from lite_probe.replays.segments import deal_segments
from lite_probe.results.replay import Replay, ReplayRun
from lite_probe.subspaces import Subspace
from lite_probe.task import Task
from tests.oracles import matrix_with
from tests.plans import plan_replay
from tests.replays.conftest import powers, quadratic_task, spectrum_of

EIGENVALUES = [4.0, 2.0, 1.0, 0.25, 0.1, 0.02, 0.005]
LR, STEPS = 0.4, 12
START = torch.linspace(1.0, -0.7, 7, dtype=torch.float64)

# Spectra keep eigenvectors in float32, which leaves 1e-7 of the whole gradient (about 3) in every component. With
# eigenvectors in float64 only roundings are left: a dozen steps of a dozen terms each, 144 · 2e-16 of the largest term.
# Coordinates shrink to 0.6^12 = 2e-3 of what they were, so that relative to their last values this is 2e-11.
TOLERANCES = {"float32": 1e-6, "float64": 2e-11}

Known = tuple[Replay, Task, np.ndarray[Any, Any], np.ndarray[Any, Any], float]


def exact_subspace(matrix: Tensor, size: int = 3) -> Subspace:
    """The leading eigenvectors of a matrix, in float64."""
    values, vectors = np.linalg.eigh(matrix.numpy())
    order = np.argsort(-values)[:size]
    return Subspace(
        torch.from_numpy(np.ascontiguousarray(vectors[:, order].T)),
        eigenvalues=values[order],
        residual_norms=np.zeros(size),
    )


@pytest.fixture(scope="module", params=TOLERANCES)
def replayed(request: pytest.FixtureRequest) -> Known:
    """A replay, its task, three eigenvalues, the start's coordinates along their eigenvectors, and a tolerance."""
    matrix = matrix_with(EIGENVALUES, seed=5)
    task = quadratic_task(matrix, START)
    exact = exact_subspace(matrix)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "float64":
            patch.setattr(Subspace, "of_spectrum", lambda *_, **__: exact)
        found = replay(task, ["sgd"], spectrum=spectrum_of(task), steps=STEPS, seeds=2, lr=LR, ramp=0, warm_batches=4)
    start = exact.coefficients(START.unsqueeze(0))[:, 0].numpy()
    return found, task, exact.eigenvalues, start, TOLERANCES[request.param]


def only(found: Replay) -> ReplayRun:
    return found.runs_of("sgd")[0]


def test_coordinates_shrink_by_one_minus_eta_lambda(replayed: Known) -> None:
    found, _, values, start, tolerance = replayed
    expected = values * start * powers(1.0 - LR * values, STEPS - 1)
    np.testing.assert_allclose(np.abs(only(found).sharp_gradients), np.abs(expected), rtol=tolerance, atol=tolerance)


def test_progress_along_an_eigenvector_is_exact(replayed: Known) -> None:
    found, _, values, start, tolerance = replayed
    expected = 0.5 * values * start**2 * (1.0 - (1.0 - LR * values) ** (2 * STEPS))
    progress = found.eigenvector_progress("sgd")
    assert progress is not None
    np.testing.assert_allclose(progress[0], expected, rtol=tolerance)
    assert progress[1] is not None
    assert progress[1].tolist() == [0.0, 0.0, 0.0]  # the batches do not matter, so neither do seeds


def test_the_sum_over_directions_is_the_loss_change(replayed: Known) -> None:
    found, *_ = replayed
    run = only(found)
    # Simpson's rule is exact on a quadratic: what is left are roundings.
    assert run.closure_error < 1e-12 * abs(run.loss_change)
    total = run.sharp_allocations.sum() + run.flat_allocations.sum()
    assert total == pytest.approx(run.loss_change, rel=1e-12)
    assert run.band_allocations.sum() == pytest.approx(run.loss_change, rel=1e-12)
    assert run.gradients_used.tolist() == [2] * STEPS


def test_effective_learning_rate_exponent_and_oscillation(
    replayed: Known,
) -> None:
    found, _, values, _, tolerance = replayed
    rates, oscillation = found.effective_lrs("sgd"), found.oscillation("sgd")
    exponent = found.exponent("sgd")
    assert rates is not None
    assert oscillation is not None
    assert exponent is not None
    np.testing.assert_allclose(rates[0], LR, rtol=tolerance)
    assert abs(exponent.value) < tolerance
    factors = 1.0 - LR * values
    moves = factors[None, :] ** np.arange(STEPS)[:, None]
    np.testing.assert_allclose(oscillation[0], 1 - np.abs(moves.sum(0)) / np.abs(moves).sum(0), atol=tolerance)
    assert oscillation[0][0] > 0.3  # 1 − ηλ₁ = −0.6: to and fro
    assert oscillation[0][2] < tolerance  # 1 − ηλ₃ = 0.6: straight


def test_curvature_along_the_update_is_that_of_the_matrix(
    replayed: Known,
) -> None:
    found, task, *_ = replayed
    matrix = task.criterion.matrix.numpy()  # type: ignore[attr-defined]
    theta = task.model.flat.detach().numpy()  # type: ignore[union-attr]
    run = only(found)
    for step in range(STEPS):
        update = -LR * matrix @ theta
        assert run.curvatures[step] == pytest.approx(update @ matrix @ update, rel=1e-9)
        assert run.directional_sharpness[step] == pytest.approx(update @ matrix @ update / (update @ update), rel=1e-9)
        assert run.predicted_changes[step] == pytest.approx(run.losses[step + 1] - run.losses[step], rel=1e-9)
        theta = theta + update


def test_the_directional_edge_ratio_is_eta_times_the_gradient_s_rayleigh_quotient(replayed: Known) -> None:
    """dᵀHd/(−g·d) = η gᵀHg/gᵀg: Simpson's rule has the slopes along a step, which are linear there, exactly."""
    found, task, *_ = replayed
    matrix = task.criterion.matrix.numpy()  # type: ignore[attr-defined]
    theta, run, sums = START.numpy(), only(found), np.zeros(2)
    for step in range(STEPS):
        gradient = matrix @ theta
        bend = LR * gradient @ matrix @ gradient
        ratio = bend / (gradient @ gradient)
        assert run.directional_edge_ratios[step] == pytest.approx(ratio, rel=1e-9)
        sums += LR * bend, LR * gradient @ gradient
        theta = theta - LR * gradient
    whole = found.directional_edge_ratio("sgd")
    assert whole is not None
    assert whole.value == pytest.approx(sums[0] / sums[1], rel=1e-9)
    curve = found.directional_edge_curve("sgd")
    assert curve is not None
    np.testing.assert_allclose(curve, run.directional_edge_ratios, rtol=1e-12)


def test_the_linear_theory_is_exact(replayed: Known) -> None:
    found, _, values, _, tolerance = replayed
    theory, measured = found.theory["sgd"], found.decay_rates("sgd")
    assert measured is not None
    np.testing.assert_allclose(theory.effective_lrs, LR, rtol=tolerance)
    np.testing.assert_allclose(theory.rates, np.abs(1.0 - LR * values), rtol=tolerance)
    # The second coordinate falls to 0.2^11 = 2e-8 of itself: what is left of other ones there is relative to that.
    np.testing.assert_allclose(measured[0], theory.rates, rtol=max(1e-8, 1e3 * tolerance))


def test_the_trapezoid_rule_is_exact_here_too_and_takes_a_gradient_less() -> None:
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), torch.ones(7, dtype=torch.float64))
    asked = {"steps": 4, "seeds": 1, "lr": LR, "ramp": 0, "warm_batches": 4, "landscape": False}
    arguments = {"spectrum": spectrum_of(task), **asked}
    found = replay(task, ["sgd"], rule="trapezoid", **arguments)  # type: ignore[arg-type]
    run = only(found)
    assert run.closure_error < 1e-12 * abs(run.loss_change)
    assert run.gradients_used.tolist() == [1] * 4
    plan = plan_replay(task, ["sgd"], rule="trapezoid", **arguments)  # type: ignore[arg-type]
    # Bands and optimizer are warmed on 4 batches each; every step takes a training and an evaluation gradient.
    assert plan.num_gradients == 2 * 4 + 4 * 2


def test_a_step_beyond_two_over_lambda_diverges_along_the_sharpest_direction_alone() -> None:
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), torch.ones(7, dtype=torch.float64))
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), steps=8, seeds=1, lr=0.6, ramp=0, warm_batches=4)
    progress = found.eigenvector_progress("sgd")
    assert progress is not None
    assert progress[0][0] < 0.0 < progress[0][1]  # 0.6 · 4 > 2 > 0.6 · 2
    assert found.theory["sgd"].rates[0] == pytest.approx(1.4, rel=1e-6)
    # Once that direction has most of the gradient a step is past the edge: the ratio is above 2 and the loss rises.
    run = only(found)
    past = run.directional_edge_ratios > 2.0
    assert past.tolist() == (np.diff(run.losses) > 0.0).tolist()
    assert found.steps_past_edge("sgd") == past.sum() > 0
    assert not past.all()


def test_ablations_train_in_their_subspace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharp coordinates shrink and flat ones stay, or the other way round; float64 as above."""
    matrix = matrix_with(EIGENVALUES, seed=5)
    task = quadratic_task(matrix, START)
    monkeypatch.setattr(Subspace, "of_spectrum", lambda *_, **__: exact_subspace(matrix))
    found = replay(
        task, ["sgd"], spectrum=spectrum_of(task), steps=STEPS, seeds=1, lr=LR, ramp=0, warm_batches=4, ablations=True
    )
    every = exact_subspace(matrix, 7)
    values, start = every.eigenvalues, every.coefficients(START.unsqueeze(0))[:, 0].numpy()
    still = 0.5 * values * start**2
    moving = still * powers(1.0 - LR * values, STEPS) ** 2
    for ablation, moves in (
        ("none", [True] * 7),
        ("dominant", [True] * 3 + [False] * 4),
        ("bulk", [False] * 3 + [True] * 4),
    ):
        losses = np.where(moves, moving, still).sum(axis=1)
        np.testing.assert_allclose(found.runs_of("sgd", ablation)[0].losses, losses, rtol=2e-11)


def test_a_sweep_finds_the_rate_that_the_closed_form_does() -> None:
    """The best of twelve steps is between 2/λ₁ = ½ and what the small curvatures would like: far above the start."""
    matrix = matrix_with(EIGENVALUES, seed=5)
    task = quadratic_task(matrix, START)
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), steps=STEPS, seeds=1, ramp=0, warm_batches=4)
    sweep = found.sweeps["sgd"]
    every = exact_subspace(matrix, 7)
    values, start = every.eigenvalues, every.coefficients(START.unsqueeze(0))[:, 0].numpy()
    after = [float((0.5 * values * start**2 * (1.0 - lr * values) ** (2 * STEPS)).sum()) for lr in sweep.lrs]
    np.testing.assert_allclose(sweep.losses, after, rtol=2e-11)
    assert sweep.chosen == sweep.lrs[int(np.argmin(after))] == 0.25
    assert sweep.is_inside
    assert sweep.lrs.tolist() == [2.0**power for power in range(-9, 0)]
    assert found.recipes["sgd"].lr == 0.25
    assert found.recipes["sgd"].lr_source == "sweep"


def test_a_run_diverges_where_its_loss_overflows() -> None:
    """With η = 1e100 the largest coordinate is about (−4e100)ᵗ: its square is finite after one step, not after two."""
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), START)
    asked = {"spectrum": spectrum_of(task), "steps": 4, "seeds": 2, "ramp": 0, "warm_batches": 4, "ablations": True}
    found = replay(task, ["sgd", "adamw"], lr={"sgd": 1e100, "adamw": 1e-3}, **asked)  # type: ignore[arg-type]
    for ablation in ("none", "dominant", "bulk"):
        for run in found.diverged("sgd", ablation):
            assert run.diverged_at == run.num_steps == 1
            assert run.losses[1] > 1e190
            assert run.is_recorded == (ablation == "none")
        assert len(found.diverged("sgd", ablation)) == len(found.runs_of("adamw", ablation)) == 2
    messages = [note.message for note in found.notes if note.code == "diverged"]
    assert messages[0] == "sgd seed 0 diverged at step 1; the others went on."
    assert messages[1] == "sgd, dominant part only, seed 0 diverged at step 1; the others went on."
    assert len(messages) == 6


def test_noisy_batches_come_one_a_step_in_the_order_dealt() -> None:
    """Each batch adds its own slope; plain numpy makes the steps from the segments, losses before and after them."""
    matrix = matrix_with(EIGENVALUES, seed=5)
    slope = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
    task = quadratic_task(matrix, START, slope=slope)
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), steps=STEPS, seeds=3, lr=LR, ramp=0, warm_batches=4)
    dealt = deal_segments(task, steps=STEPS, seeds=3, warm_batches=4, seed=0)
    h, b = matrix.numpy(), slope.numpy()
    for run, segment in zip(found.runs_of("sgd"), dealt.segments, strict=True):
        theta = START.numpy()
        losses, train_losses = [0.5 * theta @ h @ theta], []
        for batch in segment.batches:
            noise = float(batch[:, 1].mean())
            train_losses.append(0.5 * theta @ h @ theta + noise * b @ theta)
            theta = theta - LR * (h @ theta + noise * b)
            losses.append(0.5 * theta @ h @ theta)
        np.testing.assert_allclose(run.losses, losses, rtol=2e-11)
        np.testing.assert_allclose(run.train_losses, train_losses, rtol=2e-11, atol=1e-13)
        assert run.batches_digest == segment.digest
    assert len({run.losses[-1] for run in found.runs}) == 3

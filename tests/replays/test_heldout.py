"""Losses and progress are those of held-out batches; those that the eigenvectors were measured on stand beside them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.errors import InputError, NumericsError
from lite_probe.measurements.replay import replay
from lite_probe.measurements.replay_session import ReplayStep
from lite_probe.replays import runner
from lite_probe.replays.segments import deal_segments, require_disjoint
from lite_probe.results.replay import Replay, ReplayRun
from lite_probe.results.store import load, save
from lite_probe.runtime import resumable
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests.oracles import matrix_with
from tests.plans import plan_replay
from tests.replays.conftest import points, quadratic_task, spectrum_of, with_training

pytestmark = pytest.mark.slow

EIGENVALUES = [4.0, 2.0, 1.0, 0.3, 0.1, 0.02, -0.1]
SLOPE = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
STEPS, SEEDS, WARM, LR = 6, 2, 4, 0.3
ASKED: dict[str, Any] = {"steps": STEPS, "seeds": SEEDS, "warm_batches": WARM, "landscape": False}
NOISE = 0.7


def quadratic(*, held_out: bool = True) -> Task:
    """½θᵀHθ where eigenvectors are measured, ½θᵀHθ + 0.7·bᵀθ on the held-out batch."""
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), torch.ones(7, dtype=torch.float64), slope=SLOPE)
    if held_out:
        task.heldout = [torch.tensor([[-3.0, NOISE], [-4.0, NOISE]], dtype=torch.float64)]
    return task


def classifier() -> Task:
    """A small network, with batches of every kind."""
    task = with_training("mlp", WARM + STEPS * (SEEDS + 1) + 2)
    task.train, task.heldout = task.train[2:], task.train[:2]
    return task


def figures(found: Replay) -> dict[str, Any]:
    """Everything measured, but for seconds."""
    return {
        f"{run.optimizer} {run.ablation} {run.seed} {one.name}": value.tobytes()
        for run in found.runs
        for one in fields(ReplayRun)
        if isinstance(value := getattr(run, one.name), np.ndarray)
    }


def test_losses_are_those_of_the_held_out_batches_and_others_stand_beside_them() -> None:
    task, alone = quadratic(), quadratic(held_out=False)
    spectrum = spectrum_of(task)
    found = replay(task, ["sgd"], spectrum=spectrum, lr=LR, **ASKED)
    before = replay(alone, ["sgd"], spectrum=spectrum, lr=LR, **ASKED)
    h, b, theta = task.criterion.matrix.numpy(), SLOPE.numpy(), np.ones(7)  # type: ignore[attr-defined]
    assert found.start_loss == pytest.approx(0.5 * theta @ h @ theta + NOISE * b @ theta, rel=1e-12)
    for run, other in zip(found.runs, before.runs, strict=True):
        # The batches that the eigenvectors were measured on have what they had when there were no others.
        assert run.same_batch_losses.tobytes() == other.losses.tobytes()
        assert run.same_batch_allocations.tobytes() == other.allocations.tobytes()
        assert run.same_batch_closure_errors.tobytes() == other.closure_errors.tobytes()
        assert run.same_batch_sharp_allocations.tobytes() == other.sharp_allocations.tobytes()
        assert run.same_batch_gradients_used.tolist() == [2] * STEPS
        assert run.sharp_updates.tobytes() == other.sharp_updates.tobytes()
        # The linear term adds 0.7·b to every gradient.
        along = np.array([SLOPE.numpy() @ _vector(task, spectrum, place) for place in range(3)])
        gradients = other.sharp_gradients + NOISE * along
        np.testing.assert_allclose(run.sharp_gradients, gradients, rtol=1e-9, atol=1e-12)
        parts = other.sharp_allocations + NOISE * along * run.sharp_updates
        np.testing.assert_allclose(run.sharp_allocations, parts, rtol=1e-9, atol=1e-12)
        assert run.closure_error < 1e-12
        assert run.allocations.sum() == pytest.approx(run.losses[-1] - run.losses[0], rel=1e-12)
    same = found.on_same_batches()
    assert same is not None
    for name in ("loss_change", "flat_progress", "sharp_progress"):
        assert getattr(same, name)("sgd") == getattr(before, name)("sgd") != getattr(found, name)("sgd")
    assert before.on_same_batches() is None
    assert not before.runs[0].same_batch_losses.size


def _vector(task: Task, spectrum: Any, place: int) -> Any:
    from lite_probe.subspaces import Subspace

    return Subspace.of_spectrum(spectrum, task).vector(place).numpy()


def test_a_note_says_where_there_are_none() -> None:
    for task, codes in ((quadratic(), 0), (quadratic(held_out=False), 1)):
        found = replay(task, ["sgd"], spectrum=spectrum_of(task), lr=LR, **ASKED)
        notes = [note.message for note in found.notes if note.code == "same-batches"]
        assert len(notes) == codes
        assert all(note.startswith("Progress is allotted on the batches that the eigenvectors were") for note in notes)


def test_they_are_in_fingerprint_and_provenance() -> None:
    task, alone = quadratic(), quadratic(held_out=False)
    spectrum = spectrum_of(task)
    found = replay(task, ["sgd"], spectrum=spectrum, lr=LR, **ASKED)
    assert found.provenance.data_split == "held-out"
    assert found.provenance.batches_digest == batches_digest(task.heldout)
    assert found.provenance.details["evaluation batches"] == batches_digest(task.evaluation)
    other = quadratic()
    other.heldout = [task.heldout[0] + 0.5]
    plans = [plan_replay(one, ["sgd"], spectrum=spectrum, lr=LR, **ASKED) for one in (task, alone, other)]
    assert len({plan.fingerprint for plan in plans}) == 3
    assert plans[0].fingerprint == found.fingerprint
    assert plans[0].start_loss == found.start_loss != plans[1].start_loss


@pytest.mark.parametrize("rule", ["simpson", "trapezoid"])
def test_the_plan_counts_what_they_cost(rule: Any) -> None:
    task, made = classifier(), list[int]()
    asked = {"spectrum": spectrum_of(task), "lr": 1e-4, "rule": rule, "tolerance": 0.99, **ASKED}
    asked["curvature_probes"] = 0
    plan = plan_replay(task, ["muon"], **asked)
    found = replay(task, ["muon"], **asked, on_progress=lambda done, *_: made.append(done))
    # Bands and optimizer are warmed; a step takes a gradient to train and those of the rule on either set of batches.
    gradients = 2 * WARM + SEEDS * STEPS * (1 + 2 * {"simpson": 2, "trapezoid": 1}[rule])
    assert made[-1] == plan.num_gradients == gradients
    task.heldout = ()
    alone = plan_replay(task, ["muon"], **asked)
    sharp = len(found.eigenvalues)
    # A loss, an allocation, a closure error and a number of gradients a step, and the parts along eigenvectors.
    assert plan.result_bytes - alone.result_bytes == 8 * SEEDS * STEPS * (4 + sharp)
    # Other processes of the machine move the peak that is measured, by less than it has.
    vector = found.num_parameters * 4
    assert plan.memory_bytes - alone.memory_bytes > 2 * vector - 2**30


@pytest.mark.parametrize("name", ["muon-lite", "soap-lite"])
def test_watching_moves_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = classifier()
    layout = ParameterLayout(list(task.model.named_parameters()))
    ends: list[Tensor] = []
    watched, plain = runner.Runner.run, runner.Runner.trial

    def run(self: runner.Runner, *args: Any, watching: Any, **rest: Any) -> ReplayRun:
        found = watched(self, *args, watching=watching, **rest)
        ends.append(layout.read())
        unwatched = watched(self, *args, watching=None, **rest)
        ends.append(layout.read())
        assert unwatched.losses.shape == unwatched.same_batch_losses.shape == (STEPS + 1,)
        plain(self, *args)
        ends.append(layout.read())
        return found

    monkeypatch.setattr(runner.Runner, "run", run)
    replay(task, [name], spectrum=spectrum_of(task), lr=0.01, **ASKED)
    for watched_end, *others in (ends[:3], ends[3:]):
        assert all(torch.equal(watched_end, other) for other in others)


def ablated(task: Task) -> dict[str, Any]:
    return {"optimizers": ["soap"], "spectrum": spectrum_of(task), "lr": 0.01, "ablations": True, **ASKED}


@pytest.fixture(scope="module")
def in_one_go() -> Replay:
    task = classifier()
    return replay(task, **ablated(task))


@pytest.mark.parametrize("where", [("none", 2), ("none", 5), ("bulk", 3)])
def test_a_stopped_one_goes_on_with_the_same_bits(
    where: tuple[str, int], in_one_go: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "_COST_FACTOR", 0.0)
    task = classifier()
    asked = ablated(task)

    def stop(step: ReplayStep) -> None:
        if (step.phase, step.seed, step.ablation, step.step) == ("replay", 1, *where):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(task, **asked, state_directory=tmp_path, on_step=stop)
    again = replay(task, **asked, state_directory=tmp_path)
    assert figures(again) == figures(in_one_go)
    assert all(len(run.same_batch_losses) == STEPS + 1 for run in again.runs)
    save(again, tmp_path)
    assert figures(load(tmp_path, "replay")) == figures(again)


def test_a_sweep_is_of_the_held_out_batches_and_knows_where_their_loss_first_rises() -> None:
    """Plain numpy makes every trial: held-out losses after each step, on the ramp and behind it."""
    task = quadratic()
    sweep = replay(task, ["sgd"], spectrum=spectrum_of(task), ramp=3, **ASKED).sweeps["sgd"]
    batches = deal_segments(task, steps=STEPS, seeds=SEEDS, warm_batches=WARM, seed=0).sweep.batches
    h, b = task.criterion.matrix.numpy(), SLOPE.numpy()  # type: ignore[attr-defined]
    for lr, end, rises in zip(sweep.lrs, sweep.losses, sweep.rises, strict=True):
        theta, losses = np.ones(7), []
        for step in range(STEPS + 1):
            losses.append(0.5 * theta @ h @ theta + NOISE * b @ theta)
            if step < STEPS:
                theta = theta - lr * min(1.0, (step + 1) / 3) * (h @ theta + float(batches[step][:, 1].mean()) * b)
        assert end == pytest.approx(losses[-1], rel=1e-11)
        assert rises == (max(losses[1:6]) > losses[0])
    assert sweep.rises.any()
    assert sweep.best > sweep.chosen == sweep.lrs[~sweep.rises].max()


def test_the_trial_knows_a_loss_that_rises_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best is the largest of a grid in which 2⁻⁶ and above rise in the third step, and end lower."""
    trials: dict[float, int] = {}

    def evaluated(task: Task, split: Any = "evaluation") -> float:
        lr, step = current[0].lr, current[1]
        trials[lr] = max(trials.get(lr, 0), step)
        if step == 2 and lr >= 2.0**-6:
            return 1e6
        return 1.0 - lr if lr < 2.0**-5 else 2.0

    current: list[Any] = [None, 0]
    step_of = runner.Runner._step

    def step(self: runner.Runner, optimizer: Any, request: Any, number: int) -> None:
        current[:] = [request, number]
        step_of(self, optimizer, request, number)

    monkeypatch.setattr(runner.Runner, "_step", step)
    monkeypatch.setattr(runner, "evaluate_loss", evaluated)
    task = quadratic(held_out=False)
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), **ASKED)
    sweep = found.sweeps["sgd"]
    assert (sweep.best, sweep.chosen, found.recipes["sgd"].lr) == (2.0**-6, 2.0**-7, 2.0**-7)
    (note,) = [note.message for note in found.notes if note.code == "sweep-rises"]
    assert note == (
        "At the best learning rate that was tried for sgd, 0.016, the loss first rises above the start's: it is "
        "replayed at 0.0078, the largest at which it does not."
    )
    assert set(trials.values()) == {STEPS - 1}


def test_samples_held_out_are_nobody_else_s() -> None:
    task = classifier()
    require_disjoint(task)
    task.heldout = [task.train[3]]
    with pytest.raises(InputError, match="got sample 0 of held-out batch 0, which is sample 0 of training batch 3"):
        require_disjoint(task)
    task.heldout = [points(40, torch.float32)[39], task.evaluation[0]]
    task.train = task.train[5:]
    with pytest.raises(
        InputError, match=r"expected held-out samples that are no .* batch 1, which is sample 0 of evaluation batch 0"
    ):
        require_disjoint(task)


def test_a_loss_that_is_not_finite_names_the_held_out_batch() -> None:
    task = quadratic()
    spectrum = spectrum_of(task)
    task.heldout = [torch.full((2, 2), torch.inf, dtype=torch.float64)]
    with pytest.raises(NumericsError, match=r"got (inf|nan) on held-out batch 0"):
        plan_replay(task, ["sgd"], spectrum=spectrum, lr=LR, **ASKED)

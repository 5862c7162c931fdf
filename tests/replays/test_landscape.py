"""The loss around the start of a replay: against closed forms, without a trace, repeatable and resumable."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from lite_probe.measurements.replay import replay
from lite_probe.measurements.replay_landscape import LandscapeSurvey
from lite_probe.measurements.replay_session import ReplaySession, splits_of
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.optim import LiteOptimizer
from lite_probe.replays.allocation import evaluate
from lite_probe.replays.landscape import LINE_POINTS, PLANE_POINTS, SEARCHED
from lite_probe.replays.recipes import Prepared
from lite_probe.replays.runner import Runner, RunRequest
from lite_probe.replays.segments import Segment
from lite_probe.results.landscape import Landscape, LossLine, LossPlane, PlanePath
from lite_probe.results.replay import Replay
from lite_probe.results.store import load, save
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests.oracles import matrix_with
from tests.plans import plan_replay
from tests.replays.conftest import HalfForm, figures, quadratic_task, spectrum_of, with_bad_gradient, with_training
from tests.reports.fixtures import make_replay

pytestmark = pytest.mark.slow

EIGENVALUES = [4.0, 2.0, 1.0, 0.3, 0.1, 0.02, -0.1]
SLOPE = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
START = torch.linspace(1.0, -0.7, 7, dtype=torch.float64)
STEPS, SEEDS, WARM, LR = 6, 2, 3, 0.1
ASKED: dict[str, Any] = {"steps": STEPS, "seeds": SEEDS, "warm_batches": WARM, "ramp": 2, "curvature_probes": 0}


def quadratic() -> Task:
    """Noisy steps on a saddle; the held-out loss has a slope of its own."""
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), START, slope=SLOPE)
    task.heldout = [torch.tensor([[-3.0, 0.7], [-4.0, 0.7]], dtype=torch.float64)]
    return task


def classifier() -> Task:
    task = with_training("mlp", WARM + STEPS * (SEEDS + 1) + 2)
    task.train, task.heldout = task.train[2:], task.train[:2]
    return task


def around(found: Replay) -> Landscape:
    assert found.landscape is not None
    return found.landscape


def plane_of(found: Replay) -> LossPlane:
    plane = around(found).plane
    assert plane is not None
    return plane


def loss_of(theta: NDArray[np.float64]) -> float:
    """The held-out loss."""
    h = matrix_with(EIGENVALUES, seed=5).numpy()
    return float(0.5 * theta @ h @ theta + 0.7 * SLOPE.numpy() @ theta)


def test_no_optimizer_keeps_the_state_that_it_has_run_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its runs start from is kept for every one; what the last run made of it would come on top."""
    held, plane, task = [], LandscapeSurvey._plane, classifier()

    def watched(self: LandscapeSurvey, paths: Sequence[PlanePath]) -> LossPlane:
        held.extend(len(self.prepared(name).optimizer.state) for name in self.asked)
        return plane(self, paths)

    monkeypatch.setattr(LandscapeSurvey, "_plane", watched)
    plan = plan_replay(task, ["adamw", "muon"], spectrum=spectrum_of(task), lr=1e-3, **ASKED)
    assert plan.keeps_states
    plan.run(task)
    assert held == [0, 0]


def test_no_two_optimizers_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where states are not kept: the one that makes the plane is let go of before another is warmed."""
    made, prepare, phases = list[Any](), ReplaySession._prepare, list[str]()

    def watched(self: ReplaySession, name: str) -> Prepared:
        phases.append(self._phase)
        if self._phase == "landscape":
            gc.collect()
            assert not [one for one in made if one() is not None]
        found = prepare(self, name)
        made.append(weakref.ref(found.optimizer))
        return found

    monkeypatch.setattr(ReplaySession, "_prepare", watched)
    task = classifier()
    plan = plan_replay(task, ["adamw", "muon"], spectrum=spectrum_of(task), lr=1e-3, **ASKED)
    replace(plan, keeps_states=False).run(task)
    assert phases.count("landscape") == 3


@pytest.fixture(scope="module")
def found() -> Replay:
    task = quadratic()
    return replay(task, ["sgd", "adamw"], spectrum=spectrum_of(task), lr=LR, **ASKED)


def test_lines_of_a_quadratic_are_its_model(found: Replay) -> None:
    lines = around(found).lines
    assert [line.name for line in lines] == [
        *("eigenvector 1 of 3", "eigenvector 2 of 3", "random flat direction", "update of sgd", "update of adamw"),
    ]
    for line in lines:
        assert len(line.distances) == LINE_POINTS
        # Sums of some fifty terms of the losses' size.
        np.testing.assert_allclose(line.changes, line.modelled_changes, atol=1e-14 * np.abs(line.losses).max() * 50)
        assert line.holds_throughout
        assert line.holds_to == line.distances[-1]
        assert line.start_loss == pytest.approx(loss_of(START.numpy()), rel=1e-14)
    sharp, median, flat, *updates = lines
    assert (sharp.curvature, median.curvature) == (pytest.approx(4.0, rel=1e-6), pytest.approx(2.0, rel=1e-6))
    assert -0.1 <= flat.curvature <= 0.3
    for line in (sharp, median, flat):
        np.testing.assert_allclose(line.distances, -line.distances[::-1], rtol=1e-12)
        assert line.unit_length == pytest.approx(1.0, rel=1e-6)
    for line in updates:
        assert 1.0 in line.distances
        assert line.distances[0] == -0.25 * line.distances[-1]
        assert line.distances[-1] >= 2.0


def test_an_update_is_the_first_batchs_at_the_full_rate(found: Replay) -> None:
    """Gradient descent's: −η(Hθ₀ + s·b), s the mean of the first batch's noise; at 1 the loss is where it ends."""
    (line,) = (line for line in around(found).lines if line.optimizer == "sgd")
    h, theta = matrix_with(EIGENVALUES, seed=5).numpy(), START.numpy()
    candidates = []
    for batch in quadratic().train:
        update = -LR * (h @ theta + float(batch[:, 1].mean()) * SLOPE.numpy())
        candidates.append((abs(np.linalg.norm(update) - line.unit_length), loss_of(theta + update)))
    apart, expected = min(candidates)
    assert apart < 1e-12
    assert line.losses[line.distances == 1.0][0] == pytest.approx(expected, rel=1e-12)


def test_the_plane_is_its_closed_form(found: Replay) -> None:
    plane = plane_of(found)
    assert plane.losses.shape == (PLANE_POINTS, PLANE_POINTS)
    assert not plane.is_missing.any()
    # In the plane a quadratic is one: six numbers explain all of it, and its curvature across is the eigenvalue.
    x, y = (one.ravel() for one in np.meshgrid(plane.x, plane.y))
    terms = np.stack([np.ones_like(x), x, y, 0.5 * x * x, x * y, 0.5 * y * y], axis=1)
    fit, *_ = np.linalg.lstsq(terms, plane.losses.ravel(), rcond=None)
    np.testing.assert_allclose(terms @ fit, plane.losses.ravel(), rtol=1e-11)
    sharp = around(found).lines[0]
    assert fit[0] == pytest.approx(sharp.start_loss, rel=1e-10)
    assert fit[1] == pytest.approx(sharp.slope, rel=1e-6)
    assert fit[3] == pytest.approx(4.0, rel=1e-6)
    assert abs(fit[4]) < 1e-4  # an eigenvector's image has no part off it, to the spectrum's tolerance
    assert -0.1 < fit[5] < 0.3


def test_paths_are_those_of_the_first_seed(found: Replay) -> None:
    plane, runs = plane_of(found), {run.optimizer: run for run in found.runs if run.seed == 0}
    progress = {name: -float(run.flat_allocations.sum()) for name, run in runs.items()}
    assert plane.optimizer == max(progress, key=progress.__getitem__)
    for path in plane.paths:
        run = runs[path.optimizer]
        np.testing.assert_array_equal(path.x, np.concatenate([[0.0], np.cumsum(run.sharp_updates[:, 0])]))
        np.testing.assert_array_equal(path.losses, run.losses)
        assert path.lengths[1] == pytest.approx(run.update_norms[0], rel=1e-12)
        assert (path.y[0], path.lengths[0]) == (0.0, 0.0)
        assert bool((path.x**2 + path.y**2 <= path.lengths**2 * (1.0 + 1e-9)).all())
        assert plane.x[0] < path.x.min() <= path.x.max() < plane.x[-1]
        assert plane.y[0] < path.y.min() <= path.y.max() < plane.y[-1]
    own = next(path for path in plane.paths if path.optimizer == plane.optimizer)
    # Its displacement is the sharp part and nothing but the flat axis.
    sharp = runs[plane.optimizer].sharp_updates.sum(axis=0)
    assert own.y[-1] == pytest.approx(np.sqrt(own.lengths[-1] ** 2 - (sharp**2).sum()), rel=1e-6)
    assert own.in_plane == pytest.approx((own.x[-1] ** 2 + own.y[-1] ** 2) / own.lengths[-1] ** 2, rel=1e-12)
    assert not [note for note in found.notes if note.code.startswith("landscape")]


def test_it_says_on_which_batches(found: Replay) -> None:
    landscape = around(found)
    assert (landscape.split, landscape.num_batches, landscape.seed) == ("held-out", 1, 0)
    task = quadratic()
    task.heldout = []
    alone = around(replay(task, ["sgd"], spectrum=spectrum_of(task), lr=LR, **ASKED))
    assert alone.split == "evaluation"
    assert alone.lines[0].slope != landscape.lines[0].slope


def test_the_same_seed_gives_the_same_bits_and_another_another_direction(found: Replay) -> None:
    task = quadratic()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": LR, **ASKED}
    again, other = (replay(task, ["sgd", "adamw"], seed=seed, **asked) for seed in (0, 1))
    assert figures(around(again)) == figures(around(found))
    assert around(other).lines[2].curvature != around(found).lines[2].curvature


def test_nothing_else_changes_and_no_trace_is_left() -> None:
    task = classifier()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    random = torch.get_rng_state()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    without = replay(task, ["muon", "soap"], landscape=False, **asked)
    found = replay(task, ["muon", "soap"], **asked)
    assert without.landscape is None
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    for one, other in zip(found.runs, without.runs, strict=True):
        assert figures(one) == figures(other)


def failing_after(label: str, error: type[BaseException]) -> Callable[..., None]:
    """Return a progress function that raises when this part of the landscape is at work."""

    def on_progress(done: int, total: int, told: str) -> None:
        if told == f"landscape · {label}":
            raise error

    return on_progress


@pytest.mark.parametrize("label", ["random flat direction", "update of soap", "path of muon", "plane"])
def test_parameters_come_back_when_it_is_stopped(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = classifier()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    with pytest.raises(RuntimeError):
        replay(task, ["muon", "soap"], on_progress=failing_after(label, RuntimeError), **asked)
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())


@pytest.fixture(scope="module")
def in_one_go() -> Replay:
    task = classifier()
    return replay(task, ["muon", "soap"], spectrum=spectrum_of(task), lr=0.01, **ASKED)


@pytest.mark.parametrize("label", ["eigenvector 1 of 3", "path of muon", "update of soap", "plane"])
def test_a_stopped_one_goes_on_with_the_same_bits(label: str, in_one_go: Replay, tmp_path: Path) -> None:
    task, whole = classifier(), in_one_go
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    with pytest.raises(KeyboardInterrupt):
        replay(
            task,
            ["muon", "soap"],
            state_directory=tmp_path,
            on_progress=failing_after(label, KeyboardInterrupt),
            **asked,
        )
    told = list[str]()
    again = replay(
        task, ["muon", "soap"], state_directory=tmp_path, on_progress=lambda *word: told.append(word[2]), **asked
    )
    for mine, theirs in zip(around(again).lines, around(whole).lines, strict=True):
        assert figures(mine) == figures(theirs)
    assert figures(plane_of(again)) == figures(plane_of(whole))
    assert ("landscape · eigenvector 1 of 3" in told) == (label == "eigenvector 1 of 3")
    assert ("landscape · update of muon" in told) == (label in ("eigenvector 1 of 3", "path of muon"))
    save(again, tmp_path)
    assert figures(load(tmp_path, "replay").landscape) == figures(around(again))


@pytest.mark.parametrize("keeps", [True, False])
def test_the_plan_counts_what_is_made(keeps: bool) -> None:
    """Optimizers whose states have no room are warmed again, to the same bits."""
    task, made = quadratic(), list[int]()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 1e-3, "tolerance": 0.99, **ASKED}
    plain = plan_replay(task, ["sgd", "adamw"], landscape=False, **asked)
    plan = plan_replay(task, ["sgd", "adamw"], **asked)
    assert plan.keeps_states
    assert plan.num_gradients == plain.num_gradients + 2 * (1 + STEPS) + STEPS
    assert (plain.num_hvps, plan.num_hvps) == (0, 5)
    lines = 5
    assert plan.result_bytes - plain.result_bytes == 8 * (
        2 * lines * LINE_POINTS + 2 * PLANE_POINTS**2 + 4 * 2 * (STEPS + 1)
    )
    assert f"gradients and {lines} Hessian products, " in plan.summary()
    found = replace(plan, keeps_states=keeps).run(task, on_progress=lambda done, *_: made.append(done))
    # Of the run that makes the plane's axis, its optimizer is warmed once more where it comes before itself.
    rewarmed = 0 if keeps else 3 * WARM
    assert made[-1] == plan.num_gradients + rewarmed
    landscape = around(found)
    assert landscape.num_gradients == 2 * (1 + STEPS) + STEPS
    assert landscape.num_hvps == plan.num_hvps
    # A search takes five losses beside the ends of a line, up or down, or finds its end at once.
    assert abs(landscape.num_losses - lines * (LINE_POINTS + SEARCHED) - PLANE_POINTS**2) <= lines * SEARCHED
    kept = replace(plan, keeps_states=True).run(task)
    assert figures(around(found)) == figures(around(kept))


def test_without_it_a_replay_keeps_its_key() -> None:
    task = classifier()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    plain, plan = (plan_replay(task, ["muon"], landscape=one, **asked) for one in (False, True))
    assert plain.fingerprint != plan.fingerprint
    assert plan.fingerprint == plan_replay(task, ["muon"], **asked).fingerprint
    assert "landscape" not in ReplayRequest(landscape=False).config
    assert ReplayRequest().config == {**ReplayRequest(landscape=False).config, "landscape": True}


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


def differentiable_once(task: Task) -> Task:
    """The same losses, without Hessian products."""
    whole = task.criterion

    def more(outputs: Tensor, batch: Any) -> tuple[Tensor, int]:
        loss, count = whole(outputs, batch)
        return loss + _Once.apply(0.0 * outputs).sum(), count

    return replace(task, criterion=more)


def test_a_model_that_cannot_be_differentiated_twice_has_its_curvatures_by_differences() -> None:
    task = classifier()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    expected = around(replay(task, ["muon"], **asked))
    task = differentiable_once(task)
    plan = plan_replay(task, ["muon"], **asked)
    assert plan.by_differences
    assert plan.num_hvps == 0
    found = plan.run(task)
    landscape = around(found)
    assert [note.code for note in found.notes].count("landscape-differences") == 1
    assert landscape.by_differences
    assert landscape.num_hvps == 0
    # Two of a product, and ten to choose the step.
    assert landscape.num_gradients == expected.num_gradients + 2 * 4 + 10
    for one, other in zip(landscape.lines, expected.lines, strict=True):
        scale = max(abs(other.curvature), 1e-2 * abs(expected.lines[0].curvature) * other.unit_length**2)
        assert abs(one.curvature - other.curvature) < 0.02 * scale


def test_the_step_of_differences_is_of_the_start_wherever_the_last_run_ended() -> None:
    """A run that is lost leaves weights of 1e20."""
    task = classifier()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), **ASKED, "ramp": 0}
    rates = {"muon": 0.01, "sgd": 1e20}
    expected, found = (around(replay(one, [*rates], lr=rates, **asked)) for one in (task, differentiable_once(task)))
    assert found.by_differences
    for one, other in zip(found.lines[:4], expected.lines[:4], strict=True):
        scale = max(abs(other.curvature), 1e-2 * abs(expected.lines[0].curvature) * other.unit_length**2)
        assert abs(one.curvature - other.curvature) < 0.02 * scale


def test_differences_that_were_stopped_go_on_with_the_same_bits(tmp_path: Path) -> None:
    """Whatever product is a process's first."""
    task = differentiable_once(classifier())
    asked: dict[str, Any] = {"spectrum": spectrum_of(classifier()), "lr": 0.01, **ASKED}
    whole = replay(task, ["muon"], **asked)
    stop = failing_after("update of muon", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        replay(task, ["muon"], state_directory=tmp_path, on_progress=stop, **asked)
    again = replay(task, ["muon"], state_directory=tmp_path, **asked)
    assert figures(around(again)) == figures(around(whole))


class Cliff(HalfForm):
    """Infinite where the first parameter is beyond a bound."""

    def __call__(self, outputs: Tensor, batch: Tensor) -> tuple[Tensor, int]:
        loss, count = super().__call__(outputs, batch)
        return (loss if abs(float(outputs[0].detach()) - 1.0) < 1.0 else loss * torch.inf), count


def test_losses_that_are_not_finite_are_cut_from_lines_and_missing_on_the_plane() -> None:
    task = quadratic_task(matrix_with(EIGENVALUES, seed=5), START)
    spectrum = spectrum_of(task)
    task.criterion = Cliff(task.criterion.matrix)  # type: ignore[attr-defined]
    found = replay(task, ["sgd"], spectrum=spectrum, lr=LR, **ASKED)
    landscape = around(found)
    assert any(line.is_cut for line in landscape.lines)
    for line in landscape.lines:
        assert np.isfinite(line.losses).all()
        assert len(line.losses) < LINE_POINTS if line.is_cut else len(line.losses) == LINE_POINTS
    plane = plane_of(found)
    assert (plane.losses[plane.is_missing] == 0.0).all()
    assert (plane.losses[~plane.is_missing] != 0.0).all()


def test_a_run_that_goes_another_way_the_second_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    task, follow = classifier(), Runner.follow

    def astray(self: Runner, *asked: Any) -> Iterator[Tensor]:
        return (1.1 * way for way in follow(self, *asked))

    monkeypatch.setattr(Runner, "follow", astray)
    found = replay(task, ["muon"], spectrum=spectrum_of(task), lr=0.01, **ASKED)
    (note,) = (note for note in found.notes if note.code == "landscape-path")
    assert note.message.startswith("A run of muon that was made again for the landscape went another way, ")


def test_runs_that_diverge_end_where_they_did() -> None:
    """With η = 1e100 the second step's loss overflows; adamw's run makes the plane, whose size is its own."""
    task = quadratic()
    rates = {"sgd": 1e100, "adamw": LR}
    found = replay(task, ["sgd", "adamw"], spectrum=spectrum_of(task), lr=rates, **{**ASKED, "ramp": 0})
    plane = plane_of(found)
    assert plane.optimizer == "adamw"
    lost, whole = plane.paths
    assert (lost.diverged_at, len(lost.x)) == (1, 2)
    assert whole.diverged_at is None
    assert plane.x[-1] < 10.0 < abs(lost.x[-1])
    small = classifier()
    nowhere = replay(small, ["sgd"], spectrum=spectrum_of(small), lr=1e30, **ASKED)
    assert [run.num_steps for run in nowhere.runs] == [0] * SEEDS
    assert around(nowhere).plane is None


@pytest.mark.parametrize("step", [0, STEPS - 1])
@pytest.mark.parametrize("defers", [False, True])
def test_a_bad_gradient_ends_its_own_run(step: int, defers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device is asked whether gradients are finite when the next step is made, too."""
    monkeypatch.setattr(LiteOptimizer, "_defers_checks", lambda self, device: defers)
    task = classifier()
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "lr": 0.01, **ASKED}
    segment = splits_of(task, ReplayRequest(optimizers=["sgd"], **asked)).segments[0]
    found = replay(with_bad_gradient(task, segment.batches[step]), ["sgd"], **asked)
    assert [run.diverged_at for run in found.runs] == [step, None]
    assert [line.optimizer for line in around(found).lines] == ["", "", "", *(["sgd"] if step else [])]


@pytest.mark.parametrize("is_finite", [True, False])
def test_an_update_along_which_nothing_is_finite_is_told(is_finite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are not, or the update itself."""
    task = classifier()
    if not is_finite:
        monkeypatch.setattr(Runner, "first_update", lambda self, *asked: None)
    found = replay(task, ["sgd"], spectrum=spectrum_of(task), lr=1e30 if is_finite else 1e-3, **ASKED)
    (note,) = (note for note in found.notes if note.code == "landscape-no-line")
    assert note.message.startswith("The loss along the update of sgd is not finite beside the start, or has ")
    assert not around(found).updates
    assert len(around(found).lines) == 3


class _Jump(torch.optim.SGD):
    """Goes as far as its rate says, along ones."""

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data += torch.tensor(group["lr"])


@pytest.mark.parametrize("lr", [0.5, 0.0, float("inf")])
def test_a_first_update_is_finite_and_some_or_none(lr: float) -> None:
    task = classifier()
    layout = ParameterLayout(list(task.model.named_parameters()))
    start, optimizer = layout.read(), _Jump(layout.parameters)
    runner = Runner(task, layout, start, evaluate(task, layout))
    request = RunRequest(optimizer="jump", lr=lr, seed=0, segment=Segment(task.train[:1], ""), ramp=5)
    update = runner.first_update(optimizer, optimizer.state_dict(), request)
    assert torch.equal(layout.read(), start)
    assert (update is not None) == (lr == 0.5)
    if update is not None:
        torch.testing.assert_close(update, torch.full_like(start, 0.5))


def test_a_run_whose_allocations_do_not_add_up_makes_no_plane() -> None:
    """The most flat progress is soap's; where it is not accounted for muon's is, and of two such the most again."""
    runs = {run.optimizer: run for run in make_replay(optimizers=("muon", "soap"), gains={"soap": 1e-3}, seeds=1).runs}
    lost = {name: replace(run, closure_errors=run.closure_errors + 1.0) for name, run in runs.items()}
    survey = LandscapeSurvey.__new__(LandscapeSurvey)
    for taken, expected in (
        (runs, "soap"),
        (runs | {"soap": lost["soap"]}, "muon"),
        (lost, "soap"),
        (runs | {"soap": replace(runs["soap"], diverged_at=20)}, "muon"),
    ):
        survey._runs = taken
        furthest = survey._furthest
        assert furthest is not None
        assert furthest.optimizer == expected


def line_of(changes: Callable[[NDArray[np.float64]], NDArray[np.float64]], **more: Any) -> LossLine:
    """A line from −2 to 2 with slope −1 and curvature 2."""
    distances = np.linspace(-2.0, 2.0, 41)
    values = {"name": "eigenvector 1 of 3", "kind": "eigenvector", "slope": -1.0, "curvature": 2.0, "noise": 1e-9}
    return LossLine(distances=distances, losses=3.0 + changes(distances), **(values | more))  # type: ignore[arg-type]


def test_how_far_a_model_holds_is_read_off_the_largest_change_so_far() -> None:
    """−s + s² and a cubic: ahead the largest change is 0.25 until s is 1.2, though at s = 1 there is none."""
    exact = line_of(lambda s: -s + s**2)
    assert (exact.holds_to, exact.holds_throughout) == (2.0, True)
    cubic = line_of(lambda s: -s + s**2 + 0.02 * s**3)
    # Ahead a tenth of 0.25 is 0.02s³ at s = 1.08; behind, s + s² outgrows ten times the cubic.
    assert cubic.holds_to == pytest.approx(1.08, abs=0.02)
    assert not cubic.holds_throughout
    assert line_of(lambda s: -s + s**2 + 0.02 * np.minimum(s, 0.0) ** 5).holds_to == pytest.approx(1.86, abs=0.05)
    assert cubic.bounds == (cubic.holds_to,)  # behind there is none
    assert exact.bounds == ()
    ahead = line_of(lambda s: -s + s**2 + 0.9 * np.minimum(s, 0.0) ** 4, kind="update", optimizer="muon")
    assert (ahead.holds_to, ahead.holds_throughout) == (2.0, True)
    assert line_of(lambda s: -s + s**2 + 1e-3, noise=1.0).holds_throughout


def test_shapes_are_checked() -> None:
    line = line_of(lambda s: s)
    with pytest.raises(ValueError, match="read-only"):
        line.losses[0] = 1.0
    with pytest.raises(ValueError, match="expected a loss per distance, got"):
        replace(line, losses=line.losses[1:])
    with pytest.raises(ValueError, match="expected ascending distances with 0 among them"):
        replace(line, distances=line.distances + 0.01)
    one = np.zeros(2)
    with pytest.raises(ValueError, match="expected coordinates, loss and length of every step"):
        PlanePath(optimizer="muon", x=one, y=one, losses=one, lengths=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected losses of shape \(3, 2\), got \(2, 3\)"):
        LossPlane(
            optimizer="muon", x=one, y=np.zeros(3), losses=np.zeros((2, 3)), is_missing=np.zeros((3, 2), bool), paths=()
        )
    assert PlanePath(optimizer="muon", x=one, y=one, losses=one, lengths=one).in_plane == 0.0

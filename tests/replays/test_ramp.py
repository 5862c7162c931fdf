"""The rate rises linearly over the first steps, of every optimizer, trial and ablation alike."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lite_probe.errors import UsageError
from lite_probe.measurements.replay import replay
from lite_probe.measurements.replay_session import ReplayStep
from lite_probe.replays import ramp_steps, runner
from lite_probe.replays.ramp import rate_at
from lite_probe.results.spectrum import Spectrum
from lite_probe.runtime import resumable
from lite_probe.task import Task
from tests.oracles import matrix_with
from tests.plans import plan_replay
from tests.replays.conftest import quadratic_task, spectrum_of

EIGENVALUES = [4.0, 2.0, 1.0, 0.3, 0.1, 0.02, -0.1]
STEPS, RAMP, LR = 6, 3, 0.3
ASKED: dict[str, Any] = {"steps": STEPS, "seeds": 1, "warm_batches": 4}


def make_two_rates(named_parameters: list[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
    """Plain descent, at three times the rate in its second group."""
    first, second = (parameter for _, parameter in named_parameters)
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 3.0 * lr}]
    return torch.optim.SGD(groups, lr=lr)


@pytest.fixture(scope="module")
def task() -> Task:
    return quadratic_task(matrix_with(EIGENVALUES, seed=5), torch.ones(7, dtype=torch.float64))


@pytest.fixture(scope="module")
def spectrum(task: Task) -> Spectrum:
    return spectrum_of(task)


def after_each_step(task: Task, rates: np.ndarray[Any, Any]) -> Iterator[float]:
    """Losses of gradient descent, a rate per step and parameter."""
    matrix = task.criterion.matrix.numpy()  # type: ignore[attr-defined]
    theta = np.ones(7)
    yield 0.5 * theta @ matrix @ theta
    for rate in rates:
        theta = theta - rate * (matrix @ theta)
        yield 0.5 * theta @ matrix @ theta


@pytest.mark.parametrize(
    ("steps", "asked", "found"),
    [
        *((50, None, 5), (51, None, 6), (200, None, 20), (20, None, 5), (10, None, 5), (9, None, 4), (4, None, 2)),
        *((1, None, 0), (50, 0, 0), (50, 50, 50), (50, 7, 7)),
    ],
)
def test_a_tenth_of_the_steps_at_least_five_at_most_half(steps: int, asked: int | None, found: int) -> None:
    assert ramp_steps(steps, asked) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (-1, "expected ramp of at least 0, got -1"),
        (7, "expected a ramp of 0 to 6 steps, those of the segment, got 7"),
    ],
)
def test_a_ramp_beyond_the_segment_is_refused(asked: int, said: str, task: Task, spectrum: Spectrum) -> None:
    with pytest.raises(UsageError, match=said):
        replay(task, ["sgd"], spectrum=spectrum, lr=LR, ramp=asked, **ASKED)


def test_rates_rise_linearly_and_stay() -> None:
    assert [rate_at(0.3, 3, step) for step in range(5)] == [0.3 * (1 / 3), 0.3 * (2 / 3), 0.3, 0.3, 0.3]
    assert rate_at(0.3, 0, 0) == 0.3


@pytest.mark.parametrize("asked", ["sgd", make_two_rates], ids=["ours", "of a user"])
def test_every_step_has_its_rate(asked: Any, task: Task, spectrum: Spectrum) -> None:
    """A user's groups keep their ratios on the ramp."""
    found = replay(task, [asked], spectrum=spectrum, lr=LR, ramp=RAMP, **ASKED)
    ratios = np.ones(7) if asked == "sgd" else np.array([1.0] * 3 + [3.0] * 4)
    shares = np.array([1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0])
    expected = list(after_each_step(task, LR * shares[:, None] * ratios))
    np.testing.assert_allclose(found.runs[0].losses, expected, rtol=1e-12)
    assert found.ramp == found.config["ramp"] == RAMP


def test_trials_and_ablations_are_ramped_alike(task: Task, spectrum: Spectrum, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[str, list[float]] = {}
    step = runner.Runner._step

    def spy(self: runner.Runner, optimizer: Any, request: runner.RunRequest, number: int) -> None:
        step(self, optimizer, request, number)
        key = f"{request.key} {request.lr}"
        rates.setdefault(key, []).append(optimizer.param_groups[0]["lr"] / request.lr)

    monkeypatch.setattr(runner.Runner, "_step", spy)
    replay(task, ["sgd"], spectrum=spectrum, ramp=2, ablations=True, landscape=False, **ASKED)
    assert len(rates) > 5
    assert {key.split(".")[1] for key in rates} == {"none", "dominant", "bulk"}
    assert all(found == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0] for found in rates.values())


@pytest.mark.parametrize("asked", ["soap-lite", make_two_rates], ids=["ours", "of a user"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_run_stopped_on_its_ramp_goes_on_with_the_same_bits(
    asked: Any, stop: int, task: Task, spectrum: Spectrum, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "_COST_FACTOR", 0.0)
    whole = replay(task, [asked], spectrum=spectrum, lr=0.01, ramp=RAMP, **ASKED)

    def fail(step: ReplayStep) -> None:
        if step.phase == "replay" and step.step == stop + 1:  # told before it is saved
            raise KeyboardInterrupt

    resumed: dict[str, Any] = {"spectrum": spectrum, "lr": 0.01, "ramp": RAMP, "state_directory": tmp_path, **ASKED}
    with pytest.raises(KeyboardInterrupt):
        replay(task, [asked], on_step=fail, **resumed)
    steps: list[int] = []
    again = replay(task, [asked], on_step=lambda step: steps.append(step.step), **resumed)
    assert [step for step in steps if step] == list(range(stop + 1, STEPS + 1))
    assert again.runs[0].losses.tolist() == whole.runs[0].losses.tolist()


def test_another_ramp_is_another_replay(task: Task, spectrum: Spectrum) -> None:
    plans = [plan_replay(task, ["sgd"], spectrum=spectrum, lr=LR, ramp=ramp, **ASKED) for ramp in (None, 3, 0)]
    assert plans[0].fingerprint == plans[1].fingerprint != plans[2].fingerprint

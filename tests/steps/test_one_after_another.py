"""Optimizers that step one after another, where memory does not hold the states of all."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lite_probe.errors import UsageError
from lite_probe.measurements import steps as measuring
from lite_probe.measurements import steps_session
from lite_probe.measurements.requests.steps import StepsRequest
from lite_probe.measurements.steps import StepsPlan
from lite_probe.measurements.steps_session import StepsSession
from lite_probe.results.steps import Steps
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.subspaces.footprints import footprint_of
from tests.ranks import OneOfTwo
from tests.replays.conftest import with_training

NAMES = ("adamw", "muon-lite")


@cache
def planned(critical_only: bool = False) -> StepsPlan:
    request = StepsRequest(
        optimizers=NAMES, lr=1e-3, warm_batches=4, step_batches=16, critical_batches=1, critical_only=critical_only
    )
    plan = request.plan(with_training("llama", 24, torch.float32))
    assert isinstance(plan, StepsPlan)
    return plan


@cache
def measured(together: bool) -> tuple[Steps, list[int]]:
    """The steps, and how many optimizers had a state after each."""
    states: list[int] = []
    original = StepsSession._step

    def counted(self: StepsSession, one: Any) -> torch.Tensor:
        update = original(self, one)
        states.append(sum(bool(other.optimizer.state) for other in self._steppers) + len(self._halves))
        return update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepsSession, "_step", counted)
        found: Steps = replace(planned(), together=together).run(with_training("llama", 24, torch.float32))
    return found, states


def test_the_numbers_are_the_same() -> None:
    together, one = measured(True)[0], measured(False)[0]
    for name in NAMES:
        first, second = together.optimizers[name], one.optimizers[name]
        for field in ("gains", "images", "signs", "whole_gains", "whole_curvatures"):
            np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
        assert first.joint is not None
        assert second.joint is not None
        np.testing.assert_array_equal(first.joint.curvatures, second.joint.curvatures)
        for kind, steps in first.critical.items():
            np.testing.assert_array_equal(steps.low, second.critical[kind].low)
    assert together.signal == one.signal
    assert together.signal
    assert together.products == pytest.approx(one.products)


def test_states_in_files_give_the_same_numbers(tmp_path: Path) -> None:
    plan = replace(planned(), together=False, stores_states=True)
    stored = plan.run(with_training("llama", 24, torch.float32), state_directory=tmp_path)
    assert len([*tmp_path.rglob("start-*")]) == len(NAMES)
    for name in NAMES:
        first, second = measured(False)[0].optimizers[name], stored.optimizers[name]
        for field in ("gains", "images", "whole_curvatures"):
            np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    with pytest.raises(UsageError, match="expected a state_directory for the states of optimizers, got none"):
        plan.run(with_training("llama", 24, torch.float32))


def test_no_state_is_held_twice_between_steps() -> None:
    """What a step starts from is there alone, and so are no halves of the batches any more."""
    for together in (True, False):
        assert set(measured(together)[1]) == {0}


def test_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    task, request = with_training("llama", 24, torch.float32), planned().request
    monkeypatch.setattr(measuring, "memory_allowed", lambda device, memory, sharing: limit)
    limit = planned().memory_bytes + 2**30
    assert request.plan(task).together
    assert "after another" not in request.plan(task).summary()
    asked: list[tuple[str, ...]] = []

    fits_twice = True

    def needs(*args: Any, in_use: int, together: bool, stored: bool) -> int:
        names = args[4]
        asked.append(tuple(names))
        assert together == (len(names) > 1)
        return limit - 1 if stored or (fits_twice and not together) else limit + 1

    monkeypatch.setattr(measuring, "_needs", needs)
    alone = request.plan(task)
    assert (alone.together, alone.stores_states) == (False, False)
    assert NAMES in asked
    assert alone.memory_bytes == limit - 1
    assert alone.summary().endswith(", one state after another")
    assert alone.num_gradients > planned().num_gradients
    fits_twice = False
    stored = request.plan(task)
    assert (stored.together, stored.stores_states) == (False, True)
    assert stored.summary().endswith(", one state after another, on disk")
    states = sum(footprint_of(task, name).state_bytes for name in NAMES)
    assert stored.scratch_bytes - alone.scratch_bytes == states
    pair = request.plan(replace(task, ranks=OneOfTwo()))
    assert pair.scratch_bytes - alone.scratch_bytes == 2 * states


def test_a_stopped_one_goes_on_the_way_it_went(tmp_path: Any) -> None:
    """Whatever a later process would choose: samples are kept by optimizer."""
    stopped = RuntimeError("stopped")

    def stop(done: int, expected: int, label: str) -> None:
        if label.startswith("muon-lite · batch 9"):
            raise stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_session.SaveClock, "due", True)
        with pytest.raises(RuntimeError, match="stopped"):
            replace(planned(), together=False).run(
                with_training("llama", 24, torch.float32), state_directory=tmp_path, on_progress=stop
            )
        found = replace(planned(), together=True).run(
            with_training("llama", 24, torch.float32), state_directory=tmp_path
        )
    for name in NAMES:
        expected = measured(False)[0].optimizers[name]
        np.testing.assert_array_equal(found.optimizers[name].images, expected.images)


def test_less_memory_than_all_together_take_begins_anew(tmp_path: Any) -> None:
    task, plan = with_training("llama", 24, torch.float32), replace(planned(), together=False)
    tight = replace(plan, request=replace(plan.request, memory=1000))
    state = tmp_path / "steps.state"
    for began_with, goes_on in ((None, False), (1001, False), (1000, True)):
        ResumableRun(state, plan.fingerprint).clear()
        ResumableRun(state, plan.fingerprint).pin(measuring._Begun(together=True, memory=began_with))
        begun = plan.as_begun(task, tmp_path)
        # With what that takes: all states at once, and each batch's gradient but once.
        assert begun.together
        assert begun.memory_bytes > plan.ways[False]["memory_bytes"]
        assert begun.num_gradients < plan.ways[False]["effort"].gradients
        assert tight.as_begun(task, tmp_path).together == goes_on

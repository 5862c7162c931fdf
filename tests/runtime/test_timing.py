"""A call is timed on the device that it computes on, and nothing of what was queued there before counts."""

from typing import Any

import pytest
import torch

from lite_probe.operators.base import MatrixOperator
from lite_probe.runtime.timing import timed
from lite_probe.spectra import fast
from tests import models
from tests.plans import plan_spectrum

_GPU = torch.device("cuda", 1)


class _OnGpu(MatrixOperator):
    """An operator that says it is on a GPU, and what is asked of it."""

    def __init__(self, told: list[Any]) -> None:
        super().__init__(torch.eye(3))
        self.told = told
        self.device = _GPU

    def matmat(self, matrix: torch.Tensor) -> torch.Tensor:
        self.told.append("product")
        return matrix


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was waited for, by device."""
    told: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", told.append)
    return told


def test_nothing_is_queued_when_the_clock_starts(told: list[Any]) -> None:
    assert fast._seconds(_OnGpu(told), torch.ones(3, 1)) >= 0.0
    assert told == 2 * [_GPU, "product", _GPU]


def test_a_call_is_timed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([5.0, 8.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    assert timed(torch.device("cpu"), lambda: None) == 3.5


def test_a_cpu_waits_for_no_gpu(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Although there is one."""
    task = models.make_task("mlp", torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan_spectrum(task, top=2, bottom=1, probes=2)
    assert told == []

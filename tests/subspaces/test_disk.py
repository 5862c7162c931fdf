"""A subspace's working files are as large as was planned, and their room is checked first."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_probe.errors import OutputError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.measurements.subspace import _METRIC
from lite_probe.runtime import resumable
from lite_probe.task import Task
from tests import models
from tests.disks import held, leave_room
from tests.plans import laid_out, plan_subspace

pytestmark = pytest.mark.slow

_ASKED: dict[str, Any] = {"size": 4, "probes": 2, "warm_batches": 3, "optimizers": ["adamw-lite"]}


def task_of(name: str) -> Task:
    task = models.make_task(name, torch.float32)
    return replace(task, train=[batch for seed in (1, 2) for batch in models.token_batches(13, seed=seed)])


@pytest.mark.parametrize("placement", ["device", "disk"])
@pytest.mark.parametrize("more", [{"preconditioned": False}, {"overlaps": False}], ids=["halves", "metric"])
def test_the_plan_says_how_much_goes_to_disk(
    more: Any, placement: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after every step, nothing that lies there exceeds what was planned, nor falls far below."""
    monkeypatch.setattr(resumable, "_LONGEST_INTERVAL", 0.0)
    task = task_of("gpt2")
    spectrum = measure_spectrum(task, top=6, bottom=1, probes=2)
    plan = laid_out(plan_subspace(task, spectrum, **_ASKED, **more), basis_placement=placement)
    if placement == "disk":
        # The basis and the one it is rotated into; beside a metric's, in memory, that was there as it was saved.
        vector, columns = 4 * plan.num_parameters, plan.layout.capacity(plan.num_parameters, plan.size)
        saved = 0 if "preconditioned" in more else 2 * min(columns, _METRIC.expected_pair_products)
        plan = replace(plan, scratch_bytes=plan.scratch_bytes + (2 * columns - saved) * vector)
    seen = []
    plan.run(task, state_directory=tmp_path, on_progress=lambda *now: seen.append(held(tmp_path)))
    small = 2**16  # heads, and what is finished
    assert 0.3 * plan.scratch_bytes <= max(seen) <= plan.scratch_bytes + small


def test_a_disk_without_room_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("gpt2")
    spectrum = measure_spectrum(task, top=6, bottom=1, probes=2)
    plan = plan_subspace(task, spectrum, **_ASKED)
    leave_room(monkeypatch, plan.scratch_bytes - 1)
    told: list[Any] = []
    with pytest.raises(OutputError, match=rf"expected 0\.\d MB of free disk in {tmp_path}, got 0\.\d MB"):
        plan.run(task, state_directory=tmp_path, on_progress=lambda *now: told.append(now))
    assert told == []
    assert list(tmp_path.iterdir()) == []

"""A replay's working files and its result are as large as was planned, and their room is checked first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lite_probe.errors import OutputError
from lite_probe.measurements.base import discard_state
from lite_probe.replays import stored
from lite_probe.results.blocks import BlockPart
from lite_probe.results.store import save, write_atomically
from lite_probe.runtime import resumable
from tests.disks import held, leave_room
from tests.plans import plan_replay
from tests.replays.conftest import spectrum_of, with_training

_ASKED: dict[str, Any] = {
    "steps": 12,
    "seeds": 2,
    "lr": {"soap": 1e-3, "muon": 1e-3},
    "warm_batches": 4,
    "ablations": True,
}
_NAMES = ("muon", "soap")


@pytest.mark.slow
def test_the_plan_says_how_much_goes_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved after every step, a run beside its last save is as large as was planned."""
    seen: list[int] = []

    def watched(path: Path, write: Any) -> None:
        def write_and_look(file: Any) -> None:
            write(file)
            file.flush()
            seen.append(held(tmp_path))

        write_atomically(path, write_and_look)

    monkeypatch.setattr(resumable, "_LONGEST_INTERVAL", 0.0)
    monkeypatch.setattr(stored, "write_atomically", watched)
    task = with_training("mlp", 60)
    torch.manual_seed(0)
    task.model = nn.Sequential(nn.Linear(5, 160), nn.Tanh(), nn.Linear(160, 160), nn.Tanh(), nn.Linear(160, 4))
    task.blocks = {name: (BlockPart("ffn"),) for name, _ in task.model.named_parameters()}
    spectrum = spectrum_of(task)
    plan = plan_replay(task, _NAMES, spectrum=spectrum, **_ASKED)
    found = plan.run(task, state_directory=tmp_path)
    small = 2**14 * plan.num_runs  # heads of what is finished
    assert small < 0.1 * plan.scratch_bytes
    assert 0.7 * plan.scratch_bytes <= max(seen) <= plan.scratch_bytes + small
    discard_state(tmp_path, "replay")
    save(found, tmp_path)
    arrays = (tmp_path / "replay.safetensors").stat().st_size
    # Ablations, which are planned like the others, record less.
    assert 0.25 * plan.result_bytes <= arrays <= plan.result_bytes + 2**16


def test_the_plan_grows_with_what_is_recorded() -> None:
    task = with_training("mlp", 400)
    spectrum = spectrum_of(task)
    asked = {**_ASKED, "ablations": False, "landscape": False}
    short, long = (plan_replay(task, _NAMES, spectrum=spectrum, **{**asked, "steps": steps}) for steps in (12, 120))
    assert long.result_bytes == 10 * short.result_bytes


def test_a_disk_without_room_is_refused_before_anything_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = with_training("mlp", 60)
    spectrum = spectrum_of(task)
    plan = plan_replay(task, _NAMES, spectrum=spectrum, **_ASKED)
    leave_room(monkeypatch, plan.scratch_bytes - 1)
    told: list[Any] = []
    with pytest.raises(OutputError, match=rf"expected 0\.\d MB of free disk in {tmp_path}, got 0\.\d MB"):
        plan.run(task, state_directory=tmp_path, on_event=told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == []

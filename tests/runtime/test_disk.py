"""What goes to disk is planned, its room is checked, and it is as large as was said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_probe.errors import OutputError
from lite_probe.measurements.base import discard_state
from lite_probe.results.store import save
from lite_probe.runtime import resumable
from lite_probe.runtime.disk import disk_size, held_bytes, require_room
from lite_probe.runtime.memory import MemoryLayout
from lite_probe.spectra.costs import scratch_bytes
from lite_probe.spectra.operator import OperatorRequest
from lite_probe.spectra.state import SavedState
from lite_probe.vectors import basis as bases
from lite_probe.vectors.basis import KrylovBasis
from tests import models
from tests.disks import held, leave_room, taken
from tests.plans import laid_out, plan_spectrum

pytestmark = pytest.mark.slow

_ASKED: dict[str, Any] = {"top": 10, "bottom": 3, "probes": 2}


@pytest.mark.parametrize("placement", ["device", "disk"])
def test_the_plan_says_how_much_goes_to_disk(placement: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved after every step, nothing that lies there exceeds what was planned, nor falls far below."""
    monkeypatch.setattr(resumable, "_LONGEST_INTERVAL", 0.0)
    task = models.make_task("gpt2", torch.float32)
    plan = laid_out(plan_spectrum(task, **_ASKED), basis_placement=placement)
    asked = OperatorRequest(top=10, bottom=3, probes=2)
    plan = replace(plan, scratch_bytes=scratch_bytes(asked, 4 * plan.num_parameters, plan.layout))
    seen = []
    spectrum = plan.run(task, state_directory=tmp_path, on_progress=lambda *now: seen.append(held(tmp_path)))
    small = 2**16  # heads
    assert 0.3 * plan.scratch_bytes <= max(seen) <= plan.scratch_bytes + small
    discard_state(tmp_path, "spectrum")
    save(spectrum, tmp_path)
    assert plan.result_bytes <= held(tmp_path) <= plan.result_bytes + small


def test_a_disk_without_room_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = models.make_task("mlp", torch.float32)
    plan = plan_spectrum(task, **_ASKED)
    leave_room(monkeypatch, plan.scratch_bytes - 1)
    told: list[Any] = []
    with pytest.raises(OutputError, match=rf"expected 0\.\d MB of free disk in {tmp_path}, got 0\.\d MB") as caught:
        plan.run(task, state_directory=tmp_path, on_progress=lambda *now: told.append(now))
    assert "--scratch DIR" in caught.value.hint
    assert told == []
    assert list(tmp_path.iterdir()) == []
    leave_room(monkeypatch, plan.scratch_bytes)
    plan.run(task, state_directory=tmp_path)


def test_folders_of_one_file_system_share_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_room(monkeypatch, 10**6)
    require_room([(tmp_path / "a" / "b", 600_000), (tmp_path, 400_000)])
    with pytest.raises(OutputError, match=r"expected 1\.0 MB of free disk in .*/a/b and .*, got 1\.0 MB"):
        require_room([(tmp_path / "a" / "b", 600_000), (tmp_path, 400_001)])


def test_a_state_to_continue_from_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else lies there, an older result or another measurement's state, goes on taking its own."""
    plan = replace(plan_spectrum(models.make_task("mlp", torch.float32), **_ASKED), scratch_bytes=1_500_000)
    leave_room(monkeypatch, 10**6)
    for name in ("spectrum.safetensors", "subspace.state/probes.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(600_000))
    with pytest.raises(OutputError, match=r"expected 1\.5 MB of free disk"):
        require_room([plan.room(tmp_path)])
    running = tmp_path / "spectrum.state" / "whole"
    running.mkdir(parents=True)
    (running / "basis.bin").write_bytes(bytes(500_000))
    require_room([plan.room(tmp_path)])
    with pytest.raises(OutputError, match="of free disk"):
        require_room([plan.room(tmp_path), (tmp_path, 1)])


def test_sizes_are_those_of_disks() -> None:
    assert disk_size(32_000_000_000) == "32.0 GB"
    assert disk_size(1_500_000) == "1.5 MB"
    assert disk_size(50_000) == "0.1 MB"
    assert disk_size(49_900) == "49.9 kB"


def test_a_file_of_two_names_is_there_once(tmp_path: Path) -> None:
    """A saved basis on disk is its own file."""
    (tmp_path / "basis.bin").write_bytes(bytes(1000))
    (tmp_path / "basis-0.bin").hardlink_to(tmp_path / "basis.bin")
    assert held_bytes(tmp_path) == 1000
    assert held_bytes(tmp_path / "none") == 0


def test_a_basis_on_disk_is_there_three_times_where_it_is_rotated_twice_between_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was saved, as it is, and as it becomes."""
    layout = MemoryLayout(rows=None, kept_graphs=1, vectors_per_pass=1, basis_placement="disk", basis_columns=20)
    entries, pages = 1024, 4096
    cpu = torch.device("cpu")
    basis = KrylovBasis(entries, layout.basis_columns, dtype=torch.float32, device=cpu, file=tmp_path / "basis.bin")
    basis.append(torch.ones(2, entries))
    SavedState(tmp_path / "running", "one").save({}, basis=basis, epoch=0, vectors=[torch.ones(3, entries)])
    seen, reserve = [], bases._reserve

    def watched(file: Path, size: int) -> Any:
        found = reserve(file, size)
        seen.append(taken(tmp_path))
        return found

    monkeypatch.setattr(bases, "_reserve", watched)
    for _ in range(3):
        basis.rotate(torch.eye(2, dtype=torch.float64))
    beside = seen[0] - 2 * layout.basis_columns * pages
    assert [size - beside for size in seen] == [times * layout.basis_columns * pages for times in (2, 3, 3)]
    assert max(seen) <= scratch_bytes(OperatorRequest(top=3, bottom=1), pages, layout)

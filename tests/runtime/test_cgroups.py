"""A container's memory is that of its control groups, whatever the host has."""

from pathlib import Path

import pytest
import torch

from lite_probe.runtime import memory
from lite_probe.runtime.cgroups import room_in_groups

_SECOND = ("memory.max", "memory.current", "")
_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def group(folder: Path, names: tuple[str, str, str], limit: int | str, usage: int, cached: int = 0) -> None:
    """Write the files of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    without = "inactive_file 1\nactive_file 9\n" if names[2] else ""  # of those below it
    counted = f"{names[2]}active_file {cached // 3}\n{names[2]}inactive_file {cached - cached // 3}\n"
    (folder / "memory.stat").write_text(f"anon 7\n{without}{counted}")


def room(tmp_path: Path, membership: str) -> int | None:
    (tmp_path / "cgroup").write_text(membership)
    return room_in_groups(tmp_path / "cgroup", tmp_path / "mount")


def test_the_least_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    """What the system has cached of files, and gives back, is free."""
    top = tmp_path / "mount"
    membership = "0::/pod.slice/box.scope\n"
    assert room(tmp_path, membership) is None
    group(top / "pod.slice" / "box.scope", _SECOND, "max", 300)
    assert room(tmp_path, membership) is None
    group(top / "pod.slice", _SECOND, 1000, 800, cached=50)
    assert room(tmp_path, membership) == 1000 - 800 + 50
    group(top / "pod.slice" / "box.scope", _SECOND, 400, 300)
    assert room(tmp_path, membership) == 100
    group(top / "pod.slice" / "box.scope", _SECOND, 400, 420)
    assert room(tmp_path, membership) == 0
    group(top / "elsewhere", _SECOND, 1, 1)
    group(tmp_path, _SECOND, 1, 1)  # above all groups
    group(top / "pod.slice" / "box.scope", _SECOND, 400, 300)
    assert room(tmp_path, membership) == 100


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    group(tmp_path / "mount", _SECOND, 1000, 200)
    assert room(tmp_path, "0::/\n") == 800
    assert room(tmp_path, "0::/../box\n") == 800


def test_groups_of_the_first_version_are_read_too(tmp_path: Path) -> None:
    top = tmp_path / "mount" / "memory"
    membership = "5:cpu,cpuacct:/docker/a:b\n4:memory,hugetlb:/docker/a:b\n1:name=systemd:/\n0::/\n"
    group(top, _FIRST, 9223372036854771712, 500)
    assert room(tmp_path, membership) == 9223372036854771712 - 500
    group(top / "docker" / "a:b", _FIRST, 1000, 200, cached=30)
    assert room(tmp_path, membership) == 830


@pytest.mark.parametrize("missing", ["memory.max", "memory.current", "memory.stat"])
def test_what_cannot_be_read_is_no_limit(missing: str, tmp_path: Path) -> None:
    assert room_in_groups(tmp_path / "none", tmp_path) is None
    top = tmp_path / "mount"
    group(top, _SECOND, 1000, 200)
    (top / missing).write_bytes(b"\xff\xfe?")
    assert room(tmp_path, "0::/\n") is None
    (top / missing).unlink()
    assert room(tmp_path, "0::/\n") is None


def test_the_host_may_have_less(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_free_on_host", lambda: 1000)
    for limit, free in ((None, 1000), (300, 300), (5000, 1000)):
        monkeypatch.setattr(memory, "room_in_groups", lambda limit=limit: limit)
        assert memory.free_memory(cpu) == free

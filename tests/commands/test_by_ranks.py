"""What commands do on one of several ranks, without starting any."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import pytest
import torch

from lite_probe.commands.compute import choose_device
from lite_probe.commands.console import Terminal
from lite_probe.commands.main import _report
from lite_probe.commands.measuring import _require_same
from lite_probe.commands.torchrun import joined
from lite_probe.errors import InputError, UsageError
from lite_probe.runtime import memory
from lite_probe.runtime.resumable import Begun, ResumableRun
from lite_probe.vectors.ranks import Ranks

Value = TypeVar("Value")


class Pair(Ranks):
    """Rank 0 of two, the other of which always has the opposite to say."""

    count = 2

    def once(self, compute: Callable[[], Value]) -> Value:
        return compute()

    def from_every(self, value: Value) -> list[Value]:
        return [value, not value]  # type: ignore[list-item]


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of rank 1 of 2."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_rank_has_a_device_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(name) == torch.device("cuda", 1)
    assert chosen == [1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="expected a CUDA device for each rank, got 1 for local rank 1") as refusal:
        choose_device(name)
    assert "--nproc-per-node 1" in refusal.value.hint


def test_ranks_on_a_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(memory, "memory_in_use", lambda device: 50)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert memory.memory_allowed(cpu, None) == 850
    assert memory.memory_allowed(cpu, None, 4) == 250
    assert memory.memory_allowed(gpu, None, 4) == 850  # each has a device of its own
    assert memory.host_memory_allowed(gpu, 4) == 200
    assert memory.memory_allowed(cpu, 7, 4) == 7


@pytest.mark.usefixtures("second")
def test_an_interruption_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _report(click.Abort(), Terminal("lite-probe spectrum")) == 130
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert _report(click.Abort(), Terminal("lite-probe spectrum")) == 130
    assert capsys.readouterr().err == "error: interrupted; the same command starts again\n"


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined(Terminal("lite-probe spectrum")) as ranks:
        assert ranks is None


def test_ranks_that_see_different_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected every rank to see the same spectrum in .*, got ranks without one"):
        _require_same(Pair(), True, tmp_path)


def test_two_ranks_do_not_continue_what_one_began(tmp_path: Path) -> None:
    one = ResumableRun(tmp_path / "state", "abc123")
    one.require_ranks()
    one.write("rates.json", [1, 2])
    one.require_ranks()
    with pytest.raises(UsageError, match="with the 1 rank that began, got 2"):
        ResumableRun(tmp_path / "state", "abc123", ranks=Pair()).require_ranks()
    # Of another measurement it is nobody's.
    two = ResumableRun(tmp_path / "state", "def456", ranks=Pair())
    two.require_ranks()
    two.require_ranks()
    with pytest.raises(UsageError, match="with the 2 ranks that began, got 1"):
        ResumableRun(tmp_path / "state", "def456").require_ranks()


def test_what_is_pinned_keeps_the_number_of_ranks(tmp_path: Path) -> None:
    two = ResumableRun(tmp_path / "state", "abc123", ranks=Pair())
    two.require_ranks()
    assert two.pin(Begun(memory=3)) == Begun(memory=3)
    with pytest.raises(UsageError, match="with the 2 ranks that began, got 1"):
        ResumableRun(tmp_path / "state", "abc123").require_ranks()

"""`spectrum --sharded`: two ranks with a shard each write a result, stop together and go on; what it does not take."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lite_probe.commands import compute
from lite_probe.commands import spectrum as command
from lite_probe.commands.console import Terminal
from lite_probe.commands.measuring import Measuring, RunOptions
from lite_probe.commands.task import Opened, TaskOptions
from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.requests.spectrum import SpectrumRequest
from lite_probe.operators import sharding
from lite_probe.operators.ranks import ProcessRanks
from lite_probe.results.store import load
from lite_probe.runtime import memory
from lite_probe.vectors.ranks import Ranks
from tests.commands.conftest import save_llama
from tests.commands.running import run
from tests.launching import finished, killed_once_there, started
from tests.models import make_task

BATCH = ("--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "4", "--batches", "3", "--threads", "1")
SPECTRUM = ("--top", "2", "--bottom", "0", "--probes", "2", "--sharded")


def arguments(checkpoint: Path, text: Path, out: Path) -> list[str]:
    return ["spectrum", str(checkpoint), "--data", str(text), "--out", str(out), *BATCH, *SPECTRUM]


def by_ranks(*asked: str) -> Any:
    return started(["-m", "lite_probe", *asked])


@pytest.mark.slow
def test_killed_shards_end_all_and_the_same_command_goes_on(text: Path, tmp_path: Path) -> None:
    asked = arguments(save_llama(tmp_path / "llama", seed=5), text, tmp_path / "out")
    head = tmp_path / "out" / "spectrum.state" / "whole" / "running" / "head.json"
    killed_once_there(by_ranks(*asked), head)
    code, _, said = finished(by_ranks(*asked))
    assert code == 0, said
    assert "(the model in 2 shards, finite differences, " in said
    resumed = load(tmp_path / "out", "spectrum")
    again = arguments(tmp_path / "llama", text, tmp_path / "again")
    code, _, said = finished(by_ranks(*again))
    assert code == 0, said
    found = load(tmp_path / "again", "spectrum")
    assert found.fingerprint == resumed.fingerprint
    np.testing.assert_array_equal(found.whole.eigenvalues, resumed.whole.eigenvalues)
    np.testing.assert_array_equal(found.eigenvectors, resumed.eigenvectors)
    assert found.config["sharded"] is True
    assert found.config["method"] == "finite-differences"
    assert found.provenance.details["model"] == "2 shards"
    assert any(note.code == "finite-differences" for note in found.notes)


def test_shards_need_ranks(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    refused = run(*arguments(tiny_llama, text, tmp_path / "out"))
    assert refused.exit_code == 2
    assert "expected several ranks for --sharded, got one process" in refused.stderr
    assert "torchrun --nproc-per-node N -m lite_probe spectrum" in refused.stderr


def test_a_model_is_sharded_where_a_device_does_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("mlp", torch.float32)
    size = 4 * sum(parameter.numel() for parameter in task.model.parameters())
    monkeypatch.setattr(memory, "memory_in_use", lambda device: 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10 * size)
    assert not command._exceeds(task, torch.device("cuda", 0), None)  # 8 of 10
    assert command._exceeds(task, torch.device("cuda", 0), 8 * size - 1)
    assert not command._exceeds(task, torch.device("cuda", 0), 8 * size)


def measuring(*, sharded: bool, verify: bool = False, **asked: Any) -> command.SpectrumMeasuring:
    """The command on one of several ranks."""
    options = TaskOptions(checkpoint="model", data_path="text")
    own = {"verify": verify, "sharded": sharded}
    one = command.SpectrumMeasuring(Terminal(""), options, RunOptions(), SpectrumRequest(**asked), own)
    one.ranks = Ranks()
    return one


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"operator": "ggn"}, "--operator ggn"),
        ({"per_block": True}, "--per-block"),
        ({"operator": "ggn", "verify": True}, "--operator ggn and --verify"),
    ],
)
def test_what_shards_do_not_give_is_refused(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"expected the whole Hessian for a model in shards, got {named}") as refusal:
        measuring(sharded=True, **asked).vet()
    assert f"leave out {named}, " in refusal.value.hint


@pytest.mark.parametrize(
    ("exceeds", "asked", "expected"),
    [
        (True, {}, ["load on cpu", "shards on cuda:0"]),
        (False, {}, ["load on cpu", "whole on cuda"]),
        (True, {"per_block": True}, ["load on auto"]),  # the planner says what does not fit
    ],
)
def test_a_checkpoint_is_sharded_by_itself_where_it_must(
    exceeds: bool, asked: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    opened = Opened(task=make_task("mlp"), checkpoint=None, summary=None, notes=())

    def loaded(one: Measuring) -> Opened:
        done.append(f"load on {one.asked.device}")
        return opened

    def sharded(one: Measuring, opened: Opened, device: torch.device) -> Opened:
        done.append(f"shards on {device}")
        return opened

    monkeypatch.setattr(compute, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(compute, "move_task", lambda task, device, precision: done.append(f"whole on {device}"))
    monkeypatch.setattr(command, "_exceeds", lambda task, device, memory: exceeds)
    monkeypatch.setattr(Measuring, "loaded", loaded)
    monkeypatch.setattr(command.SpectrumMeasuring, "_sharded", sharded)
    one = measuring(sharded=False, **asked)
    assert one.loaded() is opened
    assert done == expected
    assert one.asked.device == "auto"


def test_nothing_is_sharded_unasked_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    opened = Opened(task=make_task("mlp"), checkpoint=None, summary=None, notes=())
    monkeypatch.setattr(compute, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(compute, "move_task", lambda task, device, precision: done.append(f"whole on {device}"))
    monkeypatch.setattr(command, "_exceeds", lambda task, device, memory: True)
    monkeypatch.setattr(sharding, "can_shard", lambda: False)
    monkeypatch.setattr(Measuring, "loaded", lambda one: opened)
    assert measuring(sharded=False).loaded() is opened
    assert done == ["whole on cuda"]


class Unlike(ProcessRanks):
    """Rank 0, beside one that says something else."""

    def __init__(self) -> None:
        self.rank, self.count = 0, 2

    def from_every(self, value: Any) -> list[Any]:
        return [value, "f" * 64]


def test_no_shards_are_cut_of_different_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shards, every rank would see the same mixture."""
    monkeypatch.setattr(sharding, "shard_task", lambda *asked: pytest.fail("cut"))
    one = measuring(sharded=True)
    one.ranks = Unlike()
    opened = Opened(task=make_task("mlp"), checkpoint=None, summary=None, notes=())
    with pytest.raises(
        InputError, match=r"expected the same weights, batches and options .* and ffffffffffff on rank 1"
    ):
        one._sharded(opened, torch.device("cpu"))


class Fuller(Ranks):
    """Rank 0, beside one whose GPU holds less."""

    def from_every(self, value: Any) -> list[Any]:
        return [value, True]


def test_the_rank_with_the_least_memory_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(task=make_task("mlp"), checkpoint=None, summary=None, notes=())
    cut = replace(opened)
    monkeypatch.setattr(compute, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(command, "_exceeds", lambda task, device, memory: False)
    monkeypatch.setattr(Measuring, "loaded", lambda one: opened)
    monkeypatch.setattr(command.SpectrumMeasuring, "_sharded", lambda one, opened, device: cut)
    one = measuring(sharded=False)
    one.ranks = Fuller()
    assert one.loaded() is cut

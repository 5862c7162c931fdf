"""Optimizers that are not ours, from the command line."""

import json
from pathlib import Path

import pytest

from lite_probe.results.store import load
from tests.commands.running import run

pytestmark = pytest.mark.slow

MINE = """
import torch


def make_mine(named_parameters, lr, momentum=0.9):
    return torch.optim.SGD(named_parameters, lr=lr, momentum=momentum)


def make_none(named_parameters, lr):
    return None
"""
SHORT = ("--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "4", "--batches", "1", "--threads", "1")
REPLAY = (*SHORT, "--warm-batches", "2", "--steps", "2", "--seeds", "2", "--lr", "0.002")


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def test_ours_torchs_and_a_user_s_stand_in_one_table(mine: str, tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    asked = ("replay", tiny_llama, "--data", text, "--out", tmp_path / "out", *REPLAY)
    asked += ("--optimizers", f"muon-lite,torch.AdamW,{mine}:make_mine", "--set", "torch.AdamW.weight_decay=0")
    asked += ("--set", "make_mine.momentum=0.5")
    found = run(*asked)
    assert found.exit_code == 0, found.stderr
    for name in ("muon-lite", "torch.AdamW", "make_mine"):
        assert sum(line.startswith(f"{name} ") for line in found.stderr.splitlines()) >= 3  # three tables
    replay = load(tmp_path / "out", "replay")
    assert replay.optimizers == ("muon-lite", "torch.AdamW", "make_mine")
    assert replay.recipes["torch.AdamW"].hyperparameters == {"weight_decay": 0}
    assert all(run.is_recorded for run in replay.runs)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "make_mine" in page
    again = run(*asked, "--json")
    assert "already measured" in again.stderr
    assert list(json.loads(again.stdout)["optimizers"]) == list(replay.optimizers)
    Path(mine).write_text(MINE.replace("0.9", "0.8"))
    assert "already measured" not in run(*asked, "--dry-run").stderr


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        ("{mine}:make_none", 3, "expected a torch.optim.Optimizer from make_none of mine.py, got NoneType"),
        ("{mine}:absent", 3, "expected a function 'absent' in mine.py, got make_mine, make_none"),
        ("absent.py:make", 3, "expected a Python file, got no such path: 'absent.py'"),
        ("torch.Adamant", 2, "expected an optimizer of torch among"),
        ("adamant", 2, "expected an optimizer among adamw"),
        ("torch.LBFGS", 3, "expected a step without arguments from torch.LBFGS"),
    ],
)
def test_what_cannot_be_replayed_is_refused_before_anything_is_measured(
    asked: str, code: int, message: str, mine: str, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    name = asked.format(mine=mine)
    found = run("replay", tiny_llama, "--data", text, "--out", tmp_path / "out", *REPLAY, "--optimizers", name)
    assert found.exit_code == code, found.stderr
    assert message in found.stderr.replace("\n", " ")
    assert "plan:" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_configuration_file_names_no_code(mine: str, tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text(f'optimizers = "muon,{mine}:make_mine"\n')
    asked = ("replay", tiny_llama, "--data", text, "--out", tmp_path / "out", *REPLAY, "--config", config)
    found = run(*asked)
    assert found.exit_code == 2, found.stderr
    assert "expected optimizers of your own on the command line only" in found.stderr
    config.write_text('optimizers = "muon,torch.AdamW"\n')
    assert run(*asked, "--dry-run").exit_code == 0

"""What an error advises exists, and does what it promises."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from lite_probe.commands.options import COMMANDS
from tests.commands.running import run

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w(-])--[a-z][a-z-]*[a-z](?![a-z-])")
EVERYWHERE = {"--help", "--version", "--nproc-per-node", "--virtual-local-rank"}  # the last two are torchrun's

TASK = """
import torch
from torch import nn
from lite_probe import Task
from lite_probe.results.blocks import BlockPart


def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    batches = [(torch.randn(4, 1, 4, 4), torch.randint(0, 3, (4,))) for _ in range(30)]
    blocks = {name: (BlockPart("ffn"),) for name, _ in model.named_parameters()}
    predict = lambda model, batch: model(batch[0])
    criterion = lambda outputs, batch: (nn.functional.cross_entropy(outputs, batch[1], reduction="sum"), len(outputs))
    parts = {"model": model, "predict": predict, "criterion": criterion}
    return Task(**parts, evaluation=batches[:1], train=batches[1:], blocks=blocks)
"""
SHORT = ("--threads", "1", "--warm-batches", "3")
REPLAY = (*SHORT, "--steps", "2", "--seeds", "2", "--lr", "0.01")


@pytest.fixture
def convolution(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(TASK)
    return f"{tmp_path / 'mine.py'}:task"


def options_of(command: str) -> set[str]:
    params = import_module(f"lite_probe.commands.{command}").command.params
    return {name for param in params if isinstance(param, click.Option) for name in param.opts}


def mentioned(path: Path) -> Iterator[str]:
    """Yield every option that a string literal names, docstrings and CSS apart."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "var(--" not in node.value:
            yield from OPTION.findall(node.value)


@pytest.mark.parametrize("room", ["lite_probe", "commands", "reports"])
def test_every_option_that_a_message_names_is_one(room: str) -> None:
    known = EVERYWHERE.union(*(options_of(command) for command in COMMANDS))
    named = {(path.name, option) for path in (ROOT / room).rglob("*.py") for option in mentioned(path)}
    assert not {(name, option) for name, option in named if option not in known}
    assert named or room == "reports"


@pytest.mark.parametrize("command", ["subspace", "replay"])
def test_a_model_that_cannot_be_measured_is_refused_before_its_spectrum(
    command: str, convolution: str, tmp_path: Path
) -> None:
    """LITE has to know a matrix's block; nobody said it."""
    file = Path(convolution.rpartition(":")[0])
    file.write_text(file.read_text().replace(", blocks=blocks)", ")"))
    more = REPLAY if command == "replay" else SHORT
    found = run(command, "--task", convolution, "--out", tmp_path / "run", *more)
    assert found.exit_code == 3
    assert "expected a block for every matrix" in found.stderr or "expected vectors" in found.stderr
    assert "plan:" not in found.stderr
    assert not (tmp_path / "run").exists()


def test_a_convolution_is_replayed_under_what_the_hint_names(convolution: str, tmp_path: Path) -> None:
    refused = run("replay", "--task", convolution, "--out", tmp_path / "run", *REPLAY)
    assert refused.exit_code == 3
    assert "adamw, adamw-lite and sgd take any shape: name one of them" in refused.stderr.replace("\n", " ")
    assert "(--optimizers)" in refused.stderr
    asked = run(
        "replay", "--task", convolution, "--out", tmp_path / "run", *REPLAY, "--optimizers", "adamw", "--bands", "soap"
    )
    assert asked.exit_code == 3
    assert "leave out --bands soap, or use --bands adamw" in asked.stderr
    found = run("replay", "--task", convolution, "--out", tmp_path / "run", *REPLAY, "--optimizers", "adamw")
    assert found.exit_code == 0, found.stderr
    assert "ordered by the proxy of adamw: soap cannot take this model" in found.stderr.replace("\n", " ")


SMALL_TASK = """
import torch
from torch import nn
from lite_probe import Task
from lite_probe.criteria import squared_error


def task():
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(30)]
    predict = lambda model, batch: model(batch[0])
    parts = {"model": nn.Linear(3, 2), "predict": predict, "criterion": squared_error}
    return Task(**parts, evaluation=batches[:1], train=batches[1:], blocks={"weight": "ffn", "bias": "ffn"})
"""


@pytest.mark.parametrize("command", ["subspace", "replay"])
def test_a_model_of_fewer_parameters_than_pairs_by_default_is_measured(command: str, tmp_path: Path) -> None:
    """Nobody asked for ten pairs at the top and three at the bottom of eight parameters."""
    (tmp_path / "small.py").write_text(SMALL_TASK)
    more = (*REPLAY, "--optimizers", "adamw") if command == "replay" else (*SHORT, "--probes", "2")
    found = run(command, "--task", f"{tmp_path / 'small.py'}:task", "--out", tmp_path / "run", *more)
    assert found.exit_code == 0, found.stderr


def test_a_convolution_s_subspace_leaves_out_who_cannot_take_it(convolution: str, tmp_path: Path) -> None:
    found = run("subspace", "--task", convolution, "--out", tmp_path / "run", *SHORT, "--probes", "2")
    assert found.exit_code == 0, found.stderr
    assert "muon-lite and soap-lite cannot take parameters" in found.stderr.replace("\n", " ")

"""Commands run in this process, and terminals whose screen is a string."""

import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli

BATCH = ("--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "4", "--batches", "1", "--threads", "1")
SUBSPACE = ("--probes", "2", "--warm-batches", "4")
REPLAY = (
    "--steps",
    "3",
    "--seeds",
    "2",
    "--warm-batches",
    "4",
    "--optimizers",
    "muon,muon-lite",
    "--lr",
    "0.01",
    "--no-landscape",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def subspace(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    return run("subspace", checkpoint, "--data", text, "--out", out, *BATCH, *SUBSPACE, *more)


def replay(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    """Of options given twice the last counts."""
    return run("replay", checkpoint, "--data", text, "--out", out, *BATCH, *REPLAY, *more)


def on_screen(monkeypatch: pytest.MonkeyPatch, width: int, *, color: bool = True) -> tuple[Terminal, io.StringIO]:
    """A terminal of this width whose screen is a string."""
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal("lite-probe spectrum")
    terminal._console = Console(file=screen, width=width, force_terminal=True, highlight=False, markup=False)
    return terminal, screen


def without_styles(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)


def lines_on(screen: io.StringIO) -> list[str]:
    """Every line that was ever drawn."""
    return [without_styles(line) for line in re.split(r"[\r\n]+", screen.getvalue())]

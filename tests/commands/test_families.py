"""Every shipped family from the command line, and one that nobody knows by the file that the error has printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests import families
from tests.commands.running import BATCH, REPLAY, run

SPECTRUM = ("--top", "1", "--bottom", "0", "--probes", "2", "--tol", "0.1")
FROM_THE_COMMAND_LINE = (
    *("gpt_neox", "phi3", "opt", "falcon", "falcon-groups", "deepseek_v3", "bert", "gemma3_text", "olmo2", "mamba"),
)


def spectrum(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    return run("spectrum", checkpoint, "--data", text, "--out", out, *BATCH, *SPECTRUM, *more)


def replay(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    asked = (*BATCH, *REPLAY, "--steps", "2", "--seeds", "2", "--warm-batches", "2")
    return run("replay", checkpoint, "--data", text, "--out", out, *asked, *more)


def printed(found: Result) -> Any:
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", FROM_THE_COMMAND_LINE)
def test_a_family_is_measured_and_replayed(name: str, text: Path, tmp_path: Path) -> None:
    checkpoint = families.save_model(tmp_path / "model", families.CONFIGS[name])
    inspected = printed(run("inspect", checkpoint, "--json"))
    measured = printed(spectrum(checkpoint, text, tmp_path / "run", "--per-block", "--json"))
    assert {block: found["num_parameters"] for block, found in measured["blocks"].items()} == dict(
        inspected["block_parameters"]
    )
    assert sum(inspected["block_parameters"].values()) == measured["num_parameters"]
    replayed = printed(replay(checkpoint, text, tmp_path / "run", "--json"))
    for found in replayed["optimizers"].values():
        assert found["diverged"] == []
        assert found["loss_change"]["value"] != 0.0

"""A kind is one file and one entry of the table of kinds; its command, files, page and JSON follow."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lite_probe.results.kinds import KINDS, Kind, register_kind
from lite_probe.results.store import load
from tests.commands.running import BATCH, run

TOY = Path(__file__).with_name("toy_kind.py")


@pytest.fixture(autouse=True)
def steepness() -> Iterator[None]:
    """Register the kind for one test."""
    name = "tests.commands.toy_kind:{}".format
    parts = {"record": "Steepness", "request": "SteepnessRequest", "plan": "SteepnessPlan", "section": "SECTION"}
    register_kind(Kind(name="steepness", **{part: name(one) for part, one in parts.items()}))
    try:
        yield
    finally:
        del KINDS["steepness"]


def test_it_takes_few_lines() -> None:
    written = [
        line for line in TOY.read_text().splitlines() if line.strip() and not line.startswith(("from", "import"))
    ]
    assert len(written) < 80


@pytest.mark.slow
def test_its_command_measures_saves_shows_and_reuses(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("steepness", tiny_llama, "--data", text, "--out", out, *BATCH)
    planned = json.loads(run(*common, "--dry-run", "--json").stdout)
    assert planned["num_parameters"] == 10_800
    assert not out.exists()
    found = run(*common, "--scale", 3, "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    saved = load(out, "steepness")
    assert told["gradient_norm"] == saved.gradient_norm
    assert told["lead"] == f"The gradient's norm is {saved.gradient_norm:.3g}."
    assert told["lead"] in found.stderr
    assert saved.config["scale"] == 3
    assert f"<p>{saved.gradient_norm}</p>" in (out / "report.html").read_text()
    assert "already measured" in run(*common, "--scale", 3).stderr
    once = json.loads(run(*common, "--json").stdout)
    assert once["gradient_norm"] == pytest.approx(saved.gradient_norm / 3)
    assert run("report", out).exit_code == 0


def test_its_help_has_its_options(tmp_path: Path) -> None:
    told = run("steepness", "--help")
    assert "How steep the loss is." in told.stdout
    assert "--scale INTEGER" in told.stdout
    assert "What the norm is multiplied by." in told.stdout
    assert "lite-probe steepness runs/gpt/ckpt.pt --data val.bin" in told.stdout
    assert "steepness" in run("--help").stdout
    refused = run("steepness", "x.pt", "--data", "y", "--scale", 0)
    assert refused.exit_code == 2
    assert "expected a whole number ≥ 1, got 0" in refused.stderr

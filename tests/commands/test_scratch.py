"""`--scratch` takes the working files, continues from them, and nothing of them stays."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lite_probe.commands import options
from lite_probe.measurements.base import Plan
from lite_probe.measurements.spectrum import SpectrumPlan
from lite_probe.results.store import load
from tests.commands.running import BATCH, replay, run, subspace
from tests.plans import laid_out

FEW = ("--top", "2", "--bottom", "1", "--probes", "2")


def test_working_files_go_to_the_scratch_folder(
    tiny_llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    run_plan = Plan.run

    def measured(plan: Any, task: Any, **given: Any) -> object:
        seen.append(given["state_directory"])
        return run_plan(plan, task, **given)

    monkeypatch.setattr(Plan, "run", measured)
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    for folder in (out, tmp_path / "other" / "out"):
        found = run(
            "spectrum", tiny_llama, "--data", text, "--out", folder, *BATCH, *FEW, "--scratch", scratch, "--json"
        )
        assert found.exit_code == 0, found.stderr
        assert f"in {scratch}/out-" in found.stderr.replace("\n", "")
    assert [path.parent for path in seen] == [scratch, scratch]
    assert seen[0] != seen[1]  # run directories of one name do not share
    assert list(scratch.iterdir()) == []


def test_a_dry_run_tells_sizes_and_places(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    common = ("spectrum", tiny_llama, "--data", text, "--out", tmp_path / "out", *BATCH, *FEW, "--dry-run")
    plan = json.loads(run(*common, "--json").stdout)
    assert plan["scratch"] == plan["directory"] == str(tmp_path / "out")
    assert plan["result_bytes"] == 3 * 4 * plan["num_parameters"]
    assert plan["scratch_bytes"] > plan["result_bytes"]
    elsewhere = run(*common, "--scratch", tmp_path / "fast")
    assert f"in {tmp_path}/fast/out-" in elsewhere.stderr.replace("\n", "")
    assert f"stay in {tmp_path}/out" in elsewhere.stderr.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_told_as_an_interrupted_run_goes_on(
    tiny_llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpectrumPlan, "as_begun", lambda plan, task, folder: laid_out(plan, basis_columns=7))
    found = run("spectrum", tiny_llama, "--data", text, "--out", tmp_path, *BATCH, *FEW, "--dry-run", "--json")
    assert "basis of 7 vectors" in " ".join(found.stderr.split())
    assert json.loads(found.stdout)["basis_columns"] == 7


@pytest.mark.parametrize("place", ["scratch", "out"])
def test_a_full_disk_is_refused_first(
    place: str, tiny_llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    more = ("--scratch", tmp_path / "scratch") if place == "scratch" else ()
    found = run("spectrum", tiny_llama, "--data", text, "--out", tmp_path / "out", *BATCH, *FEW, *more)
    assert found.exit_code == 6, found.stderr
    said = " ".join(found.stderr.split())
    assert "of free disk in" in said
    assert "--scratch DIR" in said
    assert list(tmp_path.iterdir()) == []


_SLOWLY = """
import sys, time
import torch
from lite_probe.runtime import resumable
from lite_probe.spectra.lanczos import Lanczos
resumable._LONGEST_INTERVAL = 0.0
step = Lanczos.step
def slowly(self):
    step(self)
    time.sleep(0.2)
Lanczos.step = slowly
from lite_probe.commands.main import cli
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_measurement_continues_from_the_scratch_folder(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    asked = ["spectrum", tiny_llama, "--data", text, *BATCH, "--scratch", scratch]
    with subprocess.Popen(
        [sys.executable, "-c", _SLOWLY, *map(str, [*asked, "--out", tmp_path / "out", "-q"])]
    ) as process:
        deadline = time.monotonic() + 240
        while not list(scratch.rglob("basis-*.bin")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    assert list(scratch.rglob("head.json"))
    assert not list(tmp_path.glob("out/*.state"))
    assert run(*asked, "--out", tmp_path / "out").exit_code == 0
    assert run(*asked, "--out", tmp_path / "whole").exit_code == 0
    continued, whole = (load(tmp_path / name, "spectrum") for name in ("out", "whole"))
    assert continued.eigenvalues.tobytes() == whole.eigenvalues.tobytes()
    assert continued.trace == whole.trace
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_subspace_and_replay_use_it_too(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for command in (subspace, replay):
        found = command(tiny_llama, text, tmp_path / "out", "--scratch", scratch)
        assert found.exit_code == 0, found.stderr
        assert list(scratch.iterdir()) == []
    assert not list((tmp_path / "out").glob("*.state"))


def test_it_is_named_by_hand_only(tmp_path: Path) -> None:
    assert "scratch" in options._NOT_CONFIGURABLE


def test_one_meaning_of_memory(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    """With a mebibyte, which no process fits into, every command refuses and says what it needs."""
    assert run("spectrum", tiny_llama, "--data", text, "--out", tmp_path, *BATCH, *FEW).exit_code == 0
    for command in (run, subspace, replay):
        if command is run:
            found = run("spectrum", tiny_llama, "--data", text, "--out", tmp_path / "new", *BATCH, "--memory", "1MiB")
        else:
            found = command(tiny_llama, text, tmp_path, "--memory", "1MiB")
        assert found.exit_code == 2, found.stderr
        said = " ".join(found.stderr.split())
        assert "expected at least" in said
        assert "iB of memory for" in said
        assert "got 1 MiB" in said
        assert "allow more with --memory" in said

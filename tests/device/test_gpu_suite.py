"""The suite and the benchmark for a GPU run here in tiny sizes on the CPU: their own code is what is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu

ROOT = Path(__file__).parents[2]
# One of each make: what differs beyond is the model or the optimizer, which other tests have.
CHOSEN = (
    "tests/gpu/test_against_the_cpu.py::test_products[hessian, rebuilt-llama]",
    "tests/gpu/test_against_the_cpu.py::test_products[ggn by differences-llama]",
    "tests/gpu/test_against_the_cpu.py::test_loss_and_gradient[qwen2_moe]",
    "tests/gpu/test_against_the_cpu.py::test_optimizers[soap-lite-gpt2]",
    "tests/gpu/test_against_the_cpu.py::test_the_command_line",
    "tests/gpu/test_memory.py",
    "tests/gpu/test_running.py::test_a_killed_run_continues",
    "tests/gpu/test_running.py::test_gradients_repeat",
    "tests/gpu/test_running.py::test_what_is_waited_for",
    "tests/gpu/test_running.py::test_a_step_does_not_wait[muon-lite]",
)

pytestmark = pytest.mark.slow


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_suite_passes_on_the_cpu() -> None:
    found = run("pytest", "-q", "-p", "no:cacheprovider", *CHOSEN, "--device", "cpu", "--tiny")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "skipped" not in found.stdout


def test_without_a_device_the_suite_says_why_it_is_skipped() -> None:
    found = run("pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_memory.py", "--device", "cuda")
    assert found.returncode == 0, found.stdout
    assert "passed" not in found.stdout
    assert "needs a CUDA device; torch " in found.stdout


def test_every_part_of_the_benchmark_runs(tmp_path: Path) -> None:
    found = run("tests.benchmarks.gpu", "--device", "cpu", "--tiny", "--json", str(tmp_path / "rows.json"))
    assert found.returncode == 0, found.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert not [row for row in rows if "failed" in row]
    said = {row["what"] for row in rows}
    for part in ("gradient", "hessian, kept, 1 at once", "hessian by differences", "lanczos step", "step of muon-lite"):
        assert part in said
    assert {"hessian, kept, in tf32", "hessian, kept, in bf16", "SVD of 32", "gradient at 350M"} <= said
    for peer in ("lite-probe", "PyHessian", "hessian-eigenthings", "curvlinops"):
        assert f"product, rebuilt, at 124M: {peer}" in found.stdout


def test_the_benchmark_says_what_it_lacks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main()
    assert "sees no CUDA device; --device cpu --tiny tries the script" in capsys.readouterr().out

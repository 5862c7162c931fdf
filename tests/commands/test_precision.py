"""`--precision`: of weights, and of what matrix products are multiplied in."""

import json
from pathlib import Path

import pytest

from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import load
from tests.commands.running import BATCH, run

FEW = ("--top", 2, "--bottom", 0, "--probes", 2, "--tol", 0.01)


def test_products_in_fewer_bits_are_counted_and_said(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = run(
        "spectrum", tiny_llama, "--data", text, "--out", tmp_path, *BATCH, *FEW, "--precision", "bf16", "--json"
    )
    assert found.exit_code == 0, found.stderr
    assert " in bf16: 0.0" in found.stderr
    assert "note: Hessian products were multiplied in fewer bits, " in found.stderr
    assert "note: this device has no units for bf16" in found.stderr
    printed = json.loads(found.stdout)
    assert 0 < printed["num_fast_hvps"] < printed["num_hvps"]
    assert 0 < printed["product_error"] < 0.05
    spectrum: Spectrum = load(tmp_path, "spectrum")
    assert spectrum.config["products"] == "bf16"
    assert spectrum.provenance.precision == "float32"
    assert spectrum.provenance.details["products"].startswith(f"{printed['num_fast_hvps']} of {printed['num_hvps']} in")


@pytest.mark.parametrize(("precision", "weights"), [("float32", "float32"), ("float64", "float64")])
def test_whole_products_are_what_is_taken_here(
    precision: str, weights: str, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    found = run("spectrum", tiny_llama, "--data", text, "--out", tmp_path, *BATCH, *FEW, "--precision", precision)
    assert found.exit_code == 0, found.stderr
    spectrum: Spectrum = load(tmp_path, "spectrum")
    assert spectrum.config["products"] == "float32"
    assert spectrum.whole.num_fast_hvps == 0
    assert spectrum.provenance.precision == weights
    if precision == "float32":  # as it would be by itself, without units
        again = run("spectrum", tiny_llama, "--data", text, "--out", tmp_path, *BATCH, *FEW)
        assert "already measured" in again.stderr


@pytest.mark.parametrize("command", ["subspace", "steps", "replay", "tune"])
def test_other_commands_take_no_fewer_bits(command: str, tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    refused = run(command, tiny_llama, "--data", text, "--out", tmp_path, "--precision", "tf32")
    assert refused.exit_code == 2
    assert f"expected --precision float32 or float64 for {command}, got tf32" in refused.stderr
    assert "only lite-probe spectrum multiplies in fewer bits" in refused.stderr
    assert not (tmp_path / "spectrum.json").exists()


def test_the_demo_takes_none_either(tmp_path: Path) -> None:
    refused = run("demo", "--out", tmp_path, "--precision", "bf16")
    assert refused.exit_code == 2
    assert "expected --precision float32 or float64 for demo, got bf16" in refused.stderr

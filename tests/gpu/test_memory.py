"""Memory: what a plan says against the true peak, plans on part of the card, and what is said where it runs out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lite_probe.runtime.memory import memory_in_use, peak_during
from lite_probe.spectra.operator import Measured, OperatorMeasurement
from tests.commands.conftest import save_llama
from tests.commands.running import BATCH, run
from tests.gpu.cases import large_task, make_task
from tests.plans import laid_out, plan_spectrum

pytestmark = pytest.mark.cuda

SHARES = (0.3, 0.5, 0.7)  # of the card
ASKED: dict[str, Any] = {"top": 2, "bottom": 0, "probes": 2, "probe_steps": 2, "max_products": 6}
WITHIN = 0.2


def card(device: torch.device) -> int:
    """Bytes of the card; of a CPU as many as any has."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else 2**30


@pytest.mark.parametrize("layout", ["kept", "rebuilt"])
def test_a_plan_says_the_true_peak(layout: str, device: torch.device, tiny: bool) -> None:
    task = large_task(device, tiny=tiny)
    plan = plan_spectrum(task, **ASKED)
    if layout == "rebuilt":
        # As little as is accepted: what does not fit beside one graph is rebuilt.
        least = plan.memory_bytes
        for share in (0.9, 0.8, 0.7, 0.6, 0.5):
            try:
                plan = plan_spectrum(task, memory=int(share * least), **ASKED)
            except Exception as error:  # noqa: BLE001 - refused, as it should be once too little is left
                assert "of memory for" in str(error)  # noqa: PT017
                break
    true = peak_during(device, lambda: plan.run(task))
    if device.type == "cuda":
        assert abs(plan.memory_bytes - true) <= WITHIN * true, (plan.memory_bytes, true, plan.layout)


@pytest.mark.parametrize("share", SHARES)
def test_a_plan_fits_a_share_of_the_card(share: float, device: torch.device, tiny: bool) -> None:
    task = large_task(device, tiny=tiny)
    allowed = int(share * card(device)) + (0 if device.type == "cuda" else memory_in_use(device))
    assert plan_spectrum(task, memory=allowed, **ASKED).memory_bytes <= allowed


@pytest.mark.parametrize("share", SHARES)
def test_what_the_allocator_keeps_counts_as_free(share: float, device: torch.device, tiny: bool) -> None:
    """Memory that was given back to torch, not to the card, is there for the plan."""
    task = large_task(device, tiny=tiny)
    before = plan_spectrum(task, **ASKED)
    ballast = torch.empty(int(share * card(device)), dtype=torch.uint8, device=device)
    del ballast
    assert plan_spectrum(task, **ASKED).layout == before.layout


@pytest.mark.parametrize("placement", ["device", "cpu", "disk"])
def test_wherever_the_basis_is_the_pairs_are_the_same(
    placement: str, device: torch.device, tiny: bool, tmp_path: Path
) -> None:
    task = make_task("llama", device, tiny=tiny)
    plan = plan_spectrum(task, top=2, bottom=1, probes=2, probe_steps=3, tolerance=1e-3)
    found = laid_out(plan, basis_placement=placement).run(task, state_directory=tmp_path)
    expected = plan.run(task)
    # Where sums are made decides their order.
    assert found.eigenvalues == pytest.approx(expected.eigenvalues, rel=1e-4)
    assert found.trace.value == pytest.approx(expected.trace.value, rel=1e-3)


def test_memory_that_runs_out_says_what_to_do(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, text = save_llama(tmp_path / "model", seed=5), tmp_path / "text.txt"
    text.write_text("".join(f"line {index}: {index * index} is a square.\n" for index in range(400)))

    def run_out(self: OperatorMeasurement) -> Measured:
        if device.type == "cuda":
            torch.empty(card(device) + 2**30, dtype=torch.uint8, device=device)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(OperatorMeasurement, "measure", run_out)  # what a plan meets, it refuses
    found = run(
        *("spectrum", checkpoint, "--data", text, "--out", tmp_path / "run", *BATCH, "--device", device.type),
        *("--top", "2", "--probes", "2"),
    )
    assert found.exit_code == 1
    assert "error: memory ran out: CUDA out of memory. Tried to allocate" in found.stderr
    assert "hint: a measurement takes less with --memory" in found.stderr
    assert "Traceback" not in found.stderr

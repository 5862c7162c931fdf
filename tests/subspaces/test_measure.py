"""The whole measurement: on every kind of model, without a trace, continued after a kill, refused where it must be."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lite_probe as lp
from lite_probe.errors import InputError, LiteProbeError, NumericsError, UsageError
from lite_probe.measurements import subspace as measuring
from lite_probe.measurements.base import discard_state
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.measurements.subspace import measure_subspace
from lite_probe.operators.hessian import GaussNewtonOperator, HessianOperator
from lite_probe.results.arrays import ArraysFile, write_arrays
from lite_probe.results.blocks import BlockPart
from lite_probe.results.record import decode_record, encode_record
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.subspace import SubspaceMeasurement
from lite_probe.spectra import batches_digest
from lite_probe.spectra.state import SavedState
from lite_probe.task import Task
from tests import models, oracles
from tests.plans import laid_out, plan_subspace
from tests.subspaces import landscapes

pytestmark = pytest.mark.slow

K, PROBES, WARM = 3, 8, 6
OPTIMIZERS = ("adamw-lite", "soap-lite")
ASKED: dict[str, Any] = {"probes": PROBES, "warm_batches": WARM}
# Of one model, without what takes longest.
QUICK: dict[str, Any] = {**ASKED, "overlaps": False, "preconditioned": False, "optimizers": OPTIMIZERS}


def trained(name: str, dtype: torch.dtype = torch.float64) -> Task:
    """One of the small models, with training batches that its evaluation batches are not."""
    task = models.make_task(name, dtype)
    if name == "mlp":
        generator = torch.Generator().manual_seed(3)
        inputs, targets = task.evaluation[0]
        train: Sequence[Any] = [
            (inputs + torch.randn(inputs.shape, generator=generator).to(inputs), targets) for _ in range(WARM)
        ]
    else:
        vocabulary = task.model.config.vocab_size  # type: ignore[union-attr]
        train = [batch for seed in (1, 2) for batch in models.token_batches(int(vocabulary), seed=seed)]
    return replace(task, train=train)


@cache
def spectrum_of(name: str, dtype: torch.dtype = torch.float64) -> Spectrum:
    return measure_spectrum(trained(name, dtype), top=K, bottom=1, probes=2, probe_steps=2, tolerance=1e-3)


@cache
def measured(name: str, dtype: torch.dtype = torch.float64) -> SubspaceMeasurement:
    return measure_subspace(trained(name, dtype), spectrum_of(name, dtype), **ASKED)


def assert_same_bits(one: SubspaceMeasurement, other: SubspaceMeasurement) -> None:
    """All numbers of two measurements are the same; their provenance has different times."""
    (fields, arrays), (others, other_arrays) = (
        encode_record(replace(each, provenance=measured("mlp").provenance)) for each in (one, other)
    )
    assert fields == others
    assert arrays.keys() == other_arrays.keys()
    for key, array in arrays.items():
        assert array.tobytes() == other_arrays[key].tobytes(), key


# -- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float64) for name in models.MODELS), ("llama", torch.float32)], ids=str
)
def test_it_works_on_every_kind_of_model(name: str, dtype: torch.dtype) -> None:
    found, task = measured(name, dtype), trained(name, dtype)
    assert (found.size, found.num_probes, found.num_warm_batches) == (K, PROBES, WARM)
    assert set(found.calibrations) == {"adamw-lite", "muon-lite", "soap-lite"}
    sizes = {part.block for parts in (task.blocks or {}).values() for part in parts}
    for calibration in found.calibrations.values():
        assert set(calibration.blocks) == sizes
        assert sum(block.num_parameters for block in calibration.blocks.values()) == found.num_parameters
        for block in calibration.blocks.values():
            assert np.all(np.isfinite(block.curvature))
            assert np.all(np.isfinite(block.curvature_stderr))
        assert calibration.preconditioned is not None
        assert calibration.preconditioned.converged[0]
        own = calibration.own_norm
        assert own is not None
        assert own.is_normalised
        assert len(own.values) == 3
        assert own.num_hvps == found.hvps_by_part[f"norm of {calibration.optimizer}"] <= 15
        assert own.edge_lr == pytest.approx(2.0 * own.gradient_norm / own.value)
    assert [one.kind for one in found.overlaps] == ["batches", "operators"]
    assert found.loss == pytest.approx(spectrum_of(name, dtype).loss)
    assert found.gradient_norm == pytest.approx(spectrum_of(name, dtype).gradient_norm, rel=1e-4)


def test_a_block_divided_among_several_sums_to_its_trace() -> None:
    """Σ_b dim_b κ_b of GPT-2's blocks, each one's in three ways, is the trace of the dense Hessian's block."""
    hessian, task = oracles.known_hessian("gpt2").numpy(), trained("gpt2")
    spectrum = spectrum_of("gpt2")
    assert spectrum.eigenvectors is not None
    for name, calibration in measured("gpt2").calibrations.items():
        for block_name, block in calibration.blocks.items():
            rows = oracles.block_indices(task, block_name).numpy()
            found = float(block.curvature @ block.dimensions)
            # Bands are added as if independent, at four reported errors; a χ² of few samples may be low by half.
            error = float(np.linalg.norm(block.curvature_stderr * block.dimensions))
            assert abs(found - np.trace(hessian[np.ix_(rows, rows)])) <= 8 * error, (name, block_name)


def test_own_norms_bound_the_sharpness_of_the_dense_hessian() -> None:
    """Signs of all parameters under AdamW: never above the best of 200 long ascents on the dense matrix, nor far below.

    ‖d‖₂ ≤ √N for entries up to 1, so that S ≤ λ₁N.
    """
    task, found = trained("mlp"), measured("mlp")
    hessian = oracles.known_hessian("mlp").numpy()
    own, size = found.calibrations["adamw-lite"].own_norm, len(hessian)
    assert own is not None
    generator, best = np.random.default_rng(0), 0.0
    for _ in range(200):
        signs = np.sign(generator.standard_normal(size))
        for _ in range(30):
            signs = np.sign(hessian @ signs)
            best = max(best, float(signs @ hessian @ signs))
    assert 0.95 * best <= own.value <= best * (1 + 1e-9)
    assert own.value <= np.linalg.eigvalsh(hessian)[-1] * size
    losses, counts = zip(*(task.loss(batch) for batch in task.evaluation), strict=True)
    parts = torch.autograd.grad(torch.stack(losses).sum() / sum(counts), list(task.model.parameters()))
    assert own.gradient_norm == pytest.approx(sum(float(part.abs().sum()) for part in parts), rel=1e-9)


def test_gradient_descents_own_sharpness_is_the_leading_eigenvalue() -> None:
    asked = {**ASKED, "overlaps": False, "optimizers": ("sgd",)}
    own = measure_subspace(trained("mlp"), spectrum_of("mlp"), **asked).calibrations["sgd"].own_norm
    assert own is not None
    assert own.value == pytest.approx(spectrum_of("mlp").eigenvalues[0], rel=1e-3)
    assert own.edge_lr == pytest.approx(2.0 / own.value)


def test_steps_of_no_known_norm_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise InputError("expected steps of a known norm, got those of mine")

    monkeypatch.setattr("lite_probe.measurements.subspace.unit_ball", refuse)
    asked = {**ASKED, "overlaps": False, "optimizers": ("adamw-lite",)}
    found = measure_subspace(trained("mlp"), spectrum_of("mlp"), **asked)
    assert found.calibrations["adamw-lite"].own_norm is None
    assert not any(part.startswith("norm of") for part in found.hvps_by_part)
    (message,) = [note.message for note in found.notes if note.code == "norm-unknown"]
    assert message == (
        "Sharpness in the norm of adamw-lite was not measured: expected steps of a known norm, got those of mine."
    )


def test_a_result_without_own_norms_is_read(tmp_path: Path) -> None:
    """What earlier versions wrote has none."""
    encoded, arrays = encode_record(measured("mlp"))
    fields = json.loads(json.dumps(encoded))
    for calibration in fields["calibrations"].values():
        del calibration["own_norm"]
    with (tmp_path / "a.safetensors").open("wb") as file:
        write_arrays(file, {name: array for name, array in arrays.items() if "own_norm" not in name})
    read = decode_record(SubspaceMeasurement, fields, ArraysFile(tmp_path / "a.safetensors"))
    assert [one.own_norm for one in read.calibrations.values()] == [None] * 3
    assert read.num_hvps == measured("mlp").num_hvps


def test_the_gradients_share_is_that_of_dense_vectors() -> None:
    task = trained("mlp")
    found, spectrum = measured("mlp"), spectrum_of("mlp")
    assert spectrum.eigenvectors is not None
    vectors = spectrum.eigenvectors[:, :K].astype(np.float64)

    def share_of(batches: Sequence[Any]) -> float:
        total, count = torch.zeros(()), 0
        for batch in batches:
            loss, own = task.loss(batch)
            total, count = total + loss, count + own
        parts = torch.autograd.grad(total / count, list(task.model.parameters()))
        gradient = torch.cat([part.flatten() for part in parts]).double().numpy()
        return float(np.sum((vectors.T @ gradient) ** 2) / (gradient @ gradient))

    assert found.gradient_share == pytest.approx(share_of(task.evaluation), rel=1e-5)
    shares = np.array([share_of([batch]) for batch in task.train])
    assert found.batch_gradient_share.value == pytest.approx(shares.mean(), rel=1e-5)
    assert found.batch_gradient_share.stderr == pytest.approx(shares.std(ddof=1) / np.sqrt(WARM), rel=1e-5)
    assert found.expected_share == K / found.num_parameters
    assert found.random_share.low < found.random_share.value == found.expected_share < found.random_share.high


def test_overlaps_are_those_of_dense_eigenvectors() -> None:
    """Halves and Gauss–Newton of the quadratic have its own Hessian: only the vectors' residuals keep them apart."""
    task, spectrum = landscapes.quadratic_task(), landscapes.quadratic_spectrum()
    found = measure_subspace(task, spectrum, **{**QUICK, "overlaps": True, "optimizers": ("adamw-lite",)})
    for overlap in found.overlaps:
        assert len(overlap.angles) == 4
        assert overlap.overlap > 0.99
        assert overlap.residual <= 2e-2
        assert overlap.num_parameters == landscapes.SIZE


def test_gauss_newton_is_told_from_the_hessian() -> None:
    spectrum = spectrum_of("mlp")
    dense = oracles.known_gauss_newton("mlp").numpy()
    exact = np.linalg.eigh(dense)[1][:, ::-1][:, :K]
    assert spectrum.eigenvectors is not None
    cosines = np.linalg.svd(exact.T @ spectrum.eigenvectors[:, :K], compute_uv=False)
    (overlap,) = [one for one in measured("mlp").overlaps if one.kind == "operators"]
    # Vectors of a residual of 1e-2 lean by that over their relative gap, which is some tenths here.
    assert overlap.overlap == pytest.approx(float(np.mean(cosines**2)), abs=0.05)


def test_other_checkpoints_are_compared() -> None:
    task = landscapes.quadratic_task()
    moved = replace(landscapes.quadratic_spectrum(), fingerprint="another")
    fewer = replace(moved.whole, converged=np.array([True, True, False, False]))
    others = [("same", moved), ("fewer", replace(moved, whole=fewer))]
    found = measure_subspace(task, landscapes.quadratic_spectrum(), **QUICK, others=others, label="this")
    assert [(one.kind, one.first, one.second) for one in found.overlaps] == [
        ("checkpoints", "same", "this"),
        ("checkpoints", "fewer", "this"),
    ]
    assert [len(one.angles) for one in found.overlaps] == [4, 2]
    assert all(one.overlap == pytest.approx(1.0, abs=1e-5) for one in found.overlaps)


def test_it_can_be_saved_and_loaded(tmp_path: Path) -> None:
    lp.save(measured("llama"), tmp_path)
    loaded = lp.load(tmp_path, "subspace")
    assert_same_bits(loaded, measured("llama"))


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    one, again, other = (measure_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK, seed=seed) for seed in (0, 0, 1))
    assert_same_bits(one, again)
    for name in OPTIMIZERS:
        first, second = one.calibrations[name].blocks["ffn"], other.calibrations[name].blocks["ffn"]
        assert not np.any(first.curvature == second.curvature)
    assert one.fingerprint != other.fingerprint


def test_calibration_costs_the_same_products_for_one_optimizer_more() -> None:
    one = measure_subspace(trained("mlp"), spectrum_of("mlp"), **{**QUICK, "optimizers": ("adamw-lite",)})
    two = measure_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK)
    assert one.hvps_by_part["calibration"] == PROBES + PROBES // 4
    assert two.hvps_by_part["calibration"] == PROBES + 2 * (PROBES // 4)
    first, second = one.calibrations["adamw-lite"].blocks["out"], two.calibrations["adamw-lite"].blocks["out"]
    np.testing.assert_array_equal(first.curvature, second.curvature)


# -- notes -----------------------------------------------------------------------------------------------------------


def test_fewer_training_batches_than_asked_are_noted() -> None:
    found = measure_subspace(trained("mlp"), spectrum_of("mlp"), **{**QUICK, "warm_batches": 50})
    assert found.num_warm_batches == WARM
    (note,) = [note for note in found.notes if note.code == "fewer-warm-batches"]
    assert "on 6 batches" in note.message


def test_batches_that_cannot_be_divided_are_noted() -> None:
    task = replace(landscapes.quadratic_task(), evaluation=[landscapes.quadratic_task().evaluation[0][:1]])
    spectrum = measure_spectrum(task, top=2, bottom=0, probes=2, probe_steps=2)
    found = measure_subspace(task, spectrum, **{**QUICK, "overlaps": True, "optimizers": ("adamw-lite",)})
    assert [one.kind for one in found.overlaps] == ["operators"]
    (note,) = [note for note in found.notes if note.code == "no-halves"]
    assert "could not be divided in two" in note.message
    assert found.hvps_by_part["overlap of halves"] == 0


def test_a_bounded_metric_is_noted() -> None:
    """The last word of the vocabulary never occurs: its embedding saw no gradient."""
    bounded = [note for note in measured("gpt2").notes if note.code == "metric-bounded"]
    (message,) = [note.message for note in bounded if "adamw-lite" in note.message]
    size = sum(parameter.numel() for parameter in trained("gpt2").model.parameters())
    words = message.removeprefix("In the metric of adamw-lite the preconditioner of ").split()
    assert 0 < int(words[0].replace(",", "")) < size
    assert words[1:4] == ["of", f"{size:,}", "directions"]


# -- what it costs ---------------------------------------------------------------------------------------------------


def test_every_product_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = trained("mlp"), {HessianOperator: 0.0, GaussNewtonOperator: 0.0}
    plan = plan_subspace(task, spectrum_of("mlp"), **ASKED)
    for kind in seen:

        def counted(self: Any, *args: Any, kind: Any = kind, through: Any = kind._through) -> Any:
            seen[kind] += 1.0 / len(self.task.evaluation)
            return through(self, *args)

        monkeypatch.setattr(kind, "_through", counted)
    found = plan.run(task)
    assert sum(seen.values()) == pytest.approx(found.num_hvps)
    assert found.num_hvps == sum(found.hvps_by_part.values())
    assert seen[GaussNewtonOperator] == pytest.approx(found.hvps_by_part["overlap with Gauss–Newton"])


def test_progress_counts_up_to_all_products() -> None:
    told: list[tuple[int, int, str]] = []
    found = measure_subspace(trained("mlp"), spectrum_of("mlp"), **ASKED, on_progress=lambda *now: told.append(now))
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert all(now[0] <= now[1] for now in told)
    assert done[-1] == found.num_hvps
    for start in (
        *("warming", "calibrating", "calibrating soap-lite", "metric of muon-lite"),
        *("sharpness in the norm of muon-lite", "sharp subspace of half 2"),
    ):
        assert any(now[2].startswith(start) for now in told), start


def test_a_plan_says_what_will_be_done() -> None:
    plan = plan_subspace(trained("mlp"), spectrum_of("mlp"), **ASKED)
    found = measured("mlp")
    assert (plan.size, plan.num_parameters) == (found.size, found.num_parameters)
    assert plan.fingerprint == found.fingerprint
    assert plan.num_gradients == 4 * WARM + 1  # and of three quarters of them, four times
    # Pairs of a small model converge sooner or later than those of a trained language model.
    assert plan.num_hvps == pytest.approx(found.num_hvps, rel=0.5)
    assert plan.summary().startswith(f"{K} sharp directions, ~{plan.num_hvps} Hessian products and 25 gradients, ~")
    less = plan_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK)
    assert less.num_hvps == PROBES + 2 * (PROBES // 4)
    assert less.fingerprint != plan.fingerprint


def test_a_plan_counts_what_optimizers_hold() -> None:
    """The same allowance leaves room for fewer Krylov vectors where eigenvectors and states take more of it."""
    task, spectrum = trained("llama"), spectrum_of("llama")
    one, three = (
        plan_subspace(task, spectrum, **{**ASKED, "optimizers": names})
        for names in (("adamw-lite",), ("adamw-lite", "muon-lite", "soap-lite"))
    )
    # Bytes per parameter of Muon's and SOAP's directions; peaks of two runs of this process differ by some pages.
    assert three.memory_bytes - one.memory_bytes >= 44 * one.num_parameters - 2**22
    assert one.layout.basis_placement == three.layout.basis_placement == "device"


@pytest.mark.parametrize(
    ("placement", "halves_on_disk"), [("cpu", False), ("disk", False), ("cpu", True), ("disk", True)]
)
def test_vectors_elsewhere_give_the_same_numbers(placement: Any, halves_on_disk: bool, tmp_path: Path) -> None:
    asked, task = {**ASKED, "optimizers": ("soap-lite",)}, trained("mlp", torch.float32)
    plan = plan_subspace(task, spectrum_of("mlp", torch.float32), **asked)
    elsewhere = replace(laid_out(plan, basis_placement=placement), halves_on_disk=halves_on_disk)
    found = [one.run(task, state_directory=tmp_path / name) for name, one in (("a", plan), ("b", elsewhere))]
    assert {overlap.kind for overlap in found[0].overlaps} >= {"batches", "operators"}
    # Where a vector begins in memory decides a rounding of its products.
    for one, other in zip(*(measured.overlaps for measured in found), strict=True):
        np.testing.assert_allclose(one.angles, other.angles, rtol=0, atol=1e-6 if halves_on_disk else 0)
    overlaps = tuple(
        replace(one, angles=other.angles) for one, other in zip(found[1].overlaps, found[0].overlaps, strict=True)
    )
    assert_same_bits(found[0], replace(found[1], overlaps=overlaps))


def test_the_subspaces_of_halves_go_to_disk_where_memory_does_not_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_subspace(trained("mlp"), spectrum_of("mlp"), **ASKED)
    assert not plan.halves_on_disk
    vector = 4 * plan.num_parameters
    shortest, both = (plan.size + 8 + 2) * vector, 2 * plan.size * vector
    monkeypatch.setattr(measuring, "memory_in_use", lambda device: 0)

    def held(allowed: int) -> measuring._Held:
        return measuring._Held(trained("mlp"), replace(plan.request, memory=allowed), 4, {})

    sharp = plan.size * vector  # of the spectrum, where a quarter of what is allowed holds them
    assert sharp <= (both + shortest) // 4
    ample, tight = held(sharp + both + shortest), held(sharp + both + shortest - 1)
    assert (ample.halves_on_disk, tight.halves_on_disk) == (False, True)
    assert (ample._halves, tight._halves) == (both, 0)
    with pytest.raises(UsageError, match="expected a state_directory for the sharp subspaces of halves of the batches"):
        replace(plan, halves_on_disk=True).run(trained("mlp"))


def test_a_basis_on_disk_needs_a_folder() -> None:
    plan = laid_out(plan_subspace(trained("mlp"), spectrum_of("mlp"), **ASKED), basis_placement="disk")
    with pytest.raises(UsageError, match="expected a state_directory for a basis on disk, got none"):
        plan.run(trained("mlp"))


def test_rebuilt_graphs_and_shared_passes_give_the_same_numbers() -> None:
    task, spectrum = trained("mlp"), spectrum_of("mlp")
    plan = plan_subspace(task, spectrum, **QUICK)
    lean = laid_out(plan, kept_graphs=0, vectors_per_pass=3)
    one, other = (each.run(task) for each in (plan, lean))
    for name in OPTIMIZERS:
        for block, found in one.calibrations[name].blocks.items():
            np.testing.assert_allclose(other.calibrations[name].blocks[block].curvature, found.curvature, rtol=1e-9)


# -- no trace --------------------------------------------------------------------------------------------------------


class _InterruptionError(Exception):
    """Comes out of `on_progress`."""


@pytest.mark.parametrize("where", ["", "warming", "calibrating", "metric", "sharpness", "sharp subspace"])
def test_the_task_comes_back_bitwise(where: str) -> None:
    task = trained("llama", torch.float32)
    task.model.train()
    for index, parameter in enumerate(task.model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if index % 2 else None
    torch.manual_seed(123)
    before = _everything(task)

    def on_progress(done: int, expected: int, label: str) -> None:
        if where and label.startswith(where):
            raise _InterruptionError

    asked = {**ASKED, "optimizers": ("muon-lite", "soap-lite")}
    if where:
        with pytest.raises(_InterruptionError):
            measure_subspace(task, spectrum_of("llama", torch.float32), **asked, on_progress=on_progress)
    else:
        measure_subspace(task, spectrum_of("llama", torch.float32), **asked, on_progress=on_progress)
    after = _everything(task)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name], name


def _everything(task: Task) -> dict[str, Any]:
    state: dict[str, Any] = {
        "rng": torch.get_rng_state(),
        "modes": [module.training for module in task.model.modules()],
        "precision": torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    }
    for name, parameter in task.model.named_parameters():
        state[name] = parameter.detach().clone()
        state[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"{name}.requires_grad"] = parameter.requires_grad
    return {**state, **{name: buffer.clone() for name, buffer in task.model.named_buffers()}}


# -- continued after a kill ------------------------------------------------------------------------------------------


@pytest.fixture
def _every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SavedState, "due", property(lambda self: self.directory is not None))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here; hundreds of saves take seconds


def killed_at(call: int) -> Callable[[int, int, str], None]:
    calls = 0

    def on_progress(done: int, expected: int, label: str) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise _InterruptionError

    return on_progress


RESUMED: dict[str, Any] = {**ASKED, "probes": 4, "optimizers": OPTIMIZERS}


@cache
def left_alone() -> tuple[SubspaceMeasurement, list[str]]:
    labels: list[str] = []
    found = measure_subspace(
        trained("mlp"), spectrum_of("mlp"), **RESUMED, on_progress=lambda *now: labels.append(now[2])
    )
    return found, labels


@pytest.mark.usefixtures("_every_step_is_saved")
@pytest.mark.parametrize("part", range(14))
def test_a_killed_measurement_ends_with_the_same_bits(part: int, tmp_path: Path) -> None:
    expected, labels = left_alone()
    call = 1 + part * (len(labels) - 1) // 13
    with pytest.raises(_InterruptionError):
        measure_subspace(
            trained("mlp"), spectrum_of("mlp"), **RESUMED, state_directory=tmp_path, on_progress=killed_at(call)
        )
    told: list[int] = []
    continued = measure_subspace(
        trained("mlp"),
        spectrum_of("mlp"),
        **RESUMED,
        state_directory=tmp_path,
        on_progress=lambda *now: told.append(now[0]),
    )
    assert_same_bits(continued, expected)
    assert told == sorted(told)
    assert told[-1] == expected.num_hvps


@pytest.mark.usefixtures("_every_step_is_saved")
def test_finished_parts_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {**RESUMED, "state_directory": tmp_path}
    first = measure_subspace(trained("mlp"), spectrum_of("mlp"), **asked)
    plan = plan_subspace(trained("mlp"), spectrum_of("mlp"), **RESUMED)

    def refuse(self: Any, *args: Any) -> Any:
        raise AssertionError("expected no product, got one")

    monkeypatch.setattr(HessianOperator, "_through", refuse)
    monkeypatch.setattr(GaussNewtonOperator, "_through", refuse)
    assert_same_bits(plan.run(trained("mlp"), state_directory=tmp_path), first)


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _edited(path: Path) -> None:
    """Another number where the first one is: still JSON of the right form."""
    path.write_text(re.sub(r"\b[1-9]", lambda digit: str(int(digit[0]) % 9 + 1), path.read_text(), count=1))


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.usefixtures("_every_step_is_saved")
@pytest.mark.parametrize("call", [9, 24, 41, -2], ids=["calibrating", "in a metric", "halves", "nearly done"])
def test_damaged_parts_are_measured_anew(call: int, tmp_path: Path) -> None:
    expected, labels = left_alone()
    kept = tmp_path / "kept"
    with pytest.raises(_InterruptionError):
        measure_subspace(
            trained("mlp"),
            spectrum_of("mlp"),
            **RESUMED,
            state_directory=kept,
            on_progress=killed_at(call % len(labels)),
        )
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    for index, file in enumerate(files):
        # One of them each, in turn: every part is measured anew in every way.
        ways = (_flipped, _zeroed, _edited, _pipe) if file.suffix == ".json" else (_flipped, _zeroed, _pipe)
        folder = tmp_path / str(index)
        shutil.copytree(kept, folder)
        ways[index % len(ways)](folder / file)
        found = measure_subspace(trained("mlp"), spectrum_of("mlp"), **RESUMED, state_directory=folder)
        assert [note.code for note in found.notes].count("damaged-state") == 1, file
        notes = tuple(note for note in found.notes if note.code != "damaged-state")
        assert_same_bits(replace(found, notes=notes), expected)


@pytest.mark.usefixtures("_every_step_is_saved")
def test_a_measurement_of_something_else_begins_anew(tmp_path: Path) -> None:
    measure_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK, state_directory=tmp_path)
    found = measure_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK, seed=1, state_directory=tmp_path)
    assert_same_bits(found, measure_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK, seed=1))


@pytest.mark.usefixtures("_every_step_is_saved")
def test_an_interrupted_measurement_keeps_its_memory_layout(tmp_path: Path) -> None:
    task, spectrum = trained("mlp"), spectrum_of("mlp")
    plan = plan_subspace(task, spectrum, **RESUMED)
    short = laid_out(plan, basis_columns=K + 6)
    expected = short.run(task)
    with pytest.raises(_InterruptionError):
        short.run(task, state_directory=tmp_path, on_progress=killed_at(30))
    # A later process may find more memory free; its own layout would round differently.
    assert_same_bits(plan.run(task, state_directory=tmp_path), expected)


@pytest.mark.usefixtures("_every_step_is_saved")
def test_less_memory_than_a_layout_takes_begins_anew(tmp_path: Path) -> None:
    task, spectrum = trained("mlp"), spectrum_of("mlp")
    plan = plan_subspace(task, spectrum, **QUICK)
    with pytest.raises(_InterruptionError):
        plan.run(task, state_directory=tmp_path, on_progress=killed_at(10))
    other = replace(laid_out(plan, basis_columns=K + 6), at_once="one")
    assert other.as_begun(task, tmp_path) == replace(plan, ground=other.as_begun(task, tmp_path).ground)
    tight = replace(other, request=replace(plan.request, memory=1))
    assert tight.as_begun(task, tmp_path) == tight
    found = tight.run(task, state_directory=tmp_path)
    assert [note.code for note in found.notes if note.code == "begun-anew"] == ["begun-anew"]


def test_a_plan_that_ranks_are_sent_has_no_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK)

    def refuse(spectrum: Spectrum, protocol: int) -> Any:
        raise AssertionError("a spectrum is sent")

    monkeypatch.setattr(Spectrum, "__reduce_ex__", refuse)
    pickle.dumps(replace(plan, request=None))


def test_discarding_removes_the_state(tmp_path: Path) -> None:
    measure_subspace(trained("mlp"), spectrum_of("mlp"), **QUICK, state_directory=tmp_path)
    assert (tmp_path / "subspace.state").is_dir()
    discard_state(tmp_path, "subspace")
    assert list(tmp_path.iterdir()) == []
    discard_state(tmp_path, "subspace")  # and again, where there is none


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [plan_subspace, measure_subspace])
@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"probes": 1}, UsageError, "expected probes of at least 2, got 1"),
        ({"warm_batches": 1}, UsageError, "expected warm_batches of at least 2, got 1"),
        (
            {"optimizers": ("muon-light",)},
            UsageError,
            "expected optimizers among .*muon-lite.*, each once, got muon-light",
        ),
        ({"optimizers": ()}, UsageError, "expected optimizers among .*, each once, got "),
        ({"optimizers": ("soap", "soap")}, UsageError, "expected optimizers among .*, each once, got soap, soap"),
        ({"size": 4}, UsageError, "expected a size of 1 to 3, the converged pairs of positive curvature, got 4"),
        ({"size": 0}, UsageError, "expected size of at least 1, got 0"),
        ({"memory": 1000}, UsageError, "expected at least .* of memory for the states of adamw-lite"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    call: Any, asked: dict[str, Any], kind: type[LiteProbeError], message: str
) -> None:
    task = trained("mlp")
    task.predict = _must_not_run
    with pytest.raises(kind, match=message):
        call(task, spectrum_of("mlp"), **{**ASKED, **asked})


def _must_not_run(model: nn.Module, batch: Any) -> Tensor:
    raise AssertionError("expected no forward pass before the request is refused")


@pytest.mark.parametrize("count", [0, 1])
def test_a_task_without_training_batches_is_refused(count: int) -> None:
    task = trained("mlp")
    task = replace(task, train=list(task.train)[:count], predict=_must_not_run)
    with pytest.raises(InputError, match=f"expected at least 2 training batches to warm .* on, got {count}") as raised:
        plan_subspace(task, spectrum_of("mlp"))
    assert "train_batches" in raised.value.hint


def test_a_spectrum_of_other_weights_is_refused() -> None:
    task = trained("mlp")
    with torch.no_grad():
        next(task.model.parameters()).add_(0.1)
    task.predict = _must_not_run
    with pytest.raises(InputError, match="expected a spectrum of these weights"):
        plan_subspace(task, spectrum_of("mlp"))


def test_a_spectrum_at_another_loss_is_refused() -> None:
    task = trained("mlp")
    criterion = task.criterion
    task.criterion = lambda outputs, batch: tuple(  # type: ignore[assignment,return-value]
        part * scale for part, scale in zip(criterion(outputs, batch), (1.5, 1), strict=True)
    )
    with pytest.raises(InputError, match="expected a spectrum at the loss"):
        plan_subspace(task, spectrum_of("mlp"))


def test_other_checkpoints_are_looked_at_before_anything_is_measured() -> None:
    task, spectrum = trained("mlp"), spectrum_of("mlp")
    task.predict = _must_not_run
    bad = {
        "larger": (spectrum_of("llama"), "expected checkpoints of [0-9,]+ parameters to compare with, got larger with"),
        "bare": (replace(spectrum, eigenvectors=None), "bare: expected a spectrum with eigenvectors, got one without"),
        "open": (
            replace(spectrum, whole=replace(spectrum.whole, converged=np.zeros(K, dtype=bool))),
            "open: expected converged eigenvectors of positive curvature, got none",
        ),
    }
    for name, (other, message) in bad.items():
        with pytest.raises(InputError, match=message):
            plan_subspace(task, spectrum, **ASKED, others=[(name, other)])


def test_blocks_that_nobody_knows_are_refused_by_the_optimizer() -> None:
    task = replace(trained("mlp"), blocks=None)
    with pytest.raises(InputError, match="expected a block for every matrix"):
        measure_subspace(task, spectrum_of("mlp"), **QUICK)


def test_blocks_that_a_family_knows_need_not_be_given() -> None:
    task, spectrum = trained("llama"), spectrum_of("llama")
    found = measure_subspace(replace(task, blocks=None), spectrum, **QUICK)
    known = measure_subspace(task, spectrum, **QUICK)
    for name in OPTIMIZERS:
        for block, calibration in known.calibrations[name].blocks.items():
            np.testing.assert_array_equal(found.calibrations[name].blocks[block].curvature, calibration.curvature)
    assert found.fingerprint != known.fingerprint  # a block map changes what is calibrated


def test_other_blocks_change_the_fingerprint() -> None:
    task, spectrum = landscapes.quadratic_task(), landscapes.quadratic_spectrum()
    moved = {**(task.blocks or {}), "v": (BlockPart("qk"),)}
    plans = [plan_subspace(one, spectrum, **QUICK) for one in (task, replace(task, blocks=moved))]
    assert plans[0].fingerprint != plans[1].fingerprint


@pytest.mark.parametrize("what", ["train", "others"])
def test_what_is_compared_with_changes_the_fingerprint(what: str) -> None:
    task, spectrum = trained("mlp"), spectrum_of("mlp")
    first = plan_subspace(task, spectrum, **QUICK)
    other = replace(task, train=list(task.train)[::-1]) if what == "train" else task
    others = [("other", replace(spectrum, fingerprint="x"))] if what == "others" else []
    assert plan_subspace(other, spectrum, **QUICK, others=others).fingerprint != first.fingerprint


def test_a_training_batch_that_is_not_finite_is_named() -> None:
    task = trained("mlp")
    inputs, targets = task.train[2]
    task = replace(task, train=[*task.train[:2], (inputs * float("nan"), targets), *task.train[3:]])
    with pytest.raises(NumericsError, match="expected a finite loss, got nan on warm-up batch 2"):
        measure_subspace(task, spectrum_of("mlp"), **QUICK)


def test_provenance_says_what_it_was_warmed_on() -> None:
    task, found = trained("mlp"), measured("mlp")
    assert found.provenance.batches_digest == batches_digest(task.evaluation)
    assert found.provenance.details["spectrum"] == spectrum_of("mlp").fingerprint
    assert found.provenance.details["warm-up batches"] == batches_digest(list(task.train))

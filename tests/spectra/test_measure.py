"""A task's measured spectrum equals its dense curvature, whole and per block, in every memory layout.

The truth is a dense float64 matrix of the same weights. Eigenvalues are held to the bound that their own residuals
promise, random estimates to standard errors that are computed from the true spectrum rather than from the samples.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lite_probe.criteria import squared_error
from lite_probe.errors import InputError, NumericsError, UsageError
from lite_probe.measurements import spectrum as measuring
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.operators.hessian import GaussNewtonOperator, HessianOperator
from lite_probe.results.blocks import BLOCK_NAMES, BlockPart
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.runtime.fingerprint import task_fingerprint
from lite_probe.runtime.memory import host_memory_allowed
from lite_probe.spectra import costs as planning
from lite_probe.spectra.costs import Costs
from lite_probe.task import Task
from lite_probe.task.batches import parts_of
from lite_probe.vectors.layout import ParameterLayout
from tests import models, oracles
from tests.plans import laid_out, plan_spectrum

pytestmark = pytest.mark.slow

FloatArray = NDArray[np.float64]
TOP, BOTTOM, PROBES = 6, 3, 8
ASKED: dict[str, Any] = {"top": TOP, "bottom": BOTTOM, "probes": PROBES, "probe_steps": 5}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
RESTARTED = {("gpt2", torch.float64)}  # the only ones whose basis fills up
# What lite-probe promises, relative to ‖H‖.
PROMISED = {torch.float64: 1e-9, torch.float32: 1e-4}
# Products err by up to 1e-14 and 1e-6 of ‖H‖ (tests/operators/test_products.py), and so do eigenvalues.
ROUNDING = {torch.float64: 2e-14, torch.float32: 2e-6}
DTYPES = (torch.float64, torch.float32)
_BLOCKS_IN_FLOAT64, _BLOCKS_IN_FLOAT32 = ("mlp", "gpt2"), ("mlp", "qwen2_moe")
PER_BLOCK = [
    *((name, torch.float64) for name in _BLOCKS_IN_FLOAT64),
    *((name, torch.float32) for name in _BLOCKS_IN_FLOAT32),
]


@functools.cache
def measured(name: str, dtype: torch.dtype) -> Spectrum:
    """One measurement per model and precision, shared by all tests that only look at it."""
    task = models.make_task(name, dtype)
    return measure_spectrum(task, **ASKED, tolerance=TOLERANCE[dtype], per_block=(name, dtype) in PER_BLOCK)


@functools.cache
def measured_ggn(name: str, dtype: torch.dtype) -> Spectrum:
    asked = {**ASKED, "bottom": 0}  # a Gauss–Newton matrix has hundreds of zero eigenvalues at its lower end
    return measure_spectrum(models.make_task(name, dtype), **asked, tolerance=TOLERANCE[dtype], operator="ggn")


def sub_block(name: str, block: str) -> FloatArray:
    rows = oracles.block_indices(models.make_task(name), block)
    return oracles.known_hessian(name)[rows][:, rows].numpy()


def assert_pairs(whole: OperatorSpectrum, dense: FloatArray, dtype: torch.dtype, norm: float) -> None:
    """Check that values at both ends are eigenvalues, as near as their residuals promise.

    With residual r and distance δ to the rest of the spectrum a Rayleigh quotient lies within min(r, r²/δ) of an
    eigenvalue (Kato–Temple). Half the gap to the next eigenvalue stands in for δ.
    """
    exact = np.linalg.eigvalsh(dense)
    gaps = np.minimum(np.diff(exact, prepend=-np.inf), np.diff(exact, append=np.inf))
    k, j = len(whole.eigenvalues), len(whole.lower_eigenvalues)
    positions = np.r_[len(exact) - 1 : len(exact) - 1 - k : -1, 0:j]
    values = np.r_[whole.eigenvalues, whole.lower_eigenvalues]
    residuals = np.r_[whole.residual_norms, whole.lower_residual_norms]
    quadratic = residuals**2 / np.maximum(0.5 * gaps[positions], 1e-300)
    errors = np.abs(values - exact[positions])
    bounds = np.minimum(residuals, quadratic) + ROUNDING[dtype] * norm
    assert np.all(errors <= bounds)
    # A pair near zero is left where it cannot be told from it, beside ‖H‖.
    converged = np.r_[whole.converged, whole.lower_converged]
    assert np.all(errors <= np.where(converged, PROMISED[dtype], TOLERANCE[dtype]) * norm)
    # Where rounding and the bound leave room for it, the promise holds relative to the eigenvalue itself.
    permitted = bounds <= PROMISED[dtype] * np.abs(exact[positions])
    assert np.all(errors[permitted] <= PROMISED[dtype] * np.abs(exact[positions][permitted]))
    assert permitted.any() or norm > 10 * np.abs(exact).max()  # a small block is all rounding of the whole


def rest_of(whole: OperatorSpectrum, exact: FloatArray) -> FloatArray:
    """The exact eigenvalues without the deflated ones, all of which are at the two ends."""
    above = int(np.count_nonzero(whole.deflated_eigenvalues >= np.median(exact)))
    above = min(above, len(whole.eigenvalues)) if len(whole.deflated_eigenvalues) < len(exact) else above
    below = len(whole.deflated_eigenvalues) - above
    return np.sort(exact)[below : len(exact) - above]


def assert_traces(whole: OperatorSpectrum, exact: FloatArray, rounding: float) -> None:
    """Check tr H and tr H² against five true standard errors, plus the rounding of their exact parts.

    For w uniform on the sphere of an m-dimensional complement m·wᵀAw has variance below 2‖A‖_F². The complement of the
    Krylov basis is within that of the deflated pairs, where ‖H‖_F² = Σ'λ² and ‖H²‖_F² = Σ'λ⁴ over the other pairs.
    """
    rest = rest_of(whole, exact)
    probes = max(whole.trace.num_samples, 1)
    scale = np.abs(exact).max()
    first = 5 * np.sqrt(2 * np.sum(rest**2) / probes) + rounding * len(exact) * scale
    second = 5 * np.sqrt(2 * np.sum(rest**4) / probes) + rounding * len(exact) * scale**2
    assert abs(whole.trace.value - exact.sum()) <= first
    assert abs(whole.trace_h2.value - np.sum(exact**2)) <= second
    assert whole.trace.stderr <= np.sqrt(2 * np.sum(rest**2)) + rounding * len(exact) * scale


# -- against the dense Hessian ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_both_ends_equal_the_dense_hessian(name: str, dtype: torch.dtype) -> None:
    dense = oracles.known_hessian(name).numpy()
    spectrum = measured(name, dtype)
    assert spectrum.whole.num_parameters == len(dense)
    assert len(spectrum.eigenvalues) == TOP
    assert len(spectrum.whole.lower_eigenvalues) == BOTTOM
    assert spectrum.whole.converged.all()
    assert spectrum.whole.lower_converged.all()
    assert not [note for note in spectrum.notes if "block" not in note.message]
    assert_pairs(spectrum.whole, dense, dtype, float(np.linalg.norm(dense, 2)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_reported_residuals_are_the_true_ones(name: str, dtype: torch.dtype) -> None:
    dense = oracles.known_hessian(name).numpy()
    spectrum = measured(name, dtype)
    assert spectrum.eigenvectors is not None
    assert spectrum.eigenvectors.dtype == np.float32
    vectors = spectrum.eigenvectors.astype(np.float64)
    values = np.r_[spectrum.eigenvalues, spectrum.whole.lower_eigenvalues]
    reported = np.r_[spectrum.residual_norms, spectrum.whole.lower_residual_norms]
    true = np.linalg.norm(dense @ vectors - vectors * values, axis=0) / np.linalg.norm(vectors, axis=0)
    # The check's random signs find the square sum of the errors in expectation: a factor of 2 for its spread. Vectors
    # are stored as float32, which moves each entry by half an eps of it: eps·‖H − λ‖ ≤ 2 eps ‖H‖ of residual.
    norm = float(np.linalg.norm(dense, 2))
    stored = 2 * np.finfo(np.float32).eps * norm
    assert np.all(true <= 2 * reported + stored + ROUNDING[dtype] * norm)
    assert np.all(reported <= TOLERANCE[dtype] * np.abs(values))
    if dtype == torch.float32:
        assert np.all(reported > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_eigenvectors_are_orthonormal(name: str, dtype: torch.dtype) -> None:
    vectors = measured(name, dtype).eigenvectors
    assert vectors is not None
    assert vectors.shape == (len(oracles.known_hessian(name)), TOP + BOTTOM)
    gram = vectors.T.astype(np.float64) @ vectors.astype(np.float64)
    # Two unit vectors rounded to float32: up to an eps in a norm, and less in an inner product; seen 1e-7.
    assert np.abs(gram - np.eye(len(gram))).max() <= 5e-7


@pytest.mark.parametrize(("name", "dtype"), PER_BLOCK, ids=str)
def test_each_block_equals_its_sub_block(name: str, dtype: torch.dtype) -> None:
    spectrum = measured(name, dtype)
    norm = float(np.linalg.norm(oracles.known_hessian(name).numpy(), 2))
    task = models.make_task(name)
    present = {part.block for parts in (task.blocks or {}).values() for part in parts}
    assert list(spectrum.blocks) == [block for block in BLOCK_NAMES if block in present]
    assert sum(block.num_parameters for block in spectrum.blocks.values()) == spectrum.whole.num_parameters
    for block, part in spectrum.blocks.items():
        assert len(part.eigenvalues) == 3
        assert len(part.lower_eigenvalues) == 1
        assert_pairs(part, sub_block(name, block), dtype, norm)


@pytest.mark.parametrize(("name", "dtype"), PER_BLOCK, ids=str)
def test_every_block_converged_or_says_why_not(name: str, dtype: torch.dtype) -> None:
    spectrum = measured(name, dtype)
    for block, part in spectrum.blocks.items():
        missing = not (part.converged.all() and part.lower_converged.all())
        said = [
            note
            for note in spectrum.notes
            if note.code in ("not-converged", "near-zero") and f"block {block} " in note.message
        ]
        assert bool(said) == missing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_traces_are_near_the_exact_ones(name: str, dtype: torch.dtype) -> None:
    exact = np.linalg.eigvalsh(oracles.known_hessian(name).numpy())
    whole = measured(name, dtype).whole
    assert whole.trace.num_samples == PROBES
    assert whole.trace.stderr > 0
    assert_traces(whole, exact, ROUNDING[dtype])


@pytest.mark.parametrize(("name", "dtype"), PER_BLOCK, ids=str)
def test_traces_of_blocks_are_near_the_exact_ones(name: str, dtype: torch.dtype) -> None:
    spectrum = measured(name, dtype)
    norm = float(np.linalg.norm(oracles.known_hessian(name).numpy(), 2))
    for block, part in spectrum.blocks.items():
        exact = np.linalg.eigvalsh(sub_block(name, block))
        assert_traces(part, exact, ROUNDING[dtype] * norm / np.abs(exact).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_density_has_the_mass_and_moments_of_the_bulk(name: str, dtype: torch.dtype) -> None:
    """Each probe's weights sum to 1 − a/n; its first two moments are Rayleigh quotients of H and H² in the bulk."""
    exact = np.linalg.eigvalsh(oracles.known_hessian(name).numpy())
    whole = measured(name, dtype).whole
    n, probes = whole.num_parameters, whole.num_probes
    # The eight asked for, and the start vector of the Lanczos run, but where that had to restart.
    assert probes == PROBES + 1 or (probes == PROBES and (name, dtype) in RESTARTED)
    rest = rest_of(whole, exact)
    moments = np.zeros((3, probes))
    for probe in range(probes):
        chosen = whole.probe_index == probe
        moments[:, probe] = [whole.weights[chosen] @ whole.nodes[chosen] ** power for power in range(3)]
    np.testing.assert_allclose(moments[0], 1 - len(whole.deflated_eigenvalues) / n, rtol=1e-12)
    # As in assert_traces: five true standard errors of the mean over probes, divided by n.
    scale = np.abs(exact).max()
    assert abs(moments[1].mean() - rest.sum() / n) <= 5 * np.sqrt(2 * np.sum(rest**2) / probes) / n + 1e-6 * scale
    second = 5 * np.sqrt(2 * np.sum(rest**4) / probes) / n
    assert abs(moments[2].mean() - np.sum(rest**2) / n) <= second + 1e-6 * scale**2
    # The bands are narrow enough to see the bulk at all.
    assert 5 * np.sqrt(2 * np.sum(rest**2) / probes) < 0.6 * np.abs(rest).sum()


@pytest.mark.parametrize("name", models.MODELS)
def test_loss_gradient_and_count_travel_along(name: str) -> None:
    task = models.make_task(name)
    spectrum = measured(name, torch.float64)
    flat = oracles.flat_parameters(task).requires_grad_()
    with oracles.mathematical_attention():
        loss = oracles.mean_loss(task, flat)
        (gradient,) = torch.autograd.grad(loss, flat)
    assert spectrum.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert spectrum.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert spectrum.provenance.num_tokens == sum(task.loss(batch)[1] for batch in task.evaluation)
    assert spectrum.provenance.precision == "float64"
    assert spectrum.config["top"] == TOP


# -- Gauss–Newton and finite differences -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("mlp", torch.float64), ("gpt2", torch.float64), ("llama", torch.float32), ("qwen2_moe", torch.float32)],
    ids=str,
)
def test_gauss_newton_equals_the_dense_matrix(name: str, dtype: torch.dtype) -> None:
    dense = oracles.known_gauss_newton(name).numpy()
    spectrum = measured_ggn(name, dtype)
    assert spectrum.operator == "ggn"
    assert spectrum.whole.converged.all()
    assert len(spectrum.whole.lower_eigenvalues) == 0
    assert_pairs(spectrum.whole, dense, dtype, float(np.linalg.norm(dense, 2)))
    assert_traces(spectrum.whole, np.linalg.eigvalsh(dense), ROUNDING[dtype])


def test_gauss_newton_of_a_block_equals_the_sub_block() -> None:
    task = models.make_task("mlp")
    spectrum = measure_spectrum(task, top=3, bottom=0, tolerance=1e-6, operator="ggn", per_block=True)
    dense = oracles.known_gauss_newton("mlp")
    for block, part in spectrum.blocks.items():
        rows = oracles.block_indices(task, block)
        exact = dense[rows][:, rows].numpy()
        assert_pairs(part, exact, torch.float64, float(torch.linalg.matrix_norm(dense, 2)))


@pytest.mark.parametrize(
    ("name", "dtype"), [("mlp", torch.float64), ("mlp", torch.float32), ("llama", torch.float32)], ids=str
)
def test_finite_differences_come_near(name: str, dtype: torch.dtype) -> None:
    task = models.make_task(name, dtype)
    spectrum = measure_spectrum(task, top=3, bottom=1, probes=2, tolerance=1e-3, method="finite-differences")
    exact = np.linalg.eigvalsh(oracles.known_hessian(name).numpy())
    norm = float(np.abs(exact).max())
    # Products err by 2e-10 and 1e-4 of ‖H‖‖v‖ for a random v (tests/operators/test_products.py), and several times more
    # where curvature itself changes fastest, along the leading eigenvectors; residuals of 1e-3 add their squares.
    near = {torch.float64: 2e-6, torch.float32: 1e-3}[dtype]
    assert np.abs(spectrum.eigenvalues - exact[::-1][:3]).max() <= near * norm
    assert abs(spectrum.whole.lower_eigenvalues[0] - exact[0]) <= near * norm
    (note,) = [note for note in spectrum.notes if note.code == "finite-differences"]
    assert "bounds how small a residual can be" in note.message
    assert spectrum.config["method"] == "finite-differences"


# -- what is unusual of a task ---------------------------------------------------------------------------------------


class _WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.used = nn.Linear(2, 3, dtype=torch.float64)
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.used(inputs))


def unused_task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _WithUnused()
    return Task(model, models.predict_first, squared_error, [(inputs, targets)])


@pytest.mark.parametrize("method", ["autograd", "finite-differences"])
def test_unused_parameters_are_zero_curvature_and_noted(method: Any) -> None:
    task = unused_task()
    spectrum = measure_spectrum(task, top=3, bottom=1, probes=2, method=method)
    assert spectrum.whole.num_parameters == 3 + 9
    (note,) = [note for note in spectrum.notes if note.code == "unused-parameters"]
    assert "1 parameters do not influence the loss and count as zero curvature: before" in note.message
    exact = np.linalg.eigvalsh(oracles.dense_hessian(task).numpy())
    np.testing.assert_allclose(spectrum.eigenvalues, exact[::-1][:3], rtol=1e-5)
    assert spectrum.eigenvectors is not None
    assert np.abs(spectrum.eigenvectors[:3]).max() <= 1e-6


def test_many_unused_parameters_are_shortened_in_the_note() -> None:
    task = unused_task()
    for index in range(7):
        task.model.register_parameter(f"more{index}", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    spectrum = measure_spectrum(task, top=1, bottom=0, probes=2)
    (note,) = [note for note in spectrum.notes if note.code == "unused-parameters"]
    assert note.message.startswith("8 parameters")
    assert note.message.endswith("and 3 more")


def test_every_pair_of_a_tiny_task_may_be_asked_for() -> None:
    task = unused_task()
    spectrum = measure_spectrum(task, top=8, bottom=4, probes=2)
    exact = np.linalg.eigvalsh(oracles.dense_hessian(task).numpy())
    values = np.sort(np.r_[spectrum.eigenvalues, spectrum.whole.lower_eigenvalues])
    np.testing.assert_allclose(values, exact, atol=1e-13 * exact[-1])
    assert spectrum.whole.stop_reason == "complete"
    assert spectrum.trace.stderr == 0
    assert spectrum.trace.value == pytest.approx(exact.sum(), rel=1e-12)
    assert spectrum.whole.trace_h2.value == pytest.approx(np.sum(exact**2), rel=1e-12)


def test_the_train_split_is_measured_on_its_own_batches() -> None:
    task = models.make_task("mlp")
    halves = Task(task.model, task.predict, task.criterion, [task.evaluation[0]], train=[task.evaluation[1]])
    alone = Task(task.model, task.predict, task.criterion, [task.evaluation[1]])
    exact = np.linalg.eigvalsh(oracles.dense_hessian(alone).numpy())
    spectrum = measure_spectrum(halves, top=2, bottom=1, probes=2, tolerance=1e-6, split="train")
    np.testing.assert_allclose(spectrum.eigenvalues, exact[::-1][:2], rtol=1e-9)
    assert spectrum.provenance.data_split == "train"


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        return 2 * inputs * gradient


def test_a_model_that_cannot_be_differentiated_twice_is_refused() -> None:
    """`autograd.grad` never visits the node that would raise: without a check the Hessian lacks a term, silently."""
    task = models.make_task("mlp")
    task.predict = lambda model, batch: _OnceOnly.apply(model(batch[0]))
    with pytest.raises(NumericsError, match="expected a model that can be differentiated twice"):
        measure_spectrum(task, top=1, bottom=0, probes=2)
    spectrum = measure_spectrum(task, top=1, bottom=0, probes=2, method="finite-differences")
    assert spectrum.whole.converged.all()


# -- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_every_product_is_counted(operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = models.make_task("mlp")
    asked: dict[str, Any] = {"top": 3, "bottom": 1, "probes": 2, "operator": operator, "per_block": True}
    plan = plan_spectrum(task, **asked)
    kind = HessianOperator if operator == "hessian" else GaussNewtonOperator
    through, seen = kind._through, []

    def counted(self: Any, *args: Any) -> Any:
        seen.append(1)
        return through(self, *args)

    monkeypatch.setattr(kind, "_through", counted)
    spectrum = plan.run(task)
    products = spectrum.whole.num_hvps + sum(block.num_hvps for block in spectrum.blocks.values())
    assert len(seen) == products * len(task.evaluation)


def test_progress_counts_up_to_all_products() -> None:
    told: list[tuple[int, int, str]] = []
    task = models.make_task("mlp")
    spectrum = measure_spectrum(
        task, top=3, bottom=1, probes=2, per_block=True, on_progress=lambda *now: told.append(now)
    )
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert all(now[0] <= now[1] for now in told)
    assert done[-1] == spectrum.whole.num_hvps + sum(block.num_hvps for block in spectrum.blocks.values())
    assert any("pairs" in now[2] for now in told)
    assert any(now[2].startswith("ffn · probe") for now in told)


def test_fewer_products_give_fewer_pairs_converged_and_a_note() -> None:
    spectrum = measure_spectrum(models.make_task("llama"), top=10, bottom=3, probes=2, max_products=15)
    assert spectrum.whole.stop_reason == "max-products"
    assert len(spectrum.eigenvalues) == 10
    assert not spectrum.whole.converged.all()
    (note,) = [note for note in spectrum.notes if note.code == "not-converged"]
    missing = int((~spectrum.whole.converged).sum() + (~spectrum.whole.lower_converged).sum())
    assert note.message.startswith(f"{missing} of 13 pairs did not reach the tolerance")


# -- memory layouts --------------------------------------------------------------------------------------------------

# Resident memory is never quiet: a plan's costs are given, in units that dwarf what a process holds.
_GIB = 2**30
_COSTS = Costs(
    held_bytes=10 * _GIB,
    product_bytes=113 * _GIB,
    graph_bytes=100 * _GIB,
    vector_bytes=_GIB,
    build_seconds=0.0,
    product_seconds=0.0,
)


def of_rows(task: Task, *_: Any) -> Costs:
    """What a part takes: 100 GiB for three rows, the most that a batch has."""
    rows = max(len(part) for _, part in parts_of(task, "evaluation"))
    graph = 100 * _GIB * rows // 3
    return replace(_COSTS, graph_bytes=graph, product_bytes=13 * _GIB + graph)


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected at least .* for one product \(.* for the weights .*, got 1 bytes"):
        plan_spectrum(models.make_task("mlp"), memory=1)


def test_finite_differences_keep_no_graphs() -> None:
    plan = plan_spectrum(models.make_task("mlp"), method="finite-differences")
    assert (plan.graph_mode, plan.layout.kept_graphs, plan.layout.vectors_per_pass) == ("none", 0, 1)
    assert "finite differences" in plan.summary()


def test_the_memory_option_moves_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three budgets that differ in nothing but what they allow."""
    monkeypatch.setattr(planning, "probe_costs", of_rows)
    task = models.make_task("llama", torch.float32)
    asked: dict[str, Any] = {"top": 4, "bottom": 2, "probes": 2}
    ample = plan_spectrum(task, **asked, memory=10_000 * _GIB)
    assert (ample.graph_mode, ample.layout.basis_placement, ample.layout.vectors_per_pass) == ("kept", "device", 1)
    assert ample.layout.rows is None
    assert "parts" not in ample.summary()
    fewer = plan_spectrum(task, **asked, memory=145 * _GIB)
    assert (fewer.graph_mode, fewer.layout.rows, fewer.layout.basis_placement) == ("partly kept", 1, "device")
    assert "2 graphs kept, batches in parts of 1 row, basis of" in fewer.summary()
    least = plan_spectrum(task, **asked, memory=52 * _GIB)
    assert (least.graph_mode, least.layout.rows, least.layout.basis_placement) == ("recomputed", 1, "disk")
    assert "graphs rebuilt" in least.summary()
    assert "on disk" in least.summary()
    assert least.memory_bytes < fewer.memory_bytes < ample.memory_bytes
    assert least.fingerprint == fewer.fingerprint == ample.fingerprint
    with pytest.raises(UsageError, match=r"33\.33 GiB for the graph of 1 row of a batch"):
        plan_spectrum(task, **asked, memory=40 * _GIB)


def test_a_plan_says_what_a_basis_takes_that_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 48 vectors that there is room for 26 are expected; an accelerator takes their room at once."""
    monkeypatch.setattr(planning, "probe_costs", of_rows)
    task = models.make_task("llama", torch.float32)
    asked: dict[str, Any] = {"top": 4, "bottom": 2, "probes": 2, "memory": 10_000 * _GIB}
    plan = plan_spectrum(task, **asked)
    assert plan.layout.basis_columns == 48
    assert plan.most_memory_bytes - plan.memory_bytes == (48 - 26) * _COSTS.row_bytes
    assert f"{plan.memory_bytes / _GIB:.1f} to {plan.most_memory_bytes / _GIB:.1f} GiB" in plan.summary()
    on_disk = plan_spectrum(task, **{**asked, "memory": 52 * _GIB})
    assert on_disk.layout.basis_placement == "disk"
    assert on_disk.most_memory_bytes == on_disk.memory_bytes
    monkeypatch.setattr(measuring, "host_memory_allowed", lambda device, sharing: 100 * _GIB)
    taken = plan_spectrum(task, **asked)
    assert taken.memory_bytes == taken.most_memory_bytes == plan.most_memory_bytes


def test_a_basis_that_an_accelerator_does_not_hold_goes_to_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "probe_costs", of_rows)
    monkeypatch.setattr(measuring, "host_memory_allowed", lambda device, sharing: 100 * _GIB)
    plan = plan_spectrum(models.make_task("llama", torch.float32), top=4, bottom=2, probes=2, memory=52 * _GIB)
    assert (plan.layout.basis_placement, plan.layout.basis_columns) == ("cpu", 22)
    assert "basis of 22 vectors in host memory" in plan.summary()
    assert plan.memory_bytes <= 52 * _GIB  # of the device alone
    assert host_memory_allowed(torch.device("cpu")) is None


def test_a_part_that_does_not_fit_after_all_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row may tell too little of a batch, on an accelerator until it runs out of memory."""
    probed: list[int | None] = []

    def probe(task: Task, *_: Any) -> Costs:
        probed.append(task.rows)
        if task.rows is None:
            raise torch.OutOfMemoryError
        return replace(of_rows(task), product_bytes=10**6 * _GIB) if task.rows == 2 else of_rows(task)

    monkeypatch.setattr(planning, "probe_costs", probe)
    plan = plan_spectrum(models.make_task("llama", torch.float32), memory=10_000 * _GIB)
    assert probed == [1, None, 2]
    assert plan.layout.rows == 1


def test_a_device_that_is_full_after_one_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(task: Task, *_: Any) -> Costs:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(planning, "probe_costs", probe)
    with pytest.raises(UsageError, match="expected memory for the graph of 1 row of a batch, got a full device"):
        plan_spectrum(models.make_task("llama", torch.float32))


def test_parts_of_batches_give_the_same_pairs(tmp_path: Path) -> None:
    task = models.make_task("gpt2", torch.float32)
    asked: dict[str, Any] = {"top": 10, "bottom": 3, "probes": 2}
    plan = laid_out(plan_spectrum(task, **asked), rows=1, kept_graphs=2, vectors_per_pass=2, graph_mode="partly kept")
    spectrum = plan.run(task, state_directory=tmp_path)
    assert task.rows is None
    assert spectrum.provenance.details["batches"] == "in parts of 1 row"
    dense = oracles.known_hessian("gpt2").numpy()
    assert spectrum.whole.converged.all()
    assert_pairs(spectrum.whole, dense, torch.float32, float(np.linalg.norm(dense, 2)))
    assert_traces(spectrum.whole, np.linalg.eigvalsh(dense), ROUNDING[torch.float32])


def test_a_loss_that_mixes_its_rows_keeps_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where parts would have been taken it is said."""
    monkeypatch.setattr(planning, "probe_costs", of_rows)
    task = models.make_task("llama", torch.float32)
    criterion = task.criterion
    tight: dict[str, Any] = {"top": 4, "bottom": 2, "probes": 2, "memory": 145 * _GIB}
    assert plan_spectrum(task, **tight).layout.rows == 1
    task.criterion = lambda outputs, batch: (criterion(outputs, batch)[0].square(), criterion(outputs, batch)[1])
    plan = plan_spectrum(task, **tight)
    assert (plan.layout.rows, plan.rows_mix) == (None, True)
    (note,) = [note for note in plan.run(task).notes if note.code == "batches-whole"]
    assert note.message.startswith("the loss of a batch is not the sum of its rows' losses")
    assert not plan_spectrum(task, **{**tight, "memory": 10_000 * _GIB}).rows_mix


def _predict_whole(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    outputs: Tensor = model(batch[0]).view(-1, 5, 4)
    return outputs.flatten(0, 1)


def test_a_task_that_takes_whole_batches_only_gets_them() -> None:
    task = models.make_task("mlp", torch.float32)
    layout = ParameterLayout(list(task.model.named_parameters()))
    task.evaluation = [tuple(leaf[:5] for leaf in batch) for batch in task.evaluation]
    assert planning.row_options(task, layout, "evaluation").rows == (None, 3, 2, 1)
    task.predict = _predict_whole
    assert planning.row_options(task, layout, "evaluation").rows == (None,)
    assert plan_spectrum(task).layout.rows is None


def test_a_gradient_is_taken_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a plan, by what autograd saves for one row."""
    task = models.make_task("mlp", torch.float32)
    layout = ParameterLayout(list(task.model.named_parameters()))
    options = planning.row_options(task, layout, "evaluation")
    assert (options.rows, options.most) == ((None, 6, 3, 2, 1), 12)
    monkeypatch.setattr(planning, "memory_in_use", lambda device: 1000)
    vectors = 3 * 4 * layout.size
    # One row: 10 numbers of tanh, 7 before and 7 after GELU, 4 log-probabilities and the weight of the target.
    per_row = 1.5 * 4 * (10 + 7 + 7 + 4 + 1)
    for rows in (12, 6, 3, 2, 1):
        budget = math.ceil(1000 + vectors + rows * per_row)
        found = planning.gradient_rows(options, layout, budget)
        assert (found or 12) == rows
        if rows > 1:
            less = planning.gradient_rows(options, layout, budget - 40)
            assert less is not None
            assert less < rows
    assert planning.gradient_rows(options, layout, 0) == 1
    seen: list[int | None] = []
    original = measuring.require_deterministic

    def watched(task: Task, *args: Any) -> Any:
        seen.append(task.rows)
        return original(task, *args)

    monkeypatch.setattr(measuring, "require_deterministic", watched)
    monkeypatch.setattr(planning, "probe_costs", of_rows)
    with pytest.raises(UsageError):  # a product takes more
        plan_spectrum(task, memory=math.ceil(1000 + vectors + 3 * per_row))
    assert seen == [3]


_REBUILT: dict[str, Any] = {"kept_graphs": 0, "vectors_per_pass": 4, "graph_mode": "recomputed"}
_LAYOUTS: Mapping[str, dict[str, Any]] = {
    "short basis": {"basis_columns": 21},
    "one graph kept": {**_REBUILT, "kept_graphs": 1, "graph_mode": "partly kept", "basis_columns": 21},
    "graphs kept, basis on disk": {"basis_columns": 36, "basis_placement": "disk"},
    "graphs rebuilt, basis on disk": {**_REBUILT, "basis_columns": 36, "basis_placement": "disk"},
}


@pytest.mark.parametrize("layout", list(_LAYOUTS))
def test_every_layout_gives_the_same_pairs(layout: str, tmp_path: Path) -> None:
    """As `lay_out` would choose them for ten and three pairs, from more memory to less."""
    task = models.make_task("gpt2", torch.float32)
    asked: dict[str, Any] = {"top": 10, "bottom": 3, "probes": 2}
    plan = laid_out(plan_spectrum(task, **asked), **_LAYOUTS[layout])
    spectrum = plan.run(task, state_directory=tmp_path)
    dense = oracles.known_hessian("gpt2").numpy()
    assert spectrum.whole.converged.all()
    assert spectrum.whole.lower_converged.all()
    assert_pairs(spectrum.whole, dense, torch.float32, float(np.linalg.norm(dense, 2)))
    assert_traces(spectrum.whole, np.linalg.eigvalsh(dense), ROUNDING[torch.float32])


def test_a_basis_on_disk_gives_the_same_bits(tmp_path: Path) -> None:
    task = models.make_task("llama", torch.float32)
    asked: dict[str, Any] = {"top": 3, "bottom": 1, "probes": 2}
    plan = plan_spectrum(task, **asked)
    in_memory = plan.run(task)
    on_disk = laid_out(plan, basis_placement="disk").run(task, state_directory=tmp_path)
    assert_same_bits(on_disk, in_memory)


def test_a_basis_on_disk_needs_a_folder() -> None:
    task = models.make_task("mlp")
    plan = laid_out(plan_spectrum(task), basis_placement="disk")
    with pytest.raises(UsageError, match="expected a state_directory for a basis on disk, got none"):
        plan.run(task)


def test_a_plan_costs_what_it_says() -> None:
    plan = plan_spectrum(models.make_task("mlp"), top=3, bottom=1, probes=2, probe_steps=5, per_block=True)
    assert plan.num_hvps > 3 * (3 + 1 + 2 * 5)  # the whole and two blocks: at least a product a pair, and the probes
    assert plan.num_parameters == 169
    assert plan.unused == ()
    assert re.match(rf"~{plan.num_hvps} Hessian products, ~\d+ s, \d+\.\d GiB \(graphs kept, basis of", plan.summary())


# -- no trace is left ------------------------------------------------------------------------------------------------


class _InterruptionError(Exception):
    pass


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("method", ["autograd", "finite-differences"])
def test_the_task_comes_back_bitwise(method: Any, raising: bool) -> None:
    task = models.make_task("gpt2", torch.float32)
    task.model.train()
    with torch.no_grad():
        for index, parameter in enumerate(task.model.parameters()):
            parameter.grad = torch.full_like(parameter, float(index)) if index % 2 else None
    gradients = [parameter.grad for parameter in task.model.parameters()]
    values = [None if gradient is None else gradient.clone() for gradient in gradients]
    parameters = [parameter.detach().clone() for parameter in task.model.parameters()]
    buffers = [buffer.clone() for buffer in task.model.buffers()]
    state = torch.get_rng_state()

    def on_progress(done: int, expected: int, label: str) -> None:
        torch.rand(1)  # whatever happens inside
        if raising and done > 5:
            raise _InterruptionError

    asked: dict[str, Any] = {"top": 2, "bottom": 0, "probes": 2, "method": method, "on_progress": on_progress}
    if raising:
        with pytest.raises(_InterruptionError):
            measure_spectrum(task, **asked)
    else:
        measure_spectrum(task, **asked)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in task.model.modules())
    for parameter, before in zip(task.model.parameters(), parameters, strict=True):
        assert torch.equal(parameter, before)
        assert parameter.requires_grad
    for buffer, before in zip(task.model.buffers(), buffers, strict=True):
        assert torch.equal(buffer, before)
    for parameter, gradient, value in zip(task.model.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, value)


# -- seeds -----------------------------------------------------------------------------------------------------------


def assert_same_bits(one: Spectrum, other: Spectrum) -> None:
    """Compare every number of two spectra, eigenvectors included."""
    assert one.eigenvectors is not None
    assert other.eigenvectors is not None
    assert one.eigenvectors.tobytes() == other.eigenvectors.tobytes()
    assert (one.loss, one.gradient_norm) == (other.loss, other.gradient_norm)
    assert one.notes == other.notes
    assert list(one.blocks) == list(other.blocks)
    for a, b in zip([one.whole, *one.blocks.values()], [other.whole, *other.blocks.values()], strict=True):
        for name in OperatorSpectrum.__slots__:
            first, second = getattr(a, name), getattr(b, name)
            if isinstance(first, np.ndarray):
                assert first.tobytes() == second.tobytes(), name
            else:
                assert first == second, name


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    asked: dict[str, Any] = {"top": 3, "bottom": 1, "probes": 2, "per_block": True}
    first = measure_spectrum(models.make_task("mlp", torch.float32), **asked, seed=3)
    torch.manual_seed(12345)
    again = measure_spectrum(models.make_task("mlp", torch.float32), **asked, seed=3)
    assert_same_bits(first, again)
    assert first.fingerprint == again.fingerprint
    other = measure_spectrum(models.make_task("mlp", torch.float32), **asked, seed=4)
    assert other.fingerprint != first.fingerprint
    assert other.trace.value != first.trace.value
    assert not np.array_equal(other.whole.nodes, first.whole.nodes)
    for block in first.blocks:
        assert other.blocks[block].trace.value != first.blocks[block].trace.value
    # Eigenvalues do not depend on it, beyond squares of residuals of at most 1e-3.
    np.testing.assert_allclose(other.eigenvalues, first.eigenvalues, rtol=1e-5)


def test_probes_of_the_whole_and_of_blocks_are_not_the_same_random_numbers() -> None:
    """Blocks derive seeds of their own: with shared probes their errors would be the whole's errors."""
    task = models.make_task("mlp")
    blocks = {name: tuple(BlockPart(block="ffn") for _ in parts) for name, parts in (task.blocks or {}).items()}
    task.blocks = blocks
    spectrum = measure_spectrum(task, top=3, bottom=1, probes=2, per_block=True)
    np.testing.assert_allclose(spectrum.blocks["ffn"].eigenvalues, spectrum.eigenvalues, rtol=1e-5)
    assert spectrum.blocks["ffn"].trace.value != spectrum.trace.value


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [measure_spectrum, plan_spectrum])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"top": 0}, "expected top of at least 1, got 0"),
        ({"bottom": -1}, "expected bottom of at least 0, got -1"),
        ({"probes": 1}, "expected probes of at least 2, got 1"),
        ({"probe_steps": 1}, "expected probe_steps of at least 2, got 1"),
        ({"max_products": 0}, "expected max_products of at least 1, got 0"),
        ({"tolerance": 0.0}, r"expected a tolerance between 0 and 1, got 0\.0"),
        ({"tolerance": 1.0}, r"expected a tolerance between 0 and 1, got 1\.0"),
        ({"tolerance": float("nan")}, "expected a tolerance between 0 and 1, got nan"),
        ({"top": 160, "bottom": 10}, r"expected --top plus --bottom of at most 169, .* got 160 \+ 10"),
        ({"operator": "fisher"}, "expected the operator hessian or ggn, got 'fisher'"),
        ({"method": "exact"}, "expected the method autograd or finite-differences, got 'exact'"),
        ({"operator": "ggn", "method": "finite-differences"}, "expected finite differences of the Hessian, got ggn"),
    ],
    ids=str,
)
def test_requests_that_make_no_sense_are_refused(call: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(models.make_task("mlp"), **asked)


def test_a_task_without_blocks_has_no_spectrum_per_block() -> None:
    task = models.make_task("mlp")
    task.blocks = None
    with pytest.raises(UsageError, match="expected a task whose blocks are known for a spectrum per block"):
        measure_spectrum(task, per_block=True)


def test_a_frozen_model_is_refused() -> None:
    task = models.make_task("mlp")
    task.model.requires_grad_(False)
    with pytest.raises(UsageError, match="expected a model with trainable parameters, got none"):
        measure_spectrum(task)


def test_a_split_without_batches_is_refused() -> None:
    with pytest.raises(InputError, match="expected at least one train batch, got none"):
        measure_spectrum(models.make_task("mlp"), split="train")


def test_a_diverged_model_is_refused() -> None:
    task = models.make_task("mlp")
    with torch.no_grad():
        next(task.model.parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="expected a finite loss, got nan on evaluation batch 0"):
        measure_spectrum(task)


def test_a_loss_that_changes_between_passes_is_refused() -> None:
    task = models.make_task("mlp")
    task.predict = lambda model, batch: nn.functional.dropout(model(batch[0]), 0.5, training=True)
    with pytest.raises(NumericsError, match="expected the same loss and gradient twice"):
        measure_spectrum(task)


class _Kink(torch.autograd.Function):
    """The identity, with a backward pass through √0: a finite gradient whose own derivative is not."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        return gradient * (1 + torch.sqrt(inputs - inputs.detach()))


def test_products_that_are_not_finite_are_refused() -> None:
    task = models.make_task("mlp")
    task.predict = lambda model, batch: _Kink.apply(model(batch[0]))
    with pytest.raises(NumericsError, match="expected finite Hessian products, got NaN or infinity"):
        measure_spectrum(task, top=1, bottom=0, probes=2)


# -- fingerprints ----------------------------------------------------------------------------------------------------

_CONFIG: dict[str, object] = {"top": 10, "seed": 0}


def fingerprint(task: Task, **changed: object) -> str:
    return task_fingerprint(task, "evaluation", {**_CONFIG, **changed})


def test_the_fingerprint_is_that_of_content() -> None:
    first, second = models.make_task("llama"), models.make_task("llama")
    assert first.model is not second.model
    assert fingerprint(first) == fingerprint(second)
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint(first))


def test_the_fingerprint_changes_with_one_weight() -> None:
    task = models.make_task("llama")
    before = fingerprint(task)
    with torch.no_grad():
        last = list(task.model.parameters())[-1].view(-1)
        last[-1] = torch.nextafter(last[-1], torch.tensor(1e9, dtype=last.dtype))
    assert fingerprint(task) != before


def test_the_fingerprint_changes_with_a_buffer() -> None:
    task = models.make_task("mlp")
    task.model.register_buffer("offset", torch.zeros(2))
    before = fingerprint(task)
    task.model.get_buffer("offset")[1] = 1.0
    assert fingerprint(task) != before


def test_the_fingerprint_changes_with_precision_and_configuration() -> None:
    task = models.make_task("mlp")
    before = fingerprint(task)
    assert fingerprint(models.make_task("mlp", torch.float32)) != before
    assert fingerprint(task, seed=1) != before
    assert fingerprint(task, top=9) != before
    assert fingerprint(task, per_block=True) != before


def test_the_fingerprint_changes_with_the_split() -> None:
    task = models.make_task("mlp")
    task = replace(task, train=list(task.evaluation)[:1])
    assert task_fingerprint(task, "train", _CONFIG) != task_fingerprint(task, "evaluation", _CONFIG)


_BATCHES: Mapping[str, tuple[Any, Any]] = {
    "an entry": (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]])),
    "the shape": (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2, 3, 4]])),
    "the dtype": (torch.tensor([1, 0]), torch.tensor([1, 0], dtype=torch.int32)),
    "a tuple's item": ((torch.ones(2), torch.tensor([1])), (torch.ones(2), torch.tensor([0]))),
    "a tuple's order": ((torch.ones(2), torch.zeros(2)), (torch.zeros(2), torch.ones(2))),
    "nesting": (((torch.ones(2), torch.ones(2)), torch.ones(2)), (torch.ones(2), (torch.ones(2), torch.ones(2)))),
    "a dict's value": ({"x": torch.ones(2), "y": torch.tensor([1])}, {"x": torch.ones(2), "y": torch.tensor([0])}),
    "a dict's key": ({"x": torch.ones(2)}, {"z": torch.ones(2)}),
    "an array": (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
    "a number": ((torch.ones(2), 0.5), (torch.ones(2), 0.25)),
    "a string": ({"x": torch.ones(2), "name": "a"}, {"x": torch.ones(2), "name": "b"}),
}


@pytest.mark.parametrize("what", list(_BATCHES))
def test_the_fingerprint_changes_with_what_is_in_a_batch(what: str) -> None:
    task = models.make_task("mlp")
    one, other = (fingerprint(replace(task, evaluation=[batch])) for batch in _BATCHES[what])
    assert one != other
    again = fingerprint(replace(task, evaluation=[_BATCHES[what][0]]))
    assert one == again


def test_the_order_of_a_dict_does_not_matter() -> None:
    task = models.make_task("mlp")
    one = fingerprint(replace(task, evaluation=[{"x": torch.ones(2), "y": torch.zeros(1)}]))
    other = fingerprint(replace(task, evaluation=[{"y": torch.zeros(1), "x": torch.ones(2)}]))
    assert one == other


def test_the_number_of_batches_matters() -> None:
    task = models.make_task("mlp")
    assert fingerprint(replace(task, evaluation=[task.evaluation[0]])) != fingerprint(task)


def test_the_fingerprint_changes_when_a_parameter_is_frozen() -> None:
    """Another θ is another Hessian, though no weight has moved."""
    task = models.make_task("mlp")
    before = plan_spectrum(task).fingerprint
    next(task.model.parameters()).requires_grad_(False)
    assert plan_spectrum(task).fingerprint != before


def test_the_fingerprint_changes_with_the_blocks() -> None:
    task = models.make_task("mlp")
    before = plan_spectrum(task, per_block=True).fingerprint
    assert task.blocks is not None
    task.blocks = {name: tuple(replace(part, block="ffn") for part in parts) for name, parts in task.blocks.items()}
    assert plan_spectrum(task, per_block=True).fingerprint != before


def test_the_fingerprint_changes_with_the_loss() -> None:
    """A --task FILE.py whose criterion was edited must not get the spectrum of the old one back."""
    task = models.make_task("mlp")
    before = plan_spectrum(task).fingerprint

    def doubled(outputs: Tensor, batch: Any, criterion: Any = task.criterion) -> tuple[Tensor, int]:
        loss, count = criterion(outputs, batch)
        return 2.0 * loss, count

    task.criterion = doubled
    assert plan_spectrum(task).fingerprint != before


# -- accelerators ----------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", models.MODELS)
def test_cpu_and_cuda_agree(name: str) -> None:
    task = models.make_task(name, torch.float32)
    task.model.to("cuda")
    task.evaluation = [
        tuple(part.to("cuda") for part in batch) if isinstance(batch, tuple) else batch.to("cuda")
        for batch in task.evaluation
    ]
    there = measure_spectrum(task, **ASKED, tolerance=1e-3, per_block=True)
    here = measured(name, torch.float32)
    # Seeds draw the same probes on every device: only the rounding of products is between them.
    for one, other in zip([here.whole, *here.blocks.values()], [there.whole, *there.blocks.values()], strict=True):
        scale = float(np.abs(here.eigenvalues).max())
        np.testing.assert_allclose(other.eigenvalues, one.eigenvalues, atol=1e-4 * scale)
        np.testing.assert_allclose(other.lower_eigenvalues, one.lower_eigenvalues, atol=1e-4 * scale)
        assert abs(other.trace.value - one.trace.value) <= 1e-4 * abs(one.trace.value) + 1e-4 * scale

"""Ten pairs of the demo's own model, each recomputed by plain torch that shares no code with lite_probe's operators."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import lite_probe as lp
from lite_probe.results.spectrum import Spectrum
from lite_probe.training import train_byte_llama

pytestmark = pytest.mark.slow

PAIRS, TOLERANCE = 10, 1e-3
STEPS = 60  # where the demo saves its first checkpoint
# Krylov vectors are orthogonal to within an eps of float32, and a Ritz vector combines up to 60 of them: √60 eps if
# their errors were random, here twice that.
GRAM = 2 * 60**0.5 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Measured:
    task: lp.Task
    spectrum: Spectrum
    residuals: np.ndarray  # (k,) recomputed
    quotients: np.ndarray  # (k,) vᵀHv/vᵀv, recomputed


def gradient_graph(task: lp.Task) -> tuple[Tensor, list[Tensor]]:
    """The mean loss per token over all batches, differentiated once with its graph."""
    total = torch.zeros(())
    count = 0
    for batch in task.evaluation:
        logits = task.model(input_ids=batch[:, :-1], use_cache=False).logits
        targets = batch[:, 1:].reshape(-1)
        total = total + functional.cross_entropy(logits.reshape(len(targets), -1), targets, reduction="sum")
        count += len(targets)
    parameters = list(task.model.parameters())
    gradients = torch.autograd.grad(total / count, parameters, create_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients]), parameters


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("demo")
    record = train_byte_llama(folder, hyperparameters={"adamw_beta2": 0.95}, steps=STEPS, save_at=(STEPS,), seed=0)
    checkpoint = lp.open_checkpoint(record.checkpoints[0])
    task = lp.make_task(
        checkpoint, data="builtin:python-docs", tokenizer="bytes", seq_len=128, batch_size=4, eval_batches=2
    )
    assert sum(parameter.numel() for parameter in task.model.parameters()) == record.num_parameters
    spectrum = lp.measure_spectrum(task, top=PAIRS, bottom=0, probes=2, probe_steps=3, tolerance=TOLERANCE)
    assert spectrum.eigenvectors is not None
    residuals, quotients = [], []
    with sdpa_kernel(SDPBackend.MATH):
        gradient, parameters = gradient_graph(task)
        for column in spectrum.eigenvectors.T:
            vector = torch.from_numpy(column.copy())
            parts = torch.autograd.grad(gradient, parameters, grad_outputs=vector, retain_graph=True)
            image = torch.cat([part.flatten() for part in parts]).double()
            wide = vector.double()
            value = float(spectrum.eigenvalues[len(residuals)])
            residuals.append(float((image - value * wide).norm() / wide.norm()))
            quotients.append(float(wide @ image / (wide @ wide)))
    return Measured(task, spectrum, np.array(residuals), np.array(quotients))


def rounding(measured: Measured) -> float:
    """Two float32 programs for one product differ by up to 1e-6 of ‖H‖ (tests/operators/test_products.py)."""
    return 1e-6 * float(np.abs(measured.spectrum.eigenvalues).max())


def test_the_model_is_the_demos_own(measured: Measured) -> None:
    assert measured.spectrum.whole.num_parameters > 500_000
    assert measured.spectrum.provenance.architecture == "llama · 4 layers · hidden 128"
    assert measured.spectrum.provenance.num_tokens == 2 * 4 * 128
    assert measured.spectrum.provenance.precision == "float32"


def test_ten_pairs_come_converged(measured: Measured) -> None:
    whole = measured.spectrum.whole
    assert whole.eigenvalues.shape == (PAIRS,)
    assert whole.converged.all()
    assert measured.spectrum.notes == ()


def test_independent_residuals_are_within_the_tolerance(measured: Measured) -> None:
    assert np.all(measured.residuals <= TOLERANCE * np.abs(measured.spectrum.eigenvalues))


def test_reported_residuals_bound_the_independent_ones(measured: Measured) -> None:
    """What the recurrence misses is found by one random combination: right in expectation, a factor 2 for luck."""
    assert np.all(measured.residuals <= 2 * measured.spectrum.residual_norms + rounding(measured))
    # Nor are they padded: the largest is within a factor of ten of what is true of it.
    worst = int(np.argmax(measured.spectrum.residual_norms))
    assert measured.spectrum.residual_norms[worst] <= 10 * measured.residuals[worst] + rounding(measured)


def test_eigenvalues_are_the_rayleigh_quotients(measured: Measured) -> None:
    np.testing.assert_allclose(measured.quotients, measured.spectrum.eigenvalues, atol=rounding(measured))


def test_eigenvectors_are_orthonormal(measured: Measured) -> None:
    vectors = measured.spectrum.eigenvectors
    assert vectors is not None
    gram = vectors.T.astype(np.float64) @ vectors.astype(np.float64)
    assert np.abs(gram - np.eye(PAIRS)).max() <= GRAM


def test_products_in_bf16_give_the_same_pairs(measured: Measured) -> None:
    """Emulated here: operands have the rounding that matrix units give them."""
    fast = lp.measure_spectrum(
        measured.task, top=PAIRS, bottom=0, probes=2, probe_steps=3, tolerance=TOLERANCE, products="bf16"
    )
    exact, whole = measured.spectrum.whole, fast.whole
    assert whole.converged.all()
    assert 1e-3 < (whole.product_error or 0.0) < 0.02
    assert whole.num_hvps - whole.num_fast_hvps < exact.num_hvps
    assert np.all(np.abs(whole.eigenvalues - exact.eigenvalues) <= whole.residual_norms + exact.residual_norms)
    assert fast.eigenvectors is not None
    with sdpa_kernel(SDPBackend.MATH):
        gradient, parameters = gradient_graph(measured.task)
        for place, column in enumerate(fast.eigenvectors.T):
            vector = torch.from_numpy(column.copy())
            parts = torch.autograd.grad(gradient, parameters, grad_outputs=vector, retain_graph=True)
            image = torch.cat([part.flatten() for part in parts]).double()
            residual = float((image - float(whole.eigenvalues[place]) * vector.double()).norm())
            assert residual <= 2 * whole.residual_norms[place] + rounding(measured)
            assert residual <= TOLERANCE * whole.eigenvalues[place]


def test_a_wrong_pair_would_show(measured: Measured) -> None:
    """Guard: the bounds above refuse an eigenvalue that is off by one percent, and a vector that is tilted by one."""
    spectrum = measured.spectrum
    assert spectrum.eigenvectors is not None
    assert np.all(0.01 * np.abs(spectrum.eigenvalues) > 5 * TOLERANCE * np.abs(spectrum.eigenvalues))
    tilted = spectrum.eigenvectors[:, 0] + 0.01 * spectrum.eigenvectors[:, 1]
    overlap = abs(float(tilted.astype(np.float64) @ spectrum.eigenvectors[:, 1].astype(np.float64)))
    assert overlap > GRAM

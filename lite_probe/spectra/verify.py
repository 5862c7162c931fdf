"""A second opinion: PyHessian on the same operator, the same batches, with its own products and power iteration."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lite_probe.errors import UsageError
from lite_probe.operators.conduct import undisturbed
from lite_probe.operators.gradient import Split, loss_and_gradient
from lite_probe.operators.layout import ParameterLayout
from lite_probe.operators.reductions import dot
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import Spectrum, Verification
from lite_probe.seeds import derive_seed
from lite_probe.spectra.operator import OnProgress
from lite_probe.task import Task

_PAIRS = 3
_ITERATIONS = 100  # of power iteration per pair, PyHessian's default
_TRACE_PROBES = 20
_STANDARD_ERRORS = 3.0  # two estimates of one trace lie within this many of their joint standard error


class _LossByIndex(nn.Module):
    """The task's loss as a model of batch indices, which is all that PyHessian needs to see.

    PyHessian averages batches by their number of rows. Each batch is shown as one row, and its loss is scaled to
    Σ criterion · B / Σ counts, so that the average over B batches is the task's loss, weighted by tokens.
    """

    def __init__(self, task: Task, split: Split, count: int) -> None:
        super().__init__()
        self.inner = task.model
        self._task = task
        self._batches = task.batches(split)
        self._scale = len(self._batches) / count

    def forward(self, index: Tensor) -> Tensor:
        """Return the scaled loss of batch `index`, shape (1,) → ()."""
        loss, _ = self._task.loss(self._batches[int(index)])
        return loss * self._scale


def verify_spectrum(task: Task, spectrum: Spectrum, *, on_progress: OnProgress | None = None) -> Spectrum:
    """Let PyHessian compute λ₁…λ₃ and the trace, and compare within the errors of both.

    Its eigenvalues are those of largest magnitude; each is compared with the nearest of ours, and may differ by the
    true residual of its pair plus ours (an eigenvalue lies within the residual of any vector's Rayleigh quotient).
    Its trace may differ by three joint standard errors.

    Args:
        task: The task that the spectrum was measured on.
        spectrum: Of the Hessian.
        on_progress: `(done, expected at most, label)`, in products.

    Returns:
        The spectrum with `verification`, and a note where they disagree.

    Raises:
        UsageError: For a Gauss–Newton spectrum, which PyHessian does not know.

    Cost: up to 320 products of about 3.2 gradients each.
    """
    if spectrum.operator != "hessian":
        raise UsageError(
            f"expected a Hessian spectrum to verify, got {spectrum.operator}", "PyHessian knows the Hessian only"
        )
    from pyhessian import hessian

    started = time.perf_counter()
    split: Split = "train" if spectrum.provenance.data_split == "train" else "evaluation"
    seed = derive_seed(spectrum.provenance.seed, "verify")
    with undisturbed(task.model), _gradients_put_back(task.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyHessian keeps graphs by .grad, and torch says so at every product
        torch.manual_seed(seed)
        layout = ParameterLayout(list(task.model.named_parameters()))
        evaluated = loss_and_gradient(task, layout, split)
        with _without_gradient(task.model, evaluated.unused):
            wrapped = _LossByIndex(task, split, evaluated.count)
            rows = [(torch.tensor([index]), torch.zeros(1)) for index in range(len(task.batches(split)))]
            theirs = hessian(wrapped, lambda loss, _: loss, dataloader=rows, cuda=task.device.type == "cuda")
            counter = _count_products(theirs, on_progress)
            values, vectors = theirs.eigenvalues(maxIter=_ITERATIONS, top_n=_PAIRS)
            residuals = [
                _relative_residual(theirs, value, vector) for value, vector in zip(values, vectors, strict=True)
            ]
            trace = _trace_estimate(np.array(theirs.trace(maxIter=_TRACE_PROBES, tol=0.0)), spectrum.whole.trace_h2)
    verification = _compare(spectrum, np.array(values), np.array(residuals), trace, counter, started)
    notes = spectrum.notes if verification.agrees else (*spectrum.notes, _disagreement(verification))
    return replace(spectrum, verification=verification, notes=notes)


def _trace_estimate(samples: NDArray[np.float64], trace_h2: Estimate) -> Estimate:
    """Return the mean of zᵀHz over random signs z, with a standard error that a few samples cannot understate.

    The variance of zᵀHz is 2(tr H² − Σ h_ii²) ≤ 2 tr H². Samples are skewed where a few directions carry the trace, and
    twenty that missed these agree with one another too well.
    """
    bound = float(np.sqrt(2.0 * max(trace_h2.value, 0.0) / len(samples)))
    return Estimate.from_samples(samples, least_stderr=bound)


def _relative_residual(theirs: Any, value: float, vector: list[Tensor]) -> float:
    """Return ‖Hv − λv‖/‖v‖ by PyHessian's own product, summed in float64."""
    _, image = theirs.dataloader_hv_product(vector)
    flat = torch.cat([part.flatten() for part in vector])
    image_flat = torch.cat([part.detach().flatten() for part in image])
    image_flat -= value * flat
    return float((dot(image_flat, image_flat) / dot(flat, flat)) ** 0.5)


def _compare(
    spectrum: Spectrum,
    values: NDArray[np.float64],
    residuals: NDArray[np.float64],
    trace: Estimate,
    counter: list[int],
    started: float,
) -> Verification:
    whole = spectrum.whole
    ours = np.concatenate([whole.eigenvalues, whole.lower_eigenvalues])
    our_errors = np.concatenate([whole.residual_norms, whole.lower_residual_norms])
    nearest = np.array([int(np.argmin(np.abs(ours - value))) for value in values])
    errors = residuals + our_errors[nearest]
    apart = abs(trace.value - whole.trace.value)
    return Verification(
        library=f"PyHessian {version('pyhessian')}",
        eigenvalues=values,
        eigenvalue_errors=errors,
        our_eigenvalues=ours[nearest],
        trace=trace,
        our_trace=whole.trace,
        eigenvalues_agree=bool(np.all(np.abs(values - ours[nearest]) <= errors)),
        trace_agrees=bool(apart <= _STANDARD_ERRORS * np.hypot(trace.stderr, whole.trace.stderr)),
        num_hvps=counter[0],
        wall_seconds=time.perf_counter() - started,
    )


def _disagreement(verification: Verification) -> Note:
    what = [
        name
        for name, agree in (
            ("eigenvalues", verification.eigenvalues_agree),
            ("trace", verification.trace_agrees),
        )
        if not agree
    ]
    return Note(
        code="verification-disagrees",
        message=f"{verification.library} disagrees beyond the errors of both on {' and '.join(what)}",
    )


def _count_products(theirs: Any, on_progress: OnProgress | None) -> list[int]:
    """Count PyHessian's products and report them."""
    product = theirs.dataloader_hv_product
    counter = [0]
    expected = _PAIRS * (_ITERATIONS + 1) + _TRACE_PROBES

    def counted(vector: list[Tensor]) -> Any:
        result = product(vector)
        counter[0] += 1
        if on_progress is not None:
            on_progress(counter[0], expected, "PyHessian")
        return result

    theirs.dataloader_hv_product = counted
    return counter


@contextmanager
def _gradients_put_back(model: nn.Module) -> Iterator[None]:
    """PyHessian works through `.grad`; put back what was there."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _without_gradient(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Hide parameters that the loss does not depend on: PyHessian cannot differentiate by them."""
    hidden = [parameter for name, parameter in model.named_parameters() if name in names]
    for parameter in hidden:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in hidden:
            parameter.requires_grad_(True)

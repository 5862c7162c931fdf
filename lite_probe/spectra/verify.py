"""A second opinion: PyHessian on the same operator, the same batches, with its own products and power iteration."""

import math
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
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import (
    DETECTABLE,
    SEEN_BEYOND,
    STANDARD_ERRORS,
    OperatorSpectrum,
    Spectrum,
    Verification,
)
from lite_probe.seeds import derive_seed
from lite_probe.spectra.operator import OnProgress
from lite_probe.task import Split, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import dot, dots

_PAIRS = 3
_ITERATIONS = 100  # of power iteration per pair, PyHessian's default
_CHANGE = 1e-6  # relative, of an eigenvalue in one iteration: its residual is then about the root of it
_CLUSTER = 3e-3  # relative: eigenvalues nearer than this are one to a power iteration
_LEAST_PROBES, _MOST_PROBES = 10, 500
_AIM = 0.9 * DETECTABLE["trace"]  # relative: a little less than a trace must be off to count as seen


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
    """Let PyHessian compute λ₁…λ₃, λmin and the trace, and compare within the errors of both.

    Its eigenvalues are those of largest magnitude: the first is compared with ours of that end, the others with the
    nearest of ours. They may differ by the true residual of its pair plus ours (an eigenvalue lies within the residual
    of any vector's Rayleigh quotient). λmin is the largest eigenvalue of c − H, its first pairs taken out, and what
    PyHessian's product says of our own vector. The trace may differ by three joint standard
    errors, and takes as many probes as it needs to see one that is off by a fifth, where our own error lets it.

    Args:
        task: The task that the spectrum was measured on.
        spectrum: Of the Hessian.
        on_progress: `(done, expected at most, label)`, in products.

    Returns:
        The spectrum with `verification`, and a note where they disagree or where it could not have seen an error.

    Raises:
        UsageError: For a Gauss–Newton spectrum, which PyHessian does not know.

    Cost: up to 905 products of about 3.2 gradients each.
    """
    require_verifiable(spectrum.operator)
    from pyhessian import hessian

    started = time.perf_counter()
    split: Split = "train" if spectrum.provenance.data_split == "train" else "evaluation"
    seed = derive_seed(spectrum.provenance.seed, "verify")
    with preserve_state(task.model), _gradients_put_back(task.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyHessian keeps graphs by .grad, and torch says so at every product
        torch.manual_seed(seed)
        layout = ParameterLayout(list(task.model.named_parameters()))
        evaluated = loss_and_gradient(task, layout, split)
        with _without_gradient(task.model, evaluated.unused):
            wrapped = _LossByIndex(task, split, evaluated.count)
            rows = [(torch.tensor([index]), torch.zeros(1)) for index in range(len(task.batches(split)))]
            theirs = hessian(wrapped, lambda loss, _: loss, dataloader=rows, cuda=task.device.type == "cuda")
            probes = _probes_needed(spectrum)
            counter = _count_products(theirs, probes, on_progress)
            values, vectors = theirs.eigenvalues(maxIter=_ITERATIONS, tol=_CHANGE, top_n=_PAIRS)
            pairs = [_pair(theirs, vector) for vector in vectors]
            lowest: list[tuple[float, float]] = []
            if len(spectrum.whole.lower_eigenvalues):
                lowest = [_lower_pair(theirs, values, vectors), *pairs]
                if (own := _our_lowest(spectrum, layout, evaluated.unused)) is not None:
                    lowest.append(_pair(theirs, own))
            trace = _trace_estimate(np.array(theirs.trace(maxIter=probes, tol=-math.inf)), spectrum.whole.trace_h2)
    verification = _compare(spectrum, pairs, lowest, trace, counter, started)
    notes = (*spectrum.notes, *_verification_notes(verification))
    return replace(spectrum, verification=verification, notes=notes)


def require_verifiable(operator: str) -> None:
    """Refuse what PyHessian does not know, before it is measured.

    Raises:
        UsageError: For any other operator than the Hessian.
    """
    if operator != "hessian":
        raise UsageError(f"expected a Hessian spectrum to verify, got {operator}", "PyHessian knows the Hessian only")


def _probes_needed(spectrum: Spectrum) -> int:
    """Return the probes after which a trace that is off by a fifth is seen in 98 of 100 cases, if so many are allowed.

    n probes have a standard error of at most √(2 tr H²/n), see `_trace_estimate`; ours comes on top of it.
    """
    whole = spectrum.whole
    allowed = (_AIM * whole.trace.value / (STANDARD_ERRORS + SEEN_BEYOND)) ** 2 - whole.trace.stderr**2
    if allowed <= 0.0:  # our own error hides a fifth: theirs need not be smaller than ours
        allowed = max(whole.trace.stderr**2, 1e-300)
    return math.ceil(min(max(2.0 * whole.trace_h2.value / allowed, _LEAST_PROBES), _MOST_PROBES))


def _trace_estimate(samples: NDArray[np.float64], trace_h2: Estimate) -> Estimate:
    """Return the mean of zᵀHz over random signs z, with a standard error that a few samples cannot understate.

    The variance of zᵀHz is 2(tr H² − Σ h_ii²) ≤ 2 tr H². Samples are skewed where a few directions carry the trace, and
    twenty that missed these agree with one another too well.
    """
    bound = float(np.sqrt(2.0 * max(trace_h2.value, 0.0) / len(samples)))
    return Estimate.from_samples(samples, least_stderr=bound)


def _lower_pair(theirs: Any, values: list[float], vectors: list[list[Tensor]]) -> tuple[float, float]:
    """Return λmin by PyHessian's power iteration on c − H, and its residual.

    The first pairs are taken out, so that c = |λ₃|/2 is enough: λmin is at c + |λmin| then, what is positive within c.
    Where |λmin| is small beside λ₃ it converges slowly, which the residual says.
    """
    product = theirs.dataloader_hv_product
    shift = 0.5 * abs(values[-1])

    def shifted(vector: list[Tensor]) -> tuple[float, list[Tensor]]:
        inside = _without(vector, vectors)
        _, image = product(inside)
        moved = _without([shift * part - other for part, other in zip(inside, image, strict=True)], vectors)
        return _inner(moved, vector), moved

    theirs.dataloader_hv_product = shifted
    try:
        _, found = theirs.eigenvalues(maxIter=_ITERATIONS, tol=_CHANGE, top_n=1)
    finally:
        theirs.dataloader_hv_product = product
    return _pair(theirs, found[0])


def _without(vector: list[Tensor], others: list[list[Tensor]]) -> list[Tensor]:
    """Take the span of some nearly orthonormal vectors out of one."""
    for other in others:
        share = _inner(other, vector)
        vector = [part - share * own for part, own in zip(vector, other, strict=True)]
    return vector


def _inner(first: list[Tensor], second: list[Tensor]) -> float:
    return sum(dots((one.flatten(), other.flatten()) for one, other in zip(first, second, strict=True)))


def _pair(theirs: Any, vector: list[Tensor]) -> tuple[float, float]:
    """Return vᵀHv/vᵀv and ‖Hv − λv‖/‖v‖ by PyHessian's own product, summed in float64."""
    _, image = theirs.dataloader_hv_product(vector)
    flat = torch.cat([part.flatten() for part in vector])
    image_flat = torch.cat([part.detach().flatten() for part in image])
    square = dot(flat, flat)
    value = dot(flat, image_flat) / square
    image_flat -= value * flat
    return value, float((dot(image_flat, image_flat) / square) ** 0.5)


def _compare(
    spectrum: Spectrum,
    pairs: list[tuple[float, float]],
    lowest: list[tuple[float, float]],
    trace: Estimate,
    counter: list[int],
    started: float,
) -> Verification:
    whole = spectrum.whole
    ours = np.concatenate([whole.eigenvalues, whole.lower_eigenvalues])
    our_errors = np.concatenate([whole.residual_norms, whole.lower_residual_norms])
    values, residuals = (np.array(part) for part in zip(*pairs, strict=True))
    matched = np.array([int(np.argmin(np.abs(ours - value))) for value in values])
    matched[0] = _first_of_its_end(spectrum, float(values[0]), int(matched[0]))
    errors = residuals + our_errors[matched]
    apart = abs(trace.value - whole.trace.value)
    return Verification(
        library=f"PyHessian {version('pyhessian')}",
        eigenvalues=values,
        eigenvalue_errors=errors,
        our_eigenvalues=ours[matched],
        trace=trace,
        our_trace=whole.trace,
        eigenvalues_agree=bool(np.all(np.abs(values - ours[matched]) <= errors)),
        trace_agrees=bool(apart <= STANDARD_ERRORS * np.hypot(trace.stderr, whole.trace.stderr)),
        num_hvps=counter[0],
        wall_seconds=time.perf_counter() - started,
        **_compare_lowest(whole, lowest),
    )


def _compare_lowest(whole: OperatorSpectrum, lowest: list[tuple[float, float]]) -> dict[str, Any]:
    """Hold our λmin against theirs, the pair of their iteration first among those they know.

    Every Rayleigh quotient is above the true λmin: one below ours refutes it whatever its residual, and the smallest
    one refutes it from above where its residual leaves no room. What could have been missed is their iteration's error.
    """
    if not lowest:
        return {}
    ours = float(whole.lower_eigenvalues[0])
    size = abs(ours) if whole.lower_converged[0] else float(np.abs(whole.eigenvalues).max(initial=abs(ours)))
    own = float(whole.lower_residual_norms[0]) + whole.tolerance * size
    least, residual = min(lowest)
    return {
        "lower_eigenvalue": least,
        "lower_error": max(residual, lowest[0][1]) + own,
        "our_lower_eigenvalue": ours,
        "lower_agrees": ours - own <= least <= ours + own + residual,
    }


def _our_lowest(spectrum: Spectrum, layout: ParameterLayout, unused: tuple[str, ...]) -> list[Tensor] | None:
    """Return our eigenvector of λmin as PyHessian has its vectors; None where it was not kept."""
    if spectrum.eigenvectors is None:
        return None
    first = layout.parameters[0]
    column = np.ascontiguousarray(spectrum.eigenvectors[:, len(spectrum.whole.eigenvalues)])
    flat = torch.from_numpy(column).to(first)
    return [part for name, part in zip(layout.names, layout.unflatten(flat), strict=True) if name not in unused]


def _first_of_its_end(spectrum: Spectrum, value: float, nearest: int) -> int:
    """Return the index of our eigenvalue that their first one must be: the outermost at its end.

    Their iteration may end at another of a cluster; a nearest one further in is what ours would have wrong.
    """
    whole = spectrum.whole
    outermost = len(whole.eigenvalues) if value < 0.0 and len(whole.lower_eigenvalues) else 0
    ours = np.concatenate([whole.eigenvalues, whole.lower_eigenvalues])
    same = abs(ours[outermost] - ours[nearest]) <= _CLUSTER * abs(ours[outermost])
    return nearest if same else outermost


def _verification_notes(verification: Verification) -> list[Note]:
    notes = []
    names = {"eigenvalues": "eigenvalues", "lower": "λmin", "trace": "trace"}
    if refused := [names[what] for what, agrees in verification.verdicts.items() if agrees is False]:
        notes.append(
            Note(
                code="verification-disagrees",
                message=f"{verification.library} disagrees beyond the errors of both on {' and '.join(refused)}",
            )
        )
    reaches = {
        names[what]: verification.reach(what) for what, agrees in verification.verdicts.items() if agrees is None
    }
    if reaches:
        unseen = " and ".join(f"{name} off by less than {reach:.0%}" for name, reach in reaches.items())
        notes.append(Note(code="verification-blind", message=f"{verification.library} would not have seen a {unseen}"))
    return notes


def _count_products(theirs: Any, probes: int, on_progress: OnProgress | None) -> list[int]:
    """Count PyHessian's products and report them."""
    product = theirs.dataloader_hv_product
    counter = [0]
    expected = (_PAIRS + 1) * (_ITERATIONS + 1) + probes

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

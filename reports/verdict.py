"""What the numbers allow one to say, in sentences that are never stronger than they are.

Three facts set the wording. A Ritz value never exceeds λ₁, so one that has not converged is a lower bound. A
symmetric operator has an eigenvalue within ‖Hv − λv‖ of λ. And where the quadrature puts more than half of the
mass on one node, it does not resolve the median of |λ|; tr H² still bounds it from above.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lite_probe.reports.numbers import (
    format_bounded,
    format_count,
    format_measured,
    format_measured_share,
    format_number,
    format_share,
)
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum

OPERATOR_NAMES = {"hessian": "Hessian", "ggn": "Gauss–Newton matrix"}
STRENGTHS = ((1e4, "extremely anisotropic"), (1e2, "strongly anisotropic"), (10.0, "moderately anisotropic"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One supporting statement of the verdict."""

    tone: str  # "good", "caution" or "plain"
    text: str  # the sentences of its claims are in it, word for word
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer in a sentence or two, and what it rests on."""

    lead: str
    points: tuple[Point, ...]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Everything that is claimed, in the order of the points."""
        return tuple(claim for point in self.points for claim in point.claims)


def loss_unit(spectrum: Spectrum) -> str:
    """Return the unit of the loss: per token for sequences, per sample for anything else."""
    return "nats per token" if spectrum.provenance.seq_len is not None else "nats per sample"


def judge(labels: Sequence[str], spectra: Sequence[Spectrum]) -> Verdict:
    """Say what one spectrum, or several side by side, show.

    Args:
        labels: One per spectrum, distinct.
        spectra: At least one, in the order of the page.
    """
    if len(spectra) == 1:
        return Verdict(lead=_describe(spectra[0]), points=_points(spectra[0], ""))
    points: list[Point] = []
    for name, spectrum in zip(labels, spectra, strict=True):
        points.append(Point(tone="plain", text=f"{name}: {_describe(spectrum)}"))
        points += _points(spectrum, f"{name}: ")
    return Verdict(lead=_compare(labels[0], spectra[0], labels[-1], spectra[-1]), points=tuple(points))


def _describe(spectrum: Spectrum) -> str:
    """Describe one spectrum: loss, λ₁, anisotropy, trace and effective rank."""
    whole, name = spectrum.whole, OPERATOR_NAMES.get(spectrum.operator, spectrum.operator)
    opening = f"At a loss of {format_number(spectrum.loss)} {loss_unit(spectrum)}, "
    if not len(whole.eigenvalues):
        return f"{opening}no eigenpairs of the {name} were asked for. {_describe_mass(whole)}"
    value = format_bounded(float(whole.eigenvalues[0]), float(whole.residual_norms[0]))
    if whole.converged[0]:
        sharpest = f"the sharpest direction of the {name} has curvature λ₁ = {value} loss/param²"
    else:
        sharpest = f"λ₁ of the {name} has not converged: its Ritz value {value} loss/param² is a lower bound"
    return f"{opening}{sharpest}{_describe_anisotropy(whole)}. {_describe_mass(whole)}"


def anisotropy_range(spectrum: OperatorSpectrum) -> tuple[float, float | None] | None:
    """Bound λ₁/median|λ|: from below by tr H² or the probes, from above by the probes alone.

    Returns:
        (least, most); `most` is None where the quadrature does not resolve the median. None where λ₁ is not
        positive or nothing bounds the median.
    """
    if not len(spectrum.eigenvalues) or spectrum.eigenvalues[0] <= 0:
        return None
    sharpest = float(spectrum.eigenvalues[0])
    if spectrum.median_is_resolved:
        # Without probes every eigenvalue is known, and the quantile is that of the atoms.
        probes = range(spectrum.num_probes) if spectrum.num_probes else [None]
        medians = [spectrum.quantile_abs(0.5, probe) or 0.0 for probe in probes]
        if min(medians) > 0:
            return sharpest / max(medians), sharpest / min(medians)
    bound = spectrum.median_abs_bound
    return (sharpest / bound, None) if bound else None


def _describe_anisotropy(spectrum: OperatorSpectrum) -> str:
    """Compare λ₁ with the median of |λ|, as far as it is known."""
    bounds = anisotropy_range(spectrum)
    if bounds is None:
        return ""
    least, most = bounds
    strength = next((name for limit, name in STRENGTHS if least >= limit), "weakly anisotropic")
    if most is None:
        return f", at least {format_number(least, 2)} times the median |λ| (bounded by tr H²): {strength}"
    if most < 1.05 * least:
        return f", {format_number(least, 2)} times the median |λ|: {strength}"
    span = f"{format_number(least, 2)} to {format_number(most, 2)}"
    return f", {span} times the median |λ| over {spectrum.num_probes} probes: {strength}"


def _describe_mass(spectrum: OperatorSpectrum) -> str:
    """Describe trace and effective rank, unless the trace cannot be told from zero."""
    estimate = spectrum.trace
    trace = f"trace {format_measured(estimate.value, estimate.low, estimate.high)}"
    if estimate.low <= 0 <= estimate.high:
        return f"The {trace} cannot be told from zero, so that effective rank and shares of it mean little."
    interval = spectrum.effective_rank_interval
    rank = format_number(spectrum.effective_rank)
    if spectrum.effective_rank is not None and interval is not None:
        rank = format_measured(spectrum.effective_rank, *interval)
    sentence = f"The effective rank is {rank} of {format_count(spectrum.num_parameters)} directions"
    share = spectrum.top_share_of_trace
    # The largest eigenvalues of all may be negative.
    if share is None or share < 0.0 or not len(spectrum.eigenvalues):
        return f"{sentence}; the {trace}."
    count = len(spectrum.eigenvalues)
    subject = "the largest eigenvalue" if count == 1 else f"the {count} largest eigenvalues"
    if share > 1:
        return f"{sentence}; {subject} alone exceed{'s' if count == 1 else ''} the {trace}: negative ones cancel."
    verb = "carries" if count == 1 else "carry"
    part = format_measured_share(share, *(share * estimate.value / bound for bound in (estimate.high, estimate.low)))
    return f"{sentence}; {subject} {verb} {part} of the {trace}."


def _points(spectrum: Spectrum, prefix: str) -> tuple[Point, ...]:
    """Return what supports or weakens the verdict on one spectrum."""
    found = [
        _negative_curvature(spectrum),
        _convergence(spectrum.whole),
        _verification(spectrum),
    ]
    return tuple(Point(tone=p.tone, text=prefix + p.text) for p in found if p is not None)


def _negative_curvature(spectrum: Spectrum) -> Point | None:
    """Say whether negative curvature was found, and how much of it."""
    whole = spectrum.whole
    lowest = whole.most_negative_eigenvalue
    if lowest is None:
        return None
    residual = float(whole.lower_residual_norms[0])
    value = format_bounded(lowest, residual)
    if lowest + residual >= 0:
        return Point(tone="plain", text=f"No negative curvature was found: the smallest eigenvalue found is {value}.")
    size = ""
    if len(whole.eigenvalues) and whole.eigenvalues[0] > 0:
        ratio = -lowest / float(whole.eigenvalues[0])
        size = (
            f", {format_share(ratio)} of λ₁ in size"
            if ratio <= 1.0
            else f", {format_number(ratio, 3)} times λ₁ in size"
        )
    if spectrum.operator == "ggn":
        text = f"The most negative eigenvalue, {value}{size}, is rounding: a Gauss–Newton matrix has none."
        return Point(tone="caution", text=text)
    mass = whole.negative_mass if whole.median_is_resolved else None
    shares = f"; {format_share(mass)} of all directions curve downward" if mass is not None else ""
    return Point(
        tone="plain",
        text=f"The checkpoint is no local minimum on these batches: the most negative eigenvalue found is "
        f"{value}{size}{shares}.",
    )


def _convergence(spectrum: OperatorSpectrum) -> Point | None:
    """Say how many of the pairs asked for came, and how many of them converged."""
    count, asked = len(spectrum.eigenvalues), spectrum.num_requested
    converged, lower = int(spectrum.converged.sum()), len(spectrum.lower_eigenvalues)
    lower_converged = int(spectrum.lower_converged.sum())
    if count + lower == 0:
        return None
    tolerance = f"a relative residual of {format_number(spectrum.tolerance, 1)}"
    if converged == count == asked and lower_converged == lower:
        subject = "The pair asked for" if count + lower == 1 else f"All {count + lower} pairs"
        return Point(tone="good", text=f"{subject} converged to {tolerance}.")
    parts = [f"{converged} of the {asked} largest pairs asked for converged to {tolerance}"]
    if count < asked:
        parts.append(f"only {count} {'was' if count == 1 else 'were'} found (stopped: {spectrum.stop_reason})")
    if lower_converged < lower:
        parts.append(f"{lower_converged} of {lower} at the lower end")
    return Point(tone="caution", text="; ".join(parts) + ". The others are marked and carry their residuals.")


def _verification(spectrum: Spectrum) -> Point | None:
    """Say whether the second opinion agrees, on what, and what it would have missed."""
    opinion = spectrum.verification
    if opinion is None:
        return None
    names = {"eigenvalues": "eigenvalues", "lower": "λmin", "trace": "trace"}
    by_verdict = {
        verdict: " and ".join(names[what] for what, agrees in opinion.verdicts.items() if agrees is verdict)
        for verdict in (True, False, None)
    }
    agreed, refused, blind = (by_verdict[verdict] for verdict in (True, False, None))
    seen = ", ".join(
        f"{names[what]} off by {100 * opinion.reach(what):.3g}%" for what, agrees in opinion.verdicts.items() if agrees
    )
    missed = f" It could not check the {blind}." if blind else ""
    if refused:
        but = f", though it agrees on the {agreed}" if agreed else ""
        text = f"{opinion.library} disagrees beyond both errors on the {refused}{but}.{missed}"
        return Point(tone="caution", text=text)
    if not agreed:
        return Point(tone="caution", text=f"{opinion.library} could not check the {blind}: its errors are too large.")
    text = f"{opinion.library} agrees within both errors on {agreed}; it would have seen {seen}.{missed}"
    return Point(tone="good" if opinion.agrees else "caution", text=text)


def _compare(first_label: str, first: Spectrum, last_label: str, last: Spectrum) -> str:
    """Say how loss, λ₁ and trace changed from the first to the last spectrum."""
    if first.operator != last.operator:
        names = [OPERATOR_NAMES.get(s.operator, s.operator) for s in (first, last)]
        return f"Spectra of different operators ({names[0]}, {names[1]}) stand side by side; they are not compared."
    changes = [
        f"the loss {_moved(first.loss, last.loss)}",
        _compare_sharpest(first.whole, last.whole),
        f"the trace {_moved_estimate(first.trace, last.trace)}",
    ]
    text = f"From {first_label} to {last_label} " + ", ".join(changes[:2]) + f", and {changes[2]}."
    if first.provenance.batches_digest != last.provenance.batches_digest:
        text += " They were measured on different batches, to which part of the change may be due."
    return text


def _compare_sharpest(first: OperatorSpectrum, last: OperatorSpectrum) -> str:
    """Say how λ₁ changed, if both have converged."""
    if not (len(first.eigenvalues) and len(last.eigenvalues)):
        return "λ₁ was not measured for both"
    if not (first.converged[0] and last.converged[0]):
        return "λ₁ cannot be compared, as it has not converged for both"
    error = float(first.residual_norms[0] + last.residual_norms[0])
    values, residuals = zip(
        *((float(s.eigenvalues[0]), float(s.residual_norms[0])) for s in (first, last)), strict=True
    )
    texts = [format_bounded(value, residual) for value, residual in zip(values, residuals, strict=True)]
    return f"λ₁ {_moved(values[0], values[1], error, texts)}"


def _moved_estimate(first: Estimate, last: Estimate) -> str:
    """Say how an estimate changed; the halves of the 95% intervals add in quadrature."""
    error = math.hypot(first.high - first.value, last.high - last.value)
    texts = [format_measured(estimate.value, estimate.low, estimate.high) for estimate in (first, last)]
    return _moved(first.value, last.value, error, texts)


def _moved(first: float, last: float, error: float = 0.0, texts: Sequence[str] = ()) -> str:
    """Say how a number changed, and whether by more than its error."""
    before, after = texts or (format_number(first), format_number(last))
    if abs(last - first) <= error:
        return f"did not change beyond its error (from {before} to {after})"
    factor = f" (×{format_number(last / first, 3)})" if texts and first > 0 and last > 0 else ""
    return f"{'rose' if last > first else 'fell'} from {before} to {after}{factor}"

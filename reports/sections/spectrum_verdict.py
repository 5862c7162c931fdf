"""What a spectrum allows one to say, in claims that are never stronger than the numbers are.

Three facts set the wording. A Ritz value never exceeds λ₁, so one that has not converged is a lower bound. A
symmetric operator has an eigenvalue within ‖Hv − λv‖ of λ. And where the quadrature puts more than half of the
mass on one node, it does not resolve the median of |λ|; tr H² still bounds it from above.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from lite_probe.reports.numbers import (
    count_of,
    format_bounded,
    format_count,
    format_measured,
    format_measured_share,
    format_number,
    format_share,
)
from lite_probe.reports.verdict import Point, Verdict, make_claim, one_space
from lite_probe.results.claim import Claim, decide
from lite_probe.results.estimate import Estimate
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum

OPERATOR_NAMES = {"hessian": "Hessian", "ggn": "Gauss–Newton matrix"}
STRENGTHS = ((1e4, "extremely anisotropic"), (1e2, "strongly anisotropic"), (10.0, "moderately anisotropic"))


def loss_unit(spectrum: Spectrum) -> str:
    """Return the unit of the loss: per token for sequences, per sample for anything else."""
    return "nats per token" if spectrum.provenance.seq_len is not None else "nats per sample"


def judge(labelled: Sequence[tuple[str, Spectrum]]) -> Verdict:
    """Say what one spectrum, or several side by side, show.

    Args:
        labelled: (label, spectrum), at least one, in the order of the page; labels are distinct.
    """
    (_, first), *others = labelled
    if not others:
        claims = _describe(first)
        return Verdict(lead=_text(first, claims), points=_points(first, ""), leading=claims)
    points: list[Point] = []
    for name, spectrum in labelled:
        claims = _describe(spectrum)
        points.append(Point(tone="plain", text=f"{name}: {_text(spectrum, claims)}", claims=claims))
        points += _points(spectrum, f"{name}: ")
    lead, changes = _compare(*labelled[0], *labelled[-1])
    return Verdict(lead=lead, points=tuple(points), leading=changes)


def _bounded(about: tuple[str, str], value: float, residual: float, sentence: str, *, wanted: int = 1) -> Claim:
    """Return a claim on an eigenvalue: it lies within its residual."""
    sign = 0 if abs(value) <= residual else wanted if value > 0 else -wanted
    covers = "the residual, on these batches"
    return make_claim(about, (value, value - residual, value + residual), sign, sentence, covers=covers, confidence=1.0)


def _estimated(about: tuple[str, str], estimate: Estimate, sentence: str) -> Claim:
    """Return a claim on an estimate over probes, which holds where it is positive."""
    covers = count_of(estimate.num_samples, "probe") if estimate.num_samples else "nothing: it is exact"
    return make_claim(
        about, (estimate.value, estimate.low, estimate.high), decide([estimate])[0], sentence, covers=covers
    )


def _text(spectrum: Spectrum, claims: Sequence[Claim]) -> str:
    """Join what describes a spectrum; without pairs, say that there are none."""
    sentences = [claim.sentence for claim in claims]
    if not len(spectrum.eigenvalues):
        sentences.insert(0, f"{_opening(spectrum)}no eigenpairs of the {_name(spectrum)} were asked for.")
    return one_space(" ".join(sentences))


def _name(spectrum: Spectrum) -> str:
    return OPERATOR_NAMES.get(spectrum.operator, spectrum.operator)


def _opening(spectrum: Spectrum) -> str:
    return f"At a loss of {format_number(spectrum.loss)} {loss_unit(spectrum)}, "


def _describe(spectrum: Spectrum) -> tuple[Claim, ...]:
    """Describe one spectrum: loss, λ₁, anisotropy, trace and effective rank."""
    whole, name = spectrum.whole, _name(spectrum)
    mass = _estimated((name, "trace"), whole.trace, _describe_mass(whole))
    if not len(whole.eigenvalues):
        return (mass,)
    sharpest, residual = float(whole.eigenvalues[0]), float(whole.residual_norms[0])
    value = format_bounded(sharpest, residual)
    quantity = "largest eigenvalue" if whole.converged[0] else "largest Ritz value"
    if whole.converged[0]:
        text = f"the sharpest direction of the {name} has curvature λ₁ = {value} loss/param²"
    else:
        text = f"λ₁ of the {name} has not converged: its Ritz value {value} loss/param² is a lower bound"
    sentence = f"{_opening(spectrum)}{text}{_describe_anisotropy(whole)}."
    return _bounded((name, quantity), sharpest, residual, sentence), mass


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
    if not spectrum.is_trace_told:
        return f"The {trace} cannot be told from zero, and neither can effective rank and shares of it be told."
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
    least, most = (share * estimate.value / bound for bound in (estimate.high, estimate.low))
    part = format_measured_share(share, least, most)
    if most > 1.0:  # a share of more than the whole bounds nothing
        part = f"at least {format_share(least)} (95%)"
    return f"{sentence}; {subject} {verb} {part} of the {trace}."


def _points(spectrum: Spectrum, prefix: str) -> tuple[Point, ...]:
    """Return what supports or weakens the verdict on one spectrum."""
    found = [_negative_curvature(spectrum), _convergence(spectrum), _verification(spectrum)]
    return tuple(replace(one, text=one_space(prefix + one.text)) for one in found if one is not None)


def _negative_curvature(spectrum: Spectrum) -> Point | None:
    """Say whether negative curvature was found, and how much of it."""
    whole = spectrum.whole
    lowest = whole.most_negative_eigenvalue
    if lowest is None:
        return None
    residual = float(whole.lower_residual_norms[0])
    value, tone = format_bounded(lowest, residual), "plain"
    size = ""
    if len(whole.eigenvalues) and whole.eigenvalues[0] > 0:
        ratio = -lowest / float(whole.eigenvalues[0])
        text = f"{format_share(ratio)} of" if ratio <= 1.0 else f"{format_number(ratio, 3)} times"
        size = f", {text} λ₁ in size"
    if lowest + residual >= 0:
        sentence = f"No negative curvature was found: the smallest eigenvalue found is {value}."
    elif spectrum.operator == "ggn":
        sentence = f"The most negative eigenvalue, {value}{size}, is rounding: a Gauss–Newton matrix has none."
        return Point(tone="caution", text=sentence)
    else:
        mass = whole.negative_mass if whole.median_is_resolved else None
        shares = f"; {format_share(mass)} of all directions curve downward" if mass is not None else ""
        sentence = (
            f"The checkpoint is no local minimum on these batches: the most negative eigenvalue found is "
            f"{value}{size}{shares}."
        )
    claim = _bounded((_name(spectrum), "smallest eigenvalue"), lowest, residual, sentence, wanted=-1)
    return Point(tone=tone, text=claim.sentence, claims=(claim,))


def _convergence(spectrum: Spectrum) -> Point | None:
    """Say how many of the pairs asked for came, how many of them converged, and to what."""
    whole = spectrum.whole
    count, asked = len(whole.eigenvalues), whole.num_requested
    converged, lower = int(whole.converged.sum()), len(whole.lower_eigenvalues)
    lower_converged = int(whole.lower_converged.sum())
    if count + lower == 0:
        return None
    reached = _reached(spectrum)
    listed = ", ".join(f"{number} to {what}" for what, number in reached.items())
    to_what = f" to {next(iter(reached))}" if len(reached) == 1 else ""
    if converged == count == asked and lower_converged == lower:
        subject = "The pair asked for" if count + lower == 1 else f"All {count + lower} pairs"
        return Point(tone="good", text=f"{subject} converged{to_what or f': {listed}'}.")
    parts = [f"{converged} of the {asked} largest pairs asked for converged{to_what}"]
    if count < asked:
        parts.append(f"only {count} {'was' if count == 1 else 'were'} found (stopped: {whole.stop_reason})")
    if lower_converged < lower:
        parts.append(f"{lower_converged} of {lower} at the lower end")
    of_those = "" if to_what else f" Of those that converged: {listed}."
    text = f"{'; '.join(parts)}.{of_those} The others are marked and carry their residuals."
    return Point(tone="caution", text=text)


def _reached(spectrum: Spectrum) -> dict[str, int]:
    """Count the converged pairs by what they converged to: the tolerance, or what rounding allows."""
    whole = spectrum.whole
    tolerance = f"a relative residual of {format_number(whole.tolerance, 1)}"
    at_rounding = whole.residuals_at_rounding
    within = int(whole.converged.sum() + whole.lower_converged.sum()) - len(at_rounding)
    if not len(at_rounding):
        return {tolerance: within}
    worst = float(at_rounding.max())
    largest = f"up to {format_number(worst, 2)}" if worst < 1.0 else "1 and more"
    rounding = f"what rounding of {spectrum.provenance.precision} allows, a relative residual of {largest}"
    return {**({tolerance: within} if within else {}), rounding: len(at_rounding)}


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


def _compare(first_label: str, first: Spectrum, last_label: str, last: Spectrum) -> tuple[str, tuple[Claim, ...]]:
    """Say how loss, λ₁ and trace changed from the first to the last spectrum."""
    if first.operator != last.operator:
        names = f"{_name(first)}, {_name(last)}"
        return f"Spectra of different operators ({names}) stand side by side; they are not compared.", ()
    sharpest, moved = _compare_sharpest(first.whole, last.whole)
    ends = [format_measured(one.value, one.low, one.high) for one in (first.trace, last.trace)]
    change = _difference(first.trace, last.trace)
    trace = _moved(first.trace.value, last.trace.value, decide([change])[0], ends)
    sentence = one_space(
        f"From {first_label} to {last_label} the loss {_moved(first.loss, last.loss, 1)}, {sharpest}, and the trace "
        f"{trace}."
    )
    claims = [_estimated((last_label, f"trace minus that of {first_label}"), change, sentence)]
    if moved is not None:
        claims.insert(0, _bounded((last_label, f"λ₁ minus that of {first_label}"), *moved, sentence))
    if first.provenance.batches_digest != last.provenance.batches_digest:
        return f"{sentence} They were measured on different batches, to which part of the change may be due.", tuple(
            claims
        )
    return sentence, tuple(claims)


def _difference(first: Estimate, last: Estimate) -> Estimate:
    """Return by how much an estimate changed; the halves of the 95% intervals add in quadrature."""
    value, reach = last.value - first.value, math.hypot(first.high - first.value, last.high - last.value)
    return Estimate(
        value=value,
        stderr=math.hypot(first.stderr, last.stderr),
        low=value - reach,
        high=value + reach,
        num_samples=min(first.num_samples, last.num_samples),
    )


def _compare_sharpest(first: OperatorSpectrum, last: OperatorSpectrum) -> tuple[str, tuple[float, float] | None]:
    """Say how λ₁ changed, if both have converged; return the change and its bound too."""
    if not (len(first.eigenvalues) and len(last.eigenvalues)):
        return "λ₁ was not measured for both", None
    if not (first.converged[0] and last.converged[0]):
        return "λ₁ cannot be compared, as it has not converged for both", None
    bound = float(first.residual_norms[0] + last.residual_norms[0])
    before, after = float(first.eigenvalues[0]), float(last.eigenvalues[0])
    texts = [format_bounded(float(one.eigenvalues[0]), float(one.residual_norms[0])) for one in (first, last)]
    return f"λ₁ {_moved(before, after, int(abs(after - before) > bound), texts)}", (after - before, bound)


def _moved(first: float, last: float, is_told: int, texts: Sequence[str] = ()) -> str:
    """Say how a number changed, and whether by more than its error."""
    before, after = texts or (format_number(first), format_number(last))
    if not is_told or first == last:
        return f"did not change beyond its error (from {before} to {after})"
    factor = f" (×{format_number(last / first, 3)})" if texts and first > 0 and last > 0 else ""
    return f"{'rose' if last > first else 'fell'} from {before} to {after}{factor}"

"""A spectrum in a few lines, for the terminal, and as one JSON object, for programs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lite_probe.commands.wording import count, number, percent, with_error

if TYPE_CHECKING:
    from lite_probe.results.estimate import Estimate
    from lite_probe.results.spectrum import OperatorSpectrum, Spectrum, Verification

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
ERRORS_EXPLAINED = "±: for λ the residual norm, a bound; for trace and rank one standard error"


def figures(spectrum: "Spectrum") -> list[str]:
    """Return the figures of the whole operator, each with its error where it has one."""
    whole = spectrum.whole
    found = [f"loss {number(spectrum.loss)}"]
    if len(whole.eigenvalues):
        found.append(f"λ₁ {with_error(whole.eigenvalues[0], whole.residual_norms[0])}")
    if len(whole.eigenvalues) > 1:
        last = str(len(whole.eigenvalues)).translate(_SUBSCRIPTS)
        found.append(f"λ{last} {with_error(whole.eigenvalues[-1], whole.residual_norms[-1])}")
    if len(whole.lower_eigenvalues):
        found.append(f"λmin {with_error(whole.lower_eigenvalues[0], whole.lower_residual_norms[0])}")
    found.append(f"trace {with_error(whole.trace.value, whole.trace.stderr)}")
    found.append(f"λ₁/median|λ| {condition_to_median(whole, '≥ ')}")
    found.append(f"effective rank {with_error(whole.effective_rank, whole.effective_rank_stderr)}")
    return found


def condition_to_median(operator: "OperatorSpectrum", at_least: str) -> str:
    """Return λ₁/median|λ|; where the quadrature cannot resolve the median, what it is at least, so marked."""
    if operator.median_is_resolved:
        return number(operator.condition_to_median, 2)
    bound = operator.median_abs_bound
    if not bound or not len(operator.eigenvalues):
        return number(None)
    return f"{at_least}{number(float(operator.eigenvalues[0]) / bound, 2)}"


def block_table(blocks: "Mapping[str, OperatorSpectrum]") -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the comparison of blocks."""
    header = ["block", "params", "λ₁", "λmin", "trace", "λ₁/median|λ|", "eff. rank"]
    rows = [
        [
            name,
            count(block.num_parameters),
            number(float(block.eigenvalues[0]) if len(block.eigenvalues) else None),
            number(block.most_negative_eigenvalue, 3),
            with_error(block.trace.value, block.trace.stderr),
            condition_to_median(block, "≥ "),
            number(block.effective_rank, 3),
        ]
        for name, block in blocks.items()
    ]
    return header, rows


def verification_line(verification: "Verification") -> str:
    """Say what another library found, whether it agrees, and from which deviation on it would not have."""
    theirs, ours = verification.eigenvalues, verification.our_eigenvalues
    pairs = ", ".join(f"{number(a)} here {number(b)}" for a, b in zip(theirs, ours, strict=True))
    trace = with_error(verification.trace.value, verification.trace.stderr)
    verdict = "agrees" if verification.agrees else "DISAGREES" if _refused(verification) else "CANNOT TELL"
    line = f"{verification.library} {verdict}: λ {pairs}"
    if verification.lower_eigenvalue is not None:
        lower = with_error(verification.lower_eigenvalue, verification.lower_error)
        line += f"; λmin {lower} here {number(verification.our_lower_eigenvalue)}"
    line += f"; trace {trace} here {number(verification.our_trace.value)}"
    return f"{line}; it would have seen {_reaches(verification)}"


def _refused(verification: "Verification") -> bool:
    return False in verification.verdicts.values()


def _reaches(verification: "Verification") -> str:
    """Say which deviations would have been seen, and which agreement therefore says nothing."""
    names = {"eigenvalues": "λ₁", "lower": "λmin", "trace": "the trace"}
    parts = []
    for what, agrees in verification.verdicts.items():
        reach = verification.reach(what)
        said = f"{names[what]} off by {percent(reach)}" if reach < float("inf") else f"no error of {names[what]}"
        parts.append(f"{said} (not checked)" if agrees is None else said)
    return ", ".join(parts)


def json_object(spectrum: "Spectrum") -> dict[str, Any]:
    """Return what `--json` prints: plain numbers, null where there is none."""
    whole = {"loss": spectrum.loss, "gradient_norm": spectrum.gradient_norm, **_operator(spectrum.whole)}
    verification = spectrum.verification
    return {
        "operator": spectrum.operator,
        **whole,
        "blocks": {name: {"loss": spectrum.loss, **_operator(block)} for name, block in spectrum.blocks.items()},
        "verification": None
        if verification is None
        else {
            "library": verification.library,
            "agrees": verification.agrees,
            "eigenvalues": verification.eigenvalues.tolist(),
            "eigenvalue_errors": verification.eigenvalue_errors.tolist(),
            "lower_eigenvalue": verification.lower_eigenvalue,
            "lower_error": verification.lower_error,
            "trace": estimate_object(verification.trace),
            "verdicts": verification.verdicts,
            "detectable": {what: _finite(verification.reach(what)) for what in verification.verdicts},
        },
        "notes": [{"code": note.code, "message": note.message} for note in spectrum.notes],
        "wall_seconds": spectrum.provenance.wall_seconds,
        "peak_memory_bytes": spectrum.provenance.peak_memory_bytes,
        "fingerprint": spectrum.fingerprint,
    }


def _finite(value: float) -> float | None:
    """Return a number as JSON has it: null for infinity."""
    return value if value < float("inf") else None


def _operator(operator: "OperatorSpectrum") -> dict[str, Any]:
    return {
        "num_parameters": operator.num_parameters,
        "num_hvps": operator.num_hvps,
        "eigenvalues": operator.eigenvalues.tolist(),
        "residual_norms": operator.residual_norms.tolist(),
        "lower_eigenvalues": operator.lower_eigenvalues.tolist(),
        "lower_residual_norms": operator.lower_residual_norms.tolist(),
        "trace": estimate_object(operator.trace),
        "trace_h2": estimate_object(operator.trace_h2),
        "effective_rank": operator.effective_rank,
        "median_abs_eigenvalue": operator.median_abs_eigenvalue,
        "median_is_resolved": operator.median_is_resolved,
        "median_abs_bound": operator.median_abs_bound,
        "most_negative_eigenvalue": operator.most_negative_eigenvalue,
        "stop_reason": operator.stop_reason,
    }


def estimate_object(estimate: "Estimate | None") -> dict[str, float | None] | None:
    """Return an estimate with its error and 95% interval; null where there is none, as for the error of one sample."""
    if estimate is None:
        return None
    uncertainty = {
        name: None if estimate.num_samples == 1 else getattr(estimate, name) for name in ("stderr", "low", "high")
    }
    return {"value": estimate.value, **uncertainty}

"""A spectrum as it is shown: key numbers, density, both ends, blocks, and what another library said."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lite_probe.reports.drawing import by_name
from lite_probe.reports.numbers import (
    MISSING,
    SUBSCRIPTS,
    format_bounded,
    format_measured_share,
    format_number,
    format_share,
    format_uncertain,
    terse,
)
from lite_probe.reports.sections.section import (
    TEMPLATES,
    Block,
    Figures,
    Line,
    Part,
    Section,
    attributes,
    estimate_object,
)
from lite_probe.reports.sections.spectrum_figures import draw_blocks, draw_density, draw_end
from lite_probe.reports.sections.spectrum_verdict import OPERATOR_NAMES, anisotropy_range, judge, loss_unit
from lite_probe.reports.smoothing import asinh_scale
from lite_probe.reports.table import (
    CURVATURE,
    Cell,
    Column,
    Table,
    estimate_cell,
    number_cell,
    tabulate,
    text_cell,
    to_grid,
    write_csv,
)
from lite_probe.reports.verdict import Verdict
from lite_probe.results.blocks import order_blocks
from lite_probe.results.spectrum import STANDARD_ERRORS, FloatArray, OperatorSpectrum, Spectrum, Verification

End = tuple[FloatArray, FloatArray, NDArray[np.bool_]]  # eigenvalues, residual norms, which have converged
UNTOLD = "cannot be told"  # what rests on a trace that may be zero
Labelled = Sequence[tuple[str, Spectrum]]
_IN_FIGURES = {  # key number → its name in the terminal
    "loss": "loss",
    "λ₁": "λ₁",
    "λ of the last top pair": "",
    "most negative λ": "λmin",
    "trace": "trace",
    "λ₁ / median |λ|": "λ₁/median|λ|",
    "effective rank": "effective rank",
}


class SpectrumSection(Section):
    """How spectra are shown."""

    heading = "Spectrum"
    template = TEMPLATES / "spectrum.html.j2"

    def subject(self, results: Sequence[Spectrum]) -> str:
        """Name the operators."""
        return f"{' and '.join(sorted({OPERATOR_NAMES.get(one.operator, one.operator) for one in results}))} spectrum"

    def facts(self, result: Spectrum) -> Mapping[str, str]:
        """Return the operator."""
        return {"operator": result.operator}

    def verdict(self, result: Spectrum) -> Verdict:
        """Say what one spectrum shows."""
        return judge([("", result)])

    def summary(self, result: Spectrum) -> Sequence[Block]:
        """Return key numbers, and the blocks beside one another."""
        count = len(result.eigenvalues)
        names = {**_IN_FIGURES, "λ of the last top pair": f"λ{count}".translate(SUBSCRIPTS) if count > 1 else ""}
        numbers = [(names.get(title), cell.text) for title, _, cell, _ in key_numbers(result)]
        texts = [f"{name} {terse(text)}" for name, text in numbers if name and text != MISSING]
        meaning = "±: of λ the residual norm, a bound; else half of the 95% interval over probes"
        blocks: list[Block] = [Figures(texts), Line(meaning, is_dim=True)]
        if (table := block_table([("", result)], is_alone=True)) is not None:
            blocks.append(to_grid(table, bare=("λ₁", "most negative λ")))
        if (table := verification_table([("", result)], is_alone=True)) is not None:
            blocks.append(to_grid(table))
        return blocks

    def json_object(self, result: Spectrum) -> dict[str, Any]:
        """Return every number of the whole operator and of its blocks."""
        opinion = result.verification
        return {
            **attributes(result, "operator", "loss", "gradient_norm"),
            **_operator_object(result.whole),
            "blocks": {name: {"loss": result.loss, **_operator_object(block)} for name, block in result.blocks.items()},
            "verification": None if opinion is None else _verification_object(opinion),
        }

    def tables(self, labelled: Labelled) -> Sequence[Table]:
        """Return the page's tables."""
        return [table for table in _tables(labelled).values() if table is not None]

    def part(self, labelled: Labelled) -> Part:
        """Draw and list everything, spectra beside one another."""
        wholes = [(label, one.whole) for label, one in labelled]
        scale = asinh_scale([whole for _, whole in wholes])
        drawings = {
            "density": draw_density("density", wholes, scale),
            "density_linear": draw_density("density-linear", wholes, None),
            "upper": draw_end("upper-end", wholes, is_lower=False),
            "lower": draw_end("lower-end", wholes, is_lower=True),
            "blocks": draw_blocks([(label, dict(one.blocks)) for label, one in labelled]),
        }
        verdict = judge(labelled)
        view = {**drawings, **_tables(labelled), "asinh_scale": format_number(scale, 1), "points": verdict.points}
        return Part(
            view=view,
            leads=[("", verdict.lead)],
            links=[("blocks", "Blocks")] if drawings["blocks"] is not None else (),
            figures=by_name(drawings.values()),
        )


SECTION = SpectrumSection()


def _tables(labelled: Labelled) -> dict[str, Table | None]:
    """Return what the template gets of tables."""
    is_alone = len(labelled) == 1
    tolerances = " or ".join(sorted({format_number(one.whole.tolerance, 1) for _, one in labelled}))
    caption = (
        f"Eigenpairs at both ends; converged means a residual of at most {tolerances}·|λ|, or of what rounding allows."
    )
    pairs = [(label, ("", one.whole)) for label, one in labelled]
    return {
        "key_numbers": key_table(labelled),
        "pairs": pair_table("eigenpairs", caption, pairs, is_alone=is_alone),
        "block_table": block_table(labelled, is_alone=is_alone),
        "verification": verification_table(labelled, is_alone=is_alone),
    }


# Key numbers

KeyNumber = tuple[str, str, Cell, str]  # (title, unit, number, what it means)


def key_numbers(spectrum: Spectrum) -> list[KeyNumber]:
    """Return the numbers of the whole operator."""
    whole, trace_h2 = spectrum.whole, estimate_cell(spectrum.whole.trace_h2)
    mass = whole.negative_mass if whole.median_is_resolved else None
    negative = Cell(text="not resolved" if mass is None else format_share(mass), raw=mass)
    last = pair_cell(whole.upper_end, -1)
    return [
        ("loss", loss_unit(spectrum), number_cell(spectrum.loss), "Mean over everything counted in the batches."),
        ("‖g‖", "loss/param", number_cell(spectrum.gradient_norm), "Norm of the gradient on the same batches."),
        ("λ₁", CURVATURE, pair_cell(whole.upper_end), "Largest eigenvalue: the curvature of the sharpest direction."),
        ("λ of the last top pair", CURVATURE, last, "Smallest of the largest eigenvalues asked for."),
        (
            "most negative λ",
            CURVATURE,
            pair_cell(whole.lower_end),
            "Smallest eigenvalue; negative curvature if below 0.",
        ),
        ("trace", CURVATURE, estimate_cell(whole.trace), "Sum of all eigenvalues, by Hutch++."),
        ("tr H²", f"({CURVATURE})²", trace_h2, "Sum of all squared eigenvalues."),
        ("effective rank", "", rank_cell(whole), "(tr H)²/tr H²: so many equal eigenvalues would do the same."),
        (
            "top pairs' share of trace",
            "",
            _top_share(whole),
            "Sum of the largest eigenvalues asked for, over the trace.",
        ),
        ("median |λ|", CURVATURE, _median_cell(whole), "Of all eigenvalues, by quadrature."),
        ("λ₁ / median |λ|", "", ratio_cell(whole), "How much sharper the sharpest direction is than a typical one."),
        ("λ₁ / λ of the last top pair", "", number_cell(whole.condition_in_top), "How steeply the top falls."),
        ("slope of log λᵢ on log i", "", number_cell(whole.power_law_slope), "−1 means λᵢ ∝ 1/i at the top."),
        ("share of negative eigenvalues", "", negative, "By quadrature, where it resolves the bulk."),
        ("parameters", "", number_cell(whole.num_parameters), "Tied weights count once."),
        ("operator products", "", number_cell(whole.num_hvps), "Hessian-vector products, each over all batches."),
    ]


def key_table(labelled: Labelled) -> Table:
    """List quantities by spectra; the CSV has one line per number, with its error."""
    measured = [key_numbers(spectrum) for _, spectrum in labelled]
    labels = [label for label, _ in labelled]
    return Table(
        name="key-numbers",
        caption="± is the residual of an eigenvalue, else half of the 95% interval over probes.",
        columns=(Column("quantity", is_text=True), *(Column(label) for label in labels)),
        rows=tuple(
            (Cell(text=title, raw=title, unit=unit, hint=hint), *(numbers[place][2] for numbers in measured))
            for place, (title, unit, _, hint) in enumerate(measured[0])
        ),
        csv=write_csv(
            ["checkpoint", "quantity", "unit", "value", "error"],
            [
                [label, title, unit, cell.raw, cell.error]
                for place in range(len(measured[0]))
                for label, numbers in zip(labels, measured, strict=True)
                for title, unit, cell, _ in [numbers[place]]
            ],
        ),
    )


def pair_cell(end: End, place: int = 0, *, is_terse: bool = False) -> Cell:
    """Return one eigenvalue with its residual; a terse one leaves out what is below the last of five digits."""
    values, residuals, _ = end
    if not len(values):
        return Cell(text=MISSING)
    value, residual = float(values[place]), float(residuals[place])
    is_small = is_terse and residual <= 5e-6 * abs(value)
    text = format_number(value, 5) if is_small else format_bounded(value, residual)
    return Cell(text=text, raw=value, error=residual)


def rank_cell(whole: OperatorSpectrum) -> Cell:
    """Return the effective rank with half of its 95% interval, unless the trace may be zero."""
    interval = whole.effective_rank_interval
    if not whole.is_trace_told:
        return Cell(text=UNTOLD)
    rank = whole.effective_rank
    half = None if rank is None or interval is None else interval[1] - rank
    return Cell(text=format_uncertain(rank, half), raw=rank, error=half)


def _top_share(whole: OperatorSpectrum) -> Cell:
    """Return the share that the largest eigenvalues have of the trace, where it is one."""
    share, trace = whole.top_share_of_trace, whole.trace
    if not whole.is_trace_told:
        return Cell(text=UNTOLD)
    if share is None:
        return Cell(text=MISSING)
    # Where negative eigenvalues cancel, the largest add up to more than the trace.
    is_share = 0.0 <= share <= 1.0
    ends = [share * trace.value / bound for bound in (trace.high, trace.low)]
    return Cell(text=format_measured_share(share, *ends) if is_share else MISSING, raw=share, error=ends[1] - share)


def _median_cell(whole: OperatorSpectrum) -> Cell:
    """Return the median of |λ|, or its bound where the quadrature does not resolve it."""
    if whole.median_is_resolved:
        return number_cell(whole.median_abs_eigenvalue, 2)
    bound = whole.median_abs_bound
    return Cell(text=MISSING if bound is None else f"≤ {format_number(bound, 2)}")


def ratio_cell(whole: OperatorSpectrum) -> Cell:
    """Return λ₁/median|λ| with its range over probes, or its lower bound."""
    bounds = anisotropy_range(whole)
    if bounds is None:
        return Cell(text=MISSING)
    least, most = bounds
    if most is None:
        return Cell(text=f"≥ {format_number(least, 2)}")
    texts = dict.fromkeys(format_number(bound, 2) for bound in bounds)
    return Cell(text=" to ".join(texts), raw=whole.condition_to_median)


# Tables


def pair_table(
    name: str,
    caption: str,
    wholes: Sequence[tuple[str, tuple[str, OperatorSpectrum]]],
    *,
    kinds: str = "",
    is_alone: bool,
) -> Table | None:
    """List every pair with its residual.

    Args:
        name: Of the table.
        caption: Of the table.
        wholes: (checkpoint, (which of its spectra, spectrum)).
        kinds: Title of the column that says which; without, there is none.
        is_alone: Whether there is one checkpoint.
    """
    rows = [
        (label, (which, end, place, float(values[place]), float(residuals[place]), bool(converged[place])))
        for label, (which, whole) in wholes
        for end, (values, residuals, converged) in (("largest", whole.upper_end), ("smallest", whole.lower_end))
        for place in range(len(values))
    ]
    unit = "" if kinds else CURVATURE
    columns = [
        *([(Column(kinds, is_text=True), lambda row: text_cell(row[0]))] if kinds else []),
        (Column("end", is_text=True), lambda row: text_cell(row[1])),
        (Column("i"), lambda row: number_cell(row[2] + 1)),
        (Column("λ", unit=unit), lambda row: number_cell(row[3], 5)),
        (
            Column("residual", unit=unit, hint="‖Hv − λv‖: an eigenvalue lies this near to λ"),
            lambda row: number_cell(row[4], 2),
        ),
        (
            Column("relative", hint="residual / |λ|"),
            lambda row: number_cell(row[4] / abs(row[3]) if row[3] else None, 2),
        ),
        (Column("converged", is_text=True), lambda row: _converged_cell(row[5])),
    ]
    return tabulate(name, caption, columns, rows, is_alone=is_alone)


def _converged_cell(done: bool) -> Cell:
    return Cell(text="yes" if done else "no", raw=done, tone="good" if done else "caution")


def block_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every block of every spectrum, the whole first; None where no block was measured alone."""
    names = order_blocks(name for _, spectrum in labelled for name in spectrum.blocks)
    columns = [
        (Column("block", is_text=True, short="block"), lambda row: text_cell(row[0])),
        (Column("parameters", short="params"), lambda row: number_cell(row[1].num_parameters)),
        (Column("λ₁", unit=CURVATURE, short="λ₁"), lambda row: pair_cell(row[1].upper_end, is_terse=True)),
        (
            Column("most negative λ", unit=CURVATURE, short="λmin"),
            lambda row: pair_cell(row[1].lower_end, is_terse=True),
        ),
        (Column("trace", unit=CURVATURE, short="trace"), lambda row: estimate_cell(row[1].trace)),
        (Column("effective rank", short="eff. rank"), lambda row: rank_cell(row[1])),
        (Column("median |λ|", unit=CURVATURE), lambda row: _median_cell(row[1])),
        (Column("λ₁ / median |λ|", short="λ₁/median|λ|"), lambda row: ratio_cell(row[1])),
    ]
    rows = [
        (label, (name, part))
        for label, spectrum in labelled
        for name, part in (("whole", spectrum.whole), *((name, spectrum.blocks.get(name)) for name in names))
        if part is not None and names
    ]
    caption = (
        "The whole operator and its restriction to each block. ± is a residual of λ unless it is below the last digit, "
        "else half of the 95% interval over probes."
    )
    return tabulate("blocks", caption, columns, rows, is_alone=is_alone)


def verification_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """Set another library's numbers beside ours."""
    rows = [
        (label, (spectrum.verification.library, *row))
        for label, spectrum in labelled
        if spectrum.verification is not None
        for row in _opinions(spectrum.verification)
    ]
    columns = [
        (Column("library", short="library", is_text=True), lambda row: text_cell(row[0])),
        (Column("quantity", short="quantity", is_text=True), lambda row: text_cell(row[1])),
        (Column("theirs", short="theirs", unit=CURVATURE), lambda row: number_cell(row[2], 5)),
        (Column("ours", short="ours", unit=CURVATURE), lambda row: number_cell(row[3], 5)),
        (
            Column("difference", short="difference", unit=CURVATURE),
            lambda row: _difference_cell(row[2] - row[3], row[4]),
        ),
        (
            Column("allowed", short="allowed", unit=CURVATURE, hint="both errors together"),
            lambda row: Cell(text=f"± {format_number(row[4], 2)}", raw=row[4]),
        ),
    ]
    caption = "A second opinion on the same operator and batches. The trace may differ by three standard errors."
    return tabulate("verification", caption, columns, rows, is_alone=is_alone)


def _opinions(opinion: Verification) -> list[tuple[str, float, float, float]]:
    """Return (quantity, theirs, ours, allowed difference)."""
    values = zip(opinion.eigenvalues, opinion.our_eigenvalues, opinion.eigenvalue_errors, strict=True)
    found = [(f"λ{place}".translate(SUBSCRIPTS), *map(float, numbers)) for place, numbers in enumerate(values, 1)]
    if opinion.lower_eigenvalue is not None and opinion.our_lower_eigenvalue is not None:
        found.append(("λmin", opinion.lower_eigenvalue, opinion.our_lower_eigenvalue, opinion.lower_error or 0.0))
    reach = STANDARD_ERRORS * math.hypot(opinion.trace.stderr, opinion.our_trace.stderr)
    return [*found, ("trace", opinion.trace.value, opinion.our_trace.value, reach)]  # type: ignore[list-item]


def _difference_cell(difference: float, allowed: float) -> Cell:
    is_fine = abs(difference) <= allowed
    text = f"{format_number(difference, 2)} {'✓' if is_fine else '✗'}"
    return Cell(text=text, raw=difference, tone="good" if is_fine else "caution")


# For programs


def _operator_object(whole: OperatorSpectrum) -> dict[str, Any]:
    """Return the numbers of one operator; a rank that cannot be told is null."""
    names = (
        *("num_parameters", "num_hvps", "num_fast_hvps", "product_error"),
        *("eigenvalues", "residual_norms", "lower_eigenvalues", "lower_residual_norms"),
        *("median_abs_eigenvalue", "median_is_resolved", "median_abs_bound", "most_negative_eigenvalue", "stop_reason"),
    )
    return {
        **attributes(whole, *names),
        "trace": estimate_object(whole.trace),
        "trace_h2": estimate_object(whole.trace_h2),
        "effective_rank": whole.effective_rank if whole.is_trace_told else None,
        "effective_rank_interval": whole.effective_rank_interval if whole.is_trace_told else None,
    }


def _verification_object(opinion: Verification) -> dict[str, Any]:
    """Return what another library found; null for a deviation of which none is too large to be seen."""
    names = ("library", "agrees", "eigenvalues", "eigenvalue_errors", "lower_eigenvalue", "lower_error", "verdicts")
    reaches = {what: opinion.reach(what) for what in opinion.verdicts}
    return {
        **attributes(opinion, *names),
        "trace": estimate_object(opinion.trace),
        "detectable": {what: reach if math.isfinite(reach) else None for what, reach in reaches.items()},
    }

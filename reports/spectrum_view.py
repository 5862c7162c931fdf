"""Spectra as plain data: strings, numbers and tables, before anything is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lite_probe.reports.numbers import (
    MISSING,
    count_of,
    format_bounded,
    format_number,
    format_share,
    format_uncertain,
    power_label,
)
from lite_probe.reports.smoothing import SmoothedDensity, asinh_scale, smooth_asinh, smooth_linear
from lite_probe.reports.table import Cell, Column, Table, make_table, without_lone_label, write_csv
from lite_probe.reports.verdict import Verdict, anisotropy_range, judge, loss_unit
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.spectrum import STANDARD_ERRORS, OperatorSpectrum, Spectrum

CURVATURE = "loss/param²"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The density of one spectrum on one axis, with its atoms."""

    label: str
    position: tuple[float, ...]  # where to draw
    curvature: tuple[float, ...]  # what is there, loss/param²
    value: tuple[float, ...]  # φ, 1/curvature
    low: tuple[float, ...]
    high: tuple[float, ...]
    atom_position: tuple[float, ...]
    atom_curvature: tuple[float, ...]
    atom_height: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityView:
    """Densities of all spectra on one axis."""

    axis_title: str
    ticks: tuple[tuple[float, str], ...]  # (position, label); empty: the drawing program's own
    floor: float  # where the logarithmic axis begins, 1/curvature
    ceiling: float
    curves: tuple[Curve, ...]
    summary: str  # for those who cannot see the figure


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSeries:
    """One end of one spectrum: λ against its index."""

    label: str
    index: tuple[int, ...]  # 1 …
    value: tuple[float, ...]  # λ, or −λ where `EndView.is_negated`
    residual: tuple[float, ...]
    converged: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndView:
    """One end of the spectra."""

    title: str
    axis_title: str
    is_log: bool
    is_negated: bool
    series: tuple[PairSeries, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSeries:
    """Three curvatures of each block of one spectrum; None where one has no place on a logarithmic axis."""

    label: str
    sharpest: tuple[float | None, ...]  # λ₁
    mean: tuple[float | None, ...]  # tr H / N
    median: tuple[float | None, ...]  # of |λ|, or its upper bound
    median_is_bound: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksView:
    """Blocks side by side."""

    blocks: tuple[str, ...]
    series: tuple[BlockSeries, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumView:
    """What a page says of spectra."""

    verdict: Verdict
    key_numbers: Table
    density: DensityView | None
    density_linear: DensityView | None
    asinh_scale: str
    upper: EndView | None
    lower: EndView | None
    pairs: Table | None
    blocks: BlocksView | None
    block_table: Table | None
    verification: Table | None


def make_spectrum_view(labels: Sequence[str], spectra: Sequence[Spectrum]) -> SpectrumView:
    """Decide what a page says of these spectra.

    Args:
        labels: One per spectrum, distinct.
        spectra: At least one, in the order of the page.
    """
    wholes = [spectrum.whole for spectrum in spectra]
    scale = asinh_scale(wholes)
    has_density = any(len(whole.nodes) for whole in wholes)
    return SpectrumView(
        verdict=judge(labels, spectra),
        key_numbers=_key_numbers(labels, spectra),
        density=_density(labels, wholes, scale) if has_density else None,
        density_linear=_density(labels, wholes, None) if has_density else None,
        asinh_scale=format_number(scale, 1),
        upper=_upper_end(labels, wholes),
        lower=_lower_end(labels, wholes),
        pairs=_pairs_table(labels, wholes),
        blocks=_blocks(labels, spectra),
        block_table=_block_table(labels, spectra),
        verification=_verification(labels, spectra),
    )


# Key numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number of one spectrum with its error."""

    text: str
    value: float | None
    error: float | None = None


def _key_numbers(labels: Sequence[str], spectra: Sequence[Spectrum]) -> Table:
    """Quantities by spectra; the CSV has one line per number, with its error."""
    measured = [_quantities(spectrum) for spectrum in spectra]
    names = list(measured[0])
    columns = [Column(title="quantity", is_text=True), *(Column(title=label) for label in labels)]
    rows, tidy = [], []
    for name in names:
        title, unit, hint = name
        cells = [Cell(text=title, raw=title, unit=unit, hint=hint)]
        for label, quantities in zip(labels, measured, strict=True):
            quantity = quantities[name]
            cells.append(Cell(text=quantity.text, raw=quantity.value))
            tidy.append([label, title, unit, quantity.value, quantity.error])
        rows.append(tuple(cells))
    return Table(
        name="key-numbers",
        caption="± is the residual of an eigenvalue, or one standard error of an estimate.",
        columns=tuple(columns),
        rows=tuple(rows),
        csv=write_csv(["checkpoint", "quantity", "unit", "value", "error"], tidy),
    )


def _quantities(spectrum: Spectrum) -> dict[tuple[str, str, str], Quantity]:
    """Return (quantity, unit, what it means) → number."""
    whole = spectrum.whole
    first = _pair(whole.eigenvalues, whole.residual_norms, 0)
    last = _pair(whole.eigenvalues, whole.residual_norms, -1)
    lowest = _pair(whole.lower_eigenvalues, whole.lower_residual_norms, 0)
    rank, rank_error = whole.effective_rank, whole.effective_rank_stderr
    share = whole.top_share_of_trace
    share_error = None if share is None else share * whole.trace.stderr / whole.trace.value
    trace, trace_h2 = whole.trace, whole.trace_h2
    negative_mass = whole.negative_mass if whole.median_is_resolved else None
    return {
        ("loss", loss_unit(spectrum), "Mean over everything counted in the batches."): _plain(spectrum.loss),
        ("‖g‖", "loss/param", "Norm of the gradient on the same batches."): _plain(spectrum.gradient_norm),
        ("λ₁", CURVATURE, "Largest eigenvalue: the curvature of the sharpest direction."): first,
        ("λ of the last top pair", CURVATURE, "Smallest of the largest eigenvalues asked for."): last,
        ("most negative λ", CURVATURE, "Smallest eigenvalue found; negative curvature if below 0."): lowest,
        ("trace", CURVATURE, "Sum of all eigenvalues, by Hutch++."): _uncertain(trace.value, trace.stderr),
        ("tr H²", f"({CURVATURE})²", "Sum of all squared eigenvalues."): _uncertain(trace_h2.value, trace_h2.stderr),
        ("effective rank", "", "(tr H)²/tr H²: so many equal eigenvalues would do the same."): _uncertain(
            rank, rank_error
        ),
        ("top pairs' share of trace", "", "Sum of the largest eigenvalues asked for, over the trace."): Quantity(
            # Where negative eigenvalues cancel, the largest add up to more than the trace.
            text=format_share(share, share_error) if share is not None and 0.0 <= share <= 1.0 else MISSING,
            value=share,
            error=share_error,
        ),
        ("median |λ|", CURVATURE, "Of all eigenvalues, by quadrature."): _median(whole),
        ("λ₁ / median |λ|", "", "How much sharper the sharpest direction is than a typical one."): ratio_to_median(
            whole
        ),
        ("λ₁ / λ of the last top pair", "", "How steeply the top of the spectrum falls."): _plain(
            whole.condition_in_top
        ),
        ("slope of log λᵢ on log i", "", "−1 means λᵢ ∝ 1/i at the top."): _plain(whole.power_law_slope),
        ("share of negative eigenvalues", "", "By quadrature, where it resolves the bulk."): Quantity(
            text=format_share(negative_mass) if whole.median_is_resolved else "not resolved", value=negative_mass
        ),
        ("parameters", "", "Tied weights count once."): Quantity(
            text=f"{whole.num_parameters:,}", value=whole.num_parameters
        ),
        ("operator products", "", "Hessian-vector products, each over all batches."): Quantity(
            text=f"{whole.num_hvps:,}", value=whole.num_hvps
        ),
    }


def _pair(values: np.ndarray, residuals: np.ndarray, place: int) -> Quantity:
    """Return one eigenvalue with its residual, if there is one."""
    if not len(values):
        return Quantity(text=MISSING, value=None)
    value, residual = float(values[place]), float(residuals[place])
    return Quantity(text=format_bounded(value, residual), value=value, error=residual)


def _terse(quantity: Quantity) -> Quantity:
    """Leave a residual out that is below the last of five digits."""
    value, error = quantity.value, quantity.error
    if not value or error is None or error > 5e-6 * abs(value):
        return quantity
    return Quantity(text=format_number(value, 5), value=value, error=error)


def _uncertain(value: float | None, error: float | None) -> Quantity:
    """Return a number with its error."""
    return Quantity(text=format_uncertain(value, error), value=value, error=error)


def _plain(value: float | None) -> Quantity:
    """Return a number without error."""
    return Quantity(text=format_number(value), value=value)


def _median(spectrum: OperatorSpectrum) -> Quantity:
    """Return the median of |λ|, or its bound where the quadrature does not resolve it."""
    if spectrum.median_is_resolved:
        return Quantity(text=format_number(spectrum.median_abs_eigenvalue, 2), value=spectrum.median_abs_eigenvalue)
    bound = spectrum.median_abs_bound
    return Quantity(text=MISSING if bound is None else f"≤ {format_number(bound, 2)}", value=None)


def ratio_to_median(spectrum: OperatorSpectrum) -> Quantity:
    """Return λ₁/median|λ| with its range over probes, or its lower bound."""
    bounds = anisotropy_range(spectrum)
    if bounds is None:
        return Quantity(text=MISSING, value=None)
    least, most = bounds
    if most is None:
        return Quantity(text=f"≥ {format_number(least, 2)}", value=None)
    text = f"{format_number(least, 2)} to {format_number(most, 2)}"
    return Quantity(text=text, value=spectrum.condition_to_median)


# Density


def _density(labels: Sequence[str], wholes: Sequence[OperatorSpectrum], scale: float | None) -> DensityView:
    """Smooth every spectrum for one axis: asinh with this scale, or linear where it is None."""
    smoothed = [smooth_linear(w) if scale is None else smooth_asinh(w, scale) for w in wholes]
    curves = tuple(_curve(label, one, whole) for label, one, whole in zip(labels, smoothed, wholes, strict=True))
    peak = max(float(one.high.max()) for one in smoothed)
    least = min((float(one.atom_height.min()) for one in smoothed if len(one.atom_height)), default=peak * 1e-6)
    ticks: tuple[tuple[float, str], ...] = ()
    if scale is not None:
        ticks = asinh_ticks(scale, max(abs(c.curvature[end]) for c in curves for end in (0, -1)))
    return DensityView(
        axis_title=f"curvature λ ({CURVATURE})",
        ticks=ticks,
        floor=max(least / 4, peak * 1e-14),
        ceiling=peak * 3,
        curves=curves,
        summary=_density_summary(labels, wholes),
    )


def _curve(label: str, smoothed: SmoothedDensity, whole: OperatorSpectrum) -> Curve:
    """Round a smoothed density to what a figure can show."""
    return Curve(
        label=label,
        position=rounded(smoothed.position),
        curvature=rounded(smoothed.curvature),
        value=rounded(smoothed.value),
        low=rounded(smoothed.low),
        high=rounded(smoothed.high),
        atom_position=rounded(smoothed.atom_position),
        atom_curvature=rounded(whole.deflated_eigenvalues),
        atom_height=rounded(smoothed.atom_height),
    )


def rounded(values: np.ndarray) -> tuple[float, ...]:
    """Keep six digits; below 1e-30 a density is drawn as 1e-30, which every logarithmic axis here cuts off."""
    return tuple(float(f"{value:.6g}") if abs(value) > 1e-30 else 1e-30 for value in values.tolist())


def asinh_ticks(scale: float, largest: float) -> tuple[tuple[float, str], ...]:
    """Place ticks at 0 and at ± powers of ten from the scale upward.

    Returns:
        (asinh(t/s), label of t), ascending; ±s stay unlabelled beside 0 where there are more than three powers.
    """
    start = round(math.log10(scale))
    powers = range(start, max(start, math.floor(math.log10(largest))) + 1)
    is_crowded = len(powers) > 3
    positive = [
        (math.asinh(10.0**power / scale), "" if is_crowded and power == start else power_label(power))
        for power in powers
    ]
    negative = [(-position, f"−{label}" if label else "") for position, label in reversed(positive)]
    return (*negative, (0.0, "0"), *positive)


def _density_summary(labels: Sequence[str], wholes: Sequence[OperatorSpectrum]) -> str:
    """Describe the densities in words."""
    sentences = []
    for label, whole in zip(labels, wholes, strict=True):
        known = whole.deflated_eigenvalues
        tail = count_of(len(known), "converged eigenvalue") if len(known) else "no converged eigenvalues"
        if len(known):
            tail += f" from {format_number(float(known.min()))} to {format_number(float(known.max()))}"
        spread = whole.quantile_abs(0.9)
        sentences.append(f"{label}: 90% of the mass within ±{format_number(spread, 2)}, {tail}.")
    return "Spectral density. " + " ".join(sentences)


# Both ends


def _upper_end(labels: Sequence[str], wholes: Sequence[OperatorSpectrum]) -> EndView | None:
    """Collect the largest eigenvalues."""
    series = [
        _pair_series(label, w.eigenvalues, w.residual_norms, w.converged)
        for label, w in zip(labels, wholes, strict=True)
        if len(w.eigenvalues)
    ]
    return _end("Largest eigenvalues", f"λᵢ ({CURVATURE})", series, is_negated=False)


def _lower_end(labels: Sequence[str], wholes: Sequence[OperatorSpectrum]) -> EndView | None:
    """Collect the smallest eigenvalues; on a logarithmic axis by size where all are negative."""
    present = [(label, w) for label, w in zip(labels, wholes, strict=True) if len(w.lower_eigenvalues)]
    is_negated = all(bool((w.lower_eigenvalues < 0).all()) for _, w in present)
    sign = -1.0 if is_negated else 1.0
    series = [
        _pair_series(label, sign * w.lower_eigenvalues, w.lower_residual_norms, w.lower_converged)
        for label, w in present
    ]
    title = f"{'−' if is_negated else ''}λ ({CURVATURE})"
    return _end("Smallest eigenvalues", title, series, is_negated=is_negated)


def _pair_series(label: str, values: np.ndarray, residuals: np.ndarray, converged: np.ndarray) -> PairSeries:
    """Turn arrays into plain numbers."""
    return PairSeries(
        label=label,
        index=tuple(range(1, len(values) + 1)),
        value=tuple(values.tolist()),
        residual=tuple(residuals.tolist()),
        converged=tuple(converged.tolist()),
    )


def _end(title: str, axis_title: str, series: Sequence[PairSeries], *, is_negated: bool) -> EndView | None:
    """Describe one end, logarithmic where every value is positive."""
    if not series:
        return None
    sign = "−" if is_negated else ""
    sentences = [
        f"{s.label}: {len(s.value)} from {sign}{format_number(s.value[0])} to {sign}{format_number(s.value[-1])}, "
        f"{sum(s.converged)} converged."
        for s in series
    ]
    return EndView(
        title=title,
        axis_title=axis_title,
        is_log=all(value > 0 for s in series for value in s.value),
        is_negated=is_negated,
        series=tuple(series),
        summary=f"{title} against their index. " + " ".join(sentences),
    )


def _pairs_table(labels: Sequence[str], wholes: Sequence[OperatorSpectrum]) -> Table | None:
    """List every pair with its residual."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="end", is_text=True),
        Column(title="i"),
        Column(title="λ", unit=CURVATURE),
        Column(title="residual", unit=CURVATURE, hint="‖Hv − λv‖: an eigenvalue lies this near to λ"),
        Column(title="relative", hint="residual / |λ|"),
        Column(title="converged", is_text=True),
    ]
    rows = []
    for label, w in zip(labels, wholes, strict=True):
        ends = (
            ("largest", w.eigenvalues, w.residual_norms, w.converged),
            ("smallest", w.lower_eigenvalues, w.lower_residual_norms, w.lower_converged),
        )
        for end, values, residuals, converged in ends:
            for place in range(len(values)):
                row = pair_row(end, place, float(values[place]), float(residuals[place]), bool(converged[place]))
                rows.append([Cell(text=label, raw=label), *row])
    if not rows:
        return None
    tolerance = " or ".join(sorted({format_number(w.tolerance, 1) for w in wholes}))
    caption = f"Eigenpairs at both ends; converged means a residual of at most {tolerance}·|λ|."
    return without_lone_label(make_table("eigenpairs", caption, columns, rows), labels)


def pair_row(end: str, place: int, value: float, residual: float, converged: bool) -> list[Cell]:
    """Return the cells of one pair."""
    relative = residual / abs(value) if value else None
    return [
        Cell(text=end, raw=end),
        Cell(text=str(place + 1), raw=place + 1),
        Cell(text=format_number(value, 5), raw=value),
        Cell(text=format_number(residual, 2), raw=residual),
        Cell(text=format_number(relative, 2), raw=relative),
        Cell(text="yes" if converged else "no", raw=converged, tone="good" if converged else "caution"),
    ]


# Blocks


def _block_names(spectra: Sequence[Spectrum]) -> list[str]:
    """Return the blocks present, in the order of `BLOCK_NAMES`, others after them."""
    present = {name for spectrum in spectra for name in spectrum.blocks}
    known = [name for name in BLOCK_NAMES if name in present]
    return known + sorted(present - set(known))


def _blocks(labels: Sequence[str], spectra: Sequence[Spectrum]) -> BlocksView | None:
    """Collect λ₁, mean and median of every block."""
    names = _block_names(spectra)
    if not names:
        return None
    pairs = [(label, s) for label, s in zip(labels, spectra, strict=True) if s.blocks]
    series = tuple(_block_series(label, [s.blocks.get(name) for name in names]) for label, s in pairs)
    sentences = []
    for one in series:
        found = [(value, name) for value, name in zip(one.sharpest, names, strict=True) if value is not None]
        if found:
            (low, flattest), (high, sharpest) = min(found), max(found)
            sentences.append(
                f"{one.label}: λ₁ is largest in {sharpest} ({format_number(high)}) "
                f"and smallest in {flattest} ({format_number(low)})."
            )
    return BlocksView(blocks=tuple(names), series=series, summary="Curvature of each block. " + " ".join(sentences))


def _block_series(label: str, blocks: Sequence[OperatorSpectrum | None]) -> BlockSeries:
    """Collect what of each block has a place on a logarithmic axis."""
    sharpest: list[float | None] = []
    means: list[float | None] = []
    medians: list[float | None] = []
    are_bounds: list[bool] = []
    for block in blocks:
        is_bound = block is not None and not block.median_is_resolved
        are_bounds.append(is_bound)
        if block is None:
            for collected in (sharpest, means, medians):
                collected.append(None)
            continue
        sharpest.append(positive(float(block.eigenvalues[0])) if len(block.eigenvalues) else None)
        means.append(positive(block.trace.value / block.num_parameters))
        medians.append(positive(block.median_abs_bound if is_bound else block.median_abs_eigenvalue))
    return BlockSeries(
        label=label,
        sharpest=tuple(sharpest),
        mean=tuple(means),
        median=tuple(medians),
        median_is_bound=tuple(are_bounds),
    )


def positive(value: float | None) -> float | None:
    """Return a number that a logarithmic axis can show, or None."""
    return value if value is not None and value > 0 else None


def _block_table(labels: Sequence[str], spectra: Sequence[Spectrum]) -> Table | None:
    """List every block of every spectrum, the whole first."""
    names = _block_names(spectra)
    if not names:
        return None
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="block", is_text=True),
        Column(title="parameters"),
        Column(title="λ₁", unit=CURVATURE),
        Column(title="most negative λ", unit=CURVATURE),
        Column(title="trace", unit=CURVATURE),
        Column(title="effective rank"),
        Column(title="median |λ|", unit=CURVATURE),
        Column(title="λ₁ / median |λ|"),
    ]
    rows = []
    for label, spectrum in zip(labels, spectra, strict=True):
        parts = [("whole", spectrum.whole)]
        parts += [(name, spectrum.blocks[name]) for name in names if name in spectrum.blocks]
        rows += [[Cell(text=label, raw=label), *_block_row(name, part)] for name, part in parts]
    caption = (
        "The whole operator and its restriction to each block. ± is one standard error, or a residual "
        "unless it is below the last digit."
    )
    return without_lone_label(make_table("blocks", caption, columns, rows), labels)


def _block_row(name: str, block: OperatorSpectrum) -> list[Cell]:
    """Return the cells of one block."""
    quantities = [
        _terse(_pair(block.eigenvalues, block.residual_norms, 0)),
        _terse(_pair(block.lower_eigenvalues, block.lower_residual_norms, 0)),
        _uncertain(block.trace.value, block.trace.stderr),
        _uncertain(block.effective_rank, block.effective_rank_stderr),
        _median(block),
        ratio_to_median(block),
    ]
    first = [Cell(text=name, raw=name), Cell(text=f"{block.num_parameters:,}", raw=block.num_parameters)]
    return first + [Cell(text=quantity.text, raw=quantity.value) for quantity in quantities]


# Second opinion


def _verification(labels: Sequence[str], spectra: Sequence[Spectrum]) -> Table | None:
    """Set another library's numbers beside ours."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="library", is_text=True),
        Column(title="quantity", is_text=True),
        Column(title="theirs", unit=CURVATURE),
        Column(title="ours", unit=CURVATURE),
        Column(title="difference", unit=CURVATURE),
        Column(title="allowed", unit=CURVATURE, hint="both errors together"),
    ]
    rows = []
    for label, spectrum in zip(labels, spectra, strict=True):
        opinion = spectrum.verification
        if opinion is None:
            continue
        head = [Cell(text=label, raw=label), Cell(text=opinion.library, raw=opinion.library)]
        for place in range(len(opinion.eigenvalues)):
            theirs, ours = float(opinion.eigenvalues[place]), float(opinion.our_eigenvalues[place])
            allowed = float(opinion.eigenvalue_errors[place])
            rows.append([*head, *_opinion_row(f"λ{_subscript(place + 1)}", theirs, ours, allowed)])
        if opinion.lower_eigenvalue is not None and opinion.our_lower_eigenvalue is not None:
            lower = (opinion.lower_eigenvalue, opinion.our_lower_eigenvalue, opinion.lower_error or 0.0)
            rows.append([*head, *_opinion_row("λmin", *lower)])
        reach = STANDARD_ERRORS * math.hypot(opinion.trace.stderr, opinion.our_trace.stderr)
        rows.append([*head, *_opinion_row("trace", opinion.trace.value, opinion.our_trace.value, reach)])
    if not rows:
        return None
    caption = "A second opinion on the same operator and batches. The trace may differ by three standard errors."
    return without_lone_label(make_table("verification", caption, columns, rows), labels)


def _opinion_row(name: str, theirs: float, ours: float, allowed: float) -> list[Cell]:
    """Return the cells of one comparison."""
    difference = theirs - ours
    tone = "good" if abs(difference) <= allowed else "caution"
    mark = "✓" if tone == "good" else "✗"
    return [
        Cell(text=name, raw=name),
        Cell(text=format_number(theirs, 5), raw=theirs),
        Cell(text=format_number(ours, 5), raw=ours),
        Cell(text=f"{format_number(difference, 2)} {mark}", raw=difference, tone=tone),
        Cell(text=f"± {format_number(allowed, 2)}", raw=allowed),
    ]


def _subscript(number: int) -> str:
    """Write a number lowered."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))

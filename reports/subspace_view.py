"""Sharp and flat directions as plain data: strings, numbers and tables, before anything is drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lite_probe.reports.numbers import MISSING, format_bounded, format_number, format_share, format_uncertain
from lite_probe.reports.spectrum_view import CURVATURE, asinh_ticks, pair_row, ratio_to_median
from lite_probe.reports.subspace_verdict import LOOSE, judge_subspace
from lite_probe.reports.table import Cell, Column, Table, make_table, without_lone_label
from lite_probe.reports.verdict import Verdict
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.results.subspace import BlockCalibration, SubspaceMeasurement, root_mean_square_condition

Labelled = Sequence[tuple[str, SubspaceMeasurement]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledVerdict:
    """What one run shows."""

    label: str  # empty where there is one
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class BandCurve:
    """True mean curvature of one block's bands, ordered by a proxy."""

    block: str
    place: int  # of the block among all, so that it keeps its colour
    share: tuple[float, ...]  # the middle of each band, percent of the block's dimensions
    band: tuple[str, ...]  # "1–10%"
    position: tuple[float, ...]  # where to draw κ
    low: tuple[float, ...]  # where to draw κ less its standard error
    high: tuple[float, ...]
    text: tuple[str, ...]  # κ with its error


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationView:
    """One proxy of one run, block by block."""

    name: str  # of the figure
    title: str  # of its button
    ticks: tuple[tuple[float, str], ...]  # (position, label); empty: a logarithmic axis
    curves: tuple[BandCurve, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSeries:
    """κ_sharp/κ_flat of one optimizer's projector, per block; None where nothing can be drawn."""

    optimizer: str
    value: tuple[float | None, ...]  # None too where the interval has no upper end
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    text: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastView:
    """The contrasts of one run."""

    name: str
    title: str
    blocks: tuple[str, ...]
    series: tuple[ContrastSeries, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspaceView:
    """What a page says of sharp and flat directions."""

    verdicts: tuple[LabelledVerdict, ...]
    energy: Table
    overlaps: Table | None
    calibrations: tuple[CalibrationView, ...]
    contrasts: tuple[ContrastView, ...]
    contrast_table: Table | None
    band_table: Table | None
    metrics: Table | None
    metric_pairs: Table | None


def make_subspace_view(measured: Labelled) -> SubspaceView:
    """Decide what a page says of these measurements.

    Args:
        measured: (label, measurement), at least one, in the order of the page.
    """
    labels = [label for label, _ in measured]
    is_alone = len(labels) == 1
    return SubspaceView(
        verdicts=tuple(
            LabelledVerdict(label="" if is_alone else label, verdict=judge_subspace(found)) for label, found in measured
        ),
        energy=without_lone_label(_energy_table(measured), labels),
        overlaps=_overlap_table(measured, labels),
        calibrations=_calibrations(measured, is_alone=is_alone),
        contrasts=_contrasts(measured, is_alone=is_alone),
        contrast_table=_contrast_table(measured, labels),
        band_table=_band_table(measured, labels),
        metrics=_metric_table(measured, labels),
        metric_pairs=_metric_pairs(measured, labels),
    )


def order_blocks(names: Sequence[str]) -> list[str]:
    """Put blocks in the order of `BLOCK_NAMES`, others after them."""
    present = set(names)
    known = [name for name in BLOCK_NAMES if name in present]
    return known + sorted(present - set(known))


def band_label(low: float, high: float) -> str:
    """Name a band by its edges, which are shares."""
    return f"{100 * low:.3g}–{100 * high:.3g}%"


# Figures


def _calibrations(measured: Labelled, *, is_alone: bool) -> tuple[CalibrationView, ...]:
    """Make a view per run and proxy."""
    found = []
    for number, (label, one) in enumerate(measured, 1):
        for place, (optimizer, calibration) in enumerate(one.calibrations.items(), 1):
            if calibration.blocks:
                title = optimizer if is_alone else f"{label}: {optimizer}"
                found.append(_calibration(f"calibration-{number}-{place}", title, calibration.blocks))
    return tuple(found)


def _calibration(name: str, title: str, blocks: Mapping[str, BlockCalibration]) -> CalibrationView:
    """Place mean curvatures on a logarithmic axis, or on an asinh one where some may not be positive."""
    names = order_blocks(list(blocks))
    values = np.concatenate([blocks[block].curvature for block in names])
    errors = np.concatenate([blocks[block].curvature_stderr for block in names])
    scale = None if bool((values - errors > 0).all()) else _scale(values, errors)
    curves = tuple(_band_curve(block, place, blocks[block], scale) for place, block in enumerate(names))
    ticks: tuple[tuple[float, str], ...] = ()
    if scale is not None:
        ticks = asinh_ticks(scale, max(float(np.abs(values).max()), scale))
    sentences = [
        f"{block}: from {format_number(float(blocks[block].curvature[0]), 2)} in the sharpest band to "
        f"{format_number(float(blocks[block].curvature[-1]), 2)} in the flattest."
        for block in names
    ]
    summary = f"Mean curvature of bands ordered by the proxy of {title}. " + " ".join(sentences)
    return CalibrationView(name=name, title=title, ticks=ticks, curves=curves, summary=summary)


def _scale(values: np.ndarray, errors: np.ndarray) -> float:
    """Choose where the asinh axis turns linear: a power of ten about the smaller errors, which is where signs end."""
    largest = float(np.abs(values).max()) or 1.0
    positive = errors[errors > 0]
    wanted = float(np.quantile(positive, 0.25)) if len(positive) else 1e-3 * largest
    return float(10.0 ** math.floor(math.log10(min(max(wanted, 1e-6 * largest), largest))))


def _band_curve(block: str, place: int, found: BlockCalibration, scale: float | None) -> BandCurve:
    """Return one block's curve."""

    def at(curvature: np.ndarray) -> tuple[float, ...]:
        positions = curvature if scale is None else np.arcsinh(curvature / scale)
        return tuple(float(f"{position:.6g}") for position in positions)

    edges = list(zip(found.shares[:-1].tolist(), found.shares[1:].tolist(), strict=True))
    errors = found.curvature_stderr
    return BandCurve(
        block=block,
        place=place,
        share=tuple(float(f"{50.0 * (low + high):.6g}") for low, high in edges),
        band=tuple(band_label(low, high) for low, high in edges),
        position=at(found.curvature),
        low=at(found.curvature - errors),
        high=at(found.curvature + errors),
        text=tuple(
            format_uncertain(float(value), float(error)) for value, error in zip(found.curvature, errors, strict=True)
        ),
    )


def _contrasts(measured: Labelled, *, is_alone: bool) -> tuple[ContrastView, ...]:
    """Make a view per run in which LITE tells directions apart somewhere."""
    found = []
    for number, (label, one) in enumerate(measured, 1):
        blocks = order_blocks(
            [
                block
                for calibration in one.calibrations.values()
                for block, measured_block in calibration.blocks.items()
                if measured_block.contrast is not None
            ]
        )
        if not blocks:
            continue
        series = tuple(
            _contrast_series(optimizer, [calibration.blocks.get(block) for block in blocks])
            for optimizer, calibration in one.calibrations.items()
        )
        sentences = [
            f"{one_series.optimizer}: "
            + ", ".join(f"{block} {text}" for block, text in zip(blocks, one_series.text, strict=True))
            + "."
            for one_series in series
        ]
        found.append(
            ContrastView(
                name=f"contrast-{number}",
                title="all" if is_alone else label,
                blocks=tuple(blocks),
                series=series,
                summary="Curvature of what LITE calls sharp over that of what it calls flat. " + " ".join(sentences),
            )
        )
    return tuple(found)


def _contrast_series(optimizer: str, blocks: Sequence[BlockCalibration | None]) -> ContrastSeries:
    """Keep of each ratio what a logarithmic axis can show."""
    ratios = [block.contrast if block is not None else None for block in blocks]
    shown = [ratio if ratio is not None and (ratio.low or 0.0) > 0.0 else None for ratio in ratios]
    return ContrastSeries(
        optimizer=optimizer,
        value=tuple(ratio.value if ratio is not None and _upper(ratio) is not None else None for ratio in shown),
        low=tuple(ratio.low if ratio is not None else None for ratio in shown),
        high=tuple(_upper(ratio) if ratio is not None else None for ratio in shown),
        text=tuple(format_ratio(ratio) for ratio in ratios),
    )


def _upper(ratio: Ratio) -> float | None:
    """Return the upper end of an interval that bounds the ratio from above; None where nothing near it does."""
    if ratio.high is None or ratio.value is None or ratio.high > LOOSE * abs(ratio.value):
        return None
    return ratio.high


def format_ratio(ratio: Ratio | None) -> str:
    """Write a ratio with its 95% interval, or the end that is known."""
    if ratio is None or ratio.low is None:
        return MISSING
    if _upper(ratio) is None or ratio.value is None:
        return f"≥ {format_number(ratio.low, 2)}"
    return f"{format_number(ratio.value, 2)} ({format_number(ratio.low, 2)} to {format_number(ratio.high, 2)})"


# Tables


def estimate_cell(estimate: Estimate | None) -> Cell:
    """Return a cell of an estimate with its standard error."""
    if estimate is None:
        return Cell(text=MISSING)
    error = estimate.stderr if estimate.num_samples != 1 else None
    return Cell(text=format_uncertain(estimate.value, error), raw=estimate.value, error=error)


def _text(text: str) -> Cell:
    return Cell(text=text, raw=text)


def _number(value: float | None, digits: int = 4) -> Cell:
    return Cell(text=format_number(value, digits), raw=value)


def _energy_table(measured: Labelled) -> Table:
    """List the gradient's energy in the sharp subspace of every run."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="k", hint="dimension of the sharp subspace"),
        Column(title="N", hint="parameters"),
        Column(title="gradient's share", hint="‖Vᵀg‖²/‖g‖² of the evaluation gradient"),
        Column(title="single batches'", hint="the same, mean over training batches", has_error=True),
        Column(title="random directions'", hint="of the evaluation gradient", has_error=True),
        Column(title="k/N", hint="expected in random directions"),
        Column(title="× k/N"),
        Column(title="loss", unit="nats"),
        Column(title="‖g‖", unit="loss/param"),
    ]
    rows = []
    for label, found in measured:
        batch = found.batch_gradient_share
        rows.append(
            [
                _text(label),
                Cell(text=str(found.size), raw=found.size),
                Cell(text=f"{found.num_parameters:,}", raw=found.num_parameters),
                Cell(text=format_share(found.gradient_share), raw=found.gradient_share),
                Cell(text=format_share(batch.value, batch.stderr), raw=batch.value, error=batch.stderr),
                estimate_cell(found.random_share),
                _number(found.expected_share, 2),
                _number(found.gradient_share / found.expected_share, 2),
                _number(found.loss),
                _number(found.gradient_norm),
            ]
        )
    return make_table("gradient-energy", "Gradient energy in the sharp subspace.", columns, rows)


def _overlap_table(measured: Labelled, labels: Sequence[str]) -> Table | None:
    """List every comparison of two sharp subspaces."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="across", is_text=True),
        Column(title="first", is_text=True),
        Column(title="second", is_text=True),
        Column(title="overlap", hint="mean cos² of the principal angles"),
        Column(title="at random"),
        Column(title="smallest angle", unit="°"),
        Column(title="median", unit="°"),
        Column(title="largest", unit="°"),
        Column(title="residual", hint="largest ‖Hv − λv‖/|λ| of the vectors on either side"),
    ]
    rows = []
    for label, found in measured:
        for one in found.overlaps:
            degrees = np.degrees(one.angles)
            angles = (float(degrees[0]), float(np.median(degrees)), float(degrees[-1]))
            rows.append(
                [
                    _text(label),
                    _text(one.kind),
                    _text(one.first),
                    _text(one.second),
                    Cell(text=format_share(one.overlap), raw=one.overlap),
                    _number(one.expected_at_random, 2),
                    *(Cell(text=f"{angle:.0f}", raw=angle) for angle in angles),
                    _number(one.residual, 1),
                ]
            )
    if not rows:
        return None
    caption = "Overlaps of sharp subspaces of equal dimension: mean cos² of their principal angles."
    return without_lone_label(make_table("overlaps", caption, columns, rows), labels)


def _blocks_of(measured: Labelled) -> list[tuple[str, str, str, BlockCalibration]]:
    """Return (label, optimizer, block, calibration) in the order of the page."""
    return [
        (label, optimizer, block, calibration.blocks[block])
        for label, found in measured
        for optimizer, calibration in found.calibrations.items()
        for block in order_blocks(list(calibration.blocks))
    ]


TONES = {"holds": "good", "fails": "caution"}


def _contrast_table(measured: Labelled, labels: Sequence[str]) -> Table | None:
    """List, per proxy and block, whether LITE's sharp directions are sharper."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="proxy", is_text=True),
        Column(title="block", is_text=True),
        Column(title="assumption", is_text=True, hint="that LITE's sharp directions are sharper than its flat ones"),
        Column(title="ratio (95%)", hint="κ sharp / κ flat"),
        Column(title="κ sharp", unit=CURVATURE, has_error=True),
        Column(title="κ flat", unit=CURVATURE, has_error=True),
        Column(title="difference", unit=CURVATURE, has_error=True),
        Column(title="called sharp", hint="share of the block's dimensions"),
        Column(title="rank correlation", hint="Spearman's, of proxy and κ over bands", has_error=True),
        Column(title="unseen", hint="share of dimensions without any gradient so far"),
    ]
    rows = []
    for label, optimizer, block, found in _blocks_of(measured):
        rank, rank_error = found.rank_correlation, found.rank_correlation_stderr
        rows.append(
            [
                _text(label),
                _text(optimizer),
                _text(block),
                Cell(text=found.assumption, raw=found.assumption, tone=TONES.get(found.assumption, "")),
                Cell(text=format_ratio(found.contrast), raw=found.contrast.value if found.contrast else None),
                estimate_cell(found.sharp_curvature),
                estimate_cell(found.flat_curvature),
                estimate_cell(found.difference),
                Cell(text=format_share(found.sharp_share), raw=found.sharp_share),
                Cell(text=format_uncertain(rank, rank_error), raw=rank, error=rank_error),
                Cell(text=format_share(found.unseen_share), raw=found.unseen_share),
            ]
        )
    if not rows:
        return None
    caption = "LITE's assumption, block by block. ± is one standard error over probes; the ratio has its 95% interval."
    return without_lone_label(make_table("contrast", caption, columns, rows), labels)


def _band_table(measured: Labelled, labels: Sequence[str]) -> Table | None:
    """List every band of every block and proxy."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="proxy", is_text=True),
        Column(title="block", is_text=True),
        Column(title="band", is_text=True, hint="of the block's dimensions, the sharpest by the proxy first"),
        Column(title="dimensions"),
        Column(title="mean proxy", unit="(loss/param)²"),
        Column(title="κ", unit=CURVATURE, has_error=True),
    ]
    rows = []
    for label, optimizer, block, found in _blocks_of(measured):
        for place, size in enumerate(found.dimensions.tolist()):
            value, error = float(found.curvature[place]), float(found.curvature_stderr[place])
            band = band_label(float(found.shares[place]), float(found.shares[place + 1]))
            rows.append(
                [
                    _text(label),
                    _text(optimizer),
                    _text(block),
                    _text(band),
                    Cell(text=f"{size:,}", raw=size),
                    _number(float(found.proxy[place]), 3),
                    Cell(text=format_uncertain(value, error), raw=value, error=error),
                ]
            )
    if not rows:
        return None
    caption = "True mean curvature of every band. ± is one standard error over probes."
    return without_lone_label(make_table("calibration", caption, columns, rows), labels)


def _metrics_of(measured: Labelled) -> list[tuple[str, str, OperatorSpectrum]]:
    """Return (label, metric, spectrum), the plain one first; nothing where no metric was measured."""
    found = []
    for label, one in measured:
        metrics = [
            (optimizer.removesuffix("-lite"), calibration.preconditioned)
            for optimizer, calibration in one.calibrations.items()
            if calibration.preconditioned is not None
        ]
        if metrics:
            found.append((label, "none", one.spectrum))
            found += [(label, name, spectrum) for name, spectrum in metrics]
    return found


def _metric_table(measured: Labelled, labels: Sequence[str]) -> Table | None:
    """List the spectra with and without each metric."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="metric", is_text=True),
        Column(title="λ₁", hint="in units of the metric", has_error=True),
        Column(title="λ₁ / rms λ", hint="λ₁ over the root mean square eigenvalue"),
        Column(title="λ₁ / median |λ|"),
        Column(title="trace", has_error=True),
        Column(title="effective rank", has_error=True),
        Column(title="most negative λ"),
    ]
    rows = []
    for label, name, spectrum in _metrics_of(measured):
        sharpest = float(spectrum.eigenvalues[0]) if len(spectrum.eigenvalues) else None
        residual = float(spectrum.residual_norms[0]) if len(spectrum.eigenvalues) else None
        ratio, rank = ratio_to_median(spectrum), spectrum.effective_rank
        rows.append(
            [
                _text(label),
                _text(name),
                Cell(text=format_bounded(sharpest, residual), raw=sharpest, error=residual),
                _number(root_mean_square_condition(spectrum), 3),
                Cell(text=ratio.text, raw=ratio.value),
                estimate_cell(spectrum.trace),
                Cell(
                    text=format_uncertain(rank, spectrum.effective_rank_stderr),
                    raw=rank,
                    error=spectrum.effective_rank_stderr,
                ),
                _number(spectrum.most_negative_eigenvalue),
            ]
        )
    if not rows:
        return None
    caption = "The spectrum in each optimizer's metric F^(−½) H F^(−½). Compare ratios, not eigenvalues: units differ."
    return without_lone_label(make_table("metrics", caption, columns, rows), labels)


def _metric_pairs(measured: Labelled, labels: Sequence[str]) -> Table | None:
    """List the leading eigenvalues in each metric."""
    columns = [
        Column(title="checkpoint", is_text=True),
        Column(title="metric", is_text=True),
        Column(title="end", is_text=True),
        Column(title="i"),
        Column(title="λ"),
        Column(title="residual"),
        Column(title="relative", hint="residual / |λ|"),
        Column(title="converged", is_text=True),
    ]
    rows = []
    for label, name, spectrum in _metrics_of(measured):
        ends = (
            ("largest", spectrum.eigenvalues, spectrum.residual_norms, spectrum.converged),
            ("smallest", spectrum.lower_eigenvalues, spectrum.lower_residual_norms, spectrum.lower_converged),
        )
        for end, values, residuals, converged in ends:
            for place in range(len(values)):
                row = pair_row(end, place, float(values[place]), float(residuals[place]), bool(converged[place]))
                rows.append([_text(label), _text(name), *row])
    if not rows:
        return None
    return without_lone_label(make_table("metric-pairs", "Eigenpairs in each metric.", columns, rows), labels)

"""Sharp and flat directions drawn as Plotly figures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lite_probe.reports.drawing import (
    SYMBOLS,
    Drawing,
    Figure,
    asinh_ticks,
    axis,
    band_axis,
    colour,
    error_bars,
    layout,
    log_between,
    name_axis,
    reference_line,
    row_of,
    series_line,
    series_marker,
    spans,
    times,
)
from lite_probe.reports.numbers import MISSING, format_number, format_uncertain
from lite_probe.reports.table import CURVATURE, band_label
from lite_probe.results.blocks import order_blocks
from lite_probe.results.estimate import Ratio, t_reach
from lite_probe.results.subspace import BlockCalibration, SubspaceMeasurement

LOOSE = 20.0  # times the ratio, beyond which an interval's upper end bounds nothing


def draw_calibrations(measured: Sequence[tuple[str, SubspaceMeasurement]]) -> list[Drawing]:
    """Draw a figure per run and proxy; the label of a run that is alone is empty."""
    return [
        _draw_calibration(f"calibration-{number}-{place}", label, optimizer, found.blocks, one)
        for number, (label, one) in enumerate(measured, 1)
        for place, (optimizer, found) in enumerate(one.calibrations.items(), 1)
        if found.blocks
    ]


def _draw_calibration(
    name: str, label: str, optimizer: str, blocks: Mapping[str, BlockCalibration], measured: SubspaceMeasurement
) -> Drawing:
    """Draw mean curvature against band, a line per block, with 95% intervals.

    The axis is logarithmic, or asinh where some curvatures may not be positive.
    """
    names, reach = order_blocks(blocks), t_reach(measured.num_probes)
    title, own = f"{label}: {optimizer}".removeprefix(": "), _of_checkpoint(label)
    values = np.concatenate([blocks[block].curvature for block in names])
    errors = reach * np.concatenate([blocks[block].curvature_stderr for block in names])
    scale = None if bool((values - errors > 0).all()) else _scale(values, errors)
    figure, sentences, ends = Figure(), [], []
    for place, block in enumerate(names):
        found = blocks[block]
        kappa, half = found.curvature, reach * found.curvature_stderr
        bounds = np.stack([kappa - half, kappa, kappa + half])
        low, at, high = bounds if scale is None else np.arcsinh(bounds / scale)
        ends += [float(low.min()), float(high.max())]
        edges = list(zip(found.shares[:-1].tolist(), found.shares[1:].tolist(), strict=True))
        texts = [format_uncertain(*pair) for pair in zip(kappa.tolist(), half.tolist(), strict=True)]
        figure.add_scatter(
            x=(50.0 * (found.shares[:-1] + found.shares[1:])).tolist(),
            y=at.tolist(),
            meta={"optimizer": optimizer, "block": block} | own,
            customdata=list(
                zip([band_label(*edge) for edge in edges], texts, kappa.tolist(), half.tolist(), strict=True)
            ),
            error_y=error_bars((high - at).tolist(), colour(place), (at - low).tolist()),
            mode="lines+markers",
            name=block,
            line=series_line(place, 1.5),
            marker=series_marker(place, 7),
            hovertemplate="%{customdata[0]}<br>κ = %{customdata[1]} loss/param²<extra>%{fullData.name}</extra>",
        )
        first, last = (format_number(float(one), 2) for one in (kappa[0], kappa[-1]))
        sentences.append(f"{block}: from {first} in the sharpest band to {last} in the flattest.")
    heading = f"mean curvature κ ({CURVATURE})"
    if scale is None:
        least, most = 0.7 * min(ends), 1.4 * max(ends)
        vertical = log_between(heading, least, most)
    else:
        places, labels = zip(*asinh_ticks(scale, max(float(np.abs(values).max()), scale)), strict=True)
        vertical = axis(heading, tickvals=list(places), ticktext=list(labels))
    figure.layout = layout(
        430,
        xaxis=band_axis("band of the block's directions, the sharpest by the proxy first (%)"),
        yaxis=vertical,
        shapes=[] if scale is None else [reference_line(y=0)],
    )
    summary = " ".join([f"Mean curvature of bands ordered by the proxy of {title}.", *sentences])
    columns = [("block", "name"), ("band", "customdata.0"), (heading, "customdata.2")]
    columns += [(f"half of the 95% interval ({CURVATURE})", "customdata.3")]
    return Drawing.of(figure, name, summary, title, columns)


def _scale(values: np.ndarray, errors: np.ndarray) -> float:
    """Choose where the asinh axis turns linear: a power of ten about the smaller errors, which is where signs end."""
    largest = float(np.abs(values).max()) or 1.0
    positive = errors[errors > 0]
    wanted = float(np.quantile(positive, 0.25)) if len(positive) else 1e-3 * largest
    return float(10.0 ** math.floor(math.log10(min(max(wanted, 1e-6 * largest), largest))))


def draw_contrasts(measured: Sequence[tuple[str, SubspaceMeasurement]]) -> list[Drawing]:
    """Draw a figure per run in which LITE tells directions apart somewhere."""
    found = []
    for number, (label, one) in enumerate(measured, 1):
        names = order_blocks(
            name
            for calibration in one.calibrations.values()
            for name, block in calibration.blocks.items()
            if block.contrast is not None
        )
        if names:
            ratios = {
                optimizer: [block.contrast if (block := calibration.blocks.get(name)) else None for name in names]
                for optimizer, calibration in one.calibrations.items()
            }
            found.append(_draw_contrast(f"contrast-{number}", label, names, ratios))
    return found


def _draw_contrast(
    name: str, label: str, blocks: Sequence[str], ratios: Mapping[str, Sequence[Ratio | None]]
) -> Drawing:
    """Draw κ_sharp/κ_flat per block with 95% intervals; one that is open upwards runs to the edge."""
    figure, sentences = Figure(), []
    # What has no positive lower bound has no place on a logarithmic axis.
    shown = {
        optimizer: [one if one is not None and (one.low or 0.0) > 0.0 else None for one in found]
        for optimizer, found in ratios.items()
    }
    ends = [
        end for found in shown.values() for one in found if one is not None for end in (one.low, upper_end(one)) if end
    ]
    low, high = 0.6 * min(1.0, *ends, 1.0), 2.0 * max(1.0, *ends, 1.0)
    for place, (optimizer, found) in enumerate(shown.items()):
        rows = row_of(blocks, place, len(shown), 0.55)
        texts = [format_ratio(one) for one in ratios[optimizer]]
        is_open = [one is None or upper_end(one) is None for one in found]
        shared, meta = {"name": optimizer, "legendgroup": optimizer}, {"optimizer": optimizer} | _of_checkpoint(label)
        line = {"color": colour(place), "width": 2}
        owners = [block for block, one in zip(blocks, found, strict=True) if one]
        figure.add_scatter(
            **shared,
            meta=meta | {"block": times(owners, 3)},
            **spans((one.low, row, upper_end(one) or high, row) for one, row in zip(found, rows, strict=True) if one),
            mode="lines",
            line=line,
            showlegend=False,
            hoverinfo="skip",
        )
        symbols = ["triangle-right" if opened else SYMBOLS[place % 6] for opened in is_open]
        figure.add_scatter(
            **shared,
            meta=meta | {"block": list(blocks)},
            x=[one and (one.low if opened else one.value) for one, opened in zip(found, is_open, strict=True)],
            y=rows,
            customdata=[
                (f"{block}: {text}", *((one.value, one.low, one.high) if one else (None, None, None)))
                for block, text, one in zip(blocks, texts, ratios[optimizer], strict=True)
            ],
            mode="markers",
            showlegend=False,
            marker=series_marker(place, 9) | {"symbol": symbols},
            hovertemplate="%{customdata[0]}<extra>%{fullData.name}</extra>",
        )
        # The legend would show the first block's marker, which may be a bound's.
        figure.add_scatter(
            **shared,
            meta=meta,
            x=[None],
            y=[None],
            mode="lines+markers",
            line=line,
            marker=series_marker(place, 9),
        )
        pairs = ", ".join(f"{block} {text}" for block, text in zip(blocks, texts, strict=True))
        sentences.append(f"{optimizer}: {pairs}.")
    figure.layout = layout(
        110 + len(blocks) * max(34, 20 * len(shown)),
        xaxis=log_between("κ sharp / κ flat", low, high),
        yaxis=name_axis(blocks),
        shapes=[reference_line(x=1)],
    )
    opening = "Curvature of what LITE calls sharp over that of what it calls flat."
    columns = [("optimizer", "name"), ("block", "y"), ("κ sharp / κ flat", "customdata.1")]
    columns += [("lower end of the 95% interval", "customdata.2"), ("upper end of the 95% interval", "customdata.3")]
    return Drawing.of(figure, name, " ".join([opening, *sentences]), label or "all", columns)


def _of_checkpoint(label: str) -> dict[str, str]:
    """Return what marks a trace as of a checkpoint; one that is alone has no label."""
    return {"checkpoint": label} if label else {}


def upper_end(ratio: Ratio) -> float | None:
    """Return the upper end of an interval that bounds the ratio from above; None where nothing near it does."""
    if ratio.high is None or ratio.value is None or ratio.high > LOOSE * abs(ratio.value):
        return None
    return ratio.high


def format_ratio(ratio: Ratio | None) -> str:
    """Write a ratio with its 95% interval, or the end that is known."""
    if ratio is None or ratio.low is None:
        return MISSING
    if upper_end(ratio) is None or ratio.value is None:
        return f"≥ {format_number(ratio.low, 2)}"
    return f"{format_number(ratio.value, 2)} ({format_number(ratio.low, 2)} to {format_number(ratio.high, 2)})"

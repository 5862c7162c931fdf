"""A training run drawn as Plotly figures: λ₁, learning rates and the gradient's share, against step."""

from collections.abc import Sequence
from typing import Any

from lite_probe.reports.drawing import (
    SYMBOLS,
    Drawing,
    Figure,
    axis,
    colour,
    error_bars,
    layout,
    log_between,
    reference_line,
    series_line,
)
from lite_probe.reports.numbers import format_bounded, format_number, format_share
from lite_probe.results.training import Training, TrainingPoint

Labelled = Sequence[tuple[str, Training]]
_HEIGHT = 340
_STEP = "step (updates completed)"


def draw_sharpest(labelled: Labelled) -> Drawing | None:
    """Draw λ₁ with its residual; one that has not converged is hollow."""
    figure, sentences, ends = Figure(), [], []
    for place, (label, training) in enumerate(labelled):
        told = dict(zip(training.steps.tolist(), training.converged.tolist(), strict=True))
        found = [point for point in training.points if point.eigenvalues]
        if not found:
            continue
        values = [point.eigenvalues[0] for point in found]
        residuals = [point.residual_norms[0] for point in found]
        texts = [format_bounded(*pair) for pair in zip(values, residuals, strict=True)]
        ends += [*values, *(value + residual for value, residual in zip(values, residuals, strict=True))]
        symbol = SYMBOLS[place % 6]
        figure.add_scatter(
            name=label or "λ₁",
            x=[point.step for point in found],
            y=[_six(value) for value in values],
            customdata=texts,
            error_y=error_bars([_six(residual) for residual in residuals], colour(place)),
            mode="lines+markers",
            line=series_line(place, 1.5),
            marker={
                "color": colour(place),
                "size": 8,
                "symbol": [symbol if told[point.step] else f"{symbol}-open" for point in found],
            },
            hovertemplate="step %{x}: λ₁ = %{customdata} loss/param²<extra>%{fullData.name}</extra>",
        )
        sentences.append(
            f"{label or 'λ₁'}: {texts[0]} at step {found[0].step:,}, {texts[-1]} at step {found[-1].step:,}."
        )
    if not ends:
        return None
    title = "λ₁ (loss/param²)"
    vertical = log_between(title, 0.7 * min(ends), 1.4 * max(ends)) if min(ends) > 0.0 else axis(title)
    figure.layout = layout(_HEIGHT, xaxis=axis(_STEP), yaxis=vertical, showlegend=len(labelled) > 1)
    return Drawing.of(figure, "training-sharpest", " ".join(["Largest eigenvalue against step.", *sentences]))


def draw_rates(labelled: Labelled) -> Drawing | None:
    """Draw the learning rate used, a line, and the critical one of the same update, with its bracket."""
    figure, sentences, ends = Figure(), [], []
    for place, (label, training) in enumerate(labelled):
        before = f"{label}: " if label else ""
        used = [(point.step, rate) for point in training.points if (rate := point.learning_rate)]
        critical = [found for point in training.points if (found := _critical(point)) is not None]
        if not used:
            continue
        ends += [rate for _, rate in used] + [end for _, _, low, high in critical for end in (low, high)]
        figure.add_scatter(
            name=f"{before}used",
            x=[step for step, _ in used],
            y=[_six(rate) for _, rate in used],
            mode="lines",
            line=series_line(place, 1.8),
            hovertemplate="step %{x}: used %{y:.3g}<extra>%{fullData.name}</extra>",
        )
        figure.add_scatter(
            name=f"{before}critical",
            x=[step for step, *_ in critical],
            y=[_six(middle) for _, middle, _, _ in critical],
            error_y=error_bars(
                [_six(high - middle) for _, middle, _, high in critical],
                colour(place),
                [_six(middle - low) for _, middle, low, _ in critical],
            ),
            mode="markers",
            marker={"color": colour(place), "size": 8, "symbol": SYMBOLS[(place + 1) % 6]},
            hovertemplate="step %{x}: critical %{y:.3g}<extra>%{fullData.name}</extra>",
        )
        if critical:
            step, rate, _, _ = critical[-1]
            sentences.append(f"{before}critical learning rate {format_number(rate, 3)} at step {step:,}.")
    if not ends:
        return None
    vertical = log_between("learning rate", 0.6 * min(ends), 1.7 * max(ends))
    figure.layout = layout(_HEIGHT, xaxis=axis(_STEP), yaxis=vertical, showlegend=True)
    opening = "Learning rate used and the critical one of the same update, against step."
    return Drawing.of(figure, "training-rates", " ".join([opening, *sentences]))


def draw_shares(labelled: Labelled) -> Drawing | None:
    """Draw the gradient's share along the leading eigenvectors; the dotted line is that of a random vector, k/N."""
    figure, sentences, ends = Figure(), [], []
    lines: list[dict[str, Any]] = []
    for place, (label, training) in enumerate(labelled):
        shares = [(point.step, share) for point in training.points if (share := point.gradient_share)]
        if not shares:
            continue
        ends += [*(share for _, share in shares), training.expected_share]
        lines.append(reference_line(y=training.expected_share))
        texts = [format_share(share) for _, share in shares]
        figure.add_scatter(
            name=label or "gradient",
            x=[step for step, _ in shares],
            y=[_six(share) for _, share in shares],
            customdata=texts,
            mode="lines+markers",
            line=series_line(place, 1.5),
            marker={"color": colour(place), "size": 8, "symbol": SYMBOLS[place % 6]},
            hovertemplate="step %{x}: %{customdata}<extra>%{fullData.name}</extra>",
        )
        sentences.append(f"{label or 'gradient'}: {texts[0]} first, {texts[-1]} last.")
    if not ends:
        return None
    vertical = log_between("share of the gradient's squared norm", 0.5 * min(ends), min(2.0 * max(ends), 1.4))
    figure.layout = layout(
        _HEIGHT, xaxis=axis(_STEP), yaxis=vertical, showlegend=len(labelled) > 1, shapes=_distinct(lines)
    )
    opening = "Share of the gradient along the leading eigenvectors, against step."
    return Drawing.of(figure, "training-shares", " ".join([opening, *sentences]))


def _critical(point: TrainingPoint) -> tuple[int, float, float, float] | None:
    """Return (step, critical learning rate, its bracket)."""
    bounds, middle = point.critical_bounds, point.critical_lr
    if bounds is None or not middle or not point.learning_rate:
        return None
    return point.step, middle, bounds[0] * point.learning_rate, bounds[1] * point.learning_rate


def _distinct(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each line once."""
    return list({line["y0"]: line for line in lines}.values())


def _six(value: float) -> float:
    """Keep six digits."""
    return float(f"{value:.6g}")

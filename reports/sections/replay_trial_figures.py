"""What was tried beside the replay: learning rates on batches of their own, and either part of the updates alone."""

from typing import Any

import numpy as np

from lite_probe.reports.drawing import (
    Drawing,
    Figure,
    axis,
    colour,
    error_bars,
    layout,
    log_between,
    reference_line,
    series_line,
    series_marker,
)
from lite_probe.reports.numbers import format_number, format_uncertain
from lite_probe.reports.table import half_width
from lite_probe.results.replay import Replay

_PARTS = {"none": "whole", "dominant": "sharp part only", "bulk": "flat part only"}


def draw_sweeps(name: str, replay: Replay) -> Drawing | None:
    """Draw the loss that each learning rate ended at; the one chosen is filled, one that diverged is a cross on top."""
    if not replay.sweeps:
        return None
    figure, sentences = Figure(), ["Final loss by learning rate, on batches of the sweep's own."]
    reached = np.concatenate([sweep.losses[~sweep.diverged] for sweep in replay.sweeps.values()])
    ends = [*reached.tolist(), replay.start_loss]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 0.01
    for optimizer, sweep in replay.sweeps.items():
        place = replay.optimizers.index(optimizer)
        shape = series_marker(place, 9)["symbol"]
        symbols = [
            "x" if bad else shape if lr == sweep.chosen else f"{shape}-open"
            for lr, bad in zip(sweep.lrs.tolist(), sweep.diverged, strict=True)
        ]
        figure.add_scatter(
            x=sweep.lrs.tolist(),
            y=[high + room if bad else loss for loss, bad in zip(sweep.losses.tolist(), sweep.diverged, strict=True)],
            name=optimizer,
            mode="lines+markers",
            line=series_line(place, 1.2),
            marker={"color": colour(place), "size": 9, "symbol": symbols},
            customdata=[
                ["diverged" if bad else f"{format_number(loss)} nats", None if bad else loss]
                for loss, bad in zip(sweep.losses.tolist(), sweep.diverged, strict=True)
            ],
            hovertemplate="lr %{x:.3~g}: %{customdata[0]}<extra>%{fullData.name}</extra>",
            meta={"optimizer": optimizer},
        )
        sentences.append(f"{optimizer}: {format_number(sweep.chosen, 2)} chosen of {len(sweep.lrs)}.")
    lrs = np.concatenate([sweep.lrs for sweep in replay.sweeps.values()])
    figure.layout = layout(
        330,
        xaxis=log_between("learning rate", 0.7 * float(lrs.min()), 1.4 * float(lrs.max())),
        yaxis=axis("final loss (nats)", range=[low - room, high + 2.0 * room]),
        shapes=[reference_line(y=replay.start_loss)],
        showlegend=True,
    )
    columns = [("optimizer", "name"), ("learning rate", "x"), ("final loss (nats)", "customdata.1")]
    columns.append(("told", "customdata.0"))
    return Drawing.of(figure, name, " ".join(sentences), columns=columns)


def draw_ablations(name: str, replay: Replay) -> Drawing | None:
    """Draw the loss change of whole updates beside that of either part of them alone, with 95% intervals over seeds."""
    if not replay.ablations:
        return None
    figure, sentences = Figure(), ["Loss change of whole updates, and of either part of them alone."]
    for place, ablation in enumerate(("none", *replay.ablations)):
        found = {
            optimizer: change
            for optimizer in replay.optimizers
            if (change := replay.loss_change(optimizer, ablation)) is not None
        }
        halves = [half_width(one) or 0.0 for one in found.values()]
        told = [format_uncertain(one.value, half) for one, half in zip(found.values(), halves, strict=True)]
        bars: dict[str, Any] = {"color": colour(place), "opacity": 0.85}
        figure.add_bar(
            x=list(found),
            y=[one.value for one in found.values()],
            name=_PARTS.get(ablation, ablation),
            marker=bars,
            error_y=error_bars(halves, "var(--text)"),
            customdata=told,
            hovertemplate="%{x}, %{fullData.name}<br>%{customdata} nats<extra></extra>",
            meta={"optimizer": list(found)},
        )
        parts = ", ".join(f"{optimizer} {text}" for optimizer, text in zip(found, told, strict=True))
        sentences.append(f"{_PARTS.get(ablation, ablation)}: {parts} nats.")
    figure.layout = layout(
        330,
        xaxis=axis("", type="category", ticks=""),
        yaxis=axis("loss change (nats)"),
        barmode="group",
        bargap=0.3,
        shapes=[reference_line(y=0)],
        showlegend=True,
    )
    columns = [("updates", "name"), ("optimizer", "x"), ("loss change (nats)", "y")]
    columns.append(("half of the 95% interval (nats)", "error_y.array"))
    return Drawing.of(figure, name, " ".join(sentences), columns=columns)

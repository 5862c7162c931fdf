"""A replay as plain data: strings, numbers and tables, before anything is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lite_probe.reports.numbers import MISSING, count_of, format_number, format_share, format_uncertain
from lite_probe.reports.replay_claims import base_of, closure_of, compare_bases, is_missed
from lite_probe.reports.replay_verdict import (
    LR_SOURCES,
    format_estimate,
    has_share,
    judge_replay,
    mean_oscillation,
    of_seeds,
)
from lite_probe.reports.table import (
    CURVATURE,
    Cell,
    Column,
    Table,
    band_label,
    estimate_cell,
    half_width,
    make_table,
    share_cell,
)
from lite_probe.reports.verdict import Verdict
from lite_probe.results.blocks import order_blocks
from lite_probe.results.estimate import Estimate, t_reach
from lite_probe.results.replay import Means, Part, Replay

_HALF = "± is half of the 95% interval over seeds."


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """Evaluation loss of one optimizer: the mean over seeds that reached the end, and every run that did not."""

    optimizer: str
    place: int  # of the optimizer among all, so that it keeps its colour
    step: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]  # least and largest over seeds
    high: tuple[float, ...]
    diverged: tuple[tuple[float, ...], ...]  # per run, from the start on


@dataclass(frozen=True, slots=True, kw_only=True)
class LossView:
    """Loss against step."""

    curves: tuple[LossCurve, ...]
    limits: tuple[float, float] | None  # of the axis, so that a diverged run does not flatten the rest
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressView:
    """Flat and sharp progress per optimizer, nats."""

    optimizers: tuple[str, ...]
    flat: tuple[float, ...]
    flat_error: tuple[float, ...]
    sharp: tuple[float, ...]
    sharp_error: tuple[float, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSeries:
    """One optimizer's quantity, with its error over seeds."""

    optimizer: str
    place: int
    x: tuple[float, ...]
    value: tuple[float, ...]
    error: tuple[float, ...]
    text: tuple[str, ...]  # what the point stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class PointsView:
    """A quantity of several optimizers against something."""

    name: str  # of the figure
    title: str  # of its button, where it has one
    series: tuple[PointSeries, ...]
    predicted: tuple[PointSeries, ...] = ()  # by the linear theory
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayView:
    """What a page says of one replay."""

    label: str  # empty where there is one
    number: int
    subtitle: str
    verdict: Verdict
    outcome: Table
    parts: Table | None
    loss: LossView
    progress: ProgressView | None
    eigenvectors: PointsView | None
    bands: tuple[PointsView, ...]  # per block
    rates: PointsView | None
    oscillation: PointsView | None
    eigenvector_table: Table | None
    band_table: Table | None
    sweeps: Table | None
    ablations: Table | None


def make_replay_view(label: str, number: int, replay: Replay) -> ReplayView:
    """Decide what a page says of one replay.

    Args:
        label: Its run's name; empty where there is one.
        number: Of the replay on the page, from 1; its figures and tables are named by it.
        replay: The result.
    """
    shown = [name for name in replay.optimizers if replay.eigenvector_progress(name) is not None]
    counts = [(replay.steps, "step"), (replay.num_seeds, "seed"), (len(replay.eigenvalues), "sharp direction")]
    steps, seeds, directions = (count_of(number, noun) for number, noun in counts)
    return ReplayView(
        label=label,
        number=number,
        subtitle=f"{steps} · {seeds} · {replay.rule} rule · {directions}",
        verdict=judge_replay(replay),
        outcome=_outcome_table(replay, number),
        parts=_part_table(replay, number),
        loss=_loss(replay),
        progress=_progress(replay, shown),
        eigenvectors=_eigenvectors(replay, shown, number),
        bands=_bands(replay, shown, number),
        rates=_rates(replay, shown, number),
        oscillation=_oscillation(replay, shown, number),
        eigenvector_table=_eigenvector_table(replay, shown, number),
        band_table=_band_table(replay, shown, number),
        sweeps=_sweep_table(replay, number),
        ablations=_ablation_table(replay, number),
    )


def half_widths(replay: Replay, name: str, measure: Callable[[str], Means | None]) -> Means | None:
    """Return what is measured of an optimizer, entry by entry, with halves of the 95% intervals over its seeds."""
    measured = measure(name)
    if measured is None or measured[1] is None:
        return measured
    return measured[0], t_reach(sum(run.is_recorded for run in replay.runs_of(name))) * measured[1]


# Figures


def _plain(values: np.ndarray) -> tuple[float, ...]:
    """Keep six digits."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def _loss(replay: Replay) -> LossView:
    """Collect losses by step; the axis belongs to the runs that reached the end, where there are any."""
    curves, finished = [], []
    for place, name in enumerate(replay.optimizers):
        runs = replay.runs_of(name)
        losses = np.stack([run.losses for run in runs]) if runs else np.zeros((1, 0))
        finished += [losses] if runs else []
        curves.append(
            LossCurve(
                optimizer=name,
                place=place,
                step=tuple(range(losses.shape[1])),
                mean=_plain(losses.mean(axis=0)),
                low=_plain(losses.min(axis=0)),
                high=_plain(losses.max(axis=0)),
                diverged=tuple(_plain(run.losses) for run in replay.diverged(name)),
            )
        )
    limits = None
    if finished:
        low, high = min(float(one.min()) for one in finished), max(float(one.max()) for one in finished)
        room = 0.06 * (high - low) or 0.01
        limits = (low - room, high + room)
    sentences = [
        f"{curve.optimizer}: from {format_number(curve.mean[0])} to {format_number(curve.mean[-1])}."
        if curve.mean
        else f"{curve.optimizer}: every run diverged."
        for curve in curves
    ]
    return LossView(curves=tuple(curves), limits=limits, summary="Evaluation loss by step. " + " ".join(sentences))


def _progress(replay: Replay, names: Sequence[str]) -> ProgressView | None:
    """Collect flat and sharp progress."""
    found = [(name, replay.flat_progress(name), replay.sharp_progress(name)) for name in names]
    pairs = [(name, flat, sharp) for name, flat, sharp in found if flat is not None and sharp is not None]
    if not pairs:
        return None
    sentences = [
        f"{name}: {format_estimate(flat)} nats flat, {format_estimate(sharp)} nats sharp."
        for name, flat, sharp in pairs
    ]
    return ProgressView(
        optimizers=tuple(name for name, _, _ in pairs),
        flat=tuple(flat.value for _, flat, _ in pairs),
        flat_error=tuple(half_width(flat) or 0.0 for _, flat, _ in pairs),
        sharp=tuple(sharp.value for _, _, sharp in pairs),
        sharp_error=tuple(half_width(sharp) or 0.0 for _, _, sharp in pairs),
        summary="Progress along flat and sharp directions. " + " ".join(sentences),
    )


def _point_series(
    replay: Replay,
    name: str,
    x: Sequence[float],
    measured: Means,
    points: Sequence[str],
    chosen: Sequence[int] | None = None,
) -> PointSeries:
    """Return one optimizer's quantity at the chosen places, all unless told."""
    values, errors = measured
    places = range(len(values)) if chosen is None else chosen
    return PointSeries(
        optimizer=name,
        place=replay.optimizers.index(name),
        x=tuple(float(x[at]) for at in places),
        value=_plain(values[list(places)]),
        error=_plain(np.zeros(len(places)) if errors is None else errors[list(places)]),
        text=tuple(
            f"{points[at]}: {format_uncertain(float(values[at]), None if errors is None else float(errors[at]))}"
            for at in places
        ),
    )


def _eigenvector_names(replay: Replay) -> list[str]:
    """Name every sharp direction by its index and curvature."""
    return [f"i = {at}, λ = {format_number(value, 3)}" for at, value in enumerate(replay.eigenvalues.tolist(), 1)]


def _eigenvectors(replay: Replay, names: Sequence[str], number: int) -> PointsView | None:
    """Collect progress along each eigenvector."""
    indices, points = list(range(1, len(replay.eigenvalues) + 1)), _eigenvector_names(replay)
    series = tuple(
        _point_series(replay, name, indices, measured, points)
        for name in names
        if (measured := half_widths(replay, name, replay.eigenvector_progress)) is not None
    )
    if not (series and indices):
        return None
    sentences = [f"{one.optimizer}: {format_number(sum(one.value), 3)} nats over all of them." for one in series]
    summary = "Progress along each sharp eigenvector. " + " ".join(sentences)
    return PointsView(name=f"eigenvectors-{number}", title="", series=series, summary=summary)


def _oscillation(replay: Replay, names: Sequence[str], number: int) -> PointsView | None:
    """Collect the oscillation along each eigenvector."""
    indices, points = list(range(1, len(replay.eigenvalues) + 1)), _eigenvector_names(replay)
    series = tuple(
        _point_series(replay, name, indices, measured, points)
        for name in names
        if (measured := half_widths(replay, name, replay.oscillation)) is not None
    )
    if not (series and indices):
        return None
    sentences = [f"{one.optimizer}: {format_number(sum(one.value) / len(one.value), 2)} on average." for one in series]
    summary = "Oscillation along each sharp eigenvector, 0 straight and 1 back where it began. " + " ".join(sentences)
    return PointsView(name=f"oscillation-{number}", title="", series=series, summary=summary)


def _rates(replay: Replay, names: Sequence[str], number: int) -> PointsView | None:
    """Collect effective learning rates against curvature, measured and predicted, where both are positive."""
    curvatures, points = replay.eigenvalues, _eigenvector_names(replay)
    series, predicted = [], []
    for name in names:
        measured = half_widths(replay, name, replay.effective_lrs)
        if measured is not None:
            chosen = np.flatnonzero((curvatures > 0) & (measured[0] > 0)).tolist()
            series.append(_point_series(replay, name, curvatures.tolist(), measured, points, chosen))
        theory = replay.theory.get(name)
        if theory is not None:
            is_stable = np.abs(theory.rates) <= 1.0
            chosen = np.flatnonzero((curvatures > 0) & (theory.effective_lrs > 0) & is_stable).tolist()
            exact = (theory.effective_lrs, None)
            predicted.append(_point_series(replay, name, curvatures.tolist(), exact, points, chosen))
    if not any(one.value for one in (*series, *predicted)):
        return None
    sentences = [
        f"{one.optimizer}: {len(one.value)} of {len(curvatures)} positive, exponent "
        f"{format_estimate(exponent)}{of_seeds(exponent, len(replay.runs_of(one.optimizer)))}."
        for one in series
        for exponent in [replay.exponent(one.optimizer)]
    ]
    return PointsView(
        name=f"rates-{number}",
        title="",
        series=tuple(series),
        predicted=tuple(predicted),
        summary="Effective learning rate against curvature along sharp eigenvectors. " + " ".join(sentences),
    )


def _bands(replay: Replay, names: Sequence[str], number: int) -> tuple[PointsView, ...]:
    """Collect progress by band, a view per block."""
    bands, found = replay.bands, []
    middles, labels = (50.0 * (bands.low + bands.high)).tolist(), bands.labels
    progress = {
        name: measured for name in names if (measured := half_widths(replay, name, replay.band_progress)) is not None
    }
    places: dict[str, list[int]] = {}
    for at, block in enumerate(bands.blocks):
        places.setdefault(block, []).append(at)
    for place, block in enumerate(order_blocks(bands.blocks), 1):
        series = tuple(
            _point_series(replay, name, middles, measured, labels, places[block]) for name, measured in progress.items()
        )
        sentences = [f"{one.optimizer}: {format_number(sum(one.value), 3)} nats in all." for one in series]
        summary = f"Progress in {block} by band of {bands.optimizer}'s proxy. " + " ".join(sentences)
        if series:
            found.append(PointsView(name=f"bands-{number}-{place}", title=block, series=series, summary=summary))
    return tuple(found)


# Tables


def _text(text: str) -> Cell:
    return Cell(text=text, raw=text)


def _estimate(estimate: Estimate | None, tone: str = "", rests_on: str = "") -> Cell:
    """Return a cell of an estimate with half of its 95% interval; `rests_on` says on how many seeds."""
    cell = estimate_cell(estimate)
    return cell if estimate is None else replace(cell, text=f"{cell.text}{rests_on}", tone=tone)


def _entry(measured: Means | None, place: int) -> Cell:
    """Return a cell of one entry of a mean with half of its 95% interval over seeds."""
    if measured is None:
        return Cell(text=MISSING)
    value, error = float(measured[0][place]), None if measured[1] is None else float(measured[1][place])
    return Cell(text=format_uncertain(value, error), raw=value, error=error)


def _outcome_table(replay: Replay, number: int) -> Table:
    """List what every optimizer reached, where and in what manner."""
    columns = [
        Column(title="optimizer", is_text=True),
        Column(title="lr"),
        Column(title="chosen", is_text=True, hint="how the learning rate was chosen"),
        Column(title="state", is_text=True, hint="what the optimizer started from"),
        Column(title="ΔL", unit="nats", hint="change of the evaluation loss over the segment", has_error=True),
        Column(title="minus base", unit="nats", hint="final loss minus the base's, paired by seed", has_error=True),
        Column(title="flat progress", unit="nats", has_error=True),
        Column(title="sharp progress", unit="nats", has_error=True),
        Column(title="flat share", hint="where the loss fell beyond its error and is accounted for", has_error=True),
        Column(title="isotropy", hint="of the updates over bands; 1 is isotropic", has_error=True),
        Column(title="NDS", unit=CURVATURE, hint="dᵀHd/‖d‖², mean over steps", has_error=True),
        Column(title="exponent", hint="a of η ∝ λ⁻ᵃ along sharp directions", has_error=True),
        Column(title="oscillation", hint="mean over sharp directions", has_error=True),
        Column(title="closure", hint="|Σ allocations − ΔL| / |ΔL|, the worst seed; above 10% no share is given"),
        Column(title="s/step"),
        Column(title="seeds", hint="that reached the end"),
    ]
    rows = [_outcome_row(replay, name) for name in replay.optimizers]
    caption = "Outcome by optimizer. ± is half of the 95% interval over seeds; differences are paired."
    return make_table(f"replay-{number}", caption, columns, rows)


def _outcome_row(replay: Replay, name: str) -> list[Cell]:
    """Return the cells of one optimizer."""
    recipe, base = replay.recipes[name], base_of(replay, name)
    difference = replay.difference(name, base) if base is not None else None
    claim = compare_bases(replay).get((name, base)) if base is not None else None
    tone = {"holds": "good", "fails": "caution"}.get(claim.status, "") if claim is not None else ""
    share = replay.flat_share(name) if has_share(replay, name) else None
    runs, closure, exponent = replay.runs_of(name), closure_of(replay, name), replay.exponent(name)
    seconds = [run.seconds / run.num_steps for run in runs if run.num_steps]
    return [
        _text(name),
        Cell(text=format_number(recipe.lr, 2), raw=recipe.lr),
        Cell(text=_chosen(replay, name), raw=recipe.lr_source),
        _text(recipe.state),
        _estimate(replay.loss_change(name)),
        _estimate(difference, tone),
        _estimate(replay.flat_progress(name)),
        _estimate(replay.sharp_progress(name)),
        _share(share),
        _estimate(replay.isotropy_entropy(name)),
        _estimate(replay.directional_sharpness(name)),
        _estimate(exponent, rests_on=of_seeds(exponent, len(runs))),
        _estimate(mean_oscillation(replay, name)),
        Cell(text=format_share(closure), raw=closure, tone="caution" if is_missed(replay, name) else ""),
        Cell(text=format_number(sum(seconds) / len(seconds), 2) if seconds else MISSING, raw=_mean(seconds)),
        Cell(
            text=f"{len(runs)} of {replay.num_seeds}",
            raw=len(runs),
            tone="" if len(runs) == replay.num_seeds else "caution",
        ),
    ]


def _part_table(replay: Replay, number: int) -> Table | None:
    """List progress on the ramp, after it, and on the eigenvectors' batches; None where there is the whole alone."""
    same = replay.on_same_batches()
    if same is None and len(replay.parts) == 1:
        return None
    columns = [
        Column(title="optimizer", is_text=True),
        Column(title="of", is_text=True, hint="which steps, or which batches"),
        Column(title="ΔL", unit="nats", has_error=True),
        Column(title="flat progress", unit="nats", has_error=True),
        Column(title="sharp progress", unit="nats", has_error=True),
        Column(title="flat share", hint="where the loss fell beyond its error and is accounted for", has_error=True),
        Column(title="closure", hint="|Σ allocations − ΔL| / |ΔL|, the worst seed"),
    ]
    after = f"the {replay.steps - replay.ramp} after it" if replay.ramp < replay.steps else ""
    words = {"whole": "the segment", "ramp": f"its ramp, {count_of(replay.ramp, 'step')}", "after": after}
    rows = []
    for name in replay.optimizers:
        rows += [_part_row(replay, name, words[part], part) for part in replay.parts]
        if same is not None:
            rows.append(_part_row(same, name, "the segment, on the eigenvectors' batches", "whole"))
    held_out = " on held-out batches, and on those that the eigenvectors were measured on" if same is not None else ""
    caption = f"Progress by part of the segment{held_out}. {_HALF}"
    return make_table(f"replay-{number}-parts", caption, columns, rows)


def _part_row(replay: Replay, name: str, words: str, part: Part) -> list[Cell]:
    """Return the cells of one optimizer on some steps; a share and a closure error are of the whole."""
    is_whole = part == "whole"
    share = replay.flat_share(name) if is_whole and has_share(replay, name) else None
    closure = closure_of(replay, name) if is_whole else None
    return [
        _text(name),
        _text(words),
        _estimate(replay.loss_change(name, part=part)),
        _estimate(replay.flat_progress(name, part)),
        _estimate(replay.sharp_progress(name, part)),
        _share(share),
        Cell(text=format_share(closure), raw=closure),
    ]


def _share(share: Estimate | None) -> Cell:
    """Return a cell of a share with half of its 95% interval; a dash where there is none."""
    return Cell(text=MISSING) if share is None else share_cell(share.value, half_width(share))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _chosen(replay: Replay, name: str) -> str:
    """Say in a word or two how a learning rate was chosen."""
    sweep = replay.sweeps.get(name)
    if sweep is not None and sweep.is_at_limit:
        return "sweep, at its limit"
    source = replay.recipes[name].lr_source
    return source if source in LR_SOURCES else f"by {source}"


def _eigenvector_table(replay: Replay, names: Sequence[str], number: int) -> Table | None:
    """List, per optimizer and eigenvector, what was done along it and what the linear theory says."""
    columns = [
        Column(title="optimizer", is_text=True),
        Column(title="i"),
        Column(title="λ", unit=CURVATURE, has_error=True),
        Column(title="progress", unit="nats", has_error=True),
        Column(title="η", hint="effective learning rate −Σcγ/Σγ²", has_error=True),
        Column(title="η, theory", hint="vᵀ(ηF⁻¹)v at θ₀"),
        Column(title="rate", hint="measured factor per step of the gradient's component", has_error=True),
        Column(title="rate, theory", hint="above 1 is unstable"),
        Column(title="oscillation", has_error=True),
    ]
    rows = []
    for name in names:
        theory = replay.theory.get(name)
        progress, rates = (
            half_widths(replay, name, replay.eigenvector_progress),
            half_widths(replay, name, replay.decay_rates),
        )
        lrs, oscillation = (
            half_widths(replay, name, replay.effective_lrs),
            half_widths(replay, name, replay.oscillation),
        )
        for place in range(len(replay.eigenvalues)):
            value, error = float(replay.eigenvalues[place]), float(replay.eigenvalue_errors[place])
            lr = float(theory.effective_lrs[place]) if theory is not None else None
            rate = float(theory.rates[place]) if theory is not None else None
            rows.append(
                [
                    _text(name),
                    Cell(text=str(place + 1), raw=place + 1),
                    Cell(text=format_number(value), raw=value, error=error),
                    _entry(progress, place),
                    _entry(lrs, place),
                    Cell(text=format_number(lr, 3), raw=lr),
                    _entry(rates, place),
                    Cell(text=format_number(rate, 3), raw=rate, tone="caution" if rate and rate > 1.0 else ""),
                    _entry(oscillation, place),
                ]
            )
    if not rows:
        return None
    caption = f"Along each sharp eigenvector. {_HALF}"
    return make_table(f"replay-{number}-eigenvectors", caption, columns, rows)


def _band_table(replay: Replay, names: Sequence[str], number: int) -> Table | None:
    """List, per optimizer and band, progress and the update's energy."""
    columns = [
        Column(title="optimizer", is_text=True),
        Column(title="block", is_text=True),
        Column(title="band", is_text=True),
        Column(title="dimensions"),
        Column(title="progress", unit="nats", has_error=True),
        Column(title="energy", hint="‖P d‖² per dimension over the mean; 1 everywhere is isotropic", has_error=True),
    ]
    bands, rows = replay.bands, []
    for name in names:
        progress, isotropy = (
            half_widths(replay, name, replay.band_progress),
            half_widths(replay, name, replay.band_isotropy),
        )
        for place, block in enumerate(bands.blocks):
            size = int(bands.dimensions[place])
            rows.append(
                [
                    _text(name),
                    _text(block),
                    _text(band_label(float(bands.low[place]), float(bands.high[place]))),
                    Cell(text=f"{size:,}", raw=size),
                    _entry(progress, place),
                    _entry(isotropy, place),
                ]
            )
    if not rows:
        return None
    caption = f"By band of {bands.optimizer}'s proxy at the start, the sharpest first. {_HALF}"
    return make_table(f"replay-{number}-bands", caption, columns, rows)


def _sweep_table(replay: Replay, number: int) -> Table | None:
    """List the learning rates that were tried."""
    columns = [
        Column(title="optimizer", is_text=True),
        Column(title="lr"),
        Column(title="final loss", unit="nats", hint="on the evaluation batches, after batches of the sweep's own"),
        Column(title="chosen", is_text=True),
        Column(title="first rises", is_text=True, hint="above the start's, in the first steps; such a rate is left"),
    ]
    rows = []
    for name, sweep in replay.sweeps.items():
        for lr, loss, failed in zip(sweep.lrs.tolist(), sweep.losses.tolist(), sweep.diverged.tolist(), strict=True):
            is_chosen = lr == sweep.chosen
            mark = ("yes, at the limit" if sweep.is_at_limit else "yes") if is_chosen else ""
            tone = ("caution" if sweep.is_at_limit else "good") if is_chosen else ""
            rows.append(
                [
                    _text(name),
                    Cell(text=format_number(lr, 3), raw=lr),
                    Cell(text="diverged", tone="caution") if failed else Cell(text=format_number(loss), raw=loss),
                    Cell(text=mark, raw=is_chosen, tone=tone),
                    _text("yes" if sweep.first_rises(lr) else ""),
                ]
            )
    if not rows:
        return None
    return make_table(f"replay-{number}-sweeps", "Learning rates that were tried.", columns, rows)


def _ablation_table(replay: Replay, number: int) -> Table | None:
    """List what either part of the updates does alone."""
    if not replay.ablations:
        return None
    columns = [
        Column(title="optimizer", is_text=True),
        Column(title="updates", is_text=True),
        Column(title="ΔL", unit="nats", has_error=True),
        Column(title="minus whole", unit="nats", hint="paired by seed", has_error=True),
        Column(title="seeds", hint="that reached the end"),
    ]
    words = {"none": "whole", "dominant": "sharp part only", "bulk": "flat part only"}
    rows = []
    for name in replay.optimizers:
        for ablation in ("none", *replay.ablations):
            difference = replay.difference(name, name, ablation, "none") if ablation != "none" else None
            finished = len(replay.runs_of(name, ablation))
            rows.append(
                [
                    _text(name),
                    Cell(text=words.get(ablation, ablation), raw=ablation),
                    _estimate(replay.loss_change(name, ablation)),
                    _estimate(difference),
                    Cell(text=f"{finished} of {replay.num_seeds}", raw=finished),
                ]
            )
    caption = f"Ablations: the same segment with every update projected. {_HALF}"
    return make_table(f"replay-{number}-ablations", caption, columns, rows)

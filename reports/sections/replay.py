"""A replay as it is shown: a few tables for the terminal, one object for programs, and a section per run on a page."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from lite_probe.reports.drawing import Drawing, by_checkpoint
from lite_probe.reports.numbers import MISSING, count_of, format_uncertain, terse
from lite_probe.reports.sections.landscape import landscape_object, landscape_view
from lite_probe.reports.sections.replay_figures import (
    by_optimizer,
    draw_bands,
    draw_by_index,
    draw_edge,
    draw_horizon,
    draw_loss,
    draw_progress,
)
from lite_probe.reports.sections.replay_rate_figures import draw_rates, draw_rates_of, rates_caption
from lite_probe.reports.sections.replay_time_figures import draw_isotropy, draw_maps, draw_stacks, map_caption
from lite_probe.reports.sections.replay_trial_figures import draw_ablations, draw_sweeps
from lite_probe.reports.sections.replay_verdict import (
    EDGE,
    LR_SOURCES,
    base_of,
    closure_of,
    compare_bases,
    echoes,
    is_missed,
    judge_replay,
    mean_oscillation,
    negative,
    of_seeds,
    told_horizon,
    told_share,
)
from lite_probe.reports.sections.section import TEMPLATES, Block, Grid, Line, Part, Section, attributes, estimate_object
from lite_probe.reports.table import (
    CURVATURE,
    Cell,
    Column,
    Table,
    band_label,
    estimate_cell,
    number_cell,
    share_cell,
    tabulate,
    text_cell,
    to_grid,
)
from lite_probe.reports.verdict import TONES, Verdict
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Means, ModelledChange, Replay
from lite_probe.results.replay import Part as Steps

Read = tuple[Column, Callable[[Any], Cell]]  # a column, and how it is read off what has a row
Columns = list[Read]
Listing = tuple[str, Columns, Sequence[Any]]  # a table's caption, its columns, and what has a row
_HALF = "± is half of the 95% interval over seeds."
_OPTIMIZER = Column("optimizer", is_text=True, short="optimizer")
_SHARE = Column("flat share", hint="where the loss fell beyond its error and is accounted for", has_error=True)
_MISSED = Column("closure", hint="|Σ allocations − ΔL| / |ΔL|, the worst seed; above 10% no share is given")
_SEEDS = Column("seeds", hint="that reached the end")
_STATES = {"checkpoint": "the checkpoint's", "warm": "warmed at fixed weights", "cold": "none"}


class ReplaySection(Section):
    """How replays are shown."""

    heading = "Replay"
    template = TEMPLATES / "replay.html.j2"

    def subject(self, results: Sequence[Replay]) -> str:
        """Name what was measured."""
        return "replay"

    def verdict(self, result: Replay) -> Verdict:
        """Say who lowered the loss, by how much, and along which directions."""
        return judge_replay(result)

    def summary(self, result: Replay) -> Sequence[Block]:
        """Return what each optimizer started from, reached, where, and in what manner."""
        blocks: list[Block] = [block for grid in grids(result) for block in (grid, Line())]
        return [*blocks, *(Line(text, is_dim=True) for text in explanations(result))]

    def claim_objects(self, result: Replay, claims: Sequence[Claim]) -> list[dict[str, Any]]:
        """Return claims, each with what became of it on the eigenvectors' batches; null where it was not looked for."""
        found = {
            claim: {key: getattr(other, key, None) for key in ("value", "low", "high")} | {"is_found": is_found}
            for claim, (other, is_found) in echoes(result, claims).items()
        }
        return [{**asdict(claim), "same_batches": found.get(claim)} for claim in claims]

    def json_object(self, result: Replay) -> dict[str, Any]:
        """Return every number, differences of all pairs both ways."""
        same = result.on_same_batches()
        return {
            **attributes(result, "steps", "ramp"),
            "seeds": result.num_seeds,
            **attributes(result, "rule", "start_loss"),
            "bands": _bands_object(result),
            "landscape": landscape_object(result),
            "optimizers": {name: _optimizer_object(result, same, name) for name in result.optimizers},
            "differences": {
                f"{name} - {other}": estimate_object(result.difference(name, other))
                for name in result.optimizers
                for other in result.optimizers
                if name != other
            },
        }

    def tables(self, labelled: Sequence[tuple[str, Replay]]) -> Sequence[Table]:
        """Return the page's tables, those of one run after those of another."""
        found = [_tables(number, label, one) for number, (label, one) in enumerate(labelled, 1)]
        return [table for tables in found for table in tables.values() if table is not None]

    def part(self, labelled: Sequence[tuple[str, Replay]]) -> Part:
        """Draw and list everything, a section per run."""
        views = [_view(number, label, one) for number, (label, one) in enumerate(labelled, 1)]
        names = [label if len(labelled) > 1 else "" for label, _ in labelled]
        return Part(
            view=[view | {"label": name} for name, view in zip(names, views, strict=True)],
            leads=[(name, view["verdict"].lead) for name, view in zip(names, views, strict=True)],
            links=[("landscape", "Landscape")] if any(view["landscape"] for view in views) else (),
            figures=by_checkpoint(
                [label for label, _ in labelled], ((*_drawings(view), *_around(view)) for view in views)
            ),
        )


SECTION = ReplaySection()


def _tables(number: int, label: str, replay: Replay) -> dict[str, Table | None]:
    """Return what the template gets of tables of one replay."""
    return {name: list_replay(name, replay, number, label) for name in _LISTINGS}


def _view(number: int, label: str, replay: Replay) -> dict[str, Any]:
    """Return what the template gets of one replay, whose tables and figures are named by its number."""
    counts = [(replay.steps, "step"), (replay.num_seeds, "seed"), (len(replay.eigenvalues), "sharp direction")]
    steps, seeds, directions = (count_of(number, noun) for number, noun in counts)
    batches = "the evaluation batches" if replay.on_same_batches() is None else "held-out batches"
    over_time = _view_over_time(number, replay)
    return {
        "number": number,
        "subtitle": f"{steps} · {seeds} · {replay.rule} rule · {directions} · losses of {batches}",
        "verdict": judge_replay(replay),
        "tables": _tables(number, label, replay),
        "figures": {
            "loss": draw_loss(f"loss-{number}", replay),
            "progress": draw_progress(f"progress-{number}", replay),
            "edge": draw_edge(f"edge-{number}", replay),
            "eigenvectors": draw_by_index(f"eigenvectors-{number}", replay, is_progress=True),
            "oscillation": draw_by_index(f"oscillation-{number}", replay, is_progress=False),
            "horizon": draw_horizon(f"horizon-{number}", replay),
            "sweeps": draw_sweeps(f"sweeps-{number}", replay),
            "ablations": draw_ablations(f"ablations-{number}", replay),
            "rates": over_time["rates"][0] if over_time["rates"] else None,
        },
        "bands": draw_bands(f"bands-{number}", replay),
        "over_time": over_time,
        "landscape": landscape_view(number, label, replay),
    }


def _drawings(view: dict[str, Any]) -> list[Drawing | None]:
    return [*view["figures"].values(), *view["bands"], *view["over_time"]["drawings"]]


def _view_over_time(number: int, replay: Replay) -> dict[str, Any]:
    """Return what the template gets of directions against time and curvature."""
    all_rates = draw_rates(f"rates-{number}", replay)
    stacks, maps = draw_stacks(f"stack-{number}", replay), draw_maps(f"map-{number}", replay)
    rates = [] if all_rates is None else [all_rates, *draw_rates_of(f"rates-{number}", replay)]
    isotropy = draw_isotropy(f"isotropy-{number}", replay)
    return {
        "stacks": stacks,
        "maps": maps,
        "map_caption": map_caption(replay),
        "rates": rates,
        "rates_caption": rates_caption(replay),
        "isotropy": isotropy,
        "drawings": [*(one for own in (*stacks, *maps) for one in own.drawings), *rates, *isotropy],
    }


def _around(view: dict[str, Any]) -> list[Drawing | None]:
    """Return the figures of the landscape in a view."""
    landscape = view["landscape"]
    return [] if landscape is None else [*landscape["lines"], landscape["updates"], landscape["plane"]]


# For the terminal


def grids(replay: Replay) -> list[Grid]:
    """Return the tables of the terminal."""
    outcome = list_replay("outcome", replay)
    if outcome is None:
        return []
    states = [[name, _STATES.get(recipe.state, recipe.state)] for name, recipe in replay.recipes.items()]
    reached = to_grid(outcome, take=("optimizer", "lr", "chosen", "ΔL", "minus base"))
    rows: list[Sequence[str]] = []
    for name, row in zip(replay.optimizers, reached.rows, strict=True):
        changes = [(one, estimate_cell(replay.loss_change(name, one))) for one in replay.ablations]
        rows += [row, *([f"… {one}", "", "", terse(cell.text), ""] for one, cell in changes)]
    manner = ("optimizer", "isotropy", "NDS", "exponent", "oscillation", "s/step")
    return [
        *([] if {row[1] for row in states} == {_STATES["warm"]} else [Grid(["start", "state"], states)]),
        Grid(reached.header, rows),
        _change_grid(replay),
        *_part_grid(replay),
        to_grid(outcome, take=manner, brief=("isotropy", "NDS", "oscillation"), first="updates"),
        _step_grid(replay),
    ]


def _change_grid(replay: Replay) -> Grid:
    """List where each optimizer changed the loss: along flat and along sharp directions."""
    rows = [
        [name, *_changes(replay, name), terse(_share(replay, name).text), _closure(replay, name).text]
        for name in replay.optimizers
    ]
    return Grid(["change", "flat", "sharp", "flat share", "closure"], rows)


def _part_grid(replay: Replay) -> list[Grid]:
    """List the same on the ramp, after it, and on the eigenvectors' own batches; nothing where there is the whole."""
    same, words = replay.on_same_batches(), {"ramp": "ramp", "after": "after it"}
    rows = []
    for name in replay.optimizers:
        rows += [[f"{name} {words[part]}", *_changes(replay, name, part)] for part in replay.parts[1:]]
        rows += [] if same is None else [[f"{name} same batches", *_changes(same, name)]]
    return [Grid(["of it", "flat", "sharp"], rows)] if rows else []


def _step_grid(replay: Replay) -> Grid:
    """List how long the steps are for the curvature along them."""
    rows, told = [], {name: told_horizon(replay, name) for name in replay.optimizers}
    is_asked = any(told.values())
    for name in replay.optimizers:
        past = replay.steps_past_edge(name)
        share = MISSING if past is None else f"{past} of {replay.steps}"
        row = [name, terse(estimate_cell(replay.directional_edge_ratio(name)).text), share]
        rows.append([*row, told[name] or MISSING] if is_asked else row)
    return Grid(["steps", "edge ratio", "past the edge", *["horizon"] * is_asked], rows)


def _changes(replay: Replay, name: str, part: Steps = "whole") -> list[str]:
    """Write the loss change along flat, and along sharp directions: the negative of progress."""
    found = [measure(name, part) for measure in (replay.flat_progress, replay.sharp_progress)]
    return [terse(estimate_cell(one and negative(one)).text) for one in found]


def explanations(replay: Replay) -> list[str]:
    """Return what is to be said below the tables."""
    found = ["±: half of the 95% interval over seeds; loss changes in nats"] if replay.num_seeds > 1 else []
    if len(replay.parts) > 1:
        steps = "step" if replay.ramp == 1 else f"{replay.ramp} steps"
        found.append(f"ramp: the first {steps}, over which the learning rate rises")
    if replay.on_same_batches() is not None:
        found.append("same batches: those that the eigenvectors were measured on; all else is of held-out ones")
    if any(replay.directional_edge_ratio(name) is not None for name in replay.optimizers):
        found.append("edge ratio: dᵀHd/(−g·d) after the ramp, edge at 2; past it the quadratic model has the loss rise")
    if any(replay.horizons(name) for name in replay.optimizers):
        found.append("horizon: while the quadratic model at the start predicts the loss change within a tenth")
    return found


# Tables


def _estimated(
    title: str, measure: Callable[[Any], Estimate | None], unit: str = "nats", *, hint: str = "", short: str = ""
) -> Read:
    """Return a column of estimates over seeds."""
    column = Column(title, unit=unit, hint=hint, short=short, has_error=True)
    return column, lambda row: estimate_cell(measure(row))


def _entries(title: str, measured: dict[str, Means], unit: str = "", hint: str = "") -> Read:
    """Return a column of entries of what was measured by optimizer; a row is (optimizer, place, …)."""

    def read(row: tuple[Any, ...]) -> Cell:
        (values, halves), place = measured[row[0]], row[1]
        half = None if halves is None else float(halves[place])
        return Cell(text=format_uncertain(float(values[place]), half), raw=float(values[place]), error=half)

    return Column(title, unit=unit, hint=hint, has_error=True), read


def _share(replay: Replay, name: str) -> Cell:
    """Return a cell of the flat share; a dash where it says nothing."""
    return estimate_cell(told_share(replay, name), is_share=True)


def _closure(replay: Replay, name: str) -> Cell:
    """Return a cell of the closure error."""
    return replace(share_cell(closure_of(replay, name)), tone="caution" if is_missed(replay, name) else "")


def _seeds(replay: Replay, name: str, ablation: str = "none") -> Cell:
    """Return a cell of how many seeds reached the end."""
    count = len(replay.runs_of(name, ablation))
    return Cell(text=f"{count} of {replay.num_seeds}", raw=count, tone="caution" if count < replay.num_seeds else "")


def _outcome(replay: Replay) -> Listing:
    """List what every optimizer reached, where and in what manner."""

    def chosen(name: str) -> Cell:
        source, sweep = replay.recipes[name].lr_source, replay.sweeps.get(name)
        text = source if source in LR_SOURCES else f"by {source}"
        return Cell(text="sweep, at its limit" if sweep is not None and sweep.is_at_limit else text, raw=source)

    def difference(name: str) -> Cell:
        claim = compare_bases(replay).get((name, base_of(replay, name) or ""))
        tone = "" if claim is None else TONES.get(claim.status, "")
        return replace(estimate_cell(minus_base(replay, name)), tone=tone)

    def exponent(name: str) -> Cell:
        found = replay.exponent(name)
        cell = estimate_cell(found)
        return replace(cell, text=f"{cell.text}{of_seeds(found, len(replay.runs_of(name)))}")

    def edge(name: str) -> Cell:
        found = replay.directional_edge_ratio(name)
        tone = "caution" if found is not None and found.low > EDGE else ""
        return replace(estimate_cell(found), tone=tone)

    base = "final loss minus the base's, paired by seed"
    power = Column("exponent", hint="a of η ∝ λ⁻ᵃ along sharp directions", has_error=True, short="exponent")
    curves = "Σ dᵀHd / Σ(−g·d) after the ramp; above 2 the quadratic model has the steps raise the loss"
    ratio = Column("edge ratio", hint=curves, has_error=True)
    start, swings = "what the optimizer started from", "mean over sharp directions"
    change, even = "change of the evaluation loss over the segment", "of the updates over bands; 1 is isotropic"
    columns: Columns = [
        (_OPTIMIZER, text_cell),
        (Column("lr", short="lr"), lambda name: number_cell(replay.recipes[name].lr, 2)),
        (Column("chosen", is_text=True, hint="how the learning rate was chosen", short="chosen by"), chosen),
        (Column("state", is_text=True, hint=start), lambda name: text_cell(replay.recipes[name].state)),
        _estimated("ΔL", replay.loss_change, hint=change, short="loss change"),
        (Column("minus base", unit="nats", hint=base, has_error=True, short="minus base"), difference),
        _estimated("flat progress", replay.flat_progress),
        _estimated("sharp progress", replay.sharp_progress),
        (_SHARE, lambda name: _share(replay, name)),
        _estimated("isotropy", replay.isotropy_entropy, "", hint=even, short="isotropy"),
        _estimated("NDS", replay.directional_sharpness, CURVATURE, hint="dᵀHd/‖d‖², mean over steps", short="NDS"),
        (ratio, edge),
        (power, exponent),
        _estimated("oscillation", partial(mean_oscillation, replay), "", hint=swings, short="oscillates"),
        (_MISSED, lambda name: _closure(replay, name)),
        (Column("s/step", short="s/step"), lambda name: number_cell(seconds_per_step(replay, name), 2)),
        (_SEEDS, lambda name: _seeds(replay, name)),
    ]
    return f"Outcome by optimizer. {_HALF[:-1]}; differences are paired.", columns, replay.optimizers


def _parts(replay: Replay) -> Listing:
    """List progress on the ramp, after it, and on the eigenvectors' batches; nothing where there is the whole alone."""
    same, after = replay.on_same_batches(), f"the {replay.steps - replay.ramp} after it"
    words = {"whole": "the segment", "ramp": f"its ramp, {count_of(replay.ramp, 'step')}", "after": after}
    rows: list[tuple[str, str, Replay, Steps]] = []
    for name in replay.optimizers if same is not None or len(replay.parts) > 1 else ():
        rows += [(name, words[part], replay, part) for part in replay.parts]
        rows += [] if same is None else [(name, "the segment, on the eigenvectors' batches", same, "whole")]
    # A share and a closure error are of the whole.
    columns: Columns = [
        (_OPTIMIZER, lambda row: text_cell(row[0])),
        (Column("of", is_text=True, hint="which steps, or which batches"), lambda row: text_cell(row[1])),
        _estimated("ΔL", lambda row: row[2].loss_change(row[0], part=row[3])),
        _estimated("flat progress", lambda row: row[2].flat_progress(row[0], row[3])),
        _estimated("sharp progress", lambda row: row[2].sharp_progress(row[0], row[3])),
        (_SHARE, lambda row: _share(row[2], row[0]) if row[3] == "whole" else Cell(text=MISSING)),
        (_MISSED, lambda row: _closure(row[2], row[0]) if row[3] == "whole" else Cell(text=MISSING)),
    ]
    held_out = " on held-out batches, and on those that the eigenvectors were measured on" if same is not None else ""
    return f"Progress by part of the segment{held_out}. {_HALF}", columns, rows


def _horizon(replay: Replay) -> Listing:
    """List, per optimizer and logged step, the loss change beside that of the quadratic model at the start."""

    def missed(row: tuple[str, ModelledChange]) -> Cell:
        one = row[1]
        return Cell(text=f"{one.missed} of {one.count}", raw=one.missed, tone="caution" if one.missed else "")

    model = "g·δ + ½δᵀHδ, both at the start, for the way δ from there"
    columns: Columns = [
        (_OPTIMIZER, lambda row: text_cell(row[0])),
        (Column("steps", hint="completed"), lambda row: number_cell(row[1].step)),
        _estimated("ΔL", lambda row: row[1].change),
        _estimated("ΔL, model", lambda row: row[1].predicted, hint=model),
        (Column("miss", hint="Σ|model − ΔL| / Σ|ΔL| over seeds"), lambda row: share_cell(row[1].miss)),
        (Column("seeds missed", hint="by more than a tenth of ΔL, and than rounding"), missed),
    ]
    rows = [(name, one) for name in replay.optimizers for one in replay.modelled_changes(name)]
    told = [f"{name} {words}" for name in replay.optimizers if (words := told_horizon(replay, name))]
    caption = f"Loss change beside the quadratic model’s at the start. Horizon: {', '.join(told)}. {_HALF}"
    return caption, columns, rows


def _eigenvectors(replay: Replay) -> Listing:
    """List, per optimizer and eigenvector, what was done along it and what the linear theory says."""

    def curvature(row: tuple[str, int]) -> Cell:
        return replace(number_cell(float(replay.eigenvalues[row[1]])), error=float(replay.eigenvalue_errors[row[1]]))

    def predicted(row: tuple[str, int], what: str) -> Cell:
        theory = replay.theory.get(row[0])
        value = None if theory is None else float(getattr(theory, what)[row[1]])
        return replace(number_cell(value, 3), tone="caution" if what == "rates" and value and value > 1.0 else "")

    of = partial(by_optimizer, replay)
    progress, shrinks = of(replay.eigenvector_progress), "measured factor per step of the gradient's component"
    columns: Columns = [
        (_OPTIMIZER, lambda row: text_cell(row[0])),
        (Column("i"), lambda row: number_cell(row[1] + 1)),
        (Column("λ", unit=CURVATURE, hint="its error is the residual", has_error=True), curvature),
        _entries("progress", progress, "nats"),
        _entries("η", of(replay.effective_lrs), hint="effective learning rate −Σcγ/Σγ²"),
        (Column("η, theory", hint="vᵀ(ηF⁻¹)v at θ₀"), lambda row: predicted(row, "effective_lrs")),
        _entries("rate", of(replay.decay_rates), hint=shrinks),
        (Column("rate, theory", hint="above 1 is unstable"), lambda row: predicted(row, "rates")),
        _entries("oscillation", of(replay.oscillation)),
    ]
    rows = [(name, place) for name in progress for place in range(len(replay.eigenvalues))]
    return f"Along each sharp eigenvector. {_HALF}", columns, rows


def _bands(replay: Replay) -> Listing:
    """List, per optimizer and band, progress and the update's energy."""
    bands, progress = replay.bands, by_optimizer(replay, replay.band_progress)
    rates = by_optimizer(replay, replay.band_effective_lrs)

    def curvature(row: tuple[Any, ...]) -> Cell:
        half = float(bands.curvature_halves[row[1]])
        value = float(bands.curvatures[row[1]])
        return Cell(text=format_uncertain(value, half), raw=value, error=half)

    even = "‖P d‖² per dimension over the mean; 1 everywhere is isotropic"
    columns: Columns = [
        (_OPTIMIZER, lambda row: text_cell(row[0])),
        (Column("block", is_text=True), lambda row: text_cell(row[2])),
        (Column("band", is_text=True), lambda row: text_cell(band_label(row[3], row[4]))),
        (Column("dimensions"), lambda row: number_cell(row[5])),
        _entries("progress", progress, "nats"),
        _entries("energy", by_optimizer(replay, replay.band_isotropy), hint=even),
    ]
    if bands.num_probes > 1:
        mean = "tr(P H)/dim at the start; its error is half of the 95% interval over probes"
        columns.append((Column("κ", unit=CURVATURE, hint=mean, has_error=True), curvature))
    if len(rates) == len(progress):
        columns.append(_entries("η", rates, hint="effective learning rate −ΣP d·P g/Σ‖P g‖²"))
    each = (bands.blocks, bands.low.tolist(), bands.high.tolist(), bands.dimensions.tolist())
    rows = [(name, place, *band) for name in progress for place, band in enumerate(zip(*each, strict=True))]
    return f"By band of {bands.optimizer}'s proxy at the start, the sharpest first. {_HALF}", columns, rows


def _sweeps(replay: Replay) -> Listing:
    """List the learning rates that were tried."""

    def mark(row: tuple[str, float, float, bool]) -> Cell:
        sweep = replay.sweeps[row[0]]
        if row[1] != sweep.chosen:
            return Cell(text="", raw=False)
        is_limit = sweep.is_at_limit
        return Cell(text=f"yes{', at the limit' * is_limit}", raw=True, tone="caution" if is_limit else "good")

    loss = "on the batches of the losses, after batches of the sweep's own"
    rises = Column("first rises", is_text=True, hint="above the start's, in the first steps; such a rate is left")
    columns: Columns = [
        (_OPTIMIZER, lambda row: text_cell(row[0])),
        (Column("lr"), lambda row: number_cell(row[1], 3)),
        (
            Column("final loss", unit="nats", hint=loss),
            lambda row: Cell(text="diverged", tone="caution") if row[3] else number_cell(row[2]),
        ),
        (Column("chosen", is_text=True), mark),
        (rises, lambda row: text_cell("yes" if replay.sweeps[row[0]].first_rises(row[1]) else "")),
    ]
    rows = [
        (name, *tried)
        for name, sweep in replay.sweeps.items()
        for tried in zip(sweep.lrs.tolist(), sweep.losses.tolist(), sweep.diverged.tolist(), strict=True)
    ]
    return "Learning rates that were tried.", columns, rows


def _ablations(replay: Replay) -> Listing:
    """List what either part of the updates does alone."""
    words = {"none": "whole", "dominant": "sharp part only", "bulk": "flat part only"}
    columns: Columns = [
        (_OPTIMIZER, lambda row: text_cell(row[0])),
        (Column("updates", is_text=True), lambda row: Cell(text=words.get(row[1], row[1]), raw=row[1])),
        _estimated("ΔL", lambda row: replay.loss_change(*row)),
        _estimated(
            "minus whole",
            lambda row: replay.difference(row[0], row[0], row[1], "none") if row[1] != "none" else None,
            hint="paired by seed",
        ),
        (_SEEDS, lambda row: _seeds(replay, *row)),
    ]
    kinds = ("none", *replay.ablations) if replay.ablations else ()
    rows = [(name, one) for name in replay.optimizers for one in kinds]
    return f"Ablations: the same segment with every update projected. {_HALF}", columns, rows


_LISTINGS: dict[str, Callable[[Replay], Listing]] = {
    "outcome": _outcome,
    "parts": _parts,
    "horizon": _horizon,
    "eigenvectors": _eigenvectors,
    "bands": _bands,
    "sweeps": _sweeps,
    "ablations": _ablations,
}


def list_replay(which: str, replay: Replay, number: int = 1, label: str = "") -> Table | None:
    """Return a table of `_LISTINGS` of a replay, by its number on the page and its run's label; None without rows."""
    caption, columns, rows = _LISTINGS[which](replay)
    name = f"replay-{number}" if which == "outcome" else f"replay-{number}-{which}"
    return tabulate(name, caption, columns, [(label, row) for row in rows], is_alone=True)


def seconds_per_step(replay: Replay, name: str) -> float | None:
    """Return what a watched step took; None without one."""
    runs = [run for run in replay.runs_of(name) if run.is_recorded]
    steps = sum(run.num_steps for run in runs)
    return sum(run.seconds for run in runs) / steps if steps else None


def minus_base(replay: Replay, name: str) -> Estimate | None:
    """Return a LITE variant's final loss minus its base's, paired by seed; None without a base beside it."""
    base = base_of(replay, name)
    return None if base is None else replay.difference(name, base)


# For programs


def _progress_object(replay: Replay, name: str, part: Steps = "whole") -> dict[str, Any]:
    return {
        "loss_change": estimate_object(replay.loss_change(name, part=part)),
        "flat_progress": estimate_object(replay.flat_progress(name, part)),
        "sharp_progress": estimate_object(replay.sharp_progress(name, part)),
    }


def _share_object(replay: Replay, name: str) -> dict[str, Any]:
    """Return the flat share, null where it is none, as in the tables; and the closure error."""
    return {"flat_share": estimate_object(told_share(replay, name)), "closure": replay.closure(name)}


def _horizon_object(replay: Replay, name: str) -> dict[str, Any] | None:
    """Return between which steps each run's horizon is, and what the model came to; null where nobody asked."""
    runs = [run for run in replay.runs if run.optimizer == name and run.horizon is not None]
    if not runs:
        return None
    return {
        "runs": [{"seed": run.seed, **asdict(run.horizon)} for run in runs if run.horizon is not None],
        "steps": [
            {
                "step": one.step,
                "loss_change": estimate_object(one.change),
                "predicted": estimate_object(one.predicted),
                **attributes(one, "miss", "missed"),
                "seeds": one.count,
            }
            for one in replay.modelled_changes(name)
        ],
    }


def _bands_object(replay: Replay) -> dict[str, Any]:
    """Return the bands with their mean curvature; null where it was not measured."""
    bands, known = replay.bands, replay.bands.num_probes > 1
    return {
        "labels": list(bands.labels),
        "dimensions": bands.dimensions.tolist(),
        "curvatures": bands.curvatures.tolist() if known else None,
        "curvature_errors": bands.curvature_errors.tolist() if known else None,
        "probes": bands.num_probes,
    }


def _optimizer_object(replay: Replay, same: Replay | None, name: str) -> dict[str, Any]:
    recipe, sweep = replay.recipes[name], replay.sweeps.get(name)
    oscillation, rates = replay.oscillation(name), replay.effective_lrs(name)
    edge, of_bands = replay.directional_edge_curve(name), replay.band_effective_lrs(name)
    return {
        **attributes(recipe, "lr", "lr_source"),
        "hyperparameters": dict(recipe.hyperparameters),
        "state": recipe.state,
        "state_lines": list(recipe.state_lines),
        **_progress_object(replay, name),
        "ramp": _progress_object(replay, name, "ramp"),
        "after": _progress_object(replay, name, "after"),
        "same_batches": None if same is None else _progress_object(same, name) | _share_object(same, name),
        "minus_base": estimate_object(minus_base(replay, name)),
        "ablations": {one: estimate_object(replay.loss_change(name, one)) for one in replay.ablations},
        **_share_object(replay, name),
        "isotropy": estimate_object(replay.isotropy_entropy(name)),
        "directional_sharpness": estimate_object(replay.directional_sharpness(name)),
        "directional_edge_ratio": estimate_object(replay.directional_edge_ratio(name)),
        "steps_past_edge": replay.steps_past_edge(name),
        "directional_edge_curve": None if edge is None else [None if np.isnan(one) else one for one in edge.tolist()],
        "horizon": _horizon_object(replay, name),
        "exponent": estimate_object(replay.exponent(name)),
        "exponent_with_bands": estimate_object(replay.wide_exponent(name)),
        "oscillation": None if oscillation is None else oscillation[0].tolist(),
        "effective_lrs": None if rates is None else rates[0].tolist(),
        "band_effective_lrs": None if of_bands is None else of_bands[0].tolist(),
        "seconds_per_step": seconds_per_step(replay, name),
        "diverged": [{"seed": run.seed, "step": run.diverged_at} for run in replay.diverged(name)],
        "sweep": None
        if sweep is None
        else {
            "lrs": sweep.lrs.tolist(),
            "losses": [None if bad else loss for loss, bad in zip(sweep.losses.tolist(), sweep.diverged, strict=True)],
            **attributes(sweep, "is_inside", "best"),
            "rises": sweep.rises.tolist() or None,
        },
    }

"""A comparison as it is shown: tables for the terminal, one object for programs, and the first part of a page."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lite_probe.reports.drawing import Drawing, by_name
from lite_probe.reports.numbers import MISSING, count_of, format_uncertain, terse
from lite_probe.reports.sections.comparison_figures import (
    draw_blocks_moved,
    draw_landscape,
    draw_optimizers,
    draw_ratios,
)
from lite_probe.reports.sections.comparison_verdict import claim_of, judge_comparison, outcome_claim, outcome_sentence
from lite_probe.reports.sections.section import (
    Block,
    Grid,
    Line,
    Part,
    Remarks,
    estimate_object,
)
from lite_probe.reports.table import Cell, Column, Table, estimate_cell, half_width, make_table, number_cell, text_cell
from lite_probe.results.comparison import LANDSCAPE, QUANTITIES, Checkpoint, Comparison, Entry
from lite_probe.results.estimate import Estimate
from lite_probe.results.thresholds import Outcome

FORMAT = "lite-probe comparison"
SCHEMA_VERSION = 1
_BESIDE = 4  # optimizers that fit side by side into 80 columns
_WIDEST = 14  # letters of a number of which as many do
_SHOWN = ("loss_change", "flat_progress", "sharp_progress", "edge_ratio")  # in a terminal


# For the terminal


def summarize_comparison(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> list[Block]:
    """Return the verdict in a sentence, then tables of optimizers by checkpoints, and what became of thresholds."""
    verdict = judge_comparison(comparison)
    blocks: list[Block] = [Line(verdict.lead), Line()]
    blocks += _landscape_grid(comparison)
    for quantity in _SHOWN:
        blocks += _quantity_grids(comparison, quantity)
    blocks += [Line(text, is_dim=True) for text in _explanations(comparison)]
    blocks += [Line(point.text, is_detail=point.is_detail) for point in verdict.points]
    blocks += [Line(f"threshold {outcome_sentence(one)}") for one in outcomes]
    return [*blocks, Remarks([note.message for note in comparison.notes])]


def _landscape_grid(comparison: Comparison) -> list[Block]:
    """List the landscape and who ends lowest, by checkpoint."""
    ahead = {one.checkpoint: one.winner or "nobody" for one in comparison.standings}
    columns = [one for one in LANDSCAPE.values() if any(one.name in each.landscape for each in comparison.checkpoints)]
    columns = [one for one in columns if one.name != "gradient_share"]
    if not columns and not ahead:
        return []
    rows = [
        [
            one.label,
            *(_written(one.landscape.get(column.name)) for column in columns),
            *([ahead.get(one.label, MISSING)] if ahead else []),
        ]
        for one in comparison.checkpoints
    ]
    return [Grid(["checkpoint", *(one.title for one in columns), *(["ends lowest"] if ahead else [])], rows), Line()]


def _quantity_grids(comparison: Comparison, quantity: str) -> list[Block]:
    """List one quantity by checkpoint and optimizer, as many optimizers side by side as fit."""
    names = [
        name
        for name in comparison.optimizers
        if any(name in one.entries and quantity in one.entries[name].values for one in comparison.checkpoints)
    ]
    blocks: list[Block] = []
    for start in range(0, len(names), _BESIDE):
        beside = names[start : start + _BESIDE]
        rows = [[_entry_text(one, name, quantity, 2) for name in beside] for one in comparison.checkpoints]
        if max(len(text) for row in rows for text in row) > _WIDEST:
            rows = [[_entry_text(one, name, quantity, 1) for name in beside] for one in comparison.checkpoints]
        rows = [[label, *row] for label, row in zip(comparison.labels, rows, strict=True)]
        blocks += [Grid([QUANTITIES[quantity].title, *beside], rows), Line()]
    return blocks


def _entry_text(one: Checkpoint, name: str, quantity: str, digits: int) -> str:
    entry = one.entries.get(name)
    if entry is None:
        return MISSING
    if quantity not in entry.values:
        return "diverged" if entry.diverged and not entry.finished else MISSING
    return _written(entry.values[quantity], digits)


def _written(estimate: Estimate | None, digits: int = 2) -> str:
    """Write an estimate in few characters, with so many digits of half of its interval."""
    if estimate is None:
        return MISSING
    return terse(format_uncertain(estimate.value, half_width(estimate), digits))


def _explanations(comparison: Comparison) -> list[str]:
    names = [name for one in comparison.checkpoints for name in one.landscape]
    found = ["±: half of the 95% interval, over seeds or training batches; loss changes and progress in nats"]
    if "lambda_1" in names:
        found.append("λ₁ ± its residual, a bound; anisotropy: λ₁ over the root mean square eigenvalue, √(tr H²/N)")
    if any("edge_ratio" in entry.values for one in comparison.checkpoints for entry in one.entries.values()):
        found.append("edge ratio: the whole step over the critical one, held out; above 1 it raises the loss")
    return found


# For programs


def comparison_object(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """Return everything: each checkpoint's numbers, differences, claims, and what became of thresholds."""
    verdict = judge_comparison(comparison)
    standings = {one.checkpoint: one for one in comparison.standings}
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "checkpoints": [
            {
                "name": one.label,
                "step": one.step,
                "fingerprint": one.fingerprint,
                "kinds": list(one.kinds),
                "landscape": {name: estimate_object(value) for name, value in one.landscape.items()},
                "blocks": {name: {"lambda_1": estimate_object(value)} for name, value in one.block_lambda_1.items()},
                "optimizers": {name: _entry_object(entry) for name, entry in one.entries.items()},
                "winner": standings[one.label].winner if one.label in standings else None,
                "level": list(standings[one.label].level) if one.label in standings else [],
            }
            for one in comparison.checkpoints
        ],
        "training": [
            {
                "name": one.label,
                **{
                    name: [{"step": step, **(estimate_object(value) or {})} for step, value in points]
                    for name, points in one.values.items()
                },
            }
            for one in comparison.trajectories
        ],
        "differences": [
            {
                "question": one.question,
                "quantity": one.quantity,
                "first": asdict(one.first),
                "second": asdict(one.second),
                "is_logarithm": (QUANTITIES | LANDSCAPE)[one.quantity].is_factor,
                **(estimate_object(one.estimate) or {}),
                "status": claim_of(one).status,
                "comparisons": one.comparisons,
            }
            for one in comparison.differences
        ],
        "lead": verdict.lead,
        "claims": [asdict(claim) for claim in verdict.claims],
        "thresholds": [
            {
                "threshold": one.threshold.text,
                "checkpoint": one.checkpoint,
                "status": one.status,
                "sentence": outcome_sentence(one),
                "claim": None if (claim := outcome_claim(one)) is None else asdict(claim),
            }
            for one in outcomes
        ],
        "notes": [{"code": note.code, "message": note.message} for note in comparison.notes],
    }


def _entry_object(entry: Entry) -> dict[str, Any]:
    return {
        "lr": entry.lr,
        **{name: estimate_object(entry.values.get(name)) for name in QUANTITIES},
        "implied_ratio": {
            block: {"value": ratio.value, "low": ratio.low, "high": ratio.high} for block, ratio in entry.ratios.items()
        },
        "seeds": entry.finished,
        "diverged": list(entry.diverged),
    }


# For a page


def comparison_part(comparison: Comparison, *, is_alone: bool = False) -> Part:
    """Draw and list everything: pictures against the step of training, one table.

    Args:
        comparison: To be shown.
        is_alone: Whether the page has nothing else, so that nothing of it is folded.
    """
    verdict = judge_comparison(comparison)
    drawings: dict[str, Drawing | None] = {
        "lambda_1": draw_landscape(comparison, "lambda_1", "λ₁ (loss/param²)"),
        "trace": draw_landscape(comparison, "trace", "trace (loss/param²)"),
        "anisotropy": draw_landscape(comparison, "anisotropy", "λ₁/√(tr H²/N)"),
        "gradient_share": draw_landscape(comparison, "gradient_share", "share of the gradient"),
        "blocks": draw_blocks_moved(comparison),
        "loss_change": draw_optimizers(comparison, "loss_change", "loss change (nats)", line=0.0),
        "flat": draw_optimizers(comparison, "flat_progress", "flat progress (nats)", line=0.0),
        "sharp": draw_optimizers(comparison, "sharp_progress", "sharp progress (nats)", line=0.0),
        "critical_lr": draw_optimizers(comparison, "critical_lr", "critical learning rate", is_log=True),
        "edge_ratio": draw_optimizers(comparison, "edge_ratio", "step over the critical one", is_log=True, line=1.0),
    }
    ratios = draw_ratios(comparison)
    return Part(
        view={
            "figures": drawings,
            "ratios": ratios,
            "is_open": is_alone,
            "tables": {"outcome": outcome_table(comparison), "landscape": landscape_table(comparison)},
            "points": [point for point in verdict.points if not point.is_detail],
            "details": [point for point in verdict.points if point.is_detail],
            "subtitle": f"{count_of(len(comparison.optimizers), 'optimizer')} at "
            f"{count_of(len(comparison.checkpoints), 'checkpoint')}",
        },
        leads=[("", verdict.lead)],
        figures=by_name([*drawings.values(), *ratios]),
    )


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of its part of a page, in its order."""
    return [one for one in (outcome_table(comparison), landscape_table(comparison)) if one is not None]


def outcome_table(comparison: Comparison) -> Table | None:
    """List every optimizer at every checkpoint."""
    rows = [(one, name, entry) for one in comparison.checkpoints for name, entry in one.entries.items()]
    quantities = [one for one in QUANTITIES.values() if any(one.name in entry.values for _, _, entry in rows)]
    if not rows:
        return None
    ahead = {one.checkpoint: one for one in comparison.standings}

    def standing(label: str, name: str) -> Cell:
        found = ahead.get(label)
        if found is None or name not in found.level:
            return Cell(text="")
        if found.winner == name:
            return Cell(text="lowest", raw="lowest", tone="good")
        return Cell(text="may be lowest" if found.has_error else "", raw="may be lowest" if found.has_error else None)

    columns = [
        Column("checkpoint", is_text=True),
        Column("optimizer", is_text=True),
        Column("standing", is_text=True, hint="by paired differences of final losses, after the correction"),
        *(Column(one.title, unit=one.unit, has_error=True) for one in quantities),
        Column("lr"),
        Column("seeds", hint="that reached the end"),
    ]
    cells = [
        [
            text_cell(one.label),
            text_cell(name),
            standing(one.label, name),
            *(estimate_cell(entry.values.get(quantity.name)) for quantity in quantities),
            number_cell(entry.lr, 2),
            Cell(text=str(entry.finished), raw=entry.finished, tone="caution" if entry.diverged else ""),
        ]
        for one, name, entry in rows
    ]
    caption = "Optimizers by checkpoint. ± is half of the 95% interval over seeds; of edge ratios, training batches."
    return make_table("comparison", caption, columns, cells)


def landscape_table(comparison: Comparison) -> Table | None:
    """List the landscape at every checkpoint."""
    quantities = [
        one for one in LANDSCAPE.values() if any(one.name in each.landscape for each in comparison.checkpoints)
    ]
    if not quantities:
        return None
    columns = [
        Column("checkpoint", is_text=True),
        Column("step"),
        *(Column(one.title, unit=one.unit, has_error=True) for one in quantities),
    ]
    cells = [
        [
            text_cell(one.label),
            number_cell(one.step),
            *(estimate_cell(one.landscape.get(quantity.name)) for quantity in quantities),
        ]
        for one in comparison.checkpoints
    ]
    caption = "The landscape by checkpoint. ± of λ₁ is its residual, else half of the 95% interval over probes."
    return make_table("comparison-landscape", caption, columns, cells)

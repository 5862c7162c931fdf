"""A tuning as it is shown: the recommendation with its spread, how it was agreed on, and whether it paid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lite_probe.reports.drawing import by_checkpoint
from lite_probe.reports.numbers import MISSING, count_of, format_number, format_share
from lite_probe.reports.sections.section import (
    TEMPLATES,
    Block,
    Line,
    Part,
    Sample,
    Section,
    attributes,
    estimate_object,
)
from lite_probe.reports.sections.tuning_figures import (
    WORDS,
    dampings,
    draw_convergence,
    draw_damping,
    draw_gaps,
    draw_ratios,
    own_curvatures,
    profile_ratios,
)
from lite_probe.reports.sections.tuning_settings import config_lines, optimizer_call, plain_settings, replay_command
from lite_probe.reports.sections.tuning_verdict import (
    LEAST_GAP,
    batch_of,
    compare_candidates,
    judge_tuning,
    label_of,
    ratio_text,
    steps_to_pooled,
    tuned_name,
)
from lite_probe.reports.table import Cell, Column, Table, estimate_cell, number_cell, tabulate, text_cell, to_grid
from lite_probe.reports.verdict import TONES, Verdict
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate
from lite_probe.results.tuning import BlockSettings, MethodRun, Recommendation, Tuning

Labelled = Sequence[tuple[str, Tuning]]
Read = tuple[Column, Callable[[Any], Cell]]
_BRIEF = ("ΔL", "minus base", "tuned minus it")  # whose errors have one digit in a terminal
_ANSWERS = {"holds": "below", "fails": "above", "open": "not told"}


class TuningSection(Section):
    """How tunings are shown."""

    heading = "Tuned settings"
    template = TEMPLATES / "tuning.html.j2"

    def subject(self, results: Sequence[Tuning]) -> str:
        """Name what was measured."""
        return "tuned settings"

    def facts(self, result: Tuning) -> Mapping[str, str]:
        """Return what was tuned, and by whom."""
        return {"tuned": result.optimizer, "nodes": f"{count_of(result.num_nodes, 'node')} ({result.topology})"}

    def verdict(self, result: Tuning) -> Verdict:
        """Say whether tuning paid, and what is recommended."""
        return judge_tuning(result)

    def summary(self, result: Tuning) -> Sequence[Block]:
        """Return the recommendation, the candidates replayed, and the methods."""
        labelled = [("", result)]
        found = [make(labelled, is_alone=True) for make in (block_table, candidate_table, method_table)]
        grids = [block for table in found if table is not None for block in (to_grid(table, brief=_BRIEF), Line())]
        opening = (
            f"{result.optimizer} at {format_number(result.lr, 2)}: β₂ = {format_number(result.tuned.damping, 3)}, "
            f"learned by {count_of(result.num_nodes, 'node')} ({result.topology}, spectral gap "
            f"{format_number(result.spectral_gap, 2)})"
        )
        return [Line(opening), *grids, *(Line(text, is_dim=True) for text in explanations(result)), Line()]

    def follow_up(self, result: Tuning) -> Sequence[Block]:
        """Return the recommendation as lines of a configuration file, and as a command."""
        return (
            Line(),
            Line(f"The recommendation, for {batch_of(result)} a batch, as lite-probe.toml:"),
            Sample(config_lines(result)),
            Line("To replay it:"),
            Sample(replay_command(result)),
        )

    def json_object(self, result: Tuning) -> dict[str, Any]:
        """Return every number."""
        numbers = ("lr", "batch_tokens", "loss", "num_parameters", "num_nodes", "topology", "spectral_gap", "shards")
        return {
            **attributes(result, "optimizer", "base", *numbers, "ridge"),
            "settings": plain_settings(result),
            "tuned": _recommendation_object(result.tuned),
            "pooled": _recommendation_object(result.pooled),
            "groups": _group_objects(result),
            "heterogeneity": result.models.heterogeneity,
            "pooled_loss": result.pooled_loss,
            "methods": [_method_object(result, one) for one in result.methods],
            "candidates": {name: dict(own) for name, own in result.candidates.items()},
            "replay": _replay_object(result),
            "config_lines": config_lines(result),
            "optimizer_call": optimizer_call(result),
            "replay_command": replay_command(result),
        }

    def tables(self, labelled: Labelled) -> Sequence[Table]:
        """Return the page's tables."""
        return [table for table in _tables(labelled).values() if table is not None]

    def part(self, labelled: Labelled) -> Part:
        """Draw and list everything, runs below one another."""
        is_alone = len(labelled) == 1
        runs = [_view(number, "" if is_alone else label, one) for number, (label, one) in enumerate(labelled, 1)]
        return Part(
            view={"runs": runs, "tables": _tables(labelled)},
            leads=[(run["label"], run["verdict"].lead) for run in runs],
            figures=by_checkpoint([label for label, _ in labelled], (run["figures"].values() for run in runs)),
        )


SECTION = TuningSection()


def _tables(labelled: Labelled) -> dict[str, Table | None]:
    """Return what the template gets of tables."""
    makers = {"blocks": block_table, "candidates": candidate_table, "methods": method_table, "groups": group_table}
    return {name: make(labelled, is_alone=len(labelled) == 1) for name, make in makers.items()}


def _view(number: int, label: str, tuning: Tuning) -> dict[str, Any]:
    """Return what the template gets of one run."""
    verdict = judge_tuning(tuning)
    return {
        "label": label,
        "verdict": verdict,
        "points": [point for point in verdict.points if not point.is_detail],
        "details": [point for point in verdict.points if point.is_detail],
        "batch": batch_of(tuning),
        "optimizer": tuning.optimizer,
        "base": tuning.base,
        "config": config_lines(tuning),
        "call": optimizer_call(tuning),
        "command": replay_command(tuning),
        "figures": {
            "damping": draw_damping(f"damping-{number}", tuning),
            "ratios": draw_ratios(f"ratios-{number}", tuning),
            "gradients": draw_convergence(f"convergence-gradients-{number}", tuning, by_floats=False),
            "floats": draw_convergence(f"convergence-floats-{number}", tuning, by_floats=True),
            "gaps": draw_gaps(f"gaps-{number}", tuning),
        },
    }


def explanations(tuning: Tuning) -> list[str]:
    """Return what is to be said below the tables."""
    found = [
        "χ: y_rest / max(y_sharp, 1), the multiples of the base’s step that nodes agreed on, with the range of what "
        "each node’s own data would have; r_s: share of directions that are sharp; β₂: best for the block alone",
        "gap: of the upper loss to the pooled solution’s, of that; within 1%: from which step on",
    ]
    if tuning.replay is not None:
        found.append("±: half of the 95% interval over seeds, differences paired; loss changes in nats")
    return found


# Tables


def _number(column: Column, read: Callable[[Any], float | None], digits: int = 3) -> Read:
    return column, lambda row: number_cell(read(row), digits)


def block_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List what is recommended for every block, tuned and pooled side by side."""
    Row = tuple[Tuning, BlockSettings]

    def share(row: Row) -> float | None:
        found = plain_settings(row[0]).get("sharp_ratio")
        return found.get(row[1].block) if isinstance(found, Mapping) else None

    def pooled(name: str) -> Callable[[Row], float | None]:
        return lambda row: getattr(row[0].pooled.of(row[1].block), name, None)

    spread = "χ = y_rest / max(y_sharp, 1); in parentheses what the nodes’ own training batches would have"
    shares = "as it is set: the step profile’s, or that of the sharp group; none where χ is 1"
    columns: list[Read] = [
        (Column("block", is_text=True, short="block"), lambda row: text_cell(row[1].block)),
        (
            Column("χ (over nodes)", hint=spread, short="χ (over nodes)"),
            lambda row: Cell(text=ratio_text(row[1]), raw=row[1].ratio),
        ),
        _number(Column("χ low"), lambda row: row[1].ratio_low),
        _number(Column("χ high"), lambda row: row[1].ratio_high),
        (
            Column("y sharp", hint="multiple of the base’s step along sharp directions", short="sharp"),
            lambda row: replace(number_cell(row[1].sharp, 3), tone="caution" if row[1].sharp < 1.0 else ""),
        ),
        _number(Column("y rest", hint="along all others", short="rest"), lambda row: row[1].rest),
        _number(Column("r_s", hint=shares, short="r_s"), share),
        _number(Column("β₂ alone", hint="best for this block alone", short="β₂"), lambda row: row[1].damping),
        _number(Column("χ pooled", hint="all data in one place", short="χ pooled"), pooled("ratio")),
        _number(Column("y sharp pooled"), pooled("sharp")),
        _number(Column("y rest pooled"), pooled("rest")),
    ]
    rows = [(label, (one, block)) for label, one in labelled for block in one.tuned.blocks]
    batches = " and ".join(dict.fromkeys(batch_of(one) for _, one in labelled))
    dampings_of = " and ".join(dict.fromkeys(format_number(one.tuned.damping, 3) for _, one in labelled))
    caption = f"Recommended settings by block, for {batches} a batch, with β₂ = {dampings_of} for all."
    return _without(tabulate("tuning-blocks", caption, columns, rows, is_alone=is_alone), ("χ low", "χ high"))


def _without(table: Table | None, titles: Sequence[str]) -> Table | None:
    """Leave columns to the CSV."""
    if table is None:
        return None
    places = [at for at, column in enumerate(table.columns) if column.title not in titles]
    return replace(
        table,
        columns=tuple(table.columns[at] for at in places),
        rows=tuple(tuple(row[at] for at in places) for row in table.rows),
    )


def candidate_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every optimizer replayed: its loss change, and its differences to the base and to the tuned settings."""
    Row = tuple[Tuning, str, Mapping[str, Claim]]

    def estimated(title: str, hint: str, short: str, measure: Callable[[Row], Estimate | None]) -> Read:
        column = Column(title, unit="nats", hint=hint, has_error=True, short=short)
        return column, lambda row: estimate_cell(measure(row))

    def change(row: Row) -> Estimate | None:
        replay = row[0].replay
        return None if replay is None else replay.loss_change(row[1])

    def minus_base(row: Row) -> Estimate | None:
        replay = row[0].replay
        return None if replay is None or row[1] == row[0].base else replay.difference(row[1], row[0].base)

    def tuned_minus(row: Row) -> Estimate | None:
        replay, own = row[0].replay, tuned_name(row[0])
        return None if replay is None or row[1] == own else replay.difference(own, row[1])

    def answer(row: Row) -> Cell:
        claim = row[2].get(row[1])
        return Cell(text=MISSING) if claim is None else text_cell(_ANSWERS[claim.status], TONES.get(claim.status, ""))

    def seeds(row: Row) -> Cell:
        replay = row[0].replay
        if replay is None:
            return Cell(text=MISSING)
        count = len(replay.runs_of(row[1]))
        return Cell(
            text=f"{count} of {replay.num_seeds}", raw=count, tone="caution" if count < replay.num_seeds else ""
        )

    held = "final loss of the tuned settings minus this one’s, paired by seed"
    columns: list[Read] = [
        (Column("optimizer", is_text=True, short="optimizer"), lambda row: text_cell(row[1])),
        (Column("settings", is_text=True), lambda row: text_cell(label_of(row[0], row[1]))),
        estimated("ΔL", "change of the evaluation loss over the segment", "loss change", change),
        estimated("minus base", "final loss minus the base’s, paired by seed", "minus base", minus_base),
        estimated("tuned minus it", held, "tuned minus it", tuned_minus),
        (Column("tuned is", is_text=True, hint="after Holm’s correction", short="tuned is"), answer),
        (Column("seeds", hint="that reached the end"), seeds),
    ]
    rows = [
        (label, (one, name, claims))
        for label, one in labelled
        if one.replay is not None
        for claims in [compare_candidates(one)]
        for name in one.replay.optimizers
    ]
    caption = "The replay of the base and of every candidate. ± is half of the 95% interval over seeds."
    return tabulate("tuning-candidates", caption, columns, rows, is_alone=is_alone)


def method_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every method: what it took, how far nodes are apart at its end, and how near it came."""
    Row = tuple[Tuning, MethodRun]

    def end(row: Row) -> float | None:
        return _finite(row[1].upper_loss)

    def gap(row: Row) -> Cell:
        found = end(row)
        if found is None:
            return Cell(text="diverged", tone="caution")
        share = (found - row[0].pooled_loss) / max(abs(row[0].pooled_loss), 1e-300)
        return Cell(text="<0.01%" if abs(share) < LEAST_GAP else format_share(share), raw=share)

    def spent(values: Any) -> int | None:
        return int(values[-1]) if len(values) else None

    def arrived(row: Row) -> Cell:
        found = steps_to_pooled(*row)
        return Cell(text="not reached", tone="caution") if found is None else number_cell(found)

    columns: list[Read] = [
        (
            Column("method", is_text=True, short="method"),
            lambda row: text_cell(f"{row[1].name}, chosen" if row[1].is_chosen else row[1].name),
        ),
        (Column("gradients", hint="of each node", short="gradients"), lambda row: number_cell(spent(row[1].gradients))),
        (Column("floats sent", hint="over all edges", short="floats sent"), lambda r: number_cell(spent(r[1].floats))),
        _number(
            Column("consensus error", hint="root mean square of the nodes’ dampings, in logarithms", short="consensus"),
            lambda row: _finite(row[1].consensus),
            2,
        ),
        _number(Column("upper loss", unit="nats", hint="validation models at the end"), end, 4),
        (Column("gap to pooled", hint="of the pooled upper loss", short="gap"), gap),
        (
            Column("within 1% from step", hint="on; of what the pooled solution gains", short="within 1%"),
            arrived,
        ),
    ]
    rows = [(label, (one, method)) for label, one in labelled for method in one.methods]
    pooled = " and ".join(dict.fromkeys(format_number(one.pooled_loss, 4) for _, one in labelled))
    caption = f"How the nodes came to agree, by method; the pooled solution’s upper loss is {pooled} nats."
    return tabulate("tuning-methods", caption, columns, rows, is_alone=is_alone)


def group_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every group of directions: scale, curvature, gain, damping."""
    columns: list[Read] = [
        (Column("block", is_text=True), lambda row: text_cell(row["block"])),
        (Column("directions", is_text=True), lambda row: text_cell(WORDS.get(row["part"], row["part"]))),
        _number(Column("scale", unit="nats", hint="own curvature on the evaluation batches"), lambda r: r["scale"]),
        _number(Column("curvature", hint="own, mean over nodes, of the scale"), lambda row: row["curvature"]),
        _number(Column("least", hint="of the nodes’ own curvatures"), lambda row: row["curvature_low"]),
        _number(Column("largest", hint="of the nodes’ own curvatures"), lambda row: row["curvature_high"]),
        _number(Column("damping eˣ", hint="in units of the scale"), lambda row: row["damping"]),
        _number(Column("pooled damping"), lambda row: row["pooled_damping"]),
        _number(Column("multiple", hint="of the base’s step, agreed on"), lambda row: row["multiple"]),
        _number(
            Column("least over nodes", hint="of what each node’s own data would have"), lambda r: r["multiple_low"]
        ),
        _number(Column("largest over nodes", hint="of the same"), lambda row: row["multiple_high"]),
    ]
    rows = [(label, row) for label, one in labelled for row in _group_objects(one)]
    caption = "Every group of directions: curvature on the nodes’ training batches, and the damping agreed on."
    return tabulate("tuning-groups", caption, columns, rows, is_alone=is_alone)


def _finite(values: Any) -> float | None:
    """Return the last value; None where there is none, or it is not finite."""
    return float(values[-1]) if len(values) and np.isfinite(values[-1]) else None


# For programs


def _recommendation_object(one: Recommendation) -> dict[str, Any]:
    names = ("block", "ratio", "ratio_low", "ratio_high", "sharp", "rest", "sharp_share", "damping")
    return {
        **attributes(one, "damping", "upper_loss"),
        "blocks": {block.block: attributes(block, *names[1:]) for block in one.blocks},
    }


def _group_objects(tuning: Tuning) -> list[dict[str, Any]]:
    models, curvatures = tuning.models, own_curvatures(tuning)
    own = np.diagonal(models.curvatures, axis1=1, axis2=2)
    agreed, pooled = dampings(tuning)
    alone = tuning.alone
    return [
        {
            "block": block,
            "part": part,
            "scale": float(models.scales[at]),
            "gain": float(models.gains[:, at].mean()),
            "curvature": float(curvatures[at]),
            "curvature_low": float(own[:, at].min()),
            "curvature_high": float(own[:, at].max()),
            "damping": float(agreed[at]),
            "pooled_damping": float(pooled[at]),
            "multiple": _multiple_of(tuning, block, part),
            "multiple_low": float(alone[:, at].min()),
            "multiple_high": float(alone[:, at].max()),
        }
        for at, (block, part) in enumerate(zip(models.blocks, models.parts, strict=True))
    ]


def _multiple_of(tuning: Tuning, block: str, part: str) -> float | None:
    """Return the multiple that is recommended for a group; None where its block has no χ."""
    found = tuning.tuned.of(block)
    return None if found is None else found.sharp if part == "sharp" else found.rest


def _method_object(tuning: Tuning, one: MethodRun) -> dict[str, Any]:
    return {
        **attributes(one, "name", "is_chosen"),
        **attributes(one, "step", "gradients", "floats"),
        "consensus": _plain(one.consensus),
        "upper_loss": _plain(one.upper_loss),
        "within_one_percent_from": steps_to_pooled(tuning, one),
    }


def _plain(values: Any) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _replay_object(tuning: Tuning) -> dict[str, Any] | None:
    replay = tuning.replay
    if replay is None:
        return None
    claims, own = compare_candidates(tuning), tuned_name(tuning)
    return {
        **attributes(replay, "steps", "ramp", "num_seeds", "start_loss"),
        "profile_ratios": profile_ratios(tuning),
        "optimizers": {
            name: {
                "loss_change": estimate_object(replay.loss_change(name)),
                "minus_base": None if name == tuning.base else estimate_object(replay.difference(name, tuning.base)),
                "tuned_minus_it": None if name == own else estimate_object(replay.difference(own, name)),
                "answer": claims[name].status if name in claims else None,
                "seeds": len(replay.runs_of(name)),
            }
            for name in replay.optimizers
        },
    }

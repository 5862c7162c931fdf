"""How long a step the loss tolerates, as it is shown: whole, by block and band, and as LITE's ratios."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lite_probe.reports.drawing import by_checkpoint
from lite_probe.reports.numbers import MISSING, format_number, format_uncertain, terse
from lite_probe.reports.sections.section import (
    TEMPLATES,
    Block,
    Grid,
    Line,
    Part,
    Sample,
    Section,
    attributes,
    estimate_object,
)
from lite_probe.reports.sections.steps_figures import (
    NO_EDGE,
    RAISES,
    draw_critical,
    draw_profiles,
    interval_text,
    order_bands,
    short_band,
)
from lite_probe.reports.sections.steps_settings import REST, doubtful, implied_settings, replay_command
from lite_probe.reports.sections.steps_verdict import (
    critical_multiple,
    critical_words,
    curvature_edge,
    interval_of,
    judge_edges,
    judge_groups,
    judge_ratios,
    judge_steps,
    part_of,
    rate_of,
    tell_edge,
    tell_tolerances,
    where_of,
)
from lite_probe.reports.table import (
    Cell,
    Column,
    Table,
    number_cell,
    share_cell,
    tabulate,
    text_cell,
)
from lite_probe.reports.verdict import Point, Verdict, one_space
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.steps import (
    JOINT_PARTS,
    PARTS,
    CriticalSteps,
    JointOptimum,
    LineCheck,
    OptimizerSteps,
    SharpShare,
    StepRow,
    Steps,
)

Labelled = Sequence[tuple[str, Steps]]
Read = tuple[Column, Callable[[Any], Cell]]
_WIDTH = 80  # of a terminal that a table should fit
_REACHES = 0.75  # of a value, from which on half of its interval says less than its nearer end
_UNORDERED = "unordered"  # directions without any gradient so far: nothing is to be seen along them
_CHECKS = {"holds": "=", "edge is nearer": "<", "edge is farther": ">"}
_ANSWERS = {"holds": "longer", "fails": "past it", "open": "not told"}
_TONES = {"holds": "good", "fails": "caution"}


class StepsSection(Section):
    """How measured steps are shown."""

    heading = "Tolerated steps"
    template = TEMPLATES / "steps.html.j2"

    def subject(self, results: Sequence[Steps]) -> str:
        """Name what was measured."""
        return "tolerated steps"

    def verdict(self, result: Steps) -> Verdict:
        """Say how far every optimizer is from the edge, and where it could step longer."""
        return judge_steps(result)

    def summary(self, result: Steps) -> Sequence[Block]:
        """Return the whole step, every band's own optimum, and every block's ratios, per optimizer."""
        blocks: list[Block] = []
        for name, one in result.optimizers.items():
            blocks += [Line(whole_step(name, one)), *(grid for grid in band_grids(name, one))]
            if one.blocks:
                blocks += [Line(), block_grid(name, one, result), Line()]
        return [*blocks, *(Line(text, is_dim=True) for text in explanations(result)), Line()]

    def follow_up(self, result: Steps) -> Sequence[Block]:
        """Return the command that replays the implied settings."""
        command = replay_command(result)
        if not command:
            return ()
        warning = doubtful(result)
        lines: list[Block] = [
            Line(),
            Line(f"{REST}."),
            Line(f"To replay LITE at the ratios that are told, at {_batch(result)} a batch:"),
            Sample(command),
        ]
        return [*lines, Line(warning)] if warning else lines

    def json_object(self, result: Steps) -> dict[str, Any]:
        """Return every number."""
        groups, ratios = judge_groups(result), judge_ratios(result)
        return {
            **attributes(result, "num_parameters", "loss", "batch_tokens", "num_batches"),
            "optimizers": {
                name: {
                    **_recipe_object(one),
                    "critical": {kind: _critical_object(found) for kind, found in one.critical.items()},
                    "whole_optimum": estimate_object(one.whole),
                    "bands": [_row_object(row) for row in one.rows],
                    "groups": [
                        {
                            **_row_object(row),
                            "answer": _status(groups, (name, row.block, row.part), "no edge"),
                        }
                        for row in group_rows(one)
                    ],
                    "blocks": {
                        block: {
                            "implied_ratio": _ratio_object(one.implied_ratio(block)),
                            "implied_first_ratio": _ratio_object(one.implied_first_ratio(block)),
                            "premise": _status(ratios, (name, block), "no edge"),
                            "implied_sharp_share": _share_object(one.implied_sharp_share(block)),
                        }
                        for block in one.blocks
                    },
                    "joint": _joint_object(one.joint),
                }
                for name, one in result.optimizers.items()
            },
            "signal": {
                block: attributes(one, "share", "random", "num_directions") for block, one in result.signal.items()
            },
            "products": dict(result.products),
            "implied_settings": implied_settings(result),
            "replay_command": replay_command(result) or None,
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
            leads=[(run["label"], run["lead"]) for run in runs],
            figures=by_checkpoint(
                [label for label, _ in labelled], ((*run["profiles"], run["critical"]) for run in runs)
            ),
        )


SECTION = StepsSection()


def _tables(labelled: Labelled) -> dict[str, Table | None]:
    """Return what the template gets of tables."""
    makers = {
        "critical": critical_table,
        "groups": group_table,
        "blocks": block_table,
        "bands": band_table,
        "lines": line_table,
    }
    return {name: make(labelled, is_alone=len(labelled) == 1) for name, make in makers.items()}


def _view(number: int, label: str, steps: Steps) -> dict[str, Any]:
    """Return what the template gets of one run."""
    verdict, edges, groups = judge_steps(steps), judge_edges(steps), judge_groups(steps)
    edge_texts = [text for name in steps.optimizers if (text := tell_edge(steps, name, edges))]
    band_texts = [text for name in steps.optimizers if (text := tell_tolerances(steps, name, groups))]
    tolerances = [Point(tone="plain", text=one_space(text)) for text in band_texts]
    return {
        "label": label,
        # The page tells of the whole step first, and of its bands where they are drawn.
        "lead": one_space(" ".join(edge_texts or band_texts)),
        "points": [*(tolerances if edge_texts else ()), *(one for one in verdict.points if not one.is_detail)],
        "details": [point for point in verdict.points if point.is_detail],
        "profiles": draw_profiles(number, steps),
        "critical": draw_critical(number, steps),
        "command": replay_command(steps),
        "doubtful": doubtful(steps),
        "batch": _batch(steps),
        "rest": REST,
    }


# For the terminal


def whole_step(name: str, one: OptimizerSteps) -> str:
    """Say how far the whole step is from the critical one, on each set of batches."""
    found: list[str] = []
    missing: list[str] = []
    for kind, critical in one.critical.items():
        ratio = critical.edge_ratio
        if ratio is None:
            missing.append(f"{where_of(kind)} {critical_words(critical)}")
        else:
            of = "" if found else " of the critical one"
            found.append(f"{_uncertain(ratio)}{of} {where_of(kind)}")
    parts = [f"the whole step is {', '.join(found)}"] if found else []
    return f"{name} at {rate_of(one)}: {'; '.join([*parts, *missing])}"


def _uncertain(one: Estimate) -> str:
    """Write a value and half of its 95% interval, or both ends where that half is nearly the value.

    A single batch has no interval.
    """
    if one.num_samples == 1:
        return format_number(one.value, 2)
    if half_of(one) > _REACHES * one.value:
        value, interval = interval_of(one)
        return f"{value} (95%: {interval})"
    return format_uncertain(one.value, half_of(one))


def half_of(one: Estimate) -> float:
    """Return half of a 95% interval, which need not be symmetric."""
    return 0.5 * (one.high - one.low)


def band_grids(name: str, one: OptimizerSteps) -> list[Grid]:
    """Return blocks × bands of own optima, divided where a terminal of 80 columns has no room for all bands."""
    names = order_bands([row.name for row in one.rows])
    bands = [band for band in names if band != _UNORDERED] or names
    if not bands:
        return []
    cells = {(row.block, row.name): brief(row.optimum) for row in one.rows}
    columns = [[short_band(band), *(cells.get((block, band), "") for block in one.blocks)] for band in bands]
    first, grids = [name, *one.blocks], []
    for parts in range(1, len(columns) + 1):
        each = -(-len(columns) // parts)
        grids = [_grid([first, *columns[start : start + each]]) for start in range(0, len(columns), each)]
        if all(_width(grid) <= _WIDTH for grid in grids):
            break
    return grids


def _width(grid: Grid) -> int:
    columns = zip(grid.header, *grid.rows, strict=True)
    return sum(max(map(len, column)) + 2 for column in columns) - 2


def _grid(columns: Sequence[Sequence[str]]) -> Grid:
    header, *rows = zip(*columns, strict=True)
    return Grid(header, rows)


def brief(one: Estimate | None) -> str:
    """Write an optimum for a terminal's table: with half of its interval, or the end that is known.

    An interval whose half is nearly the value itself is told by its nearer end.
    """
    if one is None:
        return MISSING
    half = half_of(one)
    if one.low > 0.0 and half > _REACHES * one.value:
        return f"≥{format_number(one.low, 2)}"
    if one.high < 0.0 and half > -_REACHES * one.value:
        return f"≤{format_number(one.high, 2)}"
    return terse(format_uncertain(one.value, half, 1 if half < 10.0 else 2))


def block_grid(name: str, one: OptimizerSteps, steps: Steps) -> Grid:
    """Return χ̂, r̂_s, signal, joint multiples and line checks of every block."""
    header = [name, "χ̂ (95%)", "r̂_s", "signal", "joint", "line"]
    rows = []
    for block in one.blocks:
        signal = steps.signal.get(block)
        rows.append(
            [
                block,
                ratio_words(one.implied_ratio(block)),
                _percent(one.implied_sharp_share(block)),
                MISSING if signal is None else f"{_whole(signal.share)}% ({_whole(signal.random)})",
                "/".join(_multiple(one.joint, block, part) for part in JOINT_PARTS),
                "/".join(_check(one.joint, block, part) for part in JOINT_PARTS),
            ]
        )
    return Grid(header, rows)


def ratio_words(ratio: Ratio | None) -> str:
    """Write χ̂ with its interval, or the end that is known."""
    if ratio is None or ratio.low is None:
        return MISSING
    if ratio.high is None or ratio.value is None:
        return f"≥ {format_number(ratio.low, 2)}"
    value, low, high = (format_number(end, 2) for end in (ratio.value, ratio.low, ratio.high))
    return f"{value} ({low} to {high})"


def _percent(share: SharpShare | None) -> str:
    if share is None:
        return MISSING
    return f"{_whole(share.value)}% ({_whole(share.low)} to {_whole(share.high)})"


def _whole(share: float) -> str:
    """Write a share as percent, without decimals from one on."""
    return f"{100.0 * share:.0f}" if share >= 0.01 or share == 0.0 else format_number(100.0 * share, 1)


def _multiple(joint: JointOptimum | None, block: str, part: str) -> str:
    if joint is None or (block, part) not in zip(joint.blocks, joint.parts, strict=True):
        return MISSING
    place = list(zip(joint.blocks, joint.parts, strict=True)).index((block, part))
    return terse(format_number(float(joint.multiples[place]), 2))


def _check(joint: JointOptimum | None, block: str, part: str) -> str:
    check = None if joint is None else joint.check(block, part)
    return MISSING if check is None else _CHECKS[check.answer]


def explanations(steps: Steps) -> list[str]:
    """Return what is to be said below the tables."""
    found = ["±: half of the 95% interval over training batches"]
    if any(one.blocks for one in steps.optimizers.values()):
        found[0] = (
            "bands: own optimum c* in multiples of the step taken, each band alone; the edge is at 2c*; below 0 the "
            "band raises the loss; –: no edge found, the curvature is not told from 0; ±: half of the 95% interval; "
            "≥: its lower end, where that half is nearly the value"
        )
        found.append(
            "χ̂: c* of flat over that of sharp directions, ≥: its lower end, where flat ones have no edge; r̂_s: share "
            "of directions with c* below half the flat one; signal: leading singular directions that two halves of the "
            "batches agree on (random matrices)"
        )
        found.append(
            "joint: multiples of the mean step that lower the loss together, sharp/non-sharp; line: by the loss "
            "= the quadratic holds up to the edge, < the edge is nearer, > farther"
        )
    return found


def _batch(steps: Steps) -> str:
    return f"{steps.batch_tokens:,} {'tokens' if steps.provenance.seq_len is not None else 'samples'}"


# Tables


def group_rows(one: OptimizerSteps) -> list[StepRow]:
    """Return every block's sharp, middle and flat group."""
    return [row for block in one.blocks for part in PARTS if (row := one.group(block, part)) is not None]


def _interval(
    title: str,
    measure: Callable[[Any], Estimate | None],
    *,
    missing: Callable[[Any], str] = lambda row: NO_EDGE,
    hint: str = "",
) -> list[Read]:
    """Return a column of estimates with their intervals, and two for the CSV alone with the interval's ends."""

    def end(name: str) -> Callable[[Any], Cell]:
        def read(row: Any) -> Cell:
            one = measure(row)
            return number_cell(None if one is None or one.num_samples == 1 else getattr(one, name))

        return read

    def value(row: Any) -> Cell:
        one = measure(row)
        return Cell(text=interval_text(one, missing(row)), raw=None if one is None else one.value)

    return [
        (Column(title, hint=hint), value),
        (Column(f"{title} low"), end("low")),
        (Column(f"{title} high"), end("high")),
    ]


def _edge(row: Any) -> Estimate | None:
    """Return the edge of a row's band; None where it has none, or raises the loss at any length."""
    found: Estimate | None = row[1].edge
    return None if found is None or found.value <= 0.0 else found


def _no_edge_words(row: Any) -> str:
    return NO_EDGE if row[1].edge is None else RAISES


def _listed(
    name: str, caption: str, columns: Sequence[Read], rows: Sequence[tuple[str, Any]], *, is_alone: bool
) -> Table | None:
    """Make a table whose intervals' ends are in its CSV alone."""
    table = tabulate(name, caption, columns, rows, is_alone=is_alone)
    if table is None:
        return None
    places = [at for at, column in enumerate(table.columns) if not column.title.endswith((" low", " high"))]
    return replace(
        table,
        columns=tuple(table.columns[at] for at in places),
        rows=tuple(tuple(row[at] for at in places) for row in table.rows),
    )


def _signed(measure: Callable[[StepRow], Estimate], title: str, hint: str) -> Read:
    def read(row: tuple[str, StepRow]) -> Cell:
        one = measure(row[1])
        half = half_of(one)
        return Cell(text=format_uncertain(one.value, half), raw=one.value, error=half)

    return Column(title, unit="nats", hint=hint, has_error=True), read


_OPTIMIZER: Read = (Column("optimizer", is_text=True), lambda row: text_cell(row[0]))


def _status(claims: Mapping[Any, Claim], key: tuple[str, ...], missing: str) -> str:
    """Return what was answered; in other words where nothing was asked."""
    return claims[key].status if key in claims else missing


def band_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every band of every block and optimizer."""
    columns: list[Read] = [
        _OPTIMIZER,
        (Column("block", is_text=True), lambda row: text_cell(row[1].block)),
        (Column("band", is_text=True), lambda row: text_cell(row[1].name)),
        (Column("part", is_text=True, hint="sharp: to 10%, middle: to 40%"), lambda row: text_cell(row[1].part)),
        (Column("dimensions"), lambda row: number_cell(row[1].dimensions)),
        (Column("to", hint="share of the block’s dimensions"), lambda row: share_cell(row[1].high)),
        _signed(lambda row: row.gain, "gain", "G = −∇L·d: of the loss, to first order"),
        _signed(lambda row: row.curvature, "curvature", "K = dᵀHd"),
        *_interval("optimum (95%)", lambda row: row[1].optimum, hint="c* = G/K, in multiples of the step taken"),
        *_interval("edge (95%)", _edge, missing=_no_edge_words, hint="2c*: beyond it the band raises the loss"),
    ]
    rows = [
        (label, (name, row)) for label, found in labelled for name, one in found.optimizers.items() for row in one.rows
    ]
    caption = "Every band. Multiples are of the step taken; ± is half of the 95% interval over training batches."
    return _listed("steps-bands", caption, columns, rows, is_alone=is_alone)


def group_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List the own optimum of every group of directions, and what is told of it."""

    def answer(row: tuple[str, StepRow, str, str]) -> Cell:
        _, group, status, _ = row
        is_raising = status == "fails" and group.optimum is not None and group.optimum.high < 0.0
        return text_cell(
            RAISES if is_raising else _ANSWERS.get(status, MISSING), "caution" if status == "fails" else ""
        )

    columns: list[Read] = [
        _OPTIMIZER,
        (Column("block", is_text=True), lambda row: text_cell(row[1].block)),
        (Column("directions", is_text=True), lambda row: text_cell(row[3])),
        *_interval("optimum (95%)", lambda row: row[1].optimum, hint="of the group alone, × the step taken"),
        *_interval("edge (95%)", _edge, missing=_no_edge_words, hint="at twice the optimum"),
        (Column("could be", is_text=True, hint="after Holm’s correction"), answer),
    ]
    rows = [
        (label, (name, row, _status(groups, (name, row.block, row.part), ""), part_of(row.part, one)))
        for label, found in labelled
        for groups in [judge_groups(found)]
        for name, one in found.optimizers.items()
        for row in group_rows(one)
    ]
    caption = "Groups of directions, each alone: sharp to 10%, middle to 40%, flat. Multiples are of the step taken."
    return _listed("steps-groups", caption, columns, rows, is_alone=is_alone)


def line_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List the mean step's groups: joint multiples, and what the loss itself says of each one's optimum and edge."""

    def check(title: str, name: str, hint: str, unit: str = "nats") -> Read:
        def read(row: tuple[str, str, str, float, LineCheck | None]) -> Cell:
            return number_cell(None if row[4] is None else getattr(row[4], name), 3)

        return Column(title, unit=unit, hint=hint), read

    def answer(row: tuple[str, str, str, float, LineCheck | None]) -> Cell:
        tones = {"holds": "good", "edge is nearer": "caution"}
        return Cell(text=MISSING) if row[4] is None else text_cell(row[4].answer, tones.get(row[4].answer, ""))

    columns: list[Read] = [
        _OPTIMIZER,
        (Column("block", is_text=True), lambda row: text_cell(row[1])),
        (Column("directions", is_text=True), lambda row: text_cell(row[2])),
        (
            Column("joint", hint="multiple at the optimum of all groups together"),
            lambda row: number_cell(row[3], 3),
        ),
        check("alone", "optimum", "multiple at the group’s own optimum", unit=""),
        check("predicted", "predicted", "change of the loss there, by the quadratic"),
        check("found", "at_optimum", "change of the loss there, by its evaluation"),
        check("at the edge", "at_edge", "at twice that multiple; 0 by the quadratic"),
        (Column("quadratic", is_text=True, hint="as far as the edge"), answer),
    ]
    rows = [
        (label, (name, block, part_of(part, one), multiple, one.joint.check(block, part)))
        for label, found in labelled
        for name, one in found.optimizers.items()
        if one.joint is not None
        for block, part, multiple in zip(one.joint.blocks, one.joint.parts, one.joint.multiples.tolist(), strict=True)
    ]
    caption = (
        "The mean step by groups, sharp and non-sharp: joint multiples, and line checks of each one’s optimum and edge."
    )
    return _listed("steps-lines", caption, columns, rows, is_alone=is_alone)


def block_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every block: χ̂, LITE's premise, r̂_s, what two halves of the batches agree on."""
    Row = tuple[str, str, OptimizerSteps, Steps, str]

    def ratio(row: Row) -> Cell:
        found = row[2].implied_ratio(row[1])
        is_bounded = found is not None and found.low is not None
        return Cell(text=ratio_words(found), raw=found.value if found is not None and is_bounded else None)

    def end(name: str) -> Callable[[Row], Cell]:
        return lambda row: number_cell(getattr(row[2].implied_ratio(row[1]), name, None))

    def share(name: str) -> Callable[[Row], Cell]:
        return lambda row: number_cell(getattr(row[2].implied_sharp_share(row[1]), name, None))

    def told_share(row: Row) -> Cell:
        found = row[2].implied_sharp_share(row[1])
        return Cell(text=_percent(found), raw=None if found is None else found.value)

    def signal(name: str) -> Callable[[Row], Cell]:
        return lambda row: share_cell(getattr(row[3].signal.get(row[1]), name, None))

    columns: list[Read] = [
        _OPTIMIZER,
        (Column("block", is_text=True), lambda row: text_cell(row[1])),
        (Column("χ̂ (95%)", hint="own optimum of flat over that of sharp directions"), ratio),
        (Column("χ̂ low"), end("low")),
        (Column("χ̂ high"), end("high")),
        (
            Column("premise", is_text=True, hint="LITE’s: χ̂ > 1, after Holm’s correction"),
            lambda row: text_cell(row[4], _TONES.get(row[4], "")),
        ),
        (Column("r̂_s (range)", hint="share of directions with an optimum below half the flat one"), told_share),
        (Column("r̂_s low"), share("low")),
        (Column("r̂_s high"), share("high")),
        (Column("signal", hint="leading singular directions that halves of the batches agree on"), signal("share")),
        (Column("random", hint="the same of random matrices"), signal("random")),
    ]
    rows = [
        (label, (name, block, one, found, _status(ratios, (name, block), NO_EDGE)))
        for label, found in labelled
        for ratios in [judge_ratios(found)]
        for name, one in found.optimizers.items()
        for block in one.blocks
    ]
    batches = " and ".join(dict.fromkeys(_batch(found) for _, found in labelled))
    caption = f"What LITE’s ratios would be, at {batches} a batch."
    return _listed("steps-blocks", caption, columns, rows, is_alone=is_alone)


def critical_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List the whole step beside its critical one on every set of batches, and its edge by curvature."""
    Row = tuple[str, str, CriticalSteps | None, OptimizerSteps]

    def ratio(row: Row) -> Estimate | None:
        return None if row[2] is None else row[2].edge_ratio

    def multiple(row: Row) -> Estimate | None:
        return curvature_edge(row[3]) if row[2] is None else critical_multiple(row[2])

    def words(row: Row) -> str:
        return MISSING if row[2] is None else critical_words(row[2])

    def found(row: Row) -> Cell:
        critical = row[2]
        if critical is None:
            return Cell(text=MISSING)
        count, all_of = int(critical.found.sum()), len(critical.found)
        return Cell(text=f"{count} of {all_of}", raw=count, tone="caution" if count < all_of else "")

    def evaluations(row: Row) -> Cell:
        return number_cell(None if row[2] is None else int(row[2].evaluations.sum()))

    columns: list[Read] = [
        _OPTIMIZER,
        (Column("lr"), lambda row: number_cell(row[3].recipe.lr, 3)),
        (Column("on", is_text=True), lambda row: text_cell(row[1])),
        *_interval("step / critical (95%)", ratio, missing=words, hint="1: a longer step raises the loss"),
        *_interval("critical step (95%)", multiple, missing=lambda row: MISSING, hint="in multiples of the step taken"),
        (Column("found", hint="batches on which there is a critical step"), found),
        (Column("evaluations", hint="of the loss"), evaluations),
    ]
    rows = [
        (label, (name, where, critical, one))
        for label, steps in labelled
        for name, one in steps.optimizers.items()
        for where, critical in (*_sets(one), *([("by curvature", None)] if one.blocks else []))
    ]
    caption = (
        "The whole step beside the critical one, over training batches; by curvature its edge is twice its optimum."
    )
    return _listed("steps-critical", caption, columns, rows, is_alone=is_alone)


def _sets(one: OptimizerSteps) -> list[tuple[str, CriticalSteps | None]]:
    return [(where_of(kind), critical) for kind, critical in one.critical.items()]


# For programs


def _recipe_object(one: OptimizerSteps) -> dict[str, Any]:
    recipe, sweep = one.recipe, one.sweep
    return {
        **attributes(recipe, "lr", "lr_source", "state"),
        "state_lines": list(recipe.state_lines),
        "hyperparameters": dict(recipe.hyperparameters),
        "sweep": None if sweep is None else attributes(sweep, "lrs", "losses", "diverged", "chosen", "is_inside"),
    }


def _critical_object(critical: CriticalSteps) -> dict[str, Any]:
    return {
        **attributes(critical, "low", "high", "evaluations", "found"),
        "edge_ratio": estimate_object(critical.edge_ratio),
    }


def _row_object(row: StepRow) -> dict[str, Any]:
    names = ("block", "name", "part", "low", "high", "dimensions")
    measured = ("gain", "curvature", "excess", "optimum", "edge")
    return {**attributes(row, *names), **{name: estimate_object(getattr(row, name)) for name in measured}}


def _ratio_object(ratio: Ratio | None) -> dict[str, Any] | None:
    return None if ratio is None else attributes(ratio, "value", "stderr", "low", "high")


def _share_object(share: SharpShare | None) -> dict[str, Any] | None:
    return None if share is None else attributes(share, "value", "low", "high")


def _joint_object(joint: JointOptimum | None) -> Mapping[str, Any] | None:
    if joint is None:
        return None
    names = ("blocks", "parts", "gains", "curvatures", "multiples", "ridge", "predicted", "change", "own_change")
    check = ("block", "part", "optimum", "predicted", "at_optimum", "at_edge", "answer")
    return {**attributes(joint, *names), "checks": [attributes(one, *check) for one in joint.checks]}

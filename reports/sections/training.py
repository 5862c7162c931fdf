"""A training run as it is shown: λ₁, learning rates and the gradient's share at its steps."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lite_probe.reports.drawing import by_name
from lite_probe.reports.numbers import MISSING, format_bounded, format_number
from lite_probe.reports.sections.section import TEMPLATES, Block, Line, Part, Section, attributes
from lite_probe.reports.sections.training_figures import draw_rates, draw_shares, draw_sharpest
from lite_probe.reports.sections.training_verdict import judge_training
from lite_probe.reports.table import CURVATURE, Cell, Column, Table, number_cell, share_cell, tabulate, to_grid
from lite_probe.reports.verdict import Verdict
from lite_probe.results.training import Training, TrainingPoint

Labelled = Sequence[tuple[str, Training]]


class TrainingSection(Section):
    """How training runs are shown."""

    heading = "Training"
    template = TEMPLATES / "training.html.j2"

    def subject(self, results: Sequence[Training]) -> str:
        """Name what was measured."""
        return "training"

    def verdict(self, result: Training) -> Verdict:
        """Say how curvature moved, and whether steps stayed below the critical ones."""
        return judge_training(result)

    def summary(self, result: Training) -> Sequence[Block]:
        """Return the points."""
        table = point_table([("", result)], is_alone=True)
        return [] if table is None else [to_grid(table), Line()]

    def json_object(self, result: Training) -> dict[str, Any]:
        """Return every number."""
        points = [
            {**asdict(point), "edge_ratio": point.edge_ratio, "critical_lr": point.critical_lr}
            for point in result.points
        ]
        return {
            "points": points,
            "skipped": list(result.skipped),
            "failed": [asdict(one) for one in result.failed],
            **attributes(result, "top", "tolerance", "num_parameters", "expected_share"),
        }

    def tables(self, labelled: Labelled) -> Sequence[Table]:
        """Return the points of all runs."""
        table = point_table(labelled, is_alone=len(labelled) == 1)
        return [] if table is None else [table]

    def part(self, labelled: Labelled) -> Part:
        """Draw all runs in one figure per quantity, and list their points."""
        named = [("" if len(labelled) == 1 else label, found) for label, found in labelled]
        verdicts = [(label, judge_training(found)) for label, found in named]
        figures = {"sharpest": draw_sharpest(named), "rates": draw_rates(named), "shares": draw_shares(named)}
        return Part(
            view={"verdicts": verdicts, "figures": figures, "tables": self.tables(labelled)},
            leads=[(label, verdict.lead) for label, verdict in verdicts],
            figures=by_name(figures.values()),
        )


SECTION = TrainingSection()


def point_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every point."""
    columns = [
        (Column("step", short="step", hint="updates completed"), lambda point: number_cell(point.step)),
        (Column("loss", short="loss", hint="on the evaluation batches"), lambda point: number_cell(point.loss)),
        (Column("learning rate", short="lr"), lambda point: number_cell(point.learning_rate, 3)),
        (
            Column(
                "critical learning rate",
                short="critical lr",
                hint="at which the update would have begun to raise the loss",
            ),
            _critical_cell,
        ),
        (
            Column("edge ratio", short="edge ratio", hint="the step taken over the critical one"),
            lambda point: number_cell(point.edge_ratio, 2),
        ),
        (Column("λ₁", short="λ₁", unit=CURVATURE, has_error=True), _sharpest_cell),
        (
            Column("gradient's share", short="gradient's share", hint="of its squared norm, along the eigenvectors"),
            lambda point: share_cell(point.gradient_share),
        ),
        (Column("‖g‖", unit="loss/param"), lambda point: number_cell(point.gradient_norm)),
        (Column("‖update‖"), lambda point: number_cell(point.update_norm)),
        (Column("Hessian products"), lambda point: number_cell(point.num_hvps)),
        (Column("time", unit="s"), lambda point: number_cell(point.seconds, 2)),
    ]
    rows = [(label, point) for label, training in labelled for point in training.points]
    caption = "Points of the training run. λ₁ ± its residual; the critical learning rate is the middle of its bracket."
    return tabulate("training", caption, columns, rows, is_alone=is_alone)


def _sharpest_cell(point: TrainingPoint) -> Cell:
    if not point.eigenvalues:
        return Cell(text=MISSING)
    value, residual = point.eigenvalues[0], point.residual_norms[0]
    return Cell(text=format_bounded(value, residual), raw=value, error=residual)


def _critical_cell(point: TrainingPoint) -> Cell:
    """Return the critical learning rate, or on which side of what was tried it is."""
    if point.always_rises:
        return Cell(text="none: any step raises the loss", tone="caution")
    if point.never_rises and point.critical_high is not None and point.learning_rate is not None:
        return Cell(text=f"> {format_number(point.critical_high * point.learning_rate, 2)}")
    return number_cell(point.critical_lr, 3)

"""The loss around the start of a replay as it is shown: on a page, and for programs."""

from collections.abc import Callable
from typing import Any

from lite_probe.reports.sections.landscape_figures import (
    draw_lines,
    draw_plane,
    draw_updates,
    told_in_plane,
    told_reach,
)
from lite_probe.reports.sections.section import attributes
from lite_probe.reports.table import Cell, Column, number_cell, share_cell, tabulate, text_cell
from lite_probe.results.landscape import LossLine, PlanePath
from lite_probe.results.replay import Replay


def landscape_view(number: int, label: str, replay: Replay) -> dict[str, Any] | None:
    """Return what the template gets of the landscape of one replay, by its number on the page and its run's label."""
    landscape = replay.landscape
    if landscape is None:
        return None
    plane = landscape.plane
    caption = ""
    if plane is not None:
        caption = (
            "Green is below the start’s loss, orange above; labels are changes from it, in nats. Each path is a run of "
            "the first seed seen from above: it leaves the plane, so that its losses are not those of the plane below "
            f"it. Of the squared way, this much lies in the plane: {told_in_plane(plane)}."
        )
    return {
        "batches": f"the {landscape.split} batches",
        "lines": draw_lines(f"lines-{number}", landscape),
        "updates": draw_updates(f"updates-{number}", landscape, replay.optimizers),
        "plane": draw_plane(f"plane-{number}", landscape, replay.optimizers),
        "plane_caption": caption,
        "tables": {
            "lines": tabulate(
                f"replay-{number}-lines",
                "The loss along lines through the start, and within what distance the quadratic model holds.",
                _LINE,
                [(label, line) for line in landscape.lines],
                is_alone=True,
            ),
            "paths": tabulate(
                f"replay-{number}-paths",
                "Where each path ends, in parameter units, and how much of its squared way lies in the plane.",
                _PATH,
                [(label, path) for path in plane.paths] if plane is not None else [],
                is_alone=True,
            ),
        },
    }


def landscape_object(replay: Replay) -> dict[str, Any] | None:
    """Return lines by name, the plane's axes and how much of each path lies in it; null where nobody asked."""
    landscape = replay.landscape
    if landscape is None:
        return None
    plane = landscape.plane
    return {
        **attributes(landscape, "split", "num_batches", "by_differences", "num_losses", "num_gradients", "num_hvps"),
        "seconds": landscape.seconds,
        "lines": {
            line.name: attributes(line, "slope", "curvature", "holds_to", "holds_throughout", "unit_length")
            for line in landscape.lines
        },
        "plane": None
        if plane is None
        else {
            "x": {"along": "sharpest eigenvector", "from": float(plane.x[0]), "to": float(plane.x[-1])},
            "y": {"along": f"flat way of {plane.optimizer}", "from": float(plane.y[0]), "to": float(plane.y[-1])},
            "in_plane": {path.optimizer: path.in_plane for path in plane.paths},
        },
    }


def _unit(line: LossLine) -> Cell:
    return text_cell("step" if line.kind == "update" else "parameter unit")


_LINE: list[tuple[Column, Callable[[LossLine], Cell]]] = [
    (Column("along", is_text=True), lambda line: text_cell(line.name)),
    (Column("unit of s", is_text=True), _unit),
    (Column("slope", unit="nats/unit", hint="g·v at the start"), lambda line: number_cell(line.slope)),
    (Column("curvature", unit="nats/unit²", hint="vᵀHv at the start"), lambda line: number_cell(line.curvature)),
    (
        Column("model holds", is_text=True, hint="within a tenth of the largest loss change so far"),
        lambda line: text_cell(told_reach(line)),
    ),
    (Column("looked to", hint="the furthest s"), lambda line: number_cell(float(line.distances[-1]), 3)),
]
_PATH: list[tuple[Column, Callable[[PlanePath], Cell]]] = [
    (Column("optimizer", is_text=True), lambda path: text_cell(path.optimizer)),
    (Column("steps"), lambda path: number_cell(len(path.x) - 1)),
    (Column("sharpest", hint="along the sharpest eigenvector"), lambda path: number_cell(float(path.x[-1]), 3)),
    (Column("flat", hint="along the flat direction"), lambda path: number_cell(float(path.y[-1]), 3)),
    (Column("way", hint="‖θ − θ₀‖"), lambda path: number_cell(float(path.lengths[-1]), 3)),
    (Column("in the plane", hint="share of the squared way"), lambda path: share_cell(path.in_plane)),
]

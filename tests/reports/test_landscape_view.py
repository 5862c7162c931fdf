"""The loss around the start of a replay as a page and programs have it."""

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lite_probe.reports.drawing import Drawing
from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.landscape_figures import told_in_plane, told_reach
from lite_probe.reports.sections.replay import SECTION
from lite_probe.results.landscape import Landscape
from lite_probe.results.replay import Replay
from tests.reports.fixtures import make_replay

NAMES = ("muon", "muon-lite", "soap", "soap-lite")


@pytest.fixture(scope="module")
def found() -> Replay:
    return make_replay()


@pytest.fixture(scope="module")
def around(found: Replay) -> Landscape:
    assert found.landscape is not None
    return found.landscape


@pytest.fixture(scope="module")
def view(found: Replay) -> dict[str, Any]:
    return view_of(found)


def view_of(replay: Replay) -> dict[str, Any]:
    (view,) = SECTION.part([("gpt-5000", replay)]).view
    landscape: dict[str, Any] = view["landscape"]
    return landscape


def traces(drawing: Drawing) -> list[SimpleNamespace]:
    return [SimpleNamespace(**trace) for trace in drawing.figure["data"]]


def test_a_figure_for_every_direction_with_the_quadratic_model(view: dict[str, Any], around: Landscape) -> None:
    assert [one.title for one in view["lines"]] == [
        *("Eigenvector 1 of 10", "Eigenvector 6 of 10", "Random flat direction"),
    ]
    assert [one.name for one in view["lines"]] == ["lines-1-1", "lines-1-2", "lines-1-3"]
    line, drawing = around.lines[0], view["lines"][0]
    model, loss = traces(drawing)
    assert loss.y == pytest.approx(line.changes.tolist(), rel=1e-5)
    assert (model.line["dash"], model.name) == ("dash", "quadratic model")
    modelled = 0.05 * np.array(model.x) + 0.5 * 38.21 * np.array(model.x) ** 2
    assert model.y == pytest.approx(modelled.tolist(), rel=1e-4, abs=1e-9)
    # The axis is that of the loss, which the model leaves; dotted lines say from where.
    low, high = drawing.figure["layout"]["yaxis"]["range"]
    assert high == pytest.approx(1.06 * line.changes.max() - 0.06 * line.changes.min(), rel=1e-4)
    assert low < line.changes.min()
    assert max(model.y) > high
    _, before, after = drawing.figure["layout"]["shapes"]
    assert (before["x0"], after["x0"]) == line.bounds
    assert min(-before["x0"], after["x0"]) == line.holds_to
    assert "slope 0.0500 nats per parameter unit, curvature 38.2; the quadratic model holds to 0.0" in drawing.summary


def test_a_model_that_holds_throughout_has_no_bound(found: Replay, around: Landscape) -> None:
    line = around.lines[0]
    exact = replace(line, losses=line.start_loss + line.modelled_changes)
    view = view_of(replace(found, landscape=replace(around, lines=(exact, *around.lines[1:]))))
    assert len(view["lines"][0].figure["layout"]["shapes"]) == 1
    assert view["lines"][0].summary.endswith("the quadratic model holds beyond 0.12.")
    cut = replace(exact, is_cut=True)
    view = view_of(replace(found, landscape=replace(around, lines=(cut, *around.lines[1:]))))
    assert view["lines"][0].summary.endswith("holds beyond 0.12, further out the loss is not finite.")


def test_updates_share_a_figure_in_their_own_steps(view: dict[str, Any], around: Landscape) -> None:
    drawing = view["updates"]
    shown = traces(drawing)
    assert [trace.meta["optimizer"] for trace in shown] == [name for name in NAMES for _ in range(2)]
    assert [trace.name for trace in shown[1::2]] == list(NAMES)
    assert not any(trace.showlegend for trace in shown[::2])
    for trace, line in zip(shown[1::2], around.updates, strict=True):
        assert trace.x == pytest.approx(line.distances.tolist(), rel=1e-5)
        assert trace.y == pytest.approx(line.changes.tolist(), rel=1e-5)
        assert f"Update of {line.optimizer}: slope −0.0300 nats per step" in drawing.summary
    assert drawing.figure["layout"]["shapes"][1]["x0"] == 1
    # Four depths of the lowest at most.
    depth = -min(line.changes.min() for line in around.updates)
    assert drawing.figure["layout"]["yaxis"]["range"][1] <= 4.0 * depth


def test_the_plane_has_contours_from_the_start_and_every_path(view: dict[str, Any], around: Landscape) -> None:
    assert around.plane is not None
    contour, *paths, start = traces(view["plane"])
    z = contour.z
    assert z[-1][-1] is None
    assert z[0][0] == pytest.approx(around.plane.losses[0, 0] - around.start_loss, rel=1e-4)
    depth = -min(one for row in z for one in row if one is not None)
    assert (contour.zmin, contour.zmax) == (pytest.approx(-depth), pytest.approx(depth))
    # 0.0225 deep: levels at every 0.002, from below the lowest to three depths above the start.
    assert depth == pytest.approx(0.0225, abs=1e-3)
    assert (contour.contours["start"], contour.contours["size"]) == (pytest.approx(-0.024), 0.002)
    assert contour.contours["end"] == pytest.approx(3.0 * depth, rel=1e-4)
    assert contour.contours["labelformat"] == ".3f"
    assert [trace.meta for trace in paths] == [{"optimizer": name} for name in NAMES]
    for trace, path in zip(paths, around.plane.paths, strict=True):
        assert trace.x == pytest.approx(path.x.tolist(), rel=1e-5)
        assert trace.y == pytest.approx(path.y.tolist(), rel=1e-5)
        assert trace.customdata == pytest.approx(path.losses.tolist(), rel=1e-5)
    assert (start.x, start.y) == ([0.0], [0.0])
    share = told_in_plane(around.plane)
    assert share.startswith("muon 59.2%, muon-lite 59.2%")
    assert f"this much lies in the plane: {share}." in view["plane_caption"]
    assert "soap: after 20 steps at " in view["plane"].summary


def test_tables_have_every_digit(view: dict[str, Any], around: Landscape) -> None:
    rows = list(csv.DictReader(io.StringIO(view["tables"]["lines"].csv)))
    assert [row["along"] for row in rows] == [line.name for line in around.lines]
    assert [float(row["slope (nats/unit)"]) for row in rows] == [line.slope for line in around.lines]
    assert [row["model holds"] for row in rows] == [told_reach(line) for line in around.lines]
    assert rows[0]["unit of s"] == "parameter unit"
    assert rows[-1]["unit of s"] == "step"
    assert told_reach(around.updates[0]).endswith(" steps")
    assert around.plane is not None
    ends = list(csv.DictReader(io.StringIO(view["tables"]["paths"].csv)))
    assert [float(row["in the plane"]) for row in ends] == [path.in_plane for path in around.plane.paths]


def test_programs_get_lines_by_name_and_shares_in_the_plane(found: Replay, around: Landscape) -> None:
    told = json.loads(json.dumps(SECTION.json_object(found), allow_nan=False))["landscape"]
    assert around.plane is not None
    assert told["lines"]["update of muon"] == {
        "slope": -0.03,
        "curvature": 0.02,
        "holds_to": around.updates[0].holds_to,
        "holds_throughout": False,
        "unit_length": 0.9,
    }
    assert told["plane"] == {
        "x": {"along": "sharpest eigenvector", "from": -0.1, "to": 0.1},
        "y": {"along": "flat way of muon", "from": -1.5, "to": 9.5},
        "in_plane": {path.optimizer: path.in_plane for path in around.plane.paths},
    }
    assert (told["split"], told["num_losses"], told["seconds"]) == ("held-out", 290, 41.5)
    assert SECTION.json_object(make_replay(landscape=False))["landscape"] is None


def test_parts_that_are_not_there_are_left_out(found: Replay, around: Landscape) -> None:
    run = Run(replay=found)
    page = render_page([run])
    for text in ("The loss around the start", "Along each optimizer’s own step", "How to read this.", "plane-1"):
        assert text in page
    (none,) = SECTION.part([("gpt-5000", make_replay(landscape=False))]).view
    assert none["landscape"] is None
    without = render_page([Run(replay=make_replay(landscape=False))])
    assert "The loss around the start" not in without
    bare = view_of(replace(found, landscape=replace(around, lines=(), plane=None)))
    assert (bare["lines"], bare["updates"], bare["plane"]) == ([], None, None)
    assert bare["tables"] == {"lines": None, "paths": None}
    empty = replace(found, landscape=replace(around, lines=(), plane=None))
    assert "The loss around the start" in render_page([Run(replay=empty)])

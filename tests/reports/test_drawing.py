"""What figures share: what their traces belong to, and the columns of their tables."""

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import pytest

from lite_probe.reports.drawing import FILTERS, Drawing, Figure, axis, by_checkpoint, choices_of, error_bars, layout
from lite_probe.reports.runs import Run
from lite_probe.reports.view import make_view
from tests.reports.fixtures import make_replay, make_spectrum, make_subspace
from tests.reports.steps_results import make_steps
from tests.reports.tuning_results import make_test, make_tuning

OF_NOBODY = ("comparison", "rates", "lines", "plane", "damping", "convergence", "density", "upper", "lower")
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, Any]]:
    early = Run(spectrum=make_spectrum(name=HOSTILE, step=500), subspace=make_subspace(name=HOSTILE, step=500))
    late = Run(
        spectrum=make_spectrum(),
        subspace=make_subspace(),
        steps=make_steps(),
        replay=make_replay(diverged=(("soap", 1, 7),)),
        tuning=make_tuning(replay=make_test()),
    )
    return make_view([early, late]).figures


def traces_of(figures: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every trace that has a point."""
    for name, figure in figures.items():
        for trace in figure["data"]:
            if any(value is not None for value in trace["x"]):
                yield name, trace


def test_every_trace_says_what_it_belongs_to(figures) -> None:
    for name, trace in traces_of(figures):
        # What is of the whole model, or a line to compare with, belongs to nobody.
        assert trace["meta"] or name.partition("-")[0] in OF_NOBODY, name
        assert set(trace["meta"]) <= set(FILTERS)
        for of in trace["meta"].values():
            assert isinstance(of, str) or len(of) == len(trace["x"]), name
    assert {trace["meta"]["optimizer"] for trace in figures["loss-1"]["data"]} == set(make_replay().optimizers)
    assert {trace["meta"]["block"] for trace in figures["bands-1-2"]["data"]} == {"qk"}
    assert figures["progress-1"]["data"][0]["meta"]["optimizer"] == figures["progress-1"]["data"][0]["x"]
    # It is compared with what a button holds, so that it is as it is written.
    assert {trace["meta"]["checkpoint"] for trace in figures["upper-end"]["data"]} == {HOSTILE, "gpt-5000"}


def test_choices_are_those_of_the_traces_where_there_are_several(figures) -> None:
    choices = choices_of(figures)
    assert choices["checkpoint"] == (HOSTILE, "gpt-5000")
    assert choices["block"] == ("emb", "qk", "vo", "ffn", "norm", "out")
    assert {"muon", "soap-lite", "muon-lite@tuned"} <= set(choices["optimizer"])
    assert set(choices_of({"blocks": figures["blocks"]})) == {"block", "checkpoint"}
    assert choices_of({}) == {}


def test_figures_of_a_checkpoint_are_marked() -> None:
    figure = Figure()
    figure.add_scatter(x=[1], y=[2], meta={"optimizer": "a & b"})
    first, second = (Drawing.of(figure, name, "A figure.") for name in ("first", "second"))
    found = by_checkpoint(["early", "late"], [[first, None], [second]])
    assert found["first"]["data"][0]["meta"] == {"optimizer": "a & b", "checkpoint": "early"}
    assert found["second"]["data"][0]["meta"]["checkpoint"] == "late"


def test_columns_are_axes_errors_and_bands() -> None:
    figure = Figure()
    figure.layout = layout(100, xaxis=axis("step"), yaxis=axis("loss (nats)"))
    figure.add_scatter(x=[1], y=[2], error_y=error_bars([0.1], "red", [0.2]))
    figure.add_scatter(x=[1, 1], y=[3, 1], fill="toself")
    assert Drawing.of(figure, "loss", "A loss.").figure["columns"] == [
        *(["series", "name"], ["step", "x"], ["loss (nats)", "y"]),
        *(["loss, error (nats)", "error_y.array"], ["loss, error below (nats)", "error_y.arrayminus"]),
        *(["loss, low (nats)", "low"], ["loss, high (nats)", "high"]),
    ]
    plane = Figure()
    plane.add_heatmap(z=[[1.0, 2.0]], colorbar={"title": {"text": "loss"}})
    assert Drawing.of(plane, "plane", "A plane.").figure["columns"][1:] == [["x", "x"], ["y", "y"], ["loss", "z"]]
    own = Drawing.of(plane, "plane", "A plane.", columns=[("where", "customdata.0")])
    assert own.figure["columns"] == [["where", "customdata.0"]]


def test_hover_labels_have_units_and_errors(figures) -> None:
    units = {"loss": "nats", "progress": "nats", "gaps": "nats", "eigenvectors": "nats", "bands": "nats"}
    units |= {"density": "loss/param²", "upper": "loss/param²", "lower": "loss/param²", "blocks": "loss/param²"}
    units |= {"calibration": "loss/param²", "profile": "× the step taken", "critical": "× the step taken"}
    seen = set()
    for name, trace in traces_of(figures):
        kind = name.partition("-")[0]
        if trace.get("hoverinfo") == "skip" or kind not in units:
            continue
        seen.add(kind)
        told = trace["hovertemplate"] + "".join(str(one) for one in trace.get("customdata", ()))
        assert units[kind] in told or "no edge found" in told, name
        if "error_y" in trace and any(trace["error_y"]["array"]):
            assert "±" in told or " to " in told, name
    assert seen == set(units)


def test_plotly_knows_every_property(figures) -> None:
    """Its Python classes refuse what plotly.js does not know; they are too slow for the page itself."""
    for figure in figures.values():
        go.Figure(data=figure["data"], layout=figure["layout"])
    with pytest.raises(ValueError, match="Invalid property"):
        go.Figure(data=[{"type": "scatter", "colour": "red"}])

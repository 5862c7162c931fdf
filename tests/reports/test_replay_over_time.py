"""A replay's figures of directions against time and curvature: their values, what has no place, and what is said."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lite_probe.reports.drawing import Drawing
from lite_probe.reports.numbers import format_number
from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.replay import list_replay
from lite_probe.reports.sections.replay_rate_figures import draw_rates, draw_rates_of, rates_caption
from lite_probe.reports.sections.replay_time_figures import draw_isotropy, draw_maps, draw_stacks, map_caption
from lite_probe.reports.sections.section import describe
from lite_probe.results.replay import FloatArray, Replay
from tests.reports.fixtures import make_replay

OPTIMIZERS = ("muon", "soap-lite")
STEPS = 12


@pytest.fixture(scope="module")
def found() -> Replay:
    return make_replay(optimizers=OPTIMIZERS, steps=STEPS)


def traces(drawing: Drawing) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = drawing.figure["data"]
    return data


def earlier(replay: Replay) -> Replay:
    """The same without what bands were not recorded with before."""
    nothing = np.zeros((0, 0))
    names = ("band_flat_allocations", "band_slopes", "band_gradient_energies")
    without: dict[str, Any] = dict.fromkeys(names, nothing)
    runs = [replace(run, **without) for run in replay.runs]
    bare = np.zeros(0)
    bands = replace(replay.bands, curvatures=bare, curvature_errors=bare, num_probes=0)
    return replace(replay, runs=tuple(runs), bands=bands)


def mean_of(replay: Replay, optimizer: str, name: str) -> FloatArray:
    return np.asarray(np.mean([getattr(run, name) for run in replay.runs_of(optimizer)], axis=0))


def test_areas_add_up_to_the_loss_change_within_the_closure_error(found: Replay) -> None:
    for one in draw_stacks("stack", found):
        change, closure = found.loss_change(one.optimizer), found.closure(one.optimizer)
        assert change is not None
        assert closure is not None
        by_band, by_block = one.drawings
        for drawing in one.drawings:
            *areas, whole = traces(drawing)
            sums = np.sum([area["y"] for area in areas], axis=0)
            np.testing.assert_allclose(sums, whole["y"][1:], atol=1e-6)
            assert abs(whole["y"][-1] + change.value) <= closure * abs(change.value) + 1e-6
            assert drawing.figure["layout"]["barmode"] == "relative"
            assert {area["meta"]["optimizer"] for area in areas} == {one.optimizer}
        names = [trace["name"] for trace in traces(by_band)]
        assert names == ["sharp", *(f"flat {edges}%" for edges in ("0–1", "1–10", "10–30", "30–60", "60–100")), "all"]
        assert [trace.get("meta", {}).get("block") for trace in traces(by_block)][1:-1] == [*found.bands.blocks[::11]]
        assert (by_band.title, by_block.title) == ("by band", "by block")


def test_areas_are_sums_of_what_was_recorded(found: Replay) -> None:
    by_band, by_block = draw_stacks("stack", found)[0].drawings
    sharp, first, *_ = traces(by_band)
    progress = -mean_of(found, "muon", "sharp_allocations").sum(axis=1).cumsum()
    assert sharp["y"] == pytest.approx(progress, rel=1e-5)
    assert sharp["x"] == list(range(1, STEPS + 1))
    flat = -mean_of(found, "muon", "band_flat_allocations")
    assert first["y"] == pytest.approx(flat[:, found.bands.low < 0.01].sum(axis=1).cumsum(), rel=1e-5)
    qk = traces(by_block)[2]
    assert (qk["name"], qk["meta"]["block"]) == ("flat qk", "qk")
    assert qk["y"] == pytest.approx(flat[:, 11:22].sum(axis=1).cumsum(), rel=1e-5)
    end = format_number(float(progress[-1]), 3)
    assert by_band.summary.startswith("Progress of muon at the end, in nats: ")
    assert f"of it {end} sharp, " in by_band.summary


def test_what_raised_the_loss_is_below_zero_and_all_share_an_axis(found: Replay) -> None:
    """Sharp allocations of a quarter of the flat ones, upward: the line is the sum, the bars lie on both sides."""
    runs = []
    for run in found.runs:
        flat = run.flat_allocations
        upward = np.zeros_like(run.sharp_allocations)
        upward[:, 0] = -0.25 * flat
        runs.append(replace(run, sharp_allocations=upward, allocations=0.75 * flat))
    stacks = draw_stacks("stack", replace(found, runs=tuple(runs)))
    ranges = {tuple(one.figure["layout"]["yaxis"]["range"]) for own in stacks for one in own.drawings}
    (span,) = ranges
    sharp, *flat_areas, whole = traces(stacks[0].drawings[0])
    assert max(sharp["y"]) < 0.0 < min(min(area["y"]) for area in flat_areas)
    assert whole["y"][-1] == pytest.approx(-3.0 * sharp["y"][-1], rel=1e-4)
    highest = max(np.sum([area["y"] for area in traces(own.drawings[0])[1:-1]], axis=0)[-1] for own in stacks)
    assert span[0] < min(traces(own.drawings[0])[0]["y"][-1] for own in stacks) < 0.0
    assert highest < span[1] < 1.2 * highest


def test_results_without_flat_bands_have_one_flat_area(found: Replay) -> None:
    (drawing,) = draw_stacks("stack", earlier(found))[0].drawings
    assert [trace["name"] for trace in traces(drawing)] == ["sharp", "flat", "all"]
    flat = -np.mean([run.flat_allocations for run in found.runs_of("muon")], axis=0).cumsum()
    assert traces(drawing)[1]["y"] == pytest.approx(flat, rel=1e-5)


def test_a_map_has_a_row_per_direction_and_one_scale(found: Replay) -> None:
    maps = draw_maps("map", found)
    assert [one.optimizer for one in maps] == list(OPTIMIZERS)
    cells = []
    for one in maps:
        (drawing,) = one.drawings
        (trace,) = traces(drawing)
        z = np.array(trace["z"])
        assert z.shape == (10 + 66, STEPS)
        assert len(set(trace["y"])) == 76
        np.testing.assert_allclose(z[:10], -mean_of(found, one.optimizer, "sharp_allocations").T, rtol=1e-3)
        np.testing.assert_allclose(z[10:], -mean_of(found, one.optimizer, "band_flat_allocations").T, rtol=1e-3)
        changes = np.mean([run.allocations for run in found.runs_of(one.optimizer)], axis=0)
        np.testing.assert_allclose(z.sum(axis=0), -changes, rtol=1e-3)
        assert trace["meta"] == {"optimizer": one.optimizer}
        axes = drawing.figure["layout"]
        assert axes["yaxis"]["ticktext"] == ["sharp", "emb", "qk", "vo", "ffn", "norm", "out"]
        assert axes["coloraxis"]["cmin"] == -axes["coloraxis"]["cmax"]
        assert [stop for _, stop in axes["coloraxis"]["colorscale"]] == [
            *("var(--series-2)", "var(--surface)", "var(--series-1)"),
        ]
        cells.append((axes["coloraxis"]["cmax"], z))
    assert cells[0][0] == cells[1][0] == pytest.approx(np.quantile(np.abs([z for _, z in cells]), 0.95), rel=1e-3)
    assert "all rows add up" in map_caption(found)
    assert "Share of cells that lowered the loss: sharp " in maps[0].drawings[0].summary
    (before,) = draw_maps("map", earlier(found))[0].drawings
    bands = -mean_of(found, "muon", "band_allocations").T
    np.testing.assert_allclose(np.array(traces(before)[0]["z"])[10:], bands, rtol=1e-3)
    assert "hold their part along sharp eigenvectors" in map_caption(earlier(found))


def test_rates_span_bands_and_the_fit_finds_the_law(found: Replay) -> None:
    """The made-up rates are η₀λ^(−a), a = 0.45 of muon and 0.62 of soap-lite, scattered by a twentieth."""
    drawing = draw_rates("rates", found)
    assert drawing is not None
    by_name = {trace["name"]: trace for trace in traces(drawing)}
    bands, rates = by_name["muon, bands"], found.band_effective_lrs("muon")
    assert rates is not None
    curved = np.flatnonzero(found.curved_bands)
    assert len(curved) == 65  # the curvature of the last band of emb is negative
    assert bands["x"] == pytest.approx(found.bands.curvatures[curved], rel=1e-5)
    assert bands["y"] == pytest.approx(rates[0][curved], rel=1e-5)
    assert bands["marker"]["symbol"] != by_name["muon"]["marker"]["symbol"]
    assert min(bands["x"]) < 1e-5 < 1.0 < min(by_name["muon"]["x"])
    for name, power in (("muon", 0.45), ("soap-lite", 0.62)):
        exponent = found.wide_exponent(name)
        assert exponent is not None
        assert exponent.value == pytest.approx(power, abs=0.02)
        fit = by_name[f"{name}, fit"]
        assert fit["meta"] == {"optimizer": name}
        slope = np.diff(np.log(fit["y"])) / np.diff(np.log(fit["x"]))
        assert slope == pytest.approx(-exponent.value, rel=1e-4)
    for slope in (0.0, -1.0):
        line = by_name[f"slope {slope:g}"]
        assert np.diff(np.log(line["y"])) == pytest.approx(slope * np.diff(np.log(line["x"])), abs=1e-9)
    notes = [note["text"] for note in drawing.figure["layout"]["annotations"]]
    assert notes == ["slope 0, gradient descent", "slope −1, Newton"]
    counted = "muon: 65 of 65 bands with a curvature have a positive rate, at curvatures from 6.0 × 10⁻⁶ to 0.56."
    assert counted in drawing.summary.replace("\N{NO-BREAK SPACE}", " ")
    told = "The curvature of 1 of 66 bands is not above zero beyond its 95% interval over 8 probes, of 1 it is below"
    assert told in rates_caption(found)


def test_what_is_not_positive_has_no_place_and_is_counted(found: Replay) -> None:
    """A curvature within its error, and three bands of muon along which the updates climb."""
    errors = found.bands.curvature_errors.copy()
    errors[5] = found.bands.curvatures[5]
    turned = []
    for run in found.runs:
        slopes = run.band_slopes.copy()
        slopes[:, 20:23] *= -1.0 if run.optimizer == "muon" else 1.0
        turned.append(replace(run, band_slopes=slopes))
    changed = replace(found, bands=replace(found.bands, curvature_errors=errors), runs=tuple(turned))
    drawing = draw_rates("rates", changed)
    assert drawing is not None
    by_name = {trace["name"]: trace for trace in traces(drawing)}
    assert (len(by_name["muon, bands"]["x"]), len(by_name["soap-lite, bands"]["x"])) == (61, 64)
    caption = rates_caption(changed)
    assert "The curvature of 2 of 66 bands is not above zero" in caption
    assert caption.endswith("Nor have bands whose rate is not positive: 3 of muon.")
    assert "muon: 61 of 64 bands with a curvature have a positive rate" in drawing.summary


def test_an_optimizer_alone_has_bands_by_block_with_intervals(found: Replay) -> None:
    muon, lite = draw_rates_of("rates", found)
    assert (muon.title, lite.title) == OPTIMIZERS
    by_name = {trace["name"]: trace for trace in traces(muon)}
    assert [*by_name][:7] == ["eigenvectors", "emb", "qk", "vo", "ffn", "norm", "out"]
    qk, halves = by_name["qk"], found.bands.curvature_halves
    assert qk["meta"] == {"optimizer": "muon", "block": "qk"}
    assert qk["error_x"]["array"] == pytest.approx(halves[11:22], rel=1e-5)
    below = np.minimum(halves[11:22], 0.9 * found.bands.curvatures[11:22])
    assert qk["error_x"]["arrayminus"] == pytest.approx(below, rel=1e-5)
    assert all(down < y for y, down in zip(qk["y"], qk["error_y"]["arrayminus"], strict=True))
    assert qk["customdata"][1][2].startswith("qk 1–10%, κ = 0.0044")
    assert len(by_name["emb"]["x"]) == 10


def test_without_curvatures_rates_are_those_of_eigenvectors(found: Replay) -> None:
    before = earlier(found)
    drawing = draw_rates("rates", before)
    assert drawing is not None
    assert [trace["name"] for trace in traces(drawing) if "fit" in trace["name"]] == ["muon, fit", "soap-lite, fit"]
    assert not any("bands" in trace["name"] for trace in traces(drawing))
    assert draw_rates_of("rates", before) == []
    assert rates_caption(before).endswith("What is not positive has no place here; the table has it.")
    assert "bands" not in drawing.summary


def test_isotropy_is_drawn_by_block_with_one_as_reference(found: Replay) -> None:
    drawings = draw_isotropy("isotropy", found)
    assert [one.title for one in drawings] == ["emb", "qk", "vo", "ffn", "norm", "out"]
    muon, lite = traces(drawings[1])
    spread = found.band_isotropy("muon")
    assert spread is not None
    assert muon["y"] == pytest.approx(spread[0][11:22], rel=1e-5)
    # Student's t with two degrees of freedom.
    assert spread[1] is not None
    assert muon["error_y"]["array"] == pytest.approx(4.302653 * spread[1][11:22], rel=1e-4)
    assert (muon["meta"], lite["meta"]) == tuple({"optimizer": name, "block": "qk"} for name in OPTIMIZERS)
    (line,) = drawings[1].figure["layout"]["shapes"]
    assert line["y0"] == line["y1"] == 1
    assert drawings[1].figure["layout"]["yaxis"]["type"] == "log"
    assert f"muon: {format_number(float(spread[0][11]), 2)} in the first, " in drawings[1].summary


def test_the_table_of_bands_has_curvatures_and_rates(found: Replay) -> None:
    table = list_replay("bands", found)
    assert table is not None
    titles = [column.title for column in table.columns]
    assert titles[-2:] == ["κ", "η"]
    row = table.rows[12]
    assert row[-2].raw == found.bands.curvatures[12]
    assert row[-2].error == pytest.approx(2.364624 * found.bands.curvature_errors[12], rel=1e-5)
    rates = found.band_effective_lrs("muon")
    assert rates is not None
    assert row[-1].raw == rates[0][12]
    before = list_replay("bands", earlier(found))
    assert before is not None
    assert not {"κ", "η"} & {column.title for column in before.columns}


def test_programs_get_curvatures_and_rates_of_bands(found: Replay) -> None:
    told = json.loads(json.dumps(describe("replay", found), allow_nan=False))
    rates, exponent = found.band_effective_lrs("muon"), found.wide_exponent("muon")
    assert rates is not None
    assert exponent is not None
    assert told["bands"]["curvatures"] == found.bands.curvatures.tolist()
    assert told["bands"]["labels"][12] == "qk 1–10%"
    assert told["optimizers"]["muon"]["band_effective_lrs"] == rates[0].tolist()
    assert told["optimizers"]["muon"]["exponent_with_bands"]["value"] == exponent.value
    before = describe("replay", earlier(found))
    assert (before["bands"]["curvatures"], before["bands"]["probes"]) == (None, 0)
    assert before["optimizers"]["muon"]["band_effective_lrs"] is None


def test_the_page_has_them_and_says_how_to_read_them(found: Replay) -> None:
    page = render_page([Run(replay=found)])
    for name in ("stack-1-1-1", "stack-1-2-1", "map-1-1", "map-1-2", "rates-1", "isotropy-1-1"):
        assert f'id="plot-{name}"' in page
    for name in ("stack-1-1-2", "rates-1-1", "rates-1-2", "isotropy-1-6"):
        assert f'data-figure="{name}"' in page
    assert page.count("<b>How to read this.</b>") >= 4

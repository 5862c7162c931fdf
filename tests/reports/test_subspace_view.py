"""Sharp and flat directions as a page says them, before anything is drawn."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.subspace_figures import draw_calibration, draw_contrast, draw_subspaces
from lite_probe.reports.subspace_view import SubspaceView, format_ratio, make_subspace_view, order_blocks
from lite_probe.results.estimate import Ratio
from lite_probe.results.subspace import SubspaceMeasurement
from tests.reports.fixtures import make_subspace


@pytest.fixture(scope="module")
def subspace() -> SubspaceMeasurement:
    return make_subspace(others=("gpt-500",))


@pytest.fixture(scope="module")
def view(subspace) -> SubspaceView:
    return make_subspace_view([("gpt-5000", subspace)])


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_gradients_energy_keeps_every_digit(view, subspace):
    (row,) = read(view.energy.csv)
    assert row["checkpoint"] == "gpt-5000"
    assert float(row["gradient's share"]) == subspace.gradient_share
    assert float(row["single batches'"]) == subspace.batch_gradient_share.value
    assert float(row["single batches' error"]) == subspace.batch_gradient_share.stderr
    assert float(row["k/N"]) == 10 / subspace.num_parameters
    assert view.energy.columns[0].title == "k"


def test_several_runs_have_a_row_each(subspace):
    view = make_subspace_view([("a", make_subspace(overlaps=False)), ("b", subspace)])
    assert [row[0].text for row in view.energy.rows] == ["a", "b"]
    assert [one.label for one in view.verdicts] == ["a", "b"]
    assert [row[0].text for row in view.overlaps.rows] == ["b"] * 3
    assert [one.title for one in view.calibrations][2:4] == ["a: soap-lite", "b: adamw-lite"]
    assert [one.title for one in view.contrasts] == ["a", "b"]
    assert len({one.name for one in (*view.calibrations, *view.contrasts)}) == 8


def test_overlaps_show_their_angles_in_degrees(view, subspace):
    rows = read(view.overlaps.csv)
    assert [row["across"] for row in rows] == ["batches", "operators", "checkpoints"]
    angles = subspace.overlaps[0].angles
    assert float(rows[0]["largest (°)"]) == pytest.approx(math.degrees(angles[-1]))
    assert float(rows[0]["overlap"]) == pytest.approx(np.mean(np.cos(angles) ** 2))
    assert make_subspace_view([("a", make_subspace(overlaps=False))]).overlaps is None


def test_calibration_is_drawn_on_asinh_where_signs_are_open(view):
    # emb curves downward in its flattest band.
    calibration = view.calibrations[0]
    assert calibration.ticks
    emb = calibration.curves[0]
    assert emb.block == "emb"
    assert emb.position[-1] < 0 < emb.position[0]
    assert emb.band[:2] == ("0–1%", "1–10%")
    assert emb.share[:3] == (0.5, 5.5, 15.0)
    for curve in calibration.curves:
        for low, at, high in zip(curve.low, curve.position, curve.high, strict=True):
            assert low < at < high


def test_calibration_is_logarithmic_where_all_is_positive(subspace):
    calibration = subspace.calibrations["muon-lite"]
    block = calibration.blocks["norm"]
    positive = replace(calibration, blocks={"norm": block})
    view = make_subspace_view([("a", replace(subspace, calibrations={"muon-lite": positive}))])
    assert view.calibrations[0].ticks == ()
    assert view.calibrations[0].curves[0].position == pytest.approx(block.curvature, rel=1e-5)
    assert draw_calibration(view.calibrations[0]).layout.yaxis.type == "log"
    wide = replace(block, curvature_stderr=block.curvature.copy())
    vague = replace(subspace, calibrations={"muon-lite": replace(calibration, blocks={"norm": wide})})
    assert make_subspace_view([("a", vague)]).calibrations[0].ticks
    nothing = replace(block, curvature=np.zeros(11), curvature_stderr=np.zeros(11))
    flat = replace(subspace, calibrations={"muon-lite": replace(calibration, blocks={"norm": nothing})})
    assert make_subspace_view([("a", flat)]).calibrations[0].curves[0].position == (0.0,) * 11


def test_contrasts_without_an_upper_end_are_bounds(view, subspace):
    contrast = view.contrasts[0]
    assert contrast.blocks == ("emb", "qk", "vo", "ffn", "norm")  # nothing is told apart in out
    soap = contrast.series[2]
    ratio = subspace.calibrations["soap-lite"].blocks["emb"].contrast
    assert soap.optimizer == "soap-lite"
    assert (soap.value[0], soap.high[0], soap.low[0]) == (None, None, ratio.low)
    assert soap.text[0].startswith("≥ ")
    assert None not in (soap.value[1], soap.low[1], soap.high[1])
    figure = draw_contrast(contrast)
    symbols = [trace.marker.symbol for trace in figure.data if trace.mode == "markers"]
    assert symbols[2][:2] == ("triangle-right", "diamond")
    assert make_subspace_view([("a", make_subspace(optimizers=()))]).contrasts == ()


def test_ratios_in_a_table():
    ratio = Ratio(value=4.0, stderr=0.5, low=3.0, high=5.5, num_samples=16)
    assert format_ratio(ratio) == "4.0 (3.0 to 5.5)"
    assert format_ratio(replace(ratio, high=None)) == "≥ 3.0"
    assert format_ratio(replace(ratio, low=None)) == format_ratio(None) == "–"


def test_a_ratio_that_has_no_place_on_the_axis_is_left_out(subspace):
    calibration = subspace.calibrations["muon-lite"]
    block = calibration.blocks["qk"]
    negative = replace(block, contrast=Ratio(value=-0.3, stderr=0.1, low=-0.5, high=-0.1, num_samples=16))
    changed = replace(subspace, calibrations={"muon-lite": replace(calibration, blocks={"qk": negative})})
    (series,) = make_subspace_view([("a", changed)]).contrasts[0].series
    assert (series.value, series.low, series.high) == ((None,), (None,), (None,))
    assert series.text == ("−0.30 (−0.50 to −0.10)",)
    assert draw_contrast(make_subspace_view([("a", changed)]).contrasts[0]).layout.xaxis.range == (-0.2218, 0.301)


def test_tables_hold_every_block_band_and_metric(view, subspace):
    blocks = read(view.contrast_table.csv)
    assert len(blocks) == 3 * 6
    assert [row["assumption"] for row in blocks[:6]] == ["holds", "holds", "holds", "holds", "open", "not used"]
    assert float(blocks[1]["κ sharp (loss/param²)"]) == (
        subspace.calibrations["adamw-lite"].blocks["qk"].sharp_curvature.value
    )
    assert blocks[5]["ratio (95%)"] == ""
    tones = {row[2].text: row[2].tone for row in view.contrast_table.rows}
    assert tones == {"holds": "good", "open": "", "not used": ""}
    bands = read(view.band_table.csv)
    assert len(bands) == 3 * 6 * 11
    assert (
        float(bands[0]["κ error (loss/param²)"])
        == (subspace.calibrations["adamw-lite"].blocks["emb"].curvature_stderr[0])
    )
    metrics = read(view.metrics.csv)
    assert [row["metric"] for row in metrics] == ["none", "adamw", "muon", "soap"]
    assert float(metrics[3]["λ₁"]) == 5.2
    pairs = read(view.metric_pairs.csv)
    assert len(pairs) == 15 + 3 * 4


def test_what_was_not_measured_is_absent():
    bare = make_subspace_view([("a", make_subspace(overlaps=False, preconditioned=False, optimizers=()))])
    assert (bare.overlaps, bare.contrast_table, bare.band_table, bare.metrics, bare.metric_pairs) == (None,) * 5
    assert bare.calibrations == ()
    assert draw_subspaces(bare) == {}
    assert make_subspace_view([("a", make_subspace(preconditioned=False))]).metrics is None


def test_blocks_stand_in_their_customary_order():
    assert order_blocks(["norm", "mine", "emb", "norm", "qk"]) == ["emb", "qk", "norm", "mine"]

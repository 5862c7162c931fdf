"""Sharp and flat directions as a page says them, before anything is drawn."""

import csv
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lite_probe.reports.sections.section import Part
from lite_probe.reports.sections.subspace import SECTION
from lite_probe.reports.sections.subspace_figures import format_ratio
from lite_probe.results.blocks import order_blocks
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.subspace import SubspaceMeasurement
from tests.reports.fixtures import make_subspace


@pytest.fixture(scope="module")
def subspace() -> SubspaceMeasurement:
    return make_subspace(others=("gpt-500",))


@pytest.fixture(scope="module")
def view(subspace) -> SimpleNamespace:
    return view_of(subspace)


def part_of(*measured: SubspaceMeasurement) -> Part:
    return SECTION.part([(one.provenance.checkpoint_name, one) for one in measured])


def view_of(*measured: SubspaceMeasurement) -> SimpleNamespace:
    return SimpleNamespace(**part_of(*measured).view)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_gradients_energy_keeps_every_digit(view, subspace):
    (row,) = read(view.energy.csv)
    assert row["checkpoint"] == "gpt-5000"
    assert float(row["gradient's share"]) == subspace.gradient_share
    assert float(row["single batches'"]) == subspace.batch_gradient_share.value
    assert (
        float(row["single batches' error"]) == subspace.batch_gradient_share.high - subspace.batch_gradient_share.value
    )
    assert float(row["k/N"]) == 10 / subspace.num_parameters
    assert view.energy.columns[0].title == "k"


def test_several_runs_have_a_row_each(subspace):
    view = view_of(make_subspace(name="a", overlaps=False), subspace)
    assert [row[0].text for row in view.energy.rows] == ["a", "gpt-5000"]
    assert [label for label, _ in view.verdicts] == ["a", "gpt-5000"]
    assert [row[0].text for row in view.overlaps.rows] == ["gpt-5000"] * 3
    assert [one.title for one in view.calibrations][2:4] == ["a: soap-lite", "gpt-5000: adamw-lite"]
    assert [one.title for one in view.contrasts] == ["a", "gpt-5000"]
    assert len({one.name for one in (*view.calibrations, *view.contrasts)}) == 8


def test_overlaps_show_their_angles_in_degrees(view, subspace):
    rows = read(view.overlaps.csv)
    assert [row["across"] for row in rows] == ["batches", "operators", "checkpoints"]
    angles = subspace.overlaps[0].angles
    assert float(rows[0]["largest (°)"]) == pytest.approx(math.degrees(angles[-1]))
    assert float(rows[0]["overlap"]) == pytest.approx(np.mean(np.cos(angles) ** 2))
    assert view_of(make_subspace(overlaps=False)).overlaps is None


def test_calibration_is_drawn_on_asinh_where_signs_are_open(view):
    # emb curves downward in its flattest band.
    figure = view.calibrations[0].figure
    assert "0" in figure["layout"]["yaxis"]["ticktext"]
    emb = figure["data"][0]
    assert emb["name"] == "emb"
    assert emb["y"][-1] < 0 < emb["y"][0]
    assert [band for band, *_ in emb["customdata"][:2]] == ["0–1%", "1–10%"]
    assert emb["x"][:3] == pytest.approx([0.5, 5.5, 15.0])
    for curve in figure["data"]:
        assert min(*curve["error_y"]["array"], *curve["error_y"]["arrayminus"]) > 0.0


def test_calibration_is_logarithmic_where_all_is_positive(subspace):
    calibration = subspace.calibrations["muon-lite"]
    block = calibration.blocks["norm"]

    def figure(**changes: np.ndarray) -> dict:
        changed = replace(calibration, blocks={"norm": replace(block, **changes)})
        return view_of(replace(subspace, calibrations={"muon-lite": changed})).calibrations[0].figure

    found = figure()
    assert found["layout"]["yaxis"]["type"] == "log"
    assert found["data"][0]["y"] == pytest.approx(block.curvature, rel=1e-5)
    # Bars are halves of 95% intervals: 2.13 standard errors over 16 probes.
    assert found["data"][0]["error_y"]["array"] == pytest.approx(2.1314 * block.curvature_stderr, rel=1e-3)
    assert figure(curvature_stderr=block.curvature / 2.2)["layout"]["yaxis"]["type"] == "log"
    assert "type" not in figure(curvature_stderr=block.curvature / 2.1)["layout"]["yaxis"]
    assert figure(curvature=np.zeros(11), curvature_stderr=np.zeros(11))["data"][0]["y"] == [0.0] * 11


def test_contrasts_without_an_upper_end_are_bounds(view, subspace):
    figure = view.contrasts[0].figure
    assert figure["layout"]["yaxis"]["ticktext"] == ["emb", "qk", "vo", "ffn", "norm"]  # nothing is told apart in out
    soap = [trace for trace in figure["data"] if trace["name"] == "soap-lite"]
    lines, markers = soap[:2]
    ratio = subspace.calibrations["soap-lite"].blocks["emb"].contrast
    assert ratio.high is None
    edge = 10.0 ** figure["layout"]["xaxis"]["range"][1]
    assert lines["x"][:2] == pytest.approx([ratio.low, edge], rel=1e-3)
    assert markers["x"][0] == ratio.low
    assert markers["customdata"][0][0].startswith("emb: ≥ ")
    assert markers["marker"]["symbol"][:2] == ["triangle-right", "diamond"]
    assert None not in markers["x"]
    assert view_of(make_subspace(optimizers=())).contrasts == []


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
    figure = view_of(changed).contrasts[0].figure
    lines, markers = figure["data"][:2]
    assert (lines["x"], markers["x"]) == ([], [None])
    assert markers["customdata"] == [["qk: −0.30 (−0.50 to −0.10)", -0.3, -0.5, -0.1]]
    assert figure["layout"]["xaxis"]["range"] == [-0.2218, 0.301]


def test_tables_hold_every_block_band_and_metric(view, subspace):
    blocks = read(view.contrast_table.csv)
    assert len(blocks) == 3 * 6
    assert [row["assumption"] for row in blocks[:6]] == ["holds", "holds", "holds", "holds", "open", "not used"]
    assert float(blocks[1]["κ sharp (loss/param²)"]) == (
        subspace.calibrations["adamw-lite"].blocks["qk"].sharp_curvature.value
    )
    assert blocks[5]["ratio (95%)"] == ""
    tones = {row[5].text: row[5].tone for row in view.contrast_table.rows}
    assert tones == {"holds": "good", "open": "", "not used": ""}
    bands = read(view.band_table.csv)
    assert len(bands) == 3 * 6 * 11
    assert float(bands[0]["κ error (loss/param²)"]) == pytest.approx(
        2.1314 * subspace.calibrations["adamw-lite"].blocks["emb"].curvature_stderr[0], rel=1e-3
    )
    metrics = read(view.metrics.csv)
    assert [row["metric"] for row in metrics] == ["none", "adamw", "muon", "soap"]
    assert float(metrics[3]["λ₁"]) == 5.2
    pairs = read(view.metric_pairs.csv)
    assert len(pairs) == 15 + 3 * 4


def test_sharpness_in_an_own_norm_is_said_to_be_a_bound(view, subspace):
    rows = read(view.metrics.csv)
    muon = subspace.calibrations["muon-lite"].own_norm
    assert float(rows[2]["S (loss/lr²)"]) == muon.value == 22_130.0
    assert float(rows[2]["‖g‖_* (loss/lr)"]) == muon.gradient_norm
    assert float(rows[2]["edge lr"]) == muon.edge_lr == pytest.approx(2 * 35.6 / 22_130.0)
    assert [rows[0][title] for title in ("S (loss/lr²)", "edge lr", "norm")] == ["", "", ""]
    titles = [column.title for column in view.metrics.columns]
    shown = dict(zip(titles, [cell.text for cell in view.metrics.rows[2]], strict=True))
    assert (shown["S"], shown["edge lr"], shown["ascents agreeing"]) == ("≥ 22,100", "≤ 0.00322", "2 of 3")
    assert shown["norm"] == "largest singular value of matrices, else largest entry"
    assert [cell.text for cell in view.metrics.rows[0][-5:]] == ["–"] * 5
    # Where nothing curves upward there is no edge; what an earlier version measured has no sharpness at all.
    calibration = subspace.calibrations["muon-lite"]
    flat = replace(calibration, own_norm=replace(muon, values=np.array([-1.0])))
    for changed, texts in ((flat, ["≥ −1.00", "35.60", "–"]), (replace(calibration, own_norm=None), ["–"] * 3)):
        found = view_of(replace(subspace, calibrations={"muon-lite": changed})).metrics
        assert [cell.text for cell in found.rows[1][-5:-2]] == texts


def test_what_was_not_measured_is_absent():
    part = part_of(make_subspace(overlaps=False, preconditioned=False, optimizers=()))
    bare = SimpleNamespace(**part.view)
    assert (bare.overlaps, bare.contrast_table, bare.band_table, bare.metrics, bare.metric_pairs) == (None,) * 5
    assert bare.calibrations == []
    assert part.figures == {}
    assert view_of(make_subspace(preconditioned=False)).metrics is None


def test_blocks_stand_in_their_customary_order():
    assert order_blocks(["norm", "mine", "emb", "norm", "qk"]) == ["emb", "qk", "norm", "mine"]


def test_what_holds_has_no_ratio_below_one_beside_it(subspace):
    """The flat curvature may be zero, so that the ratio is only bounded, and by less than the difference has shown."""
    calibration = subspace.calibrations["muon-lite"]
    difference = Estimate(value=4e-3, stderr=4e-4, low=3e-3, high=5e-3, num_samples=16)
    loose = Ratio(value=9.0, stderr=8.0, low=0.58, high=None, num_samples=16)
    block = replace(calibration.blocks["norm"], difference=difference, contrast=loose)
    found = replace(subspace, calibrations={"muon-lite": replace(calibration, blocks={"norm": block})})
    (row,) = view_of(found).contrast_table.rows
    assert [cell.text for cell in row[4:6]] == ["–", "holds"]

"""A replay as a page says it, before anything is drawn."""

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lite_probe.reports.drawing import Drawing
from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.replay import SECTION
from lite_probe.reports.sections.replay_verdict import base_of
from lite_probe.reports.sections.section import describe
from lite_probe.reports.table import estimate_cell, half_width
from lite_probe.results.replay import Replay
from tests.reports.fixtures import make_replay, make_sweep, with_same_batches
from tests.reports.horizons import with_horizons


@pytest.fixture(scope="module")
def found() -> Replay:
    return make_replay(ablations=True, diverged=(("soap", 1, 7),))


@pytest.fixture(scope="module")
def tables(found) -> SimpleNamespace:
    return tables_of(found)


@pytest.fixture(scope="module")
def drawn(found) -> SimpleNamespace:
    return drawn_of(found)


def tables_of(replay: Replay) -> SimpleNamespace:
    (view,) = SECTION.part([("gpt-5000", replay)]).view
    return SimpleNamespace(**view["tables"])


def drawn_of(replay: Replay) -> SimpleNamespace:
    (view,) = SECTION.part([("gpt-5000", replay)]).view
    return SimpleNamespace(**view["figures"], bands=view["bands"])


def traces(drawing: Drawing) -> list[SimpleNamespace]:
    return [SimpleNamespace(**trace) for trace in drawing.figure["data"]]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_outcome_keeps_every_digit_and_error(tables, found):
    rows = {row["optimizer"]: row for row in read(tables.outcome.csv)}
    assert list(rows) == ["muon", "muon-lite", "soap", "soap-lite"]
    muon, lite = rows["muon"], rows["muon-lite"]
    assert float(muon["ΔL (nats)"]) == found.loss_change("muon").value
    assert float(muon["ΔL error (nats)"]) == half_width(found.loss_change("muon"))
    assert muon["minus base (nats)"] == ""
    assert float(lite["minus base (nats)"]) == found.difference("muon-lite", "muon").value
    assert float(lite["flat progress (nats)"]) == found.flat_progress("muon-lite").value
    assert float(lite["flat share"]) == found.flat_share("muon-lite").value
    assert float(lite["exponent"]) == found.exponent("muon-lite").value
    assert float(lite["closure"]) == found.closure("muon-lite")
    assert float(lite["s/step"]) == pytest.approx(0.21)
    assert [rows[name]["seeds"] for name in rows] == ["3", "3", "2", "3"]
    assert tables.outcome.rows[2][-1].tone == "caution"
    assert tables.outcome.rows[1][5].tone == "good"


def test_a_base_is_one_that_was_replayed_too(found):
    assert base_of(found, "muon-lite") == "muon"
    assert base_of(found, "muon") is None
    assert base_of(make_replay(optimizers=("muon-lite",), steps=3), "muon-lite") is None


def test_one_seed_has_no_errors_nor_shares():
    replay = make_replay(seeds=1, steps=5)
    tables = tables_of(replay)
    for table in (tables.outcome, tables.eigenvectors, tables.bands):
        for row in read(table.csv):
            own = {name: value for name, value in row.items() if " error" in name and not name.startswith(("λ", "κ"))}
            assert own
            assert set(own.values()) == {""}
    assert {row["flat share"] for row in read(tables.outcome.csv)} == {""}
    assert {row[5].tone for row in tables.outcome.rows} == {""}


def test_one_seed_left_of_three_has_no_errors():
    replay = make_replay(steps=9, diverged=(("soap", 0, 7), ("soap", 2, 7)))
    assert (len(replay.runs_of("soap")), len(replay.runs_of("muon"))) == (1, 3)
    tables = tables_of(replay)
    for table in (tables.outcome, tables.eigenvectors, tables.bands):
        for row in read(table.csv):
            own = {value for name, value in row.items() if " error" in name and not name.startswith(("λ", "κ"))}
            assert (own == {""}) if row["optimizer"] == "soap" else (own != {""} and "0.0" not in own)
    drawn = drawn_of(replay)
    for drawing in (drawn.eigenvectors, drawn.oscillation, drawn.rates, *drawn.bands):
        for series in (trace for trace in traces(drawing) if trace.name in replay.optimizers):
            assert all(("±" in text) == (series.name != "soap") for text, *_ in series.customdata)
            assert all((half is None) == (series.name == "soap") for _, half, _ in series.customdata)


def test_errors_are_half_of_a_95_percent_interval(tables, drawn, found):
    """Student's t with two degrees of freedom is 4.30265; soap has two seeds left, so one degree and 12.7062."""
    flat = found.flat_progress("muon")
    assert traces(drawn.progress)[0].error_y["array"][0] == pytest.approx(4.30265 * flat.stderr, rel=1e-5)
    stderrs = found.eigenvector_progress("muon")[1]
    bars = traces(drawn.eigenvectors)[0].error_y["array"]
    assert bars == pytest.approx(4.30265 * stderrs, rel=1e-5)
    soap = traces(drawn.eigenvectors)[2].error_y["array"]
    assert soap == pytest.approx(12.7062 * found.eigenvector_progress("soap")[1], rel=1e-5)
    rows, bands = read(tables.eigenvectors.csv), read(tables.bands.csv)
    assert float(rows[1]["progress error (nats)"]) == pytest.approx(bars[1], rel=1e-5)
    assert float(rows[1]["η error"]) == pytest.approx(4.30265 * found.effective_lrs("muon")[1][1], rel=1e-5)
    assert float(bands[1]["energy error"]) == pytest.approx(4.30265 * found.band_isotropy("muon")[1][1], rel=1e-5)
    share = found.flat_share("muon")
    told = {row["optimizer"]: row for row in read(tables.outcome.csv)}["muon"]
    assert float(told["flat share error"]) == pytest.approx(share.high - share.value)
    for table in (tables.outcome, tables.eigenvectors, tables.bands, tables.ablations):
        assert "± is half of the 95% interval over seeds" in table.caption
    page = render_page([Run(replay=found)])
    assert page.count("Bars are 95% intervals over seeds.") == 7
    assert "standard error over seeds" not in page


def test_an_exponent_that_some_seeds_do_not_have_says_so():
    found = make_replay(steps=5)

    def turned(run):
        return run if run.seed == 0 else replace(run, sharp_updates=-run.sharp_updates)

    changed = replace(found, runs=tuple(turned(run) for run in found.runs))
    tables, rates = tables_of(changed), drawn_of(changed).rates
    place = [column.title for column in tables.outcome.columns].index("exponent")
    assert [row[place].text.endswith(" (on 1 of 3 seeds)") for row in tables.outcome.rows] == [True] * 4
    assert rates.summary.count(" (on 1 of 3 seeds) along eigenvectors, ") == 4
    assert "seeds" not in drawn_of(found).rates.summary


def test_losses_are_means_with_their_range(drawn, found):
    outline, muon, *_, cross, _, last = traces(drawn.loss)
    losses = np.stack([run.losses for run in found.runs_of("muon")])
    assert list(muon.x) == list(range(21))
    assert muon.y == pytest.approx(losses.mean(axis=0), rel=1e-5)
    assert outline.y[:21] == pytest.approx(losses.max(axis=0), rel=1e-5)
    assert outline.y[:20:-1] == pytest.approx(losses.min(axis=0), rel=1e-5)
    assert (cross.name, len(cross.x), last.name) == ("soap, diverged", 8, "soap-lite")
    low, high = drawn.loss.figure["layout"]["yaxis"]["range"]
    assert low < losses.min() < losses.max() < high
    names = [trace.name for trace in traces(drawn.loss) if getattr(trace, "showlegend", True)]
    assert names == ["muon", "muon-lite", "soap", "soap, diverged", "soap-lite"]


def test_progress_by_part_eigenvector_and_band(drawn, found):
    flat, sharp = traces(drawn.progress)
    assert tuple(flat.x) == found.optimizers
    assert flat.y[0] == found.flat_progress("muon").value
    assert sharp.error_y["array"][1] == pytest.approx(half_width(found.sharp_progress("muon-lite")), rel=1e-5)
    muon = traces(drawn.eigenvectors)[0]
    assert tuple(muon.x) == tuple(range(1, 11))
    assert muon.y == pytest.approx(found.eigenvector_progress("muon")[0], rel=1e-5)
    assert [one.title for one in drawn.bands] == ["emb", "qk", "vo", "ffn", "norm", "out"]
    qk = traces(drawn.bands[1])[0]
    assert qk.x[:2] == [0.5, 5.5]
    assert qk.y == pytest.approx(found.band_progress("muon")[0][11:22], rel=1e-5)
    assert qk.customdata[1][2] == "qk 1–10%"
    assert traces(drawn.oscillation)[3].name == "soap-lite"
    for one in traces(drawn.oscillation):
        assert all(0.0 <= value <= 1.0 for value in one.y)
        bars = zip(one.y, one.error_y["array"], one.error_y["arrayminus"], strict=True)
        assert all(y - below + 1e-5 >= 0.0 and y + above - 1e-5 <= 1.0 for y, above, below in bars)


def test_the_directional_edge_ratio_is_drawn_by_step_and_told(found):
    """Of muon the curvature along a step is three times its descent, but for steps 2, which climbs, and 3, a third."""

    def bent(run):
        if run.optimizer != "muon" or run.ablation != "none":
            return replace(run, curvatures=np.abs(run.slopes))
        slopes = run.slopes.copy()
        slopes[1] *= -1.0
        return replace(run, slopes=slopes, curvatures=np.array([3.0, 3.0, 1.0, *[3.0] * 17]) * np.abs(slopes))

    changed = replace(found, runs=tuple(bent(run) for run in found.runs))
    figure = drawn_of(changed).edge
    muon, *others = traces(figure)
    assert [muon.name, *(one.name for one in others)] == list(found.optimizers)
    assert muon.x == list(range(1, 21))
    assert muon.y[:3] == [pytest.approx(3.0, rel=1e-12), None, pytest.approx(1.0, rel=1e-12)]
    assert muon.y[3:] == pytest.approx([3.0] * 17)
    (line,) = figure.figure["layout"]["shapes"]
    assert line["y0"] == line["y1"] == 2.0
    low, high = figure.figure["layout"]["yaxis"]["range"]
    assert low < 0.0
    assert 3.0 < high < 4.0
    ratio = changed.directional_edge_ratio("muon")
    assert figure.summary.startswith("Directional edge ratio by step. muon: ")
    assert f"muon: {estimate_cell(ratio).text} after the ramp, past the edge at 19 of 20 steps." in figure.summary
    outcome = tables_of(changed).outcome
    rows = {row["optimizer"]: row for row in read(outcome.csv)}
    assert float(rows["muon"]["edge ratio"]) == ratio.value
    place = [column.title for column in outcome.columns].index("edge ratio")
    assert [row[place].tone for row in outcome.rows] == ["caution", "", "", ""]
    page = render_page([Run(replay=changed)])
    assert 'id="plot-edge-1"' in page
    assert "Directional edge ratio" in page
    climbing = [replace(run, slopes=np.abs(run.slopes)) for run in found.runs]
    assert drawn_of(replace(found, runs=tuple(climbing))).edge is None


def test_the_horizon_has_a_table_and_a_figure_where_it_was_measured(tables, drawn, found):
    assert tables.horizon is None
    assert drawn.horizon is None
    asked = with_horizons(found, {"muon": [4, 4, 4], "soap": [2, 2, 2]})
    tables, figure = tables_of(asked), drawn_of(asked).horizon
    rows = read(tables.horizon.csv)
    steps = ["1", "2", "4", "8", "16", "20"]
    assert [row["steps"] for row in rows] == [*steps, "1", "2", "4", "7", "8", "16", "20"]  # seed 1 diverged at 7
    assert [row["optimizer"] for row in rows] == ["muon"] * 6 + ["soap"] * 7
    assert [float(row["miss"]) for row in rows[:6]] == pytest.approx([0.01, 0.01, *[0.2] * 4], rel=1e-9)
    assert [row["seeds missed"] for row in rows] == [*"003333", *"0331222"]
    for row in rows[:6]:
        factor = 1.0 + float(row["miss"])
        assert float(row["ΔL, model (nats)"]) == pytest.approx(factor * float(row["ΔL (nats)"]), rel=1e-9)
    assert [row[5].text for row in tables.horizon.rows[6:10]] == ["0 of 3", "3 of 3", "3 of 3", "1 of 1"]
    caption = "Horizon: muon between 2 and 4 steps, soap between 1 and 2 steps."
    assert caption in tables.horizon.caption
    muon, soap = traces(figure)
    assert (muon.name, soap.name) == ("muon", "soap")
    assert muon.x == [1, 2, 4, 8, 16, 20]
    assert muon.y == pytest.approx([0.01, 0.01, 0.2, 0.2, 0.2, 0.2], rel=1e-9)
    axes = figure.figure["layout"]
    assert axes["xaxis"]["type"] == axes["yaxis"]["type"] == "log"
    (line,) = axes["shapes"]
    assert line["y0"] == line["y1"] == 0.1
    assert figure.summary.endswith("muon: between 2 and 4 steps. soap: between 1 and 2 steps.")
    page = render_page([Run(replay=asked)])
    assert 'id="plot-horizon-1"' in page
    assert caption in page
    assert 'id="plot-horizon-1"' not in render_page([Run(replay=found)])
    told = json.loads(json.dumps(describe("replay", asked), allow_nan=False))["optimizers"]
    assert told["muon-lite"]["horizon"] is None
    assert told["soap"]["horizon"]["runs"] == [{"seed": seed, "low": 1, "high": 2} for seed in range(3)]
    last = told["muon"]["horizon"]["steps"][-1]
    assert (last["step"], last["missed"], last["seeds"]) == (20, 3, 3)
    assert last["predicted"]["value"] == pytest.approx(1.2 * last["loss_change"]["value"], rel=1e-9)


def test_what_is_predicted_exactly_has_no_place_on_a_logarithmic_axis(found):
    runs = [
        replace(run, logged_steps=np.array([1, 2]), predicted_losses=run.losses[1:3])
        for run in found.runs
        if run.ablation == "none"
    ]
    exact = replace(found, runs=tuple(runs))
    assert drawn_of(exact).horizon is None
    assert {row["miss"] for row in read(tables_of(exact).horizon.csv)} == {"0.0"}


def test_rates_that_are_not_positive_have_no_place(found):
    def turned(run):
        updates = run.sharp_updates.copy()
        updates[:, :1] *= -1.0
        return replace(run, sharp_updates=updates)

    changed = replace(found, runs=tuple(turned(run) for run in found.runs))
    rates = drawn_of(changed).rates
    assert [len(one.x) for one in traces(rates)[:8]] == [9] * 4 + [10] * 4
    assert "9 of 10 positive" in rates.summary
    axes = rates.figure["layout"]
    assert axes["xaxis"]["type"] == axes["yaxis"]["type"] == "log"
    assert [trace.marker["symbol"] for trace in traces(rates)[4:6]] == ["circle-open", "square-open"]
    for trace in traces(rates)[:4]:
        assert all(error < value for error, value in zip(trace.error_y["arrayminus"], trace.y, strict=True))
    rows = read(tables_of(changed).eigenvectors.csv)
    assert float(rows[0]["η"]) < 0.0  # the table has it
    without = make_replay(theory=False, steps=3)
    assert [trace.name for trace in traces(drawn_of(without).rates)][:5] == [*without.optimizers, "muon, bands"]
    assert {row["η, theory"] for row in read(tables_of(without).eigenvectors.csv)} == {""}


def test_tables_by_eigenvector_and_band(tables, found):
    rows = read(tables.eigenvectors.csv)
    assert len(rows) == 4 * 10
    assert float(rows[11]["λ (loss/param²)"]) == found.eigenvalues[1]
    assert float(rows[11]["progress (nats)"]) == found.eigenvector_progress("muon-lite")[0][1]
    assert float(rows[11]["rate, theory"]) == found.theory["muon-lite"].rates[1]
    assert float(rows[11]["rate"]) == found.decay_rates("muon-lite")[0][1]
    bands = read(tables.bands.csv)
    assert len(bands) == 4 * 66
    assert (bands[12]["block"], bands[12]["band"]) == ("qk", "1–10%")
    assert float(bands[12]["energy"]) == found.band_isotropy("muon")[0][12]


def test_a_predicted_rate_above_one_is_marked(found):
    theory = found.theory["muon"]
    wild = replace(theory, rates=np.array([1.5, *theory.rates[1:]]))
    tables = tables_of(replace(found, theory={**found.theory, "muon": wild}))
    assert [row[7].tone for row in tables.eigenvectors.rows[:2]] == ["caution", ""]


def test_sweeps_mark_the_chosen_and_the_diverged(tables):
    rows = read(tables.sweeps.csv)[:3]
    assert [row["chosen"] for row in rows] == ["no", "yes", "no"]
    assert [row["final loss (nats)"] for row in rows][2] == ""
    assert [row[2].text for row in tables.sweeps.rows[:3]][2] == "diverged"
    edge = tables_of(make_replay(is_inside=False, steps=3))
    assert [row[3].text for row in edge.sweeps.rows[:3]] == ["", "", "yes, at the limit"]
    assert {row[2].text for row in edge.outcome.rows} == {"sweep, at its limit"}
    assert tables_of(make_replay(swept=False, steps=3)).sweeps is None


def test_ablations_stand_beside_the_whole(tables, found):
    rows = read(tables.ablations.csv)
    assert [row["updates"] for row in rows[:3]] == ["none", "dominant", "bulk"]
    assert [row[1].text for row in tables.ablations.rows[:3]] == ["whole", "sharp part only", "flat part only"]
    assert float(rows[1]["minus whole (nats)"]) == found.difference("muon", "muon", "dominant", "none").value
    assert tables_of(make_replay(steps=3)).ablations is None


def test_where_all_diverged_only_the_losses_are_left():
    names = ("muon", "soap")
    replay = make_replay(optimizers=names, seeds=1, diverged=tuple((name, 0, 2) for name in names), landscape=False)
    (view,) = SECTION.part([("gpt-5000", replay)]).view
    tables, drawn = tables_of(replay), drawn_of(replay)
    assert (drawn.progress, drawn.edge, drawn.eigenvectors, drawn.rates, drawn.oscillation) == (None,) * 5
    assert view["bands"] == []
    assert tables.eigenvectors is None
    assert tables.bands is None
    assert "range" not in drawn.loss.figure["layout"]["yaxis"]
    assert drawn.loss.summary.endswith("muon: every run diverged. soap: every run diverged.")
    assert set(SECTION.part([("gpt-5000", replay)]).figures) == {"loss-1", "sweeps-1"}
    assert [row[-1].text for row in tables.outcome.rows] == ["0 of 1", "0 of 1"]


def test_figures_and_tables_are_named_by_the_replays_number(found):
    part = SECTION.part([("early", found), ("late", found)])
    names = {"loss-2", "progress-2", "edge-2", "eigenvectors-2", "rates-2", "oscillation-2", "bands-2-1"}
    assert {name for name in part.figures if name.endswith(("-2", "-2-1"))} >= names
    tables = part.view[1]["tables"]
    assert (tables["outcome"].name, tables["bands"].name) == ("replay-2", "replay-2-bands")
    assert {row["checkpoint"] for row in read(tables["bands"].csv)} == {"late"}


def test_parts_and_the_same_batches_have_a_table_of_their_own(tables):
    assert tables.parts is None
    replay = replace(make_replay(optimizers=("muon", "soap")), ramp=5)
    rows = tables_of(replay).parts.rows
    assert [row[1].text for row in rows] == ["the segment", "its ramp, 5 steps", "the 15 after it"] * 2
    for place in (2, 3, 4):
        assert rows[0][place].raw == pytest.approx(rows[1][place].raw + rows[2][place].raw, rel=1e-12)
    both = tables_of(with_same_batches(replace(replay, ramp=0), flat=2.0)).parts
    assert [row[1].text for row in both.rows] == ["the segment", "the segment, on the eigenvectors' batches"] * 2
    assert both.rows[1][3].raw == pytest.approx(2.0 * both.rows[0][3].raw, rel=1e-12)
    assert both.rows[1][4].raw == both.rows[0][4].raw
    assert all(row[5].text.endswith("%") and row[6].text.endswith("%") for row in both.rows)
    assert "those that the eigenvectors were measured on" in both.caption


def test_sweeps_mark_where_the_loss_first_rises(tables):
    assert {row[4].text for row in tables.sweeps.rows} == {""}
    sweep = replace(make_sweep(), rises=np.array([False, True, True]))
    rows = tables_of(replace(make_replay(optimizers=("muon",)), sweeps={"muon": sweep})).sweeps.rows
    assert [row[4].text for row in rows] == ["", "yes", "yes"]
    edge = make_sweep(is_inside=False)
    left = replace(edge, chosen=float(edge.lrs[0]), rises=np.array([False, True, True]))
    found = tables_of(replace(make_replay(optimizers=("muon",)), sweeps={"muon": left}))
    assert [row[3].text for row in found.sweeps.rows] == ["yes", "", ""]  # the limit is the best's, which was left
    assert found.outcome.rows[0][2].text == "sweep"


def test_learning_rates_that_were_tried_are_drawn_with_the_one_chosen():
    replay = make_replay(steps=3)
    drawing = drawn_of(replay).sweeps
    series = {one.name: one for one in traces(drawing)}
    for name, sweep in replay.sweeps.items():
        line = series[name]
        assert line.x == sweep.lrs.tolist()
        assert line.meta == {"optimizer": name}
        chosen = sweep.lrs.tolist().index(sweep.chosen)
        assert not line.marker["symbol"][chosen].endswith("-open")
        assert sum(not one.endswith("-open") and one != "x" for one in line.marker["symbol"]) == 1
        for loss, bad, y, symbol in zip(sweep.losses, sweep.diverged, line.y, line.marker["symbol"], strict=True):
            assert (symbol == "x") == bad
            assert (y > max(replay.start_loss, sweep.losses.max())) if bad else (y == loss)
    assert drawn_of(make_replay(steps=3, swept=False)).sweeps is None


def test_ablations_are_drawn_beside_whole_updates():
    replay = make_replay(steps=3, ablations=True)
    whole, sharp, flat = traces(drawn_of(replay).ablations)
    assert (whole.name, sharp.name, flat.name) == ("whole", "sharp part only", "flat part only")
    for series, ablation in ((whole, "none"), (sharp, "dominant"), (flat, "bulk")):
        assert tuple(series.x) == replay.optimizers
        assert series.y == [replay.loss_change(name, ablation).value for name in replay.optimizers]
    assert drawn_of(make_replay(steps=3)).ablations is None

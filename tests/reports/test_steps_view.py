"""Tolerated steps as a page and programs get them: tables, CSV, figures with their words, one object."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest

from lite_probe.reports.sections.section import Part, describe
from lite_probe.reports.sections.steps import SECTION
from lite_probe.reports.sections.steps_figures import draw_critical, draw_profiles, interval_text
from lite_probe.results.steps import Steps
from tests.reports.steps_results import RANKED, SHARED, Band, make_critical, make_optimizer, make_steps


@pytest.fixture(scope="module")
def steps() -> Steps:
    return make_steps()


@pytest.fixture(scope="module")
def part(steps: Steps) -> Part:
    return part_of(steps)


def part_of(*measured: Steps) -> Part:
    return SECTION.part([(one.provenance.checkpoint_name, one) for one in measured])


def rows_of(part: Part, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(part.view["tables"][name].csv)))


def shown(part: Part, name: str) -> list[dict[str, str]]:
    table = part.view["tables"][name]
    return [{column.title: cell.text for column, cell in zip(table.columns, row, strict=True)} for row in table.rows]


def test_the_band_table_has_every_number_and_its_interval(steps: Steps, part: Part) -> None:
    found = rows_of(part, "bands")
    rows = [(name, row) for name, one in steps.optimizers.items() for row in one.rows]
    assert len(found) == len(rows) == 2 * 21
    for cells, (name, row) in zip(found, rows, strict=True):
        assert (cells["optimizer"], cells["block"], cells["band"]) == (name, row.block, row.name)
        assert float(cells["gain (nats)"]) == row.gain.value
        assert float(cells["curvature error (nats)"]) == pytest.approx(0.5 * (row.curvature.high - row.curvature.low))
        if row.optimum is None:
            assert cells["optimum (95%)"] == cells["optimum (95%) low"] == cells["edge (95%) high"] == ""
            continue
        assert float(cells["optimum (95%)"]) == row.optimum.value
        assert float(cells["optimum (95%) low"]) == row.optimum.low
        if row.optimum.value < 0.0:
            assert cells["edge (95%)"] == ""
        else:
            assert float(cells["edge (95%)"]) == 2.0 * row.optimum.value
            assert float(cells["edge (95%) high"]) == 2.0 * row.optimum.high


def test_ends_of_intervals_are_for_the_csv_alone(part: Part) -> None:
    titles = [column.title for column in part.view["tables"]["bands"].columns]
    assert not [title for title in titles if title.endswith((" low", " high"))]
    row = next(row for row in shown(part, "bands") if row["band"] == "10–40%" and row["block"] == "qk")
    assert row["optimum (95%)"] == row["edge (95%)"] == "no edge found"


def test_groups_say_what_is_told(part: Part) -> None:
    answers = {
        (row["block"], row["directions"]): row["could be"]
        for row in shown(part, "groups")
        if row["optimizer"] == "muon"
    }
    assert answers["emb", "sharp"] == "past it"
    assert answers["emb", "flat"] == "longer"
    assert answers["ffn", "sharp"] == "not told"
    assert answers["qk", "flat"] == "–"
    assert answers["out", "flat"] == "raises the loss"
    out = next(row for row in shown(part, "groups") if (row["block"], row["directions"]) == ("out", "flat"))
    assert out["optimum (95%)"].startswith("−1.967 (")
    assert out["edge (95%)"] == "raises the loss"


def test_blocks_have_ratio_premise_share_and_signal(part: Part) -> None:
    rows = {(row["optimizer"], row["block"]): row for row in shown(part, "blocks")}
    ffn = rows["muon", "ffn"]
    assert ffn["χ̂ (95%)"] == "7.9 (7.4 to 8.5)"
    assert (ffn["premise"], ffn["r̂_s (range)"], ffn["signal"], ffn["random"]) == (
        "holds",
        "10% (10 to 40)",
        "31.0%",
        "1.00%",
    )
    assert (rows["muon", "qk"]["χ̂ (95%)"], rows["muon", "qk"]["premise"]) == ("≥ 41", "holds")
    assert rows["muon", "out"]["premise"] == "fails"
    assert "16,384 tokens a batch" in part.view["tables"]["blocks"].caption
    found, edgeless = (next(row for row in rows_of(part, "blocks") if row["block"] == block) for block in ("ffn", "qk"))
    assert (edgeless["χ̂ (95%)"], edgeless["χ̂ high"]) == ("", "")
    assert float(edgeless["χ̂ low"]) == pytest.approx(41.3, abs=0.1)
    assert float(found["χ̂ low"]) < float(found["χ̂ (95%)"]) < float(found["χ̂ high"])
    assert (float(found["r̂_s low"]), float(found["r̂_s high"])) == (0.1, 0.4)


def test_line_checks_and_joint_multiples_have_a_table(part: Part) -> None:
    rows = {(row["block"], row["directions"]): row for row in shown(part, "lines") if row["optimizer"] == "muon"}
    assert {directions for _, directions in rows} == {"sharp", "non-sharp"}
    assert "by groups, sharp and non-sharp: joint multiples" in part.view["tables"]["lines"].caption
    assert rows["ffn", "non-sharp"]["quadratic"] == "edge is nearer"
    assert rows["emb", "non-sharp"]["quadratic"] == "edge is farther"
    assert rows["emb", "sharp"]["quadratic"] == "holds"
    assert rows["qk", "non-sharp"]["quadratic"] == "–"
    assert [float(row["joint"]) for row in rows_of(part, "lines") if row["block"] == "emb"][:2] == [0.5, 2.0]


def test_a_block_whose_sharp_directions_have_no_edge_has_no_ratio() -> None:
    edgeless = (Band("1–10%", 1e-2, None), Band("10–40%", 1e-2, 2.0), Band("40–100%", 1e-2, 8.0))
    found = make_steps(optimizers={"muon": make_optimizer("muon", blocks={"qk": edgeless})})
    (row,) = shown(part_of(found), "blocks")
    assert (row["χ̂ (95%)"], row["premise"]) == ("–", "no edge found")
    told = describe("steps", found)["optimizers"]["muon"]["blocks"]["qk"]
    assert (told["implied_ratio"], told["implied_first_ratio"], told["premise"]) == (None, None, "no edge")


def test_the_critical_table_has_every_set_and_what_curvature_says(part: Part) -> None:
    rows = [row for row in shown(part, "critical") if row["optimizer"] == "muon"]
    assert [row["on"] for row in rows] == ["on its own batch", "held out", "by curvature"]
    assert rows[1]["step / critical (95%)"] == "0.500 (0.469 to 0.534)"
    assert rows[1]["found"] == "4 of 4"
    assert rows[2]["step / critical (95%)"] == "–"
    assert rows[2]["critical step (95%)"].startswith("1.85 (")
    held_out = next(row for row in rows_of(part, "critical") if row["on"] == "held out")
    assert float(held_out["critical step (95%) low"]) == pytest.approx(
        1.0 / float(held_out["step / critical (95%) high"])
    )


def test_a_batch_without_a_critical_step_is_in_words() -> None:
    critical = {"held out": make_critical(0.0, 2.0)}
    found = make_steps(optimizers={"muon": make_optimizer("muon", critical=critical, critical_only=True)})
    (row,) = shown(part_of(found), "critical")
    assert row["step / critical (95%)"] == "every step raises the loss on 1 of 2 batches"
    assert row["found"] == "1 of 2"


def test_critical_steps_alone_have_one_table_and_one_figure() -> None:
    one = make_optimizer("muon", critical_only=True)
    part = part_of(make_steps(optimizers={"muon": one}))
    assert [name for name, table in part.view["tables"].items() if table is not None] == ["critical"]
    assert list(part.figures) == ["critical-1"]
    assert "by curvature" not in [row["on"] for row in shown(part, "critical")]
    assert part.view["runs"][0]["command"] == ""


def traces(figure: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if trace.get("name") == name]


def test_each_block_has_a_figure_of_its_optima(steps: Steps) -> None:
    drawings = {one.title: one for one in draw_profiles(1, steps)}
    assert list(drawings) == ["emb", "qk", "ffn", "out"]
    assert [one.name for one in drawings.values()] == [f"profile-1-{place}" for place in range(1, 5)]
    figure = drawings["ffn"].figure
    assert figure["layout"]["xaxis"]["ticktext"] == ["rank 1", "2–4", "5–8", "1–10%", "10–40%", "40–100%"]
    assert figure["layout"]["yaxis"]["type"] == "log"
    own, edges = traces(figure, "muon")
    rows = [row.optimum for row in steps.optimizers["muon"].rows if row.block == "ffn"]
    optima = [one for one in rows if one is not None]
    assert own["y"] == pytest.approx([one.value for one in optima], rel=1e-5)
    assert own["error_y"]["array"] == pytest.approx([one.high - one.value for one in optima], rel=1e-4)
    assert own["error_y"]["arrayminus"] == pytest.approx([one.value - one.low for one in optima], rel=1e-4)
    assert edges["y"] == pytest.approx([2.0 * one.value for one in optima], rel=1e-5)
    (line,) = figure["layout"]["shapes"]
    assert line["y0"] == line["y1"] == 1
    # Optimizers are told by dash and marker beside colour, and do not cover one another.
    other = traces(figure, "soap")[0]
    for key in ("dash", "color"):
        assert own["line"][key] != other["line"][key]
    assert own["marker"]["symbol"] != other["marker"]["symbol"]
    assert not set(own["x"]) & set(other["x"])


def test_bands_without_an_edge_are_marked_and_so_are_those_that_raise_the_loss(steps: Steps) -> None:
    qk, out = (one.figure for one in draw_profiles(1, steps) if one.title in ("qk", "out"))
    own, _, marks = traces(qk, "muon")
    assert own["y"][-2:] == [None, None]
    assert marks["x"] == own["x"][-2:]
    assert marks["marker"]["symbol"] == "triangle-up-open"
    assert [text.partition(":")[2] for text in marks["customdata"]] == [" no edge found"] * 2
    top = 10.0 ** qk["layout"]["yaxis"]["range"][1]
    assert max(value for value in own["y"] if value) < marks["y"][0] < top
    raising = traces(out, "muon")[-1]
    assert raising["marker"]["symbol"] == "triangle-down"
    told = interval_text(steps.optimizers["muon"].rows[-1].optimum)
    assert raising["customdata"] == [f"40–100%: {told} × the step taken"]
    assert len(traces(qk, "no edge found")) == len(traces(out, "raises the loss")) == 1
    assert not traces(out, "no edge found")


def test_alternative_texts_have_the_numbers(steps: Steps, part: Part) -> None:
    qk = part.view["runs"][0]["profiles"][1].summary
    assert qk.startswith(
        "qk: own optimum of every band, in multiples of the step taken, with 95% intervals. muon at 0.0078: "
    )
    first = steps.optimizers["muon"].rows[5].optimum
    assert f"rank 1: {interval_text(first)}; ranks 2–4: " in qk
    assert "10–40%: no edge found; 40–100%: no edge found. soap at 0.0078: " in qk
    critical = part.view["runs"][0]["critical"].summary
    assert critical.startswith(
        "Critical step in multiples of the step taken, with 95% intervals. muon at 0.0078: on its own "
    )
    assert "held out 2.00 (1.87 to 2.13); by curvature 1.85 (" in critical


def test_an_interval_that_reaches_far_does_not_stretch_the_axis() -> None:
    bands = (Band("1–10%", 1e-2, 2.0), Band("40–100%", 1e-2, 5.0, noise=2.0))
    ends = []
    for seed in (61, 198):  # of those whose curvature is just told from zero
        found = make_steps(optimizers={"muon": make_optimizer("muon", blocks={"ffn": bands}, seed=seed)})
        optimum = found.optimizers["muon"].rows[1].optimum
        assert optimum is not None
        assert optimum.high > 100.0 * optimum.value
        (drawing,) = draw_profiles(1, found)
        ends.append(10.0 ** drawing.figure["layout"]["yaxis"]["range"][1] / optimum.value)
        assert traces(drawing.figure, "muon")[0]["error_y"]["array"][1] > 0.0
        assert interval_text(optimum) in drawing.summary
    assert max(ends) < 30.0 * 1.5 * 1.6 * 1.31


def test_the_critical_figure_marks_every_batch_and_every_end(steps: Steps) -> None:
    sets = {"own batch": make_critical(2.0, 2.2), "held out": make_critical(0.0, float("inf"))}
    one = make_optimizer("muon", critical=sets, critical_only=True)
    drawing = draw_critical(1, make_steps(optimizers={"muon": one}))
    assert drawing is not None
    figure = drawing.figure
    _, mean, _, batches = traces(figure, "on its own batch")
    assert mean["x"] == [pytest.approx(np.sqrt(2.0 * 2.2 * (1.0 - 0.02**2)), rel=1e-5)]  # of both ends of both brackets
    assert batches["x"] == pytest.approx([2.0, 2.2])
    held_out = traces(figure, "held out")[-1]
    assert held_out["marker"]["symbol"] == ["triangle-left", "triangle-right"]
    assert "held out every step raises the loss on 1 of 2 batches" in drawing.summary


def test_runs_stand_below_one_another() -> None:
    part = part_of(make_steps(name="gpt-500", step=500), make_steps())
    assert [run["label"] for run in part.view["runs"]] == ["gpt-500", "gpt-5000"]
    assert [label for label, _ in part.leads] == ["gpt-500", "gpt-5000"]
    assert {name.split("-")[1] for name in part.figures} == {"1", "2"}
    assert len(part.figures) == 2 * 5
    assert {row["checkpoint"] for row in shown(part, "bands")} == {"gpt-500", "gpt-5000"}
    assert [label for label, _ in part_of(make_steps()).leads] == [""]


def test_programs_get_every_number(steps: Steps) -> None:
    told = json.loads(json.dumps(describe("steps", steps), allow_nan=False))
    assert (told["batch_tokens"], told["num_batches"], told["loss"]) == (16_384, 32, 1.4721)
    muon, one = told["optimizers"]["muon"], steps.optimizers["muon"]
    assert (muon["lr"], muon["lr_source"], muon["state"]) == (2.0**-7, "given", "warm")
    assert muon["state_lines"] == ["warmed on 50 batches at fixed parameters"]
    assert [row["name"] for row in muon["bands"]] == [row.name for row in one.rows]
    row = one.rows[0]
    assert row.optimum is not None
    assert muon["bands"][0]["optimum"] == {
        "value": row.optimum.value,
        "stderr": row.optimum.stderr,
        "low": row.optimum.low,
        "high": row.optimum.high,
    }
    assert muon["bands"][0]["excess"]["value"] == pytest.approx(row.gain.value - row.curvature.value)
    edgeless = next(found for found in muon["bands"] if (found["block"], found["name"]) == ("qk", "40–100%"))
    assert edgeless["optimum"] is None
    assert edgeless["edge"] is None
    groups = {(found["block"], found["part"]): found["answer"] for found in muon["groups"]}
    assert (groups["emb", "sharp"], groups["qk", "flat"]) == ("fails", "no edge")
    ratio = one.implied_ratio("ffn")
    assert ratio is not None
    assert muon["blocks"]["ffn"]["implied_ratio"]["value"] == ratio.value
    assert muon["blocks"]["ffn"]["premise"] == "holds"
    qk, first = muon["blocks"]["qk"], one.implied_first_ratio("qk")
    assert first is not None
    assert set(qk) == {"implied_ratio", "implied_first_ratio", "premise", "implied_sharp_share"}
    assert (qk["implied_ratio"]["value"], qk["implied_ratio"]["high"], qk["premise"]) == (None, None, "holds")
    assert qk["implied_ratio"]["low"] == pytest.approx(41.3, abs=0.1)
    assert qk["implied_sharp_share"] is None
    assert qk["implied_first_ratio"] == {
        "value": first.value,
        "stderr": first.stderr,
        "low": first.low,
        "high": first.high,
    }
    assert muon["blocks"]["emb"]["implied_first_ratio"] is None  # no band of it is the first of a matrix
    assert muon["critical"]["held out"]["low"] == one.critical["held out"].low.tolist()
    assert muon["critical"]["held out"]["found"] == [True] * 4
    assert muon["whole_optimum"]["value"] == one.whole.value  # type: ignore[union-attr]
    assert muon["joint"]["ridge"] == 0.1
    assert len(muon["joint"]["curvatures"]) == 8
    assert {check["answer"] for check in muon["joint"]["checks"]} == {"holds", "edge is nearer", "edge is farther"}
    assert told["signal"]["ffn"] == {"share": 0.31, "random": 0.01, "num_directions": 104}
    assert told["products"] == {"bands": 20.0, "joint optimum": 24.0}
    assert set(told["implied_settings"]) == {"muon-lite", "soap-lite"}
    assert told["replay_command"].startswith(
        "lite-probe replay runs/gpt/ckpt.pt --data val.bin --optimizers muon,muon-lite"
    )
    assert {claim["status"] for claim in told["claims"]} == {"holds", "open", "fails"}


def test_programs_get_null_where_nothing_was_measured() -> None:
    one = make_optimizer("muon", critical_only=True, critical={"held out": make_critical(float("inf"))})
    told = json.loads(json.dumps(describe("steps", make_steps(optimizers={"muon": one})), allow_nan=False))
    muon = told["optimizers"]["muon"]
    assert (muon["whole_optimum"], muon["joint"], muon["bands"], muon["blocks"]) == (None, None, [], {})
    assert muon["critical"]["held out"]["edge_ratio"] is None
    assert (told["implied_settings"], told["replay_command"], told["claims"]) == ({}, None, [])


def test_names_of_many_bands_are_tilted(steps: Steps) -> None:
    many = {"ffn": tuple(Band(name, 1e-2, 2.0) for name in (*RANKED[:3], *SHARED))}
    found = make_steps(optimizers={"muon": make_optimizer("muon", blocks=many)})
    assert draw_profiles(1, found)[0].figure["layout"]["xaxis"]["tickangle"] == -40
    assert {one.figure["layout"]["xaxis"]["tickangle"] for one in draw_profiles(1, steps)} == {0}


def test_unlike_batches_have_an_interval_with_two_ends() -> None:
    critical = {"held out": make_critical(0.4, 20.0, 30.0, 40.0)}
    found = make_steps(optimizers={"muon": make_optimizer("muon", critical=critical, critical_only=True)})
    (row,) = shown(part_of(found), "critical")
    assert row["critical step (95%)"] == "9.9 (0.32 to 310)"
    drawing = draw_critical(1, found)
    assert drawing is not None
    assert drawing.summary.endswith("held out 9.9 (0.32 to 310).")

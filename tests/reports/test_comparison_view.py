"""What is said and drawn of a comparison."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.comparison import comparison_object, comparison_part, summarize_comparison
from lite_probe.reports.sections.comparison_verdict import judge_comparison
from lite_probe.reports.sections.section import Grid, Line, describe
from lite_probe.reports.view import list_tables, make_view
from lite_probe.results.comparison import Comparison, compare_results
from lite_probe.results.thresholds import decide_thresholds, parse_threshold
from tests.reports.compared import make_comparison, make_results
from tests.reports.training_results import make_training

HOSTILE = "<img src=x onerror=alert(1)>|{{7*7}}"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison()


def lead(*results: dict[str, Any]) -> str:
    return judge_comparison(compare_results([(f"at-{place}", one) for place, one in enumerate(results)])).lead


def test_the_lead_says_who_ends_lowest_where(comparison):
    assert judge_comparison(comparison).lead == (
        "muon-lite ends lowest at early, below muon, soap and soap-lite; soap ends lowest at late, below muon, "
        "muon-lite and soap-lite (paired over 4 seeds, 12 comparisons corrected together). "
        "λ₁ falls from 38.2 at early to 20.0 at late."
    )


def test_the_lead_says_where_nobody_does():
    said = judge_comparison(make_comparison(gains={"soap": 4e-4})).lead
    assert "; at late nobody ends lowest: muon-lite and soap cannot be told apart (paired" in said


def test_the_lead_says_all_and_both():
    results = [make_results(f"c{place}", place, gains={"muon-lite": 1e-3}) for place in range(3)]
    assert lead(*results).startswith("muon-lite ends lowest at all 3 checkpoints, below muon, soap and soap-lite (")
    assert lead(*results[:2]).startswith("muon-lite ends lowest at both checkpoints, below")
    assert lead(results[0]).startswith("muon-lite ends lowest at at-0, below")


def test_the_lead_claims_nothing_of_one_seed():
    said = lead(make_results("a", 1, seeds=1), make_results("b", 2, seeds=1))
    assert said.startswith("At both checkpoints nobody is told from the rest. One seed has no error, so that no differ")


def test_the_lead_does_without_a_replay():
    spectra = [{"spectrum": make_results(f"c{place}", place)["spectrum"]} for place in range(2)]
    assert lead(*spectra) == "Nothing here was measured at two checkpoints under two optimizers, or has moved."


def test_numbers_are_those_of_the_single_runs():
    early, late = make_results(), make_results("late", 200)
    printed = comparison_object(compare_results([("early", early), ("late", late)]))
    for found, results in zip(printed["checkpoints"], (early, late), strict=True):
        replay, steps = (describe(kind, results[kind]) for kind in ("replay", "steps"))
        spectrum = describe("spectrum", results["spectrum"])
        for name, one in found["optimizers"].items():
            for quantity in (
                "lr",
                "loss_change",
                "flat_progress",
                "sharp_progress",
                "isotropy",
                "directional_sharpness",
            ):
                assert one[quantity] == replay["optimizers"][name][quantity]
        for name in steps["optimizers"]:
            own = steps["optimizers"][name]["critical"]["held out"]["edge_ratio"]
            assert found["optimizers"][name]["edge_ratio"] == own
        assert found["landscape"]["lambda_1"]["value"] == spectrum["eigenvalues"][0]
        assert found["landscape"]["trace"] == spectrum["trace"]
        pairs = {
            (one["first"]["subject"], one["second"]["subject"]): one
            for one in printed["differences"]
            if one["question"] == "of final losses" and one["first"]["checkpoint"] == found["name"]
        }
        assert len(pairs) == 6
        for (first, second), one in pairs.items():
            own = replay["differences"][f"{first} - {second}"]
            assert {key: one[key] for key in ("value", "stderr", "low", "high")} == own


def test_the_object_is_plain_and_has_its_version(comparison):
    printed = comparison_object(comparison)
    assert json.loads(json.dumps(printed, allow_nan=False)) == printed
    assert (printed["format"], printed["schema_version"]) == ("lite-probe comparison", 1)
    assert [one["winner"] for one in printed["checkpoints"]] == ["muon-lite", "soap"]
    claims = {one["sentence"]: one for one in printed["claims"]}
    assert len(claims) == len(printed["claims"]) == len(printed["differences"])
    said = next(one for one in claims.values() if one["sentence"].startswith("soap ends") and "late" in one["sentence"])
    assert (said["status"], said["comparisons"], said["covers"]) == ("holds", 12, "4 seeds") or said[
        "status"
    ] == "fails"


def test_claims_say_what_moves(comparison):
    said = {claim.sentence.partition(" (")[0]: claim for claim in judge_comparison(comparison).claims}
    assert said["λ₁ falls by 18.2100 loss/param² from early to late"].covers == "residuals"
    assert any(one.startswith("trace falls by 247 loss/param² from early to late") for one in said)
    assert any(one.startswith("soap's flat progress rises by 0.007") for one in said)
    moved = next(
        claim for sentence, claim in said.items() if sentence.startswith("muon's critical lr changes by a factor")
    )
    assert (moved.covers, moved.status) == ("4 training batches", "open")
    assert moved.sentence.endswith("not beyond the error.")


def test_tables_have_a_row_per_checkpoint_and_four_optimizers_beside_one_another(comparison):
    blocks = summarize_comparison(comparison)
    first = blocks[0]
    assert isinstance(first, Line)
    assert first.text == judge_comparison(comparison).lead
    grids = [block for block in blocks if isinstance(block, Grid)]
    assert [list(grid.header) for grid in grids] == [
        ["checkpoint", "loss", "λ₁", "trace", "anisotropy", "ends lowest"],
        ["loss change", "muon", "muon-lite", "soap", "soap-lite"],
        ["flat progress", "muon", "muon-lite", "soap", "soap-lite"],
        ["sharp progress", "muon", "muon-lite", "soap", "soap-lite"],
        ["edge ratio", "muon", "soap"],
    ]
    assert [row[0] for row in grids[1].rows] == ["early", "late"]
    assert [row[-1] for row in grids[0].rows] == ["muon-lite", "soap"]
    names = ("adamw", "muon", "muon-lite", "soap", "soap-lite")
    more = [block for block in summarize_comparison(make_of(names)) if isinstance(block, Grid)]
    assert [list(grid.header) for grid in more[1:3]] == [["loss change", *names[:4]], ["loss change", "soap-lite"]]


def make_of(names: tuple[str, ...]) -> Comparison:
    asked: dict[str, Any] = {"optimizers": names}
    return compare_results([("early", make_results(**asked)), ("late", make_results("late", 200, **asked))])


def test_who_diverged_is_said_in_the_table():
    lost = tuple(("soap", seed, 3) for seed in range(4))
    grids = [block for block in summarize_comparison(make_comparison(diverged=lost)) if isinstance(block, Grid)]
    assert grids[1].rows[1][3] == "diverged"


def test_a_threshold_is_told(comparison):
    asked = [parse_threshold("muon.loss_change > muon-lite.loss_change", comparison.optimizers, comparison.labels)]
    found = decide_thresholds(asked, comparison)
    lines = [block.text for block in summarize_comparison(comparison, found) if isinstance(block, Line)]
    told = [line for line in lines if line.startswith("threshold")]
    assert told[0].startswith(
        "threshold missed: muon.loss_change > muon-lite.loss_change at early (left minus right 0.00"
    )
    printed = comparison_object(comparison, found)["thresholds"]
    assert [one["status"] for one in printed] == ["missed", "missed"]
    assert printed[0]["claim"]["status"] == "holds"


def test_there_is_a_picture_per_quantity_and_its_traces_say_whose_they_are(comparison):
    figures = comparison_part(comparison).figures
    assert {name.removeprefix("comparison-") for name in figures} == {
        *("lambda-1", "trace", "anisotropy", "gradient-share", "block-lambda-1", "loss-change", "flat-progress"),
        *("sharp-progress", "critical-lr", "edge-ratio", "chi-1", "chi-3"),
    }
    changes = figures["comparison-loss-change"]["data"]
    assert [trace["meta"] for trace in changes] == [{"optimizer": name} for name in comparison.optimizers]
    muon = [comparison.at(label).entries["muon"].values["loss_change"] for label in comparison.labels]
    # Series stand beside one another, 1.2% of the axis apart.
    assert [trace["x"] for trace in changes] == [[98.2, 198.2], [99.4, 199.4], [100.6, 200.6], [101.8, 201.8]]
    assert figures["comparison-lambda-1"]["data"][0]["x"] == [100, 200]
    assert changes[0]["y"] == pytest.approx([one.value for one in muon], rel=1e-5)
    assert changes[0]["error_y"]["array"] == pytest.approx([one.high - one.value for one in muon], rel=1e-5)
    assert changes[0]["error_y"]["arrayminus"] == pytest.approx([one.value - one.low for one in muon], rel=1e-5)
    blocks = figures["comparison-chi-1"]["data"]
    assert {"block": "ffn"} in [trace["meta"] for trace in blocks]


def test_checkpoints_without_a_step_stand_side_by_side():
    found = compare_results([("a", make_results("a", None)), ("b", make_results("b", 200))])
    figure = comparison_part(found).figures["comparison-lambda-1"]
    assert figure["layout"]["xaxis"]["ticktext"] == ["a", "b"]
    assert figure["data"][0]["x"] == [0, 1]


def test_one_checkpoint_is_a_table_without_pictures():
    part = comparison_part(compare_results([("early", make_results())]))
    assert part.figures == {}
    assert len(part.view["tables"]["outcome"].rows) == 4


def test_a_page_of_several_runs_begins_with_the_comparison():
    gains = {"muon-lite": 1e-3}
    runs = [Run(**make_results(name, step, gains=gains)) for name, step in (("late", 200), ("early", 100))]
    view = make_view(runs)
    assert next(iter(view.parts)) == "comparison"
    text = render_page(runs)
    assert "muon-lite ends lowest at both checkpoints" in text
    assert text.index('id="comparison"') < text.index('id="replay"')
    assert "How to read this." in text
    assert "comparison" not in make_view(runs[:1]).parts


def test_a_page_of_runs_that_cannot_be_compared_says_why():
    early, late = make_results(), make_results("late", 200)
    late["replay"] = replace(late["replay"], ramp=3)
    view = make_view([Run(**early), Run(**late)])
    assert "comparison" not in view.parts
    message, code, _ = view.notes[-1]
    assert code == "not-compared"
    assert "ramp of the replay: 0 at early, 3 at late" in message


def test_names_that_are_markup_are_text():
    results = []
    for name, step in ((HOSTILE, 1), (f"{HOSTILE}!", 2)):
        found = make_results(name, step)
        replay = found["replay"]
        recipes = {HOSTILE if key == "muon" else key: one for key, one in replay.recipes.items()}
        runs = tuple(replace(run, optimizer=HOSTILE) if run.optimizer == "muon" else run for run in replay.runs)
        found["replay"] = replace(replay, recipes=recipes, runs=runs, sweeps={}, theory={}, landscape=None)
        results.append(Run(**found))
    text = render_page(results)
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "49|" not in text


def test_training_runs_are_told_and_printed():
    found = compare_results([(name, {"training": make_training()}) for name in ("a", "b")])
    verdict = judge_comparison(found)
    assert verdict.lead == "2 training runs on the same batches."
    assert verdict.points[0].text == (
        "Along a: λ₁ from 10.0 at step 0 to 210 at step 200; steps of at most 0.51 of the critical one, at step 0."
    )
    printed = comparison_object(found)["training"]
    assert printed[0]["lambda_1"][1] == {"step": 100, "value": 110.0, "stderr": 0.0, "low": 109.95, "high": 110.05}


def test_a_page_lists_the_comparison_first_among_its_tables():
    runs = [Run(**make_results(name, step)) for name, step in (("early", 100), ("late", 200))]
    assert [table.name for table in list_tables(runs)][:2] == ["comparison", "comparison-landscape"]


def test_the_page_of_a_comparison_has_nothing_of_one_checkpoint_alone():
    runs = [Run(**make_results(name, step)) for name, step in (("early", 100), ("late", 200))]
    view = make_view(runs, is_comparison=True)
    assert list(view.parts) == ["comparison"]
    assert view.provenance[0].name == "provenance"
    assert list(make_view(runs[:1], is_comparison=True).parts) == ["comparison"]
    assert 'id="replay-1"' not in render_page(runs, is_comparison=True)


def test_numbers_that_take_much_room_have_one_digit_of_their_error():
    found = compare_results([(f"c{place}", make_results(f"c{place}", place, seeds=6)) for place in range(2)])
    (grid,) = [
        one for one in summarize_comparison(found) if isinstance(one, Grid) and one.header[0] == "sharp progress"
    ]
    assert grid.rows[0][1:] == ["(4.3±0.1)e-4", "(3.83±0.09)e-4", "(3.4±0.1)e-4", "(3.19±0.08)e-4"]


def test_a_long_trajectory_is_told_by_its_ends():
    found = compare_results([(f"c{place}", make_results(f"c{place}", 1000 * place)) for place in range(4)])
    points = judge_comparison(found).points
    assert all(point.is_detail for point in points if "more progress than" in point.text)
    two = judge_comparison(make_comparison()).points
    assert any(not point.is_detail for point in two if "more progress than" in point.text)


def test_the_first_screen_leaves_a_long_table_to_the_comparison():
    runs = [Run(**make_results(f"c{place}", place)) for place in range(4)]
    assert make_view(runs[:3], is_comparison=True).overview.outcome is not None
    assert make_view(runs, is_comparison=True).overview.outcome is None

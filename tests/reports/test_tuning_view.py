"""A tuning as a page and programs get it: tables, CSV, figures with their words, one object."""

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.replay_figures import draw_progress
from lite_probe.reports.sections.section import Part, describe
from lite_probe.reports.sections.tuning import SECTION
from lite_probe.reports.sections.tuning_figures import draw_convergence, draw_damping, draw_gaps, draw_ratios
from lite_probe.reports.sections.tuning_settings import config_lines, optimizer_call, replay_command
from lite_probe.results.tuning import Tuning
from tests.reports.fixtures import make_replay
from tests.reports.tuning_results import POOLED_LOSS, RATIOS, diverging, make_test, make_tuning


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return make_tuning(replay=make_test())


@pytest.fixture(scope="module")
def part(tuning: Tuning) -> Part:
    return part_of(tuning)


def part_of(*measured: Tuning) -> Part:
    return SECTION.part([(one.provenance.checkpoint_name, one) for one in measured])


def rows_of(part: Part, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(part.view["tables"][name].csv)))


def shown(part: Part, name: str) -> list[dict[str, str]]:
    table = part.view["tables"][name]
    return [{column.title: cell.text for column, cell in zip(table.columns, row, strict=True)} for row in table.rows]


def traces(figure: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if trace.get("name") == name]


def test_blocks_have_tuned_and_pooled_settings_side_by_side(tuning: Tuning, part: Part) -> None:
    rows = {row["block"]: row for row in shown(part, "blocks")}
    assert list(rows) == list(RATIOS)
    assert rows["qk"] == {
        "block": "qk",
        "χ (over nodes)": "6.10 (4.88 to 7.32)",
        "y sharp": "1.30",
        "y rest": "7.93",
        "r_s": "0.100",
        "β₂ alone": "0.700",
        "χ pooled": "6.41",
        "y sharp pooled": "1.30",
        "y rest pooled": "7.93",
    }
    assert (rows["emb"]["r_s"], rows["out"]["β₂ alone"]) == ("–", "–")
    found = {row["block"]: row for row in rows_of(part, "blocks")}
    assert float(found["qk"]["χ low"]) == tuning.tuned.blocks[1].ratio_low
    assert float(found["qk"]["χ high"]) == tuning.tuned.blocks[1].ratio_high
    assert part.view["tables"]["blocks"].caption == (
        "Recommended settings by block, for 16,384 tokens a batch, with β₂ = 0.850 for all."
    )
    tones = {row[0].text: row[2].tone for row in part.view["tables"]["blocks"].rows}
    assert [block for block, tone in tones.items() if tone == "caution"] == ["emb", "out"]


def test_candidates_have_differences_to_the_base_and_to_the_tuned_settings(tuning: Tuning, part: Part) -> None:
    replay = tuning.replay
    assert replay is not None
    rows = {row["optimizer"]: row for row in rows_of(part, "candidates")}
    assert list(rows) == list(replay.optimizers)
    published = rows["muon-lite@published"]
    for title, one in (
        ("ΔL", replay.loss_change("muon-lite@published")),
        ("minus base", replay.difference("muon-lite@published", "muon")),
        ("tuned minus it", replay.difference("muon-lite@tuned", "muon-lite@published")),
    ):
        assert one is not None
        assert float(published[f"{title} (nats)"]) == one.value
        assert float(published[f"{title} error (nats)"]) == pytest.approx(one.high - one.value)
    assert rows["muon"]["minus base (nats)"] == rows["muon-lite@tuned"]["tuned minus it (nats)"] == ""
    assert [row["settings"] for row in rows.values()] == [
        "the base",
        "LITE’s published defaults",
        "χ of the step profile alone",
        "the tuned settings",
        "the pooled solution",
    ]
    assert [row["tuned is"] for row in rows.values()] == ["below", "below", "below", "", "not told"]


def test_a_candidate_that_diverged_has_no_numbers() -> None:
    lost = diverging(make_test(seeds=2), "muon-lite@profile", 0, 1)
    (row,) = [one for one in shown(part_of(make_tuning(replay=lost)), "candidates") if "profile" in one["optimizer"]]
    assert (row["ΔL"], row["minus base"], row["tuned minus it"], row["tuned is"]) == ("–", "–", "–", "–")
    assert row["seeds"] == "0 of 2"
    drawing = draw_gaps("gaps-1", make_tuning(replay=lost))
    assert drawing is not None
    assert "χ of the step profile alone" not in drawing.summary


def test_methods_have_what_they_took_and_when_they_arrived(part: Part) -> None:
    rows = {row["method"]: row for row in shown(part, "methods")}
    assert list(rows) == ["sparkle gt/ed, chosen", "sparkle ed/ed", "dsoba-so"]
    assert rows["sparkle gt/ed, chosen"]["within 1% from step"] == "480"
    assert rows["sparkle gt/ed, chosen"]["gap to pooled"] == "<0.01%"
    assert rows["dsoba-so"]["within 1% from step"] == "not reached"
    assert rows["dsoba-so"]["gap to pooled"] == "3.00%"
    assert (rows["dsoba-so"]["gradients"], rows["dsoba-so"]["floats sent"]) == ("6,000", "640,000")
    assert part.view["tables"]["methods"].caption.endswith("the pooled solution’s upper loss is −0.04120 nats.")


def test_groups_have_their_curvature_and_damping(tuning: Tuning, part: Part) -> None:
    rows = rows_of(part, "groups")
    assert len(rows) == 2 * len(RATIOS) + 1
    first = rows[0]
    assert (first["block"], first["directions"]) == ("emb", "sharp")
    assert float(first["curvature"]) == pytest.approx(tuning.models.curvatures[:, 0, 0].mean())
    assert float(first["damping eˣ"]) == pytest.approx(np.exp(tuning.damping_logs[0, 0]))
    assert float(first["pooled damping"]) == pytest.approx(np.exp(tuning.pooled_damping_logs[0]))
    assert float(first["least over nodes"]) == tuning.alone[:, 0].min()
    assert (rows[-1]["block"], rows[-1]["directions"], rows[-1]["multiple"]) == ("norm", "non-sharp", "")


def test_damping_is_drawn_against_curvature(tuning: Tuning) -> None:
    drawing = draw_damping("damping-1", tuning)
    assert drawing is not None
    assert drawing.figure["layout"]["xaxis"]["type"] == drawing.figure["layout"]["yaxis"]["type"] == "log"
    (own,), (pooled,) = traces(drawing.figure, "qk"), traces(drawing.figure, "qk, pooled")
    assert own["x"] == pooled["x"] == pytest.approx(np.diag(tuning.models.curvatures[0])[2:4], rel=1e-5)
    assert own["y"] == pytest.approx(np.exp(tuning.damping_logs[0, 2:4]), rel=1e-5)
    assert pooled["y"] == pytest.approx(np.exp(tuning.pooled_damping_logs[2:4]), rel=1e-5)
    # Pooled markers are hollow; sharp groups are larger; blocks differ in colour and shape.
    assert pooled["marker"]["symbol"] == f"{own['marker']['symbol']}-open"
    assert own["marker"]["size"][0] > own["marker"]["size"][1]
    (other,) = traces(drawing.figure, "vo")
    assert all(own["marker"][key] != other["marker"][key] for key in ("color", "symbol"))
    assert "qk sharp: damping 0.111 at curvature 0.552, pooled 0.122." in drawing.summary


def test_what_has_no_place_on_the_axes_stands_at_their_edge(tuning: Tuning) -> None:
    curvatures = tuning.models.curvatures.copy()
    curvatures[:, 0, 0] = -0.3
    odd = replace(
        tuning,
        models=replace(tuning.models, curvatures=curvatures),
        damping_logs=np.full_like(tuning.damping_logs, -12.0),
        pooled_damping_logs=np.full_like(tuning.pooled_damping_logs, 12.0),
    )
    drawing = draw_damping("damping-1", odd)
    assert drawing is not None
    (own,), (pooled,) = traces(drawing.figure, "emb"), traces(drawing.figure, "emb, pooled")
    low, _ = drawing.figure["layout"]["xaxis"]["range"]
    assert 10.0**low < own["x"][0] < own["x"][1]
    assert (own["y"], pooled["y"]) == ([1e-3, 1e-3], [1e3, 1e3])
    assert "emb sharp: damping 6.14 × 10⁻⁶ at curvature −0.300, pooled" in drawing.summary.replace("\u00a0", " ")


def test_ratios_are_drawn_with_their_spread(tuning: Tuning) -> None:
    drawing = draw_ratios("ratios-1", tuning)
    assert drawing is not None
    bars, marks = traces(drawing.figure, "tuned")
    assert marks["x"] == pytest.approx([one.ratio for one in tuning.tuned.blocks])
    assert bars["x"][3:5] == pytest.approx([4.88, 7.32])
    profile = traces(drawing.figure, "step profile alone")[-1]
    assert profile["x"] == [8.0, 2.5]
    assert "tuned: emb 1.00 (1.00 to 1.20); qk 6.10 (4.88 to 7.32);" in drawing.summary
    assert drawing.summary.endswith("step profile alone: qk 8.00; ffn 2.50.")


def test_convergence_is_drawn_against_either_cost(tuning: Tuning) -> None:
    for by_floats in (False, True):
        drawing = draw_convergence("convergence-1", tuning, by_floats=by_floats)
        assert drawing is not None
        chosen, other, biased = drawing.figure["data"]
        method = tuning.methods[0]
        costs = method.floats if by_floats else method.gradients
        assert chosen["x"] == costs[1:].tolist()  # what cost nothing has no place on a logarithmic axis
        gaps = np.abs(method.upper_loss / POOLED_LOSS - 1.0)[1:]
        assert chosen["y"] == pytest.approx(np.maximum(gaps, 1e-6), rel=1e-4)
        assert chosen["name"] == "sparkle gt/ed, chosen"
        assert chosen["line"]["width"] > max(other["line"]["width"], biased["line"]["width"])
        assert "dsoba-so: 0.030 at the end, not within 1%." in drawing.summary
        assert "sparkle gt/ed: 4.5" in drawing.summary


def test_methods_that_diverged_are_not_drawn(tuning: Tuning) -> None:
    lost = tuple(replace(one, upper_loss=np.full(len(one.step), np.inf)) for one in tuning.methods)
    assert draw_convergence("convergence-1", replace(tuning, methods=lost), by_floats=False) is None
    some = replace(tuning, methods=(lost[0], *tuning.methods[1:]))
    drawing = draw_convergence("convergence-1", some, by_floats=False)
    assert drawing is not None
    assert not traces(drawing.figure, "sparkle gt/ed, chosen")
    assert shown(part_of(some), "methods")[0]["gap to pooled"] == "diverged"
    assert describe("tuning", some)["methods"][0]["upper_loss"][-1] is None


def test_gaps_are_paired_by_seed(tuning: Tuning) -> None:
    replay = tuning.replay
    drawing = draw_gaps("gaps-1", tuning)
    assert drawing is not None
    assert replay is not None
    band, mean = drawing.figure["data"][4:6]
    assert mean["name"] == "the tuned settings"
    found = replay.difference("muon-lite@tuned", "muon")
    assert found is not None
    assert mean["y"][-1] == pytest.approx(found.value, rel=1e-4)
    assert len(band["x"]) == 2 * len(mean["x"]) == 2 * 21
    assert draw_gaps("gaps-1", make_tuning()) is None


def test_a_page_without_a_replay_has_no_table_of_it() -> None:
    part = part_of(make_tuning())
    assert part.view["tables"]["candidates"] is None
    assert "gaps-1" not in part.figures
    assert set(part.figures) == {"damping-1", "ratios-1", "convergence-gradients-1", "convergence-floats-1"}
    told = json.loads(json.dumps(describe("tuning", make_tuning()), allow_nan=False))
    assert (told["replay"], told["claims"]) == (None, [])


@pytest.mark.parametrize("odd", [{"nodes": 2}, {"spread": 0.0}, {"ratios": {}}, {"lone": ()}])
def test_odd_tunings_have_a_page(odd: dict[str, Any]) -> None:
    found = make_tuning(replay=make_test(seeds=2), **odd)
    page = render_page([Run(tuning=found)])
    assert "The recommendation, for 16,384 tokens a batch" in page
    json.dumps(describe("tuning", found), allow_nan=False)


def test_a_page_has_the_recommendation_in_three_forms(tuning: Tuning) -> None:
    from html import unescape

    samples = [unescape(one) for one in re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page_of(tuning), re.DOTALL)]
    assert samples[:3] == [config_lines(tuning), optimizer_call(tuning), replay_command(tuning)]


def page_of(*measured: Tuning) -> str:
    return render_page([Run(tuning=one) for one in measured])


def test_names_from_files_stay_text() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    found = make_tuning(ratios={hostile: (2.0, 0.5)}, replay=make_test(seeds=2))
    named = replace(found, topology=hostile, shards=hostile, methods=(replace(found.methods[0], name=hostile),))
    assert hostile not in page_of(named)


def test_runs_stand_below_one_another(tuning: Tuning) -> None:
    part = part_of(make_tuning(name="gpt-500", step=500), tuning)
    assert [label for label, _ in part.leads] == ["gpt-500", "gpt-5000"]
    assert {name.rsplit("-", 1)[1] for name in part.figures} == {"1", "2"}
    assert {row["checkpoint"] for row in shown(part, "blocks")} == {"gpt-500", "gpt-5000"}
    assert {row["checkpoint"] for row in shown(part, "candidates")} == {"gpt-5000"}
    ids = re.findall(r' id="([^"]*)"', page_of(make_tuning(name="gpt-500", step=500), tuning).split("</script>", 1)[1])
    assert len(ids) == len(set(ids))


def test_programs_get_every_number(tuning: Tuning) -> None:
    told = json.loads(json.dumps(describe("tuning", tuning), allow_nan=False))
    assert (told["optimizer"], told["base"], told["batch_tokens"], told["num_nodes"]) == (
        "muon-lite",
        "muon",
        16_384,
        8,
    )
    assert told["settings"] == tuning.settings
    qk = tuning.tuned.blocks[1]
    assert told["tuned"]["blocks"]["qk"] == {
        "ratio": qk.ratio,
        "ratio_low": qk.ratio_low,
        "ratio_high": qk.ratio_high,
        "sharp": qk.sharp,
        "rest": qk.rest,
        "sharp_share": 0.1,
        "damping": 0.7,
    }
    assert told["heterogeneity"] == tuning.models.heterogeneity
    assert [one["within_one_percent_from"] for one in told["methods"]] == [480, 620, None]
    assert told["methods"][0]["floats"] == tuning.methods[0].floats.tolist()
    replayed = told["replay"]["optimizers"]
    assert replayed["muon"]["minus_base"] is None
    assert replayed["muon"]["answer"] == "holds"
    assert replayed["muon-lite@tuned"]["answer"] is None
    assert told["replay"]["profile_ratios"] == {"qk": 8.0, "ffn": 2.5}
    assert told["replay_command"] == replay_command(tuning)
    assert [one["status"] for one in told["claims"]] == ["holds", "holds", "holds", "open"]
    assert told["claims"][0]["sentence"] in told["lead"]


def test_labelled_optimizers_of_a_replay_have_room() -> None:
    """Names behind @ are longer than a bar is wide, and are no part of identifiers."""
    labelled = draw_progress("progress-1", make_test(seeds=2))
    assert labelled is not None
    assert labelled.figure["layout"]["xaxis"]["tickangle"] == -30
    plain = draw_progress("progress-1", make_replay())
    assert plain is not None
    assert plain.figure["layout"]["xaxis"]["tickangle"] == 0
    page = render_page([Run(replay=make_test(seeds=2))]).split("</script>", 1)[1]
    assert not [one for one in re.findall(r' (?:id|download|data-figure|class)="([^"]*)"', page) if "@" in one]
    assert "muon-lite@tuned ends " in page

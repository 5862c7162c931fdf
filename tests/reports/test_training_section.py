"""How a training run is shown: its verdict, its table, its figures, its page."""

import json
from pathlib import Path

import numpy as np
import pytest

from lite_probe.commands.options import command_names
from lite_probe.reports.page import render_page, write_report
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.section import Grid, describe, summarize
from lite_probe.reports.sections.training import SECTION
from lite_probe.reports.sections.training_figures import draw_rates, draw_shares, draw_sharpest
from lite_probe.reports.sections.training_verdict import judge_training
from lite_probe.results.store import load, save
from lite_probe.results.training import FailedPoint, TrainingPoint
from tests.commands.running import run
from tests.reports.training_results import make_point, make_training


def test_its_verdict_says_how_curvature_moved_and_how_near_the_edge_the_steps_were() -> None:
    verdict = judge_training(make_training())
    assert verdict.lead == (
        "From step 0 to 200 λ₁ rose from 10.00 ± 0.05 to 210.00 ± 0.05 loss/param² (×21.0). "
        "The steps taken were 0.51 of the critical ones, at 3 points."
    )
    (claim,) = verdict.claims
    assert (claim.value, claim.status, claim.confidence) == (200.0, "holds", 1.0)
    assert [claim.low, claim.high] == pytest.approx([199.9, 200.1])
    assert claim.sentence in verdict.lead
    (point,) = verdict.points
    assert point.text == (
        "At step 200 the gradient has 25.0% of its squared norm along the leading eigenvector; a random vector has "
        "0.0010."
    )


def test_a_change_within_the_residuals_is_none() -> None:
    small = make_training(make_point(0), make_point(10, eigenvalues=(10.09,)))
    verdict = judge_training(small)
    assert "λ₁ did not change beyond its error, from 10.00 ± 0.05 to 10.09 ± 0.05" in verdict.lead
    assert verdict.claims[0].status == "open"
    fallen = judge_training(make_training(make_point(0), make_point(10, eigenvalues=(5.0,))))
    assert "λ₁ fell from 10.00 ± 0.05 to 5.00 ± 0.05" in fallen.lead
    assert fallen.claims[0].status == "fails"


def test_steps_that_raise_the_loss_and_values_that_did_not_converge_are_named() -> None:
    points = (
        make_point(0, critical_low=None, critical_high=None, update_norm=0.0, learning_rate=0.0),
        make_point(1, critical_low=0.5, critical_high=0.53),
        make_point(2, critical_low=0.0, critical_high=2.0**-20),
        make_point(3, critical_low=2.0**20, critical_high=2.0**20),
        make_point(4, residual_norms=(5.0,)),
        make_point(5, eigenvalues=(), residual_norms=(), gradient_share=None),
    )
    training = make_training(*points)
    texts = [point.text for point in judge_training(training).points]
    assert texts[0] == "The updates at 2 of 6 points raised the loss on these batches: at step 1, 2."
    assert texts[2].startswith("λ₁ has not converged at step 4: it is a lower bound there")
    (table,) = SECTION.tables([("run", training)])
    shown = {row[0].text: [cell.text for cell in row] for row in table.rows}
    titles = [column.title for column in table.columns]
    critical, sharp = titles.index("critical learning rate"), titles.index("λ₁")
    assert shown["0"][critical] == "–"
    assert shown["1"][critical] == "0.00515"
    assert shown["2"][critical] == "none: any step raises the loss"
    assert shown["3"][critical] == "> 10,000"
    assert shown["5"][sharp] == "–"
    assert [step for step, one in zip(training.steps, training.converged, strict=True) if not one] == [4, 5]
    np.testing.assert_array_equal(np.isnan(training.edge_ratio), [True, False, True, True, False, False])


def test_a_run_without_points_says_so() -> None:
    failed = FailedPoint(step=0, reason="KeyError: 'labels'")
    empty = make_training(points=(), failed=(failed,))
    assert judge_training(empty).lead == "No step of this run was measured; the notes say why."
    assert "No step of this run was measured" in render_page([Run(training=empty)])
    lone = make_training(make_point(7, critical_low=None, critical_high=None))
    assert judge_training(lone).lead == (
        "At step 7 λ₁ is 17.00 ± 0.05 loss/param². At none of its points was a critical step found."
    )


def test_its_figures_hold_the_numbers() -> None:
    training = make_training()
    sharpest, rates, shares = (draw([("", training)]) for draw in (draw_sharpest, draw_rates, draw_shares))
    assert sharpest is not None
    assert rates is not None
    assert shares is not None
    assert sharpest.figure["data"][0]["y"] == [10.0, 110.0, 210.0]
    assert sharpest.figure["data"][0]["error_y"]["array"] == [0.05] * 3
    used, critical = rates.figure["data"]
    assert used["y"] == [0.01] * 3
    assert critical["y"] == pytest.approx([0.0194936] * 3)
    assert critical["error_y"]["array"] == pytest.approx([0.02 - 0.0194936] * 3, abs=1e-6)
    assert shares.figure["layout"]["shapes"][0]["y0"] == 0.001
    both = draw_sharpest([("early", training), ("late", training)])
    assert both is not None
    assert [one["name"] for one in both.figure["data"]] == ["early", "late"]
    negative = draw_sharpest([("", make_training(make_point(0, eigenvalues=(-1.0,))))])
    assert negative is not None
    assert "type" not in negative.figure["layout"]["yaxis"]


def test_a_folder_with_its_record_alone_has_a_page_from_the_command_line(tmp_path: Path) -> None:
    training = make_training()
    save(training, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.json"]
    assert load(tmp_path) == training
    page = write_report([tmp_path], tmp_path / "page.html").read_text()
    assert "<title>Training of gpt-5000</title>" in page
    assert '<p class="reading"><b>How to read this.</b>' in page
    assert page.count('data-figure="training-') == 3
    assert run("report", tmp_path).exit_code == 0
    assert (tmp_path / "report.html").is_file()
    assert render_page([Run(training=training), Run(training=training)]).count("λ₁ rose from") >= 2


def test_terminals_and_programs_get_its_points() -> None:
    blocks = summarize("training", make_training())
    (grid,) = [block for block in blocks if isinstance(block, Grid)]
    assert grid.header[:4] == ["step", "loss", "lr", "critical lr"]
    assert grid.rows[1][0] == "100"
    told = json.loads(json.dumps(describe("training", make_training())))
    assert told["points"][2]["eigenvalues"] == [210.0]
    assert told["points"][0]["edge_ratio"] == pytest.approx((1.9 * 2.0) ** -0.5)


def test_no_command_measures_it() -> None:
    assert "training" not in command_names()
    assert run("training", "x.pt").exit_code == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"residual_norms": ()}, "1 eigenvalues and 0 residuals"),
        ({"eigenvalues": (1.0, 2.0), "residual_norms": (0.1, 0.1)}, "do not descend at step 0"),
        ({"critical_low": None}, "half a bracket of the critical step at step 0"),
        ({"critical_low": 3.0}, "a critical step between 3.0 and 2.0 at step 0"),
    ],
)
def test_a_point_that_contradicts_itself_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_point(0, **wrong)


def test_steps_ascend() -> None:
    points: tuple[TrainingPoint, ...] = (make_point(2), make_point(1))
    with pytest.raises(ValueError, match="steps that do not ascend"):
        make_training(*points)

"""Saved results side by side: what is refused, what agrees with the single runs, and how much is decided together."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lite_probe as lp
from lite_probe.errors import InputError
from lite_probe.results.claim import holm
from lite_probe.results.comparison import (
    LANDSCAPE_MOVED,
    LOSSES,
    LOSSES_MOVED,
    PROGRESS,
    PROGRESS_MOVED,
    STEPS_MOVED,
    Side,
    compare_results,
)
from tests.reports.compared import make_comparison, make_results, make_steps_of, replay_of
from tests.reports.fixtures import make_provenance, make_replay, make_spectrum
from tests.reports.steps_results import make_critical, make_optimizer, make_steps
from tests.reports.training_results import make_point, make_training


def at(name: str, label: str) -> Side:
    return Side(subject=name, checkpoint=label)


def test_values_are_those_of_the_single_runs():
    early = make_results()
    found = compare_results([("early", early), ("late", make_results("late", 200))]).at("early")
    replay, steps = replay_of(early), early["steps"]
    for name in replay.optimizers:
        values = found.entries[name].values
        assert values["loss_change"] == replay.loss_change(name)
        assert values["flat_progress"] == replay.flat_progress(name)
        assert values["sharp_progress"] == replay.sharp_progress(name)
        assert values["isotropy"] == replay.isotropy_entropy(name)
        assert values["directional_sharpness"] == replay.directional_sharpness(name)
    assert found.entries["muon"].values["edge_ratio"] == steps.critical("muon")["held out"].edge_ratio
    assert found.entries["muon"].ratios["ffn"] == steps.implied_ratio("ffn", "muon")
    assert found.landscape["trace"] == early["spectrum"].trace
    assert found.landscape["lambda_1"].value == early["spectrum"].eigenvalues[0]
    assert found.landscape["gradient_share"] == early["subspace"].batch_gradient_share


def test_differences_of_optimizers_are_those_of_the_replay():
    early = make_results()
    comparison = compare_results([("early", early), ("late", make_results("late", 200))])
    replay = replay_of(early)
    pair = at("muon-lite", "early"), at("soap", "early")
    assert comparison.subtract("loss_change", *pair) == replay.difference("muon-lite", "soap")
    assert comparison.subtract("flat_progress", *pair) == replay.flat_difference("muon-lite", "soap")
    assert comparison.subtract("sharp_progress", *pair) == replay.sharp_difference("muon-lite", "soap")


def test_differences_of_checkpoints_are_paired_by_seed():
    comparison = make_comparison()
    moved = comparison.subtract("flat_progress", at("soap", "late"), at("soap", "early"))
    # The late one gains 0.001 nats a step, alike on all seeds: far less scatter than progress has.
    assert moved is not None
    assert moved.value == pytest.approx(1e-3 * sum(math.exp(-0.03 * step) for step in range(8)), rel=0.1)
    assert moved.stderr < 0.05 * moved.value
    assert comparison.subtract("flat_progress", at("muon", "late"), at("nobody", "early")) is None


def test_critical_steps_are_compared_by_their_ratio():
    early, late = make_results(), make_results("late", 200)
    late["steps"] = make_steps_of("late", 200, 0.5)  # half as long a step has twice the critical multiple
    comparison = compare_results([("early", early), ("late", late)])
    moved = next(one for one in comparison.of_question(STEPS_MOVED))
    assert math.exp(moved.estimate.value) == pytest.approx(2.0)
    assert moved.estimate.num_samples == 4
    # Each bracket is ±2%: the difference of two is known no better than that.
    width = math.sqrt(2.0) * math.log(1.02 / 0.98) / math.sqrt(12.0 * 4.0)
    assert moved.estimate.stderr == pytest.approx(width)
    assert moved.sign == 1


def test_the_landscape_moves_beyond_bounds_or_errors():
    comparison = make_comparison()
    moved = {one.quantity: one for one in comparison.of_question(LANDSCAPE_MOVED)}
    assert moved["lambda_1"].estimate.value == pytest.approx(20.0 - 38.21)
    early, late = (comparison.at(label).landscape["lambda_1"] for label in ("early", "late"))
    assert moved["lambda_1"].estimate.high == pytest.approx(late.high - early.low)
    assert (moved["lambda_1"].sign, moved["trace"].sign, moved["anisotropy"].sign) == (-1, -1, 0)
    ends = [comparison.at(label).landscape["trace"] for label in ("early", "late")]
    assert moved["trace"].estimate.stderr == pytest.approx(math.hypot(*(one.stderr for one in ends)))
    assert moved["trace"].estimate.num_samples == 8


def test_anisotropy_has_the_error_of_the_root_mean_square():
    found = make_comparison().at("early").landscape["anisotropy"]
    whole = make_spectrum().whole
    squares = whole.trace_h2
    assert found.value == pytest.approx(38.21 / math.sqrt(squares.value / whole.num_parameters))
    assert found.low == pytest.approx(38.21 / math.sqrt(squares.high / whole.num_parameters))
    assert found.high == pytest.approx(38.21 / math.sqrt(squares.low / whole.num_parameters))


def test_questions_are_decided_over_all_checkpoints():
    comparison = make_comparison()
    counts = {one.question: one.comparisons for one in comparison.differences}
    # 6 pairs at 2 checkpoints; 2 variants, 2 parts, 2 checkpoints; 4 optimizers once, and twice 2 parts of them.
    assert counts == {
        LOSSES: 12,
        PROGRESS: 8,
        LOSSES_MOVED: 4,
        PROGRESS_MOVED: 8,
        STEPS_MOVED: 2,
        LANDSCAPE_MOVED: 3,
    }
    three = compare_results([(f"c{place}", make_results(f"c{place}", place)) for place in range(3)])
    asked = three.of_question(LOSSES)
    adjusted = holm([one.estimate.p_value for one in asked])
    assert [one.sign != 0 for one in asked] == [value <= 0.05 for value in adjusted]
    alone = [one for one in asked if one.estimate.p_value <= 0.05]
    assert len(alone) > sum(one.sign != 0 for one in asked)  # the correction costs some


def test_says_who_ends_lowest_where():
    first, second = make_comparison().standings
    assert (first.checkpoint, first.winner, first.level) == ("early", "muon-lite", ("muon-lite",))
    assert (second.checkpoint, second.winner) == ("late", "soap")


def test_nobody_ends_lowest_where_two_are_not_told_apart():
    standing = make_comparison(gains={"soap": 4e-4}).standings[1]
    assert standing.winner is None
    assert set(standing.level) == {"muon-lite", "soap"}


def test_one_seed_has_no_winner():
    found = compare_results([("early", make_results(seeds=1)), ("late", make_results("late", 200, seeds=1))])
    assert [one.winner for one in found.standings] == [None, None]
    assert not any(one.has_error for one in found.standings)
    assert found.of_question(LOSSES) == ()


def test_who_diverged_is_counted_and_not_compared():
    lost = tuple(("soap", seed, 3) for seed in range(4))
    found = make_comparison(diverged=lost)
    entry = found.at("late").entries["soap"]
    assert (entry.finished, entry.diverged) == (0, (0, 1, 2, 3))
    assert "loss_change" not in entry.values
    assert found.standings[1].winner == "muon-lite"


def test_optimizers_may_differ_by_checkpoint():
    found = compare_results(
        [
            ("early", {"replay": make_replay(name="early", step=1, optimizers=("muon", "soap"))}),
            ("late", {"replay": make_replay(name="late", step=2, optimizers=("muon", "adamw"))}),
        ]
    )
    assert found.optimizers == ("muon", "soap", "adamw")
    assert {one.first.subject for one in found.of_question(LOSSES_MOVED)} == {"muon"}


def test_checkpoints_are_in_the_order_of_training():
    late, early = make_results("late", 200), make_results()
    assert compare_results([("late", late), ("early", early)]).labels == ("early", "late")
    unknown = make_results("unknown", None)
    assert compare_results([("late", late), ("unknown", unknown), ("early", early)]).labels == (
        "late",
        "unknown",
        "early",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_name": "other.bin"}, r"data of the replay: val\.bin at early, other\.bin at late"),
        ({"data_split": "held-out"}, r"split of the replay: evaluation at early, held-out at late"),
        (
            {"batches_digest": "0123456789abcdef"},
            r"batches of the replay: 4 × 4 × 256 \(b7e23ec29af2\) at early, 4 × 4 × 256 \(0123456789ab\) at late",
        ),
        ({"seq_len": 128}, r"4 × 4 × 256 .* at early, 4 × 4 × 128 .* at late"),
        ({"precision": "float64"}, r"precision of the replay: float32 at early, float64 at late"),
        ({"seed": 3}, r"seed of the replay: 0 at early, 3 at late"),
    ],
)
def test_refuses_other_data_batches_or_precision(changes, said):
    pair = [
        ("early", {"replay": make_replay(name="early", step=1)}),
        ("late", {"replay": make_replay(name="late", step=2, **changes)}),
    ]
    with pytest.raises(InputError, match=f"expected results that can be compared, got others in 1 field: .*{said}"):
        compare_results(pair)


def test_refuses_another_segment_or_measure():
    early = make_replay(name="early", step=1)
    late = make_replay(name="late", step=2)
    others = {
        "steps of the replay: 20 at early, 30 at late": make_replay(name="late", step=2, steps=30),
        "seeds of the replay: 3 at early, 2 at late": make_replay(name="late", step=2, seeds=2),
        "ramp of the replay: 0 at early, 5 at late": replace(late, ramp=5),
        "rule of the replay: simpson at early, trapezoid at late": replace(late, rule="trapezoid"),
        "tolerance of the replay: 0.005 at early, 0.1 at late": replace(late, tolerance=0.1),
        "bands of the replay: those of soap at early, those of muon at late": replace(
            late, bands=replace(late.bands, optimizer="muon")
        ),
        "segment of the replay: segment-0, segment-1, segment-2 at early, x, x, x at late": replace(
            late, runs=tuple(replace(run, batches_digest="x") for run in late.runs)
        ),
        "hyperparameters of muon-lite of the replay: {'flat_lr_ratio': 2.0} at early, {'flat_lr_ratio': 3.0} at late": (
            replace(
                late,
                recipes={
                    name: replace(one, hyperparameters={"flat_lr_ratio": 3.0} if name == "muon-lite" else {})
                    if not name.startswith("soap")
                    else one
                    for name, one in late.recipes.items()
                },
            )
        ),
    }
    for said, other in others.items():
        with pytest.raises(InputError) as caught:
            compare_results([("early", {"replay": early}), ("late", {"replay": other})])
        assert said in caught.value.message
        assert "measure them alike" in caught.value.hint


def test_names_every_field_that_differs():
    early, late = make_results(), make_results("late", 200)
    late["spectrum"] = make_spectrum(name="late", step=200, operator="ggn", data_name="x.bin")
    late["steps"] = replace(late["steps"], batch_tokens=8)
    with pytest.raises(InputError, match="in 3 fields") as caught:
        compare_results([("early", early), ("late", late)])
    for said in (
        "data of the spectrum: val.bin at early, x.bin at late",
        "operator of the spectrum: hessian at early, ggn at late",
        "tokens of a step of the steps: 16384 at early, 8 at late",
    ):
        assert said in caught.value.message


def test_refuses_models_of_other_sizes_and_one_checkpoint_twice():
    early = {"replay": make_replay(name="early", step=1)}
    larger = {"replay": replace(make_replay(name="late", step=2), num_parameters=7)}
    with pytest.raises(InputError, match=r"model of the replay: 10,.* parameters at early, 7 parameters at late"):
        compare_results([("early", early), ("late", larger)])
    with pytest.raises(InputError, match="expected every checkpoint once, got the same one as a and b"):
        compare_results([("a", early), ("b", early)])


def test_other_machines_and_states_are_noted():
    late = make_replay(name="late", step=2, device="NVIDIA H200")
    recipes = {**late.recipes, "muon": replace(late.recipes["muon"], state="checkpoint")}
    found = compare_results(
        [
            ("early", {"replay": make_replay(name="early", step=1)}),
            ("late", {"replay": replace(late, recipes=recipes)}),
        ]
    )
    assert [note.message for note in found.notes] == [
        "Measured with other machines: cpu at early, NVIDIA H200 at late.",
        "muon started from another kind of state: warm at early, checkpoint at late.",
    ]


def test_compares_run_directories(tmp_path: Path):
    for name, step in (("b", 200), ("a", 100)):
        for result in make_results("ckpt", step).values():
            lp.save(result, tmp_path / name)
    found = lp.compare([tmp_path / "b", tmp_path / "a" / "replay.json"])
    assert found.labels == ("ckpt, step 100", "ckpt, step 200")
    assert found.at("ckpt, step 100").kinds == ("spectrum", "subspace", "steps", "replay")
    with pytest.raises(InputError, match="expected a run directory with a result of spectrum"):
        lp.compare([tmp_path])
    with pytest.raises(InputError, match="expected run directories to compare, got none"):
        lp.compare([])


def test_a_critical_step_that_was_not_found_is_left_out():
    late = make_steps(
        name="late",
        step=200,
        optimizers={"muon": make_optimizer("muon", critical={"held out": make_critical(2.0, np.inf)})},
    )
    found = compare_results([("early", {"steps": make_steps(name="early", step=100)}), ("late", {"steps": late})])
    assert "edge_ratio" not in found.at("late").entries["muon"].values
    assert found.of_question(STEPS_MOVED) == ()


def test_training_runs_are_trajectories():
    runs = [
        (name, {"training": make_training(make_point(0, **changes), make_point(100))})
        for name, changes in (("a", {}), ("b", {"eigenvalues": (), "residual_norms": (), "critical_low": 0.0}))
    ]
    found = compare_results(runs)
    assert found.checkpoints == ()
    first, second = found.trajectories
    assert [(step, value.value, value.low, value.high) for step, value in first.values["lambda_1"]] == [
        (0, 10.0, 9.95, 10.05),
        (100, 110.0, 109.95, 110.05),
    ]
    (_, ratio), _ = first.values["edge_ratio"]
    assert (ratio.low, ratio.high) == (pytest.approx(1 / 2.0), pytest.approx(1 / 1.9))
    assert ratio.value == pytest.approx(math.sqrt(1 / 3.8))
    (_, rate), _ = first.values["critical_lr"]
    assert rate.value == pytest.approx(0.01 * math.sqrt(3.8))
    assert [step for step, _ in second.values["lambda_1"]] == [step for step, _ in second.values["edge_ratio"]] == [100]
    other = make_training(provenance=make_provenance(data_name="x.bin"))
    with pytest.raises(InputError, match=r"data of the training: val\.bin at a, x\.bin at c"):
        compare_results([runs[0], ("c", {"training": other})])


def test_a_training_run_stands_beside_checkpoints():
    found = compare_results([("early", {**make_results(), "training": make_training(num_parameters=10_724_352)})])
    assert found.at("early").kinds == ("spectrum", "subspace", "steps", "replay")
    assert [one.label for one in found.trajectories] == ["early"]


def test_other_numbers_of_sharp_directions_are_noted():
    late = make_replay(name="late", step=2)
    fewer = replace(late, eigenvalues=late.eigenvalues[:7].copy())
    found = compare_results([("early", {"replay": make_replay(name="early", step=1)}), ("late", {"replay": fewer})])
    assert [note.message for note in found.notes] == [
        "Flat and sharp progress are of other numbers of sharp directions: 10 at early, 7 at late."
    ]

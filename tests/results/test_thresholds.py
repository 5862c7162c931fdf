"""`--fail-if`: what it means, what it refuses, and that it is decided beyond the error alone."""

import math
from dataclasses import replace

import pytest

from lite_probe.errors import UsageError
from lite_probe.results.comparison import Comparison, compare_results
from lite_probe.results.thresholds import Operand, Outcome, decide_thresholds, parse_threshold
from tests.reports.compared import make_comparison, make_results

NAMES = ("muon", "muon-lite", "muon-lite@mild", "torch.AdamW", "make_mine", "a>b")
PLACES = ("step-00060", "ckpt-1.5@2")


def outcomes(comparison: Comparison, *texts: str) -> tuple[Outcome, ...]:
    asked = [parse_threshold(text, comparison.optimizers, comparison.labels) for text in texts]
    return decide_thresholds(asked, comparison)


def statuses(comparison: Comparison, *texts: str) -> list[str]:
    return [one.status for one in outcomes(comparison, *texts)]


@pytest.mark.parametrize(
    ("text", "left", "is_above", "right"),
    [
        ("muon-lite.loss_change > muon.loss_change", ("muon-lite", None), True, ("muon", None)),
        ("muon.loss_change<-0.5e-2", ("muon", None), False, -0.005),
        (
            "muon-lite@mild.flat_progress < muon-lite.flat_progress",
            ("muon-lite@mild", None),
            False,
            ("muon-lite", None),
        ),
        ("muon-lite@mild@step-00060.edge_ratio > 1", ("muon-lite@mild", "step-00060"), True, 1.0),
        ("torch.AdamW.loss_change > .5", ("torch.AdamW", None), True, 0.5),
        ("my.py:make_mine@ckpt-1.5@2.isotropy > 0.1", ("make_mine", "ckpt-1.5@2"), True, 0.1),
        ("a>b.loss_change > muon.loss_change", ("a>b", None), True, ("muon", None)),
        ("spectrum.lambda_1 > 50", ("spectrum", None), True, 50.0),
        ("subspace.gradient_share > 0.5", ("subspace", None), True, 0.5),
    ],
)
def test_takes_names_as_they_are(text, left, is_above, right):
    found = parse_threshold(text, NAMES, PLACES)
    assert (found.left.subject, found.left.checkpoint) == left
    assert found.is_above == is_above
    if isinstance(found.right, Operand):
        assert (found.right.subject, found.right.checkpoint) == right
    else:
        assert found.right == right


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("muon.loss_change", r"expected > or < in --fail-if, got 'muon\.loss_change'; write NAME\.QUANTITY"),
        ("", "expected > or < in --fail-if, got ''"),
        ("> 1", r"expected NAME\.QUANTITY in --fail-if, got ''"),
        ("nobody.loss_change > 1", r"got 'nobody'; there are muon, .*; checkpoints are step-00060, ckpt-1\.5@2"),
        ("muon@nowhere.loss_change > 1", "got 'muon@nowhere'"),
        ("muon.beauty > 1", "expected a quantity of muon in --fail-if, got 'beauty'; there are loss_change, flat_pro"),
        ("spectrum.loss_change > 1", "expected a quantity of spectrum in --fail-if, got 'loss_change'; there are loss"),
        ("muon.loss_change > nan", r"expected NAME\.QUANTITY in --fail-if, got 'nan'"),
        ("muon.loss_change > 1e999", "got '1e999'"),
        ("muon.loss_change > inf", "got 'inf'"),
        ("muon.loss_change == 1", "expected > or <"),
        ("muon.loss_change >= 1", "got '= 1'"),
        ("muon.loss_change > muon.isotropy", "expected two quantities of one unit in --fail-if, got loss_change and"),
        ("muon.loss_change > spectrum.loss", "expected two quantities of one unit"),
        ("muon.edge_ratio > 0", "expected a number above 0 for edge_ratio"),
        ("muon.edge_ratio > muon.critical_lr", "expected two quantities of one unit"),
        ("__import__('os').system('true') > 1", "expected an optimizer, spectrum or subspace"),
        ("muon.loss_change > " + "1" * 2000, "expected --fail-if of at most 1,000 characters, got 2,019"),
        ("<" * 900, "expected NAME"),
        ("muon.loss_change > \x00\x1b[31m", r"got '\\x00\\x1b\[31m'"),
    ],
)
def test_refuses_what_it_does_not_know(text, said):
    with pytest.raises(UsageError, match=said):
        parse_threshold(text, NAMES, PLACES)


def test_is_missed_only_beyond_the_error():
    comparison = make_comparison(gains={"soap": 4e-4})
    assert statuses(comparison, "muon-lite.loss_change > muon.loss_change") == ["kept", "kept"]
    assert statuses(comparison, "muon-lite.loss_change < muon.loss_change") == ["missed", "missed"]
    assert statuses(comparison, "soap@late.loss_change > muon-lite.loss_change") == ["open"]
    assert statuses(comparison, "soap@late.loss_change < muon-lite.loss_change") == ["open"]
    one = outcomes(comparison, "muon-lite.loss_change > muon.loss_change")[0]
    replay = make_results()["replay"]
    assert one.estimate == replay.difference("muon-lite", "muon")
    assert one.comparisons == 2


def test_is_decided_after_a_correction_over_all_thresholds():
    comparison = make_comparison()
    text = "muon@early.loss_change > soap.loss_change"
    alone = outcomes(comparison, text)[0]
    assert alone.estimate is not None
    assert 0.01 < alone.estimate.p_value < 0.05
    assert (alone.status, alone.comparisons) == ("missed", 1)
    many = outcomes(comparison, text, *["soap@late.sharp_progress > soap-lite.sharp_progress"] * 6)
    assert (many[0].status, many[0].comparisons) == ("open", 7)


def test_numbers_are_limits():
    comparison = make_comparison()
    change = comparison.at("early").entries["muon"].values["loss_change"]
    assert statuses(comparison, f"muon@early.loss_change > {change.low - 0.01}") == ["missed"]
    assert statuses(comparison, f"muon@early.loss_change > {change.high + 0.01}") == ["kept"]
    assert statuses(comparison, f"muon@early.loss_change > {change.value}") == ["open"]
    assert statuses(comparison, "spectrum.lambda_1 < 30") == ["kept", "missed"]
    assert statuses(comparison, "spectrum@late.lambda_1 > spectrum@early.lambda_1") == ["kept"]
    ratio = outcomes(comparison, "muon@early.edge_ratio > 1")[0]
    assert ratio.status == "kept"
    assert ratio.estimate is not None
    assert math.exp(ratio.estimate.value) == pytest.approx(
        comparison.at("early").entries["muon"].values["edge_ratio"].value
    )


def test_checkpoints_of_one_optimizer_are_compared_by_seed():
    comparison = make_comparison()
    one = outcomes(comparison, "soap@late.flat_progress < soap@early.flat_progress")
    assert [(each.checkpoint, each.status) for each in one] == [("late", "kept")]


def test_who_diverges_is_above_every_loss():
    comparison = make_comparison(diverged=(("muon-lite", 1, 3),))
    text = "muon-lite.loss_change > muon.loss_change"
    early, late = outcomes(comparison, text)
    assert (early.status, late.status) == ("kept", "missed")
    assert late.reason == "muon-lite diverged on 1 seed"
    assert statuses(comparison, "muon@late.loss_change > muon-lite.loss_change") == ["open"]
    assert statuses(comparison, "muon-lite@late.flat_progress < muon.flat_progress") == ["open"]


def test_what_was_not_measured_is_open():
    early, late = make_results(), make_results("late", 200)
    late["replay"] = replace(late["replay"], recipes={"muon": late["replay"].recipes["muon"]})
    comparison = compare_results([("early", early), ("late", late)])
    found = outcomes(comparison, "muon-lite.loss_change > muon.loss_change")
    assert [one.status for one in found] == ["kept", "open"]
    assert found[1].reason == "there is nothing to compare"


def test_one_seed_decides_nothing():
    comparison = compare_results([("early", make_results(seeds=1))])
    assert outcomes(comparison, "muon.loss_change > muon-lite.loss_change")[0].reason == "one sample has no error"

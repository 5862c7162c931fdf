"""What a tuning's verdict says: no more than its replay tells, and at which batch size."""

from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.sections.tuning_verdict import (
    compare_candidates,
    groups_without_pair,
    judge_tuning,
    steps_to_pooled,
)
from lite_probe.reports.verdict import Verdict
from lite_probe.results.provenance import Note
from lite_probe.results.tuning import Tuning
from tests.reports.fixtures import with_same_batches
from tests.reports.tuning_results import POOLED_LOSS, RATIOS, diverging, make_method, make_test, make_tuning


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return make_tuning(replay=make_test())


def point(verdict: Verdict, start: str) -> str:
    (found,) = [one.text for one in verdict.points if one.text.startswith(start)]
    return found


def tone(verdict: Verdict, start: str) -> str:
    (found,) = [one.tone for one in verdict.points if one.text.startswith(start)]
    return found


def test_tuning_paid_where_it_ends_below_the_base(tuning: Tuning) -> None:
    verdict = judge_tuning(tuning)
    (claim,) = verdict.leading
    assert (claim.status, claim.comparisons, claim.subject) == ("holds", 4, "muon-lite@tuned")
    assert claim.high < 0.0
    assert claim.sentence in verdict.lead
    assert verdict.lead.startswith("Tuning paid against muon: muon-lite@tuned ends 0.01")
    assert "That is over 20 steps and 5 seeds, at a batch of 16,384 tokens." in verdict.lead
    assert verdict.lead.endswith(
        "The tuned settings end below LITE’s published defaults and χ of the step profile alone, and are not told from "
        "the pooled solution."
    )


def test_every_comparison_is_a_claim_whose_sentence_is_said(tuning: Tuning) -> None:
    verdict = judge_tuning(tuning)
    claims = compare_candidates(tuning)
    assert list(claims) == ["muon", "muon-lite@published", "muon-lite@profile", "muon-lite@pooled"]
    assert set(verdict.claims) == set(claims.values())
    text = " ".join([verdict.lead, *(one.text for one in verdict.points)])
    assert all(claim.sentence in text for claim in claims.values())
    assert tone(verdict, "Against LITE’s published defaults:") == "good"
    assert tone(verdict, "Against the pooled solution:") == "plain"
    assert "Holm’s correction over 4 comparisons" in point(verdict, "Decided after")


def test_tuning_that_ends_above_the_base_did_not_pay() -> None:
    # LITE's variants gain 6e-4 nats a step over muon by their manner.
    verdict = judge_tuning(make_tuning(replay=make_test({"tuned": -1.5e-3})))
    assert verdict.lead.startswith("Tuning did not pay against muon: muon-lite@tuned ends 0.0")
    assert [claim.status for claim in verdict.leading] == ["fails"]
    assert "The tuned settings end above LITE’s published defaults" in verdict.lead


def test_what_is_not_told_is_open_and_says_what_would_tell() -> None:
    verdict = judge_tuning(make_tuning(replay=make_test({"tuned": -6e-4}, seeds=3, noise=0.3)))
    assert [claim.status for claim in verdict.leading] == ["open"]
    assert verdict.lead.startswith("Whether tuning pays against muon is open: muon-lite@tuned minus muon: ")
    assert "More --seeds, or more --replay-steps, may tell." in verdict.lead
    assert "paid" not in verdict.lead


def test_without_a_replay_the_settings_are_untested() -> None:
    verdict = judge_tuning(make_tuning())
    assert verdict.lead == (
        "The recommended settings of muon-lite, learned at a batch of 16,384 tokens, are untested: no replay was made; "
        "--replay-steps 20 makes one."
    )
    assert verdict.claims == ()
    assert not [one for one in verdict.points if "replay is of" in one.text]


def test_samples_are_called_samples() -> None:
    assert "at a batch of 16,384 samples" in judge_tuning(make_tuning(seq_len=None)).lead


def test_tuned_settings_that_diverge_claim_nothing() -> None:
    verdict = judge_tuning(make_tuning(replay=diverging(make_test(seeds=3), "muon-lite@tuned", 0, 1, 2)))
    assert verdict.lead == (
        "Whether tuning pays is open: every run of muon-lite@tuned diverged, over 20 steps and 3 seeds, at a batch of "
        "16,384 tokens."
    )
    assert verdict.claims == ()
    assert point(verdict, "muon-lite@tuned diverged on 3 of 3 seeds, at step 5 first").endswith("its comparisons.")


def test_one_common_seed_is_no_comparison() -> None:
    verdict = judge_tuning(make_tuning(replay=diverging(make_test(seeds=3), "muon", 0, 1)))
    assert verdict.lead.startswith(
        "Whether tuning pays is open: muon-lite@tuned and muon have fewer than two seeds that both finished, over"
    )
    assert {claim.comparisons for claim in verdict.claims} == {3}


def test_seeds_that_a_candidate_lost_are_said() -> None:
    verdict = judge_tuning(make_tuning(replay=diverging(make_test(seeds=3), "muon-lite@published", 1)))
    assert tone(verdict, "muon-lite@published diverged on 1 of 3 seeds") == "caution"
    assert "(on 2 of 3 seeds, 95%: " in point(verdict, "Against LITE’s published defaults:")


def test_the_recommendation_has_its_spread(tuning: Tuning) -> None:
    text = point(judge_tuning(tuning), "Recommended for muon-lite:")
    assert "β₂ = 0.850 and χ of emb 1.00 (1.00 to 1.20), qk 6.10 (4.88 to 7.32), vo " in text
    assert text.endswith("in parentheses the range over what the nodes’ own data would have.")
    same = judge_tuning(make_tuning(spread=0.0))
    assert point(same, "Recommended").endswith("χ of emb 1.00, qk 6.10, vo 3.40, ffn 2.20 and out 1.60.")


def test_a_learning_rate_that_is_too_large_is_said_where_every_node_says_so() -> None:
    verdict = judge_tuning(make_tuning(spread=0.0, ratios={"emb": (2.0, 0.62), "qk": (2.0, 1.3)}))
    assert point(verdict, "Along the sharp directions of emb (0.62) every node’s data asks for less") == (
        "Along the sharp directions of emb (0.62) every node’s data asks for less than the step that muon takes at "
        "0.0078: the learning rate itself is too large there. LITE’s settings cannot shorten steps along sharp "
        "directions, only lengthen the others."
    )
    apart = judge_tuning(make_tuning(spread=0.2, ratios={"emb": (2.0, 0.97)}))
    text = point(apart, "Along the sharp directions of emb (0.97, over nodes ")
    assert "the nodes together ask, though not each alone, for less" in text
    assert "it may be too large there" in text
    fine = judge_tuning(make_tuning(ratios={"qk": (2.0, 1.3)}))
    assert not [one for one in fine.points if "learning rate itself" in one.text]


def test_a_ratio_that_was_cut_says_what_was_asked_for(tuning: Tuning) -> None:
    blocks = tuple(replace(one, ratio=16.0, ratio_high=16.0) for one in tuning.tuned.blocks if one.block == "qk")
    long = tuple(replace(one, rest=90.0, sharp=1.5) for one in blocks)
    verdict = judge_tuning(replace(tuning, tuned=replace(tuning.tuned, blocks=long)))
    assert point(verdict, "χ of 16.0 is the largest").endswith("ask for more in qk (60).")
    assert not [one for one in judge_tuning(tuning).points if one.text.startswith("χ of ")]
    back = tuple(replace(one, rest=90.0, sharp=-0.1) for one in blocks)
    verdict = judge_tuning(replace(tuning, tuned=replace(tuning.tuned, blocks=back)))
    assert point(verdict, "χ of 16.0 is the largest").endswith("ask for more in qk (90).")


def test_the_nodes_are_held_to_the_pooled_solution(tuning: Tuning) -> None:
    text = point(judge_tuning(tuning), "sparkle gt/ed over 8 nodes (ring)")
    assert "at −0.0412 nats, less than 0.01% from the pooled solution’s −0.0412, within 1% from step 480 on." in text
    assert "dampings are 5.6 × 10⁻⁸ apart" in text
    # 0.4·exp(−0.008 t) is within 1% from t = 461.1 on: recorded at 480.
    assert steps_to_pooled(tuning, tuning.methods[0]) == 480
    short = replace(tuning, methods=(make_method("dsoba-so", 9e-3, 0.03, is_chosen=True),))
    assert steps_to_pooled(short, short.methods[0]) is None
    verdict = judge_tuning(short)
    assert tone(verdict, "dsoba-so over 8 nodes") == "caution"
    assert "at −0.0400 nats, 3.00% short of the pooled solution’s −0.0412. The" in point(verdict, "dsoba-so over")
    beyond = replace(tuning, methods=(make_method("sparkle gt/ed", 9e-3, -0.02, is_chosen=True),))
    assert "2.00% beyond the pooled solution’s" in point(judge_tuning(beyond), "sparkle gt/ed over")


def test_a_method_that_diverged_is_no_agreement(tuning: Tuning) -> None:
    lost = replace(tuning.methods[0], upper_loss=np.full(len(tuning.methods[0].step), np.nan))
    verdict = judge_tuning(replace(tuning, methods=(lost,)))
    assert tone(verdict, "sparkle gt/ed diverged:") == "caution"
    assert steps_to_pooled(tuning, lost) is None


def test_more_than_the_whole_loss_is_nothing_to_read(tuning: Tuning) -> None:
    verdict = judge_tuning(replace(tuning, pooled_loss=-36.6))
    assert point(verdict, "More than the whole loss of 1.47 nats is what the models promise: the pooled solution −36.6")
    assert not [one for one in judge_tuning(tuning).points if one.text.startswith("More than the whole")]


def test_heterogeneity_has_how_to_read_it() -> None:
    assert point(judge_tuning(make_tuning(spread=0.0)), "The nodes’ gains are less than 0.001 times")
    found = make_tuning(spread=0.5, nodes=2)
    gains = found.models.gains
    mean = gains.mean(axis=0)
    apart = np.sqrt(((gains - mean) ** 2).sum(axis=1).mean()) / np.linalg.norm(mean)
    assert point(judge_tuning(found), f"The nodes’ gains are {apart:.2f} times the size of their mean apart from it")


def test_what_the_replay_saw_is_said(tuning: Tuning) -> None:
    text = point(judge_tuning(tuning), "The curvature behind the settings")
    assert "the replay is of 20 steps, on batches that none of the settings was made from" in text
    assert "its losses are of the evaluation batches, on which the step profile’s curvature was measured" in text
    assert tuning.replay is not None
    held_out = replace(tuning, replay=with_same_batches(tuning.replay))
    assert "its losses are of held-out batches." in point(judge_tuning(held_out), "The curvature behind")
    shared = replace(tuning, notes=(Note(code="batches-shared", message="Shared."),))
    verdict = judge_tuning(shared)
    assert "none of the settings" not in point(verdict, "The curvature behind")
    assert tone(verdict, "The curvature behind") == "caution"


def test_blocks_without_sharp_directions_are_named(tuning: Tuning) -> None:
    assert groups_without_pair(tuning) == ["norm"]
    assert point(judge_tuning(tuning), "No χ for norm: it takes both sharp and non-sharp directions.")
    bare = judge_tuning(make_tuning(ratios={}))
    assert tone(bare, "No block has both sharp and non-sharp directions") == "caution"


def test_what_each_node_alone_would_have_is_the_solution_of_its_own_model(tuning: Tuning) -> None:
    for node, own in enumerate(tuning.alone):
        steps = own * np.sqrt(tuning.models.scales)
        damping = np.exp(tuning.damping_logs.mean(axis=0)) + tuning.ridge
        slope = tuning.models.curvatures[node] @ steps + damping * steps - tuning.models.gains[node]
        assert np.abs(slope).max() < 1e-12
    # Without scatter every node has the multiples that the record was made from.
    same = make_tuning(spread=0.0)
    for block, (ratio, sharp) in RATIOS.items():
        assert same.range_of(block, "sharp") == pytest.approx((sharp, sharp))
        assert same.range_of(block, "rest") == pytest.approx((ratio * sharp, ratio * sharp))


def test_the_pooled_settings_are_a_detail(tuning: Tuning) -> None:
    (detail,) = [one for one in judge_tuning(tuning).points if one.text.startswith("With all data in one place")]
    assert detail.is_detail
    assert "χ of emb 1.05, qk 6.41" in detail.text
    assert f"change by {0.97 * POOLED_LOSS:.4f}".replace("-", "−") in detail.text

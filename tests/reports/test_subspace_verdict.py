"""What is said of sharp and flat directions follows from the numbers and their errors."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.sections.subspace import answers
from lite_probe.reports.sections.subspace_verdict import judge_subspace
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.subspace import SubspaceMeasurement, evenness
from tests.reports.fixtures import make_operator_spectrum, make_overlap, make_subspace

WARMED = " Its state was warmed on batches of 1,024 tokens."  # what is said of LITE names the size of batches


def lead(found: SubspaceMeasurement) -> str:
    return judge_subspace(found).lead


def points(found: SubspaceMeasurement) -> list[tuple[str, str]]:
    return [(point.tone, point.text) for point in judge_subspace(found).points]


def about(found: SubspaceMeasurement, start: str) -> tuple[str, str]:
    (match,) = [(tone, text) for tone, text in points(found) if text.startswith(start)]
    return match


@pytest.fixture(scope="module")
def subspace() -> SubspaceMeasurement:
    return make_subspace()


def test_leads_with_the_gradient_against_random_directions(subspace):
    text = lead(subspace)
    assert text.startswith("26.1% of the gradient's energy lies in the 10 sharpest of 10.72 million directions, ")
    assert "2.8 × 10⁵ times as much as in 10 random ones" in text
    assert text.endswith("in the gradients of single training batches it is 25.0% (95%: 23.0 to 27.1%).")


def test_the_interval_of_a_share_is_one_of_shares(subspace):
    two = Estimate.from_samples(np.array([0.06, 0.20]))
    assert two.low < 0.0 < 1.0 < two.high
    assert lead(replace(subspace, batch_gradient_share=two)).endswith("it is 13% (95%: 0 to 100%).")


def test_a_gradient_like_a_random_vector_is_not_concentrated(subspace):
    expected = subspace.expected_share
    random = replace(subspace, gradient_share=subspace.random_share.high)
    assert "no more than in 10 random ones" in lead(random)
    assert "times as much" not in lead(random)
    certain = replace(subspace, random_share=Estimate.certain(expected), gradient_share=9.9 * expected)
    assert "9.9 times k/N: not concentrated there" in lead(certain)
    assert "10 times as much as in 10 random ones" in lead(replace(certain, gradient_share=10.1 * expected))


@pytest.mark.parametrize(
    ("overlap", "tone", "words"),
    [
        (0.9, "good", "The sharp subspace is the data's"),
        (0.5, "caution", "The sharp subspace is in part the batch's"),
        (0.1, "caution", "The sharp subspace is the batch's"),
    ],
)
def test_whose_the_subspace_is(overlap, tone, words):
    found = points(make_subspace(halves=overlap))[0]
    assert found[0] == tone
    assert found[1].startswith(f"{words}: those of two halves of the batches overlap by ")
    assert "at random 9.3 × 10⁻⁷" in found[1]


def test_vectors_in_doubt_leave_the_question_open():
    tone, text = points(make_subspace(halves=0.5, residual=0.2))[0]
    assert tone == "caution"
    assert text.startswith("Whether the sharp subspace is the data's is open")
    assert text.endswith("known to a relative residual of 0.2 only, so that the true overlap may be larger.")
    tone, text = points(make_subspace(halves=0.9, residual=0.2))[0]
    assert tone == "good"
    assert text.endswith("known to a relative residual of 0.2 only.")


def test_operators_and_checkpoints_are_compared(subspace):
    found = make_subspace(others=("gpt-500",))
    assert points(found)[1][1].startswith("Hessian and Gauss–Newton share 82.7%")
    assert points(found)[1][1].endswith("of the sharp subspace and agree on it.")
    assert points(found)[2][1].startswith("From gpt-500 to gpt-5000 the sharp subspace turned in part: overlap 31.0%")

    def moved(overlap: float, **changes: float) -> str:
        one = make_overlap("checkpoints", "a", "b", overlap=overlap, **changes)
        return points(replace(subspace, overlaps=(one,)))[0][1]

    assert "stayed: overlap" in moved(0.95)
    assert "turned away: overlap" in moved(0.1)
    assert "the sharp subspace overlaps by 10.0%" in moved(0.1, residual=0.3)
    apart = make_overlap("operators", "Hessian", "Gauss–Newton", overlap=0.4)
    assert points(replace(subspace, overlaps=(apart,)))[0][1].endswith("of the sharp subspace.")
    assert not [text for _, text in points(make_subspace(overlaps=False)) if "overlap" in text or "share" in text]


def test_the_assumption_is_told_by_block(subspace):
    tone, text = about(subspace, "In emb what soap-lite")
    assert tone == "plain"  # norm is open
    assert text.startswith("In emb what soap-lite calls sharp is sharper than what it calls flat (95%: at least ×")
    assert "In qk what soap-lite calls sharp is sharper than what it calls flat (×30, 95%: 26 to 36)." in text
    assert "In norm what soap-lite calls sharp is not told from what it calls flat." in text
    assert text.endswith(f"soap-lite makes no difference between directions in out.{WARMED}")
    tone, text = about(make_subspace(answers={"norm": "fails"}), "In emb what muon-lite")
    assert tone == "caution"
    assert "In norm what muon-lite calls sharp is less sharp than what it calls flat (×0." in text
    tone, text = about(make_subspace(answers={"norm": "holds"}), "In emb what muon-lite")
    assert tone == "good"
    assert "told" not in text
    nothing = make_subspace(answers=dict.fromkeys(("emb", "qk", "vo", "ffn", "norm"), "not used"))
    assert about(nothing, "muon-lite") == (
        "plain",
        "muon-lite makes no difference between directions in emb, qk, vo, ffn, norm and out.",
    )
    empty = replace(subspace.calibrations["muon-lite"], blocks={}, preconditioned=None)
    assert points(replace(subspace, overlaps=(), calibrations={"muon-lite": empty})) == [
        ("plain", "No block was calibrated for muon-lite.")
    ]


def with_block(found: SubspaceMeasurement, **changes: object) -> SubspaceMeasurement:
    """Keep of the calibrations one block of one proxy, changed."""
    block = replace(found.calibrations["muon-lite"].blocks["qk"], **changes)
    calibration = replace(found.calibrations["muon-lite"], blocks={"qk": block})
    return replace(found, calibrations={"muon-lite": calibration})


def test_an_open_difference_is_no_claim_whatever_its_ratio(subspace):
    difference = subspace.calibrations["muon-lite"].blocks["qk"].difference
    found = with_block(subspace, difference=replace(difference, low=-1e-9))
    assert about(found, "In qk") == (
        "plain",
        f"In qk what muon-lite calls sharp is not told from what it calls flat.{WARMED}",
    )


def test_a_difference_that_the_correction_takes_away_is_open(subspace):
    """Among 15 differences one of p = 0.03 is no finding, though its own interval holds no zero."""
    block = subspace.calibrations["muon-lite"].blocks["norm"]
    # t of 15 degrees of freedom: 2.13 at 5%, and 2.4 at 3%.
    faint = Estimate(value=2.4, stderr=1.0, low=0.27, high=4.53, num_samples=16)
    blocks = {**subspace.calibrations["muon-lite"].blocks, "norm": replace(block, difference=faint)}
    changed = replace(subspace.calibrations["muon-lite"], blocks=blocks)
    found = replace(subspace, calibrations={**subspace.calibrations, "muon-lite": changed})
    (claim,) = [one for one in judge_subspace(found).claims if one.quantity == "κ sharp minus κ flat in norm"][1:2]
    assert (claim.subject, claim.status, claim.comparisons, claim.covers) == ("muon-lite", "open", 15, "16 probes")
    assert claim.sentence in about(found, "In emb what muon-lite")[1]
    assert answers(found)["muon-lite", "norm"] == "open"
    alone = replace(subspace, calibrations={"muon-lite": replace(changed, blocks={"norm": blocks["norm"]})})
    assert answers(alone) == {("muon-lite", "norm"): "holds"}


def test_negative_flat_curvature_is_named_in_place_of_a_ratio(subspace):
    flat = Estimate(value=-1.0, stderr=0.1, low=-1.2, high=-0.8, num_samples=16)
    missing = Ratio(value=None, stderr=None, low=None, high=None, num_samples=16)

    def text(**changes: object) -> str:
        return about(with_block(subspace, **changes), "In qk")[1]

    assert text(flat_curvature=flat, contrast=missing).endswith(
        f"than what it calls flat, whose directions curve downward.{WARMED}"
    )
    assert text(contrast=missing).endswith(f"what it calls flat.{WARMED}")
    # A bound below 1 would weaken what the difference has shown.
    assert text(contrast=replace(missing, low=0.6)).endswith(f"what it calls flat.{WARMED}")


def test_contrasts_in_words(subspace):
    ratio = Ratio(value=4.0, stderr=0.5, low=3.0, high=5.5, num_samples=16)

    def text(contrast: Ratio | None) -> str:
        return about(with_block(subspace, contrast=contrast), "In qk")[1]

    assert text(ratio).endswith(f"what it calls flat (×4.0, 95%: 3.0 to 5.5).{WARMED}")
    assert text(replace(ratio, high=None)).endswith(f"what it calls flat (95%: at least ×3.0).{WARMED}")
    assert text(replace(ratio, high=1e6)).endswith(f"what it calls flat (95%: at least ×3.0).{WARMED}")
    assert text(replace(ratio, low=None)).endswith(f"what it calls flat.{WARMED}")
    assert text(replace(ratio, low=-1.0)).endswith(f"what it calls flat.{WARMED}")
    assert text(None).endswith(f"what it calls flat.{WARMED}")


def test_every_claim_is_said_word_for_word(subspace):
    verdict = judge_subspace(make_subspace(answers={"vo": "fails"}))
    said = [verdict.lead, *(point.text for point in verdict.points)]
    assert len(verdict.claims) == 1 + 15 + 3
    assert all(any(claim.sentence in text for text in said) for claim in verdict.claims)
    assert {claim.status for claim in verdict.claims} == {"holds", "fails", "open"}
    metrics = [claim for claim in verdict.claims if claim.subject in ("adamw", "muon", "soap")]
    assert [claim.comparisons for claim in metrics] == [3] * 3


def metric(found: SubspaceMeasurement, **changes: object) -> str:
    calibration = found.calibrations["soap-lite"]
    changed = replace(calibration, preconditioned=replace(calibration.preconditioned, **changes))
    texts = [text for _, text in points(replace(found, overlaps=(), calibrations={"soap-lite": changed}))]
    return texts[1]


def test_metrics_even_the_curvature_out_or_do_not(subspace):
    texts = [text for _, text in points(subspace) if "metric" in text]
    assert texts[0].startswith(
        "The metric of adamw makes the curvature less even: λ₁ over the root mean square λ rises"
    )
    assert texts[2].startswith("The metric of soap evens the curvature out: λ₁ over the root mean square λ falls from")
    assert re.search(r"\(÷1\.8, 95%: [0-9.]+ to [0-9.]+, over probes and warm-up batches\)\.$", texts[2])
    assert not [text for _, text in points(make_subspace(preconditioned=False)) if "metric" in text]


def test_a_metric_within_its_error_or_without_convergence_claims_nothing(subspace):
    plain = subspace.spectrum
    same = {"eigenvalues": plain.eigenvalues[:3], "num_parameters": plain.num_parameters, "trace_h2": plain.trace_h2}
    assert metric(subspace, **same).startswith("In the metric of soap λ₁ over the root mean square λ does not change")
    unconverged = make_operator_spectrum(top=3, unconverged=3)
    assert "is open: λ₁ has not converged" in metric(subspace, converged=unconverged.converged)
    assert metric(subspace, trace_h2=Estimate.certain(0.0)).endswith("is not known.")


def with_left_out(found: SubspaceMeasurement, conditions: np.ndarray | None) -> SubspaceMeasurement:
    changed = replace(found.calibrations["soap-lite"], left_out_conditions=conditions)
    return replace(found, overlaps=(), calibrations={"soap-lite": changed})


def test_a_metric_that_hangs_on_a_group_of_batches_claims_nothing(subspace):
    """Its λ₁ over rms is steady to a percent but for one group, without which it is the plain one's."""
    soap = subspace.calibrations["soap-lite"]
    after = float(soap.left_out_conditions.mean())
    steady = with_left_out(subspace, after * np.array([1.0, 1.01, 0.99, 1.0]))
    assert "evens the curvature out: " in points(steady)[1][1]
    shaken = with_left_out(subspace, after * np.array([1.0, 1.01, 0.99, 1.8]))
    assert "does not change beyond its error" in points(shaken)[1][1]
    change = evenness(shaken.spectrum, shaken.calibrations["soap-lite"])
    assert change.low < 1.0 < change.value < change.high


def test_a_metric_of_an_older_measurement_is_open(subspace):
    found = with_left_out(subspace, None)
    assert points(found)[1] == (
        "caution",
        "How far the metric of soap evens the curvature out is open: how much its state depends on the batches was "
        "not measured.",
    )

"""The verdict says what the numbers allow, and no more."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.sections.spectrum_verdict import anisotropy_range, judge
from lite_probe.results.estimate import Estimate
from lite_probe.results.spectrum import Spectrum
from tests.reports.fixtures import make_operator_spectrum, make_spectrum


def lead(*spectra: Spectrum) -> str:
    return judge([(s.provenance.checkpoint_name, s) for s in spectra]).lead


def points(*spectra: Spectrum) -> list[tuple[str, str]]:
    return [(p.tone, p.text) for p in judge([(s.provenance.checkpoint_name, s) for s in spectra]).points]


def with_whole(spectrum: Spectrum, **changes) -> Spectrum:
    return replace(spectrum, whole=replace(spectrum.whole, **changes))


@pytest.fixture(scope="module")
def spectrum() -> Spectrum:
    return make_spectrum()


def test_leads_with_loss_sharpest_direction_and_rank(spectrum):
    whole = spectrum.whole
    text = lead(spectrum)
    assert text.startswith("At a loss of 1.472 nats per token, the sharpest direction of the Hessian has curvature λ₁")
    assert "λ₁ = 38.210 ± 0.002 loss/param²" in text
    assert "of 10.72 million directions; the 10 largest eigenvalues carry" in text
    low, high = whole.effective_rank_interval
    assert f"The effective rank is {whole.effective_rank:.1f} (95%: {low:.1f} to {high:.1f}) of" in text
    assert f"{whole.trace.low:,.0f} to {whole.trace.high:,.0f})" in text


def test_a_share_of_a_trace_that_may_be_tiny_is_a_bound(spectrum):
    total = float(spectrum.whole.eigenvalues.sum())
    wide = Estimate(value=2.0 * total, stderr=0.2 * total, low=0.1 * total, high=4.0 * total, num_samples=2)
    assert "the 10 largest eigenvalues carry at least 25.0% (95%) of the trace" in lead(
        with_whole(spectrum, trace=wide)
    )


def test_a_sharpest_direction_that_has_not_converged_is_a_lower_bound(spectrum):
    unconverged = make_spectrum(unconverged=10)
    assert "λ₁ of the Hessian has not converged: its Ritz value 38 ± 2 loss/param² is a lower bound" in lead(
        unconverged
    )
    assert ("caution", points(unconverged)[1][1]) == points(unconverged)[1]
    assert "0 of the 10 largest pairs asked for converged" in points(unconverged)[1][1]


def test_says_how_anisotropic_by_the_weaker_of_the_bounds(spectrum):
    # All mass of a probe on nodes ±m: the median is m, resolved, as each node holds half or less.
    def ratio(*medians: float) -> Spectrum:
        nodes = np.concatenate([[-m, 0.9 * m, m] for m in medians])
        return with_whole(
            spectrum,
            nodes=nodes,
            weights=np.tile([0.4, 0.2, 0.4], len(medians)),
            probe_index=np.repeat(np.arange(len(medians)), 3),
            eigenvalues=np.array([100.0]),
            residual_norms=np.array([0.0]),
            converged=np.array([True]),
            deflated_eigenvalues=np.zeros(0),
        )

    assert "100 times the median |λ|: strongly anisotropic" in lead(ratio(1.0, 1.0))
    assert "to 100 times the median |λ| over 2 probes: moderately anisotropic" in lead(ratio(1.0, 2.0))
    assert "extremely anisotropic" in lead(ratio(1e-3, 1e-3))
    assert "weakly anisotropic" in lead(ratio(50.0, 50.0))


def test_an_unresolved_median_is_bounded_by_the_trace_of_the_square(spectrum):
    assert not spectrum.whole.median_is_resolved
    least, most = anisotropy_range(spectrum.whole)
    assert most is None
    assert least == pytest.approx(38.21 / spectrum.whole.median_abs_bound)
    assert "times the median |λ| (bounded by tr H²)" in lead(spectrum)
    flat = with_whole(spectrum, trace_h2=Estimate.certain(0.0))
    assert anisotropy_range(flat.whole) is None
    assert "anisotropic" not in lead(flat)


def test_without_eigenpairs_it_says_so(spectrum):
    none = replace(spectrum, whole=make_operator_spectrum(top=0, bottom=0))
    assert "no eigenpairs of the Hessian were asked for" in lead(none)
    assert len(points(replace(none, verification=None))) == 0
    assert anisotropy_range(none.whole) is None


def test_a_trace_that_may_be_zero_gives_no_rank(spectrum):
    vague = with_whole(spectrum, trace=Estimate.from_samples(np.array([-900.0, 1000.0])))
    # t of one degree of freedom: 12.7 standard errors of 950.
    assert "The trace 50 (95%: −12,000 to 12,000) cannot be told from zero" in lead(vague)
    assert "effective rank is" not in lead(vague)


def test_shares_of_the_trace_in_words(spectrum):
    small = with_whole(spectrum, trace=Estimate.certain(100.0))
    assert "the 10 largest eigenvalues alone exceed the trace 100.0: negative ones cancel" in lead(small)
    negative = with_whole(spectrum, trace=Estimate.certain(-100.0))
    assert "directions; the trace −100.0." in lead(negative)
    one = replace(spectrum, whole=make_operator_spectrum(top=1))
    assert "the largest eigenvalue carries" in lead(one)


def test_negative_curvature_needs_more_than_its_residual(spectrum):
    assert points(spectrum)[0][1].startswith(
        "The checkpoint is no local minimum on these batches: the most negative eigenvalue found is −0.84"
    )
    residuals = np.full(5, 2.0)
    assert "No negative curvature was found" in points(with_whole(spectrum, lower_residual_norms=residuals))[0][1]
    ggn = replace(spectrum, operator="ggn")
    assert "is rounding: a Gauss–Newton matrix has none" in points(ggn)[0][1]
    assert points(ggn)[0][0] == "caution"


def test_the_share_of_downward_directions_needs_a_resolved_bulk(spectrum):
    assert "curve downward" not in points(spectrum)[0][1]
    resolved = with_whole(
        spectrum, nodes=np.array([-1.0, 1.0, 2.0]), weights=np.array([0.3, 0.3, 0.4]), probe_index=np.zeros(3, int)
    )
    assert "30.0% of all directions curve downward" in points(resolved)[0][1]


def test_pairs_that_are_missing_or_unconverged_are_named(spectrum):
    assert points(spectrum)[1] == ("good", "All 15 pairs converged to a relative residual of 0.001.")
    missing = with_whole(spectrum, num_requested=12, lower_converged=np.array([True, True, True, False, False]))
    tone, text = points(missing)[1]
    assert tone == "caution"
    assert "10 of the 12 largest pairs asked for converged" in text
    assert "only 10 were found (stopped: converged)" in text
    assert "3 of 5 at the lower end" in text


def test_pairs_that_stopped_at_rounding_are_told_from_those_within_the_tolerance(spectrum):
    whole = spectrum.whole
    residuals = whole.residual_norms.copy()
    residuals[8:] = [2e-3, 4e-3] * whole.eigenvalues[8:]
    rounding = "to what rounding of float32 allows, a relative residual of up to 0.0040"
    some = with_whole(spectrum, residual_norms=residuals)
    expected = f"All 15 pairs converged: 13 to a relative residual of 0.001, 2 {rounding}."
    assert points(some)[1] == ("good", expected)
    fewer = with_whole(some, lower_converged=np.array([True, True, True, False, False]))
    assert points(fewer)[1] == (
        "caution",
        "10 of the 10 largest pairs asked for converged; 3 of 5 at the lower end. Of those that converged: 11 to a "
        f"relative residual of 0.001, 2 {rounding}. The others are marked and carry their residuals.",
    )
    every = with_whole(some, tolerance=1e-9)
    assert points(every)[1][1] == f"All 15 pairs converged {rounding}."
    zero = with_whole(some, lower_eigenvalues=np.zeros(5))
    assert points(zero)[1][1].endswith("7 to what rounding of float32 allows, a relative residual of 1 and more.")
    unconverged = with_whole(every, converged=np.zeros(10, bool), lower_converged=np.zeros(5, bool))
    assert "0 of the 10 largest pairs asked for converged to a relative residual of" in points(unconverged)[1][1]


def test_the_second_opinion_counts_either_way(spectrum):
    tone, text = points(spectrum)[2]
    assert tone == "good"
    assert text.startswith("PyHessian 0.1 agrees within both errors on eigenvalues and trace; it would have seen ")
    assert "eigenvalues off by 0.4%, trace off by" in text
    vague = replace(spectrum.verification, trace=replace(spectrum.verification.trace, stderr=spectrum.trace.value))
    text = points(replace(spectrum, verification=vague))[2][1]
    assert text.endswith("It could not check the trace.")
    assert "on eigenvalues; it would" in text
    blind = replace(vague, eigenvalue_errors=vague.our_eigenvalues)
    tone, text = points(replace(spectrum, verification=blind))[2]
    assert tone == "caution"
    assert text == "PyHessian 0.1 could not check the eigenvalues and trace: its errors are too large."
    tone, text = points(make_spectrum(verified=False))[2]
    assert tone == "caution"
    assert text == "PyHessian 0.1 disagrees beyond both errors on the eigenvalues, though it agrees on the trace."
    neither = replace(spectrum.verification, eigenvalues_agree=False, trace_agrees=False)
    text = points(replace(spectrum, verification=neither))[2][1]
    assert text == "PyHessian 0.1 disagrees beyond both errors on the eigenvalues and trace."
    assert len(points(make_spectrum(verified=None))) == 2


def test_several_checkpoints_are_compared(spectrum):
    early = make_spectrum(name="gpt-500", step=500, loss=2.41, sharpest=12.3)
    text = lead(early, spectrum)
    assert text.startswith("From gpt-500 to gpt-5000 the loss fell from 2.410 to 1.472, λ₁ rose from 12.3000 ±")
    assert "(×3.11)" in text
    assert "different batches" not in text
    texts = [text for _, text in points(early, spectrum)]
    assert texts[0].startswith("gpt-500: At a loss")
    assert any(text.startswith("gpt-5000: All 15 pairs") for text in texts)


def test_a_change_within_its_error_is_none(spectrum):
    same = make_spectrum(name="again", sharpest=38.2105, loss=1.4720)
    noisy = with_whole(same, residual_norms=np.full(10, 0.01), trace=spectrum.trace)
    text = lead(spectrum, noisy)
    assert "λ₁ did not change beyond its error (from 38.210 ± 0.002 to 38.21 ± 0.01)" in text
    low, high = (f"{bound:,.0f}" for bound in (spectrum.trace.low, spectrum.trace.high))
    assert re.search(rf"the trace did not change beyond its error \(from [\d,]+ \(95%: {low} to {high}\) to ", text)


def test_what_cannot_be_compared_is_not(spectrum):
    other = make_spectrum(name="other", batches_digest="else")
    assert "measured on different batches" in lead(spectrum, other)
    assert "λ₁ cannot be compared, as it has not converged for both" in lead(spectrum, make_spectrum(unconverged=10))
    none = replace(spectrum, whole=make_operator_spectrum(top=0, bottom=0))
    assert "λ₁ was not measured for both" in lead(spectrum, none)
    ggn = replace(spectrum, operator="ggn")
    assert lead(spectrum, ggn) == (
        "Spectra of different operators (Hessian, Gauss–Newton matrix) stand side by side; they are not compared."
    )


def test_a_loss_per_sample_is_called_so():
    assert "nats per sample" in lead(make_spectrum(seq_len=None))


def test_a_lead_is_made_of_claims_word_for_word(spectrum):
    verdict = judge([("", spectrum)])
    sharpest, trace, lowest = verdict.claims
    assert verdict.lead == f"{sharpest.sentence} {trace.sentence}"
    assert verdict.points[0].text == lowest.sentence
    assert (sharpest.value, sharpest.high) == (38.21, 38.21 + float(spectrum.residual_norms[0]))
    assert [claim.status for claim in verdict.claims] == ["holds"] * 3
    assert [claim.covers for claim in verdict.claims] == [
        "the residual, on these batches",
        "8 probes",
        "the residual, on these batches",
    ]
    # A residual bounds, an interval over probes errs in one of twenty.
    assert [claim.confidence for claim in verdict.claims] == [1.0, 0.95, 1.0]


def test_a_smallest_eigenvalue_above_its_residual_is_no_negative_curvature(spectrum):
    convex = with_whole(
        spectrum,
        lower_eigenvalues=np.array([0.5]),
        lower_residual_norms=np.array([0.1]),
        lower_converged=np.array([True]),
    )
    (claim,) = judge([("", convex)]).points[0].claims
    assert (claim.status, claim.low, claim.high) == ("fails", 0.4, 0.6)
    vague = with_whole(spectrum, lower_residual_norms=np.full(5, 2.0))
    assert judge([("", vague)]).points[0].claims[0].status == "open"


def test_a_change_of_the_trace_needs_its_t_interval_over_few_probes(spectrum):
    """Three probes: 2.9 joint standard errors are a p-value of 0.10, and the halves of t intervals are 4.3 of each."""

    def with_trace(value: float, name: str) -> Spectrum:
        half = 4.303 * 10.0
        trace = Estimate(value=value, stderr=10.0, low=value - half, high=value + half, num_samples=3)
        return with_whole(make_spectrum(name=name), trace=trace)

    early = with_trace(500.0, "early")
    near, far = with_trace(541.0, "near"), with_trace(600.0, "far")
    for late, status, words in ((near, "open", "did not change beyond its error"), (far, "holds", "rose from 500")):
        verdict = judge([("early", early), ("late", late)])
        (claim,) = [one for one in verdict.leading if one.quantity == "trace minus that of early"]
        assert (claim.subject, claim.status, claim.covers) == ("late", status, "3 probes")
        assert f"the trace {words}" in claim.sentence
        assert verdict.lead == claim.sentence

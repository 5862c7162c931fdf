"""What the demo says; that it runs from end to end is what `make demo` shows."""

from collections.abc import Callable

from lite_probe.commands.demo import findings
from lite_probe.results.spectrum import Spectrum


def test_findings_are_sentences_with_errors(make_spectrum: Callable[..., Spectrum]) -> None:
    early, late = make_spectrum(step=100, loss=2.5, blocks=True), make_spectrum(step=400, loss=1.9, blocks=True)
    assert findings(early, late) == [
        "From step 100 to step 400 the loss went from 2.5 to 1.9, and the sharpest curvature λ₁ from "
        "10.0000 ± 0.0010 to 10.0000 ± 0.0010.",
        "At step 400 the sharpest direction is 13 times as curved as the median one, and the curvature is that of "
        "100.0 ± 4.5 equal directions out of 1,000.",
        "Its sharpest block is emb: λ₁ 10.0000 ± 0.0010 alone.",
    ]

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.commands.summary import block_table, condition_to_median, figures, json_object, verification_line
from lite_probe.results.spectrum import Spectrum

MakeSpectrum = Callable[..., Spectrum]


def test_figures_carry_their_errors(make_spectrum: MakeSpectrum) -> None:
    assert figures(make_spectrum()) == [
        "loss 1.472",
        "λ₁ 10.0000 ± 0.0010",
        "λ₁₀ 1.0000 ± 0.0010",
        "λmin −1.0000 ± 0.0020",
        "trace 200.0 ± 4.0",
        "λ₁/median|λ| 13",
        "effective rank 100.0 ± 4.5",
    ]


def test_an_unresolved_median_gives_a_bound(make_spectrum: MakeSpectrum) -> None:
    whole = make_spectrum().whole
    lumped = replace(whole, nodes=whole.nodes[:1], weights=np.ones(1), probe_index=np.zeros(1, dtype=np.int64))
    # At most 420/t² of 1,000 eigenvalues lie above t: half of them at most at t = √0.84, and 10/√0.84 = 10.9.
    assert condition_to_median(lumped, "at least ") == "at least 11"


def test_figures_of_what_was_not_asked_are_left_out(make_spectrum: MakeSpectrum) -> None:
    found = figures(make_spectrum(top=1, bottom=0, probes=False))
    assert [text.split()[0] for text in found] == ["loss", "λ₁", "trace", "λ₁/median|λ|", "effective"]
    assert "λ₁/median|λ| ≥ 1.1" in found


def test_the_block_table_has_a_row_for_every_block(make_spectrum: MakeSpectrum) -> None:
    header, rows = block_table(make_spectrum(blocks=True).blocks)
    assert [row[0] for row in rows] == ["emb", "qk"]
    assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize(("verified", "verdict"), [(True, "PyHessian 0.1 agrees"), (False, "PyHessian 0.1 DISAGREES")])
def test_the_second_opinion_is_told_either_way(make_spectrum: MakeSpectrum, verified: bool, verdict: str) -> None:
    verification = make_spectrum(verified=verified).verification
    assert verification is not None
    line = verification_line(verification)
    assert line.startswith(verdict)
    assert "205.0 ± 5.0 here 200" in line


def test_the_second_opinion_says_what_it_would_have_seen(make_spectrum: MakeSpectrum) -> None:
    verification = make_spectrum(verified=True).verification
    assert verification is not None
    lowest = replace(
        verification, lower_eigenvalue=-1.02, lower_error=0.05, our_lower_eigenvalue=-1.0, lower_agrees=True
    )
    line = verification_line(lowest)
    assert "λmin −1.020 ± 0.050 here −1" in line
    assert "; it would have seen λ₁ off by " in line
    assert "λmin off by 5%" in line
    assert "not checked" not in line
    blind = replace(lowest, lower_error=2.0)
    assert "λmin off by 200% (not checked)" in verification_line(blind)
    assert blind.verdicts["lower"] is None
    assert verification_line(replace(lowest, lower_agrees=False)).startswith(f"{lowest.library} DISAGREES")
    unseen = replace(lowest, eigenvalue_errors=2 * np.abs(lowest.our_eigenvalues))
    assert verification_line(unseen).startswith(f"{lowest.library} CANNOT TELL")


def test_the_json_object_holds_what_the_readme_promises(make_spectrum: MakeSpectrum) -> None:
    found = json.loads(json.dumps(json_object(make_spectrum(blocks=True, verified=True)), allow_nan=False))
    per_operator = {
        "num_parameters",
        "num_hvps",
        "eigenvalues",
        "residual_norms",
        "trace",
        "trace_h2",
        "effective_rank",
        "median_abs_eigenvalue",
        "most_negative_eigenvalue",
        "loss",
    }
    assert per_operator | {"blocks", "notes", "wall_seconds"} <= found.keys()
    assert per_operator <= found["blocks"]["qk"].keys()
    assert found["trace"] == {"value": 200.0, "stderr": 4.0, "low": 190.0, "high": 210.0}
    assert found["eigenvalues"][0] == 10.0
    assert found["notes"] == [{"code": "unused-parameters", "message": "expected all, got some"}]

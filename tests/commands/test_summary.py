import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.sections.section import Figures, Grid, describe, summarize
from lite_probe.reports.sections.spectrum import block_table, verification_table
from lite_probe.results.estimate import Estimate
from lite_probe.results.spectrum import Spectrum
from tests.commands.running import lines_on, on_screen

MakeSpectrum = Callable[..., Spectrum]


def figures(spectrum: Spectrum) -> list[str]:
    (found,) = [block for block in summarize("spectrum", spectrum) if isinstance(block, Figures)]
    return list(found.texts)


def grids(spectrum: Spectrum) -> list[Grid]:
    return [block for block in summarize("spectrum", spectrum) if isinstance(block, Grid)]


def test_figures_carry_their_errors(make_spectrum: MakeSpectrum) -> None:
    """Those of λ are bounds; those of estimates are halves of 95% intervals, by the fixture 10 and 10."""
    rank = make_spectrum().whole.effective_rank_interval
    assert rank is not None
    assert figures(make_spectrum()) == [
        "loss 1.472",
        "λ₁ 10.000±0.001",
        "λ₁₀ 1.000±0.001",
        "λmin −1.000±0.002",
        "trace 200±10",
        f"effective rank 100±{rank[1] - 100.0:.0f}",
        "λ₁/median|λ| 13",
    ]


def test_a_rank_that_cannot_be_told_is_no_number(make_spectrum: MakeSpectrum) -> None:
    found = make_spectrum(blocks=True)
    vague = Estimate(value=3.0, stderr=2.0, low=-3.4, high=9.4, num_samples=4)
    blocks = {name: replace(block, trace=vague) for name, block in found.blocks.items()}
    unsure = replace(found, whole=replace(found.whole, trace=vague), blocks=blocks)
    assert "effective rank cannot be told" in figures(unsure)
    assert {row[-2] for row in grids(unsure)[0].rows} == {"cannot be told"}
    told = describe("spectrum", unsure)
    assert (told["effective_rank"], told["effective_rank_interval"]) == (None, None)
    assert told["blocks"]["qk"]["effective_rank"] is None
    (claim,) = [one for one in told["claims"] if one["quantity"] == "trace"]
    assert claim["status"] == "open"
    assert claim["sentence"].startswith("The trace 3.0 (95%: −3.4 to 9.4) cannot be told from zero")


def test_an_unresolved_median_gives_a_bound(make_spectrum: MakeSpectrum) -> None:
    found = make_spectrum()
    whole = found.whole
    lumped = replace(whole, nodes=whole.nodes[:1], weights=np.ones(1), probe_index=np.zeros(1, dtype=np.int64))
    # At most 420/t² of 1,000 eigenvalues lie above t: half of them at most at t = √0.84, and 10/√0.84 = 10.9.
    assert figures(replace(found, whole=lumped))[-1] == "λ₁/median|λ| ≥ 11"


def test_figures_of_what_was_not_asked_are_left_out(make_spectrum: MakeSpectrum) -> None:
    found = figures(make_spectrum(top=1, bottom=0, probes=False))
    assert [text.split()[0] for text in found] == ["loss", "λ₁", "trace", "effective", "λ₁/median|λ|"]
    assert "λ₁/median|λ| ≥ 1.1" in found


def test_the_block_table_has_a_row_for_every_block(make_spectrum: MakeSpectrum) -> None:
    (grid,) = grids(make_spectrum(blocks=True))
    assert [row[0] for row in grid.rows] == ["whole", "emb", "qk"]
    assert {len(row) for row in grid.rows} == {len(grid.header)}
    assert grids(make_spectrum()) == []


@pytest.mark.parametrize("width", [80, 120])
def test_no_table_breaks_or_cuts_a_number(
    make_spectrum: MakeSpectrum, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for grid in grids(make_spectrum(blocks=True, verified=True)):
        terminal, screen = on_screen(monkeypatch, width)
        terminal.show([grid])
        drawn = [line for line in lines_on(screen) if line.strip()]
        assert len(drawn) == 1 + len(grid.rows)
        assert "…" not in screen.getvalue()


@pytest.mark.parametrize(("verified", "words"), [(True, "agrees within both"), (False, "disagrees beyond both")])
def test_the_second_opinion_is_told_either_way(make_spectrum: MakeSpectrum, verified: bool, words: str) -> None:
    found = make_spectrum(verified=verified)
    assert any(words in str(block) for block in summarize("spectrum", found))
    table = verification_table([("", found)], is_alone=True)
    assert table is not None
    assert [cell.text for cell in table.rows[-1][:4]] == ["PyHessian 0.1", "trace", "205.00", "200.00"]


def test_the_second_opinion_on_the_lower_end_is_listed(make_spectrum: MakeSpectrum) -> None:
    found = make_spectrum(verified=True)
    assert found.verification is not None
    lowest = replace(
        found.verification, lower_eigenvalue=-1.02, lower_error=0.05, our_lower_eigenvalue=-1.0, lower_agrees=True
    )
    table = verification_table([("", replace(found, verification=lowest))], is_alone=True)
    assert table is not None
    row = [cell.text.replace("\u00a0", " ") for cell in table.rows[-2]]
    assert row == ["PyHessian 0.1", "λmin", "−1.0200", "−1.0000", "−0.020 ✓", "± 0.050"]
    blind = replace(lowest, lower_error=2.0)
    assert blind.verdicts["lower"] is None
    assert any(
        "It could not check the λmin." in str(b) for b in summarize("spectrum", replace(found, verification=blind))
    )


def test_the_json_object_holds_what_the_readme_promises(make_spectrum: MakeSpectrum) -> None:
    spectrum = make_spectrum(blocks=True, verified=True)
    found = json.loads(json.dumps(describe("spectrum", spectrum), allow_nan=False))
    per_operator = {
        "num_parameters",
        "num_hvps",
        "num_fast_hvps",
        "product_error",
        "eigenvalues",
        "residual_norms",
        "lower_eigenvalues",
        "lower_residual_norms",
        "trace",
        "trace_h2",
        "effective_rank",
        "median_abs_eigenvalue",
        "median_is_resolved",
        "median_abs_bound",
        "most_negative_eigenvalue",
        "stop_reason",
        "loss",
    }
    further = {"operator", "gradient_norm", "blocks", "verification", "notes", "wall_seconds", "peak_memory_bytes"}
    assert per_operator | further | {"fingerprint", "lead", "claims"} == found.keys() - {"effective_rank_interval"}
    assert per_operator <= found["blocks"]["qk"].keys()
    assert found["trace"] == {"value": 200.0, "stderr": 4.0, "low": 190.0, "high": 210.0}
    assert found["eigenvalues"][0] == 10.0
    assert found["notes"] == [{"code": "unused-parameters", "message": "expected all, got some"}]
    assert set(found["verification"]) == {
        *("library", "agrees", "eigenvalues", "eigenvalue_errors", "lower_eigenvalue", "lower_error", "trace"),
        *("verdicts", "detectable"),
    }
    # The lead is made of claims, word for word.
    sentences = [claim["sentence"] for claim in found["claims"]]
    assert found["lead"] == " ".join(sentences[:2])
    assert [claim["quantity"] for claim in found["claims"]] == [
        "largest eigenvalue",
        "trace",
        "smallest eigenvalue",
    ]


def test_the_page_and_the_terminal_write_the_same_numbers(make_spectrum: MakeSpectrum) -> None:
    found = make_spectrum(blocks=True)
    table = block_table([("", found)], is_alone=True)
    assert table is not None
    (grid,) = grids(found)
    place = [column.title for column in table.columns].index("trace")
    assert [row[4] for row in grid.rows] == [row[place].text.replace("\u00a0", "").strip() for row in table.rows]

"""What a page says, tested before anything is drawn."""

import csv
import io
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lite_probe.reports.drawing import asinh_ticks, log_ticks
from lite_probe.reports.runs import Run
from lite_probe.reports.table import Cell, Column, make_table, write_csv
from lite_probe.reports.view import PageView, make_labels, make_view
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import Spectrum
from tests.reports.fixtures import make_operator_spectrum, make_replay, make_spectrum, make_subspace


@pytest.fixture(scope="module")
def spectrum() -> Spectrum:
    return make_spectrum()


@pytest.fixture(scope="module")
def early() -> Spectrum:
    return make_spectrum(name="gpt-500", step=500, loss=2.41, sharpest=12.3, verified=None, seed=4)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def page_of(*spectra: Spectrum) -> PageView:
    return make_view([Run(spectrum=spectrum) for spectrum in spectra])


def view_of(*spectra: Spectrum) -> SimpleNamespace:
    return SimpleNamespace(**page_of(*spectra).parts["spectrum"].view)


def traces(figure: dict[str, Any], **style: object) -> list[dict[str, Any]]:
    """Return the traces of a figure that have these settings."""
    return [one for one in figure["data"] if all(one.get(key) == value for key, value in style.items())]


def test_refuses_an_empty_page():
    with pytest.raises(ValueError, match="expected at least one run for a page, got none"):
        make_view([])
    kinds = "spectrum, subspace, steps, replay, tuning, training"
    with pytest.raises(ValueError, match=f"expected a result in a run, of {kinds}, got none"):
        Run()
    with pytest.raises(ValueError, match=f"expected results of {kinds}, got sketch"):
        Run(sketch=make_spectrum())


def test_checkpoints_are_shown_by_step(spectrum, early):
    assert page_of(spectrum, early).title == "Hessian spectrum of gpt-500 and gpt-5000"
    unknown = make_spectrum(name="unknown", step=None)
    assert page_of(spectrum, unknown, early).title.endswith("gpt-5000, unknown and gpt-500")
    assert page_of(spectrum, early, unknown, unknown).title.endswith("of 4 checkpoints")


def test_labels_differ(spectrum):
    whole, other_step = Run(spectrum=spectrum), Run(spectrum=make_spectrum(step=100))
    assert make_labels([whole, other_step]) == ["gpt-5000, step 5,000", "gpt-5000, step 100"]
    ggn = Run(spectrum=replace(spectrum, operator="ggn"))
    assert make_labels([whole, ggn]) == ["gpt-5000, step 5,000, hessian", "gpt-5000, step 5,000, ggn"]
    assert len(set(make_labels([whole, whole, whole]))) == 3
    assert len(set(make_labels([Run(subspace=make_subspace()), Run(replay=make_replay(steps=2))]))) == 2


def test_a_page_names_its_parts(spectrum):
    whole = make_view([Run(spectrum=spectrum, subspace=make_subspace(), replay=make_replay(steps=3))])
    assert whole.title == "Hessian spectrum, sharp and flat directions and replay of gpt-5000"
    assert [column.title for column in whole.provenance[1].columns] == ["what", "Spectrum", "Sharp and flat", "Replay"]
    assert [label for label, _ in whole.commands] == [
        "gpt-5000: spectrum",
        "gpt-5000: sharp and flat",
        "gpt-5000: replay",
    ]
    assert {code for _, code, _ in whole.notes} == {"unused-parameters", "metric-bounded", "refined"}
    alone = make_view([Run(replay=make_replay(steps=3))])
    assert alone.title == "Replay of gpt-5000"
    assert alone.subject == "gpt-5000"
    assert list(alone.parts) == ["replay"]
    assert "10.73 million parameters" in alone.overview.on


@pytest.mark.slow
def test_several_runs_have_a_row_or_a_section_each(spectrum):
    runs = [
        Run(subspace=make_subspace(), replay=make_replay(steps=3)),
        Run(
            spectrum=make_spectrum(name="gpt-500", step=500),
            subspace=make_subspace(name="gpt-500", step=500),
            replay=make_replay(name="gpt-500", step=500, steps=3),
        ),
    ]
    view = make_view(runs)
    assert view.title.endswith("of gpt-500 and gpt-5000")
    assert [row[0].text for row in view.parts["subspace"].view["energy"].rows] == ["gpt-500", "gpt-5000"]
    assert [(replay["label"], replay["number"]) for replay in view.parts["replay"].view] == [
        ("gpt-500", 1),
        ("gpt-5000", 2),
    ]
    assert [label for label, _ in view.parts["replay"].leads] == ["gpt-500", "gpt-5000"]
    assert [column.title for column in view.provenance[1].columns][:2] == ["what", "gpt-500: Spectrum"]
    figures = view.figures
    assert {"calibration-1-1", "calibration-2-3", "contrast-2", "loss-1", "loss-2", "bands-2-6"} <= set(figures)


def test_the_first_line_names_what_was_measured(spectrum):
    assert page_of(spectrum).overview.on == (
        "nanoGPT · 6 layers · hidden 384",
        "10.72 million parameters",
        "step 5,000",
        "losses of 4 batches of 4 × 256 tokens of val.bin (evaluation)",
        "float32 on cpu",
    )
    assert "batches of 4 of val.bin" in " ".join(page_of(make_spectrum(seq_len=None)).overview.on)
    assert "1 batch of 4" in " ".join(page_of(make_spectrum(num_batches=1)).overview.on)


def test_key_numbers_keep_every_digit_in_the_csv(spectrum, early):
    table = view_of(spectrum, early).key_numbers
    assert [column.title for column in table.columns] == ["quantity", "gpt-500", "gpt-5000"]
    rows = {(row["checkpoint"], row["quantity"]): row for row in read(table.csv)}
    assert float(rows["gpt-5000", "loss"]["value"]) == spectrum.loss
    assert float(rows["gpt-500", "λ₁"]["value"]) == early.eigenvalues[0]
    assert float(rows["gpt-500", "λ₁"]["error"]) == early.residual_norms[0]
    assert float(rows["gpt-5000", "trace"]["error"]) == spectrum.trace.high - spectrum.trace.value
    assert float(rows["gpt-5000", "effective rank"]["value"]) == spectrum.whole.effective_rank
    assert rows["gpt-5000", "median |λ|"]["value"] == ""  # not resolved: no number, and a bound on the page


def test_a_resolved_median_is_given_with_its_range(spectrum):
    nodes, weights = np.array([-1.0, 1.0, 2.0]), np.array([0.3, 0.3, 0.4])
    rules = {
        "nodes": np.concatenate([nodes, 2 * nodes]),
        "weights": np.tile(weights, 2),
        "probe_index": np.repeat([0, 1], 3),
    }
    resolved = replace(spectrum, whole=replace(spectrum.whole, **rules))
    shown = {row[0].text: row[1].text for row in view_of(resolved).key_numbers.rows}
    assert "≤" not in shown["median |λ|"]
    assert shown["share of negative eigenvalues"] == "30.0%"
    assert " to " in shown["λ₁ / median |λ|"]


def test_pairs_carry_their_residuals(spectrum):
    unconverged = make_spectrum(unconverged=3)
    view = view_of(unconverged)
    assert [state for state, _ in view.upper.figure["data"][0]["customdata"]] == ["converged"] * 7 + [
        "not converged"
    ] * 3
    rows = read(view.pairs.csv)
    assert [row["checkpoint"] for row in rows] == ["gpt-5000"] * 15
    assert [float(row["λ (loss/param²)"]) for row in rows[:10]] == unconverged.eigenvalues.tolist()
    assert [row["converged"] for row in rows] == ["yes"] * 7 + ["no"] * 3 + ["yes"] * 5
    assert "checkpoint" not in [column.title for column in view.pairs.columns]
    assert "checkpoint" in [column.title for column in view_of(spectrum, unconverged).pairs.columns]


def test_an_end_is_logarithmic_only_where_all_is_of_one_sign(spectrum):
    view = view_of(spectrum)
    upper, lower = view.upper.figure, view.lower.figure
    assert [one["layout"]["yaxis"]["type"] for one in (upper, lower)] == ["log", "log"]
    assert upper["layout"]["yaxis"]["title"]["text"] == "λᵢ (loss/param²)"
    assert lower["layout"]["yaxis"]["title"]["text"] == "−λ (loss/param²)"
    assert lower["data"][0]["y"] == (-spectrum.whole.lower_eigenvalues).tolist()
    assert view.lower.summary.endswith("5 from −0.8406 to −0.2320, 5 converged. Logarithmic axis, of sizes.")
    mixed = replace(
        spectrum.whole,
        lower_eigenvalues=np.array([-1.0, 0.5]),
        lower_residual_norms=np.zeros(2),
        lower_converged=np.ones(2, bool),
    )
    lower = view_of(replace(spectrum, whole=mixed)).lower.figure
    assert "type" not in lower["layout"]["yaxis"]
    assert lower["data"][0]["y"] == [-1.0, 0.5]


def test_density_curves_are_finite_and_inside_the_axis(spectrum, early):
    view = view_of(spectrum, early)
    for density in (view.density.figure, view.density_linear.figure):
        floor, ceiling = (10.0**end for end in density["layout"]["yaxis"]["range"])
        curves, bands = traces(density, mode="lines", hoverinfo=None), traces(density, fill="toself")
        assert [curve["name"] for curve in curves] == ["gpt-500", "gpt-5000"]
        for curve, band in zip(curves, bands, strict=True):
            assert len(band["y"]) == 2 * len(curve["x"]) == 2 * len(curve["y"])
            assert all(math.isfinite(value) for value in (*curve["y"], *band["y"]))
            assert max(band["y"]) < ceiling
        for atoms in traces(density, mode="markers"):
            assert all(height > floor for height in atoms["y"])
    assert "0" in view.density.figure["layout"]["xaxis"]["ticktext"]
    assert "ticktext" not in view.density_linear.figure["layout"]["xaxis"]


def test_asinh_ticks_are_symmetric_powers_of_ten():
    assert [label for _, label in asinh_ticks(0.1, 38.0)] == ["−10", "−1", "−0.1", "0", "0.1", "1", "10"]
    for position, label in asinh_ticks(0.1, 38.0):
        assert 0.1 * math.sinh(position) == pytest.approx(float(label.replace("−", "-")))
    crowded = [label for _, label in asinh_ticks(0.01, 38.0)]
    assert crowded == ["−10", "−1", "−0.1", "", "0", "", "0.1", "1", "10"]
    assert [label for _, label in asinh_ticks(1e-5, 1e-6)] == ["−10⁻⁵", "0", "10⁻⁵"]


def sharpest(view: SimpleNamespace) -> list[list[float | None]]:
    """Return where λ₁ of every block is drawn, per checkpoint."""
    found = traces(view.blocks.figure, mode="markers", showlegend=False)
    return [list(one["x"]) for one in found if one["customdata"][0][1] == "λ₁"]


def test_blocks_stand_in_their_customary_order(spectrum):
    shuffled = replace(
        spectrum, blocks={name: spectrum.blocks[name] for name in ("out", "norm", "ffn", "vo", "qk", "emb")}
    )
    view = view_of(replace(shuffled, blocks={"mine": spectrum.blocks["qk"], **shuffled.blocks}))
    names = view.blocks.figure["layout"]["yaxis"]["ticktext"]
    assert names == ["emb", "qk", "vo", "ffn", "norm", "out", "mine"]
    assert sharpest(view)[0][:2] == [21.4, 6.31]
    rows = read(view.block_table.csv)
    assert [row["block"] for row in rows] == ["whole", *names]
    assert int(rows[1]["parameters"]) == spectrum.blocks["emb"].num_parameters


def test_a_block_that_one_checkpoint_lacks_is_left_open(spectrum, early):
    without = replace(early, blocks={k: v for k, v in early.blocks.items() if k != "qk"})
    view = view_of(spectrum, without)
    place = view.blocks.figure["layout"]["yaxis"]["ticktext"].index("qk")
    assert [values[place] for values in sharpest(view)] == [None, 6.31]
    negative = replace(
        spectrum.blocks["qk"], eigenvalues=np.array([-1.0]), residual_norms=np.zeros(1), converged=np.ones(1, bool)
    )
    assert sharpest(view_of(replace(spectrum, blocks={"qk": negative}))) == [[None]]


def test_parts_that_were_not_measured_are_absent():
    bare = make_spectrum(blocks=False, verified=None, notes=())
    bare = replace(bare, whole=make_operator_spectrum(top=0, bottom=0, probes=0))
    page = page_of(bare)
    view = SimpleNamespace(**page.parts["spectrum"].view)
    assert (view.density, view.upper, view.lower, view.pairs) == (None, None, None, None)
    assert (view.blocks, view.block_table, view.verification, page.notes) == (None, None, None, ())
    assert page.figures == {}
    assert page.parts["spectrum"].links == ()
    assert page_of(make_spectrum()).parts["spectrum"].links == [("blocks", "Blocks")]


def test_verification_marks_what_differs():
    rows = view_of(make_spectrum(verified=False)).verification.rows
    assert [row[4].tone for row in rows] == ["good", "caution", "caution", "good"]
    assert [row[1].text for row in rows] == ["λ₁", "λ₂", "λ₃", "trace"]


def test_every_note_is_shown_once_with_its_carriers(spectrum, early):
    lone = Note(code="float32-basis", message="The basis was kept in float32.")
    view = page_of(spectrum, replace(early, notes=(*early.notes, lone)))
    assert [(code, labels) for _, code, labels in view.notes] == [
        ("unused-parameters", "gpt-500, gpt-5000"),
        ("float32-basis", "gpt-500"),
    ]
    assert page_of(spectrum).notes[0][2] == ""


def test_provenance_holds_every_field(spectrum):
    rows = {row[0].text: row[1].text for row in page_of(spectrum).provenance[0].rows}
    origin = spectrum.provenance
    shown = {name.replace("-", " ") for name in rows}
    for name in origin.__slots__:
        if name != "details":
            assert name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " ") in shown
    assert rows["batches digest"] == origin.batches_digest
    assert rows["wall"] == "3 min 7 s"
    assert rows["peak memory"] == "2.1 GiB"
    assert rows["attention"] == "eager"
    assert rows["config: tolerance"] == "0.001"
    assert rows["config: memory"] == "null"
    assert rows["result fingerprint"] == spectrum.fingerprint


def test_csv_fields_that_a_spreadsheet_would_run_are_quoted():
    text = write_csv(["name", "=x"], [["=cmd|' /C calc'!A0", -1.5], ["@a", None], ["-b,c", True]])
    assert text == "name,'=x\n'=cmd|' /C calc'!A0,-1.5\n'@a,\n\"'-b,c\",yes\n"
    # A checkpoint's name heads a column of the provenance.
    named = make_view([Run(spectrum=make_spectrum(name="=1+1", step=None)), Run(spectrum=make_spectrum())])
    assert named.provenance[1].csv.startswith("what,'=1+1: Spectrum,")


def test_errors_have_columns_of_their_own_in_the_csv():
    columns = [Column(title="x", unit="nats", has_error=True), Column(title="y")]
    rows = [[Cell(text="1 ± 2", raw=1.0, error=2.0), Cell(text="3", raw=3)], [Cell(text="–"), Cell(text="4", raw=4)]]
    table = make_table("t", "A table.", columns, rows)
    assert table.csv == "x (nats),x error (nats),y\n1.0,2.0,3\n,,4\n"


# Figures


def test_figures_name_colours_of_the_page_only(spectrum, early):
    figures = page_of(spectrum, early).figures
    own = {"density", "density-linear", "upper-end", "lower-end", "blocks"}
    assert set(figures) == own | {
        f"comparison-{name}" for name in ("lambda-1", "trace", "anisotropy", "block-lambda-1")
    }

    def colours(value, key=""):
        if isinstance(value, dict):
            for name, item in value.items():
                yield from colours(item, name)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from colours(item, key)
        elif isinstance(value, str) and ("color" in key or value.startswith("#")):
            yield value

    found = set(colours(figures))
    assert len(found) > 5
    assert found <= {
        *(f"var(--{name})" for name in ("text", "surface", "muted")),
        *(f"var(--series-{place})" for place in range(1, 7)),
    }


def test_open_markers_have_not_converged():
    figure = page_of(make_spectrum(unconverged=4)).figures["upper-end"]
    assert figure["data"][0]["marker"]["symbol"] == ["circle"] * 6 + ["circle-open"] * 4
    assert len(figure["data"][0]["error_y"]["array"]) == 10


def test_a_block_figure_without_positive_numbers_is_still_drawn(spectrum):
    negative = replace(
        spectrum.blocks["qk"],
        eigenvalues=np.zeros(0),
        residual_norms=np.zeros(0),
        converged=np.zeros(0, bool),
        trace=replace(spectrum.trace, value=-1.0),
        trace_h2=replace(spectrum.trace, high=0.0),
    )
    figure = page_of(replace(spectrum, blocks={"qk": negative})).figures["blocks"]
    assert figure["layout"]["xaxis"]["range"] == [-1.0, 1.0]


def test_log_ticks_are_few_and_within():
    assert log_ticks(2.0, 40.0)["ticktext"] == ["2", "5", "10", "20"]
    assert log_ticks(9.0, 60.0)["ticktext"] == ["10", "15", "20", "30", "40", "50"]
    assert log_ticks(120.0, 600.0)["ticktext"] == ["150", "200", "300", "400", "500"]
    assert log_ticks(1e-5, 5e-5)["ticktext"][1].replace("\u00a0", " ") == "1.5 × 10⁻⁵"
    wide = log_ticks(1e-9, 30.0)
    assert wide["ticktext"][0] == "10⁻⁹"
    assert len(wide["tickvals"]) <= 9
    assert log_ticks(1e-3, 10.0)["ticktext"] == ["0.001", "0.01", "0.1", "1", "10"]


def test_a_residual_below_the_last_digit_is_left_out_of_the_block_table(spectrum):
    sharp = replace(spectrum.blocks["qk"], residual_norms=np.full(3, 1e-9))
    view = view_of(replace(spectrum, blocks={"qk": sharp, "vo": spectrum.blocks["vo"]}))
    shown = [row[2].text.replace("\u00a0", " ") for row in view.block_table.rows]
    assert shown == ["38.210 ± 0.002", "6.3100", "3.8700 ± 0.0003"]


def test_a_measurement_from_python_shows_no_empty_command(spectrum):
    assert [command for _, command in page_of(spectrum).commands] == [spectrum.provenance.command]
    assert page_of(make_spectrum(command="")).commands == ()

"""Sharp and flat directions as they are shown: the gradient's energy, overlaps, LITE's proxies and metrics."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lite_probe.reports.drawing import by_name
from lite_probe.reports.numbers import MISSING, format_number, format_uncertain
from lite_probe.reports.sections.section import (
    TEMPLATES,
    Block,
    Line,
    Part,
    Section,
    attributes,
    estimate_object,
)
from lite_probe.reports.sections.spectrum import pair_cell, pair_table, rank_cell, ratio_cell
from lite_probe.reports.sections.subspace_figures import draw_calibrations, draw_contrasts, format_ratio
from lite_probe.reports.sections.subspace_verdict import judge_blocks, judge_subspace, told_contrast
from lite_probe.reports.table import (
    CURVATURE,
    Cell,
    Column,
    Table,
    band_label,
    estimate_cell,
    number_cell,
    share_cell,
    tabulate,
    text_cell,
    to_grid,
)
from lite_probe.reports.verdict import TONES, Verdict, base_name
from lite_probe.results.blocks import order_blocks
from lite_probe.results.estimate import t_reach
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.results.subspace import (
    BlockCalibration,
    NormSharpness,
    Overlap,
    SubspaceMeasurement,
    root_mean_square_condition,
)

OWN_NORM = (
    "largest curvature found of a step of length 1 in the norm that the optimizer steps in: at least so much; "
    "length 1 is a step at lr 1"
)

Labelled = Sequence[tuple[str, SubspaceMeasurement]]


class SubspaceSection(Section):
    """How subspace measurements are shown."""

    heading = "Sharp and flat"
    template = TEMPLATES / "subspace.html.j2"

    def subject(self, results: Sequence[SubspaceMeasurement]) -> str:
        """Name what was measured."""
        return "sharp and flat directions"

    def verdict(self, result: SubspaceMeasurement) -> Verdict:
        """Say how sharp directions lie, and whether LITE's proxies find them."""
        return judge_subspace(result)

    def summary(self, result: SubspaceMeasurement) -> Sequence[Block]:
        """Return overlaps, calibrations by proxy, and metrics."""
        lone: Labelled = [("", result)]
        blocks: list[Block] = []
        if (table := energy_table(lone, is_alone=True)) is not None:
            blocks += [to_grid(table), Line()]
        if (table := overlap_table(lone, is_alone=True)) is not None:
            blocks += [to_grid(table), Line()]
        if (table := contrast_table(lone, is_alone=True)) is not None:
            for optimizer, calibration in result.calibrations.items():
                if calibration.blocks:
                    blocks += [to_grid(table, where=optimizer, first=optimizer), Line()]
            blocks.append(Line("κ: mean curvature, loss/param²; ±: half of the 95% interval over probes", is_dim=True))
        if (table := metric_table(lone, is_alone=True)) is not None:
            blocks += [Line(), to_grid(table, bare=("λ₁",)), Line()]
        if any(one.own_norm is not None for one in result.calibrations.values()):
            text = "S: largest curvature found of a step at lr 1, loss/lr²; edge lr: 2‖g‖_*/S"
            blocks += [Line(text, is_dim=True), Line()]
        return blocks

    def json_object(self, result: SubspaceMeasurement) -> dict[str, Any]:
        """Return every number of the measurement."""
        statuses = answers(result)
        return {
            **attributes(result, "size", "num_parameters", "loss", "gradient_share", "expected_share"),
            "batch_gradient_share": estimate_object(result.batch_gradient_share),
            "random_share": estimate_object(result.random_share),
            "overlaps": [
                attributes(one, "kind", "first", "second", "overlap", "angles", "residual") for one in result.overlaps
            ],
            "calibrations": {
                name: {
                    "blocks": {
                        block: _block_object(one, statuses[name, block]) for block, one in calibration.blocks.items()
                    },
                    "preconditioned": None
                    if calibration.preconditioned is None
                    else _metric_object(calibration.preconditioned),
                    "own_norm": None if calibration.own_norm is None else _norm_object(calibration.own_norm),
                }
                for name, calibration in result.calibrations.items()
            },
            "condition_to_rms": root_mean_square_condition(result.spectrum),
            **attributes(result, "num_probes", "num_warm_batches", "num_hvps"),
            "hvps_by_part": dict(result.hvps_by_part),
        }

    def tables(self, labelled: Labelled) -> Sequence[Table]:
        """Return the page's tables."""
        return [table for table in _tables(labelled).values() if table is not None]

    def part(self, labelled: Labelled) -> Part:
        """Draw and list everything, runs below one another."""
        is_alone = len(labelled) == 1
        named = [("" if is_alone else label, found) for label, found in labelled]
        verdicts = [(label, judge_subspace(found)) for label, found in named]
        calibrations, contrasts = draw_calibrations(named), draw_contrasts(named)
        return Part(
            view={"verdicts": verdicts, "calibrations": calibrations, "contrasts": contrasts, **_tables(labelled)},
            leads=[(label, verdict.lead) for label, verdict in verdicts],
            figures=by_name([*calibrations, *contrasts]),
        )


SECTION = SubspaceSection()


def _tables(labelled: Labelled) -> dict[str, Table | None]:
    """Return what the template gets of tables."""
    is_alone = len(labelled) == 1
    spectra = [(label, (name, one)) for label, found in labelled for name, one, _ in _metrics(found)]
    caption = "Eigenpairs in each metric."
    return {
        "energy": energy_table(labelled, is_alone=is_alone),
        "overlaps": overlap_table(labelled, is_alone=is_alone),
        "contrast_table": contrast_table(labelled, is_alone=is_alone),
        "metrics": metric_table(labelled, is_alone=is_alone),
        "band_table": band_table(labelled, is_alone=is_alone),
        "metric_pairs": pair_table("metric-pairs", caption, spectra, kinds="metric", is_alone=is_alone),
    }


def answers(found: SubspaceMeasurement) -> dict[tuple[str, str], str]:
    """Return what was answered of every (optimizer, block): a claim's status, or "not used"."""
    claims = judge_blocks(found)
    return {
        (optimizer, name): claims[optimizer, name].status if (optimizer, name) in claims else "not used"
        for optimizer, calibration in found.calibrations.items()
        for name in order_blocks(calibration.blocks)
    }


# Tables


def energy_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List the gradient's energy in the sharp subspace of every run."""
    columns = [
        (
            Column("k", short="sharp directions", hint="dimension of the sharp subspace"),
            lambda one: number_cell(one.size),
        ),
        (Column("N", hint="parameters"), lambda one: number_cell(one.num_parameters)),
        (
            Column("gradient's share", short="gradient's share", hint="‖Vᵀg‖²/‖g‖² of the evaluation gradient"),
            lambda one: share_cell(one.gradient_share),
        ),
        (
            Column(
                "single batches'", short="single batches'", hint="the same, mean over training batches", has_error=True
            ),
            lambda one: estimate_cell(one.batch_gradient_share, is_share=True),
        ),
        (
            Column("random directions'", short="random ones'", hint="of the evaluation gradient", has_error=True),
            lambda one: estimate_cell(one.random_share),
        ),
        (
            Column("k/N", short="k/N", hint="expected in random directions"),
            lambda one: number_cell(one.expected_share, 2),
        ),
        (Column("× k/N"), lambda one: number_cell(one.gradient_share / one.expected_share, 2)),
        (Column("loss", unit="nats"), lambda one: number_cell(one.loss)),
        (Column("‖g‖", unit="loss/param"), lambda one: number_cell(one.gradient_norm)),
    ]
    caption = "Gradient energy in the sharp subspace. ± is half of the 95% interval."
    return tabulate("gradient-energy", caption, columns, labelled, is_alone=is_alone)


def overlap_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every comparison of two sharp subspaces."""

    def angle(title: str, quantile: float, short: str = "") -> tuple[Column, Any]:
        def read(one: Overlap) -> Cell:
            degrees = float(np.degrees(np.quantile(one.angles, quantile)))
            return Cell(text=f"{degrees:.0f}", raw=degrees)

        return Column(title, unit="°", short=short), read

    columns = [
        (Column("across", is_text=True), lambda one: text_cell(one.kind)),
        (Column("first", short="sharp subspace", is_text=True), lambda one: text_cell(one.first)),
        (Column("second", short="beside", is_text=True), lambda one: text_cell(one.second)),
        (
            Column("overlap", short="overlap", hint="mean cos² of the principal angles"),
            lambda one: share_cell(one.overlap),
        ),
        (Column("at random", short="at random"), lambda one: number_cell(one.expected_at_random, 2)),
        angle("smallest angle", 0.0, "from °"),
        angle("median", 0.5),
        angle("largest", 1.0, "to °"),
        (
            Column("residual", short="residual", hint="largest ‖Hv − λv‖/|λ| of the vectors on either side"),
            lambda one: number_cell(one.residual, 1),
        ),
    ]
    rows = [(label, one) for label, found in labelled for one in found.overlaps]
    caption = "Overlaps of sharp subspaces of equal dimension: mean cos² of their principal angles."
    return tabulate("overlaps", caption, columns, rows, is_alone=is_alone)


def _blocks(found: SubspaceMeasurement) -> list[tuple[str, str, BlockCalibration]]:
    """Return (optimizer, block, calibration) in the order of the page."""
    return [
        (optimizer, name, calibration.blocks[name])
        for optimizer, calibration in found.calibrations.items()
        for name in order_blocks(calibration.blocks)
    ]


def contrast_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List, per proxy and block, whether LITE's sharp directions are sharper."""

    def ratio(row: tuple[str, str, BlockCalibration, str, float]) -> Cell:
        told = told_contrast(row[2], row[3])
        return Cell(text=format_ratio(told), raw=told.value if told is not None else None)

    def rank(row: tuple[str, str, BlockCalibration, str, float]) -> Cell:
        value, stderr = row[2].rank_correlation, row[2].rank_correlation_stderr
        half = None if stderr is None else row[4] * stderr
        return Cell(text=format_uncertain(value, half), raw=value, error=half)

    columns = [
        (Column("proxy", is_text=True), lambda row: text_cell(row[0])),
        (Column("block", short="block", is_text=True), lambda row: text_cell(row[1])),
        (
            Column("κ sharp", short="κ sharp", unit=CURVATURE, has_error=True),
            lambda row: estimate_cell(row[2].sharp_curvature),
        ),
        (
            Column("κ flat", short="κ flat", unit=CURVATURE, has_error=True),
            lambda row: estimate_cell(row[2].flat_curvature),
        ),
        (Column("ratio (95%)", short="ratio (95%)", hint="κ sharp / κ flat"), ratio),
        (
            Column("assumption", short="LITE", is_text=True, hint="that LITE's sharp directions are the sharper ones"),
            lambda row: text_cell(row[3], TONES.get(row[3], "")),
        ),
        (Column("difference", unit=CURVATURE, has_error=True), lambda row: estimate_cell(row[2].difference)),
        (Column("called sharp", hint="share of the block's dimensions"), lambda row: share_cell(row[2].sharp_share)),
        (Column("rank correlation", hint="Spearman's, of proxy and κ over bands", has_error=True), rank),
        (
            Column("unseen", hint="share of dimensions without any gradient so far"),
            lambda row: share_cell(row[2].unseen_share),
        ),
    ]
    rows = [
        (label, (optimizer, name, block, statuses[optimizer, name], t_reach(found.num_probes)))
        for label, found in labelled
        for statuses in [answers(found)]
        for optimizer, name, block in _blocks(found)
    ]
    caption = (
        "LITE's assumption, block by block. ± is half of the 95% interval over probes; answers are corrected (Holm)."
    )
    return tabulate("contrast", caption, columns, rows, is_alone=is_alone)


def band_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List every band of every block and proxy."""
    columns = [
        (Column("proxy", is_text=True), lambda row: text_cell(row[0])),
        (Column("block", is_text=True), lambda row: text_cell(row[1])),
        (
            Column("band", is_text=True, hint="of the block's dimensions, the sharpest by the proxy first"),
            lambda row: text_cell(band_label(*row[2])),
        ),
        (Column("dimensions"), lambda row: number_cell(row[3])),
        (Column("mean proxy", unit="(loss/param)²"), lambda row: number_cell(row[4], 3)),
        (
            Column("κ", unit=CURVATURE, has_error=True),
            lambda row: Cell(text=format_uncertain(row[5], row[6]), raw=row[5], error=row[6]),
        ),
    ]
    rows = [
        (label, (optimizer, name, *band))
        for label, found in labelled
        for optimizer, name, block in _blocks(found)
        for band in zip(
            pairwise(block.shares.tolist()),
            block.dimensions.tolist(),
            block.proxy.tolist(),
            block.curvature.tolist(),
            (t_reach(found.num_probes) * block.curvature_stderr).tolist(),
            strict=True,
        )
    ]
    caption = "True mean curvature of every band. ± is half of the 95% interval over probes."
    return tabulate("calibration", caption, columns, rows, is_alone=is_alone)


def _metrics(found: SubspaceMeasurement) -> list[tuple[str, OperatorSpectrum, NormSharpness | None]]:
    """Return (metric, spectrum, sharpness in the optimizer's norm), the plain one first; nothing without a metric."""
    metrics = [
        (base_name(optimizer), one.preconditioned, one.own_norm)
        for optimizer, one in found.calibrations.items()
        if one.preconditioned is not None
    ]
    return [("none", found.spectrum, None), *metrics] if metrics else []


def _bound_cell(sign: str, value: float | None) -> Cell:
    """Return a cell of a number that is a bound."""
    return Cell(text=MISSING if value is None else f"{sign} {format_number(value, 3)}", raw=value)


def metric_table(labelled: Labelled, *, is_alone: bool) -> Table | None:
    """List the spectra with and without each metric, and the sharpness in each optimizer's own norm."""

    def own(read: Callable[[NormSharpness], Cell]) -> Callable[[Any], Cell]:
        return lambda row: Cell(text=MISSING) if row[2] is None else read(row[2])

    def agreeing(one: NormSharpness) -> Cell:
        return Cell(text=f"{one.num_agreeing} of {len(one.values)}", raw=one.num_agreeing)

    columns = [
        (Column("metric", short="metric", is_text=True), lambda row: text_cell(row[0])),
        (
            Column("λ₁", short="λ₁", hint="in units of the metric", has_error=True),
            lambda row: pair_cell(row[1].upper_end),
        ),
        (
            Column("λ₁ / rms λ", short="λ₁/rms λ", hint="λ₁ over the root mean square eigenvalue"),
            lambda row: number_cell(root_mean_square_condition(row[1]), 3),
        ),
        (Column("λ₁ / median |λ|", short="λ₁/median|λ|"), lambda row: ratio_cell(row[1])),
        (Column("trace", has_error=True), lambda row: estimate_cell(row[1].trace)),
        (Column("effective rank", short="eff. rank", has_error=True), lambda row: rank_cell(row[1])),
        (Column("most negative λ"), lambda row: number_cell(row[1].most_negative_eigenvalue)),
        (
            Column("S", unit="loss/lr²", short="S, own norm", hint=OWN_NORM),
            own(lambda one: _bound_cell("≥", one.value)),
        ),
        (
            Column("‖g‖_*", unit="loss/lr", hint="what the steepest such step lowers the loss by, to first order"),
            own(lambda one: number_cell(one.gradient_norm)),
        ),
        (
            Column(
                "edge lr",
                short="edge lr",
                hint="2‖g‖_*/S, of gradient descent 2/S: from it on such a step may raise the loss; at most so much",
            ),
            own(lambda one: _bound_cell("≤", one.edge_lr)),
        ),
        (Column("ascents agreeing", hint="that ended within 1% of the largest S found"), own(agreeing)),
        (
            Column("norm", is_text=True, hint="whose unit ball are the steps at lr 1"),
            own(lambda one: text_cell(one.norm)),
        ),
    ]
    rows = [(label, metric) for label, found in labelled for metric in _metrics(found)]
    caption = (
        "The spectrum in each optimizer's metric F^(−½) H F^(−½). Compare ratios, not eigenvalues: units differ. ± is "
        "a residual of λ₁, else half of the 95% interval over probes. S is the largest curvature of a step of length 1 "
        "in the norm that the optimizer steps in."
    )
    return tabulate("metrics", caption, columns, rows, is_alone=is_alone)


# For programs


def _block_object(block: BlockCalibration, answer: str) -> dict[str, Any]:
    contrast = block.contrast
    names = ("num_parameters", "shares", "dimensions", "proxy", "curvature", "curvature_stderr", "unseen_share")
    return {
        **attributes(block, *names, "rank_correlation", "sharp_share"),
        "sharp_curvature": estimate_object(block.sharp_curvature),
        "flat_curvature": estimate_object(block.flat_curvature),
        "difference": estimate_object(block.difference),
        "contrast": None if contrast is None else attributes(contrast, "value", "stderr", "low", "high"),
        "assumption": answer,
    }


def _norm_object(one: NormSharpness) -> dict[str, Any]:
    return {
        **attributes(one, "norm", "is_normalised"),
        "sharpness_at_least": one.value,
        "edge_lr_at_most": one.edge_lr,
        **attributes(one, "values", "num_agreeing", "gradient_norm", "num_hvps"),
    }


def _metric_object(spectrum: OperatorSpectrum) -> dict[str, Any]:
    return {
        **attributes(spectrum, "eigenvalues", "residual_norms"),
        "condition_to_rms": root_mean_square_condition(spectrum),
        "effective_rank": spectrum.effective_rank if spectrum.is_trace_told else None,
    }

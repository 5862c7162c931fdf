"""A subspace measurement in a few lines and tables, for the terminal, and as one JSON object, for programs."""

import math
from typing import TYPE_CHECKING, Any

from lite_probe.commands.summary import condition_to_median, estimate_object
from lite_probe.commands.wording import compact, number, percent, with_error

if TYPE_CHECKING:
    from lite_probe.results.estimate import Ratio
    from lite_probe.results.subspace import BlockCalibration, ProxyCalibration, SubspaceMeasurement

_Rows = tuple[list[str], list[list[str]]]
ERRORS_EXPLAINED = "κ: mean curvature, loss/param²; ±: one standard error over probes"


def lines(found: "SubspaceMeasurement") -> list[str]:
    """Return how much of the gradient is sharp, and what that is to be compared with."""
    batch = found.batch_gradient_share
    return [
        f"gradient energy in the {found.size} sharp directions: {percent(found.gradient_share)}; of single training "
        f"batches {percent(batch.value, batch.stderr)}; of random directions {number(found.random_share.value, 2)} "
        f"(expected k/N = {number(found.expected_share, 2)})"
    ]


def overlap_table(found: "SubspaceMeasurement") -> _Rows:
    """Return header and rows of the comparisons of subspaces."""
    header = ["sharp subspaces", "overlap", "at random", "angles", "residual"]
    rows = []
    for one in found.overlaps:
        degrees = [math.degrees(float(angle)) for angle in (one.angles[0], one.angles[-1])]
        rows.append(
            [
                f"{one.first} / {one.second}",
                number(one.overlap, 2),
                number(one.expected_at_random, 2),
                f"{degrees[0]:.0f}°–{degrees[1]:.0f}°",
                number(one.residual, 1),
            ]
        )
    return header, rows


def calibration_table(calibration: "ProxyCalibration") -> _Rows:
    """Return header and rows of one optimizer's blocks."""
    header = [calibration.optimizer, "κ sharp", "κ flat", "ratio (95%)", "rank", "LITE"]
    return header, [[name, *_block_row(block)] for name, block in calibration.blocks.items()]


def _block_row(block: "BlockCalibration") -> list[str]:
    sharp, flat = block.sharp_curvature, block.flat_curvature
    rank = "–" if block.rank_correlation is None else f"{block.rank_correlation:.2f}".replace("-", "−")
    return [
        "–" if sharp is None else compact(sharp.value, sharp.stderr),
        "–" if flat is None else compact(flat.value, flat.stderr),
        ratio(block.contrast),
        rank,
        block.assumption,
    ]


def ratio(found: "Ratio | None") -> str:
    """Write a ratio with its interval: `7.7 (5.4–11)`; `≥ 99` where nothing near bounds it from above."""
    if found is None or found.low is None:
        return "–"
    if found.high is None or found.value is None or found.high > 20.0 * found.value:
        return f"≥ {number(found.low, 2)}"
    return f"{number(found.value, 2)} ({number(found.low, 2)}–{number(found.high, 2)})"


def metric_table(found: "SubspaceMeasurement") -> _Rows:
    """Return header and rows of the spectra with and without each optimizer's metric."""
    from lite_probe.results.subspace import root_mean_square_condition

    header = ["metric", "λ₁", "λ₁/rms λ", "λ₁/median|λ|", "eff. rank"]
    spectra = [("none", found.spectrum)]
    spectra += [(name, one.preconditioned) for name, one in found.calibrations.items() if one.preconditioned]
    rows = [
        [
            name,
            number(float(one.eigenvalues[0])),
            number(root_mean_square_condition(one), 3),
            condition_to_median(one, "≥ "),
            with_error(one.effective_rank, one.effective_rank_stderr),
        ]
        for name, one in spectra
    ]
    return header, rows


def json_object(found: "SubspaceMeasurement") -> dict[str, Any]:
    """Return what `--json` prints: plain numbers, null where there is none."""
    from lite_probe.results.subspace import root_mean_square_condition

    return {
        "size": found.size,
        "num_parameters": found.num_parameters,
        "loss": found.loss,
        "gradient_share": found.gradient_share,
        "batch_gradient_share": estimate_object(found.batch_gradient_share),
        "random_share": estimate_object(found.random_share),
        "expected_share": found.expected_share,
        "overlaps": [
            {
                "kind": one.kind,
                "first": one.first,
                "second": one.second,
                "overlap": one.overlap,
                "angles": one.angles.tolist(),
                "residual": one.residual,
            }
            for one in found.overlaps
        ],
        "calibrations": {
            name: {
                "blocks": {block: _block_object(one) for block, one in calibration.blocks.items()},
                "preconditioned": None
                if calibration.preconditioned is None
                else {
                    "eigenvalues": calibration.preconditioned.eigenvalues.tolist(),
                    "residual_norms": calibration.preconditioned.residual_norms.tolist(),
                    "condition_to_rms": root_mean_square_condition(calibration.preconditioned),
                    "effective_rank": calibration.preconditioned.effective_rank,
                },
            }
            for name, calibration in found.calibrations.items()
        },
        "condition_to_rms": root_mean_square_condition(found.spectrum),
        "num_probes": found.num_probes,
        "num_warm_batches": found.num_warm_batches,
        "num_hvps": found.num_hvps,
        "hvps_by_part": dict(found.hvps_by_part),
        "notes": [{"code": note.code, "message": note.message} for note in found.notes],
        "wall_seconds": found.provenance.wall_seconds,
        "peak_memory_bytes": found.provenance.peak_memory_bytes,
        "fingerprint": found.fingerprint,
    }


def _block_object(block: "BlockCalibration") -> dict[str, Any]:
    contrast = block.contrast
    return {
        "num_parameters": block.num_parameters,
        "shares": block.shares.tolist(),
        "dimensions": block.dimensions.tolist(),
        "proxy": block.proxy.tolist(),
        "curvature": block.curvature.tolist(),
        "curvature_stderr": block.curvature_stderr.tolist(),
        "unseen_share": block.unseen_share,
        "rank_correlation": block.rank_correlation,
        "sharp_share": block.sharp_share,
        "sharp_curvature": estimate_object(block.sharp_curvature),
        "flat_curvature": estimate_object(block.flat_curvature),
        "difference": estimate_object(block.difference),
        "contrast": None
        if contrast is None
        else {name: getattr(contrast, name) for name in ("value", "stderr", "low", "high")},
        "assumption": block.assumption,
    }

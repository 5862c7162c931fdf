"""Synthetic steps whose bands have known optima: gains and curvatures scatter by a share of themselves over batches."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lite_probe.results.provenance import Note
from lite_probe.results.replay import Recipe
from lite_probe.results.steps import (
    JOINT_PARTS,
    CriticalSteps,
    JointOptimum,
    LineCheck,
    OptimizerSteps,
    SignalShare,
    StepBands,
    Steps,
)
from tests.reports.fixtures import make_provenance

RANKED = ("rank 1", "ranks 2–4", "ranks 5–8", "1–10%", "10–40%", "40–100%")
SHARED = ("to 0.1%", "to 1%", "1–10%", "10–40%", "40–100%")
PARTS = {"10–40%": "middle", "40–100%": "flat", "unordered": "flat"}
ENDS = {
    "rank 1": 0.008,
    "ranks 2–4": 0.03,
    "ranks 5–8": 0.06,
    "to 0.1%": 0.001,
    "to 1%": 0.01,
    "1–10%": 0.1,
    "10–40%": 0.4,
    "40–100%": 1.0,
}


@dataclass(frozen=True)
class Band:
    """One band: its gain, its own optimum (None: a curvature of zero), and how much both scatter."""

    name: str
    gain: float
    optimum: float | None
    noise: float = 0.1


# Sharp directions past their optimum or near it, flat ones far from it; qk has no edge in its flat bands.
BLOCKS: Mapping[str, tuple[Band, ...]] = {
    "emb": tuple(
        Band(name, gain, optimum)
        for name, gain, optimum in zip(SHARED, (2e-3, 8e-3, 2e-2, 6e-3, 4e-3), (0.4, 0.5, 0.6, 1.6, 4.0), strict=True)
    ),
    "qk": tuple(
        Band(name, gain, optimum)
        for name, gain, optimum in zip(
            RANKED, (2e-3, 4e-3, 2e-3, 1e-3, 1e-3, 1e-4), (2.0, 3.0, 5.0, 6.0, None, None), strict=True
        )
    ),
    "ffn": tuple(
        Band(name, gain, optimum)
        for name, gain, optimum in zip(
            RANKED, (1e-2, 1.2e-2, 8e-3, 5e-3, 8e-3, 3e-3), (0.8, 1.0, 1.2, 1.5, 4.0, 8.0), strict=True
        )
    ),
    "out": (
        Band("to 1%", 3e-3, 0.9),
        Band("1–10%", 8e-3, 1.1, noise=0.5),
        Band("10–40%", 2e-3, 1.9),
        Band("40–100%", -1e-3, -2.0),
    ),
}


def make_bands(blocks: Mapping[str, tuple[Band, ...]]) -> StepBands:
    rows = [
        (block, band.name, low, ENDS.get(band.name, 1.0))
        for block, bands in blocks.items()
        for band, low in zip(bands, (0.0, *(ENDS.get(one.name, 1.0) for one in bands)), strict=False)
    ]
    return StepBands(
        blocks=tuple(row[0] for row in rows),
        names=tuple(row[1] for row in rows),
        parts=tuple(PARTS.get(row[1], "sharp") for row in rows),
        low=np.array([row[2] for row in rows]),
        high=np.array([row[3] for row in rows]),
        dimensions=np.array([round(1e5 * (row[3] - row[2])) for row in rows], dtype=np.int64),
    )


def make_critical(*middles: float, half: float = 0.02) -> CriticalSteps:
    """Brackets around multiples; 0: every step raises the loss; infinity: none up to 2^20 of it does."""
    at = np.array(middles)
    low = np.where(np.isfinite(at), (1 - half) * at, 2.0**20)
    high = np.where(np.isfinite(at), np.where(at > 0.0, (1 + half) * at, 2.0**-20), 2.0**20)
    return CriticalSteps(low=low, high=high, evaluations=np.full(len(at), 6, dtype=np.int64))


def make_joint(blocks: Mapping[str, tuple[Band, ...]]) -> JointOptimum:
    """Groups' multiples 0.5, 2, 4, 0.5, …; the rest of ffn has a nearer edge, that of emb a farther."""
    groups = [
        (block, name)
        for block, bands in blocks.items()
        for name, parts in JOINT_PARTS.items()
        if any(PARTS.get(band.name, "sharp") in parts for band in bands)
    ]
    seen = {("ffn", "rest"): (0.02, 0.1), ("emb", "rest"): (-0.012, -0.008)}
    checks = tuple(
        LineCheck(
            block=block,
            part=part,
            optimum=2.0,
            predicted=-0.01,
            at_optimum=seen.get((block, part), (-0.0101, 0.001))[0],
            at_edge=seen.get((block, part), (-0.0101, 0.001))[1],
        )
        for block, part in groups
        if (block, part) != ("qk", "rest")
    )
    count = len(groups)
    return JointOptimum(
        blocks=tuple(block for block, _ in groups),
        parts=tuple(part for _, part in groups),
        gains=np.full(count, 0.01),
        curvatures=0.005 * np.eye(count),
        multiples=np.resize(np.array([0.5, 2.0, 4.0]), count),
        ridge=0.1,
        predicted=-0.05,
        change=-0.041,
        own_change=-0.03,
        checks=checks,
    )


def make_optimizer(
    name: str,
    *,
    blocks: Mapping[str, tuple[Band, ...]] = BLOCKS,
    scale: float = 1.0,
    lr: float = 2.0**-7,
    whole: float | None = 0.9,
    critical: Mapping[str, CriticalSteps] | None = None,
    critical_only: bool = False,
    batches: int = 32,
    seed: int = 0,
) -> OptimizerSteps:
    """Steps `scale` times as long: optima are smaller by it, the critical step, too."""
    rng = np.random.default_rng([seed, *name.encode()])
    table = None if critical_only else make_bands(blocks)
    bands = [] if critical_only else [band for own in blocks.values() for band in own]
    count = 0 if critical_only else batches
    signs = rng.choice(np.array([-1.0, 1.0]), size=(count, len(bands)))
    gains = np.array([scale * band.gain for band in bands])
    curvatures = np.array([0.0 if band.optimum is None else band.gain * scale**2 / band.optimum for band in bands])
    noise = np.array([band.noise for band in bands])
    own = rng.standard_normal((count, len(bands)))
    sizes = np.where(curvatures == 0.0, np.abs(gains), np.abs(curvatures))
    found = critical or {
        "own batch": make_critical(2.4 / scale, 2.5 / scale, 2.6 / scale, 2.5 / scale),
        "held out": make_critical(1.9 / scale, 2.0 / scale, 2.1 / scale, 2.0 / scale),
    }
    total = 0.1 * scale
    return OptimizerSteps(
        recipe=Recipe(
            optimizer=name,
            lr=lr,
            lr_source="given",
            hyperparameters={},
            state="warm",
            state_lines=("warmed on 50 batches at fixed parameters",),
        ),
        sweep=None,
        bands=table,
        gains=gains * (1.0 + 0.2 * noise * rng.standard_normal((count, len(bands)))),
        images=signs * curvatures + noise * sizes * own,
        signs=signs,
        whole_gains=total * (1.0 + 0.05 * rng.standard_normal(count)),
        whole_curvatures=total / (whole or 1.0) * ((whole is not None) + 0.2 * rng.standard_normal(count)),
        joint=None if critical_only else make_joint(blocks),
        critical=found,
    )


def make_steps(
    *,
    name: str = "gpt-5000",
    step: int | None = 5000,
    optimizers: Mapping[str, OptimizerSteps] | None = None,
    notes: tuple[Note, ...] = (),
    command: str = "lite-probe steps runs/gpt/ckpt.pt --data val.bin --optimizers muon,soap --lr muon=0.0078",
    **provenance: object,
) -> Steps:
    found = optimizers or {"muon": make_optimizer("muon"), "soap": make_optimizer("soap", scale=0.5, whole=1.9)}
    is_whole = all(one.bands is not None for one in found.values())
    return Steps(
        num_parameters=10_724_352,
        loss=1.4721,
        batch_tokens=16_384,
        num_batches=32 if is_whole else 4,
        optimizers=found,
        signal={
            block: SignalShare(share=share, random=0.01, num_directions=104)
            for block, share in (("qk", 0.08), ("ffn", 0.31))
        }
        if is_whole
        else {},
        products={"bands": 20.0, "joint optimum": 24.0} if is_whole else {},
        config={"optimizers": list(found), "step_batches": 32},
        fingerprint=f"{name}-{step}-steps",
        notes=notes,
        provenance=make_provenance(checkpoint_name=name, checkpoint_step=step, **{"command": command} | provenance),
    )

"""Synthetic tunings: nodes with quadratic models around a common one, methods that converge, and a replay."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lite_probe.results.provenance import Note
from lite_probe.results.replay import Replay
from lite_probe.results.tuning import BlockSettings, MethodRun, NodeModels, Recommendation, Tuning
from tests.reports.fixtures import make_provenance, make_replay
from tests.reports.steps_results import make_optimizer

RATIOS = {"emb": (1.0, 0.62), "qk": (6.1, 1.3), "vo": (3.4, 1.1), "ffn": (2.2, 1.05), "out": (1.6, 0.81)}
CANDIDATES = ("published", "profile", "tuned", "pooled")
POOLED_LOSS = -0.0412
RIDGE = 0.01


def make_models(
    blocks: Mapping[str, tuple[str, ...]], multiples: list[float], logs: NDArray[np.float64], nodes: int, spread: float
) -> NodeModels:
    """Models of nodes that ask for these multiples at a damping, with gains that scatter by a share of themselves."""
    rng = np.random.default_rng(5)
    groups = [(block, part) for block, parts in blocks.items() for part in parts]
    count = len(groups)
    scales = np.geomspace(3e-2, 1e-4, count)
    curved = np.diag(np.geomspace(0.4, 2.0, count))
    steps = np.sqrt(scales) * np.array(multiples)
    noise = rng.standard_normal((nodes, count))
    gains = (curved + np.diag(np.exp(logs) + RIDGE)) @ steps * (1.0 + spread * (noise - noise.mean(axis=0)))
    curvatures = np.tile(curved, (nodes, 1, 1))
    return NodeModels(
        blocks=tuple(block for block, _ in groups),
        parts=tuple(part for _, part in groups),
        scales=scales,
        noise=0.5 * scales,
        gains=gains,
        curvatures=curvatures,
        validation_gains=gains * 0.9,
        validation_curvatures=curvatures,
    )


def make_method(name: str, rate: float, bias: float = 0.0, *, is_chosen: bool = False, floats: int = 640) -> MethodRun:
    """A method whose upper loss comes to the pooled one's by a rate, up to a bias."""
    step = np.arange(0, 2001, 20, dtype=np.int64)
    gap = 0.4 * np.exp(-rate * step) + bias
    return MethodRun(
        name=name,
        step=step,
        gradients=3 * step,
        floats=floats * step,
        consensus=0.5 * np.exp(-rate * step) + bias,
        upper_loss=POOLED_LOSS * (1.0 - gap),
        is_chosen=is_chosen,
    )


def make_recommendation(
    name: str, ratios: Mapping[str, tuple[float, float]], *, factor: float = 1.0, spread: float = 0.2
) -> Recommendation:
    return Recommendation(
        name=name,
        damping=0.85,
        blocks=tuple(
            BlockSettings(
                block=block,
                ratio=max(1.0, factor * ratio),
                ratio_low=max(1.0, factor * ratio * (1.0 - spread)),
                ratio_high=max(1.0, factor * ratio * (1.0 + spread)),
                sharp=sharp,
                rest=ratio * sharp,
                sharp_share=None if block == "vo" else 0.1,
                damping=None if block == "out" else 0.7,
            )
            for block, (ratio, sharp) in ratios.items()
        ),
        upper_loss=0.97 * POOLED_LOSS,
    )


def make_settings(found: Recommendation) -> dict[str, object]:
    return {
        "beta2": found.damping,
        "flat_lr_ratio": {one.block: float(f"{one.ratio:.3g}") for one in found.blocks},
        "sharp_ratio": {one.block: one.sharp_share or 0.1 for one in found.blocks if one.ratio > 1.0},
    }


def make_test(
    gains: Mapping[str, float] | None = None, *, seeds: int = 5, noise: float = 0.02, **asked: object
) -> Replay:
    """A replay of muon and the four candidates; `gains` by label, in nats a step, the base's 0."""
    names = ("muon", *(f"muon-lite@{label}" for label in CANDIDATES))
    found = {"published": 0.0, "profile": 1e-4, "tuned": 4e-4, "pooled": 4e-4} | dict(gains or {})
    by_name = {f"muon-lite@{label}": gain for label, gain in found.items()}
    return make_replay(
        optimizers=names,
        gains=by_name,
        seeds=seeds,
        noise=noise,
        swept=False,
        theory=False,
        **asked,  # type: ignore[arg-type]
    )


def make_tuning(
    *,
    name: str = "gpt-5000",
    step: int | None = 5000,
    ratios: Mapping[str, tuple[float, float]] = RATIOS,
    nodes: int = 8,
    spread: float = 0.2,
    replay: Replay | None = None,
    lone: tuple[str, ...] = ("norm",),
    command: str = "lite-probe tune 'my runs/ckpt.pt' --data=val.bin --nodes 8 --seq-len 64 --lr 0.0078 -v",
    notes: tuple[Note, ...] = (),
    **provenance: object,
) -> Tuning:
    """A tuning; `ratios` has (χ, y_sharp) by block, `lone` the blocks without a sharp group."""
    parts = dict.fromkeys(ratios, ("sharp", "rest")) | dict.fromkeys(lone, ("rest",))
    multiples = [ratios[b][1] * (ratios[b][0] if part == "rest" else 1.0) for b in ratios for part in parts[b]]
    multiples += [1.0] * len(lone)
    logs = np.linspace(-3.0, 1.0, len(multiples))
    models = make_models(parts, multiples, logs, nodes, spread)
    tuned = make_recommendation("tuned", ratios, spread=spread)
    pooled = make_recommendation("pooled", ratios, factor=1.05, spread=spread)
    return Tuning(
        optimizer="muon-lite",
        base="muon",
        lr=0.0078,
        batch_tokens=16_384,
        loss=1.4721,
        num_parameters=10_724_352,
        num_nodes=nodes,
        topology="ring",
        spectral_gap=0.0976,
        shards="dealt in turn",
        ridge=RIDGE,
        models=models,
        profile=make_optimizer("muon"),
        damping_logs=np.tile(logs, (nodes, 1)),
        multiples=np.tile(np.sqrt(models.scales) * np.array(multiples), (nodes, 1)),
        pooled_damping_logs=logs + 0.1,
        methods=(
            make_method("sparkle gt/ed", 8e-3, is_chosen=True),
            make_method("sparkle ed/ed", 6e-3, floats=480),
            make_method("dsoba-so", 9e-3, 0.03, floats=320),
        ),
        pooled_loss=POOLED_LOSS,
        tuned=tuned,
        pooled=pooled,
        candidates={
            "muon-lite@published": {},
            "muon-lite@profile": {"flat_lr_ratio": {"qk": 8.0, "ffn": 2.5}},
            "muon-lite@tuned": make_settings(tuned),
            "muon-lite@pooled": make_settings(pooled),
        },
        replay=replay,
        config={"nodes": nodes, "topology": "ring"},
        fingerprint=f"{name}-{step}-tuning",
        notes=notes,
        provenance=make_provenance(checkpoint_name=name, checkpoint_step=step, **{"command": command} | provenance),
    )


def diverging(replay: Replay, name: str, *seeds: int) -> Replay:
    """Return a replay of which some runs diverged at their fifth step."""
    runs = tuple(
        replace(run, diverged_at=5) if run.optimizer == name and run.seed in seeds else run for run in replay.runs
    )
    return replace(replay, runs=runs)

"""Synthetic results that look like those of a small language model.

A spectrum's quadrature nodes come from Lanczos on a discretised measure, so they have the edges, gaps and weights
that real ones have: a bulk at zero, ten outliers above it, a few negative eigenvalues. A replay's runs are made of
steps on a quadratic, so that allocations, bands and losses add up as they do in a real one.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.replay import Bands, LinearTheory, Recipe, Replay, ReplayRun, Sweep
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum, Verification
from lite_probe.results.subspace import (
    BlockCalibration,
    NormSharpness,
    Overlap,
    ProxyCalibration,
    SubspaceMeasurement,
    root_mean_square_condition,
)
from lite_probe.subspaces.overlap import random_energy_share
from tests.reports.landscapes import make_landscape

BLOCKS = {  # size, λ₁, width of the bulk
    "emb": (2_359_296, 21.4, 2e-4),
    "qk": (1_769_472, 6.31, 9e-5),
    "vo": (1_769_472, 3.87, 4e-4),
    "ffn": (4_718_592, 9.12, 2e-4),
    "norm": (9_984, 1.93, 6e-3),
    "out": (98_304, 30.7, 3e-3),
}


def quadrature(values: NDArray[np.float64], masses: NDArray[np.float64], rng: np.random.Generator, steps: int):
    """Nodes and weights of a Gaussian start vector under Lanczos with full reorthogonalisation."""
    basis = np.zeros((steps + 1, len(values)))
    basis[0] = rng.standard_normal(len(values)) * np.sqrt(masses)
    basis[0] /= np.linalg.norm(basis[0])
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        vector = values * basis[step]
        diagonal[step] = vector @ basis[step]
        for _ in range(2):
            vector -= basis[: step + 1].T @ (basis[: step + 1] @ vector)
        beside[step] = np.linalg.norm(vector)
        basis[step + 1] = vector / beside[step]
    nodes, vectors = eigh_tridiagonal(diagonal, beside[:-1])
    return nodes, vectors[0] ** 2


def make_operator_spectrum(
    size: int = 10_724_352,
    sharpest: float = 38.21,
    bulk: float = 3e-4,
    *,
    top: int = 10,
    bottom: int = 5,
    probes: int = 4,
    steps: int = 40,
    unconverged: int = 0,
    seed: int = 0,
) -> OperatorSpectrum:
    rng = np.random.default_rng(seed)
    upper = sharpest * np.arange(1, top + 1) ** -0.62 * np.exp(-0.03 * rng.random(top).cumsum())
    upper[:1] = sharpest
    lower = -0.022 * sharpest * np.arange(1, bottom + 1) ** -0.8
    tail = sharpest * np.geomspace(1e-6, 0.2, 1200) * (1 - 0.02 * rng.random(1200))
    below = -0.9 * abs(lower[-1] if bottom else 0.01) * np.geomspace(1e-5, 1, 300)
    middle = rng.laplace(scale=bulk, size=2500)
    middle -= middle.mean()
    measure = np.concatenate([middle, tail, below])
    # One direction in 500 has curvature well away from the bulk, one in 40,000 is negative.
    masses = np.concatenate([np.full(2500, 1.0), tail**-0.5, np.abs(below) ** -0.5])
    for part, mass in ((slice(2500), 0.997975), (slice(2500, 3700), 2e-3), (slice(3700, None), 2.5e-5)):
        masses[part] *= mass / masses[part].sum()
    rules = [quadrature(measure, masses, rng, steps) for _ in range(probes)]
    deflated = (top + bottom) / size
    nodes = np.concatenate([rule[0] for rule in rules]) if rules else np.zeros(0)
    weights = np.concatenate([rule[1] * (1 - deflated) for rule in rules]) if rules else np.zeros(0)
    converged = np.arange(top) < top - unconverged
    noise = 1 + 0.04 * rng.standard_normal((2, 8))
    trace = Estimate.from_samples(size * float(masses @ measure) * noise[0], exact=float(upper.sum() + lower.sum()))
    squares = float((upper**2).sum() + (lower**2).sum())
    trace_h2 = Estimate.from_samples(size * float(masses @ measure**2) * noise[1], exact=squares)
    return OperatorSpectrum(
        num_parameters=size,
        eigenvalues=upper,
        residual_norms=np.where(converged, 1e-4 * upper * rng.random(top), 0.05 * upper),
        lower_eigenvalues=lower,
        lower_residual_norms=8e-4 * np.abs(lower) * rng.random(bottom),
        converged=converged,
        lower_converged=np.ones(bottom, dtype=bool),
        tolerance=1e-3,
        num_requested=top,
        stop_reason="max-products" if unconverged else "converged",
        nodes=nodes,
        weights=weights,
        probe_index=np.repeat(np.arange(probes, dtype=np.int64), steps),
        deflated_eigenvalues=np.concatenate([upper[converged], lower]),
        trace=trace,
        trace_h2=trace_h2,
        num_hvps=84,
    )


def make_provenance(**changes: object) -> Provenance:
    values: dict[str, object] = {
        "lite_probe_version": "0.1.0",
        "torch_version": "2.13.0",
        "transformers_version": "5.0.0",
        "python_version": "3.12.4",
        "platform": "Linux x86_64",
        "device": "cpu",
        "num_threads": 2,
        "precision": "float32",
        "seed": 0,
        "command": "lite-probe spectrum runs/gpt/ckpt.pt --data val.bin --per-block",
        "started_at": "2026-05-04T09:12:33Z",
        "wall_seconds": 187.4,
        "peak_memory_bytes": 2_254_857_830,
        "checkpoint_name": "gpt-5000",
        "checkpoint_format": "nanogpt",
        "checkpoint_step": 5000,
        "architecture": "nanoGPT · 6 layers · hidden 384",
        "data_name": "val.bin",
        "data_split": "evaluation",
        "batches_digest": "b7e23ec29af22b0b4e41",
        "num_batches": 4,
        "batch_size": 4,
        "seq_len": 256,
        "num_tokens": 4096,
        "details": {"attention": "eager"},
    }
    values |= changes
    # As weights differ, so do their fingerprints.
    content = f"6f1d2c7a90be{values['checkpoint_name']}-{values['checkpoint_step']}"
    return Provenance(**({"checkpoint_fingerprint": content} | values))  # type: ignore[arg-type]


def make_verification(whole: OperatorSpectrum, *, agrees: bool = True) -> Verification:
    ours = whole.eigenvalues[:3]
    return Verification(
        library="PyHessian 0.1",
        eigenvalues=ours * (np.array([1.0004, 0.9993, 0.9971]) if agrees else np.array([1.0004, 0.93, 0.9])),
        eigenvalue_errors=ours * 4e-3,
        our_eigenvalues=ours,
        trace=Estimate.from_samples(whole.trace.value * (1 + 0.08 * np.random.default_rng(3).standard_normal(12))),
        our_trace=whole.trace,
        eigenvalues_agree=agrees,
        trace_agrees=True,
        num_hvps=61,
        wall_seconds=143.0,
    )


def make_spectrum(
    *,
    name: str = "gpt-5000",
    step: int | None = 5000,
    loss: float = 1.4721,
    sharpest: float = 38.21,
    blocks: bool = True,
    verified: bool | None = True,
    unconverged: int = 0,
    seed: int = 0,
    operator: str = "hessian",
    notes: tuple[Note, ...] = (
        Note(code="unused-parameters", message="2 parameters take no part in the loss: lm_head.bias, pos."),
    ),
    **provenance: object,
) -> Spectrum:
    whole = make_operator_spectrum(sharpest=sharpest, unconverged=unconverged, seed=seed)
    scale = sharpest / 38.21
    measured = {
        block: make_operator_spectrum(size, top_value * scale, bulk, top=3, bottom=1, probes=2, seed=seed + 1)
        for block, (size, top_value, bulk) in BLOCKS.items()
    }
    return Spectrum(
        operator=operator,
        loss=loss,
        gradient_norm=0.318,
        whole=whole,
        blocks=measured if blocks else {},
        verification=None if verified is None else make_verification(whole, agrees=verified),
        config={"top": 10, "bottom": 5, "probes": 4, "tolerance": 1e-3, "memory": None, "per_block": blocks},
        fingerprint=f"{name}-{step}",
        notes=notes,
        provenance=make_provenance(checkpoint_name=name, checkpoint_step=step, **provenance),
    )


# Sharp and flat

EDGES = np.array([0.0, 0.01, *np.arange(0.1, 1.01, 0.1)])
# κ of the sharpest band, of the flattest, and LITE's answer, by block
CURVATURES = {
    "emb": (0.56, -2e-4, "unbounded"),
    "qk": (2.7e-2, 2e-5, "holds"),
    "vo": (8.5e-2, 4e-5, "holds"),
    "ffn": (1.4e-2, 6e-6, "holds"),
    "norm": (9e-3, 3e-3, "open"),
    "out": (0.25, 1e-5, "not used"),
}


def make_block_calibration(
    size: int, sharpest: float, flattest: float, answer: str, *, strength: float = 1.0, probes: int = 16, seed: int = 0
) -> BlockCalibration:
    """One block in which LITE's assumption holds, fails, is open, is not used, or holds without an upper bound."""
    rng = np.random.default_rng(seed)
    dimensions = np.diff(np.floor(EDGES * size + 0.5)).astype(np.int64)
    bands = len(dimensions)
    fall = np.linspace(0.0, 1.0, bands) ** 0.6
    curvature = sharpest * (abs(flattest) / sharpest) ** fall * np.where(fall == 1.0, np.sign(flattest), 1.0)
    centres = {"holds": (1.0, 0.1), "fails": (0.1, 1.0), "open": (1.0, 1.0), "unbounded": (1.0, 0.002)}
    sides = {}
    if answer != "not used":
        high, low = centres[answer]
        scale = sharpest * 0.2
        noise = rng.standard_normal((2, probes))
        noise -= noise.mean(axis=1, keepdims=True)  # the answer must not hang on the seed
        sharp = scale * (high + 0.06 * noise[0])
        low /= strength if answer == "holds" else 1.0
        flat = scale * (low + (0.06 if answer != "holds" else 0.01) * noise[1])
        sides = {
            "sharp_curvature": Estimate.from_samples(sharp),
            "flat_curvature": Estimate.from_samples(flat),
            "difference": Estimate.from_samples(sharp - flat),
            "contrast": Ratio.from_samples(sharp, flat),
        }
    nothing = dict.fromkeys(("sharp_curvature", "flat_curvature", "difference", "contrast"))
    return BlockCalibration(
        num_parameters=size,
        shares=EDGES.copy(),
        dimensions=dimensions,
        proxy=1e-4 * np.geomspace(1.0, 1e-5, bands),
        curvature=curvature,
        curvature_stderr=np.maximum(0.05 * np.abs(curvature), 2e-5),
        unseen_share=0.0,
        rank_correlation=0.87,
        rank_correlation_stderr=0.05,
        sharp_share=0.0 if answer == "not used" else 0.13,
        **(nothing | sides),  # type: ignore[arg-type]
    )


def make_overlap(
    kind: str = "batches", first: str = "one half", second: str = "the other half", *, overlap: float = 0.55, **changes
) -> Overlap:
    """Two subspaces of ten dimensions: some angles small, some near a right one; mean cos² as asked."""
    squares = np.clip(overlap + (1 - overlap) * overlap * np.linspace(1.8, -1.8, 10), 0.0, 1.0)
    squares *= overlap / squares.mean()
    values = {"num_parameters": 10_724_352, "residual": 0.009} | changes
    angles = np.arccos(np.sqrt(np.clip(squares, 0.0, 1.0)))
    return Overlap(kind=kind, first=first, second=second, angles=np.sort(angles), **values)


def make_norm_sharpness(optimizer: str) -> NormSharpness:
    """Sharpness in an optimizer's own norm, as of a small language model."""
    values, norm = {
        "muon-lite": ((22_130.0, 21_950.0, 20_100.0), "largest singular value of matrices, else largest entry"),
        "soap-lite": ((14_600.0, 13_900.0, 13_200.0), "largest entry in its eigenbases"),
    }.get(optimizer, ((361_500.0, 361_400.0, 361_100.0), "largest entry"))
    return NormSharpness(norm=norm, is_normalised=True, values=np.array(values), gradient_norm=35.6, num_hvps=13)


def make_subspace(
    *,
    name: str = "gpt-5000",
    step: int | None = 5000,
    gradient_share: float = 0.261,
    overlaps: bool = True,
    halves: float = 0.55,
    residual: float = 0.009,
    others: tuple[str, ...] = (),
    preconditioned: bool = True,
    optimizers: tuple[str, ...] = ("adamw-lite", "muon-lite", "soap-lite"),
    answers: dict[str, str] | None = None,
    notes: tuple[Note, ...] = (
        Note(code="metric-bounded", message="In the metric of soap-lite 1.6% of the directions were bounded."),
    ),
    seed: int = 0,
    **provenance: object,
) -> SubspaceMeasurement:
    """A subspace measurement; `answers` sets LITE's assumption by block (holds, fails, open, not used, unbounded)."""
    rng = np.random.default_rng(seed)
    size, spectrum = 10, make_operator_spectrum(seed=seed)
    found: list[Overlap] = []
    if overlaps:
        found.append(make_overlap(overlap=halves, residual=residual))
        found.append(make_overlap("operators", "Hessian", "Gauss–Newton", overlap=0.83, residual=0.006))
    found += [make_overlap("checkpoints", other, name, overlap=0.31, residual=0.008) for other in others]
    strengths = {"adamw-lite": 0.6, "muon-lite": 1.0, "soap-lite": 3.0}
    sharpest = {"adamw-lite": 54.0, "muon-lite": 9.1, "soap-lite": 5.2}
    calibrations = {}
    for place, optimizer in enumerate(optimizers):
        blocks = {}
        for index, (block, (high, low, answer)) in enumerate(CURVATURES.items()):
            blocks[block] = make_block_calibration(
                BLOCKS[block][0],
                high * strengths.get(optimizer, 1.0),
                low,
                (answers or {}).get(block, answer),
                strength=strengths.get(optimizer, 1.0),
                seed=seed + 17 * place + index,
            )
        metric = make_operator_spectrum(
            sharpest=sharpest.get(optimizer, 9.0), bulk=3e-3, top=3, bottom=1, seed=seed + 5
        )
        calibrations[optimizer] = ProxyCalibration(
            optimizer=optimizer,
            blocks=blocks,
            preconditioned=metric if preconditioned else None,
            left_out_conditions=(root_mean_square_condition(metric) or 0.0) * np.array([0.98, 1.01, 1.02, 0.99])
            if preconditioned
            else None,
            own_norm=make_norm_sharpness(optimizer) if preconditioned else None,
        )
    return SubspaceMeasurement(
        size=size,
        num_parameters=spectrum.num_parameters,
        spectrum=spectrum,
        loss=1.4721,
        gradient_norm=0.318,
        gradient_share=gradient_share,
        batch_gradient_share=Estimate.from_samples(gradient_share * (0.92 + 0.3 * rng.standard_normal(50))),
        random_share=random_energy_share(size, spectrum.num_parameters),
        overlaps=tuple(found),
        calibrations=calibrations,
        num_probes=16,
        num_warm_batches=50,
        num_hvps=252,
        hvps_by_part={"calibration": 16, "overlap of halves": 73, "preconditioned soap-lite": 48},
        config={"size": size, "probes": 16, "warm_batches": 50, "optimizers": optimizers, "overlaps": overlaps},
        fingerprint=f"{name}-{step}-subspace",
        notes=notes,
        provenance=make_provenance(
            checkpoint_name=name,
            checkpoint_step=step,
            **{"command": "lite-probe subspace runs/gpt/ckpt.pt --data val.bin"} | provenance,
        ),
    )


# Replay

# η₀, exponent a of η_i = η₀ λ_i^(−a), flat progress per step in nats, how much updates turn to and fro
MANNERS = {
    "adamw": (6e-3, 0.3, 1.6e-3, 0.6),
    "adamw-lite": (7e-3, 0.3, 1.9e-3, 0.6),
    "muon": (8e-3, 0.45, 2.0e-3, 0.5),
    "muon-lite": (8e-3, 0.5, 2.6e-3, 0.6),
    "soap": (9e-3, 0.6, 2.2e-3, 0.7),
    "soap-lite": (9e-3, 0.62, 2.3e-3, 0.7),
    "sgd": (2e-3, 0.0, 4e-4, 0.2),
}


def make_bands() -> Bands:
    blocks = [block for block in BLOCKS for _ in EDGES[1:]]
    sizes = [np.diff(np.floor(EDGES * BLOCKS[block][0] + 0.5)) for block in BLOCKS]
    fall = np.linspace(0.0, 1.0, len(EDGES) - 1) ** 0.6
    ends = [CURVATURES[block][:2] for block in BLOCKS]
    curvatures = np.concatenate(
        [high * (abs(low) / high) ** fall * np.where(fall == 1.0, np.sign(low), 1.0) for high, low in ends]
    )
    return Bands(
        optimizer="soap",
        blocks=tuple(blocks),
        low=np.tile(EDGES[:-1], len(BLOCKS)),
        high=np.tile(EDGES[1:], len(BLOCKS)),
        dimensions=np.concatenate(sizes).astype(np.int64),
        curvatures=curvatures,
        curvature_errors=0.1 * np.abs(curvatures),
        num_probes=8,
    )


def make_run(
    optimizer: str,
    run_seed: int,
    *,
    steps: int,
    eigenvalues: NDArray[np.float64],
    bands: Bands,
    start_loss: float,
    gain: float = 0.0,
    noise: float = 0.04,
    closure: float = 1e-3,
    ablation: str = "none",
    diverged_at: int | None = None,
) -> ReplayRun:
    """One run: `gain` nats per step of further flat progress, scattered over runs by `noise` of all progress."""
    # What all optimizers share on a seed's batches cancels in a paired difference.
    shared = 1.0 + noise * np.random.default_rng(100 + run_seed).standard_normal()
    rng = np.random.default_rng([run_seed, *optimizer.encode()])
    count = steps if diverged_at is None else diverged_at
    lr, power, flat, turning = MANNERS[optimizer.partition("@")[0]]
    rates = lr * eigenvalues**-power * (1.0 + 0.05 * rng.standard_normal(len(eigenvalues)))
    signs = np.where(rng.random((count, len(eigenvalues))) < 0.5 * turning, -1.0, 1.0)
    sizes = 0.05 * np.exp(-0.02 * np.arange(count))[:, None] * (1 + 0.1 * rng.standard_normal(signs.shape))
    gradients = signs * sizes
    updates = -rates * gradients
    sharp = updates * gradients + 0.5 * eigenvalues * updates**2
    own = 1.0 + 0.5 * noise * rng.standard_normal()
    flats = -(flat + gain) * shared * own * np.exp(-0.03 * np.arange(count))
    allocations = flats + sharp.sum(axis=1)
    closures = closure * allocations * rng.standard_normal(count)
    changes = {"none": 1.0, "dominant": 0.02, "bulk": 0.97}[ablation] * (allocations - closures)
    place = np.arange(len(bands.dimensions))
    shares = (1.0 + place % 11) ** -(0.6 + 0.2 * (place // 11))
    weights = shares / shares.sum()
    spread = (
        bands.dimensions
        / bands.dimensions.sum()
        * shares ** ((0.3 if "lite" in optimizer else 0.6) + 0.02 * rng.random())
    )
    band_rates = lr * np.abs(bands.curvatures) ** -power * (1.0 + 0.05 * rng.standard_normal(len(place)))
    recorded = {
        "update_norms": np.full(count, 0.9),
        "allocations": allocations,
        "closure_errors": closures,
        "gradients_used": np.full(count, 2, dtype=np.int64),
        "slopes": 1.1 * allocations,
        "curvatures": np.full(count, 0.81 * lr * (1 + 0.05 * rng.standard_normal())),
        "sharp_allocations": sharp,
        "sharp_updates": updates,
        "sharp_gradients": gradients,
        "band_allocations": allocations[:, None] * weights,
        "band_energies": 0.81 * np.ones((count, 1)) * spread / spread.sum(),
        "band_flat_allocations": flats[:, None] * weights,
        "band_slopes": -band_rates * 1e-4 * np.ones((count, 1)),
        "band_gradient_energies": 1e-4 * np.ones((count, len(place))),
    }
    if ablation != "none":
        recorded = {key: value[:0] if value.ndim == 1 else np.zeros((0, 0)) for key, value in recorded.items()}
    losses = start_loss + np.concatenate([[0.0], np.cumsum(changes)])
    return ReplayRun(
        optimizer=optimizer,
        ablation=ablation,
        seed=run_seed,
        batches_digest=f"segment-{run_seed}",
        diverged_at=diverged_at,
        train_losses=losses[:-1] + 0.05 * rng.standard_normal(count),
        losses=losses,
        seconds=0.21 * count,
        **recorded,
    )


def with_same_batches(replay: Replay, *, flat: float = 1.0, sharp: float = 1.0, start_loss: float = 1.5) -> Replay:
    """Give runs figures on the eigenvectors' batches: their own, with flat and sharp allocations times a factor."""
    runs = []
    for run in replay.runs:
        change: NDArray[np.float64] = np.diff(run.losses)
        parts = {}
        if run.is_recorded:
            sharp_parts = sharp * run.sharp_allocations
            parts["same_batch_sharp_allocations"] = sharp_parts
            parts["same_batch_allocations"] = flat * run.flat_allocations + sharp_parts.sum(axis=1)
            parts["same_batch_closure_errors"] = run.closure_errors
            parts["same_batch_gradients_used"] = run.gradients_used
            change = parts["same_batch_allocations"] - run.closure_errors
        losses = start_loss + np.concatenate([[0.0], np.cumsum(change)])
        runs.append(replace(run, same_batch_losses=losses, **parts))
    return replace(replay, runs=tuple(runs))


def make_sweep(chosen: float = 2.0**-8, *, is_inside: bool = True, diverged: int = 1) -> Sweep:
    lrs = chosen * 2.0 ** np.arange(-1 if is_inside else -2, 2 if is_inside else 1)
    failed = np.arange(len(lrs)) >= len(lrs) - diverged if is_inside else np.zeros(len(lrs), dtype=bool)
    losses = 1.41 + 0.004 * np.abs(np.log2(lrs / chosen))
    return Sweep(lrs=lrs, losses=np.where(failed, 0.0, losses), diverged=failed, chosen=chosen, is_inside=is_inside)


def make_replay(
    *,
    name: str = "gpt-5000",
    step: int | None = 5000,
    optimizers: tuple[str, ...] = ("muon", "muon-lite", "soap", "soap-lite"),
    steps: int = 20,
    seeds: int = 3,
    gains: dict[str, float] | None = None,
    noise: float = 0.04,
    closure: float = 1e-3,
    diverged: tuple[tuple[str, int, int], ...] = (),
    ablations: bool = False,
    swept: bool = True,
    is_inside: bool = True,
    theory: bool = True,
    landscape: bool = True,
    notes: tuple[Note, ...] = (
        Note(code="refined", message="3 of 240 steps missed the closure tolerance with 2 gradients and took more."),
    ),
    **provenance: object,
) -> Replay:
    """A replay; `diverged` lists (optimizer, seed, step), `gains` further flat progress per step by optimizer."""
    eigenvalues = make_operator_spectrum().eigenvalues
    bands, start_loss = make_bands(), 1.4721
    failures = {(optimizer, seed): at for optimizer, seed, at in diverged}
    runs = []
    for optimizer in optimizers:
        for seed in range(seeds):
            for ablation in ("none", "dominant", "bulk") if ablations else ("none",):
                run = make_run(
                    optimizer,
                    seed,
                    steps=steps,
                    eigenvalues=eigenvalues,
                    bands=bands,
                    start_loss=start_loss,
                    gain=(gains or {}).get(optimizer, 0.0),
                    noise=noise,
                    closure=closure,
                    ablation=ablation,
                    diverged_at=failures.get((optimizer, seed)) if ablation == "none" else None,
                )
                runs.append(run)
    recipes = {
        optimizer: Recipe(
            optimizer=optimizer,
            lr=2.0**-8,
            lr_source="sweep" if swept else "given",
            hyperparameters={"flat_lr_ratio": 2.0} if optimizer.endswith("-lite") else {},
            state="warm",
            state_lines=("warmed on 50 batches at fixed parameters",),
        )
        for optimizer in optimizers
    }
    return Replay(
        steps=steps,
        num_seeds=seeds,
        rule="simpson",
        tolerance=5e-3,
        start_loss=start_loss,
        eigenvalues=eigenvalues,
        eigenvalue_errors=1e-4 * eigenvalues,
        num_parameters=int(bands.dimensions.sum()),
        bands=bands,
        recipes=recipes,
        sweeps={optimizer: make_sweep(is_inside=is_inside) for optimizer in optimizers} if swept else {},
        theory={
            optimizer: LinearTheory(
                effective_lrs=1.3 * manner[0] * eigenvalues ** -manner[1],
                rates=np.linspace(0.93, 0.99, len(eigenvalues)),
            )
            for optimizer in optimizers
            for manner in [MANNERS[optimizer.partition("@")[0]]]
        }
        if theory
        else {},
        runs=tuple(runs),
        landscape=make_landscape(optimizers, runs, eigenvalues, start_loss) if landscape and runs else None,
        config={"optimizers": optimizers, "steps": steps, "seeds": seeds, "rule": "simpson"},
        fingerprint=f"{name}-{step}-replay",
        notes=notes,
        provenance=make_provenance(
            checkpoint_name=name,
            checkpoint_step=step,
            **{"command": "lite-probe replay runs/gpt/ckpt.pt --data val.bin --optimizers muon,muon-lite"} | provenance,
        ),
    )

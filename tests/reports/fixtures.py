"""Synthetic spectra that look like those of a small language model.

Quadrature nodes come from Lanczos on a discretised measure, so they have the edges, gaps and weights that real
ones have: a bulk at zero, ten outliers above it, a few negative eigenvalues.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum, Verification

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
        atoms=np.concatenate([upper[converged], lower]),
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
        "checkpoint_fingerprint": "6f1d2c7a90be4453a1f0",
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
    return Provenance(**(values | changes))  # type: ignore[arg-type]


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

"""Spectral densities on an axis that is linear near zero and logarithmic beyond.

A transformer's spectrum has nearly all of its mass within ±1/1000 of λ₁, and its outliers at λ₁. On a linear
axis the bulk is one spike. With u = asinh(t/s) both are seen. The Gaussians have one width in u, so that their
width in curvature grows with |t|; the curve is still φ(t), in 1/curvature: φ(t) = ψ(u) / √(t² + s²).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lite_probe.results.spectrum import OperatorSpectrum

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedDensity:
    """A density drawn on one axis, with its band over probes and the atoms beside it."""

    position: FloatArray  # (g,) where to draw: t, or asinh(t/s)
    curvature: FloatArray  # (g,) t, loss/param²
    value: FloatArray  # (g,) φ(t), 1/curvature
    low: FloatArray  # (g,) smallest over probes
    high: FloatArray  # (g,) largest over probes
    atom_position: FloatArray  # (a,)
    atom_height: FloatArray  # (a,) peak of a Gaussian of weight 1/N there


def smooth_linear(spectrum: OperatorSpectrum, grid_points: int = 256) -> SmoothedDensity:
    """Smooth on a linear axis, with the width that `OperatorSpectrum.density` chooses."""
    density = spectrum.density(grid_points=grid_points)
    height = density.atom_weight / (density.sigma * math.sqrt(2 * math.pi))
    return SmoothedDensity(
        position=density.grid,
        curvature=density.grid,
        value=density.value,
        low=density.low,
        high=density.high,
        atom_position=density.deflated_eigenvalues,
        atom_height=np.full(len(density.deflated_eigenvalues), height),
    )


def smooth_asinh(spectrum: OperatorSpectrum, scale: float, grid_points: int = 256) -> SmoothedDensity:
    """Smooth on u = asinh(t/s).

    Args:
        spectrum: Nodes, weights and atoms.
        scale: s > 0, curvature; the axis is linear within ±s.
        grid_points: Equally spaced in u.
    """
    nodes, atoms = np.arcsinh(spectrum.nodes / scale), np.arcsinh(spectrum.deflated_eigenvalues / scale)
    support = np.concatenate([nodes, atoms, [0.0]])
    low, high = float(support.min()), float(support.max())
    nodes_per_probe = len(nodes) / max(spectrum.num_probes, 1)
    # Narrower than half the distance of nodes a Gaussian shows the nodes, not the density.
    sigma = max(high - low, 1e-3) / min(max(2.0 * nodes_per_probe, 30.0), 80.0)
    grid = np.linspace(low - 3 * sigma, high + 3 * sigma, grid_points)
    curvature = scale * np.sinh(grid)
    peak = 1.0 / (sigma * math.sqrt(2 * math.pi))
    curves = np.zeros((max(spectrum.num_probes, 1), grid_points))
    for probe in range(spectrum.num_probes):
        chosen = spectrum.probe_index == probe
        scaled = (grid[:, None] - nodes[chosen][None, :]) / sigma
        curves[probe] = peak * np.exp(-0.5 * scaled**2) @ spectrum.weights[chosen]
    curves /= np.hypot(curvature, scale)
    return SmoothedDensity(
        position=grid,
        curvature=curvature,
        value=curves.mean(axis=0),
        low=curves.min(axis=0),
        high=curves.max(axis=0),
        atom_position=atoms,
        atom_height=peak / (spectrum.num_parameters * np.hypot(spectrum.deflated_eigenvalues, scale)),
    )


def asinh_scale(spectra: list[OperatorSpectrum]) -> float:
    """Return the power of ten nearest to 1/1000 of the largest |λ| seen, one for all spectra of a page."""
    largest = max(
        (float(np.abs(values).max()) for s in spectra for values in (s.nodes, s.deflated_eigenvalues) if len(values)),
        default=1.0,
    )
    return 10.0 ** round(math.log10(largest) - 3) if largest > 0 else 1.0

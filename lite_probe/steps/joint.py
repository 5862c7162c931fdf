"""The multiples of several groups of directions that lower a quadratic model together."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RIDGES = (0.01, 0.1, 1.0, 10.0)  # that are tried, of a group's own curvature


def joint_optimum(gains: FloatArray, curvatures: FloatArray, ridge: float) -> tuple[FloatArray, float]:
    """Return argmin −Gᵀc + ½cᵀ(A₊ + R)c, and the model's change −Gᵀc + ½cᵀA₊c there.

    A₊ is A without its negative eigenvalues, in coordinates in which every group's own |A_jj| is 1 (a thousandth of
    their mean where one is smaller); R is the ridge in these: along what A₊ does not see the step stays finite.

    Args:
        gains: (k,) G.
        curvatures: (k, k) A, symmetric.
        ridge: Of a group's own curvature.
    """
    diagonal = np.abs(np.diag(curvatures))
    scale = np.sqrt(np.maximum(diagonal, max(1e-3 * float(diagonal.mean()), 1e-300)))
    values, vectors = np.linalg.eigh(0.5 * (curvatures + curvatures.T) / np.outer(scale, scale))
    values = np.maximum(values, 0.0)
    multiples = (vectors @ ((vectors.T @ (gains / scale)) / (values + ridge))) / scale
    seen = vectors.T @ (scale * multiples)
    return multiples, float(-gains @ multiples + 0.5 * (seen * values) @ seen)

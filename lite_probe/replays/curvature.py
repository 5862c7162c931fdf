"""The mean curvature of every band at θ₀, so that what an optimizer does to curvature is seen beyond its outliers.

κ_b = tr(P_b H)/dim_b by Gaussian probes, one Hessian product each for all bands of all blocks, the sharp eigenvectors
taken out exactly: see `lite_probe.subspaces.calibration`.
"""

from typing import Literal

import numpy as np
import torch

from lite_probe.errors import NumericsError
from lite_probe.operators.hessian import HessianOperator
from lite_probe.seeds import derive_seed
from lite_probe.subspaces import Bands, Subspace
from lite_probe.subspaces.calibration import FloatArray, band_curvatures, rest_of, tail_of
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector

Kind = Literal["full", "tail"]  # of a probe: parts in all bands, or in those behind 30% of a block alone
KINDS: tuple[Kind, ...] = ("full", "tail")
PRODUCT_GRADIENTS = 3  # gradients that a product takes about as long as, its graph built anew


class BandProbes:
    """Probes of the Hessian on the evaluation batches, which the eigenvectors were measured on.

    Args:
        task: Its parameters are at θ₀ during a product.
        layout: All parameters.
        bands: Of all blocks.
        pairs: The sharp eigenvectors.
        count: Tokens or samples in the evaluation batches.
        seed: The user's.
    """

    def __init__(
        self, task: Task, layout: ParameterLayout, bands: Bands, pairs: Subspace, *, count: int, seed: int
    ) -> None:
        self.layout = layout
        self.bands = bands
        self.pairs = pairs
        self.seed = seed
        self.hessian = HessianOperator(task, layout, count=count, vectors_per_pass=1)
        self.tail = tail_of(bands)

    def sample(self, kind: Kind, index: int) -> FloatArray:
        """Return (B,) what one probe says of every band, (P_b z)ᵀ(H − VΛVᵀ)z.

        Raises:
            NumericsError: If the product is not finite, or the model cannot be differentiated twice.

        Cost: one product, its graphs built anew, and two passes over the eigenvectors.
        """
        first = self.layout.parameters[0]
        seed = derive_seed(self.seed, "replay", "curvature", kind, index)
        probe = random_vector(self.layout.size, seed=seed, dtype=first.dtype, device=first.device)
        if kind == "tail":
            probe = self.bands.project(probe, self.tail.tolist())
        (rest,) = rest_of(probe.unsqueeze(0), self.pairs, self.hessian)
        found = np.asarray(self.bands.products(probe, rest).cpu().numpy())
        if not np.isfinite(found).all():
            raise NumericsError(
                "expected finite Hessian products at the start, got NaN or infinity", "pass --curvature-probes 0"
            )
        return found

    def curvatures(self, full: FloatArray, tail: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return κ_b and its standard error, (B,) and (B,), from (p, B) samples of either kind.

        Cost: k rotations of N numbers.
        """
        vectors = (self.pairs.vector(index).to(self.layout.parameters[0]) for index in range(self.pairs.size))
        energies = torch.stack([self.bands.products(vector, vector) for vector in vectors]).cpu().numpy()
        exact = np.zeros(len(self.bands))
        for value, own in zip(self.pairs.eigenvalues, energies, strict=True):
            exact += value * own
        return band_curvatures(self.bands, exact, full, tail)

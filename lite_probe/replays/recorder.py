"""Who the loss change of a step belongs to: sharp eigenvectors, their complement, and the bands of every block."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.replays.allocation import StepChange
from lite_probe.subspaces import Bands, Subspace

# Arrays of `ReplayRun` with a column per band, as they are recorded.
OF_BANDS = ("band_allocations", "band_energies", "band_flat_allocations", "band_slopes", "band_gradient_energies")


class Recorder:
    """Projects each step's update and gradients on fixed directions.

    Args:
        subspace: The sharp eigenvectors, k of them.
        bands: The bands of all blocks, B of them.
    """

    def __init__(self, subspace: Subspace, bands: Bands) -> None:
        self.subspace = subspace
        self.bands = bands

    def record(self, change: StepChange, gradient: Tensor, update: Tensor) -> Mapping[str, Any]:
        """Return one step's entries of `ReplayRun`, by name.

        Args:
            change: The step's quadrature.
            gradient: (N,) ∇L at its start.
            update: (N,) d.

        Cost: two passes over the subspace, four rotations of N numbers and five passes over them.
        """
        vectors = [change.mean_gradient, update, gradient]
        weights = self.subspace.coefficients(vectors).T
        # The part of the gradient in the flat complement: its products with the update add up to the flat allocation.
        flat = self.subspace.combine(weights[0], update.dtype, update.device)
        torch.sub(change.mean_gradient, flat, out=flat)
        pairs = [(0, 1), (1, 1), (3, 1), (2, 1), (2, 2)]
        bands = self.bands.products_of([*vectors, flat], pairs)
        found = torch.cat([weights.flatten(), bands.flatten()]).cpu().numpy()
        mean, moved, start = found[: 3 * self.subspace.size].reshape(3, -1)
        return {
            "sharp_allocations": mean * moved,
            "sharp_updates": moved,
            "sharp_gradients": start,
            **dict(zip(OF_BANDS, found[3 * self.subspace.size :].reshape(bands.shape), strict=True)),
        }

    def allot(self, change: StepChange, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (k,) what the eigenvectors have of a step's change on other batches.

        Args:
            change: The step's quadrature on those.
            moved: (k,) the step along each eigenvector.

        Cost: a pass over the subspace.
        """
        mean = self.subspace.coefficients(change.mean_gradient.unsqueeze(0))[:, 0].cpu().numpy()
        return np.asarray(mean * moved)

    @property
    def widths(self) -> Mapping[str, int]:
        """Columns of each array of `ReplayRun` that has some."""
        sharp, bands = self.subspace.size, len(self.bands)
        return {
            **dict.fromkeys(
                ("sharp_allocations", "sharp_updates", "sharp_gradients", "same_batch_sharp_allocations"), sharp
            ),
            **dict.fromkeys(OF_BANDS, bands),
        }

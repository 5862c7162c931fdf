"""Who the loss change of a step belongs to: sharp eigenvectors, their complement, and the bands of every block."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.replays.allocation import StepChange
from lite_probe.subspaces import Bands, Subspace


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

        Cost: three passes over the subspace, two rotations of N numbers and two passes over them.
        """
        vectors = [change.mean_gradient, update, gradient]
        mean, moved, start = (self.subspace.coefficients(one.unsqueeze(0))[:, 0].cpu().numpy() for one in vectors)
        bands = self.bands.products_of(vectors[:2], [(0, 1), (1, 1)]).cpu().numpy()
        return {
            "sharp_allocations": mean * moved,
            "sharp_updates": moved,
            "sharp_gradients": start,
            "band_allocations": bands[0],
            "band_energies": bands[1],
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
            **dict.fromkeys(("band_allocations", "band_energies"), bands),
        }

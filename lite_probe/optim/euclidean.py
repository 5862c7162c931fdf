"""Gradient descent with an averaged momentum: F = I. The reference that needs no explanation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lite_probe.optim.geometry import (
    Coordinates,
    Geometry,
    Hyperparameters,
    LiteSettings,
    Preconditioned,
    State,
    fewer_rows,
    gated,
)


class Euclidean(Geometry):
    """m ← θm + (1−θ)g, w ← w − ηm − ηλw; no direction counts as flat.

    The momentum is an average: `torch.optim.SGD(momentum=θ)` takes steps 1/(1−θ) times as long at the same lr.
    """

    name = "euclidean"
    kinds = ("gradient descent",)
    stacked_on_cpu = False

    def new_state(self, shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
        """Return zero momentum; none where θ = 0."""
        return {"momentum": torch.zeros(shape, dtype=dtype, device=device)} if group["momentum"] else {}

    def precondition(
        self,
        state: State,
        gradient: Tensor,
        *,
        step: int,
        group: Hyperparameters,
        lite: LiteSettings,
        gate: Tensor | None,
    ) -> Preconditioned:
        """See `Geometry.precondition`."""
        momentum = gradient
        if "momentum" in state:
            momentum = state["momentum"].lerp_(gradient, gated(1.0 - group["momentum"], gate))
        return Preconditioned(momentum=momentum, gradient=None, project=None, step_size=group["lr"])

    def sample(self, shape: Sequence[int], group: Hyperparameters) -> Sequence[int]:
        """See `Geometry.sample`: a step goes entry by entry."""
        return fewer_rows(shape)

    def coordinates(self, state: State, *, step: int, group: Hyperparameters, lite: LiteSettings) -> Coordinates:
        """See `Geometry.coordinates`: the parameter's own, all alike."""
        return Coordinates(proxy=torch.zeros(()), divisor=torch.ones(()), flat=None)

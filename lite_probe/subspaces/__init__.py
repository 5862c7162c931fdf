"""Sharp and flat: the leading eigenvectors, LITE's proxies of them, and the bands that directions are cut into."""

from lite_probe.subspaces.bands import Bands, cut_bands
from lite_probe.subspaces.subspace import Subspace, principal_angles
from lite_probe.subspaces.warming import (
    can_take,
    drop_gradients,
    optimizer_of,
    own_gradients,
    set_gradients,
    warm,
)

__all__ = [
    "Bands",
    "Subspace",
    "can_take",
    "cut_bands",
    "drop_gradients",
    "optimizer_of",
    "own_gradients",
    "principal_angles",
    "set_gradients",
    "warm",
]

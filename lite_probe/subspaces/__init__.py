"""Sharp and flat: the leading eigenvectors, LITE's proxies of them, and the bands that directions are cut into."""

from lite_probe.subspaces.bands import Bands, cut_bands
from lite_probe.subspaces.measure import (
    SubspacePlan,
    discard_state,
    measure_subspace,
    plan_subspace,
    require_measurable,
)
from lite_probe.subspaces.subspace import Subspace, principal_angles
from lite_probe.subspaces.warming import can_take, optimizer_of, own_gradients, set_gradients, warm

__all__ = [
    "Bands",
    "Subspace",
    "SubspacePlan",
    "can_take",
    "cut_bands",
    "discard_state",
    "measure_subspace",
    "optimizer_of",
    "own_gradients",
    "plan_subspace",
    "principal_angles",
    "require_measurable",
    "set_gradients",
    "warm",
]

"""SOAP's geometry: Adam in the eigenbasis of Shampoo's Kronecker factors, where directions are coordinates again."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lite_probe.optim.diagonal import flat_mask, flat_weights, new_thresholds, unbiased_root
from lite_probe.optim.eigenbases import renewed_basis, singular_vectors, whole_basis
from lite_probe.optim.geometry import (
    Coordinates,
    Geometry,
    Hyperparameters,
    LiteSettings,
    Preconditioned,
    State,
    average_square_,
    fewer_rows,
    gated,
    replace_,
)
from lite_probe.optim.msign import frobenius_norm

_SIDES = ("left", "right")
_NOISE = 4.0  # of eps·‖X‖_F: a rotated entry below has come out of the rotation's rounding


class Kronecker(Geometry):
    """L ← EMA(ggᵀ), R ← EMA(gᵀg) with eigenbases Q_L, Q_R; Adam runs on g′ = Q_Lᵀ g Q_R.

    The first step only builds the bases and moves nothing. m and v live in the rotated space; when the bases change,
    every `precondition_frequency` steps by one power iteration and QR, m is rotated along and v permuted. Sides longer
    than `max_precond_dim` are not rotated; vectors have no sides and run plain Adam. LITE's mask is that of the rotated
    v.

    Departures from the paper, where it leaves a step to rounding: the first bases are the gradient's own singular
    vectors, in float64; what no rounding can tell from null space has, there and at a renewal, the orthonormal basis
    nearest to the parameter's coordinates, or to the one before (see `eigenbases`); and rotated entries below
    4·eps·‖X‖_F are zero. Without that Adam, which makes all entries equally large, takes full steps along noise, and a
    gradient times 1 + 1e-7 moves the loss by tenths of what the step moves it.

    Cost: 12 products of (m, n) with its longer or shorter side a step, four to rotate, four to rotate back, four for
    L and R, in halves; LITE with weight decay rotates the weights too. A refresh adds a QR of each side
    in float64, the first step an eigendecomposition of the shorter side and what completes both bases.
    Reference: SOAP, arXiv 2409.11321.
    """

    name = "kronecker"
    kinds = ("SOAP", "AdamW")
    stacked_on_cpu = True
    idle_steps = 1
    period = "precondition_frequency"

    def new_state(self, shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
        """Return zero moments and factors; the bases are zero until the first step."""
        state = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("exp_avg", "exp_avg_sq")}
        for side, length in zip(_SIDES, shape[1:], strict=False):
            if len(shape) == 3 and length <= group["max_precond_dim"]:
                square = (shape[0], length, length)
                state[f"factor_{side}"] = torch.zeros(square, dtype=dtype, device=device)
                state[f"basis_{side}"] = torch.zeros(square, dtype=dtype, device=device)
        return {**state, **new_thresholds(shape, group, dtype, device)}

    def precondition(
        self,
        state: State,
        gradient: Tensor,
        *,
        step: int,
        group: Hyperparameters,
        lite: LiteSettings,
        gate: Tensor | None,
    ) -> Preconditioned | None:
        """See `Geometry.precondition`."""
        if step == 0:
            return None
        b1, b2 = group["betas"]
        rotated = _rotate_averages(state, gradient)
        momentum = state["exp_avg"].lerp_(rotated, gated(1.0 - b1, gate))
        second = average_square_(state["exp_avg_sq"], rotated, b2, gate)
        flat = flat_mask(state, second, lite, gate)
        return Preconditioned(
            momentum=momentum,
            gradient=rotated if lite.damped else None,
            divisor=second.sqrt().add_(group["eps"]),
            project=None if flat is None else flat.mul,
            step_size=group["lr"] * (1.0 - b2**step) ** 0.5 / (1.0 - b1**step),
            into=lambda x: _rotate(state, x),
            out_of=lambda x: _rotate_back(state, x),
            decay_last=True,
        )

    def sample(self, shape: Sequence[int], group: Hyperparameters) -> Sequence[int]:
        """See `Geometry.sample`: rows that are not rotated are alike, and so are entries of a vector."""
        longest: int = group["max_precond_dim"]
        if len(shape) == 1:
            return fewer_rows(shape)
        return fewer_rows(shape, longest + 1) if shape[0] > longest else shape

    def coordinates(self, state: State, *, step: int, group: Hyperparameters, lite: LiteSettings) -> Coordinates:
        """See `Geometry.coordinates`: the eigenbasis, with the rotated v as the proxy."""
        second = state["exp_avg_sq"]
        bases = {side: state.get(f"basis_{side}") if step else None for side in _SIDES}  # zero before the first step
        return Coordinates(
            **bases,
            proxy=second,
            divisor=unbiased_root(second, group["betas"][1], step - 1, group["eps"]),
            flat=flat_weights(state, second, lite),
        )

    def kind_of(self, names: Collection[str]) -> str:
        """See `Geometry.kind_of`: what is not rotated runs plain Adam."""
        return "SOAP" if any(name.startswith("basis_") for name in names) else "AdamW"

    def post_step(
        self, state: State, gradient: Tensor, *, step: int, group: Hyperparameters, gate: Tensor | None
    ) -> None:
        """Average the factors, and renew the bases where it is time."""
        beta = group["betas"][1] if group["shampoo_beta"] is None else group["shampoo_beta"]
        sides = [side for side in _SIDES if f"factor_{side}" in state]
        for side in sides:
            outer = torch.bmm(gradient, gradient.mT) if side == "left" else torch.bmm(gradient.mT, gradient)
            state[f"factor_{side}"].lerp_(outer, gated(1.0 - beta, gate))
        if step == 0 and sides:
            vectors = [singular_vectors(one) for one in gradient]
            for side in sides:
                bases = torch.stack([whole_basis(known[_SIDES.index(side)]) for known in vectors])
                replace_(state[f"basis_{side}"], bases.to(gradient.dtype), gate)
        elif sides and step % group["precondition_frequency"] == 0:
            self._renew(state, sides, gate)

    def _renew(self, state: State, sides: list[str], gate: Tensor | None) -> None:
        """Move each basis one power iteration on; m keeps its meaning, v follows the order of the columns."""
        momentum = _rotate_back(state, state["exp_avg"])
        second = state["exp_avg_sq"]
        for side in sides:
            factor, basis = state[f"factor_{side}"], state[f"basis_{side}"]
            curvature = (basis * torch.bmm(factor, basis)).sum(dim=1)  # diag(QᵀLQ), (stack, side)
            order = curvature.argsort(dim=1, descending=True, stable=True)
            columns = order.unsqueeze(1)
            sorted_basis = basis.gather(2, columns.expand_as(basis))
            new_basis = torch.stack([renewed_basis(*one) for one in zip(factor, sorted_basis, strict=True)])
            along = order.unsqueeze(2) if side == "left" else columns
            second = second.gather(1 if side == "left" else 2, along.expand_as(second))
            replace_(basis, new_basis, gate)
        replace_(state["exp_avg_sq"], second, gate)
        replace_(state["exp_avg"], _rotate_averages(state, momentum), gate)


def _rotate(state: State, matrices: Tensor) -> Tensor:
    """Return Q_Lᵀ X Q_R, a missing side left as it is."""
    if "basis_left" in state:
        matrices = torch.bmm(state["basis_left"].mT, matrices)
    return torch.bmm(matrices, state["basis_right"]) if "basis_right" in state else matrices


def _rotate_averages(state: State, matrices: Tensor) -> Tensor:
    """Return Q_Lᵀ X Q_R of gradients or their averages, zero where only the rounding of the rotation would be left."""
    if "basis_left" not in state and "basis_right" not in state:
        return matrices
    least = _NOISE * torch.finfo(matrices.dtype).eps * frobenius_norm(matrices)
    rotated = _rotate(state, matrices)
    return rotated.masked_fill(rotated.abs() < least, 0.0)


def _rotate_back(state: State, matrices: Tensor) -> Tensor:
    """Return Q_L X Q_Rᵀ."""
    if "basis_left" in state:
        matrices = torch.bmm(state["basis_left"], matrices)
    return torch.bmm(matrices, state["basis_right"].mT) if "basis_right" in state else matrices

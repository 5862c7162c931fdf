"""AdamW's geometry: F = diag(√v + ε), and LITE's soft mask of the sharp coordinates.

The mask calls a coordinate sharp where v is large beside its mean. Two thresholds, multiples ℓ and h of the mean,
follow the distribution of v by 5% a step so that a share ρ of the coordinates lies above h and at most ρ + s above ℓ.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

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
    is_lite,
    replace_,
)

NOTHING, EVERYTHING = 1e-5, 1.0 - 1e-5  # sharp ratios below and above which there is nothing to tell apart


class Diagonal(Geometry):
    """m ← b₁m + (1−b₁)g, v ← b₂v + (1−b₂)g², F⁻¹x = x/(√v + ε), Q = 1 − p with the soft mask p of v.

    ε is added to √v before the bias correction, as published with LITE; `torch.optim.AdamW` adds it afterwards, and so
    does `eps_after_correction`. The step differs by a relative (1 − √(1 − b₂ᵏ))·ε/√v.
    """

    name = "diagonal"
    kinds = ("AdamW",)
    stacked_on_cpu = False
    sees_stacks = False

    def new_state(self, shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
        """Return zero moments, and under LITE the mask's thresholds."""
        zeros = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("exp_avg", "exp_avg_sq")}
        return {**zeros, **new_thresholds(shape, group, dtype, device)}

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
        b1, b2 = group["adamw_beta1"], group["adamw_beta2"]
        momentum, second = state["exp_avg"], state["exp_avg_sq"]
        momentum.lerp_(gradient, gated(1.0 - b1, gate))
        average_square_(second, gradient, b2, gate)
        flat = flat_mask(state, second, lite, gate)
        return Preconditioned(
            momentum=momentum,
            gradient=gradient if lite.damped and group["adamw_damping"] else None,
            divisor=second.sqrt().add_(_uncorrected_eps(group, step + 1)),
            project=None if flat is None else flat.mul,
            step_size=group["lr"] * (1.0 - b2 ** (step + 1)) ** 0.5 / (1.0 - b1 ** (step + 1)),
        )

    def sample(self, shape: Sequence[int], group: Hyperparameters) -> Sequence[int]:
        """See `Geometry.sample`: a step goes entry by entry."""
        return fewer_rows(shape)

    def coordinates(self, state: State, *, step: int, group: Hyperparameters, lite: LiteSettings) -> Coordinates:
        """See `Geometry.coordinates`: the parameter's own, with v as the proxy."""
        second = state["exp_avg_sq"]
        return Coordinates(
            proxy=second,
            divisor=unbiased_root(second, group["adamw_beta2"], step, _uncorrected_eps(group, step)),
            flat=flat_weights(state, second, lite),
        )

    def kind_of(self, names: Collection[str]) -> str | None:
        """See `Geometry.kind_of`: moments are always there."""
        return self.kinds[0] if "exp_avg" in names else None


def _uncorrected_eps(group: Hyperparameters, count: int) -> float:
    """Return what is added to √v before the bias correction: an ε that comes after it times √(1 − b₂ᵏ), k = count."""
    correction = (1.0 - group["adamw_beta2"] ** max(count, 1)) ** 0.5 if group["eps_after_correction"] else 1.0
    return float(group["eps"] * correction)


def new_thresholds(shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
    """Return ℓ = 0.5 and h = 1 for each tensor of a stack, to broadcast over it; nothing without LITE."""
    if not is_lite(group):
        return {}
    each = (shape[0], *(1 for _ in shape[1:]))
    return {
        "mask_low": torch.full(each, 0.5, dtype=dtype, device=device),
        "mask_high": torch.full(each, 1.0, dtype=dtype, device=device),
    }


def unbiased_root(second: Tensor, beta: float, count: int, eps: float) -> Tensor:
    """Return (√v + ε)/√(1 − βᵏ), F where averages are divided by how far they have filled; k updates made v."""
    return second.sqrt().add_(eps).div_((1.0 - beta ** max(count, 1)) ** 0.5)


def flat_weights(state: State, second: Tensor, lite: LiteSettings) -> Tensor | None:
    """Return 1 − p, the weight of each coordinate in Q.

    p = 1 where v ≥ h·mean, 0 where v < ℓ·mean, linear between; the mean is over each tensor of the stack.

    Args:
        state: Holds `mask_low` (ℓ) and `mask_high` (h), (stack, 1, …).
        second: v, (stack, …).
        lite: ρ; without a projector in use nothing is computed.

    Returns:
        (stack, …), or None where Q = 0.
    """
    if not lite.projected or lite.sharp_ratio > EVERYTHING:
        return None
    if lite.sharp_ratio < NOTHING:
        return torch.ones_like(second)
    low, high = _thresholds(state, second)
    return _outside(second, low, high, second >= high)


def flat_mask(state: State, second: Tensor, lite: LiteSettings, gate: Tensor | None) -> Tensor | None:
    """Return `flat_weights`, and move the thresholds for the next step; `gate` is as for `Geometry.precondition`."""
    rho = lite.sharp_ratio
    if not lite.projected or not NOTHING <= rho <= EVERYTHING:
        return flat_weights(state, second, lite)
    low, high = _thresholds(state, second)
    above_high = second >= high
    flat = _outside(second, low, high, above_high)
    inner = tuple(range(1, second.ndim))
    entries = second[0].numel()
    share_high = above_high.sum(dim=inner, keepdim=True) / entries
    share_low = (second >= low).sum(dim=inner, keepdim=True) / entries
    smooth = min(1.0 - rho, lite.smooth_ratio)
    next_low = follow(state["mask_low"], share_low > rho + smooth)
    next_high = follow(state["mask_high"], share_high > rho)
    replace_(state["mask_low"], torch.minimum(next_low, 0.95 * next_high), gate)
    replace_(state["mask_high"], next_high, gate)
    return flat


def _outside(second: Tensor, low: Tensor, high: Tensor, above_high: Tensor) -> Tensor:
    """Return 1 − p."""
    sharp = ((second - low) / (high - low + 1e-12)).clamp_(0.0, 1.0).masked_fill_(above_high, 1.0)
    return sharp.neg_().add_(1.0)


def _thresholds(state: State, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ·mean(v) and h·mean(v) of each tensor of a stack."""
    mean = second.mean(dim=tuple(range(1, second.ndim)), keepdim=True)
    return state["mask_low"] * mean, state["mask_high"] * mean


def follow(threshold: Tensor, too_many: Tensor) -> Tensor:
    """Return thresholds 5% higher where too many directions exceed them, 5% lower elsewhere."""
    return torch.where(too_many, threshold * 1.05, threshold * 0.95)

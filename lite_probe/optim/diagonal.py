"""AdamW's geometry: F = diag(√v + ε), and LITE's soft mask of the sharp coordinates.

The mask calls a coordinate sharp where v is large beside its mean. Two thresholds, multiples ℓ and h of the mean,
follow the distribution of v by 5% a step so that a share ρ of the coordinates lies above h and at most ρ + s above ℓ.
"""

import torch
from torch import Tensor

from lite_probe.optim.geometry import (
    Geometry,
    Hyperparameters,
    LiteSettings,
    Preconditioned,
    State,
    average_square_,
    gated,
    is_lite,
    replace_,
)

_NOTHING, _EVERYTHING = 1e-5, 1.0 - 1e-5  # sharp ratios below and above which there is nothing to tell apart


class Diagonal(Geometry):
    """m ← b₁m + (1−b₁)g, v ← b₂v + (1−b₂)g², F⁻¹x = x/(√v + ε), Q = 1 − p with the soft mask p of v.

    ε is added to √v before the bias correction, as published with LITE; `torch.optim.AdamW` adds it afterwards. The
    step differs by a relative (1 − √(1 − b₂ᵏ))·ε/√v.
    """

    stacked_on_cpu = False

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
            divisor=second.sqrt().add_(group["eps"]),
            project=None if flat is None else flat.mul,
            step_size=group["lr"] * (1.0 - b2 ** (step + 1)) ** 0.5 / (1.0 - b1 ** (step + 1)),
        )


def new_thresholds(shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
    """Return ℓ = 0.5 and h = 1 for each tensor of a stack, to broadcast over it; nothing without LITE."""
    if not is_lite(group):
        return {}
    each = (shape[0], *(1 for _ in shape[1:]))
    return {
        "mask_low": torch.full(each, 0.5, dtype=dtype, device=device),
        "mask_high": torch.full(each, 1.0, dtype=dtype, device=device),
    }


def flat_mask(state: State, second: Tensor, lite: LiteSettings, gate: Tensor | None) -> Tensor | None:
    """Return 1 − p, the weight of each coordinate in Q, and move the thresholds for the next step.

    p = 1 where v ≥ h·mean, 0 where v < ℓ·mean, linear between; the mean is over each tensor of the stack.

    Args:
        state: Holds `mask_low` (ℓ) and `mask_high` (h), (stack, 1, …).
        second: v, (stack, …).
        lite: ρ and s; without a projector in use nothing is computed.
        gate: As for `Geometry.precondition`.

    Returns:
        (stack, …), or None where Q = 0.
    """
    rho = lite.sharp_ratio
    if not lite.projected or rho > _EVERYTHING:
        return None
    if rho < _NOTHING:
        return torch.ones_like(second)
    inner = tuple(range(1, second.ndim))
    mean = second.mean(dim=inner, keepdim=True)
    low_factor, high_factor = state["mask_low"], state["mask_high"]
    low, high = low_factor * mean, high_factor * mean
    above_high = second >= high
    sharp = ((second - low) / (high - low + 1e-12)).clamp_(0.0, 1.0).masked_fill_(above_high, 1.0)

    entries = second[0].numel()
    share_high = above_high.sum(dim=inner, keepdim=True) / entries
    share_low = (second >= low).sum(dim=inner, keepdim=True) / entries
    smooth = min(1.0 - rho, lite.smooth_ratio)
    next_low = follow(low_factor, share_low > rho + smooth)
    next_high = follow(high_factor, share_high > rho)
    replace_(low_factor, torch.minimum(next_low, 0.95 * next_high), gate)
    replace_(high_factor, next_high, gate)
    return sharp.neg_().add_(1.0)


def follow(threshold: Tensor, too_many: Tensor) -> Tensor:
    """Return thresholds 5% higher where too many directions exceed them, 5% lower elsewhere."""
    return torch.where(too_many, threshold * 1.05, threshold * 0.95)

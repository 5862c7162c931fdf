"""What an optimizer does to one direction of a quadratic loss: how fast it decays, and where it becomes unstable.

Along an eigenvector of F^{-½}HF^{-½} with eigenvalue λ, F the preconditioner, a step of Algorithm 1 is linear:

    m ← θm + (1−θ)λw ,      w ← w − ηχ(m + βλw)

with momentum θ, damping β and learning-rate ratio χ, hence w₊ − pw + qw₋ = 0 with p = 1 + θ − ηχ(β + 1 − θ)λ and
q = θ(1 − ηχβλ). LITE's sharp and flat directions differ in β and χ. Weight decay is left out.

Reference: LITE, arXiv 2602.22681; the limit of Adam, arXiv 2207.14484.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from lite_probe.errors import UsageError
from lite_probe.optim.buckets import is_hidden_matrix
from lite_probe.optim.factory import make_optimizer
from lite_probe.optim.lite import lite_settings
from lite_probe.optim.msign import step_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRecipe:
    """What an optimizer is to one direction.

    Raises:
        UsageError: If a number is out of range.
    """

    lr: float  # η, the step size in the metric of F, 1/λ
    momentum: float = 0.0  # θ, of an average: m ← θm + (1−θ)g
    damping: float = 0.0  # β
    lr_ratio: float = 1.0  # χ

    def __post_init__(self) -> None:
        """Refuse numbers that make no recipe."""
        for name in ("lr", "lr_ratio"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UsageError(f"expected {name} to be finite and at least 0, got {getattr(self, name)}")
        if not 0.0 <= self.momentum < 1.0:
            raise UsageError(f"expected momentum in [0, 1), got {self.momentum}")
        if not math.isfinite(self.damping):
            raise UsageError(f"expected a finite damping, got {self.damping}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRecipes:
    """What an optimizer is to the sharp and to the flat directions of a parameter; the same without LITE."""

    sharp: LinearRecipe  # β₁, χ = 1
    flat: LinearRecipe  # β₂, χ


def predicted_rate(recipe: LinearRecipe, curvatures: ArrayLike) -> NDArray[np.float64]:
    """Return the factor by which a direction shrinks per step in the long run.

    The larger modulus of the roots of z² − [1 − ηχβλ + θ − ηχ(1−θ)λ] z + θ(1 − ηχβλ) = 0: √q for a complex pair, which
    oscillates, (|p| + √(p² − 4q))/2 for real ones.

    Args:
        recipe: η, θ, β and χ.
        curvatures: λ, any shape, 1/lr; negative ones grow, if β > −1.

    Returns:
        Of the shape of λ, float64, at least 0; 1 at λ = 0, above 1 where the recipe is unstable.
    """
    scaled = recipe.lr * recipe.lr_ratio * np.asarray(curvatures, dtype=np.float64)
    theta, beta = recipe.momentum, recipe.damping
    p = 1.0 + theta - (beta + 1.0 - theta) * scaled
    q = theta * (1.0 - beta * scaled)
    discriminant = p * p - 4.0 * q
    real = 0.5 * (np.abs(p) + np.sqrt(np.maximum(discriminant, 0.0)))
    return np.asarray(np.where(discriminant < 0.0, np.sqrt(np.abs(q)), real))


def stability_limit(recipe: LinearRecipe) -> float:
    """Return the curvature above which a recipe is unstable.

    By the Jury conditions |q| < 1 and |p| < 1 + q: for β ≥ 0 a root leaves the unit circle through −1, at

        λ = 2(1 + θ)/(ηχ(β(1 + θ) + 1 − θ)),

    2/η for gradient descent, 38/η for Adam with b₁ = 0.9. For −1 < β < 0 a complex pair may leave it before, at
    λ = (1 − θ)/(ηχθ|β|). At β ≤ −1 no positive curvature decays.

    Returns:
        λ, 1/lr: every curvature in (0, λ) decays. 0 where none does, infinity where none is unstable, at ηχ = 0.
    """
    theta, beta = recipe.momentum, recipe.damping
    if beta <= -1.0:
        return 0.0
    through_minus_one, as_a_pair = beta * (1.0 + theta) + 1.0 - theta, -theta * beta
    scaled = min(
        2.0 * (1.0 + theta) / through_minus_one if through_minus_one > 0.0 else math.inf,
        (1.0 - theta) / as_a_pair if as_a_pair > 0.0 else math.inf,
    )
    step = recipe.lr * recipe.lr_ratio
    return scaled / step if step else math.inf


def linear_recipes(name: str, shape: Sequence[int], *, block: str, lr: float, **hyperparameters: Any) -> LinearRecipes:
    """Return what an optimizer of `make_optimizer` is to the sharp and the flat directions of one parameter.

    The metric F is that of its geometry, held fixed: I for sgd, diag(√v + ε) for AdamW, the same in the eigenbasis for
    SOAP, once the bias corrections have died away.

    For Muon F = (MMᵀ)^½ with M = m + g(1−θ)/θ, and η = 0.2·lr·√max(m, n), or as `lr_scale` says. The Nesterov term is
    itself a damping of (1−θ)/θ; LITE's adds β/θ, since its msign(g) has a metric of its own, which for a steady
    gradient, M = g/θ, is θF. msign is not linear: the prediction holds for a small part of a steady gradient that turns
    singular directions of like singular values. A part that only stretches singular values changes no update, and no
    update makes it smaller.

    Args:
        name: One of `OPTIMIZERS`.
        shape: Of the parameter. Muon's steps grow with it, and its vectors go to AdamW.
        block: Of the parameter. Hyperparameters depend on it; Muon's embedding and head go to AdamW.
        lr: The learning rate.
        **hyperparameters: As for `make_optimizer`. Weight decay is left out, and so are the ramps of a schedule: β₂ is
            the one they end at, χ their peak.

    Raises:
        UsageError: If `make_optimizer` refuses them.
    """
    weight = nn.Parameter(torch.empty(*shape, device="meta"))
    (group,) = make_optimizer(
        name, [("weight", weight)], lr=lr, blocks={"weight": block}, **hyperparameters
    ).param_groups
    base = name.removesuffix("-lite")
    orthogonal = base == "muon" and is_hidden_matrix(shape, block)
    lite = lite_settings(group, shape, block=block, geometry="orthogonal" if orthogonal else "diagonal")
    beta1, beta2, step_size = lite.beta1, lite.beta2, lr
    if orthogonal:
        theta, step_size = group["momentum"], lr * step_scale(shape[-2], shape[-1], group["lr_scale"])
        if theta:
            beta1, beta2 = (beta1 + 1.0 - theta) / theta, (beta2 + 1.0 - theta) / theta
    elif base in ("adamw", "muon"):
        theta = group["adamw_beta1"]
        if not group["adamw_damping"]:
            beta1 = beta2 = 0.0
    else:
        theta = group["betas"][0] if base == "soap" else group["momentum"]
    return LinearRecipes(
        sharp=LinearRecipe(lr=step_size, momentum=theta, damping=beta1),
        flat=LinearRecipe(lr=step_size, momentum=theta, damping=beta2, lr_ratio=lite.flat_lr_ratio),
    )

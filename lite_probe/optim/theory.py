"""What an optimizer does to one direction of a quadratic loss: how fast it decays, and where it becomes unstable.

Along an eigenvector of F^{-½}HF^{-½} with eigenvalue λ, F the preconditioner, a step of Algorithm 1 is linear:

    m ← θm + (1−θ)λw ,      w ← w − ηχ(m + βλw)

with momentum θ, damping β and learning-rate ratio χ, hence w₊ − pw + qw₋ = 0 with p = 1 + θ − ηχ(β + 1 − θ)λ and
q = θ(1 − ηχβλ). LITE's sharp and flat directions differ in β and χ. Weight decay is left out.

Reference: LITE, arXiv 2602.22681; the limit of Adam, arXiv 2207.14484.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lite_probe.errors import UsageError
from lite_probe.optim.buckets import Piece
from lite_probe.optim.geometry import Hyperparameters, LiteSettings
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
    metric_ratio: float = 1.0  # the divisor of the geometry's directions over F


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


# -- what each geometry is to one direction ----------------------------------------------------------------------------


def orthogonal_recipes(group: Hyperparameters, piece: Piece, lite: LiteSettings) -> LinearRecipes:
    """F = (MMᵀ)^½ with M = m + g(1−θ)/θ, and η = 0.2·lr·√max(m, n), or as `lr_scale` says.

    The Nesterov term is itself a damping of (1−θ)/θ; LITE's adds β/θ, since its msign(g) has a metric of its own, which
    for a steady gradient, M = g/θ, is θF. The divisor of the geometry's directions is that of the average, m.
    """
    theta, beta1, beta2 = group["momentum"], lite.beta1, lite.beta2
    if theta:
        beta1, beta2 = (beta1 + 1.0 - theta) / theta, (beta2 + 1.0 - theta) / theta
    scaled = {**group, "lr": group["lr"] * step_scale(piece.shape[-2], piece.shape[-1], group["lr_scale"])}
    return _recipes(scaled, theta, beta1, beta2, lite, metric_ratio=theta or 1.0)


def diagonal_recipes(group: Hyperparameters, piece: Piece, lite: LiteSettings) -> LinearRecipes:
    """F = diag(√v + ε); damped only where `adamw_damping` is set."""
    beta1, beta2 = (lite.beta1, lite.beta2) if group["adamw_damping"] else (0.0, 0.0)
    return _recipes(group, group["adamw_beta1"], beta1, beta2, lite)


def kronecker_recipes(group: Hyperparameters, piece: Piece, lite: LiteSettings) -> LinearRecipes:
    """F = diag(√v + ε) in the eigenbasis."""
    return _recipes(group, group["betas"][0], lite.beta1, lite.beta2, lite)


def euclidean_recipes(group: Hyperparameters, piece: Piece, lite: LiteSettings) -> LinearRecipes:
    """F = I."""
    return _recipes(group, group["momentum"], lite.beta1, lite.beta2, lite)


def _recipes(
    group: Hyperparameters, theta: float, beta1: float, beta2: float, lite: LiteSettings, *, metric_ratio: float = 1.0
) -> LinearRecipes:
    return LinearRecipes(
        sharp=LinearRecipe(lr=group["lr"], momentum=theta, damping=beta1),
        flat=LinearRecipe(lr=group["lr"], momentum=theta, damping=beta2, lr_ratio=lite.flat_lr_ratio),
        metric_ratio=metric_ratio,
    )

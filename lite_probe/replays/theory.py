"""What the linear theory predicts of an optimizer along each sharp eigenvector."""

import numpy as np
import torch
from torch import Tensor

from lite_probe.optim import (
    Directions,
    LinearRecipe,
    LiteOptimizer,
    predicted_rate,
    recipes_of,
)
from lite_probe.results.replay import LinearTheory
from lite_probe.subspaces import Subspace
from lite_probe.subspaces.cuts import STRETCH
from lite_probe.vectors.layout import ParameterLayout


def linear_theory(
    optimizer: LiteOptimizer,
    name: str,
    lr: float,
    layout: ParameterLayout,
    subspace: Subspace,
) -> LinearTheory | None:
    """Predict effective learning rate and decay along each eigenvector, the preconditioner held fixed.

    The effective learning rate is that of a steady gradient, v_iᵀ P v_i: P is diagonal in each geometry's directions,
    with (1 + β)χη/F there. An eigenvector lies across directions with different momentum and damping; its rate is that
    of the one direction that has their averages, weighted by what each contributes to v_iᵀ P v_i. Neither noise nor
    other directions act: a component that is stirred up anew at every step decays more slowly than predicted.

    Args:
        optimizer: With its state at θ₀, and its hyperparameters.
        name: Its name.
        lr: The learning rate.
        layout: All parameters.
        subspace: k eigenvectors and their curvatures.

    Returns:
        (k,) effective learning rates and (k,) factors per step; None where the optimizer has no linear theory.

    Cost: one copy of the state and a rotation of each eigenvector.
    """
    directions = optimizer.directions()
    index = {key: place for place, key in enumerate(layout.names)}
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    found = [recipes_of(name, one.piece, groups[one.piece.parameter]) for one in directions]
    recipes = [both for both in found if both is not None]
    if len(recipes) < len(directions):
        return None
    parts = []
    for place in range(subspace.size):
        views = layout.views(subspace.vector(place).to(layout.parameters[0].device))
        parts += [_parts(one, one.piece.view(views[index[one.piece.name]])) for one in directions]
    rates, effective = np.empty(subspace.size), np.empty(subspace.size)
    for place, sums in enumerate(torch.stack(parts).view(subspace.size, -1, 2).tolist()):
        totals = np.zeros(3)  # Σ weight, Σ weight·θ, Σ weight·β
        for own, both in zip(sums, recipes, strict=True):
            for recipe, part in zip((both.sharp, both.flat), own, strict=True):
                weight = recipe.lr_ratio * both.metric_ratio * part
                totals += weight * np.array([1.0, recipe.momentum, recipe.damping])
        weight, momentum, damping = totals
        # The weights are v²χ/F of the gradient's own share; momentum's average adds nothing to a steady one.
        mean = LinearRecipe(lr=lr * weight, momentum=momentum / weight, damping=damping / weight)
        effective[place] = mean.lr * (1.0 + mean.damping)
        rates[place] = float(predicted_rate(mean, subspace.eigenvalues[place]))
    return LinearTheory(effective_lrs=effective, rates=rates)


def _parts(one: Directions, x: Tensor) -> Tensor:
    """Return Σ x²/F of a piece, rotated, over its sharp and its flat directions, (2,) float64; rows at a time."""
    rotated = one.rotate(x)
    divisor, flat = one.divisor.expand(rotated.shape), one.flat.expand(rotated.shape)
    found = torch.zeros(2, dtype=torch.float64, device=x.device)
    length = max(1, STRETCH * rotated.shape[-2] // max(rotated.numel(), 1))
    for start in range(0, rotated.shape[-2], length):
        rows = (..., slice(start, start + length), slice(None))
        scaled = rotated[rows].double().square() / divisor[rows].double()
        share = flat[rows].double()
        found += torch.stack([(scaled * (1.0 - share)).sum(), (scaled * share).sum()])
    return found

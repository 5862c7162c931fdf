"""What the linear theory predicts of an optimizer along each sharp eigenvector."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lite_probe.optim import (
    Directions,
    LinearRecipe,
    LiteOptimizer,
    hyperparameters_of,
    linear_recipes,
    predicted_rate,
)
from lite_probe.results.replay import LinearTheory
from lite_probe.subspaces import Subspace
from lite_probe.vectors.layout import ParameterLayout


def linear_theory(
    optimizer: LiteOptimizer,
    name: str,
    lr: float,
    layout: ParameterLayout,
    subspace: Subspace,
) -> LinearTheory:
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
        (k,) effective learning rates and (k,) factors per step.

    Cost: one copy of the state and a rotation of each eigenvector.
    """
    directions = optimizer.directions()
    index = {key: place for place, key in enumerate(layout.names)}
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    recipes = [_recipes(name, one, groups[one.piece.parameter]) for one in directions]
    rates, effective = np.empty(subspace.size), np.empty(subspace.size)
    for place in range(subspace.size):
        views = layout.views(subspace.vector(place))
        totals = np.zeros(3)  # Σ weight, Σ weight·θ, Σ weight·β
        for one, (sharp, flat) in zip(directions, recipes, strict=True):
            squares = one.rotate(one.piece.view(views[index[one.piece.name]])).double().square()
            scaled = squares / one.divisor.double()
            share = one.flat.double()
            for recipe, part in ((sharp, scaled * (1.0 - share)), (flat, scaled * share)):
                weight = recipe.lr_ratio * float(part.sum())
                totals += weight * np.array([1.0, recipe.momentum, recipe.damping])
        weight, momentum, damping = totals
        # The weights are v²χ/F of the gradient's own share; momentum's average adds nothing to a steady one.
        mean = LinearRecipe(lr=lr * weight, momentum=momentum / weight, damping=damping / weight)
        effective[place] = mean.lr * (1.0 + mean.damping)
        rates[place] = float(predicted_rate(mean, subspace.eigenvalues[place]))
    return LinearTheory(effective_lrs=effective, rates=rates)


def _recipes(name: str, one: Directions, group: Mapping[str, Any]) -> tuple[LinearRecipe, LinearRecipe]:
    """Return what the optimizer is to the sharp and the flat directions of a piece, in the metric of its divisor."""
    shape = one.piece.shape
    if one.piece.geometry == "diagonal":
        shape = shape[1:]
    hyperparameters = {key: group[key] for key in hyperparameters_of(name) if key in group}
    both = linear_recipes(name, shape, block=one.piece.block, lr=1.0, **hyperparameters)
    # Muon's F is that of M = g/θ, the divisor that of the average: θ times as much.
    scale = both.sharp.momentum if one.piece.geometry == "orthogonal" and both.sharp.momentum else 1.0
    sharp, flat = (
        LinearRecipe(lr=1.0, momentum=one.momentum, damping=one.damping, lr_ratio=one.lr_ratio * scale)
        for one in (both.sharp, both.flat)
    )
    return sharp, flat

"""What the linear theory predicts of an optimizer along each sharp eigenvector."""

import numpy as np

from lite_probe.optim import (
    LinearRecipe,
    LiteOptimizer,
    predicted_rate,
    recipes_of,
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
    rates, effective = np.empty(subspace.size), np.empty(subspace.size)
    for place in range(subspace.size):
        views = layout.views(subspace.vector(place))
        totals = np.zeros(3)  # Σ weight, Σ weight·θ, Σ weight·β
        for one, both in zip(directions, recipes, strict=True):
            squares = one.rotate(one.piece.view(views[index[one.piece.name]])).double().square()
            scaled = squares / one.divisor.double()
            share = one.flat.double()
            for recipe, part in ((both.sharp, scaled * (1.0 - share)), (both.flat, scaled * share)):
                weight = recipe.lr_ratio * both.metric_ratio * float(part.sum())
                totals += weight * np.array([1.0, recipe.momentum, recipe.damping])
        weight, momentum, damping = totals
        # The weights are v²χ/F of the gradient's own share; momentum's average adds nothing to a steady one.
        mean = LinearRecipe(lr=lr * weight, momentum=momentum / weight, damping=damping / weight)
        effective[place] = mean.lr * (1.0 + mean.damping)
        rates[place] = float(predicted_rate(mean, subspace.eigenvalues[place]))
    return LinearTheory(effective_lrs=effective, rates=rates)

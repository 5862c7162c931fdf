"""From multiples of the base optimizer's step to LITE's settings.

χ of a block is how much longer its non-sharp directions may step than its sharp ones do: y_rest / max(y_sharp, 1).
LITE's settings cannot shorten a sharp step: where y_sharp < 1 it stays as long as it is, and y_rest / y_sharp would
have the others overshoot the multiple that was agreed on.

β₂ is the damping under which the linear theory (`lite_probe.optim.theory`) lets the non-sharp bands decay fastest: a
band whose own optimum is at c* times the base's step has ηλ = 1 / (c*(1 + β)), β the base's own damping, since a steady
gradient makes a step of (1 + β)η.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lite_probe.optim import LinearRecipe, LinearRecipes, hyperparameters_of, linear_recipes, predicted_rate
from lite_probe.results.steps import OptimizerSteps
from lite_probe.results.tuning import LEAST_RATIO, BlockSettings, NodeModels, Recommendation
from lite_probe.task import Task

FloatArray = NDArray[np.float64]

MOST_RATIO = 8.0  # the largest published is 7: a model of one step says nothing of longer ones
_SHARP_SHARE = 0.1  # of a block's directions: those of its sharp group
_DAMPINGS = np.linspace(0.0, 4.0, 81)  # β₂ that are tried


def profile_ratios(profile: OptimizerSteps) -> dict[str, float]:
    """Return χ̂ of every block that has one, or its lower end where it has no other, within the bounds of χ."""
    found = {}
    for block in profile.blocks:
        ratio = profile.implied_ratio(block)
        if ratio is None:
            continue
        value = ratio.value if ratio.high is not None else ratio.low
        if value is not None:
            found[block] = _bounded(value)
    return found


def recommend(
    name: str,
    task: Task,
    optimizer: str,
    profile: OptimizerSteps,
    models: NodeModels,
    *,
    multiples: FloatArray,
    alone: FloatArray,
    upper_loss: float,
) -> Recommendation:
    """Return LITE's settings.

    Args:
        name: Of the way they were come by.
        task: For shapes of parameters.
        optimizer: The LITE variant.
        profile: Of its base's steps.
        models: Name the groups.
        multiples: (k,) y of all nodes together.
        alone: (n, k) y that each node's own data would have.
        upper_loss: At the multiples, nats.
    """
    pairs = {
        block: (models.blocks.index(block), place)
        for place, (block, part) in enumerate(zip(models.blocks, models.parts, strict=True))
        if part != "sharp" and "sharp" in models.parts[models.blocks.index(block) : place]
    }
    ratios = {block: _ratio(multiples[sharp], multiples[rest]) for block, (sharp, rest) in pairs.items()}
    bands = _Bands(task, optimizer, profile, ratios)
    blocks = []
    for block, (sharp, rest) in pairs.items():
        own = [_ratio(node[sharp], node[rest]) for node in alone]
        share = profile.implied_sharp_share(block)
        blocks.append(
            BlockSettings(
                block=block,
                ratio=ratios[block],
                ratio_low=min(own),
                ratio_high=max(own),
                sharp=float(multiples[sharp]),
                rest=float(multiples[rest]),
                sharp_share=share.value if share is not None and share.value > 0.0 else None,
                damping=bands.damping([block]),
            )
        )
    together = bands.damping(list(pairs))
    damping = float(hyperparameters_of(optimizer)["beta2"]) if together is None else together
    return Recommendation(name=name, damping=damping, blocks=tuple(blocks), upper_loss=upper_loss)


def hyperparameters_for(found: Recommendation) -> dict[str, Any]:
    """Return what `make_optimizer` takes: β₂, and by block χ and r_s, the latter for blocks with χ > 1."""
    return {
        "beta2": found.damping,
        "flat_lr_ratio": {one.block: float(f"{one.ratio:.3g}") for one in found.blocks},
        "sharp_ratio": {
            one.block: float(f"{_SHARP_SHARE if one.sharp_share is None else one.sharp_share:.3g}")
            for one in found.blocks
            if one.ratio > LEAST_RATIO
        },
    }


class _Bands:
    """The bands of some blocks as the linear theory sees them.

    Args:
        task: For shapes of parameters.
        optimizer: The LITE variant.
        profile: Of its base's steps.
        ratios: χ by block.
    """

    def __init__(self, task: Task, optimizer: str, profile: OptimizerSteps, ratios: Mapping[str, float]) -> None:
        shapes = {name: parameter.shape for name, parameter in task.model.named_parameters()}
        found = (task.blocks or {}).items()
        first = {part.block: shapes[name] for name, parts in found for part in parts if name in shapes}
        self._recipes: dict[str, list[LinearRecipes]] = {
            block: [
                linear_recipes(
                    optimizer,
                    first[block],
                    block=block,
                    lr=1.0,
                    beta2=beta2,
                    flat_lr_ratio=ratio,
                    sharp_ratio=_SHARP_SHARE,
                )
                for beta2 in _DAMPINGS.tolist()
            ]
            for block, ratio in ratios.items()
            if block in first
        }
        self._scaled: dict[str, dict[bool, FloatArray]] = {}
        for block, recipes in self._recipes.items():
            base = 1.0 + recipes[0].sharp.damping
            optima = [
                (row.part == "sharp", row.optimum.value)
                for row in profile.rows
                if row.block == block and row.optimum is not None and row.optimum.value > 0.0
            ]
            self._scaled[block] = {
                is_sharp: np.array([1.0 / (value * base) for part, value in optima if part is is_sharp])
                for is_sharp in (True, False)
            }

    def damping(self, blocks: Sequence[str]) -> float | None:
        """Return β₂ of the lowest mean rate of the non-sharp bands, among those under which no sharp band is unstable.

        None where no non-sharp band has an optimum, or no damping is stable.
        """
        known = [block for block in blocks if block in self._recipes]
        means, stable = [], []
        for place in range(len(_DAMPINGS)):
            flat, sharp = [], [0.0]
            for block in known:
                recipes = self._recipes[block][place]
                flat += predicted_rate(recipes.flat, self._scaled[block][False]).tolist()
                damped = LinearRecipe(lr=1.0, momentum=recipes.flat.momentum, damping=recipes.flat.damping)
                sharp += predicted_rate(damped, self._scaled[block][True]).tolist()
            if not flat:
                return None
            means.append(float(np.mean(flat)))
            stable.append(max(sharp) <= 1.0)
        if not any(stable):
            return None
        rates = np.where(stable, means, np.inf)
        return float(np.round(_DAMPINGS[int(np.argmin(rates))], 3))


def _ratio(sharp: float, rest: float) -> float:
    """Return χ within its bounds."""
    return _bounded(rest / max(sharp, 1.0))


def _bounded(ratio: float) -> float:
    return float(min(max(ratio, LEAST_RATIO), MOST_RATIO))

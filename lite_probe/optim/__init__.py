"""AdamW, Muon, SOAP and their LITE variants, for anyone's training loop.

from lite_probe.optim import make_optimizer

optimizer = make_optimizer("muon-lite", model.named_parameters(), lr=3e-3)
"""

from typing import TYPE_CHECKING, Any

from lite_probe.optim.directions import Directions
from lite_probe.optim.factory import OPTIMIZERS, hyperparameters_of, make_optimizer, require_hyperparameters
from lite_probe.optim.lite import LiteOptimizer
from lite_probe.optim.msign import msign
from lite_probe.optim.schedules import Schedule
from lite_probe.optim.theory import LinearRecipe, LinearRecipes, linear_recipes, predicted_rate, stability_limit

if TYPE_CHECKING:
    from lite_probe.optim.state_import import Restored as Restored
    from lite_probe.optim.state_import import restore_state as restore_state

__all__ = [
    "OPTIMIZERS",
    "Directions",
    "LinearRecipe",
    "LinearRecipes",
    "LiteOptimizer",
    "Restored",
    "Schedule",
    "hyperparameters_of",
    "linear_recipes",
    "make_optimizer",
    "msign",
    "predicted_rate",
    "require_hyperparameters",
    "restore_state",
    "stability_limit",
]


def __getattr__(name: str) -> Any:
    """Import what reads checkpoints when it is asked for: a training loop needs no transformers."""
    if name in ("Restored", "restore_state"):
        from lite_probe.optim import state_import

        return getattr(state_import, name)
    raise AttributeError(f"module 'lite_probe.optim' has no attribute {name!r}")

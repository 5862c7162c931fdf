"""AdamW, Muon, SOAP and their LITE variants, SAMuon and gradient descent, for anyone's training loop.

from lite_probe.optim import make_optimizer

optimizer = make_optimizer("muon-lite", model.named_parameters(), lr=3e-3)

To add one, write a `Geometry`, its preconditioner and state, where no known one serves; tell the rest in an
`OptimizerSpec`, and `register_optimizer` it. `registry.py` has those of ours, tests/optim/test_toy_optimizer.py one
from outside. Commands, replays, subspaces and saved states then know it by its name; nothing else is edited. One with a
hyperparameter `flat_lr_ratio` tells sharp directions from flat ones, by its geometry's Q: it has `beta1`, `beta2`,
`sharp_ratio` and `smooth_ratio` too, which need not be settable. SAMuon is that alone, a spec without a geometry.
"""

from typing import TYPE_CHECKING, Any

from lite_probe.optim.directions import Directions, Frame
from lite_probe.optim.factory import (
    hyperparameters_of,
    linear_recipes,
    make_optimizer,
    recipes_of,
    require_hyperparameters,
)
from lite_probe.optim.geometry import Geometry
from lite_probe.optim.hyperparameters import Bounds, Hyperparameter
from lite_probe.optim.lite import LiteOptimizer
from lite_probe.optim.msign import msign
from lite_probe.optim.registry import (
    OPTIMIZERS,
    ImportedState,
    OptimizerSpec,
    band_optimizers,
    default_proxies,
    names_of,
    register_optimizer,
    spec_of,
    unregister_optimizer,
)
from lite_probe.optim.schedules import Schedule
from lite_probe.optim.theory import LinearRecipe, LinearRecipes, predicted_rate, stability_limit

if TYPE_CHECKING:
    from lite_probe.optim.state_import import Restored as Restored
    from lite_probe.optim.state_import import restore_state as restore_state

__all__ = [
    "OPTIMIZERS",
    "Bounds",
    "Directions",
    "Frame",
    "Geometry",
    "Hyperparameter",
    "ImportedState",
    "LinearRecipe",
    "LinearRecipes",
    "LiteOptimizer",
    "OptimizerSpec",
    "Restored",
    "Schedule",
    "band_optimizers",
    "default_proxies",
    "hyperparameters_of",
    "linear_recipes",
    "make_optimizer",
    "msign",
    "names_of",
    "predicted_rate",
    "recipes_of",
    "register_optimizer",
    "require_hyperparameters",
    "restore_state",
    "spec_of",
    "stability_limit",
    "unregister_optimizer",
]


def __getattr__(name: str) -> Any:
    """Import what reads checkpoints when it is asked for: a training loop needs no transformers."""
    if name in ("Restored", "restore_state"):
        from lite_probe.optim import state_import

        return getattr(state_import, name)
    raise AttributeError(f"module 'lite_probe.optim' has no attribute {name!r}")

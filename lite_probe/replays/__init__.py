"""Short training segments replayed under several optimizers, each watched direction by direction.

The room is not called `replay`, so that `lite_probe.replay` is the function.
"""

from lite_probe.replays.entrants import Entrant, entrants_of, name_of
from lite_probe.replays.ramp import ramp_steps
from lite_probe.replays.recipes import SavedOptimizer, inherited, learning_rates, require_settings
from lite_probe.replays.segments import required_train_batches

__all__ = [
    "Entrant",
    "SavedOptimizer",
    "entrants_of",
    "inherited",
    "learning_rates",
    "name_of",
    "ramp_steps",
    "require_settings",
    "required_train_batches",
]

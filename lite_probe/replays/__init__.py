"""Short training segments replayed under several optimizers, each watched direction by direction.

The room is not called `replay`, so that `lite_probe.replay` is the function.
"""

from lite_probe.replays.entrants import Entrant, entrants_of, name_of
from lite_probe.replays.measure import DEFAULT_OPTIMIZERS, ReplayStep, discard_state, plan_replay, replay
from lite_probe.replays.plan import ReplayPlan
from lite_probe.replays.ramp import ramp_steps
from lite_probe.replays.recipes import SavedOptimizer, inherited, learning_rates, require_settings
from lite_probe.replays.segments import required_train_batches

__all__ = [
    "DEFAULT_OPTIMIZERS",
    "Entrant",
    "ReplayPlan",
    "ReplayStep",
    "SavedOptimizer",
    "discard_state",
    "entrants_of",
    "inherited",
    "learning_rates",
    "name_of",
    "plan_replay",
    "ramp_steps",
    "replay",
    "require_settings",
    "required_train_batches",
]

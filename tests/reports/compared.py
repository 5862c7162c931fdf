"""Two checkpoints of one run with everything that is compared."""

from typing import Any

from lite_probe.results.comparison import Comparison, compare_results
from lite_probe.results.replay import Replay
from lite_probe.results.steps import Steps
from tests.reports.fixtures import make_replay, make_spectrum, make_subspace
from tests.reports.steps_results import make_optimizer, make_steps

Results = dict[str, Any]


def make_results(name: str = "early", step: int | None = 100, *, sharpest: float = 38.21, **replay: Any) -> Results:
    """What was measured at one checkpoint; muon and soap have steps, too."""
    return {
        "spectrum": make_spectrum(name=name, step=step, sharpest=sharpest),
        "subspace": make_subspace(name=name, step=step),
        "steps": make_steps(name=name, step=step),
        "replay": make_replay(name=name, step=step, **{"seeds": 4, "steps": 8} | replay),
    }


def make_steps_of(name: str, step: int, scale: float) -> Steps:
    return make_steps(name=name, step=step, optimizers={"muon": make_optimizer("muon", scale=scale)})


def make_comparison(**late: Any) -> Comparison:
    """Early and late; late soap makes up for what it lacks to muon-lite, and λ₁ has halved."""
    asked = {"sharpest": 20.0, "gains": {"soap": 1e-3}} | late
    return compare_results([("early", make_results()), ("late", make_results("late", 200, **asked))])


def replay_of(results: Results) -> Replay:
    replay: Replay = results["replay"]
    return replay

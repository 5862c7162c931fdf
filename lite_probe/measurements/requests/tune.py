"""What can be asked of a tuning."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lite_probe.errors import UsageError
from lite_probe.measurements.requests import Request, given, option
from lite_probe.measurements.requests.optimizers import LearningRate, parse_learning_rates

if TYPE_CHECKING:
    from lite_probe.replays.recipes import SavedOptimizer
    from lite_probe.results.spectrum import Spectrum
    from lite_probe.task import Batch

SWEEP_STEPS = 10  # of a trial where the learning rate is swept
_STRATEGIES = ("ed", "extra", "gt", "semi-atc-gt", "non-atc-gt")


RANK_TIMEOUT = 6 * 3600.0  # seconds that a rank waits for another; one that has ended is noticed at once


def num_ranks() -> int:
    """Return how many processes `torchrun` started, 1 where it started none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Return which of them this process is, 0 where there is no other."""
    return int(os.environ["RANK"]) if num_ranks() > 1 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest(Request):
    """LITE's settings learned from the step profile over data that stays at its nodes, and a replay that tests them.

    Args:
        spectrum: Of the task, for the replay.
        saved: The optimizer states that the checkpoint brought along.
        optimizer: The LITE variant to be tuned.
        lr: A learning rate of the optimizer that it is a variant of, "sweep" or "checkpoint".
        nodes: n.
        topology: Of the nodes' graph: a name of `bilevel.TOPOLOGIES` or a file of edges.
        method: Of `bilevel.METHODS`.
        upper: SPARKLE's strategy for the damping.
        lower: And for the steps.
        iterations: Of the method.
        node_batches: Training batches of each node, and as many to validate on.
        shards: For each node its batches, half of them to train on and the rest to validate on; by default the task's
            own training batches are dealt.
        shards_from: What the shards are, in words.
        replay_steps: Of the replay that tests the settings; 0 leaves it out.
        seeds: Segments of it.
    """

    kind: ClassVar[str] = "tuning"

    spectrum: "Spectrum | None" = given()
    saved: "SavedOptimizer | None" = given()
    shards: "Sequence[Sequence[Batch]]" = given(())
    shards_from: str = given("dealt in turn")
    optimizer: str = option(
        "muon-lite", "The LITE variant to tune: adamw-lite, muon-lite or soap-lite.", metavar="NAME"
    )
    lr: LearningRate = option(
        "sweep",
        "Learning rate of the optimizer it is a variant of: a number, sweep, or checkpoint.",
        metavar="RATE",
        written="sweep",
        parse=parse_learning_rates,
    )
    state: Literal["auto", "checkpoint", "warm", "cold"] = option(
        "auto", "What the optimizer starts from, as for steps.", among=("auto", "checkpoint", "warm", "cold")
    )
    nodes: int = option(8, "Holders of data, each with a shard of its own.", least=2, most=4096)
    topology: str = option(
        "ring",
        "Who talks to whom: ring, adjusted-ring, torus, exponential, star, complete, erdos-renyi, or a file with an "
        "edge, two numbers, on each line.",
        metavar="NAME",
    )
    method: Literal["dsoba-so", "dsoba-fo", "sparkle"] = option(
        "sparkle", "How the nodes solve it together.", among=("dsoba-so", "dsoba-fo", "sparkle")
    )
    upper: str = option("gt", "SPARKLE's strategy for the damping.", among=_STRATEGIES)
    lower: str = option("ed", "SPARKLE's strategy for the steps.", among=_STRATEGIES)
    iterations: int = option(2000, "Steps of the method.", least=1)
    node_batches: int = option(2, "Training batches of each node, and as many to validate on.", least=1, most=1000)
    warm_batches: int = option(30, "Training batches that the optimizer's state is warmed on.", least=1)
    step_batches: int = option(32, "Training batches whose steps make up the directions.", least=16)
    replay_steps: int = option(20, "Steps of the replay that tests the settings; 0 leaves it out.", least=0)
    seeds: int = option(3, "Segments of the replay.", least=2, most=10_000)

    def _check(self) -> None:
        from lite_probe.optim import spec_of  # torch

        spec = spec_of(self.optimizer)
        if spec.base is None or "flat_lr_ratio" not in spec.settable or "beta2" not in spec.settable:
            raise UsageError(
                f"expected a LITE variant to tune, adamw-lite, muon-lite or soap-lite, got {self.optimizer!r}",
                "its settings are what is tuned",
            )
        if "@" in self.optimizer:
            raise UsageError(f"expected a LITE variant without a label, got {self.optimizer!r}")
        if isinstance(self.lr, dict):
            raise UsageError("expected one learning rate to tune at, got rates by name", "give it as --lr 0.002")
        if self.shards and len(self.shards) < self.nodes:
            raise UsageError(
                f"expected a shard of data for each of {self.nodes} nodes, got {len(self.shards)}",
                f"ask for --nodes {len(self.shards)}, or split the data further",
            )

    @property
    def config(self) -> dict[str, Any]:
        """Everything that was asked and changes the numbers."""
        return {**super(TuneRequest, self).config, "shards": self.shards_from}

    @property
    def base(self) -> str:
        """The optimizer whose steps are measured."""
        from lite_probe.optim import spec_of  # torch

        return str(spec_of(self.optimizer).base)

    @property
    def profile_batches(self) -> int:
        """The training batches of the step profile: to warm on, to step from, and to sweep on."""
        return self.warm_batches + self.step_batches + (SWEEP_STEPS if self.lr == "sweep" else 0)

    @property
    def is_tested(self) -> bool:
        """Whether this process replays the settings: of several the first."""
        return self.replay_steps > 0 and rank() == 0

    def train_batches(self, batches: int) -> int:
        """Return the training batches that give every part batches of its own."""
        own = 0 if self.shards else 2 * self.nodes * self.node_batches
        replayed = self.warm_batches + self.replay_steps * (self.seeds + 1) if self.replay_steps else 0
        return self.profile_batches + own + replayed

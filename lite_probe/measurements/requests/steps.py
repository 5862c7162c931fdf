"""What can be asked of the steps that the loss tolerates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lite_probe.errors import UsageError
from lite_probe.measurements.requests import given, option
from lite_probe.measurements.requests.optimizers import Asked, OptimizersRequest, parse_optimizers

if TYPE_CHECKING:
    from lite_probe.task import Batch

LEAST_BATCHES = 16  # a block has up to nine bands, and least squares needs some batches more than that


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsRequest(OptimizersRequest):
    """How long a step every band of every block tolerates, and how far the whole step is from raising the loss.

    Args:
        step_batches: M, training batches from each of which every optimizer makes a step from the same state.
        critical_batches: Of them, for which the critical step is looked for.
        critical_only: Look for critical steps alone, by forward passes: no second derivative is made.
        sweep_steps: Of the trials where a learning rate is swept.
        relative: Batches of other data, on which critical steps are looked for, too.
    """

    kind: ClassVar[str] = "steps"

    optimizers: Asked | Sequence[Asked] = option(
        ("adamw", "muon", "soap"),
        "Optimizers of lite-probe, as muon or muon-lite (an unknown name lists all).",
        metavar="NAME,…",
        written="adamw,muon,soap",
        parse=parse_optimizers,
    )
    warm_batches: int = option(30, "Training batches that states are warmed on.", least=1)
    step_batches: int = option(32, "Training batches whose steps are measured.", least=LEAST_BATCHES)
    critical_batches: int = option(4, "Of them, those whose critical step is looked for.", least=1)
    critical_only: bool = option(False, "Critical steps alone, by forward passes: no second derivative is made.")
    sweep_steps: int = option(10, "Steps of a trial where a learning rate is swept.", least=1)
    relative: "Sequence[Batch]" = given(())

    def _check(self) -> None:
        OptimizersRequest._check(self)
        if self.critical_batches > self.step_batches:
            raise UsageError(
                f"expected at most as many critical batches as step batches, {self.step_batches}, got "
                f"{self.critical_batches}"
            )

    @property
    def config(self) -> dict[str, Any]:
        """Everything that was asked and changes the numbers; optimizers by their names."""
        own = ("state", "warm_batches", "step_batches", "critical_batches", "critical_only", "sweep_steps", "seed")
        return {
            **{name: getattr(self, name) for name in own},
            "optimizers": list(self.names),
            "lr": self.rates,
            "hyperparameters": self.hyperparameters,
        }

    @property
    def num_steps(self) -> int:
        """The steps of each optimizer that are asked for: fewer are made where there are fewer training batches."""
        return self.critical_batches if self.critical_only else self.step_batches

    def train_batches(self, batches: int) -> int:
        """Return the training batches that give every part batches of its own: W to warm, M to step, some to sweep."""
        return self.warm_batches + self.step_batches + self.sweep_steps

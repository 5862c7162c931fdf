"""What can be asked of a replay."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lite_probe.errors import UsageError
from lite_probe.measurements.requests import given, option
from lite_probe.measurements.requests.optimizers import OptimizersRequest

if TYPE_CHECKING:
    from lite_probe.results.spectrum import Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest(OptimizersRequest):
    """The same short segment from θ₀ under several optimizers, and who lowers the loss where.

    Args:
        spectrum: Of the task, with eigenvectors: its positive converged top pairs are the sharp directions.
        steps: K, of the segment.
        ramp: R, of them, over which the learning rate rises linearly; None is min(max(5, ⌈K/10⌉), ⌊K/2⌋), 0 none.
        seeds: Segments; all optimizers see the same.
        bands: Whose proxy orders the directions of each block; None takes SOAP's, or AdamW's where SOAP cannot take
            the model.
        rule: "simpson", two gradients more per step, or "trapezoid", one.
        ablations: Also run every optimizer with its updates projected on the sharp subspace, and on its complement.
        horizon: Also predict losses by the quadratic model at θ₀, after 1, 2, 4, … steps of every run by a Hessian
            product each: for how many steps θ₀'s curvature says something.
        curvature_probes: Gaussian probes of each of two kinds, full ones and those of the flat bands alone, by which
            the mean curvature of every band is measured at θ₀, a Hessian product each; 0 leaves it out.
        landscape: Also the loss around θ₀: along eigenvectors and each optimizer's own step, and on a plane with the
            paths of the first seed.
        tolerance: Of a step's closure error, relative to a typical loss change of a step; Simpson's rule is refined
            until it is met.
    """

    kind: ClassVar[str] = "replay"

    spectrum: "Spectrum | None" = given()
    steps: int = option(50, "Steps of the segment.", least=1)
    ramp: int | None = option(
        None,
        "Steps over which the learning rate rises from zero, 0 for none; by default a tenth, 5 or more, half at most.",
        least=0,
    )
    seeds: int = option(3, "Segments of other batches.", least=1, most=10_000)
    bands: str | None = option(
        None,
        "Whose proxy orders the directions of each block, as muon (an unknown name lists all); by default soap, or "
        "adamw where soap cannot take the model.",
        metavar="NAME",
    )
    rule: Literal["simpson", "trapezoid"] = option(
        "simpson",
        "How the loss change of a step is allotted; the trapezoid rule takes a gradient less.",
        among=("simpson", "trapezoid"),
    )
    ablations: bool = option(False, "Also with updates projected on the sharp subspace, and off it.")
    horizon: bool = option(False, "Also for how many steps the curvature at the start predicts the loss.")
    curvature_probes: int = option(
        8, "Hessian products of each of two kinds that measure the bands' curvature at the start; 0 for none.", least=0
    )
    landscape: bool = option(True, "Also the loss along lines from the start, and on a plane with every path.")
    tolerance: float = 2e-3

    def _check(self) -> None:
        from lite_probe.optim import band_optimizers  # torch
        from lite_probe.replays.ramp import ramp_steps

        if self.bands is not None and self.bands not in band_optimizers():
            raise UsageError(f"expected the bands of {', '.join(band_optimizers())}, got {self.bands!r}")
        ramp_steps(self.steps, self.ramp)
        if self.curvature_probes == 1:
            raise UsageError(
                "expected curvature probes of at least 2, whose spread is their error, got 1", "or 0 for none"
            )
        if not 0.0 < self.tolerance < 1.0:
            raise UsageError(f"expected a tolerance between 0 and 1, got {self.tolerance}")
        OptimizersRequest._check(self)

    @property
    def config(self) -> dict[str, Any]:
        """Everything that was asked and changes the numbers; optimizers by their names."""
        from lite_probe.replays.ramp import ramp_steps

        own = ("steps", "seeds", "state", "warm_batches", "bands", "rule", "tolerance", "ablations", "seed")
        return {
            **{name: getattr(self, name) for name in (*own, "curvature_probes")},
            "optimizers": list(self.names),
            "lr": self.rates,
            "ramp": ramp_steps(self.steps, self.ramp),
            "hyperparameters": self.hyperparameters,
            # Results without these keep the key that they have.
            **({"horizon": True} if self.horizon else {}),
            **({"landscape": True} if self.landscape else {}),
        }

    def train_batches(self, batches: int) -> int:
        """Return the training batches that give every part batches of its own: K per seed, K to sweep on, W to warm."""
        return self.warm_batches + self.steps * (self.seeds + 1)

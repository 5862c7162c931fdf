"""One step of each method.

    v = ∇ᵧg(x, y)      p = ∇²ᵧᵧg(x, y) z − ∇ᵧf(x, y)      h = ∇ₓf(x, y) − ∇²ₓᵧg(x, y) z      r⁺ = (1−θ) r + θ h

y follows v to the lower level's solution, z follows p to the inverse-Hessian product, x follows r. D-SOBA
(arXiv 2402.03167) steps all three from the old iterates and averages with the neighbours. SPARKLE (arXiv 2411.14166)
corrects each level for what nodes differ in, by a strategy of its own:

    s⁺ = A(C s − a d) − B e,    e⁺ = e + B s⁺,    e = 0 at the start

with A = Wᵃ, B² = (I − W)ᵇ and C = Wᵇ⁻ᵃ: `Strategy` holds a and b, and a step exchanges b vectors. Only W is needed: e
goes into a correction q or a tracker t, m = a d and Δ = m − m⁻:

    ED             φ = s − m + q                s⁺ = Wφ             q⁺ = q + s⁺ − φ
    EXTRA          q⁺ = q + Ws − s              s⁺ = Ws − m + q⁺
    ATC-GT         t⁺ = W(t + Δ)                s⁺ = W(s − t⁺)
    semi-ATC-GT    t⁺ = Wt + Δ                  s⁺ = W(s − t⁺)
    non-ATC-GT     t⁺ = Wt + Δ                  s⁺ = Ws − t⁺

Differences of two steps would do without q and t, but what rounding takes from them stays: in float32 such a run drifts
from the solution as fast as 1e-6 a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_probe.bilevel.exchange import Exchange
from lite_probe.bilevel.problem import Oracle
from lite_probe.bilevel.step_sizes import LEVELS, StepSizes

Mix = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Strategy:
    """How one level of SPARKLE corrects for what nodes differ in.

    Attributes:
        exchanges: b, vectors that a node sends to each neighbour in a step.
        passed: a ≤ b, of these exchanges those that the new direction goes through.
        lazy: Whether W has to be positive semidefinite: (I + W)/2 is taken.
    """

    exchanges: int
    passed: int
    lazy: bool


STRATEGIES: dict[str, Strategy] = {
    "ed": Strategy(exchanges=1, passed=1, lazy=True),
    "extra": Strategy(exchanges=1, passed=0, lazy=True),
    "gt": Strategy(exchanges=2, passed=2, lazy=False),
    "atc-gt": Strategy(exchanges=2, passed=2, lazy=False),
    "semi-atc-gt": Strategy(exchanges=2, passed=1, lazy=False),
    "non-atc-gt": Strategy(exchanges=2, passed=0, lazy=False),
}


@dataclass(slots=True)
class Method(ABC):
    """A method at its iterates.

    Args:
        oracle: Of the problem.
        exchanges: By level.
        sizes: Step sizes.
        theta: θ.
        state: "x", "y" and "z", and after a step whatever else the next one needs; changed in place.
    """

    oracle: Oracle
    exchanges: Mapping[str, Exchange]
    sizes: StepSizes
    theta: float
    state: dict[str, Tensor]

    @abstractmethod
    def step(self) -> None:
        """Make one step."""

    def moved(self, level: str, direction: Tensor) -> Tensor:
        """Return a level's direction times its step size."""
        return self.sizes.lengthen(level, direction, self.exchanges[level], self.oracle.step)

    def averaged(self, h: Tensor) -> Tensor:
        """Return r⁺; it is h at the first step."""
        r = self.state.get("r")
        self.state["r"] = h if r is None else (1.0 - self.theta) * r + self.theta * h
        return self.state["r"]


class DSOBA(Method):
    """Single-loop descent on all three levels at once: s⁺ = W(s − a d), all d at the old iterates."""

    def step(self) -> None:
        """Make one step."""
        x, y, z = self.state["x"], self.state["y"], self.state["z"]
        upper_x, upper_y = self.oracle.upper_gradients(x, y)
        cross, curved = self._products(x, y, z)
        directions = {"x": self.averaged(upper_x - cross), "y": self.oracle.lower_gradient(x, y), "z": curved - upper_y}
        for level in LEVELS:
            self.state[level] = self.exchanges[level].mix(self.state[level] - self.moved(level, directions[level]))

    def _products(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.oracle.cross_product(x, y, z), self.oracle.lower_hessian_product(x, y, z)


class FirstOrderDSOBA(DSOBA):
    """D-SOBA with central differences of ∇g along z in place of second-order products."""

    def _products(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.oracle.differences(x, y, z)


@dataclass(slots=True)
class Sparkle(Method):
    """y, then z at the new y, then x at both new ones, each corrected by its level's strategy.

    Args:
        strategies: By level; the rest is as of `Method`.
    """

    strategies: Mapping[str, Strategy]

    def step(self) -> None:
        """Make one step."""
        state, oracle = self.state, self.oracle
        x = state["x"]
        self._advance("y", oracle.lower_gradient(x, state["y"]))
        upper_x, upper_y = oracle.upper_gradients(x, state["y"])
        self._advance("z", oracle.lower_hessian_product(x, state["y"], state["z"]) - upper_y)
        self._advance("x", self.averaged(upper_x - oracle.cross_product(x, state["y"], state["z"])))

    def _advance(self, level: str, direction: Tensor) -> None:
        moved = self.moved(level, direction)
        state, strategy, mix, value = self.state, self.strategies[level], self.exchanges[level].mix, self.state[level]
        if strategy.exchanges == 1:
            name = f"{level} correction"
            state[level], state[name] = _corrected(strategy, mix, value, moved, state.get(name))
        else:
            name, last = f"{level} tracker", f"{level} moved"
            change = moved - state[last] if last in state else moved
            state[level], state[name] = _tracked(strategy, mix, value, change, state.get(name))
            state[last] = moved


def _corrected(
    strategy: Strategy, mix: Mix, value: Tensor, moved: Tensor, correction: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return s⁺ and q⁺ of ED or EXTRA; q is none before the first step."""
    if strategy.passed == 1:
        held = torch.zeros_like(value) if correction is None else correction
        ahead = value - moved + held
        following = mix(ahead)
        return following, held + (following - ahead)
    mixed = mix(value)
    held = torch.zeros_like(value) if correction is None else correction + (mixed - value)
    return mixed - moved + held, held


def _tracked(
    strategy: Strategy, mix: Mix, value: Tensor, change: Tensor, tracker: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return s⁺ and t⁺ of gradient tracking; before the first step there is no t, and Δ is m."""
    ahead = mix(value) if strategy.passed == 0 else value
    early, late = (change, torch.zeros_like(change)) if strategy.passed == 2 else (torch.zeros_like(change), change)
    # What nodes differ in at the start counts as a step: e is 0 there.
    following = (ahead - mix(ahead - early) if tracker is None else mix(tracker + early)) + late
    return (ahead - following if strategy.passed == 0 else mix(value - following)), following

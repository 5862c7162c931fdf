"""How long each level's steps are: fixed, decaying, or found from the gradients' own size."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lite_probe.bilevel.exchange import Exchange
from lite_probe.errors import UsageError

LEVELS = ("y", "z", "x")  # in the order of a step: each rests on those before it


class StepSizes(Protocol):
    """The step sizes of a run."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """What they keep between steps, (rows, 1) by level."""
        ...

    def lengthen(self, level: str, direction: Tensor, exchange: Exchange, step: int) -> Tensor:
        """Return a_s d_s, (rows, dim), of one of `LEVELS`."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """a_s at every step, or a_s / (1 + t/T)^p at step t: `decay` is T and `power` p."""

    x: float
    y: float
    z: float
    decay: float | None = None
    power: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is not positive."""
        _require_positive((self.x, self.y, self.z, 1.0 if self.decay is None else self.decay))
        if self.power <= 0.0:
            raise UsageError(f"expected a power above 0 for decaying steps, got {self.power:g}")

    @property
    def memory(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def lengthen(self, level: str, direction: Tensor, exchange: Exchange, step: int) -> Tensor:
        """Return a_s d_s."""
        shorter = 1.0 if self.decay is None else (1.0 + step / self.decay) ** -self.power
        size: float = getattr(self, level)
        return size * shorter * direction


@dataclass(frozen=True, slots=True)
class Adaptive:
    """What makes parameter-free steps: lengths from the sums S of ‖d‖² so far, averaged with the neighbours' each step.

        y: c_y / √S_y      z: c_z / √max(S_y, S_z)      x: c_x / (√S_x √max(S_y, S_z))

    z and x wait for the levels that they rest on: with 1/√S_x alone x runs ahead of y and z, and every sum grows with
    it. A message more of one number per level and step. After AdaSDBO (arXiv 2510.24288), whose text was out of reach:
    the waiting is that of tuning-free bilevel methods of one node.
    """

    x: float = 10.0
    y: float = 10.0
    z: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what is not positive."""
        _require_positive((self.x, self.y, self.z))


class AdaptiveSteps:
    """Parameter-free steps of one run; the levels ask in the order y, z, x.

    Args:
        scales: c_s.

    Attributes:
        memory: S by level, (rows, 1), as averaged so far.
    """

    def __init__(self, scales: Adaptive) -> None:
        self._scales = scales
        self.memory: dict[str, Tensor] = {}

    def lengthen(self, level: str, direction: Tensor, exchange: Exchange, step: int) -> Tensor:
        """Return a_s d_s; add ‖d_s‖² to its sum before."""
        square = direction.square().sum(dim=1, keepdim=True)
        total = exchange.mix(self.memory[level] + square if level in self.memory else square)
        self.memory[level] = total
        scale: float = getattr(self._scales, level)
        if level == "y":
            return scale * _normalised(direction, total)
        waited = torch.maximum(self.memory["y"], self.memory["z"])
        if level == "z":
            return scale * _normalised(direction, waited)
        return scale * _normalised(_normalised(direction, total), waited)  # the product of both sums may overflow


def _normalised(direction: Tensor, total: Tensor) -> Tensor:
    return total.clamp_min(torch.finfo(total.dtype).tiny).rsqrt() * direction


def step_sizes_of(asked: "tuple[float, float, float] | str | Fixed | Adaptive") -> StepSizes:
    """Return the step sizes of a new run: of (x, y, z), "adaptive", or as made.

    Raises:
        UsageError: If it is none of these, or one is not positive.
    """
    if asked == "adaptive":
        return AdaptiveSteps(Adaptive())
    if isinstance(asked, Adaptive):
        return AdaptiveSteps(asked)
    if isinstance(asked, Fixed):
        return asked
    if isinstance(asked, tuple | list) and len(asked) == len(LEVELS):
        return Fixed(*(float(size) for size in asked))
    raise UsageError(f'expected step sizes (x, y, z), "adaptive", Fixed(…) or Adaptive(…), got {asked!r}')


def _require_positive(sizes: tuple[float, ...]) -> None:
    if not all(0.0 < size < float("inf") for size in sizes):
        raise UsageError(f"expected step sizes above 0, got {', '.join(f'{size:g}' for size in sizes)}")

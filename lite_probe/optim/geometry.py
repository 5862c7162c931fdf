"""What Algorithm 1 needs from a preconditioner: F⁻¹ on momentum and gradient, and the projector Q on flat directions.

A geometry works on a stack of same-shaped tensors, the first dimension counting them, and keeps their state.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

_SAMPLED = 2**20  # entries that tell how long a step takes that goes entry by entry

Hyperparameters = Mapping[str, Any]  # of a parameter group
State = dict[str, Tensor]  # name → (stack, …)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteSettings:
    """LITE's hyperparameters of one block: β₁, β₂ and χ at this step, and what the whole run will ask for."""

    beta1: float = 0.0  # Hessian damping of sharp directions
    beta2: float = 0.0  # of flat ones
    flat_lr_ratio: float = 1.0  # χ
    sharp_ratio: float = 0.0  # ρ, the share of directions that are sharp
    sharp_rank: int = 0  # how many singular directions of a matrix are sharp instead; 0 where ρ says it
    smooth_ratio: float = 0.1
    damped: bool = False  # β₁ or β₂ is not 0 at some step
    projected: bool = False  # β₂ ≠ β₁ or χ ≠ 1 at some step


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioned:
    """What a geometry hands to Algorithm 1, in coordinates of its own."""

    momentum: Tensor  # F⁻¹m, but for the divisor
    gradient: Tensor | None  # F⁻¹g, likewise; None where nothing is damped
    divisor: Tensor | None = None  # of both, where F is diagonal
    project: Callable[[Tensor], Tensor] | None  # x ↦ Qx; None where Q = 0
    step_size: float  # η with the geometry's scale and bias corrections
    into: Callable[[Tensor], Tensor] | None = None  # from the parameter's coordinates to these; None: the same
    out_of: Callable[[Tensor], Tensor] | None = None  # and back
    projects_twice: bool = False  # the damping of flat directions goes through Q again when they are stretched
    decay_last: bool = False  # weight decay acts on the weights after the step, not before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Coordinates Q_Lᵀ X Q_R of a stack (count, m, n) in which a geometry is diagonal, and what it is there.

    Each tensor but the bases broadcasts over the stack.
    """

    left: Tensor | None = None  # (count, m, m) orthonormal columns; None: the parameter's own coordinates
    right: Tensor | None = None  # (count, n, n)
    proxy: Tensor  # what sharp directions are told by: squared gradients, larger is sharper
    divisor: Tensor  # F over the geometry's own step scale: a step is −lr · (F⁻¹ of averaged gradients)
    flat: Tensor | None  # weight of each coordinate in LITE's Q, in [0, 1]; None where Q = 0


class Geometry(ABC):
    """One preconditioner, for every parameter that uses it."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]  # of optimizers whose saved states go on here: "AdamW"; its own first
    stacked_on_cpu: ClassVar[bool]  # whether a stack of several tensors is faster than one after another on a CPU too
    sees_stacks: ClassVar[bool] = True  # whether a parameter of three dimensions is a stack of matrices
    idle_steps: ClassVar[int] = 0  # first steps, which only prepare the state
    nothing_sharp: ClassVar[float] = -1.0  # a sharp ratio up to which LITE leaves the base optimizer as it is
    takes_rank: ClassVar[bool] = False  # whether sharp directions may be told by their number, `sharp_rank`
    renewable: ClassVar[tuple[str, ...]] = ()  # entries of the state that `renew` makes of the others
    period: ClassVar[str] = ""  # the hyperparameter that says every how many steps one takes longer; empty: none does

    @abstractmethod
    def new_state(self, shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
        """Return the state of a stack before its first step."""

    def rank_state(self, shape: torch.Size, rank: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return what a stack's state holds besides where a number of directions is sharp; nothing by default."""
        return {}

    def renew(self, state: State) -> None:
        """Make the `renewable` entries of the others, in place, for a stack that goes on from a state without them."""
        return

    @abstractmethod
    def precondition(
        self,
        state: State,
        gradient: Tensor,
        *,
        step: int,
        group: Hyperparameters,
        lite: LiteSettings,
        gate: Tensor | None,
    ) -> Preconditioned | None:
        """Take a gradient into the state, and return what Algorithm 1 needs.

        Args:
            state: Of the stack, changed in place.
            gradient: (stack, …), never changed.
            step: How many steps these parameters have made.
            group: Hyperparameters.
            lite: LITE's.
            gate: 0 where the step must leave no trace, 1 where it counts; None where that is known to be so.

        Returns:
            None where this step only prepares the state.
        """

    @abstractmethod
    def coordinates(self, state: State, *, step: int, group: Hyperparameters, lite: LiteSettings) -> Coordinates:
        """Return where this geometry is diagonal, from the state as it is; nothing changes."""

    def sample(self, shape: Sequence[int], group: Hyperparameters) -> Sequence[int]:
        """Return a shape on which a step takes as long for each entry as on (…), one of a stack, and which is small.

        By default the shape itself: nothing is known.
        """
        return shape

    def post_step(
        self, state: State, gradient: Tensor, *, step: int, group: Hyperparameters, gate: Tensor | None
    ) -> None:
        """Finish a step after the weights have moved."""
        return

    def kind_of(self, names: Collection[str]) -> str | None:
        """Return the kind of a state with these names; None where it cannot be of this geometry."""
        return self.kinds[0]


def fewer_rows(shape: Sequence[int], least: int = 1) -> Sequence[int]:
    """Return a shape with fewer rows, its first dimension, where there are more than some entries."""
    rows = max(least, _SAMPLED * shape[0] // max(math.prod(shape), 1), 1)
    return (min(rows, shape[0]), *shape[1:])


def is_lite(group: Hyperparameters) -> bool:
    """Return whether a group's optimizer tells sharp directions from flat ones."""
    return "flat_lr_ratio" in group


def sharp_rank(group: Hyperparameters, block: str) -> int:
    """Return how many directions of a block's matrices a group wants sharp; 0 where it asks for a share of them."""
    ranks = group.get("sharp_rank") or {}
    return ranks.get(block) or 0


def average_square_(average: Tensor, x: Tensor, beta: float, gate: Tensor | None) -> Tensor:
    """Set v ← βv + (1−β)x² in place, and return v."""
    if gate is None:
        return average.mul_(beta).addcmul_(x, x, value=1.0 - beta)
    return average.lerp_(x.square(), gate * (1.0 - beta))


def gated(weight: float, gate: Tensor | None) -> float | Tensor:
    """Return a moving average's weight, 0 behind a closed gate."""
    return weight if gate is None else gate * weight


def replace_(old: Tensor, new: Tensor, gate: Tensor | None) -> None:
    """Overwrite in place, unless the gate is closed."""
    old.copy_(new if gate is None else torch.where(gate > 0, new, old))

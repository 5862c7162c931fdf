"""The loss around θ₀ as people want to see it: along lines, and on a plane with every optimizer's path.

Along a line the quadratic model L(θ₀) + slope·s + ½ curvature·s² is drawn in, so that one sees where it stops holding.
The plane is spanned by the sharpest eigenvector and the flat direction in which the best run went. Its losses are of
moves within it from θ₀ alone; a path is what a run's way looks like from above, which leaves the plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

HOLDS_SHARE = 0.1  # of the largest loss change up to a distance, by which the quadratic model may miss there


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLine:
    """The loss along a line through θ₀, and the quadratic model of it."""

    name: str  # "eigenvector 1 of 10", "random flat direction", "update of muon"
    kind: Literal["eigenvector", "flat", "update"]
    optimizer: str = ""  # whose update it is
    distances: FloatArray  # (m,) s, ascending, 0 among them; parameter units, or steps of the optimizer
    losses: FloatArray  # (m,) nats
    slope: float  # nats per unit of s, at θ₀
    curvature: float  # nats per squared unit, at θ₀
    noise: float  # nats, below which a miss is rounding
    unit_length: float = 1.0  # ‖θ − θ₀‖ at s = 1: that of the step where s counts steps
    is_cut: bool = False  # whether losses further out were not finite, and are left out

    def __post_init__(self) -> None:
        """Check shapes; freeze the arrays."""
        if self.distances.ndim != 1 or self.losses.shape != self.distances.shape:
            raise ValueError(f"expected a loss per distance, got {self.losses.shape} for {self.distances.shape}")
        if not bool((np.diff(self.distances) > 0).all()) or not (self.distances == 0.0).any():
            raise ValueError(f"expected ascending distances with 0 among them, got {self.distances.tolist()}")
        _freeze(self)

    @property
    def start_loss(self) -> float:
        """L(θ₀), nats."""
        return float(self.losses[self.distances == 0.0][0])

    @property
    def changes(self) -> FloatArray:
        """(m,) L − L(θ₀), nats."""
        return np.asarray(self.losses - self.start_loss)

    @property
    def modelled_changes(self) -> FloatArray:
        """(m,) the quadratic model's: slope·s + ½ curvature·s²."""
        return np.asarray(self.slope * self.distances + 0.5 * self.curvature * self.distances**2)

    @property
    def holds_to(self) -> float:
        """How far the model is within a tenth of the largest loss change so far, in the line's units.

        Along an update that is ahead, else on both sides. Between points the miss is taken to grow linearly.
        """
        return min(reach for reach, _ in self._reaches)

    @property
    def holds_throughout(self) -> bool:
        """Whether it is so as far as was looked."""
        return all(is_whole for _, is_whole in self._reaches)

    @property
    def bounds(self) -> tuple[float, ...]:
        """Between which distances the model holds so far; a side on which it holds to the end has none."""
        ends = [(side, *self._reach(side)) for side in (-1.0, 1.0)]
        return tuple(side * reach for side, reach, is_whole in ends if not is_whole)

    @property
    def _reaches(self) -> Sequence[tuple[float, bool]]:
        return [self._reach(side) for side in ((1.0,) if self.kind == "update" else (1.0, -1.0))]

    def _reach(self, side: float) -> tuple[float, bool]:
        """Return how far the model holds on one side, and whether it does to its end."""
        ways = side * self.distances
        order = np.argsort(ways)[np.sort(ways) >= 0.0]
        ways, changes = ways[order], self.changes[order]
        allowed = np.maximum(HOLDS_SHARE * np.maximum.accumulate(np.abs(changes)), self.noise)
        misses = np.abs(self.modelled_changes[order] - changes)
        shares = np.divide(misses, allowed, out=np.zeros_like(misses), where=misses > 0.0)
        beyond = np.flatnonzero(shares > 1.0)
        if not len(beyond):
            return float(ways[-1]), True
        at = int(beyond[0])  # not the start, which the model has exactly
        share = (1.0 - shares[at - 1]) / (shares[at] - shares[at - 1])
        return float(ways[at - 1] + share * (ways[at] - ways[at - 1])), False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanePath:
    """One optimizer's run of the first seed, as far as it got: T steps, seen from above the plane."""

    optimizer: str
    x: FloatArray  # (T + 1,) along the sharpest eigenvector, parameter units, from 0
    y: FloatArray  # (T + 1,) along the flat direction
    losses: FloatArray  # (T + 1,) where the run was, not on the plane below it
    lengths: FloatArray  # (T + 1,) ‖θ_t − θ₀‖
    diverged_at: int | None = None

    def __post_init__(self) -> None:
        """Check shapes; freeze the arrays."""
        shapes = {one.shape for one in (self.x, self.y, self.losses, self.lengths)}
        if len(shapes) > 1 or self.x.ndim != 1 or not len(self.x):
            raise ValueError(f"expected coordinates, loss and length of every step, got shapes {sorted(shapes)}")
        _freeze(self)

    @property
    def in_plane(self) -> float:
        """Share of the squared displacement at the end that lies in the plane, in [0, 1]; 0 where there is none."""
        total = float(self.lengths[-1]) ** 2
        return min(float(self.x[-1] ** 2 + self.y[-1] ** 2) / total, 1.0) if total > 0.0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPlane:
    """The loss on the plane of the sharpest eigenvector and the flat direction of most progress, and the runs' paths.

    That direction is the displacement of the run with the most flat progress on the first seed, off the sharp subspace.
    """

    optimizer: str  # whose displacement it is
    x: FloatArray  # (a,) ascending, along the sharpest eigenvector, parameter units
    y: FloatArray  # (b,) ascending, along the flat direction
    losses: FloatArray  # (b, a) nats, of θ₀ + x·v + y·u; 0 where it is not finite
    is_missing: NDArray[np.bool_]  # (b, a) whether it is not
    paths: tuple[PlanePath, ...]

    def __post_init__(self) -> None:
        """Check shapes; freeze the arrays."""
        shape = (len(self.y), len(self.x))
        if self.losses.shape != shape or self.is_missing.shape != shape:
            raise ValueError(f"expected losses of shape {shape}, got {self.losses.shape} and {self.is_missing.shape}")
        _freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """Lines and plane around θ₀, and what they cost."""

    start_loss: float  # nats
    lines: tuple[LossLine, ...]
    plane: LossPlane | None  # None where no run made a step
    split: str  # the batches of all losses: "held-out" or "evaluation"
    num_batches: int
    seed: int  # the user's, of the random direction
    by_differences: bool = False  # whether curvatures are differences of gradients, not Hessian products
    num_losses: int  # forward passes over the batches
    num_gradients: int  # of training batches, and those that curvatures took
    num_hvps: int
    seconds: float

    @property
    def eigenvectors(self) -> tuple[LossLine, ...]:
        """The lines along eigenvectors and the random flat direction, which have parameter units."""
        return tuple(line for line in self.lines if line.kind != "update")

    @property
    def updates(self) -> tuple[LossLine, ...]:
        """The lines along updates, which count steps."""
        return tuple(line for line in self.lines if line.kind == "update")


def _freeze(record: LossLine | PlanePath | LossPlane) -> None:
    for name in record.__slots__:
        array = getattr(record, name)
        if isinstance(array, np.ndarray):
            array.setflags(write=False)

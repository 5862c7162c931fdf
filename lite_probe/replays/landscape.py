"""The loss along lines through θ₀ and on a plane: forward passes, and one product per line for the model drawn in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.operators.base import SymmetricOperator
from lite_probe.replays.allocation import ROUNDINGS, Point
from lite_probe.replays.runner import evaluate_loss
from lite_probe.results.landscape import FloatArray, LossLine, PlanePath
from lite_probe.seeds import derive_seed
from lite_probe.subspaces import Subspace
from lite_probe.task import Split, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import dot, norm

LINE_POINTS = 21  # of a line, its ends and θ₀ among them
PLANE_POINTS = 11  # along either side of the plane
SEARCHED = 4  # losses that usually find how far a line goes, beside its points
DIFFERENCE_GRADIENTS = 2  # of a product by differences
SETTLING_GRADIENTS = 10  # that choosing the step of differences takes
_MOST_SCALINGS = 6  # by two, from where a line would end by the model to where it ends
_FAR = 10.0  # times the loss change that matters: a line goes no further, even if the model holds
_STEPS_AHEAD = 2.0  # that a line along an update covers at least
_BEHIND = 0.25  # of its length, that such a line goes back
_BROKEN = 0.5  # of the change: the model has ceased to hold where it misses by more
_MARGIN = 0.2  # of the paths' extent, around them on the plane


@dataclass(frozen=True, slots=True)
class Direction:
    """A direction to look along."""

    name: str
    kind: Literal["eigenvector", "flat", "update"]
    vector: Tensor  # (N,) of length 1; of an update the step itself
    optimizer: str = ""


class LossAround:
    """The loss at θ₀ + Σ cᵢvᵢ; parameters come back to θ₀ bitwise, also when the loss raises.

    Args:
        task: Its parameters are moved.
        layout: All parameters.
        start: θ₀, (N,).
        point: Loss and gradient there, on the batches of `split`.
        split: Whose loss it is.
        on_loss: Told after each.

    Attributes:
        num_losses: So far.
    """

    def __init__(
        self,
        task: Task,
        layout: ParameterLayout,
        start: Tensor,
        point: Point,
        split: Split,
        on_loss: Callable[[], object] = lambda: None,
    ) -> None:
        self.task = task
        self.layout = layout
        self.start = start
        self.point = point
        self.split = split
        self.num_losses = 0
        self._on_loss = on_loss

    @property
    def noise(self) -> float:
        """What a loss carries of roundings, nats."""
        return ROUNDINGS * torch.finfo(self.start.dtype).eps * abs(self.point.loss)

    def __call__(self, *moves: tuple[float, Tensor]) -> float | None:
        """Return the loss after some moves, None where it is not finite. Cost: a forward pass, one vector of N."""
        where = self.start.clone()
        for length, vector in moves:
            where.add_(vector, alpha=length)
        try:
            self.layout.write(where)
            return evaluate_loss(self.task, self.split)
        except NumericsError:
            return None
        finally:
            self.layout.write(self.start)
            self.num_losses += 1
            self._on_loss()


def directions_of(subspace: Subspace, start: Tensor, seed: int) -> list[Callable[[], Direction]]:
    """Return how the sharpest and the median eigenvector and a random flat direction are made, one at a time.

    The median one is in the middle of those held, by rank. The random one has normal entries, off the sharp subspace.
    """

    def eigenvector(place: int) -> Direction:
        return Direction(f"eigenvector {place + 1} of {subspace.size}", "eigenvector", subspace.vector(place).to(start))

    def flat() -> Direction:
        own = derive_seed(seed, "replay", "landscape", "flat")
        vector = random_vector(len(start), seed=own, dtype=start.dtype, device=start.device)
        vector -= subspace.component(vector)
        return Direction("random flat direction", "flat", vector / norm(vector))

    places = dict.fromkeys((0, subspace.size // 2))
    found: list[Callable[[], Direction]] = [partial(eigenvector, place) for place in places]
    return [*found, flat] if subspace.size < len(start) else found


def survey_line(loss: LossAround, direction: Direction, hessian: SymmetricOperator, scale: float) -> LossLine | None:
    """Evaluate the loss along a line, to where the quadratic model has ceased to hold.

    Along an eigenvector and the like it starts from where the model changes the loss by `scale`, on both sides, and is
    halved or doubled until the model misses by half there and not yet at half the way, or the loss changes by ten times
    as much. Along an update it goes two steps ahead at least, which is doubled until the loss is above the start's and
    either the model misses by half or it is so by `scale`, and a quarter as far back.

    Args:
        loss: Around θ₀.
        direction: Of length 1, or a step.
        hessian: On the batches of the loss.
        scale: A loss change that matters, nats.

    Returns:
        None where the curvature is not finite, or no loss beside θ₀ is.

    Cost: one product, `LINE_POINTS` losses and those of the search.
    """
    length = norm(direction.vector)
    slope = dot(loss.point.gradient, direction.vector)
    unit = direction.vector / length  # the product of a short step would drown
    curvature = dot(unit, hessian.matvec(unit)) * length * length
    if not (math.isfinite(curvature) and math.isfinite(slope)):
        return None
    known: dict[float, float | None] = {0.0: loss.point.loss}

    def at(distance: float) -> float | None:
        if distance not in known:
            known[distance] = loss((distance, direction.vector))
        return known[distance]

    def is_broken(distance: float) -> bool:
        """Whether the model misses by half of the change, or of both its terms, which may cancel."""
        found, away = at(distance), abs(distance)
        if found is None:
            return True
        change, modelled = found - loss.point.loss, slope * distance + 0.5 * curvature * distance * distance
        size = abs(slope) * away + 0.5 * abs(curvature) * away * away
        return abs(modelled - change) > max(_BROKEN * max(abs(change), size), loss.noise)

    def is_off(distance: float, change: float) -> bool:
        """Whether the loss is so far from the start's."""
        found = at(distance)
        return found is None or abs(found - loss.point.loss) > change

    if direction.kind == "update":
        reach = _reach_ahead(lambda end: _is_above(at(end), loss.point.loss) and (is_broken(end) or is_off(end, scale)))
        distances = np.linspace(-_BEHIND * reach, reach, LINE_POINTS)
    else:
        first = min(_first_reach(slope, curvature, max(scale, loss.noise)), max(norm(loss.start), 1.0))
        reach = _reach_around(
            first,
            is_broken=lambda end: is_broken(end) or is_broken(-end),
            is_far=lambda end: is_off(end, _FAR * scale) or is_off(-end, _FAR * scale),
        )
        distances = np.linspace(-reach, reach, LINE_POINTS)
    distances[np.argmin(np.abs(distances))] = 0.0
    found = [at(float(distance)) for distance in distances]
    inside = _whole_around(found, int(np.flatnonzero(distances == 0.0)[0]))
    if inside.stop - inside.start == 1:
        return None
    return LossLine(
        name=direction.name,
        kind=direction.kind,
        optimizer=direction.optimizer,
        distances=distances[inside],
        losses=np.array([one for one in found[inside] if one is not None]),
        slope=slope,
        curvature=curvature,
        noise=loss.noise,
        unit_length=length,
        is_cut=None in found,
    )


def _is_above(loss: float | None, start: float) -> bool:
    return loss is None or loss > start


def _first_reach(slope: float, curvature: float, scale: float) -> float:
    """Return where |slope|·s + ½|curvature|·s² is `scale`."""
    steep, bend = abs(slope), abs(curvature)
    below = steep + math.sqrt(steep * steep + 2.0 * bend * scale)
    return 2.0 * scale / below if below > 0.0 else math.inf


def _reach_around(first: float, *, is_broken: Callable[[float], bool], is_far: Callable[[float], bool]) -> float:
    reach = first
    if is_broken(reach):
        for _ in range(_MOST_SCALINGS):
            if not is_broken(0.5 * reach):
                break
            reach *= 0.5
        return reach
    for _ in range(_MOST_SCALINGS):
        reach *= 2.0
        if is_broken(reach) or is_far(reach):
            break
    return reach


def _reach_ahead(is_beyond: Callable[[float], bool]) -> float:
    reach = _STEPS_AHEAD
    for _ in range(_MOST_SCALINGS):
        if is_beyond(reach):
            break
        reach *= 2.0
    return reach


def _whole_around(found: Sequence[float | None], middle: int) -> slice:
    """Return the stretch around the middle that has no gap."""
    start, stop = middle, middle + 1
    while start > 0 and found[start - 1] is not None:
        start -= 1
    while stop < len(found) and found[stop] is not None:
        stop += 1
    return slice(start, stop)


def plane_axes(paths: Sequence[PlanePath], curvature: float, scale: float) -> tuple[FloatArray, FloatArray]:
    """Return the coordinates of the plane's points: around all paths that reached the end, or else around all.

    Along the sharpest eigenvector they go at least to where its curvature alone raises the loss by `scale`.

    Args:
        paths: At least one.
        curvature: Of the sharpest eigenvector.
        scale: A loss change that matters, nats.
    """
    whole = [path for path in paths if path.diverged_at is None] or list(paths)
    sides = []
    for name in ("x", "y"):
        ends = np.concatenate([getattr(path, name) for path in whole])
        sides.append((float(ends.min()), float(ends.max())))
    widths = [high - low for low, high in sides]
    walls = math.sqrt(8.0 * scale / curvature) if curvature > 0.0 else 0.0
    widths[0] = max(widths[0], walls)
    axes = []
    for (low, high), width in zip(sides, widths, strict=True):
        middle, reach = 0.5 * (low + high), (0.5 + _MARGIN) * (width or 1.0)
        axes.append(np.linspace(middle - reach, middle + reach, PLANE_POINTS))
    return axes[0], axes[1]


def survey_plane(
    loss: LossAround, first: Tensor, second: Tensor, x: FloatArray, y: FloatArray
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Evaluate the loss on a grid, row by row; return `losses` and `is_missing` of `LossPlane`. Cost: a · b losses."""
    found = [[loss((float(across), first), (float(up), second)) for across in x] for up in y]
    losses = np.array([[0.0 if one is None else one for one in row] for row in found])
    return losses, np.array([[one is None for one in row] for row in found])

"""What a saved entry holds, whoever saved it, under the names of our own state; checked, and not yet put anywhere.

Published optimizers are told apart by the names of what they keep. Each reader brings the averages into our sense of
them: an average of gradients and not their sum, bases by their sides, moments with the count that corrects them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.checkpoints.optimizers import own_optimizer, recognise
from lite_probe.checkpoints.parameter_orders import SavedEntry
from lite_probe.optim.buckets import MASTER, Piece, state_dtype
from lite_probe.optim.registry import OPTIMIZERS, spec_of
from lite_probe.optim.saved_rules import real, refused
from lite_probe.results.provenance import Note

MOST_STEPS = 2**53  # of a counter; floats count no further
_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of the optimizer."""

    name: str
    parameter: nn.Parameter
    pieces: Sequence[Piece]
    group: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was saved about one parameter, under the names of our own state."""

    kind: str  # of optimizer: one of a geometry's `kinds`
    step: int | None  # completed updates; None where they were not counted
    adam_step: int | None = None  # of Adam's moments: SOAP's first step does not touch them
    elementwise: Mapping[str, Tensor] = field(default_factory=dict)  # of the parameter's shape, undivided
    scalars: Mapping[str, float] = field(default_factory=dict)  # one number for all of the parameter
    made: Mapping[str, Tensor] = field(default_factory=dict)  # as our state holds it, suffix included
    hyperparameters: Mapping[str, Any] | None = None  # None: to be read from the group


def read_contents(entry: SavedEntry, target: Target, notes: dict[Note, None]) -> Contents | str:
    """Return what an entry holds, or why it is of no use.

    Args:
        entry: What was saved.
        target: The parameter it belongs to.
        notes: What was left out or assumed is added.

    Raises:
        InputError: If a tensor or a counter is none that can be gone on with.
    """
    if own_optimizer(entry.group):
        return _read_own(entry, target)
    imported = _read_imported(entry, target)
    if imported is not None:
        return imported
    values, group = entry.values, entry.group
    if group.get("maximize") is True:
        return "it was trained with maximize, upwards"
    if "GG" in values:
        return _read_soap(entry, target, notes)
    tensors = {str(key) for key, value in values.items() if _holds_tensors(value)} - _NUMBERS
    if not tensors:
        return "it had not stepped yet"
    if tensors - {"max_exp_avg_sq"} == {"exp_avg", "exp_avg_sq"}:
        if "max_exp_avg_sq" in tensors:
            message = "amsgrad's largest second moments have no counterpart here and were left out."
            notes[Note(code="optimizer-amsgrad", message=message)] = None
        return _read_adam(entry, target, "exp_avg", "exp_avg_sq")
    if tensors == {"moment1", "moment2"}:
        return _read_adam(entry, target, "moment1", "moment2")
    if tensors == {"momentum"} and "muon_theta" in group:
        return _read_muon(entry, target, "momentum", 1.0)
    if tensors == {"momentum_buffer"} and "dampening" in group:
        return _read_sgd(entry, target)
    if tensors == {"momentum_buffer"}:
        return _read_muon(entry, target, "momentum_buffer", _average_scale(entry, target, notes))
    known = recognise(frozenset(map(str, values)), frozenset(map(str, group)))
    whose = "of no known optimizer" if known == "unknown" else f"{known}'s, which no optimizer here goes on from"
    return f"what was saved of it ({', '.join(sorted(tensors)[:4])[:100]}) is {whose}"


def _holds_tensors(value: object) -> bool:
    """Whether an entry is a tensor, or holds something that may be: Shampoo keeps its factors in lists."""
    return isinstance(value, Tensor) or (isinstance(value, list | tuple | Mapping) and len(value) > 0)


# Our thresholds, each one number, under the names of LITE's published code.
LITE_NUMBERS = {
    "threshold": "subspace_threshold_ratio",
    "mask_low": "lower_topk_ratio",
    "mask_high": "upper_topk_ratio",
}
_NUMBERS = {"step", *LITE_NUMBERS.values()}
_NO_COUNTER = "its moments were saved without a step counter, which corrects their size"


def _read_own(entry: SavedEntry, target: Target) -> Contents | str:
    """Read what an optimizer of ours saved."""
    saved_by = str(own_optimizer(entry.group))
    if saved_by not in OPTIMIZERS:
        return f"it was saved by {saved_by}, which is not registered here"
    made = {str(key): value for key, value in entry.values.items() if key != "step" and isinstance(value, Tensor)}
    if "step" not in entry.values:
        return "it had not stepped yet"
    step = completed_updates(entry.values["step"], target.name)
    entries = {bare(key) for key in made} - {MASTER}
    for geometry in OPTIMIZERS[saved_by].geometries:
        kind = geometry.kind_of(entries)
        if kind is not None:
            return Contents(kind=kind, step=step, adam_step=step - geometry.idle_steps, made=made)
    return f"what was saved of it has not the names of a state of {saved_by}"


def _read_imported(entry: SavedEntry, target: Target) -> Contents | None:
    """Read what the importer of the target's optimizer knows."""
    importer = spec_of(target.group["optimizer"]).importer
    found = None if importer is None else importer(entry.values, entry.group)
    if found is None:
        return None
    geometry = target.pieces[0].geometry
    return Contents(
        kind=geometry.kind_of(found.tensors) or geometry.kinds[0],
        step=None if found.step is None else completed_updates(found.step, target.name),
        elementwise={
            name: checked(tensor, target.parameter.shape, target, name) for name, tensor in found.tensors.items()
        },
        hyperparameters=found.hyperparameters,
    )


def bare(key: str) -> str:
    """Return the name of an entry without the suffix of its piece."""
    return key.partition(".")[0]


def _read_adam(entry: SavedEntry, target: Target, first: str, second: str) -> Contents | str:
    counter = entry.values.get("step", entry.group.get("step"))
    if counter is None:
        return _NO_COUNTER
    step = completed_updates(counter, target.name)
    return Contents(
        kind="AdamW",
        step=step,
        adam_step=step,
        elementwise={
            "exp_avg": _elementwise(entry, target, first),
            "exp_avg_sq": _elementwise(entry, target, second),
        },
        scalars=_lite_numbers(entry, target),
    )


def _read_muon(entry: SavedEntry, target: Target, name: str, scale: float) -> Contents:
    counter = entry.values.get("step")
    momentum = _elementwise(entry, target, name)
    return Contents(
        kind="Muon",
        step=None if counter is None else completed_updates(counter, target.name),
        elementwise={"momentum": momentum if scale == 1.0 else momentum * scale},
        scalars=_lite_numbers(entry, target),
    )


def _average_scale(entry: SavedEntry, target: Target, notes: dict[Note, None]) -> float:
    """Return what makes a Muon's buffer an average of gradients, as ours is.

    msign does not see the scale, but new gradients are added to the buffer: a sum, 1/(1−θ) times as large as the
    average, would drown them for as long as the momentum remembers.
    """
    group = entry.group
    if "adjust_lr_fn" in group or "use_muon" in group:  # torch.optim.Muon, K. Jordan's
        return 1.0
    message, scale = "Muon's momentum was taken to be an average of gradients, as torch keeps it.", 1.0
    if "adamw_betas" in group:
        scale = 1.0 - _momentum(entry, target)
        message = (
            f"Muon's momentum was taken to be a sum of gradients, as Moonlight keeps it, and scaled by {scale:.6g}."
        )
    notes[Note(code="optimizer-momentum", message=message)] = None
    return scale


def _read_sgd(entry: SavedEntry, target: Target) -> Contents | str:
    """Read m ← θm + (1−d)g, of which ours is (1−θ)/(1−d) times as much."""
    dampening = real(entry.group["dampening"], "dampening", target.name)
    if dampening >= 1.0:
        return "its momentum was damped away"
    momentum = _elementwise(entry, target, "momentum_buffer") * ((1.0 - _momentum(entry, target)) / (1.0 - dampening))
    return Contents(kind="gradient descent", step=None, elementwise={"momentum": momentum})


def _read_soap(entry: SavedEntry, target: Target, notes: dict[Note, None]) -> Contents | str:
    """Read SOAP's factors and bases, one for each axis that was rotated, and its moments."""
    values, axes = entry.values, target.parameter.ndim
    factors, bases = values["GG"], values.get("Q")
    if not isinstance(factors, list | tuple) or not isinstance(bases, list | tuple | None):
        raise refused("lists of matrices", "GG and Q", target.name, type(factors).__name__)
    if bases is None:
        return "its bases had not been built yet"
    if len(factors) != axes or len(bases) != axes or axes > 2:
        return f"SOAP kept {len(factors)} factors of its {axes} axes"
    rotated = [axis for axis in range(axes) if not _is_empty(factors[axis])]
    if axes < 2 and rotated:
        return "SOAP rotated this vector, which runs plain Adam here"
    # The authors' counter is 0 after the first step, which only builds the bases; others count in the group, from 1.
    counter, uncounted = values.get("step"), 1
    if counter is None:
        counter, uncounted = entry.group.get("step"), 0
    if counter is None:
        return _NO_COUNTER
    step = completed_updates(counter, target.name) + uncounted
    made, squares = {}, {}
    for axis in rotated:
        shape = torch.Size((target.parameter.shape[axis],) * 2)
        side = _SIDES[1 - axis if target.pieces[0].transposed else axis]
        made[f"factor_{side}"] = checked(factors[axis], shape, target, "GG")
        made[f"basis_{side}"] = squares[axis] = checked(bases[axis], shape, target, "Q")
    first = _elementwise(entry, target, "exp_avg")
    if "max_precondition_dim" in entry.group:  # pytorch_optimizer's SOAP does not rotate m
        first = squares[0].to(first.dtype).T @ first if 0 in squares else first
        first = first @ squares[1].to(first.dtype) if 1 in squares else first
    elif rotated:
        message = "SOAP's exp_avg was taken to lie in the rotated space, as its authors keep it."
        notes[Note(code="optimizer-soap", message=message)] = None
    return Contents(
        kind="SOAP" if rotated else "AdamW",
        step=step,
        adam_step=step - 1,
        elementwise={"exp_avg": first, "exp_avg_sq": _elementwise(entry, target, "exp_avg_sq")},
        made=made,
    )


def _is_empty(matrix: object) -> bool:
    return matrix is None or (isinstance(matrix, list | tuple) and not matrix)


# -- checks ------------------------------------------------------------------------------------------------------------

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _elementwise(entry: SavedEntry, target: Target, name: str) -> Tensor:
    return checked(entry.values[name], target.parameter.shape, target, name)


def checked(value: object, shape: torch.Size, target: Target, name: str) -> Tensor:
    """Return a saved tensor on the parameter's device.

    Raises:
        InputError: If it is none, of another shape, not dense, not finite, or holds numbers that no run leads to.
    """
    if not isinstance(value, Tensor):
        raise refused("a tensor", name, target.name, type(value).__name__)
    if value.shape != shape:
        raise refused(f"shape {tuple(shape)}", name, target.name, f"{tuple(value.shape)}")
    if value.layout != torch.strided or value.dtype not in _DTYPES or value.is_meta:
        raise refused("dense floating-point numbers", name, target.name, f"{value.dtype} on {value.device}")
    # A stride of zero makes any size out of one number.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise refused("a tensor that lies in the file whole", name, target.name, "one expanded from less")
    value = value.detach().to(target.parameter.device)
    if value.numel():
        lowest, highest = (float(bound) for bound in torch.aminmax(value))
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise refused("finite numbers", name, target.name, "NaN or infinity")
        for extreme in (lowest, highest):
            _check_range(extreme, name, target)
    return value


def _check_range(number: float, name: str, target: Target) -> None:
    """Refuse a number that the state cannot hold, or that no run leads to.

    A mask's threshold is raised only while some v ≥ h·mean, so h never gets far above the number of entries; where all
    directions count as flat, thresholds fall to 0.
    """
    largest = torch.finfo(state_dtype(target.parameter.dtype)).max
    low, high = -largest, largest
    if bare(name) in ("exp_avg_sq", "moment2"):
        low = 0.0
    elif bare(name) == "sharp_basis":
        low, high = -2.0, 2.0  # of orthonormal columns, and their rounding
    elif bare(name) in ("threshold", LITE_NUMBERS["threshold"]):
        low, high = 0.0, 1.0
    elif bare(name) in {*LITE_NUMBERS, *LITE_NUMBERS.values()}:
        low, high = 0.0, 2.0 * max(target.parameter.numel(), 1)
    if not low <= number <= high:
        raise refused(f"numbers in [{low:.6g}, {high:.6g}]", name, target.name, f"{number:.6g}")


def _lite_numbers(entry: SavedEntry, target: Target) -> dict[str, float]:
    """Return the thresholds that LITE's published code saved, those that are there."""
    numbers = {}
    for name, saved in LITE_NUMBERS.items():
        if saved in entry.values:
            numbers[name] = real(entry.values[saved], saved, target.name)
            _check_range(numbers[name], saved, target)
    return numbers


def _momentum(entry: SavedEntry, target: Target) -> float:
    theta = real(entry.group.get("momentum"), "momentum", target.name)
    if not 0.0 <= theta < 1.0:
        raise refused("a number in [0, 1)", "momentum", target.name, f"{theta}")
    return theta


def completed_updates(value: object, owner: str) -> int:
    """Return a saved counter.

    Raises:
        InputError: If it is no count.
    """
    count = real(value, "step", owner)
    if not 0.0 <= count <= MOST_STEPS or count != int(count):
        raise refused("a count", "step", owner, f"{count}")
    return int(count)

"""Hyperparameters of saved parameter groups under our names, and what the saving optimizer did that ours cannot.

Averages are gone on with as they were only under the rules that made them: their decay rates, where ε is added, which
parameters decay, how a Muon scales its step. Published optimizers name and place these differently. What ours can do
likewise is read here as a value of its own hyperparameters; what it cannot is said in words.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lite_probe.checkpoints.optimizers import own_optimizer
from lite_probe.checkpoints.parameter_orders import SavedEntry
from lite_probe.errors import InputError, UsageError
from lite_probe.optim.hyperparameters import (
    BELOW_ONE,
    COUNT,
    DAMPING,
    PERIOD,
    POSITIVE,
    RANK,
    RATIO,
    SHARE,
    STEPS,
    Bounds,
)
from lite_probe.optim.msign import COEFFICIENTS, LR_SCALES
from lite_probe.optim.registry import OptimizerSpec, spec_of
from lite_probe.results.blocks import BLOCK_NAMES

# The hyperparameters of msign. LITE's projector is made of it and needs singular values near 1.
MSIGN = ("ns_steps", "ns_coefficients", "msign_dtype")

_ANOTHER_STATE = "take the state of the same checkpoint, or a warmed one: --state warm"
_TORCHS_FLOOR = 1e-7  # of the norm that torch's and K. Jordan's Muon divide by


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRules:
    """What a saved parameter group says of how one of its parameters was stepped."""

    values: Mapping[str, Any]  # hyperparameters of `make_optimizer`
    missing: tuple[str, ...]  # those that were not saved
    departures: tuple[str, ...]  # what the saving optimizer did and ours does not, in words


def read_rules(entry: SavedEntry, kind: str, geometry: str, owner: str, *, divided: bool, optimizer: str) -> SavedRules:
    """Read the hyperparameters under which a saved state was made.

    Args:
        entry: What was saved; its group has the hyperparameters.
        kind: Of optimizer that the state is: "AdamW", "Muon", "SOAP", "gradient descent", or one that is only ours.
        geometry: Name of the one that goes on from it.
        owner: The parameter, for messages.
        divided: Whether the geometry sees parts of the parameter one by one.
        optimizer: Name of the one that goes on: one of LITE's takes LITE's hyperparameters too.

    Raises:
        InputError: If a hyperparameter is no number, or none that the optimizer can have.
    """
    group = _Group(entry.group, owner)
    saved_by = own_optimizer(entry.group)
    if kind == "Muon":
        found = _own_muon(group) if saved_by else _muon(group)
    elif kind == "SOAP":
        found = _soap(group)
    elif kind == "gradient descent":
        found = {"momentum": group.number("momentum", BELOW_ONE), "weight_decay": _decay(group)}
    elif kind == "AdamW":
        found = _adam(group, geometry, after=_adds_eps_afterwards(entry))
    else:
        found = _of_spec(group, spec_of(entry.group["optimizer"]))
    if saved_by and _shares_lite(saved_by, optimizer):
        found |= _lite(group, geometry)
    departures = () if saved_by else tuple(_departures(group, kind, geometry, divided))
    return SavedRules(
        values={name: value for name, value in found.items() if value is not _UNSAVED},
        missing=tuple(name for name, value in found.items() if value is _UNSAVED),
        departures=departures,
    )


def _shares_lite(saved_by: str, optimizer: str) -> bool:
    """Whether LITE's hyperparameters go over: where both have a base, and let the same of them be set.

    Else one would go on as the other: SAMuon, say, with the damping and the sharp directions of Muon-LITE.
    """
    specs = [spec_of(name) for name in (saved_by, optimizer)]
    settable = [{*spec.settable} & {*_LITE_NAMES} for spec in specs]
    return all(spec.base is not None for spec in specs) and settable[0] == settable[1]


def average_factor(group: Mapping[Any, Any], owner: str) -> float:
    """Return (1−d)/(1−θ), the factor from the rate of `torch.optim.SGD` to one of ours, whose momentum is an average.

    Raises:
        InputError: If momentum or dampening are no numbers in [0, 1).
    """
    reader = _Group(group, owner)
    found = [reader.number(name, BELOW_ONE) for name in ("dampening", "momentum")]
    dampening, momentum = (0.0 if value is _UNSAVED else value for value in found)
    # Without momentum torch keeps no buffer, and damps nothing.
    return float((1.0 - dampening) / (1.0 - momentum)) if momentum else 1.0


# -- by kind -----------------------------------------------------------------------------------------------------------

_UNSAVED: Any = object()


def _of_spec(group: "_Group", spec: OptimizerSpec) -> dict[str, Any]:
    """Read what an optimizer of ours saved under the names of its own hyperparameters."""
    known = {name: one for name, one in spec.settable.items() if not one.is_ramp}
    for name in known.keys() & group.values.keys():
        try:
            known[name].require(name, group.values[name])
        except UsageError as problem:
            raise InputError(f"{problem} in the saved state of {group.owner}", _ANOTHER_STATE) from None
    return {name: group.values.get(name, _UNSAVED) for name in known}


def _adam(group: "_Group", geometry: str, *, after: bool) -> dict[str, Any]:
    """Read Adam's: torch's names, Moonlight's (`adamw_betas`, `adamw_eps`, `wd`), or ours."""
    if "adamw_beta1" in group.values:
        first, second = (group.number(f"adamw_beta{index}", BELOW_ONE) for index in (1, 2))
        betas = _UNSAVED if second is _UNSAVED else (first, second)
    else:
        betas = group.pair("adamw_betas", "betas")
    rest = {"eps": group.number("adamw_eps", POSITIVE, "eps"), "weight_decay": _decay(group)}
    if geometry == "kronecker":
        return {"betas": betas, **rest}
    first, second = (_UNSAVED, _UNSAVED) if betas is _UNSAVED else betas
    return {"adamw_beta1": first, "adamw_beta2": second, "eps_after_correction": after, **rest}


def _adds_eps_afterwards(entry: SavedEntry) -> bool:
    """Whether ε was added to √v after the bias correction: by torch and K. Jordan, not where `moment2` is the name."""
    if own_optimizer(entry.group):
        return entry.group.get("eps_after_correction") is True
    # Moonlight's and LITE's moments, the AdamW that transformers had, SOAP's plain Adam.
    return not ("moment2" in entry.values or "correct_bias" in entry.group or "GG" in entry.values)


def _muon(group: "_Group") -> dict[str, Any]:
    found: dict[str, Any] = {
        "momentum": group.number("momentum", BELOW_ONE, "muon_theta"),
        "weight_decay": _decay(group),
    }
    if "muon_theta" in group.values:
        return found  # LITE's published Muon, whose msign and scale are our defaults
    coefficients = group.values.get("ns_coefficients", COEFFICIENTS["quintic"].triples[0])
    if _is_quintic(coefficients):
        found |= {"ns_steps": group.whole("ns_steps", STEPS, default=5), "ns_coefficients": "quintic"}
    scale = _scale(group)
    return found if scale == _UNKNOWN_SCALE else {**found, "lr_scale": scale}


def _own_muon(group: "_Group") -> dict[str, Any]:
    return {
        "momentum": group.number("momentum", BELOW_ONE),
        "weight_decay": _decay(group),
        "ns_steps": group.whole("ns_steps", STEPS),
        "ns_coefficients": group.word("ns_coefficients", tuple(COEFFICIENTS)),
        "msign_dtype": group.word("msign_dtype", (None, "float32", "bfloat16")),
        "lr_scale": group.word("lr_scale", tuple(LR_SCALES), default="match-rms-adamw"),
    }


_UNKNOWN_SCALE = "unknown"


def _scale(group: "_Group") -> Any:
    """Return the rule by which a published Muon scales its steps, a key of `LR_SCALES`."""
    values = group.values
    if "adjust_lr_fn" in values:
        names = {None: "original", "original": "original", "match_rms_adamw": "match-rms-adamw"}
        chosen = values["adjust_lr_fn"]
        return names.get(chosen, _UNKNOWN_SCALE) if isinstance(chosen, str | None) else _UNKNOWN_SCALE
    if "adamw_betas" in values:
        return "match-rms-adamw"  # Moonlight's
    return "original" if "use_muon" in values else _UNSAVED


def _soap(group: "_Group") -> dict[str, Any]:
    betas = group.pair("betas")
    shampoo = group.values.get("shampoo_beta", _UNSAVED)
    if shampoo is not _UNSAVED and shampoo is not None:
        shampoo = group.number("shampoo_beta", Bounds(-1.0, BELOW_ONE.high, "[0, 1), or -1 for none"))
        shampoo = None if shampoo < 0.0 else shampoo
    return {
        "betas": betas,
        "shampoo_beta": shampoo,
        "eps": group.number("eps", POSITIVE),
        "weight_decay": _decay(group),
        "precondition_frequency": group.whole("precondition_frequency", PERIOD),
        "max_precond_dim": group.whole("max_precond_dim", COUNT, "max_precondition_dim"),
    }


_LITE_NAMES = ("beta1", "beta2", "flat_lr_ratio", "sharp_ratio", "smooth_ratio")


def _lite(group: "_Group", geometry: str) -> dict[str, Any]:
    damping = {"adamw_damping": group.word("adamw_damping", (False, True))} if geometry == "diagonal" else {}
    ranks = {"sharp_rank": group.ranks("sharp_rank")} if "sharp_rank" in group.values else {}  # Muon's alone
    return {
        **damping,
        **ranks,
        "beta1": group.number("beta1", DAMPING),
        "beta2": group.number("beta2", DAMPING),
        "flat_lr_ratio": group.by_block("flat_lr_ratio", RATIO),
        "sharp_ratio": group.by_block("sharp_ratio", SHARE),
        "smooth_ratio": group.number("smooth_ratio", SHARE),
    }


def _decay(group: "_Group") -> Any:
    return group.number("weight_decay", POSITIVE, "wd")


def _is_quintic(coefficients: Any) -> bool:
    if not isinstance(coefficients, list | tuple):
        return False
    return (
        all(isinstance(one, int | float) for one in coefficients)
        and tuple(coefficients) in COEFFICIENTS["quintic"].triples
    )


# -- what ours cannot do -----------------------------------------------------------------------------------------------


def _departures(group: "_Group", kind: str, geometry: str, divided: bool) -> Iterator[str]:
    values, decay = group.values, _decay(group)
    decays = decay is not _UNSAVED and decay > 0.0
    if values.get("nesterov") is False and kind == "Muon":
        yield "Muon's momentum was not Nesterov's, here it is"
    if values.get("nesterov") is True and kind == "gradient descent":
        yield "momentum was Nesterov's, here it is not"
    if kind == "Muon":
        yield from _muons_departures(group, divided)
    if kind == "gradient descent" and decays:
        yield "weight decay was added to the gradient, here it acts on the weights"
    if kind == "AdamW" and geometry == "kronecker":
        yield "ε was added after the bias correction and weight decay before the step, here both the other way round"
    if kind in ("AdamW", "SOAP") and values.get("correct_bias") is False:
        yield "moments were not corrected for their bias, here they are"
    if kind == "SOAP" and (values.get("normalize_grads") is True or values.get("normalize_gradient") is True):
        yield "updates were normalised per layer, here they are not"
    if kind == "AdamW" and decays and "betas" in values and "use_muon" not in values:
        if values.get("decoupled_weight_decay") is False:
            yield "weight decay was added to the gradient (Adam), here it acts on the weights (AdamW)"
        elif "decoupled_weight_decay" not in values:
            yield "whether weight decay acted on the weights was not saved, here it does"


def _muons_departures(group: "_Group", divided: bool) -> Iterator[str]:
    values = group.values
    if "muon_theta" not in values:
        yield "msign was rounded to bfloat16, here it is not"
    if divided:
        yield "fused and stacked matrices were orthogonalised as they are, here part by part"
    if not _is_quintic(values.get("ns_coefficients", COEFFICIENTS["quintic"].triples[0])):
        yield "msign's coefficients were others"
    if _scale(group) == _UNKNOWN_SCALE:
        yield "Muon's steps were scaled by a rule that is not known here"
    floor = group.number("eps", POSITIVE) if "adjust_lr_fn" in values else _UNSAVED
    if floor is not _UNSAVED and floor != _TORCHS_FLOOR:
        yield f"msign divided by a norm of at least {floor:g}, here by the norm plus {_TORCHS_FLOOR:g}"


# -- checks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """Reads the hyperparameters of one saved group; what was not saved is `_UNSAVED`."""

    values: Mapping[Any, Any]
    owner: str

    def number(self, name: str, bounds: Bounds, other: str = "", *, what: str = "a number") -> Any:
        """Return the number saved under a name, or under another one."""
        name = other if name not in self.values and other else name
        if name not in self.values:
            return _UNSAVED
        return self._within(real(self.values[name], name, self.owner), name, bounds, what)

    def whole(self, name: str, bounds: Bounds, other: str = "", *, default: Any = _UNSAVED) -> Any:
        number = self.number(name, bounds, other, what="a whole number")
        if number is _UNSAVED:
            return default
        if number != int(number):
            raise refused(f"a whole number in {bounds.text}", name, self.owner, f"{number:g}")
        return int(number)

    def pair(self, *names: str) -> Any:
        """Return two numbers in [0, 1)."""
        name = next((name for name in names if name in self.values), None)
        if name is None:
            return _UNSAVED
        pair = self.values[name]
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise refused("two numbers", name, self.owner, type(pair).__name__)
        return tuple(self._within(real(one, name, self.owner), name, BELOW_ONE) for one in pair)

    def word(self, name: str, known: tuple[Any, ...], *, default: Any = _UNSAVED) -> Any:
        """Return one of some words."""
        if name not in self.values:
            return default
        word = self.values[name]
        if not isinstance(word, str | bool | None) or word not in known:
            raise refused(f"one of {', '.join(map(str, known))}", name, self.owner, type(word).__name__)
        return word

    def by_block(self, name: str, bounds: Bounds) -> Any:
        """Return numbers by block."""
        if name not in self.values:
            return _UNSAVED
        saved = self.values[name]
        if not isinstance(saved, Mapping) or not set(saved) <= set(BLOCK_NAMES):
            raise refused("numbers by block", name, self.owner, type(saved).__name__)
        return {block: self._within(real(value, name, self.owner), name, bounds) for block, value in saved.items()}

    def ranks(self, name: str) -> Any:
        """Return whole numbers or None by block."""
        saved = self.values[name]
        if not isinstance(saved, Mapping) or not set(saved) <= set(BLOCK_NAMES):
            raise refused("numbers by block", name, self.owner, type(saved).__name__)
        one_by_one = {block: _Group({name: value}, self.owner) for block, value in saved.items() if value is not None}
        return {**saved, **{block: one.whole(name, RANK) for block, one in one_by_one.items()}}

    def _within(self, number: float, name: str, bounds: Bounds, what: str = "a number") -> float:
        if not bounds.low <= number <= bounds.high:
            raise refused(f"{what} in {bounds.text}", name, self.owner, f"{number:g}")
        return number


def real(value: object, name: str, owner: str) -> float:
    """Return a saved number, alone or as a tensor of one entry.

    Raises:
        InputError: If it is none, or not finite.
    """
    if isinstance(value, Tensor) and value.layout == torch.strided and value.numel() == 1 and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused("a number", name, owner, type(value).__name__)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise refused("a finite number", name, owner, f"{number}")
    return number


def refused(expected: str, name: str, owner: str, got: str) -> InputError:
    """Return the error for a saved value that cannot be gone on with."""
    return InputError(
        f"expected {expected} as {name} of {owner} in the saved optimizer state, got {got}",
        _ANOTHER_STATE,
    )

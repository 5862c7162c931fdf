"""From a name and named parameters to an optimizer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import nn

from lite_probe.blocks import assign_blocks, is_table, model_type, no_block_of_matrices, stored_transposed
from lite_probe.errors import InputError, UsageError
from lite_probe.optim.buckets import Piece, is_hidden_matrix
from lite_probe.optim.lite import LiteOptimizer
from lite_probe.optim.msign import COEFFICIENTS, LR_SCALES
from lite_probe.optim.schedules import Schedule
from lite_probe.results.blocks import BLOCK_NAMES, BlockPart

OptimizerName = Literal["adamw", "adamw-lite", "muon", "muon-lite", "soap", "soap-lite", "sgd"]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)

_ADAMW = {
    "adamw_beta1": 0.9,
    "adamw_beta2": 0.99,
    "adamw_damping": False,
    "eps": 1e-8,
    "eps_after_correction": False,  # where ε is added to √v: before the bias correction, or after it as torch does
    "weight_decay": 0.1,
}
_BASE: Mapping[str, Mapping[str, Any]] = {
    "adamw": _ADAMW,
    "muon": {
        **_ADAMW,
        "momentum": 0.95,
        "ns_steps": 6,
        "ns_coefficients": "polar-express",
        "msign_dtype": None,
        "lr_scale": "match-rms-adamw",
    },
    "soap": {
        "betas": (0.95, 0.95),
        "shampoo_beta": None,  # that of L and R; None: betas[1]
        "eps": 1e-8,
        "weight_decay": 0.01,
        "precondition_frequency": 10,
        "max_precond_dim": 10_000,
    },
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
}
# What LITE adds. The ratios by block are those of the published runs: head and routers are left alone, embeddings and
# norms go further than hidden matrices.
_LITE: Mapping[str, Any] = {
    "beta1": 0.0,
    "beta2": 1.0,
    "flat_lr_ratio": {**dict.fromkeys(BLOCK_NAMES, 2.0), "emb": 4.0, "norm": 4.0, "out": 1.0, "router": 1.0},
    "sharp_ratio": {**dict.fromkeys(BLOCK_NAMES, 0.1), "out": 1.0, "router": 1.0},
    "smooth_ratio": 0.1,
}
_PER_BLOCK = ("flat_lr_ratio", "sharp_ratio")
_RAMPS = ("schedule", "total_steps", "warmup_steps", "min_lr_ratio", "stable_ratio")


def make_optimizer(
    name: str,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    blocks: Mapping[str, str | Sequence[BlockPart]] | None = None,
    config: object = None,
    **hyperparameters: Any,
) -> LiteOptimizer:
    """Make an optimizer for a model's parameters.

        optimizer = make_optimizer("muon-lite", model.named_parameters(), lr=3e-3, beta2=1.0, flat_lr_ratio=2.0)

    Under `muon` matrices are orthogonalised, embedding, head and vectors go to AdamW; under `soap` matrices are
    rotated, vectors run plain Adam; under `adamw` everything is AdamW's. Matrices that were fused (GPT-2's q, k and v,
    experts' gate and up) are treated one by one, stacked experts (3-D) as a batch of matrices.

    Args:
        name: One of `OPTIMIZERS`.
        named_parameters: As `model.named_parameters()` yields them; those without gradients are left out.
        lr: The learning rate η, per step: of the group, to be scheduled from outside. Muon's is RMS-aligned, so that
            AdamW's values serve.
        blocks: Name, or regular expression for the end of one, → block, or its parts, for names that the families of
            `lite_probe.blocks` do not know.
        config: A transformers model's own. It names the family, and knows how many heads a fused weight has where
            names and shapes do not tell (GPT-NeoX, Bloom, Falcon, Phi-3, DeepSeek-V3).
        **hyperparameters: See `hyperparameters_of(name)` for those of each optimizer with their defaults. For LITE
            `flat_lr_ratio` (χ) and `sharp_ratio` (ρ) are a float or a dict by block, whose missing blocks keep their
            defaults; `schedule`, `total_steps`, `warmup_steps`, `min_lr_ratio` and `stable_ratio` shape its ramps.
            As in the published runs head and routers have χ = 1 and ρ = 1, nothing flat, by default; vectors of hidden
            blocks (biases of q, k and v, a shared expert's gate) stay with the base optimizer whatever is given; and
            Muon-LITE with ρ ≤ 1e-6 is Muon, undamped.

    Returns:
        The optimizer; one parameter group per block, or set of blocks where they are fused.

    Raises:
        UsageError: If a name or hyperparameter is unknown or out of range; it lists the known.
        InputError: If a matrix matches no block pattern, and the optimizer has to know its block.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"expected an optimizer among {', '.join(OPTIMIZERS)}, got {name!r}")
    settings = _settings(name, lr, hyperparameters)
    schedule = _schedule({key: settings.pop(key) for key in _RAMPS if key in settings})
    named = [(key, parameter) for key, parameter in named_parameters if parameter.requires_grad]
    if not named:
        raise InputError("expected trainable parameters, got none", "pass model.named_parameters()")
    for key, parameter in named:
        if not parameter.is_floating_point():
            raise InputError(f"expected parameters of real floating-point numbers, got {key} of {parameter.dtype}")
    groups: dict[str, dict[str, Any]] = {}
    for (key, parameter), pieces in zip(named, _pieces(name, named, blocks, config), strict=True):
        label = "+".join(dict.fromkeys(piece.block for piece in pieces))
        group = groups.setdefault(
            label, {"params": [], "pieces": [], "optimizer": name, "block": label, "lr": lr, **settings}
        )
        group["params"].append((key, parameter))
        group["pieces"].append(pieces)
    return LiteOptimizer(list(groups.values()), schedule)


def hyperparameters_of(name: str) -> dict[str, Any]:
    """Return the hyperparameters of an optimizer with their defaults, `lr` excepted.

    Raises:
        UsageError: If there is no such optimizer.
    """
    base = name.removesuffix("-lite")
    if name not in OPTIMIZERS:
        raise UsageError(f"expected an optimizer among {', '.join(OPTIMIZERS)}, got {name!r}")
    known = dict(_BASE[base])
    if name == base:
        known.pop("adamw_damping", None)
        return known
    if name == "adamw-lite":
        known["adamw_damping"] = True
    ramps = {"schedule": "constant", "total_steps": None, "warmup_steps": 0, "min_lr_ratio": 0.0, "stable_ratio": 0.8}
    return {**known, **_LITE, **ramps}


def require_hyperparameters(name: str, given: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that `make_optimizer` would refuse.

    Raises:
        UsageError: If one is unknown, of the wrong kind or out of range.
    """
    _settings(name, 0.0, given)


def _settings(name: str, lr: float, given: Mapping[str, Any]) -> dict[str, Any]:
    known = hyperparameters_of(name)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(
            f"expected hyperparameters of {name} among lr, {', '.join(known)}, got {', '.join(unknown)}",
            f"use {name}-lite for those of LITE" if set(unknown) <= {*_LITE, *_RAMPS} and name != "sgd" else "",
        )
    settings = {"adamw_damping": False, **known, **given}
    for key in _PER_BLOCK:
        if key in settings:
            settings[key] = _per_block(key, settings[key])
    for key, (low, high, bounds) in _RANGES.items():
        given_or_default = {"lr": lr, **settings}
        if key not in given_or_default or (key in known and given_or_default[key] is None is known[key]):
            continue
        kind = int if key in _COUNTS else int | float
        for value in _values(given_or_default[key]):
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                raise UsageError(f"expected {_described(key, known)} in {bounds}, got {_shown(value)}")
    if settings.get("lr_scale", "original") not in list(LR_SCALES):
        raise UsageError(f"expected lr_scale among {', '.join(LR_SCALES)}, got {_shown(settings['lr_scale'])}")
    if settings.get("ns_coefficients", "quintic") not in list(COEFFICIENTS):
        raise UsageError(
            f"expected ns_coefficients among {', '.join(COEFFICIENTS)}, got {_shown(settings['ns_coefficients'])}"
        )
    if settings.get("msign_dtype") not in [None, "float32", "bfloat16"]:
        raise UsageError(f"expected msign_dtype float32, bfloat16 or None, got {_shown(settings['msign_dtype'])}")
    for key, value in given.items():
        _require_kind(key, value, known[key])
    return settings


def _require_kind(key: str, value: Any, default: Any) -> None:
    """Refuse a value of another kind than the default's.

    Raises:
        UsageError: If it is one.
    """

    def is_number(one: object) -> bool:
        return isinstance(one, int | float) and not isinstance(one, bool)

    if default is None:
        kind, is_right = "a number, a name or None", value is None or isinstance(value, str) or is_number(value)
    elif isinstance(default, bool):
        kind, is_right = "True or False", isinstance(value, bool)
    elif isinstance(default, int):
        kind, is_right = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(default, str):
        kind, is_right = "a name", isinstance(value, str)
    elif isinstance(default, tuple):
        kind = f"{len(default)} numbers"
        is_right = isinstance(value, tuple | list) and len(value) == len(default) and all(map(is_number, value))
    elif isinstance(default, Mapping):
        kind = "a number, or one for each block"
        is_right = all(map(is_number, value.values())) if isinstance(value, Mapping) else is_number(value)
    else:
        kind, is_right = "a number", is_number(value)
    if not is_right:
        raise UsageError(f"expected {key} to be {kind}, got {_shown(value)}")


_BELOW_ONE = (0.0, math.nextafter(1.0, 0.0), "[0, 1)")
_SHARE = (0.0, 1.0, "[0, 1]")
_RANGES: Mapping[str, tuple[float, float, str]] = {
    "lr": (0.0, 1e6, "[0, 1e6]"),
    "weight_decay": (0.0, 1e6, "[0, 1e6]"),
    "eps": (0.0, 1e12, "[0, 1e12]"),
    "momentum": _BELOW_ONE,
    "adamw_beta1": _BELOW_ONE,
    "adamw_beta2": _BELOW_ONE,
    "betas": _BELOW_ONE,
    "shampoo_beta": _BELOW_ONE,
    "ns_steps": (1, 100, "[1, 100]"),
    "precondition_frequency": (1, 10**9, "[1, 1e9]"),
    "max_precond_dim": (0, 10**9, "[0, 1e9]"),
    "beta1": (-1e6, 1e6, "[-1e6, 1e6]"),
    "beta2": (-1e6, 1e6, "[-1e6, 1e6]"),
    "flat_lr_ratio": (1.0, 1e6, "[1, 1e6]"),
    "sharp_ratio": _SHARE,
    "smooth_ratio": _SHARE,
}


_COUNTS = ("ns_steps", "precondition_frequency", "max_precond_dim")


def _described(key: str, known: Mapping[str, Any]) -> str:
    return f"{key} None or" if key in known and known[key] is None else key


def _shown(value: Any) -> str:
    """Return a value as a message can show it: of a huge or nested one the beginning."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list deeper than Python goes
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _values(value: Any) -> list[Any]:
    """Return the numbers of one hyperparameter: several by block, two betas."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else [value]


def _per_block(key: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(BLOCK_NAMES, value)
    unknown = sorted(set(value) - set(BLOCK_NAMES))
    if unknown:
        raise UsageError(f"expected {key} for blocks among {', '.join(BLOCK_NAMES)}, got {', '.join(unknown)}")
    return {**_LITE[key], **value}


def _schedule(ramps: Mapping[str, Any]) -> Schedule:
    return (
        Schedule(name=ramps["schedule"], **{k: v for k, v in ramps.items() if k != "schedule"}) if ramps else Schedule()
    )


def _pieces(
    name: str,
    named: Sequence[tuple[str, nn.Parameter]],
    blocks: Mapping[str, str | Sequence[BlockPart]] | None,
    config: object,
) -> list[list[Piece]]:
    """Divide each parameter into what one geometry sees, and choose the geometry."""
    shapes = {key: tuple(parameter.shape) for key, parameter in named}
    parts, unknown = assign_blocks(shapes, model_type(config), config=config, overrides=blocks)
    needed = [key for key in unknown if len(shapes[key]) >= 2 and (name.endswith("-lite") or name == "muon")]
    if needed:
        raise no_block_of_matrices(needed, unknown)
    transposed = stored_transposed(shapes)
    result = []
    for key, parameter in named:
        own = parts.get(key, (BlockPart("other"),))
        result.append(
            [
                Piece(
                    parameter=parameter,
                    name=key,
                    block=part.block,
                    geometry=_geometry(name, key, part.shape_in(parameter.shape), part.block),
                    is_table=is_table(key),
                    part=None if part == BlockPart(part.block) else part,
                    transposed=key in transposed,
                    suffix=f".{index}" if len(own) > 1 else "",
                )
                for index, part in enumerate(own)
            ]
        )
    return result


def _geometry(name: str, key: str, shape: tuple[int, ...], block: str) -> str:
    base = name.removesuffix("-lite")
    if base == "sgd":
        return "euclidean"
    if base == "adamw":
        return "diagonal"
    if len(shape) > 3:
        raise InputError(
            f"expected vectors, matrices or stacks of matrices under {name}, got {key} with shape {shape}",
            f"adamw, adamw-lite and sgd take any shape: name one of them instead of {name}, "
            f"or freeze {key} by requires_grad_(False)",
        )
    if base == "soap":
        return "kronecker"
    return "orthogonal" if is_hidden_matrix(shape, block) and not is_table(key) else "diagonal"

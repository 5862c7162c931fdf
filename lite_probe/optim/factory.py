"""From a name and named parameters to an optimizer."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lite_probe.blocks import assign_blocks, is_table, model_type, no_block_of_matrices, stored_transposed
from lite_probe.errors import InputError, UsageError
from lite_probe.optim.buckets import Piece
from lite_probe.optim.geometry import Geometry, Hyperparameters
from lite_probe.optim.hyperparameters import LEARNING_RATE
from lite_probe.optim.lite import LiteOptimizer, lite_settings
from lite_probe.optim.registry import OptimizerSpec, names_of, spec_of
from lite_probe.optim.schedules import Schedule
from lite_probe.optim.theory import LinearRecipes
from lite_probe.results.blocks import BlockPart


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
            defaults; so is `sharp_rank`, k or None, which Muon's matrices alone have: then their k leading singular
            directions are sharp, whatever ρ is. `schedule`, `total_steps`, `warmup_steps`, `min_lr_ratio` and
            `stable_ratio` shape its ramps.
            As in the published runs head and routers have χ = 1 and ρ = 1, nothing flat, by default; vectors of hidden
            blocks (biases of q, k and v, a shared expert's gate) stay with the base optimizer whatever is given; and
            Muon-LITE with ρ ≤ 1e-6 is Muon, undamped. SAMuon is Muon-LITE at rank 1 without damping and ramps, for
            hidden matrices alone; χ is its γ, by which weight decay grows along with the steps.

    Returns:
        The optimizer; one parameter group per block, or set of blocks where they are fused.

    Raises:
        UsageError: If a name or hyperparameter is unknown or out of range; it lists the known.
        InputError: If a matrix matches no block pattern, and the optimizer has to know its block.
    """
    spec = spec_of(name)
    lr = LEARNING_RATE.complete("lr", lr)
    LEARNING_RATE.require("lr", lr)
    settings = _settings(spec, hyperparameters, beside=("lr",))
    ramps = {key: settings.pop(key) for key, one in spec.hyperparameters.items() if one.is_ramp}
    schedule = Schedule(**{"name" if key == "schedule" else key: value for key, value in ramps.items()})
    named = [(key, parameter) for key, parameter in named_parameters if parameter.requires_grad]
    if not named:
        raise InputError("expected trainable parameters, got none", "pass model.named_parameters()")
    for key, parameter in named:
        if not parameter.is_floating_point():
            raise InputError(f"expected parameters of real floating-point numbers, got {key} of {parameter.dtype}")
    groups: dict[str, dict[str, Any]] = {}
    for (key, parameter), pieces in zip(named, _pieces(spec, named, blocks, config), strict=True):
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
    return {key: copy.copy(one.default) for key, one in spec_of(name).settable.items()}


def require_hyperparameters(name: str, given: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that `make_optimizer` would refuse.

    Raises:
        UsageError: If one is unknown, of the wrong kind or out of range.
    """
    _settings(spec_of(name), given)


def linear_recipes(name: str, shape: Sequence[int], *, block: str, lr: float, **hyperparameters: Any) -> LinearRecipes:
    """Return what an optimizer of `make_optimizer` is to the sharp and the flat directions of one parameter.

    The metric F is that of its geometry, held fixed: I for sgd, diag(√v + ε) for AdamW, the same in the eigenbasis for
    SOAP, once the bias corrections have died away; for Muon see `orthogonal_recipes`. msign is not linear: there the
    prediction holds for a small part of a steady gradient that turns singular directions of like singular values. A
    part that only stretches singular values changes no update, and no update makes it smaller.

    Args:
        name: One of `OPTIMIZERS`.
        shape: Of the parameter. Muon's steps grow with it, and its vectors go to AdamW.
        block: Of the parameter. Hyperparameters depend on it; Muon's embedding and head go to AdamW.
        lr: The learning rate.
        **hyperparameters: As for `make_optimizer`. Weight decay is left out, and so are the ramps of a schedule: β₂ is
            the one they end at, χ their peak.

    Raises:
        UsageError: If `make_optimizer` refuses them, or the optimizer has no linear theory.
    """
    weight = nn.Parameter(torch.empty(*shape, device="meta"))
    optimizer = make_optimizer(name, [("weight", weight)], lr=lr, blocks={"weight": block}, **hyperparameters)
    (group,), (piece,) = optimizer.param_groups, optimizer._pieces[weight]
    recipes = recipes_of(name, piece, group)
    if recipes is None:
        known = ", ".join(names_of(lambda spec: spec.linear is not None))
        raise UsageError(f"expected an optimizer that has a linear theory, {known}, got {name!r}")
    return recipes


def recipes_of(name: str, piece: Piece, group: Hyperparameters) -> LinearRecipes | None:
    """Return what an optimizer is to the directions of a piece in one of its groups; None without a linear theory."""
    linear = spec_of(name).linear
    if linear is None:
        return None
    return linear(group, piece, lite_settings(group, piece.shape, block=piece.block, geometry=piece.geometry))


def _settings(spec: OptimizerSpec, given: Mapping[str, Any], *, beside: Sequence[str] = ()) -> dict[str, Any]:
    """Return all hyperparameters, the given ones in place of their defaults.

    Args:
        spec: Whose.
        given: By name.
        beside: What else the caller takes, for the message.

    Raises:
        UsageError: If one is unknown, of the wrong kind or out of range.
    """
    known = spec.settable
    unknown = sorted(set(given) - set(known))
    if unknown:
        variants = names_of(lambda one: one.base == spec.name and set(unknown) <= set(one.settable))
        raise UsageError(
            f"expected hyperparameters of {spec.name} among {', '.join([*beside, *known])}, got {', '.join(unknown)}",
            f"use {variants[0]} for those of LITE" if variants else "",
        )
    settings = {}
    for key, one in spec.hyperparameters.items():
        settings[key] = one.complete(key, given.get(key, one.default))
        one.require(key, settings[key])
    return settings


def _pieces(
    spec: OptimizerSpec,
    named: Sequence[tuple[str, nn.Parameter]],
    blocks: Mapping[str, str | Sequence[BlockPart]] | None,
    config: object,
) -> list[list[Piece]]:
    """Divide each parameter into what one geometry sees, and choose the geometry."""
    shapes = {key: tuple(parameter.shape) for key, parameter in named}
    parts, unknown = assign_blocks(shapes, model_type(config), config=config, overrides=blocks)
    needed = [key for key in unknown if len(shapes[key]) >= 2 and spec.needs_blocks]
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
                    geometry=_geometry(spec, key, part.shape_in(parameter.shape), part.block),
                    is_table=is_table(key),
                    part=None if part == BlockPart(part.block) else part,
                    transposed=key in transposed,
                    suffix=f".{index}" if len(own) > 1 else "",
                )
                for index, part in enumerate(own)
            ]
        )
    return result


def _geometry(spec: OptimizerSpec, key: str, shape: tuple[int, ...], block: str) -> Geometry:
    if len(shape) > 3 and not spec.takes_any_shape:
        *first, last = names_of(lambda one: one.takes_any_shape)
        raise InputError(
            f"expected vectors, matrices or stacks of matrices under {spec.name}, got {key} with shape {shape}",
            f"{', '.join(first)} and {last} take any shape: name one of them instead of {spec.name}, "
            f"or freeze {key} by requires_grad_(False)",
        )
    return spec.geometry(shape, block, is_table(key))

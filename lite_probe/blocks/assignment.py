"""Which block each parameter belongs to: the one place that inspecting, measuring and stepping ask.

What a user says comes first, then the patterns of the model's family; a name that none matches is an error.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from lite_probe.blocks.block_file import blocks_to_start_from
from lite_probe.blocks.families import FAMILIES, GPT2_FUSED, GPT2_LINEAR, TABLES, Rule, Width
from lite_probe.errors import InputError, shown
from lite_probe.results.blocks import BLOCK_NAMES, BlockMap, BlockPart

Shape = tuple[int, ...]
Given = Mapping[str, str | Sequence[BlockPart]]  # name, or regular expression for the end of one, → block or parts

BLOCKS_HINT = (
    'say which block each belongs to, as in blocks={"fc1.weight": "ffn", r"h\\.\\d+\\.q\\.weight": "qk"}, or in a file '
    f"for --blocks; blocks are {', '.join(BLOCK_NAMES)}; an optimizer of a transformers model may be given "
    "config=model.config"
)
_NAMES_SHOWN = 8


def infer_family(names: Iterable[str]) -> str | None:
    """Return the family whose patterns match most of some parameter names; None where none matches any.

    Families that share their patterns are not told apart: the first of them stands for all.
    """
    names = list(names)
    families: dict[tuple[Rule, ...], str] = {}
    for family, rules in FAMILIES.items():
        families.setdefault(rules, family)
    matched = {
        family: sum(any(_matches(rule.pattern, name) for rule in rules) for name in names)
        for rules, family in families.items()
    }
    best = max(matched, key=lambda family: matched[family])
    return best if matched[best] else None


def _rules_of(names: Iterable[str], family: str | None) -> tuple[Rule, ...]:
    """Return the patterns of a family, else of the one whose names a model has.

    A family that is not known may have another's names and yet fuse its weights in another order: of such names only
    those that are one matrix each are taken to be known.
    """
    if family is not None and family in FAMILIES:
        return FAMILIES[family]
    inferred = infer_family(names)
    rules = FAMILIES[inferred] if inferred else ()
    return rules if family is None else tuple(rule for rule in rules if len(rule.shares) == 1)


def stored_transposed(names_and_shapes: Mapping[str, Shape]) -> frozenset[str]:
    """Return the names of weights that are stored (in, out), as GPT-2's Conv1D does.

    They are recognised by the fused attention weight, whose output side is the longer one.
    """
    fused = [shape for name, shape in names_and_shapes.items() if _matches(GPT2_FUSED, name) and len(shape) == 2]
    if not fused or any(shape[1] <= shape[0] for shape in fused):
        return frozenset()
    return frozenset(name for name in names_and_shapes if _matches(GPT2_LINEAR, name))


def is_table(name: str) -> bool:
    """Return whether a parameter is no linear map, however many dimensions it has: for an optimizer it is a vector."""
    return _matches(TABLES, name)


def block_map(
    names_and_shapes: Mapping[str, Shape],
    family: str | None,
    *,
    config: object = None,
    overrides: Given | None = None,
) -> BlockMap:
    """Assign each parameter, or its parts, to a block.

    Args:
        names_and_shapes: Parameter name → shape, tied weights once.
        family: The model_type of transformers; for one that is not in `FAMILIES`, or None, the names decide.
        config: The model's own, which knows how many heads a fused weight has.
        overrides: Name, or regular expression for the end of one, → block, or the parts of the parameter; tried
            before the family's own patterns, whole names first, then in order.

    Returns:
        Name → parts that partition the parameter.

    Raises:
        InputError: If a name matches nothing, or an override is no partition.
    """
    parts, unknown = assign_blocks(names_and_shapes, family, config=config, overrides=overrides)
    if unknown:
        raise InputError(*unknown_blocks(unknown, family))
    return parts


def unknown_blocks(unknown: Sequence[str], family: str | None) -> tuple[str, str, str]:
    """Return message, hint and sample of the error that some parameters' blocks are not known."""
    shown = ", ".join(unknown[:_NAMES_SHOWN])
    more = f" and {len(unknown) - _NAMES_SHOWN:,} more" if len(unknown) > _NAMES_SHOWN else ""
    return (
        f"expected a block for every parameter of {family or 'a model of no known family'}, got none for {shown}{more}",
        "say which by --blocks FILE or, in Python, blocks={pattern: block} "
        f"(known families: {', '.join(FAMILIES)}); a file to start from:",
        blocks_to_start_from(unknown),
    )


def assign_blocks(
    names_and_shapes: Mapping[str, Shape],
    family: str | None,
    *,
    config: object = None,
    overrides: Given | None = None,
) -> tuple[dict[str, tuple[BlockPart, ...]], list[str]]:
    """Return the parts of each parameter that matches a pattern, as `block_map` does, and the names that match none.

    A fused weight whose division the config would have to tell matches nothing without one.

    Raises:
        InputError: If an override is no partition.
    """
    rules = _rules_of(names_and_shapes, family)
    parts: dict[str, tuple[BlockPart, ...]] = {}
    unknown = []
    for name, shape in names_and_shapes.items():
        found = _overridden(name, shape, overrides or {}) or _by_rules(name, shape, rules, config)
        if found is None:
            unknown.append(name)
        else:
            parts[name] = found
    return parts, unknown


def given_parts(names_and_shapes: Mapping[str, Shape], given: Given) -> dict[str, tuple[BlockPart, ...]]:
    """Return the parts of those parameters that somebody gave a block.

    Raises:
        InputError: If a pattern matches no parameter, or what is given is no partition.
    """
    for pattern in given:
        if pattern not in names_and_shapes and not any(_matches_override(pattern, name) for name in names_and_shapes):
            some = ", ".join(list(names_and_shapes)[:_NAMES_SHOWN])
            raise InputError(
                f"expected patterns that match the end of a parameter's name, got {pattern!r}, which matches none",
                f"correct it or leave it out; the model's names begin with {some}",
            )
    found = {name: _overridden(name, shape, given) for name, shape in names_and_shapes.items()}
    return {name: parts for name, parts in found.items() if parts is not None}


def named_blocks(
    names_and_shapes: Mapping[str, Shape], given: Given, *, config: object = None
) -> dict[str, tuple[BlockPart, ...]]:
    """Assign each parameter to the block that somebody gave it, to that of its family, or, a vector, to `other`.

    Args:
        names_and_shapes: Parameter name → shape, tied weights once.
        given: Name, or regular expression for the end of one, → block, or the parts of the parameter.
        config: The model's own, where it has one.

    Returns:
        Name → parts that partition the parameter.

    Raises:
        InputError: If a matrix matches nothing, or what is given is no partition.
    """
    parts, unknown = assign_blocks(names_and_shapes, model_type(config), config=config, overrides=given)
    matrices = [name for name in unknown if len(names_and_shapes[name]) >= 2]
    if matrices:
        raise no_block_of_matrices(matrices, unknown)
    return {name: parts.get(name, (BlockPart("other"),)) for name in names_and_shapes}


def no_block_of_matrices(matrices: Sequence[str], unknown: Sequence[str]) -> InputError:
    """Return the error that some matrices' blocks are not known, with a file for all parameters of which none is."""
    return InputError(
        f"expected a block for every matrix, got none for {', '.join(matrices[:6])}"
        + (f" and {len(matrices) - 6:,} more" if len(matrices) > 6 else ""),
        f"{BLOCKS_HINT}; a file to start from:",
        blocks_to_start_from(unknown),
    )


def model_type(config: object) -> str | None:
    """Return the family that a model's config names; None where there is none."""
    family = getattr(config, "model_type", None)
    return family if isinstance(family, str) and family else None


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None


def _by_rules(name: str, shape: Shape, rules: Sequence[Rule], config: object) -> tuple[BlockPart, ...] | None:
    for rule in rules:
        if not _matches(rule.pattern, name):
            continue
        if rule.when is not None and config is None:
            return None  # this rule or a later one: nobody can tell
        if rule.when is None or bool(getattr(config, rule.when, False)):
            return _divide(name, shape, rule, config)
    return None


def _divide(name: str, shape: Shape, rule: Rule, config: object) -> tuple[BlockPart, ...] | None:
    """Divide a parameter as a rule says; None where the config does not know a number that it names."""
    if len(rule.shares) == 1:
        return (BlockPart(rule.shares[0]),)
    widths = [_number(width, config) for width in rule.widths or (1,) * len(rule.shares)]
    repeats = _number(rule.repeats, config)
    if not repeats or not all(widths):
        return None
    dim = max(range(len(shape)), key=lambda axis: shape[axis]) if rule.axis is None else rule.axis
    total = sum(widths)
    unit, rest = divmod(shape[dim], total) if dim < len(shape) else (0, 1)
    if rest or any(width * unit % repeats for width in widths):
        raise InputError(
            f"expected a fused dimension divisible by {shown(total)} in {name}"
            + (f", each part by {shown(repeats)}" if repeats > 1 else "")
            + f", got shape {shape}",
            "pass blocks with the parts of this parameter",
        )
    edges = [sum(widths[:place]) * unit // repeats for place in range(len(widths) + 1)]
    period = edges[-1] if repeats > 1 else None
    return tuple(
        BlockPart(block, dim, start, stop, period)
        for block, start, stop in zip(rule.shares, edges[:-1], edges[1:], strict=True)
    )


def _number(width: Width, config: object) -> int:
    """Return a positive number or the one that the config has by this name; 0 where it has none."""
    value = getattr(config, width, None) if isinstance(width, str) else width
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _overridden(name: str, shape: Shape, overrides: Given) -> tuple[BlockPart, ...] | None:
    pattern = name if name in overrides else next((one for one in overrides if _matches_override(one, name)), None)
    if pattern is None:
        return None
    chosen = overrides[pattern]
    parts = (BlockPart(chosen),) if isinstance(chosen, str) else tuple(chosen)
    _check_partition(name, shape, parts)
    return parts


def _matches_override(pattern: str, name: str) -> bool:
    try:
        return _matches(pattern, name)
    except re.error as error:
        raise InputError(
            f"expected a regular expression as block override, got {pattern!r}: {error}", "correct it"
        ) from error


def _check_partition(name: str, shape: Shape, parts: Sequence[BlockPart]) -> None:
    if not all(isinstance(part, BlockPart) for part in parts):
        raise InputError(
            f"expected a block, or parts of one parameter, for {name}, got {list(parts)!r}"[:200],
            'write "ffn", or [BlockPart("qk", 0, 0, 8), BlockPart("vo", 0, 8)] of lite_probe.results.blocks',
        )
    for part in parts:
        if part.block not in BLOCK_NAMES:
            raise InputError(
                f"expected a block among {', '.join(BLOCK_NAMES)} for {name}, got {part.block!r}",
                "correct the override",
            )
    if len(parts) == 1 and parts[0] == BlockPart(parts[0].block):
        return  # all of it, also where a scalar has no dimension to divide
    ways = {(part.dim, part.period) for part in parts}
    length = shape[parts[0].dim] if parts and 0 <= parts[0].dim < len(shape) else None
    if length is not None and parts[0].period is not None:
        length = parts[0].period if 0 < parts[0].period <= length and length % parts[0].period == 0 else None
    bounds = [(part.start, length if part.stop is None else part.stop) for part in parts]
    edges = [0, *(stop for _, stop in bounds)]
    if length is None or len(ways) != 1 or edges[-1] != length or [start for start, _ in bounds] != edges[:-1]:
        raise InputError(
            f"expected parts that partition one dimension of {name} with shape {shape}, got {list(parts)}",
            "give them in order, each starting where the one before stops",
        )


def block_sizes(names_and_shapes: Mapping[str, Shape], blocks: BlockMap) -> dict[str, int]:
    """Count the parameters of each block, in the order of `BLOCK_NAMES`; empty blocks are left out."""
    sizes = dict.fromkeys(BLOCK_NAMES, 0)
    for name, shape in names_and_shapes.items():
        for part in blocks[name]:
            sizes[part.block] += math.prod(part.shape_in(shape))
    return {block: size for block, size in sizes.items() if size}

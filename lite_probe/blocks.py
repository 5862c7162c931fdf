"""Which block each parameter belongs to, by name patterns per family, as data.

A pattern must match from the last dots of a name backwards: `q_proj.weight` matches
`model.layers.0.self_attn.q_proj.weight`. The first match wins; a name that none matches is an error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lite_probe.errors import InputError
from lite_probe.results.blocks import BLOCK_NAMES, BlockMap, BlockPart

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Names that match `pattern` are divided among `shares`, blocks in order, each the same part of the parameter.

    One share takes the whole parameter. Several are matrices that were fused, and divide `axis`, or else the longest
    dimension: a fused attention weight has three times as many output as input features, whichever way round it is
    stored.
    """

    pattern: str  # a regular expression for the end of a name, from the beginning or behind a dot
    shares: tuple[str, ...]
    axis: int | None = None


BLOCKS_HINT = (
    'say which block each belongs to, as in blocks={"fc1.weight": "ffn", r"h\\.\\d+\\.q\\.weight": "qk"}; '
    f"blocks are {', '.join(BLOCK_NAMES)}"
)


def _whole(block: str, *patterns: str) -> tuple[Rule, ...]:
    return tuple(Rule(pattern, (block,)) for pattern in patterns)


_LLAMA = (
    *_whole("emb", r"embed_tokens\.weight"),
    *_whole("norm", r"\w*(layer)?norm\.(weight|bias)"),
    *_whole("qk", r"self_attn\.[qk]_proj\.(weight|bias)"),
    *_whole("vo", r"self_attn\.[vo]_proj\.(weight|bias)"),
    *_whole("router", r"mlp\.gate\.weight", r"mlp\.shared_expert_gate\.weight", r"block_sparse_moe\.gate\.weight"),
    *_whole(
        "ffn",
        r"mlp\.(gate|up|down)_proj\.(weight|bias)",
        r"mlp\.shared_expert\.(gate|up|down)_proj\.weight",
        r"mlp\.experts\.down_proj",  # (experts, out, in): batches of matrices
        r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight",
    ),
    Rule(r"mlp\.experts\.gate_up_proj", ("ffn", "ffn"), axis=1),
    *_whole("out", r"lm_head\.(weight|bias)"),
)

_GPT2 = (
    *_whole("emb", r"wte\.weight", r"wpe\.weight"),
    *_whole("norm", r"ln_(1|2|f)\.(weight|bias)"),
    Rule(r"attn\.c_attn\.(weight|bias)", ("qk", "qk", "vo")),
    *_whole("vo", r"attn\.c_proj\.(weight|bias)"),
    *_whole("ffn", r"mlp\.c_(fc|proj)\.(weight|bias)"),
    *_whole("out", r"lm_head\.weight"),
)

FAMILIES: Mapping[str, tuple[Rule, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3_moe": _LLAMA,
    "mixtral": _LLAMA,
    "gpt2": _GPT2,
    "nanogpt": _GPT2,  # the same names; nn.Linear stores (out, in) where Conv1D stores (in, out)
}

_GPT2_LINEAR = r"attn\.c_attn\.weight|attn\.c_proj\.weight|mlp\.c_(fc|proj)\.weight"
_GPT2_FUSED = r"attn\.c_attn\.weight"


def infer_family(names: Iterable[str]) -> str | None:
    """Return the family whose patterns match most of some parameter names; None where none matches any.

    Families that share their patterns are not told apart: the first of them stands for all.
    """
    names = list(names)
    matched = {
        family: sum(any(_matches(rule.pattern, name) for rule in rules) for name in names)
        for family, rules in FAMILIES.items()
    }
    best = max(matched, key=lambda family: matched[family])
    return best if matched[best] else None


def stored_transposed(names_and_shapes: Mapping[str, Shape]) -> frozenset[str]:
    """Return the names of weights that are stored (in, out), as GPT-2's Conv1D does.

    They are recognised by the fused attention weight, whose output side is the longer one.
    """
    fused = [shape for name, shape in names_and_shapes.items() if _matches(_GPT2_FUSED, name) and len(shape) == 2]
    if not fused or any(shape[1] <= shape[0] for shape in fused):
        return frozenset()
    return frozenset(name for name in names_and_shapes if _matches(_GPT2_LINEAR, name))


def block_map(
    names_and_shapes: Mapping[str, Shape],
    family: str | None,
    *,
    overrides: Mapping[str, str | Sequence[BlockPart]] | None = None,
) -> BlockMap:
    """Assign each parameter, or its parts, to a block.

    Args:
        names_and_shapes: Parameter name → shape, tied weights once.
        family: A key of `FAMILIES`; None leaves everything to the overrides.
        overrides: Name, or regular expression for the end of one, → block, or the parts of the parameter; tried
            before the family's own patterns, whole names first, then in order.

    Returns:
        Name → parts that partition the parameter.

    Raises:
        InputError: If the family is unknown, a name matches nothing, or an override is no partition.
    """
    rules = FAMILIES.get(family or "", ())
    if not rules and not overrides:
        raise InputError(
            f"expected a family whose blocks are known ({', '.join(FAMILIES)}), got {family}",
            "pass overrides that name the blocks, or measure without per-block spectra",
        )
    parts, unknown = assign_blocks(names_and_shapes, family, overrides=overrides)
    if unknown:
        raise InputError(
            f"expected every parameter to match a block pattern of {family}, got none for {', '.join(unknown[:8])}"
            + (f" and {len(unknown) - 8:,} more" if len(unknown) > 8 else ""),
            "pass overrides that name the blocks of these parameters",
        )
    return parts


def assign_blocks(
    names_and_shapes: Mapping[str, Shape],
    family: str | None,
    *,
    overrides: Mapping[str, str | Sequence[BlockPart]] | None = None,
) -> tuple[dict[str, tuple[BlockPart, ...]], list[str]]:
    """Return the parts of each parameter that matches a pattern, as `block_map` does, and the names that match none.

    Raises:
        InputError: If an override is no partition.
    """
    rules = FAMILIES.get(family or "", ())
    parts: dict[str, tuple[BlockPart, ...]] = {}
    unknown = []
    for name, shape in names_and_shapes.items():
        found = _overridden(name, shape, overrides or {}) or _by_rules(name, shape, rules)
        if found is None:
            unknown.append(name)
        else:
            parts[name] = found
    return parts, unknown


def named_blocks(
    names_and_shapes: Mapping[str, Shape], given: Mapping[str, str | Sequence[BlockPart]]
) -> dict[str, tuple[BlockPart, ...]]:
    """Assign each parameter to the block that somebody gave it, to that of its family, or, a vector, to `other`.

    Args:
        names_and_shapes: Parameter name → shape, tied weights once.
        given: Name, or regular expression for the end of one, → block, or the parts of the parameter.

    Returns:
        Name → parts that partition the parameter.

    Raises:
        InputError: If a matrix matches nothing, or what is given is no partition.
    """
    parts, unknown = assign_blocks(names_and_shapes, infer_family(names_and_shapes), overrides=given)
    matrices = [name for name in unknown if len(names_and_shapes[name]) >= 2]
    if matrices:
        raise InputError(
            f"expected a block for every matrix, got none for {', '.join(matrices[:6])}"
            + (f" and {len(matrices) - 6:,} more" if len(matrices) > 6 else ""),
            BLOCKS_HINT,
        )
    return {name: parts.get(name, (BlockPart("other"),)) for name in names_and_shapes}


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None


def _by_rules(name: str, shape: Shape, rules: Sequence[Rule]) -> tuple[BlockPart, ...] | None:
    rule = next((rule for rule in rules if _matches(rule.pattern, name)), None)
    return None if rule is None else _divide(name, shape, rule)


def _divide(name: str, shape: Shape, rule: Rule) -> tuple[BlockPart, ...]:
    parts = len(rule.shares)
    if parts == 1:
        return (BlockPart(rule.shares[0]),)
    dim = max(range(len(shape)), key=lambda axis: shape[axis]) if rule.axis is None else rule.axis
    if dim >= len(shape) or shape[dim] % parts:
        raise InputError(
            f"expected a fused dimension divisible by {parts} in {name}, got shape {shape}",
            "pass overrides with the parts of this parameter",
        )
    unit = shape[dim] // parts
    return tuple(BlockPart(block, dim, i * unit, (i + 1) * unit) for i, block in enumerate(rule.shares))


def _overridden(
    name: str, shape: Shape, overrides: Mapping[str, str | Sequence[BlockPart]]
) -> tuple[BlockPart, ...] | None:
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
    dims = {part.dim for part in parts}
    length = shape[parts[0].dim] if parts and 0 <= parts[0].dim < len(shape) else None
    bounds = [(part.start, length if part.stop is None else part.stop) for part in parts]
    edges = [0, *(stop for _, stop in bounds)]
    if length is None or len(dims) != 1 or edges[-1] != length or [start for start, _ in bounds] != edges[:-1]:
        raise InputError(
            f"expected parts that partition one dimension of {name} with shape {shape}, got {list(parts)}",
            "give them in order, each starting where the one before stops",
        )


def block_sizes(names_and_shapes: Mapping[str, Shape], blocks: BlockMap) -> dict[str, int]:
    """Count the parameters of each block, in the order of `BLOCK_NAMES`; empty blocks are left out."""
    sizes = dict.fromkeys(BLOCK_NAMES, 0)
    for name, shape in names_and_shapes.items():
        numel = 1
        for length in shape:
            numel *= length
        for part in blocks[name]:
            # A scalar has no dimension to narrow and only ever one part.
            length = shape[part.dim] if shape else 1
            stop = length if part.stop is None else part.stop
            sizes[part.block] += numel * (stop - part.start) // max(length, 1)
    return {block: size for block, size in sizes.items() if size}

"""A user's own file of blocks: TOML lines `pattern = block`, read, and written to start from."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lite_probe.errors import InputError, shown
from lite_probe.files import read_toml
from lite_probe.results.blocks import BLOCK_NAMES

_MOST_BYTES = 2**20
_EXAMPLE = "write lines such as 'mlp\\.fc1\\.weight' = \"ffn\""
_FUSED = r"qkv|query_key_value|c_attn"
# Which block a name makes plain; the first that is found in it.
_GUESSES = (
    ("norm", r"norm|ln_\w+\.|\bln\w*\."),
    ("router", r"router|\bgate\.(weight|bias)"),
    ("other", _FUSED),
    ("emb", r"embed|\bw[tp]e\."),
    ("qk", r"\b(q|k|query|key)(_?proj|_?lin)?\.(weight|bias)"),
    ("ffn", r"mlp|ffn|feed_?forward|expert|\bfc\w*\."),
    ("vo", r"\b(v|o|value|out|output|c)(_?proj|_?lin)?\.(weight|bias)|att\w*\.(dense|output)"),
    ("out", r"\bhead\.|lm_head|output_layer"),
)


def read_blocks(path: Path) -> dict[str, str]:
    """Read a user's blocks.

    Args:
        path: A TOML file of `pattern = block`; a pattern is a name, or a regular expression for the end of one.

    Returns:
        Pattern → block, in the order of the file.

    Raises:
        InputError: If the file cannot be read, is larger than 1 MiB, is no TOML, or names an unknown block.
    """
    table = read_toml(path, "a file of blocks", max_bytes=_MOST_BYTES, example=_EXAMPLE)
    if not table:
        raise InputError(f"expected lines pattern = block in {path}, got none", _EXAMPLE)
    for pattern, block in table.items():
        if isinstance(block, dict):
            hint = f"put the pattern in quotes: its dots are no TOML; {_EXAMPLE}"
            raise InputError(f"expected a block for {shown(pattern)} in {path}, got a table", hint)
        if block not in BLOCK_NAMES:
            raise InputError(
                f"expected a block among {', '.join(BLOCK_NAMES)} for {shown(pattern)} in {path}, got {shown(block)}",
                _EXAMPLE,
            )
    return table


def blocks_to_start_from(names: Sequence[str]) -> str:
    """Return a file of blocks for parameters of which none is known: a line for all layers, guessed by its name."""
    lines = [f"# blocks are {', '.join(BLOCK_NAMES)}"]
    patterns: dict[str, str] = {}
    for name in names:
        patterns.setdefault(_pattern(name), name)
    for pattern, example in patterns.items():
        block = next((block for block, word in _GUESSES if re.search(word, example)), None)
        why = "its name tells nothing" if block is None else "a guess, by its name"
        if re.search(_FUSED, example):
            why = "queries, keys and values in one: blocks= in Python divides it"
        lines.append(f'{_quoted(pattern)} = "{block or "other"}"  # {why}')
    return "\n".join(lines)


def _pattern(name: str) -> str:
    """Return the regular expression of a name and its like in other layers."""
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False) if "'" in key or not key.isprintable() else f"'{key}'"

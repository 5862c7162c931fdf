"""Which block each parameter belongs to."""

from lite_probe.blocks.assignment import (
    Given,
    assign_blocks,
    block_map,
    block_sizes,
    given_parts,
    infer_family,
    is_table,
    model_type,
    named_blocks,
    no_block_of_matrices,
    stored_transposed,
    unknown_blocks,
)
from lite_probe.blocks.block_file import read_blocks
from lite_probe.blocks.families import FAMILIES, Rule

__all__ = [
    "FAMILIES",
    "Given",
    "Rule",
    "assign_blocks",
    "block_map",
    "block_sizes",
    "given_parts",
    "infer_family",
    "is_table",
    "model_type",
    "named_blocks",
    "no_block_of_matrices",
    "read_blocks",
    "stored_transposed",
    "unknown_blocks",
]

"""Evaluation batches in parts, so that the curvature along a step costs a part of a product."""

from collections.abc import Sequence

from torch import Tensor

from lite_probe.task import Batch
from lite_probe.task.batches import map_leaves, num_samples


def split_rows(batches: Sequence[Batch], wanted: int) -> list[Batch]:
    """Divide batches into parts of whole samples, equally many samples each where batches are equally large.

    Args:
        batches: E of them.
        wanted: At most so many parts, and at least E.

    Returns:
        Parts whose samples are those of the batches; a batch that cannot be divided is one part.
    """
    parts: list[Batch] = []
    each = max(1, wanted // len(batches))
    for batch in batches:
        rows = num_samples(batch)
        count = max((number for number in range(1, min(each, rows) + 1) if rows % number == 0), default=1)
        size = rows // count if rows else 0
        parts += [_rows(batch, start, start + size) for start in range(0, rows, size)] if count > 1 else [batch]
    return parts


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    return map_leaves(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else leaf, batch)

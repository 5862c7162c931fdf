"""Losses on a model's outputs, with their Hessians in closed form.

The Gauss–Newton product needs ∇²_z ℓ · u at the outputs z. For softmax cross-entropy that is
(p∘u − p pᵀu) per token, which takes a few arrays of the size of z; nothing of size V × V ever exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

IGNORED = -100  # target of a position that does not count, torch's convention
_CHUNK_BYTES = 1 << 24  # of probabilities at a time: they are as large as the logits


def next_tokens(batch: Tensor) -> Tensor:
    """Return the targets of a batch of token windows: (B, S+1) → (B, S)."""
    return batch[:, 1:]


def second_item(batch: Any) -> Tensor:
    """Return the targets of an `(inputs, targets)` batch."""
    targets: Tensor = batch[1]
    return targets


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Softmax cross-entropy, Σ over counted positions of logsumexp(z) − z_y, nats.

    Args:
        targets: Batch → class indices (…), `IGNORED` where a position does not count.
    """

    targets: Callable[[Any], Tensor] = second_item

    def __call__(self, outputs: Tensor, batch: Any) -> tuple[Tensor, int]:
        """Return the summed loss of logits (…, V) and the count of positions in it."""
        targets = self.targets(batch).reshape(-1)
        logits = outputs.reshape(-1, outputs.shape[-1])
        loss = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return loss, _count(self.targets(batch))

    def hessian_product(self, outputs: Tensor, batch: Any, tangent: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return ∇²_z ℓ · u = p∘u − p(pᵀu) per counted position; (…, V) like `tangent`.

        Args:
            outputs: z.
            batch: For its targets.
            tangent: u.
            out: Contiguous, for the product; it may be `tangent`.

        Memory: beside `out` some `_CHUNK_BYTES`, however many positions and classes there are.
        """
        product = torch.empty_like(tangent, memory_format=torch.contiguous_format) if out is None else out
        classes = outputs.shape[-1]
        counted = (self.targets(batch) != IGNORED).reshape(-1, 1)
        rows = max(1, _CHUNK_BYTES // max(1, classes * outputs.element_size()))
        logits, tangents = outputs.reshape(-1, classes), tangent.reshape(-1, classes)
        products = product.view(-1, classes)
        for start in range(0, len(logits), rows):
            z, u, result, counts = (flat[start : start + rows] for flat in (logits, tangents, products, counted))
            probabilities = torch.softmax(z, dim=-1)
            torch.mul(probabilities, u, out=result)
            result.sub_(probabilities.mul_(result.sum(dim=-1, keepdim=True))).mul_(counts)
        return product


# Tensor that holds targets → which of its entries, as it then was → how many of them count.
_counts: Any = WeakTensorKeyDictionary()


def _count(targets: Tensor) -> int:
    """Return how many positions count. Asked again of the same targets it remembers, and does not wait for a device."""
    if targets.is_inference():  # which does not tell when it is written to
        return int((targets != IGNORED).sum())
    holder = targets if targets._base is None else targets._base
    key = targets._version, targets.storage_offset(), targets.shape, targets.stride()
    known = _counts.setdefault(holder, {})
    if key not in known:
        known[key] = int((targets != IGNORED).sum())
    return int(known[key])


@dataclass(frozen=True, slots=True)
class SquaredError:
    """Half the squared distance, Σ over samples of ½‖z − y‖².

    Args:
        targets: Batch → y, of the shape of the outputs.
    """

    targets: Callable[[Any], Tensor] = second_item

    def __call__(self, outputs: Tensor, batch: Any) -> tuple[Tensor, int]:
        """Return the summed loss of outputs (B, …) and B."""
        return 0.5 * (outputs - self.targets(batch)).square().sum(), outputs.shape[0]

    def hessian_product(self, outputs: Tensor, batch: Any, tangent: Tensor) -> Tensor:
        """Return u itself: the Hessian of half a squared distance is the identity."""
        return tangent


next_token_cross_entropy = CrossEntropy(next_tokens)
classification_cross_entropy = CrossEntropy(second_item)
squared_error = SquaredError(second_item)

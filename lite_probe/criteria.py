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

IGNORED = -100  # target of a position that does not count, torch's convention


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
        return loss, int((targets != IGNORED).sum())

    def hessian_product(self, outputs: Tensor, batch: Any, tangent: Tensor) -> Tensor:
        """Return ∇²_z ℓ · u = p∘u − p(pᵀu) per counted position; (…, V) like `tangent`."""
        probabilities = torch.softmax(outputs, dim=-1)
        weighted = probabilities * tangent
        product = weighted - probabilities * weighted.sum(dim=-1, keepdim=True)
        return product * (self.targets(batch) != IGNORED).unsqueeze(-1)


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

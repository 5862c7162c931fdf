"""What curvature of a model takes on one of several GPUs, counted on the meta device, where no tensor has memory.

Autograd's graph of a product is built there as it would be on a device, and the bytes that it saves are added up. What
does not depend on the batch is a number of vectors of N entries.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from lite_probe.checkpoints.models import quiet_transformers
from lite_probe.errors import InputError
from lite_probe.operators.sharding import layers
from lite_probe.runtime.memory import saved_bytes

# Whole vectors of N entries beside the weights: the one that is multiplied, its image, and what one batch adds to it.
_WHOLE_VECTORS = 3
# Slices beside the basis: of the pending vector, its image, and a probe's previous one.
_SLICES = 3
# Slices of differences: where the weights were, where they go, the gradient on either side, and their difference.
_DIFFERENCE_SLICES = 5
_GATHERED = 3  # layers, whole: the one that is computed, the next, and a gradient
_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PerGpu:
    """What each of some GPUs holds while a product is made, and what it sends; the basis lies in slices."""

    gpus: int
    is_sharded: bool  # whether each has a shard of the model; else all of it
    num_parameters: int
    weights_bytes: int  # parameters and buffers; of shards also what is gathered of them at a time
    vectors_bytes: int  # beside the basis
    graph_bytes: int  # of the rows whose graph is held at a time
    basis_bytes: int  # this GPU's slice
    sent_bytes: int  # in one product of one batch

    @property
    def held_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.vectors_bytes + self.graph_bytes + self.basis_bytes


def count_graph(skeleton: PreTrainedModel, *, rows: int, seq_len: int, twice: bool = True) -> int:
    """Count the bytes that the graph of a Hessian product saves, on a batch of a language model.

    Args:
        skeleton: On the meta device, from `Checkpoint.skeleton`.
        rows: Of the batch.
        seq_len: Tokens in each.
        twice: Differentiated twice; else the graph of a gradient.

    Returns:
        Bytes, parameters and buffers not among them; exactly what the same graph saves on a device.

    Raises:
        InputError: If what the model computes depends on values, as the experts that tokens are sent to do.

    Cost: one pass over the graph, without arithmetic.
    """
    try:
        with saved_bytes((*skeleton.parameters(), *skeleton.buffers())) as saved:
            _multiply(skeleton, rows, seq_len, twice)
    except NotImplementedError as error:
        raise InputError(
            f"expected a model whose graph does not depend on its tokens, got a {skeleton.config.model_type}",
            "leave out --gpus; lite-probe spectrum CKPT --dry-run measures the graph of a batch",
        ) from error
    return sum(saved.values())


def _multiply(skeleton: PreTrainedModel, rows: int, seq_len: int, twice: bool) -> None:
    """Make a Hessian product of a batch, or its loss alone, with all shapes and no numbers."""
    parameters = list(skeleton.parameters())
    tokens = torch.zeros(rows, seq_len + 1, dtype=torch.long, device="meta")
    # Without a mask transformers looks into the positions for packed sequences, and there is nothing to see.
    mask = torch.ones(rows, seq_len, dtype=torch.long, device="meta")
    with torch.enable_grad(), quiet_transformers(), sdpa_kernel(SDPBackend.MATH):
        logits = skeleton(input_ids=tokens[:, :-1], attention_mask=mask, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        if not twice:
            return
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        used = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
        torch.autograd.grad(used, parameters, [torch.empty_like(one) for one in used], True, allow_unused=True)


def footprint(skeleton: PreTrainedModel, *, graph_bytes: int, gpus: int, basis_columns: int) -> PerGpu:
    """Say what each of some GPUs holds and sends, each with the whole model and a slice of the basis.

    Args:
        skeleton: On the meta device.
        graph_bytes: Of the rows whose graph is held at a time, from `count_graph`.
        gpus: How many.
        basis_columns: Vectors of the Krylov basis.
    """
    size = sum(parameter.numel() for parameter in skeleton.parameters())
    vector = _BYTES * size
    return PerGpu(
        gpus=gpus,
        is_sharded=False,
        num_parameters=size,
        weights_bytes=vector + sum(buffer.nbytes for buffer in skeleton.buffers()),
        vectors_bytes=_WHOLE_VECTORS * vector,
        graph_bytes=graph_bytes,
        basis_bytes=(basis_columns + _SLICES) * vector // gpus,
        sent_bytes=2 * vector * (gpus - 1) // gpus,  # reduce-scatter and all-gather of N numbers around a ring
    )


def sharded_footprint(skeleton: PreTrainedModel, *, graph_bytes: int, gpus: int, basis_columns: int) -> PerGpu:
    """Say what each of some GPUs holds and sends, each with a shard of the model: a product is two gradients.

    Args:
        skeleton: On the meta device.
        graph_bytes: Of a gradient, of the rows that are computed at a time, from `count_graph`; attention is counted as
            the model's own, and takes less where it is fused.
        gpus: How many.
        basis_columns: Vectors of the Krylov basis.
    """
    size = sum(parameter.numel() for parameter in skeleton.parameters())
    own = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers(skeleton)]
    outside = size - sum(own)
    gathered = _BYTES * (_GATHERED * max(own, default=0) + 2 * outside)  # what is in no layer, and its gradient
    vector = _BYTES * size
    return PerGpu(
        gpus=gpus,
        is_sharded=True,
        num_parameters=size,
        weights_bytes=vector // gpus + gathered + sum(buffer.nbytes for buffer in skeleton.buffers()),
        vectors_bytes=_DIFFERENCE_SLICES * vector // gpus,
        graph_bytes=graph_bytes,
        basis_bytes=(basis_columns + _SLICES) * vector // gpus,
        # Of either gradient: the weights are gathered forwards and backwards, the gradient is added up once.
        sent_bytes=2 * 3 * vector * (gpus - 1) // gpus,
    )

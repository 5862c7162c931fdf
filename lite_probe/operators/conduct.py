"""How a measurement treats a model: nothing moves, attention is differentiable twice, precision is explicit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lite_probe.errors import NumericsError

# Autograd nodes of attention kernels that have no double backward.
_FUSED = ("flash", "efficient", "cudnn", "fused")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leave no trace: mode, buffers, random state and matmul precision come back bitwise, also after an error.

    Inside, the model is in evaluation mode, attention runs its mathematical form, which can be differentiated
    twice, and float32 products are float32 (no TF32). Parameters and `p.grad` are not touched by operators.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
    matmul_tf32 = torch.backends.cuda.matmul.allow_tf32
    cudnn_tf32 = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        model.eval()
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
        torch.backends.cudnn.allow_tf32 = cudnn_tf32
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def _cuda_in_use() -> bool:
    """Whether this process has touched CUDA; asking must not be the first touch."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def require_double_backward(loss: Tensor) -> None:
    """Refuse a loss whose graph holds fused attention, which cannot be differentiated twice.

    Raises:
        NumericsError: If such a node is in the graph; it is named.

    Cost: one walk over the graph's nodes, no arithmetic.
    """
    seen = set()
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        lowered = name.lower()
        if "attention" in lowered and any(kind in lowered for kind in _FUSED):
            raise NumericsError(
                f"expected attention that can be differentiated twice, got the fused kernel {name}",
                'load the model with attn_implementation="eager"',
            )
        stack.extend(next_node for next_node, _ in node.next_functions)


def explain_autograd_error(error: RuntimeError) -> NumericsError | None:
    """Turn autograd's complaint about a missing double backward into an error a user can act on."""
    text = str(error)
    known = ("derivative for", "not implemented", "once_differentiable", "backward of backward")
    if not any(part in text for part in known):
        return None
    return NumericsError(
        f"expected a model that can be differentiated twice, got: {text.splitlines()[0]}",
        'load it with attn_implementation="eager", or use --method finite-differences',
    )

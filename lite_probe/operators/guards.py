"""How a measurement treats a model: nothing moves, attention is differentiable twice, precision is explicit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from lite_probe.errors import InputError, NumericsError
from lite_probe.operators.precision import multiplying_in

# Autograd nodes of attention kernels that have no double backward.
_FUSED = ("flash", "efficient", "cudnn", "fused")
# What every backward that is declared once differentiable runs: autograd would leave its part out without a word.
_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx: None).__code__
# The node of reentrant checkpointing, torch's and that of libraries which have their own.
_REENTRANT = "CheckpointFunction"
KEPT_GRAPH = "torch.utils.checkpoint.checkpoint(..., use_reentrant=False), which keeps the graph"


@dataclass(slots=True)
class GuardLog:
    """What a model does otherwise while it is measured."""

    checkpoints: int = 0  # stretches whose reentrant activation checkpointing was left out


@contextmanager
def preserve_state(model: nn.Module, *, fused_attention: bool = False) -> Iterator[GuardLog]:
    """Leave no trace: mode, buffers, random state and matmul precision come back bitwise, also after an error.

    Inside, the model is in evaluation mode, attention runs its mathematical form, which can be differentiated
    twice, and float32 products are float32 (no TF32, no bfloat16). Gradients are on, whatever the caller is in, and
    reentrant activation checkpointing is off. Operators touch neither parameters nor `p.grad`.

    Args:
        model: That is measured.
        fused_attention: Leave attention to any kernel: for what takes first derivatives only.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
    try:
        model.eval()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            multiplying_in("float32"),
            nullcontext() if fused_attention else sdpa_kernel(SDPBackend.MATH),
            _without_reentrant_checkpointing() as log,
        ):
            yield log
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def _without_reentrant_checkpointing() -> Iterator[GuardLog]:
    """Let torch's reentrant activation checkpointing call its function and no more, for a while.

    It runs the function without a graph: a stretch whose inputs need no gradient then has none at all, without a word,
    and any other stretch has a node that refuses `torch.autograd.grad`. What the function returns is the same.
    """
    log = GuardLog()
    module: Any = torch.utils.checkpoint
    original = module.CheckpointFunction

    class _Called:
        @staticmethod
        def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            log.checkpoints += 1
            return function(*args)

    module.CheckpointFunction = _Called
    try:
        yield log
    finally:
        module.CheckpointFunction = original


def _cuda_in_use() -> bool:
    """Whether this process has touched CUDA; asking must not be the first touch."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def require_precision(model: nn.Module) -> None:
    """Refuse parameters that products and residuals cannot be certified in.

    Raises:
        InputError: If trainable parameters are neither all float32 nor all float64.
    """
    first = {
        parameter.dtype: name for name, parameter in reversed([*model.named_parameters()]) if parameter.requires_grad
    }
    if len(first) > 1 or not set(first) <= {torch.float32, torch.float64}:
        found = " and ".join(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in first.items())
        raise InputError(
            f"expected parameters all in float32, or all in float64, got {found}",
            "pass --precision float32, or convert model and batches with .float()",
        )


def require_double_backward(loss: Tensor) -> set[str]:
    """Refuse a loss whose graph holds what cannot be differentiated twice: fused attention, once-only functions.

    Returns:
        The names of functions in the graph whose backward pass is written in Python: it may hide from autograd what
        it depends on, which no look at the graph can tell.

    Raises:
        NumericsError: If such a node is in the graph; it is named.

    Cost: one walk over the graph's nodes, no arithmetic.
    """
    written: set[str] = set()
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
        function = getattr(type(node), "_forward_cls", None)
        if name.startswith(_REENTRANT):
            raise _checkpointed(name)
        if function is not None:
            written.add(name.removesuffix("Backward"))
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE_DIFFERENTIABLE:
            raise NumericsError(
                f"expected a model that can be differentiated twice, got {name}, declared once differentiable",
                "use --method finite-differences",
            )
        stack.extend(next_node for next_node, _ in node.next_functions)
    return written


def _checkpointed(what: str) -> NumericsError:
    return NumericsError(
        f"expected a model without reentrant activation checkpointing, got {what}",
        f"switch the model's checkpointing off, or use {KEPT_GRAPH}",
    )


def explain_autograd_error(error: RuntimeError) -> NumericsError | None:
    """Turn autograd's complaint about a missing double backward into an error a user can act on."""
    text = str(error)
    if "checkpointing is not compatible" in text.lower() or "checkpoint is incompatible" in text:
        return _checkpointed(text.splitlines()[0])
    known = ("derivative for", "not implemented", "once_differentiable", "backward of backward")
    if not any(part in text for part in known):
        return None
    return NumericsError(
        f"expected a model that can be differentiated twice, got: {text.splitlines()[0]}",
        'load it with attn_implementation="eager", or use --method finite-differences',
    )

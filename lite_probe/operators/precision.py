"""What matrix products are multiplied in: float32, or operands of fewer bits whose products are summed in float32.

Matrix units (tensor cores, AMX) take such operands five to fifteen times faster. Norms, softmax, losses and sums are
never touched, and neither are graphs that are kept: what is read in fewer bits is a product through them, which errs by
0.03% (tf32) or 0.3% (bf16) on trained language models. `torch.autocast` would also round what every layer puts out:
products through a model whose forward pass it rounded were 1 to 10% off.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lite_probe.task import Batch
from lite_probe.task.batches import num_entries

Precision = Literal["float32", "tf32", "bf16"]
Setting = TypeVar("Setting")

FAST: tuple[Precision, ...] = ("tf32", "bf16")  # fewer bits than float32, the more accurate first
_TF32_DROPPED = 13  # of the 23 bits behind a float32's point
_LARGE = 1 << 23  # multiplications of a product that oneDNN makes in half of MKL's time; at a quarter they are even
_FLOAT32_ERROR = 1e-5  # which no sum of some hundred float32 products comes near, and bf16 exceeds 200 times


def has_units(precision: Precision, device: torch.device) -> bool:
    """Tell whether a device multiplies in a precision faster than in float32; elsewhere it is emulated.

    Of CPUs only those with AMX do: where a processor has bfloat16 instructions for vectors alone, oneDNN multiplies
    float32 matrices in float32 whatever it is allowed.
    """
    if precision == "float32":
        return True
    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device)[0] >= 8
        return ampere and (precision == "tf32" or torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or precision == "tf32":
        return False
    cpu: Any = torch.cpu
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(cpu._is_amx_tile_supported())


@contextmanager
def multiplying_in(precision: Precision, device: torch.device | None = None) -> Iterator[None]:
    """Multiply float32 matrices in a precision for a while; torch's switches come back as they were.

    torch has two sets of switches for it: `fp32_precision`, which counts, and older ones, `allow_tf32` of the GPU and
    `torch.set_float32_matmul_precision`, which must agree with it or cannot be read. Where no switch does it (bf16 on a
    GPU, whose operands must be converted; a device without the units) matrix products are taken over one by one.

    Args:
        precision: float32 switches fewer bits off everywhere.
        device: Where it multiplies; not needed for float32.
    """
    on_gpu = device is not None and device.type == "cuda"
    by_switch = device is not None and has_units(precision, device) and precision == ("tf32" if on_gpu else "bf16")
    with _switched("tf32" if by_switch and on_gpu else "ieee", "bf16" if by_switch and not on_gpu else "ieee"):
        if precision == "float32" or by_switch:
            yield
        else:
            with _FewerBits(precision, converted=on_gpu):
                yield


def multiplying_large(model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
    """Let a model multiply its float32 matrices, in float32 still, by the library that is faster on this processor.

    torch has two of them. MKL takes AVX-512 on Intel's processors only: on AMD's, oneDNN makes large products in half
    of its time. torch asks oneDNN only where bfloat16 is allowed, of which oneDNN makes use on matrix units alone; that
    its products are float32's here is seen once per process. Sums over all parameters are no such products, and stay
    outside: oneDNN is up to ten times slower at them.

    Args:
        model: Whose matrices are large where half of them are, times the batch's entries.
        batch: It is applied to.
    """
    if not onednn_is_faster():
        return nullcontext()
    sizes = sorted(
        parameter.shape[-1] * parameter.shape[-2]
        for parameter in model.parameters()
        if parameter.ndim > 1 and parameter.dtype == torch.float32 and parameter.device.type == "cpu"
    )
    is_large = bool(sizes) and sizes[len(sizes) // 2] * num_entries(batch) >= _LARGE
    return _asking_onednn() if is_large else nullcontext()


@cache
def onednn_is_faster() -> bool:
    """Tell whether oneDNN multiplies large float32 matrices faster than MKL, and in float32."""
    backends: Any = torch.backends
    has_both = backends.mkl.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not has_both or has_units("bf16", torch.device("cpu")) or not _is_by_amd():
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(4, 256, 256, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    with _asking_onednn():
        found = left @ right
        found[:2] = torch.stack([left[0] @ right[0], left[1] @ right[1].T.contiguous().T])  # one by one, and transposed
    return bool((found - exact).norm(dim=(1, 2)).max() < _FLOAT32_ERROR * exact[0].norm())


def _is_by_amd() -> bool:
    """Tell whether AMD made the processor."""
    listed = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (listed.read_text() if listed.exists() else platform.processor())


@contextmanager
def _asking_onednn() -> Iterator[None]:
    """Let torch multiply matrices by oneDNN for a while; convolutions, which it makes in any case, stay float32's."""
    backends: Any = torch.backends
    switch = backends.mkldnn.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextmanager
def _switched(gpu: str, cpu: str) -> Iterator[None]:
    """Set torch's switches of both devices for a while."""
    backends: Any = torch.backends
    gpu_backends = (backends.cuda.matmul, backends.cudnn)
    switches = {
        backends.cuda.matmul: gpu,
        backends.cudnn.conv: gpu,
        backends.cudnn.rnn: gpu,
        backends.mkldnn.matmul: cpu,
        backends.mkldnn.conv: cpu,
        backends.mkldnn.rnn: cpu,
    }
    precisions = [switch.fp32_precision for switch in switches]
    older = [_readable(partial(getattr, backend, "allow_tf32")) for backend in gpu_backends]
    oldest = _readable(torch.get_float32_matmul_precision)
    try:
        for backend, allowed in zip(gpu_backends, older, strict=True):
            if allowed is not None:
                backend.allow_tf32 = gpu == "tf32"
        for switch, wanted in switches.items():
            switch.fp32_precision = wanted
        yield
    finally:
        for backend, allowed in zip(gpu_backends, older, strict=True):
            if allowed is not None:
                backend.allow_tf32 = allowed
        if oldest is not None:
            torch.set_float32_matmul_precision(oldest)  # of "high" and "medium" `allow_tf32` knows no difference
        for switch, before in zip(switches, precisions, strict=True):
            switch.fp32_precision = before


def _readable(read: Callable[[], Setting]) -> Setting | None:
    """Read an older switch; None where the newer ones were set otherwise, which torch refuses to read."""
    try:
        return read()
    except RuntimeError:
        return None


def round_to(precision: Precision, tensor: Tensor) -> Tensor:
    """Return a float32 tensor rounded to the nearest of a precision's numbers, ties to even, as float32."""
    if precision == "float32" or tensor.dtype != torch.float32:
        return tensor
    if precision == "bf16":
        return tensor.bfloat16().float()
    bits = tensor.contiguous().view(torch.int32)
    half = (1 << (_TF32_DROPPED - 1)) - 1
    return ((bits + half + ((bits >> _TF32_DROPPED) & 1)) & -(1 << _TF32_DROPPED)).view(torch.float32)


class _FewerBits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Round the operands of float32 matrix products, and sum in float32.

    Args:
        precision: Of the operands.
        converted: Whether they go to the device's units as bfloat16; else their rounded values are multiplied in
            float32, which gives the same up to the order of sums.
    """

    def __init__(self, precision: Precision, *, converted: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.precision: Precision = precision
        self.converted = converted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        product = _PRODUCTS.get(func)
        kwargs = kwargs or {}
        if product is None or any(one.dtype != torch.float32 for one in args[: product[0] + 2]):
            return func(*args, **kwargs)
        addends, plain = product
        left, right = args[addends : addends + 2]
        if self.converted:
            result = plain.dtype(left.bfloat16(), right.bfloat16(), torch.float32)
        else:
            result = plain.default(round_to(self.precision, left), round_to(self.precision, right))
        if addends:
            result = result.mul_(kwargs.get("alpha", 1)).add_(args[0], alpha=kwargs.get("beta", 1))
        return result


_ATEN: Any = torch.ops.aten
# Matrix products: how many tensors come before their factors, and the product alone.
_PRODUCTS: dict[Callable[..., Any], tuple[int, Any]] = {
    _ATEN.mm.default: (0, _ATEN.mm),
    _ATEN.bmm.default: (0, _ATEN.bmm),
    _ATEN.addmm.default: (1, _ATEN.mm),
    _ATEN.baddbmm.default: (1, _ATEN.bmm),
}

"""Slow and independent answers: dense curvature by torch.func, matrices with chosen spectra."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lite_probe.results.blocks import BlockMap
from lite_probe.task import Batch, Task
from tests import models

FloatArray = NDArray[np.float64]


def flat_parameters(task: Task) -> Tensor:
    """θ of a task, in `named_parameters()` order."""
    return torch.cat([p.detach().flatten() for p in task.model.parameters() if p.requires_grad])


def _with_parameters(task: Task, flat: Tensor) -> dict[str, Tensor]:
    """Cut a flat vector into the model's trainable parameters."""
    named = [(name, p) for name, p in task.model.named_parameters() if p.requires_grad]
    parts = flat.split([p.numel() for _, p in named])
    return {name: part.view_as(p) for (name, p), part in zip(named, parts, strict=True)}


class _Functional:
    """A module as a function of flat parameters, callable like the module by `task.predict`."""

    def __init__(self, task: Task, flat: Tensor) -> None:
        self._model = task.model
        self._parameters = _with_parameters(task, flat)

    def parameters(self) -> Iterator[Tensor]:
        return iter(self._parameters.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._model, self._parameters, args, kwargs)


def outputs_of(task: Task, flat: Tensor, batch: Batch) -> Tensor:
    """Model outputs as a function of θ."""
    return task.predict(_Functional(task, flat), batch)  # type: ignore[arg-type]


def mean_loss(task: Task, flat: Tensor) -> Tensor:
    """Σ criterion / Σ counts over the evaluation batches as a function of θ."""
    sums, counts = zip(*(task.criterion(outputs_of(task, flat, b), b) for b in task.evaluation), strict=True)
    return torch.stack(sums).sum() / sum(counts)


def dense_hessian(task: Task) -> Tensor:
    """∇²L as a matrix, (N, N).

    `torch.func.hessian` is forward over reverse, which `silu` and embeddings' backward lack; this is its reverse over
    reverse form.
    """
    with mathematical_attention(), _plain_layer_norm():
        matrix: Tensor = jacrev(jacrev(lambda flat: mean_loss(task, flat)), chunk_size=256)(flat_parameters(task))
    asymmetry = float((matrix - matrix.T).abs().max() / matrix.abs().max())
    if asymmetry > 1e-13:
        raise ArithmeticError(f"expected a symmetric Hessian from the oracle, got an asymmetry of {asymmetry:.1e}")
    return matrix.detach()


def dense_gauss_newton(task: Task) -> Tensor:
    """Σ_b J_bᵀ (∇²_z ℓ_b) J_b / Σ counts with J and ∇²_z ℓ as explicit matrices, (N, N)."""
    flat = flat_parameters(task)
    total = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
    count = 0
    for batch in task.evaluation:
        with mathematical_attention():
            outputs = outputs_of(task, flat, batch).detach()
            jacobian = jacrev(lambda at, b=batch: outputs_of(task, at, b).flatten())(flat).detach()

        def of_outputs(z: Tensor, batch: Batch = batch, shape: torch.Size = outputs.shape) -> Tensor:
            return task.criterion(z.view(shape), batch)[0]

        middle = torch.autograd.functional.hessian(of_outputs, outputs.flatten())
        total += jacobian.T @ middle @ jacobian
        count += task.criterion(outputs, batch)[1]
    return total / count


@cache
def known_hessian(name: str) -> Tensor:
    """The dense float64 Hessian of one of `models.MODELS`."""
    return dense_hessian(models.make_task(name, torch.float64))


@cache
def known_gauss_newton(name: str) -> Tensor:
    """The dense float64 Gauss–Newton matrix of one of `models.MODELS`."""
    return dense_gauss_newton(models.make_task(name, torch.float64))


def block_indices(task: Task, block: str) -> Tensor:
    """Positions in θ that belong to a block, by painting a tensor per parameter."""
    blocks: BlockMap = task.blocks or {}
    masks = []
    for name, parameter in task.model.named_parameters():
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        for part in blocks[name]:
            if part.block == block:
                length = part.period or (mask.shape[part.dim] if mask.ndim else 1)
                stop = length if part.stop is None else part.stop
                inside = [part.start <= row % length < stop for row in range(mask.shape[part.dim])]
                mask.movedim(part.dim, 0)[torch.tensor(inside)] = True
        masks.append(mask.flatten())
    return torch.cat(masks).nonzero().flatten()


def orthogonal(size: int, *, seed: int = 0) -> Tensor:
    """A random orthogonal matrix, float64: no coordinate axis is an eigenvector of what it rotates."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def matrix_with(eigenvalues: Sequence[float] | FloatArray, *, seed: int = 0) -> Tensor:
    """Q diag(λ) Qᵀ, float64, symmetric bitwise."""
    values = torch.as_tensor(np.asarray(eigenvalues, dtype=np.float64))
    q = orthogonal(len(values), seed=seed)
    matrix = (q * values) @ q.T
    return 0.5 * (matrix + matrix.T)


def product_columns(apply: Callable[[Tensor], Tensor], size: int, dtype: torch.dtype) -> Tensor:
    """The matrix of a linear map, one unit vector after another."""
    return torch.stack([apply(unit) for unit in torch.eye(size, dtype=dtype)], dim=1)


@contextmanager
def mathematical_attention() -> Iterator[None]:
    """Attention that can be differentiated twice, for operators used outside a measurement."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _plain_layer_norm() -> Iterator[None]:
    """Layer norm as arithmetic: nested torch.func transforms lose the dependence of its mean and scale on the input.

    `torch.func.hessian` of a native layer norm is asymmetric (seen with torch 2.13); plain double backward is right.
    """
    native = functional.layer_norm

    def arithmetic(x: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps) * weight + bias

    functional.layer_norm = arithmetic
    try:
        yield
    finally:
        functional.layer_norm = native


def gram_defect(rows: Tensor) -> float:
    """Return the largest entry of |QQᵀ − I| of rows (m, n), summed in float64."""
    gram = rows.double() @ rows.double().T
    return float((gram - torch.eye(len(rows), dtype=gram.dtype, device=gram.device)).abs().max())

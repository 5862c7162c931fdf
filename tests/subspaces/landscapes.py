"""A quadratic landscape whose every projector and curvature is a dense matrix that can be written down.

L(θ; x) = ½ (θ − x)ᵀ H (θ − x) with samples x around a minimum. Its gradients H(θ − x) are loud where H is sharp, so
that an optimizer's second moments say something about curvature, as LITE hopes they do.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.optim import Directions
from lite_probe.results.blocks import BlockPart
from lite_probe.results.spectrum import Spectrum
from lite_probe.subspaces import Bands
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout
from tests import oracles

FloatArray = NDArray[np.float64]

SHAPES: Mapping[str, tuple[int, ...]] = {"q": (9, 11), "v": (12, 8), "up": (10, 10), "gain": (21,)}
BLOCKS = {"q": "qk", "v": "vo", "up": "ffn", "gain": "norm"}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


class _Point(nn.Module):
    """θ, in parameters of several shapes."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        parts = theta.split([int(np.prod(shape)) for shape in SHAPES.values()])
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True):
            setattr(self, name, nn.Parameter(part.clone().view(shape)))


class Quadratic:
    """½ zᵀHz summed over samples, z the model's outputs θ − x."""

    def __init__(self, hessian: Tensor) -> None:
        self.hessian = hessian

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return 0.5 * torch.einsum("bi,ij,bj->", outputs, self.hessian.to(outputs), outputs), len(outputs)


def displacements(model: nn.Module, batch: Tensor) -> Tensor:
    """θ − x for every sample x of a batch, (B, N)."""
    return torch.cat([parameter.flatten() for parameter in model.parameters()]) - batch


@cache
def hessian() -> Tensor:
    """Dense: A ⊗ B in every matrix's block, as Kronecker-factored optimizers hope, and coupling everywhere else too.

    No axis is special, A and B are rotated at random. Blocks differ in scale; one direction across them curves down.
    """
    whole = 0.02 * oracles.matrix_with(np.linspace(-1.0, 1.0, SIZE), seed=3)
    start = 0
    for place, shape in enumerate(SHAPES.values()):
        factors = [
            oracles.matrix_with(np.geomspace(4.0, 0.02, length), seed=10 * place + side)
            for side, length in enumerate(shape)
        ]
        own = torch.kron(*factors) if len(factors) == 2 else factors[0]
        rows = slice(start, start + len(own))
        whole[rows, rows] += own / (1.0 + 0.3 * place)
        start = rows.stop
    down = oracles.orthogonal(SIZE, seed=4)[:, 0]
    whole -= 4.0 * torch.outer(down, down)
    return 0.5 * (whole + whole.T)


def quadratic_task(
    *, dtype: torch.dtype = torch.float64, train: int = 30, evaluation: int = 2, seed: int = 0, blocks: bool = True
) -> Task:
    """The landscape as a task: `evaluation` batches of different sizes and `train` batches of 4 samples."""
    generator = torch.Generator().manual_seed(seed)

    def samples(count: int) -> Tensor:
        return torch.randn(count, SIZE, generator=generator, dtype=torch.float64).to(dtype)

    return Task(
        model=_Point(torch.linspace(-1.0, 1.0, SIZE, dtype=torch.float64).to(dtype)),
        predict=displacements,
        criterion=Quadratic(hessian()),
        evaluation=[samples(3 + 2 * index) for index in range(evaluation)],
        train=[samples(4) for _ in range(train)],
        blocks={name: (BlockPart(block),) for name, block in BLOCKS.items()} if blocks else None,
    )


@cache
def quadratic_spectrum(dtype: torch.dtype = torch.float64) -> Spectrum:
    """The spectrum of `quadratic_task(dtype=dtype)`: four upper pairs, one lower."""
    return measure_spectrum(quadratic_task(dtype=dtype), top=4, bottom=1, probes=2, probe_steps=3, tolerance=1e-3)


def block_rows(block: str) -> FloatArray:
    """(N,) 1 at the parameters of a block."""
    labels = [np.full(int(np.prod(shape)), BLOCKS[name] == block) for name, shape in SHAPES.items()]
    return np.concatenate(labels).astype(np.float64)


def projectors(bands: Bands, size: int) -> list[FloatArray]:
    """The dense projector on every band, column by column."""
    units = torch.eye(size, dtype=torch.float64)
    return [torch.stack([bands.project(unit, [band]) for unit in units]).numpy() for band in range(len(bands))]


def dense_function(task: Task, directions: Sequence[Directions], power: float | None) -> FloatArray:
    """F^power as a matrix, or Q where `power` is None: rotated by Kronecker products, no `rotate` of ours.

    A piece's coordinates are x' = Q_Lᵀ X Q_R, row by row: (Q_L ⊗ Q_R)ᵀ vec(X).
    """
    layout = ParameterLayout(list(task.model.named_parameters()))
    offsets = {name: piece.offset for name, piece in zip(layout.names, layout.pieces, strict=True)}
    matrix = np.zeros((layout.size, layout.size))
    for one in directions:
        whole = torch.arange(layout.size)[offsets[one.piece.name] :][: one.piece.parameter.numel()]
        places = one.piece.view(whole.view(one.piece.parameter.shape))
        for index in range(len(places)):
            own = places[index].flatten().numpy()
            basis = np.eye(len(own))
            if one.left is not None or one.right is not None:
                left = np.eye(places.shape[1]) if one.left is None else one.left[index].double().numpy()
                right = np.eye(places.shape[2]) if one.right is None else one.right[index].double().numpy()
                basis = np.kron(left, right)
            source = one.flat if power is None else one.divisor.double() ** power
            spread = source.double().expand(places.shape) if source.ndim else source.double().repeat(places.shape)
            matrix[np.ix_(own, own)] = (basis * spread[index].flatten().numpy()) @ basis.T
    return matrix

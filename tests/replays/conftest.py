"""Tasks with known answers, and spectra that belong to them."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.results.spectrum import Spectrum
from lite_probe.task import Batch, Task
from tests import models


class Quadratic(nn.Module):
    """θ in two pieces, so that there are blocks; the loss is ½θᵀHθ whatever the batch."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(start[:3].clone())
        self.second = nn.Parameter(start[3:].clone())

    @property
    def flat(self) -> Tensor:
        return torch.cat([self.first, self.second])


class HalfForm:
    """Σ over samples of ½θᵀHθ + s·bᵀθ, with the sample's own s; the output is θ."""

    def __init__(self, matrix: Tensor, slope: Tensor | None = None) -> None:
        self.matrix = matrix
        self.slope = torch.zeros(len(matrix), dtype=matrix.dtype) if slope is None else slope

    def __call__(self, outputs: Tensor, batch: Tensor) -> tuple[Tensor, int]:
        noise = batch[:, 1].sum() * (self.slope @ outputs)
        return 0.5 * len(batch) * outputs @ self.matrix @ outputs + noise, len(batch)


def predict_parameters(model: nn.Module, batch: Any) -> Tensor:
    """Return θ."""
    flat: Tensor = model.flat  # type: ignore[assignment]
    return flat


def quadratic_task(matrix: Tensor, start: Tensor, *, train: int = 60, slope: Tensor | None = None) -> Task:
    """½θᵀHθ; batches are (id, noise) pairs, all different, and without a `slope` they do not matter."""
    generator = torch.Generator().manual_seed(3)

    def batch(index: int) -> Tensor:
        noise = torch.randn(2, generator=generator, dtype=matrix.dtype)
        return torch.stack([torch.tensor([2.0 * index, 2.0 * index + 1.0], dtype=matrix.dtype), noise], dim=1)

    evaluation = [torch.stack([torch.tensor([-1.0, -2.0], dtype=matrix.dtype), torch.zeros(2).to(matrix)], dim=1)]
    return Task(
        model=Quadratic(start),
        predict=predict_parameters,
        criterion=HalfForm(matrix, slope),
        evaluation=evaluation,
        train=[batch(index) for index in range(train)],
    )


def spectrum_of(task: Task, *, top: int = 3) -> Spectrum:
    """The task's own spectrum, with eigenvectors."""
    return measure_spectrum(task, top=top, bottom=0, probes=2, probe_steps=4, tolerance=1e-5)


def with_training(name: str, batches: int, dtype: torch.dtype = torch.float32) -> Task:
    """A small trained model of `tests.models` with training batches that it is not evaluated on."""
    task = models.make_task(name, dtype)
    if name == "mlp":
        task.train = points(batches, dtype)
    else:
        vocab = int(task.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        task.train = windows(vocab, batches)
    return task


def with_bad_gradient(task: Task, of: Batch) -> Task:
    """The same losses; the gradient of one batch is NaN."""
    whole = task.criterion

    def criterion(outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        loss, count = whole(outputs, batch)
        return (loss + (0.0 * outputs).sqrt().sum() if batch is of else loss), count

    return replace(task, criterion=criterion)


def points(count: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Batches of classified points, none of them those of `models.classification_batches`."""
    generator = torch.Generator().manual_seed(11)
    found = []
    for _ in range(count):
        inputs = torch.randn(6, 5, generator=generator)
        found.append((inputs.to(dtype), (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0.3).long()))
    return found


def windows(vocab: int, count: int) -> list[Tensor]:
    """Batches of the walks of `models.token_batches`, in windows longer than those evaluated on: none is the same."""
    generator = torch.Generator().manual_seed(12)
    return [torch.randint(0, 3, (3, 9), generator=generator).cumsum(dim=1).remainder(vocab) for _ in range(count)]


def powers(factors: Sequence[float] | np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """(count + 1, k): factors^0 … factors^count."""
    return np.array([np.asarray(factors) ** step for step in range(count + 1)])


def figures(record: Any) -> Any:
    """Everything measured, to the bit, but for seconds."""
    if isinstance(record, np.ndarray):
        return record.tobytes()
    if isinstance(record, tuple):
        return [figures(one) for one in record]
    if is_dataclass(record):
        return {one.name: figures(getattr(record, one.name)) for one in fields(record) if one.name != "seconds"}
    return record

"""Products by central differences: of the gradient for models without a double backward, of ∇_z ℓ as a check.

Hv ≈ (∇L(θ+εv) − ∇L(θ−εv))/2ε. Too small an ε drowns in rounding, too large a one in the third derivative, and the
right one scales with ‖θ‖/‖v‖; the step is chosen on the first product by comparing neighbouring steps.
"""

import itertools
import math

import torch
from torch import Tensor

from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.precision import multiplying_large
from lite_probe.task import Split, Task
from lite_probe.task.batches import parts_of
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import norm

_FACTOR = 4.0  # between neighbouring steps that are tried
_STEPS_TRIED = 5


class FiniteDifferenceOperator(SymmetricOperator):
    """H by central differences; weights are perturbed in place and restored bitwise, also when the loss raises.

    Attributes:
        relative_step: ε‖v‖/‖θ‖; None until `settle` or the first product chose it.
        relative_error: ‖difference to the neighbouring step‖/‖Hv‖ of that product, an estimate of the error.

    Cost of a product: two gradients; the first one ten.
    """

    def __init__(self, task: Task, layout: ParameterLayout, *, split: Split = "evaluation") -> None:
        first = layout.parameters[0]
        super().__init__(layout.whole_size, device=first.device, dtype=first.dtype, vector_size=layout.size)
        self.task = task
        self.layout = layout
        self.split: Split = split
        self.relative_step: float | None = None
        self.relative_error: float | None = None
        self._parameter_norm = self._length(*(p.detach().flatten() for p in layout.parameters))

    def settle(self, seed: int) -> None:
        """Choose the step on a random vector: whoever continues with the same seed chooses the same.

        Cost: ten gradients.
        """
        part = self.task.ranks.part(self.size) if self.vector_size < self.size else slice(0, self.size)
        vector = random_vector(
            self.size, seed=seed, dtype=self.dtype, device=self.device, start=part.start, stop=part.stop
        )
        self._choose_step(vector, self._length(vector))

    def _products(self, rows: Tensor) -> Tensor:
        return torch.stack([self._product(row) for row in rows])

    def _product(self, vector: Tensor) -> Tensor:
        length = self._length(vector)
        if length == 0.0:
            return torch.zeros_like(vector)
        if self.relative_step is None:
            self._choose_step(vector, length)
        return self._difference(vector, length, self.relative_step or 0.0)

    def _choose_step(self, vector: Tensor, length: float) -> None:
        """Try steps around eps^⅓ and keep the one that agrees best with its larger neighbour."""
        center = torch.finfo(self.dtype).eps ** (1.0 / 3.0)
        steps = [center * _FACTOR ** (index - _STEPS_TRIED // 2) for index in range(_STEPS_TRIED)]
        products = [self._difference(vector, length, step) for step in steps]
        apart = [self._length(a - b) / max(self._length(a), 1e-300) for a, b in itertools.pairwise(products)]
        best = min(range(len(apart)), key=apart.__getitem__)
        self.relative_step = steps[best]
        self.relative_error = apart[best]

    def _difference(self, vector: Tensor, length: float, relative_step: float) -> Tensor:
        # A model at the origin has no scale of its own; 1 stands in.
        epsilon = relative_step * (self._parameter_norm or 1.0) / length
        directions = self.layout.unflatten(vector)
        saved = [parameter.detach().clone() for parameter in self.layout.parameters]
        try:
            self._move(saved, directions, epsilon)
            ahead = self._read()
            self._move(saved, directions, -epsilon)
            behind = self._read()
        finally:
            self._move(saved, directions, 0.0)
        return self._pull_back((ahead - behind) / (2.0 * epsilon))

    def _length(self, *vectors: Tensor) -> float:
        """Return the norm of vectors (n,), one after another."""
        return math.hypot(*map(norm, vectors))

    def _read(self) -> Tensor:
        """Return what is differenced, at the weights as they stand: the gradient, (N,)."""
        return loss_and_gradient(self.task, self.layout, self.split).gradient

    def _pull_back(self, difference: Tensor) -> Tensor:
        """Turn a quotient of differences into the product, at the weights of the checkpoint."""
        return difference

    @torch.no_grad()
    def _move(self, saved: list[Tensor], directions: list[Tensor], step: float) -> None:
        """Set θ to `saved + step · direction`; a step of zero restores it bitwise."""
        for parameter, start, direction in zip(self.layout.parameters, saved, directions, strict=True):
            parameter.copy_(start if step == 0.0 else torch.add(start, direction, alpha=step))


class GaussNewtonDifferenceOperator(FiniteDifferenceOperator):
    """G = Jᵀ(∇²_z ℓ)J of summed losses, (∇²_z ℓ)Jv by central differences of ∇_z ℓ at the outputs z.

    Neither Jv nor ∇²_z ℓ is taken from autograd: a first derivative by z, and Jᵀ of the quotient, are all that is. It
    checks `GaussNewtonOperator`; divide by the count for the mean.

    Cost of a product: two forward passes and a gradient; the first one ten and six.
    """

    def _read(self) -> Tensor:
        """Return ∇_z ℓ of every batch, one after another, flat."""
        rows = []
        for _, batch in parts_of(self.task, self.split):
            with torch.no_grad(), multiplying_large(self.task.model, batch):
                outputs = self.task.predict(self.task.model, batch)
            free = outputs.requires_grad_()
            loss, _ = self.task.criterion(free, batch)
            rows.append(torch.autograd.grad(loss, free)[0].flatten())
        return torch.cat(rows)

    def _pull_back(self, difference: Tensor) -> Tensor:
        """Return Jᵀ of one entry per output: flat → (N,)."""
        product = torch.zeros(self.layout.size, dtype=self.dtype, device=self.device)
        start = 0
        for _, batch in parts_of(self.task, self.split):
            with multiplying_large(self.task.model, batch):
                outputs = self.task.predict(self.task.model, batch)
                rows = difference[start : start + outputs.numel()].view_as(outputs)
                start += outputs.numel()
                parts = torch.autograd.grad(outputs, self.layout.parameters, grad_outputs=rows, allow_unused=True)
            self.layout.accumulate(product, parts, 1.0)
        return product

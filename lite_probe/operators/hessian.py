"""Hessian and Gauss–Newton products by double backward, with graphs kept or rebuilt.

∇L is built once with its graph (`create_graph`), and every product is one backward pass through it:
Hv = ∂(∇L · v)/∂θ. A kept graph costs memory and saves rebuilding it; a rebuilt one serves several vectors.
Gauss–Newton uses the same trick for Jv: Jᵀu is built with its graph for a dummy u, and Jv = ∂(Jᵀu · v)/∂u.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lite_probe.criteria import CrossEntropy
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.guards import explain_autograd_error, require_double_backward
from lite_probe.operators.precision import Precision, multiplying_in, multiplying_large
from lite_probe.task import Batch, Split, Task
from lite_probe.task.batches import parts_of
from lite_probe.vectors.layout import ParameterLayout, require_whole


class _GraphOperator(SymmetricOperator):
    """Σ over batches of a product through a differentiable graph of one batch.

    Each rank goes through its own batches; their sums are added up once per product.

    Args:
        task: Model, loss, batches.
        layout: The parameters, or one block of them.
        count: Tokens or samples in all batches of the split.
        split: Which batches.
        graphs: The store of kept graphs; operators of one task share it, so that a block reuses the whole's.
        precision: What products are multiplied in. Graphs that are kept are built in float32 whatever it is: operators
            of either precision share them.

    Raises:
        InputError: If the model is sharded.
    """

    def __init__(
        self,
        task: Task,
        layout: ParameterLayout,
        *,
        count: int,
        split: Split = "evaluation",
        graphs: "GraphStore | None" = None,
        vectors_per_pass: int = 4,
        precision: Precision = "float32",
    ) -> None:
        require_whole(task.model.parameters())
        first = layout.parameters[0]
        super().__init__(layout.size, device=first.device, dtype=first.dtype)
        self.task = task
        self.layout = layout
        self.split: Split = split
        self.count = count
        self.graphs = graphs if graphs is not None else GraphStore(0)
        self.vectors_per_pass = vectors_per_pass
        self.precision: Precision = precision
        self.written: set[str] = set()  # functions met whose backward pass is written in Python

    def _products(self, rows: Tensor) -> Tensor:
        result = torch.zeros_like(rows)
        vectors = [self.layout.unflatten(row) for row in rows]
        try:
            for graph, batch in self._each_graph():
                for index, cotangent in enumerate(vectors):
                    with self._multiplying(batch):
                        product = self._through(graph, batch, cotangent)
                    self.layout.accumulate(result[index], product, 1.0)
                    del product  # before the next is made
                del graph  # before the next batch's graph is built
        except RuntimeError as error:
            explained = explain_autograd_error(error)
            if explained is None:
                raise
            raise explained from error
        # Weighted at the end: parts then add up to the same bits, whoever held them.
        return self.task.ranks.add_up(result).div_(self.count)

    def _each_graph(self) -> Iterator[tuple[Any, Batch]]:
        """Yield each part's graph: kept ones from the store, the others built and dropped."""
        for index, (_, batch) in enumerate(parts_of(self.task, self.split)):
            if index < self.graphs.capacity:
                if index not in self.graphs.kept:
                    with multiplying_large(self.task.model, batch):
                        self.graphs.kept[index] = self._build(batch, self.graphs.parameters)
                yield self._select(self.graphs.kept[index]), batch
            else:
                with self._multiplying(batch):
                    graph = self._build(batch, self.layout.parameters)
                yield graph, batch
                del graph

    def _multiplying(self, batch: Batch) -> AbstractContextManager[None]:
        if self.precision == "float32":
            return multiplying_large(self.task.model, batch)
        return multiplying_in(self.precision, self.device)

    def _select(self, graph: Any) -> Any:
        """Reduce a kept graph over all parameters to those of the layout."""
        positions = self.graphs.positions(self.layout.parameters)
        outputs, roots = graph
        return outputs, [roots[position] for position in positions]

    @abstractmethod
    def _build(self, batch: Batch, parameters: Sequence[nn.Parameter]) -> Any:
        """Build `(outputs, roots of the differentiable gradients)` of one batch."""

    @abstractmethod
    def _through(self, graph: Any, batch: Batch, cotangent: list[Tensor]) -> Sequence[Tensor | None]:
        """Return one batch's product, a tensor or None per parameter."""


class GraphStore:
    """Graphs that outlive one product, shared by all operators on the same batches.

    Args:
        capacity: Parts of this rank's batches whose graphs may be kept, the first ones.
        parameters: The parameters the kept graphs are differentiated by; any operator's are among them.
    """

    def __init__(self, capacity: int, parameters: Sequence[nn.Parameter] = ()) -> None:
        self.capacity = capacity
        self.parameters = list(parameters)
        self.kept: dict[int, Any] = {}
        self._position = {id(parameter): index for index, parameter in enumerate(self.parameters)}

    def positions(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        """Return where these parameters stand among the store's."""
        return [self._position[id(parameter)] for parameter in parameters]

    def clear(self) -> None:
        """Drop every kept graph and its memory."""
        self.kept.clear()


class HessianOperator(_GraphOperator):
    """H = ∇²L over a split's batches, the token-weighted mean of the batches' Hessians.

    Cost of a product: about 2 gradients through a kept graph, 3.2 with the graph rebuilt, shared by up to
    `vectors_per_pass` vectors.
    """

    def _build(self, batch: Batch, parameters: Sequence[nn.Parameter]) -> Any:
        loss, _ = self.task.loss(batch)
        if not loss.requires_grad:
            return None, [None] * len(parameters)
        self.written |= require_double_backward(loss)
        return None, _roots(torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True))

    def _through(self, graph: Any, batch: Batch, cotangent: list[Tensor]) -> Sequence[Tensor | None]:
        _, roots = graph
        used = [(root, vector) for root, vector in zip(roots, cotangent, strict=True) if root is not None]
        if not used:  # a loss linear in θ
            return [None] * len(cotangent)
        return torch.autograd.grad(
            [root for root, _ in used],
            self.layout.parameters,
            grad_outputs=[vector for _, vector in used],
            retain_graph=True,
            allow_unused=True,
        )


class GaussNewtonOperator(_GraphOperator):
    """G = Jᵀ(∇²_z ℓ)J over a split's batches, z the model's outputs; positive semidefinite for convex ℓ.

    The middle factor is the criterion's `hessian_product` in closed form where it has one, else autograd's
    through the criterion alone. Memory: a few arrays of the size of z.

    Cost of a product: about 1.4 gradients through a kept graph.
    """

    def _build(self, batch: Batch, parameters: Sequence[nn.Parameter]) -> Any:
        outputs = self.task.predict(self.task.model, batch)
        self.written |= require_double_backward(outputs)
        dummy = torch.zeros_like(outputs, requires_grad=True)
        gradients = torch.autograd.grad(outputs, parameters, grad_outputs=dummy, create_graph=True, allow_unused=True)
        return (outputs, dummy), _roots(gradients)

    def _through(self, graph: Any, batch: Batch, cotangent: list[Tensor]) -> Sequence[Tensor | None]:
        (outputs, dummy), roots = graph
        used = [(root, vector) for root, vector in zip(roots, cotangent, strict=True) if root is not None]
        if not used:
            return [None] * len(cotangent)
        (tangent,) = torch.autograd.grad(
            [root for root, _ in used],
            dummy,
            grad_outputs=[vector for _, vector in used],
            retain_graph=True,
        )
        return torch.autograd.grad(
            outputs,
            self.layout.parameters,
            grad_outputs=self._output_hessian(outputs.detach(), batch, _own(tangent, cotangent)),
            retain_graph=True,
            allow_unused=True,
        )

    def _output_hessian(self, outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        """Return ∇²_z ℓ · u for one batch; it may take the place of `tangent`."""
        criterion = self.task.criterion
        closed_form = getattr(criterion, "hessian_product", None)
        if isinstance(criterion, CrossEntropy) and type(criterion).hessian_product is CrossEntropy.hessian_product:
            return criterion.hessian_product(outputs, batch, tangent, out=tangent)
        if closed_form is not None:
            product: Tensor = closed_form(outputs, batch, tangent)
            return product
        free = outputs.requires_grad_()
        loss, _ = self.task.criterion(free, batch)
        self.written |= require_double_backward(loss)
        (gradient,) = torch.autograd.grad(loss, free, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(tangent)
        (product,) = torch.autograd.grad(gradient, free, grad_outputs=tangent)
        return product


def _roots(gradients: Sequence[Tensor | None]) -> list[GradientEdge | None]:
    """Return where to enter the gradients' graph: it needs not their values, which are as large as the parameters."""
    return [
        None if gradient is None or not gradient.requires_grad else get_gradient_edge(gradient)
        for gradient in gradients
    ]


def _own(tensor: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Return a derivative as a contiguous tensor that shares no memory with the vectors it was made of."""
    theirs = {other.untyped_storage().data_ptr() for other in others}
    return tensor.clone() if tensor.untyped_storage().data_ptr() in theirs else tensor.contiguous()

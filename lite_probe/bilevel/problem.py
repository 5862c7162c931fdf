"""What a decentralized bilevel problem is: n nodes, each with an upper and a lower loss of its own.

    min over x of (1/n) Σ fᵢ(x, y*(x)),   y*(x) = argmin over y of (1/n) Σ gᵢ(x, y)

Node i sees fᵢ and gᵢ alone. Its copies of x and y are row i of a stack, and a problem answers for all rows at once.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from lite_probe.errors import InputError, NumericsError
from lite_probe.seeds import derive_seed

_CURVATURE_PRODUCTS = 30  # at most, by which a lower level is tried for directions that curve down
_FLAT = 16.0  # roundings of the largest curvature, below which the smallest is none
_EXHAUSTED = 1e-6  # of a product, below which what the basis leaves of it is rounding

SECOND_ORDER = ("upper_gradients", "lower_gradient", "lower_hessian_product", "cross_product")
FIRST_ORDER = ("upper_gradients", "lower_gradient", "lower_gradients")


class BilevelProblem(Protocol):
    """Gradients and second-order products of every node, each on its own data.

    x is (n, dim_x), y and z are (n, dim_y): row i belongs to node i. Where every node is a process of its own the
    problem holds that one node, and n is 1. A method that draws samples takes `generator=`, a `torch.Generator` in the
    same state on every process: who draws for all nodes and keeps its own rows has the same iterates in one process
    and in many.

    Besides what is below, which all methods ask for, D-SOBA-SO and SPARKLE ask for `lower_hessian_product(x, y, z)`,
    ∇²ᵧᵧg z (n, dim_y), and `cross_product(x, y, z)`, ∇²ₓᵧg z (n, dim_x); D-SOBA-FO for `lower_gradients(x, y)`, ∇ₓg
    and ∇ᵧg. Where there is an `upper_loss(x, y)`, (n,), its mean over nodes is recorded.
    """

    @property
    def num_nodes(self) -> int:
        """Nodes that this process holds."""
        ...

    @property
    def dim_x(self) -> int:
        """Of the upper level."""
        ...

    @property
    def dim_y(self) -> int:
        """Of the lower level."""
        ...

    @property
    def upper_gradients(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Given x and y, return ∇ₓf (n, dim_x) and ∇ᵧf (n, dim_y)."""
        ...

    @property
    def lower_gradient(self) -> Callable[..., Tensor]:
        """Given x and y, return ∇ᵧg, (n, dim_y)."""
        ...


class Oracle:
    """Asks a problem for what a step needs, each answer drawn with a seed of its own, and counts.

    Args:
        problem: Who is asked.
        methods: Which of the problem's methods will be.
        seed: Of what the problem draws.

    Attributes:
        step: That is being made; sets what is drawn.
        gradients: Answers by each node so far. A second-order product counts as one.
    """

    def __init__(self, problem: BilevelProblem, methods: tuple[str, ...], seed: int) -> None:
        missing = [name for name in methods if not callable(getattr(problem, name, None))]
        if missing:
            raise InputError(
                f"expected a problem with {', '.join(methods)}, got {type(problem).__name__} without "
                f"{', '.join(missing)}",
                "docs/bilevel.md says what a problem has",
            )
        self._methods: dict[str, Callable[..., Any]] = {name: getattr(problem, name) for name in methods}
        self._drawing = {
            name for name, method in self._methods.items() if "generator" in inspect.signature(method).parameters
        }
        self._dims = (problem.dim_x, problem.dim_y)
        self._seed = seed
        self.step = 0
        self.gradients = 0

    def upper_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ∇ₓf and ∇ᵧf."""
        found: tuple[Tensor, Tensor] = self._ask("upper_gradients", self._dims, x, y)
        return found

    def lower_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return v = ∇ᵧg."""
        found: Tensor = self._ask("lower_gradient", self._dims[1:], x, y)
        return found

    def lower_hessian_product(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Return ∇²ᵧᵧg z."""
        found: Tensor = self._ask("lower_hessian_product", self._dims[1:], x, y, z)
        return found

    def cross_product(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Return ∇²ₓᵧg z."""
        found: Tensor = self._ask("cross_product", self._dims[:1], x, y, z)
        return found

    def differences(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ∇²ₓᵧg z and ∇²ᵧᵧg z as (∇g(x, y+δz) − ∇g(x, y−δz)) / 2δ, both ends on the same sample.

        δ‖z‖ is ε^⅓ (1 + ‖y‖) at every node, with ε of the element type: the difference's own error, of the order of its
        square, and that of rounding are then alike, 4e-11 in float64.
        """
        size = _lengths(z)
        reach = torch.finfo(y.dtype).eps ** (1 / 3) * (1.0 + _lengths(y))
        unit = torch.where(size > 0.0, z / size, torch.zeros_like(z))
        above = self._ask("lower_gradients", self._dims, x, y + reach * unit)
        below = self._ask("lower_gradients", self._dims, x, y - reach * unit)
        scale = 0.5 * size / reach
        return (above[0] - below[0]) * scale, (above[1] - below[1]) * scale

    def _ask(self, name: str, dims: tuple[int, ...], *at: Tensor) -> Any:
        self.gradients += 1
        if name in self._drawing:
            generator = torch.Generator(at[0].device).manual_seed(derive_seed(self._seed, name, self.step))
            found = self._methods[name](*(one.detach() for one in at), generator=generator)
        else:
            found = self._methods[name](*(one.detach() for one in at))
        answers = found if isinstance(found, tuple) else (found,)
        wanted = [(at[0].shape[0], dim) for dim in dims]
        got = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in answers]
        if got != wanted:
            raise InputError(f"expected {name} to return {wanted}, got {got}")
        plain = tuple(one.detach().to(at[0]) for one in answers)
        return plain if len(dims) > 1 else plain[0]


def require_strongly_convex(oracle: Oracle, x: Tensor, y: Tensor) -> None:
    """Refuse a lower level that curves down or is flat along some direction, as far as 30 Lanczos steps tell.

    Every node's own gᵢ is tried, at the start. The smallest Ritz value bounds the smallest eigenvalue from above, and
    is it where dim_y ≤ 30; who passes may still be refused by numbers that run away. Every product is taken less that
    with 0, so that noise which is added to both is no curvature.

    Raises:
        InputError: If some node's smallest Ritz value is not positive.
        NumericsError: If a product is not finite.

    Cost: up to 31 products, which are not counted.
    """
    num_nodes, size = y.shape
    count = min(size, _CURVATURE_PRODUCTS)
    generator = torch.Generator(y.device).manual_seed(0)

    def fresh() -> Tensor:
        return torch.randn(size, generator=generator, dtype=y.dtype, device=y.device).expand(num_nodes, size)

    vector = fresh()
    basis = torch.zeros(num_nodes, count, size, dtype=y.dtype, device=y.device)
    images = torch.zeros_like(basis)
    before = oracle.gradients
    at_zero = oracle.lower_hessian_product(x, y, torch.zeros_like(y))
    for place in range(count):
        rest = _orthogonal(vector, basis)
        exhausted = _lengths(rest) <= _EXHAUSTED * _lengths(vector)
        rest = torch.where(exhausted, _orthogonal(fresh(), basis), rest)
        basis[:, place] = rest / _lengths(rest)
        images[:, place] = oracle.lower_hessian_product(x, y, basis[:, place]) - at_zero
        vector = images[:, place]
    oracle.gradients = before
    if not torch.isfinite(images).all():
        worst = int((~torch.isfinite(images)).flatten(1).any(dim=1).int().argmax())
        raise NumericsError(
            f"expected finite products with ∇²ᵧᵧg at the start, got some that are not at node {worst}",
            "start elsewhere, or mend lower_hessian_product",
        )
    projected = torch.einsum("nmd,nkd->nmk", basis, images)
    values = torch.linalg.eigvalsh(0.5 * (projected + projected.mT))
    worst = int((values[:, 0] / values[:, -1].abs().clamp_min(1e-300)).argmin())
    smallest, largest = float(values[worst, 0]), float(values[worst].abs().max())
    if smallest <= _FLAT * torch.finfo(y.dtype).eps * largest:
        raise InputError(
            f"expected a strongly convex lower level, got curvature {smallest:.3g} at node {worst} (its largest is "
            f"{largest:.3g})",
            "add ½δ‖y‖² to every node's g, with δ above the most negative curvature",
        )


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """Return what a basis leaves of a vector, node by node; twice is enough."""
    for _ in range(2):
        vector = vector - torch.einsum("nm,nmd->nd", torch.einsum("nmd,nd->nm", basis, vector), basis)
    return vector


def _lengths(vectors: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return lengths

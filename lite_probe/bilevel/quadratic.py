"""A problem whose solution is known: quadratics that differ from node to node.

    gᵢ(x, y) = ½ yᵀAᵢy − yᵀ(Bᵢx + bᵢ)          y*(x) = Ā⁻¹(B̄x + b̄), with bars for means over nodes
    fᵢ(x, y) = ½ (y − cᵢ)ᵀDᵢ(y − cᵢ) + ½ρ‖x‖²

It is the example of docs/bilevel.md, and what every method is held against.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lite_probe.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticProblem:
    """Heterogeneous quadratics of n nodes.

    Attributes:
        A: (n, dim_y, dim_y) symmetric positive definite.
        B: (n, dim_y, dim_x).
        b: (n, dim_y).
        D: (n, dim_y, dim_y) symmetric positive semidefinite.
        c: (n, dim_y).
        rho: ρ > 0.
        noise: Standard deviation of what is added to every entry of every answer.
        node: The one that this process holds; None where it holds all.
    """

    A: Tensor
    B: Tensor
    b: Tensor
    D: Tensor
    c: Tensor
    rho: float = 0.1
    noise: float = 0.0
    node: int | None = None

    @classmethod
    def random(
        cls, num_nodes: int, dim_x: int, dim_y: int, *, spread: float = 1.0, noise: float = 0.0, seed: int = 0
    ) -> "QuadraticProblem":
        """Draw one whose nodes differ in all they have.

        Args:
            num_nodes: n.
            dim_x: Of the upper level.
            dim_y: Of the lower level.
            spread: How far nodes are from what they share, beside its size; 0 makes them equal.
            noise: Of the answers.
            seed: Of the draw.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "quadratic"))

        def draw(*shape: int) -> Tensor:
            shared = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return shared + spread * torch.randn(num_nodes, *shape, generator=generator, dtype=torch.float64)

        def positive(least: float) -> Tensor:
            root = draw(dim_y, dim_y) / dim_y**0.5
            bowl: Tensor = root @ root.mT / (1.0 + spread**2) + least * torch.eye(dim_y, dtype=torch.float64)
            return bowl

        return cls(
            A=positive(0.5),
            B=draw(dim_y, dim_x) / dim_x**0.5,
            b=draw(dim_y),
            D=positive(0.1),
            c=draw(dim_y),
            noise=noise,
        )

    def of_node(self, node: int) -> "QuadraticProblem":
        """Return the problem of a process that holds one node."""
        return replace(self, node=node)

    @property
    def num_nodes(self) -> int:
        """Nodes that this process holds."""
        return len(self.A) if self.node is None else 1

    @property
    def dim_x(self) -> int:
        """Of the upper level."""
        return self.B.shape[2]

    @property
    def dim_y(self) -> int:
        """Of the lower level."""
        return self.B.shape[1]

    def solution(self) -> tuple[Tensor, Tensor]:
        """Return x*, (dim_x,), and y*(x*), (dim_y,)."""
        inverse = torch.linalg.inv(self.A.mean(dim=0))
        slope, offset = inverse @ self.B.mean(dim=0), inverse @ self.b.mean(dim=0)
        pulled = torch.einsum("nij,nj->i", self.D, self.c) / len(self.D)
        curved = self.D.mean(dim=0)
        matrix = slope.mT @ curved @ slope + self.rho * torch.eye(self.dim_x, dtype=slope.dtype, device=slope.device)
        x = torch.linalg.solve(matrix, slope.mT @ (pulled - curved @ offset))
        return x, slope @ x + offset

    def upper_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return fᵢ, (n,)."""
        apart = y - self._own(self.c)
        bowl = 0.5 * torch.einsum("ni,nij,nj->n", apart, self._own(self.D), apart)
        return bowl + 0.5 * self.rho * x.square().sum(dim=1)

    def upper_gradients(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ρx and D(y − c)."""
        return (
            self._noisy(self.rho * x, generator),
            self._noisy(_times(self._own(self.D), y - self._own(self.c)), generator),
        )

    def lower_gradient(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return Ay − Bx − b."""
        return self._noisy(_times(self._own(self.A), y) - _times(self._own(self.B), x) - self._own(self.b), generator)

    def lower_gradients(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return −Bᵀy, and ∇ᵧg as `lower_gradient`."""
        return self._noisy(-_times(self._own(self.B).mT, y), generator), self.lower_gradient(x, y, generator=generator)

    def lower_hessian_product(self, x: Tensor, y: Tensor, z: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return Az."""
        return self._noisy(_times(self._own(self.A), z), generator)

    def cross_product(self, x: Tensor, y: Tensor, z: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return −Bᵀz."""
        return self._noisy(-_times(self._own(self.B).mT, z), generator)

    def _own(self, stack: Tensor) -> Tensor:
        return stack if self.node is None else stack[self.node : self.node + 1]

    def _noisy(self, answer: Tensor, generator: torch.Generator) -> Tensor:
        if self.noise == 0.0:
            return answer
        drawn = torch.randn(len(self.A), answer.shape[1], generator=generator, dtype=answer.dtype, device=answer.device)
        return answer + self.noise * self._own(drawn)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("nij,nj->ni", matrices, vectors)

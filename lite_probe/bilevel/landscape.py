"""How far to step along a few groups of directions, learned from nodes that keep their data: a bilevel problem.

Node i has the quadratic model −b_iᵀy + ½yᵀA_iy of its training loss along k groups of directions, and another of its
validation loss. The lower level damps each group, the upper one chooses the damping by what steps are worth on data
that they were not fitted to:

    g_i(x, y) = −b_iᵀy + ½yᵀ(A_i)₊y + ½ Σ_j (e^{x_j} + δ) y_j²
    f_i(x, y) = −b_iᵀy + ½yᵀ(A_i)₊y + ½ δ‖y‖²                      with b_i and A_i of the validation batches

(A_i)₊ is A_i without its negative eigenvalues: however negative the curvature that one node's few batches show, g_i is
strongly convex, and no step is worth more the longer it is. Groups are scaled beforehand, so that damping means alike.
"""

from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

FloatArray = NDArray[np.float64]

_LIMIT = 12.0  # |x_j| up to which the pooled solution is looked for: e¹² leaves nothing of a step, e⁻¹² all of it


class LandscapeProblem:
    """The models of n nodes along k groups.

    Args:
        gains: (n, k) b on training batches.
        curvatures: (n, k, k) A.
        validation_gains: (n, k) on validation batches.
        validation_curvatures: (n, k, k).
        ridge: δ > 0.
    """

    def __init__(
        self,
        gains: FloatArray,
        curvatures: FloatArray,
        validation_gains: FloatArray,
        validation_curvatures: FloatArray,
        *,
        ridge: float,
    ) -> None:
        self.gains = torch.from_numpy(np.array(gains))
        self.curvatures = _positive(curvatures)
        self.validation_gains = torch.from_numpy(np.array(validation_gains))
        self.validation_curvatures = _positive(validation_curvatures)
        self.validation_curvatures += ridge * torch.eye(self.gains.shape[1], dtype=torch.float64)
        self.ridge = ridge

    @property
    def num_nodes(self) -> int:
        """Nodes that this process holds."""
        return len(self.gains)

    @property
    def dim_x(self) -> int:
        """A damping for each group."""
        return self.gains.shape[1]

    @property
    def dim_y(self) -> int:
        """A multiple for each group."""
        return self.gains.shape[1]

    def of_node(self, node: int | None) -> "LandscapeProblem":
        """Return the problem of a process that holds one node; of all where None."""
        if node is None:
            return self
        own = copy(self)
        for name in ("gains", "curvatures", "validation_gains", "validation_curvatures"):
            setattr(own, name, getattr(self, name)[node : node + 1])
        return own

    def upper_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return f_i, (n,): change of the validation loss, nats."""
        bent = torch.einsum("ni,nij,nj->n", y, self.validation_curvatures, y)
        return 0.5 * bent - (self.validation_gains * y).sum(dim=1)

    def upper_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0 and A y − b of the validation batches."""
        return torch.zeros_like(x), _times(self.validation_curvatures, y) - self.validation_gains

    def lower_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (A₊ + e^x + δ)y − b."""
        return self.lower_hessian_product(x, y, y) - self.gains

    def lower_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ½e^x y², and ∇ᵧg as `lower_gradient`."""
        return 0.5 * x.exp() * y.square(), self.lower_gradient(x, y)

    def lower_hessian_product(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Return (A₊ + e^x + δ)z."""
        return _times(self.curvatures, z) + (x.exp() + self.ridge) * z

    def cross_product(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Return e^x y z."""
        return x.exp() * y * z

    @property
    def step_size(self) -> Tensor:
        """(n, 1) 1/L of each node: the longest step along the lower level that is stable without damping, halved."""
        largest: Tensor = torch.linalg.eigvalsh(self.curvatures)[:, -1:]
        return 1.0 / (largest + self.ridge)

    # -- with all data in one place ------------------------------------------------------------------------------

    def agreed(self, x: Tensor) -> Tensor:
        """Return y*(x) of all nodes together, (k,), for one damping, (k,)."""
        found: Tensor = torch.linalg.solve(self._curved(x), self.gains.mean(dim=0))
        return found

    def alone(self, x: Tensor) -> Tensor:
        """Return what each node's own training batches would have at one damping, (n, k)."""
        found: Tensor = torch.linalg.solve(self.curvatures + torch.diag(x.exp() + self.ridge), self.gains)
        return found

    def value(self, x: Tensor) -> float:
        """Return the upper loss of a damping, (k,): mean over nodes of f_i at y*(x)."""
        return float(self.upper_loss(x, self.agreed(x).expand(self.num_nodes, -1)).mean())

    def pooled(self) -> Tensor:
        """Return the damping that is best with all data in one place, (k,): a local minimum within |x_j| ≤ 12.

        Cost: some 100 solutions of k equations.
        """
        gains, bent = self.validation_gains.mean(dim=0), self.validation_curvatures.mean(dim=0)

        def loss_and_slope(values: FloatArray) -> tuple[float, FloatArray]:
            x = torch.from_numpy(values)
            y = self.agreed(x)
            z = torch.linalg.solve(self._curved(x), bent @ y - gains)
            return float(0.5 * y @ bent @ y - gains @ y), (-x.exp() * y * z).numpy()

        found = optimize.minimize(
            loss_and_slope,
            np.zeros(self.dim_x),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-_LIMIT, _LIMIT)] * self.dim_x,
            options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-12},
        )
        return torch.from_numpy(np.asarray(found.x, dtype=np.float64))

    def _curved(self, x: Tensor) -> Tensor:
        mean: Tensor = self.curvatures.mean(dim=0)
        return mean + torch.diag(x.exp() + self.ridge)


def _positive(matrices: FloatArray) -> Tensor:
    """Return symmetric matrices without their negative eigenvalues."""
    found = torch.from_numpy(np.array(matrices))
    values, vectors = torch.linalg.eigh(0.5 * (found + found.mT))
    positive: Tensor = (vectors * values.clamp_min(0.0).unsqueeze(1)) @ vectors.mT
    return positive


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("nij,nj->ni", matrices, vectors)

"""A physics-informed network as a task: any PyTorch model and loss can be measured.

    lite-probe spectrum --task examples/heat_equation.py:build --top 5

The network solves u_t = u_xx on x, t ∈ [0, 1] with u(x, 0) = sin πx and u = 0 at both ends.
"""

import math

import torch
from torch import Tensor, nn

from lite_probe.task import Task, TaskInfo

STEPS = 300


class Network(nn.Module):
    """(x, t) → u, with its residual in the equation and its error on the boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, points: Tensor) -> Tensor:
        """(n, 2) → (n, 3): the residual u_t − u_xx inside, and the errors at t = 0 and at the nearer end."""
        inside = points.clone().requires_grad_()
        u = self.layers(inside)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[:, 0].sum(), inside, create_graph=True)
        residual = slope[:, 1] - curvature[:, 0]
        x, t = points[:, :1], points[:, 1:]
        start = self.layers(torch.cat([x, torch.zeros_like(t)], dim=1)) - torch.sin(math.pi * x)
        ends = self.layers(torch.cat([x.round(), t], dim=1))
        return torch.cat([residual.unsqueeze(1), start, ends], dim=1)


def predict(model: nn.Module, points: Tensor) -> Tensor:
    """Apply the network to a batch of points."""
    errors: Tensor = model(points)
    return errors


def criterion(errors: Tensor, points: Tensor) -> tuple[Tensor, int]:
    """Return the summed squared error and the number of points."""
    return errors.square().sum(), len(points)


def build() -> Task:
    """Train the network for a few hundred steps and return it with fresh points to measure on."""
    torch.manual_seed(0)
    model, points = Network(), torch.rand(256, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, count = criterion(predict(model, points), points)
        (loss / count).backward()
        optimizer.step()
    model.zero_grad()
    fresh = torch.rand(256, 2, generator=torch.Generator().manual_seed(1))
    return Task(
        model=model,
        predict=predict,
        criterion=criterion,
        evaluation=[fresh],
        info=TaskInfo(name="heat", architecture="tanh network", data_name="random points", batch_size=len(fresh)),
    )

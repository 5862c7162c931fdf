"""Decentralized methods as their papers write them, with dense matrices in NumPy and nothing of the package's.

A level is a stack s, (n, dim); `gradient` maps it to the nodes' own gradients. Every function returns the stacks of all
steps, the start's first.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lite_probe.bilevel import QuadraticProblem

Matrix = NDArray[np.float64]
Gradient = Callable[[Matrix], Matrix]


def exact_diffusion(W: Matrix, gradient: Gradient, s: Matrix, size: float, steps: int) -> list[Matrix]:
    """Adapt, correct, combine: ψ⁺ = s − a∇(s), φ = ψ⁺ + s − ψ, s⁺ = W̄φ with W̄ = (I + W)/2."""
    mean, psi, path = (np.eye(len(W)) + W) / 2, s, [s]
    for _ in range(steps):
        adapted = s - size * gradient(s)
        s, psi = mean @ (adapted + s - psi), adapted
        path.append(s)
    return path


def extra(W: Matrix, gradient: Gradient, s: Matrix, size: float, steps: int) -> list[Matrix]:
    """s² = (I + W)s¹ − W̄s⁰ − a(∇(s¹) − ∇(s⁰)), from s¹ = Ws⁰ − a∇(s⁰); s⁰ is the same at all nodes."""
    eye, path = np.eye(len(W)), [s, W @ s - size * gradient(s)]
    for _ in range(steps - 1):
        before, now = path[-2:]
        path.append((eye + W) @ now - (eye + W) / 2 @ before - size * (gradient(now) - gradient(before)))
    return path


def atc_tracking(W: Matrix, gradient: Gradient, s: Matrix, size: float, steps: int) -> list[Matrix]:
    """s⁺ = W(s − at), t⁺ = W(t + ∇(s⁺) − ∇(s)), from t = W∇(s)."""
    tracker, path = W @ gradient(s), [s]
    for _ in range(steps):
        following = W @ (s - size * tracker)
        tracker, s = W @ (tracker + gradient(following) - gradient(s)), following
        path.append(s)
    return path


def semi_atc_tracking(W: Matrix, gradient: Gradient, s: Matrix, size: float, steps: int) -> list[Matrix]:
    """s⁺ = W(s − at), t⁺ = Wt + ∇(s⁺) − ∇(s), from t = ∇(s)."""
    tracker, path = gradient(s), [s]
    for _ in range(steps):
        following = W @ (s - size * tracker)
        tracker, s = W @ tracker + gradient(following) - gradient(s), following
        path.append(s)
    return path


def diging(W: Matrix, gradient: Gradient, s: Matrix, size: float, steps: int) -> list[Matrix]:
    """s⁺ = Ws − at, t⁺ = Wt + ∇(s⁺) − ∇(s), from t = ∇(s)."""
    tracker, path = gradient(s), [s]
    for _ in range(steps):
        following = W @ s - size * tracker
        tracker, s = W @ tracker + gradient(following) - gradient(s), following
        path.append(s)
    return path


TEXTBOOK = {
    "ed": exact_diffusion,
    "extra": extra,
    "gt": atc_tracking,
    "atc-gt": atc_tracking,
    "semi-atc-gt": semi_atc_tracking,
    "non-atc-gt": diging,
}


def strategy_matrices(name: str, W: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return A, B and C of a row of SPARKLE's table."""
    eye = np.eye(len(W))
    mean = (eye + W) / 2
    values, vectors = np.linalg.eigh(eye - mean)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    table = {
        "ed": (mean, root, eye),
        "extra": (eye, root, mean),
        "atc-gt": (W @ W, eye - W, eye),
        "semi-atc-gt": (W, eye - W, W),
        "non-atc-gt": (eye, eye - W, W @ W),
    }
    return table["atc-gt" if name == "gt" else name]


class Dense:
    """A quadratic problem's gradients in NumPy."""

    def __init__(self, problem: QuadraticProblem) -> None:
        self.A, self.B, self.b, self.D, self.c = (
            stack.numpy() for stack in (problem.A, problem.B, problem.b, problem.D, problem.c)
        )
        self.rho = problem.rho

    def v(self, x: Matrix, y: Matrix) -> Matrix:
        """Return ∇ᵧg."""
        v: Matrix = _times(self.A, y) - _times(self.B, x) - self.b
        return v

    def p(self, y: Matrix, z: Matrix) -> Matrix:
        """Return ∇²ᵧᵧg z − ∇ᵧf."""
        return _times(self.A, z) - _times(self.D, y - self.c)

    def h(self, x: Matrix, z: Matrix) -> Matrix:
        """Return ∇ₓf − ∇²ₓᵧg z."""
        return self.rho * x + _times(self.B.transpose(0, 2, 1), z)


def _times(matrices: Matrix, vectors: Matrix) -> Matrix:
    products: Matrix = np.einsum("nij,nj->ni", matrices, vectors)
    return products


def sparkle(
    problem: QuadraticProblem,
    W: Matrix,
    strategies: Mapping[str, str],
    sizes: Mapping[str, float],
    theta: float,
    start: Sequence[Matrix],
    steps: int,
) -> list[tuple[Matrix, Matrix, Matrix]]:
    """s⁺ = A(Cs − ad) − Be, e⁺ = e + Bs⁺ for y, z and x in turn, with e and B themselves; x, y and z of every step."""
    dense, s = Dense(problem), dict(zip("xyz", start, strict=True))
    matrices = {level: strategy_matrices(name, W) for level, name in strategies.items()}
    e = {level: np.zeros_like(stack) for level, stack in s.items()}
    r: Matrix | None = None
    path = [(s["x"], s["y"], s["z"])]

    def advance(level: str, direction: Matrix) -> None:
        A, B, C = matrices[level]
        s[level] = A @ (C @ s[level] - sizes[level] * direction) - B @ e[level]
        e[level] = e[level] + B @ s[level]

    for _ in range(steps):
        advance("y", dense.v(s["x"], s["y"]))
        advance("z", dense.p(s["y"], s["z"]))
        h = dense.h(s["x"], s["z"])
        r = h if r is None else (1 - theta) * r + theta * h
        advance("x", r)
        path.append((s["x"], s["y"], s["z"]))
    return path


def soba(
    problem: QuadraticProblem, inner_step: float, outer_step: float, steps: int
) -> list[tuple[Matrix, Matrix, Matrix]]:
    """One node, all three from the old iterates, as in benchopt's benchmark_bilevel: y −= ρv, z −= ρp, x −= γh."""
    dense = Dense(problem)
    x, y, z = np.zeros((1, problem.dim_x)), np.zeros((1, problem.dim_y)), np.zeros((1, problem.dim_y))
    path = [(x, y, z)]
    for _ in range(steps):
        implicit = dense.h(x, z)
        x, y, z = x - outer_step * implicit, y - inner_step * dense.v(x, y), z - inner_step * dense.p(y, z)
        path.append((x, y, z))
    return path

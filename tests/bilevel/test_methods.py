"""Every method's steps are those of its paper, and send what the docs say."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from lite_probe import bilevel
from lite_probe.bilevel import STRATEGIES, QuadraticProblem
from lite_probe.bilevel.solve import MethodName
from tests.bilevel.oracles import TEXTBOOK, Dense, Matrix, soba, sparkle, strategy_matrices

N, STEPS = 6, 200
RING = bilevel.mixing_matrix("ring", N)
# Rounding of two float64 orderings, 200 steps of contractions on iterates of size 1 to 10: some 1e-14.
TOLERANCE = 1e-12


def path_of(problem: QuadraticProblem, W: Matrix, steps: int, **options: Any) -> list[tuple[Matrix, Matrix]]:
    """Return the stacks x and y of every step."""
    path: list[tuple[Matrix, Matrix]] = []

    def measure(x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        path.append((x.numpy().copy(), y.numpy().copy()))
        return {}

    bilevel.solve(problem, W, steps=steps, record_every=1, measure=measure, **options)
    return path


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_level_follows_its_textbook_recursion(name: str) -> None:
    problem = QuadraticProblem.random(N, 2, 3, seed=4)
    problem = replace(problem, B=torch.zeros_like(problem.B))  # x has no say in y, which is then a method of one level
    dense, start = Dense(problem), np.zeros((N, 3))
    expected = TEXTBOOK[name](RING, lambda y: dense.v(np.zeros((N, 2)), y), start, 0.1, STEPS)
    got = path_of(problem, RING, STEPS, lower=name, step_sizes=(0.01, 0.1, 0.1))
    assert len(got) == STEPS + 1
    assert max(float(np.abs(y - want).max()) for (_, y), want in zip(got, expected, strict=True)) <= TOLERANCE
    assert float(np.abs(expected[-1]).max()) > 0.1


@pytest.mark.parametrize(("upper", "lower"), [*zip(STRATEGIES, reversed(STRATEGIES), strict=True), ("ed", "ed")])
def test_sparkle_is_the_recursion_of_s_and_e(upper: str, lower: str) -> None:
    problem = QuadraticProblem.random(N, 2, 3, seed=5)
    draw = np.random.default_rng(0)
    start = [draw.standard_normal((N, dim)) for dim in (2, 3, 3)]  # nodes begin apart
    sizes = {"x": 0.01, "y": 0.08, "z": 0.05}
    expected = sparkle(problem, RING, {"x": upper, "y": lower, "z": lower}, sizes, 0.3, start, STEPS)
    run = bilevel.solve(
        problem,
        RING,
        upper=upper,
        lower=lower,
        step_sizes=(0.01, 0.08, 0.05),
        theta=0.3,
        steps=STEPS,
        start=(torch.from_numpy(start[0]), torch.from_numpy(start[1]), torch.from_numpy(start[2])),
    )
    # e itself grows no longer than the iterates do, but it enters by B = (I − W)^½, whose own error is √ε at the 0.
    for got, want in zip((run.x, run.y, run.z), expected[-1], strict=True):
        assert float(np.abs(got.numpy() - want).max()) <= TOLERANCE


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_its_row_of_the_table(name: str) -> None:
    strategy = STRATEGIES[name]
    A, B, C = strategy_matrices(name, RING)
    W = (np.eye(N) + RING) / 2 if strategy.lazy else RING
    power = np.linalg.matrix_power
    assert np.abs(A - power(W, strategy.passed)).max() <= 1e-15
    assert np.abs(C - power(W, strategy.exchanges - strategy.passed)).max() <= 1e-15
    assert np.abs(B @ B - power(np.eye(N) - W, strategy.exchanges)).max() <= 1e-14
    ones = np.ones(N)
    assert max(np.abs(A @ ones - 1).max(), np.abs(C @ ones - 1).max()) <= 1e-14
    assert np.abs(B @ ones).max() <= 1e-7  # a root of rounding


def test_with_one_node_d_soba_is_soba() -> None:
    problem = QuadraticProblem.random(1, 3, 4, seed=6)
    expected = soba(problem, 0.1, 0.02, STEPS)
    run = bilevel.solve(problem, [[1.0]], method="dsoba-so", step_sizes=(0.02, 0.1, 0.1), theta=1.0, steps=STEPS)
    for got, want in zip((run.x, run.y, run.z), expected[-1], strict=True):
        assert float(np.abs(got.numpy() - want).max()) <= TOLERANCE
    assert float(run.x.abs().max()) > 0.01


def test_d_soba_steps_from_the_old_iterates_and_averages_after() -> None:
    problem = QuadraticProblem.random(N, 2, 3, seed=7)
    dense, theta, r = Dense(problem), 0.4, np.zeros((N, 2))
    x, y, z = np.zeros((N, 2)), np.zeros((N, 3)), np.zeros((N, 3))
    for step in range(50):
        v, p, h = dense.v(x, y), dense.p(y, z), dense.h(x, z)
        r = h if step == 0 else (1 - theta) * r + theta * h
        x, y, z = RING @ (x - 0.02 * r), RING @ (y - 0.1 * v), RING @ (z - 0.07 * p)
    run = bilevel.solve(problem, RING, method="dsoba-so", step_sizes=(0.02, 0.1, 0.07), theta=theta, steps=50)
    for got, want in zip((run.x, run.y, run.z), (x, y, z), strict=True):
        assert float(np.abs(got.numpy() - want).max()) <= TOLERANCE


def test_first_order_d_soba_is_the_second_order_one_within_the_differences_error() -> None:
    problem = QuadraticProblem.random(N, 2, 3, seed=7)
    methods: tuple[MethodName, ...] = ("dsoba-so", "dsoba-fo")
    second, first = (
        bilevel.solve(problem, RING, method=method, step_sizes=(0.02, 0.1, 0.1), steps=STEPS) for method in methods
    )
    # On a quadratic the difference has rounding alone: ε‖∇g‖/ε^⅓ = 4e-11 of size 10 and less, contracted from then on.
    apart = float((second.x - first.x).abs().max())
    assert 0.0 < apart <= 1e-8


@pytest.mark.parametrize(("upper", "lower"), list(product(("ed", "gt"), ("extra", "non-atc-gt"))))
def test_a_step_sends_what_is_said(upper: str, lower: str) -> None:
    problem = QuadraticProblem.random(N, 2, 3, seed=1)
    run = bilevel.solve(problem, RING, upper=upper, lower=lower, step_sizes=(0.01, 0.05, 0.05), steps=7, record_every=1)
    vectors = {"ed": 1, "extra": 1, "gt": 2, "non-atc-gt": 2}
    edges = 2 * N  # a ring's, each way
    messages = edges * (vectors[upper] + 2 * vectors[lower])
    floats = edges * (2 * vectors[upper] + (3 + 3) * vectors[lower])
    assert run.history.messages.tolist() == [messages * step for step in range(8)]
    assert run.history.floats.tolist() == [floats * step for step in range(8)]
    assert run.history.gradients.tolist() == [4 * step for step in range(8)]


@pytest.mark.parametrize("method", ["dsoba-so", "dsoba-fo"])
def test_d_soba_sends_one_vector_a_level(method: MethodName) -> None:
    problem = QuadraticProblem.random(N, 2, 3, seed=1)
    run = bilevel.solve(problem, RING, method=method, steps=5)
    assert run.history.messages[-1] == 5 * 2 * N * 3 * 2  # adaptive: a message more a level, of one number
    assert run.history.floats[-1] == 5 * 2 * N * (2 + 3 + 3 + 3)
    assert run.history.gradients[-1] == 5 * 4

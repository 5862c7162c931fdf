"""`solve`: repeatable, stopped and gone on with bitwise, what it records, and what it refuses."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe import bilevel
from lite_probe.bilevel import Adaptive, Fixed, QuadraticProblem, State, solve
from lite_probe.errors import InputError, LiteProbeError, NumericsError, UsageError

RING = bilevel.mixing_matrix("ring", 4)
PROBLEM = QuadraticProblem.random(4, 2, 3, seed=1)
NOISY = replace(PROBLEM, noise=0.1)
SIZES = (0.02, 0.1, 0.1)

RUNS: list[dict[str, Any]] = [
    {"upper": "gt", "lower": "ed", "step_sizes": SIZES},
    {"upper": "extra", "lower": "non-atc-gt", "step_sizes": SIZES},
    {"upper": "ed", "lower": "gt", "step_sizes": "adaptive"},
    {"method": "dsoba-so", "step_sizes": "adaptive"},
    {"method": "dsoba-fo", "step_sizes": SIZES},
    {"step_sizes": Fixed(*SIZES, decay=10.0)},
]


def iterates(run: bilevel.BilevelRun) -> list[Tensor]:
    return [run.x, run.y, run.z]


def same(first: bilevel.BilevelRun, second: bilevel.BilevelRun) -> bool:
    return all(torch.equal(one, other) for one, other in zip(iterates(first), iterates(second), strict=True))


@pytest.mark.parametrize("options", RUNS)
def test_a_run_is_repeatable_and_its_seed_matters(options: dict[str, Any]) -> None:
    first, again, other = (solve(NOISY, RING, steps=20, seed=seed, **options) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("options", RUNS)
def test_a_run_that_goes_on_is_the_one_that_never_stopped(options: dict[str, Any]) -> None:
    whole = solve(NOISY, RING, steps=40, record_every=5, **options)
    half = solve(NOISY, RING, steps=20, record_every=5, **options)
    kept = {name: tensor.clone() for name, tensor in half.state.tensors.items()}
    rest = solve(NOISY, RING, steps=40, record_every=5, start=half.state, **options)
    assert same(whole, rest)
    for name in ("step", "gradients", "floats", "messages", "upper_loss"):
        assert np.array_equal(getattr(whole.history, name), getattr(rest.history, name)), name
    for level in "xyz":
        assert np.array_equal(whole.history.consensus[level], rest.history.consensus[level])
    assert all(torch.equal(kept[name], tensor) for name, tensor in half.state.tensors.items())


def test_the_state_of_every_record_can_be_gone_on_with() -> None:
    states: list[State] = []
    whole = solve(NOISY, RING, steps=12, record_every=4, on_record=states.append)
    assert [state.step for state in states] == [4, 8, 12]
    assert all(same(whole, solve(NOISY, RING, steps=12, record_every=4, start=state)) for state in states)


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"method": "dsoba-so"}, r"a run by dsoba-so, Fixed, W \w+, got one by sparkle \(gt, ed\), Fixed, W"),
        ({"upper": "extra"}, r"by sparkle \(extra, ed\), .* got one by sparkle \(gt, ed\)"),
        ({"lower": "gt"}, r"by sparkle \(gt, gt\)"),
        ({"step_sizes": "adaptive"}, "AdaptiveSteps, W .*, got .* Fixed, W .*; give what the first run was given"),
        ({"mixing": bilevel.mixing_matrix("star", 4)}, r"W (\w+), got .* W (?!\1)"),
    ],
)
def test_a_state_of_another_kind_of_run_is_refused(changed: dict[str, Any], shown: str) -> None:
    state = solve(PROBLEM, RING, steps=3, step_sizes=SIZES).state
    with pytest.raises(UsageError, match=shown):
        solve(PROBLEM, **{"mixing": RING, "steps": 6, "step_sizes": SIZES, "start": state, **changed})


def test_a_state_past_the_steps_is_refused_and_one_at_them_is_where_the_run_ends() -> None:
    run = solve(PROBLEM, RING, steps=5)
    with pytest.raises(UsageError, match="at least the 5 steps that the state has made, got 4; steps are counted from"):
        solve(PROBLEM, RING, steps=4, start=run.state)
    again = solve(PROBLEM, RING, steps=5, start=run.state)
    assert same(run, again)
    assert np.array_equal(again.history.step, run.history.step)


def test_each_level_may_have_its_own_graph() -> None:
    graphs = {"x": "star", "y": "complete", "z": "ring"}
    mixing = {level: bilevel.mixing_matrix(name, 5) for level, name in graphs.items()}
    problem = replace(QuadraticProblem.random(5, 2, 3, spread=0.5, seed=0), rho=1.0)
    run = solve(problem, mixing, upper="gt", lower="ed", step_sizes=(0.05, 0.1, 0.1), theta=0.5, steps=800)
    assert float((run.x - problem.solution()[0]).abs().max()) <= 1e-9
    # Edges each way: star 8, complete 20, ring 10. Two vectors for x, one for y and z.
    assert run.history.messages[-1] == 800 * (2 * 8 + 20 + 10)
    assert run.history.floats[-1] == 800 * (2 * 8 * 2 + 20 * 3 + 10 * 3)
    swapped = solve(problem, {**mixing, "x": mixing["z"]}, step_sizes=(0.05, 0.1, 0.1), steps=10)
    assert not same(swapped, solve(problem, mixing, step_sizes=(0.05, 0.1, 0.1), steps=10))


def test_decaying_steps_are_shorter_by_their_law() -> None:
    """At one node and without curvature in the way, y's first steps are a(1 + t/T)^−p (Ay − b)."""
    alone = QuadraticProblem.random(1, 1, 2, seed=3)
    alone = replace(alone, B=torch.zeros_like(alone.B))
    run = solve(alone, [[1.0]], method="dsoba-so", step_sizes=Fixed(0.01, 0.2, 0.2, decay=3.0, power=0.7), steps=9)
    y = torch.zeros(2, dtype=torch.float64)
    for step in range(9):
        y = y - 0.2 * (1 + step / 3) ** -0.7 * (alone.A[0] @ y - alone.b[0])
    assert float((run.y[0] - y).abs().max()) <= 1e-14


def test_adaptive_steps_are_by_their_sums() -> None:
    """The formulas of `Adaptive`, at one node in NumPy."""
    alone = QuadraticProblem.random(1, 2, 3, seed=3)
    run = solve(alone, [[1.0]], method="dsoba-so", step_sizes=Adaptive(2.0, 3.0, 4.0), theta=1.0, steps=15)
    A, B, b, D, c = (getattr(alone, name)[0].numpy() for name in "ABbDc")
    x, y, z, S = np.zeros(2), np.zeros(3), np.zeros(3), dict.fromkeys("xyz", 0.0)
    for _ in range(15):
        d = {"y": A @ y - B @ x - b, "z": A @ z - D @ (y - c), "x": alone.rho * x + B.T @ z}
        S = {level: S[level] + float(d[level] @ d[level]) for level in S}
        waited = max(S["y"], S["z"])
        x = x - (2.0 / math.sqrt(S["x"] * waited) if S["x"] > 0.0 else 0.0) * d["x"]
        y, z = y - 3.0 / math.sqrt(S["y"]) * d["y"], z - 4.0 / math.sqrt(waited) * d["z"]
    for got, want in zip(iterates(run), (x, y, z), strict=True):
        assert float(np.abs(got[0].numpy() - want).max()) <= 1e-12


def test_a_run_records_what_it_says() -> None:
    told: list[tuple[int, int, str]] = []
    run = solve(
        PROBLEM,
        RING,
        steps=10,
        record_every=4,
        measure=lambda x, y: {"first": float(x[0, 0]), "far": float(y.abs().max())},
        on_progress=lambda done, steps, label: told.append((done, steps, label)),
    )
    history = run.history
    assert history.step.tolist() == [0, 4, 8, 10]
    assert history.measured["first"][-1] == float(run.x[0, 0])
    assert history.measured["far"][-1] == float(run.y.abs().max())
    for level, stack in zip("xyz", iterates(run), strict=True):
        wanted = float((stack - stack.mean(dim=0)).square().sum() / 4) ** 0.5
        assert history.consensus[level][-1] == pytest.approx(wanted, rel=1e-12)
        assert history.consensus[level][0] == 0.0
    assert history.upper_loss is not None
    assert history.upper_loss[-1] == pytest.approx(float(PROBLEM.upper_loss(run.x, run.y).mean()), rel=1e-12)
    assert [(done, steps) for done, steps, _ in told] == [(4, 10), (8, 10), (10, 10)]
    assert told[-1][2].startswith("consensus error ")
    assert f"upper loss {history.upper_loss[-1]:.4g}" in told[-1][2]
    assert run.state.step == 10


def test_by_default_some_two_hundred_records_are_kept() -> None:
    assert len(solve(PROBLEM, RING, steps=450).history.step) == 226


def test_recording_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    dense = solve(NOISY, RING, steps=20, record_every=1, measure=lambda x, y: {"x": float(x.sum())})
    assert torch.equal(before, torch.get_rng_state())
    assert same(dense, solve(NOISY, RING, steps=20, record_every=20))


class Own:
    """The quadratic behind a door at which a test can stand."""

    def __init__(self, **instead: Callable[..., Any]) -> None:
        self.num_nodes, self.dim_x, self.dim_y = 4, 2, 3
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        if name in self._instead:
            return self._instead[name]
        if name in ("upper_gradients", "lower_gradient", "lower_gradients", "lower_hessian_product", "cross_product"):
            return lambda *at: getattr(PROBLEM, name)(*at, generator=torch.Generator())
        raise AttributeError(name)


class OnlyGradients:
    """What D-SOBA-FO asks for, and no more."""

    num_nodes, dim_x, dim_y = 4, 2, 3

    def upper_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return PROBLEM.upper_gradients(x, y, generator=torch.Generator())

    def lower_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return PROBLEM.lower_gradient(x, y, generator=torch.Generator())


class WithBothGradients(OnlyGradients):
    def lower_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return PROBLEM.lower_gradients(x, y, generator=torch.Generator())


def test_a_problem_has_what_its_method_asks_for() -> None:
    with pytest.raises(
        InputError, match="got OnlyGradients without lower_hessian_product, cross_product; docs/bilevel"
    ):
        solve(OnlyGradients(), RING, steps=1)
    with pytest.raises(InputError, match="got OnlyGradients without lower_gradients"):
        solve(OnlyGradients(), RING, steps=1, method="dsoba-fo")
    run = solve(WithBothGradients(), RING, steps=10, method="dsoba-fo")
    assert run.history.upper_loss is None
    assert same(run, solve(PROBLEM, RING, steps=10, method="dsoba-fo"))


def nothing(*at: Tensor) -> Tensor:
    return torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("lower_gradient", lambda x, y: y[:, :1], r"lower_gradient to return \[\(4, 3\)\], got \[\(4, 1\)\]"),
        ("lower_gradient", lambda x, y: y.numpy(), r"lower_gradient to return \[\(4, 3\)\], got \['ndarray'\]"),
        ("lower_gradient", lambda x, y: (y, y), r"to return \[\(4, 3\)\], got \[\(4, 3\), \(4, 3\)\]"),
        ("lower_gradient", lambda x, y: None, r"got \['NoneType'\]"),
        ("upper_gradients", lambda x, y: (y, x), r"return \[\(4, 2\), \(4, 3\)\], got \[\(4, 3\), \(4, 2\)\]"),
        ("upper_gradients", lambda x, y: x, r"upper_gradients to return \[\(4, 2\), \(4, 3\)\], got \[\(4, 2\)\]"),
        ("cross_product", lambda x, y, z: z, r"cross_product to return \[\(4, 2\)\], got \[\(4, 3\)\]"),
        ("lower_hessian_product", lambda x, y, z: z.sum(), r"product to return \[\(4, 3\)\], got \[\(\)\]"),
    ],
)  # fmt: skip
def test_answers_of_another_shape_are_refused(name: str, answer: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(Own(**{name: answer}), RING, steps=1)


def test_answers_may_be_whole_numbers_their_input_or_still_in_a_graph() -> None:
    """∇ᵧg = y, of f with whole gradients: y stays at its start's ray, and nothing keeps a graph alive."""
    ones = torch.ones(4, 2, dtype=torch.int64)
    own = Own(
        lower_gradient=lambda x, y: y,
        lower_hessian_product=lambda x, y, z: z,
        cross_product=lambda x, y, z: x.requires_grad_() * 0.0,
        upper_gradients=lambda x, y: (ones, torch.ones(4, 3, dtype=torch.float32)),
    )
    start = (torch.zeros(2).double(), torch.ones(3).double(), torch.zeros(3).double())
    run = solve(own, RING, steps=5, step_sizes=(0.1, 0.5, 0.25), theta=1.0, start=start)
    assert not any(tensor.requires_grad for tensor in run.state.tensors.values())
    assert {tensor.dtype for tensor in run.state.tensors.values()} == {torch.float64}
    assert float((run.y - 0.5**5).abs().max()) <= 1e-15
    assert float((run.x + 0.5).abs().max()) <= 1e-15
    assert float((run.z - (1 - 0.75**5)).abs().max()) <= 1e-15


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x, y: 0.5, r"upper_loss to return \(4,\), got float"),
        (lambda x, y: x.sum(), r"upper_loss to return \(4,\), got \(\)"),
        (lambda x, y: x, r"upper_loss to return \(4,\), got \(4, 2\)"),
    ],
)
def test_an_upper_loss_is_one_number_for_each_node(answer: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(Own(upper_loss=answer), RING, steps=1)


def test_what_records_look_at_is_left_as_it_was() -> None:
    def measure(x: Tensor, y: Tensor) -> dict[str, float]:
        return {"x": float((x.requires_grad_() * y.requires_grad_().sum()).sum().detach())}

    own = Own(upper_loss=lambda x, y: x.requires_grad_().sum(dim=1) + y.requires_grad_().sum(dim=1))
    run = solve(own, RING, steps=3, record_every=1, measure=measure)
    assert not any(tensor.requires_grad for tensor in run.state.tensors.values())


def bowl(dim: int, smallest: float, *, seed: int = 0) -> Tensor:
    """Return a dense (1, dim, dim) matrix with eigenvalues from 1 to 2 but for the smallest."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)).double()).Q
    values = torch.linspace(1.0, 2.0, dim).double()
    values[0] = smallest
    matrix: Tensor = (basis * values) @ basis.mT
    return matrix[None]


def with_lower(A: Tensor, nodes: int = 2) -> QuadraticProblem:
    """Return a problem whose last node's lower level is A, the others' the identity."""
    dim = A.shape[-1]
    problem = QuadraticProblem.random(nodes, 1, dim, seed=0)
    eye = torch.eye(dim, dtype=torch.float64).expand(nodes - 1, dim, dim)
    return replace(problem, A=torch.cat([eye, A]))


@pytest.mark.parametrize("dim", [1, 2, 5, 29, 30, 31, 300])
def test_a_lower_level_that_curves_down_is_refused(dim: int) -> None:
    W = bilevel.mixing_matrix("complete", 2)
    # Where dim > 30 the 30 products tell of −0.5 apart from [1, 2] by far: a Lanczos value converges on an outlier.
    with pytest.raises(InputError, match=r"strongly convex lower level, got curvature -0.5 at node 1 \(its largest is"):
        solve(with_lower(bowl(dim, -0.5)), W, steps=1)
    with pytest.raises(InputError, match=r"got curvature \S+ at node 1 .*; add ½δ‖y‖² to every node's g, with δ above"):
        solve(with_lower(bowl(dim, 0.0)), W, steps=1) if dim <= 30 else solve(with_lower(bowl(dim, -0.01)), W, steps=1)
    solve(with_lower(bowl(dim, 0.01)), W, steps=1)


@pytest.mark.parametrize("shape", ["identity", "of rank one and a ridge", "stiff"])
def test_curvature_that_repeats_is_no_lack_of_it(shape: str) -> None:
    """The Krylov space is exhausted after one or two products, and what is left is rounding."""
    eye = torch.eye(20, dtype=torch.float64)
    row = torch.linspace(0.0, 1.0, 20, dtype=torch.float64)
    A = {"identity": 2.0 * eye, "of rank one and a ridge": 0.1 * eye + torch.outer(row, row), "stiff": 1e-6 * eye}[
        shape
    ]
    if shape == "stiff":
        A[0, 0] = 1.0
    solve(with_lower(A[None]), bilevel.mixing_matrix("complete", 2), steps=1)
    with pytest.raises(InputError, match="got curvature 0 at node 1"):
        solve(with_lower(torch.zeros(1, 20, 20).double()), bilevel.mixing_matrix("complete", 2), steps=1)


def test_noise_in_products_is_no_curvature() -> None:
    for seed in range(5):
        solve(replace(PROBLEM, noise=3.0), RING, steps=1, seed=seed)
    with pytest.raises(InputError, match="strongly convex"):
        solve(replace(with_lower(bowl(5, -0.5)), noise=3.0), bilevel.mixing_matrix("complete", 2), steps=1)


def test_the_check_of_the_lower_level_is_not_counted() -> None:
    assert solve(PROBLEM, RING, steps=1, record_every=1).history.gradients.tolist() == [0, 4]


def test_in_float32_a_flat_direction_is_still_found() -> None:
    """A of rank 2 of 3: its smallest eigenvalue comes out as rounding of the largest, of either sign."""
    for seed in range(6):
        root = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(seed))
        flat = replace(PROBLEM, **{name: getattr(PROBLEM, name).float() for name in "BbDc"}, A=root @ root.mT)
        with pytest.raises(InputError, match="strongly convex"):
            solve(flat, RING, steps=1, start=(torch.zeros(2), torch.zeros(3), torch.zeros(3)))


def test_numbers_that_are_none_are_refused() -> None:
    bad = replace(PROBLEM, A=PROBLEM.A.clone())
    bad.A[2, 0, 0] = math.nan
    with pytest.raises(
        NumericsError, match="finite products with ∇²ᵧᵧg at the start, got some that are not at node 2; st"
    ):
        solve(bad, RING, steps=1)
    for name in ("upper_gradients", "lower_gradient", "cross_product"):
        dims = {"upper_gradients": (2, 3), "lower_gradient": (3,), "cross_product": (2,)}[name]
        answers = tuple(torch.full((4, dim), math.nan) for dim in dims)
        own = Own(**{name: lambda *at, found=answers: found if len(found) > 1 else found[0]})
        with pytest.raises(NumericsError, match="got some that are not within the first 3 steps; lower the step sizes"):
            solve(own, RING, steps=9, record_every=3)


def test_divergence_is_told() -> None:
    with pytest.raises(NumericsError, match='within the first 1,000 steps; lower the step sizes, or take "adaptive"'):
        solve(PROBLEM, RING, steps=1000, record_every=1000, step_sizes=(5.0, 5.0, 5.0))


START = tuple(torch.zeros(dim, dtype=torch.float64) for dim in (2, 3, 3))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": "soba"}, UsageError, "expected a method among dsoba-so, dsoba-fo, sparkle, got 'soba'"),
        ({"upper": "x"}, UsageError, "expected upper among ed, extra, gt, atc-gt, semi-atc-gt, non-atc-gt, got 'x'"),
        ({"lower": "GT"}, UsageError, "expected lower among ed, .*, got 'GT'"),
        ({"theta": 0.0}, UsageError, r"expected theta in \(0, 1\], got 0"),
        ({"theta": 1.5}, UsageError, r"expected theta in \(0, 1\], got 1.5"),
        ({"theta": math.nan}, UsageError, r"expected theta in \(0, 1\], got nan"),
        ({"steps": 0}, UsageError, "expected at least one step, got 0"),
        ({"record_every": 0}, UsageError, "expected a record every 1 or more steps, got 0"),
        ({"record_every": -2}, UsageError, "expected a record every 1 or more steps, got -2"),
        (
            {"step_sizes": (0.1, 0.1)},
            UsageError,
            r'step sizes \(x, y, z\), "adaptive", Fixed\(…\) or Adaptive\(…\), got',
        ),
        ({"step_sizes": "auto"}, UsageError, "expected step sizes .*, got 'auto'"),
        ({"step_sizes": (0.1, -0.1, 0.1)}, UsageError, "expected step sizes above 0, got 0.1, -0.1, 0.1"),
        ({"step_sizes": (0.1, math.nan, 0.1)}, UsageError, "expected step sizes above 0, got 0.1, nan, 0.1"),
        ({"mixing": {"x": RING, "y": RING}}, UsageError, "a mixing matrix for each of x, y and z, got x, y"),
        ({"mixing": {"x": RING, "y": RING, "z": np.eye(4)}}, InputError, "connected graph"),
        ({"mixing": {"x": RING, "y": RING, "z": 2 * RING}}, InputError, "expected rows of W of z that sum to 1, got 2"),
        ({"mixing": np.eye(3)}, InputError, r"expected W of 4 × 4, a row for each node, got \(3, 3\)"),
        ({"start": START[:2]}, InputError, r"expected a start of three tensors, x, y and z, got \("),
        ({"start": ([0.0], [0.0], [0.0])}, InputError, "expected a start of three tensors"),
        ({"start": (START[1], *START[1:])}, InputError, r"expected a start for x of 4 × 2 or 2, got \(3,\)"),
        (
            {"start": (START[0].long(), START[1].long(), START[2].long())},
            InputError,
            "of one floating-point type on one device to start from, got torch.int64",
        ),
        (
            {"start": (START[0].float(), *START[1:])},
            InputError,
            "got torch.float32 on cpu, torch.float64 on cpu, torch",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], kind: type[LiteProbeError], message: str) -> None:
    with pytest.raises(kind, match=message):
        solve(PROBLEM, **{"mixing": RING, "steps": 2, **options})


def test_fixed_and_adaptive_refuse_what_is_not_positive() -> None:
    with pytest.raises(UsageError, match=r"above 0, got 0\.1, 0\.1, 0\.1, 0"):
        Fixed(0.1, 0.1, 0.1, decay=0.0)
    with pytest.raises(UsageError, match="expected a power above 0 for decaying steps, got 0"):
        Fixed(0.1, 0.1, 0.1, decay=1.0, power=0.0)
    with pytest.raises(UsageError, match="above 0, got 0, 10, 10"):
        Adaptive(x=0.0)


def test_every_record_holds_the_same() -> None:
    half = solve(PROBLEM, RING, steps=4, record_every=2)
    with pytest.raises(InputError, match="every record to hold the same, got measured far in some; measure the same"):
        solve(PROBLEM, RING, steps=8, record_every=2, start=half.state, measure=lambda x, y: {"far": 1.0})


def test_a_start_may_be_one_row_a_stack_or_not_contiguous() -> None:
    rows = tuple(torch.linspace(-1.0, 1.0, dim, dtype=torch.float64) for dim in (2, 3, 3))
    one = solve(PROBLEM, RING, steps=5, start=(rows[0], rows[1], rows[2]))
    stacks = tuple(row.expand(4, -1).clone() for row in rows)
    turned = tuple(row[:, None].repeat(1, 4).mT for row in rows)
    assert not turned[0].is_contiguous()
    for start in (stacks, turned, tuple(row[None] for row in rows)):
        assert same(one, solve(PROBLEM, RING, steps=5, start=(start[0], start[1], start[2])))
    assert all(torch.equal(stack, row.expand(4, -1)) for stack, row in zip(stacks, rows, strict=True))
    assert not same(one, solve(PROBLEM, RING, steps=5))


def test_the_element_type_is_that_of_the_start() -> None:
    single = replace(PROBLEM, **{name: getattr(PROBLEM, name).float() for name in "ABbDc"})
    for method in bilevel.METHODS:
        start = (torch.zeros(2), torch.zeros(3), torch.zeros(3))
        run = solve(single, RING, steps=50, start=start, step_sizes=SIZES, method=method)  # type: ignore[arg-type]
        double = solve(PROBLEM, RING, steps=50, step_sizes=SIZES, method=method)  # type: ignore[arg-type]
        assert {tensor.dtype for tensor in run.state.tensors.values()} == {torch.float32}
        # ε of float32 is 1.2e-7, of a difference along z ε^⅔ = 2.4e-5; iterates are of size 1, errors contract.
        assert float((run.x - double.x).abs().max()) <= (1e-3 if method == "dsoba-fo" else 1e-5)


@pytest.mark.parametrize("nodes", [1, 2])
def test_few_nodes_and_single_dimensions_work(nodes: int) -> None:
    problem = replace(QuadraticProblem.random(nodes, 1, 1, spread=0.3, seed=2), rho=1.0)
    W = bilevel.mixing_matrix("ring", nodes)
    for upper, lower in (("gt", "ed"), ("extra", "non-atc-gt")):
        run = solve(problem, W, upper=upper, lower=lower, step_sizes=(0.05, 0.1, 0.1), theta=0.5, steps=800)
        assert float((run.x - problem.solution()[0]).abs().max()) <= 1e-9
    assert (run.history.messages[-1] == 0) == (nodes == 1)
    solve(problem, W, steps=5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_cuda_device_is_that_on_the_cpu() -> None:
    there = replace(PROBLEM, **{name: getattr(PROBLEM, name).cuda() for name in "ABbDc"})
    start = tuple(torch.zeros(dim, dtype=torch.float64, device="cuda") for dim in (2, 3, 3))
    run = solve(there, RING, steps=50, step_sizes=SIZES, start=(start[0], start[1], start[2]))
    assert run.x.is_cuda
    assert float((run.x.cpu() - solve(PROBLEM, RING, steps=50, step_sizes=SIZES).x).abs().max()) <= 1e-12
    noisy = replace(there, noise=0.1)
    first, again = (solve(noisy, RING, steps=5, start=(start[0], start[1], start[2])) for _ in range(2))
    assert same(first, again)

"""What an optimizer's state says of directions, against the steps that it makes."""

import copy
import weakref

import pytest
import torch

from lite_probe.optim import LiteOptimizer, make_optimizer
from lite_probe.task import Task
from tests import models
from tests.dispatch import Watch


def after_steps(name: str, steps: int = 12, **hyperparameters: object) -> tuple[Task, LiteOptimizer]:
    """An optimizer that has seen the same gradient again and again, its parameters where they were."""
    task = models.make_task("llama", torch.float64)
    optimizer = make_optimizer(name, task.model.named_parameters(), lr=0.0, **hyperparameters)
    loss, count = task.loss(task.evaluation[0])
    (loss / count).backward()  # type: ignore[no-untyped-call]
    for _ in range(steps):
        optimizer.step()
    return task, optimizer


@pytest.mark.parametrize("name", ["adamw", "muon", "soap", "adamw-lite", "muon-lite", "soap-lite"])
def test_coordinates_are_rotations_and_pieces_partition(name: str) -> None:
    task, optimizer = after_steps(name)
    covered = 0
    for one in optimizer.directions():
        weights = one.piece.view(one.piece.parameter.detach())
        covered += weights.numel()
        for basis in (one.left, one.right):
            if basis is not None:
                identity = torch.eye(basis.shape[-1], dtype=basis.dtype)
                assert float((basis.mT @ basis - identity).abs().max()) < 1e-10
        torch.testing.assert_close(one.rotate_back(one.rotate(weights)), weights, rtol=0, atol=1e-12)
        assert float(one.flat.min()) >= 0.0
        assert float(one.flat.max()) <= 1.0
        assert one.distinguishes == (name.endswith("-lite") and one.piece.block != "out")
    assert covered == sum(p.numel() for p in task.model.parameters())


@pytest.mark.parametrize(("name", "betas"), [("adamw", (0.9, 0.9)), ("soap", (0.9, 0.9))])
def test_the_divisor_is_the_steps(name: str, betas: tuple[float, float]) -> None:
    """A steady gradient: the next step is −lr · rotate_back(rotate(g)/divisor), once averages are full.

    With b = 0.9 they are to 0.9⁶⁰ = 2e-3 after 60 steps, and bias correction takes out most of that.
    """
    settings = {"adamw_beta1": betas[0], "adamw_beta2": betas[1]} if name == "adamw" else {"betas": betas}
    _, optimizer = after_steps(name, 60, weight_decay=0.0, **settings)
    directions = {one.piece.name: one for one in optimizer.directions()}
    before = {one.piece.name: one.piece.parameter.detach().clone() for one in directions.values()}
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    for key, one in directions.items():
        gradient = one.piece.parameter.grad
        assert gradient is not None
        predicted = -1e-3 * one.rotate_back(one.rotate(one.piece.view(gradient)) / one.divisor)
        moved = one.piece.view(one.piece.parameter.detach() - before[key])
        torch.testing.assert_close(moved, predicted, rtol=2e-2, atol=1e-8)


def test_muons_divisor_turns_its_momentum_into_its_step() -> None:
    """F⁻¹M = msign(M), whatever msign is exactly: F's values are σ/o."""
    _, optimizer = after_steps("muon", 200, weight_decay=0.0)
    directions = [one for one in optimizer.directions() if one.piece.geometry.name == "orthogonal"]
    momenta = {one.piece.name: optimizer.state[one.piece.parameter]["momentum"].clone() for one in directions}
    before = {one.piece.name: one.piece.parameter.detach().clone() for one in directions}
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    assert len(directions) == 14
    for one in directions:
        momentum = one.piece.view(momenta[one.piece.name])
        predicted = -1e-3 * one.rotate_back(one.rotate(momentum) / one.divisor)
        moved = one.piece.view(one.piece.parameter.detach() - before[one.piece.name])
        # The Nesterov term and the last average change M by a scale only, which msign does not see.
        torch.testing.assert_close(moved, predicted, rtol=1e-3, atol=1e-8)


def test_muons_flat_weights_are_its_projectors() -> None:
    """Q = I − SᵀS is diagonal in the right singular vectors of the momentum, with these numbers."""
    from lite_probe.optim.msign import _above_threshold, _sign

    _, optimizer = after_steps("muon-lite", 40)
    for one in optimizer.directions():
        if one.piece.geometry.name != "orthogonal":
            continue
        group = next(g for g in optimizer.param_groups if g["block"] == one.piece.block)
        momentum = one.piece.view(optimizer.state[one.piece.parameter]["momentum"])
        threshold = optimizer.state[one.piece.parameter]["threshold"].reshape(1, 1, 1)
        sharp = _above_threshold(momentum, _sign(momentum, group), threshold, group)
        assert one.right is not None
        projector = torch.eye(momentum.shape[-1], dtype=momentum.dtype) - sharp.mT @ sharp
        rotated = one.right.mT @ projector @ one.right
        expected = rotated.diagonal(dim1=-2, dim2=-1).clamp(0.0, 1.0)
        torch.testing.assert_close(one.flat[:, 0], expected, rtol=0, atol=1e-9)


def test_reading_changes_nothing() -> None:
    """The steps after it are bitwise those without it."""
    ends = []
    for read in (False, True):
        _, optimizer = after_steps("soap-lite", 5)
        if read:
            optimizer.directions()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        ends.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_before_the_first_step_nothing_is_rotated() -> None:
    task = models.make_task("llama", torch.float64)
    optimizer = make_optimizer("soap", task.model.named_parameters(), lr=0.1)
    for one in optimizer.directions():
        assert one.left is None
        assert one.right is None
        assert float(one.proxy.abs().max()) == 0.0


def drawn(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Matrices (3, m, n) as a float32 average may be: of spread, of few, of equal or of no singular values."""
    rows, columns = {"tall": (40, 12), "square": (24, 24)}.get(kind, (12, 40))
    count = min(rows, columns)
    sizes = torch.exp(-0.8 * torch.arange(count, dtype=torch.float64))
    if kind == "few":
        sizes[5:] = 0.0
    if kind == "equal":
        sizes[:] = 0.3
    u, v = (
        torch.linalg.qr(torch.randn(3, n, count, generator=generator, dtype=torch.float64))[0] for n in (rows, columns)
    )
    return ((u * sizes) @ v.mT).float() * (kind != "zero")


@pytest.mark.parametrize("kind", ["tall", "square", "wide", "few", "equal", "zero"])
def test_muons_coordinates_are_those_of_a_singular_value_decomposition(kind: str) -> None:
    """Through the smaller Gram matrix, in float64: σ and leading directions agree with the decomposition's.

    σ is known to √eps·σ₁ = 1.5e-8 at worst, far below what float32 makes of it; vectors to eps·σ₁²/(σᵢ² − σⱼ²).
    """
    from lite_probe.optim.msign import _singular_coordinates

    matrices = drawn(kind, torch.Generator().manual_seed(7))
    sign = torch.randn(matrices.shape, generator=torch.Generator().manual_seed(8))
    left, values, right, reached = _singular_coordinates(matrices, sign)
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    rows, columns = matrices.shape[1:]
    assert (left is None) == (rows >= columns)
    for basis in (right, left):
        if basis is not None:
            identity = torch.eye(basis.shape[-1])
            assert float((basis.mT @ basis - identity).abs().max()) < 2e-6
    largest = s[:, :1].clamp(min=1e-30)
    assert float(((values - s) / largest).abs().max()) < 2e-7
    if kind in ("tall", "square", "wide"):
        for size in (1, 3, 8):
            found, expected = right[..., :size].double(), v[:, :size].mT
            assert float((found @ found.mT - expected @ expected.mT).abs().max()) < 2e-6
        exact = (u * (sign.double() @ v.mT)).sum(dim=1)[:, :8]
        torch.testing.assert_close(reached[:, :8].double(), exact, rtol=0, atol=2e-5)
    if kind == "few":  # what is left is orthogonal to them, and its σ is rounding
        assert float((matrices @ right[..., 12:]).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_no_matrix_is_decomposed_whole(name: str) -> None:
    """Of each matrix a square one of its smaller side is decomposed, and once."""
    task = models.make_task("llama", torch.float32)
    optimizer = make_optimizer(name, task.model.named_parameters(), lr=0.0)
    loss, count = task.loss(task.evaluation[0])
    (loss / count).backward()  # type: ignore[no-untyped-call]
    watch = Watch()
    with watch:
        optimizer.step()
        optimizer.directions()
    matrices = sum(one.geometry.name == "orthogonal" or len(one.shape) == 3 for one in optimizer.pieces)
    # Muon's are decomposed some at a time, SOAP's one by one, in its first step alone.
    assert 0 < watch.calls["_linalg_eigh"] <= matrices
    if name == "muon":
        assert "_linalg_svd" not in watch.calls


@pytest.mark.parametrize("name", ["adamw-lite", "muon-lite", "soap"])
def test_a_state_is_not_held_twice(name: str) -> None:
    """The stacks that a step worked in go when a state is loaded, read or dropped: views would keep them alive."""
    _, optimizer = after_steps(name, 2)
    saved = copy.deepcopy(optimizer.state_dict())

    def stacks() -> list[weakref.ref[torch.Tensor]]:
        optimizer.step()
        return [weakref.ref(stack) for bucket in optimizer._buckets for stack in bucket.state.values()]

    for let_go in (lambda: optimizer.load_state_dict(saved), optimizer.directions, optimizer.drop_state):
        held = stacks()
        assert held
        let_go()  # type: ignore[operator]
        assert not any(one() is not None for one in held)
    assert not optimizer.state
    optimizer.load_state_dict(saved)
    optimizer.step()
    (again,) = after_steps(name, 3)[1:]
    ends = [[p.detach() for group in one.param_groups for p in group["params"]] for one in (optimizer, again)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    states = [one.state_dict()["state"] for one in (optimizer, again)]
    for key, own in states[1].items():
        for entry, value in own.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(states[0][key][entry], value)

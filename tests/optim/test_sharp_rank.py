"""Sharp directions by their number: the leading singular directions of a momentum, followed from step to step."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lite_probe.errors import InputError, UsageError
from lite_probe.optim import LiteOptimizer, hyperparameters_of, linear_recipes, make_optimizer, restore_state
from lite_probe.optim.leading import capped_rank, first_basis, followed_basis, kept_width, leading
from tests.optim.transcriptions import SlowSamuon

KEY = "layers.0.mlp.up_proj.weight"
THETA = 0.95


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_values(rows: int, columns: int, values: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a matrix with these singular values, and its right singular vectors."""
    left, right = (torch.linalg.qr(drawn(side, len(values), seed=seed + side))[0] for side in (rows, columns))
    return left * torch.tensor(values, dtype=torch.float64) @ right.mT, right


def sine(found: Tensor, exact: Tensor) -> float:
    """Of the largest angle between two subspaces of the same dimension."""
    return float(torch.linalg.matrix_norm(found.double() - exact @ (exact.mT @ found.double()), 2))


# -- the directions ----------------------------------------------------------------------------------------------


def momenta(rows: int, columns: int, steps: int) -> Iterator[Tensor]:
    """Momenta of noisy gradients: 32 directions that turn by 2% a step, sizes i^-0.7 that vary by 30%."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    count, average = 32, torch.zeros(rows, columns)
    left, right = (torch.linalg.qr(draw(side, count))[0] for side in (rows, columns))
    for _ in range(steps):
        left = torch.linalg.qr(left + 0.02 * draw(rows, count) / math.sqrt(rows))[0]
        right = torch.linalg.qr(right + 0.02 * draw(columns, count) / math.sqrt(columns))[0]
        sizes = torch.arange(1.0, count + 1.0) ** -0.7 * (1.0 + 0.3 * draw(count))
        gradient = (left * sizes) @ right.mT + 0.5 * draw(rows, columns) / math.sqrt(max(rows, columns))
        average = THETA * average + (1.0 - THETA) * gradient
        yield average + gradient * (1.0 - THETA) / THETA


@pytest.mark.parametrize("shape", [(64, 192), (96, 64)])
@pytest.mark.parametrize(("rank", "median", "largest"), [(1, 3e-6, 3e-5), (4, 3e-4, 3e-3), (12, 7.5e-3, 2e-2)])
def test_they_are_followed_as_closely_as_they_say(
    rank: int, median: float, largest: float, shape: tuple[int, int]
) -> None:
    found, basis = [], torch.empty(0)
    for step, matrix in enumerate(momenta(*shape, steps=120)):
        stack = matrix.unsqueeze(0)
        basis = followed_basis(stack, basis) if step else first_basis(stack, kept_width(*shape, rank))
        basis, sharp = leading(stack, basis, rank)
        _, values, right = torch.linalg.svd(matrix.double())
        if step == 0:
            assert sine(sharp[0], right[:rank].mT) < 1e-5  # rounding of float32 over the gap
        elif step > 20 and values[rank - 1] > 1.05 * values[rank]:
            found.append(sine(sharp[0], right[:rank].mT))
    errors = torch.tensor(found)
    assert len(found) > 10
    assert float(errors.median()) < median
    assert float(errors.max()) < largest


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (7, 7)])
def test_the_first_ones_are_exact(shape: tuple[int, int]) -> None:
    stack = torch.stack([with_values(*shape, [4.0, 3.5, 1.0, 0.9, 1e-3], seed=seed)[0] for seed in (0, 100)])
    basis, sharp = leading(stack, first_basis(stack, kept_width(*shape, 2)), 2)
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype)
    assert float((basis.mT @ basis - identity).abs().max()) < 1e-12
    for one, seed in zip(sharp, (0, 100), strict=True):
        assert sine(one, with_values(*shape, [4.0, 3.5, 1.0, 0.9, 1e-3], seed=seed)[1][:, :2]) < 1e-12


@pytest.mark.parametrize("turned", [False, True])
def test_directions_that_change_places_are_told_at_once(turned: bool) -> None:
    """Also where nothing couples them, and a power iteration would stay with the old one for ever."""
    identity = torch.eye(12, dtype=torch.float64)
    left, right = (torch.linalg.qr(drawn(12, 12, seed=seed))[0] if turned else identity for seed in (1, 2))
    values = torch.linspace(2.0, 1.0, 12, dtype=torch.float64)
    before = (left * values @ right.mT).unsqueeze(0)
    basis, sharp = leading(before, first_basis(before, kept_width(12, 12, 1)), 1)
    assert sine(sharp[0], right[:, :1]) < 1e-12
    values[[0, 3]] = values[[3, 0]]
    after = (left * values @ right.mT).unsqueeze(0)
    _, sharp = leading(after, followed_basis(after, basis), 1)
    assert sine(sharp[0], right[:, 3:4]) < 1e-8


def test_what_is_zero_to_rounding_does_not_lead() -> None:
    """A matrix of rank 2 has two leading directions, however many are asked for; a zero one has none."""
    matrix, right = with_values(6, 9, [3.0, 1.0])
    stack = torch.stack([matrix, torch.zeros_like(matrix)]).float()
    basis = first_basis(stack, kept_width(6, 9, 4))
    for _ in range(3):
        basis, sharp = leading(stack, basis, 4)
        assert sine(sharp[0, :, :2], right) < 1e-5
        assert torch.equal(sharp[0, :, 2:], torch.zeros(9, 2))
        assert torch.equal(sharp[1], torch.zeros(9, 4))
        basis = followed_basis(stack, basis)
        assert torch.isfinite(basis).all()


def test_ranks_are_capped() -> None:
    assert [capped_rank(5, 9, rank) for rank in (1, 4, 5, 99)] == [1, 4, 4, 4]
    assert [kept_width(50, 20, rank) for rank in (1, 12, 99)] == [9, 20, 20]


def same_states(first: dict[str, Any], second: dict[str, Any]) -> bool:
    pairs = ((torch.as_tensor(value), torch.as_tensor(second[key])) for key, value in first.items())
    return first.keys() == second.keys() and all(torch.equal(one, other) for one, other in pairs)


# -- SAMuon ------------------------------------------------------------------------------------------------------


def trained(name: str, weights: list[nn.Parameter], steps: int = 12, **hyper: Any) -> LiteOptimizer:
    named = [(f"layers.{index}.mlp.up_proj.weight", weight) for index, weight in enumerate(weights)]
    optimizer = make_optimizer(name, named, **{"lr": 1e-2, **hyper})
    walk(optimizer, weights, range(steps))
    return optimizer


def walk(optimizer: LiteOptimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for index, weight in enumerate(weights):
            weight.grad = gradient_at(step, index, weight.shape).to(weight.dtype)
        optimizer.step()


def gradient_at(step: int, index: int, shape: torch.Size) -> Tensor:
    """Its columns are of different sizes: singular values too."""
    size = torch.logspace(-1, 0, shape[-1], dtype=torch.float64)
    return drawn(*shape, seed=1_000 * index + step) * size


@pytest.mark.parametrize("shape", [(5, 9), (9, 4), (6, 6), (14, 22)])
@pytest.mark.parametrize("gamma", [2.0, 5.0])
def test_samuon_is_its_formula(shape: tuple[int, int], gamma: float) -> None:
    """u₁v₁ᵀ + γ(O − u₁v₁ᵀ) times Muon's scale; msign takes twelve steps to be O to rounding."""
    hyper = {"momentum": 0.9, "flat_lr_ratio": gamma, "lr": 1e-2, "weight_decay": 0.3}
    weights = [nn.Parameter(drawn(*shape, seed=seed)) for seed in (1, 2)]
    slow = [SlowSamuon(weight.detach(), hyper) for weight in weights]
    optimizer = trained("samuon", weights, steps=0, ns_steps=12, **hyper)
    worst = []
    for step in range(12):
        before = [weight.detach().clone() for weight in weights]
        for index, (weight, one) in enumerate(zip(weights, slow, strict=True)):
            one.w = weight.detach().clone()  # the error of each step by itself
            one.step(gradient_at(step, index, weight.shape))
        walk(optimizer, weights, range(step, step + 1))
        errors = [(weight.detach() - one.w).norm() for weight, one in zip(weights, slow, strict=True)]
        sizes = [(weight.detach() - old).norm() for weight, old in zip(weights, before, strict=True)]
        worst.append(max(float(error / size) for error, size in zip(errors, sizes, strict=True)))
    assert worst[0] < 1e-12  # an exact solver finds the first direction
    # Later ones are followed: to their separation where all are kept; of the last shape nine of 14 are, and gradients
    # that have nothing in common change half of a momentum each step.
    assert max(worst) < (1e-8 if min(shape) <= 9 else 1e-3)


def test_samuon_with_a_ratio_of_one_is_muon_bitwise() -> None:
    ends = []
    for name, hyper in (("muon", {}), ("samuon", {"flat_lr_ratio": 1.0}), ("samuon", {"sharp_rank": None})):
        weights = [nn.Parameter(drawn(6, 9, dtype=torch.float32))]
        trained(name, weights, **hyper)
        ends.append(weights[0].detach())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_samuon_leaves_all_but_hidden_matrices_alone() -> None:
    """Whatever ratio is given for all blocks: they have no sharp directions that a rank could count."""
    names = {"embed_tokens.weight": (8, 6), "norm.weight": (6,), "lm_head.weight": (8, 6), KEY: (8, 6)}
    names |= {"layers.0.self_attn.q_proj.bias": (6,)}
    ends = []
    runs: list[tuple[str, dict[str, Any]]] = [("muon", {}), ("samuon", {})]
    for name, hyper in (*runs, ("samuon", {"flat_lr_ratio": 3.0, "sharp_rank": 2})):
        named = [(key, nn.Parameter(drawn(*shape, dtype=torch.float32))) for key, shape in names.items()]
        optimizer = make_optimizer(name, named, lr=1e-2, **hyper)
        walk(optimizer, [weight for _, weight in named], range(4))
        ends.append({key: weight.detach() for key, weight in named})
    for end in ends[1:]:
        assert {key for key in names if not torch.equal(ends[0][key], end[key])} == {KEY}


def test_what_of_samuon_may_be_set() -> None:
    known = hyperparameters_of("samuon")
    assert {"sharp_rank", "flat_lr_ratio", "momentum", "weight_decay"} < set(known)
    assert not {"beta1", "beta2", "sharp_ratio", "smooth_ratio", "schedule", "total_steps"} & set(known)
    assert {block: known["sharp_rank"][block] for block in ("qk", "ffn", "emb", "router")} == {
        "qk": 1,
        "ffn": 1,
        "emb": None,
        "router": None,
    }
    assert {block: known["flat_lr_ratio"][block] for block in ("vo", "out", "norm", "emb", "router")} == {
        "vo": 2.0,
        "out": 1.0,
        "norm": 1.0,
        "emb": 1.0,
        "router": 1.0,
    }


def test_its_linear_theory() -> None:
    """χ is γ, and the damping that of Nesterov's momentum alone, (1−θ)/θ."""
    recipes = linear_recipes("samuon", (4, 9), block="ffn", lr=0.1, momentum=0.8, flat_lr_ratio=3.0)
    for recipe, ratio in ((recipes.sharp, 1.0), (recipes.flat, 3.0)):
        found = (recipe.lr, recipe.momentum, recipe.damping, recipe.lr_ratio)
        assert found == pytest.approx((0.06, 0.8, 0.25, ratio), rel=1e-12)
    assert linear_recipes("samuon", (4, 9), block="emb", lr=0.1, flat_lr_ratio=3.0).flat.lr_ratio == 1.0
    assert linear_recipes("muon-lite", (4, 9), block="router", lr=0.1, flat_lr_ratio=3.0).flat.lr_ratio == 1.0
    given = linear_recipes("muon-lite", (4, 9), block="router", lr=0.1, flat_lr_ratio=3.0, sharp_rank={"router": 2})
    assert given.flat.lr_ratio == 3.0


# -- the hyperparameter ------------------------------------------------------------------------------------------


def test_a_rank_wins_over_a_ratio_where_it_is_given() -> None:
    ends = []
    given: list[dict[str, Any]] = [{"sharp_rank": {"ffn": 2}}]
    given += [{"sharp_rank": 2, "sharp_ratio": ratio} for ratio in (0.0, 1.0)]
    for hyper in given:
        weights = [nn.Parameter(drawn(6, 9))]
        trained("muon-lite", weights, beta1=-0.1, **hyper)
        ends.append(weights[0].detach())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    others: list[dict[str, Any]] = [{}, {"sharp_rank": {"qk": 2}}, {"sharp_rank": None}, {"sharp_rank": {"ffn": None}}]
    for hyper in others:  # by its ratio
        weights = [nn.Parameter(drawn(6, 9))]
        trained("muon-lite", weights, beta1=-0.1, **hyper)
        assert not torch.equal(ends[0], weights[0].detach())
        ends.append(weights[0].detach())
    assert all(torch.equal(ends[3], end) for end in ends[4:])


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("muon-lite", {"sharp_rank": 0}, r"expected sharp_rank None or in \[1, 1e9\], got 0"),
        ("muon-lite", {"sharp_rank": 1.5}, r"expected sharp_rank None or in \[1, 1e9\], got 1\.5"),
        ("muon-lite", {"sharp_rank": {"ffn": True}}, r"expected sharp_rank None or in \[1, 1e9\], got True"),
        ("samuon", {"sharp_rank": {"ffn": "1"}}, r"expected sharp_rank None or in \[1, 1e9\], got '1'"),
        ("muon-lite", {"sharp_rank": {"attention": 1}}, "expected sharp_rank for blocks among emb, .*got attention"),
        ("muon", {"sharp_rank": 1}, "got sharp_rank; use muon-lite for those of LITE"),
        ("soap-lite", {"sharp_rank": 1}, "expected hyperparameters of soap-lite among .*, got sharp_rank"),
        ("samuon", {"beta2": 1.0}, "expected hyperparameters of samuon among .*, got beta2"),
        ("samuon", {"flat_lr_ratio": 0.5}, r"expected flat_lr_ratio in \[1, 1e6\], got 0\.5"),
    ],
)
def test_what_is_refused(name: str, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_optimizer(name, [(KEY, nn.Parameter(torch.zeros(2, 2)))], lr=1e-3, **hyper)


# -- the state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3])
def test_directions_are_read_off_the_average(rank: int) -> None:
    """A steady gradient: the average is M but for its scale, and Q in its directions is what the step took."""
    weight = nn.Parameter(drawn(14, 22))
    optimizer = make_optimizer("muon-lite", [(KEY, weight)], lr=0.0, sharp_rank=rank)
    weight.grad = gradient_at(0, 0, weight.shape)
    (one,) = optimizer.directions()
    assert torch.equal(one.flat, torch.ones(1, 1, 22).double())  # nothing is sharp yet
    for _ in range(3):
        optimizer.step()
    before = copy.deepcopy(optimizer.state[weight])
    (one,) = optimizer.directions()
    assert one.distinguishes
    assert one.flat.flatten().tolist() == [0.0] * rank + [1.0] * (22 - rank)
    assert same_states(before, optimizer.state[weight])
    followed = before["sharp_basis"][:, :rank]
    assert one.right is not None
    turned = one.right[0].mT @ (torch.eye(22).double() - followed @ followed.mT) @ one.right[0]
    assert float((turned - one.flat[0, 0].diag()).abs().max()) < 1e-8


def test_a_rank_may_be_changed_between_steps() -> None:
    """The state changes its shape with it, and starts from the momentum; without a rank it holds none."""
    weights = [nn.Parameter(drawn(14, 22)), nn.Parameter(drawn(14, 22, seed=1))]
    optimizer = trained("muon-lite", weights, 3)
    assert "sharp_basis" not in optimizer.state[weights[0]]
    (group,) = optimizer.param_groups
    for rank, width in ((1, 9), (4, 12), (None, 0), (4, 12)):
        group["sharp_rank"] = {**group["sharp_rank"], "ffn": rank}
        walk(optimizer, weights, range(3, 5))
        for weight in weights:
            basis = optimizer.state[weight].get("sharp_basis")
            assert (0 if basis is None else basis.shape[1]) == width
            assert optimizer.state[weight]["step"] == group["step"]
    again = [nn.Parameter(torch.zeros(14, 22).double()) for _ in weights]
    other = trained("muon-lite", again, 0, sharp_rank=4)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight, twin in zip(weights, again, strict=True):
        twin.data.copy_(weight.data)
    walk(optimizer, weights, range(5, 7))
    walk(other, again, range(5, 7))
    assert all(torch.equal(weight, twin) for weight, twin in zip(weights, again, strict=True))


def test_a_state_without_directions_gets_them_of_its_momentum() -> None:
    """Muon's goes on under SAMuon: the direction of the next step is the exact one, to what a step changes."""
    weights = [nn.Parameter(drawn(14, 22))]
    muon = trained("muon", weights, 6)
    samuon = trained("samuon", weights, 0, weight_decay=0.0)
    restored = restore_state(samuon, [muon.state_dict()])
    assert restored.lines == ("ffn, orthogonal: 1 restored (momentum; threshold, sharp_basis anew) at step 6",)
    walk(samuon, weights, range(6, 7))
    momentum, gradient = samuon.state[weights[0]]["momentum"], gradient_at(6, 0, weights[0].shape)
    exact = torch.linalg.svd(momentum + gradient * 0.05 / 0.95)[2][:1].mT
    assert sine(samuon.state[weights[0]]["sharp_basis"][:, :1], exact) < 1e-3


def test_states_of_other_ranks_and_of_muon_lite() -> None:
    """Hyperparameters go over from SAMuon to itself, but SAMuon never becomes Muon-LITE, nor the other way round."""
    weights = [nn.Parameter(drawn(14, 22))]
    saved = trained("samuon", weights, 4, sharp_rank=2, flat_lr_ratio=3.0).state_dict()
    same = trained("samuon", weights, 0)
    restore_state(same, [saved])
    assert same.param_groups[0]["sharp_rank"]["ffn"] == 2
    assert same.param_groups[0]["flat_lr_ratio"]["ffn"] == 3.0
    assert torch.equal(same.state[weights[0]]["sharp_basis"], saved["state"][0]["sharp_basis"])
    kept = trained("samuon", weights, 0)
    assert "sharp_basis anew" in restore_state(kept, [saved], keep=("sharp_rank",)).lines[0]
    walk(kept, weights, range(4, 5))
    assert kept.state[weights[0]]["sharp_basis"].shape == (22, 9)
    for name, other in (("muon-lite", "samuon"), ("samuon", "muon-lite")):
        made = make_optimizer(name, [(KEY, weights[0])], lr=1e-2)
        before = copy.deepcopy(made.param_groups[0])
        restore_state(made, [trained(other, weights, 2).state_dict()])
        for key in ("beta1", "beta2", "flat_lr_ratio", "sharp_ratio", "sharp_rank"):
            assert made.param_groups[0][key] == before[key]
    damaged = copy.deepcopy(saved)
    damaged["param_groups"][0]["sharp_rank"]["ffn"] = 0.5
    with pytest.raises(InputError, match=r"expected a whole number in \[1, 1e9\] as sharp_rank of .*, got 0\.5"):
        restore_state(same, [damaged])
    damaged["param_groups"][0]["sharp_rank"] = 2
    with pytest.raises(InputError, match=r"expected numbers by block as sharp_rank of .*, got int"):
        restore_state(same, [damaged])
    damaged = copy.deepcopy(saved)
    damaged["state"][0]["sharp_basis"][0, 0] = 3.0
    with pytest.raises(InputError, match=r"expected numbers in \[-2, 2\] as sharp_basis of .*, got 3"):
        restore_state(same, [damaged])
    damaged["state"][0]["sharp_basis"] = torch.zeros(21, 10)
    with pytest.raises(InputError, match=r"expected shape \(22, 10\) as sharp_basis of"):
        restore_state(same, [damaged])

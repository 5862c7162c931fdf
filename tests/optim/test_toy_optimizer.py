"""An optimizer from outside, gradient descent at half the rate: a spec and a geometry, and everything knows it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lite_probe as lp
from lite_probe.errors import UsageError
from lite_probe.optim import (
    Geometry,
    Hyperparameter,
    OptimizerSpec,
    make_optimizer,
    register_optimizer,
    unregister_optimizer,
)
from lite_probe.optim.geometry import Coordinates, Hyperparameters, LiteSettings, Preconditioned, State
from lite_probe.optim.theory import LinearRecipe, LinearRecipes
from lite_probe.results.blocks import BLOCK_NAMES
from tests.oracles import matrix_with
from tests.replays.conftest import quadratic_task, spectrum_of


class Halved(Geometry):
    name, kinds, stacked_on_cpu = "halved", ("toy",), False

    def new_state(self, shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
        return {"average": torch.zeros(shape, dtype=dtype, device=device)}

    def precondition(self, state: State, gradient: Tensor, *, group: Hyperparameters, **_: object) -> Preconditioned:
        average = state["average"].lerp_(gradient, 1.0 - group["theta"])
        return Preconditioned(momentum=average, gradient=None, project=None, step_size=0.5 * group["lr"])

    def coordinates(self, state: State, *, step: int, group: Hyperparameters, lite: LiteSettings) -> Coordinates:
        return Coordinates(proxy=state["average"].square(), divisor=torch.full((), 2.0), flat=None)


class HalvedWithSharp(Halved):
    """The first coordinate is sharp, all others are flat."""

    name = "halved-with-sharp"

    def precondition(self, state: State, gradient: Tensor, *, group: Hyperparameters, **_: object) -> Preconditioned:
        flat = torch.ones_like(gradient)
        flat[..., 0] = 0.0
        return replace(super().precondition(state, gradient, group=group), gradient=gradient, project=flat.mul)


def recipes(group: Hyperparameters, *_: object) -> LinearRecipes:
    same = LinearRecipe(lr=0.5 * group["lr"], momentum=group["theta"])
    return LinearRecipes(sharp=same, flat=same)


SETTINGS = {"theta": Hyperparameter(default=0.5), "weight_decay": Hyperparameter(default=0.0)}
TOY = OptimizerSpec(name="toy", hyperparameters=SETTINGS, geometries=(Halved(),), linear=recipes)


@pytest.fixture(params=[TOY, replace(TOY, linear=None)], ids=["theory", "none"])
def toy(request: pytest.FixtureRequest) -> Iterator[OptimizerSpec]:
    register_optimizer(request.param)
    yield request.param
    unregister_optimizer("toy")


def test_it_is_made_and_listed(toy: OptimizerSpec) -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([1.0, -4.0])
    make_optimizer("toy", [("weight", weight)], lr=1.0).step()
    assert weight.tolist() == [0.75, 3.0]  # half of half the gradient: lr and an average's first share
    with pytest.raises(UsageError, match=r"expected an optimizer among adamw, .*, toy, got 'tyo'"):
        make_optimizer("tyo", [("weight", weight)], lr=1.0)


def test_it_is_replayed_beside_ours(toy: OptimizerSpec) -> None:
    """At twice the rate it is `sgd` bitwise, 0.5 being a power of two; and so is its theory, where it has one."""
    task = quadratic_task(matrix_with([4.0, 2.0, 1.0, 0.25, 0.1], seed=5), torch.linspace(1.0, -0.7, 5).double())
    lr, settings = {"toy": 0.8, "sgd": 0.4}, {"sgd": {"momentum": 0.5}}
    short = {"steps": 3, "seeds": 1, "warm_batches": 4, "hyperparameters": settings}
    found = lp.replay(task, ["toy", "sgd"], spectrum=spectrum_of(task), lr=lr, **short)  # type: ignore[arg-type]
    mine, ours = (found.runs_of(name)[0] for name in ("toy", "sgd"))
    assert mine.losses.tolist() == ours.losses.tolist()
    assert mine.losses[-1] < mine.losses[0]
    assert list(found.theory) == (["toy", "sgd"] if toy.linear else ["sgd"])
    assert found.theory.get("toy", found.theory["sgd"]).rates == pytest.approx(found.theory["sgd"].rates, rel=1e-12)


def test_it_has_a_variant_of_lites(toy: OptimizerSpec) -> None:
    """With the hyperparameters of LITE, settable or not, Algorithm 1 is there: u = m/2 + Q(β₂g + (χ−1)(…))/2."""
    blocks = dict.fromkeys(BLOCK_NAMES, 2.0)
    lite = {
        "flat_lr_ratio": Hyperparameter(default=blocks),
        "beta2": Hyperparameter(default=0.5),
        "beta1": Hyperparameter(default=0.0, is_settable=False),
        "sharp_ratio": Hyperparameter(default=dict.fromkeys(BLOCK_NAMES, 0.5), is_settable=False),
        "smooth_ratio": Hyperparameter(default=0.1, is_settable=False),
    }
    variant = replace(toy, name="toy-lite", base="toy", hyperparameters={**SETTINGS, **lite})
    register_optimizer(replace(variant, geometries=(HalvedWithSharp(),), needs_blocks=True))
    try:
        weight = nn.Parameter(torch.zeros(2))
        optimizer = make_optimizer("toy-lite", [("norm.weight", weight)], lr=1.0, flat_lr_ratio=3.0)
        for _ in range(2):  # without a warm-up the first step is undamped
            weight.grad = torch.ones(2)
            optimizer.step()
    finally:
        unregister_optimizer("toy-lite")
    # m = ½, ¾: sharp −½·½ − ½·¾; flat −3·½·½ − 3·½·(¾ + ½).
    assert weight.tolist() == [-0.625, -2.625]

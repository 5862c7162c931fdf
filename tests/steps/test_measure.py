"""`measure_steps` from end to end: closed forms, no trace, the same bits again, and after a kill."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lite_probe as lp
from lite_probe.errors import InputError, NumericsError, UsageError
from lite_probe.measurements.requests.steps import StepsRequest
from lite_probe.measurements.steps import StepsPlan, measure_steps
from lite_probe.measurements.steps_session import StepsSession, split_batches
from lite_probe.operators.hessian import HessianOperator
from lite_probe.optim import LiteOptimizer
from lite_probe.replays import SavedOptimizer
from lite_probe.results.blocks import BlockPart
from lite_probe.results.steps import Steps
from lite_probe.subspaces import own_gradients, set_gradients
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests.ranks import OneOfTwo
from tests.replays.conftest import with_bad_gradient, with_training

pytestmark = pytest.mark.slow

CURVATURES = {"first": 4.0, "second": 0.5, "third": 0.0}
LR = 0.3


class Pieces(nn.Module):
    """Three vectors; the loss is quadratic in each, of its own curvature, and linear in the last."""

    def __init__(self) -> None:
        super().__init__()
        for number, name in enumerate(CURVATURES):
            generator = torch.Generator().manual_seed(number)
            setattr(self, name, nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64)))


def quadratic(noise: float, *, train: int = 40) -> Task:
    """Σ ½λ‖p − x‖² over pieces p, and the sum of the flat one; a batch shifts the minimum, an evaluation batch none."""

    def predict(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.cat([getattr(model, name) for name in CURVATURES])

    def criterion(outputs: Tensor, batch: Tensor) -> tuple[Tensor, int]:
        loss = outputs.new_zeros(())
        for number, (piece, curvature) in enumerate(zip(outputs.split(6), CURVATURES.values(), strict=True)):
            shift = batch[:, 6 * number : 6 * number + 6].mean(dim=0)
            loss = loss + 0.5 * curvature * (piece - shift).square().sum() + (curvature == 0.0) * piece.sum()
        return len(batch) * loss, len(batch)

    generator = torch.Generator().manual_seed(9)
    batches = [noise * torch.randn(2, 18, generator=generator, dtype=torch.float64) for _ in range(train)]
    return Task(
        model=Pieces(),
        predict=predict,
        criterion=criterion,
        evaluation=[torch.zeros(4, 18, dtype=torch.float64)],
        train=batches,
        blocks={name: (BlockPart(block),) for name, block in zip(CURVATURES, ("qk", "ffn", "vo"), strict=True)},
    )


def by_block(found: Steps, name: str) -> dict[str, Any]:
    return {row.block: row for row in found.profile(name)}


def test_gradient_descent_s_optimum_is_one_over_eta_lambda_in_each_eigenspace() -> None:
    found = measure_steps(quadratic(0.0), ["sgd"], lr=LR, state="cold", step_batches=16)
    rows = by_block(found, "sgd")
    for name, block in (("first", "qk"), ("second", "ffn")):
        expected = 1.0 / (LR * CURVATURES[name])
        assert rows[block].optimum.value == pytest.approx(expected, rel=1e-9)
        assert rows[block].edge.value == pytest.approx(2.0 * expected, rel=1e-9)
    assert rows["vo"].optimum is None  # linear: the loss falls for ever
    assert rows["vo"].gain.value > 0.0


def test_with_noise_the_optimum_shrinks_by_the_noise_s_share_of_the_step() -> None:
    # E[gᵀHg] is λ(‖g‖² + tr Σ), so that c* is 1/(ηλ) times ‖g‖² over that.
    task = quadratic(1.5, train=200)
    found = measure_steps(task, ["sgd"], lr=LR, state="cold", step_batches=150)
    for name, block in (("first", "qk"), ("second", "ffn")):
        row, curvature = by_block(found, "sgd")[block], CURVATURES[name]
        gradient = curvature * getattr(task.model, name).detach()
        signal = float(gradient.square().sum())
        scatter = 6 * (1.5 * curvature) ** 2 / 2.0  # two samples a batch, six entries
        expected = signal / (signal + scatter) / (LR * curvature)
        assert row.optimum.low <= expected <= row.optimum.high
        assert row.optimum.high < 1.2 / (LR * curvature)


def test_the_critical_step_of_gradient_descent_is_where_the_quadratic_says() -> None:
    # Along −ηg the loss is L − cη‖g‖² + ½c²η²gᵀHg.
    task = quadratic(0.0)
    found = measure_steps(task, ["sgd"], lr=LR, state="cold", step_batches=16)
    gradients = [value * getattr(task.model, name).detach() for name, value in CURVATURES.items()]
    gradients[2] = torch.ones(6, dtype=torch.float64)
    curvatures = list(CURVATURES.values())
    top = sum(float(gradient.square().sum()) for gradient in gradients)
    bottom = sum(value * float(gradient.square().sum()) for value, gradient in zip(curvatures, gradients, strict=True))
    expected = 2.0 * top / (LR * bottom)
    for kind in ("own batch", "held out"):
        steps = found.critical("sgd")[kind]
        assert np.all(steps.low <= expected)
        assert np.all(expected <= steps.high)
        ratio = steps.edge_ratio
        assert ratio is not None
        assert ratio.low <= 1.0 / expected <= ratio.high
    whole = found.optimizers["sgd"].whole
    assert whole is not None
    assert whole.value == pytest.approx(expected / 2.0, rel=1e-9)


def test_line_checks_and_the_joint_optimum_of_a_quadratic_are_exact() -> None:
    found = measure_steps(quadratic(0.0), ["sgd"], lr=LR, state="cold", step_batches=16)
    joint = found.optimizers["sgd"].joint
    assert joint is not None
    assert {(one.block, one.part, one.answer) for one in joint.checks} == {
        ("qk", "rest", "holds"),
        ("ffn", "rest", "holds"),
    }
    for one in joint.checks:
        assert one.at_optimum == pytest.approx(one.predicted, rel=1e-9)
        assert one.at_edge == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(np.diag(np.diag(joint.curvatures)), joint.curvatures, atol=1e-12)


@pytest.fixture(scope="module")
def llama() -> Callable[[], Task]:
    def make() -> Task:
        return with_training("llama", 60)

    return make


def asked(**more: Any) -> dict[str, Any]:
    lr = {"adamw": 0.01, "muon": 0.02}
    return {"lr": lr, "warm_batches": 6, "step_batches": 16, "critical_batches": 2, **more}


def numbers(found: Steps) -> list[Any]:
    return [
        array.tolist()
        for one in found.optimizers.values()
        for array in (one.gains, one.images, one.whole_curvatures, one.joint.curvatures if one.joint else one.gains)
    ] + [kind.low.tolist() for one in found.optimizers.values() for kind in one.critical.values()]


@contextmanager
def counted_products() -> Iterator[list[int]]:
    """The rows of each product made meanwhile."""
    made: list[int] = []
    original = HessianOperator._products

    def counted(self: HessianOperator, rows: Tensor) -> Tensor:
        made.append(len(rows))
        return original(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HessianOperator, "_products", counted)
        yield made


@pytest.fixture(scope="module")
def in_one_go(llama: Callable[[], Task]) -> tuple[Steps, int]:
    """What is measured without a stop, and its number of products."""
    with counted_products() as made:
        found = measure_steps(llama(), ["adamw", "muon"], **asked())
    return found, len(made)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    llama: Callable[[], Task], in_one_go: tuple[Steps, int]
) -> None:
    first, _ = in_one_go
    second = measure_steps(llama(), ["adamw", "muon"], **asked())
    other = measure_steps(llama(), ["adamw", "muon"], **asked(seed=1))
    assert numbers(first) == numbers(second)
    assert numbers(first) != numbers(other)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_it_leaves_no_trace(llama: Callable[[], Task]) -> None:
    task = llama()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    for parameter in task.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = torch.get_rng_state()
    measure_steps(task, ["adamw", "muon"], **asked())
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())
    assert all(bool((parameter.grad == 1).all()) for parameter in task.model.parameters() if parameter.grad is not None)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("after", [3, 40, 200])
def test_a_stopped_one_goes_on_with_the_same_bits(
    llama: Callable[[], Task],
    in_one_go: tuple[Steps, int],
    tmp_path: Path,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lite_probe.runtime.resumable.SaveClock.due", property(lambda self: True))
    whole, num_products = in_one_go
    calls = 0

    def stop(done: int, expected: int, label: str) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_steps(llama(), ["adamw", "muon"], state_directory=tmp_path, on_progress=stop, **asked())
    with counted_products() as made:
        again = measure_steps(llama(), ["adamw", "muon"], state_directory=tmp_path, **asked())
    assert numbers(again) == numbers(whole)
    assert len(made) < num_products or after == 3


def test_critical_steps_alone_need_no_second_derivative(
    llama: Callable[[], Task], in_one_go: tuple[Steps, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, _ = in_one_go

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a Hessian was made")

    monkeypatch.setattr(HessianOperator, "__init__", refuse)
    found = measure_steps(llama(), ["adamw", "muon"], critical_only=True, **asked())
    assert found.products == {}
    assert found.profile("muon") == ()
    for name in ("adamw", "muon"):
        assert set(found.critical(name)) == {"own batch", "held out"}
        assert len(found.critical(name)["held out"].low) == 2
        assert both.critical(name)["held out"].found.shape == (2,)


def test_other_data_have_a_critical_step_of_their_own(llama: Callable[[], Task]) -> None:
    task = llama()
    found = measure_steps(task, ["adamw"], critical_only=True, relative=task.evaluation[:1], **asked(lr=0.01))
    assert set(found.critical("adamw")) == {"own batch", "held out", "relative"}
    assert found.fingerprint != measure_steps(task, ["adamw"], critical_only=True, **asked(lr=0.01)).fingerprint


def test_a_result_comes_back_from_disk(in_one_go: tuple[Steps, int], tmp_path: Path) -> None:
    found, _ = in_one_go
    lp.save(found, tmp_path)
    back = lp.load(tmp_path / "steps.json")
    assert numbers(back) == numbers(found)
    assert back.profile("muon") == found.profile("muon")
    assert back.signal == found.signal


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"optimizers": ["torch.AdamW"]}, "expected optimizers of lite-probe, got torch.AdamW"),
        ({"optimizers": ["muno"]}, "expected an optimizer among"),
        ({"critical_batches": 40}, "at most as many critical batches as step batches, 32, got 40"),
        ({"step_batches": 8}, "expected step_batches of at least 16, got 8"),
    ],
)
def test_what_cannot_be_asked_is_refused(llama: Callable[[], Task], request_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StepsRequest(**request_).plan(llama())


def test_too_few_batches_are_refused_and_few_are_shared_with_a_note() -> None:
    with pytest.raises(InputError, match="expected at least 16 training batches to make steps from, got 12"):
        measure_steps(quadratic(0.1, train=12), ["sgd"], lr=LR, step_batches=16)
    found = measure_steps(quadratic(0.1, train=20), ["sgd"], lr=LR, step_batches=16, warm_batches=10)
    (note,) = found.notes
    assert note.code == "batches-shared"
    assert note.message.endswith("to sweep on: these share batches.")


def test_a_result_counts_the_steps_that_are_made() -> None:
    """Not those that were asked for, where training batches are fewer."""
    task = quadratic(0.1, train=20)
    plan = StepsRequest(optimizers=["sgd"], lr=LR, step_batches=32, warm_batches=4).plan(task)
    assert isinstance(plan, StepsPlan)
    assert plan.summary().startswith("20 steps of sgd")
    assert plan.num_gradients == 4 + 20  # each to warm on, each to step from
    found = plan.run(task)
    assert found.num_batches == len(found.optimizers["sgd"].whole_gains) == 20
    assert found.products["bands"] == plan.effort.products["bands"]
    (note,) = found.notes
    assert note.message.endswith("these share batches, and steps are made from 20 of the 32 that were asked for.")


@pytest.mark.parametrize("defers", [False, True])
def test_a_bad_gradient_makes_no_step(defers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device is asked whether gradients are finite when the next step is made, too."""
    monkeypatch.setattr(LiteOptimizer, "_defers_checks", lambda self, device: defers)
    task = quadratic(0.1)
    few: dict[str, Any] = {"optimizers": ["sgd"], "lr": LR, "step_batches": 16, "warm_batches": 4}
    last = split_batches(task, StepsRequest(**few)).steps[-1]
    with pytest.raises(NumericsError, match="expected gradients whose norm is finite"):
        measure_steps(with_bad_gradient(task, last), **few)


@pytest.mark.parametrize("name", ["gpt2", "qwen2_moe", "gpt_neox", "tied_llama", "mlp"])
def test_models_of_every_make(name: str) -> None:
    task = with_training(name, 60)
    names = ["adamw", "muon", "soap"]
    found = measure_steps(task, names, **asked(lr=0.01))
    assert list(found.optimizers) == names
    for one in found.optimizers.values():
        assert np.isfinite(one.images).all()
        assert one.blocks == found.optimizers["adamw"].blocks
        assert sum(row.dimensions for row in one.rows) == found.num_parameters
        # The parts of a step add up to it.
        np.testing.assert_allclose(one.gains.sum(axis=1), one.whole_gains, rtol=1e-3, atol=1e-6)


def test_a_state_of_the_checkpoint_is_gone_on_from() -> None:
    task = with_training("llama", 60)
    parameters = ParameterLayout(list(task.model.named_parameters())).parameters
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3, betas=(0.8, 0.9))
    start = [parameter.detach().clone() for parameter in parameters]
    with own_gradients(parameters):
        for batch in task.train[:5]:
            set_gradients(task, parameters, batch, "a batch")
            optimizer.step()
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    saved = SavedOptimizer(states=[optimizer.state_dict()], step=5)
    found = measure_steps(task, ["adamw"], **asked(lr={"adamw": "checkpoint"}, saved=saved))
    recipe = found.optimizers["adamw"].recipe
    assert (recipe.state, recipe.lr, recipe.lr_source) == ("checkpoint", 1e-3, "checkpoint")
    assert (recipe.hyperparameters["adamw_beta1"], recipe.hyperparameters["adamw_beta2"]) == (0.8, 0.9)
    other = measure_steps(task, ["adamw"], **asked(lr=1e-3))
    assert other.optimizers["adamw"].recipe.state == "warm"
    assert found.fingerprint != other.fingerprint
    assert not np.array_equal(found.optimizers["adamw"].gains, other.optimizers["adamw"].gains)


def test_the_products_of_the_joint_optimum_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is multiplied by one rank, and what they find adds up to what one process does."""
    original = StepsSession._curvatures
    told: list[tuple[int, int]] = []

    def dealt(session: StepsSession, groups: Any, batches: Any, point: Any, on_product: Any) -> Any:
        own, parts = session.task, []
        for rank in range(2):
            products: list[None] = []
            session.task = replace(own, ranks=OneOfTwo(rank))
            parts.append(original(session, groups, batches, point, lambda made=products: made.append(None)))
            told.append((len(products), len(groups)))
        session.task = own
        np.testing.assert_array_equal(parts[0] + parts[1], original(session, groups, batches, point, on_product))
        return parts[0] + parts[1]

    monkeypatch.setattr(StepsSession, "_curvatures", dealt)
    task = with_training("llama", 60)
    measure_steps(task, ["muon"], **asked(lr=0.01))
    assert len(task.evaluation[::2]) == 2
    assert len(told) == 2
    assert all(products == groups > 0 for products, groups in told)

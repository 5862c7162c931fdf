"""Two ranks with a shard of the model each find what one process finds, and nothing takes a shard for a parameter."""

from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from lite_probe.errors import UsageError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import HessianOperator
from lite_probe.operators.sharded import ShardRanks
from lite_probe.operators.sharding import layers, shard_task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.ranks import ALONE
from tests.launching import RANKS, finished, started
from tests.models import make_task
from tests.operators import sharded_worker

pytestmark = pytest.mark.slow
models = pytest.mark.parametrize("name", sharded_worker.MODELS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has found."""
    out = tmp_path_factory.mktemp("sharded")
    code, _, said = finished(started([sharded_worker.__file__, out]))
    assert code == 0, said
    return [torch.load(out / f"found-{rank}.pt") for rank in range(RANKS)]


def operator_of(name: str) -> HessianOperator:
    """The Hessian of one process, by autograd."""
    task = sharded_worker.whole(name)
    layout = ParameterLayout(list(task.model.named_parameters()))
    return HessianOperator(task, layout, count=sum(task.loss(batch)[1] for batch in task.evaluation))


@models
def test_a_product_of_shards_is_that_of_autograd(found: list[dict[str, Any]], name: str) -> None:
    operator = operator_of(name)
    vector = torch.cat([one.flatten() for one in sharded_worker.direction(operator.task)])
    with preserve_state(operator.task.model):
        expected = operator.matvec(vector)
    one = found[0][name]
    assert float((one["product"] - expected).norm() / expected.norm()) < 1e-7
    assert 0.0 < one["error"] < 1e-7
    slices = [rank[name]["slice"] for rank in found]
    assert sum(slices) == operator.size
    assert min(slices) > 0.4 * operator.size


def test_float32_is_as_near_as_the_differences_say(found: list[dict[str, Any]]) -> None:
    operator = operator_of("tied_llama")
    vector = torch.cat([one.flatten() for one in sharded_worker.direction(operator.task)])
    with preserve_state(operator.task.model):
        expected = operator.matvec(vector)
        gradient = loss_and_gradient(operator.task, operator.layout, "evaluation").gradient
    one = found[0]["float32"]
    torch.testing.assert_close(one["gradient"].double(), gradient, rtol=1e-4, atol=1e-6)
    apart = float((one["product"].double() - expected).norm() / expected.norm())
    # The best of five steps, neighbours four times apart: their difference is of the error's size.
    assert apart < 5.0 * one["error"] < 0.05


@models
def test_loss_and_gradient_of_few_and_unequal_batches_are_those_of_one_process(
    found: list[dict[str, Any]], name: str
) -> None:
    task = make_task(name)
    layout = ParameterLayout(list(task.model.named_parameters()))
    with preserve_state(task.model):
        expected = loss_and_gradient(task, layout, "evaluation")
        task.evaluation = task.evaluation[:1]
        alone = loss_and_gradient(task, layout, "evaluation")
    torch.testing.assert_close(found[0][name]["gradient"], expected.gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0][name]["one batch"], alone.gradient, rtol=1e-10, atol=1e-12)
    losses = torch.tensor([expected.loss, expected.count, alone.loss, alone.count], dtype=torch.float64)
    for rank in found:
        torch.testing.assert_close(rank[name]["losses"], losses, rtol=1e-12, atol=0.0)


def test_ranks_may_use_other_parameters_at_a_time(found: list[dict[str, Any]]) -> None:
    task = sharded_worker.experts_task()
    layout = ParameterLayout(list(task.model.named_parameters()))
    expected = loss_and_gradient(task, layout, "evaluation")
    torch.testing.assert_close(found[0]["experts"]["gradient"], expected.gradient, rtol=1e-10, atol=1e-12)
    for rank in found:
        assert rank["experts"]["loss"] == pytest.approx(expected.loss, rel=1e-12)
        assert rank["experts"]["unused"] == ("idle",)


def test_a_torch_that_cannot_add_such_gradients_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params")
    ranks: Any = ALONE
    with pytest.raises(UsageError, match=r"expected a torch whose FSDP2 adds up .*, got 2\..*; update torch"):
        shard_task(make_task("mlp"), ranks, torch.device("cpu"))


@models
def test_shards_come_back_bitwise_also_when_the_loss_raises(found: list[dict[str, Any]], name: str) -> None:
    for rank in found:
        one = rank[name]
        assert one["raised"] == "RuntimeError: the criterion failed"
        assert (one["restored"], one["unmoved"], one["after failure"], one["grads kept"]) == (True, True, True, True)


@models
def test_a_batch_that_is_not_finite_is_named_on_all_ranks(found: list[dict[str, Any]], name: str) -> None:
    text = "NumericsError: expected a finite loss, got nan on evaluation batch 2; check the checkpoint"
    assert all(rank[name]["nan"].startswith(text) for rank in found), found[0][name]["nan"]


@models
def test_nothing_takes_a_shard_for_a_parameter(found: list[dict[str, Any]], name: str) -> None:
    for rank in found:
        *whole, method, blocks, again = rank[name]["refusals"]
        assert len(whole) == 5
        count = len(list(make_task(name).model.parameters()))
        for text in whole:
            found_shards = f"InputError: expected whole parameters on every rank, got {count} of {count} as shards"
            assert text.startswith(found_shards)
        assert method.startswith("UsageError: expected finite differences for a model in shards, got --method autograd")
        assert blocks.startswith("UsageError: expected the whole spectrum for a model in shards, got --per-block")
        assert again.startswith("InputError: expected a whole model to shard, got shards")


def test_a_spectrum_of_shards_is_that_of_one_process(found: list[dict[str, Any]]) -> None:
    first, second = (rank["gpt2"]["spectrum"] for rank in found)
    operator = operator_of("gpt2")
    expected = measure_spectrum(operator.task, **sharded_worker.ASKED)
    values, residuals = first["eigenvalues"], first["residuals"]
    # An eigenvalue is as near as its residual, and far nearer where it stands apart.
    allowed = residuals + torch.tensor(expected.whole.residual_norms)
    assert bool(((values - torch.tensor(expected.whole.eigenvalues)).abs() <= allowed).all())
    # The order is that of the parameters: their residuals are those that were reported, and a rounding of float32.
    vectors = first["vectors"].double()
    with preserve_state(operator.task.model):
        apart = (operator.matmat(vectors) - vectors * values).norm(dim=0)
    assert bool((apart <= 2.0 * residuals + 1e-5 * values[0]).all()), (apart, residuals)
    assert first["gradient norm"] == pytest.approx(expected.gradient_norm, rel=1e-10)
    assert first["notes"][0][0] == "finite-differences"
    assert second["vectors"] is None  # rank 0 alone puts them together
    for name in ("eigenvalues", "residuals"):
        assert torch.equal(first[name], second[name])
    assert first["fingerprint"] == second["fingerprint"]


def test_attention_is_fused_where_the_loss_stays_the_same(found: list[dict[str, Any]]) -> None:
    assert all(rank["attention"] == ["sdpa", "eager"] for rank in found)


def test_slices_are_cut_where_shards_end() -> None:
    ranks = ShardRanks(ALONE, [[4], [3]])
    assert (ranks.part(7), ranks.width(7), ranks.is_sharded) == (slice(0, 7), 7, True)
    collected = ranks.collected(torch.arange(7.0), 7)
    assert collected is not None
    assert torch.equal(collected, torch.arange(7.0))
    with pytest.raises(ValueError, match=r"expected a vector of 7 entries, got 8"):
        ranks.part(8)
    with pytest.raises(TypeError, match="stay in slices"):
        ranks.whole(torch.zeros(1, 7), 7)


def test_layers_are_those_of_the_largest_list() -> None:
    model = make_task("gpt2").model
    assert [type(layer).__name__ for layer in layers(model)] == ["GPT2Block", "GPT2Block"]
    assert layers(torch.nn.Linear(2, 2)) == []
    layer, experts = torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    assert layers(torch.nn.ModuleList([experts, layer])) == [layer]

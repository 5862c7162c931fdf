"""Products in fewer bits: operands rounded, sums in float32, everything else as it was, and switches restored."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lite_probe.operators import precision as precisions
from lite_probe.operators.finite_difference import GaussNewtonDifferenceOperator
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.precision import Precision, multiplying_in, multiplying_large, onednn_is_faster, round_to
from lite_probe.replays.runner import evaluate_loss
from lite_probe.subspaces import set_gradients
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models

CPU = torch.device("cpu")
BITS: dict[Precision, int] = {"tf32": 11, "bf16": 8}  # of a significand, the leading one included
EXACT: dict[str, Any] = {"gpu matmul": "ieee", "gpu conv": "ieee", "older": (False, False), "cpu matmul": "ieee"}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def switches() -> dict[str, Any]:
    found: Any = torch.backends
    return {
        "gpu matmul": found.cuda.matmul.fp32_precision,
        "gpu conv": found.cudnn.conv.fp32_precision,
        "older": (found.cuda.matmul.allow_tf32, found.cudnn.allow_tf32),
        "cpu matmul": found.mkldnn.matmul.fp32_precision,
    }


@pytest.fixture
def _units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has units for all of it."""
    monkeypatch.setattr(precisions, "has_units", lambda precision, device: True)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_rounding_is_to_the_nearest_with_ties_to_even(precision: Precision) -> None:
    step = 2.0 ** (1 - BITS[precision])
    exact = torch.tensor([1.0, 1.0 + step, -2.0 - 2 * step, 0.0])
    assert torch.equal(round_to(precision, exact), exact)
    ties = torch.tensor([1.0 + step / 2, 1.0 + 3 * step / 2, -1.0 - step / 2])
    assert round_to(precision, ties).tolist() == [1.0, 1.0 + 2 * step, -1.0]
    values = drawn(1000)
    assert bool(((round_to(precision, values) - values).abs() <= step / 2 * values.abs()).all())
    assert not torch.equal(round_to(precision, values), values)


def test_bf16_is_torchs_own() -> None:
    values = drawn(1000)
    assert torch.equal(round_to("bf16", values), values.bfloat16().float())


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_operands_are_rounded_and_sums_are_not(precision: Precision) -> None:
    left, right, addend = drawn(7, 40), drawn(40, 5), drawn(7, 5)
    rounded = (round_to(precision, left).double() @ round_to(precision, right).double()).float()
    many = torch.stack([left, -left]), torch.stack([right, right])
    with multiplying_in(precision, CPU):
        found = left @ right
        added = torch.addmm(addend, left, right, beta=0.5, alpha=2.0)
        batched = torch.bmm(*many)
        batched_added = torch.baddbmm(torch.stack([addend, addend]), *many, beta=0.5, alpha=2.0)
    # 40 products of numbers around 1: float32 sums err by less than 1e-5.
    torch.testing.assert_close(found, rounded, atol=1e-5, rtol=0)
    torch.testing.assert_close(added, 0.5 * addend + 2.0 * rounded, atol=1e-5, rtol=0)
    torch.testing.assert_close(batched, torch.stack([rounded, -rounded]), atol=1e-5, rtol=0)
    torch.testing.assert_close(batched_added[1], 0.5 * addend - 2.0 * rounded, atol=1e-5, rtol=0)
    assert float((found - left @ right).abs().max()) > 1e-4


def test_nothing_but_float32_products_is_touched() -> None:
    logits, targets, wide = drawn(6, 9), torch.arange(6), drawn(8, 8).double()

    def others() -> list[Tensor]:
        return [
            torch.softmax(logits, dim=-1),
            functional.layer_norm(logits, (9,)),
            functional.cross_entropy(logits, targets),
            logits.square().sum(),
            wide @ wide,
        ]

    with multiplying_in("bf16", CPU):
        inside = others()
    assert all(torch.equal(one, other) for one, other in zip(inside, others(), strict=True))


@pytest.mark.usefixtures("_units")
@pytest.mark.parametrize(
    ("precision", "device", "changed"),
    [
        ("tf32", "cuda", {"gpu matmul": "tf32", "gpu conv": "tf32", "older": (True, True)}),
        ("bf16", "cpu", {"cpu matmul": "bf16"}),
        ("float32", "cuda", {}),
    ],
)
def test_units_are_switched_on_and_off_again(precision: Precision, device: str, changed: dict[str, Any]) -> None:
    before = switches()

    def stopped() -> None:
        with multiplying_in(precision, torch.device(device)):
            assert switches() == EXACT | changed
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        stopped()
    assert switches() == before


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_the_oldest_switch_can_be_read_afterwards(setting: str) -> None:
    """torch refuses to read it where the newer ones say otherwise."""
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        before = switches()
        with multiplying_in("float32"):
            assert switches() == EXACT
        assert torch.get_float32_matmul_precision() == setting
        assert switches() == before
    finally:
        torch.set_float32_matmul_precision(usual)


def test_a_device_without_units_is_known() -> None:
    assert precisions.has_units("float32", CPU)
    assert not precisions.has_units("tf32", CPU)
    assert not precisions.has_units("bf16", torch.device("meta"))


# -- float32 by oneDNN -----------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Layers of 256 × 256, which are large for a batch of 8 × 256; it notes who multiplies them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(256, 256, dtype=dtype) for _ in range(3)))
        self.met: set[str] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        self.met.add(switches()["cpu matmul"])
        outputs: Tensor = torch.tanh(self.layers(inputs))
        return outputs


def wide_task(dtype: torch.dtype = torch.float32) -> tuple[Wide, Task]:
    model, batch = Wide(dtype), drawn(8, 256).to(dtype)

    def criterion(outputs: Tensor, batch: Any) -> tuple[Tensor, int]:
        return (outputs - batch).square().sum(), len(batch)

    return model, Task(model=model, predict=lambda model, batch: model(batch), criterion=criterion, evaluation=[batch])


MODEL_WORK: dict[str, Callable[[Task, ParameterLayout], object]] = {
    "product": lambda task, layout: HessianOperator(task, layout, count=8).matvec(torch.ones(layout.size)),
    "product, graph kept": lambda task, layout: HessianOperator(
        task, layout, count=8, graphs=GraphStore(1, layout.parameters)
    ).matvec(torch.ones(layout.size)),
    "Gauss-Newton": lambda task, layout: GaussNewtonOperator(task, layout, count=8).matvec(torch.ones(layout.size)),
    "Gauss-Newton by differences": lambda task, layout: GaussNewtonDifferenceOperator(task, layout).matvec(
        torch.ones(layout.size)
    ),
    "gradient": lambda task, layout: loss_and_gradient(task, layout, "evaluation"),
    "training gradient": lambda task, layout: set_gradients(task, layout.parameters, task.evaluation[0], "a batch"),
    "loss": lambda task, layout: evaluate_loss(task),
}


@pytest.mark.parametrize("work", MODEL_WORK.values(), ids=MODEL_WORK)
@pytest.mark.parametrize("is_faster", [True, False])
def test_a_models_products_are_onednns_where_it_is_faster(
    work: Callable[[Task, ParameterLayout], object], is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "onednn_is_faster", lambda: is_faster)
    model, task = wide_task()
    with preserve_state(model):
        work(task, ParameterLayout(list(model.named_parameters())))
        assert switches() == EXACT  # sums over all parameters are torch's usual
    assert model.met == {"bf16" if is_faster else "ieee"}


@pytest.mark.parametrize(("samples", "dtype"), [(0, torch.float32), (8, torch.float64)], ids=["small", "float64"])
def test_other_products_are_left_alone(samples: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "onednn_is_faster", lambda: True)
    model = Wide(dtype)
    with preserve_state(model), multiplying_large(model, torch.ones(samples, 256, dtype=dtype)):
        assert switches() == EXACT


def test_onednns_switch_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "onednn_is_faster", lambda: True)
    before = switches()

    def stopped() -> None:
        with multiplying_large(Wide(), torch.ones(8, 256)):
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        stopped()
    assert switches() == before


def test_products_are_float32s_whoever_makes_them() -> None:
    """On the processor at hand, whichever library it takes."""
    images = {}
    for dtype in (torch.float32, torch.float64):
        model, task = wide_task(dtype)
        layout = ParameterLayout(list(model.named_parameters()))
        if dtype == torch.float64:
            layout.write(images.pop("weights").double())
        else:
            images["weights"] = layout.read()
        with preserve_state(model):
            images[str(dtype)] = HessianOperator(task, layout, count=8).matvec(drawn(layout.size).to(dtype)).double()
    truth = images["torch.float64"]
    assert float((images["torch.float32"] - truth).norm() / truth.norm()) < 2e-6


def test_onednn_is_not_asked_where_it_takes_fewer_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "_is_by_amd", lambda: True)
    monkeypatch.setattr(precisions, "_asking_onednn", lambda: multiplying_in("bf16", CPU))
    assert not onednn_is_faster.__wrapped__()


def test_onednn_is_not_asked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "_is_by_amd", lambda: False)
    assert not onednn_is_faster.__wrapped__()


# -- Hessian products ------------------------------------------------------------------------------------------------


def operator_of(task: Task, graphs: GraphStore, precision: Precision = "float32") -> HessianOperator:
    layout = ParameterLayout(list(task.model.named_parameters()))
    count = sum(task.loss(batch)[1] for batch in task.evaluation)
    return HessianOperator(task, layout, count=count, graphs=graphs, precision=precision)


@pytest.mark.parametrize("kept", [0, 9], ids=["rebuilt", "kept"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_err_by_a_rounding(precision: Precision, kept: int) -> None:
    task = models.make_task("llama", torch.float32)
    with preserve_state(task.model):
        graphs = GraphStore(kept, list(task.model.parameters()))
        exact, fast = operator_of(task, graphs), operator_of(task, graphs, precision)
        vector = drawn(exact.size)
        image = exact.matvec(vector)
        apart = float((fast.matvec(vector) - image).norm() / image.norm())
    unit = 2.0 ** -BITS[precision]
    # Each of some dozen products on the way rounds both operands; what was rounded reaches the result as it is.
    assert 0.05 * unit < apart < 12 * unit


def test_kept_graphs_are_float32s_whoever_builds_them() -> None:
    task = models.make_task("llama", torch.float32)
    with preserve_state(task.model):
        alone = operator_of(task, GraphStore(0))
        vector = drawn(alone.size)
        graphs = GraphStore(9, list(task.model.parameters()))
        operator_of(task, graphs, "bf16").matvec(vector)
        assert len(graphs.kept) == len(task.evaluation)
        assert torch.equal(operator_of(task, graphs).matvec(vector), alone.matvec(vector))

"""Operators and commands on a device against the CPU, from the same weights and batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lite_probe as lp
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.finite_difference import FiniteDifferenceOperator, GaussNewtonDifferenceOperator
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.precision import FAST, Precision
from lite_probe.optim import make_optimizer
from lite_probe.results.spectrum import Spectrum
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests.commands.running import BATCH, run
from tests.gpu.cases import NAMES, apart, make_task
from tests.operators.test_precision import BITS

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")
# Float32 on both: sums of a thousand terms or so in another order. Differences lose half of the digits before.
ROUNDING, DIFFERENCES = 1e-4, 5e-2
TOLERANCE = 1e-3  # of a pair's residual, beside which eigenvalues agree
SPECTRUM: dict[str, Any] = {
    "top": 2,
    "bottom": 1,
    "probes": 2,
    "probe_steps": 3,
    "tolerance": TOLERANCE,
    "products": "float32",  # whether fewer bits pay is for a stopwatch to say
}
OPERATORS = ("hessian, kept", "hessian, rebuilt", "ggn, kept", "ggn, rebuilt", "differences", "ggn by differences")


def make_operator(kind: str, task: Task, layout: ParameterLayout, count: int) -> SymmetricOperator:
    if kind == "differences":
        return FiniteDifferenceOperator(task, layout)
    if kind == "ggn by differences":
        return GaussNewtonDifferenceOperator(task, layout)
    graphs = GraphStore(len(task.evaluation) if kind.endswith("kept") else 0, layout.parameters)
    made = HessianOperator if kind.startswith("hessian") else GaussNewtonOperator
    return made(task, layout, count=count, graphs=graphs)


def multiplied(kind: str, task: Task) -> torch.Tensor:
    layout = ParameterLayout(list(task.model.named_parameters()))
    vector = torch.randn(layout.size, 1, generator=torch.Generator().manual_seed(5)).to(task.device)
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        if kind == "ggn by differences":
            task.evaluation = task.evaluation[:1]  # of one batch only
        return make_operator(kind, task, layout, count).matmat(vector)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", OPERATORS)
def test_products(kind: str, name: str, device: torch.device, tiny: bool) -> None:
    found, expected = (multiplied(kind, make_task(name, place, tiny=tiny)) for place in (device, CPU))
    assert found.device.type == device.type
    assert apart(found, expected) < (DIFFERENCES if "differences" in kind else ROUNDING)


@pytest.mark.parametrize("precision", FAST)
@pytest.mark.parametrize("name", NAMES)
def test_products_in_fewer_bits_err_by_a_rounding(
    name: str, precision: Precision, device: torch.device, tiny: bool
) -> None:
    task = make_task(name, device, tiny=tiny)
    layout = ParameterLayout(list(task.model.named_parameters()))
    vector = torch.randn(layout.size, 1, generator=torch.Generator().manual_seed(5)).to(device)
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        graphs = GraphStore(len(task.evaluation), layout.parameters)
        exact, fast = (
            HessianOperator(task, layout, count=count, graphs=graphs, precision=one).matmat(vector)
            for one in ("float32", precision)
        )
    unit = 2.0 ** -BITS[precision]
    assert 0.05 * unit < apart(fast, exact) < 12 * unit


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient(name: str, device: torch.device, tiny: bool) -> None:
    both = []
    for place in (device, CPU):
        task = make_task(name, place, tiny=tiny)
        with preserve_state(task.model):
            both.append(loss_and_gradient(task, ParameterLayout(list(task.model.named_parameters())), "evaluation"))
    assert both[0].loss == pytest.approx(both[1].loss, rel=1e-5)
    assert apart(both[0].gradient, both[1].gradient) < ROUNDING


def spectrum_on(place: torch.device, name: str, tiny: bool) -> tuple[Task, Spectrum]:
    task = make_task(name, place, tiny=tiny, train=30)
    return task, lp.measure_spectrum(task, **SPECTRUM)


@pytest.mark.parametrize("name", NAMES)
def test_commands(name: str, device: torch.device, tiny: bool) -> None:
    """Every measurement from the device's own spectrum and from the CPU's."""
    (task, found), (reference, expected) = (spectrum_on(place, name, tiny) for place in (device, CPU))
    assert found.eigenvalues == pytest.approx(expected.eigenvalues, rel=2 * TOLERANCE)
    assert found.trace.value == pytest.approx(expected.trace.value, rel=1e-2)
    subspaces = [
        lp.measure_subspace(
            one, spectrum, probes=2, warm_batches=2, optimizers=["muon-lite"], overlaps=False, preconditioned=False
        )
        for one, spectrum in ((task, found), (reference, expected))
    ]
    assert subspaces[0].gradient_share == pytest.approx(subspaces[1].gradient_share, rel=1e-2)
    asked: dict[str, Any] = {"optimizers": ["muon-lite"], "lr": 1e-3}
    for one in (task, reference):
        lp.measure_steps(one, **asked, warm_batches=2, step_batches=16, critical_batches=1)
    replays = [
        lp.replay(
            one, **asked, spectrum=spectrum, steps=3, seeds=2, warm_batches=2, curvature_probes=2, landscape=False
        )
        for one, spectrum in ((task, found), (reference, expected))
    ]
    for first, second in zip(replays[0].runs, replays[1].runs, strict=True):
        assert first.losses == pytest.approx(second.losses, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon-lite", "soap-lite"])
def test_optimizers(optimizer: str, name: str, device: torch.device, tiny: bool) -> None:
    """Three steps; SOAP's in float64, since a rounding decides which null directions its bases take up."""
    changes = []
    for place in (device, CPU):
        task = make_task(name, place, tiny=tiny)
        if optimizer == "soap-lite":
            task.model.double()
        layout = ParameterLayout(list(task.model.named_parameters()))
        before = layout.read()
        own = make_optimizer(optimizer, task.model.named_parameters(), lr=1e-3, blocks=task.blocks)
        for step in range(3):
            own.zero_grad()
            loss, count = task.loss(task.evaluation[step % len(task.evaluation)])
            (loss / count).backward()  # type: ignore[no-untyped-call]
            own.step()
        changes.append(layout.read() - before)
    assert apart(*changes) < 0.01


def test_the_command_line(device: torch.device, tmp_path: Path) -> None:
    """One checkpoint from the command line, on the device and on the CPU."""
    from tests.commands.conftest import save_llama

    checkpoint, text = save_llama(tmp_path / "model", seed=5), tmp_path / "text.txt"
    text.write_text("".join(f"line {index}: {index * index} is a square.\n" for index in range(400)))
    values: list[Any] = []
    for place in (device.type, "cpu"):
        found = run(
            *("spectrum", checkpoint, "--data", text, "--out", tmp_path / f"on-{place}-{len(values)}", *BATCH),
            *("--device", place, "--top", "2", "--bottom", "0", "--probes", "2", "--json"),
        )
        assert found.exit_code == 0, found.stderr
        values.append(json.loads(found.stdout)["eigenvalues"])
    assert values[0] == pytest.approx(values[1], rel=2 * TOLERANCE)

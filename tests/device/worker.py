"""A process in which the pretend device is registered: reads requests from stdin, answers with what they found.

A request is a JSON list, the name of a function below and its arguments; the answer is a line of JSON.
"""

import copy
import json
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import lite_probe as lp
from lite_probe.blocks import block_map
from lite_probe.criteria import next_token_cross_entropy
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.optim import make_optimizer
from lite_probe.results.spectrum import Spectrum
from lite_probe.spectra.density import advance_probes, no_probes
from lite_probe.spectra.lanczos import Lanczos
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from tests import families, models, pretend
from tests.replays.conftest import with_training

_TRAIN = 18  # 2 to warm, 16 to step
_SHORT: dict[str, Any] = {"top": 1, "bottom": 0, "probes": 2, "probe_steps": 2, "tolerance": 0.3}


def family(name: str) -> dict[str, Any]:
    """Measure a spectrum and make steps with a model of a family; how far that is from what the CPU finds."""
    task = _family_task(name)
    expected = lp.measure_spectrum(_family_task(name), **_SHORT)
    found = lp.measure_spectrum(pretend.place(task), **_SHORT)
    apart = {"eigenvalue": _apart(found.eigenvalues[0], expected.eigenvalues[0])}
    apart["trace"] = _apart(found.trace.value, expected.trace.value)
    for optimizer in ("muon-lite", "soap-lite"):
        apart[optimizer] = _steps_apart(name, optimizer)
    return apart


def _steps_apart(name: str, optimizer: str) -> float:
    """Make two steps on both devices; return the largest difference of a weight."""
    ends = []
    for place in (False, True):
        task = pretend.place(_family_task(name)) if place else _family_task(name)
        own = make_optimizer(optimizer, task.model.named_parameters(), lr=1e-3, blocks=task.blocks)
        for _ in range(2):
            own.zero_grad()
            loss, count = task.loss(task.evaluation[0])
            (loss / count).backward()  # type: ignore[no-untyped-call]
            own.step()
        ends.append([parameter.detach().cpu() for parameter in task.model.parameters()])
    return max(float((first - second).abs().max()) for first, second in zip(*ends, strict=True))


def operators(name: str) -> dict[str, Any]:
    """Multiply by every operator; how far products are from the CPU's, and what a product waits for."""
    expected: dict[str, Tensor] = {}
    apart: dict[str, float] = {}
    waits: dict[str, Any] = {}
    for device in ("cpu", pretend.NAME):
        task = models.make_task(name, torch.float32)
        if device == pretend.NAME:
            task = pretend.place(task)
        layout = ParameterLayout(list(task.model.named_parameters()))
        vector = torch.linspace(-1.0, 1.0, layout.size).unsqueeze(1).to(device)
        with preserve_state(task.model):
            count = loss_and_gradient(task, layout, "evaluation").count
            for kind, operator in (("hessian", HessianOperator), ("ggn", GaussNewtonOperator)):
                for kept in (0, len(task.evaluation)):
                    made = operator(task, layout, count=count, graphs=GraphStore(kept, layout.parameters))
                    made.matmat(vector)  # builds what is kept
                    with pretend.traffic() as counted:
                        product = made.matmat(vector)
                    key = f"{kind}, {'kept' if kept else 'rebuilt'}"
                    if device == "cpu":
                        expected[key] = product
                    else:
                        apart[key] = float((product.cpu() - expected[key]).norm() / expected[key].norm())
                        waits[key] = counted.waits + counted.uploads
    return {"apart": apart, "waits": waits}


def steps_of_a_spectrum(name: str) -> dict[str, Any]:
    """What one Lanczos step and one step of a probe wait for, and one gradient over all batches."""
    task = pretend.place(models.make_task(name, torch.float32))
    layout = ParameterLayout(list(task.model.named_parameters()))
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        with pretend.traffic() as gradient:
            loss_and_gradient(task, layout, "evaluation")
        kept = GraphStore(len(task.evaluation), layout.parameters)
        operator = HessianOperator(task, layout, count=count, graphs=kept)
        first = layout.parameters[0]
        basis = KrylovBasis(layout.size, 20, dtype=first.dtype, device=first.device)
        run = Lanczos(operator, top=2, bottom=0, basis=basis, seed=0)
        for _ in range(4):
            run.step()
        with pretend.traffic() as lanczos:
            run.step()
        run.rotate_to_ritz()
        probes = no_probes(run, 1)
        advance_probes(run, 1, probes, 9, seed=0)
        advance_probes(run, 1, probes, 9, seed=0)
        with pretend.traffic() as probe:
            advance_probes(run, 1, probes, 9, seed=0)
    return {"gradient": gradient.waits, "lanczos step": lanczos.waits, "probe step": probe.waits}


def optimizer_step(optimizer: str) -> dict[str, Any]:
    """What an optimizer's step waits for once its state is arranged."""
    task = pretend.place(models.make_task("llama", torch.float32))
    own = make_optimizer(optimizer, task.model.named_parameters(), lr=1e-3, blocks=task.blocks)
    for _ in range(3):
        own.zero_grad()
        loss, count = task.loss(task.evaluation[0])
        (loss / count).backward()  # type: ignore[no-untyped-call]
        with pretend.traffic() as counted:
            own.step()
    return {"waits": counted.waits + counted.uploads}


def subspace(name: str) -> dict[str, Any]:
    """Measure a sharp subspace and calibrate a proxy."""
    task, spectrum = _placed(name)
    with pretend.traffic() as counted:
        found = lp.measure_subspace(
            task, spectrum, probes=2, warm_batches=2, optimizers=["muon-lite"], overlaps=False, preconditioned=False
        )
    return {"waits": counted.waits, "calibrated": sorted(found.calibrations)}


def steps(name: str) -> dict[str, Any]:
    """Measure steps of an optimizer."""
    task, _ = _placed(name)
    with pretend.traffic() as counted:
        lp.measure_steps(task, optimizers=["muon-lite"], lr=0.01, warm_batches=2, step_batches=16, critical_batches=1)
    return {"waits": counted.waits}


def replay(name: str) -> dict[str, Any]:
    """Replay two steps, then four; what a step and seed more waits for."""
    counts = []
    for length in (2, 4):
        task, spectrum = _placed(name)
        with pretend.traffic() as counted:
            lp.replay(
                task,
                optimizers=["muon-lite"],
                lr=0.01,
                spectrum=spectrum,
                steps=length,
                seeds=1,
                warm_batches=2,
                curvature_probes=2,
                landscape=False,
            )
        counts.append(counted.waits)
    more = {key: (count - counts[0][key]) / 2.0 for key, count in counts[1].items() if count != counts[0][key]}
    return {"step": more}


def mixed() -> dict[str, Any]:
    """Let tensors of two devices meet, as they may and as they may not."""
    here, there = torch.ones(3), torch.ones(3, device=pretend.NAME)
    refused = {}
    calls: dict[str, Callable[[], Any]] = {
        "sum": lambda: there + here,
        "written in place": lambda: there.add_(here),
        "written in place on the CPU": lambda: here.add_(there),
        "product": lambda: there @ here,
        "listed": lambda: torch._foreach_add([there], [here]),
    }
    for key, call in calls.items():
        try:
            call()
            refused[key] = "went through"
        except RuntimeError as error:
            refused[key] = str(error)
    with pretend.traffic() as counted:
        number = float((there * torch.tensor(2.0)).sum())
        there[torch.tensor([0, 1])] = 0.0
        left = there.cpu().tolist()
        int((there > 0).nonzero()[0, 0])
        there[there > 0] = 2.0
        torch.tensor([1.0], device=pretend.NAME)
        there.copy_(here, non_blocking=True)
    return {"refused": refused, "number": number, "left": left, "waits": counted.waits, "uploads": counted.uploads}


def _placed(name: str) -> tuple[Task, Spectrum]:
    """A trained model with training batches on the device, and its spectrum."""
    task = pretend.place(with_training(name, _TRAIN))
    return task, lp.measure_spectrum(task, **_SHORT)


@cache
def _family_model(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return families.make_model(families.CONFIGS[name])


def _family_task(name: str) -> Task:
    model: Any = copy.deepcopy(_family_model(name))
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    return Task(
        model=model,
        predict=models.predict_logits,
        criterion=next_token_cross_entropy,
        evaluation=[torch.randint(0, 256, (2, 9), generator=generator)],
        blocks=block_map(shapes, model.config.model_type, config=model.config),
    )


def _apart(found: float, expected: float) -> float:
    return abs(float(found) - float(expected)) / abs(float(expected))


def main() -> None:
    torch.set_num_threads(1)
    pretend.install()
    requests: list[Callable[..., dict[str, Any]]] = [
        *(family, operators, steps_of_a_spectrum, optimizer_step, subspace, steps, replay, mixed),
    ]
    known = {request.__name__: request for request in requests}
    for line in sys.stdin:
        name, *given = json.loads(line)
        try:
            answer: dict[str, Any] = {"found": known[name](*given)}
        except Exception:  # noqa: BLE001 - whatever went wrong is the answer
            answer = {"error": traceback.format_exc()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

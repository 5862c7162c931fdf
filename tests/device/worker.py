"""A process in which the pretend device is registered: reads requests from stdin, answers with what they found.

A request is a JSON list, the name of a function below and its arguments; the answer is a line of JSON.
"""

import copy
import json
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace as changed
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import lite_probe as lp
from lite_probe.blocks import block_map
from lite_probe.criteria import classification_cross_entropy, next_token_cross_entropy
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.optim import LiteOptimizer, make_optimizer
from lite_probe.replays.theory import linear_theory
from lite_probe.results.spectrum import Spectrum
from lite_probe.runtime.resumable import SaveClock
from lite_probe.spectra.density import advance_probes, no_probes
from lite_probe.spectra.lanczos import Lanczos
from lite_probe.subspaces import Subspace, cut_bands, optimizer_of, warm
from lite_probe.subspaces.cuts import STRETCH, sums_by_label
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import CHUNK
from tests import families, models, pretend
from tests.plans import plan_replay
from tests.replays.conftest import figures, with_training

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


def wide() -> dict[str, Any]:
    """Measure a spectrum of more parameters than are multiplied by one at a time on a CPU; how far it is from there."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(16, 400), nn.Tanh(), nn.Linear(400, 100), nn.Tanh(), nn.Linear(100, 5))
        batch = torch.randn(9, 16), torch.randint(0, 5, (9,))
    task = Task(model, models.predict_first, classification_cross_entropy, [batch])
    expected = lp.measure_spectrum(copy.deepcopy(task), **_SHORT)
    found = lp.measure_spectrum(pretend.place(task), **_SHORT)
    apart = {"eigenvalue": _apart(found.eigenvalues[0], expected.eigenvalues[0])}
    apart["trace"] = _apart(found.trace.value, expected.trace.value)
    return {"chunks": sum(one.numel() for one in model.parameters()) / CHUNK, "apart": apart}


def steps_of_a_spectrum(name: str) -> dict[str, Any]:
    """What one Lanczos step and one step of a probe wait for, and one gradient over all batches."""
    task = pretend.place(models.make_task(name, torch.float32))
    layout = ParameterLayout(list(task.model.named_parameters()))
    counted: dict[str, pretend.Traffic] = {}
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        with pretend.traffic() as counted["gradient"]:
            loss_and_gradient(task, layout, "evaluation")
        kept = GraphStore(len(task.evaluation), layout.parameters)
        operator = HessianOperator(task, layout, count=count, graphs=kept)
        first = layout.parameters[0]
        basis = KrylovBasis(layout.size, 20, dtype=first.dtype, device=first.device)
        run = Lanczos(operator, top=2, bottom=0, basis=basis, seed=0)
        for _ in range(4):
            run.step()
        with pretend.traffic() as counted["lanczos step"]:
            run.step()
        run.rotate_to_ritz()
        probes = no_probes(run, 1)
        advance_probes(run, 1, probes, 9, seed=0)
        advance_probes(run, 1, probes, 9, seed=0)
        with pretend.traffic() as counted["probe step"]:
            advance_probes(run, 1, probes, 9, seed=0)
    return {key: one.waits + one.uploads for key, one in counted.items()}


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


def _warmed(optimizer: str) -> tuple[ParameterLayout, LiteOptimizer]:
    """The Llama's parameters, and an optimizer of them that has seen its batches."""
    task = pretend.place(models.make_task("llama", torch.float32))
    made = optimizer_of(task, optimizer)
    with preserve_state(task.model):
        warm(task, [made], task.evaluation)
    return ParameterLayout(list(task.model.named_parameters())), made


def bands(optimizer: str) -> dict[str, Any]:
    """What cutting an optimizer's directions into bands and products with them wait for."""
    layout, made = _warmed(optimizer)
    directions = made.directions()
    with pretend.traffic() as cut:
        found = cut_bands(layout, directions, optimizer=optimizer)
    vector = torch.linspace(-1.0, 1.0, layout.size).to(pretend.NAME)
    with pretend.traffic() as multiplied:
        found.products(vector, vector)
    return {"cut": cut.waits + cut.uploads, "products": multiplied.waits + multiplied.uploads}


def sums() -> dict[str, Any]:
    """Add up more than a stretch of numbers by label there and on the CPU; one is not finite."""
    values = torch.linspace(-1.0, 1.0, STRETCH + 5, dtype=torch.float64)
    values[-1] = torch.inf
    labels = torch.arange(len(values)).remainder(3).to(torch.int16)
    found = sums_by_label(values.to(pretend.NAME), labels.to(pretend.NAME), 4)
    return {"found": found.tolist(), "expected": sums_by_label(values, labels, 4).tolist()}


def theory(optimizer: str) -> dict[str, Any]:
    """What the linear theory waits for along one more vector of two, which are kept in main memory."""
    layout, made = _warmed(optimizer)
    rows = torch.linalg.qr(torch.randn(layout.size, 2, generator=torch.Generator().manual_seed(0)))[0].T.contiguous()

    def predict(count: int) -> Counter[str]:
        sharp = Subspace(rows[:count], eigenvalues=np.array([2.0, 1.0])[:count], residual_norms=np.zeros(count))
        with pretend.traffic() as counted:
            assert linear_theory(made, optimizer, 1e-3, layout, sharp) is not None
        return counted.waits + counted.uploads

    return {"vector": predict(2) - predict(1)}


def subspace(name: str) -> dict[str, Any]:
    """Measure a sharp subspace and calibrate a proxy; what one probe waits for."""
    task, spectrum = _placed(name)
    seen: list[Counter[str]] = []
    with pretend.traffic() as counted:
        lp.measure_subspace(
            task,
            spectrum,
            probes=2,
            warm_batches=2,
            optimizers=["muon-lite"],
            overlaps=False,
            preconditioned=False,
            on_progress=lambda done, expected, label: _note(seen, counted, label.startswith("calibrating · probe")),
        )
    return {"probe": seen[-1] - seen[-2]}


def steps(name: str) -> dict[str, Any]:
    """Measure steps of an optimizer; what the last of them waits for."""
    task, _ = _placed(name)
    seen: list[Counter[str]] = []
    with pretend.traffic() as counted:
        lp.measure_steps(
            task,
            optimizers=["muon-lite"],
            lr=0.01,
            warm_batches=2,
            step_batches=16,
            critical_batches=1,
            on_progress=lambda done, expected, label: _note(seen, counted, label == "making steps"),
        )
    return {"step": seen[-1] - seen[-2]}


def replay(name: str) -> dict[str, Any]:
    """Replay some steps, none of them refined; what the last of them waits for."""
    task, spectrum = _placed(name)
    seen: list[Counter[str]] = []
    with pretend.traffic() as counted:
        lp.replay(
            task,
            optimizers=["muon-lite"],
            lr=0.01,
            spectrum=spectrum,
            steps=3,
            seeds=1,
            warm_batches=2,
            curvature_probes=2,
            tolerance=0.9,
            landscape=False,
            on_step=lambda told: _note(seen, counted, told.phase == "replay" and told.step > 0),
        )
    return {"step": seen[-1] - seen[-2]}


def resumed(name: str, optimizer: str) -> dict[str, Any]:
    """Stop a replay in its first run and go on with it; which steps the second process made, and whether bits differ.

    What runs start from is in memory the first time, and then in files.
    """
    task, spectrum = _placed(name)
    asked: dict[str, Any] = {"lr": 0.01, "steps": 3, "seeds": 1, "warm_batches": 2, "curvature_probes": 2}
    plan = plan_replay(task, [optimizer], spectrum=spectrum, **asked)
    stored = changed(plan, stores_states=True)
    steps: list[int] = []

    def stop(told: Any) -> None:
        if told.step == 2:
            raise KeyboardInterrupt

    whole = plan.run(task)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(SaveClock, "due", True):
        with suppress(KeyboardInterrupt):
            stored.run(task, state_directory=Path(folder), on_event=stop)
        found = stored.run(task, state_directory=Path(folder), on_event=lambda told: steps.append(told.step))
    same = figures(found.runs) == figures(whole.runs) and figures(found.landscape) == figures(whole.landscape)
    return {"steps": steps, "same": same}


def _note(seen: list[Counter[str]], counted: pretend.Traffic, is_wanted: bool) -> None:
    """Keep what was counted until now."""
    if is_wanted:
        seen.append(counted.waits + counted.uploads)


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
        *(family, operators, wide, steps_of_a_spectrum, optimizer_step),
        *(bands, sums, theory, subspace, steps, replay, resumed, mixed),
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

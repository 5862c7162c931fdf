"""What every rank of test_ranks.py runs: `torchrun rank_worker.py OUT`.

OUT holds the spectrum of `trained`. Writes found-R.pt into the folder OUT, what rank R has found by name.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lite_probe.criteria import classification_cross_entropy
from lite_probe.errors import LiteProbeError, UsageError
from lite_probe.measurements.replay import replay
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.measurements.steps import measure_steps
from lite_probe.measurements.subspace import measure_subspace
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.operators.gradient import loss_and_gradient, require_deterministic
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.ranks import ProcessRanks
from lite_probe.results.replay import Replay
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import load
from lite_probe.runtime.resumable import SaveClock
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.ranks import Ranks
from lite_probe.vectors.reductions import CHUNK
from tests.models import make_task, predict_first
from tests.replays.conftest import with_training

ASKED: dict[str, Any] = {"top": 4, "bottom": 2, "probes": 3, "probe_steps": 6, "tolerance": 1e-5}


def wide_task() -> Task:
    """A trained network of more than two chunks of parameters, in float64, with three unequal batches."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(16, 400), nn.Tanh(), nn.Linear(400, 80), nn.Tanh(), nn.Linear(80, 5)).double()
        batches = [(torch.randn(rows, 16).double(), torch.randint(0, 5, (rows,))) for rows in (9, 4, 6)]
    return Task(model=model, predict=predict_first, criterion=classification_cross_entropy, evaluation=batches)


def products(task: Task) -> dict[str, Any]:
    """Products and gradient of a task."""
    layout = ParameterLayout(list(task.model.named_parameters()))
    count = sum(task.loss(batch)[1] for batch in task.evaluation)
    vectors = torch.randn(layout.size, 2, generator=torch.Generator().manual_seed(0)).to(layout.parameters[0].dtype)
    with preserve_state(task.model):
        evaluated = loss_and_gradient(task, layout, "evaluation")
        graphs = GraphStore(1, layout.parameters)
        hessian = HessianOperator(task, layout, count=count, graphs=graphs)
        return {
            "hessian": hessian.matmat(vectors),
            "hessian again": hessian.matmat(vectors),
            "ggn": GaussNewtonOperator(task, layout, count=count).matmat(vectors),
            "differences": FiniteDifferenceOperator(task, layout).matmat(vectors[:, :1]),
            "gradient": evaluated.gradient,
            "loss": torch.tensor(evaluated.loss, dtype=torch.float64),
            "count": torch.tensor(evaluated.count),
            "kept": torch.tensor(len(graphs.kept)),
        }


def two_batches() -> Task:
    """Two unequal batches in float32."""
    return make_task("mlp", torch.float32)


def three_batches() -> Task:
    """Three unequal batches of tokens in float64."""
    return make_task("llama")


def one_batch() -> Task:
    """Fewer batches than ranks."""
    task = make_task("mlp")
    return replace(task, evaluation=task.evaluation[1:])


def narrow_task() -> Task:
    """A network of so few parameters that one rank holds all of a vector."""
    return make_task("mlp")


def poisoned() -> Task:
    """A second batch whose loss is NaN."""
    task = make_task("mlp")
    inputs, targets = task.evaluation[1]
    return replace(task, evaluation=[task.evaluation[0], (inputs * float("nan"), targets)])


class Idle(nn.Module):
    """A network beside parameters that no loss depends on."""

    def __init__(self, used: nn.Module) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.used = used

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.used(inputs)
        return outputs


class CutOff(Idle):
    """One that the loss depends on, without a gradient."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.used(inputs)
        return outputs * self.idle.detach().sum()


def unused(make: Callable[[nn.Module], nn.Module], count: int, ranks: Ranks) -> str:
    """What is said of parameters without a gradient."""
    task = wide_task()
    task = replace(task, model=make(task.model), evaluation=task.evaluation[:count], ranks=ranks)
    layout = ParameterLayout(list(task.model.named_parameters()))
    return refused(lambda: require_deterministic(task, layout, "evaluation"))


def spectrum(task: Task, **more: Any) -> dict[str, Tensor]:
    """The numbers of a task's spectrum."""
    found = measure_spectrum(task, **ASKED, **more)
    arrays = ("eigenvalues", "lower_eigenvalues", "residual_norms", "nodes", "weights")
    numbers = {name: torch.tensor(getattr(found.whole, name)) for name in arrays}
    traces = torch.tensor([found.whole.trace.value, found.whole.trace_h2.value, found.loss], dtype=torch.float64)
    vectors = found.eigenvectors
    return {**numbers, "traces": traces, **({"vectors": torch.from_numpy(vectors)} if vectors is not None else {})}


def trained(dtype: torch.dtype = torch.float64) -> Task:
    """A network with training batches, and held-out batches beside the two that it is evaluated on."""
    task = with_training("mlp", 60, dtype)
    return replace(task, train=task.train[:-2], heldout=task.train[-2:])


def numbers_of(found: Any) -> dict[str, Tensor]:
    """All arrays and numbers of a result, by where they stand, but for times."""
    numbers: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> None:
        if is_dataclass(value):
            value = {one.name: getattr(value, one.name) for one in fields(value)}
        if isinstance(value, Mapping):
            for name, part in value.items():
                if name not in ("provenance", "seconds", "config"):
                    walk(part, f"{path}.{name}")
        elif isinstance(value, list | tuple):
            for place, part in enumerate(value):
                walk(part, f"{path}.{place}")
        elif isinstance(value, np.ndarray | float | int):
            numbers[path] = torch.tensor(np.asarray(value, dtype=np.float64))

    walk(found, "")
    return numbers


def measured(task: Task, spectrum: Spectrum) -> dict[str, dict[str, Tensor]]:
    """Steps and subspace of a task, dealt, and a replay of it."""
    steps = measure_steps(task, ["muon"], lr=0.01, warm_batches=4, step_batches=16, critical_batches=3)
    subspace = measure_subspace(task, spectrum=spectrum, size=2, optimizers=("adamw",), probes=2, warm_batches=4)
    return {
        "steps": numbers_of(steps),
        "subspace": numbers_of(subspace),
        "replay": numbers_of(replayed(task, spectrum)),
    }


def replayed(task: Task, spectrum: Spectrum, **more: Any) -> Replay:
    """A replay of three runs of two optimizers, one of which has its rate swept."""
    lr = {"muon": 0.01, "adamw": "sweep"}
    return replay(
        task, ["muon", "adamw"], spectrum=spectrum, lr=lr, steps=3, seeds=3, warm_batches=4, ablations=True, **more
    )


class StoppedError(Exception):
    """What a test interrupts a measurement with."""


def resumed(ranks: Ranks, folder: Path, make: Callable[[], Task]) -> dict[str, Any]:
    """A spectrum that was interrupted on all ranks and then continued, and what was continued from."""
    told: list[int] = []

    def interrupt(done: int, expected: int, label: str) -> None:
        if done >= 20:
            raise StoppedError

    # It is saved when that is cheap beside what has passed: here at every step.
    with suppress(StoppedError), mock.patch.object(SaveClock, "due", True):
        measure_spectrum(replace(make(), ranks=ranks), state_directory=folder, on_progress=interrupt, **ASKED)
    refusal = refused(lambda: measure_spectrum(make(), state_directory=folder, **ASKED))
    task = replace(make(), ranks=ranks)
    ranks.from_every(None)  # all were refused
    numbers = spectrum(task, state_directory=folder, on_progress=lambda done, *_: told.append(done))
    return {"numbers": numbers, "continued from": told[0], "refusal": refusal}


def sharded() -> str:
    """What is said of a model whose parameters are shards."""
    task = make_task("mlp", torch.float32)
    fully_shard(task.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    named = list(task.model.named_parameters())
    return refused(lambda: loss_and_gradient(task, ParameterLayout(named), "evaluation"))


def unlike(ranks: Ranks, what: str) -> str:
    """What is said of a spectrum where rank 1 has other weights, or other batches."""
    task = replace(make_task("mlp"), ranks=ranks)
    if ranks.rank == 1 and what == "weights":
        with torch.no_grad():
            next(task.model.parameters()).mul_(1.5)
    if ranks.rank == 1 and what == "batches":
        task = replace(task, evaluation=task.evaluation[::-1])
    return refused(lambda: measure_spectrum(task, **ASKED))


def refuse(rank: int) -> None:
    """Refuse something, on rank 0 alone."""
    raise UsageError(f"expected no rank {rank}, got it", "do without")


def exchanges(ranks: Ranks) -> dict[str, Any]:
    """What ranks tell each other."""
    size = 3 * CHUNK + 7
    vectors = torch.arange(2 * size, dtype=torch.float32).reshape(2, size)
    basis = KrylovBasis(size, 3, dtype=torch.float32, device=torch.device("cpu"), ranks=ranks)
    own = vectors[:, basis.part].clone()
    basis.append(own / basis.norm(own[0]))
    short = vectors[:, :5]
    narrow = torch.full((size,), 1e-30)[basis.part]
    return {
        "part": (basis.part.start, basis.part.stop),
        "whole": torch.equal(basis.whole(own), vectors),
        "short": (ranks.part(5).start, ranks.part(5).stop, torch.equal(ranks.whole(short[:, ranks.part(5)], 5), short)),
        "norm": basis.norm(own[1]) / float(vectors[1].double().norm()),
        "tiny": basis.norm(narrow) / (1e-30 * size**0.5),
        "project": basis.project(own),
        "once": ranks.once(lambda: f"rank {ranks.rank}"),
        "long": ranks.once(lambda: bytes(10**6 + ranks.rank)) == bytes(10**6),
        "every": [len(one) for one in ranks.from_every("x" * (5000 * ranks.rank + 1))],
        "refused": refused(lambda: ranks.once(partial(refuse, ranks.rank))),
        "least": ranks.least(7 - ranks.rank),
        "own": ranks.own("abcde"),
    }


def refused(call: Callable[[], object]) -> str:
    """The error that a call ends with."""
    try:
        call()
    except LiteProbeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(out: Path) -> None:
    """Find everything."""
    with ProcessRanks(timeout=60.0) as ranks:
        tasks = {"two": two_batches(), "three": three_batches(), "one": one_batch(), "wide": wide_task()}
        for task in tasks.values():
            task.ranks = ranks
        bad = replace(poisoned(), ranks=ranks)
        found = {name: products(tasks[name]) for name in ("two", "three", "one")}
        found["nan"] = {"error": refused(lambda: products(bad))}
        found["unused"] = {
            "three": unused(Idle, 3, ranks),
            "one": unused(Idle, 1, ranks),
            "cut off": unused(CutOff, 3, ranks),
        }
        found["spectrum"] = spectrum(tasks["wide"])
        found["exchanges"] = exchanges(ranks)
        found["resumed"] = resumed(ranks, out / "wide", wide_task)
        found["resumed narrow"] = resumed(ranks, out / "narrow", narrow_task)
        found["measured"] = measured(replace(trained(), ranks=ranks), load(out, "spectrum"))
        found["sharded"] = {"error": sharded()}
        found["unlike"] = {what: unlike(ranks, what) for what in ("weights", "batches")}
        torch.save(found, out / f"found-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What every rank of test_ranks.py runs: `torchrun rank_worker.py OUT`.

Writes found-R.pt into the folder OUT, what rank R has found by name.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.criteria import classification_cross_entropy
from lite_probe.errors import LiteProbeError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.ranks import ProcessRanks
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.ranks import Ranks
from lite_probe.vectors.reductions import CHUNK
from tests.models import make_task, predict_first

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


def poisoned() -> Task:
    """A second batch whose loss is NaN."""
    task = make_task("mlp")
    inputs, targets = task.evaluation[1]
    return replace(task, evaluation=[task.evaluation[0], (inputs * float("nan"), targets)])


def spectrum(task: Task) -> dict[str, Tensor]:
    """The numbers of a task's spectrum."""
    found = measure_spectrum(task, **ASKED)
    arrays = ("eigenvalues", "lower_eigenvalues", "residual_norms", "nodes", "weights")
    numbers = {name: torch.tensor(getattr(found.whole, name)) for name in arrays}
    traces = torch.tensor([found.whole.trace.value, found.whole.trace_h2.value, found.loss], dtype=torch.float64)
    vectors = found.eigenvectors
    return {**numbers, "traces": traces, **({"vectors": torch.from_numpy(vectors)} if vectors is not None else {})}


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
        found["spectrum"] = spectrum(tasks["wide"])
        found["exchanges"] = exchanges(ranks)
        torch.save(found, out / f"found-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

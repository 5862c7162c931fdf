"""Runs on a device: twice the same, continued after a kill, and without waiting more than they must."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lite_probe as lp
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GraphStore, HessianOperator
from lite_probe.optim import make_optimizer
from lite_probe.spectra.density import advance_probes, no_probes
from lite_probe.spectra.lanczos import Lanczos
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from tests.device.budgets import require_within
from tests.gpu.cases import NAMES, apart, make_task, waits_on

pytestmark = pytest.mark.cuda

ROOT = Path(__file__).parents[2]
TRAIN = 10  # batches: 2 to warm on, 4 to step from, as many that would be swept on
# Float32 alone: whether fewer bits pay is for a stopwatch to say, and other products are made then.
SPECTRUM: dict[str, Any] = {
    "top": 2,
    "bottom": 1,
    "probes": 2,
    "probe_steps": 3,
    "tolerance": 1e-3,
    "products": "float32",
}
REPLAY: dict[str, Any] = {
    "optimizers": ["soap-lite"],
    "lr": 1e-3,
    "steps": 4,
    "seeds": 1,
    "warm_batches": 2,
    "curvature_probes": 0,
    "landscape": False,
}


def spectrum(task: Task, **kept: Any) -> list[float]:
    """Measure a spectrum; return its numbers."""
    found = lp.measure_spectrum(task, **SPECTRUM, **kept)
    return [found.whole.num_hvps, *found.eigenvalues, found.trace.value]


def replay(task: Task, **kept: Any) -> list[float]:
    """Replay a run; return its numbers."""
    (run,) = lp.replay(task, spectrum=lp.measure_spectrum(task, **SPECTRUM), **REPLAY, **kept).runs
    return [*run.losses, *run.update_norms, *run.allocations]


MEASURED: dict[str, Callable[..., list[float]]] = {"spectrum": spectrum, "replay": replay}

# Measures, saves after every step, and kills itself after so many reports of progress; 0 lets it end.
KILLED = """
import json, os, signal, sys
from pathlib import Path

root, kind, folder, device, tiny, kill_at = json.loads(sys.argv[1])
sys.path.insert(0, root)
from tests.tree import open_tree

open_tree(Path(root))
import torch
from lite_probe.runtime.resumable import SaveClock
from tests.gpu.cases import make_task
from tests.gpu.test_running import MEASURED, TRAIN

SaveClock.due = property(lambda self: True)
calls = 0

def on_progress(done, expected, label):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

task = make_task("llama", torch.device(device), tiny=tiny, train=TRAIN)
found = MEASURED[kind](task, state_directory=Path(folder), on_progress=on_progress)
print(json.dumps([calls, found]))
"""


def measured(
    kind: str, folder: Path, device: torch.device, tiny: bool, kill_at: int
) -> "subprocess.CompletedProcess[str]":
    asked = json.dumps([str(ROOT), kind, str(folder), device.type, tiny, kill_at])
    return subprocess.run([sys.executable, "-c", KILLED, asked], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", MEASURED)
def test_a_killed_run_continues(kind: str, device: torch.device, tiny: bool, tmp_path: Path) -> None:
    killed = measured(kind, tmp_path / "state", device, tiny, kill_at=6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    continued = measured(kind, tmp_path / "state", device, tiny, kill_at=0)
    assert continued.returncode == 0, continued.stderr
    calls, found = json.loads(continued.stdout.splitlines()[-1])
    told = list[str]()
    task = make_task("llama", device, tiny=tiny, train=TRAIN)
    expected = MEASURED[kind](task, on_progress=lambda done, total, label: told.append(label))
    assert calls < len(told), "the second process began anew"
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_are_alike(
    name: str, device: torch.device, tiny: bool, record_property: Callable[[str, object], None]
) -> None:
    """Bitwise on a CPU; on a GPU sums by atomics may round differently."""
    first, second = (lp.measure_spectrum(make_task(name, device, tiny=tiny), **SPECTRUM) for _ in range(2))
    assert first.whole.num_hvps == second.whole.num_hvps
    found = max(apart(first.eigenvalues, second.eigenvalues), apart(first.trace.value, second.trace.value))
    record_property("apart", found)
    assert found <= (1e-4 if device.type == "cuda" else 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_repeat(
    name: str, device: torch.device, tiny: bool, record_property: Callable[[str, object], None]
) -> None:
    """Experts gather and scatter their tokens: by atomics, whose order is free."""
    task = make_task(name, device, tiny=tiny)
    layout = ParameterLayout(list(task.model.named_parameters()))
    with preserve_state(task.model):
        first, second = (loss_and_gradient(task, layout, "evaluation") for _ in range(2))
    found = apart(first.gradient, second.gradient)
    record_property("apart", found)
    assert found <= (1e-5 if device.type == "cuda" else 0.0)


def test_what_is_waited_for(device: torch.device, tiny: bool, record_property: Callable[[str, object], None]) -> None:
    task = make_task("llama", device, tiny=tiny)
    layout = ParameterLayout(list(task.model.named_parameters()))
    counted: dict[str, Counter[str]] = {}
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        with waits_on(device) as counted["gradient"]:
            loss_and_gradient(task, layout, "evaluation")
        kept = GraphStore(len(task.evaluation), layout.parameters)
        operators = {"kept": kept, "rebuilt": GraphStore(0, layout.parameters)}
        made = {key: HessianOperator(task, layout, count=count, graphs=graphs) for key, graphs in operators.items()}
        vector = torch.ones(layout.size, 1, device=device)
        for key, operator in made.items():
            operator.matmat(vector)
            with waits_on(device) as counted[f"product, {key}"]:
                operator.matmat(vector)
        run = Lanczos(
            made["kept"],
            top=2,
            bottom=0,
            basis=KrylovBasis(layout.size, 20, dtype=torch.float32, device=device),
            seed=0,
        )
        for _ in range(4):
            run.step()
        with waits_on(device) as counted["lanczos step"]:
            run.step()
        run.rotate_to_ritz()
        probes = no_probes(run, 1)
        for _ in range(2):
            advance_probes(run, 1, probes, 9, seed=0)
        with waits_on(device) as counted["probe step"]:
            advance_probes(run, 1, probes, 9, seed=0)
    for key, waits in counted.items():
        record_property(key, sum(waits.values()))
        require_within({**waits}, key)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muon-lite"])
def test_a_step_does_not_wait(optimizer: str, device: torch.device, tiny: bool) -> None:
    task = make_task("llama", device, tiny=tiny)
    own = make_optimizer(optimizer, task.model.named_parameters(), lr=1e-3, blocks=task.blocks)
    loss, count = task.loss(task.evaluation[0])
    (loss / count).backward()  # type: ignore[no-untyped-call]
    own.step()
    own.step()
    with waits_on(device) as waits:
        own.step()
    assert not waits

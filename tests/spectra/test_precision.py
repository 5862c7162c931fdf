"""What cannot be certified in its own precision is refused, and the way out that is named is one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_probe.errors import InputError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.task import Task
from tests import models
from tests.commands.running import run
from tests.plans import plan_replay, plan_spectrum, plan_subspace

_MINE = """
import torch
from lite_probe.criteria import squared_error
from lite_probe.task import Task, TaskInfo
def build():
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3).to(torch.{0}), torch.randn(8, 1).to(torch.{0})) for _ in range(20)]
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(torch.{0})
    return Task(model=model, predict=lambda m, b: m(b[0]), criterion=squared_error, evaluation=batches[:2],
                train=batches[2:], info=TaskInfo(name="mine", data_name="noise", batch_size=8))
"""


def half_task(dtype: torch.dtype) -> Task:
    task = models.make_task("mlp", torch.float32)
    task.model.to(dtype)
    task.evaluation = [(inputs.to(dtype), targets) for inputs, targets in task.evaluation]
    generator = torch.Generator().manual_seed(3)
    task.train = [(torch.randn(4, 5, generator=generator).to(dtype), torch.zeros(4).long()) for _ in range(6)]
    return task


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_refused_by_every_measurement(dtype: torch.dtype) -> None:
    spectrum = measure_spectrum(models.make_task("mlp", torch.float32), top=2, bottom=1, probes=2)
    calls: list[Callable[[Task], Any]] = [
        plan_spectrum,
        lambda task: measure_spectrum(task, method="finite-differences"),
        lambda task: plan_subspace(task, spectrum),
        lambda task: plan_replay(task, ["sgd"], spectrum=spectrum, steps=1, seeds=1, warm_batches=1),
    ]
    for call in calls:
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(InputError, match=rf"all in float32, or all in float64, got {name} \(0\.weight\)"):
            call(half_task(dtype))


def test_two_precisions_in_one_model_are_refused() -> None:
    task = models.make_task("mlp", torch.float32)
    task.model[0].double()  # type: ignore[index]
    with pytest.raises(InputError, match=r"got float32 \(2\.weight\) and float64 \(0\.weight\)"):
        plan_spectrum(task)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_the_hint_says_works(dtype: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_MINE.format(dtype))
    asked = ("--task", f"{tmp_path / 'mine.py'}:build", "--out", tmp_path / "out", "--threads", "1")
    few = ("--top", "2", "--bottom", "1", "--probes", "2")
    refused = run("spectrum", *asked, *few)
    assert refused.exit_code == 3, refused.stderr
    assert "--precision float32" in refused.stderr
    found = run("spectrum", *asked, *few, "--precision", "float32", "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["eigenvalues"][0] > 0
    more = ("--optimizers", "sgd", "--lr", "0.01", "--steps", "2", "--seeds", "1", "--warm-batches", "2")
    replayed = run("replay", *asked, *more, "--bands", "adamw", "--precision", "float32")
    assert replayed.exit_code == 0, replayed.stderr

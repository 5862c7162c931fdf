"""What commands share: the task they open, and the spectrum they start from."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lite_probe.commands.console import Terminal
from lite_probe.commands.measuring import Measuring, RunOptions
from lite_probe.commands.subspace import SubspaceMeasuring
from lite_probe.commands.task import TaskOptions, open_task, tell_task
from lite_probe.errors import InputError
from lite_probe.measurements.requests.spectrum import SpectrumRequest
from lite_probe.measurements.requests.subspace import SubspaceRequest
from lite_probe.task import Task, TaskInfo
from tests import models

Ask = Callable[..., TaskOptions]


@pytest.mark.parametrize(
    ("changes", "batches", "expected"),
    [
        ({}, 2, "2 × 4 × 16 tokens of text.txt, float64"),
        ({"seq_len": None}, 2, "2 × 4 samples of text.txt, float64"),
        ({"seq_len": None, "batch_size": 0, "data_name": ""}, 2, "2 batches, float64"),
        ({"seq_len": None, "batch_size": 0}, 1, "1 batch of text.txt, float64"),
    ],
)
def test_what_a_task_does_not_tell_is_not_said(
    changes: dict[str, Any], batches: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Terminal, "sides", lambda self, left, right: told.append(right))
    task = models.make_task("mlp")
    task.info = replace(task.info, **({"batch_size": 4, "seq_len": 16, "data_name": "text.txt"} | changes))
    tell_task(Terminal("lite-probe spectrum"), task, [None] * batches)
    assert told[0].startswith(expected)


@pytest.fixture
def ask(tiny_llama: Path, text: Path) -> Ask:
    """Returns what `BATCH` asks of the tiny checkpoint, with changes."""

    def asked(**changes: Any) -> TaskOptions:
        options: dict[str, Any] = {
            "checkpoint": str(tiny_llama),
            "data_path": str(text),
            "tokenizer": "bytes",
            "seq_len": 16,
            "batch_size": 4,
            "batches": 1,
            "device": "cpu",
            "threads": 1,
        }
        return TaskOptions(**(options | changes))

    return asked


def test_training_batches_leave_the_evaluation_batches_as_they_are(ask: Ask) -> None:
    """Else no spectrum could serve a command that trains."""
    alone, trained = open_task(ask()), open_task(ask(), train_batches=9)
    assert len(alone.task.train) == 0
    assert len(trained.task.train) == 9
    assert torch.equal(alone.task.evaluation[0], trained.task.evaluation[0])
    assert trained.checkpoint is not None
    assert trained.summary is not None


def test_a_task_of_ones_own_comes_without_a_checkpoint(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lite_probe.criteria import squared_error\n"
        "from lite_probe.task import Task\n"
        "def build():\n"
        "    batch = (torch.ones(2, 3), torch.ones(2, 1))\n"
        "    return Task(model=torch.nn.Linear(3, 1), predict=lambda m, b: m(b[0]), criterion=squared_error,\n"
        "                evaluation=[batch], train=[batch] * 3)\n"
    )
    file = f"{tmp_path / 'mine.py'}:build"
    opened = open_task(ask(checkpoint=None, data_path=None, task_file=file, precision="float64"), train_batches=50)
    assert (opened.checkpoint, opened.summary, opened.notes) == (None, None, ())
    assert len(opened.task.train) == 3  # it brings what it has
    assert next(opened.task.model.parameters()).dtype == torch.float64


def test_what_was_noted_on_the_way_is_kept(ask: Ask) -> None:
    assert "seq-len-shortened" in [note.code for note in open_task(ask(seq_len=None, batches=60)).notes]


def find_spectrum(asked: TaskOptions, folder: Path, *, fresh: bool = False) -> tuple[Any, Measuring | None]:
    """Return the spectrum that a subspace starts from, and who measures it first."""
    opened = open_task(asked, train_batches=2)
    request = SubspaceRequest(seed=asked.seed, warm_batches=2)
    one = SubspaceMeasuring(Terminal(""), asked, RunOptions(fresh=fresh), request)
    missing = one.find_spectrum(opened, folder)
    return one.request.spectrum, missing


def test_the_spectrum_in_the_run_directory_is_taken(ask: Ask, run_folder: Path) -> None:
    found, missing = find_spectrum(ask(), run_folder)
    assert missing is None
    assert found.whole.num_parameters == 10_800


def test_a_spectrum_that_is_not_there_comes_first(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, missing = find_spectrum(ask(), tmp_path)
    assert found is None
    assert missing is not None
    assert missing.request == SpectrumRequest()
    assert f"no spectrum in {tmp_path} yet: it comes first, with the defaults of lite-probe spectrum" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, r"spectrum\.json: expected a spectrum of these evaluation batches .*got one of others"),
        ({"batch_size": 2}, r"spectrum\.json: expected a spectrum of these evaluation batches"),
        ({"precision": "float64"}, r"spectrum\.json: expected a spectrum of float64 weights, got one of float32"),
    ],
)
def test_a_spectrum_of_something_else_is_refused(
    ask: Ask, run_folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ask(**changes)
    with pytest.raises(InputError, match=said) as error:
        find_spectrum(asked, run_folder)
    assert error.value.hint.endswith("; --fresh replaces it")
    assert find_spectrum(asked, run_folder, fresh=True)[0] is None
    assert f"replacing {run_folder / 'spectrum.json'}: expected a spectrum of" in capsys.readouterr().err


def test_a_spectrum_of_other_weights_is_refused(ask: Ask, run_folder: Path, other_llama: Path) -> None:
    asked = ask(checkpoint=str(other_llama))
    with pytest.raises(InputError, match=r"expected a spectrum of these weights, those of other, got .* those of tiny"):
        find_spectrum(asked, run_folder)


def test_a_damaged_spectrum_is_refused_or_replaced(ask: Ask, run_folder: Path) -> None:
    path = run_folder / "spectrum.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(InputError, match=r"spectrum\.json: expected the JSON head of a result"):
        find_spectrum(ask(), run_folder)
    assert find_spectrum(ask(), run_folder, fresh=True)[0] is None


def test_a_result_is_reused_where_it_is_what_is_asked_for(
    ask: Ask, probed: tuple[Path, Result, Result], run_folder: Path
) -> None:
    def saved(*, is_asked_for: bool, fresh: bool = False) -> Any:
        one = SubspaceMeasuring(Terminal(""), ask(), RunOptions(fresh=fresh), SubspaceRequest())
        return one.saved(run_folder, lambda found: is_asked_for)

    found, why_not = saved(is_asked_for=True)
    assert found is not None
    assert why_not == ""
    assert saved(is_asked_for=True, fresh=True) == (None, "")
    assert saved(is_asked_for=False) == (None, "it is of another checkpoint, other batches or options")
    (run_folder / "subspace.json").write_text("{")
    found, why_not = saved(is_asked_for=True)
    assert found is None
    assert why_not.startswith("expected the JSON head of a result")
    shutil.rmtree(run_folder)
    assert saved(is_asked_for=True) == (None, "")


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "said"),
    [
        (0, None, "2 batches of x"),
        (3, None, "2 × 3 samples of x"),
        (1, 1, "2 × 1 × 1 token of x"),
        (4, 8, "2 × 4 × 8 tokens"),
    ],
)
def test_what_is_measured_on_is_said_as_far_as_it_is_known(
    batch_size: int, seq_len: int | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task(
        model=torch.nn.Linear(2, 1),
        predict=lambda model, batch: model(batch),
        criterion=lambda outputs, batch: (outputs.sum(), 1),
        evaluation=[torch.ones(3, 2)] * 2,
        info=TaskInfo(data_name="x", batch_size=batch_size, seq_len=seq_len),
    )
    tell_task(Terminal(""), task, task.evaluation)
    assert said in capsys.readouterr().err


def test_planning_says_how_far_it_is(ask: Ask, run_folder: Path) -> None:
    from lite_probe.results.store import load
    from tests.plans import plan_replay, plan_spectrum, plan_subspace

    task = open_task(ask(), train_batches=20).task
    found = load(run_folder, "spectrum")
    told: list[tuple[int, int, str]] = []

    def on_progress(done: int, total: int, label: str) -> None:
        told.append((done, total, label))

    plan_spectrum(task, top=1, on_progress=on_progress)
    assert told == [(1, 3, "planning"), (2, 3, "planning")]
    told.clear()
    plan_subspace(task, found, warm_batches=4, on_progress=on_progress)
    assert told == [(1, 3, "planning"), (2, 3, "planning")]
    told.clear()
    plan_replay(task, ["sgd"], spectrum=found, steps=2, warm_batches=4, lr=0.1, on_progress=on_progress)
    assert told == [(1, 4, "planning"), (2, 4, "planning"), (3, 4, "planning · sgd"), (4, 4, "planning · soap")]

"""What commands share: the task they open, and the spectrum they start from."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lite_probe.commands import spectrum as spectra
from lite_probe.commands.console import Terminal
from lite_probe.commands.task import TaskOptions, find_spectrum, open_task, reusable, tell_task
from lite_probe.errors import InputError
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
            "task_file": None,
            "trust_pickle": False,
            "model_config": None,
            "data_path": str(text),
            "tokenizer": "bytes",
            "text_field": "text",
            "seq_len": 16,
            "batch_size": 4,
            "batches": 1,
            "memory": None,
            "device": "cpu",
            "precision": None,
            "threads": 1,
            "seed": 0,
            "out": None,
            "fresh": False,
            "as_json": False,
            "dry_run": False,
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


def test_the_spectrum_in_the_run_directory_is_taken(ask: Ask, run_folder: Path) -> None:
    found = find_spectrum(Terminal(""), open_task(ask()), ask(), run_folder)
    assert found is not None
    assert found.whole.num_parameters == 10_800


def test_a_spectrum_that_is_not_there_comes_first(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_spectrum(Terminal(""), open_task(ask()), ask(), tmp_path) is None
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
    opened = open_task(asked)
    with pytest.raises(InputError, match=said) as error:
        find_spectrum(Terminal(""), opened, asked, run_folder)
    assert error.value.hint.endswith("; --fresh replaces it")
    assert find_spectrum(Terminal(""), opened, replace(asked, fresh=True), run_folder) is None
    assert f"replacing {run_folder / 'spectrum.json'}: expected a spectrum of" in capsys.readouterr().err


def test_a_spectrum_of_other_weights_is_refused(ask: Ask, run_folder: Path, other_llama: Path) -> None:
    asked = ask(checkpoint=str(other_llama))
    with pytest.raises(InputError, match=r"expected a spectrum of these weights, those of other, got .* those of tiny"):
        find_spectrum(Terminal(""), open_task(asked), asked, run_folder)


def test_a_damaged_spectrum_is_refused_or_replaced(ask: Ask, run_folder: Path) -> None:
    path = run_folder / "spectrum.json"
    path.write_text(path.read_text()[:-100])
    opened = open_task(ask())
    with pytest.raises(InputError, match=r"spectrum\.json: expected the JSON head of a result"):
        find_spectrum(Terminal(""), opened, ask(), run_folder)
    assert find_spectrum(Terminal(""), opened, ask(fresh=True), run_folder) is None


def test_the_defaults_of_the_spectrum_are_the_commands_own() -> None:
    found = spectra.defaults()
    assert set(found) == set(spectra.SpectrumOptions.__dataclass_fields__) - set(TaskOptions.__dataclass_fields__)
    assert (found["top"], found["operator"], found["split"], found["per_block"]) == (10, "hessian", "evaluation", False)


def test_a_result_is_reused_by_its_fingerprint(
    probed: tuple[Path, Result, Result], run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lite_probe.results.store import load

    fingerprint = load(run_folder, "subspace").fingerprint
    terminal, path = Terminal(""), run_folder / "subspace.json"
    assert reusable(terminal, run_folder, "subspace", fingerprint, fresh=False) is not None
    assert capsys.readouterr().err == f"already measured: {path}; --fresh measures again\n"
    assert reusable(terminal, run_folder, "subspace", fingerprint, fresh=True) is None
    assert capsys.readouterr().err == ""
    assert reusable(terminal, run_folder, "subspace", "another", fresh=False) is None
    assert capsys.readouterr().err.startswith(f"replacing {path}: it is of another checkpoint, other batches")
    shutil.rmtree(run_folder)
    assert reusable(terminal, run_folder, "subspace", fingerprint, fresh=False) is None
    assert capsys.readouterr().err == ""


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
    from lite_probe.replays import plan_replay
    from lite_probe.results.store import load
    from lite_probe.spectra import plan_spectrum
    from lite_probe.subspaces import plan_subspace

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

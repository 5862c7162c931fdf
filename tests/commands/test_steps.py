"""The command from end to end on tiny checkpoints: options, files, stdout, reuse, other data, refusals, Ctrl-C."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import Result

from lite_probe.commands import reuse
from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli
from lite_probe.commands.steps import StepsMeasuring, command
from lite_probe.measurements.requests.steps import StepsRequest
from lite_probe.measurements.steps_session import StepsSession
from lite_probe.results.store import load
from tests.commands.running import BATCH, run

STEPS = ("--optimizers", "muon,soap", "--lr", "muon=0.01,soap=0.004", "--warm-batches", "4", "--critical-batches", "2")
Measured = tuple[Path, Result]


def steps(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    """Of options given twice the last counts."""
    return run("steps", checkpoint, "--data", text, "--out", out, *BATCH, *STEPS, *more)


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text("".join(f"for i in range({index}): x[i] = {index} ** i\n" for index in range(300)))
    return path


@pytest.fixture(scope="module")
def critical(tiny_llama: Path, text: Path, other_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Critical steps alone, with other data; to be left as they are."""
    out = tmp_path_factory.mktemp("probe") / "critical"
    return out, steps(tiny_llama, text, out, "--critical-only", "--relative", other_text)


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """All that there is to measure; to be left as it is."""
    out = tmp_path_factory.mktemp("probe") / "whole"
    return out, steps(tiny_llama, text, out, "--step-batches", 16, "--json")


def test_critical_steps_are_shown_saved_and_on_a_page(critical: Measured) -> None:
    out, found = critical
    assert found.exit_code == 0, found.stderr
    assert found.stdout.splitlines() == [str(out / "report.html"), str(out / "steps.json")]
    lines = found.stderr.splitlines()
    assert lines[0].startswith("huggingface · llama · 1 layer")
    assert lines[2].startswith("plan: 2 steps of muon, soap: ")
    for name, rate in (("muon", "0.010"), ("soap", "0.0040")):
        assert any(line.startswith(f"{name} at {rate}: ") for line in lines)
    assert "note: The other data: 1 evaluation batch of other.txt." in lines
    saved = load(out, "steps")
    assert set(saved.critical("muon")) == {"own batch", "held out", "relative"}
    assert saved.optimizers["muon"].bands is None
    assert "on the other data" in (out / "report.html").read_text()
    assert not [path for path in out.iterdir() if path.name.endswith(".state")]
    assert all(char.isprintable() or char == "\n" for char in found.stderr)


def test_the_numbers_shown_are_those_saved(whole: Measured) -> None:
    out, found = whole
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout, parse_constant=pytest.fail)
    saved = load(out, "steps")
    assert told["batch_tokens"] == saved.batch_tokens == 4 * 16
    for name, one in saved.optimizers.items():
        assert told["optimizers"][name]["lr_source"] == "given"
        rows = told["optimizers"][name]["bands"]
        assert [row["gain"]["value"] for row in rows] == [row.gain.value for row in one.rows]
        assert [row["name"] for row in rows] == [row.name for row in one.rows]
        held_out = told["optimizers"][name]["critical"]["held out"]
        assert held_out["low"] == one.critical["held out"].low.tolist()
        assert told["optimizers"][name]["joint"]["change"] == one.joint.change
    header = next(line for line in found.stderr.splitlines() if line.startswith("muon  ") and "10–40%" in line)
    assert header.split() == ["muon", "rank", "1", "to", "0.1%", "to", "1%", "1–10%", "10–40%", "40–100%"]


def test_the_same_command_knows_its_result_at_once(
    critical: Measured, tiny_llama: Path, text: Path, other_text: Path
) -> None:
    out, _ = critical
    before = (out / "steps.json").read_bytes()
    found = steps(tiny_llama, text, out, "--critical-only", "--relative", other_text)
    assert found.exit_code == 0, found.stderr
    # Nothing was opened for it.
    assert found.stderr.startswith(f"already measured: {out / 'steps.json'}; --fresh measures again")
    assert (out / "steps.json").read_bytes() == before


def test_other_data_enters_what_is_known_at_once(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("one")
    given = {"checkpoint": "ckpt.pt", "optimizers": "muon", "relative_path": str(other)}
    before = reuse.stamp_of(given, tmp_path, [])
    assert reuse.stamp_of(given, tmp_path, []) == before
    assert reuse.stamp_of({**given, "relative_path": None}, tmp_path, []) != before
    other.write_text("another")
    assert reuse.stamp_of(given, tmp_path, []) != before


def test_other_data_enters_the_results_key(
    critical: Measured, tiny_llama: Path, text: Path, other_text: Path, tmp_path: Path
) -> None:
    def key(*more: object) -> Any:
        out = tmp_path / "out"
        found = steps(tiny_llama, text, out, "--critical-only", "--dry-run", "--json", *more)
        assert found.exit_code == 0, found.stderr
        return json.loads(found.stdout)["fingerprint"]

    keys = [key(), key("--relative", other_text), key("--relative", text)]
    assert len(set(keys)) == 3
    assert keys[1] == load(critical[0], "steps").fingerprint


def test_a_dry_run_says_the_plan_and_writes_nothing(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = steps(tiny_llama, text, tmp_path / "out", "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["num_parameters"] == 10_800
    assert told["num_products"] > 0
    assert told["num_gradients"] > 32
    assert told["directory"] == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    only = json.loads(steps(tiny_llama, text, tmp_path / "out", "--dry-run", "--json", "--critical-only").stdout)
    assert only["num_products"] == 0


def test_quiet_says_nothing_but_the_paths(
    critical: Measured, tiny_llama: Path, text: Path, other_text: Path, tmp_path: Path
) -> None:
    found = steps(tiny_llama, text, tmp_path / "out", "--critical-only", "-q")
    assert found.exit_code == 0, found.stderr
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 2


def test_fresh_measures_the_same_numbers_again(
    critical: Measured, tiny_llama: Path, text: Path, other_text: Path, tmp_path: Path
) -> None:
    before = load(critical[0], "steps")
    asked = ("--critical-only", "--relative", other_text)
    out = tmp_path / "out"
    first = steps(tiny_llama, text, out, *asked)
    written = (out / "steps.json").stat().st_mtime_ns
    again = steps(tiny_llama, text, out, *asked, "--fresh")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert (out / "steps.json").stat().st_mtime_ns > written
    assert "already measured" not in again.stderr
    for kind, found in load(out, "steps").critical("soap").items():
        assert np.array_equal(found.low, before.critical("soap")[kind].low)


def test_details_are_for_who_asks(whole: Measured, tiny_llama: Path, text: Path) -> None:
    asked = ("--step-batches", 16)
    brief, long = (steps(tiny_llama, text, whole[0], *asked, *more).stderr for more in ((), ("-v",)))
    assert "Intervals are 95%, not corrected" not in brief
    assert "Intervals are 95%, not corrected; they cover 16 training batches" in long
    assert "Hessian products over all evaluation batches" in long


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--optimizers", "muon,adam"], "expected an optimizer among adamw, adamw-lite, muon", 2),
        (
            ["--optimizers", "muon,torch.AdamW", "--lr", "0.01"],
            "expected optimizers of lite-probe, got torch.AdamW",
            2,
        ),
        (["--step-batches", "8"], "expected a whole number ≥ 16, got 8", 2),
        (["--critical-batches", "33"], "expected at most as many critical batches as step batches, 32, got 33", 2),
        (["--set", "muon.nope=1"], "expected hyperparameters of muon among", 2),
        (["--lr", "fast"], "expected --lr with a number", 2),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(
    arguments: list[str], said: str, code: int, tmp_path: Path
) -> None:
    found = run("steps", tmp_path / "no such checkpoint", "--data", "no such text", *arguments)
    assert found.exit_code == code, found.stderr
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_other_data_is_refused_with_a_task_of_the_users_own(tmp_path: Path) -> None:
    found = run("steps", "--task", f"{tmp_path / 'mine.py'}:build", "--relative", tmp_path / "other.txt")
    assert found.exit_code == 2
    assert "expected --relative with a checkpoint, got it with --task" in found.stderr
    assert "lp.measure_steps(task, relative=batches)" in found.stderr


def test_other_data_that_is_not_there_or_too_short_is_named(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    for path in (tmp_path / "missing.txt", short):
        found = steps(tiny_llama, text, tmp_path / "out", "--critical-only", "--relative", path)
        assert found.exit_code == 3, found.stderr
        assert "error: --relative: expected" in found.stderr
        assert path.name in found.stderr
    assert not (tmp_path / "out").exists()


def test_interrupted_it_says_that_it_continues_and_does(
    critical: Measured, tiny_llama: Path, text: Path, other_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(critical[0], "steps")
    asked = ("--critical-only", "--relative", other_text)
    make, made = StepsSession._make_steps, StepsSession._find_critical
    seen: list[int] = []

    def interrupt(session: StepsSession, steppers: Any) -> None:
        make(session, steppers)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StepsSession, "_make_steps", interrupt)
        found = steps(tiny_llama, text, tmp_path / "out", *asked)
    assert found.exit_code == 130
    assert found.stdout == ""
    assert found.stderr.endswith("error: interrupted; the same command continues from what it saved last\n")
    assert not (tmp_path / "out" / "steps.json").exists()

    def follow(session: StepsSession, one: Any, update: Any, place: int, *rest: Any) -> None:
        seen.append(place)
        made(session, one, update, place, *rest)

    monkeypatch.setattr(StepsSession, "_find_critical", follow)
    assert steps(tiny_llama, text, tmp_path / "out", *asked).exit_code == 0
    assert seen == []  # nothing is looked for again
    after = load(tmp_path / "out", "steps")
    for name in before.optimizers:
        for kind, one in before.critical(name).items():
            assert np.array_equal(one.low, after.critical(name)[kind].low)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".state")]


def test_the_saved_state_is_taken_where_it_may_be(adamw_llama: Path, text: Path, tmp_path: Path) -> None:
    asked = ("--optimizers", "adamw", "--lr", "checkpoint", "--critical-only", "--json")
    found = steps(adamw_llama, text, tmp_path / "out", *asked)
    assert found.exit_code == 0, found.stderr
    one = json.loads(found.stdout)["optimizers"]["adamw"]
    assert (one["state"], one["lr_source"]) == ("checkpoint", "checkpoint")
    assert one["lr"] == pytest.approx(0.0003, rel=1e-6)


def test_too_few_training_batches_are_refused_in_a_task_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lite_probe.criteria import squared_error\n"
        "from lite_probe.task import Task\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    batches = [(torch.randn(2, 3), torch.randn(2, 1)) for _ in range(10)]\n"
        "    return Task(model=torch.nn.Linear(3, 1), predict=lambda m, b: m(b[0]), criterion=squared_error,\n"
        "                evaluation=batches[:1], train=batches[1:])\n"
    )
    found = run("steps", "--task", f"{tmp_path / 'mine.py'}:build", "--out", tmp_path / "out", "--optimizers", "adamw",
                "--lr", "0.01")  # fmt: skip
    assert found.exit_code == 3, found.stderr
    assert "expected at least 16 training batches to make steps from, got 9" in found.stderr


def test_the_file_in_the_working_directory_supplies_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite-probe.toml").write_text(
        'optimizers = "soap"\nlr = 0.002\ndata = "val.bin"\nrelative = "code.bin"\nstep-batches = 48\n'
    )
    with click.Context(cli) as parent:
        given = command.make_context("steps", [str(tmp_path / "ckpt.pt")], parent=parent).params
    assert given["relative_path"] == "code.bin"
    one = StepsMeasuring.asked_for(Terminal(""), given)
    assert (one.request.optimizers, one.request.lr, one.request.step_batches) == (("soap",), 0.002, 48)


def test_defaults_are_those_of_the_library() -> None:
    with click.Context(cli) as parent:
        shown = command.make_context("steps", ["ckpt.pt", "--data", "x"], parent=parent).params
    assert StepsMeasuring.asked_for(Terminal(""), shown).request == StepsRequest()


def test_it_is_listed_between_subspace_and_replay() -> None:
    told = run("--help").stdout
    places = [told.index(f"\n  {name} ") for name in ("subspace", "steps", "replay")]
    assert places == sorted(places)
    assert "--relative OTHER-DATA" in run("steps", "--help").stdout

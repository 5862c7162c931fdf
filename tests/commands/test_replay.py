"""The command from end to end on tiny checkpoints: options, files, stdout, reuse, refusals, divergence, Ctrl-C."""

import json
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import Result

from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli
from lite_probe.commands.replay import ReplayMeasuring, command, require_some_finished
from lite_probe.commands.replay_board import ReplayBoard
from lite_probe.errors import ReplayError, UsageError
from lite_probe.measurements.replay import ReplayPlan
from lite_probe.measurements.requests.optimizers import parse_learning_rates, parse_settings
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.measurements.spectrum import SpectrumPlan
from lite_probe.results.store import load
from tests.commands.running import BATCH, replay, run
from tests.reports.fixtures import make_replay

pytestmark = pytest.mark.slow

Probed = tuple[Path, Result, Result]


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("0.002", 0.002),
        ("1e-3", 1e-3),
        ("sweep", "sweep"),
        (" checkpoint ", "checkpoint"),
        ("muon=0.002", {"muon": 0.002}),
        ("muon=0.002, soap = sweep,adamw=checkpoint", {"muon": 0.002, "soap": "sweep", "adamw": "checkpoint"}),
    ],
)
def test_learning_rates(text: str, rates: object) -> None:
    assert parse_learning_rates(text) == rates


@pytest.mark.parametrize("text", ["fast", "", "muon=", "muon=0.1,", "muon=0.1,0.2", "=", "0.1,0.2", "muon=a=b"])
def test_a_learning_rate_of_no_form_is_refused(text: str) -> None:
    said = f"expected --lr with a number, sweep or checkpoint, or NAME=RATE,… of these, got {text!r}"
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        parse_learning_rates(text)
    assert "such as --lr 0.002" in error.value.hint


def test_two_rates_for_one_optimizer_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected one rate for muon in --lr, got two: 'muon=0\.1,muon=0\.2'"):
        parse_learning_rates("muon=0.1,muon=0.2")


def test_settings_are_json_where_they_are_some_else_words() -> None:
    found = parse_settings(
        (
            "muon-lite.flat_lr_ratio=3",
            "muon-lite.beta2 = 0.5",
            'soap-lite.sharp_ratio={"emb": 0.1}',
            "soap-lite.betas=[0.9, 0.95]",
            "muon.msign_dtype=bfloat16",
            "muon.ns_coefficients=a=b",
        )
    )
    assert found == {
        "muon-lite": {"flat_lr_ratio": 3, "beta2": 0.5},
        "soap-lite": {"sharp_ratio": {"emb": 0.1}, "betas": [0.9, 0.95]},
        "muon": {"msign_dtype": "bfloat16", "ns_coefficients": "a=b"},
    }
    assert parse_settings(()) == {}


@pytest.mark.parametrize("text", ["muon-lite=3", "flat_lr_ratio=3", "muon-lite.flat_lr_ratio", ".x=3", "muon.=3", ""])
def test_a_setting_of_no_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"expected --set NAME.KEY=VALUE, got {text!r}")):
        parse_settings((text,))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizers", "muon,adam"], "expected an optimizer among adamw, adamw-lite, muon,.* got 'adam'"),
        (["--optimizers", "muon,muon"], "expected every optimizer once, got muon, muon"),
        (["--optimizers", " , "], "expected optimizers among adamw, .*samuon, got none"),
        (["--lr", "fast"], "expected --lr with a number"),
        (["--lr", "0"], "expected a positive learning rate, sweep or checkpoint for muon, got 0.0"),
        (["--lr", "nan"], "expected a positive learning rate.*got nan"),
        (["--lr", "adamw=0.1"], "expected learning rates for muon, muon-lite, soap, soap-lite, got one for adamw"),
        (["--lr", "soap=0.1,soap=1"], "expected one rate for soap"),
        (["--set", "muon"], "expected --set NAME.KEY=VALUE, got 'muon'"),
        (["--set", "muon.nope=1"], "expected hyperparameters of muon among .*momentum.*, got nope"),
        (["--set", "muon.lr=1"], "expected hyperparameters of muon among .*, got lr"),
        (["--set", "muon.momentum=null"], r"expected momentum in \[0, 1\), got None"),
        (["--set", "muon.momentum=true"], r"expected momentum in \[0, 1\), got True"),
        (["--set", "muon.momentum=[0.5]"], r"expected momentum to be a number, got \[0\.5\]"),
        (["--set", "muon.momentum=NaN"], r"expected momentum in \[0, 1\), got nan"),
        (["--set", "muon.momentum=" + "[" * 300 + "]" * 300], r"expected momentum in \[0, 1\), got \[\["),
        (
            ["--set", "muon.momentum=" + "[" * 50_000],
            "expected a value in --set muon.momentum, got one nested too deep",
        ),
        (["--set", "muon.ns_steps=2.5"], r"expected ns_steps in \[1, 100\], got 2\.5"),
        (["--set", "muon.ns_coefficients=[1]"], r"expected ns_coefficients among .*, got \[1\]"),
        (["--set", "muon.msign_dtype=[1]"], "expected msign_dtype float32, bfloat16 or None, got"),
        (["--set", "soap.betas=0.9"], "expected betas to be 2 numbers, got 0.9"),
        (["--set", "muon-lite.adamw_damping=1"], "expected adamw_damping to be True or False, got 1"),
        (
            ["--set", 'soap-lite.sharp_ratio={"emb": null}'],
            r"expected sharp_ratio in \[0, 1\], got None",
        ),
        (["--set", "adamw.eps=1"], "expected hyperparameters of muon, .*, got some of adamw"),
        (["--state", "hot"], "expected one of auto, checkpoint, warm, cold, got hot"),
        (["--bands", "sgd"], "expected the bands of adamw, muon, soap, got 'sgd'"),
        (["--rule", "euler"], "expected one of simpson, trapezoid, got euler"),
        (["--steps", "0"], "expected a whole number ≥ 1, got 0"),
        (["--seeds", "0"], "expected a whole number ≥ 1, got 0"),
        (["--warm-batches", "0"], "expected a whole number ≥ 1, got 0"),
        (
            ["--lr", "checkpoint", "--state", "warm"],
            "expected --state auto or checkpoint with --lr checkpoint, got warm",
        ),
        (["--lr", "muon=checkpoint", "--state", "cold"], "expected --state auto or checkpoint .* got cold"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_opened(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    found = run("replay", tmp_path / "no such checkpoint", "--data", "no such text", *arguments)
    assert found.exit_code == 2, found.stderr
    assert re.search(said, found.stderr), found.stderr
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_stdout_is_the_paths_written(probed: Probed) -> None:
    out, _, found = probed
    assert found.exit_code == 0, found.stderr
    assert found.stdout.splitlines() == [str(out / "report.html"), str(out / "replay.json")]
    names = {path.name for path in out.iterdir()}
    assert names >= {"replay.json", "replay.safetensors", "subspace.json", "spectrum.json", "report.html"}
    assert not [name for name in names if name.endswith(".state")]


def test_the_eye_sees_headline_plan_tables_and_verdict_and_no_control_character(probed: Probed) -> None:
    said = probed[2].stderr
    lines = said.splitlines()
    assert lines[0].startswith("huggingface · llama · 1 layer")
    assert lines[1] == "1 × 4 × 16 tokens of text.txt, float32, 1 thread"
    assert lines[2].startswith("plan: 4 runs of 3 steps, 2 seeds: ~")
    for first in ("optimizer", "change", "updates", "muon", "muon-lite"):
        assert any(line.startswith(f"{first}  ") for line in lines), first
    assert "±: half of the 95% interval over seeds; loss changes in nats" in lines
    assert any(line.startswith("After 3 steps muon") for line in lines)
    assert any(line.startswith(("muon-lite minus muon: ", "muon-lite ends ")) for line in lines)
    assert all(char.isprintable() or char == "\n" for char in said)


def test_the_page_shows_all_three(probed: Probed) -> None:
    page = (probed[0] / "report.html").read_text()
    assert "adamw-lite" in page  # of the subspace, the replay had none
    assert "muon-lite" in page


def test_the_numbers_shown_are_those_saved(probed: Probed, tiny_llama: Path, text: Path, run_folder: Path) -> None:
    told = json.loads(replay(tiny_llama, text, run_folder, "--json").stdout, parse_constant=pytest.fail)
    saved = load(run_folder, "replay")
    assert told["start_loss"] == saved.start_loss
    for name in ("muon", "muon-lite"):
        assert told["optimizers"][name]["loss_change"]["value"] == saved.loss_change(name).value
        assert told["optimizers"][name]["lr_source"] == "given"
        assert told["optimizers"][name]["state"] == "warm"
        assert told["optimizers"][name]["horizon"] is None
    assert told["landscape"] is None  # --no-landscape


def test_the_same_command_reuses_the_result(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    before = (run_folder / "replay.json").read_bytes()
    found = replay(tiny_llama, text, run_folder)
    assert found.exit_code == 0, found.stderr
    assert f"already measured: {run_folder / 'replay.json'}; --fresh measures again" in found.stderr
    assert (run_folder / "replay.json").read_bytes() == before


def test_fresh_replays_with_the_same_numbers(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    before, written = load(run_folder, "replay"), (run_folder / "replay.json").stat().st_mtime_ns
    found = replay(tiny_llama, text, run_folder, "--fresh")
    assert "already measured" not in found.stderr
    assert (run_folder / "replay.json").stat().st_mtime_ns > written
    after = load(run_folder, "replay")
    for first, second in zip(before.runs, after.runs, strict=True):
        assert np.array_equal(first.losses, second.losses)
        assert np.array_equal(first.band_allocations, second.band_allocations)


def test_every_option_reaches_the_replay(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = replay(
        tiny_llama, text, run_folder, "--json", "--steps", 2, "--seeds", 1, "--optimizers", "sgd, muon-lite", "--lr",
        "sgd=0.1,muon-lite=0.004", "--state", "cold", "--warm-batches", 3, "--bands", "muon", "--rule", "trapezoid",
        "--ablations", "--horizon", "--landscape", "--set", "muon-lite.flat_lr_ratio=3", "--set", "muon-lite.beta2=0.5",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    assert "replacing" in found.stderr
    told = json.loads(found.stdout)
    assert (told["steps"], told["seeds"], told["rule"]) == (2, 1, "trapezoid")
    assert {name: one["lr"] for name, one in told["optimizers"].items()} == {"sgd": 0.1, "muon-lite": 0.004}
    assert told["optimizers"]["muon-lite"]["hyperparameters"] == {"flat_lr_ratio": 3, "beta2": 0.5}
    assert told["optimizers"]["sgd"]["state"] == "cold"
    assert set(told["optimizers"]["sgd"]["ablations"]) == {"dominant", "bulk"}
    assert load(run_folder, "replay").bands.optimizer == "muon"
    assert [one["step"] for one in told["optimizers"]["sgd"]["horizon"]["steps"]] == [1, 2]
    lines = told["landscape"]["lines"]
    assert [name for name in lines if name.startswith("update")] == ["update of sgd", "update of muon-lite"]
    assert set(told["landscape"]["plane"]["in_plane"]) == {"sgd", "muon-lite"}
    assert f"gradients and {4 + len(lines)} Hessian products" in found.stderr
    # One seed has no error, in the tables no more than in the object.
    assert told["optimizers"]["sgd"]["loss_change"]["stderr"] is None
    assert "±: half of the 95% interval over seeds" not in found.stderr


def test_who_is_not_named_is_swept(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = replay(tiny_llama, text, run_folder, "--json", "--lr", "muon=0.01", "--steps", 2, "--seeds", 1)
    assert "learning rates of 1 swept" in found.stderr
    one = json.loads(found.stdout)["optimizers"]
    assert (one["muon"]["lr_source"], one["muon-lite"]["lr_source"]) == ("given", "sweep")
    assert one["muon"]["sweep"] is None
    assert one["muon-lite"]["lr"] in one["muon-lite"]["sweep"]["lrs"]


def test_a_foreign_spectrum_is_refused_before_anything_is_replayed(
    run_folder: Path, other_llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReplayPlan, "of", lambda *a, **k: pytest.fail("planned"))
    for more in ((), ("--fresh",)):
        found = replay(other_llama, text, run_folder, *more)
        assert found.exit_code == 6
        assert "expected a run directory of other" in found.stderr
        assert "got one with results of another checkpoint, tiny" in found.stderr
        assert found.stdout == ""


def test_a_text_too_short_to_train_on_is_refused_before_a_spectrum_is_measured(
    tiny_llama: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words more " * 70)
    found = replay(tiny_llama, short, tmp_path / "out", "--steps", 50)
    assert found.exit_code == 3
    # 50 steps of 4 windows of 17 tokens
    assert "expected at least 3,400 tokens to train on for a segment of 50 steps" in found.stderr
    assert "smaller --steps" in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_task_that_trains_on_its_evaluation_samples_is_refused_before_a_spectrum_is_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lite_probe.criteria import squared_error\n"
        "from lite_probe.task import Task\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    batches = [(torch.randn(2, 3), torch.randn(2, 1)) for _ in range(40)]\n"
        "    return Task(model=torch.nn.Linear(3, 1), predict=lambda m, b: m(b[0]), criterion=squared_error,\n"
        "                evaluation=batches[7:8], train=batches)\n"
    )
    found = run("replay", "--task", f"{tmp_path / 'mine.py'}:build", "--out", tmp_path / "out", "--optimizers", "sgd",
                "--steps", 3, "--warm-batches", 4)  # fmt: skip
    assert found.exit_code == 3, found.stderr
    assert "got sample 0 of evaluation batch 0, which is sample 0 of training batch 7" in found.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_spectrum_it_is_measured_first(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = replay(tiny_llama, text, tmp_path / "out", "--optimizers", "sgd", "--seeds", 1)
    assert found.exit_code == 0, found.stderr
    assert "it comes first, with the defaults of lite-probe spectrum" in found.stderr
    assert [line.split(": ")[0] for line in found.stderr.splitlines()].count("plan") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"spectrum.json", "replay.json", "report.html"}


def test_a_dry_run_without_a_spectrum_plans_that(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = replay(tiny_llama, text, tmp_path / "out", "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    assert set(json.loads(found.stdout)) == {"spectrum"}
    assert list(tmp_path.iterdir()) == []
    assert replay(tiny_llama, text, tmp_path / "out", "--dry-run").stdout == ""


def test_a_dry_run_with_a_spectrum_says_the_plan_and_writes_nothing(
    run_folder: Path, tiny_llama: Path, text: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    told = json.loads(replay(tiny_llama, text, run_folder, "--dry-run", "--json").stdout)
    assert (told["num_runs"], told["swept"], told["num_parameters"]) == (4, [], 10_800)
    assert told["fingerprint"] == load(run_folder, "replay").fingerprint
    assert told["seconds"] > 0.0
    assert told["scratch_bytes"] > 2 * 4 * told["num_parameters"]
    assert 0 < told["result_bytes"] < told["scratch_bytes"]
    assert told["scratch"] == told["directory"] == str(run_folder)
    assert told["start_loss"] == load(run_folder, "replay").start_loss
    # Warming for the bands and two optimizers; per run and step one training gradient and two on either set of batches.
    assert told["num_gradients"] == 3 * 4 + 4 * 3 * (1 + 2 * 2)
    assert replay(tiny_llama, text, run_folder, "--dry-run").stdout == ""
    assert {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir()} == before


def test_a_fresh_dry_run_on_a_foreign_spectrum_measures_nothing(
    run_folder: Path, tiny_llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpectrumPlan, "run", lambda *a, **k: pytest.fail("measured"))
    found = replay(tiny_llama, text, run_folder, "--seed", 1, "--fresh", "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    assert set(json.loads(found.stdout)) == {"spectrum"}


def test_where_every_run_diverges_it_is_saved_said_and_exit_code_5(
    run_folder: Path, tiny_llama: Path, text: Path
) -> None:
    for attempt in range(2):
        found = replay(tiny_llama, text, run_folder, "--lr", "1e30")
        assert found.exit_code == 5, found.stderr
        last = found.stderr.splitlines()[-2:]
        assert last[0] == "error: expected some run to reach its end, got all 4 diverged, the first at step 0"
        assert last[1].startswith("hint: replay with smaller learning rates")
        assert "Every run diverged" in found.stderr
        assert found.stdout.splitlines() == [str(run_folder / "report.html"), str(run_folder / "replay.json")]
        assert len(load(run_folder, "replay").runs) == 4
        assert ("already measured" in found.stderr) == (attempt == 1)


def test_one_run_that_reaches_the_end_is_enough() -> None:
    names, lost = ("muon", "soap"), tuple(("muon", seed, 4) for seed in range(3))
    almost = tuple(("soap", seed, 2) for seed in range(2))
    require_some_finished(make_replay(optimizers=names, diverged=lost + almost))
    with pytest.raises(ReplayError, match="got all 6 diverged, the first at step 2"):
        require_some_finished(make_replay(optimizers=names, diverged=(*lost, *almost, ("soap", 2, 9))))


def test_interrupted_it_says_that_it_continues_and_does(
    run_folder: Path, tiny_llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(run_folder, "replay")
    (run_folder / "replay.json").unlink()
    seen: list[Any] = []
    watch = ReplayBoard.on_step

    def interrupt(board: ReplayBoard, event: Any) -> None:
        watch(board, event)
        seen.append(event)
        if (event.optimizer, event.seed, event.step) == ("muon-lite", 0, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ReplayBoard, "on_step", interrupt)
        found = replay(tiny_llama, text, run_folder)
    assert found.exit_code == 130
    assert found.stdout == ""
    assert found.stderr.endswith("error: interrupted; the same command continues from what it saved last\n")
    assert not (run_folder / "replay.json").exists()

    def follow(board: ReplayBoard, event: Any) -> None:
        watch(board, event)
        again.append((event.optimizer, [cells[1] for cells in board.rows()]))

    again: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(ReplayBoard, "on_step", follow)
    assert replay(tiny_llama, text, run_folder).exit_code == 0
    # Muon is not run again, and shown as done.
    assert {name for name, _ in again} == {"muon-lite"}
    assert {phases[0] for _, phases in again} == {"done"}
    after = load(run_folder, "replay")
    for first, second in zip(before.runs, after.runs, strict=True):
        assert np.array_equal(first.losses, second.losses)
    assert not [path for path in run_folder.iterdir() if path.name.endswith(".state")]


@pytest.fixture(scope="module")
def adamw_folder(adamw_llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the spectrum of a checkpoint that brings an optimizer's state."""
    out = tmp_path_factory.mktemp("probe") / "adamw"
    found = run("spectrum", adamw_llama, "--data", text, "--out", out, *BATCH, "--top", 3, "--bottom", 0, "--probes", 2)
    assert found.exit_code == 0, found.stderr
    return out


SHORT = ("--optimizers", "adamw", "--seeds", 1, "--steps", 2, "--json")


def test_the_checkpoints_own_state_and_rate_are_taken(adamw_folder: Path, adamw_llama: Path, text: Path) -> None:
    found = replay(adamw_llama, text, adamw_folder, *SHORT, "--lr", "checkpoint", "--fresh")
    assert found.exit_code == 0, found.stderr
    one = json.loads(found.stdout)["optimizers"]["adamw"]
    assert (one["state"], one["lr_source"]) == ("checkpoint", "checkpoint")
    # The cosine's last update is made at a tenth of the peak.
    assert one["lr"] == pytest.approx(0.0003, rel=1e-6)


@pytest.mark.parametrize(("state", "is_read"), [("auto", True), ("checkpoint", True), ("warm", False), ("cold", False)])
def test_the_saved_state_is_read_only_where_it_may_be_used(
    adamw_folder: Path, adamw_llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch, state: str, is_read: bool
) -> None:
    from lite_probe.checkpoints import Checkpoint

    read = Checkpoint.optimizer_states
    calls: list[str] = []
    monkeypatch.setattr(Checkpoint, "optimizer_states", lambda self: calls.append(state) or read(self))
    found = replay(adamw_llama, text, adamw_folder, *SHORT, "--lr", "0.001", "--state", state, "--fresh")
    assert found.exit_code == 0, found.stderr
    assert bool(calls) == is_read
    expected = "checkpoint" if is_read else state
    assert json.loads(found.stdout)["optimizers"]["adamw"]["state"] == expected


def test_a_state_that_the_checkpoint_does_not_have_is_refused(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = replay(tiny_llama, text, run_folder, "--state", "checkpoint")
    assert found.exit_code == 3
    assert "expected the state of muon in the checkpoint, got none: it brought no optimizer state" in found.stderr


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--state", "checkpoint"), "expected the state of muon in the checkpoint, got none"),
        (("--lr", "checkpoint"), "expected the checkpoint to hold the state of muon and its learning rate, got none"),
    ],
)
def test_what_the_checkpoint_does_not_have_is_refused_before_a_spectrum_is_measured(
    asked: tuple[str, str], said: str, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    found = replay(tiny_llama, text, tmp_path / "out", *asked)
    assert found.exit_code == 3
    assert said in found.stderr
    assert "plan:" not in found.stderr
    assert not (tmp_path / "out" / "spectrum.json").exists()


def test_quiet_says_nothing_but_the_paths(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = replay(tiny_llama, text, run_folder, "-q", "--fresh")
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 2


def test_the_file_in_the_working_directory_supplies_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite-probe.toml").write_text(
        'optimizers = "soap"\nlr = 0.002\nset = ["soap.eps=1e-9"]\ndata = "val.bin"\n'
    )
    with click.Context(cli) as parent:
        given = command.make_context("replay", [str(tmp_path / "ckpt.pt"), "--steps", "8"], parent=parent).params
    one = ReplayMeasuring.asked_for(Terminal(""), given)
    assert one.request.optimizers == ("soap",)
    assert one.request.lr == 0.002
    assert one.request.hyperparameters == {"soap": {"eps": 1e-9}}
    assert (one.request.steps, one.asked.data_path) == (8, "val.bin")


def test_defaults_are_those_of_the_library() -> None:
    with click.Context(cli) as parent:
        shown = command.make_context("replay", ["ckpt.pt", "--data", "x"], parent=parent).params
    assert ReplayMeasuring.asked_for(Terminal(""), shown).request == ReplayRequest()

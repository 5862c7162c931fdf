"""The pretraining example: what it logs is what the library's training did, and every refusal has its exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lite_probe as lp
from examples import pretrain
from lite_probe.optim import Schedule
from lite_probe.training import train_byte_llama

TINY = ["--hidden", "32", "--layers", "1", "--steps", "6", "--batch-size", "2", "--seq-len", "16"]


def run(out: Path, *arguments: str) -> int:
    return pretrain.main([*TINY, *arguments, "--out", str(out)])


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_log_holds_the_run_and_stdout_the_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--optimizer", "muon-lite", "--lr", "1e-2", "--schedule", "wsd", "--warmup", "2", "--seed", "3"]
    assert run(out, *options, "--set", "beta1=-0.25", "--save-at", "2", "6", "--eval-every", "4") == 0
    captured = capsys.readouterr()
    assert captured.out.split() == [str(out / "step-00002"), str(out / "step-00006")]

    record = train_byte_llama(
        tmp_path / "same",
        optimizer="muon-lite",
        hyperparameters={"beta1": -0.25},
        learning_rate=1e-2,
        schedule=Schedule(name="wsd", total_steps=6, warmup_steps=2, min_lr_ratio=0.1),
        steps=6,
        save_at=(),
        eval_every=2,
        eval_batches=16,
        seed=3,
        hidden=32,
        layers=1,
        heads=1,
        seq_len=16,
        batch_size=2,
    )
    head, *steps, last = read_log(out)
    assert head["run"]["optimizer"] == "muon-lite"
    assert (head["run"]["set"], head["run"]["warmup"], head["run"]["save_at"]) == ({"beta1": -0.25}, 2, [2, 6])
    assert [step["loss"] for step in steps] == list(record.losses)
    # Up over two steps, stable to ⌊0.8·6⌋ = 4, then down in a line that ends at a tenth; f is asked at 1 to 6.
    assert [s["learning_rate"] for s in steps] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2, 5.5e-3, 1e-3], rel=1e-12)
    evaluated = {step["step"]: step["evaluation_loss"] for step in steps if "evaluation_loss" in step}
    assert evaluated == dict(zip(record.evaluation_steps, record.evaluation_losses, strict=True))
    assert last["summary"]["evaluation_loss"] == record.evaluation_losses[-1]
    assert last["summary"]["num_parameters"] == record.num_parameters
    told = captured.err.splitlines()
    assert told[0].startswith(f"step 2/6 · loss {steps[1]['loss']:.3f} · evaluation loss {evaluated[2]:.4f} · 0:0")
    assert f"loss {evaluated[6]:.4f} nats per byte on text they have not seen" in told[-1]


def test_settings_reach_the_optimizer_that_is_saved(tmp_path: Path) -> None:
    assert (
        run(tmp_path, "--optimizer", "soap-lite", "--set", "flat_lr_ratio=3", "--set", 'sharp_ratio={"ffn": 0.2}') == 0
    )
    checkpoint = lp.open_checkpoint(tmp_path / "step-00006")
    assert (checkpoint.step, checkpoint.vocab_size) == (6, 256)
    saved = torch.load(tmp_path / "step-00006" / "optimizer.pt", weights_only=True)
    assert {group["optimizer"] for group in saved["param_groups"]} == {"soap-lite"}
    assert set(saved["param_groups"][0]["flat_lr_ratio"].values()) == {3}
    sharp = saved["param_groups"][0]["sharp_ratio"]
    assert (sharp["ffn"], sharp["qk"]) == (0.2, 0.1)


def test_a_setting_is_json_or_a_word() -> None:
    texts = ["eps=1e-6", "betas=[0.9, 0.99]", "shampoo_beta=null", "ns_coefficients=quintic", "note=a=b"]
    values = [1e-6, [0.9, 0.99], None, "quintic", "a=b"]
    assert [pretrain.setting(text)[1] for text in texts] == values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "beta2"], "argument --set: expected KEY=VALUE, got 'beta2'"),
        (["--steps", "0"], "argument --steps: expected a whole number ≥ 1, got '0'"),
        (["--layers", "-1"], "argument --layers: expected a whole number ≥ 1, got '-1'"),
        (["--optimizer", "adam"], "argument --optimizer: invalid choice: 'adam'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--hidden", "48"], 2, "error: expected --hidden to be a multiple of 32, the width of a head, got 48"),
        (["--warmup", "6"], 2, "error: expected warmup_steps in [0, total_steps), got 6 of 6"),
        (["--set", "beta2=1"], 2, "error: expected hyperparameters of adamw among adamw_beta1, "),
        (["--lr", "nan"], 2, "error: expected lr in [0, 1e6], got nan"),
        (["--set", "weight_decay=1e6", "--lr", "1e6"], 4, "error: expected a finite loss, got nan at step "),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert run(tmp_path / "run", *arguments) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.startswith(message)) == ("", True), captured.err
    assert (tmp_path / "run").exists() == (code == 4), "a request that is refused leaves nothing"


def test_a_run_is_not_mixed_with_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "step-00003").mkdir()
    assert run(tmp_path) == 6
    assert f"error: expected no checkpoints in {tmp_path}, got some; remove them" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("a file")
    assert run(tmp_path / "run") == 6
    assert f"error: expected to write {tmp_path / 'run'}, got File exists; choose" in capsys.readouterr().err


def test_an_interrupted_run_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(log: pretrain.Log, done: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.Log, "step", interrupt)
    assert run(tmp_path) == 130
    assert capsys.readouterr().err == f"error: interrupted; what was saved is in {tmp_path}\n"

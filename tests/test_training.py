"""Training a small Llama: repeatable with every optimizer, better than counting, and leaving folders that open."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.nn import functional
from transformers import LlamaForCausalLM

from lite_probe.checkpoints import open_checkpoint
from lite_probe.commands.main import cli
from lite_probe.data import ByteTokenizer, draw_batches, open_tokens
from lite_probe.errors import NumericsError, OutputError, UsageError
from lite_probe.optim import OPTIMIZERS, Schedule, make_optimizer
from lite_probe.task.build import make_task
from lite_probe.training import TrainingRecord, TrainingStep, single_byte_entropy, train_byte_llama

TINY = {"hidden": 16, "layers": 1, "heads": 2, "seq_len": 16, "batch_size": 4}
# Learning rates at which each learns a text of period 3 in 60 steps; gradient descent has no scale of its own.
RATES = {**dict.fromkeys(OPTIMIZERS, 2e-2), "sgd": 2.0}


def train(out: Path, **options: object) -> TrainingRecord:
    return train_byte_llama(out, **(TINY | {"steps": 5, "save_at": (2, 5)} | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> TrainingRecord:
    return train(tmp_path_factory.mktemp("run") / "first")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_seed_gives_the_same_weights_bitwise(optimizer: str, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever state the caller's generator is in, before and after
    before = torch.random.get_rng_state()
    runs = [
        train(tmp_path / name, optimizer=optimizer, seed=seed) for name, seed in (("a", 0), ("again", 0), ("other", 1))
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    for paths in zip(*(run.checkpoints for run in runs), strict=True):
        weights = [load_file(path / "model.safetensors") for path in paths]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])
    assert list(runs[0].losses) == list(runs[1].losses) != list(runs[2].losses)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_new_optimizer_goes_on_from_the_saved_state_bitwise(optimizer: str, tmp_path: Path) -> None:
    """Steps 6 to 10 again, in a loop of the test's own, from what step 5 left on disk."""
    own = {"precondition_frequency": 3} if optimizer.startswith("soap") else {"weight_decay": 0.2}
    ramps = {"total_steps": 10, "warmup_steps": 3, "min_lr_ratio": 0.2, "stable_ratio": 0.6}
    schedule = Schedule(name="wsd", **ramps)
    options = {"learning_rate": 5e-3, "hyperparameters": own, "schedule": schedule}
    record = train(tmp_path / "run", optimizer=optimizer, steps=10, save_at=(5, 10), **options)

    model = LlamaForCausalLM.from_pretrained(record.checkpoints[0])  # with the attention it was trained with
    lite = {"schedule": "wsd", **ramps} if optimizer.endswith("-lite") else {}
    again = make_optimizer(optimizer, model.named_parameters(), lr=0.0, **own, **lite)
    again.load_state_dict(torch.load(record.checkpoints[0] / "optimizer.pt", weights_only=True))
    tokens = open_tokens("builtin:python-docs", tokenizer=ByteTokenizer())
    plan = draw_batches(tokens, seq_len=16, batch_size=4, eval_batches=4, train_batches=10, seed=0, vocab_size=256)
    losses = []
    for k in range(5, 10):
        batch = torch.from_numpy(plan.train[k].copy())
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.reshape(64, 256), batch[:, 1:].reshape(64), reduction="sum") / 64
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in again.param_groups:
            group["lr"] = 5e-3 * schedule.lr_factor(k + 1)
        again.step()
        losses.append(loss.item())
    assert losses == list(record.losses[5:])
    expected = load_file(record.checkpoints[1] / "model.safetensors")
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_update_is_told_with_its_learning_rate(tmp_path: Path) -> None:
    told: list[TrainingStep] = []
    record = train(tmp_path, steps=20, save_at=(7,), eval_every=5, learning_rate=1e-2, on_step=told.append)
    assert [step.step for step in told] == list(range(1, 21))
    assert [step.loss for step in told] == list(record.losses)
    # The default schedule: up over 2 of 20 steps, none wasted at zero, then a cosine whose end is a tenth.
    cosine = [1e-2 * (0.55 + 0.45 * math.cos(math.pi * k / 18)) for k in range(1, 19)]
    assert [step.learning_rate for step in told] == pytest.approx([5e-3, 1e-2, *cosine], rel=1e-12)
    evaluated = {step.step: step.evaluation_loss for step in told if step.evaluation_loss is not None}
    assert list(evaluated) == list(record.evaluation_steps) == [5, 7, 10, 15, 20]
    assert list(evaluated.values()) == list(record.evaluation_losses)


def test_without_checkpoints_nothing_is_written(record: TrainingRecord, tmp_path: Path) -> None:
    unsaved = train(tmp_path / "run", save_at=())
    assert (unsaved.checkpoints, unsaved.evaluation_steps) == ([], [5])
    assert unsaved.evaluation_losses == record.evaluation_losses[-1:]
    assert not (tmp_path / "run").exists()


def test_saving_more_often_changes_nothing(record: TrainingRecord, tmp_path: Path) -> None:
    once = train(tmp_path / "once", save_at=(5,))
    weights = [load_file(path / "model.safetensors") for path in (record.checkpoints[-1], once.checkpoints[-1])]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_checkpoint_opens_as_one(record: TrainingRecord) -> None:
    assert [path.name for path in record.checkpoints] == ["step-00002", "step-00005"]
    last = record.checkpoints[-1]
    state = json.loads((last / "training_state.json").read_text())
    assert (state["step"], state["loss"], state["seed"]) == (5, record.losses[-1], 0)
    checkpoint = open_checkpoint(last)
    assert (checkpoint.format, checkpoint.step, checkpoint.vocab_size) == ("huggingface", 5, 256)
    assert checkpoint.num_parameters == record.num_parameters
    # The optimizer's state belongs to the weights beside it: five updates, one pair of moments per parameter.
    saved = torch.load(last / "optimizer.pt", weights_only=True)
    model = checkpoint.build_model()
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    shapes = {name: tuple(saved["state"][index]["exp_avg"].shape) for index, name in enumerate(names)}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {state["step"] for state in saved["state"].values()} == {5}
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_inspect_opens_what_was_saved(optimizer: str, tmp_path: Path) -> None:
    record = train(tmp_path / "run", optimizer=optimizer, steps=2, save_at=(2,))
    found = CliRunner().invoke(cli, ["inspect", str(record.checkpoints[0]), "--json"])
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert (told["step"], told["num_parameters"]) == (2, record.num_parameters)


def test_the_evaluation_loss_is_that_of_the_task(record: TrainingRecord) -> None:
    checkpoint = open_checkpoint(record.checkpoints[-1])
    task = make_task(checkpoint, data="builtin:python-docs", seq_len=16, batch_size=4, eval_batches=4, seed=0)
    sums = [task.loss(batch) for batch in task.evaluation]
    loss = sum(total.item() for total, _ in sums) / sum(count for _, count in sums)
    assert loss == pytest.approx(record.evaluation_losses[-1], rel=1e-6)  # float32 means of 64 tokens


def test_the_entropy_of_bytes_is_shannons(record: TrainingRecord) -> None:
    tokens = open_tokens("builtin:python-docs", tokenizer=ByteTokenizer())
    split = len(tokens) - math.ceil(0.1 * len(tokens))
    counts = Counter(tokens.read(0, split).tolist())
    expected = -math.fsum(c / split * math.log(c / split) for c in counts.values())
    assert record.byte_entropy == pytest.approx(expected, rel=1e-12)
    assert single_byte_entropy(np.array([1, 1, 5, 5])) == pytest.approx(math.log(2), rel=1e-15)
    assert 3.0 < record.byte_entropy < 3.5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_learns_more_than_frequencies(optimizer: str, tmp_path: Path) -> None:
    # A text of period 3 has byte entropy log 3; the byte before predicts it.
    (tmp_path / "abc.txt").write_text("abc" * 2000)
    options = {"source": tmp_path / "abc.txt", "steps": 60, "save_at": (), "learning_rate": RATES[optimizer]}
    record = train(tmp_path / "run", optimizer=optimizer, **options)
    assert record.byte_entropy == pytest.approx(math.log(3), rel=1e-6)
    assert record.evaluation_losses[-1] < 0.2 * record.byte_entropy
    assert record.losses[0] == pytest.approx(math.log(256), rel=0.05), "untrained, all bytes are alike"


def test_progress_is_told_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int, str]] = []
    record = train(tmp_path / "run", on_progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(step, 5) for step in range(1, 6)]
    assert calls[-1][2] == f"training · loss {record.losses[-1]:.3f}"
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("save_at", [(0,), (6,), (2, 9)])
def test_saving_outside_the_run_is_refused(tmp_path: Path, save_at: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected save_at within 1 … 5, got"):
        train(tmp_path, save_at=save_at)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0, "save_at": ()}, "expected steps ≥ 1, got 0"),
        ({"eval_every": 0}, "expected eval_every ≥ 1 or None, got 0"),
        ({"schedule": Schedule(name="cosine", total_steps=6)}, "expected a schedule of 5 steps, got one of 6"),
        ({"optimizer": "adam"}, "expected an optimizer among adamw, .*, got 'adam'"),
        (
            {"optimizer": "muon", "hyperparameters": {"beta2": 1.0, "lr": 1.0}},
            "expected hyperparameters of muon among adamw_beta1, .*, got beta2, lr; learning rate and schedule have",
        ),
        (
            {"optimizer": "soap-lite", "hyperparameters": {"total_steps": 9}},
            "expected hyperparameters of soap-lite among betas, .*, smooth_ratio, got total_steps",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(tmp_path, **options)


def test_a_width_that_heads_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected hidden to be a multiple of 2 · heads = 4, got 18"):
        train(tmp_path, hidden=18)


def test_a_loss_that_explodes_is_refused(tmp_path: Path) -> None:
    # Decay multiplies the weights by 1 − 1e12 a step: past the largest float32 after four.
    exploding = {"learning_rate": 1e6, "hyperparameters": {"weight_decay": 1e6}, "schedule": Schedule()}
    with pytest.raises(NumericsError, match=r"expected a finite loss, got nan at step \d"):
        train(tmp_path, **exploding)


def test_checkpoints_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run" / "step-00005").mkdir(parents=True)
    with pytest.raises(OutputError, match="expected no step-00005 in run, got one"):
        train(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00005"], "refused before step 2 was saved"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match=r"expected to write step-00002 in run, got (File exists|Not a directory)"):
        train(tmp_path / "run")


def test_a_checkpoint_half_written_keeps_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")):
        monkeypatch.setattr(torch, "save", Mock(side_effect=error))
        message = rf"expected to write step-00002 in run, got {error.args[-1]}; choose another --out"
        with pytest.raises(OutputError, match=message):
            train(tmp_path / "run")
        assert list((tmp_path / "run").iterdir()) == []

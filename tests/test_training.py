"""The demo's training: repeatable, better than counting, and leaving folders that open as checkpoints."""

import json
import math
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lite_probe.checkpoints import open_checkpoint
from lite_probe.data import ByteTokenizer, open_tokens
from lite_probe.errors import NumericsError, OutputError, UsageError
from lite_probe.making import make_task
from lite_probe.training import TrainingRecord, single_byte_entropy, train_byte_llama

TINY = {"hidden": 16, "layers": 1, "heads": 2, "seq_len": 16, "batch_size": 4}


def train(out: Path, **options: object) -> TrainingRecord:
    return train_byte_llama(out, **(TINY | {"steps": 5, "save_at": (2, 5)} | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> TrainingRecord:
    return train(tmp_path_factory.mktemp("run") / "first")


def test_the_same_seed_gives_the_same_weights_bitwise(record: TrainingRecord, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever state the caller's generator is in, before and after
    before = torch.random.get_rng_state()
    again = train(tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), before)
    other = train(tmp_path / "other", seed=1)
    for first, second, third in zip(record.checkpoints, again.checkpoints, other.checkpoints, strict=True):
        weights = [load_file(path / "model.safetensors") for path in (first, second, third)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])
    assert list(record.losses) == list(again.losses) != list(other.losses)


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
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)
    model = checkpoint.build_model()
    assert [tuple(s["exp_avg"].shape) for s in optimizer["state"].values()] == [
        tuple(p.shape) for p in model.parameters()
    ]
    assert {int(s["step"]) for s in optimizer["state"].values()} == {5}
    assert not model.config.tie_word_embeddings


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


def test_training_learns_more_than_frequencies(tmp_path: Path) -> None:
    # A text of period 3 has byte entropy log 3; attention to the byte before predicts it.
    (tmp_path / "abc.txt").write_text("abc" * 2000)
    record = train(tmp_path / "run", source=tmp_path / "abc.txt", steps=60, save_at=(60,), learning_rate=1e-2)
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


@pytest.mark.parametrize("save_at", [(), (0,), (6,), (2, 9)])
def test_saving_outside_the_run_is_refused(tmp_path: Path, save_at: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected save_at within 1 … 5, got"):
        train(tmp_path, save_at=save_at)


def test_a_width_that_heads_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected hidden to be a multiple of 2 · heads = 4, got 18"):
        train(tmp_path, hidden=18)


def test_a_loss_that_explodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"expected a finite loss, got (nan|inf) at step 2"):
        train(tmp_path, learning_rate=float("inf"))


def test_checkpoints_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run" / "step-00002").mkdir(parents=True)
    with pytest.raises(OutputError, match="expected no step-00002 in run, got one"):
        train(tmp_path / "run")


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

"""Tasks: what a checkpoint and a text make, and what a user's own file may and may not return."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from lite_probe.checkpoints import Checkpoint, open_checkpoint
from lite_probe.data import ByteTokenizer, draw_batches, open_tokens
from lite_probe.errors import InputError, NumericsError, UsageError
from lite_probe.results.provenance import Note
from lite_probe.task import Task
from lite_probe.task.build import load_task_file, make_other_batches, make_shards, make_task

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def save_llama(folder: Path, vocab_size: int = 256) -> Checkpoint:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **SMALL)).save_pretrained(folder)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("All happy families are alike. " * 400)  # 12,000 bytes
    return path


def test_the_loss_is_next_token_cross_entropy(llama: Checkpoint, text: Path) -> None:
    task = make_task(llama, data=text, seq_len=16, batch_size=3, eval_batches=2, train_batches=1)
    batch = task.evaluation[0]
    assert (batch.shape, batch.dtype) == ((3, 17), torch.int64)
    assert (len(task.evaluation), len(task.train)) == (2, 1)
    loss, count = task.loss(batch)
    # The oracle runs all 17 tokens through the model as it was saved, and shifts afterwards.
    reference = LlamaForCausalLM.from_pretrained(llama.path).eval()
    logits = reference(input_ids=batch).logits[:, :-1]
    expected = -torch.log_softmax(logits, -1).gather(-1, batch[:, 1:, None]).sum()
    assert count == 48
    # Two forward passes in float32, 48 terms of size log 256: relative 1e-6 each at worst.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_batches_are_those_of_the_plan(llama: Checkpoint, text: Path) -> None:
    task = make_task(llama, data=text, seq_len=16, batch_size=3, eval_batches=2, train_batches=2, seed=5)
    plan = draw_batches(
        open_tokens(text, tokenizer=ByteTokenizer()),
        seq_len=16,
        batch_size=3,
        eval_batches=2,
        train_batches=2,
        seed=5,
        vocab_size=256,
    )
    assert all(np.array_equal(a, b) for a, b in zip(task.evaluation, plan.evaluation, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(task.train, plan.train, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(task.heldout, plan.heldout, strict=True))
    assert len(task.heldout) == 2
    info = task.info
    assert (info.name, info.checkpoint_name, info.checkpoint_format) == ("tiny", "tiny", "huggingface")
    assert (info.data_name, info.batch_size, info.seq_len) == ("text.txt", 3, 16)
    assert info.checkpoint_fingerprint == llama.fingerprint
    assert "llama" in info.architecture
    assert task.blocks is not None
    assert set(task.blocks) == {name for name, _ in task.model.named_parameters()}


def test_precision_is_that_of_the_parameters(llama: Checkpoint, text: Path) -> None:
    task = make_task(llama, data=text, seq_len=8, dtype=torch.float64)
    loss, _ = task.loss(task.evaluation[0])
    assert loss.dtype == torch.float64
    assert task.device == torch.device("cpu")


def test_a_mixture_of_experts_has_no_router_loss_and_no_dropout(tmp_path: Path, text: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=256,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        attention_dropout=0.5,
        output_router_logits=True,
        router_aux_loss_coef=100.0,
        **SMALL,
    )
    Qwen2MoeForCausalLM(config).train().save_pretrained(tmp_path / "moe")
    task = make_task(open_checkpoint(tmp_path / "moe"), data=text, seq_len=8)
    batch = task.evaluation[0]
    loss, count = task.loss(batch)
    assert loss.item() == task.loss(batch)[0].item()
    logits = task.predict(task.model, batch)
    expected = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    # The model's own loss shows that the guard has something to keep out.
    own = task.model(input_ids=batch[:, :-1], labels=batch[:, :-1]).loss
    assert own.item() > 100 > loss.item() / count


def test_dropout_is_off(tmp_path: Path, text: Path) -> None:
    GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0.5, embd_pdrop=0.5)
    ).save_pretrained(tmp_path / "gpt2")
    task = make_task(open_checkpoint(tmp_path / "gpt2"), data=text)
    assert not any(module.training for module in task.model.modules())
    assert task.loss(task.evaluation[0])[0].item() == task.loss(task.evaluation[0])[0].item()
    assert task.info.seq_len == 32, "the model's context is the default where it is shorter than 256"


# Sequence length


def test_windows_shrink_to_a_short_text_with_a_note(llama: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 2000)
    notes: list[Note] = []
    task = make_task(llama, data=tmp_path / "short.txt", on_note=notes.append)
    # Half of the text over 4 · 8 windows, one token of each being the last target.
    assert task.info.seq_len == 2000 // 2 // 32 - 1 == 30
    assert [note.code for note in notes] == ["seq-len-shortened", "evaluation-split-grown"]
    assert notes[0].message == "Windows were shortened to 30 tokens: short.txt holds only 2,000."


def test_a_text_too_short_for_any_window_is_refused(llama: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 543)
    with pytest.raises(InputError, match=r"expected at least 544 tokens to evaluate on \(32 windows of 17\), got 543"):
        make_task(llama, data=tmp_path / "short.txt")


def test_a_sequence_beyond_the_context_is_refused(llama: Checkpoint, text: Path) -> None:
    with pytest.raises(InputError, match=r"expected a sequence length of at most 64 \(the model's context\), got 65"):
        make_task(llama, data=text, seq_len=65)
    assert make_task(llama, data=text, seq_len=64, eval_batches=1).info.seq_len == 64


# Tokenizers


def write_tokenizer(folder: Path, num_words: int) -> None:
    words = {f"w{i}": i for i in range(num_words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_checkpoints_own_tokenizer_comes_first(tmp_path: Path) -> None:
    save_llama(tmp_path / "own")
    write_tokenizer(tmp_path / "own", 100)
    (tmp_path / "words.txt").write_text("w7 " * 4000)
    own = open_checkpoint(tmp_path / "own")
    notes: list[Note] = []
    task = make_task(own, data=tmp_path / "words.txt", seq_len=8, on_note=notes.append)
    assert set(task.evaluation[0].flatten().tolist()) == {7}
    assert [note.code for note in notes] == ["tokenizer-mismatch"]
    assert "tokenizer.json has 100 ids where the model knows 256" in notes[0].message
    asked = make_task(own, data=tmp_path / "words.txt", seq_len=8, tokenizer="bytes")
    assert set(asked.evaluation[0].flatten().tolist()) == set(b"w7 ")
    by_object = make_task(own, data=tmp_path / "words.txt", seq_len=8, tokenizer=ByteTokenizer())
    assert all(torch.equal(a, b) for a, b in zip(by_object.evaluation, asked.evaluation, strict=True))


def test_bytes_are_assumed_only_for_a_vocabulary_of_bytes(llama: Checkpoint, tmp_path: Path, text: Path) -> None:
    notes: list[Note] = []
    make_task(llama, data=text, seq_len=8, on_note=notes.append)
    assert notes == []
    make_task(save_llama(tmp_path / "260", 260), data=text, seq_len=8, on_note=notes.append)
    assert [note.code for note in notes] == ["bytes-assumed"]
    assert "260 ids" in notes[0].message
    for vocab_size in (255, 513):
        with pytest.raises(InputError, match=r"expected a tokenizer for the text of text.txt, got none that belongs"):
            make_task(save_llama(tmp_path / str(vocab_size), vocab_size), data=text)


def test_token_ids_need_no_tokenizer_but_a_vocabulary(tmp_path: Path) -> None:
    checkpoint = save_llama(tmp_path / "model", 1000)
    ids = np.arange(2000, dtype="<u2") % 1000
    ids.tofile(tmp_path / "val.bin")
    assert make_task(checkpoint, data=tmp_path / "val.bin", seq_len=8).info.data_name == "val.bin"
    ids[81] = 50_256
    ids.tofile(tmp_path / "val.bin")
    with pytest.raises(InputError, match=r"expected tokens below 1,000 .*, got 50,256 at offset 81 of val.bin"):
        make_task(checkpoint, data=tmp_path / "val.bin", seq_len=8)
    ids.astype("<u4").tofile(tmp_path / "val.bin")
    with pytest.raises(InputError, match=r"got 50,256 at offset 162 of val.bin"):  # every second half
        make_task(checkpoint, data=tmp_path / "val.bin", seq_len=8, token_dtype="uint16")


# Models


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, text: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **SMALL))
    nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(NumericsError):
        make_task(open_checkpoint(tmp_path / "nan"), data=text, seq_len=8)


def test_a_checkpoint_without_a_config_is_refused(tmp_path: Path, text: Path) -> None:
    torch.save({"state_dict": nn.Linear(3, 3).state_dict()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"expected a model config with a vocabulary, got none with weights \(torch\)"):
        make_task(open_checkpoint(tmp_path / "weights.pt"), data=text)


def test_unknown_blocks_are_a_note(llama: Checkpoint, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Checkpoint, model: nn.Module, *, overrides: object) -> None:
        raise InputError("expected a known family, got 'other'")

    monkeypatch.setattr(Checkpoint, "block_map", refuse)
    notes: list[Note] = []
    task = make_task(llama, data=text, seq_len=8, on_note=notes.append)
    assert task.blocks is None
    assert [note.code for note in notes] == ["blocks-unknown"]
    assert "expected a known family, got 'other'; --blocks FILE can say them" in notes[0].message


def test_blocks_are_given(llama: Checkpoint, text: Path) -> None:
    """Before the family's; what they leave out stays the family's."""
    task = make_task(llama, data=text, seq_len=8, blocks={r"mlp\.\w+\.weight": "other", "lm_head.weight": "emb"})
    blocks = {part.block for parts in (task.blocks or {}).values() for part in parts}
    assert blocks == {"emb", "qk", "vo", "norm", "other"}
    with pytest.raises(InputError, match=r"expected patterns that match .*, got 'fc1', which matches none; correct it"):
        make_task(llama, data=text, seq_len=8, blocks={"fc1": "ffn"})


# A user's own file

GOOD = """
from __future__ import annotations  # makes dataclass look its module up
from dataclasses import dataclass
import torch
from neighbour import WIDTH
from lite_probe.criteria import squared_error
from lite_probe.task import Task

@dataclass
class Sizes:
    width: int = WIDTH

def build():
    model = torch.nn.Linear(Sizes().width, 1)
    batch = (torch.ones(4, WIDTH), torch.zeros(4, 1))
    return Task(model=model, predict=lambda m, b: m(b[0]), criterion=squared_error, evaluation=[batch])

def no_batches():
    task = build()
    task.evaluation = []
    return task

def frozen():
    task = build()
    task.model.requires_grad_(False)
    return task

def number():
    return 3

def broken():
    return [][0]

def leaves():
    raise SystemExit("bye")

def refuses():
    from lite_probe.errors import NumericsError
    raise NumericsError("expected a finite loss, got nan")

constant = 1
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path / "mine.py"


def test_a_users_file_makes_a_task(task_file: Path) -> None:
    import sys

    before = list(sys.path)
    task = load_task_file(f"{task_file}:build")
    assert isinstance(task, Task)
    loss, count = task.loss(task.evaluation[0])
    assert (loss.ndim, count) == (0, 4)
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "nothing",
            r"expected a function 'nothing' in mine.py, got broken, build, frozen, leaves, no_batches, number",
        ),
        ("constant", r"expected a function 'constant' in mine.py"),
        ("number", r"expected number of mine.py to return a lite_probe.Task, got int"),
        ("no_batches", r"expected at least one evaluation batch from no_batches of mine.py, got none"),
        ("frozen", r"expected a model with trainable parameters from frozen of mine.py, got none"),
        ("broken", r"expected broken of mine.py to run, got IndexError: list index out of range \(mine.py, line 32\)"),
        ("leaves", r"expected leaves of mine.py to run, got SystemExit: bye"),
    ],
)
def test_a_users_function_that_gives_no_task_is_refused(task_file: Path, function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_task_file(f"{task_file}:{function}")


def test_a_refusal_of_the_users_own_keeps_its_kind(task_file: Path) -> None:
    with pytest.raises(NumericsError, match="expected a finite loss, got nan"):
        load_task_file(f"{task_file}:refuses")


@pytest.mark.parametrize("spec", ["file.py", ":build", "file.py:", "file.py:not a name", ""])
def test_a_request_of_another_form_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"expected FILE.py:FUNCTION, got "):
        load_task_file(spec)


def test_a_file_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a Python file, got no such path: '.*none.py'"):
        load_task_file(f"{tmp_path / 'none.py'}:build")
    (tmp_path / "task.txt").write_text("")
    with pytest.raises(InputError, match=r"expected a Python file, got task.txt; its name must end in .py"):
        load_task_file(f"{tmp_path / 'task.txt'}:build")
    (tmp_path / "bad.py").write_text("def build(:\n")
    with pytest.raises(InputError, match=r"expected bad.py to run, got SyntaxError: .*line 1"):
        load_task_file(f"{tmp_path / 'bad.py'}:build")
    (tmp_path / "bad.py").write_text("x = 1\nraise ValueError\n")
    with pytest.raises(InputError, match=r"expected bad.py to run, got ValueError:  \(bad.py, line 2\)"):
        load_task_file(f"{tmp_path / 'bad.py'}:build")


# Batches of other data, and of nodes


SIZES: dict[str, Any] = {"seq_len": 8, "batch_size": 2, "eval_batches": 2}


def test_other_batches_are_those_of_a_task_of_their_own_but_no_model_is_made(
    llama: Checkpoint, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Every unhappy family is unhappy in its own way. " * 100)
    task = make_task(llama, data=text, **SIZES)
    expected = make_task(llama, data=other, **SIZES, seed=3)
    monkeypatch.setattr(Checkpoint, "build_model", lambda *_, **__: pytest.fail("a model was made"))
    notes: list[Note] = []
    found = make_other_batches(llama, task, data=other, seed=3, on_note=notes.append)
    assert found.data_name == "other.txt"
    assert len(found.batches) == 2
    assert all(torch.equal(a, b) for a, b in zip(found.batches, expected.evaluation, strict=True))
    assert notes == []
    with pytest.raises(InputError, match="expected a file or folder of text or token ids, got no such path"):
        make_other_batches(llama, task, data=tmp_path / "missing.txt")


def test_a_task_without_windows_has_no_other_batches(llama: Checkpoint, text: Path) -> None:
    model = nn.Linear(2, 1)
    own = Task(model=model, predict=lambda m, b: m(b[0]), criterion=lambda o, b: (o.sum(), 1), evaluation=[0])
    with pytest.raises(
        UsageError, match="expected a task of make_task, got one whose batches are no windows of tokens"
    ):
        make_other_batches(llama, own, data=text)


def test_shards_are_of_the_tasks_own_data_and_no_model_is_made(
    llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, letter in {"a.txt": "a", "b.txt": "b", "c.txt": "c", "val.txt": "v"}.items():
        (tmp_path / name).write_text(letter * 500)
    task = make_task(llama, data=tmp_path, **SIZES, train_batches=3, seed=1)
    monkeypatch.setattr(Checkpoint, "build_model", lambda *_, **__: pytest.fail("a model was made"))
    notes: list[Note] = []
    asked: dict[str, Any] = {"data": tmp_path, "by": "files", "on_note": notes.append}
    found = make_shards(llama, task, **asked, nodes=3, node_batches=1, seed=1)
    assert found.said == "3 files"
    assert [len(batches) for batches in found.batches] == [2, 2, 2]
    letters = [{chr(token) for batch in batches for token in batch.ravel().tolist()} for batches in found.batches]
    assert letters == [{"a"}, {"b"}, {"c"}]
    assert [(note.code, note.message) for note in notes] == [
        ("shards", "Shards: 3 files, 500 to 500 tokens to a node: a.txt, b.txt, c.txt.")
    ]
    assert make_shards(llama, task, **asked, nodes=2, seed=1).said == "3 files dealt to 2 nodes"
    with pytest.raises(
        InputError, match=r"expected a shard for each of 4 nodes, got 3 files in .* beside its validation"
    ):
        make_shards(llama, task, **asked, nodes=4, seed=1)
    with pytest.raises(InputError, match="expected the task's batches to be drawn from this data with this seed, got"):
        make_shards(llama, task, **asked, nodes=3, seed=2)
    (tmp_path / "c.txt").write_text("d" * 500)
    with pytest.raises(InputError, match="data that changed meanwhile is opened anew"):
        make_shards(llama, task, **asked, nodes=3, seed=1)
    with pytest.raises(UsageError, match="expected --shards dealt, files or label:FIELD, got 'dealt'"):
        make_shards(llama, task, data=tmp_path, by="dealt", nodes=3)

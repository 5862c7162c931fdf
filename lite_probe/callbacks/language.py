"""The task of a language model that is at hand: what `make_task` is to a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lite_probe.criteria import next_token_cross_entropy
from lite_probe.data import Tokenizer, draw_batches, load_tokenizer, open_tokens
from lite_probe.errors import InputError
from lite_probe.results.provenance import Note
from lite_probe.task import Task, TaskInfo
from lite_probe.task.build import DEFAULT_SEQ_LEN, predict_next_tokens


class _Borrowed:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        """Of its folder, or of its class."""
        return Path(getattr(self._tokenizer, "name_or_path", "")).name or type(self._tokenizer).__name__

    @property
    def vocab_size(self) -> int:
        """With added tokens."""
        return len(self._tokenizer)

    @property
    def separator(self) -> NDArray[np.int64]:
        """(1,) the end-of-text token, or (0,) where it has none."""
        end = self._tokenizer.eos_token_id
        return np.array([] if end is None else [end], dtype=np.int64)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the (n,) ids of a text, without special tokens."""
        return np.array(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def language_task(
    model: nn.Module,
    data: str | Path,
    *,
    tokenizer: Any = None,
    seq_len: int | None = None,
    batch_size: int = 8,
    eval_batches: int = 4,
    seed: int = 0,
    text_field: str = "text",
    on_note: Callable[[Note], None] | None = None,
) -> Task:
    """Build the task of a language model in memory: next-token cross-entropy on batches of a text.

    Args:
        model: A causal language model of transformers.
        data: A source for `open_tokens`: a text, .jsonl, parquet or token ids.
        tokenizer: One of transformers; or "bytes", a path, or a `Tokenizer`. Token ids need none.
        seq_len: Tokens per window; None takes 256, or the model's context where that is shorter.
        batch_size: Windows per batch.
        eval_batches: Batches.
        seed: Of the batches.
        text_field: Field of a JSON line, column of a parquet file.
        on_note: Told what was decided or left out.

    Returns:
        A task without training batches; its batches are int64 tensors (batch_size, seq_len + 1) on the CPU.

    Raises:
        InputError: If the model has no vocabulary, or text, tokenizer and model do not fit together.
        UsageError: If a count is out of range.

    Cost: one pass over the tokens.
    """
    config = getattr(model, "config", None)
    vocab_size = getattr(config, "vocab_size", None)
    if not isinstance(vocab_size, int):
        raise InputError(
            f"expected a language model of transformers, whose config has a vocab_size, got {type(model).__name__}",
            "make a lite_probe.Task by hand: model, predict, criterion, evaluation batches",
        )
    stream = open_tokens(data, tokenizer=_as_tokenizer(tokenizer), text_field=text_field, on_note=on_note)
    longest = getattr(config, "max_position_embeddings", None) or DEFAULT_SEQ_LEN
    plan = draw_batches(
        stream,
        seq_len=min(DEFAULT_SEQ_LEN, longest) if seq_len is None else seq_len,
        batch_size=batch_size,
        eval_batches=eval_batches,
        train_batches=0,
        seed=seed,
        vocab_size=vocab_size,
        on_note=on_note,
    )
    return Task(
        model=model,
        predict=predict_next_tokens,
        criterion=next_token_cross_entropy,
        evaluation=[torch.from_numpy(batch.copy()) for batch in plan.evaluation],
        info=TaskInfo(
            data_name=stream.name,
            architecture=str(getattr(config, "model_type", "")),
            batch_size=batch_size,
            seq_len=plan.seq_len,
        ),
    )


def _as_tokenizer(tokenizer: Any) -> Tokenizer | None:
    if isinstance(tokenizer, str | Path):
        return load_tokenizer(tokenizer)
    if tokenizer is None or hasattr(tokenizer, "separator"):
        found: Tokenizer | None = tokenizer
        return found
    return _Borrowed(tokenizer)

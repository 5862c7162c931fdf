"""From a checkpoint and a text to a task; or a task from a user's own file.

The batches are drawn before the weights are read: a text that is too short is refused in a second.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lite_probe.criteria import next_token_cross_entropy
from lite_probe.data import Tokenizer, TokenStream, draw_batches, load_tokenizer, open_tokens
from lite_probe.data.token_files import TokenDtype
from lite_probe.errors import InputError
from lite_probe.results.provenance import Note
from lite_probe.task import Task, TaskInfo
from lite_probe.user_code import load_function, run_code

if TYPE_CHECKING:
    from lite_probe.blocks import Given
    from lite_probe.checkpoints import Checkpoint
    from lite_probe.results.blocks import BlockMap

DEFAULT_SEQ_LEN = 256

# A vocabulary of bytes with a few special ids behind them is at most this large.
_LARGEST_BYTE_VOCABULARY = 512

OnNote = Callable[[Note], None]


def make_task(
    checkpoint: "Checkpoint",
    *,
    data: str | Path,
    tokenizer: str | Path | Tokenizer | None = None,
    seq_len: int | None = None,
    batch_size: int = 8,
    eval_batches: int = 4,
    train_batches: int = 0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    text_field: str = "text",
    token_dtype: TokenDtype | None = None,
    blocks: "Given | None" = None,
    on_note: OnNote | None = None,
) -> Task:
    """Build the task of a language-model checkpoint: next-token cross-entropy on batches of a text.

    The loss comes from the logits alone, so a mixture of experts contributes no auxiliary router loss; the model is
    in evaluation mode, so nothing is dropped.

    Args:
        checkpoint: From `open_checkpoint`.
        data: A source for `open_tokens`.
        tokenizer: "bytes", a path, or a tokenizer; None takes the checkpoint's own, or bytes for a vocabulary of
            256 to 512 ids.
        seq_len: Tokens per window; None takes 256, or less where the model or the text is shorter.
        batch_size: Windows per batch.
        eval_batches: Batches that spectra are measured on.
        train_batches: Batches that a replay trains on; where there are some, as many as `eval_batches` are held out.
        seed: Of the batches.
        device: Where model and batches go.
        dtype: Of the parameters.
        text_field: Field of a JSON line, column of a parquet file.
        token_dtype: Type of .bin ids; None decides by header or content.
        blocks: Name, or regular expression for the end of one, → block, or its parts, before what is known of the
            model's family.
        on_note: Told what was decided or left out.

    Returns:
        The task; batches are int64 tensors (batch_size, seq_len + 1).

    Raises:
        InputError: If text, tokenizer, weights and model do not fit together, or `blocks` and the model.
        UsageError: If a count is out of range.
        NumericsError: If a weight is not finite.

    Cost: one pass over the tokens, one copy of the weights.
    """
    tell = on_note or _ignore
    vocab_size = checkpoint.vocab_size
    if vocab_size is None:
        raise InputError(
            f"expected a model config with a vocabulary, got none with {checkpoint.name} ({checkpoint.format})",
            "pass --model-config CONFIG.json of a language model, or --task FILE.py:FUNCTION for a model of your own",
        )
    chosen = _choose_tokenizer(checkpoint, tokenizer)
    stream = open_tokens(data, tokenizer=chosen, text_field=text_field, token_dtype=token_dtype, on_note=tell)
    if chosen is not None and stream.tokenizer_name is not None:
        _note_vocabularies(chosen, vocab_size, asked=tokenizer is not None, tell=tell)
    plan = draw_batches(
        stream,
        seq_len=_choose_seq_len(seq_len, checkpoint.max_seq_len, stream, eval_batches * batch_size, tell),
        batch_size=batch_size,
        eval_batches=eval_batches,
        train_batches=train_batches,
        seed=seed,
        vocab_size=vocab_size,
        on_note=tell,
    )
    model = checkpoint.build_model(device=device, dtype=dtype)
    return Task(
        model=model,
        predict=predict_next_tokens,
        criterion=next_token_cross_entropy,
        evaluation=[torch.from_numpy(batch.copy()).to(device) for batch in plan.evaluation],
        train=[torch.from_numpy(batch.copy()).to(device) for batch in plan.train],
        blocks=_find_blocks(checkpoint, model, blocks, tell),
        info=TaskInfo(
            name=checkpoint.name,
            data_name=stream.name,
            checkpoint_name=checkpoint.name,
            checkpoint_format=checkpoint.format,
            checkpoint_fingerprint=checkpoint.fingerprint,
            checkpoint_step=checkpoint.step,
            architecture=checkpoint.architecture,
            batch_size=batch_size,
            seq_len=plan.seq_len,
            train_tokens=plan.split,
        ),
        heldout=[torch.from_numpy(batch.copy()).to(device) for batch in plan.heldout],
    )


def predict_next_tokens(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the logits (B, S, V) of a causal language model on all but the last token of a batch (B, S + 1)."""
    logits: Tensor = model(input_ids=batch[:, :-1], use_cache=False).logits
    return logits


def load_task_file(spec: str) -> Task:
    """Load a task that a user wrote.

    The file is run as a module, then the function is called without arguments.

    Args:
        spec: "FILE.py:FUNCTION".

    Returns:
        What the function returned.

    Raises:
        UsageError: If the request is not of that form.
        InputError: If there is no such file or function, if either raised, or if no usable task came back.
        LiteProbeError: Whatever kind the file itself raised.
    """
    function, what = load_function(spec, "--task", "name one that returns a Task")
    return _check_task(run_code(function, what), what)


def _choose_tokenizer(checkpoint: "Checkpoint", asked: str | Path | Tokenizer | None) -> Tokenizer | None:
    """Return the tokenizer to use, None where there is none: token ids need none."""
    if isinstance(asked, (str, Path)):
        return load_tokenizer(asked)
    if asked is not None:
        return asked
    # A tokenizer_config.json may stand there alone: a text will then ask for --tokenizer.
    own = checkpoint.tokenizer_path
    if own is not None and own.with_name("tokenizer.json").is_file():
        return load_tokenizer(own)
    if 256 <= (checkpoint.vocab_size or 0) <= _LARGEST_BYTE_VOCABULARY:
        return load_tokenizer("bytes")
    return None


def _note_vocabularies(tokenizer: Tokenizer, vocab_size: int, *, asked: bool, tell: OnNote) -> None:
    if tokenizer.vocab_size == vocab_size:
        return
    if not asked and tokenizer.name == "bytes":
        message = f"The text was read as bytes: the model knows {vocab_size} ids and brings no tokenizer."
        tell(Note(code="bytes-assumed", message=message))
    elif 2 * tokenizer.vocab_size < vocab_size:
        message = (
            f"Tokenizer {tokenizer.name} has {tokenizer.vocab_size:,} ids where the model knows {vocab_size:,}: "
            "it may not be the one the model was trained with."
        )
        tell(Note(code="tokenizer-mismatch", message=message))


def _choose_seq_len(
    asked: int | None, max_seq_len: int | None, stream: TokenStream, num_windows: int, tell: OnNote
) -> int:
    if asked is not None:
        if max_seq_len is not None and asked > max_seq_len:
            raise InputError(
                f"expected a sequence length of at most {max_seq_len:,} (the model's context), got {asked:,}",
                "pass a smaller --seq-len",
            )
        return asked
    longest = min(DEFAULT_SEQ_LEN, max_seq_len or DEFAULT_SEQ_LEN)
    # The evaluation windows should leave half of a text to train on.
    room = len(stream) // 2 if stream.evaluation_start is None else len(stream) - stream.evaluation_start
    fitting = room // max(1, num_windows) - 1
    if fitting >= longest:
        return longest
    # A text too short for 16 tokens a window is refused when the batches are drawn, with the length it needs.
    shorter = min(longest, max(16, fitting))
    if shorter < longest:
        message = f"Windows were shortened to {shorter} tokens: {stream.name} holds only {len(stream):,}."
        tell(Note(code="seq-len-shortened", message=message))
    return shorter


def _find_blocks(checkpoint: "Checkpoint", model: nn.Module, given: "Given | None", tell: OnNote) -> "BlockMap | None":
    """Return the blocks; None, noted, where nobody gave any and the family is unknown: not everything needs them."""
    try:
        return checkpoint.block_map(model, overrides=given)
    except InputError as error:
        if given is not None:
            raise
        message = f"Blocks are not known for this model: {error.message}; --blocks FILE can say them."
        tell(Note(code="blocks-unknown", message=message))
        return None


def _ignore(note: Note) -> None:
    """Take a note nobody asked for."""


def _check_task(task: Any, what: str) -> Task:
    if not isinstance(task, Task):
        raise InputError(f"expected {what} to return a lite_probe.Task, got {type(task).__name__}")
    if not len(task.evaluation):
        raise InputError(f"expected at least one evaluation batch from {what}, got none")
    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        raise InputError(f"expected a model with trainable parameters from {what}, got none")
    return task

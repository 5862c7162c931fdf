"""From a checkpoint and a text to a task; or a task from a user's own file.

The batches are drawn before the weights are read: a text that is too short is refused in a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lite_probe.criteria import next_token_cross_entropy
from lite_probe.data import (
    BatchPlan,
    Tokenizer,
    TokenStream,
    deal_shards,
    draw_batches,
    draw_shards,
    find_shards,
    label_of,
    load_tokenizer,
    open_tokens,
)
from lite_probe.data.shards import named
from lite_probe.data.token_files import TokenDtype
from lite_probe.errors import InputError, UsageError, shown_name
from lite_probe.results.provenance import Note
from lite_probe.task import Batch, Task, TaskInfo
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
    stream = _open_stream(checkpoint, data, tokenizer, text_field, token_dtype, tell)
    plan = draw_batches(
        stream,
        seq_len=_choose_seq_len(seq_len, checkpoint.max_seq_len, stream, eval_batches * batch_size, tell),
        batch_size=batch_size,
        eval_batches=eval_batches,
        train_batches=train_batches,
        seed=seed,
        vocab_size=_vocab_size(checkpoint),
        on_note=tell,
    )
    model = checkpoint.build_model(device=device, dtype=dtype)
    return Task(
        model=model,
        predict=predict_next_tokens,
        criterion=next_token_cross_entropy,
        evaluation=_tensors(plan.evaluation, device),
        train=_tensors(plan.train, device),
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
        heldout=_tensors(plan.heldout, device),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherBatches:
    """Batches of other data than a task's."""

    batches: Sequence[Batch]
    data_name: str


def make_other_batches(
    checkpoint: "Checkpoint",
    task: Task,
    *,
    data: str | Path,
    tokenizer: str | Path | Tokenizer | None = None,
    text_field: str = "text",
    token_dtype: TokenDtype | None = None,
    seed: int = 0,
    on_note: OnNote | None = None,
) -> OtherBatches:
    """Draw batches of other data, as many as a task evaluates on and of the same size, as `make_task` would.

    Args:
        checkpoint: The task's.
        task: From `make_task`.
        data: As for `make_task`, as are those that follow.
        tokenizer: For its text.
        text_field: Of its rows.
        token_dtype: Of its .bin ids.
        seed: Of the batches.
        on_note: Told what was decided or left out.

    Raises:
        InputError: If the text is too short, or text, tokenizer and vocabulary do not fit together.

    Cost: one pass over the tokens; no model is made.
    """
    tell = on_note or _ignore
    stream = _open_stream(checkpoint, data, tokenizer, text_field, token_dtype, tell)
    plan = draw_batches(
        stream,
        seq_len=_seq_len_of(task),
        batch_size=task.info.batch_size,
        eval_batches=len(task.evaluation),
        train_batches=0,
        seed=seed,
        vocab_size=_vocab_size(checkpoint),
        on_note=tell,
    )
    return OtherBatches(batches=_tensors(plan.evaluation, task.device), data_name=stream.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShards:
    """What nodes hold: `tune(task, shards=found.batches, shards_from=found.said)`."""

    batches: Sequence[Sequence[Batch]]  # for each node, half of them to train on and half to validate on
    said: str  # "12 files dealt to 8 nodes"


def make_shards(
    checkpoint: "Checkpoint",
    task: Task,
    *,
    data: str | Path,
    by: str,
    nodes: int,
    node_batches: int = 2,
    tokenizer: str | Path | Tokenizer | None = None,
    text_field: str = "text",
    token_dtype: TokenDtype | None = None,
    seed: int = 0,
    on_note: OnNote | None = None,
) -> NodeShards:
    """Draw batches for nodes that each hold a shard of a task's data.

    No window shares a token with another, of its own node or any, nor with the task's evaluation and held-out windows.
    Nor with its training windows, where a shard has room beside them; where it has not, a note says so. A validation
    file is no shard.

    Args:
        checkpoint: The task's.
        task: From `make_task`.
        data: What `make_task` was given, as are those that are not of the next three.
        by: "files", every file of a folder is a shard; or "label:FIELD", every value of a field of .jsonl and parquet
            rows is.
        nodes: Their number; where there are more shards, each holds several, of about as much text.
        node_batches: That a node trains on; it validates on as many.
        tokenizer: For the text.
        text_field: Of its rows.
        token_dtype: Of .bin ids.
        seed: Of the batches.
        on_note: Told what the shards are.

    Raises:
        UsageError: If `by` is of another form.
        InputError: If there are fewer shards than nodes, one is too short, a row has no such field, or the task's
            batches are not those of the data.

    Cost: one pass over the tokens.
    """
    tell = on_note or _ignore
    label = label_of(by)
    stream = _open_stream(checkpoint, data, tokenizer, text_field, token_dtype, _ignore, label)
    plan = draw_batches(
        stream,
        seq_len=_seq_len_of(task),
        batch_size=task.info.batch_size,
        eval_batches=len(task.evaluation),
        train_batches=len(task.train),
        seed=seed,
        vocab_size=_vocab_size(checkpoint),
    )
    _require_same_batches(plan, task)
    shards = find_shards(stream, by)
    thing = f"file{'' if len(shards) == 1 else 's'}"
    if label is not None:
        thing = f"value{'' if len(shards) == 1 else 's'} of {shown_name(label)}"
    if len(shards) < nodes:
        raise InputError(
            f"expected a shard for each of {nodes} nodes, got {len(shards)} {thing} in {shown_name(stream.name)}"
            + ("" if stream.evaluation_start is None else " beside its validation files"),
            f"pass --nodes {len(shards)}, or divide the data further"
            if len(shards) > 1
            else "divide the data further, or pass --shards dealt",
        )
    dealt = deal_shards(shards, nodes)
    drawn = draw_shards(stream, dealt, plan, batches=2 * node_batches, vocab_size=_vocab_size(checkpoint))
    sizes = [sum(shard.size for shard in held) for held in dealt]
    said = f"{len(shards)} {thing}" + (f" dealt to {nodes} nodes" if len(shards) > nodes else "")
    message = f"Shards: {said}, {min(sizes):,} to {max(sizes):,} tokens to a node: {named(shards)}."
    tell(Note(code="shards", message=message))
    if drawn.shared:
        message = (
            f"Batches of {len(drawn.shared)} of {nodes} nodes may share text with those that the steps and the replay "
            "train on: a shard of theirs has no room for both."
        )
        tell(Note(code="batches-shared", message=message))
    return NodeShards(batches=[_tensors(batches, task.device) for batches in drawn.batches], said=said)


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


def _open_stream(
    checkpoint: "Checkpoint",
    data: str | Path,
    tokenizer: str | Path | Tokenizer | None,
    text_field: str,
    token_dtype: TokenDtype | None,
    tell: OnNote,
    label_field: str | None = None,
) -> TokenStream:
    """Open a text or tokens for a checkpoint's model."""
    vocab_size = _vocab_size(checkpoint)
    chosen = _choose_tokenizer(checkpoint, tokenizer)
    stream = open_tokens(
        data,
        tokenizer=chosen,
        text_field=text_field,
        token_dtype=token_dtype,
        label_field=label_field,
        on_note=tell,
    )
    if chosen is not None and stream.tokenizer_name is not None:
        _note_vocabularies(chosen, vocab_size, asked=tokenizer is not None, tell=tell)
    return stream


def _vocab_size(checkpoint: "Checkpoint") -> int:
    if checkpoint.vocab_size is None:
        raise InputError(
            f"expected a model config with a vocabulary, got none with {checkpoint.name} ({checkpoint.format})",
            "pass --model-config CONFIG.json of a language model, or --task FILE.py:FUNCTION for a model of your own",
        )
    return checkpoint.vocab_size


def _seq_len_of(task: Task) -> int:
    if task.info.seq_len is None:
        raise UsageError("expected a task of make_task, got one whose batches are no windows of tokens")
    return task.info.seq_len


def _tensors(batches: Sequence[NDArray[np.int64]], device: str | torch.device) -> list[Tensor]:
    return [torch.from_numpy(batch.copy()).to(device) for batch in batches]


def _require_same_batches(plan: BatchPlan, task: Task) -> None:
    """Refuse to keep nodes from batches that are not the task's."""
    pairs = ((plan.evaluation, task.evaluation), (plan.heldout, task.heldout), (plan.train, task.train))
    for drawn, held in pairs:
        if len(drawn) != len(held) or not all(
            isinstance(batch, Tensor) and np.array_equal(one, batch.cpu().numpy())
            for one, batch in zip(drawn, held, strict=True)
        ):
            raise InputError(
                "expected the task's batches to be drawn from this data with this seed, got others",
                "pass make_shards what make_task was given; data that changed meanwhile is opened anew",
            )


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

"""A small language model to measure: a byte-level Llama, trained on text that every Python ships.

The demo and the tests want checkpoints whose landscape is that of a trained transformer, not of a random one, and
want them within a minute on two cores.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from lite_probe.criteria import next_token_cross_entropy
from lite_probe.data import BatchPlan, ByteTokenizer, draw_batches, open_tokens
from lite_probe.errors import NumericsError, OutputError, UsageError
from lite_probe.seeds import derive_seed

VOCAB_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What a training run did."""

    checkpoints: Sequence[Path]  # Hugging Face folders, in the order of their steps
    checkpoint_steps: Sequence[int]
    num_parameters: int
    losses: Sequence[float]  # (steps,) mean over the tokens of each step's batch, nats, before its update
    evaluation_losses: Sequence[float]  # one per checkpoint, on text that was not trained on
    byte_entropy: float  # entropy of single bytes of the training text, nats: what counting alone reaches


def train_byte_llama(
    out: Path,
    *,
    steps: int = 400,
    save_at: Sequence[int] = (100, 400),
    seed: int = 0,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    seq_len: int = 128,
    batch_size: int = 12,
    source: str | Path = "builtin:python-docs",
    learning_rate: float = 3e-3,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> TrainingRecord:
    """Train a byte-level Llama with AdamW and save it on the way.

    The learning rate rises linearly over the first tenth of the steps and falls to a tenth along a cosine.
    Weights, batches and losses are bitwise the same for the same seed, CPU and number of threads; torch's own
    random state is left as it was.

    Args:
        out: Folder for the checkpoints, `step-00100` and so on: each a Hugging Face folder with `optimizer.pt`
            (AdamW's state dict) and `training_state.json`.
        steps: Updates.
        save_at: Steps after which to save, in [1, steps].
        seed: Of weights and batches.
        hidden: Width, a multiple of 2 · heads.
        layers: Number of blocks.
        heads: Attention heads.
        seq_len: Tokens per window.
        batch_size: Windows per step.
        source: Text; its last tenth is not trained on.
        learning_rate: At the peak.
        on_progress: Called after every step with (done, total, label).

    Returns:
        Paths and losses.

    Raises:
        UsageError: If `save_at` or the shape makes no sense.
        NumericsError: If the loss stops being finite.
        OutputError: If a checkpoint cannot be written, or is there already.

    Cost: `steps` gradients on batch_size · seq_len tokens; the default takes about 80 s of one core.
    """
    saving = sorted(set(save_at))
    if not saving or saving[0] < 1 or saving[-1] > steps:
        raise UsageError(f"expected save_at within 1 … {steps}, got {list(save_at)}")
    if hidden % (2 * heads):
        raise UsageError(f"expected hidden to be a multiple of 2 · heads = {2 * heads}, got {hidden}")
    tokens = open_tokens(source, tokenizer=ByteTokenizer())
    plan = draw_batches(
        tokens,
        seq_len=seq_len,
        batch_size=batch_size,
        eval_batches=4,
        train_batches=steps,
        seed=seed,
        vocab_size=VOCAB_SIZE,
    )
    model = _build_model(hidden, layers, heads, seq_len, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses: list[float] = []
    evaluation_losses: list[float] = []
    paths: list[Path] = []
    for step in range(1, steps + 1):
        losses.append(_update(model, optimizer, torch.from_numpy(plan.train[step - 1].copy()), step))
        scheduler.step()
        if step in saving:
            evaluation_losses.append(_evaluate(model, plan))
            state = {"step": step, "loss": losses[-1], "evaluation_loss": evaluation_losses[-1], "seed": seed}
            paths.append(_save(out, model, optimizer, state))
        if on_progress:
            on_progress(step, steps, f"training · loss {losses[-1]:.3f}")
    return TrainingRecord(
        checkpoints=paths,
        checkpoint_steps=saving,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        losses=losses,
        evaluation_losses=evaluation_losses,
        byte_entropy=single_byte_entropy(tokens.read(0, plan.split)),
    )


def single_byte_entropy(ids: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Return −Σ p log p of the frequencies of ids (n,), nats: the loss of a model that only counts."""
    counts = np.bincount(ids)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _build_model(hidden: int, layers: int, heads: int, seq_len: int, seed: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max(512, seq_len),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        model: nn.Module = LlamaForCausalLM(config)
    return model


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _mean_loss(model: nn.Module, batch: Tensor) -> Tensor:
    total, count = next_token_cross_entropy(model(input_ids=batch[:, :-1], use_cache=False).logits, batch)
    return total / count


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor, step: int) -> float:
    loss = _mean_loss(model, batch)
    if not torch.isfinite(loss):
        raise NumericsError(
            f"expected a finite loss, got {loss.item()} at step {step}", "train with a smaller learning_rate"
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _evaluate(model: nn.Module, plan: BatchPlan) -> float:
    with torch.no_grad():
        losses = [_mean_loss(model, torch.from_numpy(batch.copy())).item() for batch in plan.evaluation]
    return sum(losses) / len(losses)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing on stderr; progress goes to `on_progress`."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _save(out: Path, model: Any, optimizer: torch.optim.Optimizer, state: dict[str, int | float]) -> Path:
    """Write one checkpoint whole: under its name there is all of it or nothing."""
    target = out / f"step-{state['step']:05d}"
    if target.exists():
        raise OutputError(f"expected no {target.name} in {out.name}, got one", "remove it or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=out) as scratch:
            partial = Path(scratch) / target.name
            partial.mkdir()
            with _without_progress_bars():
                model.save_pretrained(partial)
            torch.save(optimizer.state_dict(), partial / "optimizer.pt")
            (partial / "training_state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            partial.rename(target)
    # A full disk is a RuntimeError of torch's and a SafetensorError of safetensors'.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OutputError(
            f"expected to write {target.name} in {out.name}, got {reason}", "choose another --out"
        ) from error
    return target

"""A small language model to measure: a byte-level Llama, trained on text that every Python ships.

The demo, the examples and the tests want checkpoints whose landscape is that of a trained transformer, not of a random
one, and want them within a minute on two cores.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from lite_probe.optim import LiteOptimizer, Schedule, hyperparameters_of, make_optimizer
from lite_probe.seeds import derive_seed

VOCAB_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One update."""

    step: int  # completed updates, this one included
    loss: float  # mean over the tokens of its batch, nats, before the update
    learning_rate: float
    evaluation_loss: float | None  # after the update; None where it was not evaluated


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What a training run did."""

    checkpoints: Sequence[Path]  # Hugging Face folders, in the order of their steps
    checkpoint_steps: Sequence[int]
    num_parameters: int
    losses: Sequence[float]  # (steps,) mean over the tokens of each step's batch, nats, before its update
    evaluation_steps: Sequence[int]  # the checkpoints', those asked for, and the last
    evaluation_losses: Sequence[float]  # one per evaluation step, on text that was not trained on
    byte_entropy: float  # entropy of single bytes of the training text, nats: what counting alone reaches


def train_byte_llama(
    out: Path,
    *,
    optimizer: str = "adamw",
    hyperparameters: Mapping[str, Any] = {},
    learning_rate: float = 3e-3,
    schedule: Schedule | None = None,
    steps: int = 400,
    save_at: Sequence[int] = (100, 400),
    eval_every: int | None = None,
    eval_batches: int = 4,
    seed: int = 0,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    seq_len: int = 128,
    batch_size: int = 12,
    source: str | Path = "builtin:python-docs",
    goes_on: Callable[[int], bool] | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> TrainingRecord:
    """Train a byte-level Llama and save it on the way.

    Gradients are clipped to a norm of 1. Weights, batches and losses are bitwise the same for the same seed, CPU and
    number of threads; torch's own random state is left as it was. Optimizers given the same seed see the same weights
    and batches.

    Args:
        out: Folder for the checkpoints, `step-00100` and so on: each a Hugging Face folder with `optimizer.pt`
            (the optimizer's state dict) and `training_state.json`.
        optimizer: One of `lite_probe.optim.OPTIMIZERS`.
        hyperparameters: Of the optimizer, where they are not its defaults. LITE's ramps follow the schedule.
        learning_rate: At the peak.
        schedule: Of the learning rate; None: up over the first tenth of the steps and down to a tenth along a cosine.
            Update k, from 0, is made at f(k + 1): f(0) = 0 would waste the first.
        steps: Updates.
        save_at: Steps after which to save, in [1, steps]; none: nothing is written.
        eval_every: Steps from one evaluation to the next; None evaluates at the checkpoints and at the end only.
        eval_batches: Batches to evaluate on.
        seed: Of weights and batches.
        hidden: Width, a multiple of 2 · heads.
        layers: Number of blocks.
        heads: Attention heads.
        seq_len: Tokens per window.
        batch_size: Windows per batch.
        source: Text; its last tenth is not trained on.
        goes_on: Asked after every checkpoint but the last, by its step, whether to train on; None always does.
        on_step: Told of every update.
        on_progress: Called after every step with (done, total, label).

    Returns:
        Paths and losses.

    Raises:
        UsageError: If steps, schedule, shape or hyperparameters make no sense.
        NumericsError: If the loss or a gradient stops being finite.
        OutputError: If a checkpoint cannot be written, or is there already.

    Cost: `steps` gradients on batch_size · seq_len tokens; the default takes about 80 s of one core.
    """
    saving = _check_steps(steps, save_at, eval_every)
    evaluating = {*saving, steps, *range(eval_every or steps, steps, eval_every or steps)}
    schedule = schedule or Schedule(name="cosine", total_steps=steps, warmup_steps=steps // 10, min_lr_ratio=0.1)
    if schedule.total_steps not in (None, steps):
        raise UsageError(f"expected a schedule of {steps} steps, got one of {schedule.total_steps}")
    if hidden % (2 * heads):
        raise UsageError(f"expected hidden to be a multiple of 2 · heads = {2 * heads}, got {hidden}")
    _refuse_to_overwrite(out, saving)
    tokens = open_tokens(source, tokenizer=ByteTokenizer())
    plan = draw_batches(
        tokens,
        seq_len=seq_len,
        batch_size=batch_size,
        eval_batches=eval_batches,
        train_batches=steps,
        seed=seed,
        vocab_size=VOCAB_SIZE,
    )
    model = build_byte_llama(hidden=hidden, layers=layers, heads=heads, seq_len=seq_len, seed=seed)
    descent = _make_optimizer(optimizer, model, learning_rate, hyperparameters, schedule)
    losses: list[float] = []
    evaluation_losses: list[float] = []
    paths: list[Path] = []
    for step in range(1, steps + 1):
        rate = learning_rate * schedule.lr_factor(step)
        losses.append(_update(model, descent, rate, torch.from_numpy(plan.train[step - 1].copy()), step))
        if step in evaluating:
            evaluation_losses.append(_evaluate(model, plan))
        if step in saving:
            state = {"step": step, "loss": losses[-1], "evaluation_loss": evaluation_losses[-1], "seed": seed}
            paths.append(_save(_folder(out, step), model, descent, state))
        if on_step:
            evaluated = evaluation_losses[-1] if step in evaluating else None
            on_step(TrainingStep(step=step, loss=losses[-1], learning_rate=rate, evaluation_loss=evaluated))
        if on_progress:
            on_progress(step, steps, f"training · loss {losses[-1]:.3f}")
        if step in saving and step < steps and goes_on is not None and not goes_on(step):
            break
    return TrainingRecord(
        checkpoints=paths,
        checkpoint_steps=saving[: len(paths)],
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        losses=losses,
        evaluation_steps=[step for step in sorted(evaluating) if step <= len(losses)],
        evaluation_losses=evaluation_losses,
        byte_entropy=single_byte_entropy(tokens.read(0, plan.split)),
    )


def single_byte_entropy(ids: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Return −Σ p log p of the frequencies of ids (n,), nats: the loss of a model that only counts."""
    counts = np.bincount(ids)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def build_byte_llama(*, hidden: int, layers: int, heads: int, seq_len: int, seed: int) -> nn.Module:
    """Return an untrained Llama over bytes; its feed-forward layers are three times as wide as it is."""
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


def _check_steps(steps: int, save_at: Sequence[int], eval_every: int | None) -> list[int]:
    """Return the steps to save after, in order."""
    if steps < 1:
        raise UsageError(f"expected steps ≥ 1, got {steps}")
    if eval_every is not None and eval_every < 1:
        raise UsageError(f"expected eval_every ≥ 1 or None, got {eval_every}")
    saving = sorted(set(save_at))
    if saving and not 1 <= saving[0] <= saving[-1] <= steps:
        raise UsageError(f"expected save_at within 1 … {steps}, got {list(save_at)}")
    return saving


def _make_optimizer(
    name: str, model: nn.Module, learning_rate: float, hyperparameters: Mapping[str, Any], schedule: Schedule
) -> LiteOptimizer:
    """Make the optimizer, LITE's ramps as long as the learning rate's schedule."""
    known = hyperparameters_of(name)
    ramps = {("schedule" if key == "name" else key): value for key, value in asdict(schedule).items()}
    own = [key for key in known if key not in ramps]
    wrong = sorted(set(hyperparameters) - set(own))
    if wrong:
        raise UsageError(
            f"expected hyperparameters of {name} among {', '.join(own)}, got {', '.join(wrong)}",
            "learning rate and schedule have arguments of their own",
        )
    chosen = {**hyperparameters, **{key: value for key, value in ramps.items() if key in known}}
    return make_optimizer(name, model.named_parameters(), lr=learning_rate, **chosen)


def _mean_loss(model: nn.Module, batch: Tensor) -> Tensor:
    total, count = next_token_cross_entropy(model(input_ids=batch[:, :-1], use_cache=False).logits, batch)
    return total / count


def _update(model: nn.Module, optimizer: LiteOptimizer, rate: float, batch: Tensor, step: int) -> float:
    loss = _mean_loss(model, batch)
    if not torch.isfinite(loss):
        raise NumericsError(
            f"expected a finite loss, got {loss.item()} at step {step}", "train with a smaller learning_rate"
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
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


def _folder(out: Path, step: int) -> Path:
    return out / f"step-{step:05d}"


def _refuse_to_overwrite(out: Path, saving: Sequence[int]) -> None:
    """Find out before the training, not after it."""
    for target in (_folder(out, step) for step in saving):
        if target.exists():
            raise OutputError(f"expected no {target.name} in {out.name}, got one", "remove it or choose another --out")


def _save(target: Path, model: Any, optimizer: LiteOptimizer, state: Mapping[str, int | float]) -> Path:
    """Write one checkpoint whole: under its name there is all of it or nothing."""
    out = target.parent
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

"""Measurements during a run of Hugging Face's `Trainer`."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lite_probe.callbacks.recorder import Recorder, learning_rate_of
from lite_probe.task import Task


class ProbeCallback(TrainerCallback):  # type: ignore[misc]
    """Measures critical step, λ₁ and gradient share while a `Trainer` trains, and leaves its training as it is.

    Only the first process of several measures. Where the trainer resumes from a checkpoint so does the record.

    Args:
        task: Whose loss and evaluation batches are used, as from `language_task`; the model measured is the trainer's.
        every: Steps between two points.
        folder: Where `training.json` goes; `lite-probe report FOLDER` shows it.
        options: Further arguments of `Recorder`: early, budget, top, tolerance, max_products, seed.

    Raises:
        UsageError, InputError: As `Recorder`.
    """

    def __init__(self, task: Task, every: int = 100, folder: str | Path = "probe/run", **options: Any) -> None:
        self.recorder = Recorder(task, every=every, folder=folder, **options)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **others: Any) -> None:
        """Start, or go on from the step that the trainer resumes at."""
        if state.is_world_process_zero:
            self.recorder.begin(model, state.global_step)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any = None, **others: Any
    ) -> None:
        """Keep the parameters, where they are to be measured."""
        if state.is_world_process_zero:
            self.recorder.before_update(state.global_step, learning_rate_of(optimizer))

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Measure."""
        self.recorder.after_update()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Save the record."""
        self.recorder.end()

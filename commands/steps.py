"""`lite-probe steps`: how far each optimizer's step is from raising the loss, and where it could be longer."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.optimizers import OptimizersMeasuring
from lite_probe.commands.task import Opened
from lite_probe.commands.wording import plural
from lite_probe.errors import InputError, UsageError
from lite_probe.results.provenance import Note

if TYPE_CHECKING:
    from lite_probe.task import Batch


class StepsMeasuring(OptimizersMeasuring):
    """Measure how long a step the loss tolerates, along every band of directions and whole.

    From one state every optimizer steps from many training batches. Its own optimum along each band of each block, in
    multiples of the step it takes; how far the whole step is from raising the loss, on its own batch and held out; and
    the ratios of LITE's step sizes that follow. Killed or interrupted, the same command continues.
    """

    kind = "steps"
    examples = (
        "steps runs/gpt/ckpt.pt --data val.bin --optimizers muon,soap --lr muon=0.0078,soap=0.0039",
        "steps runs/gpt/ckpt.pt --data val.bin --critical-only --relative code.bin",
    )
    own_options = (
        click.option(
            "--relative",
            "relative_path",
            metavar="OTHER-DATA",
            help="Look for critical steps on this text or these tokens, too; the same kinds of path as --data.",
        ),
    )
    _notes: tuple[Note, ...] = ()

    def vet(self) -> None:
        """Refuse other data for a task of the user's own."""
        super().vet()
        if self.own["relative_path"] is not None and self.asked.task_file is not None:
            raise UsageError(
                "expected --relative with a checkpoint, got it with --task",
                "a task of your own has its batches; from Python, lp.measure_steps(task, relative=batches) takes any",
            )

    def open(self) -> Opened:
        """Open the task, and the other data."""
        opened = super().open()
        return replace(opened, notes=(*opened.notes, *(note for note in self._notes if note not in opened.notes)))

    def prepared(self, opened: Opened) -> Any:
        """Return the request with the checkpoint's optimizer state and the batches of other data."""
        request = super().prepared(opened)
        if self.own["relative_path"] is None:
            return request
        return replace(request, relative=self._other_batches(opened, self.own["relative_path"]))

    def _other_batches(self, opened: Opened, source: str) -> "list[Batch]":
        """Return as many evaluation batches of other data, of the same tokens and size.

        They are drawn as those of `--data` are.
        """
        from lite_probe.task.build import make_other_batches

        if opened.checkpoint is None:
            raise InputError("expected a checkpoint to read other data for, got none")
        notes: list[Note] = []
        try:
            other = make_other_batches(
                opened.checkpoint,
                opened.task,
                data=source,
                tokenizer=self.asked.tokenizer,
                text_field=self.asked.text_field,
                seed=self.asked.seed,
                on_note=notes.append,
            )
        except InputError as error:
            raise InputError(f"--relative: {error.message}", error.hint) from error
        count = plural(len(other.batches), "evaluation batch")
        self._notes = (
            *notes,
            Note(code="relative", message=f"The other data: {count} of {other.data_name}."),
        )
        return list(other.batches)


command = StepsMeasuring.command()

"""`lite-probe tune`: what LITE's settings should be, learned over data shards that stay where they are."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lite_probe.commands.console import Terminal
from lite_probe.commands.measuring import Measuring
from lite_probe.commands.optimizers import OptimizersMeasuring
from lite_probe.commands.task import Opened
from lite_probe.errors import InputError, UsageError, shown
from lite_probe.measurements.requests.tune import rank
from lite_probe.results.provenance import Note

DEALT = "dealt"


class TuneMeasuring(OptimizersMeasuring):
    """Learn LITE's settings from the landscape, over data that stays where it is.

    Each node holds a shard of the data and measures on it, and no other, how far the loss tolerates steps along each
    group of directions. By decentralized bilevel optimization the nodes agree on χ and β₂; a replay with paired seeds
    then says whether that pays. Killed or interrupted, the same command continues. Under torchrun every rank holds a
    node, and rank 0 replays and writes.
    """

    kind = "tuning"
    examples = (
        "tune runs/gpt/ckpt.pt --data val.bin --nodes 8 --topology ring --method sparkle --upper gt --lower ed",
        "tune runs/gpt/ckpt.pt --data corpus.jsonl --shards label:lang --nodes 4",
    )
    own_options = (
        click.option(
            "--shards",
            "shards_by",
            default=DEALT,
            show_default=True,
            metavar="dealt|files|label:FIELD",
            help="What nodes hold: training batches dealt in turn; each a file of the folder --data; or each a value "
            "of a field of .jsonl or parquet rows.",
        ),
    )
    by_ranks = False
    _notes: tuple[Note, ...] = ()

    @classmethod
    def main(cls, terminal: Terminal, given: dict[str, Any]) -> None:
        """Tune; a rank above 0 measures its node, and leaves the replay and all output to rank 0."""
        if rank() == 0:
            super().main(terminal, given)
            return
        terminal.verbosity = -1
        one = cls.asked_for(terminal, dict(given))
        opened = one.open()
        one.go(opened, one.folder_for(opened))

    def folder_for(self, opened: Opened) -> Path:
        """Return the run directory; that of a rank above 0 is in it."""
        folder = super().folder_for(opened)
        return folder / f"rank-{rank()}" if rank() else folder

    def saved(self, folder: Path, is_asked_for: Callable[[Any], bool]) -> tuple[Any | None, str]:
        """Return a saved result; that of a rank above 0 counts once rank 0, which saves last, has finished too."""
        own, last = folder / "tuning.json", folder.parent / "tuning.json"
        if rank() and not (last.exists() and own.exists() and last.stat().st_mtime >= own.stat().st_mtime):
            return None, ""
        return super().saved(folder, is_asked_for)

    def find_spectrum(self, opened: Opened, folder: Path) -> Measuring | None:
        """Start from a spectrum where there is a replay, which needs one."""
        return super().find_spectrum(opened, folder) if self.request.is_tested else None

    def vet(self) -> None:
        """Refuse shards that the data cannot have."""
        if self._shards_by != DEALT:
            self._vet_shards(self._shards_by)
        super().vet()

    def open(self) -> Opened:
        """Open the task, and the nodes' shards."""
        opened = super().open()
        return replace(opened, notes=(*opened.notes, *(note for note in self._notes if note not in opened.notes)))

    def prepared(self, opened: Opened) -> Any:
        """Return the request with the checkpoint's optimizer state and the nodes' batches."""
        request = super().prepared(opened)
        if self._shards_by == DEALT:
            return request
        from lite_probe.task.build import make_shards

        if opened.checkpoint is None:
            raise InputError("expected a checkpoint to read shards for, got none")
        notes: list[Note] = []
        found = make_shards(
            opened.checkpoint,
            opened.task,
            data=str(self.asked.data_path),
            by=self._shards_by,
            nodes=request.nodes,
            node_batches=request.node_batches,
            tokenizer=self.asked.tokenizer,
            text_field=self.asked.text_field,
            seed=self.asked.seed,
            on_note=notes.append,
        )
        self._notes = tuple(notes)
        return replace(request, shards=found.batches, shards_from=found.said)

    @property
    def _shards_by(self) -> str:
        return str(self.own.get("shards_by", DEALT))

    def _vet_shards(self, by: str) -> None:
        from lite_probe.data.documents import BUILTIN_PREFIX, has_rows
        from lite_probe.data.shards import label_of

        label = label_of(by)
        if self.asked.task_file is not None:
            raise UsageError(
                "expected --shards with a checkpoint, got it with --task",
                "a task of your own has its batches; from Python, lp.tune(task, shards=batches_by_node) takes any",
            )
        source = str(self.asked.data_path)
        is_one = source.startswith(BUILTIN_PREFIX)
        with suppress(OSError):  # said when it is opened
            is_one = is_one or Path(source).is_file()
        if label is None and is_one:
            raise UsageError(
                f"expected a folder of files as --data for --shards files, got {shown(source)}",
                "name the folder, or pass another --shards",
            )
        if label is not None and is_one and not has_rows(source):
            raise UsageError(
                f"expected rows of .jsonl, .jsonl.zst or .parquet as --data for --shards {shown(by)}, got "
                f"{shown(source)}",
                "pass --shards dealt, or a file whose rows have fields",
            )
        if label == self.asked.text_field:
            raise UsageError(
                f"expected a field other than the text's for --shards, got {shown(by)}",
                "name one that tells rows apart, such as label:lang",
            )


command = TuneMeasuring.command()

"""`lite-probe spectrum`: from a checkpoint to eigenpairs, density and trace, in files and on a page."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.measuring import Measuring
from lite_probe.commands.task import Opened
from lite_probe.errors import UsageError
from lite_probe.results.provenance import Note

if TYPE_CHECKING:
    import torch

    from lite_probe.results.spectrum import Spectrum
    from lite_probe.task import Task

_VECTORS = 7  # a graph's gradient, a vector, its product and their sum, the pending one, a probe's two


class SpectrumMeasuring(Measuring):
    """Measure the Hessian spectrum of a checkpoint.

    Both ends of the spectrum with a residual for every pair, density, trace and anisotropy, as files and as a
    page in probe/NAME. Killed or interrupted, the same command continues.
    """

    kind = "spectrum"
    examples = (
        "spectrum runs/gpt/ckpt.pt --data val.bin --per-block",
        "spectrum runs/gpt/ckpt.pt --data val.bin --per-block --format latex --table blocks",
    )
    own_options = (
        click.option("--verify", is_flag=True, help="Ask PyHessian for a second opinion."),
        click.option(
            "--sharded",
            is_flag=True,
            help="Under torchrun, cut the model into a shard for each rank, and take finite differences; done anyway "
            "where a GPU does not hold it whole.",
        ),
    )

    def vet(self) -> None:
        """Refuse what PyHessian does not know, and what shards of a model do not give."""
        super().vet()
        if self.own["sharded"]:
            self._require_for_shards()
        if self.own["verify"]:
            from lite_probe.spectra import require_verifiable

            require_verifiable(self.request.operator)

    def _require_for_shards(self) -> None:
        """Refuse to cut a model into shards where nobody would hold them, or for what they do not give."""
        if self.ranks is None:
            raise UsageError(
                "expected several ranks for --sharded, got one process",
                "start torchrun --nproc-per-node N -m lite_probe spectrum … --sharded, with N of at least 2",
            )
        if found := self._unsharded():
            raise UsageError(
                f"expected the whole Hessian for a model in shards, got {' and '.join(found)}",
                f"leave out {' and '.join(found)}, or let every rank hold the whole model",
            )

    def _unsharded(self) -> list[str]:
        """Return the options asked for that need the whole model."""
        asked = {
            "--operator ggn": self.request.operator != "hessian",
            "--per-block": self.request.per_block,
            "--verify": self.own["verify"],
        }
        return [name for name, is_asked in asked.items() if is_asked]

    def loaded(self) -> Opened:
        """Return the task asked for; of several ranks each has the whole model, or a shard of it."""
        if self.ranks is None:
            return super().loaded()
        from lite_probe.commands.compute import choose_device, move_task
        from lite_probe.operators.sharding import can_shard

        asked, device = self.asked, choose_device(self.asked.device)
        is_own = asked.checkpoint is None and asked.device == "auto"  # a task that stays where it is
        if not self.own["sharded"] and (is_own or device.type == "cpu" or self._unsharded()):
            return super().loaded()
        self.asked = replace(asked, device="cpu")
        opened = super().loaded()
        self.asked = asked
        exceeds = can_shard() and _exceeds(opened.task, device, self.request.memory)
        is_sharded = self.own["sharded"] or any(self.ranks.from_every(exceeds))
        if not is_sharded:
            move_task(opened.task, device.type, None)
            return opened
        return self._sharded(opened, device)

    def _sharded(self, opened: Opened, device: "torch.device") -> Opened:
        """Cut a task's model into shards."""
        from lite_probe.commands.compute import move_batches
        from lite_probe.operators.ranks import ProcessRanks
        from lite_probe.operators.sharding import shard_task
        from lite_probe.runtime.fingerprint import task_fingerprint

        ranks = self.ranks
        if not isinstance(ranks, ProcessRanks):
            raise TypeError("expected the ranks of torchrun")
        # Of the shards, every rank would hash the same mixture.
        ranks.require_same(task_fingerprint(replace(opened.task, evaluation=()), "evaluation", {}))
        move_batches(opened.task, device, None)
        shard_task(opened.task, ranks, device)
        self.request = replace(self.request, method="finite-differences")
        if self.own["sharded"]:
            return opened
        message = (
            f"{device} does not hold the whole model and what a measurement needs beside it: it was cut into shards "
            f"for {ranks.count} ranks, and products are finite differences."
        )
        return replace(opened, notes=(*opened.notes, Note(code="sharded", message=message)))

    @classmethod
    def is_complete(cls, result: "Spectrum", own: Mapping[str, Any]) -> bool:
        """Whether the second opinion is there that was asked for."""
        return not own["verify"] or result.verification is not None

    def completed(self, opened: Opened, result: "Spectrum", folder: Path) -> "Spectrum":
        """Ask for the second opinion; it may be interrupted, and what it is about is saved by then."""
        from lite_probe.spectra import verify_spectrum

        with self.terminal.progress() as on_progress:
            return verify_spectrum(opened.task, result, on_progress=on_progress)


def _exceeds(task: "Task", device: "torch.device", memory: int | None) -> bool:
    """Whether a device does not hold a task's model and the vectors of its size that products take beside it."""
    from lite_probe.runtime.memory import memory_allowed

    size = sum(parameter.nbytes for parameter in task.model.parameters())
    return (1 + _VECTORS) * size > memory_allowed(device, memory)


command = SpectrumMeasuring.command()

"""`lite-probe subspace`: which directions are sharp, how firm they are, and whether LITE's proxies find them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lite_probe.commands.console import Terminal
from lite_probe.commands.measuring import Measuring, print_shown
from lite_probe.commands.run_directory import run_directory
from lite_probe.commands.tables import asked_format
from lite_probe.commands.task import OPENING, TaskOptions
from lite_probe.commands.torchrun import joined
from lite_probe.errors import InputError, UsageError

if TYPE_CHECKING:
    from lite_probe.results.spectrum import Spectrum


class SubspaceMeasuring(Measuring):
    """Measure the sharp subspace of a checkpoint, and LITE's proxies of it.

    How much of the gradient lies in it, whether it is the data's or the batch's, the true curvature of what AdamW,
    Muon and SOAP call sharp and flat, and how far each evens it out. Of several checkpoints each is compared with those
    before it. Starts from the spectrum in the run directory, or measures it.
    """

    kind = "subspace"
    arguments = "checkpoints"
    examples = (
        "subspace runs/gpt/ckpt.pt --data val.bin",
        "subspace runs/early.pt runs/late.pt --data val.bin --out probe/both",
    )

    @classmethod
    def main(cls, terminal: Terminal, given: dict[str, Any]) -> None:
        """Measure every checkpoint, each compared with those before it."""
        checkpoints = given.pop("checkpoints") or (None,)
        if len(checkpoints) == 1:
            super().main(terminal, {**given, "checkpoint": checkpoints[0]})
            return
        form = asked_format(given)
        with joined(terminal) as ranks:
            each = [cls.asked_for(terminal, {**given, "checkpoint": checkpoint}) for checkpoint in checkpoints]
            with terminal.waiting(OPENING):
                require_comparable([one.asked for one in each])
            earlier: list[tuple[str, Spectrum]] = []
            shown = []
            for one in each:
                one.ranks = ranks
                opened = one.open()
                info = opened.task.info
                folder = opened.task.ranks.once(
                    partial(run_directory, terminal, one.how.out, info, is_one_of_several=True)
                )
                one.request = replace(one.request, others=tuple(earlier), label=info.name)
                shown.append(one.go(opened, folder))
                if one.request.spectrum is not None:  # there is none yet where it is only planned
                    earlier.append((info.name, one.request.spectrum))
        if ranks is None or ranks.is_first:
            print_shown(cls.kind, shown, form, given["only_table"])


def require_comparable(asked: Sequence[TaskOptions]) -> None:
    """Refuse checkpoints that share a run directory, or are of different models, before the first is measured.

    Raises:
        UsageError: If two have the same name.
        InputError: If one is no checkpoint, or has not as many parameters as the first.
    """
    from lite_probe.checkpoints import open_checkpoint

    seen: dict[str, str] = {}
    sizes: list[int] = []
    for one in asked:
        path = str(one.checkpoint)
        checkpoint = open_checkpoint(path, trust_pickle=one.trust_pickle, model_config=one.model_config)
        if checkpoint.name in seen:
            raise UsageError(
                f"expected checkpoints of different names, got {checkpoint.name} twice: {seen[checkpoint.name]} and "
                f"{path}",
                "rename one of them",
            )
        seen[checkpoint.name] = path
        sizes.append(checkpoint.num_parameters)
        if sizes[-1] != sizes[0]:
            raise InputError(
                f"expected checkpoints of {sizes[0]:,} parameters, as {asked[0].checkpoint} has, got {path} with "
                f"{sizes[-1]:,}",
                "compare checkpoints of one model",
            )


command = SubspaceMeasuring.command()

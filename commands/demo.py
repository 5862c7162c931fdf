"""`lite-probe demo`: train a small Llama, measure it at two steps, replay it from the first, all on one page."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.measuring import Measuring, RunOptions, Shown
from lite_probe.commands.options import console_options, example, options_from
from lite_probe.commands.replay import ReplayMeasuring
from lite_probe.commands.run_directory import measuring_into, own_folder
from lite_probe.commands.spectrum import SpectrumMeasuring
from lite_probe.commands.subspace import SubspaceMeasuring
from lite_probe.commands.task import COMPUTE, TaskOptions
from lite_probe.commands.wording import count
from lite_probe.measurements.requests import Request
from lite_probe.results.kinds import KINDS

_TEXT = "builtin:python-docs"
_STEPS = (60, 300)
_HYPERPARAMETERS = {"adamw_beta2": 0.95}
_WARM_BATCHES = 30
_SPECTRUM = {"probes": 3, "per_block": True}
_SUBSPACE = {"probes": 12, "warm_batches": _WARM_BATCHES}
_REPLAY = {
    "steps": 20,
    # What --lr sweep finds here, by factors of two: finding it again would take half as long as the replay itself.
    "lr": {"muon": 0.0078125, "muon-lite": 0.0078125, "soap": 0.0078125, "soap-lite": 0.001953125},
    "warm_batches": _WARM_BATCHES,
}


@click.command("demo", epilog=example("demo --out probe/demo"))
@options_from(TaskOptions, *COMPUTE)
@options_from(Request, "seed")
@click.option("--out", metavar="DIR", default="probe/demo", show_default=True, help="Everything goes there.")
@options_from(RunOptions, "fresh", "as_json")
@console_options
@click.pass_obj
def command(terminal: Terminal, /, out: str, fresh: bool, as_json: bool, seed: int, **compute: Any) -> None:
    """Train a small Llama on text that every Python ships, measure it, and replay it.

    A byte-level Llama of about a million parameters learns from the Python documentation. Early and late in training
    its Hessian spectrum is measured per block, then its sharp subspace and LITE's proxies of it; from the early
    checkpoint, where there is most to gain, a segment is replayed under Muon, SOAP and their LITE variants. One page
    shows it all. Two fast cores need some five minutes, slow ones up to half an hour.
    """
    from lite_probe.commands.compute import choose_threads
    from lite_probe.reports.page import write_report
    from lite_probe.reports.sections.section import section_of
    from lite_probe.task import TaskInfo

    folder = Path(out)

    def measure(measuring: type[Measuring], checkpoint: Path, **request: Any) -> Shown:
        """Measure one checkpoint as the kind's command does, in a folder of its own, and show it."""
        asked = TaskOptions(
            checkpoint=str(checkpoint), data_path=_TEXT, tokenizer="bytes", seq_len=128, batches=1, **compute
        )
        kind = KINDS[measuring.kind].load("request")
        one = measuring(terminal, asked, RunOptions(fresh=fresh), kind(seed=seed, **request), {"verify": False})
        opened = one.open()
        # Checkpoints of another seed have the same names.
        shown = one.go(opened, own_folder(terminal, folder / opened.task.info.name, opened.task.info))
        terminal.line()
        return shown

    with measuring_into(terminal, folder, TaskInfo(name="demo", checkpoint_fingerprint="demo")):
        choose_threads(compute["threads"])
        checkpoints = _train(terminal, folder / f"checkpoints-{seed}", seed, fresh)
        terminal.resumable = True
        spectra = [measure(SpectrumMeasuring, checkpoint, **_SPECTRUM) for checkpoint in checkpoints]
        found = [(checkpoint.name, one.result) for checkpoint, one in zip(checkpoints, spectra, strict=True)]
        subspaces = [
            measure(SubspaceMeasuring, checkpoint, others=tuple(found[:place]), label=checkpoint.name, **_SUBSPACE)
            for place, checkpoint in enumerate(checkpoints)
        ]
        replay = measure(ReplayMeasuring, checkpoints[0], **_REPLAY)
        page = folder / "report.html"
        write_report([one.paths[0].parent for one in spectra], page)
    terminal.line(section_of("spectrum").part(found).leads[0][1])
    printed = {
        "report": str(page),
        "spectra": [one.printed for one in spectra],
        "subspaces": [one.printed for one in subspaces],
        "replay": replay.printed,
    }
    print_stdout(json.dumps(printed) if as_json else str(page))


def _train(terminal: Terminal, target: Path, seed: int, fresh: bool) -> Sequence[Path]:
    """Train, or take the checkpoints that an earlier demo left; return their folders in order."""
    from lite_probe.reports.numbers import format_number
    from lite_probe.training import train_byte_llama

    found = [target / f"step-{step:05d}" for step in _STEPS]
    if all(path.is_dir() for path in found) and not fresh:
        terminal.line(f"already trained: {target}; --fresh trains again")
        return found
    if target.exists():
        shutil.rmtree(target)
    with terminal.progress() as on_progress:
        record = train_byte_llama(
            target,
            hyperparameters=_HYPERPARAMETERS,
            steps=_STEPS[-1],
            save_at=_STEPS,
            seed=seed,
            on_progress=on_progress,
        )
    terminal.line(
        f"trained a byte-level Llama of {count(record.num_parameters)} parameters for {_STEPS[-1]} steps: loss "
        f"{format_number(record.evaluation_losses[-1], 3)} nats per byte on text it has not seen; "
        f"counting bytes alone reaches {format_number(record.byte_entropy, 3)}"
    )
    terminal.line()
    return record.checkpoints

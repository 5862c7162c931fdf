"""`lite-probe demo`: train a small Llama, measure it at two steps, replay it from the first, all on one page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands import replay as replaying
from lite_probe.commands import spectrum as spectra
from lite_probe.commands import subspace as subspaces
from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.options import (
    compute_options,
    console_options,
    example,
    fresh_option,
    json_option,
    seed_option,
)
from lite_probe.commands.replay_summary import json_object as replay_object
from lite_probe.commands.run_directory import measuring_into, own_folder
from lite_probe.commands.subspace_summary import json_object as subspace_object
from lite_probe.commands.summary import condition_to_median, json_object
from lite_probe.commands.task import TaskOptions, open_task, tell_task, write_page
from lite_probe.commands.wording import count, number, with_error

if TYPE_CHECKING:
    from lite_probe.results.replay import Replay
    from lite_probe.results.spectrum import Spectrum
    from lite_probe.results.subspace import SubspaceMeasurement

_TEXT = "builtin:python-docs"
_STEPS = (60, 300)
_HYPERPARAMETERS = {"adamw_beta2": 0.95}
_PROBES = 12  # of the calibration
_WARM_BATCHES = 30
_REPLAY = {
    "optimizers": "muon,muon-lite,soap,soap-lite",
    "steps": 20,
    "ramp": None,
    "seeds": 3,
    # What --lr sweep finds here, by factors of two: finding it again would take half as long as the replay itself.
    "lr": "muon=0.0078125,muon-lite=0.0078125,soap=0.0078125,soap-lite=0.001953125",
    "state": "auto",
    "warm_batches": _WARM_BATCHES,
    "bands": "soap",
    "rule": "simpson",
    "ablations": False,
    "settings": (),
}


@click.command("demo", epilog=example("demo --out probe/demo"))
@compute_options
@seed_option
@click.option("--out", metavar="DIR", default="probe/demo", show_default=True, help="Everything goes there.")
@fresh_option
@json_option
@console_options
@click.pass_obj
def command(terminal: Terminal, /, out: str, as_json: bool, **compute: Any) -> None:
    """Train a small Llama on text that every Python ships, measure it, and replay it.

    A byte-level Llama of about a million parameters learns from the Python documentation. Early and late in training
    its Hessian spectrum is measured per block, then its sharp subspace and LITE's proxies of it; from the early
    checkpoint, where there is most to gain, a segment is replayed under Muon, SOAP and their LITE variants. One page
    shows it all. Two fast cores need some five minutes, slow ones up to half an hour.
    """
    from lite_probe.reports.page import write_report
    from lite_probe.task import TaskInfo

    folder = Path(out)
    measured: list[SubspaceMeasurement] = []
    found: list[tuple[str, Spectrum]] = []
    with measuring_into(terminal, folder, TaskInfo(name="demo", checkpoint_fingerprint="demo")):
        checkpoints = _train(terminal, folder, compute)
        terminal.resumable = True
        runs = []
        for checkpoint in checkpoints:
            spectrum, run = _measure_spectrum(terminal, _options(checkpoint, compute), folder)
            found.append((checkpoint.name, spectrum))
            runs.append(run)
        for place, (checkpoint, run) in enumerate(zip(checkpoints, runs, strict=True)):
            asked = _options(checkpoint, compute)
            measured.append(_measure_subspace(terminal, asked, run, found[place][1], found[:place]))
        result = _replay(terminal, _options(checkpoints[0], compute), runs[0], found[0][1])
        page = folder / "report.html"
        write_report(runs, page)
    for sentence in findings(found[0][1], found[-1][1]):
        terminal.line(sentence)
    printed = {
        "report": str(page),
        "spectra": [json_object(one) for _, one in found],
        "subspaces": [subspace_object(one) for one in measured],
        "replay": replay_object(result),
    }
    print_stdout(json.dumps(printed) if as_json else str(page))


def _train(terminal: Terminal, folder: Path, compute: dict[str, Any]) -> list[Path]:
    """Train, or take the checkpoints that an earlier demo left; return their folders in order."""
    import shutil

    from lite_probe.commands.compute import choose_threads
    from lite_probe.training import train_byte_llama

    choose_threads(compute["threads"])
    seed: int = compute["seed"]
    target = folder / f"checkpoints-{seed}"
    found = [target / f"step-{step:05d}" for step in _STEPS]
    if all(path.is_dir() for path in found) and not compute["fresh"]:
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
        f"{number(record.evaluation_losses[-1], 3)} nats per byte on text it has not seen; "
        f"counting bytes alone reaches {number(record.byte_entropy, 3)}"
    )
    terminal.line()
    return list(record.checkpoints)


def _measure_spectrum(terminal: Terminal, asked: TaskOptions, folder: Path) -> "tuple[Spectrum, Path]":
    """Measure one checkpoint's spectrum as `lite-probe spectrum --per-block` does, and show it.

    Returns it with its run directory: checkpoints of another seed have the same names.
    """
    own = {**spectra.defaults(), "probes": 3, "per_block": True}
    options = spectra.SpectrumOptions(**asked.task_options, **own)
    opened = open_task(options)
    run = own_folder(terminal, folder / opened.task.info.name, opened.task.info)
    with measuring_into(terminal, run, opened.task.info):
        tell_task(terminal, opened.task, opened.task.evaluation)
        plan = spectra.plan_and_tell(terminal, opened.task, options, run)
        found = spectra.measure(terminal, opened.task, opened.notes, plan, options, run)
        write_page(opened, run, "spectrum")
    spectra.print_summary(terminal, found)
    terminal.line()
    return found, run


def _measure_subspace(
    terminal: Terminal,
    asked: TaskOptions,
    run: Path,
    spectrum: "Spectrum",
    earlier: "Sequence[tuple[str, Spectrum]]",
) -> "SubspaceMeasurement":
    """Measure one checkpoint's sharp subspace as `lite-probe subspace` does, and show it."""
    options = subspaces.SubspaceOptions(**asked.task_options, size=None, probes=_PROBES, warm_batches=_WARM_BATCHES)
    opened = open_task(options, train_batches=_WARM_BATCHES)
    with measuring_into(terminal, run, opened.task.info):
        tell_task(terminal, opened.task, opened.task.evaluation)
        plan = subspaces.plan_and_tell(terminal, opened, spectrum, options, run, earlier)
        found = subspaces.measure(terminal, opened, spectrum, plan, options, run, earlier)
        write_page(opened, run, "subspace")
    subspaces.print_summary(terminal, found)
    terminal.line()
    return found


def _replay(terminal: Terminal, asked: TaskOptions, run: Path, spectrum: "Spectrum") -> "Replay":
    """Replay from one checkpoint as `lite-probe replay` does, and show it."""
    from lite_probe.replays import required_train_batches

    options = replaying.ReplayOptions(**asked.task_options, **_REPLAY)  # type: ignore[arg-type]
    needed = required_train_batches(steps=options.steps, seeds=options.seeds, warm_batches=options.warm_batches)
    opened = open_task(options, train_batches=needed)
    with measuring_into(terminal, run, opened.task.info):
        tell_task(terminal, opened.task, opened.task.evaluation)
        saved = replaying.saved_optimizer(opened, options.state)
        plan = replaying.plan_and_tell(terminal, opened, spectrum, saved, options, run)
        found = replaying.measure(terminal, opened, spectrum, saved, plan, options, run)
        write_page(opened, run, "replay")
    replaying.print_summary(terminal, found)
    terminal.line()
    return found


def _options(checkpoint: Path, compute: dict[str, Any]) -> TaskOptions:
    """Ask for one checkpoint of the demo, on its text."""
    return TaskOptions(
        checkpoint=str(checkpoint),
        task_file=None,
        trust_pickle=False,
        model_config=None,
        data_path=_TEXT,
        tokenizer="bytes",
        text_field="text",
        seq_len=128,
        batch_size=8,
        batches=1,
        memory=None,
        out=None,
        as_json=False,
        dry_run=False,
        **compute,
    )


def findings(early: "Spectrum", late: "Spectrum") -> list[str]:
    """Say what changed between two checkpoints, in sentences with errors."""
    sentences = []
    first, last = early.whole, late.whole
    names = [f"step {s.provenance.checkpoint_step:,}" for s in (early, late)]
    sentences.append(
        f"From {names[0]} to {names[1]} the loss went from {number(early.loss)} to {number(late.loss)}, and the "
        f"sharpest curvature λ₁ from {with_error(first.eigenvalues[0], first.residual_norms[0])} to "
        f"{with_error(last.eigenvalues[0], last.residual_norms[0])}."
    )
    sentences.append(
        f"At {names[1]} the sharpest direction is {condition_to_median(last, 'at least ')} times as curved as the "
        f"median one, and the curvature is that of {with_error(last.effective_rank, last.effective_rank_stderr)} equal "
        f"directions out of {count(last.num_parameters)}."
    )
    if late.blocks:
        sharpest = max(late.blocks, key=lambda name: float(late.blocks[name].eigenvalues[0]))
        block = late.blocks[sharpest]
        sentences.append(
            f"Its sharpest block is {sharpest}: λ₁ {with_error(block.eigenvalues[0], block.residual_norms[0])} alone."
        )
    return sentences

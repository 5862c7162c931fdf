"""`lite-probe demo`: train a small Llama, measure it at two steps, and put both on one page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.console import Terminal, emit
from lite_probe.commands.options import (
    compute_options,
    console_options,
    example,
    fresh_option,
    json_option,
    seed_option,
)
from lite_probe.commands.run_directory import made, run_directory
from lite_probe.commands.spectrum import SpectrumOptions, measure, open_task, plan_and_tell, tell, write_page
from lite_probe.commands.summary import condition_to_median, json_object
from lite_probe.commands.wording import count, number, with_error

if TYPE_CHECKING:
    from lite_probe.results.spectrum import Spectrum

_TEXT = "builtin:python-docs"
_STEPS = (60, 300)
_HYPERPARAMETERS = {"adamw_beta2": 0.95}


@click.command("demo", epilog=example("demo --out probe/demo"))
@compute_options
@seed_option
@click.option("--out", metavar="DIR", default="probe/demo", show_default=True, help="Everything goes there.")
@fresh_option
@json_option
@console_options
@click.pass_obj
def command(terminal: Terminal, /, out: str, as_json: bool, **compute: Any) -> None:
    """Train a small Llama on text that every Python ships, and measure it.

    A byte-level Llama of about a million parameters learns from the Python documentation. Its Hessian spectrum is
    measured per block early and late in training, and one page shows both. Two cores need under three minutes.
    """
    from lite_probe.reports.page import write_report

    folder = run_directory(out, "demo")
    with made(folder):
        checkpoints = _train(terminal, folder, compute)
        terminal.resumable = True
        runs = [folder / checkpoint.name for checkpoint in checkpoints]
        spectra = [
            _measure(terminal, _options(checkpoint, run, compute), run)
            for checkpoint, run in zip(checkpoints, runs, strict=True)
        ]
        page = folder / "report.html"
        write_report(runs, page)
    for sentence in findings(spectra[0], spectra[-1]):
        terminal.line(sentence)
    emit(json.dumps({"report": str(page), "spectra": [json_object(s) for s in spectra]}) if as_json else str(page))


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


def _measure(terminal: Terminal, asked: SpectrumOptions, run: Path) -> "Spectrum":
    """Measure one checkpoint as `lite-probe spectrum` does, and show it."""
    task, summary, notes = open_task(asked)
    plan = plan_and_tell(terminal, task, asked)
    with made(run):
        spectrum = measure(terminal, task, notes, plan, asked, run)
        write_page(summary, run)
    tell(terminal, spectrum)
    terminal.line()
    return spectrum


def _options(checkpoint: Path, run: Path, compute: dict[str, Any]) -> SpectrumOptions:
    """Ask for the spectrum that the demo shows of one checkpoint."""
    return SpectrumOptions(
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
        split="evaluation",
        top=10,
        bottom=3,
        probes=3,
        tolerance=1e-3,
        operator="hessian",
        method="autograd",
        per_block=True,
        memory=None,
        verify=False,
        out=str(run),
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

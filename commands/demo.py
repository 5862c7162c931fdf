"""`lite-probe demo`: train a small Llama, measure it at two steps, replay it from the first, all on one page."""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.measuring import Measuring, RunOptions, Shown
from lite_probe.commands.options import console_options, example, options_from
from lite_probe.commands.replay import ReplayMeasuring
from lite_probe.commands.run_directory import measuring_into, own_folder
from lite_probe.commands.spectrum import SpectrumMeasuring
from lite_probe.commands.steps import StepsMeasuring
from lite_probe.commands.subspace import SubspaceMeasuring
from lite_probe.commands.task import COMPUTE, TaskOptions, require_whole_products
from lite_probe.commands.tune import DEALT, TuneMeasuring
from lite_probe.commands.wording import count
from lite_probe.measurements.requests import Request
from lite_probe.results.kinds import KINDS

_TEXT = "builtin:python-docs"
_STEPS = (60, 300)
_HYPERPARAMETERS = {"adamw_beta2": 0.95}
_SECONDS = 280.0  # that its parts may take, unless all is asked for; it starts and ends in a few more
_TRAINING_SHARE = 0.25  # of the time left, for the steps after the first checkpoint
_SPECTRUM_PART, _REPLAY_PART, _STEPS_PART, _SUBSPACE_PART, _TUNING_PART = 2.0, 4.0, 1.0, 1.0, 1.0  # of what is left
_MOST_SHARE = 0.7  # of the time left that a plan may take: it may be off
_WARM_BATCHES = 30


@dataclass(frozen=True, slots=True)
class _Variant:
    """What may be asked of one measurement, and what it lacks."""

    request: Mapping[str, Any]
    lacks: str = ""


_SPECTRUM = (
    _Variant({"probes": 3, "per_block": True}),
    _Variant({"probes": 3, "per_block": False}, "the spectra of its blocks"),
    _Variant(
        {"probes": 2, "per_block": False, "top": 5, "bottom": 1},
        "the spectra of its blocks, and half of its eigenpairs",
    ),
)
_SUBSPACE = (
    _Variant({"probes": 12, "warm_batches": _WARM_BATCHES}),
    _Variant(
        {"probes": 12, "warm_batches": _WARM_BATCHES, "preconditioned": False}, "its spectra in optimizers' metrics"
    ),
)
# Half of what --lr sweep finds here on one segment, or a quarter, so that none goes astray on another. Finding them
# anew would take half as long as the replay itself.
_RATES = {"muon": 2.0**-9, "muon-lite": 2.0**-9, "soap": 2.0**-9, "soap-lite": 2.0**-10}
_MUONS = ("muon", "muon-lite")
_REPLAY_OF_ALL = {"steps": 20, "warm_batches": _WARM_BATCHES, "lr": _RATES}
_REPLAY_OF_MUONS = {**_REPLAY_OF_ALL, "optimizers": _MUONS, "lr": {name: _RATES[name] for name in _MUONS}}
_REPLAY = (
    _Variant(_REPLAY_OF_ALL),
    _Variant(_REPLAY_OF_MUONS, "soap and soap-lite"),
    _Variant({**_REPLAY_OF_MUONS, "steps": 10}, "soap and soap-lite, and half of its steps"),
)


_OF_MUON = {"optimizers": ("muon",), "lr": _RATES["muon"], "warm_batches": _WARM_BATCHES, "step_batches": 16}
_TOLERATED = (
    _Variant(
        {
            "optimizers": ("muon", "soap"),
            "lr": {name: _RATES[name] for name in ("muon", "soap")},
            "warm_batches": _WARM_BATCHES,
            "step_batches": 16,
        }
    ),
    _Variant(_OF_MUON, "soap's"),
    _Variant({**_OF_MUON, "critical_only": True}, "all but muon's critical step"),
)
_FOUR_NODES = {
    "lr": _RATES["muon-lite"],
    "warm_batches": _WARM_BATCHES,
    "step_batches": 16,
    "nodes": 4,
    "node_batches": 1,
    "replay_steps": 20,
}
_TUNED = (_Variant(_FOUR_NODES), _Variant({**_FOUR_NODES, "replay_steps": 0}, "the replay that tests it"))


@click.command("demo", epilog=example("demo --out probe/demo"))
@options_from(TaskOptions, *COMPUTE)
@options_from(Request, "seed")
@click.option("--out", metavar="DIR", default="probe/demo", show_default=True, help="Everything goes there.")
@click.option("--full", is_flag=True, help="Measure everything, however long it takes on this machine.")
@options_from(RunOptions, "fresh", "as_json")
@console_options
@click.pass_obj
def command(terminal: Terminal, /, out: str, full: bool, fresh: bool, as_json: bool, seed: int, **compute: Any) -> None:
    """Train a small Llama on text that every Python ships, measure it, and replay it.

    A byte-level Llama of about a million parameters learns from the Python documentation. Early and late in training
    its Hessian spectrum is measured per block, then how long a step it tolerates, its sharp subspace and LITE's proxies
    of it; from the early checkpoint, where there is most to gain, a segment is replayed under Muon, SOAP and their LITE
    variants, and LITE is tuned. One page shows it all. It takes about five minutes: what would take longer on this
    machine is left out, which is said.
    """
    from lite_probe.commands.compute import choose_threads
    from lite_probe.reports.page import write_report
    from lite_probe.reports.sections.section import section_of
    from lite_probe.task import TaskInfo

    require_whole_products(compute["precision"], "demo")
    choose_threads(compute["threads"])
    demo = _Demo(terminal, Path(out), seed, fresh, full, compute)
    with measuring_into(terminal, demo.folder, TaskInfo(name="demo", checkpoint_fingerprint="demo")):
        checkpoints = demo.train()
        terminal.resumable = True
        number = len(checkpoints)
        demo.parts = [*[_SPECTRUM_PART] * number, _REPLAY_PART, *[_STEPS_PART] * number]
        demo.parts += [*[_SUBSPACE_PART] * number, _TUNING_PART]
        spectra = [demo.measure(SpectrumMeasuring, one, _SPECTRUM, is_needed=True) for one in checkpoints]
        found = [(one.name, shown.result) for one, shown in zip(checkpoints, spectra, strict=True) if shown is not None]
        replay = demo.measure(ReplayMeasuring, checkpoints[0], _REPLAY)
        steps = [demo.measure(StepsMeasuring, one, _TOLERATED) for one in checkpoints]
        subspaces = [
            demo.measure(SubspaceMeasuring, one, _SUBSPACE, others=tuple(found[:place]), label=one.name)
            for place, one in enumerate(checkpoints)
        ]
        tuning = demo.measure(TuneMeasuring, checkpoints[0], _TUNED)
        page = demo.folder / "report.html"
        write_report([one.paths[0].parent for one in spectra if one is not None], page)
    terminal.line(section_of("spectrum").part(found).leads[0][1])
    if demo.left_out:
        terminal.notes([f"left out, to end within five minutes here: {'; '.join(demo.left_out)}; --full has it all"])
    printed = {
        "report": str(page),
        "spectra": [one.printed for one in spectra if one is not None],
        "subspaces": [one.printed for one in subspaces if one is not None],
        "replay": None if replay is None else replay.printed,
        "steps": [one.printed for one in steps if one is not None],
        "tuning": None if tuning is None else tuning.printed,
        "left_out": demo.left_out,
    }
    print_stdout(json.dumps(printed) if as_json else str(page))


class _Demo:
    """What is measured in the time there is.

    Attributes:
        left_out: In words.
        parts: Of the time left, for each measurement that is still to come.
    """

    def __init__(
        self, terminal: Terminal, folder: Path, seed: int, fresh: bool, full: bool, compute: Mapping[str, Any]
    ) -> None:
        self.terminal = terminal
        self.folder = folder
        self.seed = seed
        self.fresh = fresh
        self.compute = compute
        self.left_out: list[str] = []
        self.parts: list[float] = []
        self._ends = math.inf if full else time.monotonic() + _SECONDS

    @property
    def seconds_left(self) -> float:
        """Return the time there still is."""
        return self._ends - time.monotonic()

    def measure(
        self,
        measuring: type[Measuring],
        checkpoint: Path,
        variants: Sequence[_Variant],
        *,
        is_needed: bool = False,
        **request: Any,
    ) -> Shown | None:
        """Measure one checkpoint as the kind's command does, in a folder of its own, and show it.

        Args:
            measuring: The kind.
            checkpoint: To be measured.
            variants: What may be asked, the dearest first; the first that fits is.
            is_needed: Measure the last variant even if it takes longer.
            request: Further fields.
        """
        asked = TaskOptions(
            checkpoint=str(checkpoint), data_path=_TEXT, tokenizer="bytes", seq_len=128, batches=1, **self.compute
        )
        kind = KINDS[measuring.kind].load("request")
        wanted = kind(seed=self.seed, **variants[0].request, **request)
        own = {"verify": False, "sharded": False, "relative_path": None, "shards_by": DEALT}
        one = measuring(self.terminal, asked, RunOptions(fresh=self.fresh), wanted, own)
        opened = one.open()
        # Checkpoints of another seed have the same names.
        folder = own_folder(self.terminal, self.folder / opened.task.info.name, opened.task.info)
        # What a measurement leaves of its part goes to those after it.
        share = min(self.parts[0] / sum(self.parts), _MOST_SHARE)
        del self.parts[0]
        chosen = one.choose(opened, folder, [variant.request for variant in variants], share * self.seconds_left)
        if chosen is None and not is_needed:
            self.left_out.append(f"the {measuring.kind} of {checkpoint.name}")
            return None
        variant = variants[-1 if chosen is None else chosen]
        if variant.lacks:
            self.left_out.append(f"of {checkpoint.name}'s {measuring.kind} {variant.lacks}")
        shown = one.go(opened, folder)
        self.terminal.line()
        return shown

    def train(self) -> Sequence[Path]:
        """Train, or take the checkpoints that an earlier demo left; return their folders in order."""
        from lite_probe.reports.numbers import format_number
        from lite_probe.training import train_byte_llama

        target = self.folder / f"checkpoints-{self.seed}"
        found = [target / f"step-{step:05d}" for step in _STEPS]
        if all(path.is_dir() for path in found) and not self.fresh:
            self.terminal.line(f"already trained: {target}; --fresh trains again")
            return found
        if target.exists():
            shutil.rmtree(target)
        began = time.monotonic()

        def goes_on(step: int) -> bool:
            rest = (time.monotonic() - began) / step * (_STEPS[-1] - step)
            if rest <= _TRAINING_SHARE * self.seconds_left:
                return True
            self.left_out.append(f"training beyond step {step}, and all that is measured there")
            return False

        with self.terminal.progress() as on_progress:
            record = train_byte_llama(
                target,
                hyperparameters=_HYPERPARAMETERS,
                steps=_STEPS[-1],
                save_at=_STEPS,
                seed=self.seed,
                goes_on=goes_on,
                on_progress=on_progress,
            )
        self.terminal.line(
            f"trained a byte-level Llama of {count(record.num_parameters)} parameters for {len(record.losses)} steps: "
            f"loss {format_number(record.evaluation_losses[-1], 3)} nats per byte on text it has not seen; "
            f"counting bytes alone reaches {format_number(record.byte_entropy, 3)}"
        )
        self.terminal.line()
        return record.checkpoints

"""Where in this loss landscape is progress left, and does my optimizer make it?

    import lite_probe as lp

    checkpoint = lp.open_checkpoint("runs/gpt/ckpt.pt")
    task = lp.make_task(checkpoint, data="val.bin", seq_len=128, batch_size=8, eval_batches=4, seed=0)
    spectrum = lp.measure_spectrum(task, top=10, probes=4)
    spectrum.eigenvalues, spectrum.residual_norms, spectrum.trace
    lp.save(spectrum, "probe/run")
    spectrum = lp.load("probe/run/spectrum.json")
    subspace = lp.measure_subspace(task, spectrum)
    replay = lp.replay(task, optimizers=["muon", "muon-lite"], steps=50, spectrum=spectrum)
    steps = lp.measure_steps(task, optimizers=["muon"], lr={"muon": 0.0078})
    steps.profile("muon"), steps.implied_ratio("ffn"), steps.critical("muon")
    tuning = lp.tune(task, optimizer="muon-lite", lr=0.0078, nodes=8, topology="ring")
    comparison = lp.compare(["probe/early", "probe/late"])
    comparison.standings, comparison.differences
    lp.optim.make_optimizer("muon-lite", model.named_parameters(), lr=tuning.lr, **tuning.settings)
    trainer = Trainer(..., callbacks=[lp.callbacks.ProbeCallback(task, every=100, folder="probe/run")])

A name is imported when it is first used, so that `import lite_probe` alone loads neither torch nor transformers.

To add

* an optimizer: a function of named parameters and learning rate, given to `replay` as it is; or a spec and a geometry
  (`lite_probe.optim.register_optimizer`), to have saved states, the linear theory and bands, too;
* a kind of measurement: one file with a request, a plan, a record and a section, and an entry of the table of kinds
  (`lite_probe.results.kinds.register_kind`), from which its command, its files and its part of the page follow;
* a format of checkpoints: a reader in `lite_probe.checkpoints.detect.READERS`;
* a model family: an entry of `lite_probe.blocks.families.FAMILIES`, patterns of names and their blocks.

A test adds one of each: `tests/**/test_toy_*.py`, `tests/test_blocks.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lite_probe import bilevel as bilevel
    from lite_probe import callbacks as callbacks
    from lite_probe import optim as optim
    from lite_probe.checkpoints import open_checkpoint as open_checkpoint
    from lite_probe.measurements.replay import replay as replay
    from lite_probe.measurements.spectrum import measure_spectrum as measure_spectrum
    from lite_probe.measurements.steps import measure_steps as measure_steps
    from lite_probe.measurements.subspace import measure_subspace as measure_subspace
    from lite_probe.measurements.tune import tune as tune
    from lite_probe.results.comparison import compare as compare
    from lite_probe.results.store import load as load
    from lite_probe.results.store import save as save
    from lite_probe.task import Task as Task
    from lite_probe.task.build import make_task as make_task
    from lite_probe.version import __version__ as __version__

_HOME = {
    "compare": "lite_probe.results.comparison",
    "open_checkpoint": "lite_probe.checkpoints",
    "make_task": "lite_probe.task.build",
    "load": "lite_probe.results.store",
    "save": "lite_probe.results.store",
    "measure_spectrum": "lite_probe.measurements.spectrum",
    "measure_steps": "lite_probe.measurements.steps",
    "measure_subspace": "lite_probe.measurements.subspace",
    "replay": "lite_probe.measurements.replay",
    "tune": "lite_probe.measurements.tune",
    "Task": "lite_probe.task",
    "__version__": "lite_probe.version",
}

__all__ = [
    "Task",
    "__version__",
    "bilevel",
    "callbacks",
    "compare",
    "load",
    "make_task",
    "measure_spectrum",
    "measure_steps",
    "measure_subspace",
    "open_checkpoint",
    "optim",
    "replay",
    "save",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in ("bilevel", "callbacks", "optim"):
        return import_module(f"lite_probe.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'lite_probe' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted(__all__)

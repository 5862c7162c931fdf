"""Cheap measurements while a model trains, which leave the training as it is, to the bit.

    import lite_probe as lp

    task = lp.callbacks.language_task(model, data="val.txt", tokenizer=tokenizer, eval_batches=2)
    trainer = Trainer(model, ..., callbacks=[lp.callbacks.ProbeCallback(task, every=100, folder="probe/run")])
    trainer.train()
    training = lp.load("probe/run/training.json")
    training.steps, training.sharpest, training.edge_ratio, training.gradient_share

`ProbeCallback` is for Hugging Face's `Trainer`, `LightningProbeCallback` for Lightning's, and `Recorder`, which both
drive, for a loop of one's own. The libraries are loaded with the class that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lite_probe.callbacks.language import language_task as language_task
    from lite_probe.callbacks.lightning import LightningProbeCallback as LightningProbeCallback
    from lite_probe.callbacks.recorder import Recorder as Recorder
    from lite_probe.callbacks.trainer import ProbeCallback as ProbeCallback

_HOME = {
    "LightningProbeCallback": "lightning",
    "ProbeCallback": "trainer",
    "Recorder": "recorder",
    "language_task": "language",
}

__all__ = ["LightningProbeCallback", "ProbeCallback", "Recorder", "language_task"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'lite_probe.callbacks' has no attribute {name!r}")
    value = getattr(import_module(f"lite_probe.callbacks.{_HOME[name]}"), name)
    globals()[name] = value
    return value

"""Lightning's Trainer: its run is the same to the bit with and without the callback, which measures it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import lite_probe as lp
from lite_probe.callbacks import LightningProbeCallback
from lite_probe.results.training import Training
from tests.callbacks.runs import make_model, make_task, same, windows

pytestmark = pytest.mark.slow
STEPS = 50


class Rows(Dataset[Tensor]):
    """Training windows."""

    def __init__(self) -> None:
        self.rows = windows(64, 9, 5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class Module(LightningModule):  # type: ignore[misc]
    """The tiny language model as Lightning trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss, count = make_task(self.model).loss(batch)
        self.losses.append(float(loss.detach()) / count)
        return loss / count

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(tmp_path: Path, *callbacks: Any, steps: int = STEPS, resume: str | None = None) -> tuple[Trainer, Module]:
    """Train the tiny model on the CPU; always the same way, two batches a step."""
    seed_everything(4, verbose=False)
    module = Module()
    loader: DataLoader[Any] = DataLoader(Rows(), batch_size=4, shuffle=True)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, ckpt_path=resume)
    return trainer, module


def probe(folder: Path, **options: Any) -> LightningProbeCallback:
    return LightningProbeCallback(
        make_task(), every=10, folder=folder, budget=None, model_of=lambda module: module.model, **options
    )


def test_a_run_of_fifty_steps_is_bitwise_as_without_it(tmp_path: Path) -> None:
    plain, without = train(tmp_path)
    probed, beside = train(tmp_path, probe(tmp_path / "probe"))
    assert same(without.state_dict(), beside.state_dict())
    assert same(plain.optimizers[0].state_dict(), probed.optimizers[0].state_dict())
    assert without.losses == beside.losses
    assert len(beside.losses) == 2 * STEPS
    training: Training = lp.load(tmp_path / "probe" / "training.json")
    assert training.steps.tolist() == [0, 10, 20, 30, 40]
    assert training.learning_rate.tolist() == pytest.approx([3e-3 * (1.0 - step / 100) for step in training.steps])
    assert training.notes == ()
    assert (training.residual <= training.tolerance * training.sharpest).all()
    assert all(point.critical_bounds is not None for point in training.points)


def test_a_resumed_run_goes_on_with_its_record(tmp_path: Path) -> None:
    trainer, _ = train(tmp_path, probe(tmp_path / "probe"), steps=25)
    trainer.save_checkpoint(tmp_path / "at25.ckpt")
    first: Training = lp.load(tmp_path / "probe")
    assert first.steps.tolist() == [0, 10, 20]
    train(tmp_path, probe(tmp_path / "probe"), steps=41, resume=str(tmp_path / "at25.ckpt"))
    second: Training = lp.load(tmp_path / "probe")
    assert second.steps.tolist() == [0, 10, 20, 30, 40]
    assert second.points[:3] == first.points


def test_the_callback_is_one_of_the_library_that_is_in_use() -> None:
    assert issubclass(LightningProbeCallback, Callback)
    script = (
        "import pytorch_lightning as pl, lite_probe as lp\n"
        "assert issubclass(lp.callbacks.LightningProbeCallback, pl.Callback)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_neither_trainer_is_loaded_before_its_callback_is_used() -> None:
    script = (
        "import sys\n"
        "for name in ('lightning', 'pytorch_lightning', 'accelerate'): sys.modules[name] = None\n"
        "import lite_probe as lp\n"
        "lp.callbacks.Recorder, lp.callbacks.language_task, lp.callbacks.ProbeCallback\n"
        "assert 'transformers.trainer' not in sys.modules\n"
        "try: lp.callbacks.LightningProbeCallback\n"
        "except ImportError: pass\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

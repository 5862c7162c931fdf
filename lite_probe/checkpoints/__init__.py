"""Training checkpoints: told apart by content, read with weights only, built into models that differentiate twice."""

from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.detect import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]

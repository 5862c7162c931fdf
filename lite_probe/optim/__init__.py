"""AdamW, Muon, SOAP and their LITE variants, for anyone's training loop.

    from lite_probe.optim import make_optimizer

    optimizer = make_optimizer("muon-lite", model.named_parameters(), lr=3e-3)
"""

from lite_probe.optim.lite import LiteOptimizer
from lite_probe.optim.making import OPTIMIZERS, hyperparameters_of, make_optimizer
from lite_probe.optim.msign import msign
from lite_probe.optim.schedules import Schedule

__all__ = ["OPTIMIZERS", "LiteOptimizer", "Schedule", "hyperparameters_of", "make_optimizer", "msign"]

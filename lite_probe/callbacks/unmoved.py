"""What a measurement in the middle of a training run must give back, to the bit."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lite_probe.operators.guards import preserve_state
from lite_probe.vectors.layout import ParameterLayout


@contextmanager
def unmoved(model: nn.Module, layout: ParameterLayout, parameters: Tensor) -> Iterator[None]:
    """Leave no trace in a training run, also after an error.

    Beside what `preserve_state` keeps, the parameters come back, and the random states of Python and numpy. Inside,
    there is no autocast, neither a caller's nor the one that accelerate puts around a model's forward.

    Args:
        model: That trains.
        layout: Of its trainable parameters.
        parameters: Their values now, (N,).
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with preserve_state(model), _own_forward(model), torch.autocast(parameters.device.type, enabled=False):
            yield
    finally:
        layout.write(parameters)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Call a model's own forward for a while, where accelerate has put mixed precision around it."""
    attributes = vars(model)
    wrapped, original = attributes.get("forward"), attributes.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    attributes["forward"] = original
    try:
        yield
    finally:
        attributes["forward"] = wrapped

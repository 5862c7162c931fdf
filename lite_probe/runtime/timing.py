"""How long a call takes, also on a device that computes while the program goes on."""

import time
from collections.abc import Callable

import torch


def timed(device: torch.device, call: Callable[[], object]) -> float:
    """Return the seconds that a call takes, what it leaves to the device included; what was left to it before is not.

    Args:
        device: That the call computes on; no other one is touched.
        call: What is timed.
    """
    _finish(device)
    started = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    """Wait for what is queued on a device; a CPU queues nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

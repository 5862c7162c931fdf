"""Where a command computes. Imports torch; commands import this when they run, not when they are listed."""

import torch

from lite_probe.errors import UsageError


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` asks for.

    Raises:
        UsageError: If CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("expected a CUDA device for --device cuda, got none", "use --device auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def choose_dtype(precision: str) -> torch.dtype:
    """Return the element type that `--precision` names."""
    return {"float32": torch.float32, "float64": torch.float64}[precision]

"""What every rank of test_leaving.py runs: writes its number of threads, before a group, within and after it."""

import importlib
import sys
from pathlib import Path

import torch

from lite_probe.operators.ranks import ProcessRanks


def num_threads() -> int:
    """How many threads this process has."""
    return len(list(Path("/proc/self/task").iterdir()))


def main() -> None:
    """Exchange something, with torch's functions imported meanwhile, as loading a model of transformers does."""
    before = num_threads()
    with ProcessRanks(timeout=60.0) as ranks:
        importlib.import_module("torch.distributed.nn.functional")
        ranks.add_up(torch.ones(3))
        within = num_threads()
    sys.stdout.write(f"{before} {within} {num_threads()}\n")  # at once, so that no other rank's comes between


if __name__ == "__main__":
    main()

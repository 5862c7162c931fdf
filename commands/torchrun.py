"""Commands under `torchrun`: every rank runs the same one, and the first speaks and writes for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lite_probe.commands.console import Terminal
from lite_probe.measurements.requests.tune import RANK_TIMEOUT, num_ranks, rank

if TYPE_CHECKING:
    from lite_probe.vectors.ranks import Ranks


@contextmanager
def joined(terminal: Terminal) -> Iterator["Ranks | None"]:
    """Meet the other ranks for what follows; yields None where there are none.

    An error on one rank ends all. Ranks above 0 say nothing but errors.

    Raises:
        PeerError: If another rank failed or was killed.
    """
    if num_ranks() == 1:
        yield None
        return
    if rank() > 0:
        terminal.verbosity = -1
    with terminal.waiting("waiting for the other ranks"):
        from lite_probe.operators.ranks import ProcessRanks

        ranks = ProcessRanks(timeout=RANK_TIMEOUT)
    with ranks:
        yield ranks

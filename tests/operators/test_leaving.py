"""A process group that is left, and its threads."""

import pytest

from tests.launching import RANKS, finished, started
from tests.operators import leaving_worker

pytestmark = pytest.mark.slow


def test_no_thread_of_a_group_outlives_it() -> None:
    """Python aborts a process that ends while such a thread lets go of a tensor."""
    code, printed, said = finished(started([leaving_worker.__file__]))
    assert code == 0, said
    counts = [[int(number) for number in line.split()] for line in printed.split("\n") if line]
    assert len(counts) == RANKS
    for before, within, after in counts:
        assert within > before
        assert after == before

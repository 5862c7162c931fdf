"""What is held and what is free, on an accelerator as its allocator sees it."""

import pytest
import torch

from lite_probe.runtime import memory
from lite_probe.runtime.memory import (
    _from_the_c_library,
    free_memory,
    keeping_freed_memory,
    memory_allowed,
    memory_in_use,
    return_freed_memory,
)

_GPU = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 1,000 bytes: 100 with others, 500 with this process, which uses 200 of them."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)


@pytest.mark.usefixtures("gpu")
def test_what_the_allocator_caches_is_free() -> None:
    """A peak that is over must not count against what comes next."""
    assert memory_in_use(_GPU) == 200
    assert free_memory(_GPU) == 400 + (500 - 200)
    assert memory_allowed(_GPU, None) == 200 + int(0.8 * 700)
    assert memory_allowed(_GPU, 123) == 123


@pytest.mark.skipif(
    _from_the_c_library("malloc_trim") is None, reason="the C library keeps no freed memory that it could be asked for"
)
def test_freed_tensors_go_back_to_the_system() -> None:
    """Between those that go lie some that stay: without a word the system gets nothing back."""
    cpu = torch.device("cpu")
    torch.ones(7_500_000)  # freed at once: from now on what is smaller is not mapped by itself
    return_freed_memory()  # of tests before
    before = memory_in_use(cpu)
    stays, goes = [], []
    for _ in range(100):
        goes.append(torch.ones(1_000_000))
        stays.append(torch.ones(300_000))
    size, held = (sum(one.nbytes for one in some) for some in (goes, stays))
    assert memory_in_use(cpu) - before > 0.9 * (size + held)
    goes.clear()
    return_freed_memory()
    assert memory_in_use(cpu) - before < held + 0.2 * size


def test_the_c_library_keeps_more_for_a_while_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it gives memory back by itself depends on what lies above; that it is told not to does not."""
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(memory, "_from_the_c_library", lambda name: lambda *given: told.append((name, *given)))
    trim, mapped = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in glibc's malloc.h

    def stopped() -> None:
        with keeping_freed_memory():
            assert told == [("mallopt", trim, 512 << 20), ("mallopt", mapped, 32 << 20)]
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        stopped()
    assert told[2:] == [("mallopt", trim, 64 << 20), ("malloc_trim", 0)]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_from_the_c_library", lambda name: None)
    with keeping_freed_memory():
        return_freed_memory()

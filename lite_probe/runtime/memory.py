"""What a process holds and a measurement takes: resident memory on a CPU, allocations on an accelerator."""

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lite_probe.errors import OutputError, UsageError
from lite_probe.runtime.cgroups import room_in_groups
from lite_probe.runtime.resumable import real_folder
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.ranks import ALONE, Ranks

Placement = Literal["device", "cpu", "disk"]

_LEAST_SPARE = 6  # basis vectors beside the wanted pairs, without which a restart gets nowhere
_SHARE_OF_FREE = 0.8  # of what is free, where nothing was asked; the rest is left to others
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # what Linux takes, written to clear_refs, to begin a new VmHWM
_KEPT_FREED = 1 << 29  # bytes at the heap's end that may be free
# What glibc's mallopt calls its options, and what it sets them to by itself once a tensor of 32 MiB was freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLayout:
    """How a measurement of curvature is laid out in memory.

    Attributes:
        rows: Of a batch that one graph is of; None where it is of a whole batch.
        kept_graphs: Parts of batches whose graphs stay.
        vectors_per_pass: Vectors that share a rebuilt graph.
        basis_placement: Where Krylov vectors are: with the operator, on an accelerator's host, or on disk.
        basis_columns: How many there is room for.
    """

    rows: int | None
    kept_graphs: int
    vectors_per_pass: int
    basis_placement: Placement
    basis_columns: int

    @property
    def place(self) -> str:
        """Say where the basis is."""
        return {"device": "on device", "cpu": "in host memory", "disk": "on disk"}[self.basis_placement]

    def basis(self, layout: ParameterLayout, pairs: int, folder: Path | None, ranks: Ranks = ALONE) -> KrylovBasis:
        """Make room for Krylov vectors.

        Args:
            layout: Of the parameters; one vector has its size and type.
            pairs: That are wanted: some more columns than that are needed.
            folder: For a basis on disk.
            ranks: That hold slices of them.

        Raises:
            UsageError: If it is to be on disk, and there is no folder.
            OutputError: If it cannot be made there.
        """
        first, file = layout.parameters[0], None
        if self.basis_placement == "disk":
            if folder is None:
                raise UsageError(
                    "expected a state_directory for a basis on disk, got none", "pass one, or allow more memory"
                )
            try:
                folder = folder if ranks.count == 1 else real_folder(folder / ranks.name)
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"expected a folder for the basis at {folder}, got {error.strerror}") from error
            file = folder / "basis.bin"
        device = first.device if self.basis_placement == "device" else torch.device("cpu")
        columns = self.capacity(layout.whole_size, pairs)
        return KrylovBasis(layout.whole_size, columns, dtype=first.dtype, device=device, file=file, ranks=ranks)

    def capacity(self, size: int, pairs: int) -> int:
        """Return the columns that a basis for some pairs is made with, of n = `size`."""
        return min(size, max(self.basis_columns, pairs + _LEAST_SPARE))


def memory_allowed(device: torch.device, memory: int | None, sharing: int = 1) -> int:
    """Return the bytes that a measurement may hold, what it already holds included; see `memory_in_use`.

    Args:
        device: Where it computes: on a CPU the process's resident memory counts, on an accelerator its allocations.
        memory: What was asked, `--memory`; None allows most of what is free.
        sharing: Processes that share the host's memory; each has a device of its own, where it computes on one.
    """
    if memory is not None:
        return memory
    share = _SHARE_OF_FREE / (sharing if device.type == "cpu" else 1)
    return memory_in_use(device) + int(share * free_memory(device))


def host_memory_allowed(device: torch.device, sharing: int = 1) -> int | None:
    """Return the bytes of its host that a measurement may take beside a GPU's; None where it is not on one.

    Args:
        device: Where it computes.
        sharing: Processes that share the host's memory.
    """
    return None if device.type != "cuda" else int(_SHARE_OF_FREE / sharing * free_memory(torch.device("cpu")))


def require_memory(least: int, allowed: int, purpose: str, remedy: str = "") -> None:
    """Refuse a measurement whose leanest layout does not fit into what is allowed.

    Args:
        least: Bytes of that layout.
        allowed: From `memory_allowed`.
        purpose: What they are for.
        remedy: What helps, beside allowing more.

    Raises:
        UsageError: If it does not.
    """
    if least > allowed:
        raise UsageError(
            f"expected at least {size_text(least)} of memory for {purpose}, got {size_text(allowed)}",
            "allow more with --memory" + (f", or {remedy}" if remedy else ""),
        )


def part_text(rows: int | None) -> str:
    """Return what a graph is of."""
    return "a batch" if rows is None else f"{rows} row{'' if rows == 1 else 's'} of a batch"


def size_text(size: int) -> str:
    """Return bytes to four digits, so that what is asked for and what came do not read the same."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:.4g} {unit}"
    return f"{size} bytes"


def memory_in_use(device: torch.device) -> int:
    """Return the bytes held now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS") or peak_memory(device)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held since the process began, on an accelerator since the last `peak_during`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_during(device: torch.device, call: Callable[[], object]) -> int:
    """Return the most bytes held while `call` ran.

    Where the system does not let a process begin a new peak, it is the peak since the process began.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    began_anew = _begin_new_peak()
    call()
    return (_status("VmHWM") if began_anew else None) or peak_memory(device)


def return_freed_memory() -> None:
    """Give the system what was freed in main memory: the C library keeps tensors of up to 32 MiB, scattered.

    Nothing elsewhere than under glibc. Cost: a tenth of a second for each GiB.
    """
    trim = _from_the_c_library("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keep up to 512 MiB of what is freed for what is taken next, for a while; then give it back.

    A product takes and frees the same few hundred MiB for every batch. Given back in between, their pages are made and
    zeroed anew each time, a quarter of the product's time. Nothing elsewhere than under glibc.
    """
    option: Callable[[int, int], int] | None = _from_the_c_library("mallopt")
    if option is None:
        yield
        return
    option(_TRIM_THRESHOLD, _KEPT_FREED)
    option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    try:
        yield
    finally:
        option(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        return_freed_memory()


@cache
def _from_the_c_library(name: str) -> Callable[..., int] | None:
    """Return a function of glibc's; None where it is another library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


@contextmanager
def saved_bytes(own: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Count what autograd saves meanwhile, on the meta device too: bytes by storage, but for those of some tensors."""
    known = {tensor.untyped_storage()._cdata for tensor in own}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        # A detached alias: packing an output itself would tie it to its own graph in a cycle.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be taken.

    On an accelerator that includes what torch's allocator caches for later; on a CPU it is what the host has, or the
    control groups of the process let it take, where that is less: a container's.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(cached)
    free, room = _free_on_host(), room_in_groups()
    return free if room is None else min(free, room)


def _free_on_host() -> int:
    """Return the bytes of the machine that are free or given back when they are asked for."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _status(field: str) -> int | None:
    """Return a field of Linux's process status in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def _begin_new_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True

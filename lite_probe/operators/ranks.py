"""Ranks: processes that `torchrun` has started, and what they tell each other.

Beside `sharding`, nothing else knows torch.distributed.

    with ProcessRanks(timeout=60) as ranks:
        task.ranks = ranks

A rank that fails says so in the job's key-value store, which outlives it, before it closes its connections. Who finds
a connection closed or silent looks there. Nobody can write for a rank that was killed: then each of the others writes
whose message it missed, and the one that was missed and has written nothing is named. The first to conclude that
settles it for all, so that every rank names the same one.
"""

import json
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import count
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # for good, its functions hold the group that is there when it is imported
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from lite_probe.errors import InputError, LiteProbeError, PeerError, UsageError, shown_name
from lite_probe.vectors.ranks import Ranks, Value

_GRACE = 5.0  # seconds for the other ranks to write what they missed; torchrun gives thirty from SIGTERM to SIGKILL
_POLL = 0.02  # seconds between looks into the store
_SETTLING = 0.1  # seconds for threads of a group that something still holds to let go of their last tensors
_SHOWN = 500  # characters of another rank's error
_ROOM = 1 << 12  # bytes of a value that one message carries
_HEAD = 8  # of these bytes, that hold its length
_NAMED = 3  # settings that an error lists
_BACKENDS = "cpu:gloo,cuda:nccl"  # by the device of what is exchanged
# torch 2.13 warns of the old name.
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_RESUME = "mend that, and start every rank again from the states that were saved"

_networks = count()  # of this process: each has keys of its own in the store


class _MissedError(PeerError):
    """A message did not come.

    Args:
        peers: Whose it may have been; none where nobody can tell.
        closed: Whether the connection was closed, rather than silent for too long.
        said: By torch.
    """

    def __init__(self, peers: Sequence[int], closed: bool, said: str) -> None:
        super().__init__(f"expected a message from {_ranks(peers) or 'every rank'}, got: {said}", _RESUME)
        self.peers = list(peers)
        self.closed = closed


class _TerminatedError(BaseException):
    """SIGTERM came: `torchrun` ends the others when one has ended."""


class ProcessRanks(Ranks):
    """The processes of `torchrun`, over torch.distributed: gloo for tensors on the CPU, nccl on CUDA.

    Joins the process group, or makes it from what `torchrun` put into the environment. The body of a `with` is guarded:
    what goes wrong there on one rank ends all of them. A group that was made here is left at its end.

    Args:
        timeout: Seconds to wait for a message, above 0: no less than a rank's slowest step. A group that was there
            before keeps its own.

    Attributes:
        rank: Of this process.
        count: Ranks.
        on_host: Ranks that share this one's host.

    Raises:
        UsageError: If the process was not started by `torchrun`, the timeout is not above 0, or the group that was
            there before takes no tensors on the CPU.
        PeerError: If the ranks do not meet within the timeout.
    """

    def __init__(self, *, timeout: float = 300.0) -> None:
        if not 0.0 < timeout < float("inf"):
            raise UsageError(f"expected a timeout above 0 seconds, got {timeout:g}")
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UsageError(
                f"expected a process started by torchrun, got an environment without {', '.join(missing)}",
                "start it with torchrun --nproc-per-node N script.py, or do without ranks",
            )
        if dist.is_initialized() and not _takes_cpu(backends := dist.get_backend_config()):
            raise UsageError(
                f"expected a process group for tensors on the CPU, got {backends}",
                f'make it with init_process_group("{_BACKENDS}"), or let ProcessRanks make it',
            )
        self._timeout = timeout
        # Where nccl may be used its watchdog ends the process at the group's own limit: let this class be first.
        limit = timedelta(seconds=timeout + (2.0 * _GRACE if torch.cuda.is_available() else 0.0))
        try:
            store, self.rank, self.count = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout))))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives torchrun --max-restarts
            self._store = PrefixStore(f"lite-probe/{attempt}/{next(_networks)}", store)
            self._owns_group = not dist.is_initialized()
            if self._owns_group:
                group = PrefixStore("group", self._store)
                # Not told which, torch takes the accelerator's alone.
                backend = _BACKENDS if torch.cuda.is_available() else "gloo"
                dist.init_process_group(backend, store=group, rank=self.rank, world_size=self.count, timeout=limit)
        except RuntimeError as error:
            raise PeerError(
                f"expected {os.environ['WORLD_SIZE']} ranks to meet within {timeout:g} s, got: {_first_line(error)}",
                "look at the output of the ranks that did not come",
            ) from error
        self.on_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._rounds = count()
        self._termination = _Termination()
        self._depth = 0  # of guards
        self._settled = False  # who is at fault
        self._open = ExitStack()

    def __enter__(self) -> "ProcessRanks":
        """Guard what follows."""
        self._open.callback(self.close)
        self._open.enter_context(self.guarding())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Leave the process group, after telling the other ranks of an error."""
        return self._open.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Leave the process group, if it was made here.

        Its threads end with it. Not where torch holds it, as for a mesh of shards: Python aborts the process if one of
        them lets go of a tensor while it ends.
        """
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()
            time.sleep(_SETTLING)
        self._owns_group = False

    def _abort(self) -> None:
        """Close all connections, whatever is under way."""
        if self._owns_group and dist.group.WORLD is not None:
            dist.group.WORLD.abort()
        self.close()

    def swapped(self, stack: Tensor, peers: Sequence[int]) -> dict[int, Tensor]:
        """Send a tensor to each of the peers, and return what each of them sends, of the same shape.

        Raises:
            PeerError: If a message does not come within the timeout.
        """
        if not peers:
            return {}
        received = {peer: torch.empty_like(stack, memory_format=torch.contiguous_format) for peer in peers}
        sent = stack.contiguous()
        with self._termination.held():
            missed = self._swap(sent, received)
            if missed is not None:
                raise missed
        return received

    def _swap(self, sent: Tensor, received: Mapping[int, Tensor]) -> _MissedError | None:
        # The error is returned: a traceback would hold operations, they the group, and it the connections.
        operations = [dist.P2POp(dist.isend, sent, peer) for peer in received]
        operations += [dist.P2POp(dist.irecv, tensor, peer) for peer, tensor in received.items()]
        asked = list(received)
        try:
            works = dist.batch_isend_irecv(operations)
            single = len(works) == len(operations)  # nccl has one for all
            for place, work in enumerate(works):
                asked = [operations[place].peer] if single else list(received)
                self._wait(work, sent.is_cuda)
        except RuntimeError as error:
            return _missed(asked, error)
        return None

    def gather(self, stack: Tensor) -> Tensor:
        """Return the rows of all ranks, (n, dim), for the record: not counted.

        Raises:
            PeerError: If some rank's row does not come within the timeout.

        Cost: dim numbers from each rank to every other.
        """
        rows = [torch.empty_like(stack, memory_format=torch.contiguous_format) for _ in range(self.count)]
        own = stack.contiguous()
        self._do(lambda: dist.all_gather(rows, own, async_op=True), own.is_cuda)
        return torch.cat(rows)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks up, in place; return the sum, bitwise the same on every rank.

        Raises:
            PeerError: If some rank's does not come within the timeout.
        """
        if tensor.numel():
            whole = tensor.contiguous()
            self._do(lambda: dist.all_reduce(whole, async_op=True), whole.is_cuda)
            if whole is not tensor:
                tensor.copy_(whole)
        return tensor

    def whole(self, rows: Tensor, size: int) -> Tensor:
        """Return vectors (b, size) from this rank's slices of them, (b, entries of `part`).

        Raises:
            PeerError: If some rank's do not come within the timeout.

        Cost: a message of `size` numbers for each vector.
        """
        width = self.width(size)
        found = torch.empty(rows.shape[0], size, dtype=rows.dtype, device=rows.device)
        for place, row in enumerate(rows):
            padded = torch.zeros(width, dtype=rows.dtype, device=rows.device)
            padded[: row.numel()] = row
            slices = torch.empty(self.count * width, dtype=rows.dtype, device=rows.device)
            self._join(slices, padded)
            found[place] = slices[:size]
        return found

    def once(self, compute: Callable[[], Value]) -> Value:
        """Return what rank 0 computes, a value that pickle takes; what it refuses, all refuse.

        Raises:
            LiteProbeError: What rank 0's computation raises.
            PeerError: If its value does not come within the timeout.
        """
        value: Value | None = None
        error: LiteProbeError | None = None
        if self.is_first:
            try:
                value = compute()
            except PeerError:
                raise
            except LiteProbeError as refusal:
                error = refusal
        content = pickle.dumps((value, error)) if self.is_first else b""
        message = _message(content, _ROOM)
        self._do(lambda: dist.broadcast(message, 0, async_op=True), is_cuda=False)
        size = _length(message)
        if size > _ROOM - _HEAD:
            message = _message(content, _HEAD + size)
            self._do(lambda: dist.broadcast(message, 0, async_op=True), is_cuda=False)
        # What another rank of the same job sends is as trusted as its code, which is this one's.
        if not self.is_first:
            value, error = pickle.loads(_content(message))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def from_every(self, value: Value) -> list[Value]:
        """Return every rank's value, by rank; pickle must take it.

        Raises:
            PeerError: If one does not come within the timeout.
        """
        content = pickle.dumps(value)
        messages = self.gather(_message(content, _ROOM).unsqueeze(0))
        longest = max(_length(message) for message in messages)
        if longest > _ROOM - _HEAD:
            messages = self.gather(_message(content, _HEAD + longest).unsqueeze(0))
        return [pickle.loads(_content(message)) for message in messages]

    def _join(self, whole: Tensor, own: Tensor) -> None:
        self._do(lambda: _all_gather_single(whole, own, async_op=True), own.is_cuda)

    def _do(self, start: Callable[[], Any], is_cuda: bool) -> None:
        """Do what all ranks do together."""
        with self._termination.held():
            missed = self._done(start, is_cuda)
            if missed is not None:
                raise missed

    def _done(self, start: Callable[[], Any], is_cuda: bool) -> _MissedError | None:
        try:
            self._wait(start(), is_cuda)
        except RuntimeError as error:
            return _missed([], error)
        return None

    def _wait(self, work: Any, is_cuda: bool) -> None:
        """Wait for messages; on CUDA by looking, since nccl's own wait neither ends nor fails with its peer."""
        end = time.monotonic() + self._timeout
        while is_cuda and not work.is_completed():
            if time.monotonic() > end or self._termination.came:
                raise RuntimeError("timed out" if time.monotonic() > end else "SIGTERM")
            time.sleep(1e-4)
        work.wait()

    def agree(self, settings: Mapping[str, str]) -> None:
        """Compare settings across ranks.

        Args:
            settings: What has to be the same on every rank, by name.

        Raises:
            InputError: If it differs, on every rank, with names, ranks and values.
            PeerError: If a rank does not come within the timeout.
        """
        with self._termination.held():  # who disagrees hears of that, and not of the rank that ended first
            everyone = [json.loads(text) for text in self._shared(json.dumps(dict(settings)))]
            names = sorted({name for one in everyone for name in one})
            differing = [name for name in names if len({one.get(name) for one in everyone}) > 1]
            if differing:
                found = "; ".join(_difference(name, [one.get(name) for one in everyone]) for name in differing[:_NAMED])
                more = f"; and in {', '.join(differing[_NAMED:])}" if len(differing) > _NAMED else ""
                raise InputError(
                    f"expected the same settings on every rank, got {found}{more}",
                    f"start every rank with the same {', '.join(differing)}",
                )

    def common(self, steps: Iterable[int]) -> int | None:
        """Return the newest of the saved steps that every rank has.

        A rank may have saved once more than another when a run ends. Who keeps its last two states always has one in
        common with the rest.

        Args:
            steps: Of the states that this rank has.

        Returns:
            A step, the same on every rank; None where no step is everywhere.

        Raises:
            PeerError: If a rank does not come within the timeout.
        """
        with self._termination.held():
            everyone = [set(json.loads(text)) for text in self._shared(json.dumps(sorted(steps)))]
        return max(set.intersection(*everyone), default=None)

    def _shared(self, text: str) -> list[str]:
        """Return every rank's text, through the store."""
        place = next(self._rounds)
        end = time.monotonic() + self._timeout
        missing = list(range(self.count))
        try:
            self._store.set(f"{place}/{self.rank}", text)
            while True:
                # In this order: a verdict on what was shared comes after all of it.
                settled = self._store.check(["verdict"])
                missing = [rank for rank in missing if not self._store.check([f"{place}/{rank}"])]
                if not missing:
                    break
                if self._termination.came:
                    raise _TerminatedError
                if settled or time.monotonic() > end:
                    raise _MissedError(missing, closed=False, said=f"none within {self._timeout:g} s")
                time.sleep(_POLL)
            return [self._store.get(f"{place}/{rank}").decode() for rank in range(self.count)]
        except RuntimeError as error:
            raise _missed([], error) from error

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """End all ranks when something goes wrong on one, each with an error that names it.

        The rank at fault raises what it met, with a note that names the rank. SIGTERM, which `torchrun` sends to all
        when one has ended, waits until it is clear whether it was for that; else it takes its course.

        Raises:
            PeerError: If another rank failed, was killed, or sent nothing within the timeout; at most the timeout and
                a few seconds later.
        """
        if self._depth == 0:
            self._termination.take()
        self._depth += 1
        failed = True
        try:
            yield
            failed = False
        except (_MissedError, _TerminatedError) as error:
            self._termination.hold()
            self._settled = True
            raise self._named(error) from None
        except BaseException as error:
            self._termination.hold()
            if not self._settled and _is_lost(error):
                self._settled = True
                raise self._named(_missed([], error)) from None
            if not self._settled:
                self._settled = True
                self._tell(error)
                error.add_note(f"on rank {self.rank}")
            raise
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._termination.release(failed)

    def _tell(self, error: BaseException) -> None:
        """Say to the other ranks what went wrong here, then let go of them."""
        text = str(error) if isinstance(error, LiteProbeError) else f"{type(error).__name__}: {error}"
        verdict = {"ranks": [self.rank], "how": "failed", "text": shown_name(text, _SHOWN)}
        try:
            self._store.compare_set("verdict", "", json.dumps(verdict))
            self._store.set(f"word/{self.rank}", json.dumps({"missed": [], "closed": False, "ended": False}))
        except RuntimeError:
            pass  # with the store gone, closed connections have to do
        self._abort()

    def _named(self, error: _MissedError | _TerminatedError) -> BaseException:
        """Return the error that names who is at fault; SIGTERM takes its course where nobody is."""
        missed, closed = (error.peers, error.closed) if isinstance(error, _MissedError) else ([], False)
        word = {"missed": missed, "closed": closed, "ended": self._termination.came}
        try:
            self._store.set(f"word/{self.rank}", json.dumps(word))
            self._abort()  # who waits for this rank need not wait for its timeout
            verdict = self._verdict()
        except RuntimeError:  # the store is gone, and torchrun with it
            self._abort()
            if isinstance(error, _MissedError):
                return error
            verdict = {"ranks": [], "how": "ended"}
        ranks = verdict["ranks"]
        if self._termination.came and (not ranks or (verdict["how"] == "ended" and self.rank in ranks)):
            self._termination.pass_on()
        who = _ranks(ranks) or "every rank"
        return PeerError(
            {
                "failed": f"expected every rank to go on, got an error on {who}: {verdict['text']}",
                "closed": f"expected every rank to go on, got a closed connection from {who}, whose process has ended",
                "silent": f"expected a message from {who} within {self._timeout:g} s, got none",
                "ended": f"expected every rank to go on, got SIGTERM on {who}",
                "gone": f"expected every rank to go on, got no word from {who} when the others ended",
            }[verdict["how"]],
            _RESUME,
        )

    def _verdict(self) -> dict[str, Any]:
        """Return who is at fault, by what every rank has written, or has not."""
        end = time.monotonic() + _GRACE
        words: dict[int, dict[str, Any]] = {}
        while len(words) < self.count and time.monotonic() < end and not self._store.check(["verdict"]):
            for rank in range(self.count):
                if rank not in words and self._store.check([f"word/{rank}"]):
                    words[rank] = json.loads(self._store.get(f"word/{rank}"))
            time.sleep(_POLL)
        settled = self._store.compare_set("verdict", "", json.dumps(_judge(words, self.count)))
        verdict: dict[str, Any] = json.loads(settled)
        return verdict


class _Termination:
    """SIGTERM as an exception, at most once, and not while messages are under way.

    Attributes:
        came: Whether there was one.
    """

    def __init__(self) -> None:
        self.came = False
        self._holding = False
        self._before: Any = None
        self._leaving = False

    def take(self) -> None:
        """Take SIGTERM over, unless it is ignored."""
        is_main = threading.current_thread() is threading.main_thread()
        self.came = self._holding = self._leaving = False
        if is_main and self._before is None and signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, None):
            self._before = signal.signal(signal.SIGTERM, self._arrive)

    def hold(self) -> None:
        """Only remember it from here on."""
        self._holding = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only remember it within, and raise it at the end."""
        before, self._holding = self._holding, True
        yield
        self._holding = before
        if self.came and not before:
            self._holding = True
            raise _TerminatedError

    def release(self, failed: bool) -> None:
        """Give SIGTERM back; after a failure once the one that `torchrun` is about to send has come."""
        if self._before is None:
            return
        if failed and not self.came:
            self._leaving = True
        else:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def pass_on(self) -> None:
        """Let SIGTERM do what it does without this class."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
            signal.raise_signal(signal.SIGTERM)

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if self._leaving:
            self.release(failed=False)
        elif not self._holding:
            self._holding = True
            raise _TerminatedError


def _takes_cpu(backends: str) -> bool:
    """Whether a group with these backends, such as cpu:gloo,cuda:nccl, takes tensors on the CPU."""
    return "cpu" in [backend.partition(":")[0] for backend in backends.split(",")]


def _message(content: bytes, size: int) -> Tensor:
    """Return a value's bytes with their number before them, cut or filled up to so many bytes."""
    whole = bytearray(len(content).to_bytes(_HEAD, "little") + content[: size - _HEAD])
    return torch.frombuffer(whole + bytes(size - len(whole)), dtype=torch.uint8)


def _length(message: Tensor) -> int:
    return int.from_bytes(message[:_HEAD].numpy().tobytes(), "little")


def _content(message: Tensor) -> bytes:
    return message[_HEAD : _HEAD + _length(message)].numpy().tobytes()


def _judge(words: Mapping[int, Mapping[str, Any]], count: int) -> dict[str, Any]:
    """Return who is at fault: missed and without a word, else without a word, else ended by SIGTERM, else missed."""
    silent = set(range(count)) - set(words)
    missed = {peer for word in words.values() for peer in word["missed"]}
    closed = {peer for word in words.values() if word["closed"] for peer in word["missed"]}
    ended = [rank for rank, word in words.items() if word["ended"]]
    if found := sorted(silent & missed):
        return {"ranks": found, "how": "closed" if set(found) & closed else "silent", "text": ""}
    if silent:
        return {"ranks": sorted(silent), "how": "gone", "text": ""}
    if ended:
        return {"ranks": sorted(ended), "how": "ended", "text": ""}
    return {"ranks": sorted(missed), "how": "closed" if closed else "silent", "text": ""}


def _is_lost(error: BaseException) -> bool:
    """Whether torch says so of a connection, in the middle of a model whose shards it gathers."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _missed(peers: Sequence[int], error: BaseException) -> _MissedError:
    said = _first_line(error)
    return _MissedError(peers, closed="timed out" not in said.lower(), said=said)


def _first_line(error: BaseException) -> str:
    return shown_name(str(error).partition("\n")[0])


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) < 2:
        return "".join(f"rank {rank}" for rank in ranks)
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", …" if len(ranks) > 8 else "")
    return f"ranks {shown}"


def _difference(name: str, values: Sequence[str | None]) -> str:
    """Return a setting's most frequent value and the first other one, each with its rank."""
    usual = Counter(values).most_common(1)[0][0]
    other = next(rank for rank, value in enumerate(values) if value != usual)
    first, second = sorted((values.index(usual), other))
    told = ["none" if values[rank] is None else shown_name(values[rank], 80) for rank in (first, second)]
    return f"{name} {told[0]} on rank {first} and {told[1]} on rank {second}"

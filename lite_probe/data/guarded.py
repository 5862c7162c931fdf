"""Calls into compiled code that nothing in Python can interrupt, and that writes to stderr by itself.

The call runs in a thread that is waited for and, after too long, left behind. What Rust prints of a panic is held
back: the error that follows says it. Whatever else was written meanwhile comes out afterwards.
"""

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from lite_probe.errors import InputError

MAX_SECONDS = 6.0  # of the clock and of the processor: a busy machine alone ends nothing
_LOOK_EVERY = 0.25  # seconds
_STDERR = 2
_PANIC = b"\nthread '"  # what Rust's report of a panic begins with

_one_at_a_time = threading.Lock()


class GuardedThread:
    """One thread for calls that may never return.

    Args:
        problem: What to say of a call that takes too long.
    """

    def __init__(self, problem: str) -> None:
        self._problem = problem
        self._asked: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] | None = None
        self._held: BinaryIO | None = None

    def call(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns, or raise what it raises.

        Raises:
            InputError: If it takes more than six seconds, by the clock and by the processor.
        """
        with _one_at_a_time, self._stderr_held():
            if self._asked is None:
                self._asked = queue.SimpleQueue()
                threading.Thread(target=_serve, args=(self._asked,), daemon=True).start()
            done: Future[Any] = Future()
            self._asked.put((done, function))
            begun = time.monotonic(), time.process_time()
            while True:
                with suppress(TimeoutError):
                    done.exception(_LOOK_EVERY)
                if done.done():
                    break
                if min(time.monotonic() - begun[0], time.process_time() - begun[1]) > MAX_SECONDS:
                    self._asked = None  # the thread stays with its call until the process ends
                    raise InputError(self._problem, "pass another --tokenizer")
            return done.result()

    @contextmanager
    def _stderr_held(self) -> Iterator[None]:
        """Hold back what is written to stderr, and write it afterwards, up to a panic."""
        try:
            before = os.dup(_STDERR)
        except OSError:  # closed
            yield
            return
        if self._held is None:
            self._held = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # kept for the next call
        held = self._held.fileno()
        os.dup2(held, _STDERR)
        try:
            yield
        finally:
            os.dup2(before, _STDERR)
            os.close(before)
            if os.lseek(held, 0, os.SEEK_END):
                os.lseek(held, 0, os.SEEK_SET)
                content = self._held.read().partition(_PANIC)[0]
                os.ftruncate(held, 0)
                os.lseek(held, 0, os.SEEK_SET)
                os.write(_STDERR, content)


def _serve(asked: "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]") -> None:
    while True:
        done, function = asked.get()
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001  # a panic is no Exception; the caller raises it
            done.set_exception(error)
        del done, function

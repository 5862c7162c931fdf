"""Starts `torchrun` with two ranks in a test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
RANKS = 2


def started(arguments: Sequence[object]) -> "subprocess.Popen[str]":
    """Start a script or `-m MODULE` on two ranks; stdout is what they print, stderr what they say."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def process_of(process: "subprocess.Popen[str]", rank: int) -> int:
    """Return the process of a rank, once torchrun has started it."""
    mark = f"RANK={rank}".encode()
    while process.poll() is None:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                if mark in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    return int(child)
        time.sleep(0.02)
    raise AssertionError(f"expected rank {rank} to start, got torchrun's end")


def finished(process: "subprocess.Popen[str]", seconds: float = 200.0) -> tuple[int, str, str]:
    """Wait for the end; return exit code, stdout and stderr. Nothing of it outlives this."""
    with process:
        try:
            printed, said = process.communicate(timeout=seconds)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # torchrun takes its ranks along
            process.wait(40)  # it kills the slow ones after thirty seconds
            raise
    return process.returncode, printed, said


def killed_once_there(process: "subprocess.Popen[str]", path: Path) -> None:
    """Kill rank 1 once a file is there, and see that all end and name it."""
    victim = process_of(process, rank=1)
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(victim, signal.SIGKILL)
    code, printed, said = finished(process)
    assert code != 0
    assert printed == ""
    assert "expected every rank to go on, got no word from rank 1" in said or "from rank 1, whose process" in said, said

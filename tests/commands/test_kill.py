"""A measurement that was killed continues, and ends with the same numbers, bit by bit."""

import json
import random
import subprocess
import sys
from pathlib import Path

from lite_probe.results.store import load

KILLS = 10

# Runs one command after another, each in a process of its own that is killed after so many seconds. The libraries are
# imported before the fork, so that the kills hit the measurement and not the imports.
RUNNER = """
import json, os, signal, sys, time
import torch, transformers.models.llama.modeling_llama
import lite_probe.making, lite_probe.reports.page, lite_probe.spectra
from lite_probe.commands.main import cli

for line in sys.stdin:
    limit, arguments = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        cli.main(arguments)
    status = None
    while status is None:
        if time.monotonic() - started > limit:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        else:
            found, ended = os.waitpid(child, os.WNOHANG)
            status = ended if found else None
            time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    sys.__stdout__.write(json.dumps([code, time.monotonic() - started]) + "\\n")
    sys.__stdout__.flush()
"""


def numbers(run: Path) -> tuple[object, bytes]:
    """Everything measured; of what was run, nothing that depends on when."""
    head = json.loads((run / "spectrum.json").read_text())["result"]
    head.pop("provenance")
    return head, (run / "spectrum.safetensors").read_bytes()


def test_ten_kills_change_no_bit(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    options = "--tokenizer bytes --seq-len 32 --batch-size 8 --batches 2 --top 5 --probes 3 --per-block --threads 1 -q"
    chance, killed = random.Random(7), 0
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as runner:

        def run(out: Path, limit: float) -> tuple[int, float]:
            arguments = ["spectrum", str(tiny_llama), "--data", str(text), "--out", str(out), *options.split()]
            assert runner.stdin is not None
            assert runner.stdout is not None
            runner.stdin.write(json.dumps([limit, arguments]) + "\n")
            runner.stdin.flush()
            answer = ""
            while not answer.startswith("["):  # the commands print their paths before
                answer = runner.stdout.readline()
            code, seconds = json.loads(answer)
            return code, seconds

        code, duration = run(tmp_path / "undisturbed", 120)
        assert code == 0
        for _ in range(KILLS):
            code, _ = run(tmp_path / "disturbed", chance.uniform(0.05, 0.5) * duration)
            assert code in (0, -9)
            killed += code == -9
        assert run(tmp_path / "disturbed", 120)[0] == 0
    # A run that came to its end before its kill leaves nothing to kill.
    assert killed >= 3
    assert numbers(tmp_path / "disturbed") == numbers(tmp_path / "undisturbed")
    spectrum = load(tmp_path / "disturbed", "spectrum")
    assert spectrum.whole.converged.all()
    left = {path.name for path in (tmp_path / "disturbed").iterdir()}
    assert left == {path.name for path in (tmp_path / "undisturbed").iterdir()}

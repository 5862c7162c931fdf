"""A measurement that was killed continues, and ends with the same numbers, bit by bit."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lite_probe.results.store import load

pytestmark = pytest.mark.slow

KILLS = 10

# Runs one command after another, each in a process of its own that is killed after so many seconds. The libraries are
# imported before the fork, so that the kills hit the measurement and not the imports.
RUNNER = """
import json, os, signal, sys, time
import torch, transformers.models.llama.modeling_llama
import lite_probe.task.build, lite_probe.reports.page, lite_probe.spectra
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


@pytest.mark.timeout(900)
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
                assert answer, "the runner ended"
            code, seconds = json.loads(answer)
            return code, seconds

        undisturbed = tmp_path / "undisturbed"
        code, duration = run(undisturbed, 250)
        assert code == 0
        # Killed runs get further and further; one that came to its end makes room for another.
        finished, disturbed = 0, tmp_path / "disturbed-0"
        while killed < KILLS:
            code, _ = run(disturbed, chance.uniform(0.1, 0.7) * duration)
            assert code in (0, -9)
            killed += code == -9
            if code == 0:
                assert numbers(disturbed) == numbers(undisturbed)
                finished += 1
                disturbed = tmp_path / f"disturbed-{finished}"
        assert run(disturbed, 250)[0] == 0
    assert numbers(disturbed) == numbers(undisturbed)
    spectrum = load(disturbed, "spectrum")
    assert spectrum.whole.converged.all()
    left = {path.name for path in disturbed.iterdir()}
    assert left == {path.name for path in undisturbed.iterdir()}


def started(tiny_llama: Path, text: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    options = "--tokenizer bytes --seq-len 32 --batch-size 8 --batches 2 --threads 1"
    script = "from lite_probe.commands.main import main; main()"
    arguments = ["spectrum", str(tiny_llama), "--data", str(text), "--out", str(out), *options.split(), *more]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_measurement_goes_on_when_nobody_reads_what_it_says(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    with started(tiny_llama, text, tmp_path / "out", "--top", "2", "--probes", "2") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "10,800 parameters" in process.stderr.readline()
        process.stderr.close()  # as `2>&1 | head -1` does
        printed = process.stdout.read()
    assert process.returncode == 0
    assert printed.split() == [str(tmp_path / "out" / name) for name in ("report.html", "spectrum.json")]
    assert load(tmp_path / "out", "spectrum").whole.converged.all()


def test_what_a_signal_says_of_the_same_command_is_true(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", ("--top", "12", "--probes", "12")
    with started(tiny_llama, text, out, *more) as process:
        while not list(out.glob("spectrum.state/*/running/head.json")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert said.endswith("error: ended by SIGTERM; the same command continues from what it saved last\n")
    saved = json.loads((out / "spectrum.state" / "layout.json").read_text())["content"]
    assert saved["fingerprint"]
    # The folder is its checkpoint's until the measurement is finished, which takes up what was saved.
    assert (out / ".lite-probe.lock").is_file()
    with started(tiny_llama, text, out, *more) as process:
        said = process.communicate(timeout=250)[1]
    assert process.returncode == 0, said
    assert load(out, "spectrum").fingerprint == saved["fingerprint"]
    assert not (out / ".lite-probe.lock").exists()

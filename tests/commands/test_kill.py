"""A measurement that was killed continues, and ends with the same numbers, bit by bit."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lite_probe.results.store import load

KILLS = 10


def command(checkpoint: Path, text: Path, out: Path) -> list[str]:
    script = "from lite_probe.commands.main import main; main()"
    options = "--tokenizer bytes --seq-len 32 --batch-size 8 --batches 2 --probes 3 --per-block --threads 1 -q"
    return [
        sys.executable,
        "-c",
        script,
        "spectrum",
        str(checkpoint),
        "--data",
        str(text),
        "--out",
        str(out),
        *options.split(),
    ]


def numbers(out: Path) -> dict[str, object]:
    """Everything measured; of what was run, only what does not depend on when."""
    spectrum = load(out, "spectrum")
    head = json.loads((out / "spectrum.json").read_text())["result"]
    for operator in (spectrum.whole, *spectrum.blocks.values()):
        assert np.all(operator.converged)
    head.pop("provenance")
    return {"head": head, "arrays": (out / "spectrum.safetensors").read_bytes()}


def test_ten_kills_change_no_bit(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(command(tiny_llama, text, undisturbed), check=True, timeout=120)
    duration = time.monotonic() - started
    expected = numbers(undisturbed)

    disturbed, chance, killed = tmp_path / "disturbed", random.Random(7), 0
    for _ in range(KILLS):
        with subprocess.Popen(command(tiny_llama, text, disturbed)) as process:
            try:
                process.wait(timeout=chance.uniform(0.3, 1.0) * duration)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
            else:
                assert process.returncode == 0
    subprocess.run(command(tiny_llama, text, disturbed), check=True, timeout=120)
    assert killed > 0
    assert numbers(disturbed) == expected
    left = {path.name for path in disturbed.iterdir()}
    assert left == {path.name for path in undisturbed.iterdir()}

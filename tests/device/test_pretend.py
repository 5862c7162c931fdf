"""Every family and command on a device that is not the CPU: nothing meets across devices, and waits stay few.

The device is pretended (`tests.pretend`), so that this runs where there is no GPU.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch.utils import backend_registration

from tests import families
from tests.device.budgets import require_within

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason=f"torch {torch.__version__} has no devices written in Python",
    ),
]


class _Worker:
    """A process that has the pretend device; one at a time answers."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests, self._answers = requests, answers

    def ask(self, *request: str) -> Any:
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        line = self._answers.readline()
        assert line, "the worker ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["found"]


@pytest.fixture(scope="module")
def worker() -> Iterator[_Worker]:
    command = [sys.executable, "-m", "tests.device.worker"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield _Worker(process.stdin, process.stdout)
        process.stdin.close()


def test_the_device_refuses_the_cpus_tensors_and_counts(worker: _Worker) -> None:
    found = worker.ask("mixed")
    assert set(found["refused"]) == {"sum", "written in place", "written in place on the CPU", "product", "listed"}
    for message in found["refused"].values():
        assert message.startswith("expected all tensors on one device, got pretend and a tensor of shape (3,) on cpu")
    assert found["number"] == 6.0
    assert found["left"] == [0.0, 0.0, 1.0]
    assert sorted(key.removesuffix(" at elsewhere") for key in found["waits"]) == [
        *("_local_scalar_dense", "copy to the CPU", "index_put_ by a mask", "nonzero"),
    ]
    assert found["waits"]["_local_scalar_dense at elsewhere"] == 2
    assert found["uploads"] == {
        "index_put_ by indices of the CPU at elsewhere": 1,
        "copy to the device at elsewhere": 1,
    }


@pytest.mark.parametrize("name", families.CONFIGS)
def test_a_family_is_measured_and_trained(worker: _Worker, name: str) -> None:
    """The CPU computes on both sides: what differs is which kernels are fused, a rounding or two."""
    apart = worker.ask("family", name)
    assert set(apart) == {"eigenvalue", "trace", "muon-lite", "soap-lite"}
    assert apart["eigenvalue"] < 1e-3
    assert apart["trace"] < 1e-3
    assert apart["muon-lite"] < 1e-4
    assert apart["soap-lite"] < 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_moe"])
def test_a_product_waits_for_nothing_but_what_a_graph_takes(worker: _Worker, name: str) -> None:
    found = worker.ask("operators", name)
    assert all(apart < 1e-5 for apart in found["apart"].values()), found["apart"]
    experts = ", experts" if name == "qwen2_moe" else ""
    for key, waits in found["waits"].items():
        require_within(waits, "product, kept" if key.endswith("kept") else f"product, rebuilt{experts}")


def test_vectors_of_several_chunks_are_multiplied_there(worker: _Worker) -> None:
    found = worker.ask("wide")
    assert found["chunks"] > 2.0
    assert all(apart < 1e-4 for apart in found["apart"].values()), found["apart"]


def test_steps_of_a_spectrum_wait_for_few_numbers(worker: _Worker) -> None:
    for key, waits in worker.ask("steps_of_a_spectrum", "llama").items():
        require_within(waits, key)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon", "muon-lite", "soap", "soap-lite"])
def test_a_step_waits_for_one_answer(worker: _Worker, optimizer: str) -> None:
    require_within(worker.ask("optimizer_step", optimizer)["waits"], "optimizer step")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon-lite", "soap-lite"])
def test_bands_wait_where_they_are_cut(worker: _Worker, optimizer: str) -> None:
    found = worker.ask("bands", optimizer)
    require_within(found["cut"], "bands cut")
    require_within(found["products"], "products of bands")


def test_sums_by_label_are_the_cpus(worker: _Worker) -> None:
    """To the order of a million terms of at most 1, whose sums are below 1."""
    found = worker.ask("sums")
    assert found["found"] == pytest.approx(found["expected"], rel=1e-9, abs=1e-9)
    assert sorted(found["found"])[-1] == float("inf")
    assert 0.0 in found["found"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon-lite", "soap-lite"])
def test_the_theory_waits_once_for_all_vectors(worker: _Worker, optimizer: str) -> None:
    require_within(worker.ask("theory", optimizer)["vector"], "theory along a vector")


def test_a_subspace_is_measured_there(worker: _Worker) -> None:
    require_within(worker.ask("subspace", "tied_llama")["probe"], "calibration probe")


def test_steps_are_measured_there(worker: _Worker) -> None:
    require_within(worker.ask("steps", "tied_llama")["step"], "measured step")


def test_a_replay_that_was_stopped_there_goes_on(worker: _Worker) -> None:
    """After the step that was saved, to the same bits, with states in files too."""
    assert worker.ask("resumed", "tied_llama", "soap-lite") == {"steps": [0, 2, 3], "same": True}


def test_a_segment_is_replayed_there(worker: _Worker) -> None:
    require_within(worker.ask("replay", "tied_llama")["step"], "replayed step")

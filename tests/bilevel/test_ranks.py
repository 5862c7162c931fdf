"""Four ranks under torchrun do what one process with four nodes does, and all of them end when one goes wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lite_probe.bilevel import BilevelRun, QuadraticProblem, RankNetwork, StackedNetwork, mixing_matrix, solve
from lite_probe.bilevel.exchange import num_edges
from lite_probe.errors import PeerError, UsageError
from lite_probe.operators.ranks import ProcessRanks, _judge

NODES = 4
WORKER = Path(__file__).parent / "rank_worker.py"
SPARKLE: dict[str, Any] = {"method": "sparkle", "upper": "gt", "lower": "ed", "steps": 40, "record_every": 5}
RUNS: list[dict[str, Any]] = [
    SPARKLE,
    {**SPARKLE, "upper": "ed", "lower": "extra", "step_sizes": [0.02, 0.05, 0.05]},
    {"method": "dsoba-so", "steps": 40, "record_every": 5},
    {"method": "dsoba-fo", "steps": 40, "record_every": 5, "step_sizes": [0.02, 0.05, 0.05], "topology": "star"},
    {**SPARKLE, "upper": "semi-atc-gt", "topology": "star", "noise": 0.0},
]

slow = pytest.mark.slow


def launch(
    out: Path, runs: list[dict[str, Any]], *, timeout: float = 60.0, restarts: int = 0, **rest: Any
) -> tuple[int, str]:
    """Run a job on four ranks; return torchrun's exit code and what was said. Nothing of it outlives this."""
    job = {"out": str(out), "runs": runs, "timeout": timeout, **rest}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--max-restarts", str(restarts), "--nproc-per-node", str(NODES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, str(WORKER), json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            said, _ = process.communicate(timeout=150)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # torchrun takes its ranks along
            process.wait(40)  # it kills the slow ones after thirty seconds
            raise
    return process.returncode, said


def errors(out: Path) -> dict[int, dict[str, Any]]:
    """How ranks ended, by rank."""
    return {int(path.stem.split("-")[1]): json.loads(path.read_text()) for path in out.glob("error-*.json")}


def stacked(run: dict[str, Any]) -> BilevelRun:
    """The same in one process."""
    arguments = dict(run)
    problem: Any = QuadraticProblem.random(NODES, 3, 5, noise=arguments.pop("noise", 0.1))
    mixing = mixing_matrix(arguments.pop("topology", "ring"), NODES)
    if isinstance(arguments.get("step_sizes"), list):
        arguments["step_sizes"] = tuple(arguments["step_sizes"])
    return solve(problem, mixing, **arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, on ranks that nothing befell."""
    out = tmp_path_factory.mktemp("whole")
    code, said = launch(out, RUNS)
    assert code == 0, said
    return out


@slow
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_ranks_have_the_iterates_and_counts_of_one_process(whole: Path, number: int) -> None:
    expected = stacked(RUNS[number])
    history = expected.history
    assert history.upper_loss is not None
    assert float(expected.x.abs().max()) > 1e-2  # iterates that left their start
    # A central difference divides what rounding leaves by its reach, 1e-5 of y.
    tolerance = 1e-10 if RUNS[number]["method"] == "dsoba-fo" else 1e-12
    for rank in range(NODES):
        found = torch.load(whole / f"run-{rank}-{number}.pt")
        for level, stack in (("x", expected.x), ("y", expected.y), ("z", expected.z)):
            torch.testing.assert_close(found[level], stack, rtol=tolerance, atol=tolerance)
        assert found["counts"] == [one.tolist() for one in (history.gradients, history.floats, history.messages)]
        assert found["losses"] == pytest.approx(history.upper_loss.tolist(), rel=10 * tolerance)


@slow
def test_a_rank_sends_to_its_neighbours_only(whole: Path) -> None:
    for number, run in enumerate(RUNS):
        met = [torch.load(whole / f"run-{rank}-{number}.pt")["peers"] for rank in range(NODES)]
        star = run.get("topology") == "star"
        assert met == ([[1, 2, 3], [0], [0], [0]] if star else [[1, 3], [0, 2], [1, 3], [0, 2]])


@slow
def test_ranks_that_disagree_are_told_about_what(tmp_path: Path) -> None:
    code, _ = launch(
        tmp_path, [{**SPARKLE, "theta": 0.2, "on": {"2": {"theta": 0.3, "seed": 7, "begun": 5, "steps": 41}}}]
    )
    assert code != 0
    text = (
        "expected the same settings on every rank, got seed 0 on rank 0 and 7 on rank 2; step of the start 0 on rank 0 "
        "and 5 on rank 2; steps 40 on rank 0 and 41 on rank 2; and in theta; start every rank with the same seed, step "
        "of the start, steps, theta"
    )
    found = {rank: (one["kind"], one["text"]) for rank, one in errors(tmp_path).items()}
    assert found == dict.fromkeys(range(NODES), ("InputError", text))


@slow
def test_an_error_on_one_rank_ends_all_and_names_it(tmp_path: Path) -> None:
    code, said = launch(tmp_path, [SPARKLE], fault={"rank": 2, "step": 10, "how": "raise"})
    assert code != 0
    found = errors(tmp_path)
    assert found.pop(2) == {"kind": "ValueError", "text": "the dog ate my data", "notes": ["on rank 2"]}, said
    text = "expected every rank to go on, got an error on rank 2: ValueError: the dog ate my data; mend that"
    assert sorted(found) == [0, 1, 3], said
    assert all(one["kind"] == "PeerError" and one["text"].startswith(text) for one in found.values()), found


@slow
def test_a_rank_that_hangs_is_named_after_the_timeout(tmp_path: Path) -> None:
    code, said = launch(tmp_path, [SPARKLE], fault={"rank": 1, "step": 10, "how": "hang"}, timeout=4.0)
    assert code != 0
    found = errors(tmp_path)
    assert sorted(found) == [0, 1, 2, 3], said  # it learns what the others made of it
    text = "expected a message from rank 1 within 4 s, got none; mend that"
    assert all(one["kind"] == "PeerError" and one["text"].startswith(text) for one in found.values()), found


@slow
def test_a_rank_ended_by_sigterm_is_named_and_torchrun_may_start_all_again(whole: Path, tmp_path: Path) -> None:
    code, said = launch(tmp_path, [SPARKLE], restarts=1, fault={"rank": 3, "step": 10, "how": "term"})
    found = errors(tmp_path)
    assert sorted(found) == [0, 1, 2], said
    assert all("got SIGTERM on rank 3" in one["text"] for one in found.values()), found
    assert code == 0, said
    first, second = torch.load(whole / "run-0-0.pt"), torch.load(tmp_path / "run-0-0.pt")
    assert all(torch.equal(first[level], second[level]) for level in "xyz")


@slow
def test_a_killed_rank_is_named_and_the_run_continues_bit_by_bit(whole: Path, tmp_path: Path) -> None:
    code, said = launch(tmp_path, [SPARKLE], save=True, fault={"rank": 2, "step": 20, "how": "kill"})
    assert code != 0
    assert "Signal 9 (SIGKILL)" in said
    found = errors(tmp_path)
    assert sorted(found) == [0, 1, 3], said
    text = "expected every rank to go on, got a closed connection from rank 2, whose process has ended; mend that"
    assert all(one["kind"] == "PeerError" and one["text"].startswith(text) for one in found.values()), found
    assert not list(tmp_path.glob("run-*"))
    (tmp_path / "state-1-20.pt").unlink(missing_ok=True)  # as if that rank had been slower
    code, said = launch(tmp_path, [SPARKLE], save=True, resume=True)
    assert code == 0, said
    for rank in range(NODES):
        step, steps = json.loads((tmp_path / f"resumed-{rank}.json").read_text())
        assert step == 15
        assert len(steps) == (1 if rank == 1 else 2)
        first, second = torch.load(whole / f"run-{rank}-0.pt"), torch.load(tmp_path / f"run-{rank}-0.pt")
        assert all(torch.equal(first[level], second[level]) for level in "xyz")
        assert first["counts"] == second["counts"]
        assert first["losses"] == second["losses"]


def test_without_torchrun_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="got an environment without RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        RankNetwork()
    with pytest.raises(UsageError, match="expected a timeout above 0 seconds, got -1"):
        RankNetwork(timeout=-1.0)


def test_a_peer_that_failed_has_an_exit_code_of_its_own() -> None:
    assert PeerError.exit_code == 7


def test_one_process_has_nothing_to_agree_about() -> None:
    StackedNetwork(4).agree({"seed": "0"})
    assert num_edges(mixing_matrix("ring", 4)) == 8


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a job of one rank, this process."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


@pytest.mark.usefixtures("alone")
def test_one_rank_is_a_network_too_and_leaves_its_group() -> None:
    with RankNetwork(timeout=20.0) as network:
        stack = torch.tensor([[1.0, 2.0]])
        exchange = network.exchange(np.ones((1, 1)), stack)
        assert torch.equal(exchange.mix(stack), stack)
        assert torch.equal(network.gather(stack), stack)
        assert (exchange.floats, exchange.messages) == (0, 0)
        assert network.common([5, 10]) == 10
        assert network.common([]) is None
        assert dist.is_initialized()
    assert not dist.is_initialized()


@pytest.mark.usefixtures("alone")
def test_a_group_that_was_there_stays() -> None:
    dist.init_process_group("gloo")
    try:
        with RankNetwork(timeout=20.0) as network:
            assert network.num_nodes == 1
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_group_on_cuda_takes_tensors_on_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not told so, torch makes one for the accelerator alone."""
    asked: list[str | None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda backend=None, **_: asked.append(backend))
    ProcessRanks(timeout=20.0)
    assert asked == ["cpu:gloo,cuda:nccl"]


@pytest.mark.usefixtures("alone")
def test_a_group_that_takes_no_tensors_on_the_cpu_is_refused() -> None:
    dist.init_process_group("cuda:gloo")  # as "nccl" is on CUDA alone
    try:
        with pytest.raises(
            UsageError, match="expected a process group for tensors on the CPU, got cuda:gloo"
        ) as refusal:
            ProcessRanks(timeout=20.0)
        assert "cpu:gloo,cuda:nccl" in refusal.value.hint
    finally:
        dist.destroy_process_group()


class Ended(BaseException):
    """What SIGTERM raises in a test."""


@pytest.mark.usefixtures("alone")
def test_sigterm_that_no_rank_is_at_fault_for_takes_its_course() -> None:
    def end(number: int, frame: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended), RankNetwork(timeout=20.0):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is end
        with RankNetwork(timeout=20.0):
            assert signal.getsignal(signal.SIGTERM) is not end
        assert signal.getsignal(signal.SIGTERM) is end
        # torchrun ends the others as soon as one has failed: once it may, without hiding what the error said.
        with pytest.raises(ValueError, match="mine"), RankNetwork(timeout=20.0):
            raise ValueError("mine")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Ended):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("alone")
def test_ranks_that_never_come_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PeerError, match=r"expected 2 ranks to meet within 1 s, got: .*; look at the output"):
        RankNetwork(timeout=1.0)


def word(*missed: int, closed: bool = False, ended: bool = False) -> dict[str, Any]:
    """What a rank writes when it ends because of others."""
    return {"missed": list(missed), "closed": closed, "ended": ended}


@pytest.mark.parametrize(
    ("words", "how", "ranks"),
    [
        # A ring whose rank 2 was killed, while rank 0 missed a neighbour that stopped because of it.
        ({0: word(1, closed=True), 1: word(2, closed=True), 3: word(2, closed=True)}, "closed", [2]),
        # So it is where ranks at work have yet to notice.
        ({1: word(2, closed=True)}, "closed", [2]),
        ({0: word(1), 1: word(2), 3: word(2)}, "silent", [2]),
        # It was killed while all sent to all, or before it sent anything.
        ({0: word(), 1: word(ended=True), 3: word()}, "gone", [2]),
        (
            {0: word(1, closed=True), 1: word(2, closed=True), 2: word(ended=True), 3: word(2, closed=True)},
            "ended",
            [2],
        ),
        ({rank: word(ended=True) for rank in range(4)}, "ended", [0, 1, 2, 3]),
        # A cable between two that are well.
        ({0: word(1), 1: word(0), 2: word(), 3: word()}, "silent", [0, 1]),
    ],
)
def test_who_is_missed_and_silent_is_at_fault(words: dict[int, dict[str, Any]], how: str, ranks: list[int]) -> None:
    assert _judge(words, 4) == {"ranks": ranks, "how": how, "text": ""}


@pytest.mark.usefixtures("alone")
def test_a_device_that_never_finishes_is_given_up_after_the_timeout() -> None:
    class Stuck:
        def is_completed(self) -> bool:
            return False

    with RankNetwork(timeout=2.0) as network, pytest.raises(RuntimeError, match=r"^timed out$"):
        network._wait(Stuck(), is_cuda=True)

"""What every rank of test_ranks.py runs: `torchrun rank_worker.py JOB`, JOB a JSON object.

Writes, into the folder `out`, for each rank R: run-R-N.pt for the Nth of `runs`, with its iterates and whom it sent to,
and error-R.json with how it ended, where that was an error. With a `fault` one rank goes wrong at a step of a run,
where torchrun has not started it again.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lite_probe.bilevel import QuadraticProblem, RankNetwork, State, mixing_matrix, solve
from lite_probe.errors import LiteProbeError

peers: set[int] = set()


class Recorded(dist.P2POp):
    """An operation whose peer is remembered."""

    def __init__(self, op: Callable[..., Any], tensor: torch.Tensor, peer: int) -> None:
        super().__init__(op, tensor, peer)
        peers.add(peer)


class Saved:
    """The last two states of a rank, in files."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank

    def steps(self) -> list[int]:
        return sorted(int(path.stem.split("-")[2]) for path in self._folder.glob(f"state-{self._rank}-*.pt"))

    def load(self, step: int) -> State:
        return State(**torch.load(self._path(step)))

    def save(self, state: State) -> None:
        written = self._folder / f"unfinished-{self._rank}"
        torch.save({one.name: getattr(state, one.name) for one in fields(State)}, written)
        written.replace(self._path(state.step))
        for step in self.steps()[:-2]:
            self._path(step).unlink()

    def _path(self, step: int) -> Path:
        return self._folder / f"state-{self._rank}-{step}.pt"


def go_wrong(fault: dict[str, Any]) -> None:
    """Fail, be killed, stop answering, or be ended."""
    if fault["how"] == "raise":
        raise ValueError("the dog ate my data")
    if fault["how"] == "hang":
        time.sleep(60)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[fault["how"]])
    time.sleep(60)


def work(job: dict[str, Any], network: RankNetwork) -> None:
    out = Path(job["out"])
    saved = Saved(out, network.rank)
    fault = job.get("fault", {}) if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else {}
    for number, run in enumerate(job["runs"]):
        arguments = {**run, **run.get("on", {}).get(str(network.rank), {})}
        arguments.pop("on", None)
        drawn = QuadraticProblem.random(network.num_nodes, 3, 5, noise=arguments.pop("noise", 0.1))
        problem: Any = drawn.of_node(network.rank)
        mixing = mixing_matrix(arguments.pop("topology", "ring"), network.num_nodes)
        peers.clear()

        def record(state: State) -> None:
            if job.get("save"):
                saved.save(state)
            if fault.get("rank") == network.rank and fault["step"] == state.step:
                go_wrong(fault)

        start = None
        if (begun := arguments.pop("begun", None)) is not None:
            tensors = {level: torch.zeros(1, dim, dtype=torch.float64) for level, dim in (("x", 3), ("y", 5), ("z", 5))}
            alone = solve(drawn, mixing, **{**arguments, "steps": 1})
            start = State(step=begun, tensors=tensors, counts={}, rows={}, made_by=alone.state.made_by)
        if job.get("resume"):
            step = network.common(saved.steps())
            assert step is not None
            start = saved.load(step)
            (out / f"resumed-{network.rank}.json").write_text(json.dumps([step, saved.steps()]))
        if isinstance(arguments.get("step_sizes"), list):
            arguments["step_sizes"] = tuple(arguments["step_sizes"])
        found = solve(problem, mixing, network=network, start=start, on_record=record, **arguments)
        history = found.history
        counts = [history.gradients.tolist(), history.floats.tolist(), history.messages.tolist()]
        losses = [] if history.upper_loss is None else history.upper_loss.tolist()
        torch.save(
            {"x": found.x, "y": found.y, "z": found.z, "counts": counts, "losses": losses, "peers": sorted(peers)},
            out / f"run-{network.rank}-{number}.pt",
        )


def main() -> None:
    job = json.loads(sys.argv[1])
    dist.P2POp = Recorded  # type: ignore[misc,assignment]
    out, rank = Path(job["out"]), os.environ["RANK"]
    code = 0
    try:
        with RankNetwork(timeout=job["timeout"]) as network:
            work(job, network)
    except Exception as error:  # noqa: BLE001 - whatever comes is what the test is about
        code = error.exit_code if isinstance(error, LiteProbeError) else 1
        notes = getattr(error, "__notes__", [])
        told = {"kind": type(error).__name__, "text": str(error), "notes": notes}
        (out / f"error-{rank}.json").write_text(json.dumps(told))
    sys.exit(code)


if __name__ == "__main__":
    main()

"""States that runs start from, in files where memory does not hold them twice: planned by memory, the same numbers."""

import errno
import io
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lite_probe.errors import InputError, OutputError, UsageError
from lite_probe.measurements import replay as measuring
from lite_probe.measurements.replay import ReplayPlan
from lite_probe.optim import make_optimizer
from lite_probe.replays import plan as planning
from lite_probe.replays.stored import StoredState, load_start, read_tensors, store_state, write_tensors
from lite_probe.runtime.memory import memory_in_use, peak_during
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.subspaces import Subspace, optimizer_of, warm
from lite_probe.task import Task
from tests.plans import plan_replay
from tests.ranks import OneOfTwo
from tests.replays.conftest import figures, spectrum_of, with_training

STEPS, SEEDS, WARM = 2, 2, 2
NAMES = ["soap", "muon", "adamw"]
ASKED: dict[str, Any] = {"steps": STEPS, "seeds": SEEDS, "warm_batches": WARM, "curvature_probes": 0, "lr": 1e-3}
CPU = torch.device("cpu")


def planned(task: Task, names: list[Any] = NAMES, **asked: Any) -> ReplayPlan:
    return plan_replay(task, names, **{"spectrum": spectrum_of(task), **ASKED, **asked})


def task() -> Task:
    return with_training("mlp", WARM + STEPS * (SEEDS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("bands", ["soap", "adamw"])
def test_runs_that_start_from_files_have_the_same_bits(bands: str, tmp_path: Path) -> None:
    """Whether the bands' optimizer is warmed for its runs too, or for the bands alone."""
    plan = planned(task(), bands=bands)
    assert plan.shares_bands
    assert not plan.stores_states
    stored = replace(plan, stores_states=True)
    found = [
        one.run(task(), state_directory=tmp_path / name)
        for name, one in (("memory", plan), ("files", stored), ("apart", replace(stored, shares_bands=False)))
    ]
    assert figures(found[1].runs) == figures(found[0].runs)
    assert figures(found[1].landscape) == figures(found[0].landscape)
    assert figures(found[2].runs) == figures(found[0].runs)
    assert [len([*(tmp_path / name).rglob("start-*")]) for name in ("memory", "files", "apart")] == [0, 3, 3]


def test_a_folder_is_needed() -> None:
    with pytest.raises(UsageError, match="expected a state_directory for the states of optimizers, got none"):
        replace(planned(task()), stores_states=True).run(task())


def test_states_go_to_files_where_memory_does_not_hold_them_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte too little for the copies; one for what is left without them is refused."""
    own, spectrum = task(), spectrum_of(task())
    plain = planned(own, spectrum=spectrum)
    vector = 4 * plain.num_parameters
    largest = 2**30
    footprint = planning.Footprint(state_bytes=largest)
    monkeypatch.setattr(planning, "footprint_of", lambda *_: footprint)
    monkeypatch.setattr(planning, "peak_during", lambda device, call: [call(), 0][1])
    monkeypatch.setattr(measuring, "memory_in_use", lambda device: 0)
    asked: dict[str, Any] = {"spectrum": spectrum, "landscape": False}
    twice = 2 * largest + planning._VECTORS * vector
    ample, tight = (planned(own, **asked, memory=memory) for memory in (twice, twice - 1))
    assert (ample.stores_states, tight.stores_states) == (False, True)
    assert "states on disk" in tight.summary()
    assert "states on disk" not in ample.summary()
    least = largest + planning._VECTORS * vector  # sharp directions take what is left
    assert tight.memory_bytes == least + Subspace.of_spectrum(spectrum, own, memory=0).size * vector
    assert tight.scratch_bytes - ample.scratch_bytes == len(NAMES) * largest
    pair = planned(replace(own, ranks=OneOfTwo()), **asked, memory=twice - 1)
    running = 2 * (vector + largest + pair.result_bytes // pair.num_runs)  # beside its last save
    assert pair.scratch_bytes - tight.scratch_bytes == len(NAMES) * largest + running
    with pytest.raises(UsageError, match="of memory for a step and the states of its optimizers"):
        planned(own, **asked, memory=least - 1)


def damaged(stored: StoredState) -> None:
    (path,) = stored.folder.glob("0.pt")
    path.write_bytes(path.read_bytes()[:-1])


def swapped(stored: StoredState) -> None:
    replace(stored, owner="another").write({"state": {0: {"step": 3}}, "param_groups": []})


def exchanged(stored: StoredState) -> None:
    (stored.folder / "1.pt").replace(stored.folder / "0.pt")


@pytest.mark.parametrize(
    ("harm", "got"),
    [
        (damaged, "with its own digest at .*0.pt, got another"),
        (swapped, "at .*groups.pt, got another's"),
        (exchanged, "at .*0.pt, got another's"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(
    harm: Callable[[StoredState], None], got: str, tmp_path: Path
) -> None:
    stored = StoredState(tmp_path / "start", "this", CPU)
    own = [{"step": 3, "momentum": torch.full((4,), value)} for value in (1.0, 2.0)]
    stored.write({"state": dict(enumerate(own)), "param_groups": []})
    found = stored.read()["state"]
    assert len(found) == len({*found}) == 2
    assert torch.equal(found[0]["momentum"], torch.ones(4))
    assert found.get(2) is None
    harm(stored)
    with pytest.raises(InputError, match=got):
        stored.read()["state"][0]


def test_a_link_in_the_place_of_a_rank_s_folder_is_not_followed(tmp_path: Path) -> None:
    """The first rank looks at no folder but its own."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    run.mkdir()
    (run / "start-0-1").symlink_to(mine)
    store_state(
        ResumableRun(run, "one", ranks=OneOfTwo(1)), task(), {"state": {}, "param_groups": []}, ["soap"], "soap"
    )
    assert [*mine.iterdir()] == []
    assert [path.name for path in (run / "start-0-1").iterdir()] == ["groups.pt"]


def test_numbers_of_numpy_are_hyperparameters_that_a_file_brings_back(tmp_path: Path) -> None:
    """As from `numpy.linspace`: alone, of a block, and in a pair."""
    given, block, pair = np.linspace(0.1, 0.9, 3)
    own = {
        "weight_decay": given,
        "sharp_ratio": {"qk": block},
        "betas": (pair, np.float32(0.5)),
        "precondition_frequency": np.int64(2),
    }
    optimizer = make_optimizer("soap-lite", with_training("llama", 0).model.named_parameters(), lr=given, **own)
    stored = StoredState(tmp_path / "start", "this", CPU)
    stored.write(optimizer.state_dict())
    (group,) = (one for one in stored.read()["param_groups"] if one["block"] == "qk")
    assert (group["lr"], group["weight_decay"], group["sharp_ratio"]["qk"], group["betas"]) == (
        0.1,
        0.1,
        0.5,
        (0.9, 0.5),
    )


def test_a_full_disk_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.save` would tell of an odd position, which nobody can do anything about."""

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell() > 2**16:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    monkeypatch.setattr("lite_probe.results.store.create_anew", lambda path: Full())
    stored = StoredState(tmp_path / "start", "this", CPU)
    with pytest.raises(OutputError, match="No space left on device"):
        stored.write({"state": {0: {"momentum": torch.ones(2**20)}}, "param_groups": []})


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system counts one peak a process")
def test_reading_takes_no_copy_of_a_file(tmp_path: Path) -> None:
    path, momentum = tmp_path / "state.pt", torch.ones(2**24)
    write_tensors(path, "this", {"momentum": momentum})
    before = memory_in_use(CPU)
    peak = peak_during(CPU, lambda: read_tensors(path, "this", "a state", CPU))
    assert 0.9 * momentum.nbytes < peak - before < 1.3 * momentum.nbytes


def test_a_state_is_read_parameter_by_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than two parameters' are there beside what the optimizer has taken over."""
    own = with_training("llama", 2)
    optimizers = [optimizer_of(own, "soap") for _ in range(2)]
    warm(own, optimizers[:1], own.train[:2])
    stored = StoredState(tmp_path / "start", "this", CPU)
    stored.write(optimizers[0].state_dict())
    part, read = StoredState.part, [[]]

    def watched(self: StoredState, name: str) -> dict[str, Any]:
        assert not any(one() is not None for before in read[:-1] for one in before)
        found = part(self, name)
        for value in filter(torch.is_tensor, found.values()):  # not the whole of a stack that it was a part of
            assert value.untyped_storage().nbytes() == value.nbytes
        read.append([weakref.ref(value) for value in found.values() if isinstance(value, torch.Tensor)])
        return found

    monkeypatch.setattr(StoredState, "part", watched)
    load_start(optimizers[1], stored)
    assert len(read) > len(optimizers[1].state)
    for parameter, state in optimizers[0].state.items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(optimizers[1].state[parameter][name]), torch.as_tensor(value))

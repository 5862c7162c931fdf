"""States that runs start from, in files where memory does not hold them twice: planned by memory, the same numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_probe.errors import InputError, UsageError
from lite_probe.measurements import replay as measuring
from lite_probe.measurements.replay import ReplayPlan
from lite_probe.replays import plan as planning
from lite_probe.replays.stored import StoredState
from lite_probe.subspaces import Subspace
from lite_probe.task import Task
from tests.plans import plan_replay
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
    assert [len([*(tmp_path / name).rglob("start-*.pt")]) for name in ("memory", "files", "apart")] == [0, 3, 3]


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
    # While a state is read it is there twice, without the vectors of a step; sharp directions take what is left.
    least = 2 * largest + planning._WARM_VECTORS * vector
    assert tight.memory_bytes == least + Subspace.of_spectrum(spectrum, own, memory=0).size * vector
    assert tight.scratch_bytes - ample.scratch_bytes == len(NAMES) * largest
    with pytest.raises(UsageError, match="of memory for a step and the states of its optimizers"):
        planned(own, **asked, memory=least - 1)


def replaced(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swapped(path: Path) -> None:
    StoredState(path, "another", CPU).write({"state": {}})


@pytest.mark.parametrize(
    ("damage", "got"), [(replaced, "with its own digest at .*, got another"), (swapped, "at .*, got another's")]
)
def test_a_file_that_is_not_as_it_was_written_is_refused(
    damage: Callable[[Path], None], got: str, tmp_path: Path
) -> None:
    stored = StoredState(tmp_path / "start.pt", "this", CPU)
    stored.write({"state": {0: {"step": 3, "momentum": torch.ones(4)}}, "param_groups": []})
    assert torch.equal(stored.read()["state"][0]["momentum"], torch.ones(4))
    damage(stored.path)
    with pytest.raises(InputError, match=got):
        stored.read()

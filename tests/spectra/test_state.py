"""A measurement that is interrupted at any step and continued gives the bits of one that was left alone.

Every step is saved here, which a real measurement does about once a minute; the interruption comes out of
`on_progress`, after a step was made and before it was saved.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lite_probe.errors import OutputError
from lite_probe.measurements.base import discard_state
from lite_probe.measurements.spectrum import SpectrumPlan, _Session, measure_spectrum
from lite_probe.operators.base import MatrixOperator
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.runtime import resumable
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.spectra import OperatorRequest
from lite_probe.spectra import costs as planning
from lite_probe.spectra import state as states
from lite_probe.spectra.operator import Measured, OperatorMeasurement
from lite_probe.spectra.state import SavedState
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import CHUNK
from tests import models, oracles
from tests.plans import laid_out, plan_spectrum
from tests.ranks import OneOfTwo
from tests.spectra.test_measure import of_rows

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"top": 2, "bottom": 1, "probes": 2, "probe_steps": 3, "tolerance": 1e-2}

_GIB = 2**30


class KilledError(Exception):
    """What stands in for a kill."""


@pytest.fixture(autouse=True)
def _every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SavedState, "due", property(lambda self: self.directory is not None))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here; hundreds of saves take seconds


def killed_at(call: int) -> Callable[[int, int, str], None]:
    """A progress callback that raises when it is called for the `call`-th time, counted from 1."""
    calls = 0

    def on_progress(done: int, expected: int, label: str) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KilledError

    return on_progress


def assert_same_operator(one: OperatorSpectrum, other: OperatorSpectrum) -> None:
    for name in OperatorSpectrum.__slots__:
        first, second = getattr(one, name), getattr(other, name)
        if isinstance(first, np.ndarray):
            assert first.tobytes() == second.tobytes(), name
        else:
            assert first == second, name


def assert_same_bits(one: Spectrum, other: Spectrum) -> None:
    assert one.eigenvectors is not None
    assert other.eigenvectors is not None
    assert one.eigenvectors.tobytes() == other.eigenvectors.tobytes()
    assert list(one.blocks) == list(other.blocks)
    for a, b in zip([one.whole, *one.blocks.values()], [other.whole, *other.blocks.values()], strict=True):
        assert_same_operator(a, b)
    assert one.notes == other.notes
    assert one.fingerprint == other.fingerprint


def mlp() -> Task:
    return models.make_task("mlp", torch.float32)


@cache
def in_one_go() -> Spectrum:
    """The mlp's, undisturbed."""
    return measure_spectrum(mlp(), **ASKED)


def calls_of(task: Task, plan: SpectrumPlan, **asked: Any) -> tuple[Spectrum, int]:
    """An undisturbed measurement and the number of its progress calls."""
    told: list[str] = []
    spectrum = plan.run(task, on_progress=lambda *now: told.append(now[2]))
    return spectrum, len(told)


_PLANS: dict[str, dict[str, Any]] = {
    "as planned": {},
    "restarts": {"basis_columns": 8},
    "graphs rebuilt": {"kept_graphs": 0, "vectors_per_pass": 4, "graph_mode": "recomputed"},
    "graphs rebuilt, restarts, on disk": {
        "kept_graphs": 0,
        "vectors_per_pass": 2,
        "graph_mode": "recomputed",
        "basis_columns": 8,
        "basis_placement": "disk",
    },
}


@pytest.mark.parametrize("name", list(_PLANS))
def test_an_interruption_at_any_step_changes_no_bit(name: str, tmp_path: Path) -> None:
    task = mlp()
    plan = laid_out(plan_spectrum(task, **ASKED), **_PLANS[name])
    undisturbed = plan.run(task, state_directory=tmp_path / "undisturbed")
    told: list[str] = []
    again = plan.run(task, state_directory=tmp_path / "counted", on_progress=lambda *now: told.append(now[2]))
    assert_same_bits(again, undisturbed)
    assert len(told) > 10
    for call in range(1, len(told) + 1):
        folder = tmp_path / str(call)
        with pytest.raises(KilledError):
            plan.run(task, state_directory=folder, on_progress=killed_at(call))
        first: list[int] = []
        continued = plan.run(task, state_directory=folder, on_progress=lambda *now, to=first: to.append(now[0]))
        assert_same_bits(continued, undisturbed)
        # It went on from where it stood: the first step it made is the one that the interruption lost.
        assert len(first) == len(told) - call + 1, call
        shutil.rmtree(folder)


def test_restarts_did_happen() -> None:
    """Guard of the test above: with a basis of eight vectors the mlp takes more products than fit."""
    task = mlp()
    spectrum = plan_spectrum(task, **ASKED).run(task)
    # Products of the pairs: all but the probes' and the check's, with three steps of two probes.
    assert spectrum.whole.num_hvps - 1 - 2 * 3 > 12


def test_interruptions_between_and_within_blocks_change_no_bit(tmp_path: Path) -> None:
    task = mlp()
    asked = {**ASKED, "per_block": True}
    plan = plan_spectrum(task, **asked)
    undisturbed, calls = calls_of(task, plan, **asked)
    for call in range(1, calls + 1, 8):
        folder = tmp_path / str(call)
        with pytest.raises(KilledError):
            plan.run(task, state_directory=folder, on_progress=killed_at(call))
        assert_same_bits(plan.run(task, state_directory=folder), undisturbed)
        shutil.rmtree(folder)


@pytest.mark.parametrize("per_block", [False, True])
def test_a_measurement_killed_again_and_again_ends_the_same(per_block: bool, tmp_path: Path) -> None:
    """Each process gets two steps further, from the first to the last."""
    task = mlp()
    asked = {**ASKED, "per_block": per_block}
    plan = plan_spectrum(task, **asked)
    undisturbed, calls = calls_of(task, plan, **asked)
    spectrum = None
    kills = 0
    while spectrum is None:
        try:
            spectrum = plan.run(task, state_directory=tmp_path, on_progress=killed_at(3))
        except KilledError:
            kills += 1
            assert kills <= calls, "it does not get on"
    assert kills > 5
    assert_same_bits(spectrum, undisturbed)


def test_a_language_model_is_continued_too(tmp_path: Path) -> None:
    task = models.make_task("gpt2", torch.float32)
    plan = plan_spectrum(task, **ASKED)
    undisturbed, calls = calls_of(task, plan, **ASKED)
    for call in (calls // 2, calls - 2):
        folder = tmp_path / str(call)
        with pytest.raises(KilledError):
            plan.run(task, state_directory=folder, on_progress=killed_at(call))
        assert_same_bits(plan.run(task, state_directory=folder), undisturbed)


def test_float64_and_finite_differences_are_continued_too(tmp_path: Path) -> None:
    for index, (dtype, method) in enumerate([(torch.float64, "autograd"), (torch.float64, "finite-differences")]):
        task = models.make_task("mlp", dtype)
        asked = {**ASKED, "method": method}
        plan = plan_spectrum(task, **asked)
        undisturbed, calls = calls_of(task, plan, **asked)
        folder = tmp_path / str(index)
        with pytest.raises(KilledError):
            plan.run(task, state_directory=folder, on_progress=killed_at(calls // 2))
        continued = plan.run(task, state_directory=folder)
        if method == "autograd":
            assert_same_bits(continued, undisturbed)
        else:  # the step is chosen anew on another vector; both are as good
            np.testing.assert_allclose(continued.eigenvalues, undisturbed.eigenvalues, rtol=1e-5)


# -- repeated eigenvalues --------------------------------------------------------------------------------------------


def repeated(folder: Path | None, on_progress: Any = None, *, probes: int = 2) -> Measured:
    """A matrix whose missed pairs send Lanczos into further rounds."""
    matrix = oracles.matrix_with(np.r_[10, 10, 10, 7, 5, -2, np.linspace(-0.5, 1, 74)])
    return OperatorMeasurement(
        MatrixOperator(matrix),
        OperatorRequest(top=3, bottom=1, probes=probes, probe_steps=4),
        basis=KrylovBasis(80, 80, dtype=torch.float64, device=torch.device("cpu")),
        state=SavedState(folder, "one"),
        on_progress=on_progress,
    ).measure()


def test_rounds_that_look_for_missed_pairs_are_continued_bitwise(tmp_path: Path) -> None:
    told: list[str] = []
    undisturbed = repeated(None, lambda *now: told.append(now[2]))
    assert [note.code for note in undisturbed.notes] == ["repeated-eigenvalues"]
    np.testing.assert_allclose(undisturbed.spectrum.eigenvalues, [10, 10, 10], rtol=1e-5)
    different = []
    for call in range(1, len(told) + 1, 4):
        folder = tmp_path / str(call)
        with pytest.raises(KilledError):
            repeated(folder, killed_at(call))
        continued = repeated(folder)
        same = torch.equal(continued.eigenvectors, undisturbed.eigenvectors) and continued.notes == undisturbed.notes
        if not same or continued.spectrum.trace != undisturbed.spectrum.trace:
            different.append(call)
    assert not different, f"of {len(told)} steps these changed the result: {different}"


def test_what_the_probes_took_is_continued_with(tmp_path: Path) -> None:
    """Their products do not count towards those that pairs may take, in another process neither."""
    told: list[str] = []
    undisturbed = repeated(None, lambda *now: told.append(now[2]), probes=60)
    last_of_pairs = max(call for call, label in enumerate(told, start=1) if "pairs" in label)
    assert last_of_pairs > 60 * 4 > OperatorRequest(top=3, bottom=1).product_limit
    with pytest.raises(KilledError):
        repeated(tmp_path, killed_at(last_of_pairs), probes=60)
    continued = repeated(tmp_path, probes=60)
    assert continued.spectrum.stop_reason == "converged"
    assert_same_operator(continued.spectrum, undisturbed.spectrum)


# -- a basis on disk -------------------------------------------------------------------------------------------------


def on_disk(folder: Path | None, file: Path, on_progress: Any = None) -> Measured:
    """A run that restarts, its basis in a file."""
    matrix = oracles.matrix_with(np.r_[10, 9, 8.5, 8, -2, np.linspace(-0.5, 7, 75)])
    return OperatorMeasurement(
        MatrixOperator(matrix),
        OperatorRequest(top=3, bottom=1, probes=2, probe_steps=4),
        basis=KrylovBasis(80, 12, dtype=torch.float64, device=torch.device("cpu"), file=file),
        state=SavedState(folder, "one"),
        on_progress=on_progress,
    ).measure()


@pytest.mark.parametrize("has_second_names", [True, False], ids=["linked", "copied"])
def test_a_basis_on_disk_is_continued_bitwise(
    has_second_names: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after restarts, and once more after it was continued."""
    if not has_second_names:
        monkeypatch.setattr("os.link", refused)
    monkeypatch.setattr(resumable, "_LONGEST_INTERVAL", 0.0)
    told: list[str] = []
    undisturbed = on_disk(None, tmp_path / "whole.bin", lambda *now: told.append(now[2]))
    assert len(told) > 20  # a basis of twelve has restarted
    different, shared = [], []
    for call in range(2, len(told) - 1, 5):
        folder, file = tmp_path / str(call), tmp_path / f"{call}.bin"
        with pytest.raises(KilledError):
            on_disk(folder, file, killed_at(call))
        with pytest.raises(KilledError):
            on_disk(folder, file, killed_at(2))
        (saved,) = folder.glob("basis-*.bin")
        shared.append(saved.samefile(file))  # not where a restart came after the save
        continued = on_disk(folder, file)
        if not torch.equal(continued.eigenvectors, undisturbed.eigenvectors):
            different.append(call)
    assert not different
    assert any(shared) == has_second_names


def refused(*asked: Any, **named: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_what_a_measurement_on_disk_reads_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows, saved after every step: each is written as it comes and once more rotated, and saved by no copy."""
    monkeypatch.setattr(resumable, "_LONGEST_INTERVAL", 0.0)
    matrix = oracles.matrix_with(np.r_[100, 50, 20, -10, np.linspace(-0.5, 1, 76)])
    file, folder = tmp_path / "basis.bin", tmp_path / "state"
    basis = KrylovBasis(80, 40, dtype=torch.float64, device=torch.device("cpu"), file=file)
    measurement = OperatorMeasurement(
        MatrixOperator(matrix),
        OperatorRequest(top=2, bottom=1, probes=2, probe_steps=5),
        basis=basis,
        state=SavedState(folder, "one"),
    )
    measurement.measure()
    size, wanted = basis.size, 3
    assert (measurement.run.restarts, measurement.rounds) == (0, 0)
    assert basis.rows_written == 2 * size
    steps = sum(2 * k + 1 for k in range(size))  # two passes each
    saves = 2 * size  # what is new is hashed, and what is rotated
    end = 2 * size + 2 * wanted  # the last vector is finished, all rotated, the residuals checked
    probes = 2 * (4 * wanted + 2 * size + 5 * 2 * wanted)  # made orthogonal to the pairs, at first to the whole basis
    assert basis.rows_read == steps + saves + end + probes
    assert (folder / f"basis-{measurement.epoch}.bin").samefile(file)


def test_what_was_saved_of_a_basis_on_disk_outlives_rotations_and_what_follows(tmp_path: Path) -> None:
    """The saved rows are the file's own: nothing is written twice, and nothing changes them."""
    state, file = SavedState(tmp_path / "state", "one"), tmp_path / "basis.bin"
    basis = KrylovBasis(5, 4, dtype=torch.float32, device=torch.device("cpu"), file=file)
    basis.append(torch.arange(10.0).view(2, 5))
    state.save({}, basis=basis, epoch=0, vectors=[])
    saved = tmp_path / "state" / "basis-0.bin"
    assert saved.samefile(file)
    basis.append(torch.ones(1, 5))
    basis.rotate(torch.eye(3, dtype=torch.float64).flip(0))
    assert not saved.samefile(file)
    assert torch.equal(basis.filled, torch.tensor([[1.0] * 5, [5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]))

    def loaded() -> torch.Tensor:
        found = SavedState(tmp_path / "state", "one").load(5, torch.float32)
        assert found is not None
        return torch.stack(list(found[1]))

    assert torch.equal(loaded(), torch.arange(10.0).view(2, 5))
    state.save({}, basis=basis, epoch=1, vectors=[])
    assert not saved.exists()
    assert (tmp_path / "state" / "basis-1.bin").samefile(file)
    assert torch.equal(loaded(), basis.filled)
    # A process that continues writes its rows to another file of the same name; the saved one stays until its save.
    again = KrylovBasis(5, 4, dtype=torch.float32, device=torch.device("cpu"), file=file)
    assert torch.equal(loaded(), basis.filled)
    continuing = SavedState(tmp_path / "state", "one")
    found = continuing.load(5, torch.float32)
    assert found is not None
    again.append(found[1])
    again.append(torch.zeros(1, 5))
    continuing.save({}, basis=again, epoch=1, vectors=[])
    assert (tmp_path / "state" / "basis-1.bin").samefile(file)
    assert torch.equal(loaded(), again.filled)


def test_a_link_in_the_place_of_the_basis_is_not_saved(tmp_path: Path) -> None:
    """What somebody put there under the file's name is not ours: the rows are copied then."""
    file, other = tmp_path / "basis.bin", tmp_path / "other.bin"
    basis = KrylovBasis(5, 4, dtype=torch.float32, device=torch.device("cpu"), file=file)
    basis.append(torch.ones(2, 5))
    file.unlink()
    other.write_bytes(b"other")
    file.symlink_to(other)
    SavedState(tmp_path / "state", "one").save({}, basis=basis, epoch=0, vectors=[])
    saved = tmp_path / "state" / "basis-0.bin"
    assert not saved.is_symlink()
    assert saved.read_bytes() == basis.filled.numpy().tobytes()
    assert other.read_bytes() == b"other"
    assert [path.name for path in (tmp_path / "state").glob("basis*")] == ["basis-0.bin"]


# -- what is not continued -------------------------------------------------------------------------------------------


def interrupted(task: Task, folder: Path, call: int = 8, **asked: Any) -> SpectrumPlan:
    """Leave a half-finished measurement in a folder."""
    plan = plan_spectrum(task, **{**ASKED, **asked})
    with pytest.raises(KilledError):
        plan.run(task, state_directory=folder, on_progress=killed_at(call))
    return plan


def first_product(task: Task, folder: Path, **asked: Any) -> tuple[Spectrum, int]:
    """Measure, and tell at which product it began."""
    done: list[int] = []
    spectrum = measure_spectrum(
        task, **{**ASKED, **asked}, state_directory=folder, on_progress=lambda *now: done.append(now[0])
    )
    return spectrum, done[0]


def test_a_continued_measurement_begins_where_it_stood(tmp_path: Path) -> None:
    """Guard of the tests below, in which it begins at 1."""
    interrupted(mlp(), tmp_path)
    assert first_product(mlp(), tmp_path)[1] == 8


@pytest.mark.parametrize("asked", [{"seed": 1}, {"tolerance": 5e-3}, {"top": 3}, {"operator": "ggn"}], ids=str)
def test_a_state_of_another_request_is_not_continued(asked: dict[str, Any], tmp_path: Path) -> None:
    interrupted(mlp(), tmp_path)
    spectrum, began = first_product(mlp(), tmp_path, **asked)
    assert began == 1
    assert_same_bits(spectrum, measure_spectrum(mlp(), **{**ASKED, **asked}))


def test_a_state_of_other_weights_is_not_continued(tmp_path: Path) -> None:
    interrupted(mlp(), tmp_path)
    task = mlp()
    with torch.no_grad():
        next(task.model.parameters())[0, 0] += 1e-3
    spectrum, began = first_product(task, tmp_path)
    assert began == 1
    assert_same_bits(spectrum, measure_spectrum(task, **ASKED))


def basis_with(rows: torch.Tensor) -> KrylovBasis:
    basis = KrylovBasis(rows.shape[1], len(rows), dtype=rows.dtype, device=rows.device)
    basis.append(rows)
    return basis


def test_a_saved_state_tells_its_fingerprint(tmp_path: Path) -> None:
    """One operator's state by itself: what was saved comes back, and to nobody else."""
    basis, vectors = basis_with(torch.arange(6.0).view(2, 3)), torch.ones(1, 3)
    SavedState(tmp_path, "one").save({"number": 0.1}, basis=basis, epoch=0, vectors=[vectors, vectors[:0]])
    loaded = SavedState(tmp_path, "one").load(3, torch.float32)
    assert loaded is not None
    head, rows, blocks = loaded
    assert head == {"number": 0.1}
    assert torch.equal(torch.stack(list(rows)), basis.filled)
    assert torch.equal(blocks[0], vectors)
    assert blocks[1].shape == (0, 3)
    assert SavedState(tmp_path, "two").load(3, torch.float32) is None
    assert SavedState(None, "one").load(3, torch.float32) is None


def damage(spectrum: Spectrum) -> list[str]:
    """The files that the notes say were damaged."""
    notes = [note.message for note in spectrum.notes if note.code == "damaged-state"]
    assert all(note.startswith("the saved state was damaged, measured from the start: expected") for note in notes)
    return [match[1] for note in notes if (match := re.search(r"/([^/]+\.(json|bin|safetensors))", note))]


def undamaged(spectrum: Spectrum) -> Spectrum:
    """Without the notes of damage."""
    return replace(spectrum, notes=tuple(note for note in spectrum.notes if note.code != "damaged-state"))


def saved_file(folder: Path, pattern: str) -> Path:
    (path,) = (folder / "spectrum.state" / "whole" / "running").glob(pattern)
    return path


@pytest.mark.parametrize("pattern", ["head.json", "basis-*.bin", "vectors-*.bin"])
@pytest.mark.parametrize("what", ["cut in half", "cut by one byte", "empty", "missing"])
def test_a_damaged_state_starts_anew(what: str, pattern: str, tmp_path: Path) -> None:
    interrupted(mlp(), tmp_path)
    path = saved_file(tmp_path, pattern)
    content = path.read_bytes()
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut in half": content[: len(content) // 2], "cut by one byte": content[:-1]}.get(what, b""))
    spectrum, began = first_product(mlp(), tmp_path)
    assert began == 1
    assert damage(spectrum) == ([] if (what, pattern) == ("missing", "head.json") else [path.name])
    assert_same_bits(undamaged(spectrum), in_one_go())


@pytest.mark.parametrize("text", ["[]", "null", "{}", "3", '{"fingerprint": 7}'])
def test_a_head_of_something_else_starts_anew(text: str, tmp_path: Path) -> None:
    interrupted(mlp(), tmp_path)
    saved_file(tmp_path, "head.json").write_text(text)
    assert first_product(mlp(), tmp_path)[1] == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
def test_a_damaged_layout_starts_anew(text: str, tmp_path: Path) -> None:
    """Without its memory layout a state could not be continued with the same bits."""
    interrupted(mlp(), tmp_path)
    (tmp_path / "spectrum.state" / "layout.json").write_text(text)
    spectrum, began = first_product(mlp(), tmp_path)
    assert began == 1
    assert damage(spectrum) == ["layout.json"]
    assert_same_bits(undamaged(spectrum), in_one_go())


@pytest.mark.parametrize("pattern", ["basis-*.bin", "vectors-*.bin"])
@pytest.mark.parametrize("what", ["zeroed", "one bit", "rows exchanged"])
def test_damaged_vectors_are_not_continued_from(what: str, pattern: str, tmp_path: Path) -> None:
    """Under residuals that the head had saved they would give other eigenvalues, and nothing would show it."""
    interrupted(mlp(), tmp_path)
    path = saved_file(tmp_path, pattern)
    content = path.read_bytes()
    path.write_bytes(
        {
            "zeroed": bytes(len(content)),
            "one bit": content[:-1] + bytes([content[-1] ^ 1]),
            "rows exchanged": content[len(content) // 2 :] + content[: len(content) // 2],
        }[what]
    )
    spectrum, began = first_product(mlp(), tmp_path)
    assert began == 1
    assert damage(spectrum) == [path.name]
    assert_same_bits(undamaged(spectrum), in_one_go())


def test_a_state_that_was_continued_is_damaged_like_any_other(tmp_path: Path) -> None:
    """The digest goes on over the rows that an earlier process wrote."""
    plan = interrupted(mlp(), tmp_path, call=5)
    with pytest.raises(KilledError):
        plan.run(mlp(), state_directory=tmp_path, on_progress=killed_at(4))
    whole = saved_file(tmp_path, "basis-*.bin").read_bytes()
    spectrum, began = first_product(mlp(), Path(shutil.copytree(tmp_path, tmp_path.with_name("copy"))))
    assert began == 8
    assert damage(spectrum) == []
    path = saved_file(tmp_path, "basis-*.bin")
    path.write_bytes(bytes(4) + whole[4:])
    spectrum, began = first_product(mlp(), tmp_path)
    assert began == 1
    assert damage(spectrum) == [path.name]


def _mutations() -> Mapping[str, Callable[[Path], None]]:
    """Ways in which a file can be no longer what was saved."""

    def text(change: Callable[[str], str]) -> Callable[[Path], None]:
        return lambda path: path.write_text(change(path.read_text(errors="surrogateescape")), errors="surrogateescape")

    def bits(seed: int) -> Callable[[Path], None]:
        def flip(path: Path) -> None:
            rng, content = np.random.default_rng(seed), bytearray(path.read_bytes())
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)

        return flip

    def instead(make: Callable[[Path], Any]) -> Callable[[Path], None]:
        def replace_it(path: Path) -> None:
            path.unlink()
            make(path)

        return replace_it

    return {
        **{f"bit {seed}": bits(seed) for seed in range(4)},
        "a list for numbers": text(lambda head: re.sub(r"\d+", "[]", head)),
        "negative": text(lambda head: re.sub(r":(\d)", r":-\1", head)),
        "huge": text(lambda head: re.sub(r":(\d)", r":9999999999\1", head)),
        "endless digits": text(lambda head: re.sub(r":(\d)", ":" + "9" * 5000, head)),
        "NaN": text(lambda head: re.sub(r":\d+", ":NaN", head)),
        "nothing": text(lambda head: re.sub(r":\d+", ":null", head)),
        "paths": text(lambda head: re.sub(r":\d+", ':"../../../../etc"', head)),
        "other names": text(lambda head: head.replace('"', '"x')),
        "deep": text(lambda head: "[" * 100_000),
        "deep within": text(lambda head: head.replace(":0", ":" + "[" * 500 + "]" * 500)),
        "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
        "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "a terabyte": lambda path: os.truncate(path, 2**40),
        "a pipe": instead(os.mkfifo),
        "a folder": instead(lambda path: (path / "within").mkdir(parents=True)),
        "endless": instead(lambda path: path.symlink_to("/dev/zero")),
        "a link to itself": instead(lambda path: path.symlink_to(path)),
    }


MUTATIONS = _mutations()


@pytest.mark.parametrize("what", list(MUTATIONS))
def test_whatever_happens_to_a_saved_file_the_numbers_are_the_same(what: str, tmp_path: Path) -> None:
    task = mlp()
    plan = interrupted(task, tmp_path / "running")
    undisturbed = plan.run(task, state_directory=tmp_path / "finished")
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 7, files  # twice the layout; head, basis and vectors; head and arrays
    for index, (stage, *rest) in enumerate(file.parts for file in files):
        folder = tmp_path / str(index)
        shutil.copytree(tmp_path / stage, folder)
        MUTATIONS[what](folder.joinpath(*rest))
        spectrum = plan.run(task, state_directory=folder)
        assert_same_bits(undamaged(spectrum), undisturbed)


@pytest.mark.parametrize(
    "where", ["", "layout.json", "whole", "whole/basis.bin", "whole/running", "whole/running/head.json"]
)
def test_nothing_is_written_or_removed_through_a_link(where: str, tmp_path: Path) -> None:
    """A run directory may have come with a checkpoint, its links leading anywhere."""
    run, mine = tmp_path / "run", tmp_path / "mine"
    task = mlp()
    plan = laid_out(plan_spectrum(task, **ASKED), basis_placement="disk")
    with pytest.raises(KilledError):
        plan.run(task, state_directory=run, on_progress=killed_at(8))
    link = run / "spectrum.state" / where
    link.rename(mine)
    link.symlink_to(mine)
    before = contents(mine)
    spectrum = plan.run(task, state_directory=run)
    assert contents(mine) == before
    assert_same_bits(undamaged(spectrum), laid_out(plan, basis_placement="cpu").run(task))
    discard_state(run, "spectrum")
    assert list(run.iterdir()) == []
    assert contents(mine) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_is_written_or_removed_through_a_link_to_a_rank_s_folder(rank: int, tmp_path: Path) -> None:
    """The first rank looks at the folders of all; each at its own."""
    ranks, mine, folder = OneOfTwo(rank), tmp_path / "mine", tmp_path / "whole"
    mine.mkdir()
    for name in ("basis.bin", "basis-0.bin", "vectors-1.bin", "pytorch_model-1-of-2.bin"):
        (mine / name).write_bytes(b"mine")
    before = contents(mine)
    layout = ParameterLayout([("weight", torch.nn.Parameter(torch.zeros(2 * CHUNK)))])
    state = SavedState(folder / "running", "one", ranks)
    for parent in (folder, folder / "running"):
        parent.mkdir()
        (parent / ranks.name).symlink_to(mine)
    basis = laid_out(plan_spectrum(mlp(), **ASKED), basis_placement="disk").layout.basis(layout, 1, folder, ranks)
    state.save({}, basis=basis, epoch=0, vectors=[])
    assert contents(mine) == before
    saved = folder / "running" / ranks.name
    (mine / "saved").mkdir()
    moved = saved.rename(mine / "saved" / ranks.name)
    saved.symlink_to(moved)
    continuing = SavedState(folder / "running", "one", ranks)
    assert continuing.load(basis.vector_size, torch.float32) is None  # it would go on there
    assert not saved.is_symlink()


def test_vectors_put_together_on_disk_are_not_written_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    (tmp_path / "vectors.bin").symlink_to(mine)
    basis = KrylovBasis(5, 2, dtype=torch.float32, device=torch.device("cpu"), ranks=OneOfTwo(0))
    basis.append(torch.eye(5)[:2])
    task = replace(mlp(), ranks=basis.ranks)
    plan = laid_out(plan_spectrum(mlp(), **ASKED), basis_placement="disk")
    found = _Session(task, plan, ResumableRun(None, ""))._vectors(basis, 2, tmp_path)
    np.testing.assert_array_equal(found, np.eye(5, 2))
    assert mine.read_bytes() == b"mine"


def contents(path: Path) -> dict[Path, bytes]:
    """Every file there, or the file itself."""
    files = [path, *path.rglob("*")]
    return {file: file.read_bytes() for file in files if file.is_file()}


def test_a_saved_basis_that_is_a_link_is_not_appended_to(tmp_path: Path) -> None:
    interrupted(mlp(), tmp_path)
    path, mine = saved_file(tmp_path, "basis-*.bin"), tmp_path / "mine"
    path.rename(mine)
    path.symlink_to(mine)
    before = mine.read_bytes()
    spectrum, began = first_product(mlp(), tmp_path)
    assert began == 1
    assert damage(spectrum) == [path.name]
    assert mine.read_bytes() == before


def test_bytes_behind_what_the_head_counts_are_ignored(tmp_path: Path) -> None:
    """A kill between the vectors and the head leaves rows that the head does not know of."""
    interrupted(mlp(), tmp_path)
    with saved_file(tmp_path, "basis-*.bin").open("ab") as file:
        file.write(b"\xff" * 1000)
    (tmp_path / "spectrum.state" / "whole" / "running" / "vectors-99999.bin").write_bytes(b"left over")
    spectrum, began = first_product(mlp(), tmp_path)
    assert began == 8
    assert_same_bits(spectrum, in_one_go())


def test_a_continued_measurement_keeps_its_memory_layout(tmp_path: Path) -> None:
    """More or less memory at the second call must not change how sums are rounded."""
    task = mlp()
    plan = interrupted(task, tmp_path)
    undisturbed = plan.run(task)
    other = laid_out(plan, kept_graphs=0, vectors_per_pass=4, basis_columns=8)
    assert_same_bits(other.run(task, state_directory=tmp_path), undisturbed)
    begun = json.loads((tmp_path / "spectrum.state" / "layout.json").read_text())["content"]["value"]
    assert begun["layout"]["vectors_per_pass"] == plan.layout.vectors_per_pass


def test_parts_of_batches_are_continued_where_whole_ones_are_planned(tmp_path: Path) -> None:
    """What rows a graph is of is a number, or none."""
    task = mlp()
    whole = plan_spectrum(task, **ASKED)
    assert whole.layout.rows is None
    parts = laid_out(whole, rows=2, kept_graphs=0, graph_mode="recomputed")
    for begun, other in ((parts, whole), (whole, parts)):
        folder = tmp_path / str(begun.layout.rows)
        with pytest.raises(KilledError):
            begun.run(task, state_directory=folder, on_progress=killed_at(8))
        done: list[int] = []
        continued = other.run(task, state_directory=folder, on_progress=lambda *now, done=done: done.append(now[0]))
        assert done[0] == 8
        assert_same_bits(continued, begun.run(task))


def test_less_memory_than_a_layout_takes_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was killed for memory is tried again with less; its plan is then what is run."""
    monkeypatch.setattr(planning, "probe_costs", of_rows)
    task = models.make_task("llama", torch.float32)
    asked: dict[str, Any] = {"top": 2, "bottom": 1, "probes": 2, "probe_steps": 2, "tolerance": 0.1}
    ample, tight = (plan_spectrum(task, **asked, memory=memory * _GIB) for memory in (10_000, 52))
    assert (ample.layout.rows, ample.layout.basis_placement) == (None, "device")
    with pytest.raises(KilledError):
        ample.run(task, state_directory=tmp_path, on_progress=killed_at(8))
    assert tight.as_begun(task, tmp_path) == tight
    told: list[int] = []

    def stop(done: int, expected: int, label: str) -> None:
        told.append(done)
        if len(told) == 8:
            raise KilledError

    with pytest.raises(KilledError):
        tight.run(task, state_directory=tmp_path, on_progress=stop)
    assert told[0] == 1
    # It goes on as it began where there is room for it, or where what is free decides: so do plan and disk.
    for plan in (ample, replace(ample, request=replace(ample.request, memory=None))):
        continuing = plan.as_begun(task, tmp_path)
        assert continuing.layout == tight.layout
        assert "graphs rebuilt, batches in parts of 1 row, basis of" in continuing.summary()
        assert "on disk" in continuing.summary()
        assert continuing.memory_bytes < plan.memory_bytes
        assert continuing.scratch_bytes == tight.scratch_bytes != plan.scratch_bytes
    spectrum = tight.run(task, state_directory=tmp_path, on_progress=lambda *now: told.append(now[0]))
    assert told[8] == 8
    assert spectrum.notes == ()
    assert "on disk" in spectrum.provenance.details["basis"]


def test_what_is_measured_anew_is_noted(tmp_path: Path) -> None:
    plan = interrupted(mlp(), tmp_path)
    tight = laid_out(replace(plan, request=replace(plan.request, memory=1)), basis_columns=8)
    spectrum = tight.run(mlp(), state_directory=tmp_path)
    (note,) = spectrum.notes
    assert note.code == "begun-anew"
    assert note.message.endswith("as it was laid out, the memory allowed now has no room for it")
    assert_same_bits(replace(spectrum, notes=()), tight.run(mlp()))


def test_the_memory_that_it_began_with_is_enough(tmp_path: Path) -> None:
    """What a plan counts varies a little from run to run: the same command continues all the same."""
    plan = plan_spectrum(mlp(), **ASKED, memory=2**40)
    with pytest.raises(KilledError):
        plan.run(mlp(), state_directory=tmp_path, on_progress=killed_at(8))
    larger = replace(plan.ground, costs=replace(plan.ground.costs, product_bytes=2**41))
    assert replace(plan, ground=larger).as_begun(mlp(), tmp_path).layout == plan.layout
    other = laid_out(replace(plan, ground=larger), basis_columns=8)
    assert other.as_begun(mlp(), tmp_path).layout == plan.layout
    less = replace(other, request=replace(plan.request, memory=2**40 - 1))
    assert less.as_begun(mlp(), tmp_path).layout == other.layout
    # Less that was enough once is enough, though a plan counts a little more the next time.
    ResumableRun(tmp_path / "spectrum.state", plan.fingerprint).pin(
        plan.begun(layout=plan.layout, multiplication=plan.multiplication, memory=2**40 - 1)
    )
    assert less.as_begun(mlp(), tmp_path).layout == plan.layout


@pytest.mark.parametrize(
    "edit", [{"rows": "two"}, {"kept_graphs": None}, {"basis_placement": "moon"}, {"more": 1}], ids=str
)
def test_choices_that_are_none_of_ours_are_not_continued(edit: dict[str, Any], tmp_path: Path) -> None:
    plan = interrupted(mlp(), tmp_path)
    folder = tmp_path / "spectrum.state"
    choices = ResumableRun(folder, plan.fingerprint).read("layout.json")
    choices["layout"] |= edit
    ResumableRun(folder, plan.fingerprint).write("layout.json", choices)
    spectrum, began = first_product(mlp(), tmp_path)
    assert began == 1
    (note,) = spectrum.notes
    assert note.code == "begun-anew"
    assert note.message.endswith("as it was laid out, it cannot be read")


# -- afterwards ------------------------------------------------------------------------------------------------------


def test_a_finished_measurement_is_taken_from_disk(tmp_path: Path) -> None:
    first = measure_spectrum(mlp(), **ASKED, state_directory=tmp_path, per_block=True)
    told: list[str] = []
    again = measure_spectrum(
        mlp(), **ASKED, state_directory=tmp_path, per_block=True, on_progress=lambda *now: told.append(now[2])
    )
    assert told == []
    assert_same_bits(again, first)


def test_discarding_removes_all(tmp_path: Path) -> None:
    other = tmp_path / "spectrum.json"
    other.write_text("the result")
    interrupted(mlp(), tmp_path)
    assert (tmp_path / "spectrum.state").is_dir()
    discard_state(tmp_path, "spectrum")
    assert list(tmp_path.iterdir()) == [other]
    discard_state(tmp_path, "spectrum")  # nothing to remove is no error
    assert first_product(mlp(), tmp_path)[1] == 1


def test_a_running_state_is_removed_when_its_operator_is_finished(tmp_path: Path) -> None:
    measure_spectrum(mlp(), **ASKED, state_directory=tmp_path)
    assert not (tmp_path / "spectrum.state" / "whole" / "running").exists()


def test_superseded_files_are_removed_while_it_runs(tmp_path: Path) -> None:
    interrupted(mlp(), tmp_path, call=15)
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "spectrum.state" / "whole" / "running").iterdir())
    assert names == ["basis", "head.json", "vectors"]


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measure_spectrum(mlp(), **ASKED)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(OutputError, match="expected"):
        measure_spectrum(mlp(), **ASKED, state_directory=occupied)


def test_a_disk_that_fills_up_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, row: Any, digest: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, "_write_row", full)
    with pytest.raises(OutputError, match=r"expected to save the measurement's state in .*, got No space left"):
        measure_spectrum(mlp(), **ASKED, state_directory=tmp_path)


# -- when ------------------------------------------------------------------------------------------------------------


class _Clock:
    """Time that passes when told to, and by a second whenever it is asked within a save."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_saving_takes_at_most_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real `due`
    clock = _Clock()
    monkeypatch.setattr(resumable, "time", clock)
    state = SavedState(tmp_path, "one")
    assert state.due  # nothing is known to cost anything yet
    sync = states._sync

    def slow_sync(file: Any) -> None:
        clock.now += 0.5  # twice in a save
        sync(file)

    monkeypatch.setattr(states, "_sync", slow_sync)
    state.save({}, basis=basis_with(torch.zeros(2, 3)), epoch=0, vectors=[torch.zeros(1, 3)])
    assert not state.due
    clock.now += 19.9
    assert not state.due
    clock.now += 0.2
    assert state.due
    # However long a save takes, a kill loses no more than about a minute.
    state._clock._last_cost = 1000.0
    clock.now += 60.0
    assert state.due
    assert not SavedState(None, "one").due

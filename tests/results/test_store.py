"""Results on disk: exact round trips, refusals that say why, and nothing half-written."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lite_probe.errors import InputError, NumericsError, OutputError
from lite_probe.results import arrays as arrays_module
from lite_probe.results import store
from lite_probe.results.arrays import ArraysFile, write_arrays
from lite_probe.results.record import decode_record, encode_record, formerly
from lite_probe.results.sealing import MAX_JSON_BYTES, digest_of, open_sealed, seal, unseal, write_sealed
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import find_result, load, register, save, write_atomically
from tests.reports.fixtures import make_spectrum


def assert_same(left: object, right: object, place: str = "result") -> None:
    """Compare two records field by field, arrays bitwise."""
    if is_dataclass(left):
        assert type(left) is type(right), place
        for item in fields(left):
            assert_same(getattr(left, item.name), getattr(right, item.name), f"{place}.{item.name}")
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), place
        assert left.tobytes() == right.tobytes(), place
    elif isinstance(left, tuple):
        assert type(right) is tuple, place
        for index, (mine, theirs) in enumerate(zip(left, right, strict=True)):
            assert_same(mine, theirs, f"{place}.{index}")
    elif isinstance(left, dict):
        assert list(left) == list(right), place
        for key in left:
            assert_same(left[key], right[key], f"{place}.{key}")
    else:
        assert (left, type(left)) == (right, type(right)), place


def with_eigenvectors(spectrum: Spectrum, size: int = 1000) -> Spectrum:
    whole = replace(spectrum.whole, num_parameters=size)
    pairs = len(whole.eigenvalues) + len(whole.lower_eigenvalues)
    columns = np.random.default_rng(5).standard_normal((size, pairs)).astype(np.float32)
    return replace(spectrum, whole=whole, eigenvectors=columns)


@pytest.fixture(scope="module")
def spectrum() -> Spectrum:
    return with_eigenvectors(make_spectrum())


def test_round_trip_is_exact(spectrum, tmp_path):
    path = save(spectrum, tmp_path / "probe" / "run")
    assert path == tmp_path / "probe" / "run" / "spectrum.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["spectrum.json", "spectrum.safetensors"]
    for loaded in (load(path), load(path.parent), load(path.parent, "spectrum")):
        assert_same(spectrum, loaded)


def test_head_is_plain_json_and_arrays_are_plain_safetensors(spectrum, tmp_path):
    path = save(spectrum, tmp_path)
    head = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (head["kind"], head["schema_version"]) == ("spectrum", 1)
    assert head["result"]["loss"] == spectrum.loss
    assert head["result"]["notes"][0]["code"] == "unused-parameters"
    columns = safetensors.numpy.load_file(tmp_path / "spectrum.safetensors")
    np.testing.assert_array_equal(columns["eigenvectors"], spectrum.eigenvectors)
    np.testing.assert_array_equal(columns["blocks.qk.converged"], spectrum.blocks["qk"].converged)


def test_saving_twice_gives_the_same_bytes(spectrum, tmp_path):
    first, second = save(spectrum, tmp_path / "a"), save(load(save(spectrum, tmp_path / "b")), tmp_path / "c")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".safetensors").read_bytes() == second.with_suffix(".safetensors").read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    label: str
    values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Every shape of field a result may have."""

    number: float
    count: int
    flag: bool
    mode: Literal["a", "b"]
    missing: str | None
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None
    inner: tuple[Inner, ...] = ()
    config: dict[str, object] = field(default_factory=dict)
    fingerprint: str = ""


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
SAMPLES = st.builds(
    Sample,
    number=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(),
    flag=st.booleans(),
    mode=st.sampled_from(["a", "b"]),
    missing=st.none() | st.text(),
    matrix=hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    mask=st.none() | hnp.arrays(np.bool_, SHAPES),
    inner=st.lists(st.builds(Inner, label=st.text(), values=hnp.arrays(np.int64, SHAPES)), max_size=2).map(tuple),
    fingerprint=st.text(),
)


@given(sample=SAMPLES)
@settings(max_examples=60, deadline=None)
def test_round_trip_of_any_record(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    fields_, arrays = encode_record(sample)
    with (folder / "a.safetensors").open("wb") as file:
        write_arrays(file, arrays)
    text = json.dumps(fields_, allow_nan=False)
    decoded = decode_record(Sample, json.loads(text), ArraysFile(folder / "a.safetensors"))
    assert_same(sample, decoded)
    for name, array in safetensors.numpy.load_file(folder / "a.safetensors").items():
        assert array.tobytes() == arrays[name].tobytes()


@given(
    config=st.dictionaries(
        st.text(),
        st.recursive(SCALARS, lambda v: st.lists(v, max_size=3).map(tuple) | st.dictionaries(st.text(), v, max_size=2)),
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_config_of_any_json_round_trips(config, spectrum):
    small = replace(spectrum, config=config)
    fields_, arrays = encode_record(small)
    decoded = decode_record(Spectrum, json.loads(json.dumps(fields_, allow_nan=False)), InMemory(arrays))
    assert_same(config, decoded.config)


class InMemory:
    def __init__(self, arrays):
        self.arrays = arrays

    @property
    def names(self):
        return tuple(self.arrays)

    def read(self, name):
        return self.arrays[name]


def test_numpy_scalars_in_config_become_json_numbers(spectrum, tmp_path):
    changed = replace(spectrum, config={"top": np.int64(3), "tolerance": np.float32(0.5), "on": np.bool_(True)})
    assert load(save(changed, tmp_path)).config == {"top": 3, "tolerance": 0.5, "on": True}


def test_large_arrays_are_mapped_read_only(spectrum, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "LARGE_BYTES", 10_000)
    loaded = load(save(spectrum, tmp_path))
    assert isinstance(loaded.eigenvectors, np.memmap)
    assert not isinstance(loaded.whole.nodes, np.memmap)
    np.testing.assert_array_equal(loaded.eigenvectors, spectrum.eigenvectors)
    with pytest.raises(ValueError, match="read-only"):
        loaded.eigenvectors[0, 0] = 1.0


def test_saving_over_a_mapped_result_keeps_what_is_mapped(spectrum, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "LARGE_BYTES", 10_000)
    loaded = load(save(spectrum, tmp_path))
    save(replace(loaded, loss=2.0), tmp_path)
    again = load(tmp_path)
    assert again.loss == 2.0
    np.testing.assert_array_equal(loaded.eigenvectors, again.eigenvectors)


def test_large_arrays_of_another_measurement_are_told_apart(spectrum, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "LARGE_BYTES", 10_000)
    monkeypatch.setattr(arrays_module, "SAMPLE_BYTES", 16)
    path = save(spectrum, tmp_path)
    other = save(replace(spectrum, eigenvectors=-spectrum.eigenvectors), tmp_path / "other")
    other.with_suffix(".safetensors").replace(path.with_suffix(".safetensors"))
    with pytest.raises(InputError, match="expected arrays with digest"):
        load(path)


def test_streams_in_chunks_whatever_the_memory_order(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "CHUNK_BYTES", 64)
    columns = np.asfortranarray(np.random.default_rng(0).standard_normal((33, 5)).astype(np.float32))
    with (tmp_path / "a.safetensors").open("wb") as file:
        write_arrays(file, {"columns": columns, "every_other": columns[::2]})
    loaded = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(loaded["columns"], columns)
    np.testing.assert_array_equal(loaded["every_other"], columns[::2])


def test_a_result_without_arrays_leaves_no_arrays_file(tmp_path, monkeypatch):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Plain:
        fingerprint: str

    monkeypatch.setattr(store, "_KINDS", dict(store._KINDS))
    register("plain", Plain, schema_version=1)
    (tmp_path / "plain.safetensors").write_bytes(b"of an earlier result")
    assert load(save(Plain(fingerprint="f"), tmp_path)) == Plain(fingerprint="f")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.json"]
    assert find_result(tmp_path, "plain", "f") == Plain(fingerprint="f")
    with pytest.raises(ValueError, match="expected a new kind, got 'plain', which is Plain"):
        register("plain", Spectrum, schema_version=1)


# What earlier versions wrote, and later ones


def test_an_older_result_is_read_and_a_newer_one_refused(tmp_path, monkeypatch):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Before:
        atoms: NDArray[np.float64]
        fingerprint: str

    @dataclass(frozen=True, slots=True, kw_only=True)
    class After:
        deflated_eigenvalues: NDArray[np.float64] = field(metadata=formerly("atoms"))
        fingerprint: str
        horizon: int | None = None
        shares: tuple[str, ...] = ()
        unit: str = "nats"
        split: dict[str, float] = field(default_factory=dict)

    monkeypatch.setattr(store, "_KINDS", {})
    register("kind", Before, schema_version=1)
    head = save(Before(atoms=np.arange(3.0), fingerprint="f"), tmp_path)
    monkeypatch.setattr(store, "_KINDS", {})
    register("kind", After, schema_version=2)
    read = load(head)
    np.testing.assert_array_equal(read.deflated_eigenvalues, np.arange(3.0))
    assert (read.horizon, read.shares, read.unit, read.split) == (None, (), "nats", {})
    # What this version writes has its own names, and the version before says that it cannot read it.
    written = json.loads(save(read, tmp_path).read_text())["result"]
    assert written["deflated_eigenvalues"] == {"array": "deflated_eigenvalues"}
    assert load(head).unit == "nats"
    monkeypatch.setattr(store, "_KINDS", {})
    register("kind", Before, schema_version=1)
    with pytest.raises(InputError, match=r"expected schema version 1 or less of kind in .* got 2; measure again"):
        load(head)


def test_a_field_under_two_of_its_names_is_refused():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class After:
        new: int = field(metadata=formerly("old"))

    assert decode_record(After, {"old": 2}, None) == After(new=2)
    with pytest.raises(ValueError, match="unknown fields old in result"):
        decode_record(After, {"new": 1, "old": 2}, None)


# What cannot be saved


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_a_number_that_json_has_not(spectrum, tmp_path, bad):
    with pytest.raises(NumericsError, match=r"expected a finite number in loss, got (nan|inf)"):
        save(replace(spectrum, loss=bad), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_refuses_an_array_that_is_not_finite(spectrum, tmp_path, bad):
    columns = spectrum.eigenvectors.copy()
    columns[7, 1] = bad
    with pytest.raises(NumericsError, match="expected finite numbers in eigenvectors, got NaN or infinity"):
        save(replace(spectrum, eigenvectors=columns), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_refuses_an_integer_that_no_float64_holds(spectrum, tmp_path, number):
    with pytest.raises(NumericsError, match=r"expected a number that a float64 holds in config\.seed, got one of 40"):
        save(replace(spectrum, config={"seed": number}), tmp_path)


def test_refuses_a_head_that_would_be_too_large_to_read(spectrum, tmp_path):
    notes = ("n" * MAX_JSON_BYTES,)
    with pytest.raises(OutputError, match=r"expected at most 16,777,216 bytes for .*spectrum\.json, got 16,7"):
        save(replace(spectrum, config={"notes": notes}), tmp_path)


def test_a_name_that_is_no_utf_8_is_kept(spectrum, tmp_path):
    changed = replace(spectrum, config={"out": "caf\udce9"})
    assert load(save(changed, tmp_path)).config == {"out": "caf\udce9"}


def test_refuses_what_has_no_json_form(spectrum, tmp_path):
    with pytest.raises(TypeError, match=r"expected a value with a JSON form in config\.out, got .*Path"):
        save(replace(spectrum, config={"out": tmp_path}), tmp_path)
    with pytest.raises(TypeError, match="expected names as keys of config, got 3"):
        save(replace(spectrum, config={3: 4}), tmp_path)
    with pytest.raises(TypeError, match="expected elements of type float32 in eigenvectors, got float64"):
        save(replace(spectrum, eigenvectors=spectrum.eigenvectors.astype(np.float64)), tmp_path)
    with pytest.raises(TypeError, match=r"expected a result \(.*Spectrum.*\), got dict"):
        save({}, tmp_path)
    with pytest.raises(TypeError, match="expected float64, int64, float32, bool for a, got complex128"):
        write_arrays(None, {"a": np.zeros(2, dtype=np.complex128)})
    assert list(tmp_path.iterdir()) == []


# What cannot be loaded


def edit_head(path: Path, change) -> None:
    """Change a head as somebody would who makes the digest anew."""
    head = json.loads(path.read_text())
    change(head)
    head["head_digest"] = digest_of({key: value for key, value in head.items() if key != "head_digest"})
    path.write_text(json.dumps(head))


def nested(depth: int) -> dict:
    """A config as deep as JSON's parser allows and nothing of ours is."""
    return {"a": nested(depth - 1)} if depth else {}


REFUSALS = {
    "schema": (
        lambda h: h.update(schema_version=99),
        "expected schema version 1 or less of spectrum .* got 99; ",
    ),
    "kind": (lambda h: h.update(kind="aura"), "expected a result of kind .*spectrum.* got 'aura'; it may come"),
    "format": (lambda h: h.update(format="other"), "expected a result that lite-probe wrote, got other JSON"),
    "format version": (lambda h: h.update(format_version=3), "expected format version 1 or 2 .* got 3; it may come"),
    "long kind": (lambda h: h.update(kind="k" * 999), "got 'k{59}…; it may come"),
    "large integer": (lambda h: h["result"]["whole"].update(num_hvps=10**400), "int too large to convert to float"),
    "large number": (lambda h: h["result"].update(loss=10**400), "int too large to convert to float"),
    "deep config": (lambda h: h["result"].update(config=nested(600)), "maximum recursion depth"),
    "missing field": (lambda h: h["result"].pop("loss"), "expected a valid spectrum .* got: no loss in result"),
    "extra field": (lambda h: h["result"].update(mood=1), "unknown fields mood in result"),
    "wrong type": (lambda h: h["result"].update(loss="low"), "'low' instead of float in loss"),
    "no object": (lambda h: h["result"].update(whole=3), "int instead of the fields of whole"),
    "bool for int": (lambda h: h["result"]["whole"].update(num_hvps=True), "True instead of int in whole.num_hvps"),
    "no digest": (lambda h: h.update(arrays_digest=None), "got: no array "),
    "missing array": (lambda h: h["result"].update(eigenvectors=None), "arrays that no field names: eigenvectors"),
    "extra array": (
        lambda h: h["result"]["blocks"].update(new=h["result"]["blocks"]["qk"]),
        "instead of the array blocks.new",
    ),
    "swapped array": (
        lambda h: h["result"]["whole"].update(eigenvalues={"array": "whole.nodes"}),
        "instead of the array whole.eigenvalues",
    ),
    "bad eigenvectors": (
        lambda h: h["result"]["whole"].update(num_parameters=7),
        r"expected eigenvectors of shape \(7, 15\)",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_a_changed_head(spectrum, tmp_path, name):
    change, message = REFUSALS[name]
    path = save(spectrum, tmp_path)
    edit_head(path, change)
    with pytest.raises(InputError, match=message):
        load(path)
    assert find_result(tmp_path, "spectrum", spectrum.fingerprint) is None


def test_refuses_a_head_that_is_no_json(spectrum, tmp_path):
    path = save(spectrum, tmp_path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"expected the JSON head of a result at .*spectrum\.json.*truncated"):
        load(path)
    for number, message in {
        "NaN": "NaN, where JSON has null",
        "1e999": "1e999, which no float64 holds",
        "9" * 5000: "Exceeds the limit",
        "[" * 10_000 + "]" * 10_000: "maximum recursion depth",
    }.items():
        path.write_text(whole.replace('"loss": 1.4721', f'"loss": {number}'))
        with pytest.raises(InputError, match=message):
            load(path)


def test_refuses_arrays_that_are_missing_truncated_or_changed(spectrum, tmp_path):
    path = save(spectrum, tmp_path)
    arrays = path.with_suffix(".safetensors")
    whole = arrays.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        arrays.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"expected a whole safetensors file in spectrum\.safetensors"):
            load(path)
    arrays.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"expected arrays with digest .* changed or belongs to another"):
        load(path)
    arrays.unlink()
    with pytest.raises(InputError, match=r"expected the arrays of spectrum\.json beside it.*copy it along"):
        load(path)


def test_mutated_arrays_never_load_and_never_crash(spectrum, tmp_path):
    path = save(replace(spectrum, eigenvectors=None, blocks={}), tmp_path)
    arrays = path.with_suffix(".safetensors")
    whole = arrays.read_bytes()
    rng = np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little")
    for position in [*range(8), *rng.integers(8, 8 + header, 80), *rng.integers(0, len(whole), 40)]:
        mutated = bytearray(whole)
        mutated[position] ^= 1 << int(rng.integers(8))
        arrays.write_bytes(mutated)
        with pytest.raises(InputError):
            load(path)


def test_refuses_a_path_that_is_no_result(spectrum, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="expected a result or a run directory, found nothing at"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"expected one of .*spectrum\.json.* got none of them; measure first"):
        load(tmp_path)
    path = save(spectrum, tmp_path)
    with pytest.raises(InputError, match=r"expected a result of kind other in spectrum\.json, got spectrum"):
        load(path, "other")
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(InputError, match=r"expected the JSON head of a result at .*spectrum\.json, got I/O error"):
        load(path)


def test_refuses_arrays_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"expected the arrays of a result at .*gone\.safetensors, got No such file"):
        ArraysFile(tmp_path / "gone.safetensors")


# Digests


def reformatted(path: Path, change) -> None:
    """Change a head as an editor would, who knows of no digest."""
    head = json.loads(path.read_text())
    change(head)
    path.write_text(json.dumps(head))


EDITS = {
    "a number": lambda h: h["result"].update(loss=h["result"]["loss"] * 0.9),
    "a last digit": lambda h: h["result"].update(loss=float(np.nextafter(h["result"]["loss"], 9.0))),
    "an integer for a float": lambda h: h["result"].update(gradient_norm=1),
    "a word": lambda h: h["result"]["whole"].update(stop_reason="complete"),
    "a note": lambda h: h["result"].update(notes=[]),
    "the order of blocks": lambda h: h["result"].update(blocks=dict(reversed(h["result"]["blocks"].items()))),
    "the arrays' digests": lambda h: h.update(arrays_digest="0" * 64, arrays_sha256="0" * 64),
    "no digest": lambda h: h.pop("head_digest"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_head_is_refused(what, spectrum, tmp_path):
    path = save(spectrum, tmp_path)
    reformatted(path, EDITS[what])
    with pytest.raises(InputError, match=r"expected spectrum\.json as it was written, .*measure again with --fresh"):
        load(path)
    told = []
    assert find_result(tmp_path, "spectrum", spectrum.fingerprint, on_damaged=told.append) is None
    assert [type(error) for error in told] == [InputError]


def test_white_space_and_escapes_of_a_head_do_not_matter(spectrum, tmp_path):
    path = save(spectrum, tmp_path)
    reformatted(path, lambda head: None)
    assert_same(spectrum, load(path))


def test_a_head_of_the_first_format_is_read_without_a_digest(spectrum, tmp_path):
    """Results outlive the lite-probe that wrote them."""
    path = save(spectrum, tmp_path)

    def as_before(head):
        for name in ("format_version", "head_digest", "arrays_sha256"):
            head.pop(name)

    reformatted(path, as_before)
    assert_same(spectrum, load(path))


def test_every_byte_of_large_arrays_is_checked_where_they_are_used(spectrum, tmp_path, monkeypatch):
    """A page shows no eigenvectors and need not read them; who measures with them must not take damaged ones."""
    monkeypatch.setattr(arrays_module, "LARGE_BYTES", 10_000)
    monkeypatch.setattr(arrays_module, "SAMPLE_BYTES", 16)
    path = save(spectrum, tmp_path)
    arrays = path.with_suffix(".safetensors")
    content = bytearray(arrays.read_bytes())
    content[-100] ^= 1  # between two samples
    arrays.write_bytes(content)
    assert load(path, thorough=False).loss == spectrum.loss
    with pytest.raises(InputError, match="expected arrays with digest"):
        load(path)
    assert find_result(tmp_path, "spectrum", spectrum.fingerprint) is None


def test_sealed_content_comes_back_or_is_refused(tmp_path):
    path = tmp_path / "sealed.json"
    content = {"b": [0.1, -0.0, 1e-320, 2**70, None, True], "a": "é\udcff"}
    path.write_bytes(seal(content))
    assert json.dumps(unseal(path, "a state")) == json.dumps(content)
    for text in (
        "[]",
        "null",
        "{}",
        '{"digest": 1, "content": 2}',
        json.dumps(json.loads(path.read_text())["content"]),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"expected a state with its own digest at .*sealed\.json"):
            unseal(path, "a state")


def test_a_large_content_comes_back_to_its_owner_only(tmp_path):
    path = tmp_path / "sealed"
    write_atomically(path, lambda file: write_sealed(file, "mine", lambda to: (to.write(b"ab"), to.write(b"c"))))
    whole = path.read_bytes()

    def read(owner):
        with open_sealed(path, owner, "a state") as file:
            return None if file is None else file.read()

    assert read("mine") == b"abc"
    assert read("theirs") is None
    for position in range(64, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(InputError, match=r"expected a state with its own digest at .*sealed, got another"):
            read("mine")
    for content in (b"", whole[:100], whole[:-1], whole + b"d"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="expected a state with its own digest"):
            read("mine")


# Files that are none


def test_what_is_no_file_is_refused_at_once(spectrum, tmp_path):
    path = save(spectrum, tmp_path / "run")
    arrays = path.with_suffix(".safetensors")
    arrays.unlink()
    os.mkfifo(arrays)
    with pytest.raises(InputError, match="which is no regular file"):
        load(path)
    arrays.unlink()
    arrays.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="which is no regular file"):
        load(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="got none of them"):
        load(path.parent)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="expected the JSON head of a result of at most 16,777,216 bytes"):
        load(path)
    save(spectrum, path.parent)
    assert_same(spectrum, load(path))


def test_links_are_replaced_and_not_written_through(spectrum, tmp_path):
    """A run directory may have come with a checkpoint."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.write_text("precious")
    run.mkdir()
    names = ["spectrum.json", "spectrum.safetensors", "spectrum.next.safetensors"]
    for name in [*names, *(f".{name}.{os.getpid()}.part" for name in names)]:
        (run / name).symlink_to(mine)
    save(spectrum, run)
    assert mine.read_text() == "precious"
    assert not any((run / name).is_symlink() for name in names)
    assert_same(spectrum, load(run))


def test_a_link_to_a_folder_is_replaced_too(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.json").symlink_to("folder")
    assert write_atomically(tmp_path / "a.json", lambda file: file.write(b"{}")) == 2
    assert (tmp_path / "a.json").read_text() == "{}"


# Reuse


def test_finds_a_result_by_its_fingerprint(spectrum, tmp_path):
    assert find_result(tmp_path / "nowhere", "spectrum", "f") is None
    save(spectrum, tmp_path)
    assert_same(spectrum, find_result(tmp_path, "spectrum", spectrum.fingerprint))
    assert find_result(tmp_path, "spectrum", "another") is None


# Writing whole or not at all


def test_a_failed_write_leaves_the_earlier_result_and_nothing_else(spectrum, tmp_path, monkeypatch):
    save(spectrum, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(file, arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_arrays", full)
    with pytest.raises(OutputError, match=r"expected space to write .* No space left on device; free some"):
        save(replace(spectrum, loss=9.0), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.json", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_folder_or_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"expected folders above .*, got a file in their place"):
        write_atomically(tmp_path / "file" / "a.json", lambda file: None)
    with pytest.raises(OutputError, match="expected folders above"):
        write_atomically(tmp_path / "file" / "deeper" / "a.json", lambda file: None)
    with pytest.raises(OutputError, match=r"expected a file's name, got the folder .*folder"):
        write_atomically(tmp_path / "folder", lambda file: None)
    with pytest.raises(OutputError, match=r"expected to write .*File name too long"):
        write_atomically(tmp_path / ("n" * 400), lambda file: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_refuses_without_permission(tmp_path, monkeypatch):
    # As root no mode bit forbids anything, so the refusal of the system is put in its place.
    def refuse(self, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"expected to be allowed to write .*Permission denied"):
        write_atomically(tmp_path / "a.json", lambda file: file.write(b"x"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "spectrum.next.safetensors").write_bytes(b"x")
    with pytest.raises(OutputError, match="expected to be allowed to write"):
        store._put_in_place(tmp_path / "spectrum.next.safetensors", tmp_path / "a", wanted=True)


def test_parts_of_killed_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    (tmp_path / f".a.json.{finished.pid}.part").write_text("left by a killed process")
    (tmp_path / f".a.json.{os.getppid()}.part").write_text("still being written")
    (tmp_path / ".a.json.99999999999999999999.part").write_text("of no process this system can have")
    (tmp_path / ".a.json.notes.part").write_text("not ours")
    write_atomically(tmp_path / "a.json", lambda file: file.write(b"{}"))
    kept = {p.name for p in tmp_path.iterdir()}
    assert f".a.json.{finished.pid}.part" not in kept
    assert {"a.json", ".a.json.notes.part", f".a.json.{os.getppid()}.part"} <= kept


def save_and_die(result: Spectrum, run_directory: Path, moment: int, monkeypatch) -> bool:
    """Save in a forked process that is killed before its `moment`-th fsync or rename; True if it survived."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    countdown = iter(range(moment))

    def dying(call):
        def wrapped(*arguments, **keywords):
            if next(countdown, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return wrapped

    for owner, name in ((os, "fsync"), (Path, "replace")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    save(result, run_directory)
    os._exit(0)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_pair_or_the_new(spectrum, tmp_path, monkeypatch):
    doubled = replace(spectrum, loss=2.0, eigenvectors=2 * spectrum.eigenvectors)
    tripled = replace(spectrum, loss=3.0, eigenvectors=3 * spectrum.eigenvectors)
    seen = set()
    survived = False
    moment = 0
    while not survived:
        path = save(spectrum, tmp_path / str(moment))
        survived = save_and_die(doubled, path.parent, moment, monkeypatch)
        loaded = load(path)
        expected = doubled if loaded.loss == 2.0 else spectrum
        assert_same(expected, loaded)
        seen.add((survived, loaded.loss))
        # The save after it must not lose the pair that loads either, wherever it is killed in turn.
        for second in range(12):
            save_and_die(tripled, path.parent, second, monkeypatch)
            assert_same(tripled if load(path).loss == 3.0 else expected, load(path))
        assert load(save(spectrum, path.parent)).loss == spectrum.loss
        assert sorted(p.name for p in path.parent.iterdir()) == ["spectrum.json", "spectrum.safetensors"]
        moment += 1
    assert seen == {(False, spectrum.loss), (False, 2.0), (True, 2.0)}

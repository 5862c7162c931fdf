"""What nodes of `lite-probe tune` hold by `--shards`: refused early, prepared as asked, apart from what judges it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from lite_probe.commands import reuse
from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli
from lite_probe.commands.task import Opened
from lite_probe.commands.tune import TuneMeasuring, command
from tests.commands.running import BATCH, run

SMALL = ("--node-batches", "1", "--warm-batches", "2", "--step-batches", "16", "--replay-steps", "0", "--lr", "0.01")
LANGUAGES = ("de", "en", "es", "fr", "it")
WINDOW = 17  # tokens; one of them is the last target


def distinct(seed: int, size: int) -> str:
    """Return text of 64 different letters and signs, no 17 of which come twice in all likelihood."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/", np.uint8)
    return np.random.default_rng(seed).choice(letters, size).tobytes().decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files, of 2,000 to 10,000 characters."""
    folder = tmp_path_factory.mktemp("files")
    for place, name in enumerate(LANGUAGES):
        (folder / f"{name}.txt").write_text(distinct(place, 2000 * (place + 1)))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five languages in turn, a hundred short texts of each."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [{"text": distinct(place, 60), "lang": LANGUAGES[place % 5], "id": place} for place in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


def measuring(checkpoint: Path, source: Path, *more: object) -> TuneMeasuring:
    arguments = [str(checkpoint), "--data", str(source), *BATCH, *SMALL, *map(str, more)]
    with click.Context(cli) as parent:
        given = command.make_context("tune", arguments, parent=parent).params
    return TuneMeasuring.asked_for(Terminal(""), dict(given))


def opened(checkpoint: Path, source: Path, *more: object) -> tuple[TuneMeasuring, Opened]:
    one = measuring(checkpoint, source, *more)
    return one, one.open()


def texts_of(batches: Any) -> list[str]:
    """Return the windows of batches as text."""
    return [bytes(row.tolist()).decode() for batch in batches for row in batch]


def pieces_of(windows: list[str], length: int) -> Iterator[str]:
    for window in windows:
        yield from (window[start : start + length] for start in range(len(window) - length + 1))


def said(found: Opened, code: str) -> list[str]:
    return [note.message for note in found.notes if note.code == code]


def test_every_file_is_a_nodes_shard(tiny_llama: Path, folder: Path) -> None:
    one, found = opened(tiny_llama, folder, "--shards", "files", "--nodes", 5)
    assert one.request.shards_from == "5 files"
    assert one.request.config["shards"] == "5 files"
    assert len(one.request.shards) == 5
    for name, batches in zip(LANGUAGES, one.request.shards, strict=True):
        assert [tuple(batch.shape) for batch in batches] == [(4, WINDOW), (4, WINDOW)]
        assert {batch.dtype for batch in batches} == {torch.int64}
        content = (folder / f"{name}.txt").read_text()
        assert all(window in content for window in texts_of(batches))
    told = "Shards: 5 files, 2,000 to 10,000 tokens to a node: de.txt, en.txt, es.txt, fr.txt, it.txt."
    assert said(found, "shards") == [told]
    assert said(found, "batches-shared") == []


def test_every_value_of_a_field_is_a_nodes_shard(tiny_llama: Path, rows: Path) -> None:
    one, found = opened(tiny_llama, rows, "--shards", "label:lang", "--nodes", 5)
    assert one.request.shards_from == "5 values of lang"
    known = dict.fromkeys(LANGUAGES, "")
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        known[row["lang"]] += "\n" + row["text"]
    for language, batches in zip(LANGUAGES, one.request.shards, strict=True):
        assert len(texts_of(batches)) == 8
        assert all(window in known[language] for window in texts_of(batches))
    assert said(found, "shards")[0].endswith(": de, en, es, fr, it.")


def write_short(folder: Path, source: str) -> Path:
    """Write text that is hardly longer than what is drawn of it."""
    if source == "rows":
        texts = [{"text": distinct(place, 60), "lang": LANGUAGES[place % 2]} for place in range(50)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
        return folder / "rows.jsonl"
    for place, (name, size) in enumerate((("a.txt", 1200), ("b.txt", 1800), ("val.txt", 600))):
        if source == "validated" or name != "val.txt":
            (folder / name).write_text(distinct(place, size))
    return folder


@pytest.mark.parametrize(
    ("source", "by"), [("files", "files"), ("rows", "label:lang"), ("validated", "files")], ids=lambda value: value
)
def test_nothing_that_judges_is_in_a_nodes_batches(source: str, by: str, tiny_llama: Path, tmp_path: Path) -> None:
    path = write_short(tmp_path, source)
    for seed in range(6):
        one, found = opened(tiny_llama, path, "--shards", by, "--nodes", 2, "--seed", seed)
        assert len(found.task.heldout) == 1
        judging = set(pieces_of(texts_of([*found.task.evaluation, *found.task.heldout]), 8))
        training = set(pieces_of(texts_of(found.task.train), 8))
        own = [list(pieces_of(texts_of(batches), 8)) for batches in one.request.shards]
        drawn = {piece for pieces in own for piece in pieces}
        assert not judging & drawn
        # Neither within a node, from training to validation, nor from node to node.
        assert len(drawn) == sum(map(len, own)) == 2 * 8 * 10
        assert bool(training & drawn) <= bool(said(found, "batches-shared"))


def test_batches_that_training_shares_are_told(tiny_llama: Path, tmp_path: Path) -> None:
    for place, name in enumerate(("a.txt", "b.txt", "val.txt")):
        (tmp_path / name).write_text(distinct(place, 300 if name == "a.txt" else 20_000))
    asked = ("--shards", "files", "--nodes", 2, "--warm-batches", 400)
    one, found = opened(tiny_llama, tmp_path, *asked)
    told = (
        "Batches of 1 of 2 nodes may share text with those that the steps and the replay train on: a shard of theirs "
        "has no room for both."
    )
    assert said(found, "batches-shared") == [told]
    judging = set(pieces_of(texts_of([*found.task.evaluation, *found.task.heldout]), 8))
    training = set(pieces_of(texts_of(found.task.train), 8))
    first, second = (set(pieces_of(texts_of(batches), 8)) for batches in one.request.shards)
    assert not judging & (first | second)
    assert first & training
    assert not second & training


def test_more_shards_than_nodes_are_dealt(tiny_llama: Path, folder: Path) -> None:
    one, found = opened(tiny_llama, folder, "--shards", "files", "--nodes", 2)
    assert one.request.shards_from == "5 files dealt to 2 nodes"
    # it (10,000) | fr (8,000), then es to fr, en to it, and de to the first of 12,000 and 11,000 that holds less.
    assert "5 files dealt to 2 nodes, 14,000 to 16,000 tokens to a node" in said(found, "shards")[0]
    contents = {name: (folder / f"{name}.txt").read_text() for name in LANGUAGES}
    held = [
        {name for name, content in contents.items() for window in texts_of(batches) if window in content}
        for batches in one.request.shards
    ]
    assert not held[0] & held[1]


def test_batches_depend_on_the_seed_alone(tiny_llama: Path, folder: Path) -> None:
    asked = ("--shards", "files", "--nodes", 3)
    first, again, other = (
        torch.stack(
            [
                batch
                for batches in opened(tiny_llama, folder, *asked, "--seed", seed)[0].request.shards
                for batch in batches
            ]
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_by_default_the_tasks_own_batches_are_dealt(tiny_llama: Path, folder: Path) -> None:
    one, found = opened(tiny_llama, folder, "--nodes", 2)
    assert one.request.shards == ()
    assert one.request.shards_from == "dealt in turn"
    assert said(found, "shards") == []


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--shards", "files"), "expected a shard for each of 8 nodes, got 5 files in ", "pass --nodes 5, or divide"),
        (
            ("--shards", "files", "--nodes", 5, "--node-batches", 20),
            "expected room for 160 windows of 17 tokens in the shard of node 1 (de.txt), 40 batches of 4, got room for",
            "lower --node-batches, --batch-size or --seq-len, or --nodes",
        ),
        (
            ("--shards", "label:lang"),
            "expected rows with a field 'lang' in .jsonl, .jsonl.zst or .parquet, got de.txt",
            "or pass another --shards",
        ),
    ],
)
def test_shards_that_do_not_go_round_are_refused(
    arguments: tuple[object, ...], message: str, hint: str, tiny_llama: Path, folder: Path, tmp_path: Path
) -> None:
    found = run("tune", tiny_llama, "--data", folder, "--out", tmp_path / "out", *BATCH, *SMALL, *arguments)
    assert found.exit_code == 3, found.stderr
    assert message in found.stderr
    assert hint in found.stderr
    assert not (tmp_path / "out").exists()


def test_too_few_values_and_a_missing_field_are_named(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    for field, message in {
        "lang": "expected a shard for each of 8 nodes, got 5 values of lang in rows.jsonl",
        "source": "expected a field 'source', got ['id', 'lang', 'text'] in line 1 of rows.jsonl",
    }.items():
        found = run(
            "tune", tiny_llama, "--data", rows, "--out", tmp_path / "out", *BATCH, *SMALL, "--shards", f"label:{field}"
        )
        assert found.exit_code == 3, found.stderr
        assert message in found.stderr


def test_a_single_shard_is_no_advice_for_a_single_node(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(distinct(0, 10_000))
    (tmp_path / "val.txt").write_text(distinct(1, 10_000))
    found = run("tune", tiny_llama, "--data", tmp_path, *BATCH, *SMALL, "--shards", "files")
    assert found.exit_code == 3
    assert "got 1 file in" in found.stderr
    assert "beside its validation files" in found.stderr
    assert "divide the data further, or pass --shards dealt" in found.stderr
    assert "--nodes" not in found.stderr


@pytest.mark.parametrize(
    ("source", "by", "message"),
    [
        ("nothing", "turns", "expected --shards dealt, files or label:FIELD, got 'turns'"),
        ("nothing", "label:", "expected --shards dealt, files or label:FIELD, got 'label:'"),
        ("builtin:python-docs", "files", "expected a folder of files as --data for --shards files, got 'builtin:pyth"),
        ("a.txt", "files", "expected a folder of files as --data for --shards files, got "),
        ("a.txt", "label:lang", "expected rows of .jsonl, .jsonl.zst or .parquet as --data for --shards 'label:lang'"),
        ("builtin:python-docs", "label:lang", "expected rows of .jsonl, .jsonl.zst or .parquet as --data"),
        ("a.jsonl", "label:text", "expected a field other than the text's for --shards, got 'label:text'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(
    source: str, by: str, message: str, tmp_path: Path
) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text("{}")
    path = source if source.startswith("builtin:") else tmp_path / source
    found = run("tune", tmp_path / "no such checkpoint", "--data", path, "--shards", by)
    assert found.exit_code == 2, found.stderr
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_shards_are_refused_with_a_task_of_the_users_own(tmp_path: Path) -> None:
    found = run("tune", "--task", f"{tmp_path / 'mine.py'}:build", "--shards", "files")
    assert found.exit_code == 2
    assert "expected --shards with a checkpoint, got it with --task" in found.stderr
    assert "lp.tune(task, shards=batches_by_node)" in found.stderr


def test_names_out_of_rows_reach_the_terminal_escaped(tiny_llama: Path, tmp_path: Path) -> None:
    labels = ("\x1b[31mred", "two\nlines")
    texts = [{"text": distinct(place, 80), "lang": labels[place % 2]} for place in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    _, found = opened(tiny_llama, tmp_path / "rows.jsonl", "--shards", "label:lang", "--nodes", 2)
    assert said(found, "shards")[0].endswith(r": \x1b[31mred, two\nlines.")


def test_the_file_in_the_working_directory_supplies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite-probe.toml").write_text('shards = "label:lang"\ndata = "rows.jsonl"\nnodes = 4\n')
    with click.Context(cli) as parent:
        given = command.make_context("tune", ["ckpt.pt"], parent=parent).params
        flagged = command.make_context("tune", ["ckpt.pt", "--shards", "dealt"], parent=parent).params
    assert (given["shards_by"], given["nodes"], flagged["shards_by"]) == ("label:lang", 4, "dealt")
    assert reuse.stamp_of(given, tmp_path, []) != reuse.stamp_of(flagged, tmp_path, [])


def test_the_help_tells_the_three_forms() -> None:
    told = " ".join(run("tune", "--help").stdout.split())
    assert "--shards dealt|files|label:FIELD" in told
    assert "[default: dealt]" in told

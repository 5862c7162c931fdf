"""Batches: where windows lie, what they depend on, and what is refused."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_probe.data import BatchPlan, TokenPart, TokenStream, batches, draw_batches
from lite_probe.errors import InputError, UsageError
from lite_probe.results.provenance import Note


def stream_of(*lengths: int, evaluation_start: int | None = None) -> TokenStream:
    """Number the tokens, so that an id tells its position."""
    stops = np.cumsum(lengths)
    parts = [
        TokenPart(name=f"{i}.bin", ids=np.arange(b - n, b)) for i, (n, b) in enumerate(zip(lengths, stops, strict=True))
    ]
    return TokenStream(name="numbers", parts=parts, tokenizer_name=None, evaluation_start=evaluation_start)


def draw(tokens: TokenStream, **options: int) -> BatchPlan:
    asked = {"seq_len": 7, "batch_size": 3, "eval_batches": 2, "train_batches": 2, "seed": 0, "vocab_size": 10**9}
    return draw_batches(tokens, **(asked | options))


@settings(deadline=None)
@given(
    length=st.integers(2, 400),
    seq_len=st.integers(1, 12),
    batch_size=st.integers(1, 4),
    eval_batches=st.integers(1, 4),
    train_batches=st.integers(0, 4),
    seed=st.integers(0, 100),
    own=st.one_of(st.none(), st.floats(0, 1)),
)
def test_windows_are_contiguous_and_splits_disjoint(
    length: int, seq_len: int, batch_size: int, eval_batches: int, train_batches: int, seed: int, own: float | None
) -> None:
    evaluation_start = None if own is None else int(own * length)
    tokens = stream_of(length, evaluation_start=evaluation_start)
    window = seq_len + 1
    needed = window * batch_size * eval_batches
    try:
        plan = draw(
            tokens,
            seq_len=seq_len,
            batch_size=batch_size,
            eval_batches=eval_batches,
            train_batches=train_batches,
            seed=seed,
        )
    except InputError:
        # Refused only where it cannot be: no room for evaluation, or none besides it for one training window.
        room = length if evaluation_start is None else length - evaluation_start
        tenth = int(np.ceil(0.1 * length))
        rest = length - max(needed, tenth) if evaluation_start is None else evaluation_start
        assert needed > room or (train_batches and rest < window)
        return
    evaluation, train = np.array(plan.evaluation), np.array(plan.train).reshape(-1, window)
    assert evaluation.shape == (eval_batches, batch_size, window)
    assert train.shape == (train_batches * batch_size, window)
    rows = np.concatenate([evaluation.reshape(-1, window), train])
    assert np.all(np.diff(rows, axis=1) == 1)
    assert rows[:, 0].tolist() == [*plan.evaluation_starts, *plan.train_starts]
    assert len(np.unique(evaluation)) == evaluation.size, "evaluation windows share a token"
    assert evaluation.min() >= plan.split
    assert train.max(initial=-1) < plan.split
    if evaluation_start is not None:
        assert plan.split == evaluation_start


def test_evaluation_takes_the_last_tenth() -> None:
    notes: list[Note] = []
    plan = draw_batches(
        stream_of(1000),
        seq_len=7,
        batch_size=3,
        eval_batches=2,
        train_batches=0,
        seed=0,
        vocab_size=1000,
        on_note=notes.append,
    )
    assert plan.split == 900
    assert notes == []


def test_evaluation_that_needs_more_than_its_share_says_so() -> None:
    notes: list[Note] = []
    plan = draw_batches(
        stream_of(100),
        seq_len=7,
        batch_size=3,
        eval_batches=2,
        train_batches=1,
        seed=0,
        vocab_size=100,
        on_note=notes.append,
    )
    assert plan.split == 52
    assert [note.code for note in notes] == ["evaluation-split-grown"]
    assert notes[0].message == (
        "Evaluation takes the last 48% of numbers: its 6 windows of 8 tokens do not fit in the last 10%."
    )


def test_the_windows_spread_over_their_split() -> None:
    plan = draw(stream_of(100_000), train_batches=400, eval_batches=100)
    # Means of 300 and 1,200 uniform starts: the spread of a mean is range/√(12 n); five of them.
    assert abs(plan.evaluation_starts.mean() - 95_000) < 5 * 10_000 / np.sqrt(12 * 300)
    assert abs(plan.train_starts.mean() - 45_000) < 5 * 90_000 / np.sqrt(12 * 1200)
    assert not np.all(np.diff(plan.evaluation_starts) > 0), "batches should not be neighbours in the text"


def test_batches_are_recorded() -> None:
    # Drawn once and written down: another platform, or a change of the drawing, must show here.
    plan = draw(stream_of(1000))
    assert plan.evaluation_starts.tolist() == [954, 989, 937, 903, 980, 970]
    assert plan.train_starts.tolist() == [144, 43, 318, 499, 170, 843]


def test_held_out_windows_are_recorded() -> None:
    assert draw(stream_of(2000)).heldout_starts.tolist() == [1847, 1908, 1876, 1867, 1919, 1855]


@settings(deadline=None)
@given(
    length=st.integers(60, 900),
    seq_len=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    eval_batches=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_held_out_windows_share_no_token_with_any_other(
    length: int, seq_len: int, batch_size: int, eval_batches: int, seed: int
) -> None:
    asked = {"seq_len": seq_len, "batch_size": batch_size, "eval_batches": eval_batches, "seed": seed}
    try:
        plan = draw(stream_of(length), **asked)
    except InputError:
        return
    window, count = seq_len + 1, eval_batches * batch_size
    assert len(plan.heldout_starts) in (0, count)
    read = [
        token for start in (*plan.evaluation_starts, *plan.heldout_starts) for token in range(start, start + window)
    ]
    assert len(set(read)) == len(read)
    assert all(plan.split <= token < length for token in read)
    assert [batch.shape for batch in plan.heldout] == [(batch_size, window)] * (len(plan.heldout_starts) // batch_size)
    # Slots are whole windows between those that are taken: where there is one for each, all are held out.
    taken = [plan.split - window, *sorted(plan.evaluation_starts), length]
    slots = sum((there - here - window) // window for here, there in itertools.pairwise(taken))
    assert bool(len(plan.heldout)) == (slots >= count)


def test_what_is_held_out_moves_no_other_batch() -> None:
    tokens = stream_of(2000)
    plan, without = draw(tokens), draw(tokens, train_batches=0)
    assert len(plan.heldout) == 2
    assert not without.heldout  # nothing is trained on, so that nothing is replayed
    assert np.array_equal(plan.evaluation, without.evaluation)
    assert plan.heldout_starts.tolist() == draw(tokens, train_batches=9).heldout_starts.tolist()
    assert plan.heldout_starts.tolist() != draw(tokens, seed=1).heldout_starts.tolist()
    assert not draw(stream_of(500)).heldout  # 50 tokens to evaluate on, for twelve windows of eight


def test_what_memory_does_not_hold_is_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_IDS", 4 * 3 * 8)
    assert not draw(stream_of(2000)).heldout
    monkeypatch.setattr(batches, "MOST_IDS", 6 * 3 * 8)
    assert len(draw(stream_of(2000)).heldout) == 2


def test_the_seed_alone_decides() -> None:
    plan, again, other = draw(stream_of(1000)), draw(stream_of(1000)), draw(stream_of(1000), seed=1)
    assert plan.digest == again.digest != other.digest
    assert set(plan.evaluation_starts) != set(other.evaluation_starts)
    # One text in two files is one text.
    assert draw(stream_of(300, 700)).digest == plan.digest


def test_more_training_batches_change_nothing_else() -> None:
    few, many = draw(stream_of(1000), train_batches=2), draw(stream_of(1000), train_batches=9)
    assert np.array_equal(few.evaluation, many.evaluation)
    assert few.digest != many.digest
    assert np.array_equal(np.array(few.train), np.array(many.train)[:2])
    assert np.array_equal(draw(stream_of(1000), train_batches=0).evaluation, few.evaluation)


def test_the_digest_is_that_of_the_ids() -> None:
    plan = draw(stream_of(2000))
    sha = hashlib.sha256()
    for batch in (*plan.evaluation, *plan.train, *plan.heldout):
        sha.update(b"(3, 8)" + b"".join(int(token).to_bytes(8, "little") for token in batch.flat))
    assert plan.digest == sha.hexdigest()


def test_a_plan_cannot_be_written_to() -> None:
    plan = draw(stream_of(2000))
    starts = (plan.evaluation_starts, plan.train_starts, plan.heldout_starts)
    for array in (plan.evaluation[0], plan.train[0], plan.heldout[0], *starts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (47, r"expected at least 48 tokens to evaluate on \(6 windows of 8\), got 47 in numbers; pass a longer text"),
        (55, r"expected at least 8 tokens to train on besides the evaluation split, got 7 in numbers"),
    ],
)
def test_a_text_too_short_is_refused_with_what_it_takes(length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(stream_of(length))
    draw(stream_of(length + 1), train_batches=0 if length == 47 else 2)


def test_a_validation_file_too_short_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected at least 48 tokens to evaluate on .*, got 40 in numbers"):
        draw(stream_of(1000, 40, evaluation_start=1000))


@pytest.mark.parametrize("name", ["seq_len", "batch_size", "eval_batches"])
def test_counts_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"expected {name} ≥ 1, got 0"):
        draw(stream_of(1000), **{name: 0})


def test_a_negative_number_of_training_batches_is_refused() -> None:
    with pytest.raises(UsageError, match="expected train_batches ≥ 0, got -1"):
        draw(stream_of(1000), train_batches=-1)


def test_more_batches_than_memory_holds_are_refused_before_one_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"at most 536,870,912 tokens in all batches, .* got 90,000,000,\d+: 10,"):
        draw(stream_of(1000), seq_len=8, batch_size=1, train_batches=10**10)
    monkeypatch.setattr(batches, "MOST_IDS", 100)
    assert len(draw(stream_of(1000), seq_len=4, batch_size=2, eval_batches=1, train_batches=9).train) == 9
    with pytest.raises(UsageError, match="expected at most 100 tokens"):
        draw(stream_of(1000), seq_len=4, batch_size=2, eval_batches=1, train_batches=10)


def with_token(position: int, token: int, length: int = 1000) -> TokenStream:
    ids = np.zeros(length, dtype=np.int64)
    ids[position] = token
    parts = [TokenPart(name="train.bin", ids=np.zeros(100, dtype="<u2")), TokenPart(name="val.bin", ids=ids)]
    return TokenStream(name="folder", parts=parts, tokenizer_name=None)


def test_a_token_beyond_the_vocabulary_is_named() -> None:
    expected = (
        r"expected tokens below 256 \(the model's vocabulary\), got 50,256 at offset 81 of val.bin; "
        r"pass --tokenizer, or a .bin made for this model"
    )
    with pytest.raises(InputError, match=expected):
        draw(with_token(81, 50_256), vocab_size=256)
    draw(with_token(81, 255), vocab_size=256)
    with pytest.raises(InputError, match=r"got -1 at offset 5 of val.bin"):
        draw(with_token(5, -1), vocab_size=256)


def test_windows_beyond_the_checked_part_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_CHECKED_TOKENS", 64)
    for start in draw(with_token(0, 0), vocab_size=256).evaluation_starts:
        with pytest.raises(InputError, match=f"got 300 at offset {start + 7 - 100:,} of val.bin"):
            draw(with_token(int(start) + 7 - 100, 300), vocab_size=256)

from lite_probe.commands.wording import count, duration, plain, plural, size


def test_counts_sizes_and_durations() -> None:
    assert [count(n) for n in (4321, 10_724_352, 1_240_000_000)] == ["4,321", "10.7 M", "1.24 B"]
    assert [size(n) for n in (512, 2048, 5_000_000, 2_254_857_830)] == ["512 B", "2 KiB", "4.77 MiB", "2.1 GiB"]
    assert [duration(s) for s in (0.2, 8, 180, 9000)] == ["1 s", "8 s", "3 min", "2.5 h"]


def test_plain_escapes_what_would_steer_a_terminal() -> None:
    assert plain("a\x1b[31mb\rc\nλ") == "a\\x1b[31mb\\rc\nλ"


def test_one_of_a_thing_is_no_plural() -> None:
    assert [plural(n, "run") for n in (0, 1, 2, 1000)] == ["0 runs", "1 run", "2 runs", "1,000 runs"]
    assert [plural(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]

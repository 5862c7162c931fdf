import pytest

from lite_probe.commands.wording import count, duration, number, plain, plural, size, with_error


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (38.2149, 4, "38.21"),
        (-0.8312, 3, "−0.831"),
        (4.1e6, 2, "4.1e6"),
        (1.25e-7, 2, "1.2e-7"),
        (-3e-12, 2, "−3e-12"),
        (0.0, 4, "0"),
        (None, 4, "–"),
    ],
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (38.21493, 0.0103, "38.215 ± 0.010"),
        (1912.4, 41.3, "1,912 ± 41"),
        (-0.8312, 0.02, "−0.831 ± 0.020"),
        (19124.0, 5130.0, "19,124 ± 5,130"),
        (38.2149312, 1.04e-6, "38.21493 ± 1e-6"),
        (4.12e9, 3.1e7, "(4.120 ± 0.031)e9"),
        (-2.5e-7, 1.2e-8, "(−2.50 ± 0.12)e-7"),
        (212.0, 0.0, "212"),
        (212.0, None, "212"),
        (212.0, float("inf"), "212"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (0.001, 3.0, "0.0 ± 3.0"),
        (None, 1.0, "–"),
    ],
)
def test_with_error_gives_the_value_no_more_digits_than_its_error_has(
    value: float | None, error: float | None, text: str
) -> None:
    assert with_error(value, error) == text


def test_counts_sizes_and_durations() -> None:
    assert [count(n) for n in (4321, 10_724_352, 1_240_000_000)] == ["4,321", "10.7 M", "1.24 B"]
    assert [size(n) for n in (512, 2048, 5_000_000, 2_254_857_830)] == ["512 B", "2 KiB", "4.77 MiB", "2.1 GiB"]
    assert [duration(s) for s in (0.2, 8, 180, 9000)] == ["1 s", "8 s", "3 min", "2.5 h"]


def test_plain_escapes_what_would_steer_a_terminal() -> None:
    assert plain("a\x1b[31mb\rc\nλ") == "a\\x1b[31mb\\rc\nλ"


def test_one_of_a_thing_is_no_plural() -> None:
    assert [plural(n, "run") for n in (0, 1, 2, 1000)] == ["0 runs", "1 run", "2 runs", "1,000 runs"]
    assert [plural(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]

"""Numbers are written with as many digits as their error allows."""

import pytest

from lite_probe.reports.numbers import (
    format_bounded,
    format_bytes,
    format_count,
    format_duration,
    format_interval,
    format_measured,
    format_measured_share,
    format_number,
    format_share,
    format_uncertain,
    power_label,
)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 4, "–"),
        (0.0, 4, "0"),
        (38.2149, 4, "38.21"),
        (-0.83, 2, "−0.83"),
        (0.99996, 4, "1.000"),
        (12345.6, 4, "12,350"),
        (99999.9, 4, "1.000 × 10⁵"),
        (4.1e6, 2, "4.1 × 10⁶"),
        (-2.5e-7, 2, "−2.5 × 10⁻⁷"),
        (0.001, 1, "0.001"),
        (1e-300, 2, "1.0 × 10⁻³⁰⁰"),
    ],
)
def test_significant_digits(value, digits, text):
    assert plain(format_number(value, digits)) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.171, 0.0896, 0.2524, "0.171 (95%: 0.090 to 0.252)"),
        (-0.5, -2.5, 1.5, "−0.5 (95%: −2.5 to 1.5)"),
        (-0.001, -0.19, 0.188, "−0.001 (95%: −0.19 to 0.19)"),
        (-1e-9, -0.19, 0.188, "0.00 (95%: −0.19 to 0.19)"),
        (1912.4, 1830.0, 1995.0, "1,912 (95%: 1,830 to 1,995)"),
        (1.9124e6, 1.83e6, 1.99e6, "1.912 × 10⁶ (95%: 1.830 × 10⁶ to 1.990 × 10⁶)"),
        (1.01e-4, 0.37e-4, 1.66e-4, "1.01 × 10⁻⁴ (95%: 0.37 × 10⁻⁴ to 1.66 × 10⁻⁴)"),
        # What is claimed to be above zero does not begin at it.
        (0.08, 0.0004, 0.16, "0.0800 (95%: 0.0004 to 0.1600)"),
        (0.08, 4e-9, 0.16, "0.080000 (95%: 4.0000 × 10⁻⁹ to 0.16000)"),
        (0.08, 0.0, 0.16, "0.080 (95%: 0.000 to 0.160)"),
        (38.2149, 38.2148999, 38.2149001, "38.215 (95%: 38.215 to 38.215)"),
        (0.5, 0.5, 0.5, "0.5000"),
    ],
)
def test_a_value_and_its_interval_end_at_the_same_place(value, low, high, text):
    assert plain(format_measured(value, low, high)) == text


def test_intervals_of_units_shares_and_points():
    assert plain(format_measured(0.171, 0.0896, 0.2524, " nats")) == "0.171 nats (95%: 0.090 to 0.252)"
    assert format_measured_share(0.97, 0.965, 0.975) == "97.00% (95%: 96.50 to 97.50%)"
    assert format_measured_share(0.97, 0.97, 0.97) == "97.0%"
    assert format_interval(0.5, 0.5, 0.5) == ("0.5000", "95%: 0.5000 to 0.5000")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, 0.1, "–"),
        (38.2149, None, "38.21"),
        (38.2149, 0.0, "38.21"),
        (38.2149, 0.0123, "38.215 ± 0.012"),
        (1912.4, 40.2, "1,912 ± 40"),
        (19124.0, 412.0, "19,120 ± 410"),
        (-0.5, 2.04, "−0.5 ± 2.0"),
        (1.9124e6, 4.02e4, "(1.912 ± 0.040) × 10⁶"),
        (3.2e-6, 1.5e-7, "(3.20 ± 0.15) × 10⁻⁶"),
        (38.2149, 1e-9, "38.215 ± 1.0 × 10⁻⁹"),
        (0.0, 0.02, "0.000 ± 0.020"),
    ],
)
def test_value_and_error_end_at_the_same_place(value, error, text):
    assert plain(format_uncertain(value, error)) == text


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (38.2149, 0.00121, "38.215 ± 0.002"),  # rounding to 0.001 would promise too much
        (38.2149, 0.001, "38.215 ± 0.001"),
        (38.2149, 3 * 1e-4, "38.2149 ± 0.0003"),
        (38.2149, 0.0099, "38.21 ± 0.01"),
        (38.2149, 0.00002, "38.215 ± 2 × 10⁻⁵"),
        (5.0, 0.0, "5.000"),
        (None, None, "–"),
    ],
)
def test_a_bound_is_rounded_up(value, bound, text):
    assert plain(format_bounded(value, bound)) == text


def test_shares_counts_sizes_and_durations():
    assert plain(format_share(0.0814)) == "8.14%"
    assert plain(format_share(0.0814, 0.0021)) == "(8.14 ± 0.21)%"
    assert format_share(None) == "–"
    assert [format_count(n) for n in (12, 999_999, 10_724_352, 1_543_714_304)] == [
        "12",
        "999,999",
        "10.72 million",
        "1.544 billion",
    ]
    assert [format_bytes(n) for n in (12, 2048, 3 * 2**20, 2_254_857_830)] == ["12 B", "2 KiB", "3 MiB", "2.1 GiB"]
    assert [format_duration(s) for s in (0.5, 187.4, 7260)] == ["0.5 s", "3 min 7 s", "2 h 1 min"]
    assert [power_label(p) for p in (-4, -3, 0, 3, 4)] == ["10⁻⁴", "0.001", "1", "1000", "10⁴"]

"""Numbers as people read them: as many digits as the error allows, a true minus sign, powers of ten."""

import math
import re

MISSING = "–"
PLUS_MINUS = "\u00a0±\u00a0"  # a number and its error stay on one line
TIMES = "\u00a0×\u00a0"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def format_number(value: float | None, digits: int = 4) -> str:
    """Write a number with `digits` significant digits; a dash where it is missing."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if -3 <= exponent < 5:
        return _minus(f"{rounded:,.{max(0, digits - 1 - exponent)}f}")
    return _minus(f"{rounded / 10.0**exponent:.{digits - 1}f}{TIMES}{power_of_ten(exponent)}")


def format_uncertain(value: float | None, error: float | None, error_digits: int = 2) -> str:
    """Write `value ± error`, the error with two digits and the value to the same place.

    Where the error is so small that this would take more than six digits, the value gets five.
    """
    if value is None or error is None or error == 0:
        return format_number(value)
    size = max(abs(value), error)
    exponent = math.floor(math.log10(size))
    places = error_digits - 1 - math.floor(math.log10(float(f"{error:.{error_digits - 1}e}")))
    if exponent + places + 1 > 6:
        return f"{format_number(value, 5)}{PLUS_MINUS}{format_number(error, error_digits)}"
    if -3 <= exponent < 5:
        shown = max(0, places)
        return f"{_minus(f'{round(value, places):,.{shown}f}')}{PLUS_MINUS}{round(error, places):,.{shown}f}"
    scale, shown = 10.0**exponent, max(0, places + exponent)
    mantissas = f"{value / scale:.{shown}f}{PLUS_MINUS}{error / scale:.{shown}f}"
    return f"({_minus(mantissas)}){TIMES}{power_of_ten(exponent)}"


def format_interval(value: float, low: float, high: float) -> tuple[str, str]:
    """Write a value, and its 95% interval as `95%: low to high`, all to the second digit of the interval's half.

    No bound but zero is written as zero: it takes more digits, or its own. Nor is the value, within three more digits.
    """
    bounds = [bound for bound in (low, high) if bound != 0.0]
    if high <= low or not bounds:
        return format_number(value), f"95%: {format_number(low)} to {format_number(high)}"
    exponent = math.floor(math.log10(max(abs(value), *map(abs, bounds))))
    places = 1 - math.floor(math.log10(float(f"{(high - low) / 2.0:.1e}")))
    # Rounded to its first digit a bound is not zero.
    places = max(places, *(-math.floor(math.log10(abs(bound))) for bound in bounds))
    if exponent + places + 1 > 6:
        return format_number(value, 5), f"95%: {format_number(low, 5)} to {format_number(high, 5)}"
    scale, tail = (1.0, "") if -3 <= exponent < 5 else (10.0**exponent, f"{TIMES}{power_of_ten(exponent)}")
    first = -math.floor(math.log10(abs(float(f"{value:.0e}")))) if value else places
    own = first if places < first <= places + 3 else places
    texts = []
    for one, last in ((value, own), (low, places), (high, places)):
        shown = max(0, last if scale == 1.0 else last + exponent)
        texts.append(f"{_minus(f'{round(one, last) / scale + 0.0:,.{shown}f}')}{tail}")
    return texts[0], f"95%: {texts[1]} to {texts[2]}"


def format_measured(value: float, low: float, high: float, unit: str = "") -> str:
    """Write a value with its unit and 95% interval; what has none is written alone."""
    if low == high:
        return f"{format_number(value)}{unit}"
    text, interval = format_interval(value, low, high)
    return f"{text}{unit} ({interval})"


def format_measured_share(value: float, low: float, high: float) -> str:
    """Write a share of one as percent, with its 95% interval."""
    if low == high:
        return format_share(value)
    text, interval = format_interval(100.0 * value, 100.0 * low, 100.0 * high)
    return f"{text}% ({interval}%)"


def format_bounded(value: float | None, bound: float | None) -> str:
    """Write `value ± bound` where the bound must hold as written: one digit, rounded up."""
    if value is None or bound is None or bound == 0:
        return format_number(value)
    unit = 10.0 ** math.floor(math.log10(bound))
    # A bound of 3 × 10⁻⁴ must not become 4 × 10⁻⁴ because its binary quotient is a hair above 3.
    return format_uncertain(value, math.ceil(round(bound / unit, 9)) * unit, error_digits=1)


def format_share(value: float | None, error: float | None = None) -> str:
    """Write a share of one as percent."""
    if value is None:
        return MISSING
    if error:
        return f"({format_uncertain(100 * value, 100 * error)})%"
    return f"{format_number(100 * value, 3)}%"


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: `1 seed`, `3 seeds`, `2 batches`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def format_count(value: int) -> str:
    """Write a count: exact below 100,000, then in millions or billions."""
    for size, suffix in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.4g} {suffix}"
    return f"{value:,}"


def format_bytes(value: int) -> str:
    """Write a size in memory in binary units."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"


def format_duration(seconds: float) -> str:
    """Write a duration in the two largest units that matter."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def terse(text: str) -> str:
    """Return a written number in fewer characters, for a terminal's tables: `(6.1±0.2)e-2` for `(6.1 ± 0.2) × 10⁻²`."""
    short = re.sub(r"\(on (\d+) of (\d+) seeds\)", r"(\1/\2)", text)
    short = re.sub(rf"{TIMES}10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda match: f"e{match[1].translate(_PLAIN)}", short)
    return short.replace(PLUS_MINUS, "±")


def power_of_ten(exponent: int) -> str:
    """Write 10 with its exponent raised."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def power_label(exponent: int) -> str:
    """Write a power of ten as a label of an axis, plainly where that is short."""
    return f"{10.0**exponent:g}" if -3 <= exponent <= 3 else power_of_ten(exponent)


def _minus(text: str) -> str:
    """Replace the hyphen by a minus sign."""
    return text.replace("-", "−")

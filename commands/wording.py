"""Numbers in words: how a value, its error, a size and a duration are written in the terminal."""

import math


def number(value: float | None, digits: int = 4) -> str:
    """Write a number with so many significant digits: `38.21`, `1.91e3`, `−8.3e-6`; `–` for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return "−" + text[1:] if text.startswith("-") else text


def with_error(value: float | None, error: float | None) -> str:
    """Write `value ± error`: the error with two significant digits, the value down to the same place.

    An error of zero, or None, is left out.
    """
    if value is None:
        return "–"
    if not error or not math.isfinite(error):
        return number(value)
    exponent = math.floor(math.log10(max(abs(value), error)))
    scale = 1.0 if -4 <= exponent < 7 else 10.0**exponent
    decimals = max(0, 1 - math.floor(math.log10(error / scale)))
    if decimals > 6:
        return f"{number(value, 7)} ± {number(error, 2)}"
    text = f"{value / scale:,.{decimals}f} ± {error / scale:,.{decimals}f}".replace("-", "−")
    return text if scale == 1.0 else f"({text})e{exponent}"


def compact(value: float, error: float) -> str:
    """Write `value±error` in few characters, for tables: `22.4±1.3`, `(8.12±0.90)e-5`."""
    size = max(abs(value), error)
    if not error or not math.isfinite(error) or not 0.0 < size < 0.1:
        return with_error(value, error).replace(" ± ", "±")
    exponent = math.floor(math.log10(size))
    return f"({with_error(value / 10.0**exponent, error / 10.0**exponent)})e{exponent}".replace(" ± ", "±")


def percent(share: float, error: float | None = None) -> str:
    """Write a share in per cent, with its error: `26.1%`, `23.9 ± 1.2%`."""
    return f"{number(100 * share, 3) if not error else with_error(100 * share, 100 * error)}%"


def count(value: int) -> str:
    """Write a count for people: `4,321`, `10.7 M`, `1.24 B`."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,}"


def plural(number: int, thing: str) -> str:
    """Write how many there are of a thing: `1 run`, `3 runs`, `2 batches`."""
    if number == 1:
        return f"1 {thing}"
    return f"{number:,} {thing}{'es' if thing.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def size(num_bytes: float) -> str:
    """Write a number of bytes in binary units: `512 B`, `2.1 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} GiB"


def duration(seconds: float) -> str:
    """Write a duration: `8 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plain(text: str) -> str:
    """Escape control characters, so that a file's name or content cannot steer the terminal."""
    words = text.replace("\u00a0", " ")
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in words)

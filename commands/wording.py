"""Counts, sizes and durations in words, and text from outside made harmless."""


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
    """Write a number of bytes in binary units: `512 B`, `2.1 GiB`, `1,130 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} GiB" if num_bytes < 1000 else f"{num_bytes:,.0f} GiB"


def duration(seconds: float) -> str:
    """Write a duration: `8 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plain(text: str) -> str:
    """Escape control characters, so that a file's name or content cannot steer the terminal."""
    words = text.replace("\u00a0", " ")
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in words)

"""Tiles, optimizer × block: does LITE's shortcut hold there, and how long a step is tolerated."""

from collections.abc import Mapping
from dataclasses import dataclass

from lite_probe.reports.numbers import MISSING
from lite_probe.reports.sections.steps import ratio_words
from lite_probe.reports.sections.subspace import answers
from lite_probe.reports.verdict import TONES, base_name
from lite_probe.results.blocks import order_blocks
from lite_probe.results.steps import Steps
from lite_probe.results.subspace import SubspaceMeasurement

_MARKS = {"holds": "✓", "fails": "✗", "open": "?", "not used": "·"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One optimizer in one block."""

    answer: str  # "holds", "fails", "open", "not used"; empty where it was not measured
    mark: str
    tone: str  # "good", "caution" or ""
    ratio: str  # "χ̂ 2.1", "χ̂ ≥ 1.3"; empty where it was not measured
    hint: str  # all of it in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """A row of tiles per optimizer."""

    blocks: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]  # (LITE variant's base, a tile per block)


def make_tiles(subspace: SubspaceMeasurement | None, steps: Steps | None) -> Tiles | None:
    """Lay out what was measured of either question; None where neither was."""
    found: Mapping[tuple[str, str], str] = {}
    if subspace is not None:
        found = {(base_name(optimizer), block): answer for (optimizer, block), answer in answers(subspace).items()}
    ratios: dict[tuple[str, str], str] = {}
    for name, one in ({} if steps is None else steps.optimizers).items():
        for block in one.blocks:
            ratios.setdefault((base_name(name), block), ratio_words(one.implied_ratio(block)))
    if not found and not ratios:
        return None
    keys = [*found, *ratios]
    blocks = order_blocks(dict.fromkeys(block for _, block in keys))
    names = list(dict.fromkeys(name for name, _ in keys))
    rows = []
    for name in names:
        keys = [(name, block) for block in blocks]
        rows.append((name, tuple(_tile(*key, found.get(key, ""), ratios.get(key, "")) for key in keys)))
    return Tiles(blocks=tuple(blocks), rows=tuple(rows))


def _tile(name: str, block: str, answer: str, ratio: str) -> Tile:
    words = {
        "holds": f"what LITE calls sharp in {block} under {name} is sharper than what it calls flat",
        "fails": f"what LITE calls sharp in {block} under {name} is less sharp than what it calls flat",
        "open": f"whether what LITE calls sharp in {block} under {name} is sharper is not told",
        "not used": f"LITE makes no difference between directions of {block} under {name}",
    }
    texts = [words[answer]] if answer else []
    if ratio == MISSING:
        texts.append("χ̂ is not known: the sharp directions have no edge, or may gain nothing")
    elif ratio:
        texts.append(f"flat directions tolerate {ratio} times the step of sharp ones")
    return Tile(
        answer=answer,
        mark=_MARKS.get(answer, ""),
        tone=TONES.get(answer, ""),
        ratio=f"χ̂ {ratio}" if ratio else "",
        hint="; ".join(texts) or "not measured",
    )

"""What measured steps allow one to say: how far the whole step is from the edge, and where it could be longer.

Each question is decided as a whole after Holm's correction: which steps are within their critical one, which groups of
directions are told from their own optimum, and where flat directions tolerate longer steps than sharp ones.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from lite_probe.reports.numbers import count_of, format_interval, format_number, format_share
from lite_probe.reports.verdict import Point, Verdict, base_name, join_names, make_claim, one_space
from lite_probe.results.claim import Claim, decide
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.steps import JOINT_PARTS, PARTS, CriticalSteps, OptimizerSteps, Steps

HELD_OUT = "held out"
_WHERE = {"own batch": "on its own batch", HELD_OUT: "held out", "relative": "on the other data"}
_SEVERAL = 2.0  # times the step taken, from which on a step could be several times longer
_FEW = 3  # blocks that are named one by one however many there are
_MORE = "more --step-batches may tell"
_MORE_EDGE = "more --step-batches, and more --batches, may find it"

Group = tuple[str, str, str]  # optimizer, block, part
Pair = tuple[str, str]  # optimizer and block, or optimizer and set of batches


def judge_steps(steps: Steps) -> Verdict:
    """Say how far every optimizer is from the edge, and where it could step longer."""
    edges, groups, ratios = judge_edges(steps), judge_groups(steps), judge_ratios(steps)
    names = list(steps.optimizers)
    lead = " ".join(_lead(steps, name, edges, groups) for name in names)
    points = [point for name in names for point in _other_edges(steps, name, edges)]
    points += [point for name in names for point in _by_curvature(steps, name)]
    points += [point for name in names for point in _not_told(steps, name, groups)]
    points += [point for name in names for point in _premise(steps, name, ratios)]
    points += [point for name in names for point in _line_checks(steps, name)]
    points += [point for name in names for point in _details(steps, name, groups)]
    points += [*_signal(steps), *_corrected(steps, {"of groups with the step taken": groups, "of χ̂ with 1": ratios})]
    leading = tuple(edges[name, HELD_OUT] for name in names if (name, HELD_OUT) in edges)
    return Verdict(lead=one_space(lead), points=tuple(points), leading=leading)


# Questions


def judge_edges(steps: Steps) -> dict[Pair, Claim]:
    """Ask of every optimizer and set of batches whether the whole step is shorter than the critical one."""
    asked = {
        (name, kind): ratio
        for name, one in steps.optimizers.items()
        for kind, critical in one.critical.items()
        if (ratio := critical.edge_ratio) is not None
    }
    # What is left of the critical step, in units of it.
    left = {key: _moved(ratio, factor=-1.0, by=1.0) for key, ratio in asked.items()}
    signs = _decided(left)
    return {
        (name, kind): make_claim(
            (name, f"critical step minus the step taken, {kind}"),
            (one.value, one.low, one.high),
            signs[name, kind],
            _edge_sentence(steps, name, kind, asked[name, kind], signs[name, kind]),
            unit="of the critical step",
            comparisons=len(asked),
            covers=count_of(one.num_samples, "training batch", "training batches"),
        )
        for (name, kind), one in left.items()
    }


def _edge_sentence(steps: Steps, name: str, kind: str, ratio: Estimate, sign: int) -> str:
    one = steps.optimizers[name]
    what = f"The whole step of {name} at {rate_of(one)} is {_measured(ratio)} of the critical one {where_of(kind)}"
    if sign > 0:
        least = format_number(1.0 / ratio.high, 2)
        return f"{what}: it could be at least {least} times as long before it raises the loss."
    if sign < 0:
        return f"{what}: it raises the loss there."
    told = f"not told{_corrected_away(ratio)}"
    return f"{what}: whether it raises the loss there is {told}; more --critical-batches may tell."


def judge_groups(steps: Steps) -> dict[Group, Claim]:
    """Ask of every optimizer's groups of directions whether their own optimum is beyond the step taken.

    c* > 1 where G − K, the slope of the loss at the step's end, is positive: that is what is tested. Nothing is asked
    of a group without an edge.
    """
    rows = {
        (name, block, part): row
        for name, one in steps.optimizers.items()
        for block in one.blocks
        for part in PARTS
        if (row := one.group(block, part)) is not None and row.optimum is not None
    }
    signs = _decided({key: row.excess for key, row in rows.items()})
    claims = {}
    for key, row in rows.items():
        optimum = row.optimum
        if optimum is None:
            continue
        sign = 0 if optimum.low <= 1.0 <= optimum.high else signs[key]
        name, block, part = key
        claims[key] = make_claim(
            (
                name,
                f"own optimum of {part_of(part, steps.optimizers[name])} directions of {block}, minus the step taken",
            ),
            (optimum.value - 1.0, optimum.low - 1.0, optimum.high - 1.0),
            sign,
            _group_sentence(key, part_of(part, steps.optimizers[name]), optimum, sign),
            unit="of the step taken",
            comparisons=len(rows),
            covers=_covers(steps),
        )
    return claims


def _group_sentence(key: Group, part: str, optimum: Estimate, sign: int) -> str:
    name, block, _ = key
    what = f"Along {part} directions of {block} the optimum of {name} is {_measured(optimum)} of the step it takes"
    if sign < 0 and optimum.high < 0.0:
        return f"{what}: its step raises the loss there at any length."
    if sign == 0:
        return f"{what}, not told from it{_corrected_away(optimum)}."
    return f"{what}{', which is past it' if sign < 0 else ''}."


def _corrected_away(one: Estimate) -> str:
    """Say why what is beyond one by its own interval is not told from it."""
    return "" if one.low <= 1.0 <= one.high else " after correction"


def judge_ratios(steps: Steps) -> dict[Pair, Claim]:
    """Ask of every optimizer and block whether flat directions tolerate longer steps than sharp ones (χ̂ > 1).

    χ̂ > 1 where G_f K_s − G_s K_f is positive: that is what is tested. Where the flat group has no edge χ̂ is bounded
    from below alone, and the claim's number is 1 − 1/χ̂. Nothing is asked where neither end is known.
    """
    found = {
        (name, block): (ratio, excess)
        for name, one in steps.optimizers.items()
        for block in one.blocks
        if (ratio := one.implied_ratio(block)) is not None
        and ratio.low is not None
        and (excess := one.implied_excess(block)) is not None
    }
    signs = _decided({key: excess for key, (_, excess) in found.items()})
    claims = {}
    for (name, block), (ratio, _) in found.items():
        bounded, inverse = bounded_ratio(steps.optimizers[name], block), steps.optimizers[name].implied_inverse(block)
        if bounded is not None:
            quantity, number = f"χ̂ of {block}", (bounded.value - 1.0, bounded.low - 1.0, bounded.high - 1.0)
        elif inverse is not None:
            quantity = f"1 − 1/χ̂ of {block}"
            number = (1.0 - inverse.value, 1.0 - inverse.high, 1.0 - inverse.low)
        else:
            continue
        sign = 0 if number[1] <= 0.0 <= number[2] else signs[name, block]
        minus = ", minus 1" if bounded is not None else ""
        claims[name, block] = make_claim(
            (name, f"{quantity} at {_batch(steps)} a batch{minus}: optimum of flat over that of sharp directions"),
            number,
            sign,
            _ratio_sentence(name, block, bounded, ratio, sign),
            unit="",
            comparisons=len(found),
            covers=_covers(steps),
        )
    return claims


def _ratio_sentence(name: str, block: str, bounded: Estimate | None, ratio: Ratio, sign: int) -> str:
    what = f"χ̂ of {block} under {name}{'' if base_name(name) == name else ', beyond the ratio it has,'}"
    if bounded is None:
        least = f"{what} is at least {format_number(ratio.low, 2)} (95%)"
        after = " after correction" if ratio.low is not None and ratio.low > 1.0 else ""
        answer = "above 1" if sign > 0 else f"not told from 1{after}"
        return f"{least}, {answer}: its flat directions have no edge."
    answer = f"not told from 1{_corrected_away(bounded)}" if sign == 0 else "above 1" if sign > 0 else "below 1"
    return f"{what} is {_measured(bounded)}, {answer}."


def least_ratio(one: OptimizerSteps, block: str) -> float:
    """Return the lower end of χ̂ of a block; 0 where there is none."""
    ratio = one.implied_ratio(block)
    return 0.0 if ratio is None or ratio.low is None else ratio.low


def bounded_ratio(one: OptimizerSteps, block: str) -> Estimate | None:
    """Return χ̂ of a block as an estimate; None where a group has no edge, or nothing bounds χ̂ on either side."""
    ratio: Ratio | None = one.implied_ratio(block)
    if ratio is None or None in (ratio.value, ratio.stderr, ratio.low, ratio.high):
        return None
    value, stderr, low, high = (float(end or 0.0) for end in (ratio.value, ratio.stderr, ratio.low, ratio.high))
    return Estimate(value=value, stderr=stderr, low=low, high=high, num_samples=ratio.num_samples)


def _moved(one: Estimate, *, factor: float = 1.0, by: float = 0.0) -> Estimate:
    ends = sorted((factor * one.low + by, factor * one.high + by))
    return Estimate(
        value=factor * one.value + by,
        stderr=abs(factor) * one.stderr,
        low=ends[0],
        high=ends[1],
        num_samples=one.num_samples,
    )


def _decided(asked: Mapping[Group, Estimate] | Mapping[Pair, Estimate]) -> dict[tuple[str, ...], int]:
    return dict(zip(asked, decide(list(asked.values())), strict=True))


# The lead


def _lead(steps: Steps, name: str, edges: Mapping[Pair, Claim], groups: Mapping[Group, Claim]) -> str:
    """Say of one optimizer how far it is from the edge, and where it could step longer."""
    return " ".join(text for text in (tell_edge(steps, name, edges), tell_tolerances(steps, name, groups)) if text)


def tell_edge(steps: Steps, name: str, edges: Mapping[Pair, Claim]) -> str:
    """Say of one optimizer how far its whole step is from the edge, held out; empty where nobody looked."""
    one = steps.optimizers[name]
    if (name, HELD_OUT) in edges:
        return edges[name, HELD_OUT].sentence
    if HELD_OUT in one.critical:
        return f"{name} at {rate_of(one)}: {critical_words(one.critical[HELD_OUT])} {where_of(HELD_OUT)}."
    return ""


def tell_tolerances(steps: Steps, name: str, groups: Mapping[Group, Claim]) -> str:
    """Say of one optimizer along which directions it could step longer; empty where its bands were not measured."""
    one = steps.optimizers[name]
    return _tolerances(name, one, groups) if one.blocks else ""


def _tolerances(name: str, one: OptimizerSteps, groups: Mapping[Group, Claim]) -> str:
    """Say along which groups an optimizer is past its own optimum, and along which it could be longer, at least."""
    own = {key[1:]: claim for key, claim in groups.items() if key[0] == name}
    raises = [key for key, claim in own.items() if claim.status == "fails" and claim.high < -1.0]
    past = [key for key, claim in own.items() if claim.status == "fails" and key not in raises]
    longer = {key: claim.low + 1.0 for key, claim in own.items() if claim.status == "holds"}
    much = {key: least for key, least in longer.items() if least >= _SEVERAL} or longer
    parts = []
    if raises:
        parts.append(f"raises the loss along {_directions(raises, one)}")
    if past:
        parts.append(f"is past its own optimum along {_directions(past, one)}")
    if much:
        several = "several times " if min(much.values()) >= _SEVERAL else ""
        parts.append(f"could step {several}longer along {_directions(much, one, much)}")
    if not parts:
        return f"No group of directions of {name} is told from its own optimum; {_MORE}."
    text = ", ".join(parts[:-1]) + ", and " + parts[-1] if len(parts) > 1 else parts[0]
    return f"Each group of directions taken alone, {name} {text}."


def _directions(keys: Iterable[Pair], one: OptimizerSteps, least: Mapping[Pair, float] | None = None) -> str:
    """Name groups of directions, (block, part): `sharp and middle directions of emb, and flat ones of ffn (≥3.2×)`.

    Args:
        keys: The groups.
        one: Whose: of most of its blocks those are named that are left out.
        least: How long a step is at least, in multiples of the one taken.
    """
    named, parts_of = list(keys), dict[str, list[str]]()
    for part in dict.fromkeys((*PARTS, *JOINT_PARTS)):
        members = [block for block, own in named if own == part]
        if members:
            ends = {} if least is None else {block: least[block, part] for block in members}
            parts_of.setdefault(_blocks(members, one.blocks, ends), []).append(part_of(part, one))
    texts = [
        f"{join_names(parts)} {'ones' if place else 'directions'} of {where}"
        for place, (where, parts) in enumerate(parts_of.items())
    ]
    return ", and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _blocks(members: Sequence[str], blocks: Sequence[str], least: Mapping[str, float]) -> str:
    """Name blocks, each with the least that is told of it; where they are most, those left out and the least of all."""
    others = [block for block in blocks if block not in members]
    if len(members) <= _FEW or len(others) >= len(members):
        return join_names([f"{block}{_at_least(least[block]) if least else ''}" for block in members])
    text = f"all blocks but {join_names(others)}" if others else "all blocks"
    return f"{text}{_at_least(min(least.values())) if least else ''}"


def _at_least(multiple: float) -> str:
    return f" (≥{format_number(multiple, 2)}×)"


# Points


def _other_edges(steps: Steps, name: str, edges: Mapping[Pair, Claim]) -> list[Point]:
    """Say how the whole step is beside the critical one on its own batch, and on other data."""
    points = []
    for kind, critical in steps.optimizers[name].critical.items():
        claim = edges.get((name, kind))
        if kind == HELD_OUT:
            continue
        if claim is not None:
            tone = "caution" if claim.status == "fails" else "plain"
            points.append(Point(tone=tone, text=claim.sentence, claims=(claim,)))
        else:
            text = f"{name}, {where_of(kind)}: {critical_words(critical)}."
            points.append(Point(tone="caution", text=one_space(text)))
    return points


def _by_curvature(steps: Steps, name: str) -> list[Point]:
    """Hold the whole step's edge by curvature, twice its optimum, beside the critical step by forward passes."""
    one = steps.optimizers[name]
    found, edge = critical_multiple(one.critical.get(HELD_OUT)), curvature_edge(one)
    if not one.blocks or found is None:
        return []
    if edge is None:
        text = f"The curvature along the whole step of {name} is not told from zero: {_MORE}."
        return [Point(tone="plain", text=text)]
    both = f"by curvature its edge is at {_measured(edge)} times it, by forward passes at {_measured(found)}"
    if agree(edge, found):
        text = f"Along the whole step of {name} curvature and forward passes agree within their errors: {both}."
        return [Point(tone="plain", text=one_space(text), is_detail=True)]
    side = "nearer" if found.value < edge.value else "farther"
    text = f"Along the whole step of {name} the edge is {side} than its curvature says: {both}."
    return [Point(tone="caution", text=one_space(text))]


def critical_multiple(critical: CriticalSteps | None) -> Estimate | None:
    """Return the critical step in multiples of the step taken, from its inverse; None where some batch has none."""
    ratio = None if critical is None else critical.edge_ratio
    if ratio is None:
        return None
    return Estimate(
        value=1.0 / ratio.value,
        stderr=ratio.stderr / ratio.value**2,
        low=1.0 / ratio.high,
        high=1.0 / ratio.low,
        num_samples=ratio.num_samples,
    )


def curvature_edge(one: OptimizerSteps) -> Estimate | None:
    """Return where the whole step's edge is by its curvature: twice its optimum."""
    return None if one.whole is None else _moved(one.whole, factor=2.0)


def agree(first: Estimate, second: Estimate) -> bool:
    """Whether two positive numbers differ by no more than their 95% intervals together, on a logarithmic scale."""
    lower, upper = sorted((first, second), key=lambda one: one.value)
    if lower.value <= 0.0 or upper.low <= 0.0:
        return lower.high >= upper.low
    reach = math.hypot(math.log(lower.high / lower.value), math.log(upper.value / upper.low))
    return math.log(upper.value / lower.value) <= reach


def _not_told(steps: Steps, name: str, groups: Mapping[Group, Claim]) -> list[Point]:
    """Say which groups are not told from their optimum, and which have no edge, and what would settle it."""
    one = steps.optimizers[name]
    untold = [key[1:] for key, claim in groups.items() if key[0] == name and claim.status == "open"]
    edgeless = [
        (block, part)
        for block in one.blocks
        for part in PARTS
        if one.group(block, part) is not None and (name, block, part) not in groups
    ]
    sentences = []
    if untold:
        sentences.append(f"{name} is not told from its own optimum along {_directions(untold, one)}: {_MORE}.")
    if edgeless:
        along = _directions(edgeless, one)
        sentences.append(f"Of {name} no edge was found along {along}, whose curvature is not told from zero: ")
        sentences[-1] += f"{_MORE_EDGE}."
    return [Point(tone="plain", text=one_space(" ".join(sentences)))] if sentences else []


def _premise(steps: Steps, name: str, ratios: Mapping[Pair, Claim]) -> list[Point]:
    """Say in which blocks LITE's premise holds for an optimizer: that flat directions tolerate longer steps."""
    one = steps.optimizers[name]
    if not one.blocks:
        return []
    own = {block: claim for (optimizer, block), claim in ratios.items() if optimizer == name}
    holds, fails, untold = (
        [block for block, claim in own.items() if claim.status == status] for status in ("holds", "fails", "open")
    )
    # Of a block without either group nothing is asked: the optimizer makes no difference between its directions.
    both = [block for block in one.blocks if one.group(block, "sharp") and one.group(block, "flat")]
    missing = [block for block in both if block not in own]
    if not both:
        return []
    parts = []
    if holds:
        least = [f"{block} (≥{format_number(least_ratio(one, block), 2)})" for block in holds]
        parts.append(f"holds in {join_names(least)}")
    if fails:
        parts.append(f"fails in {join_names(fails)}")
    why_open = []
    if untold:
        why_open.append(f"in {join_names(untold)}, where χ̂ is not told from 1 ({_MORE})")
    if missing:
        where = _blocks(missing, one.blocks, {})
        why_open.append(f"in {where}, where sharp directions have no edge or nothing bounds χ̂ ({_MORE_EDGE})")
    if why_open:
        parts.append(f"is open {' and '.join(why_open)}")
    premise = "LITE’s premise that flat directions tolerate longer steps than sharp ones, χ̂ times as long,"
    beyond = "" if base_name(name) == name else ", beyond the ratio it has,"
    text = f"At {_batch(steps)} a batch, under {name}{beyond or ','} {premise} {'; '.join(parts)}."
    tone = "caution" if fails else "good" if not untold and not missing else "plain"
    points = [Point(tone=tone, text=one_space(text))]
    if own:
        details = " ".join([*(claim.sentence for claim in own.values()), f"All at {_batch(steps)} a batch."])
        points.append(Point(tone="plain", text=details, claims=tuple(own.values()), is_detail=True))
    return points


def _line_checks(steps: Steps, name: str) -> list[Point]:
    """Say where the loss itself has its edge elsewhere than its curvature says."""
    joint = steps.optimizers[name].joint
    if joint is None:
        return []
    nearer, farther = (
        [(one.block, one.part) for one in joint.checks if one.answer == answer]
        for answer in ("edge is nearer", "edge is farther")
    )
    if not nearer and not farther:
        text = f"Line checks: along every group of the mean step of {name} the quadratic holds up to the edge."
        return [Point(tone="plain", text=text, is_detail=True)]
    parts = [
        f"{side} than its curvature says along {_directions(keys, steps.optimizers[name])}"
        for side, keys in (("nearer", nearer), ("farther", farther))
        if keys
    ]
    text = f"Line checks: the edge of the mean step of {name} is {', and '.join(parts)}."
    return [Point(tone="caution" if nearer else "plain", text=text)]


def _details(steps: Steps, name: str, groups: Mapping[Group, Claim]) -> list[Point]:
    """Say what is only for who asks for more: every group's optimum, the sharp share, and the joint optimum."""
    one, points = steps.optimizers[name], []
    claims = tuple(claim for key, claim in groups.items() if key[0] == name)
    if claims:
        text = " ".join(claim.sentence for claim in claims)
        points.append(Point(tone="plain", text=text, claims=claims, is_detail=True))
    shares = [
        f"in {block} {format_share(share.value)} ({format_share(share.low)} to {format_share(share.high)})"
        for block in one.blocks
        if (share := one.implied_sharp_share(block)) is not None
    ]
    if shares:
        text = f"Directions of {name} whose optimum is below half that of the flat group, the leading bands in a row, "
        text += f"at {_batch(steps)} a batch: {join_names(shares)}."
        points.append(Point(tone="plain", text=one_space(text), is_detail=True))
    if one.joint is not None:
        joint = one.joint
        text = (
            f"At its joint multiples the mean step of {name} changes the loss by {format_number(joint.change, 2)} nats "
            f"({format_number(joint.predicted, 2)} by the quadratic, with a ridge of {joint.ridge:g}), as it is by "
            f"{format_number(joint.own_change, 2)}: on the evaluation batches that chose them."
        )
        points.append(Point(tone="plain", text=one_space(text), is_detail=True))
    recipe, state = one.recipe, "; ".join(one.recipe.state_lines) or one.recipe.state
    text = f"{name}: learning rate {recipe.lr:g} ({recipe.lr_source}); state: {state}."
    return [*points, Point(tone="plain", text=text, is_detail=True)]


def _signal(steps: Steps) -> list[Point]:
    """Say what two halves of the batches agree on."""
    if not steps.signal:
        return []
    shares = [f"{format_share(one.share)} in {block}" for block, one in steps.signal.items()]
    random = format_share(max(one.random for one in steps.signal.values()))
    text = (
        f"Of the leading singular directions two halves of the batches agree, at {_batch(steps)} a batch, on "
        f"{join_names(shares)}; random matrices of these shapes on {random} at most."
    )
    return [Point(tone="plain", text=one_space(text), is_detail=True)]


def _corrected(steps: Steps, questions: Mapping[str, Mapping[Group, Claim] | Mapping[Pair, Claim]]) -> list[Point]:
    """Say what was corrected, what intervals cover, and what it took."""
    if all(not one.blocks for one in steps.optimizers.values()):
        text = (
            "Critical steps alone were looked for; intervals are 95%, over "
            f"{count_of(steps.num_batches, 'training batch', 'training batches')}."
        )
        return [Point(tone="plain", text=text, is_detail=True)]
    asked = [f"{count_of(len(claims), 'comparison')} {what}" for what, claims in questions.items() if claims]
    text = f"Decided after Holm’s correction over {join_names(asked)}. " if asked else ""
    text += (
        f"Intervals are 95%, not corrected; they cover {_covers(steps)}, and are for these evaluation batches. Along "
        "the whole step they are over the training batches whose critical step was looked for."
    )
    spent = [f"{format_number(products, 3)} for {what}" for what, products in steps.products.items()]
    text += f" Hessian products over all evaluation batches: {join_names(spent)}." if spent else ""
    return [Point(tone="plain", text=one_space(text), is_detail=True)]


# Words


def part_of(part: str, one: OptimizerSteps) -> str:
    """Name a group of directions; where an optimizer orders none they are all in one."""
    if one.bands is not None and len({*one.bands.parts}) == 1:
        return "all"
    return "non-sharp" if part == "rest" else part


def rate_of(one: OptimizerSteps) -> str:
    """Write an optimizer's learning rate."""
    return format_number(one.recipe.lr, 2)


def where_of(kind: str) -> str:
    """Name a set of batches that critical steps were looked for on, as a sentence does."""
    return _WHERE.get(kind, kind)


def critical_words(critical: CriticalSteps) -> str:
    """Say in words that on some batch no critical step was found, or every step raises the loss."""
    count = len(critical.low)
    rises = int((critical.low == 0.0).sum())
    never = int(((critical.high == critical.low) & (critical.low > 0.0)).sum())
    parts = []
    if rises:
        parts.append(f"every step raises the loss{_on(rises, count)}")
    if never:
        furthest = format_number(float(critical.low[critical.high == critical.low].min()), 2)
        parts.append(f"no critical step up to {furthest} times it was found{_on(never, count)}")
    return " and ".join(parts)


def _on(number: int, count: int) -> str:
    return "" if number == count else f" on {number} of {count_of(count, 'batch', 'batches')}"


def interval_of(one: Estimate) -> tuple[str, str]:
    """Write a value and its 95% interval, `0.41 to 1.55`; ends of one that is far from symmetric by two digits each."""
    is_skewed = one.low > 0.0 and one.high - one.low > one.value
    if is_skewed:
        value, low, high = (format_number(end, 2) for end in (one.value, one.low, one.high))
        return value, f"{low} to {high}"
    value, interval = format_interval(one.value, one.low, one.high)
    return value, interval.removeprefix("95%: ")


def _measured(one: Estimate) -> str:
    """Write a value with its 95% interval; a single batch has none."""
    if one.num_samples == 1:
        return format_number(one.value, 2)
    value, interval = interval_of(one)
    return f"{value} (95%: {interval})"


def _batch(steps: Steps) -> str:
    return f"{steps.batch_tokens:,} {'tokens' if steps.provenance.seq_len is not None else 'samples'}"


def _covers(steps: Steps) -> str:
    batches = count_of(steps.num_batches, "training batch", "training batches")
    return f"{batches} and the evaluation samples that curvature was measured on"

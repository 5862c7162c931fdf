"""What a tuning allows one to say: whether the tuned settings paid in the replay, and what they rest on.

The tuned settings are compared with the base, LITE's published defaults, χ of the step profile alone and the pooled
solution; the four are decided together after Holm's correction, paired by seed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lite_probe.reports.numbers import count_of, format_number, format_share
from lite_probe.reports.sections.replay_verdict import compare_pairs
from lite_probe.reports.verdict import TONES, Point, Verdict, join_names, one_space
from lite_probe.results.claim import Claim
from lite_probe.results.replay import Replay
from lite_probe.results.tuning import BlockSettings, MethodRun, Tuning

LABELS = {  # of candidates, behind @
    "published": "LITE’s published defaults",
    "profile": "χ of the step profile alone",
    "tuned": "the tuned settings",
    "pooled": "the pooled solution",
}
SHARED_BATCHES = "batches-shared"  # code of the note that says so
NEAR = 0.01  # of what the pooled solution gains, within which a method has arrived
_LEAST_APART = 1e-3  # of nodes' gains, of their mean
LEAST_GAP = 1e-4  # of the pooled loss change, below which nobody needs its size
_MORE = "more --seeds, or more --replay-steps, may tell"


def judge_tuning(tuning: Tuning) -> Verdict:
    """Say whether tuning paid, at which batch size, and what is recommended."""
    claims = compare_candidates(tuning)
    main = claims.get(tuning.base)
    lead = _lead(tuning, claims)
    points = [*_others(tuning, claims), *_divergence(tuning), *_recommendation(tuning), *_too_long(tuning)]
    points += [
        *_bounded(tuning),
        *_against_pooled(tuning),
        *_unphysical(tuning),
        *_heterogeneity(tuning),
        *_reach(tuning),
        *_details(tuning, claims),
    ]
    return Verdict(lead=one_space(lead), points=tuple(points), leading=() if main is None else (main,))


def tuned_name(tuning: Tuning) -> str:
    """Return what the replay calls the tuned settings."""
    return f"{tuning.optimizer}@tuned"


def label_of(tuning: Tuning, name: str) -> str:
    """Say what a replayed name stands for."""
    if name == tuning.base:
        return "the base"
    _, _, label = name.partition("@")
    return LABELS.get(label, name) if label else name


def compare_candidates(tuning: Tuning) -> dict[str, Claim]:
    """Ask whether the tuned settings end below the base, and below every other candidate; by what they are held to.

    Nothing is asked without two seeds that both finished.
    """
    if tuning.replay is None:
        return {}
    own = tuned_name(tuning)
    others = [name for name in (tuning.base, *tuning.candidates) if name != own and name in tuning.replay.recipes]
    pairs = [(own, other) for other in others] if own in tuning.replay.recipes else []
    return {other: claim for (_, other), claim in compare_pairs(tuning.replay, pairs).items()}


def chosen_method(tuning: Tuning) -> MethodRun | None:
    """Return the method whose settings are recommended."""
    return next((one for one in tuning.methods if one.is_chosen), None)


def steps_to_pooled(tuning: Tuning, method: MethodRun) -> int | None:
    """Return from which recorded step on a method stays within 1% of what the pooled solution gains; None: never."""
    far = ~(np.abs(method.upper_loss - tuning.pooled_loss) <= NEAR * abs(tuning.pooled_loss))
    first = int(np.flatnonzero(far)[-1]) + 1 if far.any() else 0
    return int(method.step[first]) if first < len(method.step) else None


def batch_of(tuning: Tuning) -> str:
    """Write the batch size that steps were measured and replayed at."""
    return f"{tuning.batch_tokens:,} {'tokens' if tuning.provenance.seq_len is not None else 'samples'}"


def groups_without_pair(tuning: Tuning) -> list[str]:
    """Return the blocks that have not both a sharp and a non-sharp group, and so no χ."""
    return [block for block in dict.fromkeys(tuning.models.blocks) if tuning.tuned.of(block) is None]


def ratio_text(one: BlockSettings) -> str:
    """Write χ of a block with its range over nodes: `3.2 (2.8 to 4.1)`."""
    value, low, high = (format_number(end, 3) for end in (one.ratio, one.ratio_low, one.ratio_high))
    return value if value == low == high else f"{value} ({low} to {high})"


# The lead


def _lead(tuning: Tuning, claims: Mapping[str, Claim]) -> str:
    """Say whether the tuned settings beat the base, over which steps and seeds, and at which batch."""
    own, base, at = tuned_name(tuning), tuning.base, f"at a batch of {batch_of(tuning)}"
    replay = tuning.replay
    if replay is None:
        return (
            f"The recommended settings of {tuning.optimizer}, learned {at}, are untested: no replay was made; "
            "--replay-steps 20 makes one."
        )
    extent = f"over {count_of(replay.steps, 'step')} and {count_of(replay.num_seeds, 'seed')}, {at}"
    claim = claims.get(base)
    if claim is None:
        return f"Whether tuning pays is open: {_why_not_asked(replay, own, base)} {extent}."
    if claim.status == "holds":
        opening = f"Tuning paid against {base}:"
    elif claim.status == "fails":
        opening = f"Tuning did not pay against {base}:"
    else:
        opening = f"Whether tuning pays against {base} is open:"
    more = f" {_MORE[0].upper()}{_MORE[1:]}." if claim.status == "open" else ""
    others = _summary(tuning, claims)
    return f"{opening} {claim.sentence} That is {extent}.{more}{others}"


def _why_not_asked(replay: Replay, name: str, other: str) -> str:
    for one in (name, other):
        if one not in replay.recipes:
            return f"{one} was not replayed,"
        if not replay.runs_of(one):
            return f"every run of {one} diverged,"
    return f"{name} and {other} have fewer than two seeds that both finished,"


def _summary(tuning: Tuning, claims: Mapping[str, Claim]) -> str:
    """Say in one sentence how the tuned settings stand to the other candidates."""
    words = {"holds": "end below", "fails": "end above", "open": "are not told from"}
    parts = []
    for status, verb in words.items():
        named = [
            label_of(tuning, name) for name, claim in claims.items() if claim.status == status and name != tuning.base
        ]
        if named:
            parts.append(f"{verb} {join_names(named)}")
    return f" The tuned settings {', and '.join(parts)}." if parts else ""


# Points


def _others(tuning: Tuning, claims: Mapping[str, Claim]) -> list[Point]:
    """Give every comparison beside that with the base."""
    points = []
    for name, claim in claims.items():
        if name != tuning.base:
            label = label_of(tuning, name)
            text = f"Against {label}: {claim.sentence}"
            points.append(Point(tone=TONES.get(claim.status, "plain"), text=text, claims=(claim,)))
    return points


def _divergence(tuning: Tuning) -> list[Point]:
    replay = tuning.replay
    points = []
    for name in replay.optimizers if replay is not None else ():
        lost = replay.diverged(name) if replay is not None else ()
        if lost and replay is not None:
            steps = [run.diverged_at for run in lost if run.diverged_at is not None]
            text = f"{name} diverged on {len(lost)} of {count_of(replay.num_seeds, 'seed')}, at step {min(steps)} first"
            points.append(Point(tone="caution", text=f"{text}: those seeds are in none of its comparisons."))
    return points


def _recommendation(tuning: Tuning) -> list[Point]:
    """Say what is recommended."""
    blocks = tuning.tuned.blocks
    if not blocks:
        text = f"No block has both sharp and non-sharp directions: there is no χ to recommend for {tuning.optimizer}."
        return [Point(tone="caution", text=text)]
    ratios = join_names([f"{one.block} {ratio_text(one)}" for one in blocks])
    spread = ""
    if "(" in "".join(map(ratio_text, blocks)):
        spread = "; in parentheses the range over what the nodes’ own data would have"
    text = (
        f"Recommended for {tuning.optimizer}: β₂ = {format_number(tuning.tuned.damping, 3)} and χ of {ratios}{spread}."
    )
    return [Point(tone="plain", text=text)]


def _too_long(tuning: Tuning) -> list[Point]:
    """Say where the learning rate itself is too long, which LITE's settings cannot mend."""
    sentences = []
    ranges = {one.block: tuning.range_of(one.block, "sharp") for one in tuning.tuned.blocks if one.sharp < 1.0}
    for is_sure, answer in (
        (True, "the learning rate itself is too large there"),
        (False, "it may be too large there"),
    ):
        short = [
            f"{one.block} ({_multiple_text(one.sharp, *ranges[one.block])})"
            for one in tuning.tuned.blocks
            if one.block in ranges and (ranges[one.block][1] < 1.0) is is_sure
        ]
        if short:
            nodes = "every node’s data asks" if is_sure else "the nodes together ask, though not each alone,"
            sentences.append(
                f"Along the sharp directions of {join_names(short)} {nodes} for less than the step that "
                f"{tuning.base} takes at {format_number(tuning.lr, 2)}: {answer}."
            )
    if not sentences:
        return []
    knobs = "LITE’s settings cannot shorten steps along sharp directions, only lengthen the others."
    return [Point(tone="caution", text=" ".join([*sentences, knobs]))]


def _multiple_text(value: float, low: float, high: float) -> str:
    shown, ends = format_number(value, 2), [format_number(end, 2) for end in (low, high)]
    return shown if ends == [shown, shown] else f"{shown}, over nodes {ends[0]} to {ends[1]}"


def _against_pooled(tuning: Tuning) -> list[Point]:
    """Say how near the nodes came to what all data in one place would have had."""
    method = chosen_method(tuning)
    if method is None or not len(method.step):
        return []
    end, pooled, consensus = float(method.upper_loss[-1]), tuning.pooled_loss, float(method.consensus[-1])
    if not np.isfinite(end):
        return [Point(tone="caution", text=f"{method.name} diverged: what is recommended is not the nodes’ agreement.")]
    gap = abs(end - pooled) / max(abs(pooled), 1e-300)
    side = "short of" if end >= pooled else "beyond"
    near = f"{format_share(gap)} {side}" if gap >= LEAST_GAP else "less than 0.01% from"
    arrived = steps_to_pooled(tuning, method)
    when = f", within 1% from step {arrived:,} on" if arrived is not None else ""
    text = (
        f"{method.name} over {count_of(tuning.num_nodes, 'node')} ({tuning.topology}) ends where the models put the "
        f"validation loss change at {format_number(end, 3)} nats, {near} the pooled solution’s "
        f"{format_number(pooled, 3)}{when}. The nodes’ dampings are {format_number(consensus, 2)} apart (root mean "
        "square, in logarithms)."
    )
    tone = "plain" if arrived is not None else "caution"
    return [Point(tone=tone, text=one_space(text))]


def _bounded(tuning: Tuning) -> list[Point]:
    """Say which χ are at the largest that is recommended, and what the models ask for."""
    asked = {
        one.block: one.rest / max(one.sharp, 1.0)
        for one in tuning.tuned.blocks
        if one.ratio < (1.0 - NEAR) * one.rest / max(one.sharp, 1.0)
    }
    if not asked:
        return []
    ratios = [f"{block} ({format_number(ratio, 2)})" for block, ratio in asked.items()]
    most = format_number(max(one.ratio for one in tuning.tuned.blocks if one.block in asked), 3)
    text = (
        f"χ of {most} is the largest that is recommended, since a model of one step says nothing of longer ones; the "
        f"nodes’ models ask for more in {join_names(ratios)}."
    )
    return [Point(tone="caution", text=text)]


def _unphysical(tuning: Tuning) -> list[Point]:
    """Say where a solution's models promise more than there is to gain."""
    promised = {
        "the pooled solution": min(tuning.pooled_loss, tuning.pooled.upper_loss),
        "the tuned settings": tuning.tuned.upper_loss,
    }
    beyond = [f"{name} {format_number(loss, 3)} nats" for name, loss in promised.items() if -loss > tuning.loss]
    if not beyond:
        return []
    text = (
        f"More than the whole loss of {format_number(tuning.loss, 3)} nats is what the models promise: "
        f"{join_names(beyond)}. No quadratic holds so far: "
        "nothing is to be read from the size, nor from how far others are from it."
    )
    return [Point(tone="caution", text=text)]


def _heterogeneity(tuning: Tuning) -> list[Point]:
    apart = tuning.models.heterogeneity
    size = format_number(apart, 2) if apart >= _LEAST_APART else f"less than {_LEAST_APART:g}"
    text = (
        f"The nodes’ gains are {size} times the size of their mean apart from "
        f"it (0: all have the same data; above 1 they differ more than they agree). Shards: {tuning.shards}."
    )
    return [Point(tone="plain", text=text)]


def _reach(tuning: Tuning) -> list[Point]:
    """Say what the numbers are of: one step from θ₀, however long the replay."""
    if tuning.replay is None:
        return []
    trained = "batches that none of the settings was made from"
    if is_shared(tuning):
        trained = "batches that the step profile was measured from too, for want of others"
    judged = "held-out batches"
    if tuning.replay.on_same_batches() is None:
        judged = "the evaluation batches, on which the step profile’s curvature was measured"
    text = (
        f"The curvature behind the settings is that of θ₀ and of one step; the replay is of "
        f"{count_of(tuning.replay.steps, 'step')}, on {trained}, and its losses are of {judged}. Over more steps, or "
        "at another batch size, less or more may be better."
    )
    return [Point(tone="caution" if is_shared(tuning) else "plain", text=text)]


def is_shared(tuning: Tuning) -> bool:
    """Whether the replay trains on batches that the step profile was measured from."""
    return any(note.code == SHARED_BATCHES for note in tuning.notes)


def _details(tuning: Tuning, claims: Mapping[str, Claim]) -> list[Point]:
    texts = []
    missing = groups_without_pair(tuning)
    if missing:
        where = join_names(missing)
        texts.append(f"No χ for {where}: it takes both sharp and non-sharp directions. LITE’s default stays there.")
    if claims:
        texts.append(
            f"Decided after Holm’s correction over {count_of(len(claims), 'comparison')}; intervals are 95%, not "
            "corrected, paired by seed."
        )
    texts += _pooled_settings(tuning)
    return [Point(tone="plain", text=one_space(text), is_detail=True) for text in texts]


def _pooled_settings(tuning: Tuning) -> Sequence[str]:
    if not tuning.pooled.blocks:
        return ()
    ratios = join_names([f"{one.block} {format_number(one.ratio, 3)}" for one in tuning.pooled.blocks])
    damping = format_number(tuning.pooled.damping, 3)
    losses = [format_number(one.upper_loss, 3) for one in (tuning.tuned, tuning.pooled)]
    return (
        f"With all data in one place: β₂ = {damping} and χ of {ratios}. At the recommended multiples the nodes’ "
        f"validation models change by {losses[0]} nats, at the pooled ones by {losses[1]}.",
    )

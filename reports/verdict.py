"""What the numbers allow one to say: claims in sentences, and what they are to be read with."""

from collections.abc import Sequence
from dataclasses import dataclass

from lite_probe.reports.numbers import count_of
from lite_probe.results.claim import Claim
from lite_probe.results.provenance import Provenance
from lite_probe.results.replay import base_name as base_name

TONES = {"holds": "good", "fails": "caution"}  # of a claim's status; others are plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One supporting statement of the verdict."""

    tone: str  # "good", "caution" or "plain"
    text: str  # the sentences of its claims are in it, word for word
    claims: tuple[Claim, ...] = ()
    is_detail: bool = False  # a terminal leaves it out unless asked for more; a page has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer in a sentence or two, and what it rests on."""

    lead: str
    points: tuple[Point, ...]
    leading: tuple[Claim, ...] = ()  # whose sentences are in the lead

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Everything that is claimed, in the order in which it is said."""
        return (*self.leading, *(claim for point in self.points for claim in point.claims))


def make_claim(
    about: tuple[str, str],
    bounds: tuple[float, float, float],
    sign: int,
    sentence: str,
    *,
    covers: str,
    unit: str = "loss/param²",
    comparisons: int = 1,
    confidence: float = 0.95,
) -> Claim:
    """Make a claim that holds where the sign is 1, fails where it is −1 and is open where it is 0.

    Args:
        about: (subject, quantity).
        bounds: (value, low, high).
        sign: Of the answer.
        sentence: What is said; its spaces that don't break become plain ones.
        covers: What the interval covers.
        unit: Of the value.
        comparisons: That were decided together.
        confidence: Of the interval.
    """
    return Claim(
        subject=about[0],
        quantity=about[1],
        value=bounds[0],
        low=bounds[1],
        high=bounds[2],
        unit=unit,
        status={1: "holds", 0: "open", -1: "fails"}[sign],
        sentence=one_space(sentence),
        comparisons=comparisons,
        covers=covers,
        confidence=confidence,
    )


def one_space(text: str) -> str:
    """Return a sentence without spaces that don't break: the same in a terminal, a page and an object."""
    return text.replace("\u00a0", " ")


def join_names(names: Sequence[str]) -> str:
    """Join names in a sentence: `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def batch_words(provenance: Provenance) -> str:
    """Say how large the training batches are, `1,024 tokens`; empty where that is not known.

    Every verdict on LITE has it: whether LITE gains was seen to depend on it.
    """
    if not provenance.batch_size:
        return ""
    if provenance.seq_len is None:
        return count_of(provenance.batch_size, "sample")
    return count_of(provenance.batch_size * provenance.seq_len, "token")

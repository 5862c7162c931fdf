"""Where a result comes from, and what happened on the way."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something the reader of a result should know: a fallback, a warning, an omission.

    Terminal and report show every note of a result.
    """

    code: str  # short, stable, kebab-case: "unused-parameters"
    message: str  # one sentence for people


def join_notes(*groups: Iterable[Note]) -> tuple[Note, ...]:
    """Join the notes of several parts of a result, each once, where it comes first."""
    return tuple(dict.fromkeys(note for group in groups for note in group))


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What exactly was run, so that it can be run again."""

    lite_probe_version: str
    torch_version: str
    transformers_version: str
    python_version: str
    platform: str
    device: str  # "cpu" or the name of the accelerator
    num_threads: int
    precision: str  # of parameters and products, "float32"
    seed: int
    command: str  # the command line or the Python call
    started_at: str  # ISO 8601, UTC
    wall_seconds: float
    peak_memory_bytes: int
    checkpoint_name: str
    checkpoint_format: str
    checkpoint_fingerprint: str
    checkpoint_step: int | None
    architecture: str  # one line for people: "llama · 6 layers · hidden 256"
    data_name: str
    data_split: str  # "evaluation", "train" or "held-out"
    batches_digest: str
    num_batches: int
    batch_size: int
    seq_len: int | None
    num_tokens: int  # counted in the loss, over all batches
    details: Mapping[str, str] = field(default_factory=dict)  # whatever else helps to run it again

"""What was found in a checkpoint, as plain facts: what `inspect` shows and a run directory keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lite_probe.results.provenance import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFound:
    """The optimizer state that lies in a checkpoint; recognised by its names, never loaded."""

    name: str  # "adamw", "adam", "muon", "soap", "sgd", "lion", "adafactor", "unknown"; "muon+adamw" for two
    state_names: tuple[str, ...]  # sorted: ("exp_avg", "exp_avg_sq", "step")
    num_tensors: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """Everything known of a checkpoint without running its model."""

    path: str  # as the user gave it
    name: str  # safe for a folder: [A-Za-z0-9._-]
    format: str  # "huggingface", "nanogpt", "lite", "distributed", "lightning", "torch"
    family: str | None  # transformers' model_type; None where no model config is known
    architecture: str  # one line for people: "llama · 6 layers · hidden 256"
    step: int | None  # completed updates
    num_parameters: int  # tied weights once
    block_parameters: Mapping[str, int] = field(default_factory=dict)  # empty where blocks are not known
    vocab_size: int | None
    max_seq_len: int | None  # tokens
    model_config: Mapping[str, object] | None
    tokenizer_path: str | None
    optimizer: OptimizerFound | None
    weight_bytes: int  # of the tensors of the model, as stored
    fingerprint: str  # SHA-256 of weight files and config, hex
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        """Check that the blocks partition the parameters."""
        total = sum(self.block_parameters.values())
        if self.block_parameters and total != self.num_parameters:
            raise ValueError(f"expected blocks of {self.num_parameters:,} parameters together, got {total:,}")

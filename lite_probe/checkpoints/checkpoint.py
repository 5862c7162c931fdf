"""One checkpoint, whatever its format: facts at once, weights when they are asked for."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lite_probe.blocks import Given, assign_blocks, block_map, block_sizes, given_parts
from lite_probe.checkpoints.json_files import as_json
from lite_probe.checkpoints.models import (
    Adapt,
    architecture_of,
    build_skeleton,
    leave_as_is,
    load_model,
    parse_config,
)
from lite_probe.checkpoints.optimizers import (
    SavedSchedule,
    ScheduleReader,
    StateDict,
    StateReader,
    describe_optimizers,
    no_schedule,
    no_states,
)
from lite_probe.checkpoints.weights import Weights
from lite_probe.errors import InputError
from lite_probe.files import open_regular
from lite_probe.results.blocks import BlockMap
from lite_probe.results.checkpoint import CheckpointSummary, OptimizerFound
from lite_probe.results.provenance import Note

HASH_CHUNK_BYTES = 2**22


class Checkpoint:
    """A training checkpoint on disk; `open_checkpoint` makes one.

    Args:
        path: File or folder, as the user gave it.
        format: "huggingface", "nanogpt", "lite", "distributed", "lightning" or "torch".
        weights: The model's tensors, named as the model names them or as transformers converts them.
        model_config: Content of a transformers config; None where none is known.
        step: Completed updates.
        tokenizer_path: `tokenizer.json` or `tokenizer_config.json` beside the weights.
        read_states: Looks for optimizer state, when it is asked for.
        read_schedule: Looks for the learning rates of its schedule, likewise.
        adapt: Last changes to the model that the config cannot express.
        notes: What a reader of any result from this checkpoint should know.

    Raises:
        InputError: If the model config names an unknown architecture or makes no sense.
    """

    def __init__(
        self,
        *,
        path: Path,
        format: str,  # noqa: A002  # the name users read
        weights: Weights,
        model_config: Mapping[str, Any] | None,
        step: int | None = None,
        tokenizer_path: Path | None = None,
        read_states: StateReader = no_states,
        read_schedule: ScheduleReader = no_schedule,
        adapt: Adapt = leave_as_is,
        notes: Sequence[Note] = (),
    ) -> None:
        self.path = path
        self.format = format
        self.weights = weights
        self.model_config: dict[str, Any] | None = None if model_config is None else as_json(model_config)
        self.step = step
        self.tokenizer_path = tokenizer_path
        self._read_states = read_states
        self._read_schedule = read_schedule
        self._adapt = adapt
        self._notes = tuple(notes)
        self._config = None
        if self.model_config is not None:
            self._config = parse_config(self.model_config, num_tensors=len(weights.metas))

    @property
    def name(self) -> str:
        """A name for folders: [A-Za-z0-9._-], the file without its ending or the folder."""
        resolved = self.path.resolve()
        bare = resolved.name if resolved.is_dir() else resolved.stem
        return re.sub(r"[^A-Za-z0-9._-]+", "-", bare).strip(".-") or "checkpoint"

    @property
    def family(self) -> str | None:
        """The model_type of transformers, "llama" or "gpt2"; None where no model config is known."""
        return None if self._config is None else str(self._config.model_type)

    @property
    def architecture(self) -> str:
        """One line for people: `llama · 6 layers · hidden 256`."""
        if self._config is None:
            return f"unknown architecture · {len(self.weights.metas):,} tensors"
        return architecture_of(self._config, "nanoGPT" if self.format == "nanogpt" else str(self.family))

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids the model knows."""
        return getattr(self._config, "vocab_size", None)

    @property
    def max_seq_len(self) -> int | None:
        """The longest sequence the model was configured for, tokens."""
        return getattr(self._config, "max_position_embeddings", None)

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model on the meta device: names, shapes and ties, no storage.

        Raises:
            InputError: If no model config is known, or it makes no model.
        """
        if self._config is None:
            raise InputError(
                f"expected a model config to build a model, got none with {self.path.name} ({self.format})",
                "pass --model-config CONFIG.json of a Hugging Face model, or --task FILE.py:FUNCTION for a model "
                "of your own",
            )
        skeleton = build_skeleton(self._config)
        self._adapt(skeleton)
        return skeleton

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name → shape, tied weights once, of the model if its config is known, else as saved."""
        if self._config is None:
            return {name: tuple(meta.shape) for name, meta in self.weights.metas.items()}
        return {name: tuple(parameter.shape) for name, parameter in self.skeleton.named_parameters()}

    @property
    def num_parameters(self) -> int:
        """Parameters, tied weights once; without a model config the elements of all floating tensors.

        Raises:
            InputError: If the model config makes no model.
        """
        if self._config is None:
            return sum(meta.numel() for meta in self.weights.distinct if meta.is_floating_point())
        return sum(torch.Size(shape).numel() for shape in self._shapes.values())

    @cached_property
    def _optimizer(self) -> tuple[OptimizerFound | None, Note | None]:
        """The optimizer found, and a note on why it could not be read: the weights do not need it."""
        try:
            found = self._read_states(values=False)
        except InputError as error:
            return None, Note(code="optimizer-unreadable", message=f"Optimizer state was not read: {error}.")
        return (describe_optimizers(found) if found else None), None

    @property
    def optimizer(self) -> OptimizerFound | None:
        """The optimizer state that lies in the checkpoint; its tensors are not read."""
        return self._optimizer[0]

    @property
    def notes(self) -> tuple[Note, ...]:
        """What a reader of any result from this checkpoint should know."""
        note = self._optimizer[1]
        return self._notes if note is None else (*self._notes, note)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of the weight files and of the model config, hex.

        File names and paths do not enter: a moved checkpoint keeps its results.

        Cost: one pass over the files, the first time.
        """
        digest = hashlib.sha256()
        for path in sorted(self.weights.files):
            with open_regular(path, "a file of the checkpoint") as stream:
                digest.update(os.fstat(stream.fileno()).st_size.to_bytes(8, "little"))
                while chunk := stream.read(HASH_CHUNK_BYTES):
                    digest.update(chunk)
        digest.update(json.dumps(self.model_config, sort_keys=True).encode())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights by name, wrapper prefixes stripped; tensors may be views of mapped files.

        Names are the model's own for every format but older mixtures of experts, whose experts lie on disk
        one by one and are fused when the model is built.

        Raises:
            InputError: If a file is damaged.
        """
        self.weights.verify()
        return {name: self.weights.read(name) for name in self.weights.metas}

    def optimizer_states(self) -> list[StateDict]:
        """Return the optimizer state dicts, for `lite_probe.optim.restore_state`; none where none was saved.

        They are as `torch.optim.Optimizer.state_dict` returned them, apart from nanoGPT's, which have the names and
        layout of GPT-2's parameters, since its weights do. Tensors may be views of mapped files.

        Raises:
            InputError: If their file is damaged.
            UnsafePickleError: If it asks for a name outside the allow-list.

        Cost: one pass over the file; a distributed checkpoint is read into memory.
        """
        return list(self._read_states(values=True))

    def schedule(self) -> SavedSchedule | None:
        """Return the learning rates that the schedule of the optimizer states peaks at, where they were saved apart.

        Raises:
            InputError: If their file is damaged.
            UnsafePickleError: If it asks for a name outside the allow-list.
        """
        return self._read_schedule()

    def build_model(self, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build the model with its weights, ready to be differentiated twice.

        Args:
            device: Where it goes.
            dtype: Of its parameters.

        Returns:
            A causal language model of transformers in evaluation mode, eager attention, no cache.

        Raises:
            InputError: If no model config is known, or weights and config do not fit.
            NumericsError: If a weight is NaN or infinite.

        Cost: one copy of the weights in memory.
        """
        return load_model(self.skeleton, self.weights, adapt=self._adapt, device=device, dtype=dtype)

    def block_map(self, model: nn.Module | None = None, *, overrides: Given | None = None) -> BlockMap:
        """Assign the model's parameters to blocks.

        Args:
            model: From `build_model`; None takes the names and shapes that are in the checkpoint.
            overrides: As for `lite_probe.blocks.block_map`; each has to match a parameter.

        Returns:
            Parameter name → its parts; together they partition the parameters.

        Raises:
            InputError: If the family's blocks are not known, naming the parameters that match nothing.
        """
        shapes = self._shapes
        if model is not None:
            shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        own = None if overrides is None else given_parts(shapes, overrides)
        return block_map(shapes, self.family, config=self._config, overrides=own)

    def summary(self, blocks: Given | None = None) -> CheckpointSummary:
        """Return all of the above as plain values.

        Args:
            blocks: As `overrides` of `block_map`.

        Raises:
            InputError: If the model config makes no model, or `blocks` do not fit it.

        Cost: one pass over the files for the fingerprint; weights are not loaded.
        """
        sizes: dict[str, int] = {}
        if blocks is not None:
            sizes = block_sizes(self._shapes, self.block_map(overrides=blocks))
        elif self._config is not None:
            parts, unknown = assign_blocks(self._shapes, self.family, config=self._config)
            sizes = {} if unknown else block_sizes(self._shapes, parts)
        return CheckpointSummary(
            path=str(self.path),
            name=self.name,
            format=self.format,
            family=self.family,
            architecture=self.architecture,
            step=self.step,
            num_parameters=self.num_parameters,
            block_parameters=sizes,
            vocab_size=self.vocab_size,
            max_seq_len=self.max_seq_len,
            model_config=self.model_config,
            tokenizer_path=None if self.tokenizer_path is None else str(self.tokenizer_path),
            optimizer=self.optimizer,
            weight_bytes=self.weights.num_bytes,
            fingerprint=self.fingerprint,
            notes=self.notes,
        )

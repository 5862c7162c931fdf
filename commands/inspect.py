"""`lite-probe inspect`: what a checkpoint is, without running it, and roughly what a spectrum of it needs."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.measuring import RunOptions
from lite_probe.commands.options import (
    ConfiguredCommand,
    Whole,
    config_option,
    console_options,
    example,
    options_from,
)
from lite_probe.commands.task import TaskOptions
from lite_probe.commands.wording import count, duration, size
from lite_probe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lite_probe.blocks import Given
    from lite_probe.checkpoints import Checkpoint
    from lite_probe.results.checkpoint import CheckpointSummary
    from lite_probe.spectra.sizes import PerGpu

_TYPICAL_BASIS_COLUMNS = 45  # seen for ten pairs at a tolerance of 1e-3, on trained language models
# A Hessian product costs about two gradients, a gradient 6 floating-point operations per parameter and token.
_OPERATIONS_PER_PARAMETER_AND_TOKEN = 12
# Of the speed of a matrix product, seen on Llamas of 1 to 20 M parameters: 0.4 to 0.65.
_SHARE_OF_SPEED = 0.6
_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """A rough estimate of what a spectrum with default options needs; `spectrum --dry-run` knows better."""

    num_hvps: int
    num_tokens: int
    seconds: float
    weights_bytes: int  # parameters, gradient and one product
    basis_bytes: int  # the Krylov basis, on disk where memory does not hold it
    operations_per_second: float  # measured here, just now


@click.command(
    "inspect",
    cls=ConfiguredCommand,
    epilog=example("inspect runs/gpt/ckpt.pt", "inspect llama-7b/config.json --gpus 8 --seq-len 1024"),
)
@click.argument("checkpoint", metavar="CKPT", type=click.Path())
@options_from(TaskOptions, "trust_pickle", "model_config", "blocks_file")
@click.option("--tokens", type=Whole(1), default=4096, show_default=True, help="Of the batches of the estimate.")
@click.option("--gpus", type=Whole(1, 4096), help="Count what each of up to so many GPUs would hold and send.")
@click.option("--seq-len", type=Whole(1), default=1024, show_default=True, help="Of the row that --gpus counts.")
@options_from(RunOptions, "as_json")
@config_option
@console_options
@click.pass_obj
def command(
    terminal: Terminal,
    checkpoint: str,
    trust_pickle: bool,
    model_config: str | None,
    blocks_file: str | None,
    tokens: int,
    gpus: int | None,
    seq_len: int,
    as_json: bool,
) -> None:
    """Show what a checkpoint is: format, architecture, step, blocks, optimizer state, tokenizer.

    The weights are not run. What a spectrum would need is a rough estimate; `lite-probe spectrum --dry-run` builds
    the graph of a batch and knows better. A model's config.json in place of a checkpoint will do: --gpus counts on it
    what a training run's GPUs will hold, before there are weights.
    """
    with terminal.waiting(f"opening {checkpoint}"):
        from lite_probe.blocks import read_blocks

        blocks = None if blocks_file is None else read_blocks(Path(blocks_file))
        found = _planned(Path(checkpoint), blocks) if checkpoint.endswith(".json") else None
        if found is None:
            found = _opened(checkpoint, trust_pickle, model_config, blocks)
        sizes = found.block_parameters
        needs = estimate_needs(found.num_parameters, tokens, looked_up=looked_up_parameters(sizes))
    footprints = [] if gpus is None else _count_on_gpus(terminal, found, gpus, seq_len)
    if as_json:
        told = {**found.facts, "estimated_needs": asdict(needs)}
        if gpus is not None:
            told["gpus"] = [{**asdict(one), "held_bytes": one.held_bytes} for one in footprints]
        print_stdout(json.dumps(told, default=dict))
        return
    if found.summary is not None:
        print_summary(terminal, found.summary)
    else:
        terminal.line(
            f"config · {found.facts['architecture']} · {count(found.num_parameters)} parameters · no weights", "bold"
        )
        print_blocks(terminal, sizes, found.num_parameters)
    print_needs(terminal, needs)
    if footprints:
        print_footprints(terminal, footprints, seq_len)
    if found.summary is not None:
        terminal.notes([note.message for note in found.summary.notes])
    if found.checkpoint is not None and not sizes and found.checkpoint.family is not None:
        tell_unknown_blocks(terminal, found.checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A checkpoint, or a config without one."""

    facts: Mapping[str, object]  # as --json prints them
    num_parameters: int
    block_parameters: Mapping[str, int]  # empty where blocks are not known
    skeleton: "Callable[[], PreTrainedModel]"
    checkpoint: "Checkpoint | None" = None
    summary: "CheckpointSummary | None" = None


def _opened(checkpoint: str, trust_pickle: bool, model_config: str | None, blocks: "Given | None") -> _Found:
    from lite_probe.checkpoints import open_checkpoint

    opened = open_checkpoint(checkpoint, trust_pickle=trust_pickle, model_config=model_config)
    summary = opened.summary(blocks)
    return _Found(
        facts=asdict(summary),
        num_parameters=summary.num_parameters,
        block_parameters=summary.block_parameters,
        skeleton=lambda: opened.skeleton,
        checkpoint=opened,
        summary=summary,
    )


def _planned(path: Path, blocks: "Given | None") -> _Found:
    """Read a config that may have no weights yet.

    Raises:
        InputError: If it makes no model, or `blocks` do not fit it.
    """
    from lite_probe.blocks import assign_blocks, block_map, block_sizes, given_parts
    from lite_probe.checkpoints.models import architecture_of, read_skeleton

    skeleton = read_skeleton(path)
    config, family = skeleton.config, str(skeleton.config.model_type)
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    if blocks is not None:
        sizes = block_sizes(shapes, block_map(shapes, family, config=config, overrides=given_parts(shapes, blocks)))
    else:
        parts, unknown = assign_blocks(shapes, family, config=config)
        sizes = {} if unknown else block_sizes(shapes, parts)
    number = sum(parameter.numel() for parameter in skeleton.parameters())
    facts = {
        "path": str(path),
        "format": "config",
        "family": family,
        "architecture": architecture_of(config, family),
        "num_parameters": number,
        "block_parameters": sizes,
    }
    return _Found(facts=facts, num_parameters=number, block_parameters=sizes, skeleton=lambda: skeleton)


def _count_on_gpus(terminal: Terminal, found: _Found, gpus: int, seq_len: int) -> "list[PerGpu]":
    """Count what each of 1, 2, 4 … GPUs holds and sends, up to all of them."""
    from lite_probe.spectra.sizes import count_graph, footprint, sharded_footprint

    with terminal.waiting(f"counting the graph of 1 × {seq_len:,} tokens"):
        skeleton = found.skeleton()
        graph, gradient = (count_graph(skeleton, rows=1, seq_len=seq_len, twice=twice) for twice in (True, False))
    numbers = [2**power for power in range(gpus.bit_length()) if 2**power < gpus] + [gpus]
    columns = _TYPICAL_BASIS_COLUMNS
    whole = [footprint(skeleton, graph_bytes=graph, gpus=number, basis_columns=columns) for number in numbers]
    if gpus == 1:
        return whole
    return [*whole, sharded_footprint(skeleton, graph_bytes=gradient, gpus=gpus, basis_columns=columns)]


def tell_unknown_blocks(terminal: Terminal, checkpoint: "Checkpoint") -> None:
    """Say which parameters' blocks are not known, and show a file for `--blocks` to start from."""
    try:
        checkpoint.block_map()
    except InputError as error:
        terminal.notes([f"{error.message}; {error.hint}" if error.hint else error.message])
        if error.sample and not terminal.quiet:
            terminal.sample(error.sample)


def estimate_needs(num_parameters: int, num_tokens: int, *, looked_up: int = 0) -> Needs:
    """Estimate time and memory of a spectrum from the number of parameters and the speed of a matrix product.

    Args:
        num_parameters: All of them.
        num_tokens: Of all batches together.
        looked_up: Parameters of which a token takes a row, which costs next to nothing.
    """
    from lite_probe.spectra import OperatorRequest

    products = OperatorRequest().expected_products
    rate = _operations_per_second()
    work = products * _OPERATIONS_PER_PARAMETER_AND_TOKEN * (num_parameters - looked_up) * num_tokens
    return Needs(
        num_hvps=products,
        num_tokens=num_tokens,
        seconds=work / (_SHARE_OF_SPEED * rate),
        weights_bytes=3 * _BYTES * num_parameters,
        basis_bytes=_TYPICAL_BASIS_COLUMNS * _BYTES * num_parameters,
        operations_per_second=rate,
    )


def looked_up_parameters(block_parameters: Mapping[str, int]) -> int:
    """Return how many parameters are embeddings that no matrix product sees: none where the head shares them."""
    return block_parameters.get("emb", 0) if "out" in block_parameters else 0


def _operations_per_second(width: int = 512, seconds: float = 0.3) -> float:
    """Measure the speed of a float32 matrix product on the CPU: the best of many short ones.

    The first ones start threads and fetch memory, and on a busy machine most share the processor with others.
    """
    import torch

    matrix = torch.ones(width, width)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 5 or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        taken.append(time.perf_counter() - started)
    return 2.0 * width**3 / min(taken)


def print_summary(terminal: Terminal, summary: "CheckpointSummary") -> None:
    """Show a checkpoint in a few lines."""
    step = f"step {summary.step:,}" if summary.step is not None else "step unknown"
    facts = [summary.format, summary.architecture, f"{count(summary.num_parameters)} parameters", step]
    terminal.line(" · ".join(fact for fact in facts if fact), style="bold")
    print_blocks(terminal, summary.block_parameters, summary.num_parameters)
    terminal.line(f"weights: {size(summary.weight_bytes)}, fingerprint {summary.fingerprint[:12]}")
    found = summary.optimizer
    if found is None:
        terminal.line("optimizer state: none")
    else:
        names = ", ".join(found.state_names)
        terminal.line(f"optimizer state: {found.name} ({names}), {found.num_tensors} tensors, {size(found.num_bytes)}")
    terminal.line(f"tokenizer: {summary.tokenizer_path or 'none; pass --tokenizer to spectrum'}")


def print_blocks(terminal: Terminal, sizes: Mapping[str, int], total: int) -> None:
    """Show the parameters of each block."""
    if not sizes:
        terminal.line("blocks: not known for this model")
        return
    rows = [[name, f"{number:,}", f"{100 * number / total:.1f}%"] for name, number in sizes.items()]
    terminal.table(["block", "params", "share"], rows)


def print_needs(terminal: Terminal, needs: Needs) -> None:
    """Show what a spectrum would need."""
    terminal.line(
        f"a spectrum would need roughly: {needs.num_hvps} Hessian products over {needs.num_tokens:,} tokens, "
        f"{duration(needs.seconds)} on this CPU; {size(needs.weights_bytes)} for weights and products, "
        f"{size(needs.basis_bytes)} for the basis (on disk where memory does not hold it), and the graph of a batch"
    )
    terminal.line(
        "(an estimate from the number of parameters; lite-probe spectrum --dry-run knows better)", style="dim"
    )


def print_footprints(terminal: Terminal, footprints: "Sequence[PerGpu]", seq_len: int) -> None:
    """Show what each of some GPUs would hold and send."""
    terminal.line(
        f"each GPU would hold, with the graph of 1 × {seq_len:,} tokens at a time and a basis of "
        f"{_TYPICAL_BASIS_COLUMNS} vectors in slices:"
    )
    terminal.table(
        ["GPUs", "weights", "vectors", "graph", "basis", "together", "sent per product"],
        [
            [
                f"{one.gpus:,}" + ("\u00a0shards" if one.is_sharded else ""),
                *map(size, (one.weights_bytes, one.vectors_bytes, one.graph_bytes, one.basis_bytes, one.held_bytes)),
                size(one.sent_bytes),
            ]
            for one in footprints
        ],
    )
    terminal.line("(counted without a GPU: bytes of tensors, not of kernels' workspaces)", style="dim")

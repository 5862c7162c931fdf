"""`lite-probe inspect`: what a checkpoint is, without running it, and roughly what a spectrum of it needs."""

import json
import time
from collections.abc import Mapping
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
    from lite_probe.checkpoints import Checkpoint
    from lite_probe.results.checkpoint import CheckpointSummary

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


@click.command("inspect", cls=ConfiguredCommand, epilog=example("inspect runs/gpt/ckpt.pt"))
@click.argument("checkpoint", metavar="CKPT", type=click.Path())
@options_from(TaskOptions, "trust_pickle", "model_config", "blocks_file")
@click.option("--tokens", type=Whole(1), default=4096, show_default=True, help="Of the batches of the estimate.")
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
    as_json: bool,
) -> None:
    """Show what a checkpoint is: format, architecture, step, blocks, optimizer state, tokenizer.

    The weights are not run. What a spectrum would need is a rough estimate; `lite-probe spectrum --dry-run` builds
    the graph of a batch and knows better.
    """
    with terminal.waiting(f"opening {checkpoint}"):
        from lite_probe.blocks import read_blocks
        from lite_probe.checkpoints import open_checkpoint

        blocks = None if blocks_file is None else read_blocks(Path(blocks_file))
        opened = open_checkpoint(checkpoint, trust_pickle=trust_pickle, model_config=model_config)
        summary = opened.summary(blocks)
        needs = estimate_needs(summary.num_parameters, tokens, looked_up=looked_up_parameters(summary.block_parameters))
    if as_json:
        print_stdout(json.dumps({**asdict(summary), "estimated_needs": asdict(needs)}, default=dict))
    else:
        print_summary(terminal, summary, needs)
        if not summary.block_parameters and opened.family is not None:
            tell_unknown_blocks(terminal, opened)


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


def print_summary(terminal: Terminal, summary: "CheckpointSummary", needs: Needs) -> None:
    """Show a checkpoint in a few lines."""
    step = f"step {summary.step:,}" if summary.step is not None else "step unknown"
    facts = [summary.format, summary.architecture, f"{count(summary.num_parameters)} parameters", step]
    terminal.line(" · ".join(fact for fact in facts if fact), style="bold")
    if summary.block_parameters:
        rows = [
            [name, f"{number:,}", f"{100 * number / summary.num_parameters:.1f}%"]
            for name, number in summary.block_parameters.items()
        ]
        terminal.table(["block", "params", "share"], rows)
    else:
        terminal.line("blocks: not known for this model")
    terminal.line(f"weights: {size(summary.weight_bytes)}, fingerprint {summary.fingerprint[:12]}")
    found = summary.optimizer
    if found is None:
        terminal.line("optimizer state: none")
    else:
        names = ", ".join(found.state_names)
        terminal.line(f"optimizer state: {found.name} ({names}), {found.num_tensors} tensors, {size(found.num_bytes)}")
    terminal.line(f"tokenizer: {summary.tokenizer_path or 'none; pass --tokenizer to spectrum'}")
    terminal.line(
        f"a spectrum would need roughly: {needs.num_hvps} Hessian products over {needs.num_tokens:,} tokens, "
        f"{duration(needs.seconds)} on this CPU; {size(needs.weights_bytes)} for weights and products, "
        f"{size(needs.basis_bytes)} for the basis (on disk where memory does not hold it), and the graph of a batch"
    )
    terminal.line(
        "(an estimate from the number of parameters; lite-probe spectrum --dry-run knows better)", style="dim"
    )
    terminal.notes([note.message for note in summary.notes])

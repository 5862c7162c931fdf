"""What a gradient, a Hessian product and a Lanczos step cost against tokens and against parameters, four sizes each.

Llamas of random weights with byte vocabularies, float32, 2 threads, taken in turns; a straight line is fitted to the
medians, and what is left of them is shown as a share of each. `make benchmark` runs it (about ten minutes).
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import lite_probe as lp
from lite_probe.criteria import next_token_cross_entropy
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GraphStore, HessianOperator
from lite_probe.training import build_byte_llama
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout

SEQ_LEN, BASIS, ROUNDS = 128, 36, 5
ROWS = (4, 8, 16, 32)  # of one batch, at the middle width
WIDTHS = (128, 192, 256, 384)  # of six layers, at the middle number of rows
MIDDLE_ROWS, MIDDLE_WIDTH = 8, 256


@dataclass(frozen=True)
class Case:
    """One model and one batch."""

    model: nn.Module
    num_parameters: int
    num_tokens: int
    calls: dict[str, Callable[[], object]]  # what is timed


def make_case(width: int, rows: int) -> Case:
    model = build_byte_llama(hidden=width, layers=6, heads=8, seq_len=SEQ_LEN, seed=0)
    tokens = torch.randint(0, 256, (rows, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    task = lp.Task(
        model=model,
        predict=lambda model, batch: model(input_ids=batch[:, :-1], use_cache=False).logits,
        criterion=next_token_cross_entropy,
        evaluation=[tokens],
    )
    layout = ParameterLayout(list(model.named_parameters()))
    operator = HessianOperator(task, layout, count=rows * SEQ_LEN, graphs=GraphStore(1, layout.parameters))
    vector = torch.randn(layout.size)
    basis = KrylovBasis(layout.size, BASIS, dtype=torch.float32, device=task.device)
    basis.append(torch.linalg.qr(torch.randn(layout.size, BASIS)).Q.T)
    calls: dict[str, Callable[[], object]] = {
        "gradient": lambda: loss_and_gradient(task, layout, "evaluation"),
        "product, graph kept": lambda: operator.matvec(vector),
        f"against {BASIS} basis vectors": lambda: basis.orthogonalize(vector.clone().unsqueeze(0)),
    }
    return Case(model, layout.size, rows * SEQ_LEN, calls)


def medians_of(cases: dict[int, dict[str, Callable[[], object]]]) -> dict[str, dict[int, float]]:
    """Return what → size → median seconds, all sizes taking turns."""
    times: dict[str, dict[int, list[float]]] = {}
    for turn in range(ROUNDS + 1):
        for size, calls in cases.items():
            for what, call in calls.items():
                started = time.perf_counter()
                call()
                if turn:  # the first pays for graphs and memory
                    times.setdefault(what, {}).setdefault(size, []).append(time.perf_counter() - started)
    return {what: {size: statistics.median(one) for size, one in sizes.items()} for what, sizes in times.items()}


def show(axis: str, medians: dict[str, dict[int, float]]) -> None:
    for what, by_size in medians.items():
        sizes, seconds = np.array(list(by_size)), np.array(list(by_size.values()))
        # Relative residuals are what is shown, so they are what is minimised.
        design = np.stack([np.ones(len(sizes)), sizes]) / seconds
        (start, slope), *_ = np.linalg.lstsq(design.T, np.ones(len(sizes)), rcond=None)
        left = seconds / (start + slope * sizes) - 1.0
        shown = "  ".join(f"{size:,}: {1e3 * one:.0f} ms" for size, one in by_size.items())
        print(
            f"{what:<30} {shown}   {1e3 * start:+.1f} ms {1e9 * slope:+.2f} ns for each {axis}, "
            f"left {100 * np.abs(left).max():.1f}%",
            flush=True,
        )


def main() -> None:
    torch.set_num_threads(2)
    by_rows, by_width = [make_case(MIDDLE_WIDTH, rows) for rows in ROWS], [make_case(w, MIDDLE_ROWS) for w in WIDTHS]
    with preserve_state(nn.ModuleList(case.model for case in (*by_rows, *by_width))):
        show("token", medians_of({case.num_tokens: case.calls for case in by_rows}))
        show("parameter", medians_of({case.num_parameters: case.calls for case in by_width}))


if __name__ == "__main__":
    main()

"""What curvature costs on a GPU, in five minutes: products, the vectors beside them, optimizers, decompositions, peers.

A Llama of 124 million random weights (and one of 350 million for the peers), batches of 2 × 512 tokens, float32. Times
are medians; products are given in gradients over the same batches too. A step's launches and the share of it in which
the device computes are the profiler's. Each part that fails, for want of memory or of a package, says so and the next
one follows. `make benchmark-gpu` runs it; `--device cpu --tiny` tries the script itself.
"""

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.tree import open_tree

open_tree(Path(__file__).parents[2])

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402 - after the packages of this tree are found

from lite_probe.blocks import block_map  # noqa: E402
from lite_probe.criteria import next_token_cross_entropy  # noqa: E402
from lite_probe.operators.finite_difference import FiniteDifferenceOperator  # noqa: E402
from lite_probe.operators.gradient import loss_and_gradient  # noqa: E402
from lite_probe.operators.guards import preserve_state  # noqa: E402
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator  # noqa: E402
from lite_probe.operators.precision import Precision, has_units  # noqa: E402
from lite_probe.optim import OPTIMIZERS, make_optimizer  # noqa: E402
from lite_probe.spectra.lanczos import Lanczos  # noqa: E402
from lite_probe.task import Task  # noqa: E402
from lite_probe.vectors.basis import KrylovBasis  # noqa: E402
from lite_probe.vectors.layout import ParameterLayout  # noqa: E402
from tests.benchmarks.spectra import Logits  # noqa: E402

SIZES: dict[str, dict[str, int]] = {
    "124M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "350M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
    "tiny": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
}
BASIS_VECTORS = 36
ROWS: list[dict[str, Any]] = []


class Bench:
    """Where it runs, how large, and how long it may take.

    Args:
        device: Of models and vectors.
        tiny: Whether the smallest sizes will do.
        seconds: After which no further part begins.
    """

    def __init__(self, device: torch.device, tiny: bool, seconds: float) -> None:
        self.device = device
        self.tiny = tiny
        self.rounds = 2 if tiny else 5
        self.ends = time.perf_counter() + seconds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], rounds: int | None = None) -> float:
        """Return the median of a call's time, the device's work included, once it is warm."""
        times = []
        for _ in range((rounds or self.rounds) + 1):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def task(self, size: str) -> Task:
        shape = SIZES["tiny" if self.tiny else size]
        vocab, rows, length = (64, 2, 8) if self.tiny else (32_000, 2, 512)
        config = LlamaConfig(vocab_size=vocab, max_position_embeddings=length, **shape)
        with torch.random.fork_rng(), self.device:
            torch.manual_seed(0)
            model = LlamaForCausalLM(config).eval()
        generator = torch.Generator().manual_seed(1)
        batches = [torch.randint(0, vocab, (rows, length + 1), generator=generator) for _ in range(2)]
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        return Task(
            model=model,
            predict=lambda module, batch: module(input_ids=batch[:, :-1], use_cache=False).logits,
            criterion=next_token_cross_entropy,
            evaluation=[batch.to(self.device) for batch in batches],
            blocks=block_map(shapes, "llama", config=config),
        )


def report(what: str, seconds: float, **more: Any) -> None:
    ROWS.append({"what": what, "milliseconds": round(1e3 * seconds, 3), **more})
    details = "  ".join(f"{key} {value}" for key, value in more.items())
    print(f"{what:<44} {1e3 * seconds:10.2f} ms  {details}", flush=True)


def layout_of(task: Task) -> ParameterLayout:
    return ParameterLayout(list(task.model.named_parameters()))


def drawn(bench: Bench, size: int, count: int) -> Tensor:
    return torch.randn(size, count, device=bench.device)


def products(bench: Bench) -> None:
    """A gradient, and products in gradients: kept, rebuilt, shared, Gauss–Newton, by differences."""
    task = bench.task("124M")
    layout = layout_of(task)
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        gradient = bench.seconds(lambda: loss_and_gradient(task, layout, "evaluation"))
        report("gradient", gradient, parameters=f"{layout.size:,}")
        one, four = drawn(bench, layout.size, 1), drawn(bench, layout.size, 4)
        kinds = {"hessian": HessianOperator, "gauss-newton": GaussNewtonOperator}
        for name, made in kinds.items():
            for kept in (len(task.evaluation), 0):
                operator = made(task, layout, count=count, graphs=GraphStore(kept, layout.parameters))
                for vectors in (one, four):
                    seconds = bench.seconds(partial(operator.matmat, vectors)) / vectors.shape[1]
                    what = f"{name}, {'kept' if kept else 'rebuilt'}, {vectors.shape[1]} at once"
                    report(what, seconds, gradients=round(seconds / gradient, 2))
                operator.graphs.clear()
        differences = FiniteDifferenceOperator(task, layout)
        seconds = bench.seconds(lambda: differences.matmat(one), rounds=2)
        report("hessian by differences", seconds, gradients=round(seconds / gradient, 2))


def lanczos_steps(bench: Bench) -> None:
    """Orthogonalisation beside the product, and a step's launches and busy share."""
    task = bench.task("124M")
    layout = layout_of(task)
    first = layout.parameters[0]
    orthogonalisation(bench, layout.size)
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        graphs = GraphStore(len(task.evaluation), layout.parameters)
        operator = HessianOperator(task, layout, count=count, graphs=graphs)
        room = KrylovBasis(layout.size, BASIS_VECTORS, dtype=first.dtype, device=first.device)
        run = Lanczos(operator, top=2, bottom=0, basis=room, seed=0)
        seconds = bench.seconds(run.step)
        report("lanczos step", seconds, **profiled(bench, run.step, seconds))


def orthogonalisation(bench: Bench, size: int) -> None:
    """Of one vector against a basis of some, which random ones come near enough to."""
    basis = KrylovBasis(size, BASIS_VECTORS, dtype=torch.float32, device=bench.device)
    for _ in range(BASIS_VECTORS):
        row = torch.randn(1, size, device=bench.device)
        basis.append(row / row.norm())
    block = torch.randn(1, size, device=bench.device)
    report(f"orthogonalisation, {BASIS_VECTORS} vectors", bench.seconds(lambda: basis.orthogonalize(block)))


def profiled(bench: Bench, call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Return a call's launches, and the share of the seconds it takes in which a kernel runs; on a CPU operations."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    bench.wait()
    with profile(activities=activities) as trace:
        call()
        bench.wait()
    events = trace.events() or []
    if bench.device.type != "cuda":
        return {"operations": sum(event.name.startswith("aten::") for event in events)}
    kernels = [event for event in events if "CUDA" in str(event.device_type)]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return {"launches": len(kernels), "busy": f"{busy / seconds:.0%}"}


def optimizer_steps(bench: Bench) -> None:
    """A step of each optimizer from gradients at hand."""
    task = bench.task("124M")
    for name in OPTIMIZERS:
        model = copy.deepcopy(task.model)
        blocks = dict(task.blocks or {})
        own = make_optimizer(name, model.named_parameters(), lr=1e-4, blocks=blocks)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        report(f"step of {name}", bench.seconds(own.step, rounds=3))
        del own, model


def decompositions(bench: Bench) -> None:
    """Of square matrices as they are in models of a billion parameters."""
    for size in (16, 32) if bench.tiny else (2048, 5504):
        matrix = torch.randn(size, size, device=bench.device)
        symmetric = matrix @ matrix.T
        calls: dict[str, Callable[[], Any]] = {
            "eigh": lambda: torch.linalg.eigh(symmetric),  # noqa: B023
            "QR": lambda: torch.linalg.qr(matrix),  # noqa: B023
            "SVD": lambda: torch.linalg.svd(matrix, full_matrices=False),  # noqa: B023
        }
        for name, call in calls.items():
            report(f"{name} of {size:,}", bench.seconds(call, rounds=1))
        double = symmetric.double()
        report(f"eigh of {size:,} in float64", bench.seconds(lambda: torch.linalg.eigh(double), rounds=1))  # noqa: B023


def precisions(bench: Bench) -> None:
    """Products in float32, TF32 and bfloat16 through the same graphs, and how far they are from float32's."""
    task = bench.task("124M")
    layout = layout_of(task)
    one = drawn(bench, layout.size, 1)
    exact: Tensor | None = None
    with preserve_state(task.model):
        count = loss_and_gradient(task, layout, "evaluation").count
        graphs = GraphStore(len(task.evaluation), layout.parameters)
        for precision in get_args(Precision):
            operator = HessianOperator(task, layout, count=count, graphs=graphs, precision=precision)
            product = operator.matmat(one)
            seconds = bench.seconds(lambda: operator.matmat(one))  # noqa: B023
            exact = product if exact is None else exact
            error = float((product - exact).norm() / exact.norm())
            emulated = not has_units(precision, bench.device)
            report(f"hessian, kept, in {precision}", seconds, apart=f"{error:.1e}", emulated=emulated)


def peers(bench: Bench) -> None:
    """One product of the libraries that are installed, from the same weights and batches."""
    for size in ("124M", "350M"):
        task = bench.task(size)
        layout = layout_of(task)
        with preserve_state(task.model):
            count = loss_and_gradient(task, layout, "evaluation").count
            gradient = bench.seconds(lambda: loss_and_gradient(task, layout, "evaluation"))  # noqa: B023
            report(f"gradient at {size}", gradient)
            operator = HessianOperator(task, layout, count=count, graphs=GraphStore(0, layout.parameters))
            vector = drawn(bench, layout.size, 1)
            calls: dict[str, Callable[[], Callable[[], Any]]] = {
                "lite-probe": lambda: lambda: operator.matmat(vector),  # noqa: B023
                "hessian-eigenthings": lambda: _eigenthings(task, vector),  # noqa: B023
                "PyHessian": lambda: _pyhessian(task, layout),  # noqa: B023
                "curvlinops": lambda: _curvlinops(task, layout, vector),  # noqa: B023
            }
            for name, prepare in calls.items():
                what = f"product, rebuilt, at {size}: {name}"
                try:
                    seconds = bench.seconds(prepare(), rounds=2)
                except ImportError as error:
                    print(f"{what:<44} left out: {error}", flush=True)
                except Exception as error:  # noqa: BLE001 - a peer's failure is its own
                    print(f"{what:<44} failed: {_first_line(error)}", flush=True)
                else:
                    report(what, seconds, gradients=round(seconds / gradient, 2))
        for parameter in layout.parameters:
            parameter.grad = None


def _pairs(task: Task) -> list[tuple[Tensor, Tensor]]:
    return [(batch[:, :-1], batch[:, 1:].flatten()) for batch in task.evaluation]


def _eigenthings(task: Task, vector: Tensor) -> Callable[[], Any]:
    import hessian_eigenthings as peer

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    operator = peer.HessianOperator(task.model, list(task.evaluation), loss)
    return lambda: operator.matvec(vector.squeeze(1))


def _pyhessian(task: Task, layout: ParameterLayout) -> Callable[[], Any]:
    from pyhessian import hessian

    on_gpu = task.device.type == "cuda"
    peer = hessian(Logits(task.model), functional.cross_entropy, dataloader=_pairs(task), cuda=on_gpu)
    vector = [torch.randn_like(parameter) for parameter in layout.parameters]
    return lambda: peer.dataloader_hv_product(vector)


def _curvlinops(task: Task, layout: ParameterLayout, vector: Tensor) -> Callable[[], Any]:
    from curvlinops import HessianLinearOperator

    class Silu(nn.Module):  # `silu_backward` has no forward-mode derivative
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    for module in task.model.modules():
        if hasattr(module, "act_fn"):
            module.act_fn = Silu()
    peer = HessianLinearOperator(Logits(task.model), nn.CrossEntropyLoss(), layout.parameters, _pairs(task))
    return lambda: peer @ vector.squeeze(1)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


PARTS = (products, lanczos_steps, precisions, optimizer_steps, decompositions, peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to try the script")
    parser.add_argument("--only", action="append", choices=[part.__name__ for part in PARTS])
    parser.add_argument("--seconds", type=float, default=280.0, help="after which no further part begins")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print(
            f"nothing to measure: torch {torch.__version__} sees no CUDA device; --device cpu --tiny tries the script"
        )
        return
    warnings.filterwarnings("ignore")
    bench = Bench(torch.device(chosen.device), chosen.tiny, chosen.seconds)
    where = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}", flush=True)
    for part in PARTS:
        if chosen.only and part.__name__ not in chosen.only:
            continue
        if time.perf_counter() > bench.ends:
            print(f"{part.__name__}: left out, time is over", flush=True)
            continue
        try:
            part(bench)
        except Exception as error:  # noqa: BLE001 - the next part may still run
            print(f"{part.__name__} failed: {_first_line(error)}", flush=True)
            ROWS.append({"what": part.__name__, "failed": _first_line(error)})
        if chosen.device == "cuda":
            torch.cuda.empty_cache()
    if chosen.json:
        chosen.json.write_text(json.dumps(ROWS, indent=1))


if __name__ == "__main__":
    main()

"""Hessian spectra side by side: PyHessian, curvlinops, hessian-eigenthings and lite-probe in one process.

A byte-level Llama of 5.2M parameters, trained 300 steps on the Python documentation, 4 batches of 8 × 128 tokens,
float32, 2 threads. Times are wall seconds and multiples of one plain gradient over the same batches; residuals are
recomputed for everybody by lite-probe's product, summed in float64. `make benchmark` runs it (about 35 minutes);
`--only lite-probe` leaves out the peers.

The peers need help to run on a Hugging Face Llama at all: the math attention kernel, a module that returns logits,
and for curvlinops a SiLU of primitive operations, since its products go through forward-mode differentiation.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import lite_probe as lp
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GraphStore, HessianOperator
from lite_probe.operators.precision import multiplying_large, onednn_is_faster
from lite_probe.spectra.lanczos import lanczos
from lite_probe.training import train_byte_llama
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import norm

PAIRS, TOLERANCE, TRACE_PROBES = 10, 1e-3, 20
DENSITY_PROBES, DENSITY_STEPS, DENSITY_STEPS_TIMED = 2, 60, 6
ROWS: list[dict[str, Any]] = []


def report(tool: str, what: str, seconds: float, gradient: float, **more: Any) -> None:
    row = {"tool": tool, "what": what, "seconds": round(seconds, 2), "gradients": round(seconds / gradient, 2), **more}
    ROWS.append(row)
    details = "  ".join(f"{key} {value}" for key, value in more.items())
    print(f"{tool:<20} {what:<34} {seconds:8.2f} s {seconds / gradient:7.2f} gradients  {details}", flush=True)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median of each call's time, all calls taking turns so that drift hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call)[0])
    return {name: statistics.median(values) for name, values in times.items()}


def benchmark_task(folder: Path) -> lp.Task:
    record = train_byte_llama(
        folder,
        hyperparameters={"adamw_beta2": 0.95},
        learning_rate=1e-3,
        steps=300,
        save_at=(300,),
        hidden=256,
        layers=6,
        heads=8,
        batch_size=8,
    )
    checkpoint = lp.open_checkpoint(record.checkpoints[-1])
    return lp.make_task(
        checkpoint, data="builtin:python-docs", tokenizer="bytes", seq_len=128, batch_size=8, eval_batches=4
    )


class Exact:
    """The judge: true residuals by kept graphs and float64 sums."""

    def __init__(self, task: lp.Task, layout: ParameterLayout, count: int) -> None:
        self.operator = HessianOperator(task, layout, count=count, graphs=GraphStore(4, layout.parameters))

    def residuals(self, values: Any, rows: Tensor) -> list[float]:
        """Relative true residuals ‖Hv − λv‖/(|λ|‖v‖) of pairs in the order given."""
        result = []
        for value, row in zip(np.asarray(values, dtype=float), rows, strict=True):
            image = self.operator.matvec(row.contiguous())
            result.append(norm(image - float(value) * row) / (abs(float(value)) * norm(row)))
        return result


def verdict(residuals: list[float]) -> dict[str, str]:
    good = sum(residual <= TOLERANCE for residual in residuals)
    return {"within": f"{good}/{len(residuals)}", "worst_residual": f"{max(residuals):.1e}"}


# -- lite-probe --------------------------------------------------------------------------------------------------


def products(task: lp.Task, layout: ParameterLayout, count: int) -> float:
    """Time one gradient, a product through kept graphs, and four through rebuilt ones; return the gradient."""
    kept = HessianOperator(task, layout, count=count, graphs=GraphStore(4, layout.parameters))
    rebuilt = HessianOperator(task, layout, count=count)
    one, four = torch.randn(layout.size, 1), torch.randn(layout.size, 4)
    medians = interleaved(
        {
            "gradient": lambda: loss_and_gradient(task, layout, "evaluation"),
            "kept": lambda: kept.matmat(one),
            "rebuilt": lambda: rebuilt.matmat(one),
            "rebuilt-4": lambda: rebuilt.matmat(four),
        },
        rounds=7,
    )
    gradient = medians["gradient"]
    report("plain torch", "one gradient", gradient, gradient)
    report("lite-probe", "product, graphs kept", medians["kept"], gradient)
    report("lite-probe", "product, rebuilt", medians["rebuilt"], gradient)
    report("lite-probe", "product, rebuilt, per vector of 4", medians["rebuilt-4"] / 4, gradient)
    return gradient


def ours(task: lp.Task, layout: ParameterLayout, count: int, gradient: float, judge: Exact) -> None:
    operator = HessianOperator(task, layout, count=count, graphs=GraphStore(4, layout.parameters))
    seconds, (run, reason) = timed(lambda: lanczos(operator, top=PAIRS, tolerance=TOLERANCE, by_magnitude=True))
    spent = operator.num_products
    pairs = run.rotate_to_ritz()
    found = judge.residuals(pairs.values, run.basis.rows[: len(pairs.values)])
    report("lite-probe", "ten pairs", seconds, gradient, products=spent, stop=reason, **verdict(found))
    ROWS[-1]["eigenvalues"] = pairs.values.tolist()
    operator.graphs.clear()
    # The same ten from both ends: what the peers' rows add up to.
    top = int((pairs.values > 0.0).sum())
    seconds, spectrum = timed(lambda: lp.measure_spectrum(task, top=top, bottom=PAIRS - top, tolerance=TOLERANCE))
    trace, square = spectrum.trace, spectrum.whole.trace_h2
    report(
        "lite-probe",
        "pairs, density, trace together",
        seconds,
        gradient,
        products=spectrum.whole.num_hvps,
        trace=f"{trace.value:.1f} ± {trace.stderr:.1f}",
        trace_h2=f"{square.value:.0f} ± {square.stderr:.0f}",
        loss=f"{spectrum.loss:.3f}",
        lowest=f"{spectrum.whole.lower_eigenvalues[0]:.2f}",
    )


# -- the peers ---------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """The model as a function to (tokens, V) logits, for libraries that know tensors only."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids=ids, use_cache=False).logits
        return logits.flatten(0, 1)


def peer_product(tool: str, product: Callable[[], Any], task: lp.Task, gradient: float) -> float:
    """Report a peer's product, and what it would take with the switch that lite-probe sets; return the former."""
    seconds = statistics.median(timed(product)[0] for _ in range(5))
    report(tool, "product, rebuilt", seconds, gradient)
    if onednn_is_faster():
        with multiplying_large(task.model, task.evaluation[0]):
            switched = statistics.median(timed(product)[0] for _ in range(5))
        report(tool, "product, rebuilt, by oneDNN", switched, gradient)
    return seconds


def pyhessian(task: lp.Task, layout: ParameterLayout, gradient: float, judge: Exact) -> None:
    from pyhessian import hessian

    rows = [(batch[:, :-1], batch[:, 1:].flatten()) for batch in task.evaluation]
    peer = hessian(Logits(task.model), functional.cross_entropy, dataloader=rows, cuda=False)
    calls = counting(peer, "dataloader_hv_product")
    vector = [torch.randn_like(parameter) for parameter in layout.parameters]
    seconds = peer_product("PyHessian", lambda: peer.dataloader_hv_product(vector), task, gradient)
    # Its density() calls torch.eig, which torch removed: its products alone are what a density would take.
    report("PyHessian", "density, 2 × 60 (products alone)", seconds * DENSITY_PROBES * DENSITY_STEPS, gradient)
    seconds, samples = timed(lambda: peer.trace(maxIter=TRACE_PROBES, tol=1e-3))
    report("PyHessian", "trace", seconds, gradient, products=len(samples), trace=mean_and_error(samples))
    calls.clear()
    seconds, (values, vectors) = timed(lambda: peer.eigenvalues(maxIter=100, tol=TOLERANCE, top_n=PAIRS))
    flat = torch.stack([torch.cat([part.flatten() for part in vector]) for vector in vectors])
    found = judge.residuals(values, flat)
    report("PyHessian", "ten pairs", seconds, gradient, products=len(calls), **verdict(found))
    ROWS[-1]["eigenvalues"] = [float(value) for value in values]
    for parameter in layout.parameters:
        parameter.grad = None


def curvlinops(task: lp.Task, layout: ParameterLayout, gradient: float, judge: Exact) -> None:
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos
    from scipy.sparse.linalg import eigsh

    rows = [(batch[:, :-1], batch[:, 1:].flatten()) for batch in task.evaluation]
    with silu_of_primitives(task.model):
        peer = HessianLinearOperator(Logits(task.model), nn.CrossEntropyLoss(), layout.parameters, rows)
        vector = torch.randn(layout.size)
        peer_product("curvlinops", lambda: peer @ vector, task, gradient)
        steps = timed(lambda: fast_lanczos(peer, DENSITY_STEPS_TIMED))[0] / DENSITY_STEPS_TIMED
        report(
            "curvlinops",
            f"density, 2 × 60 (from {DENSITY_STEPS_TIMED} steps)",
            steps * DENSITY_PROBES * DENSITY_STEPS,
            gradient,
        )
        adapter = peer.to_scipy()
        calls = counting(adapter, "_matvec")
        seconds, (values, vectors) = timed(
            lambda: eigsh(
                adapter,
                k=PAIRS,
                which="LM",
                tol=TOLERANCE / 10,
                v0=np.random.default_rng(0).normal(size=layout.size).astype(np.float32),
            )
        )
        found = judge.residuals(values, torch.from_numpy(np.ascontiguousarray(vectors.T, dtype=np.float32)))
        report("curvlinops", "ten pairs (scipy's eigsh)", seconds, gradient, products=len(calls), **verdict(found))
        from curvlinops import hutchinson_trace

        seconds, value = timed(lambda: hutchinson_trace(peer, num_matvecs=TRACE_PROBES))
        report("curvlinops", "trace", seconds, gradient, products=TRACE_PROBES, trace=f"{float(value):.1f}")


def eigenthings(task: lp.Task, layout: ParameterLayout, gradient: float, judge: Exact) -> None:
    import hessian_eigenthings as peer

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    operator = peer.HessianOperator(task.model, list(task.evaluation), loss)
    vector = torch.randn(layout.size)
    peer_product("hessian-eigenthings", lambda: operator.matvec(vector), task, gradient)
    for steps in (45, 55):
        seconds, result = timed(
            lambda steps=steps: peer.lanczos(operator, k=PAIRS, max_iter=steps, tol=TOLERANCE, seed=0)
        )
        found = judge.residuals(result.eigenvalues.numpy(), result.eigenvectors)
        report(
            "hessian-eigenthings",
            f"ten pairs, {steps} steps",
            seconds,
            gradient,
            products=steps,
            says_converged=f"{int(result.converged.sum())}/{PAIRS}",
            **verdict(found),
        )
        ROWS[-1]["eigenvalues"] = result.eigenvalues.tolist()
        if bool(result.converged.all()):
            break
    seconds, result = timed(lambda: peer.hutchinson(operator, num_samples=TRACE_PROBES, seed=0))
    report(
        "hessian-eigenthings", "trace", seconds, gradient, products=TRACE_PROBES, trace=f"{float(result.estimate):.1f}"
    )
    seconds, _ = timed(lambda: peer.spectral_density(operator, num_runs=1, lanczos_steps=DENSITY_STEPS_TIMED, seed=0))
    report(
        "hessian-eigenthings",
        f"density, 2 × 60 (from {DENSITY_STEPS_TIMED} steps)",
        seconds / DENSITY_STEPS_TIMED * DENSITY_PROBES * DENSITY_STEPS,
        gradient,
    )


def counting(owner: Any, name: str) -> list[None]:
    """Count calls of a method from now on."""
    method, calls = getattr(owner, name), []

    def counted(*arguments: Any) -> Any:
        calls.append(None)
        return method(*arguments)

    setattr(owner, name, counted)
    return calls


def mean_and_error(samples: list[float]) -> str:
    return f"{np.mean(samples):.1f} ± {np.std(samples, ddof=1) / len(samples) ** 0.5:.1f}"


@contextmanager
def silu_of_primitives(model: nn.Module) -> Iterator[None]:
    """Replace SiLU by x·σ(x) for a while: `silu_backward` has no forward-mode derivative."""

    class Silu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    replaced = [module for module in model.modules() if hasattr(module, "act_fn")]
    original = [module.act_fn for module in replaced]
    for module in replaced:
        module.act_fn = Silu()
    try:
        yield
    finally:
        for module, activation in zip(replaced, original, strict=True):
            module.act_fn = activation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=["lite-probe", "pyhessian", "curvlinops", "eigenthings"])
    parser.add_argument("--json", type=Path, help="also write the rows there")
    chosen = parser.parse_args()
    wanted = chosen.only or ["lite-probe", "eigenthings", "curvlinops", "pyhessian"]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        task = benchmark_task(Path(folder))
        layout = ParameterLayout(list(task.model.named_parameters()))
        with preserve_state(task.model):
            count = loss_and_gradient(task, layout, "evaluation").count
            gradient = products(task, layout, count)
            judge = Exact(task, layout, count)
            if "lite-probe" in wanted:
                ours(task, layout, count, gradient, judge)
            if "eigenthings" in wanted:
                eigenthings(task, layout, gradient, judge)
            if "curvlinops" in wanted:
                curvlinops(task, layout, gradient, judge)
            if "pyhessian" in wanted:
                pyhessian(task, layout, gradient, judge)
    print(f"peak memory of the whole run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    if chosen.json:
        chosen.json.write_text(json.dumps(ROWS, indent=1))


if __name__ == "__main__":
    main()

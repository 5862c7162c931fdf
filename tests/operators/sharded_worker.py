"""What every rank of test_sharded.py runs: `torchrun sharded_worker.py OUT`.

Writes found-R.pt into the folder OUT, what rank R has found by model.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.criteria import classification_cross_entropy
from lite_probe.errors import LiteProbeError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.operators.gradient import loss_and_gradient, require_deterministic
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, HessianOperator
from lite_probe.operators.ranks import ProcessRanks
from lite_probe.operators.sharded import ShardedDifferenceOperator, layout_of, sharded_loss_and_gradient
from lite_probe.operators.sharding import shard_task
from lite_probe.subspaces import set_gradients
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests.models import make_task, predict_first, predict_logits

MODELS = ("tied_llama", "gpt2")
ASKED: dict[str, Any] = {"top": 2, "bottom": 0, "probes": 2, "probe_steps": 3, "tolerance": 1e-3}


def whole(name: str) -> Task:
    """A small model with tied embeddings and three unequal batches."""
    return make_task(name)


class ExpertLayer(nn.Module):
    """Two experts, of which a batch goes through one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, inputs: Tensor, chosen: int) -> Tensor:
        return inputs + torch.tanh(self.experts[chosen](inputs))


class Experts(nn.Module):
    """Two layers of experts; the sign of a batch's first number chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ExpertLayer(), ExpertLayer()])
        self.out = nn.Linear(4, 3)
        self.idle = nn.Parameter(torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = int(inputs[0, 0] > 0.0)
        for layer in self.layers:
            inputs = layer(inputs, chosen)
        outputs: Tensor = self.out(inputs)
        return outputs


def experts_task() -> Task:
    """A mixture of experts, and a parameter that nothing uses; two ranks go through other experts at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Experts().double()
        batches = [(torch.randn(5, 4).double(), torch.randint(0, 3, (5,))) for _ in range(5)]
    for (inputs, _), sign in zip(batches, (-9.0, 9.0, 9.0, -9.0, 9.0), strict=True):
        inputs[0, 0] = sign
    return Task(model=model, predict=predict_first, criterion=classification_cross_entropy, evaluation=batches)


def of_experts(ranks: ProcessRanks) -> dict[str, Any]:
    """Loss and gradient where ranks use other parameters."""
    task = experts_task()
    shard_task(task, ranks, torch.device("cpu"))
    layout = layout_of(task)
    with preserve_state(task.model):
        evaluated = require_deterministic(task, layout, "evaluation", evaluate=sharded_loss_and_gradient)
    gradient = collected(task, evaluated.gradient, layout.whole_size)
    return {"gradient": gradient, "loss": evaluated.loss, "unused": evaluated.unused}


def direction(task: Task) -> list[Tensor]:
    """A tensor of a parameter's shape for each."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in task.model.parameters()]


def own_slice(tensors: list[Tensor], rank: int, count: int) -> Tensor:
    """A rank's slice of a vector: FSDP2 cuts rows as `torch.chunk` does, and leaves the last ranks fewer or none."""
    shards = [tensor.chunk(count) for tensor in tensors]
    return torch.cat([one[rank].flatten() if rank < len(one) else one[0][:0].flatten() for one in shards])


def refused(call: Callable[[], object]) -> str:
    """The error that a call ends with."""
    try:
        call()
    except (LiteProbeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class FailingCriterion:
    """A criterion that raises, or says NaN, from a call on.

    Args:
        inner: What it is before.
        after: Calls that go well.
        value: What the loss is multiplied by then; None raises.
    """

    def __init__(self, inner: Any, after: int, value: float | None = None) -> None:
        self.inner, self.left, self.value = inner, after, value

    def __call__(self, outputs: Tensor, batch: Tensor) -> tuple[Tensor, int]:
        self.left -= 1
        loss, count = self.inner(outputs, batch)
        if self.left >= 0:
            return loss, count
        if self.value is None:
            raise RuntimeError("the criterion failed")
        return loss * self.value, count


def measured(name: str, ranks: ProcessRanks) -> dict[str, Any]:
    """All that is found on a model in shards."""
    task = whole(name)
    vector = own_slice(direction(task), ranks.rank, ranks.count)
    shard_task(task, ranks, torch.device("cpu"))
    layout = layout_of(task)
    size = layout.whole_size
    before = layout.read()
    marks = [torch.full_like(parameter, 3.0) for parameter in task.model.parameters()]
    for parameter, mark in zip(task.model.parameters(), marks, strict=True):
        parameter.grad = mark
    with preserve_state(task.model):
        evaluated = sharded_loss_and_gradient(task, layout, "evaluation")
        operator = ShardedDifferenceOperator(task, layout)
        product = operator.matvec(vector)
        again = operator.matvec(vector)
        failing = replace(task, criterion=FailingCriterion(task.criterion, 3))
        failed = ShardedDifferenceOperator(failing, layout)
        failed.relative_step = operator.relative_step
        raised = refused(lambda: failed.matvec(vector))
        restored = torch.equal(layout.read(), before)
        after_failure = torch.equal(operator.matvec(vector), again)
        # The second call is rank 1's own batch, or rank 0's second: both are done with the first then.
        bad = replace(task, criterion=FailingCriterion(task.criterion, 1 if ranks.is_first else 9, float("nan")))
        nan = refused(lambda: sharded_loss_and_gradient(bad, layout, "evaluation"))
        few = replace(task, evaluation=task.evaluation[:1])
        alone = sharded_loss_and_gradient(few, layout, "evaluation")
    kept = all(one.grad is mark for one, mark in zip(task.model.parameters(), marks, strict=True))
    trainable = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    return {
        "product": collected(task, product, size),
        "gradient": collected(task, evaluated.gradient, size),
        "one batch": collected(task, alone.gradient, size),
        "losses": torch.tensor([evaluated.loss, evaluated.count, alone.loss, alone.count], dtype=torch.float64),
        "error": operator.relative_error,
        "slice": layout.size,
        "raised": raised,
        "restored": restored,
        "unmoved": torch.equal(layout_of(task).read(), before),
        "after failure": after_failure,
        "nan": nan,
        "grads kept": kept,
        "spectrum": spectrum(task) if name == "gpt2" else None,
        "refusals": [
            refused(lambda: ParameterLayout(list(task.model.named_parameters()))),
            refused(lambda: loss_and_gradient(task, layout, "evaluation")),
            refused(lambda: HessianOperator(task, layout, count=1)),
            refused(lambda: GaussNewtonOperator(task, layout, count=1)),
            refused(lambda: set_gradients(task, trainable, task.evaluation[0], "a batch")),
            refused(lambda: measure_spectrum(task)),
            refused(lambda: measure_spectrum(task, method="finite-differences", per_block=True)),
            refused(lambda: shard_task(task, ranks, torch.device("cpu"))),
        ],
    }


def spectrum(task: Task) -> dict[str, Any]:
    """The numbers of a task's spectrum."""
    found = measure_spectrum(task, method="finite-differences", **ASKED)
    return {
        "eigenvalues": torch.tensor(found.whole.eigenvalues),
        "residuals": torch.tensor(found.whole.residual_norms),
        "trace": found.whole.trace.value,
        "gradient norm": found.gradient_norm,
        "notes": [(note.code, note.message) for note in found.notes],
        "vectors": None if found.eigenvectors is None else torch.from_numpy(found.eigenvectors.copy()),
        "fingerprint": found.fingerprint,
    }


def collected(task: Task, own: Tensor, size: int) -> Tensor | None:
    """A vector in the order of the parameters, on rank 0."""
    return task.ranks.collected(own, size)


def in_float32(ranks: ProcessRanks) -> dict[str, Any]:
    """A product and a gradient in float32."""
    task = make_task("tied_llama", torch.float32)
    vector = own_slice(direction(task), ranks.rank, ranks.count).float()
    shard_task(task, ranks, torch.device("cpu"))
    layout = layout_of(task)
    with preserve_state(task.model):
        gradient = sharded_loss_and_gradient(task, layout, "evaluation").gradient
        operator = ShardedDifferenceOperator(task, layout)
        product = operator.matvec(vector)
    return {
        "gradient": collected(task, gradient, layout.whole_size),
        "product": collected(task, product, layout.whole_size),
        "error": operator.relative_error,
    }


def attention(ranks: ProcessRanks) -> list[str]:
    """The attention of models in shards: one that may be fused, and one whose loss would change."""
    chosen = []
    for predict in (predict_logits, _predict_otherwise):
        task = replace(whole("tied_llama"), predict=predict)
        model: Any = task.model
        model.set_attn_implementation("eager")  # as checkpoints are loaded
        shard_task(task, ranks, torch.device("cpu"))
        chosen.append(model.config._attn_implementation)
    return chosen


def _predict_otherwise(model: Any, batch: Tensor) -> Tensor:
    return predict_logits(model, batch) * (1.01 if model.config._attn_implementation == "sdpa" else 1.0)


def main(out: Path) -> None:
    """Find everything."""
    with ProcessRanks(timeout=60.0) as ranks:
        found: dict[str, Any] = {name: measured(name, ranks) for name in MODELS}
        torch.save(
            {**found, "attention": attention(ranks), "float32": in_float32(ranks), "experts": of_experts(ranks)},
            out / f"found-{ranks.rank}.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Hessian, Gauss–Newton and finite-difference products equal dense curvature computed by torch.func."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lite_probe import criteria
from lite_probe.criteria import CrossEntropy, next_token_cross_entropy, squared_error
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.finite_difference import FiniteDifferenceOperator, GaussNewtonDifferenceOperator
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.task import Task
from lite_probe.task.batches import with_rows
from lite_probe.vectors.layout import ParameterLayout
from tests import models, oracles

pytestmark = pytest.mark.slow

# Rounding of a product relative to ‖H‖‖v‖ for a random v: a few eps times the depth of the graph. Seen: 1e-16 and 2e-8.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}
DTYPES = (torch.float64, torch.float32)


def layout_of(task: Task, block: str | None = None) -> ParameterLayout:
    return ParameterLayout(list(task.model.named_parameters()), block=block, block_map=task.blocks)


def count_of(task: Task) -> int:
    return loss_and_gradient(task, layout_of(task), "evaluation").count


def hessian_of(task: Task, *, block: str | None = None, kept: int = 0) -> HessianOperator:
    trainable = [p for p in task.model.parameters() if p.requires_grad]
    return HessianOperator(
        task, layout_of(task, block), count=count_of(task), graphs=GraphStore(kept, trainable), vectors_per_pass=3
    )


def gauss_newton_of(task: Task, *, block: str | None = None, kept: int = 0) -> GaussNewtonOperator:
    trainable = [p for p in task.model.parameters() if p.requires_grad]
    return GaussNewtonOperator(
        task, layout_of(task, block), count=count_of(task), graphs=GraphStore(kept, trainable), vectors_per_pass=3
    )


def columns(size: int, count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, count, generator=generator, dtype=torch.float64).to(dtype)


def assert_products(operator: SymmetricOperator, dense: Tensor, tolerance: float, count: int = 3) -> None:
    """Compare with a dense float64 matrix, relative to ‖H‖‖v‖."""
    vectors = columns(operator.size, count, operator.dtype)
    products = operator.matmat(vectors).double()
    expected = dense @ vectors.double()
    scale = torch.linalg.matrix_norm(dense, 2) * vectors.double().norm(dim=0)
    assert products.shape == expected.shape
    assert float(((products - expected).norm(dim=0) / scale).max()) <= tolerance


# -- Hessian ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_hessian_products_equal_the_dense_hessian(name: str, dtype: torch.dtype) -> None:
    task = models.make_task(name, dtype)
    with oracles.mathematical_attention():
        assert_products(hessian_of(task), oracles.known_hessian(name), TOLERANCE[dtype])


@pytest.mark.parametrize("name", models.MODELS)
def test_the_dense_hessian_is_no_small_matter(name: str) -> None:
    """Guard of the test above: the Hessian is neither zero nor a Gauss–Newton matrix, so a wrong product would show."""
    dense = oracles.known_hessian(name)
    norm = torch.linalg.matrix_norm(dense, 2)
    assert norm > 1.0
    assert torch.linalg.eigvalsh(dense)[0] < -1e-2 * norm
    apart = torch.linalg.matrix_norm(dense - oracles.known_gauss_newton(name), 2)
    assert apart > 1e-2 * norm


@pytest.mark.parametrize("make", [hessian_of, gauss_newton_of])
@pytest.mark.parametrize("name", ["mlp", "gpt2", "gpt_neox"])
def test_kept_partly_kept_and_rebuilt_graphs_give_the_same_bits(name: str, make: type) -> None:
    task = models.make_task(name, torch.float32)
    with oracles.mathematical_attention():
        vectors = columns(layout_of(task).size, 2, torch.float32)
        rebuilt = make(task, kept=0).matmat(vectors)
        for kept in range(1, len(task.evaluation) + 1):
            operator = make(task, kept=kept)
            assert torch.equal(operator.matmat(vectors), rebuilt)
            assert len(operator.graphs.kept) == kept
            # The second product goes through what the first one kept.
            assert torch.equal(operator.matmat(vectors), rebuilt)
            operator.graphs.clear()
            assert not operator.graphs.kept


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("make", [hessian_of, gauss_newton_of])
def test_several_vectors_in_a_pass_equal_one_by_one(make: type, kept: int) -> None:
    task = models.make_task("llama", torch.float32)
    with oracles.mathematical_attention():
        operator = make(task, kept=kept)
        vectors = columns(operator.size, 5, torch.float32)
        together = operator.matmat(vectors)
        assert operator.num_products == 5
        one_by_one = torch.stack([operator.matvec(vector) for vector in vectors.T], dim=1)
        assert operator.num_products == 10
    assert torch.equal(together, one_by_one)


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("name", models.MODELS)
def test_a_block_is_the_sub_block_of_the_dense_hessian(name: str, kept: int) -> None:
    task = models.make_task(name)
    blocks = {part.block for parts in (task.blocks or {}).values() for part in parts}
    assert len(blocks) > 1
    trainable = list(task.model.parameters())
    graphs = GraphStore(kept, trainable)
    covered = 0
    with oracles.mathematical_attention():
        for block in sorted(blocks):
            rows = oracles.block_indices(task, block)
            operator = HessianOperator(task, layout_of(task, block), count=count_of(task), graphs=graphs)
            assert operator.size == len(rows)
            covered += operator.size
            assert_products(operator, oracles.known_hessian(name)[rows][:, rows], TOLERANCE[torch.float64], count=2)
    assert covered == len(oracles.known_hessian(name))


def test_gpt2_blocks_split_the_columns_of_c_attn() -> None:
    """c_attn is (in, 3·out): queries and keys are its first two thirds of columns, values the last."""
    task = models.make_task("gpt2")
    layout = layout_of(task, "vo")
    fused = layout.names.index("transformer.h.0.attn.c_attn.weight")
    (piece,) = [piece for piece in layout.pieces if piece.parameter == fused]
    assert piece.shape == (8, 8)
    assert piece.part is not None
    assert (piece.part.dim, piece.part.start) == (1, 16)
    vector = torch.arange(layout.size, dtype=torch.float64)
    cotangent = layout.unflatten(vector)[fused]
    assert torch.equal(cotangent[:, :16], torch.zeros(8, 16, dtype=torch.float64))
    assert torch.equal(cotangent[:, 16:].flatten(), vector[piece.offset : piece.offset + 64])


@pytest.mark.parametrize("ignoring", [False, True])
def test_batches_count_by_their_tokens(ignoring: bool) -> None:
    """The Hessian of the mean over tokens, which a mean over batches would miss."""
    task = models.make_task("llama")
    if ignoring:
        task.criterion = models.IgnoringCrossEntropy()
    counts = [task.loss(batch)[1] for batch in task.evaluation]
    assert len(set(counts)) > 1
    dense = oracles.dense_hessian(task) if ignoring else oracles.known_hessian("llama")
    with oracles.mathematical_attention():
        assert_products(hessian_of(task), dense, TOLERANCE[torch.float64])
        vector = columns(len(dense), 1, torch.float64)
        each = []
        for batch in task.evaluation:
            alone = Task(task.model, task.predict, task.criterion, [batch])
            each.append(hessian_of(alone).matmat(vector))
    by_batches = torch.stack(each).mean(dim=0)
    expected = dense @ vector
    assert (by_batches - expected).norm() > 1e-2 * expected.norm()


def test_loss_gradient_and_count_are_weighted_by_tokens() -> None:
    task = models.make_task("llama")
    task.criterion = models.IgnoringCrossEntropy()
    evaluated = loss_and_gradient(task, layout_of(task), "evaluation")
    flat = oracles.flat_parameters(task).requires_grad_()
    loss = oracles.mean_loss(task, flat)
    (gradient,) = torch.autograd.grad(loss, flat)
    assert evaluated.loss == pytest.approx(float(loss.detach()), rel=1e-13)
    torch.testing.assert_close(evaluated.gradient, gradient, rtol=1e-10, atol=1e-13)
    # Windows of 7, 5 and 8 have 6, 4 and 7 targets, of which the first and every third are ignored.
    assert evaluated.count == 3 * 4 + 2 * 2 + 1 * 4


def test_tied_weights_count_once() -> None:
    task = models.make_task("tied_llama")
    layout = layout_of(task)
    assert "lm_head.weight" not in layout.names
    assert layout.size == sum(p.numel() for p in task.model.parameters())
    with oracles.mathematical_attention():
        assert_products(hessian_of(task), oracles.known_hessian("tied_llama"), TOLERANCE[torch.float64])


class _WithUnused(nn.Module):
    """Two parameters that no loss sees, a frozen one between them, and a layer that it does see."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.used = nn.Linear(2, 3, dtype=torch.float64)
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
        self.behind = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.used(inputs))


def _unused_task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    return Task(_WithUnused(), models.predict_first, squared_error, [(inputs, targets)])


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("make", [hessian_of, gauss_newton_of])
def test_unused_parameters_are_zero_and_named(make: type, kept: int) -> None:
    task = _unused_task()
    evaluated = loss_and_gradient(task, layout_of(task), "evaluation")
    assert evaluated.unused == ("before", "behind")
    dense = oracles.dense_hessian(task) if make is hessian_of else oracles.dense_gauss_newton(task)
    assert_products(make(task, kept=kept), dense, TOLERANCE[torch.float64])
    # A module's own parameters come before those of its children: 3 and 4 unused, then 9 used.
    product = make(task, kept=kept).matvec(torch.ones(3 + 4 + 9, dtype=torch.float64))
    assert torch.equal(product[:7], torch.zeros(7, dtype=torch.float64))
    assert product[7:].abs().min() > 0


def _linear_sum(outputs: Tensor, batch: object) -> tuple[Tensor, int]:
    return outputs.sum(), outputs.shape[0]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_loss_linear_in_the_parameters_has_no_curvature(kept: int) -> None:
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = Task(nn.Linear(3, 2, dtype=torch.float64), models.predict_first, _linear_sum, [(inputs, inputs)])
    vectors = columns(8, 2, torch.float64)
    for make in (hessian_of, gauss_newton_of):
        assert torch.equal(make(task, kept=kept).matmat(vectors), torch.zeros(8, 2, dtype=torch.float64))


def _predict_named(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    outputs: Tensor = model(batch["inputs"])
    return outputs


def _named_targets(batch: dict[str, Tensor]) -> Tensor:
    return batch["labels"]


def test_batches_may_be_dicts() -> None:
    task = models.make_task("mlp")
    named = [{"inputs": inputs, "labels": labels} for inputs, labels in task.evaluation]
    as_dicts = Task(task.model, _predict_named, CrossEntropy(_named_targets), named)
    vectors = columns(len(oracles.known_hessian("mlp")), 2, torch.float64)
    for make in (hessian_of, gauss_newton_of):
        assert torch.equal(make(as_dicts).matmat(vectors), make(task).matmat(vectors))


# -- Gauss–Newton ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_gauss_newton_products_equal_the_dense_matrix(name: str, dtype: torch.dtype) -> None:
    task = models.make_task(name, dtype)
    with oracles.mathematical_attention():
        assert_products(gauss_newton_of(task), oracles.known_gauss_newton(name), TOLERANCE[dtype])


def test_gauss_newton_of_a_block_is_the_sub_block() -> None:
    task = models.make_task("gpt2")
    rows = oracles.block_indices(task, "vo")
    dense = oracles.known_gauss_newton("gpt2")[rows][:, rows]
    with oracles.mathematical_attention():
        for kept in (0, 3):
            assert_products(gauss_newton_of(task, block="vo", kept=kept), dense, TOLERANCE[torch.float64])


def test_gauss_newton_of_ignored_targets() -> None:
    task = models.make_task("llama")
    task.criterion = models.IgnoringCrossEntropy()
    with oracles.mathematical_attention():
        assert_products(gauss_newton_of(task), oracles.dense_gauss_newton(task), TOLERANCE[torch.float64])


def test_squared_error_has_the_plain_jacobian_product() -> None:
    task = _unused_task()
    assert_products(gauss_newton_of(task), oracles.dense_gauss_newton(task), TOLERANCE[torch.float64])


def _log_cosh(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    """A criterion without a closed form, and not convex in closed form either."""
    difference = outputs - functional.one_hot(batch[1], outputs.shape[1])
    return (torch.log(torch.cosh(difference)) + 0.1 * torch.sin(difference)).sum(), outputs.shape[0]


def test_any_criterion_goes_through_autograd() -> None:
    task = models.make_task("mlp")
    task.criterion = _log_cosh
    assert not hasattr(task.criterion, "hessian_product")
    assert_products(gauss_newton_of(task), oracles.dense_gauss_newton(task), TOLERANCE[torch.float64])
    assert_products(hessian_of(task), oracles.dense_hessian(task), TOLERANCE[torch.float64])


@pytest.mark.parametrize("ignoring", [False, True])
def test_the_closed_form_equals_autograd_through_the_criterion(ignoring: bool) -> None:
    task = models.make_task("llama")
    closed = models.IgnoringCrossEntropy() if ignoring else next_token_cross_entropy

    def without_closed_form(outputs: Tensor, batch: Tensor) -> tuple[Tensor, int]:
        return closed(outputs, batch)

    vectors = columns(len(oracles.known_hessian("llama")), 2, torch.float64)
    with oracles.mathematical_attention():
        task.criterion = closed
        expected = gauss_newton_of(task).matmat(vectors)
        task.criterion = without_closed_form
        got = gauss_newton_of(task).matmat(vectors)
    assert (got - expected).norm() <= 1e-13 * expected.norm() * len(vectors) ** 0.5


def test_many_classes_go_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as of all positions at once, in place of the tangent or not."""
    generator = torch.Generator().manual_seed(0)
    outputs, tangent = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 7, (3, 5), generator=generator)
    targets[1, :2] = -100
    criterion = CrossEntropy()
    whole = criterion.hessian_product(outputs, (None, targets), tangent)
    probabilities = torch.softmax(outputs, dim=-1)
    dense = torch.diag_embed(probabilities) - probabilities.unsqueeze(-1) * probabilities.unsqueeze(-2)
    expected = (dense @ tangent.unsqueeze(-1)).squeeze(-1) * (targets != -100).unsqueeze(-1)
    assert torch.allclose(whole, expected, rtol=1e-14, atol=1e-15)
    before = tangent.clone()
    for rows in (1, 4):  # the last chunk is shorter
        monkeypatch.setattr(criteria, "_CHUNK_BYTES", rows * 7 * 8)
        assert torch.equal(criterion.hessian_product(outputs, (None, targets), tangent), whole)
        assert torch.equal(tangent, before)
        assert torch.equal(criterion.hessian_product(outputs, (None, targets), tangent.clone(), out=tangent), whole)
        tangent.copy_(before)
    assert criterion.hessian_product(outputs, (None, targets), tangent, out=tangent) is tangent
    assert torch.equal(tangent, whole)


class _Table(nn.Module):
    """Logits that are the parameters themselves, so that J is the identity and Jv is v."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.arange(12.0).reshape(3, 4).sin())

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def test_a_product_leaves_its_vector_alone() -> None:
    """Also where the tangent of the outputs is the vector itself, which the product would be written over."""
    batch = torch.zeros(3, 1), torch.tensor([0, 3, 1])
    task = Task(model=_Table(), predict=models.predict_first, criterion=CrossEntropy(), evaluation=[batch])
    operator = GaussNewtonOperator(task, layout_of(task), count=3)
    rows = torch.arange(12.0).cos().unsqueeze(1)
    before = rows.clone()
    product = operator.matmat(rows)
    assert torch.equal(rows, before)
    outputs = task.model(batch[0]).detach()
    expected = CrossEntropy().hessian_product(outputs, batch, before.view(3, 4)).reshape(-1, 1) / 3
    assert torch.allclose(product, expected)


class _ShiftedCrossEntropy(CrossEntropy):
    """A criterion with a closed form of its own."""

    def hessian_product(
        self, outputs: Tensor, batch: tuple[Tensor, Tensor], tangent: Tensor, *, out: Tensor | None = None
    ) -> Tensor:
        return 3.0 * tangent


def test_a_closed_form_of_ones_own_counts() -> None:
    batch = torch.zeros(3, 1), torch.tensor([0, 3, 1])
    task = Task(model=_Table(), predict=models.predict_first, criterion=_ShiftedCrossEntropy(), evaluation=[batch])
    vector = torch.arange(12.0)
    assert torch.allclose(GaussNewtonOperator(task, layout_of(task), count=3).matvec(vector), vector)


@pytest.mark.parametrize("make", [hessian_of, gauss_newton_of])
def test_kept_graphs_hold_no_gradient(make: type) -> None:
    """A gradient is as large as the parameters, and its graph is entered without it."""
    task = models.make_task("mlp", torch.float32)
    operator = make(task, kept=2)
    operator.matvec(torch.ones(operator.size))
    assert len(operator.graphs.kept) == 2
    for _, roots in operator.graphs.kept.values():
        assert len(roots) == len(operator.layout.parameters)
        assert not any(isinstance(root, Tensor) for root in roots)


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("make", [hessian_of, gauss_newton_of])
def test_one_batch_s_product_is_gone_before_the_next_is_made(
    make: type, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as large as the model: at 135 M parameters half a GiB that no plan counts."""
    operator = make(models.make_task("mlp", torch.float32), kept=kept)
    parts, through, build = [], operator._through, operator._build

    def forgotten() -> None:
        assert not any(part() is not None for part in parts)

    def watched_product(*arguments: object) -> object:
        forgotten()
        product = through(*arguments)
        parts.extend(weakref.ref(part) for part in product if part is not None)
        return product

    def watched_build(*arguments: object) -> object:
        forgotten()
        return build(*arguments)

    monkeypatch.setattr(operator, "_through", watched_product)
    monkeypatch.setattr(operator, "_build", watched_build)
    operator.matmat(columns(operator.size, 2, torch.float32))
    assert len(parts) >= 4


@pytest.mark.parametrize("kept", [0, 2, 10])
@pytest.mark.parametrize("make", [hessian_of, gauss_newton_of])
@pytest.mark.parametrize("name", ["mlp", "gpt2"])
def test_parts_of_batches_add_up(name: str, make: type, kept: int) -> None:
    task = models.make_task(name)
    with oracles.mathematical_attention():
        whole = make(task)
        vectors = columns(whole.size, 2, torch.float64)
        expected, evaluated = whole.matmat(vectors), loss_and_gradient(task, whole.layout, "evaluation")
        for rows in (1, 2):
            parts = with_rows(task, rows)
            product = make(parts, kept=kept).matmat(vectors)
            assert (product - expected).norm() <= 1e-14 * expected.norm() * len(vectors) ** 0.5
            found = loss_and_gradient(parts, whole.layout, "evaluation")
            assert found.loss == pytest.approx(evaluated.loss, rel=1e-14)
            assert found.count == evaluated.count
            assert (found.gradient - evaluated.gradient).norm() <= 1e-13 * evaluated.gradient.norm()


def test_a_gradient_in_parts_tells_of_whole_batches() -> None:
    task = with_rows(models.make_task("mlp"), 3)
    told: list[int] = []
    loss_and_gradient(task, layout_of(task), "evaluation", told.append)
    assert told == [0, 1]


@pytest.mark.parametrize("operator", [FiniteDifferenceOperator, GaussNewtonDifferenceOperator])
def test_differences_in_parts_are_those_of_whole_batches(operator: type) -> None:
    task = models.make_task("mlp")
    vector = columns(layout_of(task).size, 1, torch.float64)[:, 0]
    expected = operator(task, layout_of(task)).matvec(vector)
    found = operator(with_rows(task, 2), layout_of(task)).matvec(vector)
    assert (found - expected).norm() <= 1e-8 * expected.norm()


# -- finite differences ----------------------------------------------------------------------------------------------

# A central difference errs by about eps^⅔ of ‖H‖‖v‖ where the gradient is smooth: 4e-11 and 2e-5, here times 5.
DIFFERENCE_TOLERANCE = {torch.float64: 2e-10, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.MODELS)
def test_finite_differences_near_the_dense_hessian(name: str, dtype: torch.dtype) -> None:
    task = models.make_task(name, dtype)
    operator = FiniteDifferenceOperator(task, layout_of(task))
    assert_products(operator, oracles.known_hessian(name), DIFFERENCE_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reported_error_of_finite_differences_bounds_the_true_one(dtype: torch.dtype) -> None:
    task = models.make_task("llama", dtype)
    operator = FiniteDifferenceOperator(task, layout_of(task))
    assert operator.relative_error is None
    vector = columns(operator.size, 1, dtype)
    product = operator.matmat(vector).double()
    expected = oracles.known_hessian("llama") @ vector.double()
    true = float((product - expected).norm() / expected.norm())
    assert operator.relative_error is not None
    # The difference to a step four times as long has at least the chosen step's own error, up to luck.
    assert true <= 2.0 * operator.relative_error
    assert operator.relative_error < 0.05


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_finite_differences_scale_with_the_vector(factor: float) -> None:
    """The step follows ‖v‖: a product of a long or short vector is as good as one of a unit vector."""
    task = models.make_task("mlp")
    operator = FiniteDifferenceOperator(task, layout_of(task))
    vector = columns(operator.size, 1, torch.float64)
    expected = factor * (oracles.known_hessian("mlp") @ vector)
    got = operator.matmat(factor * vector)
    assert (got - expected).norm() <= 1e-7 * expected.norm()


def test_finite_differences_of_nothing_are_zero() -> None:
    task = models.make_task("mlp")
    operator = FiniteDifferenceOperator(task, layout_of(task))
    zero = torch.zeros(operator.size, dtype=torch.float64)
    assert torch.equal(operator.matvec(zero), zero)


def test_finite_differences_of_a_block() -> None:
    task = models.make_task("gpt2")
    rows = oracles.block_indices(task, "vo")
    dense = oracles.known_hessian("gpt2")[rows][:, rows]
    operator = FiniteDifferenceOperator(task, layout_of(task, "vo"))
    assert_products(operator, dense, DIFFERENCE_TOLERANCE[torch.float64])


def test_finite_differences_restore_the_weights_bitwise() -> None:
    task = models.make_task("mlp", torch.float32)
    before = oracles.flat_parameters(task).clone()
    operator = FiniteDifferenceOperator(task, layout_of(task))
    operator.matmat(columns(operator.size, 2, torch.float32))
    assert torch.equal(oracles.flat_parameters(task), before)


def test_finite_differences_restore_the_weights_when_the_loss_raises() -> None:
    task = models.make_task("mlp", torch.float32)
    before = oracles.flat_parameters(task).clone()
    moved = []

    def raises_in_the_middle(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        moved.append(not torch.equal(oracles.flat_parameters(task), before))
        if len(moved) == 4:
            raise KeyboardInterrupt
        return models.predict_first(model, batch)

    task.predict = raises_in_the_middle
    operator = FiniteDifferenceOperator(task, layout_of(task))
    with pytest.raises(KeyboardInterrupt):
        operator.matmat(columns(operator.size, 1, torch.float32))
    assert any(moved), "the weights were never perturbed, so there was nothing to restore"
    assert torch.equal(oracles.flat_parameters(task), before)


# -- properties ------------------------------------------------------------------------------------------------------

_SEEDS = st.integers(0, 2**31 - 1)
# No vector of Lanczos is near the smallest number there is, where a difference has no digits.
_SCALARS = st.integers(-10_000, 10_000).map(lambda hundredths: hundredths / 100)


def _kinds() -> dict[str, tuple[SymmetricOperator, float]]:
    """One operator of each kind on one MLP, with the rounding of its products relative to ‖H‖‖v‖."""
    task = models.make_task("mlp")
    return {
        "hessian": (hessian_of(task, kept=2), 1e-13),
        "ggn": (gauss_newton_of(task, kept=2), 1e-13),
        "finite differences": (FiniteDifferenceOperator(task, layout_of(task)), 1e-7),
    }


@pytest.fixture(scope="module", params=["hessian", "ggn", "finite differences"])
def kind(request: pytest.FixtureRequest) -> tuple[SymmetricOperator, float]:
    return _kinds()[request.param]


@settings(max_examples=15, deadline=None)
@given(seed=_SEEDS)
def test_products_are_self_adjoint(kind: tuple[SymmetricOperator, float], seed: int) -> None:
    operator, rounding = kind
    pair = columns(operator.size, 2, torch.float64, seed)
    images = operator.matmat(pair)
    scale = float(pair[:, 0].norm() * images[:, 1].norm() + pair[:, 1].norm() * images[:, 0].norm())
    assert abs(float(pair[:, 0] @ images[:, 1] - pair[:, 1] @ images[:, 0])) <= rounding * scale


@settings(max_examples=15, deadline=None)
@given(seed=_SEEDS, a=_SCALARS, b=_SCALARS)
def test_products_are_linear(kind: tuple[SymmetricOperator, float], seed: int, a: float, b: float) -> None:
    operator, rounding = kind
    pair = columns(operator.size, 2, torch.float64, seed)
    images = operator.matmat(pair)
    together = operator.matvec(a * pair[:, 0] + b * pair[:, 1])
    scale = float(abs(a) * images[:, 0].norm() + abs(b) * images[:, 1].norm())
    assert float((together - a * images[:, 0] - b * images[:, 1]).norm()) <= 2 * rounding * scale


@settings(max_examples=15, deadline=None)
@given(seed=_SEEDS)
def test_gauss_newton_is_positive_semidefinite(seed: int) -> None:
    operator = _kinds()["ggn"][0]
    vector = columns(operator.size, 1, torch.float64, seed)
    image = operator.matmat(vector)
    assert float(vector.flatten() @ image.flatten()) >= -1e-13 * float(vector.norm() * image.norm())

"""Hyper-cleaning: its closed forms are autograd's, its nodes share one problem, and its tables say what was run."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.hypercleaning import (
    ALPHAS,
    CLASSES,
    INPUTS,
    TRAIN,
    VALIDATION,
    Ground,
    Hypercleaning,
    Samples,
    Scene,
    Size,
    ahead,
    at_cost,
    at_end,
    main,
    make_scene,
    shown,
    simulate,
    spent,
    tuned,
)
from lite_probe.bilevel import Fixed, History, solve

pytestmark = pytest.mark.slow

NODES = 7  # does not divide 400: rectangles are filled up


def losses(own: Samples, y: Tensor, weights: Tensor) -> Tensor:
    """Return each node's weighted mean of cross-entropies, (n,)."""
    logits = torch.einsum("nmd,nkd->nmk", own.inputs, y.view(-1, CLASSES, INPUTS))
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), own.labels.transpose(1, 2), reduction="none")
    return (own.shares * weights * each).sum(dim=1)


def lower_loss(problem: Hypercleaning, x: Tensor, y: Tensor) -> Tensor:
    """Return gᵢ, (n,)."""
    own = problem.train
    weights = torch.stack([torch.sigmoid(row[place]) for row, place in zip(x, own.places, strict=True)])
    return losses(own, y, weights) + 0.5 * problem.ridge * y.square().sum(dim=1)


def point(problem: Hypercleaning, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y and z somewhere."""
    generator = torch.Generator().manual_seed(seed)
    dims = (problem.dim_x, problem.dim_y, problem.dim_y)
    x, y, z = (torch.randn(problem.num_nodes, dim, generator=generator, dtype=torch.float64) for dim in dims)
    return x, y, z


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(num_nodes=NODES, alpha=0.1)


def test_closed_forms_are_those_of_autograd(scene: Scene) -> None:
    problem = scene.problem
    x, y, z = point(problem)
    x.requires_grad_()
    y.requires_grad_()
    generator = torch.Generator()
    (upper,) = torch.autograd.grad(losses(problem.validation, y, torch.ones_like(problem.validation.shares)).sum(), y)
    along_x, along_y = torch.autograd.grad(lower_loss(problem, x, y).sum(), (x, y), create_graph=True)
    cross, curved = torch.autograd.grad((along_y * z).sum(), (x, y))
    with torch.no_grad():
        found = {
            "∇ᵧf": (problem.upper_gradients(x, y, generator=generator)[1], upper),
            "∇ₓf": (problem.upper_gradients(x, y, generator=generator)[0], torch.zeros_like(x)),
            "∇ᵧg": (problem.lower_gradient(x, y, generator=generator), along_y),
            "∇ₓg of both": (problem.lower_gradients(x, y, generator=generator)[0], along_x),
            "∇ᵧg of both": (problem.lower_gradients(x, y, generator=generator)[1], along_y),
            "∇²ᵧᵧg z": (problem.lower_hessian_product(x, y, z, generator=generator), curved),
            "∇²ₓᵧg z": (problem.cross_product(x, y, z, generator=generator), cross),
        }
    for name, (ours, theirs) in found.items():
        assert float((ours - theirs).detach().abs().max()) < 1e-10, name
    assert float(cross.abs().max()) > 1e-4


Answer = Callable[[Hypercleaning, torch.Generator], Tensor]
ANSWERS: dict[str, Answer] = {
    "upper": lambda problem, g: problem.upper_gradients(*point(problem)[:2], generator=g)[1],
    "lower": lambda problem, g: problem.lower_gradient(*point(problem)[:2], generator=g),
    "lower x": lambda problem, g: problem.lower_gradients(*point(problem)[:2], generator=g)[0],
    "curved": lambda problem, g: problem.lower_hessian_product(*point(problem), generator=g),
    "cross": lambda problem, g: problem.cross_product(*point(problem), generator=g),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_samples_are_fair(scene: Scene, name: str) -> None:
    """The mean of 1,000 answers along a fixed vector is within 4 standard errors of the answer from all samples."""
    sampled, generator = replace(scene.problem, batch=5), torch.Generator().manual_seed(1)
    whole = ANSWERS[name](scene.problem, generator)
    along = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = torch.stack([(ANSWERS[name](sampled, generator) * along).sum(dim=1) for _ in range(1000)])
    error = drawn.std(dim=0) / 1000**0.5
    assert torch.all(error > 0.0)
    assert torch.all((drawn.mean(dim=0) - (whole * along).sum(dim=1)).abs() < 4.0 * error)


@pytest.mark.parametrize("batch", [None, 5])
def test_a_process_with_one_node_has_the_answers_of_its_row(scene: Scene, batch: int | None) -> None:
    problem = replace(scene.problem, batch=batch)
    x, y, z = point(problem)
    for node in range(NODES):
        alone = replace(problem, node=node)
        assert (alone.num_nodes, alone.dim_x, alone.dim_y) == (1, TRAIN, CLASSES * INPUTS)
        row = slice(node, node + 1)
        for name in ("lower_hessian_product", "cross_product"):
            together, own = (
                getattr(one, name)(*at, generator=torch.Generator().manual_seed(3))
                for one, at in ((problem, (x, y, z)), (alone, (x[row], y[row], z[row])))
            )
            # Sums of at most 58 terms below 1, in another order.
            assert float((together[row] - own).abs().max()) < 1e-13, name


@pytest.mark.parametrize("alpha", ALPHAS.values())
def test_however_samples_are_dealt_the_mean_over_nodes_is_the_pooled_problem(alpha: float) -> None:
    scene = make_scene(num_nodes=NODES, alpha=alpha)
    x, y, z = (one[:1] for one in point(scene.problem))
    everywhere = [one.expand(NODES, -1) for one in (x, y, z)]
    generator = torch.Generator()
    for name in ("lower_hessian_product", "cross_product"):
        ours = getattr(scene.problem, name)(*everywhere, generator=generator).mean(dim=0)
        assert float((ours - getattr(scene.pooled, name)(x, y, z, generator=generator)[0]).abs().max()) < 1e-13
    ours = scene.problem.upper_gradients(*everywhere[:2], generator=generator)[1].mean(dim=0)
    assert float((ours - scene.pooled.upper_gradients(x, y, generator=generator)[1][0]).abs().max()) < 1e-13


def test_every_sample_is_at_one_node_and_nodes_have_as_many() -> None:
    spreads = {}
    for name, alpha in ALPHAS.items():
        train = make_scene(num_nodes=NODES, wrong=0.0, alpha=alpha).problem.train
        held = train.shares > 0.0
        assert sorted(train.places[held].tolist()) == list(range(TRAIN))
        assert set(held.sum(dim=1).tolist()) == {TRAIN // NODES, TRAIN // NODES + 1}
        classes = (train.labels * held[:, :, None]).sum(dim=1) / held.sum(dim=1, keepdim=True)
        spreads[name] = float((classes - classes.mean(dim=0)).square().sum(dim=1).mean())
    # The mean squared distance of a node's classes from all nodes': 0 for the same, at most 0.9.
    assert spreads["mild"] < 0.05
    assert spreads["severe"] > 0.15


def test_labels_are_wrong_as_often_as_asked_in_training_only() -> None:
    right, wrong = make_scene(wrong=0.0), make_scene(wrong=0.3)
    assert torch.equal(right.pooled.validation.labels, wrong.pooled.validation.labels)
    assert torch.equal(right.clean.labels, wrong.clean.labels)
    assert right.clean.labels.shape == (1, 1797 - TRAIN - VALIDATION, CLASSES)
    changed = float((right.pooled.train.labels != wrong.pooled.train.labels).any(dim=2).double().mean())
    assert abs(changed - 0.3) < 4.0 * (0.3 * 0.7 / TRAIN) ** 0.5


def test_measures_are_means_over_nodes(scene: Scene) -> None:
    x, y, _ = point(scene.problem)
    each = [scene.measure(x, y[row : row + 1]) for row in range(NODES)]
    for name, value in scene.measure(x, y).items():
        assert value == pytest.approx(np.mean([one[name] for one in each]), rel=1e-12)
    whole = scene.pooled.validation
    assert each[0]["loss"] == pytest.approx(float(losses(whole, y[:1], torch.ones_like(whole.shares))), rel=1e-12)
    right = (scene.clean.inputs[0] @ y[0].view(CLASSES, INPUTS).T).argmax(dim=1) == scene.clean.labels[0].argmax(dim=1)
    assert each[0]["accuracy"] == pytest.approx(100.0 * float(right.double().mean()), rel=1e-12)


def test_cleaning_lowers_the_weights_of_wrong_labels(scene: Scene) -> None:
    right = make_scene(num_nodes=NODES, alpha=0.1, wrong=0.0).pooled.train.labels
    changed = (right != scene.pooled.train.labels).any(dim=2)[0]
    run = solve(scene.pooled, [[1.0]], method="dsoba-so", step_sizes=(1000.0, 2.0, 2.0), steps=200)
    weights = torch.sigmoid(run.x[0])
    # The same after 100 steps on seeds 0 to 2 within 0.03: 0.1 and 0.6.
    assert float(weights[changed].mean()) < 0.25
    assert float(weights[~changed].mean()) > 0.5


def made(losses: list[float], accuracy: float = 0.0) -> History:
    """Return the history of a run whose steps take 4 gradients and send 100 floats."""
    count = np.arange(len(losses))
    return History(
        step=count,
        gradients=4 * count,
        floats=100 * count,
        messages=count,
        consensus={},
        upper_loss=None,
        measured={"loss": np.array(losses), "accuracy": np.array([accuracy])},
    )


def test_costs_are_those_of_the_first_record_that_is_near() -> None:
    runs = [made([3.0, 2.0, 1.0, 0.5], 90.0), made([3.0, 1.0, 0.5, 2.0], 92.5)]
    assert at_end(runs, "loss") == 1.25
    assert (spent(runs, [1.0, 1.0], "gradients"), spent(runs, [1.0, 1.0], "floats")) == (6.0, 150.0)
    assert np.isnan(spent(runs, [0.4, 1.0], "gradients"))
    assert at_cost(runs, "loss", "floats", 299.0) == 0.75
    assert at_cost(runs, "loss", "gradients", 4.0) == 1.5
    diverged = [*runs, None]
    assert np.isnan(at_end(diverged, "loss"))
    assert np.isnan(at_cost(diverged, "loss", "floats", 299.0))
    assert np.isnan(spent(diverged, [1.0] * 3, "floats"))
    assert ahead(runs, runs[::-1]) == "-2.5 to +2.5"
    assert ahead(diverged, diverged) == "–"
    assert (shown(float("nan")), shown(1234.56), shown(0.12345, 3)) == ("–", "1,234.6", "0.123")


def test_fixed_steps_are_the_best_of_the_grid_and_not_those_that_diverge() -> None:
    size = Size(steps=5, grid=((1000.0, 1e-3), (1000.0, 1.0), (1e300, 1e300)))
    assert tuned("D-SOBA", Ground(), size) == Fixed(1000.0, 1.0, 1.0)
    assert simulate("D-SOBA", Fixed(1e300, 1e300, 1e300), Ground(), 10, 0, 5) is None


def test_tables_have_a_row_for_each_solver(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "8"]) == 0
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 5 + 1 + 2 + 2
    for text in tables:
        title, columns, *rows = text.splitlines()
        names = {row.split("  ")[1] for row in rows}
        solvers = {re.split(" fixed| free|,", name)[0] for name in names}
        assert solvers == {"D-SOBA", "SPARKLE-GT", "SPARKLE-ED"} - ({"D-SOBA"} if "ahead of D-SOBA" in title else set())
        cells = len(re.split(r"\s{2,}", columns.strip()))
        assert all(len(re.split(r"\s{2,}", row.strip())) == cells + 1 for row in rows), text
    accuracy = tables[0].splitlines()
    assert "p = 0.2, 10 samples of a node: accuracy in percent and loss after 8 steps" in accuracy[0]
    assert all(10.0 < float(cell.split()[0]) < 100.0 for row in accuracy[2:] for cell in re.split(r"\s{2,}", row)[2:])

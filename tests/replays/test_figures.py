"""What is derived from recorded runs, on small whole numbers: each figure here is worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lite_probe.results.replay import Bands, Horizon, Replay, ReplayRun
from tests.reports.fixtures import make_replay

DIMENSIONS = np.array([1, 3])
BANDS = Bands(
    optimizer="soap",
    blocks=("ffn", "ffn"),
    low=np.array([0.0, 0.25]),
    high=np.array([0.25, 1.0]),
    dimensions=DIMENSIONS,
)


def run_of(**changes: Any) -> ReplayRun:
    """Two steps, two eigenvectors, two bands."""
    values: dict[str, Any] = {
        "optimizer": "muon",
        "ablation": "none",
        "seed": 0,
        "batches_digest": "",
        "diverged_at": None,
        "train_losses": [9.0, 9.0],
        "losses": [10.0, 7.0, 4.0],
        "update_norms": [2.0, 0.0],
        "allocations": [-5.0, -3.0],
        "closure_errors": [0.5, -0.25],
        "gradients_used": [2, 2],
        "slopes": [-3.0, 1.0],
        "curvatures": [8.0, 0.0],
        "sharp_allocations": [[-1.0, 2.0], [0.0, 1.0]],
        "sharp_updates": [[-1.0, 3.0], [2.0, -3.0]],
        "sharp_gradients": [[2.0, 0.0], [-1.0, 0.0]],
        "band_allocations": [[-4.0, -1.0], [0.0, -3.0]],
        "band_energies": [[1.0, 1.0], [2.0, 0.0]],
        "seconds": 1.0,
        **changes,
    }
    return ReplayRun(**{key: np.array(value) if isinstance(value, list) else value for key, value in values.items()})


def with_energies(energies: NDArray[np.float64]) -> ReplayRun:
    """A run of which only the energies matter."""
    return replace(make_replay(seeds=1, steps=len(energies)).runs[0], band_energies=energies)


def replay_of(*runs: ReplayRun, eigenvalues: tuple[float, ...] = (4.0, 1.0)) -> Replay:
    return replace(make_replay(seeds=0), runs=runs, eigenvalues=np.array(eigenvalues), bands=BANDS)


def losing(optimizer: str, seed: int, loss: float, **changes: Any) -> ReplayRun:
    return run_of(optimizer=optimizer, seed=seed, losses=[10.0, 9.0, loss], **changes)


def test_a_run_by_hand() -> None:
    run = run_of()
    assert (run.num_steps, run.is_recorded, run.loss_change, run.closure_error) == (2, True, -6.0, 0.25)
    assert run.flat_allocations.tolist() == [-6.0, -4.0]
    # −Σcγ/Σγ² = (2 + 2)/5; without a gradient there is no rate.
    assert run.effective_lrs.tolist() == [0.8, 0.0]
    assert run.oscillations.tolist() == [pytest.approx(2.0 / 3.0), 1.0]  # |−1 + 2| of 3; |3 − 3| of 6
    assert run.directional_sharpness.tolist() == [2.0, 0.0]
    assert run.predicted_changes.tolist() == [1.0, 1.0]
    assert run.directional_edge_ratios[0] == 8.0 / 3.0
    assert np.isnan(run.directional_edge_ratios[1])  # it climbs


def test_without_a_move_there_is_nothing_to_divide_by() -> None:
    run = run_of(sharp_updates=[[0.0, 0.0]] * 2, band_energies=[[0.0, 0.0]] * 2)
    assert run.oscillations.tolist() == [1.0, 1.0]
    assert run.band_isotropy(DIMENSIONS).tolist() == [0.0, 0.0]
    assert run.isotropy_entropy(DIMENSIONS) == 0.0


def test_isotropy() -> None:
    run = run_of()  # shares of energy ¾ and ¼, of dimensions ¼ and ¾
    np.testing.assert_allclose(run.band_isotropy(DIMENSIONS), [3.0, 1.0 / 3.0], rtol=1e-15)
    # The divergence is ¾ log 3 − ¼ log 3.
    assert run.isotropy_entropy(DIMENSIONS) == pytest.approx(3.0**-0.5, rel=1e-15)
    even = run_of(band_energies=[[1.0, 3.0], [2.0, 6.0]])
    assert even.band_isotropy(DIMENSIONS).tolist() == [1.0, 1.0]
    assert even.isotropy_entropy(DIMENSIONS) == 1.0
    # One direction of four carries it all.
    assert run_of(band_energies=[[1.0, 0.0]] * 2).isotropy_entropy(DIMENSIONS) == pytest.approx(0.25, rel=1e-15)


def perplexity(energies: NDArray[np.float64], dimensions: NDArray[np.int64]) -> float:
    """The definition, direction by direction: e^entropy of the energy over all of them, against their number."""
    each = np.repeat(energies / dimensions, dimensions)
    each = each[each > 0.0] / each.sum()
    return float(np.exp(-np.sum(each * np.log(each)))) / int(dimensions.sum())


@pytest.mark.parametrize(
    ("energies", "dimensions", "expected"),
    [
        ([[5.0, 20.0, 75.0]], [5, 20, 75], 1.0),  # even
        ([[7.0, 0.0, 0.0]], [5, 20, 75], 0.05),  # even within 5 of 100
        ([[0.0, 0.0, 7.0]], [5, 20, 75], 0.75),
        ([[3.0, 3.0, 0.0]], [10, 10, 20], 0.5),
        # ½ in 2 of 8 directions, ½ in 6: entropy ½ log 4 + ½ log 12.
        ([[1.0, 1.0], [2.0, 2.0]], [2, 6], 48.0**0.5 / 8.0),
        # Steps are added up: shares ⅕ and ⅘ of 1 and 4 directions are even, though no step is.
        ([[1.0, 0.0], [0.0, 4.0]], [1, 4], 1.0),
        # ¼ in 1 of 8, ¾ in 7: entropy ¼ log 4 + ¾ log 28/3.
        ([[1.0, 3.0]], [1, 7], 4.0**0.25 * (28.0 / 3.0) ** 0.75 / 8.0),
    ],
)
def test_isotropy_is_the_share_of_directions_that_carry_the_update(
    energies: list[list[float]], dimensions: list[int], expected: float
) -> None:
    counts = np.array(dimensions)
    run = with_energies(np.array(energies))
    assert run.isotropy_entropy(counts) == pytest.approx(expected, rel=1e-14)
    assert perplexity(np.array(energies).sum(axis=0), counts) == pytest.approx(expected, rel=1e-14)
    shares = np.array(energies).sum(axis=0) / np.sum(energies)
    np.testing.assert_allclose(run.band_isotropy(counts) * counts, shares * counts.sum(), rtol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_isotropy_of_any_spread_is_its_perplexity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dimensions = rng.integers(1, 40, size=6)
    energies = rng.exponential(size=(3, 6)) ** 3
    found = with_energies(energies).isotropy_entropy(dimensions)
    # Six logarithms of order one in either sum.
    assert found == pytest.approx(perplexity(energies.sum(axis=0), dimensions), rel=1e-13)
    assert 0.0 < found < 1.0


def test_isotropy_is_a_mean_over_seeds() -> None:
    even, narrow = [[1.0, 3.0]] * 2, [[1.0, 0.0]] * 2
    found = replay_of(run_of(band_energies=even), run_of(seed=1, band_energies=narrow)).isotropy_entropy("muon")
    assert found is not None
    assert (found.value, found.num_samples) == (pytest.approx(0.625, rel=1e-15), 2)  # 1 and ¼
    bands = replay_of(run_of(band_energies=even), run_of(seed=1, band_energies=narrow)).band_isotropy("muon")
    assert bands is not None
    np.testing.assert_allclose(bands[0], [2.5, 0.5], rtol=1e-15)  # 1 and 4; 1 and 0


def test_decay_rates_want_three_steps() -> None:
    assert run_of().decay_rates.tolist() == [1.0, 1.0]
    narrow = ("train_losses", "update_norms", "allocations", "closure_errors", "gradients_used", "slopes", "curvatures")
    wide = ("sharp_allocations", "sharp_updates", "band_allocations", "band_energies")
    rest = {**dict.fromkeys(narrow, [0.0] * 3), **dict.fromkeys(wide, [[1.0, 1.0]] * 3)}
    gradients = [[8.0, 1.0], [-4.0, 3.0], [2.0, 9.0]]
    run = run_of(**rest, losses=[4.0, 3.0, 2.0, 1.0], sharp_gradients=gradients)
    np.testing.assert_allclose(run.decay_rates, [0.5, 3.0], rtol=1e-13)


def test_shares_and_progress_are_means_over_seeds_that_reached_the_end() -> None:
    other = run_of(seed=1, allocations=[-1.0, -3.0], sharp_allocations=[[0.0, -1.0], [0.0, 0.0]])
    # Seed 2 diverged: its numbers are nobody's.
    found = replay_of(run_of(), other, run_of(seed=2, diverged_at=2, allocations=[-100.0, 0.0]))
    share = found.flat_share("muon")
    assert share is not None
    assert (share.value, share.num_samples) == (1.0, 2)  # 10/8 and 3/4
    assert share.stderr == pytest.approx(0.25, rel=1e-15)
    flat, sharp = found.flat_progress("muon"), found.sharp_progress("muon")
    assert flat is not None
    assert sharp is not None
    assert (flat.value, sharp.value) == (6.5, -0.5)  # 10 and 3; −2 and 1
    for figure, means, errors in (
        (found.eigenvector_progress("muon"), [0.5, -1.0], [0.5, 2.0]),  # 1 and 0; −3 and 1
        (found.band_progress("muon"), [4.0, 4.0], [0.0, 0.0]),
        (found.effective_lrs("muon"), [0.8, 0.0], [0.0, 0.0]),
    ):
        assert figure is not None
        assert (figure[0].tolist(), figure[1].tolist()) == (means, errors)
    sharpness = found.directional_sharpness("muon")
    assert sharpness is not None
    assert sharpness.value == 1.0
    assert found.closure("muon") == 0.25 / 6.0
    assert [run.seed for run in found.diverged("muon")] == [2]


def test_the_ramp_and_what_comes_after_it_add_up_to_the_whole() -> None:
    found = replace(replay_of(run_of(), run_of(seed=1)), steps=2, ramp=1)
    assert found.parts == ("whole", "ramp", "after")
    by_part = {
        part: [
            one.value
            for one in (
                found.loss_change("muon", part=part),
                found.flat_progress("muon", part),
                found.sharp_progress("muon", part),
            )
            if one is not None
        ]
        for part in found.parts
    }
    assert by_part == {"whole": [-6.0, 10.0, -2.0], "ramp": [-3.0, 6.0, -1.0], "after": [-3.0, 4.0, -1.0]}


def test_the_directional_edge_ratio_is_one_of_sums_after_the_ramp() -> None:
    """Descents of 3 and 1, 2 and 6; curvatures of 8 and 4, 1 and 6."""
    runs = (
        run_of(slopes=[-3.0, -1.0], curvatures=[8.0, 4.0]),
        run_of(seed=1, slopes=[-2.0, -6.0], curvatures=[1.0, 6.0]),
    )
    found = replace(replay_of(*runs), steps=2)
    whole, after = found.directional_edge_ratio("muon"), replace(found, ramp=1).directional_edge_ratio("muon")
    assert whole is not None
    assert after is not None
    assert (whole.value, whole.num_samples) == ((3.0 + 7.0 / 8.0) / 2.0, 2)
    assert whole.stderr == pytest.approx((3.0 - 7.0 / 8.0) / 2.0, rel=1e-15)
    assert after.value == 2.5  # 4 and 1
    assert replace(found, ramp=2).directional_edge_ratio("muon") == whole  # no step is left after it
    curve = found.directional_edge_curve("muon")
    assert curve is not None
    assert curve.tolist() == [9.0 / 5.0, 10.0 / 7.0]
    # −3 + 4 and −2 + ½; −1 + 2 and −6 + 3: seeds together descend at both.
    assert found.steps_past_edge("muon") == 0
    assert replay_of(runs[0]).steps_past_edge("muon") == 2


def predicted(losses: list[float], model: list[float], **changes: Any) -> ReplayRun:
    """A run of 5 steps with these losses after 1, 2, 4 and 5 of them, and the model's; it began at 10."""
    own = [10.0, losses[0], losses[1], 0.0, *losses[2:]]
    narrow = ("train_losses", "update_norms", "allocations", "closure_errors", "gradients_used", "slopes", "curvatures")
    wide = ("sharp_allocations", "sharp_updates", "sharp_gradients", "band_allocations", "band_energies")
    rest = {**dict.fromkeys(narrow, [0.0] * 5), **dict.fromkeys(wide, [[1.0, 1.0]] * 5)}
    return run_of(**rest, losses=own, logged_steps=[1, 2, 4, 5], predicted_losses=model, **changes)


def test_the_horizon_is_where_a_tenth_of_the_loss_change_is_missed_first() -> None:
    losses = [9.0, 8.0, 6.0, 5.0]  # a tenth of their changes: 0.1, 0.2, 0.4 and 0.5
    for model, missed, low, high in (
        ([9.0, 8.0, 6.0, 5.0], [False] * 4, 5, None),
        ([9.0625, 8.125, 5.75, 4.75], [False] * 4, 5, None),
        ([9.0, 8.0, 5.5, 5.0], [False, False, True, False], 2, 4),  # it hits again: the first miss counts
        ([9.0, 8.0, 6.0, 5.625], [False, False, False, True], 4, 5),
        ([9.125, 8.0, 6.0, 5.0], [True, False, False, False], 0, 1),
        ([9.0, 7.75, 6.0, 5.0], [False, True, False, False], 1, 2),
    ):
        run = predicted(losses, model)
        assert run.model_missed.tolist() == missed
        assert run.horizon == Horizon(low=low, high=high)
    assert run_of().horizon is None


def test_a_miss_no_larger_than_rounding_is_none() -> None:
    """Where the loss hardly moves, or comes back to its start, a tenth of its change is nothing."""
    model = [10.0, 10.25, 6.0, 5.0]
    for noise, horizon in (
        (0.0, Horizon(low=0, high=1)),
        (0.2, Horizon(low=1, high=2)),
        (0.25, Horizon(low=5, high=None)),
    ):
        assert predicted([9.875, 10.0, 6.0, 5.0], model, loss_noise=noise).horizon == horizon


def test_predicted_changes_are_means_over_the_seeds_that_got_there() -> None:
    """Seed 1 diverged behind its second step: it has a horizon of its own, and no later step."""
    first = predicted([9.0, 8.0, 6.0, 5.0], [9.0, 8.5, 6.0, 6.0], loss_noise=1e-3)
    second = run_of(seed=1, losses=[10.0, 8.0, 10.0], logged_steps=[1, 2], predicted_losses=[8.0, 10.0], diverged_at=2)
    ablated = predicted([9.0, 8.0, 6.0, 5.0], [0.0] * 4, ablation="bulk")
    found = replay_of(first, second, ablated)
    assert found.horizons("muon") == (Horizon(low=1, high=2), Horizon(low=2, high=None))
    assert found.horizons("soap") == ()
    changes = found.modelled_changes("muon")
    assert [(one.step, one.count, one.missed) for one in changes] == [(1, 2, 0), (2, 2, 1), (4, 1, 0), (5, 1, 1)]
    assert [one.change.value for one in changes] == [-1.5, -1.0, -4.0, -5.0]
    assert [one.predicted.value for one in changes] == [-1.5, -0.75, -4.0, -4.0]
    assert [one.miss for one in changes] == [0.0, 0.25, 0.0, 0.2]
    assert (changes[0].change.num_samples, changes[2].change.num_samples) == (2, 1)
    still = predicted([10.0] * 4, [10.0, 10.0, 11.0, 10.0], loss_noise=1e-3)
    assert [one.miss for one in replay_of(still).modelled_changes("muon")] == [None] * 4


def test_logged_steps_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 predicted losses, got 2"):
        run_of(logged_steps=[1], predicted_losses=[1.0, 1.0])
    for steps in ([0, 1], [1, 3], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match=r"expected ascending logged steps from 1 to 2, got \["):
            run_of(logged_steps=steps, predicted_losses=[1.0, 1.0])


def test_without_a_descent_there_is_no_directional_edge_ratio() -> None:
    level = run_of(seed=1, slopes=[-3.0, 3.0])
    for runs in ((level,), (run_of(slopes=[-3.0, -1.0]), level)):
        assert replay_of(*runs).directional_edge_ratio("muon") is None
    curve = replay_of(level).directional_edge_curve("muon")
    assert curve is not None
    assert curve[0] == 8.0 / 3.0
    assert np.isnan(curve[1])
    nothing = replay_of(run_of(diverged_at=2))
    assert nothing.directional_edge_ratio("muon") is None
    assert nothing.directional_edge_curve("muon") is None
    assert nothing.steps_past_edge("muon") is None


@pytest.mark.parametrize("ramp", [0, 2])
def test_without_a_ramp_or_steps_after_it_there_are_no_parts(ramp: int) -> None:
    found = replace(replay_of(run_of()), steps=2, ramp=ramp)
    assert found.parts == ("whole",)
    assert found.loss_change("muon", part="ramp") is None
    assert found.flat_progress("muon", "after") is None
    assert found.sharp_progress("muon", "ramp") is None


def test_the_same_batches_have_figures_of_their_own() -> None:
    same = {
        "same_batch_losses": [20.0, 18.0, 12.0],
        "same_batch_allocations": [-2.0, -5.0],
        "same_batch_closure_errors": [0.0, 1.0],
        "same_batch_gradients_used": [2, 4],
        "same_batch_sharp_allocations": [[-1.0, 0.0], [-1.0, -3.0]],
    }
    assert replay_of(run_of()).on_same_batches() is None
    assert replay_of(run_of(**same), run_of(seed=1)).on_same_batches() is None
    found = replay_of(run_of(**same), run_of(seed=1, **same)).on_same_batches()
    assert found is not None
    figures = (found.loss_change("muon"), found.flat_progress("muon"), found.sharp_progress("muon"))
    assert [one.value for one in figures if one is not None] == [-8.0, 2.0, 5.0]
    assert found.start_loss == 20.0
    assert found.closure("muon") == 1.0 / 8.0


def test_one_seed_has_no_error_and_none_has_no_figure() -> None:
    found = replay_of(run_of())
    change = found.loss_change("muon")
    assert change is not None
    assert (change.value, change.stderr, change.low, change.high, change.num_samples) == (-6.0, 0.0, -6.0, -6.0, 1)
    progress = found.eigenvector_progress("muon")
    assert progress is not None
    assert progress[1] is None
    assert found.loss_change("soap") is None
    assert found.band_progress("soap") is None
    assert found.closure("soap") is None
    assert found.difference("muon", "soap") is None


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by 4, optimizers by 1 and 2: an unpaired error would be 1.6 or more, not ½."""
    runs = [losing("muon", 0, 3.0), losing("muon", 1, 7.0), losing("muon", 2, 5.0)]
    # In another order, and without seed 2.
    runs += [losing("soap", 1, 9.0), losing("soap", 0, 4.0), losing("soap", 2, 0.0, diverged_at=2)]
    found = replay_of(*runs)
    difference = found.difference("muon", "soap")
    assert difference is not None
    assert (difference.value, difference.num_samples) == (-1.5, 2)
    assert difference.stderr == pytest.approx(0.5, rel=1e-15)
    other_way = found.difference("soap", "muon")
    assert other_way is not None
    assert other_way.value == 1.5
    assert found.flat_difference("muon", "soap") == replace(difference, value=0.0, stderr=0.0, low=0.0, high=0.0)
    assert found.sharp_difference("muon", "soap") == found.flat_difference("muon", "soap")


def test_progress_differs_by_part() -> None:
    """Of muon 10 nats flat and −2 sharp on both seeds; of soap 3 and 1, and 2 and 2."""
    sharp = ([[0.0, -1.0], [0.0, 0.0]], [[0.0, -1.0], [0.0, -1.0]])
    runs = [run_of(seed=seed) for seed in (0, 1)]
    runs += [
        run_of(optimizer="soap", seed=seed, allocations=[-1.0, -3.0], sharp_allocations=sharp[seed]) for seed in (0, 1)
    ]
    found = replay_of(*runs)
    flat, along = found.flat_difference("muon", "soap"), found.sharp_difference("muon", "soap")
    assert flat is not None
    assert along is not None
    assert (flat.value, along.value) == (7.5, -3.5)
    assert (flat.stderr, along.stderr) == (pytest.approx(0.5, rel=1e-15), pytest.approx(0.5, rel=1e-15))


def test_manners_are_means_and_the_closure_is_the_worst_seed() -> None:
    straight = run_of(seed=1, sharp_updates=[[1.0, 1.0], [1.0, 1.0]], closure_errors=[1.5, 1.5])
    unrecorded = run_of(seed=2, allocations=[], closure_errors=[60.0, 0.0])
    found = replay_of(run_of(), straight, unrecorded)
    oscillation = found.oscillation("muon")  # ⅔ and 1; 0 and 0
    assert oscillation is not None
    np.testing.assert_allclose(oscillation[0], [1.0 / 3.0, 0.5], rtol=1e-15)
    assert found.closure("muon") == 0.5  # ¼ of 6, 3 of 6


def test_measured_rates_are_means_over_seeds() -> None:
    replay = make_replay(optimizers=("muon",), steps=4, seeds=2)
    # |γ| halves along every direction on one seed, and stays on the other.
    factors = {0: 0.5, 1: 1.0}
    runs = [
        replace(run, sharp_gradients=np.full((4, 10), factors[run.seed]) ** np.arange(4)[:, None])
        for run in replay.runs
    ]
    rates = replace(replay, runs=tuple(runs)).decay_rates("muon")
    assert rates is not None
    np.testing.assert_allclose(rates[0], 0.75, rtol=1e-13)
    np.testing.assert_allclose(rates[1], 0.25, rtol=1e-13)


def test_a_run_without_steps_is_not_recorded() -> None:
    run = run_of()
    arrays = {key: value for key in run.__slots__ if isinstance(value := getattr(run, key), np.ndarray)}
    empty = replace(run, **{key: value[:1] if key == "losses" else value[:0] for key, value in arrays.items()})
    assert not empty.is_recorded


def test_ablations_are_compared_with_whole_updates() -> None:
    runs = [losing("muon", seed, loss) for seed, loss in ((0, 3.0), (1, 7.0))]
    runs += [losing("muon", seed, loss, ablation="bulk") for seed, loss in ((0, 4.0), (1, 8.0))]
    found = replay_of(*runs)
    assert found.ablations == ("bulk",)
    difference = found.difference("muon", "muon", "bulk")
    assert difference is not None
    assert (difference.value, difference.stderr) == (1.0, 0.0)
    assert found.loss_change("muon", "dominant") is None


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_exponent_of_a_power_law(power: float) -> None:
    curvatures = np.array([16.0, 4.0, 2.0, 1.0, 0.25])
    rates = 0.1 * curvatures**-power
    run = run_of(sharp_gradients=[[1.0] * 5] * 2, sharp_updates=[(-rates).tolist()] * 2)
    exponent = replay_of(run, eigenvalues=tuple(curvatures)).exponent("muon")
    assert exponent is not None
    assert exponent.value == pytest.approx(power, abs=1e-14)


def test_the_exponent_leaves_negative_curvature_out() -> None:
    run = run_of(sharp_gradients=[[1.0] * 5] * 2, sharp_updates=[[-1.0, -2.0, -4.0, -8.0, -1.0]] * 2)
    exponent = replay_of(run, eigenvalues=(8.0, 4.0, 2.0, 1.0, -1.0)).exponent("muon")
    assert exponent is not None
    assert exponent.value == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize(
    ("rates", "is_one"),
    [
        ([1.0, 2.0, 4.0, 8.0, -1.0], True),  # four fifths are positive
        ([1.0, 2.0, 4.0, -1.0, -1.0], False),  # three of five
        ([1.0, 2.0, -1.0], False),  # two
    ],
)
def test_rates_of_either_sign_have_no_exponent(rates: list[float], is_one: bool) -> None:
    curvatures = (16.0, 8.0, 4.0, 2.0, 1.0)[: len(rates)]
    run = run_of(sharp_gradients=[[1.0] * len(rates)] * 2, sharp_updates=[[-rate for rate in rates]] * 2)
    exponent = replay_of(run, eigenvalues=curvatures).exponent("muon")
    assert (exponent is not None) == is_one
    if exponent is not None:
        assert exponent.value == pytest.approx(1.0, abs=1e-14)


def test_a_run_knows_its_shape() -> None:
    run = run_of()
    with pytest.raises(ValueError, match="expected 3 evaluation losses, got 2"):
        replace(run, losses=np.ones(2))
    with pytest.raises(ValueError, match="expected 2 steps of slopes, got 5"):
        replace(run, slopes=np.ones(5))
    with pytest.raises(ValueError, match="read-only"):
        run.losses[0] = 1.0
    ablated = run_of(ablation="bulk", allocations=[], sharp_updates=np.zeros((2, 0)))
    assert not ablated.is_recorded

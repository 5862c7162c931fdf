"""The joint optimum of several groups, against linear algebra."""

import numpy as np
import pytest

from lite_probe.steps.joint import joint_optimum


def test_without_a_ridge_to_speak_of_it_is_the_minimum() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    curvatures = root @ root.T + np.eye(5)
    gains = rng.standard_normal(5)
    multiples, change = joint_optimum(gains, curvatures, 1e-10)
    expected = np.linalg.solve(curvatures, gains)
    np.testing.assert_allclose(multiples, expected, rtol=1e-7)
    assert change == pytest.approx(-0.5 * gains @ expected, rel=1e-7)


def test_scales_of_the_groups_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((4, 4))
    curvatures, gains = root @ root.T + np.eye(4), rng.standard_normal(4)
    scale = np.array([1.0, 2.0, 0.5, 4.0])
    multiples, change = joint_optimum(gains, curvatures, 0.1)
    scaled, same = joint_optimum(gains * scale, curvatures * np.outer(scale, scale), 0.1)
    np.testing.assert_allclose(scaled * scale, multiples, rtol=1e-10)
    assert same == pytest.approx(change)


def test_directions_that_curve_downward_are_not_followed_for_ever() -> None:
    curvatures = np.diag([2.0, -1.0])
    multiples, change = joint_optimum(np.array([1.0, 1.0]), curvatures, 0.1)
    assert multiples[0] == pytest.approx(1.0 / 2.0 / 1.1)
    assert multiples[1] == pytest.approx(1.0 / 0.1)
    assert change < 0.0


def test_a_larger_ridge_gives_shorter_steps() -> None:
    rng = np.random.default_rng(2)
    root = rng.standard_normal((6, 3))
    curvatures, gains = root @ root.T, rng.standard_normal(6)
    sizes = [float(np.linalg.norm(joint_optimum(gains, curvatures, ridge)[0])) for ridge in (0.01, 0.1, 1.0, 10.0)]
    assert sizes == sorted(sizes, reverse=True)

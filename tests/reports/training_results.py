"""A training run's record without a run."""

from dataclasses import replace
from typing import Any

from lite_probe.results.training import Training, TrainingPoint
from tests.reports.fixtures import make_provenance


def make_point(step: int, **more: Any) -> TrainingPoint:
    """Return a point at which the step taken was half the critical one."""
    point = TrainingPoint(
        step=step,
        loss=3.0,
        gradient_norm=0.5,
        learning_rate=0.01,
        update_norm=0.1,
        eigenvalues=(10.0 + step,),
        residual_norms=(0.05,),
        gradient_share=0.25,
        critical_low=1.9,
        critical_high=2.0,
        num_hvps=12,
        evaluations=6,
        seconds=1.5,
    )
    return replace(point, **more)


def make_training(*points: TrainingPoint, **more: Any) -> Training:
    """Return the record of these points, or of three."""
    training = Training(
        points=points or (make_point(0), make_point(100), make_point(200)),
        skipped=(),
        failed=(),
        top=1,
        tolerance=0.01,
        num_parameters=1000,
        config={"top": 1},
        fingerprint="training",
        provenance=make_provenance(command=""),
    )
    return replace(training, **more)

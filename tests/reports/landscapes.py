"""The loss around the start of a synthetic replay, that of a quadratic with a quartic on top."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lite_probe.results.landscape import Landscape, LossLine, LossPlane, PlanePath
from lite_probe.results.replay import ReplayRun


def make_landscape(
    optimizers: Sequence[str], runs: Sequence[ReplayRun], eigenvalues: NDArray[np.float64], start_loss: float
) -> Landscape:
    """Lines of a quadratic and a quartic, a valley for a plane, and paths whose flat part grows with every step."""

    def line(name: str, kind: str, reach: float, slope: float, curvature: float, quartic: float, **more: str):
        first = -0.25 * reach if kind == "update" else -reach
        distances = np.linspace(first, reach, 21)
        distances[np.argmin(np.abs(distances))] = 0.0
        changes = slope * distances + 0.5 * curvature * distances**2 + quartic * distances**4
        return LossLine(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            distances=distances,
            losses=start_loss + changes,
            slope=slope,
            curvature=curvature,
            noise=5e-6,
            unit_length=0.9 if kind == "update" else 1.0,
            **more,
        )

    count = len(eigenvalues)
    lines = [
        line(f"eigenvector 1 of {count}", "eigenvector", 0.12, 0.05, float(eigenvalues[0]), -700.0),
        line(
            f"eigenvector {count // 2 + 1} of {count}", "eigenvector", 0.2, -0.02, float(eigenvalues[count // 2]), -90.0
        ),
        line("random flat direction", "flat", 60.0, -1e-4, 3e-4, 1e-8),
    ]
    for place, name in enumerate(optimizers):
        lines.append(line(f"update of {name}", "update", 4.0, -0.03, 0.02 + 0.004 * place, 2e-4, optimizer=name))
    paths = []
    for place, name in enumerate(optimizers):
        run = next(run for run in runs if run.optimizer == name and run.seed == 0 and run.ablation == "none")
        x = np.concatenate([[0.0], np.cumsum(run.sharp_updates[:, 0])])
        y = (0.4 - 0.05 * place) * np.arange(len(x))
        paths.append(
            PlanePath(
                optimizer=name,
                x=x,
                y=y,
                losses=run.losses,
                lengths=1.3 * np.sqrt(x**2 + y**2),
                diverged_at=run.diverged_at,
            )
        )
    across, up = np.linspace(-0.1, 0.1, 11), np.linspace(-1.5, 9.5, 11)
    valley = 0.5 * float(eigenvalues[0]) * across**2 + (4e-4 * up**2 - 6e-3 * up)[:, None]
    is_missing = np.zeros(valley.shape, dtype=bool)
    is_missing[-1, -1] = True
    plane = LossPlane(
        optimizer=optimizers[0],
        x=across,
        y=up,
        losses=np.where(is_missing, 0.0, start_loss + valley),
        is_missing=is_missing,
        paths=tuple(paths),
    )
    return Landscape(
        start_loss=start_loss,
        lines=tuple(lines),
        plane=plane,
        split="held-out",
        num_batches=4,
        seed=0,
        num_losses=290,
        num_gradients=104,
        num_hvps=len(lines),
        seconds=41.5,
    )

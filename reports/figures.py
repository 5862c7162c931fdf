"""Every figure of a page by name, as plain JSON values for plotly.js."""

from typing import Any

from lite_probe.reports.replay_figures import draw_replay
from lite_probe.reports.spectrum_figures import draw_spectra
from lite_probe.reports.subspace_figures import draw_subspaces
from lite_probe.reports.view import PageView


def draw_figures(view: PageView) -> dict[str, dict[str, Any]]:
    """Draw every figure of a page.

    Returns:
        Name → `{"data": …, "layout": …}` for plotly.js, only for what the view has.
    """
    figures = draw_spectra(view.spectrum) if view.spectrum is not None else {}
    if view.subspace is not None:
        figures |= draw_subspaces(view.subspace)
    for replay in view.replays:
        figures |= draw_replay(replay)
    return figures

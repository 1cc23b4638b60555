"""Figures of a result: the annealing as curves, the uncertainty as maps (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cogen_fast.support.extras import imported

Array = npt.NDArray[Any]


def new_figure(name: str, rows: int, columns: int, size: tuple[float, float]) -> Any:
    """A matplotlib Figure with axes ``(rows, columns)``; no window or backend is touched.

    ImportError says that ``name`` needs the extra.
    """
    drawing = imported("matplotlib.figure", what=name, package="matplotlib", extra="plots")
    figure = drawing.Figure(figsize=size, layout="constrained")
    figure.subplots(rows, columns, squeeze=False)
    return figure


def draw_trace(
    betas: Array,
    energies: Array,
    deviations: Array,
    acceptance: Array,
    step_size: Array,
    explained: float | None,
) -> Any:
    """Curves of one observation over its temperatures; arrays are ``(T, S)`` for S islands.

    ``explained`` is the energy that the noise alone would have, a line of comparison; None without
    a noise level.
    """
    figure = new_figure("plot_trace", 2, 2, (9.0, 5.5))
    panels = (
        ("inverse temperature", betas, "log"),
        ("mean misfit energy of the particles", energies, "log"),
        ("acceptance", acceptance, "linear"),
        ("leapfrog step size", step_size, "log"),
    )
    for axes, (title, values, scale) in zip(figure.axes, panels, strict=True):
        for island, column in enumerate(values.T):
            axes.plot(np.arange(1, len(column) + 1), column, label=f"island {island}", lw=1.2)
        axes.set(title=title, yscale=scale)
    energy = figure.axes[1]
    for mean, deviation in zip(energies.T, deviations.T, strict=True):
        low = np.maximum(mean - deviation, mean * 1e-3)
        energy.fill_between(np.arange(1, len(mean) + 1), low, mean + deviation, alpha=0.15)
    if explained is not None:
        energy.axhline(explained, color="black", lw=0.8, ls="--", label="noise alone")
    energy.legend(fontsize=8)
    figure.axes[2].set_ylim(0.0, 1.0)
    for axes in figure.axes[2:]:
        axes.set_xlabel("temperature")
    return figure


def draw_maps(rows: Sequence[Sequence[tuple[str, Array, str]]]) -> Any:
    """Labelled maps in rows: ``(title, values, kind)``.

    ``kind`` is "image" for ``(H, W)`` or ``(H, W, 3)`` in [0, 1], "spread" for a map ``(H, W)``
    that begins at 0 and has a colour bar.
    """
    columns = max(len(row) for row in rows)
    figure = new_figure("plot_uncertainty", len(rows), columns, (2.3 * columns, 2.5 * len(rows)))
    axes = iter(figure.axes)
    for row in rows:
        for title, values, kind in row:
            place = next(axes)
            place.set_axis_off()
            place.set_title(title, fontsize=9)
            if kind == "spread":
                drawn = place.imshow(values, cmap="inferno", vmin=0.0)
                figure.colorbar(drawn, ax=place, fraction=0.046)
            else:
                place.imshow(values, cmap="gray", vmin=0.0, vmax=1.0)
    return figure

"""Figures 1 to 3 of the 2-D study: a column (or row) of panels per generator.

The colours are those of Okabe and Ito, and whatever a colour shows, a marker or a line style shows
too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cogen_fast.experiments.synthetic.five_gaussians import ANSWER, LIMITS, squared_error
from cogen_fast.experiments.synthetic.runs import SMALL_RATE, GeneratorResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BoolArray = npt.NDArray[np.bool_]
FILES = ("figure-1.png", "figure-2.png", "figure-3.png")
_BLUE, _VERMILION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "0.6"
_CLOSE = LIMITS[0]
_PATHS, _CURVES, _DOTS, _SAMPLES = 16, 100, 100, 2000
_POINTS = 301  # per side of a latent plane
_LEAST_WIDTH, _MOST_WIDTH = 3.5, 8.0  # from the centre of a latent plane to its edge
_LEAST_LOSS, _MOST_LOSS = 1e-3, 3.0
_PLANE = 1.6
_ERRORS = np.logspace(-6.0, 1.0, 36)
_BEST, _OTHERS = f"ends near the answer (error < {_CLOSE:g})", "ends elsewhere"


def draw(
    plt: Any, studies: Sequence[GeneratorResults], loops: Sequence[int]
) -> Iterator[tuple[str, Figure]]:
    """The name of each of `FILES` and its figure, which the caller has to close."""
    yield FILES[0], _descents(plt, studies)
    yield FILES[1], _outputs(plt, studies)
    yield FILES[2], _loops(plt, studies, loops)


def errors(generator: nn.Module, latents: Tensor) -> Tensor:
    """Mean squared errors of the outputs of latents ``(..., 2)`` against the answer, ``(...)``."""
    with torch.no_grad():
        outputs = generator(latents.reshape(-1, 2))
    return squared_error(outputs).reshape(latents.shape[:-1])


# --- figure 1 -------------------------------------------------------------------------------------


def _descents(plt: Any, studies: Sequence[GeneratorResults]) -> Figure:
    """Figure 1: paths of gradient descent over the loss, and their errors."""
    figure, axes = _panels(plt, 2, len(studies))
    for (top, bottom), study in zip(axes.T, studies, strict=True):
        assert study.descent.trace is not None
        trace = study.descent.trace[:, 0]
        found = (errors(study.generator, trace[-1]) < _CLOSE).numpy()
        shades = _surface(top, study.generator, _LEAST_WIDTH)
        _paths(top, trace[:, :_PATHS].numpy(), found)
        _set_title(top, study)
        top.set_xlabel("latent z1")
        _curves(bottom, study.generator, trace, found)
    axes[0, 0].set_ylabel("latent z2")
    axes[1, 0].set_ylabel("mean squared error against (1, 0)")
    figure.colorbar(shades, ax=list(axes[0]), label="loss E(z) = x2²", extend="both")
    handles = [
        plt.Line2D([], [], color=_BLUE, marker="o", label=_BEST),
        plt.Line2D([], [], color=_VERMILION, linestyle="--", marker="X", label=_OTHERS),
        plt.Line2D([], [], color="black", linestyle="", marker=".", label="random start"),
        plt.Line2D([], [], color="black", linewidth=0.8, label=f"error {_CLOSE:g}"),
        _answer_patch(plt),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    figure.suptitle(
        f"Gradient descent on the loss x2² at rate {SMALL_RATE:g}, from random latents: {_PATHS} "
        f"paths (top) and {_CURVES} error curves (bottom) per generator"
    )
    return figure


def _paths(axes: Axes, trace: npt.NDArray[Any], found: BoolArray) -> None:
    """Draw paths: ``trace`` is ``(steps + 1, n, 2)``."""
    for path, good in zip(trace.transpose(1, 0, 2), found, strict=False):
        style = _style(good)
        axes.plot(path[:, 0], path[:, 1], linewidth=1.1, **style)
        axes.plot(*path[0], ".", color="black", markersize=5)
        axes.plot(
            *path[-1],
            marker="o" if good else "X",
            color=style["color"],
            markersize=6.5,
            markeredgecolor="white",
            zorder=3,
        )


def _curves(axes: Axes, generator: nn.Module, trace: Tensor, found: BoolArray) -> None:
    """Draw error curves of ``trace`` ``(steps + 1, n, 2)``, at logarithmically spaced steps."""
    last = len(trace) - 1
    steps = np.unique(np.rint(np.geomspace(1, last, 120)).astype(np.int64))
    curves = errors(generator, trace[torch.from_numpy(steps), :_CURVES]).numpy()
    for good in (True, False):
        chosen = curves[:, found[:_CURVES] == good]
        axes.plot(steps, chosen, linewidth=0.7, alpha=0.6, **_style(good))
    axes.axhline(_CLOSE, color="black", linewidth=0.8)
    share = f"{found.mean():.0%} of {len(found)} end\nbelow {_CLOSE:g}"
    axes.text(0.03, 0.03, share, transform=axes.transAxes, bbox=_box())
    axes.set(xscale="log", yscale="log", xlabel="iteration", ylim=(1e-6, 10.0), xlim=(1, last))


# --- figure 2 -------------------------------------------------------------------------------------


def _outputs(plt: Any, studies: Sequence[GeneratorResults]) -> Figure:
    """Figure 2: samples of the generators, end points of both methods, and their errors."""
    figure, axes = _panels(plt, 4, len(studies))
    for column, study in zip(axes.T, studies, strict=True):
        ends = study.best_descent.images[0], study.program_run.images[0]
        _plane(column[0], study.generator, None)
        _plane(column[1], study.generator, ends[0])
        _plane(column[2], study.generator, ends[1])
        _histogram(column[3], *(squared_error(outputs).numpy() for outputs in ends))
        _set_title(column[0], study)
    names = ("samples of the generator", "gradient descent, best rate", "AIS-HMC, program")
    for row, name in zip(axes, names, strict=False):
        row[0].set_ylabel(f"{name}\n\nx2")
    axes[3, 0].set_ylabel("errors of both\n\nshare of chains")
    handles = [
        plt.Line2D([], [], color=_GREY, linestyle="", marker=".", label="G(z), z from the prior"),
        plt.Line2D([], [], color=_BLUE, linestyle="", marker="o", label=_BEST),
        plt.Line2D([], [], color=_VERMILION, linestyle="", marker="x", label=_OTHERS),
        plt.Line2D([], [], color="black", linestyle=":", label="known: x2 = 0"),
        plt.Line2D(
            [], [], color=_GREEN, linestyle="", marker="D", fillstyle="none", label="answer (1, 0)"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    figure.suptitle(
        "Points whose x2 = 0 is known and x1 is not: where 100 chains of each method end, and how "
        "far from the answer"
    )
    return figure


def _plane(axes: Axes, generator: nn.Module, outputs: Tensor | None) -> None:
    """Samples of the generator, and on top the end points ``(n, 2)`` of chains."""
    z = torch.randn(_SAMPLES, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = generator(z)
    axes.scatter(samples[:, 0], samples[:, 1], s=3, color=_GREY, linewidths=0, rasterized=True)
    axes.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
    axes.plot(*ANSWER, "D", color=_GREEN, fillstyle="none", markersize=13, markeredgewidth=1.5)
    if outputs is not None:
        found = (squared_error(outputs) < _CLOSE).numpy()
        _ends(axes, outputs, found)
        outside = int((~(outputs[:_DOTS].abs() < _PLANE).all(-1)).sum())
        text = f"{found.mean():.0%} near" + (f", {outside} outside the frame" if outside else "")
        axes.text(0.03, 0.03, text, transform=axes.transAxes, bbox=_box(), fontsize=9)
    axes.set(xlim=(-_PLANE, _PLANE), ylim=(-_PLANE, _PLANE), aspect="equal", xlabel="x1")


def _histogram(axes: Axes, descended: Any, annealed: Any) -> None:
    for values, name, colour, line in (
        (descended, "gradient descent", _VERMILION, "--"),
        (annealed, "AIS-HMC", _BLUE, "-"),
    ):
        weights = np.full(len(values), 1.0 / len(values))
        clipped = np.clip(np.nan_to_num(values, nan=np.inf), _ERRORS[0], _ERRORS[-1])
        axes.hist(
            clipped,
            _ERRORS.tolist(),
            weights=weights,
            histtype="step",
            color=colour,
            linestyle=line,
            linewidth=1.6,
            label=f"{name}, {np.mean(values < _CLOSE):.0%} below {_CLOSE:g}",
        )
    axes.axvline(_CLOSE, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="mean squared error against (1, 0)", ylim=(0, 1.0))
    axes.set_yticks([0.0, 0.25, 0.5, 0.75])
    axes.legend(loc="upper left", fontsize=8)


# --- figure 3 -------------------------------------------------------------------------------------


def _loops(plt: Any, studies: Sequence[GeneratorResults], loops: Sequence[int]) -> Figure:
    """Figure 3: chains in the latent plane after some of the AIS loops."""
    figure, axes = _panels(plt, len(studies), len(loops))
    for row, study in zip(axes, studies, strict=True):
        trace = study.text_run.trace
        assert trace is not None
        half = _half_width(trace[list(loops), 0])
        for panel, loop in zip(row, loops, strict=True):
            shades = _surface(panel, study.generator, half)
            latents = trace[loop, 0]
            found = (errors(study.generator, latents) < _CLOSE).numpy()
            _ends(panel, latents, found)
            panel.text(0.03, 0.03, f"{found.mean():.0%}", transform=panel.transAxes, bbox=_box())
        row[0].set_ylabel(f"{study.title}\n\nlatent z2")
    for panel, loop in zip(axes[0], loops, strict=True):
        beta = float(studies[0].text_run.betas[loop - 1, 0])
        panel.set_title(f"after {loop:,} loops\nbeta = {beta:.2g}")
    for panel in axes[-1]:
        panel.set_xlabel("latent z1")
    figure.colorbar(
        shades,
        ax=axes.ravel().tolist(),
        label="loss E(z) = x2²",
        shrink=0.4,
        extend="both",
        aspect=30,
    )
    handles = [
        plt.Line2D([], [], color=_BLUE, linestyle="", marker="o", label=f"error < {_CLOSE:g}"),
        plt.Line2D([], [], color=_VERMILION, linestyle="", marker="x", label="elsewhere"),
        _answer_patch(plt),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(
        "AIS-HMC: 100 chains in the latent plane as the inverse temperature beta rises; in the "
        "corners the share near the answer"
    )
    return figure


# --- shared ---------------------------------------------------------------------------------------


def _panels(plt: Any, rows: int, columns: int) -> tuple[Figure, npt.NDArray[Any]]:
    size = (3.1 * columns + 0.8, 3.0 * rows + 1.0)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    return figure, axes


def _half_width(latents: Tensor) -> float:
    """Half the side of a square that contains nearly all of the latents ``(..., 2)``."""
    reach = float(np.quantile(latents.abs().amax(-1).numpy(), 0.99)) * 1.1
    return min(max(reach, _LEAST_WIDTH), _MOST_WIDTH)


def _surface(axes: Axes, generator: nn.Module, half: float) -> Any:
    """The loss in shades of grey, and in green where outputs are near the answer."""
    side = torch.linspace(-half, half, _POINTS)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad():
        x = generator(z)
    square = (_POINTS, _POINTS)
    loss = x[:, 1].square().reshape(square).T.numpy()
    error = squared_error(x).reshape(square).T.numpy()
    shades = axes.imshow(
        loss,
        norm="log",
        vmin=_LEAST_LOSS,
        vmax=_MOST_LOSS,
        cmap=_shades(),
        extent=(-half, half, -half, half),
        origin="lower",
    )
    axes.contourf(side, side, error, [0.0, _CLOSE], colors=[_GREEN], alpha=0.45)
    axes.set(xlim=(-half, half), ylim=(-half, half))
    return shades


def _shades() -> Any:
    """White to grey, so that what lies on top is visible."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("loss", ["white", "0.35"])


def _set_title(axes: Axes, study: GeneratorResults) -> None:
    axes.set_title(study.title, fontsize=12 if len(study.title) < 24 else 9)


def _ends(axes: Axes, points: Tensor, found: BoolArray) -> None:
    """The first chains of ``(n, 2)``: circles near the answer, crosses elsewhere."""
    shown, good = points[:_DOTS].numpy(), found[:_DOTS]
    others, best = shown[~good], shown[good]
    axes.scatter(
        others[:, 0], others[:, 1], s=24, color=_VERMILION, marker="x", linewidths=1.3, zorder=3
    )
    axes.scatter(
        best[:, 0], best[:, 1], s=22, color=_BLUE, edgecolors="white", linewidths=0.5, zorder=3
    )


def _style(good: bool) -> dict[str, Any]:
    return {"color": _BLUE if good else _VERMILION, "linestyle": "-" if good else "--"}


def _answer_patch(plt: Any) -> Any:
    label = f"latents whose output is near the answer (error < {_CLOSE:g})"
    return plt.Rectangle((0, 0), 1, 1, color=_GREEN, alpha=0.45, label=label)


def _box() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2.0}

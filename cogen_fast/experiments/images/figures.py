"""Figures of the image study: the curves of figure 4, errors against misfits, and panels.

The colours are those of Okabe and Ito, and whatever a colour shows, a marker shows too. Real images
and the generator's own have figures of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from cogen_fast.experiments.evaluate.nuts import NUTS
from cogen_fast.experiments.evaluate.pictures import draw as draw_panels
from cogen_fast.experiments.evaluate.tasks import Half, SuperResolve, Task
from cogen_fast.experiments.images.plan import (
    CURVES,
    DEFAULT,
    KINDS,
    SCALED,
    Effort,
    Scope,
)
from cogen_fast.experiments.images.results import (
    METRICS,
    PartResults,
    curve,
    errors,
    kinds_of,
    over_training,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "gd": "gradient descent, one start",
    "gd-multi": "gradient descent, best of many starts",
    "adam": "Adam, one start",
    "adam-multi": "Adam, best of many starts",
    "lbfgs-multi": "L-BFGS, best of many starts",
    "sir": "importance resampling",
    "paper": "AIS-HMC as in the paper",
    SCALED: "AIS-HMC, weight scaled to the size",
    "adaptive": "adaptive, sample of lowest energy",
    DEFAULT: "default (samples and fits)",
    NUTS: "NUTS from the best of many starts",
}
_STYLES = {
    "gd": ("#E69F00", "o"),
    "gd-multi": ("#D55E00", "s"),
    "adam": ("#56B4E9", "^"),
    "adam-multi": ("#0072B2", "v"),
    "lbfgs-multi": ("#C8B400", "p"),
    "sir": ("0.5", "x"),
    "paper": ("#009E73", "D"),
    SCALED: ("#8B4513", "h"),
    "adaptive": ("#CC79A7", "P"),
    DEFAULT: ("black", "*"),
    NUTS: ("#7F00FF", "<"),
}
_ROWS = 8
_FEW_DECADES = 300.0  # up to this ratio there is room for ticks between the powers of 10


def files(scope: Scope) -> tuple[str, ...]:
    """The files that `draw` and `panels` give for a study."""
    kinds = scope.kinds
    return (
        *(f"figure4_{kind}.png" for kind in kinds if len(scope.snapshots) > 1),
        *(f"misfit_{kind}.png" for kind in kinds),
        *(f"panels_{kind}_{task}.png" for kind in kinds for task in scope.tasks),
    )


def draw(plt: Any, results: Sequence[PartResults], effort: Effort) -> Iterator[tuple[str, Figure]]:
    """The names and figures of all `files` except the panels; the caller has to close them."""
    kinds = kinds_of(results)
    for kind in kinds if over_training(results) else ():
        yield f"figure4_{kind}.png", _curves(plt, results, kind, effort)
    for kind in kinds:
        yield f"misfit_{kind}.png", _misfits(plt, results, kind)


def panels(results: Sequence[PartResults]) -> Iterator[tuple[str, Image.Image]]:
    """A row for each of the first images: ground truth, observed, and each method's best chain."""
    for result in (each for each in results if each.is_main):
        numbers = [record["image"] for record in result.records[:_ROWS]]
        picture = draw_panels(result.part.data, result.study, result.out, numbers)
        yield f"panels_{result.kind}_{result.part.task}.png", picture


def _curves(plt: Any, results: Sequence[PartResults], kind: str, effort: Effort) -> Figure:
    points = curve(results, kind, effort.snapshot_images)
    shown = [number / 1_000 for number, _ in points]
    figure: Figure
    figure, axes = plt.subplots(1, len(METRICS), figsize=(12, 4.4), layout="constrained")
    for panel, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for method in CURVES:
            means, bars = zip(*(values[method][metric] for _, values in points), strict=True)
            colour, marker = _STYLES[method]
            panel.errorbar(
                shown, means, bars, color=colour, marker=marker, capsize=3, label=TITLES[method]
            )
        panel.set_xlabel("images shown to the generator (thousands)")
        panel.set_title(label)
        panel.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    title = _title(results[0].part.task).capitalize()
    figure.suptitle(
        f"{title} over the generator's training: {KINDS[kind]}\n"
        f"(whole images; means and standard errors, images: {effort.snapshot_images})"
    )
    return figure


def _misfits(plt: Any, results: Sequence[PartResults], kind: str) -> Figure:
    """Errors of what is hidden against errors of what is observed, for each run."""
    mains = [result for result in results if result.is_main and result.kind == kind]
    figure: Figure
    figure, axes = plt.subplots(1, len(mains), figsize=(13, 5.4), layout="constrained")
    for panel, result in zip(axes, mains, strict=True):
        for method in result.part.methods:
            _dots(panel, result, method)
        panel.set(xscale="log", yscale="log", title=_title(result.part.task))
        for axis in (panel.xaxis, panel.yaxis):
            low, high = axis.get_view_interval()
            subs = (1.0, 2.0, 5.0) if high < _FEW_DECADES * low else (1.0,)
            axis.set_major_locator(plt.LogLocator(subs=subs))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(plt.NullFormatter())
        panel.set_xlabel("error of what is observed (root mean square)")
        panel.grid(alpha=0.3, which="both", linewidth=0.5)
    axes[0].set_ylabel("error of what is hidden (root mean square)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(
        f"Errors of what is observed and of what is hidden: {KINDS[kind]}\n"
        "(a dot for each image and method, its chain of lowest energy; pixels in [-1, 1])"
    )
    return figure


def _title(task: Task) -> str:
    if isinstance(task, SuperResolve):
        return f"super-resolution by {task.factor}"
    return "inpainting of a half" if isinstance(task, Half) else "inpainting of a block"


def _dots(panel: Axes, result: PartResults, method: str) -> None:
    colour, marker = _STYLES[method]
    hidden = [v**0.5 for v in errors(result.records, method, "best", "hidden_mse")]
    panel.scatter(
        result.residuals[method], hidden, color=colour, marker=marker, s=36, label=TITLES[method]
    )

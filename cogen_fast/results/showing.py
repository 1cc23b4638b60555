"""How a result is shown: a grid, an animation, figures, and HTML in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cogen_fast.results import figures, grids
from cogen_fast.results.grids import LabelledPicture

if TYPE_CHECKING:
    from cogen_fast.results.result import Result

_PASTED = "Chains and estimate: observed pixels pasted in. Mean and std: of G(z), nothing pasted."
_TILES, _MOST_ROWS = 8, 8  # chains and observations that a notebook shows


def grid(result: Result, tiles: int, truth: Tensor | None) -> Image.Image:
    """The picture of `Result.grid`."""
    rows = [_tiles(result, b, tiles) for b in range(len(result.images))]
    if truth is not None:
        known = _checked_truth(result, truth)
        first = [LabelledPicture("truth", grids.to_pixels(each)) for each in known]
        rows = [[tile, *row] for tile, row in zip(first, rows, strict=True)]
    notices = [f"NOT SAMPLES. {line}" for line in result.failures()]
    return grids.draw_grid(rows, notices, [] if result.completed is None else [_PASTED])


def frames(result: Result, b: int) -> list[Image.Image]:
    """The frames of `Result.animate`, of observation ``b``."""
    assert result.frames is not None and result.frame_steps is not None
    drawn, seen = [], _observed_pixels(result, b)
    for f, step in enumerate(result.frame_steps.tolist()):
        label = f"beta {_beta_at(result, b, step):.3g}"
        tiles = [LabelledPicture(label, seen)]
        for number, image in enumerate(result.frames[f, b]):
            pixels = grids.to_pixels(image.numpy())
            tiles.append(LabelledPicture(f"particle {number}", pixels))
        drawn.append(grids.draw_grid([tiles]))
    return drawn


def trace(result: Result, b: int) -> Any:
    """The figure of `Result.plot_trace`, of observation ``b``."""
    betas, energies, deviations, acceptance, step_size = (
        values.reshape(len(values), len(result.images), -1)[:, b].numpy()
        for values in (
            result.betas,
            result.energy_history,
            result.energy_std,
            result.acceptance,
            result.step_size,
        )
    )
    given = result.settings["noise"].startswith("noise_std") and result.noise_std is None
    explained = result.measured[b].item() / 2.0 if given else None
    return figures.draw_trace(betas, energies, deviations, acceptance, step_size, explained)


def uncertainty(result: Result, b: int) -> Any:
    """The figure of `Result.plot_uncertainty`, of observation ``b``."""
    samples = result.images[b].double()
    grids.to_pixels(samples[0].numpy())
    low, high = samples.quantile(0.05, 0), samples.quantile(0.95, 0)
    maps = [
        ("mean", _shade(samples.mean(0)), "image"),
        ("5 % quantile", _shade(low), "image"),
        ("95 % quantile", _shade(high), "image"),
        ("standard deviation", samples.std(0, correction=0).mean(0).numpy(), "spread"),
        ("95 % - 5 % quantile", (high - low).mean(0).numpy(), "spread"),
    ]
    if result.groups > 1:
        means = samples.reshape(result.groups, -1, *samples.shape[1:]).mean(1)
        between = means.std(0, correction=0).mean(0)
        maps.append((f"between {result.groups} islands", between.numpy(), "spread"))
    return figures.draw_maps([maps[:3], maps[3:]])


def as_html(result: Result) -> str:
    """The picture with a caption, as Jupyter shows a result."""
    text = html.escape(result.overview())
    wrong = "".join(f"<li>{html.escape(line)}</li>" for line in result.diagnose())
    caption = f"<pre>{text}</pre>" + (f"<p>Wrong:</p><ul>{wrong}</ul>" if wrong else "")
    if not result.pictured:
        return caption
    rows = [_tiles(result, b, _TILES) for b in range(min(len(result.images), _MOST_ROWS))]
    source = grids.data_url(grids.draw_grid(rows))
    more = len(result.images) - len(rows)
    rest = f"<p>{more} more observations are not shown.</p>" if more else ""
    return (
        f'<figure><img src="{source}" alt="observed, chains, mean and '
        f'standard deviation"><figcaption>{rest}{caption}</figcaption></figure>'
    )


def _beta_at(result: Result, b: int, step: int) -> float:
    """The lowest inverse temperature of an observation's islands after ``step`` of them."""
    if step == 0:
        return 0.0
    columns = result.betas.reshape(len(result.betas), len(result.images), -1)[:, b]
    return float(columns[step - 1].nan_to_num(1.0).min())


def _checked_truth(result: Result, truth: Tensor) -> npt.NDArray[Any]:
    shape = (len(result.images), *result.images.shape[2:])
    given = torch.as_tensor(truth).detach().cpu()
    if given.shape == shape[1:] and shape[0] == 1:
        given = given[None]
    if given.shape != shape:
        raise ValueError(f"truth: expected shape {shape}, got {tuple(given.shape)}")
    return given.float().numpy()


def _tiles(result: Result, b: int, most: int) -> list[LabelledPicture]:
    shown = result.images if result.completed is None else result.completed
    order = result.energies[b].argsort()[:most].tolist()
    tiles = [LabelledPicture("observed", _observed_pixels(result, b))]
    for i in order:
        label = f"chain {i}, E {result.energies[b, i].item():.4g}"
        tiles.append(LabelledPicture(label, grids.to_pixels(shown[b, i].numpy())))
    return [*tiles, *_summary(result, b, estimate=result.fit_images is not None)]


def compact(result: Result, label: str) -> list[LabelledPicture]:
    """What was observed, with a label, the estimate, mean and standard deviation of the first."""
    return [
        LabelledPicture(label, _observed_pixels(result, 0)),
        *_summary(result, 0, estimate=True),
    ]


def _summary(result: Result, b: int, *, estimate: bool) -> list[LabelledPicture]:
    """The estimate, if asked for, the mean and the standard deviation."""
    tiles = []
    if estimate:
        pixels = grids.to_pixels(result.pasted(result.estimate)[b].numpy())
        tiles.append(LabelledPicture("estimate", pixels))
    spread = result.std()[b].mean(0).numpy()
    top = float(spread.max())
    tiles.append(LabelledPicture("mean", grids.to_pixels(result.mean()[b].numpy())))
    tiles.append(LabelledPicture(f"std, 0 to {top:.2g}", grids.heat(spread, top)))
    return tiles


def _observed_pixels(result: Result, b: int) -> grids.Pixels:
    """A measurement without what was not observed; black if it is no image."""
    measured = result.x_obs[b].numpy()
    if measured.ndim != 3 or measured.shape[0] not in (1, 3):
        return grids.to_pixels(np.zeros((1, *result.images.shape[-2:])))
    pixels = grids.to_pixels(measured)
    if result.observed is None:
        return pixels
    return grids.hide(pixels, result.observed[b].all(0).numpy())


def _shade(image: Tensor) -> npt.NDArray[Any]:
    """An image ``(C, H, W)`` in [-1, 1] as matplotlib shows one, in [0, 1]."""
    levels = ((image.clamp(-1.0, 1.0) + 1.0) / 2.0).numpy()
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)

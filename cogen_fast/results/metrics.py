"""The errors of images against the truth, and the coverage of credible intervals, from arrays.

Images ``(N, C, H, W)`` are compared with one truth ``(C, H, W)`` in a given range of values, to
which both are clipped first, as saved images are. ``hidden`` marks the part that counts: bool or 0
and 1, broadcastable to ``(C, H, W)``, 1 = hidden. Everything is computed and returned in float64.

Structural similarity is computed by pytorch-msssim (extra ``metrics``). The rules for small images
are this package's: `ssim` shrinks the window to the image, and `ms_ssim` takes fewer scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.support.arguments import check_choice, check_number, shown
from cogen_fast.support.extras import imported

DATA_RANGE = (-1.0, 1.0)
LEVELS = (0.5, 0.8, 0.9, 0.95)
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, from the finest on (Wang, Simoncelli and Bovik 2003)."""
_GAUSSIAN, _UNIFORM = 11, 7  # sides of the windows
_LEAST_SIDE = 3
_K = (0.01, 0.03)
_FLAT = 1e12  # a K1 so large that the luminance factor is 1
PATCHES = 4096
"""The number of windows whose structural similarity is computed at a time."""

Window = Literal["gaussian", "uniform"]
Range = tuple[float, float]


def mse(images: Any, truth: Any, *, hidden: Any = None, data_range: Range = DATA_RANGE) -> Tensor:
    """Mean squared error of each image, ``(N,)``, in squared units of the images' values."""
    x, y, _ = _pair(images, truth, data_range)
    squared = (x - y) ** 2
    if hidden is None:
        return squared.flatten(1).mean(1)
    return squared[:, _mask(hidden, y)].mean(1)


def psnr(images: Any, truth: Any, *, hidden: Any = None, data_range: Range = DATA_RANGE) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``(N,)``: ``10 log10(range^2 / MSE)``, +inf at MSE 0."""
    low, high = _checked_range(data_range)
    error = mse(images, truth, hidden=hidden, data_range=data_range)
    return 10.0 * torch.log10((high - low) ** 2 / error)


def ssim(
    images: Any,
    truth: Any,
    *,
    hidden: Any = None,
    data_range: Range = DATA_RANGE,
    window: Window = "gaussian",
) -> Tensor:
    """Mean structural similarity of each image over windows and channels, ``(N,)``.

    The definition is that of Wang et al. (2004). The ``window`` "gaussian" is 11 x 11 with a
    standard deviation of 1.5, the usual one; "uniform" is 7 x 7 with sample covariances, as in the
    paper authors' program (the defaults of scikit-image, there on 8-bit images). Smaller images
    take the largest odd window that fits.

    The mean is over all windows that lie within the image. With ``hidden`` it is over those whose
    centre is hidden in any channel, and NaN where there is none. Pixels nearer to the border than
    half a window have no window.

    Raises ValueError or TypeError naming the argument; ImportError without the extra ``metrics``.
    """
    x, y, span = _pair(images, truth, data_range)
    kernel, k = _window(check_choice("window", window, ("gaussian", "uniform")), y)
    if hidden is None:
        return _ssim(x, y.expand_as(x), span, kernel, k)
    margin = kernel.shape[-1] // 2
    height, width = y.shape[-2:]
    centres = _mask(hidden, y).any(0)[margin : height - margin, margin : width - margin]
    if bool(centres.all()):
        return _ssim(x, y.expand_as(x), span, kernel, k)
    return _ssim_at(x, y, span, kernel, k, centres)


def ms_ssim(images: Any, truth: Any, *, data_range: Range = DATA_RANGE) -> Tensor:
    """Multi-scale structural similarity of each image, ``(N,)`` (Wang et al. 2003).

    It is computed as by pytorch-msssim: windows are 11 x 11 and Gaussian, factors below 0 are set
    to 0, and channels are computed separately and averaged at the end. It is for whole images only,
    because coarse scales mix hidden and observed parts. pytorch-msssim needs sides of 161 pixels
    for its five scales. Here smaller images take the `scales` that hold a whole window, with
    weights scaled to sum to 1: four at 128 pixels, three at 64, two at 32. Such values can be
    compared only among images of one size.

    Raises ValueError or TypeError naming the argument; ImportError without the extra ``metrics``.
    """
    x, y, span = _pair(images, truth, data_range)
    kernel, _ = _window("gaussian", y)
    weights = SCALE_WEIGHTS[: scales(*y.shape[-2:])]
    total = sum(weights) if len(weights) < len(SCALE_WEIGHTS) else 1.0  # published sum: 1.0001
    count, channels = x.shape[:2]
    x, y = x.flatten(0, 1)[:, None], y.expand_as(x).flatten(0, 1)[:, None]
    product = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for number, weight in enumerate(weights):
        last = number == len(weights) - 1
        value = _ssim(x, y, span, kernel[:1], _K if last else (_FLAT, _K[1]))
        product = product * value.clamp(min=0.0) ** (weight / total)
        x, y = _halved(x), _halved(y)
    return product.reshape(count, channels).mean(1)


def scales(height: int, width: int) -> int:
    """The number of scales of `ms_ssim`, from 1 to 5: those whose shorter side has 11 pixels.

    Each further scale halves the sides, rounded up.
    """
    sides = [-(-min(height, width) // 2**halvings) for halvings in range(len(SCALE_WEIGHTS))]
    return max(1, sum(1 for side in sides if side >= _GAUSSIAN))


def compare(
    images: Any, truth: Any, hidden: Any = None, *, data_range: Range = DATA_RANGE
) -> dict[str, Tensor]:
    """All metrics of each image, ``(N,)`` each.

    The keys are "mse", "psnr", "ssim" and "ms_ssim" for whole images and, where ``hidden`` is
    given, "hidden_mse", "hidden_psnr" and "hidden_ssim" for that part.
    """
    whole: dict[str, Any] = {"data_range": data_range}
    found = {
        "mse": mse(images, truth, **whole),
        "psnr": psnr(images, truth, **whole),
        "ssim": ssim(images, truth, **whole),
        "ms_ssim": ms_ssim(images, truth, **whole),
    }
    if hidden is not None:
        part = whole | {"hidden": hidden}
        found |= {
            "hidden_mse": mse(images, truth, **part),
            "hidden_psnr": psnr(images, truth, **part),
            "hidden_ssim": ssim(images, truth, **part),
        }
    return found


def summarise(
    images: Any,
    truth: Any,
    energies: Any,
    hidden: Any = None,
    *,
    weights: Any = None,
    data_range: Range = DATA_RANGE,
) -> dict[str, dict[str, list[float]]]:
    """`compare` for the chains of one observation, and for single images chosen from them.

    The keys are "chains", every chain; "best", the chain of lowest energy, whose choice needs no
    truth; "oracle", the chain of lowest whole-image MSE, whose choice needs the truth (the paper's
    LSUN figures are of this kind); and "mean", the mean image, weighted by ``weights`` ``(N,)``
    where these are given. Each metric is a list of N numbers for "chains", and of one for the
    others. ``energies`` is ``(N,)``.
    """
    x = _images("images", images)
    energy = torch.as_tensor(energies)
    if energy.shape != x.shape[:1]:
        raise ValueError(f"energies: expected shape {(len(x),)}, got {tuple(energy.shape)}")
    shares = _shares(weights, len(x))
    clipped = x.double().clamp(*_checked_range(data_range))
    mean = (shares.to(x.device)[:, None, None, None] * clipped).sum(0, keepdim=True)
    found = compare(torch.cat([clipped, mean]), truth, hidden, data_range=data_range)
    rows = {name: values.tolist() for name, values in found.items()}
    best = int(energy.nan_to_num(torch.inf).argmin())
    oracle = int(found["mse"][:-1].argmin())
    return {
        "chains": {name: row[:-1] for name, row in rows.items()},
        "best": {name: [row[best]] for name, row in rows.items()},
        "oracle": {name: [row[oracle]] for name, row in rows.items()},
        "mean": {name: [row[-1]] for name, row in rows.items()},
    }


def coverage(
    images: Any,
    truth: Any,
    hidden: Any,
    *,
    levels: Sequence[float] = LEVELS,
    weights: Any = None,
    data_range: Range = DATA_RANGE,
) -> Tensor:
    """The share of hidden entries whose truth lies in their central credible interval, ``(L,)``.

    There is one share for each of the L ``levels``. The ends of an interval are weighted quantiles
    of the N samples: the i-th sample in order has the probability
    ``(n (S_i - w_i / 2) + 1/2) / (n + 1)``, with ``S_i`` the cumulative sum of the weights ``w``
    and n their effective sample size; between samples the quantile is linear. For equal weights the
    probability is ``i / (N + 1)``, with which the intervals of exchangeable samples cover a further
    one as often as the level says, for any N. For levels above ``(n - 1) / (n + 1)`` the samples
    are too few, and the share is NaN.

    The ends belong to the interval, so that an entry which the range clips (a black pixel, for
    instance) counts as covered where all samples are clipped too. The entries of an image depend on
    one another, so coverage should be averaged over many images.

    Raises ValueError or TypeError naming the argument.
    """
    x, y, _ = _pair(images, truth, data_range)
    chosen = [check_number("levels", level, above=0.0, below=1.0) for level in levels]
    shares = _shares(weights, len(x)).to(x.device)
    mask = _mask(hidden, y)
    values, order = x[:, mask][shares > 0.0].sort(0)
    w = shares[shares > 0.0][order]
    size = 1.0 / float((shares**2).sum())
    places = (size * (w.cumsum(0) - w / 2.0) + 0.5) / (size + 1.0)
    found = []
    for level in chosen:
        if level > (size - 1.0) / (size + 1.0) + 1e-12:
            found.append(torch.nan)
            continue
        ends = [_quantile(values, places, p) for p in ((1.0 - level) / 2.0, (1.0 + level) / 2.0)]
        inside = (ends[0] <= y[mask]) & (y[mask] <= ends[1])
        found.append(float(inside.double().mean()))
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def _quantile(values: Tensor, places: Tensor, p: float) -> Tensor:
    """The quantile ``(M,)`` at ``p``: ordered ``values`` ``(N, M)`` are those at ``places``."""
    above = (places < p - 1e-12).sum(0, keepdim=True).clamp(max=len(values) - 1)
    below = (above - 1).clamp(min=0)
    low, high = places.gather(0, below), places.gather(0, above)
    part = ((p - low) / (high - low).clamp(min=1e-300)).clamp(0.0, 1.0)
    left, right = values.gather(0, below), values.gather(0, above)
    return (left + part * (right - left)).squeeze(0)


def _images(name: str, value: Any) -> Tensor:
    tensor = torch.as_tensor(value).detach()
    if tensor.ndim != 4 or tensor.numel() == 0:
        raise ValueError(f"{name}: expected shape (N, C, H, W), got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected floating-point values, got {tensor.dtype}")
    return tensor


def _truth(value: Any, images: Any) -> Tensor:
    of = _images("images", images)
    tensor = torch.as_tensor(value).detach().to(of.device)
    if tensor.shape != of.shape[1:]:
        raise ValueError(f"truth: expected shape {tuple(of.shape[1:])}, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise TypeError(f"truth: expected floating-point values, got {tensor.dtype}")
    return tensor


def _checked_range(data_range: Any) -> Range:
    try:
        low, high = (float(end) for end in data_range)
    except (TypeError, ValueError):
        raise ValueError(f"data_range: expected (low, high), got {shown(data_range)}") from None
    if not -torch.inf < low < high < torch.inf:
        raise ValueError(f"data_range: expected finite low < high, got {(low, high)}")
    return low, high


def _pair(images: Any, truth: Any, data_range: Range) -> tuple[Tensor, Tensor, float]:
    """Images and truth in float64, clipped and shifted to begin at 0, and the range's length.

    Structural similarity depends on where 0 is, because it compares means: 0 must be black, as in
    the images for which it was defined.
    """
    low, high = _checked_range(data_range)
    x, y = (
        t.double().clamp(low, high) - low
        for t in (_images("images", images), _truth(truth, images))
    )
    return x, y, high - low


def _mask(hidden: Any, like: Tensor) -> Tensor:
    """``hidden`` as bool ``(C, H, W)``."""
    mask = torch.as_tensor(hidden).to(like.device)
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("hidden: expected only 0 and 1 (hidden), got other values")
    try:
        full = (mask != 0).broadcast_to(like.shape)
    except RuntimeError:
        raise ValueError(
            f"hidden: expected shape broadcastable to {tuple(like.shape)}, got {tuple(mask.shape)}"
        ) from None
    if not bool(full.any()):
        raise ValueError("hidden: expected at least one hidden entry, got none")
    return full


def _shares(weights: Any, count: int) -> Tensor:
    """Weights ``(N,)`` in float64 that sum to 1; they are equal where none are given."""
    if weights is None:
        return torch.full((count,), 1.0 / count, dtype=torch.float64, device="cpu")
    given = torch.as_tensor(weights).detach().double()
    if given.shape != (count,):
        raise ValueError(f"weights: expected shape {(count,)}, got {tuple(given.shape)}")
    if not bool((given >= 0.0).all()) or not 0.0 < float(given.sum()) < torch.inf:
        raise ValueError("weights: expected finite values from 0 on, not all 0")
    return given / given.sum()


def _window(kind: str, truth: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """A one-dimensional window ``(C, 1, 1, side)``, and the constants K1 and K2."""
    channels, height, width = truth.shape
    least = min(height, width)
    if least < _LEAST_SIDE:
        raise ValueError(
            f"images: expected sides of at least {_LEAST_SIDE}, got {height} x {width}"
        )
    most = _GAUSSIAN if kind == "gaussian" else _UNIFORM
    side = min(most, least - 1 + least % 2)
    if kind == "gaussian":
        away = torch.arange(side, dtype=torch.float64, device="cpu") - side // 2
        row, k = torch.exp(-(away**2) / (2.0 * 1.5**2)), _K
    else:
        # Sample covariances are larger by n / (n - 1); a K2^2 smaller by that has the same effect.
        row, n = torch.ones(side, dtype=torch.float64, device="cpu"), side**2
        k = (_K[0], _K[1] * ((n - 1) / n) ** 0.5)
    return (row / row.sum()).repeat(channels, 1, 1, 1), k


def _ssim(x: Tensor, y: Tensor, span: float, kernel: Tensor, k: tuple[float, float]) -> Tensor:
    """The mean SSIM of pairs ``(n, C, H, W)`` by pytorch-msssim, ``(n,)``."""
    value: Tensor = msssim().ssim(x, y, data_range=span, size_average=False, win=kernel, K=k)
    return value


def _ssim_at(
    x: Tensor, y: Tensor, span: float, kernel: Tensor, k: tuple[float, float], centres: Tensor
) -> Tensor:
    """The mean SSIM of the windows at ``centres`` ``(H - side + 1, W - side + 1)``, ``(N,)``."""
    side = kernel.shape[-1]
    rows, columns = centres.nonzero(as_tuple=True)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    parts = (torch.split(each, PATCHES) for each in (rows, columns))
    for r, c in zip(*parts, strict=True):
        for number, image in enumerate(x):
            patches, true_patches = (
                t.unfold(1, side, 1).unfold(2, side, 1)[:, r, c].transpose(0, 1) for t in (image, y)
            )
            total[number] += _ssim(patches, true_patches, span, kernel, k).sum()
    return total / len(rows)


def _halved(images: Tensor) -> Tensor:
    """Images of half the size, as by pytorch-msssim: odd sides are padded with 0."""
    return F.avg_pool2d(images, 2, padding=[side % 2 for side in images.shape[2:]])


def msssim() -> Any:
    """The module pytorch_msssim; raises ImportError with the command that installs it."""
    return imported("pytorch_msssim", what="ssim", package="pytorch-msssim", extra="metrics")

"""Metrics of images: against closed forms, the formulas written out, and known quantiles."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cogen_fast.results import metrics

pytest.importorskip("pytorch_msssim")
pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64
Array = npt.NDArray[np.float64]


def pictures(count: int, *shape: int, seed: int = 0) -> Tensor:
    """Smooth pictures in [-1, 1], with some noise."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 5, 5, generator=random, dtype=F64)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic") * 2.0 - 1.0
    noise = 0.05 * torch.randn(count, *shape, generator=random, dtype=F64)
    return (smooth + noise).clamp(-1.0, 1.0)


# --- errors ---------------------------------------------------------------------------------------


def test_squared_errors_are_those_of_known_differences() -> None:
    truth = torch.zeros(2, 3, 4, dtype=F64)
    images = torch.stack([truth, truth + 0.5, truth - 0.25])
    torch.testing.assert_close(
        metrics.mse(images, truth), torch.tensor([0.0, 0.25, 0.0625], dtype=F64)
    )
    expected = torch.tensor([math.inf, 10 * math.log10(16.0), 10 * math.log10(64.0)], dtype=F64)
    torch.testing.assert_close(metrics.psnr(images, truth), expected)
    # In the range [0, 255] the same error has the same ratio to the range.
    levels = metrics.psnr((images + 1) * 127.5, (truth + 1) * 127.5, data_range=(0, 255))
    torch.testing.assert_close(levels, expected)


def test_only_hidden_entries_count() -> None:
    truth, images = torch.zeros(1, 4, 4), torch.zeros(1, 1, 4, 4)
    images[..., 1, 2], images[..., 3, 3] = 0.5, 1.0
    hidden = torch.zeros(4, 4)
    hidden[:2] = 1
    assert metrics.mse(images, truth, hidden=hidden).item() == pytest.approx(0.25 / 8)
    assert metrics.psnr(images, truth, hidden=hidden.bool()).item() == pytest.approx(
        10 * math.log10(4 * 8 / 0.25)
    )
    by_channel = torch.zeros(2, 4, 4)
    by_channel[1, 1, 2] = 1
    both = torch.cat([images, torch.zeros_like(images)], 1)
    assert metrics.mse(both, torch.zeros(2, 4, 4), hidden=by_channel).item() == 0.0


def test_values_beyond_the_range_count_as_its_ends() -> None:
    truth = torch.full((1, 16, 16), 1.0)
    over, at = torch.full((1, 1, 16, 16), 1.7), torch.full((1, 1, 16, 16), 1.0)
    assert metrics.mse(over, truth).item() == 0.0
    for metric in (metrics.ssim, metrics.ms_ssim):
        torch.testing.assert_close(metric(over, truth), metric(at, truth), rtol=0, atol=0)


def test_numpy_is_taken_too() -> None:
    truth, images = pictures(1, 1, 16, 16)[0], pictures(2, 1, 16, 16, seed=1)
    found = metrics.ssim(images.numpy(), truth.numpy())
    torch.testing.assert_close(found, metrics.ssim(images, truth))
    single = metrics.ssim(images.float(), truth.float())
    assert single.dtype == F64
    torch.testing.assert_close(single, found, rtol=1e-5, atol=1e-5)


# --- structural similarity ------------------------------------------------------------------------


def by_formula(x: Array, y: Array, weights: Array, span: float, bessel: float) -> float:
    """Equation 13 of Wang et al. 2004 on one window; values counted from the range's lower end."""
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx = bessel * (weights * (x - mx) ** 2).sum()
    vy = bessel * (weights * (y - my) ** 2).sum()
    cov = bessel * (weights * (x - mx) * (y - my)).sum()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return float((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


def window_of(kind: str, side: int) -> tuple[Array, float]:
    if kind == "uniform":
        return np.full((side, side), 1.0 / side**2), side**2 / (side**2 - 1)
    away = np.arange(side) - side // 2
    gauss = np.exp(-(away[:, None] ** 2 + away**2) / (2 * 1.5**2))
    return gauss / gauss.sum(), 1.0


def ssim_map(x: Array, y: Array, kind: str, side: int, span: float) -> Array:
    weights, bessel = window_of(kind, side)
    height, width = (n - side + 1 for n in x.shape)
    return np.array(
        [
            [
                by_formula(
                    x[r : r + side, c : c + side],
                    y[r : r + side, c : c + side],
                    weights,
                    span,
                    bessel,
                )
                for c in range(width)
            ]
            for r in range(height)
        ]
    )


@pytest.mark.parametrize(("kind", "side"), [("gaussian", 11), ("uniform", 7)])
@pytest.mark.parametrize("span", [2.0, 255.0], ids=["unit", "levels"])
def test_similarity_is_the_formula(kind: Any, side: int, span: float) -> None:
    truth, images = pictures(1, 2, 18, 15)[0], pictures(3, 2, 18, 15, seed=1)
    images[1] = 0.7 * truth + 0.3 * images[1]
    scale, low = span / 2.0, -1.0 if span == 2.0 else 0.0
    x, y = ((t + 1.0) * scale for t in (images, truth))
    expected = [
        np.mean([ssim_map(x[i, c].numpy(), y[c].numpy(), kind, side, span) for c in (0, 1)])
        for i in range(3)
    ]
    found = metrics.ssim(x + low, y + low, data_range=(low, low + span), window=kind)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "side"), [("gaussian", 11), ("uniform", 7)])
def test_hidden_similarity_is_the_mean_of_the_map_there(kind: Any, side: int) -> None:
    truth, images = pictures(1, 2, 18, 15)[0], pictures(2, 2, 18, 15, seed=1)
    hidden = torch.zeros(2, 18, 15)
    hidden[0, :, 9:] = 1  # reaches the border, where no window has its centre
    hidden[1, 3, 7] = 1
    margin = side // 2
    inner = hidden.amax(0)[margin:-margin, margin:-margin].bool().numpy()
    x, y = (images + 1.0).numpy(), (truth + 1.0).numpy()
    expected = [
        np.mean([ssim_map(x[i, c], y[c], kind, side, 2.0)[inner] for c in (0, 1)]) for i in (0, 1)
    ]
    found = metrics.ssim(images, truth, hidden=hidden, window=kind)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_hidden_similarity_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, images = pictures(1, 3, 20, 20)[0], pictures(2, 3, 20, 20, seed=1)
    everywhere = metrics.ssim(images, truth, hidden=torch.ones(20, 20))
    torch.testing.assert_close(everywhere, metrics.ssim(images, truth), rtol=1e-10, atol=1e-12)
    even = torch.zeros(20, 20)
    even[:, ::2] = 1
    monkeypatch.setattr(metrics, "PATCHES", 7)
    halves = [metrics.ssim(images, truth, hidden=part) for part in (even, 1 - even)]
    torch.testing.assert_close(sum(halves) / 2, everywhere, rtol=1e-10, atol=1e-12)


def test_without_a_window_at_hidden_pixels_there_is_no_number() -> None:
    hidden = torch.zeros(18, 18)
    hidden[:, :3] = 1
    images = pictures(2, 1, 18, 18)
    assert metrics.ssim(images, images[0], hidden=hidden).isnan().all()


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128, 176])
def test_an_image_is_most_like_itself(side: int) -> None:
    truth = pictures(1, 1, side, side)[0]
    noisier = torch.stack(
        [truth + a * pictures(1, 1, side, side, seed=5)[0] for a in (0.0, 0.1, 0.5)]
    )
    for metric in (metrics.ssim, metrics.ms_ssim):
        values = metric(noisier, truth)
        assert values[0].item() == pytest.approx(1.0, abs=1e-12)
        assert 1.0 > values[1] > values[2]


@pytest.mark.parametrize("side", [4, 5, 9, 10])
def test_small_images_take_the_largest_odd_window(side: int) -> None:
    truth, images = pictures(1, 1, side, 12)[0], pictures(1, 1, side, 12, seed=1)
    odd = side if side % 2 else side - 1
    x, y = (images[0, 0] + 1).numpy(), (truth[0] + 1).numpy()
    expected = ssim_map(x, y, "gaussian", odd, 2.0).mean()
    assert metrics.ssim(images, truth).item() == pytest.approx(expected, rel=1e-9)
    assert metrics.ms_ssim(images, truth).item() == pytest.approx(max(expected, 0.0), rel=1e-9)


# --- several scales -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(161, 176), (177, 165)])
def test_five_scales_are_the_library_s(shape: tuple[int, int]) -> None:
    import pytorch_msssim

    truth, images = pictures(1, 3, *shape)[0], pictures(2, 3, *shape, seed=1)
    images[0] = 0.9 * truth + 0.1 * images[0]
    # The window of pytorch_msssim is rounded to float32, so it gets this one.
    away = torch.arange(11, dtype=F64) - 5
    window = torch.softmax(-(away**2) / (2 * 1.5**2), 0).repeat(3, 1, 1, 1)
    expected = pytorch_msssim.ms_ssim(
        images + 1.0, (truth + 1.0).expand_as(images), 2.0, size_average=False, win=window
    )
    torch.testing.assert_close(metrics.ms_ssim(images, truth), expected)


def test_scales_are_those_that_hold_a_window() -> None:
    found = {
        side: metrics.scales(side, side) for side in (8, 11, 16, 20, 21, 32, 64, 128, 160, 161)
    }
    assert found == {8: 1, 11: 1, 16: 1, 20: 1, 21: 2, 32: 2, 64: 3, 128: 4, 160: 4, 161: 5}
    assert metrics.scales(500, 64) == metrics.scales(64, 500) == 3


def test_fewer_scales_are_the_formula_with_weights_that_sum_to_one() -> None:
    """Two scales at 32 pixels: contrast and structure of the finer one, all of the coarser one."""
    truth, image = pictures(1, 1, 32, 32)[0], pictures(1, 1, 32, 32, seed=1)
    image = 0.6 * truth + 0.4 * image
    weights, _ = window_of("gaussian", 11)
    x, y = (image[0, 0] + 1).numpy(), (truth[0] + 1).numpy()

    def structure(a: Array, b: Array) -> float:
        ma, mb = (weights * a).sum(), (weights * b).sum()
        cov = (weights * (a - ma) * (b - mb)).sum()
        va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
        return float((2 * cov + 0.06**2) / (va + vb + 0.06**2))

    fine = np.mean(
        [
            structure(x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11])
            for r in range(22)
            for c in range(22)
        ]
    )
    coarse_x, coarse_y = (a.reshape(16, 2, 16, 2).mean((1, 3)) for a in (x, y))
    coarse = ssim_map(coarse_x, coarse_y, "gaussian", 11, 2.0).mean()
    first, second = 0.0448 / (0.0448 + 0.2856), 0.2856 / (0.0448 + 0.2856)
    expected = fine**first * coarse**second
    assert metrics.ms_ssim(image, truth).item() == pytest.approx(expected, rel=1e-9)


# --- chains and what is taken from them -----------------------------------------------------------


def test_compare_has_every_metric() -> None:
    truth, images = pictures(1, 1, 32, 32)[0], pictures(3, 1, 32, 32, seed=1)
    hidden = torch.zeros(32, 32)
    hidden[8:20, 8:20] = 1
    found = metrics.compare(images, truth, hidden)
    assert list(found) == [
        "mse", "psnr", "ssim", "ms_ssim", "hidden_mse", "hidden_psnr", "hidden_ssim",
    ]  # fmt: skip
    assert all(values.shape == (3,) for values in found.values())
    torch.testing.assert_close(found["hidden_ssim"], metrics.ssim(images, truth, hidden=hidden))
    torch.testing.assert_close(found["ms_ssim"], metrics.ms_ssim(images, truth))
    assert list(metrics.compare(images, truth)) == list(found)[:4]


def test_the_best_needs_no_truth_and_the_oracle_does() -> None:
    truth, others = pictures(1, 1, 32, 32)[0], pictures(3, 1, 32, 32, seed=1)
    images = torch.stack(
        [truth + 0.3 * (o - truth) * k for k, o in zip((3, 1, 2), others, strict=True)]
    )
    hidden = torch.zeros(32, 32)
    hidden[8:20, 8:20] = 1
    energies = torch.tensor([math.nan, 3.0, 1.0])
    weights = torch.tensor([1.0, 5.0, 2.0])
    found = metrics.summarise(images, truth, energies, hidden, weights=weights)
    each = metrics.compare(images, truth, hidden)
    mean = (images * (weights / 8.0)[:, None, None, None]).sum(0, keepdim=True)
    of_mean = metrics.compare(mean, truth, hidden)
    for name, values in each.items():
        assert found["chains"][name] == pytest.approx(values.tolist())
        assert found["best"][name] == pytest.approx([values[2].item()])
        assert found["oracle"][name] == pytest.approx([values[1].item()])
        assert found["mean"][name] == pytest.approx([of_mean[name].item()])
    plain = metrics.summarise(images, truth, energies, hidden)
    assert plain["mean"]["mse"] == pytest.approx([metrics.mse(images.mean(0)[None], truth).item()])


# --- coverage -------------------------------------------------------------------------------------

LEVELS = (0.5, 0.8, 0.9, 0.95)
WIDE = (-1e3, 1e3)  # so wide that nothing is clipped


def coverage(*given: Any, **options: Any) -> Tensor:
    return metrics.coverage(*given, **{"data_range": WIDE} | options)


def test_what_is_as_black_as_the_samples_is_covered() -> None:
    truth, images = torch.full((1, 1, 3), -1.0), torch.full((19, 1, 1, 3), -1.0)
    images[..., 0] -= torch.linspace(0.001, 0.002, 19)[:, None, None]
    images[..., 1] += torch.linspace(0.001, 0.002, 19)[:, None, None]
    assert metrics.coverage(images, truth, torch.ones(3), levels=[0.5]).item() == 2 / 3
    assert coverage(images, truth, torch.ones(3), levels=[0.5]).item() == 1 / 3


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.slow
@pytest.mark.parametrize("chains", [39, 199])
def test_intervals_of_exchangeable_samples_cover_as_often_as_they_say(chains: int) -> None:
    """Intervals end at quantiles ``i / (N + 1)``, so the coverage is the level for any N."""
    images, truth = normal(chains, 1, 200, 200, seed=1), normal(1, 200, 200, seed=2)
    found = coverage(images, truth, torch.ones(200, 200), levels=LEVELS)
    for share, level in zip(found.tolist(), LEVELS, strict=True):
        assert abs(share - level) < 4.0 * math.sqrt(level * (1 - level) / 40_000)


def test_ends_are_known_quantiles() -> None:
    """Of 19 samples the 90 % interval goes from the smallest to the largest, the 50 % one from the
    fifth to the fifth but last."""
    images = torch.arange(1.0, 20.0)[torch.randperm(19, generator=torch.Generator().manual_seed(1))]
    images = images[:, None, None, None].expand(19, 1, 1, 8)
    truth = torch.tensor([0.99, 1.0, 4.99, 5.0, 15.0, 15.01, 19.0, 19.01])[None, None]
    found = coverage(images, truth, torch.ones(8), levels=[0.5, 0.9])
    assert found.tolist() == [2 / 8, 6 / 8]
    # For a level between those of the samples, an end lies half-way between two of them.
    between = torch.tensor([4.49, 4.5, 15.5, 15.51])[None, None]
    found = coverage(images[..., :4], between, torch.ones(4), levels=[0.55])
    assert found.tolist() == [2 / 4]


def test_only_hidden_entries_are_covered() -> None:
    images, truth = normal(19, 1, 2, 3, seed=1), torch.zeros(1, 2, 3, dtype=F64)
    truth[0, 0] = 100.0
    hidden = torch.zeros(1, 2, 3)
    hidden[0, 1] = 1
    assert coverage(images, truth, hidden, levels=[0.9]).item() == 1.0
    assert coverage(images, truth, 1 - hidden, levels=[0.9]).item() == 0.0


def test_levels_beyond_the_samples_have_no_coverage() -> None:
    images, truth = normal(9, 1, 4, 4, seed=1), normal(1, 4, 4, seed=2)
    found = coverage(images, truth, torch.ones(4, 4), levels=[0.5, 0.8, 0.81])
    assert found.isfinite().tolist() == [True, True, False]
    one = coverage(images[:1], truth, torch.ones(4, 4), levels=[0.5])
    assert one.isnan().all()


@pytest.mark.slow
def test_weights_turn_samples_of_one_density_into_another_s() -> None:
    """Two kinds of chains, half of each: N(0, 1) and N(0, 25); the truth is of the first one with a
    probability of 0.9."""
    chains, entries, share = 1000, 10_000, 0.9
    wide = torch.arange(chains) % 2 == 1
    spread = torch.where(wide, 5.0, 1.0)
    images = normal(chains, 1, 100, 100, seed=1) * spread[:, None, None, None]
    random = torch.Generator().manual_seed(2)
    kinds = torch.rand(1, 100, 100, generator=random) > share
    truth = normal(1, 100, 100, seed=3) * torch.where(kinds, 5.0, 1.0)
    weights = torch.where(wide, 1.0 - share, share)
    hidden = torch.ones(100, 100)
    found = coverage(images, truth, hidden, levels=LEVELS, weights=weights)
    # With about 600 effective samples the ends of an interval have errors. These differ from entry
    # to entry, so that over 10,000 entries they average out, except for a bias of order 1 / 600.
    # The bound adds this to four standard errors of counting the entries.
    for value, level in zip(found.tolist(), LEVELS, strict=True):
        assert abs(value - level) < 4.0 * math.sqrt(level * (1 - level) / entries) + 1 / 600
    plain = coverage(images, truth, hidden, levels=LEVELS)
    assert plain[0] > 0.5 + 0.1  # without weights the intervals are far too wide


def test_equal_weights_are_none_and_zero_weights_are_absent() -> None:
    images, truth = normal(40, 1, 6, 6, seed=1), normal(1, 6, 6, seed=2)
    hidden = torch.ones(6, 6)
    plain = coverage(images, truth, hidden, levels=LEVELS[:3])
    equal = coverage(images, truth, hidden, levels=LEVELS[:3], weights=[0.3] * 40)
    torch.testing.assert_close(plain, equal)
    some = [2.0] * 25 + [0.0] * 15
    found = coverage(images, truth, hidden, levels=LEVELS[:3], weights=some)
    torch.testing.assert_close(found, coverage(images[:25], truth, hidden, levels=LEVELS[:3]))


# --- what they refuse -----------------------------------------------------------------------------

IMAGES, TRUTH, HIDDEN = pictures(2, 1, 16, 16), pictures(1, 1, 16, 16)[0], torch.ones(16, 16)
NARROW = IMAGES[..., :2]
ANY: Any = 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.mse(TRUTH, TRUTH), ValueError, r"images: expected shape \(N, C, H, W\)"),
        (lambda: metrics.mse(IMAGES, TRUTH[0]), ValueError, r"truth: expected shape \(1, 16, 16"),
        (lambda: metrics.mse(IMAGES.byte(), TRUTH), TypeError, "images: expected floating-point"),
        (lambda: metrics.mse(IMAGES, TRUTH.byte()), TypeError, "truth: expected floating-point"),
        (lambda: metrics.mse(IMAGES, TRUTH, data_range=(1, 1)), ValueError, "data_range: "),
        (lambda: metrics.psnr(IMAGES, TRUTH, data_range=(1, 1)), ValueError, "data_range: "),
        (lambda: metrics.ssim(IMAGES, TRUTH, data_range=ANY), ValueError, "data_range: "),
        (lambda: metrics.ssim(IMAGES, TRUTH, window=ANY), ValueError, "window: expected one of"),
        (lambda: metrics.ssim(NARROW, NARROW[0]), ValueError, "images: expected sides of at least"),
        (lambda: metrics.psnr(IMAGES, TRUTH, hidden=0 * HIDDEN), ValueError, "hidden: .* got none"),
        (lambda: metrics.mse(IMAGES, TRUTH, hidden=2 * HIDDEN), ValueError, "hidden: expected on"),
        (lambda: metrics.mse(IMAGES, TRUTH, hidden=HIDDEN[:3]), ValueError, "hidden: expected sha"),
        (lambda: metrics.summarise(IMAGES, TRUTH, [1.0]), ValueError, "energies: expected shape"),
        (lambda: covered(levels=[1.0]), ValueError, "levels: expected"),
        (lambda: covered(weights=[1]), ValueError, "weights: expected shape"),
        (lambda: covered(weights=[0, 0]), ValueError, "weights: expected finite"),
        (lambda: covered(weights=[2, -1]), ValueError, "weights: expected finite"),
        (lambda: covered(weights=[1, math.nan]), ValueError, "weights: expected finite"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message):
        call()


def covered(**options: Any) -> Tensor:
    return metrics.coverage(IMAGES, TRUTH, HIDDEN, **options)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytorch_msssim", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    with pytest.raises(ImportError, match=r"pip install 'cogen-fast\[metrics\]'"):
        metrics.ssim(IMAGES, TRUTH)
    assert metrics.mse(IMAGES, TRUTH).shape == (2,)

"""The sliced Wasserstein distance of image sets: its parts against direct sums and exact values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.training import swd as module
from cogen_fast.training.swd import (
    PyramidDescriptors,
    descriptors,
    laplacian_pyramid,
    sliced_wasserstein,
    swd,
)

pytestmark = pytest.mark.usefixtures("one_thread")

BINOMIAL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), **options)


def noise(count: int, channels: int, side: int, seed: int) -> Tensor:
    """White noise that almost never leaves [-1, 1]."""
    return (0.15 * normal(count, channels, side, side, seed=seed)).clamp(-1.0, 1.0)


def stripes(count: int, seed: int, channels: int = 1) -> Tensor:
    """Hard-edged stripes of random direction, width and contrast, 32 x 32."""
    draw = torch.rand(count, channels, 4, 1, 1, generator=seeded(seed))
    angle, phase = (2.0 * math.pi * draw[:, :, i] for i in (0, 1))
    frequency, contrast = 0.3 + 0.7 * draw[:, :, 2], 0.2 + 0.6 * draw[:, :, 3]
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    return contrast * (frequency * (x * angle.cos() + y * angle.sin()) + phase).sin().sign()


def blurred(images: Tensor, times: int) -> Tensor:
    """Grey images after the binomial filter."""
    kernel = torch.from_numpy(BINOMIAL).float()[None, None]
    for _ in range(times):
        images = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel)
    return images


def unit_rows(count: int, dimension: int, seed: int = 0, **options: Any) -> Tensor:
    return F.normalize(normal(count, dimension, seed=seed, **options))


def direct_blur(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The 5 x 5 sum at every pixel, indices beyond the border mirrored one by one."""
    side = len(image)

    def inside(i: int) -> int:
        i = abs(i)
        return min(i, 2 * (side - 1) - i)

    blurred = np.zeros_like(image)
    for y, x, dy, dx in np.ndindex(side, side, 5, 5):
        blurred[y, x] += BINOMIAL[dy, dx] * image[inside(y + dy - 2), inside(x + dx - 2)]
    return blurred


def direct_expansion(half: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    spread = np.zeros((side, side))
    spread[::2, ::2] = half
    return 4.0 * direct_blur(spread)


def root_variance_integral() -> float:
    """The integral of sqrt(F (1 - F)) of the standard normal, over its whole range."""
    x = torch.linspace(-9.0, 9.0, 20_001, dtype=torch.float64)
    f = torch.special.ndtr(x)
    return float(torch.trapezoid((f * (1.0 - f)).clamp(min=0.0).sqrt(), x))


# Laplacian pyramid


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "coarsest", "sides"),
    [
        (64, 16, [64, 32, 16]),
        (16, 16, [16]),
        (28, 16, [28]),
        (31, 16, [31, 16]),
        (7, 16, [7]),
        (9, 3, [9, 5, 3]),
        (4, 2, [4, 2]),
    ],
)
def test_the_levels_sum_back_to_the_image(side: int, coarsest: int, sides: list[int]) -> None:
    images = normal(2, 3, side, side, dtype=torch.float64)
    levels = laplacian_pyramid(images, coarsest)
    assert [tuple(level.shape) for level in levels] == [(2, 3, s, s) for s in sides]

    restored = levels[-1].numpy()
    for level in reversed(levels[:-1]):
        blown_up = [[direct_expansion(c, level.shape[-1]) for c in image] for image in restored]
        restored = level.numpy() + np.array(blown_up)
    np.testing.assert_allclose(restored, images.numpy(), atol=1e-13)


def test_the_levels_of_an_odd_side_against_direct_sums() -> None:
    images = normal(1, 2, 9, 9, dtype=torch.float64)
    levels = laplacian_pyramid(images, 3)
    for channel in range(2):
        image = images[0, channel].numpy()
        for level in levels[:-1]:
            half = direct_blur(image)[::2, ::2]
            band = image - direct_expansion(half, len(image))
            np.testing.assert_allclose(level[0, channel].numpy(), band, atol=1e-14)
            image = half
        np.testing.assert_allclose(levels[-1][0, channel].numpy(), image, atol=1e-14)


@pytest.mark.parametrize("side", [32, 33])
def test_a_constant_image_is_constant_at_the_coarsest_level_and_0_elsewhere(side: int) -> None:
    band, low_pass = laplacian_pyramid(torch.full((1, 1, side, side), 0.7))
    torch.testing.assert_close(low_pass, torch.full_like(low_pass, 0.7), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(band, torch.zeros_like(band), rtol=0.0, atol=1e-6)


def test_a_pyramid_keeps_the_type_and_leaves_its_input_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        images = normal(1, 1, 32, 32).to(dtype)
        before = images.clone()
        assert {level.dtype for level in laplacian_pyramid(images)} == {dtype}
        assert torch.equal(images, before)


# Descriptors


def test_a_descriptor_is_a_patch_of_its_image() -> None:
    level = torch.arange(3 * 2 * 11 * 11, dtype=torch.float32).reshape(3, 2, 11, 11)
    found = descriptors(level, 20, seeded(), size=5)
    assert found.shape == (60, 2 * 5 * 5)
    for row, descriptor in enumerate(found):
        image = level[row // 20]
        channel, top, left = (image == descriptor[0]).nonzero()[0].tolist()
        assert channel == 0
        patch = image[:, top : top + 5, left : left + 5]
        assert torch.equal(descriptor, patch.flatten())


def test_all_places_are_equally_likely() -> None:
    level = torch.arange(81.0).reshape(1, 1, 9, 9)
    first = descriptors(level, 9000, seeded())[:, 0]
    counts = torch.bincount(first.long(), minlength=81).reshape(9, 9)
    assert counts.sum() == counts[:3, :3].sum()
    # A count is binomial with n = 9000 and p = 1/9, so its standard deviation is 29.8.
    assert (counts[:3, :3] - 1000).abs().max() < 5 * 29.8


# Sliced Wasserstein


def test_in_one_dimension_it_is_the_mean_difference_of_sorted_values() -> None:
    a = torch.tensor([[3.0], [0.0], [10.0]])
    b = torch.tensor([[-1.0], [4.0], [1.0]])
    # Sorted, the projections are -1, 1, 4 and 0, 3, 10.
    for sign in (1.0, -1.0):
        assert sliced_wasserstein(a, b, torch.tensor([[sign]])).item() == pytest.approx(9.0 / 3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_moves_each_projection_by_its_share(dtype: torch.dtype) -> None:
    a, directions = normal(40, 6, dtype=dtype), unit_rows(30, 6, seed=1, dtype=dtype)
    shift = normal(6, seed=2, dtype=dtype)
    distance = sliced_wasserstein(a, a + shift, directions)
    assert distance.dtype == dtype
    torch.testing.assert_close(distance, (directions @ shift).abs().mean())


def test_it_is_symmetric_and_0_for_the_same_set_in_another_order() -> None:
    a, b, directions = normal(50, 5), 2.0 * normal(50, 5, seed=1), unit_rows(7, 5, seed=2)
    distance = sliced_wasserstein(a, b, directions)
    assert distance > 0.1
    assert sliced_wasserstein(b, a, directions) == distance
    shuffled = a[torch.randperm(50, generator=seeded(3))]
    torch.testing.assert_close(
        sliced_wasserstein(a, shuffled, directions), torch.tensor(0.0), rtol=0.0, atol=1e-6
    )


@pytest.mark.parametrize("at_once", [1, 100, 101 * 3])
def test_directions_a_few_at_a_time_give_the_same(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, directions = normal(101, 5), normal(101, 5, seed=1), unit_rows(10, 5, seed=2)
    before = a.clone(), b.clone()
    whole = sliced_wasserstein(a, b, directions)
    monkeypatch.setattr(module, "PROJECTED_AT_ONCE", at_once)
    torch.testing.assert_close(sliced_wasserstein(a, b, directions), whole)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_sets_that_need_gradients_are_taken() -> None:
    a = normal(4, 2).requires_grad_()
    assert not sliced_wasserstein(a, a, unit_rows(3, 2)).requires_grad


# The accumulator


def test_descriptors_do_not_depend_on_the_batches() -> None:
    images = stripes(12, 0, channels=2)
    sets = []
    for sizes in ([12], [5, 7], [1] * 12):
        gathered = PyramidDescriptors(per_image=9, seed=4)
        for batch in images.split(sizes):
            gathered.add(batch)
        assert gathered.count == 12
        sets.append(gathered.finish())
    assert [(side, tuple(t.shape)) for side, t in sets[0].items()] == [
        (32, (108, 98)),
        (16, (108, 98)),
    ]
    for other in sets[1:]:
        for side, expected in sets[0].items():
            torch.testing.assert_close(other[side], expected)


def test_each_channel_of_each_level_is_normalised_over_the_set() -> None:
    images = stripes(20, 0, channels=3) * torch.tensor([0.2, 0.5, 1.0])[:, None, None]
    images += torch.tensor([-0.1, 0.0, 0.2])[:, None, None]
    gathered = PyramidDescriptors(per_image=30)
    gathered.add(images)
    for rows in gathered.finish().values():
        channels = rows.double().reshape(600, 3, 49)
        mean, std = channels.mean(dim=(0, 2)), channels.std(dim=(0, 2), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=1e-6)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0.0, atol=1e-6)
        assert (channels.std(dim=0) > 0.5).all()


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_a_flat_set_counts_as_0(rounding: float) -> None:
    gathered = PyramidDescriptors(per_image=10)
    gathered.add(0.7 + rounding * normal(3, 1, 32, 32))
    for rows in gathered.finish().values():
        assert rows.abs().max() < 1e-5


def test_descriptors_hold_no_graph() -> None:
    gathered = PyramidDescriptors(per_image=2)
    gathered.add(stripes(2, 0).requires_grad_())
    assert not any(rows.requires_grad for rows in gathered.finish().values())


def test_a_finished_accumulator_starts_again() -> None:
    gathered = PyramidDescriptors(per_image=3)
    gathered.add(stripes(4, 0))
    assert len(gathered.finish()[32]) == 12
    gathered.add(stripes(2, 0))
    assert gathered.count == 2
    assert len(gathered.finish()[32]) == 6


def test_other_streams_and_seeds_give_other_places() -> None:
    def drawn(**options: int) -> Tensor:
        gathered = PyramidDescriptors(per_image=4, **options)
        gathered.add(stripes(5, 0))
        return gathered.finish()[16]

    assert torch.equal(drawn(seed=5), drawn(seed=5))
    # The seed 5 + 2^32 would give the same draws as 5 if only 32 bits of the seed were used.
    for options in ({"seed": 5, "stream": 1}, {"seed": 6}, {"seed": 5 + 2**32}):
        assert not torch.equal(drawn(seed=5), drawn(**options))


# The distance of two sets of images


def test_the_distance_of_white_noise_is_its_sampling_error() -> None:
    """Images of 7 x 7 are one patch each, so that projections are independent standard normals."""
    count, dimension, projections = 2000, 49, 512
    distance = swd(
        noise(count, 1, 7, 0).split(500),
        noise(count, 1, 7, 1).split(700),
        per_image=1,
        projections=projections,
    )
    # At x, two empirical distribution functions differ by approximately a normal number of variance
    # 2 F (1 - F) / count. The mean and the variance of the integral of its absolute value follow.
    x = torch.linspace(-6.0, 6.0, 601, dtype=torch.float64)
    f = torch.special.ndtr(x)
    low, high = torch.minimum(f[:, None], f), torch.maximum(f[:, None], f)
    spread = (f * (1.0 - f)).sqrt()
    correlation = (low * (1.0 - high) / (spread[:, None] * spread)).clamp(max=1.0)
    covariance = (1.0 - correlation**2).sqrt() + correlation * correlation.asin() - 1.0
    covariance *= 2.0 / math.pi * spread[:, None] * spread
    scale = 1000.0 * math.sqrt(2.0 / count)
    mean = scale * math.sqrt(2.0 / math.pi) * root_variance_integral()
    deviation = scale * math.sqrt(float(covariance.sum()) * 0.02**2)
    # Directions share their data: two of them have a mean squared cosine of 1 / dimension, by which
    # their distances are correlated. The normalisation reduces the distance by at most 1 /
    # dimension.
    bound = 4.0 * deviation * math.sqrt(1.0 / projections + 1.0 / dimension) + mean / dimension
    assert bound < 0.25 * mean
    assert distance == {7: pytest.approx(mean, abs=bound)}


def test_the_distance_of_white_noise_and_single_grey_values_is_that_of_the_two_laws() -> None:
    """A direction t projects the greys to the sum of t: N(0, 1) against N(0, (t . 1)^2)."""
    count, projections = 10_000, 1000
    greys = noise(count, 1, 1, 0).expand(-1, -1, 7, 7)
    distance = swd(
        greys.split(count), noise(count, 1, 7, 1).split(count), per_image=1, projections=projections
    )
    law = math.sqrt(2.0 / math.pi) * (1.0 - unit_rows(100_000, 49).sum(1).abs()).abs()
    of_directions = 4.0 * float(law.std()) * math.sqrt(1.0 / projections + 1.0 / 100_000)
    # On average, an empirical distribution is no farther from its own law than this integral.
    of_images = 2.0 * root_variance_integral() / math.sqrt(count)
    bound = 1000.0 * (of_directions + of_images)
    assert bound < 200.0
    assert distance == {7: pytest.approx(1000.0 * float(law.mean()), abs=bound)}


@pytest.mark.slow
def test_halves_of_one_set_are_near_and_noise_moves_them_apart_step_by_step() -> None:
    """White noise is found at the finest level."""
    real, fake = stripes(150, 0), stripes(150, 1)
    noisy = [(fake + amount * noise(150, 1, 32, 2)).clamp(-1.0, 1.0) for amount in (0, 1, 2, 4)]
    steps = [swd([real], [images], per_image=32)[32] for images in noisy]
    assert all(before < 0.9 * after for before, after in pairwise(steps))
    assert steps[0] < 0.4 * steps[-1]


@pytest.mark.slow
def test_blur_moves_sets_apart_step_by_step() -> None:
    real, fake = stripes(150, 0), stripes(150, 1)
    distances = [swd([real], [blurred(fake, times)], per_image=32) for times in (0, 2, 4, 16)]
    for side in (32, 16):
        steps = [distance[side] for distance in distances]
        assert all(before < 0.9 * after for before, after in pairwise(steps))
        assert steps[0] < 0.25 * steps[-1]


def test_one_image_again_and_again_is_far_from_a_varied_set() -> None:
    real, fake = stripes(150, 0), stripes(150, 1)
    varied = swd([real], [fake], per_image=32)
    collapsed = swd([real], [fake[:1].expand(150, -1, -1, -1)], per_image=32)
    for side in (32, 16):
        assert collapsed[side] > 3.0 * varied[side]


def test_it_is_blind_to_the_brightness_and_contrast_of_a_set_but_not_of_images() -> None:
    real, fake = [stripes(60, 0)], stripes(60, 1)
    options = {"per_image": 32, "projections": 64}
    plain = swd(real, [fake], **options)
    assert swd(real, [0.3 * fake + 0.25], **options) == pytest.approx(plain, rel=1e-3)
    uneven = fake * torch.linspace(0.0, 1.0, 60)[:, None, None, None]
    assert swd(real, [uneven], **options)[32] > 1.5 * plain[32]


def test_the_seed_decides_and_the_global_state_stays() -> None:
    real, fake = stripes(20, 0), stripes(20, 1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    results = [swd([real], [fake], seed=seed, per_image=8, projections=16) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]
    assert results[0] != results[2]
    assert list(results[0]) == [32, 16]


def test_the_places_in_the_two_sets_are_independent() -> None:
    images = stripes(20, 0)
    distance = swd([images], [images], per_image=8, projections=16)
    assert distance[32] > 1.0


def test_images_of_other_float_types_and_with_gradients_are_taken() -> None:
    real, fake = stripes(10, 0), stripes(10, 1)
    options = {"per_image": 4, "projections": 8}
    plain = swd([real], [fake], **options)
    typed = swd([real.double()], [fake.requires_grad_()], **options)
    assert typed == pytest.approx(plain, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same() -> None:
    real, fake = stripes(40, 0, channels=3), stripes(40, 1, channels=3)
    on_cuda = swd([real.cuda()], [fake.cuda()], per_image=16)
    assert on_cuda == pytest.approx(swd([real], [fake], per_image=16), rel=1e-3)


# Errors

IMAGES = torch.zeros(2, 1, 8, 8)
ROWS = torch.eye(3)


def begun(images: Tensor = IMAGES) -> PyramidDescriptors:
    gathered = PyramidDescriptors(per_image=1)
    gathered.add(images)
    return gathered


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: laplacian_pyramid(IMAGES, 1),
            ValueError,
            "coarsest: expected a whole number of at least 2, got 1",
        ),
        (
            lambda: laplacian_pyramid(torch.zeros(1, 8, 8)),
            ValueError,
            "images: expected shape (N, C, R, R), none of them 0, got (1, 8, 8)",
        ),
        (
            lambda: laplacian_pyramid(torch.zeros(1, 1, 8, 9)),
            ValueError,
            "images: expected shape (N, C, R, R), none of them 0, got (1, 1, 8, 9)",
        ),
        (
            lambda: laplacian_pyramid(torch.zeros(0, 1, 8, 8)),
            ValueError,
            "images: expected shape (N, C, R, R), none of them 0, got (0, 1, 8, 8)",
        ),
        (
            lambda: laplacian_pyramid(IMAGES.byte()),
            TypeError,
            "images: expected a floating-point tensor, got torch.uint8",
        ),
        (
            lambda: descriptors([1.0], 1, seeded()),
            TypeError,
            "level: expected a floating-point tensor, got list [1.0]",
        ),
        (
            lambda: descriptors(IMAGES, 0, seeded()),
            ValueError,
            "per_image: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: descriptors(IMAGES, 1, 7),
            TypeError,
            "generator: expected a torch.Generator, got 7",
        ),
        (
            lambda: descriptors(IMAGES, 1, None),
            TypeError,
            "generator: expected a torch.Generator, got None",
        ),
        (
            lambda: descriptors(IMAGES, 1, seeded(), size=9),
            ValueError,
            "level: expected sides of at least 9 (a patch), got 8",
        ),
        (
            lambda: descriptors(IMAGES, 1, seeded(), size=0),
            ValueError,
            "size: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: sliced_wasserstein(ROWS.half(), ROWS, ROWS),
            TypeError,
            "a: expected a float32 or float64 tensor, got torch.float16",
        ),
        (
            lambda: sliced_wasserstein(ROWS, 2.0, ROWS),
            TypeError,
            "b: expected a float32 or float64 tensor, got 2.0",
        ),
        (
            lambda: sliced_wasserstein(ROWS, ROWS.double(), ROWS),
            ValueError,
            "b: expected torch.float32 on cpu, as a, got torch.float64 on cpu",
        ),
        (
            lambda: sliced_wasserstein(ROWS, ROWS, ROWS.to("meta")),
            ValueError,
            "directions: expected torch.float32 on cpu, as a, got torch.float32 on meta",
        ),
        (
            lambda: sliced_wasserstein(ROWS[0], ROWS, ROWS),
            ValueError,
            "a: expected two dimensions, none of size 0, got (3,)",
        ),
        (
            lambda: sliced_wasserstein(ROWS, ROWS, ROWS[:0]),
            ValueError,
            "directions: expected two dimensions, none of size 0, got (0, 3)",
        ),
        (
            lambda: sliced_wasserstein(ROWS, ROWS[:2], ROWS),
            ValueError,
            "b: expected shape (3, 3), as a, got (2, 3)",
        ),
        (
            lambda: sliced_wasserstein(ROWS, ROWS, torch.eye(2)),
            ValueError,
            "directions: expected shape (K, 3), got (2, 2)",
        ),
        (
            lambda: sliced_wasserstein(ROWS, ROWS, ROWS * 1.5),
            ValueError,
            "directions: expected rows of length 1, got one that is 0.5 off",
        ),
        (
            lambda: sliced_wasserstein(ROWS, ROWS, ROWS * math.nan),
            ValueError,
            "directions: expected rows of length 1, got one that is nan off",
        ),
        (
            lambda: PyramidDescriptors(per_image=1.5),
            ValueError,
            "per_image: expected a whole number of at least 1, got 1.5",
        ),
        (
            lambda: PyramidDescriptors(seed=-1),
            ValueError,
            "seed: expected a whole number in [0, 2^64), got -1",
        ),
        (
            lambda: PyramidDescriptors(stream=-1),
            ValueError,
            "stream: expected a whole number of at least 0, got -1",
        ),
        (
            lambda: PyramidDescriptors().finish(),
            ValueError,
            "images: expected at least one image, got none",
        ),
        (
            lambda: begun().add(torch.zeros(2, 3, 8, 8)),
            ValueError,
            "images: expected images of shape (1, 8, 8) on cpu, as before, "
            "got images of shape (3, 8, 8) on cpu",
        ),
        (
            lambda: PyramidDescriptors(name="fake", like=begun()).add(IMAGES.to("meta")),
            ValueError,
            "fake: expected images of shape (1, 8, 8) on cpu, as before, "
            "got images of shape (1, 8, 8) on meta",
        ),
        (
            lambda: begun(torch.zeros(1, 1, 6, 6)),
            ValueError,
            "images: expected sides of at least 7 (a patch), got 6",
        ),
        (
            lambda: begun(IMAGES + 1.5),
            ValueError,
            "images: expected values in [-1, 1], got 1.5 to 1.5",
        ),
        (
            lambda: begun(IMAGES - 1.5),
            ValueError,
            "images: expected values in [-1, 1], got -1.5 to -1.5",
        ),
        (
            lambda: begun(IMAGES * math.nan),
            ValueError,
            "images: expected values in [-1, 1], got nan to nan",
        ),
        (
            lambda: swd([], [IMAGES]),
            ValueError,
            "real: expected at least one image, got none",
        ),
        (
            lambda: swd([IMAGES], []),
            ValueError,
            "fake: expected 2 images, as many as real, got 0",
        ),
        (
            lambda: swd([IMAGES], [IMAGES, IMAGES]),
            ValueError,
            "fake: expected 2 images, as many as real, got 4",
        ),
        (
            lambda: swd([IMAGES], [torch.zeros(2, 1, 9, 9)]),
            ValueError,
            "fake: expected images of shape (1, 8, 8) on cpu, as before, "
            "got images of shape (1, 9, 9) on cpu",
        ),
        (
            lambda: swd([(IMAGES.byte(), 0)], [IMAGES]),
            TypeError,
            "real: expected a floating-point tensor, got tuple (tensor(",
        ),
    ],
)
def test_errors_name_the_argument_what_was_expected_and_what_came(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"projections": 0},
            ValueError,
            "projections: expected a whole number of at least 1, got 0",
        ),
        ({"per_image": 0}, ValueError, "per_image: expected a whole number of at least 1, got 0"),
        ({"seed": 2**64}, ValueError, f"seed: expected a whole number in [0, 2^64), got {2**64}"),
        ({"fake": 3}, TypeError, "fake: expected an iterable of batches, got 3"),
        ({"real": IMAGES}, TypeError, "real: expected an iterable of batches, got Tensor tensor("),
    ],
)
def test_errors_of_arguments_come_before_any_image_is_taken(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    real = iter([IMAGES])
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        swd(**({"real": real, "fake": [IMAGES]} | changed))
    assert next(real) is IMAGES


def test_a_refused_batch_leaves_no_trace() -> None:
    gathered = PyramidDescriptors(per_image=2)
    with pytest.raises(ValueError, match=r"^images: expected values"):
        gathered.add(torch.full((1, 3, 16, 16), 2.0))
    gathered.add(IMAGES)
    assert gathered.count == 2
    assert {side: len(rows) for side, rows in gathered.finish().items()} == {8: 4}

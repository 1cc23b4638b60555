"""Sliced Wasserstein distance between two sets of images, on patches of a Laplacian pyramid.

This is the measure of Karras et al. 2018 (arXiv:1710.10196), section 5: every level of the pyramid
(Burt and Adelson 1983) has one band of scales, and on each level the patches of one set are
compared with those of the other. A small distance means similar looks and similar variety at that
scale. Each set is normalised by its own mean and standard deviation per level and colour channel,
as published, so the distance does not depend on the brightness and the contrast of a whole set.

It differs from the authors' program (``metrics/sliced_wasserstein.py``) in these points. Images are
neither rounded to 8 bits nor clipped; values out of range are refused. Random numbers come from a
seed, and the places of the patches do not depend on how the images are batched. Sides need not be
powers of two, and there may be other than three colour channels. A channel without any contrast
counts as 0, where the program divides by 0. The mean over the levels is left to the caller. The
program averages over four batches of 128 directions; here they are one set of 512.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.support.arguments import check_count, check_seed, check_whole, shown

COARSEST = 16
PATCH = 7

_REAL, _FAKE, _DIRECTIONS = range(3)
PROJECTED_AT_ONCE = 2**24
"""The number of projected values that are in memory at a time."""
# A smaller standard deviation is rounding error, such as that of a saturated tanh: one step of 8
# bits is 8e-3.
_FLAT = 1e-5
_UNIT_TOLERANCE = 1e-3


def laplacian_pyramid(images: Tensor, coarsest: int = COARSEST) -> list[Tensor]:
    """The bands of each image, finest first, then what remains (Burt and Adelson 1983).

    A band is an image minus its half-size version (blurred, every second pixel) enlarged again,
    both with the 5 x 5 binomial filter and mirrored borders; half of an odd side is rounded up.
    Sides are halved while the half is at least ``coarsest``: 64 gives 64, 32, 16, and 28 gives 28
    alone.

    Args:
        images: (N, C, R, R), any float type and range.
        coarsest: the least side of a level, 2 or more.

    Returns levels (N, C, S, S) of the same type; if there is one level, it is ``images`` itself.
    Raises TypeError or ValueError naming the argument.
    """
    _check_images("images", images)
    coarsest = check_whole("coarsest", coarsest, 2)
    levels = []
    while (images.shape[-1] + 1) // 2 >= coarsest:
        half = _blur(images)[..., ::2, ::2]
        levels.append(images - _blow_up(half, images.shape[-1]))
        images = half
    return [*levels, images]


def descriptors(
    level: Tensor, per_image: int, generator: torch.Generator, size: int = PATCH
) -> Tensor:
    """Square patches at random places, uniform and with replacement, not yet normalised.

    Args:
        level: (N, C, S, S), any float type, on any device.
        per_image: the number of patches of each image.
        generator: on the CPU; two numbers are drawn per patch, so the places do not depend on the
            batches.
        size: the side of a patch, at most S.

    Returns (N * per_image, C * size * size), image by image, in the level's type. Raises TypeError
    or ValueError naming the argument.
    """
    _check_images("level", level)
    per_image, size = check_count("per_image", per_image), check_count("size", size)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {shown(generator)}")
    _check_side("level", level, size)
    images, side = level.shape[0], level.shape[-1]
    corners = torch.randint(side - size + 1, (images * per_image, 2), generator=generator)
    top, left = corners.to(level.device).unbind(1)
    image = torch.arange(images, device=level.device).repeat_interleave(per_image)
    return level.unfold(2, size, 1).unfold(3, size, 1)[image, :, top, left].flatten(1)


@torch.no_grad()
def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    """The mean over directions of the 1-Wasserstein distance of two sets of equal size, projected.

    In one dimension that distance is the mean absolute difference of the sorted values. There is no
    gradient.

    Args:
        a, b: (M, D), float32 or float64, M >= 1.
        directions: (K, D), K >= 1, rows of unit length.

    Returns a scalar in the same type. Besides the sets it needs memory for 2^24 (or M) values at a
    time. Raises TypeError or ValueError naming the argument; all three must share type and device.
    """
    _check_sets(a, b, directions)
    at_once = max(1, PROJECTED_AT_ONCE // len(a))
    distances = [
        (_sorted(some @ a.T) - _sorted(some @ b.T)).abs().mean(dim=1)
        for some in torch.split(directions, at_once)
    ]
    return torch.cat(distances).mean()


class PyramidDescriptors:
    """The descriptors of a set of images that comes in batches.

    Args:
        per_image: the number of 7 x 7 patches per image and level.
        seed: in [0, 2^64).
        stream: 0 or more; sets with other numbers get independent places.
        name: what error messages call the images.
        like: another set, with some images already, whose shape and device these images must have.

    Attributes: ``count``, the number of images so far. The memory is ``196 * per_image * C`` bytes
    per image and level, on the images' device: 50 kB for 32 x 32 grey. Raises ValueError naming the
    argument.
    """

    def __init__(
        self,
        *,
        per_image: int = 128,
        seed: int = 0,
        stream: int = 0,
        name: str = "images",
        like: PyramidDescriptors | None = None,
    ) -> None:
        self.per_image = check_count("per_image", per_image)
        self.seed = check_seed(seed)
        self.stream = check_whole("stream", stream, 0)
        self.name = name
        self.count = 0
        self._kind: str | None = None if like is None else like._kind
        self._levels: dict[int, tuple[torch.Generator, list[Tensor]]] = {}

    def add(self, images: Tensor) -> None:
        """Draw the descriptors of ``images`` (n, C, R, R), any float type, in [-1, 1], R >= 7.

        Raises TypeError or ValueError if they are not that, or unlike those before.
        """
        _check_images(self.name, images)
        _check_side(self.name, images, PATCH)
        kind = f"images of shape {tuple(images.shape[1:])} on {images.device}"
        if self._kind not in (None, kind):
            raise ValueError(f"{self.name}: expected {self._kind}, as before, got {kind}")
        _check_range(self.name, images)
        self._kind = kind
        self.count += len(images)
        for level in laplacian_pyramid(images.detach().float()):
            side = level.shape[-1]
            if side not in self._levels:
                self._levels[side] = (_random(self.seed, self.stream, side), [])
            generator, parts = self._levels[side]
            parts.append(descriptors(level, self.per_image, generator))

    def finish(self) -> dict[int, Tensor]:
        """Return the normalised descriptors: from side of the level to (M, C * 49), finest first.

        M is ``count * per_image``; the set is empty afterwards. Raises ValueError if it is empty
        already.
        """
        if not self.count:
            raise ValueError(f"{self.name}: expected at least one image, got none")
        self.count = 0
        return {side: _normalised(parts) for side, (_, parts) in self._levels.items()}


def swd(
    real: Iterable[Tensor],
    fake: Iterable[Tensor],
    *,
    seed: int = 0,
    per_image: int = 128,
    projections: int = 512,
) -> dict[int, float]:
    """The sliced Wasserstein distance x 1,000 per level: ``{32: 3.1, 16: 4.0}``, finest first.

    The fewer images there are, the larger the distance is, even between two halves of one set, so
    compare only numbers of equal ``per_image`` and count (the paper takes 16,384 images).

    Args:
        real, fake: batches (n, C, R, R) in [-1, 1], any float type, R >= 7, on one device; both
            have the same number of images. The levels have the sides R / 2^i, down to 16; if R is
            at most 31, there is one level.
        seed: in [0, 2^64); it determines the places of the patches, which are independent for
            ``real`` and ``fake``, and the directions, which both share.
        per_image: the number of patches per image and level.
        projections: the number of directions per level, uniform on the sphere.

    The same seed gives the same result; torch's global random state is neither read nor written.
    Raises TypeError or ValueError naming the argument.
    """
    projections = check_count("projections", projections)
    _check_batches("real", real)
    _check_batches("fake", fake)
    first = PyramidDescriptors(per_image=per_image, seed=seed, stream=_REAL, name="real")
    wanted = _add_all(first, real)
    real_levels = first.finish()
    second = PyramidDescriptors(
        per_image=per_image, seed=seed, stream=_FAKE, name="fake", like=first
    )
    got = _add_all(second, fake)
    if got != wanted:
        raise ValueError(f"fake: expected {wanted} images, as many as real, got {got}")
    fake_levels = second.finish()
    return {
        side: _distance(real_levels[side], fake_levels[side], projections, seed, side)
        for side in real_levels
    }


def _add_all(gathered: PyramidDescriptors, batches: Iterable[Tensor]) -> int:
    for batch in batches:
        gathered.add(batch)
    return gathered.count


def _distance(a: Tensor, b: Tensor, projections: int, seed: int, side: int) -> float:
    random = _random(seed, _DIRECTIONS, side)
    directions = torch.randn(projections, a.shape[1], generator=random).to(a.device)
    return 1000.0 * float(sliced_wasserstein(a, b, F.normalize(directions)))


def _random(seed: int, *stream: int) -> torch.Generator:
    """A generator per seed and stream; torch uses 32 bits of its seed, so all words are mixed."""
    words = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1)
    return torch.Generator().manual_seed(int(words[0]))


def _blur(images: Tensor) -> Tensor:
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    return _binomial(_binomial(padded, 2), 3)


def _binomial(images: Tensor, dim: int) -> Tensor:
    """(1, 4, 6, 4, 1) / 16 along ``dim``, as sums, because cuDNN may round convolutions to TF32."""
    count = images.shape[dim] - 4
    first, second, third, fourth, fifth = (images.narrow(dim, i, count) for i in range(5))
    return (first + fifth + 4.0 * (second + fourth) + 6.0 * third) / 16.0


def _blow_up(half: Tensor, side: int) -> Tensor:
    spread = half.new_zeros(*half.shape[:2], side, side)
    spread[..., ::2, ::2] = half
    return 4.0 * _blur(spread)


def _normalised(parts: list[Tensor]) -> Tensor:
    """All of ``parts``, joined, with mean 0 and standard deviation 1 per channel.

    The list is emptied, which frees the memory of the parts.
    """
    joined = torch.cat(parts)
    parts.clear()
    channels = joined.view(len(joined), -1, PATCH * PATCH)
    variance, mean = torch.var_mean(channels, dim=(0, 2), correction=0, keepdim=True)
    std = variance.sqrt()
    channels.sub_(mean).div_(torch.where(std > _FLAT, std, 1.0))
    return joined


def _sorted(rows: Tensor) -> Tensor:
    """Each row sorted; on the CPU in place, by NumPy, which is faster and stores no indices."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    rows.numpy().sort(axis=1)
    return rows


def _check_images(name: str, images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else shown(images)
        raise TypeError(f"{name}: expected a floating-point tensor, got {got}")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
        raise ValueError(f"{name}: expected shape (N, C, R, R), none of them 0, got {shape}")


def _check_side(name: str, images: Tensor, least: int) -> None:
    if images.shape[-1] < least:
        raise ValueError(
            f"{name}: expected sides of at least {least} (a patch), got {images.shape[-1]}"
        )


def _check_range(name: str, images: Tensor) -> None:
    low, high = (float(extreme) for extreme in images.detach().aminmax())
    if not -1.0 <= low <= high <= 1.0:
        raise ValueError(f"{name}: expected values in [-1, 1], got {low:g} to {high:g}")


def _check_batches(name: str, batches: object) -> None:
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(f"{name}: expected an iterable of batches, got {shown(batches)}")


def _check_sets(a: Tensor, b: Tensor, directions: Tensor) -> None:
    for name, rows in (("a", a), ("b", b), ("directions", directions)):
        _check_rows(name, rows)
        if (rows.dtype, rows.device) != (a.dtype, a.device):
            raise ValueError(
                f"{name}: expected {a.dtype} on {a.device}, as a, got {rows.dtype} on {rows.device}"
            )
    if a.shape != b.shape:
        raise ValueError(f"b: expected shape {tuple(a.shape)}, as a, got {tuple(b.shape)}")
    if directions.shape[1] != a.shape[1]:
        raise ValueError(
            f"directions: expected shape (K, {a.shape[1]}), got {tuple(directions.shape)}"
        )
    off = float((directions.norm(dim=1) - 1.0).abs().max())
    if not off <= _UNIT_TOLERANCE:
        raise ValueError(f"directions: expected rows of length 1, got one that is {off:g} off")


def _check_rows(name: str, rows: Tensor) -> None:
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.float32, torch.float64):
        got = rows.dtype if isinstance(rows, Tensor) else shown(rows)
        raise TypeError(f"{name}: expected a float32 or float64 tensor, got {got}")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{name}: expected two dimensions, none of size 0, got {tuple(rows.shape)}"
        )

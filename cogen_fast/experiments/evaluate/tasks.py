"""What is hidden of an image: the paper's tasks at any size, drawn from this package's noise.

What is drawn for an image is a function of the seed and the image's number alone: it depends
neither on the order of the images, nor on the other images of a call, nor on the number of
processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cogen_fast.ops.philox import NoiseStream, Purpose, normals, uniforms
from cogen_fast.problem.observation import AveragePool, Mask, MeasurementOperator, Stride
from cogen_fast.sampler.hmc import noise_stream
from cogen_fast.support.arguments import check_choice, check_count, check_number, check_seed, shown

PUBLISHED_BLOCKS = {128: (30, 60), 256: (50, 80)}
"""Sides of the hidden block by the image's side (CelebA and LSUN in the paper)."""
SIDES = ("left", "right", "top", "bottom")
DOWNSAMPLES = ("average", "stride")


@dataclass(frozen=True)
class Case:
    """B images of which something is observed: `cogenerate(G, case.x_obs, case.operator)`.

    ``truth`` is ``(B, C, H, W)``; ``x_obs`` are the measurements ``(B, ...)``, NaN where a mask
    hides; ``operator`` is a `Mask` (which `inpaint` takes too), an `AveragePool` or a `Stride`;
    ``hidden`` ``(B, 1, H, W)`` bool marks the pixels that are not observed themselves.
    """

    truth: Tensor
    x_obs: Tensor
    operator: MeasurementOperator
    hidden: Tensor


@dataclass(frozen=True)
class Block:
    """One hidden block anywhere, its height and width each uniform in ``low .. high`` pixels.

    Without bounds they are the paper's for the image's shorter side: 30-60 at 128 pixels, 50-80 at
    256. For other sides these are scaled in proportion and rounded, halves up: from those of 128
    pixels up to 128, and from those of 256 pixels above. So they are 8-15 at 32, 15-30 at 64,
    200-320 at 1024.
    """

    low: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"block: expected both bounds or none, got {self.low}, {self.high}")
        if self.low is not None:
            check_count("low", self.low)
            if check_count("high", self.high) < self.low:
                raise ValueError(f"high: expected at least low={self.low}, got {self.high}")

    def __str__(self) -> str:
        return "block" if self.low is None else f"block-{self.low}-{self.high}"

    def bounds(self, side: int) -> tuple[int, int]:
        """The least and the largest side of the block, for an image of this shorter side."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        base = min(PUBLISHED_BLOCKS) if side <= min(PUBLISHED_BLOCKS) else max(PUBLISHED_BLOCKS)
        low, high = (_rounded(bound * side / base) for bound in PUBLISHED_BLOCKS[base])
        return max(low, 1), max(high, 1)

    def hidden(self, stream: NoiseStream, height: int, width: int) -> Tensor:
        """``(B, H, W)`` bool."""
        low, high = self.bounds(min(height, width))
        if high >= min(height, width):
            raise ValueError(f"block: expected sides below {height} x {width}, got up to {high}")
        u = uniforms(stream, Purpose.TASK, 4, torch.float64)
        sides = low + _whole(u[:, :2], high - low + 1)
        room = torch.tensor([height, width], device=sides.device) - sides
        first = _whole(u[:, 2:], room + 1)
        inside = []
        for axis, length in enumerate((height, width)):
            place = torch.arange(length, device=first.device)
            start = first[:, axis, None]
            inside.append((place >= start) & (place < start + sides[:, axis, None]))
        return inside[0][:, :, None] & inside[1][:, None, :]


@dataclass(frozen=True)
class Half:
    """One half is hidden; of an odd number of rows or columns it is the smaller part."""

    side: Literal["left", "right", "top", "bottom"] = "right"

    def __post_init__(self) -> None:
        check_choice("side", self.side, SIDES)

    def __str__(self) -> str:
        return f"half-{self.side}"

    def hidden(self, stream: NoiseStream, height: int, width: int) -> Tensor:
        """``(B, H, W)`` bool."""
        across = self.side in ("left", "right")
        length = width if across else height
        place = torch.arange(length, device=stream.observation.device)
        first = self.side in ("left", "top")
        part = place < length // 2 if first else place >= length - length // 2
        part = part[None, :] if across else part[:, None]
        return part.expand(len(stream.observation), height, width)


@dataclass(frozen=True)
class Pixels:
    """Pixels are hidden at random: ``round(observed H W)`` of them, at least one, are observed."""

    observed: float = 0.1

    def __post_init__(self) -> None:
        check_number("observed", self.observed, above=0.0, below=1.0)

    def __str__(self) -> str:
        return f"pixels-{self.observed:g}"

    def hidden(self, stream: NoiseStream, height: int, width: int) -> Tensor:
        """``(B, H, W)`` bool."""
        count = height * width
        u = uniforms(stream, Purpose.TASK, count, torch.float64)
        order = u.argsort(dim=1, stable=True)  # uniforms of 23 bits may be equal
        hidden = torch.ones_like(u, dtype=torch.bool)
        seen = order[:, : max(1, _rounded(self.observed * count))]
        return hidden.scatter(1, seen, False).reshape(-1, height, width)


@dataclass(frozen=True)
class SuperResolve:
    """The image is observed at ``1 / factor`` of its size.

    ``downsample`` is "average", the means of blocks (the paper's text), which hides every pixel, or
    "stride", every ``factor``-th pixel.
    """

    factor: int
    downsample: Literal["average", "stride"] = "average"

    def __post_init__(self) -> None:
        if check_count("factor", self.factor) < 2:
            raise ValueError(f"factor: expected at least 2, got {self.factor}")
        check_choice("downsample", self.downsample, DOWNSAMPLES)

    def __str__(self) -> str:
        return f"{self.downsample}-{self.factor}"

    @property
    def operator(self) -> MeasurementOperator:
        """The operator that measures the small image of a large one."""
        return (AveragePool if self.downsample == "average" else Stride)(self.factor)

    def hidden(self, stream: NoiseStream, height: int, width: int) -> Tensor:
        """``(B, H, W)`` bool."""
        device = stream.observation.device
        hidden = torch.ones(len(stream.observation), height, width, dtype=torch.bool, device=device)
        if self.downsample == "stride":
            hidden[:, :: self.factor, :: self.factor] = False
        return hidden


Task = Block | Half | Pixels | SuperResolve


def pose(
    task: Task,
    truth: Any,
    observation_ids: Sequence[int],
    seed: int = 0,
    noise_std: float = 0.0,
) -> Case:
    """Hide what the task says of images ``truth`` ``(B, C, H, W)``, floating point.

    ``observation_ids`` ``(B,)``, different numbers in [0, 2^32), identify the images, as their
    places in a data set do; a draw depends on them and on ``seed`` alone. Draws differ from the
    sampler's of the same seed and ids. Gaussian noise of standard deviation ``noise_std`` is added
    to what is observed (0: none): the coverage of credible intervals can equal their level only if
    the data have the noise that the sampler is given. Raises TypeError or ValueError naming the
    argument.
    """
    images = torch.as_tensor(truth).detach()
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"truth: expected shape (B, C, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"truth: expected floating-point values, got {images.dtype}")
    stream = noise_stream(check_seed(seed), len(images), images.device, observation_ids)
    check_number("noise_std", noise_std, above=0.0, zero=True)
    height, width = images.shape[-2:]
    hidden = task.hidden(stream, height, width)[:, None]
    if isinstance(task, SuperResolve):
        operator = task.operator
        operator.measured_shape(images)
        return Case(images, _noisy(operator.measure(images), stream, noise_std), operator, hidden)
    x_obs = torch.where(hidden, torch.nan, _noisy(images, stream, noise_std))
    return Case(images, x_obs, Mask(~hidden), hidden)


def _noisy(values: Tensor, stream: NoiseStream, noise_std: float) -> Tensor:
    """The values plus noise, from the transition after the one that places what is hidden."""
    if noise_std == 0.0:
        return values
    count = values[0].numel()
    noise = normals(stream.advance(None), Purpose.TASK, 1, count, values.dtype)
    return values + noise_std * noise.reshape(values.shape)


# Name: the function that makes the task, and the types of its arguments.
_KINDS: dict[str, tuple[Callable[..., Task], tuple[Callable[[str], Any], ...]]] = {
    "block": (Block, (int, int)),
    "half": (Half, (str,)),
    "pixels": (Pixels, (float,)),
    "average": (partial(SuperResolve, downsample="average"), (int,)),
    "stride": (partial(SuperResolve, downsample="stride"), (int,)),
}


def task_named(name: str) -> Task:
    """The task with ``str(task) == name``, as given on a command line.

    The names are "block" or "block-30-60", "half-left" ("right", "top", "bottom"), "pixels-0.1",
    "average-4", "stride-8". Raises ValueError for anything else.
    """
    kind, *texts = name.split("-") if isinstance(name, str) else ("",)
    make, types = _KINDS.get(kind, (None, ()))
    try:
        values = [read(text) for read, text in zip(types, texts, strict=True)] if texts else []
    except ValueError:
        make = None
    if make is None or (not values and kind != "block"):
        raise ValueError(
            "task: expected block, block-LOW-HIGH, half-SIDE, pixels-SHARE, average-FACTOR or "
            f"stride-FACTOR, got {shown(name)}"
        )
    return make(*values)


@dataclass(frozen=True)
class Published:
    """What an image run of the paper has beside its preset: the image's side, task and network.

    ``fmap_base`` and ``latent_size`` are those of `ProgressiveGenerator`.
    """

    resolution: int
    task: Task
    fmap_base: int
    latent_size: int = 512


PUBLISHED: dict[str, Published] = {
    "celeba-128": Published(128, Block(30, 60), 2048),
    "celeba-128-program": Published(128, Block(30, 60), 2048),
    "lsun-256": Published(256, Block(50, 80), 8192),
    "celebahq-1024-sisr": Published(1024, SuperResolve(8, "average"), 8192),
}
"""By the name of the preset (`cogen_fast.PRESETS`), which has the settings of the sampler.

The paper's text pools by 8; the authors' program reads every 8th pixel of ``G(z)`` and resizes the
data, which is not a task of this kind. The feature maps of LSUN and CelebA-HQ are the usual ones.
"""


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def _whole(uniform: Tensor, count: int | Tensor) -> Tensor:
    """Whole numbers 0 .. count - 1 from uniforms in (0, 1)."""
    return (uniform * count).floor().long()

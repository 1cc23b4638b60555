"""Images to evaluate on, read one by one: a data set's, a folder's, or a generator's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cogen_fast.ops import reference
from cogen_fast.problem.density import LatentMap
from cogen_fast.sampler.hmc import noise_stream
from cogen_fast.support.arguments import check_count, check_path
from cogen_fast.training.datasets import Images, image_files, open_images, read_image

_HASHED = 64


@dataclass(frozen=True)
class Data:
    """Images by number, and what to call them.

    ``load(i)`` gives image i, floating point ``(C, H, W)`` with -1 black and 1 white; ValueError
    where it is corrupt, OSError where it cannot be read now. A number stands for the same image
    always, whatever else can be read. ``origin`` tells other images of the same names apart.
    """

    names: tuple[str, ...]
    load: Callable[[int], Tensor] = field(repr=False)
    origin: str = ""

    def __len__(self) -> int:
        return len(self.names)


def open_data(
    source: str | Path,
    resolution: int,
    *,
    channels: int,
    fit: str = "crop",
    cache: str | Path | None = None,
) -> Data:
    """The images of a folder, an IDX file or an ``.npz`` (see `open_images`) at ``resolution``.

    A folder's files are read when they are asked for. Raises what `open_images` raises.
    """
    path = check_path("source", source)
    if not path.is_dir():
        return of_images(
            open_images(path, resolution, fit=fit, channels=channels, cache=cache, progress=False)
        )
    names = image_files(path)
    read = partial(read_image, resolution=resolution, channels=channels, fit=fit)
    origin = f"{resolution} px, {channels} channels, {fit}"
    return Data(tuple(names), lambda i: read(path / names[i]), origin)


def of_images(images: Images) -> Data:
    """Those of an opened data set, held-out ones for instance."""
    names = tuple(str(i) for i in range(len(images)))
    return Data(names, lambda i: images.batch([i])[0], _origin(images))


def _origin(images: Images) -> str:
    """A hash of some of the images, from first to last."""
    some = torch.linspace(0, len(images) - 1, min(len(images), _HASHED)).long()
    return hashlib.sha256(images.batch(some).numpy().tobytes()).hexdigest()


def of_generator(generator: LatentMap, latent_size: int, count: int, seed: int) -> Data:
    """``count`` images of a generator's own, as they are: the answer lies in its range.

    Their latents are prior draws of our own noise: another ``seed`` than the sampler's, or chains
    start at the answer.
    """
    numbers = check_count("count", count)
    like = torch.zeros(0)
    if isinstance(generator, nn.Module):
        if generator.training:
            raise ValueError("generator: expected eval mode, got training mode")
        like = next(generator.parameters(), like)

    def load(i: int) -> Tensor:
        stream = noise_stream(seed, 1, torch.device("cpu"), [i])
        latents = reference.initial_latents(stream, 1, latent_size, torch.float32)[0]
        with torch.no_grad():
            return generator(latents.to(like))[0].cpu()

    return Data(tuple(f"own-{i}" for i in range(numbers)), load, f"own images, seed {seed}")

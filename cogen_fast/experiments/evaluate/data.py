"""Images to evaluate on, read one by one: those of a data set or a folder, or a generator's own."""

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
    """Images by number, and their names.

    ``load(i)`` returns image i, floating point ``(C, H, W)`` with -1 black and 1 white; it raises
    ValueError if the image is corrupt, and OSError if it cannot be read now. A number always stands
    for the same image, whatever other images can be read. ``origin`` distinguishes other images of
    the same names.
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

    A folder's files are read when they are asked for. Raises the errors of `open_images`.
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
    """The images of an opened data set, for instance held-out ones."""
    names = tuple(str(i) for i in range(len(images)))
    return Data(names, lambda i: images.batch([i])[0], _origin(images))


def _origin(images: Images) -> str:
    """A hash of some of the images, spread from the first to the last."""
    some = torch.linspace(0, len(images) - 1, min(len(images), _HASHED)).long()
    return hashlib.sha256(images.batch(some).numpy().tobytes()).hexdigest()


def of_generator(generator: LatentMap, latent_size: int, count: int, seed: int) -> Data:
    """``count`` images of a generator's own, as they are: the answer lies in its range.

    Their latents are prior draws of this package's noise. ``seed`` must not be that of the sampler,
    whose chains would otherwise start at the answer.
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

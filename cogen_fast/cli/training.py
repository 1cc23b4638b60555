"""`cogen-fast train`, `sample` and `swd`: from arguments to files."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cogen_fast.cli.generator import adapter_of_images, find_generator
from cogen_fast.cli.images import numbered_names, write_png
from cogen_fast.cli.sources import is_folder
from cogen_fast.generators.hub import is_hub_name
from cogen_fast.generators.progressive import ProgressiveGenerator
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.results import plots
from cogen_fast.support.arguments import (
    check_count,
    check_file,
    check_folder,
    check_seed,
)
from cogen_fast.support.files import write_atomically
from cogen_fast.support.memory import check_samples
from cogen_fast.training.config import TrainingConfig
from cogen_fast.training.datasets import Images, open_images
from cogen_fast.training.run import (
    Outcome,
    averaged_snapshots,
    sample_batches,
    train,
)
from cogen_fast.training.swd import swd

_BATCH = 256


def _train(arguments: argparse.Namespace, progress: bool) -> bool:
    config = TrainingConfig(**{f.name: getattr(arguments, f.name) for f in fields(TrainingConfig)})

    def images() -> Images:
        kept, _ = _images(arguments, config.resolution, progress).split(arguments.held_out)
        return kept

    outcome: Outcome = train(
        images,
        config,
        arguments.out,
        snapshots=arguments.snapshots,
        device=arguments.device,
        checkpoint_seconds=arguments.checkpoint_seconds,
        progress=progress,
    )
    if outcome.is_main and not arguments.quiet:
        state = "done" if outcome.complete else "stopped; the same command continues"
        print(f"{outcome.shown} images shown, {state}")
        for path in outcome.snapshots[-1:]:
            print(f"wrote {path}")
    return outcome.complete


def _sample(arguments: argparse.Namespace, progress: bool) -> bool:
    check_count("count", arguments.count)
    check_count("columns", arguments.columns)
    check_seed(arguments.seed)
    check_file("out", arguments.out)
    if arguments.each is not None:
        check_folder("each", arguments.each)
    generator = _image_generator(
        "generator", arguments.generator, arguments.device, arguments.latent_shape
    )
    outputs = math.prod(generator.output_shape)
    check_samples({"count": arguments.count}, 1, generator.latent_size, outputs=outputs)
    names = _sample_names(arguments)
    taken = [path for path in (arguments.out, *names) if path.exists()]
    if taken and not arguments.overwrite:
        raise FileExistsError(f"out: {taken[0]} exists already; give --overwrite")
    images = torch.cat(list(_drawn(generator, arguments.count, arguments.seed)))
    sheet = plots.sheet(images.numpy(), arguments.columns)
    write_atomically(arguments.out, lambda file: sheet.save(file, format="PNG"))
    if arguments.each is not None:
        arguments.each.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images, strict=False):
        write_png(name, image.numpy())
    if not arguments.quiet:
        print(f"wrote {arguments.out}")
    return True


def _sample_names(arguments: argparse.Namespace) -> list[Path]:
    if arguments.each is None:
        return []
    return [arguments.each / name for name in numbered_names("sample", arguments.count)]


def _swd(arguments: argparse.Namespace, progress: bool) -> bool:
    check_count("count", arguments.count)
    check_seed(arguments.seed)
    if arguments.out is not None:
        check_file("out", arguments.out)
    names = [name for what in arguments.what for name in _generators(what)]
    side = max(_side(_image_generator("what", name, "cpu"), name) for name in names)
    real = _images(arguments, side, progress)
    if arguments.held_out is not None:
        check_count("held_out", arguments.held_out)
        _, real = real.split(arguments.held_out)
    count = min(arguments.count, len(real) // 2)
    if count < 1:
        raise ValueError(f"data: expected at least two images, got {len(real)}")
    compared, others = real.split(count)
    rows = []
    for name in tqdm(names, unit="generator", disable=not progress):
        generator = _image_generator("what", name, arguments.device)
        _check_channels(generator, name, real)
        fake = _generated(generator, count, arguments.seed, real.resolution)
        found = swd(_batches(compared, count), fake, seed=arguments.seed)
        rows.append({"generator": name, "images": count, **_named(found)})
    same = swd(_batches(compared, count), _batches(others, count), seed=arguments.seed)
    rows.append({"generator": "real images", "images": count, **_named(same)})
    if arguments.out is not None:
        text = json.dumps(rows, indent=2) + "\n"
        write_atomically(arguments.out, lambda file: file.write_text(text))
    if not arguments.quiet:
        print(_table(rows))
    return True


def _side(generator: GeneratorAdapter, name: str) -> int:
    """Width and height of a generator's images."""
    height, width = generator.output_shape[1:]
    if height != width:
        raise ValueError(f"what: expected square images, got {name} of {width} x {height}")
    return int(width)


def _check_channels(generator: GeneratorAdapter, name: str, real: Images) -> None:
    if generator.output_shape[0] != real.channels:
        raise ValueError(
            f"what: expected generators of {real.channels} channels like the data, got {name} with "
            f"{generator.output_shape[0]}"
        )


def _drawn(generator: GeneratorAdapter, count: int, seed: int) -> Iterator[Tensor]:
    """Batches of samples."""
    pixels = math.prod(generator.output_shape[1:])
    with frozen(generator.generator):
        yield from sample_batches(generator, generator.latent_size, pixels, count, seed)


def _generated(
    generator: GeneratorAdapter, count: int, seed: int, resolution: int
) -> Iterator[Tensor]:
    """Batches of samples at ``resolution``, rounded to 8 bits like the real images."""
    for batch in _drawn(generator, count, seed):
        fake = F.interpolate(batch.clamp(-1.0, 1.0), scale_factor=resolution // batch.shape[-1])
        yield torch.round((fake + 1.0) * 127.5) / 127.5 - 1.0


def _batches(images: Images, count: int) -> Iterator[Tensor]:
    for some in torch.split(torch.arange(count, device="cpu"), _BATCH):
        yield images.batch(some)


def _named(distances: dict[int, float]) -> dict[str, float]:
    values = {f"{side} px": round(distance, 3) for side, distance in distances.items()}
    return values | {"mean": round(sum(distances.values()) / len(distances), 3)}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "generator"))
    width = max(len(row["generator"]) for row in rows)
    lines = [f"{'sliced Wasserstein x 1000':<{width}}" + "".join(f"{c:>9}" for c in columns)]
    for row in rows:
        cells = "".join(f"{row.get(column, ''):>9}" for column in columns)
        lines.append(f"{row['generator']:<{width}}{cells}")
    return "\n".join(lines)


def _generators(what: str) -> Iterable[str]:
    """What names a generator, or all averaged snapshots in the folder of a training."""
    if is_hub_name(what) or not is_folder("what", Path(what)):
        return [what]
    found = averaged_snapshots(Path(what))
    if not found:
        raise FileNotFoundError(
            f"what: expected a generator's file or the folder of a training, got {what}"
        )
    return map(str, found)


def _image_generator(
    name: str, what: str, device: str | None, latent_shape: Any = None
) -> GeneratorAdapter:
    """The generator of images which ``what``, the argument ``name``, names."""
    generator = find_generator(what, device, name)
    if isinstance(generator, ProgressiveGenerator):
        generator = generator.float()  # a file may have half precision
    return adapter_of_images(generator, latent_shape, device, name)


def _images(arguments: argparse.Namespace, resolution: int, progress: bool) -> Images:
    return open_images(
        arguments.data,
        resolution,
        fit=arguments.fit,
        channels=arguments.channels,
        cache=arguments.cache,
        progress=progress,
    )


COMMANDS: dict[str, Callable[[argparse.Namespace, bool], bool]] = {
    "train": _train,
    "sample": _sample,
    "swd": _swd,
}
"""Each takes the arguments and whether to show progress, and returns whether it was completed."""

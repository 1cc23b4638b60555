"""`cogen-fast evaluate`: from arguments to a study, in one process or as one of several."""

from __future__ import annotations

import argparse
from typing import Any

from torch import Tensor, nn

from cogen_fast.cli.generator import Generator, find_generator, probe
from cogen_fast.experiments.evaluate.data import Data, of_generator, open_data
from cogen_fast.experiments.evaluate.evaluate import Method, Study, evaluate, unfinished
from cogen_fast.experiments.evaluate.methods import method_named
from cogen_fast.experiments.evaluate.report import report
from cogen_fast.experiments.evaluate.tasks import PUBLISHED, Block, Published, Task, task_named
from cogen_fast.experiments.evaluate.tuning import Grid, tuned, untuned
from cogen_fast.generators.progressive import RESOLUTIONS
from cogen_fast.methods.presets import PRESETS
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.support.arguments import check_choice, check_count, check_seed, check_whole
from cogen_fast.support.files import wait_for_files
from cogen_fast.training.distributed import Processes, process_group

OWN = "own"
_OWN_IMAGES = 100_000  # an arbitrary number, as each image is computed on demand


def run(arguments: argparse.Namespace, progress: bool) -> None:
    """Do this process's part of the study; the main process writes and prints the tables."""
    with process_group(arguments.device) as processes:
        _run(arguments, processes, progress and processes.is_main)


def _run(arguments: argparse.Namespace, processes: Processes, progress: bool) -> None:
    published = _published(arguments)
    methods = _methods(arguments)
    task = _task(arguments, published)
    check_seed(arguments.seed)
    check_whole("pictures", arguments.pictures, 0)
    grid = Grid(arguments.tuning_images, steps=arguments.tuning_steps)
    generator = find_generator(arguments.generator, arguments.device)
    output = probe(generator, arguments.latent_shape, arguments.device)
    if published is not None and arguments.task is None:
        _check_size(arguments.preset, published, output)
    data = _data(arguments, generator, output)
    study = Study(
        task,
        methods,
        _common(arguments, generator),
        seed=arguments.seed,
        group=arguments.group,
        added_noise=arguments.added_noise,
    )
    count = _count(arguments, data, study)
    part: dict[str, Any] = {
        "images": count,
        "rank": processes.rank,
        "world_size": processes.size,
        "progress": progress,
    }
    study = tuned(generator, data, study, arguments.out, **part, grid=grid, wait=processes.wait)
    evaluate(generator, data, study, arguments.out, **part)
    processes.wait()
    if not processes.is_main:
        return
    wait_for_files(lambda: unfinished(arguments.out, study, count))
    table = report(data, study, arguments.out, images=count, pictures=arguments.pictures)
    if not arguments.quiet:
        print(table)
        print(f"wrote {arguments.out / 'records.jsonl'}, table.txt, table.csv, grid-*.png")


def _published(arguments: argparse.Namespace) -> Published | None:
    if arguments.preset is None:
        return None
    return PUBLISHED[check_choice("preset", arguments.preset, tuple(PUBLISHED))]


def _task(arguments: argparse.Namespace, published: Published | None) -> Task:
    if arguments.task is not None:
        return task_named(arguments.task)
    return Block() if published is None else published.task


def _check_size(preset: str, published: Published, output: Tensor) -> None:
    if max(output.shape[-2:]) != published.resolution:
        raise ValueError(
            f"preset: {preset} is for images of {published.resolution} px, got a generator of "
            f"{_shown(output)}; give --task to take its settings only"
        )


def _methods(arguments: argparse.Namespace) -> tuple[Method, ...]:
    rates = dict(arguments.learning_rates)
    stray = [name for name in rates if name not in arguments.methods]
    if stray:
        raise ValueError(
            f"learning_rates: expected methods among {', '.join(arguments.methods)}, got {stray[0]}"
        )
    return tuple(
        method_named(
            name,
            preset=arguments.preset,
            chains=arguments.chains,
            budget=arguments.budget,
            starts=arguments.starts,
            learning_rate=rates.get(name),
        )
        for name in arguments.methods
    )


def _common(arguments: argparse.Namespace, generator: Generator) -> dict[str, Any]:
    """The options of all methods, which have the same misfit."""
    given = {
        "noise_std": arguments.noise_std,
        "latent_shape": arguments.latent_shape,
        "max_batch": arguments.max_batch,
        # A module is on its device already.
        "device": None if isinstance(generator, nn.Module) else arguments.device,
    }
    if arguments.preset is not None and arguments.noise_std is None:
        given["weight"] = PRESETS[arguments.preset].weight
    return {name: value for name, value in given.items() if value is not None}


def _data(arguments: argparse.Namespace, generator: Generator, output: Tensor) -> Data:
    """The images, with the size of the generator's images."""
    if arguments.data == OWN:
        return _own_images(arguments, generator)
    channels, height, width = output.shape[1:]
    if height != width or width not in RESOLUTIONS:
        raise ValueError(
            "generator: expected square images whose side is a power of two, to which data can be "
            f"fitted, got {_shown(output)}"
        )
    return open_data(
        arguments.data, width, channels=channels, fit=arguments.fit, cache=arguments.cache
    )


def _count(arguments: argparse.Namespace, data: Data, study: Study) -> int:
    """The number of images to evaluate: as given, or all except those for tuning."""
    if arguments.images is not None:
        return int(arguments.images)
    return len(data) - (arguments.tuning_images if untuned(study) else 0)


def _own_images(arguments: argparse.Namespace, generator: Generator) -> Data:
    check_count("images", arguments.images)  # required, as a generator has no last image
    with frozen(generator):
        adapter = GeneratorAdapter(generator, arguments.latent_shape, arguments.device)

    def images(latents: Tensor) -> Tensor:
        with frozen(generator):
            return adapter(latents.to(adapter.device))

    other = (arguments.seed + 1) % 2**64  # not the sampler's, as chains would start at the truth
    return of_generator(images, adapter.latent_size, _OWN_IMAGES, other)


def _shown(output: Tensor) -> str:
    return f"{output.shape[-2]} x {output.shape[-1]}"

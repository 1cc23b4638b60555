"""The command line `cogen-fast COMMAND`, with one function per command."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from torch import Tensor

import cogen_fast
from cogen_fast.cli.generator import find_generator, probe
from cogen_fast.cli.images import box_mask, numbered_names, read_picture, write_png
from cogen_fast.cli.parser import build_parser
from cogen_fast.experiments import demo
from cogen_fast.methods.loop import CTRL_C
from cogen_fast.methods.presets import PRESETS
from cogen_fast.methods.settings import OPTIONS, keywords
from cogen_fast.problem.observation import AveragePool, Stride
from cogen_fast.results.result import Result
from cogen_fast.support.arguments import check_file, check_folder
from cogen_fast.support.files import check_readable
from cogen_fast.support.memory import is_out_of_memory
from cogen_fast.support.reporting import LOGGER

_OK, _MISTAKE, _NOT_SAMPLES, _INTERRUPTED = 0, 2, 3, 130
# ImportError: a requested backend or library is not available.
_MISTAKES = (ValueError, TypeError, OSError, ImportError, OverflowError, MemoryError)
_ESTIMATE = "estimate.png"
_FILES = ("grid.png", "result.npz", "result.json", _ESTIMATE)
_CHAIN = re.compile(r"chain_\d{3,}\.png")
_SAMPLER_OPTIONS = (
    *("method", "chains", "budget", "polish", "noise_std", "weight", "latent_shape", "seed"),
    *("checkpoint", *OPTIONS),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns 0 for success, 2 for an error of the user, 3 where the chains are not samples of the
    posterior, and 130 after Ctrl-C.
    """
    with _one_line_warnings(), _logged():
        try:
            arguments = build_parser().parse_args(argv)
            return _COMMANDS[arguments.command](arguments)
        except BrokenPipeError:  # the reader of the output has stopped reading (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _OK
        except _MISTAKES as error:
            return _mistake(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return _mistake(error)
        except KeyboardInterrupt:
            _say("interrupted")
            return _INTERRUPTED


def _mistake(error: Exception) -> int:
    _say(f"error: {_one_line(error)}")
    return _MISTAKE


def _say(text: str) -> None:
    print(f"cogen-fast: {text}", file=sys.stderr)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        _say(f"warning: {_one_line(message)}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # raised as an error here
        warnings.showwarning = show
        yield


@contextmanager
def _logged() -> Iterator[None]:
    """Show what the package logs, such as how far a run has come, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("cogen-fast: %(message)s"))
    before = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)


def _inpaint(arguments: argparse.Namespace) -> int:
    _check_out(arguments.out, arguments.overwrite)
    picture = read_picture("image", arguments.image)
    masking = None if arguments.mask is None else read_picture("mask", arguments.mask)
    generator = _generator(arguments)
    channels, height, width = probe(generator, **_probing(arguments)).shape[1:]
    size = (width, height)
    image = picture.fit(size, resize=arguments.resize).to_channels(channels).to_tensor()
    if masking is None:
        mask = box_mask(arguments.box, size)
    else:
        mask = masking.fit_like(size, picture).to_mask()
    return _sample(arguments, lambda options: cogen_fast.inpaint(generator, image, mask, **options))


def _super_resolve(arguments: argparse.Namespace) -> int:
    _check_out(arguments.out, arguments.overwrite)
    operator = {"average": AveragePool, "stride": Stride}[arguments.downsample](arguments.factor)
    picture = read_picture("image", arguments.image)
    generator = _generator(arguments)
    output: Tensor = probe(generator, **_probing(arguments))
    channels, height, width = operator.measured_shape(output)
    small = picture.fit((width, height), resize=arguments.resize).to_channels(channels).to_tensor()
    return _sample(
        arguments,
        lambda options: cogen_fast.super_resolve(
            generator, small, arguments.factor, downsample=arguments.downsample, **options
        ),
    )


def _generator(arguments: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """The generator, in the latent space and with the condition that are asked for."""
    generator = find_generator(arguments.generator, arguments.device)
    asked = {
        "space": arguments.space,
        "noise": arguments.noise_maps,
        "conditions": arguments.condition,
        "output": arguments.output_part,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return cogen_fast.Prior(generator, **given) if given else generator


def _probing(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"latent_shape": arguments.latent_shape, "device": arguments.device}


def _check_out(
    folder: Path,
    overwrite: bool,
    marks: Sequence[str] = ("result.json",),
    names: Sequence[str] = _FILES,
) -> None:
    """Check before hours of sampling that the result can be written in the end.

    A file among ``marks`` shows that the folder holds a result already. The files to be written
    have ``names``, or those of chains.
    """
    check_folder("out", folder)
    if not overwrite and any((folder / mark).exists() for mark in marks):
        raise FileExistsError(f"out: {folder} holds a result already; give --overwrite")
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and (entry.name in names or _CHAIN.fullmatch(entry.name)):
            raise IsADirectoryError(f"out: expected no folder in place of the file {entry}")


def _sample(arguments: argparse.Namespace, task: Callable[[dict[str, Any]], Result]) -> int:
    given = {name: getattr(arguments, name) for name in _SAMPLER_OPTIONS}
    options = keywords({name: value for name, value in given.items() if value is not None})
    options["progress"] = not arguments.quiet
    checkpoint: Path | None = arguments.checkpoint
    try:
        result = task(options)
    except KeyboardInterrupt:
        if checkpoint is None or not checkpoint.exists():
            raise
        _say(f"interrupted; the run is saved in {checkpoint}, and the same command continues it")
        return _INTERRUPTED
    _save(result, arguments)
    if result.complete and not result.failures():
        return _OK
    if result.complete:
        _say("the images are not samples of the posterior: see the warnings")
        return _NOT_SAMPLES
    _say(
        f"the run ended at beta {result.beta_reached:.3g}; its chains, which are not yet samples "
        f"of the posterior, are saved in {arguments.out}"
    )
    return _INTERRUPTED if result.reasons["complete"] == CTRL_C else _NOT_SAMPLES


def _save(result: Result, arguments: argparse.Namespace) -> None:
    folder = result.save(arguments.out, overwrite=arguments.overwrite)
    for stale in folder.iterdir():
        if _CHAIN.fullmatch(stale.name):
            stale.unlink()
    images = (result.images if result.completed is None else result.completed)[0]
    names = numbered_names("chain", len(images))
    for name, image in zip(names, images, strict=True):
        write_png(folder / name, image.numpy())
    write_png(folder / _ESTIMATE, result.pasted(result.estimate)[0].numpy())
    if not arguments.quiet:
        chains = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        print(result.overview())
        print(f"wrote {folder / 'grid.png'}, {_ESTIMATE}, result.npz, result.json, {chains}")


def _convert(arguments: argparse.Namespace) -> int:
    target: Path = arguments.target
    if target.suffix != ".safetensors":
        raise ValueError(f"target: expected a name that ends in .safetensors, got {target}")
    check_file("target", target)
    if target.exists() and not arguments.overwrite:
        raise FileExistsError(f"target: {target} exists already; give --overwrite")
    check_readable("source", arguments.source)
    generator = cogen_fast.load_generator(arguments.source, average=not arguments.raw)
    if arguments.half:
        generator = generator.half()
        if not all(tensor.isfinite().all() for tensor in generator.state_dict().values()):
            raise ValueError("half: expected weights of at most 65,504, got larger ones")
    cogen_fast.save_generator(generator, target)
    shape = " x ".join(map(str, generator.output_shape))
    print(f"wrote {target}: {type(generator).__name__}, {generator.latent_size} to {shape}")
    return _OK


def _info(arguments: argparse.Namespace) -> int:
    print(f"cogen-fast {cogen_fast.__version__}")
    print(cogen_fast.backends())
    print("presets:")
    for name, preset in PRESETS.items():
        text = f"{name:<22}{preset.description}"
        print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent=" " * 24))
    return _OK


def _demo(arguments: argparse.Namespace) -> int:
    print(demo.run(arguments.out, arguments.garment, arguments.seed, sys.stderr.isatty()))
    return _OK


def _reproduce(arguments: argparse.Namespace) -> int:
    studies = {"synthetic": _synthetic, "images": _images, "presets": _presets}
    return studies[arguments.study](arguments)


def _images(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.experiments.images import study as image_study

    if arguments.generator is None:
        scope = image_study.shipped()
    else:
        generator = find_generator(arguments.generator, None)
        probe(generator, arguments.latent_shape, None)
        photographs = arguments.data is not None
        scope = image_study.of_one(generator, arguments.latent_shape, photographs=photographs)
    _check_out(arguments.out, True, names=image_study.files(scope))
    effort = image_study.effort_of(arguments.images, arguments.quick, arguments.nuts)
    report = image_study.reproduce(
        arguments.out,
        arguments.data,
        arguments.seed,
        scope=scope,
        effort=effort,
        progress=sys.stderr.isatty(),
    )
    print(report)
    return _OK


def _presets(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.experiments.images import published

    _check_out(arguments.out, True)
    print(published.reproduce(arguments.out, arguments.preset, progress=sys.stderr.isatty()))
    return _OK


def _synthetic(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.experiments.synthetic import study as synthetic

    _check_out(arguments.out, arguments.overwrite, synthetic.FILES, synthetic.FILES)
    print(
        synthetic.reproduce(
            arguments.out,
            arguments.variance,
            arguments.seed,
            arguments.generator,
            progress=sys.stderr.isatty(),
        )
    )
    return _OK


def _training(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.cli import training

    quiet = arguments.quiet or not sys.stderr.isatty()
    done: bool = training.COMMANDS[arguments.command](arguments, not quiet)
    return _OK if done else _INTERRUPTED


def _evaluation(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.cli import evaluate

    try:
        evaluate.run(arguments, not arguments.quiet and sys.stderr.isatty())
    except KeyboardInterrupt:
        _say("interrupted; the same command continues the study")
        return _INTERRUPTED
    return _OK


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "inpaint": _inpaint,
    "super-resolve": _super_resolve,
    "convert": _convert,
    "train": _training,
    "sample": _training,
    "swd": _training,
    "evaluate": _evaluation,
    "info": _info,
    "demo": _demo,
    "reproduce": _reproduce,
}

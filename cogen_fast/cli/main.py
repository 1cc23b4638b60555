"""The command line `cogen-fast COMMAND`, with one function per command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cogen_fast
from cogen_fast.cli.filling import fill
from cogen_fast.cli.generator import find_generator, probe
from cogen_fast.cli.parser import build_parser
from cogen_fast.cli.picture_tasks import Inpainting, SuperResolution
from cogen_fast.cli.saving import check_out
from cogen_fast.cli.telling import (
    FAULTY,
    INTERRUPTED,
    MISTAKE,
    MISTAKES,
    OK,
    one_line,
    one_line_warnings,
    say,
)
from cogen_fast.experiments import demo
from cogen_fast.generators.cards import card_path, checked_licence
from cogen_fast.methods.presets import PRESETS
from cogen_fast.support.arguments import check_file
from cogen_fast.support.files import check_readable
from cogen_fast.support.memory import is_out_of_memory
from cogen_fast.support.reporting import LOGGER


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns 0 for success, 1 where `doctor` found a fault, 2 for an error of the user, 3 where the
    chains are not samples of the posterior, and 130 after Ctrl-C.
    """
    with one_line_warnings(), _logged():
        try:
            arguments = build_parser().parse_args(argv)
            return _COMMANDS[arguments.command](arguments)
        except BrokenPipeError:  # the reader of the output has stopped reading (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        except MISTAKES as error:
            return _mistake(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return _mistake(error)
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED


def _mistake(error: Exception) -> int:
    say(f"error: {one_line(error)}")
    return MISTAKE


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
    return fill(arguments, Inpainting(arguments.box, arguments.resize))


def _super_resolve(arguments: argparse.Namespace) -> int:
    problem = SuperResolution(arguments.factor, arguments.downsample, arguments.resize)
    return fill(arguments, problem)


def _convert(arguments: argparse.Namespace) -> int:
    target: Path = arguments.target
    if target.suffix != ".safetensors":
        raise ValueError(f"target: expected a name that ends in .safetensors, got {target}")
    check_file("target", target)
    if target.exists() and not arguments.overwrite:
        raise FileExistsError(f"target: {target} exists already; give --overwrite")
    check_readable("source", arguments.source)
    checked_licence(arguments.license)
    generator = cogen_fast.load_generator(arguments.source, average=not arguments.raw)
    if arguments.half:
        generator = generator.half()
        if not all(tensor.isfinite().all() for tensor in generator.state_dict().values()):
            raise ValueError("half: expected weights of at most 65,504, got larger ones")
    new_card = not os.path.lexists(card_path(target))
    cogen_fast.save_generator(generator, target, license=arguments.license)
    shape = " x ".join(map(str, generator.output_shape))
    print(f"wrote {target}: {type(generator).__name__}, {generator.latent_size} to {shape}")
    if new_card:
        print(f"wrote {card_path(target)}: its model card, with what is left for you to fill in")
    return OK


def _info(arguments: argparse.Namespace) -> int:
    print(f"cogen-fast {cogen_fast.__version__}")
    print(cogen_fast.backends())
    print("presets:")
    for name, preset in PRESETS.items():
        text = f"{name:<22}{preset.description}"
        print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent=" " * 24))
    return OK


def _doctor(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.cli import doctor

    return OK if doctor.run() else FAULTY


def _demo(arguments: argparse.Namespace) -> int:
    print(demo.run(arguments.out, arguments.garment, arguments.seed, sys.stderr.isatty()))
    return OK


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
    check_out(arguments.out, True, names=image_study.files(scope))
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
    return OK


def _presets(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.experiments.images import published

    check_out(arguments.out, True)
    print(published.reproduce(arguments.out, arguments.preset, progress=sys.stderr.isatty()))
    return OK


def _synthetic(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.experiments.synthetic import study as synthetic

    check_out(arguments.out, arguments.overwrite, synthetic.FILES, synthetic.FILES)
    print(
        synthetic.reproduce(
            arguments.out,
            arguments.variance,
            arguments.seed,
            arguments.generator,
            progress=sys.stderr.isatty(),
        )
    )
    return OK


def _training(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.cli import training

    quiet = arguments.quiet or not sys.stderr.isatty()
    done: bool = training.COMMANDS[arguments.command](arguments, not quiet)
    return OK if done else INTERRUPTED


def _evaluation(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.cli import evaluate

    try:
        evaluate.run(arguments, not arguments.quiet and sys.stderr.isatty())
    except KeyboardInterrupt:
        say("interrupted; the same command continues the study")
        return INTERRUPTED
    return OK


def _app(arguments: argparse.Namespace) -> int:
    # Imported here, as other commands do not need it.
    from cogen_fast.cli import app

    app.run(arguments)
    return OK


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "inpaint": _inpaint,
    "super-resolve": _super_resolve,
    "app": _app,
    "convert": _convert,
    "train": _training,
    "sample": _training,
    "swd": _training,
    "evaluate": _evaluation,
    "info": _info,
    "doctor": _doctor,
    "demo": _demo,
    "reproduce": _reproduce,
}

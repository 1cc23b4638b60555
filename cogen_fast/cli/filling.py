"""`inpaint` and `super-resolve`: one picture, or several with one load of the generator."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import cogen_fast
from cogen_fast.cli import records
from cogen_fast.cli.contact_sheet import write_sheet
from cogen_fast.cli.generator import Generator, adapter_of_images, find_generator
from cogen_fast.cli.picture_tasks import PictureTask, Posed
from cogen_fast.cli.saving import SUMMARY, check_out, save
from cogen_fast.cli.sources import Masks, Source, check_apart, find_images, is_single
from cogen_fast.cli.telling import (
    INTERRUPTED,
    MISTAKE,
    MISTAKES,
    NOT_SAMPLES,
    OK,
    one_line,
    one_line_warnings,
    say,
)
from cogen_fast.cli.together import shared
from cogen_fast.methods.loop import CTRL_C
from cogen_fast.methods.settings import OPTIONS, keywords
from cogen_fast.results.result import Result

_PROCESSES = "processes"  # decided by how the command was started
_SAMPLER_OPTIONS = (
    *("method", "chains", "budget", "polish", "noise_std", "weight", "latent_shape", "seed"),
    *("checkpoint", *(name for name in OPTIONS if name != _PROCESSES)),
)
_SHEET = "sheet.png"
_CHECKPOINT = "unfinished.safetensors"


@dataclass(frozen=True)
class _Loaded:
    """A generator, a few of its outputs, and its fingerprint."""

    generator: Generator
    output: Tensor
    fingerprint: str


def fill(arguments: argparse.Namespace, task: PictureTask) -> int:
    """Complete the pictures that ``--image`` names. Returns the exit status.

    Processes that ``torchrun`` started share the evaluations of the generator.
    """
    return shared(
        arguments.device,
        task,
        partial(_fill, arguments),
        lambda: _load(arguments).generator,
    )


def _fill(arguments: argparse.Namespace, task: PictureTask) -> int:
    if is_single(arguments.image):
        return _fill_one(arguments, task)
    return _fill_several(arguments, task)


def _fill_one(arguments: argparse.Namespace, task: PictureTask) -> int:
    check_out(arguments.out, arguments.overwrite)
    source = _masks(arguments).source(arguments.image[0])
    pictures = task.read(source)
    loaded = _load(arguments)
    posed = task.pose(loaded.generator, loaded.output, pictures)
    record = records.record_of(arguments, source, loaded.fingerprint)
    return _sample(arguments, _recorded(posed, record))


def _fill_several(arguments: argparse.Namespace, task: PictureTask) -> int:
    if arguments.checkpoint is not None:
        raise ValueError(
            "checkpoint: expected none with several images, whose unfinished runs are saved in "
            f"their own folders, got {arguments.checkpoint}"
        )
    check_out(arguments.out, True, names=(_SHEET,))
    images, masks = find_images(arguments.image), _masks(arguments)
    check_apart(arguments.out, arguments.image, masks.mask)
    loaded = _load(arguments)
    task.shape(loaded.output)  # raises what would be wrong with every picture
    statuses: dict[Path, int] = {}
    for number, image in enumerate(images, 1):
        about = f"{image} ({number} of {len(images)})"
        proven = OK in statuses.values() or NOT_SAMPLES in statuses.values()
        with one_line_warnings(f"{image.stem}: "):
            status = _fill_next(arguments, task, loaded, masks, image, about, proven)
        statuses[arguments.out / image.stem] = status
        if status == INTERRUPTED:
            return INTERRUPTED
    return _end(arguments, statuses)


def _fill_next(
    arguments: argparse.Namespace,
    task: PictureTask,
    loaded: _Loaded,
    masks: Masks,
    image: Path,
    about: str,
    proven: bool,
) -> int:
    """Complete one of several pictures, unless that has been done. Returns its exit status.

    A picture that cannot be read is told and left out. So is one that cannot be sampled, if the
    options are ``proven`` to be right by another one or the picture has been begun; otherwise the
    options are at fault, and the error is raised.
    """
    try:
        source = masks.source(image)
        own = _own_arguments(arguments, source)
        record = records.record_of(arguments, source, loaded.fingerprint)
        if (status := _status_of_finished(own, record, arguments.overwrite)) is not None:
            _tell(arguments, f"{about}: finished already")
            return status
        posed = task.pose(loaded.generator, loaded.output, task.read(source))
        check_out(own.out, True)
        own.out.mkdir(parents=True, exist_ok=True)
        if arguments.overwrite:
            own.checkpoint.unlink(missing_ok=True)
    except MISTAKES as error:
        return _left_out(about, error)
    _tell(arguments, about)
    begun = own.checkpoint.exists()
    try:
        status = _sample(own, _recorded(posed, record), summary=False)
    except ConnectionError:  # another process of the command has ended
        raise
    except MISTAKES as error:
        with suppress(OSError):  # it holds something
            own.out.rmdir()
        if not proven and not begun:
            raise
        return _left_out(about, error)
    # Without a time limit, what ended a run before its time would do so again.
    if status == OK or (status == NOT_SAMPLES and own.time_limit is None):
        own.checkpoint.unlink(missing_ok=True)
    return status


def _own_arguments(arguments: argparse.Namespace, source: Source) -> argparse.Namespace:
    """The arguments of a command for one of several pictures alone, in a folder of its own."""
    folder = arguments.out / source.image.stem
    own = {"out": folder, "checkpoint": folder / _CHECKPOINT, "overwrite": True}
    return argparse.Namespace(**{**vars(arguments), **own})


def _status_of_finished(
    own: argparse.Namespace, record: dict[str, Any], overwrite: bool
) -> int | None:
    """The exit status that belongs to a finished result of this picture; None if there is none.

    FileExistsError where there is a result of other options or files that may not be overwritten.
    """
    path = own.out / SUMMARY
    if not path.exists():
        return None
    try:
        same = records.answers(records.saved_summary(path), record)
    except ValueError:
        same = False
    if not same:
        if overwrite:
            return None
        raise FileExistsError(
            f"out: {own.out} holds a result of other options or files; give --overwrite"
        )
    if _goes_on(own):
        return None
    result = Result.load(own.out)
    return OK if result.complete and not result.failures() else NOT_SAMPLES


def _goes_on(own: argparse.Namespace) -> bool:
    """Whether the saved result is of a run which the same command continues."""
    summary = records.saved_summary(own.out / SUMMARY)
    unfinished = summary.get("complete") is False and own.checkpoint.exists()
    return unfinished or records.was_interrupted(summary)


def _left_out(about: str, error: Exception) -> int:
    say(f"error: {about} is left out: {one_line(error)}")
    return MISTAKE


def _tell(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        say(text)


def _end(arguments: argparse.Namespace, statuses: dict[Path, int]) -> int:
    """Write the contact sheet and tell what there is; returns the exit status of the command."""
    written = [folder for folder, status in statuses.items() if status in (OK, NOT_SAMPLES)]
    left_out = len(statuses) - len(written)
    if written:
        write_sheet(arguments.out / _SHEET, written)
        if not arguments.quiet:
            print(f"wrote {arguments.out / _SHEET} of {len(written)} images")
    if left_out:
        say(f"{left_out} of {len(statuses)} images were left out, see above")
        return MISTAKE
    return NOT_SAMPLES if NOT_SAMPLES in statuses.values() else OK


def _masks(arguments: argparse.Namespace) -> Masks:
    return Masks(vars(arguments).get("mask"))


def _load(arguments: argparse.Namespace) -> _Loaded:
    """The generator, in the latent space and with the condition that are asked for."""
    generator = find_generator(arguments.generator, arguments.device)
    asked = {
        "space": arguments.space,
        "noise": arguments.noise_maps,
        "conditions": arguments.condition,
        "output": arguments.output_part,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if given:
        generator = cogen_fast.Prior(generator, **given)
    adapter = adapter_of_images(generator, arguments.latent_shape, arguments.device)
    return _Loaded(generator, adapter.probe_output, adapter.fingerprint())


def _recorded(posed: Posed, record: dict[str, Any]) -> Posed:
    """``posed``, whose result has the record of what was asked for among its settings."""

    def solve(options: dict[str, Any]) -> Result:
        result = posed.solve(options)
        return replace(result, settings={**result.settings, records.COMMAND_LINE: record})

    return replace(posed, solve=solve)


def _sample(arguments: argparse.Namespace, posed: Posed, summary: bool = True) -> int:
    given = {name: getattr(arguments, name) for name in _SAMPLER_OPTIONS}
    options = keywords({name: value for name, value in given.items() if value is not None})
    options["progress"] = not arguments.quiet
    checkpoint: Path | None = arguments.checkpoint
    try:
        result = posed.solve(options)
    except KeyboardInterrupt:
        if checkpoint is None or not checkpoint.exists():
            raise
        say(f"interrupted; the run is saved in {checkpoint}, and the same command continues it")
        return INTERRUPTED
    completed = None if posed.pasted is None else posed.pasted(result)
    written = save(result, arguments.out, arguments.overwrite, completed)
    if not arguments.quiet:
        if summary:
            print(result.overview())
        print(written)
    if result.complete and not result.failures():
        return OK
    if result.complete:
        say("the images are not samples of the posterior: see the warnings")
        return NOT_SAMPLES
    say(
        f"the run ended at beta {result.beta_reached:.3g}; its chains, which are not yet samples "
        f"of the posterior, are saved in {arguments.out}"
    )
    return INTERRUPTED if result.reasons["complete"] == CTRL_C else NOT_SAMPLES

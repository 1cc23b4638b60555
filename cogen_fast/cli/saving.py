"""The folder of a result: that it can be written, and what is written into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cogen_fast.cli.images import numbered_names, write_levels, write_png
from cogen_fast.results.result import Result
from cogen_fast.support.arguments import check_folder

SUMMARY = "result.json"
"""The file that shows that a folder holds a result."""
_COMPLETED, _ESTIMATE, _RAW = "completed.png", "estimate.png", "raw"
_FILES = ("grid.png", "result.npz", SUMMARY, _ESTIMATE, _COMPLETED)
_CHAIN = re.compile(r"chain_\d{3,}\.png")


def check_out(
    folder: Path,
    overwrite: bool,
    marks: Sequence[str] = (SUMMARY,),
    names: Sequence[str] = _FILES,
) -> None:
    """Check before hours of sampling that the result can be written in the end.

    A file among ``marks`` shows that the folder holds a result already. The files to be written
    have ``names``, or those of chains; without ``overwrite`` none of them may be there.
    """
    check_folder("out", folder)
    if not overwrite and any((folder / mark).exists() for mark in marks):
        raise FileExistsError(f"out: {folder} holds a result already; give --overwrite")
    if (folder / _RAW).is_file():
        raise NotADirectoryError(f"out: expected no file in place of the folder {folder / _RAW}")
    for entry in [*_entries(folder), *_entries(folder / _RAW)]:
        if entry.name not in names and not _CHAIN.fullmatch(entry.name):
            continue
        if entry.is_dir():
            raise IsADirectoryError(f"out: expected no folder in place of the file {entry}")
        if not overwrite:
            raise FileExistsError(
                f"out: {entry} would be replaced; give another folder, or --overwrite"
            )


def save(
    result: Result, out: Path, overwrite: bool, completed: npt.NDArray[np.uint8] | None
) -> str:
    """Write the result and its pictures; returns a line that says what was written.

    ``completed`` is the picture of the user with the estimate pasted in, if anything is pasted.
    """
    folder = result.save(out, overwrite=overwrite)
    for place in (folder, folder / _RAW):
        _remove_chains(place)
    first = _ESTIMATE
    if completed is not None:
        first = f"{_COMPLETED}, {_ESTIMATE}"
        write_levels(folder / _COMPLETED, completed)
    if result.completed is None:
        names = _write_chains(folder, result.images[0], result.estimate[0])
    else:
        names = _write_chains(folder, result.completed[0], result.pasted(result.estimate)[0])
        (folder / _RAW).mkdir(exist_ok=True)
        _write_chains(folder / _RAW, result.images[0], result.estimate[0])
        names += f", and G(z) without pasting in {_RAW}"
    return f"wrote {folder / 'grid.png'}, {first}, result.npz, {SUMMARY}, {names}"


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove_chains(folder: Path) -> None:
    for stale in _entries(folder):
        if _CHAIN.fullmatch(stale.name):
            stale.unlink()


def _write_chains(folder: Path, images: Tensor, estimate: Tensor) -> str:
    """Write one picture per chain, and the estimate; returns the chains' names."""
    names = numbered_names("chain", len(images))
    for name, image in zip(names, images, strict=True):
        write_png(folder / name, image.numpy())
    write_png(folder / _ESTIMATE, estimate.numpy())
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"

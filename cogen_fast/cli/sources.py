"""Which pictures, with which masks, a command is to complete."""

from __future__ import annotations

import stat
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cogen_fast.support.arguments import path_mode
from cogen_fast.support.pictures import endings

ALPHA = "alpha"
"""What is given in place of a mask where the transparent pixels of the picture are hidden."""


@dataclass(frozen=True)
class Source:
    """A picture, and the file of its mask, `ALPHA`, or None where it has no such mask."""

    image: Path
    mask: Path | str | None


def is_folder(name: str, path: Path) -> bool:
    """Whether there is a folder at ``path``."""
    mode = path_mode(name, path)
    return mode is not None and stat.S_ISDIR(mode)


def is_single(images: Sequence[Path]) -> bool:
    """Whether ``--image`` names one picture, whose result is written to ``--out`` itself."""
    return len(images) == 1 and not is_folder("image", images[0])


def find_images(images: Sequence[Path]) -> list[Path]:
    """The pictures that are named, and those in the folders that are named, sorted by their names.

    Raises FileNotFoundError for a folder without pictures, and ValueError for two pictures whose
    results would be in the same folder.
    """
    found: list[Path] = []
    for path in images:
        found += _pictures_in("image", path) if is_folder("image", path) else [path]
    by_name: dict[str, Path] = {}
    for path in found:
        # Some file systems ignore the case of letters, and how accents are written.
        other = by_name.setdefault(_composed(path.stem.casefold()), path)
        if other is not path:
            raise ValueError(
                f"image: expected pictures of different names, got {other} and {path}, whose "
                "results would be in the same folder"
            )
    return found


class Masks:
    """What ``--mask`` says of each picture: a file for all, a folder, `ALPHA`, or nothing."""

    def __init__(self, mask: str | None) -> None:
        self.mask: Path | str | None = mask if mask in (None, ALPHA) else Path(str(mask))
        self.in_folder: dict[str, list[Path]] | None = None
        if isinstance(self.mask, Path) and is_folder("mask", self.mask):
            self.in_folder = defaultdict(list)
            for path in _pictures_in("mask", self.mask):
                self.in_folder[_composed(path.stem)].append(path)

    def source(self, image: Path) -> Source:
        """The picture with its mask. OSError or ValueError where the folder has no, or several."""
        if self.in_folder is None:
            return Source(image, self.mask)
        found = self.in_folder.get(_composed(image.stem), [])
        if not found:
            raise FileNotFoundError(
                f"mask: expected a picture named {image.stem} in the folder {self.mask}, found none"
            )
        if len(found) > 1:
            raise ValueError(
                f"mask: expected one picture named {image.stem}, got {found[0]} and {found[1]}"
            )
        return Source(image, found[0])


def check_apart(out: Path, images: Sequence[Path], mask: Path | str | None) -> None:
    """ValueError where results are to be written into a folder from which pictures are read.

    The same command would take its own pictures for further ones to complete, or for masks.
    """
    read = [("image", path) for path in images]
    read += [("mask", mask)] if isinstance(mask, Path) else []
    for name, path in read:
        if is_folder(name, path) and path.resolve() == out.resolve():
            raise ValueError(f"out: expected another folder than {name}'s, {path}, got {out}")


def _composed(name: str) -> str:
    """A name whose accents are written in one way, where systems have two."""
    return unicodedata.normalize("NFC", name)


def _pictures_in(name: str, folder: Path) -> list[Path]:
    """The files in a folder whose names end like those of pictures, sorted; hidden ones apart."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in endings()
        and not path.name.startswith(".")
        and not is_folder(name, path)
    )
    if not found:
        raise FileNotFoundError(
            f"{name}: expected a folder with pictures, found no file in {folder} that ends in "
            f"{', '.join(sorted(endings()))}"
        )
    return found

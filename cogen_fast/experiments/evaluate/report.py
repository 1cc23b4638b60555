"""The files that are written when an evaluation is complete: records, table and pictures.

They are, in the folder of the evaluation,

    records.jsonl        a line for each image, in order
    table.txt, table.csv means over the images
    grid-000000.png      from image 0 on: truth, observed, and each method's best chain
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from cogen_fast.experiments.evaluate.data import Data
from cogen_fast.experiments.evaluate.evaluate import Study, gather
from cogen_fast.experiments.evaluate.pictures import draw
from cogen_fast.experiments.evaluate.record import Record
from cogen_fast.experiments.evaluate.table import tabulated
from cogen_fast.support.files import write_atomically

_ROWS = 8  # of images in a picture


def report(data: Data, study: Study, out: Path, *, images: int, pictures: int = 16) -> str:
    """Write the files and return the table, once no group of the first ``images`` is `unfinished`.

    ``data``, ``study`` and ``out`` are those of `evaluate`. The first ``pictures`` images that are
    not corrupt are drawn, eight to a file. Records and table cover all that ``out`` holds.
    """
    _tidy(out)
    write_atomically(out / "records.jsonl", partial(_write_lines, gather(out)))
    table = tabulated(gather(out))
    write_atomically(out / "table.csv", table.write)
    text = table.text()
    write_atomically(out / "table.txt", lambda file: file.write_text(text + "\n"))
    sound = (r["image"] for r in gather(out) if r["image"] < images and "error" not in r)
    _draw(data, study, out, list(islice(sound, pictures)))
    return text


def _write_lines(records: Iterable[Record], path: Path) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _draw(data: Data, study: Study, out: Path, images: Sequence[int]) -> None:
    """Draw the pictures, in place of those of an earlier call."""
    new = set()
    for start in range(0, len(images), _ROWS):
        shown = images[start : start + _ROWS]
        new.add(path := out / f"grid-{shown[0]:06}.png")
        write_atomically(path, partial(draw(data, study, out, shown).save, format="PNG"))
    for old in set(out.glob("grid-*.png")) - new:
        old.unlink(missing_ok=True)


def _tidy(out: Path) -> None:
    """Remove files that killed processes left; no process is writing, as all groups are done."""
    for left in (*out.glob("*/.group-*"), *out.glob("*/group-*.checkpoint.safetensors")):
        left.unlink(missing_ok=True)

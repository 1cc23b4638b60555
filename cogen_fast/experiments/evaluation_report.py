"""What is written once an evaluation is whole: all records in one file, the table, the pictures.

records.jsonl        a line for each image, in order
table.txt, table.csv means over the images
grid-000000.png      from image 0 on: truth, observed, and each method's best
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cogen_fast.experiments import evaluation_table
from cogen_fast.experiments.evaluate import Study, gather
from cogen_fast.experiments.evaluation_data import Data
from cogen_fast.experiments.evaluation_pictures import draw
from cogen_fast.files import write_atomically

_ROWS = 8  # of a picture


def report(data: Data, study: Study, out: Path, *, images: int, pictures: int = 16) -> str:
    """Write the files and give the table, when no group of the first ``images`` is `unfinished`.

    ``data``, ``study`` and ``out`` are those of `evaluate`; the first ``pictures`` images that are
    not corrupt are drawn, eight to a file. Records and table are of all that ``out`` holds.
    """
    _tidy(out)
    records = gather(out)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(out / "records.jsonl", lambda file: file.write_text(lines))
    evaluation_table.write(out / "table.csv", records)
    text = evaluation_table.text(records)
    write_atomically(out / "table.txt", lambda file: file.write_text(text + "\n"))
    sound = [r["image"] for r in records if r["image"] < images and "error" not in r]
    _draw(data, study, out, sound[:pictures])
    return text


def _draw(data: Data, study: Study, out: Path, images: Sequence[int]) -> None:
    """The pictures, in the place of those of an earlier call."""
    new = set()
    for start in range(0, len(images), _ROWS):
        shown = images[start : start + _ROWS]
        new.add(path := out / f"grid-{shown[0]:06}.png")
        write_atomically(path, partial(draw(data, study, out, shown).save, format="PNG"))
    for old in set(out.glob("grid-*.png")) - new:
        old.unlink(missing_ok=True)


def _tidy(out: Path) -> None:
    """Remove what killed processes left: all shards are there, so that nobody writes one."""
    for left in (*out.glob("*/.group-*"), *out.glob("*/group-*.checkpoint.safetensors")):
        left.unlink(missing_ok=True)

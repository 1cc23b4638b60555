"""Records and pictures of a group of images on disk, with digests of their content and owner.

A digest covers the place of a file too: the plans of the evaluation and of the method, the group,
and for a record the number of records and which one it is. So a file or record that was moved,
repeated or removed is detected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cogen_fast.experiments.evaluate.record import Record, plain
from cogen_fast.support.archives import array_of, opened_npz, write_npz
from cogen_fast.support.digests import digest_of, with_digest, without_digest
from cogen_fast.support.files import open_regular, parse_json, read_text, write_atomically

PLAN = "plan.json"
_NAME = re.compile(r"group-([0-9]+)\.jsonl")
_DIGEST = "digest"
Pictures = Mapping[str, npt.NDArray[Any]]


def shard_path(folder: Path, method: str, group: int) -> Path:
    """The path of the records of a group of images; the pictures are beside them, as ``.npz``."""
    return folder / method / f"group-{group:06d}.jsonl"


def shards(folder: Path) -> list[Path]:
    """All files of records, ordered by group."""
    found = [path for path in folder.glob("*/group-*.jsonl") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (group_of(path), path))


def group_of(shard: Path) -> int:
    """The number of a shard's group."""
    return int(shard.stem.removeprefix("group-"))


def write(shard: Path, records: Sequence[Record], pictures: Pictures) -> None:
    """Write the pictures, then the records, which mark the group as done; both plans must exist."""
    if pictures:
        whole = {**pictures, _DIGEST: np.array(_pictures_digest(shard, pictures))}
        write_atomically(shard.with_suffix(".npz"), partial(write_npz, whole))
    owners = _owners(shard, len(records))
    given = [with_digest(plain(r), owner) for r, owner in zip(records, owners, strict=True)]
    lines = [json.dumps(record, allow_nan=False) for record in given]
    write_atomically(shard, lambda file: file.write_text("\n".join(lines) + "\n"))


def read(shard: Path) -> list[Record]:
    """The records; ValueError naming the file if they were changed after they were written."""
    lines, name = read_text("out", shard).splitlines(), f"out: {shard}"
    if not lines:
        raise ValueError(f"{name} is damaged: it is empty; remove it to run its group again")
    owners = _owners(shard, len(lines))
    return [
        without_digest(name, parse_json(name, line), owner)
        for line, owner in zip(lines, owners, strict=True)
    ]


def pictures_beside(shard: Path) -> Pictures:
    """The pictures; ValueError naming the file if they were changed after they were written."""
    path = shard.with_suffix(".npz")
    name = f"out: {path}"
    with open_regular("out", path) as file:
        try:
            with opened_npz(name, file) as archive:
                held = {each: array_of(name, archive, each) for each in archive.files}
            digest = str(held.pop(_DIGEST))
        except Exception as error:  # a damaged archive raises almost anything
            raise ValueError(f"{name} is damaged: {error}") from error
    if digest != _pictures_digest(shard, held):
        raise ValueError(
            f"{name} is damaged: its content does not match its digest; remove the files of its "
            "group to run it again"
        )
    return held


def _owner(shard: Path) -> str:
    """The owner of a group's files: plans, method and group."""
    plans = [read_text("out", folder / PLAN) for folder in (shard.parent.parent, shard.parent)]
    return json.dumps([*plans, shard.parent.name, group_of(shard)])


def _owners(shard: Path, count: int) -> list[str]:
    """The owner of each of ``count`` records."""
    owner = _owner(shard)
    return [f"{owner} {number} of {count}" for number in range(count)]


def _pictures_digest(shard: Path, arrays: Pictures) -> str:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return digest_of(tensors, {"place": _owner(shard)})

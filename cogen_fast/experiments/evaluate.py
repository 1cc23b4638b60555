"""Evaluation of methods on many images, by any number of processes, killed and resumed at will.

Images come in fixed groups, each a call of every method, whatever the number of processes: the same
call shapes, and so the same results. Process ``rank`` of ``world_size`` does every
``world_size``-th group. In the folder ``out``

    plan.json                   generator, data, task: what all methods have in common
    METHOD/plan.json            the method's settings
    METHOD/group-000003.npz     the group's pictures, uint8
    METHOD/group-000003.jsonl   its records, a line for each image: the group is done

each file is written beside its place and renamed. A group that is there is never done again (but
for the last one, where it was not full and images are added); one that was under way goes on from
its sampler's checkpoint. Another plan than the one that is there is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cogen_fast import metrics
from cogen_fast.adapter import GeneratorAdapter, frozen
from cogen_fast.arguments import (
    check_choice,
    check_count,
    check_folder,
    check_number,
    check_path,
    check_seed,
    check_whole,
)
from cogen_fast.baselines import BASELINES, reconstruct
from cogen_fast.experiments.evaluation_data import Data
from cogen_fast.experiments.evaluation_record import (
    Record,
    pictures_of,
    plain,
    record_of,
    save_pictures,
)
from cogen_fast.experiments.image_tasks import Case, Task, pose
from cogen_fast.files import write_atomically
from cogen_fast.result import ANNEALED, Result
from cogen_fast.tasks import cogenerate
from cogen_fast.warn import warn_user

SOLVERS = (*ANNEALED, *BASELINES)
_FORMAT = "cogen-fast evaluation 1"
_PLAN = "plan.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Method:
    """A solver under a name: "adaptive" or "paper" (`cogenerate`), or one of `BASELINES`.

    ``options`` are the solver's, plain values; ``name`` is a folder's. ValueError otherwise.
    """

    name: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"name: expected letters, digits, _ . + and -, got {self.name!r}")
        check_choice("solver", self.solver, SOLVERS)

    def plan(self) -> dict[str, Any]:
        """What its results depend on, plain."""
        return {"solver": self.solver, "options": dict(self.options)}

    def solve(self, generator: Any, case: Case, checkpoint: Path, **options: Any) -> Result:
        """The group's `Result`; the samplers keep an unfinished run in ``checkpoint``."""
        given = {"method": self.solver} | options | dict(self.options)
        if self.solver not in ANNEALED:
            return reconstruct(generator, case.x_obs, case.operator, **given)
        return cogenerate(
            generator, case.x_obs, case.operator, checkpoint=checkpoint, progress=False, **given
        )


@dataclass(frozen=True)
class Study:
    """What is evaluated, but for generator and data.

    ``common`` are options of every method, such as ``noise_std`` or ``device``, where its own do
    not say otherwise; ``group`` images share a call. Seeds and the images' numbers are all that
    tasks and methods draw from. ``added_noise`` is the standard deviation of noise that is added to
    what is observed (none). ValueError where the methods' names are not different ones.
    """

    task: Task
    methods: tuple[Method, ...]
    common: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    group: int = 4
    added_noise: float = 0.0

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"methods: expected at least one, of different names, got {names}")
        check_seed(self.seed)
        check_count("group", self.group)
        check_number("added_noise", self.added_noise, above=0.0, zero=True)


def evaluate(
    generator: Any,
    data: Data,
    study: Study,
    out: str | Path,
    *,
    images: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> None:
    """Run every method on this process's groups of the first ``images`` images (all).

    What is there already is left alone; a corrupt image gets a record that says so, and a warning.

    Raises TypeError or ValueError naming the argument, and ValueError where ``out`` holds an
    evaluation of something else, before any work.
    """
    count = open_folder(generator, data, study, out, images, rank, world_size)
    folder = Path(out)
    for method in study.methods:
        agree_on_method(folder, method)
    work = [(ids, m) for ids in groups(study, count)[rank::world_size] for m in study.methods]
    left = [(ids, m) for ids, m in work if not is_done(folder, study, m, ids)]
    for ids, method in tqdm(left, "evaluating", unit="group", disable=not progress):
        shard = shard_path(folder, study, method, ids[0])
        _evaluate_group(generator, data, study, method, shard, ids)


def open_folder(
    generator: Any,
    data: Data,
    study: Study,
    out: str | Path,
    images: int | None,
    rank: int,
    world_size: int,
) -> int:
    """Check what `evaluate` is given, and that ``out`` is for it; how many images there are to do.

    Raises what `evaluate` raises before any work.
    """
    metrics.msssim()
    folder = check_folder("out", out)
    if not len(data):
        raise ValueError("data: expected at least one image, got none")
    count = len(data) if images is None else check_whole("images", images, 1, len(data))
    check_count("world_size", world_size)
    check_whole("rank", rank, 0, world_size - 1)
    _agree(folder / _PLAN, _plan(generator, data, study))
    return count


def gather(out: str | Path) -> list[Record]:
    """What ``out`` holds so far: a record per image, with its methods, in the order of images.

    A record has "image" (its number), "name", "task", and "methods" by name; or "error" where the
    image is corrupt. Raises FileNotFoundError where ``out`` holds no evaluation.
    """
    folder = check_path("out", out)
    task = json.loads((folder / _PLAN).read_text())["task"]
    found: dict[int, Record] = {}
    for shard in sorted(folder.glob("*/group-*.jsonl")):
        for line in shard.read_text().splitlines():
            record = json.loads(line)
            number, name = record.pop("image"), record.pop("name")
            entry = found.setdefault(number, {"image": number, "name": name, "task": task})
            if "error" in record:
                entry["error"] = record["error"]
            else:
                entry.setdefault("methods", {})[shard.parent.name] = record
    return [found[number] for number in sorted(found)]


def posed(study: Study, truths: Mapping[int, Tensor]) -> Case:
    """What the study's methods see of images ``(C, H, W)``, by their numbers."""
    images = torch.stack(list(truths.values()))
    return pose(study.task, images, list(truths), study.seed, study.added_noise)


def groups(study: Study, images: int) -> list[range]:
    """The groups that the first ``images`` images come in, the last one perhaps not full."""
    starts = range(0, images, study.group)
    return [range(start, min(images, start + study.group)) for start in starts]


def is_done(folder: Path, study: Study, method: Method, ids: range) -> bool:
    """Whether the records of a group are there."""
    shard = shard_path(folder, study, method, ids[0])
    return shard.exists() and shard.read_bytes().count(b"\n") >= len(ids)


def _plan(generator: Any, data: Data, study: Study) -> dict[str, Any]:
    """What all methods have in common. The number of images is not in it: it may grow."""
    shape, device = study.common.get("latent_shape"), study.common.get("device")
    with frozen(generator):
        fingerprint = GeneratorAdapter(generator, shape, device).fingerprint()
    return {
        "generator": fingerprint,
        "data": hashlib.sha256(json.dumps([data.names, data.origin]).encode()).hexdigest(),
        "task": str(study.task),
        "common": dict(study.common),
        "seed": study.seed,
        "group": study.group,
        "added_noise": study.added_noise,
    }


def agree_on_method(folder: Path, method: Method) -> None:
    """Write the method's plan down, or see that it is the one that is there; ValueError else."""
    _agree(folder / method.name / _PLAN, method.plan())


def _agree(path: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan down, or see that it is the one that is there; ValueError where it is not."""
    text = json.dumps({"format": _FORMAT, **plan}, indent=2, sort_keys=True, default=repr)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write_text(text + "\n"))
        return
    there, given = json.loads(path.read_text()), json.loads(text)
    differing = [key for key in given if there.get(key) != given[key]]
    if differing:
        key = differing[0]
        raise ValueError(
            f"out: {path.parent} holds an evaluation with {key} {there.get(key)!r}, "
            f"got {given[key]!r}"
        )


def shard_path(folder: Path, study: Study, method: Method, image: int) -> Path:
    """Where the records of an image's group are; the pictures lie beside them, as ``.npz``."""
    return folder / method.name / f"group-{image // study.group:06d}.jsonl"


def _evaluate_group(
    generator: Any, data: Data, study: Study, method: Method, shard: Path, ids: Sequence[int]
) -> None:
    """One method on one group; the shard with the records comes last."""
    truths, records = _loaded(data, ids)
    if truths:
        case = posed(study, truths)
        checkpoint = shard.with_suffix(".checkpoint.safetensors")
        start = time.monotonic()
        result = method.solve(
            generator,
            case,
            checkpoint,
            seed=study.seed,
            observation_ids=list(truths),
            **study.common,
        )
        seconds = (time.monotonic() - start) / len(truths)
        for b, number in enumerate(truths):
            found = record_of(result, case, b) | {"seconds": round(seconds, 3)}
            records[number] = {"image": number, "name": data.names[number], **found}
        pictures = {"image": np.array(list(truths)), **pictures_of(result)}
        write_atomically(shard.with_suffix(".npz"), partial(save_pictures, pictures))
    lines = [json.dumps(plain(records[number]), allow_nan=False) for number in sorted(records)]
    write_atomically(shard, lambda file: file.write_text("\n".join(lines) + "\n"))
    if truths:
        checkpoint.unlink(missing_ok=True)


def _loaded(data: Data, ids: Sequence[int]) -> tuple[dict[int, Tensor], dict[int, Record]]:
    """The group's images by number, and records of those that are corrupt."""
    truths: dict[int, Tensor] = {}
    records: dict[int, Record] = {}
    for number in ids:
        try:
            truths[number] = data.load(number)
        except (ValueError, OSError) as error:
            warn_user(f"image {number} ({data.names[number]}) is left out: {error}")
            name = data.names[number]
            records[number] = {"image": number, "name": name, "error": str(error)}
    return truths, records

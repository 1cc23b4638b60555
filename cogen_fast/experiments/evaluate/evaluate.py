"""Evaluation of methods on many images, by any number of processes; it can be killed and resumed.

Images come in fixed groups. A group is one call of each method, whatever the number of processes,
so the calls have the same shapes and give the same results. Process ``rank`` of ``world_size`` does
every ``world_size``-th group. In the folder ``out``

    plan.json                   generator, data, task: what all methods have in common
    METHOD/plan.json            the method's settings
    METHOD/group-000003.npz     the group's pictures, uint8
    METHOD/group-000003.jsonl   its records, a line for each image with a digest: the group is done

each file is written beside its place and renamed. A group that is done is never done again (except
the last one, if it was not full and images are added); one that was in progress continues from its
sampler's checkpoint. Plans are written with the first result; if the folder has another plan, the
evaluation is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from cogen_fast.experiments.evaluate.data import Data
from cogen_fast.experiments.evaluate.nuts import NUTS, nuts_multi
from cogen_fast.experiments.evaluate.record import (
    Record,
    pictures_of,
    record_of,
)
from cogen_fast.experiments.evaluate.shards import (
    PLAN,
    group_of,
    read,
    shard_path,
    shards,
    write,
)
from cogen_fast.experiments.evaluate.tasks import Case, Task, pose
from cogen_fast.methods.baselines import BASELINES, reconstruct
from cogen_fast.methods.settings import keywords
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.problem.compute import gathered
from cogen_fast.results import metrics
from cogen_fast.results.result import ANNEALED, Result
from cogen_fast.support.arguments import (
    check_choice,
    check_count,
    check_folder,
    check_number,
    check_path,
    check_seed,
    check_whole,
    shown,
)
from cogen_fast.support.digests import with_digest, without_digest
from cogen_fast.support.files import parse_json, read_text, write_atomically
from cogen_fast.support.warnings import warn_user, without_diagnoses
from cogen_fast.tasks import cogenerate

SOLVERS = (*ANNEALED, *BASELINES, NUTS)
_FORMAT = "cogen-fast evaluation 2"
_COMMON = "."  # stands for a method's name where a file belongs to all methods
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Method:
    """A solver under a name: "adaptive" or "paper" (`cogenerate`), one of `BASELINES`, or NUTS.

    ``options`` are those of the solver, as plain values; ``name`` is the name of its folder. Raises
    ValueError if the name or the solver does not fit.
    """

    name: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"name: expected letters, digits, _ . + and -, got {self.name!r}")
        check_choice("solver", self.solver, SOLVERS)

    def plan(self) -> dict[str, Any]:
        """What the method's results depend on, as plain values."""
        return {"solver": self.solver, "options": dict(self.options)}

    def solve(self, generator: Any, case: Case, checkpoint: Path, **options: Any) -> Result:
        """The group's `Result`; the samplers keep an unfinished run in ``checkpoint``."""
        given = options | dict(self.options)
        if self.solver == NUTS:
            return nuts_multi(generator, case.x_obs, case.operator, **gathered(given))
        given = {"method": self.solver} | given
        if self.solver not in ANNEALED:
            return reconstruct(generator, case.x_obs, case.operator, **gathered(given))
        given |= {"checkpoint": checkpoint, "progress": False}
        with without_diagnoses():
            return cogenerate(generator, case.x_obs, case.operator, **keywords(given))


@dataclass(frozen=True)
class Study:
    """What is evaluated, except the generator and the data.

    ``common`` are options of every method, such as ``noise_std`` or ``device``, which a method's
    own options override; ``group`` is the number of images in a call. Tasks and methods draw from
    the seed and the images' numbers alone. ``added_noise`` is the standard deviation of noise that
    is added to what is observed (0: none). Raises ValueError if two methods have the same name.
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
    """Run every method on this process's groups of the first ``images`` images (None: all).

    Results that exist already are left alone. A corrupt image gets a record that says so, and a
    warning.

    Raises TypeError or ValueError naming the argument, and ValueError if ``out`` holds an
    evaluation of something else, before any work; and OSError if an image cannot be read, which may
    be possible at another time.
    """
    output = open_output(generator, data, study, study.methods, out, images, rank, world_size)
    mine = groups(study, output.images)[rank::world_size]
    left = list(_unfinished_work(output.folder, study, mine))
    for ids, method in tqdm(left, "evaluating", unit="group", disable=not progress):
        _evaluate_group(generator, data, study, method, output, ids)


@dataclass(frozen=True)
class OutputFolder:
    """A folder for one evaluation, and the number of ``images`` to evaluate.

    ``plans`` is what its files called plan.json contain or will contain.
    """

    folder: Path
    images: int
    plans: Mapping[Path, str]

    def write_plans(self) -> None:
        """Write the plans; ValueError if other ones have been written meanwhile."""
        for path, plan in self.plans.items():
            _refuse_another(path, plan, self.folder)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, partial(Path.write_text, data=plan))

    def checkpoint(self, shard: Path, ids: Sequence[int]) -> Path:
        """The checkpoint of an unfinished group; its name depends on the plans and the images."""
        plans = [self.plans[each / PLAN] for each in (self.folder, shard.parent)]
        return shard.with_suffix(f".{_digest([*plans, list(ids)])[:8]}.checkpoint.safetensors")


def open_output(
    generator: Any,
    data: Data,
    study: Study,
    methods: Sequence[Method],
    out: str | Path,
    images: int | None,
    rank: int,
    world_size: int,
) -> OutputFolder:
    """Check the arguments of `evaluate`, and that ``out`` is for them and for these ``methods``.

    Raises the errors that `evaluate` raises before any work.
    """
    metrics.msssim()
    folder = check_folder("out", out)
    if not len(data):
        raise ValueError("data: expected at least one image, got none")
    count = len(data) if images is None else check_whole("images", images, 1, len(data))
    check_count("world_size", world_size)
    check_whole("rank", rank, 0, world_size - 1)
    plans = {folder / PLAN: _text(_plan(generator, data, study), _COMMON)}
    plans |= {folder / m.name / PLAN: _text(m.plan(), m.name) for m in methods}
    for path, plan in plans.items():
        _refuse_another(path, plan, folder)
    return OutputFolder(folder, count, plans)


def gather(out: str | Path) -> Iterator[Record]:
    """What ``out`` holds so far: a record per image, with its methods, in the order of images.

    Groups are read one after another, as they are asked for, so a whole data set need not fit in
    memory. A record has "image" (its number), "name", "task", and "methods" by name; or "error" if
    the image is corrupt. Raises FileNotFoundError if ``out`` holds no evaluation, and ValueError if
    a file has been changed since it was written.
    """
    folder = check_path("out", out)
    task = _read_plan(folder / PLAN, _COMMON)["task"]
    for _, methods in groupby(shards(folder), group_of):
        yield from _merged(methods, task)


def _merged(shards: Iterable[Path], task: str) -> list[Record]:
    """The records of a group of images, of which each method has a shard."""
    found: dict[int, Record] = {}
    for shard in shards:
        for record in read(shard):
            number, name = record.pop("image"), record.pop("name")
            entry = found.setdefault(number, {"image": number, "name": name, "task": task})
            if "error" in record:
                entry["error"] = record["error"]
            else:
                entry.setdefault("methods", {})[shard.parent.name] = record
    return [found[number] for number in sorted(found)]


def posed(study: Study, truths: Mapping[int, Tensor]) -> Case:
    """What the study's methods are given of images ``(C, H, W)``, by the images' numbers."""
    images = torch.stack(list(truths.values()))
    return pose(study.task, images, list(truths), study.seed, study.added_noise)


def groups(study: Study, images: int) -> list[range]:
    """The groups of the first ``images`` images; the last one need not be full."""
    starts = range(0, images, study.group)
    return [range(start, min(images, start + study.group)) for start in starts]


def unfinished(folder: Path, study: Study, images: int) -> Path | None:
    """The first file of records that is missing for the first ``images`` images, or None."""
    left = _unfinished_work(folder, study, groups(study, images))
    return next((shard_of(folder, study, method, ids[0]) for ids, method in left), None)


def _unfinished_work(
    folder: Path, study: Study, some: Iterable[range]
) -> Iterator[tuple[range, Method]]:
    """Those of the groups ``some`` that are not done, with the method that has not done them."""
    work = ((ids, method) for ids in some for method in study.methods)
    return ((ids, method) for ids, method in work if not _is_done(folder, study, method, ids))


def _is_done(folder: Path, study: Study, method: Method, ids: range) -> bool:
    """Whether the records of a group exist."""
    shard = shard_of(folder, study, method, ids[0])
    return shard.exists() and {record["image"] for record in read(shard)} >= set(ids)


def _plan(generator: Any, data: Data, study: Study) -> dict[str, Any]:
    """What all methods have in common, except the number of images, which may grow."""
    shape, device = study.common.get("latent_shape"), study.common.get("device")
    with frozen(generator):
        fingerprint = GeneratorAdapter(generator, shape, device).fingerprint()
    return {
        "generator": fingerprint,
        "data": _digest([data.names, data.origin]),
        "task": str(study.task),
        "common": dict(study.common),
        "seed": study.seed,
        "group": study.group,
        "added_noise": study.added_noise,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _text(plan: Mapping[str, Any], owner: str) -> str:
    plain_plan = json.loads(json.dumps({"format": _FORMAT, **plan}, default=repr))
    return json.dumps(with_digest(plain_plan, owner), indent=2, sort_keys=True) + "\n"


def _owner(path: Path, folder: Path) -> str:
    """The owner of a file of the evaluation in ``folder``: a method, or all methods in common."""
    return _COMMON if path.parent == folder else path.parent.name


def _refuse_another(path: Path, plan: str, folder: Path) -> None:
    """ValueError if ``path`` has another plan already."""
    if not path.exists():
        return
    owner = _owner(path, folder)
    there, given = _read_plan(path, owner), without_digest("plan", json.loads(plan), owner)
    differing = [key for key in given if there.get(key) != given[key]]
    if differing:
        key = differing[0]
        raise ValueError(
            f"out: {path.parent} holds an evaluation with {key} {there.get(key)!r}, "
            f"got {given[key]!r}"
        )


def _read_plan(path: Path, owner: str) -> dict[str, Any]:
    plan = parse_json(f"out: {path}", read_text("out", path))
    if not isinstance(plan, dict) or plan.get("format") != _FORMAT:
        raise ValueError(f"out: expected a plan of {_FORMAT!r} in {path}, got {shown(plan)}")
    return without_digest(f"out: {path}", plan, owner)


def shard_of(folder: Path, study: Study, method: Method, image: int) -> Path:
    """The path of the records of an image's group."""
    return shard_path(folder, method.name, image // study.group)


def _evaluate_group(
    generator: Any,
    data: Data,
    study: Study,
    method: Method,
    output: OutputFolder,
    ids: Sequence[int],
) -> None:
    """Run one method on one group; the file of records is written last."""
    shard = shard_of(output.folder, study, method, ids[0])
    shard.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = output.checkpoint(shard, ids)
    truths, records = _loaded(data, ids)
    pictures: dict[str, npt.NDArray[Any]] = {}
    if truths:
        found, pictures = _solved(generator, study, method, truths, checkpoint)
        for number, record in found.items():
            records[number] = {"image": number, "name": data.names[number], **record}
    output.write_plans()
    write(shard, [records[number] for number in sorted(records)], pictures)
    checkpoint.unlink(missing_ok=True)


def _solved(
    generator: Any,
    study: Study,
    method: Method,
    truths: Mapping[int, Tensor],
    checkpoint: Path,
) -> tuple[dict[int, Record], dict[str, npt.NDArray[Any]]]:
    """Records by the images' numbers, and pictures."""
    case = posed(study, truths)
    given = {"seed": study.seed, "observation_ids": list(truths), **study.common}
    start = time.monotonic()
    result = method.solve(generator, case, checkpoint, **given)
    seconds = {"seconds": round((time.monotonic() - start) / len(truths), 3)}
    records = {n: record_of(result, case, b) | seconds for b, n in enumerate(truths)}
    return records, {"image": np.array(list(truths)), **pictures_of(result)}


def _loaded(data: Data, ids: Sequence[int]) -> tuple[dict[int, Tensor], dict[int, Record]]:
    """The group's images by number, and records of those that are corrupt."""
    truths: dict[int, Tensor] = {}
    records: dict[int, Record] = {}
    for number in ids:
        try:
            truths[number] = data.load(number)
        except ValueError as error:
            warn_user(f"image {number} ({data.names[number]}) is left out: {error}")
            name = data.names[number]
            records[number] = {"image": number, "name": name, "error": str(error)}
    return truths, records

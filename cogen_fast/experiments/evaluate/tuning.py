"""Learning rates of an evaluation's optimisers, tuned once, on images that are not evaluated.

``METHOD/tuning.json`` in the folder of the evaluation has the learning rate, the log of the grid,
and what both depend on; a rate that is there is not tuned again. Each process tunes every
``world_size``-th of the methods, then waits for the others and reads their files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm

from cogen_fast.experiments.evaluate.data import Data
from cogen_fast.experiments.evaluate.evaluate import Method, OutputFolder, Study, open_output, posed
from cogen_fast.methods.baselines import BASELINES, Baseline, descends, draws_many, tune
from cogen_fast.problem.compute import gathered
from cogen_fast.results.metrics import DATA_RANGE
from cogen_fast.results.result import Result
from cogen_fast.support.arguments import check_choice, check_count
from cogen_fast.support.digests import with_digest, without_digest
from cogen_fast.support.files import parse_json, read_text, wait_for_files, write_atomically
from cogen_fast.support.warnings import warn_user

AT_THE_EDGE = "the best learning rate is the grid's largest or smallest"
"""The warning about a learning rate that a wider grid might improve."""
_OPTIMISERS = tuple(name for name in BASELINES if descends(name) and not draws_many(name))
_FILE = "tuning.json"
_SETTINGS = ("plan", "grid", "images")
_RATE = "learning_rate"


@dataclass(frozen=True)
class Grid:
    """How learning rates are chosen: on which images, and which rates are tried.

    ``images`` is the number of images, from the end of the data; ``chains`` and ``steps`` are those
    of a trial (None: the method's own); ``rates`` are the rates by the optimiser's name without
    "-multi" (default: those of `cogen_fast.methods.baselines.tune`). Raises ValueError naming what
    is wrong.
    """

    images: int = 4
    chains: int | None = None
    steps: int | None = None
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("tuning_images", self.images)
        for name, value in self.trial().items():
            check_count(f"tuning_{name}", value)
        for name in self.rates:
            check_choice("rates", name, _OPTIMISERS)

    def trial(self) -> dict[str, Any]:
        """Options of a trial that override the method's own."""
        given = {"chains": self.chains, "steps": self.steps}
        return {name: value for name, value in given.items() if value is not None}

    def rates_of(self, method: Method) -> list[float] | None:
        """The rates that are tried for a method; None for the defaults."""
        rates = self.rates.get(method.solver.removesuffix("-multi"))
        return None if rates is None else list(rates)

    def plan(self, method: Method) -> dict[str, Any]:
        """What a method's rate depends on, as plain values."""
        return {"images": self.images, **self.trial(), "rates": self.rates_of(method)}


DEFAULT = Grid()


def tuned(
    generator: Any,
    data: Data,
    study: Study,
    out: str | Path,
    *,
    images: int | None = None,
    grid: Grid = DEFAULT,
    rank: int = 0,
    world_size: int = 1,
    wait: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> Study:
    """The study with the best learning rate of its grid for every optimiser that has none.

    Rates are chosen by the mean squared error of whole images over all chains, on the same task, on
    the last ``grid.images`` images of the data that can be read. ``wait`` returns when every
    process has called it. The other arguments are those of `evaluate`; ``images`` must leave that
    many images.

    Raises the errors of `evaluate`, and ValueError if too few images are left or ``out`` has rates
    of other settings, before any work; and FileNotFoundError if the rates of another process are
    not in ``out`` after the wait.
    """
    without_rate = untuned(study)
    if not without_rate:
        return study
    output = open_tuning(generator, data, study, out, images, grid, rank, world_size)
    paths = {method.name: _path(output.folder, method) for method in without_rate}
    mine = [m for m in without_rate[rank::world_size] if not paths[m.name].exists()]
    for method in tqdm(mine, "tuning", unit="method", disable=not progress):
        truths = _readable(data, output.images, grid.images)
        log = _tune(generator, study, method, grid, truths)
        output.write_plans()
        _write(paths[method.name], log)
    wait()
    wait_for_files(lambda: next((path for path in paths.values() if not path.exists()), None))
    found = tunings(output.folder, study, output.images, grid)
    return replace(study, methods=tuple(_with_rate(m, found) for m in study.methods))


def open_tuning(
    generator: Any,
    data: Data,
    study: Study,
    out: str | Path,
    images: int | None,
    grid: Grid,
    rank: int = 0,
    world_size: int = 1,
) -> OutputFolder:
    """Check the arguments of `tuned`, and that ``out`` is for them.

    Raises the errors that `tuned` raises before any work.
    """
    without_rate = untuned(study)
    with_rate = [method for method in study.methods if method not in without_rate]
    output = open_output(generator, data, study, with_rate, out, images, rank, world_size)
    most = len(data) - grid.images
    if output.images > most:
        raise ValueError(
            f"images: expected at most {most}, which leaves {grid.images} to tune learning rates "
            f"on, got {output.images}"
        )
    tunings(output.folder, study, output.images, grid)
    return output


def untuned(study: Study) -> list[Method]:
    """The study's optimisers that have no learning rate."""
    return [m for m in study.methods if descends(m.solver) and _RATE not in m.options]


def tunings(
    out: Path, study: Study, images: int, grid: Grid = DEFAULT
) -> dict[str, dict[str, Any]]:
    """What ``out`` has for the optimisers without a learning rate: a dictionary for each, by name.

    Each is a `cogen_fast.methods.baselines.Tuning` as plain values. Raises ValueError if a file is
    damaged or belongs to another method or grid, or if a rate was tuned on some of the first
    ``images`` images.
    """
    there = [method for method in untuned(study) if _path(out, method).exists()]
    return {m.name: _tuning(_path(out, m), m, grid, images) for m in there}


def _path(out: Path, method: Method) -> Path:
    return out / method.name / _FILE


def _owner(path: Path) -> str:
    return f"learning rates of {path.parent.name}"


def _with_rate(method: Method, found: Mapping[str, Mapping[str, Any]]) -> Method:
    if method.name not in found:
        return method
    return replace(method, options={**method.options, _RATE: float(found[method.name][_RATE])})


def _tuning(path: Path, method: Method, grid: Grid, images: int) -> dict[str, Any]:
    """The content of a file, if it is for this method and used none of the first images.

    Raises ValueError if it is for another method or grid, or used one of the first ``images``
    images.
    """
    name = f"out: {path}"
    there = without_digest(name, parse_json(name, read_text("out", path)), _owner(path))
    for what, given in (("plan", method.plan()), ("grid", grid.plan(method))):
        if there[what] != given:
            raise ValueError(
                f"out: {path} holds a learning rate with {what} {there[what]}, got {given}"
            )
    if min(there["images"]) < images:
        raise ValueError(
            f"images: expected at most {min(there['images'])}, because the learning rate in {path} "
            f"was tuned on the images after them, got {images}"
        )
    return {name: value for name, value in there.items() if name not in _SETTINGS}


def _readable(data: Data, first: int, count: int) -> dict[int, Tensor]:
    """The last ``count`` images from number ``first`` on that are not corrupt, in order."""
    found: dict[int, Tensor] = {}
    for number in reversed(range(first, len(data))):
        with suppress(ValueError):
            found[number] = data.load(number)
        if len(found) == count:
            return dict(sorted(found.items()))
    raise ValueError(
        f"images: expected {count} that can be read from number {first} on, to tune learning rates "
        f"on, got {len(found)}"
    )


def _tune(
    generator: Any,
    study: Study,
    method: Method,
    grid: Grid,
    truths: Mapping[int, Tensor],
) -> dict[str, Any]:
    """The content of a tuning file."""
    case = posed(study, truths)
    given = {
        "seed": study.seed,
        "observation_ids": list(truths),
        **study.common,
        **method.options,
        **grid.trial(),
    }
    found = tune(
        generator,
        case.x_obs,
        case.operator,
        method=cast(Baseline, method.solver),
        learning_rates=grid.rates_of(method),
        score=partial(_error, case.truth.cpu()),
        **gathered(given),
    )
    settings = {"plan": method.plan(), "grid": grid.plan(method), "images": list(truths)}
    return settings | found.as_dict()


def _write(path: Path, log: Mapping[str, Any]) -> None:
    if log["at_the_edge"]:
        warn_user(f"{path}: {AT_THE_EDGE}, {log[_RATE]:g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(with_digest(log, _owner(path)), indent=2) + "\n"
    write_atomically(path, lambda file: file.write_text(text))


def _error(truth: Tensor, result: Result) -> Tensor:
    """The mean squared error of whole images over all images and chains."""
    return (result.images.clamp(*DATA_RANGE) - truth[:, None]).double().square().mean()

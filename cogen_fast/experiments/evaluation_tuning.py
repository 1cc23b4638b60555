"""Learning rates of an evaluation's optimisers, found once, on images that are not evaluated.

``METHOD/tuning.json`` in the folder of the evaluation holds what was found and the log of the grid;
a rate that is there is not looked for again. Every ``world_size``-th of the methods is a process's
to tune, and it waits for the files of the others: nothing else passes between processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from cogen_fast import metrics
from cogen_fast.arguments import check_count
from cogen_fast.baselines import Baseline, descends, tune
from cogen_fast.experiments.evaluate import Method, Study, open_place, posed
from cogen_fast.experiments.evaluation_data import Data
from cogen_fast.files import write_atomically
from cogen_fast.result import Result
from cogen_fast.warn import warn_user

_POLL_SECONDS = 0.2


def tuned(
    generator: Any,
    data: Data,
    study: Study,
    out: str | Path,
    *,
    images: int | None = None,
    tuning_images: int = 4,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> Study:
    """The study with the best learning rate of its grid for every optimiser that has none.

    Rates are chosen by the mean squared error of whole images, under the same task, on the last
    ``tuning_images`` images of the data that can be read. Other arguments as for `evaluate`, of
    which ``images`` must leave so many.

    Raises what `evaluate` raises, and ValueError where too few images are left or ``out`` holds
    rates of other settings; before any work.
    """
    check_count("tuning_images", tuning_images)
    wanting = untuned(study)
    if not wanting:
        return study
    ready = [method for method in study.methods if method not in wanting]
    place = open_place(generator, data, study, ready, out, images, rank, world_size)
    count = place.images
    most = len(data) - tuning_images
    if count > most:
        raise ValueError(
            f"images: expected at most {most}, which leaves {tuning_images} to tune learning rates "
            f"on, got {count}"
        )
    paths = {m.name: place.folder / m.name / "tuning.json" for m in wanting}
    for method in wanting:
        if paths[method.name].exists():
            _rate(paths[method.name], method, count)
    mine = [m for m in wanting[rank::world_size] if not paths[m.name].exists()]
    for method in tqdm(mine, "tuning", unit="method", disable=not progress):
        log = _tune(generator, study, method, _readable(data, count, tuning_images))
        place.settle()
        _write(paths[method.name], log)
    for path in tqdm(paths.values(), "tuned", unit="method", disable=not progress):
        while not path.exists():
            time.sleep(_POLL_SECONDS)
    rates = {m.name: _rate(paths[m.name], m, count) for m in wanting}
    return replace(study, methods=tuple(_with_rate(m, rates) for m in study.methods))


def untuned(study: Study) -> list[Method]:
    """The study's optimisers that have no learning rate."""
    return [m for m in study.methods if descends(m.solver) and "learning_rate" not in m.options]


def _with_rate(method: Method, rates: Mapping[str, float]) -> Method:
    if method.name not in rates:
        return method
    return replace(method, options={**method.options, "learning_rate": rates[method.name]})


def _rate(path: Path, method: Method, images: int) -> float:
    """The rate that is there, if it is this method's and of none of the first ``images`` images."""
    there = json.loads(path.read_text())
    if there["plan"] != method.plan():
        raise ValueError(
            f"out: {path} holds a learning rate of {there['plan']}, got {method.plan()}"
        )
    if min(there["images"]) < images:
        raise ValueError(
            f"images: expected at most {min(there['images'])}, as {path} has a learning rate that "
            f"was tuned on others, got {images}"
        )
    return float(there["learning_rate"])


def _readable(data: Data, first: int, count: int) -> dict[int, Tensor]:
    """The last ``count`` images from number ``first`` on that are not corrupt."""
    found: dict[int, Tensor] = {}
    for number in reversed(range(first, len(data))):
        with suppress(ValueError, OSError):
            found[number] = data.load(number)
        if len(found) == count:
            return found
    raise ValueError(
        f"images: expected {count} that can be read from number {first} on, to tune learning rates "
        f"on, got {len(found)}"
    )


def _tune(
    generator: Any,
    study: Study,
    method: Method,
    truths: Mapping[int, Tensor],
) -> dict[str, Any]:
    """What is written of the tuning."""
    case = posed(study, truths)
    given = {
        "seed": study.seed,
        "observation_ids": list(truths),
        **study.common,
        **method.options,
    }
    found = tune(
        generator,
        case.x_obs,
        case.operator,
        method=cast(Baseline, method.solver),
        score=partial(_error, case.truth),
        **given,
    )
    return {"plan": method.plan(), "images": list(truths), **found.as_dict()}


def _write(path: Path, log: Mapping[str, Any]) -> None:
    if log["at_the_edge"]:
        warn_user(
            f"{path}: the best learning rate is the grid's largest or smallest, "
            f"{log['learning_rate']:g}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(json.dumps(log, indent=2) + "\n"))


def _error(truth: Tensor, result: Result) -> Tensor:
    """Mean over the images of the error of the chain of lowest energy."""
    pairs = zip(result.best_images, truth.cpu(), strict=True)
    return torch.cat([metrics.mse(image[None], true) for image, true in pairs]).mean()

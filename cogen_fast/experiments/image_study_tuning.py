"""The image study's learning rates: a grid for each method, snapshot, task and kind of images.

They are kept in a file as they are found, so that a study that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cogen_fast.baselines import Baseline, tune
from cogen_fast.experiments.image_study_plan import (
    FITS,
    TUNING_IMAGES,
    Effort,
    Part,
    rates_of,
)
from cogen_fast.experiments.image_tasks import pose
from cogen_fast.files import write_atomically
from cogen_fast.metrics import DATA_RANGE
from cogen_fast.result import Result

_CHAINS = 2  # from which a rate is judged, for each image
_SETTINGS, _FOUND = "settings", "found"


class Tunings:
    """The file of what was found, by the part's name and the method.

    ``settings`` say what the study is of. Raises ValueError where the file is of another one,
    or damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            there = _read(path)
            for name, value in self.settings.items():
                if there[_SETTINGS].get(name) != value:
                    raise ValueError(
                        f"out: {path.parent} holds a study with {name} "
                        f"{there[_SETTINGS].get(name)!r}, got {value!r}"
                    )
            self.found = there[_FOUND]

    def rates(self, part: Part, effort: Effort, seed: int) -> dict[str, float]:
        """The learning rates of the part's methods; those that are not there yet are found."""
        for method in (name for name in part.methods if name in FITS):
            key = f"{part.name}/{method}"
            if key not in self.found:
                self.found[key] = _tuned(part, method, effort, seed)
                self._save()
        return {
            method: self.found[f"{part.name}/{method}"]["learning_rate"]
            for method in part.methods
            if method in FITS
        }

    def at_the_edge(self) -> list[str]:
        """What has its best rate at the end of its grid."""
        return [key for key, found in self.found.items() if found["at_the_edge"]]

    def _save(self) -> None:
        text = json.dumps({_SETTINGS: self.settings, _FOUND: self.found}, indent=1)
        write_atomically(self.path, lambda file: file.write_text(text + "\n"))


def _read(path: Path) -> dict[str, Any]:
    try:
        there: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"out: expected learning rates in {path}, got {error}") from error
    return there


def tuning_numbers(part: Part) -> range:
    """The images that rates are tuned on: the last of the data."""
    return range(len(part.data) - TUNING_IMAGES, len(part.data))


def _tuned(part: Part, method: str, effort: Effort, seed: int) -> dict[str, Any]:
    """By the error of whole images, which no method is told of in the evaluation."""
    numbers = list(tuning_numbers(part))
    truth = torch.stack([part.data.load(number) for number in numbers])
    case = pose(part.task, truth, numbers, seed)
    tuning = tune(
        part.snapshot.generator,
        case.x_obs,
        case.operator,
        method=cast(Baseline, method),
        learning_rates=rates_of(method),
        score=lambda result: _error(result, truth),
        chains=_CHAINS,
        starts=effort.starts if method.endswith("-multi") else None,
        steps=effort.tuning_steps,
        seed=seed,
        observation_ids=numbers,
        weight=1.0,
    )
    return tuning.as_dict()


def _error(result: Result, truth: Tensor) -> Tensor:
    return (result.images.clamp(*DATA_RANGE) - truth[:, None]).double().square().mean()

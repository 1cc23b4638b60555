"""The image study's learning rates: a grid for each method, snapshot, task and kind of images.

They are kept in a file of each part as they are found, so that a study that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
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


TUNING = "tuning.json"


class Tunings:
    """What was found for a part, by method, and the file in its folder that holds it.

    ``settings`` say what the study is of. Raises ValueError where the file is of another one, or
    damaged.
    """

    def __init__(self, part: Part, out: Path, settings: Mapping[str, Any]) -> None:
        self.part, self.path = part, part.folder(out) / TUNING
        self.settings = dict(settings)
        self.found: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            there = _read(self.path)
            for name, value in self.settings.items():
                if there[_SETTINGS].get(name) != value:
                    raise ValueError(
                        f"out: {out} holds a study with {name} "
                        f"{there[_SETTINGS].get(name)!r}, got {value!r}"
                    )
            self.found = there[_FOUND]

    def find(self, effort: Effort, seed: int) -> None:
        """The learning rates that are not there yet."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for method in self.part.methods:
            if method in FITS and method not in self.found:
                self.found[method] = _tuned(self.part, method, effort, seed)
                write_json(self.path, {_SETTINGS: self.settings, _FOUND: self.found})

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each method that has one."""
        return {method: tuning["learning_rate"] for method, tuning in self.found.items()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Plain values, to be read by people too."""
    write_atomically(path, partial(Path.write_text, data=json.dumps(content, indent=1) + "\n"))


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

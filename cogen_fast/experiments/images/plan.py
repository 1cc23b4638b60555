"""The paper's image study as a plan: tasks, methods at one cost, and the images that they get.

All methods have the cost of the paper's run for each image (one chain of 499 temperatures and 20
leapfrog steps) in forwards, where a z-gradient counts as 2. Gradient descent from the best of many
starts, and sampling-importance-resampling, pay for the draws that they score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cogen_fast.experiments.evaluate.data import Data
from cogen_fast.experiments.evaluate.evaluate import Method, Study
from cogen_fast.experiments.evaluate.nuts import NUTS
from cogen_fast.experiments.evaluate.tasks import PUBLISHED, Block, Half, SuperResolve, Task
from cogen_fast.experiments.evaluate.tuning import Grid
from cogen_fast.methods.baselines import STARTS
from cogen_fast.methods.presets import PRESETS
from cogen_fast.results.result import GRADIENT_COST
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.support.arguments import check_count, check_flag

REAL, OWN = "real", "own"
KINDS: dict[str, str] = {
    REAL: "real images that the generator was not trained on",
    OWN: "images of the generator's own, whose answer lies in its range",
}
TASKS: tuple[Task, ...] = (Block(), SuperResolve(4), SuperResolve(8))
"""The paper's block, scaled to the image's size, and its average pooling."""
GIVEN_TASKS: tuple[Task, ...] = (Half(), Block(), SuperResolve(4))
"""The tasks for a generator that a user gives."""
PRESET = "celeba-128"
NOISE_STD = 0.1
"""The noise level of the adaptive method, which is the library's advice for images."""
GROUP = 8
"""The most images in one call."""
TUNING_IMAGES = 2
"""The number of images for tuning: the last ones of the data, which are not evaluated."""
OPTIMISERS = ("gd", "gd-multi", "adam", "adam-multi", "lbfgs-multi")
MULTI_STARTS = tuple(name for name in OPTIMISERS if name.endswith("-multi"))
SCALED = "paper-scaled"
"""The paper's method with a larger weight, by as much as an image here has fewer values."""
DEFAULT = "default"
"""What `inpaint` and `super_resolve` do: adaptive samples, and fits besides, for an estimate."""
CURVES = ("gd", "gd-multi", "adam-multi", "paper", SCALED, DEFAULT)
"""The methods of figure 4, and those that are in use today."""
METHODS = (*OPTIMISERS, "sir", "paper", SCALED, "adaptive", DEFAULT)
SAMPLED = (NUTS, "adaptive", DEFAULT)
"""Methods at the noise level `NOISE_STD`, with many samples each, whose mean is shown too."""
RATES: dict[str, tuple[float, ...]] = {
    "gd": (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
    "adam": (1.0, 0.3, 0.1, 0.03, 0.01),
    "lbfgs": (3.0, 1.0, 0.3, 0.1),
}
"""The learning rates that are tried, by optimiser."""
_TUNING_CHAINS = 2  # by which a rate is judged, for each image
_MULTI = "-multi"
_PUBLISHED_VALUES = 3 * PUBLISHED[PRESET].resolution ** 2


@dataclass(frozen=True)
class Effort:
    """How much is run; the defaults are the published settings, on few images.

    ``images`` is the number of images of each kind and task; of these the earlier snapshots get the
    first ``curve_images`` at most. ``ais_steps`` and ``leapfrog_steps`` are those of the paper's
    run, whose cost all methods have; ``starts`` are the draws of methods that pick the best;
    ``tuning_steps`` are those of the choice of learning rates. ``nuts`` says whether NUTS is a
    method too (extra ``peers``). Raises ValueError naming what is wrong.
    """

    images: int = 8
    curve_images: int = 4
    ais_steps: int = PRESETS[PRESET].ais_steps
    leapfrog_steps: int = PRESETS[PRESET].leapfrog_steps
    starts: int = STARTS
    tuning_steps: int = 1_000
    nuts: bool = False

    def __post_init__(self) -> None:
        check_flag("nuts", self.nuts)
        for name, value in vars(self).items():
            if name != "nuts":
                check_count(name, value)
        least = self.starts + 2 * GRADIENT_COST
        if self.budget < least:
            raise ValueError(
                f"ais_steps: expected a run that costs at least {least}, got {self.budget}"
            )

    @property
    def budget(self) -> int:
        """Forwards for each image: the cost of the paper's one chain."""
        return GRADIENT_COST * (1 + self.ais_steps * self.leapfrog_steps)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the last snapshot's parts."""
        return (*METHODS, NUTS) if self.nuts else METHODS

    @property
    def snapshot_images(self) -> int:
        """The number of images of the earlier snapshots."""
        return min(self.curve_images, self.images)

    @property
    def grid(self) -> Grid:
        """How learning rates are chosen."""
        return Grid(TUNING_IMAGES, _TUNING_CHAINS, self.tuning_steps, RATES)


QUICK = Effort(images=4, curve_images=2, ais_steps=50, starts=500, tuning_steps=100)
"""A tenth of the published numbers, for a quick look."""


@dataclass(frozen=True)
class Snapshot:
    """A generator after ``shown`` images of its training; it has an attribute ``latent_size``."""

    name: str
    shown: int
    generator: nn.Module


@dataclass(frozen=True)
class Scope:
    """What a study covers: snapshots in the order of a training, kinds of images, and tasks."""

    snapshots: tuple[Snapshot, ...]
    kinds: tuple[str, ...] = tuple(KINDS)
    tasks: tuple[Task, ...] = TASKS


@dataclass(frozen=True)
class Part:
    """What is evaluated in one folder: a snapshot on a task and a kind of images."""

    kind: str
    task: Task
    snapshot: Snapshot
    data: Data
    methods: tuple[str, ...]
    images: int

    @property
    def name(self) -> str:
        """The name in the study's ``tuning.json``, and of the folder."""
        return f"{self.kind}/{self.task}/{self.snapshot.name}"

    def study(self, effort: Effort, seed: int) -> Study:
        """The argument of `evaluate`, except the learning rates of `OPTIMISERS`."""
        methods = tuple(self.method(name, effort) for name in self.methods)
        return Study(self.task, methods, {"weight": 1.0}, seed, GROUP)

    def method(self, name: str, effort: Effort) -> Method:
        """A method at the study's cost."""
        if name in OPTIMISERS:
            starts = {"starts": effort.starts} if name.endswith(_MULTI) else {}
            steps = (effort.budget - sum(starts.values())) // GRADIENT_COST - _extra_gradients(name)
            return Method(name, name, {"steps": steps, **starts})
        if name == "sir":
            return Method(name, name, {"starts": effort.budget})
        if name in ("paper", SCALED):
            lengths = {"ais_steps": effort.ais_steps, "leapfrog_steps": effort.leapfrog_steps}
            weight = {"weight": self.weight(name)} if name == SCALED else {}
            return Method(name, "paper", {"preset": PRESET, **lengths, **weight})
        noise: dict[str, Any] = {"noise_std": NOISE_STD, "weight": None}
        if name == NUTS:
            gradients = (effort.budget - effort.starts) // GRADIENT_COST
            return Method(name, NUTS, noise | {"starts": effort.starts, "gradients": gradients})
        each = effort.budget // GRADIENT_COST // POPULATION
        polish = {"polish": "auto"} if name == DEFAULT else {}
        return Method(name, "adaptive", noise | {"chains": POPULATION, "budget": each} | polish)

    def weight(self, name: str) -> float:
        """The factor of the squared error in the method's energies."""
        if name in SAMPLED:
            return 0.5 / NOISE_STD**2
        if name == SCALED:
            generator: Any = self.snapshot.generator
            shape: tuple[int, ...] = generator.output_shape
            return _PUBLISHED_VALUES / math.prod(shape)
        return PRESETS[PRESET].weight

    def folder(self, out: Path) -> Path:
        """The folder that `evaluate` writes."""
        return out / "runs" / self.name


def _extra_gradients(method: str) -> int:
    """Gradients besides the steps: gradient descent computes the energy of its end point."""
    return 1 if method.startswith("gd") else 0

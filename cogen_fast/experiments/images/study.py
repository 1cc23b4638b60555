"""The paper's image study: the curves of figure 4, the panels of figures 5 to 7, and tables.

The folder ``out`` will hold `files`, and the folder ``runs`` with an evaluation (see `evaluate`)
for each kind of images, task and snapshot of the generator's training. If the study is killed at
any point and started again with the same arguments, it continues; with more images it adds them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cogen_fast.experiments.evaluate.data import Data, of_generator, open_data
from cogen_fast.experiments.evaluate.evaluate import Study, evaluate
from cogen_fast.experiments.evaluate.nuts import pyro_nuts
from cogen_fast.experiments.evaluate.tuning import AT_THE_EDGE, open_tuning, tuned
from cogen_fast.experiments.images import figures, report
from cogen_fast.experiments.images.plan import (
    CURVES,
    GIVEN_TASKS,
    KINDS,
    OWN,
    QUICK,
    REAL,
    TUNING_IMAGES,
    Effort,
    Part,
    Scope,
    Snapshot,
)
from cogen_fast.experiments.images.results import PartResults, all_tunings, part_results
from cogen_fast.experiments.pyplot import pyplot
from cogen_fast.experiments.workers import run_in_processes
from cogen_fast.generators.pretrained import FASHION_STAGES, held_out_images, pretrained
from cogen_fast.generators.progressive import ProgressiveGenerator
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.support.arguments import check_count, check_folder, check_seed
from cogen_fast.support.files import write_atomically

GENERATOR = "fashion-32"
TUNING = "tuning.json"
_OWN_IMAGES = 1_000
_DPI = 150


def reproduce(
    out: Path,
    data: Path | None = None,
    seed: int = 0,
    *,
    scope: Scope | None = None,
    effort: Effort | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> str:
    """Run the study, or what is missing of it, write `files`, and return the report as text.

    ``data`` are real images: a folder, an IDX file or an ``.npz``, padded to the generator's size
    if they are smaller (None: the ten test images that the package ships). ``scope`` is what the
    study covers (`shipped`, the default: "fashion-32" and its training; `of_one`: another
    generator). Images of a generator's own come from another seed than the chains. ``processes``
    share the parts of the study (None: as many as torch has threads); the results are the same for
    any number.

    Raises ImportError without matplotlib or pytorch-msssim (extras ``plots``, ``metrics``), or
    without Pyro for NUTS (``peers``); and ValueError, TypeError or OSError naming a wrong argument;
    before anything is run.
    """
    plt = pyplot("reproduce")
    folder, effort = check_folder("out", out), effort or Effort()
    if effort.nuts:
        pyro_nuts()
    share = torch.get_num_threads() if processes is None else check_count("processes", processes)
    run = _Run(folder, data, check_seed(seed), effort, scope or shipped())
    parts = run.parts()
    for part in parts:
        open_tuning(*run.evaluation(part), part.images, effort.grid)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(desc="study", total=len(parts), unit="part", disable=not progress) as bar:
        run_in_processes(run.part, len(parts), share, bar)
    results = [part_results(part, folder, effort, seed) for part in parts]
    text = report.text(results, effort)
    report.write(folder, text, results)
    _write_tunings(folder / TUNING, results)
    _draw(plt, folder, results, effort)
    return f"{text}\nwrote {', '.join(files(run.scope))} to {folder}"


def files(scope: Scope) -> tuple[str, ...]:
    """The files that a study writes to its folder, besides the records."""
    return (TUNING, *report.FILES, *figures.files(scope))


def _write_tunings(path: Path, results: Sequence[PartResults]) -> None:
    content = json.dumps(all_tunings(results), indent=1) + "\n"
    write_atomically(path, partial(Path.write_text, data=content))


def _draw(plt: Any, folder: Path, results: Sequence[PartResults], effort: Effort) -> None:
    for name, figure in figures.draw(plt, results, effort):
        write_atomically(folder / name, partial(figure.savefig, format="png", dpi=_DPI))
        plt.close(figure)
    for name, picture in figures.panels(results):
        write_atomically(folder / name, partial(picture.save, format="PNG", optimize=True))


@dataclass(frozen=True)
class _Run:
    """The study's arguments, in a form that any process can use."""

    out: Path
    data: Path | None
    seed: int
    effort: Effort
    scope: Scope

    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order in which they run."""
        real = real_images(self.data, self.scope) if REAL in self.scope.kinds else None
        return plan(self.scope, real, self.effort, self.seed)

    def evaluation(self, part: Part) -> tuple[Any, Data, Study, Path]:
        """The arguments of `tuned` and `evaluate`: generator, data, study and folder."""
        study = part.study(self.effort, self.seed)
        return part.snapshot.generator, part.data, study, part.folder(self.out)

    def part(self, number: int) -> None:
        """Run what is missing of a part."""
        part = self.parts()[number]
        generator, data, study, out = self.evaluation(part)
        how: dict[str, Any] = {"images": part.images, "progress": False}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f".*{AT_THE_EDGE}")  # the report says it
            study = tuned(generator, data, study, out, grid=self.effort.grid, **how)
        evaluate(generator, data, study, out, **how)


def effort_of(images: int | None = None, quick: bool = False, nuts: bool = False) -> Effort:
    """The published numbers, or those of `QUICK`, with ``images`` images of each kind and task."""
    base = replace(QUICK if quick else Effort(), nuts=nuts)
    return base if images is None else replace(base, images=images)


def shipped() -> Scope:
    """The generator that comes with the package, over its training."""
    names = {shown: f"{GENERATOR}-{shown}" for shown in FASHION_STAGES}
    return Scope(tuple(Snapshot(name, shown, pretrained(name)) for shown, name in names.items()))


def of_one(generator: Any, latent_shape: Any = None, *, photographs: bool = False) -> Scope:
    """A generator of images, on images of its own, and on real ones if there are ``photographs``.

    ``latent_shape`` is that of `cogen_fast.cogenerate`. Raises TypeError or ValueError naming the
    argument.
    """
    if not isinstance(generator, ProgressiveGenerator):
        generator = OnRows(generator, latent_shape)
    kinds = tuple(KINDS) if photographs else (OWN,)
    return Scope((Snapshot("given", 0, generator),), kinds, GIVEN_TASKS)


class OnRows(nn.Module):
    """A generator that takes rows ``(n, latent_size)``, whatever shape its latents have.

    It is in eval mode.
    """

    def __init__(self, generator: Any, latent_shape: Any) -> None:
        super().__init__()
        with frozen(generator):
            adapter = GeneratorAdapter(generator, latent_shape)
        self.generator, self.latent_shape = generator, adapter.latent_shape
        self.latent_size, self.output_shape = adapter.latent_size, adapter.output_shape
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.generator(z.reshape(-1, *self.latent_shape))
        return images


def plan(scope: Scope, real: Data | None, effort: Effort, seed: int) -> tuple[Part, ...]:
    """All parts: the last snapshot on every task by every method, the earlier ones for figure 4.

    The parts that take longest come first. Raises ValueError if there are too few ``real`` images.
    """
    most = effort.images if real is None else len(real) - TUNING_IMAGES
    if effort.images > most:
        raise ValueError(
            f"images: expected at most {most}, which leaves {TUNING_IMAGES} to tune on, got "
            f"{effort.images}"
        )
    return tuple(_parts(scope, real, effort, seed))


def _parts(scope: Scope, real: Data | None, effort: Effort, seed: int) -> Iterator[Part]:
    *earlier, last = scope.snapshots
    for kind in scope.kinds:
        for task in scope.tasks:
            data = data_of(kind, last, real, seed)
            yield Part(kind, task, last, data, effort.methods, effort.images)
    for kind in scope.kinds:
        for snapshot in earlier:
            data = data_of(kind, snapshot, real, seed)
            yield Part(kind, scope.tasks[0], snapshot, data, CURVES, effort.snapshot_images)


def data_of(kind: str, snapshot: Snapshot, real: Data | None, seed: int) -> Data:
    if kind == REAL:
        assert real is not None
        return real
    generator: Any = snapshot.generator
    return of_generator(generator, generator.latent_size, _OWN_IMAGES, (seed + 1) % 2**64)


def real_images(data: Path | None, scope: Scope) -> Data:
    generator: Any = scope.snapshots[-1].generator
    channels, side, _ = generator.output_shape
    if data is not None:
        return open_data(data, side, channels=channels, fit="pad")
    images = held_out_images(GENERATOR)
    return Data(tuple(images), lambda i: list(images.values())[i])

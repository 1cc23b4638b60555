"""The paper's image runs from end to end, with a tiny budget: preset, task and the full network.

The weights are random, so the pictures show nothing. The runs show that the published settings work
at the published sizes, and what a gradient costs in time and memory.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cogen_fast.experiments.evaluate.data import of_generator
from cogen_fast.experiments.evaluate.evaluate import Method, Study, evaluate, gather
from cogen_fast.experiments.evaluate.pictures import draw
from cogen_fast.experiments.evaluate.tasks import PUBLISHED
from cogen_fast.experiments.workers import workers
from cogen_fast.generators.progressive import ProgressiveGenerator
from cogen_fast.methods.presets import PRESETS
from cogen_fast.support.arguments import check_choice, check_folder
from cogen_fast.support.files import write_atomically

AIS_STEPS, LEAPFROG_STEPS = 2, 1
_SEED, _OWN_SEED = 0, 1
_HEAD = (
    f"{'preset':<22}{'image':>12}{'observed':>13}{'chains':>8}{'M mult-adds':>13}{'cost':>6}"
    f"{'s':>8}{'MiB':>8}"
)


@dataclass(frozen=True)
class TinyRun:
    """The facts of a run.

    ``multiply_adds`` are millions of multiply-adds of a forward; ``cost`` is in forwards;
    ``seconds`` are those of the run alone; ``peak`` is in MiB, of the whole process, or 0 if it is
    not known.
    """

    name: str
    image: str
    task: str
    chains: int
    multiply_adds: float
    cost: int
    seconds: float
    peak: float


def reproduce(out: Path, names: Sequence[str] = (), *, progress: bool = True) -> str:
    """Run the presets ``names`` (default: all image presets), and return a table as text.

    Each runs in a process of its own. The evaluations are written to folders of ``out`` with the
    presets' names, each with a ``picture.png``. Raises ValueError for unknown names, before any
    work.
    """
    folder = check_folder("out", out)
    chosen = [check_choice("preset", name, tuple(PUBLISHED)) for name in names or PUBLISHED]
    rows = [_HEAD]
    for name in tqdm(chosen, unit="preset", disable=not progress):
        with workers(1) as pool:
            rows.append(_row(pool.submit(run, name, folder / name).result()))
    return "\n".join([*rows, _notes()])


def run(name: str, out: Path) -> TinyRun:
    """Run one preset on an image of its network's own; `evaluate` writes its files to ``out``.

    All settings are the preset's, except `AIS_STEPS` and `LEAPFROG_STEPS`.
    """
    published, preset = PUBLISHED[name], PRESETS[name]
    generator = network(name)
    data = of_generator(generator, published.latent_size, 1, _OWN_SEED)
    lengths = {"ais_steps": AIS_STEPS, "leapfrog_steps": LEAPFROG_STEPS}
    study = Study(published.task, (Method("paper", "paper", {"preset": name, **lengths}),), group=1)
    start = time.monotonic()
    evaluate(generator, data, study, out, progress=False)
    seconds = time.monotonic() - start
    picture = draw(data, study, out, [0])
    write_atomically(out / "picture.png", lambda file: picture.save(file, format="PNG"))
    (record,) = gather(out)
    shape = " x ".join(map(str, generator.output_shape))
    return TinyRun(
        name,
        shape,
        str(published.task),
        preset.chains,
        generator.multiply_adds() / 1e6,
        record["methods"]["paper"]["cost"],
        seconds,
        _peak(),
    )


def network(name: str) -> Any:
    """The preset's progressive GAN in eval mode, with random weights that are always the same."""
    published = PUBLISHED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        generator = ProgressiveGenerator(
            published.resolution,
            latent_size=published.latent_size,
            fmap_base=published.fmap_base,
        )
    return generator.eval().requires_grad_(False)


def _peak() -> float:
    """The largest resident memory of this process so far, in MiB, where its unit is known."""
    if sys.platform != "linux":
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _row(tiny: TinyRun) -> str:
    return (
        f"{tiny.name:<22}{tiny.image:>12}{tiny.task:>13}{tiny.chains:>8}{tiny.multiply_adds:>13,.0f}"
        f"{tiny.cost:>6}{tiny.seconds:>8.1f}{tiny.peak:>8,.0f}"
    )


def _notes() -> str:
    return (
        f"Weights are random, with {AIS_STEPS} temperatures of {LEAPFROG_STEPS} leapfrog step; all "
        "other settings are the preset's.\n"
        "cost: forwards of all chains, where a z-gradient counts as 2; s: seconds of checks, "
        "sampling and metrics.\n"
        "MiB: the peak memory of the process, torch itself included. "
        f"{torch.get_num_threads()} threads."
    )

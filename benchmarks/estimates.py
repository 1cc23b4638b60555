"""One image to show, compared with the best of many starts at the same cost.

    python benchmarks/estimates.py [--kinds own real faces] [--budgets 500 2000 5000 20000]
        [--images 48 --data t10k-images-idx3-ubyte.gz]

`Result.estimate` of a default run with a budget (``polish="auto"``; noise of 0.1, or inferred) is
compared with Adam and L-BFGS from the best of many prior draws, which take a quarter of the cost.
The generator is the shipped one of garments. The images are photographs that it was not trained on,
and images of its own, each with a block hidden, and reduced by 4 and by 8. Photographs are the ten
that the package ships, or the first ``--images`` of ``--data`` (an IDX file, a folder, or an
``.npz``), which should be held out too, such as Fashion-MNIST's test images. ``--kinds faces`` are
own images of the DCGAN of faces (64 px, 100 latents; needs ``COGEN_FAST_TEST_DATA``), with half
hidden, a block hidden, and reduced by 4. Costs are in forwards for an image, where a z-gradient
counts as 2. The learning rates of Adam and L-BFGS are fixed by hand, and not tuned.

Every finished piece of work is a line of ``benchmarks/results/estimates.jsonl``; if the command is
started again, it continues. Lines from another state of the sources are ignored. It ends with a
table in Markdown: mean squared errors of whole images with their standard errors, and differences,
paired by image, in standard errors of the difference: the default's estimate minus the better of
Adam and L-BFGS, the default's fit of lowest misfit minus the same, and the estimate with inferred
noise minus the default's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dcgan import load_faces, own_faces
from log import Log
from machine import digest_of_method
from torch import Tensor, nn

from cogen_fast import cogenerate, held_out_images, pretrained
from cogen_fast.experiments.evaluate.data import open_data
from cogen_fast.experiments.evaluate.tasks import Block, Case, Half, SuperResolve, Task, pose
from cogen_fast.methods.baselines import reconstruct
from cogen_fast.results.result import GRADIENT_COST, Result

_RESULTS = Path(__file__).parent / "results"
_GENERATOR, _NOISE, _CHAINS = "fashion-32", 0.1, 16
_GARMENTS = (Block(), SuperResolve(4), SuperResolve(8))
_TASKS: dict[str, tuple[Task, ...]] = {
    "own": _GARMENTS,
    "real": _GARMENTS,
    "faces": (Half(), Block(), SuperResolve(4)),
}
_BUDGETS = (500, 2_000, 5_000, 20_000)
_STARTS = 4  # one part in so many of the cost of Adam and L-BFGS is for their starts
_RATES = {"adam-multi": 0.1, "lbfgs-multi": 0.3}
_DEFAULT, _INFERRED = "default", "default, noise inferred"
_SEEDS = {"images": 9, "tasks": 1, "runs": 3}
_TOGETHER = 16  # images in a call


@dataclass(frozen=True)
class Images:
    """``count`` photographs of ``data`` (None: the shipped ones), and as many of G's own."""

    count: int
    data: Path | None

    def of(self, kind: str, generator: nn.Module) -> Tensor:
        """The images of a kind, ``(count, C, H, W)``."""
        if kind == "faces":
            return own_faces(generator, self.count, _SEEDS["images"])
        if kind == "own":
            random = torch.Generator().manual_seed(_SEEDS["images"])
            with torch.no_grad():
                own: Tensor = generator(torch.randn(self.count, 64, generator=random))
            return own
        if self.data is None:
            return torch.stack(list(held_out_images(_GENERATOR).values()))[: self.count]
        photographs = open_data(self.data, 32, channels=1, fit="pad")
        return torch.stack([photographs.load(i) for i in range(self.count)])

    @property
    def name(self) -> str:
        """The name in the log."""
        return f"{self.count} of {'the package' if self.data is None else self.data.name}"


def _sampled(
    generator: nn.Module, case: Case, ids: Sequence[int], budget: int, noise: float | str
) -> Result:
    return cogenerate(
        generator,
        case.x_obs,
        case.operator,
        noise_std=noise,
        budget=budget // GRADIENT_COST // _CHAINS,
        polish="auto",
        seed=_SEEDS["runs"],
        observation_ids=ids,
        progress=False,
    )


def _rival(
    generator: nn.Module, case: Case, ids: Sequence[int], budget: int, method: Any
) -> Result:
    starts = budget // _STARTS
    return reconstruct(
        generator,
        case.x_obs,
        case.operator,
        method=method,
        starts=starts,
        steps=(budget - starts) // GRADIENT_COST,
        learning_rate=_RATES[method],
        noise_std=_NOISE,
        seed=_SEEDS["runs"],
        observation_ids=ids,
    )


_METHODS: dict[str, Callable[[nn.Module, Case, Sequence[int], int], Result]] = {
    _DEFAULT: partial(_sampled, noise=_NOISE),
    _INFERRED: partial(_sampled, noise="auto"),
    "Adam": partial(_rival, method="adam-multi"),
    "L-BFGS": partial(_rival, method="lbfgs-multi"),
}
_RIVALS = ("Adam", "L-BFGS")


def _errors(images: Tensor, truth: Tensor) -> list[float]:
    return [round(value, 7) for value in ((images - truth) ** 2).flatten(1).mean(1).tolist()]


def _run(images: Images, kind: str, task: Task, budget: int, method: str) -> dict[str, Any]:
    generator = load_faces() if kind == "faces" else pretrained(_GENERATOR).eval()
    whole, made = images.of(kind, generator), []
    for start in range(0, len(whole), _TOGETHER):
        truth = whole[start : start + _TOGETHER]
        ids = list(range(start, start + len(truth)))
        case = pose(task, truth, ids, seed=_SEEDS["tasks"])
        made.append((_METHODS[method](generator, case, ids, budget), truth))
    taken: dict[str, Callable[[Result], Tensor]] = {"errors": lambda result: result.estimate}
    if method not in _RIVALS:
        taken |= {"best": lambda result: result.fit, "mean": lambda result: result.mean()}
    found = {
        name: [error for result, truth in made for error in _errors(take(result), truth)]
        for name, take in taken.items()
    }
    return {"cost": made[0][0].cost} | found


def table(log: Log, images: Images, sources: str) -> str:
    """A row for each kind of images, task and budget that has all methods."""
    head = [
        "images",
        "task",
        "forwards",
        *_METHODS,
        "default less the better rival",
        "its best fit less",
        "noise inferred less the default",
    ]
    rows = [head, ["---"] * len(head)]
    common = {"images": images.name, "sources": sources}
    for kind, tasks in _TASKS.items():
        for task in tasks:
            for budget in _BUDGETS:
                key = {"kind": kind, "task": str(task), "budget": budget} | common
                lines = {line["method"]: line for line in log.find(**key)}
                if len(lines) == len(_METHODS):
                    rows.append([kind, str(task), f"{budget:,}", *_columns(lines)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _columns(lines: dict[str, dict[str, Any]]) -> list[str]:
    errors = {name: torch.tensor(line["errors"]) for name, line in lines.items()}
    shown = [f"{mean:.4f} ({error:.4f})" for mean, error in map(_mean, errors.values())]
    rival = min((errors[name] for name in _RIVALS), key=lambda each: float(each.mean()))
    best = torch.tensor(lines[_DEFAULT]["best"])
    inferred = errors[_INFERRED] - errors[_DEFAULT]
    for difference, error in map(_mean, (errors[_DEFAULT] - rival, best - rival, inferred)):
        shown.append(f"{difference:+.4f} ({difference / error:+.1f})")
    return shown


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def main() -> None:
    """Run what is not in the log, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=_TASKS, default=("own", "real"))
    parser.add_argument("--budgets", nargs="+", type=int, choices=_BUDGETS, default=_BUDGETS)
    parser.add_argument("--images", type=int, default=10, help="of each kind (10)")
    parser.add_argument("--data", type=Path, help="photographs (those of the package)")
    arguments = parser.parse_args()
    images = Images(arguments.images, arguments.data)
    log = Log(_RESULTS / "estimates.jsonl")
    files = ("methods/fits", "methods/inferred_noise", "methods/optimise", "results/result")
    sources = digest_of_method(*(f"cogen_fast/{name}.py" for name in files))
    for budget in arguments.budgets:
        for kind in arguments.kinds:
            for task in _TASKS[kind]:
                for method in _METHODS:
                    key = {"kind": kind, "task": str(task), "budget": budget, "method": method}
                    key |= {"images": images.name, "sources": sources}
                    if any(log.find(**key)):
                        continue
                    start = time.monotonic()
                    found = _run(images, kind, task, budget, method)
                    log.add(**key, seconds=round(time.monotonic() - start, 1), **found)
                    print(kind, task, budget, method, flush=True)
    print(table(log, images, sources))


if __name__ == "__main__":
    main()

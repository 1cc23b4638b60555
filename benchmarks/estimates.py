"""One image to show, against many starts at the same cost: ``python benchmarks/estimates.py``.

`Result.estimate` of a default run with a budget (``polish="auto"``; noise of 0.1, or inferred)
beside Adam and L-BFGS from the best of many prior draws, a quarter of the cost, on the shipped
generator of garments: ten photographs that it has not seen, and ten images of its own, each with a
block hidden, and reduced by 4 and by 8. Costs are in forwards an image, a z-gradient counted as 2.
Learning rates of the rivals are fixed by hand, and not tuned.

Every finished piece is a line of ``benchmarks/results/estimates.jsonl``: start it again and it goes
on; lines of another state of the sources are not looked at. Ends with a table in Markdown: mean
squared errors of whole images with their standard errors, and the default's less the better
rival's, image by image, in standard errors of that difference. ``--budgets`` picks some.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from log import Log
from machine import digest_of_method
from torch import Tensor, nn

from cogen_fast import cogenerate, held_out_images, pretrained
from cogen_fast.baselines import reconstruct
from cogen_fast.experiments.image_tasks import Block, Case, SuperResolve, pose
from cogen_fast.result import GRADIENT_COST, Result

_RESULTS = Path(__file__).parent / "results"
_GENERATOR, _NOISE, _CHAINS = "fashion-32", 0.1, 16
_TASKS = (Block(), SuperResolve(4), SuperResolve(8))
_BUDGETS = (500, 2_000, 5_000, 20_000)
_STARTS = 4  # of a rival's cost, one part is for its starts
_RATES = {"adam-multi": 0.1, "lbfgs-multi": 0.3}
_DEFAULT, _INFERRED = "default", "default, noise inferred"
_SEEDS = {"images": 9, "tasks": 1, "runs": 3}


def _own(generator: nn.Module) -> Tensor:
    random = torch.Generator().manual_seed(_SEEDS["images"])
    count = len(held_out_images(_GENERATOR))
    with torch.no_grad():
        images: Tensor = generator(torch.randn(count, 64, generator=random))
    return images


_IMAGES: dict[str, Callable[[nn.Module], Tensor]] = {
    "own": _own,
    "real": lambda _: torch.stack(list(held_out_images(_GENERATOR).values())),
}


def _sampled(generator: nn.Module, case: Case, budget: int, noise: float | str) -> Result:
    return cogenerate(
        generator,
        case.x_obs,
        case.operator,
        noise_std=noise,
        budget=budget // GRADIENT_COST // _CHAINS,
        polish="auto",
        seed=_SEEDS["runs"],
        progress=False,
    )


def _rival(generator: nn.Module, case: Case, budget: int, method: Any) -> Result:
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
    )


_METHODS: dict[str, Callable[[nn.Module, Case, int], Result]] = {
    _DEFAULT: lambda g, case, budget: _sampled(g, case, budget, _NOISE),
    _INFERRED: lambda g, case, budget: _sampled(g, case, budget, "auto"),
    "Adam": lambda g, case, budget: _rival(g, case, budget, "adam-multi"),
    "L-BFGS": lambda g, case, budget: _rival(g, case, budget, "lbfgs-multi"),
}
_RIVALS = ("Adam", "L-BFGS")


def _errors(images: Tensor, truth: Tensor) -> list[float]:
    return [round(value, 7) for value in ((images - truth) ** 2).flatten(1).mean(1).tolist()]


def _run(kind: str, task: Block | SuperResolve, budget: int, method: str) -> dict[str, Any]:
    generator = pretrained(_GENERATOR).eval()
    truth = _IMAGES[kind](generator)
    case = pose(task, truth, list(range(len(truth))), seed=_SEEDS["tasks"])
    result = _METHODS[method](generator, case, budget)
    found: dict[str, Any] = {"cost": result.cost, "errors": _errors(result.estimate, truth)}
    if method not in _RIVALS:
        found |= {"best": _errors(result.fit, truth), "mean": _errors(result.mean(), truth)}
    return found


def table(log: Log, sources: str) -> str:
    """A row for each kind of images, task and budget that has all methods."""
    head = ["images", "task", "forwards", *_METHODS, "default less the better rival"]
    rows = [head, ["---"] * len(head)]
    for kind in _IMAGES:
        for task in _TASKS:
            for budget in _BUDGETS:
                key = {"kind": kind, "task": str(task), "budget": budget, "sources": sources}
                lines = {line["method"]: line for line in log.find(**key)}
                if len(lines) == len(_METHODS):
                    rows.append([kind, str(task), f"{budget:,}", *_columns(lines)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _columns(lines: dict[str, dict[str, Any]]) -> list[str]:
    errors = {name: torch.tensor(line["errors"]) for name, line in lines.items()}
    shown = [f"{mean:.4f} ({error:.4f})" for mean, error in map(_mean, errors.values())]
    rival = min((errors[name] for name in _RIVALS), key=lambda each: float(each.mean()))
    difference, error = _mean(errors[_DEFAULT] - rival)
    return [*shown, f"{difference:+.4f} ({difference / error:+.1f})"]


def _mean(values: Tensor) -> tuple[float, float]:
    """And its standard error."""
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def main() -> None:
    """Run what is not in the log, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", nargs="+", type=int, choices=_BUDGETS, default=_BUDGETS)
    budgets = parser.parse_args().budgets
    log = Log(_RESULTS / "estimates.jsonl")
    files = ("fits", "inferred_noise", "optimise", "result")
    sources = digest_of_method(*(f"cogen_fast/{name}.py" for name in files))
    for budget in budgets:
        for kind in _IMAGES:
            for task in _TASKS:
                for method in _METHODS:
                    key = {"kind": kind, "task": str(task), "budget": budget, "method": method}
                    key["sources"] = sources
                    if any(log.find(**key)):
                        continue
                    start = time.monotonic()
                    found = _run(kind, task, budget, method)
                    log.add(**key, seconds=round(time.monotonic() - start, 1), **found)
                    print(kind, task, budget, method, flush=True)
    print(table(log, sources))


if __name__ == "__main__":
    main()

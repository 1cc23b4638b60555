"""Restore hidden parts of DCGAN faces: the published sampler and gradient descent, at equal cost.

    python benchmarks/dcgan_faces.py [--faces 8] [--gradients 3000]

There are two tasks: a 30 x 30 block is hidden, or 16 x 16 pixels are enlarged to 64 x 64. The faces
are the generator's own, from latents that no method is given. The one free number of each method
(learning rate or noise level) comes from a grid, and is chosen by the hidden error on other faces.
Every finished piece of work is a line of ``benchmarks/results/dcgan_faces.jsonl``; if the command
is started again, it continues. It ends with a table and one PNG grid per task.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from dcgan import block_mask, load_faces, own_faces
from log import Log
from torch import Tensor

from cogen_fast import AveragePool, Compute, Mask, MeasurementOperator, Paper, cogenerate
from cogen_fast.experiments.synthetic.baseline_runs import gradient_descent
from cogen_fast.results.grids import LabelledPicture, draw_grid, hide, to_pixels
from cogen_fast.results.result import GRADIENT_COST

_RESULTS = Path(__file__).parent / "results"
_CHAINS = 4
_MULTI_STARTS = 5000
_TUNING_FACES = 2
# When it is tuned, best-of-K scores a tenth of its starts, then takes as many steps as by default.
_TUNING_GRADIENTS = {"ais": 1000, "gd": 1000, "gd-multi": 750}
_TUNING_STARTS = _MULTI_STARTS // 10
_LEAPFROG = 10
_GRID = {
    "ais": (0.05, 0.1, 0.2, 0.4, 0.7071, 1.0),  # noise_std; 0.7071 is the paper's weight of 1
    "gd": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001),  # rate, at weight 1
    "gd-multi": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001),
}


@dataclass(frozen=True)
class Task:
    """What is observed, and where the error is measured."""

    name: str
    operator: MeasurementOperator
    measure: Callable[[Tensor], Tensor]
    hidden: Tensor


def _tasks() -> list[Task]:
    observed = block_mask()
    pool = torch.nn.AvgPool2d(4)
    return [
        Task("block-30", Mask(observed), lambda x: x, observed == 0),
        Task("super-resolve-4", AveragePool(4), pool, torch.ones(64, 64, dtype=torch.bool)),
    ]


def _solve(
    method: str,
    setting: float,
    generator: torch.nn.Module,
    task: Task,
    truth: Tensor,
    gradients: int,
    multi_starts: int = _MULTI_STARTS,
    checkpoint: Path | None = None,
) -> tuple[Tensor, int, str]:
    """Images ``(faces, chains, ...)``, the cost of a chain in forwards, and a remark."""
    x_obs = task.measure(truth)
    if method == "ais":
        result = cogenerate(
            generator,
            x_obs,
            task.operator,
            method=Paper(ais_steps=gradients // _LEAPFROG, leapfrog_steps=_LEAPFROG),
            noise_std=setting,
            chains=_CHAINS,
            checkpoint=checkpoint,
        )
        half = result.acceptance[len(result.acceptance) // 2 :].mean()
        return result.images, GRADIENT_COST * (gradients + 1), f"late acceptance {half:.2f}"
    starts = multi_starts if method == "gd-multi" else 1
    scoring = starts // GRADIENT_COST if starts > 1 else 0
    descent = gradient_descent(
        generator,
        x_obs,
        task.operator,
        weight=1.0,
        steps=gradients - scoring,
        learning_rate=setting,
        starts=starts,
        runs=_CHAINS,
        compute=Compute(max_batch=64),
    )
    return descent.images, descent.cost, ""


def _hidden_error(images: Tensor, truth: Tensor, task: Task) -> Tensor:
    """Mean squared error of the hidden pixels, ``(faces, chains)``."""
    return ((images - truth[:, None]) ** 2)[..., task.hidden].mean((-1, -2))


def _key(piece: str, task: Task, method: str, setting: float, gradients: int) -> dict[str, object]:
    """What names a piece of work in the log."""
    return {
        "piece": piece,
        "task": task.name,
        "method": method,
        "setting": setting,
        "gradients": gradients,
    }


def _tuned(method: str, generator: torch.nn.Module, task: Task, log: Log) -> float:
    """The setting of lowest hidden error on faces of another seed."""
    truth = own_faces(generator, _TUNING_FACES, seed=2)
    gradients = _TUNING_GRADIENTS[method]
    errors = {}
    for setting in _GRID[method]:
        key = _key("tuning", task, method, setting, gradients)
        if not any(log.find(**key)):
            images, _, remark = _solve(
                method, setting, generator, task, truth, gradients, _TUNING_STARTS
            )
            error = _hidden_error(images, truth, task).nan_to_num(nan=1e9).mean().item()
            log.add(**key, hidden_mse=error, remark=remark)
        errors[setting] = next(log.find(**key))["hidden_mse"]
    return min(errors, key=errors.__getitem__)


def _images_path(task: Task, method: str, setting: float) -> Path:
    return _RESULTS / f"{task.name}-{method}-{setting:g}.images.pt"


def _run(generator: torch.nn.Module, task: Task, truth: Tensor, gradients: int, log: Log) -> None:
    """Every method on every face, unless it is in the log."""
    for method in _GRID:
        setting = _tuned(method, generator, task, log)
        key = _key("result", task, method, setting, gradients)
        if sum(1 for _ in log.find(**key)) == len(truth):
            continue
        start = time.monotonic()
        checkpoint = _RESULTS / f"{task.name}-{setting:g}.checkpoint.safetensors"
        images, cost, remark = _solve(
            method, setting, generator, task, truth, gradients, checkpoint=checkpoint
        )
        seconds = round((time.monotonic() - start) / len(truth), 1)
        torch.save(images, _images_path(task, method, setting))
        errors = _hidden_error(images, truth, task).tolist()
        for face, error in enumerate(errors):
            log.add(**key, face=face, hidden_mse=error, cost=cost, seconds=seconds, remark=remark)


def _table(generator: torch.nn.Module, log: Log, gradients: int) -> str:
    rows = [
        f"{'task':<17}{'method':<10}{'setting':>9}{'median':>9}{'mean':>9}{'best':>9}{'worst':>9}"
        f"{'cost':>7}{'s/face':>8}  hidden MSE over faces and chains"
    ]
    for task in _tasks():
        for method in _GRID:
            setting = _tuned(method, generator, task, log)
            lines = list(log.find(**_key("result", task, method, setting, gradients)))
            errors = [e for line in lines for e in line["hidden_mse"]]
            rows.append(
                f"{task.name:<17}{method:<10}{setting:>9g}"
                f"{statistics.median(errors):>9.4f}{statistics.fmean(errors):>9.4f}"
                f"{min(errors):>9.4f}{max(errors):>9.4f}{lines[0]['cost']:>7}"
                f"{lines[0]['seconds']:>8.1f}  {lines[0]['remark']}"
            )
    return "\n".join(rows)


def _picture(generator: torch.nn.Module, task: Task, truth: Tensor, log: Log) -> None:
    """Ground truth, observed, and two chains of each method, a row per face."""
    images = {m: torch.load(_images_path(task, m, _tuned(m, generator, task, log))) for m in _GRID}
    measured = task.measure(truth)
    rows = []
    for face in range(len(truth)):
        seen = to_pixels(measured[face].numpy())
        if isinstance(task.operator, Mask):
            seen = hide(seen, ~task.hidden.numpy())
        row = [
            LabelledPicture("truth", to_pixels(truth[face].numpy())),
            LabelledPicture("observed", seen),
        ]
        for method, samples in images.items():
            row += [LabelledPicture(method, to_pixels(samples[face, c].numpy())) for c in (0, 1)]
        rows.append(row)
    draw_grid(rows).save(_RESULTS / f"dcgan_faces_{task.name}.png")


def main() -> None:
    """Run what is not in the log, then print the table and draw the grids."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=8)
    parser.add_argument("--gradients", type=int, default=3000, help="z-gradients per chain")
    options = parser.parse_args()
    generator = load_faces()
    truth = own_faces(generator, options.faces, seed=1)
    log = Log(_RESULTS / "dcgan_faces.jsonl")
    for task in _tasks():
        _run(generator, task, truth, options.gradients, log)
        _picture(generator, task, truth, log)
    print(_table(generator, log, options.gradients))


if __name__ == "__main__":
    main()

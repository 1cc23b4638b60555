"""Runs at any noise level, without tuning.

    python benchmarks/noise_levels.py [--problems linear face half] [--noises 1.0 0.3 ...]

`cogenerate` runs with ``noise_std`` and nothing else, without a budget: from 1 to 0.01 on a linear
model whose posterior is known (one call per data set), and on a DCGAN's face with a 30 x 30 block
hidden; then on the same face with its right half hidden, with four populations, whose agreement
ArviZ measures (extra ``arviz``). If the noise is small, the posterior is nearly Gaussian and the
energies average d / 2 = 50.

Every finished piece of work is a line of ``benchmarks/results/noise_levels.jsonl``; if the command
is started again, it continues. Lines from another state of the sampler's sources are ignored. It
ends with the table; the half of a face is drawn in ``noise_levels_half.png``. To use two cores,
start the command twice, each pinned to one core (``taskset``), with different noises.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dcgan import block_mask, load_faces, own_faces
from log import Log
from machine import digest_of_method
from torch import Tensor

from cogen_fast import Adaptive, cogenerate
from cogen_fast.experiments.calibration import linear_gaussian, mean_misfit
from cogen_fast.results.result import Result

_RESULTS = Path(__file__).parent / "results"
_NOISES = (1.0, 0.3, 0.1, 0.03, 0.01)
_DATA_SETS = 100
_HALF_NOISE, _POPULATIONS = 0.1, 4


def _facts(result: Result) -> dict[str, Any]:
    return {
        "gradients": result.gradients,
        "temperatures": len(result.betas),
        "acceptance": round(float(result.acceptance.nanmean()), 3),
        "acceptance_end": round(float(result.acceptance[-1].nanmean()), 3),
        "energy": round(float(result.energies.mean()), 3),
        "roots": result.surviving_roots.tolist(),
        "diagnosis": result.diagnose(),
    }


def _linear(noise: float) -> dict[str, object]:
    """Means over data sets, each with noise of its own; energies are held to their exact means."""
    model = replace(linear_gaussian(), noise=noise)
    _, x = model.simulate(_DATA_SETS, seed=5)
    runs = [
        cogenerate(model.generator, each, model.mask, noise_std=noise, seed=seed, progress=False)
        for seed, each in enumerate(x)
    ]
    excess = torch.cat([run.energies.mean(-1) for run in runs]) - mean_misfit(model, x)
    facts = [_facts(run) for run in runs]
    mean = {
        name: round(float(np.mean([f[name] for f in facts])), 3)
        for name in ("gradients", "temperatures", "acceptance", "acceptance_end", "energy")
    }
    z = float(excess.mean() / (excess.std() / len(excess) ** 0.5))
    kinds = Counter(sentence.split(":")[0] for f in facts for sentence in f["diagnosis"])
    diagnosis = [f"{kind}: {count} of {len(runs)} data sets" for kind, count in kinds.items()]
    return mean | {"z": round(z, 2), "diagnosis": diagnosis}


def _face(noise: float) -> dict[str, object]:
    generator, truth = _truth()
    mask = block_mask()
    result = cogenerate(generator, truth, mask, noise_std=noise, progress=False)
    errors = ((result.images[0] - truth) ** 2)[..., mask == 0].mean((-1, -2))
    spread = {"error_median": float(errors.median()), "error_worst": float(errors.max())}
    return _facts(result) | spread


def _half(noise: float) -> dict[str, object]:
    generator, truth = _truth()
    mask = torch.ones(64, 64)
    mask[:, 32:] = 0
    result = cogenerate(
        generator,
        truth,
        mask,
        method=Adaptive(populations=_POPULATIONS),
        noise_std=noise,
        progress=False,
    )
    result.grid(_RESULTS / "noise_levels_half.png")
    found = result.convergence()
    hidden = result.images[0][..., mask == 0].reshape(_POPULATIONS, -1, 3 * 64 * 32)
    within = float(hidden.var(1).mean())
    return _facts(result) | {
        "rhat_energy": round(float(found["rhat_energy"][0]), 3),
        "rhat_latent_median": round(float(np.median(found["rhat_latent"])), 3),
        "hidden_sd_within": round(within**0.5, 4),
        "hidden_sd_all": round(float(hidden.flatten(0, 1).var(0).mean()) ** 0.5, 4),
    }


def _truth() -> tuple[torch.nn.Module, Tensor]:
    """A face of the generator's own."""
    generator = load_faces()
    return generator, own_faces(generator, 1, seed=1)[0]


PROBLEMS = {"linear": (_linear, _NOISES), "face": (_face, _NOISES), "half": (_half, (_HALF_NOISE,))}


def table(log: Log, sources: str) -> str:
    """One row per piece."""
    rows = [f"{'problem':<8}{'noise':>6}{'temperatures':>14}{'gradients':>11}{'accept':>8}"]
    rows[0] += f"{'at the end':>11}{'energy':>9}{'s':>8}  more"
    shown = ("z", "error_median", "error_worst", "rhat_energy", "rhat_latent_median")
    pieces = [(name, noise) for name, (_, noises) in PROBLEMS.items() for noise in noises]
    made = log.find(sources=sources)
    for line in sorted(made, key=lambda line: pieces.index((line["problem"], line["noise"]))):
        more = [f"{name} {line[name]:.3g}" for name in shown if name in line]
        more += [f"{name} {line[name]}" for name in line if name.startswith("hidden")]
        rows.append(
            f"{line['problem']:<8}{line['noise']:>6}{line['temperatures']:>14.0f}"
            f"{line['gradients']:>11.0f}{line['acceptance']:>8.2f}{line['acceptance_end']:>11.2f}"
            f"{line['energy']:>9.2f}{line['seconds']:>8.1f}  {', '.join(more)}"
        )
        rows += [f"    {sentence}" for sentence in line["diagnosis"]]
    return "\n".join(rows)


def main() -> None:
    """Run what is not in the log, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=tuple(PROBLEMS))
    parser.add_argument("--noises", nargs="+", type=float, help="of each problem's own (all)")
    arguments = parser.parse_args()
    log, sources = Log(_RESULTS / "noise_levels.jsonl"), digest_of_method()
    threads = torch.get_num_threads()
    for name in arguments.problems:
        work, noises = PROBLEMS[name]
        torch.set_num_threads(1 if name == "linear" else threads)
        for noise in (n for n in noises if n in (arguments.noises or noises)):
            key = {"problem": name, "noise": noise, "sources": sources}
            if not any(log.find(**key)):
                start = time.monotonic()
                found = work(noise)
                seconds = round(time.monotonic() - start, 1)
                log.add(**key, seconds=seconds, **found)
                print(f"{name} {noise}: {found}", flush=True)
    print(table(log, sources))


if __name__ == "__main__":
    main()

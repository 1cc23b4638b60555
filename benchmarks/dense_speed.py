"""Whole annealed runs of the 2-D GAN on a device: ``python benchmarks/dense_speed.py [--help]``.

The published run as `cogenerate` makes it in one native call, and eager torch, in turns; medians
over rounds. One line of JSON each: chains, transitions, seconds of the whole call, and gradient
evaluations per second of all chains together. Fewer transitions for eager torch, whose rate does
not depend on their number. 100 chains are the paper's run (10,000 transitions of 20 leapfrog
steps). `dense_runs.py` has the CPU's other rivals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from peers import torch_hmc
from torch import Tensor

from cogen_fast import cogenerate
from cogen_fast.generators.pretrained import pretrained

_LEAPFROG_STEPS, _STEP_SIZE, _WEIGHT = 20, 0.01, 100.0
_KNOWN, _MASK = np.array([np.nan, 0.0], dtype=np.float32), np.array([0, 1])
_TRANSITIONS = {1: 10_000, 100: 10_000, 1_000: 10_000, 10_000: 2_000, 100_000: 1_000}
_EAGER_TRANSITIONS = 20


def _whole(generator: torch.nn.Module, chains: int, transitions: int) -> None:
    result = cogenerate(
        generator,
        _KNOWN,
        _MASK,
        method="paper",
        weight=_WEIGHT,
        chains=chains,
        ais_steps=transitions,
        leapfrog_steps=_LEAPFROG_STEPS,
        step_size=_STEP_SIZE,
        progress=False,
    )
    assert result.settings["backend"] == "fused"


def _eager(generator: torch.nn.Module, chains: int, device: str) -> Callable[[], object]:
    def energy(z: Tensor) -> Tensor:
        return _WEIGHT * generator(z)[:, 1] ** 2

    def run() -> object:
        with torch.device(device):
            betas = torch.linspace(0.0, 1.0, _EAGER_TRANSITIONS + 1)[1:]
            make = torch_hmc.annealed(energy, chains, 2, _LEAPFROG_STEPS, _STEP_SIZE, False)
            return make(betas)

    return run


def _seconds(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _lines(device: str, chains: int, transitions: int, rounds: int) -> list[dict[str, object]]:
    generator = pretrained("five-gaussians").to(device)
    methods = {
        "fused": (transitions, lambda: _whole(generator, chains, transitions)),
        "eager torch": (_EAGER_TRANSITIONS, _eager(generator, chains, device)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, (_, work) in methods.items():
            taken = _seconds(work, device)
            if turn > 0:  # the first one warms up
                seconds[name].append(taken)
    lines: list[dict[str, object]] = []
    for name, (count, _) in methods.items():
        median = statistics.median(seconds[name])
        rate = count * _LEAPFROG_STEPS * chains / median
        facts = {"method": name, "device": device, "chains": chains, "transitions": count}
        lines.append(facts | {"seconds": median, "gradients_per_second": rate})
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--chains", type=int, nargs="+", default=list(_TRANSITIONS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for chains in options.chains:
        transitions = _TRANSITIONS.get(chains, 1_000)
        for line in _lines(options.device, chains, transitions, options.rounds):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

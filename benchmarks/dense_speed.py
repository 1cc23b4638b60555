"""Whole annealed runs of the 2-D GAN on a device: ``python benchmarks/dense_speed.py [--help]``.

The published run, as `cogenerate` makes it in one native call, and eager torch take turns; the
figures are medians over rounds. Each method gives one line of JSON: chains, transitions, seconds of
the whole call, and gradient evaluations per second of all chains together. Eager torch has fewer
transitions, because its rate does not depend on their number. 100 chains are the paper's run
(10,000 transitions of 20 leapfrog steps). `dense_runs.py` has the other programs on the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from dense_runs import LEAPFROG_STEPS, STEP_SIZE, energy_of, published
from peers import torch_hmc

from cogen_fast.generators.pretrained import pretrained

_TRANSITIONS = {1: 10_000, 100: 10_000, 1_000: 10_000, 10_000: 2_000, 100_000: 1_000}
_EAGER_TRANSITIONS = 20


def _whole(generator: torch.nn.Module, chains: int, transitions: int) -> None:
    result = published(generator, "auto", chains, transitions)
    assert result.settings["backend"] == "fused"


def _eager(generator: torch.nn.Module, chains: int, device: str) -> Callable[[], object]:
    make = torch_hmc.annealed(
        energy_of(generator), chains, 2, LEAPFROG_STEPS, STEP_SIZE, compiled=False
    )

    def run() -> object:
        with torch.device(device):
            return make(torch.linspace(0.0, 1.0, _EAGER_TRANSITIONS + 1)[1:])

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
            if turn > 0:  # the first turn warms up
                seconds[name].append(taken)
    lines: list[dict[str, object]] = []
    for name, (count, _) in methods.items():
        median = statistics.median(seconds[name])
        rate = count * LEAPFROG_STEPS * chains / median
        facts = {"method": name, "device_type": device, "chains": chains, "transitions": count}
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

"""The sampler's own share of a transition's time: ``python benchmarks/sampler_share.py``.

Whole transitions and the generator's bare gradients are timed in turns, so that a slow moment of
the machine affects both. It prints medians, and the share of the time that is not the generator's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from problems import LEAPFROG_STEPS, PROBLEMS, bench

from cogen_fast.ops import dispatch

_ROUNDS = {"mlp-100": 100, "mlp-1000": 60, "dcgan-16": 12}


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _line(name: str, backend: str, rounds: int) -> str:
    with bench(name, backend) as b:
        ops = dispatch.resolve(backend, torch.device("cpu"))
        whole, bare = [], []
        for _ in range(rounds + 1):
            whole.append(_seconds(lambda: b.transition(ops)))
            bare.append(_seconds(b.bare_gradients))
    share = statistics.median(1.0 - g / t for t, g in zip(whole[1:], bare[1:], strict=True))
    scale = 1e6 / LEAPFROG_STEPS
    return (
        f"{name:<10}{backend:<11}{statistics.median(whole[1:]) * scale:>12.1f}"
        f"{statistics.median(bare[1:]) * scale:>12.1f}{100 * share:>10.1f} %"
    )


def main() -> None:
    """Print a line per problem and backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(PROBLEMS), help="problems (all)")
    print("microseconds per leapfrog step, medians; share = part of the time beyond the generator")
    print(f"{'problem':<10}{'ops':<11}{'transition':>12}{'generator':>12}{'share':>12}")
    for name in parser.parse_args().names:
        for backend in ("native", "reference"):
            print(_line(name, backend, _ROUNDS[name]), flush=True)


if __name__ == "__main__":
    main()

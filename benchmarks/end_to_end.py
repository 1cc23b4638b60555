"""Whole runs of image generators by `cogenerate`: ``python benchmarks/end_to_end.py``.

The figures are gradient evaluations per second, of all chains together, in short runs of the
published method with the backends

    reference   the sampler in plain torch, the generator as it is
    native      the sampler's updates and the misfit in C++, the generator as it is
    auto        the choice of `cogenerate`: for the shipped generator its fast path

Backends take turns, and the figures are medians over rounds. The DCGAN's weights are in the folder
that ``COGEN_FAST_TEST_DATA`` names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dcgan import block_mask, load_faces, own_faces

from cogen_fast import Compute, Paper, cogenerate
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.results.result import Result

RESULTS = Path(__file__).resolve().parent / "results" / "end_to_end.json"
LEAPFROG_STEPS = 10
BACKENDS = ("reference", "native", "auto")
Case = tuple[torch.nn.Module, Any, Any]


def garment() -> Case:
    """The shipped generator, one of its own images and a block of 12 x 12 hidden."""
    generator = pretrained("fashion-32").eval()
    with torch.no_grad():
        image = generator(torch.randn(1, 64, generator=torch.Generator().manual_seed(1)))
    mask = torch.ones(32, 32)
    mask[10:22, 10:22] = 0
    return generator, image[0], mask


def face() -> Case:
    """The DCGAN, one of its own faces and a block of 30 x 30 hidden."""
    generator = load_faces()
    return generator, own_faces(generator, 1, seed=1)[0], block_mask()


CASES: dict[str, Callable[[], Case]] = {"fashion-32": garment, "dcgan-64": face}


def run(case: Case, backend: str, chains: int, transitions: int) -> Result:
    """A run of that many temperatures with one transition each."""
    generator, image, mask = case
    return cogenerate(
        generator,
        image,
        mask,
        method=Paper(ais_steps=transitions, leapfrog_steps=LEAPFROG_STEPS),
        noise_std=0.1,
        chains=chains,
        progress=False,
        compute=Compute(backend=backend),
    )


def rates(case: Case, chains: int, transitions: int, rounds: int) -> dict[str, float]:
    """Gradient evaluations per second by backend: medians."""
    found: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for backend in BACKENDS:
        run(case, backend, chains, 1)
    for _ in range(rounds):
        for backend, times in found.items():
            start = time.perf_counter()
            run(case, backend, chains, transitions)
            seconds = time.perf_counter() - start
            times.append(transitions * LEAPFROG_STEPS * chains / seconds)
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Print the table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--transitions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    print(f"{'gradients/s':<24}" + "".join(f"{name:>12}" for name in BACKENDS) + "  auto / native")
    lines = []
    for name, make in CASES.items():
        case = make()
        for chains in options.chains:
            found = rates(case, chains, options.transitions, options.rounds)
            lines.append({"generator": name, "chains": chains} | found)
            cells = "".join(f"{found[backend]:12.0f}" for backend in BACKENDS)
            ratio = found["auto"] / found["native"]
            print(f"{name + f', {chains} chains':<24}{cells}{ratio:14.2f}x", flush=True)
    facts = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    options.out.write_text(json.dumps(facts | {"rates": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

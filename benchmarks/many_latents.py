"""The time of the sampler itself if latents are many: ``python benchmarks/many_latents.py``.

The runs are default ones of 16 particles, on a linear generator of three outputs, which costs next
to nothing. The figures are seconds for each gradient of all particles, beside those of a large
generator: a progressive one of the published size at 256 px. A generator with styles has more to
multiply at the same size (Karras et al. 2020), so the sampler's share would be smaller still.
Generator and sampler take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from cogen_fast import cogenerate
from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.problem.problem import prepared

_SIZES = (512, 2048, 9216)  # 512 latents are those of one layer with styles, 9216 those of 18
_OUTPUTS, _PARTICLES, _IMAGES, _RESOLUTION = 3, 16, 2, 256


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _of_sampler(size: int) -> tuple[float, int]:
    """Seconds of a whole run for each gradient of all its particles, and how many there were."""
    torch.manual_seed(0)
    generator = torch.nn.Linear(size, _OUTPUTS).requires_grad_(False)
    x, mask = torch.zeros(1, _OUTPUTS), torch.ones(_OUTPUTS)
    start = time.perf_counter()
    result = cogenerate(generator, x, mask, noise_std=0.1, progress=False)
    return (time.perf_counter() - start) / result.gradients, result.gradients


def _of_generator() -> float:
    """Seconds of one gradient for as many particles, by that of a few."""
    torch.manual_seed(0)
    generator = ProgressiveGenerator(_RESOLUTION).eval().requires_grad_(False)
    x = torch.zeros(1, 3, _RESOLUTION, _RESOLUTION)
    with prepared(generator, x, torch.ones(_RESOLUTION, _RESOLUTION), noise_std=0.1) as problem:
        z = torch.randn(1, _IMAGES, generator.latent_size)
        problem.potential.energy_and_grad(z)
        seconds = _seconds(lambda: problem.potential.energy_and_grad(z))
    return seconds * _PARTICLES / _IMAGES


def main() -> None:
    """Print a line for each number of latents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"milliseconds for each gradient of {_PARTICLES} particles, medians of {rounds}")
    print(f"{'latents':>8}{'gradients':>11}{'sampler':>10}{'generator':>11}{'share':>9}")
    for size in _SIZES:
        own, bare = [], []
        for _ in range(rounds):
            seconds, gradients = _of_sampler(size)
            own.append(seconds)
            bare.append(_of_generator())
        share = statistics.median(a / (a + b) for a, b in zip(own, bare, strict=True))
        print(
            f"{size:>8}{gradients:>11}{1e3 * statistics.median(own):>10.2f}"
            f"{1e3 * statistics.median(bare):>11.0f}{100 * share:>8.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Seconds of a run that several processes share: ``python benchmarks/processes.py``.

``torchrun --nproc-per-node 2 benchmarks/processes.py`` makes the same run with two processes.
Compare runs in which all processes together have the same number of threads, which
``OMP_NUM_THREADS`` sets for each. The generator is the shipped one, or with ``--resolution`` a
progressive one of the published width with random weights; on the GPU of the process if there is
one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cogen_fast import Adaptive, Compute, cogenerate, pretrained
from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.support.processes import own_gpu, rank_and_size

_CHAINS, _NOISE = 16, 0.3


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return own_gpu()


def main() -> None:
    """Print the seconds of a run, and of each gradient of all its chains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--populations", type=int, default=4)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shipped = arguments.resolution is None
    generator = pretrained("fashion-32") if shipped else ProgressiveGenerator(arguments.resolution)
    generator.requires_grad_(False).to(_device())
    with torch.no_grad():
        x = generator(torch.randn(1, generator.latent_size, device=_device()))[0]
    mask = torch.ones(x.shape[1:])
    mask[: len(mask) // 2] = 0
    seconds = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        result = cogenerate(
            generator,
            x.cpu(),
            mask,
            noise_std=_NOISE,
            chains=_CHAINS,
            budget=arguments.budget,
            method=Adaptive(populations=arguments.populations),
            compute=Compute(processes=True),
            progress=False,
        )
        seconds.append(time.perf_counter() - start)
    rank, size = rank_and_size()
    if rank == 0:
        took = statistics.median(seconds)
        print(
            f"{size} processes of {torch.get_num_threads()} threads on {_device().type}: "
            f"{took:.2f} s, {1000 * took / result.gradients:.1f} ms for each gradient of "
            f"{arguments.populations * _CHAINS} chains (median of {arguments.rounds} runs)"
        )


if __name__ == "__main__":
    main()

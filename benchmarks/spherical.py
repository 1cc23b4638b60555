"""What a generator that normalises its latents costs the sampler, and how well it is sampled.

    python benchmarks/spherical.py

Progressive GANs and StyleGAN divide a latent by its length, so the density is flat along |z| but
for the prior. The models here are ``G(z) = a Q u`` with ``u = z sqrt(d) / |z|`` (normalised) and
``u = z`` (plain), on data drawn from each, in default settings. The table shows gradients per
particle and, of the normalised model, what is known exactly: |z| is independent of the data, so
that ``|z|^2`` keeps mean d and variance 2 d.

A variant that moves on the sphere, at a fixed radius, saves one of d directions. It can pay no more
than a few percent unless the normalised model takes many more gradients than the plain one.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch
from log import Log
from machine import digest_of_method
from torch import Tensor

from cogen_fast import cogenerate
from cogen_fast.experiments.exact_models import LinearGaussian

_RESULTS = Path(__file__).parent / "results"
_SIZES, _NOISES, _SCALES, _RUNS = (20, 64, 512), (0.1, 0.3), ("iso", "stiff", "decay"), 8


class Normalised:
    """A linear model of latents scaled to the length ``sqrt(d)``."""

    def __init__(self, model: LinearGaussian) -> None:
        self.model = model

    def __call__(self, z: Tensor) -> Tensor:
        radius = z.norm(dim=-1, keepdim=True)
        outputs: Tensor = self.model.generator(z * (math.sqrt(z.shape[-1]) / radius))
        return outputs


def run(name: str, size: int, noise: float, normalised: bool, seed: int) -> dict[str, float]:
    """One run on data of its own: gradients, and mean and variance of |z|^2 over d and 2 d."""
    model = LinearGaussian.named(name, size, noise)
    generator = Normalised(model) if normalised else model.generator
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(1, size, generator=random)
    x = generator(z)
    x = x + noise * torch.randn(x.shape, generator=random)
    result = cogenerate(
        generator,
        x,
        torch.ones(x.shape[1:]),
        noise_std=noise,
        seed=seed,
        latent_shape=size,
        progress=False,
    )
    square = result.latents[0].double().square().sum(-1)
    return {
        "gradients": result.gradients,
        "square": float(square.mean()) / size,
        "warnings": len(result.diagnose()),
    }


def main() -> None:
    """Run what is missing, and print the table."""
    log, sources = Log(_RESULTS / "spherical.jsonl"), digest_of_method()
    print("| model | gradients, normalised | plain | ratio | mean of |z|^2 / d, z-score |")
    print("|---|---|---|---|---|")
    for name in _SCALES:
        for size in _SIZES:
            for noise in _NOISES:
                print(_row(log, sources, name, size, noise))


def _row(log: Log, sources: str, name: str, size: int, noise: float) -> str:
    found: dict[bool, list[dict[str, float]]] = {}
    for normalised in (True, False):
        found[normalised] = []
        for seed in range(_RUNS):
            key = {"model": name, "size": size, "noise": noise, "normalised": normalised}
            key |= {"seed": seed, "sources": sources}
            line = next(log.find(**key), None)
            if line is None:
                line = key | run(name, size, noise, normalised, seed)
                log.add(**line)
            found[normalised].append(line)
    spent = {each: statistics.mean(line["gradients"] for line in found[each]) for each in found}
    squares = [line["square"] for line in found[True]]
    error = statistics.stdev(squares) / math.sqrt(_RUNS)
    return (
        f"| {name}, d = {size}, noise {noise} | {spent[True]:,.0f} | {spent[False]:,.0f} "
        f"| {spent[True] / spent[False]:.2f} | {statistics.mean(squares):.3f}, "
        f"{(statistics.mean(squares) - 1.0) / error:+.1f} |"
    )


if __name__ == "__main__":
    main()

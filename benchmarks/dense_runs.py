"""Gradient evaluations per second of whole annealed runs on the 2-D GAN, beside other programs.

    python benchmarks/dense_runs.py [--chains 1 100 1000 10000] [--rounds 7]

The run is the published one with 20 leapfrog steps a transition: by this package as `cogenerate`
picks it (all of it in C++) and by its general path, by eager torch, by torch with a compiled
trajectory, by JAX with the whole run in one jit; and by BlackJAX's HMC, which anneals nothing. The
methods take turns, a quarter of a second each, so that a slow moment of the machine affects all of
them; the figures are medians over rounds. The last line is the roofline: the rate of a large matrix
product on the same cores in the same rounds. JAX and BlackJAX (extra ``peers``) are left out if
they are not installed. Writes ``benchmarks/results/dense_runs.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import torch_hmc
from torch import nn

from cogen_fast import Compute, Paper
from cogen_fast.experiments.synthetic.five_gaussians import anneal
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.results.result import Result

_OUT = Path(__file__).parent / "results" / "dense_runs.json"
LEAPFROG_STEPS, STEP_SIZE = 20, 0.01
_WEIGHT = 100.0
_SECONDS = 0.25
_SGEMM = 1024
_GENERATOR = pretrained("five-gaussians")

Run = Callable[[int], object]
"""So many transitions of all chains."""


def _betas(count: int) -> np.ndarray:
    return np.linspace(0.0, 1.0, count + 1, dtype=np.float32)[1:]


def published(generator: nn.Module, backend: str, chains: int, transitions: int) -> Result:
    """The published run with that many transitions, one at each temperature."""
    return anneal(
        generator,
        method=Paper(ais_steps=transitions, leapfrog_steps=LEAPFROG_STEPS, step_size=STEP_SIZE),
        seed=0,
        weight=_WEIGHT,
        chains=chains,
        progress=False,
        compute=Compute(backend=backend),
    )


def energy_of(generator: nn.Module) -> torch_hmc.Energy:
    """The same energy of latents ``(N, 2)``, for the rivals: ``(N,)``."""
    return lambda z: _WEIGHT * generator(z)[:, 1] ** 2


def _ours(backend: str) -> Callable[[int], Run]:
    return lambda chains: partial(published, _GENERATOR, backend, chains)


def _torch(compiled: bool) -> Callable[[int], Run]:
    energy = energy_of(_GENERATOR)

    def make(chains: int) -> Run:
        run = torch_hmc.annealed(energy, chains, 2, LEAPFROG_STEPS, STEP_SIZE, compiled)
        return lambda transitions: run(torch.from_numpy(_betas(transitions)))

    return make


def _jax(name: str) -> Callable[[int], Run]:
    import jax
    from peers import annealed_hmc, jax_generators

    twin = jax_generators.mlp(_GENERATOR.state_dict())

    def energy(z: jax.Array) -> jax.Array:
        return _WEIGHT * twin(z)[:, 1] ** 2

    def make(chains: int) -> Run:
        if name == "jax":
            run = annealed_hmc.annealed(energy, chains, 2, LEAPFROG_STEPS, STEP_SIZE)
            return lambda count: jax.block_until_ready(
                run(jax.random.key(0, impl="rbg"), _betas(count))
            )
        hmc = annealed_hmc.blackjax_hmc(energy, chains, 2, LEAPFROG_STEPS, STEP_SIZE)
        key = jax.random.key(0)
        return lambda count: jax.block_until_ready(hmc(key, jax.random.split(key, count)))

    return make


def _methods() -> dict[str, Callable[[int], Run]]:
    methods = {
        "fused": _ours("auto"),
        "general": _ours("native"),
        "eager torch": _torch(compiled=False),
        "torch.compile": _torch(compiled=True),
    }
    if importlib.util.find_spec("jax") and importlib.util.find_spec("blackjax"):
        methods |= {"jax": _jax("jax"), "blackjax": _jax("blackjax")}
    return methods


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _long_enough(run: Run) -> int:
    """Transitions that take about `_SECONDS` beyond a call of one; for them all is compiled."""
    count, call = 1, _warm_seconds(run, 1)
    taken = 0.0
    while taken < 0.5 * _SECONDS:
        count = max(2 * count, min(16 * count, int(count * _SECONDS / max(taken, 1e-6))))
        taken = _warm_seconds(run, count) - call
    return count


def _warm_seconds(run: Run, count: int) -> float:
    run(count)
    return _seconds(lambda: run(count))


def _sgemm() -> float:
    """GFLOP/s of a product of two large square matrices."""
    a = torch.randn(_SGEMM, _SGEMM)
    times = [_seconds(lambda: a @ a) for _ in range(5)]
    return 2 * _SGEMM**3 / statistics.median(times) / 1e9


def _rates(chains: int, rounds: int) -> dict[str, float]:
    """Gradient evaluations per second of all chains together, and the matrix product's GFLOP/s."""
    runs = {name: make(chains) for name, make in _methods().items()}
    counts = {name: _long_enough(run) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in [*runs, "sgemm"]}
    for _ in range(rounds):
        for name, run in runs.items():
            gradients = counts[name] * LEAPFROG_STEPS * chains
            found[name].append(gradients / _seconds(lambda r=run, n=counts[name]: r(n)))
        found["sgemm"].append(_sgemm())
    return {name: statistics.median(rates) for name, rates in found.items()}


def _flops_per_gradient() -> int:
    """Operations of the products, forward and backward: two for each weight in each direction."""
    return 4 * sum(p.numel() for p in _GENERATOR.parameters() if p.ndim == 2)


def _print(table: dict[int, dict[str, float]]) -> None:
    names = [name for name in next(iter(table.values())) if name != "sgemm"]
    print(f"{'M gradients/s':<16}" + "".join(f"{n:>10} chains" for n in table))
    for name in names:
        print(f"{name:<16}" + "".join(f"{rates[name] / 1e6:>17.4g}" for rates in table.values()))
    for rival in names[1:]:
        ratios = (rates["fused"] / rates[rival] for rates in table.values())
        print(f"{'/ ' + rival:<16}" + "".join(f"{r:>16.1f}x" for r in ratios))
    flops = _flops_per_gradient()
    for label, value in (
        ("fused, GFLOP/s", lambda rates: rates["fused"] * flops / 1e9),
        ("sgemm, GFLOP/s", lambda rates: rates["sgemm"]),
        ("share of sgemm", lambda rates: rates["fused"] * flops / 1e9 / rates["sgemm"]),
    ):
        print(f"{label:<16}" + "".join(f"{value(rates):>17.3g}" for rates in table.values()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    table = {chains: _rates(chains, options.rounds) for chains in options.chains}
    _print(table)
    record = {"threads": torch.get_num_threads(), "flops_per_gradient": _flops_per_gradient()}
    _OUT.write_text(json.dumps(record | {"rates": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()

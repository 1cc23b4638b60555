"""Seconds per z-gradient of progressive GANs: ``python benchmarks/progressive_speed.py``.

The figures are for energy and z-gradient of a masked squared error, of all latents of a batch at
once, by

    ours      the fast path that `cogenerate` takes
    eager     the module and `autograd.grad`, as most people write it
    compile   `torch.compile` of the module, weights frozen (`COMPILED` only: slow to build)
    jax       the same network in JAX, jitted (extra `peers`)

and beside them for `sgemm`, a large matrix product, as the ceiling of arithmetic. Methods take
turns, so that a slow moment of the machine affects all of them; the figures are medians over
rounds. Finished cases are in the log (``--out``), so a killed command continues. Weights are
random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from log import Log
from torch import Tensor

from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.ops import native
from cogen_fast.ops.spec import MisfitSpec

RESULTS = Path(__file__).resolve().parent / "results" / "progressive_speed.jsonl"
LATENTS = 512
SGEMM = 2048
CASES = [
    (resolution, batch, fmap_base)
    for fmap_base in (8192, 2048)
    for resolution, batch in ((64, 1), (64, 4), (64, 8), (128, 1), (128, 4))
]
COMPILED = ((64, 4, 8192), (64, 4, 2048))

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A generator, what is observed of its images, and latents ``(n, 512)``."""

    generator: ProgressiveGenerator
    spec: MisfitSpec
    index: Tensor
    z: Tensor


def task(resolution: int, batch: int, fmap_base: int) -> Task:
    """Random weights, a random image, half of whose pixels are observed."""
    torch.manual_seed(0)
    generator = ProgressiveGenerator(resolution, fmap_base=fmap_base).eval().requires_grad_(False)
    shape = generator.output_shape
    target = torch.randn(1, shape[0] * resolution**2)
    mask = (torch.rand(target.shape) < 0.5).to(torch.uint8)
    spec = MisfitSpec("mask", shape, 1, target, mask, torch.ones(1, 1))
    index = torch.zeros(batch, dtype=torch.int64)
    return Task(generator, spec, index, torch.randn(batch, LATENTS))


def ours(t: Task) -> Gradient:
    """The fast path."""
    fast = t.generator.fast_path()
    return lambda z: fast.energy_and_grad(z, t.spec, t.index)


def by_autograd(t: Task, generator: Callable[[Tensor], Tensor]) -> Gradient:
    """Any torch function of latents."""

    def gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        image = generator(z)
        energy, by_image = native.misfit(image.detach(), t.spec, t.index)
        return energy, torch.autograd.grad(image, z, by_image)[0]

    return gradient


def eager(t: Task) -> Gradient:
    """The module."""
    return by_autograd(t, t.generator)


def compiled(t: Task) -> Gradient:
    """The module, compiled for this shape."""
    return by_autograd(t, torch.compile(t.generator, dynamic=False))


def by_jax(t: Task) -> Gradient:
    """The twin; ImportError without JAX."""
    import jax
    import jax.numpy as jnp
    from peers import jax_generators

    twin = jax_generators.progressive(t.generator)
    mask = jnp.asarray(t.spec.mask.numpy().astype("float32"))
    target = jnp.asarray(t.spec.target.numpy())

    def total(z: Any) -> Any:
        squares = mask * (twin(z).reshape(len(z), -1) - target) ** 2
        return squares.sum(), squares.sum(-1)

    run = jax.jit(jax.grad(total, has_aux=True))

    def gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        grad, energy = run(jnp.asarray(z.numpy()))
        return torch.from_dlpack(energy), torch.from_dlpack(grad.block_until_ready())

    return gradient


METHODS: dict[str, Callable[[Task], Gradient]] = {
    "ours": ours,
    "eager": eager,
    "compile": compiled,
    "jax": by_jax,
}


def check(t: Task, gradient: Gradient, expected: tuple[Tensor, Tensor]) -> None:
    """That a method computes the same; as vectors, for kinks may flip signs in float32."""
    energy, grad = gradient(t.z)
    torch.testing.assert_close(energy.double(), expected[0], rtol=1e-4, atol=0)
    distance = float((grad - expected[1]).norm() / expected[1].norm())
    assert distance < 1e-2, f"another gradient, by {distance:.1g} of its length"


def built(t: Task, names: list[str]) -> tuple[dict[str, Gradient], dict[str, str]]:
    """The methods that are here, checked and warm, and why the others are not."""
    expected = eager(t)(t.z)
    found, reasons = {}, {}
    for name in names:
        try:
            method = METHODS[name](t)
            check(t, method, expected)
        except ImportError as error:
            reasons[name] = f"{name} is absent: {error}"
            continue
        found[name] = method
    return found, reasons


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, all of them in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def run(case: tuple[int, int, int], names: list[str], rounds: int) -> dict[str, Any]:
    """One case's line."""
    t = task(*case)
    skipped = {}
    if "compile" in names and case not in COMPILED:
        names = [name for name in names if name != "compile"]
        skipped["compile"] = "not built for this case"
    methods, absent = built(t, names)
    a, b = torch.randn(2, SGEMM, SGEMM)
    out = torch.empty(SGEMM, SGEMM)
    calls = {name: partial(method, t.z) for name, method in methods.items()}
    seconds = medians(calls | {"sgemm": lambda: torch.mm(a, b, out=out)}, rounds)
    return {
        "multiply_adds": 2 * case[1] * t.generator.multiply_adds(),
        "sgemm_rate": SGEMM**3 / seconds.pop("sgemm"),
        "seconds": seconds,
        "skipped": skipped | absent,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Seconds of each method, ours against the others, and against what sgemm would need.

    "of sgemm" counts the module's own multiply-adds, of which ours makes about a third.
    """
    rows = [f"{'case':<18}" + "".join(f"{name:>10}" for name in METHODS) + "  against, of sgemm"]
    for line in lines:
        resolution, batch, fmap_base = line["case"]
        seconds = line["seconds"]
        cells = "".join(
            f"{seconds[name]:>10.4f}" if name in seconds else f"{'-':>10}" for name in METHODS
        )
        gains = ", ".join(
            f"{name} {each / seconds['ours']:.2f}x"
            for name, each in seconds.items()
            if name != "ours"
        )
        share = line["multiply_adds"] / seconds["ours"] / line["sgemm_rate"]
        name = f"{resolution}px x{batch} {fmap_base}"
        rows.append(f"{name:<18}{cells}  {gains}, {100 * share:.0f} %")
    return "\n".join(rows)


def main() -> None:
    """Time the cases that the log does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    log = Log(options.out)
    settings = {"threads": options.threads, "methods": options.methods}
    for case in CASES:
        key = {"case": list(case)} | settings
        if next(log.find(**key), None) is None:
            log.add(**key, torch=torch.__version__, **run(case, options.methods, options.rounds))
            print(table(log.lines[-1:]), flush=True)
    print(table(list(log.find(**settings))))


if __name__ == "__main__":
    main()

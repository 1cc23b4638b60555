"""Each op, native and reference: `pytest benchmarks/test_ops_benchmark.py`.

A group is one op at one shape; before timing, the results of both at these shapes are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from cogen_fast.ops import native, reference
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

# Observations, chains, latent dimensions; shape of an output; generator outputs per misfit call.
PROBLEMS = {
    "five-gaussians-5x100x2": ((5, 100, 2), (2,), 500),
    "dcgan-1x16x100": ((1, 16, 100), (3, 64, 64), 16),
    "big-4x256x512": ((4, 256, 512), (3, 128, 128), 32),
}
OPS = (
    "initial_latents",
    "begin_trajectory",
    "continue_trajectory",
    "accept_select",
    "adapt_step_size",
    "misfit",
)


def _calls(problem: str, ops: Any) -> dict[str, Callable[[], Any]]:
    (b, n, d), output, rows = PROBLEMS[problem]
    rng = torch.Generator().manual_seed(0)
    each = torch.ones(b, dtype=torch.float64)
    step, running = 0.01 * each, 0.65 * each
    stream = NoiseStream(7, torch.zeros(b, dtype=torch.int64), torch.arange(b))
    settings = TransitionSettings(0.5 * each, each, step)
    latents, grad = torch.randn(2, b, n, d, generator=rng)
    energy = torch.rand(b, n, generator=rng, dtype=torch.float64)
    proposal = ops.begin_trajectory(latents, energy, grad, settings, stream)
    x = torch.randn(rows, *output, generator=rng)
    target = torch.randn(b, x[0].numel(), generator=rng)
    mask = (torch.rand(target.shape, generator=rng) < 0.7).to(torch.uint8)
    spec = MisfitSpec("mask", output, 1, target, mask, torch.ones(1, 1))
    observation = torch.arange(rows) * b // rows
    return {
        "initial_latents": lambda: ops.initial_latents(stream, n, d, torch.float32),
        "begin_trajectory": lambda: ops.begin_trajectory(latents, energy, grad, settings, stream),
        "continue_trajectory": lambda: ops.continue_trajectory(proposal, grad, settings),
        "accept_select": lambda: ops.accept_select(
            latents, energy, grad, proposal, energy, grad, settings, stream
        ),
        "adapt_step_size": lambda: ops.adapt_step_size(
            step, running, energy, None, AdaptationRule()
        ),
        "misfit": lambda: ops.misfit(x, spec, observation),
    }


def _assert_same(ours: Any, exact: Any) -> None:
    for got, expected in zip(ours, exact, strict=True):
        if got.is_floating_point():
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark: BenchmarkFixture, op: str, problem: str, backend: Any) -> None:
    benchmark.group = f"{op} {problem}"
    if op not in ("continue_trajectory", "initial_latents"):
        _assert_same(_calls(problem, native)[op](), _calls(problem, reference)[op]())
    call = _calls(problem, backend)[op]
    call()
    # Each call of `continue_trajectory` moves the position a little; the work stays the same.
    benchmark(call)

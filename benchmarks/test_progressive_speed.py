"""One z-gradient of progressive GANs: `pytest benchmarks/test_progressive_speed.py`.

Each method is compared with the module before it is timed; `progressive_speed.py` prints a longer
table.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from progressive_speed import METHODS, check, eager, task
from pytest_benchmark.fixture import BenchmarkFixture

CASES = [(64, 1, 8192), (64, 4, 8192), (64, 1, 2048), (64, 4, 2048)]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "compile"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}px-x{c[1]}-{c[2]}")
def test_z_gradient(benchmark: BenchmarkFixture, case: tuple[int, int, int], method: str) -> None:
    if method == "jax":
        pytest.importorskip("jax", reason="needs jax (extra `peers`)")
    t = task(*case)
    benchmark.group = f"z-gradient {case[0]} px, batch {case[1]}, fmap_base {case[2]}"
    gradient = METHODS[method](t)
    check(t, gradient, eager(t)(t.z))
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(partial(gradient, t.z), rounds=5)

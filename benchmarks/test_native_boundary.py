"""The cost of the extension's checks: `pytest benchmarks/test_native_boundary.py`.

Each function is called with arguments for which there is nothing to compute: no observations,
images or rows. So the times are those of the call, of reading all its tensors, and of verifying
them. For `anneal_mlp` these are 24 tensors and 35 arguments.
"""

from __future__ import annotations

import native_calls
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cogen_fast.ops import native

CASES = {case.function: case for case in native_calls.cases(native.extension())}


@pytest.mark.parametrize("function", CASES)
def test_boundary(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = "boundary"
    call = getattr(native.extension(), function)
    benchmark.pedantic(
        call,
        kwargs=native_calls.without_work(CASES[function]),
        iterations=200,
        rounds=101,
        warmup_rounds=10,
    )

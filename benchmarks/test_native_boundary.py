"""What the extension's checks cost: `pytest benchmarks/test_native_boundary.py`.

Each function is called with arguments of which there is nothing to compute: no observations, images
or rows. So what is timed is the call, the reading of all its tensors and their verification. For
`anneal_mlp` these are 24 tensors and 35 arguments.
"""

from __future__ import annotations

from typing import Any

import native_calls
import pytest
from native_calls import Case
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from cogen_fast.ops import native

# Histories have observations second; the rest belongs to layers, or to the schedule.
_SECOND = {"acceptance", "step_used", "energy_mean", "energy_std", "trace"}
_WHOLE = {"bias", "kernel", "arena", "colour_weight", "colour_bias", "betas"}
CASES = {case.function: case for case in native_calls.cases(native.extension())}


def _without_work(case: Case) -> dict[str, Any]:
    def cut(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or name in _WHOLE:
            return value
        return value[:, :0].contiguous() if name in _SECOND else value[:0]

    given = {name: cut(name, value) for name, value in case.arguments.items()}
    return given | ({"images": 0} if "images" in given else {})


@pytest.mark.parametrize("function", CASES)
def test_boundary(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = "boundary"
    call = getattr(native.extension(), function)
    benchmark.pedantic(
        call, kwargs=_without_work(CASES[function]), iterations=200, rounds=101, warmup_rounds=10
    )

"""One transition of 20 leapfrog steps, with native and with reference ops.

``bare`` is the same number of the generator's own forward and backward passes, which no transition
can be faster than.
"""

from __future__ import annotations

import pytest
from dcgan import data_folder
from problems import PROBLEMS, bench

from cogen_fast.ops import dispatch


def _needs_data(name: str) -> None:
    if name.startswith("dcgan") and not data_folder().is_dir():
        pytest.skip(f"no test data at {data_folder()} (set COGEN_FAST_TEST_DATA)")


@pytest.mark.parametrize("variant", ["bare", "native", "reference"])
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_transition(benchmark, name: str, variant: str) -> None:
    _needs_data(name)
    benchmark.group = f"transition {name}"
    backend = "native" if variant == "bare" else variant
    rounds = 5 if name.startswith("dcgan") else 30
    with bench(name, backend) as b:
        ops = dispatch.resolve(backend, b.problem.adapter.device)
        run = b.bare_gradients if variant == "bare" else lambda: b.transition(ops)
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)

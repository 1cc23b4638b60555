"""Invalid arguments of the extension: what the errors say, and that no such call is made.

`native_calls` has the table of valid calls and every way to make them invalid. It runs in a process
of its own, so that a crash of the interpreter is a failed test. It runs a second time with tensors
that describe themselves as those of an older torch do; `test_sanitizers` runs it on an extension
that is built with sanitizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import native_calls
import numpy as np
import pytest
import torch
from native_calls import F64, Case

from cogen_fast.generators import MLPGenerator
from cogen_fast.ops import native
from cogen_fast.problem.problem import prepared
from cogen_fast.sampler import ais, dense


def cases(function: str) -> list[Case]:
    """The cases of one function."""
    found = native_calls.cases(native.extension())
    return [case for case in found if case.function == function]


def test_the_table_has_every_function() -> None:
    found = {case.function for case in native_calls.cases(native.extension())}
    on_cuda = native_calls.ON_CUDA
    assert found | on_cuda == native_calls.functions(native.extension())
    with_device = torch.cuda.is_available() and native.extension().build_info()["with_cuda"]
    assert (on_cuda <= found) == with_device


# --- words --------------------------------------------------------------------------------------

INVALID: list[tuple[str, str, Any, type[Exception], str]] = [
    ("anneal_mlp", "energy", torch.zeros(3, 8), TypeError,
     "energy: expected float64 (3, 4), got float32 (3, 8)"),
    ("anneal_mlp", "energy", torch.zeros(3, 8, dtype=F64), ValueError,
     "energy: expected float64 (3, 4), got float64 (3, 8)"),
    ("anneal_mlp", "betas", torch.zeros(4, dtype=F64), ValueError,
     "acceptance: expected float64 (4, 3), got float64 (5, 3)"),
    ("anneal_mlp", "weights", [torch.zeros(6, 16), torch.zeros(9, 9)], ValueError,
     "weights[1]: expected float32 (9, 8), got float32 (9, 9)"),
    ("anneal_mlp", "transition", torch.tensor([0, 2**32 - 1, 0]), ValueError,
     "transition: expected values in [0, 2^32), got 4294967295 and 10 more"),
    ("accept_select", "grad", torch.zeros(6, 4, 3).transpose(0, 2), ValueError,
     "grad: expected a contiguous tensor, got strides (1, 3, 12)"),
    ("accept_select", "beta", torch.zeros(3, dtype=F64, device="meta"), ValueError,
     "beta: expected a tensor of numbers in memory, got one of torch.float64, torch.strided, "
     "on meta"),
    ("accept_select", "active", [True, True, False], TypeError,
     "active: expected a torch.Tensor, got list"),
    ("accept_select", "position", 140_000_000_000, TypeError,
     "position: expected a torch.Tensor, got int"),
    ("accept_select", "threads", 0, ValueError,
     "threads: expected between 1 and 2147483647, got 0"),
    ("accept_select", "seed", 1.5, TypeError, "seed: expected an integer, got float"),
    ("misfit", "observation", torch.tensor([0, 1, 3, 0]), ValueError,
     "observation: expected values in [0, B) with B = 3, got 3"),
    ("misfit", "weight", torch.ones(2, 72), ValueError,
     "weight: expected shape (1 or 3, 72), got float32 (2, 72)"),
    ("convolve", "arena", torch.zeros(10), ValueError, "arena: expected at least"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "name", "value", "kind", "message"), INVALID, ids=lambda v: v if v is str else None
)
def test_errors_say_what_was_expected(
    function: str, name: str, value: Any, kind: type[Exception], message: str
) -> None:
    case = cases(function)[0]
    with pytest.raises(kind, match="^" + re.escape(message)):
        getattr(native.extension(), function)(**case.arguments | {name: value})


def test_outputs_without_entries_are_refused() -> None:
    """The op would never write the energies of such outputs."""
    case = cases("misfit")[0]
    nothing = {name: case.arguments[name][:, :0] for name in ("target", "mask", "weight")}
    outputs = {name: case.arguments[name][..., :0].contiguous() for name in ("outputs", "grad")}
    with pytest.raises(ValueError, match=r"^outputs: expected outputs of at least one entry, got"):
        native.extension().misfit(**case.arguments | nothing | outputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(
    not native.extension().build_info()["with_cuda"], reason="extension built without CUDA"
)
def test_arrays_elsewhere_are_refused_by_a_device() -> None:
    for function, name in (("noise_cuda", "out"), ("anneal_mlp_cuda", "latents")):
        case = cases(function)[0]
        here = case.arguments[name].cpu()
        with pytest.raises(ValueError, match=f"^{name}: expected a tensor on a CUDA device"):
            getattr(native.extension(), function)(**case.arguments | {name: here})


# --- a run that is gone on with -------------------------------------------------------------------


def _halved(value: torch.Tensor) -> torch.Tensor:
    return value[: len(value) // 2]


@pytest.mark.parametrize(
    ("part", "name", "change"),
    [
        ("state", "log_weights", lambda x: x[:, :1].contiguous()),
        ("hmc", "energy", lambda x: x[:, :1].contiguous()),
        ("hmc", "grad", lambda x: x[..., :1].contiguous()),
        ("hmc", "energy", torch.Tensor.float),
        ("history", "acceptance", _halved),
        ("history", "acceptance", torch.Tensor.float),
        ("history", "energy", lambda x: x[:, :1].contiguous()),
        ("history", "trace", lambda x: x[..., :1].contiguous()),
    ],
)
def test_a_run_with_other_tensors_is_refused(part: str, name: str, change: Any) -> None:
    """A changed file may hold such tensors; nothing is read or written beyond their ends."""
    with prepared(
        MLPGenerator((3, 8, 4)), np.zeros((2, 4)), np.ones(4), whole_runs=True, noise_std=0.5
    ) as found:
        assert found.dense is not None
        moves = ais.Moves(leapfrog_steps=2)
        state = ais.init(
            found.potential, moves, step_size_start=0.1, chains=5, observations=2, seed=1,
            observation_ids=[0, 1], **found.how(),
        )  # fmt: skip
        run = ais.Run(state, ais.History.empty(6, state, True), 0)
        parts: Mapping[str, Any] = {"state": state, "hmc": state.hmc, "history": run.history}
        changed = replace(parts[part], **{name: change(getattr(parts[part], name))})
        if part == "hmc":
            state = replace(state, hmc=changed)
        run = replace(
            run,
            state=changed if part == "state" else state,
            history=changed if part == "history" else run.history,
        )
        with pytest.raises((TypeError, ValueError), match=r"^\w+: expected .*, got "):
            dense.ais_run(found.dense, np.full(6, 0.1), moves, run)


# --- every invalid call -------------------------------------------------------------------------


@pytest.mark.slow
def test_every_spoilt_call_is_refused_however_tensors_are_described(tmp_path: Path) -> None:
    printed = native_calls.in_a_process(tmp_path)
    native_calls.assert_all_refused(printed, native.extension())
    # Both runs refuse the same calls and write the same numbers to the last bit.
    assert native_calls.in_a_process(tmp_path, "--older-torch") == printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to run on")
@pytest.mark.skipif(
    not native.extension().build_info()["with_cuda"], reason="extension built without CUDA"
)
def test_every_spoilt_call_for_a_device_is_refused_without_one(tmp_path: Path) -> None:
    refused = native_calls.refusals(native_calls.in_a_process(tmp_path, "--without-device"))
    assert refused.keys() == native_calls.ON_CUDA and min(refused.values()) > 50, refused


def test_a_number_of_tiles_that_overflows_is_refused() -> None:
    # Modulo 2^64 the product of 8, `high` and `wide` is the number of tiles that there is room for.
    high, wide, tiles = 2**30 + 23170, 2**31 - 46339, 537552
    assert (8 * high * wide) % 2**64 == tiles
    operands = torch.zeros(9, tiles, 1)
    with pytest.raises(ValueError, match=r"^operands: expected shape \(9, 8 \* 1073764994 \* "):
        native.extension().fill_tiles(
            x=torch.zeros(8, 2, 2, 1), high=high, wide=wide, taps=2, outputs=2, step=1, top=0,
            left=0, operands=operands, first=0, threads=1,
        )  # fmt: skip
    assert not operands.any()

"""The ops in Triton: their tests under its interpreter, and their kernels compiled for a GPU.

The interpreter is chosen when kernels are defined, so those tests run in a process of their own.
It takes what the compiler does not; the compiler needs no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from implementations import INTERPRETED

from cogen_fast.ops import dispatch

triton = pytest.importorskip("triton", reason="needs Triton (on Linux)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.interpreter,
    pytest.mark.skipif(INTERPRETED, reason="this is the run under the interpreter"),
]

ROOT = Path(__file__).resolve().parent.parent
INTERPRETED_FILES = ("test_ops.py", "test_op_checks.py", "test_hmc.py", "test_graphs.py")
# These have many chains or many calls, while the interpreter takes half a millisecond for each
# device function.
TOO_LONG = (
    "exact_draws_stay_exact",
    "mean_of_exp_minus",
    "beta_zero_leaves",
    "agree_with_quadrature",
    "error_is_of_second_order",
    "fair_over_its_uniform",
)


def test_the_tests_of_the_ops_pass_under_the_interpreter() -> None:
    chosen = " and ".join(["triton", *(f"not {name}" for name in TOO_LONG)])
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "-k", chosen]
    command += [
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::RuntimeWarning",
    ]  # NumPy warns about infinities that the tests ask for
    files = [str(ROOT / "tests" / name) for name in INTERPRETED_FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + files, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 700


DOUBLES = (
    "hamiltonian energy beta prior_weight step_size proposed_energy out_energy out_probability "
    "out_change new_step_size new_running running probability log_weights upto uniform "
    "partials"
)
LATENTS = (
    "latents grad position momentum inverse_mass proposed_grad out_latents out_grad x target weight"
)
TYPES = {name: "*fp64" for name in DOUBLES.split()}
TYPES |= {name: "*i64" for name in ("transition", "observation")} | {"seed": "i64"}
TYPES |= {name: "*u8" for name in ("active", "wanted", "mask", "out_accepted")}
TILE = {"ROWS": 2, "COLS": 512}
NARROW = {"ROWS": 256, "COLS": 4}
RULE = {
    "target": 0.65,
    "decay": 0.9,
    "increase": 1.02,
    "decrease": 0.98,
    "minimum": 1e-4,
    "maximum": 0.5,
}
NO_MASS, ALL = {"inverse_mass": None}, {"active": None}
OWN, SHARED = {"PER_CHAIN": True}, {"PER_CHAIN": False}
KERNELS: list[tuple[str, dict[str, Any]]] = [
    ("initial_latents", TILE),
    ("initial_latents", NARROW),
    ("begin_trajectory", TILE | OWN),
    ("begin_trajectory", NARROW | SHARED | NO_MASS),
    ("continue_trajectory", TILE | SHARED),
    ("continue_trajectory", NARROW | OWN | NO_MASS),
    ("accept_select", TILE | OWN),
    ("accept_select", NARROW | SHARED | NO_MASS | ALL),
    ("adapt_step_size", RULE | OWN | {"BLOCK": 1024}),
    ("adapt_step_size", RULE | SHARED | ALL | {"BLOCK": 1}),
    ("cumulate_weights", {"BLOCK": 1024}),
    ("systematic_ancestors", {"BLOCK": 1024}),
    ("systematic_ancestors", {"BLOCK": 1, "wanted": None}),
    ("observation_uniforms", {"BLOCK": 16}),
    ("misfit_of_pixels", {"STRIDED": True, "ELEMENTWISE": True, "BLOCK": 2048}),
    ("misfit_of_pixels", {"STRIDED": False, "ELEMENTWISE": False, "BLOCK": 2, "mask": None}),
    ("misfit_of_means", {"ELEMENTWISE": False, "BLOCK": 2048}),
    ("sum_segments", {"BLOCK": 1024}),
]


def _types(kernel: str, dtype: str) -> Mapping[str, str]:
    """The types of a kernel's parameters; those not listed are sizes."""
    outputs = {
        "initial_latents": dtype,
        "observation_uniforms": "*fp64",
        "systematic_ancestors": "*i64",
    }
    types = TYPES | {name: dtype for name in LATENTS.split()}
    return types | ({"out": outputs[kernel]} if kernel in outputs else {})


@pytest.mark.parametrize("dtype", ["*fp32", "*fp64"])
@pytest.mark.parametrize(
    ("name", "constants"), KERNELS, ids=[f"{k}-{n}" for n, (k, _) in enumerate(KERNELS)]
)
def test_a_kernel_compiles_for_a_gpu(name: str, constants: dict[str, Any], dtype: str) -> None:
    if torch.version.hip is not None:
        pytest.skip("this Triton compiles for another maker's GPUs")
    from cogen_fast.ops import triton_kernels

    kernel = getattr(triton_kernels, name)
    types = _types(name, dtype)
    signature = {
        each: "constexpr" if each in constants else types.get(each, "i32")
        for each in kernel.arg_names
    }
    source = triton.compiler.ASTSource(
        kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(key),): value for key, value in constants.items()},
    )
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    ptx = compiled.asm["ptx"]
    assert ".target sm_90" in ptx
    assert compiled.asm["cubin"]
    # In float32, approximate functions would change the noise, and fused multiplications the sums.
    assert not re.search(r"\.approx\.(ftz\.)?f32|div\.full|fma\.rn\.(ftz\.)?f32", ptx)


def test_every_kernel_is_compiled_here() -> None:
    from cogen_fast.ops import triton_kernels

    text = Path(triton_kernels.__file__).read_text()
    defined = set(re.findall(r"(?m)^def ([a-z]\w*)\(", text))
    assert defined == {name for name, _ in KERNELS}


def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
    from cogen_fast.ops import triton_ops

    table = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^log_weights: expected a tensor on cuda, got .* cpu"):
        triton_ops.systematic_ancestors(table, table[:, 0], None)
    with pytest.raises(ValueError, match=r"^backend: triton serves cuda.*TRITON_INTERPRET=1"):
        dispatch.resolve("triton", torch.device("cpu"))


def test_an_unusable_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from cogen_fast.ops import triton_ops

    class Broken:
        @property
        def active(self) -> None:
            raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton.runtime, "driver", Broken())
    assert triton_ops.failure() == "Triton cannot use the CUDA device (no C compiler)"

"""The C++ extension. Its functions take all arguments by keyword, and arrays as torch tensors.

Each function verifies what its kernel relies on: type, shape, device and contiguity of every
tensor, that sizes agree, and the range of counts and indices. A TypeError (for a wrong type) or
ValueError names the argument, what was expected and what came. ``real`` is float32 or float64, the
same for all tensors of a call that are marked real; energies, settings and step sizes are always
float64. B observations have N chains of d dimensions. Tensors that are written are marked.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

from torch import Tensor

class BuildInfo(TypedDict):
    with_cuda: bool
    without_cuda: str  # the reason
    cuda_archs: tuple[str, ...]
    openmp: bool
    compiler: str
    isa_built: tuple[str, ...]
    isa_usable: tuple[str, ...]
    isa: str

def build_info() -> BuildInfo: ...
def set_isa(name: str, /) -> None: ...

_Noise = Literal["words", "uniforms", "normals"]
_Kind = Literal["mask", "pool", "stride"]

def noise(
    *,
    out: Tensor,  # written: int32 (B, N, blocks, 4), real (B, N) or real (B, N, d), by kind
    kind: _Noise,
    purpose: int,
    seed: int,
    transition: Tensor,  # int64 (B,), in [0, 2^32)
    observation: Tensor,  # int64 (B,), in [0, 2^32)
    threads: int,
) -> None: ...
def noise_cuda(
    *,
    out: Tensor,
    kind: _Noise,
    purpose: int,
    seed: int,
    transition: Tensor,
    observation: Tensor,
    stream: int,
) -> None: ...
def initial_latents(
    *,
    latents: Tensor,  # written: real (B, N, d)
    seed: int,
    transition: Tensor,  # int64 (B,), in [0, 2^32)
    observation: Tensor,  # int64 (B,), in [0, 2^32)
    threads: int,
) -> None: ...
def begin_trajectory(
    *,
    latents: Tensor,  # real (B, N, d)
    energy: Tensor,  # (B, N)
    grad: Tensor,  # real (B, N, d)
    beta: Tensor,  # (B,)
    prior_weight: Tensor,  # (B,)
    step_size: Tensor,  # (B,) or (B, N)
    inverse_mass: Tensor | None,  # real (B, d)
    seed: int,
    transition: Tensor,  # int64 (B,), in [0, 2^32)
    observation: Tensor,  # int64 (B,), in [0, 2^32)
    position: Tensor,  # written: real (B, N, d)
    momentum: Tensor,  # written: real (B, N, d)
    hamiltonian: Tensor,  # written: (B, N)
    threads: int,
) -> None: ...
def continue_trajectory(
    *,
    position: Tensor,  # written: real (B, N, d)
    momentum: Tensor,  # written: real (B, N, d)
    grad: Tensor,  # real (B, N, d)
    beta: Tensor,  # (B,)
    prior_weight: Tensor,  # (B,)
    step_size: Tensor,  # (B,) or (B, N)
    inverse_mass: Tensor | None,  # real (B, d)
    threads: int,
) -> None: ...
def accept_select(
    *,
    latents: Tensor,  # real (B, N, d)
    energy: Tensor,  # (B, N)
    grad: Tensor,  # real (B, N, d)
    position: Tensor,  # real (B, N, d)
    momentum: Tensor,  # real (B, N, d)
    hamiltonian: Tensor,  # (B, N)
    proposed_energy: Tensor,  # (B, N)
    proposed_grad: Tensor,  # real (B, N, d)
    beta: Tensor,  # (B,)
    prior_weight: Tensor,  # (B,)
    step_size: Tensor,  # (B,) or (B, N)
    inverse_mass: Tensor | None,  # real (B, d)
    active: Tensor | None,  # bool (B,)
    seed: int,
    transition: Tensor,  # int64 (B,), in [0, 2^32)
    observation: Tensor,  # int64 (B,), in [0, 2^32)
    out_latents: Tensor,  # written: real (B, N, d)
    out_energy: Tensor,  # written: (B, N)
    out_grad: Tensor,  # written: real (B, N, d)
    out_probability: Tensor,  # written: (B, N)
    out_accepted: Tensor,  # written: bool (B, N)
    out_change: Tensor,  # written: (B, N)
    threads: int,
) -> None: ...
def adapt_step_size(
    *,
    acceptance_probability: Tensor,  # (B, N) with N > 0
    step_size: Tensor,  # (B,) or (B, N)
    running_acceptance: Tensor,  # as step_size
    active: Tensor | None,  # bool, as step_size
    target: float,
    decay: float,
    increase: float,
    decrease: float,
    minimum: float,
    maximum: float,
    new_step_size: Tensor,  # written: as step_size
    new_running_acceptance: Tensor,  # written: as step_size
) -> None: ...
def systematic_ancestors(
    *,
    log_weights: Tensor,  # (B, N) with N > 0
    uniform: Tensor,  # (B,)
    wanted: Tensor | None,  # bool (B,)
    out: Tensor,  # written: int64 (B, N)
) -> None: ...
def observation_uniforms(
    *,
    out: Tensor,  # written: (B,)
    purpose: int,
    seed: int,
    transition: Tensor,  # int64 (B,), in [0, 2^32)
    observation: Tensor,  # int64 (B,), in [0, 2^32)
) -> None: ...
def misfit(
    *,
    outputs: Tensor,  # real (n, ...) where all is measured (kind "mask"), else (n, C, H, W)
    kind: _Kind,
    factor: int,
    target: Tensor,  # real (B, M)
    mask: Tensor | None,  # uint8 (1 or B, M)
    weight: Tensor,  # real (1 or B, 1 or M)
    observation: Tensor,  # int64 (n,), in [0, B)
    energy: Tensor,  # written: (n,)
    grad: Tensor,  # written: as outputs
    threads: int,
) -> None: ...
def to_rgb_misfit(
    *,
    out: Tensor,  # real (n, H, W, C)
    slope: float,
    scale: Tensor | None,  # real (n, H, W)
    out_grad: Tensor,  # written: as out, whose memory it may be
    rgb_weight: Tensor,  # real (image channels, C)
    rgb_bias: Tensor,  # real (image channels,)
    bounded: bool,
    kind: _Kind,
    factor: int,
    target: Tensor,  # real (B, M)
    mask: Tensor | None,  # uint8 (1 or B, M)
    weight: Tensor,  # real (1 or B, 1 or M)
    observation: Tensor,  # int64 (n,), in [0, B)
    energy: Tensor,  # written: (n,)
    threads: int,
) -> None: ...
def norm(
    *,
    x: Tensor,  # real (..., C)
    out: Tensor,  # written: as x
    bias: Tensor,  # real (C,)
    slope: float,
    scale: Tensor | None,  # written: real (...)
    threads: int,
) -> None: ...
def norm_grad(
    *,
    grad: Tensor,  # used up: real (..., C)
    out: Tensor,  # as grad
    slope: float,
    scale: Tensor | None,  # real (...)
    out_grad: Tensor,  # written: as grad; may be the memory of out
    threads: int,
) -> None: ...
def convolve_arena(
    *, images: int, height: int, width: int, inputs: int, outputs: int, is_double: bool
) -> int: ...
def convolve(
    *,
    x: Tensor,  # real (n, 2 height, 2 width, in)
    out: Tensor,  # written: real (n, 2 height, 2 width, out)
    bias: Tensor,  # real (out,)
    slope: float,
    scale: Tensor | None,  # written: real (n, 2 height, 2 width)
    kernel: Tensor,  # real (16 in padded out,)
    arena: Tensor,  # written: as many real numbers as `convolve_arena` says, or more
    threads: int,
) -> None: ...
def convolve_grad(
    *,
    grad: Tensor,  # real (n, 2 height, 2 width, in)
    out: Tensor,  # real (n, 2 height, 2 width, out)
    slope: float,
    scale: Tensor | None,  # real (n, 2 height, 2 width)
    out_grad: Tensor,  # written: as out, whose memory it may be
    kernel: Tensor,  # real (16 in padded out,)
    arena: Tensor,  # written: as many real numbers as `convolve_arena` says, or more
    threads: int,
) -> None: ...
def upsample_arena(
    *, images: int, height: int, width: int, inputs: int, outputs: int, is_double: bool
) -> int: ...
def upsample(
    *,
    x: Tensor,  # real (n, height, width, in)
    out: Tensor,  # written: real (n, 2 height, 2 width, out)
    bias: Tensor,  # real (out,)
    slope: float,
    scale: Tensor | None,  # written: real (n, 2 height, 2 width)
    kernel: Tensor,  # real (9 in padded out,)
    arena: Tensor,  # written: as many real numbers as `upsample_arena` says, or more
    threads: int,
) -> None: ...
def upsample_grad(
    *,
    grad: Tensor,  # real (n, 2 height, 2 width, in)
    out: Tensor,  # real (n, height, width, out)
    slope: float,
    scale: Tensor | None,  # real (n, height, width)
    out_grad: Tensor,  # written: as out, whose memory it may be
    extra: Tensor | None,  # real, as out
    kernel: Tensor,  # real (9 in padded out,)
    arena: Tensor,  # written: as many as `upsample_arena` of `out` inputs and `in` outputs says
    threads: int,
) -> None: ...
def fill_tiles(
    *,
    x: Tensor,  # real (n, H, W, C)
    high: int,
    wide: int,
    taps: int,  # r, 2 or 3
    outputs: int,  # m, 2 or 4
    step: int,  # 1 or 2
    top: int,
    left: int,
    operands: Tensor,  # written from `first` on: real ((m + r - 1)^2, n high wide, C or more)
    first: int,
    threads: int,
) -> None: ...
def finish_tiles(
    *,
    results: Tensor,  # real ((m + r - 1)^2, n high wide, C)
    out: Tensor,  # written where tiles lie: real (n, H, W, C)
    bias: Tensor,  # real (C,)
    slope: float,
    scale: Tensor | None,  # written likewise: real (n, H, W)
    high: int,
    wide: int,
    taps: int,
    outputs: int,
    step: int,
    top: int,  # at least 0, as `left`
    left: int,
    threads: int,
) -> None: ...
def finish_tiles_grad(
    *,
    results: Tensor,  # real ((m + r - 1)^2, n high wide, C)
    out: Tensor,  # real (n, H, W, C)
    slope: float,
    scale: Tensor | None,  # real (n, H, W)
    out_grad: Tensor,  # written where tiles lie: as out, whose memory it may be
    high: int,
    wide: int,
    taps: int,
    outputs: int,
    step: int,
    top: int,
    left: int,
    threads: int,
) -> None: ...
def sum_taps(
    *,
    products: Tensor,  # real (n, H, W, 16, C)
    out: Tensor,  # written: real (n, 2 H, 2 W, C)
    bias: Tensor,  # real (C,)
    slope: float,
    threads: int,
) -> None: ...
def anneal_mlp(
    *,
    latents: Tensor,  # written: real (B, N, d)
    widths: Sequence[int],  # from the latent to the output: L + 1
    activations: Sequence[int],  # L, places in `cogen_fast.ops.dense.ACTIVATIONS`
    slope: float,
    weights: Sequence[Tensor],  # L, real (in, padded out)
    biases: Sequence[Tensor],  # L, real (padded out,)
    backs: Sequence[Tensor],  # L, real (out, padded in)
    target: Tensor,  # real (B, M)
    mask: Tensor | None,  # uint8 (1 or B, M)
    weight: Tensor,  # real (1 or B, 1 or M)
    energy: Tensor,  # written: (B, N)
    grad: Tensor,  # written: real (B, N, d)
    log_weights: Tensor | None,  # written: (B, N)
    step_size: Tensor,  # written: (B,) or (B, N)
    running: Tensor,  # written: as step_size
    non_finite: Tensor,  # written: int64 (B, N)
    betas: Tensor,  # (steps,)
    beta: float,  # before the first step
    hmc_steps: int,
    leapfrog_steps: int,
    paper_form: bool,
    seed: int,
    transition: Tensor,  # int64 (B,), in [0, 2^32) to the end
    observation: Tensor,  # int64 (B,), in [0, 2^32)
    acceptance: Tensor,  # written: (steps, B)
    step_used: Tensor,  # written: (steps, B)
    energy_mean: Tensor,  # written: (steps, B)
    energy_std: Tensor,  # written: (steps, B)
    trace: Tensor | None,  # written: real (steps, B, N, d)
    rule: Sequence[float] | None,  # target, decay, increase, decrease, minimum, maximum
    threads: int,
) -> None: ...
def anneal_mlp_cuda(
    *,
    latents: Tensor,
    widths: Sequence[int],
    activations: Sequence[int],
    slope: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    backs: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    energy: Tensor,
    grad: Tensor,
    log_weights: Tensor | None,
    step_size: Tensor,
    running: Tensor,
    non_finite: Tensor,
    betas: Tensor,
    beta: float,
    hmc_steps: int,
    leapfrog_steps: int,
    paper_form: bool,
    seed: int,
    transition: Tensor,  # values on a device are not checked
    observation: Tensor,
    acceptance: Tensor,
    step_used: Tensor,
    energy_mean: Tensor,
    energy_std: Tensor,
    trace: Tensor | None,
    rule: Sequence[float] | None,
    stream: int,
) -> None: ...

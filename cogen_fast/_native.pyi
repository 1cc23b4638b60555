"""The C++ extension. Arrays are addresses (``tensor.data_ptr()``), 0 for an optional argument.

Shapes, dtypes and devices are checked in `cogen_fast.ops.native`; ValueError is raised here for
what would read or write out of bounds. A suffix names the working type of latents, momenta,
gradients and outputs; energies, settings and step sizes are always float64.
"""

from typing import Literal, TypedDict

class BuildInfo(TypedDict):
    with_cuda: bool
    cuda_archs: tuple[str, ...]
    openmp: bool
    compiler: str
    isa_built: tuple[str, ...]
    isa_usable: tuple[str, ...]
    isa: str

def build_info() -> BuildInfo: ...
def set_isa(name: str, /) -> None: ...

_Noise = Literal["words", "uniforms", "normals"]

def noise(
    kind: _Noise,
    is_double: bool,
    purpose: int,
    observations: int,
    chains: int,
    size: int,
    seed: int,
    transition: int,
    observation: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def noise_cuda(
    kind: _Noise,
    is_double: bool,
    purpose: int,
    observations: int,
    chains: int,
    size: int,
    seed: int,
    transition: int,
    observation: int,
    out: int,
    stream: int,
    /,
) -> None: ...
def adapt_step_size(
    observations: int,
    chains: int,
    step_size: int,
    running_acceptance: int,
    acceptance_probability: int,
    active: int,
    target: float,
    decay: float,
    increase: float,
    decrease: float,
    minimum: float,
    maximum: float,
    new_step_size: int,
    new_running_acceptance: int,
    /,
) -> None: ...
def initial_latents_f32(
    observations: int,
    chains: int,
    size: int,
    seed: int,
    transition: int,
    observation: int,
    latents: int,
    threads: int,
    /,
) -> None: ...

initial_latents_f64 = initial_latents_f32

def begin_trajectory_f32(
    observations: int,
    chains: int,
    size: int,
    seed: int,
    transition: int,
    observation: int,
    beta: int,
    prior_weight: int,
    step_size: int,
    steps_each: int,
    inverse_mass: int,
    latents: int,
    energy: int,
    grad: int,
    position: int,
    momentum: int,
    hamiltonian: int,
    threads: int,
    /,
) -> None: ...

begin_trajectory_f64 = begin_trajectory_f32

def continue_trajectory_f32(
    observations: int,
    chains: int,
    size: int,
    beta: int,
    prior_weight: int,
    step_size: int,
    steps_each: int,
    inverse_mass: int,
    position: int,
    momentum: int,
    grad: int,
    threads: int,
    /,
) -> None: ...

continue_trajectory_f64 = continue_trajectory_f32

def accept_select_f32(
    observations: int,
    chains: int,
    size: int,
    seed: int,
    transition: int,
    observation: int,
    beta: int,
    prior_weight: int,
    step_size: int,
    steps_each: int,
    inverse_mass: int,
    active: int,
    latents: int,
    energy: int,
    grad: int,
    position: int,
    momentum: int,
    hamiltonian: int,
    proposed_energy: int,
    proposed_grad: int,
    out_latents: int,
    out_energy: int,
    out_grad: int,
    out_probability: int,
    out_accepted: int,
    out_change: int,
    threads: int,
    /,
) -> None: ...

accept_select_f64 = accept_select_f32

def misfit_f32(
    kind: Literal["mask", "pool", "stride"],
    rows: int,
    channels: int,
    height: int,
    width: int,
    factor: int,
    observations: int,
    measured: int,
    outputs: int,
    observation: int,
    target: int,
    mask: int,
    mask_stride: int,
    weight: int,
    weight_stride: int,
    weight_elementwise: bool,
    energy: int,
    grad: int,
    threads: int,
    /,
) -> None: ...

misfit_f64 = misfit_f32

def norm_f32(
    pixels: int,
    channels: int,
    x: int,
    bias: int,
    slope: float,
    out: int,
    scale: int,
    threads: int,
    /,
) -> None: ...

norm_f64 = norm_f32

def norm_grad_f32(
    pixels: int,
    channels: int,
    grad: int,
    slope: float,
    out: int,
    scale: int,
    out_grad: int,
    threads: int,
    /,
) -> None: ...

norm_grad_f64 = norm_grad_f32

def convolve_arena_f32(
    images: int,
    height: int,
    width: int,
    kernel_in: int,
    kernel_out: int,
    /,
) -> int: ...

convolve_arena_f64 = convolve_arena_f32

def convolve_f32(
    images: int,
    height: int,
    width: int,
    x: int,
    kernel: int,
    kernel_in: int,
    kernel_out: int,
    bias: int,
    slope: float,
    out: int,
    scale: int,
    arena: int,
    threads: int,
    /,
) -> None: ...

convolve_f64 = convolve_f32

def convolve_grad_f32(
    images: int,
    height: int,
    width: int,
    x: int,
    kernel: int,
    kernel_in: int,
    kernel_out: int,
    slope: float,
    out: int,
    scale: int,
    extra: int,
    out_grad: int,
    arena: int,
    threads: int,
    /,
) -> None: ...

convolve_grad_f64 = convolve_grad_f32

def upsample_arena_f32(
    images: int,
    height: int,
    width: int,
    kernel_in: int,
    kernel_out: int,
    /,
) -> int: ...

upsample_arena_f64 = upsample_arena_f32

def upsample_f32(
    images: int,
    height: int,
    width: int,
    x: int,
    kernel: int,
    kernel_in: int,
    kernel_out: int,
    bias: int,
    slope: float,
    out: int,
    scale: int,
    arena: int,
    threads: int,
    /,
) -> None: ...

upsample_f64 = upsample_f32

def upsample_grad_f32(
    images: int,
    height: int,
    width: int,
    x: int,
    kernel: int,
    kernel_in: int,
    kernel_out: int,
    slope: float,
    out: int,
    scale: int,
    extra: int,
    out_grad: int,
    arena: int,
    threads: int,
    /,
) -> None: ...

upsample_grad_f64 = upsample_grad_f32

def colour_misfit_f32(
    kind: Literal["mask", "pool", "stride"],
    rows: int,
    colours: int,
    height: int,
    width: int,
    factor: int,
    observations: int,
    measured: int,
    observation: int,
    target: int,
    mask: int,
    mask_stride: int,
    weight: int,
    weight_stride: int,
    weight_elementwise: bool,
    channels: int,
    colour_weight: int,
    colour_bias: int,
    bounded: bool,
    slope: float,
    out: int,
    scale: int,
    out_grad: int,
    energy: int,
    threads: int,
    /,
) -> None: ...

colour_misfit_f64 = colour_misfit_f32

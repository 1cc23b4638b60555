"""The ops on CUDA tensors in Triton: names, shapes, dtypes and meaning are those of `reference`.

Only float32 and float64 are supported. Arguments are checked as in `native`, except for their
values, because an op never waits for the device. What is changed in place (`continue_trajectory`)
must be contiguous; other inputs are copied if they are not. Kernels run on the current stream of
the tensors' device. Nothing here records gradients for autograd.

If ``TRITON_INTERPRET=1`` is in the environment when this module is imported, Triton's interpreter
runs the kernels on the CPU, on tensors of any device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cogen_fast.ops import triton_kernels as kernels
from cogen_fast.ops.checked import (
    AcceptArguments,
    AdaptArguments,
    BeginArguments,
    CheckedStream,
    ContinueArguments,
    ImageLayout,
    MisfitArguments,
    ResampleArguments,
    check_stream,
)
from cogen_fast.ops.checks import check_sizes, require_float, require_tensor
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.reference import Proposal, Selected
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

INTERPRETED = not isinstance(kernels.begin_trajectory, triton.runtime.JITFunction)
"""Whether the kernels run on the CPU, in Triton's interpreter."""

# Entries of one program: each thread of its four warps has eight.
_TILE_ENTRIES = 1024
_COLUMNS = 512
_SEGMENT = 2048
_MOST_ENTRIES = 1 << 31
_MOST_DIMENSIONS = 1 << 26  # a counter numbers 2^24 blocks of four dimensions


def failure() -> str | None:
    """Why kernels cannot be launched on this machine's CUDA devices; None where they can.

    Without a CUDA device there is nothing that could fail, so it is None too.
    """
    if INTERPRETED or not torch.cuda.is_available():
        return None
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever a missing compiler or driver raises
        return f"Triton cannot use the CUDA device ({error})"
    return None


def _device(name: str, value: Tensor) -> torch.device:
    """The device that all tensors of a call must share: that of ``value``."""
    device = require_tensor(name, value).device
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise ValueError(f"{name}: expected a tensor on cuda, got one on {device}")
    return device


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **constants: Any) -> None:
    """Launch ``programs`` programs of a kernel on the device's current stream, if any."""
    if programs == 0:
        return
    # No fused multiply-add: a product is rounded before it is added, as in the reference.
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](*args, enable_fp_fusion=False, **constants)


def _signed(seed: int) -> int:
    """The 64 bits of a seed as the signed integer that a kernel takes."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


class _ChainGrid(NamedTuple):
    """How chains are cut into grid, one for each program; by their shape alone."""

    rows: int
    columns: int
    programs: int

    @classmethod
    def of(cls, shape: tuple[int, int, int]) -> _ChainGrid:
        """Those of latents ``(B, N, d)``."""
        observations, chains, size = shape
        if size > _MOST_DIMENSIONS:
            raise ValueError(f"size: expected between 1 and 2^26, got {size}")
        columns = min(max(triton.next_power_of_2(size), 4), _COLUMNS)
        rows = min(triton.next_power_of_2(max(chains, 1)), _TILE_ENTRIES // columns)
        return cls(rows, columns, observations * triton.cdiv(chains, rows))


def _launch_over_chains(
    kernel: Any,
    grid: _ChainGrid,
    shape: tuple[int, int, int],
    device: torch.device,
    *args: Any,
    **constants: Any,
) -> None:
    """Launch over the chains of latents ``(B, N, d)``; ``args`` are what comes before the sizes."""
    sizes = {"ROWS": grid.rows, "COLS": grid.columns}
    launch(kernel, grid.programs, device, *args, *shape[1:], **sizes, **constants)


def _block_size(count: int) -> int:
    """How many of ``count`` numbers a program's loop takes at a time."""
    return min(int(triton.next_power_of_2(max(count, 1))), _TILE_ENTRIES)


def _as_bytes(flags: Tensor | None) -> Tensor | None:
    """Flags as kernels take them: what loading bools gives depends on Triton's version."""
    return None if flags is None else flags.view(torch.uint8)


def _of_noise(stream: CheckedStream) -> tuple[Tensor, Tensor, int]:
    """A noise stream in the order of the kernels' parameters."""
    return stream.transition, stream.observation, _signed(stream.seed)


def initial_latents(stream: NoiseStream, chains: int, size: int, dtype: torch.dtype) -> Tensor:
    """Prior draws ``(B, chains, size)``; see `reference.initial_latents`."""
    require_float("dtype", dtype)
    check_sizes(chains, size)
    device = _device("stream.transition", stream.transition)
    given = check_stream(stream, device=device)
    shape = len(given.transition), chains, size
    grid = _ChainGrid.of(shape)  # refuses a size before memory of that size is allocated
    latents = torch.empty(shape, dtype=dtype, device=device)
    _launch_over_chains(kernels.initial_latents, grid, shape, device, latents, *_of_noise(given))
    return latents


def begin_trajectory(
    latents: Tensor, energy: Tensor, grad: Tensor, settings: TransitionSettings, stream: NoiseStream
) -> Proposal:
    """Momentum, Hamiltonian, half a kick and one drift; see `reference.begin_trajectory`."""
    device = _device("latents", latents)
    given = BeginArguments.of(latents, energy, grad, settings, stream, device)
    grid = _ChainGrid.of(given.shape)
    out = Proposal(
        torch.empty_like(given.latents),
        torch.empty_like(given.latents),
        torch.empty_like(given.energy),
    )
    _launch_over_chains(
        kernels.begin_trajectory,
        grid,
        given.shape,
        device,
        *out,
        given.latents,
        given.energy,
        given.grad,
        *given.settings,
        *_of_noise(given.stream),
        PER_CHAIN=given.settings.per_chain,
    )
    return out


def continue_trajectory(proposal: Proposal, grad: Tensor, settings: TransitionSettings) -> None:
    """One kick and one drift, in place; see `reference.continue_trajectory`."""
    device = _device("proposal.position", proposal.position)
    given = ContinueArguments.of(proposal, grad, settings, device)
    grid = _ChainGrid.of(given.shape)
    _launch_over_chains(
        kernels.continue_trajectory,
        grid,
        given.shape,
        device,
        given.position,
        given.momentum,
        given.grad,
        *given.settings,
        PER_CHAIN=given.settings.per_chain,
    )


def accept_select(
    latents: Tensor,
    energy: Tensor,
    grad: Tensor,
    proposal: Proposal,
    proposed_energy: Tensor,
    proposed_grad: Tensor,
    settings: TransitionSettings,
    stream: NoiseStream,
) -> Selected:
    """Last half kick, Metropolis test and selection; see `reference.accept_select`."""
    device = _device("latents", latents)
    given = AcceptArguments.of(
        latents, energy, grad, proposal, proposed_energy, proposed_grad, settings, stream, device
    )
    grid = _ChainGrid.of(given.shape)
    out = given.empty()
    _launch_over_chains(
        kernels.accept_select,
        grid,
        given.shape,
        device,
        *out._replace(accepted=out.accepted.view(torch.uint8)),
        given.latents,
        given.energy,
        given.grad,
        *given.proposal,
        given.proposed_energy,
        given.proposed_grad,
        *given.settings,
        _as_bytes(given.active),
        *_of_noise(given.stream),
        PER_CHAIN=given.settings.per_chain,
    )
    return out


def adapt_step_size(
    step_size: Tensor,
    running_acceptance: Tensor,
    acceptance_probability: Tensor,
    active: Tensor | None,
    rule: AdaptationRule,
) -> tuple[Tensor, Tensor]:
    """The published rule; see `reference.adapt_step_size`."""
    device = _device("acceptance_probability", acceptance_probability)
    given = AdaptArguments.of(
        step_size, running_acceptance, acceptance_probability, active, rule, device
    )
    observations, chains = given.shape
    out = torch.empty_like(given.step_size), torch.empty_like(given.running)
    launch(
        kernels.adapt_step_size,
        observations,
        device,
        *out,
        *given[1:-1],
        _as_bytes(given.active),
        chains,
        target=rule.target,
        decay=rule.decay,
        increase=rule.increase,
        decrease=rule.decrease,
        minimum=rule.minimum,
        maximum=rule.maximum,
        PER_CHAIN=rule.per_chain,
        BLOCK=_block_size(chains),
    )
    return out


def systematic_ancestors(log_weights: Tensor, uniform: Tensor, wanted: Tensor | None) -> Tensor:
    """Systematic resampling, ``(B, N)`` int64; see `reference.systematic_ancestors`."""
    device = _device("log_weights", log_weights)
    given = ResampleArguments.of(log_weights, uniform, wanted, device)
    observations, chains = given.shape
    block = _block_size(chains)
    grid = triton.cdiv(chains, block)
    upto = torch.empty_like(given.log_weights)
    out = torch.empty_like(given.log_weights, dtype=torch.int64)
    launch(
        kernels.cumulate_weights,
        observations,
        device,
        upto,
        given.log_weights,
        chains,
        BLOCK=block,
    )
    launch(
        kernels.systematic_ancestors,
        observations * grid,
        device,
        out,
        upto,
        given.uniform,
        _as_bytes(given.wanted),
        chains,
        grid,
        (chains - 1).bit_length(),
        BLOCK=block,
    )
    return out


def observation_uniforms(stream: NoiseStream, purpose: Purpose) -> Tensor:
    """One uniform per observation, ``(B,)`` float64; see `reference.observation_uniforms`."""
    device = _device("stream.transition", stream.transition)
    given = check_stream(stream, device=device)
    observations = len(given.transition)
    out = torch.empty(observations, dtype=torch.float64, device=device)
    block = _block_size(observations)
    launch(
        kernels.observation_uniforms,
        triton.cdiv(observations, block),
        device,
        out,
        *_of_noise(given),
        int(purpose),
        observations,
        BLOCK=block,
    )
    return out


def misfit(x: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of outputs and its gradient; see `reference.misfit`.

    The energy is NaN where ``observation`` holds a value outside [0, B).
    """
    device = _device("x", x)
    x, observed, observation = MisfitArguments.of(x, spec, observation, device)
    layout = ImageLayout.of(spec)
    rows, entries = len(x), layout.channels * layout.height * layout.width
    if entries >= _MOST_ENTRIES:
        raise ValueError(f"x: expected outputs of less than 2^31 entries, got {entries}")
    if spec.kind == "pool":
        kernel, units, extra = kernels.misfit_of_means, layout.measured, {}
    else:
        strided = {"STRIDED": spec.kind == "stride"}
        kernel, units, extra = kernels.misfit_of_pixels, entries, strided
    block = min(triton.next_power_of_2(max(units, 1)), _SEGMENT)
    segments = max(triton.cdiv(units, block), 1)
    energy = torch.empty(rows, dtype=torch.float64, device=device)
    partials = energy if segments == 1 else energy.new_empty(rows, segments)
    grad = torch.empty_like(x)
    launch(
        kernel,
        rows * segments,
        device,
        partials,
        grad,
        x,
        observation,
        *observed,
        segments,
        *observed.target.shape,
        observed.mask_stride,
        observed.weight_stride,
        entries,
        *layout[1:],
        ELEMENTWISE=observed.elementwise,
        BLOCK=block,
        **extra,
    )
    if segments > 1:
        launch(
            kernels.sum_segments,
            rows,
            device,
            energy,
            partials,
            segments,
            BLOCK=_block_size(segments),
        )
    return energy, grad

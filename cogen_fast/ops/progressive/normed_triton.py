"""Bias, leaky ReLU and pixel norm, and the last step of a generator, as Triton kernels.

Names and meaning as in `cogen_fast.ops.reference`, on channels-last tensors of any float
type: half precision is read and written, the arithmetic is float32 (float64 for float64), rounded
once. Energies are summed in float64, tile by tile in a fixed order. Import it where Triton is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cogen_fast.ops.progressive.colours import Colours
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.reference import PIXEL_NORM_EPSILON
from cogen_fast.ops.spec import MisfitSpec

_TILE = 4096  # numbers of a program
_MOST_PIXELS = 64


@triton.jit
def norm_kernel(
    x,
    bias,
    out,
    scale,
    pixels,
    side,
    by_image,
    by_line,
    by_line_phase,
    by_pixel,
    by_pixel_phase,
    PHASES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    EPSILON: tl.constexpr,
    NORMALISE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    there = (rows < pixels)[:, None] & inside[None, :]
    at = rows[:, None] * CHANNELS + columns[None, :]
    place = rows * CHANNELS
    if PHASES:  # of a view (n, S, 2, S, 2, C)
        pixel, line = rows // 2 % side, rows // (4 * side)
        place = line // side * by_image + line % side * by_line + pixel * by_pixel
        place += rows // (2 * side) % 2 * by_line_phase + rows % 2 * by_pixel_phase
    shift = tl.load(bias + columns, inside, 0.0).to(WIDE)
    y = tl.load(x + place[:, None] + columns[None, :], there, 0.0).to(WIDE) + shift[None, :]
    y = tl.where(y > 0, y, SLOPE * y)
    if NORMALISE:
        factor = 1.0 / tl.sqrt(tl.sum(y * y, 1) / CHANNELS + EPSILON)
        tl.store(scale + rows, factor, rows < pixels)
        y = y * factor[:, None]
    tl.store(out + at, y.to(out.dtype.element_ty), there)


@triton.jit
def norm_grad_kernel(
    grad,
    out,
    scale,
    result,
    pixels,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    NORMALISE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    there = (rows < pixels)[:, None] & (columns < CHANNELS)[None, :]
    at = rows[:, None] * CHANNELS + columns[None, :]
    g = tl.load(grad + at, there, 0.0).to(WIDE)
    y = tl.load(out + at, there, 0.0).to(WIDE)
    if NORMALISE:
        factor = tl.load(scale + rows, rows < pixels, 0.0).to(WIDE)
        along = tl.sum(g * y, 1) / CHANNELS
        g = factor[:, None] * (g - y * along[:, None])
    g = tl.where(y > 0, g, SLOPE * g)
    tl.store(result + at, g.to(result.dtype.element_ty), there)


@triton.jit
def colour_misfit_kernel(
    out,
    scale,
    weight,
    bias,
    target,
    mask,
    factor,
    observation,
    energy,
    pixels,
    width,
    measured,
    mask_rows,
    factor_rows,
    factor_each,
    CHANNELS: tl.constexpr,
    COLOURS: tl.constexpr,
    STRIDE: tl.constexpr,
    SLOPE: tl.constexpr,
    NORMALISE: tl.constexpr,
    MASKED: tl.constexpr,
    BOUNDED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    here = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside, shown = columns < CHANNELS, here < pixels
    there = shown[:, None] & inside[None, :]
    rows = image * pixels + here
    at = rows[:, None] * CHANNELS + columns[None, :]
    y = tl.load(out + at, there, 0.0).to(WIDE)
    row = tl.load(observation + image)
    line, column = here // width, here % width
    read = shown & (line % STRIDE == 0) & (column % STRIDE == 0)
    across = (width + STRIDE - 1) // STRIDE
    each = measured // COLOURS
    place = (line // STRIDE) * across + column // STRIDE
    total = tl.zeros((ROWS,), tl.float64)
    g = tl.zeros((ROWS, BLOCK), WIDE)
    for colour in tl.static_range(COLOURS):
        w = tl.load(weight + colour * CHANNELS + columns, inside, 0.0).to(WIDE)
        shade = tl.sum(y * w[None, :], 1) + tl.load(bias + colour).to(WIDE)
        if BOUNDED:
            # tanh, without overflow for large shades.
            small = tl.exp(-2.0 * tl.abs(shade))
            shade = tl.where(shade < 0, -1.0, 1.0) * (1.0 - small) / (1.0 + small)
        entry = colour * each + place
        residual = shade - tl.load(target + row * measured + entry, read, 0.0)
        seen = read
        if MASKED:
            seen = read & (tl.load(mask + row * mask_rows + entry, read, 0) != 0)
        residual = tl.where(seen, residual, 0.0)
        f = tl.load(factor + row * factor_rows + entry * factor_each, read, 0.0)
        r = residual.to(tl.float64)
        total += f.to(tl.float64) * r * r
        by_shade = 2.0 * f * residual
        if BOUNDED:
            by_shade = by_shade * (1.0 - shade * shade)
        g += by_shade[:, None] * w[None, :]
    tl.store(energy + image * tl.num_programs(0) + tile, tl.sum(total, 0))
    if NORMALISE:
        size = tl.load(scale + rows, shown, 0.0).to(WIDE)
        along = tl.sum(g * y, 1) / CHANNELS
        g = size[:, None] * (g - y * along[:, None])
    g = tl.where(y > 0, g, SLOPE * g)
    tl.store(out + at, g.to(out.dtype.element_ty), there)


def norm(x: Tensor, bias: Tensor, slope: float, normalise: bool) -> tuple[Tensor, Tensor | None]:
    """Leaky ReLU of ``x + bias``, then pixel norm or not; see `reference.norm`.

    The output is of the type of ``x``, contiguous, what the norm multiplied by of the wide one.
    A view ``(n, S, 2, S, 2, C)`` is read where it lies, if its last dimension is contiguous.
    """
    phases = x.ndim == 6
    if not phases:
        x = x.contiguous()
    channels = x.shape[-1]
    pixels = x.numel() // channels
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    wide = _wide(x.dtype)
    scale = torch.empty(x.shape[:-1], dtype=wide, device=x.device) if normalise else None
    rows, block = _tile(channels)
    launch = norm_kernel[(triton.cdiv(pixels, rows),)]
    _on(
        x,
        launch,
        x,
        bias,
        out,
        out if scale is None else scale,
        pixels,
        x.shape[1] if phases else 1,
        *(x.stride()[:5] if phases else (0, 0, 0, 0, 0)),
        PHASES=phases,
        CHANNELS=channels,
        SLOPE=slope,
        EPSILON=PIXEL_NORM_EPSILON,
        NORMALISE=normalise,
        WIDE=_TRITON[wide],
        ROWS=rows,
        BLOCK=block,
    )
    return out, scale


def norm_grad(grad: Tensor, out: Tensor, scale: Tensor | None, slope: float) -> Tensor:
    """The gradient by what `norm` read, in the memory of ``grad``; see `reference.norm_grad`."""
    channels = out.shape[-1]
    pixels = out.numel() // channels
    rows, block = _tile(channels)
    launch = norm_grad_kernel[(triton.cdiv(pixels, rows),)]
    _on(
        grad,
        launch,
        grad,
        out,
        out if scale is None else scale,
        grad,
        pixels,
        CHANNELS=channels,
        SLOPE=slope,
        NORMALISE=scale is not None,
        WIDE=_TRITON[_wide(out.dtype)],
        ROWS=rows,
        BLOCK=block,
    )
    return grad


def colour_misfit(
    last: NormedActivation, colours: Colours, spec: MisfitSpec, observation: Tensor
) -> tuple[Tensor, Tensor]:
    """Misfit of the colours of ``last`` by mask or stride, and back; `reference.colour_misfit`.

    The gradient takes the memory of ``last.out``. No image is written.
    """
    out, scale = last.out, last.scale
    images, height, width, channels = out.shape
    measured = spec.target.shape[1]
    rows, block = _tile(channels)
    tiles = triton.cdiv(height * width, rows)
    energy = torch.empty(images, tiles, dtype=torch.float64, device=out.device)
    mask = None if spec.mask is None else spec.mask.contiguous()
    factor = spec.weight.contiguous()
    _on(
        out,
        colour_misfit_kernel[(tiles, images)],
        out,
        out if scale is None else scale,
        colours.weight,
        colours.bias,
        spec.target.contiguous(),
        factor if mask is None else mask,
        factor,
        observation.contiguous(),
        energy,
        height * width,
        width,
        measured,
        0 if mask is None or len(mask) == 1 else measured,
        0 if len(factor) == 1 else factor.shape[1],
        int(factor.shape[1] > 1),
        CHANNELS=channels,
        COLOURS=len(colours.bias),
        STRIDE=1 if spec.kind == "mask" else spec.factor,
        SLOPE=last.slope,
        NORMALISE=scale is not None,
        MASKED=mask is not None,
        BOUNDED=colours.bounded,
        WIDE=_TRITON[_wide(out.dtype)],
        ROWS=rows,
        BLOCK=block,
    )
    return energy.sum(-1), out


def _on(tensor: Tensor, launch: Callable[..., Any], *arguments: Any, **constants: Any) -> None:
    """Launch on the tensor's device; nothing where there is nothing to do."""
    if tensor.numel() > 0:
        with torch.cuda.device_of(tensor):
            launch(*arguments, **constants)


_TRITON = {torch.float32: tl.float32, torch.float64: tl.float64}


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tile(channels: int) -> tuple[int, int]:
    """Pixels and channels of a program."""
    block = triton.next_power_of_2(channels)
    return max(1, min(_MOST_PIXELS, _TILE // block)), block

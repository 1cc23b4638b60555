"""Bias, leaky ReLU and pixel norm, and the last step of a generator, as Triton kernels.

Names and meaning are those of `cogen_fast.ops.reference`. Tensors are channels last, of any float
type. The arithmetic is float64 for float64 and else float32; results of half precision are rounded
once. Energies are summed in float64, tile by tile in a fixed order. Import this only where Triton
is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cogen_fast.ops.checked import Observed
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.to_rgb import ToRGB
from cogen_fast.ops.reference import PIXEL_NORM_EPSILON
from cogen_fast.ops.spec import MisfitSpec
from cogen_fast.ops.triton_misfit import observed_values, weighted_square

_TILE_ENTRIES = 4096  # at most so many numbers in a program, padding included,
_MOST_PIXELS = 64  # of at most so many pixels


@triton.jit
def _entries(pixel, real, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets ``(ROWS, BLOCK)`` of the channels of pixels ``(ROWS,)``, and which of them exist."""
    channel = tl.arange(0, BLOCK)
    exist = real[:, None] & (channel < CHANNELS)[None, :]
    return pixel[:, None] * CHANNELS + channel[None, :], exist


@triton.jit
def _offset_among_phases(pixel, side, by_image, by_line, by_line_phase, by_pixel, by_pixel_phase):
    """Where pixels of images of side ``2 side`` are in a view ``(n, S, 2, S, 2, C)``."""
    line = pixel // (4 * side)
    place = line // side * by_image + line % side * by_line + pixel // 2 % side * by_pixel
    return place + pixel // (2 * side) % 2 * by_line_phase + pixel % 2 * by_pixel_phase


@triton.jit
def _back_through_norm(
    # the gradient with respect to the output of `norm`, that output, and the factor of the norm
    grad,
    out,
    scale,
    # the pixels
    pixel,
    real,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradient with respect to the input of `norm`, ``(ROWS, BLOCK)``."""
    if scale is not None:
        factor = tl.load(scale + pixel, real, 0.0).to(WIDE)
        along = tl.sum(grad * out, 1) / CHANNELS
        grad = factor[:, None] * (grad - out * along[:, None])
    return tl.where(out > 0, grad, SLOPE * grad)


@triton.jit
def norm_kernel(
    # the output and what the norm multiplies by, which are written
    out,
    scale,
    # the input, and the bias of each channel
    x,
    bias,
    # the number of pixels, and where they are in x if it is a view of phases
    pixels,
    side,
    by_image,
    by_line,
    by_line_phase,
    by_pixel,
    by_pixel_phase,
    PHASES: tl.constexpr,
    # constants
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    EPSILON: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`norm` of a tile of pixels."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = pixel < pixels
    entry, exist = _entries(pixel, real, CHANNELS, BLOCK)
    channel = tl.arange(0, BLOCK)
    place = pixel * CHANNELS
    if PHASES:
        place = _offset_among_phases(
            pixel, side, by_image, by_line, by_line_phase, by_pixel, by_pixel_phase
        )
    shift = tl.load(bias + channel, channel < CHANNELS, 0.0).to(WIDE)
    y = tl.load(x + place[:, None] + channel[None, :], exist, 0.0).to(WIDE) + shift[None, :]
    y = tl.where(y > 0, y, SLOPE * y)
    if scale is not None:
        factor = 1.0 / tl.sqrt(tl.sum(y * y, 1) / CHANNELS + EPSILON)
        tl.store(scale + pixel, factor, real)
        y = y * factor[:, None]
    tl.store(out + entry, y.to(out.dtype.element_ty), exist)


@triton.jit
def norm_grad_kernel(
    # the gradient with respect to the output, overwritten by that with respect to the input
    grad,
    # what `norm` returned
    out,
    scale,
    # the number of pixels, and constants
    pixels,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`norm_grad` of a tile of pixels."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = pixel < pixels
    entry, exist = _entries(pixel, real, CHANNELS, BLOCK)
    g = tl.load(grad + entry, exist, 0.0).to(WIDE)
    y = tl.load(out + entry, exist, 0.0).to(WIDE)
    g = _back_through_norm(g, y, scale, pixel, real, CHANNELS, SLOPE, WIDE)
    tl.store(grad + entry, g.to(grad.dtype.element_ty), exist)


@triton.jit
def _tanh(x):
    """The hyperbolic tangent, without overflow for large ``x``."""
    small = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1.0 - small) / (1.0 + small)


@triton.jit
def _measured_pixels(pixel, real, width, STRIDE: tl.constexpr):
    """Which pixels of an image are measured, and their numbers among those of a channel."""
    line, column = pixel // width, pixel % width
    read = real & (line % STRIDE == 0) & (column % STRIDE == 0)
    across = (width + STRIDE - 1) // STRIDE
    return read, (line // STRIDE) * across + column // STRIDE


@triton.jit
def to_rgb_misfit_kernel(
    # the energy of each tile, which is written
    energy,
    # the activation, which its gradient replaces, and what its norm multiplied by
    out,
    scale,
    # the 1x1 convolution to the image
    rgb_weight,
    rgb_bias,
    # the observation of each image, what is observed, and how far its rows are apart
    observation,
    target,
    mask,
    weight,
    measured,
    mask_stride,
    weight_stride,
    weight_each,
    # the pixels of an image, and those of a line
    pixels,
    width,
    # constants
    CHANNELS: tl.constexpr,
    IMAGE_CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr,
    SLOPE: tl.constexpr,
    BOUNDED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`to_rgb_misfit` of a tile of pixels of one image."""
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    here = tile * ROWS + tl.arange(0, ROWS)
    real, pixel = here < pixels, image * pixels + here
    entry, exist = _entries(pixel, real, CHANNELS, BLOCK)
    y = tl.load(out + entry, exist, 0.0).to(WIDE)
    b = tl.load(observation + image)
    target += b * measured
    weight += b * weight_stride
    if mask is not None:
        mask += b * mask_stride
    read, place = _measured_pixels(here, real, width, STRIDE)
    channel = tl.arange(0, BLOCK)
    total = tl.zeros((ROWS,), tl.float64)
    g = tl.zeros((ROWS, BLOCK), WIDE)
    for k in tl.static_range(IMAGE_CHANNELS):
        w = tl.load(rgb_weight + k * CHANNELS + channel, channel < CHANNELS, 0.0).to(WIDE)
        value = tl.sum(y * w[None, :], 1) + tl.load(rgb_bias + k).to(WIDE)
        if BOUNDED:
            value = _tanh(value)
        m = k * (measured // IMAGE_CHANNELS) + place
        aim, seen = observed_values(m, read, target, mask)
        # A shared weight is loaded per pixel too, which takes fewer registers in half precision.
        weight_of_m = tl.load(weight + m * weight_each, read, 0.0)
        energies, by_value = weighted_square(value, aim, seen, weight_of_m)
        total += energies
        if BOUNDED:
            by_value = by_value * (1.0 - value * value)
        g += by_value[:, None] * w[None, :]
    tl.store(energy + image * tl.num_programs(0) + tile, tl.sum(total, 0))
    g = _back_through_norm(g, y, scale, pixel, real, CHANNELS, SLOPE, WIDE)
    tl.store(out + entry, g.to(out.dtype.element_ty), exist)


def norm(x: Tensor, bias: Tensor, slope: float, normalise: bool) -> tuple[Tensor, Tensor | None]:
    """Leaky ReLU of ``x + bias``, then pixel norm or not; see `reference.norm`.

    The output is contiguous and of the type of ``x``; what the norm multiplied by is of the type
    of the arithmetic. A view ``(n, S, 2, S, 2, C)`` is read where it is, if its last dimension is
    contiguous.
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
        out,
        scale,
        x,
        bias,
        pixels,
        x.shape[1] if phases else 1,
        *(x.stride()[:5] if phases else (0, 0, 0, 0, 0)),
        PHASES=phases,
        CHANNELS=channels,
        SLOPE=slope,
        EPSILON=PIXEL_NORM_EPSILON,
        WIDE=_TRITON[wide],
        ROWS=rows,
        BLOCK=block,
    )
    return out, scale


def norm_grad(grad: Tensor, out: Tensor, scale: Tensor | None, slope: float) -> Tensor:
    """The gradient with respect to the input of `norm`, in the memory of ``grad``.

    See `reference.norm_grad`.
    """
    channels = out.shape[-1]
    pixels = out.numel() // channels
    rows, block = _tile(channels)
    launch = norm_grad_kernel[(triton.cdiv(pixels, rows),)]
    _on(
        grad,
        launch,
        grad,
        out,
        scale,
        pixels,
        CHANNELS=channels,
        SLOPE=slope,
        WIDE=_TRITON[_wide(out.dtype)],
        ROWS=rows,
        BLOCK=block,
    )
    return grad


def to_rgb_misfit(
    last: NormedActivation, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
) -> tuple[Tensor, Tensor]:
    """Misfit of the image of ``last``, and its gradient; see `reference.to_rgb_misfit`.

    Misfits of the kind "pool" are not supported. The gradient takes the memory of ``last.out``. No
    image is written.
    """
    out = last.out
    images, height, width, channels = out.shape
    rows, block = _tile(channels)
    tiles = triton.cdiv(height * width, rows)
    energy = torch.empty(images, tiles, dtype=torch.float64, device=out.device)
    mask = None if spec.mask is None else spec.mask.contiguous()
    observed = Observed(spec.target.contiguous(), mask, spec.weight.contiguous())
    _on(
        out,
        to_rgb_misfit_kernel[(tiles, images)],
        energy,
        out,
        last.scale,
        to_rgb.weight,
        to_rgb.bias,
        observation.contiguous(),
        *observed,
        spec.target.shape[1],
        observed.mask_stride,
        observed.weight_stride,
        int(observed.elementwise),
        height * width,
        width,
        CHANNELS=channels,
        IMAGE_CHANNELS=len(to_rgb.bias),
        STRIDE=1 if spec.kind == "mask" else spec.factor,
        SLOPE=last.slope,
        BOUNDED=to_rgb.bounded,
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
    return max(1, min(_MOST_PIXELS, _TILE_ENTRIES // block)), block

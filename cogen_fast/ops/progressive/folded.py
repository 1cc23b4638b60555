"""Layers of channels-last images by torch's convolutions, in any float type and on any device.

Nearest upsampling and the 3x3 convolution after it are folded into one operation with 4/9 of the
products. Along a line with weights k0 k1 k2, the even outputs are ``k0 x[i-1] + (k1 + k2) x[i]``
and the odd ones ``(k0 + k1) x[i] + k2 x[i+1]``. That is a transposed convolution of stride 2 with a
4x4 kernel, or one 2x2 convolution whose output channels are the four phases of a pixel. Gradients
with respect to the input alone are convolutions again: the adjoint of a transposed one is a plain
one of stride 2. In half precision, activations and kernels
are rounded to it; products are summed in float32, and what follows a convolution is computed in
float32.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.ops import dispatch, reference
from cogen_fast.ops.checks import check
from cogen_fast.ops.progressive.layers import (
    Layer,
    UpsamplingLayer,
    channels_first,
    channels_last,
)
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.to_rgb import ToRGB
from cogen_fast.ops.spec import MisfitSpec
from cogen_fast.support.arguments import check_choice

Folding = Literal["transposed", "phases", "mixed"]
FOLDINGS: tuple[str, ...] = get_args(Folding)
# Along a line: which of k0 k1 k2 each tap of the 4x4 kernel, and of the two phases, adds up.
_TRANSPOSED = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
_PHASES = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class Norms(Protocol):
    """What follows convolutions, as `cogen_fast.ops.reference` defines it.

    The input of `norm` may be the view of phases ``(n, S, 2, S, 2, C)``; all other tensors are
    contiguous.
    """

    def norm(
        self, x: Tensor, bias: Tensor, slope: float, normalise: bool
    ) -> tuple[Tensor, Tensor | None]: ...

    def norm_grad(
        self, grad: Tensor, out: Tensor, scale: Tensor | None, slope: float
    ) -> Tensor: ...

    def to_rgb_misfit(
        self, last: NormedActivation, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]: ...


def _widened(x: Tensor) -> Tensor:
    """Half precision as float32; other types as they are."""
    return x.float() if x.dtype.itemsize == 2 else x


class TorchNorms:
    """The reference itself; half precision is computed in float32 and rounded once at the end."""

    @staticmethod
    def norm(
        x: Tensor, bias: Tensor, slope: float, normalise: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `reference.norm`."""
        out, scale = reference.norm(_widened(x), bias, slope, normalise)
        return out.to(x.dtype), scale

    @staticmethod
    def norm_grad(grad: Tensor, out: Tensor, scale: Tensor | None, slope: float) -> Tensor:
        """See `reference.norm_grad`."""
        return reference.norm_grad(_widened(grad), _widened(out), scale, slope).to(out.dtype)

    @staticmethod
    def to_rgb_misfit(
        last: NormedActivation, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`reference.to_rgb_misfit`."""
        out, how = _widened(last.out), (to_rgb.weight, to_rgb.bias, to_rgb.bounded)
        energy, grad = reference.to_rgb_misfit(out, last.scale, last.slope, *how, spec, observation)
        return energy, grad.to(last.out.dtype)


class FoldedLayers:
    """Layers whose activations have the type ``dtype``: float64, float32, bfloat16 or float16.

    ``folding`` says how upsampling is folded into the convolution: "transposed", "phases", or
    "mixed", which is by phases forward and a convolution of stride 2 backward, so that no
    convolution is transposed. Raises ValueError naming it for any other value.
    """

    def __init__(self, dtype: torch.dtype, norms: Norms, folding: str = "transposed") -> None:
        self.dtype, self.norms = dtype, norms
        self.folding = check_choice("folding", folding, FOLDINGS)

    def convolution(self, kernel: Tensor, bias: Tensor, slope: float) -> Layer:
        """A convolution by torch."""
        return _SameSize(self, kernel, bias, slope)

    def upsampled(self, kernel: Tensor, bias: Tensor, slope: float) -> UpsamplingLayer:
        """Upsampling and a convolution in one, as ``folding`` says."""
        return _KINDS[self.folding](self, kernel, bias, slope)

    def norm(self, x: Tensor, bias: Tensor, slope: float, normalise: bool) -> NormedActivation:
        """Leaky ReLU and norm of ``x + bias``."""
        return NormedActivation(*self.norms.norm(x, bias, slope, normalise), slope)

    def norm_grad(
        self, grad: Tensor, preceding: NormedActivation, overwrite: bool = False
    ) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``.

        It may use the memory of ``grad``.
        """
        grad = grad.to(preceding.out.dtype).contiguous()
        return self.norms.norm_grad(grad, preceding.out, preceding.scale, preceding.slope)

    def to_rgb_misfit(
        self, last: NormedActivation, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Misfit of the image of ``last``, and back to what its norm read."""
        shape = (len(to_rgb.bias), *last.out.shape[1:3])
        if tuple(spec.output_shape) != shape:
            raise ValueError(f"spec.output_shape: expected {shape}, got {spec.output_shape}")
        count, on = len(last.out), last.out.device
        if tuple(observation.shape) != (count,) or observation.device != on:
            raise ValueError(
                f"observation: expected shape ({count},) on {on}, got "
                f"{tuple(observation.shape)} on {observation.device}"
            )
        # A block whose mean is measured may have pixels of several Triton programs.
        norms = TorchNorms if spec.kind == "pool" else self.norms
        return norms.to_rgb_misfit(last, to_rgb, spec, observation)

    def misfit(self, image: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The misfit op of the image's device."""
        return dispatch.resolve("auto", image.device).misfit(image, spec, observation)

    def checked(self, z: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Latents, contiguous."""
        return check("z", z, shape, dtype, z.device)


class _SameSize:
    """A 3x3 convolution that keeps the side."""

    def __init__(self, layers: FoldedLayers, kernel: Tensor, bias: Tensor, slope: float) -> None:
        self._layers, self._bias, self._slope = layers, bias.contiguous(), slope
        self._forward_kernel = _rounded_kernel(kernel, layers.dtype)
        self._backward_kernel = _rounded_kernel(kernel.flip(2, 3).transpose(0, 1), layers.dtype)

    def forward(self, x: Tensor) -> NormedActivation:
        """See `Layer`."""
        images = F.conv2d(channels_first(x), self._forward_kernel, padding=1)
        return self._layers.norm(channels_last(images), self._bias, self._slope, True)

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """See `Layer`."""
        by_input = F.conv2d(channels_first(grad), self._backward_kernel, padding=1)
        return self._layers.norm_grad(channels_last(by_input), preceding, overwrite)


class _Upsampled:
    """Upsampling folded into the convolution after it, in one of two ways."""

    def __init__(self, layers: FoldedLayers, kernel: Tensor, bias: Tensor, slope: float) -> None:
        self._layers, self._bias, self._slope = layers, bias.contiguous(), slope
        self._fold(kernel)

    def _fold(self, kernel: Tensor) -> None:
        raise NotImplementedError

    def _convolved(self, x: Tensor) -> Tensor:
        """The convolution: ``(n, S, S, in)`` to ``(n, 2 S, 2 S, out)``.

        The shape may be that of the phases instead, ``(n, S, 2, S, 2, out)``.
        """
        raise NotImplementedError

    def _adjoint(self, grad: Tensor) -> Tensor:
        """The adjoint of `_convolved`, ``(n, 2 S, 2 S, out)`` to ``(n, S, S, in)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> NormedActivation:
        """See `UpsamplingLayer`."""
        n, side, _, _ = x.shape
        found = self._layers.norm(self._convolved(x), self._bias, self._slope, True)
        assert found.scale is not None
        out = found.out.reshape(n, 2 * side, 2 * side, found.out.shape[-1])
        return NormedActivation(out, found.scale.reshape(out.shape[:3]), found.slope)

    def backward(
        self,
        grad: Tensor,
        preceding: NormedActivation,
        overwrite: bool,
        extra: Tensor | None = None,
    ) -> Tensor:
        """See `UpsamplingLayer`."""
        by_input = self._adjoint(grad)
        if extra is not None:
            by_input = by_input + extra
        return self._layers.norm_grad(by_input, preceding, overwrite)


class _Transposed(_Upsampled):
    """Upsampling and convolution by a transposed convolution of stride 2 with a 4x4 kernel."""

    def _fold(self, kernel: Tensor) -> None:
        self._kernel = _transposed_kernel(kernel, self._layers.dtype)

    def _convolved(self, x: Tensor) -> Tensor:
        return channels_last(
            F.conv_transpose2d(channels_first(x), self._kernel, stride=2, padding=1)
        )

    def _adjoint(self, grad: Tensor) -> Tensor:
        return _strided(grad, self._kernel)


class _Phases(_Upsampled):
    """Upsampling and convolution by a 2x2 convolution to four times the channels.

    Its output has ``(S + 1) x (S + 1)`` positions: phase (a, b) of pixel (i, j) is at (i + a, j +
    b), and the remaining values at the edges are not used.
    """

    def _fold(self, kernel: Tensor) -> None:
        self._forward_kernel = _phases_kernel(kernel, self._layers.dtype)
        self._backward_kernel = _rounded_kernel(
            self._forward_kernel.flip(2, 3).transpose(0, 1), self._layers.dtype
        )

    def _convolved(self, x: Tensor) -> Tensor:
        return _by_phases(x, self._forward_kernel)

    def _adjoint(self, grad: Tensor) -> Tensor:
        n, side, _, channels = grad.shape
        half = side // 2
        phases = grad.new_zeros(n, half + 1, half + 1, 4 * channels)
        _pixel_view(phases).copy_(grad.reshape(n, half, 2, half, 2, channels))
        return channels_last(F.conv2d(channels_first(phases), self._backward_kernel))


class _Mixed(_Upsampled):
    """Forward by phases, backward by a convolution of stride 2 with a 4x4 kernel."""

    def _fold(self, kernel: Tensor) -> None:
        self._forward_kernel = _phases_kernel(kernel, self._layers.dtype)
        self._backward_kernel = _transposed_kernel(kernel, self._layers.dtype)

    def _convolved(self, x: Tensor) -> Tensor:
        return _by_phases(x, self._forward_kernel)

    def _adjoint(self, grad: Tensor) -> Tensor:
        return _strided(grad, self._backward_kernel)


_KINDS = {"transposed": _Transposed, "phases": _Phases, "mixed": _Mixed}


def _transposed_kernel(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """The 4x4 kernel of a transposed convolution of stride 2."""
    taps = torch.tensor(_TRANSPOSED, dtype=torch.float64, device=kernel.device)
    return _rounded_kernel(torch.einsum("ui,ocij,vj->couv", taps, kernel.double(), taps), dtype)


def _strided(grad: Tensor, kernel: Tensor) -> Tensor:
    """The adjoint of the transposed convolution."""
    return channels_last(F.conv2d(channels_first(grad), kernel, stride=2, padding=1))


def _phases_kernel(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """The 2x2 kernel to four times the channels."""
    outputs, inputs = kernel.shape[:2]
    taps = torch.tensor(_PHASES, dtype=torch.float64, device=kernel.device)
    folded = torch.einsum("aui,ocij,bvj->abocuv", taps, kernel.double(), taps)
    return _rounded_kernel(folded.reshape(4 * outputs, inputs, 2, 2), dtype)


def _by_phases(x: Tensor, kernel: Tensor) -> Tensor:
    """The phases of the upsampled and convolved images."""
    return _pixel_view(channels_last(F.conv2d(channels_first(x), kernel, padding=1)))


def _pixel_view(phases: Tensor) -> Tensor:
    """The pixels ``(n, S, 2, S, 2, C)`` of phases ``(n, S + 1, S + 1, 4 C)``, as a view."""
    n, side, _, channels = phases.shape
    image, line, pixel, _ = phases.stride()
    each = channels // 4
    return phases.as_strided(
        (n, side - 1, 2, side - 1, 2, each),
        (image, line, line + 2 * each, pixel, pixel + each, 1),
    )


def _rounded_kernel(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """A kernel rounded once, in the memory layout for channels-last images."""
    return kernel.to(dtype).contiguous(memory_format=torch.channels_last)

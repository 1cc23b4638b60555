"""Layers of channels-last images by torch's convolutions, in any float type and on any device.

Upsampling and the 3x3 convolution behind it are folded into one operation with 4/9 of the products:
along a line with weights k0 k1 k2 the even outputs see ``k0 x[i-1] + (k1 + k2) x[i]`` and the odd
ones ``(k0 + k1) x[i] + k2 x[i+1]``. That is a transposed convolution of stride 2 with a 4x4 kernel,
or one 2x2 convolution whose outputs are the four phases of a pixel. Gradients by the input alone
are convolutions again. Half precision is that of activations and kernels: products are summed in
float32, and what follows a convolution is computed in float32.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.ops import dispatch, reference
from cogen_fast.ops.checks import check
from cogen_fast.ops.progressive.layers import Layer, UpsamplingLayer
from cogen_fast.ops.progressive.normed import Normed
from cogen_fast.ops.progressive.to_rgb import ToRGB
from cogen_fast.ops.spec import MisfitSpec
from cogen_fast.support.arguments import check_choice

Folding = Literal["transposed", "phases"]
FOLDINGS: tuple[str, ...] = get_args(Folding)
# Taps of the 4x4 kernel, and of the two phases, along a line.
_TRANSPOSED = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
_PHASES = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class Norms(Protocol):
    """What follows convolutions, as `cogen_fast.ops.reference` defines it.

    What `norm` reads may be the view of phases ``(n, S, 2, S, 2, C)``; all else is contiguous.
    """

    def norm(
        self, x: Tensor, bias: Tensor, slope: float, normalise: bool
    ) -> tuple[Tensor, Tensor | None]: ...

    def norm_grad(
        self, grad: Tensor, out: Tensor, scale: Tensor | None, slope: float
    ) -> Tensor: ...

    def to_rgb_misfit(
        self, last: Normed, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]: ...


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


class TorchNorms:
    """The definition itself; of half precision in float32, rounded once at the end."""

    @staticmethod
    def norm(
        x: Tensor, bias: Tensor, slope: float, normalise: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`reference.norm`."""
        out, scale = reference.norm(_wide(x), bias, slope, normalise)
        return out.to(x.dtype), scale

    @staticmethod
    def norm_grad(grad: Tensor, out: Tensor, scale: Tensor | None, slope: float) -> Tensor:
        """`reference.norm_grad`."""
        return reference.norm_grad(_wide(grad), _wide(out), scale, slope).to(out.dtype)

    @staticmethod
    def to_rgb_misfit(
        last: Normed, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`reference.to_rgb_misfit`."""
        out, how = _wide(last.out), (to_rgb.weight, to_rgb.bias, to_rgb.bounded)
        energy, grad = reference.to_rgb_misfit(out, last.scale, last.slope, *how, spec, observation)
        return energy, grad.to(last.out.dtype)


class FoldedLayers:
    """Layers whose activations are of type ``dtype``, float64, float32, bfloat16 or float16.

    ``folding``, how upsampling is folded: "transposed" or "phases". Raises ValueError naming it.
    """

    def __init__(self, dtype: torch.dtype, norms: Norms, folding: str = "transposed") -> None:
        self.dtype, self.norms = dtype, norms
        self.folding = check_choice("folding", folding, FOLDINGS)

    def convolution(self, kernel: Tensor, bias: Tensor, slope: float) -> Layer:
        """torch's."""
        return _Plain(self, kernel, bias, slope)

    def upsampled(self, kernel: Tensor, bias: Tensor, slope: float) -> UpsamplingLayer:
        """As ``folding`` says."""
        kind = _Transposed if self.folding == "transposed" else _Phases
        return kind(self, kernel, bias, slope)

    def norm(self, x: Tensor, bias: Tensor, slope: float, normalise: bool) -> Normed:
        """Leaky ReLU and norm of ``x + bias``."""
        return Normed(*self.norms.norm(x, bias, slope, normalise), slope)

    def norm_grad(self, grad: Tensor, before: Normed, spent: bool = False) -> Tensor:
        """The gradient by what ``before`` was made of; it may take the memory of ``grad``."""
        grad = grad.to(before.out.dtype).contiguous()
        return self.norms.norm_grad(grad, before.out, before.scale, before.slope)

    def to_rgb_misfit(
        self, last: Normed, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
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
        """The device's own."""
        return dispatch.resolve("auto", image.device).misfit(image, spec, observation)

    def checked(self, z: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Latents, contiguous."""
        return check("z", z, shape, dtype, z.device)


class _Plain:
    """A 3x3 convolution."""

    def __init__(self, layers: FoldedLayers, kernel: Tensor, bias: Tensor, slope: float) -> None:
        self._layers, self._bias, self._slope = layers, bias.contiguous(), slope
        self._there = _kernel(kernel, layers.dtype)
        self._back = _kernel(kernel.flip(2, 3).transpose(0, 1), layers.dtype)

    def forward(self, x: Tensor) -> Normed:
        """See `Layer`."""
        images = F.conv2d(_first(x), self._there, padding=1)
        return self._layers.norm(_last(images), self._bias, self._slope, True)

    def backward(self, grad: Tensor, before: Normed, spent: bool) -> Tensor:
        """See `Layer`."""
        by_input = F.conv2d(_first(grad), self._back, padding=1)
        return self._layers.norm_grad(_last(by_input), before, spent)


class _Upsampled:
    """Upsampling folded into the convolution behind it, one way or the other."""

    def __init__(self, layers: FoldedLayers, kernel: Tensor, bias: Tensor, slope: float) -> None:
        self._layers, self._bias, self._slope = layers, bias.contiguous(), slope
        self._fold(kernel)

    def _fold(self, kernel: Tensor) -> None:
        raise NotImplementedError

    def _convolved(self, x: Tensor) -> Tensor:
        """``(n, S, S, in)`` to ``(n, 2 S, 2 S, out)``, or to ``(n, S, 2, S, 2, out)``."""
        raise NotImplementedError

    def _adjoint(self, grad: Tensor) -> Tensor:
        """``(n, 2 S, 2 S, out)`` to ``(n, S, S, in)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Normed:
        """See `UpsamplingLayer`."""
        n, side, _, _ = x.shape
        found = self._layers.norm(self._convolved(x), self._bias, self._slope, True)
        assert found.scale is not None
        out = found.out.reshape(n, 2 * side, 2 * side, found.out.shape[-1])
        return Normed(out, found.scale.reshape(out.shape[:3]), found.slope)

    def backward(
        self, grad: Tensor, before: Normed, spent: bool, extra: Tensor | None = None
    ) -> Tensor:
        """See `UpsamplingLayer`."""
        by_input = self._adjoint(grad)
        if extra is not None:
            by_input = by_input + extra
        return self._layers.norm_grad(by_input, before, spent)


class _Transposed(_Upsampled):
    """By a transposed convolution of stride 2 with a 4x4 kernel."""

    def _fold(self, kernel: Tensor) -> None:
        taps = torch.tensor(_TRANSPOSED, dtype=torch.float64, device=kernel.device)
        folded = torch.einsum("ui,ocij,vj->couv", taps, kernel.double(), taps)
        self._kernel = _kernel(folded, self._layers.dtype)

    def _convolved(self, x: Tensor) -> Tensor:
        return _last(F.conv_transpose2d(_first(x), self._kernel, stride=2, padding=1))

    def _adjoint(self, grad: Tensor) -> Tensor:
        return _last(F.conv2d(_first(grad), self._kernel, stride=2, padding=1))


class _Phases(_Upsampled):
    """By a 2x2 convolution to four times the channels, ``(S + 1) x (S + 1)`` of them.

    Phase (a, b) of pixel (i, j) stands at (i + a, j + b); what is left over at the edges is unused.
    """

    def _fold(self, kernel: Tensor) -> None:
        outputs, inputs = kernel.shape[:2]
        taps = torch.tensor(_PHASES, dtype=torch.float64, device=kernel.device)
        folded = torch.einsum("aui,ocij,bvj->abocuv", taps, kernel.double(), taps)
        folded = folded.reshape(4 * outputs, inputs, 2, 2)
        self._there = _kernel(folded, self._layers.dtype)
        self._back = _kernel(folded.flip(2, 3).transpose(0, 1), self._layers.dtype)

    def _convolved(self, x: Tensor) -> Tensor:
        return _pixels(_last(F.conv2d(_first(x), self._there, padding=1)))

    def _adjoint(self, grad: Tensor) -> Tensor:
        n, side, _, channels = grad.shape
        half = side // 2
        phases = grad.new_zeros(n, half + 1, half + 1, 4 * channels)
        _pixels(phases).copy_(grad.reshape(n, half, 2, half, 2, channels))
        return _last(F.conv2d(_first(phases), self._back))


def _pixels(phases: Tensor) -> Tensor:
    """The pixels ``(n, S, 2, S, 2, C)`` in ``(n, S + 1, S + 1, 4 C)``, as a view."""
    n, side, _, channels = phases.shape
    image, line, pixel, _ = phases.stride()
    each = channels // 4
    return phases.as_strided(
        (n, side - 1, 2, side - 1, 2, each),
        (image, line, line + 2 * each, pixel, pixel + each, 1),
    )


def _kernel(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded once, laid out for channels-last images."""
    return kernel.to(dtype).contiguous(memory_format=torch.channels_last)


def _first(x: Tensor) -> Tensor:
    """Channels last, as torch's convolutions want them named: a view."""
    return x.permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    """Back again, contiguous: a view where the convolution kept the layout."""
    return x.permute(0, 2, 3, 1).contiguous()

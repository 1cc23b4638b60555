"""Measurement operators that inverse problems are made of, each a differentiable function."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.problem.observation import Operator, as_tensor
from cogen_fast.support.arguments import check_choice, check_count, check_number, check_seed

Border = Literal["replicate", "zeros", "valid"]
BORDERS = ("replicate", "zeros", "valid")
LUMA = (0.299, 0.587, 0.114)
"""The shares of red, green and blue in a grey value (ITU-R BT.601)."""


class _Constant:
    """A tensor on whatever device and in whatever type it is asked for, moved there once."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The value beside ``x``; complex values stay complex."""
        dtype = x.dtype.to_complex() if self.value.is_complex() else x.dtype
        key = x.device, dtype
        if key not in self._moved:
            with torch.inference_mode(False):  # it may be needed for a gradient later
                self._moved[key] = self.value.to(*key)
        return self._moved[key]


class Blur(Operator):
    """Convolution of every channel of an image with one kernel.

    Args:
        kernel: ``(k,)`` for one that acts along both axes in turn, or ``(kh, kw)``; odd sizes keep
            the image's. It is a true convolution: the kernel is turned by 180 degrees.
        border: "replicate" (the default) continues the image by its last pixels, "zeros" by 0, and
            "valid" keeps only what the kernel sees wholly, so that the measurement is smaller.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(self, kernel: Any, border: Border = "replicate") -> None:
        taps = _finite("kernel", kernel)
        if taps.is_complex():
            raise TypeError(f"kernel: expected real numbers, got {taps.dtype}")
        if taps.ndim not in (1, 2):
            raise ValueError(f"kernel: expected shape (k,) or (kh, kw), got {tuple(taps.shape)}")
        taps = torch.outer(taps, taps) if taps.ndim == 1 else taps
        self.border = check_choice("border", border, BORDERS)
        if self.border != "valid" and (taps.shape[0] % 2 == 0 or taps.shape[1] % 2 == 0):
            raise ValueError(
                f"kernel: expected odd sizes with border={border!r}, got {tuple(taps.shape)}"
            )
        self._taps = _Constant(taps.flip(0, 1))
        super().__init__(self._blurred)

    @classmethod
    def gaussian(cls, std: float, border: Border = "replicate") -> Blur:
        """A normalised Gaussian of standard deviation ``std`` pixels, cut at three of them."""
        std = check_number("std", std, above=0.0)
        half = max(1, math.ceil(3.0 * std))
        place = torch.arange(-half, half + 1, dtype=torch.float64, device="cpu")
        taps = torch.exp(-0.5 * (place / std) ** 2)
        return cls(taps / taps.sum(), border)

    def _blurred(self, x: Tensor) -> Tensor:
        _check_images(self, x)
        taps = self._taps.like(x)
        height, width = taps.shape
        pad = [width // 2, width // 2, height // 2, height // 2]
        if self.border == "replicate":
            x = F.pad(x, pad, mode="replicate")
        elif self.border == "zeros":
            x = F.pad(x, pad)
        if x.shape[2] < height or x.shape[3] < width:
            raise ValueError(
                f"kernel: expected one no larger than the image, got {height} x {width}"
            )
        channels = x.shape[1]
        return F.conv2d(x, taps.expand(channels, 1, -1, -1), groups=channels)

    def __repr__(self) -> str:
        return f"Blur({tuple(self._taps.value.shape)}, border={self.border!r})"


class Matrix(Operator):
    """Linear measurements ``A x`` of the flattened output: compressed sensing.

    ``matrix`` is ``(m, n)``, real or complex, n being the numbers of one output; measurements are
    ``(m,)``. Raises TypeError or ValueError naming ``matrix``.
    """

    def __init__(self, matrix: Any) -> None:
        rows = _finite("matrix", matrix)
        if rows.ndim != 2:
            raise ValueError(f"matrix: expected shape (m, n), got {tuple(rows.shape)}")
        self._rows = _Constant(rows)
        super().__init__(self._products)

    @classmethod
    def gaussian(cls, measurements: int, size: int, seed: int = 0) -> Matrix:
        """Independent normal entries of variance ``1 / measurements`` (Bora et al. 2017)."""
        check_count("measurements", measurements)
        check_count("size", size)
        random = torch.Generator().manual_seed(check_seed(seed) % 2**63)
        entries = torch.randn(measurements, size, generator=random, dtype=torch.float64)
        return cls(entries / math.sqrt(measurements))

    def _products(self, x: Tensor) -> Tensor:
        flat, rows = x.flatten(1), self._rows.like(x)
        if flat.shape[1] != rows.shape[1]:
            raise ValueError(
                f"matrix: expected {flat.shape[1]} columns, the numbers of one output, got "
                f"{rows.shape[1]}"
            )
        measured: Tensor = flat.to(rows.dtype) @ rows.T
        return measured

    def __repr__(self) -> str:
        return f"{type(self).__name__}({tuple(self._rows.value.shape)})"


class Magnitudes(Matrix):
    """Magnitudes ``|A x|`` without signs or phases: phase retrieval. ``matrix`` as for `Matrix`."""

    def _products(self, x: Tensor) -> Tensor:
        return super()._products(x).abs()


class Fourier(Operator):
    """Observed frequencies of an image: magnetic resonance imaging with one coil.

    The orthonormal two-dimensional transform of each channel, at the frequencies where ``mask`` is
    1: ``(H, W)`` of 0 and 1 with frequency 0 in the first entry (`torch.fft.fft2`). Measurements
    are complex, ``(C, m)`` for m observed frequencies, in the order of the mask's rows. The noise's
    standard deviation is that of the real and of the imaginary part each. Raises TypeError or
    ValueError naming ``mask``.
    """

    def __init__(self, mask: Any) -> None:
        observed = as_tensor("mask", mask)
        if (
            observed.ndim != 2
            or observed.is_complex()
            or bool(((observed != 0) & (observed != 1)).any())
        ):
            raise ValueError(
                f"mask: expected shape (H, W) of 0 and 1, got shape {tuple(observed.shape)}"
            )
        if not bool((observed != 0).any()):
            raise ValueError("mask: expected at least one observed frequency, got none")
        self._side = tuple(observed.shape)
        self._places = observed.flatten().nonzero()[:, 0]
        super().__init__(self._frequencies)

    def _frequencies(self, x: Tensor) -> Tensor:
        _check_images(self, x)
        if tuple(x.shape[2:]) != self._side:
            raise ValueError(f"mask: expected shape {tuple(x.shape[2:])}, got {self._side}")
        transformed = torch.fft.fft2(x, norm="ortho").flatten(2)
        observed: Tensor = transformed.index_select(2, self._places.to(x.device))
        return observed

    def __repr__(self) -> str:
        return f"Fourier({self._side}, observed={len(self._places)})"


class Luminance(Operator):
    """Grey values of an RGB image (ITU-R BT.601): colourisation. ``(3, H, W)`` to ``(1, H, W)``."""

    def __init__(self) -> None:
        self._weights = _Constant(torch.tensor(LUMA, dtype=torch.float64, device="cpu"))
        super().__init__(self._grey)

    def _grey(self, x: Tensor) -> Tensor:
        _check_images(self, x)
        if x.shape[1] != 3:
            raise ValueError(f"mask: {self!r} reads 3 colours, got {x.shape[1]}")
        return (x * self._weights.like(x)[:, None, None]).sum(1, keepdim=True)

    def __repr__(self) -> str:
        return "Luminance()"


def _check_images(operator: Operator, x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"mask: {operator!r} reads images (C, H, W), got a generator output of shape "
            f"{tuple(x.shape[1:])}"
        )


def _finite(name: str, value: Any) -> Tensor:
    """Real or complex floats, in double precision on the CPU."""
    tensor = as_tensor(name, value).cpu()
    tensor = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
    if tensor.numel() == 0 or not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got shape {tuple(tensor.shape)}")
    return tensor

"""Bias, leaky ReLU and pixel norm in one pass on the CPU, and their gradient in another.

Images are channels last. Of each activation only the normalised output and one number per pixel are
kept: the output has the same sign as the pre-activation, and the gradient of the leaky ReLU needs
no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.ops.checks import check, require_float, require_tensor
from cogen_fast.ops.native import extension


@dataclass(frozen=True)
class NormedActivation:
    """An activation ``out`` ``(..., C)``, and ``scale`` ``(...)``, the factor of its pixel norm.

    ``scale`` is None where there is no norm; ``slope`` is that of the leaky ReLU.
    """

    out: Tensor
    scale: Tensor | None
    slope: float

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: torch.dtype, slope: float, normalise: bool = True
    ) -> NormedActivation:
        """An activation with uninitialised memory, to be written by the extension."""
        scale = torch.empty(shape[:-1], dtype=dtype, device="cpu") if normalise else None
        return cls(torch.empty(shape, dtype=dtype, device="cpu"), scale, slope)

    def gradient_buffer(self, overwrite: bool) -> Tensor:
        """Memory for the gradient: ``out`` itself with ``overwrite``, otherwise a new tensor."""
        return self.out if overwrite else torch.empty_like(self.out)


def norm(x: Tensor, bias: Tensor, slope: float, normalise: bool) -> NormedActivation:
    """Leaky ReLU of ``x + bias``, normalised over the last dimension; see `reference.norm`."""
    dtype = require_float("x", require_tensor("x", x).dtype)
    channels = x.shape[-1]
    x = check("x", x, tuple(x.shape), dtype)
    bias = check("bias", bias, (channels,), dtype)
    found = NormedActivation.empty(tuple(x.shape), dtype, slope, normalise)
    extension().norm(
        x=x,
        out=found.out,
        bias=bias,
        slope=slope,
        scale=found.scale,
        threads=torch.get_num_threads(),
    )
    return found


def norm_grad(grad: Tensor, normed: NormedActivation, overwrite: bool = False) -> Tensor:
    """The gradient with respect to the ``x`` of `norm`; see `reference.norm_grad`.

    ``grad`` is that with respect to ``normed.out``. With ``overwrite`` the result takes the memory
    of ``normed.out``.
    """
    dtype = require_float("normed.out", normed.out.dtype)
    grad = check("grad", grad, tuple(normed.out.shape), dtype)
    target = normed.gradient_buffer(overwrite)
    extension().norm_grad(
        grad=grad,
        out=normed.out,
        slope=normed.slope,
        scale=normed.scale,
        out_grad=target,
        threads=torch.get_num_threads(),
    )
    return target

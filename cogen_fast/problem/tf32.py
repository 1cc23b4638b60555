"""Gradients in TF32: float32 whose products of matrices and convolutions take 10 bits of mantissa.

On CUDA it is a setting of the process, which is on while a gradient is computed and off while
energies are. Elsewhere the factors are rounded before each product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from cogen_fast.problem.density import GeneratorPotential, LatentMap
from cogen_fast.problem.observation import Observation

_ATEN = torch.ops.aten
_PRODUCTS = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
    _ATEN.convolution.default,
    _ATEN.convolution_backward.default,
}
_ADDED = {_ATEN.addmm.default, _ATEN.baddbmm.default}  # their first argument is no factor
_DROPPED = 13  # of the 23 bits of a float32 mantissa


class TF32Potential(GeneratorPotential):
    """A potential whose gradients are computed in TF32."""

    def of(self, generator: LatentMap, observation: Observation) -> TF32Potential:
        """The potential of another generator or observation, with the same ops and limit."""
        return TF32Potential(generator, observation, self.ops, self.max_batch)

    def _rows_energy_and_grad(self, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        with products(rows.device):
            return super()._rows_energy_and_grad(rows, index)


def products(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which products on a device are in TF32; use it where float32 is exact."""
    return _allowed() if device.type == "cuda" else _Rounding()


@contextmanager
def _allowed() -> Iterator[None]:
    """The older flags of torch, which set those of each operation, too."""
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the factors of products of matrices and convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS:
            kept = 1 if func in _ADDED else 0
            args = (*args[:kept], *tree_map(_rounded_factor, args[kept:]))
        return func(*args, **(kwargs or {}))


def _rounded_factor(value: Any) -> Any:
    return rounded(value) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def rounded(x: Tensor) -> Tensor:
    """Float32 values rounded to 10 bits of mantissa, halves away from 0."""
    half = 1 << (_DROPPED - 1)
    bits = (x.view(torch.int32) + half) & -(1 << _DROPPED)
    return torch.where(x.isfinite(), bits.view(torch.float32), x)

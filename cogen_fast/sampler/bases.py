"""Orthogonal bases that begin with given directions, and potentials in their coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.problem.density import Potential, gradients
from cogen_fast.support.layout import Array

WHOLE = 512
"""The number of dimensions up to which a basis is stored as a whole matrix."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Basis:
    """Orthogonal matrices Q ``(B, d, d)`` float64 that rotate rows, ``y = z Q``.

    Up to `WHOLE` dimensions ``whole`` holds the matrices. Beyond, Q is ``I - left right'`` with
    both ``(B, d, k)``, a product of k reflections (Schreiber and Van Loan 1989), which costs less
    than d columns.
    """

    whole: Annotated[Tensor, Array("B d d")] | None
    left: Annotated[Tensor, Array("B d k")] | None = None
    right: Annotated[Tensor, Array("B d k")] | None = None

    def rotated(self, rows: Tensor) -> Tensor:
        """``rows Q``, ``(B, N, d)``, computed in float64 and rounded once."""
        return self._times(rows, self.left, self.right, transposed=False)

    def rotated_back(self, rows: Tensor) -> Tensor:
        """``rows Q'``, ``(B, N, d)``, computed in float64 and rounded once."""
        return self._times(rows, self.right, self.left, transposed=True)

    def _times(
        self, rows: Tensor, first: Tensor | None, second: Tensor | None, transposed: bool
    ) -> Tensor:
        exact = rows.double()
        if self.whole is not None:
            return (exact @ (self.whole.mT if transposed else self.whole)).to(rows.dtype)
        assert first is not None and second is not None
        return (exact - (exact @ first) @ second.mT).to(rows.dtype)


def check(name: str, basis: Basis) -> None:
    """Raise ValueError where ``basis``, read from a file, is not orthogonal on random vectors."""
    held = basis.whole if basis.left is None else basis.left
    assert held is not None
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(held), 4, held.shape[1], generator=random, dtype=torch.float64)
    vectors = vectors.to(held.device)
    turned = basis.rotated(vectors)
    off = (basis.rotated_back(turned) - vectors).abs().max()
    stretched = (turned.norm(dim=-1) - vectors.norm(dim=-1)).abs().max()
    if not bool((off < _ROUNDING) & (stretched < _ROUNDING)):
        raise ValueError(f"{name}: expected an orthogonal basis, got one that is not orthogonal")


def identity(latents: Tensor, count: int) -> Basis:
    """The identity for ``latents`` ``(B, N, d)``, as a basis of ``count`` directions."""
    rows, _, size = latents.shape
    if size > WHOLE:
        none = latents.new_zeros(rows, size, count, dtype=torch.float64)
        return Basis(None, none, none.clone())
    unit = torch.eye(size, dtype=torch.float64, device=latents.device)
    return Basis(unit.expand(rows, -1, -1))


def from_directions(directions: Tensor) -> Basis:
    """A basis whose first j columns span the first j ``directions`` ``(B, d, k)``, for each j.

    The basis is the same for either sign of a direction, which an eigenvector leaves open.
    """
    if directions.shape[1] <= WHOLE:
        return Basis(torch.linalg.qr(directions, mode="complete").Q)
    packed, scales = torch.geqrf(directions)
    left = packed.tril(-1)
    left.diagonal(dim1=1, dim2=2).fill_(1.0)
    # Q = I - W T W' with T = (1 + D U)^-1 D, U the products of reflectors above the diagonal.
    inverse = scales[..., None] * (left.mT @ left).triu(1)
    inverse.diagonal(dim1=1, dim2=2).fill_(1.0)
    together = torch.linalg.solve_triangular(inverse, torch.diag_embed(scales), upper=True)
    return Basis(None, left, left @ together.mT)


class RotatedPotential:
    """A potential in coordinates ``y = z Q``."""

    def __init__(self, potential: Potential, basis: Basis) -> None:
        self.potential, self.basis = potential, basis

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and gradients with respect to y, at ``latents`` in the coordinates y."""
        energy, grad = self.potential.energy_and_grad(self.basis.rotated_back(latents))
        return energy, self.basis.rotated(grad)

    def grad_alone(self, latents: Tensor) -> Tensor:
        """Gradients with respect to y, without energies."""
        return self.basis.rotated(gradients(self.potential, self.basis.rotated_back(latents)))

"""Low-rank sketches of sums of outer products, where a d x d matrix is too large.

An incremental singular value decomposition (Brand 2006): new columns are appended to a factor with
orthogonal columns, and the directions of the smallest eigenvalues are dropped. The sum of the
dropped eigenvalues is kept, and counts equally in all directions that are not in the sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.support.layout import Array, NotNegative

RANK = 256
"""The number of directions kept: more than `curvature.MAX_DIRECTIONS`, because all are noisy."""
_MOST = 1e145  # largest entry of a factor whose square has computable eigenvectors


@dataclass(frozen=True)
class Sketch:
    """Sketches ``factor factor'`` of matrices ``(B, d, d)``, float64.

    The columns of ``factor`` ``(B, d, r)`` are orthogonal and in descending order of their norms.
    ``tail`` ``(B,)`` is the sum of all eigenvalues that were dropped.
    """

    factor: Annotated[Tensor, Array("B d r", low=-_MOST, high=_MOST)]
    tail: NotNegative


def init(latents: Tensor) -> Sketch:
    """The sketch of 0, for latents ``(B, N, d)``."""
    count, _, size = latents.shape
    factor = latents.new_zeros(count, size, min(RANK, size), dtype=torch.float64)
    return Sketch(factor, factor[:, 0, 0].clone())


def add(known: Sketch, kept: Tensor, columns: Tensor) -> Sketch:
    """The sketch of ``kept M + columns columns'``, with M the matrix of ``known``.

    ``kept`` is ``(B,)``, ``columns`` ``(B, d, n)``.
    """
    grown = Sketch(kept.sqrt()[:, None, None] * known.factor, kept * known.tail)
    for part in torch.split(columns, RANK, -1):
        grown = _shortened(torch.cat([grown.factor, part], -1), grown.tail)
    return grown


def mean_of_others(known: Sketch, islands: int) -> Sketch:
    """The mean over the other islands of the same observation, as `islands.mean_of_others`.

    With three islands or more the other islands are added one by one, beginning with the next one,
    and the sketch is cut back to its rank after each.
    """
    if islands == 1:
        return known
    factors = known.factor.reshape(-1, islands, *known.factor.shape[1:])
    tails = known.tail.reshape(-1, islands)
    mean = Sketch(factors.roll(-1, 1).flatten(0, 1), tails.roll(-1, 1).flatten())
    for further in range(2, islands):
        share = torch.full_like(mean.tail, 1.0 / further)
        columns = factors.roll(-further, 1).flatten(0, 1) * share.sqrt()[:, None, None]
        mean = add(mean, 1.0 - share, columns)
        mean = Sketch(mean.factor, mean.tail + share * tails.roll(-further, 1).flatten())
    return mean


def spectrum(known: Sketch, most: int) -> tuple[Tensor, Tensor]:
    """All eigenvalues ``(B, d)``, descending, and the first eigenvectors ``(B, d, most)``.

    ``tail`` is divided equally among the directions that are not in the sketch. Where an eigenvalue
    is 0, so is its eigenvector.
    """
    size, rank = known.factor.shape[-2:]
    values = (known.factor**2).sum(1)
    vectors = known.factor[..., :most] / values[:, None, :most].sqrt().clamp(min=1e-300)
    rest = (known.tail / max(size - rank, 1))[:, None].expand(-1, size - rank)
    return torch.cat([values, rest], -1), vectors


def _shortened(columns: Tensor, tail: Tensor) -> Sketch:
    """The sketch of ``columns columns'`` with the smallest eigenvalues moved to ``tail``."""
    rank = min(RANK, columns.shape[1])
    ascending, turn = torch.linalg.eigh(columns.mT @ columns)
    dropped = ascending[:, : max(columns.shape[-1] - rank, 0)].clamp(min=0.0).sum(-1)
    return Sketch(columns @ turn.flip(-1)[..., :rank], tail + dropped)

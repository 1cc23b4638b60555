"""The mass matrix, estimated from the covariance of gradients.

At equilibrium, beta times the covariance of ``grad E`` is the mean Hessian of E in directions that
the data determine, and less than it in directions that the prior determines. So the gradients that
the particles have computed anyway show in which directions the density is narrow. (The mean of the
gradients is subtracted: it balances the pull of the prior, and counting it as curvature would
increase the mass of the direction in which the density moves as beta grows.)

The stiffest directions become the first coordinates of an orthogonal basis. There a diagonal mass,
the precision ``1 + beta lambda`` of the posterior, gives all directions the same scale, so that
step sizes and trajectory lengths have no units. The prior is the same in every orthogonal basis.
The directions that stand out from the noise of few gradients are found as for a spiked covariance
(Baik and Silverstein 2006); all others share the mean of their eigenvalues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.problem.density import Potential
from cogen_fast.sampler import bases, hmc, islands, sketches
from cogen_fast.sampler.bases import Basis, RotatedPotential
from cogen_fast.sampler.hmc import HMCInfo, HMCState
from cogen_fast.sampler.sketches import Sketch
from cogen_fast.support.layout import Array, NotNegative

_MOST_CORRELATION = 0.99
_RELATED = 2.0  # particles share ancestors: this many times fewer gradients are independent
_RANK = 1e-9  # eigenvalues below this share of the largest count as 0
_MOST = 1e290  # largest entry of a matrix whose eigenvectors can be computed
_STEEPEST = 1e140  # gradients are clipped to this, so that entries stay below `_MOST`
_LARGE = 1e140  # eigenvalues above this have squares that may be infinite
MAX_DIRECTIONS = 128
"""The largest number of directions with an eigenvalue of their own."""


@dataclass(frozen=True)
class Curvature:
    """An estimate of the Hessian of E from gradients.

    ``mean`` ``(B, d, d)`` float64 is the running mean of beta times the covariance of ``grad E``.
    ``inverse_count`` ``(B,)`` float64 is one over the number of gradients that this mean is worth
    (each move counts one gradient less, for its mean); it is infinite before the first. In more
    than `bases.WHOLE` dimensions a ``sketch`` takes the place of ``mean``, so that the cost grows
    with d and not with its square.
    """

    mean: Annotated[Tensor, Array("B d d", low=-_MOST, high=_MOST)] | None
    inverse_count: Annotated[Tensor, Array("B", low=0.0, infinite=True)]
    sketch: Sketch | None = None


@dataclass(frozen=True)
class Directions:
    """The stiffest directions, in descending order of their eigenvalues.

    ``vectors`` ``(B, d, k)`` and ``values`` ``(B, k)`` are eigenvectors and eigenvalues of E's
    Hessian; ``rest`` ``(B,)`` is the mean eigenvalue of all further directions.
    """

    vectors: Annotated[Tensor, Array("B d k")]
    values: Annotated[Tensor, Array("B k", low=0.0)]
    rest: NotNegative


def init(latents: Tensor) -> Curvature:
    """The estimate before the first gradients."""
    count, _, size = latents.shape
    none = latents.new_full((count,), math.inf, dtype=torch.float64)
    if size > bases.WHOLE:
        return Curvature(None, none, sketches.init(latents))
    return Curvature(latents.new_zeros(count, size, size, dtype=torch.float64), none)


def bytes_of_a_latent(size: int) -> int:
    """Bytes per latent of a row's `Curvature`, `Directions` and basis, for ``size`` latents."""
    most = min(MAX_DIRECTIONS, size)
    whole = size <= bases.WHOLE
    return 8 * (2 * size + most if whole else min(sketches.RANK, size) + 3 * most)


def gain(size: int) -> float:
    """Weight of a move in the running mean: an e-fold of beta takes about ``sqrt(d)`` moves."""
    return 0.5 / math.sqrt(size)


def update(known: Curvature, grad: Tensor, beta: Tensor, active: Tensor) -> Curvature:
    """The estimate after one more move with gradients ``grad`` ``(B, N, d)`` at ``beta`` ``(B,)``.

    Only ``active`` rows change. A single particle has no covariance and adds 0. The first moves, up
    to one over `gain` of them, have equal weights.
    """
    g = grad.double().clamp(-_STEEPEST, _STEEPEST)
    g = g - g.mean(1, keepdim=True)
    particles, size = max(g.shape[1] - 1, 1), g.shape[2]
    # The weight of this move if all moves so far had equal weights: one over their number.
    even = 1.0 / (1.0 + 1.0 / (particles * known.inverse_count))
    weight = torch.where(active, even.clamp(min=gain(size)), 0.0)
    kept = torch.where(weight < 1.0, (1.0 - weight) ** 2 * known.inverse_count, 0.0)
    inverse_count = kept + weight**2 / particles
    inverse_count = torch.where(active, inverse_count, known.inverse_count)
    share = weight * beta / particles
    if known.mean is None:
        sketch = _grown(known.sketch, 1.0 - weight, share.sqrt()[:, None, None] * g.mT, active)
        return Curvature(None, inverse_count, sketch)
    weighted = share[:, None, None] * g
    mean = torch.baddbmm((1.0 - weight)[:, None, None] * known.mean, weighted.mT, g)
    return Curvature(mean, inverse_count)


def _grown(known: Sketch | None, kept: Tensor, columns: Tensor, active: Tensor) -> Sketch:
    """The sketch with ``columns`` added where ``active``; other rows do not change in any bit."""
    assert known is not None
    grown = sketches.add(known, kept, columns)
    return Sketch(
        torch.where(active[:, None, None], grown.factor, known.factor),
        torch.where(active, grown.tail, known.tail),
    )


def mean_of_others(known: Curvature, count: int) -> Curvature:
    """For each of ``count`` islands the mean of the other islands' estimates."""
    inverse_count = islands.mean_of_others(known.inverse_count, count) / max(count - 1, 1)
    if known.mean is None:
        assert known.sketch is not None
        return Curvature(None, inverse_count, sketches.mean_of_others(known.sketch, count))
    return Curvature(islands.mean_of_others(known.mean, count), inverse_count)


def no_directions(latents: Tensor) -> Directions:
    """Directions for an estimate that is 0: all eigenvalues are 0."""
    count, _, size = latents.shape
    most = min(MAX_DIRECTIONS, size)
    values = latents.new_zeros(count, most, dtype=torch.float64)
    vectors = fixed_columns(size).to(latents.device).expand(count, -1, -1)
    return Directions(vectors, values, values[:, 0].clone())


def directions(known: Curvature, autocorrelation: Tensor) -> Directions:
    """The stiffest directions, at most `MAX_DIRECTIONS`, with eigenvalues cleared of noise.

    ``autocorrelation`` ``(B,)`` is the lag-one autocorrelation of gradients over moves (that of the
    latents is passed for it), by which fewer of them are independent. Columns beyond the rank of
    the estimate are `fixed_columns`.
    """
    raw, stiff = _spectrum(known)
    size, most = stiff.shape[-2:]
    # The covariance is made of products of gradients, whose autocorrelation is the square.
    squared = autocorrelation.clamp(0.0, _MOST_CORRELATION) ** 2
    values = denoised(raw, _RELATED * known.inverse_count * (1.0 + squared) / (1.0 - squared))
    rest = values[:, most:].mean(-1) if most < size else values[:, -1]
    # Beyond the span of the gradients, rounding errors would choose the directions.
    spanned = raw[:, :most] > _RANK * raw[:, :1]
    stiff = torch.where(spanned[:, None], stiff, fixed_columns(size).to(stiff.device))
    return Directions(stiff, values[:, :most], rest)


def _spectrum(known: Curvature) -> tuple[Tensor, Tensor]:
    """Descending eigenvalues ``(B, d)``; the first `MAX_DIRECTIONS` eigenvectors ``(B, d, k)``."""
    if known.mean is None:
        assert known.sketch is not None
        return sketches.spectrum(known.sketch, min(MAX_DIRECTIONS, known.sketch.factor.shape[1]))
    ascending, vectors = torch.linalg.eigh(known.mean)
    return ascending.flip(-1).clamp(min=0.0), vectors.flip(-1)[..., :MAX_DIRECTIONS]


def denoised(values: Tensor, inverse_count: Tensor) -> Tensor:
    """Descending eigenvalues ``(B, d)`` of a covariance of few gradients, cleared of their noise.

    Let m be the mean of an eigenvalue and all smaller ones, and g their number over that of the
    gradients. The eigenvalue stands out where it exceeds ``m (1 + sqrt(g))^2`` (Marchenko and
    Pastur); it is then replaced by the true eigenvalue that would appear with this value (Baik and
    Silverstein 2006, eq. 1.11 solved for the spike). The first eigenvalue that does not stand out,
    and all smaller ones, are replaced by their mean.
    """
    unit = torch.where(values[:, :1] > _LARGE, values[:, :1], 1.0)
    values, size = values / unit, values.shape[-1]
    number = torch.arange(size, 0, -1, device=values.device, dtype=values.dtype)
    mean = values.flip(-1).cumsum(-1).flip(-1) / number
    share = number * inverse_count[:, None].clamp(max=1.0)
    stands_out = (values > mean * (1.0 + share.sqrt()) ** 2).cumprod(-1).bool()
    first = stands_out.sum(-1, keepdim=True).clamp(max=size - 1)
    noise, share = mean.gather(-1, first), share.gather(-1, first)
    middle = values + noise * (1.0 - share)
    root = (middle**2 - 4.0 * values * noise).clamp(min=0.0).sqrt()
    return unit * torch.where(stands_out, (0.5 * (middle + root)).maximum(noise), noise)


def inverse_mass(known: Directions, beta: Tensor) -> Tensor:
    """Variances of the density at ``beta`` along the directions, ``(B, d)`` float64."""
    size, most = known.vectors.shape[-2:]
    rest = known.rest[:, None].expand(-1, size - most)
    return 1.0 / (1.0 + beta[:, None] * torch.cat([known.values, rest], -1))


def fixed_columns(size: int) -> Tensor:
    """The same random columns ``(d, k)`` float64 for every call, which are linearly independent."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(
        size, min(MAX_DIRECTIONS, size), generator=random, dtype=torch.float64, device="cpu"
    )


@dataclass(frozen=True)
class TransitionResult:
    """One transition: the state ``after`` it; ``start`` and ``end`` in the rotated coordinates."""

    after: HMCState
    start: HMCState
    end: HMCState
    info: HMCInfo


def transition(
    state: HMCState,
    potential: Potential,
    settings: TransitionSettings,
    leapfrog_steps: int,
    turn: Basis | None,
    ops: Ops,
) -> TransitionResult:
    """`hmc.transition` in the coordinates ``y = z Q`` of the basis ``turn`` (None: in z itself)."""
    if turn is None:
        after, info = hmc.transition(state, potential, settings, leapfrog_steps, ops)
        return TransitionResult(after, state, after, info)
    latents, grad = turn.rotated(state.latents), turn.rotated(state.grad)
    start = HMCState(latents, state.energy, grad, state.stream)
    target = RotatedPotential(potential, turn)
    end, info = hmc.transition(start, target, settings, leapfrog_steps, ops)
    return TransitionResult(_rotated_back(end, start, state, turn), start, end, info)


def _rotated_back(end: HMCState, start: HMCState, before: HMCState, turn: Basis) -> HMCState:
    """``end`` in the coordinates z; chains that have not moved keep every bit of ``before``."""
    still = (end.latents == start.latents).all(-1, keepdim=True)
    return HMCState(
        torch.where(still, before.latents, turn.rotated_back(end.latents)),
        end.energy,
        torch.where(still, before.grad, turn.rotated_back(end.grad)),
        end.stream,
    )

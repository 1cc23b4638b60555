"""A mass from the curvature that gradients have shown, in coordinates turned to its directions.

At equilibrium beta times the covariance of ``grad E`` is E's mean Hessian where the data decide,
and less where the prior does, so the gradients that particles have already paid for tell in which
directions the density is narrow. (Their mean is no curvature: it balances the prior's pull, and
taken for one it would make heavy the very direction in which the density moves as beta grows.)
These become the first coordinates of an orthogonal basis, where a diagonal mass, the precision
``1 + beta lambda`` of the posterior there, makes all scales alike: step sizes and trajectory
lengths are then numbers without units. The prior is the same in every such basis. Which directions
stand out beyond the noise of few gradients is told as for a spiked covariance (Baik and Silverstein
2006): the others share the mean of theirs.
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
_RELATED = 2.0  # resampled particles share ancestors: so many times fewer are independent
_RANK = 1e-9  # of the largest eigenvalue: below it there is no direction
_MOST = 1e290  # of what eigenvectors can be found of
_STEEPEST = 1e140  # gradients count as no steeper, so that it is never reached
_LARGE = 1e140  # eigenvalues above it have squares that may be infinite
MAX_DIRECTIONS = 128
"""Directions at most."""


@dataclass(frozen=True)
class Curvature:
    """What gradients have shown of E's Hessian.

    ``mean`` ``(B, d, d)`` float64 is the running mean of beta times the covariance of ``grad E``,
    and ``inverse_count`` ``(B,)`` float64 one over the number of gradients, less one for each
    move's mean, that it amounts to, infinite where there are none yet. Of more than `bases.WHOLE`
    dimensions there is a ``sketch`` of that mean instead, so that costs grow with d.
    """

    mean: Annotated[Tensor, Array("B d d", low=-_MOST, high=_MOST)] | None
    inverse_count: Annotated[Tensor, Array("B", low=0.0, infinite=True)]
    sketch: Sketch | None = None


@dataclass(frozen=True)
class Directions:
    """The stiffest directions: ``vectors`` ``(B, d, k)``, eigenvalues of E's Hessian ``(B, k)``.

    The stiffest is first; ``rest`` ``(B,)`` is the mean eigenvalue of all further directions.
    """

    vectors: Annotated[Tensor, Array("B d k")]
    values: Annotated[Tensor, Array("B k", low=0.0)]
    rest: NotNegative


def init(latents: Tensor) -> Curvature:
    """No curvature known yet."""
    count, _, size = latents.shape
    none = latents.new_full((count,), math.inf, dtype=torch.float64)
    if size > bases.WHOLE:
        return Curvature(None, none, sketches.init(latents))
    return Curvature(latents.new_zeros(count, size, size, dtype=torch.float64), none)


def bytes_of_a_latent(size: int) -> int:
    """What `Curvature`, `Directions` and a basis of each row hold for each of ``size`` latents."""
    most = min(MAX_DIRECTIONS, size)
    whole = size <= bases.WHOLE
    return 8 * (2 * size + most if whole else min(sketches.RANK, size) + 3 * most)


def gain(size: int) -> float:
    """Weight of a move in the running mean: an e-fold of beta takes some ``sqrt(d)`` moves."""
    return 0.5 / math.sqrt(size)


def update(known: Curvature, grad: Tensor, beta: Tensor, active: Tensor) -> Curvature:
    """The running mean with E's gradients ``grad`` ``(B, N, d)`` at ``beta`` ``(B,)``.

    Only ``active`` observations learn, and nothing from a single particle. The first moves, up to
    one over `gain` of them, weigh alike.
    """
    g = grad.double().clamp(-_STEEPEST, _STEEPEST)
    g = g - g.mean(1, keepdim=True)
    particles, size = max(g.shape[1] - 1, 1), g.shape[2]
    # One over the moves so far, this one included, were each to weigh alike.
    even = 1.0 / (1.0 + 1.0 / (particles * known.inverse_count))
    weight = torch.where(active, even.clamp(min=gain(size)), 0.0)
    kept = torch.where(weight < 1.0, (1.0 - weight) ** 2 * known.inverse_count, 0.0)
    inverse_count = kept + weight**2 / particles
    inverse_count = torch.where(active, inverse_count, known.inverse_count)
    share = weight * beta / particles
    if known.mean is None:
        sketch = _grown(known.sketch, 1.0 - weight, share.sqrt()[:, None, None] * g.mT, active)
        return Curvature(None, inverse_count, sketch)
    seen = share[:, None, None] * g
    mean = torch.baddbmm((1.0 - weight)[:, None, None] * known.mean, seen.mT, g)
    return Curvature(mean, inverse_count)


def _grown(known: Sketch | None, kept: Tensor, columns: Tensor, active: Tensor) -> Sketch:
    """With more columns where ``active``; elsewhere bit for bit what it was."""
    assert known is not None
    grown = sketches.add(known, kept, columns)
    return Sketch(
        torch.where(active[:, None, None], grown.factor, known.factor),
        torch.where(active, grown.tail, known.tail),
    )


def mean_of_others(known: Curvature, count: int) -> Curvature:
    """What the other ones of ``count`` islands have seen, in place of each one's own."""
    inverse_count = islands.mean_of_others(known.inverse_count, count) / max(count - 1, 1)
    if known.mean is None:
        assert known.sketch is not None
        return Curvature(None, inverse_count, sketches.mean_of_others(known.sketch, count))
    return Curvature(islands.mean_of_others(known.mean, count), inverse_count)


def no_directions(latents: Tensor) -> Directions:
    """Those of no curvature at all."""
    count, _, size = latents.shape
    most = min(MAX_DIRECTIONS, size)
    values = latents.new_zeros(count, most, dtype=torch.float64)
    vectors = fixed_columns(size).to(latents.device).expand(count, -1, -1)
    return Directions(vectors, values, values[:, 0].clone())


def directions(known: Curvature, autocorrelation: Tensor) -> Directions:
    """The stiffest directions, at most `MAX_DIRECTIONS`, their eigenvalues without what is noise.

    ``autocorrelation`` ``(B,)`` is the correlation of gradients with those one move before, by which they
    amount to fewer independent ones. Columns beyond the rank of the mean are fixed ones.
    """
    raw, stiff = _spectrum(known)
    size, most = stiff.shape[-2:]
    # The correlation of their products.
    squared = autocorrelation.clamp(0.0, _MOST_CORRELATION) ** 2
    values = denoised(raw, _RELATED * known.inverse_count * (1.0 + squared) / (1.0 - squared))
    rest = values[:, most:].mean(-1) if most < size else values[:, -1]
    # Where gradients span fewer directions, rounding would choose the others.
    spanned = raw[:, :most] > _RANK * raw[:, :1]
    stiff = torch.where(spanned[:, None], stiff, fixed_columns(size).to(stiff.device))
    return Directions(stiff, values[:, :most], rest)


def _spectrum(known: Curvature) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(B, d)``, descending, and the first `MAX_DIRECTIONS` eigenvectors ``(B, d, k)``."""
    if known.mean is None:
        assert known.sketch is not None
        return sketches.spectrum(known.sketch, min(MAX_DIRECTIONS, known.sketch.factor.shape[1]))
    ascending, vectors = torch.linalg.eigh(known.mean)
    return ascending.flip(-1).clamp(min=0.0), vectors.flip(-1)[..., :MAX_DIRECTIONS]


def denoised(values: Tensor, inverse_count: Tensor) -> Tensor:
    """Eigenvalues ``(B, d)``, descending, of a mean over few gradients without their noise.

    An eigenvalue stands out where it lies above ``m (1 + sqrt(g))^2``, m the mean of it and all
    below, g their number over that of the gradients (Marchenko and Pastur); it then becomes the
    one that shows itself so (Baik and Silverstein 2006, eq. 1.11 solved for the spike). The first
    that does not, and all below, become their mean.
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
    """Variances of the posterior at ``beta`` in the turned coordinates, ``(B, d)`` float64."""
    size, most = known.vectors.shape[-2:]
    rest = known.rest[:, None].expand(-1, size - most)
    return 1.0 / (1.0 + beta[:, None] * torch.cat([known.values, rest], -1))


def fixed_columns(size: int) -> Tensor:
    """Fixed columns ``(d, k)`` float64 in general position."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(
        size, min(MAX_DIRECTIONS, size), generator=random, dtype=torch.float64, device="cpu"
    )


@dataclass(frozen=True)
class TransitionResult:
    """One transition: the state ``after`` it, and ``start`` and ``end`` as the moves saw them."""

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
    """`hmc.transition` in the coordinates ``y = z Q`` of ``turn`` (None: in z itself)."""
    if turn is None:
        after, info = hmc.transition(state, potential, settings, leapfrog_steps, ops)
        return TransitionResult(after, state, after, info)
    latents, grad = turn.rotated(state.latents), turn.rotated(state.grad)
    start = HMCState(latents, state.energy, grad, state.stream)
    target = RotatedPotential(potential, turn)
    end, info = hmc.transition(start, target, settings, leapfrog_steps, ops)
    return TransitionResult(_rotated_back(end, start, state, turn), start, end, info)


def _rotated_back(end: HMCState, start: HMCState, before: HMCState, turn: Basis) -> HMCState:
    """``end`` in z again; chains that stand where they stood keep every bit."""
    still = (end.latents == start.latents).all(-1, keepdim=True)
    return HMCState(
        torch.where(still, before.latents, turn.rotated_back(end.latents)),
        end.energy,
        torch.where(still, before.grad, turn.rotated_back(end.grad)),
        end.stream,
    )

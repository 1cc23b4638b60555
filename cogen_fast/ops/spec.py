"""Plain data that the ops take: the settings of a transition, and what is observed of an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

MisfitKind = Literal["mask", "pool", "stride"]


@dataclass(frozen=True)
class TransitionSettings:
    """The settings of one transition of B observations, fixed before the trajectory starts.

    ``beta`` and ``prior_weight`` ``(B,)`` float64 define the potential ``U(z) = beta E(z) +
    prior_weight |z|^2 / 2``. ``step_size`` float64 is that of the leapfrog steps, ``(B,)``, or
    ``(B, N)`` where each chain has its own. ``inverse_mass`` ``(B, d)``, in the latents' dtype, is
    the diagonal of the inverse mass matrix (None: the identity). ``active`` ``(B,)`` bool marks the
    observations that move (None: all).
    """

    beta: Tensor
    prior_weight: Tensor
    step_size: Tensor
    inverse_mass: Tensor | None = None
    active: Tensor | None = None


@dataclass(frozen=True)
class AdaptationRule:
    """The published step-size rule (paper, section 3).

    As published, all chains of an observation share a step size, which follows their mean
    acceptance probability. With ``per_chain`` each chain has its own step size, which follows its
    own acceptance probability alone. No chain then waits for another, but a step size that depends
    on a chain's past is not independent of the chain's state, which biases samples and weights for
    any number of chains.
    """

    target: float = 0.65
    decay: float = 0.9
    increase: float = 1.02
    decrease: float = 0.98
    minimum: float = 1e-4
    maximum: float = 0.5
    per_chain: bool = False


@dataclass(frozen=True)
class MisfitSpec:
    """The observation of B outputs, as plain data that a kernel (or a generator) can use.

    ``kind`` says what is measured of an output of shape ``output_shape``: every entry ("mask"), the
    means of blocks of ``factor`` x ``factor`` pixels ("pool"), or every ``factor``-th pixel from
    the first on ("stride"); the last two need ``output_shape == (C, H, W)``. With M measured values
    per output, ``target`` is ``(B, M)``; ``mask`` is ``(1 or B, M)`` uint8, 1 where observed, or
    None if all are; ``weight`` is ``(1 or B, 1 or M)``, the factor of each squared residual (``1 /
    (2 sigma^2)``). ``target`` and ``weight`` have the outputs' dtype. Targets that are not observed
    may hold any values.
    """

    kind: MisfitKind
    output_shape: tuple[int, ...]
    factor: int
    target: Tensor
    mask: Tensor | None
    weight: Tensor

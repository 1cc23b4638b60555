"""Plain data that the ops take: settings of a transition, and what is observed of an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

MisfitKind = Literal["mask", "pool", "stride"]


@dataclass(frozen=True)
class TransitionSettings:
    """What one transition of B observations is made with; fixed before the trajectory starts.

    ``beta`` and ``prior_weight`` ``(B,)`` float64 give the potential
    ``U(z) = beta E(z) + prior_weight |z|^2 / 2``; ``step_size`` float64 is the leapfrog's, ``(B,)``
    or each chain's own, ``(B, N)``; ``inverse_mass`` ``(B, d)`` in the latents' dtype is a diagonal
    (None: the identity); ``active`` ``(B,)`` bool marks the observations that move (None: all).
    """

    beta: Tensor
    prior_weight: Tensor
    step_size: Tensor
    inverse_mass: Tensor | None = None
    active: Tensor | None = None


@dataclass(frozen=True)
class AdaptationRule:
    """The published step-size rule (paper, section 3; method notes: "Step size").

    As published, all chains of an observation share a step size, which follows their mean
    acceptance. With ``per_chain`` each has its own, which follows its own acceptance alone: chains
    wait for no other, but a step size that remembers where its chain has been is not independent of
    where it is, which biases samples and weights, however many chains there are.
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

    ``kind`` says what is read of an output of shape ``output_shape``: every entry ("mask"), the
    means of ``factor`` x ``factor`` blocks ("pool"), or every ``factor``-th pixel from the first
    ("stride"); the last two need ``output_shape == (C, H, W)``. With M measured values per output:
    ``target`` is ``(B, M)``; ``mask`` is ``(1 or B, M)`` uint8, 1 = observed, or None for all;
    ``weight`` is ``(1 or B, 1 or M)``, the factor of each squared residual (``1 / (2 sigma^2)``).
    ``target`` and ``weight`` share the outputs' dtype. Unobserved targets may hold anything.
    """

    kind: MisfitKind
    output_shape: tuple[int, ...]
    factor: int
    target: Tensor
    mask: Tensor | None
    weight: Tensor

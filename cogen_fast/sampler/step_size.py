"""Step-size adaptation as published: one step size per observation, steered by acceptance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.spec import AdaptationRule

PROGRAM_RULE = AdaptationRule()
"""The authors' program: grow by 1.02."""
PAPER_RULE = AdaptationRule(increase=1.021)
"""The paper's text: grow by 1.021."""


@dataclass(frozen=True)
class StepSizeState:
    """Step size and running acceptance rate of each observation, both ``(B,)`` float64."""

    step_size: Tensor
    running_acceptance: Tensor


def init(
    observations: int, start: float, rule: AdaptationRule, device: torch.device
) -> StepSizeState:
    """The published start: the running acceptance begins at its target."""
    step = torch.full((observations,), start, dtype=torch.float64, device=device)
    return StepSizeState(step, torch.full_like(step, rule.target))


def update(
    state: StepSizeState,
    acceptance_probability: Tensor,
    active: Tensor | None,
    rule: AdaptationRule,
    ops: Ops,
) -> StepSizeState:
    """The state after one transition with ``acceptance_probability`` ``(B, N)``."""
    return StepSizeState(
        *ops.adapt_step_size(
            state.step_size, state.running_acceptance, acceptance_probability, active, rule
        )
    )

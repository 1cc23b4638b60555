"""Step-size adaptation as published: it follows the mean acceptance of an observation's chains.

With ``per_chain`` each chain has a step size of its own, which follows its own acceptance alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.spec import AdaptationRule
from cogen_fast.support.layout import Array

PROGRAM_RULE = AdaptationRule()
"""The rule of the authors' program: the step size grows by a factor of 1.02."""
PAPER_RULE = AdaptationRule(increase=1.021)
"""The rule of the paper's text: the step size grows by a factor of 1.021."""
_OfEach = Annotated[Tensor, Array("B", low=0.0), Array("B N", low=0.0)]


@dataclass(frozen=True)
class StepSizeState:
    """Step size and running acceptance rate of each observation, both ``(B,)`` float64.

    With a rule that is ``per_chain`` both are ``(B, N)``, one for each chain.
    """

    step_size: _OfEach
    running_acceptance: _OfEach

    @property
    def per_chain(self) -> bool:
        """Whether each chain has a step size of its own."""
        return self.step_size.ndim == 2

    def check(self, rule: AdaptationRule) -> None:
        """Raise ValueError where ``rule.per_chain`` is not that of the rule the run began with."""
        if self.per_chain != rule.per_chain:
            raise ValueError(
                f"adaptation: expected per_chain={self.per_chain}, with which the run began, got "
                f"{rule.per_chain}"
            )


def init(
    observations: int, chains: int, start: float, rule: AdaptationRule, device: torch.device
) -> StepSizeState:
    """Step sizes ``start`` and, as published, running acceptances that begin at their target."""
    shape = (observations, chains) if rule.per_chain else (observations,)
    step = torch.full(shape, start, dtype=torch.float64, device=device)
    return StepSizeState(step, torch.full_like(step, rule.target))


def update(
    state: StepSizeState,
    acceptance_probability: Tensor,
    active: Tensor | None,
    rule: AdaptationRule,
    ops: Ops,
) -> StepSizeState:
    """The state after one transition with ``acceptance_probability`` ``(B, N)``."""
    state.check(rule)
    return StepSizeState(
        *ops.adapt_step_size(
            state.step_size, state.running_acceptance, acceptance_probability, active, rule
        )
    )

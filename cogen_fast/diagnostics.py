"""What is wrong with a run, in words, and what to change; from plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_EFFECTIVE = 4.0
_LEAST_ROOTS = 3
_LEAST_ACCEPTANCE = 0.3
_MOST_NON_FINITE = 0.01
_END = 4  # the last quarter of a run


@dataclass(frozen=True)
class Evidence:
    """What is looked at; shapes as in `cogen_fast.Result`.

    ``effective_sample_size`` ``(B,)`` is None without weights and for one resampled population,
    ``surviving_roots`` None where nothing is resampled; ``alone``: lone chains, no population.
    """

    complete: bool
    adaptive: bool
    alone: bool
    polished: bool
    effective_sample_size: Tensor | None
    surviving_roots: Tensor | None
    particles: int
    acceptance: Tensor
    betas: Tensor
    energies: Tensor
    energy_history: Tensor
    non_finite: Tensor
    moves: int
    jumped: Tensor


def diagnose(evidence: Evidence) -> list[str]:
    """One sentence per thing that is wrong: what, where, and what to change; empty if nothing."""
    checks: tuple[Callable[[Evidence], str | None], ...] = (
        _interrupted,
        _lone,
        _jumped,
        _acceptance,
        _settled,
        _weights,
        _roots,
        _finite,
    )
    return [found for check in checks if (found := check(evidence)) is not None]


def _where(bad: Tensor) -> str:
    """Which observations, "" where there is only one."""
    if bad.numel() == 1:
        return ""
    shown = ", ".join(str(i) for i in bad.nonzero().flatten()[:4].tolist())
    return f" (observation {shown}{', ...' if int(bad.sum()) > 4 else ''})"


def _interrupted(run: Evidence) -> str | None:
    if run.complete:
        return None
    return "interrupted: these are not yet samples of the posterior; run again with checkpoint="


def _lone(run: Evidence) -> str | None:
    if not run.alone:
        return None
    return (
        "lone chains: each ends in the mode it first fell into, so modes have wrong shares and "
        "there is no evidence; give chains=16 or a larger budget"
    )


def _jumped(run: Evidence) -> str | None:
    if not bool(run.jumped.any()):
        return None
    return (
        f"the budget ended the run early{_where(run.jumped)}: steps of the temperature were too "
        "large for their weights; give a larger budget"
    )


def _ends(history: Tensor) -> Tensor:
    """Mean of the last quarter of each column's finite rows; NaN where there are none."""
    columns = []
    for column in history.T:
        known = column[column.isfinite()]
        columns.append(known[-max(1, len(known) // _END) :].mean())
    return torch.stack(columns)


def _acceptance(run: Evidence) -> str | None:
    ends = _ends(run.acceptance)
    low = ends < _LEAST_ACCEPTANCE
    if not bool(low.any()):
        return None
    change = (
        "give more moves (hmc_steps) or a larger budget"
        if run.adaptive
        else "chains that stand still are no samples; give more ais_steps, a larger noise_std, or "
        "method='adaptive'"
    )
    return f"acceptance too low: {ends[low].min():.2f} at the end{_where(low)}: {change}"


def _settled(run: Evidence) -> str | None:
    """At the posterior itself the mean energy must no longer fall."""
    if run.polished:  # the energies' spread is not that of samples
        return None
    falling = torch.tensor([_falls(run, column) for column in range(run.betas.shape[1])])
    if not bool(falling.any()):
        return None
    return (
        f"energies not settled: still falling when the run ended{_where(falling)}; give a larger "
        "budget, or kept nearer to 1"
    )


def _falls(run: Evidence, column: int) -> bool:
    """Whether the first rounds at the posterior lie above the last by more than three errors."""
    energies = run.energy_history[:, column]
    final = energies[(run.betas[:, column] >= 1.0) & energies.isfinite()]
    if len(final) < 2:
        return False
    each = len(final) // 2
    drop = float(final[:each].mean()) - float(final[-each:].mean())
    sd = float(run.energies[column * len(run.energies) // run.betas.shape[1]].std(correction=0))
    return drop > 3.0 * sd * math.sqrt(2.0 / (each * run.particles))


def _weights(run: Evidence) -> str | None:
    effective = run.effective_sample_size
    if effective is None:
        return None
    low = effective < min(_LEAST_EFFECTIVE, run.energies.shape[1] / 2)
    if not bool(low.any()):
        return None
    change = "populations disagree; give a larger budget" if run.adaptive else "give more ais_steps"
    return (
        f"weights collapsed: an effective {effective[low].min():.1f} of {run.energies.shape[1]} "
        f"samples{_where(low)}, evidence and weighted means rest on these; {change}"
    )


def _roots(run: Evidence) -> str | None:
    roots = run.surviving_roots
    if roots is None or run.particles < _LEAST_ROOTS:
        return None
    low = roots < _LEAST_ROOTS
    if not bool(low.any()):
        return None
    return (
        f"few ancestors: all {run.particles} particles descend from {int(roots[low].min())} of the "
        f"prior's draws{_where(low)}, so modes may be missing; compare populations=4, or give more "
        "chains"
    )


def _finite(run: Evidence) -> str | None:
    share = float(run.non_finite.double().mean()) / max(run.moves, 1)
    if share <= _MOST_NON_FINITE:
        return None
    return (
        f"non-finite proposals: {share:.0%} of all; the generator overflows on the way: check its "
        "outputs at large latents, or give a smaller step_size"
    )

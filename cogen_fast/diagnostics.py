"""What is wrong with a run, in words, and what to change; from plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.agreement import disagreement

_LEAST_EFFECTIVE = 4.0
_LEAST_ROOTS = 3
_LEAST_ACCEPTANCE = 0.3
_MOST_NON_FINITE = 0.05
_END = 4  # the last quarter of a run
_SETTLED = 6.0  # standard errors, as if rounds and relatives were independent: they are not
_FAR = 3.0  # noise standard deviations, root mean square
_MOST_RHAT, _LEAST_P = 1.5, 0.005
_MANY_POPULATIONS = 4
_SHOWN = 4


@dataclass(frozen=True)
class Evidence:
    """What is looked at; shapes as in `cogen_fast.Result`.

    ``effective_sample_size`` ``(B,)`` is None without weights and for one resampled population,
    ``surviving_roots`` None where nothing is resampled; ``annealed``: by HMC moves, no baseline;
    ``alone``: lone chains, no population; ``budgeted``: a budget was given. ``residual`` ``(B,)``
    is the best sample's root mean square misfit in noise standard deviations, None where there is
    no such noise.
    """

    complete: bool
    annealed: bool
    adaptive: bool
    alone: bool
    budgeted: bool
    polished: bool
    populations: int
    latents: Tensor
    residual: Tensor | None
    effective_sample_size: Tensor | None
    surviving_roots: Tensor | None
    particles: int
    acceptance: Tensor
    betas: Tensor
    energies: Tensor
    energy_std: Tensor
    energy_history: Tensor
    non_finite: Tensor
    moves: int
    jumped: Tensor
    rounds_missing: Tensor


def diagnose(evidence: Evidence) -> list[str]:
    """One sentence per thing that is wrong: what, where, and what to change; empty if nothing."""
    checks: tuple[Callable[[Evidence], str | None], ...] = (
        _interrupted,
        _lone,
        _unmoved,
        _jumped,
        _cut,
        _acceptance,
        _settled,
        _weights,
        _roots,
        _agreement,
        _reach,
        _finite,
    )
    return [found for check in checks if (found := check(evidence)) is not None]


def _where(bad: Tensor, populations: int = 1) -> str:
    """Which observations and populations, "" where there is only one of them."""
    several = len(bad) > populations
    names = []
    for column in bad.nonzero().flatten().tolist():
        observation, population = divmod(column, populations)
        parts = [f"observation {observation}"] if several else []
        parts += [f"population {population}"] if populations > 1 else []
        names.append(" ".join(parts))
    if len(bad) == 1:
        return ""
    return f" ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"


def _larger_budget(run: Evidence, otherwise: str) -> str:
    """Advice: a larger budget where one was given, else ``otherwise``."""
    return "give a larger budget" if run.budgeted else otherwise


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


def _unmoved(run: Evidence) -> str | None:
    if run.moves > 0 or not run.complete or not run.annealed:
        return None
    return (
        "no moves: the budget was spent on the energies of the prior's draws, and these are what "
        "is returned; give a larger budget"
    )


def _jumped(run: Evidence) -> str | None:
    if not bool(run.jumped.any()):
        return None
    return (
        f"the budget ended the run early{_where(run.jumped, run.populations)}: steps of the "
        "temperature were too large for their weights; give a larger budget"
    )


def _cut(run: Evidence) -> str | None:
    short = (run.rounds_missing > 0) & ~run.jumped
    if not run.complete or not run.budgeted or run.moves == 0 or not bool(short.any()):
        return None
    return (
        f"the budget ended the run early{_where(short, run.populations)}: "
        f"{int(run.rounds_missing.max())} rounds at the posterior are missing; give a larger budget"
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
        f"{_larger_budget(run, 'give kept nearer to 1')}, so that the step size can follow"
        if run.adaptive
        else "chains that stand still are no samples; give more ais_steps, a larger noise_std, or "
        "method='adaptive'"
    )
    where = _where(low, run.populations)
    return f"acceptance too low: {ends[low].min():.2f} at the end{where}: {change}"


def _settled(run: Evidence) -> str | None:
    """At the posterior itself the mean energy must no longer fall."""
    if run.polished:  # the energies' spread is not that of samples
        return None
    falling = torch.tensor([_falls(run, column) for column in range(run.betas.shape[1])])
    if not bool(falling.any()):
        return None
    return (
        f"energies not settled: still falling when the run ended{_where(falling, run.populations)};"
        f" {_larger_budget(run, 'give more moves (hmc_steps)')}"
    )


def _falls(run: Evidence, column: int) -> bool:
    """Whether the first rounds at the posterior lie clearly above the last."""
    energies = run.energy_history[:, column]
    there = (run.betas[:, column] >= 1.0) & energies.isfinite()
    final = energies[there]
    if len(final) < 2:
        return False
    each = len(final) // 2
    drop = float(final[:each].mean()) - float(final[-each:].mean())
    sd = float((run.energy_std[there, column] ** 2).mean().sqrt())
    return drop > _SETTLED * sd * math.sqrt(2.0 / (each * run.particles))


def _weights(run: Evidence) -> str | None:
    effective = run.effective_sample_size
    if effective is None:
        return None
    low = effective < min(_LEAST_EFFECTIVE, run.energies.shape[1] / 2)
    if not bool(low.any()):
        return None
    change = (
        f"populations disagree; {_larger_budget(run, 'give kept nearer to 1')}"
        if run.adaptive
        else "give more ais_steps"
    )
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
    many = run.populations >= _MANY_POPULATIONS
    change = "give more chains" if many else "compare populations=4, or give more chains"
    return (
        f"few ancestors: all {run.particles} particles descend from {int(roots[low].min())} of the "
        f"prior's draws{_where(low, run.populations)}, so modes may be missing; {change}"
    )


def _agreement(run: Evidence) -> str | None:
    if run.polished or not run.complete:
        return None
    rhat, p = disagreement(run.latents, run.populations)
    apart = (rhat > _MOST_RHAT) & (p < _LEAST_P)
    if not bool(apart.any()):
        return None
    return (
        f"populations disagree: R-hat {rhat[apart].max():.2f} of a latent coordinate"
        f"{_where(apart)}, so some have missed modes that others found, or moves are too few; give "
        "more chains, and take means with weighted=True"
    )


def _reach(run: Evidence) -> str | None:
    if run.residual is None or not run.complete:
        return None
    far = run.residual > _FAR
    if not bool(far.any()):
        return None
    most = float(run.residual[far].max())
    return (
        f"far from x_obs{_where(far)}: the best sample's misfit is {most:.3g} noise_std (RMS); "
        "check the scale of x_obs, or give a larger noise_std"
    )


def _finite(run: Evidence) -> str | None:
    share = float(run.non_finite.double().mean()) / max(run.moves, 1)
    if share <= _MOST_NON_FINITE:
        return None
    return (
        f"non-finite proposals: {share:.0%} of all; trajectories diverged, or the generator "
        "overflows: give a smaller step_size, or check its outputs at large latents"
    )

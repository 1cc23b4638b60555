"""What is wrong with a run, in words, and what to change; from plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.results.agreement import disagreement

_LEAST_EFFECTIVE = 4.0
_LEAST_ACCEPTANCE = 0.1  # then one particle in three makes none of ten moves
_MOST_NON_FINITE = 0.05
_END = 4  # the last quarter of a run
_SETTLED = 6.0  # standard errors, as if rounds and relatives were independent: they are not
_FAR = 3.0  # noise standard deviations, root mean square
_MOST_RHAT, _LEAST_P = 1.5, 0.005
_MOST_LEAD = 8.0  # nats: then one island has all the weight, by a factor of 3,000
_SHOWN = 4


@dataclass(frozen=True)
class DiagnosticInputs:
    """What is looked at; shapes as in `cogen_fast.Result`.

    ``effective_sample_size`` ``(B,)`` is None without weights; ``annealed``: by HMC moves, no
    baseline; ``alone``: lone chains, no population; ``budgeted``: a budget was given.
    ``populations`` per observation are what a user asked for, ``islands`` what ran, of
    ``particles`` each; ``latents`` come from ``compared`` of them, side by side. ``error_unknown``
    ``(B,)`` marks evidence whose error is not known; ``lead`` ``(B,)`` is how far the log evidence
    of the best island lies above the median of all, in nats, None without weights. ``residual``
    ``(B,)`` is the best sample's root mean square misfit in noise standard deviations, None where
    there is no such noise. ``at_low_bound`` and ``at_high_bound`` ``(B,)`` mark inferred noise that lies at a
    bound. ``rounds`` ``(B T,)`` are the last rows of a column, at the posterior itself.
    """

    complete: bool
    annealed: bool
    adaptive: bool
    alone: bool
    budgeted: bool
    populations: int
    islands: int
    particles: int
    compared: int
    latents: Tensor
    residual: Tensor | None
    effective_sample_size: Tensor | None
    error_unknown: Tensor
    evidence_lead: Tensor | None
    acceptance: Tensor
    energies: Tensor
    energy_std: Tensor
    energy_history: Tensor
    non_finite: Tensor
    moves: int
    jumped: Tensor
    rounds: Tensor
    rounds_missing: Tensor
    at_low_bound: Tensor
    at_high_bound: Tensor


def diagnose(evidence: DiagnosticInputs) -> list[str]:
    """One sentence per thing that is wrong: what, where, and what to change; empty if nothing."""
    checks: tuple[Callable[[DiagnosticInputs], str | None], ...] = (
        _interrupted,
        _lone,
        _unmoved,
        _jumped,
        _cut,
        _acceptance,
        _settled,
        _weights,
        _agreement,
        _unequal,
        _error_unknown,
        _misfit,
        _at_low_bound,
        _at_high_bound,
        _finite,
    )
    return [found for check in checks if (found := check(evidence)) is not None]


def _where(run: DiagnosticInputs, bad: Tensor) -> str:
    """Which observations, or populations of them, "" where there is only one.

    ``bad`` ``(B,)`` is one flag for each observation, or ``(B T,)`` one for each of its islands.
    """
    count, groups = len(run.energies), run.populations
    if len(bad) == count:
        groups = 1
    elif groups < run.islands:  # the halves of one population
        bad, groups = bad.reshape(count, -1).any(-1), 1
    if len(bad) == 1:
        return ""
    names = []
    for column in bad.nonzero().flatten().tolist():
        observation, population = divmod(column, groups)
        parts = [f"observation {observation}"] if count > 1 else []
        parts += [f"population {population}"] if groups > 1 else []
        names.append(" ".join(parts))
    return f" ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"


def _larger_budget(run: DiagnosticInputs, otherwise: str) -> str:
    """Advice: a larger budget where one was given, else ``otherwise``."""
    return "give a larger budget" if run.budgeted else otherwise


def _interrupted(run: DiagnosticInputs) -> str | None:
    if run.complete:
        return None
    return "interrupted: these are not yet samples of the posterior; run again with checkpoint="


def _lone(run: DiagnosticInputs) -> str | None:
    if not run.alone:
        return None
    return (
        "lone chains: each ends in the mode that it first fell into, so mode probabilities are not "
        "reliable and there is no evidence; give chains=16 or a larger budget"
    )


def _unmoved(run: DiagnosticInputs) -> str | None:
    if run.moves > 0 or not run.complete or not run.annealed:
        return None
    return (
        "no moves: the budget was spent on the energies of the prior's draws, and these are what "
        "is returned; give a larger budget"
    )


def _jumped(run: DiagnosticInputs) -> str | None:
    if not bool(run.jumped.any()):
        return None
    return (
        f"the budget ended the run early{_where(run, run.jumped)}: steps of the "
        "temperature were too large for their weights; give a larger budget"
    )


def _cut(run: DiagnosticInputs) -> str | None:
    short = (run.rounds_missing > 0) & ~run.jumped
    if not run.complete or not run.budgeted or run.moves == 0 or not bool(short.any()):
        return None
    return (
        f"the budget ended the run early{_where(run, short)}: "
        f"{int(run.rounds_missing.max())} rounds at the posterior are missing; give a larger budget"
    )


def _final_means(history: Tensor, rounds: Tensor) -> Tensor:
    """Mean of each column's finite rows at the posterior, or of their last quarter if that is more.

    NaN where there are none.
    """
    columns = []
    for column, there in zip(history.T, rounds.tolist(), strict=True):
        known = column[column.isfinite()]
        columns.append(known[-max(1, there, len(known) // _END) :].mean())
    return torch.stack(columns)


def _acceptance(run: DiagnosticInputs) -> str | None:
    ends = _final_means(run.acceptance, run.rounds)
    low = ends < _LEAST_ACCEPTANCE
    if not bool(low.any()):
        return None
    change = (
        f"{_larger_budget(run, 'give more chains')}, so that the step size suits all of them"
        if run.adaptive
        else "chains that stand still are no samples; give more ais_steps, a larger noise_std, or "
        "method='adaptive'"
    )
    where = _where(run, low)
    return f"acceptance too low: {ends[low].min():.2f} at the end{where}: {change}"


def _settled(run: DiagnosticInputs) -> str | None:
    """At the posterior itself the mean energy must no longer fall."""
    count, columns = len(run.energies), len(run.rounds)
    each = columns // count
    falling = torch.tensor(
        [_falls(run, range(each * i, each * (i + 1))) for i in range(count)],
        dtype=torch.bool,
        device="cpu",
    )
    if not bool(falling.any()):
        return None
    return (
        f"energies not settled: still falling when the run ended{_where(run, falling)};"
        f" {_larger_budget(run, 'give more moves (hmc_steps)')}"
    )


def _falls(run: DiagnosticInputs, columns: range) -> bool:
    """Whether the first rounds at the posterior lie clearly above the last, over all islands."""
    drops, variances = [], []
    for column in columns:
        moved = run.acceptance[:, column].isfinite()
        count = int(run.rounds[column])
        if count < 2:
            continue
        final = run.energy_history[moved, column][-count:]
        each = count // 2
        drops.append(float(final[:each].mean()) - float(final[-each:].mean()))
        mean_square = float((run.energy_std[moved, column][-count:] ** 2).mean())
        variances.append(2.0 * mean_square / (each * run.particles))
    if not drops:
        return False
    return sum(drops) > _SETTLED * math.sqrt(sum(variances))


def _weights(run: DiagnosticInputs) -> str | None:
    effective = run.effective_sample_size
    if effective is None or run.adaptive:
        return None
    low = effective < min(_LEAST_EFFECTIVE, run.energies.shape[1] / 2)
    if not bool(low.any()):
        return None
    return (
        f"weights collapsed: an effective {effective[low].min():.1f} of {run.energies.shape[1]} "
        f"samples{_where(run, low)}, evidence and weighted means rest on these; give more ais_steps"
    )


def _error_unknown(run: DiagnosticInputs) -> str | None:
    if not run.adaptive or not bool(run.error_unknown.any()):
        return None
    more = _larger_budget(run, "give populations=8, more chains, or more moves (hmc_steps)")
    return (
        f"evidence not known{_where(run, run.error_unknown)}: its estimate scatters too much to say by "
        "how much; samples need not be wrong for that, but where moves forget slowly they may lag "
        f"behind too; {more}"
    )


def _agreement(run: DiagnosticInputs) -> str | None:
    if not run.complete:
        return None
    rhat, p = disagreement(run.latents, run.compared, _MOST_RHAT)
    apart = p < _LEAST_P
    if not bool(apart.any()):
        return None
    return (
        f"islands disagree: R-hat {rhat[apart].max():.2f} of a latent coordinate"
        f"{_where(run, apart)}: groups of particles that ran apart have found different modes, or "
        f"moves are too few; {_larger_budget(run, 'give more chains or moves (hmc_steps)')}, and "
        "take means with weighted=True"
    )


def _unequal(run: DiagnosticInputs) -> str | None:
    if run.evidence_lead is None or not run.adaptive or not run.complete:
        return None
    unequal = run.evidence_lead > _MOST_LEAD
    if not bool(unequal.any()):
        return None
    others = "the other one" if run.islands == 2 else "the median of all"
    return (
        f"islands are unequal{_where(run, unequal)}: the log evidence of the best is "
        f"{run.evidence_lead[unequal].max():.0f} nats above {others}, which may have missed what it found; "
        f"{_larger_budget(run, 'give more chains or populations')}, and take means with "
        "weighted=True"
    )


def _misfit(run: DiagnosticInputs) -> str | None:
    if run.residual is None or not run.complete:
        return None
    far = run.residual > _FAR
    if not bool(far.any()):
        return None
    most = float(run.residual[far].max())
    return (
        f"far from x_obs{_where(run, far)}: the best sample's misfit is {most:.3g} noise_std "
        "(RMS); check the scale of x_obs, or give a larger noise_std"
    )


def _at_low_bound(run: DiagnosticInputs) -> str | None:
    return _bounded(run, run.at_low_bound, "low", "G can fit x_obs better than that", "smaller")


def _at_high_bound(run: DiagnosticInputs) -> str | None:
    return _bounded(run, run.at_high_bound, "high", "G explains little of x_obs", "larger")


def _bounded(run: DiagnosticInputs, at: Tensor, bound: str, why: str, other: str) -> str | None:
    """Inferred noise must be free to be what the data want."""
    if not run.complete or not bool(at.any()):
        return None
    return (
        f"noise at its bound: half of the samples have the {bound} end of what noise_std was "
        f"looked for between{_where(run, at)}: {why}; give UnknownNoise with a {other} {bound}, or "
        "the noise_std that you know"
    )


def _finite(run: DiagnosticInputs) -> str | None:
    share = float(run.non_finite.double().mean()) / max(run.moves, 1)
    if share <= _MOST_NON_FINITE:
        return None
    return (
        f"non-finite proposals: {share:.0%} of all; trajectories diverged, or the generator "
        "overflows: give a smaller step_size, or check its outputs at large latents"
    )

"""The diagnosis of a run, from plain tensors: what is wrong, the cause, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.results.agreement import disagreement

_LEAST_EFFECTIVE = 4.0
_LEAST_ACCEPTANCE = 0.1  # at this acceptance one particle in three makes none of ten moves
_MOST_NON_FINITE = 0.05
_END = 4  # the end of a run is its last quarter
_SETTLED = 6.0  # standard errors of independent draws, which rounds and related particles are not
FAR = 3.0
"""The root mean square misfit, in noise standard deviations, above which G is far from x_obs."""
_MOST_RHAT, _LEAST_P = 1.5, 0.005
_MOST_LEAD = 8.0  # nats, at which one island has 3,000 times the weight of another
_SHOWN = 4


def misfit_in_noise(energy: Tensor, count: Tensor) -> Tensor:
    """Root mean square misfit in noise standard deviations, of energies of ``count`` values."""
    return (2.0 * energy / count).sqrt()


@dataclass(frozen=True)
class DiagnosticInputs:
    """The inputs of a diagnosis; shapes are those of `cogen_fast.Result`.

    ``stopped`` is the reason why the run is not ``complete``. ``annealed`` says that the method
    anneals by HMC moves and is no baseline, ``independent`` that independent chains ran in place of
    a population, and ``budgeted`` that a budget was given. For
    each observation the user asked for ``populations``, and ``islands`` of ``particles`` each ran;
    ``latents`` come from ``compared`` groups of equal size, side by side. ``(B,)`` each:
    ``effective_sample_size`` is None without weights; ``error_unknown`` marks evidence without a
    standard error; ``evidence_lead`` is the distance of the best island's log evidence above the
    median of all islands, in nats, None without weights; ``residual`` is the root mean square
    misfit of the best sample in noise standard deviations, None without such noise;
    ``at_low_bound`` and ``at_high_bound`` mark inferred noise at a bound. ``rounds`` ``(B T,)`` is
    the number of last rows of a history's column that were made at beta = 1.
    """

    complete: bool
    stopped: str | None
    annealed: bool
    adaptive: bool
    independent: bool
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
    oversized_steps: Tensor
    rounds: Tensor
    rounds_missing: Tensor
    at_low_bound: Tensor
    at_high_bound: Tensor


def diagnose(run: DiagnosticInputs) -> list[str]:
    """A sentence on each thing that is wrong: where, the cause and an action; empty if none is."""
    checks: tuple[Callable[[DiagnosticInputs], str | None], ...] = (
        _unfinished,
        _independent,
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
    return [found for check in checks if (found := check(run)) is not None]


def failures(run: DiagnosticInputs) -> list[str]:
    """The sentences of `diagnose` by which the chains are not samples of the posterior at all."""
    checks = (_unfinished, _unmoved, _acceptance)
    return [found for check in checks if (found := check(run)) is not None]


def _where(run: DiagnosticInputs, bad: Tensor) -> str:
    """The observations, or their populations, that ``bad`` marks; "" where there is only one.

    ``bad`` has one flag for each observation, ``(B,)``, or for each island, ``(B T,)``.
    """
    count, groups = len(run.energies), run.populations
    if len(bad) == count:
        groups = 1
    elif groups < run.islands:  # islands are halves of a single population, which has no number
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
    """The action: a larger budget where one was given, else ``otherwise``."""
    return "give a larger budget" if run.budgeted else otherwise


_LARGER_SHARED_BUDGET = (
    "give a larger budget (all observations of a call share it: one gradient counts for all)"
)


def _unfinished(run: DiagnosticInputs) -> str | None:
    if run.complete:
        return None
    return f"unfinished, so these are not yet samples of the posterior: {run.stopped}"


def _independent(run: DiagnosticInputs) -> str | None:
    if not run.independent:
        return None
    return (
        "independent chains: they are too few to be resampled, so each stays in the mode "
        "that it first fell into: mode probabilities are not reliable, and there is no evidence; "
        "give chains=16 or a larger budget"
    )


def _unmoved(run: DiagnosticInputs) -> str | None:
    if run.moves > 0 or not run.complete or not run.annealed:
        return None
    return (
        "no moves: the budget was spent on scoring the prior's draws, so the samples are prior "
        f"draws that never moved; {_LARGER_SHARED_BUDGET}"
    )


def _jumped(run: DiagnosticInputs) -> str | None:
    if not bool(run.oversized_steps.any()):
        return None
    return (
        f"the budget ended the run early{_where(run, run.oversized_steps)}: steps of the inverse "
        f"temperature were too large for reliable weights; {_LARGER_SHARED_BUDGET}"
    )


def _cut(run: DiagnosticInputs) -> str | None:
    short = (run.rounds_missing > 0) & ~run.oversized_steps
    if not run.complete or not run.budgeted or run.moves == 0 or not bool(short.any()):
        return None
    return (
        f"the budget ended the run early{_where(run, short)}: "
        f"{int(run.rounds_missing.max())} rounds of moves at the posterior are missing, so samples "
        f"may keep the bias of a small population; {_LARGER_SHARED_BUDGET}"
    )


def _final_means(history: Tensor, rounds: Tensor) -> Tensor:
    """The mean of each column's finite rows at the end, NaN where there are none.

    These are the rows at beta = 1, or the last quarter of all if that is more.
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
        else "give more ais_steps, a larger noise_std, or method='adaptive'"
    )
    return (
        f"acceptance too low: it is {ends[low].min():.2f} at the end{_where(run, low)}, so chains "
        f"hardly move and are not samples; {change}"
    )


def _settled(run: DiagnosticInputs) -> str | None:
    """Whether mean energies still fall at beta = 1, where they must not."""
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
        f"energies not settled: they were still falling when the run ended{_where(run, falling)}, "
        "so the samples have not reached the posterior; "
        f"{_larger_budget(run, 'give more moves (hmc_steps)')}"
    )


def _falls(run: DiagnosticInputs, columns: range) -> bool:
    """Whether energies of the first rounds at beta = 1 clearly exceed the last, over islands."""
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
        f"weights collapsed: an effective sample size of {effective[low].min():.1f} of "
        f"{run.energies.shape[1]}{_where(run, low)} makes evidence and weighted means unreliable; "
        "give more ais_steps"
    )


def _error_unknown(run: DiagnosticInputs) -> str | None:
    if not run.adaptive or not bool(run.error_unknown.any()):
        return None
    more = _larger_budget(run, "give populations=8, more chains, or more moves (hmc_steps)")
    return (
        f"evidence not known{_where(run, run.error_unknown)}: its estimate varies too much to "
        "report a standard error; samples need not be wrong, but where moves decorrelate slowly "
        f"they may lag behind too; {more}"
    )


def _agreement(run: DiagnosticInputs) -> str | None:
    if not run.complete:
        return None
    rhat, p = disagreement(run.latents, run.compared, _MOST_RHAT)
    apart = p < _LEAST_P
    if not bool(apart.any()):
        return None
    return (
        f"islands disagree: R-hat of a latent coordinate is {rhat[apart].max():.2f}"
        f"{_where(run, apart)}, because islands of particles found different modes or made too few "
        f"moves; {_larger_budget(run, 'give more chains or moves (hmc_steps)')}, and take means "
        "with weighted=True"
    )


def _unequal(run: DiagnosticInputs) -> str | None:
    if run.evidence_lead is None or not run.adaptive or not run.complete:
        return None
    unequal = run.evidence_lead > _MOST_LEAD
    if not bool(unequal.any()):
        return None
    others = "the other one" if run.islands == 2 else "the median of all"
    return (
        f"islands are unequal{_where(run, unequal)}: the best log evidence is "
        f"{run.evidence_lead[unequal].max():.0f} nats above {others}, so that islands may have "
        f"missed a mode; {_larger_budget(run, 'give more chains or populations')}, and take means "
        "with weighted=True"
    )


def _misfit(run: DiagnosticInputs) -> str | None:
    if run.residual is None or not run.complete:
        return None
    far = run.residual > FAR
    if not bool(far.any()):
        return None
    most = float(run.residual[far].max())
    return (
        f"far from x_obs{_where(run, far)}: the best misfit is {most:.3g} noise_std (RMS), more "
        "than the noise explains; check the scale of x_obs, or give a larger noise_std"
    )


def _at_low_bound(run: DiagnosticInputs) -> str | None:
    return _bounded(run, run.at_low_bound, "low", "G fits x_obs better than that", "smaller")


def _at_high_bound(run: DiagnosticInputs) -> str | None:
    return _bounded(run, run.at_high_bound, "high", "G explains little of x_obs", "larger")


def _bounded(run: DiagnosticInputs, at: Tensor, bound: str, why: str, other: str) -> str | None:
    """Whether a bound restricts the noise that the data determine, where ``at`` ``(B,)``."""
    if not run.complete or not bool(at.any()):
        return None
    return (
        f"noise at its bound: half of the samples have the {bound} end of the range of noise_std"
        f"{_where(run, at)}: {why}; give UnknownNoise with a {other} {bound}, or the noise_std if "
        "you know it"
    )


def _finite(run: DiagnosticInputs) -> str | None:
    share = float(run.non_finite.double().mean()) / max(run.moves, 1)
    if share <= _MOST_NON_FINITE:
        return None
    return (
        f"non-finite proposals: {share:.0%} of all proposals were not finite, because trajectories "
        "diverged or the generator overflowed; give a smaller step_size, or check what G gives for "
        "large latents"
    )

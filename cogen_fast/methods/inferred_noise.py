"""The adaptive method with unknown noise, whose standard deviation is inferred, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cogen_fast.methods.adaptive import OTHER_SEED, AdaptivePlan
from cogen_fast.methods.loop import Outcome, Position
from cogen_fast.methods.optimise import lbfgs
from cogen_fast.ops import dispatch
from cogen_fast.ops.dispatch import Ops
from cogen_fast.problem.density import Potential, forwards
from cogen_fast.problem.problem import Problem
from cogen_fast.sampler import annealing_plan, bases, fallback, islands, noise_level, smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.noise_level import Chains, Moves, NoiseRun
from cogen_fast.sampler.smc import Choice, SMCInfo
from cogen_fast.support.layout import Layout

# Gradients of the pilot fit at most, and the part (1/8) of a budget which they may take.
_PILOT, _PILOT_PART = 50, 8
_LEAST_PILOT = 20  # gradients of each particle, below which there is no pilot fit
# Gradients of each particle: a draw, the first gradients of annealing and rounds, and a move.
_LEAST_BUDGET = 5
_RESERVED = 4  # of these, the gradients that are not spent on prior draws
_JUMPED_REASON = (
    "The budget left a single step for all noise levels, so their evidence was not estimated; give "
    "a larger budget."
)
_LEAST_FREE = 0.5  # share of the measurements which a fit is assumed to leave undetermined
_BEYOND = 60.0  # over n: squared width in log beta which annealing must cover beyond the mode
_FEW_ROUNDS = 4  # rounds for which a budget is reserved


@dataclass(frozen=True)
class InferredNoise:
    """The adaptive method with the settings of ``base``, for observations with ``noise_bounds``.

    ValueError for independent chains and for frozen evidence, which need a given noise level, and
    for a budget that is too small.
    """

    base: AdaptivePlan

    def __post_init__(self) -> None:
        if self.base.independent:
            raise ValueError(
                "noise_std: expected a number, as a budget this small allows independent chains "
                "only, whose evidence for a noise level is not known"
            )
        if self.base.evidence == "frozen":
            raise ValueError(
                "noise_std: expected a number with evidence='frozen', got unknown noise"
            )
        budget = self.base.particle_budget
        if budget is not None and budget < _LEAST_BUDGET:
            raise ValueError(
                f"budget: expected at least {_LEAST_BUDGET} gradients for each particle beside "
                f"polishing, with unknown noise, got {budget}"
            )
        object.__setattr__(self, "base", replace(self.base, reserved=_RESERVED))

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for the result and for the checkpoint's identity."""
        return self.base.settings()

    def identity(self) -> Mapping[str, str]:
        """Further values with which a checkpoint must agree, other than for a given noise."""
        return {**self.base.identity(), "noise": "inferred"}

    def layout(self, problem: Problem) -> Layout:
        """The layout of a run with these settings, for reading one from a file."""
        base = self.base.layout(problem)
        sizes = {**base.sizes, "BN": base.sizes["B"] * base.sizes["N"]}
        return replace(base, kind=NoiseRun, sizes=sizes, check=_check_run)

    def begin(self, problem: Problem, observation_ids: Sequence[int] | None) -> NoiseRun:
        """A run at its start, at an inverse temperature of at most that of the largest noise."""
        self._check_ids(observation_ids)
        count, least = self._measured(problem)
        run = self.base.begin(problem, observation_ids, furthest=least)
        if self._pilot:
            aim = self._aim(problem, run.state, count, least)
            spent = run.state.spent + -(-self._pilot // self.base.per_island)
            run = replace(run, state=replace(run.state, aim=aim, spent=spent))
        return NoiseRun(run, noise_level.init(run.state, count))

    def _check_ids(self, observation_ids: Sequence[int] | None) -> None:
        """Check that each chain can have its own number in the random number streams."""
        most = 2**32 // (self.base.islands * self.base.per_island)
        ids = [] if observation_ids is None else [int(i) for i in observation_ids]
        if max(ids, default=0) >= most:
            raise ValueError(
                f"observation_ids: expected numbers below {most} with unknown noise, got {max(ids)}"
            )

    @property
    def _pilot(self) -> int:
        """Gradients per island of the fit from which the last inverse temperature is predicted."""
        if self.base.particle_budget is None or self.base.particle_budget < _LEAST_PILOT:
            return 0
        return min(_PILOT, self.base.particle_budget * self.base.per_island // _PILOT_PART)

    def _aim(self, problem: Problem, state: smc.SMCState, count: Tensor, least: Tensor) -> Tensor:
        """The inverse temperature at which annealing is expected to end, ``(B,)``.

        It lies beyond the most likely one, which follows from fits on the other islands: for a
        Gaussian posterior in d latents whose best fit has energy E, given n measurements, it is
        ``(n - d) / (2 E)``.
        """
        best = state.hmc.energy.argmin(-1)[:, None, None]
        starts = state.hmc.latents.gather(1, best.expand(-1, 1, state.hmc.latents.shape[-1]))
        _, energy = lbfgs(problem.potential, starts, self._pilot)
        energy = islands.mean_of_others(
            energy[:, 0].clamp(min=1e-300).log(), self.base.islands
        ).exp()
        free = torch.maximum(count - starts.shape[-1], _LEAST_FREE * count)
        beyond = (_BEYOND / count.clamp(min=1.0)).sqrt().exp()
        return (free / (2.0 * energy) * beyond).clamp(max=1.0).maximum(least)

    def _measured(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """For every island, the number of measured values, and beta at the largest noise."""
        observation, (low, high) = problem.observation, _bounds(problem)
        count = observation.num_observed.double().expand(observation.count)
        rows = self.base.islands
        return count.repeat_interleave(rows), ((low / high) ** 2).repeat_interleave(rows)

    def go(self, problem: Problem, run: NoiseRun, on_step: Callable[[NoiseRun], None]) -> NoiseRun:
        """Anneal through the noise levels; then draw noise and latents of each chain in rounds."""
        annealing, (count, least) = self._within_budget(), self._measured(problem)
        ops = dispatch.resolve(problem.backend, problem.adapter.device)
        while not run.annealing.done:
            before = run.annealing.state
            made = smc.advance(run.annealing, problem.target, annealing, problem.backend, False)
            levels = noise_level.update(run.levels, before, made.state, count, least, ops)
            done = made.state.finished | noise_level.finished(levels, made.state)
            made = replace(made, state=replace(made.state, finished=done))
            run = replace(run, annealing=made, levels=levels)
            on_step(run)
        target = fallback.in_use(problem.target, run.annealing.refined)
        if run.chains is None or run.moves is None:
            moves = self._affordable(noise_level.fixed_moves(run.annealing, annealing), run)
            seed = (self.base.seed + OTHER_SEED) % 2**64
            chains = noise_level.start_chains(run.levels, target, moves, run.annealing.state, seed)
            run = replace(_with_spent(run, 1, forwards(target)), moves=moves, chains=chains)
        move = partial(self._round, target=target, count=count, least=least, ops=ops)
        rounds = self._rounds(run)
        while len(run.infos) < rounds:
            run = move(run)
            on_step(run)
        return run

    def _within_budget(self) -> Annealing:
        """The annealing, with gradients left for the start of the rounds and for a few rounds."""
        annealing = self.base.within_budget()
        if annealing.budget is None:
            return annealing
        count = (
            1
            if annealing.hmc_steps is None
            else annealing_plan.moves_per_round(annealing.hmc_steps, annealing)
        )
        rounds = _FEW_ROUNDS * count * (annealing.leapfrog_steps or 1)
        left = annealing.budget - 1 - min(rounds, annealing.budget // 2)
        return replace(annealing, budget=max(left, 1))

    def _remaining(self, run: NoiseRun) -> int | None:
        """Remaining gradients of the budget per particle; None without a budget."""
        budget = self.base.within_budget().budget
        return None if budget is None else max(budget - run.annealing.state.spent, 0)

    def _affordable(self, moves: Moves, run: NoiseRun) -> Moves:
        """``moves`` with fewer or shorter trajectories (unless given), so that some rounds fit."""
        left, annealing = self._remaining(run), self.base.annealing
        if left is None:
            return moves
        of_round = (left - 1) // _FEW_ROUNDS
        if annealing.hmc_steps is None:
            length = annealing.leapfrog_steps or 1
            moves = replace(moves, moves=moves.moves.clamp(max=max(1, of_round // length)))
        if annealing.leapfrog_steps is None:
            most = max(1, of_round // int(moves.moves.max()))
            moves = replace(moves, leapfrog_steps=min(moves.leapfrog_steps, most))
        return moves

    def _rounds(self, run: NoiseRun) -> int:
        """The number of all rounds, those made included: as many as the budget allows."""
        moves, left = run.moves, self._remaining(run)
        assert moves is not None
        if left is None:
            return self.base.annealing.final_rounds
        each = moves.leapfrog_steps * int(moves.moves.max())
        return len(run.infos) + left // each

    def _round(
        self, run: NoiseRun, target: Potential, count: Tensor, least: Tensor, ops: Ops
    ) -> NoiseRun:
        """The run after one more round."""
        chains, moves = run.chains, run.moves
        assert chains is not None and moves is not None
        rule = self.base.annealing.rule
        made = noise_level.gibbs_round(chains, target, moves, rule, count, least, ops)
        most = int(moves.moves.max())
        run = _with_spent(run, most * moves.leapfrog_steps, most * forwards(target))
        if run.annealing.trace is not None:
            latents = noise_level.as_particles(made, moves).latents.cpu()
            annealing = replace(run.annealing, trace=(*run.annealing.trace, latents))
            run = replace(run, annealing=annealing)
        return replace(run, chains=made, infos=(*run.infos, _info(made, moves)))

    def position(self, run: NoiseRun) -> Position:
        """The position, in gradient evaluations of a particle."""
        return self.base.position(run.annealing)

    def facts(self, run: NoiseRun) -> Mapping[str, str]:
        """The same numbers as without inference; the rounds are reported at beta = 1."""
        infos = run.infos or run.annealing.infos
        return self.base.facts(replace(run.annealing, infos=infos))

    def outcome(self, problem: Problem, run: NoiseRun, complete: bool) -> Outcome:
        """The outcome of the run, with energies at the mean precision of each observation's noise.

        Inverse temperatures are relative to this precision: they are 1 in the rounds, and above 1
        where the annealing continued to less noise.
        """
        if run.chains is None or run.moves is None:
            return self.base.outcome(problem, run.annealing, False)
        of_each = self._unit(run)
        unit = of_each.repeat_interleave(self.base.islands)
        _, least = self._measured(problem)
        found = self.base.outcome(problem, _rescaled(run, unit, least), complete)
        low, _ = _bounds(problem)
        chosen = self.base.chosen(run.annealing.state, problem.backend)
        beta = run.chains.beta.reshape(len(unit), -1)
        noise = low[:, None] / self.base.selected(beta, chosen).sqrt()
        found = replace(found, noise_std=noise, energy_unit=of_each)
        return self._without_jumps(found) if complete else found

    def _without_jumps(self, found: Outcome) -> Outcome:
        """``found`` without the evidence of observations of which an island made a single step."""
        oversized_steps = found.oversized_steps.reshape(-1, self.base.islands).any(-1)
        if found.log_normaliser is None or not bool(oversized_steps.any()):
            return found
        names = ("log_normaliser", "log_normaliser_error", "log_evidence")
        if bool(oversized_steps.all()):
            reasons = found.reasons | dict.fromkeys(names, _JUMPED_REASON)
            return replace(found, log_normaliser=None, log_normaliser_error=None, reasons=reasons)
        reasons = found.reasons | {"log_normaliser": _JUMPED_REASON}
        normaliser = torch.where(oversized_steps, torch.nan, found.log_normaliser)
        return replace(found, log_normaliser=normaliser, reasons=reasons)

    def _unit(self, run: NoiseRun) -> Tensor:
        """Mean of beta over the chains of each observation, weighted by the islands' evidence."""
        assert run.chains is not None
        shares = torch.softmax(run.levels.log_mass.reshape(-1, self.base.islands), -1)
        each = run.chains.beta.reshape(*shares.shape, -1).mean(-1)
        return (shares * each).sum(-1)


def _check_run(run: NoiseRun) -> None:
    """Check both parts of a run from a file, as `smc.check_run` does."""
    smc.check_run(run.annealing, "run.annealing")
    if run.moves is not None and run.moves.turn is not None:
        bases.check("run.moves.turn", run.moves.turn)


def _bounds(problem: Problem) -> tuple[Tensor, Tensor]:
    bounds = problem.observation.noise_bounds
    assert bounds is not None
    return bounds


def _with_spent(run: NoiseRun, gradients: int, forwards: int) -> NoiseRun:
    """The run with costs after the annealing added to those of the annealing."""
    state = run.annealing.state
    state = replace(state, spent=state.spent + gradients, forwards=state.forwards + forwards)
    return replace(run, annealing=replace(run.annealing, state=state))


def _info(chains: Chains, moves: Moves) -> SMCInfo:
    """A round in the form of a temperature of the annealing, at beta = 1 (see `_rescaled`)."""
    one = torch.ones_like(moves.step_size)
    energy = chains.hmc.energy.reshape(len(one), -1)
    choice = Choice(
        active=one.bool(),
        kept=one,
        beta=one,
        resampled=torch.zeros_like(one).bool(),
        slow=torch.zeros_like(one).bool(),
        step_size=moves.step_size,
        inverse_mass=None,
        stiff=None,
        moves=moves.moves,
        leapfrog_steps=moves.leapfrog_steps,
        hmc_steps=int(moves.moves.max()),
    )
    particles = energy.shape[-1]
    same = torch.arange(particles, device=energy.device).expand_as(energy)
    ess = torch.full_like(one, particles)
    deviation = energy.std(-1, correction=0)
    return SMCInfo(choice, ess, chains.acceptance, energy.mean(-1), deviation, same)


def _rescaled(run: NoiseRun, unit: Tensor, least: Tensor) -> smc.Run:
    """This run as one of `smc`, with beta and energies in units of ``unit`` ``(B,)``."""
    assert run.chains is not None and run.moves is not None
    state, levels = run.annealing.state, run.levels
    found = noise_level.as_particles(run.chains, run.moves)
    log_prior = -(-least.log()).log()
    state = replace(
        state,
        hmc=replace(found, energy=found.energy * unit[:, None], stream=state.hmc.stream),
        beta=torch.ones_like(unit),
        best_energy=state.best_energy * unit,
        log_weights=(levels.log_mass + log_prior)[:, None].expand_as(found.energy),
        variance=levels.variance,
        expected_variance=levels.expected_variance,
        roots=levels.roots,
        rounds=torch.full_like(state.rounds, len(run.infos)),
        non_finite=run.chains.non_finite,
    )
    infos = [_in_units(info, unit, info.choice.beta / unit) for info in run.annealing.infos]
    infos += [_in_units(info, unit, info.choice.beta) for info in run.infos]
    return replace(run.annealing, state=state, infos=tuple(infos))


def _in_units(info: SMCInfo, unit: Tensor, beta: Tensor) -> SMCInfo:
    energy, deviation = info.energy * unit, info.energy_std * unit
    choice = replace(info.choice, beta=beta)
    return replace(info, choice=choice, energy=energy, energy_std=deviation)

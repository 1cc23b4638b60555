"""``method="adaptive"``: self-tuning annealing with resampling, from settings to outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cogen_fast.methods.loop import INTERRUPTED, Outcome, Position
from cogen_fast.methods.paper import refined_note
from cogen_fast.ops import dispatch
from cogen_fast.ops.philox import Purpose
from cogen_fast.problem.problem import Problem
from cogen_fast.results.result import GRADIENT_COST
from cogen_fast.sampler import bases, curvature, fallback, pool, sketches, smc, tuning
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.sampler.weights import (
    deviation_of_mean,
    error_of_log,
    log_mean_weight,
    nan_where_unknown,
    second_order,
    surviving_roots,
    variance_between,
    variance_if_gaussian,
)
from cogen_fast.support.arguments import check_choice, check_count, check_seed
from cogen_fast.support.layout import Layout

EvidenceMode = Literal["consistent", "frozen"]
EVIDENCE: tuple[str, ...] = get_args(EvidenceMode)
_LEAST_BUDGET = 30  # gradients of a particle; with fewer, independent chains do better
OTHER_SEED = 0x9E3779B97F4A7C15
"""Added to the seed for random numbers other than those of the first annealing."""
_PART_FOR_DRAWS = 8  # this part (1/8) of a budget goes to prior draws
# Until a particle has so many draws, most of the budget goes to them.
_FEW_DRAWS, _MOST_OF_BUDGET = 16, 0.7
_RESERVED = 2  # gradients: the first one, and one for a move
_MOST_DRAWS = 4  # largest number of draws, as a multiple of the number without a budget
_MANY_ISLANDS = 8  # so many islands' estimates are enough to fit a Gaussian to their logarithms
_MOST_EXPECTED = 4.0  # expected error of a log normaliser, in nats, up to which one is reported
_INDEPENDENT_REASON = (
    f"With fewer than {POPULATION} chains, and less than {_LEAST_BUDGET} gradients for each of "
    f"{POPULATION} particles, the chains ran independently, at temperatures which follow their own "
    f"energies, and have no reliable weights; run with chains={POPULATION} or a larger budget."
)
_ERROR_REASON = (
    "The estimate scatters too much for its own error to be estimated, or a budget made its steps "
    "too large; run with populations=8, more chains, more hmc_steps, or a larger budget."
)


@dataclass(frozen=True)
class AdaptivePlan:
    """All settings of an adaptive run, without the generator and the data.

    Each population runs ``particles``, of which ``chains`` are returned. The chains are
    ``independent`` if they are too few for a population and the budget does not allow more
    particles. Populations are islands which tune each other's moves; a single population consists
    of two islands with half of its particles each. Of a budget, ``reserved`` gradients of each
    particle are not spent on prior draws.
    """

    chains: int
    populations: int
    annealing: Annealing
    budget: int | None
    evidence: EvidenceMode
    step_size: float | None
    seed: int
    keep_trace: bool
    max_batch: int | None
    most_draws: int = pool.DRAWS
    reserved: int = _RESERVED

    def __post_init__(self) -> None:
        for name in ("chains", "populations"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_choice("evidence", self.evidence, EVIDENCE)
        if self.budget is not None:
            object.__setattr__(self, "budget", check_count("budget", self.budget))
            if self.evidence == "frozen" and self.budget < 2:
                raise ValueError("budget: expected at least 2 with evidence='frozen', got 1")
        if self.evidence == "frozen" and self.independent:
            least = -(-self._runs * _LEAST_BUDGET * POPULATION // self.chains)
            raise ValueError(
                f"evidence: expected {POPULATION} chains or a budget of at least {least} beside "
                f"polishing with 'frozen', got {self.chains} chains and a budget of {self.budget}"
            )

    @property
    def independent(self) -> bool:
        """Whether the chains run independently instead of as a population."""
        if self.chains >= POPULATION or self.budget is None:
            return False
        return self.budget * self.chains < self._runs * _LEAST_BUDGET * POPULATION

    @property
    def _runs(self) -> int:
        """How many runs share the budget."""
        return 2 if self.evidence == "frozen" else 1

    @property
    def particles(self) -> int:
        """The number of particles in each population."""
        if self.independent:
            return self.chains
        least = max(self.chains, POPULATION)
        return least + least % 2 if self.populations == 1 else least

    @property
    def islands(self) -> int:
        """The number of islands per observation."""
        return self.populations if self.independent else max(self.populations, 2)

    @property
    def per_island(self) -> int:
        """The number of particles on each island."""
        return self.particles * self.populations // self.islands

    @property
    def particle_budget(self) -> int | None:
        """The budget of one run per particle, in gradients; None without a budget."""
        if self.budget is None:
            return None
        return max(self.budget * self.chains // (self.particles * self._runs), 1)

    @property
    def draws(self) -> int:
        """The number of scored prior draws per particle."""
        if self.particle_budget is None:
            return self.most_draws
        whole = GRADIENT_COST * self.particle_budget
        few = min(int(_MOST_OF_BUDGET * whole), _FEW_DRAWS, whole - GRADIENT_COST * self.reserved)
        return max(1, min(_MOST_DRAWS * self.most_draws, max(whole // _PART_FOR_DRAWS, few)))

    @property
    def _starts(self) -> int:
        """The number of prior draws from which independent chains estimate their first step."""
        if self.budget is None:
            return POPULATION
        return min(POPULATION, max(self.budget * self.chains // _PART_FOR_DRAWS, self.chains))

    @property
    def _pool_size(self) -> int:
        """The number of scored prior draws on each island."""
        return self._starts if self.independent else self.draws * self.per_island

    def within_budget(self) -> Annealing:
        """The annealing of one run, with its budget per particle."""
        if self.particle_budget is None:
            return self.annealing
        scoring = -(-self._pool_size // (self.per_island * GRADIENT_COST))
        return replace(self.annealing, budget=max(self.particle_budget - scoring, 1))

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for the result and for the checkpoint's identity."""
        return {
            "method": "adaptive",
            "chains": self.chains,
            "populations": self.populations,
            "particles": self.particles,
            "islands": self.islands,
            "draws": self._pool_size * self.islands,
            "target_cess": self.annealing.target_cess,
            "resample_below": self.annealing.resample_below,
            "leapfrog_steps": self.annealing.leapfrog_steps,
            "hmc_steps": self.annealing.hmc_steps,
            "mass": self.annealing.mass,
            "final_rounds": self.annealing.final_rounds,
            "rule": asdict(self.annealing.rule),
            "budget": self.budget,
            "evidence": self.evidence,
            "step_size": self.step_size,
            "seed": self.seed,
            "max_batch": self.max_batch,
        }

    def identity(self) -> Mapping[str, str]:
        """Further values with which a checkpoint must agree."""
        return {"keep_trace": str(self.keep_trace)}

    def layout(self, problem: Problem) -> Layout:
        """The layout of a run with these settings, for reading one from a file."""
        annealing, latent_size = self.annealing, problem.adapter.latent_size
        moves = annealing.hmc_steps or annealing.rule.most_moves
        curved = annealing.mass == "curvature" and not self.independent
        whole = latent_size <= bases.WHOLE
        sizes = {
            "islands": self.islands,
            "B": problem.observation.count * self.islands,
            "N": self.per_island,
            "d": latent_size,
            "k": min(curvature.MAX_DIRECTIONS, latent_size),
            "r": min(sketches.RANK, latent_size),
            "K": self._pool_size,
            "L": annealing.leapfrog_steps or max(tuning.LADDER),
            "M": moves,
        }
        present = {
            "trace": self.keep_trace,
            "spread": self.independent,
            "mean": whole,
            "sketch": not whole,
            "whole": whole,
            "left": not whole,
            "right": not whole,
        }
        if self.evidence == "consistent":
            present["repeats"] = False
        else:
            present |= {"inverse_mass": curved, "stiff": curved}
        return Layout(smc.Run, sizes, problem.adapter.dtype, present, smc.check_run)

    def begin(
        self,
        problem: Problem,
        observation_ids: Sequence[int] | None,
        furthest: Tensor | None = None,
    ) -> smc.Run:
        """A run at its start, at the inverse temperature which the scored prior draws allow.

        The islands of an observation are neighbouring rows, each with its own random numbers.
        ``furthest`` is an upper bound of the inverse temperature, as for `smc.init`.
        """
        state = smc.init(
            problem.target,
            chains=self.per_island,
            islands=self.islands,
            draws=self.draws,
            alone=self.independent,
            starts=self._starts,
            step_size_start=self.step_size,
            observations=problem.observation.count,
            observation_ids=observation_ids,
            seed=self.seed,
            furthest=furthest,
            **problem.how(),
        )
        return smc.Run(state, trace=(state.hmc.latents.cpu(),) if self.keep_trace else None)

    def go(self, problem: Problem, run: smc.Run, on_step: Callable[[smc.Run], None]) -> smc.Run:
        """Anneal to the posterior; for frozen evidence, repeat all choices in a second run."""
        if run.repeats is None:
            run = self._anneal(problem, run, on_step)
            if self.evidence == "consistent":
                return run
            run = self._repeated(problem, run)
        return self._anneal(problem, run, on_step)

    def _anneal(
        self, problem: Problem, run: smc.Run, on_step: Callable[[smc.Run], None]
    ) -> smc.Run:
        return smc.run(
            problem.target,
            self.within_budget(),
            start=run,
            backend=problem.backend,
            on_step=on_step,
            keep_masses=self.evidence == "frozen",
        )

    def _repeated(self, problem: Problem, pilot: smc.Run) -> smc.Run:
        """The start of a run with another seed which repeats the choices of ``pilot``.

        The pilot fixes the type of the gradients, too: if it changed to the finer type, the whole
        second run uses that type.
        """
        refined = None if pilot.refined is None else 0
        state = smc.init(
            fallback.in_use(problem.target, refined),
            chains=self.per_island,
            islands=self.islands,
            draws=self.draws,
            observations=len(pilot.state.beta) // self.islands,
            observation_ids=(
                pilot.state.hmc.stream.observation[:: self.islands] // self.islands
            ).tolist(),
            seed=(self.seed + OTHER_SEED) % 2**64,
            first_beta=pilot.state.first_beta,
            **problem.how(),
        )
        state = replace(
            state,
            spent=state.spent + pilot.state.spent,
            forwards=state.forwards + pilot.state.forwards,
        )
        trace = (state.hmc.latents.cpu(),) if self.keep_trace else None
        return smc.Run(state, trace=trace, repeats=pilot.choices, refined=refined)

    def position(self, run: smc.Run) -> Position:
        """The position, in gradient evaluations of a particle."""
        return Position(run.state.spent, None, "gradient")

    def facts(self, run: smc.Run) -> Mapping[str, str]:
        """The last temperature: lowest beta, mean acceptance, mean step size, and L."""
        info = run.infos[-1]
        active = info.choice.active
        return {
            "beta": f"{info.choice.beta.min().item():.3g}",
            "accept": f"{info.acceptance[active].mean().item():.2f}",
            "step": f"{info.choice.step_size[active].mean().item():.2g}",
            "L": str(info.choice.leapfrog_steps),
        }

    def outcome(self, problem: Problem, run: smc.Run, complete: bool) -> Outcome:
        """The outcome of the run, with ``chains`` of each population side by side."""
        state, infos = run.state, run.infos
        chosen = self.chosen(state, problem.backend)
        normaliser, error, reasons = self._normaliser(state, complete)
        rows = len(state.beta) // problem.observation.count
        first = self._pool_size * torch.arange(rows, device=state.beta.device)
        roots = state.roots + first.repeat(problem.observation.count)[:, None]
        return Outcome(
            latents=self.selected(state.hmc.latents, chosen),
            energies=self.selected(state.hmc.energy, chosen),
            log_weights=None if self.independent else self.selected(state.log_weights, chosen),
            log_normaliser=normaliser,
            log_normaliser_error=error,
            roots=self.selected(roots, chosen),
            surviving_roots=surviving_roots(state.roots),
            non_finite=self.selected(state.non_finite, chosen),
            betas=_rows([i.choice.beta for i in infos], state.beta),
            acceptance=_rows([i.acceptance for i in infos], state.beta),
            step_size=_rows([i.choice.step_size for i in infos], state.beta),
            energy_history=_rows([i.energy for i in infos], state.beta),
            leapfrog_steps=torch.tensor(
                [i.choice.leapfrog_steps for i in infos], device="cpu"
            ).long(),
            hmc_steps=torch.tensor([i.choice.hmc_steps for i in infos], device="cpu").long(),
            trace=None if run.trace is None else self._merged_trace(run.trace),
            oversized_steps=state.oversized_steps,
            beta_reached=float(state.beta.min()),
            energy_std=_rows([i.energy_std for i in infos], state.beta),
            rounds=state.rounds,
            gradients=state.spent,
            forwards=state.forwards,
            best_draws=state.best_draw.reshape(problem.observation.count, rows, -1),
            best_energies=state.best_energy.reshape(problem.observation.count, rows),
            reasons=reasons,
            notes=self._notes(state, complete) + refined_note(run),
        )

    def chosen(self, state: smc.SMCState, backend: str) -> Tensor:
        """Indices of the particles of each population which are returned, ``(B R, chains)``.

        All of them, or particles at equal distances from a random first one. Systematic resampling
        puts particles with a common ancestor side by side, so the ancestors of the returned ones
        are as distinct as possible, and each particle is returned with the same probability.
        """
        device = state.beta.device
        count = len(state.beta) * self.populations // self.islands
        index = torch.arange(self.chains, device=device)
        if self.chains == self.particles:
            return index.expand(count, -1)
        ops = dispatch.resolve(backend, device)
        uniform = ops.observation_uniforms(state.hmc.stream, Purpose.SELECT)
        uniform = uniform[:: self.islands // self.populations]
        points = (index + uniform[:, None]) * (self.particles / self.chains)
        return points.floor().long().clamp(max=self.particles - 1)

    def selected(self, values: Tensor, chosen: Tensor) -> Tensor:
        """From values ``(B T, N, ...)`` of islands those of ``chosen``, ``(B, R chains, ...)``."""
        values = values.reshape(len(chosen), self.particles, *values.shape[2:])
        index = chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2))
        taken = values.gather(1, index.expand(*chosen.shape, *values.shape[2:]))
        return taken.reshape(-1, self.populations * self.chains, *values.shape[2:])

    def _merged_trace(self, trace: Sequence[Tensor]) -> Tensor:
        """The trace of all particles, ``(T + 1, B, R N, d)``."""
        stacked = torch.stack(tuple(trace))
        return stacked.reshape(
            len(stacked), -1, self.populations * self.particles, stacked.shape[-1]
        )

    def _normaliser(
        self, state: smc.SMCState, complete: bool
    ) -> tuple[Tensor | None, Tensor | None, dict[str, str]]:
        """Log normaliser and its standard error, ``(B,)``, and the reasons for absent values."""
        names = ("log_normaliser", "log_normaliser_error", "log_evidence")
        if self.independent:
            return None, None, dict.fromkeys(("log_weights", *names), _INDEPENDENT_REASON)
        if not complete:
            return None, None, dict.fromkeys(names, INTERRUPTED)
        each = log_mean_weight(state.log_weights).reshape(-1, self.islands)
        error = self._error(each, state)
        known = self._reliable(each, error, state)
        reasons = {} if bool(known.all()) else {"log_normaliser_error": _ERROR_REASON}
        return log_mean_weight(each), nan_where_unknown(error, known), reasons

    def _reliable(self, each: Tensor, error: Tensor, state: smc.SMCState) -> Tensor:
        """Whether an error estimate is reliable enough to be reported, ``(B,)``.

        An error estimated from few surviving ancestors is itself noisy. Reporting it only where it
        is small would select estimates that are too small. So the decision uses the error expected
        from the autocorrelation of the moves, which is less noisy.
        """
        known = error.isfinite() & ~state.oversized_steps.reshape(-1, self.islands).any(-1)
        expected = self._variance_within(each, state.expected_variance)
        return known & (error_of_log(expected) <= _MOST_EXPECTED)

    def _error(self, each: Tensor, state: smc.SMCState) -> Tensor:
        """Root mean square error of the log of the mean of the islands' estimates, ``(B,)``.

        ``each`` ``(B, T)`` are the islands' log estimates. The error is the largest of three: from
        the variances which the islands accumulated (by lineages, and by the autocorrelation of
        their moves), from the differences between islands, and the standard error of the mean of
        their logarithms. A variance v comes with the bias of a logarithm, ``-v / 2``.
        """
        expected = self._variance_within(each, state.expected_variance)
        within = self._variance_within(each, state.variance).maximum(expected)
        between = variance_between(each)
        if self.islands >= _MANY_ISLANDS:
            between = between.maximum(variance_if_gaussian(each))
        return error_of_log(within.maximum(between)).maximum(deviation_of_mean(each))

    def _variance_within(self, each: Tensor, variance: Tensor) -> Tensor:
        """Relative variance of the islands' mean, from the ``variance`` ``(B T,)`` of each.

        The mean of the variances takes the place of each one, which few particles estimate poorly.
        """
        mean = variance.reshape(each.shape).clamp(min=0.0).mean(-1, keepdim=True)
        of_island = second_order(mean, self.per_island)
        within: Tensor = (torch.softmax(each, -1) ** 2 * of_island).sum(-1)
        return within

    def _notes(self, state: smc.SMCState, complete: bool) -> list[str]:
        notes = []
        if self.budget is not None and complete:
            least, most = int(state.rounds.min()), int(state.rounds.max())
            rounds = f"{least}" if least == most else f"{least} to {most}"
            notes.append(f"The budget sufficed for {rounds} rounds of moves at the posterior.")
        if self.independent:
            return [*notes, _INDEPENDENT_REASON]
        if self.chains < self.particles:
            each = " of each population" if self.populations > 1 else ""
            chains = "1 chain" if self.chains == 1 else f"{self.chains} chains"
            notes.append(f"{self.particles} particles were run for {chains}{each}.")
        notes.append(f"Each island drew its particles from {self._pool_size} scored prior draws.")
        if complete:
            frozen = self.evidence == "frozen"
            notes.append(
                "The evidence is unbiased, as a second run repeated the choices of a first."
                if frozen
                else "The evidence is consistent, but not unbiased; evidence='frozen' is unbiased."
            )
        return notes


def _rows(columns: Sequence[Tensor], like: Tensor) -> Tensor:
    """The columns as rows ``(T, B S)`` of S islands; T may be 0."""
    return torch.stack(tuple(columns)) if columns else like.new_empty(0, len(like))

"""``method="adaptive"``: the annealing that tunes itself, from settings to outcome."""

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

Evidence = Literal["consistent", "frozen"]
EVIDENCE: tuple[str, ...] = get_args(Evidence)
_LEAST_BUDGET = 30  # gradients of a particle: with fewer, as many lone chains do better
OTHER_SEED = 0x9E3779B97F4A7C15
"""Added to the seed for noise that is another than the first annealing's."""
_STARTS = 8  # of a budget, one part goes to prior draws
_FEW_DRAWS, _MOST_OF_BUDGET = 16, 0.7  # up to so many for each particle, most of it goes to them
_SPARED = 2  # gradients: the first one, and one for a move
_MOST_DRAWS = 4  # times as many as without a budget
_MANY_ISLANDS = 8  # whose differences tell the error well
_MOST_EXPECTED = 4.0  # error of a log normaliser, in nats
_ALONE_REASON = (
    f"fewer than {POPULATION} chains, and a budget with less than {_LEAST_BUDGET} gradients for "
    f"each of {POPULATION} particles beside polishing: lone chains whose temperatures follow their "
    "own energies have no weights to trust"
)
_ERROR_REASON = (
    "the estimate scatters too much for its own error to be told, or a budget made its steps too "
    "large; give populations=8, more chains, more moves (hmc_steps), or a larger budget"
)


@dataclass(frozen=True)
class AdaptivePlan:
    """Every setting of an adaptive run but the generator and the data.

    ``chains`` are returned per population, of ``particles`` that run; ``alone`` where they are too
    few to be a population and the budget forbids more. Populations are islands that tune each
    other; a single one is two islands of half the particles. Of a budget ``spared`` gradients of
    each particle are no prior draws.
    """

    chains: int
    populations: int
    annealing: Annealing
    budget: int | None
    evidence: Evidence
    step_size: float | None
    seed: int
    keep_trace: bool
    max_batch: int | None
    most_draws: int = pool.DRAWS
    spared: int = _SPARED

    def __post_init__(self) -> None:
        for name in ("chains", "populations"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_choice("evidence", self.evidence, EVIDENCE)
        if self.budget is not None:
            object.__setattr__(self, "budget", check_count("budget", self.budget))
            if self.evidence == "frozen" and self.budget < 2:
                raise ValueError("budget: expected at least 2 for two runs, got 1")
        if self.evidence == "frozen" and self.alone:
            least = -(-self._runs * _LEAST_BUDGET * POPULATION // self.chains)
            raise ValueError(
                f"evidence: 'frozen' needs a budget of at least {least} beside polishing with "
                f"{self.chains} chains, got {self.budget}; or {POPULATION} chains"
            )

    @property
    def alone(self) -> bool:
        """Whether the chains are no population."""
        if self.chains >= POPULATION or self.budget is None:
            return False
        return self.budget * self.chains < self._runs * _LEAST_BUDGET * POPULATION

    @property
    def _runs(self) -> int:
        """How many share the budget."""
        return 2 if self.evidence == "frozen" else 1

    @property
    def particles(self) -> int:
        """How many run in each population."""
        if self.alone:
            return self.chains
        least = max(self.chains, POPULATION)
        return least + least % 2 if self.populations == 1 else least

    @property
    def islands(self) -> int:
        """How many run for each observation."""
        return self.populations if self.alone else max(self.populations, 2)

    @property
    def each(self) -> int:
        """Particles of an island."""
        return self.particles * self.populations // self.islands

    @property
    def share(self) -> int | None:
        """The budget of one run for each of its particles, in gradients."""
        if self.budget is None:
            return None
        return max(self.budget * self.chains // (self.particles * self._runs), 1)

    @property
    def draws(self) -> int:
        """Prior draws that are scored for each particle."""
        if self.share is None:
            return self.most_draws
        whole = GRADIENT_COST * self.share
        few = min(int(_MOST_OF_BUDGET * whole), _FEW_DRAWS, whole - GRADIENT_COST * self.spared)
        return max(1, min(_MOST_DRAWS * self.most_draws, max(whole // _STARTS, few)))

    @property
    def _starts(self) -> int:
        """Prior draws that tell lone chains their first step."""
        if self.budget is None:
            return POPULATION
        return min(POPULATION, max(self.budget * self.chains // _STARTS, self.chains))

    @property
    def _pool(self) -> int:
        """Prior draws that are scored on each island."""
        return self._starts if self.alone else self.draws * self.each

    def within_budget(self) -> Annealing:
        """The annealing of one run, whose budget is counted per particle."""
        if self.share is None:
            return self.annealing
        scoring = -(-self._pool // (self.each * GRADIENT_COST))
        return replace(self.annealing, budget=max(self.share - scoring, 1))

    def settings(self) -> dict[str, Any]:
        """As plain values, for the result and for the checkpoint's identity."""
        return {
            "method": "adaptive",
            "chains": self.chains,
            "populations": self.populations,
            "particles": self.particles,
            "islands": self.islands,
            "draws": self._pool * self.islands,
            "kept": self.annealing.kept,
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
        """What else a checkpoint must agree with."""
        return {"keep_trace": str(self.keep_trace)}

    def layout(self, problem: Problem) -> Layout:
        """What a run of these settings is made of, to read one from a file."""
        annealing, latent_size = self.annealing, problem.adapter.latent_size
        moves = annealing.hmc_steps or annealing.rule.most_moves
        curved = annealing.mass == "curvature" and not self.alone
        whole = latent_size <= bases.WHOLE
        sizes = {
            "islands": self.islands,
            "B": problem.observation.count * self.islands,
            "N": self.each,
            "d": latent_size,
            "k": min(curvature.MAX_DIRECTIONS, latent_size),
            "r": min(sketches.RANK, latent_size),
            "K": self._pool,
            "L": annealing.leapfrog_steps or max(tuning.LADDER),
            "M": moves,
        }
        present = {
            "trace": self.keep_trace,
            "spread": self.alone,
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
        """Prior draws; an observation's islands are neighbouring rows with noise of their own.

        ``furthest``: the inverse temperature that they are tempered to at most, as for `smc.init`.
        """
        state = smc.init(
            problem.target,
            chains=self.each,
            islands=self.islands,
            draws=self.draws,
            alone=self.alone,
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
        """To the posterior; then, for unbiased evidence, once more with every choice repeated."""
        if run.repeats is None:
            run = self._anneal(problem, run, on_step)
            if self.evidence == "consistent":
                return run
            run = self._again(problem, run)
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

    def _again(self, problem: Problem, pilot: smc.Run) -> smc.Run:
        """The start of a run under another seed that repeats the choices of ``pilot``.

        The type of its gradients too is fixed by the pilot: the finer one throughout, if that
        needed it at all.
        """
        refined = None if pilot.refined is None else 0
        state = smc.init(
            fallback.in_use(problem.target, refined),
            chains=self.each,
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
        """In gradient evaluations of a particle."""
        return Position(run.state.spent, None, "gradient")

    def facts(self, run: smc.Run) -> Mapping[str, str]:
        """Temperature (the coldest is last to move), acceptance, trajectory."""
        info = run.infos[-1]
        active = info.choice.active
        return {
            "beta": f"{info.choice.beta.min().item():.3g}",
            "accept": f"{info.acceptance[active].mean().item():.2f}",
            "step": f"{info.choice.step_size[active].mean().item():.2g}",
            "L": str(info.choice.leapfrog_steps),
        }

    def outcome(self, problem: Problem, run: smc.Run, complete: bool) -> Outcome:
        """What the run has found: ``chains`` of each population, side by side."""
        state, infos = run.state, run.infos
        chosen = self.chosen(state, problem.backend)
        normaliser, error, reasons = self._normaliser(state, complete)
        rows = len(state.beta) // problem.observation.count
        first = self._pool * torch.arange(rows, device=state.beta.device)
        roots = state.roots + first.repeat(problem.observation.count)[:, None]
        return Outcome(
            latents=self.side_by_side(state.hmc.latents, chosen),
            energies=self.side_by_side(state.hmc.energy, chosen),
            log_weights=None if self.alone else self.side_by_side(state.log_weights, chosen),
            log_normaliser=normaliser,
            log_normaliser_error=error,
            roots=self.side_by_side(roots, chosen),
            surviving_roots=surviving_roots(state.roots),
            non_finite=self.side_by_side(state.non_finite, chosen),
            betas=_rows([i.choice.beta for i in infos], state.beta),
            acceptance=_rows([i.acceptance for i in infos], state.beta),
            step_size=_rows([i.choice.step_size for i in infos], state.beta),
            energy_history=_rows([i.energy for i in infos], state.beta),
            leapfrog_steps=torch.tensor(
                [i.choice.leapfrog_steps for i in infos], device="cpu"
            ).long(),
            hmc_steps=torch.tensor([i.choice.hmc_steps for i in infos], device="cpu").long(),
            trace=None if run.trace is None else self._merged_trace(run.trace),
            jumped=state.jumped,
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
        """Which particles of each population are returned, ``(B R, chains)``.

        All, or every k-th from a random one on. Resampling keeps relatives side by side, so these
        have ancestors as distinct as the ancestors' shares allow, and each is a fair draw.
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

    def side_by_side(self, values: Tensor, chosen: Tensor) -> Tensor:
        """``(B T, N, ...)`` of islands to the chosen ones, ``(B, R chains, ...)``."""
        values = values.reshape(len(chosen), self.particles, *values.shape[2:])
        index = chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2))
        taken = values.gather(1, index.expand(*chosen.shape, *values.shape[2:]))
        return taken.reshape(-1, self.populations * self.chains, *values.shape[2:])

    def _merged_trace(self, trace: Sequence[Tensor]) -> Tensor:
        """``(T + 1, B, R N, d)``: every particle that ran."""
        stacked = torch.stack(tuple(trace))
        return stacked.reshape(
            len(stacked), -1, self.populations * self.particles, stacked.shape[-1]
        )

    def _normaliser(
        self, state: smc.SMCState, complete: bool
    ) -> tuple[Tensor | None, Tensor | None, dict[str, str]]:
        """Log normaliser and its standard error, ``(B,)``, and the reasons where there is none."""
        names = ("log_normaliser", "log_normaliser_error", "log_evidence")
        if self.alone:
            return None, None, dict.fromkeys(("log_weights", *names), _ALONE_REASON)
        if not complete:
            return None, None, dict.fromkeys(names, INTERRUPTED)
        each = log_mean_weight(state.log_weights).reshape(-1, self.islands)
        error = self._error(each, state)
        known = self._known(each, error, state)
        reasons = {} if bool(known.all()) else {"log_normaliser_error": _ERROR_REASON}
        return log_mean_weight(each), nan_where_unknown(error, known), reasons

    def _known(self, each: Tensor, error: Tensor, state: smc.SMCState) -> Tensor:
        """Whether an error can be relied on, ``(B,)``.

        An error that comes from few lineages scatters itself, and to tell it only where it is small
        would be to tell those that are too small. So whether it is told depends on the one that is
        expected by how much moves forget, which scatters less.
        """
        known = error.isfinite() & ~state.jumped.reshape(-1, self.islands).any(-1)
        expected = self._within(each, state.expected_variance)
        return known & (error_of_log(expected) <= _MOST_EXPECTED)

    def _error(self, each: Tensor, state: smc.SMCState) -> Tensor:
        """Root mean square error of the log mean of islands' estimates ``each`` ``(B, T)``.

        The largest of what the variances tell that each has seen on its way (by lineages, and by
        how much moves forget), of what the differences of islands tell, and of their logarithms'
        own standard error. A variance comes with the bias of a logarithm, minus half of it.
        """
        expected = self._within(each, state.expected_variance)
        within = self._within(each, state.variance).maximum(expected)
        between = variance_between(each)
        if self.islands >= _MANY_ISLANDS:
            between = between.maximum(variance_if_gaussian(each))
        return error_of_log(within.maximum(between)).maximum(deviation_of_mean(each))

    def _within(self, each: Tensor, variance: Tensor) -> Tensor:
        """Relative variance of islands' mean by the ``variance`` ``(B T,)`` that each has seen.

        Their mean in place of each one's, for few particles tell little.
        """
        mean = variance.reshape(each.shape).clamp(min=0.0).mean(-1, keepdim=True)
        seen = second_order(mean, self.each)
        within: Tensor = (torch.softmax(each, -1) ** 2 * seen).sum(-1)
        return within

    def _notes(self, state: smc.SMCState, complete: bool) -> list[str]:
        notes = []
        if self.budget is not None and complete:
            least, most = int(state.rounds.min()), int(state.rounds.max())
            bought = f"{least}" if least == most else f"{least} to {most}"
            notes.append(f"the budget bought {bought} rounds of moves at the posterior")
        if self.alone:
            return [*notes, _ALONE_REASON]
        if self.chains < self.particles:
            each = " of each population" if self.populations > 1 else ""
            chains = "1 chain" if self.chains == 1 else f"{self.chains} chains"
            notes.append(f"{self.particles} particles were run for {chains}{each}")
        notes.append(f"each island began from the best of {self._pool} prior draws")
        if complete:
            frozen = self.evidence == "frozen"
            notes.append(
                "evidence is unbiased: from a second run that repeats the choices of a first"
                if frozen
                else "evidence is consistent, not unbiased (evidence='frozen' is)"
            )
        return notes


def _rows(columns: Sequence[Tensor], like: Tensor) -> Tensor:
    """``(T, B S)`` of S islands, also where there is none yet."""
    return torch.stack(tuple(columns)) if columns else like.new_empty(0, len(like))

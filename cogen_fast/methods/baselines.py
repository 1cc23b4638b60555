"""Baselines: the methods which the paper compares with, and the optimisers Adam and L-BFGS.

The paper compares with gradient descent from one and from many starts, and with sampling-
importance-resampling. `reconstruct` runs a baseline with the arguments and the `Result` of
`cogenerate`; `tune` finds a learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from cogen_fast.methods import optimise, prior_draws
from cogen_fast.methods.assembly import OF_SAMPLES, assemble
from cogen_fast.methods.loop import Outcome
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.problem.compute import DEFAULT, Compute, as_compute
from cogen_fast.problem.density import Potential
from cogen_fast.problem.problem import Problem, prepared
from cogen_fast.problem.processes import team
from cogen_fast.results.result import Result
from cogen_fast.sampler.weights import (
    effective_sample_size,
    error_of_log,
    log_mean_weight,
    nan_where_unknown,
    surviving_roots,
    variance_between,
    variance_is_reliable,
)
from cogen_fast.support.arguments import check_choice, check_count, check_number, check_seed, shown
from cogen_fast.support.memory import check_samples

Baseline = Literal["gd", "gd-multi", "adam", "adam-multi", "lbfgs", "lbfgs-multi", "sir"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
STARTS = 5_000
STEPS = 5_000
_MULTI, _SIR = "-multi", "sir"
_FIT_REASON = "The chains are best fits of the misfit, not samples of the posterior."
_SIR_REASON = "The samples were resampled by weight, so all count equally."
_SIR_ERROR_REASON = "Too few draws carry the weights to estimate an error (NaN); raise starts."

_Descent = Callable[[Potential, Tensor, int, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Optimiser:
    """An optimiser, its gradients in addition to one per step, and the rates which `tune` tries."""

    descend: _Descent
    extra_gradients: int
    rates: tuple[float, ...]


def _plain(
    potential: Potential, latents: Tensor, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor]:
    return optimise.gradient_descent(potential, latents, steps, learning_rate, keep_best=True)


_OPTIMISERS: dict[str, _Optimiser] = {
    "gd": _Optimiser(
        _plain, 1, (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
    ),
    "adam": _Optimiser(optimise.adam, 0, (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)),
    "lbfgs": _Optimiser(optimise.lbfgs, 0, (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)),
}


@dataclass(frozen=True)
class _Plan:
    """All settings of a baseline; None for a setting which the method does not have."""

    method: Baseline
    chains: int
    starts: int
    steps: int | None
    learning_rate: float | None
    seed: int

    @property
    def optimiser(self) -> _Optimiser:
        return _OPTIMISERS[self.method.removesuffix(_MULTI)]

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for the result."""
        particles = self.starts if self.method == _SIR else self.chains
        return asdict(self) | {"particles": particles}


def reconstruct(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    method: Baseline = "gd-multi",
    chains: int = 1,
    starts: int | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    **options: Any,
) -> Result:
    """Reconstruct the hidden part with a baseline, given the same arguments as `cogenerate`.

    "gd", "adam" and "lbfgs" minimise the misfit ``E(z)``, without the prior, from one prior draw;
    "gd-multi", "adam-multi" and "lbfgs-multi" from that of many prior draws with the lowest
    ``E(z)`` (Fang and Schwing 2019, section 4). Each returns the best point which it visited. "sir"
    is sampling-importance-resampling (Rubin 1987): prior draws are resampled with weights
    ``exp(-E)``.

    Args:
        G, x_obs, mask: as for `cogenerate`.
        method: one of `BASELINES`.
        chains: number N of optimisation runs per observation, each with its own starts; for "sir"
            the number of samples from a common set of draws.
        starts: number of prior draws (default: 5,000): for "-multi" methods per run, for "sir" per
            observation.
        steps: number of steps of an optimiser (default: 5,000).
        learning_rate: required for an optimiser; `tune` finds one. For "gd" it is the factor of the
            gradient; for "adam" the step per coordinate, which falls to 0 along a cosine; for
            "lbfgs" the length of the first step, in units of ``sqrt(d)``.
        seed, observation_ids: as for `cogenerate`. "gd", "adam" and "lbfgs" start from the same
            prior draws as its chains with ``method="paper"``.
        options: ``noise_std``, ``weight``, ``misfit``, ``latent_shape`` and ``compute`` of
            `cogenerate`.

    Returns:
        A `Result` whose attributes per temperature have no rows. "sir" has a log normaliser and a
        log evidence; their standard error is that of independent draws. ``cost`` includes the
        scored starts.

    Raises:
        TypeError, ValueError: an argument is invalid. The message names it; no work has been done.
    """
    plan = _checked(method, chains, starts, steps, learning_rate, seed)
    with _shared(G, x_obs, mask, plan, options) as problem:

        def run() -> Result:
            stream = prior_draws.noise(problem, plan.seed, observation_ids)
            if plan.method == _SIR:
                outcome = _resampled(problem, stream, plan)
            else:
                first = prior_draws.best(problem, stream, plan.starts, plan.chains)
                outcome = _descended(problem, first, plan)
            return assemble(plan.settings() | _run_settings(options), outcome, None, problem)

        return problem.led(plan.settings() | {"observation_ids": observation_ids}, run)


@dataclass(frozen=True)
class Tuning:
    """A learning rate, and the scores of the grid from which it was chosen.

    ``log`` holds a pair ``(rate, score)`` for each rate of the grid, in the order in which they
    ran; the lowest score is the best. ``cost`` is the cost of the whole search per observation, in
    forwards.
    """

    method: Baseline
    learning_rate: float
    log: tuple[tuple[float, float], ...]
    cost: int

    @property
    def at_the_edge(self) -> bool:
        """Whether the best rate is the grid's largest or smallest; then a wider grid may help."""
        rates = [rate for rate, _ in self.log]
        return self.learning_rate in (min(rates), max(rates))

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON, with None for scores which are not finite."""
        log = [[rate, score if math.isfinite(score) else None] for rate, score in self.log]
        return asdict(self) | {"log": log, "at_the_edge": self.at_the_edge}


def tune(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    method: Baseline,
    learning_rates: Sequence[float] | None = None,
    score: Callable[[Result], Any] | None = None,
    chains: int = 1,
    starts: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    **options: Any,
) -> Tuning:
    """Find the learning rate with which a baseline does best on these observations.

    Use other images than those whose results are reported, and the noise or weight, the steps and
    the starts of the later runs. All rates start from the same latents, which are scored once.

    Args:
        learning_rates: the grid (default: half decades, from 10 to 1e-5 for "gd", from 1 to 0.001
            for "adam" and from 10 to 0.001 for "lbfgs").
        score: function of a `Result`, lower being better, such as the error with respect to a known
            truth (default: the mean energy). A value which is not finite counts as infinite.
        G, x_obs, mask, method, chains, starts, steps, seed, observation_ids, options: as for
            `reconstruct`.

    Raises:
        TypeError, ValueError: an argument is invalid (the message names it; no work has been done),
            or no rate gives a finite score.
    """
    if check_choice("method", method, BASELINES) == _SIR:
        raise ValueError("method: expected a method with a learning rate, got 'sir'")
    rates = _checked_rates(learning_rates, method)
    plan = _checked(method, chains, starts, steps, rates[0], seed)
    if score is not None and not callable(score):
        raise TypeError(f"score: expected a callable, got {shown(score)}")
    with _shared(G, x_obs, mask, plan, options) as problem:

        def run() -> Tuning:
            log, cost = [], 0
            stream = prior_draws.noise(problem, plan.seed, observation_ids)
            first = prior_draws.best(problem, stream, plan.starts, plan.chains)
            for rate in rates:
                tried = replace(plan, learning_rate=rate)
                outcome = _descended(problem, first, tried)
                result = assemble(tried.settings() | _run_settings(options), outcome, None, problem)
                found = float(result.energies.mean() if score is None else score(result))
                log.append((rate, found if math.isfinite(found) else math.inf))
                cost += result.cost
            best_rate, best_score = min(log, key=lambda pair: pair[1])
            if math.isinf(best_score):
                raise ValueError(
                    f"learning_rates: none of {rates} gives a finite score; give smaller ones"
                )
            cost -= (len(rates) - 1) * plan.chains * prior_draws.forwards(plan.starts)
            return Tuning(plan.method, best_rate, tuple(log), cost)

        asked = plan.settings() | {"learning_rates": rates, "observation_ids": observation_ids}
        return problem.led(asked, run)


def descends(method: str) -> bool:
    """Whether a method is an optimiser, with steps and a learning rate."""
    return method in BASELINES and method != _SIR


def draws_many(method: str) -> bool:
    """Whether a method scores many prior draws."""
    return method == _SIR or (method in BASELINES and method.endswith(_MULTI))


@contextmanager
def _shared(
    G: Callable[[Tensor], Tensor], x_obs: Any, mask: Any, plan: _Plan, options: Mapping[str, Any]
) -> Iterator[Problem]:
    """What `prepared` gives, with the processes that share the run, where ``plan`` has room."""
    compute = as_compute(options.get("compute", DEFAULT))
    with team(compute) as found, prepared(G, x_obs, mask, team=found, **options) as problem:
        _check_room(plan, problem)
        yield problem


def _run_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings which every result has, beside those of its method."""
    compute: Compute = options.get("compute", DEFAULT)
    return {"max_batch": compute.max_batch}


def _checked_rates(given: Sequence[float] | None, method: str) -> list[float]:
    if given is None:
        return list(_OPTIMISERS[method.removesuffix(_MULTI)].rates)
    rates = [check_number("learning_rates", rate, above=0.0) for rate in given]
    if not rates:
        raise ValueError("learning_rates: expected at least one rate, got none")
    return rates


def _checked(
    method: str,
    chains: int,
    starts: int | None,
    steps: int | None,
    learning_rate: float | None,
    seed: int,
) -> _Plan:
    """The settings, checked; ValueError for one which the method does not take."""
    check_choice("method", method, BASELINES)
    many = draws_many(method)
    not_taken: dict[str, Any] = {} if many else {"starts": starts}
    if not descends(method):
        not_taken |= {"steps": steps, "learning_rate": learning_rate}
    for name, value in not_taken.items():
        if value is not None:
            raise ValueError(f"{name}: expected none with method={method!r}, got {shown(value)}")
    if descends(method):
        if learning_rate is None:
            raise ValueError("learning_rate: expected a number above 0 (see tune), got None")
        learning_rate = check_number("learning_rate", learning_rate, above=0.0)
        steps = check_count("steps", STEPS if steps is None else steps)
    draws = STARTS if starts is None else check_count("starts", starts)
    return _Plan(
        method=cast(Baseline, method),
        chains=check_count("chains", chains),
        starts=draws if many else 1,
        steps=steps,
        learning_rate=learning_rate,
        seed=check_seed(seed),
    )


def _check_room(plan: _Plan, problem: Problem) -> None:
    """Raise ValueError, naming the largest count, if draws or results cannot fit in memory."""
    count, adapter = problem.observation.count, problem.adapter
    size, outputs = adapter.latent_size, count * math.prod(adapter.output_shape)
    chains = {"chains": plan.chains}
    drawn = {"starts": plan.starts} | ({} if plan.method == _SIR else chains)
    check_samples(drawn, count, size, device=adapter.device)
    check_samples(chains, count, size, outputs=outputs, device=adapter.device)


def _descended(problem: Problem, first: tuple[Tensor, Tensor], plan: _Plan) -> Outcome:
    """Run the optimiser from starts ``(B, N, d)`` with indices ``(B, N)`` among the prior draws."""
    latents, roots = first
    assert plan.steps is not None and plan.learning_rate is not None
    latents, energies = plan.optimiser.descend(
        problem.potential, latents, plan.steps, plan.learning_rate
    )
    return unannealed(
        latents,
        energies,
        roots,
        gradients=plan.steps + plan.optimiser.extra_gradients,
        forwards=prior_draws.forwards(plan.starts),
        reasons=dict.fromkeys(OF_SAMPLES, _FIT_REASON),
    )


def _resampled(problem: Problem, stream: NoiseStream, plan: _Plan) -> Outcome:
    """N of the prior draws, resampled by weight. Each draw costs a forward."""
    pool, energy = prior_draws.scored(problem, stream, plan.starts)
    chosen = prior_draws.by_weight(energy, stream, plan.chains)
    latents = prior_draws.picked(pool, chosen).squeeze(1)
    log_weights, roots = -energy.squeeze(1), chosen.squeeze(1)
    known = variance_is_reliable(log_weights)
    error = nan_where_unknown(error_of_log(variance_between(log_weights)), known)
    reasons = {"log_weights": _SIR_REASON}
    if not bool(known.all()):
        reasons["log_normaliser_error"] = _SIR_ERROR_REASON
    effective = ", ".join(f"{size:.3g}" for size in effective_sample_size(log_weights).tolist())
    return unannealed(
        latents,
        -log_weights.gather(-1, roots),
        roots,
        gradients=0,
        forwards=1,
        reasons=reasons,
        log_normaliser=log_mean_weight(log_weights),
        log_normaliser_error=error,
        notes=[f"The effective sample size of {plan.starts:,} draws is {effective}."],
    )


def unannealed(
    latents: Tensor,
    energies: Tensor,
    roots: Tensor,
    *,
    gradients: int,
    forwards: int,
    reasons: dict[str, str],
    log_normaliser: Tensor | None = None,
    log_normaliser_error: Tensor | None = None,
    notes: Sequence[str] = (),
) -> Outcome:
    """An outcome without temperatures; ``roots`` ``(B, N)`` are indices of the prior draws."""
    count = len(latents)
    none = torch.zeros(0, count, dtype=torch.float64, device="cpu")
    no_moves = torch.zeros(0, dtype=torch.int64, device="cpu")
    return Outcome(
        latents=latents,
        energies=energies,
        log_weights=None,
        log_normaliser=log_normaliser,
        log_normaliser_error=log_normaliser_error,
        roots=roots,
        surviving_roots=surviving_roots(roots),
        non_finite=torch.zeros_like(roots),
        betas=none,
        acceptance=none,
        step_size=none,
        energy_history=none,
        energy_std=none,
        leapfrog_steps=no_moves,
        hmc_steps=no_moves,
        trace=None,
        oversized_steps=torch.zeros(count, dtype=torch.bool, device="cpu"),
        rounds=torch.zeros(count, dtype=torch.int64, device="cpu"),
        beta_reached=1.0,
        gradients=gradients,
        forwards=forwards,
        reasons=reasons,
        notes=list(notes),
    )

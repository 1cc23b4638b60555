"""What belongs to one method: the settings of the adaptive one, and of the published one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cogen_fast.methods.adaptive import EVIDENCE, AdaptivePlan, Evidence
from cogen_fast.methods.paper import PaperPlan
from cogen_fast.methods.presets import DEFAULTS, Preset, find_preset
from cogen_fast.ops.spec import AdaptationRule
from cogen_fast.problem.compute import Compute, gathered
from cogen_fast.problem.density import FORMS, Form
from cogen_fast.results.result import ANNEALED
from cogen_fast.sampler import ais
from cogen_fast.sampler.annealing_plan import MASSES, Annealing
from cogen_fast.sampler.schedule import Betas, as_schedule
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.support.arguments import (
    check_choice,
    check_count,
    check_number,
    names_of,
    shown,
    taken,
)
from cogen_fast.support.memory import check_room
from cogen_fast.support.warnings import warn_user

METHODS = ANNEALED
ADAPTATIONS = ("published", "per-chain")
_OF_TEMPERATURE = 48  # bytes at the least: the inverse temperature itself, and what is kept of it


@dataclass(frozen=True)
class Running:
    """What every method is told of a run, checked."""

    seed: int
    max_batch: int | None
    keep_trace: bool


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """The adaptive method: it finds its own temperatures, resamples and tunes its moves.

    Args:
        populations: R of N chains each per observation (1). They are islands: groups of particles
            that exchange none and are tuned by one another. One population is two islands of half
            its particles. Each begins from the best of up to 64 prior draws for each of its
            particles. More populations tell R-hat and the error of the evidence better.
        evidence: "consistent", or "frozen": a second run repeats every choice of the first under
            other noise, which makes the estimate unbiased. What is returned, samples too, is then
            the second run's.
        kept: share of the conditional effective sample size that a step of the inverse temperature
            keeps (0.97). Nearer to 1: more temperatures.
        mass: of the moves: "curvature" (default), the precision of the posterior that the gradients
            of the other islands show, in their stiffest directions; or "identity".
        hmc_steps: transitions M per temperature (tuned).
        leapfrog_steps: leapfrog steps L per transition (tuned, and then common to all observations
            of a call).
        step_size: leapfrog step at the start (by the size of the latent), then tuned.

    Raises:
        TypeError, ValueError: bad input, naming the argument.
    """

    populations: int = 1
    evidence: Evidence = "consistent"
    kept: float = Annealing.kept
    mass: Literal["curvature", "identity"] = "curvature"
    hmc_steps: int | None = None
    leapfrog_steps: int | None = None
    step_size: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "populations", check_count("populations", self.populations))
        check_choice("evidence", self.evidence, EVIDENCE)
        if self.step_size is not None:
            step_size = check_number("step_size", self.step_size, above=0.0)
            object.__setattr__(self, "step_size", step_size)
        check_choice("mass", self.mass, MASSES)
        self._annealing()

    def plan(self, chains: int | None, budget: int | None, running: Running) -> AdaptivePlan:
        """Every setting of a run; ``budget`` is that of the annealing."""
        return AdaptivePlan(
            chains=POPULATION if chains is None else chains,
            populations=self.populations,
            annealing=self._annealing(),
            budget=budget,
            evidence=self.evidence,
            step_size=self.step_size,
            seed=running.seed,
            keep_trace=running.keep_trace,
            max_batch=running.max_batch,
        )

    def _annealing(self) -> Annealing:
        return Annealing(
            kept=self.kept,
            leapfrog_steps=self.leapfrog_steps,
            hmc_steps=self.hmc_steps,
            mass=self.mass,
        )


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Algorithm 1 as published (Fang and Schwing 2019), with the published step-size adaptation.

    What is None is the preset's; without one there are 4 chains and the defaults in parentheses.

    Args:
        preset: settings of a published run by name (`cogen_fast.PRESETS`), its weight too where
            neither noise nor misfit is given; what is given beside it wins.
        ais_steps: number T of inverse temperatures (500; a given array has its own number).
        hmc_steps: transitions M per temperature (1).
        leapfrog_steps: leapfrog steps L per transition (20).
        step_size: leapfrog step at the start (0.01).
        adaptation: of the step size: "published" (default), by the mean acceptance of an
            observation's chains, which share it; "per-chain", the same rule for each chain by its
            own acceptance, which biases samples and weights (see `AdaptationRule`); a rule of your
            own; or None to keep the step size.
        schedule: "sigmoid" (default), "sigmoid-raw", "linear", "geometric", an array of inverse
            temperatures ``beta_1 .. beta_T``, or a schedule object.
        form: "posterior" (default), ``beta E + |z|^2 / 2``, or "paper", ``beta E + (1 - beta)
            |z|^2 / 2``, without weights and evidence.

    Raises:
        TypeError, ValueError: bad input, naming the argument.
    """

    preset: str | None = None
    ais_steps: int | None = None
    hmc_steps: int | None = None
    leapfrog_steps: int | None = None
    step_size: float | None = None
    adaptation: AdaptationRule | Literal["published", "per-chain"] | None = "published"
    schedule: Any = None
    form: Form | None = None

    def __post_init__(self) -> None:
        if self.form is not None:
            check_choice("form", self.form, FORMS)
        _check_adaptation(self.adaptation)
        base = self.base
        self._moves(base)
        self._betas(base)
        self._first_step(base)

    @property
    def base(self) -> Preset:
        """The preset, or the defaults."""
        return DEFAULTS if self.preset is None else find_preset(self.preset)

    @property
    def weight(self) -> float | None:
        """Of the squared error, in the published run."""
        return None if self.preset is None else self.base.weight

    def plan(self, chains: int | None, running: Running) -> PaperPlan:
        """Every setting of a run; warns where the prior is gone in the end."""
        base = self.base
        plan = PaperPlan(
            chains=base.chains if chains is None else check_count("chains", chains),
            moves=self._moves(base),
            betas=self._betas(base),
            step_size=self._first_step(base),
            seed=running.seed,
            keep_trace=running.keep_trace,
            max_batch=running.max_batch,
            schedule=_schedule_name(self._schedule(base)),
            preset=self.preset,
        )
        if plan.moves.form == "paper" and plan.betas[-1] == 1.0:
            warn_user(
                "form: in the paper form beta = 1 removes the prior, and exp(-E) alone need not be "
                "a density; latents may drift away. Use form='posterior', or a schedule that ends "
                "below 1"
            )
        return plan

    def _moves(self, base: Preset) -> ais.Moves:
        rule = self.adaptation
        if isinstance(rule, str):
            rule = replace(base.adaptation, per_chain=rule == "per-chain")
        return ais.Moves(
            hmc_steps=_given(self.hmc_steps, base.hmc_steps),
            leapfrog_steps=_given(self.leapfrog_steps, base.leapfrog_steps),
            form=_given(self.form, base.form),
            adaptation=rule,
        )

    def _betas(self, base: Preset) -> Betas:
        schedule, steps = self._schedule(base), self.ais_steps
        if steps is None:
            values = getattr(as_schedule(schedule), "values", None)
            steps = base.ais_steps if values is None else len(values)
        steps = check_count("ais_steps", steps)
        check_room({"ais_steps": steps}, _OF_TEMPERATURE, "a number of temperatures")
        return ais.checked_betas(schedule, steps)

    def _schedule(self, base: Preset) -> Any:
        return _given(self.schedule, base.schedule)

    def _first_step(self, base: Preset) -> float:
        return check_number("step_size", _given(self.step_size, base.step_size), above=0.0)


Settings = Adaptive | Paper
_KINDS: dict[str, type[Settings]] = {"adaptive": Adaptive, "paper": Paper}


OPTIONS = tuple(dict.fromkeys((*names_of(Adaptive), *names_of(Paper), *names_of(Compute))))
"""What `keywords` gathers in objects, by name."""


def as_settings(method: Any) -> Settings:
    """Settings of a method, or a method's name for its defaults. Raises naming ``method``."""
    if isinstance(method, Settings):
        return method
    if isinstance(method, str):
        return _KINDS[check_choice("method", method, METHODS)]()
    raise TypeError(
        f"method: expected one of {METHODS}, or an Adaptive or Paper with settings of your own, "
        f"got {shown(method)}"
    )


def keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `cogenerate` from options by their names, as a command line has them.

    What belongs to a method or to the machine goes into its object; "method" is a name ("paper" by
    default where a "preset" is given). Raises ValueError naming an option that another method
    takes, and what the objects raise.
    """
    left = dict(options)
    name = left.pop("method", None)
    if name is None:
        name = "adaptive" if left.get("preset") is None else "paper"
    kind = _KINDS[check_choice("method", name, METHODS)]
    settings = kind(**taken(left, names_of(kind)))
    other = "adaptive" if name == "paper" else "paper"
    for each in ("budget",) * (name == "paper") + names_of(_KINDS[other]):
        value = left.pop(each, None)
        if value is not None:
            raise ValueError(
                f"{each}: only method={other!r} takes it, expected none with {name!r}, got "
                f"{shown(value)}"
            )
    return gathered(left) | {"method": settings}


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _schedule_name(schedule: Any) -> str:
    return schedule if isinstance(schedule, str) else repr(as_schedule(schedule))[:200]


def _check_adaptation(adaptation: Any) -> None:
    if adaptation is None or isinstance(adaptation, AdaptationRule):
        return
    if isinstance(adaptation, str):
        check_choice("adaptation", adaptation, ADAPTATIONS)
        return
    raise TypeError(
        f"adaptation: expected one of {ADAPTATIONS}, a rule or None, got {shown(adaptation)}"
    )

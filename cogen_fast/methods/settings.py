"""Settings of the two annealing methods: `Adaptive` and `Paper`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cogen_fast.methods.adaptive import EVIDENCE, AdaptivePlan, EvidenceMode
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
    check_flag,
    check_number,
    names_of,
    shown,
    taken,
)
from cogen_fast.support.memory import check_room
from cogen_fast.support.warnings import warn_user

METHODS = ANNEALED
ADAPTATIONS = ("published", "per-chain")
_BYTES_PER_TEMPERATURE = 48  # at least: the inverse temperature and one row of each history


@dataclass(frozen=True)
class RunOptions:
    """Options of a run which every method takes, checked."""

    seed: int
    max_batch: int | None


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """The adaptive method, which chooses its temperatures, resamples and tunes its moves.

    Args:
        populations: number R of populations per observation, of N chains each (default: 1).
            Populations are islands: groups of particles which do not exchange particles and tune
            each other's moves. A single population consists of two islands, each with half of the
            particles. The particles of an island are drawn by weight from its own scored prior
            draws, 64 per particle without a budget. With more populations, R-hat and the error of
            the evidence are estimated better.
        evidence: "consistent" (default), or "frozen": a second run with other random numbers
            repeats every choice of the first, so that its estimate of the evidence is unbiased.
            Everything that is returned, the samples included, then comes from the second run.
        target_cess: fraction of the conditional effective sample size which each step of the
            inverse temperature keeps (default: 0.97). A value closer to 1 gives more temperatures.
        mass: mass matrix of the moves: "curvature" (default), the posterior precision in its
            stiffest directions, estimated from the gradients of the other islands; or "identity".
        hmc_steps: number M of transitions per temperature (default: tuned).
        leapfrog_steps: number L of leapfrog steps per transition (default: tuned, and then the same
            for all observations of a call).
        step_size: first leapfrog step size, tuned from there on (default: by the size of the
            latent).
        keep_trace: whether to keep the latents after every temperature (``Result.trace``).

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """

    populations: int = 1
    evidence: EvidenceMode = "consistent"
    target_cess: float = Annealing.target_cess
    mass: Literal["curvature", "identity"] = "curvature"
    hmc_steps: int | None = None
    leapfrog_steps: int | None = None
    step_size: float | None = None
    keep_trace: bool = False

    def __post_init__(self) -> None:
        check_flag("keep_trace", self.keep_trace)
        object.__setattr__(self, "populations", check_count("populations", self.populations))
        check_choice("evidence", self.evidence, EVIDENCE)
        if self.step_size is not None:
            step_size = check_number("step_size", self.step_size, above=0.0)
            object.__setattr__(self, "step_size", step_size)
        check_choice("mass", self.mass, MASSES)
        self._annealing()

    def plan(self, chains: int | None, budget: int | None, run_options: RunOptions) -> AdaptivePlan:
        """All settings of a run; ``budget`` is what the sampling may spend, without polishing."""
        return AdaptivePlan(
            chains=POPULATION if chains is None else chains,
            populations=self.populations,
            annealing=self._annealing(),
            budget=budget,
            evidence=self.evidence,
            step_size=self.step_size,
            seed=run_options.seed,
            keep_trace=self.keep_trace,
            max_batch=run_options.max_batch,
        )

    def _annealing(self) -> Annealing:
        return Annealing(
            target_cess=self.target_cess,
            leapfrog_steps=self.leapfrog_steps,
            hmc_steps=self.hmc_steps,
            mass=self.mass,
        )


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Algorithm 1 as published (Fang and Schwing 2019), with the published step-size adaptation.

    An argument which is None takes the preset's value; without a preset there are 4 chains and the
    defaults below.

    Args:
        preset: name of a published run (`cogen_fast.PRESETS`) whose settings are taken, and its
            weight, too, if no noise, weight or misfit is given. Arguments given beside it have
            precedence.
        ais_steps: number T of inverse temperatures (default: 500, or the length of a given array).
        hmc_steps: number M of transitions per temperature (default: 1).
        leapfrog_steps: number L of leapfrog steps per transition (default: 20).
        step_size: first leapfrog step size (default: 0.01).
        adaptation: how the step size adapts. "published" (default): all chains of an observation
            share a step size, which follows their mean acceptance probability. "per-chain": each
            chain has its own, which follows its own acceptance probability; this biases samples and
            weights (see `AdaptationRule`). A rule of your own is taken as well; with None the step
            size is constant.
        schedule: "sigmoid" (default), "sigmoid-raw", "linear", "geometric", an array of inverse
            temperatures ``beta_1 .. beta_T``, or a schedule object.
        form: "posterior" (default): the annealed density has energy ``beta E + |z|^2 / 2``.
            "paper": ``beta E + (1 - beta) |z|^2 / 2``, which gives neither weights nor evidence.
        keep_trace: whether to keep the latents after every temperature (``Result.trace``).

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """

    preset: str | None = None
    ais_steps: int | None = None
    hmc_steps: int | None = None
    leapfrog_steps: int | None = None
    step_size: float | None = None
    adaptation: AdaptationRule | Literal["published", "per-chain"] | None = "published"
    schedule: Any = None
    form: Form | None = None
    keep_trace: bool = False

    def __post_init__(self) -> None:
        check_flag("keep_trace", self.keep_trace)
        if self.form is not None:
            check_choice("form", self.form, FORMS)
        _check_adaptation(self.adaptation)
        base = self.base
        self._moves(base)
        self._betas(base)
        self._first_step(base)

    @property
    def base(self) -> Preset:
        """The preset, or the defaults where no preset is named."""
        return DEFAULTS if self.preset is None else find_preset(self.preset)

    @property
    def weight(self) -> float | None:
        """The preset's weight of the squared error; None without a preset."""
        return None if self.preset is None else self.base.weight

    def plan(self, chains: int | None, run_options: RunOptions) -> PaperPlan:
        """All settings of a run; warns if the last inverse temperature removes the prior."""
        base = self.base
        plan = PaperPlan(
            chains=base.chains if chains is None else check_count("chains", chains),
            moves=self._moves(base),
            betas=self._betas(base),
            step_size=self._first_step(base),
            seed=run_options.seed,
            keep_trace=self.keep_trace,
            max_batch=run_options.max_batch,
            schedule=_schedule_name(self._schedule(base)),
            preset=self.preset,
        )
        if plan.moves.form == "paper" and plan.betas[-1] == 1.0:
            warn_user(
                "form: beta = 1 removes the prior from the paper form, and exp(-E) alone need not "
                "be a density, so latents may drift away. Use form='posterior', or a schedule that "
                "ends below 1."
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
        check_room({"ais_steps": steps}, _BYTES_PER_TEMPERATURE, "a number of temperatures")
        return ais.checked_betas(schedule, steps)

    def _schedule(self, base: Preset) -> Any:
        return _given(self.schedule, base.schedule)

    def _first_step(self, base: Preset) -> float:
        return check_number("step_size", _given(self.step_size, base.step_size), above=0.0)


Settings = Adaptive | Paper
_KINDS: dict[str, type[Settings]] = {"adaptive": Adaptive, "paper": Paper}


OPTIONS = tuple(dict.fromkeys((*names_of(Adaptive), *names_of(Paper), *names_of(Compute))))
"""Names of all fields of the settings objects, which `keywords` collects into objects."""


def as_settings(method: Any) -> Settings:
    """``method`` itself if it is a settings object, or the default settings of the named method.

    TypeError or ValueError, naming ``method``, for anything else.
    """
    if isinstance(method, Settings):
        return method
    if isinstance(method, str):
        return _KINDS[check_choice("method", method, METHODS)]()
    raise TypeError(
        f"method: expected one of {METHODS}, or an Adaptive or Paper object, got {shown(method)}"
    )


def keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `cogenerate` from a flat mapping of options, such as a command line's.

    Fields of `Adaptive` or `Paper` are collected into ``method``, fields of `Compute` into
    ``compute``. Option "method" is a name; the default is "paper" where a "preset" is given, else
    "adaptive". ValueError, naming the option, where it belongs to the other method; the objects
    raise their own errors.
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
                f"{each}: expected none with method={name!r} (it belongs to method={other!r}), got "
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
        f"adaptation: expected one of {ADAPTATIONS}, an AdaptationRule or None, got "
        f"{shown(adaptation)}"
    )

"""The paper's 2-D study on one generator: every method, and what the figures need of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cogen_fast.experiments.synthetic.baseline_runs import (
    EndPoints,
    importance_resampling,
    try_learning_rates,
)
from cogen_fast.experiments.synthetic.five_gaussians import (
    KNOWN,
    LEARNING_RATES,
    LIMITS,
    MASK,
    MULTI_STARTS,
    Line,
    anneal,
    annealed_line,
    baseline_line,
    descend,
    line,
    squared_error,
    tuned_rate,
)
from cogen_fast.methods.presets import PRESETS
from cogen_fast.methods.settings import Paper
from cogen_fast.results.result import Result
from cogen_fast.sampler.schedule import Sigmoid
from cogen_fast.support.arguments import check_count
from cogen_fast.support.warnings import without_diagnoses
from cogen_fast.tasks import cogenerate

LOOPS = (100, 2_000, 3_000, 4_000, 6_000)
"""The AIS loops after which the paper's figure 3 shows the chains."""
EXACT = "exact posterior"
SMALL_RATE = 0.03
"""The rate at which gradient descent follows the gradient closely, for figure 1."""
PROGRAM, TEXT = "five-gaussians", "five-gaussians-paper"
_WEIGHT = PRESETS[PROGRAM].weight
# The program's range, normalised, so that it ends at 1, where the paper form has no prior left.
_PAPER_FORM_SCHEDULE = Sigmoid(-10.0, 2.0)
_HALF_WIDTH = 5.0  # of the quadrature's grid; 1e-6 of the prior's mass lies outside
_COLUMNS = 100  # of that grid, in one call of the generator


@dataclass(frozen=True)
class Effort:
    """How much is run for each generator; the defaults are the published numbers.

    ``chains`` of a run; ``repeats`` of every kind of published AIS-HMC run; ``populations`` of the
    adaptive method; ``program_steps`` and ``text_steps``, the AIS loops with the program's settings
    and with the text's; ``loops``, those of the latter that are drawn; ``descent_steps`` of
    gradient descent, and ``tuning_steps`` of the choice of its learning rate; ``starts`` of
    multi-start descent, and draws of SIR; points per side of the quadrature's ``grid``.

    Raises ValueError if one is not a whole number of at least 1, or if a loop is later than the
    last.
    """

    chains: int = 100
    repeats: int = 3
    populations: int = 100
    program_steps: int = PRESETS[PROGRAM].ais_steps
    text_steps: int = PRESETS[TEXT].ais_steps
    loops: tuple[int, ...] = LOOPS
    descent_steps: int = 5_000
    tuning_steps: int = 1_000
    starts: int = MULTI_STARTS
    grid: int = 2_001

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name != "loops"):
            check_count(name, getattr(self, name))
        for loop in self.loops:
            if check_count("loops", loop) > self.text_steps:
                raise ValueError(f"loops: expected at most {self.text_steps}, got {loop}")


@dataclass(frozen=True)
class GeneratorResults:
    """The results of one generator: the table's lines, and the runs that the figures show.

    ``descent`` is gradient descent from single starts at `SMALL_RATE`, with its trace;
    ``best_descent`` is the same at the rate that is best for it. ``program_run`` is the first run
    with the program's settings; ``text_run`` the first with the text's, with its trace. Of the runs
    in the paper form, ``warning`` is what the library warns of, and ``largest_norm`` the largest
    norm of a latent.
    """

    name: str
    title: str
    generator: nn.Module
    lines: tuple[Line, ...]
    descent: EndPoints
    best_descent: EndPoints
    program_run: Result
    text_run: Result
    warning: str
    largest_norm: float


def run_methods(
    name: str, title: str, generator: nn.Module, seed: int, effort: Effort
) -> GeneratorResults:
    """Run all methods on one generator.

    Runs of 100 chains have the seeds ``seed``, ``seed + 1``, ...
    """
    descent, best_descent, single_lines = _single(generator, seed, effort)
    program_settings = Paper(preset=PROGRAM, ais_steps=effort.program_steps)
    text_settings = Paper(preset=TEXT, ais_steps=effort.text_steps, keep_trace=True)
    program = _runs(generator, seed, effort, method=program_settings)
    text = _runs(generator, seed, effort, method=text_settings)
    paper_form_lines, warning, largest_norm = _paper_form(generator, seed, effort)
    lines = (
        _exact(generator, effort.grid),
        *single_lines,
        _multi(generator, seed, effort),
        _resampled(generator, seed, effort),
        annealed_line("AIS-HMC, program", program),
        annealed_line("AIS-HMC, paper's text", text),
        adaptive_line(generator, seed, effort),
        *paper_form_lines,
    )
    return GeneratorResults(
        name,
        title,
        generator,
        lines,
        descent,
        best_descent,
        program[0],
        text[0],
        warning,
        largest_norm,
    )


def _runs(generator: nn.Module, seed: int, effort: Effort, **options: Any) -> list[Result]:
    return [
        anneal(generator, seed + i, chains=effort.chains, progress=False, **options)
        for i in range(effort.repeats)
    ]


def _single(
    generator: nn.Module, seed: int, effort: Effort
) -> tuple[EndPoints, EndPoints, list[Line]]:
    """Gradient descent from single starts: at `SMALL_RATE`, at the best rate, and the lines.

    All rates are run, so the one that was chosen on another observation is among them.
    """
    found = try_learning_rates(
        generator,
        KNOWN,
        MASK,
        weight=1.0,
        learning_rates=LEARNING_RATES,
        steps=effort.descent_steps,
        runs=effort.chains,
        seed=seed,
        keep_trace=True,
    )
    shares = [float((squared_error(ends.images) < LIMITS[0]).double().mean()) for ends in found]
    by_share = ", ".join(f"{r:g}: {s:.3g}" for r, s in zip(LEARNING_RATES, shares, strict=True))
    rate, by_loss = tuned_rate(generator, 1, effort.tuning_steps)
    tuned, small, best = (
        LEARNING_RATES.index(rate),
        LEARNING_RATES.index(SMALL_RATE),
        shares.index(max(shares)),
    )
    lines = [
        baseline_line(method, [found[i]], f"learning rate {LEARNING_RATES[i]:g} of {grid}")
        for method, i, grid in (
            ("GD, one start", tuned, by_loss),
            (f"GD, rate {SMALL_RATE:g}", small, by_share),
            ("GD, best rate", best, by_share),
        )
    ]
    path = found[small].trace
    assert path is not None
    # A copy, because a part of the trace of all rates would keep all of the trace in memory.
    return replace(found[small], trace=path.clone()), replace(found[best], trace=None), lines


def _multi(generator: nn.Module, seed: int, effort: Effort) -> Line:
    """Gradient descent from the best of many starts, its rate chosen on another observation."""
    rate, by_loss = tuned_rate(generator, effort.starts, effort.tuning_steps)
    ends = descend(
        generator, rate, effort.starts, seed, runs=effort.chains, steps=effort.descent_steps
    )
    method = f"GD, best of {effort.starts:,}"
    return baseline_line(method, [ends], f"learning rate {rate:g} of {by_loss}")


def _resampled(generator: nn.Module, seed: int, effort: Effort) -> Line:
    ends = importance_resampling(
        generator,
        KNOWN,
        MASK,
        weight=_WEIGHT,
        draws=effort.starts,
        runs=effort.chains,
        seed=seed,
    )
    return baseline_line(
        f"SIR, one of {effort.starts:,}", [ends], f"w {_WEIGHT:g}, {effort.starts} draws a chain"
    )


def adaptive_line(generator: nn.Module, seed: int, effort: Effort) -> Line:
    """Independent populations of the adaptive method: they are the observations of one call."""
    copies = np.repeat(KNOWN[None], effort.populations, axis=0)
    with without_diagnoses():
        result = cogenerate(
            generator,
            copies,
            MASK,
            weight=_WEIGHT,
            chains=effort.chains,
            seed=seed,
            progress=False,
        )
    return line(
        "adaptive (the default)",
        squared_error(result.images).flatten(),
        result.cost // effort.chains,
        f"w {_WEIGHT:g}, {effort.populations} populations of {effort.chains} particles",
        _shares_by_evidence(result),
    )


def _shares_by_evidence(result: Result) -> list[float]:
    """Shares of all populations, each counted by its evidence.

    The share of one population has a bias of order 1 / N. Weighted by evidence, the share of more
    and more populations converges to the right value for any N, except for the small effect of
    tuning before beta = 1.
    """
    assert result.log_normaliser is not None  # as the density at beta = 1 is the posterior
    weights = torch.softmax(result.log_normaliser, 0)
    errors = squared_error(result.images)
    return [float(weights @ (errors < limit).double().mean(1)) for limit in LIMITS]


def _paper_form(generator: nn.Module, seed: int, effort: Effort) -> tuple[list[Line], str, float]:
    """The paper form, with the study's weight and with that of the image experiments.

    Returns the lines, the warning, and the largest norm of a latent.
    """
    lines, largest = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for weight in (_WEIGHT, 1.0):
            runs = _runs(
                generator,
                seed,
                effort,
                method=Paper(
                    preset=TEXT,
                    ais_steps=effort.text_steps,
                    form="paper",
                    schedule=_PAPER_FORM_SCHEDULE,
                ),
                weight=weight,
            )
            largest.append(max(float(run.latents.norm(dim=-1).max()) for run in runs))
            found = annealed_line(f"paper form, w = {weight:,g}", runs)
            settings = f"{found.settings}, largest |z| {largest[-1]:.3g}"
            lines.append(replace(found, settings=settings))
    warning = "; ".join(dict.fromkeys(str(each.message) for each in caught))
    return lines, warning, max(largest)


def exact_shares(generator: nn.Module, points: int) -> list[float]:
    """Shares of the posterior's mass within `LIMITS` of the answer, by quadrature.

    The grid has ``points`` x ``points`` latents.
    """
    side = torch.linspace(-_HALF_WIDTH, _HALF_WIDTH, points)
    total, near = 0.0, [0.0] * len(LIMITS)
    for columns in torch.split(side, _COLUMNS):
        z = torch.cartesian_prod(columns, side)
        with torch.no_grad():
            x = generator(z)
        energy = _WEIGHT * (x[:, 1].double() - float(KNOWN[1])) ** 2
        mass = torch.exp(-energy - 0.5 * z.double().square().sum(-1))
        errors = squared_error(x)
        total += float(mass.sum())
        near = [
            n + float(mass[errors < limit].sum()) for n, limit in zip(near, LIMITS, strict=True)
        ]
    return [n / total for n in near]


def _exact(generator: nn.Module, points: int) -> Line:
    settings = f"w {_WEIGHT:g}, {points} x {points} latents within {_HALF_WIDTH:g}"
    first, second = exact_shares(generator, points)
    return Line(EXACT, 0, first, second, None, 0, settings)

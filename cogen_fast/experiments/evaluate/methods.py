"""The methods that are compared, by name: the paper's, the adaptive one, and the baselines."""

from __future__ import annotations

from typing import Any

from cogen_fast.experiments.evaluate.evaluate import Method
from cogen_fast.methods.baselines import BASELINES, descends, draws_many
from cogen_fast.methods.presets import DEFAULTS, find_preset
from cogen_fast.support.arguments import check_choice, check_count, check_number, shown

METHODS = ("paper", "adaptive", "adaptive-polish", *BASELINES)
POLISH = 500
"""Gradients with which "adaptive-polish" ends; with a budget they are a quarter of it."""


def method_named(
    name: str,
    *,
    preset: str | None = None,
    chains: int | None = None,
    budget: int | None = None,
    starts: int | None = None,
    learning_rate: float | None = None,
) -> Method:
    """The method of that name, with those of the settings that it takes.

    "paper" is the published method; "adaptive" is this package's own, and "adaptive-polish" is the
    same, judged by the best fits found from its samples; the others are
    `cogen_fast.methods.baselines`.

    Args:
        preset: for "paper", one of `cogen_fast.PRESETS`.
        chains: the number of chains for each image (None: that of the method or preset).
        budget: the most gradients for each chain: "paper" takes as many temperatures as it allows,
            optimisers as many steps; "sir" takes none (None: the method's own number).
        starts: the number of prior draws of the multi-starts and of "sir" (None: 5,000).
        learning_rate: the learning rate of an optimiser; None: to be tuned.

    Raises ValueError naming the argument.
    """
    check_choice("methods", name, METHODS)
    options: dict[str, Any] = {"chains": None if chains is None else check_count("chains", chains)}
    if budget is not None:
        check_count("budget", budget)
    if learning_rate is not None:
        if not descends(name):
            raise ValueError(
                f"learning_rates: expected none for {name}, which has no learning rate, got "
                f"{shown(learning_rate)}"
            )
        options["learning_rate"] = check_number("learning_rates", learning_rate, above=0.0)
    if name == "paper":
        options |= {"preset": preset, "ais_steps": _temperatures(preset, budget)}
        return _method(name, "paper", options)
    if name in ("adaptive", "adaptive-polish"):
        options["budget"] = budget
        if name == "adaptive-polish":
            options["polish"] = POLISH if budget is None else budget // 4
        return _method(name, "adaptive", options)
    if descends(name):
        options["steps"] = budget
    if draws_many(name):
        options["starts"] = None if starts is None else check_count("starts", starts)
    return _method(name, name, options)


def _temperatures(preset: str | None, budget: int | None) -> int | None:
    if budget is None:
        return None
    steps = (DEFAULTS if preset is None else find_preset(preset)).leapfrog_steps
    return max(1, budget // steps)


def _method(name: str, solver: str, options: dict[str, Any]) -> Method:
    return Method(name, solver, {key: value for key, value in options.items() if value is not None})

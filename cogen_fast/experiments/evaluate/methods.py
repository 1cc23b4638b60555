"""The methods that are compared, by name: the paper's, the adaptive one, and the baselines."""

from __future__ import annotations

from typing import Any

from cogen_fast.experiments.evaluate.evaluate import Method
from cogen_fast.methods.baselines import BASELINES, descends, draws_many
from cogen_fast.methods.presets import DEFAULTS, find_preset
from cogen_fast.support.arguments import check_choice, check_count, check_number, shown

METHODS = ("ais", "adaptive", "adaptive-polish", *BASELINES)
POLISH = 500
"""Gradients of "adaptive-polish" at the end, or with a budget a quarter of it."""


def method_named(
    name: str,
    *,
    preset: str | None = None,
    chains: int | None = None,
    budget: int | None = None,
    starts: int | None = None,
    learning_rate: float | None = None,
) -> Method:
    """The method of that name, with what it takes of the settings.

    "ais" is the published algorithm, "adaptive" this package's own, "adaptive-polish" the same by
    the best fits found from its samples; the others are `cogen_fast.methods.baselines`.

    Args:
        preset: of "ais", one of `cogen_fast.PRESETS`.
        chains: images drawn for each image (the method's or the preset's own number).
        budget: most gradients for each of them: "ais" takes as many temperatures as it allows, the
            optimisers as many steps; "sir" takes none (the methods' own).
        starts: prior draws of the multi-starts and of "sir" (5,000).
        learning_rate: of an optimiser; None: to be tuned.

    Raises ValueError naming the argument.
    """
    check_choice("methods", name, METHODS)
    options: dict[str, Any] = {"chains": None if chains is None else check_count("chains", chains)}
    if budget is not None:
        check_count("budget", budget)
    if learning_rate is not None:
        if not descends(name):
            raise ValueError(
                f"learning_rates: expected none for {name}, which takes no such steps, got "
                f"{shown(learning_rate)}"
            )
        options["learning_rate"] = check_number("learning_rates", learning_rate, above=0.0)
    if name == "ais":
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

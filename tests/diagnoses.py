"""Inputs of a diagnosis: those of a healthy run, and each change that gives one sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cogen_fast.results.diagnostics import DiagnosticInputs


def healthy() -> DiagnosticInputs:
    """Two observations of two islands, 16 particles, ten temperatures, four of them at beta = 1."""
    energy = torch.linspace(40.0, 1.0, 10)
    energy[6:] = 1.0
    return DiagnosticInputs(
        complete=True,
        stopped=None,
        adaptive=True,
        independent=False,
        budgeted=True,
        annealed=True,
        populations=1,
        islands=2,
        compared=2,
        latents=torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0)),
        residual=torch.tensor([1.0, 0.5]),
        effective_sample_size=None,
        error_unknown=torch.tensor([False, False]),
        evidence_lead=torch.tensor([7.9, 0.0]),
        particles=8,
        acceptance=torch.full((10, 4), 0.75),
        energies=torch.linspace(0.0, 2.0, 16).repeat(2, 1),
        energy_std=torch.full((10, 4), 0.6),
        energy_history=energy[:, None].repeat(1, 4),
        non_finite=torch.zeros(2, 16, dtype=torch.int64),
        moves=20,
        oversized_steps=torch.zeros(4, dtype=torch.bool),
        rounds=torch.full((4,), 4),
        rounds_missing=torch.zeros(4, dtype=torch.int64),
        at_low_bound=torch.tensor([False, False]),
        at_high_bound=torch.tensor([False, False]),
    )


def changed(values: Tensor, row: Any, column: int, value: float) -> Tensor:
    values = values.clone()
    values[row, column] = value
    return values


def apart() -> Tensor:
    """Latents of two islands; those of observation 1 lie apart in one coordinate."""
    latents = healthy().latents.clone()
    latents[1, 8:, 2] += 5.0
    return latents


SICK: dict[str, tuple[dict[str, Any], str]] = {
    "unfinished": (
        {"complete": False, "stopped": "Ctrl-C ended the run."},
        "unfinished, .*: Ctrl-C ended the run.",
    ),
    "independent": (
        {"independent": True},
        "independent chains: .*mode probabilities are not reliable.*chains=16 or a larger budget",
    ),
    "budget": (
        {"oversized_steps": torch.tensor([False, False, False, True])},
        r"budget ended the run early \(observation 1\).*larger budget",
    ),
    "no-moves": (
        {"moves": 0, "rounds_missing": torch.tensor([7, 7, 7, 7])},
        "no moves: .*prior's draws.*larger budget",
    ),
    "rounds": (
        {"rounds_missing": torch.tensor([0, 0, 0, 3])},
        r"budget ended the run early \(observation 1\): 3 rounds .*larger budget.*counts for all",
    ),
    "far": (
        {"residual": torch.tensor([1.0, 7.25])},
        r"far from x_obs \(observation 1\): .* 7.25 noise_std .*scale of x_obs",
    ),
    "islands": (
        {"latents": apart()},
        r"islands disagree: R-hat .* is \d.* \(observation 1\).*larger budget.*weighted=True",
    ),
    "islands-without-budget": (
        {"latents": apart(), "budgeted": False},
        r"islands disagree: .*give more chains or moves \(hmc_steps\)",
    ),
    "unequal": (
        {"evidence_lead": torch.tensor([0.0, 8.6])},
        r"islands are unequal \(observation 1\): .* 9 nats above the other one.*larger budget",
    ),
    "unequal-without-budget": (
        {"evidence_lead": torch.tensor([11.0, 8.6]), "budgeted": False, "islands": 4},
        r"unequal \(observation 0, .* 11 nats above the median.*more chains or populations.*True",
    ),
    "acceptance": (
        {"acceptance": changed(healthy().acceptance, slice(6, 10), 0, 0.05)},
        r"acceptance too low: it is 0.05 at the end \(observation 0\), .*larger budget",
    ),
    "acceptance-paper": (
        {
            "acceptance": changed(healthy().acceptance, slice(6, 10), 2, 0.0),
            "adaptive": False,
        },
        r"acceptance too low: it is 0.00 .*observation 1.*ais_steps.*method='adaptive'",
    ),
    "energies": (
        {"energy_history": changed(healthy().energy_history, slice(6, 8), 2, 3.0)},
        r"energies not settled.*observation 1",
    ),
    "weights": (
        {"effective_sample_size": torch.tensor([1.2, 12.0]), "adaptive": False},
        r"weights collapsed: an effective sample size of 1.2 of 16 \(observation 0\) .*ais_steps",
    ),
    "evidence": (
        {"error_unknown": torch.tensor([False, True])},
        r"evidence not known \(observation 1\): .*samples need not be wrong.*larger budget",
    ),
    "evidence-without-budget": (
        {"error_unknown": torch.tensor([True, True]), "budgeted": False},
        r"evidence not known \(observation 0, observation 1\): .*populations=8, more chains",
    ),
    "noise-low": (
        {"at_low_bound": torch.tensor([False, True])},
        r"noise at its bound: .* low end .*\(observation 1\): .*UnknownNoise with a smaller low",
    ),
    "noise-high": (
        {"at_high_bound": torch.tensor([True, False])},
        r"noise at its bound: .* high end .*\(observation 0\): .*UnknownNoise with a larger high",
    ),
    "non-finite": (
        {"non_finite": torch.full((2, 16), 2, dtype=torch.int64)},
        "non-finite proposals: 10% .*step_size",
    ),
}
"""What is changed in `healthy`, and a pattern of the sentence that follows."""

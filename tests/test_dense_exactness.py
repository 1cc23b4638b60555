"""Whole runs in C++ of a generator of one layer, whose posterior and evidence have closed forms.

Bounds are five standard errors of the estimates themselves.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cogen_fast import AdaptationRule, Result, cogenerate
from cogen_fast.methods.settings import keywords
from cogen_fast.problem.problem import prepared
from cogen_fast.sampler import ais, dense
from cogen_fast.sampler.schedule import Sigmoid
from cogen_fast.sampler.step_size import StepSizeState
from cogen_fast.sampler.weights import log_mean_weight

pytestmark = pytest.mark.usefixtures("one_thread")

F64, D, NOISE = torch.float64, 3, 0.4
MASK = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1])
SEEN = MASK.bool()
X = torch.tensor([0.4, -1.0, math.nan, 0.9, 0.2, math.nan, -0.3, 1.1], dtype=F64)


def layer() -> nn.Linear:
    """``x = A z + b``, eight entries of three latents."""
    net, random = nn.Linear(D, len(X)).double(), torch.Generator().manual_seed(2)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=random, dtype=F64)
    return net


def run(**changes: Any) -> Result:
    options: dict[str, Any] = {"noise_std": NOISE, "seed": 4, "progress": False} | changes
    result = cogenerate(layer(), X, MASK, **keywords({"backend": "fused", **options}))
    assert result.settings["backend"] == "fused"
    return result


def posterior() -> tuple[Tensor, Tensor]:
    """Mean and covariance of the latents."""
    a, b = layer().weight.detach()[SEEN], layer().bias.detach()[SEEN]
    covariance = torch.linalg.inv(torch.eye(D, dtype=F64) + a.T @ a / NOISE**2)
    return covariance @ a.T @ (X[SEEN] - b) / NOISE**2, covariance


def log_evidence() -> float:
    a, b = layer().weight.detach()[SEEN], layer().bias.detach()[SEEN]
    marginal = a @ a.T + NOISE**2 * torch.eye(len(b), dtype=F64)
    return float(torch.distributions.MultivariateNormal(b, marginal).log_prob(X[SEEN]))


def moments(latents: Tensor) -> Tensor:
    """First and second moments of each chain minus their expectations, with means of 0."""
    mean, covariance = posterior()
    centred = latents - mean
    products = centred[:, :, None] * centred[:, None, :] - covariance
    return torch.cat([centred, products.flatten(1)], dim=1)


def worst_moment(latents: Tensor, log_weights: Tensor) -> float:
    """The largest weighted moment, in standard errors.

    By the delta method the variance of a weighted mean is sum w^2 (f - mean)^2.
    """
    w, values = torch.softmax(log_weights, 0)[:, None], moments(latents)
    found = (w * values).sum(0)
    return float((found.abs() / (w**2 * (values - found) ** 2).sum(0).sqrt()).max())


def evidence_error(log_weights: Tensor) -> float:
    """Standard error of the log mean weight."""
    w = torch.softmax(log_weights, 0)
    return math.sqrt(float((w * w).sum()) - 1.0 / len(w))


@pytest.mark.parametrize("adaptation", ["published", "per-chain"])
@pytest.mark.parametrize("form", [{}, {"hmc_steps": 2, "leapfrog_steps": 3}], ids=["M=1", "M=2"])
def test_the_published_method(form: dict[str, int], adaptation: str) -> None:
    how: dict[str, Any] = {"leapfrog_steps": 5, "step_size": 0.1, "adaptation": adaptation, **form}
    result = run(method="paper", chains=4000, ais_steps=60, **how)
    assert result.log_weights is not None and result.log_evidence is not None
    assert worst_moment(result.latents[0], result.log_weights[0]) <= 5.0
    error = evidence_error(result.log_weights[0])
    assert error < 0.05
    assert abs(result.log_evidence.item() - log_evidence()) <= 5.0 * error


BETAS = Sigmoid().betas(100)
QUICK = AdaptationRule(0.9, 0.5, 1.3, 0.7, maximum=1.0)


def annealed(
    rule: AdaptationRule | None, step_sizes: tuple[float, float] | None = None
) -> ais.AISState:
    """A run of 20,000 chains, whose step sizes begin between ``step_sizes`` if these are given."""
    chains, moves = 20_000, ais.Moves(leapfrog_steps=3, adaptation=rule)
    with prepared(layer(), X, MASK, noise_std=NOISE, whole_runs=True) as found:
        assert found.dense is not None
        state = ais.init(
            found.potential, moves, chains=chains, step_size_start=0.1, seed=7, **found.how()
        )
        if step_sizes is not None:
            random = torch.Generator().manual_seed(1)
            own = torch.empty(1, chains, dtype=F64).uniform_(*step_sizes, generator=random)
            state = replace(state, adaptation=StepSizeState(own, torch.full_like(own, 0.65)))
        history = ais.History.empty(len(BETAS), state, False)
        return dense.ais_run(found.dense, BETAS, moves, ais.Run(state, history, 0)).state


def evidence_score(state: ais.AISState) -> float:
    """The excess of the log evidence, in standard errors."""
    assert state.log_weights is not None
    constant = -0.5 * int(SEEN.sum()) * math.log(2 * math.pi * NOISE**2)
    found = log_mean_weight(state.log_weights).item() + constant
    return (found - log_evidence()) / evidence_error(state.log_weights[0])


def test_fixed_step_sizes_of_chains_bias_nothing() -> None:
    state = annealed(None, (0.02, 0.4))
    assert state.adaptation.per_chain and state.log_weights is not None
    assert abs(evidence_score(state)) <= 5.0
    assert worst_moment(state.hmc.latents[0], state.log_weights[0]) <= 5.0


@pytest.mark.slow
def test_quick_adaptation_biases_the_evidence_where_it_is_each_chains_own() -> None:
    """As the documentation says, a shared step size that adapts as quickly gives no bias."""
    assert abs(evidence_score(annealed(QUICK))) <= 5.0
    assert evidence_score(annealed(replace(QUICK, per_chain=True))) > 10.0

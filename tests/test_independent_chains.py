"""Independent chains: too few to be a population, tempered by each one's own energies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from annealed import F64, INDEPENDENT, ROUNDING, LinearGaussian, begun, sample
from runs import both_backends

from cogen_fast.sampler import hmc, independent_chains, smc
from cogen_fast.sampler.annealing_plan import Annealing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@both_backends
def test_independent_chains_follow_their_own_energies(backend: str) -> None:
    target, annealing = LinearGaussian(sigma=0.2), Annealing(target_cess=0.8, hmc_steps=1)
    how: dict[str, Any] = {"latent_size": 3, "observations": 2, "dtype": F64, "seed": 3}
    run = smc.run(
        target, annealing, chains=3, keep_trace=True, backend=backend, **INDEPENDENT, **how
    )
    assert run.trace is not None
    drawn = hmc.init(target, chains=16, backend=backend, **how)
    assert torch.equal(run.trace[0], drawn.latents[:, :3])
    mean = drawn.energy[:, :3].numpy()
    variance = drawn.energy.numpy().var(-1, ddof=1, keepdims=True).repeat(3, -1)
    c, beta = math.sqrt(-math.log(0.8)), np.zeros(2)
    increments = 0
    for t, info in enumerate(run.infos):
        assert not info.choice.resampled.any()
        assert torch.equal(info.ancestors, torch.arange(3).expand(2, -1))
        beta = np.minimum(beta + c / np.sqrt(variance.mean(-1)), 1.0)
        moving = info.choice.active.numpy()
        np.testing.assert_allclose(info.choice.beta.numpy()[moving], beta[moving], rtol=1e-9)
        increments += int((beta < 1.0).sum())
        change = target.energy(run.trace[t + 1]).numpy() - mean
        mean = mean + 0.2 * change
        variance = 0.8 * (variance + 0.2 * change**2)
    assert increments > 20
    assert torch.equal(run.state.roots, torch.arange(3).expand(2, -1))
    assert (run.state.resamplings == 0).all()
    moved = sum(info.choice.leapfrog_steps * info.choice.hmc_steps for info in run.infos)
    assert run.state.spent == 1 + moved
    # 16 scored prior draws are shared by 3 chains: 16 / 3, rounded up
    assert run.state.forwards == 6
    # Too few chains to estimate a mass.
    assert all(info.choice.inverse_mass is None for info in run.infos)


@pytest.mark.slow
def test_independent_chains_reach_the_posterior() -> None:
    # 400 independent runs have two chains each. Such chains are not exact, because they tune
    # themselves. Means may be off by a tenth of a posterior deviation and variances by 15 %, beside
    # four standard errors of the mean over runs.
    target = LinearGaussian(sigma=0.2)
    run = sample(target, Annealing(target_cess=0.8), chains=2, observations=400, **INDEPENDENT)
    z = target.standardised(run.state.hmc.latents)
    for values, expected, slack in ((z, 0.0, 0.1), (z**2, 1.0, 0.15)):
        each = values.mean(1)
        errors = each.std(0) / math.sqrt(400)
        assert ((each.mean(0) - expected).abs() <= slack + 4.0 * errors).all()
        assert (errors < 0.1).all()


@pytest.mark.parametrize(
    ("chains", "starts", "drawn"), [(3, 16, 16), (3, 5, 5), (3, 2, 3), (1, 1, 1)]
)
def test_the_chains_are_the_first_of_their_starts(chains: int, starts: int, drawn: int) -> None:
    target = LinearGaussian()
    how: dict[str, Any] = {"observations": 2}
    state = begun(target, chains=chains, starts=starts, **INDEPENDENT, **how)
    all_drawn = hmc.init(target, chains=drawn, latent_size=3, dtype=F64, seed=3, **how)
    assert torch.equal(state.hmc.latents, all_drawn.latents[:, :chains])
    torch.testing.assert_close(state.hmc.energy, all_drawn.energy[:, :chains], **ROUNDING)
    torch.testing.assert_close(state.hmc.grad, all_drawn.grad[:, :chains], **ROUNDING)
    assert (state.spent, state.forwards) == (1, math.ceil(drawn / chains))
    assert target.scored == 2 * drawn
    assert state.spread is not None
    # A single energy has no variance, and its square is taken.
    spread = all_drawn.energy.var(-1, keepdim=True) if drawn > 1 else all_drawn.energy**2
    torch.testing.assert_close(state.spread.variance, spread.expand(-1, chains), **ROUNDING)


def test_the_spread_of_energies_by_hand() -> None:
    drawn = torch.tensor([[1.0, 2.0, 6.0, 3.0]], dtype=F64)
    spread = independent_chains.init(drawn, 2)
    assert spread.mean.tolist() == [[1.0, 2.0]]
    assert spread.variance[0].tolist() == pytest.approx([14.0 / 3.0] * 2)
    energy = torch.tensor([[2.0, 0.0]], dtype=F64)
    after = independent_chains.update(spread, energy, torch.tensor([True]))
    still = independent_chains.update(spread, energy, torch.tensor([False]))
    assert torch.equal(still.mean, spread.mean)
    assert torch.equal(still.variance, spread.variance)
    assert after.mean[0].tolist() == pytest.approx([1.2, 1.6])
    assert after.variance[0].tolist() == pytest.approx(
        [0.8 * (14.0 / 3.0 + 0.2), 0.8 * (14.0 / 3.0 + 0.8)]
    )
    sd = math.sqrt(float(after.variance.mean()))
    assert independent_chains.deviation(after).item() == pytest.approx(sd)
    kept, beta = torch.tensor([0.5], dtype=F64), torch.tensor([0.1], dtype=F64)
    step = math.sqrt(math.log(2.0)) / sd
    assert independent_chains.next_beta(after, beta, kept).item() == pytest.approx(0.1 + step)
    assert independent_chains.next_beta(after, 0.9 + beta, kept).item() == 1.0
    assert independent_chains.next_beta(after, beta, 0.0 * kept).item() == 1.0

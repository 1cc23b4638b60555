"""``method="adaptive"`` through the front door: shapes, evidence, refusals, polish, checkpoints."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Failing, assert_same, both_backends, network
from torch import Tensor, nn

from cogen_fast import Operator, Result, cogenerate
from cogen_fast.methods import fits
from cogen_fast.methods.adaptive import AdaptivePlan
from cogen_fast.methods.loop import Outcome
from cogen_fast.methods.settings import keywords
from cogen_fast.ops.philox import NoiseStream, Purpose, uniforms
from cogen_fast.problem.problem import prepared
from cogen_fast.sampler import hmc, pool, smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.tuning import LADDER

pytestmark = pytest.mark.usefixtures("one_thread")

MASK = np.array([1, 1, 0, 1, 0])
F64 = torch.float64


def x_obs(batch: int = 2) -> Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(1))


def run(generator: Any = None, batch: int = 2, **changes: Any) -> Result:
    arguments: dict[str, Any] = {"noise_std": 0.3, "seed": 4, "progress": False}
    arguments |= {"x_obs": x_obs(batch), "mask": MASK} | changes
    return cogenerate(network() if generator is None else generator, **keywords(arguments))


@cache
def once(**changes: Any) -> Result:
    """A run that several tests examine."""
    return run(**changes)


def linear(dtype: torch.dtype = F64) -> nn.Linear:
    """``x = A z + b``, five entries of three latents."""
    net = nn.Linear(3, 5).to(dtype)
    random = torch.Generator().manual_seed(2)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=random, dtype=F64).to(dtype)
    return net


LINEAR_X, NOISE = torch.tensor([0.4, -1.0, math.nan, 0.9, math.nan], dtype=F64), 0.4


def linear_run(**changes: Any) -> Result:
    arguments: dict[str, Any] = {"noise_std": NOISE, "seed": 4, "progress": False}
    arguments |= {"x_obs": LINEAR_X, "mask": MASK} | changes
    return cogenerate(linear(), **keywords(arguments))


def log_evidence_of_the_linear_model() -> float:
    a, b = linear().weight.detach()[[0, 1, 3]], linear().bias.detach()[[0, 1, 3]]
    marginal = a @ a.T + NOISE**2 * torch.eye(3, dtype=F64)
    law = torch.distributions.MultivariateNormal(b, marginal)
    return float(law.log_prob(LINEAR_X[[0, 1, 3]]))


# --- shapes ---------------------------------------------------------------------------------------


def expected_shapes(b: int, r: int, n: int, particles: int, t: int) -> dict[str, tuple[int, ...]]:
    chains, rows = (b, r * n), b * max(r, 2)  # a single population is two islands
    return {
        "images": (*chains, 5),
        "completed": (*chains, 5),
        "latents": (*chains, 4),
        "energies": chains,
        "log_weights": chains,
        "log_normaliser": (b,),
        "log_normaliser_error": (b,),
        "log_evidence": (b,),
        "roots": chains,
        "surviving_roots": (rows,),
        "betas": (t, rows),
        "acceptance": (t, rows),
        "step_size": (t, rows),
        "energy_history": (t, rows),
        "energy_std": (t, rows),
        "leapfrog_steps": (t,),
        "hmc_steps": (t,),
        "non_finite": chains,
        "oversized_steps": (rows,),
        "rounds": (rows,),
        "x_obs": (b, 5),
        "observed": (b, 5),
        "trace": (t + 1, b, r * particles, 4),
        "frames": (min(t + 1, 40), b, 6, 5),
        "frame_steps": (min(t + 1, 40),),
    }


@pytest.mark.slow
@pytest.mark.parametrize("evidence", ["consistent", "frozen"])
@pytest.mark.parametrize("chains", [1, 5, 16, 19])
@pytest.mark.parametrize(("batch", "populations"), [(1, 1), (2, 3)], ids=["1x1", "2x3"])
def test_every_field_has_its_shape(
    batch: int, populations: int, chains: int, evidence: Any
) -> None:
    how: dict[str, Any] = {"populations": populations, "chains": chains, "evidence": evidence}
    result = run(batch=batch, keep_trace=True, target_cess=0.8, **how)
    temperatures = len(result.betas)
    particles = 20 if (chains, populations) == (19, 1) else max(chains, 16)
    shapes = expected_shapes(batch, populations, chains, particles, temperatures)
    found = {
        f.name: tuple(getattr(result, f.name).shape)
        for f in fields(Result)
        if isinstance(getattr(result, f.name), Tensor)
    }
    assert found == shapes
    assert result.complete
    assert result.beta_reached == 1.0
    assert result.settings["particles"] == particles
    assert result.settings["islands"] == max(populations, 2)
    for name in ("energies", "log_weights", "log_normaliser", "betas", "acceptance", "step_size"):
        assert getattr(result, name).dtype is F64
    energy = ((result.images - result.x_obs[:, None]) ** 2 * torch.from_numpy(MASK)).sum(-1)
    torch.testing.assert_close(
        result.energies, energy.double() / (2 * 0.3**2), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(result.images, network()(result.latents).detach())


@pytest.mark.slow
def test_without_a_method_the_run_is_adaptive() -> None:
    result = once()
    assert_same(result, run(method="adaptive"))
    assert result.settings["method"] == "adaptive"
    assert result.latents.shape == (2, 16, 4)


@pytest.mark.slow
def test_given_settings_are_used() -> None:
    result = run(
        target_cess=0.8, mass="identity", leapfrog_steps=5, hmc_steps=2, step_size=0.07, budget=900
    )
    assert set(result.leapfrog_steps.tolist()) == {5}
    assert set(result.hmc_steps.tolist()) == {2}
    assert result.gradients == 1 + 10 * len(result.betas)
    chosen = {k: result.settings[k] for k in ("target_cess", "mass", "leapfrog_steps", "hmc_steps")}
    assert chosen == {"target_cess": 0.8, "mass": "identity", "leapfrog_steps": 5, "hmc_steps": 2}
    # The first move is made with the step size given; a second would have an updated one.
    first = run(target_cess=0.8, leapfrog_steps=5, hmc_steps=1, step_size=0.07, budget=400)
    assert first.step_size[0].tolist() == pytest.approx([0.07] * 4, rel=1e-12)
    free = once()
    assert set(free.leapfrog_steps.tolist()) <= set(LADDER)
    assert len(run(target_cess=0.99).betas) > len(free.betas)


@pytest.mark.slow
@both_backends
def test_betas_rise_to_one_and_stay(backend: str) -> None:
    result = run(populations=2, backend=backend)
    betas = result.betas
    assert (betas[0] > 0.0).all()
    assert (betas.diff(dim=0) >= 0.0).all()
    assert (betas[-1] == 1.0).all()
    moving = result.acceptance.isfinite()
    assert ((betas == 1.0) & moving).sum(0).tolist() == [Annealing().final_rounds] * 4
    assert (~moving).any()
    assert torch.equal(moving, result.energy_history.isfinite())
    assert (moving.double().diff(dim=0) <= 0.0).all()  # finished rows stay finished


# --- populations and chains -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("evidence", ["consistent", "frozen"])
def test_one_population_is_two_islands_of_half_its_particles(evidence: Any) -> None:
    # The results are equal except for the settings by which they were asked for.
    how: dict[str, Any] = {"evidence": evidence, "keep_trace": True}
    one, two = run(chains=32, **how), run(chains=16, populations=2, **how)
    assert_same(one, two, but=("settings",))
    changed = {"chains": 32, "populations": 1, "particles": 32}
    assert one.settings == two.settings | changed
    assert one.settings["islands"] == 2


@pytest.mark.slow
def test_populations_of_an_observation_are_neighbouring_rows() -> None:
    result = run(batch=3, populations=2, chains=16, keep_trace=True)
    assert result.trace is not None
    for row in range(3):
        # An observation begins from the same draws whatever is beside it in the batch.
        alone = run(
            x_obs=x_obs(3)[row : row + 1], populations=2, keep_trace=True, observation_ids=[row]
        )
        assert alone.trace is not None
        assert torch.equal(result.trace[0, row], alone.trace[0, 0])
    # A root is the index of a prior draw among all draws of its observation.
    pool = 16 * 64
    assert result.settings["draws"] == 2 * pool
    for r in range(2):
        roots = result.roots[:, 16 * r : 16 * (r + 1)]
        assert (roots // pool == r).all()
        survivors = [len(set(row.tolist())) for row in roots]
        assert result.surviving_roots[r::2].tolist() == survivors


def index_of(latents: Tensor, among: Tensor) -> list[int]:
    """The index of the first row of ``among`` that equals each row of ``latents``."""
    equal = (latents[:, None] == among[None]).all(-1)
    assert equal.any(-1).all()
    return equal.double().argmax(-1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("chains", [1, 3, 5, 15])
def test_returned_chains_are_spread_over_the_particles(chains: int) -> None:
    result = run(batch=1, populations=2, chains=chains, keep_trace=True)
    assert result.trace is not None
    for r in range(2):
        particles = result.trace[-1, 0, 16 * r : 16 * (r + 1)]
        assert len(particles.unique(dim=0)) == 16
        mine = result.latents[0, chains * r : chains * (r + 1)]
        where = index_of(mine, particles)
        steps = np.diff(where)
        assert (steps >= math.floor(16 / chains)).all()
        assert (steps <= math.ceil(16 / chains)).all()
        assert result.energies[0, chains * r : chains * (r + 1)].tolist() == pytest.approx(
            (((network()(mine) - x_obs(1)) ** 2 * torch.from_numpy(MASK)).sum(-1) / 0.18).tolist(),
            rel=1e-3,
        )


@pytest.mark.parametrize("chains", [1, 3, 7])
def test_every_particle_has_the_same_chance_to_be_returned(chains: int) -> None:
    # 4,000 populations draw a uniform each. A particle is taken with probability p = chains / 16,
    # so that its count is binomial with a standard deviation of sqrt(4000 p (1 - p)); the bound is
    # five of these.
    count, p = 4000, chains / 16
    plan = AdaptivePlan(
        chains=chains, populations=count, annealing=Annealing(), budget=None, evidence="consistent",
        step_size=None, seed=0, keep_trace=False, max_batch=None,
    )  # fmt: skip
    state = smc.init(lambda z: z.sum(-1), chains=16, islands=count, draws=1, latent_size=1, seed=9)
    chosen = plan.chosen(state, "native")
    assert chosen.shape == (count, chains)
    taken = torch.bincount(chosen.flatten(), minlength=16).double()
    assert taken.sum() == count * chains
    assert ((taken - count * p).abs() <= 5.0 * math.sqrt(count * p * (1.0 - p))).all()


def test_the_choice_of_chains_shares_no_draw_with_the_resampling() -> None:
    # This matters where the last temperature resampled and the budget left no move after it.
    stream = NoiseStream(0, torch.tensor([5]), torch.tensor([0]))
    drawn = {purpose: uniforms(stream, purpose, 1, F64).item() for purpose in Purpose}
    assert len(set(drawn.values())) == len(Purpose)


# --- estimates ------------------------------------------------------------------------------------


@pytest.mark.slow
@both_backends
def test_evidence_of_a_linear_model(backend: str) -> None:
    # With frozen choices the mean of 400 populations' normalisers is unbiased. Its standard error
    # is their standard deviation over sqrt(400) = 20.
    frozen = linear_run(
        populations=400, chains=16, evidence="frozen", target_cess=0.7, backend=backend
    )
    exact = log_evidence_of_the_linear_model()
    assert frozen.log_evidence is not None
    assert frozen.log_weights is not None
    each = frozen.log_weights[0].reshape(400, 16).logsumexp(-1)
    ratios = (each - each.max()).exp()
    error = float(ratios.std() / ratios.mean() / 20.0)
    assert error < 0.05
    assert abs(frozen.log_evidence.item() - exact) <= 4.0 * error


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"populations": 4}], ids=["one", "four"])
def test_the_exact_evidence_is_within_two_errors(how: dict[str, Any]) -> None:
    # If the error bars covered with a probability of 90 %, 167 or more of 200 repetitions would be
    # covered for all but 1e-3 of seeds.
    x = LINEAR_X.expand(200, -1)
    result = linear_run(x_obs=x, **how)
    error = result.log_normaliser_error
    assert result.log_evidence is not None
    assert error is not None
    assert error.isfinite().all()
    gap = result.log_evidence - log_evidence_of_the_linear_model()
    assert (gap.abs() <= 2.0 * error).sum() >= 167
    # Errors that are far too large would cover, too. The standard deviation of 200 gaps is known to
    # 5 %, so that it can bound them.
    assert error.median() < 2.0 * gap.std()


def easy_and_hard(**changes: Any) -> Result:
    """Two observations; the budget is much too small for the noise of the second."""
    noise = torch.tensor([[1.0], [0.001]], dtype=F64)
    return linear_run(
        **{"x_obs": LINEAR_X.expand(2, -1), "noise_std": noise, "budget": 60} | changes
    )


def test_an_unknown_error_is_none_with_the_reason() -> None:
    unknown = easy_and_hard(x_obs=LINEAR_X, noise_std=0.001)
    assert unknown.log_normaliser_error is None
    assert unknown.log_normaliser is not None
    assert "too much for its own error" in unknown.reasons["log_normaliser_error"]
    assert any(line.startswith("evidence not known: ") for line in unknown.diagnose())
    assert "no log normaliser error: The estimate scatters" in repr(unknown)
    known = linear_run()
    assert known.log_normaliser_error is not None
    assert "log_normaliser_error" not in known.reasons


def test_an_error_that_is_unknown_for_some_observations_is_nan_there() -> None:
    result = easy_and_hard()
    assert result.log_normaliser_error is not None
    assert result.log_normaliser_error.isnan().tolist() == [False, True]
    assert "too much for its own error" in result.reasons["log_normaliser_error"]
    told = [line for line in result.diagnose() if line.startswith("evidence not known")]
    assert len(told) == 1
    assert "(observation 1)" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_wrong_with_a_default_run_of_an_easy_problem(seed: int) -> None:
    assert linear_run(seed=seed).diagnose() == []


@pytest.mark.slow
def test_frozen_evidence_is_of_another_run_and_agrees() -> None:
    how: dict[str, Any] = {"populations": 30, "chains": 64, "target_cess": 0.8}
    consistent, frozen = (linear_run(evidence=e, **how) for e in ("consistent", "frozen"))
    assert consistent.log_evidence is not None
    assert frozen.log_evidence is not None
    assert (consistent.latents != frozen.latents).any()
    assert consistent.log_evidence.item() != frozen.log_evidence.item()
    # The second run repeats the choices of the first.
    for name in ("betas", "leapfrog_steps", "hmc_steps"):
        assert torch.equal(getattr(consistent, name), getattr(frozen, name))
    assert frozen.gradients == 2 * consistent.gradients
    assert any(note.startswith("The evidence is unbiased, ") for note in frozen.notes)
    assert any(note.startswith("The evidence is consistent, but not ") for note in consistent.notes)
    errors = []
    for result in (consistent, frozen):
        assert result.log_weights is not None
        each = result.log_weights[0].reshape(30, 64).logsumexp(-1)
        ratios = (each - each.max()).exp()
        errors.append(float(ratios.std() / ratios.mean()) / math.sqrt(30))
    gap = abs(consistent.log_evidence.item() - frozen.log_evidence.item())
    assert gap <= 4.0 * math.hypot(*errors)


@pytest.mark.slow
def test_the_second_run_has_another_seed_and_repeats_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[smc.Run] = []
    original = smc.run

    def kept(*arguments: Any, **named: Any) -> smc.Run:
        runs.append(original(*arguments, **named))
        return runs[-1]

    monkeypatch.setattr(smc, "run", kept)
    # The seed is so large that the other seed wraps around 2^64.
    result = run(evidence="frozen", seed=2**64 - 3, backend="native")
    pilot, again = runs
    assert pilot.repeats is None
    assert again.repeats == pilot.choices
    assert pilot.state.hmc.stream.seed == 2**64 - 3
    assert 0 <= again.state.hmc.stream.seed < 2**64
    assert again.state.hmc.stream.seed != pilot.state.hmc.stream.seed
    assert torch.equal(again.state.hmc.stream.observation, pilot.state.hmc.stream.observation)
    assert torch.equal(again.state.first_beta, pilot.state.first_beta)
    assert again.state.spent == 2 * pilot.state.spent
    assert again.state.forwards == 2 * pilot.state.forwards
    assert torch.equal(result.latents, again.state.hmc.latents.reshape(2, 16, 4))


class Counted(Failing):
    """A generator that counts the latents of gradients, and those that are only scored."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients = self.forwards = 0

    def forward(self, z: Tensor) -> Tensor:
        if z.requires_grad:
            self.gradients += len(z)
        else:
            self.forwards += len(z)
        return super().forward(z)


def counted(**how: Any) -> tuple[Result, int, int]:
    """A run, and the numbers of gradients and forwards of latents that it took."""
    generator = Counted()
    result = run(generator, **how)
    # The checks of G take gradients at four latents. Computing the outputs takes a forward of each
    # chain.
    checked = Counted()
    with prepared(checked, x_obs(len(result.energies)), MASK, noise_std=0.3):
        pass
    forwards = generator.forwards - checked.forwards - result.energies.numel()
    return result, generator.gradients - checked.gradients, forwards


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"chains": 16},
        {"chains": 40, "populations": 2},
        {"chains": 5},
        {"chains": 16, "evidence": "frozen"},
        {"chains": 3, "budget": 60},
        {"chains": 1, "budget": 16},
    ],
    ids=["16", "40x2", "5-of-16", "frozen", "independent", "one-independent"],
)
def test_gradients_and_forwards_are_counted_and_within_the_budget(how: dict[str, Any]) -> None:
    for budget in [how["budget"]] if "budget" in how else [4, 37, 150, 321]:
        result, gradients, forwards = counted(**how | {"budget": budget})
        populations = how.get("populations", 1)
        particles = 2 * populations * result.settings["particles"]
        assert gradients == particles * result.gradients
        # Independent chains share their starts, and the count per chain is rounded up.
        assert 0 <= particles * result.forwards - forwards < particles
        # A forward costs half a gradient. The odd forward of a particle may exceed the budget, once
        # in each run.
        chains, runs = 2 * populations * how["chains"], 2 if "evidence" in how else 1
        assert gradients + forwards // 2 <= budget * chains + runs * particles // 2
        assert result.cost == populations * result.settings["particles"] * (
            result.forwards + 2 * result.gradients
        )
        assert result.beta_reached == 1.0


@pytest.mark.parametrize("chains", [1, 2, 5, 15])
def test_the_smallest_budgets_of_independent_chains_are_kept(chains: int) -> None:
    # The chains share 16 starts, or an eighth of the budget where that is less, but have at least
    # one each.
    for budget in (1, 2, 3, 4, 7, 15, 16, 17, 23):
        result, gradients, forwards = counted(batch=1, chains=chains, budget=budget)
        assert forwards == min(16, max(budget * chains // 8, chains))
        assert gradients == chains * result.gradients
        # A chain needs a scored draw and a gradient at least, which cost one and a half gradients.
        assert gradients + forwards / 2 <= max(budget, 1.5) * chains
        assert result.beta_reached == 1.0
        assert result.latents.isfinite().all()
        moved = not any(line.startswith("no moves") for line in result.diagnose())
        assert moved == (budget > 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "draws"), [(None, 64), (1200, 256), (400, 100), (40, 16), (10, 14), (3, 2)]
)
def test_notes_and_settings_tell_of_the_prior_draws(budget: int | None, draws: int) -> None:
    # Without a budget there are 64 draws for each particle. With one, draws take seven tenths of
    # its forwards, but more than an eighth only up to 16 draws, and leave at least two gradients.
    result, _, forwards = counted(batch=1, chains=16, budget=budget)
    assert forwards == result.settings["draws"] == 16 * draws
    assert result.forwards == draws
    note = f"Each island drew its particles from {8 * draws} scored prior draws."
    assert note in result.notes


def test_two_runs_need_a_budget_of_two() -> None:
    result = run(batch=1, evidence="frozen", budget=2)
    assert result.gradients == 2
    with pytest.raises(ValueError, match=r"^budget: expected at least 2 .*got 1$"):
        run(batch=1, evidence="frozen", budget=1)


# --- independent chains ---------------------------------------------------------------------------


def test_few_chains_and_a_small_budget_run_alone() -> None:
    result = run(chains=3, budget=100, populations=2, keep_trace=True)
    assert result.settings["particles"] == 3
    assert result.latents.shape == (2, 6, 4)
    assert result.trace is not None
    assert result.trace.shape == (len(result.betas) + 1, 2, 6, 4)
    for name in ("log_weights", "log_normaliser", "log_normaliser_error", "log_evidence"):
        assert getattr(result, name) is None
        assert "fewer than 16 chains" in result.reasons[name]
    assert any("fewer than 16 chains" in note for note in result.notes)
    assert result.effective_sample_size is None
    with pytest.raises(ValueError, match=r"weighted: .*fewer than 16 chains"):
        _ = result.weights
    # Every chain keeps its own prior draw as its root; chains are the first of the 16 draws of
    # their population.
    assert result.settings["draws"] == 32
    assert result.roots.tolist() == [[0, 1, 2, 16, 17, 18]] * 2
    assert result.surviving_roots.tolist() == [3] * 4
    assert result.gradients <= 100
    assert result.beta_reached == 1.0
    assert "no log weights" in repr(result)
    assert result.mean().isfinite().all()


@pytest.mark.parametrize(
    ("chains", "budget", "independent"),
    [
        (15, 31, True), (15, 32, False), (1, 479, True), (1, 480, False), (16, 1, False),
        (1, None, False), (40, 3, False),
    ],
    ids=str,
)  # fmt: skip
def test_which_chains_run_independently(chains: int, budget: int | None, independent: bool) -> None:
    # A population needs sixteen particles with thirty gradients each: 480 for all chains together.
    plan = AdaptivePlan(
        chains=chains, populations=1, annealing=Annealing(), budget=budget, evidence="consistent",
        step_size=None, seed=0, keep_trace=False, max_batch=None,
    )  # fmt: skip
    assert plan.independent is independent
    assert plan.particles == (chains if independent else max(chains, 16))
    assert plan.islands == (1 if independent else 2)


@pytest.mark.slow
def test_fewer_chains_than_particles_are_noted() -> None:
    assert any("16 particles were run for 3 chains" in note for note in run(chains=3).notes)
    assert not any("particles were run" in note for note in run(chains=18).notes)


@pytest.mark.slow
def test_the_halves_of_a_population_are_equal() -> None:
    odd = run(chains=17)
    assert odd.settings["particles"] == 18
    assert any("18 particles were run for 17 chains" in note for note in odd.notes)
    assert run(chains=17, populations=2).settings["particles"] == 17


# --- refusals -------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "steps-with-adaptive": ({"method": "adaptive", "ais_steps": 10}, "ais_steps: .*'paper'.*10"),
    "steps-by-default": ({"ais_steps": 10}, "ais_steps: .*'paper'"),
    "schedule": ({"schedule": "linear"}, "schedule: .*'paper'.*'linear'"),
    "form": ({"form": "paper"}, "form: .*'paper'"),
    "adaptation": ({"adaptation": "per-chain"}, "adaptation: .*'paper'.*'per-chain'"),
    "preset-with-adaptive": ({"method": "adaptive", "preset": "celeba-128"}, "preset: .*'paper'"),
    **{
        f"{name}-with-paper": (
            {"method": "paper", name: value},
            f"{name}: .*'adaptive'.*{value!r}",
        )
        for name, value in {
            "budget": 100, "populations": 2, "evidence": "frozen", "target_cess": 0.5,
            "mass": "identity",
        }.items()
    },
    "budget-with-preset": ({"preset": "celeba-128", "budget": 100}, "budget: .*'adaptive'"),
    "frozen-independent-chains": (
        {"evidence": "frozen", "chains": 3, "budget": 50},
        "evidence: expected 16 chains or a budget of at least 320 beside polishing with 'frozen', "
        "got 3 chains and a budget of 50",
    ),
    "evidence": ({"evidence": "exact"}, "evidence: .*'consistent', 'frozen'.*'exact'"),
    **{
        f"target_cess-{v!r}": ({"target_cess": v}, f"target_cess: .*{v!r}")
        for v in (0.0, 1.0, -0.5, 2, "half", True)
    },
    "target_cess-nan": ({"target_cess": math.nan}, "target_cess: .*nan"),
    "mass": ({"mass": "full"}, "mass: .*'curvature', 'identity'.*'full'"),
    "ids-populations": (
        {"observation_ids": [2**32 // 3, 1], "populations": 3},
        r"observation_ids: expected numbers below 2\^32 / 3 islands, got 1431655765",
    ),
    "polish-all": ({"polish": 30, "budget": 30}, "polish: expected less than budget=30, got 30"),
    **{f"polish-{v!r}": ({"polish": v}, f"polish: .*{v!r}") for v in (-1, True, 2.5, "10", None)},
    **{f"chains-{v!r}": ({"chains": v}, f"chains: .*{v!r}") for v in (0, -1, 2.0, True)},
    **{f"populations-{v!r}": ({"populations": v}, f"populations: .*{v!r}") for v in (0, 1.5, True)},
    **{f"budget-{v!r}": ({"budget": v}, f"budget: .*{v!r}") for v in (0, -1, 1e3, True)},
    "seed": ({"seed": -1}, "seed: "),
    "step_size": ({"step_size": 0.0}, "step_size: "),
    "leapfrog_steps": ({"leapfrog_steps": 0}, "leapfrog_steps: "),
    "hmc_steps": ({"hmc_steps": 1.5}, "hmc_steps: .*1.5"),
    "ids": ({"observation_ids": [1, 1]}, "observation_ids: .*2 different"),
    "ids-too-large": ({"observation_ids": [1, 2**32]}, "observation_ids: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_settings_name_the_argument(name: str) -> None:
    changes, message = REFUSED[name]
    generator = Failing()
    with pytest.raises(ValueError, match=f"^{message}"):
        run(generator, **changes)
    assert generator.calls == 0 or name.startswith("ids")  # settings are refused before G is called


def test_settings_of_both_methods_are_accepted_by_both() -> None:
    assert run(leapfrog_steps=2, step_size=0.1, budget=60).complete
    assert run(method="paper", ais_steps=3, chains=2, hmc_steps=1, leapfrog_steps=2).complete


# --- polish ---------------------------------------------------------------------------------------


FITS = ("fit_images", "fit_latents", "fit_energies")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chains": 3, "budget": 80},
        {"evidence": "frozen", "populations": 2},
        {"method": "paper", "ais_steps": 5},
    ],
    ids=["default", "independent", "frozen", "paper"],
)
def test_fits_are_beside_the_samples_and_fit_better(how: dict[str, Any]) -> None:
    # The budget pays for polishing.
    more = {"budget": how["budget"] + 40} if "budget" in how else {}
    plain, polished = once(**how), run(polish=40, **how | more)
    shown = (*FITS, "gradients", "settings", "notes", "reasons")
    assert_same(polished, plain, but=shown)
    assert polished.fit_energies is not None and polished.fit_latents is not None
    # Fits start from the samples, in ascending order of their energies.
    started = plain.energies.sort(-1).values
    assert (polished.fit_energies <= started).all()
    assert (polished.fit_energies < started).double().mean() > 0.9
    assert polished.fit_energies.mean() < 0.7 * started.mean()
    torch.testing.assert_close(polished.fit_images, network()(polished.fit_latents).detach())
    assert polished.gradients == plain.gradients
    chains = plain.energies.shape[1]
    assert polished.cost == plain.cost + 2 * 40 * chains
    assert "Fits were made with 40 gradients of L-BFGS from every sample." in polished.notes
    assert polished.settings["polish"] == 40
    assert polished.settings["fits"] == chains
    assert polished.settings.get("budget") == more.get("budget")
    assert polished.diagnose() == plain.diagnose()


@pytest.mark.slow
def test_the_fit_and_the_estimate() -> None:
    plain, polished = once(), once(polish=20)
    assert polished.fit_images is not None and polished.fit_energies is not None
    for b, best in enumerate(polished.fit_energies.argmin(-1).tolist()):
        assert torch.equal(polished.fit[b], polished.fit_images[b, best])
    assert torch.equal(plain.estimate, plain.mean())
    assert torch.equal(plain.fit, plain.best_images)


@pytest.mark.slow
def test_fits_count_by_their_misfit_in_the_estimate() -> None:
    result = once(polish=20)
    images = torch.arange(3.0).reshape(1, 3, 1).expand(2, 3, 4)
    energies = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1e-12, 1.0]], dtype=F64)
    made = replace(result, fit_images=images, fit_energies=energies, energies=energies + 1e-3)
    expected = (1 / 4 + 2 / 16) / (1 + 1 / 4 + 1 / 16)
    assert made.estimate[0].tolist() == pytest.approx([expected] * 4, rel=1e-3)
    # All fits are far below the misfit of the samples here, so that they count as exact and have
    # equal weights.
    assert made.estimate[1].tolist() == pytest.approx([0.5] * 4, abs=1e-3)


@pytest.mark.slow
def test_fits_without_a_misfit_are_alike_in_the_estimate() -> None:
    with pytest.warns(UserWarning, match="mask: nothing is observed"):
        result = run(mask=np.zeros_like(MASK), polish=3)
    assert result.fit_images is not None
    torch.testing.assert_close(result.estimate, result.fit_images.mean(1))
    # A misfit of the user's own may have another least value than 0, so that its fits have equal
    # weights, too.
    offset = {"misfit": lambda a, b: ((a - b) ** 2).flatten(1).sum(1) - 3.0, "noise_std": None}
    result = run(polish=3, **offset)
    assert result.fit_images is not None
    torch.testing.assert_close(result.estimate, result.fit_images.mean(1))


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_smallest_budgets_have_no_fits(budget: int) -> None:
    result = run(batch=1, budget=budget, polish="auto")
    assert (result.fit_images is None) is (budget < 3)


@pytest.mark.parametrize("chains", [3, 16])
def test_fits_within_a_budget(chains: int) -> None:
    whole = 80 * chains
    result = run(batch=1, chains=chains, budget=80, polish="auto")
    made, independent = result.settings, chains < 16
    spent = made["polish"] * made["fits"] + made["fit_draws"] // 2
    share = 0.55 if independent else 0.4  # of so few gradients more go to a single deep fit
    assert share * whole - made["polish"] <= spent <= share * whole
    assert result.cost <= 2 * whole
    assert result.cost >= 0.9 * 2 * whole
    # A fit has at least 30 gradients.
    assert 30 <= made["polish"] < 60
    assert result.fit_energies is not None
    assert result.fit_energies.shape == (1, made["fits"])
    assert (made["fit_draws"] > 0) is independent
    assert any("of L-BFGS from " in note for note in result.notes)
    assert made["budget"] == 80


def test_a_deep_fit_has_more_of_a_small_budget() -> None:
    shares = {}
    for budget in (8, 15, 20, 40, 200):
        fitting, left = fits.planned("auto", budget, 16)
        assert fitting is not None and fitting.spend is not None and left is not None
        assert left == budget - -(-fitting.spend // 16)
        shares[budget] = fitting.spend / (16 * budget)
    # Fits are given 240 gradients if these are at most 11 / 20 of the budget, and two fifths of it
    # in any case.
    expected = {8: 70 / 128, 15: 132 / 240, 20: 176 / 320, 40: 256 / 640, 200: 0.4}
    assert shares == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_fits_begin_from_the_best_prior_draws_too(monkeypatch: pytest.MonkeyPatch) -> None:
    scored, started = [], []
    scores, lbfgs, outcome = pool.scores, fits.lbfgs, AdaptivePlan.outcome

    def watched_scores(*args: Any) -> Tensor:
        scored.append(scores(*args))
        return scored[-1]

    def watched_lbfgs(potential: Any, latents: Tensor, steps: int) -> Any:
        started.append((latents, potential.energy_and_grad(latents)[0]))
        return lbfgs(potential, latents, steps)

    monkeypatch.setattr(pool, "scores", watched_scores)
    monkeypatch.setattr(fits, "lbfgs", watched_lbfgs)
    result = run(batch=12, budget=8, polish="auto", noise_std=0.01)
    energy = started[0][1].double()
    drawn, sampled = scored[0].reshape(12, -1).amin(-1).double(), result.energies.amin(-1)
    torch.testing.assert_close(energy[:, 0], torch.minimum(drawn, sampled), rtol=1e-5, atol=0.0)
    assert (energy[:, 1] >= energy[:, 0] * (1.0 - 1e-6)).all()

    def lucky(*args: Any) -> Outcome:
        found = outcome(*args)
        assert found.best_draws is not None and found.best_energies is not None
        return replace(
            found,
            best_draws=torch.full_like(found.best_draws, 0.5),
            best_energies=torch.zeros_like(found.best_energies),
        )

    monkeypatch.setattr(AdaptivePlan, "outcome", lucky)
    run(batch=12, budget=8, polish="auto", noise_std=0.01)
    assert (started[1][0][:, 0] == 0.5).all()
    # Where all samples are fitted, prior draws are not used.
    run(batch=12, polish=3)
    assert not (started[2][0] == 0.5).any()


@pytest.mark.slow
def test_fits_without_a_budget_take_an_eighth_of_the_run() -> None:
    plain, polished = once(), run(polish="auto")
    assert polished.settings["polish"] == max(30, plain.gradients // 8)
    assert polished.settings["fits"] == 16


@pytest.mark.slow
def test_what_is_observed_is_pasted_into_an_estimate() -> None:
    result = once(polish=5)
    pasted, observed = result.pasted(result.estimate), torch.from_numpy(MASK).bool()
    assert torch.equal(pasted[:, observed], x_obs()[:, observed])
    assert torch.equal(pasted[:, ~observed], result.estimate[:, ~observed])
    whole = run(mask=Operator(lambda x: 1.0 * x))
    assert torch.equal(whole.pasted(whole.estimate), whole.estimate)


@pytest.mark.slow
def test_no_polish_is_no_fits() -> None:
    result = run(polish=0)
    assert_same(result, once())
    for name in FITS:
        assert getattr(result, name) is None
        assert "polish" in result.reasons[name]
    assert not any("fits" in note for note in result.notes)


def test_an_interrupted_run_is_not_polished() -> None:
    result = run(Failing(40), polish=20)
    assert not result.complete
    assert_same(result, run(Failing(40)), but=("settings",))


@pytest.mark.slow
def test_ctrl_c_while_polishing_returns_the_samples(tmp_path: Path) -> None:
    whole = Failing()
    polished = run(whole, polish=20)
    note = "Polishing was interrupted, so there are no fits."
    result = run(Failing(whole.calls - 6), polish=20)
    assert_same(result, once(), but=("settings", "notes"))
    assert result.notes[-1] == note
    assert note not in polished.notes
    assert result.settings["polish"] == 0
    # With a checkpoint the run is saved before polishing, which can then start from it again.
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Failing(whole.calls - 5), polish=20, checkpoint=path)
    generator = Failing()
    assert_same(run(generator, polish=20, checkpoint=path), polished)
    # These are the checks of G, 20 steps, and the outputs of samples and of fits.
    assert generator.calls == 5 + 20 + 2


# --- seeds ----------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "population": {"chains": 16},
    "some-of-a-population": {"chains": 3, "mass": "identity"},
    "populations": {"chains": 16, "populations": 3},
    "frozen": {"chains": 16, "populations": 2, "evidence": "frozen"},
    "independent-chains": {"chains": 3, "budget": 90},
    "budget": {"chains": 20, "budget": 60},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.slow
@both_backends
@kinds
def test_same_seed_same_result(kind: str, backend: str) -> None:
    how = KINDS[kind] | {"backend": backend, "keep_trace": True}
    if backend == "native":
        first = whole(kind).result
    else:  # the reference is three times as slow, so it runs fewer temperatures
        how |= {"target_cess": 0.8}
        first = run(**how)
    assert_same(first, run(**how))
    other = run(**how | {"seed": 5})
    assert (first.latents != other.latents).any(-1).all()
    if "evidence" not in how:
        assert first.trace is not None
        assert other.trace is not None
        assert (first.trace[0] != other.trace[0]).all()  # the prior draws differ already


@pytest.mark.slow
def test_backends_agree_on_posterior_means() -> None:
    # Rounding differs between the backends, so that trajectories part after some temperatures. The
    # prior draws must be equal, and posterior means of 30 populations equal within four standard
    # errors of their difference.
    results = [
        linear_run(backend=b, populations=30, chains=64, keep_trace=True)
        for b in ("reference", "native")
    ]
    first, second = results
    assert first.trace is not None
    assert second.trace is not None
    torch.testing.assert_close(first.trace[0], second.trace[0], rtol=1e-12, atol=1e-13)
    means = [r.latents.reshape(30, 64, 3).mean(1) for r in results]
    error = ((means[0].var(0) + means[1].var(0)) / 30).sqrt()
    assert ((means[0].mean(0) - means[1].mean(0)).abs() <= 4.0 * error).all()


@pytest.mark.slow
def test_kept_traces_and_progress_bars_change_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    plain, shown = once(keep_trace=True), run(progress=True)
    assert_same(plain, shown, but=("trace", "frames", "frame_steps"))
    assert shown.trace is None
    text = capsys.readouterr().err
    assert "gradient" in text


@pytest.mark.slow
def test_global_generators_are_neither_read_nor_written() -> None:
    generator = network()
    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = run(generator, polish=3)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    torch.manual_seed(2)
    assert_same(first, run(generator, polish=3))


# --- checkpoints ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run, the number of calls of its generator, and that until it had started."""

    result: Result
    calls: int
    begun: int


def run_whole(**how: Any) -> Whole:
    generator, begin, begun = Failing(), AdaptivePlan.begin, [0]

    def noted(*arguments: Any) -> smc.Run:
        start = begin(*arguments)
        begun[0] = generator.calls
        return start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdaptivePlan, "begin", noted)
        result = run(generator, keep_trace=True, **how)
    return Whole(result, generator.calls, begun[0])


@cache
def whole(kind: str) -> Whole:
    """A run of each kind, for all tests of it."""
    return run_whole(**KINDS[kind])


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.55, 0.8, 1.0], ids=lambda p: f"{p:.0%}")
def test_an_interrupted_run_goes_on_bit_for_bit(kind: str, part: float, tmp_path: Path) -> None:
    # With a checkpoint there is one call more, which fingerprints G. The last call gives the
    # outputs.
    expected = whole(kind).result
    calls, first = whole(kind).calls + 1, whole(kind).begun + 2
    path = tmp_path / "run.safetensors"
    at = round(first + part * (calls - 1 - first))
    with pytest.raises(KeyboardInterrupt):
        run(Failing(at), checkpoint=path, keep_trace=True, **KINDS[kind])
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    generator = Failing()
    resumed = run(generator, checkpoint=path, keep_trace=True, **KINDS[kind])
    assert_same(resumed, expected)
    # Resuming may repeat only five checks of G and the temperature in which the run was
    # interrupted, or the start of the second run.
    redone = int((expected.hmc_steps * expected.leapfrog_steps).max())
    if kind == "frozen":
        redone = max(redone, whole(kind).begun)
    assert generator.calls <= calls - (at - 1) + 5 + redone


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["population", "frozen", "independent-chains"])
def test_a_run_interrupted_many_times_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    expected = whole(kind).result
    longest = int((expected.hmc_steps * expected.leapfrog_steps).max())
    at = whole(kind).begun + 2 + 2 * longest
    result = None
    for _ in range(60):  # each call gets a few temperatures further
        try:
            result = run(Failing(at), checkpoint=path, keep_trace=True, **KINDS[kind])
        except KeyboardInterrupt:
            continue
        break
    assert result is not None
    assert_same(result, expected)


@pytest.mark.slow
@kinds
def test_a_finished_run_is_read_back_without_moving(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(Failing(), checkpoint=path, keep_trace=True, **KINDS[kind])
    generator = Failing()
    again = run(generator, checkpoint=path, keep_trace=True, **KINDS[kind])
    assert_same(again, whole(kind).result)
    assert generator.calls == 7  # the checks of G, the outputs, and the frames


@pytest.mark.slow
def test_a_frozen_run_is_saved_in_both_of_its_parts(tmp_path: Path) -> None:
    from safetensors import safe_open

    def repeats(at: int) -> bool:
        path = tmp_path / f"{at}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            run(Failing(at), checkpoint=path, evidence="frozen")
        with safe_open(path, framework="pt") as file:
            return any(name.startswith("run.repeats.") for name in file.keys())  # noqa: SIM118

    generator = Failing()
    run(generator, evidence="frozen")
    assert not repeats(generator.calls // 3)
    assert repeats(generator.calls - 20)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted") / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Failing(30), checkpoint=path)
    return path


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 5}, "seed: 4 in the file, 5 in this call"),
        ({"chains": 17}, "chains: 16 in the file, 17 in this call"),
        ({"chains": 3}, "chains: 16 in the file, 3 in this call"),
        ({"populations": 2}, "populations: 1 in the file, 2 in this call"),
        ({"budget": 500}, "budget: None in the file, 500 in this call"),
        ({"evidence": "frozen"}, "evidence: consistent in the file, frozen in this call"),
        ({"target_cess": 0.6}, "target_cess: 0.97 in the file, 0.6 in this call"),
        ({"mass": "identity"}, "mass: curvature in the file, identity in this call"),
        ({"leapfrog_steps": 4}, "leapfrog_steps: None in the file, 4 in this call"),
        ({"hmc_steps": 1}, "hmc_steps: None in the file, 1 in this call"),
        ({"step_size": 0.1}, "step_size: None in the file, 0.1 in this call"),
        ({"keep_trace": True}, "keep_trace: False in the file, True in this call"),
        ({"observation_ids": [5, 6]}, "observation_ids"),
        ({"noise_std": 0.31}, "observation"),
        ({"backend": "reference"}, "backend: native in the file, reference in this call"),
        ({"method": "paper"}, "method: adaptive in the file, paper in this call"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused(
    interrupted: Path, changes: dict[str, Any], name: str
) -> None:
    before = interrupted.read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint: .*another run \(.*{name}"):
        run(Failing(), checkpoint=interrupted, **changes)
    assert interrupted.read_bytes() == before


@pytest.mark.slow
def test_polish_may_be_decided_later(interrupted: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(interrupted.read_bytes())
    assert_same(run(Failing(), checkpoint=path, polish=5), once(polish=5))


# --- interruption without a checkpoint ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["population", "some-of-a-population", "frozen", "independent-chains"]
)
@pytest.mark.parametrize("part", [0.3, 0.9], ids=["early", "late"])
def test_ctrl_c_without_a_checkpoint_returns_what_is_there(kind: str, part: float) -> None:
    expected, calls = whole(kind).result, whole(kind).calls
    result = run(Failing(round(part * calls)), keep_trace=True, **KINDS[kind])
    assert not result.complete
    done = len(result.betas)
    assert 0 < done < len(expected.betas)
    assert result.beta_reached == result.betas[-1].min().item()
    assert result.trace is not None
    for name in ("log_normaliser", "log_normaliser_error", "log_evidence"):
        assert getattr(result, name) is None
        reason = "fewer than 16" if kind == "independent-chains" else "interrupted"
        assert reason in result.reasons[name]
    assert "UNFINISHED at beta" in repr(result)
    torch.testing.assert_close(result.images, network()(result.latents).detach())
    if kind == "frozen" and part < 0.5:
        return  # the samples are those of the pilot, while the whole run returns its repetition
    for name in ("betas", "acceptance", "step_size", "energy_history", "leapfrog_steps"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name)[:done])
    assert expected.trace is not None
    assert torch.equal(result.trace, expected.trace[: done + 1])
    assert result.gradients < expected.gradients


@pytest.mark.slow
def test_ctrl_c_in_the_first_temperature_returns_the_best_prior_draws() -> None:
    result = run(Failing(whole("population").begun + 1), keep_trace=True)
    assert not result.complete
    assert 0.0 < result.beta_reached <= 0.05
    assert result.trace is not None
    assert torch.equal(result.latents, result.trace[0])
    assert result.betas.shape == (0, 4)
    assert result.gradients == 1
    assert repr(result)


# --- results on disk ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        k if k in ("independent-chains", "budget") else pytest.param(k, marks=pytest.mark.slow)
        for k in KINDS
    ],
)
def test_a_result_comes_back_from_disk(kind: str, tmp_path: Path) -> None:
    result = whole(kind).result
    assert_same(Result.load(result.save(tmp_path / "result")), result)


def test_unknown_values_are_null_in_json(tmp_path: Path) -> None:
    def refuse_constant(name: str) -> None:
        raise AssertionError(f"JSON knows no {name}")

    result = easy_and_hard()
    text = (result.save(tmp_path) / "result.json").read_text()
    summary = json.loads(text, parse_constant=refuse_constant)
    known, unknown = summary["log_normaliser_error"]
    assert known > 0.0
    assert unknown is None
    assert summary["diagnosis"] == result.diagnose()


@pytest.mark.slow
def test_a_result_of_another_format_is_refused(tmp_path: Path) -> None:
    path = once().save(tmp_path) / "result.json"
    text = path.read_text()
    assert "cogen-fast result 11" in text
    path.write_text(text.replace("cogen-fast result 11", "cogen-fast result 10"))
    with pytest.raises(ValueError, match=r"^directory: .*'cogen-fast result 11'.*result 10"):
        Result.load(tmp_path)


@pytest.mark.slow
def test_polished_and_interrupted_results_come_back_too(tmp_path: Path) -> None:
    early = Failing(whole("population").begun + 1)
    for number, result in enumerate((run(polish=3), run(Failing(60)), run(early))):
        assert_same(Result.load(result.save(tmp_path / str(number))), result)


# --- the potential of the loop --------------------------------------------------------------------


def test_a_potential_is_asked_for_the_right_observation() -> None:
    # The populations of an observation are neighbouring rows, and each has the energies of its own
    # observation's data.
    with prepared(network(), x_obs(3), MASK, noise_std=0.3) as problem:
        plan = AdaptivePlan(
            chains=16, populations=2, annealing=Annealing(), budget=None, evidence="consistent",
            step_size=None, seed=1, keep_trace=False, max_batch=None,
        )  # fmt: skip
        state = plan.begin(problem, None).state
        latents = state.hmc.latents
        assert latents.shape == (6, 16, 4)
        x = network()(latents).detach()
        target = x_obs(3).repeat_interleave(2, dim=0)[:, None]
        energy = ((x - target) ** 2 * torch.from_numpy(MASK)).sum(-1).double() / (2 * 0.3**2)
        torch.testing.assert_close(state.hmc.energy, energy, rtol=1e-4, atol=1e-4)
        assert state.hmc.stream.observation.tolist() == list(range(6))
        assert isinstance(state.hmc, hmc.HMCState)

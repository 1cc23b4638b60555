"""Diagnostics of runs: `diagnose` in words, ArviZ, and evidence from both sides."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cogen_fast import Result, bound_evidence, cogenerate
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.methods.settings import keywords
from cogen_fast.problem.compute import gathered
from cogen_fast.results.diagnostics import DiagnosticInputs, diagnose
from cogen_fast.sampler import reverse, smc
from cogen_fast.sampler.annealing_plan import Annealing

pytestmark = pytest.mark.usefixtures("one_thread")

X_OBS = np.array([[0.309, np.nan], [0.9, np.nan]], dtype=np.float32)
MASK = np.array([1, 0])
needs_arviz = pytest.mark.skipif(
    importlib.util.find_spec("arviz_stats") is None, reason="the extra arviz is not installed"
)


def run(**options: Any) -> Result:
    arguments = {"noise_std": 0.05, "progress": False} | options
    return cogenerate(pretrained("five-gaussians"), X_OBS, MASK, **keywords(arguments))


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


def test_nothing_is_wrong_with_a_healthy_run() -> None:
    assert diagnose(healthy()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_real_run_with_defaults_is_healthy(seed: int) -> None:
    assert run(chains=64, seed=seed).diagnose() == []


@pytest.mark.slow
@pytest.mark.parametrize("chains", [16, 17])
def test_islands_in_different_modes_are_diagnosed_in_a_real_run(chains: int) -> None:
    # Both modes are so narrow that no particle leaves its own, and some islands of eight have
    # particles in one mode only.
    x = torch.full((96, 1), 4.0)
    how: dict[str, Any] = {"latent_shape": 1, "noise_std": 0.01, "progress": False}
    result = cogenerate(lambda z: z**2, x, torch.ones(1), **keywords({"chains": chains, **how}))
    assert any(line.startswith("islands disagree: ") for line in result.diagnose())


def test_independent_chains_are_diagnosed_in_a_real_run() -> None:
    assert any(
        line.startswith("independent chains: ") for line in run(chains=3, budget=100).diagnose()
    )


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


@pytest.mark.parametrize(("change", "words"), SICK.values(), ids=SICK)
def test_each_problem_is_diagnosed_alone(change: dict[str, Any], words: str) -> None:
    import re

    found = diagnose(replace(healthy(), **change))
    assert len(found) == 1
    assert re.search(words, found[0])


@pytest.mark.slow
@pytest.mark.parametrize("chains", [3, 15, 16])
def test_unequal_islands_are_diagnosed_in_a_real_run(chains: int) -> None:
    # The observed region is so small that some islands find it and others do not; elsewhere the
    # outputs are flat.
    x = torch.full((48, 2), 0.5)
    how: dict[str, Any] = {"latent_shape": 2, "noise_std": 0.1, "progress": False}
    result = cogenerate(
        lambda z: torch.sigmoid(30 * (z - 1)),
        x,
        torch.ones(2),
        **keywords({"chains": chains, **how}),
    )
    assert any(line.startswith("islands are unequal ") for line in result.diagnose())


@pytest.mark.slow
def test_the_lead_is_that_of_the_log_evidence_by_hand() -> None:
    # Five of six particles are returned: 0 and 1 of the first island, 3 and 4 of the second.
    result = run(chains=5)
    log_weights = torch.tensor([[0.0, 0.0, 50.0, 3.0, 3.0], [9.0, 9.0, -50.0, 1.0, 1.0]])
    lead = replace(result, log_weights=log_weights.double()).diagnostic_inputs().evidence_lead
    assert lead is not None and lead.tolist() == pytest.approx([3.0, 8.0])
    three = run(chains=2, populations=3)
    log_weights = torch.tensor([[0.0, 0.0, 1.0, 1.0, 7.0, 7.0]]).double().expand(2, -1)
    lead = replace(three, log_weights=log_weights).diagnostic_inputs().evidence_lead
    assert lead is not None and lead.tolist() == pytest.approx([6.0, 6.0])


def test_populations_are_named() -> None:
    oversized_steps = torch.tensor([False, False, True, False])
    found = diagnose(replace(healthy(), populations=2, oversized_steps=oversized_steps))
    assert "(observation 1 population 0)" in found[0]
    halves = diagnose(replace(healthy(), oversized_steps=oversized_steps))
    assert "(observation 1)" in halves[0]
    one = diagnose(
        replace(
            run(populations=4, budget=12).diagnostic_inputs(),
            oversized_steps=torch.tensor([True] * 8),
        )
    )
    # The message names four populations and ends in dots.
    assert "observation 1 population 3" not in one[0]
    assert "observation 0 population 3, ...)" in one[0]


@pytest.mark.slow
@pytest.mark.parametrize("chains", [1, 4, 16])
def test_exact_runs_are_seldom_called_unsettled(chains: int) -> None:
    # 200 observations are equal except for their random numbers. A correct run may be called
    # unsettled with a probability of 1 %; with that, more than four of 200 are with a probability
    # of 0.05.
    x = torch.tensor([1.5, 0.0]).expand(200, 2)
    result = cogenerate(
        lambda z: 1.0 * z, x, MASK, latent_shape=2, noise_std=0.1, chains=chains, progress=False
    )
    unsettled = [line for line in result.diagnose() if "settled" in line]
    assert sum(line.count("observation") for line in unsettled) <= 4
    assert not any(", ...)" in line for line in unsettled)


def test_an_energy_that_falls_by_chance_is_not_diagnosed() -> None:
    # A round's mean over 8 particles has a standard error of 0.6 / sqrt(8) = 0.21, and so has the
    # difference between means over two rounds each; the sum over two islands has one of 0.3. The
    # diagnosis allows six of these, because neither rounds nor particles are independent.
    history = changed(healthy().energy_history, slice(6, 8), 2, 1.0 + 1.7)
    assert diagnose(replace(healthy(), energy_history=history)) == []


def test_a_last_row_without_moves_is_no_round() -> None:
    # Energies fall in two rounds, and are followed by a row for which the budget left no move.
    sick = replace(
        healthy(),
        energy_history=changed(healthy().energy_history, 7, 2, 4.0),
        acceptance=changed(healthy().acceptance, 9, 2, math.nan),
        rounds=torch.full((4,), 2),
    )
    assert any("energies not settled" in line for line in diagnose(sick))


def test_one_observation_is_not_numbered() -> None:
    sick = replace(
        healthy(),
        acceptance=torch.zeros(10, 2),
        rounds=healthy().rounds[:2],
        energy_history=healthy().energy_history[:, :2],
        energies=healthy().energies[:1],
        oversized_steps=torch.zeros(2, dtype=torch.bool),
        error_unknown=torch.zeros(1, dtype=torch.bool),
        evidence_lead=torch.zeros(1),
        latents=healthy().latents[:1],
        residual=None,
        energy_std=torch.full((10, 2), 0.6),
        rounds_missing=torch.zeros(2, dtype=torch.int64),
        at_low_bound=torch.zeros(1, dtype=torch.bool),
        at_high_bound=torch.zeros(1, dtype=torch.bool),
    )
    assert "observation" not in diagnose(sick)[0]


def test_real_runs_tell_what_is_wrong() -> None:
    assert any("budget ended the run early" in line for line in run(budget=12).diagnose())
    paper = run(method="paper", ais_steps=20, noise_std=0.001).diagnose()
    assert any("acceptance too low" in line for line in paper)
    assert any("weights collapsed" in line for line in paper)


# --- ArviZ ----------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_arviz
def test_arviz_sees_populations_as_chains() -> None:
    result = run(chains=20, populations=3)
    tree = result.to_arviz(outputs=True)
    posterior, stats = tree["posterior"].to_dataset(), tree["sample_stats"].to_dataset()
    assert posterior["latent"].dims[:2] == ("chain", "draw")
    assert posterior["latent"].shape == (3, 20, 2, 2)
    for name, found in (("latents", posterior["latent"]), ("images", posterior["output"])):
        given = getattr(result, name).numpy()
        for r in range(3):
            for b in range(2):
                np.testing.assert_array_equal(found[r, :, b], given[b, 20 * r : 20 * (r + 1)])
    np.testing.assert_array_equal(stats["misfit_energy"][2, :, 1], result.energies[1, 40:])
    np.testing.assert_array_equal(stats["log_weight"][0, :, 0], result.log_weights[0, :20])  # type: ignore[index]


@needs_arviz
def test_arviz_has_no_dimension_of_a_single_observation() -> None:
    """ArviZ's plots of pairs fail where a dimension has one entry."""
    result = run(budget=12)
    latents, energies = result.latents[:1], result.energies[:1]
    single = replace(result, latents=latents, energies=energies, log_weights=None)
    tree = single.to_arviz()
    assert tree["posterior"]["latent"].dims == ("chain", "draw", "dimension")
    assert tree["sample_stats"]["misfit_energy"].dims == ("chain", "draw")
    np.testing.assert_array_equal(
        tree["posterior"]["latent"].values.reshape(latents[0].shape), latents[0]
    )
    assert single.convergence()["rhat_latent"].shape == (1, latents.shape[2])
    assert single.convergence()["ess_energy"].shape == (1,)


@pytest.mark.slow
@needs_arviz
def test_convergence_over_populations() -> None:
    found = run(chains=100, populations=4).convergence()
    assert found["rhat_latent"].shape == found["ess_latent"].shape == (2, 2)
    assert found["rhat_energy"].shape == found["ess_energy"].shape == (2,)
    assert (found["rhat_energy"] < 1.1).all()
    assert (found["ess_energy"] > 20).all()
    assert (found["ess_energy"] < 2 * 400).all()


@pytest.mark.slow
@needs_arviz
def test_populations_that_differ_have_a_large_rhat() -> None:
    result = run(chains=20, populations=2)
    latents = result.latents.clone()
    latents[:, 20:] += 10.0
    assert (replace(result, latents=latents).convergence()["rhat_latent"] > 1.5).all()


@pytest.mark.slow
@needs_arviz
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chains": 3, "populations": 4}, "expected 4 chains or more of an island, got 3"),
    ],
    ids=["few-draws"],
)
def test_convergence_needs_draws(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^convergence: {words}"):
        run(**options).convergence()


@pytest.mark.slow
@needs_arviz
def test_convergence_over_the_halves_of_a_default_run() -> None:
    result = run()
    found = result.convergence()
    assert found["rhat_latent"].shape == (2, 2)
    latents = result.latents.clone()
    latents[:, 8:] += 10.0
    assert (replace(result, latents=latents).convergence()["rhat_latent"] > 1.5).all()


@pytest.mark.slow
@needs_arviz
@pytest.mark.parametrize(
    "options",
    [{"chains": 17}, {"method": "paper", "ais_steps": 5, "chains": 16}],
    ids=["odd", "paper"],
)
def test_convergence_needs_two_islands(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"convergence: .*an even number of chains.*got one"):
        run(**options).convergence()


# --- evidence from both sides ---------------------------------------------------------------------

SIZE, SEEN, NOISE, SETS = 5, 4, 0.1, 200


def linear_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix, exact posterior draws ``(S, 5)``, data ``(S, 4)`` and exact log normalisers."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    a, z = draw(SEEN, SIZE), draw(SETS, SIZE)
    y = z @ a.T + NOISE * draw(SETS, SEEN)
    covariance = a @ a.T + NOISE**2 * torch.eye(SEEN, dtype=torch.float64)
    quadratic = (y * torch.linalg.solve(covariance, y.T).T).sum(-1)
    exact = -0.5 * (quadratic + torch.logdet(covariance)) + SEEN * math.log(NOISE)
    return a, z, y, exact


@pytest.mark.slow
def test_reverse_runs_estimate_the_reciprocal_without_bias() -> None:
    a, z, y, exact = linear_data()

    def energy(rows: Tensor) -> Tensor:
        target = y.repeat_interleave(len(rows) // SETS, 0)
        return 0.5 * ((rows @ a.T - target) ** 2).sum(-1) / NOISE**2

    how: dict[str, Any] = {"latent_size": SIZE, "observations": SETS, "dtype": torch.float64}
    # Small steps of beta keep the variance of the reciprocal weights moderate. There is no pool,
    # because a reverse run would go from its beta to the prior in a single step.
    pilot = smc.run(
        energy, Annealing(target_cess=0.99, hmc_steps=4), chains=8, draws=1, seed=3, **how
    )
    start = z.repeat_interleave(2, 0)[:, None].expand(-1, 8, -1).contiguous()
    log_weights = reverse.run(energy, pilot.choices, start, seed=5).reshape(SETS, 16)
    ratio = torch.exp(exact[:, None] - log_weights).mean(-1)
    error = float(ratio.std()) / math.sqrt(SETS)
    assert abs(float(ratio.mean()) - 1.0) < 4.0 * error
    assert error < 0.15
    above = math.log(16) - torch.logsumexp(-log_weights, -1) - exact
    assert 0.0 < float(above.mean()) < 1.0


@pytest.mark.slow
def test_bounds_enclose_the_exact_evidence_of_a_generator() -> None:
    found = bound_evidence(
        pretrained("five-gaussians"), MASK, noise_std=0.05, simulations=40, target_cess=0.9
    )
    line = torch.linspace(-6.0, 6.0, 601)
    with torch.no_grad():
        x = pretrained("five-gaussians")(torch.cartesian_prod(line, line)).double()[:, 0]
    log_prior = -0.5 * (torch.cartesian_prod(line, line).double() ** 2).sum(-1)
    cell = 2.0 * math.log(float(line[1] - line[0])) - math.log(2.0 * math.pi)
    constant = math.log(0.05 * math.sqrt(2.0 * math.pi))
    exact = torch.stack(
        [
            torch.logsumexp(log_prior - 0.5 * ((x - seen) / 0.05) ** 2, 0) + cell - constant
            for seen in found.x_obs[:, 0].double()
        ]
    )
    below, above = found.lower - exact, found.upper - exact
    # By Markov's inequality each bound is on the wrong side by more than b with a probability of
    # exp(-b) at most.
    assert float(below.max()) < math.log(40 * 1000)
    assert float(above.min()) > -math.log(40 * 1000)
    error = [float(side.std()) / math.sqrt(40) for side in (below, above)]
    assert float(below.mean()) < 3.0 * error[0]
    assert float(above.mean()) > -3.0 * error[1]
    assert 0.0 < float(found.gap.mean()) < 2.0
    assert found.latents.shape == found.x_obs.shape == (40, 2)


@pytest.mark.slow
def test_bounds_take_seeds_of_numpy_and_read_well() -> None:
    how: dict[str, Any] = {"noise_std": np.array([0.05, 0.05]), "simulations": 3}
    G = pretrained("five-gaussians")
    mine, theirs = (
        bound_evidence(G, MASK, **gathered({"seed": seed, **how})) for seed in (3, np.int64(3))
    )
    assert torch.equal(mine.gap, theirs.gap)
    assert repr(mine).startswith("EvidenceBounds: 3 data sets, log evidence ")
    assert "standard error" in repr(mine)
    assert len(repr(mine)) < 160


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"simulations": 0}, "simulations"),
        ({"chains": 2.5}, "chains"),
        ({"target_cess": 1.0}, "target_cess"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"noise_std": None}, "noise_std"),
        ({"noise_std": "wide"}, "noise_std"),
        ({"noise_std": math.nan}, "noise_std"),
        ({"noise_std": [0.1, 0.1, 0.1]}, "noise_std"),
        ({"seed": -1}, "seed"),
        ({"max_batch": "a"}, "max_batch"),
        ({"backend": "fast"}, "backend"),
        ({"compute": "cuda"}, "compute"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_arguments_of_bounds_are_named(change: dict[str, Any], argument: str) -> None:
    arguments = {"noise_std": 0.05} | change
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: "):
        bound_evidence(pretrained("five-gaussians"), MASK, **gathered(arguments))

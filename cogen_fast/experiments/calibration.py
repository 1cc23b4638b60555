"""Are the samples right? Simulation-based calibration of the methods (Talts et al. 2018).

A latent z* from the prior and data simulated from it are a draw from their joint distribution, so
given the data z* and exact posterior draws are exchangeable: the rank of ``f(z*)`` among K
independent draws is uniform on 0 .. K, for any statistic f. Particles of one population share
ancestors, so each draw comes from a population of its own, in which it is chosen at random, by its
weight if it has one. Populations of the adaptive method tune one another: they exchange numbers,
never particles, and given these numbers each population is an independent sampler.

S simulations can detect a shift of about ``4 / sqrt(S)`` posterior standard deviations, and no
smaller one; where the posterior is known (`linear_posterior`), a comparison with it detects far
smaller shifts. Three more functions check parts of the sampler, each by z-scores of means that are
known: `joint_distribution` (Geweke 2004) a transition, `exact_draws` its detailed balance, and
`frozen_evidence` the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cogen_fast.experiments import demo
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.generators.stylegan2 import StyleGAN2Generator
from cogen_fast.methods.adaptive import AdaptivePlan, EvidenceMode
from cogen_fast.methods.inferred_noise import InferredNoise
from cogen_fast.methods.paper import PaperPlan
from cogen_fast.problem.compute import Compute
from cogen_fast.problem.density import EnergyPotential, GeneratorPotential
from cogen_fast.problem.observation import UnknownNoise
from cogen_fast.problem.prior import Prior, Space
from cogen_fast.problem.problem import Problem, prepared
from cogen_fast.sampler import ais, hmc, smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.hmc import HMCState
from cogen_fast.sampler.schedule import as_schedule
from cogen_fast.sampler.weights import log_mean_weight

_STYLED_GAIN = 4.0  # of the small StyleGAN2's last layer
LEAST_EXPECTED = 5.0
"""The least expected number of ranks in each bin of the chi-square test."""


@dataclass(frozen=True)
class Model:
    """A generator in eval mode with outputs of any shape, what is observed of it, and the noise.

    ``mask`` has the output's shape, 1 where observed. ``hidden`` is the index of an entry of the
    flat output that is not observed. ``latents`` are the coordinates of z that serve as statistics,
    in addition to ``projections`` fixed random ones. With ``most_noise`` the noise level is
    inferred between ``noise`` and ``most_noise``; its logarithm is then the last column of all
    latents, and a statistic.
    """

    name: str
    generator: nn.Module
    mask: Tensor
    noise: float
    latent_size: int
    hidden: int
    latents: tuple[int, ...]
    projections: int = 0
    most_noise: float | None = None

    def simulate(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Latents ``(count, d)`` from the prior, and data ``(count, ...)`` simulated from each."""
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.latent_size, generator=random)
        with torch.no_grad():
            x = self.generator(z)
        noise = torch.randn(x.shape, generator=random)
        if self.most_noise is None:
            return z, x + self.noise * noise
        share = torch.rand(count, 1, generator=random)
        level = math.log(self.noise) + math.log(self.most_noise / self.noise) * share
        scale = level.exp().reshape(-1, *(1 for _ in x.shape[1:]))
        return torch.cat([z, level], -1), x + scale * noise

    @property
    def noise_std(self) -> float | UnknownNoise:
        """The noise, as `cogen_fast.cogenerate` takes it."""
        return self.noise if self.most_noise is None else UnknownNoise(self.noise, self.most_noise)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the statistics that `evaluate` computes."""
        random = (f"random {i}" for i in range(self.projections))
        names = (*(f"z{i}" for i in self.latents), *random, "|z|^2", "misfit", "hidden")
        return (*names, "noise") if self.most_noise is not None else names

    def evaluate(self, potential: GeneratorPotential, z: Tensor) -> Tensor:
        """The statistics ``(S, K, F)`` float64 of latents ``(S, K, d)`` of S data sets."""
        z, level = z[..., : self.latent_size], z[..., self.latent_size :]
        outputs = potential.outputs(z).flatten(2)
        columns = [z[..., i] for i in self.latents]
        columns += (z @ self._directions().to(z)).unbind(-1)
        misfit = potential.energy(z)  # at the least noise, if the noise is inferred
        if self.most_noise is not None:
            misfit = misfit * (self.noise / level[..., 0].double().exp()) ** 2
        columns += [(z.double() ** 2).sum(-1), misfit, outputs[..., self.hidden]]
        columns += level.unbind(-1)
        return torch.stack([column.double() for column in columns], dim=-1)

    def _directions(self) -> Tensor:
        """Columns ``(d, projections)``, the same in every run."""
        random = torch.Generator().manual_seed(0)
        return torch.randn(self.latent_size, self.projections, generator=random)


def linear_gaussian() -> Model:
    """``x = A z + b``, d = 5, with outputs of variance 1.

    Three of eight entries are observed, so two directions of z are free.
    """
    random = torch.Generator().manual_seed(1)
    layer = nn.Linear(5, 8)
    rows = torch.randn(8, 5, generator=random)
    layer.weight.data = rows / rows.norm(dim=1, keepdim=True)
    layer.bias.data = torch.randn(8, generator=random)
    mask = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])
    return Model("linear", layer.eval().requires_grad_(False), mask, 0.1, 5, 5, (0, 1))


def linear_posterior(model: Model, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The posterior of a `linear_gaussian` given data ``(S, 8)``, in float64.

    Returns means ``(S, d)``, their common covariance ``(d, d)`` and ``log E_prior[exp(-E)]``
    ``(S,)``.
    """
    layer = model.generator
    assert isinstance(layer, nn.Linear)
    seen = model.mask.bool()
    a, precision = layer.weight.double()[seen], model.noise**-2
    residual = x.double()[:, seen] - layer.bias.double()[seen]
    covariance = torch.linalg.inv(torch.eye(a.shape[1]).double() + precision * a.T @ a)
    # The marginal of the residual is N(0, A A' + sigma^2), without the constant of the likelihood.
    marginal = a @ a.T + torch.eye(len(a)).double() / precision
    quadratic = (residual * torch.linalg.solve(marginal, residual.T).T).sum(-1)
    log_ratio = torch.logdet(marginal) + len(a) * math.log(precision)
    return residual @ a @ covariance * precision, covariance, -0.5 * (quadratic + log_ratio)


def five_gaussians() -> Model:
    """The shipped 2-D GAN with its first coordinate observed; up to two or three modes fit."""
    return Model("gan-2d", pretrained("five-gaussians"), torch.tensor([1, 0]), 0.05, 2, 1, (0, 1))


def convolutional() -> Model:
    """8-D latents to images of 8 x 8 by two sub-pixel convolutions, a block of 4 x 4 hidden.

    The weights are random, and the activations make the posterior non-Gaussian. Outputs have a
    standard deviation near 0.5.
    """
    random = torch.Generator().manual_seed(2)
    net = nn.Sequential(
        nn.Linear(8, 32),
        nn.Unflatten(1, (8, 2, 2)),
        nn.Tanh(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )
    for index, gain in ((0, 1.2), (3, 1.0), (6, 1.6)):
        layer = net[index]
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        scale = gain * layer.weight[0].numel() ** -0.5
        layer.weight.data = scale * torch.randn(layer.weight.shape, generator=random)
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
    mask = torch.ones(8, 8)
    mask[2:6, 2:6] = 0
    return Model(
        "conv-8", net.eval().requires_grad_(False), mask.expand(1, 8, 8), 0.1, 8, 3 * 8 + 3, (0, 1)
    )


def styled(space: Space = "z") -> Model:
    """A StyleGAN2 of 8 x 8 with random weights, in eight latents or eight coordinates of w.

    A block of 4 x 4 is hidden. Outputs have a standard deviation near 0.5.
    """
    random = torch.Generator().manual_seed(5)
    net = StyleGAN2Generator(
        8, channels=1, latent_size=8, mapping=(16, 8), feature_maps=(6, 4)
    ).requires_grad_(False)
    for name, tensor in net.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        drawn = torch.randn(tensor.shape, generator=random) * fan_in**-0.5
        if name.endswith("style_bias"):
            drawn = 1.0 + 0.2 * drawn
        elif "bias" in name or "strength" in name or name == "style_mean":
            drawn = 0.1 * drawn
        tensor.copy_(drawn)
    net.blocks[1].to_rgb.conv.weight.mul_(_STYLED_GAIN)  # type: ignore[union-attr, operator]
    mask = torch.ones(1, 8, 8)
    mask[:, 2:6, 2:6] = 0
    name = "stylegan-8" if space == "z" else f"stylegan-8-{space}"
    generator = Prior(net.eval(), space=space)
    return Model(name, generator, mask, 0.2, 8, 3 * 8 + 3, (0, 1))


class _FewLatents(nn.Module):
    """A generator as a function of its first few latents; the others are fixed at ``rest``."""

    def __init__(self, generator: nn.Module, latent_size: int, rest: Tensor) -> None:
        super().__init__()
        self.generator, self.latent_size = generator, latent_size
        self.register_buffer("rest", rest)

    def forward(self, z: Tensor) -> Tensor:
        rest = self.get_buffer("rest").to(z.dtype)
        outputs: Tensor = self.generator(torch.cat([z, rest.expand(len(z), -1)], dim=1))
        return outputs


def garments() -> Model:
    """The shipped garments with a block hidden and the demo's noise, in eight of 64 latents.

    The other latents are fixed at one prior draw, because chains of few latents mix in few
    gradients.
    """
    size, random = 8, torch.Generator().manual_seed(3)
    rest = torch.randn(64 - size, generator=random)
    generator = _FewLatents(pretrained(demo.GENERATOR), size, rest)
    mask = torch.ones(1, 32, 32)
    mask[:, 5:18, 3:29] = 0
    hidden = 10 * 32 + 16  # within the block
    return Model(demo.GENERATOR, generator.eval(), mask, demo.NOISE_STD, size, hidden, (0, 1))


def wide_linear() -> Model:
    """``x = A z`` in 64 dimensions, 48 of 64 entries observed, singular values 9 / k.

    Half of the directions that are observed have a narrow posterior, and 16 directions are free.
    """
    random, size, seen = torch.Generator().manual_seed(4), 64, 48
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=random)).Q for _ in range(2))
    layer = nn.Linear(size, size, bias=False)
    layer.weight.data = (left / (torch.arange(size) + 1.0)) @ right * 9.0
    mask = (torch.arange(size) < seen).long()
    frozen = layer.eval().requires_grad_(False)
    return Model("linear-64", frozen, mask, 0.1, size, size - 1, (0, 1), projections=4)


def all_garments() -> Model:
    """The shipped garments with the right half hidden, and all of their 64 latents free."""
    mask = torch.ones(1, 32, 32)
    mask[..., 16:] = 0
    hidden = 10 * 32 + 24
    return Model(
        f"{demo.GENERATOR}-64",
        pretrained(demo.GENERATOR).eval(),
        mask,
        demo.NOISE_STD,
        64,
        hidden,
        (),
        projections=4,
    )


def _of_unknown_noise(model: Model) -> Model:
    """The model with noise inferred between 0.02 and 1, between which its outputs' deviation is."""
    return replace(model, name=f"{model.name}-noise", noise=0.02, most_noise=1.0)


MODELS: dict[str, Callable[[], Model]] = {
    "linear": linear_gaussian,
    "gan-2d": five_gaussians,
    "conv-8": convolutional,
    "stylegan-8": styled,
    "stylegan-8-w": lambda: styled("w"),
    "fashion-32": garments,
    "linear-64": wide_linear,
    "fashion-32-64": all_garments,
    "conv-8-noise": lambda: _of_unknown_noise(convolutional()),
    "linear-64-noise": lambda: _of_unknown_noise(wide_linear()),
}

_CHUNK = 2048  # latents in a generator call: calls that fit in the cache cost half as much
Draw = Callable[[Problem, int, int, Sequence[int]], Tensor]
"""A method: K draws ``(S, K, d)`` for each of S data sets, given K, a seed and the data's ids."""


@dataclass(frozen=True)
class AdaptiveDraw:
    """One particle, chosen uniformly, of each of K populations of the adaptive method.

    `ranks` calls it with K = 1 for each of K copies of the data, so that every draw comes from a
    run of its own, in default settings. The particle is chosen at random because resampling leaves
    particles in an order that is not random, so the first would not be a fair draw. If the noise is
    inferred, its logarithm is the last column.
    """

    chains: int = 16
    annealing: Annealing = field(default_factory=Annealing)
    budget: int | None = None
    evidence: EvidenceMode = "consistent"

    def __call__(self, problem: Problem, draws: int, seed: int, ids: Sequence[int]) -> Tensor:
        """The draws."""
        adaptive = AdaptivePlan(
            chains=self.chains,
            populations=draws,
            annealing=self.annealing,
            budget=self.budget,
            evidence=self.evidence,
            step_size=None,
            seed=seed,
            keep_trace=False,
            max_batch=None,
        )
        inferred = problem.observation.noise_bounds is not None
        plan: Any = InferredNoise(adaptive) if inferred else adaptive
        run = plan.go(problem, plan.begin(problem, ids), lambda _: None)
        outcome = plan.outcome(problem, run, complete=True)
        latents = outcome.latents
        if outcome.noise_std is not None:
            latents = torch.cat([latents, outcome.noise_std.log()[..., None].to(latents)], -1)
        latents = latents.reshape(len(latents), draws, self.chains, -1)
        weights = torch.ones(latents.shape[:3])
        return one_per_population(latents, weights, seed + ids[0])


@dataclass(frozen=True)
class PaperDraw:
    """One chain, chosen by its weight, of each of K groups of chains of the published method."""

    chains: int = 16
    ais_steps: int = 200
    leapfrog_steps: int = 8
    step_size: float = 0.05
    schedule: str = "sigmoid"

    def __call__(self, problem: Problem, draws: int, seed: int, ids: Sequence[int]) -> Tensor:
        """The draws."""
        plan = PaperPlan(
            chains=draws * self.chains,
            moves=ais.Moves(leapfrog_steps=self.leapfrog_steps),
            betas=ais.checked_betas(as_schedule(self.schedule), self.ais_steps),
            step_size=self.step_size,
            seed=seed,
            keep_trace=False,
            max_batch=None,
            schedule=self.schedule,
            preset=None,
        )
        run = plan.go(problem, plan.begin(problem, ids), lambda _: None)
        assert run.state.log_weights is not None
        latents, log_weights = run.state.hmc.latents, run.state.log_weights
        groups = (len(latents), draws, self.chains)
        weights = torch.softmax(log_weights.reshape(groups), -1)
        return one_per_population(latents.reshape(*groups, -1), weights, seed + ids[0])


def one_per_population(latents: Tensor, weights: Tensor, seed: int) -> Tensor:
    """Of latents ``(S, K, N, d)`` one of N, chosen by ``weights`` ``(S, K, N)``: ``(S, K, d)``."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(weights.flatten(0, 1), 1, generator=random)
    index = chosen.reshape(*weights.shape[:2], 1, 1).expand(-1, -1, 1, latents.shape[-1])
    return latents.gather(2, index)[:, :, 0]


@dataclass(frozen=True)
class Design:
    """S simulations of K draws each; ``per_call`` data sets share a call (None: all of them).

    The number of leapfrog steps is common to a call, so the size of a call is part of what is
    calibrated.
    """

    simulations: int
    draws: int
    per_call: int | None = None

    def __post_init__(self) -> None:
        if self.simulations < LEAST_EXPECTED * 2:
            raise ValueError(f"simulations: expected at least 10, got {self.simulations}")
        if self.draws < 1:
            raise ValueError(f"draws: expected at least 1, got {self.draws}")

    @property
    def bins(self) -> int:
        """The largest number of bins of equal width with `LEAST_EXPECTED` expected ranks each."""
        ranks, most = self.draws + 1, self.simulations / LEAST_EXPECTED
        return max(n for n in range(1, ranks + 1) if ranks % n == 0 and n <= most)


@dataclass(frozen=True)
class Calibration:
    """Ranks of one statistic of one method on one model, and p-values of their uniformity.

    ``p_chi_square`` tests their histogram, ``p_ecdf`` their empirical distribution function.
    """

    statistic: str
    histogram: tuple[int, ...]
    p_chi_square: float
    p_ecdf: float

    @property
    def p(self) -> float:
        """The smaller p-value; if ranks are uniform, it is below a with probability 2 a at most."""
        return min(self.p_chi_square, self.p_ecdf)


def calibrate(model: Model, draw: Draw, design: Design, seed: int) -> list[Calibration]:
    """Simulate, draw and rank: one `Calibration` per statistic of the model."""
    return calibrated(model, ranks(model, draw, design, seed), design)


def calibrated(model: Model, rows: Tensor, design: Design) -> list[Calibration]:
    """The `Calibration` of each statistic, from ``rows`` of ranks ``(S, F)``."""
    return [
        Calibration(
            name,
            tuple(_histogram(column, design).tolist()),
            p_chi_square(column, design),
            p_ecdf(column, design),
        )
        for name, column in zip(model.statistics, rows.unbind(-1), strict=True)
    ]


def ranks(model: Model, draw: Draw, design: Design, seed: int, part: range | None = None) -> Tensor:
    """Ranks ``(S, F)`` int64 of the true statistics among those of the draws, 0 .. K.

    ``part`` (None: all) says which simulations to make, if they are made in pieces: consecutive
    ones, as many as some calls take.
    """
    truth, data = model.simulate(design.simulations, seed)
    part = part or range(design.simulations)
    size = design.per_call or design.simulations
    found = []
    for start in range(part.start, part.stop, size):
        numbers = range(start, min(start + size, part.stop))
        found.append(_ranks(model, draw, design.draws, seed, numbers, truth, data))
    return torch.cat(found)


def _ranks(
    model: Model,
    draw: Draw,
    draws: int,
    seed: int,
    numbers: range,
    truth: Tensor,
    data: Tensor,
) -> Tensor:
    """The ranks of the simulations ``numbers``, made in one call."""
    copies = draws if isinstance(draw, AdaptiveDraw) else 1
    z = truth[numbers.start : numbers.stop].repeat_interleave(copies, 0)
    with prepared(
        model.generator,
        data[numbers.start : numbers.stop].repeat_interleave(copies, 0),
        model.mask,
        noise_std=model.noise_std,
        compute=Compute(max_batch=_CHUNK),
        whole_runs=isinstance(draw, PaperDraw),
        infers_noise=model.most_noise is not None,
    ) as p:
        ids = range(numbers.start * copies, numbers.stop * copies)
        found = model.evaluate(p.potential, draw(p, draws // copies, seed + 1, ids))
        below = found < model.evaluate(p.potential, z[:, None])
    return below.reshape(len(numbers), draws, -1).sum(1)


def _histogram(column: Tensor, design: Design) -> Tensor:
    """Ranks ``(S,)``, counted in the design's bins."""
    return torch.bincount(column, minlength=design.draws + 1).reshape(design.bins, -1).sum(1)


def p_chi_square(column: Tensor, design: Design) -> float:
    """Pearson's test that ranks ``(S,)`` are uniform."""
    expected = design.simulations / design.bins
    value = ((_histogram(column, design).double() - expected) ** 2 / expected).sum()
    degrees = torch.tensor(design.bins - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees / 2.0, value / 2.0))


def p_ecdf(column: Tensor, design: Design) -> float:
    """The bound by Dvoretzky, Kiefer, Wolfowitz and Massart: for any S, conservative with ties."""
    counts = torch.bincount(column, minlength=design.draws + 1).double()
    uniform = torch.arange(1, design.draws + 2).double() / (design.draws + 1)
    distance = float((counts.cumsum(0) / design.simulations - uniform).abs().max())
    return min(1.0, 2.0 * math.exp(-2.0 * design.simulations * distance**2))


# --- parts of the sampler, against means that are known -------------------------------------------


def z_scores(values: Tensor, expected: Tensor | float) -> Tensor:
    """Deviations of the means of independent rows ``(n, ...)``, in standard errors: ``(...)``."""
    scores: Tensor = (values.mean(0) - expected) / (values.std(0) / len(values) ** 0.5)
    return scores


def exact_draws(
    backend: str = "auto", chains: int = 60_000, step_size: float = 0.53, seed: int = 0
) -> Tensor:
    """One transition from exact posterior draws of ``x = z + noise``: three z-scores.

    They are those of ``E[exp(-dH)] = 1`` (which holds if a proposal preserves volume), of the mean
    misfit after the move, and of ``E[f(z) g(z') - f(z') g(z)] = 0`` (detailed balance), where z' is
    the state after the move. The posterior is the same in all directions, so that the errors of a
    wrong step in two directions cannot cancel.
    """
    x, noise, size = 1.0, 0.5, 6
    variance = 1.0 / (1.0 + noise**-2)
    mean = variance * x / noise**2
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(1, chains, size, generator=random, dtype=torch.float64) * variance**0.5 + mean
    potential = EnergyPotential(lambda rows: ((rows - x) ** 2).sum(-1) / (2.0 * noise**2))
    state = hmc.init(potential, z, seed=seed, backend=backend)
    moved, info = hmc.step(state, potential, step_size=step_size, leapfrog_steps=3, backend=backend)
    before, after = state.energy[0], moved.energy[0]
    expected = size * ((mean - x) ** 2 + variance) / (2.0 * noise**2)
    both_ways = torch.exp(-before) * after - torch.exp(-after) * before
    columns = (torch.exp(-info.energy_change[0]) - 1.0, after - expected, both_ways)
    return z_scores(torch.stack(columns, -1), 0.0)


def mean_misfit(model: Model, x: Tensor) -> Tensor:
    """The posterior mean of the misfit energy, ``(S,)``, on a `linear_gaussian`."""
    mean, covariance, _ = linear_posterior(model, x)
    layer, seen = model.generator, model.mask.bool()
    assert isinstance(layer, nn.Linear)
    a, b = layer.weight.double()[seen], layer.bias.double()[seen]
    residual = mean @ a.T + b - x.double()[:, seen]
    spread = (a @ covariance @ a.T).trace()
    return ((residual**2).sum(-1) + spread) / (2.0 * model.noise**2)


def joint_distribution(
    backend: str = "auto", rows: int = 4000, rounds: int = 30, seed: int = 0
) -> Tensor:
    """Geweke 2004: z-scores of the joint distribution of latents and data under transitions.

    Each of ``rows`` independent pairs (z, x) starts as an exact draw, at an inverse temperature of
    its own. In each of ``rounds`` rounds z makes one HMC transition of random step size given x,
    and x is drawn anew given z. All means stay those of ``z ~ N(0, I)``, ``x ~ N(G(z), I sigma^2 /
    beta)``. They are averaged over the rounds of a row, so the rows are independent and no
    effective sample size is needed.
    """
    random = torch.Generator().manual_seed(seed)
    generator, d, seen, noise = _curved(random), 3, 4, 0.4
    beta = 0.2 + 0.8 * torch.rand(rows, generator=random, dtype=torch.float64)
    z = torch.randn(rows, 1, d, generator=random, dtype=torch.float64)
    stream = hmc.noise_stream(seed, rows, z.device)
    total = torch.zeros(rows, 2 * d + 3, dtype=torch.float64)
    for _ in range(rounds):
        fresh = torch.randn(rows, seen, generator=random, dtype=torch.float64)
        x = generator(z[:, 0]) + noise * beta[:, None] ** -0.5 * fresh
        potential = EnergyPotential(_misfit_of(generator, x, noise))
        state = HMCState(z, *potential.energy_and_grad(z), stream)
        step_size = 0.3 + 0.4 * torch.rand(rows, generator=random, dtype=torch.float64)
        state, _ = hmc.step(
            state, potential, step_size=step_size, leapfrog_steps=3, beta=beta, backend=backend
        )
        z, stream = state.latents, state.stream
        # For any z, beta E is half a chi-square variable with `seen` degrees of freedom.
        heat = (beta * state.energy[:, 0] - 0.5 * seen)[:, None]
        here = z[:, 0]
        total += torch.cat(
            [here, here**2 - 1.0, here[:, :1] * here[:, 1:2], heat, heat**2 - 0.5 * seen], -1
        )
    return z_scores(total / rounds, 0.0)


def _curved(random: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A smooth nonlinear map from 3 to 4 dimensions."""
    inner, outer = (
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((3, 6), (6, 4))
    )
    return lambda z: torch.tanh(z @ inner) @ outer / 2.0


def _misfit_of(
    generator: Callable[[Tensor], Tensor], x: Tensor, noise: float
) -> Callable[[Tensor], Tensor]:
    """``|G(z) - x|^2 / (2 sigma^2)`` of rows ``(n, d)``, one for each row of ``x``."""
    return lambda z: ((generator(z) - x) ** 2).sum(-1) / (2.0 * noise**2)


def frozen_evidence(
    backend: str = "auto",
    populations: int = 400,
    annealing: Annealing | None = None,
    particles: int = 16,
    seed: int = 0,
) -> Tensor:
    """The z-score of frozen evidence over exact evidence, whose mean is 1 without bias.

    The choices of a pilot run are repeated under another seed. Each population has data of its own,
    and its ``particles`` are on two islands; the mean weight over both is the estimate.
    """
    model, annealing = linear_gaussian(), annealing or Annealing()
    _, x = model.simulate(populations, seed)
    *_, exact = linear_posterior(model, x)
    options: dict[str, Any] = {
        "chains": particles // 2,
        "latent_size": 5,
        "observations": populations,
        "dtype": torch.float64,
        "backend": backend,
    }
    with prepared(model.generator.double(), x.double(), model.mask, noise_std=model.noise) as p:
        pilot = smc.run(p.potential, annealing, seed=seed + 1, **options)
        again = smc.run(
            p.potential,
            annealing,
            repeats=pilot.choices,
            first_beta=pilot.state.first_beta,
            seed=seed + 2,
            **options,
        )
    log_weights = again.state.log_weights.reshape(populations, -1)
    return z_scores((log_mean_weight(log_weights) - exact).exp(), 1.0)

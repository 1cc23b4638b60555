"""One batched HMC transition: ``init`` and ``step(state) -> (state, info)``.

B observations x N chains of d dimensions move in lockstep. Each observation has its own inverse
temperature, step size (or one for each chain) and mass. A transition does not depend on a schedule
and adapts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cogen_fast.ops import dispatch
from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.ops.reference import Proposal
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.problem.density import FORMS, EnergyPotential, Form, Potential, prior_weight
from cogen_fast.sampler.leapfrog import leapfrog
from cogen_fast.sampler.metropolis import accept
from cogen_fast.support.arguments import check_count, check_seed, check_whole, shown
from cogen_fast.support.layout import Latents, OfEach
from cogen_fast.support.warnings import warn_user

Energy = Callable[[Tensor], Tensor]
_MOST_DRAWN = 32  # attempts to draw a start with finite energy and gradient


@dataclass(frozen=True)
class HMCState:
    """The state of the chains, which is all that the next transition needs.

    ``latents`` ``(B, N, d)`` are float32 or float64. The misfit ``energy`` ``(B, N)`` float64 and
    its gradient ``grad`` ``(B, N, d)`` are without the prior and at inverse temperature 1.
    ``stream`` is the position in the noise.
    """

    latents: Latents
    energy: OfEach
    grad: Latents
    stream: NoiseStream


@dataclass(frozen=True)
class HMCInfo:
    """The outcome of a transition, for diagnosis and adaptation; all ``(B, N)``.

    ``energy_change`` is ``H_new - H_old``, and +inf where the proposal was not finite
    (``non_finite``). ``proposal`` is the end of the trajectory, ``(B, N, d)``; its momentum lacks
    the last half kick.
    """

    acceptance_probability: Tensor
    accepted: Tensor
    energy_change: Tensor
    proposal: Proposal

    @property
    def non_finite(self) -> Tensor:
        """Whether the proposal was not finite, and so rejected."""
        return self.energy_change.isinf()


def as_potential(target: Potential | Energy) -> Potential:
    """``target`` as a potential; a function ``energy(z)``, ``(n, d)`` to ``(n,)``, is wrapped."""
    if callable(getattr(target, "energy_and_grad", None)):
        potential: Potential = target  # type: ignore[assignment]
        return potential
    return EnergyPotential(target)  # type: ignore[arg-type]


def noise_stream(
    seed: int,
    observations: int,
    device: torch.device,
    observation_ids: Sequence[int] | None = None,
) -> NoiseStream:
    """The noise of B observations before their first transition.

    ``observation_ids`` (default 0 .. B-1) identify the observations in the noise: with the same
    seed and id an observation draws the same numbers in any batch. Raises TypeError or ValueError
    naming the argument.
    """
    ids = list(range(observations)) if observation_ids is None else _ids(observation_ids)
    sound = all(0 <= i < 2**32 for i in ids)
    if len(ids) != observations or len(set(ids)) != len(ids) or not sound:
        raise ValueError(
            f"observation_ids: expected {observations} different numbers in [0, 2^32), got "
            f"{ids!s:.80}"
        )
    observation = torch.tensor(ids, dtype=torch.int64, device=device)
    return NoiseStream(check_seed(seed), torch.zeros_like(observation), observation)


def _ids(values: Any) -> list[int]:
    """``values`` as Python integers."""
    try:
        listed = values.tolist() if hasattr(values, "tolist") else list(values)
        return [int(check_whole("observation_ids", i, 0, 2**64)) for i in listed]
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise TypeError(f"observation_ids: expected whole numbers, got {shown(values)}") from error


def init(
    target: Potential | Energy,
    latents: Tensor | None = None,
    *,
    chains: int = 16,
    latent_size: int | None = None,
    observations: int = 1,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> HMCState:
    """The first state: prior draws, or the given ``latents`` ``(B, N, d)``.

    ``target`` is a `Potential` or any differentiable ``energy(z)`` that maps rows ``(B N, d)`` to
    ``(B N,)``. Where ``latents`` are not given, ``observations``, ``chains`` and ``latent_size``
    are B, N and d. The cost is one gradient. A prior draw whose energy or gradient is not finite is
    drawn again, with a warning. Raises ValueError naming the chains where they stay non-finite or
    where ``latents`` were given, and TypeError or ValueError for any other bad argument.
    """
    if latents is None:
        if latent_size is None:
            raise ValueError("latent_size: expected a number where no latents are given, got None")
        count, chains = check_count("observations", observations), check_count("chains", chains)
        size = check_count("latent_size", latent_size)
        stream = noise_stream(seed, count, torch.device(device), observation_ids)
        ops = dispatch.resolve(backend, torch.device(device))
        draw = partial(ops.initial_latents, stream, size=size, dtype=check_dtype(dtype))
        return HMCState(*_finite_start(as_potential(target), draw, chains), stream)
    if latents.ndim != 3:
        raise ValueError(f"latents: expected shape (B, N, d), got {tuple(latents.shape)}")
    check_dtype(latents.dtype)
    stream = noise_stream(seed, latents.shape[0], latents.device, observation_ids)
    latents = latents.detach().clone()
    energy, grad = as_potential(target).energy_and_grad(latents)
    _check_start("energy: expected", energy, grad)
    return HMCState(latents, energy, grad.to(latents.dtype), stream)


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` of the latents; raises TypeError where it is neither float32 nor float64."""
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    return dtype


def _finite_start(
    potential: Potential, draw: Callable[..., Tensor], chains: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws from the prior restricted to finite energies and gradients, with these two."""
    latents = draw(chains=chains)
    energy, grad = potential.energy_and_grad(latents)
    bad = first = _not_finite(energy, grad)
    drawn = 1
    while bool(bad.any()) and drawn < _MOST_DRAWN:
        drawn += 1
        others = draw(chains=chains * drawn)[:, -chains:]
        latents = torch.where(bad[..., None], others, latents)
        energy, grad = potential.energy_and_grad(latents)
        bad = _not_finite(energy, grad)
    if drawn > 1:
        _check_start("G: expected outputs and values of x_obs that give", energy, grad)
        warn_user(
            f"G: gives energies or gradients that are not finite for {int(first.sum())} of "
            f"{first.numel()} prior draws, which were drawn again. The prior is thereby restricted "
            "to latents where both are finite; check what G gives for large latents"
        )
    return latents, energy, grad.to(latents.dtype)


def _not_finite(energy: Tensor, grad: Tensor) -> Tensor:
    return ~(energy.isfinite() & grad.isfinite().all(-1))


def _check_start(expected: str, energy: Tensor, grad: Tensor) -> None:
    """Raise ValueError naming the chains whose energies or gradients are not finite."""
    bad = _not_finite(energy, grad)
    if bad.any():
        where = [tuple(int(i) for i in row) for row in bad.nonzero()[:4]]
        raise ValueError(
            f"{expected} finite energies and gradients at the start, got non-finite ones for "
            f"{int(bad.sum())} of {bad.numel()} chains, (observation, chain) {where}"
        )


def step(
    state: HMCState,
    target: Potential | Energy,
    *,
    step_size: float | Tensor,
    leapfrog_steps: int,
    beta: float | Tensor = 1.0,
    form: Form = "posterior",
    inverse_mass: Tensor | None = None,
    active: Tensor | None = None,
    backend: str = "auto",
) -> tuple[HMCState, HMCInfo]:
    """One HMC transition of every chain, at a cost of ``leapfrog_steps`` gradients.

    ``step_size`` and ``beta`` are numbers or ``(B,)`` tensors; ``step_size`` may be ``(B, N)`` too,
    one for each chain. ``inverse_mass`` is a positive diagonal ``(B, d)``. ``active`` ``(B,)`` bool
    (default: all) marks the observations that move; the others keep their state and their position
    in the noise. The given state is not changed. Raises ValueError naming the argument.
    """
    ops = dispatch.resolve(backend, state.latents.device)
    settings = _settings(state, step_size, beta, form, inverse_mass, active)
    _check_settings(settings, form, state.latents)
    check_count("leapfrog_steps", leapfrog_steps)
    return transition(state, as_potential(target), settings, leapfrog_steps, ops)


def _settings(
    state: HMCState,
    step_size: float | Tensor,
    beta: float | Tensor,
    form: Form,
    inverse_mass: Tensor | None,
    active: Tensor | None,
) -> TransitionSettings:
    betas = _per_observation("beta", beta, state)
    return TransitionSettings(
        betas,
        prior_weight(form, betas),
        _step_sizes(step_size, state),
        inverse_mass,
        active,
    )


def _check_settings(settings: TransitionSettings, form: Form, latents: Tensor) -> None:
    if form not in FORMS:
        raise ValueError(f"form: expected one of {FORMS}, got {form!r}")
    count, _, size = latents.shape
    _check_positive("step_size", settings.step_size)
    if settings.inverse_mass is not None:
        _check_like("inverse_mass", settings.inverse_mass, (count, size), latents.dtype)
        _check_positive("inverse_mass", settings.inverse_mass)
    if settings.active is not None:
        _check_like("active", settings.active, (count,), torch.bool)


def _check_like(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise ValueError(
            f"{name}: expected {dtype} of shape {shape}, got {value.dtype} of {tuple(value.shape)}"
        )


def _check_positive(name: str, values: Tensor) -> None:
    """Check values on the host only: reading a device makes every transition wait for it."""
    if values.is_cpu and not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"{name}: expected finite values above 0, got {values.tolist()}"[:200])


def _per_observation(name: str, value: float | Tensor, state: HMCState) -> Tensor:
    device, count = state.latents.device, state.latents.shape[0]
    tensor = torch.as_tensor(value, dtype=torch.float64, device=device)
    if tensor.ndim == 0:
        return tensor.expand(count).contiguous()
    if tuple(tensor.shape) != (count,):
        raise ValueError(f"{name}: expected a number or shape ({count},), got {tensor.shape}")
    return tensor


def _step_sizes(value: float | Tensor, state: HMCState) -> Tensor:
    """Step sizes of observations, ``(B,)``, or of chains, ``(B, N)``."""
    if not isinstance(value, Tensor) or value.ndim < 2:
        return _per_observation("step_size", value, state)
    shape = tuple(state.energy.shape)
    if tuple(value.shape) != shape:
        raise ValueError(
            f"step_size: expected a number, shape ({shape[0]},) or {shape}, got {value.shape}"
        )
    return value.to(state.latents.device, torch.float64)


def transition(
    state: HMCState,
    potential: Potential,
    settings: TransitionSettings,
    leapfrog_steps: int,
    ops: Ops,
) -> tuple[HMCState, HMCInfo]:
    """`step` without its checks, for loops that check their arguments once."""
    here = (state.latents, state.energy, state.grad)
    trajectory = leapfrog(potential, *here, settings, state.stream, leapfrog_steps, ops)
    chosen = accept(*here, trajectory, settings, state.stream, ops)
    stream = state.stream.advance(settings.active)
    info = HMCInfo(
        chosen.acceptance_probability,
        chosen.accepted,
        chosen.energy_change,
        trajectory.proposal,
    )
    return HMCState(chosen.latents, chosen.energy, chosen.grad, stream), info

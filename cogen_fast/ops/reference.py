"""The definitions of all ops, in plain torch, for any float type and device.

Shapes are written with B observations, N chains and d latent dimensions. Latents, momenta and
gradients share a float dtype. Energies, Hamiltonians, weights and step sizes are float64, because a
sharp posterior starts at energies near 1e6, while differences near 0.1 decide acceptance. The fast
versions (``native``, ``triton_ops``) have the same names, and tests compare them with these.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from cogen_fast.ops.philox import NoiseStream, Purpose, normals, uniforms
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

PIXEL_NORM_EPSILON = 1e-8


class Proposal(NamedTuple):
    """A trajectory in progress: position and momentum, and the Hamiltonian at its start.

    ``position`` and ``momentum`` are ``(B, N, d)``; ``hamiltonian`` is ``(B, N)`` float64.
    """

    position: Tensor
    momentum: Tensor
    hamiltonian: Tensor


class Selected(NamedTuple):
    """The state after the Metropolis test, and what happened in the test.

    ``latents`` and ``grad`` are ``(B, N, d)``; the others are ``(B, N)``.
    """

    latents: Tensor
    energy: Tensor
    grad: Tensor
    acceptance_probability: Tensor
    accepted: Tensor
    energy_change: Tensor


def _step_sizes(settings: TransitionSettings) -> Tensor:
    """Step sizes that broadcast over chains: ``(B, 1)``, or ``(B, N)`` if each chain has one."""
    step_size = settings.step_size
    return step_size if step_size.ndim == 2 else step_size[:, None]


def _per_coordinate(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype)[..., None]


def _scale(values: Tensor, inverse_mass: Tensor | None) -> Tensor:
    return values if inverse_mass is None else values * inverse_mass[:, None, :]


def kick(
    momentum: Tensor, position: Tensor, grad: Tensor, settings: TransitionSettings, part: float
) -> Tensor:
    """The momentum after a kick over ``part`` of a step: ``v - part * eps * grad U(z)``."""
    dtype = momentum.dtype
    span = part * _step_sizes(settings)
    misfit = _per_coordinate(span * settings.beta[:, None], dtype) * grad
    prior = _per_coordinate(span * settings.prior_weight[:, None], dtype) * position
    return momentum - misfit - prior


def _drift(position: Tensor, momentum: Tensor, settings: TransitionSettings) -> Tensor:
    velocity = _scale(momentum, settings.inverse_mass)
    return position + _per_coordinate(_step_sizes(settings), position.dtype) * velocity


def hamiltonian(
    energy: Tensor, position: Tensor, momentum: Tensor, settings: TransitionSettings
) -> Tensor:
    """``beta E + prior_weight |z|^2 / 2 + v' M^-1 v / 2`` in float64, ``(B, N)``."""
    v, z = momentum.double(), position.double()
    kinetic = 0.5 * (_scale(v * v, _double(settings.inverse_mass))).sum(-1)
    prior = 0.5 * (z * z).sum(-1)
    return settings.beta[:, None] * energy + settings.prior_weight[:, None] * prior + kinetic


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.double()


def initial_latents(stream: NoiseStream, chains: int, size: int, dtype: torch.dtype) -> Tensor:
    """Prior draws ``(B, chains, size)``: step 1 of Algorithm 1."""
    return normals(stream, Purpose.LATENT, chains, size, dtype)


def begin_trajectory(
    latents: Tensor, energy: Tensor, grad: Tensor, settings: TransitionSettings, stream: NoiseStream
) -> Proposal:
    """Draw ``v ~ N(0, M)``, then compute the Hamiltonian and make half a kick and one drift.

    The inputs are not changed.
    """
    _, chains, size = latents.shape
    momentum = normals(stream, Purpose.MOMENTUM, chains, size, latents.dtype)
    if settings.inverse_mass is not None:
        momentum = momentum / settings.inverse_mass.sqrt()[:, None, :]
    start = hamiltonian(energy, latents, momentum, settings)
    momentum = kick(momentum, latents, grad, settings, 0.5)
    return Proposal(_drift(latents, momentum, settings), momentum, start)


def continue_trajectory(proposal: Proposal, grad: Tensor, settings: TransitionSettings) -> None:
    """Make one full kick, by the gradient at ``proposal.position``, and one drift, in place."""
    momentum = kick(proposal.momentum, proposal.position, grad, settings, 1.0)
    proposal.momentum.copy_(momentum)
    proposal.position.copy_(_drift(proposal.position, momentum, settings))


def accept_select(
    latents: Tensor,
    energy: Tensor,
    grad: Tensor,
    proposal: Proposal,
    proposed_energy: Tensor,
    proposed_grad: Tensor,
    settings: TransitionSettings,
    stream: NoiseStream,
) -> Selected:
    """Last half kick, Metropolis test with ``min(1, exp(H_old - H_new))``, and selection.

    A proposal whose Hamiltonian, position or gradient is not finite is rejected, with acceptance
    probability 0 and an energy change of +inf. Observations that are not active keep their state,
    and report probability 0 and change 0.
    """
    momentum = kick(proposal.momentum, proposal.position, proposed_grad, settings, 0.5)
    end = hamiltonian(proposed_energy, proposal.position, momentum, settings)
    change = end - proposal.hamiltonian
    change = torch.where(change.isfinite(), change, torch.inf)
    probability = torch.exp(-change.clamp(min=0.0))
    u = uniforms(stream, Purpose.ACCEPT, latents.shape[1], torch.float64)
    accepted = u < probability
    if settings.active is not None:
        accepted = accepted & settings.active[:, None]
        probability = torch.where(settings.active[:, None], probability, 0.0)
        change = torch.where(settings.active[:, None], change, 0.0)
    keep = accepted[..., None]
    return Selected(
        torch.where(keep, proposal.position, latents),
        torch.where(accepted, proposed_energy, energy),
        torch.where(keep, proposed_grad, grad),
        probability,
        accepted,
        change,
    )


def adapt_step_size(
    step_size: Tensor,
    running_acceptance: Tensor,
    acceptance_probability: Tensor,
    active: Tensor | None,
    rule: AdaptationRule,
) -> tuple[Tensor, Tensor]:
    """The published rule: new step sizes and new running acceptance rates, ``(B,)`` each.

    A step size grows if the running rate *before* this update is above the target; otherwise it
    shrinks. With ``rule.per_chain`` both are ``(B, N)``, and those of a chain depend on its own
    acceptance probability alone.
    """
    # `torch.where` of two Python floats would round them to float32, so both branches are tensors.
    grown, shrunk = step_size * rule.increase, step_size * rule.decrease
    step = torch.where(running_acceptance > rule.target, grown, shrunk)
    step = step.clamp(rule.minimum, rule.maximum)
    acceptance = acceptance_probability if rule.per_chain else acceptance_probability.mean(-1)
    running = rule.decay * running_acceptance + (1.0 - rule.decay) * acceptance
    if active is None:
        return step, running
    if rule.per_chain:
        active = active[:, None]
    return torch.where(active, step, step_size), torch.where(active, running, running_acceptance)


def systematic_ancestors(log_weights: Tensor, uniform: Tensor, wanted: Tensor | None) -> Tensor:
    """Systematic resampling: the index of the particle that replaces each of N, ``(B, N)`` int64.

    Observations that are not ``wanted`` (``(B,)`` bool, None for all) keep every particle.
    """
    count = log_weights.shape[-1]
    ancestors = systematic(log_weights, uniform, count)
    if wanted is None:
        return ancestors
    return torch.where(wanted[:, None], ancestors, torch.arange(count, device=ancestors.device))


def systematic(log_weights: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Indices ``(B, count)`` int64 of particles, drawn by their ``log_weights`` ``(B, K)``.

    One ``uniform`` ``(B,)`` per observation places ``count`` equidistant points on the cumulative
    weights; each point selects the particle in whose interval it lies.
    """
    upto = torch.softmax(log_weights, -1).cumsum(-1)
    index = torch.arange(count, device=upto.device)
    points = (index + uniform[:, None]) / count * upto[:, -1:]
    return torch.searchsorted(upto, points, right=True).clamp(max=upto.shape[-1] - 1)


def observation_uniforms(stream: NoiseStream, purpose: Purpose) -> Tensor:
    """One uniform in (0, 1) per observation, ``(B,)`` float64."""
    return uniforms(stream, purpose, 1, torch.float64)[:, 0]


def measure(x: Tensor, spec: MisfitSpec) -> Tensor:
    """The measured values ``(n, M)`` of outputs ``(n, *output_shape)``."""
    if spec.kind == "mask":
        return x.flatten(1)
    if spec.kind == "stride":
        return x[:, :, :: spec.factor, :: spec.factor].flatten(1)
    n, c, h, w = x.shape
    k = spec.factor
    return x.reshape(n, c, h // k, k, w // k, k).mean((3, 5)).flatten(1)


def measure_transpose(values: Tensor, spec: MisfitSpec) -> Tensor:
    """The adjoint of `measure`: ``(n, M)`` to ``(n, *output_shape)``."""
    n = values.shape[0]
    if spec.kind == "mask":
        return values.reshape(n, *spec.output_shape)
    c, h, w = spec.output_shape
    k = spec.factor
    if spec.kind == "stride":
        out = values.new_zeros(n, c, h, w)
        out[:, :, ::k, ::k] = values.reshape(n, c, -(-h // k), -(-w // k))
        return out
    blocks = (values / (k * k)).reshape(n, c, h // k, 1, w // k, 1)
    return blocks.expand(n, c, h // k, k, w // k, k).reshape(n, c, h, w)


def misfit(x: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of outputs ``x``, and its gradient with respect to ``x``.

    ``x`` is ``(n, *output_shape)``, and ``observation`` ``(n,)`` int64 says which observation each
    output belongs to. The energy ``sum_m weight_m r_m^2`` is ``(n,)`` float64, summed in float64
    from residuals r in the dtype of ``x``; the gradient has the shape and dtype of ``x``. Residuals
    of unobserved entries are replaced by 0, so whatever stands there (NaN too) has no effect.
    """
    residual = measure(x, spec) - spec.target[observation]
    if spec.mask is not None:
        mask = spec.mask.expand(spec.target.shape)[observation].bool()
        residual = torch.where(mask, residual, 0.0)
    weight = spec.weight.expand(spec.target.shape[0], -1)[observation]
    r = residual.double()
    energy = (weight.double() * r * r).sum(-1)
    return energy, measure_transpose(2.0 * weight * residual, spec)


def norm(x: Tensor, bias: Tensor, slope: float, normalise: bool) -> tuple[Tensor, Tensor | None]:
    """Leaky ReLU of ``x + bias``, then pixel norm (Karras et al. 2018, section 4.2) or not.

    ``x`` is ``(..., C)`` and ``bias`` is ``(C,)``. Returns the output and, with ``normalise``, the
    factor of the norm, ``1 / sqrt(mean_c(y^2) + 1e-8)`` of shape ``(...)``, otherwise None.
    """
    y = leaky_relu(x + bias, slope)
    if not normalise:
        return y, None
    scale = torch.rsqrt(y.square().mean(-1) + PIXEL_NORM_EPSILON)
    return y * scale[..., None], scale


def norm_grad(grad: Tensor, out: Tensor, scale: Tensor | None, slope: float) -> Tensor:
    """The gradient with respect to ``x`` of `norm`.

    ``grad`` is the gradient with respect to the output of `norm`; ``out`` and ``scale`` are what it
    returned; ``slope`` is that of the leaky ReLU.
    """
    if scale is not None:
        grad = scale[..., None] * (grad - out * (grad * out).mean(-1, keepdim=True))
    return torch.where(out > 0, grad, slope * grad)


def to_rgb_misfit(
    out: Tensor,
    scale: Tensor | None,
    slope: float,
    weight: Tensor,
    bias: Tensor,
    bounded: bool,
    spec: MisfitSpec,
    observation: Tensor,
) -> tuple[Tensor, Tensor]:
    """Misfit of the image ``out @ weight.T + bias``, through tanh where ``bounded``.

    ``out`` ``(n, H, W, C)`` and ``scale`` are those of `norm`; ``weight`` is ``(image channels,
    C)``, ``bias`` ``(image channels,)``. Energies ``(n,)`` float64, and their gradient with
    respect to the input of `norm`.
    """
    image = out @ weight.T + bias
    if bounded:
        image = torch.tanh(image)
    energy, by_image = misfit(image.permute(0, 3, 1, 2), spec, observation)
    grad = by_image.permute(0, 2, 3, 1)
    if bounded:
        grad = grad * (1.0 - image.square())
    return energy, norm_grad(grad @ weight, out, scale, slope)

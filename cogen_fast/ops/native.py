"""The ops on CPU tensors in C++: names, shapes, dtypes and meaning as in `reference`.

float32 and float64 only. The extension is loaded at the first call, never at import. An input that
is not contiguous is copied. What is changed in place (`continue_trajectory`) must be contiguous.
Nothing here records gradients.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from cogen_fast.ops.checked import (
    Accepting,
    Adapting,
    Begun,
    Continued,
    Observed,
    Outputs,
    Planes,
    Resampling,
    Settings,
    check_stream,
)
from cogen_fast.ops.checks import check_sizes, require_float
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.reference import Proposal, Selected
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

_module: ModuleType | None = None
_failure: ImportError | None = None


def extension() -> ModuleType:
    """The compiled module `cogen_fast._native`, loaded once; a failure is remembered.

    Raises:
        ImportError: it was not built or cannot be loaded here, with the cause.
    """
    global _module, _failure
    if _module is not None:
        return _module
    if _failure is None:
        try:
            from cogen_fast import _native
        except ImportError as error:
            _failure = error
        else:
            _module = _native
            return _module
    raise ImportError(
        f"the extension cogen_fast._native cannot be loaded ({_failure}); it is compiled when the "
        "package is installed (pip install .), and a source folder on the import path hides it"
    ) from _failure


def suffixed(op: str, dtype: torch.dtype) -> str:
    """The extension's name of an op for float32 or float64."""
    return op + ("_f32" if dtype is torch.float32 else "_f64")


def address(value: Tensor | None) -> int:
    """Where a contiguous tensor lies, 0 for none."""
    return 0 if value is None else value.data_ptr()


def initial_latents(stream: NoiseStream, chains: int, size: int, dtype: torch.dtype) -> Tensor:
    """Prior draws ``(B, chains, size)``; see `reference.initial_latents`."""
    op = suffixed("initial_latents", require_float("dtype", dtype))
    check_sizes(chains, size)
    seed, transition, observation = check_stream(stream)
    latents = torch.empty((len(transition), chains, size), dtype=dtype)
    getattr(extension(), op)(
        *latents.shape,
        seed,
        transition.data_ptr(),
        observation.data_ptr(),
        latents.data_ptr(),
        torch.get_num_threads(),
    )
    return latents


def begin_trajectory(
    latents: Tensor, energy: Tensor, grad: Tensor, settings: TransitionSettings, stream: NoiseStream
) -> Proposal:
    """Momentum refresh, Hamiltonian, half a kick, one drift; see `reference.begin_trajectory`."""
    given = Begun.of(latents, energy, grad, settings, stream)
    seed, transition, observation = given.stream
    position = torch.empty_like(given.latents)
    momentum = torch.empty_like(given.latents)
    hamiltonian = torch.empty_like(given.energy)
    getattr(extension(), suffixed("begin_trajectory", position.dtype))(
        *given.shape,
        seed,
        transition.data_ptr(),
        observation.data_ptr(),
        *_addresses(given.settings),
        given.latents.data_ptr(),
        given.energy.data_ptr(),
        given.grad.data_ptr(),
        position.data_ptr(),
        momentum.data_ptr(),
        hamiltonian.data_ptr(),
        torch.get_num_threads(),
    )
    return Proposal(position, momentum, hamiltonian)


def _addresses(settings: Settings) -> tuple[int, int, int, int, int]:
    """Of beta, prior weight and step sizes, how many of these each has, and of the mass."""
    beta, prior_weight, step_size, steps_each, mass = settings
    return (
        beta.data_ptr(),
        prior_weight.data_ptr(),
        step_size.data_ptr(),
        steps_each,
        address(mass),
    )


def continue_trajectory(proposal: Proposal, grad: Tensor, settings: TransitionSettings) -> None:
    """One kick and one drift, in place; see `reference.continue_trajectory`."""
    given = Continued.of(proposal, grad, settings)
    getattr(extension(), suffixed("continue_trajectory", given.position.dtype))(
        *given.shape,
        *_addresses(given.settings),
        given.position.data_ptr(),
        given.momentum.data_ptr(),
        given.grad.data_ptr(),
        torch.get_num_threads(),
    )


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
    """Last half kick, Metropolis test and selection; see `reference.accept_select`."""
    given = Accepting.of(
        latents, energy, grad, proposal, proposed_energy, proposed_grad, settings, stream
    )
    seed, transition, observation = given.stream
    out = given.empty()
    getattr(extension(), suffixed("accept_select", given.latents.dtype))(
        *given.shape,
        seed,
        transition.data_ptr(),
        observation.data_ptr(),
        *_addresses(given.settings),
        address(given.active),
        given.latents.data_ptr(),
        given.energy.data_ptr(),
        given.grad.data_ptr(),
        *[part.data_ptr() for part in given.proposal],
        given.proposed_energy.data_ptr(),
        given.proposed_grad.data_ptr(),
        *[each.data_ptr() for each in out],
        torch.get_num_threads(),
    )
    return out


def adapt_step_size(
    step_size: Tensor,
    running_acceptance: Tensor,
    acceptance_probability: Tensor,
    active: Tensor | None,
    rule: AdaptationRule,
) -> tuple[Tensor, Tensor]:
    """The published rule; see `reference.adapt_step_size`."""
    (observations, chains), step_size, running, probability, active = Adapting.of(
        step_size, running_acceptance, acceptance_probability, active, rule
    )
    if rule.per_chain:  # a chain is to the extension what an observation of one chain is
        active = None if active is None else active[:, None].expand_as(probability).contiguous()
        observations, chains = observations * chains, 1
    new_step_size, new_running = torch.empty_like(step_size), torch.empty_like(running)
    extension().adapt_step_size(
        observations,
        chains,
        step_size.data_ptr(),
        running.data_ptr(),
        probability.data_ptr(),
        address(active),
        rule.target,
        rule.decay,
        rule.increase,
        rule.decrease,
        rule.minimum,
        rule.maximum,
        new_step_size.data_ptr(),
        new_running.data_ptr(),
    )
    return new_step_size, new_running


def systematic_ancestors(log_weights: Tensor, uniform: Tensor, wanted: Tensor | None) -> Tensor:
    """Systematic resampling, ``(B, N)`` int64; see `reference.systematic_ancestors`."""
    given = Resampling.of(log_weights, uniform, wanted)
    out = torch.empty_like(given.log_weights, dtype=torch.int64)
    extension().systematic_ancestors(
        *given.shape,
        given.log_weights.data_ptr(),
        given.uniform.data_ptr(),
        address(given.wanted),
        out.data_ptr(),
    )
    return out


def observation_uniforms(stream: NoiseStream, purpose: Purpose) -> Tensor:
    """One uniform per observation, ``(B,)`` float64; see `reference.observation_uniforms`."""
    seed, transition, observation = check_stream(stream)
    out = torch.empty(len(transition), dtype=torch.float64)
    extension().observation_uniforms(
        len(transition),
        int(purpose),
        seed,
        transition.data_ptr(),
        observation.data_ptr(),
        out.data_ptr(),
    )
    return out


def observed_arguments(observed: Observed) -> tuple[int, int, int, int, int, bool]:
    """Addresses and row strides of target, mask and weight, as the extension takes them."""
    return (
        observed.target.data_ptr(),
        address(observed.mask),
        observed.mask_stride,
        observed.weight.data_ptr(),
        observed.weight_stride,
        observed.elementwise,
    )


def misfit(x: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of outputs and its gradient; see `reference.misfit`.

    ``observation`` must hold values in [0, B); they are not counted from the end.
    """
    x, observed, observation = Outputs.of(x, spec, observation)
    rows = len(x)
    energy, grad = torch.empty(rows, dtype=torch.float64), torch.empty_like(x)
    getattr(extension(), suffixed("misfit", x.dtype))(
        spec.kind,
        rows,
        *Planes.of(spec),
        *observed.target.shape,
        x.data_ptr(),
        observation.data_ptr(),
        *observed_arguments(observed),
        energy.data_ptr(),
        grad.data_ptr(),
        torch.get_num_threads(),
    )
    return energy, grad

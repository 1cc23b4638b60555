"""The ops on CPU tensors in C++: names, shapes, dtypes and meaning are those of `reference`.

Only float32 and float64 are supported. The extension is loaded at the first call, never at import.
It takes tensors by keyword and verifies itself all that it touches. The checks here come first,
because they name arguments as the caller knows them, and copy inputs that are not contiguous; what
is changed in place (`continue_trajectory`) must be contiguous. Nothing here records gradients for
autograd.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from cogen_fast.ops.checked import (
    AcceptArguments,
    AdaptArguments,
    BeginArguments,
    ContinueArguments,
    MisfitArguments,
    ResampleArguments,
    check_stream,
)
from cogen_fast.ops.checks import check_sizes, require_float
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.reference import Proposal, Selected
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

loaded: ModuleType | None = None
"""The extension, once it has been loaded."""
load_error: ImportError | None = None
"""Why it cannot be loaded, once that has been tried."""


def extension() -> ModuleType:
    """The compiled module `cogen_fast.ops._native`; it is loaded once, and a failure is remembered.

    Raises:
        ImportError: it was not built or cannot be loaded here; the message has the cause.
    """
    global loaded, load_error
    if loaded is not None:
        return loaded
    if load_error is None:
        try:
            from cogen_fast.ops import _native
        except ImportError as error:
            load_error = error
        else:
            loaded = _native
            return loaded
    raise ImportError(
        f"the extension cogen_fast.ops._native cannot be loaded ({load_error}); it is compiled "
        "when the package is installed (pip install .), and a source folder on the import path "
        "hides it"
    ) from load_error


def initial_latents(stream: NoiseStream, chains: int, size: int, dtype: torch.dtype) -> Tensor:
    """Prior draws ``(B, chains, size)``; see `reference.initial_latents`."""
    require_float("dtype", dtype)
    check_sizes(chains, size)
    seed, transition, observation = check_stream(stream)
    latents = torch.empty((len(transition), chains, size), dtype=dtype, device="cpu")
    extension().initial_latents(
        latents=latents,
        seed=seed,
        transition=transition,
        observation=observation,
        threads=torch.get_num_threads(),
    )
    return latents


def begin_trajectory(
    latents: Tensor, energy: Tensor, grad: Tensor, settings: TransitionSettings, stream: NoiseStream
) -> Proposal:
    """Momentum, Hamiltonian, half a kick and one drift; see `reference.begin_trajectory`."""
    given = BeginArguments.of(latents, energy, grad, settings, stream)
    seed, transition, observation = given.stream
    position = torch.empty_like(given.latents)
    momentum = torch.empty_like(given.latents)
    hamiltonian = torch.empty_like(given.energy)
    extension().begin_trajectory(
        latents=given.latents,
        energy=given.energy,
        grad=given.grad,
        beta=given.settings.beta,
        prior_weight=given.settings.prior_weight,
        step_size=given.settings.step_size,
        inverse_mass=given.settings.inverse_mass,
        seed=seed,
        transition=transition,
        observation=observation,
        position=position,
        momentum=momentum,
        hamiltonian=hamiltonian,
        threads=torch.get_num_threads(),
    )
    return Proposal(position, momentum, hamiltonian)


def continue_trajectory(proposal: Proposal, grad: Tensor, settings: TransitionSettings) -> None:
    """One kick and one drift, in place; see `reference.continue_trajectory`."""
    given = ContinueArguments.of(proposal, grad, settings)
    extension().continue_trajectory(
        position=given.position,
        momentum=given.momentum,
        grad=given.grad,
        beta=given.settings.beta,
        prior_weight=given.settings.prior_weight,
        step_size=given.settings.step_size,
        inverse_mass=given.settings.inverse_mass,
        threads=torch.get_num_threads(),
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
    given = AcceptArguments.of(
        latents, energy, grad, proposal, proposed_energy, proposed_grad, settings, stream
    )
    seed, transition, observation = given.stream
    out = given.empty()
    extension().accept_select(
        latents=given.latents,
        energy=given.energy,
        grad=given.grad,
        position=given.proposal.position,
        momentum=given.proposal.momentum,
        hamiltonian=given.proposal.hamiltonian,
        proposed_energy=given.proposed_energy,
        proposed_grad=given.proposed_grad,
        beta=given.settings.beta,
        prior_weight=given.settings.prior_weight,
        step_size=given.settings.step_size,
        inverse_mass=given.settings.inverse_mass,
        active=given.active,
        seed=seed,
        transition=transition,
        observation=observation,
        out_latents=out.latents,
        out_energy=out.energy,
        out_grad=out.grad,
        out_probability=out.acceptance_probability,
        out_accepted=out.accepted,
        out_change=out.energy_change,
        threads=torch.get_num_threads(),
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
    _, step_size, running, probability, active = AdaptArguments.of(
        step_size, running_acceptance, acceptance_probability, active, rule
    )
    if rule.per_chain and active is not None:  # the extension takes a flag for each step size
        active = active[:, None].expand_as(probability).contiguous()
    new_step_size, new_running = torch.empty_like(step_size), torch.empty_like(running)
    extension().adapt_step_size(
        acceptance_probability=probability,
        step_size=step_size,
        running_acceptance=running,
        active=active,
        target=rule.target,
        decay=rule.decay,
        increase=rule.increase,
        decrease=rule.decrease,
        minimum=rule.minimum,
        maximum=rule.maximum,
        new_step_size=new_step_size,
        new_running_acceptance=new_running,
    )
    return new_step_size, new_running


def systematic_ancestors(log_weights: Tensor, uniform: Tensor, wanted: Tensor | None) -> Tensor:
    """Systematic resampling, ``(B, N)`` int64; see `reference.systematic_ancestors`."""
    given = ResampleArguments.of(log_weights, uniform, wanted)
    out = torch.empty_like(given.log_weights, dtype=torch.int64)
    extension().systematic_ancestors(
        log_weights=given.log_weights, uniform=given.uniform, wanted=given.wanted, out=out
    )
    return out


def observation_uniforms(stream: NoiseStream, purpose: Purpose) -> Tensor:
    """One uniform per observation, ``(B,)`` float64; see `reference.observation_uniforms`."""
    seed, transition, observation = check_stream(stream)
    out = torch.empty(len(transition), dtype=torch.float64, device="cpu")
    extension().observation_uniforms(
        out=out,
        purpose=int(purpose),
        seed=seed,
        transition=transition,
        observation=observation,
    )
    return out


def misfit(x: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of outputs and its gradient; see `reference.misfit`.

    ``observation`` must hold values in [0, B); negative values do not count from the end.
    """
    x, observed, observation = MisfitArguments.of(x, spec, observation)
    energy, grad = torch.empty(len(x), dtype=torch.float64, device="cpu"), torch.empty_like(x)
    extension().misfit(
        outputs=x,
        kind=spec.kind,
        factor=1 if spec.kind == "mask" else spec.factor,
        target=observed.target,
        mask=observed.mask,
        weight=observed.weight,
        observation=observation,
        energy=energy,
        grad=grad,
        threads=torch.get_num_threads(),
    )
    return energy, grad

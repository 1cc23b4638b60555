"""The ops on CPU tensors in C++: names, shapes, dtypes and meaning as in `reference`.

float32 and float64 only. The extension is loaded at the first call, never at import. Arguments are
checked here; an input that is not contiguous is copied. What is changed in place
(`continue_trajectory`) must be contiguous. Nothing here records gradients.

These run hundreds of thousands of times on tensors of a few hundred numbers, so the checks below
are written to cost little where nothing is wrong.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.reference import Proposal, Selected
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

_module: ModuleType | None = None
_failure: ImportError | None = None

_KINDS = ("mask", "pool", "stride")
_SEED_LIMIT = 1 << 64


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


def _check(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``value``, or a contiguous copy of it."""
    try:
        if (
            value.shape == shape
            and value.dtype is dtype
            and value.is_cpu
            and value.is_contiguous()
            and not value.is_neg()
        ):
            return value
    except (AttributeError, RuntimeError):  # no tensor, or a sparse one: told below
        pass
    _require(name, value, shape, dtype)
    return value.resolve_neg().contiguous()


def _check_in_place(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if _check(name, value, shape, dtype) is not value:
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {value.stride()}")
    return value


def _require_tensor(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
    return value


def _require(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _require_tensor(name, value)
    if not value.is_cpu:
        raise ValueError(f"{name}: expected a tensor on cpu, got one on {value.device}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.dtype is not dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {value.dtype}")


def _suffixed(name: str, op: str, dtype: torch.dtype) -> str:
    if dtype is torch.float32:
        return op + "_f32"
    if dtype is torch.float64:
        return op + "_f64"
    raise TypeError(f"{name}: expected dtype torch.float32 or torch.float64, got {dtype}")


def _check_settings(
    settings: TransitionSettings, latents: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, int, Tensor | None]:
    """Beta, prior weight, step size, its number per observation, inverse mass: for the extension.

    ``latents`` is their shape.
    """
    observations, chains, size = latents
    shape: tuple[int, ...] = (observations,)
    mass, step_size = settings.inverse_mass, settings.step_size
    per_chain = _require_tensor("settings.step_size", step_size).ndim == 2
    of_steps = (observations, chains) if per_chain else shape
    return (
        _check("settings.beta", settings.beta, shape, torch.float64),
        _check("settings.prior_weight", settings.prior_weight, shape, torch.float64),
        _check("settings.step_size", step_size, of_steps, torch.float64),
        chains if per_chain else 1,
        None
        if mass is None
        else _check("settings.inverse_mass", mass, (observations, size), dtype),
    )


def _check_active(name: str, active: Tensor | None, observations: int) -> Tensor | None:
    return None if active is None else _check(name, active, (observations,), torch.bool)


def _check_stream(stream: NoiseStream, observations: int) -> tuple[int, Tensor, Tensor]:
    """Seed, transition and observation; their values are checked in the extension."""
    seed, shape = stream.seed, (observations,)
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"stream.seed: expected an integer in [0, 2^64), got {seed}")
    return (
        seed,
        _check("stream.transition", stream.transition, shape, torch.int64),
        _check("stream.observation", stream.observation, shape, torch.int64),
    )


def _shape_of(name: str, value: Tensor) -> tuple[int, int, int]:
    shape = _require_tensor(name, value).shape
    if len(shape) != 3 or shape[2] == 0:
        raise ValueError(f"{name}: expected shape (B, N, d) with d > 0, got {tuple(shape)}")
    return shape[0], shape[1], shape[2]


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def initial_latents(stream: NoiseStream, chains: int, size: int, dtype: torch.dtype) -> Tensor:
    """Prior draws ``(B, chains, size)``; see `reference.initial_latents`."""
    op = _suffixed("dtype", "initial_latents", dtype)
    if chains < 0 or size <= 0:
        raise ValueError(f"chains, size: expected at least 0 and 1, got {chains} and {size}")
    observations = _require_tensor("stream.transition", stream.transition).numel()
    seed, transition, observation = _check_stream(stream, observations)
    latents = torch.empty((observations, chains, size), dtype=dtype)
    getattr(extension(), op)(
        observations,
        chains,
        size,
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
    dtype = _require_tensor("latents", latents).dtype
    op = _suffixed("latents", "begin_trajectory", dtype)
    shape = observations, chains, size = _shape_of("latents", latents)
    latents = _check("latents", latents, shape, dtype)
    energy = _check("energy", energy, (observations, chains), torch.float64)
    grad = _check("grad", grad, shape, dtype)
    beta, prior_weight, step_size, steps_each, mass = _check_settings(settings, shape, dtype)
    seed, transition, observation = _check_stream(stream, observations)
    position = torch.empty_like(latents)
    momentum = torch.empty_like(latents)
    hamiltonian = torch.empty_like(energy)
    getattr(extension(), op)(
        observations,
        chains,
        size,
        seed,
        transition.data_ptr(),
        observation.data_ptr(),
        beta.data_ptr(),
        prior_weight.data_ptr(),
        step_size.data_ptr(),
        steps_each,
        _address(mass),
        latents.data_ptr(),
        energy.data_ptr(),
        grad.data_ptr(),
        position.data_ptr(),
        momentum.data_ptr(),
        hamiltonian.data_ptr(),
        torch.get_num_threads(),
    )
    return Proposal(position, momentum, hamiltonian)


def continue_trajectory(proposal: Proposal, grad: Tensor, settings: TransitionSettings) -> None:
    """One kick and one drift, in place; see `reference.continue_trajectory`."""
    position, momentum, _ = proposal
    dtype = _require_tensor("proposal.position", position).dtype
    op = _suffixed("proposal.position", "continue_trajectory", dtype)
    shape = observations, chains, size = _shape_of("proposal.position", position)
    _check_in_place("proposal.position", position, shape, dtype)
    _check_in_place("proposal.momentum", momentum, shape, dtype)
    grad = _check("grad", grad, shape, dtype)
    beta, prior_weight, step_size, steps_each, mass = _check_settings(settings, shape, dtype)
    getattr(extension(), op)(
        observations,
        chains,
        size,
        beta.data_ptr(),
        prior_weight.data_ptr(),
        step_size.data_ptr(),
        steps_each,
        _address(mass),
        position.data_ptr(),
        momentum.data_ptr(),
        grad.data_ptr(),
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
    dtype = _require_tensor("latents", latents).dtype
    op = _suffixed("latents", "accept_select", dtype)
    shape = observations, chains, size = _shape_of("latents", latents)
    per_chain = (observations, chains)
    latents = _check("latents", latents, shape, dtype)
    energy = _check("energy", energy, per_chain, torch.float64)
    grad = _check("grad", grad, shape, dtype)
    position = _check("proposal.position", proposal.position, shape, dtype)
    momentum = _check("proposal.momentum", proposal.momentum, shape, dtype)
    start = _check("proposal.hamiltonian", proposal.hamiltonian, per_chain, torch.float64)
    proposed_energy = _check("proposed_energy", proposed_energy, per_chain, torch.float64)
    proposed_grad = _check("proposed_grad", proposed_grad, shape, dtype)
    beta, prior_weight, step_size, steps_each, mass = _check_settings(settings, shape, dtype)
    active = _check_active("settings.active", settings.active, observations)
    seed, transition, observation = _check_stream(stream, observations)
    out = Selected(
        torch.empty_like(latents),
        torch.empty_like(energy),
        torch.empty_like(grad),
        torch.empty_like(energy),
        torch.empty_like(energy, dtype=torch.bool),
        torch.empty_like(energy),
    )
    getattr(extension(), op)(
        observations,
        chains,
        size,
        seed,
        transition.data_ptr(),
        observation.data_ptr(),
        beta.data_ptr(),
        prior_weight.data_ptr(),
        step_size.data_ptr(),
        steps_each,
        _address(mass),
        _address(active),
        latents.data_ptr(),
        energy.data_ptr(),
        grad.data_ptr(),
        position.data_ptr(),
        momentum.data_ptr(),
        start.data_ptr(),
        proposed_energy.data_ptr(),
        proposed_grad.data_ptr(),
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
    observations, chains = shape = _population("acceptance_probability", acceptance_probability)
    each = shape if rule.per_chain else (observations,)
    step_size = _check("step_size", step_size, each, torch.float64)
    running = _check("running_acceptance", running_acceptance, each, torch.float64)
    probability = _check("acceptance_probability", acceptance_probability, shape, torch.float64)
    active = _check_active("active", active, observations)
    if rule.per_chain:  # a chain is to the extension what an observation of one chain is
        active = None if active is None else active[:, None].expand(shape).contiguous()
        observations, chains = observations * chains, 1
    new_step_size, new_running = torch.empty_like(step_size), torch.empty_like(running)
    extension().adapt_step_size(
        observations,
        chains,
        step_size.data_ptr(),
        running.data_ptr(),
        probability.data_ptr(),
        _address(active),
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


def _population(name: str, value: Tensor) -> tuple[int, int]:
    shape = _require_tensor(name, value).shape
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{name}: expected shape (B, N) with N > 0, got {tuple(shape)}")
    return shape[0], shape[1]


def next_beta(
    energy: Tensor, log_weights: Tensor, beta: Tensor, kept: Tensor, active: Tensor | None
) -> Tensor:
    """The next inverse temperature of each observation; see `reference.next_beta`."""
    observations, chains = _population("energy", energy)
    energy = _check("energy", energy, (observations, chains), torch.float64)
    log_weights = _check("log_weights", log_weights, (observations, chains), torch.float64)
    beta = _check("beta", beta, (observations,), torch.float64)
    kept = _check("kept", kept, (observations,), torch.float64)
    active = _check_active("active", active, observations)
    out = torch.empty_like(beta)
    extension().next_beta(
        observations,
        chains,
        energy.data_ptr(),
        log_weights.data_ptr(),
        beta.data_ptr(),
        kept.data_ptr(),
        _address(active),
        out.data_ptr(),
    )
    return out


def systematic_ancestors(log_weights: Tensor, uniform: Tensor, wanted: Tensor | None) -> Tensor:
    """Systematic resampling, ``(B, N)`` int64; see `reference.systematic_ancestors`."""
    observations, chains = _population("log_weights", log_weights)
    log_weights = _check("log_weights", log_weights, (observations, chains), torch.float64)
    uniform = _check("uniform", uniform, (observations,), torch.float64)
    wanted = _check_active("wanted", wanted, observations)
    out = torch.empty_like(log_weights, dtype=torch.int64)
    extension().systematic_ancestors(
        observations,
        chains,
        log_weights.data_ptr(),
        uniform.data_ptr(),
        _address(wanted),
        out.data_ptr(),
    )
    return out


def observation_uniforms(stream: NoiseStream, purpose: Purpose) -> Tensor:
    """One uniform per observation, ``(B,)`` float64; see `reference.observation_uniforms`."""
    observations = _require_tensor("stream.transition", stream.transition).numel()
    seed, transition, observation = _check_stream(stream, observations)
    out = torch.empty(observations, dtype=torch.float64)
    extension().observation_uniforms(
        observations,
        int(purpose),
        seed,
        transition.data_ptr(),
        observation.data_ptr(),
        out.data_ptr(),
    )
    return out


def _planes(spec: MisfitSpec) -> tuple[int, int, int, int]:
    """Channels, height, width and factor as the extension sees an output."""
    if spec.kind == "mask":
        return 1, 1, math.prod(spec.output_shape), 1
    if spec.kind not in _KINDS:
        raise ValueError(f"spec.kind: expected one of {', '.join(_KINDS)}, got {spec.kind}")
    if len(spec.output_shape) != 3:
        raise ValueError(f"spec.output_shape: expected (C, H, W), got {spec.output_shape}")
    if spec.factor < 1:
        raise ValueError(f"spec.factor: expected at least 1, got {spec.factor}")
    channels, height, width = spec.output_shape
    if spec.kind == "pool" and (height % spec.factor or width % spec.factor):
        raise ValueError(
            f"spec.factor: expected a divisor of {height} and {width}, got {spec.factor}"
        )
    return channels, height, width, spec.factor


def _check_rows(
    name: str, value: Tensor, observations: int, widths: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """A tensor of 1 or B rows, as wide as one of ``widths``."""
    rows, width = value.shape if _require_tensor(name, value).dim() == 2 else (-1, -1)
    if rows not in (1, observations) or width not in widths:
        expected = " or ".join(str(w) for w in widths)
        raise ValueError(
            f"{name}: expected shape (1 or {observations}, {expected}), got {tuple(value.shape)}"
        )
    return _check(name, value, (rows, width), dtype)


class Observed(NamedTuple):
    """What is observed, checked, as the extension takes it."""

    target: Tensor
    mask: Tensor | None
    weight: Tensor

    @classmethod
    def of(cls, spec: MisfitSpec, rows: int, dtype: torch.dtype) -> Observed:
        """That of ``rows`` outputs; TypeError or ValueError naming the part of ``spec``."""
        if _require_tensor("spec.target", spec.target).ndim == 0:
            raise ValueError("spec.target: expected shape (n, ...), got ()")
        channels, height, width, factor = _planes(spec)
        measured = channels * -(-height // factor) * -(-width // factor)
        observations = spec.target.shape[0]
        if rows > 0 and observations == 0:
            raise ValueError(f"spec.target: expected a row for {rows} outputs, got none")
        target = _check("spec.target", spec.target, (observations, measured), dtype)
        weight = _check_rows("spec.weight", spec.weight, observations, (1, measured), dtype)
        mask = spec.mask
        if mask is not None:
            mask = _check_rows("spec.mask", mask, observations, (measured,), torch.uint8)
        return cls(target, mask, weight)

    def arguments(self) -> tuple[int, int, int, int, int, bool]:
        """Addresses and row strides (0 where one row serves all) of target, mask and weight."""
        mask, (weight_rows, weight_width) = self.mask, self.weight.shape
        return (
            self.target.data_ptr(),
            _address(mask),
            mask.shape[1] if mask is not None and mask.shape[0] > 1 else 0,
            self.weight.data_ptr(),
            weight_width if weight_rows > 1 else 0,
            weight_width > 1,
        )


def misfit(x: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error of outputs and its gradient; see `reference.misfit`.

    ``observation`` must hold values in [0, B); they are not counted from the end.
    """
    if _require_tensor("x", x).ndim == 0:
        raise ValueError("x: expected shape (n, ...), got ()")
    dtype, rows = x.dtype, x.shape[0]
    op = _suffixed("x", "misfit", dtype)
    observed = Observed.of(spec, rows, dtype)
    x = _check("x", x, (rows, *spec.output_shape), dtype)
    observation = _check("observation", observation, (rows,), torch.int64)
    energy, grad = torch.empty(rows, dtype=torch.float64), torch.empty_like(x)
    getattr(extension(), op)(
        spec.kind,
        rows,
        *_planes(spec),
        *observed.target.shape,
        x.data_ptr(),
        observation.data_ptr(),
        *observed.arguments(),
        energy.data_ptr(),
        grad.data_ptr(),
        torch.get_num_threads(),
    )
    return energy, grad

"""The arguments of each op, checked and contiguous, for the backends that launch kernels on them.

Each class holds the arguments of the op of `reference` that it names. Its ``of`` checks them, and
raises TypeError or ValueError naming the argument at fault. Values on a device are not read,
because that would wait for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cogen_fast.ops.checks import (
    CPU,
    check,
    check_active,
    check_in_place,
    check_rows,
    per_chain_shape_of,
    require_float,
    require_tensor,
    shape_of,
)
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.ops.reference import Proposal, Selected
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

_KINDS = ("mask", "pool", "stride")
_SEED_LIMIT = 1 << 64


class CheckedSettings(NamedTuple):
    """The fields of `TransitionSettings` except ``active``."""

    beta: Tensor
    prior_weight: Tensor
    step_size: Tensor
    inverse_mass: Tensor | None

    @property
    def per_chain(self) -> bool:
        """Whether each chain has a step size of its own."""
        return self.step_size.ndim == 2


def check_settings(
    settings: TransitionSettings,
    latents: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> CheckedSettings:
    """The settings of a transition of latents of shape ``latents``."""
    observations, chains, size = latents
    shape: tuple[int, ...] = (observations,)
    mass, step_size = settings.inverse_mass, settings.step_size
    per_chain = require_tensor("settings.step_size", step_size).ndim == 2
    step_shape = (observations, chains) if per_chain else shape
    return CheckedSettings(
        check("settings.beta", settings.beta, shape, torch.float64, device),
        check("settings.prior_weight", settings.prior_weight, shape, torch.float64, device),
        check("settings.step_size", step_size, step_shape, torch.float64, device),
        None
        if mass is None
        else check("settings.inverse_mass", mass, (observations, size), dtype, device),
    )


class CheckedStream(NamedTuple):
    """The fields of a `NoiseStream`."""

    seed: int
    transition: Tensor
    observation: Tensor


def check_stream(
    stream: NoiseStream, observations: int | None = None, device: torch.device = CPU
) -> CheckedStream:
    """The stream of ``observations`` observations (None: as many as it has).

    The values of its counters are not checked.
    """
    seed = stream.seed
    if observations is None:
        observations = require_tensor("stream.transition", stream.transition).numel()
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"stream.seed: expected an integer in [0, 2^64), got {seed}")
    shape = (observations,)
    return CheckedStream(
        seed,
        check("stream.transition", stream.transition, shape, torch.int64, device),
        check("stream.observation", stream.observation, shape, torch.int64, device),
    )


class BeginArguments(NamedTuple):
    """The arguments of `reference.begin_trajectory`."""

    shape: tuple[int, int, int]
    latents: Tensor
    energy: Tensor
    grad: Tensor
    settings: CheckedSettings
    stream: CheckedStream

    @classmethod
    def of(
        cls,
        latents: Tensor,
        energy: Tensor,
        grad: Tensor,
        settings: TransitionSettings,
        stream: NoiseStream,
        device: torch.device = CPU,
    ) -> BeginArguments:
        """Check the arguments."""
        dtype = require_float("latents", require_tensor("latents", latents).dtype)
        shape = shape_of("latents", latents)
        return cls(
            shape,
            check("latents", latents, shape, dtype, device),
            check("energy", energy, shape[:2], torch.float64, device),
            check("grad", grad, shape, dtype, device),
            check_settings(settings, shape, dtype, device),
            check_stream(stream, shape[0], device),
        )


class ContinueArguments(NamedTuple):
    """The arguments of `reference.continue_trajectory`."""

    shape: tuple[int, int, int]
    position: Tensor
    momentum: Tensor
    grad: Tensor
    settings: CheckedSettings

    @classmethod
    def of(
        cls,
        proposal: Proposal,
        grad: Tensor,
        settings: TransitionSettings,
        device: torch.device = CPU,
    ) -> ContinueArguments:
        """Check the arguments; position and momentum, changed in place, are never copied."""
        position, momentum, _ = proposal
        name = "proposal.position"
        dtype = require_float(name, require_tensor(name, position).dtype)
        shape = shape_of(name, position)
        return cls(
            shape,
            check_in_place(name, position, shape, dtype, device),
            check_in_place("proposal.momentum", momentum, shape, dtype, device),
            check("grad", grad, shape, dtype, device),
            check_settings(settings, shape, dtype, device),
        )


class AcceptArguments(NamedTuple):
    """The arguments of `reference.accept_select`."""

    shape: tuple[int, int, int]
    latents: Tensor
    energy: Tensor
    grad: Tensor
    proposal: Proposal
    proposed_energy: Tensor
    proposed_grad: Tensor
    settings: CheckedSettings
    active: Tensor | None
    stream: CheckedStream

    @classmethod
    def of(
        cls,
        latents: Tensor,
        energy: Tensor,
        grad: Tensor,
        proposal: Proposal,
        proposed_energy: Tensor,
        proposed_grad: Tensor,
        settings: TransitionSettings,
        stream: NoiseStream,
        device: torch.device = CPU,
    ) -> AcceptArguments:
        """Check the arguments."""
        dtype = require_float("latents", require_tensor("latents", latents).dtype)
        shape = shape_of("latents", latents)
        per_chain_shape, f64 = shape[:2], torch.float64
        return cls(
            shape,
            check("latents", latents, shape, dtype, device),
            check("energy", energy, per_chain_shape, f64, device),
            check("grad", grad, shape, dtype, device),
            Proposal(
                check("proposal.position", proposal.position, shape, dtype, device),
                check("proposal.momentum", proposal.momentum, shape, dtype, device),
                check("proposal.hamiltonian", proposal.hamiltonian, per_chain_shape, f64, device),
            ),
            check("proposed_energy", proposed_energy, per_chain_shape, f64, device),
            check("proposed_grad", proposed_grad, shape, dtype, device),
            check_settings(settings, shape, dtype, device),
            check_active("settings.active", settings.active, shape[0], device),
            check_stream(stream, shape[0], device),
        )

    def empty(self) -> Selected:
        """Uninitialised tensors for the result of the op."""
        return Selected(
            torch.empty_like(self.latents),
            torch.empty_like(self.energy),
            torch.empty_like(self.grad),
            torch.empty_like(self.energy),
            torch.empty_like(self.energy, dtype=torch.bool),
            torch.empty_like(self.energy),
        )


class AdaptArguments(NamedTuple):
    """The arguments of `reference.adapt_step_size`, except the rule."""

    shape: tuple[int, int]
    step_size: Tensor
    running: Tensor
    probability: Tensor
    active: Tensor | None

    @classmethod
    def of(
        cls,
        step_size: Tensor,
        running: Tensor,
        probability: Tensor,
        active: Tensor | None,
        rule: AdaptationRule,
        device: torch.device = CPU,
    ) -> AdaptArguments:
        """Check the arguments."""
        shape = per_chain_shape_of("acceptance_probability", probability)
        per_chain_shape: tuple[int, ...] = shape if rule.per_chain else shape[:1]
        return cls(
            shape,
            check("step_size", step_size, per_chain_shape, torch.float64, device),
            check("running_acceptance", running, per_chain_shape, torch.float64, device),
            check("acceptance_probability", probability, shape, torch.float64, device),
            check_active("active", active, shape[0], device),
        )


class ResampleArguments(NamedTuple):
    """The arguments of `reference.systematic_ancestors`."""

    shape: tuple[int, int]
    log_weights: Tensor
    uniform: Tensor
    wanted: Tensor | None

    @classmethod
    def of(
        cls,
        log_weights: Tensor,
        uniform: Tensor,
        wanted: Tensor | None,
        device: torch.device = CPU,
    ) -> ResampleArguments:
        """Check the arguments."""
        shape = per_chain_shape_of("log_weights", log_weights)
        return cls(
            shape,
            check("log_weights", log_weights, shape, torch.float64, device),
            check("uniform", uniform, shape[:1], torch.float64, device),
            check_active("wanted", wanted, shape[0], device),
        )


class ImageLayout(NamedTuple):
    """The layout of an output for the kernels; a "mask" output is one row of entries."""

    channels: int
    height: int
    width: int
    factor: int

    @classmethod
    def of(cls, spec: MisfitSpec) -> ImageLayout:
        """The layout of ``spec``; ValueError naming the field of it that does not fit."""
        if spec.kind == "mask":
            return cls(1, 1, math.prod(spec.output_shape), 1)
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
        return cls(channels, height, width, spec.factor)

    @property
    def measured(self) -> int:
        """The number of values that are measured of an output."""
        return self.channels * -(-self.height // self.factor) * -(-self.width // self.factor)


class Observed(NamedTuple):
    """What is observed of outputs: target ``(B, M)``, mask and weight as in `MisfitSpec`."""

    target: Tensor
    mask: Tensor | None
    weight: Tensor

    @classmethod
    def of(
        cls, spec: MisfitSpec, rows: int, dtype: torch.dtype, device: torch.device = CPU
    ) -> Observed:
        """What is observed of ``rows`` outputs.

        Raises TypeError or ValueError naming the field of ``spec`` that does not fit.
        """
        if require_tensor("spec.target", spec.target).ndim == 0:
            raise ValueError("spec.target: expected shape (n, ...), got ()")
        measured = ImageLayout.of(spec).measured
        count = spec.target.shape[0]
        if rows > 0 and count == 0:
            raise ValueError(f"spec.target: expected a row for {rows} outputs, got none")
        target = check("spec.target", spec.target, (count, measured), dtype, device)
        weight = check_rows("spec.weight", spec.weight, count, (1, measured), dtype, device)
        mask = spec.mask
        if mask is not None:
            mask = check_rows("spec.mask", mask, count, (measured,), torch.uint8, device)
        return cls(target, mask, weight)

    @property
    def mask_stride(self) -> int:
        """Entries from one row of the mask to the next; 0 where all observations share a row."""
        return self.mask.shape[1] if self.mask is not None and self.mask.shape[0] > 1 else 0

    @property
    def weight_stride(self) -> int:
        """Entries from one row of the weights to the next; 0 where all observations share a row."""
        return self.weight.shape[1] if self.weight.shape[0] > 1 else 0

    @property
    def elementwise(self) -> bool:
        """Whether each measured value has a weight of its own."""
        return self.weight.shape[1] > 1


class MisfitArguments(NamedTuple):
    """The arguments of `reference.misfit`: outputs ``(n, ...)``, what is observed, and its rows.

    ``observation`` ``(n,)`` int64 has the row of ``observed`` that each output belongs to.
    """

    x: Tensor
    observed: Observed
    observation: Tensor

    @classmethod
    def of(
        cls, x: Tensor, spec: MisfitSpec, observation: Tensor, device: torch.device = CPU
    ) -> MisfitArguments:
        """Check the arguments."""
        if require_tensor("x", x).ndim == 0:
            raise ValueError("x: expected shape (n, ...), got ()")
        dtype, rows = require_float("x", x.dtype), x.shape[0]
        return cls(
            check("x", x, (rows, *spec.output_shape), dtype, device),
            Observed.of(spec, rows, dtype, device),
            check("observation", observation, (rows,), torch.int64, device),
        )

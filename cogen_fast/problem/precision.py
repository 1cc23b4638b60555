"""The float types in which energies and gradients are computed.

Energies decide which proposals are accepted, so that the samples are from the posterior of G as
computed in ``energy_dtype``. Gradients only make proposals: a cheaper type lowers the acceptance
and leaves the posterior exact (see `cogen_fast.problem.density.SplitPotential`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cogen_fast.problem.adapter import GeneratorAdapter
from cogen_fast.problem.density import GeneratorPotential, LatentMap, Potential, SplitPotential
from cogen_fast.problem.exact_float32 import ExactFloat32
from cogen_fast.problem.observation import Observation
from cogen_fast.problem.prior import first_by_default
from cogen_fast.problem.tf32 import TF32Potential
from cogen_fast.support.arguments import check_choice
from cogen_fast.support.memory import is_out_of_memory

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
GRADIENT_DTYPES = ("float32", "tf32", "bfloat16", "float16")
ENERGY_DTYPES = ("float32", "float64")
_LARGEST_EXPONENT = 40  # largest binary exponent of a scale
_HEADROOM = 6  # powers of 2 below the largest scale that does not overflow at the probes

Half = Callable[[torch.dtype], LatentMap | None]
"""Gives a generator's own version in a half-precision type, or None where it has none."""


@dataclass(frozen=True)
class Precision:
    """The types ``gradient_dtype`` and ``energy_dtype`` of a `Compute`; None is G's own type."""

    gradient: str | None = None
    energy: str | None = None

    def __post_init__(self) -> None:
        if self.gradient is not None:
            check_choice("gradient_dtype", self.gradient, GRADIENT_DTYPES)
        if self.energy is not None:
            check_choice("energy_dtype", self.energy, ENERGY_DTYPES)

    def is_own(self, dtype: torch.dtype) -> bool:
        """Whether both types are ``dtype``, G's own type."""
        names = (self.gradient, self.energy)
        return all(name is None or DTYPES.get(name) == dtype for name in names)

    def settings(self) -> dict[str, str | None]:
        """The types as plain values, for the result and for a checkpoint's identity."""
        return {"gradient_dtype": self.gradient, "energy_dtype": self.energy}


def split(
    adapter: GeneratorAdapter, own: GeneratorPotential, precision: Precision, half: Half
) -> SplitPotential | None:
    """The potential that ``precision`` asks for; None where that is ``own``, of G's own type.

    Gradients of a float16 G are those of scaled energies where they would overflow. ``half`` gives
    the generator in a half-precision type; where it gives None, autocast is used. Raises ValueError
    naming ``gradient_dtype`` or ``energy_dtype`` where G cannot be computed in that type.
    """
    gradient, energy = (
        adapter.input_dtype if name is None else DTYPES.get(name)
        for name in (precision.gradient, precision.energy)
    )
    energies, best = own, None
    if energy is not None and energy != adapter.input_dtype:
        energies = _potential("energy_dtype", adapter, own, energy)
        best = SplitPotential(energies, own)
    if gradient is None:
        return SplitPotential(energies, _in_tf32(adapter, own), finer=best or own)
    if gradient == adapter.input_dtype:
        if gradient != torch.float16 or _gradients_fit(own, adapter.probe_latents).all():
            return best
        power = _scale(own, adapter.probe_latents)
        scaled = own.of(own.generator, _weighted(own.observation, power))
        return SplitPotential(energies, scaled, power)
    if gradient.itemsize == 2 and (cheap := half(gradient)) is not None:
        field = own.of(cheap, own.observation)
    else:
        field = _potential("gradient_dtype", adapter, own, gradient)
    scale = _scale(field, adapter.probe_latents) if gradient == torch.float16 else None
    if scale is not None:
        field = field.of(field.generator, _weighted(field.observation, scale))
    coarser = torch.finfo(gradient).eps > torch.finfo(adapter.input_dtype).eps
    finer: Potential | None = (best or own) if coarser else None
    return SplitPotential(energies, field, scale, finer)


def described(target: SplitPotential | None, precision: Precision) -> tuple[str, ...]:
    """A note for the result on the types, empty where both are G's own."""
    if target is None:
        return ()
    gradient, energy = (name or "G's own type" for name in precision.settings().values())
    if precision.gradient == "tf32" and target.field.observation.spec.target.device.type != "cuda":
        gradient = "float32 with factors rounded as in TF32"
    scaled = precision.gradient is None and target.scale is not None
    reason = " of scaled energies, as they would overflow in float16" if scaled else ""
    return (
        f"gradients are computed in {gradient}{reason}, and energies in {energy} by a forward of "
        "their own",
    )


def _in_tf32(adapter: GeneratorAdapter, own: GeneratorPotential) -> TF32Potential:
    """``own`` with gradients in TF32, of a float32 copy of G where it is of another type."""
    if adapter.device.type == "cuda":
        _EXACT_FLOAT32.claim("gradient_dtype")
    if adapter.input_dtype != torch.float32:
        own = _potential("gradient_dtype", adapter, own, torch.float32)
    elif adapter.device.type != "cuda" and not isinstance(own.generator, GeneratorAdapter):
        own = own.of(adapter, own.observation)  # products in C++ are not rounded
    return TF32Potential(own.generator, own.observation, own.ops, own.max_batch)


def _potential(
    name: str, adapter: GeneratorAdapter, own: GeneratorPotential, dtype: torch.dtype
) -> GeneratorPotential:
    """``own`` with G in another type, after a trial at the probe latents."""
    latents = adapter.probe_latents
    try:
        generator = _in_type(name, adapter, own.generator, dtype)
        with torch.no_grad():
            outputs = generator(latents)
        found = own.of(generator, _in_dtype(own.observation, outputs.dtype))
        found.energy(latents.expand(own.observation.count, -1, -1))
    # From user code, or from torch on a device, that does not support the type.
    except (RuntimeError, TypeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{name}: G, the operator or the misfit cannot be computed in {dtype}: {error}"
        ) from error
    if not bool(outputs.isfinite().all()):
        raise ValueError(f"{name}: expected a type that holds G's values, got {dtype}")
    return found


def _in_type(name: str, adapter: GeneratorAdapter, own: LatentMap, dtype: torch.dtype) -> LatentMap:
    """G in another type: itself under autocast, or a copy whose weights are converted."""
    stored = torch.float32 if dtype.itemsize == 2 else dtype
    # ``own`` may be compiled and is used as it is; but a fast path has no half-precision version.
    generator: GeneratorAdapter | Converted = own if isinstance(own, GeneratorAdapter) else adapter
    if adapter.input_dtype != stored:
        if not isinstance(adapter.generator, nn.Module):
            raise ValueError(
                f"{name}: expected None for a G that is no nn.Module, whose weights can be "
                f"converted, got {dtype}"
            )
        generator = Converted(adapter, stored)
    if dtype.itemsize != 2:
        return generator
    kind = adapter.home.type
    with torch.autocast(kind, dtype):
        enabled = torch.is_autocast_enabled(kind)
    if not enabled:  # torch may warn and go on without
        raise ValueError(f"{name}: expected a type of torch's autocast on {kind}, got {dtype}")
    return Autocast(generator, dtype)


class Converted:
    """A module computed in another float type, by a copy with converted weights."""

    def __init__(self, adapter: GeneratorAdapter, dtype: torch.dtype) -> None:
        self.module = copy.deepcopy(adapter.generator).to(dtype)  # type: ignore[attr-defined]
        self.latent_shape, self.dtype = adapter.latent_shape, dtype
        self.home, self.device = adapter.home, adapter.device
        self.per_observation = adapter.per_observation

    def __call__(self, z: Tensor, *index: Tensor) -> Tensor:
        """Outputs ``(n, ...)`` of latents ``(n, d)``, in the copy's type."""
        rows = z.to(self.home, self.dtype).reshape(-1, *self.latent_shape)
        if self.per_observation:
            index = first_by_default(rows, index)
        outputs: Tensor = self.module(rows, *index)
        return outputs.to(self.device, self.dtype)


class Autocast:
    """A float32 generator whose matrix products and convolutions run in a half-precision type."""

    def __init__(self, generator: GeneratorAdapter | Converted, dtype: torch.dtype) -> None:
        self.generator, self.dtype = generator, dtype
        self.per_observation = generator.per_observation

    def __call__(self, z: Tensor, *index: Tensor) -> Tensor:
        """Outputs ``(n, ...)`` float32 of latents ``(n, d)``."""
        with torch.autocast(self.generator.home.type, self.dtype):
            return self.generator(z, *index).float()


def _in_dtype(observation: Observation, dtype: torch.dtype) -> Observation:
    spec = observation.spec
    converted = replace(spec, target=spec.target.to(dtype), weight=spec.weight.to(dtype))
    return replace(observation, spec=converted)


def _weighted(observation: Observation, scale: Tensor) -> Observation:
    """The observation with each energy multiplied by ``scale`` ``(B,)``."""
    spec = observation.spec
    weight = spec.weight * scale[:, None].to(spec.weight.dtype)
    return replace(observation, spec=replace(spec, weight=weight))


def _scale(field: GeneratorPotential, probes: Tensor) -> Tensor:
    """A power of 2 per observation, ``(B,)``, that keeps float16 gradients from vanishing.

    It depends on the generator and the data alone and is fixed before the run: 2^-6 of the largest
    power, up to 2^40, at which the gradients at the probe latents (prior draws) do not overflow.
    """
    count = field.observation.count

    def fits(exponent: Tensor) -> Tensor:
        scaled = _weighted(field.observation, torch.exp2(exponent))
        return _gradients_fit(field.of(field.generator, scaled), probes)

    below = torch.full((count,), -float(_LARGEST_EXPONENT), device=probes.device)
    above = torch.full_like(below, _LARGEST_EXPONENT + 1.0)
    if not bool(fits(below).all()):
        raise ValueError("gradient_dtype: expected a type that holds G's gradients, got float16")
    while float((above - below).max()) > 1.0:
        middle = ((below + above) / 2.0).floor()
        fine = fits(middle)
        below, above = torch.where(fine, middle, below), torch.where(fine, above, middle)
    return torch.exp2(below - _HEADROOM)


def _gradients_fit(field: GeneratorPotential, probes: Tensor) -> Tensor:
    """Whether all gradients at the probe latents are finite, ``(B,)``."""
    _, grad = field.energy_and_grad(probes.expand(field.observation.count, -1, -1))
    return grad.isfinite().flatten(1).all(1)


@contextmanager
def full_precision() -> Iterator[None]:
    """A context in which float32 is float32 (no TF32, no autocast) and autograd is off."""
    with torch.inference_mode(False), torch.no_grad(), _EXACT_FLOAT32.held(), ExitStack() as stack:
        for device in _AUTOCAST:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


_EXACT_FLOAT32 = ExactFloat32()
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")

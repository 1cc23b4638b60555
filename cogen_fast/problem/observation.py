"""What is observed of an output: measurement operators, and their binding to data and noise.

An operator says *what* is measured of ``G(z)``. `observe` binds it to the measured values and the
noise, and checks everything, naming the argument at fault. Energies are
``E(z) = sum_m weight_m (operator(G(z)) - x_obs)_m^2`` with ``weight = 1 / (2 sigma^2)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cogen_fast.ops.spec import MisfitKind, MisfitSpec
from cogen_fast.problem.perceptual import Lpips
from cogen_fast.support.arguments import check_count, check_number, shown
from cogen_fast.support.warnings import warn_user

DEFAULT_IMAGE_NOISE = 0.1
UserMisfit = Callable[[Tensor, Tensor], Tensor]
LPIPS = "lpips"
AUTO = "auto"
# When a range looks like another one than the generator's: so many observed values, such a share of
# all, of which none is below 0 where such a share of each of the generator's outputs is.
_ENOUGH_VALUES, _MOSTLY, _MANY_BELOW = 64, 0.5, 0.25
_LEAST_SHARE = 0.01  # least unknown noise, as a share of the largest


@dataclass(frozen=True)
class UnknownNoise:
    """Gaussian noise whose standard deviation is inferred with the latents, between two bounds.

    ``low`` and ``high`` are in units of ``x_obs``; between them the prior is uniform in the
    logarithm. Where ``high`` is None, it is the standard deviation of each observation's own
    observed values; where ``low`` is None, it is a hundredth of ``high``. Raises TypeError or
    ValueError where a bound is not a finite number above 0, or ``low`` is not below ``high``.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_number(name, value, above=0.0))
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low: expected less than high={self.high}, got {self.low}")

    def bounds(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds ``low`` and ``high`` of B observations, ``(B,)`` float64 each.

        ``values`` and ``observed`` are ``(B, M)``. Raises ValueError where ``high`` is None and the
        observed values do not differ, or where ``low`` is not below ``high``.
        """
        x, indicator = values.double(), observed.double()
        count = indicator.sum(-1).clamp(min=1.0)
        mean = (x * indicator).sum(-1) / count
        spread = (((x - mean[:, None]) ** 2 * indicator).sum(-1) / count).sqrt()
        high = spread if self.high is None else torch.full_like(spread, self.high)
        low = _LEAST_SHARE * high if self.low is None else torch.full_like(spread, self.low)
        sound = low < high
        if self.high is None:
            rounding = 8.0 * torch.finfo(values.dtype).eps * (x * indicator).abs().amax(-1)
            sound = sound & (spread > rounding)
        if not bool(sound.all()):
            first = int((~sound).nonzero()[0])
            raise ValueError(
                "noise_std: expected observed values that differ by more than the least noise, got "
                f"values of standard deviation {spread[first].item():.3g} in observation {first}; "
                "give UnknownNoise(low, high)"
            )
        return low, high


class MeasurementOperator(ABC):
    """A measurement of an output: the base class of all measurement operators."""

    kind: MisfitKind = "mask"
    factor: int = 1

    @abstractmethod
    def measured_shape(self, output: Tensor) -> tuple[int, ...]:
        """The shape of one measurement, given a batch of outputs ``(n, ...)``."""

    def apply(self, x: Tensor) -> Tensor:
        """What the misfit op reads: ``x``, or a differentiable torch expression of it."""
        return x

    def measure(self, x: Tensor) -> Tensor:
        """The measurement of outputs ``(n, ...)``, ``(n, *measured_shape)``."""
        return self.apply(x)

    @property
    def reads_output(self) -> bool:
        """Whether the misfit op reads the output itself, without `apply`."""
        return True

    def is_complex(self, output: Tensor) -> bool:
        """Whether measurements of ``output`` are complex; they are handled as pairs of reals."""
        return False


class Mask(MeasurementOperator):
    """Entries of the output, 1 = observed, 0 = hidden.

    ``mask`` is an array or tensor of 0 and 1 (or bool) that broadcasts to the output's shape, or to
    a batch of observations ``(B, ...)``.
    """

    def __init__(self, mask: Any) -> None:
        self.mask = _as_mask(mask)

    def measured_shape(self, output: Tensor) -> tuple[int, ...]:
        """The output's own shape."""
        return tuple(output.shape[1:])

    def __repr__(self) -> str:
        return f"Mask(shape={tuple(self.mask.shape)})"


class _ImageOperator(MeasurementOperator):
    """Checks that are common to the operators that shrink images ``(C, H, W)`` by an integer."""

    def __init__(self, factor: int) -> None:
        self.factor = check_count("factor", factor)

    def _image_shape(self, output: Tensor) -> tuple[int, int, int]:
        if output.ndim != 4:
            raise ValueError(
                f"mask: {self!r} reads images (C, H, W), got a generator output of shape "
                f"{tuple(output.shape[1:])}"
            )
        c, h, w = output.shape[1:]
        return c, h, w

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.factor})"


class AveragePool(_ImageOperator):
    """Means of ``factor`` x ``factor`` blocks of an image: super-resolution (paper, section 4)."""

    kind: MisfitKind = "pool"

    def measured_shape(self, output: Tensor) -> tuple[int, ...]:
        """``(C, H / factor, W / factor)``; raises ValueError unless the factor divides both."""
        c, h, w = self._image_shape(output)
        k = self.factor
        if h % k or w % k:
            raise ValueError(f"factor: expected a divisor of the image's {h} x {w}, got {k}")
        return c, h // k, w // k

    def measure(self, x: Tensor) -> Tensor:
        """Means of blocks."""
        return avg_pool2d(x, self.factor)


class Stride(_ImageOperator):
    """Every ``factor``-th pixel of an image, from the first (as the authors' program reads it)."""

    kind: MisfitKind = "stride"

    def measured_shape(self, output: Tensor) -> tuple[int, ...]:
        """``(C, ceil(H / factor), ceil(W / factor))``."""
        c, h, w = self._image_shape(output)
        return c, -(-h // self.factor), -(-w // self.factor)

    def measure(self, x: Tensor) -> Tensor:
        """Every ``factor``-th pixel."""
        return x[..., :: self.factor, :: self.factor]


class Operator(MeasurementOperator):
    """Any differentiable ``f``: a batch of outputs ``(n, ...)`` to measurements ``(n, ...)``.

    Measurements may be complex: ``noise_std`` then is that of the real and of the imaginary part.
    """

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        if not callable(f):
            raise TypeError(f"f: expected a callable, got {type(f).__name__}")
        self.f = f

    def measured_shape(self, output: Tensor) -> tuple[int, ...]:
        """The shape that ``f`` gives; raises ValueError where ``f`` drops the batch dimension."""
        y = self.apply(output)
        if y.ndim < 1 or y.shape[0] != output.shape[0]:
            raise ValueError(
                f"mask: the operator must keep the batch dimension {output.shape[0]}, "
                f"got shape {tuple(y.shape)}"
            )
        return tuple(y.shape[1:])

    def apply(self, x: Tensor) -> Tensor:
        """``f(x)``, complex values as pairs of real ones in a last dimension of 2.

        Raises TypeError where ``f`` gives no floating-point or complex tensor.
        """
        y = self.measure(x)
        return torch.view_as_real(y) if y.is_complex() else y

    def measure(self, x: Tensor) -> Tensor:
        """``f(x)``, complex where ``f`` gives complex values; raises as `apply` does."""
        y = self.f(x)
        if not isinstance(y, Tensor) or not (y.is_floating_point() or y.is_complex()):
            raise TypeError(f"mask: the operator must return a float tensor, got {_describe(y)}")
        return y

    def is_complex(self, output: Tensor) -> bool:
        """Whether ``f`` gives complex values."""
        return self.measure(output).is_complex()

    @property
    def reads_output(self) -> bool:
        """False, because ``f`` is applied between the output and the misfit."""
        return False

    def __repr__(self) -> str:
        return f"Operator({getattr(self.f, '__qualname__', type(self.f).__name__)})"


def as_operator(mask: Any) -> MeasurementOperator:
    """An operator from an operator, an array of 0 and 1, or a physics in the style of deepinv.

    A physics is any object with a callable ``A(x)``. Raises TypeError or ValueError naming ``mask``
    for any other value.
    """
    if isinstance(mask, MeasurementOperator):
        return mask
    if callable(getattr(mask, "A", None)):
        return Operator(mask.A)
    if callable(mask) and not isinstance(mask, Tensor):
        raise TypeError(
            f"mask: expected an array of 0 and 1 or a measurement operator, got the callable "
            f"{mask!r}; wrap it as Operator(f)"
        )
    return Mask(mask)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = "" if value.layout == torch.strided else f", {value.layout}"
        return f"a tensor of {value.dtype}{kind}" + (", on meta" if value.is_meta else "")
    return f"{type(value).__name__} {value!r}"[:80]


def as_tensor(name: str, value: Any) -> Tensor:
    """A dense tensor of what users hand over; TypeError naming ``name`` for anything else."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            raise TypeError(f"{name}: expected a dense tensor with values, got {_describe(value)}")
        return value.detach().resolve_conj().resolve_neg()
    try:
        # A copy in native byte order serves flipped, read-only and big-endian arrays too; Python
        # numbers stay float64.
        array = np.array(value)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected a tensor, an array or a number, got {_describe(value)}"
        ) from error


def _as_mask(value: Any) -> Tensor:
    mask = as_tensor("mask", value)
    if mask.dtype == torch.bool:
        return mask
    if mask.is_complex():
        raise TypeError(f"mask: expected bool or real values 0 and 1, got {mask.dtype}")
    wrong = mask[(mask != 0) & (mask != 1)]
    if wrong.numel():
        picture = "; of a picture, give mask >= 128" if mask.dtype == torch.uint8 else ""
        raise ValueError(
            f"mask: expected only 0 (hidden) and 1 (observed), got {wrong.numel()} other values "
            f"such as {wrong[0].item():g}{picture}"
        )
    return mask != 0


def is_unknown(noise_std: Any) -> bool:
    """Whether ``noise_std`` asks for noise to be inferred."""
    return isinstance(noise_std, UnknownNoise) or (isinstance(noise_std, str) and noise_std == AUTO)


@runtime_checkable
class TargetMisfit(Protocol):
    """A misfit that computes something of the measurements once, as `Lpips` does."""

    def bind_targets(self, targets: Tensor) -> UserMisfit:
        """``f(prediction, index) -> (n,)`` for targets ``(B, *measured_shape)``, 0 where hidden.

        Row k of a prediction is of ``targets[index[k]]``. Complex measurements are complex here,
        and pairs of real numbers in predictions.
        """
        ...


@dataclass(frozen=True)
class Observation:
    """B observations bound to data and noise: what the density and the evidence need.

    ``spec`` is plain data for the misfit op. ``num_observed`` ``(B,)`` counts measured values.
    ``log_noise_constant`` ``(B,)`` float64 is ``-sum log(2 pi sigma^2) / 2`` over these, None where
    a weight or another misfit is given in place of the noise. ``noise`` describes the noise in
    words. Where the noise is unknown, ``noise_bounds`` are its least and largest standard
    deviations, ``(B,)`` float64 each, and ``spec`` and ``log_noise_constant`` are for the least.
    ``bound_misfit`` is what a `TargetMisfit` has given, and then takes the place of
    ``user_misfit``.
    """

    operator: MeasurementOperator
    spec: MisfitSpec
    measured_shape: tuple[int, ...]
    num_observed: Tensor
    log_noise_constant: Tensor | None
    user_misfit: UserMisfit | None
    noise: str
    noise_bounds: tuple[Tensor, Tensor] | None = None
    bound_misfit: UserMisfit | None = None

    @property
    def count(self) -> int:
        """B, the number of observations."""
        return self.spec.target.shape[0]

    @property
    def measured_values(self) -> Tensor:
        """The measurements ``(B, *measured_shape)``, 0 where hidden."""
        return self.spec.target.reshape(self.count, *self.measured_shape)

    @property
    def observed(self) -> Tensor | None:
        """``(B, *measured_shape)`` bool, or None where everything is observed."""
        if self.spec.mask is None:
            return None
        mask = self.spec.mask.bool().expand(self.spec.target.shape)
        return mask.reshape(self.count, *self.measured_shape)


def _measurements(
    operator: MeasurementOperator, x_obs: Any, shape: tuple[int, ...], output: Tensor, pairs: bool
) -> Tensor:
    """``x_obs`` as floats ``(B, *shape)`` on the output's device and dtype."""
    x = as_tensor("x_obs", x_obs)
    if x.is_complex() != pairs:
        wanted = "real" if x.is_complex() else "complex"
        raise TypeError(f"x_obs: expected {wanted} values for {operator!r}, got {x.dtype}")
    x = torch.view_as_real(x) if x.is_complex() else x
    if not x.is_floating_point():
        hint = " (images: divide by 127.5 and subtract 1)" if x.dtype == torch.uint8 else ""
        kind = "values in [-1, 1]" if len(shape) == 3 else "values"
        raise TypeError(
            f"x_obs: expected floating-point {kind}, got {x.dtype}{hint}{_layout_hint(x, shape)}"
        )
    if tuple(x.shape) == shape:
        x = x[None]
    if tuple(x.shape[1:]) != shape or x.ndim != len(shape) + 1 or x.shape[0] == 0:
        expected = f"({', '.join(str(n) for n in ('B', *shape))})"
        raise ValueError(
            f"x_obs: expected shape {shape} or {expected} with B >= 1, got {tuple(x.shape)}"
            f"{_layout_hint(x, shape)}"
        )
    return x.to(output.device, output.dtype, copy=True)


def _layout_hint(x: Tensor, shape: tuple[int, ...]) -> str:
    """What to do with images whose channels are last or missing; empty for others."""
    if len(shape) != 3:
        return ""
    if shape[0] == 1 and tuple(x.shape[-2:]) == shape[1:] and x.ndim in (2, 3):
        return "; give x_obs[None]" if x.ndim == 2 else "; give x_obs[:, None]"
    if x.ndim in (3, 4) and tuple(x.movedim(-1, -3).shape[-3:]) == shape != tuple(x.shape[-3:]):
        return "; its channels are last: give torch.as_tensor(x_obs).movedim(-1, -3)"
    if tuple(x.shape[-2:]) == shape[1:] and x.ndim in (3, 4):
        if (x.shape[-3], shape[0]) == (1, 3):
            return "; give x_obs.repeat_interleave(3, -3), or Pillow's picture.convert('RGB')"
        if (x.shape[-3], shape[0]) == (3, 1):
            return "; give x_obs.mean(-3, keepdim=True), or Pillow's picture.convert('L')"
    return ""


def _broadcast(name: str, value: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    """``value`` as ``(1 or B, M)``, one row where it is common to all observations."""
    rows = batch if value.ndim > len(shape) and value.shape[0] != 1 else 1
    try:
        full = value.broadcast_to((rows, *shape))
    except RuntimeError:
        each = (batch, *shape[-2:])  # as masks of images often are
        hint = f"; give {name}[:, None]" if len(shape) == 3 and value.shape == each else ""
        raise ValueError(
            f"{name}: expected shape broadcastable to {shape} or {(batch, *shape)}, "
            f"got {tuple(value.shape)}{hint}"
        ) from None
    return full.reshape(rows, math.prod(shape))


def _check_mask(mask: Tensor, batch: int, shape: tuple[int, ...]) -> None:
    """ValueError where masks ``(C, H, W)`` may as well be those of as many images."""
    both = len(shape) == 3 and mask.shape == shape and batch == shape[0]
    if both and (mask != mask[:1]).any():
        raise ValueError(
            f"mask: {shape} may mean one for each observation or one for each channel; give "
            "mask[:, None] or mask[None]"
        )


def _check_finite(x: Tensor, mask: Tensor | None) -> None:
    bad = ~x.isfinite() if mask is None else ~x.isfinite() & mask
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"x_obs: expected finite values where observed, got {int(bad.sum())} non-finite, "
            f"the first at (observation, entry) {first}"
        )


def positive(
    name: str,
    value: Any,
    batch: int,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    pairs: bool = False,
) -> Tensor:
    """``value``, a noise level or weight, as positive finite float64 ``(1 or B, 1 or M)``.

    With ``pairs``, measurements are complex: ``shape`` ends with 2, for the real and the imaginary
    part, which have the same value. Raises TypeError or ValueError naming it ``name``.
    """
    tensor = as_tensor(name, value)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    tensor = tensor.to(device, torch.float64)
    if not bool((tensor.isfinite() & (tensor > 0)).all()):
        shown = tensor.flatten()[:3].tolist() if tensor.numel() > 1 else tensor.item()
        raise ValueError(f"{name}: expected finite values above 0, got {shown}")
    if tensor.ndim == 0:
        return tensor.reshape(1, 1)
    if pairs:
        return _broadcast(name, tensor, batch, shape[:-1]).repeat_interleave(2, dim=-1)
    return _broadcast(name, tensor, batch, shape)


def _default_noise(values: Tensor, mask: Tensor | None, shape: tuple[int, ...]) -> float:
    """0.1 for images in [-1, 1]; raises ValueError for other data, whose noise must be given."""
    observed_values = values if mask is None else values[mask.expand(values.shape)]
    if len(shape) == 3 and bool((observed_values.abs() <= 1.0 + 1e-3).all()):
        return DEFAULT_IMAGE_NOISE
    reason = (
        f"values reach {observed_values.abs().max().item():.3g}"
        if len(shape) == 3
        else f"measurements of shape {shape} are no images (C, H, W)"
    )
    raise ValueError(
        "noise_std: expected a value (or weight=) for data other than images in [-1, 1], got "
        "none; " + reason
    )


def _noise_weights(
    noise_std: Any,
    weight: Any,
    values: Tensor,
    mask: Tensor | None,
    shape: tuple[int, ...],
    pairs: bool,
) -> tuple[Tensor, Tensor | None, str]:
    """Weights of the squared error, the noise standard deviation (or None), and a description."""
    batch, device = values.shape[0], values.device
    if weight is not None:
        if noise_std is not None:
            raise ValueError("weight: expected either noise_std or weight, got both")
        given = positive("weight", weight, batch, shape, device, pairs=pairs)
        return given, None, f"weight {_summary(given)}"
    if isinstance(noise_std, str):
        raise TypeError(
            f'noise_std: expected numbers, "{AUTO}" or an UnknownNoise, got {shown(noise_std)}'
        )
    chosen = _default_noise(values, mask, shape) if noise_std is None else noise_std
    sigma = positive("noise_std", chosen, batch, shape, device, pairs=pairs)
    by_default = " (default for images in [-1, 1])" if noise_std is None else ""
    return 0.5 / sigma**2, sigma, f"noise_std {_summary(sigma)}{by_default}"


def _summary(values: Tensor) -> str:
    low, high = values.min().item(), values.max().item()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def observe(
    operator: MeasurementOperator,
    x_obs: Any,
    output: Tensor,
    *,
    noise_std: Any = None,
    weight: Any = None,
    misfit: UserMisfit | str | None = None,
) -> Observation:
    """Bind measurements to an operator, and check everything.

    ``x_obs`` is one measurement or a batch ``(B, ...)`` of real floats; hidden entries may have any
    value. ``output`` is a batch of the generator's outputs, which gives shapes, dtype and device.
    The noise is ``noise_std`` or ``weight`` (a scalar, or broadcastable to the measurements); with
    neither it is 0.1 for images in [-1, 1]; ``noise_std`` "auto" or an `UnknownNoise` is inferred.
    ``misfit(prediction, target) -> (n,)`` replaces the squared error; both arguments are
    ``(n, *measured_shape)`` with hidden entries set to 0, and its value is multiplied by a scalar
    ``weight`` (1). "lpips" is `Lpips` with its defaults.

    Raises ValueError or TypeError naming the argument, and warns where nothing is observed.
    """
    shape = operator.measured_shape(output)
    pairs = operator.is_complex(output)
    values = _measurements(operator, x_obs, shape, output, pairs)
    batch = values.shape[0]
    values = values.reshape(batch, -1)
    mask = None
    if isinstance(operator, Mask):
        _check_mask(operator.mask, batch, shape)
        mask = _broadcast("mask", operator.mask.to(values.device), batch, shape)
        _warn_if_empty(mask)
    _check_finite(values, mask)
    observed = torch.ones_like(values, dtype=torch.bool)
    if mask is not None:
        observed = mask.expand(values.shape)
        values = torch.where(observed, values, 0.0)
    _warn_of_another_range(values, observed, operator, output)
    unknown = _unknown(noise_std, weight, misfit)
    misfit = _as_misfit(misfit)
    bounds, sigma = None, None
    if unknown is not None:
        bounds = unknown.bounds(values, observed)
        sigma = bounds[0][:, None]
        weights = 0.5 / sigma**2
        noise = "noise_std inferred, at least {} and at most {}".format(*map(_summary, bounds))
    elif misfit is None:
        weights, sigma, noise = _noise_weights(noise_std, weight, values, observed, shape, pairs)
    else:
        weights, noise = _user_weight(noise_std, weight, values)
    constant = None
    if sigma is not None:
        logs = torch.log(2.0 * math.pi * sigma**2).expand(values.shape)
        constant = -0.5 * torch.where(observed, logs, 0.0).sum(-1)
    rounded = weights.to(values.dtype)
    if not bool((rounded.isfinite() & (rounded > 0)).all()):
        name = "noise_std" if sigma is not None else "weight"
        raise ValueError(
            f"{name}: expected factors of the squared errors that {values.dtype} can represent, "
            f"got {_summary(weights)}"
        )
    spec = MisfitSpec(
        kind=operator.kind,
        output_shape=tuple(output.shape[1:]) if operator.reads_output else shape,
        factor=operator.factor,
        target=values.contiguous(),
        mask=None if mask is None else mask.to(torch.uint8).contiguous(),
        weight=rounded.contiguous(),
    )
    bound = None
    if isinstance(misfit, TargetMisfit):
        targets = spec.target.reshape(batch, *shape)
        bound = misfit.bind_targets(torch.view_as_complex(targets) if pairs else targets)
    count = observed.sum(-1)
    return Observation(operator, spec, shape, count, constant, misfit, noise, bounds, bound)


def _as_misfit(misfit: UserMisfit | str | None) -> UserMisfit | None:
    if isinstance(misfit, str) and misfit == LPIPS:
        return Lpips()
    if misfit is not None and not callable(misfit):
        raise TypeError(f'misfit: expected a callable or "{LPIPS}", got {shown(misfit)}')
    return misfit


def _unknown(noise_std: Any, weight: Any, misfit: Any) -> UnknownNoise | None:
    """The bounds of noise that is to be inferred; None where the noise is given."""
    if not is_unknown(noise_std):
        return None
    for name, value in (("weight", weight), ("misfit", misfit)):
        if value is not None:
            raise ValueError(f"{name}: expected none with noise_std to infer, got {shown(value)}")
    return noise_std if isinstance(noise_std, UnknownNoise) else UnknownNoise()


def _user_weight(noise_std: Any, weight: Any, values: Tensor) -> tuple[Tensor, str]:
    if noise_std is not None:
        raise ValueError(
            f"noise_std: expected none beside a misfit, got {shown(noise_std)}; give weight"
        )
    scale = positive("weight", 1.0 if weight is None else weight, 1, (), values.device)
    return scale, f"user misfit, weight {scale.item():g}"


def _warn_of_another_range(
    values: Tensor, observed: Tensor, operator: MeasurementOperator, output: Tensor
) -> None:
    """Warn where images seem to be in [0, 1] or [0, 255] and the generator's are in [-1, 1].

    Only where most of an image is observed, and every one of the generator's few draws has many
    values below 0 there.
    """
    seen = values[observed]
    if output.ndim != 4 or not operator.reads_output or seen.numel() < _ENOUGH_VALUES:
        return
    if observed.double().mean() < _MOSTLY:
        return
    made = operator.measure(output).flatten(1)
    low, high = float(made.min()), float(made.max())
    below = float((made < 0.0).double().mean(-1).min())
    least, most = float(seen.min()), float(seen.max())
    if least >= 0.0 and low < -0.5 and below > _MANY_BELOW:
        hint = "2 * x_obs - 1" if most <= 2.0 else "x_obs / 127.5 - 1"
        warn_user(
            f"x_obs: all observed values are at least 0, but at least {below:.0%} of each of G's "
            f"outputs are below, down to {low:.2g}; if x_obs is in another range than G's outputs, "
            f"give {hint}"
        )
    elif low >= 0.0 and least < -0.5 * high:
        warn_user(
            f"x_obs: observed values go down to {least:.2g}, but G's outputs are at least 0; if "
            "x_obs is in [-1, 1] and G's outputs are in [0, 1], give (x_obs + 1) / 2"
        )


def _warn_if_empty(mask: Tensor) -> None:
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty:
        which = "" if mask.shape[0] == 1 else f" of observation {empty[0]}"
        warn_user(f"mask: nothing{which} is observed, so the samples are draws from the prior")

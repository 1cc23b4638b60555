"""A user's generator as a checked function on rows of latents.

``G`` may be any callable or ``nn.Module`` from ``(n, d)`` or ``(n, d, 1, 1)`` to outputs of any
shape. While it is in use, its modules are in eval mode and its weights require no gradient; both
are restored afterwards.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from cogen_fast.ops import reference
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.problem.devices import generator_device, sampler_device
from cogen_fast.problem.prior import Prior, classes_of, first_by_default
from cogen_fast.support.arguments import check_count, shown
from cogen_fast.support.digests import tensor_bytes
from cogen_fast.support.memory import is_out_of_memory

_PARTS = ("sample", "samples", "images", "image", "output", "x")
_SIZE_ATTRIBUTES = ("latent_shape", "latent_size", "latent_dim", "z_dim", "dim_z", "nz")
_CUDA_ABSENT = "not compiled with CUDA|NVIDIA driver|CUDA GPUs are available"  # torch's words
_PROBE_ROWS = 4
_PROBE_SEED = 0x5EED
_MOST_CANDIDATES = 12
_LARGEST_LATENT = 2**26  # the noise has this many block numbers
# Differences relative to the largest output: in a repeated call, and in a call of another batch
# size, where other kernels (such as TF32) round differently.
_TOLERANCES = {
    torch.float64: (1e-13, 1e-9),
    torch.float32: (1e-5, 1e-3),
    torch.float16: (1e-2, 5e-2),
}


class _SharedFlag:
    """A flag of objects that is off while any thread uses them: threads may share a generator."""

    def __init__(self, flag: str) -> None:
        self._flag, self._lock = flag, Lock()
        # The flag before, and the number of users, by object.
        self._before: dict[int, tuple[bool, int]] = {}

    @contextmanager
    def off(self, objects: Sequence[Any]) -> Iterator[None]:
        """The flag is off inside; the last user to leave restores what was before the first."""
        with self._lock:
            for each in objects:
                before, users = self._before.get(id(each), (getattr(each, self._flag), 0))
                self._before[id(each)] = before, users + 1
                setattr(each, self._flag, False)
        try:
            yield
        finally:
            with self._lock:
                for each in objects:
                    self._leave(each)

    def _leave(self, each: Any) -> None:
        before, users = self._before.pop(id(each))
        if users > 1:
            self._before[id(each)] = before, users - 1
        else:
            setattr(each, self._flag, before)


_TRAINING, _GRADIENTS = _SharedFlag("training"), _SharedFlag("requires_grad")


@contextmanager
def frozen(generator: Any) -> Iterator[None]:
    """A context with eval mode and no weight gradients; restores each module's mode and flags."""
    if not isinstance(generator, nn.Module):
        yield
        return
    if any(t.is_inference() for t in _tensors(generator)):
        raise ValueError(
            "G: expected weights that autograd can use, got some made in torch.inference_mode(); "
            "make them outside"
        )
    modules, weights = list(generator.modules()), list(generator.parameters())
    with _TRAINING.off(modules), _GRADIENTS.off(weights):
        yield


class GeneratorAdapter:
    """``G`` on rows: ``(n, latent_size)`` to ``(n, *output_shape)``, checked once at the start.

    ``latent_shape`` is a number or a tuple; where it is not given, it is found by trial. The checks
    call ``G`` with at most ``max_batch`` latents. Latents are float64 for a float64 generator and
    float32 otherwise; outputs of half-precision generators are converted to float32. Latents and
    outputs are on ``device``, while ``G`` runs on its ``home`` (`devices.sampler_device`). Use it
    inside `frozen`. Raises TypeError or ValueError naming ``G``, ``latent_shape``, ``device`` or
    ``max_batch``.
    """

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        latent_shape: Any = None,
        device: torch.device | str | None = None,
        max_batch: int | None = None,
    ) -> None:
        if max_batch is not None:
            check_count("max_batch", max_batch)
        if not callable(generator) or isinstance(generator, type):
            raise TypeError(f"G: expected a callable or module, got {_no_generator(generator)}")
        if classes := classes_of(generator):
            raise TypeError(
                f"G: {_name(generator)} is conditional ({classes} classes); give "
                "Prior(G, conditions=...) in its place"
            )
        self.generator = generator
        self.per_observation = isinstance(generator, Prior) and generator.per_observation
        self._rows = _PROBE_ROWS if max_batch is None else min(_PROBE_ROWS, max_batch)
        self.home = _find_device(generator, device)
        self.device = sampler_device(self.home)
        self.input_dtype = _parameter_dtype(generator)
        double = self.input_dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32
        self.latent_shape = (
            self._find_latent_shape() if latent_shape is None else as_shape(latent_shape)
        )
        self.latent_size = math.prod(self.latent_shape)
        self.probe_latents = self._draw(self.latent_size)
        self.probe_output = self._check()
        self.output_shape = tuple(self.probe_output.shape[1:])

    def __call__(self, latents: Tensor, *index: Tensor) -> Tensor:
        """Outputs ``(n, *output_shape)`` of latents ``(n, latent_size)``.

        Where each observation has its own condition (``per_observation``), ``index`` ``(n,)`` is
        the observation of each row, the first one by default.
        """
        return self._call(latents, self.latent_shape, *index)

    def _call(self, latents: Tensor, shape: tuple[int, ...], *index: Tensor) -> Tensor:
        # A copy, so that a G that works in place on its input changes nothing but that.
        rows = latents.to(self.home, self.input_dtype, copy=True).reshape(-1, *shape)
        if self.per_observation:
            index = first_by_default(rows, index)
        try:
            x = self.generator(rows, *index)
        except TypeError as error:
            raise _missing_argument(self.generator, error) or error from None
        except (AssertionError, RuntimeError) as error:
            if not _asks_for_cuda(error):
                raise
            raise _NoCuda(
                f"G: {_name(self.generator)} asks for CUDA in its own code, and torch finds no "
                f"CUDA device ({error}); write .to(z.device) there in place of .cuda(), where z "
                "are the latents"
            ) from error
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise _NoTensor(f"G: must return one float tensor, got {_kind(x)}{_part_of(x)}")
        return x.to(self.device, self.dtype)

    def _draw(self, size: int) -> Tensor:
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        stream = NoiseStream(_PROBE_SEED, zero, zero)
        return reference.initial_latents(stream, self._rows, size, self.dtype)[0]

    def _find_latent_shape(self) -> tuple[int, ...]:
        found = dict.fromkeys(_latent_shape_candidates(self.generator))
        candidates = list(found)[:_MOST_CANDIDATES]
        causes: list[str] = []
        for shape in candidates:
            try:
                with torch.no_grad():
                    x = self._call(self._draw(math.prod(shape)), shape)
            except (_MissingArgument, _NoTensor, _NoCuda):
                raise
            except Exception as error:  # a wrong guess may fail in any way inside user code
                if is_out_of_memory(error):
                    raise
                causes.append(f"{shape}: {error}")
                continue
            if x.ndim >= 1 and x.shape[0] == self._rows:
                return shape
            causes.append(
                f"{shape}: expected outputs of shape ({self._rows}, ...) for {self._rows} latents, "
                f"got {tuple(x.shape)}"
            )
        tried = f"; tried {'; '.join(causes)}" if causes else ""
        raise ValueError(
            f"latent_shape: could not be found out from G ({_name(self.generator)}){tried}; give "
            f"it, for instance latent_shape=100 or latent_shape=(100, 1, 1){_more(self.generator)}"
        )

    def _check(self) -> Tensor:
        """The outputs at the probe latents; raises TypeError or ValueError where a check fails."""
        latents = self.probe_latents
        try:
            with torch.enable_grad():
                z = latents.clone().requires_grad_()
                x = self(z)
        except (_MissingArgument, _NoTensor, _NoCuda):
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"latent_shape: G ({_name(self.generator)}) does not take latents of shape "
                f"{(self._rows, *self.latent_shape)}: {error}{_more(self.generator)}"
            ) from error
        if x.ndim < 2 or x.shape[0] != self._rows or x.numel() == 0:
            raise ValueError(
                f"G: expected outputs of shape ({self._rows}, ...) for {self._rows} latents, "
                f"got {tuple(x.shape)}"
            )
        if not x.requires_grad or not _depends(x, z):
            raise ValueError(
                "G: expected an output that is a differentiable function of the latent"
            )
        x = x.detach()
        bad = ~x.flatten(1).isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"G: expected finite outputs, got others for {int(bad.sum())} of {len(bad)} prior "
                f"draws, the first being latent {int(bad.nonzero()[0])}"
            )
        self._check_function(latents, x)
        return x

    def _check_function(self, latents: Tensor, x: Tensor) -> None:
        with torch.no_grad():
            again, part = self(latents), self(latents[:1])
        if not bool(again.isfinite().all() and part.isfinite().all()):
            raise ValueError(
                "G: expected finite outputs, got others when the same latents were given again"
            )
        exact, mates = _TOLERANCES.get(self.input_dtype, _TOLERANCES[torch.float16])
        if not _close(again, x, exact):
            raise ValueError(
                "G: expected a function, got different outputs for the same latents (dropout, or "
                f"noise injected in the forward pass?){_suspects(self.generator)}"
            )
        if not _close(part, x[:1], mates):
            raise ValueError(
                "G: expected a function, got an output that depends on the other latents of the "
                f"batch (batch statistics?){_suspects(self.generator)}"
            )

    def agrees(self, outputs: Tensor) -> bool:
        """Whether ``outputs`` for `probe_latents` are the generator's up to rounding."""
        return _close(outputs, self.probe_output, _TOLERANCES[self.input_dtype][1])

    def fingerprint(self) -> str:
        """SHA-256 of the generator's name, latent shape and weights, in hexadecimal."""
        digest = hashlib.sha256(f"{_name(self.generator)} {self.latent_shape}".encode())
        if isinstance(self.generator, nn.Module):
            for name, value in sorted(self.generator.state_dict().items()):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(tensor_bytes(value))
        return digest.hexdigest()


class _MissingArgument(TypeError):
    """A generator that wants more than latents."""


class _NoCuda(ValueError):
    """A generator that asks for CUDA where there is none."""


class _NoTensor(TypeError):
    """A generator whose outputs are no tensor."""


def _missing_argument(generator: Any, error: TypeError) -> _MissingArgument | None:
    """The error of a call that lacks an argument; None where ``error`` is another one."""
    found = re.search(r"missing \d+ required positional arguments?: '(\w+)'", str(error))
    if found is None:
        return None
    name = found[1]
    return _MissingArgument(
        f"G: {_name(generator)} wants another argument beside the latents, {name!r}; give "
        f"Prior(G, conditions={name}) or lambda z: G(z, {name}) in its place"
    )


def _more(generator: Any) -> str:
    """A hint for a generator that fails and has an optional argument, which was not given."""
    called = generator.forward if isinstance(generator, nn.Module) else generator
    try:
        names = [p.name for p in inspect.signature(called).parameters.values() if p.default is None]
    except (TypeError, ValueError):  # compiled functions may have no signature
        return ""
    if not names:
        return ""
    return f"; if it needs {names[0]!r}, give Prior(G, conditions={names[0]}) in its place"


def _asks_for_cuda(error: Exception) -> bool:
    """Whether torch says that there is no CUDA device."""
    return not torch.cuda.is_available() and bool(re.search(_CUDA_ABSENT, str(error)))


def _no_generator(value: Any) -> str:
    """What was given in place of a generator, and the line that makes one of it."""
    if isinstance(value, type):
        return f"the class {value.__name__}; give an instance, {value.__name__}(...)"
    if isinstance(value, Mapping):
        if value and all(isinstance(each, Tensor) for each in value.values()):
            return "a state dict; build its network, and give it after network.load_state_dict(G)"
        return f"{type(value).__name__}; build the network, and load the state dict that is in it"
    if isinstance(value, str | Path):
        return f"{str(value)!r}; give load_generator(G), or pretrained(G) for a shipped one"
    return type(value).__name__


def _part_of(value: Any) -> str:
    """How to take the tensor out of what a generator returns."""
    places: list[Any]
    if isinstance(value, tuple | list):
        places = [n for n, each in enumerate(value) if isinstance(each, Tensor)]
    elif isinstance(value, Mapping):
        places = [name for name, each in value.items() if isinstance(each, Tensor)]
    else:
        places = [name for name in _PARTS if isinstance(getattr(value, name, None), Tensor)]
    if not places or isinstance(value, Tensor):
        return ""
    return f"; give Prior(G, output={places[0]!r}) in its place"


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _depends(x: Tensor, z: Tensor) -> bool:
    (grad,) = torch.autograd.grad(x, z, torch.zeros_like(x), allow_unused=True)
    return grad is not None


def _close(a: Tensor, b: Tensor, relative: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= relative * float(b.abs().max()))


def _name(generator: Any) -> str:
    return getattr(generator, "__qualname__", type(generator).__qualname__)


def _suspects(generator: Any) -> str:
    """A hint at modules that commonly make a generator depend on more than its latent."""
    if not isinstance(generator, nn.Module):
        return ""
    found = [
        name
        for name, module in generator.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is None
    ]
    return f"; look at {', '.join(found[:3])}" if found else ""


def _tensors(generator: Any) -> list[Tensor]:
    if not isinstance(generator, nn.Module):
        return []
    tensors = [*generator.parameters(), *generator.buffers()]
    if isinstance(generator, Prior):  # conditions are no weights: any type, moved when used
        return [each for each in tensors if each is not generator.conditions]
    return tensors


def _find_device(generator: Any, device: torch.device | str | None) -> torch.device:
    wanted = None if device is None else generator_device(device)
    homes = {t.device for t in _tensors(generator)}
    if len(homes) > 1:
        raise ValueError(f"G: expected weights on one device, got {sorted(map(str, homes))}")
    home = next(iter(homes), None)
    if wanted is None:
        return torch.device("cpu") if home is None else generator_device(home)
    if home is not None and home.type != wanted.type:
        raise ValueError(
            f"device: expected G's weights on {wanted}, got them on {home}; move it by "
            f"G.to('{wanted}')"
        )
    return home or wanted


def _parameter_dtype(generator: Any) -> torch.dtype:
    floats = [t.dtype for t in _tensors(generator) if t.is_floating_point()]
    return floats[0] if floats else torch.float32


def as_shape(value: Any) -> tuple[int, ...]:
    """The shape of one latent, from a number or a tuple; raises ValueError for any other value."""
    shape = _shape_or_none(value)
    if shape is None:
        raise ValueError(
            "latent_shape: expected a positive number or a tuple, at most 2^26 numbers in all, got "
            f"{shown(value)}"
        )
    return shape


def _shape_or_none(value: Any) -> tuple[int, ...] | None:
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,)
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in sizes)
    if not sizes or not whole:
        return None
    numbers = tuple(int(n) for n in sizes)
    sound = min(numbers) > 0 and math.prod(numbers) <= _LARGEST_LATENT
    return numbers if sound else None


def _latent_shape_candidates(generator: Any) -> Iterator[tuple[int, ...]]:
    """Latent shapes to try: from the generator's attributes, then from the inputs of its layers."""
    if isinstance(generator, Prior) and not generator.styled:
        yield from _latent_shape_candidates(generator.generator)
        return
    for attribute in _SIZE_ATTRIBUTES:
        shape = _shape_or_none(getattr(generator, attribute, None))
        if shape is not None:
            yield shape
            if len(shape) == 1:
                yield (*shape, 1, 1)
    if not isinstance(generator, nn.Module):
        return
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            yield (module.in_features,)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield (module.in_channels, 1, 1)

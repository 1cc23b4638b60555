"""Whole runs of generators of dense layers in C++: which generators have them, and the call.

`dense_layers` says whether a module is such a generator. `anneal` makes a part of the published
run, which `cogen_fast.sampler.ais` defines, on a dictionary of tensors that it reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast.ops import native
from cogen_fast.ops.spec import MisfitSpec

MOST_LAYERS, MOST_WIDTH, MOST_LATENTS = 8, 256, 128
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "elu")
_PADDING = 8
_DEFAULT_SLOPE = 0.01
_LARGEST_WORD = 2**32 - 1
_HISTORIES = ("acceptance", "step_used", "energy_mean", "energy_std")


@dataclass(frozen=True)
class DenseLayers:
    """Layers ``y = f(W x + b)``, applied one after another.

    ``weights`` ``(out, in)`` and ``biases`` ``(out,)`` of all layers share a float dtype;
    ``activations`` has the name of each layer's f; ``slope`` is that of every leaky ReLU.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activations: tuple[str, ...]
    slope: float = _DEFAULT_SLOPE

    @property
    def widths(self) -> list[int]:
        """The widths of all layers, from the latent to the output."""
        return [self.weights[0].shape[1], *(weight.shape[0] for weight in self.weights)]


def dense_layers(generator: object) -> DenseLayers | None:
    """The dense layers that a generator consists of; None if it is anything else.

    These are known: modules with a method ``dense_layers()``, `torch.nn.Linear`, and
    `torch.nn.Sequential` of it and activations (those of `ACTIVATIONS`, with torch's constants), if
    there are no hooks.
    """
    if not isinstance(generator, nn.Module) or hooked(generator):
        return None
    offered = getattr(generator, "dense_layers", None)
    if callable(offered):
        found: DenseLayers | None = offered()
        return found
    if type(generator) is nn.Linear:
        return _of_sequence([generator])
    return _of_sequence(generator) if type(generator) is nn.Sequential else None


def forward(layers: DenseLayers, latents: Tensor) -> Tensor:
    """Outputs ``(n, out)`` of latents ``(n, in)``, computed by torch: what the layers mean."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "identity": lambda x: x,
        "relu": torch.relu,
        "leaky_relu": lambda x: F.leaky_relu(x, layers.slope),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softplus": F.softplus,
        "elu": F.elu,
    }
    x = latents
    for weight, bias, name in zip(layers.weights, layers.biases, layers.activations, strict=True):
        x = functions[name](F.linear(x, weight, bias))
    return x


def unfit(layers: DenseLayers) -> str | None:
    """The reason why the layers cannot be used for a run in C++; None if they can."""
    widths = layers.widths
    if len(widths) - 1 > MOST_LAYERS:
        return f"{len(widths) - 1} layers, more than {MOST_LAYERS}"
    if max(widths) > MOST_WIDTH:
        return f"layers {max(widths)} wide, more than {MOST_WIDTH}"
    if widths[0] > MOST_LATENTS:
        return f"{widths[0]} latent dimensions, more than {MOST_LATENTS}"
    dtypes = {tensor.dtype for tensor in (*layers.weights, *layers.biases)}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        return f"weights of {', '.join(sorted(map(str, dtypes)))}, not float32 or float64"
    devices = {tensor.device for tensor in (*layers.weights, *layers.biases)}
    if len(devices) > 1:
        return f"weights on {', '.join(sorted(map(str, devices)))}"
    return _device_unsupported(devices.pop())


def _device_unsupported(device: torch.device) -> str | None:
    """The reason why no run in C++ is made on a device; None if it is."""
    if device.type not in ("cpu", "cuda"):
        return f"weights on {device}, neither on the CPU nor on a CUDA device"
    if (failure := device_failure(device)) is not None:
        return f"weights on a CUDA device, where {failure}"
    return None


def device_failure(device: torch.device) -> str | None:
    """The reason why no whole run can be made on a cpu or cuda device; None if it can.

    A CUDA device may be older than those for which the extension was built, or a driver older than
    the extension, so a short run is tried once. Where torch finds no CUDA device nothing can fail.
    """
    if device.type == "cpu":
        return None
    info = native.extension().build_info()
    if not info["with_cuda"]:
        return "the extension was built without CUDA"
    if not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    if (error := trial_error(index)) is None:
        return None
    major, minor = torch.cuda.get_device_capability(index)
    return (
        f"whole-run kernels, built for {', '.join(info['cuda_archs'])}, do not run on "
        f"{torch.cuda.get_device_name(index)} of compute capability {major}.{minor} ({error:.200})"
    )


@cache
def trial_error(index: int) -> str | None:
    """What a short run on the CUDA device of that number ends with; None if it is made."""
    try:
        trial_run(torch.device("cuda", index))
    except RuntimeError as error:
        return str(error)
    return None


def trial_run(device: torch.device) -> Tensor:
    """Make the shortest run, one transition of one chain, and return its latent."""
    ones = partial(torch.ones, device=device)
    one, zero = ones(1, 1), torch.zeros(1, 1, device=device)
    words = torch.zeros(1, dtype=torch.int64, device=device)
    tensors = {
        "latents": one[None].clone(),
        "energy": 0.5 * one.double(),
        "grad": one[None],
        "log_weights": None,
        "step_size": 0.1 * ones(1).double(),
        "running": ones(1).double(),
        "non_finite": words[None].clone(),
        "betas": ones(1).double(),
        "trace": None,
        "transition": words,
        "observation": words,
        **{name: zero.double() for name in _HISTORIES},
    }
    numbers = {"seed": 0, "beta": 1.0, "hmc_steps": 1, "leapfrog_steps": 1, "paper_form": False}
    layers = DenseLayers((one,), (zero[0],), ("identity",))
    spec = MisfitSpec("mask", (1,), 1, target=zero, mask=None, weight=0.5 * one)
    anneal(DenseProblem.of(layers, spec), tensors, numbers | {"rule": None})
    latent = tensors["latents"]
    assert latent is not None
    return latent


@dataclass(frozen=True)
class PackedLayers:
    """Layers as the extension reads them: rows padded with zeros, and each matrix transposed too.

    ``weights`` are the transposed matrices, by which inputs are multiplied; ``backs`` are the
    matrices as they are, by which gradients are multiplied.
    """

    widths: list[int]
    activations: list[int]
    slope: float
    weights: list[Tensor]
    biases: list[Tensor]
    backs: list[Tensor]


@dataclass(frozen=True)
class DenseProblem:
    """A generator of dense layers, packed, and what is observed of its outputs."""

    packed: PackedLayers
    spec: MisfitSpec

    @classmethod
    def of(cls, layers: DenseLayers, spec: MisfitSpec) -> DenseProblem:
        """Copy the weights, and keep the observation with them."""
        return cls(pack(layers), spec)


def pack(layers: DenseLayers) -> PackedLayers:
    """A packed copy of the weights, for calls of the extension."""
    return PackedLayers(
        layers.widths,
        [ACTIVATIONS.index(name) for name in layers.activations],
        layers.slope,
        [_padded(weight.detach().T) for weight in layers.weights],
        [_padded(bias.detach()[None])[0] for bias in layers.biases],
        [_padded(weight.detach()) for weight in layers.weights],
    )


def anneal(
    problem: DenseProblem,
    tensors: Mapping[str, Tensor | None],
    numbers: Mapping[str, Any],
) -> None:
    """Make a part of the published run; `_native.anneal_mlp` documents the arguments.

    On a CUDA device it is made on the current stream, and this function waits until it is complete.
    Raises TypeError or ValueError naming the argument.
    """
    spec = problem.spec
    arguments = {
        "latents": tensors["latents"],
        **vars(problem.packed),
        "target": spec.target,
        "mask": spec.mask,
        "weight": spec.weight,
        **tensors,
        **numbers,
    }
    device = spec.target.device
    if device.type == "cpu":
        native.extension().anneal_mlp(**arguments, threads=torch.get_num_threads())
        return
    _check_words(tensors, numbers["hmc_steps"])
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        native.extension().anneal_mlp_cuda(**arguments, stream=stream.cuda_stream)
        stream.synchronize()


def _check_words(tensors: Mapping[str, Tensor | None], hmc_steps: int) -> None:
    """Check noise counters on a CUDA device, whose values the extension cannot read itself."""
    transition, observation, betas = (
        tensors[name] for name in ("transition", "observation", "betas")
    )
    assert transition is not None and observation is not None and betas is not None
    made = len(betas) * hmc_steps
    for name, words, most in (
        ("transition", transition, _LARGEST_WORD - made),
        ("observation", observation, _LARGEST_WORD),
    ):
        low, high = (int(limit) for limit in words.aminmax())
        if low < 0 or high > most:
            raise ValueError(f"{name}: expected values in [0, 2^32), got {low} to {high}")


def _padded(rows: Tensor) -> Tensor:
    width = -(-rows.shape[1] // _PADDING) * _PADDING
    out = rows.new_zeros(rows.shape[0], width)
    out[:, : rows.shape[1]] = rows
    return out


def hooked(generator: nn.Module) -> bool:
    """Whether a module, or a module within it, does more than its ``forward``, or its gradient."""
    parametrised = any(hasattr(module, "parametrizations") for module in generator.modules())
    return parametrised or any(True for _ in hooks_of(generator))


def hooks_of(generator: nn.Module) -> Iterator[Any]:
    """Everything that is registered to be called with a module, or a module within it."""
    for module in generator.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            yield from hooks.values()


def _of_sequence(modules: Iterable[nn.Module]) -> DenseLayers | None:
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    activations: list[str] = []
    slopes = set()
    for module in modules:
        if type(module) is nn.Linear:
            bias = module.bias
            weights.append(module.weight)
            biases.append(module.weight.new_zeros(module.out_features) if bias is None else bias)
            activations.append("identity")
            continue
        name = _activation(module)
        if name is None or not activations:
            return None
        if name != "identity":
            if activations[-1] != "identity":
                return None
            activations[-1] = name
        if isinstance(module, nn.LeakyReLU):
            slopes.add(float(module.negative_slope))
    if not weights or len(slopes) > 1:
        return None
    slope = slopes.pop() if slopes else _DEFAULT_SLOPE
    # The gradient is computed from the sign of an output, which a negative slope would change.
    return (
        DenseLayers(tuple(weights), tuple(biases), tuple(activations), slope) if slope > 0 else None
    )


def _activation(module: nn.Module) -> str | None:
    """The name of an activation with torch's constants; None for any other module."""
    kind = type(module)
    if kind is nn.Softplus:
        return "softplus" if module.beta == 1 and module.threshold == 20 else None
    if kind is nn.ELU:
        return "elu" if module.alpha == 1.0 else None
    names: dict[type[nn.Module], str] = {
        nn.Identity: "identity",
        nn.ReLU: "relu",
        nn.LeakyReLU: "leaky_relu",
        nn.Tanh: "tanh",
        nn.Sigmoid: "sigmoid",
    }
    return names.get(kind)

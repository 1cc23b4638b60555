"""A user's module on a faster path: its convolutions found by a trace, and computed by our code.

The trace (`torch.fx`) is a list of the module's operations. Batch norms are folded into the
convolutions before them. A convolution is replaced together with an upsampling before it and an
activation after it, and neighbours become one `ConvolutionChain`, which keeps one activation for
each layer and computes gradients by the latent alone. All other operations remain the module's own.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from cogen_fast.ops.convolution.chain import ConvolutionChain
from cogen_fast.ops.convolution.layers import NativeNorms, TorchNorms, layer_of
from cogen_fast.ops.dense import hooked
from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.packed import Workspace
from cogen_fast.problem import trace_patterns
from cogen_fast.problem.adapter import GeneratorAdapter
from cogen_fast.problem.prior import Prior
from cogen_fast.support.memory import is_out_of_memory

_GRADIENTS_AGREE = 1e-2  # a ReLU at its kink may switch by rounding, so gradients differ by more


def try_tracing(adapter: GeneratorAdapter) -> tuple[GeneratorAdapter | None, str | None]:
    """The adapter of the traced generator, and a note for the result. Call it inside `frozen`.

    The adapter is None where the generator has no convolutions, cannot be traced, or where the
    trace gives other outputs or gradients at the probe latents; the note then has the reason, or is
    None where there is nothing to say. What a `Prior` does around its generator is not traced.
    """
    outer = adapter.generator
    inner = outer.generator if isinstance(outer, Prior) and not outer.styled else outer
    if not isinstance(inner, nn.Module) or not _eligible(adapter, inner):
        return None, None
    try:
        module = _traced(adapter, inner)
        if module is None:
            return None, None
        made = copy.copy(adapter)
        made.generator = outer.around(module) if isinstance(outer, Prior) else module
        agrees = _agrees(adapter, made)
    except Exception as error:  # from user code that cannot be traced, in whatever way
        if is_out_of_memory(error):
            raise
        return None, f"generator: it could not be traced and is called as it is: {error!s:.200}"
    if not agrees:
        return None, "generator: its trace gave other outputs, so it is called as it is"
    return made, "generator: its convolutions are computed by traced code (`torch.fx`)"


def _eligible(adapter: GeneratorAdapter, generator: nn.Module) -> bool:
    """Whether a trace may pay: weights of convolutions in a type for which there is code.

    A module may say that it does not, by the attribute ``traceable``.
    """
    if hooked(generator) or isinstance(generator, Prior) or adapter.home != adapter.device:
        return False
    if not getattr(generator, "traceable", True):
        return False
    if adapter.input_dtype not in (torch.float32, torch.float64):
        return False
    return any(weight.ndim == 4 for weight in generator.parameters())


class _Call(nn.Module):
    """A generator as a function of the latents alone, whose other arguments have their defaults."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Any:
        return self.generator(z)


class _LabelledCall(_Call):
    """A generator as a function of latents and conditions."""

    def forward(self, z: Tensor, conditions: Tensor) -> Any:  # type: ignore[override]
        return self.generator(z, conditions)


def _inputs(adapter: GeneratorAdapter) -> list[Tensor]:
    """What the generator is called with at the probe latents."""
    z = adapter.probe_latents.to(adapter.input_dtype).reshape(-1, *adapter.latent_shape)
    if not isinstance(adapter.generator, Prior):
        return [z]
    conditions = adapter.generator.conditions_of(z, 0)
    return [z] if conditions is None else [z, conditions]


def _traced(adapter: GeneratorAdapter, generator: nn.Module) -> nn.Module | None:
    """The generator with chains in place of its convolutions; None where it has none to replace."""
    inputs = _inputs(adapter)
    root = _Call(generator) if len(inputs) == 1 else _LabelledCall(generator)
    module = fx.GraphModule(root, fx.Tracer().trace(root))
    trace_patterns.remove_identities(module)
    trace_patterns.fold_constants(module)
    native = adapter.device.type == "cpu"
    if native:
        extension()
    work = Workspace(adapter.input_dtype) if native else None
    found = trace_patterns.convolutions(
        module, trace_patterns.shapes_of(module, inputs), partial(layer_of, work=work)
    )
    if not found:
        return None
    norms = NativeNorms() if native else TorchNorms()
    trace_patterns.replace(
        module,
        found,
        lambda run, contiguous: ConvolutionChain([each.layer for each in run], norms, contiguous),
    )
    trace_patterns.finish(module)
    return module


def _agrees(adapter: GeneratorAdapter, made: GeneratorAdapter) -> bool:
    """Whether the trace has the generator's outputs and gradients at the probe latents."""
    ours, theirs = _gradient(made), _gradient(adapter)
    if not adapter.agrees(ours[0]):
        return False
    difference = (ours[1] - theirs[1]).abs().max()
    return bool(difference <= _GRADIENTS_AGREE * theirs[1].abs().max())


def _gradient(adapter: GeneratorAdapter) -> tuple[Tensor, Tensor]:
    """Outputs at the probe latents, and the gradient of half their squares."""
    with torch.enable_grad():
        z = adapter.probe_latents.clone().requires_grad_()
        x = adapter(z)
        (grad,) = torch.autograd.grad(x, z, x.detach())
    return x.detach(), grad

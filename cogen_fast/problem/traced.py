"""A faster form of a user's module: its convolutions are found in a recording and replaced.

Batch norms are folded into the convolutions before them. A convolution is replaced together with an
upsampling before it and an activation after it, and neighbours become one `ConvolutionChain`, which
keeps one activation for each layer and computes gradients with respect to the latent alone. All
other operations remain what they are.

The sums of Winograd's algorithm (`ops/convolution/winograd`) are several times as large as the
numbers that the module computes. Where they exceed the largest number of their type, an output or
gradient is infinite or NaN that would be finite in the module, and the proposal is rejected, as
every one that is not finite is. What is finite is the module's, up to rounding.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from cogen_fast.ops.convolution.chain import ConvolutionChain
from cogen_fast.ops.convolution.layers import layer_of
from cogen_fast.ops.dense import hooks_of
from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.folded import FoldedLayers, TorchNorms
from cogen_fast.ops.progressive.layers import Layers, NativeLayers
from cogen_fast.problem import convolutions
from cogen_fast.problem.adapter import GeneratorAdapter
from cogen_fast.problem.recording import Replay, record
from cogen_fast.support.memory import is_out_of_memory

_NAME = "generator: its convolutions"
# Largest relative differences of gradients: of the median row, and of any row, because rounding may
# switch a ReLU that is at its kink.
_GRADIENTS_AGREE, _AT_A_KINK = 1e-3, 0.3
_LEAST_ROWS = 3
LEAST_PRODUCTS = 4_000_000
"""Multiply-adds of an image: with fewer, calls from Python take longer than convolutions."""


def try_tracing(adapter: GeneratorAdapter) -> tuple[GeneratorAdapter | None, str | None]:
    """The adapter of the generator's faster form, and a note for the result, inside `frozen`.

    The adapter is None where there are no convolutions to replace, where the module cannot be
    recorded, or where outputs or gradients at the probe latents differ; the note then has the
    reason, or is None where there is nothing to replace.
    """
    if not _eligible(adapter):
        return None, None
    made = copy.copy(adapter)
    try:
        replay = _replay(adapter)
        if replay is None:
            return None, None
        made.generator = replay
        agrees = _agrees(adapter, made)
    except Exception as error:  # from user code that cannot be recorded, in whatever way
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        return None, f"{_NAME} are called as they are, because it cannot be recorded: {reason:.200}"
    if not agrees:
        return None, f"{_NAME} are called as they are, because the faster form gave other outputs"
    return made, f"{_NAME} are computed by faster code for gradients with respect to the latent"


def _eligible(adapter: GeneratorAdapter) -> bool:
    """Whether there may be a faster form: of convolutions in a type for which there is code."""
    generator = adapter.generator
    if not isinstance(generator, nn.Module) or _watched(generator):
        return False
    if adapter.input_dtype not in (torch.float32, torch.float64) or adapter.home != adapter.device:
        return False
    enough = len(adapter.probe_latents) >= _LEAST_ROWS
    return enough and any(weight.ndim == 4 for weight in generator.parameters())


def _watched(generator: nn.Module) -> bool:
    """Whether calls of modules are hooked, by others than torch's norms of weights."""
    modules = (type(hook).__module__ for hook in hooks_of(generator))
    return not all(name.startswith("torch.nn.utils.") for name in modules)


def _replay(adapter: GeneratorAdapter) -> Replay | None:
    """The generator with chains in place of its convolutions; None where it has none to replace."""
    z = adapter.probe_latents.to(adapter.input_dtype).reshape(-1, *adapter.latent_shape)
    index = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    recording = record(adapter.generator, [z, index] if adapter.per_observation else [z])
    layers = _layers(adapter)
    found = convolutions.find(recording, partial(layer_of, layers=layers))
    if sum(each.products for each in found) < LEAST_PRODUCTS:
        return None
    return Replay(
        convolutions.replaced(
            recording,
            found,
            lambda run, contiguous: ConvolutionChain(
                [each.layer for each in run], layers, contiguous
            ),
        )
    )


def _layers(adapter: GeneratorAdapter) -> Layers:
    """In C++ on the CPU, which raises ImportError without the extension; by torch elsewhere."""
    if adapter.device.type != "cpu":
        return FoldedLayers(adapter.input_dtype, TorchNorms())
    extension()
    return NativeLayers(adapter.input_dtype)


def _agrees(adapter: GeneratorAdapter, made: GeneratorAdapter) -> bool:
    """Whether the faster form has the generator's outputs and gradients at the probe latents.

    Gradients are also compared for each latent alone, because torch takes other code for some
    operations on a batch of one.
    """
    rows = adapter.probe_latents
    outputs, ours = _gradient(made, rows)
    if not adapter.agrees(outputs) or not _gradients_agree(ours, _gradient(adapter, rows)[1]):
        return False
    ours, theirs = (
        torch.cat([_gradient(each, z)[1] for z in rows[:, None]]) for each in (made, adapter)
    )
    return _gradients_agree(ours, theirs)


def _gradients_agree(ours: Tensor, theirs: Tensor) -> bool:
    """Compares the largest difference in each row ``(n, d)`` with the row's largest entry."""
    sizes = theirs.abs().amax(-1).clamp(min=torch.finfo(theirs.dtype).tiny)
    errors = (ours - theirs).abs().amax(-1) / sizes
    return bool(errors.median() <= _GRADIENTS_AGREE and errors.max() <= _AT_A_KINK)


def _gradient(adapter: GeneratorAdapter, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of half their squares by the latents."""
    with torch.enable_grad():
        z = latents.clone().requires_grad_()
        x = adapter(z)
        (grad,) = torch.autograd.grad(x, z, x.detach())
    return x.detach(), grad

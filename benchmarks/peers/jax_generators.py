"""JAX twins of the benchmarks' generators: the same outputs and z-gradients from the same weights.

Each maker returns a pure function of rows of latents ``(n, d)``, to be jitted, differentiated or
vmapped by the caller. Weights keep their float type as far as JAX's settings allow (float64 needs
``jax_enable_x64``). Hardware short cuts (TF32, bfloat16 passes) are ruled out: float32 is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from torch import nn

from cogen_fast.experiments.exact_models import LinearGaussian
from cogen_fast.generators import ProgressiveGenerator

Generator = Callable[[Array], Array]

_EXACT = lax.Precision.HIGHEST


def mlp(weights: Mapping[str, Any]) -> Generator:
    """Dense layers with ReLU between: rows ``(n, d)`` to outputs ``(n, out)``.

    ``weights`` is either the authors' npz (``w1`` ``(in, out)``, ``b1`` ``(out,)``, ``w2``, ...) or
    the ``state_dict`` of an ``MLPGenerator`` with ReLU (``layers.0.weight`` ``(out, in)``, ...).

    Source: Fang and Schwing 2019, section 4.1, where the sizes are 2-20-20-2.
    """
    layers = [(jnp.asarray(w), jnp.asarray(b)) for w, b in _dense_layers(weights)]

    def generate(rows: Array) -> Array:
        x = rows
        for i, (w, b) in enumerate(layers):
            x = jnp.matmul(x if i == 0 else jax.nn.relu(x), w, precision=_EXACT) + b
        return x

    return generate


def _dense_layers(weights: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight ``(in, out)`` and bias ``(out,)`` per layer, from either layout."""
    number = len(weights) // 2
    if "w1" in weights:
        return [(weights[f"w{i}"], weights[f"b{i}"]) for i in range(1, number + 1)]
    names = [f"layers.{i}" for i in range(number)]
    return [(_array(weights[f"{n}.weight"]).T, _array(weights[f"{n}.bias"])) for n in names]


def linear_gaussian(model: LinearGaussian) -> Generator:
    """Twin of an exact model: rows ``(n, d)`` to outputs ``(n, d)``."""
    turn, scales = jnp.asarray(model.rotation, jnp.float32), jnp.asarray(model.scales, jnp.float32)
    return lambda rows: jnp.matmul(rows, turn, precision=_EXACT) * scales


def dcgan(module: nn.Module) -> Generator:
    """Twin of a DCGAN in eval mode: rows ``(n, d)`` to images ``(n, channels, side, side)``.

    ``module.main`` is a sequence of bias-free transposed convolutions, each but the last with batch
    norm and ReLU behind it, the last with tanh (Radford, Metz and Chintala 2016).
    """
    stages = _stages(module.main)
    last = len(stages) - 1

    def generate(rows: Array) -> Array:
        x = rows[:, None, None, :]
        for i, (transposed, shift) in enumerate(stages):
            x = transposed(x) + shift
            x = jnp.tanh(x) if i == last else jax.nn.relu(x)
        return x.transpose(0, 3, 1, 2)

    return generate


def _stages(main: nn.Sequential) -> list[tuple[Callable[[Array], Array], Array]]:
    """Transposed convolution and shift ``(out,)`` of each stage, channels last."""
    stages = []
    layers = list(main)
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.ConvTranspose2d):
            weight = _array(layer.weight)
            scale, shift = _scale_and_shift(after, weight)
            weight = weight * scale[:, None, None]
            transposed = _conv_transpose(weight, layer.stride[0], layer.padding[0])
            stages.append((transposed, jnp.asarray(shift)))
    return stages


def progressive(module: ProgressiveGenerator) -> Generator:
    """Twin of a fully grown progressive GAN: rows ``(n, d)`` to images ``(n, channels, R, R)``.

    Channels last throughout, He constants folded into the weights.
    """
    assert module.alpha == 1.0
    slope = module.negative_slope
    convolutions = [module.base.conv, *(c for b in module.blocks for c in (b.conv0, b.conv1))]
    base, *rest = [
        (_conv_same(_array(c.scaled_weight())), jnp.asarray(_array(c.bias))) for c in convolutions
    ]
    dense = jnp.asarray(_array(module.base.dense.scaled_weight()))
    dense_bias = jnp.asarray(_array(module.base.dense.bias))
    colours = jnp.asarray(_array(module.to_rgb.scaled_weight())[:, :, 0, 0])
    colour_bias = jnp.asarray(_array(module.to_rgb.bias))
    maps = module.feature_maps[0]

    def norm(x: Array, axis: int = -1) -> Array:
        return x * lax.rsqrt(jnp.mean(x * x, axis, keepdims=True) + 1e-8)

    def layer(x: Array, convolution: tuple[Callable[[Array], Array], Array]) -> Array:
        convolve, bias = convolution
        return norm(jax.nn.leaky_relu(convolve(x) + bias, slope))

    def generate(rows: Array) -> Array:
        x = norm(rows) if module.normalise_latent else rows
        x = jax.nn.leaky_relu(jnp.matmul(x, dense.T, precision=_EXACT) + dense_bias, slope)
        x = x.reshape(-1, maps, 4, 4).transpose(0, 2, 3, 1)
        x = layer(norm(x) if module.normalise_dense else x, base)
        for first, second in zip(rest[::2], rest[1::2], strict=True):
            x = layer(layer(x.repeat(2, 1).repeat(2, 2), first), second)
        image = jnp.matmul(x, colours.T, precision=_EXACT) + colour_bias
        return (jnp.tanh(image) if module.final == "tanh" else image).transpose(0, 3, 1, 2)

    return generate


def _conv_same(weight: np.ndarray) -> Callable[[Array], Array]:
    """Convolution that keeps the side, by ``weight`` ``(out, in, 3, 3)``, channels last.

    Its gradient is spelt out for the reason that `_conv_transpose` gives.
    """
    forward = jnp.asarray(weight.transpose(2, 3, 1, 0))
    backward = jnp.asarray(weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))

    @jax.custom_vjp
    def convolved(x: Array) -> Array:
        return _conv(x, forward, 1)

    convolved.defvjp(lambda x: (convolved(x), None), lambda _, grad: (_conv(grad, backward, 1),))
    return convolved


def _conv_transpose(weight: np.ndarray, stride: int, padding: int) -> Callable[[Array], Array]:
    """Transposed convolution by ``weight`` ``(in, out, k, k)``, images ``(n, h, w, channels)``.

    Forward it is a plain convolution of the input with ``stride - 1`` zeros in between (XLA skips
    them) by the kernel turned half round; the gradient by the input is a strided convolution.

    The gradient is spelt out, with a kernel of its own, because XLA on CPUs computes a convolution
    within a loop fast only where it is channels-last in every operand (jax issue 12868), which the
    one that JAX derives is not: a leapfrog loop around that took 75 times as long as this.
    """
    forward = jnp.asarray(weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))
    backward = jnp.asarray(weight.transpose(2, 3, 1, 0))
    pad = weight.shape[-1] - 1 - padding

    @jax.custom_vjp
    def transposed(x: Array) -> Array:
        return _conv(x, forward, pad, lhs_dilation=(stride, stride))

    transposed.defvjp(
        lambda x: (transposed(x), None),
        lambda _, grad: (_conv(grad, backward, padding, window_strides=(stride, stride)),),
    )
    return transposed


def _conv(x: Array, kernel: Array, pad: int, **options: Any) -> Array:
    """Convolution of ``(n, h, w, in)`` by ``(k, k, in, out)``."""
    return lax.conv_general_dilated(
        x,
        kernel,
        **{"window_strides": (1, 1)} | options,
        padding=[(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_EXACT,
    )


def _scale_and_shift(after: nn.Module | None, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Batch norm by its running statistics as ``scale * x + shift``; identity for other layers."""
    out = weight.shape[1]
    if not isinstance(after, nn.BatchNorm2d):
        return np.ones(out, weight.dtype), np.zeros(out, weight.dtype)
    scale = _array(after.weight) / np.sqrt(_array(after.running_var) + after.eps)
    shift = _array(after.bias) - _array(after.running_mean) * scale
    return scale.astype(weight.dtype), shift.astype(weight.dtype)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)

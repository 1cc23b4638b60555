"""The small dense generator of the paper's 2-D experiment, for any sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast.generators.checks import positive_int
from cogen_fast.ops.dense import DenseLayers
from cogen_fast.support.arguments import abbreviated

NEGATIVE_SLOPE = 0.2


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE)


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": _leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
    "identity": _identity,
}


class MLPGenerator(nn.Module):
    """Dense layers with an activation between them: z (N, sizes[0]) -> (N, sizes[-1]).

    Args:
        sizes: the widths from the latent to the output, at least two.
        activation: the activation after every layer except the last, a name in `ACTIVATIONS`
            (leaky_relu has slope 0.2).
        final: the activation after the last layer, a name in `ACTIVATIONS`; None is identity.

    Attributes: `layers` (an `nn.Linear` each), `latent_size`, `output_shape` = (sizes[-1],).

    Raises:
        ValueError: an argument is out of range; the message names it, what was expected and what
            came.

    Source: Fang and Schwing 2019, section 4.1 (2-20-20-2, ReLU), as in their public program.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (2, 20, 20, 2),
        activation: str = "relu",
        final: str | None = None,
    ) -> None:
        super().__init__()
        self.sizes = tuple(positive_int("sizes", size) for size in sizes)
        if len(self.sizes) < 2:
            raise ValueError(f"sizes: expected at least two widths, got {self.sizes}")
        self.activation = _checked_activation("activation", activation)
        self.final = _checked_activation("final", "identity" if final is None else final)
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in pairwise(self.sizes)
        )

    @property
    def latent_size(self) -> int:
        """The length of z."""
        return self.sizes[0]

    @property
    def output_shape(self) -> tuple[int]:
        """The shape of one output: (sizes[-1],)."""
        return (self.sizes[-1],)

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready arguments: `MLPGenerator(**config)` differs in the weights alone."""
        return {"sizes": list(self.sizes), "activation": self.activation, "final": self.final}

    def dense_layers(self) -> DenseLayers:
        """The layers as plain data, for runs in C++."""
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return DenseLayers(
            tuple(layer.weight for layer in layers),
            tuple(layer.bias for layer in layers),
            (*(len(layers) - 1) * [self.activation], self.final),
            NEGATIVE_SLOPE,
        )

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (N, sizes[-1]) of z (N, sizes[0]); ValueError if z has another shape."""
        if z.ndim != 2 or z.shape[1] != self.latent_size:
            raise ValueError(f"z: expected shape (N, {self.latent_size}), got {tuple(z.shape)}")
        x = z
        *hidden, last = self.layers
        for layer in hidden:
            x = ACTIVATIONS[self.activation](layer(x))
        return ACTIVATIONS[self.final](last(x))


def _checked_activation(name: str, value: object) -> str:
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(
            f"{name}: expected one of {', '.join(ACTIVATIONS)}, got {abbreviated(value)}"
        )
    return value

"""Generators for tests, one of which raises an error at a given call; comparison of results."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from implementations import INTERPRETED
from torch import Tensor, nn

from cogen_fast import Result, save_generator
from cogen_fast.generators import ProgressiveGenerator

BACKENDS = ["triton"] if INTERPRETED else ["reference", "native"]
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def network(seed: int = 0) -> nn.Sequential:
    random = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=random)
    return net


def seeded(
    resolution: int = 16, dtype: torch.dtype = torch.float64, **options: Any
) -> ProgressiveGenerator:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(resolution, **options).to(dtype)
    for parameter in generator.parameters():
        parameter.data = torch.randn_like(parameter)
    return generator.requires_grad_(False)


def saved_generator(folder: Path, side: int) -> str:
    """The file of a small progressive generator of colour images, with 6 latents."""
    torch.manual_seed(0)
    generator = ProgressiveGenerator(resolution=side, feature_maps=[8, 8, 8], latent_size=6)
    save_generator(generator, folder / "g.safetensors")
    return str(folder / "g.safetensors")


class Failing(nn.Module):
    """The network, raising ``error`` at call number ``at``."""

    def __init__(self, at: int | None = None, error: type[BaseException] = KeyboardInterrupt):
        super().__init__()
        self.net, self.at, self.error, self.calls = network(), at, error, 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        x: Tensor = self.net(z)
        return x


def assert_same(a: Result, b: Result, but: tuple[str, ...] = ()) -> None:
    """Assert that two results are equal bit for bit, NaNs included, except the fields ``but``."""
    for field in fields(Result):
        if field.name in but:
            continue
        first, second = getattr(a, field.name), getattr(b, field.name)
        if isinstance(first, Tensor):
            assert first.dtype == second.dtype, field.name
            np.testing.assert_array_equal(first.numpy(), second.numpy(), err_msg=field.name)
        else:
            assert first == second, field.name

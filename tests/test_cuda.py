"""The whole way on a CUDA device, against the same run on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cogen_fast import cogenerate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 9)).double()


def test_a_short_run_equals_the_one_on_the_cpu() -> None:
    # A few transitions in float64: rounding differs between devices, and HMC amplifies it.
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1])
    x_obs = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
    settings = {"noise_std": 0.3, "chains": 5, "ais_steps": 3, "leapfrog_steps": 4}
    runs = [
        cogenerate(_model().to(device), x_obs, mask, progress=False, **settings)
        for device in ("cpu", "cuda")
    ]
    assert torch.allclose(runs[0].latents, runs[1].latents, rtol=0, atol=1e-10)
    assert torch.allclose(runs[0].log_weights, runs[1].log_weights, rtol=0, atol=1e-9)

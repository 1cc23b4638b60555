"""The whole way on a CUDA device, against the same run on the CPU."""

from __future__ import annotations

from typing import Any

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


SHORT: dict[str, dict[str, Any]] = {
    "paper": {"method": "paper", "chains": 5, "ais_steps": 3, "leapfrog_steps": 4},
    "adaptive": {"chains": 17, "budget": 25, "leapfrog_steps": 4, "hmc_steps": 1},
    "alone": {"chains": 3, "budget": 30, "leapfrog_steps": 4, "hmc_steps": 1},
}


@pytest.mark.parametrize("settings", SHORT.values(), ids=SHORT)
def test_a_short_run_equals_the_one_on_the_cpu(settings: dict[str, Any]) -> None:
    # A few transitions in float64: rounding differs between devices, and HMC amplifies it.
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1])
    x_obs = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
    runs = [
        cogenerate(
            _model().to(device), x_obs, mask, noise_std=0.3, seed=2, progress=False, **settings
        )
        for device in ("cpu", "cuda")
    ]
    assert torch.allclose(runs[0].latents, runs[1].latents, rtol=0, atol=1e-9)
    assert torch.allclose(runs[0].betas, runs[1].betas, rtol=1e-9, atol=0)
    if runs[0].log_weights is not None:
        assert torch.allclose(runs[0].log_weights, runs[1].log_weights, rtol=0, atol=1e-8)

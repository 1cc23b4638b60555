"""Whole runs on a CUDA device, compared with the same runs on the CPU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from cogen_fast import cogenerate
from cogen_fast.methods.settings import keywords
from cogen_fast.ops import dense, native

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
    # The run has few transitions, in float64, because rounding differs between devices and HMC
    # amplifies it.
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1])
    x_obs = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
    runs = [
        cogenerate(
            _model().to(device),
            x_obs,
            mask,
            **keywords({"noise_std": 0.3, "seed": 2, "progress": False, **settings}),
        )
        for device in ("cpu", "cuda")
    ]
    assert torch.allclose(runs[0].latents, runs[1].latents, rtol=0, atol=1e-9)
    assert torch.allclose(runs[0].betas, runs[1].betas, rtol=1e-9, atol=0)
    if runs[0].log_weights is not None:
        assert torch.allclose(runs[0].log_weights, runs[1].log_weights, rtol=0, atol=1e-8)


needs_fused = pytest.mark.skipif(
    torch.cuda.is_available() and not native.extension().build_info()["with_cuda"],
    reason="needs an extension built with CUDA",
)


def _network(sizes: tuple[int, ...], activation: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(sizes))
        for size, out in pairwise(sizes):
            layers += [nn.Linear(size, out), activation()]
    return nn.Sequential(*layers[:-1])


@needs_fused
def test_the_run_that_is_tried_on_a_device_is_that_of_the_cpu() -> None:
    made = [dense.trial_run(torch.device(device)).cpu() for device in ("cuda", "cpu")]
    torch.testing.assert_close(*made, rtol=1e-5, atol=0)
    assert dense.device_failure(torch.device("cuda")) is None


@needs_fused
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])
@pytest.mark.parametrize("adaptation", ["published", "per-chain"])
@pytest.mark.parametrize("chains", [1, 3, 100, 700, 20_000])
@pytest.mark.parametrize(
    ("sizes", "activation"),
    [
        ((2, 20, 20, 2), nn.ReLU),
        ((2, 16, 16, 2), nn.Tanh),
        ((2, 32, 32, 2), nn.LeakyReLU),
        ((5, 33, 7, 3), nn.ELU),
        ((40, 256, 256, 100), nn.Softplus),
    ],
    ids=["2-20-20-2", "2-16-16-2", "2-32-32-2", "odd", "wide"],
)
def test_a_run_in_one_launch_equals_the_one_on_the_cpu(
    sizes: tuple[int, ...],
    activation: type[nn.Module],
    chains: int,
    adaptation: str,
    dtype: torch.dtype,
) -> None:
    """Chains are computed by warps or threads, an observation by one block or by many."""
    if sizes[-1] == 100 and chains > 100:
        chains = 200
    net = _network(sizes, activation).to(dtype)
    x_obs = torch.linspace(-0.5, 0.5, 2 * sizes[-1], dtype=dtype).reshape(2, sizes[-1])
    mask = torch.ones(sizes[-1])
    mask[0] = 0
    options: dict[str, Any] = {
        "method": "paper",
        "ais_steps": 4,
        "hmc_steps": 2,
        "leapfrog_steps": 3,
        "noise_std": 0.3,
        "seed": 2,
        "progress": False,
        "keep_trace": True,
        "backend": "fused",
        "adaptation": adaptation,
    }
    runs = [
        cogenerate(net.to(device), x_obs, mask, **keywords({"chains": chains, **options}))
        for device in ("cpu", "cuda")
    ]
    if dtype == torch.float32:  # a chain whose accept test depends on rounding goes elsewhere
        same = torch.isclose(runs[0].latents, runs[1].latents, rtol=0, atol=1e-3)
        assert same.float().mean() > 0.99
        return
    for name in ("latents", "log_weights", "acceptance", "step_size", "energy_history", "trace"):
        first, second = getattr(runs[0], name), getattr(runs[1], name)
        assert torch.allclose(first, second, rtol=1e-8, atol=1e-8), name


@needs_fused
@pytest.mark.parametrize("adaptation", ["published", "per-chain"])
def test_runs_in_one_launch_are_the_same_to_the_bit(adaptation: str) -> None:
    net = _network((2, 20, 20, 2), nn.ReLU).cuda()
    x_obs, mask = torch.zeros(3, 2), torch.tensor([1, 0])
    options: dict[str, Any] = {"method": "paper", "ais_steps": 50, "noise_std": 0.2, "seed": 1}
    options["adaptation"] = adaptation
    runs = [
        cogenerate(net, x_obs, mask, **keywords({"chains": 1000, "progress": False, **options}))
        for _ in range(2)
    ]
    assert torch.equal(runs[0].latents, runs[1].latents)
    assert runs[0].settings["backend"] == "fused"

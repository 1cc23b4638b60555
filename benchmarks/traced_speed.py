"""Speed and memory of z-gradients of users' modules: ``python benchmarks/traced_speed.py``.

Two networks with random weights, written as people write them: the DCGAN of 64 px (a gradient takes
0.21 billion multiply-adds) and a residual generator of 32 px. The module by autograd is compared
with its faster form (`cogen_fast.problem.traced`), on one thread, in turns. The table has medians,
the median of the ratios, and the rise of resident memory during a gradient, each in a process of
its own. `--out` keeps it as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from dcgan import DCGAN
from resident import rise
from torch import Tensor, nn

from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.problem.traced import try_tracing

RESULTS = Path(__file__).resolve().parent / "results" / "traced_speed.json"
_ROUNDS, _MIB = 11, 2.0**20


class _Block(nn.Module):
    """Norm, ReLU, upsampling and convolution; norm, ReLU, convolution; and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.norms[0](x)), scale_factor=2)
        y = self.convolutions[1](F.relu(self.norms[1](self.convolutions[0](y))))
        return y + F.interpolate(self.shortcut(x), scale_factor=2)


class Residual(nn.Module):
    """The generator of Miyato et al. 2018 (arXiv:1802.05957), table 4 a: 128 latents to 32 px."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.latent_size, self.width = 128, width
        self.dense = nn.Linear(128, 16 * width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(3)))
        self.norm, self.last = nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.blocks(self.dense(z).view(-1, self.width, 4, 4))
        return torch.tanh(self.last(F.relu(self.norm(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "DCGAN 64 px": DCGAN,
    "residual 32 px": Residual,
}
CHAINS = (1, 4, 16, 64)


def gradients(name: str, chains: int) -> dict[str, Callable[[], Any]]:
    """A z-gradient by the module, and by its faster form where it has one."""
    torch.manual_seed(0)
    generator = NETWORKS[name]().eval()
    with frozen(generator):
        adapter = GeneratorAdapter(generator)
        traced, _ = try_tracing(adapter)
    for parameter in generator.parameters():
        parameter.requires_grad_(False)
    z = torch.randn(chains, adapter.latent_size)

    def of(which: GeneratorAdapter) -> Callable[[], Tensor]:
        def gradient() -> Tensor:
            rows = z.clone().requires_grad_()
            x = which(rows)
            return torch.autograd.grad(x, rows, torch.ones_like(x))[0]

        return gradient

    return {"module": of(adapter)} | ({} if traced is None else {"traced": of(traced)})


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak(name: str, chains: int, which: str) -> float:
    torch.set_num_threads(1)
    call = gradients(name, chains)[which]
    call()
    return rise(call)


def _line(name: str, chains: int, rounds: int) -> dict[str, Any]:
    calls = gradients(name, chains)
    for call in calls.values():
        call()
    times = [{which: _seconds(call) for which, call in calls.items()} for _ in range(rounds)]
    found: dict[str, Any] = {"network": name, "chains": chains}
    context = multiprocessing.get_context("spawn")
    for which in calls:
        found[f"{which} ms"] = 1e3 * statistics.median(each[which] for each in times)
        with context.Pool(1) as pool:
            found[f"{which} MiB"] = pool.apply(_peak, (name, chains, which)) / _MIB
    if "traced" in calls:
        found["ratio"] = statistics.median(each["module"] / each["traced"] for each in times)
    return found


def main() -> None:
    """Measure, print the table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--chains", nargs="+", type=int, default=list(CHAINS))
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in options.networks:
        for chains in options.chains:
            lines.append(_line(name, chains, options.rounds))
            print(
                "  ".join(
                    f"{key} {value:.2f}" if isinstance(value, float) else str(value)
                    for key, value in lines[-1].items()
                ),
                flush=True,
            )
    content = {"torch": torch.__version__, "processor": machine.processor(), "lines": lines}
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

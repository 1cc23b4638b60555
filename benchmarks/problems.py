"""The problems whose transitions are timed: a generator, what is observed, and running chains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from dcgan import load_faces
from torch import Tensor

from cogen_fast import Compute
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.problem.problem import Problem, prepared
from cogen_fast.sampler import hmc
from cogen_fast.sampler.hmc import HMCState

LEAPFROG_STEPS = 20


@dataclass(frozen=True)
class Bench:
    """A problem with chains at their start."""

    problem: Problem
    state: HMCState
    settings: TransitionSettings

    def transition(self, ops: object) -> None:
        """One transition of L leapfrog steps with the given ops."""
        hmc.transition(self.state, self.problem.potential, self.settings, LEAPFROG_STEPS, ops)

    def bare_gradients(self) -> None:
        """What the same number of gradients of the generator costs by itself."""
        generator = self.problem.adapter
        rows = self.state.latents.flatten(0, 1)
        seed = torch.ones(len(rows), *generator.output_shape, dtype=rows.dtype)
        for _ in range(LEAPFROG_STEPS):
            z = rows.detach().requires_grad_()
            with torch.enable_grad():
                torch.autograd.grad(generator(z), z, seed)


def _mlp(chains: int) -> tuple[torch.nn.Module, object, object, int]:
    known = np.array([np.nan, 0.0], dtype=np.float32)
    return pretrained("five-gaussians"), known, np.array([0, 1]), chains


def _dcgan(chains: int) -> tuple[torch.nn.Module, object, object, int]:
    generator = load_faces()
    z = torch.randn(1, 100, 1, 1, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(64, 64)
    mask[17:47, 17:47] = 0
    with torch.no_grad():
        face: Tensor = generator(z)
    return generator, face, mask, chains


PROBLEMS: dict[str, Callable[[], tuple[torch.nn.Module, object, object, int]]] = {
    "mlp-100": lambda: _mlp(100),
    "mlp-1000": lambda: _mlp(1000),
    "dcgan-16": lambda: _dcgan(16),
}


@contextmanager
def bench(name: str, backend: str) -> Iterator[Bench]:
    """The problem of that name, with its chains at prior draws and beta 1e-3."""
    generator, x_obs, mask, chains = PROBLEMS[name]()
    with prepared(
        generator, x_obs, mask, noise_std=0.1, compute=Compute(backend=backend)
    ) as problem:
        state = hmc.init(
            problem.potential,
            chains=chains,
            latent_size=problem.adapter.latent_size,
            backend=backend,
        )
        one = torch.ones(1, dtype=torch.float64)
        yield Bench(problem, state, TransitionSettings(1e-3 * one, one, 0.01 * one))

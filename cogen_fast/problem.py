"""A checked problem: generator, observation and the potential made of both, ready to sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogen_fast.adapter import GeneratorAdapter, frozen
from cogen_fast.density import GeneratorPotential
from cogen_fast.observation import Mask, Observation, UserMisfit, as_operator, observe
from cogen_fast.ops import dispatch
from cogen_fast.ops.dense import DenseLayers, dense_layers, forward, unfit
from cogen_fast.sampler.dense import DenseProblem


@dataclass(frozen=True)
class Problem:
    """What every method needs; valid inside `prepared` only, while G's weights are frozen.

    ``dense`` is there where whole runs are made in C++ (backend "fused").
    """

    adapter: GeneratorAdapter
    observation: Observation
    potential: GeneratorPotential
    backend: str
    dense: DenseProblem | None = None

    def how(self) -> dict[str, Any]:
        """What `hmc.init` needs to know of the generator."""
        return {
            "latent_size": self.adapter.latent_size,
            "device": self.adapter.device,
            "dtype": self.adapter.dtype,
            "backend": self.backend,
        }

    def probes(self) -> dict[str, Tensor]:
        """What generator, operator and misfit give at fixed latents, to tell functions apart."""
        outputs, latents = self.adapter.probe_output, self.adapter.probe_latents
        return {
            "generator": outputs,
            "operator": self.observation.operator.apply(outputs),
            "misfit": self.potential.energy(latents.expand(self.observation.count, -1, -1)),
        }


@contextmanager
def prepared(
    generator: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    noise_std: Any = None,
    weight: Any = None,
    misfit: UserMisfit | None = None,
    latent_shape: Any = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    max_batch: int | None = None,
) -> Iterator[Problem]:
    """Check generator and data and bind them; G is as it was when the context ends.

    Inside, gradients are off but where a potential turns them on, and float32 is float32 (no TF32)
    on CUDA. Raises TypeError or ValueError naming the argument at fault.
    """
    operator = as_operator(mask)
    with full_precision(), frozen(generator):
        adapter = GeneratorAdapter(generator, latent_shape, device, max_batch)
        ops = dispatch.resolve(backend, adapter.device)
        observation = observe(
            operator,
            x_obs,
            adapter.probe_output,
            noise_std=noise_std,
            weight=weight,
            misfit=misfit,
        )
        potential = GeneratorPotential(adapter, observation, ops, max_batch)
        dense = _dense_problem(backend, adapter, observation)
        name = ops.name if dense is None else "fused"
        yield Problem(adapter, observation, potential, name, dense)


def _dense_problem(
    backend: str, adapter: GeneratorAdapter, observation: Observation
) -> DenseProblem | None:
    """For runs in C++, where they were asked for or are the best there is."""
    if backend not in ("auto", "fused") or not dispatch.fuses(adapter.device):
        return None
    layers = dense_layers(adapter.generator)
    obstacle = _obstacle(layers, adapter, observation)
    if layers is not None and obstacle is None:
        return DenseProblem.of(layers, observation.spec)
    if backend == "fused":
        raise ValueError(f"backend: fused serves generators of dense layers only, got {obstacle}")
    return None


def _obstacle(
    layers: DenseLayers | None, adapter: GeneratorAdapter, observation: Observation
) -> str | None:
    """What keeps a run from being made in C++."""
    if layers is None:
        return "a generator that is not known to be nothing but dense layers"
    if (reason := unfit(layers)) is not None:
        return reason
    if not isinstance(observation.operator, Mask) or observation.user_misfit is not None:
        return "another operator than a mask, or another misfit than the squared error"
    if len(adapter.output_shape) != 1 or len(adapter.latent_shape) != 1:
        return "latents or outputs that are no vectors"
    found = forward(layers, adapter.probe_latents.to(adapter.input_dtype)).to(adapter.dtype)
    if found.shape != adapter.probe_output.shape or not torch.allclose(
        found, adapter.probe_output, rtol=1e-3, atol=1e-5
    ):
        return "dense_layers() that give other outputs than the generator"
    return None


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 is float32 (no TF32), and gradients are off."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.cuda.is_available():
            stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
            stack.enter_context(_full_precision_matmul())
        yield


@contextmanager
def _full_precision_matmul() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

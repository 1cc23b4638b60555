"""A user's generator compiled by `torch.compile`, where that works."""

from __future__ import annotations

import copy

import torch

from cogen_fast.problem.adapter import GeneratorAdapter
from cogen_fast.support.memory import is_out_of_memory


def try_compiling(adapter: GeneratorAdapter) -> tuple[GeneratorAdapter | None, str]:
    """The adapter of the compiled generator, and a note for the result. Call it inside `frozen`.

    The adapter is None where compilation fails, or where the compiled generator gives other outputs
    at the probe latents. The generator is compiled for each shape, of which a run has few.
    """
    made = copy.copy(adapter)
    try:
        made.generator = torch.compile(adapter.generator, dynamic=False)
        with torch.enable_grad():
            z = adapter.probe_latents.clone().requires_grad_()
            x = made(z)
            torch.autograd.grad(x.sum(), z)
    except Exception as error:  # from a compiler, or from user code that cannot be traced
        if is_out_of_memory(error):
            raise
        return None, f"compile: torch.compile failed and is not used: {error!s:.300}"
    if not adapter.agrees(x.detach()):
        return None, "compile: torch.compile gave other outputs than G and is not used"
    return made, "generator: compiled by torch.compile"

"""A user's generator through `torch.compile`, where that works."""

from __future__ import annotations

import copy

import torch

from cogen_fast.problem.adapter import GeneratorAdapter
from cogen_fast.support.memory import is_out_of_memory


def try_compiling(adapter: GeneratorAdapter) -> tuple[GeneratorAdapter | None, str]:
    """The adapter of the compiled generator, tried at the probe latents, and a note; use `frozen`.

    None where compilation fails or gives other outputs. It is compiled anew for each shape: a run
    has few.
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

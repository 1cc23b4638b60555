"""Where a run is computed, and how: what belongs to the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cogen_fast.problem.precision import Precision
from cogen_fast.support.arguments import check_count, check_flag, names_of, shown, taken


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What belongs to the machine.

    Args:
        device: where to run (the device of G's weights). "cpu" or "cuda".
        backend: "auto", "fused", "native" (CPU), "triton" (CUDA) or "reference"; see
            `cogen_fast.backends`. "auto" takes "fused", where it serves G: the z-gradient's fast
            path for progressive generators and, with the published method, whole runs in one call
            for small ones of dense layers.
        gradient_dtype: what gradients are computed in (G's own type, float32 for most). "bfloat16"
            and "float16" are cheaper on a GPU and leave the posterior exact: energies then take a
            forward of their own. Where acceptance suffers the run goes on in G's own type.
        energy_dtype: what energies are computed in (G's own type), never TF32: what is sampled is
            the posterior of G in this type.
        compile: run G through `torch.compile`. Where that fails, a warning and a note say so.
        cuda_graphs: on CUDA, record moves and replay them, so that no launch waits for Python; what
            G does in Python, such as hooks, is then done a few times only. Where G waits for the
            device within a move, or cannot be recorded, a note says so and moves run as they are.
        max_batch: most latents in one call to G (all; on CUDA as many as measured memory holds;
            halved when memory runs out).

    Raises:
        TypeError, ValueError: bad input, naming the argument. Whether the machine has the device
        and the backend is found out where they are used.
    """

    device: torch.device | str | None = None
    backend: str = "auto"
    gradient_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    energy_dtype: Literal["float32", "float64"] | None = None
    compile: bool = False
    cuda_graphs: bool = True
    max_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("compile", "cuda_graphs"):
            check_flag(name, getattr(self, name))
        if self.max_batch is not None:
            object.__setattr__(self, "max_batch", check_count("max_batch", self.max_batch))
        Precision(self.gradient_dtype, self.energy_dtype)

    @property
    def precision(self) -> Precision:
        """In which types energies and gradients are computed."""
        return Precision(self.gradient_dtype, self.energy_dtype)

    def settings(self) -> dict[str, Any]:
        """As plain values, for the result: what does not depend on the machine."""
        own = {"compile": self.compile, "cuda_graphs": self.cuda_graphs}
        return self.precision.settings() | own


DEFAULT = Compute()


def as_compute(compute: Any) -> Compute:
    """``compute`` itself; TypeError naming it where it is none."""
    if not isinstance(compute, Compute):
        raise TypeError(f"compute: expected a Compute, got {shown(compute)}")
    return compute


def gathered(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` by name, with those of a `Compute` in one, ``compute``."""
    rest = dict(options)
    machine = taken(rest, names_of(Compute))
    return rest | ({"compute": Compute(**machine)} if machine else {})

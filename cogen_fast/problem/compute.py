"""The settings of the computation: device, backend, float types, memory, time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cogen_fast.problem.precision import Precision
from cogen_fast.support.arguments import (
    check_count,
    check_flag,
    check_number,
    names_of,
    shown,
    taken,
)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how a run is computed. Defaults are in parentheses.

    Args:
        device: "cpu", "cuda", or another device of torch's, such as "mps" or "xpu" (the device of
            G's weights). On devices other than cpu and cuda only G runs, and all else on the CPU;
            a note of the result says so.
        backend: "auto", "fused", "native" (CPU), "triton" (CUDA) or "reference" ("auto"); see
            `cogen_fast.backends`. "auto" takes "fused" where that supports G: for progressive
            generators the fast path of the gradient with respect to z, and for small generators of
            dense layers, with the published method, whole runs in one call. Of other modules with
            convolutions it makes a faster form, where that agrees with the module.
        gradient_dtype: the float type of gradients (G's own type, float32 for most). "bfloat16" and
            "float16" are cheaper on a GPU and leave the posterior exact, because energies are then
            computed by a forward pass of their own. "tf32" is float32 whose products of matrices
            and convolutions take 10 bits of mantissa; on the CPU factors are rounded so, which is
            slower and shows what the acceptance would be. Where the acceptance falls, the run
            continues with gradients in G's own type.
        energy_dtype: the float type of energies (G's own type), never TF32. The samples are from
            the posterior of G as computed in this type.
        compile: run G through `torch.compile` (False). Where that fails, a warning and a note say
            so, and G runs as it is.
        cuda_graphs: on CUDA, record the moves and replay them, so that no kernel launch waits for
            Python (True). What G does in Python, such as hooks, then happens a few times only.
            Where G waits for the device within a move, or cannot be recorded, a note says so, and
            moves run without recordings.
        max_batch: the largest number of latents in one call to G (all; on CUDA as many as fit into
            measured memory). It is halved when memory runs out.
        time_limit: seconds of sampling after which a run ends unfinished, at the next temperature
            (none); polishing is then left out. Baselines take no limit.
        processes: share the evaluations of G among the processes that ``torchrun`` has started
            (False). All of them make the same call, with G on a device of their own, and all get
            its result. The first one samples, calls ``on_temperature``, and reads and writes the
            checkpoint.

    Raises:
        TypeError, ValueError: bad input, naming the argument. Whether the machine has the device
            and the backend is checked where they are used.
    """

    device: torch.device | str | None = None
    backend: str = "auto"
    gradient_dtype: Literal["float32", "tf32", "bfloat16", "float16"] | None = None
    energy_dtype: Literal["float32", "float64"] | None = None
    compile: bool = False
    cuda_graphs: bool = True
    max_batch: int | None = None
    time_limit: float | None = None
    processes: bool = False

    def __post_init__(self) -> None:
        for name in ("compile", "cuda_graphs", "processes"):
            check_flag(name, getattr(self, name))
        if self.max_batch is not None:
            object.__setattr__(self, "max_batch", check_count("max_batch", self.max_batch))
        if self.time_limit is not None:
            limit = check_number("time_limit", self.time_limit, above=0.0)
            object.__setattr__(self, "time_limit", limit)
        Precision(self.gradient_dtype, self.energy_dtype)

    @property
    def precision(self) -> Precision:
        """The float types of energies and gradients."""
        return Precision(self.gradient_dtype, self.energy_dtype)

    def settings(self) -> dict[str, Any]:
        """The settings that do not depend on the machine, as plain values, for the result."""
        own = {"compile": self.compile, "cuda_graphs": self.cuda_graphs}
        return self.precision.settings() | own


DEFAULT = Compute()


def as_compute(compute: Any) -> Compute:
    """``compute`` itself; raises TypeError where it is not a `Compute`."""
    if not isinstance(compute, Compute):
        raise TypeError(f"compute: expected a Compute, got {shown(compute)}")
    return compute


def gathered(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` by name, where those that a `Compute` has are put into one, ``compute``."""
    rest = dict(options)
    machine = taken(rest, names_of(Compute))
    return rest | ({"compute": Compute(**machine)} if machine else {})

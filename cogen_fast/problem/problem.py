"""A checked problem, ready to sample: a generator, an observation, and the potential of both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cogen_fast.ops import dispatch
from cogen_fast.ops.dense import DenseLayers, DenseProblem, dense_layers, forward, hooked, unfit
from cogen_fast.problem import devices
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.problem.compiled import try_compiling
from cogen_fast.problem.compute import DEFAULT, Compute, as_compute
from cogen_fast.problem.cuda_graphs import recorder
from cogen_fast.problem.density import (
    GeneratorPotential,
    LatentMap,
    Potential,
    SplitPotential,
    finer,
)
from cogen_fast.problem.graphs import Graphs
from cogen_fast.problem.observation import Mask, Observation, UserMisfit, as_operator, observe
from cogen_fast.problem.precision import Precision, described, full_precision, split
from cogen_fast.problem.prior import Prior
from cogen_fast.problem.processes import Alone, Several, Team
from cogen_fast.problem.traced import try_tracing
from cogen_fast.support.arguments import shown
from cogen_fast.support.digests import tensor_bytes
from cogen_fast.support.memory import is_out_of_memory
from cogen_fast.support.warnings import warn_user

_FAST = (
    "generator: its own fast path computes images and their gradients with respect to the latents"
)
_NO_FAST = "generator: its own fast path cannot be used here"
_NO_WHOLE_RUNS = "dense layers with another method"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Problem:
    """What every method needs; valid inside `prepared` only, while G's weights are frozen.

    ``potential`` is computed in G's own type; ``split`` is what moves follow where ``precision``
    asks for other types, else None. ``compiled`` says whether G was compiled. ``graphs`` is None
    where moves are not replayed. ``dense`` is None where whole runs are not made in C++. ``notes``
    are for the result, and say whether the generator's own fast path is used. ``backend`` is
    "fused" where ``dense`` is set or the fast path is used, except for a fast path on CUDA, which
    works beside any ops. ``team`` are the processes that share the run.
    """

    adapter: GeneratorAdapter
    observation: Observation
    potential: GeneratorPotential
    backend: str
    dense: DenseProblem | None = None
    notes: tuple[str, ...] = ()
    precision: Precision = field(default_factory=Precision)
    split: SplitPotential | None = None
    compiled: bool = False
    graphs: Graphs | None = None
    team: Team = field(default_factory=Alone)

    @property
    def target(self) -> Potential:
        """The potential that the sampler's moves follow."""
        return self.potential if self.split is None else self.split

    @property
    def potentials(self) -> list[GeneratorPotential]:
        """All potentials that call the generator."""
        split = [] if self.split is None else [self.split.energies, self.split.field]
        return [self.potential, *(each for each in split if each is not self.potential)]

    @property
    def halvings(self) -> tuple[int, int | None]:
        """How often memory ran out, and the present limit of latents per call, None without one."""
        used = self.potentials
        most = [each.max_batch for each in used if each.max_batch is not None]
        return sum(each.halvings for each in used), min(most, default=None)

    def how(self) -> dict[str, Any]:
        """The arguments of `hmc.init` that follow from the generator."""
        return {
            "latent_size": self.adapter.latent_size,
            "device": self.adapter.device,
            "dtype": self.adapter.dtype,
            "backend": self.backend,
        }

    def probes(self) -> dict[str, Tensor]:
        """Values of generator, operator and misfit at fixed latents, which identify them."""
        outputs, latents = self.adapter.probe_output, self.adapter.probe_latents
        return {
            "generator": outputs,
            "operator": self.observation.operator.apply(outputs),
            "misfit": self.potential.energy(latents.expand(self.observation.count, -1, -1)),
        }

    def identity(self) -> dict[str, str]:
        """What identifies generator, data and how they are computed, as far as texts can."""
        spec = self.observation.spec
        digest = hashlib.sha256(repr((spec.kind, spec.output_shape, spec.factor)).encode())
        bounds = self.observation.noise_bounds or ()
        for tensor in (spec.target, spec.mask, spec.weight, *bounds):
            digest.update(b"-" if tensor is None else tensor_bytes(tensor))
        return {k: str(v) for k, v in self.precision.settings().items()} | {
            "generator": self.adapter.fingerprint(),
            "observation": digest.hexdigest(),
            "operator": repr(self.observation.operator),
            "misfit": self.observation.noise,
            "backend": self.backend,
            "compiled": str(self.compiled),
        }

    def led(self, arguments: Mapping[str, Any], work: Callable[[], _T]) -> _T:
        """``work()``; by the first of several processes, whose value all of them get.

        ``arguments`` are those in which the processes have to agree, besides generator and data.
        """
        if isinstance(self.team, Alone):
            return work()
        form = {"form of G": type(self.potential.generator).__name__}
        texts = {name: str(value) for name, value in arguments.items()}
        probes = self.probes()
        squares = probes["generator"].double().square().flatten(1).mean(1)
        values = torch.cat([squares, probes["misfit"].flatten()]).nan_to_num().cpu()
        like = self.adapter.probe_latents
        return self.team.led(self.identity() | form | texts, values, self.potentials, like, work)


@contextmanager
def prepared(
    generator: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    noise_std: Any = None,
    weight: Any = None,
    misfit: UserMisfit | str | None = None,
    latent_shape: Any = None,
    compute: Compute = DEFAULT,
    whole_runs: bool = False,
    infers_noise: bool = False,
    records: bool = False,
    timed: bool = False,
    team: Team | None = None,
) -> Iterator[Problem]:
    """Check generator and data and bind them; when the context ends, G is as it was before.

    ``whole_runs`` says that the method can make whole runs in C++ (``Problem.dense``),
    ``infers_noise`` that it takes observations whose noise is unknown, ``records`` that its moves
    may be recorded and replayed, and ``timed`` that it can end after a time limit. ``team`` are the
    processes of a method that runs inside `Problem.led`. Inside, autograd is off except where a
    potential turns it on, and float32 is float32 (no TF32) on CUDA. Raises TypeError or ValueError
    naming the argument at fault.
    """
    operator, most = as_operator(mask), as_compute(compute).max_batch
    if compute.time_limit is not None and not timed:
        raise ValueError(
            "time_limit: expected none, as only cogenerate ends after a time limit, got "
            f"{compute.time_limit:g}"
        )
    if compute.processes and team is None:
        raise ValueError(
            "processes: expected False, as this function runs in one process, got True"
        )
    with full_precision(), frozen(generator):
        adapter = GeneratorAdapter(generator, latent_shape, compute.device, most)
        ops = dispatch.resolve(compute.backend, adapter.device)
        observation = observe(
            operator,
            x_obs,
            adapter.probe_output,
            noise_std=noise_std,
            weight=weight,
            misfit=misfit,
        )
        if isinstance(generator, Prior):
            generator.check_count(observation.count)
        if observation.noise_bounds is not None and not infers_noise:
            raise ValueError(
                "noise_std: expected a number, as only cogenerate with method='adaptive' infers "
                f"it, got {shown(noise_std)}"
            )
        potential = GeneratorPotential(adapter, observation, ops, most)
        problem = _fused(
            compute.backend,
            Problem(adapter, observation, potential, ops.name, precision=compute.precision),
            whole_runs,
        )
        if compute.compile:
            problem = _compiled(problem)
        elif compute.backend == "auto":
            problem = _traced(problem)
        # Several processes talk to each other in the middle of a move, which cannot be recorded.
        recorded = records and compute.cuda_graphs and not isinstance(team, Several)
        problem = _bounded(_with_split(problem), recorded)
        if isinstance(generator, Prior):
            problem = replace(problem, notes=(*generator.describe(), *problem.notes))
        problem = replace(problem, notes=(*devices.described(adapter.home), *problem.notes))
        if isinstance(team, Several):
            yield replace(problem, team=team, notes=(*problem.notes, team.note(problem.dense)))
        else:
            yield _with_graphs(problem) if recorded else problem


def _compiled(problem: Problem) -> Problem:
    """``problem`` with the generator compiled, where the generator itself is called."""
    if problem.dense is not None or problem.potential.generator is not problem.adapter:
        note = "compile: not used, because this generator has a faster path of its own"
        return replace(problem, notes=(*problem.notes, note))
    adapter, note = try_compiling(problem.adapter)
    problem = replace(problem, notes=(*problem.notes, note))
    if adapter is None:
        warn_user(note)
        return problem
    potential = problem.potential.of(adapter, problem.observation)
    return replace(problem, potential=potential, compiled=True)


def _traced(problem: Problem) -> Problem:
    """``problem`` with the convolutions of a user's module on a faster path, where there is one."""
    adapter = problem.adapter
    if problem.dense is not None or problem.potential.generator is not adapter:
        return problem
    if not problem.precision.is_own(adapter.input_dtype) or hasattr(adapter.generator, "fast_path"):
        return problem
    traced, note = try_tracing(adapter)
    if note is not None:
        problem = replace(problem, notes=(*problem.notes, note))
    if traced is None:
        return problem
    return replace(problem, potential=problem.potential.of(traced, problem.observation))


def _with_split(problem: Problem) -> Problem:
    """``problem`` with energies and gradients of the types that are asked for."""
    half = partial(_half_fast_path, problem)
    target = split(problem.adapter, problem.potential, problem.precision, half)
    notes = (*problem.notes, *described(target, problem.precision))
    return replace(problem, split=target, notes=notes)


def _bounded(problem: Problem, recorded: bool) -> Problem:
    """``problem`` with calls to the generator that fit into memory, where it can be measured.

    Recordings keep the memory of a call, beside which other calls go on.
    """
    if problem.dense is not None:
        return problem
    latent, times = problem.adapter.probe_latents[0], 2 if recorded else 1
    found = [each.bound_by_memory(latent, times) for each in problem.potentials]
    most = min((each for each in found if each is not None), default=None)
    if most is None:
        return problem
    note = f"one call to G takes at most {most} latents, as many as fit into measured memory"
    return replace(problem, notes=(*problem.notes, note))


def _with_graphs(problem: Problem) -> Problem:
    """``problem`` with moves that are recorded and replayed, where the device supports it."""
    record = recorder(problem.adapter.device)
    if record is None or problem.dense is not None:
        return problem
    graphs = Graphs(record, lambda: tuple(each.max_batch for each in problem.potentials))
    for potential in (problem.target, finer(problem.target)):
        if isinstance(potential, GeneratorPotential | SplitPotential):
            potential.graphs = graphs
    return replace(problem, graphs=graphs)


def _fused(backend: str, problem: Problem, whole_runs: bool) -> Problem:
    """``problem`` with the generator's fast path, or with runs in C++, if ``backend`` permits."""
    adapter, observation = problem.adapter, problem.observation
    if backend not in ("auto", "fused"):
        return problem
    if adapter.home != adapter.device:
        if backend == "fused":
            raise ValueError(f"backend: fused serves cpu and cuda, got G on {adapter.home}")
        return problem
    fast, notes = _fast_path(adapter)
    if fast is not None:
        potential = problem.potential.of(fast, observation)
        name = "fused" if adapter.device.type == "cpu" else problem.backend
        return replace(problem, potential=potential, backend=name, notes=notes)
    problem = replace(problem, notes=notes)
    if not dispatch.fuses(adapter.device):
        return problem
    layers = dense_layers(adapter.generator)
    obstacle = _obstacle(layers, problem) or (None if whole_runs else _NO_WHOLE_RUNS)
    if layers is not None and obstacle is None:
        return replace(problem, backend="fused", dense=DenseProblem.of(layers, observation.spec))
    if backend == "fused":
        device = adapter.device.type
        raise ValueError(
            "backend: fused serves progressive generators and, with method='paper', those of dense "
            f"layers only, got {notes[0] if notes else obstacle}; available for {device}: "
            f"{', '.join(dispatch.available(device))}"
        )
    return problem


def _fast_path(adapter: GeneratorAdapter) -> tuple[LatentMap | None, tuple[str, ...]]:
    """The generator's own ``fast_path()`` for images and gradients in z, and a note.

    A fast path takes rows ``(n, d)`` in the generator's type. The result is None where none is
    offered, where it would skip hooks, where it gives other outputs than the generator (such as a
    subclass), or where it cannot be made on this machine.
    """
    generator = adapter.generator
    offered = getattr(generator, "fast_path", None)
    if not isinstance(generator, nn.Module) or not callable(offered) or hooked(generator):
        return None, ()
    if adapter.input_dtype != adapter.dtype:
        return None, ()
    try:
        fast: LatentMap = offered()
        agrees = adapter.agrees(fast(adapter.probe_latents))
    except Exception as error:  # without the extension or Triton, or where that cannot compile
        if is_out_of_memory(error):
            raise
        return None, (f"{_NO_FAST}: {error!s:.200}",)
    return (fast, (_FAST,)) if agrees else (None, ())


def _half_fast_path(problem: Problem, dtype: torch.dtype) -> LatentMap | None:
    """The fast path with activations of a half-precision type, where it is used on a GPU."""
    slow = isinstance(problem.potential.generator, GeneratorAdapter)
    if slow or problem.adapter.device.type != "cuda":
        return None
    offered: Callable[..., LatentMap] = problem.adapter.generator.fast_path  # type: ignore[attr-defined]
    return offered(dtype)


def _obstacle(layers: DenseLayers | None, problem: Problem) -> str | None:
    """The reason why a run cannot be made in C++, None where it can."""
    adapter, observation = problem.adapter, problem.observation
    if not problem.precision.is_own(adapter.input_dtype):
        return "gradients or energies of another type than the generator's"
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

"""The annealed density ``p_beta(z)``: energies and their gradients with respect to the latents.

The sampler takes any `Potential`. This module has three: the potential of a generator and an
observation, that of a plain function ``energy(z)``, and one that takes its gradients from a cheaper
potential.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.spec import MisfitSpec
from cogen_fast.problem.graphs import Graphs
from cogen_fast.problem.observation import Observation
from cogen_fast.support.memory import (
    give_back_unused,
    is_capturing,
    is_out_of_memory,
    rows_that_fit,
)

Form = Literal["posterior", "paper"]
FORMS: tuple[str, ...] = get_args(Form)
What = Literal["energy_and_grad", "energy", "outputs"]
"""What a potential computes of rows of latents."""
Spread = Callable[["GeneratorPotential", What, Tensor], tuple[Tensor, ...]]
_T = TypeVar("_T")
_Fused = Callable[[Tensor, MisfitSpec, Tensor], tuple[Tensor, Tensor]]


def prior_weight(form: Form, beta: Tensor) -> Tensor:
    """The factor of ``|z|^2 / 2`` in the annealed density: 1, or ``1 - beta`` (paper form)."""
    return torch.ones_like(beta) if form == "posterior" else 1.0 - beta


class Potential(Protocol):
    """A batched misfit energy over latents, without the Gaussian prior.

    Gradients need not be those of the energy: any field that is a function of each chain's latent
    alone leaves the target exact. A potential may have further attributes:

    - ``energy(latents)``: energies without gradients;
    - ``grad_alone(latents)``: gradients without energies;
    - ``forwards``: the forward passes that an energy costs apart from the gradient (0);
    - ``finer``: the potential to fall back to where the gradients are too coarse (None);
    - ``graphs``: the recordings that replay the moves which follow this potential (None).
    """

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B, N)`` float64 and gradients ``(B, N, d)`` of latents ``(B, N, d)``."""
        ...


def gradients(potential: Potential, latents: Tensor) -> Tensor:
    """Gradients ``(B, N, d)``, without energies where the potential can compute them alone."""
    alone: Callable[[Tensor], Tensor] | None = getattr(potential, "grad_alone", None)
    return potential.energy_and_grad(latents)[1] if alone is None else alone(latents)


def energies(potential: Potential, latents: Tensor) -> Tensor:
    """Energies ``(B, N)``, without gradients where the potential can compute them alone."""
    alone: Callable[[Tensor], Tensor] | None = getattr(potential, "energy", None)
    return potential.energy_and_grad(latents)[0] if alone is None else alone(latents)


def forwards(potential: Potential) -> int:
    """The forward passes that an energy costs apart from the gradient."""
    return getattr(potential, "forwards", 0)


def finer(potential: Potential) -> Potential | None:
    """The potential to fall back to where gradients are too coarse; None where there is none."""
    return getattr(potential, "finer", None)


def replayed(
    potential: Potential, key: tuple[Hashable, ...], function: Callable[..., _T], *args: Any
) -> _T:
    """``function(*args)``, which follows ``potential``, replayed by its `Graphs` if it has any."""
    graphs: Graphs | None = getattr(potential, "graphs", None)
    return function(*args) if graphs is None else graphs((potential, *key), function, *args)


class LatentMap(Protocol):
    """A generator on rows of latents: ``(n, d)`` to outputs ``(n, ...)``.

    A generator that fuses its last layer with the misfit also has ``energy_and_grad(latents, spec,
    index)``, which gives energies ``(n,)`` float64 and gradients ``(n, d)``; row k belongs to row
    ``index[k]`` of the `MisfitSpec`. One whose observations have conditions of their own
    (``per_observation``) is given ``index`` ``(n,)``, the observation of each row, as well.
    """

    def __call__(self, latents: Tensor, /) -> Tensor: ...


class EnergyPotential:
    """A potential from any differentiable ``energy(z)``, ``(n, d)`` to ``(n,)``.

    Rows are ordered by observation, then by chain. Raises TypeError or ValueError where ``energy``
    is not callable or does not give n real numbers.
    """

    def __init__(self, energy: Callable[[Tensor], Tensor]) -> None:
        if not callable(energy):
            raise TypeError(f"energy: expected a callable, got {type(energy).__name__}")
        self._of_rows = energy

    def energy(self, latents: Tensor) -> Tensor:
        """Energies ``(B, N)`` float64 without gradients."""
        with torch.no_grad():
            energy = self._of_rows(latents.detach().flatten(0, 1))
        check_energies("energy", energy, latents.shape[0] * latents.shape[1])
        return energy.double().reshape(latents.shape[:2])

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B, N)`` float64 and gradients ``(B, N, d)`` of latents ``(B, N, d)``."""
        with torch.enable_grad():
            rows = latents.detach().flatten(0, 1).requires_grad_()
            energy = self._of_rows(rows)
            check_energies("energy", energy, rows.shape[0])
            (grad,) = torch.autograd.grad(energy.sum(), rows)
        shape = latents.shape
        return energy.detach().double().reshape(shape[:2]), grad.reshape(shape)


def check_energies(name: str, energy: object, count: int) -> None:
    """Raise TypeError or ValueError unless a user's function gave ``count`` real numbers."""
    if not isinstance(energy, Tensor) or not energy.is_floating_point():
        raise TypeError(f"{name}: must return a float tensor, got {type(energy).__name__}")
    if tuple(energy.shape) != (count,):
        raise ValueError(
            f"{name}: must return shape ({count},), one value per row, got {tuple(energy.shape)}"
        )


class GeneratorPotential:
    """Misfit energy ``E(z)`` of B observations through a generator.

    Latents may have S B rows, which are S neighbouring islands of each observation. ``max_batch``
    bounds the rows of one call to the generator (None: all at once). When memory runs out, it is
    permanently reduced to half of the call's rows, and the call is repeated; ``halvings`` counts
    how often. ``spread`` shares the rows among processes (None: this one computes all of them).
    """

    def __init__(
        self,
        generator: LatentMap,
        observation: Observation,
        ops: Ops,
        max_batch: int | None = None,
    ) -> None:
        self.generator = generator
        self.observation = observation
        self.ops = ops
        self.max_batch = max_batch
        self.halvings = 0
        self.graphs: Graphs | None = None
        self.spread: Spread | None = None
        self._indices: dict[int, Tensor] = {}

    def of(self, generator: LatentMap, observation: Observation) -> GeneratorPotential:
        """The potential of another generator or observation, with the same ops and limit."""
        return GeneratorPotential(generator, observation, self.ops, self.max_batch)

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B, N)`` float64 and gradients ``(B, N, d)`` of latents ``(B, N, d)``."""
        energy, grad = self._computed("energy_and_grad", latents)
        return energy.reshape(latents.shape[:2]), grad.reshape(latents.shape)

    def energy(self, latents: Tensor) -> Tensor:
        """Energies ``(B, N)`` float64 without gradients, at a cost of one forward pass."""
        (energy,) = self._computed("energy", latents)
        return energy.reshape(latents.shape[:2])

    def outputs(self, latents: Tensor) -> Tensor:
        """Outputs ``(B, N, ...)`` of latents ``(B, N, d)``."""
        (x,) = self._computed("outputs", latents)
        return x.reshape(*latents.shape[:2], *x.shape[1:])

    def _computed(self, what: What, latents: Tensor) -> tuple[Tensor, ...]:
        rows = latents.detach().flatten(0, 1)
        if self.spread is not None:
            return self.spread(self, what, rows)
        return self.of_rows(what, rows, 0, len(rows))

    def of_rows(self, what: What, rows: Tensor, start: int, total: int) -> tuple[Tensor, ...]:
        """What is asked of rows ``(n, d)``, which are those from ``start`` on of ``total``."""
        work: dict[What, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
            "energy_and_grad": self._rows_energy_and_grad,
            "energy": lambda rows, index: (self._rows_energy(rows, index),),
            "outputs": lambda rows, index: (self._rows_outputs(rows, index),),
        }
        index = self._observation_index(total, rows.device)[start : start + len(rows)]
        with torch.no_grad():
            pieces = self._in_chunks(rows, index, work[what])
        if len(pieces) == 1 and what == "energy_and_grad":
            return pieces[0]
        return tuple(torch.cat(each) for each in zip(*pieces, strict=True))

    def _in_chunks(
        self, rows: Tensor, index: Tensor, work: Callable[[Tensor, Tensor], _T]
    ) -> list[_T]:
        pieces: list[_T] = []
        start = 0
        while start < len(rows):
            stop = len(rows) if self.max_batch is None else start + self.max_batch
            try:
                pieces.append(work(rows[start:stop], index[start:stop]))
            except RuntimeError as error:
                self._halve_or_raise(error, min(stop, len(rows)) - start)
                continue
            start = stop
        return pieces

    def _observation_index(self, rows: int, device: torch.device) -> Tensor:
        """The observation of each row; cached, because every gradient and recording needs it."""
        if rows not in self._indices:
            count = self.observation.count
            each = torch.arange(count, device=device).repeat_interleave(rows // count)
            self._indices[rows] = each
        return self._indices[rows]

    def _halve_or_raise(self, error: RuntimeError, rows: int) -> None:
        if not is_out_of_memory(error) or rows < 2:
            raise error
        self.max_batch = rows // 2
        self.halvings += 1
        if is_capturing():
            raise error
        give_back_unused()

    def bound_by_memory(self, latent: Tensor, times: int = 1) -> int | None:
        """Set ``max_batch``, unless it is set, to the rows whose gradients fit into memory.

        This is measured with copies of ``latent`` ``(d,)``; the gradients must fit ``times`` times.
        Returns the limit; None where it was set before, or where memory cannot be measured.
        """
        if self.max_batch is not None:
            return None

        def work(rows: int) -> None:
            index = torch.zeros(rows, dtype=torch.int64, device=latent.device)
            self._rows_energy_and_grad(latent.expand(rows, -1).contiguous(), index)

        self.max_batch = rows_that_fit(work, latent.device, times)
        return self.max_batch

    def _rows_outputs(self, rows: Tensor, index: Tensor) -> Tensor:
        """Outputs ``(n, ...)`` of rows ``(n, d)``, given the observation of each."""
        outputs: Callable[..., Tensor] = self.generator
        wants_index = getattr(self.generator, "per_observation", False)
        return outputs(rows, index) if wants_index else outputs(rows)

    def _rows_energy_and_grad(self, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        fused: _Fused | None = getattr(self.generator, "energy_and_grad", None)
        if fused is not None and self._squares_outputs:
            return fused(rows, self.observation.spec, index)
        with torch.enable_grad():
            z = rows.detach().requires_grad_()
            y = self._read(self._rows_outputs(z, index))
            if not y.requires_grad:
                raise ValueError("mask: the operator is not differentiable by torch")
            if self.observation.user_misfit is not None:
                energy = self._user_energy(y, index)
                if not energy.requires_grad:
                    raise ValueError("misfit: its value is not differentiable by torch")
                (grad,) = torch.autograd.grad(energy.sum(), z)
                return energy.detach().double(), grad
            energy, y_grad = self.ops.misfit(y.detach(), self.observation.spec, index)
            (grad,) = torch.autograd.grad(y, z, y_grad)
        return energy, grad

    @property
    def _squares_outputs(self) -> bool:
        """Whether the misfit is that of ``spec`` and reads the generator's outputs themselves."""
        return self.observation.operator.reads_output and self.observation.user_misfit is None

    def _rows_energy(self, rows: Tensor, index: Tensor) -> Tensor:
        y = self._read(self._rows_outputs(rows, index))
        if self.observation.user_misfit is not None:
            return self._user_energy(y, index).double()
        return self.ops.misfit(y, self.observation.spec, index)[0]

    def _read(self, outputs: Tensor) -> Tensor:
        """The argument of the misfit: the op measures outputs itself, a user's misfit does not."""
        operator = self.observation.operator
        if self.observation.user_misfit is None or not operator.reads_output:
            return operator.apply(outputs)
        return operator.measure(outputs)

    def _user_energy(self, y: Tensor, index: Tensor) -> Tensor:
        assert self.observation.user_misfit is not None
        observed = self.observation.observed
        if observed is not None:
            y = torch.where(observed[index], y, 0.0)
        if self.observation.bound_misfit is not None:
            energy = self.observation.bound_misfit(y, index)
        else:
            energy = self.observation.user_misfit(y, self.observation.measured_values[index])
        check_energies("misfit", energy, y.shape[0])
        weight = self.observation.spec.weight.reshape(-1).expand(self.observation.count)
        return weight[index] * energy


class SplitPotential:
    """Energies from one potential, gradients from another one of reduced precision.

    For any gradient field that is a deterministic function of the latent, leapfrog is reversible
    and preserves volume, so that the target is exactly that of ``energies``; a coarse ``field``
    only lowers the acceptance. ``scale`` ``(B,)`` holds the powers of 2 by which the energies of
    ``field`` are multiplied (None: 1). An energy costs a forward pass of its own. ``finer`` is the
    potential to fall back to.
    """

    forwards = 1

    def __init__(
        self,
        energies: GeneratorPotential,
        field: GeneratorPotential,
        scale: Tensor | None = None,
        finer: Potential | None = None,
    ) -> None:
        self.energies, self.field, self.scale, self.finer = energies, field, scale, finer
        self.graphs: Graphs | None = None

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B, N)`` float64 and gradients ``(B, N, d)`` of latents ``(B, N, d)``."""
        return self.energies.energy(latents), self.grad_alone(latents)

    def energy(self, latents: Tensor) -> Tensor:
        """Energies ``(B, N)`` float64 without gradients."""
        return self.energies.energy(latents)

    def grad_alone(self, latents: Tensor) -> Tensor:
        """Gradients ``(B, N, d)`` without energies."""
        _, grad = self.field.energy_and_grad(latents)
        if self.scale is None:
            return grad
        each = self.scale.repeat_interleave(len(latents) // len(self.scale))
        return grad / each[:, None, None].to(grad.dtype)

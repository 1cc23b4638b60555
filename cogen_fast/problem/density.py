"""The annealed density ``p_beta(z)``: energies and their gradients with respect to the latent.

The sampler takes any `Potential`. Three are here: one of a generator and an observation, one of a
plain function ``energy(z)``, and one whose gradients are a cheaper potential's.
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
from cogen_fast.support.memory import is_capturing, is_out_of_memory, rows_that_fit

Form = Literal["posterior", "paper"]
FORMS: tuple[str, ...] = get_args(Form)
_T = TypeVar("_T")
_Fused = Callable[[Tensor, MisfitSpec, Tensor], tuple[Tensor, Tensor]]


def prior_weight(form: Form, beta: Tensor) -> Tensor:
    """Factor of ``|z|^2 / 2`` at inverse temperature ``beta``: 1, or ``1 - beta`` (paper form)."""
    return torch.ones_like(beta) if form == "posterior" else 1.0 - beta


class Potential(Protocol):
    """A batched misfit energy over latents, apart from the Gaussian prior.

    Gradients need not be the energy's own: any field that is a function of each chain's latent
    alone leaves the target exact. One may have ``energy(latents)``, without gradients. One whose
    energies cost something beside the gradients has more: ``grad_alone(latents)``, without
    energies; ``forwards``, how many forwards an energy costs; and ``finer``, the potential to fall
    back to where its gradients are too coarse, or None. One that can be recorded has ``graphs``,
    which then replays the moves that follow it.
    """

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B, N)`` float64 and gradients ``(B, N, d)`` of latents ``(B, N, d)``."""
        ...


def gradients(potential: Potential, latents: Tensor) -> Tensor:
    """Gradients ``(B, N, d)`` where no energy is asked for."""
    alone: Callable[[Tensor], Tensor] | None = getattr(potential, "grad_alone", None)
    return potential.energy_and_grad(latents)[1] if alone is None else alone(latents)


def energies(potential: Potential, latents: Tensor) -> Tensor:
    """Energies ``(B, N)`` where no gradient is asked for."""
    alone: Callable[[Tensor], Tensor] | None = getattr(potential, "energy", None)
    return potential.energy_and_grad(latents)[0] if alone is None else alone(latents)


def forwards(potential: Potential) -> int:
    """Forwards that an energy costs beside the gradient."""
    return getattr(potential, "forwards", 0)


def finer(potential: Potential) -> Potential | None:
    """What to fall back to where gradients are too coarse; None for a potential that is exact."""
    return getattr(potential, "finer", None)


def replayed(
    potential: Potential, key: tuple[Hashable, ...], function: Callable[..., _T], *args: Any
) -> _T:
    """``function(*args)``, which follows ``potential``: by its `Graphs`, where it has any."""
    graphs: Graphs | None = getattr(potential, "graphs", None)
    return function(*args) if graphs is None else graphs((potential, *key), function, *args)


class LatentMap(Protocol):
    """A generator on rows of latents: ``(n, d)`` to outputs ``(n, ...)``.

    One that fuses its last layer with the misfit has ``energy_and_grad(latents, spec, index)`` too:
    energies ``(n,)`` float64 and gradients ``(n, d)``, where row k belongs to row ``index[k]`` of
    the `MisfitSpec`.
    """

    def __call__(self, latents: Tensor, /) -> Tensor: ...


class EnergyPotential:
    """A potential from any differentiable ``energy(z)``, ``(n, d)`` to ``(n,)``.

    Rows are ordered by observation, then chain. Raises TypeError or ValueError where ``energy``
    gives something else than n real numbers.
    """

    def __init__(self, energy: Callable[[Tensor], Tensor]) -> None:
        if not callable(energy):
            raise TypeError(f"energy: expected a callable, got {type(energy).__name__}")
        self._of_rows = energy

    def energy(self, latents: Tensor) -> Tensor:
        """Energies ``(B, N)`` float64 alone."""
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
    """Raise unless a user's function gave ``count`` real numbers."""
    if not isinstance(energy, Tensor) or not energy.is_floating_point():
        raise TypeError(f"{name}: must return a float tensor, got {type(energy).__name__}")
    if tuple(energy.shape) != (count,):
        raise ValueError(
            f"{name}: must return shape ({count},), one value per row, got {tuple(energy.shape)}"
        )


class GeneratorPotential:
    """Misfit energy ``E(z)`` of B observations through a generator.

    Latents of S B rows (`energy_and_grad`) are S neighbouring islands of each observation.
    ``max_batch`` bounds the rows of one call to the generator (None: all at once). On out-of-memory
    it is halved, for good, and the call repeated; the halvings are counted in ``halvings``.
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
        self._indices: dict[int, Tensor] = {}

    def of(self, generator: LatentMap, observation: Observation) -> GeneratorPotential:
        """The same of another generator or observation."""
        return GeneratorPotential(generator, observation, self.ops, self.max_batch)

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B, N)`` float64 and gradients ``(B, N, d)`` of latents ``(B, N, d)``."""
        pieces = self._in_chunks(latents, self._rows_energy_and_grad)
        shape = latents.shape
        energy = torch.cat([e for e, _ in pieces]) if len(pieces) > 1 else pieces[0][0]
        grad = torch.cat([g for _, g in pieces]) if len(pieces) > 1 else pieces[0][1]
        return energy.reshape(shape[:2]), grad.reshape(shape)

    def energy(self, latents: Tensor) -> Tensor:
        """Energies ``(B, N)`` float64 alone: one forward, no gradient."""
        with torch.no_grad():
            pieces = self._in_chunks(latents, self._rows_energy)
        return torch.cat(pieces).reshape(latents.shape[:2])

    def outputs(self, latents: Tensor) -> Tensor:
        """Outputs ``(B, N, ...)`` of latents ``(B, N, d)``."""
        with torch.no_grad():
            pieces = self._in_chunks(latents, lambda rows, _: self.generator(rows))
        x = torch.cat(pieces)
        return x.reshape(*latents.shape[:2], *x.shape[1:])

    def _in_chunks(self, latents: Tensor, work: Callable[[Tensor, Tensor], _T]) -> list[_T]:
        rows = latents.detach().flatten(0, 1)
        batch, chains = latents.shape[:2]
        index = self._observation_index(batch, chains, rows.device)
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

    def _observation_index(self, batch: int, chains: int, device: torch.device) -> Tensor:
        """Which observation each row belongs to; kept, as every gradient and recording needs it."""
        rows = batch * chains
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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def bound_by_memory(self, latent: Tensor) -> int | None:
        """Bound ``max_batch``, unless it is, by what gradients of a ``latent`` ``(d,)`` need.

        Returns the bound; None where there is none, or memory cannot be measured.
        """
        if self.max_batch is not None:
            return None

        def work(rows: int) -> None:
            index = torch.zeros(rows, dtype=torch.int64, device=latent.device)
            self._rows_energy_and_grad(latent.expand(rows, -1).contiguous(), index)

        self.max_batch = rows_that_fit(work, latent.device)
        return self.max_batch

    def _rows_energy_and_grad(self, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        fused: _Fused | None = getattr(self.generator, "energy_and_grad", None)
        if fused is not None and self._squares_outputs:
            return fused(rows, self.observation.spec, index)
        with torch.enable_grad():
            z = rows.detach().requires_grad_()
            y = self._read(self.generator(z))
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
        """Whether the misfit is that of ``spec``, of the generator's outputs themselves."""
        return self.observation.operator.reads_output and self.observation.user_misfit is None

    def _rows_energy(self, rows: Tensor, index: Tensor) -> Tensor:
        y = self._read(self.generator(rows))
        if self.observation.user_misfit is not None:
            return self._user_energy(y, index).double()
        return self.ops.misfit(y, self.observation.spec, index)[0]

    def _read(self, outputs: Tensor) -> Tensor:
        """What the misfit is given: the op measures by itself, one of the user's does not."""
        operator = self.observation.operator
        if self.observation.user_misfit is None:
            return operator.apply(outputs)
        return operator.measure(outputs)

    def _user_energy(self, y: Tensor, index: Tensor) -> Tensor:
        assert self.observation.user_misfit is not None
        observed = self.observation.observed
        if observed is not None:
            y = torch.where(observed[index], y, 0.0)
        energy = self.observation.user_misfit(y, self.observation.measured_values[index])
        check_energies("misfit", energy, y.shape[0])
        weight = self.observation.spec.weight.reshape(-1).expand(self.observation.count)
        return weight[index] * energy


class SplitPotential:
    """Energies by one potential, gradients by another one of reduced precision.

    Leapfrog is reversible and keeps volume for any gradient field that is a deterministic function
    of the latent, so the target is that of ``energies``, exactly; what a coarse field costs is
    acceptance. ``scale`` ``(B,)`` is what the energies of ``field`` are multiplied by, powers of 2.
    An energy costs a forward of its own.
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
        """Energies ``(B, N)`` float64 alone."""
        return self.energies.energy(latents)

    def grad_alone(self, latents: Tensor) -> Tensor:
        """Gradients ``(B, N, d)`` alone."""
        _, grad = self.field.energy_and_grad(latents)
        if self.scale is None:
            return grad
        each = self.scale.repeat_interleave(len(latents) // len(self.scale))
        return grad / each[:, None, None].to(grad.dtype)

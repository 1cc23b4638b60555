"""So many latents that no d x d matrix is made: sketches, reflections, and whole runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from annealed import F64, normal, rotation
from confined import confined, needs_linux
from torch import Tensor, nn

from cogen_fast import Adaptive, Checkpoint, cogenerate
from cogen_fast.methods import checkpoint
from cogen_fast.methods.settings import keywords
from cogen_fast.sampler import bases, curvature, islands, sketches, smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.curvature import MAX_DIRECTIONS
from cogen_fast.sampler.sketches import RANK, Sketch

pytestmark = pytest.mark.usefixtures("one_thread")

MANY = bases.WHOLE + 1


# --- sketches -------------------------------------------------------------------------------------


def grown(columns: Tensor, every: int, kept: float = 1.0) -> Sketch:
    """A sketch of columns added ``every`` at a time; before, it is multiplied by ``kept``."""
    found = sketches.init(columns.mT)
    share = torch.full((len(columns),), kept, dtype=F64)
    for part in columns.split(every, -1):
        found = sketches.add(found, share, part)
    return found


def fading(columns: Tensor, every: int, kept: float) -> Tensor:
    """The same sum as a matrix, without dropping anything."""
    total = torch.zeros(len(columns), columns.shape[1], columns.shape[1], dtype=F64)
    for part in columns.split(every, -1):
        total = kept * total + part @ part.mT
    return total


def some_columns(rows: int, size: int, count: int) -> Tensor:
    """Columns in which a few directions stand out, by a factor of up to 100."""
    scales = torch.linspace(100.0, 1.0, 10, dtype=F64).sqrt()
    scales = torch.cat([scales, torch.ones(size, dtype=F64)])[:size]
    return normal(rows, size, count, seed=1) * scales[:, None]


@pytest.mark.parametrize(
    ("size", "count", "every"),
    [(3, 40, 8), pytest.param(300, 255, 8, marks=pytest.mark.slow), (300, 8, 1)],
)
def test_a_sketch_with_enough_columns_drops_nothing(size: int, count: int, every: int) -> None:
    columns = some_columns(2, size, count)
    found = grown(columns, every, kept=0.9)
    torch.testing.assert_close(found.factor @ found.factor.mT, fading(columns, every, 0.9))
    assert (found.tail < 1e-12 * found.factor.square().sum((1, 2))).all()
    gram = found.factor.mT @ found.factor
    largest = gram.diagonal(dim1=1, dim2=2).amax(-1)[:, None, None]
    assert ((gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs() < 1e-12 * largest).all()


@pytest.mark.slow
@pytest.mark.parametrize("every", [8, 700])
def test_a_sketch_is_wrong_by_no_more_than_the_tail_that_it_counts(every: int) -> None:
    # By Weyl's inequality an eigenvalue of a sum lies between that of one part and the same plus
    # the trace of the other part.
    columns = some_columns(2, 400, 700)
    found, exact = grown(columns, every, kept=0.99), fading(columns, every, 0.99)
    trace = exact.diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(found.factor.square().sum((1, 2)) + found.tail, trace)
    assert (found.tail > 0.01 * trace).all()
    values, _ = sketches.spectrum(found, MAX_DIRECTIONS)
    torch.testing.assert_close(values.sum(-1), trace)
    lost = torch.linalg.eigvalsh(exact).flip(-1)[:, :RANK] - values[:, :RANK]
    assert (lost > -1e-9 * trace[:, None]).all()
    assert (lost < found.tail[:, None]).all()


@pytest.mark.slow
def test_a_sketch_finds_the_directions_that_stand_out() -> None:
    columns = some_columns(1, 600, 1500)
    values, vectors = sketches.spectrum(grown(columns, 8, kept=0.995), MAX_DIRECTIONS)
    exact, whole = torch.linalg.eigh(fading(columns, 8, 0.995))
    along = (vectors[0, :, :5].mT @ whole[0].flip(-1)[:, :5]).diagonal()
    assert (along.abs() > 0.999).all()
    torch.testing.assert_close(values[0, :5], exact[0].flip(-1)[:5], rtol=1e-2, atol=0.0)
    torch.testing.assert_close(vectors[0].mT @ vectors[0], torch.eye(MAX_DIRECTIONS, dtype=F64))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_others_of_a_sketch_are_those_of_its_matrix(count: int) -> None:
    columns = some_columns(2 * count, 30, 20)
    found = sketches.mean_of_others(grown(columns, 20), count)
    expected = islands.mean_of_others(columns @ columns.mT, count)
    torch.testing.assert_close(found.factor @ found.factor.mT, expected)


@pytest.mark.slow
def test_the_others_of_a_sketch_count_what_each_has_dropped() -> None:
    columns = some_columns(3, 400, 300)
    each = grown(columns, 300)
    found = sketches.mean_of_others(each, 3)
    trace = found.factor.square().sum((1, 2)) + found.tail
    torch.testing.assert_close(trace, islands.mean_of_others(columns.square().sum((1, 2)), 3))
    assert (found.tail > islands.mean_of_others(each.tail, 3)).all()


# --- reflections ----------------------------------------------------------------------------------


def both_kinds(directions: Tensor, patch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The unit vectors rotated by the basis as a matrix, and by the basis as reflections."""
    unit = torch.eye(directions.shape[1], dtype=F64).expand(len(directions), -1, -1)
    found = []
    for limit in (directions.shape[1], directions.shape[1] - 1):
        patch.setattr(bases, "WHOLE", limit)
        basis = bases.from_directions(directions)
        assert (basis.whole is None) == (limit < directions.shape[1])
        found.append(basis.rotated(unit))
        torch.testing.assert_close(basis.rotated_back(found[-1]), unit)
    return found[0], found[1]


@pytest.mark.parametrize(("size", "count"), [(2, 1), (3, 3), (9, 4), (200, 128)])
def test_reflections_are_the_matrix(size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    directions = torch.stack([rotation(size, seed)[:, :count] for seed in (1, 2)])
    # In the second row the first direction is an axis already, for which there is nothing to
    # reflect.
    directions[1, :, 0] = torch.eye(size, dtype=F64)[0]
    directions[1, 0, 1:] = 0.0
    whole, reflected = both_kinds(directions, monkeypatch)
    torch.testing.assert_close(whole, reflected)


def test_without_directions_the_basis_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = normal(2, 5, 7, seed=1).float()
    for limit in (7, 6):
        monkeypatch.setattr(bases, "WHOLE", limit)
        basis = bases.identity(latents, 3)
        assert torch.equal(basis.rotated(latents), latents)
        assert torch.equal(basis.rotated_back(latents), latents)


# --- whole runs -----------------------------------------------------------------------------------


def measured(size: int, outputs: int) -> tuple[nn.Linear, Tensor]:
    """A linear generator, and data drawn from it with noise of 0.1."""
    torch.manual_seed(3)
    g = nn.Linear(size, outputs, bias=False).requires_grad_(False)
    g.weight *= 3.0
    x = g(torch.randn(1, size)) + 0.1 * torch.randn(1, outputs)
    return g, x


def test_a_run_with_sketches_equals_one_with_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounding differs, and its effect grows with every accept test, so that only some temperatures
    # are compared.
    g, x = measured(40, 12)
    weight = g.weight.double()

    def energy(z: Tensor) -> Tensor:
        return 50.0 * ((z @ weight.T - x[0].double()) ** 2).sum(-1)

    runs = []
    for limit in (40, 39):
        monkeypatch.setattr(bases, "WHOLE", limit)
        how: dict[str, Any] = {"latent_size": 40, "chains": 16, "seed": 1, "dtype": F64}
        state = smc.init(energy, **how)
        seen = []
        for _ in range(4):
            state, info = smc.step(state, energy, Annealing())
            seen.append((info.choice, state.hmc.energy))
        runs.append((seen, state))
    (whole, first), (sketched, second) = runs
    for (choice, energies), (other, others) in zip(whole, sketched, strict=True):
        torch.testing.assert_close(energies, others, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(choice.inverse_mass, other.inverse_mass, rtol=1e-6, atol=1e-9)
    assert first.curvature.sketch is None
    assert second.curvature.mean is None
    assert first.directions.values[:, 0].min() > 100.0  # the mass differs from 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [MANY, 2000])
def test_samples_and_evidence_of_many_latents_are_right(size: int) -> None:
    g, x = measured(size, 20)
    weight = g.weight.double()
    result = cogenerate(
        g, x, torch.ones(20), method=Adaptive(populations=2), noise_std=0.1, seed=2, progress=False
    )
    # In the row space of G, with basis Q, the posterior is that of 20 numbers. Orthogonal to it, it
    # is the prior.
    covariance = weight @ weight.T + 0.01 * torch.eye(20, dtype=F64)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(20, dtype=F64), covariance)
    assert result.log_evidence is not None
    assert result.log_normaliser_error is not None
    off = result.log_evidence - marginal.log_prob(x.double())
    assert off.abs().item() < 3.0 * result.log_normaliser_error.item()
    q = torch.linalg.qr(weight.T).Q
    precision = torch.eye(20, dtype=F64) + (weight @ q).T @ (weight @ q) / 0.01
    mean = torch.linalg.solve(precision, (weight @ q).T @ x[0].double() / 0.01)
    latents = result.latents[0].double()
    seen = latents @ q - mean
    free = latents - latents @ q @ q.T
    # Sums of squares of normals are compared within four standard errors, as if all chains were
    # independent.
    for squares, number in (
        ((seen @ precision * seen).sum(), 20 * len(latents)),
        (free.square().sum(), (size - 20) * len(latents)),
    ):
        assert abs(squares.item() / number - 1.0) < 4.0 * math.sqrt(2.0 / number)


@pytest.mark.slow
def test_many_latents_are_resumed_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g, x = measured(MANY, 5)
    path, save = tmp_path / "run", checkpoint.save
    how: dict[str, Any] = {"noise_std": 0.1, "seed": 2, "budget": 60, "progress": False}
    whole = cogenerate(g, x, torch.ones(5), **keywords(how))

    def interrupted(path: Path, run: Any, *rest: Any) -> None:
        save(path, run, *rest)
        if len(run.infos) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", interrupted)
        cogenerate(g, x, torch.ones(5), **keywords({"checkpoint": Checkpoint(path, 0.0), **how}))
    resumed = cogenerate(g, x, torch.ones(5), **keywords({"checkpoint": path, **how}))
    assert torch.equal(resumed.latents, whole.latents)
    assert torch.equal(resumed.energies, whole.energies)


@pytest.mark.slow
@pytest.mark.parametrize("size", [bases.WHOLE, MANY])
def test_what_a_run_writes_it_reads_however_steep(size: int, tmp_path: Path) -> None:
    g = nn.Linear(size, 3, bias=False, dtype=F64).requires_grad_(False)
    g.weight.copy_(2.0 * torch.eye(3, size))
    how: dict[str, Any] = {"noise_std": 1e-60, "seed": 1, "budget": 40, "progress": False}
    x, path = torch.zeros(1, 3, dtype=F64), tmp_path / "run"
    first, again = (
        cogenerate(g, x, torch.ones(3), **keywords({"checkpoint": path, **how})) for _ in range(2)
    )
    assert torch.equal(first.latents, again.latents)


@pytest.mark.slow
@pytest.mark.parametrize("size", [bases.WHOLE, MANY, 4 * bases.WHOLE])
def test_directions_are_found_anew_as_often(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count, find = [], curvature.directions
    monkeypatch.setattr(curvature, "directions", lambda *how: count.append(1) or find(*how))
    g, x = measured(size, 3)

    def energy(z: Tensor) -> Tensor:
        return 50.0 * ((g(z) - x[0]) ** 2).sum(-1)

    state = smc.init(energy, latent_size=size, chains=4)
    for _ in range(17):
        state, _ = smc.step(state, energy, Annealing(leapfrog_steps=1, hmc_steps=1))
    assert (state.beta < 1.0).all()
    assert len(count) == 3  # at the start, and at every eighth temperature


@pytest.mark.slow
@pytest.mark.parametrize("evidence", ["consistent", "frozen"])
def test_masses_are_kept_only_to_be_repeated(evidence: str) -> None:
    runs: list[Any] = []
    g, x = measured(6, 3)
    with pytest.MonkeyPatch.context() as patch:
        begun = smc.run
        patch.setattr(smc, "run", lambda *a, **how: runs.append(begun(*a, **how)) or runs[-1])
        cogenerate(
            g, x, torch.ones(3), method=Adaptive(evidence=evidence), noise_std=0.1, progress=False
        )
    held = [info.choice.stiff is not None for info in runs[0].infos]
    assert held[-1]
    assert all(held) == (evidence == "frozen")
    assert sum(held) == (len(held) if evidence == "frozen" else 1)


@pytest.mark.slow
@needs_linux
def test_thousands_of_latents_need_no_matrix() -> None:
    # A single matrix of 9216 x 9216 latents (18 layers of 512) would take 680 MB.
    ended = confined(hostile.run_with, "long_latents", {"latent_shape": 9216, "budget": 3})
    assert ended.error is None, ended.trace
    assert ended.grew < 9216**2 * 8

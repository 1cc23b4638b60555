"""Whole runs in C++ for generators of dense layers, compared with the general path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from implementations import ISAS, instruction_set
from torch import Tensor, nn

from cogen_fast import AdaptationRule, Compute, cogenerate
from cogen_fast.generators import MLPGenerator
from cogen_fast.methods import checkpoint
from cogen_fast.methods.baselines import reconstruct
from cogen_fast.methods.settings import keywords
from cogen_fast.ops.dense import ACTIVATIONS, DenseLayers, dense_layers, forward, unfit
from cogen_fast.problem.compute import gathered
from cogen_fast.problem.problem import Problem, prepared
from cogen_fast.sampler import ais, dense, hmc
from cogen_fast.support.layout import Layout

pytestmark = pytest.mark.usefixtures("one_thread")


def network(sizes: tuple[int, ...], activation: str = "tanh", final: str | None = None) -> Any:
    random = torch.Generator().manual_seed(sum(sizes))
    net = MLPGenerator(sizes, activation, final).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=random, dtype=torch.float64) / p.shape[-1] ** 0.5
    return net


@contextmanager
def whole_runs(net: Any, x: Any, mask: Any, **noise: Any) -> Iterator[Problem]:
    with prepared(net, x, mask, **gathered({"whole_runs": True, **noise})) as found:
        assert found.dense is not None
        yield found


@contextmanager
def problem(
    net: Any, observations: int = 1, hidden: tuple[int, ...] = (0,), **noise: Any
) -> Iterator[Problem]:
    random = np.random.default_rng(0)
    outputs = net.sizes[-1]
    mask = np.ones(outputs)
    if outputs > 1:
        mask[list(hidden)] = 0
    x = random.normal(size=(observations, outputs)) * 0.5
    with whole_runs(net, x, mask, **(noise or {"noise_std": 0.2})) as found:
        yield found


def assert_close(found: Any, expected: Any, tolerance: float = 1e-9, name: str = "") -> None:
    """Assert that dataclasses of tensors agree to a relative error, integers and flags exactly."""
    if is_dataclass(expected):
        for field in fields(expected):
            first, second = getattr(found, field.name), getattr(expected, field.name)
            assert_close(first, second, tolerance, f"{name}.{field.name}")
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape, name
        if expected.is_floating_point():
            scale = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if len(expected) else 0.0
            torch.testing.assert_close(
                found,
                expected,
                rtol=0,
                atol=tolerance * (1.0 + scale),
                equal_nan=True,
                msg=lambda text: f"{name}: {text}",
            )
        else:
            assert torch.equal(found, expected), name
    elif isinstance(expected, tuple):
        assert len(found) == len(expected), name
        for place, (first, second) in enumerate(zip(found, expected, strict=True)):
            assert_close(first, second, tolerance, f"{name}[{place}]")
    else:
        assert found == expected, name


# --- the published run ----------------------------------------------------------------------------

SHAPES = [
    (2, 20, 20, 2),
    (3, 16, 5),
    (2, 32, 32, 32, 2),
    (1, 3),
    (5, 7, 1),
    (3, 33, 4, 9, 2),
    (12, 17, 8, 24, 1, 3),
    (7, 64, 65),
]
BETAS = np.array([0.003, 0.01, 0.1, 0.1, 0.5])
# This rule adapts so quickly that chains soon have different step sizes.
OWN_RULE = AdaptationRule(0.9, 0.5, 1.3, 0.7, per_chain=True)
OWN_STEPS = ais.Moves(hmc_steps=2, leapfrog_steps=3, adaptation=OWN_RULE)
adaptations = pytest.mark.parametrize("per_chain", [False, True], ids=["shared", "per-chain"])


def begun(
    found: Problem, moves: ais.Moves, chains: int, steps: int, keep_trace: bool = False
) -> ais.Run:
    """A run of ``steps`` temperatures at its start."""
    count = found.observation.count
    state = ais.init(
        found.potential,
        moves,
        step_size_start=0.1,
        chains=chains,
        observations=count,
        observation_ids=[3 * b + 1 for b in range(count)],
        seed=9,
        **found.how(),
    )
    return ais.Run(state, ais.History.empty(steps, state, keep_trace), 0)


def published(
    found: Problem, moves: ais.Moves, chains: int, keep_trace: bool = False
) -> tuple[ais.Run, ais.Run]:
    """The same run, once by the extension and once by the general path."""
    starts = [begun(found, moves, chains, len(BETAS), keep_trace) for _ in range(2)]
    assert found.dense is not None
    ours = dense.ais_run(found.dense, BETAS, moves, starts[0])
    theirs = ais.run(found.potential, BETAS, len(BETAS), moves, start=starts[1])
    return ours, theirs


@pytest.mark.parametrize(
    "isa", [*(pytest.param(isa, marks=pytest.mark.slow) for isa in ISAS[:-1]), ISAS[-1]]
)
@adaptations
@pytest.mark.parametrize(
    "chains", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8)), 5, 19]
)
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_the_published_run_is_that_of_the_loop(
    sizes: tuple[int, ...], chains: int, per_chain: bool, isa: str
) -> None:
    moves = OWN_STEPS if per_chain else ais.Moves(hmc_steps=2, leapfrog_steps=3)
    with instruction_set(isa), problem(network(sizes), observations=2) as found:
        ours, theirs = published(found, moves, chains, True)
    assert_close(ours, theirs)


@pytest.mark.parametrize("chains", [1, 9])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, chains: int) -> None:
    with problem(network((3, 11, 6, 4), activation, activation)) as found:
        ours, theirs = published(found, ais.Moves(leapfrog_steps=4), chains)
    assert_close(ours, theirs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("hidden", [16, 20, 32])
def test_independent_chains_of_known_widths(hidden: int, activation: str, isa: str) -> None:
    """These widths are compiled with all numbers in registers; masks, weights and forms vary."""
    net, x = network((2, hidden, hidden, 2), activation), np.array([[0.3, -0.2], [-0.5, 0.4]])
    with instruction_set(isa):
        for mask, noise in (
            (np.array([1, 1]), {"weight": np.array([0.5, 3.0])}),
            (np.array([0, 1]), {"noise_std": 0.3}),
            (np.array([1, 0]), {"weight": 4.0}),
        ):
            for form in ("posterior", "paper"):
                moves = ais.Moves(hmc_steps=2, leapfrog_steps=5, form=form)
                with whole_runs(net, x, mask, **noise) as found:
                    assert_close(*published(found, moves, 1))


@pytest.mark.parametrize("chains", [1, 9])
@pytest.mark.parametrize(
    "moves",
    [
        ais.Moves(leapfrog_steps=1, form="paper"),
        ais.Moves(leapfrog_steps=2, adaptation=None),
        ais.Moves(hmc_steps=3, leapfrog_steps=2),
        replace(OWN_STEPS, form="paper"),
    ],
    ids=["paper-form", "fixed-step", "three-moves", "own-steps-paper-form"],
)
def test_every_kind_of_move(moves: ais.Moves, chains: int) -> None:
    with problem(network((4, 9, 3))) as found:
        assert_close(*published(found, moves, chains))


@pytest.mark.parametrize("chains", [1, 9])
def test_weights_of_entries_and_nothing_hidden(chains: int) -> None:
    net, x = network((3, 8, 5)), np.linspace(-1, 1, 5)
    for mask, noise in (
        (np.ones(5), {"weight": np.arange(5) + 0.5}),
        (np.eye(5)[1], {"weight": 2.0}),
    ):
        with whole_runs(net, x, mask, **noise) as found:
            assert_close(*published(found, ais.Moves(leapfrog_steps=2), chains))


@adaptations
@pytest.mark.parametrize("chains", [1, 9])
def test_proposals_that_are_not_finite_are_counted(chains: int, per_chain: bool) -> None:
    """The step size makes trajectories overflow, because identity layers amplify without bound."""
    net = network((3, 8, 8, 2), "identity")
    rule = replace(OWN_RULE, maximum=1e4) if per_chain else None
    moves = ais.Moves(leapfrog_steps=100, adaptation=rule)
    with problem(net, noise_std=1e-3) as found:
        state = ais.init(found.potential, moves, step_size_start=1e3, chains=chains, **found.how())
        starts = [ais.Run(state, ais.History.empty(len(BETAS), state, False), 0) for _ in range(2)]
        assert found.dense is not None
        ours = dense.ais_run(found.dense, BETAS, moves, starts[0])
        theirs = ais.run(found.potential, BETAS, len(BETAS), moves, start=starts[1])
    assert int(theirs.state.non_finite.sum()) > 0
    assert torch.equal(ours.state.non_finite, theirs.state.non_finite)
    assert torch.equal(ours.state.hmc.latents, theirs.state.hmc.latents)


def first_chains(state: ais.AISState, count: int) -> ais.AISState:
    """The state with only the first chains of each observation."""

    def cut(value: Any) -> Any:
        if is_dataclass(value):
            found = {f.name: cut(getattr(value, f.name)) for f in fields(value)}
            return replace(value, **found)  # type: ignore[type-var]
        per_chain = isinstance(value, Tensor) and value.ndim > 1
        return value[:, :count].contiguous() if per_chain else value

    return cut(state)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("few", "many"), [(2, 3), (8, 19), (16, 40), (19, 33)])
def test_chains_that_adapt_by_themselves_do_not_depend_on_others(
    few: int, many: int, dtype: torch.dtype
) -> None:
    """The first chains of many equal those of few bit for bit, and a single chain nearly."""
    betas, runs = np.linspace(0.1, 1.0, 10), {}
    with problem(network((3, 16, 5)).to(dtype), observations=2) as found:
        assert found.dense is not None
        start = begun(found, OWN_STEPS, many, len(betas)).state
        for chains in (1, few, many):
            state = first_chains(start, chains)
            history = ais.History.empty(len(betas), state, False)
            run = ais.Run(state, history, 0)
            runs[chains] = dense.ais_run(found.dense, betas, OWN_STEPS, run).state
    assert_close(runs[few], first_chains(runs[many], few), 0.0)
    # In float32 rounding grows until an accept test of some chain has another result.
    if dtype == torch.float64:
        assert_close(runs[1], first_chains(runs[many], 1), 1e-9)
    assert (runs[many].adaptation.step_size.std(-1) > 0.01).all()


@adaptations
@pytest.mark.parametrize("chains", [1, 19])
def test_calls_of_any_length_make_the_same_run(
    chains: int, per_chain: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The results are equal bit for bit, also through a checkpoint in the middle."""
    moves = replace(OWN_STEPS, adaptation=replace(OWN_RULE, per_chain=per_chain))
    betas = np.linspace(0.05, 1.0, 20)
    calls: list[int] = []
    stretch = dense.ais_call

    def counted(*arguments: Any) -> ais.Run:
        calls.append(arguments[-1])
        return stretch(*arguments)

    monkeypatch.setattr(dense, "ais_call", counted)
    with problem(network((3, 16, 5)).float(), observations=2) as found:
        assert found.dense is not None
        whole = dense.ais_run(found.dense, betas, moves, begun(found, moves, chains, 20))
        # A call covers two temperatures of two observations.
        monkeypatch.setattr(dense, "_MOST_PER_CHAIN", 4 * chains)
        calls.clear()
        half = dense.ais_run(found.dense, betas[:9], moves, begun(found, moves, chains, 20))
        assert not per_chain or max(calls) <= 2
        checkpoint.save(tmp_path / "run", half, {}, {})
        sizes = {"B": 2, "N": chains, "d": 3, "T": 20, "T+1": 21}
        layout = Layout(ais.Run, sizes, torch.float32)
        half = checkpoint.load(tmp_path / "run", {}, {}, torch.device("cpu"), layout)
        resumed = dense.ais_run(found.dense, betas, moves, half)
    assert half.state.adaptation.per_chain == per_chain
    assert_close(resumed, whole, 0.0)


def test_the_kind_of_adaptation_stays_that_of_the_run() -> None:
    with problem(network((3, 16, 5))) as found:
        assert found.dense is not None
        start = begun(found, OWN_STEPS, 2, len(BETAS))
        with pytest.raises(ValueError, match=r"adaptation: expected per_chain=True.*False"):
            dense.ais_run(found.dense, BETAS, ais.Moves(), start)


@adaptations
def test_either_path_goes_on_where_the_other_stopped(per_chain: bool) -> None:
    moves = OWN_STEPS if per_chain else ais.Moves(leapfrog_steps=3)
    with problem(network((2, 20, 20, 2))) as found:
        assert found.dense is not None
        _, theirs = published(found, moves, 9)
        half = dense.ais_run(found.dense, BETAS[:2], moves, begun(found, moves, 9, len(BETAS)))
        mixed = ais.run(found.potential, BETAS, len(BETAS), moves, start=half)
    assert_close(mixed.state, theirs.state)


# --- through the front door -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"keep_trace": True},
        {"form": "paper"},
        {"adaptation": "per-chain", "chains": 9},
        {"polish": 5},
    ],
)
@pytest.mark.filterwarnings("ignore:form")
def test_results_are_those_of_the_general_path(how: dict[str, Any]) -> None:
    net, x = network((2, 12, 3)), np.array([0.3, np.nan, -0.2])
    options: dict[str, Any] = {"noise_std": 0.3, "progress": False, "seed": 2, **how}
    options |= {"method": "paper", "ais_steps": 6}
    ours, theirs = (
        cogenerate(net, x, np.array([1, 0, 1]), **keywords({"backend": backend, **options}))
        for backend in ("auto", "native")
    )
    assert ours.settings["backend"] == "fused" and theirs.settings["backend"] == "native"
    for field in fields(ours):
        if field.name not in ("settings", "notes"):
            first, second = getattr(ours, field.name), getattr(theirs, field.name)
            assert_close(first, second, 1e-5, field.name)


@adaptations
@pytest.mark.parametrize("chains", [1, 40])
def test_threads_change_nothing(chains: int, per_chain: bool) -> None:
    """Not a bit of any number changes, in single precision."""
    net = MLPGenerator((2, 20, 20, 2))
    net.load_state_dict(network((2, 20, 20, 2)).state_dict())
    x = torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0]])
    moves = OWN_STEPS if per_chain else ais.Moves(leapfrog_steps=5)
    runs = []
    with whole_runs(net, x, np.array([1, 0]), noise_std=0.2) as found:
        assert found.dense is not None
        first = ais.init(found.potential, moves, chains=chains, observations=3, **found.how())
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                history = ais.History.empty(len(BETAS), first, True)
                start = ais.Run(first, history, 0)
                runs.append(dense.ais_run(found.dense, BETAS, moves, start))
            finally:
                torch.set_num_threads(1)
    for other in runs[1:]:
        assert_close(other, runs[0], 0.0)


def test_a_batch_of_observations_is_its_observations() -> None:
    net = network((2, 20, 20, 2)).float()
    x = np.array([[0.1, np.nan], [-0.6, np.nan]], dtype=np.float32)
    options: dict[str, Any] = {
        "noise_std": 0.2,
        "progress": False,
        "method": "paper",
        "ais_steps": 9,
    }
    both = cogenerate(net, x, np.array([1, 0]), **keywords(options))
    for b in range(2):
        one = cogenerate(
            net, x[b], np.array([1, 0]), **keywords({"observation_ids": [b], **options})
        )
        assert torch.equal(one.latents[0], both.latents[b])


# --- which generators -----------------------------------------------------------------------------


def test_sequences_of_dense_layers_are_known() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 5),
        nn.LeakyReLU(0.3),
        nn.Linear(5, 4, bias=False),
        nn.Identity(),
        nn.ELU(),
        nn.Linear(4, 2),
    )
    found = dense_layers(net)
    assert found is not None and found.widths == [3, 5, 4, 2]
    assert found.activations == ("leaky_relu", "elu", "identity") and found.slope == 0.3
    z = torch.randn(6, 3)
    torch.testing.assert_close(forward(found, z), net(z))


def test_a_single_layer_is_known() -> None:
    layer, z = nn.Linear(3, 2), torch.randn(4, 3)
    found = dense_layers(layer)
    assert found is not None and found.widths == [3, 2]
    torch.testing.assert_close(forward(found, z), layer(z))


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_forward_hook(lambda m, x, y: 2 * y)
    return net


class Doubled(nn.Sequential):
    def forward(self, z: Tensor) -> Tensor:
        return 2 * super().forward(z)


OTHERS = {
    "function": lambda z: z,
    "dropout": nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
    "two-activations": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()),
    "activation-first": nn.Sequential(nn.Tanh(), nn.Linear(2, 2)),
    "two-slopes": nn.Sequential(
        nn.Linear(2, 2), nn.LeakyReLU(0.1), nn.Linear(2, 2), nn.LeakyReLU(0.2)
    ),
    "negative-slope": nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(-0.1)),
    "softplus": nn.Sequential(nn.Linear(2, 2), nn.Softplus(beta=2)),
    "elu": nn.Sequential(nn.Linear(2, 2), nn.ELU(alpha=0.5)),
    "convolution": nn.Sequential(nn.Conv2d(1, 1, 1)),
    "subclass": Doubled(nn.Linear(2, 2)),
    "hooked": hooked(),
    "weight-norm": nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
    "empty": nn.Sequential(),
}


@pytest.mark.parametrize("generator", OTHERS.values(), ids=OTHERS)
def test_other_generators_are_not_taken_for_dense_layers(generator: Any) -> None:
    assert dense_layers(generator) is None


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((2, *[3] * 9), "9 layers, more than 8"),
        ((2, 257, 2), "layers 257 wide, more than 256"),
        ((129, 4), "129 latent dimensions, more than 128"),
        ((128, 256, 256), None),
    ],
)
def test_large_networks_take_the_general_path(sizes: tuple[int, ...], reason: str | None) -> None:
    assert unfit(MLPGenerator(sizes).dense_layers()) == reason
    assert unfit(MLPGenerator(sizes).half().dense_layers()) is not None


class Lying(nn.Module):
    """A module whose ``dense_layers`` differ from its ``forward``."""

    def forward(self, z: Tensor) -> Tensor:
        return z + 1.0

    def dense_layers(self) -> DenseLayers:
        return DenseLayers((torch.eye(2),), (torch.zeros(2),), ("identity",))


@pytest.mark.parametrize(
    ("generator", "how", "reason"),
    [
        (lambda z: 2 * z, {"latent_shape": 2}, "not known to be nothing but dense layers"),
        (Lying(), {"latent_shape": 2}, "other outputs than the generator"),
        (network((2, 300, 2)), {}, "layers 300 wide"),
        (network((2, 3, 2)), {"misfit": lambda y, x: (y - x).abs().sum(-1)}, "another misfit"),
    ],
)
def test_fused_is_refused_where_it_cannot_serve(generator: Any, how: Any, reason: str) -> None:
    noise = {} if "misfit" in how else {"noise_std": 0.5}
    options: dict[str, Any] = {"method": "paper", "ais_steps": 3, "progress": False, **noise, **how}
    with pytest.raises(ValueError, match=f"^backend: fused serves .*{reason}"):
        cogenerate(
            generator, np.zeros(2), np.array([1, 0]), **keywords({"backend": "fused", **options})
        )
    result = cogenerate(generator, np.zeros(2), np.array([1, 0]), **keywords(options))
    assert result.settings["backend"] == "native"


def test_other_methods_take_the_best_ops_there_are() -> None:
    """Their results name the ops, and asking for whole runs raises an error before any sampling."""
    net, x, mask = network((2, 12, 3)), np.array([0.3, np.nan, -0.2]), np.array([1, 0, 1])
    noise: dict[str, Any] = {"noise_std": 0.3, "seed": 2}
    adam: dict[str, Any] = {"method": "adam", "steps": 3, "learning_rate": 0.1}
    for method in (
        partial(cogenerate, net, x, mask, budget=100, progress=False, **noise),
        partial(reconstruct, net, x, mask, **adam, **noise),
    ):
        found, native_ops = method(), method(compute=Compute(backend="native"))
        assert found.settings["backend"] == "native" and "The backend is native." in found.notes
        assert_close(found.latents, native_ops.latents, 0.0)
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(
                ValueError,
                match=r"^backend: fused serves progressive generators and, with method='paper', "
                r"those of dense layers only, got dense layers with another method; available for "
                r"cpu: auto, reference, native$",
            ),
        ):
            patch.setattr(hmc, "noise_stream", None)  # sampling would fail without noise
            method(compute=Compute(backend="fused"))

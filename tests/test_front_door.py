"""The arguments and results of the front door: shapes, promises about G, refusals, results."""

from __future__ import annotations

import io
import itertools
import json
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cogen_fast import (
    Adaptive,
    AveragePool,
    Checkpoint,
    Compute,
    Mask,
    Operator,
    Paper,
    Result,
    Stride,
    cogenerate,
    inpaint,
    super_resolve,
)
from cogen_fast.experiments.synthetic.baseline_runs import gradient_descent
from cogen_fast.methods.settings import keywords
from cogen_fast.ops import reference
from cogen_fast.problem.adapter import frozen
from cogen_fast.problem.compute import gathered
from cogen_fast.sampler import hmc

BY_NAME: dict[str, Any] = {
    "method": "paper", "ais_steps": 4, "leapfrog_steps": 2, "chains": 3, "step_size": 0.05,
    "progress": False,
}  # fmt: skip
FAST = keywords(BY_NAME)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    for i, p in enumerate(module.parameters()):
        p.data = 0.5 * random(*p.shape, seed=seed + i)
    return module


def mlp() -> nn.Module:
    """A generator of vectors, from 3 latents to 5 values."""
    return seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)))


def convolutional() -> nn.Module:
    """A generator of images in [-1, 1] with batch norm: (6, 1, 1) -> (3, 4, 4)."""
    return seeded(
        nn.Sequential(
            nn.ConvTranspose2d(6, 4, 2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 2, stride=2),
            nn.Tanh(),
        )
    )


def image(batch: int | None = None, seed: int = 5) -> Tensor:
    shape = (3, 4, 4) if batch is None else (batch, 3, 4, 4)
    return torch.tanh(random(*shape, seed=seed))


VECTOR, VECTOR_MASK = random(5, seed=9), [1, 0, 1, 1, 0]


def vector_run(G: Any = None, **changes: Any) -> Result:
    arguments: dict[str, Any] = {"x_obs": VECTOR, "mask": VECTOR_MASK, "noise_std": 0.5}
    return cogenerate(mlp() if G is None else G, **keywords(arguments | BY_NAME | changes))


# --- latents ------------------------------------------------------------------------------------


class WithSize(nn.Module):
    """A generator whose latent size is an attribute, and not that of a layer."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__()
        setattr(self, name, value)
        self.weight = nn.Parameter(random(7, 5))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z.flatten(1) @ self.weight)


class FourDimensional(WithSize):
    def forward(self, z: Tensor) -> Tensor:
        if z.shape[1:] != (7, 1, 1):
            raise ValueError("wants (n, 7, 1, 1)")
        return super().forward(z)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (mlp, 3),
        (convolutional, 6),
        (lambda: WithSize("z_dim", 7), 7),
        (lambda: WithSize("latent_shape", (7, 1, 1)), 7),
        (lambda: FourDimensional("nz", 7), 7),
    ],
    ids=["linear", "transposed-convolution", "z_dim", "latent_shape", "nz-four-dimensional"],
)
def test_latent_shape_is_found_out(make: Callable[[], nn.Module], size: int) -> None:
    G = make()
    x = image() if size == 6 else VECTOR
    result = cogenerate(G, x, 1, noise_std=0.5, **FAST)
    assert result.latents.shape == (1, 3, size)
    with torch.no_grad():
        z = result.latents[0]
        direct = G.eval()(z if size in (3,) else z.reshape(3, size, 1, 1))
    torch.testing.assert_close(result.images[0], direct.reshape(result.images[0].shape))


@pytest.mark.parametrize("shape", [3, (3,), [3]], ids=repr)
def test_a_function_needs_its_latent_shape(shape: Any) -> None:
    net = mlp()
    with pytest.raises(ValueError, match="latent_shape: could not be found out"):
        vector_run(lambda z: net(z))
    assert vector_run(lambda z: net(z), latent_shape=shape).latents.shape == (1, 3, 3)


def test_functions_of_four_dimensional_latents() -> None:
    net = convolutional().eval()
    result = cogenerate(lambda z: net(z), image(), 1, latent_shape=(6, 1, 1), **FAST)
    assert result.latents.shape == (1, 3, 6)


@pytest.mark.parametrize("shape", [2, 4, (3, 1, 1)], ids=repr)
def test_a_wrong_latent_size_is_named(shape: Any) -> None:
    with pytest.raises(ValueError, match="latent_shape: "):
        vector_run(latent_shape=shape)


@pytest.mark.parametrize("shape", [0, -3, 2.5, "3", (), (3, 0), True], ids=repr)
def test_a_latent_shape_is_a_number_or_a_tuple(shape: Any) -> None:
    with pytest.raises(ValueError, match="latent_shape: expected a positive number or a tuple"):
        vector_run(latent_shape=shape)


# --- promises about G ---------------------------------------------------------------------------


def snapshot(G: nn.Module) -> tuple[dict[str, Tensor], dict[str, bool], dict[str, bool]]:
    return (
        {name: value.clone() for name, value in G.state_dict().items()},
        {name: module.training for name, module in G.named_modules()},
        {name: p.requires_grad for name, p in G.named_parameters()},
    )


def assert_unchanged(G: nn.Module, before: tuple[dict[str, Tensor], Any, Any]) -> None:
    state, modes, flags = snapshot(G)
    assert modes == before[1]
    assert flags == before[2]
    assert all(torch.equal(value, before[0][name]) for name, value in state.items())
    assert all(p.grad is None for p in G.parameters())


def mixed_modes() -> nn.Module:
    """All but one layer are in training mode, and all but one parameter require gradients."""
    G = convolutional().train()
    G.get_submodule("3").eval()
    G.get_parameter("0.weight").requires_grad_(False)
    return G


def test_weights_modes_and_flags_come_back() -> None:
    G = mixed_modes()
    before = snapshot(G)
    cogenerate(G, image(), 1, **FAST)
    assert_unchanged(G, before)
    gradient_descent(G, image(), 1, steps=2, learning_rate=0.1)
    assert_unchanged(G, before)


def test_weights_modes_and_flags_come_back_after_the_last_of_several_users() -> None:
    """Several users begin and end in any order; one has the generator within another module."""
    G = mixed_modes()
    before, outer = snapshot(G), nn.Sequential(G)
    for order in itertools.permutations(range(3)):
        users = [frozen(G), frozen(outer), frozen(G)]
        for user in users:
            user.__enter__()
        for number in order:
            assert not any(module.training for module in G.modules())
            assert not any(weight.requires_grad for weight in G.parameters())
            users[number].__exit__(None, None, None)
        assert_unchanged(G, before)


def test_threads_may_share_a_generator() -> None:
    G, x = mixed_modes(), image()
    before, alone = snapshot(G), cogenerate(G, x, 1, **FAST)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cogenerate(G, x, 1, **FAST), range(8)))
    assert_unchanged(G, before)
    assert all(torch.equal(each.latents, alone.latents) for each in found)


SURROUNDINGS = {
    # Tensors that are made without a device would be on this one.
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "adaptive": {"method": "adaptive", "budget": 30, "polish": 3, "chains": 16},
    "alone": {"method": "adaptive", "budget": 30, "chains": 2},
    "noise": {"method": "adaptive", "budget": 60, "chains": 16, "noise_std": "auto"},
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize(
    "sampler", [pytest.param(s, marks=pytest.mark.slow) if s == "noise" else s for s in SAMPLERS]
)
def test_surrounding_contexts_do_not_affect_a_call(sampler: str, surroundings: str) -> None:
    how = SAMPLERS[sampler]
    if "method" in how:
        how = {"ais_steps": None, "leapfrog_steps": None, "step_size": None} | how
    G = mlp()
    alone = vector_run(G, **how)
    with SURROUNDINGS[surroundings]():
        found = vector_run(G, **how)
        assert found.diagnose() == alone.diagnose()
        assert torch.equal(found.estimate, alone.estimate)
    assert torch.equal(found.latents, alone.latents)
    assert torch.equal(found.images, alone.images)


def test_inside_a_run_weights_ask_for_no_gradient() -> None:
    seen: list[bool] = []

    class Looking(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(self.training or self.weight.requires_grad)
            return super().forward(z)

    vector_run(seeded(Looking(3, 5)).train())
    assert len(seen) > 8
    assert not any(seen)


@pytest.mark.parametrize("at", [1, 3, 4, 9], ids=["probe", "sub-batch", "start", "trajectory"])
@pytest.mark.parametrize("error", [RuntimeError, KeyError, KeyboardInterrupt])
def test_weights_modes_and_flags_come_back_after_an_error(
    at: int, error: type[BaseException]
) -> None:
    class Failing(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.net = mixed_modes()

        def forward(self, z: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == at:
                raise error("broken")
            x: Tensor = self.net(z.reshape(-1, 6, 1, 1))
            return x

    G, how = Failing(), {**FAST, "latent_shape": 6, "compute": Compute(backend="native")}
    before = snapshot(G)
    if error is KeyboardInterrupt and at == 9:
        assert not cogenerate(G, image(), 1, **how).complete
    else:
        with pytest.raises((error, ValueError)):
            cogenerate(G, image(), 1, **how)
    assert_unchanged(G, before)


def test_refusals_leave_g_as_it_is() -> None:
    G = mixed_modes()
    before = snapshot(G)
    with pytest.raises(ValueError, match="x_obs: "):
        cogenerate(G, VECTOR, 1, **FAST)
    assert_unchanged(G, before)


def test_inputs_are_neither_changed_nor_kept() -> None:
    pooled, mask = image()[:, :2, :2].contiguous(), torch.tensor(VECTOR_MASK).bool()
    kept = pooled.clone()
    result = cogenerate(convolutional(), pooled, AveragePool(2), **FAST)
    assert torch.equal(pooled, kept)
    values = VECTOR.numpy().copy()
    masked = vector_run(x_obs=values, mask=mask)
    pooled.zero_()
    values[:] = 0.0
    mask[:] = False
    assert torch.equal(result.x_obs[0], kept)
    assert masked.x_obs[0, 0] == VECTOR[0]
    assert masked.observed is not None
    assert masked.observed[0].tolist() == [True, False, True, True, False]


# --- generators that are none -------------------------------------------------------------------


class Spoilt(nn.Module):
    """A linear map whose output is changed by ``spoil``."""

    def __init__(self, spoil: Callable[[Tensor], Any], outputs: int = 5) -> None:
        super().__init__()
        self.linear = seeded(nn.Linear(3, outputs))
        self.spoil = spoil

    def forward(self, z: Tensor) -> Any:
        return self.spoil(self.linear(z))


def nan_at(row: int) -> Callable[[Tensor], Tensor]:
    def spoil(x: Tensor) -> Tensor:
        picked = torch.arange(len(x)) == row
        return torch.where(picked[:, None], torch.nan, x)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x: nn.functional.dropout(x, 0.5, training=True), ValueError, "G: .*dropout"),
        (lambda x: x + 0.1 * torch.randn_like(x), ValueError, "G: .*noise"),
        (
            lambda x: (x - x.mean(0)) / (x.std(0) + 1.0) if len(x) > 1 else x,
            ValueError,
            "G: .*batch statistics",
        ),
        (lambda x: (x, x), TypeError, "G: must return one float tensor, got tuple"),
        (lambda x: {"image": x}, TypeError, "G: must return one float tensor, got dict"),
        (lambda x: x.detach().numpy(), TypeError, "G: must return one float tensor, got ndarray"),
        (lambda x: x.detach().long(), TypeError, "G: .*int64"),
        (lambda x: x.detach(), ValueError, "G: .*differentiable"),
        (nan_at(2), ValueError, "G: expected finite outputs, got others for 1 of 4"),
        (lambda x: x / 0.0, ValueError, "G: expected finite outputs, got others for 4 of 4"),
        (lambda x: x[:1], ValueError, r"G: expected outputs of shape \(4, ...\).*got \(1, 5\)"),
        (lambda x: x.sum(1), ValueError, r"G: expected outputs of shape .*got \(4,\)"),
        (lambda x: x.sum(), ValueError, r"G: expected outputs of shape .*got \(\)"),
    ],
    ids=[
        "dropout", "noise", "batch-statistics", "tuple", "dict", "numpy", "integers", "detached",
        "nan", "inf", "batch-dropped", "one-dimensional", "scalar",
    ],
)  # fmt: skip
@pytest.mark.parametrize("latent_shape", [3, None], ids=["given", "found-out"])
def test_a_generator_that_is_no_function_is_refused_with_the_cause(
    spoil: Callable[[Tensor], Any],
    error: type[Exception],
    message: str,
    latent_shape: int | None,
) -> None:
    # Where the latent shape must be found out first, the error may be about that, but it also names
    # the cause.
    cause = message if latent_shape else message.removeprefix("G: ")
    errors = error if latent_shape else (TypeError, ValueError)
    with pytest.raises(errors, match=cause):
        vector_run(Spoilt(spoil), latent_shape=latent_shape)


def test_batch_statistics_name_the_layer() -> None:
    G = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 5)
    )

    class Guarded(nn.Module):
        """Batch norm cannot take one row in training, so the sub-batch is padded."""

        def __init__(self) -> None:
            super().__init__()
            self.body = seeded(G)

        def forward(self, z: Tensor) -> Tensor:
            padded = torch.cat([z, 0.1 * z[:1], -z[:1]])
            return self.body(padded)[: len(z)]

    with pytest.raises(ValueError, match=r"G: .*batch statistics.*body\.1"):
        vector_run(Guarded())


def test_dropout_modules_are_functions_in_eval_mode() -> None:
    G = seeded(nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5))).train()
    assert torch.equal(vector_run(G).latents, vector_run(G).latents)
    assert G.training


def test_an_output_that_only_its_weights_reach_is_refused() -> None:
    net = mlp()  # made outside of G, so that its weights still require gradients
    with pytest.raises(ValueError, match=r"G: .*differentiable"):
        vector_run(lambda z: net(z.detach()), latent_shape=3)


@pytest.mark.parametrize("G", [None, 3, "generator"], ids=repr)
def test_g_must_be_callable(G: Any) -> None:
    with pytest.raises(TypeError, match="G: expected a callable or module"):
        cogenerate(G, VECTOR, VECTOR_MASK, noise_std=0.5)


def test_a_generator_not_finite_at_some_prior_draws_has_others() -> None:
    # G is finite at the four latents of the checks, but NaN for z_0 > 2.5, as for a few of 500
    # prior draws.
    net = mlp()

    def G(z: Tensor) -> Tensor:
        return torch.where((z[:, :1] > 2.5), torch.nan, net(z))

    with pytest.warns(UserWarning, match=r"^G: gives energies .* of 500 prior draws, which were"):
        result = vector_run(G, latent_shape=3, chains=500)
    assert result.images.isfinite().all()
    assert result.energies.isfinite().all()


def test_independent_chains_start_where_the_generator_is_finite() -> None:
    net = mlp()

    def G(z: Tensor) -> Tensor:
        return torch.where((z[:, :1] > 0.7), torch.nan, net(z))

    how = {"method": "adaptive", "ais_steps": None, "leapfrog_steps": None, "step_size": None}
    result = vector_run(G, latent_shape=3, chains=2, budget=60, seed=5, **how)
    assert result.complete
    assert result.images.isfinite().all()


def test_a_generator_not_finite_later_names_the_chain() -> None:
    net = mlp()

    def G(z: Tensor) -> Tensor:
        return net(z) * (torch.nan if len(z) == 500 else 1.0)

    with pytest.raises(ValueError, match=r"^G: expected outputs.* 500 of 500 chains.*\(0, 0\)"):
        vector_run(G, latent_shape=3, chains=500)


def test_non_finite_proposals_are_counted_in_the_result() -> None:
    # The chains start at |z_0| < 2.5 (those of seed 0 do), and the observation x = z_0 = 6 pulls
    # them beyond.
    def G(z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > 2.5, torch.nan, z)

    result = cogenerate(
        G,
        torch.tensor([6.0]),
        1,
        method=Paper(ais_steps=60, leapfrog_steps=5, step_size=0.1),
        noise_std=0.3,
        latent_shape=1,
        chains=3,
        progress=False,
    )
    assert int(result.non_finite.sum()) > 0
    for values in (result.images, result.latents, result.energies, result.log_weights):
        assert values is not None
        assert values.isfinite().all()
    assert result.acceptance.isfinite().all()
    assert result.step_size.isfinite().all()


# --- what comes in ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: x.double(),
        lambda x: x.numpy().astype(np.float64),
        lambda x: x.tolist(),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x.numpy().repeat(2, -1)[..., ::2],
        lambda x: np.ascontiguousarray(x.numpy()[::-1])[::-1],
        lambda x: x.numpy().astype(">f4"),
        lambda x: x.clone().requires_grad_(),
    ],
    ids=[
        "torch", "numpy", "float64", "numpy-float64", "list", "strided", "numpy-strided",
        "numpy-flipped", "numpy-big-endian", "requires-grad",
    ],
)  # fmt: skip
def test_measurements_in_any_form_are_the_same(convert: Callable[[Tensor], Any]) -> None:
    assert torch.equal(vector_run(x_obs=convert(VECTOR.clone())).latents, vector_run().latents)


@pytest.mark.parametrize(
    "convert",
    [
        torch.tensor,
        lambda m: torch.tensor(m).bool(),
        lambda m: torch.tensor(m).float(),
        lambda m: torch.tensor(m, dtype=torch.uint8),
        np.array,
        lambda m: np.array(m).astype(bool),
        lambda m: np.ascontiguousarray(np.array(m)[::-1])[::-1],
        lambda m: torch.tensor(m).repeat_interleave(2)[::2],
        lambda m: Mask(m),
        tuple,
    ],
    ids=[
        "int64", "bool", "float", "uint8", "numpy", "numpy-bool", "numpy-flipped", "strided",
        "Mask", "tuple",
    ],
)  # fmt: skip
def test_masks_in_any_form_are_the_same(convert: Callable[[list[int]], Any]) -> None:
    assert torch.equal(vector_run(mask=convert(VECTOR_MASK)).latents, vector_run().latents)


def test_read_only_arrays_are_taken_without_a_warning() -> None:
    values, mask = VECTOR.numpy().copy(), np.array(VECTOR_MASK)
    values.flags.writeable = mask.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = vector_run(x_obs=values, mask=mask)
    assert torch.equal(result.latents, vector_run().latents)


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30], ids=repr)
def test_hidden_entries_may_hold_anything(junk: float) -> None:
    values = VECTOR.clone()
    values[[1, 4]] = junk
    result, plain = vector_run(x_obs=values), vector_run()
    assert torch.equal(result.latents, plain.latents)
    assert torch.equal(result.x_obs, plain.x_obs)
    assert result.x_obs[0, 1] == 0.0


def test_float64_generators_sample_in_float64() -> None:
    result = vector_run(mlp().double(), x_obs=VECTOR.double())
    assert result.latents.dtype == result.images.dtype == torch.float64
    single = vector_run()
    assert single.latents.dtype == single.images.dtype == torch.float32


@pytest.mark.parametrize("name", ["noise_std", "weight"])
def test_plain_numbers_keep_their_precision(name: str) -> None:
    # The number 0.3 has no exact float32, so with a float64 generator it must stay a float64.
    settings: dict[str, Any] = {"noise_std": None, name: 0.3}
    number = vector_run(mlp().double(), **settings)
    settings[name] = torch.tensor(0.3, dtype=torch.float64)
    exact = vector_run(mlp().double(), **settings)
    torch.testing.assert_close(number.energies, exact.energies, rtol=1e-13, atol=0.0)
    if name == "noise_std":
        assert number.log_evidence is not None
        assert exact.log_evidence is not None
        torch.testing.assert_close(number.log_evidence, exact.log_evidence, rtol=1e-13, atol=0.0)


def test_lists_of_numbers_keep_their_precision() -> None:
    values = (VECTOR.double() / 3.0).tolist()
    result = vector_run(mlp().double(), x_obs=values, mask=1)
    assert result.x_obs[0].tolist() == values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_generators(dtype: torch.dtype) -> None:
    G = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))).to(dtype)
    result = vector_run(G)
    assert result.latents.dtype == result.images.dtype == torch.float32
    with torch.no_grad():
        direct = G(result.latents[0].to(dtype)).float()
    torch.testing.assert_close(result.images[0], direct, rtol=2e-2, atol=2e-2)
    assert (result.acceptance > 0).all()
    assert all(p.dtype == dtype for p in G.parameters())


MASKS: dict[str, Any] = {
    "number": (),
    "H,W": (4, 4),
    "1,H,W": (1, 4, 4),
    "C,H,W": (3, 4, 4),
    "C,1,1": (3, 1, 1),
    "W": (4,),
    "1,1,H,W": (1, 1, 4, 4),
    "B,1,H,W": (2, 1, 4, 4),
    "B,C,H,W": (2, 3, 4, 4),
    "B,1,1,1": (2, 1, 1, 1),
}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks_broadcast_over_batch_and_channels(shape: tuple[int, ...]) -> None:
    mask = (random(*shape, seed=3) > -0.3).int() if shape else torch.tensor(1)
    mask.reshape(-1)[0] = 1
    if shape == (2, 1, 1, 1):
        mask[:] = 1
    result = cogenerate(convolutional(), image(2), mask, **FAST)
    expected = mask.bool().broadcast_to(2, 3, 4, 4)
    assert result.observed is not None
    assert torch.equal(result.observed, expected)
    assert torch.equal(result.x_obs, torch.where(expected, image(2), 0.0))
    # Energies by hand: noise 0.1 is the default for images.
    residual = torch.where(expected[:, None], result.images - image(2)[:, None], 0.0).double()
    by_hand = 50.0 * (residual**2).sum((2, 3, 4))
    torch.testing.assert_close(result.energies, by_hand, rtol=1e-5, atol=1e-6)


def test_completed_pastes_the_observed_pixels_exactly() -> None:
    mask = random(4, 4, seed=2) > 0
    result = inpaint(convolutional(), image(2), mask, **FAST)
    assert result.completed is not None
    seen = mask.expand(2, 3, 3, 4, 4)
    expected = torch.where(seen, image(2)[:, None], result.images)
    assert torch.equal(result.completed, expected)


@pytest.mark.parametrize("operator", [AveragePool(2), Stride(2), Operator(lambda x: x[:, :1])])
def test_operators_complete_nothing_and_say_so(operator: Any) -> None:
    x = image()[:1] if isinstance(operator, Operator) else image()[:, :2, :2]
    result = cogenerate(convolutional(), x, operator, **FAST)
    assert result.completed is None
    assert result.observed is None
    assert result.reasons["completed"]


def test_a_physics_object_is_an_operator() -> None:
    class Physics:
        def A(self, x: Tensor) -> Tensor:
            return 2.0 * x[:, [0, 3]]

    x = random(2, seed=3)
    by_physics = vector_run(x_obs=x, mask=Physics())
    by_operator = vector_run(x_obs=x, mask=Operator(Physics().A))
    assert torch.equal(by_physics.latents, by_operator.latents)
    with torch.no_grad():
        y = 2.0 * mlp()(by_physics.latents[0])[:, [0, 3]]
    by_hand = 2.0 * ((y - x).double() ** 2).sum(-1)
    torch.testing.assert_close(by_physics.energies[0], by_hand, rtol=1e-5, atol=1e-6)


def test_a_misfit_of_ones_own() -> None:
    def misfit(prediction: Tensor, target: Tensor) -> Tensor:
        assert prediction.shape == target.shape
        assert (prediction[:, [1, 4]] == 0).all()
        return (prediction - target).abs().sum(-1)

    x = VECTOR.clone()
    x[1] = math.nan
    result = vector_run(x_obs=x, noise_std=None, misfit=misfit, weight=3.0)
    seen = torch.tensor(VECTOR_MASK).bool()
    by_hand = 3.0 * (result.images[0] - VECTOR).abs()[:, seen].sum(-1).double()
    torch.testing.assert_close(result.energies[0], by_hand, rtol=1e-5, atol=1e-6)
    assert result.log_normaliser is not None
    assert result.log_evidence is None
    assert "squared error" in result.reasons["log_evidence"]


def test_the_squared_error_as_a_misfit_is_the_squared_error() -> None:
    def misfit(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().sum(-1)

    G = mlp().double()
    own = vector_run(G, noise_std=None, misfit=misfit, weight=2.0)
    builtin = vector_run(G, noise_std=None, weight=2.0)
    torch.testing.assert_close(own.latents, builtin.latents, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("operator", [AveragePool(2), Stride(2)])
def test_a_misfit_of_ones_own_gets_measurements(operator: AveragePool | Stride) -> None:
    def misfit(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().flatten(1).sum(-1)

    G, low = convolutional(), image()[:, :2, :2]
    own = cogenerate(G, low, operator, misfit=misfit, weight=2.0, **FAST)
    builtin = cogenerate(G, low, operator, weight=2.0, **FAST)
    torch.testing.assert_close(own.energies, builtin.energies, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.latents, builtin.latents, rtol=1e-3, atol=1e-3)


def test_super_resolution_observes_what_it_says() -> None:
    low = image()[:, :2, :2]
    for how, read in (
        ("average", lambda x: nn.functional.avg_pool2d(x, 2)),
        ("stride", lambda x: x[:, :, ::2, ::2]),
    ):
        result = super_resolve(convolutional(), low, 2, downsample=how, **FAST)  # type: ignore[arg-type]
        residual = (read(result.images[0]) - low).double()
        by_hand = 50.0 * (residual**2).sum((1, 2, 3))
        torch.testing.assert_close(result.energies[0], by_hand, rtol=1e-5, atol=1e-6)


def test_nothing_observed_warns_where_it_was_called_and_draws_from_the_prior() -> None:
    with pytest.warns(UserWarning, match="mask: nothing is observed") as caught:
        result = vector_run(mask=torch.zeros(5), keep_trace=True)
    assert (result.energies == 0).all()
    assert result.log_evidence is not None
    assert result.log_evidence.tolist() == [0.0]
    assert caught[0].filename == __file__


def test_nothing_observed_of_one_says_of_which() -> None:
    mask = torch.ones(2, 5)
    mask[1] = 0
    with pytest.warns(UserWarning, match="mask: nothing of observation 1 is observed"):
        vector_run(x_obs=random(2, 5), mask=mask)


def test_images_have_a_default_noise_that_is_noted() -> None:
    by_default = cogenerate(convolutional(), image(), 1, **FAST)
    given = cogenerate(convolutional(), image(), 1, noise_std=0.1, **FAST)
    torch.testing.assert_close(by_default.energies, given.energies)
    assert any("0.1" in note and "default" in note for note in by_default.notes)
    assert not any("default" in note for note in given.notes)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inside_contexts_without_gradients(context: Callable[[], Any]) -> None:
    G, low = convolutional(), image()[:, :2, :2]
    plain = cogenerate(G, low, AveragePool(2), **FAST)
    descent = gradient_descent(G, low, AveragePool(2), steps=3, learning_rate=0.1)
    with context():
        inside = cogenerate(G, low.clone(), AveragePool(2), **FAST)
        descent_inside = gradient_descent(
            G, low.clone(), AveragePool(2), steps=3, learning_rate=0.1
        )
    assert torch.equal(inside.latents, plain.latents)
    assert torch.equal(descent_inside.latents, descent.latents)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_user_misfits_inside_contexts_without_gradients(context: Callable[[], Any]) -> None:
    def misfit(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction * target).sum(-1)  # its gradient needs the target

    G = mlp()
    options: dict[str, Any] = {"noise_std": None, "misfit": misfit}
    plain = vector_run(G, mask=Operator(lambda x: x), **options)
    with context():
        inside = vector_run(G, x_obs=VECTOR.clone(), mask=Operator(lambda x: x), **options)
    assert torch.equal(inside.latents, plain.latents)


def test_weights_made_in_inference_mode_are_refused_by_name() -> None:
    with torch.inference_mode():
        G = mlp()
    with pytest.raises(ValueError, match=r"G: .*inference"):
        vector_run(G)


# --- bad input ----------------------------------------------------------------------------------


def bad(**changes: Any) -> dict[str, Any]:
    return changes


BAD: dict[str, tuple[dict[str, Any], type[Exception] | tuple[type[Exception], ...], str]] = {
    "mask-shape": (bad(mask=[1, 0]), ValueError, r"mask: .*\(5,\).*got \(2,\)"),
    "mask-batch": (bad(mask=torch.ones(3, 5)), ValueError, r"mask: .*got \(3, 5\)"),
    "mask-values": (bad(mask=[1, 0, 2, 1, 0]), ValueError, "mask: expected only 0.*such as 2"),
    "mask-nan": (bad(mask=[1, 0, math.nan, 1, 0]), ValueError, "mask: "),
    "mask-text": (bad(mask="left half"), TypeError, "mask: .*'left half'"),
    "mask-none": (bad(mask=None), TypeError, "mask: "),
    "mask-function": (bad(mask=lambda x: x), TypeError, r"mask: .*wrap it as Operator\(f\)"),
    "mask-complex": (bad(mask=torch.ones(5) * 1j), TypeError, "mask: "),
    "x-shape": (bad(x_obs=random(4)), ValueError, r"x_obs: .*\(5,\).*\(B, 5\).*got \(4,\)"),
    "x-empty-batch": (bad(x_obs=torch.zeros(0, 5)), ValueError, r"x_obs: .*got \(0, 5\)"),
    "x-deeper": (bad(x_obs=random(1, 1, 5)), ValueError, r"x_obs: .*got \(1, 1, 5\)"),
    "x-nan": (bad(x_obs=VECTOR / 0.0 * 0.0), ValueError, r"x_obs: .*3 non-finite.*\(0, 0\)"),
    "x-ints": (bad(x_obs=[1, 2, 3, 4, 5]), TypeError, "x_obs: expected floating-point .*int64"),
    "x-uint8": (
        bad(x_obs=torch.ones(5, dtype=torch.uint8)), TypeError, "x_obs: .*uint8.*divide by 127.5",
    ),
    "x-complex": (bad(x_obs=VECTOR * 1j), TypeError, "x_obs: .*complex"),
    "x-text": (bad(x_obs="image.png"), TypeError, "x_obs: .*'image.png'"),
    "x-none": (bad(x_obs=None), TypeError, "x_obs: "),
    "noise-missing": (bad(noise_std=None), ValueError, r"noise_std: .*\(5,\) are no images"),
    "noise-zero": (bad(noise_std=0.0), ValueError, "noise_std: .*above 0, got 0"),
    "noise-negative": (bad(noise_std=-0.1), ValueError, "noise_std: .*above 0"),
    "noise-nan": (bad(noise_std=math.nan), ValueError, "noise_std: "),
    "noise-inf": (bad(noise_std=math.inf), ValueError, "noise_std: "),
    "noise-entry": (bad(noise_std=[0.1, 0.1, 0.0, 0.1, 0.1]), ValueError, "noise_std: "),
    "noise-shape": (bad(noise_std=[0.1, 0.1]), ValueError, r"noise_std: .*got \(2,\)"),
    "noise-text": (bad(noise_std="low"), TypeError, "noise_std: .*'low'"),
    "noise-bool": (bad(noise_std=True), TypeError, "noise_std: "),
    "weight-zero": (bad(noise_std=None, weight=0.0), ValueError, "weight: .*above 0"),
    "weight-negative": (bad(noise_std=None, weight=-1), ValueError, "weight: .*above 0"),
    "weight-and-noise": (bad(weight=1.0), ValueError, "weight: .*either noise_std or weight"),
    "misfit-and-noise": (bad(misfit=lambda y, t: y.sum(-1)), ValueError, "noise_std: "),
    "misfit-no-callable": (bad(noise_std=None, misfit="l1"), TypeError, "misfit: "),
    "misfit-shape": (
        bad(noise_std=None, misfit=lambda y, t: y), ValueError, r"misfit: .*shape \(3,\)",
    ),
    "misfit-type": (
        bad(noise_std=None, misfit=lambda y, t: y.sum(-1).long()), TypeError, "misfit: ",
    ),
    "misfit-not-differentiable": (
        bad(noise_std=None, misfit=lambda y, t: y.detach().sum(-1)),
        (TypeError, ValueError), "misfit: ",
    ),
    "misfit-weight-map": (
        bad(noise_std=None, misfit=lambda y, t: y.sum(-1), weight=[1.0] * 5),
        ValueError, "weight: ",
    ),
    "operator-drops-batch": (
        bad(mask=Operator(lambda x: x.sum(0)), x_obs=VECTOR), ValueError, "mask: .*batch",
    ),
    "operator-no-tensor": (bad(mask=Operator(lambda x: [x])), TypeError, "mask: .*float tensor"),
    "operator-not-differentiable": (
        bad(mask=Operator(lambda x: x.detach())), (TypeError, ValueError), "mask: .*different",
    ),
    "pool-of-vector": (bad(mask=AveragePool(2)), ValueError, r"mask: .*AveragePool\(2\).*\(5,\)"),
    "ais_steps-zero": (bad(ais_steps=0), ValueError, "ais_steps: .*at least 1, got 0"),
    "ais_steps-fraction": (bad(ais_steps=2.5), ValueError, "ais_steps: "),
    "ais_steps-of-array": (bad(ais_steps=4, schedule=[0.5, 1.0]), ValueError, "ais_steps: "),
    "chains-zero": (bad(chains=0), ValueError, "chains: "),
    "hmc_steps-zero": (bad(hmc_steps=0), ValueError, "hmc_steps: "),
    "leapfrog_steps-zero": (bad(leapfrog_steps=0), ValueError, "leapfrog_steps: "),
    "step_size-zero": (bad(step_size=0.0), ValueError, "step_size: "),
    "step_size-text": (bad(step_size="small"), ValueError, "step_size: "),
    "adaptation": (bad(adaptation="dual-averaging"), ValueError, "adaptation: .*'dual-averaging'"),
    "adaptation-chain": (
        bad(adaptation="chain"), ValueError, "adaptation: .*'published', 'per-chain'.*'chain'"
    ),
    "adaptation-type": (
        bad(adaptation=0.8), TypeError, "adaptation: .*'per-chain'.*an AdaptationRule or None"
    ),
    "method": (bad(method="smc"), ValueError, "method: .*paper.*'smc'"),
    "preset": (bad(preset="ffhq"), ValueError, "preset: .*celeba-128.*'ffhq'"),
    "schedule": (bad(schedule="cosine"), ValueError, "schedule: .*linear.*'cosine'"),
    "form": (bad(form="prior"), ValueError, "form: .*posterior.*'prior'"),
    "backend": (bad(backend="fast"), ValueError, "backend: .*reference.*fast"),
    "backend-triton": (bad(backend="triton"), (ValueError, ImportError), "backend: triton"),
    "device-unknown": (bad(device="tpu"), ValueError, "device: .*cpu.*cuda.*tpu"),
    "device-absent": (bad(device="hpu"), ValueError, "device: .*present, got hpu; .*0 hpu dev"),
    "device-meta": (bad(device="meta"), ValueError, "device: .*cpu.*cuda.*meta"),
    "seed": (bad(seed=-1), ValueError, "seed: "),
    "seed-text": (bad(seed="1"), ValueError, "seed: "),
    "max_batch": (bad(max_batch=0), ValueError, "max_batch: "),
    "observation_ids": (bad(observation_ids=[0, 1]), ValueError, "observation_ids: expected 1"),
    "compute": (bad(compute="cuda"), TypeError, "compute: expected a Compute, got 'cuda'"),
    "checkpoint-type": (bad(checkpoint=3), TypeError, "checkpoint: "),
}  # fmt: skip


@pytest.mark.parametrize("seconds", [math.nan, -1.0, "1"])
def test_bad_seconds_of_a_checkpoint_name_the_argument(seconds: Any, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^checkpoint_seconds: "):
        Checkpoint(tmp_path / "run.safetensors", seconds)


@pytest.mark.parametrize("method", [3, None, Compute(), Adaptive])
def test_a_method_of_another_type_is_told(method: Any) -> None:
    with pytest.raises(TypeError, match=r"^method: expected one of .*Adaptive or Paper"):
        cogenerate(mlp(), VECTOR, VECTOR_MASK, noise_std=0.5, method=method)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name: str) -> None:
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        vector_run(**changes)


@pytest.mark.parametrize("device", ["tpu", "meta"])
def test_unknown_devices_are_refused_for_functions_too(device: str) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=f"device: .*cpu.*cuda.*{device}"):
        vector_run(lambda z: net(z), latent_shape=3, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [True, False], ids=["module", "function"])
def test_a_gpu_that_is_not_there_is_named(module: bool) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=r"device: .*cuda"):
        vector_run(net if module else lambda z: net(z), latent_shape=3, device="cuda")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda G: cogenerate(G, image() * 3, 1, **FAST), ValueError, "noise_std: .*reach"),
        (
            lambda G: cogenerate(G, torch.full((3, 4, 4), 255, dtype=torch.uint8), 1, **FAST),
            TypeError,
            "x_obs: .*uint8.*divide by 127.5 and subtract 1",
        ),
        (
            lambda G: inpaint(G, image(), torch.ones(1, 2, 2), **FAST),
            ValueError,
            r"mask: expected shape broadcastable to \(3, 4, 4\).*got \(1, 2, 2\)",
        ),
        (lambda G: inpaint(G, image(), Stride(2), **FAST), TypeError, r"mask: .*Stride\(2\)"),
        (lambda G: super_resolve(G, image(), 0, **FAST), ValueError, "factor: .*got 0"),
        (lambda G: super_resolve(G, image(), 2.0, **FAST), ValueError, "factor: .*got 2.0"),
        (lambda G: super_resolve(G, image(), True, **FAST), ValueError, "factor: "),
        (lambda G: super_resolve(G, image(), 3, **FAST), ValueError, "factor: .*4 x 4, got 3"),
        (lambda G: super_resolve(G, image(), 2, **FAST), ValueError, r"x_obs: .*\(3, 2, 2\)"),
        (
            lambda G: super_resolve(G, image(), 2, downsample="bicubic", **FAST),
            ValueError,
            "downsample: .*average.*stride.*'bicubic'",
        ),
    ],
    ids=[
        "not-in-range", "uint8", "mask-shape", "operator-to-inpaint", "factor-zero",
        "factor-fraction", "factor-bool", "factor-no-divisor", "low-res-shape", "downsample",
    ],
)  # fmt: skip
def test_bad_images_name_the_argument(
    call: Callable[[nn.Module], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(convolutional())


# --- memory -------------------------------------------------------------------------------------


class Small(nn.Module):
    """A generator with memory for ``most`` rows."""

    def __init__(self, most: int, error: Callable[[], RuntimeError]) -> None:
        super().__init__()
        self.net, self.most, self.error = mlp().double(), most, error
        self.rows: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        self.rows.append(len(z))
        if len(z) > self.most:
            raise self.error()
        x: Tensor = self.net(z)
        return x


def cuda_error() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def cpu_error() -> RuntimeError:
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize("error", [cuda_error, cpu_error], ids=["cuda", "cpu"])
@pytest.mark.parametrize(
    ("most", "refused", "size"), [(4, [22, 11, 5], 2), (7, [22, 11], 5), (11, [22], 11)]
)
def test_out_of_memory_halves_the_batch(
    error: Callable[[], RuntimeError], most: int, refused: list[int], size: int
) -> None:
    settings: dict[str, Any] = {"chains": 11, "x_obs": random(2, 5), "latent_shape": 3}
    G = Small(most, error)
    result = vector_run(G, **settings)
    roomy = Small(10**6, error)
    expected = vector_run(roomy, **settings)
    torch.testing.assert_close(result.latents, expected.latents, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.energies, expected.energies, rtol=1e-9, atol=1e-11)
    # Batches are halved until they fit, and stay so.
    assert [n for n in G.rows if n > most] == refused
    assert f"Memory ran out, so max_batch was lowered to {size}." in result.notes
    assert not any("Memory ran out" in note for note in expected.notes)


def test_out_of_memory_at_one_row_is_raised() -> None:
    class Filling(Small):
        def forward(self, z: Tensor) -> Tensor:
            if len(self.rows) > 20:
                self.most = 0
            return super().forward(z)

    with pytest.raises(torch.OutOfMemoryError):
        vector_run(Filling(100, cuda_error), latent_shape=3, ais_steps=50)


def test_out_of_memory_at_the_probe_is_no_matter_of_the_latent_shape() -> None:
    with pytest.raises(RuntimeError, match="memory"):
        vector_run(Small(0, cuda_error), latent_shape=3)


def test_other_errors_of_g_are_not_taken_for_memory() -> None:
    class Broken(Small):
        def forward(self, z: Tensor) -> Tensor:
            if len(self.rows) > 10:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return super().forward(z)

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        vector_run(Broken(100, cuda_error), latent_shape=3)


@pytest.mark.parametrize("max_batch", [1, 2, 5, 64])
def test_max_batch_is_the_most_that_g_sees(max_batch: int) -> None:
    G = Small(10**6, cuda_error)
    vector_run(G, chains=7, max_batch=max_batch)
    assert max(G.rows) <= max_batch
    if max_batch == 5:
        assert {5, 2} <= set(G.rows)


def test_max_batch_of_one_still_finds_batch_statistics_or_takes_g_as_it_is() -> None:
    result = vector_run(mlp().double(), max_batch=1)
    expected = vector_run(mlp().double())
    torch.testing.assert_close(result.latents, expected.latents, rtol=1e-9, atol=1e-11)


# --- results ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture() -> Result:
    mask = (random(4, 4, seed=2) > 0).int()
    return inpaint(convolutional(), image(2), mask, **keywords(BY_NAME | {"keep_trace": True}))


def test_a_result_comes_back_from_disk(picture: Result, tmp_path: Path) -> None:
    folder = picture.save(tmp_path / "deep" / "run")
    assert sorted(p.name for p in folder.iterdir()) == ["grid.png", "result.json", "result.npz"]
    loaded = Result.load(folder)
    for name, value in vars(picture).items():
        found = getattr(loaded, name)
        if isinstance(value, Tensor):
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found.numpy(), value.numpy(), err_msg=name)
        else:
            assert found == value, name
    assert repr(loaded) == repr(picture)
    summary = json.loads((folder / "result.json").read_text())
    assert summary["chains"] == 3
    assert summary["best"] == picture.best.tolist()


@pytest.mark.parametrize("form", ["paper", "vector", "interrupted"])
def test_results_with_gaps_come_back_too(form: str, tmp_path: Path) -> None:
    if form == "paper":
        result = vector_run(form="paper", schedule="sigmoid-raw")
    elif form == "vector":
        result = vector_run(x_obs=random(2), mask=Operator(lambda x: x[:, :2]))
    else:

        class Stopping(Small):
            def forward(self, z: Tensor) -> Tensor:
                if len(self.rows) == 9:
                    self.rows.append(0)
                    raise KeyboardInterrupt
                return super().forward(z)

        result = vector_run(Stopping(100, cuda_error), latent_shape=3)
        assert not result.complete
    loaded = Result.load(result.save(tmp_path))
    assert not (tmp_path / "grid.png").exists()
    for name, value in vars(result).items():
        found = getattr(loaded, name)
        if isinstance(value, Tensor):
            np.testing.assert_array_equal(found.numpy(), value.numpy())
        else:
            assert found == value


def test_a_result_is_not_overwritten_unasked(picture: Result, tmp_path: Path) -> None:
    picture.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = inpaint(convolutional(), image(2, seed=8), torch.eye(4), **FAST)
    with pytest.raises(FileExistsError, match=r"directory: .*overwrite=True"):
        other.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    other.save(tmp_path, overwrite=True)
    assert torch.equal(Result.load(tmp_path).images, other.images)


def test_a_picture_of_an_earlier_result_does_not_stay(picture: Result, tmp_path: Path) -> None:
    picture.save(tmp_path)
    vector_run().save(tmp_path, overwrite=True)
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("name", ["result.npz", "result.json"])
@pytest.mark.parametrize("damage", ["empty", "text", "first-half", "last-half", "flipped-bytes"])
def test_a_damaged_result_is_refused(
    picture: Result, tmp_path: Path, name: str, damage: str
) -> None:
    file = picture.save(tmp_path) / name
    content = file.read_bytes()
    half = len(content) // 2
    flipped = bytes(b ^ 0xA5 for b in content[half - 64 : half + 64])
    file.write_bytes(
        {
            "empty": b"",
            "text": b"hello",
            "first-half": content[:half],
            "last-half": content[half:],
            "flipped-bytes": content[: half - 64] + flipped + content[half + 64 :],
        }[damage]
    )
    with pytest.raises(ValueError, match=r"directory: .*no readable result"):
        Result.load(tmp_path)


def test_arrays_that_are_missing_are_damage(picture: Result, tmp_path: Path) -> None:
    file = picture.save(tmp_path) / "result.npz"
    with np.load(file) as arrays:
        kept = {n: arrays[n] for n in arrays.files if n != "energies"}
    np.savez(file, **kept)
    with pytest.raises(ValueError, match=r"directory: .*no readable result"):
        Result.load(tmp_path)


def test_a_folder_without_a_result_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path)


def test_a_path_is_text_or_a_path(picture: Result) -> None:
    for use in (picture.save, Result.load):
        with pytest.raises(TypeError, match="directory: expected a path, got 3"):
            use(3)
    with pytest.raises(TypeError, match="path: expected a path, got 3"):
        picture.grid(3)


def test_a_result_reads_well(picture: Result) -> None:
    text = repr(picture)
    assert text.startswith("Result: 2 observations x 3 chains, complete")
    for part in ("(3, 4, 4)", "(6,)", "best energy", "acceptance", "of 3"):
        assert part in text
    assert "effective sample size" in text
    assert "log evidence" in text
    assert max(map(len, text.splitlines())) < 200
    assert "tensor" not in text


def test_means_and_deviations_by_hand(picture: Result) -> None:
    x = picture.images.double()
    torch.testing.assert_close(picture.mean().double(), x.mean(1), rtol=1e-5, atol=1e-6)
    spread = x.std(1, correction=0)
    torch.testing.assert_close(picture.std().double(), spread, rtol=1e-4, atol=1e-5)
    assert picture.log_weights is not None
    w = torch.softmax(picture.log_weights, 1)[:, :, None, None, None]
    mean = (w * x).sum(1)
    torch.testing.assert_close(picture.mean(weighted=True).double(), mean, rtol=1e-5, atol=1e-6)
    deviation = (w * (x - mean[:, None]) ** 2).sum(1).sqrt()
    torch.testing.assert_close(picture.std(weighted=True).double(), deviation, rtol=1e-4, atol=1e-5)
    assert picture.best.tolist() == picture.energies.argmin(1).tolist()
    for b, n in enumerate(picture.best.tolist()):
        assert torch.equal(picture.best_images[b], picture.images[b, n])


@pytest.mark.parametrize(("tiles", "columns"), [(8, 6), (2, 5)])
def test_the_grid_has_a_tile_for_everything(
    picture: Result, tmp_path: Path, tiles: int, columns: int
) -> None:
    # A row shows the observation, up to `tiles` of 3 chains, the mean and the spread. Images of 4 x
    # 4 are enlarged to 112; tiles have a gap of 4 and 18 pixels for the label. A line of 18 pixels
    # below them says what is pasted.
    file = tmp_path / "grid.png"
    drawn = picture.grid(file, tiles=tiles)
    size = (columns * (112 + 4) + 4, 2 * (112 + 18 + 4) + 4 + 18)
    assert drawn.size == size
    with Image.open(io.BytesIO(file.read_bytes())) as written:
        assert written.format == "PNG"
        assert written.size == size
        np.testing.assert_array_equal(np.asarray(written), np.asarray(drawn))


def test_the_grid_shows_the_completions(picture: Result) -> None:
    assert picture.completed is not None
    pixels = np.asarray(picture.grid())
    best = picture.best[0].item()
    expected = ((picture.completed[0, best] + 1.0) * 127.5).round().permute(1, 2, 0).numpy()
    tile = pixels[4 + 18 : 4 + 18 + 112, 4 + 116 : 4 + 116 + 112]
    np.testing.assert_array_equal(tile[14::28, 14::28], expected.astype(np.uint8))


def test_the_grid_shows_the_estimate_where_there_are_fits(picture: Result) -> None:
    mask = (random(4, 4, seed=2) > 0).int()
    polished = inpaint(convolutional(), image(2), mask, polish=3, **FAST)
    pixels = np.asarray(polished.grid())
    assert pixels.shape[1] == np.asarray(picture.grid()).shape[1] + 116
    place = 4 + 4 * 116  # the tile after the observation and three chains
    tile = pixels[4 + 18 : 4 + 18 + 112, place : place + 112]
    estimate = polished.pasted(polished.estimate)[0].clamp(-1.0, 1.0)
    expected = ((estimate + 1.0) * 127.5).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(tile[14::28, 14::28], expected.astype(np.uint8))


def test_low_resolution_observations_have_a_tile_too() -> None:
    result = super_resolve(convolutional(), image()[:, :2, :2], 2, **FAST)
    assert result.grid().size == (6 * 116 + 4, 134 + 4)


def test_vectors_have_no_grid() -> None:
    with pytest.raises(ValueError, match=r"^images: expected images .* to draw, got shape"):
        vector_run().grid()


def test_the_truth_comes_first_in_the_picture(picture: Result) -> None:
    count, _, *shape = picture.images.shape
    truth = torch.full((count, *shape), 0.5)
    plain, known = (np.asarray(picture.grid(truth=t)) for t in (None, truth))
    cell = known.shape[1] - plain.shape[1]
    assert (known[22 : 22 + 50, 4 : 4 + 50] == 191).all()  # (0.5 + 1) x 127.5
    np.testing.assert_array_equal(known[:-18, cell + 4 :], plain[:-18, 4:])
    with pytest.raises(ValueError, match=r"^truth: expected shape \(2, 3, 4, 4\), got \(2, 2\)"):
        picture.grid(truth=torch.zeros(2, 2))
    alone = inpaint(convolutional(), image(1), torch.eye(4), **FAST)
    with_batch, without = (np.asarray(alone.grid(truth=t)) for t in (truth[:1], truth[0]))
    np.testing.assert_array_equal(with_batch, without)


# --- gradient descent ---------------------------------------------------------------------------


def energies_of(z: Tensor, net: nn.Module) -> Tensor:
    """The energies for noise 0.5 of ``(..., 3)``, computed directly."""
    with torch.no_grad():
        residual = (net(z) - VECTOR)[..., torch.tensor(VECTOR_MASK).bool()].double()
    return 2.0 * (residual**2).sum(-1)


def starts_of(count: int, seed: int = 0) -> Tensor:
    stream = hmc.noise_stream(seed, 1, torch.device("cpu"))
    return reference.initial_latents(stream, count, 3, torch.float32)[0]


def descend(G: Any = None, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "x_obs": VECTOR, "mask": VECTOR_MASK, "noise_std": 0.5, "steps": 30, "learning_rate": 0.02,
    }  # fmt: skip
    return gradient_descent(mlp() if G is None else G, **gathered(arguments | changes))


def test_gradient_descent_is_the_written_one() -> None:
    net = mlp().double()
    z = starts_of(1).double().requires_grad_()
    seen = torch.tensor(VECTOR_MASK).bool()
    first = descend(net, steps=1, learning_rate=1e-12).latents[0]
    torch.testing.assert_close(first, z.detach(), rtol=1e-6, atol=1e-6)
    z = first.clone().requires_grad_()
    for _ in range(30):
        energy = 2.0 * ((net(z) - VECTOR)[:, seen] ** 2).sum()
        (grad,) = torch.autograd.grad(energy, z)
        z = (z - 0.02 * grad).detach().requires_grad_()
    found = descend(net)
    torch.testing.assert_close(found.latents[0], z.detach(), rtol=1e-8, atol=1e-10)
    assert found.energies.item() < energies_of(first, net).item()
    torch.testing.assert_close(found.energies[0], energies_of(found.latents[0], net))
    torch.testing.assert_close(found.images[0], net(found.latents[0]).detach())


@pytest.mark.parametrize(("starts", "runs"), [(1, 1), (40, 1), (40, 3), (300, 2)])
def test_the_best_of_k_starts_is_the_one_of_lowest_energy(starts: int, runs: int) -> None:
    found = descend(starts=starts, runs=runs, steps=1, learning_rate=1e-12)
    draws = starts_of(starts * runs).reshape(runs, starts, 3)
    chosen = energies_of(draws, mlp()).argmin(1)
    expected = draws[torch.arange(runs), chosen]
    torch.testing.assert_close(found.latents[0], expected, rtol=1e-5, atol=1e-6)


def test_each_observation_has_its_own_best_start() -> None:
    x = torch.stack([VECTOR, -VECTOR])
    found = descend(x_obs=x, starts=50, steps=1, learning_rate=1e-12)
    stream = hmc.noise_stream(0, 2, torch.device("cpu"))
    draws = reference.initial_latents(stream, 50, 3, torch.float32)
    with torch.no_grad():
        outputs = mlp()(draws)
    seen = torch.tensor(VECTOR_MASK).bool()
    chosen = ((outputs - x[:, None])[..., seen] ** 2).sum(-1).argmin(1)
    torch.testing.assert_close(
        found.latents[:, 0], draws[torch.arange(2), chosen], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("starts", [1, 40])
def test_cost_counts_forwards_and_gradients(starts: int) -> None:
    forwards, gradients = 0, 0

    def G(z: Tensor) -> Tensor:
        nonlocal forwards, gradients
        if torch.is_grad_enabled():
            gradients += len(z)
        else:
            forwards += len(z)
        return torch.tanh(z @ torch.ones(3, 5))

    none = descend(G, latent_shape=3, starts=starts, steps=1)
    base_forwards, base_gradients = forwards, gradients
    many = descend(G, latent_shape=3, starts=starts, steps=8)
    # Seven more steps take seven more gradients, each at the cost of 2. The checks of G cost the
    # same in both runs.
    assert gradients - 2 * base_gradients == 7
    assert many.cost - none.cost == 2 * 7
    scored = forwards - base_forwards - 4 - 1 - 1  # without the two checks and the outputs
    assert scored == (40 if starts == 40 else 0)
    assert many.cost == scored + 2 * (8 + 1)


def test_cost_is_that_of_one_run() -> None:
    assert descend(runs=5).cost == descend(runs=1).cost


@pytest.mark.parametrize("starts", [1, 200])
def test_a_start_that_is_not_finite_is_never_the_best(starts: int) -> None:
    net = mlp()

    def G(z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > 1.5, torch.nan, net(z))  # NaN for 7 % of the prior draws

    found = descend(G, latent_shape=3, starts=starts, steps=2, learning_rate=1e-3)
    assert found.energies.isfinite().all()
    assert found.images.isfinite().all()


def test_descent_is_a_function_of_the_seed() -> None:
    assert torch.equal(descend(seed=3).latents, descend(seed=3).latents)
    assert not torch.equal(descend(seed=3).latents, descend(seed=4).latents)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: "),
        ({"starts": 0}, ValueError, "starts: "),
        ({"runs": 0}, ValueError, "runs: "),
        ({"learning_rate": 0.0}, ValueError, "learning_rate: "),
        ({"learning_rate": math.nan}, ValueError, "learning_rate: "),
        ({"learning_rate": math.inf}, ValueError, "learning_rate: "),
        ({"learning_rate": "fast"}, (TypeError, ValueError), "learning_rate: "),
        ({"seed": -1}, ValueError, "seed: "),
        ({"noise_std": 0.0}, ValueError, "noise_std: "),
        ({"mask": [1, 0]}, ValueError, "mask: "),
        ({"x_obs": random(4)}, ValueError, "x_obs: "),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_descent_names_the_argument_at_fault(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        descend(**changes)


@pytest.mark.parametrize("max_batch", [0, -1, 1.5], ids=repr)
def test_descent_checks_max_batch(max_batch: Any) -> None:
    calls = 0

    def G(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert calls < 1000, "endless calls of G"
        return torch.tanh(z @ torch.ones(3, 5))

    with pytest.raises(ValueError, match="max_batch: "):
        descend(G, latent_shape=3, max_batch=max_batch)

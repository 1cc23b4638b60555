"""The front door under random input: a correct result, or a refusal that names the argument.

Three kinds of search, all over tiny generators and budgets. Valid problems in every form that data
and settings come in must give what an independent computation gives. Every keyword is given every
wrong value of a list. And problems with several things wrong at once, in a process of their own, so
that a crash of the interpreter would be a failed test and not the end of pytest.

Examples are the same in every run. ``COGEN_FAST_PROPERTY_EFFORT=20 pytest tests/`` makes 20 times
as many of these, new ones every time.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from runs import assert_same
from searches import EFFORT, limited, search
from torch import Tensor, nn

from cogen_fast import (
    AveragePool,
    DiagnosisWarning,
    Mask,
    Result,
    Stride,
    cogenerate,
    inpaint,
    super_resolve,
)
from cogen_fast.methods.settings import OPTIONS, keywords

pytestmark = pytest.mark.usefixtures("one_thread")

POPULATION = 16  # particles of a population, as `cogenerate` documents
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10}
EPS[torch.bfloat16] = 2.0**-7
FRONT_DOOR = (cogenerate, inpaint, super_resolve)
FIELDS = set(OPTIONS)
KEYWORDS = [*inspect.signature(cogenerate).parameters, *sorted(FIELDS)]
ARGUMENTS = {name for f in FRONT_DOOR for name in inspect.signature(f).parameters} - {"options"}
ARGUMENTS |= FIELDS
# Energies that are not finite at the start are refused under this name, with the number of the
# chain.
START = "energy"

Array = npt.NDArray[Any]


def called(call: Callable[..., Result], G: Any, options: dict[str, Any]) -> Result:
    """The result of an entry point; options that belong to a method are put into its settings."""
    method = options.get("method")
    if method is None or isinstance(method, str):
        return call(G, **keywords(options))
    return call(G, **{name: value for name, value in options.items() if name not in FIELDS})


# --- generators ---------------------------------------------------------------------------------


class Images(nn.Module):
    """Transposed convolutions with batch norm, ``(n, d, 1, 1)`` to images of any small size."""

    def __init__(self, latent: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = shape
        self.first = nn.ConvTranspose2d(latent, 3, (height, width))
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.ConvTranspose2d(3, channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.last(torch.relu(self.norm(self.first(z)))))


class Vectors(nn.Module):
    """Two dense layers, ``(n, d)`` to outputs of any small shape."""

    def __init__(self, latent: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(latent, 3), nn.Linear(3, math.prod(shape))
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(z))).reshape(-1, *self.shape)


def generator(latent: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> nn.Module:
    """A generator with random weights, some of them frozen; most layers are in training mode."""
    G = (Images if len(shape) == 3 else Vectors)(latent, shape)
    numbers = torch.Generator().manual_seed(seed)
    for i, parameter in enumerate(G.parameters()):
        parameter.data = 0.7 * torch.randn(parameter.shape, generator=numbers)
        parameter.requires_grad_((seed >> i) % 2 == 0)
    for i, module in enumerate(G.modules()):
        module.training = (seed >> i) % 3 != 0
    return G.to(dtype)


def normals(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- forms that data come in --------------------------------------------------------------------


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], -1)[..., 0]


def permuted(x: Tensor) -> Tensor:
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


def lazily_negated(x: Tensor) -> Tensor:
    """Torch negates the imaginary part of a conjugate when it is read, not before."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def made_in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def read_only(x: Tensor) -> Array:
    array = x.numpy().copy()
    array.flags.writeable = False
    return array


def flipped(x: Tensor) -> Array:
    array = x.numpy()
    return np.flip(np.ascontiguousarray(np.flip(array)))


TORCH_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda x: x,
    "strided": strided,
    "permuted": permuted,
    "inference": made_in_inference_mode,
}
FLOAT_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "requires-grad": lambda x: x.clone().requires_grad_(),
}
NEGATED_FORMS: dict[str, Callable[[Tensor], Any]] = {"lazily-negated": lazily_negated}
NUMPY_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "array": lambda x: x.numpy().copy(),
    "fortran": lambda x: np.asfortranarray(x.numpy()),
    "flipped": flipped,
    "big-endian": lambda x: x.numpy().astype(x.numpy().dtype.newbyteorder(">")),
    "read-only": read_only,
    "list": lambda x: x.tolist(),
}


def forms_for(dtype: torch.dtype) -> dict[str, Callable[[Tensor], Any]]:
    forms = dict(TORCH_FORMS)
    if dtype.is_floating_point:
        forms |= FLOAT_FORMS
    if dtype in (torch.float32, torch.float64):
        forms |= NEGATED_FORMS
    if dtype != torch.bfloat16:
        forms |= NUMPY_FORMS
    return forms


# --- valid problems -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A valid call, the same call in its plainest form, and what its answer is computed from.

    ``target``, ``observed`` and ``weight`` are ``(B, *measured_shape)``; ``sigma`` too, None where
    a weight was given; ``measure`` reads outputs.
    """

    call: Callable[..., Result]
    arguments: dict[str, Any]
    plain: dict[str, Any]
    G: nn.Module
    latent: int
    shape: tuple[int, ...]
    target: Tensor
    observed: Tensor | None
    weight: Array
    sigma: Array | None
    measure: Callable[[Array], Array]
    notes: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        return {k: v for k, v in self.arguments.items() if k not in ("x_obs", "mask", "image")}

    def __repr__(self) -> str:
        return f"{self.call.__name__}({self.notes}, {self.arguments})"


def pooled(factor: int) -> Callable[[Array], Array]:
    def measure(x: Array) -> Array:
        h, w = x.shape[-2] // factor, x.shape[-1] // factor
        return x.reshape(*x.shape[:-2], h, factor, w, factor).mean((-3, -1))

    return measure


def every(factor: int) -> Callable[[Array], Array]:
    return lambda x: x[..., ::factor, ::factor]


@st.composite
def broadcastable(draw: st.DrawFn, shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape`` or to ``(batch, *shape)``."""
    if draw(st.booleans()):
        first = draw(st.sampled_from([1, batch]))
        return (first, *(draw(st.sampled_from([1, n])) for n in shape))
    kept = draw(st.integers(0, len(shape)))
    return tuple(draw(st.sampled_from([1, n])) for n in shape[len(shape) - kept :])


def spread_over(value: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    return value.broadcast_to((batch, *shape))


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...], batch: int) -> tuple[Any, Tensor, bool]:
    """A mask as users write it, as bool over the batch, and whether some row observes nothing."""
    size = draw(broadcastable(shape, batch))
    fill = draw(st.sampled_from(["some", "some", "some", "all", "none"]))
    seen = normals(size, draw(st.integers(0, 99))) > -0.3
    if fill != "some":
        seen = torch.full(size, fill == "all")
    if len(shape) == 3 and batch == shape[0] and size == (batch, *shape[1:]):
        seen, size = seen[None], (1, *size)  # without a batch it could be one for each observation
    dtype = draw(
        st.sampled_from(
            [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64]
        )
    )
    form = draw(st.sampled_from(sorted(forms_for(dtype)))) if size else "tensor"
    value = forms_for(dtype)[form](seen.to(dtype))
    if draw(st.booleans()):
        value = Mask(value)
    rows = seen.reshape(1, -1) if seen.ndim <= len(shape) else seen.flatten(1)
    return value, spread_over(seen, batch, shape), not bool(rows.any(1).all())


@st.composite
def noises(
    draw: st.DrawFn, shape: tuple[int, ...], batch: int
) -> tuple[dict[str, Any], Array, Array | None]:
    """``noise_std`` or ``weight`` in some form, and weights and deviations in full."""
    name = draw(st.sampled_from(["noise_std", "weight"]))
    size = draw(broadcastable(shape, batch)) if draw(st.booleans()) else ()
    exponent = draw(st.integers(-1, 1))
    values = 10.0**exponent * (0.5 + normals(size, draw(st.integers(0, 99))).abs())
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16]))
    form = draw(st.sampled_from(sorted(forms_for(dtype))))
    values = values.to(dtype)
    full = spread_over(values.double(), batch, shape).numpy()
    value = forms_for(dtype)[form](values)
    if name == "weight":
        return {"weight": value}, full, None
    return {"noise_std": value}, 0.5 / full**2, full


def shaped_like(latent: int) -> st.SearchStrategy[Any]:
    return st.sampled_from([None, latent, (latent,), [latent]])


ADAPTIVE = {
    "chains": st.integers(1, 20),
    "budget": st.integers(1, 40),
    "populations": st.integers(1, 3),
    "evidence": st.sampled_from(["consistent", "frozen"]),
    "target_cess": st.floats(0.01, 0.99),
    "mass": st.sampled_from(["curvature", "identity"]),
    "hmc_steps": st.integers(1, 3),
    "leapfrog_steps": st.integers(1, 4),
    "step_size": st.floats(1e-3, 3.0),
}
PAPER = {
    "chains": st.integers(1, 8),
    "hmc_steps": st.integers(1, 2),
    "step_size": st.floats(1e-3, 3.0),
    "adaptation": st.sampled_from(["published", "per-chain", None]),
    "form": st.sampled_from(["posterior", "paper"]),
}
COMMON = {
    "seed": st.integers(0, 2**64 - 1),
    "max_batch": st.integers(1, 50),
    "backend": st.sampled_from(["auto", "native", "reference"]),
    "keep_trace": st.booleans(),
    "polish": st.integers(0, 2),
    "device": st.sampled_from(["cpu", None]),
}


@st.composite
def some_of(draw: st.DrawFn, options: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    names = draw(st.sets(st.sampled_from(sorted(options)), max_size=5))
    return {name: draw(options[name]) for name in sorted(names)}


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        names = ["sigmoid", "sigmoid-raw", "linear", "geometric"]
        return {"ais_steps": draw(st.integers(1, 3)), "schedule": draw(st.sampled_from(names))}
    values = sorted(draw(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3)))
    return {"schedule": draw(st.sampled_from([tuple, np.array, torch.tensor]))(values)}


@st.composite
def run_options(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a short run of either method, whole numbers as Python's or as NumPy's."""
    chosen = draw(some_of(COMMON))
    if draw(st.booleans()):
        chosen |= {"chains": 8, "budget": 20} | draw(some_of(ADAPTIVE))
        if draw(st.booleans()):
            chosen["method"] = "adaptive"
    else:
        chosen |= {"method": "paper", "leapfrog_steps": draw(st.integers(1, 2))}
        chosen |= draw(some_of(PAPER)) | draw(schedules())
    if draw(st.booleans()):
        whole = [k for k, v in chosen.items() if isinstance(v, int) and not isinstance(v, bool)]
        chosen |= {k: (np.uint64 if k == "seed" else np.int64)(chosen[k]) for k in whole}
    return chosen | {"progress": False}


def data_of(draw: st.DrawFn, batch: int, shape: tuple[int, ...], repeated: bool) -> Tensor:
    """Values in [-1, 1] or far outside; all rows are equal where they must share memory."""
    values = torch.tanh(normals((1 if repeated else batch, *shape), draw(st.integers(0, 99))))
    return values.expand(batch, *shape)


def shape_of(draw: st.DrawFn, image: bool) -> tuple[int, ...]:
    """The shape of an output."""
    if not image:
        return draw(st.sampled_from([(1,), (2,), (5,), (9,), (2, 3), (1, 2, 1, 2)]))
    sides = [(1, 1), (1, 4), (2, 2), (4, 2), (4, 4), (3, 5)]
    height, width = draw(st.sampled_from(sides))
    return draw(st.integers(1, 3)), height, width


def options_of(draw: st.DrawFn, latent: int, batch: int, image: bool) -> dict[str, Any]:
    """Options of a run, the form of a latent and the numbers of observations among them."""
    options = {"polish": 0} | draw(run_options())  # some front doors have "auto" as their default
    options["latent_shape"] = (latent, 1, 1) if image else draw(shaped_like(latent))
    if image and draw(st.booleans()):
        options["latent_shape"] = None
    if draw(st.booleans()):
        ids = draw(
            st.lists(st.integers(0, 2**32 // 3 - 1), min_size=batch, max_size=batch, unique=True)
        )
        options["observation_ids"] = draw(st.sampled_from([list, tuple, np.array]))(ids)
    return options


def scaled_data(
    draw: st.DrawFn, dtype: torch.dtype, batch: int, measured: tuple[int, ...]
) -> tuple[str, float, Tensor]:
    """The form in which data are given, their scale, and the data, for a generator of ``dtype``."""
    given_dtype = draw(
        st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
    )
    forms = forms_for(given_dtype)
    form = draw(st.sampled_from([*sorted(forms), "expanded"]))
    scale = draw(st.sampled_from([1.0, 1.0, 1.0, 30.0, 1e4, 1e30, 1e140]))
    if torch.float16 in (given_dtype, dtype):
        scale = min(scale, 30.0)  # beyond it float16 gradients overflow
    elif {given_dtype, dtype} != {torch.float64}:
        scale = min(scale, 1e30)
    return form, scale, (scale * data_of(draw, batch, measured, form == "expanded")).to(given_dtype)


def measured_by(
    draw: st.DrawFn, task: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], Callable[[Any], Any], int]:
    """The shape of what is measured, the measurement, and the factor of its resolution."""
    if task not in ("pool", "stride"):
        return shape, lambda x: x, 1
    height, width = shape[1:]
    whole = [k for k in (1, 2, 4) if height % k == 0 and width % k == 0]
    factor = draw(st.sampled_from(whole if task == "pool" else [1, 2, 3, 7]))
    measured = (shape[0], -(-height // factor), -(-width // factor))
    return measured, pooled(factor) if task == "pool" else every(factor), factor


def at_low_resolution(arguments: dict[str, Any], task: str, factor: int) -> dict[str, Any]:
    """The arguments of `cogenerate` as those of `super_resolve`."""
    others = {name: value for name, value in arguments.items() if name not in ("mask", "x_obs")}
    how = "average" if task == "pool" else "stride"
    return others | {"low_res": arguments["x_obs"], "factor": factor, "downsample": how}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A valid problem: every argument in some form, and the answer's ingredients."""
    image = draw(st.booleans())
    shape = shape_of(draw, image)
    latent = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, *EPS]))
    G = generator(latent, shape, dtype, draw(st.integers(0, 999)))
    task = draw(
        st.sampled_from(["cogenerate", "inpaint", "pool", "stride"] if image else ["vector"])
    )
    batch = draw(st.integers(1, 3))
    options = options_of(draw, latent, batch, image)

    measured, measure, factor = measured_by(draw, task, shape)
    form, scale, x = scaled_data(draw, dtype, batch, measured)
    given_dtype, forms = x.dtype, forms_for(x.dtype)
    target = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    mask: Any = None
    observed: Tensor | None = None
    nothing = False
    if task in ("cogenerate", "inpaint", "vector"):
        mask, observed, nothing = draw(masks(measured, batch))
        junk = draw(st.sampled_from([None, math.nan, math.inf, -math.inf, 1e30, 7.0]))
        if junk is not None and form != "expanded":
            x = torch.where(observed, x, torch.tensor(junk, dtype=given_dtype))
        target = torch.where(observed, target, 0.0)

    noise, weight, sigma = draw(noises(measured, batch))
    plain_image = len(measured) == 3 and bool((target.abs() <= 1.0).all())
    if plain_image and draw(st.booleans()):
        full = np.full((batch, *measured), 0.1)
        noise, weight, sigma = {}, 0.5 / full**2, full
    if batch == 1 and draw(st.booleans()):
        x = x[0]
    data = x if form == "expanded" else forms[form](x)
    name = {"inpaint": "image"}.get(task, "x_obs")
    plain = {k: int(v) if isinstance(v, np.integer) else v for k, v in options.items()}
    plain |= {"x_obs": target, "mask": observed}
    if noise:
        plain |= (
            {"weight": torch.tensor(weight)}
            if sigma is None
            else {"noise_std": torch.tensor(sigma)}
        )
    arguments = options | noise | {name: data, "mask": mask}
    call: Callable[..., Result] = {"inpaint": inpaint}.get(task, cogenerate)  # type: ignore[dict-item]
    if task in ("pool", "stride"):
        operator = (AveragePool if task == "pool" else Stride)(factor)
        plain["mask"] = arguments["mask"] = operator
        if draw(st.booleans()):
            call = super_resolve
            arguments = at_low_resolution(arguments, task, factor)
    notes = [task, f"{latent} to {shape}", str(dtype), f"{given_dtype} {form}", f"scale {scale}"]
    if nothing:
        notes.append("nothing observed")
    return Case(
        call, arguments, plain, G, latent, shape, target, observed, weight, sigma, measure, notes
    )


# --- what must hold -----------------------------------------------------------------------------


def globals_now() -> tuple[Any, ...]:
    """Global state that a library must not change: random states and torch's switches."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return (
        torch.get_rng_state().numpy().tobytes(),
        (name, np.asarray(keys).tobytes(), position, has_gauss, gauss),
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
    )


def module_now(G: Any) -> tuple[Any, ...]:
    """Weights, modes, gradient flags and gradients of a module."""
    if not isinstance(G, nn.Module):
        return ()
    weights = {k: v.detach().double().numpy().tobytes() for k, v in G.state_dict().items()}
    modes = [m.training for m in G.modules()]
    return weights, modes, [(p.requires_grad, p.grad is None) for p in G.parameters()]


def contents(value: Any) -> Any:
    """A value of the inputs that changes if one of them is written to."""
    if isinstance(value, Mask):
        value = value.mask
    if isinstance(value, Tensor) and value.device.type == "cpu" and not value.is_sparse:
        value = value.detach().clone().resolve_neg()
        return repr(value.tolist())
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return repr(value) if isinstance(value, list | tuple) else None


@contextmanager
def nothing_changes(G: Any, arguments: dict[str, Any]) -> Iterator[None]:
    """Assert that the body changes neither global state nor G nor inputs, even if it raises."""
    before = globals_now(), module_now(G), {k: contents(v) for k, v in arguments.items()}
    yield
    after = globals_now(), module_now(G), {k: contents(v) for k, v in arguments.items()}
    assert after == before


def assert_sound(result: Result) -> None:
    """Assert what holds for every result."""
    batch, chains = result.energies.shape
    assert result.images.shape[:2] == result.latents.shape[:2] == (batch, chains)
    assert result.energies.dtype == torch.float64
    assert result.latents.dtype == result.images.dtype
    for values in (result.images, result.latents, result.energies):
        assert values.isfinite().all()
    assert (result.energies >= 0).all()
    assert result.complete
    for name in ("completed", "log_weights", "log_normaliser", "log_evidence"):
        assert (getattr(result, name) is None) == (name in result.reasons), name
    if result.log_weights is not None:
        assert result.log_weights.isfinite().all()
        weights = result.weights
        torch.testing.assert_close(weights.sum(-1), torch.ones(batch).double(), rtol=0, atol=1e-12)
        ess = result.effective_sample_size
        assert ess is not None
        assert ((ess > 1 - 1e-9) & (ess < chains + 1e-9)).all()
    if result.log_normaliser is not None:
        # Energies are not negative, so that no weight and no mean weight is above 1.
        assert (result.log_normaliser <= 1e-9).all()
    assert ((result.betas >= 0) & (result.betas <= 1)).all()
    assert (result.betas.diff(dim=0) >= 0).all()
    for rates in (result.acceptance,):
        seen = rates[~rates.isnan()]
        assert ((seen >= 0) & (seen <= 1)).all()
    steps = result.step_size[~result.step_size.isnan()]
    assert (steps > 0).all()
    assert len(result.betas) == len(result.acceptance) == len(result.leapfrog_steps)
    assert (result.non_finite >= 0).all()
    json.dumps(result.summary())
    assert all(isinstance(sentence, str) for sentence in result.diagnose())
    assert repr(result).startswith("Result: ")
    for values in (result.mean(), result.std(), result.best_images):
        assert values.shape == (batch, *result.images.shape[2:])
        assert values.isfinite().all()


def assert_right(case: Case, result: Result) -> None:
    """Compare shapes and dtypes with the documented ones, and energies with those of NumPy."""
    options, batch = case.options, len(case.target)
    chains = options.get("chains", 4) * options.get("populations", 1)
    dtype = next(case.G.parameters()).dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert result.images.shape == (batch, chains, *case.shape)
    assert result.latents.shape == (batch, chains, case.latent)
    assert result.latents.dtype == result.images.dtype == result.x_obs.dtype == wide
    assert torch.equal(result.x_obs, case.target)
    assert_energies(case, result, wide)
    assert_completed(case, result)
    assert_constant(case, result)
    assert_optional(case, result)


def assert_energies(case: Case, result: Result, wide: torch.dtype) -> None:
    dtype = next(case.G.parameters()).dtype
    rows = result.latents.flatten(0, 1).to(dtype)
    if len(case.shape) == 3:
        rows = rows[..., None, None]
    with torch.no_grad():
        direct = copy.deepcopy(case.G).eval()(rows).to(wide).reshape(result.images.shape)
    # Batches of other sizes are rounded differently in every layer.
    slack = 8.0 * EPS[dtype] * float(direct.abs().max())
    torch.testing.assert_close(result.images, direct, rtol=0.0, atol=slack)

    read = case.measure(result.images.double().numpy())
    residual = read - case.target.double().numpy()[:, None]
    bound = slack + 4.0 * EPS[wide] * (np.abs(read) + np.abs(case.target.double().numpy())[:, None])
    weight = case.weight
    if case.observed is not None:
        weight = np.where(case.observed.numpy(), weight, 0.0)
    axes = tuple(range(2, residual.ndim))
    energy = (weight[:, None] * residual**2).sum(axes)
    slack_of_energy = (weight[:, None] * (2.0 * np.abs(residual) + bound) * bound).sum(axes)
    error = np.abs(energy - result.energies.numpy())
    # The last term is for weights and squares so small that they vanish in the outputs' type.
    assert (error <= slack_of_energy + 8.0 * EPS[wide] * energy + 1e-30).all()


def assert_completed(case: Case, result: Result) -> None:
    if case.observed is None:
        assert result.completed is None and result.observed is None
    else:
        assert result.observed is not None and result.completed is not None
        assert torch.equal(result.observed, case.observed)
        seen = case.observed[:, None].expand(result.images.shape)
        pasted = case.target[:, None].expand(result.images.shape)
        assert torch.equal(result.completed[seen], pasted[seen])
        assert torch.equal(result.completed[~seen], result.images[~seen])


def assert_constant(case: Case, result: Result) -> None:
    if result.log_evidence is not None:
        assert result.log_normaliser is not None and case.sigma is not None
        logs = np.log(2.0 * math.pi * case.sigma**2)
        if case.observed is not None:
            logs = np.where(case.observed.numpy(), logs, 0.0)
        constant = -0.5 * logs.reshape(len(case.target), -1).sum(-1)
        found = (result.log_evidence - result.log_normaliser).numpy()
        scale = np.abs(result.log_normaliser.numpy()) + np.abs(constant) + 1.0
        assert (np.abs(found - constant) <= 1e-12 * scale).all()


def assert_optional(case: Case, result: Result) -> None:
    options, batch = case.options, len(case.target)
    weightless = options.get("form") == "paper"
    assert (result.log_weights is None) == (weightless or runs_alone(options))
    if options.get("polish", 0) > 0:
        assert result.fit_images is not None and result.fit_energies is not None
        assert result.fit_images.shape == result.images.shape
        started = result.energies.sort(-1).values[:, : result.fit_energies.shape[1]]
        assert (result.fit_energies <= started * (1.0 + 1e-5) + 1e-6).all()
    else:
        assert result.fit_images is result.fit_energies is None
    trace = result.trace
    if options.get("keep_trace", False):
        assert trace is not None and trace.isfinite().all()
        assert trace.shape[1] == batch and trace.shape[3] == case.latent
    else:
        assert trace is None


def runs_alone(options: dict[str, Any]) -> bool:
    """Whether the chains are too few for a population, and the budget too small to run more."""
    chains, budget = options.get("chains", POPULATION), options.get("budget")
    if options.get("method") == "paper" or budget is None or chains >= POPULATION:
        return False
    runs = 2 if options.get("evidence") == "frozen" else 1
    return bool((budget - options.get("polish", 0)) * chains < runs * 30 * POPULATION)


def expected_warnings(case: Case) -> set[str]:
    whole = case.notes[0] == "inpaint" and bool(case.observed.all())
    expected = {"mask"} if whole or "nothing observed" in case.notes else set()
    if case.options.get("form") == "paper":
        schedule = case.options["schedule"]
        ends_at_one = (
            schedule != "sigmoid-raw" if isinstance(schedule, str) else schedule[-1] == 1.0
        )
        expected |= {"form"} if ends_at_one else set()
    return expected


@contextmanager
def counted_gradients(G: nn.Module) -> Iterator[list[int]]:
    """The number of rows whose gradients were computed, in a list."""
    rows = [0]

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows[0] += len(output) if torch.is_grad_enabled() else 0

    handle = G.register_forward_hook(look)
    yield rows
    handle.remove()


def assert_gradients_are_told(case: Case, result: Result, rows: int) -> None:
    """Assert that the result has the right number of gradients, within the budget."""
    options, populations = case.options, case.options.get("populations", 1)
    probes, observations = min(4, options.get("max_batch", 4)), len(case.target)
    rows -= probes  # the checks of G
    chains = options.get("chains", 4)
    particles = result.settings.get("particles", chains)
    told = result.gradients * particles + chains * options["polish"]
    if next(case.G.parameters()).dtype == torch.float16:
        # A look whether gradients overflow, and if so a search among 81 scales by halving.
        looks, rest = divmod(rows - told * observations * populations, probes * observations)
        assert rest == 0 and 1 <= looks <= 9
        rows -= looks * probes * observations
    rows_of_one, rest = divmod(rows, observations * populations)
    assert rest == 0
    assert rows_of_one == told
    if "budget" in options:
        starts = 2 if options.get("evidence") == "frozen" else 1
        assert rows_of_one <= max(options["budget"] * chains, starts * particles)


def wrong_together(options: dict[str, Any]) -> set[str]:
    """Arguments that are valid alone, but not together."""
    frozen, polish = options.get("evidence") == "frozen", options.get("polish", 0)
    wrong: set[str] = set()
    if "budget" in options:
        wrong |= {"polish"} if 0 < options["budget"] <= polish else set()
        wrong |= {"budget"} if frozen and options["budget"] - polish < 2 else set()
        wrong |= {"evidence"} if frozen and runs_alone(options) else set()
    return wrong


def names_in(message: str) -> set[str]:
    return set(re.findall(r"(\w+): ", message)) & (ARGUMENTS | {START})


@pytest.mark.slow
@search(150)
@given(cases())
def test_valid_problems_are_answered_rightly_in_every_form(case: Case) -> None:
    with limited(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DiagnosisWarning)
        if wrong := wrong_together(case.options):
            with pytest.raises(ValueError, match=f"^({'|'.join(wrong)}): "):
                called(case.call, case.G, case.arguments)
            return
        with nothing_changes(case.G, case.arguments), counted_gradients(case.G) as rows:
            result = called(case.call, case.G, case.arguments)
    assert_gradients_are_told(case, result, rows[0])
    # Random data may look as if their range differed from that of the outputs.
    warned = {str(w.message).split(":")[0] for w in caught} - {"x_obs"}
    assert warned == expected_warnings(case)
    assert_sound(result)
    assert_right(case, result)
    # The form of the arguments and the values at hidden places must not change the result.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = called(cogenerate, case.G, case.plain)
    assert_same(result, again, but=("settings", "notes"))


@pytest.mark.slow
@search(40)
@given(cases(), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 99))
def test_what_is_observed_must_be_finite(case: Case, junk: float, place: int) -> None:
    whole = torch.ones_like(case.target, dtype=torch.bool)
    places = (whole if case.observed is None else case.observed).flatten().nonzero().flatten()
    assume(len(places) > 0)
    x = case.target.clone()
    x.view(-1)[places[place % len(places)]] = junk
    # A budget that is too small for frozen choices or for polishing would be refused first.
    arguments = case.plain | {"x_obs": x, "polish": 0}
    arguments.pop("evidence", None)
    message = "^x_obs: expected finite values where observed, got 1 "
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")
        called(cogenerate, case.G, arguments)


# --- wrong values -------------------------------------------------------------------------------


def gradient_tensor() -> Tensor:
    return torch.tensor([0.5, 1.0], requires_grad=True)


KINDS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "word": lambda: "word",
    "no-word": lambda: "",
    "null-byte": lambda: "a\0b",
    "long-word": lambda: 300 * "w",
    "bytes": lambda: b"word",
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "minus-infinity": lambda: -math.inf,
    "minus-one": lambda: -1,
    "zero": lambda: 0,
    "half": lambda: 0.5,
    "three": lambda: 3,
    "tiny": lambda: 1e-300,
    "2^70": lambda: 2**70,
    "10^400": lambda: 10**400,
    "numpy-integer": lambda: np.int64(3),
    "numpy-float": lambda: np.float64(0.5),
    "numpy-float32": lambda: np.float32(0.5),
    "long-double": lambda: np.longdouble(0.5),
    "complex": lambda: 0.5 + 1j,
    "no-list": lambda: [],
    "list": lambda: [1],
    "list-of-halves": lambda: [0.5, 0.5],
    "list-of-words": lambda: ["a", "b"],
    "list-of-none": lambda: [None],
    "ragged": lambda: [[1.0], [2.0, 3.0]],
    "dict": lambda: {"a": 1},
    "set": lambda: {1},
    "array": lambda: np.ones(3),
    "complex-array": lambda: np.array([0.5 + 1j, 1.0]),
    "object-array": lambda: np.array([object()]),
    "tensor": lambda: torch.ones(3),
    "integers": lambda: torch.tensor([5, 5]),
    "requires-grad": gradient_tensor,
    "on-meta": lambda: torch.ones(3, device="meta"),
    "sparse": lambda: torch.ones(3).to_sparse(),
    "object": object,
    "class": lambda: int,
    "function": lambda: lambda: None,
    "module": nn.Identity,
    "path": lambda: Path("no/such/folder/file"),
}
# Where two arguments contradict each other, the other one may be named.
CONTRADICTED = {
    "G": {"latent_shape"},
    "method": {"ais_steps", "budget"},
    "misfit": {"noise_std"},
    "schedule": {"ais_steps"},
}
SHORT = {"chains": 2, "noise_std": 0.5, "progress": False}
SHORT_RUNS: list[dict[str, Any]] = [
    SHORT | {"chains": 16, "budget": 3, "leapfrog_steps": 1},
    SHORT | {"method": "paper", "ais_steps": 1, "leapfrog_steps": 1},
]


def outcome(
    G: Any, arguments: dict[str, Any], call: Callable[..., Result] = cogenerate
) -> set[str]:
    """The names in the error message of the call; none if it gave a sound result."""
    with limited(), nothing_changes(G, arguments), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DiagnosisWarning)
        warnings.filterwarnings("ignore", "(mask|form|x_obs): ", UserWarning)
        try:
            result = called(call, G, arguments)
        except (ValueError, TypeError) as error:
            named = names_in(str(error))
            assert named, f"names no argument: {type(error).__name__}: {error}"
            return named
    assert_sound(result)
    return set()


def assert_refused_by_name_or_sound(name: str, kinds: list[str]) -> None:
    """Each wrong value for the argument, in a short run of each method."""
    for options in SHORT_RUNS:
        for kind in kinds:
            G: Any = generator(3, (5,), torch.float32, 7)
            arguments = {"x_obs": normals((2, 5), 1).float(), "mask": 1} | options
            if name == "G":
                G = KINDS[kind]()
            else:
                arguments[name] = KINDS[kind]()
            try:
                named = outcome(G, arguments)
            except Exception as error:
                raise AssertionError(f"{name}: {kind} in {arguments}") from error
            allowed = {name} | CONTRADICTED.get(name, set())
            assert named <= ARGUMENTS and (not named or named & allowed), (kind, named, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYWORDS)
def test_wrong_values_are_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any word is a valid name of a checkpoint, which would be written here.
    monkeypatch.chdir(tmp_path)
    # True is valid, but compiling takes a minute
    monkeypatch.setattr(torch, "compile", lambda G, **_: G)
    # A class is a valid callback, and what it raises when it is called is its own. The shortest
    # time is valid, and the run then ends before it is complete.
    valid = {("on_temperature", "class"), ("time_limit", "tiny")}
    kinds = [kind for kind in KINDS if (name, kind) not in valid]
    assert_refused_by_name_or_sound(name, kinds)


# --- anything at all ----------------------------------------------------------------------------


def spoilt(G: nn.Module, how: str) -> Any:
    """A generator that should be refused, or whose output is odd."""
    own = torch.Generator().manual_seed(0)  # the global state must not change
    return {
        "noise": lambda z: G(z) + torch.randn((), generator=own),
        "numpy": lambda z: G(z).detach().numpy(),
        "tuple": lambda z: (G(z),),
        "not-finite": lambda z: G(z) / 0.0,
        "constant": lambda z: torch.ones(len(z), 5),
        "one-dimensional": lambda z: G(z).flatten(1).sum(1),
        "complex": lambda z: G(z) * 1j,
        "half": lambda z: G(z).half(),
        "huge": lambda z: 1e30 * G(z),
        "strided": lambda z: torch.stack([G(z)] * 2, -1)[..., 0],
    }[how]


SPOILT = [
    "noise", "numpy", "tuple", "not-finite", "constant", "one-dimensional", "complex", "half",
    "huge", "strided",
]  # fmt: skip
ANY_DTYPE = [
    torch.float16, torch.bfloat16, torch.float32, torch.float32, torch.float64, torch.complex64,
    torch.bool, torch.uint8, torch.int8, torch.int64, torch.uint16, torch.uint64,
    torch.float8_e4m3fn,
]  # fmt: skip
ODD_NUMBERS = [0.0, 1.0, -1.0, 2.0, math.nan, math.inf, -math.inf, 1e30, 1e300, 1e-300, 0.5]
UNHEARD_OF = st.sampled_from(sorted(KINDS))
FACTORS = [1, 2, 2, 3, 4, 0, -1, 2**70, 2.0, "2", None, True, np.int64(2)]


def seldom(draw: st.DrawFn) -> bool:
    return draw(st.integers(0, 5)) == 5


@st.composite
def any_shape(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that fits, a batch of it, one that broadcasts, or one that does not fit."""
    if seldom(draw):
        return tuple(draw(st.lists(st.integers(0, 5), max_size=5)))
    if draw(st.booleans()):
        return draw(st.sampled_from([shape, (1, *shape), (2, *shape)]))
    return draw(broadcastable(shape, 2))


@st.composite
def anything_like_data(draw: st.DrawFn, shape: tuple[int, ...], *, zero_or_one: bool) -> Any:
    """A tensor or array of any dtype, with some odd numbers in any place."""
    size = draw(any_shape(shape))
    dtype = draw(st.sampled_from(ANY_DTYPE if seldom(draw) else list(EPS)))
    values = torch.tanh(normals(size, draw(st.integers(0, 99))))
    if zero_or_one:
        values = (values > 0).double()
    if draw(st.booleans()):
        odd = draw(st.lists(st.sampled_from(ODD_NUMBERS), max_size=3))
        for place, number in enumerate(odd[: values.numel()]):
            values.view(-1)[place] = number
    x = values.to(dtype)
    if dtype in (torch.bfloat16, torch.float8_e4m3fn):
        return x
    forms = [lambda x: x, lambda x: x.numpy().copy(), lambda x: x.tolist(), permuted, flipped]
    return draw(st.sampled_from(forms))(x)


@st.composite
def anything(draw: st.DrawFn) -> tuple[Callable[..., Result], Any, dict[str, Any]]:
    """A call with any number of errors, or none."""
    image = draw(st.booleans())
    shape = (3, 4, 2) if image else (5,)
    G: Any = generator(3, shape, draw(st.sampled_from(list(EPS))), draw(st.integers(0, 99)))
    options = {"noise_std": 0.5} | draw(run_options())
    if seldom(draw):
        options |= draw(some_of(ADAPTIVE | PAPER))
    if seldom(draw):
        options["latent_shape"] = (3, 1, 1) if image else 3
        G = spoilt(G.float(), draw(st.sampled_from(SPOILT)))
    if draw(st.booleans()):
        name = draw(st.sampled_from(["noise_std", "weight"]))
        del options["noise_std"]
        options[name] = draw(anything_like_data(shape, zero_or_one=False))
    while draw(st.integers(0, 2)) == 0:
        name, kind = draw(st.sampled_from(KEYWORDS[3:])), draw(UNHEARD_OF)
        options[name] = KINDS[kind]()
    # A checkpoint would write files; `test_cli_properties` tests that.
    options.pop("checkpoint", None)
    options["progress"] = False
    call = draw(st.sampled_from(FRONT_DOOR if image else [cogenerate]))
    if call is super_resolve:
        factor = draw(st.sampled_from(FACTORS))
        ways = ["average", "stride", "stride", "bicubic", None, 3]
        options |= {"factor": factor, "downsample": draw(st.sampled_from(ways))}
        shape = draw(st.sampled_from([shape, (3, 2, 1), (3, 1, 1)]))
    plain = torch.tanh(normals(shape, 3)).float()
    data = draw(anything_like_data(shape, zero_or_one=False)) if draw(st.booleans()) else plain
    name = {inpaint: "image", super_resolve: "low_res"}.get(call, "x_obs")
    arguments = {name: data} | options
    if call is not super_resolve:
        masked = draw(st.booleans())
        arguments["mask"] = draw(anything_like_data(shape, zero_or_one=True)) if masked else 1
    return call, G, arguments


@search(150)
@given(anything())
def search_anything(problem: tuple[Callable[..., Result], Any, dict[str, Any]]) -> None:
    call, G, arguments = problem
    outcome(G, arguments, call)


# --- what searches have found -------------------------------------------------------------------


def vector_run(G: nn.Module | None = None, **changes: Any) -> set[str]:
    arguments = {"x_obs": normals((5,), 1).float(), "mask": 1} | SHORT_RUNS[0] | changes
    return outcome(generator(3, (5,), torch.float32, 7) if G is None else G, arguments)


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_measurements_without_readable_values_are_refused(kind: str) -> None:
    x = normals((5,), 1).float()
    assert vector_run(x_obs=x.to("meta") if kind == "meta" else x.to_sparse()) == {"x_obs"}


def test_a_generator_without_outputs_is_refused() -> None:
    class Empty(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z)[:, :0]

    assert vector_run(Empty(3, 5), x_obs=torch.zeros(0)) <= {"G", "x_obs"}


def test_observation_ids_are_whole_numbers() -> None:
    x = normals((2, 5), 1).float()
    assert vector_run(x_obs=x, observation_ids=[0.2, 0.7]) == {"observation_ids"}


def test_observation_ids_in_a_tensor_differ() -> None:
    x = normals((2, 5), 1).float()
    assert vector_run(x_obs=x, observation_ids=torch.tensor([5, 5])) == {"observation_ids"}


def test_observation_ids_in_a_narrow_array() -> None:
    ids = np.array([200], dtype=np.uint8)
    assert vector_run(populations=3, observation_ids=ids) == set()


@pytest.mark.parametrize(("backend", "factor"), [("native", 2**63), ("reference", 2**62)])
def test_a_factor_far_beyond_the_image(backend: str, factor: int) -> None:
    G = generator(3, (3, 4, 2), torch.float32, 7)
    how = {"downsample": "stride", "backend": backend}
    arguments = {"low_res": torch.zeros(3, 1, 1), "factor": factor} | SHORT_RUNS[0] | how
    assert outcome(G, arguments, super_resolve) <= {"factor"}


@pytest.mark.parametrize(("name", "value"), [("noise_std", 1e-25), ("weight", 1e39)])
def test_noise_that_overflows_is_named(name: str, value: float) -> None:
    assert vector_run(**{"noise_std": None, name: value}) == {name}


def test_lazily_negated_weights() -> None:
    weight = lazily_negated(torch.tensor(2.0, dtype=torch.float64))
    G = generator(3, (5,), torch.float64, 7)
    assert vector_run(G, noise_std=None, weight=weight) == set()


SEARCHES: dict[str, Callable[[], None]] = {"anything": search_anything}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    """A crash of the interpreter is a failure that shows the last call."""
    command = [sys.executable, "-X", "faulthandler", __file__, name]
    # The current folder is not the checkout's root, where the sources would hide the installed
    # package.
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300 * EFFORT, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-5000:]}"
    assert done.stdout == f"{name}: nothing found\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    SEARCHES[sys.argv[1]]()
    print(f"{sys.argv[1]}: nothing found")

"""The native ops under random input: the definition's result, or a refusal that names the argument.

Shapes, types, layouts and values are random; what is bad reaches the extension in a process of its
own, so that a crash of the interpreter would be a failed test and not the end of pytest.

Examples are the same in every run. ``COGEN_FAST_PROPERTY_EFFORT=20 pytest tests/`` makes 20 times
as many of these, new ones every time.
"""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from implementations import ISAS, instruction_set
from searches import EFFORT, search
from torch import Tensor

from cogen_fast.ops import native, reference
from cogen_fast.ops.philox import NoiseStream, Purpose, uniforms
from cogen_fast.ops.reference import Proposal
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64
# The largest error of a normal draw: absolute where the draw is at most 1, relative above.
NORMAL_ERROR = {torch.float32: 2e-6, F64: 1e-13}
# A bound of a few roundings of the working type, in units of the largest term.
ROUNDING = {torch.float32: 16 * 2.0**-24, F64: 16 * 2.0**-53}
SUM = 1e-13  # bound for float64 sums, which may be added in any order
Arguments = dict[str, Any]


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN, so that an entry that is never written shows."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned_allocate(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            return out.fill_(torch.nan if out.is_floating_point() else 77)

        return poisoned_allocate

    with (
        mock.patch.object(torch, "empty", poisoning(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoning(torch.empty_like)),
    ):
        yield


# --- values and layouts -------------------------------------------------------------------------


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def permuted(x: Tensor) -> Tensor:
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


def off_by_one(x: Tensor) -> Tensor:
    """Contiguous memory that begins one element after an aligned address."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].reshape(x.shape)


def lazily_negated(x: Tensor) -> Tensor:
    """Torch negates the imaginary part of a conjugate when it is read, not before."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


LAYOUTS = {
    "contiguous": lambda x: x,
    "off-by-one": off_by_one,
    "strided": strided,
    "permuted": permuted,
    "lazily-negated": lambda x: lazily_negated(x) if x.is_floating_point() else x,
    "requires-grad": lambda x: x.clone().requires_grad_(x.is_floating_point()),
}
ODD = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e15, -1e15, 1e-30]
SCALES = [1e-3, 1.0, 1.0, 30.0]


@dataclasses.dataclass
class Maker:
    """Draws tensors: values of one scale, some of them odd where that is wanted."""

    draw: st.DrawFn
    odd: bool
    in_place: bool = False

    def layout(self, x: Tensor) -> Tensor:
        names = ["contiguous", "off-by-one"] if self.in_place else sorted(LAYOUTS)
        return LAYOUTS[self.draw(st.sampled_from(names))](x)

    def normals(self, *shape: int, dtype: torch.dtype = F64, scale: float | None = None) -> Tensor:
        seed = self.draw(st.integers(0, 999))
        factor = self.draw(st.sampled_from(SCALES)) if scale is None else scale
        numbers = torch.Generator().manual_seed(seed)
        values = factor * torch.randn(shape, generator=numbers, dtype=F64)
        if self.odd and values.numel():
            for value in self.draw(st.lists(st.sampled_from(ODD), max_size=2)):
                values.view(-1)[self.draw(st.integers(0, values.numel() - 1))] = value
        return self.layout(values.to(dtype))

    def between(self, low: float, high: float, *shape: int, dtype: torch.dtype = F64) -> Tensor:
        numbers = torch.Generator().manual_seed(self.draw(st.integers(0, 999)))
        values = low + (high - low) * torch.rand(shape, generator=numbers, dtype=F64)
        return self.layout(values.to(dtype))

    def flags(self, *shape: int) -> Tensor | None:
        if self.draw(st.booleans()):
            return None
        return self.layout(self.between(0.0, 1.0, *shape) > 0.3)

    def stream(self, observations: int) -> NoiseStream:
        words = st.lists(st.integers(0, 2**32 - 1), min_size=observations, max_size=observations)
        transition, observation = (
            self.layout(torch.tensor(self.draw(words), dtype=torch.int64)) for _ in range(2)
        )
        seed = self.draw(st.sampled_from([0, 1, 2**32 + 5, 2**63, 2**64 - 1]))
        return NoiseStream(seed, transition, observation)


def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """B, N and d: 0, 1, and values just below and above the lengths of vector registers."""
    return (
        draw(st.integers(0, 3)),
        draw(st.integers(0, 5)),
        draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 33])),
    )


@st.composite
def transitions(draw: st.DrawFn, odd: bool, in_place: bool = False) -> Arguments:
    """Arguments of `accept_select`, which has those of the other parts of a transition."""
    make = Maker(draw, odd, in_place)
    b, n, d = sizes(draw)
    dtype = draw(st.sampled_from([torch.float32, F64]))
    with_mass = draw(st.booleans())
    return {
        "latents": make.normals(b, n, d, dtype=dtype),
        "energy": make.normals(b, n),
        "grad": make.normals(b, n, d, dtype=dtype),
        "proposal": Proposal(
            make.normals(b, n, d, dtype=dtype),
            make.normals(b, n, d, dtype=dtype),
            make.normals(b, n),
        ),
        "proposed_energy": make.normals(b, n),
        "proposed_grad": make.normals(b, n, d, dtype=dtype),
        "settings": TransitionSettings(
            beta=make.between(0.0, 1.0, b),
            prior_weight=make.between(0.0, 1.0, b),
            step_size=make.between(1e-3, 1.0, *draw(st.sampled_from([(b,), (b, n)]))),
            inverse_mass=make.between(0.1, 10.0, b, d, dtype=dtype) if with_mass else None,
            active=make.flags(b),
        ),
        "stream": make.stream(b),
    }


def only(arguments: Arguments, *names: str) -> Arguments:
    return {name: arguments[name] for name in names}


@st.composite
def begun(draw: st.DrawFn, odd: bool) -> Arguments:
    return only(draw(transitions(odd)), "latents", "energy", "grad", "settings", "stream")


@st.composite
def continued(draw: st.DrawFn, odd: bool) -> Arguments:
    return only(draw(transitions(odd, in_place=True)), "proposal", "grad", "settings")


@st.composite
def first_draws(draw: st.DrawFn, odd: bool) -> Arguments:
    b, n, d = sizes(draw)
    stream = Maker(draw, odd).stream(b)
    dtype = draw(st.sampled_from([torch.float32, F64]))
    return {"stream": stream, "chains": n, "size": d, "dtype": dtype}


@st.composite
def adaptations(draw: st.DrawFn, odd: bool) -> Arguments:
    make = Maker(draw, odd)
    b, n = draw(st.integers(0, 3)), draw(st.integers(1, 9))
    rates = st.floats(0.0, 1.0)
    low, high = sorted(draw(st.tuples(rates, rates)))
    factors = st.floats(0.5, 2.0)
    rule = AdaptationRule(
        draw(rates), draw(rates), draw(factors), draw(factors), low, high, draw(st.booleans())
    )
    each = (b, n) if rule.per_chain else (b,)
    return {
        "step_size": make.between(1e-3, 1.0, *each) if not odd else make.normals(*each),
        "running_acceptance": make.between(0.0, 1.0, *each) if not odd else make.normals(*each),
        "acceptance_probability": make.between(0.0, 1.0, b, n),
        "active": make.flags(b),
        "rule": rule,
    }


@st.composite
def resamplings(draw: st.DrawFn, odd: bool) -> Arguments:
    make = Maker(draw, odd)
    b, n = draw(st.integers(0, 3)), draw(st.integers(1, 9))
    return {
        "log_weights": make.normals(b, n),
        "uniform": make.between(0.0, 1.0, b),
        "wanted": make.flags(b),
    }


@st.composite
def lots(draw: st.DrawFn, odd: bool) -> Arguments:
    stream = Maker(draw, odd).stream(draw(st.integers(0, 5)))
    return {"stream": stream, "purpose": draw(st.sampled_from(list(Purpose)))}


@st.composite
def misfits(draw: st.DrawFn, odd: bool) -> Arguments:
    make = Maker(draw, odd)
    kind = draw(st.sampled_from(["mask", "pool", "stride"]))
    factor = draw(st.sampled_from([1, 2, 3, 4, 8]))
    c, high, wide = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    if draw(st.integers(0, 9)) == 0:
        high, wide = 35, 61  # more entries than one block of the sum has
    shape: tuple[int, ...] = (c, high * factor, wide * factor)
    measured = c * high * wide
    if kind == "stride":
        shape = (c, (high - 1) * factor + 1, wide * factor)
    if kind == "mask":
        some = [(1,), (7,), (33,), (2, 3), (3, 4, 5), (1, 1, 1, 9), (9001,)]
        shape = draw(st.sampled_from(some))
        measured = torch.Size(shape).numel()
    b, n = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    dtype = draw(st.sampled_from([torch.float32, F64]))
    rows, width = draw(st.sampled_from([1, b])), draw(st.sampled_from([1, measured]))
    mask = None
    if draw(st.booleans()):
        seen = make.between(0.0, 1.0, draw(st.sampled_from([1, b])), measured) > 0.4
        # Any value other than 0 means observed.
        mask = make.layout(seen.to(torch.uint8) * draw(st.sampled_from([1, 255])))
    index = draw(st.lists(st.integers(0, b - 1), min_size=n, max_size=n))
    spec = MisfitSpec(
        kind=kind,  # type: ignore[arg-type]
        output_shape=shape,
        factor=factor,
        target=make.normals(b, measured, dtype=dtype),
        mask=mask,
        weight=make.between(0.1, 10.0, rows, width, dtype=dtype),
    )
    return {
        "x": make.normals(n, *shape, dtype=dtype),
        "spec": spec,
        "observation": make.layout(torch.tensor(index, dtype=torch.int64)),
    }


# --- what agrees --------------------------------------------------------------------------------


def agree(ours: Tensor, exact: Tensor, bound: Tensor | float) -> None:
    """Assert that NaN and infinities are in the same places, and the rest is within bounds."""
    assert ours.shape == exact.shape
    ours, exact = ours.detach().double(), exact.detach().double()
    assert torch.equal(ours.isnan(), exact.isnan())
    endless = exact.isinf()
    assert torch.equal(ours.isinf(), endless)
    assert torch.equal(ours[endless], exact[endless])
    finite = exact.isfinite()
    bounds = torch.as_tensor(bound, dtype=F64).expand(exact.shape)
    error = (ours - exact).abs()
    excess = finite & bounds.isfinite() & (error > bounds)
    assert not excess.any(), f"{error[excess][:3]} above {bounds[excess][:3]}"


def per_entry(values: Tensor) -> Tensor:
    """Values of observations or of chains, in a shape that broadcasts to ``(B, N, d)``."""
    values = values.detach()
    return values[..., None] if values.ndim == 2 else values[:, None, None]


def mass_of(s: TransitionSettings, like: Tensor) -> Tensor:
    ones = like.new_ones(like.shape[0], like.shape[2], dtype=F64)
    return (ones if s.inverse_mass is None else s.inverse_mass.detach().double())[:, None]


def kick_size(z: Tensor, v: Tensor, g: Tensor, s: TransitionSettings, part: float) -> Tensor:
    """The magnitudes of the terms of a kick."""
    z, v, g = (x.detach().double() for x in (z, v, g))
    span = part * per_entry(s.step_size)
    misfit, prior = span * per_entry(s.beta) * g, span * per_entry(s.prior_weight) * z
    return v.abs() + misfit.abs() + prior.abs()


def hamiltonian_size(energy: Tensor, z: Tensor, v: Tensor, s: TransitionSettings) -> Tensor:
    z, v = z.detach().double(), v.detach().double()
    kinetic = 0.5 * (mass_of(s, z) * v * v).sum(-1)
    prior = s.prior_weight.detach()[:, None] * 0.5 * (z * z).sum(-1)
    return (s.beta.detach()[:, None] * energy.detach()).abs() + prior + kinetic


def check_initial_latents(a: Arguments) -> None:
    ours = native.initial_latents(**a)
    exact = reference.initial_latents(a["stream"], a["chains"], a["size"], F64)
    assert ours.dtype is a["dtype"]
    agree(ours, exact, NORMAL_ERROR[a["dtype"]] * exact.abs().clamp(min=1.0))


def check_begin(a: Arguments) -> None:
    ours, exact = native.begin_trajectory(**a), reference.begin_trajectory(**a)
    s, dtype = a["settings"], a["latents"].dtype
    _, n, d = a["latents"].shape
    drawn = reference.normals(a["stream"], Purpose.MOMENTUM, n, d, F64)
    mass = mass_of(s, a["latents"])
    noise_error = NORMAL_ERROR[dtype] * drawn.abs().clamp(min=1.0) / mass.sqrt()
    drawn = drawn / mass.sqrt()
    terms = kick_size(a["latents"], drawn, a["grad"], s, 0.5)
    kicked = noise_error + ROUNDING[dtype] * terms
    agree(ours.momentum, exact.momentum, kicked)
    reach = per_entry(s.step_size) * mass
    size = a["latents"].detach().double().abs() + reach * terms
    agree(ours.position, exact.position, reach * kicked + ROUNDING[dtype] * size)
    start = hamiltonian_size(a["energy"], a["latents"], drawn, s)
    of_noise = (mass * (drawn.abs() + noise_error) * noise_error).sum(-1)
    agree(ours.hamiltonian, exact.hamiltonian, SUM * start + of_noise)


def check_continue(a: Arguments) -> None:
    before, exact = copied(a)["proposal"], copied(a)["proposal"]
    assert native.continue_trajectory(**a) is None
    ours = a["proposal"]
    reference.continue_trajectory(exact, a["grad"].detach(), a["settings"])
    s, dtype = a["settings"], before.position.dtype
    terms = kick_size(before.position, before.momentum, a["grad"], s, 1.0)
    agree(ours.momentum, exact.momentum, ROUNDING[dtype] * terms)
    reach = per_entry(s.step_size) * mass_of(s, before.position)
    size = before.position.double().abs() + reach * terms
    agree(ours.position, exact.position, 2 * ROUNDING[dtype] * size)
    agree(ours.hamiltonian, before.hamiltonian, 0.0)


def check_accept(a: Arguments) -> None:
    ours, exact = native.accept_select(**a), reference.accept_select(**a)
    s, proposal = a["settings"], a["proposal"]
    dtype = proposal.position.dtype
    terms = kick_size(proposal.position, proposal.momentum, a["proposed_grad"], s, 0.5)
    kicked = ROUNDING[dtype] * terms
    mass = mass_of(s, proposal.position)
    end = hamiltonian_size(a["proposed_energy"], proposal.position, terms, s)
    bound = SUM * (end + proposal.hamiltonian.detach().abs())
    bound = bound + (mass * (terms + kicked) * kicked).sum(-1)
    agree(ours.energy_change, exact.energy_change, bound)
    agree(ours.acceptance_probability, exact.acceptance_probability, bound + SUM)
    u = uniforms(a["stream"], Purpose.ACCEPT, proposal.position.shape[1], F64)
    clear = (u - exact.acceptance_probability).abs() > bound + SUM
    assert torch.equal(ours.accepted[clear], exact.accepted[clear])
    keep = ours.accepted[..., None]
    agree(ours.latents, torch.where(keep, proposal.position, a["latents"]), 0.0)
    agree(ours.grad, torch.where(keep, a["proposed_grad"], a["grad"]), 0.0)
    agree(ours.energy, torch.where(ours.accepted, a["proposed_energy"], a["energy"]), 0.0)


def check_adapt(a: Arguments) -> None:
    ours, exact = native.adapt_step_size(**a), reference.adapt_step_size(**a)
    agree(ours[0], exact[0], 1e-13 * exact[0].abs())
    seen = a["acceptance_probability"].detach().abs()
    size = a["running_acceptance"].detach().abs()
    size = size + (seen if a["rule"].per_chain else seen.mean(-1))
    agree(ours[1], exact[1], 1e-13 * size)


def check_ancestors(a: Arguments) -> None:
    ours, exact = native.systematic_ancestors(**a), reference.systematic_ancestors(**a)
    count = ours.shape[1]
    assert ours.dtype is torch.int64
    assert ((ours >= 0) & (ours < count)).all()
    log_weights, uniform = a["log_weights"].detach(), a["uniform"].detach()
    sound = ~torch.softmax(log_weights, -1).isnan().any(-1) & uniform.isfinite()
    upto = torch.softmax(log_weights, -1).cumsum(-1)
    points = (torch.arange(count) + uniform[:, None]) / count * upto[:, -1:]
    gap = (points[..., None] - upto[:, None]).abs().amin(-1)
    clear = sound[:, None] & (gap > 1e-12)
    assert torch.equal(ours[clear], exact[clear])


def check_uniforms(a: Arguments) -> None:
    ours, exact = native.observation_uniforms(**a), reference.observation_uniforms(**a)
    assert torch.equal(ours, exact)


def check_misfit(a: Arguments) -> None:
    ours = native.misfit(**a)
    spec, x, index = a["spec"], a["x"].detach(), a["observation"]
    spec = dataclasses.replace(spec, target=spec.target.detach(), weight=spec.weight.detach())
    exact = reference.misfit(x, spec, index)
    area = spec.factor**2 if spec.kind == "pool" else 1
    wide = dataclasses.replace(spec, target=spec.target.double())
    read = area * reference.measure(x.double().abs(), wide)  # the sum has as many terms
    target = spec.target.double()[index]
    residual = (reference.measure(x.double(), wide) - target).abs()
    error = ROUNDING[x.dtype] * (read + target.abs())
    weight = spec.weight.double().expand(spec.target.shape[0], -1)[index]
    if spec.mask is not None:
        seen = spec.mask.expand(spec.target.shape)[index].bool()
        residual = torch.where(seen, residual, 0.0)
        error = torch.where(seen, error, 0.0)
    each = weight * (2.0 * residual + error) * error + SUM * weight * residual**2
    agree(ours[0], exact[0], each.sum(-1) + ROUNDING[F64] * exact[0].abs())
    slope = 2.0 * weight * (error + ROUNDING[x.dtype] * residual)
    slopes = reference.measure_transpose(slope.expand(residual.shape), wide)
    agree(ours[1], exact[1], slopes)


OPS: dict[str, tuple[Callable[[bool], st.SearchStrategy[Arguments]], Callable[..., None]]] = {
    "initial_latents": (first_draws, check_initial_latents),
    "begin_trajectory": (begun, check_begin),
    "continue_trajectory": (continued, check_continue),
    "accept_select": (transitions, check_accept),
    "adapt_step_size": (adaptations, check_adapt),
    "systematic_ancestors": (resamplings, check_ancestors),
    "observation_uniforms": (lots, check_uniforms),
    "misfit": (misfits, check_misfit),
}


@pytest.mark.parametrize(
    "isa", [*(pytest.param(isa, marks=pytest.mark.slow) for isa in ISAS[:-1]), ISAS[-1]]
)
@pytest.mark.parametrize("op", OPS)
def test_ops_agree_with_their_definition(op: str, isa: str) -> None:
    strategy, check = OPS[op]

    @search(40)
    @given(st.booleans().flatmap(strategy))
    def agrees(arguments: Arguments) -> None:
        with poisoned():
            check(arguments)

    with instruction_set(isa):
        agrees()


# --- bad arguments ------------------------------------------------------------------------------


def leaves(arguments: Arguments) -> dict[str, Any]:
    """Every argument by the name that errors give it, "settings.beta"."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Proposal):
            parts: dict[str, Any] = value._asdict()
        elif dataclasses.is_dataclass(value):
            parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            found[name] = value
            continue
        found |= {f"{name}.{part}": each for part, each in parts.items()}
    return found


def replaced(arguments: Arguments, path: str, value: Any) -> Arguments:
    name, _, part = path.partition(".")
    if not part:
        return arguments | {name: value}
    whole = arguments[name]
    if isinstance(whole, Proposal):
        return arguments | {name: whole._replace(**{part: value})}
    return arguments | {name: dataclasses.replace(whole, **{part: value})}


ANY_DTYPE = [
    torch.float16, torch.bfloat16, torch.float32, F64, torch.complex64, torch.bool, torch.uint8,
    torch.int32, torch.int64,
]  # fmt: skip


def others(value: Any, path: str) -> Iterator[Any]:
    """Values in place of a valid argument, some of which are valid too."""
    if isinstance(value, int) and not isinstance(value, bool | Purpose):
        # The extension would see larger sizes only after they have been allocated.
        yield from (-1, 2**64, 2**64 - 1) if path == "stream.seed" else (-1, 0, 1, 2, 7)
    if not isinstance(value, Tensor):
        return
    value = value.detach().resolve_neg()
    shape = list(value.shape)
    yield value.to("meta")
    yield from (strided(value), permuted(value), off_by_one(value))
    yield from (value.flatten(), value[None], value[..., None], value.new_ones(0))
    for place in range(value.ndim):
        for change in (-1, 1):
            changed = max(0, shape[place] + change)
            yield value.new_ones([*shape[:place], changed, *shape[place + 1 :]])
    yield from (value.to(dtype) for dtype in ANY_DTYPE)
    yield from (None, value.tolist(), value.numpy(), value.new_ones(()), value.to_sparse())
    if value.dtype is torch.int64 and value.numel():
        for number in (-1, 2**32, 2**62, -(2**63)):
            bad = value.clone()
            bad[-1] = number
            yield bad


def names_of(arguments: Arguments) -> set[str]:
    """Names with which a refusal may begin: an argument's name in Python or in the extension."""
    paths = set(leaves(arguments)) | {"chains, size"}
    return paths | {path.rpartition(".")[2] for path in paths} | {"observations", "chains", "size"}


def copied(arguments: Arguments) -> Arguments:
    """The same call with copies of the tensors that change in place."""
    if "proposal" not in arguments:
        return arguments
    proposal = arguments["proposal"]
    return arguments | {"proposal": Proposal(*(copy.deepcopy(x) for x in proposal))}


def contents(arguments: Arguments) -> list[Any]:
    return [
        v.detach().resolve_neg().numpy().tobytes()
        if isinstance(v, Tensor) and numpy_has(v)
        else None
        for v in leaves(arguments).values()
    ]


def numpy_has(value: Tensor) -> bool:
    dense = value.layout is torch.strided and not value.is_meta
    return dense and value.dtype is not torch.bfloat16


def assert_refused_by_name_or_right(op: str, arguments: Arguments) -> bool:
    """Whether the call was refused, which must not change any argument."""
    before = contents(arguments)
    try:
        OPS[op][1](arguments)
    except (ValueError, TypeError) as error:
        named = str(error).split(":")[0]
        # Outputs without observations are refused under the name "misfit", see below.
        nothing = {"misfit"} if op == "misfit" else set()
        assert named in names_of(arguments) | nothing, f"{op}: {error}"
        assert contents(arguments) == before
        return True
    return False


def in_use(op: str, arguments: Arguments) -> list[str]:
    """The arguments that an op looks at."""
    unused = {
        "continue_trajectory": {"proposal.hamiltonian", "settings.active"},
        "begin_trajectory": {"settings.active"},
    }
    return sorted(leaves(arguments).keys() - unused.get(op, set()))


def search_one_by_one() -> None:
    """Replace each argument of an op by each of its `others`."""
    for op, (strategy, check) in OPS.items():

        @search(6)
        @given(strategy(False))
        def refused_or_right(arguments: Arguments) -> None:
            check(copied(arguments))  # noqa: B023
            for path in in_use(op, arguments):  # noqa: B023
                for other in others(leaves(arguments)[path], path):
                    call = replaced(copied(arguments), path, other)
                    assert_refused_by_name_or_right(op, call)  # noqa: B023

        refused_or_right()


@st.composite
def invalid_calls(draw: st.DrawFn) -> tuple[str, Arguments]:
    op = draw(st.sampled_from(sorted(OPS)))
    arguments: Arguments = draw(OPS[op][0](False))
    good = leaves(arguments)
    paths = st.lists(st.sampled_from(in_use(op, arguments)), min_size=2, max_size=2, unique=True)
    for path in draw(paths):
        choices = list(others(good[path], path))
        if choices:
            arguments = replaced(arguments, path, draw(st.sampled_from(choices)))
    return op, arguments


@search(100)
@given(invalid_calls())
def search_two_at_once(call: tuple[str, Arguments]) -> None:
    event("refused" if assert_refused_by_name_or_right(*call) else "answered")


# --- the extension itself -----------------------------------------------------------------------


@search(50)
@given(st.text())
def search_instruction_sets(name: str) -> None:
    try:
        native.extension().set_isa(name)
    except ValueError as error:
        assert str(error).startswith("isa: ")
    else:
        assert name in native.extension().build_info()["isa_usable"]


# --- what searches have found -------------------------------------------------------------------


def one_output() -> Arguments:
    spec = MisfitSpec("mask", (1,), 1, torch.zeros(1, 1), None, torch.ones(1, 1))
    return {"x": torch.ones(1, 1), "spec": spec, "observation": torch.zeros(1, dtype=torch.int64)}


def one_population() -> Arguments:
    zeros, half = torch.zeros(1, 4, dtype=F64), torch.full((1,), 0.5, dtype=F64)
    return {"log_weights": zeros, "uniform": half, "wanted": None}


def one_transition() -> Arguments:
    one = torch.ones(1, dtype=F64)
    count = torch.zeros(1, dtype=torch.int64)
    return {
        "latents": torch.zeros(1, 1, 1),
        "energy": torch.zeros(1, 1, dtype=F64),
        "grad": torch.zeros(1, 1, 1),
        "settings": TransitionSettings(one, one, one),
        "stream": NoiseStream(0, count, count),
    }


FIRST: dict[str, Callable[[], Arguments]] = {
    "misfit": one_output,
    "systematic_ancestors": one_population,
    "begin_trajectory": one_transition,
}


@pytest.mark.parametrize("path", ["x", "spec.target", "spec.weight"])
def test_lazily_negated_tensors(path: str) -> None:
    value = lazily_negated(torch.tensor([[3.0]]))
    check_misfit(replaced(one_output(), path, value))


@pytest.mark.parametrize(
    ("op", "path", "value"),
    [
        ("misfit", "observation", None),
        ("misfit", "x", None),
        ("misfit", "spec.target", [[0.0]]),
        ("systematic_ancestors", "log_weights", None),
        ("systematic_ancestors", "uniform", [0.5]),
        ("begin_trajectory", "latents", None),
        ("begin_trajectory", "energy", [[0.0]]),
        ("begin_trajectory", "settings.beta", None),
        ("begin_trajectory", "stream.transition", [0]),
    ],
    ids=lambda v: str(v),
)
def test_what_is_no_tensor_is_refused_by_name(op: str, path: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{path}: expected a torch\.Tensor"):
        getattr(native, op)(**replaced(FIRST[op](), path, value))


@pytest.mark.parametrize("path", ["x", "spec.target"])
def test_tensors_without_dimensions_are_refused_by_name(path: str) -> None:
    with pytest.raises(ValueError, match=rf"^{path}: expected shape"):
        native.misfit(**replaced(one_output(), path, torch.tensor(1.0)))


@pytest.mark.parametrize(("op", "path"), [("misfit", "x"), ("begin_trajectory", "settings.beta")])
def test_sparse_tensors_are_refused_by_name(op: str, path: str) -> None:
    arguments = FIRST[op]()
    value = leaves(arguments)[path].to_sparse()
    with pytest.raises((ValueError, TypeError), match=rf"^{path}: expected"):
        getattr(native, op)(**replaced(arguments, path, value))


def test_outputs_without_observations() -> None:
    arguments = replaced(one_output(), "spec.target", torch.zeros(0, 1))
    with pytest.raises(ValueError, match=r"^spec\.target: expected a row for 1 "):
        native.misfit(**arguments)


SEARCHES: dict[str, Callable[[], None]] = {
    "one-by-one": search_one_by_one,
    "two-at-once": search_two_at_once,
    "instruction-sets": search_instruction_sets,
}


@pytest.mark.slow
def test_bad_arguments_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A crash of the interpreter is a failure that shows the last call."""
    command = [sys.executable, "-X", "faulthandler", __file__]
    # The current folder is not the checkout's root, where the sources would hide the installed
    # package.
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300 * EFFORT, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-5000:]}"
    assert done.stdout.splitlines() == [f"{name}: nothing found" for name in SEARCHES]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, find in SEARCHES.items():
        find()
        print(f"{name}: nothing found", flush=True)

"""A table of valid calls of the extension, and every way to make one of their arguments invalid.

``python native_calls.py [--module FILE] [--older-torch | --without-device]`` makes them: each valid
call with each instruction set, and each invalid one, which must raise an error that names the
argument, and change nothing. FILE is an extension elsewhere, as one built with sanitizers. With
``--older-torch`` tensors are described by capsules, as they are by older versions of torch, whose
type has no exchange interface for C. With ``--without-device`` the calls are those of functions for
CUDA, on tensors that are said to be on a device: what is right fails for want of one. It prints a
line for each function, and a digest of what valid calls write.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import hashlib
import importlib.util
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor

F32, F64, I64, U8 = torch.float32, torch.float64, torch.int64, torch.uint8
REAL = (F32, F64)
B, N, D = 3, 4, 6
WORD = 2**32 - 1
NOT_CALLS = {"build_info", "set_isa"}
ON_CUDA = {"noise_cuda", "anneal_mlp_cuda"}
EXCHANGE = "__dlpack_c_exchange_api__"
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A valid call.

    Other arguments are compared with the ``leading`` ones: if one of these is invalid, the error
    may name another. ``free`` has the dimensions that may be of any size, ``either`` the arguments
    that may be of either float type, ``at_least`` those that may be longer, ``optional`` those that
    may be None, ``limits`` the range of integers and of indices.
    """

    function: str
    arguments: Arguments
    leading: frozenset[str] = frozenset()
    free: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    either: tuple[str, ...] = ()
    at_least: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class Draws:
    """Random tensors, the same in every run."""

    def __init__(self, real: torch.dtype) -> None:
        self.real, self._generator = real, torch.Generator().manual_seed(1)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normals in the float type of the calls, or in another type."""
        values = torch.randn(shape, generator=self._generator, dtype=F64)
        return values.to(self.real if dtype is None else dtype)

    def energies(self, *shape: int) -> Tensor:
        """Squares of normals, float64."""
        return self(*shape, dtype=F64) ** 2

    def rates(self, *shape: int) -> Tensor:
        """Uniforms in [0, 1), float64."""
        return torch.rand(shape, generator=self._generator, dtype=F64)

    def flags(self, *shape: int, dtype: torch.dtype = torch.bool) -> Tensor:
        """Random zeros and ones."""
        return (self.rates(*shape) < 0.7).to(dtype)

    def stream(self) -> Arguments:
        """The arguments of the noise of B observations."""
        return {"seed": 7, "transition": torch.arange(B), "observation": 5 + torch.arange(B)}

    def unwritten(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros, for the call to overwrite."""
        return torch.zeros(shape, dtype=self.real if dtype is None else dtype)


WORDS = {"seed": (0, 2**64 - 1), "transition": (0, WORD), "observation": (0, WORD)}
THREADS = {"threads": (1, 2**31 - 1)}


def noise(draw: Draws) -> Iterator[Case]:
    """Calls that draw each kind of noise."""
    words = draw.unwritten(B, N, 2, 4, dtype=torch.int32)
    outs = {"words": words, "uniforms": draw.unwritten(B, N), "normals": draw.unwritten(B, N, D)}
    for kind, out in outs.items():
        yield Case(
            "noise",
            {"out": out, "kind": kind, "purpose": 3, **draw.stream(), "threads": 1},
            frozenset({"out", "kind"}),
            {"out": (1, 2) if kind != "uniforms" else (1,)},
            either=() if kind == "words" else ("out",),
            limits=WORDS | THREADS | {"purpose": (0, 255)},
        )


def settings(draw: Draws, per_chain: bool) -> Arguments:
    """The settings of a transition."""
    return {
        "beta": draw.rates(B),
        "prior_weight": draw.rates(B),
        "step_size": 0.1 * draw.rates(*((B, N) if per_chain else (B,))),
        "inverse_mass": 1.0 + draw.rates(B, D).to(draw.real),
    }


def transitions(draw: Draws) -> Iterator[Case]:
    """Calls of the parts of a transition."""
    latents, grad = draw(B, N, D), draw(B, N, D)
    state = {"latents": latents, "energy": draw.energies(B, N), "grad": grad}
    position, momentum, hamiltonian = draw(B, N, D), draw(B, N, D), draw.energies(B, N)
    proposal = {"position": position, "momentum": momentum, "hamiltonian": hamiltonian}
    leading, limits = frozenset({"latents"}), WORDS | THREADS
    yield Case(
        "initial_latents",
        {"latents": draw.unwritten(B, N, D), **draw.stream(), "threads": 1},
        leading,
        {"latents": (1, 2)},
        either=("latents",),
        limits=limits,
    )
    for per_chain in (False, True):
        how = settings(draw, per_chain)
        yield Case(
            "begin_trajectory",
            {**state, **how, **draw.stream(), **proposal, "threads": 1},
            leading,
            optional=("inverse_mass",),
            limits=limits,
        )
        yield Case(
            "continue_trajectory",
            {"position": position, "momentum": momentum, "grad": grad, **how, "threads": 1},
            frozenset({"position"}),
            optional=("inverse_mass",),
            limits=THREADS,
        )
        yield Case(
            "accept_select",
            {
                **state,
                **proposal,
                "proposed_energy": draw.energies(B, N),
                "proposed_grad": draw(B, N, D),
                **how,
                "active": draw.flags(B),
                **draw.stream(),
                "out_latents": draw.unwritten(B, N, D),
                "out_energy": draw.unwritten(B, N, dtype=F64),
                "out_grad": draw.unwritten(B, N, D),
                "out_probability": draw.unwritten(B, N, dtype=F64),
                "out_accepted": draw.unwritten(B, N, dtype=torch.bool),
                "out_change": draw.unwritten(B, N, dtype=F64),
                "threads": 1,
            },
            leading,
            optional=("inverse_mass", "active"),
            limits=limits,
        )


def between_transitions(draw: Draws) -> Iterator[Case]:
    """Calls of the step-size rule and of resampling, which exist in float64 only."""
    for shape in ((B,), (B, N)):
        yield Case(
            "adapt_step_size",
            {
                "acceptance_probability": draw.rates(B, N),
                "step_size": draw.rates(*shape),
                "running_acceptance": draw.rates(*shape),
                "active": draw.flags(*shape),
                "target": 0.6,
                "decay": 0.9,
                "increase": 1.1,
                "decrease": 0.9,
                "minimum": 0.0,
                "maximum": 1.0,
                "new_step_size": draw.unwritten(*shape, dtype=F64),
                "new_running_acceptance": draw.unwritten(*shape, dtype=F64),
            },
            frozenset({"acceptance_probability"}),
            {} if shape == (B, N) else {"acceptance_probability": (1,)},
            optional=("active",),
        )
    yield Case(
        "systematic_ancestors",
        {
            "log_weights": draw(B, N, dtype=F64),
            "uniform": draw.rates(B),
            "wanted": draw.flags(B),
            "out": draw.unwritten(B, N, dtype=I64),
        },
        frozenset({"log_weights"}),
        optional=("wanted",),
    )
    yield Case(
        "observation_uniforms",
        {"out": draw.unwritten(B, dtype=F64), "purpose": 3, **draw.stream()},
        frozenset({"out"}),
        limits=WORDS | {"purpose": (0, 255)},
    )


def observed(draw: Draws, measured: int) -> Arguments:
    """Observations of B outputs, each with a mask and weights of its own."""
    return {
        "target": draw(B, measured),
        "mask": draw.flags(B, measured, dtype=U8),
        "weight": 0.5 + draw.rates(B, measured).to(draw.real),
    }


def misfits(draw: Draws) -> Iterator[Case]:
    """Calls of the misfit of outputs, and of that of the images of activations."""
    rows, image_channels, high, wide, channels = 4, 3, 4, 6, 5
    for kind, factor in (("mask", 1), ("pool", 2), ("stride", 3)):
        down = 1 if kind == "mask" else factor
        measured = image_channels * math.ceil(high / down) * math.ceil(wide / down)
        what = {"kind": kind, "factor": factor, **observed(draw, measured)}
        of_rows = {
            "observation": torch.tensor([2, 0, 1, 2]),
            "energy": draw.unwritten(rows, dtype=F64),
            "threads": 1,
        }
        limits = THREADS | {"observation": (0, B - 1), "factor": (1, 2**63 - 1)}
        shape = rows, image_channels, high, wide
        outputs, grad = draw(*shape), draw.unwritten(*shape)
        yield Case(
            "misfit",
            {"outputs": outputs, **what, **of_rows, "grad": grad},
            frozenset({"outputs", "kind", "factor", "target"}),
            optional=("mask",),
            limits=limits,
        )
        yield Case(
            "to_rgb_misfit",
            {
                "out": draw(rows, high, wide, channels),
                "slope": 0.2,
                "scale": 0.5 + draw.rates(rows, high, wide).to(draw.real),
                "out_grad": draw.unwritten(rows, high, wide, channels),
                "rgb_weight": draw(image_channels, channels),
                "rgb_bias": draw(image_channels),
                "bounded": True,
                **what,
                **of_rows,
            },
            frozenset({"out", "rgb_weight", "kind", "factor", "target"}),
            optional=("mask", "scale"),
            limits=limits,
        )


def norms(draw: Draws) -> Iterator[Case]:
    """Calls of the ops that follow a convolution: bias, leaky ReLU and pixel norm."""
    shape, channels = (2, 3, 4), 5
    scale = 0.5 + draw.rates(*shape).to(draw.real)
    yield Case(
        "norm",
        {
            "x": draw(*shape, channels),
            "out": draw.unwritten(*shape, channels),
            "bias": draw(channels),
            "slope": 0.2,
            "scale": draw.unwritten(*shape),
            "threads": 1,
        },
        frozenset({"x", "out"}),
        optional=("scale",),
        limits=THREADS,
    )
    yield Case(
        "norm_grad",
        {
            "grad": draw(*shape, channels),
            "out": draw(*shape, channels),
            "slope": 0.2,
            "scale": scale,
            "out_grad": draw.unwritten(*shape, channels),
            "threads": 1,
        },
        frozenset({"grad", "out"}),
        optional=("scale",),
        limits=THREADS,
    )


def convolutions(draw: Draws, module: ModuleType) -> Iterator[Case]:
    """Calls of the layers of a progressive GAN: 3 images, from 5 channels to 7."""
    count, high, wide, inputs, outputs = 3, 2, 3, 5, 7
    panel = 64 // draw(1).element_size()
    side = {"images": (0, 2**31 - 1), "height": (1, 2**24), "width": (1, 2**24)}
    side |= {"inputs": (1, 2**24), "outputs": (1, 2**24)}
    for op, matrices, pixels in (("convolve", 16, 2), ("upsample", 9, 1)):
        cells: Arguments = {"images": count, "height": high, "width": wide}
        counted = {**cells, "inputs": inputs, "outputs": outputs}
        size = getattr(module, f"{op}_arena")(**counted, is_double=draw.real is F64)
        yield Case(f"{op}_arena", {**counted, "is_double": draw.real is F64}, limits=side)
        small, large = (pixels * high, pixels * wide), (2 * high, 2 * wide)
        common = {"at_least": ("arena",), "limits": THREADS}
        yield Case(
            op,
            {
                "x": draw(count, *small, inputs),
                "out": draw.unwritten(count, *large, outputs),
                "bias": draw(outputs),
                "slope": 0.2,
                "scale": draw.unwritten(count, *large),
                "kernel": draw(matrices * inputs * panel),
                "arena": draw.unwritten(size),
                "threads": 1,
            },
            frozenset({"x", "out"}),
            optional=("scale",),
            **common,  # type: ignore[arg-type]
        )
        back = counted if op == "upsample" else {**cells, "inputs": outputs, "outputs": inputs}
        size = getattr(module, f"{op}_arena")(**back, is_double=draw.real is F64)
        extra = {"extra": draw(count, *small, inputs)} if op == "upsample" else {}
        yield Case(
            f"{op}_grad",
            {
                "grad": draw(count, *large, outputs),
                "out": draw(count, *small, inputs),
                "slope": 0.2,
                "scale": 0.5 + draw.rates(count, *small).to(draw.real),
                "out_grad": draw.unwritten(count, *small, inputs),
                **extra,
                "kernel": draw(matrices * outputs * panel),
                "arena": draw.unwritten(size),
                "threads": 1,
            },
            frozenset({"grad", "out"}),
            optional=("scale", *extra),
            **common,  # type: ignore[arg-type]
        )


_IMAGES, _INPUTS, _CHANNELS = (3, 5, 6), 5, 7  # of convolutions by tiles, and their outputs


def of_tiles(draw: Draws, taps: int, outputs: int) -> Iterator[Case]:
    """To tiles of so many outputs, and back in both directions."""
    (count, height, width), inputs, channels = _IMAGES, _INPUTS, _CHANNELS
    limits = THREADS | {"top": (-2, 2), "left": (-2, 2), "step": (1, 2), "outputs": (2, 4)}
    limits |= {"high": (1, 2**31 - 1), "wide": (1, 2**31 - 1), "first": (0, 2**31 - 1)}
    limits |= {"taps": (2, 3)}
    grid = {"high": -(-height // outputs), "wide": -(-width // outputs)}
    tiles, slots = count * grid["high"] * grid["wide"], (outputs + taps - 1) ** 2
    grid |= {"taps": taps, "outputs": outputs}
    sizes = frozenset({"x", "out", *grid})
    yield Case(
        "fill_tiles",
        {
            "x": draw(count, height, width, inputs),
            **grid,
            **{"step": 1, "top": -1, "left": 0},
            "operands": draw.unwritten(slots, tiles, 2 + inputs),
            **{"first": 2, "threads": 1},
        },
        sizes | {"first"},
        {"x": (1, 2, 3), "operands": (2,)},
        limits=limits,
    )
    results, place = draw(slots, tiles, channels), {"step": 2, "top": 1, "left": 0}
    yield Case(
        "finish_tiles",
        {
            "results": results,
            "out": draw.unwritten(count, 2 * height, 2 * width, channels),
            "bias": draw(channels),
            "slope": 0.2,
            "scale": draw.unwritten(count, 2 * height, 2 * width),
            **grid,
            **place,
            "threads": 1,
        },
        sizes | {"results", "top", "left"},
        {"out": (1, 2)},
        optional=("scale",),
        limits=limits,
    )
    yield Case(
        "finish_tiles_grad",
        {
            "results": results[:, :, :inputs].contiguous(),
            "out": draw(count, height, width, inputs),
            "slope": 0.2,
            "scale": 0.5 + draw.rates(count, height, width).to(draw.real),
            "out_grad": draw.unwritten(count, height, width, inputs),
            **grid,
            **{"step": 1, "top": 0, "left": 0, "threads": 1},
        },
        sizes | {"results", "top", "left"},
        {"out": (1, 2)},
        optional=("scale",),
        limits=limits,
    )


def tiled(draw: Draws) -> Iterator[Case]:
    """Convolutions of users' generators without their products: 3 images, 5 channels to 7."""
    (count, height, width), channels = _IMAGES, _CHANNELS
    for taps, outputs in itertools.product((2, 3), (2, 4)):
        yield from of_tiles(draw, taps, outputs)
    yield Case(
        "sum_taps",
        {
            "products": draw(count, height, width, 16, channels),
            "out": draw.unwritten(count, 2 * height, 2 * width, channels),
            "bias": draw(channels),
            "slope": 0.2,
            "threads": 1,
        },
        frozenset({"products", "out"}),
        limits=THREADS,
    )


def dense(draw: Draws) -> Iterator[Case]:
    """A call that makes a part of the published run: 6 latents, layers of 9 and 5 units."""
    steps, hmc_steps, widths = 5, 2, [D, 9, 5]
    pairs = list(itertools.pairwise(widths))
    for per_chain in (False, True):
        each = (B, N) if per_chain else (B,)
        yield Case(
            "anneal_mlp",
            {
                "latents": draw(B, N, D),
                "widths": widths,
                "activations": [3, 2],
                "slope": 0.01,
                "weights": [draw(i, -(-o // 8) * 8) for i, o in pairs],
                "biases": [draw(-(-o // 8) * 8) for _, o in pairs],
                "backs": [draw(o, -(-i // 8) * 8) for i, o in pairs],
                **observed(draw, widths[-1]),
                "energy": draw.energies(B, N),
                "grad": draw(B, N, D),
                "log_weights": draw(B, N, dtype=F64),
                "step_size": 0.1 * draw.rates(*each),
                "running": draw.rates(*each),
                "non_finite": draw.unwritten(B, N, dtype=I64),
                "betas": draw.rates(steps).sort().values,
                "beta": 0.0,
                "hmc_steps": hmc_steps,
                "leapfrog_steps": 3,
                "paper_form": False,
                **draw.stream(),
                **{
                    name: draw.unwritten(steps, B, dtype=F64)
                    for name in ("acceptance", "step_used", "energy_mean", "energy_std")
                },
                "trace": draw.unwritten(steps, B, N, D),
                "rule": [0.6, 0.9, 1.1, 0.9, 0.0, 1.0],
                "threads": 1,
            },
            frozenset({"latents", "widths", "betas"}),
            optional=("mask", "log_weights", "trace", "rule"),
            limits=WORDS
            | THREADS
            | {
                "transition": (0, WORD - steps * hmc_steps),
                "hmc_steps": (1, WORD // steps),
                "leapfrog_steps": (1, 2**31 - 1),
                "widths": (1, 256),
                "activations": (0, 6),
            },
        )


def on_device(
    cases: Iterator[Case], move: Callable[[Tensor], Tensor], stream: int
) -> Iterator[Case]:
    """The same calls of the function for CUDA, which does not check the values in tensors."""
    for case in cases:
        given = {name: value for name, value in case.arguments.items() if name != "threads"}
        moved = {name: _mapped(value, move) for name, value in given.items()}
        limits = {n: limit for n, limit in case.limits.items() if isinstance(given.get(n), int)}
        lists = {n: limit for n, limit in case.limits.items() if isinstance(given.get(n), list)}
        yield replace(
            case,
            function=f"{case.function}_cuda",
            arguments=moved | {"stream": stream},
            limits=limits | lists,
        )


def cases(module: ModuleType) -> Iterator[Case]:
    """All valid calls; those for CUDA where there is a device."""
    for real in REAL:
        draw = Draws(real)
        yield from noise(draw)
        yield from transitions(draw)
        yield from between_transitions(draw)
        yield from misfits(draw)
        yield from norms(draw)
        yield from convolutions(draw, module)
        yield from tiled(draw)
        yield from dense(draw)
        if module.build_info()["with_cuda"] and torch.cuda.is_available():
            stream = torch.cuda.current_stream().cuda_stream
            yield from on_device(noise(draw), Tensor.cuda, stream)
            yield from on_device(dense(draw), Tensor.cuda, stream)


# --- what is wrong ------------------------------------------------------------------------------

DTYPES = (F32, F64, I64, U8, torch.int32, torch.float16, torch.bool, torch.complex64)


def invalid_arguments(case: Case) -> Iterator[tuple[str, str, Any]]:
    """The name of an argument, what is wrong with it, and an invalid value, for every way."""
    for name, value in case.arguments.items():
        for what, wrong in _wrong(case, name, value):
            yield name, what, wrong


def _wrong(case: Case, name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if name not in case.optional:
        yield "None", None
    if isinstance(value, Tensor):
        yield from _wrong_tensors(case, name, value)
    elif isinstance(value, list):
        yield from _wrong_lists(case, name, value)
    else:
        yield from _wrong_numbers(value, case.limits.get(name))


def _wrong_numbers(value: Any, limits: tuple[int, int] | None) -> Iterator[tuple[str, Any]]:
    kinds: dict[type, tuple[Any, ...]] = {
        bool: (0, 1, "True"),
        int: (True, 1.0, "1", [1]),
        float: ("1.0", [1.0], torch.ones(2)),
        str: ("", "median", "Normals", "w\0rds", "\ud800", 3, b"mask"),
    }
    yield from ((repr(wrong), wrong) for wrong in kinds[type(value)])
    if type(value) is int:
        low, high = limits or (0, 2**64 - 1)
        yield from ((str(wrong), wrong) for wrong in (low - 1, high + 1, -(2**70), 2**70))


def _wrong_lists(case: Case, name: str, value: list[Any]) -> Iterator[tuple[str, Any]]:
    yield from (("empty", []), ("shorter", value[:-1]), ("longer", [*value, value[-1]]))
    yield from (("a number", 3), ("a text", "abc"), ("an iterator", iter(value)))
    for place, entry in enumerate(value):
        for what, wrong in _wrong(replace(case, optional=()), name, entry):
            yield f"{what} at {place}", [*value[:place], wrong, *value[place + 1 :]]


def _wrong_tensors(case: Case, name: str, value: Tensor) -> Iterator[tuple[str, Any]]:
    yield from (("an address", value.data_ptr()), ("a list", value.tolist()))
    yield from (("an array", value.cpu().numpy()), ("sparse", value.to_sparse()))
    for device in {"meta", "cpu"} - {value.device.type}:
        yield device, value.to(device)
    taken = REAL if name in case.either else (value.dtype,)
    yield from ((str(dtype), value.to(dtype)) for dtype in DTYPES if dtype not in taken)
    yield from _wrong_shapes(case, name, value)
    yield from _wrong_strides(value)
    yield "odd address", _odd(value)
    low, high = case.limits.get(name, (0, -1))
    if low <= high:
        for number in (low - 1, high + 1, -(2**63), 2**63 - 1):
            for place in (0, -1):
                wrong = value.clone()
                wrong[place] = number
                yield f"{number} at {place}", wrong


def _wrong_shapes(case: Case, name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield from (("a dimension more", value[None]), ("one at the end", value[..., None]))
    if value.ndim != 1:
        yield "flat", value.flatten()
    yield "without dimensions", value.new_ones(())
    for axis in set(range(value.ndim)) - set(case.free.get(name, ())):
        shape = list(value.shape)
        for size in (0, shape[axis] - 1, shape[axis] + 1):
            if size <= shape[axis] or name not in case.at_least:
                changed = [*shape[:axis], size, *shape[axis + 1 :]]
                yield str(tuple(changed)), value.new_ones(changed)


def _wrong_strides(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "strided", torch.stack([value, value], -1)[..., 0]
    yield "expanded", value[:1].expand_as(value)
    if value.ndim > 1:
        yield "transposed", value.transpose(0, -1).contiguous().transpose(0, -1)


def _odd(value: Tensor) -> Tensor:
    """A copy at an odd address, which its type does not allow (unless its elements are bytes)."""
    if value.element_size() == 1 or not value.is_cpu:
        return value[..., None]
    buffer = bytearray(value.numel() * value.element_size() + 1)
    return torch.frombuffer(buffer, dtype=value.dtype, offset=1).view(value.shape)


# --- calls --------------------------------------------------------------------------------------


# The observation is the second dimension of histories, and the tile that of operands of products.
# Those in _WHOLE belong to layers or to the schedule.
_SECOND = {"acceptance", "step_used", "energy_mean", "energy_std", "trace", "operands", "results"}
_WHOLE = {"bias", "kernel", "arena", "rgb_weight", "rgb_bias", "betas"}


def without_work(case: Case) -> Arguments:
    """The arguments with 0 observations, images or rows, so that there is nothing to compute."""

    def cut(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or name in _WHOLE:
            return value
        return value[:, :0].contiguous() if name in _SECOND else value[:0]

    given = {name: cut(name, value) for name, value in case.arguments.items()}
    return given | ({"images": 0} if "images" in given else {})


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, list):
        return [_mapped(entry, change) for entry in value]
    return change(value) if isinstance(value, Tensor) else value


def contents(arguments: Arguments) -> bytes:
    """The bytes of all tensors."""
    found = hashlib.sha256()
    for value in arguments.values():
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, Tensor) and not tensor.is_meta and not tensor.is_sparse:
                found.update(tensor.contiguous().flatten().view(U8).cpu().numpy().tobytes())
    return found.digest()


def call(module: ModuleType, case: Case) -> bytes:
    """Make the call on copies; return the digest of all tensors afterwards, or of the result."""
    arguments = copy.deepcopy(case.arguments)
    found = getattr(module, case.function)(**arguments)
    return contents(arguments) if found is None else str(found).encode()


def assert_refused(module: ModuleType, case: Case, name: str, what: str, wrong: Any) -> None:
    """Assert that an invalid call raises an error which names the argument, and writes nothing."""
    arguments = case.arguments | {name: wrong}
    before = contents(arguments)
    about = f"{case.function}({name}={what})"
    try:
        getattr(module, case.function)(**arguments)
    except (TypeError, ValueError) as error:
        blamed, _, text = str(error).partition(":")
        named = blamed.partition("[")[0]
        # These are sizes of the tensors named in `leading`.
        sizes = {"chains", "size", "height", "width", "inputs", "outputs"}
        allowed = {*case.arguments, *sizes} if name in case.leading else {name}
        assert named in allowed, f"{about}: {error}"
        assert "expected" in text and "got" in text, f"{about}: {error}"
    else:
        raise AssertionError(f"{about} is taken")
    assert contents(arguments) == before, f"{about} has written"


def assert_refuses_other_arguments(module: ModuleType, case: Case) -> None:
    """Assert that every argument is required, by its name, and that no other is accepted."""
    function, given = getattr(module, case.function), case.arguments
    calls: dict[str, Callable[[], Any]] = {
        name: lambda name=name: function(**{k: v for k, v in given.items() if k != name})
        for name in given
    }
    calls["other"] = lambda: function(**given, other=None)
    calls["expected every argument by its name"] = lambda: function(*given.values())
    for name, wrong in calls.items():
        try:
            wrong()
        except TypeError as error:
            assert str(error).startswith(name), f"{case.function}: {error}, not {name}"
        else:
            raise AssertionError(f"{case.function}: taken with or without {name}")


def functions(module: ModuleType) -> set[str]:
    """The calls that a module offers."""
    return {name for name in dir(module) if not name.startswith("_")} - NOT_CALLS


def check_all(module: ModuleType) -> tuple[dict[str, int], str]:
    """Make all calls; return the invalid ones by function, and a digest of the valid ones."""
    refused: dict[str, int] = {}
    written = hashlib.sha256()
    for case in cases(module):
        for isa in module.build_info()["isa_usable"]:
            module.set_isa(isa)
            written.update(call(module, case))
            for name in case.optional:
                call(module, replace(case, arguments=case.arguments | {name: None}))
        getattr(module, case.function)(**without_work(case))
        assert_refuses_other_arguments(module, case)
        invalid = list(invalid_arguments(case))
        for each in invalid:
            assert_refused(module, case, *each)
        refused[case.function] = refused.get(case.function, 0) + len(invalid)
    return refused, written.hexdigest()


def say_on_cuda() -> None:
    """Make tensors on the CPU describe themselves as being on a CUDA device."""
    describe = torch.utils.dlpack.to_dlpack
    held = ctypes.pythonapi.PyCapsule_GetPointer
    held.restype, held.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    def described(value: Tensor) -> Any:
        capsule = describe(value)
        device_type = held(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
        ctypes.c_int32.from_address(device_type).value = 2
        return capsule

    torch.utils.dlpack.to_dlpack = described


def check_without_device(module: ModuleType) -> dict[str, int]:
    """How many invalid calls of each function for CUDA were refused."""
    refused: dict[str, int] = {}
    for real in REAL:
        draw = Draws(real)
        for calls in (noise(draw), dense(draw)):
            for case in on_device(calls, lambda tensor: tensor, 0):
                assert_refuses_other_arguments(module, case)
                for each in invalid_arguments(case):
                    assert_refused(module, case, *each)
                    refused[case.function] = refused.get(case.function, 0) + 1
                try:
                    call(module, case)
                except RuntimeError as error:
                    assert str(error).startswith(case.function), error
                else:
                    raise AssertionError(f"{case.function} runs without a device")
    return refused


def in_a_process(
    folder: Path, *options: str | Path, environment: Mapping[str, str] | None = None
) -> str:
    """The output of this file as a script; fails with the last call made if the script fails."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, *options],
        # The current folder is not the checkout's root, where the sources would hide the installed
        # package.
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-5000:]}"
    return done.stdout


def refusals(printed: str) -> dict[str, int]:
    """How many invalid calls of each function the output of the script reports."""
    found = re.findall(r"^(\w+): (\d+) refused$", printed, re.MULTILINE)
    return {name: int(count) for name, count in found}


def assert_all_refused(printed: str, module: ModuleType) -> None:
    """Assert that the output reports invalid calls of every function, except those for CUDA."""
    refused = refusals(printed)
    assert refused.keys() | ON_CUDA == functions(module)
    assert min(refused.values()) > 50, refused


def _module(path: Path | None) -> ModuleType:
    if path is None:
        from cogen_fast.ops import native

        return native.extension()
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Make all calls."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--module", type=Path)
    described = parser.add_mutually_exclusive_group()
    described.add_argument("--older-torch", action="store_true")
    described.add_argument("--without-device", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if (options.older_torch or options.without_device) and hasattr(Tensor, EXCHANGE):
        delattr(Tensor, EXCHANGE)
    module = _module(options.module)
    if options.without_device:
        say_on_cuda()
        refused, written = check_without_device(module), "nothing"
    else:
        refused, written = check_all(module)
    for name, count in refused.items():
        print(f"{name}: {count} refused")
    print(f"written: {written}")


if __name__ == "__main__":
    main()

"""Noise: published Philox vectors, our uniforms and normals, native code against the reference."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
import torch
from conftest import ROOT
from implementations import ISAS, instruction_set
from torch import Tensor

from cogen_fast.ops import native
from cogen_fast.ops.philox import (
    PURPOSE_SHIFT,
    NoiseStream,
    Purpose,
    normals,
    philox,
    to_uniform,
    uniforms,
)

SEED = 0x0123_4567_89AB_CDEF
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 7, 129), (2, 100, 2), (1, 17, 4)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)

# Random123's published answers for philox4x32-10: counter, key, words.
ZEROS = ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))
ONES = (
    (0xFFFFFFFF,) * 4,
    (0xFFFFFFFF,) * 2,
    (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
)
PI = (
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
    (0xA4093822, 0x299F31D0),
    (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param):
        yield request.param


def _stream(observations: int) -> NoiseStream:
    transition = torch.arange(observations, dtype=torch.int64) * 977 + 2**32 - 3000
    return NoiseStream(SEED, transition, torch.arange(observations) + 11)


def _native(kind: str, stream: NoiseStream, purpose: int, out: Tensor) -> Tensor:
    native.extension().noise(
        out=out,
        kind=kind,
        purpose=purpose,
        seed=stream.seed,
        transition=stream.transition,
        observation=stream.observation,
        threads=1,
    )
    return out


def _native_words(shape: tuple[int, int, int], stream: NoiseStream, purpose: int) -> Tensor:
    b, n, d = shape
    out = torch.full((b, n, (d + 3) // 4, 4), -1, dtype=torch.int32)
    return _native("words", stream, purpose, out).to(torch.int64) & 0xFFFFFFFF


def _reference_words(shape: tuple[int, int, int], stream: NoiseStream, purpose: int) -> Tensor:
    _, n, d = shape
    block = torch.arange((d + 3) // 4) | (purpose << 24)
    words = philox(
        stream.seed,
        block,
        stream.transition[:, None, None],
        torch.arange(n)[:, None],
        stream.observation[:, None, None],
    )
    return torch.stack(words, dim=-1)


@pytest.mark.parametrize("case", [ZEROS, ONES, PI], ids=["zeros", "ones", "pi"])
def test_published_vectors(case: tuple[tuple[int, ...], tuple[int, int], tuple[int, ...]]) -> None:
    counter, key, expected = case
    words = philox(key[0] | key[1] << 32, *(torch.tensor(c) for c in counter))
    assert tuple(int(w) for w in words) == expected


def test_published_zero_vector_native(isa: str) -> None:
    stream = NoiseStream(0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert tuple(_native_words((1, 1, 4), stream, 0).flatten().tolist()) == ZEROS[2]


@shapes
@pytest.mark.parametrize("purpose", [0, 1, 2, 255])
def test_words_equal_reference(isa: str, shape: tuple[int, int, int], purpose: int) -> None:
    stream = _stream(shape[0])
    words = _native_words(shape, stream, purpose)
    assert torch.equal(words, _reference_words(shape, stream, purpose))


@shapes
@dtypes
def test_uniforms_equal_reference(
    isa: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    stream = _stream(shape[0])
    out = torch.full(shape[:2], torch.nan, dtype=dtype)
    ours = _native("uniforms", stream, Purpose.ACCEPT, out)
    assert torch.equal(ours, uniforms(stream, Purpose.ACCEPT, shape[1], dtype))


@shapes
@dtypes
def test_normals_match_reference(isa: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    stream = _stream(shape[0])
    out = torch.full(shape, torch.nan, dtype=dtype)
    ours = _native("normals", stream, Purpose.MOMENTUM, out).double()
    exact = normals(stream, Purpose.MOMENTUM, shape[1], shape[2], torch.float64)
    # The float maps have errors of about 2 roundings (6e-8) each of radius and angle, and the
    # radius is below 6. Normals in double differ by the last bits of the libraries' functions.
    bound = 1e-6 if dtype is torch.float32 else 1e-14
    assert ((ours - exact).abs() / exact.abs().clamp(min=1.0)).max() <= bound


def test_instruction_sets_agree_on_normals() -> None:
    stream, shape = _stream(2), (2, 33, 129)
    draws = []
    for name in ISAS:
        with instruction_set(name):
            draws.append(_native("normals", stream, 0, torch.empty(shape)))
    for draw in draws[1:]:
        torch.testing.assert_close(draw, draws[0], rtol=2e-6, atol=2e-6)


@dtypes
def test_uniform_never_reaches_its_ends(dtype: torch.dtype) -> None:
    ends = to_uniform(torch.tensor([0, 0xFFFFFFFF]), dtype).double()
    assert ends.tolist() == [2.0**-24, 1.0 - 2.0**-24]


def test_draws_are_standard_normal(isa: str) -> None:
    n = 1 << 20
    x = torch.empty(1, n // 64, 64, dtype=torch.float32)
    x = _native("normals", _stream(1), 0, x).double().flatten()
    # The bounds are five standard errors: the variances of the estimated mean, variance, third and
    # fourth moment are 1/n, 2/n, 15/n and 96/n.
    five = 5.0 / math.sqrt(n)
    assert abs(x.mean()) < five
    assert abs(x.var() - 1.0) < five * math.sqrt(2.0)
    assert abs((x**3).mean()) < five * math.sqrt(15.0)
    assert abs((x**4).mean() - 3.0) < five * math.sqrt(96.0)
    for bound in (1.0, 2.0, 3.0, 4.0):
        p = math.erfc(bound / math.sqrt(2.0))
        spread = 5.0 * math.sqrt(p * (1.0 - p) / n)
        assert abs((x.abs() > bound).double().mean() - p) < spread
    assert x.abs().max() <= math.sqrt(48.0 * math.log(2.0)) * (1.0 + 1e-6)


def test_neighbouring_draws_are_uncorrelated(isa: str) -> None:
    n = 1 << 18
    x = _native("normals", _stream(1), 0, torch.empty(1, n // 64, 64)).double()
    five = 5.0 / math.sqrt(n)
    assert abs((x[..., 1:] * x[..., :-1]).mean()) < five * math.sqrt(64 / 63)
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < five * 1.01


def test_draws_do_not_depend_on_how_a_run_is_split(isa: str) -> None:
    stream, shape = _stream(3), (3, 7, 129)
    whole = _native("normals", stream, 0, torch.empty(shape))
    one = NoiseStream(SEED, stream.transition[1:2].clone(), stream.observation[1:2].clone())
    part = _native("normals", one, 0, torch.empty(1, 5, 129))
    assert torch.equal(part[0], whole[1, :5])


def test_purposes_and_seeds_never_repeat() -> None:
    stream = _stream(1)
    other = NoiseStream(SEED + 1, stream.transition, stream.observation)
    draws = [normals(stream, p, 1, 8, torch.float64) for p in Purpose]
    draws.append(normals(other, Purpose.LATENT, 1, 8, torch.float64))
    assert torch.stack(draws).flatten().unique().numel() == 8 * (len(Purpose) + 1)


def test_advance_moves_active_observations_only() -> None:
    stream = _stream(3)
    moved = stream.advance(torch.tensor([True, False, True]))
    assert (moved.transition - stream.transition).tolist() == [1, 0, 1]
    assert (stream.advance(None).transition - stream.transition).tolist() == [1, 1, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(
    not native.extension().build_info()["with_cuda"], reason="extension built without CUDA"
)
@shapes
@dtypes
def test_device_noise_matches_reference(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    host = _stream(shape[0])
    stream = NoiseStream(SEED, host.transition.cuda(), host.observation.cuda())
    words = torch.full((*shape[:2], (shape[2] + 3) // 4, 4), -1, dtype=torch.int32, device="cuda")
    uniform = torch.full(shape[:2], torch.nan, dtype=dtype, device="cuda")
    normal = torch.full(shape, torch.nan, dtype=dtype, device="cuda")
    for kind, out in (("words", words), ("uniforms", uniform), ("normals", normal)):
        native.extension().noise_cuda(
            out=out,
            kind=kind,
            purpose=1,
            seed=stream.seed,
            transition=stream.transition,
            observation=stream.observation,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    unsigned = words.cpu().to(torch.int64) & 0xFFFFFFFF
    assert torch.equal(unsigned, _reference_words(shape, host, 1))
    assert torch.equal(uniform.cpu(), uniforms(host, Purpose.MOMENTUM, shape[1], dtype))
    exact = normals(host, Purpose.MOMENTUM, shape[1], shape[2], torch.float64)
    bound = 1e-6 if dtype is torch.float32 else 1e-14
    error = (normal.cpu().double() - exact).abs() / exact.abs().clamp(min=1.0)
    assert error.max() <= bound


def test_purposes_have_one_declaration_and_its_copy_in_c() -> None:
    header = ROOT / "csrc" / "common" / "purposes.h"
    numbers = dict(re.findall(r"constexpr [\w:]+ k(\w+) = (\d+);", header.read_text()))
    assert int(numbers.pop("PurposeShift")) == PURPOSE_SHIFT
    assert int(numbers.pop("LargestPurpose")) == 2 ** (32 - PURPOSE_SHIFT) - 1
    named = {name.removesuffix("Purpose").upper(): int(n) for name, n in numbers.items()}
    assert named == {name: Purpose[name] for name in ("LATENT", "MOMENTUM", "ACCEPT")}
    others = [path for path in (ROOT / "csrc").rglob("*.*") if path != header]
    assert others
    for path in others:
        assert not re.search(r"Purpose\w* *= *\d", path.read_text()), path

"""Users' modules whose convolutions are found in a recording: the same function, or left alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Thread
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import in_a_process
from torch import Tensor, nn

import cogen_fast
import cogen_fast.problem.traced
from cogen_fast import Compute, Prior
from cogen_fast.generators import ProgressiveGenerator, StyleGAN2Generator
from cogen_fast.ops.convolution import layers
from cogen_fast.ops.convolution.chain import ConvolutionChain
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.problem.problem import prepared
from cogen_fast.problem.recording import record
from cogen_fast.problem.traced import try_tracing

F32, F64 = torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _small_networks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cogen_fast.problem.traced, "LEAST_PRODUCTS", 1)


TRACED = (
    "generator: its convolutions are computed by faster code for gradients with respect to the "
    "latent"
)
AS_IT_IS = "generator: its convolutions are called as they are, because "
BOUNDS = {F64: 1e-12, F32: 2e-4}


class Residual(nn.Module):
    """A block of a residual generator: norms first, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)])
        self.first = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.norms[0](x)), scale_factor=2)
        y = self.second(F.relu(self.norms[1](self.first(y)), inplace=True))
        return y + self.shortcut(F.interpolate(x, scale_factor=2))


class ResidualGAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(10, 4 * 4 * 16)
        self.blocks = nn.Sequential(Residual(16, 16), Residual(16, 8))
        self.last = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.last(self.blocks(self.dense(z).view(-1, 16, 4, 4)))
        return images


class Mixed(nn.Module):
    """All kinds of convolutions, activations and arguments with defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(12, 32 * 16), nn.BatchNorm1d(32 * 16), nn.ReLU(True))
        self.main = nn.Sequential(
            nn.ConvTranspose2d(32, 24, 4, 2, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(0.5),
            nn.ConvTranspose2d(24, 16, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(True),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4),
            nn.ELU(inplace=True),
            nn.Identity(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor, scale: float = 1.0, names: tuple[str, ...] = ()) -> Tensor:
        if scale != 1.0 or names:
            z = z * scale
        x = self.main(self.dense(z).reshape(z.shape[0], 32, 4, 4))
        return x.view(x.size(0), -1)


class Equalised(nn.Module):
    """Weights times their He constants, functions in place of modules, and pixel norm."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_size = 9
        self.first = nn.ConvTranspose2d(9, 12, 4)
        shapes = ((12, 12, 3, 3), (10, 12, 3, 3), (10, 5, 4, 4))
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.randn(n) for n in (12, 10, 5))
        self.register_buffer("mean", torch.randn(5))
        self.register_buffer("variance", torch.rand(5) + 0.5)
        self.scale = 0.1

    def forward(self, z: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(z[:, :, None, None]), 0.2)
        x = F.conv2d(x, self.weights[0] * self.scale, self.biases[0], padding=(1, 1))
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = torch.conv2d(x, self.weights[1].mul(self.scale), bias=self.biases[1], padding=1).relu()
        x = F.conv_transpose2d(x, self.weights[2] * self.scale, self.biases[2], 2, 1)
        return F.batch_norm(x, self.mean, self.variance)  # type: ignore[arg-type]


class ReadTwice(nn.Module):
    """One layer in two places, and an output that two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.ConvTranspose2d(5, 8, 4), nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        y = self.twice(torch.relu(self.first(z)))
        other = F.interpolate(y, scale_factor=2, mode="bilinear")
        images: Tensor = self.last(torch.relu(self.twice(y)) + other)
        return images


class Outside(nn.Module):
    """Sides that no tile fits, outputs that are no images, and weights read as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(5, 6, (3, 5))
        self.second = nn.ConvTranspose2d(6, 9, 4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(9, affine=False)
        self.third = nn.Conv2d(9, 2, (1, 3), stride=(1, 2))

    def forward(self, z: Tensor) -> Tensor:
        y = self.norm(self.second(F.relu_(self.first(z))))
        y = self.third(y.relu_()) + self.second.weight.mean()
        return y.flatten(1)


MODULES: dict[str, type[nn.Module]] = {
    each.__name__: each for each in (ResidualGAN, Mixed, Equalised, ReadTwice, Outside)
}


def made(kind: type[nn.Module], dtype: torch.dtype = F64) -> nn.Module:
    """A module whose batch norms have statistics of a training, evaluating."""
    torch.manual_seed(0)
    module = kind()
    for each in module.modules():
        if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d) and each.running_mean is not None:
            each.running_mean.normal_(0.0, 0.1)
            assert each.running_var is not None
            each.running_var.uniform_(0.5, 2.0)
            if each.weight is not None:
                each.weight.data.uniform_(0.5, 1.5)
                each.bias.data.normal_(0.0, 0.1)
    return module.to(dtype).eval()


@contextmanager
def traced(
    module: Any, **how: Any
) -> Iterator[tuple[GeneratorAdapter, GeneratorAdapter | None, str | None]]:
    """The adapter of a module, that of its trace, and the note."""
    with frozen(module):
        adapter = GeneratorAdapter(module, **how)
        yield adapter, *try_tracing(adapter)


def gradient(adapter: GeneratorAdapter, z: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of half their squares by latents."""
    rows = z.clone().requires_grad_()
    x = adapter(rows)
    return x.detach(), torch.autograd.grad(x, rows, x.detach())[0]


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", MODULES)
def test_the_recording_is_the_same_function(name: str, dtype: torch.dtype) -> None:
    with traced(made(MODULES[name], dtype)) as (adapter, found, note):
        assert note == TRACED
        assert found is not None
        for rows in (1, 7):
            z = torch.randn(
                rows, adapter.latent_size, generator=torch.Generator().manual_seed(rows)
            )
            pairs = zip(gradient(found, z.to(dtype)), gradient(adapter, z.to(dtype)), strict=True)
            for ours, theirs in pairs:
                assert (ours - theirs).abs().max() <= BOUNDS[dtype] * theirs.abs().max()


@pytest.mark.parametrize("scale", [1e20, 1e36, 1e38])
@pytest.mark.parametrize("name", MODULES)
def test_far_away_it_is_the_same_function_or_not_finite(name: str, scale: float) -> None:
    # An output of 1e38 is near the largest float32, 3.4e38, and tiles add several of them up.
    with traced(made(MODULES[name], F32)) as (adapter, found, _):
        assert found is not None
        z = scale * torch.randn(64, adapter.latent_size, generator=torch.Generator().manual_seed(1))
        for ours, theirs in zip(gradient(found, z), gradient(adapter, z), strict=True):
            there = ours.isfinite()
            assert theirs[there].isfinite().all()
            assert torch.equal(there, theirs.isfinite()) or scale == 1e38
            largest = theirs[theirs.isfinite()].abs().max()
            assert ((ours - theirs)[there].abs() <= BOUNDS[F32] * largest).all()


def chains(adapter: GeneratorAdapter | None) -> list[int]:
    """The numbers of layers of all chains of a recording."""
    assert adapter is not None
    functions = [step.function for step in adapter.generator.steps]  # type: ignore[attr-defined]
    return [len(each.layers) for each in functions if isinstance(each, ConvolutionChain)]


def test_neighbours_are_one_chain() -> None:
    # An ELU stands between, dropout does not; pixel norm; an output with two readers.
    for name, expected in (("Mixed", [2, 1]), ("Equalised", [1, 2]), ("ReadTwice", [2, 1])):
        with traced(made(MODULES[name])) as (_, found, _):
            assert chains(found) == expected, name


def test_networks_of_few_products_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # 32 -> 24 channels with 16 weights at 4 x 4 pixels, 24 -> 16 with 9 at 8 x 8, and 16 -> 1 with
    # 16 at 16 x 16, the convolutions of `Mixed` for which there is code.
    products = 16 * 32 * 24 * 16 + 64 * 24 * 16 * 9 + 256 * 16 * 16
    for least, expected in ((products, TRACED), (products + 1, None)):
        monkeypatch.setattr(cogen_fast.problem.traced, "LEAST_PRODUCTS", least)
        with traced(made(Mixed)) as (_, found, note):
            assert note == expected
            assert (found is None) == (expected is None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("old", [True, False], ids=["hooks", "parametrizations"])
def test_norms_of_weights_are_followed(old: bool) -> None:
    module = made(Mixed)
    norms = nn.utils if old else nn.utils.parametrizations
    norms.spectral_norm(module.main[0], dim=1)  # type: ignore[index,operator]
    norms.weight_norm(module.main[4])  # type: ignore[index,operator]
    module.double().eval()
    with traced(module) as (adapter, found, note):
        assert note == TRACED
        assert found is not None
        z = torch.randn(5, 12, generator=torch.Generator().manual_seed(2)).double()
        for ours, theirs in zip(gradient(found, z), gradient(adapter, z), strict=True):
            assert (ours - theirs).abs().max() <= BOUNDS[F64] * theirs.abs().max()


def test_the_module_is_as_it_was() -> None:
    module = made(Mixed)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with traced(module) as (_, found, _):
        assert found is not None
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(each.inplace for each in module.modules() if isinstance(each, nn.ReLU))
    assert all(parameter.requires_grad for parameter in module.parameters())


class Branching(nn.Module):
    """Looks at numbers, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.ConvTranspose2d(5, 3, 4)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.main(z)
        return images if z.abs().max() < 100 else 0.0 * images


class Counting(nn.Module):
    """Adds a number that is another one at each call, and takes it away again."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.calls = nn.ConvTranspose2d(5, 3, 4), 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        images: Tensor = self.main(z) + self.calls - self.calls
        return images


class Written(nn.Module):
    """Writes what depends on the latents into a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.ConvTranspose2d(5, 3, 4)

    def forward(self, z: Tensor) -> Tensor:
        image = torch.zeros(len(z), 3, 4, 4, dtype=z.dtype)
        image[:] = self.main(z)
        return image


class Scripted(nn.Module):
    """A part that is compiled, whose operations nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.main = torch.jit.trace(nn.ConvTranspose2d(5, 3, 4), torch.zeros(1, 5, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.main(z)
        return images


REASONS: dict[type[nn.Module], str] = {
    Branching: "it reads numbers that depend on the latents (__bool__)",
    Counting: "it has arguments that depend on the number of latents: ",
    Written: "it writes what depends on the latents into a tensor that does not",
}


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_what_has_no_recording_is_called_as_it_is(kind: type[nn.Module]) -> None:
    with traced(made(kind, F32)) as (_, found, note):
        assert found is None
        assert note is not None
        assert note.startswith(f"{AS_IT_IS}it cannot be recorded: {REASONS[kind]}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_left_alone_or_the_same() -> None:
    with traced(Scripted(), latent_shape=(5, 1, 1)) as (adapter, found, note):
        assert (found is None) == (note != TRACED)
        if found is not None:
            torch.testing.assert_close(found(adapter.probe_latents), adapter.probe_output)


class Coarse(nn.Module):
    """Computes in another precision, of which the recording knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.ConvTranspose2d(5, 8, 4), nn.BatchNorm2d(8))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            images: Tensor = self.main(z)
        return images.float()


def test_a_recording_with_other_outputs_is_not_used() -> None:
    with traced(made(Coarse, F32)) as (_, found, note):
        assert found is None
        assert note == f"{AS_IT_IS}the faster form gave other outputs"


Forward = Callable[[nn.Sequential, Tensor], Tensor]


def with_forward(forward: Forward) -> nn.Module:
    """A transposed convolution and another one, called by ``forward``."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Sequential(
                nn.ConvTranspose2d(5, 8, 4), nn.ConvTranspose2d(8, 8, 4, 2, 1)
            )

        def forward(self, z: Tensor) -> Tensor:
            return forward(self.main, z)

    return made(Small, F32)


def _clamped_in_part(main: nn.Sequential, z: Tensor) -> Tensor:
    x = main[0](z)
    x[:, 0].clamp_(-50.0, 50.0)
    return F.relu(main[1](x))


def _clamped_without_autograd(main: nn.Sequential, z: Tensor) -> Tensor:
    images: Tensor = main(z)
    images.data.clamp_(-50.0, 50.0)
    return images


def _noisy(main: nn.Sequential, z: Tensor) -> Tensor:
    torch.manual_seed(0)  # which no recording repeats
    x = main[0](z)
    return F.relu(main[1](x + 1e-5 * torch.randn_like(x[:1])))


def _without_gradient(main: nn.Sequential, z: Tensor) -> Tensor:
    with torch.no_grad():
        scale = 1.0 + 1e-6 * z.square().mean()
    return main(z) * scale


class _Clamp(torch.autograd.Function):
    """A clamp whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(-50.0, 50.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _is_small(z: Tensor) -> Tensor:
    return (z.abs() < 50.0).to(z.dtype).mean()


def _with_scripted(main: nn.Sequential, z: Tensor) -> Tensor:
    return main(z) * _scripted()(z)


@cache
def _scripted() -> Callable[[Tensor], Tensor]:
    return torch.jit.script(_is_small)


# Each is the same function as its recording at the probe latents, but not at large ones, or not for
# other numbers of them.
ELSEWHERE: dict[str, tuple[Forward, str]] = {
    "allclose": (
        lambda main, z: main(z) if torch.allclose(z, z.clamp(-50, 50)) else main(0.1 * z),
        "it reads numbers that depend on the latents (allclose)",
    ),
    "equal": (
        lambda main, z: main(z) if z.equal(z.clamp(-50, 50)) else main(0.1 * z),
        "it reads numbers that depend on the latents (equal)",
    ),
    "numpy": (
        lambda main, z: main(z) if np.abs(np.asarray(z.detach())).max() < 50 else main(0.1 * z),
        "it reads numbers that depend on the latents (__array__)",
    ),
    "nonzero": (
        lambda main, z: main(z) if len((z.abs() > 50).nonzero()) == 0 else main(0.1 * z),
        "it reads numbers that depend on the latents (nonzero)",
    ),
    "where": (
        lambda main, z: main(z) if len(torch.where(z > 50)[0]) == 0 else main(0.1 * z),
        "it reads numbers that depend on the latents (where)",
    ),
    "mask": (
        lambda main, z: main(z) if len(z[z.abs() > 50]) == 0 else main(0.1 * z),
        "it reads numbers that depend on the latents (__getitem__)",
    ),
    "scripted": (_with_scripted, "The following operation failed in the"),
    "part": (_clamped_in_part, "it changes a part of a tensor in place"),
    "data": (_clamped_without_autograd, "it changes a part of a tensor in place"),
    "no gradient": (_without_gradient, "it computes without gradients, or with gradients of its"),
    "its own gradient": (
        lambda main, z: _Clamp.apply(main(z)),
        "it computes without gradients, or with gradients of its own",
    ),
    "noise": (_noisy, "it draws random numbers (randn_like)"),
    "split": (
        lambda main, z: torch.cat([main(each) for each in z.split(8)]),
        "it splits the batch",
    ),
    "chunk": (
        lambda main, z: torch.cat([main(each) for each in torch.chunk(z, 2, dim=-4)]),
        "it splits the batch",
    ),
    "slice": (
        lambda main, z: torch.cat([main(z[n : n + 8]) for n in range(0, len(z), 8)]),
        "it splits the batch",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_another_function_elsewhere_is_not_recorded(name: str) -> None:
    forward, reason = ELSEWHERE[name]
    with traced(with_forward(forward), latent_shape=(5, 1, 1)) as (_, found, note):
        assert found is None
        assert note is not None
        assert note.startswith(f"{AS_IT_IS}it cannot be recorded: {reason}")


def _sliced_in_place(main: nn.Sequential, z: Tensor) -> Tensor:
    x = main[0](z)
    x[:, 0] += 1.0
    x[:, ::2] *= 0.5
    padded = x.new_zeros(len(x), 8, 6, 6)
    padded[:, :, 1:-1, 1:-1] = x
    x = F.relu(main[1](padded))
    first, second = x.view(len(x), 2, 4, 12, 12).permute(1, 0, 2, 3, 4).unbind(0)
    return first + second


def _in_another_type(main: nn.Sequential, z: Tensor) -> Tensor:
    weight = cast(Tensor, main[1].weight)
    x = F.relu(F.conv_transpose2d(main[0](z).double(), weight.double(), None, 2, 1))
    return main[1](x.float()).relu()


def _in_place_on_latents(main: nn.Sequential, z: Tensor) -> Tensor:
    z.mul_(0.5)
    return F.relu(main(z))


def _normalised(main: nn.Sequential, z: Tensor) -> Tensor:
    x = F.relu(main[1](F.instance_norm(F.relu(main[0](z)))))
    return x + x.max(dim=1, keepdim=True).values


_UNKNOWN = torch.full((8, 1, 1), 0.4, requires_grad=True)
FOLLOWED: dict[str, Forward] = {
    "slices": _sliced_in_place,
    "latents": _in_place_on_latents,
    # Of weights that no module knows, which require gradients.
    "unknown": lambda main, z: F.relu(main(z) * (_UNKNOWN * 2.0)),
    "another type": _in_another_type,
    # Of one image, torch's instance norm takes gradients of one memory layout only.
    "instance norm": _normalised,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_same_for_one_latent_and_for_many(name: str) -> None:
    with traced(with_forward(FOLLOWED[name]), latent_shape=(5, 1, 1)) as (adapter, found, note):
        assert note == TRACED
        assert found is not None
        assert torch.equal(adapter(adapter.probe_latents), adapter.probe_output)
        for rows in (1, 2, 9):
            z = torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows))
            for ours, theirs in zip(gradient(found, z), gradient(adapter, z), strict=True):
                assert (ours - theirs).abs().max() <= BOUNDS[F32] * theirs.abs().max()


def test_in_place_operations_and_items_are_followed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.other = nn.ConvTranspose2d(5, 8, 4), nn.ConvTranspose2d(8, 8, 4, 2, 1)

        def forward(self, z: Tensor) -> Tensor:
            x = self.main(z)
            x.relu_()
            y = x.new_zeros(len(x), 8, 4, 4)
            y[:, :, ::2] = x[:, :, ::2]
            F.elu(y, inplace=True)
            first, *_, last = F.leaky_relu_(self.other(y), 0.3).chunk(4, 1)
            return torch.stack([each.tanh() for each in (first, last)], 1).add_(0.5)

    for dtype in (F64, F32):
        with traced(made(InPlace, dtype)) as (adapter, found, note):
            assert note == TRACED
            assert found is not None
            z = torch.randn(9, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
            for ours, theirs in zip(gradient(found, z), gradient(adapter, z), strict=True):
                assert (ours - theirs).abs().max() <= BOUNDS[dtype] * theirs.abs().max()


class Keeping(nn.Module):
    """Keeps what it computes at the first call with each number of latents, and the last images."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.tables = nn.ConvTranspose2d(5, 8, 4), {0: torch.zeros(())}
        self.last, self.flat = torch.zeros(()), torch.zeros(())

    def forward(self, z: Tensor) -> Tensor:
        if len(z) not in self.tables:
            self.tables[len(z)] = z.new_ones(len(z), 1, 4, 4)
        self.last = F.relu(self.main(z))
        self.flat = self.last.clone().unsqueeze_(0)
        return self.last + self.tables[len(z)]


class Failing(Keeping):
    """Ends in an error where autograd records, once it has been called."""

    def forward(self, z: Tensor) -> Tensor:
        images = super().forward(z)
        if len(self.tables) > 3:
            raise RuntimeError("too many tables")
        return images


def record_a_convolution() -> None:
    recording = record(nn.ConvTranspose2d(5, 8, 4), [torch.zeros(4, 5, 1, 1)])
    assert len(recording.steps) == 1
    assert "torch._dynamo" not in sys.modules


@pytest.mark.slow
def test_a_recording_does_not_load_the_compiler() -> None:
    # Which takes more memory than most generators.
    in_a_process(__file__, "record_a_convolution")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_part_compiled_by_torch_is_left_alone_or_the_same() -> None:
    parts: dict[int, Callable[[Tensor], Tensor]] = {}

    def forward(main: nn.Sequential, z: Tensor) -> Tensor:
        part = parts.setdefault(id(main), torch.compile(main, backend="eager"))
        return F.relu(part(z))

    with traced(with_forward(forward), latent_shape=(5, 1, 1)) as (adapter, found, note):
        assert (found is None) == (note != TRACED)
        if found is not None:
            torch.testing.assert_close(found(adapter.probe_latents), adapter.probe_output)
        torch.testing.assert_close(adapter(adapter.probe_latents), adapter.probe_output)


@pytest.mark.parametrize("kind", [Keeping, Failing])
def test_what_a_module_keeps_is_a_plain_tensor(kind: type[Keeping]) -> None:
    module = made(kind)
    with frozen(module):
        found, note = try_tracing(GeneratorAdapter(module))
    assert (note == TRACED) == (found is not None)
    kept = [module.last, module.flat, *module.tables.values()]
    assert len(kept) >= 6  # of the probes, one of them alone, and the recording's other number
    for each in kept:
        assert type(each) is Tensor
        assert vars(each) == {}
    assert all(module.tables[n].shape == (n, 1, 4, 4) for n in module.tables if n)
    assert module.flat.shape == (1, *module.last.shape)
    assert torch.equal(module.flat[0], module.last)
    # The tables serve calls, and their gradients, as before.
    for n in (each for each in module.tables if each):
        z = torch.randn(n, 5, 1, 1, dtype=F64, requires_grad=True)
        (grad,) = torch.autograd.grad(Keeping.forward(module, z).sum(), z)
        assert type(grad) is Tensor
        assert grad.isfinite().all()


def test_other_threads_may_use_what_a_module_keeps() -> None:
    begun: list[Thread] = []
    looked: list[bool] = []

    def look(x: Tensor) -> None:
        looked.append(bool((x * 2.0).isfinite().all()))

    def forward(main: nn.Sequential, z: Tensor) -> Tensor:
        x = main[0](z)
        begun.append(Thread(target=look, args=(x,)))
        begun[-1].start()
        begun[-1].join()
        return F.relu(main[1](x))

    with traced(with_forward(forward), latent_shape=(5, 1, 1)) as (adapter, found, note):
        assert note == TRACED
        assert found is not None
        torch.testing.assert_close(found(adapter.probe_latents), adapter.probe_output)
    assert looked == [True] * len(begun)


def test_what_has_no_convolutions_is_not_traced() -> None:
    with traced(nn.Linear(4, 6)) as (_, found, note):
        assert (found, note) == (None, None)
    with traced(lambda z: z.exp(), latent_shape=3) as (_, found, note):
        assert (found, note) == (None, None)
    # Weights of four dimensions that are those of no convolution.

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, 1, 1))

        def forward(self, z: Tensor) -> Tensor:
            return z @ self.weight[:, :, 0, 0]

    with traced(Products(), latent_shape=3) as (_, found, note):
        assert (found, note) == (None, None)


def test_hooks_and_half_precision_are_left_alone() -> None:
    module = made(Mixed)
    module.main[0].register_forward_hook(lambda *_: None)  # type: ignore[index,operator,union-attr]
    with traced(module) as (_, found, note):
        assert (found, note) == (None, None)
    module = made(Mixed)
    module.main[0].register_full_backward_hook(lambda *_: None)  # type: ignore[index,operator,union-attr]
    with traced(module) as (_, found, note):
        assert (found, note) == (None, None)
    with traced(made(Mixed, torch.bfloat16)) as (_, found, note):
        assert (found, note) == (None, None)


def solved(module: Any, **how: Any) -> cogen_fast.Result:
    x_obs = torch.zeros(64 * 16)
    given = {"chains": 2, "noise_std": 0.5, "seed": 1, "budget": 40, "progress": False} | how
    return cogen_fast.cogenerate(module, x_obs, torch.ones(64 * 16), **given)


def test_a_run_uses_the_trace_and_says_so() -> None:
    module = made(Mixed, F32)
    by_default, plain = solved(module), solved(module, compute=Compute(backend="reference"))
    assert TRACED in by_default.notes
    assert not any("trace" in note for note in plain.notes)
    # The same first prior draws: energies differ by rounding alone.
    first, second = by_default.energy_history[0], plain.energy_history[0]
    torch.testing.assert_close(first, second, rtol=1e-4, atol=0.0)
    again = solved(module)
    assert torch.equal(again.latents, by_default.latents)


@contextmanager
def problem_of(module: Any, **how: Any) -> Iterator[Any]:
    with prepared(module, torch.zeros(64 * 16), torch.ones(64 * 16), noise_std=1.0, **how) as found:
        yield found


def test_who_asks_for_something_else_gets_that() -> None:
    module = made(Mixed, F32)
    for compute in (
        Compute(backend="native"),
        Compute(backend="reference"),
        Compute(gradient_dtype="bfloat16"),
        Compute(energy_dtype="float64"),
    ):
        with problem_of(module, compute=compute) as problem:
            assert TRACED not in problem.notes
            assert problem.potential.generator is problem.adapter
    with problem_of(module) as problem:
        assert TRACED in problem.notes


def test_a_generator_with_a_fast_path_keeps_it() -> None:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(8, latent_size=8, fmap_base=64, fmap_max=8)
    with prepared(generator, torch.zeros(3, 8, 8), torch.ones(3, 8, 8), noise_std=1.0) as problem:
        assert "generator: its own fast path computes images" in " ".join(problem.notes)
        assert TRACED not in problem.notes


def test_a_conditional_generator_is_traced_within_its_prior() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.ConvTranspose2d(6, 8, 4)

        def forward(self, z: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"images": self.main(torch.cat([z, labels], 1)[:, :, None, None]), "z": z}

    module, label = Labelled(), torch.tensor([[0.0, 1.0]])
    for conditions in (label, torch.cat([label, 1.0 - label])):
        prior = Prior(module, conditions=conditions, output="images")
        with traced(prior, latent_shape=4) as (adapter, found, note):
            assert note == TRACED
            assert found is not None
            z = adapter.probe_latents
            torch.testing.assert_close(gradient(found, z), gradient(adapter, z))
            # Of the observation that the rows belong to.
            index = torch.full((len(z),), len(conditions) - 1)
            torch.testing.assert_close(found(z, index), adapter(z, index))
        assert prior.generator is module


@pytest.mark.parametrize("space", ["z", "w", "w+"])
def test_a_stylegan2_is_traced_in_each_space(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MANY_CHANNELS", 1)
    torch.manual_seed(0)
    generator = StyleGAN2Generator(
        16, latent_size=8, mapping=(8, 8), feature_maps=(8, 8, 8), architecture="residual"
    )
    prior = Prior(generator.double(), space=space, noise="latent", draws=100)
    with traced(prior) as (adapter, found, note):
        assert note == TRACED
        assert found is not None
        z = torch.randn(3, adapter.latent_size, generator=torch.Generator().manual_seed(1))
        for ours, theirs in zip(
            gradient(found, z.double()), gradient(adapter, z.double()), strict=True
        ):
            assert (ours - theirs).abs().max() <= BOUNDS[F64] * theirs.abs().max()

"""The perceptual misfit against the package's own distance, and what is done with odd images.

The package ``lpips`` is not needed: `StandIn` has the interface of its `LPIPS`, with few and random
weights. Where it is installed it is tested, too, with random weights in place of torchvision's.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast import (
    AveragePool,
    Compute,
    Fourier,
    Lpips,
    Matrix,
    Operator,
    cogenerate,
    inpaint,
    super_resolve,
)
from cogen_fast.problem.problem import prepared

X_OBS = 0.5 * torch.ones(3, 16, 16)
X_OBS[:, ::2] *= -1.0
FAST: dict[str, Any] = {"progress": False, "budget": 20, "seed": 3}
needs_lpips = pytest.mark.skipif(
    importlib.util.find_spec("lpips") is None, reason="the extra lpips is not installed"
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Trunk(nn.Module):
    """Activations of two layers; keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 5, 4), nn.Conv2d(8, 6, 3)
        for n, weight in enumerate(self.parameters()):
            weight.data = 0.3 * normal(*weight.shape, seed=n)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.one(x).relu()
        return first, self.two(first).relu()


class Scaling(nn.Module):
    """The scaling of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.03, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.45])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class StandIn(nn.Module):
    """What `Lpips` uses of ``lpips.LPIPS``, and a forward of both images at once like its own."""

    version, L = "0.1", 2

    def __init__(self, lpips: bool = True) -> None:
        super().__init__()
        self.net, self.scaling_layer, self.lpips = Trunk(), Scaling(), lpips
        weights = [nn.Conv2d(n, 1, 1, bias=False) for n in (8, 6)]
        for n, each in enumerate(weights):
            each.weight.data = normal(*each.weight.shape, seed=10 + n).abs()
        self.lins = nn.ModuleList(nn.Sequential(nn.Dropout(), each) for each in weights)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a), 1, 1, 1, dtype=a.dtype)
        for n in range(self.L):
            x, y = (self.net(self.scaling_layer(each))[n] for each in (a, b))
            norms = [torch.sqrt(torch.sum(each**2, dim=1, keepdim=True)) for each in (x, y)]
            x, y = x / (norms[0] + 1e-10), y / (norms[1] + 1e-10)
            squares = (x - y) ** 2
            weighed = self.lins[n](squares) if self.lpips else squares.sum(1, keepdim=True)
            total = total + weighed.mean([2, 3], keepdim=True)
        return total


def layers(*made: nn.Module) -> Any:
    return lambda pretrained: SimpleNamespace(features=nn.Sequential(*made))


def alexnet() -> Any:
    """The layers of torchvision's AlexNet, with random weights."""
    random = torch.Generator().manual_seed(1)
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1)]
    sizes += [(384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    made: list[nn.Module] = []
    for n, size in enumerate(sizes):
        convolution = nn.Conv2d(*size)
        for weight in convolution.parameters():
            weight.data = 0.05 * torch.randn(weight.shape, generator=random)
        made += [convolution, nn.ReLU()] + ([nn.MaxPool2d(3, 2)] if n < 2 else [])
    return layers(*made)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package as it is installed, beside a stand-in for torchvision's networks."""
    torchvision = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(alexnet=alexnet())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    yield pytest.importorskip("lpips")
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        del sys.modules[name]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in for the package; gives the names of the networks that were asked for."""
    asked: list[str] = []

    def make(net: str, verbose: bool) -> StandIn:
        torch.randn(3)  # as layers do for their weights
        assert not verbose
        asked.append(net)
        return StandIn()

    module = ModuleType("lpips")
    module.LPIPS = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    yield asked


class Pictures(nn.Module):
    """Images that are smooth functions of three latents."""

    latent_size = 3

    def __init__(self, side: int = 16, channels: int = 3) -> None:
        super().__init__()
        self.shape = channels, side, side
        coarse = F.interpolate(normal(3, channels, 4, 4, seed=5), size=side, mode="bilinear")
        self.weight = nn.Parameter(coarse.flatten(1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight).reshape(-1, *self.shape)


def agree(network: nn.Module) -> None:
    """Values and gradients are those of the network's own forward."""
    network = network.eval()
    targets, prediction = normal(2, 3, 70, 67).tanh(), normal(4, 3, 70, 67, seed=1).tanh()
    index = torch.tensor([1, 0, 1, 1])
    grads = []
    bound = Lpips(network, scale=0.5).bind_targets(targets)
    for f in (lambda x: 0.5 * bound(x, index), lambda x: network(x, targets[index]).flatten()):
        x = prediction.clone().requires_grad_()
        value = f(x)
        (grad,) = torch.autograd.grad(value.sum(), x)
        grads.append((value.detach(), grad))
    (value, grad), (expected, expected_grad) = grads
    assert float(expected.min()) > 1e-3
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))


@pytest.mark.parametrize("lpips", [True, False], ids=["calibrated", "plain"])
def test_distances_are_those_of_a_forward_of_both_images(lpips: bool) -> None:
    agree(StandIn(lpips))


@needs_lpips
@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"version": "0.0"}, {"lpips": False}, {"spatial": False}], ids=str
)
def test_distances_are_those_of_the_package(package: Any, options: dict[str, Any]) -> None:
    agree(package.LPIPS(net="alex", verbose=False, **options))


@needs_lpips
@pytest.mark.slow
def test_the_package_is_loaded_by_name(package: Any) -> None:
    targets, prediction = normal(1, 3, 64, 64).tanh(), normal(1, 3, 64, 64, seed=1).tanh()
    before = torch.get_rng_state()
    value = Lpips("alex", scale=1.0)(prediction, targets)
    assert torch.equal(torch.get_rng_state(), before)
    expected = package.LPIPS(net="alex", verbose=False)(prediction, targets).flatten()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("height", "width", "factor"), [(32, 40, 2), (9, 30, 8), (63, 64, 2)])
def test_small_and_grey_images_are_enlarged_and_repeated(
    height: int, width: int, factor: int
) -> None:
    network = StandIn().eval()
    pair = normal(2, 1, height, width).tanh()
    large = F.interpolate(
        pair.repeat(1, 3, 1, 1), size=(factor * height, factor * width), mode="bilinear"
    )
    assert min(large.shape[2:]) >= 64
    expected = network(large[:1], large[1:]).flatten()
    value = Lpips(network, scale=1.0)(pair[:1], pair[1:])
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)


def test_features_of_the_observations_are_computed_once() -> None:
    generator, network, seen = Pictures(), StandIn(), []
    network.net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    x_obs = generator(normal(2, 3, seed=9)).detach()
    mask = torch.ones(16, 16)
    mask[:8] = 0
    result = cogenerate(generator, x_obs, mask, misfit=Lpips(network), **FAST)
    large = F.interpolate(mask * x_obs, scale_factor=4, mode="bilinear")
    observed = network.scaling_layer(large)
    of_observations = [x for x in seen if len(x) == 2 and torch.allclose(x, observed)]
    assert len(of_observations) == 1
    assert seen[0] is of_observations[0]
    # All further rows are images of G: none is another image of the observations.
    rows = torch.cat(seen[1:])
    assert len(rows) > 2 * 16 * 15
    assert float((rows[:, None] - observed).abs().flatten(2).amax(-1).min()) > 1e-4
    assert len(result.images) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_hidden_pixels_are_the_same_in_both_images(count: int, installed: list[str]) -> None:
    generator = Pictures()
    x_obs = generator(normal(count, 3, seed=9)).detach()
    mask = torch.ones(16, 16)
    mask[4:9, 3:] = 0
    hidden = x_obs.masked_fill(mask == 0, torch.nan)
    latents = normal(count, 5, 3, seed=1)
    with prepared(generator, hidden, mask, misfit="lpips", weight=2.0) as problem:
        energy, grad = problem.potential.energy_and_grad(latents)
        alone = problem.potential.energy(latents)
    assert installed == ["alex"]
    prediction = mask * generator(latents.flatten(0, 1)).detach()
    target = (mask * x_obs).repeat_interleave(5, 0)
    expected = 2.0 * Lpips()(prediction, target).reshape(count, 5)
    torch.testing.assert_close(energy, expected.double(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(alone, energy, rtol=1e-5, atol=0.0)
    assert grad.isfinite().all()


def test_low_resolutions_are_compared_as_they_are_measured(installed: list[str]) -> None:
    generator, latents = Pictures(), normal(1, 4, 3, seed=1)
    low = AveragePool(2).measure(generator(normal(1, 3, seed=9)).detach())
    with prepared(generator, low, AveragePool(2), misfit=Lpips(scale=0.1)) as problem:
        energy = problem.potential.energy(latents)
    made = AveragePool(2).measure(generator(latents[0]).detach())
    expected = Lpips(scale=0.1)(made, low.expand(4, -1, -1, -1))
    torch.testing.assert_close(energy[0], expected.double(), rtol=1e-5, atol=0.0)


def test_energies_in_float64_are_those_of_a_float64_network() -> None:
    generator, latents = Pictures(), normal(1, 4, 3, seed=1)
    x_obs = generator(normal(1, 3, seed=9)).detach()
    compute = Compute(energy_dtype="float64")
    with prepared(generator, x_obs, 1, misfit=Lpips(StandIn()), compute=compute) as problem:
        assert problem.split is not None
        energy = problem.split.energy(latents)
        images = generator.double()(latents[0].double()).detach()
    expected = Lpips(StandIn().double())(images, x_obs.double().expand(4, -1, -1, -1))
    assert expected.dtype == torch.float64
    torch.testing.assert_close(energy[0], expected, rtol=1e-12, atol=0.0)


def test_a_pixel_without_activations_has_a_finite_gradient() -> None:
    network = StandIn()
    network.net.one.bias.data.fill_(0.0)
    x = network.scaling_layer.shift.expand(1, 3, 64, 64).clone().requires_grad_()
    assert not network.net(network.scaling_layer(x))[0].any()
    (grad,) = torch.autograd.grad(Lpips(network)(x, normal(1, 3, 64, 64).tanh()).sum(), x)
    assert grad.isfinite().all()


def test_a_network_of_your_own_stays_as_it_was() -> None:
    network = StandIn().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pair = normal(2, 3, 64, 64).tanh().double()
    values = {float(Lpips(network)(pair[:1], pair[1:])) for _ in range(3)}
    assert len(values) == 1  # no dropout
    assert network.training
    assert all(weight.requires_grad for weight in network.parameters())
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("task", ["inpaint", "super_resolve"])
def test_samples_look_like_the_observation_and_have_no_evidence(task: str) -> None:
    generator = Pictures()
    truth = generator(normal(1, 3, seed=9)).detach()
    before = torch.get_rng_state()
    if task == "inpaint":
        mask = torch.ones(16, 16)
        mask[:8] = 0
        result = inpaint(generator, truth[0], mask, misfit="lpips", **FAST | {"budget": 60})
    else:
        result = super_resolve(
            generator, AveragePool(2).measure(truth)[0], 2, misfit="lpips", **FAST
        )
    assert torch.equal(torch.get_rng_state(), before)
    prior = (generator(normal(64, 3, seed=2)).detach() - truth).abs().mean()
    assert (result.mean() - truth).abs().mean() < 0.2 * prior
    assert result.log_evidence is None
    assert "needs Gaussian noise" in result.reasons["log_evidence"]
    assert result.settings["noise"] == "user misfit, weight 1"


CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "name": ({"misfit": "ssim"}, TypeError, "misfit: expected a callable or \"lpips\", got 'ssim'"),
    "noise": ({"noise_std": 0.1}, ValueError, "noise_std: expected none beside a misfit"),
    "vector": (
        {"mask": Matrix(normal(5, 768)), "x_obs": normal(5)},
        ValueError,
        r"misfit: Lpips compares images .* got measurements of shape \(5,\)",
    ),
    "complex": (
        {"mask": Fourier(torch.ones(16, 16)), "x_obs": torch.zeros(3, 256) * 1j},
        ValueError,
        r"misfit: Lpips compares images .* got complex measurements of shape \(3, 256\)",
    ),
    "channels": (
        {"mask": Operator(lambda x: x[:, :2]), "x_obs": torch.zeros(2, 16, 16)},
        ValueError,
        r"misfit: Lpips compares images .*\(2, 16, 16\)",
    ),
    "range": (
        {"x_obs": 510.0 * X_OBS},
        ValueError,
        r"x_obs: expected images in \[-1, 1\] for the misfit Lpips, got values up to 255",
    ),
}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_compared_is_refused_by_name(name: str) -> None:
    changes, error, message = CASES[name]
    given = {"x_obs": X_OBS, "mask": 1, "misfit": "lpips"} | changes
    with pytest.raises(error, match=message):
        cogenerate(Pictures(), given.pop("x_obs"), given.pop("mask"), **given, **FAST)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Lpips("resnet"), ValueError, r"net: expected one of .*'alex'.*'resnet'"),
        (lambda: Lpips(nn.ReLU()), TypeError, r"net: .*lpips.LPIPS, got .*without net, scaling"),
        (lambda: Lpips(scale=0.0), ValueError, "scale: expected a finite number above 0"),
    ],
)
def test_arguments_are_checked(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"^misfit: needs lpips; pip install .cogen-fast\[lpips"):
        cogenerate(Pictures(), X_OBS, 1, misfit="lpips", **FAST)


def test_numpy_observations_are_taken(installed: list[str]) -> None:
    cogenerate(Pictures(), X_OBS.numpy(), 1, misfit=Lpips("vgg"), **FAST)
    assert installed == ["vgg"]

"""The progressive generator's fast path against the module, its ops against plain torch.

In float64 both compute the same function but for rounding. In float32 they may differ by more
where a leaky ReLU's argument is zero but for rounding: gradients are compared as vectors there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from implementations import instruction_set
from runs import seeded
from torch import Tensor

from cogen_fast import AveragePool, Compute, Operator, Paper, Stride, cogenerate
from cogen_fast.generators import ProgressiveGenerator, pretrained
from cogen_fast.generators.fast_progressive import FastProgressive
from cogen_fast.methods.settings import keywords
from cogen_fast.ops import native, reference
from cogen_fast.ops.progressive.normed import NormedActivation, norm, norm_grad
from cogen_fast.ops.progressive.packed import Workspace
from cogen_fast.ops.progressive.to_rgb import ToRGB, to_rgb_misfit
from cogen_fast.ops.progressive.upsampled import UpsampledConvolution
from cogen_fast.ops.progressive.winograd import WinogradConvolution
from cogen_fast.ops.spec import MisfitKind, MisfitSpec
from cogen_fast.problem.compute import gathered
from cogen_fast.problem.problem import prepared

U = 2.0**-24
F64 = torch.float64
SLOPE = 0.2

pytestmark = pytest.mark.usefixtures("one_thread")
ISAS = native.extension().build_info()["isa_usable"]
each_isa = pytest.mark.usefixtures("isa", "poisoned")


@pytest.fixture(
    params=[*(pytest.param(isa, marks=pytest.mark.slow) for isa in ISAS[:-1]), ISAS[-1]]
)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    with instruction_set(request.param):
        yield


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialised memory with NaN, so that an entry that is never written shows."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: allocate(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", poisoning(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoning(torch.empty_like))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_close(found: Tensor, expected: Tensor, bound: float) -> None:
    """Assert that tensors agree within ``bound`` times the largest entry."""
    assert found.shape == expected.shape
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound * size)


# --- the ops --------------------------------------------------------------------------------------

PIXELS = pytest.mark.parametrize("shape", [(1, 1), (5, 2), (2, 3, 3), (7, 17), (3, 64), (2, 513)])
normalising = pytest.mark.parametrize("normalise", [True, False], ids=["norm", "no-norm"])
slopes = pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])


@each_isa
@PIXELS
@normalising
@slopes
def test_norm(shape: tuple[int, ...], normalise: bool, slope: float) -> None:
    x, bias = random(*shape), random(shape[-1], seed=1)
    expected, scale = reference.norm(x, bias, slope, normalise)
    found = norm(x, bias, slope, normalise)
    torch.testing.assert_close(found.out, expected, rtol=1e-13, atol=0)
    if scale is None:
        assert found.scale is None
    else:
        torch.testing.assert_close(found.scale, scale, rtol=1e-13, atol=0)
    # There are three roundings before the squares, up to C in their sum, and those of root,
    # quotient and product.
    single = norm(x.float(), bias.float(), slope, normalise)
    expected, _ = reference.norm(x.float().double(), bias.float().double(), slope, normalise)
    rounding = (x.abs() + bias.abs()) * (1.0 if scale is None else scale[..., None])
    error = (single.out.double() - expected).abs()
    assert bool((error <= (shape[-1] + 8) * U * (rounding + expected.abs())).all())


@each_isa
@PIXELS
@normalising
@slopes
def test_norm_grad(shape: tuple[int, ...], normalise: bool, slope: float) -> None:
    read = random(*shape).requires_grad_()
    out, scale = reference.norm(read, torch.zeros(shape[-1], dtype=F64), slope, normalise)
    grad = random(*shape, seed=2)
    (expected,) = torch.autograd.grad(out, read, grad)
    out, scale = out.detach(), None if scale is None else scale.detach()
    defined = reference.norm_grad(grad, out, scale, slope)
    # The terms that cancel are g and its part along the output.
    size = float((grad.abs() * (1.0 if scale is None else scale[..., None])).max())
    torch.testing.assert_close(defined, expected, rtol=0, atol=1e-14 * size * shape[-1])
    found = norm_grad(grad.clone(), NormedActivation(out, scale, slope))
    torch.testing.assert_close(found, defined, rtol=0, atol=1e-14 * size * shape[-1])


@each_isa
def test_a_gradient_may_take_the_output_s_memory() -> None:
    normed = norm(random(6, 5), random(5), SLOPE, True)
    grad = random(6, 5, seed=2)
    expected = norm_grad(grad, normed)
    assert expected.data_ptr() != normed.out.data_ptr()
    found = norm_grad(grad, normed, overwrite=True)
    assert found.data_ptr() == normed.out.data_ptr()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_norm_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"^bias: expected shape \(5,\), got \(4,\)"):
        norm(random(6, 5), random(4), SLOPE, True)
    with pytest.raises(TypeError, match=r"^x: expected dtype .*float16"):
        norm(random(6, 5).half(), random(5).half(), SLOPE, True)


# The columns are images, side, and channels before and after. Bands hold whole images, rows of one,
# or a remainder of either.
SIZES = [
    (1, 4, 1, 1),
    (3, 4, 3, 5),
    pytest.param((80, 4, 131, 130), marks=pytest.mark.slow),
    (2, 8, 17, 8),
    (3, 32, 5, 3),
    (1, 64, 8, 17),
    (2, 128, 1, 2),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def written_out(x: Tensor, kernel: Tensor, bias: Tensor, upsample: bool) -> Tensor:
    """The layer by torch's own functions, for images ``(n, S, S, C)``."""
    image = x.permute(0, 3, 1, 2)
    if upsample:
        image = F.interpolate(image, scale_factor=2, mode="nearest")
    return reference.norm(channels_last(F.conv2d(image, kernel, padding=1)), bias, SLOPE, True)[0]


@each_isa
@sizes
@pytest.mark.parametrize("upsample", [False, True], ids=["plain", "upsampled"])
def test_layers(size: tuple[int, int, int, int], upsample: bool) -> None:
    images, side, before, after = size
    side = side // 2 if upsample else side
    kernel, bias = random(after, before, 3, 3), random(after, seed=1)
    kind: Any = UpsampledConvolution if upsample else WinogradConvolution
    layer = kind(kernel, bias, SLOPE, Workspace(F64))

    # The input of the layer is the output of an activation.
    read = random(images, side, side, before, seed=2).requires_grad_()
    x, scale = reference.norm(read, torch.zeros(before, dtype=F64), SLOPE, True)
    activation = NormedActivation(x.detach(), scale.detach(), SLOPE)
    expected = written_out(x, kernel, bias, upsample)
    found = layer.forward(activation.out)
    assert_close(found.out, expected, 1e-12)

    grad = random(*expected.shape, seed=3)
    extra = random(*x.shape, seed=4) if upsample else torch.zeros_like(x)
    loss = (expected * grad).sum() + (x * extra).sum()
    by_x, by_read = torch.autograd.grad(loss, (x, read))
    arguments = {"extra": extra} if upsample else {}
    # The norm of one channel is its sign, so that its gradient is what rounding leaves of `by_x`.
    bound = 1e-12 * float((by_x * activation.scale[..., None]).abs().max())
    by_conv = norm_grad(grad, found)
    kept = layer.backward(by_conv, activation, False, **arguments)
    torch.testing.assert_close(kept, by_read, rtol=0, atol=bound)
    assert kept.data_ptr() != activation.out.data_ptr()
    spent = layer.backward(by_conv, activation, True, **arguments)
    assert spent.data_ptr() == activation.out.data_ptr()
    torch.testing.assert_close(spent, kept, rtol=0, atol=0)


@pytest.mark.skipif("avx512" not in ISAS, reason="the processor has no AVX-512")
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [(3, 4, 3, 5), (2, 8, 17, 8), (1, 16, 24, 40), (5, 8, 33, 70)])
@pytest.mark.parametrize("kind", [UpsampledConvolution, WinogradConvolution])
def test_longer_vectors_change_no_bit(
    size: tuple[int, int, int, int], kind: Any, dtype: torch.dtype
) -> None:
    """Every sum has its terms in the same order, whatever the vectors and the rows at once."""
    images, side, before, after = size
    layer = kind(
        random(after, before, 3, 3).to(dtype), random(after).to(dtype), SLOPE, Workspace(dtype)
    )
    x, found = random(images, side, side, before, seed=1).to(dtype), {}
    for isa in ("avx2", "avx512"):
        with instruction_set(isa):
            there = layer.forward(x)
            grad = layer.backward(there.out, NormedActivation(x, None, 1.0), False)
        found[isa] = (there.out, there.scale, grad)
    for short, long in zip(*found.values(), strict=True):
        assert torch.equal(short, long)


def observed(
    kind: MisfitKind, factor: int, shape: tuple[int, int, int], count: int, masks: int, weights: int
) -> MisfitSpec:
    """``count`` observations; masks and weights for none (0), all (1) or each of them."""
    c, h, w = shape
    measured = c * -(-h // factor) * -(-w // factor)
    target = random(count, measured, seed=5)
    mask = None
    if masks:
        mask = (random(masks, measured, seed=6) < 0.5).to(torch.uint8)
        target = torch.where(mask.bool(), target, torch.nan)
    weight = random(max(weights, 1), measured if weights else 1, seed=7).abs() + 0.1
    return MisfitSpec(kind, shape, factor, target, mask, weight)


KINDS: dict[str, tuple[MisfitKind, int]] = {
    "mask": ("mask", 1),
    "pool-1": ("pool", 1),
    "pool-2": ("pool", 2),
    "pool-16": ("pool", 16),
    "stride-3": ("stride", 3),
    "stride-100": ("stride", 100),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@each_isa
@kinds
@pytest.mark.parametrize("rows", [0, 1, 2], ids=["no-mask", "one-mask", "masks"])
@pytest.mark.parametrize("bounded", [False, True], ids=["linear", "tanh"])
def test_to_rgb_misfit(kind: tuple[MisfitKind, int], rows: int, bounded: bool) -> None:
    # There are 144 lines of 16 pixels: two bands and a remainder.
    for colours, channels in ((1, 1), (3, 5), (2, 17)):
        spec = observed(*kind, (colours, 272, 16), 2, rows, rows)
        observation = torch.tensor([1, 0, 1])
        normed = norm(random(3, 272, 16, channels), random(channels), SLOPE, True)
        weight, bias = random(colours, channels), random(colours)
        expected = reference.to_rgb_misfit(
            normed.out, normed.scale, SLOPE, weight, bias, bounded, spec, observation
        )
        size = (expected[1] * normed.scale[..., None]).abs().max() if channels > 1 else 1e2
        energy, grad = to_rgb_misfit(normed, ToRGB(weight, bias, bounded), spec, observation)
        torch.testing.assert_close(energy, expected[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, expected[1], rtol=0, atol=1e-12 * float(size))
        assert grad.data_ptr() == normed.out.data_ptr()


def test_to_rgb_misfit_names_what_is_wrong() -> None:
    normed = norm(random(2, 4, 4, 3), random(3), SLOPE, True)
    colours = ToRGB(random(3, 3), random(3), False)
    spec = observed("mask", 1, (3, 4, 4), 2, 0, 0)
    index = torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=r"^spec.output_shape: expected \(3, 4, 4\), got \(3, 8, 8\)"
    ):
        to_rgb_misfit(normed, colours, observed("mask", 1, (3, 8, 8), 2, 0, 0), index)
    with pytest.raises(ValueError, match=r"^observation: expected values in \[0, B\)"):
        to_rgb_misfit(normed, colours, spec, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"^observation: expected shape \(2,\), got \(1,\)"):
        to_rgb_misfit(normed, colours, spec, index[:1])


# --- the network ----------------------------------------------------------------------------------


NETWORKS: dict[str, dict[str, Any]] = {
    "4px": {"resolution": 4, "latent_size": 3, "feature_maps": [3]},
    "8px": {"resolution": 8, "latent_size": 5, "feature_maps": [4, 3]},
    "grey": {"channels": 1, "latent_size": 7, "feature_maps": [5, 6, 3]},
    "five-colours": {"channels": 5, "latent_size": 7, "feature_maps": [17, 2, 33]},
    "growing": {"latent_size": 64, "feature_maps": [3, 8, 17]},
    "raw-latent": {"latent_size": 7, "feature_maps": [5, 6, 3], "normalise_latent": False},
    "raw-dense": {"latent_size": 7, "feature_maps": [5, 6, 3], "normalise_dense": False},
    "relu": {"latent_size": 7, "feature_maps": [5, 6, 3], "negative_slope": 0.0},
    "no-kink": {"latent_size": 7, "feature_maps": [5, 6, 3], "negative_slope": 1.0},
    "tanh": {"latent_size": 7, "feature_maps": [5, 6, 3], "final": "tanh"},
    "fading": {"latent_size": 7, "feature_maps": [5, 6, 3], "alpha": 0.3},
    "alpha-0": {"latent_size": 7, "feature_maps": [5, 6, 3], "alpha": 0.0},
    "alpha-1": {"latent_size": 7, "feature_maps": [5, 6, 3], "fades": True},
    "fading-tanh": {
        "resolution": 8,
        "latent_size": 7,
        "feature_maps": [5, 6],
        "alpha": 0.7,
        "final": "tanh",
        "channels": 1,
    },
    "64px": {"resolution": 64, "latent_size": 12, "fmap_base": 128, "fmap_max": 16},
}
networks = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
batches = pytest.mark.parametrize("batch", [1, 3])


@each_isa
@networks
@batches
def test_images_and_gradients_are_the_module_s(options: dict[str, Any], batch: int) -> None:
    generator = seeded(**options)
    z = random(batch, generator.latent_size).requires_grad_()
    expected, found = generator(z), generator.fast_path()(z)
    assert found.dtype == F64
    assert_close(found, expected, 1e-10)
    grad = random(*expected.shape, seed=1)
    assert_close(*(torch.autograd.grad(x, z, grad)[0] for x in (found, expected)), 1e-10)


@each_isa
@networks
@kinds
def test_energy_and_grad_are_the_module_s(
    options: dict[str, Any], kind: tuple[MisfitKind, int]
) -> None:
    generator = seeded(**options)
    side = generator.resolution
    name, factor = kind[0], min(kind[1], side) if kind[0] == "pool" else kind[1]
    spec = observed(name, factor, generator.output_shape, 2, 2, 1)
    observation = torch.tensor([1, 0, 1])
    z = random(3, generator.latent_size).requires_grad_()
    image = generator(z)
    energy, by_image = reference.misfit(image.detach(), spec, observation)
    (grad,) = torch.autograd.grad(image, z, by_image)
    found = generator.fast_path().energy_and_grad(z, spec, observation)
    assert not found[1].requires_grad
    torch.testing.assert_close(found[0], energy, rtol=1e-10, atol=0)
    assert_close(found[1], grad, 1e-10)


def test_one_feature_map_is_fine() -> None:
    """The norm of a single map is its sign unless the map is small, as it is here."""
    generator = seeded(8, latent_size=5, feature_maps=[1, 1])
    for layer in (generator.base.dense, generator.base.conv, generator.blocks[0].conv0):
        layer.weight.data *= 1e-4
        layer.bias.data *= 1e-4
    z = random(3, 5).requires_grad_()
    expected, found = generator(z), generator.fast_path()(z)
    assert_close(found, expected, 1e-10)
    grad = random(*expected.shape, seed=1)
    assert_close(*(torch.autograd.grad(x, z, grad)[0] for x in (found, expected)), 1e-7)


def test_the_gradient_is_that_of_finite_differences() -> None:
    fast = seeded(8, latent_size=5, feature_maps=[4, 3], alpha=0.4).fast_path()
    assert torch.autograd.gradcheck(fast, (random(2, 5).requires_grad_(),))


@each_isa
@pytest.mark.parametrize("name", ["grey", "64px", "fading-tanh"])
def test_float32_is_as_near_to_float64_as_the_module(name: str) -> None:
    """Winograd's sums add roundings: a factor of 4 is allowed, and 1e-4 at most in all."""
    generator = seeded(**NETWORKS[name], dtype=torch.float32)
    z = random(16, generator.latent_size, dtype=torch.float32)
    found, module = generator.fast_path()(z).double(), generator(z).double()
    exact = generator.double()(z.double())
    largest = float(exact.abs().max())
    error, usual = (float((x - exact).abs().max()) / largest for x in (found, module))
    assert error <= max(4.0 * usual, 64 * U)
    assert error < 1e-4


def test_float32_gradients_point_the_same_way() -> None:
    generator = pretrained("fashion-32")
    spec = observed("mask", 1, generator.output_shape, 1, 1, 0)
    spec = MisfitSpec(
        spec.kind, spec.output_shape, 1, spec.target.float(), spec.mask, spec.weight.float()
    )
    z, index = random(8, generator.latent_size, dtype=torch.float32), torch.zeros(8).long()
    energy, grad = generator.fast_path().energy_and_grad(z, spec, index)
    z.requires_grad_()
    image = generator(z)
    expected, by_image = reference.misfit(image.detach(), spec, index)
    (by_module,) = torch.autograd.grad(image, z, by_image)
    torch.testing.assert_close(energy, expected, rtol=1e-5, atol=0)
    assert float((grad - by_module).norm() / by_module.norm()) < 1e-3


def test_it_takes_rows_of_latents_only() -> None:
    fast = seeded(8, latent_size=5, feature_maps=[4, 3]).fast_path()
    assert fast(random(0, 5)).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^z: expected shape \(2, 5\), got \(2, 6\)"):
        fast(random(2, 6))
    with pytest.raises(TypeError, match=r"^z: expected dtype torch.float64, got torch.float32"):
        fast(random(2, 5).float())


def test_it_is_made_of_floats_on_the_cpu_only() -> None:
    generator = seeded(8, latent_size=5, feature_maps=[4, 3])
    with pytest.raises(TypeError, match=r"^network: expected float32 or float64 .*got .*bfloat16"):
        generator.bfloat16().fast_path()
    with pytest.raises(ValueError, match=r"^network: expected weights on cpu or cuda, got .*meta"):
        generator.to("meta").fast_path()


def test_it_is_differentiable_once() -> None:
    fast = seeded(8, latent_size=5, feature_maps=[4, 3]).fast_path()
    z = random(2, 5).requires_grad_()
    (grad,) = torch.autograd.grad(fast(z).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradients_can_be_asked_for_twice() -> None:
    fast = seeded(8, latent_size=5, feature_maps=[4, 3]).fast_path()
    z = random(2, 5).requires_grad_()
    x = fast(z)
    grad = random(*x.shape)
    once, twice = (torch.autograd.grad(x, z, grad, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(once, twice, rtol=0, atol=0)


def test_it_keeps_the_weights_of_its_making() -> None:
    generator = seeded(8, latent_size=5, feature_maps=[4, 3], fades=True)
    z = random(2, 5)
    fast, before = generator.fast_path(), generator(z)
    for parameter in generator.parameters():
        parameter.data.mul_(-0.5)
    generator.alpha = 0.5
    assert_close(fast(z), before, 1e-10)
    assert_close(generator.fast_path()(z), generator(z), 1e-10)


def saved_numbers(function: Callable[[Tensor], Tensor], z: Tensor) -> int:
    """The number of entries that autograd keeps for the gradient; shared memory counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = function(z.requires_grad_())
    del x
    return sum(kept.values())


def test_it_keeps_the_outputs_and_one_number_per_pixel() -> None:
    generator = seeded(64, latent_size=12, fmap_base=512, fmap_max=64)
    z = random(2, 12)
    maps = generator.feature_maps
    sides = [4 << stage for stage in range(len(maps))]
    activations = 2 * sum(side**2 * (c + 1) for side, c in zip(sides, maps, strict=True))
    kept = 2 * (12 + 1) + 2 * activations
    assert saved_numbers(generator.fast_path(), z) == kept
    assert saved_numbers(generator, z) > 2.5 * kept


# --- in the sampler -------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"latent_size": 6, "feature_maps": [8, 8, 4], "channels": 1}
MASK = np.ones((16, 16))
MASK[4:12, 4:12] = 0


def problem_of(generator: Any, backend: str = "auto") -> Any:
    x = torch.zeros(1, 16, 16, dtype=F64 if isinstance(generator, torch.nn.Module) else None)
    return prepared(generator, x, MASK, noise_std=0.3, compute=Compute(backend=backend))


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_the_sampler_takes_it(backend: str) -> None:
    with problem_of(seeded(**SMALL), backend) as problem:
        assert isinstance(problem.potential.generator, FastProgressive)
        assert problem.backend == "fused"


class Doubled(ProgressiveGenerator):
    """A subclass that computes something else."""

    def forward(self, z: Tensor) -> Tensor:
        return 2.0 * super().forward(z)


def hooked() -> ProgressiveGenerator:
    generator = seeded(**SMALL)
    generator.blocks[0].register_forward_hook(lambda *_: None)
    return generator


OTHERS: dict[str, Callable[[], Any]] = {
    "subclass": lambda: Doubled(16, **SMALL).double(),
    "hooked": hooked,
    "half": lambda: seeded(**SMALL).to(torch.bfloat16),
    "function": lambda: seeded(**SMALL, dtype=torch.float32).forward,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_generators_are_called_themselves(make: Callable[[], Any]) -> None:
    generator = make()
    options = {"latent_shape": 6, "noise_std": 0.3}
    with prepared(generator, torch.zeros(1, 16, 16), MASK, **gathered(options)) as problem:
        assert problem.potential.generator is problem.adapter
        assert problem.backend == "native"


def test_fused_is_refused_for_other_generators() -> None:
    with (
        pytest.raises(ValueError, match=r"^backend: fused serves progressive generators and, with"),
        problem_of(hooked(), "fused"),
    ):
        pass


def run(generator: ProgressiveGenerator, backend: str, **options: Any) -> Any:
    x = torch.stack([generator(random(1, 6, seed=seed))[0] for seed in (1, 2)])
    settings = {"noise_std": 0.3, "seed": 3, "progress": False, "backend": backend} | options
    return cogenerate(generator, x, settings.pop("mask", MASK), **keywords(settings))


def test_a_result_says_so() -> None:
    generator = seeded(**SMALL)
    short = {"method": "paper", "ais_steps": 2, "leapfrog_steps": 1}
    note = (
        "generator: its own fast path computes images and their gradients with respect to the "
        "latents"
    )
    for backend, name in (("auto", "fused"), ("native", "native"), ("reference", "reference")):
        result = run(generator, backend, **short)
        assert result.settings["backend"] == name
        assert f"The backend is {name}." in result.notes
        assert (note in result.notes) == (name == "fused")


def pooled(factor: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.avg_pool2d(x, factor)


OBSERVED: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "mask": (MASK, lambda x: x),
    "pool": (AveragePool(4), pooled(4)),
    "stride": (Stride(3), lambda x: x[..., ::3, ::3]),
    "operator": (Operator(pooled(2)), pooled(2)),
}


def absolute(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().flatten(1).sum(1)


@pytest.mark.parametrize(
    ("name", "misfit"),
    [*((name, None) for name in OBSERVED), ("mask", absolute), ("operator", absolute)],
    ids=[*OBSERVED, "mask-absolute", "operator-absolute"],
)
def test_a_short_run_is_the_ordinary_one(name: str, misfit: Any) -> None:
    """Two observations in float64 over a few transitions, in calls of at most three latents."""
    generator = seeded(**SMALL, alpha=0.6)
    operator, measure = OBSERVED[name]
    images = torch.stack([generator(random(1, 6, seed=seed))[0] for seed in (1, 2)])
    options = {"noise_std": 0.3} if misfit is None else {"misfit": misfit, "weight": 0.1}
    fast, slow = (
        cogenerate(
            generator,
            measure(images),
            operator,
            **keywords(
                {
                    "method": "paper",
                    "ais_steps": 5,
                    "leapfrog_steps": 3,
                    "chains": 4,
                    "max_batch": 3,
                    "progress": False,
                    "backend": backend,
                    **options,
                }
            ),
        )
        for backend in ("auto", "native")
    )
    assert (fast.settings["backend"], slow.settings["backend"]) == ("fused", "native")
    torch.testing.assert_close(fast.latents, slow.latents, rtol=0, atol=1e-9)
    torch.testing.assert_close(fast.energies, slow.energies, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.log_weights, slow.log_weights, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_whole_run_has_the_ordinary_statistics() -> None:
    """float32 runs with other noise agree in evidence and mean energy of independent chains."""
    generator = seeded(8, torch.float32, latent_size=6, feature_maps=[8, 4], channels=1)
    x = generator(random(1, 6, seed=1, dtype=torch.float32))
    mask = np.ones((8, 8))
    mask[2:6, 2:6] = 0
    fast, slow = (
        cogenerate(
            generator,
            x,
            mask,
            method=Paper(ais_steps=60, leapfrog_steps=5),
            noise_std=4.0,
            chains=200,
            progress=False,
            seed=seed,
            compute=Compute(backend=backend),
        )
        for seed, backend in enumerate(("auto", "native"))
    )
    assert (fast.settings["backend"], slow.settings["backend"]) == ("fused", "native")

    def distance(a: Tensor, b: Tensor, variance: Tensor) -> float:
        return float((a - b).abs().max() / variance.sqrt().max())

    errors = fast.log_normaliser_error**2 + slow.log_normaliser_error**2
    assert distance(fast.log_evidence, slow.log_evidence, errors) < 4.0
    means, variances = zip(
        *((r.energies.mean(1), r.energies.var(1) / 200) for r in (fast, slow)), strict=True
    )
    assert distance(*means, sum(variances)) < 4.0

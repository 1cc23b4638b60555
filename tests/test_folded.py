"""The progressive generator's fast path for GPUs, compared with the module.

The network, folded convolutions included, runs here on the CPU in plain torch; the Triton kernels
run in Triton's interpreter, in a process of their own, and are compiled for a GPU that need not be
there. On a CUDA device all of it is held to the module once more.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from processes import in_a_process
from runs import seeded
from torch import Tensor

from cogen_fast import Compute
from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.generators.fast_progressive import FastProgressive
from cogen_fast.ops import reference
from cogen_fast.ops.progressive.folded import FOLDINGS, FoldedLayers, TorchNorms
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.to_rgb import ToRGB
from cogen_fast.ops.spec import MisfitKind, MisfitSpec
from cogen_fast.problem.compute import gathered
from cogen_fast.problem.problem import prepared

pytestmark = pytest.mark.usefixtures("one_thread")

F64, F32 = torch.float64, torch.float32
SLOPE = 0.2
foldings = pytest.mark.parametrize("folding", FOLDINGS)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_close(found: Tensor, expected: Tensor, bound: float) -> None:
    """Assert that tensors agree within ``bound`` times the largest entry."""
    assert found.shape == expected.shape
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound * size, check_dtype=False)


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """Assert that vectors differ by at most ``share`` of their length."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    assert float((found - expected).norm() / expected.norm()) < share


# --- layers ---------------------------------------------------------------------------------------


@foldings
@pytest.mark.parametrize("size", [(1, 2, 1, 1), (3, 4, 3, 5), (2, 8, 17, 8)], ids=str)
@pytest.mark.parametrize("upsample", [False, True], ids=["plain", "upsampled"])
def test_layers(size: tuple[int, int, int, int], upsample: bool, folding: str) -> None:
    images, side, before, after = size
    kernel, bias = random(after, before, 3, 3), random(after, seed=1)
    layers = FoldedLayers(F64, TorchNorms(), folding)
    layer: Any = (layers.upsampled if upsample else layers.convolution)(kernel, bias, SLOPE)

    read = random(images, side, side, before, seed=2).requires_grad_()
    x, scale = reference.norm(read, torch.zeros(before, dtype=F64), SLOPE, True)
    activation = NormedActivation(x.detach(), scale.detach(), SLOPE)
    image = x.permute(0, 3, 1, 2)
    if upsample:
        image = F.interpolate(image, scale_factor=2, mode="nearest")
    convolved = F.conv2d(image, kernel, padding=1).permute(0, 2, 3, 1)
    expected, _ = reference.norm(convolved, bias, SLOPE, True)
    found = layer.forward(activation.out)
    assert found.out.is_contiguous()
    assert_close(found.out, expected, 1e-12)

    grad = random(*expected.shape, seed=3)
    extra = random(*x.shape, seed=4) if upsample else torch.zeros_like(x)
    by_x, by_read = torch.autograd.grad((expected * grad).sum() + (x * extra).sum(), (x, read))
    bound = 1e-12 * float((by_x * activation.scale[..., None]).abs().max())
    arguments = {"extra": extra} if upsample else {}
    back = layer.backward(layers.norm_grad(grad, found), activation, False, **arguments)
    torch.testing.assert_close(back, by_read, rtol=0, atol=bound)


def test_a_folding_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"^folding: expected one of .*got 'origami'"):
        FoldedLayers(F64, TorchNorms(), "origami")


# --- the network ----------------------------------------------------------------------------------

NETWORKS: dict[str, dict[str, Any]] = {
    "4px": {"resolution": 4, "latent_size": 3, "feature_maps": [3]},
    "grey": {"channels": 1, "latent_size": 7, "feature_maps": [5, 6, 3]},
    "raw": {
        "latent_size": 7,
        "feature_maps": [5, 6, 3],
        "normalise_latent": False,
        "normalise_dense": False,
    },
    "tanh": {"latent_size": 7, "feature_maps": [5, 17, 3], "final": "tanh"},
    "fading": {"latent_size": 7, "feature_maps": [5, 6, 3], "alpha": 0.3},
    "fading-tanh": {"latent_size": 7, "feature_maps": [5, 6, 3], "alpha": 0.7, "final": "tanh"},
    "64px": {"resolution": 64, "latent_size": 12, "fmap_base": 128, "fmap_max": 16},
}
networks = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
KINDS: dict[str, tuple[MisfitKind, int]] = {
    "mask": ("mask", 1),
    "pool": ("pool", 2),
    "stride": ("stride", 3),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def folded(
    generator: ProgressiveGenerator, folding: str = "transposed", dtype: torch.dtype | None = None
) -> FastProgressive:
    dtype = dtype or generator.to_rgb.weight.dtype
    return FastProgressive(generator.network(), FoldedLayers(dtype, TorchNorms(), folding))


def observed(kind: tuple[MisfitKind, int], shape: tuple[int, int, int]) -> MisfitSpec:
    """Two observations of masks, and weights, of their own; what is hidden is NaN."""
    (c, h, w), (name, factor) = shape, kind
    measured = c * -(-h // factor) * -(-w // factor)
    mask = (random(2, measured, seed=6) < 0.5).to(torch.uint8)
    target = torch.where(mask.bool(), random(2, measured, seed=5), torch.nan)
    return MisfitSpec(name, shape, factor, target, mask, random(2, measured, seed=7).abs() + 0.1)


@networks
@foldings
@pytest.mark.parametrize("batch", [1, 3])
def test_images_and_gradients_are_the_module_s(
    options: dict[str, Any], folding: str, batch: int
) -> None:
    generator = seeded(**options)
    z = random(batch, generator.latent_size).requires_grad_()
    expected, found = generator(z), folded(generator, folding)(z)
    assert_close(found, expected, 1e-10)
    grad = random(*expected.shape, seed=1)
    assert_close(*(torch.autograd.grad(x, z, grad)[0] for x in (found, expected)), 1e-10)


def module_s(
    generator: ProgressiveGenerator, z: Tensor, spec: MisfitSpec, observation: Tensor
) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    image = generator(z)
    energy, by_image = reference.misfit(image.detach(), spec, observation)
    return energy, torch.autograd.grad(image, z, by_image)[0]


def posed(
    options: dict[str, Any], kind: tuple[MisfitKind, int]
) -> tuple[ProgressiveGenerator, MisfitSpec, Tensor, Tensor, Tensor, Tensor]:
    """A generator, observations, latents, and the module's energies and gradients."""
    generator = seeded(**options)
    spec, observation = observed(kind, generator.output_shape), torch.tensor([1, 0, 1])
    z = random(3, generator.latent_size)
    return generator, spec, observation, z, *module_s(generator, z, spec, observation)


@networks
@kinds
@foldings
def test_energy_and_grad_are_the_module_s(
    options: dict[str, Any], kind: tuple[MisfitKind, int], folding: str
) -> None:
    generator, spec, observation, z, energy, grad = posed(options, kind)
    found = folded(generator, folding).energy_and_grad(z, spec, observation)
    torch.testing.assert_close(found[0], energy, rtol=1e-10, atol=0)
    assert_close(found[1], grad, 1e-10)


def single(spec: MisfitSpec) -> MisfitSpec:
    return MisfitSpec(
        spec.kind,
        spec.output_shape,
        spec.factor,
        spec.target.float(),
        spec.mask,
        spec.weight.float(),
    )


HALF_ERRORS = {torch.float16: 0.01, torch.bfloat16: 0.08}


@pytest.mark.parametrize("dtype", HALF_ERRORS, ids=str)
@pytest.mark.parametrize("name", ["fading-tanh", "64px"])
def test_half_precision_is_near(dtype: torch.dtype, name: str) -> None:
    """float16 is eight times as accurate as bfloat16: its mantissa has three bits more."""
    generator = seeded(**NETWORKS[name], dtype=F32)
    spec = single(observed(("mask", 1), generator.output_shape))
    observation, z = torch.tensor([1, 0, 1]), random(3, generator.latent_size, dtype=F32)
    fast = folded(generator, dtype=dtype)
    assert_near(fast(z), generator(z), HALF_ERRORS[dtype])
    _, grad = module_s(generator, z, spec, observation)
    found = fast.energy_and_grad(z, spec, observation)[1]
    assert found.dtype == F32
    # Where the argument of a leaky ReLU is 0 up to rounding, the two may use different slopes.
    assert_near(found, grad, 4 * HALF_ERRORS[dtype])


def test_what_is_wrong_is_named() -> None:
    generator = seeded(8, latent_size=5, feature_maps=[4, 3])
    fast, z = folded(generator), random(2, 5)
    with pytest.raises(ValueError, match=r"^z: expected shape \(2, 5\), got \(2, 6\)"):
        fast(random(2, 6))
    with pytest.raises(TypeError, match=r"^z: expected dtype torch.float64, got torch.float32"):
        fast(z.float())
    spec = observed(("mask", 1), (3, 16, 16))
    with pytest.raises(ValueError, match=r"^spec.output_shape: expected \(3, 8, 8\), got \(3, 16"):
        fast.energy_and_grad(z, spec, torch.tensor([0, 1]))
    spec = observed(("mask", 1), (3, 8, 8))
    with pytest.raises(ValueError, match=r"^observation: expected shape \(2,\) on cpu, got \(1,\)"):
        fast.energy_and_grad(z, spec, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"^dtype: expected torch.float64 on the CPU, that of the"):
        generator.fast_path(torch.float16)


# --- the kernels ----------------------------------------------------------------------------------


def compare_kernels() -> None:
    """Each kernel against the definition; run in Triton's interpreter, or on a CUDA device."""
    from cogen_fast.ops.progressive import normed_triton as kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {F64: 1e-12, F32: 1e-5, torch.float16: 2e-3}
    if device == "cuda":
        dtypes[torch.bfloat16] = 2e-2  # the interpreter has no bfloat16
    for dtype, bound in dtypes.items():
        wide = F64 if dtype == F64 else F32
        for pixels, channels in ((1, 1), (7, 3), (130, 5), (3, 513)):
            x = random(1, pixels, 1, channels).to(device, dtype)
            bias = random(channels, seed=1).to(device, wide)
            grad = random(1, pixels, 1, channels, seed=2).to(device, dtype)
            for normalise in (True, False):
                expected, scale = TorchNorms.norm(x, bias, SLOPE, normalise)
                out, found = kernels.norm(x, bias, SLOPE, normalise)
                assert out.dtype == dtype
                assert_close(out, expected, bound)
                assert (scale is None) == (found is None)
                if scale is not None and found is not None:
                    assert_close(found, scale, 1e-12 if dtype == F64 else 1e-5)
                back = TorchNorms.norm_grad(grad, out, found, SLOPE)
                # The norm of one channel is its sign, so that its gradient is nothing but rounding.
                size = float(grad.abs().max()) * (1.0 if found is None else float(found.max()))
                given = kernels.norm_grad(grad.clone(), out, found, SLOPE)
                torch.testing.assert_close(given, back, rtol=0, atol=bound * size)
        for name, factor in (("mask", 1), ("stride", 3)):
            compare_to_rgb(kernels, (name, factor), dtype, wide, bound, device)  # type: ignore[arg-type]


def compare_to_rgb(
    kernels: Any,
    kind: tuple[MisfitKind, int],
    dtype: torch.dtype,
    wide: torch.dtype,
    bound: float,
    device: str,
) -> None:
    for image_channels, channels, bounded, masks in (
        (1, 4, False, 2),
        (3, 17, True, 0),
        (2, 3, False, 1),
    ):
        spec = observed(kind, (image_channels, 18, 6))
        spec = MisfitSpec(
            spec.kind,
            spec.output_shape,
            spec.factor,
            (spec.target if masks == 2 else spec.target.nan_to_num(0.5)).to(device, wide),
            spec.mask[:masks].to(device) if masks and spec.mask is not None else None,
            spec.weight[: max(masks, 1), : None if masks else 1].to(device, wide),
        )
        read = random(3, 18, 6, channels).to(device, dtype)
        zero = torch.zeros(channels, device=device, dtype=wide)
        out, scale = TorchNorms.norm(read, zero, SLOPE, True)
        weight = random(image_channels, channels, seed=8).to(device, wide)
        bias = random(image_channels, seed=9).to(device, wide)
        rows = torch.tensor([1, 0, 1], device=device)
        how = (ToRGB(weight, bias, bounded), spec, rows)
        energy, grad = TorchNorms.to_rgb_misfit(NormedActivation(out, scale, SLOPE), *how)
        found, back = kernels.to_rgb_misfit(NormedActivation(out.clone(), scale, SLOPE), *how)
        assert found.dtype == F64
        torch.testing.assert_close(found, energy, rtol=1e-12 if wide == F64 else 1e-5, atol=0)
        size = float(grad.abs().max())
        torch.testing.assert_close(back, grad, rtol=0, atol=bound * size)


@pytest.mark.slow
@needs_triton
def test_kernels_in_the_interpreter() -> None:
    in_a_process(__file__, "compare_kernels", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


def run_network() -> None:
    """The whole fast path with the kernels, fused last step and composed."""
    from cogen_fast.ops.progressive import normed_triton as kernels

    for name, kind, folding in (
        ("grey", "mask", "phases"),
        ("tanh", "stride", "transposed"),
        ("fading", "mask", "phases"),
        ("raw", "pool", "transposed"),
    ):
        generator, spec, observation, z, energy, grad = posed(NETWORKS[name], KINDS[kind])
        fast = FastProgressive(generator.network(), FoldedLayers(F64, kernels, folding))
        found = fast.energy_and_grad(z, spec, observation)
        torch.testing.assert_close(found[0], energy, rtol=1e-10, atol=0)
        assert_close(found[1], grad, 1e-10)
        assert fast(z[:0]).shape == (0, *generator.output_shape)


@pytest.mark.slow
@needs_triton
def test_the_network_in_the_interpreter() -> None:
    in_a_process(__file__, "run_network", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


def compile_kernels() -> None:
    """Compile each kernel in each type for sm_90, as far as PTX, which needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cogen_fast.ops.progressive import normed_triton as kernels

    target = GPUTarget("cuda", 90, 32)
    sizes = {"CHANNELS": 48, "SLOPE": 0.2, "ROWS": 64, "BLOCK": 64}
    for dtype in ("fp16", "bf16", "fp32", "fp64"):
        wide = "fp64" if dtype == "fp64" else "fp32"
        half, full = f"*{dtype}", f"*{wide}"
        common = sizes | {"WIDE": kernels.tl.float64 if wide == "fp64" else kernels.tl.float32}
        sources: list[tuple[Any, dict[str, str], dict[str, Any]]] = [
            (
                kernels.norm_kernel,
                {"out": half, "scale": full, "x": half, "bias": full}
                | dict.fromkeys(("pixels", "side", "by_image", "by_line"), "i32")
                | dict.fromkeys(("by_line_phase", "by_pixel", "by_pixel_phase"), "i32"),
                common | {"PHASES": True, "EPSILON": 1e-8},
            ),
            (
                kernels.norm_grad_kernel,
                {"grad": half, "out": half, "scale": full, "pixels": "i32"},
                common,
            ),
            (
                kernels.to_rgb_misfit_kernel,
                {"energy": "*fp64", "out": half}
                | dict.fromkeys(("scale", "rgb_weight", "rgb_bias"), full)
                | {"observation": "*i64", "target": full, "mask": "*u8", "weight": full}
                | dict.fromkeys(("measured", "mask_stride", "weight_stride"), "i32")
                | dict.fromkeys(("weight_each", "pixels", "width"), "i32"),
                common | {"IMAGE_CHANNELS": 3, "STRIDE": 8, "BOUNDED": True},
            ),
        ]
        for kernel, pointers, constants in sources:
            signature = pointers | dict.fromkeys(constants, "constexpr")
            source = ASTSource(kernel, signature, constexprs=constants)
            compiled = triton.compile(source, target=target, options={"num_warps": 4})
            assert ".target sm_90" in compiled.asm["ptx"]


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path: Any) -> None:
    in_a_process(__file__, "compile_kernels", TRITON_CACHE_DIR=str(tmp_path))


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_cuda
def test_kernels_on_a_gpu() -> None:
    compare_kernels()


@pytest.mark.gpu
@needs_cuda
@networks
@kinds
@foldings
def test_the_fast_path_on_a_gpu_is_the_module_s(
    options: dict[str, Any], kind: tuple[MisfitKind, int], folding: Any
) -> None:
    generator, spec, observation, z, energy, grad = posed(options, kind)
    assert spec.mask is not None
    there = MisfitSpec(
        spec.kind,
        spec.output_shape,
        spec.factor,
        spec.target.cuda(),
        spec.mask.cuda(),
        spec.weight.cuda(),
    )
    fast = generator.cuda().fast_path(folding=folding)
    found = fast.energy_and_grad(z.cuda(), there, observation.cuda())
    torch.testing.assert_close(found[0].cpu(), energy, rtol=1e-10, atol=0)
    assert_close(found[1].cpu(), grad, 1e-10)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_the_sampler_takes_it_on_a_gpu(half: str) -> None:
    generator = seeded(**NETWORKS["64px"], dtype=F32).cuda()
    x = torch.zeros(1, *generator.output_shape)
    from cogen_fast.problem.precision import Precision

    how = {"noise_std": 0.3, "precision": Precision(half)}
    with prepared(generator, x, torch.ones(64, 64), **gathered(how)) as problem:
        assert isinstance(problem.potential.generator, FastProgressive)
        assert isinstance(problem.split.field.generator, FastProgressive)
        z = random(1, 5, generator.latent_size, dtype=F32).cuda()
        energy, grad = problem.target.energy_and_grad(z)
        expected, by_energy = problem.potential.energy_and_grad(z)
    torch.testing.assert_close(energy, expected, rtol=1e-5, atol=0)
    assert_near(grad, by_energy, 4 * HALF_ERRORS[getattr(torch, half)])


# --- taken or not ---------------------------------------------------------------------------------


class Broken(ProgressiveGenerator):
    """A generator whose fast path raises an error when it is made."""

    def fast_path(self, *_: Any) -> FastProgressive:
        raise RuntimeError("no such instruction")


def test_a_fast_path_that_fails_is_not_taken_and_told() -> None:
    generator = Broken(8, latent_size=5, feature_maps=[4, 3]).requires_grad_(False)
    with prepared(generator, torch.zeros(3, 8, 8), torch.ones(8, 8), noise_std=0.3) as problem:
        assert problem.potential.generator is problem.adapter
        assert problem.notes == (
            "generator: its own fast path cannot be used here: no such instruction",
        )
    with (
        pytest.raises(ValueError, match=r"^backend: fused .* got generator: .*no such instruction"),
        prepared(
            generator,
            torch.zeros(3, 8, 8),
            torch.ones(8, 8),
            noise_std=0.3,
            compute=Compute(backend="fused"),
        ),
    ):
        pass

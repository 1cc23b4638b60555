"""Our convolutions for users' generators, compared with torch's in float64 and float32."""

from __future__ import annotations

from typing import Any
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from implementations import ISAS, instruction_set
from torch import Tensor

from cogen_fast.ops.convolution.chain import ConvolutionChain
from cogen_fast.ops.convolution.layers import (
    ConvolutionSpec,
    OnePixel,
    TorchConvolution,
    layer_of,
)
from cogen_fast.ops.convolution.tap_sums import SummedTaps
from cogen_fast.ops.convolution.tiles import TiledConvolution, TiledTransposed
from cogen_fast.ops.progressive.folded import FoldedLayers, TorchNorms
from cogen_fast.ops.progressive.layers import Layer, NativeLayers
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.packed import Workspace
from cogen_fast.ops.progressive.upsampled import UpsampledConvolution

F32, F64 = torch.float32, torch.float64
SLOPE = 0.2
# Bounds of rounding, relative to the largest number. Tiles of four make rounding errors several
# times larger.
BOUNDS = {F64: 1e-13, F32: 5e-5}
# The columns are images, height, width, and channels before and after.
SIZES = [(1, 1, 1, 1, 1), (2, 4, 4, 5, 7), (1, 3, 5, 8, 9), (3, 8, 8, 16, 24), (2, 9, 13, 33, 17)]


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def by_torch_alone(dtype: torch.dtype) -> FoldedLayers:
    return FoldedLayers(dtype, TorchNorms())


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    difference = (found - expected).abs().max()
    assert difference <= BOUNDS[found.dtype] * expected.detach().abs().max()


def spec_of(
    kernel: Tensor, bias: Tensor, side: tuple[int, int], *, slope: float = SLOPE, **how: object
) -> ConvolutionSpec:
    """A convolution of stride 1 without padding, except for what ``how`` says."""
    given: dict[str, object] = {
        "transposed": False,
        "stride": (1, 1),
        "padding": (0, 0),
        "output_padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "folded": False,
        "upsampled": False,
    }
    return ConvolutionSpec(kernel, bias, slope=slope, side=side, **(given | how))  # type: ignore[arg-type]


def by_torch(spec: ConvolutionSpec, x: Tensor) -> Tensor:
    """The convolution's output before the activation, for images ``(n, C, H, W)``."""
    if spec.upsampled:
        x = F.interpolate(x, scale_factor=2)
    how = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
    }
    if spec.transposed:
        how["output_padding"] = spec.output_padding
        return F.conv_transpose2d(x, spec.weight, spec.bias, **how)  # type: ignore[arg-type]
    return F.conv2d(x, spec.weight, spec.bias, **how)  # type: ignore[arg-type]


def assert_is(layer: Layer, spec: ConvolutionSpec, images: int, channels: int) -> None:
    """Assert that the layer computes the convolution, its activation, and the input's gradient."""
    dtype = spec.weight.dtype
    before = random(images, channels, *spec.side, seed=3, dtype=dtype).requires_grad_()
    x = F.leaky_relu(before, SLOPE)
    convolved = by_torch(spec, x)
    read = x.detach().permute(0, 2, 3, 1).contiguous()
    found = layer.forward(read)
    assert_close(found.out.permute(0, 3, 1, 2), F.leaky_relu(convolved, spec.slope))
    assert found.scale is None
    assert found.slope == spec.slope

    grad = random(*convolved.shape, seed=4, dtype=dtype)
    (expected,) = torch.autograd.grad(convolved, before, grad)
    given = grad.permute(0, 2, 3, 1).contiguous()
    for overwrite in (False, True):
        preceding = NormedActivation(read.clone(), None, SLOPE)
        back = layer.backward(given, preceding, overwrite)
        assert_close(back.permute(0, 3, 1, 2), expected)
        assert overwrite or torch.equal(preceding.out, read)


def four_by_four(
    size: tuple[int, int, int, int, int], dtype: torch.dtype, slope: float = SLOPE
) -> ConvolutionSpec:
    """A transposed convolution of stride 2 with a 4x4 kernel."""
    _, height, width, inputs, outputs = size
    kernel = random(inputs, outputs, 4, 4, seed=1, dtype=dtype)
    bias = random(outputs, seed=2, dtype=dtype)
    return spec_of(
        kernel, bias, (height, width), slope=slope, transposed=True, stride=(2, 2), padding=(1, 1)
    )


def layer_by(
    kind: type[TiledTransposed | SummedTaps], spec: ConvolutionSpec
) -> TiledTransposed | SummedTaps:
    """The layer of a transposed convolution by that code."""
    given = (spec.weight, spec.bias, spec.slope, Workspace(spec.weight.dtype))
    return TiledTransposed(*given, spec.side) if kind is TiledTransposed else SummedTaps(*given)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", [TiledTransposed, SummedTaps])
def test_transposed_convolutions_are_torchs(
    kind: type[TiledTransposed | SummedTaps],
    size: tuple[int, int, int, int, int],
    dtype: torch.dtype,
) -> None:
    for slope in (SLOPE, 0.0, 1.0):
        spec = four_by_four(size, dtype, slope)
        layer = layer_by(kind, spec)
        assert_is(layer, spec, size[0], size[3])


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_3x3_convolutions_are_torchs(
    size: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    images, height, width, inputs, outputs = size
    kernel = random(outputs, inputs, 3, 3, seed=1, dtype=dtype)
    bias = random(outputs, seed=2, dtype=dtype)
    for slope in (SLOPE, 0.0, 1.0):
        spec = spec_of(kernel, bias, (height, width), slope=slope, padding=(1, 1))
        layer = TiledConvolution(kernel, bias, slope, Workspace(dtype), (height, width))
        assert_is(layer, spec, images, inputs)


@pytest.mark.parametrize("kind", [TiledTransposed, SummedTaps])
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(kind: type[TiledTransposed | SummedTaps], isa: str) -> None:
    spec = four_by_four((2, 9, 13, 33, 17), F32)
    with instruction_set(isa):
        assert_is(layer_by(kind, spec), spec, 2, 33)


def test_no_images_at_all() -> None:
    for kind in (TiledTransposed, SummedTaps):
        spec = four_by_four((1, 4, 4, 8, 8), F32)
        layer = layer_by(kind, spec)
        found = layer.forward(torch.zeros(0, 4, 4, 8))
        assert found.out.shape == (0, 8, 8, 8)
        preceding = NormedActivation(torch.zeros(0, 4, 4, 8), None, 1.0)
        assert layer.backward(found.out, preceding, False).shape == (0, 4, 4, 8)


OTHERS = {
    "3x3": ({"padding": (1, 1)}, (9, 5, 3, 3), TiledConvolution),
    "3x3 to few": ({"padding": (1, 1)}, (7, 5, 3, 3), TorchConvolution),
    "1x1": ({}, (3, 5, 1, 1), TorchConvolution),
    "strided": ({"stride": (2, 1), "padding": (0, 1)}, (7, 5, 3, 2), TorchConvolution),
    "grouped": ({"groups": 5, "dilation": (2, 2)}, (10, 1, 2, 2), TorchConvolution),
    "transposed": (
        {"transposed": True, "stride": (2, 2), "padding": (1, 1), "output_padding": (1, 0)},
        (5, 7, 3, 3),
        TorchConvolution,
    ),
    "upsampled": ({"upsampled": True, "padding": (1, 1)}, (7, 5, 3, 3), UpsampledConvolution),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_torchs(name: str, dtype: torch.dtype) -> None:
    how, shape, kind = OTHERS[name]
    outputs = shape[1] if how.get("transposed") else shape[0]
    bias = random(outputs, seed=2, dtype=dtype)
    spec = spec_of(random(*shape, seed=1, dtype=dtype), bias, (6, 8), **how)
    layer = layer_of(spec, NativeLayers(dtype))
    assert type(layer) is kind
    assert_is(layer, spec, 3, 5)
    on_other_devices = layer_of(spec, by_torch_alone(dtype))
    if spec.upsampled:
        assert on_other_devices is None
    else:
        assert on_other_devices is not None
        assert_is(on_other_devices, spec, 3, 5)


def test_a_transposed_convolution_of_one_pixel_is_a_dense_layer() -> None:
    kernel, bias = random(6, 5, 3, 4, seed=1, dtype=F64), random(5, seed=2, dtype=F64)
    for stride in ((1, 1), (2, 3)):  # for one pixel the stride does not matter
        spec = spec_of(kernel, bias, (1, 1), transposed=True, stride=stride)
        layer = layer_of(spec, NativeLayers(F64))
        assert isinstance(layer, OnePixel)
        assert_is(layer, spec, 3, 6)


def test_few_channels_are_summed_and_many_tiled() -> None:
    for outputs, kind in ((3, SummedTaps), (7, SummedTaps), (8, TiledTransposed)):
        spec = four_by_four((1, 4, 4, 2, outputs), F32)
        assert type(layer_of(spec, NativeLayers(F32))) is kind


def test_a_convolution_without_an_activation_is_left_to_torch() -> None:
    kernel, bias = random(7, 5, 1, 1, seed=1, dtype=F32), torch.zeros(7)
    for layers in (NativeLayers(F32), by_torch_alone(F32)):
        for slope, folded in ((1.0, False), (1.0, True), (0.0, False)):
            spec = spec_of(kernel, bias, (6, 8), slope=slope, folded=folded)
            assert (layer_of(spec, layers) is None) == (slope == 1.0 and not folded)
    for channels, kind in ((127, type(None)), (128, TiledConvolution)):
        kernel = random(channels, channels, 3, 3, seed=1, dtype=F32)
        spec = spec_of(kernel, torch.zeros(channels), (6, 8), slope=1.0, padding=(1, 1))
        assert type(layer_of(spec, NativeLayers(F32))) is kind


def test_wide_kernels_have_small_tiles_as_their_matrices_are_large() -> None:
    for inputs, slots in ((256, 36), (257, 16)):
        kernel = random(256, inputs, 3, 3, seed=1, dtype=F32)
        layer = TiledConvolution(kernel, torch.zeros(256), 1.0, Workspace(F32), (8, 8))
        x = random(1, 8, 8, inputs, seed=2, dtype=F32)
        expected = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=1)
        assert_close(layer.forward(x).out.permute(0, 3, 1, 2), expected)
        assert [len(each) for each in layer.matrices] == [slots, slots]


def test_tiles_do_not_keep_the_kernel() -> None:
    for kind, shape in ((TiledTransposed, (9, 8, 4, 4)), (TiledConvolution, (8, 9, 3, 3))):
        kernel = random(*shape, seed=1, dtype=F32)
        gone = ref(kernel)
        layer = kind(kernel, torch.zeros(8), 1.0, Workspace(F32), (8, 8))
        del kernel
        assert gone() is None
        assert layer.forward(random(1, 8, 8, 9, seed=2, dtype=F32)).out.isfinite().all()


def test_what_has_no_code_is_left_to_torch() -> None:
    spec = four_by_four((1, 4, 4, 2, 8), F32)
    odd = spec_of(spec.weight, spec.bias, (4, 4), transposed=True, stride=(2, 2), padding=(0, 0))
    assert type(layer_of(odd, NativeLayers(F32))) is TorchConvolution
    kernel, bias = random(4, 2, 5, 5, seed=1, dtype=F32), torch.zeros(4)
    wide = spec_of(kernel, bias, (4, 4), upsampled=True, padding=(2, 2))
    assert layer_of(wide, NativeLayers(F32)) is None


def chain_of(contiguous: bool) -> tuple[ConvolutionChain, list[ConvolutionSpec]]:
    """Three layers: a dense one, a tiled one, and one that sums over taps."""
    zeros, ones = torch.zeros(9, dtype=F64), torch.ones(8, dtype=F64)
    dense = spec_of(
        random(6, 9, 4, 4, seed=1, dtype=F64), zeros, (1, 1), transposed=True, slope=0.0
    )
    how: Any = {"transposed": True, "stride": (2, 2), "padding": (1, 1)}
    tiles = spec_of(random(9, 8, 4, 4, seed=2, dtype=F64), ones, (4, 4), **how)
    sums = spec_of(random(8, 2, 4, 4, seed=3, dtype=F64), ones[:2], (8, 8), slope=1.0, **how)
    specs = [dense, tiles, sums]
    by = NativeLayers(F64)
    layers = [layer for spec in specs if (layer := layer_of(spec, by)) is not None]
    return ConvolutionChain(layers, by, contiguous), specs


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_chain_is_its_layers_one_after_the_other(contiguous: bool) -> None:
    chain, specs = chain_of(contiguous)
    z = random(3, 6, 1, 1, seed=5, dtype=F64).requires_grad_()
    expected = z
    for spec in specs:
        expected = F.leaky_relu(by_torch(spec, expected), spec.slope)
    found = chain(z)
    assert found.is_contiguous() == contiguous
    assert_close(found, expected)
    with torch.no_grad():
        assert torch.equal(chain(z), found)
    grad = random(*found.shape, seed=6, dtype=F64)
    both = [torch.autograd.grad(each, z, grad, retain_graph=True)[0] for each in (found, expected)]
    assert_close(*both)
    # A second backward pass gives the same gradient, so the first has overwritten nothing.
    assert torch.equal(torch.autograd.grad(found, z, grad)[0], both[0])


def test_a_chain_ends_in_an_activation_of_its_own() -> None:
    spec = four_by_four((2, 4, 4, 5, 8), F64)
    for norms in (NativeLayers(F64), by_torch_alone(F64)):
        layer = layer_of(spec, NativeLayers(F64))
        assert layer is not None
        x = random(2, 5, 4, 4, seed=5, dtype=F64).requires_grad_()
        expected = F.leaky_relu(by_torch(spec, x), SLOPE)
        found = ConvolutionChain([layer], norms, True)(x)
        grads = [torch.autograd.grad(each.square().sum(), x)[0] for each in (found, expected)]
        assert_close(*grads)


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    chain, _ = chain_of(True)
    z = random(40, 6, 1, 1, seed=5, dtype=F64)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            rows = z.clone().requires_grad_()
            found.append(torch.autograd.grad(chain(rows).square().sum(), rows)[0])
    finally:
        torch.set_num_threads(threads)
    assert_close(*found)

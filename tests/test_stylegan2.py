"""StyleGAN2: the network against what other programs computed, and against its definition."""

from __future__ import annotations

import math
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast import load_generator, save_generator
from cogen_fast.generators import StyleGAN2Generator

SMALL: dict[str, Any] = {
    "resolution": 16,
    "latent_size": 7,
    "mapping": [9, 6],
    "feature_maps": [5, 4, 3],
}
_TOLERANCE = 1e-4


def vectors(folder: Path, name: str) -> dict[str, Tensor]:
    with np.load(folder / name) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=_TOLERANCE)


def seeded(**options: Any) -> StyleGAN2Generator:
    """A small network whose every number is random."""
    random = torch.Generator().manual_seed(3)
    generator = StyleGAN2Generator(**(SMALL | options)).double()
    for name, tensor in generator.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=random, dtype=torch.float64)
        tensor.copy_(1.0 + 0.3 * drawn if name.endswith("style_bias") else 0.5 * drawn)
    return generator.eval().requires_grad_(False)


def test_rosinality_s_file_gives_that_program_s_images(data_dir: Path) -> None:
    expected = vectors(data_dir, "rosinality_stylegan2_32px.npz")
    generator = load_generator(data_dir / "rosinality_stylegan2_32px.pt")
    assert isinstance(generator, StyleGAN2Generator)
    assert generator.feature_maps == [24, 24, 20, 16]
    z = expected["z"]
    close(generator.styles(z), expected["w"])
    close(generator(z), expected["image"])
    other = [expected[f"other_noise_{number}"] for number in range(7)]
    close(generator(z, noise=other), expected["image_other_noise"])
    generator.style_mean.copy_(expected["mean_latent"][0])
    generator.truncation = 0.7
    close(generator(z), expected["image_truncated_0_7"])


def test_nvidia_s_file_gives_that_program_s_images(data_dir: Path) -> None:
    expected = vectors(data_dir, "ada_stylegan2_32px.npz")
    generator = load_generator(data_dir / "ada_stylegan2_32px.pkl")
    assert isinstance(generator, StyleGAN2Generator)
    assert (generator.latent_size, generator.style_size) == (24, 20)
    z = expected["z"]
    close(generator.styles(z), expected["w"])
    close(generator(z), expected["image"])
    close(generator(z, noise="none"), expected["image_without_noise"])
    generator.truncation = 0.7
    close(generator(z), expected["image_truncated_0_7"])


def test_without_a_mean_style_in_the_file_it_is_that_of_many_draws(
    data_dir: Path, tmp_path: Path
) -> None:
    content = torch.load(data_dir / "rosinality_stylegan2_32px.pt", weights_only=True)
    del content["latent_avg"]
    torch.save(content, tmp_path / "g.pt")
    generator = load_generator(tmp_path / "g.pt")
    assert isinstance(generator, StyleGAN2Generator)
    w = generator.styles(torch.randn(20_000, 24, generator=torch.Generator().manual_seed(5)))
    error = w.std(0) * math.sqrt(1 / 20_000 + 1 / 10_000)
    assert ((generator.style_mean - w.mean(0)).abs() < 5 * error).all()


def test_a_file_without_noise_is_read_with_none(data_dir: Path, tmp_path: Path) -> None:
    content = torch.load(data_dir / "rosinality_stylegan2_32px.pt", weights_only=True)
    for part in ("g", "g_ema"):
        for name in [name for name in content[part] if name.startswith("noises.")]:
            del content[part][name]
    torch.save(content, tmp_path / "g.pt")
    with pytest.warns(UserWarning, match="holds no noise"):
        generator = load_generator(tmp_path / "g.pt")
    with_noise = load_generator(data_dir / "rosinality_stylegan2_32px.pt")
    assert isinstance(with_noise, StyleGAN2Generator)
    z = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    close(generator(z), with_noise(z, noise="none"))


def up_by_zeros(x: Tensor, taps: Tensor, after_kernel: int = 0) -> Tensor:
    """Enlargement by 2 with a matrix for each axis, written out tap by tap."""
    side, size = x.shape[-1], len(taps)
    matrix = torch.zeros(2 * side, side, dtype=x.dtype)
    shift = (size + 1) // 2 - after_kernel
    for out in range(2 * side):
        for position in range(side):
            tap = 2 * position - out + shift
            if 0 <= tap < size:
                matrix[out, position] = 2.0 * taps[size - 1 - tap]
    return torch.einsum("oi,nciw,pw->ncop", matrix, x, matrix)


def norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()


class Written:
    """The layers from the paper, with a kernel for each image and without code of the module."""

    def __init__(self, generator: StyleGAN2Generator) -> None:
        self.state, self.clamp = generator.state_dict(), generator.clamp
        taps = torch.tensor(generator.config["taps"]).double()
        self.taps = taps / taps.sum()

    def act(self, x: Tensor, gain: float = 1.0) -> Tensor:
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2.0) * gain
        clamp = self.clamp
        return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)

    def kernels(self, name: str, w: Tensor, demodulate: bool) -> Tensor:
        style = w @ self.state[f"{name}.style_weight"].T + self.state[f"{name}.style_bias"]
        kernel = self.state[f"{name}.weight"][None] * style[:, None, :, None, None]
        if demodulate:
            kernel = kernel / (kernel.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
        return kernel

    def conv(self, x: Tensor, name: str, w: Tensor, gain: float = 1.0) -> Tensor:
        pairs = zip(x.split(1), self.kernels(f"{name}.conv", w, True), strict=True)
        x = torch.cat([F.conv2d(one, kernel, padding=1) for one, kernel in pairs])
        x = x + self.state[f"{name}.noise"] * self.state[f"{name}.noise_strength"]
        return self.act(x + self.state[f"{name}.bias"][:, None, None], gain)

    def conv_up(self, x: Tensor, name: str, w: Tensor) -> Tensor:
        rows = []
        for one, kernel in zip(x.split(1), self.kernels(f"{name}.conv", w, True), strict=True):
            side = one.shape[-1]
            sparse = torch.zeros(1, one.shape[1], 2 * side + 3, 2 * side + 3, dtype=x.dtype)
            sparse[..., 2 : 2 * side + 2 : 2, 2 : 2 * side + 2 : 2] = one
            # A transposed convolution, of side 2 side + 1.
            wide = F.conv2d(sparse, kernel.flip(2, 3))
            extra = len(self.taps) - 4
            before, after = 1 + (extra + 1) // 2, 1 + extra // 2
            padded = F.pad(wide, [before, after, before, after])
            kernel_2d = 4.0 * torch.outer(self.taps.flip(0), self.taps.flip(0))[None, None]
            rows.append(F.conv2d(padded.transpose(0, 1), kernel_2d).transpose(0, 1))
        x = torch.cat(rows) + self.state[f"{name}.noise"] * self.state[f"{name}.noise_strength"]
        return self.act(x + self.state[f"{name}.bias"][:, None, None])

    def colours(self, x: Tensor, name: str, w: Tensor) -> Tensor:
        pairs = zip(x.split(1), self.kernels(f"{name}.conv", w, False), strict=True)
        x = torch.cat([F.conv2d(one, kernel) for one, kernel in pairs])
        x = x + self.state[f"{name}.bias"][:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def styles(self, z: Tensor, labels: Tensor | None, classes: int, layers: int) -> Tensor:
        x = norm(z)
        if labels is not None:
            one_hot = F.one_hot(labels, classes).double()
            weight, bias = (self.state[f"mapping.embed.{part}"] for part in ("weight", "bias"))
            x = torch.cat([x, norm(one_hot @ weight.T + bias)], 1)
        for number in range(layers):
            weight = self.state[f"mapping.layers.{number}.weight"]
            x = x @ weight.T + self.state[f"mapping.layers.{number}.bias"]
            x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2.0)
        return x


def written_out(generator: StyleGAN2Generator, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """The network from the paper."""
    paper, state = Written(generator), generator.state_dict()
    w = paper.styles(z, labels, generator.classes, len(generator.config["mapping"]))
    x = paper.conv(state["constant"].expand(len(z), -1, -1, -1), "blocks.0.conv1", w)
    skips = generator.architecture == "skip"
    image = paper.colours(x, "blocks.0.to_rgb", w) if skips else None
    for block in range(1, len(generator.feature_maps)):
        before, residual = x, generator.architecture == "residual"
        x = paper.conv_up(x, f"blocks.{block}.conv0", w)
        x = paper.conv(x, f"blocks.{block}.conv1", w, math.sqrt(0.5) if residual else 1.0)
        if residual:
            skip = F.conv2d(before, state[f"blocks.{block}.skip"])
            x = x + up_by_zeros(skip, paper.taps) * math.sqrt(0.5)
        if image is not None:
            image = up_by_zeros(image, paper.taps) + paper.colours(x, f"blocks.{block}.to_rgb", w)
    return paper.colours(x, f"blocks.{block}.to_rgb", w) if image is None else image


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"architecture": "residual"},
        {"architecture": "original"},
        {"architecture": "residual", "clamp": 0.7},
        {"classes": 4, "embedding": 5},
        {"taps": [1.0, 2.0, 4.0, 3.0]},
        {"taps": [1.0, 2.0, 1.0]},
        {"channels": 1, "feature_maps": [1, 2, 1], "mapping": [1]},
    ],
    ids=str,
)
def test_the_network_is_the_paper_s(options: dict[str, Any]) -> None:
    generator = seeded(**options)
    random = torch.Generator().manual_seed(11)
    z = torch.randn(3, 7, generator=random, dtype=torch.float64)
    labels = torch.tensor([2, 0, 3]) if options.get("classes") else None
    image = generator(z, labels)
    assert image.shape == (3, *generator.output_shape)
    expected = written_out(generator, z, labels)
    torch.testing.assert_close(image, expected, rtol=1e-10, atol=1e-10)


def test_a_saved_network_comes_back(tmp_path: Path) -> None:
    generator = seeded(architecture="residual", classes=3, clamp=2.0, taps=[1.0, 1.0])
    generator.truncation = 0.4
    save_generator(generator, tmp_path / "g.safetensors")
    again = load_generator(tmp_path / "g.safetensors")
    z = torch.randn(2, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert isinstance(again, StyleGAN2Generator)
    assert again.config == generator.config
    assert torch.equal(again(z, torch.tensor(1)), generator(z, torch.tensor(1)))


def test_each_layer_takes_its_own_style() -> None:
    generator = seeded()
    z = torch.randn(2, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = generator.styles(z)
    same = w[:, None].expand(-1, generator.style_layers, -1)
    assert torch.equal(generator.synthesise(same), generator.synthesise(w))
    for layer in range(generator.style_layers):
        changed = same.clone()
        changed[:, layer] += 1.0
        assert not torch.allclose(generator.synthesise(changed), generator.synthesise(w))


class _Network:
    """An object that pickles as those of NVIDIA's programs do."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> Any:
        persistence = sys.modules["torch_utils.persistence"]
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('code of a file was run')",
            "class_name": self.class_name,
            "state": self.state,
        }
        return persistence._reconstruct_persistent_obj, (meta,)  # type: ignore[attr-defined]


@pytest.fixture
def persistence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the name that such pickles refer to, while one is written."""

    def rebuilt(meta: Any) -> Any:
        raise AssertionError("code of the program was called")

    rebuilt.__module__, rebuilt.__qualname__ = "torch_utils.persistence", "rebuilt"
    module = types.ModuleType("torch_utils.persistence")
    rebuilt.__qualname__ = rebuilt.__name__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = rebuilt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    yield


State = dict[str, Tensor]


def dense_of(state: State, name: str, activation: str, prefix: str = "") -> _Network:
    weight, bias = (state[f"{name}.{prefix}{part}"] for part in ("weight", "bias"))
    parameters = {"weight": weight / 0.25, "bias": bias / 0.5}
    return _Network(
        "FullyConnectedLayer",
        _parameters=parameters,
        activation=activation,
        weight_gain=np.float64(0.25),
        bias_gain=0.5,
    )


def layer_of(state: State, name: str, clamp: float | None) -> _Network:
    noise = {"noise_const": state[f"{name}.noise"]}
    parameters = {
        "weight": state[f"{name}.conv.weight"],
        "bias": state[f"{name}.bias"],
        "noise_strength": state[f"{name}.noise_strength"],
    }
    return _Network(
        "SynthesisLayer",
        _parameters=parameters,
        _buffers=noise,
        _modules={"affine": dense_of(state, f"{name}.conv", "linear", "style_")},
        activation="lrelu",
        act_gain=np.float64(math.sqrt(2.0)),
        conv_clamp=clamp,
        use_noise=True,
    )


def colours_of(state: State, name: str, clamp: float | None) -> _Network:
    parameters = {"weight": state[f"{name}.conv.weight"] / 0.5, "bias": state[f"{name}.bias"]}
    return _Network(
        "ToRGBLayer",
        _parameters=parameters,
        _modules={"affine": dense_of(state, f"{name}.conv", "linear", "style_")},
        weight_gain=np.float64(0.5),
        conv_clamp=clamp,
    )


def block_of(generator: StyleGAN2Generator, number: int) -> _Network:
    state, clamp, name = generator.state_dict(), generator.clamp, f"blocks.{number}"
    modules = {
        half: layer_of(state, f"{name}.{half}", clamp)
        for half in ("conv0", "conv1")
        if f"{name}.{half}.bias" in state
    }
    if f"{name}.to_rgb.bias" in state:
        modules["torgb"] = colours_of(state, f"{name}.to_rgb", clamp)
    if (skip := state.get(f"{name}.skip")) is not None:
        parameters = {"weight": skip / 0.25}
        modules["skip"] = _Network("Conv2dLayer", _parameters=parameters, weight_gain=0.25)
    architectures = {"skip": "skip", "residual": "resnet", "original": "orig"}
    constant = {} if number else {"const": state["constant"][0]}
    return _Network(
        "SynthesisBlock",
        _parameters=constant,
        _buffers={"resample_filter": generator.taps.double()},
        _modules=modules,
        architecture=architectures[generator.architecture],
    )


def as_nvidia_s(generator: StyleGAN2Generator) -> _Network:
    """The network as that program would hold it, with gains of its own."""
    state = generator.state_dict()
    layers = {
        f"fc{number}": dense_of(state, f"mapping.layers.{number}", "lrelu")
        for number in range(len(generator.mapping.layers))
    }
    if generator.classes:
        layers["embed"] = dense_of(state, "mapping.embed", "linear")
    buffers = {"w_avg": state["style_mean"]}
    mapping = _Network("MappingNetwork", _modules=layers, _buffers=buffers)
    blocks = {
        f"b{4 << number}": block_of(generator, number) for number in range(len(generator.blocks))
    }
    synthesis = _Network("SynthesisNetwork", _modules=blocks)
    return _Network("Generator", _modules={"mapping": mapping, "synthesis": synthesis})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "residual", "clamp": 0.7},
        {"architecture": "original"},
        {"classes": 4, "embedding": 5},
    ],
    ids=str,
)
@pytest.mark.usefixtures("persistence")
def test_other_networks_of_that_kind_load_too(
    options: dict[str, Any], protocol: int, tmp_path: Path
) -> None:
    generator = seeded(**options)
    content = {"G": None, "D": None, "G_ema": as_nvidia_s(generator), "augment_pipe": None}
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(content, protocol))
    again = load_generator(tmp_path / "g.pkl")
    assert isinstance(again, StyleGAN2Generator)
    assert {**again.config, "taps": None} == {
        **generator.config,
        "taps": None,
        "embedding": again.embedding,
    }
    z = torch.randn(2, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([1, 3]) if generator.classes else None
    torch.testing.assert_close(again(z, labels), generator(z, labels), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("persistence")
def test_networks_that_we_do_not_have_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "g.pkl"

    def refused(content: Any, message: str) -> None:
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_generator(path)

    network = as_nvidia_s(seeded())
    synthesis = network.state["_modules"]["synthesis"]
    third = _Network("SynthesisNetwork", _modules={"input": _Network("SynthesisInput")})
    modules = {"mapping": network.state["_modules"]["mapping"], "synthesis": third}
    refused({"G_ema": _Network("Generator", _modules=modules)}, "a StyleGAN3 one")
    block = synthesis.state["_modules"]["b8"]
    block.state["_modules"]["conv1"].state["activation"] = "swish"
    refused({"G_ema": network}, "SynthesisLayer.activation: expected 'lrelu', got 'swish'")
    block.state["_modules"]["conv1"].state["activation"] = "lrelu"
    del synthesis.state["_modules"]["b4"]
    refused({"G_ema": network}, r"G\.synthesis: expected blocks b4, b8, \.\.\.")


def test_arguments_are_checked() -> None:
    for options, message in [
        ({"resolution": 12}, "resolution: expected a power of two"),
        ({"feature_maps": [4]}, "feature_maps: expected 3 numbers"),
        ({"mapping": []}, "mapping: expected at least one layer"),
        ({"architecture": "orig"}, "architecture: expected one of"),
        ({"taps": [1.0]}, "taps: expected at least two"),
        ({"clamp": 0.0}, "clamp: expected a number above 0"),
        ({"truncation": 1.5}, "truncation: expected a number in"),
        ({"classes": -1}, "classes: expected an integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            StyleGAN2Generator(**(SMALL | options))


def test_inputs_are_checked() -> None:
    plain, conditional = seeded(), seeded(classes=4)
    z = torch.zeros(2, 7, dtype=torch.float64)
    for call, message in [
        (lambda: plain(z[:, :3]), r"z: expected shape \(N, 7\)"),
        (lambda: plain(z, torch.tensor([1, 2])), "labels: expected none"),
        (lambda: conditional(z), "labels: expected those of 4 classes, got none"),
        (lambda: conditional(z, torch.tensor([0, 4])), r"labels: expected whole numbers in \[0, 4"),
        (
            lambda: conditional(z, torch.zeros(2, 3)),
            r"labels: expected those of 2 latents, shape \(2, 4\)",
        ),
        (lambda: plain(z, noise="random"), "noise: expected 'stored', 'none' or tensors"),
        (lambda: plain(z, noise=[z]), "noise: expected 5 tensors, got 1"),
        (lambda: plain(z, noise=[z] * 5), r"noise\[0\]: expected shape \(4, 4\)"),
        (lambda: plain.synthesise(z), r"w: expected shape \(N, 6\) or \(N, 6, 6\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_filter_keeps_all_digits_in_float64_and_moves_with_the_weights() -> None:
    generator = StyleGAN2Generator(**(SMALL | {"taps": [1.0, 2.0, 4.0, 3.0]}))
    z = torch.randn(2, 7, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        generator(z)
    x = z.clone().requires_grad_()
    assert torch.autograd.grad(generator(x).sum(), x)[0].isfinite().all()
    assert generator(z).dtype == torch.float32
    fresh = StyleGAN2Generator(**generator.config).double()
    fresh.load_state_dict(generator.double().state_dict())
    assert torch.equal(generator(z.double()), fresh(z.double()))
    single = StyleGAN2Generator(**SMALL)
    # So that they can move to any device.
    assert {each.dtype for each in single.buffers()} == {torch.float32}

"""Files in forms found in practice: wrapped, prefixed, without configuration, older versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cogen_fast import load_generator
from cogen_fast.generators import ProgressiveGenerator, gan_zoo
from cogen_fast.generators.reading import read_torch

PRO_GAN = "pro_gan_pth_16px.bin"
FILES = ["karras_converted_16px.pth", PRO_GAN, "rosinality_stylegan2_32px.pt"]


def content_of(path: Path) -> Any:
    with path.open("rb") as file:
        return read_torch(file, gan_zoo.STAND_INS)


def latents(generator: Any) -> Tensor:
    return torch.randn(2, generator.latent_size, generator=torch.Generator().manual_seed(0))


def prefixed(content: Any) -> Any:
    """A state dict as DataParallel saves it, with `module.` before every name."""
    if not isinstance(content, Mapping):
        return content
    if any(isinstance(value, Tensor) for value in content.values()):
        return {f"module.{name}": value for name, value in content.items()}
    return {name: prefixed(value) for name, value in content.items()}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "wrap",
    [
        prefixed,
        lambda content: {"state_dict": content, "epoch": 3},
        lambda content: {"epoch": 3, "model": {"state_dict": prefixed(content)}},
        lambda content: prefixed(prefixed(content)),
        lambda content: {"state_dict": content.get("g_ema", content)},
    ],
    ids=["prefix", "wrapper", "both", "twice", "bare"],
)
def test_wrappers_and_prefixes_are_taken_off(
    file: str, wrap: Any, data_dir: Path, tmp_path: Path
) -> None:
    content = content_of(data_dir / file)
    content = {name: value for name, value in content.items() if name != "latent_avg"}
    torch.save(content, tmp_path / "plain.pt")
    torch.save(wrap(content), tmp_path / "wrapped.pt")
    generator = load_generator(tmp_path / "wrapped.pt")
    expected = load_generator(tmp_path / "plain.pt")
    assert torch.equal(generator(latents(generator)), expected(latents(expected)))


@pytest.mark.parametrize("equalised", [True, False])
def test_a_generator_s_tensors_alone_are_enough(
    equalised: bool, data_dir: Path, tmp_path: Path
) -> None:
    state = content_of(data_dir / PRO_GAN)["shadow_generator"]["state_dict"]
    torch.save(state if equalised else unequalised(state), tmp_path / "g.pth")
    expected, generator = load_generator(data_dir / PRO_GAN), load_generator(tmp_path / "g.pth")
    z = latents(generator)
    torch.testing.assert_close(generator(z), expected(z), rtol=0, atol=1e-4)
    lower = load_generator(tmp_path / "g.pth", resolution=8, alpha=0.5)
    assert lower(z).shape[-1] == 8


def unequalised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the same network, as if trained without equalised learning rates."""
    found = {}
    for name, tensor in state.items():
        transposed = name == "layers.0.conv_1.weight"
        fan_in = tensor.shape[0] if transposed else tensor[0].numel()
        found[name] = tensor * (2.0 / fan_in) ** 0.5 if name.endswith("weight") else tensor
    return found


@pytest.mark.parametrize("equalised", [True, False])
def test_version_2_of_pro_gan_pth(equalised: bool, data_dir: Path, tmp_path: Path) -> None:
    """In this version the first block has another name, and latents are not normalised."""
    state = content_of(data_dir / PRO_GAN)["shadow_generator"]["state_dict"]
    older = {}
    for name, tensor in (state if equalised else unequalised(state)).items():
        head, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        if head == "layers":
            block = "initial_block" if number == "0" else f"layers.{int(number) - 1}"
            older[f"{block}.{rest}"] = tensor
        else:
            older[name] = tensor
    torch.save(older, tmp_path / "GAN_GEN_2.pth")
    generator = load_generator(tmp_path / "GAN_GEN_2.pth")
    newer = load_generator(data_dir / PRO_GAN)
    assert isinstance(generator, ProgressiveGenerator)
    assert not generator.normalise_latent
    z = latents(generator)
    unit = z * z.square().mean(1, keepdim=True).rsqrt()
    torch.testing.assert_close(generator(unit), newer(z), rtol=0, atol=1e-4)
    assert not torch.allclose(generator(z), newer(z), atol=1e-2)


def test_names_that_only_some_share_are_no_prefix(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "g.pt")
    with pytest.raises(ValueError, match=r"got a torch file, with keys 'module\.a', 'b'"):
        load_generator(tmp_path / "g.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: [g.pop(n) for n in list(g) if n.startswith("style.")], "layers style.1"),
        (lambda g: g.update({"conv1.noise.weight": torch.ones(3)}), "conv1.noise.weight: expected"),
        (
            lambda g: g.update({"noises.noise_0": torch.ones(2, 1, 4, 4)}),
            "noise_0: expected one row",
        ),
        (lambda g: g.update({"noises.noise_0": torch.ones(1, 3, 4, 4)}), "noise: expected shape"),
        (lambda g: g.pop("to_rgbs.0.bias"), "expected a tensor 'to_rgbs.0.bias'"),
        (lambda g: g.pop("noises.noise_0"), "expected a tensor 'noises.noise_0'"),
        (lambda g: g.pop("convs.1.conv.weight"), "expected"),
    ],
)
def test_what_is_wrong_with_a_stylegan2_is_named(
    change: Any, message: str, data_dir: Path, tmp_path: Path
) -> None:
    state = dict(content_of(data_dir / "rosinality_stylegan2_32px.pt")["g_ema"])
    change(state)
    torch.save({"g_ema": state}, tmp_path / "g.pt")
    with pytest.raises(ValueError, match=message):
        load_generator(tmp_path / "g.pt")

"""Loading files of other programs, refusing unsafe or unknown ones, saving our own."""

from __future__ import annotations

import json
import os
import pickle
import stat
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cogen_fast.generators import (
    MLPGenerator,
    ProgressiveGenerator,
    gan_zoo,
    load_generator,
    save_generator,
)

GAN_ZOO, FADING = "gan_zoo_pgan_16px.pth", "gan_zoo_pgan_16px_fading.pth"
PRO_GAN, KARRAS = "pro_gan_pth_16px.bin", "karras_converted_16px.pth"
ALL = [GAN_ZOO, FADING, PRO_GAN, KARRAS]

VECTORS: list[tuple[str, str, dict[str, Any]]] = [
    (GAN_ZOO, "image", {}),
    (GAN_ZOO, "image_raw_generator", {"average": False}),
    (FADING, "image", {}),
    (FADING, "image_raw_generator", {"average": False}),
    (PRO_GAN, "image", {}),
    (PRO_GAN, "image_raw_generator", {"average": False}),
    (PRO_GAN, "image_alpha_0_4", {"alpha": 0.4}),
    (PRO_GAN, "image_one_depth_less", {"resolution": 8}),
    (KARRAS, "image", {}),
]


class Malicious:
    """An object whose pickle runs a shell command when it is read by `pickle.load`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def read(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(list(gan_zoo.STAND_INS)):
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def write_gan_zoo(content: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a file whose configuration is an object of the other program's class."""
    name = "models.utils.config"
    foreign = type("BaseConfig", (), {"__module__": name})
    config = foreign()
    vars(config).update(vars(content["config"]))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "models", ModuleType("models"))
        patch.setitem(sys.modules, "models.utils", ModuleType("models.utils"))
        patch.setitem(sys.modules, name, ModuleType(name))
        patch.setattr(sys.modules[name], "BaseConfig", foreign, raising=False)
        torch.save(content | {"config": config}, path)
    return path


@pytest.mark.parametrize(("file", "key", "options"), VECTORS, ids=str)
def test_images_of_other_programs(
    data_dir: Path, file: str, key: str, options: dict[str, Any]
) -> None:
    generator = load_generator(data_dir / file, **options)
    assert isinstance(generator, ProgressiveGenerator)
    with np.load((data_dir / file).with_suffix(".npz"), allow_pickle=False) as vectors:
        z, expected = torch.from_numpy(vectors["z"]), torch.from_numpy(vectors[key])
    assert generator.output_shape == tuple(expected.shape[1:])
    torch.testing.assert_close(generator(z), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("file", ALL)
def test_loaded_generator_is_ready_for_sampling(data_dir: Path, file: str) -> None:
    generator = load_generator(str(data_dir / file))
    assert not any(module.training for module in generator.modules())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert generator.latent_size == 24


def test_fading_weight_is_turned_round_and_may_be_overridden(data_dir: Path) -> None:
    # The file holds 0.35, which is the weight of the old resolution.
    assert load_generator(data_dir / FADING).config["alpha"] == pytest.approx(0.65)
    assert load_generator(data_dir / FADING, alpha=0.2).config["alpha"] == 0.2
    assert load_generator(data_dir / FADING, resolution=8).config["alpha"] == 1.0


def test_lower_resolution_is_what_alpha_0_shows_enlarged(data_dir: Path) -> None:
    z = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    for file in (GAN_ZOO, PRO_GAN):
        small = load_generator(data_dir / file, resolution=8)(z)
        faded = load_generator(data_dir / file, alpha=0.0)(z)
        enlarged = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        torch.testing.assert_close(faded, enlarged, rtol=0, atol=0)
    assert load_generator(data_dir / GAN_ZOO, resolution=4)(z).shape == (2, 3, 4, 4)


def test_without_an_average_the_raw_generator_is_loaded(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    zoo, pro_gan = read(data_dir / GAN_ZOO), read(data_dir / PRO_GAN)
    del zoo["avgG"], pro_gan["shadow_generator"]
    write_gan_zoo(zoo, tmp_path / "zoo.pth", monkeypatch)
    torch.save(pro_gan, tmp_path / "pro.bin")
    for file, original in (("zoo.pth", GAN_ZOO), ("pro.bin", PRO_GAN)):
        expected = load_generator(data_dir / original, average=False)(z)
        torch.testing.assert_close(load_generator(tmp_path / file)(z), expected, rtol=0, atol=0)


def test_raw_generator_that_is_not_there_is_refused(data_dir: Path, tmp_path: Path) -> None:
    content = read(data_dir / PRO_GAN)
    del content["generator"]
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="average: expected True"):
        load_generator(tmp_path / "x.bin", average=False)


def test_variants_of_the_gan_zoo(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names without `.module`, no equalised learning rate, another slope, a tanh at the end."""
    content = read(data_dir / GAN_ZOO)
    config = content["config"]
    config.equalizedlR, config.lossCriterion, config.leakyReluLeak = False, "DCGAN", 0.1
    scaled = {}
    for name, tensor in content["avgG"].items():
        weight = content["avgG"][name.replace(".bias", ".weight")]
        scaled[name.replace(".module", "")] = tensor * (2.0 / weight[0].numel()) ** 0.5
    content["avgG"] = scaled
    generator = load_generator(write_gan_zoo(content, tmp_path / "x.pth", monkeypatch))
    same = load_generator(data_dir / GAN_ZOO)
    expected = ProgressiveGenerator(**same.config | {"final": "tanh", "negative_slope": 0.1})
    expected.load_state_dict(same.state_dict())
    z = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(generator(z), expected(z), rtol=0, atol=1e-5)


def test_pro_gan_pth_without_equalised_learning_rate(data_dir: Path, tmp_path: Path) -> None:
    content = read(data_dir / PRO_GAN)
    part = content["shadow_generator"]
    part["conf"]["use_eql"] = False
    for name, tensor in part["state_dict"].items():
        if name.endswith("weight"):
            fan_in = tensor.shape[0] if name == "layers.0.conv_1.weight" else tensor[0].numel()
            tensor *= (2.0 / fan_in) ** 0.5
    torch.save(content, tmp_path / "x.bin")
    z = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    expected = load_generator(data_dir / PRO_GAN)(z)
    torch.testing.assert_close(load_generator(tmp_path / "x.bin")(z), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("categoryVectorDim", 4, "categoryVectorDim: expected 0, .* got 4"),
        ("perChannelNormalization", False, "perChannelNormalization: expected True, got False"),
        ("lossCriterion", "Other", "lossCriterion: expected one of .* got 'Other'"),
        ("depthScale0", 32, "depthScale0: expected 24, which the tensors have, got 32"),
        ("depthOtherScales", [24], r"depthOtherScales: expected \[24, 16\], .* got \[24\]"),
        ("latentVectorDim", 25, "latentVectorDim: expected 24, .* got 25"),
        ("alpha", 2.0, r"alpha: expected a number in \[0, 1\], got 2.0"),
    ],
)
def test_gan_zoo_configuration_that_does_not_fit(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
    message: str,
) -> None:
    content = read(data_dir / GAN_ZOO)
    setattr(content["config"], name, value)
    path = write_gan_zoo(content, tmp_path / "x.pth", monkeypatch)
    with pytest.raises(ValueError, match=f"config.{message}"):
        load_generator(path)


@pytest.mark.parametrize("name", ["depth", "num_channels", "latent_size"])
def test_pro_gan_pth_configuration_that_does_not_fit(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    content = read(data_dir / PRO_GAN)
    content["shadow_generator"]["conf"][name] = 99
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=rf"conf\.{name}: expected \d+, .* got 99"):
        load_generator(tmp_path / "x.bin")


def test_missing_extra_and_misshapen_tensors_are_named(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    changes: list[tuple[str, torch.Tensor | None, str]] = [
        ("features.3.wscale.b", None, "expected a tensor 'features.3.wscale.b', got"),
        ("features.9.conv.weight", torch.zeros(1), "no further tensors, got 'features.9.conv.w"),
        ("features.3.wscale.b", torch.zeros(2, 2), "b: expected 1 dimensions .* got torch.float32"),
        ("features.3.wscale.b", torch.zeros(7), r"blocks.0.conv1.bias: expected shape \(24,\)"),
        ("features.0.wscale.scale", torch.zeros(24), "scale: expected one number, got 24"),
        ("output.wscale.b", torch.zeros(3).double(), "expected one float type of"),
    ]
    for name, tensor, message in changes:
        content = read(data_dir / KARRAS)
        content.pop(name, None)
        if tensor is not None:
            content[name] = tensor
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_generator(path)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (KARRAS, {"alpha": 0.5}, "alpha: expected 1, .* got 0.5"),
        (KARRAS, {"resolution": 8}, r"resolution: expected one .* \[16\], .*got 8"),
        (PRO_GAN, {"resolution": 32}, r"resolution: expected one .* \[4, 8, 16\], .*got 32"),
        (PRO_GAN, {"resolution": 4, "alpha": 0.5}, "alpha: expected 1, .* got 0.5"),
        (PRO_GAN, {"alpha": -0.1}, r"^alpha: expected a number in \[0, 1\], got -0.1"),
        (PRO_GAN, {"resolution": "8"}, "^resolution: expected an integer"),
        (PRO_GAN, {"average": None}, "^average: expected True or False, got None"),
        ("five_gaussians_generator_15000.npz", {"alpha": 1.0}, "alpha: expected None"),
        ("five_gaussians_generator_15000.npz", {"resolution": 8}, "resolution: expected None"),
    ],
    ids=str,
)
def test_wish_that_the_file_cannot_meet(
    data_dir: Path, file: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_generator(data_dir / file, **options)


def test_foreign_class_leaves_no_trace(data_dir: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    load_generator(data_dir / GAN_ZOO)
    assert set(torch.serialization.get_safe_globals()) == before
    assert not [name for name in sys.modules if name.split(".")[0] == "models"]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(data_dir / GAN_ZOO, map_location="cpu", weights_only=True)


def test_loading_touches_no_global_random_state(data_dir: Path, tmp_path: Path) -> None:
    save_generator(MLPGenerator(), tmp_path / "x.safetensors")
    before = torch.get_rng_state()
    for file in (data_dir / GAN_ZOO, tmp_path / "x.safetensors"):
        load_generator(file)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickle_that_would_run_code_is_refused(
    tmp_path: Path, data_dir: Path, legacy: bool
) -> None:
    marker, path = tmp_path / "was_run", tmp_path / "x.pth"
    content = read(data_dir / KARRAS) | {"extra": Malicious(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"got a pickle that asks for \w+\.system; refused"):
        load_generator(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bare_pickle_that_would_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "was_run", tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Malicious(marker), protocol=protocol))
    with pytest.raises(ValueError, match=r"expected tensors and plain data|expected a torch c"):
        load_generator(path)
    assert not marker.exists()


def test_npz_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "was_run", tmp_path / "x.npz"
    np.savez(path, w1=np.array([Malicious(marker)], dtype=object), b1=np.zeros(2))
    with pytest.raises(ValueError, match="expected an npz archive of plain arrays"):
        load_generator(path)
    assert not marker.exists()


def test_npz_whose_member_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, w1=np.zeros((2, 2)), b1=np.zeros(2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w2.npy", b"no array at all")
    with pytest.raises(ValueError, match="expected an array 'w2', got other bytes"):
        load_generator(path)


def test_stand_in_for_the_foreign_class_takes_no_arguments(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    argument = b"X\x05\x00\x00\x00touch"
    with zipfile.ZipFile(path, "w") as archive:
        pickled = b"\x80\x02cmodels.utils.config\nBaseConfig\n(" + argument + b"tR."
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(ValueError, match=r"damaged or unsupported data .* takes no arguments"):
        load_generator(path)


def test_legacy_torch_files_are_read(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(read(data_dir / KARRAS), path, _use_new_zipfile_serialization=False)
    expected = load_generator(data_dir / KARRAS).state_dict()
    for name, tensor in load_generator(path).state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_unknown_files_say_what_they_hold(data_dir: Path, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({f"layer{n}": torch.zeros(1) for n in range(9)}, tmp_path / "dict.pth")
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    unknown = {
        data_dir / "dcgan_faces_64px.pth": "got a torch file, with keys 'netG_state_dict'",
        tmp_path / "list.pth": "got a torch file, list",
        tmp_path / "dict.pth": "got a torch file, with keys 'layer0', .*'layer5' and 3",
        tmp_path / "other.npz": "got an npz archive, with keys 'z'",
        tmp_path / "other.safetensors": "got a safetensors file, with keys 'weight'",
    }
    for path, held in unknown.items():
        with pytest.raises(ValueError, match=f"{path.name}: expected .*GAN Zoo.*; {held}"):
            load_generator(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_generator(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.99, "middle"], ids=str)
@pytest.mark.parametrize("kind", ["zip", "legacy", "npz", "safetensors"])
def test_damaged_files_are_a_clear_error(
    data_dir: Path, tmp_path: Path, kind: str, keep: float | str
) -> None:
    path = tmp_path / "x"
    if kind == "safetensors":
        save_generator(MLPGenerator(), path)
    elif kind == "legacy":
        torch.save(read(data_dir / KARRAS), path, _use_new_zipfile_serialization=False)
    else:
        name = {"zip": GAN_ZOO, "npz": "five_gaussians_generator_15000.npz"}[kind]
        path.write_bytes((data_dir / name).read_bytes())
    whole = path.read_bytes()
    if isinstance(keep, str):
        path.write_bytes(b"\xff" * 40 + whole[40:])
    else:
        path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"x: expected a .*got "):
        load_generator(path)


def test_zip_of_an_unknown_version_is_a_clear_error(data_dir: Path, tmp_path: Path) -> None:
    content = bytearray((data_dir / "five_gaussians_generator_15000.npz").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 255  # "version needed" of the last entry
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: expected a checkpoint, got a damaged zip"):
        load_generator(tmp_path / "x.npz")


GENERATORS: dict[str, Any] = {
    "progressive": lambda: ProgressiveGenerator(8, latent_size=5, feature_maps=[4, 3]),
    "fading": lambda: ProgressiveGenerator(8, latent_size=5, feature_maps=[4, 3], alpha=0.3),
    "variant": lambda: ProgressiveGenerator(
        4, latent_size=5, fmap_base=8, channels=1, normalise_dense=False, final="tanh"
    ),
    "mlp": lambda: MLPGenerator((5, 6, 2), activation="elu", final="tanh"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GENERATORS)
def test_saved_generator_comes_back_exactly(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    generator = GENERATORS[name]().to(dtype)
    save_generator(generator, tmp_path / "x.safetensors")
    again = load_generator(tmp_path / "x.safetensors")
    assert type(again) is type(generator)
    assert again.config == generator.config
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    expected = generator.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for key, tensor in again.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[key])
    z = torch.randn(3, 5).to(dtype)
    assert torch.equal(again(z), generator.eval()(z))


def test_alpha_and_resolution_of_our_own_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_generator(GENERATORS["fading"](), path, card=False)
    assert load_generator(path, alpha=0.8, resolution=8).config["alpha"] == 0.8
    with pytest.raises(
        ValueError, match="resolution: expected 8, the only one in this file, got 4"
    ):
        load_generator(path, resolution=4)
    save_generator(GENERATORS["progressive"](), path, card=False)
    with pytest.raises(ValueError, match=r"alpha: expected 1\.0"):
        load_generator(path, alpha=0.8)


def test_saving_replaces_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    first, second = MLPGenerator((2, 2)), MLPGenerator((2, 3, 2))
    save_generator(first, path, card=False)

    def fail(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            save_generator(second, path, card=False)
    assert load_generator(path).config == first.config
    assert os.listdir(tmp_path) == [path.name]
    save_generator(second, path, card=False)
    assert load_generator(path).config == second.config
    assert os.listdir(tmp_path) == [path.name]


def test_saved_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    save_generator(MLPGenerator(), tmp_path / "x.safetensors")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "x.safetensors")]
    assert modes[0] == modes[1]


def test_saving_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^generator: expected one of .*, got Linear"):
        save_generator(torch.nn.Linear(2, 2), tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        save_generator(MLPGenerator(), tmp_path / "nowhere" / "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sizes": [2, 9, 2]}, r"layers\.0\.weight: expected shape \(9, 2\) .* got \(4, 2\)"),
        ({"sizes": [2, 4, 4, 2]}, r"tensors: expected also 'layers\.2\.weight'"),
        ({"sizes": [2, 4]}, r"tensors: .* got also 'layers\.1\.bias', 'layers"),
        ({"sizes": [2, 4, 2], "colour": "red"}, "config: expected arguments of MLPGenerator"),
        ({"sizes": [2, 10**30, 2]}, "config: expected arguments of MLPGenerator"),
        ({"sizes": [2, -4, 2]}, "sizes: expected an integer of at least 1, got -4"),
        ([1, 2], "config: expected a JSON object"),
    ],
    ids=str,
)
def test_own_file_whose_config_and_tensors_disagree(
    tmp_path: Path, config: object, message: str
) -> None:
    tensors = MLPGenerator((2, 4, 2)).state_dict()
    metadata = {"cogen_fast_generator": "MLPGenerator", "config": json.dumps(config)}
    save_file(tensors, tmp_path / "x", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        load_generator(tmp_path / "x")


def test_own_file_without_a_config(tmp_path: Path) -> None:
    metadata = {"cogen_fast_generator": "MLPGenerator"}
    save_file(MLPGenerator().state_dict(), tmp_path / "x", metadata=metadata)
    with pytest.raises(ValueError, match="config: expected JSON, got ''"):
        load_generator(tmp_path / "x")

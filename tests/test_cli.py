"""The command line as a new user meets it: successes, mistakes, and interruptions."""

from __future__ import annotations

import io
import json
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import saved_generator

import cogen_fast
from cogen_fast import Paper
from cogen_fast.cli.images import read_picture
from cogen_fast.cli.main import main
from cogen_fast.generators import MLPGenerator
from cogen_fast.methods import presets
from cogen_fast.methods.settings import OPTIONS
from cogen_fast.sampler import tuning
from cogen_fast.sampler.annealing_plan import Annealing

SIDE = 16
BOX = ["--box", "3", "5", "6", "4"]
QUICK = ["--method", "paper", "--chains", "2", "--ais-steps", "2", "--leapfrog-steps", "2"]
QUICK += ["--step-size", "0.0003"]  # a step size at which chains move
USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, colours=3, width=16, height=16):
        super().__init__()
        torch.manual_seed(3)
        self.dense, self.shape = nn.Linear(5, colours * height * width), (colours, height, width)
    def forward(self, z):
        return torch.tanh(self.dense(z)).reshape(-1, *self.shape)

net = Net()
grey = Net(colours=1)
wide = Net(width=12, height=8)
number = 7
calls = 0

def build(colours=3):
    return Net(colours)

def broken():
    raise RuntimeError("no\\nweights")

def function(z):
    return net(z)

def interrupted(z):
    global calls
    calls += 1
    if calls == limit:
        raise KeyboardInterrupt
    return net(z)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_generator(tmp_path_factory.mktemp("generator"), SIDE)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module in the current folder, which is not on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"user_code_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    return name


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return save(tmp_path / "picture.png", random_pixels(SIDE, SIDE))


def random_pixels(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray[Any, Any]) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def pixels_of(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(path))


def inpaint(generator: str, picture: str, out: Path, *more: str) -> int:
    files = ["--generator", generator, "--image", picture, "--out", str(out)]
    hidden = [] if "--mask" in more or "--box" in more else BOX
    return main(["inpaint", *files, *QUICK, *hidden, *more])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which must be one line on stderr, with nothing on stdout."""
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("cogen-fast: error: ") and told.err.count("\n") == 1
    return told.err


# Output


def test_inpaint_writes_result_and_one_picture_per_chain(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert inpaint(checkpoint, picture, out, "--seed", "5") == 0
    assert {p.name for p in out.iterdir()} == {
        "completed.png",
        "grid.png",
        "estimate.png",
        "raw",
        "result.npz",
        "result.json",
        "chain_000.png",
        "chain_001.png",
    }
    result = cogen_fast.Result.load(out)
    estimate = result.pasted(result.estimate)[0].numpy().clip(-1, 1).astype(np.float64)
    levels = np.rint((estimate + 1) * 127.5).transpose(1, 2, 0)
    assert np.array_equal(pixels_of(out / "estimate.png"), levels)
    assert result.completed is not None
    assert result.settings["seed"] == 5 and result.settings["leapfrog_steps"] == 2
    for i, image in enumerate(result.completed[0].numpy()):
        expected = np.rint((image.clip(-1, 1).astype(np.float64) + 1) * 127.5).transpose(1, 2, 0)
        assert np.array_equal(pixels_of(out / f"chain_{i:03}.png"), expected)
    told = capsys.readouterr()
    assert result.overview() in told.out and str(out / "grid.png") in told.out
    assert told.err == "".join(f"cogen-fast: warning: {line}\n" for line in result.diagnose())


def test_chain_pictures_hold_the_observed_pixels_exactly(
    checkpoint: str, picture: str, tmp_path: Path
) -> None:
    assert inpaint(checkpoint, picture, tmp_path / "out") == 0
    given, filled = pixels_of(Path(picture)), pixels_of(tmp_path / "out" / "chain_001.png")
    hidden = np.zeros((SIDE, SIDE), dtype=bool)
    hidden[5:9, 3:9] = True
    assert np.array_equal(given[~hidden], filled[~hidden])
    assert not np.array_equal(given[hidden], filled[hidden])


def test_box_and_mask_of_the_same_block_agree(
    checkpoint: str, picture: str, tmp_path: Path
) -> None:
    mask = np.full((SIDE, SIDE), 128, dtype=np.uint8)
    mask[5:9, 3:9] = 127
    file = save(tmp_path / "mask.png", mask)
    assert inpaint(checkpoint, picture, tmp_path / "by_box") == 0
    assert inpaint(checkpoint, picture, tmp_path / "by_mask", "--mask", file) == 0
    by_box, by_mask = (cogen_fast.Result.load(tmp_path / d) for d in ("by_box", "by_mask"))
    assert by_box.observed is not None and by_mask.observed is not None
    assert torch.equal(by_box.observed, by_mask.observed)
    assert torch.equal(by_box.latents, by_mask.latents)


def test_same_result_as_from_python(checkpoint: str, picture: str, tmp_path: Path) -> None:
    options = ["--noise-std", "0.5", "--schedule", "linear", "--step-size", "0.002"]
    options += ["--hmc-steps", "2", "--adaptation", "per-chain"]
    assert inpaint(checkpoint, picture, tmp_path / "out", *options) == 0
    mask = torch.ones(SIDE, SIDE)
    mask[5:9, 3:9] = 0
    expected = cogen_fast.inpaint(
        cogen_fast.load_generator(checkpoint),
        torch.from_numpy(pixels_of(Path(picture)).transpose(2, 0, 1) / np.float32(127.5) - 1),
        mask,
        method=Paper(
            ais_steps=2,
            leapfrog_steps=2,
            hmc_steps=2,
            schedule="linear",
            step_size=0.002,
            adaptation="per-chain",
        ),
        chains=2,
        noise_std=0.5,
        progress=False,
    )
    torch.testing.assert_close(
        cogen_fast.Result.load(tmp_path / "out").latents, expected.latents, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_types_are_those_asked_for(checkpoint: str, picture: str, tmp_path: Path) -> None:
    options = ["--gradient-dtype", "bfloat16", "--energy-dtype", "float64", "--compile"]
    assert inpaint(checkpoint, picture, tmp_path / "out", *options) == 0
    result = cogen_fast.Result.load(tmp_path / "out")
    assert result.settings["gradient_dtype"] == "bfloat16"
    assert result.settings["energy_dtype"] == "float64"
    assert result.settings["compile"] is True  # accepted, although the fast path does not need it
    assert result.forwards == 1 + len(result.betas)


@pytest.mark.parametrize("downsample", ["average", "stride"])
def test_super_resolve(checkpoint: str, tmp_path: Path, downsample: str) -> None:
    small = save(tmp_path / "small.png", random_pixels(4, 4))
    out = tmp_path / "out"
    arguments = ["super-resolve", "--generator", checkpoint, "--image", small, "--factor", "4"]
    assert main([*arguments, "--downsample", downsample, "--out", str(out), *QUICK]) == 0
    result = cogen_fast.Result.load(out)
    assert result.x_obs.shape == (1, 3, 4, 4) and result.completed is None
    images = result.images[0].double()
    reduced = images[..., ::4, ::4] if downsample == "stride" else F.avg_pool2d(images, 4)
    misfit = ((reduced - result.x_obs[0]) ** 2).sum((1, 2, 3)) / (2 * 0.1**2)
    torch.testing.assert_close(result.energies[0], misfit, rtol=1e-4, atol=0.0)
    assert pixels_of(out / "chain_001.png").shape == (SIDE, SIDE, 3)


def test_overwriting_leaves_no_chain_of_the_result_before(
    checkpoint: str, picture: str, tmp_path: Path
) -> None:
    assert inpaint(checkpoint, picture, tmp_path / "out") == 0
    (tmp_path / "out" / "mine.png").write_bytes(b"kept")
    assert inpaint(checkpoint, picture, tmp_path / "out", "--overwrite", "--chains", "1") == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "chain_000.png" in names and "chain_001.png" not in names and "mine.png" in names


def test_quiet_prints_nothing_but_warnings(
    checkpoint: str, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    told = {}
    for name, more in (("loud", []), ("quiet", ["--quiet"])):
        out, err = io.StringIO(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert inpaint(checkpoint, picture, tmp_path / name, *more) == 0
        told[name] = out.getvalue(), err.getvalue()
    assert "2/2" in told["loud"][1] and "Result" in told["loud"][0]
    wrong = cogen_fast.Result.load(tmp_path / "quiet").diagnose()
    warned = "".join(f"cogen-fast: warning: {line}\n" for line in wrong)
    assert wrong and told["quiet"] == ("", warned)


def test_warnings_are_one_line(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inpaint(checkpoint, picture, tmp_path / "out", "--box", "0", "0", "16", "16") == 0
    told = capsys.readouterr().err
    assert told.startswith("cogen-fast: warning: mask: nothing is observed")
    assert all(line.startswith("cogen-fast: warning: ") for line in told.splitlines())


# Pictures of other kinds


def test_resize_crops_at_the_centre_and_takes_the_mask_along(
    checkpoint: str, tmp_path: Path
) -> None:
    wide = np.zeros((32, 40, 3), dtype=np.uint8)
    wide[:, :4] = wide[:, 36:] = 255
    wide[:, 4:20] = 100
    mask = np.full((32, 40), 255, dtype=np.uint8)
    mask[:, :4] = mask[8:16, 4:20] = 0
    image, mask_file = save(tmp_path / "wide.png", wide), save(tmp_path / "mask.png", mask)
    assert inpaint(checkpoint, image, tmp_path / "out", "--resize", "--mask", mask_file) == 0
    result = cogen_fast.Result.load(tmp_path / "out")
    assert result.observed is not None
    seen = result.observed[0, 0]
    assert not seen[4:8, :8].any()
    # Scaling mixes pixels up to three apart, also across the edge of the crop.
    assert seen[:1, 3:].all() and seen[11:, 3:].all() and seen[:, 12:].all()
    levels = (result.x_obs[0, 0] + 1) * 127.5
    # Farther from edges the levels are those of the picture.
    assert torch.allclose(levels[11:, 3:5], torch.tensor(100.0), atol=0.5)
    assert torch.allclose(levels[8:, 11:13], torch.tensor(0.0), atol=0.5)


def test_hidden_pixels_do_not_leak_into_observed_ones(checkpoint: str, tmp_path: Path) -> None:
    mask = np.full((50, 50), 255, dtype=np.uint8)
    mask[10:30, 13:33] = 0
    seen = []
    for level in (0, 255):
        image = np.full((50, 50), 90, dtype=np.uint8)
        image[mask == 0] = level
        files = save(tmp_path / "image.png", image), save(tmp_path / "mask.png", mask)
        out = tmp_path / f"out{level}"
        assert inpaint(checkpoint, files[0], out, "--resize", "--mask", files[1]) == 0
        result = cogen_fast.Result.load(out)
        assert result.observed is not None and result.observed.float().mean() > 0.5
        seen.append(result.x_obs)
    # Values lie in [-1, 1], and at most 1 percent of one may come from hidden pixels.
    assert (seen[0] - seen[1]).abs().max() <= 0.01 * 2.0 + 1e-6


def test_shrinking_averages_fine_detail(checkpoint: str, tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    image = save(tmp_path / "stripes.png", stripes)
    assert inpaint(checkpoint, image, tmp_path / "out", "--resize") == 0
    seen = cogen_fast.Result.load(tmp_path / "out").x_obs[0, :, 10:15, 4:12]
    assert seen.abs().max() < 0.05


def test_output_of_unequal_sides(code: str, tmp_path: Path) -> None:
    image = save(tmp_path / "wide.png", random_pixels(12, 8))
    assert inpaint(f"{code}:wide", image, tmp_path / "out", "--box", "9", "0", "3", "8") == 0
    observed = cogen_fast.Result.load(tmp_path / "out").observed
    assert observed is not None
    assert observed[0, 0, :, :9].all() and not observed[0, 0, :, 9:].any()


def test_colour_is_made_grey_for_a_grey_generator(code: str, picture: str, tmp_path: Path) -> None:
    assert inpaint(f"{code}:grey", picture, tmp_path / "out") == 0
    seen = pixels_of(tmp_path / "out" / "chain_000.png")
    expected = np.asarray(Image.open(picture).convert("L"))
    assert seen.shape == (SIDE, SIDE)
    assert np.abs(seen[9:].astype(int) - expected[9:]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_opaque_pictures_of_any_common_mode_are_read(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(random_pixels(6, 4)).convert(mode)
    image.save(path := tmp_path / "picture.tiff")
    levels = read_picture("image", path).to_channels(3).levels
    assert np.array_equal(levels.transpose(1, 2, 0), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_precision(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 32768, 65535]], dtype=np.uint16)
    file = save(tmp_path / "deep.png", values)
    tensor = read_picture("image", Path(file)).to_tensor()
    expected = torch.from_numpy(values / 65535 * 2 - 1).float()[None]
    torch.testing.assert_close(tensor, expected)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(random_pixels(6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(path := tmp_path / "photo.png", exif=exif)
    levels = read_picture("image", path).levels
    assert np.array_equal(levels.transpose(1, 2, 0), np.rot90(np.asarray(image), -1))


def test_transparent_pixels_are_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.dstack([random_pixels(SIDE, SIDE), np.full((SIDE, SIDE), 255, np.uint8)])
    pixels[0, :3, 3] = 254
    file = save(tmp_path / "clear.png", pixels)
    assert inpaint(checkpoint, file, tmp_path / "out") == 2
    assert "image: expected an opaque picture, got 3 transparent" in error_of(capsys)


# Mistakes


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "image: expected a file, found none at"),
        (b"hello", "of an unknown format"),
        (b"truncated", "damaged or too large"),
    ],
)
def test_unreadable_picture(
    checkpoint: str,
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    told: str,
) -> None:
    file = tmp_path / "bad.png"
    if content is not None:
        cut = Path(picture).read_bytes()[:200]
        file.write_bytes(cut if content == b"truncated" else content)
    assert inpaint(checkpoint, str(file), tmp_path / "out") == 2
    assert told in error_of(capsys)


def test_float_picture_is_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE), np.float32)).save(file := tmp_path / "float.tiff")
    assert inpaint(checkpoint, str(file), tmp_path / "out") == 2
    assert "got Pillow's mode F" in error_of(capsys)


def test_wrong_sizes(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save(tmp_path / "other.png", random_pixels(20, 10))
    third = save(tmp_path / "third.png", random_pixels(9, 9))
    assert inpaint(checkpoint, other, tmp_path / "out") == 2
    assert "image: expected 16 x 16, got 20 x 10; give --resize" in error_of(capsys)
    assert inpaint(checkpoint, picture, tmp_path / "out", "--mask", other) == 2
    assert "mask: expected 16 x 16, got 20 x 10" in error_of(capsys)
    assert inpaint(checkpoint, other, tmp_path / "out", "--resize", "--mask", third) == 2
    assert "mask: expected 16 x 16 or the image's 20 x 10, got 9 x 9" in error_of(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("box", ["-1 0 3 3", "0 -1 3 3", "14 0 3 3", "0 14 3 3", "2 2 0 3"])
def test_box_outside_the_image(
    checkpoint: str,
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    box: str,
) -> None:
    assert inpaint(checkpoint, picture, tmp_path / "out", "--box", *box.split()) == 2
    assert f"block inside 16 x 16, got {box}" in error_of(capsys)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--chains", "0"], "chains: expected a whole number of at least 1, got 0"),
        (["--chains", "two"], "--chains: invalid int value: 'two'"),
        (["--noise-std", "0"], "noise_std: expected finite values above 0"),
        (["--noise-std", "1", "--weight", "1"], "not allowed with"),
        (["--preset", "x"], "preset: expected one of"),
        (["--schedule", "x"], "schedule: expected one of"),
        (["--form", "x"], "--form: invalid choice"),
        (["--backend", "x"], "backend: expected one of"),
        (["--device", "gpu"], "such as mps or xpu, got 'gpu'"),
        (["--device", "meta"], "device: expected cpu, cuda or another device of torch's"),
        (["--device", "hpu"], "device: expected one that is present, got hpu"),
        (["--device", "cuda:77"], "device: expected one that is present, got cuda:77"),
        (["--latent-shape", "7"], "--latent-shape: G"),
        (["--checkpoint", "no/such/folder"], "checkpoint: expected a file in an existing"),
        (["--chain", "3"], "unrecognized arguments: --chain 3"),
        (["--mask", "m.png", "--box", "1", "1", "1", "1"], "not allowed with"),
    ],
)
def test_bad_arguments(
    checkpoint: str,
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    assert inpaint(checkpoint, picture, tmp_path / "out", *more) == 2
    assert told in error_of(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "required: COMMAND"),
        (["inpant"], "invalid choice: 'inpant'"),
        (["inpaint"], "required: --generator, --image"),
    ],
)
def test_incomplete_command(capsys: pytest.CaptureFixture[str], argv: list[str], told: str) -> None:
    assert main(argv) == 2
    assert told in error_of(capsys)


@pytest.mark.parametrize(("factor", "told"), [("3", "a divisor"), ("2", "expected 8 x 8, got")])
def test_wrong_factor(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: str, told: str
) -> None:
    small = save(tmp_path / "small.png", random_pixels(4, 4))
    arguments = ["super-resolve", "--generator", checkpoint, "--image", small]
    assert main([*arguments, "--factor", factor, "--out", str(tmp_path / "out")]) == 2
    assert told in error_of(capsys)


def test_a_result_in_the_way_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text("{}")
    assert inpaint("no generator", "no picture", tmp_path) == 2
    assert f"out: {tmp_path} holds a result already; give --overwrite" in error_of(capsys)
    assert (tmp_path / "result.json").read_text() == "{}"


@pytest.mark.parametrize(
    "name", ["completed.png", "grid.png", "chain_001.png", "raw/chain_000.png"]
)
def test_a_file_of_the_users_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    assert inpaint("no generator", "no picture", tmp_path) == 2
    told = f"out: {mine} would be replaced; give another folder, or --overwrite"
    assert told in error_of(capsys)
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("below", ["", "deeper"])
def test_out_that_cannot_be_a_folder(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    assert inpaint("no generator", picture, Path(picture) / below) == 2
    assert f"out: expected a folder, got the file {picture}" in error_of(capsys)


def test_a_bug_is_not_hidden(
    checkpoint: str, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cogen_fast, "inpaint", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        inpaint(checkpoint, picture, tmp_path / "out")


# Generators from code


@pytest.mark.parametrize("name", ["net", "build()", "Net()"])
def test_generator_from_code_in_the_current_folder(
    code: str, picture: str, tmp_path: Path, name: str
) -> None:
    assert inpaint(f"{code}:{name}", picture, tmp_path / "out") == 0
    module = sys.modules[code]
    result = cogen_fast.Result.load(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(module.net(result.latents[0]), result.images[0])


def test_generator_from_the_path(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "elsewhere" / "user_package_of_generators"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(package.parent)
    spec = "user_package_of_generators.nets:function"
    assert inpaint(spec, picture, tmp_path / "out", "--latent-shape", "5") == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("{}:build", "must be called first: write '{}:build()'"),
        ("{}:Net", "must be called first: write '{}:Net()'"),
        ("{}:net()", "is a generator already; write it without ()"),
        ("{}:number", "which is of type int"),
        ("{}:number()", "expected a function before ()"),
        ("{}:nothing", "has no 'nothing'"),
        ("{}:broken()", "failed: RuntimeError: no weights ("),
        ("{}:function", "--latent-shape: could not be found out"),
        ("{}.py:build", "run in the script's folder, and write {}:build"),
        ("{}.py", "run in the script's folder, and write {}:name"),
        ("no_such_{}:net", "no module 'no_such_{}', neither in"),
        ("needs_more:net", "ModuleNotFoundError: No module named 'absent'"),
        ("bad_syntax:net", "SyntaxError"),
        (
            "nothing.safetensors",
            "or hf://owner/name/file.safetensors, got nothing.safeten",
        ),
    ],
)
def test_wrong_generators(
    code: str,
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    told: str,
) -> None:
    (tmp_path / "needs_more.py").write_text("import absent")
    (tmp_path / "bad_syntax.py").write_text("def (")
    assert inpaint(name.format(code), picture, tmp_path / "out") == 2
    assert told.format(code) in error_of(capsys)


def test_generator_that_makes_no_images(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vectors.safetensors"
    cogen_fast.save_generator(MLPGenerator([2, 4, 3]), file)
    assert inpaint(str(file), picture, tmp_path / "out") == 2
    assert "expected images (1 or 3, H, W), got outputs (3,)" in error_of(capsys)


# Ctrl-C


@pytest.fixture
def interrupted(code: str) -> Callable[[int], str]:
    """A user's generator that raises KeyboardInterrupt once, at its n-th call."""

    def at(call: int) -> str:
        module = types.ModuleType(code)
        exec(USER_CODE, module.__dict__)
        module.__dict__["limit"] = call
        sys.modules[code] = module
        return f"{code}:interrupted"

    return at


LONG = ["--method", "paper", "--ais-steps", "8", "--latent-shape", "5"]


def test_ctrl_c_keeps_what_there_is(
    interrupted: Callable[[int], str],
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert inpaint(interrupted(16), picture, tmp_path / "out", *LONG) == 130
    result = cogen_fast.Result.load(tmp_path / "out")
    assert not result.complete and 0 < result.beta_reached < 1
    assert (tmp_path / "out" / "chain_001.png").exists()
    told = capsys.readouterr()
    assert "UNFINISHED" in told.out
    assert "cogen-fast: the run ended at beta" in told.err and "saved in" in told.err


def test_ctrl_c_with_a_checkpoint_goes_on_later(
    interrupted: Callable[[int], str],
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved, out = tmp_path / "run.safetensors", tmp_path / "out"
    generator = interrupted(16)
    assert inpaint(generator, picture, out, *LONG, "--checkpoint", str(saved)) == 130
    told = capsys.readouterr()
    assert told.out == "" and f"the run is saved in {saved}" in told.err
    assert not out.exists()
    assert inpaint(generator, picture, out, *LONG, "--checkpoint", str(saved)) == 0
    assert inpaint(generator, picture, tmp_path / "whole", *LONG) == 0
    resumed, whole = (cogen_fast.Result.load(p) for p in (out, tmp_path / "whole"))
    assert resumed.complete and torch.equal(resumed.latents, whole.latents)


@pytest.mark.parametrize("call", [1, 5])  # call 1 is made by the command, call 5 by the library
@pytest.mark.parametrize("more", [[], ["--checkpoint", "run.safetensors"]])
def test_ctrl_c_before_the_first_step(
    interrupted: Callable[[int], str],
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    call: int,
    more: list[str],
) -> None:
    assert inpaint(interrupted(call), picture, tmp_path / "out", *LONG, *more) == 130
    assert capsys.readouterr().err == "cogen-fast: interrupted\n"
    assert not (tmp_path / "out").exists()


# The other commands


@pytest.mark.parametrize(("raw", "image"), [(False, "image"), (True, "image_raw_generator")])
def test_convert(data_dir: Path, tmp_path: Path, raw: bool, image: str) -> None:
    target = tmp_path / "g.safetensors"
    source = data_dir / "gan_zoo_pgan_16px.pth"
    assert main(["convert", str(source), str(target), *(["--raw"] if raw else [])]) == 0
    vectors = np.load(data_dir / "gan_zoo_pgan_16px.npz")
    with torch.no_grad():
        x = cogen_fast.load_generator(target)(torch.from_numpy(vectors["z"]))
    assert np.abs(x.numpy() - vectors[image]).max() < 1e-4


def test_convert_to_half_precision(checkpoint: str, tmp_path: Path) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    assert main(["convert", checkpoint, str(full)]) == 0
    assert main(["convert", checkpoint, str(half), "--half"]) == 0
    was, now = (cogen_fast.load_generator(path).state_dict() for path in (full, half))
    assert all(torch.equal(now[name], was[name].half()) for name in was)


def test_convert_refuses_weights_too_large_for_half(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = cogen_fast.load_generator(checkpoint)
    generator.to_rgb.bias[0] = 1e5
    cogen_fast.save_generator(generator, tmp_path / "large.safetensors")
    arguments = ["convert", str(tmp_path / "large.safetensors"), str(tmp_path / "h.safetensors")]
    assert main([*arguments, "--half"]) == 2
    assert "half: expected weights of at most 65,504" in error_of(capsys)
    assert not (tmp_path / "h.safetensors").exists()


def test_convert_replaces_only_when_told(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "g.safetensors"
    target.write_text("precious")
    assert main(["convert", checkpoint, str(target)]) == 2
    assert f"target: {target} exists already; give --overwrite" in error_of(capsys)
    assert target.read_text() == "precious"
    assert main(["convert", checkpoint, str(target), "--overwrite"]) == 0
    assert "ProgressiveGenerator, 6 to 3 x 16 x 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("absent.pth", "g.safetensors", "source: expected a file, found none at"),
        ("text.pth", "g.safetensors", "text.pth: expected a torch checkpoint"),
        ("text.pth", "g.pth", "target: expected a name that ends in .safetensors, got g.pth"),
        ("text.pth", "no/g.safetensors", "target: expected a file in an existing folder"),
    ],
)
def test_wrong_conversions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    target: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("no checkpoint")
    assert main(["convert", source, target]) == 2
    assert told in error_of(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["text.pth"]


def test_info_tells_backends_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"cogen-fast {cogen_fast.__version__}\n")
    assert str(cogen_fast.backends()) in told
    flat = " ".join(told.split())
    for name, preset in cogen_fast.PRESETS.items():
        assert f"{name} {preset.description}" in flat


def test_demo_gets_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cogen_fast.experiments import demo

    monkeypatch.setattr(demo, "run", lambda *arguments: json.dumps([str(a) for a in arguments]))
    assert main(["demo", "--out", str(tmp_path), "--garment", "bag", "--seed", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == [str(tmp_path), "bag", "3", "False"]


def _help(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_states_the_defaults_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    flat = " ".join(_help(capsys, "inpaint", "--help-all").split())
    published = presets.DEFAULTS
    for text in (
        f"images to draw (default: {tuning.POPULATION}; paper: {published.chains})",
        f"more and smaller steps (default: {Annealing.target_cess})",
        f"better and slower (default: {published.ais_steps})",
        f"there are no weights (default: {published.form})",
        f"transitions per temperature (default: tuned; paper: {published.hmc_steps})",
        f"one gradient each (default: tuned; paper: {published.leapfrog_steps})",
        f"by the size of the latent; paper: {published.step_size})",
    ):
        assert text in flat


HELPS = ("--help", "--help-all")


@pytest.mark.parametrize("command", ["inpaint", "super-resolve"])
def test_help_leaves_rare_options_to_help_all(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few, every = (set(re.findall(r"--[a-z-]+", _help(capsys, command, h))) for h in HELPS)
    named = {f"--{name.replace('_', '-')}" for name in set(OPTIONS) - {"cuda_graphs", "processes"}}
    assert few < every
    assert named | {"--no-cuda-graphs", "--latent-shape"} <= every
    assert few & named == {"--device"}
    assert {"--chains", "--budget", "--noise-std", "--seed", "--method", "--help-all"} <= few
    # Options that the help hides are accepted.
    assert main([command, "--target-cess", "0.9"]) == 2
    assert "--target-cess" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["evaluate"], ["train"], ["sample"], ["convert"]])
def test_without_rare_options_both_helps_are_the_same(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [_help(capsys, *command, each) for each in HELPS]
    assert texts[0] == texts[1]
    assert "--help-all" not in texts[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "cogen_fast", "info"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline().startswith("cogen-fast ")
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 0


def test_is_a_module_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cogen-fast", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cogen_fast", run_name="__main__")
    assert ended.value.code in (None, 0)
    assert capsys.readouterr().out == f"cogen-fast {cogen_fast.__version__}\n"


@pytest.mark.slow
def test_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cogen_fast", "--version"]
    # The current folder is not the checkout's root, where the sources would hide the installed
    # package.
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cogen-fast {cogen_fast.__version__}\n"

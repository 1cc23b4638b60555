"""The command line with several pictures, with folders, and with transparency as the mask."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from runs import saved_generator

import cogen_fast
from cogen_fast.cli.main import main
from cogen_fast.generators import ProgressiveGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 16
QUICK = ["--method", "paper", "--chains", "2", "--ais-steps", "2", "--leapfrog-steps", "2"]
QUICK += ["--step-size", "0.00003"]
BOX = ["--box", "3", "5", "6", "4"]
SINGLE = {"grid.png", "estimate.png", "result.npz", "result.json", "completed.png", "raw"}
SINGLE |= {"chain_000.png", "chain_001.png"}
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_generator(tmp_path_factory.mktemp("generator"), SIDE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three pictures in the folder `photos`."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.bmp", "c.png")):
        save(Path("photos") / name, random_pixels(number))
    Path("photos/notes.txt").write_text("no picture")
    Path("photos/.hidden.png").write_text("no picture")
    Path("photos/deeper.png").mkdir()
    return tmp_path


def random_pixels(seed: int, channels: int = 3) -> Pixels:
    shape = (SIDE, SIDE, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def mask_of(x: int, y: int, width: int, height: int) -> Pixels:
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[y : y + height, x : x + width] = 0
    return mask


def save(path: Path, pixels: Pixels) -> str:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def inpaint(generator: str, *more: str, hidden: list[str] = BOX) -> int:
    return main(["inpaint", "--generator", generator, "--quiet", *QUICK, *hidden, *more])


def errors_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr but for warnings."""
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("cogen-fast: ") for line in lines if " warning: " not in line]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def latents(folder: Path) -> torch.Tensor:
    return cogen_fast.Result.load(folder).latents


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The time and the bytes of each file in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- several pictures -----------------------------------------------------------------------------


def test_each_picture_of_a_folder_is_completed_as_it_would_be_alone(
    checkpoint: str, here: Path
) -> None:
    assert inpaint(checkpoint, "--image", "photos", "--out", "out") == 0
    assert names_in(here / "out") == {"a", "b", "c", "sheet.png"}
    for name in ("a.png", "b.bmp", "c.png"):
        assert inpaint(checkpoint, "--image", f"photos/{name}", "--out", f"alone-{name[0]}") == 0
        assert names_in(here / "out" / name[0]) == names_in(here / f"alone-{name[0]}") == SINGLE
        assert torch.equal(latents(here / "out" / name[0]), latents(here / f"alone-{name[0]}"))


def test_files_and_folders_may_be_named_together(checkpoint: str, here: Path) -> None:
    other = save(here / "other.png", random_pixels(7))
    assert inpaint(checkpoint, "--image", other, "photos", "--out", "out") == 0
    assert names_in(here / "out") == {"a", "b", "c", "other", "sheet.png"}


def test_a_folder_with_one_picture_is_still_a_folder(checkpoint: str, here: Path) -> None:
    save(here / "one" / "only.png", random_pixels(1))
    assert inpaint(checkpoint, "--image", "one", "--out", "out") == 0
    assert names_in(here / "out") == {"only", "sheet.png"}


def test_the_generator_is_loaded_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def build() -> Any:
        loads.append(1)
        with torch.random.fork_rng():
            return ProgressiveGenerator(resolution=SIDE, feature_maps=[4, 4, 4], latent_size=3)

    module = types.ModuleType("user_code_of_folders")
    module.__dict__["build"] = build
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert inpaint("user_code_of_folders:build()", "--image", "photos", "--out", "out") == 0
    assert len(loads) == 1


def test_super_resolution_of_a_folder(checkpoint: str, here: Path) -> None:
    for name in ("x", "y"):
        save(here / "small" / f"{name}.png", random_pixels(ord(name))[:4, :4])
    command = ["super-resolve", "--generator", checkpoint, "--image", "small", "--factor", "4"]
    assert main([*command, "--out", "out", "--quiet", *QUICK]) == 0
    assert names_in(here / "out") == {"x", "y", "sheet.png"}
    x = cogen_fast.Result.load("out/x")
    assert x.x_obs.shape == (1, 3, 4, 4) and not torch.equal(x.latents, latents(here / "out/y"))
    with Image.open("out/sheet.png") as sheet:
        assert sheet.height == 2 * (112 + 4 + 18) + 4  # no note on pasted pixels: there are none


def test_the_sheet_has_a_row_for_each_picture_and_stays_small(
    checkpoint: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cogen_fast.cli import contact_sheet

    assert inpaint(checkpoint, "--image", "photos", "--out", "out") == 0
    with Image.open("out/sheet.png") as sheet:
        three = sheet.size
        pixels = np.asarray(sheet.convert("RGB"))
    tile, gap = 112, 4
    assert three == (4 * (tile + gap) + gap, 3 * (tile + gap + 18) + gap + 18)  # a note below
    # The first tile is the first picture without its hidden block.
    step = tile // SIDE
    shown = pixels[gap + 18 :, gap:][:tile:step, :tile:step]
    given = np.asarray(Image.open("photos/a.png"))
    seen = mask_of(3, 5, 6, 4) > 0
    assert np.array_equal(shown[seen], given[seen])
    assert not np.array_equal(shown[~seen], given[~seen])
    many = [Path("out/a")] * (contact_sheet.MOST + 5)
    contact_sheet.write_sheet(here / "many.png", many)
    with Image.open("many.png") as sheet:
        assert sheet.size == (16 * (tile + gap) + gap, 24 * (tile + gap + 18) + gap + 18)


def test_the_sheet_names_what_are_no_samples(checkpoint: str, here: Path) -> None:
    red = (0xBE, 0, 0)

    def share_of_red() -> float:
        with Image.open("out/sheet.png") as sheet:
            return float((np.asarray(sheet.convert("RGB")) == red).all(-1).mean())

    assert inpaint(checkpoint, "--image", "photos", "--out", "out") == 0
    assert share_of_red() == 0.0
    far = ["--step-size", "1000", "--overwrite"]  # every proposal is rejected
    assert inpaint(checkpoint, "--image", "photos", "--out", "out", *far) == 3
    assert share_of_red() > 0.0


# --- masks ----------------------------------------------------------------------------------------


def test_a_folder_of_masks_gives_each_picture_its_own(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = {"a": (0, 0, 4, 4), "c": (5, 6, 7, 8)}
    for name, block in blocks.items():
        save(here / "masks" / f"{name}.bmp", mask_of(*block))
    given = ["--image", "photos", "--mask", "masks", "--out", "out"]
    assert inpaint(checkpoint, *given, hidden=[]) == 2  # as one mask is missing
    assert errors_of(capsys) == [
        "error: photos/b.bmp (2 of 3) is left out: mask: expected a picture named b in the folder "
        "masks, found none",
        "1 of 3 images were left out, see above",
    ]
    assert names_in(here / "out") == {"a", "c", "sheet.png"}
    for name, block in blocks.items():
        observed = cogen_fast.Result.load(f"out/{name}").observed
        assert observed is not None
        assert np.array_equal(observed[0, 0].numpy(), mask_of(*block) > 0)
    # One picture takes its mask from a folder, too.
    given = ["--image", "photos/c.png", "--mask", "masks", "--out", "alone"]
    assert inpaint(checkpoint, *given, hidden=[]) == 0
    assert torch.equal(latents(here / "alone"), latents(here / "out/c"))
    save(here / "masks" / "c.png", mask_of(0, 0, 1, 1))
    assert inpaint(checkpoint, *given, "--overwrite", hidden=[]) == 2
    assert "expected one picture named c, got masks/c.bmp and masks/c.png" in errors_of(capsys)[0]


def test_results_are_not_written_among_the_masks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(here / "masks" / "a.png", mask_of(0, 0, 4, 4))
    given = ["--image", "photos", "--mask", "masks", "--out", "masks"]
    assert inpaint("no generator", *given, hidden=[]) == 2
    assert "out: expected another folder than mask's, masks" in errors_of(capsys)[0]
    assert names_in(here / "masks") == {"a.png"}


def test_accents_may_be_written_in_two_ways(checkpoint: str, here: Path) -> None:
    save(here / "accents" / "caf\u00e9.png", random_pixels(0))
    save(here / "masks" / "cafe\u0301.png", mask_of(0, 0, 4, 4))
    given = ["--image", "accents", "--mask", "masks", "--out", "out"]
    assert inpaint(checkpoint, *given, hidden=[]) == 0
    assert names_in(here / "out") == {"caf\u00e9", "sheet.png"}


def test_one_mask_serves_all(checkpoint: str, here: Path) -> None:
    mask = save(here / "mask.png", mask_of(3, 5, 6, 4))
    given = ["--image", "photos", "--mask", mask, "--out"]
    assert inpaint(checkpoint, *given, "out", hidden=[]) == 0
    assert inpaint(checkpoint, "--image", "photos", "--out", "by_box") == 0
    for name in "abc":
        assert torch.equal(latents(here / "out" / name), latents(here / "by_box" / name))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_what_is_not_opaque_is_hidden(checkpoint: str, here: Path, kind: str) -> None:
    alpha = mask_of(3, 5, 6, 4)
    alpha[5, 3], alpha[6, 4] = 254, 128  # partly transparent
    image = Image.fromarray(random_pixels(3))
    if kind == "palette":
        image = image.quantize(255)
        image.putpalette([*(image.getpalette() or []), 1, 2, 3])  # one colour more
        image.paste(255, mask=Image.fromarray(255 - mask_of(3, 5, 6, 4)))
        image.save("clear.png", transparency=255)
    else:
        image = image.convert(kind[:-1])
        image.putalpha(Image.fromarray(alpha))
        image.save("clear.png")
    given = ["--image", "clear.png", "--mask", "alpha", "--out", "out"]
    assert inpaint(checkpoint, *given, hidden=[]) == 0
    result = cogen_fast.Result.load("out")
    assert result.observed is not None
    assert np.array_equal(result.observed[0, 0].numpy(), mask_of(3, 5, 6, 4) > 0)
    shown = np.asarray(image.convert("RGB"))
    filled = np.asarray(Image.open("out/chain_000.png"))
    seen = mask_of(3, 5, 6, 4) > 0
    assert np.array_equal(filled[seen], shown[seen])


def test_alpha_is_scaled_with_the_picture(checkpoint: str, here: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[16:32, 16:48] = (255, 0, 0, 0)
    image = save(here / "large.png", pixels)
    given = ["--image", image, "--mask", "alpha", "--resize", "--out", "out"]
    assert inpaint(checkpoint, *given, hidden=[]) == 0
    result = cogen_fast.Result.load("out")
    assert result.observed is not None
    observed = result.observed[0, 0]
    assert not observed[4:8, 4:12].any() and observed[:2].all() and observed[11:].all()
    # No red of the hidden pixels in what counts as observed: at most 1 percent of 2.
    assert result.x_obs[0][:, observed].max() <= -1.0 + 0.02


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_alpha_of_an_opaque_picture_is_a_mistake(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    Image.fromarray(random_pixels(3)).convert(mode).save("plain.png")
    given = ["--image", "plain.png", "--mask", "alpha", "--out", "out"]
    assert inpaint(checkpoint, *given, hidden=[]) == 2
    told = "error: mask: expected a picture with transparent pixels for alpha, got plain.png, which"
    assert errors_of(capsys)[0].startswith(told)


# --- bad pictures, and going on -------------------------------------------------------------------


def test_bad_pictures_are_told_and_left_out(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/b.bmp").write_text("no picture")
    save(here / "photos" / "d.png", random_pixels(5)[:5])
    assert inpaint(checkpoint, "--image", "photos", "--out", "out") == 2
    told = errors_of(capsys)
    assert told[0].startswith("error: photos/b.bmp (2 of 4) is left out: image: expected a picture")
    assert told[1].startswith("error: photos/d.png (4 of 4) is left out: image: expected 16 x 16,")
    assert told[2:] == ["2 of 4 images were left out, see above"]
    assert names_in(here / "out") == {"a", "c", "sheet.png"}


def test_the_same_command_computes_nothing_again(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--image", "photos", "--out", "out"]
    assert inpaint(checkpoint, *given) == 0
    before = content(here / "out")
    save(here / "photos" / "d.png", random_pixels(8))
    capsys.readouterr()
    assert inpaint(checkpoint, *given) == 0
    after = content(here / "out")
    sheet = str(here / "out/sheet.png")
    assert all(after[name] == before[name] for name in before if name != sheet)
    assert names_in(here / "out") == {"a", "b", "c", "d", "sheet.png"}
    assert after[sheet] != before[sheet]
    # Where a file is does not matter, but its content does.
    (here / "photos").rename(here / "moved")
    assert inpaint(checkpoint, "--image", "moved", "--out", "out") == 0
    save(here / "moved" / "a.png", random_pixels(9))
    capsys.readouterr()
    assert inpaint(checkpoint, "--image", "moved", "--out", "out") == 2
    told = "out: out/a holds a result of other options or files; give --overwrite"
    assert told in errors_of(capsys)[0]
    assert inpaint(checkpoint, "--image", "moved", "--out", "out", "--overwrite") == 0
    last = content(here / "out")
    changed = {name for name in after if last[name] != after[name]}
    assert {Path(name).relative_to(here / "out").parts[0] for name in changed} == {"a", "sheet.png"}


@pytest.mark.parametrize("more", [["--seed", "1"], ["--box", "1", "1", "2", "2"], ["--resize"]])
def test_other_options_are_told(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    given = ["--image", "photos/a.png", "photos/b.bmp", "--out", "out"]
    assert inpaint(checkpoint, *given) == 0
    before = content(here / "out")
    capsys.readouterr()
    assert inpaint(checkpoint, *given, *more) == 2
    assert "2 of 2 images were left out" in errors_of(capsys)[-1]
    assert content(here / "out") == before
    assert inpaint(checkpoint, *given, *more, "--overwrite") == 0
    assert content(here / "out").keys() == before.keys()


@pytest.mark.parametrize("wrong", [["--chains", "0"], ["--box", "14", "0", "3", "3"]])
def test_a_mistake_of_the_options_is_told_once(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert inpaint(checkpoint, "--image", "photos", "--out", "out", *wrong) == 2
    told = errors_of(capsys)
    assert len(told) == 1 and told[0].startswith(f"error: {wrong[0][2:]}: expected")
    assert not list(here.glob("out/*"))


def test_an_unfinished_run_of_other_options_is_told(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate("ab"):
        (here / "out" / name).mkdir(parents=True)
        (here / "out" / name / "unfinished.safetensors").write_text(f"damaged {number}")
    given = ["--image", "photos", "--out", "out"]
    assert inpaint(checkpoint, *given) == 2
    told = errors_of(capsys)
    assert len(told) == 3 and all(" is left out: checkpoint: " in line for line in told[:2])
    assert names_in(here / "out" / "c") == SINGLE
    assert inpaint(checkpoint, *given, "--overwrite") == 0
    assert names_in(here / "out" / "a") == names_in(here / "out" / "b") == SINGLE


@pytest.mark.parametrize(
    ("images", "more", "told"),
    [
        (["photos/a.png", "twin/A.jpg"], [], "expected pictures of different names, got photos/a"),
        (["empty"], [], "image: expected a folder with pictures, found no file in empty"),
        (["photos"], ["--checkpoint", "c"], "checkpoint: expected none with several images"),
        (["photos"], ["--out", "photos/a.png"], "out: expected a folder, got the file"),
        (["photos"], ["--out", "twin/../photos"], "out: expected another folder than image's, ph"),
    ],
)
def test_what_is_wrong_with_all_is_told_first(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    images: list[str],
    more: list[str],
    told: str,
) -> None:
    save(here / "twin" / "A.jpg", random_pixels(1))
    (here / "empty").mkdir()
    assert inpaint("no generator", "--out", "out", "--image", *images, *more) == 2
    lines = errors_of(capsys)
    assert len(lines) == 1 and told in lines[0]
    assert not (here / "out").exists()


def test_an_interrupted_folder_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the second picture: its run is saved, and the same command continues it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weight = torch.randn(5, 3 * SIDE * SIDE)
    calls: list[int] = []
    limit = [0]

    def generator(z: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == limit[0]:
            raise KeyboardInterrupt
        return torch.tanh(z @ weight).reshape(-1, 3, SIDE, SIDE)

    module = types.ModuleType("user_code_interrupted")
    module.__dict__["generator"] = generator
    monkeypatch.setitem(sys.modules, module.__name__, module)
    options = ["--ais-steps", "8", "--latent-shape", "5"]
    name = "user_code_interrupted:generator"
    assert inpaint(name, "--image", "photos", "--out", "whole", *options) == 0
    whole, calls[:] = len(calls), []
    limit[0] = whole * 6 // 10  # of three equal parts, and a few calls before them
    assert inpaint(name, "--image", "photos", "--out", "out", *options) == 130
    saved = Path("out/b/unfinished.safetensors")
    assert f"the run is saved in {saved}" in errors_of(capsys)[-1]
    assert names_in(here / "out") == {"a", "b"} and names_in(here / "out/b") == {saved.name}
    before = content(here / "out/a")
    calls[:], limit[0] = [], 0
    assert inpaint(name, "--image", "photos", "--out", "out", *options) == 0
    assert len(calls) < whole
    assert content(here / "out/a") == before and not saved.exists()
    for each in "abc":
        assert torch.equal(latents(here / "out" / each), latents(here / "whole" / each))


def test_a_time_limit_leaves_runs_to_go_on(checkpoint: str, here: Path) -> None:
    given = ["--image", "photos", "--ais-steps", "6"]
    assert inpaint(checkpoint, *given, "--out", "out", "--time-limit", "1e-6") == 3
    assert inpaint(checkpoint, *given, "--out", "whole") == 0
    for name in "abc":
        assert not cogen_fast.Result.load(f"out/{name}").complete
        assert "unfinished.safetensors" in names_in(here / "out" / name)
    assert inpaint(checkpoint, *given, "--out", "out") == 0
    for name in "abc":
        assert torch.equal(latents(here / "out" / name), latents(here / "whole" / name))
        assert names_in(here / "out" / name) == SINGLE


def test_warnings_name_the_picture(
    checkpoint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ["--box", "0", "0", "16", "16"]
    assert inpaint(checkpoint, "--image", "photos", "--out", "out", hidden=whole) == 0
    told = capsys.readouterr().err
    for name in "abc":
        assert f"cogen-fast: {name}: warning: mask: nothing is observed" in told


# --- what the result says of its files ------------------------------------------------------------


def test_a_result_names_its_files(checkpoint: str, here: Path) -> None:
    mask = save(here / "mask.png", mask_of(1, 2, 3, 4))
    given = ["--image", "photos/a.png", "--mask", mask, "--out", "out"]
    assert inpaint(checkpoint, *given, hidden=[]) == 0
    record = json.loads(Path("out/result.json").read_text())["settings"]["command_line"]
    assert record["image"] == "photos/a.png" and record["mask"] == mask
    assert record["generator"] == checkpoint and record["command"] == "inpaint"
    assert record["chains"] == 2 and record["ais_steps"] == 2 and "budget" not in record
    assert cogen_fast.Result.load("out").settings["command_line"] == record

"""Hostile files: none hangs, grows, crashes or starts a program; each gives one line of error.

Every call runs in a process of its own, whose time and memory are measured.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from confined import Ended, confined, needs_linux
from hostile import BOMBS, MEMBERS, NESTS, NO_FILES, READERS, SCRIPTS
from PIL import Image
from safetensors.torch import save_file

from cogen_fast.generators import MLPGenerator, load_generator
from cogen_fast.support import pictures
from cogen_fast.training.datasets import image_files, open_images

pytestmark = needs_linux
MOST_GROWTH = 200 * 2**20  # bytes, including those of a small run
SHORT = 600  # characters of a message, paths included


def assert_told(ended: Ended, name: str | None) -> None:
    """Assert that the error is one line that names the argument, and that memory stayed small."""
    assert ended.error is not None, "nothing was said"
    assert issubclass(ended.error, ValueError | TypeError | OSError), ended
    assert len(ended.message.splitlines()) == 1 and len(ended.message) < SHORT, ended.message
    if name is not None:
        assert ended.message.startswith(f"{name}: "), ended.message
    assert ended.grew < MOST_GROWTH, ended


# At these places a file is written without being read, so that what is there is replaced.
REPLACED = {("evaluate, records", "loop of links"), ("train, checkpoint", "loop of links")}
REPLACED |= {("train, log", "loop of links")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_not_read(reader: str, kind: str) -> None:
    ended = confined(hostile.read_what_is_no_file, reader, kind)
    if (reader, kind) in REPLACED:
        assert ended.error is None, ended
    elif (reader, kind) == ("swd", "folder") or (reader, kind) == ("open_images", "folder"):
        assert_told(ended, None)  # an empty folder, which is of the right kind
    else:
        assert_told(ended, READERS[reader][0])


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of each bomb, made once."""
    folder = tmp_path_factory.mktemp("bombs")

    def made(bomb: str) -> Path:
        make: Any = BOMBS[bomb][1]
        path = folder / make.__name__
        if not path.exists():
            make(path)
        return path

    return made


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_does_not_become_a_large_one(bomb: str, bombs: Callable[[str], Path]) -> None:
    path = bombs(bomb)
    assert path.stat().st_blocks * 512 < 8e6, "the file itself is to be small"
    ended = confined(hostile.read_bomb, bomb, path)
    assert_told(ended, None)
    assert BOMBS[bomb][2] in ended.message


# --- pictures -------------------------------------------------------------------------------------


@pytest.fixture
def no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program called gs first on the path, which writes a file if it is started."""
    mark, folder = tmp_path / "was-started", tmp_path / "programs"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\necho 10.0.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return mark


def test_pillow_by_itself_would_start_ghostscript(no_ghostscript: Path) -> None:
    """Otherwise the tests below would show nothing."""
    with pytest.raises(Exception), Image.open(io.BytesIO(SCRIPTS["plain"])) as image:  # noqa: B017
        image.load()
    assert no_ghostscript.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.eps", "x"])
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("argument", ["image", "mask", "data"])
def test_no_picture_starts_a_program(
    tmp_path: Path, no_ghostscript: Path, script: str, name: str, argument: str
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / name).write_bytes(SCRIPTS[script])
    hostile.picture_file(folder)
    ended = confined(hostile.look_at_postscript, folder / name, argument, os.environ["PATH"])
    assert not no_ghostscript.exists()
    if argument == "data":
        assert ended.error is None, ended
    else:
        assert_told(ended, argument)
        assert "of an unknown format" in ended.message


def test_only_formats_that_are_named_are_read(tmp_path: Path) -> None:
    """A format that Pillow learns to read is not read before somebody has looked at it."""
    assert set(pictures.formats()) <= set(pictures.FORMATS) - {"EPS", "WMF", "PSD", "FITS"}
    pixels = np.zeros((8, 8, 3), np.uint8)
    written, read = set(), set()
    for kind in sorted(set(Image.SAVE) & set(Image.OPEN)):
        content = io.BytesIO()
        try:
            Image.fromarray(pixels).save(content, kind)
        except (OSError, ValueError):
            continue  # Pillow cannot write this mode, or was built without this format
        written.add(kind)
        try:
            pictures.open_picture(io.BytesIO(content.getvalue())).load()
        except Exception:
            continue
        read.add(kind)
    assert {"PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF"} <= read <= set(pictures.FORMATS)
    assert {"TGA", "PCX", "EPS"} & written


@pytest.mark.slow
def test_a_large_photograph_stays_below_a_gigabyte_and_a_bit(tmp_path: Path) -> None:
    """The photograph is just within the limit on pixels."""
    Image.new("RGB", (9_400, 9_400)).save(path := tmp_path / "x.png", compress_level=1)
    ended = confined(hostile.shrink, path)
    assert ended.error is None, ended
    assert ended.grew < 1.3 * 2**30


# --- members of a data folder ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("kind", MEMBERS)
def test_a_strange_member_of_a_folder_is_left_out_by_name(kind: str, channels: int | None) -> None:
    ended = confined(hostile.read_folder, kind, channels)
    assert ended.error is None, ended
    assert any("1 of 10" in line and "strange.png" in line for line in ended.warnings), ended
    assert ended.grew < MOST_GROWTH


@pytest.mark.slow
def test_large_images_are_not_decoded_all_at_once(tmp_path: Path) -> None:
    """The memory is bounded for any number of processors."""
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(hostile.png(9_000, 9_000))
    ended = confined(hostile.decode_by_many, tmp_path)
    assert ended.error is None, ended
    assert ended.grew < 900 * 2**20


def test_images_that_the_disk_cannot_hold_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that take a byte each in the file, and a megabyte in the cache."""
    np.savez(path := tmp_path / "x.npz", np.zeros((4, 1, 1), np.uint8))
    cache = tmp_path / "cache"
    free = shutil.disk_usage(tmp_path)._replace(free=4 * 2**20 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    message = r"cache: expected 4,194,304 bytes free in .* for 4 images of 1024 x 1024, got 4,194,3"
    with pytest.raises(OSError, match=message):
        open_images(path, 1024, cache=cache, progress=False)
    assert list(cache.iterdir()) == []


def test_hidden_formats_are_no_image_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.eps", "c.ps", "d.wmf", "e.psd"):
        (tmp_path / name).touch()
    assert image_files(tmp_path) == ["a.png"]


# --- tensors --------------------------------------------------------------------------------------

KARRAS = "karras_converted_16px.pth"
WEIGHT, BIAS = "features.1.conv.weight", "features.1.wscale.b"


def strange_tensors(w: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of unusual kinds, in place of a convolution's weights."""
    return {
        "sparse": w.to_sparse(),
        "meta": torch.empty(w.shape, device="meta"),
        "nested": torch.nested.nested_tensor([torch.zeros(2, 2), torch.zeros(3, 2)]),
        "float8": w.to(torch.float8_e4m3fn),
        "complex": w.to(torch.complex64),
        "whole": w.to(torch.int64),
        "bool": w > 0,
        "no output": w[:0],
        "no input": w[:, :0],
        "no width": w[..., :0],
        "stride 0": torch.zeros(1).expand(w.shape),
        "stride 0, 640 GB": torch.zeros(1).expand(400_000, 100_000, 4, 1),
    }


@pytest.mark.filterwarnings("ignore:.*(prototype|beta|deprecated)")
@pytest.mark.parametrize("kind", strange_tensors(torch.zeros(2, 2, 3, 3)))
def test_tensors_that_are_no_weights_are_named(data_dir: Path, tmp_path: Path, kind: str) -> None:
    content = torch.load(data_dir / KARRAS, weights_only=True)
    content[WEIGHT] = strange_tensors(content[WEIGHT])[kind]
    torch.save(content, path := tmp_path / "x.pth")
    ended = confined(hostile.load, path)
    assert_told(ended, None)
    assert f"{WEIGHT}: expected 4 dimensions of a float type" in ended.message


def test_tensors_that_share_their_memory_are_named(data_dir: Path, tmp_path: Path) -> None:
    """A shared tensor could stand for as many copies as there are layers."""
    content = torch.load(data_dir / KARRAS, weights_only=True)
    content["features.2.wscale.b"] = content[BIAS]
    torch.save(content, path := tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"features\.2\.wscale\.b: expected a tensor of its own"):
        load_generator(path)


def test_views_of_one_flat_tensor_are_weights_like_others(data_dir: Path, tmp_path: Path) -> None:
    content = torch.load(data_dir / KARRAS, weights_only=True)
    flat = torch.cat([tensor.flatten() for tensor in content.values()])
    views = torch.split(flat, [tensor.numel() for tensor in content.values()])
    named = zip(content.items(), views, strict=True)
    torch.save({name: view.view_as(t) for (name, t), view in named}, path := tmp_path / "x.pth")
    expected = load_generator(data_dir / KARRAS).state_dict()
    for name, tensor in load_generator(path).state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64], ids=str)
def test_our_own_file_of_another_type_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: t.to(dtype) for name, t in MLPGenerator((2, 4, 2)).state_dict().items()}
    metadata = {"cogen_fast_generator": "MLPGenerator", "config": '{"sizes": [2, 4, 2]}'}
    save_file(tensors, path := tmp_path / "x", metadata)
    with pytest.raises(ValueError, match=f"tensors: expected one float type.*, got {dtype}"):
        load_generator(path)


@pytest.mark.parametrize("kind", [np.longdouble, ">f4", ">f8"], ids=str)
def test_npz_of_floats_that_torch_does_not_know(tmp_path: Path, kind: Any) -> None:
    np.savez(path := tmp_path / "x.npz", w1=np.zeros((2, 2), kind), b1=np.zeros(2, kind))
    with pytest.raises(ValueError, match="npz: expected arrays of one float type, got"):
        load_generator(path)


def deep(levels: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(levels):
        nest = [nest]
    return nest


def laughing(levels: int) -> list[Any]:
    """A nested list whose text would be extremely long."""
    nest: list[Any] = ["ha"] * 8
    for _ in range(levels):
        nest = [nest] * 8
    return nest


VALUES: dict[str, Any] = {
    "tensor": torch.zeros(2),
    "list of tensors": [torch.zeros(2)] * 2,
    "deep": deep(150),
    "billion laughs": laughing(12),
    "long text": "x" * 10**6,
    "huge number": 10**4000,
    "none": None,
}


@pytest.mark.parametrize("name", ["depth", "num_channels", "latent_size", "use_eql"])
@pytest.mark.parametrize("kind", VALUES)
def test_values_in_a_configuration_are_not_trusted(
    data_dir: Path, tmp_path: Path, kind: str, name: str
) -> None:
    content = torch.load(data_dir / "pro_gan_pth_16px.bin", weights_only=True)
    content["shadow_generator"]["conf"][name] = VALUES[kind]
    torch.save(content, path := tmp_path / "x.bin")
    ended = confined(hostile.load, path)
    assert_told(ended, None)
    assert f"conf.{name}: expected" in ended.message or "huge" in kind, ended.message


# --- JSON -----------------------------------------------------------------------------------------


def config_of(path: Path, text: str) -> None:
    metadata = {"cogen_fast_generator": "MLPGenerator", "config": text}
    save_file(MLPGenerator((2, 2)).state_dict(), path, metadata)


@pytest.mark.parametrize("nest", NESTS)
def test_json_that_is_nested_too_deep_in_a_generator(tmp_path: Path, nest: str) -> None:
    config_of(path := tmp_path / "x", NESTS[nest])
    ended = confined(hostile.load, path)
    assert_told(ended, None)
    assert "config: expected JSON, got " in ended.message


@pytest.mark.slow
@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("reader", ["Result.load, summary", "evaluate, plan", "evaluate, records"])
def test_json_that_is_nested_too_deep_elsewhere(reader: str, nest: str) -> None:
    ended = confined(hostile.read_nested, reader, nest)
    assert_told(ended, READERS[reader][0])
    assert "expected" in ended.message


# --- the search by random damage ------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_search_by_random_damage(tmp_path: Path) -> None:
    """A short search of `fuzz_files.py`, whose long search is not part of the tests."""
    kinds = ("generator", "mlp npz", "run, adaptive", "result.json")
    command = [sys.executable, str(Path(__file__).with_name("fuzz_files.py")), "--mutations", "100"]
    command += ["--kinds", *kinds, "--out", str(tmp_path / "found.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{kind}: " in done.stdout for kind in kinds)
    assert "0 with something wrong" in done.stdout

"""Training images: exact pixels from every kind of source, the cache, and what is refused."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cogen_fast.training import datasets
from cogen_fast.training.datasets import Images, open_images

pytestmark = pytest.mark.usefixtures("one_thread")
FASHION = "t10k-images-idx3-ubyte.gz"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default folder for decoded images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "cogen-fast" / "datasets"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for image files."""
    path = tmp_path / "images"
    path.mkdir()
    return path


def read(source: Path, resolution: int = 8, **options: Any) -> Images:
    return open_images(source, resolution, **{"progress": False} | options)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_each(folder: Path, pixels: np.ndarray) -> list[Path]:
    return [save(folder / f"{i:02}.png", image) for i, image in enumerate(pixels)]


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return (
        bytes([0, 0, kind, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def no_decoding(patch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("decoded")

    patch.setattr(Image, "open", fail)
    patch.setattr(Image, "fromarray", fail)


# --- pixels of each kind of source -----------------------------------------------------------


def test_folder_gives_the_files_in_order_of_their_names(folder: Path) -> None:
    pixels = noise(4, 8, 8, 3)
    for name, image in zip(("b/a.png", "a.png", "B.BMP", "b/c/d.tiff"), pixels, strict=True):
        save(folder / name, image)
    images = read(folder)
    assert (len(images), images.channels, images.resolution) == (4, 3, 8)
    expected = pixels[[2, 1, 0, 3]].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(images.pixels, expected)


def test_hidden_and_other_files_are_left_out(folder: Path) -> None:
    pixels = noise(8, 8)
    for name in ("a.png", ".a.png", ".thumbnails/a.png"):
        save(folder / name, pixels)
    (folder / "labels.txt").write_text("1")
    (folder / "report.pdf").write_text("Pillow writes PDF, but reads none")
    assert len(read(folder)) == 1


def test_pixels_are_mapped_and_read_only(folder: Path) -> None:
    save(folder / "a.png", noise(8, 8))
    images = read(folder)
    assert isinstance(images.pixels, np.memmap)
    assert images.pixels.dtype == np.uint8
    assert not images.pixels.flags.writeable


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 1), (3, 8, 8, 3)], ids=str)
def test_idx(tmp_path: Path, pack: Callable[[bytes], bytes], shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    # The format must not be recognised by the name, which is wrong.
    images = read(write(tmp_path / "images.png", pack(idx(pixels))))
    expected = np.moveaxis(pixels.reshape(3, 8, 8, -1), -1, 1)
    np.testing.assert_array_equal(images.pixels, expected)


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((3, 8, 8), (3, 1, 8, 8)),
        ((3, 8, 8, 1), (3, 1, 8, 8)),
        ((3, 1, 8, 8), (3, 1, 8, 8)),
        ((3, 8, 8, 3), None),
        ((3, 3, 8, 8), (3, 3, 8, 8)),
    ],
    ids=str,
)
def test_npz(tmp_path: Path, shape: tuple[int, ...], moved: tuple[int, ...] | None) -> None:
    pixels = noise(*shape)
    np.savez_compressed(tmp_path / "x.npz", anything=pixels)
    expected = pixels.transpose(0, 3, 1, 2) if moved is None else pixels.reshape(moved)
    np.testing.assert_array_equal(read(tmp_path / "x.npz").pixels, expected)


def test_npz_of_several_arrays_gives_the_one_named_images(tmp_path: Path) -> None:
    pixels = noise(2, 8, 8)
    np.savez(tmp_path / "x.npz", labels=np.arange(2), images=pixels, other=noise(2, 8, 8, seed=1))
    np.testing.assert_array_equal(read(tmp_path / "x.npz").pixels[:, 0], pixels)


def test_more_images_than_wait_in_memory_keep_their_order(tmp_path: Path) -> None:
    count = 10 * datasets.WORKERS
    pixels = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(-1, 1, 4).repeat(4, axis=1)
    np.savez(tmp_path / "x.npz", pixels)
    np.testing.assert_array_equal(read(tmp_path / "x.npz", 4).pixels[:, 0], pixels)


def test_only_a_few_results_wait_in_memory() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100 * datasets.WORKERS):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(1) as pool:
        results = datasets.in_order(pool, lambda number: -number, items())
        assert [next(results), next(results)] == [0, -1]
        assert len(taken) <= 5 * datasets.WORKERS


@pytest.mark.slow
def test_fashion_mnist() -> None:
    """Real images of the MNIST family; 28 x 28 becomes 32 x 32 without losing a pixel."""
    home = os.environ.get("COGEN_FAST_FASHION_MNIST", "/usr/share/datasets/fashion-mnist")
    path = Path(home) / FASHION
    if not path.is_file():
        pytest.skip(f"no Fashion-MNIST at {path} (set COGEN_FAST_FASHION_MNIST)")
    pixels = read(path, 32, fit="pad").pixels
    raw = gzip.decompress(path.read_bytes())[16:]
    assert pixels.shape == (10_000, 1, 32, 32)
    inner = pixels[:, 0, 2:30, 2:30]
    assert inner.tobytes() == raw
    assert pixels.sum(dtype=np.int64) == inner.sum(dtype=np.int64)


# --- geometry --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (8, 11, slice(0, 8), slice(1, 9)),
        (13, 8, slice(2, 10), slice(0, 8)),
        (8, 8, slice(0, 8), slice(0, 8)),
    ],
)
def test_crop_takes_the_centre(
    folder: Path, height: int, width: int, rows: slice, columns: slice
) -> None:
    pixels = noise(height, width)
    save(folder / "a.png", pixels)
    np.testing.assert_array_equal(read(folder).pixels[0, 0], pixels[rows, columns])


def test_crop_shrinks_without_aliasing(folder: Path) -> None:
    board = np.uint8(255) * (np.indices((64, 70)).sum(0) % 2).astype(np.uint8)
    save(folder / "a.png", board)
    pixels = read(folder).pixels.astype(int)
    assert abs(pixels - 127).max() <= 3


@pytest.mark.parametrize("edge", [5, 21])
def test_crop_scales_by_lanczos(folder: Path, edge: int) -> None:
    pixels = noise(edge, edge, 3)
    save(folder / "a.png", pixels)
    expected = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(read(folder).pixels[0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(3, 5, 2, 1), (8, 7, 0, 0), (1, 8, 3, 0), (8, 8, 0, 0)]
)
def test_pad_moves_the_image_to_the_centre_of_black(
    folder: Path, height: int, width: int, top: int, left: int
) -> None:
    pixels = noise(height, width, 3)
    save(folder / "a.png", pixels)
    expected = np.zeros((8, 8, 3), np.uint8)
    expected[top : top + height, left : left + width] = pixels
    np.testing.assert_array_equal(read(folder, fit="pad").pixels[0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (16, 32, slice(2, 6), slice(0, 8)),
        (300, 1, slice(0, 8), slice(3, 4)),
        (9, 9, slice(0, 8), slice(0, 8)),
        (12, 5, slice(0, 8), slice(2, 5)),
    ],
)
def test_pad_shrinks_what_is_too_large(
    folder: Path, height: int, width: int, rows: slice, columns: slice
) -> None:
    save(folder / "a.png", np.full((height, width), 200, np.uint8))
    expected = np.zeros((8, 8), np.uint8)
    expected[rows, columns] = 200
    np.testing.assert_array_equal(read(folder, fit="pad").pixels[0, 0], expected)


# --- modes of image files --------------------------------------------------------------------

LEVELS = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4 + 3
COLOURS = np.stack([LEVELS, LEVELS[::-1], LEVELS.T], axis=-1)
ALPHA = np.full((8, 8), 255, np.uint8)
ALPHA[:4] = 0
ALPHA[4] = 128
OVER_BLACK = np.rint(COLOURS * (ALPHA / 255.0)[..., None]).astype(int)
SWATCHES = np.array([[255, 0, 0], [10, 200, 30], [0, 0, 255], [9, 9, 9]], np.uint8)


def palette_image() -> Image.Image:
    image = Image.fromarray(LEVELS % 4)
    image.putpalette(SWATCHES.tobytes())
    return image


def image_of_mode(mode: str) -> tuple[str, Image.Image, np.ndarray, dict[str, Any]]:
    """File ending, image, the expected pixels (C, 8, 8), and options of saving."""
    grey, colour = LEVELS[None], COLOURS.transpose(2, 0, 1)
    inks = [Image.fromarray(ink) for ink in (*(255 - colour), 0 * LEVELS)]
    rgba = np.concatenate([COLOURS, ALPHA[..., None]], axis=-1)
    made: dict[str, tuple[str, Image.Image, np.ndarray, dict[str, Any]]] = {
        "L": ("png", Image.fromarray(LEVELS), grey, {}),
        "RGB": ("png", Image.fromarray(COLOURS), colour, {}),
        "RGBA": ("png", Image.fromarray(rgba), OVER_BLACK.transpose(2, 0, 1), {}),
        "LA": (
            "png",
            Image.merge("LA", (Image.fromarray(LEVELS), Image.fromarray(ALPHA))),
            OVER_BLACK[None, ..., 0],
            {},
        ),
        "P": ("png", palette_image(), SWATCHES[LEVELS % 4].transpose(2, 0, 1), {}),
        "P-transparent": (
            "png",
            palette_image(),
            (SWATCHES * np.array([[1], [0], [1], [1]]))[LEVELS % 4].transpose(2, 0, 1),
            {"transparency": 1},
        ),
        "L-transparent": (
            "png",
            Image.fromarray(LEVELS),
            np.where(grey == LEVELS[5, 5], 0, grey),
            {"transparency": int(LEVELS[5, 5])},
        ),
        "1": ("png", Image.fromarray(LEVELS > 99), np.where(grey > 99, 255, 0), {}),
        "I;16": ("png", Image.fromarray(LEVELS.astype(np.uint16) * 257), grey, {}),
        "CMYK": ("tiff", Image.merge("CMYK", inks), colour, {}),
    }
    return made[mode]


@pytest.mark.parametrize(
    "mode",
    ["L", "RGB", "RGBA", "LA", "P", "P-transparent", "L-transparent", "1", "I;16", "CMYK"],
)
def test_modes(folder: Path, mode: str) -> None:
    ending, image, expected, options = image_of_mode(mode)
    image.save(folder / f"a.{ending}", **options)
    with Image.open(folder / f"a.{ending}") as saved:
        assert saved.mode == mode.split("-")[0]
    np.testing.assert_array_equal(read(folder).pixels[0], expected)


@pytest.mark.parametrize(
    ("level", "expected"), [(0, 0), (128, 0), (129, 1), (65406, 254), (65407, 255)]
)
def test_16_bit_greys_are_rounded(folder: Path, level: int, expected: int) -> None:
    save(folder / "a.png", np.full((8, 8), level, np.uint16))
    assert set(read(folder).pixels.flat) == {expected}


def test_16_bit_portable_grey_map(folder: Path) -> None:
    levels = (LEVELS.astype(">u2") * 257).tobytes()
    write(folder / "a.pgm", b"P5 8 8 65535\n" + levels)
    np.testing.assert_array_equal(read(folder).pixels[0, 0], LEVELS)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_unknown_range_count_as_corrupt(folder: Path, kind: type) -> None:
    save(folder / "a.tiff", LEVELS.astype(kind))
    with pytest.raises(ValueError, match=r"got 1 of 1: a\.tiff"):
        read(folder)


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_exif_orientation_is_obeyed(folder: Path, ending: str) -> None:
    """Orientation 6: the camera was turned, so the image must be turned clockwise by 90 degrees."""
    upright = np.zeros((8, 8), np.uint8)
    upright[:, 4:] = 200
    upright[:4] += 50
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / f"a.{ending}", np.rot90(upright), exif=exif)
    levels = read(folder).pixels[0, 0].astype(int)
    assert abs(levels - upright).max() <= (12 if ending == "jpg" else 0)


def test_channels_convert(folder: Path) -> None:
    save(folder / "grey.png", LEVELS)
    save(folder / "red.png", np.broadcast_to(np.uint8([255, 0, 0]), (8, 8, 3)))
    colour = read(folder, channels=3).pixels
    assert colour.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(colour[0], np.stack([LEVELS] * 3))
    np.testing.assert_array_equal(colour[1, :, 0, 0], [255, 0, 0])
    grey = read(folder, channels=1).pixels
    assert grey.shape == (2, 1, 8, 8)
    np.testing.assert_array_equal(grey[0, 0], LEVELS)
    assert set(grey[1].flat) == {76}  # 0.299 * 255, the grey value of red


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_convert_arrays(tmp_path: Path, channels: int) -> None:
    grey = noise(2, 8, 8)
    np.savez(tmp_path / "x.npz", grey if channels == 3 else np.stack([grey] * 3, axis=-1))
    expected = np.stack([grey] * channels, axis=1)
    np.testing.assert_array_equal(read(tmp_path / "x.npz", channels=channels).pixels, expected)


def test_mixture_of_grey_and_colour_is_refused(folder: Path, cache: Path) -> None:
    save(folder / "a.png", noise(8, 8, 3))
    save(folder / "b.png", noise(8, 8))
    save(folder / "c.png", noise(8, 8))
    message = r"source: .* got b\.png \(grey\) and a\.png \(colour\); give channels=1 or channels=3"
    with pytest.raises(ValueError, match=message):
        read(folder)
    assert list(cache.iterdir()) == []


# --- corrupt files ---------------------------------------------------------------------------


def truncated(ending: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(32, 32, 3)).convert(mode).save(buffer, ending)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


BAD = {
    "cut.png": truncated("PNG"),
    "cut.jpg": truncated("JPEG"),
    "cut.gif": truncated("GIF", "P"),
    "empty.jpg": b"",
    "text.png": b"no picture at all",
}


@pytest.mark.parametrize("name", BAD)
def test_corrupt_file_is_left_out_with_a_warning(folder: Path, name: str) -> None:
    pixels = noise(9, 8, 8, 3)
    save_each(folder, pixels)
    write(folder / f"04-{name}", BAD[name])
    with pytest.warns(UserWarning, match="corrupt") as caught:
        images = read(folder, bad_share=0.1)
    # The shape in the header, of nine images instead of ten, has one digit less.
    np.testing.assert_array_equal(images.pixels, pixels.transpose(0, 3, 1, 2))
    (warning,) = caught
    assert str(warning.message) == (
        f"1 of 10 image files in {folder} are corrupt and are left out: 04-{name}"
    )
    assert warning.filename.endswith("test_datasets.py")


def test_only_the_first_corrupt_files_are_named(folder: Path) -> None:
    save_each(folder, noise(10, 8, 8))
    for number in range(8):
        write(folder / f"bad{number}.png", b"")
    with pytest.warns(
        UserWarning, match=r"^8 of 18 .*: bad0.png,.* bad4.png and 3 more$"
    ) as caught:
        assert len(read(folder, bad_share=0.5)) == 10
    assert len(caught) == 1


def test_later_calls_warn_again_without_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_each(folder, noise(3, 8, 8))
    write(folder / "bad.png", BAD["cut.png"])
    with pytest.warns(UserWarning, match=r"1 of 4 .* bad\.png") as first:
        images = read(folder, bad_share=0.3, channels=1)
    no_decoding(monkeypatch)
    with pytest.warns(UserWarning, match="corrupt") as second:
        again = read(folder, bad_share=0.3, channels=1)
    assert str(second[0].message) == str(first[0].message)
    np.testing.assert_array_equal(again.pixels, images.pixels)


@pytest.mark.parametrize(("bad", "share"), [(1, 0.0), (30, 0.29), (100, 0.99)])
def test_too_many_corrupt_files_are_refused(
    folder: Path, cache: Path, bad: int, share: float
) -> None:
    for number in range(100):
        write(folder / f"{number:03}.bmp", b"bad")
    for number in range(100 - bad):
        save(folder / f"{number:03}.bmp", LEVELS)
    message = rf"source: expected at most a share of {share:g} .* got {bad} of 100: {100 - bad:03}"
    with pytest.raises(ValueError, match=message):
        read(folder, bad_share=share)
    assert list(cache.iterdir()) == []


def test_a_share_of_corrupt_files_is_allowed_exactly(folder: Path) -> None:
    """The share must be exact: 0.29 * 100 is below 29 in floating point."""
    for number in range(100):
        write(folder / f"{number:03}.bmp", b"bad")
    for number in range(71):
        save(folder / f"{number:03}.bmp", LEVELS)
    with pytest.warns(UserWarning, match="29 of 100"):
        assert len(read(folder, bad_share=0.29)) == 71


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("edge", [11, 30])
def test_decompression_bomb_counts_as_corrupt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, edge: int
) -> None:
    """Pillow warns above its limit and raises above twice its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    save(folder / "bomb.png", noise(edge, edge, 3))
    save(folder / "good.png", LEVELS)
    with pytest.warns(UserWarning, match=r"1 of 2 .* bomb\.png"):
        images = read(folder, bad_share=0.5)
    np.testing.assert_array_equal(images.pixels[0, 0], LEVELS)


def test_a_file_that_cannot_be_read_is_no_corrupt_file(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a temporary failure of the disk would be kept in the cache."""
    save_each(folder, noise(2, 8, 8))

    def failing(name: str, path: Path) -> io.BufferedReader:
        class Raw(io.FileIO):
            def readall(self) -> bytes:
                raise OSError(errno.EIO, f"not now: {path}")

        return io.BufferedReader(Raw(path))

    monkeypatch.setattr(datasets, "open_regular", failing)
    with pytest.raises(OSError, match=r"not now: .*00\.png"):
        read(folder, bad_share=0.9, channels=3)
    assert list(cache.iterdir()) == []


def test_a_file_that_goes_away_is_no_corrupt_file(folder: Path) -> None:
    """Otherwise a file that is moved during the reading would be left out for good."""
    save_each(folder, noise(2, 8, 8))
    names = datasets.image_files(folder)
    (folder / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"source: .*01\.png"):
        datasets.read_image(folder / names[1], 8, channels=3)


# --- cache -----------------------------------------------------------------------------------


def make_folder(path: Path) -> Path:
    save_each(path, noise(3, 8, 8))
    return path


def make_idx(path: Path) -> Path:
    return write(path.with_suffix(".gz"), gzip.compress(idx(noise(3, 8, 8))))


def make_npz(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), noise(3, 8, 8))
    return path.with_suffix(".npz")


@pytest.mark.parametrize("make", [make_folder, make_idx, make_npz])
def test_second_call_decodes_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path / "source")
    pixels = read(source).pixels
    no_decoding(monkeypatch)
    np.testing.assert_array_equal(read(source).pixels, pixels)
    np.testing.assert_array_equal(pixels[:, 0], noise(3, 8, 8))
    assert len(list(cache.iterdir())) == 1
    with pytest.raises(
        ValueError if source.is_dir() else RuntimeError, match=r"got 3 of 3|decoded"
    ):
        read(source, fit="pad")


@pytest.mark.parametrize(
    "options",
    [{"resolution": 4}, {"fit": "pad"}, {"channels": 3}, {"channels": 1}, {"bad_share": 0.5}],
    ids=str,
)
def test_other_arguments_have_a_file_of_their_own(
    folder: Path, cache: Path, options: dict[str, Any]
) -> None:
    make_folder(folder)
    read(folder)
    changed = read(folder, **options)
    assert len(list(cache.iterdir())) == 2
    assert changed.resolution == options.get("resolution", 8)
    assert changed.channels == options.get("channels", 1)


def test_same_files_elsewhere_have_a_file_of_their_own(tmp_path: Path, cache: Path) -> None:
    for name in ("one", "two"):
        for path in save_each(tmp_path / name, noise(3, 8, 8)):
            os.utime(path, ns=(0, 0))
        read(tmp_path / name)
    assert len(list(cache.iterdir())) == 2


def edited(folder: Path) -> None:
    stat = (folder / "01.bmp").stat()
    save(folder / "01.bmp", noise(8, 8, seed=9))
    assert (folder / "01.bmp").stat().st_size == stat.st_size
    os.utime(folder / "01.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def resized(folder: Path) -> None:
    stat = (folder / "01.bmp").stat()
    save(folder / "01.bmp", noise(9, 9, seed=9))
    os.utime(folder / "01.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def renamed(folder: Path) -> None:
    (folder / "00.bmp").rename(folder / "99.bmp")


def removed(folder: Path) -> None:
    (folder / "00.bmp").unlink()


@pytest.mark.parametrize("change", [edited, resized, renamed, removed])
def test_changed_source_is_decoded_anew(folder: Path, change: Callable[[Path], None]) -> None:
    pixels = noise(3, 8, 8)
    for number, image in enumerate(pixels):
        save(folder / f"{number:02}.bmp", image)
    before = read(folder, fit="crop").pixels.copy()
    change(folder)
    after = read(folder, fit="crop").pixels
    np.testing.assert_array_equal(before[:, 0], pixels)
    assert after.shape != before.shape or (after != before).any()


@pytest.mark.parametrize("make", [make_idx, make_npz])
def test_changed_file_is_decoded_anew(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path / "source")
    read(source)
    changed = noise(4, 8, 8, seed=3)
    write(source, idx(changed))
    np.testing.assert_array_equal(read(source).pixels[:, 0], changed)


def cut_in_half(content: bytes, other: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_the_last_byte(content: bytes, other: bytes) -> bytes:
    return content[:-1]


def nothing(content: bytes, other: bytes) -> bytes:
    return b""


def garbage(content: bytes, other: bytes) -> bytes:
    return noise(len(content)).tobytes()


def plain_npy(content: bytes, other: bytes) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, noise(3, 1, 8, 8, seed=5))
    return buffer.getvalue()


def objects_npy(content: bytes, other: bytes) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, {}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def of_another_source(content: bytes, other: bytes) -> bytes:
    return other


def other_trailer(content: bytes, other: bytes) -> bytes:
    return content[: content.rindex(b"{")] + json.dumps([1, 2]).encode()


@pytest.mark.parametrize(
    "damage",
    [
        cut_in_half,
        cut_the_last_byte,
        nothing,
        garbage,
        plain_npy,
        objects_npy,
        of_another_source,
        other_trailer,
    ],
)
def test_damaged_or_foreign_cache_is_not_trusted(
    tmp_path: Path, cache: Path, damage: Callable[[bytes, bytes], bytes]
) -> None:
    save_each(tmp_path / "other", noise(3, 8, 8, seed=1))
    read(tmp_path / "other", cache=tmp_path / "elsewhere")
    (foreign,) = (tmp_path / "elsewhere").iterdir()
    source = make_folder(tmp_path / "source")
    read(source)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    write(path, damage(whole, foreign.read_bytes()))
    np.testing.assert_array_equal(read(source).pixels[:, 0], noise(3, 8, 8))
    assert path.read_bytes() == whole
    assert list(cache.iterdir()) == [path]


def test_cache_holds_a_plain_npy(folder: Path, cache: Path) -> None:
    make_folder(folder)
    read(folder)
    (path,) = cache.glob("*.npy")
    np.testing.assert_array_equal(np.load(path)[:, 0], noise(3, 8, 8))


def test_failure_midway_leaves_nothing_behind(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(folder)
    crop, seen = datasets.FITS["crop"], []

    def fail_at_the_third(image: Image.Image, side: int) -> Image.Image:
        seen.append(image)
        if len(seen) == 3:
            raise RuntimeError("midway")
        return crop(image, side)

    with monkeypatch.context() as patch:
        patch.setitem(datasets.FITS, "crop", fail_at_the_third)
        with pytest.raises(RuntimeError, match="midway"):
            read(folder)
    assert list(cache.iterdir()) == []
    assert len(read(folder)) == 3


def test_failed_decoding_leaves_what_was_there(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(folder)
    read(folder)
    (path,) = cache.iterdir()
    write(path, b"damaged")
    with monkeypatch.context() as patch:
        no_decoding(patch)
        with pytest.raises(ValueError, match="got 3 of 3"):
            read(folder)
    assert [(file, file.read_bytes()) for file in cache.iterdir()] == [(path, b"damaged")]


def test_two_threads_at_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads decode at the same time, into a file of the same name."""
    make_folder(folder)
    both, write_cache = threading.Barrier(2, timeout=10), datasets.write_cache

    def meet(*args: Any) -> None:
        both.wait()
        write_cache(*args)
        both.wait()

    monkeypatch.setattr(datasets, "write_cache", meet)
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(read, folder) for _ in range(2)]
        for result in results:
            np.testing.assert_array_equal(result.result().pixels[:, 0], noise(3, 8, 8))
    assert len(list(cache.iterdir())) == 1


def test_cache_folder_may_be_chosen(folder: Path, cache: Path, tmp_path: Path) -> None:
    make_folder(folder)
    read(folder, cache=str(tmp_path / "a" / "b"))
    assert len(list((tmp_path / "a" / "b").glob("8px-*.npy"))) == 1
    assert not cache.exists()


def test_without_xdg_the_cache_is_in_the_home_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(folder)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    read(folder)
    assert len(list((tmp_path / "home/.cache/cogen-fast/datasets").iterdir())) == 1


@pytest.mark.parametrize("progress", [True, False])
def test_progress(folder: Path, capfd: pytest.CaptureFixture[str], progress: bool) -> None:
    make_folder(folder)
    read(folder, progress=progress)
    shown = capfd.readouterr().err
    assert [text in shown for text in ("reading headers", "decoding", "3/3")] == [progress] * 3


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": 3}, TypeError, "source: expected a path, got 3"),
        ({"resolution": 12}, ValueError, r"resolution: expected a power .* 4 \.\.\. 1024, got 12"),
        ({"resolution": 2}, ValueError, "resolution: expected a whole number of at least 4, got 2"),
        ({"resolution": 2048}, ValueError, "resolution: expected a power of two .* got 2048"),
        ({"resolution": 8.0}, ValueError, r"resolution: .* got 8\.0"),
        ({"fit": "stretch"}, ValueError, r"fit: expected one of \('crop', 'pad'\), got 'stretch'"),
        ({"channels": 2}, ValueError, "channels: expected None, 1 or 3, got 2"),
        ({"channels": 4}, ValueError, "channels: expected at most 3, got 4"),
        ({"channels": True}, ValueError, "channels: .* got True"),
        ({"bad_share": 1.0}, ValueError, r"bad_share: expected 0 or .* 0 and 1, got 1\.0"),
        ({"bad_share": -0.1}, ValueError, r"bad_share: .* got -0\.1"),
        ({"cache": 3}, TypeError, "cache: expected a path, got 3"),
        ({"cache": __file__}, ValueError, "cache: expected a folder, got the file .*datasets.py"),
        ({"progress": 1}, TypeError, "progress: expected True or False, got 1"),
        ({"source": "no/where"}, FileNotFoundError, "source: .* found none at no/where"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments(
    folder: Path, cache: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    make_folder(folder)
    with pytest.raises(error, match=message):
        open_images(**{"source": folder, "resolution": 8} | options)
    assert not cache.exists()


def test_folder_without_images(folder: Path, cache: Path) -> None:
    (folder / "readme.txt").write_text("nothing here")
    with pytest.raises(
        ValueError, match=r"source: expected image files in the folder .*, found no"
    ):
        read(folder)
    assert not cache.exists()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(LEVELS).save(buffer, "PNG")
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def broken_sum(content: bytes) -> bytes:
    """A gzip file whose check sum is wrong."""
    packed = bytearray(gzip.compress(content))
    packed[-8] ^= 1
    return bytes(packed)


WHOLE = idx(noise(2, 8, 8))
REFUSED = {
    "image": (png(), "source: expected a folder, an IDX file or an .npz, got the file"),
    "empty": (b"", "source: expected a folder, an IDX file or an .npz, got the file"),
    "other-gzip": (gzip.compress(b"hello"), "expected a folder, an IDX file or an .npz, got"),
    "labels": (idx(noise(9)), "source: expected an IDX file of images.*holds labels"),
    "gzip-labels": (gzip.compress(idx(noise(9))), "has one dimension and so holds labels"),
    "floats": (idx(noise(2, 8, 8), 0x0D), "source: .*type 0x08.* got type 0x0d of 3 dimensions"),
    "matrix": (idx(noise(8, 8)), "of 3 or 4 dimensions, got type 0x08 of 2 dimensions"),
    "idx-no-images": (idx(noise(0, 8, 8)), r"expected images in .* \(0, 8, 8\)"),
    "idx-no-pixels": (idx(noise(2, 0, 8)), r"expected images in .* \(2, 0, 8\)"),
    "idx-two-channels": (idx(noise(2, 8, 8, 2)), r"C 1 or 3, in .* got \(2, 8, 8, 2\)"),
    "short": (WHOLE[:-1], "expected an IDX file of 144 bytes, .* got 143 bytes"),
    "half-a-header": (WHOLE[:9], "got 9 bytes .damaged or truncated. in"),
    "surplus": (WHOLE + b"x", "expected an IDX file of 144 bytes, .* got 145 bytes"),
    "claims-too-much": (WHOLE[:4] + b"\xff" * 12, "expected an IDX file of .* got 16 bytes"),
    "short-gzip": (gzip.compress(WHOLE)[:-30], "source: expected a complete gzip file, got"),
    "broken-gzip": (broken_sum(WHOLE), "source: expected a complete gzip file, got .*CRC"),
    "several": (
        npz(train=noise(1, 8, 8), test=noise(1, 8, 8)),
        r"""source: expected one array, or one named "images".* got \['test', 'train'\]""",
    ),
    "no-array": (npz(), r"source: expected one array.* got \[\]"),
    "npz-floats": (npz(x=np.zeros((2, 8, 8))), "source: expected .* uint8 in .*, got float64"),
    "npz-two-channels": (npz(x=noise(2, 2, 8, 8)), r"C 1 or 3, in .* got \(2, 2, 8, 8\)"),
    "npz-matrix": (npz(x=noise(8, 8)), r"source: expected an array \(N, H, W\).* got \(8, 8\)"),
    "npz-no-images": (npz(x=noise(0, 3, 8, 8)), r"expected images in .*\(0, 3, 8, 8\)"),
    "npz-objects": (npz(x=np.array([{}], dtype=object)), "cannot read the arrays .*allow_pickle"),
    "short-npz": (npz(x=noise(2, 8, 8))[:-40], "source: cannot read the arrays of"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_file_that_is_refused(tmp_path: Path, cache: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "source.bin", content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith("source: ")
    assert str(path) in str(caught.value)
    assert list(cache.iterdir()) == []


# --- batches ---------------------------------------------------------------------------------


def test_whole_range_of_bytes_becomes_minus_1_to_1() -> None:
    images = Images(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16))
    batch = images.batch([0])
    assert batch.dtype == torch.float32
    assert batch.shape == (1, 1, 16, 16)
    expected = torch.linspace(-1.0, 1.0, 256, dtype=torch.float64).float()
    torch.testing.assert_close(batch.flatten(), expected, rtol=0, atol=1e-7)
    assert batch.min() == -1.0
    assert batch.max() == 1.0


@pytest.mark.parametrize(
    "indices",
    [[2, 0, 2], np.array([2, 0, 2], np.uint8), torch.tensor([2, 0, 2])],
    ids=["list", "array", "tensor"],
)
def test_batch_picks_by_index(indices: Any) -> None:
    pixels = noise(3, 3, 4, 4)
    expected = torch.from_numpy(pixels[[2, 0, 2]]).float() / 127.5 - 1
    torch.testing.assert_close(Images(pixels).batch(indices), expected, rtol=0, atol=1e-7)


def test_empty_batch() -> None:
    batch = Images(noise(3, 1, 8, 8)).batch(torch.zeros(0, dtype=torch.int64), 4)
    assert batch.shape == (0, 1, 4, 4)


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_lower_resolutions_are_means_of_blocks(side: int) -> None:
    pixels = noise(2, 3, 32, 32)
    block = 32 // side
    means = pixels.reshape(2, 3, side, block, side, block).mean((3, 5), dtype=np.float64)
    batch = Images(pixels).batch([0, 1], side)
    assert batch.shape == (2, 3, side, side)
    np.testing.assert_allclose(batch.numpy(), means / 127.5 - 1.0, rtol=0, atol=1e-7)


def test_white_stays_white_at_the_lowest_resolution() -> None:
    batch = Images(np.full((1, 1, 1024, 1024), 255, np.uint8)).batch([0], 4)
    assert (batch == 1.0).all()


@pytest.mark.parametrize("side", [4, 8])
def test_flip_mirrors_left_to_right_where_asked(side: int) -> None:
    images = Images(noise(3, 3, 8, 8))
    plain = images.batch([0, 1, 2], side)
    flipped = images.batch([0, 1, 2], side, torch.tensor([True, False, True]))
    expected = plain.clone()
    expected[0] = plain[0][:, :, torch.arange(side - 1, -1, -1)]
    expected[2] = plain[2][:, :, torch.arange(side - 1, -1, -1)]
    torch.testing.assert_close(flipped, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 3],), r"indices: expected numbers in 0 \.\.\. 2, got 0 \.\.\. 3"),
        (([-1],), r"indices: .* got -1 \.\.\. -1"),
        (([0.0],), r"indices: expected whole numbers \(n,\), got float64 \(1,\)"),
        (([True],), "indices: .* got bool"),
        ((1,), r"indices: expected whole numbers \(n,\), got int64 \(\)"),
        (([0], 16), r"resolution: expected a power of two in 4 \.\.\. 8, got 16"),
        (([0], 6), r"resolution: expected a power of two in 4 \.\.\. 8, got 6"),
        (([0], None, True), r"flip: expected a bool tensor \(1,\), got True"),
        (([0], None, torch.ones(1)), r"flip: expected .*, got torch\.float32 \(1,\)"),
        (([0], None, torch.tensor([True, True])), r"flip: .* \(1,\), got torch\.bool \(2,\)"),
    ],
)
def test_wrong_arguments_of_batch(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(noise(3, 1, 8, 8)).batch(*arguments)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 1, 8, 8), np.float32),
        noise(2, 8, 8),
        noise(2, 2, 8, 8),
        noise(2, 1, 8, 4),
        noise(2, 1, 12, 12),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_wrong_pixels(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels: expected uint8 \(N, C, R, R\).* got ") as caught:
        Images(pixels)
    assert f"{pixels.dtype} {pixels.shape}" in str(caught.value)


# --- split -----------------------------------------------------------------------------------


def numbered(count: int) -> Images:
    """Images of which image i has the value i in every pixel."""
    return Images(np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3))


def numbers(images: Images) -> list[int]:
    levels = images.batch(range(len(images)))[:, 0, 0, 0]
    return ((levels + 1) * 127.5).round().int().tolist()


def test_split_is_disjoint_and_exhaustive() -> None:
    train, held_out = numbered(50).split(7)
    assert (len(train), len(held_out)) == (43, 7)
    assert sorted(numbers(train) + numbers(held_out)) == list(range(50))


def test_split_never_changes() -> None:
    """Images that were held out stay held out, also with other versions of NumPy."""
    train, held_out = numbered(10).split(3)
    assert numbers(train) == [2, 8, 4, 9, 1, 6, 7]
    assert numbers(held_out) == [3, 0, 5]


def test_fewer_held_out_are_part_of_more() -> None:
    images = numbered(50)
    assert numbers(images.split(20)[1])[-5:] == numbers(images.split(5)[1])


def test_nothing_held_out() -> None:
    train, held_out = numbered(5).split(0)
    assert sorted(numbers(train)) == [0, 1, 2, 3, 4]
    assert len(held_out) == 0


def test_split_of_a_split() -> None:
    train, held_out = numbered(50).split(10)
    inner, test = train.split(15)
    assert len(inner) == 25
    assert sorted(numbers(inner) + numbers(test)) == sorted(numbers(train))
    assert not set(numbers(test)) & set(numbers(held_out))


def test_split_copies_no_pixels(folder: Path) -> None:
    make_folder(folder)
    images = read(folder)
    for part in images.split(1):
        assert part.pixels is images.pixels
        assert (part.channels, part.resolution) == (1, 8)


@pytest.mark.parametrize("held_out", [-1, 5, 2.0, True])
def test_wrong_number_held_out(held_out: Any) -> None:
    with pytest.raises(ValueError, match=rf"held_out: expected .*, got {held_out}"):
        numbered(5).split(held_out)


def test_index_out_of_a_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"indices: expected numbers in 0 \.\.\. 1, got 2"):
        numbered(5).split(2)[1].batch([2])

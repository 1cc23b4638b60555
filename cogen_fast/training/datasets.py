"""Training images from any of the usual sources, decoded once into a memory-mapped file.

Source (folder of image files, IDX file, `.npz`) -> each image upright, 8 bits, grey or colour ->
cropped or padded to a square of R x R -> one `.npy` in a cache, which later calls only open.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import shutil
import stat
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from cogen_fast.generators.progressive import RESOLUTIONS
from cogen_fast.support.archives import array_of, check_unpacked, opened_npz
from cogen_fast.support.arguments import (
    check_choice,
    check_flag,
    check_number,
    check_path,
    check_whole,
    kind_of_file,
    path_mode,
    shown,
)
from cogen_fast.support.files import open_regular, parse_json, size_of, write_atomically
from cogen_fast.support.memory import check_room
from cogen_fast.support.pictures import (
    check_pixels,
    endings,
    limited_decoding,
    most_bytes,
    open_picture,
)
from cogen_fast.support.warnings import warn_user

Pixels = npt.NDArray[np.uint8]
_Load = Callable[[Any, Callable[[Image.Image], Any]], Any]
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")
# Raise this with every change of the pixels that a source gives, or of the layout of the file.
_FORMAT = 1
_MODES = {1: "L", 3: "RGB"}
_GREY = ("1", "L", "LA", "La", "I", "F")
WORKERS = min(16, os.cpu_count() or 1)
"""The number of threads that decode images."""
_MOST_NAMED = 5


@dataclass(frozen=True, eq=False)
class Images:
    """N square images.

    Attributes:
        pixels: uint8 (M, C, R, R), memory-mapped as a rule; C is 1 or 3, R a power of two in 4 ...
            1024.
        rows: int64 (N,), which rows of `pixels` are these images, in order; None: all, N = M.

    Raises:
        ValueError: `pixels` has another type or shape.
    """

    pixels: Pixels = field(repr=False)
    rows: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        square = len(shape) == 4 and shape[2] == shape[3] in RESOLUTIONS
        if self.pixels.dtype != np.uint8 or not square or shape[1] not in _MODES:
            raise ValueError(
                "pixels: expected uint8 (N, C, R, R), C 1 or 3, R a power of two in "
                f"{RESOLUTIONS[0]} ... {RESOLUTIONS[-1]}, got {self.pixels.dtype} {shape}"
            )

    def __len__(self) -> int:
        return len(self.pixels if self.rows is None else self.rows)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue)."""
        return int(self.pixels.shape[1])

    @property
    def resolution(self) -> int:
        """The side R of the stored images."""
        return int(self.pixels.shape[2])

    def batch(
        self,
        indices: Tensor | npt.NDArray[Any] | Sequence[int],
        resolution: int | None = None,
        flip: Tensor | None = None,
    ) -> Tensor:
        """The images `indices`, float32 (n, C, r, r) on the CPU, in [-1, 1]: 0 is -1, 255 is 1.

        Args:
            indices: whole numbers (n,), each in 0 ... N - 1.
            resolution: r, a power of two in 4 ... R; each pixel is the mean of the block of R / r x
                R / r pixels that it covers. None: R.
            flip: bool (n,), True where the image is mirrored left to right; None: nowhere.

        Raises:
            ValueError: an argument has another type, shape or range.
        """
        rows = self._checked_rows(indices)
        side = self.resolution if resolution is None else _checked_side(resolution, self.resolution)
        # Sums of up to 256 x 256 bytes are whole numbers below 2^24, so the means are exact.
        levels = torch.from_numpy(self.pixels[rows]).float()
        levels = F.avg_pool2d(levels, self.resolution // side)
        if flip is not None:
            mirrored = _checked_flip(flip, len(rows)).cpu()[:, None, None, None]
            levels = torch.where(mirrored, levels.flip(-1), levels)
        return levels / 127.5 - 1.0

    def split(self, held_out: int) -> tuple[Images, Images]:
        """The images to train on, and the `held_out` others, in a fixed pseudo-random order.

        The order depends on N alone, so a smaller set of held-out images is part of a larger one.
        Nothing is copied.

        Raises:
            ValueError: `held_out` is not a whole number in 0 ... N - 1.
        """
        count = check_whole("held_out", held_out, 0, len(self) - 1)
        # NumPy guarantees that the stream of this older class, unlike default_rng's, never changes.
        order = np.random.RandomState(0).permutation(len(self)).astype(np.int64)
        rows = order if self.rows is None else self.rows[order]
        kept = len(self) - count
        return Images(self.pixels, rows[:kept]), Images(self.pixels, rows[kept:])

    def _checked_rows(self, indices: object) -> npt.NDArray[np.int64]:
        array = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                f"indices: expected whole numbers (n,), got {array.dtype} {array.shape}"
            )
        if len(array) and not 0 <= array.min() <= array.max() < len(self):
            raise ValueError(
                f"indices: expected numbers in 0 ... {len(self) - 1}, "
                f"got {array.min()} ... {array.max()}"
            )
        rows = array.astype(np.int64)
        return rows if self.rows is None else self.rows[rows]


def open_images(
    source: str | Path,
    resolution: int,
    *,
    fit: str = "crop",
    channels: int | None = None,
    bad_share: float = 0.01,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Images:
    """Training images of `source`, which the first call decodes and later calls only open.

    Args:
        source: one of

            - a folder, which is searched with its subfolders for image files (by the endings of
              `cogen_fast.support.pictures.FORMATS`; hidden files, hidden folders and linked folders
              are left out); the images are in the order of the files' names;
            - an IDX file (the format of MNIST) of unsigned bytes, (N, H, W) or (N, H, W, C),
              gzip-compressed or not;
            - an `.npz` with an array of uint8, (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3;
              if it has several arrays, the one named "images" is taken.

            The format of a file is recognised by its content, and the file is held in memory while
            it is converted. A compressed file may unpack to 256 MB, or to 16 times its own size if
            that is more.
        resolution: R, a power of two in 4 ... 1024.
        fit: "crop" takes the square at the centre and scales it to R x R (Lanczos); "pad" scales
            down what is larger than R x R and puts black borders round what is smaller.
        channels: 1 or 3, to which all images are converted; None: as they are.
        bad_share: the share of a folder's image files, in [0, 1), that may be corrupt; up to this
            share they are left out with a warning that names them.
        cache: the folder of the decoded images; None: `cogen-fast/datasets` in `$XDG_CACHE_HOME` or
            `~/.cache`. A change of the source or of an argument gives a new file there.
        progress: whether to show progress bars.

    Transparent parts are shown over black, 16-bit greys become 8-bit, and the orientation in the
    EXIF data is applied. A file counts as corrupt if Pillow cannot decode it as one of the formats,
    if it has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` or more bytes than these can take, if
    the range of its values is not known (floats, 32-bit integers), or if it is not a regular file:
    a link that leads nowhere, a pipe, a device. Several processes may open the same source at once.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been read then.
        FileNotFoundError: `source` does not exist.
        ValueError: `source` has no images, holds something else, has grey and colour images with
            `channels=None`, or has too many corrupt files.
        OSError: a file cannot be read, or the cache cannot be written.
    """
    request = _Request(
        source=check_path("source", source),
        resolution=_checked_side(resolution, RESOLUTIONS[-1]),
        fit=check_choice("fit", fit, tuple(FITS)),
        channels=None if channels is None else _checked_channels(channels),
        bad_share=check_number("bad_share", bad_share, 0.0, 1.0, zero=True),
        progress=check_flag("progress", progress),
    )
    folder = _checked_cache(cache)
    names = _listed(request.source)
    key = request.key(names)
    path = folder / f"{request.resolution}px-{key[:32]}.npy"
    if not _is_cached(path, key):
        folder.mkdir(parents=True, exist_ok=True)
        found = _opened(request, names)
        _check_disk(folder, found, request)
        write_atomically(path, partial(write_cache, request, found, names, key))
    images, skipped = _read_cache(path, key)
    if skipped:
        warn_user(
            f"{len(skipped)} of {len(names)} image files in {request.source} are corrupt and are "
            f"left out: {_first_names(skipped)}"
        )
    return images


def image_files(folder: Path) -> list[str]:
    """The image files of a folder that `open_images` reads, in order, relative to the folder.

    Raises ValueError if there are none.
    """
    names = sorted(_image_files(folder))
    if not names:
        raise ValueError(f"source: expected image files in the folder {folder}, found none")
    return names


def read_image(path: Path, resolution: int, *, channels: int, fit: str = "crop") -> Tensor:
    """One image file, decoded as by `open_images`: float32 (C, R, R) in [-1, 1].

    Raises ValueError if it is corrupt, OSError if it cannot be read.
    """
    side, count = _checked_side(resolution, RESOLUTIONS[-1]), _checked_channels(channels)
    check_choice("fit", fit, tuple(FITS))
    levels = _decoded(path, lambda image: _fitted(image, _MODES[count], fit, side))
    if levels is None:
        raise ValueError(f"{path}: corrupt, too large, or not an image of 8 or 16 bits")
    return torch.from_numpy(levels.copy()).float() / 127.5 - 1.0


@dataclass(frozen=True)
class _Request:
    """The arguments of `open_images`: what is to be made of which source."""

    source: Path
    resolution: int
    fit: str
    channels: int | None
    bad_share: float
    progress: bool

    def key(self, names: Sequence[str]) -> str:
        """A digest of all that determines the pixels; `names` are the source's files."""
        stats = (_status(self.source / name) for name in names)
        files = [
            (name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)
        ]
        options = [self.resolution, self.fit, self.channels, self.bad_share]
        facts = json.dumps([_FORMAT, str(self.source.resolve()), files, *options])
        return hashlib.sha256(facts.encode()).hexdigest()


def _status(path: Path) -> os.stat_result:
    """The status of the file, or of the link itself if it leads nowhere or in a circle."""
    try:
        return path.stat()
    except OSError:
        if path.is_symlink():
            return path.lstat()
        raise


@dataclass(frozen=True)
class _Source:
    """Images that are loaded one by one.

    `load(item, use)` gives `use` the item as a picture of mode L or RGB, and returns what `use`
    returns; None if the item is corrupt.
    """

    items: Sequence[Any] | npt.NDArray[Any]
    load: _Load
    channels: int


def _checked_side(value: object, most: int) -> int:
    side = check_whole("resolution", value, RESOLUTIONS[0])
    if side not in RESOLUTIONS or side > most:
        raise ValueError(
            f"resolution: expected a power of two in {RESOLUTIONS[0]} ... {most}, "
            f"got {shown(value)}"
        )
    return side


def _checked_channels(value: object) -> int:
    count = check_whole("channels", value, 1, 3)
    if count not in _MODES:
        raise ValueError(f"channels: expected None, 1 or 3, got {shown(value)}")
    return count


def _checked_flip(flip: object, count: int) -> Tensor:
    if not isinstance(flip, Tensor):
        raise ValueError(f"flip: expected a bool tensor ({count},), got {shown(flip)}")
    if flip.dtype != torch.bool or flip.shape != (count,):
        raise ValueError(
            f"flip: expected a bool tensor ({count},), got {flip.dtype} {tuple(flip.shape)}"
        )
    return flip


def _checked_cache(cache: object) -> Path:
    if cache is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "cogen-fast" / "datasets"
    folder = check_path("cache", cache)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cache: expected a folder, got the file {folder}")
    return folder


def _first_names(names: Sequence[str]) -> str:
    more = "" if len(names) <= _MOST_NAMED else f" and {len(names) - _MOST_NAMED} more"
    return ", ".join(names[:_MOST_NAMED]) + more


def _listed(source: Path) -> list[str]:
    """The files that `source` consists of, relative to it: "" if it is a file."""
    mode = path_mode("source", source)
    if mode is None:
        raise FileNotFoundError(f"source: expected a folder or a file, found none at {source}")
    if stat.S_ISDIR(mode):
        return image_files(source)
    if not stat.S_ISREG(mode):
        raise ValueError(f"source: expected a folder or a file, got {kind_of_file(mode)}, {source}")
    return [""]


def _image_files(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in endings():
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _is_cached(path: Path, key: str) -> bool:
    try:
        _read_cache(path, key)
    except Exception:  # a damaged file raises almost anything
        return False
    return True


def _read_cache(path: Path, key: str) -> tuple[Images, list[str]]:
    """The images, and the names of the files left out.

    Raises an error unless `path` is a complete file with this `key`.
    """
    with open_regular("cache", path) as file:
        pixels = np.lib.format.open_memmap(path, mode="r")
        file.seek(pixels.offset + pixels.nbytes)
        trailer = parse_json("cache", file.read().decode())
    if trailer["key"] != key:
        raise ValueError(f"{path} is the cache of another source or of other arguments")
    return Images(pixels), list(trailer["skipped"])


def _check_disk(folder: Path, source: _Source, request: _Request) -> None:
    """OSError if the decoded images do not fit on the disk: tiny images can become huge ones."""
    side, channels = request.resolution, request.channels or source.channels
    needed, free = len(source.items) * channels * side * side, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"cache: expected {needed:,} bytes free in {folder} for {len(source.items):,} images "
            f"of {side} x {side}, got {free:,}"
        )


def write_cache(
    request: _Request, source: _Source, names: Sequence[str], key: str, path: Path
) -> None:
    """Decode to `path`: a `.npy`, followed by JSON with the `key` and the files left out."""
    channels = request.channels or source.channels
    shape = (channels, request.resolution, request.resolution)
    prepare = partial(_prepared, source.load, _MODES[channels], request)
    skipped: list[str] = []
    # The file is written in sequence: in a memory map a full disk would kill the process.
    with path.open("wb") as file, ThreadPoolExecutor(WORKERS) as pool:
        _write_header(file, (len(source.items), *shape))
        decoded = in_order(pool, prepare, source.items)
        bar = tqdm(decoded, "decoding", len(source.items), disable=not request.progress)
        for number, pixels in enumerate(bar):
            if pixels is None:
                skipped.append(names[number])
            else:
                file.write(pixels)
        _check_share(request, names, skipped)
        file.write(json.dumps({"key": key, "skipped": skipped}).encode())
        file.seek(0)
        _write_header(file, (len(source.items) - len(skipped), *shape))


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """NumPy's header; it is padded, so its length is the same for any number of images."""
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)


def _check_share(request: _Request, names: Sequence[str], skipped: Sequence[str]) -> None:
    if len(skipped) / len(names) > request.bad_share:
        raise ValueError(
            f"source: expected at most a share of {request.bad_share:g} of corrupt image files in "
            f"{request.source}, got {len(skipped)} of {len(names)}: {_first_names(skipped)}"
        )


def in_order(
    pool: ThreadPoolExecutor, make: Callable[[_Item], _Made], items: Iterable[_Item]
) -> Iterator[_Made]:
    """`make` of each item, in order; only a few results wait in memory."""
    waiting: deque[Future[_Made]] = deque()
    for item in items:
        waiting.append(pool.submit(make, item))
        if len(waiting) == 4 * WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _prepared(load: _Load, mode: str, request: _Request, item: Any) -> bytes | None:
    """One image as bytes (C, R, R); None if it is corrupt."""

    def fitted(image: Image.Image) -> bytes:
        return _fitted(image, mode, request.fit, request.resolution).tobytes()

    pixels: bytes | None = load(item, fitted)
    return pixels


def _fitted(image: Image.Image, mode: str, fit: str, side: int) -> Pixels:
    """The image as an array (C, R, R)."""
    levels = np.asarray(FITS[fit](_as_mode(image, mode), side))
    return np.atleast_3d(levels).transpose(2, 0, 1)


def _cropped(image: Image.Image, side: int) -> Image.Image:
    """The square at the centre, scaled to `side` x `side`."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def _padded(image: Image.Image, side: int) -> Image.Image:
    """The image, scaled down if it does not fit, at the centre of black `side` x `side`."""
    longest = max(image.size)
    if longest > side:
        width, height = (max(1, round(edge * side / longest)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new(image.mode, (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


FITS = {"crop": _cropped, "pad": _padded}
"""The ways to make images of other sizes square, by the names that `open_images` takes."""


def _opened(request: _Request, names: Sequence[str]) -> _Source:
    folder = request.source
    if folder.is_dir():
        channels = request.channels or _common_channels(request, names)
        return _Source(names, lambda name, use: _decoded(folder / name, use), channels)
    array = _channels_last(_read_array(request.source), request.source)
    channels = 3 if array.ndim == 4 else 1
    return _Source(array, lambda pixels, use: use(Image.fromarray(pixels)), channels)


def _common_channels(request: _Request, names: Sequence[str]) -> int:
    """1 if all files are grey, 3 if all are colour, as far as their headers can be read."""
    example: dict[int, str] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        found = in_order(pool, _header_channels, (request.source / name for name in names))
        bar = tqdm(found, "reading headers", len(names), disable=not request.progress)
        for name, channels in zip(names, bar, strict=True):
            if channels is not None:
                example.setdefault(channels, name)
            if len(example) == 2:
                raise ValueError(
                    f"source: expected only grey or only colour images in {request.source}, got "
                    f"{example[1]} (grey) and {example[3]} (colour); give channels=1 or "
                    "channels=3 to convert them"
                )
    return next(iter(example), 1)


def _header_channels(path: Path) -> int | None:
    if (file := _opened_file(path)) is None:
        return None
    with file:
        try:
            mode = open_picture(file).mode
        except Exception:  # decoders raise almost anything on a damaged file
            return None
    return 1 if mode in _GREY or mode.startswith("I;16") else 3


def _decoded(path: Path, use: Callable[[Image.Image], _Made]) -> _Made | None:
    """What `use` makes of an image file, upright, of mode L or RGB; None if it is corrupt.

    Raises OSError if it cannot be read, which may be possible at another time.
    """
    if (file := _opened_file(path)) is None:
        return None
    with file:
        content = file.read()
    try:
        image = open_picture(BytesIO(content))
    except Exception:  # decoders raise almost anything on a damaged file
        return None
    with limited_decoding(image.width * image.height):
        try:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            upright = _eight_bit(image, image.format)
        except Exception:  # decoders raise almost anything here too
            return None
        return use(upright)


def _opened_file(path: Path) -> BinaryIO | None:
    """An image file; None if it is a dead link, not a regular file, or too large."""
    try:
        file = open_regular("source", path)
    except FileNotFoundError:
        if path.is_symlink():
            return None
        raise
    except ValueError:
        return None
    if size_of(file) <= most_bytes():
        return file
    file.close()
    return None


def _eight_bit(image: Image.Image, kind: str | None) -> Image.Image:
    # Mode I may hold any 32-bit integers, but in these formats it is 16-bit grey.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"values of unknown range, mode {image.mode}")
    mode = "L" if image.mode in _GREY else "RGB"
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, _as_mode(image, "RGBA"))
    return _as_mode(image, mode)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in another mode; no copy if it has that mode already, as Pillow would make one."""
    return image if image.mode == mode else image.convert(mode)


def _channels_last(array: npt.NDArray[Any], path: Path) -> Pixels:
    """Images (N, H, W) or (N, H, W, 3) of an array in any of the layouts that are supported."""
    if array.dtype != np.uint8:
        raise ValueError(f"source: expected an array of uint8 in {path}, got {array.dtype}")
    if array.ndim == 4 and array.shape[3] in _MODES:
        images = array
    elif array.ndim == 4 and array.shape[1] in _MODES:
        images = array.transpose(0, 2, 3, 1)
    elif array.ndim == 3:
        images = array[..., None]
    else:
        raise ValueError(
            "source: expected an array (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3, in "
            f"{path}, got {array.shape}"
        )
    if not images.size:
        raise ValueError(f"source: expected images in {path}, got an array {array.shape}")
    try:
        check_pixels(images.shape[2], images.shape[1])
    except ValueError as error:
        raise ValueError(f"source: images in {path}: {error}") from None
    return images[..., 0] if images.shape[3] == 1 else images


def _read_array(path: Path) -> npt.NDArray[Any]:
    """The array of an `.npz` or IDX file, whatever the name of the file."""
    with open_regular("source", path) as file:
        check_room({"source": size_of(file)}, 1, "a file")
        start = file.read(2)
        file.seek(0)
        if start == b"PK":
            return _read_npz(file, path)
        if start != b"\x1f\x8b":
            return _read_idx(file, path, size_of(file), packed=False)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_idx(unpacked, path, size_of(file), packed=True)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"source: expected a complete gzip file, got {path}: {error}"
            ) from error


def _read_idx(file: BinaryIO | gzip.GzipFile, path: Path, size: int, packed: bool) -> Pixels:
    """The values of an IDX file of images.

    The format: two zero bytes, type, number of dimensions, sizes as big-endian 32 bits, values.
    ``size`` is that of the file, which is gzip-compressed if ``packed``.
    """
    head = file.read(4)
    dimensions = _idx_dimensions(head, path)
    sizes = file.read(4 * dimensions)
    shape = struct.unpack(f">{dimensions}I", sizes.ljust(4 * dimensions, b"\0"))
    pixels = math.prod(shape)
    expected, got, content = len(head) + 4 * dimensions + pixels, size, b""
    if packed:
        check_unpacked(f"source: {path}", size, expected)
    if packed or got == expected:
        content = file.read(pixels + 1)  # one byte more, to find out whether there are more
        got = len(head) + len(sizes) + len(content)
    if got != expected:
        raise ValueError(
            f"source: expected an IDX file of {expected} bytes, as its header says, "
            f"got {got} bytes{' or more' if packed else ''} (damaged or truncated) in {path}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_dimensions(head: bytes, path: Path) -> int:
    """3 or 4, if ``head`` is the start of an IDX file of images; otherwise raises ValueError."""
    if len(head) < 4 or head[:2] != b"\0\0":
        raise ValueError(f"source: expected a folder, an IDX file or an .npz, got the file {path}")
    kind, dimensions = head[2], head[3]
    if dimensions == 1:
        raise ValueError(
            f"source: expected an IDX file of images, got {path}, which has one dimension and so "
            "holds labels; give the file that holds the images"
        )
    if kind != 0x08 or dimensions not in (3, 4):
        raise ValueError(
            "source: expected an IDX file of unsigned bytes (type 0x08) of 3 or 4 dimensions, "
            f"got type {kind:#04x} of {dimensions} dimensions in {path}"
        )
    return dimensions


def _read_npz(file: BinaryIO, path: Path) -> npt.NDArray[Any]:
    try:
        with opened_npz("npz", file) as content:
            names = list(content.files)
            chosen = names[0] if len(names) == 1 else "images"
            array = array_of("npz", content, chosen) if chosen in names else None
    except Exception as error:  # a damaged archive raises almost anything
        raise ValueError(f"source: cannot read the arrays of {path}: {error}") from error
    if array is None:
        raise ValueError(
            f'source: expected one array, or one named "images", in {path}, got {sorted(names)}'
        )
    return array

"""Malicious and damaged files, and the calls that read files, for `confined`."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import cogen_fast
from cogen_fast.cli.images import read_picture
from cogen_fast.cli.main import main
from cogen_fast.experiments.evaluate.data import of_generator
from cogen_fast.experiments.evaluate.evaluate import Method, Study, evaluate, gather
from cogen_fast.experiments.evaluate.pictures import draw
from cogen_fast.experiments.evaluate.tasks import Block
from cogen_fast.experiments.evaluate.tuning import Grid, tuned
from cogen_fast.experiments.synthetic import study as synthetic
from cogen_fast.generators import (
    MLPGenerator,
    ProgressiveGenerator,
    load_generator,
    save_generator,
)
from cogen_fast.methods.settings import keywords
from cogen_fast.problem.compute import gathered
from cogen_fast.training import datasets
from cogen_fast.training.config import TrainingConfig
from cogen_fast.training.datasets import Images, open_images
from cogen_fast.training.run import train

SIDE = 16
MUCH = (
    320 * 2**20
)  # bytes of zeros: more than any file may unpack to, but not too many for a test that fails
MISTAKE = 2
# --- what is no file ----------------------------------------------------------------------------


def _socket(path: Path) -> None:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s")  # a socket's name must be short
        os.rename(f"{short}/s", path)


def _fifo_link(path: Path) -> None:
    target = path.with_name("a-pipe")
    os.mkfifo(target)
    path.symlink_to(target)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "link to a pipe": _fifo_link,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
    "folder": lambda path: path.mkdir(),
    "loop of links": lambda path: path.symlink_to(path),
}

# --- calls that read a file ---------------------------------------------------------------------


class Told(ValueError):
    """The error message of the command line."""


def command(*argv: object) -> None:
    """Run a command line; raises `Told` with its message if it ends with an error."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        status = main([str(each) for each in argv])
    lines = told.getvalue().splitlines()
    if status == MISTAKE:
        assert len(lines) == 1, lines
        raise Told(lines[0].removeprefix("cogen-fast: error: "))
    assert status == 0, lines


def generator_file(folder: Path) -> Path:
    generator = ProgressiveGenerator(SIDE, feature_maps=[4, 4, 4], latent_size=3)
    save_generator(generator, path := folder / "generator.safetensors")
    return path


def picture_file(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path := folder / "picture.png")
    return path


def inpaint(folder: Path, **changes: object) -> None:
    files = {"generator": generator_file(folder), "image": picture_file(folder)} | changes
    box = () if "mask" in changes else ("--box", 1, 1, 3, 3)
    given = [part for name, path in files.items() for part in (f"--{name}", path)]
    run = ("--chains", 1, "--budget", 3, "--out", folder / "out")
    command("inpaint", *given, *box, *run)


def load(path: Path) -> None:
    load_generator(path)


def small_run(**options: Any) -> None:
    torch.manual_seed(0)
    G, mask = MLPGenerator((2, 4, 3)), torch.tensor([1.0, 1.0, 0.0])
    cogen_fast.cogenerate(
        G, torch.zeros(3), mask, **keywords({"noise_std": 0.1, "progress": False} | options)
    )


def images_of(path: Path, **options: Any) -> Images:
    with tempfile.TemporaryDirectory() as cache:
        found = open_images(path, 8, **{"cache": cache, "progress": False} | options)
        return Images(np.array(found.pixels))


def saved_result(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    G, mask = MLPGenerator((2, 4, 3)), torch.tensor([1.0, 1.0, 0.0])
    run: dict[str, Any] = {"noise_std": 0.1, "budget": 60, "polish": 4, "keep_trace": True}
    run |= {"progress": False} | options
    return cogen_fast.cogenerate(G, torch.zeros(2, 3), mask, **keywords(run)).save(
        folder / "result"
    )


def load_result(path: Path) -> None:
    """Load a result in which the file at ``path`` takes the place of one of its files."""
    there = saved_result(path.parent) / path.name
    there.unlink()
    os.rename(path, there)
    cogen_fast.Result.load(there.parent)


def evaluation(path: Path) -> None:
    """Continue an evaluation in which the file at ``path`` takes the place of one of its files."""
    G = ProgressiveGenerator(SIDE, feature_maps=[4, 4, 4], latent_size=3).eval()
    method = Method("gd", "gd", {"steps": 2, "learning_rate": 0.1})
    study = Study(Block(), (method,), {"noise_std": 0.1}, group=1)
    data = of_generator(G, 3, 2, seed=1)
    out = path.parent / "study"
    evaluate(G, data, study, out, images=1, progress=False)
    there = out / path.name
    if not there.exists():
        there = out / "gd" / path.name
    there.unlink()
    os.rename(path, there)
    evaluate(G, data, study, out, images=2, progress=False)
    list(gather(out))


def evaluated(out: Path) -> Any:
    """The output of an evaluation in a folder, which tunes a learning rate and draws pictures."""
    torch.manual_seed(0)
    G = ProgressiveGenerator(SIDE, feature_maps=[4, 4, 4], latent_size=3).eval()
    study = Study(Block(), (Method("gd", "gd", {"steps": 2}),), {"noise_std": 0.1}, group=1)
    data, grid = of_generator(G, 3, 2, seed=1), Grid(images=1, steps=1, rates={"gd": (0.1, 1.0)})
    study = tuned(G, data, study, out, images=1, grid=grid, progress=False)
    evaluate(G, data, study, out, images=1, progress=False)
    return list(gather(out)), draw(data, study, out, [0]).tobytes()


def training(path: Path) -> None:
    """Continue a training in which the file at ``path`` takes the place of one of its files."""
    out = path.parent / "training"
    out.mkdir()
    os.rename(path, out / path.name)
    trained(out)


def trained(out: Path) -> None:
    """A training of one step in a folder, begun or continued."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 4, 4), dtype=np.uint8)
    config = TrainingConfig(resolution=4, total_images=8, latent_size=2, fmap_max=2)
    train(Images(pixels), config, out, progress=False)


# The columns are the argument that errors name, the call, and the name that the file must have
# (None: any).
READERS: dict[str, tuple[str, Callable[[Path], object], str | None]] = {
    "load_generator": ("path", load, None),
    "inpaint --generator": ("generator", lambda p: inpaint(p.parent, generator=p), None),
    "inpaint --image": ("image", lambda p: inpaint(p.parent, image=p), None),
    "inpaint --mask": ("mask", lambda p: inpaint(p.parent, mask=p), None),
    "inpaint --checkpoint": ("checkpoint", lambda p: inpaint(p.parent, checkpoint=p), None),
    "convert": ("source", lambda p: command("convert", p, p.parent / "x.safetensors"), None),
    "sample": ("generator", lambda p: command("sample", p, "--out", p.parent / "x.png"), None),
    "swd": ("what", lambda p: command("swd", p, "--data", p.parent), None),
    "reproduce": ("generator", lambda p: synthetic.reproduce(p.parent, generators=[p]), None),
    "cogenerate": ("checkpoint", lambda p: small_run(checkpoint=p), None),
    "open_images": ("source", images_of, None),
    "Result.load, arrays": ("directory", load_result, "result.npz"),
    "Result.load, summary": ("directory", load_result, "result.json"),
    "evaluate, plan": ("out", evaluation, "plan.json"),
    "evaluate, records": ("out", evaluation, "group-000000.jsonl"),
    "train, checkpoint": ("out", training, "checkpoint.pt"),
    "train, log": ("out", training, "log.jsonl"),
}


def read_what_is_no_file(reader: str, kind: str) -> None:
    """Read what is not a regular file, in an empty folder of its own."""
    _, call, name = READERS[reader]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        path = Path(folder, name or "given")
        NO_FILES[kind](path)
        call(path)


# --- files that are more than they seem -----------------------------------------------------------


def npy_header(shape: tuple[int, ...], kind: str) -> bytes:
    file = io.BytesIO()
    facts = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def _write_zeros(write: Callable[[bytes], object], size: int) -> None:
    block = bytes(2**22)
    for start in range(0, size, len(block)):
        write(block[: size - start])


def npz_of_zeros(path: Path, shapes: dict[str, tuple[int, ...]], kind: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(npy_header(shape, kind))
                _write_zeros(file.write, int(np.prod(shape)) * np.dtype(kind).itemsize)


def generator_npz_bomb(path: Path) -> None:
    width = MUCH // 8
    npz_of_zeros(path, {"w1": (2, width), "b1": (width,)}, "<f4")


def images_npz_bomb(path: Path) -> None:
    npz_of_zeros(path, {"images": (MUCH // 64, 8, 8)}, "|u1")


def images_gzip_bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", MUCH // 64, 8, 8))
        _write_zeros(file.write, MUCH)


def torch_bomb(path: Path) -> None:
    """A file as `torch.save` writes it, but compressed."""
    torch.save({"features.0.conv.weight": torch.zeros(MUCH // 4)}, plain := io.BytesIO())
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(path, "w") as after:
        for member in before.infolist():
            kind = zipfile.ZIP_DEFLATED if "/data/" in member.filename else zipfile.ZIP_STORED
            after.writestr(member.filename, before.read(member), kind, compresslevel=1)


def torch_overlap(path: Path) -> None:
    """A file of torch with a hundred records that all refer to the same bytes of the file."""
    torch.save({f"layer{i}": torch.full((2**18,), float(i)) for i in range(100)}, path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        tensors = [each for each in members if "/data/" in each.filename and each.file_size > 99]
        content = {each.filename: archive.read(each) for each in members if each not in tensors}
        shared = archive.read(tensors[0])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(tensors[0].filename, shared)
        first = archive.infolist()[-1]
        for each in tensors[1:]:
            twin = zipfile.ZipInfo(each.filename)
            for fact in ("header_offset", "CRC", "file_size", "compress_size"):
                setattr(twin, fact, getattr(first, fact))
            archive.filelist.append(twin)


def torch_claim(path: Path) -> None:
    """A pickle that claims tensors of far more bytes than the file has."""
    with zipfile.ZipFile(path, "w") as archive:
        call = b"ctorch\nTensor\n(J" + struct.pack("<i", MUCH // 4) + b"tR"
        name = b"X" + struct.pack("<I", 22) + b"features.0.conv.weight"
        archive.writestr("x/data.pkl", b"\x80\x02}" + name + call + b"s.")
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/version", b"3\n")


def many_layers(path: Path) -> None:
    metadata = {
        "cogen_fast_generator": "MLPGenerator",
        "config": json.dumps({"sizes": [2] * 200_001}),
    }
    save_file(MLPGenerator((2, 2)).state_dict(), path, metadata)


def png(width: int, height: int) -> bytes:
    """A black PNG of few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def huge_picture(path: Path) -> None:
    path.write_bytes(png(12_840, 12_850))  # 165 million pixels, at which Pillow only warns


def huge_webp(path: Path) -> None:
    """A WebP file of 34 bytes, which its decoder expands to 1.5 gigabytes."""
    Image.new("RGB", (9_400, 9_400)).save(path, "WEBP", lossless=True, method=0, quality=0)


def sparse_picture(path: Path) -> None:
    """A sparse file of a terabyte, of a format whose decoder begins by reading all of it."""
    path.write_bytes(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
    os.truncate(path, 2**40)


def sparse_safetensors(path: Path) -> None:
    """A sparse safetensors file with tensors of a terabyte."""
    header = {"layers.0.weight": {"dtype": "F32", "shape": [2**37, 2], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 2**40)


def sparse_idx(path: Path) -> None:
    """A sparse IDX file with images of a terabyte."""
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**20, 2**10, 2**10))
    os.truncate(path, 16 + 2**40)


_PACKED = "expected at most 268,435,456 bytes in a compressed file"
_PIXELS = "expected at most 89,478,485 pixels, got 12840 x 12850"
_MEMORY = "that fits into memory, which is"
# The columns are the reader, the file that is given to it, and what the error says.
BOMBS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "generator: npz": ("load_generator", generator_npz_bomb, _PACKED),
    "generator: images in an npz": ("load_generator", images_npz_bomb, _PACKED),
    "generator: compressed torch": ("load_generator", torch_bomb, "torch.save never compresses"),
    "generator: overlapping torch": ("load_generator", torch_overlap, "never compresses"),
    "generator: claims of a pickle": ("load_generator", torch_claim, "tensors of at most the file"),
    "generator: layers": ("load_generator", many_layers, "at most 2 numbers in 'sizes'"),
    "generator: sparse": ("load_generator", sparse_safetensors, _MEMORY),
    "images: npz": ("open_images", images_npz_bomb, _PACKED),
    "images: gzip": ("open_images", images_gzip_bomb, _PACKED),
    "images: sparse": ("open_images", sparse_idx, _MEMORY),
    "picture: pixels": ("inpaint --image", huge_picture, _PIXELS),
    "picture: webp": ("inpaint --image", huge_webp, "at most 44,739,242 pixels, got 9400 x 9400"),
    "picture: sparse": (
        "inpaint --image",
        sparse_picture,
        "a picture of at most 716,876,456 bytes",
    ),
    "mask: pixels": ("inpaint --mask", huge_picture, _PIXELS),
}


def read_bomb(bomb: str, path: Path) -> None:
    """Read a file that has been made before; other files go to a folder of their own."""
    reader = BOMBS[bomb][0]
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "given")
        given.symlink_to(path)
        READERS[reader][1](given)


# --- pictures -----------------------------------------------------------------------------------

POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    b"0 0 8 8 rectfill\nshowpage\n%%EOF\n"
)


def dos_postscript() -> bytes:
    """PostScript with the header by which Windows programs add a preview."""
    return b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, len(POSTSCRIPT), *[0] * 5) + POSTSCRIPT


SCRIPTS = {"plain": POSTSCRIPT, "with a preview": dos_postscript()}


def look_at_postscript(path: Path, argument: str, programs: str) -> None:
    os.environ["PATH"] = programs
    if argument == "data":
        images_of(path.parent, bad_share=0.9, channels=3)
    else:
        inpaint(path.parent, **{argument: path})


def shrink(path: Path) -> None:
    read_picture("image", path).fit((16, 16), resize=True)


MEMBERS: dict[str, Callable[[Path], object]] = {
    **{kind: make for kind, make in NO_FILES.items() if kind != "folder"},
    "broken link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "huge and sparse": sparse_picture,
    "too many pixels": huge_picture,
    "postscript": lambda path: path.write_bytes(POSTSCRIPT),
}


def read_folder(kind: str, channels: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(9):
            Image.new("RGB", (8, 8)).save(Path(folder, f"{number}.png"))
        MEMBERS[kind](Path(folder, "strange.png"))
        images = images_of(Path(folder), bad_share=0.2, channels=channels)
        assert len(images) == 9


def decode_by_many(folder: Path) -> None:
    datasets.WORKERS = 8
    images_of(folder)


# --- JSON ---------------------------------------------------------------------------------------

NESTS = {
    "list": "[" * 100_000,
    "object": '{"sizes": ' * 100_000,
    "inside": '{"sizes": [2, ' + "[" * 100_000 + "]" * 100_000 + "]}",
    "digits": '{"sizes": [2, ' + "9" * 5_000 + "]}",
}


def read_nested(reader: str, nest: str) -> None:
    _, call, name = READERS[reader]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, str(name))
        path.write_text(NESTS[nest] + "\n")
        call(path)


# --- counts -------------------------------------------------------------------------------------


def any_size(z: torch.Tensor) -> torch.Tensor:
    """A generator for latents of any length."""
    return 2.0 * z[:, :3]


def long_latents(**options: Any) -> None:
    mask = torch.tensor([1.0, 1.0, 0.0])
    cogen_fast.cogenerate(
        any_size, torch.zeros(3), mask, **keywords({"noise_std": 0.1, "progress": False, **options})
    )


def baseline(**options: Any) -> None:
    G, mask = MLPGenerator((2, 4, 3)), torch.tensor([1.0, 1.0, 0.0])
    given = {"method": "gd-multi", "learning_rate": 0.1, "steps": 2} | options
    cogen_fast.methods.baselines.reconstruct(
        G, torch.zeros(3), mask, **gathered({"noise_std": 0.1, **given})
    )


def bounds(**options: Any) -> None:
    G, mask = MLPGenerator((2, 4, 3)), torch.tensor([1.0, 1.0, 0.0])
    cogen_fast.bound_evidence(G, mask, **gathered({"noise_std": 0.1, **options}))


def sample(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = generator_file(Path(folder))
        command("sample", path, "--count", count, "--out", Path(folder, "x.png"))


def run_with(call: str, options: dict[str, Any]) -> None:
    globals()[call](**options)

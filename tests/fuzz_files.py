"""Damage files of every kind at random, read them, and report every failure.

    python tests/fuzz_files.py [--mutations 10000] [--kinds run training ...] [--out FILE]

For every kind of file a valid one is made, damaged (bits, cuts, pieces doubled, swapped or from
elsewhere, also within archives, whose checksums are then corrected) and read as a user would. It is
a failure if reading crashes, takes longer than ten seconds or more than a gigabyte beyond the
file's own size, or raises an error that names neither argument nor file; and, for files that carry
a digest or checksums of their own, if it gives another result without an error. Finished mutations
are counted in FILE (``fuzz_files.jsonl``), so that a killed command can be continued. The exit
status is 1 if there was a failure.

With AddressSanitizer: build ``tests/sanitizers`` with ``-DCOGEN_SANITIZED_MODULE=ON``, put its
``_native`` in the place of the package's, and name ``libasan.so``, ``libubsan.so`` and
``libstdc++.so``, resolved, in ``LD_PRELOAD``, with ``ASAN_OPTIONS=detect_leaks=0``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import test_resume_files
import torch
from confined import status
from PIL import Image

from cogen_fast.generators import MLPGenerator, load_generator, save_generator
from cogen_fast.support.digests import digest_of_tree

_SECONDS, _BYTES = 10.0, 2**30
_AT_ONCE = 50  # mutations per process
_DATA = Path(os.environ.get("COGEN_FAST_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
_NAMED = (ValueError, TypeError, OSError)


@dataclass(frozen=True)
class Kind:
    """How a valid file is made and read, the argument that errors name, and if damage must show."""

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    argument: str
    sealed: bool = False
    archive: bool = False


# --- kinds of files -------------------------------------------------------------------------------


def _generator(path: Path) -> None:
    save_generator(MLPGenerator((2, 6, 3)), path)


def _progressive(path: Path) -> None:
    hostile.generator_file(path.parent).rename(path)


def _mlp_npz(path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = ((2, 20), (20, 20), (20, 2))
    layers = {f"w{i}": rng.normal(size=s) for i, s in enumerate(sizes, 1)}
    biases = {f"b{i}": rng.normal(size=s[1]) for i, s in enumerate(sizes, 1)}
    with path.open("wb") as file:
        np.savez(file, **{n: v.astype(np.float32) for n, v in (layers | biases).items()})


def _foreign(name: str) -> Callable[[Path], object]:
    """A file of another program, from the test data."""
    return lambda path: path.write_bytes((_DATA / name).read_bytes())


def _picture(form: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format=form)

    return make


def _idx(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    path.write_bytes(header + pixels.tobytes())


def _images_npz(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, pixels)


def _result_file(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path.write_bytes((hostile.saved_result(Path(folder)) / name).read_bytes())

    return make


def _read_result(name: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        folder = path.parent / "result"
        hostile.saved_result(path.parent)
        (folder / name).write_bytes(path.read_bytes())
        found = hostile.cogen_fast.Result.load(folder)
        return digest_of_tree(vars(found))

    return read


def _run_file(kind: str, fused: bool) -> Callable[[Path], None]:
    return lambda path: test_resume_files.write(test_resume_files.written(kind, fused), path)


def _read_run(kind: str, fused: bool) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        found = test_resume_files.run(kind, fused, path)
        return digest_of_tree({"latents": found.latents, "energies": found.energies})

    return read


def _training(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        hostile.trained(Path(folder))
        path.write_bytes((Path(folder) / "checkpoint.pt").read_bytes())


def _read_training(path: Path) -> Any:
    folder = path.parent / "training"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(path.read_bytes())
    hostile.trained(folder)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return digest_of_tree(state["generator"])


@cache
def _evaluation() -> dict[str, bytes]:
    """Every file of an evaluation, by its name in the folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        hostile.evaluated(out)
        files = [path for path in out.rglob("*") if path.is_file()]
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def _read_evaluation(name: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        out = path.parent / "evaluation"
        for each, content in _evaluation().items():
            (out / each).parent.mkdir(parents=True, exist_ok=True)
            (out / each).write_bytes(path.read_bytes() if each == name else content)
        return digest_of_tree(hostile.evaluated(out))

    return read


def _of_evaluation(name: str) -> Kind:
    def make(path: Path) -> None:
        path.write_bytes(_evaluation()[name])

    return Kind(make, _read_evaluation(name), "out", True, archive=name.endswith("npz"))


def _of_run(kind: str, fused: bool) -> Kind:
    return Kind(_run_file(kind, fused), _read_run(kind, fused), "checkpoint", True)


def _weights(path: Path) -> Any:
    return digest_of_tree(load_generator(path).state_dict())


def _pixels(path: Path) -> Any:
    return hostile.images_of(path).pixels.tobytes()


def _decoded(path: Path) -> None:
    hostile.read_picture("image", path)


KINDS = {
    "generator": Kind(_generator, _weights, "path"),
    "progressive": Kind(_progressive, _weights, "path"),
    "mlp npz": Kind(_mlp_npz, _weights, "path", archive=True),
    **{
        name: Kind(_foreign(name), _weights, "path", archive=True)
        for name in (
            "gan_zoo_pgan_16px.pth",
            "pro_gan_pth_16px.bin",
            "karras_converted_16px.pth",
            "rosinality_stylegan2_32px.pt",
        )
        if (_DATA / name).exists()
    },
    **{
        name: Kind(_foreign(name), _weights, "path")
        for name in ("ada_stylegan2_32px.pkl",)
        if (_DATA / name).exists()
    },
    **{
        form: Kind(_picture(form), _decoded, "image")
        for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    },
    "idx": Kind(_idx, _pixels, "source"),
    "images npz": Kind(_images_npz, _pixels, "source", archive=True),
    **{
        name: Kind(_result_file(name), _read_result(name), "directory", sealed=True)
        for name in ("result.npz", "result.json")
    },
    "run, fused": _of_run("paper", True),
    "run, general": _of_run("paper", False),
    "run, adaptive": _of_run("adaptive", False),
    "run, many latents": _of_run("many latents", False),
    "run, noise": _of_run("noise, in the rounds", False),
    **{
        f"evaluation, {name}": _of_evaluation(name)
        for name in (
            "plan.json",
            "gd/plan.json",
            "gd/tuning.json",
            "gd/group-000000.jsonl",
            "gd/group-000000.npz",
        )
    },
    "training": Kind(_training, _read_training, "out", True),
}


# --- damage ---------------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four random changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        _DAMAGE[rng.randrange(len(_DAMAGE))](data, rng)
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1024)))


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _fill(data: bytearray, rng: random.Random) -> None:
    start, end = _place(data, rng)
    data[start:end] = bytes([rng.choice((0, 1, 127, 128, 255))]) * (end - start)


def _cut(data: bytearray, rng: random.Random) -> None:
    start, end = _place(data, rng)
    del data[start : rng.choice((end, len(data)))]


def _double(data: bytearray, rng: random.Random) -> None:
    start, end = _place(data, rng)
    data[start:start] = data[start:end] * rng.choice((1, 3))


def _move(data: bytearray, rng: random.Random) -> None:
    (start, end), (other, _) = _place(data, rng), _place(data, rng)
    data[other : other + end - start] = data[start:end]


def _random(data: bytearray, rng: random.Random) -> None:
    start, end = _place(data, rng)
    data[start:end] = rng.randbytes(end - start)


_DAMAGE = (_flip, _flip, _fill, _cut, _double, _move, _random)


def damaged_within(content: bytes, rng: random.Random, folder: Path) -> bytes:
    """An archive with one damaged member, whose checksum is corrected."""
    source, target = folder / "source.zip", folder / "target.zip"
    source.write_bytes(content)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = old.namelist()
        hit = rng.choice(names)
        for name in names:
            inner = old.read(name)
            new.writestr(old.getinfo(name), damaged(inner, rng) if name == hit else inner)
    return target.read_bytes()


@cache
def _valid(name: str) -> tuple[bytes, Any]:
    """A file of a kind, and what reading it gives."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        kind.make(path)
        content = path.read_bytes()
        return content, kind.read(path)


# --- one process's mutations ----------------------------------------------------------------------


def _work(pipe: Connection, name: str, numbers: range, seed: int) -> None:
    """Send what was wrong with each mutation ("" for nothing) as soon as it is known."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what libraries print of bad files
    _valid(name)
    for number in numbers:
        pipe.send((number, None))
        pipe.send((number, _tried(name, number, seed)))


def _tried(name: str, number: int, seed: int) -> str:
    kind, rng = KINDS[name], random.Random(f"{seed} {name} {number}")
    content, whole = _valid(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        within = kind.archive and rng.random() < 0.5
        path.write_bytes(
            damaged_within(content, rng, Path(folder)) if within else damaged(content, rng)
        )
        size = path.stat().st_size
        _forget_peak()
        before, start = status("VmRSS"), time.monotonic()
        wrong = _outcome(kind, path, whole)
        grew, took = status("VmHWM") - before, time.monotonic() - start
    if took > _SECONDS:
        return f"took {took:.0f} s"
    if grew > _BYTES + size:
        return f"took {grew / 2**20:.0f} MB"
    return wrong


def _outcome(kind: Kind, path: Path, whole: Any) -> str:
    try:
        found = kind.read(path)
    except _NAMED as error:
        told = str(error).splitlines()[:1]
        if told and (kind.argument in told[0] or str(path) in told[0]):
            return ""
        return f"an error without {kind.argument!r}: {type(error).__name__}: {error!s:.150}"
    except BaseException as error:  # any exception is reported
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        return f"{type(error).__name__}: {error!s:.150} {where}"
    return "another result without an error" if kind.sealed and found != whole else ""


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# --- all of them ----------------------------------------------------------------------------------


def tried(name: str, numbers: range, seed: int) -> Iterator[tuple[int, str]]:
    """What was wrong with each mutation, including those that crash or hang."""
    left = numbers
    while left:
        here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(there, name, left, seed), daemon=True
        )
        process.start()
        there.close()
        now = None
        try:
            while here.poll(120.0 if now is None else 3 * _SECONDS):
                number, wrong = here.recv()
                now = number
                if wrong is not None:
                    yield number, wrong
                    left = range(number + 1, left.stop)
            else:
                yield left.start, "hangs"
                left = range(left.start + 1, left.stop)
        except EOFError:
            process.join()
            if left:
                yield left.start, f"died with {process.exitcode}"
                left = range(left.start + 1, left.stop)
        finally:
            process.kill()
            process.join()


def main() -> int:
    """Try all mutations that have not been tried, report failures, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz_files.jsonl"))
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = [json.loads(line) for line in lines]
    each = -(-options.mutations // len(KINDS))
    for name in options.kinds:
        _valid(name)
        for start in range(0, each, _AT_ONCE):
            key = {"kind": name, "seed": options.seed, "start": start}
            if any(key.items() <= line.items() for line in known):
                continue
            numbers = range(start, min(start + _AT_ONCE, each))
            wrong = {number: told for number, told in tried(name, numbers, options.seed) if told}
            known.append({**key, "count": len(numbers), "wrong": wrong})
            with options.out.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
            for number, told in wrong.items():
                print(f"{name}, mutation {number}: {told}", flush=True)
    count: Counter[str] = Counter()
    for line in known:
        count[line["kind"]] += line["count"]
    print("\n".join(f"{name}: {number} mutations" for name, number in count.items()))
    failed = sum(len(line["wrong"]) for line in known)
    print(f"{sum(count.values())} mutations, {failed} with something wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

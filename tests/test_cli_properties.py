"""The command line under random arguments: success, or a single line of error and no traceback.

Examples are the same in every run. ``COGEN_FAST_PROPERTY_EFFORT=20 pytest tests/`` makes 20 times
as many of these, new ones every time.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import event, example, given
from hypothesis import strategies as st
from PIL import Image
from searches import limited, search

import cogen_fast
from cogen_fast.cli.main import main
from cogen_fast.generators import MLPGenerator, ProgressiveGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 8
DONE, MISTAKE, NOT_SAMPLES = 0, 2, 3
NO_SAMPLES = "the images are not samples of the posterior"
USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, colours=3, height=8, width=8):
        super().__init__()
        torch.manual_seed(3)
        self.dense, self.shape = nn.Linear(3, colours * height * width), (colours, height, width)
    def forward(self, z):
        return torch.tanh(self.dense(z)).reshape(-1, *self.shape)

with torch.random.fork_rng():
    net, grey, wide = Net(), Net(1), Net(3, 4, 6)
number = 7

def build():
    with torch.random.fork_rng():
        return Net()

def broken():
    raise RuntimeError("no\\nweights")

def noisy(z):
    return net(z) + torch.randn(())
"""


@pytest.fixture(autouse=True)
def own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


# --- files --------------------------------------------------------------------------------------

Pixels = npt.NDArray[np.uint8]
SIZES = {"fit": (SIDE, SIDE), "one": (1, 1), "wide": (13, 5), "line": (60, 1), "half": (4, 4)}


def pixels(width: int, height: int) -> Pixels:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)


def with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(alpha)
    return image


def see_through_palette(image: Image.Image) -> Image.Image:
    image = image.convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


def write_pictures(folder: Path) -> None:
    """Pictures of every size and mode, good and bad; the bad ones' names begin with ``bad``."""
    for name, size in SIZES.items():
        image = Image.fromarray(pixels(*size))
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
        good = {
            **{mode: image.convert(mode) for mode in ("RGB", "L", "1", "P", "LA", "CMYK")},
            "RGBA": with_alpha(image, 255),
            "deep": Image.fromarray(deep),
        }
        for mode, picture in good.items():
            suffix = "tiff" if mode in ("CMYK", "LA") else "png"
            picture.save(folder / f"{name}-{mode}.{suffix}")
        image.save(folder / f"{name}-photo.jpg")
        image.convert("P").save(folder / f"{name}-moving.gif", save_all=True, append_images=[image])
        with_alpha(image, 100).save(folder / f"bad-{name}-clear.png")
        see_through_palette(image).save(folder / f"bad-{name}-palette.png")
        Image.fromarray(deep.astype(np.float32)).save(folder / f"bad-{name}-float.tiff")
        Image.fromarray(deep.astype(np.int32)).save(folder / f"bad-{name}-wide.tiff")
    (folder / "bad-empty.png").touch()
    (folder / "bad-text.png").write_text("no picture")
    (folder / "bad-folder.png").mkdir()
    (folder / "bad-link.png").symlink_to(folder / "nothing")
    whole = (folder / "fit-RGB.png").read_bytes()
    for share in (1, 8, 20, 45, 80):
        (folder / f"bad-cut-{share}.png").write_bytes(whole[: len(whole) * share // 100])
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "bad-pipe.png")


@dataclass(frozen=True)
class Shop:
    """The paths of generators and pictures, by their kinds."""

    folder: Path
    generators: dict[str, str]
    good: dict[str, str]
    bad: dict[str, str]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    files = folder / "pictures"
    files.mkdir()
    write_pictures(files)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ProgressiveGenerator(resolution=SIDE, feature_maps=[4, 4], latent_size=3)
        cogen_fast.save_generator(net, folder / "g.safetensors")
        cogen_fast.save_generator(MLPGenerator([2, 4, 3]), folder / "vectors.safetensors")
    (folder / "not.safetensors").write_text("nothing")
    (folder / "cut.safetensors").write_bytes((folder / "g.safetensors").read_bytes()[:900])
    (folder / "generators_of_a_user.py").write_text(USER_CODE)
    names = sorted(p.name for p in files.iterdir())
    before = list(sys.path)
    sys.path.append(str(folder))
    yield Shop(
        folder,
        {name: str(folder / f"{name}.safetensors") for name in ("g", "vectors", "not", "cut")},
        {name: str(files / name) for name in names if not name.startswith("bad")},
        {name: str(files / name) for name in names if name.startswith("bad")},
    )
    sys.path[:] = before
    sys.modules.pop("generators_of_a_user", None)


FINE_GENERATORS = ["g", "generators_of_a_user:net", "generators_of_a_user:build()"]
OTHER_GENERATORS = ["generators_of_a_user:grey", "generators_of_a_user:wide"]
BAD_GENERATORS = [
    "vectors", "not", "cut", "", ".", "no/such/file", "generators_of_a_user",
    "generators_of_a_user:", "generators_of_a_user:number", "generators_of_a_user:build",
    "generators_of_a_user:broken()", "generators_of_a_user:noisy", "generators_of_a_user:net()",
    "generators_of_a_user:Net", "generators_of_a_user.py:net", "os:getcwd()", "os.path:join",
    "no_such_module:net", "a b:c", "json:", "math:pi", 300 * "g",
]  # fmt: skip


def contents(*folders: Path) -> dict[str, str]:
    """Every file below the folders, and its content."""
    found = {}
    for path in itertools.chain.from_iterable(f.rglob("*") for f in folders):
        if "__pycache__" not in path.parts:
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = hashlib.sha256(data).hexdigest()
    return found


# --- arguments ----------------------------------------------------------------------------------

# Valid and invalid values of each option, whatever the other options are.
OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "--chains": (["1", "2", "3"], ["0", "-1", "two", "1.5", "", "nan", "٣ ٣"]),
    "--polish": (["0", "1", "2"], ["-1", "x", "0.5"]),
    "--hmc-steps": (["1", "2"], ["0", "-2", "x"]),
    "--leapfrog-steps": (["1", "2"], ["0", "-2", "x"]),
    "--step-size": (["0.1", "1e-3", "1_0.5"], ["0", "-1", "nan", "inf", "1e400", "x"]),
    "--noise-std": (["0.5", "0.05", "1e3"], ["0", "-1", "nan", "inf", "x", "1e-300"]),
    "--seed": (["0", "5", str(2**64 - 1)], ["-1", str(2**64), "x", "1.0"]),
    "--latent-shape": (["3"], ["0", "-3", "x", "4", ""]),
    "--device": (["cpu"], ["gpu", "cuda:77", "meta", "", "cuda:-1", "cpu cpu"]),
    "--backend": (["auto", "native", "reference"], ["x", "", "triton", "Native"]),
    "--gradient-dtype": (["float32", "bfloat16", "float16"], ["float64", "int8", ""]),
    "--energy-dtype": (["float32"], ["bfloat16", ""]),
    "--max-batch": (["1", "7", str(2**31 - 1)], ["0", "-1", "x", str(2**80)]),
    "--checkpoint": (["run.safetensors"], ["no/such/folder/run", ".", "", 300 * "c", "taken"]),
}
ADAPTIVE: dict[str, tuple[list[str], list[str]]] = {
    "--budget": (["3", "5", "20"], ["0", "-5", "x"]),
    "--populations": (["1", "2"], ["0", "-1", "x"]),
    "--evidence": (["consistent"], ["frozen", "x", ""]),  # too few chains for frozen
    "--target-cess": (["0.5", "0.9"], ["0", "1", "-1", "nan", "x"]),
    "--mass": (["curvature", "identity"], ["full", "low-rank", ""]),
    "--method": (["adaptive"], ["x", ""]),
}
PAPER: dict[str, tuple[list[str], list[str]]] = {
    "--ais-steps": (["1", "2"], ["0", "-1", "x"]),
    "--schedule": (["sigmoid", "linear", "geometric"], ["x", ""]),
    "--form": (["posterior", "paper"], ["x", ""]),
    "--adaptation": (["per-chain"], ["chain", ""]),
    "--preset": (["celeba-128", "lsun-256"], ["x", ""]),
}
TABLES = OPTIONS | ADAPTIVE | PAPER
SWITCHES = ["--quiet", "--overwrite"]


@dataclass(frozen=True)
class Line:
    """A command line, which is valid except for the options named in ``wrong``."""

    command: str
    values: dict[str, list[str]]
    switches: list[str]
    wrong: list[str]

    def argv(self, shop: Shop, out: Path) -> list[str]:
        """The words of the command line, with paths in place of the kinds of files."""
        found = {**shop.generators, **shop.good, **shop.bad}
        parts = [[name, *(found.get(v, v) for v in vs)] for name, vs in self.values.items()]
        return [self.command, *itertools.chain(*parts), "--out", str(out), *self.switches]

    def value(self, name: str) -> str | None:
        return self.values[name][0] if name in self.values else None


@st.composite
def some_options(draw: st.DrawFn, *tables: dict[str, tuple[list[str], list[str]]]) -> Any:
    table = {name: values for each in tables for name, values in each.items()}
    names = draw(st.sets(st.sampled_from(sorted(table)), max_size=4))
    return {name: [draw(st.sampled_from(table[name][0]))] for name in sorted(names)}


@st.composite
def right_lines(draw: st.DrawFn) -> Line:
    """Valid commands of both tasks."""
    values: dict[str, list[str]] = {"--generator": [draw(st.sampled_from(FINE_GENERATORS))]}
    names = sorted(good_pictures())
    switches = draw(st.lists(st.sampled_from(SWITCHES), unique=True))
    command = draw(st.sampled_from(["inpaint", "super-resolve"]))
    if command == "inpaint":
        if draw(st.booleans()):
            switches.append("--resize")
            values["--image"] = [draw(st.sampled_from(names))]
        else:
            values["--image"] = [draw(st.sampled_from([n for n in names if n.startswith("fit")]))]
        if draw(st.booleans()):
            masks = [n for n in names if n.startswith(values["--image"][0].split("-")[0])]
            values["--mask"] = [draw(st.sampled_from(masks))]
        else:
            x, y = draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1))
            size = draw(st.integers(1, SIDE - x)), draw(st.integers(1, SIDE - y))
            values["--box"] = [str(n) for n in (x, y, *size)]
    else:
        factor = draw(st.sampled_from([1, 2, 8]))
        fitting = {1: "fit", 2: "half", 8: "one"}[factor]
        values["--factor"] = [str(factor)]
        values["--image"] = [draw(st.sampled_from([n for n in names if n.startswith(fitting)]))]
        if draw(st.booleans()):
            values["--downsample"] = [draw(st.sampled_from(["average", "stride"]))]
    values |= {"--chains": ["2"], "--leapfrog-steps": ["1"]}
    if draw(st.booleans()):
        values |= {"--budget": ["9"]} | draw(some_options(OPTIONS, ADAPTIVE))
    else:
        values |= {"--method": ["paper"], "--ais-steps": ["1"]}
        values |= draw(some_options(OPTIONS, PAPER))
    return Line(command, values, switches, [])


def good_pictures() -> list[str]:
    """Names of the pictures that can be read, known before they are written."""
    png = ["RGB", "L", "1", "P", "RGBA", "deep"]
    kinds = [*(f"{m}.png" for m in png), "CMYK.tiff", "LA.tiff", "photo.jpg", "moving.gif"]
    return [f"{size}-{kind}" for size in SIZES for kind in kinds]


BAD_KINDS = ["clear.png", "palette.png", "float.tiff", "wide.tiff"]
BAD_PICTURES = [
    *(f"bad-{size}-{kind}" for size in SIZES for kind in BAD_KINDS),
    *(f"bad-cut-{share}.png" for share in (1, 8, 20, 45, 80)),
    "bad-empty.png", "bad-text.png", "bad-folder.png", "bad-link.png", "bad-pipe.png",
    "", ".", "no/such/picture.png", 300 * "p",
]  # fmt: skip
BAD_BOXES = [
    "-1 0 3 3", "0 -1 3 3", "7 0 2 2", "0 7 2 2", "2 2 0 3", "2 2 3 0", "a b c d", "1 1 1",
    f"{2**70} 0 1 1", f"0 0 {2**70} 1", "1.5 0 1 1", "",
]  # fmt: skip
BAD_FACTORS = ["0", "-2", "3", "x", "", "2.0", str(2**70)]


# The size of these is neither one that a generator here makes nor a factor of it.
MISFITS = ["wide-RGB.png", "line-L.png", "wide-photo.jpg"]


def wrong_values(line: Line, name: str) -> list[str]:
    files = {
        "--generator": BAD_GENERATORS,
        "--image": [*BAD_PICTURES, *([] if "--resize" in line.switches else MISFITS)],
        "--mask": [*BAD_PICTURES, *(m for m in MISFITS if m[:4] != line.values["--image"][0][:4])],
        "--box": BAD_BOXES,
        "--factor": BAD_FACTORS,
        "--downsample": ["x", ""],
    }
    return files[name] if name in files else TABLES[name][1]


@st.composite
def wrong_lines(draw: st.DrawFn) -> Line:
    """A valid command in which one option, seldom two, is made invalid."""
    line = draw(right_lines())
    files = [n for n in line.values if n not in TABLES]
    name = st.one_of(st.sampled_from(files), st.sampled_from(sorted(TABLES)))
    values, wrong = dict(line.values), []
    for option in draw(st.lists(name, min_size=1, max_size=2, unique=True)):
        value = draw(st.sampled_from(wrong_values(line, option)))
        values[option] = value.split() if option == "--box" else [value]
        wrong.append(option)
    return Line(line.command, values, line.switches, wrong)


# --- what must hold -----------------------------------------------------------------------------


def run(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Exit status, standard output, and the lines of standard error without warnings.

    Short runs may end with chains that are no samples; where that is said, they count as done.
    """
    torch.manual_seed(1)  # a state that no command could leave by seeding
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    capsys.readouterr()
    try:
        with limited():
            status = main(list(argv))
    except SystemExit as stop:  # raised by --help and --version
        assert stop.code == 0
        status = DONE
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    lines = told.err.splitlines()
    assert all(line.startswith("cogen-fast: ") for line in lines), told.err
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    lines = [n for n in lines if not n.startswith("cogen-fast: warning: ")]
    if status == NOT_SAMPLES:
        assert lines and all(f": {NO_SAMPLES}: " in line for line in lines)
        status, lines = DONE, []
    return status, told.out, lines


def assert_a_mistake_is_told(status: int, out: str, lines: list[str]) -> None:
    assert status == MISTAKE
    assert len(lines) == 1 and lines[0].startswith("cogen-fast: error: ")
    assert len(lines[0]) > len("cogen-fast: error: ")
    assert out == ""


LEFT_OUT = re.compile(r"cogen-fast: \d+ of \d+ images were left out, see above")


def assert_what_is_left_out_is_told(status: int, lines: list[str]) -> None:
    """Of several images each that is left out has a line of its own, and their number is last."""
    assert status == MISTAKE
    errors = [line for line in lines if line.startswith("cogen-fast: error: ")]
    assert errors and all("is left out: " in line for line in errors)
    others = [line for line in lines[:-1] if line not in errors]
    allowed = re.compile(rf".* \(\d+ of \d+\)|.*: warning: .*|.*: {NO_SAMPLES}: .*")
    assert all(allowed.fullmatch(line) for line in others), others


# These errors are about a generator that has been loaded.
OF_GENERATORS = ("G: ", "--latent-shape: ", "safetensors: ")


def blamed(line: str, wrong: list[str], argv: list[str]) -> bool:
    """Whether an error names one of the invalid options, as typed or as in Python, or its value."""
    for option in wrong:
        name = option.removeprefix("--").replace("-", "_")
        if f"{option}: " in line or f"{name}: " in line:
            return True
        value = argv[argv.index(option) + 1]
        if option != "--out" and len(value) > 1 and value in line:
            return True
        if option == "--generator" and any(text in line for text in OF_GENERATORS):
            return True
        # Where factor and image do not fit each other, either may be named.
        if option == "--factor" and "image: " in line:
            return True
    return False


class Desk:
    """Makes a new empty folder the current one for each example."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch, self.count = folder, monkeypatch, 0

    def clear(self) -> Path:
        self.count += 1
        here = self.folder / str(self.count)
        here.mkdir()
        (here / "taken").write_text("no checkpoint")
        (here / "old").mkdir()
        (here / "old" / "notes.txt").write_text("precious")
        self.monkeypatch.chdir(here)
        return here


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds the current folder to it
    return Desk(tmp_path, monkeypatch)


def chains_of(line: Line) -> int:
    return int(line.value("--chains") or "") * int(line.value("--populations") or "1")


@pytest.mark.slow
def test_right_command_lines_are_carried_out(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    @search(60)
    @given(right_lines())
    def carried_out(line: Line) -> None:
        here = desk.clear()
        before = contents(here, shop.folder)
        argv = line.argv(shop, here / "old")
        status, out, lines = run(argv, capsys)
        assert (status, lines) == (DONE, []), argv
        assert (out == "") == ("--quiet" in line.switches)
        count = chains_of(line)
        written = {"grid.png", "estimate.png", "result.npz", "result.json"}
        chains = {f"chain_{i:03}.png" for i in range(count)}
        written |= chains
        if line.command == "inpaint":
            raw = {f"raw/{name}" for name in chains | {"estimate.png"}}
            written |= {"completed.png", "raw"} | raw
        after = contents(here, shop.folder)
        new = {Path(p).relative_to(here).as_posix() for p in after.keys() - before.keys()}
        saved = {"run.safetensors"} if "--checkpoint" in line.values else set()
        assert new == {f"old/{name}" for name in written} | saved
        assert {p: after[p] for p in before} == before
        assert_right(line, shop, here / "old", count)

    carried_out()


def decoded(path: str) -> npt.NDArray[np.float64]:
    """Brightness ``(3, H, W)`` from 0 to 255, also of 16 bits, by Pillow alone."""
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            return np.stack([np.asarray(image, np.float64) / 257.0] * 3)
        return np.asarray(image.convert("RGB"), np.float64).transpose(2, 0, 1)


def assert_right(line: Line, shop: Shop, out: Path, count: int) -> None:
    """Assert that the observation is that of the picture file, and that images agree with it."""
    result = cogen_fast.Result.load(out)
    assert result.energies.shape == (1, count)
    filled = [Image.open(out / f"chain_{i:03}.png") for i in range(count)]
    assert {image.size for image in filled} == {(SIDE, SIDE)}
    levels = decoded(shop.good[line.value("--image") or ""])
    if line.command == "super-resolve":
        np.testing.assert_allclose(result.x_obs[0].numpy(), levels / 127.5 - 1.0, atol=1e-6)
        return
    if levels.shape[1:] != (SIDE, SIDE):
        return  # the picture was scaled, which `test_cli` tests
    seen = np.ones((SIDE, SIDE), bool)
    if "--box" in line.values:
        x, y, width, height = (int(n) for n in line.values["--box"])
        seen[y : y + height, x : x + width] = False
    else:
        mask = decoded(shop.good[line.values["--mask"][0]])
        grey = np.tensordot([0.299, 0.587, 0.114], mask, axes=1).round(6)
        assert ((np.abs(grey - 128.0) > 1e-3) | (mask == 128.0).all(0)).all()
        seen = grey >= 128.0
    assert result.observed is not None
    observed = result.observed[0].numpy()
    np.testing.assert_array_equal(observed, np.broadcast_to(seen, observed.shape))
    expected = np.where(seen, levels / 127.5 - 1.0, 0.0)
    np.testing.assert_allclose(result.x_obs[0].numpy(), expected, atol=1e-6)
    for image in filled:
        shown = np.asarray(image, np.float64).transpose(2, 0, 1)
        assert (np.abs(shown - levels)[:, seen] <= 0.5 + 1e-3).all()


BASES = {
    "--mask": Line("inpaint", {"--image": ["fit-L.png"], "--mask": ["fit-L.png"]}, [], []),
    "--factor": Line("super-resolve", {"--image": ["half-L.png"], "--factor": ["2"]}, [], []),
    "--box": Line("inpaint", {"--image": ["fit-L.png"], "--box": ["1", "1", "3", "3"]}, [], []),
}
BASES["--downsample"] = BASES["--factor"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [*TABLES, "--generator", "--image", "--mask", "--box", "--factor", "--downsample"]
)
def test_each_wrong_value_is_refused_by_name(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    base = BASES.get(option, BASES["--box"])
    plain = {"--generator": ["g"], "--chains": ["1"]} | base.values
    method = {"--method": ["paper"], "--ais-steps": ["1"]}
    plain |= method if option in PAPER else {"--budget": ["9"]}
    for value in wrong_values(base, option):
        here = desk.clear()
        before = contents(here, shop.folder)
        values = plain | {option: value.split() if option == "--box" else [value]}
        argv = Line(base.command, values, [], []).argv(shop, here / "out")
        status, told, lines = run(argv, capsys)
        assert_a_mistake_is_told(status, told, lines)
        assert blamed(lines[0], [option], argv), (lines[0], argv)
        assert contents(here, shop.folder) == before, argv


@pytest.mark.slow
def test_wrong_command_lines_are_refused_and_write_nothing(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = st.tuples(wrong_lines(), st.sampled_from(["new", "old", "old/deeper"]))
    in_the_way = st.tuples(right_lines(), st.sampled_from(["taken/below", "taken"]))

    @search(100)
    @given(st.one_of(fine, fine, fine, in_the_way))
    def refused(given_line: tuple[Line, str]) -> None:
        line, out = given_line
        here = desk.clear()
        before = contents(here, shop.folder)
        argv = line.argv(shop, here / out)
        status, told, lines = run(argv, capsys)
        assert_a_mistake_is_told(status, told, lines)
        assert contents(here, shop.folder) == before, argv
        wrong = [*line.wrong, *(["--out"] if out.startswith("taken") else [])]
        assert blamed(lines[0], wrong, argv), (lines[0], argv)
        event(lines[0].split(":")[2])

    refused()


@st.composite
def damaged_pictures(draw: st.DrawFn) -> tuple[str, bytes]:
    """A picture file's name and bytes, cut off or with some bytes changed."""
    kind = draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]))
    stream = io.BytesIO()
    image = Image.fromarray(pixels(SIDE, SIDE))
    exif = image.getexif()
    exif[0x0112] = draw(st.integers(1, 8))  # a picture that must be turned
    image.save(stream, format=kind, exif=exif) if kind != "BMP" else image.save(stream, "BMP")
    content = bytearray(stream.getvalue())
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    # The first bytes hold the picture's size, which must not be changed to gigabytes here.
    first = {"BMP": 30, "GIF": 50, "WEBP": 40}.get(kind, 0)
    for _ in range(draw(st.integers(0, 4))):
        if len(content) > first:
            content[draw(st.integers(first, len(content) - 1))] = draw(st.integers(0, 255))
    return f"picture.{kind.lower()}", bytes(content)


@pytest.mark.slow
def test_damaged_pictures_are_read_or_refused(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoders may raise any exception; the command must end with an error that names the file."""

    @search(120)
    @given(damaged_pictures(), st.sampled_from(["--image", "--mask"]))
    def read_or_refused(file: tuple[str, bytes], option: str) -> None:
        here = desk.clear()
        (here / file[0]).write_bytes(file[1])
        before = contents(here)
        whole = str(shop.folder / "pictures" / "fit-RGB.png")
        argv = ["inpaint", "--generator", shop.generators["g"], "--out", "out", *QUICK]
        argv += [option, file[0]]
        argv += ["--box", "1", "1", "3", "3"] if option == "--image" else ["--image", whole]
        status, told, lines = run(argv, capsys)
        if status == DONE:
            event("read")
            assert lines == [] and (here / "out" / "result.json").exists()
        else:
            event("refused")
            assert_a_mistake_is_told(status, told, lines)
            assert lines[0].startswith(f"cogen-fast: error: {option[2:]}: "), lines
            assert contents(here) == before

    read_or_refused()


QUICK = [
    "--chains",
    "1",
    "--method",
    "paper",
    "--ais-steps",
    "1",
    "--leapfrog-steps",
    "1",
    "--quiet",
]
COMMANDS = ["inpaint", "super-resolve", "convert", "info", "inpant", ""]
ALL_OPTIONS = [
    *OPTIONS, *ADAPTIVE, *PAPER, *SWITCHES, "--resize", "--generator", "--image", "--mask", "--box",
    "--factor", "--downsample", "--out", "--raw", "--weight", "--", "-h", "--help", "--version",
    "-x", "--chain", "--no-such-option",
]  # fmt: skip
WORDS = [
    "0", "1", "2", "3", "-1", "0.5", "nan", "word", "", ".", "..", "old", "taken", "x=y", "*", "~",
    "run.safetensors", "new.safetensors", "$HOME", "-", "é", "a\nb", "\x1b[31m", "g", "vectors",
    "cut", "fit-RGB.png", "half-L.png", "bad-text.png", "generators_of_a_user:net",
]  # fmt: skip


@st.composite
def any_lines(draw: st.DrawFn) -> list[str]:
    """Options and words in any order, or a valid command with some of them inserted."""
    tokens = st.sampled_from([*ALL_OPTIONS, *WORDS, *WORDS])
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
    thrown_in = draw(st.lists(st.one_of(tokens, tokens, text), max_size=6))
    if draw(st.booleans()):
        return [draw(st.sampled_from(COMMANDS)), *thrown_in]
    line = draw(right_lines())
    argv = [line.command, *itertools.chain(*([n, *vs] for n, vs in line.values.items()))]
    argv += [*line.switches, "--out", "out"]
    for token in thrown_in:
        argv.insert(draw(st.integers(0, len(argv))), token)
    return argv


@pytest.mark.slow
def test_any_command_line_ends_well(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command succeeds, or prints one line of error and writes nothing.

    Of several images some may be left out, which does not concern the others.
    """

    @search(150)
    @given(any_lines())
    # A checkpoint is converted to a new file, and onto an existing one.
    @example(["convert", "g", "new.safetensors"])
    @example(["convert", "g", "taken.safetensors", "--overwrite"])
    @example(["convert", "g", "old"])
    @example(["convert", "vectors", "new.safetensors", "--raw"])
    @example(["convert", "cut", "new.safetensors"])
    @example(["info"])
    @example(
        [
            *("super-resolve", "--generator", "g", "--factor", "1", "--image", "0", "fit-1.png"),
            *("--chains", "2", "--leapfrog-steps", "1", "--method", "paper", "--ais-steps", "1"),
            *("--out", "out"),
        ]
    )
    @example(["demo", "--seed", "x"])
    def ends_well(words: list[str]) -> None:
        here = desk.clear()
        before = contents(here, shop.folder)
        found = {**shop.generators, **shop.good, **shop.bad}
        argv = [found.get(word, word) for word in words]
        status, told, lines = run(argv, capsys)
        if status == DONE:
            event("done")
            assert lines == []
        elif LEFT_OUT.fullmatch(lines[-1]):
            event("some images are left out")
            assert_what_is_left_out_is_told(status, lines)
            after = contents(here, shop.folder)
            assert {path: after[path] for path in before} == before, argv
        else:
            event("refused")
            assert_a_mistake_is_told(status, told, lines)
            assert contents(here, shop.folder) == before, argv

    ends_well()


# --- what searches have found -------------------------------------------------------------------


def short_run(shop: Shop, *more: str, out: str = "out") -> list[str]:
    files = ["--generator", shop.generators["g"], "--image", shop.good["fit-RGB.png"]]
    return ["inpaint", *files, "--box", "1", "1", "3", "3", "--out", out, "--chains", "1", *more]


@pytest.mark.parametrize(
    "more",
    [
        ["--latent-shape", str(2**70)],
        ["--budget", str(10**400)],
        ["--budget", "9", "--leapfrog-steps", str(10**400)],
        ["--method", "paper", "--ais-steps", str(10**15)],
        ["--budget", "9", "--chains", str(10**15)],
    ],
    ids=["latent-shape", "budget", "leapfrog-steps", "ais-steps", "chains"],
)
def test_numbers_far_too_large_are_mistakes(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    desk.clear()
    assert_a_mistake_is_told(*run(short_run(shop, *more), capsys))


def test_a_generator_that_exits_is_a_mistake(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.clear()
    argv = short_run(shop)
    argv[argv.index("--generator") + 1] = "sys:exit()"
    assert_a_mistake_is_told(*run(argv, capsys))


@pytest.mark.parametrize("name", ["grid.png", "chain_000.png"])
def test_a_folder_in_the_way_of_a_file(
    shop: Shop, desk: Desk, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    here = desk.clear()
    (here / "out" / name).mkdir(parents=True)
    before = contents(here)
    assert_a_mistake_is_told(*run(short_run(shop, "--budget", "3"), capsys))
    assert contents(here) == before

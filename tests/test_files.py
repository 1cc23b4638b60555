"""Opening regular files only, writing atomically, and what a killed writer leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confined import needs_linux
from hostile import NO_FILES

from cogen_fast.support import arguments, files
from cogen_fast.support.arguments import abbreviated, check_file, check_folder
from cogen_fast.support.files import open_regular, parse_json, read_text, write_atomically

HOUR = 3600.0


def age(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)
    return path


def left_of(path: Path, seconds: float = 2 * HOUR, random: str = "ab_0z9xy") -> Path:
    """A temporary file of a writer of ``path`` that was killed so many seconds ago."""
    left = path.with_name(f".{path.name}.{random}{path.suffix}")
    left.write_text("half")
    return age(left, seconds)


# --- opening --------------------------------------------------------------------------------------


def test_a_regular_file_is_read_behind_links_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular("data", tmp_path / name) as file:
            assert file.read() == b"content"
            assert files.size_of(file) == 7


@needs_linux
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    NO_FILES[kind](path := tmp_path / "x")
    with pytest.raises((ValueError, IsADirectoryError), match=rf"^data: expected .*{path}"):
        open_regular("data", path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "data: expected a file, found none at .*nowhere"),
        ("file/below", "data: expected a file, found none at .*below"),
        ("x" * 300, "data: expected a path, got .*: File name too long"),
        ("a\0b", "data: expected a path, got .*null"),
    ],
    ids=["missing", "below a file", "too long", "null"],
)
def test_paths_that_lead_nowhere_are_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_regular("data", tmp_path / name)
    assert len(str(caught.value)) < 300


@needs_linux
def test_a_pipe_that_takes_a_file_s_place_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipe takes its place between the check and the opening."""
    path = tmp_path / "x"
    path.touch()
    look = arguments.path_mode

    def swapped(name: str, there: Path) -> int | None:
        mode = look(name, there)
        path.unlink()
        os.mkfifo(path)
        return mode

    monkeypatch.setattr(files, "path_mode", swapped)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="data: expected a regular file, got a named pipe"):
        open_regular("data", path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_file_that_must_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch(mode=0)
    with pytest.raises(PermissionError, match=f"data: {path} cannot be read: Permission denied"):
        open_regular("data", path)


def test_text_is_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"caf\xc3\xa9")
    assert read_text("data", tmp_path / "x") == "caf\u00e9"
    (tmp_path / "x").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"data: expected text in .*x, got other bytes"):
        read_text("data", tmp_path / "x")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5_000, "NaN,"], ids=repr)
def test_what_is_no_json_is_told_in_a_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^plan: expected JSON, got '") as caught:
        parse_json("plan", text)
    assert len(str(caught.value)) < 400
    assert parse_json("plan", '{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


def test_any_value_is_shown_in_a_few_characters() -> None:
    nest: list[object] = ["ha"] * 8
    for _ in range(40):
        nest = [nest] * 8
    circle: list[object] = []
    circle.append(circle)
    values = [nest, circle, 10**5000, [10**5000], "x" * 10**6, {"a": nest}, b"x" * 10**6, (nest,)]
    for value in values:
        assert 0 < len(abbreviated(value)) <= 80
    assert [abbreviated(v) for v in (None, 3, "a", [1, 2])] == ["None", "3", "'a'", "[1, 2]"]


@needs_linux
def test_places_for_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert check_file("out", tmp_path / "file") == tmp_path / "file"
    assert check_file("out", str(tmp_path / "new")) == tmp_path / "new"
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "no/new", tmp_path / "file/new"):
        with pytest.raises(ValueError, match="out: expected a file in an existing folder, got"):
            check_file("out", path)
    assert check_folder("out", tmp_path / "new/newer") == tmp_path / "new/newer"
    for path in (tmp_path / "file", tmp_path / "pipe", tmp_path / "file/new"):
        with pytest.raises(ValueError, match="out: expected a folder, got the file"):
            check_folder("out", path)
    for check in (check_file, check_folder):
        with pytest.raises(ValueError, match=r"out: expected a path, got .*too long"):
            check("out", tmp_path / ("x" * 300))


# --- what killed writers leave --------------------------------------------------------------------


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    for random in ("abcdefgh", "00000000"):
        left_of(path, random=random)
    write_atomically(path, lambda file: file.write_text("new"))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "new"


def test_what_may_be_a_living_writer_s_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    left = left_of(path, HOUR - 60)
    write_atomically(path, lambda file: file.write_text("new"))
    assert left.exists()


def test_other_files_stay_however_old_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    others = [
        left_of(tmp_path / "b.png"),
        left_of(tmp_path / "a.png.png"),
        left_of(tmp_path / "a.json"),
        left_of(tmp_path / "xa.png"),
        left_of(path, random="ABCDEFGH"),
        left_of(path, random="abcdefghi"),
    ]
    plain = tmp_path / "a.abcdefgh.png"
    plain.touch()
    others.append(age(plain, 2 * HOUR))
    folder = tmp_path / ".a.png.bbbbbbbb.png"
    folder.mkdir()
    others.append(age(folder, 2 * HOUR))
    link = tmp_path / ".a.png.cccccccc.png"
    link.symlink_to(plain)
    others.append(age(link, 2 * HOUR))
    write_atomically(path, lambda file: file.write_text("new"))
    assert all(other.exists() for other in others)


def test_a_second_writer_s_file_survives_a_whole_write(tmp_path: Path) -> None:
    """Two processes write at the same time: both succeed, and no temporary file is left."""
    path = tmp_path / "x.json"

    def outer(file: Path) -> None:
        file.write_text("outer")
        write_atomically(path, lambda inner: inner.write_text("inner"))
        assert file.exists() and path.read_text() == "inner"

    write_atomically(path, outer)
    assert path.read_text() == "outer"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_the_age_is_told_by_the_folder_s_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file server may be hours off."""
    path = tmp_path / "x.json"
    young = left_of(path, 60.0)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_atomically(path, lambda file: file.write_text("new"))
    assert young.exists()


WRITER = """
import sys, time
from pathlib import Path
from cogen_fast.support.files import write_atomically

def slow(file):
    file.write_text("half")
    print("writing", flush=True)
    time.sleep(60)

write_atomically(Path(sys.argv[1]), slow)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_that_is_killed_leaves_what_is_found_later(tmp_path: Path) -> None:
    """A killed writer leaves a file of the name that later writers remove."""
    path = tmp_path / "out.json"
    command = [sys.executable, "-c", WRITER, str(path)]
    folder = Path(__file__).parent  # not the checkout's root, where the package has no extension
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    (left,) = tmp_path.iterdir()
    write_atomically(path, lambda file: file.write_text("new"))
    assert left.exists()
    age(left, 2 * HOUR)
    write_atomically(path, lambda file: file.write_text("newer"))
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]

"""Generators on the Hugging Face Hub: their names, what is refused, and what each error says.

Nothing here leaves this machine: either a folder takes the place of the hub's download, or a server
of this machine that of the hub.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cogen_fast import load_generator, save_generator
from cogen_fast.cli.main import main
from cogen_fast.generators import MLPGenerator, ProgressiveGenerator
from cogen_fast.generators.hub import HubFile, parsed

pytestmark = pytest.mark.usefixtures("one_thread")
with_package = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="the extra hub is not installed"
)
COMMIT = "0123456789" * 4
Download = Callable[..., str]


def tiny() -> ProgressiveGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return ProgressiveGenerator(8, channels=3, latent_size=5, feature_maps=[4, 4]).eval()


# --- names ----------------------------------------------------------------------------------------

NAMES = {
    "hf://owner/name/g.safetensors": HubFile("owner/name", "g.safetensors"),
    "hf://models/owner/name/g.safetensors": HubFile("owner/name", "g.safetensors"),
    "hf://o-w.n/n_a.m-e/a/b c/g.safetensors": HubFile("o-w.n/n_a.m-e", "a/b c/g.safetensors"),
    "hf://o/n@v1.0/g.safetensors": HubFile("o/n", "g.safetensors", "v1.0"),
    f"hf://o/n@{COMMIT}/g.safetensors": HubFile("o/n", "g.safetensors", COMMIT),
    "hf://o/n@a%2Fbranch/x/g.safetensors": HubFile("o/n", "x/g.safetensors", "a/branch"),
    "hf://o/n@refs/pr/12/x/g.safetensors": HubFile("o/n", "x/g.safetensors", "refs/pr/12"),
    "hf://o/n/x@y/g.safetensors": HubFile("o/n", "x@y/g.safetensors"),
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names(name: str, expected: HubFile) -> None:
    assert parsed(name) == expected


@with_package
@pytest.mark.parametrize("name", NAMES)
def test_names_mean_what_they_mean_to_the_hubs_own_programs(name: str) -> None:
    utils = importlib.import_module("huggingface_hub.utils")
    if not hasattr(utils, "parse_hf_uri"):
        pytest.skip("this version of huggingface_hub parses no names of files")
    theirs, ours = utils.parse_hf_uri(name), parsed(name)
    found = (theirs.type, theirs.id, theirs.path_in_repo, theirs.revision)
    assert found == ("model", ours.repository, ours.file, ours.revision)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf://", "generator: expected a name such as hf://owner/name/file.safetensors or hf://"),
        ("hf://owner", "got 'hf://owner'"),
        ("hf://owner/name", "got 'hf://owner/name'"),
        ("hf://owner/name/", "got 'hf://owner/name/'"),
        ("hf://owner/name@/g.safetensors", "expected a name such as"),
        ("hf://../name/g.safetensors", "expected a name such as"),
        ("hf://owner/name/../../g.safetensors", "expected a name such as"),
        ("hf://owner/name//g.safetensors", "expected a name such as"),
        ("hf://owner/name/a\\g.safetensors", "expected a name such as"),
        ("hf://owner/name/a\ng.safetensors", "expected a name such as"),
        ("hf://datasets/owner/name/g.safetensors", "expected a repository of models, got one of d"),
        ("hf://owner/name/g.pth", "g.pth: expected a name that ends in .safetensors"),
        ("hf://owner/name/g.safetensors@v1", "a revision stands before the file: hf://owner/name@"),
        ("hf://owner/name/g.pkl", "as they can hold code"),
    ],
)
def test_other_names_are_refused(name: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_generator(name)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    name = "hf://owner/name/g.safetensors"
    with pytest.raises(ImportError) as caught:
        load_generator(name)
    told = f"{name}: needs huggingface-hub; pip install 'cogen-fast[hub]'"
    assert str(caught.value) == told


# --- a folder in place of the download ------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the hub; calls are kept as lines of its file ``calls``."""
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    folder = tmp_path / "hub"
    folder.mkdir()

    def download(repository: str, file: str, *, revision: str | None, library_name: str) -> str:
        with (folder / "calls").open("a") as calls:
            calls.write(f"{repository} {file} {revision} {library_name}\n")
        return str(folder / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_generator_comes_back_from_the_hub(served: Path) -> None:
    generator = tiny()
    (served / "sub").mkdir()
    save_generator(generator, served / "sub" / "g.safetensors", card=False)
    found = load_generator("hf://owner/name@v1/sub/g.safetensors", resolution=8)
    assert found.config == generator.config
    z = torch.randn(3, 5)
    assert torch.equal(found(z), generator(z))
    assert (served / "calls").read_text() == "owner/name sub/g.safetensors v1 cogen-fast\n"


class Planted:
    """An object whose pickle makes a file when it is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


CONTENTS: dict[str, Callable[[Path, Path], Any]] = {
    "pickle": lambda file, made: file.write_bytes(pickle.dumps(Planted(made), protocol=4)),
    "torch": lambda file, made: torch.save({"state": Planted(made)}, file),
    "npz": lambda file, made: np.savez(file.open("wb"), w1=np.zeros((2, 3)), b1=np.zeros(3)),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_only_says_that_it_is_safetensors_is_refused(served: Path, kind: str) -> None:
    CONTENTS[kind](served / "g.safetensors", made := served / "made")
    name = "hf://owner/name/g.safetensors"
    with pytest.raises(ValueError, match=f"^{name}: expected safetensors, .*[(]{kind}[)], which"):
        load_generator(name)
    assert not made.exists()
    if kind == "npz":  # a file of the user's own, which is no secret to be kept from
        assert isinstance(load_generator(served / "g.safetensors"), MLPGenerator)


def test_safetensors_of_others_are_refused(served: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, served / "g.safetensors")
    with pytest.raises(
        ValueError, match=r"^hf://o/n/g\.safetensors: expected a generator saved by"
    ):
        load_generator("hf://o/n/g.safetensors")


def test_commands_take_a_name_on_the_hub_and_its_file_alike(served: Path) -> None:
    save_generator(tiny(), served / "g.safetensors", card=False)
    name, file = "hf://owner/name/g.safetensors", str(served / "g.safetensors")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("eight.png")
    options = ["--box", "0", "0", "4", "8", "--budget", "40", "--chains", "2", "--quiet"]
    for given, out in ((name, "a"), (file, "b")):
        assert main(["sample", given, "--out", f"{out}.png", "--count", "2", "--quiet"]) == 0
        fill = ["inpaint", "--generator", given, "--image", "eight.png", "--out", out]
        assert main([*fill, *options]) in (0, 3)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert Path("a/estimate.png").read_bytes() == Path("b/estimate.png").read_bytes()
    summary = json.loads(Path("a/result.json").read_text())
    assert summary["settings"]["command_line"]["generator"] == name


def test_swd_takes_a_name_on_the_hub(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = ProgressiveGenerator(16, channels=3, latent_size=5, feature_maps=[4, 4, 4])
    save_generator(generator, served / "g.safetensors", card=False)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez("data.npz", images=pixels)
    name = "hf://owner/name/g.safetensors"
    assert main(["swd", name, "--data", "data.npz", "--cache", "cache", "--count", "10"]) == 0
    assert f"\n{name} " in capsys.readouterr().out


def test_the_2d_study_takes_a_name_on_the_hub(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    save_generator(MLPGenerator((2, 4, 3)), served / "wide.safetensors", card=False)
    name = "hf://owner/name/wide.safetensors"
    assert main(["reproduce", "synthetic", "--out", "out", "--generator", name]) == 2
    told = f"expected one with 2 latents and outputs of shape (2,), got (2, (3,)) in {name}"
    assert told in capsys.readouterr().err


# --- the page -------------------------------------------------------------------------------------


def test_the_page_offers_a_generator_of_the_hub_and_asks_for_no_other(served: Path) -> None:
    from cogen_fast.app.address import offer_of
    from cogen_fast.cli import app

    save_generator(tiny(), served / "g.safetensors", card=False)
    name = "hf://owner/name/g.safetensors"
    offer = app.offer(name, None, None)
    assert offer.name == name
    names: dict[str, Any] = {}
    exec("\n".join(["import cogen_fast", *offer.code]), names)
    assert torch.equal(names["G"](torch.ones(1, 5)).cpu(), tiny()(torch.ones(1, 5)))
    before = (served / "calls").read_text()
    with pytest.raises(ValueError, match="generator: expected one of"):
        offer_of({"generator": "hf://owner/other/g.safetensors"}, {offer.name: offer})
    assert (served / "calls").read_text() == before


# --- the package itself, and a server in place of the hub -----------------------------------------

# Where the hub answers with an error: the status, and the word by which its package tells them.
ANSWERS = {
    "/o/absent/": (404, "RepoNotFound"),
    "/o/gated/": (403, "GatedRepo"),
    "/o/n/resolve/v9/": (404, "RevisionNotFound"),
    "/o/n/resolve/main/absent.safetensors": (404, "EntryNotFound"),
}
CHILD = """
import json, sys
from cogen_fast import load_generator
for name in sys.argv[1:]:
    try:
        print(json.dumps(["found", type(load_generator(name)).__name__]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does; every other file is the same generator."""

    content = b""
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.content)

    def _answer(self, body: bytes) -> None:
        self.asked.append(f"{self.command} {self.path}")
        for start, (status, code) in ANSWERS.items():
            if self.path.startswith(start):
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(200)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server in place of the hub, and what it was asked for."""
    save_generator(MLPGenerator((2, 3)), tmp_path / "g.safetensors", card=False)
    asked: list[str] = []
    content = (tmp_path / "g.safetensors").read_bytes()
    handler = type("Serving", (Handler,), {"content": content, "asked": asked})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", asked
    running.shutdown()
    running.server_close()


def loaded(home: Path, endpoint: str, *names: str, **environment: str) -> list[list[str]]:
    """What a process with an empty home gets for each name: the kind of generator, or the error."""
    there = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    there |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, *names],
        env=there | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@with_package
@pytest.mark.slow
def test_the_hubs_own_package(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    endpoint, asked = server
    home = tmp_path / "home"
    home.mkdir()
    good = "hf://o/n@v1/sub/g.safetensors"
    bad = {
        "hf://o/absent/g.safetensors": (
            "FileNotFoundError",
            "expected a repository of models, found no o/absent; if it is private, log in",
        ),
        "hf://o/gated/g.safetensors": ("PermissionError", "o/gated is gated: accept its terms"),
        "hf://o/n@v9/g.safetensors": (
            "FileNotFoundError",
            "expected a branch, tag or commit of o/n, found no v9",
        ),
        "hf://o/n/absent.safetensors": (
            "FileNotFoundError",
            "expected a file of o/n at revision main, found no absent.safetensors",
        ),
        "hf://o/n--m/g.safetensors": ("ValueError", "could not be downloaded: HFValidationError: "),
    }
    first, *errors = loaded(home, endpoint, good, *bad)
    assert first == ["found", "MLPGenerator"]
    assert "GET /o/n/resolve/v1/sub/g.safetensors" in " ".join(asked).replace(COMMIT, "v1")
    for (name, (kind, told)), (found, message) in zip(bad.items(), errors, strict=True):
        assert found == kind
        assert message.startswith(f"{name}: {told}")
        assert "\n" not in message
    asked.clear()
    new = "hf://o/n@v1/new.safetensors"
    again, other = loaded(home, endpoint, good, new, HF_HUB_OFFLINE="1")
    assert again == ["found", "MLPGenerator"]
    assert other[0] == "FileNotFoundError"
    assert f"{new}: expected a file that has been downloaded before, as HF_HUB_OFFLINE" in other[1]
    assert asked == []


@with_package
@pytest.mark.slow
def test_without_a_network_what_was_downloaded_is_used(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    endpoint, _ = server
    nowhere = "http://127.0.0.1:9"  # nothing answers at the port for discarding
    name, new = "hf://o/n/g.safetensors", "hf://o/n/new.safetensors"
    (found,) = loaded(tmp_path, endpoint, name)
    assert found == ["found", "MLPGenerator"]
    again, other = loaded(tmp_path, nowhere, name, new)
    assert again == ["found", "MLPGenerator"]
    assert other[0] == "ConnectionError"
    assert other[1].startswith(f"{new}: the hub cannot be reached, and the file is not in ")

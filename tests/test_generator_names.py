"""What names a generator is the same for every command, and what is no generator is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cogen_fast
from cogen_fast import inpaint
from cogen_fast.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")

USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.dense = nn.Linear(5, 3 * 4 * width)
    def forward(self, z):
        return torch.tanh(self.dense(z)).reshape(len(z), 3, 4, -1)

class Large(Net):
    def forward(self, z):
        return super().forward(z).repeat(1, 1, 4, 4)

class Needs(Net):
    def __init__(self, width):
        super().__init__(width)

class OnCuda(Net):
    def forward(self, z):
        raise AssertionError("Torch not compiled with CUDA enabled")

class Labelled(Net):
    def forward(self, z, label):
        return super().forward(z)

net, wide, large, on_cuda, labelled = Net(), Net(6), Large(), OnCuda(), Labelled()
weights = net.state_dict()

def function(z):
    return net(z)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"code_{tmp_path.name}"
    Path(f"{name}.py").write_text(USER_CODE)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save("four.png")
    return name


def images_of(generator: Callable[[Tensor], Tensor], count: int, latents: int) -> Any:
    """The pixels of samples, ``(n, H, W, C)``."""
    z = torch.randn(count, latents, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = generator(z).clamp(-1.0, 1.0)
    return np.rint((images.double().numpy() + 1.0) * 127.5).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["{}:net", "{}:Net()", "{}:function"])
def test_sample_takes_code(code: str, name: str) -> None:
    more = ["--latent-shape", "5"] if name == "{}:function" else []
    arguments = ["sample", name.format(code), "--out", "a.png", "--each", "each", "--count", "3"]
    assert main([*arguments, *more, "--quiet"]) == 0
    expected = images_of(sys.modules[code].net, 3, 5)
    for i in range(3):
        drawn = np.asarray(Image.open(f"each/sample_00{i}.png")).astype(float)
        assert np.abs(drawn - expected[i]).max() <= 1.0  # another number of latents at once rounds


def test_sample_takes_a_shipped_name_and_its_file_alike(code: str) -> None:
    generator = cogen_fast.pretrained("fashion-32")
    cogen_fast.save_generator(generator, "g.safetensors")
    for name in ("fashion-32", "g.safetensors"):
        assert main(["sample", name, "--out", f"{name}.png", "--count", "2", "--quiet"]) == 0
    assert Path("fashion-32.png").read_bytes() == Path("g.safetensors.png").read_bytes()


def test_swd_takes_names_and_code(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez("data.npz", images=pixels)
    given = ["--data", "data.npz", "--cache", "cache", "--count", "10"]
    assert main(["swd", f"{code}:large", *given]) == 0
    assert f"{code}:large" in capsys.readouterr().out
    assert main(["swd", f"{code}:wide", *given]) == 2
    assert "what: expected square images, got" in capsys.readouterr().err
    assert main(["swd", "fashion-32", *given]) == 2
    assert "what: expected generators of 3 channels like the data" in capsys.readouterr().err


COMMANDS = [
    ["inpaint", "--generator", "{}", "--image", "four.png", "--box", "0", "0", "2", "2"],
    ["super-resolve", "--generator", "{}", "--image", "four.png", "--factor", "1"],
    ["sample", "{}"],
    ["evaluate", "--generator", "{}", "--data", "own", "--images", "1"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("{}:Net", "write '{}:Net()'"),
        ("{}:Needs", "needs arguments: write def build(): return Needs(...) there, and give '{}:b"),
        ("{}:Needs()", "calling {}:Needs() failed: TypeError: "),
        (
            "{}:weights",
            "a state dict: write a function that builds the network, calls network.",
        ),
        ("{}:function", "--latent-shape: could not be found out from G (function); give it, for "),
        ("{}:labelled", "wants another argument beside the latents, 'label'; give --condition N"),
        (
            "nothing",
            "expected a file, the name of a shipped generator, package.module:name or hf://owner",
        ),
    ],
)
def test_every_command_tells_the_same(
    code: str, command: list[str], name: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.format(name.format(code)) for part in command]
    assert main([*arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert told.format(code) in error and error.count("\n") == 1
    assert "latent_shape" not in error and "Prior(" not in error
    assert ", line " not in error  # these are no mistakes inside the user's code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("more", [[], ["--latent-shape", "5"]])
def test_cuda_in_the_code_is_told(
    code: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [part.format(f"{code}:on_cuda") for part in COMMANDS[0]]
    assert main([*command, *more, "--out", "out"]) == 2
    assert "G: OnCuda asks for CUDA in its own code" in (error := capsys.readouterr().err)
    assert "write .to(z.device) there in place of .cuda()" in error


# --- in Python ------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(5, 48)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        assert label is None
        return torch.tanh(self.dense(z)).reshape(-1, 3, 4, 4)


class ByLabel(Net):
    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(z) + label[:, None, None, None]  # type: ignore[index]


@pytest.mark.parametrize(
    ("generator", "told"),
    [
        (Net, r"got the class Net; give an instance, Net\(\.\.\.\)$"),
        (Net().state_dict(), r"a state dict; build its network, .* network\.load_state_dict\(G\)$"),
        ({"g": Net().state_dict()}, "got dict; build the network, and load the state dict that is"),
        ("g.pth", r"'g.pth'; give load_generator\(G\), or pretrained\(G\)"),
        (Path("g.pth"), r"'g.pth'; give load_generator\(G\), or pretrained\(G\)"),
        (3, "got int$"),
    ],
)
def test_what_is_no_generator_is_told(generator: Any, told: str) -> None:
    with pytest.raises(TypeError, match=f"^G: expected a callable or module, .*{told}"):
        inpaint(generator, torch.zeros(3, 4, 4), torch.eye(4))


@pytest.mark.parametrize("more", [{}, {"latent_shape": 5}])
def test_a_label_that_may_be_left_out_but_is_needed_is_told(more: dict[str, Any]) -> None:
    net = ByLabel()
    with pytest.raises((ValueError, TypeError), match=r"if it needs 'label', give Prior\(G, cond"):
        inpaint(net, torch.zeros(3, 4, 4), torch.eye(4), **more)

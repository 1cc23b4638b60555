"""Model cards: written beside the weights, true to them, never in the place of another file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from cogen_fast import load_generator, save_generator
from cogen_fast.cli.main import main
from cogen_fast.generators import MLPGenerator, ProgressiveGenerator, StyleGAN2Generator
from cogen_fast.generators.cards import card_path
from cogen_fast.generators.hub import parsed
from cogen_fast.support import files

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


GENERATORS: dict[str, Any] = {
    "progressive": lambda: ProgressiveGenerator(
        8, channels=3, latent_size=5, feature_maps=[4, 4], final="tanh"
    ),
    "half": lambda: ProgressiveGenerator(8, channels=1, latent_size=5, feature_maps=[4, 4]).half(),
    "stylegan2": lambda: StyleGAN2Generator(8, latent_size=5, mapping=[6], feature_maps=[4, 4]),
    "conditional": lambda: StyleGAN2Generator(
        8, latent_size=5, mapping=[6], feature_maps=[4, 4], classes=3, embedding=4
    ),
    "mlp": lambda: MLPGenerator((5, 6, 2)).double(),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_card_says_what_the_file_is(kind: str) -> None:
    generator = GENERATORS[kind]()
    save_generator(generator, "my g.safetensors", license="Apache-2.0")
    card, content = Path("my g.md").read_text(), Path("my g.safetensors").read_bytes()
    shape = ", ".join(map(str, generator.output_shape))
    count = sum(value.numel() for value in generator.state_dict().values())
    for row in (
        f"| network | `{type(generator).__name__}`: ",
        f", {count:,} numbers of type {str(generator.state_dict().popitem()[1].dtype)[6:]} |",
        "| latents | (n, 5), standard normal",
        f"| outputs | (n, {shape}) |",
        f"| file | `my g.safetensors`, {len(content):,} bytes |",
        f"| SHA-256 of the file | `{hashlib.sha256(content).hexdigest()}` |",
        "| licence | apache-2.0 |",
    ):
        assert row in card, row
    config = re.search(r"^\| configuration \| `(.*)` \|$", card, re.M)
    assert config is not None
    assert type(generator)(**json.loads(config[1])).config == generator.config
    assert ("3 labels" in card) == (kind == "conditional")
    assert card.count("**To be filled in:**") == 4  # data, training, quality, limits


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_snippet_of_a_card_runs(kind: str) -> None:
    generator = GENERATORS[kind]()
    save_generator(generator, "my g.safetensors")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", Path("my g.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert tuple(names["outputs"].shape) == (4, *generator.output_shape)
    assert f"# (4, {', '.join(map(str, generator.output_shape))})" in snippet


def test_the_range_is_that_of_the_outputs() -> None:
    generator = MLPGenerator((2, 1))
    generator.layers[0].weight.data.zero_()
    generator.layers[0].bias.data.fill_(7.25)
    save_generator(generator, "g.safetensors")
    assert "| 7.25 to 7.25 in 4 outputs of random latents |" in Path("g.md").read_text()
    save_generator(GENERATORS["progressive"](), "t.safetensors")
    found = re.search(r"outputs \| (\S+) to (\S+) in 4", Path("t.md").read_text())
    assert found is not None
    assert -1.0 <= float(found[1]) < float(found[2]) <= 1.0


def test_a_card_neither_draws_from_nor_changes_anything() -> None:
    generator = GENERATORS["half"]().train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    state = torch.random.get_rng_state()
    save_generator(generator, "g.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert generator.training
    for name, value in generator.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, before[name])


@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="the extra hub is not installed"
)
@pytest.mark.parametrize("given", [None, "mit"])
def test_the_hub_reads_its_metadata(given: str | None) -> None:
    from huggingface_hub import ModelCard

    save_generator(GENERATORS["progressive"](), "g.safetensors", license=given)
    assert ModelCard.load(Path("g.md")).data.to_dict() == {
        "library_name": "cogen-fast",
        "license": given or "unknown",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["cogen-fast", "gan"],
    }
    save_generator(GENERATORS["mlp"](), "v.safetensors")
    assert "pipeline_tag" not in ModelCard.load(Path("v.md")).data.to_dict()


def test_without_a_licence_it_is_left_to_the_author() -> None:
    save_generator(MLPGenerator(), "g.safetensors")
    assert "| licence | **To be filled in:** an identifier such as" in Path("g.md").read_text()


# --- what is there already ------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_card_is_kept_and_told() -> None:
    Path("g.md").write_text("my notes")
    with pytest.warns(UserWarning, match=r"^card: g\.md is there already and is left as it is"):
        save_generator(MLPGenerator(), "g.safetensors")
    assert Path("g.md").read_text() == "my notes"
    assert sorted(os.listdir()) == ["g.md", "g.safetensors"]


def test_the_card_of_other_weights_is_kept_and_told() -> None:
    first, second = MLPGenerator(), MLPGenerator()
    save_generator(first, "g.safetensors")
    card = Path("g.md").read_text() + "and what the author wrote"
    Path("g.md").write_text(card)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_generator(first, "g.safetensors")  # the same weights
    with pytest.warns(UserWarning, match="does not have the digest of g.safetensors"):
        save_generator(second, "g.safetensors")
    assert Path("g.md").read_text() == card


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_what_is_no_file_in_the_place_of_the_card_is_kept(kind: str) -> None:
    place = Path("g.md")
    place.mkdir() if kind == "folder" else place.symlink_to("nowhere")
    with pytest.warns(UserWarning, match="is there already"):
        save_generator(MLPGenerator(), "g.safetensors")
    assert place.is_symlink() or not list(place.iterdir())
    assert not Path("nowhere").exists()


def test_no_card_is_written_where_none_is_wanted() -> None:
    save_generator(MLPGenerator(), "g.safetensors", card=False)
    assert os.listdir() == ["g.safetensors"]


@pytest.mark.parametrize("name", ["g", "g.v2", "g.v2.safetensors", "g.md"])
def test_the_cards_name_is_never_that_of_the_weights(name: str) -> None:
    save_generator(MLPGenerator(), name)
    assert sorted(os.listdir()) == sorted([name, f"{name.removesuffix('.safetensors')}.md"])
    assert load_generator(name).config == MLPGenerator().config


@pytest.mark.parametrize(
    ("name", "on_hub"), [("g.v2.safetensors", "g.v2.safetensors"), ("g.pth", "g.pth.safetensors")]
)
def test_the_card_names_the_file_as_it_can_be_loaded_from_the_hub(name: str, on_hub: str) -> None:
    save_generator(MLPGenerator(), name)
    (found,) = re.findall(r"hf://[^\")]+", card_path(Path(name)).read_text())
    assert found == f"hf://OWNER/NAME/{on_hub}"
    assert parsed(found).file == on_hub


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"license": "a licence"}, "license: expected an identifier of a licence"),
        ({"license": "mit\ntags: [x]"}, "license: expected an identifier"),
        ({"license": ""}, "license: expected an identifier"),
        ({"license": 3}, "license: expected an identifier of .*, got 3"),
        ({"license": "mit", "card": False}, "license: expected None without a card, got 'mit'"),
        ({"card": "yes"}, "card: expected True or False, got 'yes'"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_written(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        save_generator(MLPGenerator(), "g.safetensors", **given)
    assert os.listdir() == []


def test_a_card_that_cannot_be_written_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files.write_atomically

    def failing(path: Path, write: Any) -> None:
        if path.suffix == ".md":
            raise OSError("no space left")
        whole(path, write)

    monkeypatch.setattr(files, "write_atomically", failing)
    with pytest.raises(OSError, match="no space left"):
        save_generator(MLPGenerator(), "g.safetensors")
    assert os.listdir() == ["g.safetensors"]
    load_generator("g.safetensors")


def test_a_card_has_ordinary_permissions() -> None:
    save_generator(MLPGenerator(), "g.safetensors")
    modes = {stat.S_IMODE(Path(name).stat().st_mode) for name in ("g.safetensors", "g.md")}
    assert len(modes) == 1


# --- the command line -----------------------------------------------------------------------------


def test_convert_writes_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    save_generator(GENERATORS["progressive"](), "a.safetensors", card=False)
    assert main(["convert", "a.safetensors", "b.safetensors", "--license", "mit"]) == 0
    assert "wrote b.md: its model card" in capsys.readouterr().out
    assert "\nlicense: mit\n" in Path("b.md").read_text()
    assert main(["convert", "a.safetensors", "b.safetensors", "--half", "--overwrite"]) == 0
    told = capsys.readouterr()
    assert "b.md" not in told.out
    assert "warning: card: b.md is there already" in told.err
    assert "\nlicense: mit\n" in Path("b.md").read_text()


def test_convert_tells_a_wrong_licence_first(capsys: pytest.CaptureFixture[str]) -> None:
    save_generator(MLPGenerator(), "a.safetensors", card=False)
    assert main(["convert", "a.safetensors", "b.safetensors", "--license", "my own"]) == 2
    assert "license: expected an identifier" in capsys.readouterr().err
    assert os.listdir() == ["a.safetensors"]

"""Loading and saving generators: the file layouts that are known, and how each becomes a module."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cogen_fast.generators import (
    gan_zoo,
    hub,
    karras_converted,
    mlp_npz,
    pro_gan_pth,
    rosinality,
    stylegan2_ada,
)
from cogen_fast.generators.cards import card_of, card_path, checked_licence, digest_of_file
from cogen_fast.generators.checks import FLOATS, boolean, fraction, positive_int
from cogen_fast.generators.foreign import Config, Tensors, some_names
from cogen_fast.generators.mlp import MLPGenerator
from cogen_fast.generators.pickles import read_pickle
from cogen_fast.generators.progressive import ProgressiveGenerator
from cogen_fast.generators.reading import file_kind, read_npz, read_safetensors, read_torch
from cogen_fast.generators.stylegan2 import StyleGAN2Generator
from cogen_fast.generators.unwrapping import unwrapped
from cogen_fast.support.arguments import abbreviated
from cogen_fast.support.files import (
    open_regular,
    parse_json,
    size_of,
    write_atomically,
    write_new,
)
from cogen_fast.support.memory import check_room
from cogen_fast.support.tensor_files import to_bytes
from cogen_fast.support.warnings import warn_user

Generator = ProgressiveGenerator | StyleGAN2Generator | MLPGenerator

_KINDS: dict[str, type[Generator]] = {
    "ProgressiveGenerator": ProgressiveGenerator,
    "StyleGAN2Generator": StyleGAN2Generator,
    "MLPGenerator": MLPGenerator,
}
_KIND_KEY, _CONFIG_KEY = "cogen_fast_generator", "config"
_SUPPORTED = (
    "a generator saved by cogen_fast (safetensors), a progressive GAN of the PyTorch GAN Zoo, of "
    "pro-gan-pth or converted from Karras et al., a StyleGAN2 of rosinality/stylegan2-pytorch "
    "(.pt) or of NVIDIA's PyTorch programs (.pkl), or an npz of dense layers (w1, b1, w2, ...)"
)


def load_generator(
    path: str | os.PathLike[str],
    *,
    average: bool = True,
    alpha: float | None = None,
    resolution: int | None = None,
) -> Generator:
    """Load a generator from a file of any known layout, which is recognised by its content.

    A file in a repository of the Hugging Face Hub is named `hf://owner/name/file.safetensors`, or
    `hf://owner/name@revision/file.safetensors` of a branch, a tag or a commit; `file` may lie in
    folders. It is downloaded once, by the package huggingface-hub (extra `hub`), and has to be one
    that `save_generator` has written.

    These are known: the safetensors files of `save_generator`; progressive GANs of the PyTorch GAN
    Zoo (.pth), of pro-gan-pth 3.x (.bin, with or without its configuration) and 2.x
    (`GAN_GEN_*.pth`), and converted from the networks of Karras et al. (.pth); StyleGAN2 networks
    of rosinality/stylegan2-pytorch (.pt), of stylegan2-ada-pytorch and of the StyleGAN3 repository
    (.pkl); npz archives of dense layers `w1 (in, out), b1, w2, ...` with ReLU between them.
    Prefixes `module.` and wrappers such as `{"state_dict": ...}` are removed. No code in the file
    is ever run.

    Args:
        average: True takes the moving average of the weights if the file has both, otherwise what
            it has; False takes the raw generator.
        alpha: for a progressive generator, the weight of the highest resolution in the fade-in, in
            [0, 1]; None takes that of the file, or 1 if the file does not have it.
        resolution: for a progressive generator, the side at which the network is cut; the file must
            have the colour layer for it. None takes the highest.

    Returns:
        The module on the CPU, in the file's float type, in eval mode, its weights without
            gradients.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: there is no such file, or it cannot
            be read.
        ConnectionError: the hub cannot be reached, and has not been asked for this file before.
        ImportError: the file is on the hub, and huggingface-hub is not installed.
        ValueError: an argument is out of range, or this file cannot meet it; or the file is not a
            regular one, is unknown or damaged, contradicts itself, unpacks to far more than it
            should, or would need code of its own to be read.
    """
    average = boolean("average", average)
    alpha = None if alpha is None else fraction("alpha", alpha)
    resolution = None if resolution is None else positive_int("resolution", resolution)
    of_hub = hub.is_hub_name(path)
    local = hub.downloaded(str(path)) if of_hub else Path(path)
    with open_regular("path", local) as file:
        try:
            check_room({"size": size_of(file)}, 1, "a file")
            if of_hub:
                _check_safetensors(file)
            kind, config, tensors = _read(file, average=average, alpha=alpha, resolution=resolution)
            return _assemble(kind, config, tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def save_generator(
    generator: Generator,
    path: str | os.PathLike[str],
    *,
    card: bool = True,
    license: str | None = None,
) -> None:
    """Save a generator as safetensors, with its configuration as JSON in the metadata.

    The file is written beside `path` first and moved there when it is complete, so no reader ever
    finds an incomplete file. `load_generator` restores the generator exactly, in the same float
    type.

    Args:
        card: also write a model card, `G.md` beside `G.safetensors`: a Markdown file with what is
            known of the generator (network, latents, outputs and their range, digest of the file, a
            snippet that loads it), and with marked places for what only its author knows. On the
            Hugging Face Hub it is the `README.md` of the repository. A file of that name is never
            replaced: where it is not the card of these weights, a warning says so.
        license: the identifier of a licence for the card, such as "apache-2.0".

    Raises:
        ValueError: the generator is not a `ProgressiveGenerator`, a `StyleGAN2Generator` or an
            `MLPGenerator`, or `license` is not an identifier, or is given without a card.
        OSError: the folder cannot be written.
    """
    card, licence = boolean("card", card), checked_licence(license)
    if licence is not None and not card:
        raise ValueError(f"license: expected None without a card, got {licence!r}")
    kind = type(generator).__name__
    if _KINDS.get(kind) is not type(generator):
        raise ValueError(f"generator: expected one of {', '.join(_KINDS)}, got {kind}")
    path = Path(path)
    metadata = {_KIND_KEY: kind, _CONFIG_KEY: json.dumps(generator.config)}
    content = to_bytes(generator.state_dict(), metadata)
    write_atomically(path, lambda file: file.write_bytes(content))
    if card:
        _write_card(generator, path, content, licence)


def _write_card(generator: Generator, path: Path, content: bytes, licence: str | None) -> None:
    target = card_path(path)
    text = card_of(generator, path, content, licence)
    if write_new(target, lambda file: file.write_text(text, encoding="utf-8")):
        return
    if digest_of_file(content).encode() not in _content_of(target):
        warn_user(
            f"card: {target} is there already and is left as it is, though it is not the card of "
            f"these weights (it does not have the digest of {path.name}); move it away and save "
            "again for a new one, or give card=False"
        )


def _content_of(path: Path) -> bytes:
    """The bytes of a file; none where it is no regular file or cannot be read."""
    try:
        with open_regular("card", path) as file:
            return file.read()
    except (OSError, ValueError):
        return b""


def _check_safetensors(file: BinaryIO) -> None:
    """ValueError for a file of the hub whose content is not what its name says."""
    if (found := file_kind(file)) != "safetensors":
        raise ValueError(
            f"expected safetensors, as its name says, got another content ({found}), which is "
            "never loaded from the hub"
        )


def _read(
    file: BinaryIO, *, average: bool, alpha: float | None, resolution: int | None
) -> tuple[type[Generator], Config, Tensors]:
    container = file_kind(file)
    if container == "safetensors":
        return _own(*read_safetensors(file), alpha=alpha, resolution=resolution)
    if container == "npz":
        arrays = read_npz(file)
        if not mlp_npz.recognises(arrays):
            raise _unknown("an npz archive", arrays)
        _refuse_unless_progressive(alpha=alpha, resolution=resolution)
        return MLPGenerator, *mlp_npz.convert(arrays)
    if container == "pickle":
        content = read_pickle(file, size_of(file))
        if not isinstance(content, Mapping) or not stylegan2_ada.recognises(content):
            raise _unknown("a pickle", content)
        _refuse_unless_progressive(alpha=alpha, resolution=resolution)
        return StyleGAN2Generator, *stylegan2_ada.convert(content, average=average)
    content = read_torch(file, gan_zoo.STAND_INS)
    for part in unwrapped(content) if isinstance(content, Mapping) else ():
        if rosinality.recognises(part):
            _refuse_unless_progressive(alpha=alpha, resolution=resolution)
            return StyleGAN2Generator, *rosinality.convert(part, average=average)
        for layout in (gan_zoo, pro_gan_pth, karras_converted):
            if layout.recognises(part):
                recipe = layout.convert(part, average=average, alpha=alpha, resolution=resolution)
                return ProgressiveGenerator, *recipe
    raise _unknown("a torch file", content)


def _own(
    metadata: Mapping[str, str], tensors: Tensors, *, alpha: float | None, resolution: int | None
) -> tuple[type[Generator], Config, Tensors]:
    kind = _KINDS.get(metadata.get(_KIND_KEY, ""))
    if kind is None:
        raise _unknown("a safetensors file", tensors)
    config = _parsed(metadata.get(_CONFIG_KEY, ""))
    if kind is not ProgressiveGenerator:
        _refuse_unless_progressive(alpha=alpha, resolution=resolution)
    if resolution not in (None, config.get("resolution")):
        raise ValueError(
            f"resolution: expected {abbreviated(config.get('resolution'))}, the only one in this "
            f"file, got {resolution}"
        )
    return kind, config if alpha is None else config | {"alpha": alpha}, tensors


def _parsed(text: str) -> Config:
    config = parse_json("config", text)
    if not isinstance(config, dict):
        raise ValueError(f"config: expected a JSON object, got {abbreviated(text)}")
    return config


def _refuse_unless_progressive(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}: expected None, as this is no progressive generator, got {value!r}"
            )


def _unknown(container: str, content: object) -> ValueError:
    content_shown = (
        f"with keys {some_names(content)}"
        if isinstance(content, Mapping)
        else type(content).__name__
    )
    return ValueError(f"expected {_SUPPORTED}; got {container}, {content_shown}")


def _assemble(kind: type[Generator], config: Config, tensors: Tensors) -> Generator:
    _check_lengths(config, tensors)
    # On the meta device no weights are drawn, so no memory and no global random state is used.
    try:
        with torch.device("meta"):
            module = kind(**config)
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"config: expected arguments of {kind.__name__}, got {error}") from error
    unknown_mean = isinstance(module, StyleGAN2Generator) and "style_mean" not in tensors
    if isinstance(module, StyleGAN2Generator) and unknown_mean and "constant" in tensors:
        zeros = torch.zeros(module.style_size, dtype=tensors["constant"].dtype, device="cpu")
        tensors = {**tensors, "style_mean": zeros}
    _check_tensors(module, tensors)
    module.load_state_dict(tensors, assign=True)
    module.eval().requires_grad_(False)
    if isinstance(module, StyleGAN2Generator) and unknown_mean:
        module.style_mean.copy_(module.estimated_style_mean())
    return module


def _check_lengths(config: Config, tensors: Tensors) -> None:
    """ValueError, before a module is built, where a list of the configuration needs more layers.

    A file could otherwise ask for far more layers than it has tensors.
    """
    for name, value in config.items():
        if isinstance(value, list) and len(value) > len(tensors):
            raise ValueError(
                f"config: expected at most {len(tensors)} numbers in {abbreviated(name)}, the "
                f"number of tensors, got {len(value)}"
            )


def _check_tensors(module: Generator, tensors: Tensors) -> None:
    expected: dict[str, Any] = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    got: dict[str, Any] = {k: tuple(v.shape) for k, v in tensors.items()}
    if missing := {name: None for name in expected if name not in got}:
        raise ValueError(f"tensors: expected also {some_names(missing)}, got {some_names(got)}")
    if extra := {name: None for name in got if name not in expected}:
        raise ValueError(
            f"tensors: expected those of the configuration, got also {some_names(extra)}"
        )
    for name, shape in expected.items():
        if got[name] != shape:
            raise ValueError(f"{name}: expected shape {shape} by the config, got {got[name]}")
    types = {tensor.dtype for tensor in tensors.values()}
    if len(types) > 1 or not types <= set(FLOATS):
        named = ", ".join(sorted(map(str, types)))
        raise ValueError(f"tensors: expected one float type of 16, 32 or 64 bits, got {named}")

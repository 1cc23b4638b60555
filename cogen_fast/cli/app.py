"""`cogen-fast app`: from arguments to a page that is served."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cogen_fast.app import server
from cogen_fast.app.offers import Offer
from cogen_fast.app.picture import Shape
from cogen_fast.cli.generator import find_generator, probe
from cogen_fast.cli.images import read_picture
from cogen_fast.generators.hub import is_hub_name
from cogen_fast.generators.pretrained import HELD_OUT, PRETRAINED, held_out_images
from cogen_fast.support.arguments import check_number, check_whole
from cogen_fast.support.warnings import DiagnosisWarning

_MOST_PORT = 2**16 - 1


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    port = check_whole("port", arguments.port, 0, _MOST_PORT)
    pixels = check_whole("max_pixels", arguments.max_pixels, 1)
    limit = check_number("time_limit", arguments.time_limit, 0.0)
    texts: list[str] = arguments.generator or ["fashion-32"]
    offers = [offer(text, arguments.device, arguments.latent_shape) for text in texts]
    names = [offer.name for offer in offers]
    if len(set(names)) < len(names):
        raise ValueError(f"generator: expected different names, got {', '.join(names)}")
    warnings.simplefilter("ignore", DiagnosisWarning)  # the page shows the diagnosis
    server.serve(
        offers,
        _read,
        host=arguments.host,
        port=port,
        most_pixels=pixels,
        time_limit=limit,
        on_ready=lambda page: print(f"serving {page} until Ctrl-C", flush=True),
    )


def offer(text: str, device: str | None, latent_shape: list[int] | None) -> Offer:
    """The generator that ``text`` names. ValueError, TypeError or OSError if there is none."""
    generator = find_generator(text, device)
    sample = probe(generator, latent_shape, None)[0].float().cpu()
    shape = (sample.shape[0], sample.shape[1], sample.shape[2])
    examples = held_out_images(text) if text in HELD_OUT else {}
    is_file = Path(text).is_file()
    name = Path(text).name if is_file else text
    code = _code(text, is_file, generator)
    given = None if latent_shape is None else tuple(latent_shape)
    return Offer(name, generator, shape, sample, code, examples, given)


def _code(text: str, is_file: bool, generator: object) -> list[str]:
    """Python that makes the generator again; a file is named without its folder."""
    if is_hub_name(text):
        source = f"cogen_fast.load_generator({json.dumps(text)})"
    elif is_file:
        source = f"cogen_fast.load_generator({json.dumps(Path(text).name)})"
    elif text in PRETRAINED:
        source = f"cogen_fast.pretrained({json.dumps(text)})"
    else:
        module, _, name = text.partition(":")
        return [f"import {module}", "", f"G = {module}.{name}"]
    on_gpu = isinstance(generator, nn.Module) and _device(generator).type == "cuda"
    return [f"G = {source}.cuda()" if on_gpu else f"G = {source}"]


def _device(generator: nn.Module) -> torch.device:
    return next(generator.parameters()).device


def _read(path: Path, shape: Shape) -> Tensor:
    """An uploaded picture, cropped at its centre and scaled, as an image of this shape."""
    channels, height, width = shape
    picture = read_picture("picture", path).fit((width, height), resize=True)
    return picture.to_channels(channels).to_tensor()

"""What the examples share: their one option, the pictures that they draw, what they print.

Budgets are small, so that each example takes less than half a minute on two cores. Where one is too
small for all chains to agree, the diagnosis that is printed says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import cogen_fast

Tile = tuple[str, Tensor]
_SIDE, _GAP, _LINE = 96, 6, 16  # pixels: of a tile, between tiles, of a line of text


def target(script: str) -> Path:
    """The picture to write, named after the ``script`` and in the folder of the option --out."""
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture (here)")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{Path(script).stem}.png"


def noise(shape: Sequence[int], std: float, seed: int = 0) -> Tensor:
    """Gaussian noise of standard deviation ``std``, the same in every run."""
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(image: Tensor, truth: Tensor) -> float:
    """Root mean square difference, in units of images in [-1, 1]."""
    return float((image - truth).square().mean().sqrt())


@torch.no_grad()
def prior_mean(
    generator: Callable[[Tensor], Tensor], latent_size: int = 64, draws: int = 2000
) -> Tensor:
    """The mean of the generator's images: the best guess of one who has observed nothing."""
    random = torch.Generator().manual_seed(0)
    images: Tensor = generator(torch.randn(draws, latent_size, generator=random)).mean(0)
    return images


def tell(result: cogen_fast.Result, found: float, blind: float, name: str = "mean") -> None:
    """Print the error of a picture, that of the prior's mean image, and the diagnosis."""
    print(f"error of the {name}: {found:.3f} (of the prior's mean image: {blind:.3f})")
    for sentence in result.diagnose() or ["nothing is wrong"]:
        print(f"diagnosis: {sentence}")


def draw(path: Path, rows: Sequence[Sequence[Tile]], caption: str) -> None:
    """Write rows of labelled images ``(1 or 3, H, W)`` in [-1, 1], above a caption, as PNG."""
    font = ImageFont.load_default(11)
    across = _GAP + max(map(len, rows)) * (_SIDE + _GAP)
    down = _GAP + len(rows) * (_LINE + _SIDE + _GAP)
    lines = _wrapped(caption, across - 2 * _GAP, font)
    canvas = Image.new("RGB", (across, down + len(lines) * _LINE + _GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        for c, (label, image) in enumerate(row):
            left, top = _GAP + c * (_SIDE + _GAP), _GAP + r * (_LINE + _SIDE + _GAP)
            pen.text((left, top), label, fill="black", font=font)
            tile = _pixels(image).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            canvas.paste(tile, (left, top + _LINE))
    for number, line in enumerate(lines):
        pen.text((_GAP, down + number * _LINE), line, fill="black", font=font)
    canvas.save(path, optimize=True)
    print(f"picture: {path}")


def samples(images: Tensor, count: int = 4) -> list[Tile]:
    """The first few of the samples ``(N, C, H, W)``, labelled."""
    return [(f"sample {i + 1}", image) for i, image in enumerate(images[:count])]


def _pixels(image: Tensor) -> Image.Image:
    bright = ((image.detach().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return Image.fromarray(bright.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

"""Write images that a shipped generator was not trained on side by side into one small PNG.

``python -m cogen_fast.training.held_out t10k-images-idx3-ubyte.gz FILE.png --resolution 32 --fit
pad --images 19,2``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cogen_fast.support.files import write_atomically
from cogen_fast.training.datasets import Images, open_images


def save_row(images: Images, indices: Sequence[int], path: Path) -> None:
    """Write the images ``indices``, in this order, as one row of pixels (R, N R).

    Raises ValueError for indices that do not exist.
    """
    levels = (images.batch(indices) + 1.0) * 127.5
    pixels = np.concatenate(list(levels.round().byte().permute(0, 2, 3, 1).numpy()), axis=1)
    row = Image.fromarray(pixels[..., 0] if images.channels == 1 else pixels)
    write_atomically(path, lambda file: row.save(file, format="PNG", optimize=True))


def main() -> None:
    """The command of this module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--fit", default="crop")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--images", required=True)
    options = parser.parse_args()
    images = open_images(options.data, options.resolution, fit=options.fit, cache=options.cache)
    save_row(images, [int(number) for number in options.images.split(",")], options.file)


if __name__ == "__main__":
    main()

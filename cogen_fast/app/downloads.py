"""The files of a finished run: a picture, arrays, and a script that repeats the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cogen_fast.app.runs import shown_images
from cogen_fast.app.setup import FILL, Setup
from cogen_fast.results.result import Result
from cogen_fast.support.archives import write_npz

PICTURE, ARRAYS, SCRIPT = NAMES = ("completions.png", "run.npz", "repeat.py")
_TEMPLATE = '''\
"""Repeats a run of `cogen-fast app`: python {script} (with {arrays} in the same folder)."""

import numpy as np

import cogen_fast

{code}
data = np.load("{arrays}")
result = {call}
result.grid("{picture}")
print(result)
different = np.abs(result.latents[0].numpy() - data["latents"]).max()
print(f"largest difference from the latents in {arrays}: {{different:g}}")
'''


def write(folder: Path, setup: Setup, result: Result) -> list[Path]:
    """Write the files of a run into ``folder``; gives their paths in the order of `NAMES`."""
    paths = [folder / name for name in NAMES]
    result.grid(paths[0], tiles=setup.settings.chains)
    write_npz(_arrays(setup, result), paths[1])
    paths[2].write_text(script(setup), encoding="utf-8")
    return paths


def script(setup: Setup) -> str:
    """Python code that repeats a run from the arrays of its download."""
    options = "".join(f"\n    {name}={value!r}," for name, value in setup.options().items())
    if setup.settings.task == FILL:
        call = 'cogen_fast.inpaint(\n    G,\n    data["x_obs"],\n    data["observed"],'
    else:
        factor = setup.settings.factor
        call = f'cogen_fast.super_resolve(\n    G,\n    data["x_obs"],\n    {factor},'
    return _TEMPLATE.format(
        script=SCRIPT,
        arrays=ARRAYS,
        picture=PICTURE,
        code="\n".join(setup.offer.code),
        call=f"{call}{options}\n)",
    )


def _arrays(setup: Setup, result: Result) -> dict[str, np.ndarray]:
    hidden = setup.picture.hidden
    found = {
        "x_obs": setup.picture.image.numpy(),
        "latents": result.latents[0].numpy(),
        "energies": result.energies[0].numpy(),
        "images": result.images[0].numpy(),
        "completed": shown_images(result)[0].numpy(),
    }
    if result.log_weights is not None:
        found["log_weights"] = result.log_weights[0].numpy()
    return found if hidden is None else found | {"observed": ~hidden}

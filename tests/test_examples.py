"""Every example runs as it stands, draws its picture, and comes nearer to the truth than the prior.

Errors are root mean squares in units of images in [-1, 1]. A bound is at most six tenths of the
error of the prior's mean image, so that a script that learns nothing from its data cannot pass.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the source tree")
SHARED = "report.py"
# For each script, the largest error allowed of any picture for which it reports one.
BOUNDS = {
    "blur": 0.2,
    "colourise": 0.1,
    "compressed_sensing": 0.15,
    "conditional": 0.2,
    "faces": 0.1,
    "inpainting": 0.3,
    "mri": 0.2,
    "outliers": 0.27,
    "own_generator": 0.25,
    "phase_retrieval": 0.25,
    "stylegan2": 0.15,
    "super_resolution": 0.3,
    "unknown_noise": 0.15,
}
# These examples need a generator from one of these packages, and have no picture here.
NEEDS = {"faces": ("gan_face_generate", "generateme")}
ERROR = re.compile(r"error of the (.+): ([\d.]+) \(of the prior's mean image: ([\d.]+)\)")
MOST_BYTES, MOST_BYTES_TOGETHER = 60_000, 300_000


def run(script: str, folder: Path) -> str:
    """What ``script`` prints in a process of its own, with its picture in ``folder``."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{script}.py"), "--out", str(folder)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(BOUNDS))
def test_an_example_finds_what_it_shows(script: str, tmp_path: Path) -> None:
    if not any(find_spec(name) for name in NEEDS.get(script, ("cogen_fast",))):
        pytest.skip(f"needs one of {NEEDS[script]}")
    printed = run(script, tmp_path)
    errors = ERROR.findall(printed)
    assert errors
    for picture, found, blind in errors:
        assert float(found) < BOUNDS[script] <= 0.6 * float(blind), picture
    assert "diagnosis: " in printed
    with Image.open(tmp_path / f"{script}.png") as drawn:
        drawn.load()
        if script not in NEEDS:
            with Image.open(EXAMPLES / "pictures" / f"{script}.png") as kept:
                assert drawn.size == kept.size


@pytest.mark.slow
def test_faces_without_a_package_say_what_to_install(tmp_path: Path) -> None:
    if any(find_spec(name) for name in NEEDS["faces"]):
        pytest.skip("the weights are installed")
    command = [sys.executable, str(EXAMPLES / "faces.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install --no-deps gan-face-generate" in done.stderr


def test_every_example_is_run_and_pictured() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if path.name != SHARED}
    pictures = {path.stem: path.stat().st_size for path in EXAMPLES.glob("pictures/*.png")}
    assert scripts == set(BOUNDS)
    assert scripts - set(NEEDS) == set(pictures)
    assert max(pictures.values()) < MOST_BYTES
    assert sum(pictures.values()) < MOST_BYTES_TOGETHER

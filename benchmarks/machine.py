"""What the figures of a GPU depend on, and so what identifies stale ones: machine and sources.

``python benchmarks/machine.py`` prints the digest of the sources.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
_BUILT = ("CMakeLists.txt", "pyproject.toml", "cogen_fast", "csrc")
_METHOD = ("cogen_fast/methods/adaptive.py", "cogen_fast/methods/paper.py", "cogen_fast/sampler")
_SOURCES = frozenset({".cpp", ".cu", ".h", ".py", ".safetensors", ".toml", ".txt"})


def digest(*more: str) -> str:
    """The digest of the package's sources, and of ``more`` files or folders of the checkout."""
    return _digest_of(*_BUILT, *more)


def digest_of_method(*more: str) -> str:
    """The digest of the sources by which the running package draws samples, and of ``more``."""
    import cogen_fast  # not installed yet where a machine has to build it

    return _digest_of(*_METHOD, *more, root=Path(cogen_fast.__file__).parent.parent)


def processor() -> str:
    """The name of the processor, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


def _digest_of(*names: str, root: Path = ROOT) -> str:
    """The digest of the sources in files or folders of ``root``."""
    found = hashlib.sha256()
    for name in names:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in _SOURCES:
                found.update(f"{path.relative_to(root)}\n{path.stat().st_size}\n".encode())
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


def machine(*more: str) -> dict[str, str]:
    """The device, torch, and the `digest`: keys of a log's lines."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "torch": str(torch.__version__), "sources": digest(*more)}


if __name__ == "__main__":
    print(digest())

"""Write the results of a stage of the GPU check into its JSON: machine, build, commit, figures.

    python benchmarks/gpu_facts.py gpu_check.json STAGE FIGURES.jsonl

Other stages in the file stay as they are, each with the facts of its own run. COGEN_FAST_COMMIT
names the commit if there is no repository.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch
from log import Log
from machine import machine

import cogen_fast
from cogen_fast.ops import native
from cogen_fast.support.files import write_atomically


def commit() -> str:
    """The commit that COGEN_FAST_COMMIT names, or that of the repository where there is one."""
    if named := os.environ.get("COGEN_FAST_COMMIT"):
        return named
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _facts() -> dict[str, Any]:
    here = machine()
    return {
        "device": here["device"],
        "commit": commit(),
        "sources": here["sources"],
        "versions": {
            "cogen_fast": cogen_fast.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "build": native.extension().build_info(),
    }


def figures(log: Path, *more: str) -> list[dict[str, Any]]:
    """Lines of the log but for those of another device, torch, or sources (`machine`)."""
    known = machine(*more).items()
    lines = Log(log).lines
    return [line for line in lines if all(line.get(key, value) == value for key, value in known)]


def main() -> None:
    """Write the stage's entry, keeping the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("stage")
    parser.add_argument("figures", type=Path, help="JSON lines")
    parser.add_argument("sources", nargs="*", help="what the lines depend on beside the package")
    options = parser.parse_args()
    facts = _facts()
    if not torch.cuda.is_available() or not facts["build"]["with_cuda"]:
        raise SystemExit(f"expected a CUDA device, a CUDA torch and a CUDA build, got {facts}")
    record = json.loads(options.file.read_text()) if options.file.exists() else {}
    record[options.stage] = facts | {"figures": figures(options.figures, *options.sources)}
    write_atomically(
        options.file, partial(Path.write_text, data=json.dumps(record, indent=2) + "\n")
    )
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()

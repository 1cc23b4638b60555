"""Write what machine and build a GPU check ran on, and its test counts, as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import torch

import cogen_fast
from cogen_fast.ops import native


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _facts() -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
        "versions": {
            "cogen_fast": cogen_fast.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "build": native.extension().build_info(),
    }


def _counts(report: Path) -> dict[str, int]:
    suite = ET.parse(report).getroot().find("testsuite")
    assert suite is not None
    return {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}


def main() -> None:
    """Write the facts, keeping what else the file holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tests", type=Path, help="JUnit XML of the test run")
    parser.add_argument("--figures", type=Path, help="JSON lines of a benchmark, kept by its name")
    options = parser.parse_args()
    record = json.loads(options.file.read_text()) if options.file.exists() else {}
    record |= _facts()
    if record["device"] is None or not native.extension().build_info()["with_cuda"]:
        raise SystemExit(f"expected a CUDA device, a CUDA torch and a CUDA build, got {record}")
    if options.tests:
        record["tests"] = _counts(options.tests)
    if options.figures:
        lines = options.figures.read_text().splitlines()
        record |= {options.figures.stem: [json.loads(line) for line in lines]}
    options.file.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

"""What was asked for on the command line, as it is kept in `result.json`."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogen_fast.cli.sources import Source
from cogen_fast.methods.loop import CTRL_C
from cogen_fast.support.files import open_regular, parse_json, read_text

COMMAND_LINE = "command_line"
"""The key of the record in the settings of a result."""
# Options on which the samples do not depend, except by rounding.
_APART = {"out", "overwrite", "quiet", "checkpoint", "device", "backend", "compile"}
_APART |= {"cuda_graphs", "max_batch", "time_limit"}
_PATHS = {"image", "mask"}  # files are compared by their content


def record_of(arguments: argparse.Namespace, source: Source, fingerprint: str) -> dict[str, Any]:
    """The options that are given, the paths of the files, and digests of their content.

    ``fingerprint`` is that of the generator.
    """
    options = {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and name not in _APART | _PATHS
    }
    files = {"image": source.image, "mask": source.mask}
    given = {name: str(path) for name, path in files.items() if path is not None}
    digests = {
        f"{name}_sha256": _digest(name, path)
        for name, path in files.items()
        if isinstance(path, Path)
    }
    record = {**options, "generator_sha256": fingerprint, **given, **digests}
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def _digest(name: str, path: Path) -> str:
    found = hashlib.sha256()
    with open_regular(name, path) as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def saved_summary(path: Path) -> dict[str, Any]:
    """The content of a `result.json`; ValueError or OSError if it cannot be read."""
    summary = parse_json("out", read_text("out", path))
    if not isinstance(summary, dict) or not isinstance(summary.get("settings"), dict):
        raise ValueError(f"out: expected a result in {path}, got something else")
    return summary


def answers(summary: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a saved result is of the same command with files of the same content."""
    found = summary["settings"].get(COMMAND_LINE)
    return isinstance(found, dict) and _compared(found) == _compared(record)


def was_interrupted(summary: Mapping[str, Any]) -> bool:
    """Whether Ctrl-C ended the run of a saved result."""
    reasons = summary.get("reasons")
    return isinstance(reasons, dict) and reasons.get("complete") == CTRL_C


def _compared(record: Mapping[str, Any]) -> dict[str, Any]:
    mask = {"mask": record["mask"]} if "mask_sha256" not in record and "mask" in record else {}
    return {name: value for name, value in record.items() if name not in _PATHS} | mask

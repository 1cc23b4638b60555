"""Studies whose process is killed repeatedly, at any moment, end as uninterrupted ones do.

``COGEN_FAST_KILLS`` says how many kills there are of each study (1).
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import studies
from confined import needs_linux, start_server

pytest.importorskip("pytorch_msssim")
pytest.importorskip("matplotlib")
pytestmark = [pytest.mark.slow, needs_linux]

_TIMED = ("report.md", "table.txt")  # texts that contain times
_KILLS = int(os.environ.get("COGEN_FAST_KILLS", "1"))


def ends(study: Callable[[Path], None], out: Path, seconds: float | None) -> bool:
    """Whether a process of its own comes to the end of ``study`` before it is killed."""
    start_server()
    context: Any = multiprocessing.get_context("forkserver")
    process = context.Process(target=study, args=(out,))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9)
    return bool(process.exitcode == 0)


def plain(path: Path) -> Any:
    """The content of a file without times and the digests that depend on them."""
    if path.suffix == ".npz":
        with np.load(path) as held:
            return {name: held[name].tolist() for name in held.files}
    if path.suffix == ".csv":
        rows = list(csv.DictReader(path.open()))
        return [{k: v for k, v in row.items() if "second" not in k} for row in rows]
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in r.items() if k not in ("seconds", "digest")} for r in records]
    if path.name in _TIMED:
        return len(path.read_text().splitlines())
    return path.read_bytes()


def files(out: Path) -> dict[str, Any]:
    """All files except hidden ones, which killed writers have left."""
    found = [path for path in out.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(out)): plain(path) for path in found}


@pytest.mark.slow
@pytest.mark.parametrize("study", [studies.images, studies.of_plane])
def test_kills_at_random_change_nothing(study: Callable[[Path], None], tmp_path: Path) -> None:
    start = time.monotonic()
    assert ends(study, tmp_path / "whole", None)
    longest, whole = time.monotonic() - start, files(tmp_path / "whole")
    random = np.random.default_rng(7)
    kills = finished = 0
    while kills < _KILLS:
        out = tmp_path / f"{finished}"
        if ends(study, out, random.uniform(0.0, longest)):
            assert files(out) == whole
            finished += 1
        else:
            kills += 1
            for name, content in files(out).items():
                assert ".checkpoint." in name or whole[name] == content, name
    out = tmp_path / f"{finished}"
    assert ends(study, out, None)
    assert files(out) == whole

"""Functions of test files, called in a new Python process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def in_a_process(file: str, function: str, **environment: str) -> None:
    """Call a function of a test file in a new Python process; fail if it raises there."""
    folder, module = str(Path(file).resolve().parent), Path(file).stem
    script = f"import sys; sys.path.insert(0, {folder!r}); import {module}; {module}.{function}()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

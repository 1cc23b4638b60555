"""Benchmarks are scripts side by side: let them import one another, and the installed package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or os.getcwd()).resolve() != _HERE.parent]
sys.path.insert(0, str(_HERE))

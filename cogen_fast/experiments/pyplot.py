"""Matplotlib, for the experiments that draw figures."""

from __future__ import annotations

import importlib
from typing import Any

from cogen_fast.support.extras import imported


def pyplot(what: str) -> Any:
    """``matplotlib.pyplot``, set up to draw to files; ImportError says that ``what`` needs it."""
    imported("matplotlib", what=what, package="matplotlib", extra="plots").use("Agg")
    return importlib.import_module("matplotlib.pyplot")

"""Matplotlib, for the experiments that draw figures."""

from __future__ import annotations

from typing import Any


def pyplot(what: str) -> Any:
    """``matplotlib.pyplot``, set up to draw to files; ImportError says that ``what`` needs it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"{what}: needs matplotlib; pip install 'cogen-fast[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

"""Packages of the extras, which are imported where they are needed and may be missing."""

from __future__ import annotations

import importlib
from typing import Any


def imported(module: str, *, what: str, package: str, extra: str) -> Any:
    """The module, which is part of ``package``, which the ``extra`` installs.

    ImportError says that ``what`` needs the package, and how to install it; where the package is
    installed but cannot be imported, it says why.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        absent = f"{module}.".startswith(f"{missing}.")
        cause = "" if absent else f", which cannot be imported ({error})"
        raise ImportError(
            f"{what}: needs {package}{cause}; pip install 'cogen-fast[{extra}]'"
        ) from error

"""What is told where a package of an extra is missing, or is there and cannot be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cogen_fast.support.extras import imported


def told(module: str) -> str:
    with pytest.raises(ImportError) as caught:
        imported(module, what="convergence", package="some-package", extra="arviz")
    return str(caught.value)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "convergence: needs some-package; pip install 'cogen-fast[arviz]'"
    assert told("no_such_module") == expected
    assert told("no_such_module.part") == expected
    monkeypatch.setitem(sys.modules, "no_such_module", None)
    assert told("no_such_module") == expected


def test_a_package_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_module_either")
    monkeypatch.syspath_prepend(tmp_path)
    cause = r"which cannot be imported (No module named 'no_such_module_either')"
    assert told("broken_module") == (
        f"convergence: needs some-package, {cause}; pip install 'cogen-fast[arviz]'"
    )


def test_a_package_that_is_there_is_returned() -> None:
    assert imported("json.decoder", what="x", package="x", extra="x").__name__ == "json.decoder"

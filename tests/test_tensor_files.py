"""Safetensors files with metadata: equal content is equal bytes, and any reader reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from cogen_fast.generators import MLPGenerator, save_generator
from cogen_fast.support.tensor_files import to_bytes

METADATA = {f"key {i}": f"value {i}" for i in range(12)}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "b": torch.arange(7, dtype=torch.float32),
        "a": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.zeros(0, 3),
        "c\u00e9": torch.tensor(True),
    }


def test_the_library_by_itself_writes_metadata_in_any_order() -> None:
    """Otherwise the tests below would show nothing."""
    plain = {name: value.contiguous() for name, value in tensors().items()}
    assert len({save(plain, METADATA) for _ in range(20)}) > 1


def test_equal_content_is_equal_bytes() -> None:
    turned = dict(reversed(METADATA.items()))
    assert len({to_bytes(tensors(), m) for _ in range(10) for m in (METADATA, turned)}) == 1


@pytest.mark.parametrize("metadata", [{}, {"one": "1"}, METADATA, {"\u00e9": '\u20ac " \\ \n'}])
def test_any_reader_reads_them(tmp_path: Path, metadata: dict[str, str]) -> None:
    (tmp_path / "x").write_bytes(to_bytes(tensors(), metadata))
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert (file.metadata() or {}) == metadata
        assert set(file.keys()) == tensors().keys()
        for name, value in tensors().items():
            assert torch.equal(file.get_tensor(name), value), name


def test_data_stay_aligned() -> None:
    for length in range(16):
        content = to_bytes(tensors(), {"x": "y" * length})
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0
        assert json.loads(content[8 : 8 + size])["__metadata__"] == {"x": "y" * length}


def write_generator(path: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_generator(MLPGenerator((2, 4, 2)), path)


@pytest.mark.slow
def test_processes_write_equal_generators_as_equal_bytes(tmp_path: Path) -> None:
    folder = Path(__file__).parent  # not the checkout's root, where the package has no extension
    script = f"import sys; sys.path.insert(0, {str(folder)!r}); import test_tensor_files as t; "
    for number in range(2):
        call = f"t.write_generator({str(tmp_path / str(number))!r})"
        environment = {**os.environ, "PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-c", script + call]
        subprocess.run(command, check=True, cwd=folder, env=environment)
    for _ in range(4):
        write_generator(str(tmp_path / "again"))
        assert (tmp_path / "again").read_bytes() == (tmp_path / "0").read_bytes()
    assert (tmp_path / "1").read_bytes() == (tmp_path / "0").read_bytes()

"""Plain pickles of networks: nothing in them is run, or takes more memory than its size."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cogen_fast import load_generator
from cogen_fast.generators.pickles import Persistent, read_pickle


def read(content: bytes) -> Any:
    return read_pickle(io.BytesIO(content), len(content))


def named(module: str, name: str) -> bytes:
    """The operation that pushes an object by its name, protocol 2."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def called(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls an object with plain arguments."""
    inner = pickle.dumps(arguments, 2)[2:-1]
    return b"\x80\x02" + named(module, name) + inner + b"R."


def storage(numbers: int, compress: bool = False) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older programs saved such storages
        torch.save(torch.zeros(numbers).storage(), buffer)
    if not compress:
        return buffer.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def tensor_of(content: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    inner = called("torch.storage", "_load_from_bytes", content)[2:-1]
    numbers = b"".join(pickle.dumps(each, 2)[2:-1] for each in (offset, size, stride))
    head = b"\x80\x02" + named("torch._utils", "_rebuild_tensor_v2")
    return head + b"(" + inner + numbers + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch_utils.persistence", "import_hooks"),
        ("collections", "OrderedDict.__init__"),
    ],
)
def test_names_without_a_stand_in_are_refused(module: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "g.pkl"
    path.write_bytes(called(module, name, f"touch {tmp_path}/run"))
    with pytest.raises(ValueError, match=f"got a pickle that asks for '{module}.{name}'"):
        load_generator(path)
    assert not (tmp_path / "run").exists()


def test_a_tensorflow_network_is_told_by_name() -> None:
    with pytest.raises(ValueError, match="got one of the original TensorFlow program"):
        read(called("dnnlib.tflib.network", "Network"))


def test_source_text_in_a_file_is_text() -> None:
    meta = {"type": "class", "module_src": "1 / 0", "class_name": "G", "state": {"a": 1}}
    found = read(called("torch_utils.persistence", "_reconstruct_persistent_obj", meta))
    assert found == Persistent("G", {"a": 1})


def test_tensors_lie_within_their_storage() -> None:
    content = storage(6)
    whole = read(tensor_of(content, 1, (2, 2), (2, 1)))
    assert torch.equal(whole, torch.zeros(2, 2))
    for offset, size, stride in [
        (3, (2, 2), (2, 1)),
        (0, (7,), (1,)),
        (0, (10**6,), (0,)),
        (0, (2,), (6,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (7, (1,), (1,)),
    ]:
        with pytest.raises(ValueError, match="expected a"):
            read(tensor_of(content, offset, size, stride))


def test_a_storage_is_no_larger_than_its_bytes() -> None:
    with pytest.raises(ValueError, match="expected storages that are not compressed"):
        read(called("torch.storage", "_load_from_bytes", storage(10**6, compress=True)))


def test_one_storage_may_not_be_claimed_over_and_over() -> None:
    content = storage(1000)
    load = named("torch.storage", "_load_from_bytes")
    # The bytes are in the file once, and are loaded a hundred times by reference.
    first = load + b"B" + struct.pack("<I", len(content)) + content + b"q\x01\x85R"
    with pytest.raises(ValueError, match="expected tensors of at most the file's size"):
        read(b"\x80\x03(" + first + (load + b"h\x01\x85R") * 100 + b"t.")


@pytest.mark.parametrize("wraps", [b"\x85", b"N\x86"])
def test_deep_nests_are_no_keys(wraps: bytes) -> None:
    nest = b"\x80\x02}(N" + wraps * 200_000
    with pytest.raises(ValueError, match="expected a text or a whole number as key"):
        read(nest + b"Ns.")
    assert read(b"\x80\x02N" + wraps * 1000 + b".") is not None


def test_shared_tuples_are_no_keys() -> None:
    """Computing the hash of nested shared tuples would take twice the time at each level."""
    doubled = b"K\x01K\x02\x86" + b"2\x86" * 60  # each level is the one before it twice
    with pytest.raises(ValueError, match="expected a text or a whole number as key"):
        read(b"\x80\x02}" + doubled + b"Ns.")


def doubled_key(levels: int) -> bytes:
    """A mapping whose key is a pair of one pair twice, and so on, as torch's reader takes it."""
    pairs = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(levels))
    return b"\x80\x02}K\x01K\x02\x86" + pairs + b"Ns."


def in_torch_file(pickled: bytes, path: Path, zipped: bool) -> Path:
    """A file of `torch.save` with another pickle in the place of its own."""
    if not zipped:
        head = io.BytesIO()
        torch.save({}, head, _use_new_zipfile_serialization=False)
        first = pickle.dumps({}, 2)
        at = head.getvalue().rindex(first)
        path.write_bytes(head.getvalue()[:at] + pickled + head.getvalue()[at + len(first) :])
        return path
    whole = io.BytesIO()
    torch.save({}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            own = member.filename.endswith("data.pkl")
            target.writestr(member.filename, pickled if own else source.read(member))
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_shared_tuples_are_no_keys_of_torchs_files_either(tmp_path: Path, zipped: bool) -> None:
    # With 60 levels torch's own reader would take 2^60 steps; with 5 it reads the file.
    path = in_torch_file(doubled_key(5), tmp_path / "few.pt", zipped)
    key = (1, 2)
    for _ in range(5):
        key = (key, key)  # type: ignore[assignment]
    assert torch.load(path, weights_only=True) == {key: None}
    with pytest.raises(ValueError, match="got a torch file, with keys"):
        load_generator(path)
    path = in_torch_file(doubled_key(60), tmp_path / "many.pt", zipped)
    with pytest.raises(ValueError, match="expected tuples of at most 4,096 values, got one of"):
        load_generator(path)


def test_a_storage_with_shared_tuples_is_refused(tmp_path: Path) -> None:
    content = in_torch_file(doubled_key(60), tmp_path / "storage", zipped=False).read_bytes()
    with pytest.raises(ValueError, match="expected tuples of at most 4,096 values"):
        read(called("torch.storage", "_load_from_bytes", content))


def test_what_takes_no_room_in_a_file_takes_none_in_memory() -> None:
    assert read(b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".") is None
    text = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000 + b"q\x01"
    encode = named("_codecs", "encode")
    many = b"\x80\x02(" + text + (encode + b"h\x01\x85R") * 100 + b"t."
    with pytest.raises(ValueError, match="expected texts of at most the file's size"):
        read(many)
    sizes = tuple(10**300 + n for n in range(500))
    with pytest.raises(ValueError, match="expected a shape and strides"):
        read(tensor_of(storage(6), 0, sizes, sizes))


def test_attributes_are_set_on_nothing() -> None:
    state = b"}X\x01\x00\x00\x00aK\x01s"
    meta = {"type": "class", "class_name": "G", "state": {}}
    persistent = called("torch_utils.persistence", "_reconstruct_persistent_obj", meta)[:-1]
    loader = b"\x80\x02" + named("torch.storage", "_load_from_bytes")
    tensor = tensor_of(storage(6), 0, (6,), (1,))[:-1]
    for built in (persistent, loader, tensor):
        with pytest.raises(ValueError, match="got attributes for"):
            read(built + state + b"b.")


def test_numbers_of_numpy_are_read() -> None:
    double = struct.pack("<d", 0.25)
    kind = pickle.dumps(("f8", False, True), 2)[2:-1]
    order = pickle.dumps((3, "<", None), 2)[2:-1]
    number = (
        b"\x80\x04"
        + named("numpy.core.multiarray", "scalar")
        + b"("
        + named("numpy", "dtype")
        + kind
        + b"R"
        + order
        + b"b"
        + b"C"
        + bytes([len(double)])
        + double
        + b"tR."
    )
    assert read(number) == 0.25


def test_damaged_pickles_are_told() -> None:
    for content in (b"\x80\x04", b"\x80\x04X\xff\xff\xff\xff.", b"\x80\x04\x97.", b"\x80\x04Q."):
        with pytest.raises(ValueError, match="expected a pickle"):
            read(content)

"""A result's files, each array damaged in each way: one error that names it, or the same result."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hostile import saved_result

from cogen_fast import Result
from cogen_fast.results.result import content_digest
from cogen_fast.results.result_layout import LAYOUT, OPTIONAL, PLAIN

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and summary of a run that has every optional part."""
    folder = saved_result(tmp_path_factory.mktemp("saved"))
    with np.load(folder / "result.npz") as file:
        arrays = {name: file[name] for name in file.files}
    observations, samples = arrays["energies"].shape
    arrays["noise_std"] = np.full((observations, samples), 0.1)
    arrays["noise_bounds"] = np.tile([0.01, 1.0], (observations, 1))
    arrays["log_normaliser_error"] = np.full(observations, 0.1)
    assert arrays.keys() == LAYOUT.keys()
    return arrays, json.loads((folder / "result.json").read_text())


def written(folder: Path, arrays: dict[str, Array], summary: dict[str, Any]) -> Path:
    """Files whose digest is right, where these can be arrays of a result at all."""
    np.savez(folder / "result.npz", **arrays)
    if not any(array.dtype.hasobject for array in arrays.values()):
        tensors = {name: torch.from_numpy(np.asarray(a)) for name, a in arrays.items()}
        summary = summary | {"digest": content_digest(tensors, summary)}
    (folder / "result.json").write_text(json.dumps(summary))
    return folder


def other_type(array: Array) -> Array:
    return array.astype(np.int32 if array.dtype.kind in "iub" else np.float16)


DAMAGE: dict[str, Callable[[Array], Array]] = {
    "other type": other_type,
    "complex": lambda array: array.astype(np.complex64),
    "one row less": lambda array: array[:-1],
    "one column less": lambda array: array[..., :-1],
    "one dimension less": lambda array: array[0],
    "one dimension more": lambda array: array[None],
    "a number": lambda array: array.flatten()[0],
    "empty": lambda array: array[:0],
    "twice as long": lambda array: np.concatenate([array, array]),
    "objects": lambda array: array.astype(object),
}
# A run may have any length. A trace, measurements and outputs may have any shape, if these agree.
FREE = {("trace", "one row less"), ("trace", "twice as long"), ("trace", "empty")}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", LAYOUT)
def test_an_array_that_does_not_fit_is_named(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]], name: str, damage: str
) -> None:
    arrays, summary = saved
    damaged = arrays | {name: DAMAGE[damage](arrays[name])}
    folder = written(tmp_path, damaged, summary)
    if (name, damage) in FREE:
        assert Result.load(folder).betas.shape == arrays["betas"].shape
        return
    with pytest.raises(ValueError, match=r"^directory: .* holds no readable result: ") as caught:
        Result.load(folder)
    assert len(str(caught.value).splitlines()) == 1
    told = str(caught.value).split("readable result: ")[1]
    sharing = {other for other, (_, dims) in LAYOUT.items() if _shares(name, dims)}
    assert damage == "objects" or any(told.startswith(f"{each}: ") for each in sharing), told


def _shares(name: str, dimensions: str) -> bool:
    """Where sizes disagree, the error names one of the arrays that share the size."""
    return bool(set(LAYOUT[name][1].split()) & set(dimensions.split()))


@pytest.mark.parametrize("name", sorted(set(LAYOUT) - OPTIONAL))
def test_an_array_that_is_missing_is_named(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]], name: str
) -> None:
    arrays, summary = saved
    kept = {each: array for each, array in arrays.items() if each != name}
    with pytest.raises(ValueError, match=f"result: {name}: expected an array, found none"):
        Result.load(written(tmp_path, kept, summary))


def test_an_array_of_another_name_is_named(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]]
) -> None:
    arrays, summary = saved
    for name in ("more", "settings", "cls"):
        with pytest.raises(ValueError, match=f"expected arrays of a result, got '{name}'"):
            Result.load(written(tmp_path, arrays | {name: np.zeros(2)}, summary))


@pytest.mark.parametrize("name", ["fit_images", "fit_latents", "fit_energies"])
def test_fits_come_together(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]], name: str
) -> None:
    arrays, summary = saved
    kept = {each: array for each, array in arrays.items() if each != name}
    with pytest.raises(ValueError, match=r"holds no readable result: .*fit_"):
        Result.load(written(tmp_path, kept, summary))


VALUES: tuple[Any, ...] = (None, "text", -1.5, [3], {"a": 3}, True, [[[[]]]], 10**400)


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_value_of_another_kind_is_named(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]], name: str, value: Any
) -> None:
    arrays, summary = saved
    folder = written(tmp_path, arrays, summary | {name: value})
    kinds = PLAIN[name]
    right = isinstance(value, kinds) and isinstance(value, bool) == (kinds is bool)
    if right and not isinstance(value, dict | list):
        assert getattr(Result.load(folder), name) == value
        return
    with pytest.raises(ValueError, match=f"readable result: {name}: expected"):
        Result.load(folder)


@pytest.mark.parametrize("value", [None, "text", 0, -1, 1.5, [3], True, 10**400], ids=repr)
@pytest.mark.parametrize("name", ["method", "noise", "chains", "populations", "islands"])
def test_a_setting_of_another_kind_is_named(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]], name: str, value: Any
) -> None:
    arrays, summary = saved
    settings = summary["settings"] | {name: value}
    folder = written(tmp_path, arrays, summary | {"settings": settings})
    if value == "text" and name in ("method", "noise"):
        assert Result.load(folder).settings[name] == "text"
        return
    with pytest.raises(ValueError, match="holds no readable result: settings: ") as caught:
        Result.load(folder)
    assert name in str(caught.value)


def test_numbers_of_samples_and_islands_agree_with_the_settings(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]]
) -> None:
    arrays, summary = saved
    for change in ({"chains": 15}, {"populations": 2}, {"islands": 3}):
        settings = summary["settings"] | change
        with pytest.raises(ValueError, match=r"result: \w+: expected shape"):
            Result.load(written(tmp_path, arrays, summary | {"settings": settings}))


def test_reasons_for_what_is_not_there_are_there(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]]
) -> None:
    arrays, summary = saved
    kept = {name: array for name, array in arrays.items() if name != "log_weights"}
    with pytest.raises(
        ValueError, match="reasons: expected the reason why there is no log_weights"
    ):
        Result.load(written(tmp_path, kept, summary | {"reasons": {}}))


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", '{"format": [1]}', "[" * 10**5])
def test_a_summary_that_is_none_is_refused(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]], text: str
) -> None:
    folder = written(tmp_path, *saved)
    (folder / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"holds no readable result: .*expected .*got"):
        Result.load(folder)


def test_archives_that_are_strange_are_refused(
    tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]]
) -> None:
    folder = written(tmp_path, *saved)
    np.save(tmp_path / "x.npy", np.zeros(3))
    content = (folder / "result.npz").read_bytes()
    for damaged in ((tmp_path / "x.npy").read_bytes(), content[:-200], b"PK" + content):
        (folder / "result.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="holds no readable result"):
            Result.load(folder)
    with zipfile.ZipFile(folder / "result.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535)
    with pytest.raises(ValueError, match="holds no readable result"):
        Result.load(folder)


def test_what_fits_is_read(tmp_path: Path, saved: tuple[dict[str, Array], dict[str, Any]]) -> None:
    arrays, summary = saved
    result = Result.load(written(tmp_path, arrays, summary))
    for name, array in arrays.items():
        assert torch.equal(getattr(result, name), torch.from_numpy(array)), name
    assert "2 observations x 16 chains" in repr(result)


def test_a_file_of_another_run_or_a_digit_that_changed_is_told(tmp_path: Path) -> None:
    """Such content is valid, but is not what was written."""
    folder = saved_result(tmp_path)
    text = (folder / "result.json").read_text()
    before = json.loads(text)["gradients"]
    (folder / "result.json").write_text(
        text.replace(f'"gradients": {before}', f'"gradients": {before + 1}')
    )
    with pytest.raises(ValueError, match=r"^directory: .*are not as they were written"):
        Result.load(folder)
    other = saved_result(tmp_path / "other", seed=1)
    (folder / "result.json").write_text(text)
    Result.load(folder)
    (folder / "result.npz").write_bytes((other / "result.npz").read_bytes())
    with pytest.raises(ValueError, match=r"^directory: .*are not as they were written"):
        Result.load(folder)

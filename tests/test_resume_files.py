"""A file to resume from that holds something else is one clear error, whatever it holds.

Damage is of every field that a run has, so that new ones are covered by themselves: files are
written by interrupted runs, then changed and given a digest that is right again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cogen_fast import Checkpoint, Result, UnknownNoise, cogenerate
from cogen_fast.generators import MLPGenerator
from cogen_fast.methods import checkpoint
from cogen_fast.methods.settings import keywords
from cogen_fast.ops.spec import AdaptationRule
from cogen_fast.sampler import bases
from cogen_fast.support.digests import digest_of

pytestmark = pytest.mark.usefixtures("one_thread")

Content = tuple[dict[str, str], dict[str, Tensor]]

PAPER: dict[str, Any] = {"method": "paper", "ais_steps": 12, "leapfrog_steps": 3, "chains": 4}
KINDS: dict[str, tuple[Callable[[Any], bool], dict[str, Any]]] = {
    "paper": (lambda run: run.done >= 2, PAPER | {"form": "posterior", "keep_trace": True}),
    "paper form": (lambda run: run.done >= 2, PAPER),
    "per chain": (
        lambda run: run.done >= 2,
        PAPER | {"adaptation": AdaptationRule(per_chain=True)},
    ),
    "adaptive": (lambda run: len(run.infos) == 1, {"keep_trace": True, "budget": 30}),
    "many latents": (lambda run: len(run.infos) == 1, {"budget": 30}),
    "identity": (lambda run: len(run.infos) == 1, {"mass": "identity", "budget": 60}),
    "alone": (lambda run: len(run.infos) == 1, {"chains": 2, "budget": 60}),
    "frozen": (
        lambda run: run.repeats is not None and len(run.infos) == 1,
        {"evidence": "frozen", "budget": 60},
    ),
    "noise": (
        lambda run: len(run.annealing.infos) == 1,
        {"noise_std": UnknownNoise(0.01, 3.0), "budget": 40},
    ),
    "noise, in the rounds": (
        lambda run: len(run.infos) == 1,
        {"noise_std": UnknownNoise(0.01, 3.0), "budget": 40},
    ),
}
GENERATORS = {"fused": True, "general": False}
CASES = [
    (kind, name) for kind in KINDS for name in GENERATORS if name == "general" or kind[0] == "p"
]


# Where a file can be read, the run goes on to its end, so there are fewer kinds.
OF_GENERAL = ("adaptive", "many latents", "frozen", "noise, in the rounds")
RUN = [("paper", "fused"), *((kind, "general") for kind in OF_GENERAL)]


@cache
def generator(fused: bool) -> Any:
    torch.manual_seed(0)
    module = MLPGenerator((3, 8, 6)).double().eval().requires_grad_(False)
    weight = 2.0 * torch.randn(3, 6)
    return module if fused else lambda z: torch.tanh(z @ weight.to(z))


def run(kind: str, fused: bool, path: Path | None, seconds: float = 0.0) -> Result:
    """Two observations of three latents, which are many for one of the kinds.

    A file is written every so many ``seconds``, and at the end.
    """
    g = generator(fused)
    dtype = torch.float64 if fused else torch.float32
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(3), dtype=dtype)
    how = {"noise_std": 0.3, "latent_shape": 3, "seed": 5, "progress": False} | KINDS[kind][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "WHOLE", 2 if kind == "many latents" else bases.WHOLE)
        return cogenerate(
            g,
            g(z),
            torch.ones(6),
            **keywords({"checkpoint": path and Checkpoint(path, seconds), **how}),
        )


@cache
def written(kind: str, fused: bool) -> Content:
    """The file that an interrupted run has left."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path, save = Path(folder) / "run", checkpoint.save

        def interrupted(path: Path, run: Any, *rest: Any) -> None:
            save(path, run, *rest)
            if KINDS[kind][0](run):
                raise KeyboardInterrupt

        patch.setattr(checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(kind, fused, path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return file.metadata(), tensors


LaidOut = tuple[dict[str, Any], bytes]


def laid_out(tensors: dict[str, Tensor]) -> LaidOut:
    """The header of a file of these tensors, JSON after its length, and what follows it."""
    whole = save(tensors)
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


@cache
def laid_out_once(kind: str, fused: bool) -> LaidOut:
    """The header and the rest of a file with the tensors of an interrupted run."""
    return laid_out(written(kind, fused)[1])


def write(content: Content, path: Path, laid: LaidOut | None = None) -> None:
    """A file of this content, whose digest is right; ``laid`` where its tensors are laid out."""
    texts, tensors = content
    texts = {name: text for name, text in texts.items() if name != "digest"}
    header, data = laid or laid_out(tensors)
    header = {"__metadata__": texts | {"digest": digest_of(tensors, texts)}, **header}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


@cache
def asked(kind: str, fused: bool) -> tuple[Any, ...]:
    """The settings by which a resumed run checks its file."""
    found: list[tuple[Any, ...]] = []
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path, load = Path(folder) / "run", checkpoint.load

        def noted(path: Path, *rest: Any) -> Any:
            found.append(rest)
            return load(path, *rest)

        patch.setattr(checkpoint, "load", noted)
        write(written(kind, fused), path)
        run(kind, fused, path)
    return found[0]


def resumed(content: Content, kind: str, fused: bool, path: Path) -> Result:
    """A run resumed from a file of this content; unreadable files are refused without G."""
    same = content[1] is written(kind, fused)[1]
    write(content, path, laid_out_once(kind, fused) if same else None)
    checkpoint.load(path, *asked(kind, fused))
    return run(kind, fused, path, seconds=3600.0)


def misshapen(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every other shape and type that a reader might take for it."""
    for dim in range(value.ndim):
        yield f"one more in {dim}", torch.cat([value, value.narrow(dim, 0, 1)], dim)
        yield f"one in {dim}", value.narrow(dim, 0, 1) if value.shape[dim] > 1 else value[None]
        yield f"none in {dim}", value.narrow(dim, 0, 0)
    yield "a dimension more", value[None]
    yield "one number", value.flatten()[0]
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool):
        if dtype != value.dtype:
            yield str(dtype), value.to(dtype)


def out_of_range(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every kind of number out of range for a tensor."""
    if value.dtype.is_floating_point:
        most = torch.finfo(value.dtype).max
        for number in (torch.nan, torch.inf, most, -1.0):
            yield str(number), torch.full_like(value, number)
    elif value.dtype == torch.int64:
        for count in (-1, 0, 2**32 - 1, 2**62):
            yield str(count), torch.full_like(value, count)


def fields(tree: Any, name: str = "run") -> Iterator[tuple[str, Any, Any, Any]]:
    """The values of a tree: the name of each, its container, its key there, and the value."""
    if isinstance(tree, dict) and "tensor" in tree:
        return
    items = enumerate(tree) if isinstance(tree, list) else tree.items()
    for key, value in items:
        yield f"{name}.{key}", tree, key, value
        if isinstance(value, dict | list):
            yield from fields(value, f"{name}.{key}")


def few(name: str) -> bool:
    """The first of many temperatures, which is enough for a test."""
    return not any(part.isdigit() and int(part) > 0 for part in name.split("."))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_unchanged_file_is_gone_on_with(kind: str, name: str, tmp_path: Path) -> None:
    fused = GENERATORS[name]
    whole = run(kind, fused, None)
    found = resumed(written(kind, fused), kind, fused, tmp_path / "run")
    assert torch.equal(found.latents, whole.latents)
    assert torch.equal(found.energies, whole.energies)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_another_shape_or_type_of_any_tensor_is_named(kind: str, name: str, tmp_path: Path) -> None:
    fused = GENERATORS[name]
    texts, tensors = written(kind, fused)
    damaged = [each for each in tensors if each.startswith("run.") and few(each)]
    assert len(damaged) > 8
    for field in damaged:
        for what, value in misshapen(tensors[field]):
            content = texts, tensors | {field: value.contiguous().clone()}
            with pytest.raises(ValueError, match=r"checkpoint: .*run is damaged: run\S*: "):
                resumed(content, kind, fused, tmp_path / "run")
                pytest.fail(f"{field}: {what}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), RUN)
def test_other_numbers_are_named_or_do_no_harm(kind: str, name: str, tmp_path: Path) -> None:
    fused = GENERATORS[name]
    texts, tensors = written(kind, fused)
    for field in (each for each in tensors if each.startswith("run.") and few(each)):
        for what, value in out_of_range(tensors[field]):
            try:
                resumed((texts, tensors | {field: value}), kind, fused, tmp_path / "run")
            except ValueError as error:
                assert str(error).startswith(("checkpoint: ", "observation: ")), (
                    field,
                    what,
                    error,
                )


@pytest.mark.parametrize("kind", ["adaptive", "noise", "frozen"])
@pytest.mark.parametrize("field", ["infos", "trace"])
@pytest.mark.parametrize("change", ["one less", "one more"])
def test_a_history_of_another_length_is_named(
    kind: str, field: str, change: str, tmp_path: Path
) -> None:
    texts, tensors = written(kind, fused=False)
    tree = json.loads(texts["run"])
    run_of, rows = ("run.annealing", tree["annealing"]) if "annealing" in tree else ("run", tree)
    rows = rows[field]
    if rows is None:
        pytest.skip("no trace was asked for")
    before = len(rows)
    rows[:] = rows[:-1] if change == "one less" else [*rows, rows[-1]]
    content = texts | {"run": json.dumps(tree)}, tensors
    told = rf"^checkpoint: .* is damaged: {run_of}.{field}: expected {before} .* {len(rows)}$"
    with pytest.raises(ValueError, match=told):
        resumed(content, kind, fused=False, path=tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("adaptive", "run.state.turn.whole"),
        ("many latents", "run.state.turn.left"),
        ("many latents", "run.state.turn.right"),
        ("noise, in the rounds", "run.annealing.state.turn.whole"),
    ],
)
@pytest.mark.parametrize("factor", [1.05, 1e300])
def test_a_basis_that_is_not_orthogonal_is_named(
    kind: str, field: str, factor: float, tmp_path: Path
) -> None:
    texts, tensors = written(kind, fused=False)
    if kind == "many latents":  # it starts as 0, which rotates nothing
        assert (tensors[field] != 0.0).any()
    content = texts, tensors | {field: factor * tensors[field]}
    told = rf"^checkpoint: .* is damaged: {field.rsplit('.', 1)[0]}: expected an orthogonal basis"
    with pytest.raises(ValueError, match=told):
        resumed(content, kind, fused=False, path=tmp_path / "run")


@pytest.mark.parametrize("other", [5, True, 1.5, None, ["x"], {"x": 1}], ids=str)
def test_an_identity_that_is_no_text_is_told(other: Any, tmp_path: Path) -> None:
    texts, tensors = written("adaptive", False)
    identity = json.loads(texts["identity"]) | {"seed": other}
    content = texts | {"identity": json.dumps(identity)}, tensors
    with pytest.raises(ValueError, match=r"^checkpoint: .*run is damaged: .*identity"):
        resumed(content, "adaptive", False, tmp_path / "run")


def test_nesting_without_end_is_told(tmp_path: Path) -> None:
    texts, tensors = written("adaptive", False)
    tree = json.loads(texts["run"])
    tree["state"]["tuning"] = None
    for depth in (100, 900, 960, 985, 10_000):
        nest = "[" * depth + "]" * depth
        text = json.dumps(tree).replace('"tuning": null', f'"tuning": {nest}')
        content = texts | {"run": text}, tensors
        with pytest.raises(ValueError, match=r"^checkpoint: .*run is damaged: "):
            resumed(content, "adaptive", False, tmp_path / "run")


@pytest.mark.parametrize("noise", [1e-40, 1e-60])
@pytest.mark.parametrize("kind", ["paper", "adaptive"])
def test_what_a_run_writes_it_reads_however_large(kind: str, noise: float, tmp_path: Path) -> None:
    how = KINDS[kind][1] | {"noise_std": noise, "latent_shape": 3, "seed": 5, "progress": False}
    G = MLPGenerator((3, 8, 6)).double().eval()
    x, path = torch.zeros(6, dtype=torch.float64), tmp_path / "run"
    first = cogenerate(G, x, torch.ones(6), **keywords({"checkpoint": path, **how}))
    again = cogenerate(G, x, torch.ones(6), **keywords({"checkpoint": path, **how}))
    assert torch.equal(first.latents, again.latents)


OTHERS: tuple[Any, ...] = (
    None,
    -1,
    0,
    2**31,
    2**70,
    1.5,
    "text",
    True,
    [],
    {},
    {"tensor": "no"},
    [[]],
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), RUN)
def test_other_plain_values_are_named_or_do_no_harm(kind: str, name: str, tmp_path: Path) -> None:
    fused = GENERATORS[name]
    texts, tensors = written(kind, fused)
    for number, (field, *_) in enumerate(fields(json.loads(texts["run"]))):
        if not few(field):
            continue
        for other in OTHERS:
            tree = json.loads(texts["run"])
            _, holder, key, before = list(fields(tree))[number]
            if json.dumps(other) == json.dumps(before):
                continue
            holder[key] = other
            try:
                content = texts | {"run": json.dumps(tree)}, tensors
                resumed(content, kind, fused, tmp_path / "run")
            except ValueError as error:
                assert str(error).startswith("checkpoint: "), (field, other, error)
            else:
                assert other in (None, []) or type(other) is int, (field, other)

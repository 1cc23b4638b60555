"""The GPU benchmark's own code, as far as a CPU can run it: tiny cases, without useful figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import progressive_gpu
import pytest
import torch
from log import Log
from progressive_speed import Task

from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.generators.fast_progressive import FastProgressive
from cogen_fast.ops.progressive.folded import FoldedLayers, TorchNorms
from cogen_fast.ops.spec import MisfitSpec

TINY = (8, 3, 16)


def tiny(resolution: int, batch: int, fmap_base: int) -> Task:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(resolution, latent_size=6, fmap_base=fmap_base)
    generator.eval().requires_grad_(False)
    target = torch.randn(1, 3 * resolution**2)
    mask = (torch.rand(target.shape) < 0.5).to(torch.uint8)
    spec = MisfitSpec("mask", generator.output_shape, 1, target, mask, torch.ones(1, 1))
    return Task(generator, spec, torch.zeros(batch).long(), torch.randn(batch, 6))


class Counting(FoldedLayers):
    """Layers that add up the entries of what each operation takes and gives."""

    moved = 0

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.normed: list[int] = []

    def convolution(self, *how: Any) -> Any:
        return self.watched(super().convolution(*how))

    def upsampled(self, *how: Any) -> Any:
        return self.watched(super().upsampled(*how))

    def watched(self, layer: Any) -> Any:
        forward, backward = layer.forward, layer.backward

        def forth(x: Any) -> Any:
            out = forward(x)
            self.moved += x.numel() + out.out.numel()  # of the convolution; `norm` counts its own
            return out

        def back(grad: Any, preceding: Any, *rest: Any) -> Any:
            self.moved += grad.numel() + preceding.out.numel()
            return backward(grad, preceding, *rest)

        layer.forward, layer.backward = forth, back
        return layer

    def norm(self, x: Any, *how: Any) -> Any:
        self.moved += 2 * x.numel()
        self.normed.append(x.numel())
        return super().norm(x, *how)

    def norm_grad(self, grad: Any, preceding: Any, overwrite: bool = False) -> Any:
        self.moved += 3 * grad.numel()
        return super().norm_grad(grad, preceding, overwrite)

    def to_rgb_misfit(self, last: Any, *rest: Any) -> Any:
        self.moved += 2 * last.out.numel()
        return super().to_rgb_misfit(last, *rest)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's fast path in plain torch, and next to no time for timing."""

    def fast_path(self: ProgressiveGenerator, dtype: Any, folding: Any) -> FastProgressive:
        return FastProgressive(self.network(), FoldedLayers(dtype, TorchNorms(), folding))

    monkeypatch.setattr(ProgressiveGenerator, "fast_path", fast_path)
    monkeypatch.setattr(progressive_gpu, "task", tiny)
    monkeypatch.setattr(progressive_gpu, "SECONDS", 0.0)


def lines(log: Log) -> list[dict[str, Any]]:
    methods = [name for name in progressive_gpu.METHODS if not name.startswith("compile")]
    for dtype in progressive_gpu.CEILINGS:
        log.add(piece="ceiling", dtype=dtype, **progressive_gpu.ceiling(dtype, "cpu", 16))
    log.add(piece="bandwidth", **progressive_gpu.bandwidth("cpu", 64))
    for method in methods:
        found = progressive_gpu.speed(TINY, method, "cpu")
        log.add(piece="speed", case=list(TINY), method=method, **found)
    for replayed in (True, False):
        found = progressive_gpu.moves(TINY, "float32", replayed, "cpu")
        key = {"case": list(TINY), "gradient_dtype": "float32", "replayed": replayed}
        log.add(piece="moves", **key, **found)
    found = progressive_gpu.acceptance("128 px, noise 0.5", "bfloat16", "cpu", budget=6)
    log.add(piece="acceptance", problem="128 px, noise 0.5", gradient_dtype="bfloat16", **found)
    log.add(piece="speed", case=[1024, 16, 8192], method="eager tf32", out_of_memory=True)
    return log.lines


def test_every_piece_but_compilation_runs_and_has_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*_: int) -> Task:
        return tiny(*TINY)

    monkeypatch.setattr(progressive_gpu, "task", small)
    made = lines(Log(tmp_path / "log.jsonl"))
    rows = progressive_gpu.table(made).splitlines()
    methods = len(progressive_gpu.METHODS) - 1  # without compilation
    assert len(rows) == 1 + methods + 1 + (1 + 2) + (1 + 1)
    assert "out of memory" in rows[1 + methods]
    moves = rows[3 + methods : 5 + methods]
    assert all("8px x3 16" in row for row in (*rows[1 : 1 + methods], *moves))
    assert progressive_gpu.table(Log(tmp_path / "log.jsonl").lines) == "\n".join(rows)


def test_bytes_moved_are_what_the_tensors_of_a_walk_hold() -> None:
    t = tiny(*TINY)
    layers = Counting(torch.float32, TorchNorms())
    fast = FastProgressive(t.generator.network(), layers)
    fast.energy_and_grad(t.z, t.spec, t.index)
    latent, dense = layers.normed[:2]  # these precede the first convolution
    counted = progressive_gpu.bytes_moved(t, 4)
    assert counted == 4 * (layers.moved - 2 * latent - 2 * dense - 3 * latent)


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(t: Task) -> Any:
        right = progressive_gpu.by_autograd(t, t.generator, "float32")
        return lambda z: (right(z)[0], 1.1 * right(z)[1])

    monkeypatch.setitem(progressive_gpu.METHODS, "eager tf32", ("float32", wrong))
    with pytest.raises(AssertionError, match=r"^eager tf32: another gradient, by 0\.1"):
        progressive_gpu.speed(TINY, "eager tf32", "cpu")


def test_a_command_goes_on_where_the_last_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    broken = True

    def work(name: str) -> dict[str, Any]:
        made.append(name)
        if name == "b" and broken:
            raise RuntimeError("no such kernel")
        return {"multiply_adds_per_second": 1.0}

    names = ("a", "b", "c")
    monkeypatch.setattr(
        progressive_gpu,
        "pieces",
        lambda _: [({"piece": "ceiling", "dtype": n}, lambda n=n: work(n)) for n in names],
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    command = ["progressive_gpu", "--out", str(tmp_path / "log.jsonl")]
    monkeypatch.setattr(sys, "argv", [*command, "--seconds", "0"])
    progressive_gpu.main()
    assert made == []
    assert "more is left to do" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="1 pieces failed"):
        progressive_gpu.main()
    assert made == ["a", "b", "c"]
    assert "RuntimeError: no such kernel" in capsys.readouterr().out
    broken = False
    progressive_gpu.main()
    assert made == ["a", "b", "c", "b"]


def test_pieces_have_names_of_their_own() -> None:
    names = [str(key) for key, _ in progressive_gpu.pieces("cuda")]
    assert len(set(names)) == len(names)

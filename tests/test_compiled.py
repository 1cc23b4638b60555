"""`torch.compile` of a user's generator: used where it works, and noted where it does not."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from processes import in_a_process
from runs import Failing, assert_same, network
from torch import Tensor, nn

from cogen_fast import Compute, Result, cogenerate
from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.methods.settings import keywords

pytestmark = pytest.mark.usefixtures("one_thread")


def run(generator: nn.Module, **options: Any) -> Result:
    x = torch.linspace(-0.5, 0.5, 5)
    how = {"method": "paper", "ais_steps": 3, "leapfrog_steps": 2, "noise_std": 0.3}
    return cogenerate(
        generator, x, torch.ones(5), **keywords({"progress": False, **(how | options)})
    )


def asked(monkeypatch: pytest.MonkeyPatch, function: Any) -> list[Any]:
    """Replace `torch.compile` by ``function``, and list what it is asked to compile."""
    seen: list[Any] = []

    def compiling(generator: Any, **_: Any) -> Any:
        seen.append(generator)
        return function(generator)

    monkeypatch.setattr(torch, "compile", compiling)
    return seen


class Counted:
    """A compiled generator that counts its calls."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.calls = generator, 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        x: Tensor = self.generator(z)
        return x


def test_the_compiled_generator_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Counted] = []
    generator = Failing()  # never fails; it is no network that C++ code would take

    def compiling(generator: Any) -> Counted:
        made.append(Counted(generator))
        return made[-1]

    plain = run(generator, backend="native")
    seen = asked(monkeypatch, compiling)
    found = run(generator, backend="native", compile=True)
    assert seen == [generator]
    assert made[0].calls == 1 + 1 + 3 * 2 + 1  # a trial, the start, 3 x 2 gradients, the images
    assert_same(found, plain, but=("settings", "notes"))
    assert "generator: compiled by torch.compile" in found.notes
    assert found.settings["compile"] is True
    # With gradients in half precision there are two trials more, and a further call for the
    # energies at the start and at each of three temperatures.
    run(generator, backend="native", compile=True, gradient_dtype="bfloat16")
    assert made[1].calls == 1 + 2 + (1 + 3 * 2) + (1 + 3) + 1


def untraceable(generator: Any) -> Any:
    def call(z: Tensor) -> Tensor:
        raise RuntimeError("cannot be traced")

    return call


def wrong(generator: Any) -> Any:
    return lambda z: 2.0 * generator(z)


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (untraceable, "compile: torch.compile failed and is not used: cannot be traced"),
        (wrong, "compile: torch.compile gave other outputs than G and is not used"),
    ],
    ids=["fails", "wrong"],
)
def test_a_failure_is_told_and_the_run_goes_on(
    function: Any, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(network(), backend="native")
    asked(monkeypatch, function)
    with pytest.warns(UserWarning, match="^compile: torch.compile"):
        found = run(network(), backend="native", compile=True)
    assert note in found.notes
    assert_same(found, plain, but=("settings", "notes"))


@pytest.mark.parametrize("kind", ["dense", "progressive"])
def test_a_faster_way_is_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asked(monkeypatch, lambda generator: generator)
    if kind == "dense":
        found = run(network(), compile=True)
    else:
        generator = ProgressiveGenerator(4, latent_size=3, feature_maps=[3])
        how = {"method": "paper", "ais_steps": 2, "progress": False, "compile": True}
        found = cogenerate(generator, torch.zeros(3, 4, 4), torch.ones(4, 4), **keywords(how))
    assert seen == []
    assert "compile: not used, because this generator has a faster path of its own" in found.notes
    assert found.settings["backend"] == "fused"


def test_dense_layers_are_compiled_where_no_whole_run_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = asked(monkeypatch, lambda generator: generator)
    found = cogenerate(
        network(),
        torch.zeros(5),
        torch.ones(5),
        noise_std=0.3,
        budget=60,
        progress=False,
        compute=Compute(compile=True),
    )
    assert len(seen) == 1
    assert "generator: compiled by torch.compile" in found.notes


def test_compile_must_be_a_boolean() -> None:
    with pytest.raises(TypeError, match=r"^compile: expected True or False, got 'yes'"):
        run(network(), compile="yes")


def compile_and_compare() -> None:
    generator = network().double()
    plain, found = (
        run(generator, backend="native", compile=compile, gradient_dtype=gradient)
        for compile, gradient in ((False, None), (True, None))
    )
    assert "generator: compiled by torch.compile" in found.notes
    torch.testing.assert_close(found.latents, plain.latents, rtol=0, atol=1e-9)
    half = run(network(), backend="native", compile=True, gradient_dtype="bfloat16")
    assert "generator: compiled by torch.compile" in half.notes
    assert bool(half.latents.isfinite().all())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_what_torch_compiles_is_the_same_run_but_for_rounding() -> None:
    """With some versions of setuptools, torch.compile only works in a new process."""
    in_a_process(__file__, "compile_and_compare")

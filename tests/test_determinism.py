"""A run is a pure function of inputs and seed; an interrupted one goes on bit for bit."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from runs import Failing, assert_same, both_backends, network
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cogen_fast import Checkpoint, Operator, Result, cogenerate
from cogen_fast.methods import checkpoint
from cogen_fast.methods.settings import keywords

MASK = np.array([1, 1, 0, 1, 0])
SAVE = checkpoint.save
SETTINGS: dict[str, Any] = {
    "method": "paper",
    "noise_std": 0.3,
    "chains": 3,
    "ais_steps": 12,
    "leapfrog_steps": 3,
    "step_size": 0.1,
    "seed": 4,
    "keep_trace": True,
    "progress": False,
}


def x_obs(seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(seed))


def run(generator: Any = None, **changes: Any) -> Result:
    arguments = {"x_obs": x_obs(), "mask": MASK} | SETTINGS | changes
    return cogenerate(network() if generator is None else generator, **keywords(arguments))


# --- seeds --------------------------------------------------------------------------------------


@both_backends
def test_same_seed_same_result(backend: str) -> None:
    assert_same(run(backend=backend), run(backend=backend))


def test_other_seed_other_result() -> None:
    first, second = run(seed=4), run(seed=5)
    assert first.trace is not None
    assert second.trace is not None
    assert (first.trace[0] != second.trace[0]).all()  # the prior draws differ already
    assert (first.latents != second.latents).all()


def test_all_64_bits_of_the_seed_count() -> None:
    starts = [run(seed=s, ais_steps=1).trace for s in (1, 1 + 2**32, 1 + 2**63, 2**64 - 1)]
    for i, first in enumerate(starts):
        for second in starts[:i]:
            assert first is not None
            assert second is not None
            assert not torch.equal(first[0], second[0])


def test_observations_of_equal_data_draw_different_noise() -> None:
    result = run(x_obs=x_obs()[:1].expand(2, -1))
    assert (result.latents[0] != result.latents[1]).all()


def test_observation_ids_name_the_noise() -> None:
    result = run(observation_ids=[1, 0])
    usual = run()
    assert result.trace is not None
    assert usual.trace is not None
    assert torch.equal(result.trace[0, 0], usual.trace[0, 1])
    assert torch.equal(result.trace[0, 1], usual.trace[0, 0])


def test_global_generators_are_neither_read_nor_written() -> None:
    generator = network()  # its layers' own initialisation draws from the global generator
    torch.manual_seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = run(generator)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    torch.manual_seed(2)
    np.random.seed(2)
    assert_same(first, run(generator))


def test_kept_traces_and_progress_bars_change_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    plain, shown = run(keep_trace=False), run(progress=True)
    assert torch.equal(plain.latents, shown.latents)
    assert plain.trace is None
    assert "beta" in capsys.readouterr().err


# --- checkpoints --------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("adaptation", ["published", "per-chain"])
@pytest.mark.parametrize(
    ("at", "left"),
    [(8, 12), (21, 8), (40, 1)],
    ids=["first-temperature", "middle", "last-temperature"],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    at: int, left: int, adaptation: str, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    how = {"adaptation": adaptation, "backend": backend}
    # Calls of the generator: one finds the shape of latents, three check it, one tells it from
    # other functions, one starts the chains, and then there are three per temperature.
    with pytest.raises(KeyboardInterrupt):
        run(Failing(at), checkpoint=path, **how)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    generator = Failing()
    resumed = run(generator, checkpoint=path, **how)
    assert generator.calls == 5 + 3 * left + 2  # the last calls are for outputs and frames
    assert_same(resumed, run(Failing(), **how))
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_run_interrupted_twice_goes_on_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    for at in (15, 20):
        with pytest.raises(KeyboardInterrupt):
            run(Failing(at), checkpoint=path)
    assert_same(run(Failing(), checkpoint=path), run(Failing()))


def test_paper_form_goes_on_too(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    form: dict[str, Any] = {"form": "paper", "schedule": "sigmoid-raw"}
    with pytest.raises(KeyboardInterrupt):
        run(Failing(25), checkpoint=path, **form)
    assert_same(run(Failing(), checkpoint=path, **form), run(Failing(), **form))


def test_a_finished_run_is_read_back_without_moving(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first = run(Failing(), checkpoint=path)
    generator = Failing()
    assert_same(run(generator, checkpoint=path), first)
    assert generator.calls == 7  # the checks of G, the outputs, and the frames


@pytest.mark.slow
def test_what_several_temperatures_share_is_saved_once(tmp_path: Path) -> None:
    # In 130 latents directions are found anew at every third temperature only.
    path = tmp_path / "run.safetensors"
    how: dict[str, Any] = {"noise_std": 1.0, "latent_shape": 130, "progress": False}
    result = cogenerate(
        lambda z: z, torch.zeros(1, 130), torch.ones(130), **keywords({"checkpoint": path, **how})
    )
    learning = int((result.betas.amin(1) < 1.0).sum()) + 1
    saved = [name for name in load_file(path) if name.endswith((".stiff", ".vectors"))]
    assert learning > 6
    assert len(saved) <= -(-learning // 3)


def test_a_checkpoint_is_saved_as_often_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"

    class Looking(Failing):
        seen: list[int]

        def forward(self, z: Tensor) -> Tensor:
            self.seen.append(path.stat().st_mtime_ns if path.exists() else 0)
            return super().forward(z)

    for seconds, expected in ((0.0, 6), (1e6, 1)):
        generator = Looking()
        generator.seen = []
        run(generator, checkpoint=Checkpoint(path, seconds))
        # The run is saved at its start, which shows that the path can be written, and after each
        # temperature.
        times = {when for when in generator.seen[:-4] if when}  # before the last temperature
        assert len(times) >= expected
        assert seconds == 0.0 or len(times) == expected
        path.unlink()


def full_disk(after: int) -> Callable[..., None]:
    """`checkpoint.save` on a disk that is full after so many writes."""
    written = itertools.count()

    def saved(*arguments: Any) -> None:
        if next(written) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        SAVE(*arguments)

    return saved


def test_a_disk_that_is_full_before_the_run_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save", full_disk(0))
    generator = Failing(10**9)
    with pytest.raises(OSError, match=r"^checkpoint: .*run cannot be written: .*No space left"):
        run(generator, checkpoint=tmp_path / "run")
    assert generator.calls < 12


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_cannot_be_saved_is_not_lost(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = tmp_path / "run", run(Failing())
    monkeypatch.setattr(checkpoint, "save", full_disk(after))
    with pytest.warns(UserWarning, match=r"^checkpoint: .*run could not be written .*No space"):
        assert_same(run(Failing(), checkpoint=Checkpoint(path, 0.0)), expected)
    # An interrupted run is returned, too.
    path.unlink()
    monkeypatch.setattr(checkpoint, "save", full_disk(after))
    with pytest.warns(UserWarning, match=r"^checkpoint: "):
        found = run(Failing(25), checkpoint=Checkpoint(path, 0.0))
    assert not found.complete
    # A later run can continue from what was written before the disk was full.
    monkeypatch.undo()
    assert_same(run(Failing(), checkpoint=path), expected)


def test_other_errors_leave_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(ZeroDivisionError):
        run(Failing(30, ZeroDivisionError), checkpoint=Checkpoint(path, 0.0))
    assert_same(run(Failing(), checkpoint=path), run(Failing()))
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


CHILD = '''
import sys, time
import torch
from torch import nn


class Slow(nn.Module):
    """A linear map that takes its time."""

    def __init__(self, seconds):
        super().__init__()
        self.map = nn.Linear(3, 4)
        with torch.no_grad():
            self.map.weight.copy_(torch.arange(12.0).reshape(4, 3).cos())
            self.map.bias.copy_(torch.arange(4.0).sin())
        self.seconds = seconds

    def forward(self, z):
        time.sleep(self.seconds)
        return torch.tanh(self.map(z))


def sample(seconds, **options):
    from cogen_fast import Paper, cogenerate

    return cogenerate(
        Slow(seconds), torch.tensor([0.3, 0.1, -0.2, 0.0]), [1, 1, 0, 1], noise_std=0.2, chains=5,
        method=Paper(ais_steps=60, leapfrog_steps=2, step_size=0.1, keep_trace=True), seed=9,
        progress=False, **options,
    )


if __name__ == "__main__":
    from cogen_fast import Checkpoint

    sample(0.02, checkpoint=Checkpoint(sys.argv[1], 0.0))
'''


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_until(condition: Callable[[], bool], child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120.0
    while not condition():
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    script, path = tmp_path / "child.py", tmp_path / "run.safetensors"
    script.write_text(CHILD)
    child = subprocess.Popen([sys.executable, str(script), str(path)], cwd=tmp_path)
    try:
        wait_until(path.exists, child)
        seen = set()  # the first file, and those that replaced it

        def replaced() -> bool:
            seen.add(path.stat().st_mtime_ns)
            return len(seen) > 2

        wait_until(replaced, child)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    module = imported(script)
    calls = 0
    forward = module.Slow.forward

    def counted(self: Any, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(self, z)

    module.Slow.forward = counted
    resumed = module.sample(0.0, checkpoint=path)
    assert 4 < calls < 4 + 120
    assert resumed.complete
    assert_same(resumed, module.sample(0.0))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted") / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Failing(25), checkpoint=path)
    return path


def other_weights() -> Failing:
    generator = Failing()
    generator.net = network(seed=1)
    return generator


@pytest.mark.parametrize(
    ("generator", "changes", "name"),
    [
        (other_weights, {}, "generator"),
        (network, {}, "generator"),
        (Failing, {"x_obs": x_obs(2)}, "observation"),
        (Failing, {"x_obs": x_obs()[:1]}, "observation"),
        (Failing, {"mask": [1, 1, 1, 1, 0]}, "observation"),
        (Failing, {"noise_std": 0.4}, "noise|misfit|observation"),
        (Failing, {"misfit": lambda y, t: ((y - t) ** 2).sum(-1), "noise_std": None}, "misfit"),
        (Failing, {"seed": 5}, "seed: 4 in the file, 5 in this call"),
        (Failing, {"chains": 4}, "chains: 3 in the file, 4 in this call"),
        (Failing, {"ais_steps": 13}, "ais_steps: 12 in the file, 13 in this call"),
        (Failing, {"hmc_steps": 2}, "hmc_steps: 1 in the file, 2 in this call"),
        (Failing, {"leapfrog_steps": 4}, "leapfrog_steps: 3 in the file, 4 in this call"),
        (Failing, {"step_size": 0.2}, "step_size: 0.1 in the file, 0.2 in this call"),
        (Failing, {"adaptation": None}, "adaptation"),
        (Failing, {"adaptation": "per-chain"}, "adaptation"),
        (Failing, {"schedule": "linear"}, "betas.*schedule"),
        (Failing, {"form": "paper", "schedule": "sigmoid-raw"}, "form: posterior in the file"),
        (Failing, {"observation_ids": [7, 8]}, "observation_ids"),
        (Failing, {"backend": "reference"}, "backend: native in the file, reference in this call"),
        (Failing, {"keep_trace": False}, "keep_trace"),
    ],
    ids=[
        "weights", "kind-of-generator", "values", "batch", "mask", "noise", "misfit", "seed",
        "chains", "ais_steps", "hmc_steps", "leapfrog_steps", "step_size", "adaptation",
        "per-chain", "schedule", "form", "observation_ids", "backend", "keep_trace",
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(
    interrupted: Path, generator: Callable[[], nn.Module], changes: dict[str, Any], name: str
) -> None:
    before = interrupted.read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint: .*another run \(.*(?:{name})"):
        run(generator(), checkpoint=interrupted, **changes)
    assert interrupted.read_bytes() == before


def test_only_what_differs_is_named(interrupted: Path) -> None:
    with pytest.raises(ValueError, match="another run") as caught:
        run(Failing(), checkpoint=interrupted, seed=5)
    assert "chains" not in str(caught.value)
    assert "generator" not in str(caught.value)


def affine(z: Tensor, scale: float) -> Tensor:
    return scale * z


@pytest.mark.parametrize("what", ["generator", "operator", "misfit"])
def test_functions_that_do_something_else_are_refused(what: str, tmp_path: Path) -> None:
    """A function has no weights to compare, but a checkpoint of another function is refused."""
    path = tmp_path / "run.safetensors"

    def sample(scale: float, stop: bool) -> Result:
        calls = 0

        def generator(z: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if stop and calls == 20:
                raise KeyboardInterrupt
            return affine(z, scale if what == "generator" else 1.0)

        changes: dict[str, Any] = {"latent_shape": 5, "noise_std": 0.3}
        if what == "operator":
            changes["mask"] = Operator(lambda x: affine(x, scale))
        if what == "misfit":
            changes["misfit"] = lambda y, t: affine(((y - t) ** 2).sum(-1), scale)
            changes["noise_std"] = None
        return run(generator, checkpoint=path, **changes)

    with pytest.raises(KeyboardInterrupt):
        sample(1.0, stop=True)
    with pytest.raises(ValueError, match=f"checkpoint: .*another .*{what}"):
        sample(2.0, stop=False)
    assert sample(1.0, stop=False).complete


def rewritten(path: Path, drop: str | None = None, metadata: dict[str, str] | None = None) -> None:
    tensors = load_file(path)
    if drop is not None:
        del tensors[drop]
    save_file(tensors, path, {} if metadata is None else metadata)


def test_a_damaged_checkpoint_is_refused(interrupted: Path, tmp_path: Path) -> None:
    whole = interrupted.read_bytes()
    path = tmp_path / "run.safetensors"
    for content in (b"", b"not a checkpoint", whole[:100], whole[:-1], whole[len(whole) // 2 :]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint: .*damaged"):
            run(Failing(), checkpoint=path)
        assert path.read_bytes() == content


def test_a_file_of_another_kind_is_refused(interrupted: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(interrupted.read_bytes())
    rewritten(path)
    with pytest.raises(ValueError, match=r"checkpoint: .* is not a 'cogen-fast run 12' file"):
        run(Failing(), checkpoint=path)


@pytest.mark.parametrize("damage", ["tensor-missing", "identity-missing"])
def test_an_incomplete_checkpoint_is_refused(
    interrupted: Path, tmp_path: Path, damage: str
) -> None:
    from safetensors import safe_open

    path = tmp_path / "run.safetensors"
    path.write_bytes(interrupted.read_bytes())
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    if damage == "identity-missing":
        del metadata["identity"]
    rewritten(path, "run.state.hmc.latents" if damage == "tensor-missing" else None, metadata)
    with pytest.raises(ValueError, match="checkpoint: "):
        run(Failing(), checkpoint=path)


@pytest.mark.parametrize("place", ["missing/run.safetensors", "."])
def test_a_checkpoint_needs_a_place(tmp_path: Path, place: str) -> None:
    generator = Failing()
    with pytest.raises(ValueError, match="checkpoint: expected a file in an existing folder"):
        run(generator, checkpoint=tmp_path / place)
    assert generator.calls == 0


# --- interruption without a checkpoint ------------------------------------------------------------


def test_ctrl_c_without_a_checkpoint_returns_what_is_there() -> None:
    result = run(Failing(5 + 3 * 5 + 2))  # in the sixth temperature
    whole = run(Failing())
    assert not result.complete
    assert result.beta_reached == whole.betas[4, 0].item()
    assert result.log_normaliser is None
    assert result.log_evidence is None
    assert "interrupted" in result.reasons["log_evidence"]
    assert "interrupted" in result.reasons["log_normaliser"]
    assert "UNFINISHED at beta" in repr(result)
    for name in ("acceptance", "step_size", "energy_history"):
        found, expected = getattr(result, name), getattr(whole, name)
        assert torch.equal(found[:5], expected[:5])
        assert found[5:].isnan().all()
    assert result.trace is not None
    assert whole.trace is not None
    assert torch.equal(result.trace[:6], whole.trace[:6])
    assert torch.equal(result.latents, whole.trace[5])
    assert result.trace[6:].isnan().all()


def test_ctrl_c_in_the_first_temperature_returns_the_prior() -> None:
    result = run(Failing(5 + 2))
    assert not result.complete
    assert result.beta_reached == 0.0
    assert result.trace is not None
    assert torch.equal(result.latents, result.trace[0])
    assert repr(result)

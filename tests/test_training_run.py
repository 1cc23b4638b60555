"""A training from start to end: files, killing, resuming, several processes, the command line."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import discs
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cogen_fast import load_generator
from cogen_fast.cli.main import main
from cogen_fast.results import grids
from cogen_fast.support.digests import digest_of_tree
from cogen_fast.training.config import TrainingConfig
from cogen_fast.training.distributed import Processes
from cogen_fast.training.progressive import Trainer
from cogen_fast.training.run import LossMeter, TrainingFiles, sample_images, stop_signals, train
from cogen_fast.training.swd import swd

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL: dict[str, Any] = {
    "resolution": 8,
    "channels": 1,
    "latent_size": 6,
    "feature_maps": (8, 6),
    "phase_images": 160,
    "total_images": 960,
    "batch": 8,
    "loss": "r1",
}
OPTIONS = (
    *("--resolution=8", "--latent-size=6", "--feature-maps=8,6", "--phase-images=160"),
    *("--batch=8", "--loss=r1", "--total-images=960", "--quiet"),
)
LAST = "snapshots/000000960"


def config(**other: Any) -> TrainingConfig:
    return TrainingConfig(**(SMALL | other))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "discs.npz"
    np.savez(path, discs(side=8).pixels)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """An uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(command(data, folder)) == 0
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    cache = str(data.parent / "cache")
    start = ["train", "--data", str(data), "--cache", cache, "--out", str(out), "--device", "cpu"]
    return [*start, *OPTIONS, *more]


def started(launcher: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    # The working folder is not the checkout, whose sources must not shadow the installed package.
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "cogen_fast", *arguments],
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def log(folder: Path) -> list[dict[str, Any]]:
    """The log without measured times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("images_per_second") > 0.0
    return lines


def assert_same_training(folder: Path, other: Path) -> None:
    for kind in ("raw", "average"):
        a, b = (load_file(f / f"{LAST}-{kind}.safetensors") for f in (folder, other))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert log(folder) == log(other)


def test_what_a_training_writes(whole: Path) -> None:
    assert sorted(p.name for p in whole.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "log.jsonl",
        "snapshots",
    ]
    lines = log(whole)
    assert [line["images"] for line in lines] == [400, 800]
    assert lines[0] | {"resolution": 8, "alpha": 1.0, "steps": 50} == lines[0]
    settings = json.loads((whole / "config.json").read_text())
    assert settings["resolution"] == 8 and settings["batch"] == {"4": 8, "8": 8}
    average, raw = (
        load_generator(whole / f"{LAST}-{kind}.safetensors") for kind in ("average", "raw")
    )
    assert average.output_shape == raw.output_shape == (1, 8, 8)
    assert not torch.equal(average.to_rgb.weight, raw.to_rgb.weight)
    with Image.open(whole / f"{LAST}.png") as sheet:
        assert sheet.size == (8 * 57 - 1, 8 * 57 - 1)
        assert len(sheet.getcolors(100_000) or []) > 20


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {path}")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_training_goes_on_where_it_was(
    how: signal.Signals, whole: Path, data: Path, tmp_path: Path
) -> None:
    arguments = command(data, tmp_path, "--checkpoint-seconds", "0")
    process = started([], arguments)
    wait_for(tmp_path / "checkpoint.pt", process)
    process.send_signal(how)
    output = process.communicate(timeout=60)
    assert not (tmp_path / f"{LAST}.png").exists(), "it was over before it was killed"
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), output
    shown = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["shown"]
    assert 0 < shown < 960
    assert main(arguments) == 0
    assert_same_training(tmp_path, whole)
    assert not list(tmp_path.glob(".*")), "temporary files are left"


def test_a_finished_training_is_not_done_again(whole: Path, data: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (whole / "snapshots").iterdir()}
    assert main(command(data, whole)) == 0
    assert {p: p.stat().st_mtime_ns for p in (whole / "snapshots").iterdir()} == before


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(data: Path, tmp_path: Path) -> None:
    """They agree except for rounding, at which Adam's first steps may have the other sign for
    weights that hardly matter.

    Every second image goes to each process, which is how one process groups eight for the
    minibatch deviation, so the gradients are the same.
    """
    short = ["--phase-images", "8", "--total-images", "40"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = started(launcher, command(data, tmp_path / "two", *short))
    output = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert main(command(data, tmp_path / "one", *short)) == 0
    two, one = (
        load_file(tmp_path / name / "snapshots/000000040-raw.safetensors")
        for name in ("two", "one")
    )
    apart = torch.cat([(two[name] - one[name]).abs().flatten() for name in one])
    assert float((apart < 1e-5).float().mean()) > 0.98  # a step of Adam moves a weight by 1e-3
    assert apart.max() > 0.0


@pytest.mark.slow
def test_snapshots_come_at_the_counts_asked_for(tmp_path: Path) -> None:
    outcome = train(discs(side=8), config(), tmp_path, snapshots=(100, 320, 960), progress=False)
    names = [path.name for path in outcome.snapshots]
    counts = ["000000104", "000000320", "000000960"]
    assert names == [f"{count}-average.safetensors" for count in counts]
    assert outcome.complete and outcome.shown == 960
    # At 104 images the network still has 4 px, and is a valid generator.
    assert load_generator(outcome.snapshots[0]).output_shape == (1, 4, 4)


def test_another_training_is_not_gone_on_with(whole: Path) -> None:
    before = (whole / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"^out: .*another training: seed=0 \(now 3\)"):
        train(discs(side=8), config(seed=3), whole, progress=False)
    assert (whole / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"hello", b"half"])
def test_a_damaged_checkpoint_is_refused(content: bytes, whole: Path, tmp_path: Path) -> None:
    good = (whole / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(
        good[: len(good) // 2] if content == b"half" else content
    )
    with pytest.raises(ValueError, match=r"^out: .*checkpoint.pt is damaged"):
        train(discs(side=8), config(), tmp_path, progress=False)


@pytest.mark.slow
def test_a_flipped_bit_is_refused(whole: Path, tmp_path: Path) -> None:
    """The bit is in a value for which any other would be valid too; only the digest shows it."""
    good = (whole / "checkpoint.pt").read_bytes()
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    weights = [state["generator"], state["averaged"], state["discriminator"]]
    for value in (weight for part in weights for weight in part.values() if weight.numel() > 3):
        raw = value.flatten()[1:3].numpy().tobytes()
        where = good.index(raw)
        flipped = bytearray(good)
        flipped[where + 1] ^= 4
        (tmp_path / "checkpoint.pt").write_bytes(flipped)
        with pytest.raises(
            ValueError, match=r"checkpoint.pt is damaged: its content does not match"
        ):
            train(discs(side=8), config(), tmp_path, progress=False)


HEADS: dict[str, dict[str, Any]] = {
    "no identity": {"identity": None},
    "identity of a number": {"identity": "5"},
    "identity of a list": {"identity": "[]"},
    "nested identity": {"identity": "[" * 100_000},
    "count of text": {"count": "x"},
    "negative count": {"count": -1},
    "sums of a list": {"sums": [1]},
    "sums of three": {"sums": {"loss_generator": torch.zeros(3)}},
    "sums of NaN": {"sums": {"loss_generator": torch.tensor(torch.nan)}},
}


@pytest.mark.parametrize("head", HEADS)
def test_what_is_beside_the_weights_is_checked_too(head: str, whole: Path, tmp_path: Path) -> None:
    state = torch.load(whole / "checkpoint.pt", weights_only=True) | HEADS[head]
    del state["digest"]
    torch.save(state | {"digest": digest_of_tree(state)}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        ValueError, match=r"^out: .*checkpoint.pt is (damaged: |the checkpoint of another)"
    ):
        train(discs(side=8), config(), tmp_path, progress=False)


@pytest.mark.parametrize("line", ["{}", '{"images": "a"}', '{"images": null}', "x}", '"}'])
def test_a_log_of_something_else_is_told(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"^out: expected "):
        train(discs(side=8), config(), tmp_path, progress=False)


def spoilt(value: Any) -> Iterator[Any]:
    """Other values in place of a value of a checkpoint."""
    yield from ("text", -1, None, [], 1.5)
    if isinstance(value, Tensor):
        yield value[None].clone()
        yield torch.cat([value.reshape(-1), value.reshape(-1)[:1]])
        yield torch.full_like(value, torch.nan)


def leaves(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each value of a checkpoint, as the container that holds it and its key there."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        if isinstance(value, dict | list):
            yield from leaves(value)
        yield tree, key


@pytest.mark.slow
def test_whatever_else_a_checkpoint_holds_is_refused(whole: Path, tmp_path: Path) -> None:
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    del state["digest"]
    tried = 0
    for number, (holder, key) in list(enumerate(leaves(state)))[::3]:
        for other in spoilt(holder[key]):
            damaged = copy.deepcopy(state)
            there, name = list(leaves(damaged))[number]
            there[name] = other
            torch.save(damaged | {"digest": digest_of_tree(damaged)}, tmp_path / "checkpoint.pt")
            try:
                train(discs(side=8), config(), tmp_path, progress=False)
            except (ValueError, TypeError) as error:
                assert str(error).startswith("out: "), (key, other, error)
                tried += 1
    assert tried > 100


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 600])
def test_divergence_is_told_and_spoils_nothing(seconds: float, tmp_path: Path) -> None:
    """Divergence is noticed between two lines of the log and at the end, too."""
    settings = config(learning_rate=1e5, phase_images=80, total_images=320)
    with pytest.raises(ValueError, match=r"^learning_rate: training has diverged, "):
        train(discs(side=8), settings, tmp_path, checkpoint_seconds=seconds, progress=False)
    assert not list((tmp_path / "snapshots").iterdir())
    if seconds == 0:
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert state["shown"] > 0
        assert all(bool(weight.isfinite().all()) for weight in state["generator"].values())


@pytest.mark.slow
def test_training_on_other_images_is_not_gone_on_with(tmp_path: Path) -> None:
    settings = config(total_images=488)
    train(discs(side=8), settings, tmp_path, progress=False)
    for other in (discs(side=8, seed=7), discs(side=8).split(10)[0]):
        with pytest.raises(ValueError, match=r"^out: .*another training: images='96, checksum "):
            train(other, settings, tmp_path, progress=False)


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    left = (tmp_path / ".checkpoint.pt.abc.pt", tmp_path / "snapshots/.000000960-raw.x.safetensors")
    for path in left:
        path.write_text("half")
    train(discs(side=8), config(total_images=488), tmp_path, progress=False)
    assert not any(path.exists() for path in left)


@pytest.mark.slow
def test_the_speed_after_a_resume_is_that_of_its_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed_after(90, monkeypatch, tmp_path, checkpoint_seconds=0)
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    train(discs(side=8), config(), tmp_path, progress=False, checkpoint_seconds=1e9)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    # A step has eight images. The clock ticks once per step and a few times more.
    assert 4.0 < line["images_per_second"] <= 8.0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"out": 3}, TypeError, "out: expected a path, got 3"),
        ({"snapshots": (0,)}, ValueError, "snapshots: .* got 0"),
        ({"snapshots": "100"}, ValueError, "snapshots: expected counts of images"),
        ({"snapshots": (961,)}, ValueError, r"snapshots: .* total_images=960, got \[961\]"),
        ({"checkpoint_seconds": -1}, ValueError, "checkpoint_seconds: .* got -1"),
        ({"device": "tpu"}, ValueError, "device: .*tpu"),
        ({"device": "meta"}, ValueError, "device: expected cpu or cuda, got meta"),
        ({"progress": 1}, TypeError, "progress: .* got 1"),
    ],
)
def test_a_wrong_argument_is_named(
    given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        train(discs(side=8), config(), **({"out": tmp_path / "new"} | given))
    assert not (tmp_path / "new").exists()


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch, folder: Path, **other: Any) -> None:
    """A training whose process is killed in the middle of a step."""
    original = Trainer.step

    def dying(self: Trainer) -> dict[str, torch.Tensor]:
        if self.steps == steps:
            raise MemoryError
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(MemoryError):
            train(discs(side=8), config(), folder, progress=False, **other)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "seconds"), [(60, 600), (50, 0)])
def test_a_line_of_each_step_is_in_the_log_once(
    steps: int, seconds: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A line ahead of the checkpoint is cut, one of the checkpoint's own step stays."""
    killed_after(steps, monkeypatch, tmp_path, checkpoint_seconds=seconds)
    assert (tmp_path / "checkpoint.pt").exists() == (seconds == 0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"images": 4')
    train(discs(side=8), config(), tmp_path, progress=False)
    assert [line["images"] for line in log(tmp_path)] == [400, 800]


@pytest.mark.slow
def test_a_line_holds_the_means_of_its_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original, given = Trainer.step, []

    def spied(self: Trainer) -> dict[str, torch.Tensor]:
        given.append(original(self))
        return given[-1]

    monkeypatch.setattr(Trainer, "step", spied)
    train(discs(side=8), config(total_images=808), tmp_path, progress=False)
    for number, line in enumerate(log(tmp_path)):
        for name in given[0]:
            mean = np.mean([float(s[name]) for s in given[50 * number : 50 * number + 50]])
            assert line[name] == pytest.approx(mean, abs=1e-4), name


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_the_second_signal_has_its_usual_effect() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    with stop_signals():
        pass
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(("here", "there"), [(True, False), (False, True)])
def test_a_stop_of_one_stops_all(here: bool, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    def reduced(told: torch.Tensor, op: Any) -> None:
        both = [float(told), float(there)]
        told.fill_(max(both) if op == dist.ReduceOp.MAX else min(both))

    monkeypatch.setattr(dist, "all_reduce", reduced)
    assert Processes(0, 2, torch.device("cpu")).any(here)
    assert not Processes(0, 2, torch.device("cpu")).any(False) or there


def test_snapshots_are_what_they_are_called(whole: Path) -> None:
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    for kind, part in (("raw", "generator"), ("average", "averaged")):
        saved = load_file(whole / f"{LAST}-{kind}.safetensors")
        assert all(torch.equal(saved[name], state[part][name]) for name in saved)
    images = sample_images(load_generator(whole / f"{LAST}-average.safetensors"), 64, 0)
    with Image.open(whole / f"{LAST}.png") as sheet:
        expected = np.asarray(grids.sheet(images.numpy(), 8)).astype(int)
        assert np.abs(np.asarray(sheet).astype(int) - expected).max() <= 1


def test_the_last_batch_may_go_beyond_the_end(tmp_path: Path) -> None:
    outcome = train(discs(side=8), config(total_images=485), tmp_path, progress=False)
    assert outcome.complete and outcome.shown == 488
    assert [path.name for path in outcome.snapshots] == ["000000488-average.safetensors"]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    trainer = Trainer(config(), discs(side=8), Processes(0, 1, cpu))
    trainer.processes = Processes(1, 2, cpu)
    files, meter = TrainingFiles(tmp_path, trainer), LossMeter(trainer)
    files.open(meter)
    files.log({})
    files.snapshot()
    files.save(meter)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["wgan-gp", "r1"])
def test_training_brings_images_nearer_to_the_real_ones(loss: str, tmp_path: Path) -> None:
    """The distance falls below half of its start; by chance it changes by a few per cent only."""
    images = discs(512, side=8)
    settings = config(loss=loss, phase_images=4000, total_images=20_000, learning_rate=2e-3)
    outcome = train(images, settings, tmp_path, snapshots=(12_016,), progress=False)
    real = [images.batch(torch.arange(512))]
    distances = [
        swd(real, [sample_images(load_generator(path), 512, 1).clamp(-1, 1)])[8]
        for path in outcome.snapshots
    ]
    untrained = train(images, config(total_images=480 + 8), tmp_path / "0", progress=False)
    start = swd(real, [sample_images(load_generator(untrained.snapshots[-1]), 512, 1).clamp(-1, 1)])
    assert distances[-1] < 0.5 * start[8]


# --- the command line -----------------------------------------------------------------------------


def test_sample_draws_a_sheet_and_single_images(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = str(whole / f"{LAST}-average.safetensors")
    out, each = tmp_path / "sheet.png", tmp_path / "each"
    arguments = ["sample", generator, "--out", str(out), "--each", str(each)]
    assert main([*arguments, "--count", "5", "--columns", "3", "--seed", "4"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 57 - 1, 2 * 57 - 1)
    assert sorted(p.name for p in each.iterdir()) == [f"sample_00{i}.png" for i in range(5)]
    images = sample_images(load_generator(generator), 5, 4)
    pixels = ((images[2, 0].clamp(-1, 1) + 1) * 127.5).numpy()
    with Image.open(each / "sample_002.png") as image:
        np.testing.assert_allclose(np.asarray(image), pixels, atol=0.51)
    assert main(arguments) == 2
    assert "exists already; give --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--quiet"]) == 0


def test_swd_has_a_row_per_snapshot_and_one_of_real_images(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "swd.json"
    arguments = ["swd", str(whole), "--data", str(data), "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [Path(row["generator"]).name for row in rows] == [
        "000000960-average.safetensors",
        "real images",
    ]
    assert all(row["images"] == 48 and row["mean"] == row["8 px"] > 0.0 for row in rows)
    assert rows[0]["mean"] > 2.0 * rows[1]["mean"]  # the first snapshot was hardly trained
    text = capsys.readouterr().out
    assert "real images" in text and f"{rows[0]['mean']}" in text


def test_held_out_images_are_not_learnt_from(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cogen_fast.cli import training as cli_training

    seen: dict[str, Any] = {}

    def spied(images: Any, *rest: Any, **options: Any) -> Any:
        seen["images"] = images()
        raise ValueError("enough")

    monkeypatch.setattr(cli_training, "train", spied)
    assert main(command(data, tmp_path, "--held-out", "30")) == 2
    learnt = seen["images"].batch(torch.arange(len(seen["images"])))
    assert len(learnt) == 66
    everything = discs(side=8)
    _, held_out = everything.split(30)
    others = held_out.batch(torch.arange(30))
    distance = (learnt[:, None] - others[None]).abs().amax((2, 3, 4))
    assert distance.min() > 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "7"], "resolution: expected a power of two"),
        (["--feature-maps", "8,x"], "--feature-maps: expected whole numbers separated by commas"),
        (["--feature-maps", "8"], "feature_maps: expected 2 numbers"),
        (["--batch", "4:8:2"], "--batch: expected N or R:N,R:N"),
        (["--loss", "hinge"], "--loss: invalid choice"),
        (["--total-images", "3"], "total_images: expected more than"),
        (["--held-out", "96"], "held_out: "),
        (["--snapshots", "2000"], "snapshots: "),
        (["--channels", "2"], "--channels: invalid choice"),
        (["--device", "tpu"], "device: "),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(data, tmp_path / "run", *arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cogen-fast: error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_generators_that_make_no_images_are_refused(
    data: Path, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = str(data_dir / "five_gaussians_generator_15000.npz")
    assert main(["sample", dense, "--out", str(tmp_path / "a.png")]) == 2
    assert "generator: expected images (1 or 3, H, W), got outputs (2,)" in capsys.readouterr().err
    assert main(["swd", str(tmp_path), "--data", str(data)]) == 2
    assert "what: expected a generator's file or the folder" in capsys.readouterr().err


def test_every_option_of_train_arrives(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cogen_fast.cli import training as cli_training

    seen: dict[str, Any] = {}
    original = cli_training.open_images

    def opened(*rest: Any, **options: Any) -> Any:
        seen.update(options)
        return original(*rest, **options)

    def spied(images: Any, settings: Any, out: Path, **options: Any) -> Any:
        seen.update(options, images=images(), config=settings)
        raise ValueError("enough")

    monkeypatch.setattr(cli_training, "open_images", opened)
    monkeypatch.setattr(cli_training, "train", spied)
    options = "--snapshots=100,320 --checkpoint-seconds=7 --flips --average-decay=0.9 --r1-gamma=3"
    options += " --discriminator-maps=5,4 --batch=4:8,8:4 --learning-rate=0.01 --seed=5"
    options += " --precision=bfloat16 --fit=pad --channels=3"
    assert main(command(data, tmp_path, *options.split())) == 2
    assert seen["config"] == config(
        channels=3,
        flips=True,
        average_decay=0.9,
        r1_gamma=3.0,
        discriminator_maps=(5, 4),
        batch={4: 8, 8: 4},
        learning_rate=0.01,
        seed=5,
        precision="bfloat16",
    )
    assert (seen["snapshots"], seen["checkpoint_seconds"]) == ((100, 320), 7.0)
    assert (seen["device"], seen["fit"], seen["images"].channels) == ("cpu", "pad", 3)
    monkeypatch.undo()
    monkeypatch.setattr(cli_training, "train", spied)
    assert main(command(data, tmp_path)) == 2
    # An option that is not given has the library's default.
    assert seen["config"] == config(channels=None)


def distinct(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_swd_with_held_out_compares_with_those(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cogen_fast.cli import training as cli_training

    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spied(real: Any, fake: Any, seed: int) -> dict[int, float]:
        pairs.append((torch.cat(list(real)), torch.cat(list(fake))))
        return {8: 1.0}

    monkeypatch.setattr(cli_training, "swd", spied)
    base = ["swd", str(whole), "--data", str(data), "--cache", str(tmp_path), "--quiet"]
    for seed in ("0", "1"):
        assert main([*base, "--held-out", "30", "--seed", seed]) == 0
    _, held_out = discs(side=8).split(30)
    (real, fake), (again, others) = pairs[:2]
    allowed = distinct(held_out.batch(torch.arange(30)))
    assert distinct(real) <= allowed and distinct(others) <= allowed
    assert len(real) == 15 and torch.equal(real, again) and not torch.equal(real, others)
    levels = (fake + 1.0) * 127.5
    # Generated images are rounded to 8 bits, as real ones are.
    assert (levels - levels.round()).abs().max() < 1e-3
    assert not torch.equal(fake, pairs[2][1])

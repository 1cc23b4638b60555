"""A training from start to end: log, snapshots, checkpoint; a killed training can be continued."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cogen_fast.generators import save_generator
from cogen_fast.generators.pickled_tuples import check_tuples
from cogen_fast.generators.progressive import RESOLUTIONS, ProgressiveGenerator
from cogen_fast.results import plots
from cogen_fast.support.arguments import check_count, check_flag, check_folder, check_number, shown
from cogen_fast.support.digests import digest_of_tree
from cogen_fast.support.files import open_regular, parse_json, read_text, write_atomically
from cogen_fast.support.layout import Whole, check_whole
from cogen_fast.training.config import TrainingConfig
from cogen_fast.training.datasets import Images
from cogen_fast.training.distributed import process_group
from cogen_fast.training.progressive import Trainer

CHECKPOINT, CONFIG, LOG, SNAPSHOTS = "checkpoint.pt", "config.json", "log.jsonl", "snapshots"
_FORMAT = "cogen_fast training 3"
_CHECKPOINT_SECONDS = 600.0
# The errors that values of unexpected types can raise where they are read.
_DAMAGE_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
_LOG_STEPS = 50  # steps between lines of the log
# Steps between checks whether any process was asked to stop: on GPUs, a check makes all of them
# wait.
_STOP_CHECK_STEPS = {"cpu": 1, "cuda": 16}
_COLUMNS, _SHEET_WIDTH = (2, 8), 2048
_PIXELS_AT_ONCE = 2**22
_FINGERPRINTED = 64  # images whose checksum distinguishes data sets


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    ``shown`` is the number of images shown in all; ``complete`` says whether the training is
    complete; ``snapshots`` are the files of its averaged generators; ``is_main`` says whether this
    is the process that writes the files.
    """

    shown: int
    complete: bool
    snapshots: tuple[Path, ...]
    is_main: bool


def train(
    images: Images | Callable[[], Images],
    config: TrainingConfig,
    out: str | Path,
    *,
    snapshots: Sequence[int] = (),
    device: str | torch.device | None = None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    progress: bool = True,
) -> Outcome:
    """Train a progressive GAN on ``images`` and write everything into the folder ``out``.

    ``images`` may be a function that opens the images; the main process calls it before the others.
    ``out`` will hold ``config.json``; ``log.jsonl``, with a line per 50 steps (losses, images/s);
    ``checkpoint.pt``, replaced every ``checkpoint_seconds``; and the folder ``snapshots``: after
    each of the numbers of images in ``snapshots``, and at the end, the raw and the averaged
    generator, which `load_generator` reads, and a PNG of samples. If it is called again with the
    same ``config``, it continues from the checkpoint. Ctrl-C and SIGTERM write a checkpoint and end
    the training with ``complete`` False.

    If it is started by ``torchrun``, the processes share each batch (DistributedDataParallel), and
    the first one writes the files. On a CPU the same training gives the same result bit for bit.

    Raises:
        ValueError: an argument is out of range; ``out`` holds another training, or one on other
            images; or losses or weights are not finite any more (the last checkpoint stays).
    """
    folder = check_folder("out", out)
    check_number("checkpoint_seconds", checkpoint_seconds, above=0.0, zero=True)
    check_flag("progress", progress)
    wanted = _checked_snapshots(snapshots, config)
    with process_group(device) as processes:
        found = processes.main_first(images) if callable(images) else images
        if config.channels is None:
            config = replace(config, channels=found.channels)
        trainer = Trainer(config, found, processes)
        files = TrainingFiles(folder, trainer)
        meter = LossMeter(trainer)
        files.open(meter)
        processes.wait()
        bar = tqdm(
            total=config.total_images,
            initial=trainer.shown,
            unit="image",
            unit_scale=True,
            disable=not (progress and processes.is_main),
        )
        with bar, stop_signals() as stop:
            complete = _loop(trainer, meter, files, wanted, stop, checkpoint_seconds, bar)
        processes.wait()
        return Outcome(trainer.shown, complete, averaged_snapshots(folder), processes.is_main)


def _loop(
    trainer: Trainer,
    meter: LossMeter,
    files: TrainingFiles,
    wanted: Sequence[int],
    stop: threading.Event,
    checkpoint_seconds: float,
    bar: tqdm[Any],
) -> bool:
    total, saved = trainer.config.total_images, time.monotonic()
    while trainer.shown < total:
        before = trainer.shown
        meter.add(trainer.step())
        bar.update(trainer.shown - before)
        if trainer.steps % _LOG_STEPS == 0:
            line = meter.line()
            files.log(line)
            bar.set_postfix(_facts(line))
        if any(before < count <= trainer.shown for count in wanted) or trainer.shown >= total:
            files.snapshot()
        if time.monotonic() - saved > checkpoint_seconds:
            files.save(meter)
            saved = time.monotonic()
        if _should_stop(trainer, stop):
            break
    files.save(meter)
    return trainer.shown >= total


def _should_stop(trainer: Trainer, stop: threading.Event) -> bool:
    """Whether any process was asked to stop; several processes check only now and then."""
    processes = trainer.processes
    if processes.size > 1 and trainer.steps % _STOP_CHECK_STEPS[processes.device.type]:
        return False
    return processes.any(stop.is_set())


class LossMeter:
    """Means of the losses since the last line of the log.

    A checkpoint has them too, so a continued training writes the same lines.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.restore({}, 0)

    def restore(self, sums: dict[str, Tensor], count: int) -> None:
        """Continue with the sums of ``count`` steps; the clock starts now."""
        self._since, self._shown = time.monotonic(), self._trainer.shown
        self.sums, self.count = sums, count

    def add(self, found: dict[str, Tensor]) -> None:
        """Add the losses of one step."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}
        self.count += 1

    def line(self) -> dict[str, Any]:
        """A line of the log; ValueError if a loss is not finite."""
        trainer = self._trainer
        means = {name: total.item() / self.count for name, total in self.sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise trainer.diverged(f"{name} is {value}")
        speed = (trainer.shown - self._shown) / (time.monotonic() - self._since)
        self.restore({}, 0)
        return {
            "images": trainer.shown,
            "steps": trainer.steps,
            "resolution": trainer.phase.resolution,
            "alpha": round(trainer.discriminator.alpha, 4),
            **{name: round(value, 6) for name, value in means.items()},
            "images_per_second": round(speed, 1),
        }


def _facts(line: dict[str, Any]) -> dict[str, str]:
    return {
        "px": str(line["resolution"]),
        "D": f"{line['loss_discriminator']:.3f}",
        "G": f"{line['loss_generator']:.3f}",
    }


class TrainingFiles:
    """The files of a training; only the main process writes them."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.folder, self.trainer = folder, trainer
        self.is_main = trainer.processes.is_main
        self._identity = _identity(trainer)

    def open(self, meter: LossMeter) -> None:
        """Prepare a new folder, or load the training that it holds.

        A training is loaded into the trainer and ``meter``.
        """
        if (path := self.folder / CHECKPOINT).exists():
            state = _read(path, self._identity)
            try:
                self.trainer.restore(state)
                meter.restore(*_checked_sums(state))
            except _DAMAGE_ERRORS as error:
                raise ValueError(f"out: {path} is damaged: {error}") from error
        if not self.is_main:
            return
        (self.folder / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
        for left in (*self.folder.glob(f".{CHECKPOINT}.*"), *(self.folder / SNAPSHOTS).glob(".0*")):
            left.unlink()  # incomplete files of a training that was killed
        text = json.dumps(self.trainer.config.as_dict(), indent=2) + "\n"
        write_atomically(self.folder / CONFIG, lambda file: file.write_text(text))
        self._cut_log()

    def save(self, meter: LossMeter) -> None:
        """Write the checkpoint, in place of the last one."""
        if not self.is_main:
            return
        self.trainer.check_sound()
        content = {
            "format": _FORMAT,
            "identity": json.dumps(self._identity),
            "sums": meter.sums,
            "count": meter.count,
            **self.trainer.state(),
        }
        content["digest"] = digest_of_tree(content)
        write_atomically(self.folder / CHECKPOINT, lambda file: torch.save(content, file))

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        if self.is_main:
            with (self.folder / LOG).open("a") as file:
                file.write(json.dumps(line) + "\n")

    def snapshot(self) -> None:
        """Write both generators as they are now, and a picture of samples of the averaged one."""
        if not self.is_main:
            return
        trainer = self.trainer
        trainer.check_sound()
        stem = self.folder / SNAPSHOTS / f"{trainer.shown:09d}"
        for name, average in (("raw", False), ("average", True)):
            generator = trainer.snapshot(average=average)
            save_generator(generator, f"{stem}-{name}.safetensors", card=False)
        columns = max(_COLUMNS[0], min(_COLUMNS[1], _SHEET_WIDTH // trainer.phase.resolution))
        samples = sample_images(trainer.averaged, columns**2, trainer.config.seed)
        sheet = plots.sheet(samples.numpy(), columns)
        write_atomically(Path(f"{stem}.png"), lambda file: sheet.save(file, format="PNG"))

    def _cut_log(self) -> None:
        """Remove lines of steps that will be made again, and a line that is incomplete."""
        path = self.folder / LOG
        lines = read_text("out", path).splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and self._is_made(path, line)]
        text = "".join(f"{line}\n" for line in kept)
        write_atomically(path, lambda file: file.write_text(text))

    def _is_made(self, path: Path, line: str) -> bool:
        """Whether a line of the log belongs to steps that the training has made."""
        entry = parse_json("out", line)
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, int | float):
            raise ValueError(
                f"out: expected lines with numbers of images in {path}, got {line:.60}"
            )
        return bool(images <= self.trainer.shown)


def averaged_snapshots(folder: Path) -> tuple[Path, ...]:
    """The averaged generators that a training has left in ``folder``, by their number of images."""
    return tuple(sorted((folder / SNAPSHOTS).glob("*-average.safetensors")))


def sample_images(generator: ProgressiveGenerator, count: int, seed: int) -> Tensor:
    """``count`` samples ``(count, C, R, R)`` float32, of prior latents drawn with ``seed``."""
    some, pixels = next(generator.parameters()), generator.resolution**2

    def images(z: Tensor) -> Tensor:
        found: Tensor = generator(z.to(some))
        return found

    return torch.cat(list(sample_batches(images, generator.latent_size, pixels, count, seed)))


@torch.no_grad()
def sample_batches(
    generator: Callable[[Tensor], Tensor], latent_size: int, pixels: int, count: int, seed: int
) -> Iterator[Tensor]:
    """The same in batches on the CPU, of images with so many pixels, by any function of latents."""
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, latent_size, generator=random)
    for z in torch.split(latents, max(1, _PIXELS_AT_ONCE // pixels)):
        yield generator(z).float().cpu()


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    with open_regular("out", path) as file:
        try:
            check_tuples(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
            known = content["format"] == _FORMAT
            whole = not known or content.pop("digest") == digest_of_tree(content)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(f"out: {path} is damaged: {error}") from error
    if not known:
        raise ValueError(f"out: expected {_FORMAT!r} in {path}, got {content['format']!r}")
    if not whole:
        raise ValueError(f"out: {path} is damaged: its content does not match its digest")
    try:
        was = dict(json.loads(content["identity"]))
        other = [name for name in identity if was.get(name) != identity[name]]
    except _DAMAGE_ERRORS as error:
        raise ValueError(f"out: {path} is damaged: no identity ({error!r:.80})") from error
    if other:
        changes = ", ".join(f"{n}={was.get(n)!r} (now {identity[n]!r})" for n in other)
        raise ValueError(f"out: {path} is the checkpoint of another training: {changes}")
    state: dict[str, Any] = content
    return state


def _checked_sums(state: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
    """Sums of the losses since the last line of the log, and their number of steps.

    Raises ValueError for anything else.
    """
    sums, count = state["sums"], state["count"]
    check_whole("count", count, Whole(), {})
    for name, value in dict(sums).items():
        if not isinstance(value, Tensor) or value.numel() != 1 or not bool(value.isfinite()):
            raise ValueError(f"sums: expected a finite number as {name!r:.40}, got another value")
    return sums, count


def _identity(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint must agree with: the settings, and a checksum of some of the images."""
    count = len(trainer.images)
    some = torch.arange(0, count, max(1, count // _FINGERPRINTED))
    checksum = zlib.crc32(trainer.images.batch(some, RESOLUTIONS[0]).numpy().tobytes())
    settings: dict[str, Any] = json.loads(json.dumps(trainer.config.as_dict()))
    return settings | {"images": f"{count}, checksum {checksum:08x}"}


def _checked_snapshots(snapshots: Sequence[int], config: TrainingConfig) -> list[int]:
    if isinstance(snapshots, str) or not isinstance(snapshots, Sequence):
        raise ValueError(f"snapshots: expected counts of images, got {shown(snapshots)}")
    counts = [check_count("snapshots", count) for count in snapshots]
    if late := [count for count in counts if count > config.total_images]:
        raise ValueError(
            f"snapshots: expected counts up to total_images={config.total_images}, got {late}"
        )
    return counts


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one has its usual effect."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, before[number])

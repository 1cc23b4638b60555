"""The settings of a progressive training, and the phases of growth that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from cogen_fast.generators.progressive import RESOLUTIONS, feature_maps_per_stage
from cogen_fast.support.arguments import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_seed,
    shown,
)
from cogen_fast.training.losses import LOSSES, R1_GAMMA

PRECISIONS = ("float32", "bfloat16")
_PUBLISHED_BATCH = {256: 14, 512: 6, 1024: 3}
_SMALL_BATCH = 16


@dataclass(frozen=True)
class Phase:
    """A part of a training: ``images`` images at ``resolution``, from image ``start`` on.

    If it ``fades``, the weight of the new resolution grows from 0 to 1 meanwhile.
    """

    resolution: int
    fades: bool
    start: int
    images: int

    def alpha(self, shown: int) -> float:
        """The weight of the new resolution after ``shown`` images of the whole training."""
        return min(1.0, max(0.0, (shown - self.start) / self.images)) if self.fades else 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a progressive training; the defaults are those of Karras et al. 2018,
    appendix A.

    Args:
        resolution: the final side of the images, a power of two in 4 ... 1024.
        channels: the number of colour channels of the images, 1 or 3; None: as the images have.
        latent_size: the length of z.
        fmap_base, fmap_max: there are `min(fmap_base / 2^s, fmap_max)` feature maps, s = 1 at 4 px.
        feature_maps: the generator's feature maps, one number per resolution from 4 px up, in place
            of the formula.
        discriminator_maps: the discriminator's feature maps; None: as the generator has.
        phase_images: the number of images shown while a resolution fades in, and again once it has.
        total_images: the number of images shown in the whole training; the final resolution gets
            all that remain.
        batch: images per step, over all processes together: a number, or one per resolution (a
            resolution that is not named takes the number of the next lower one); None: 16 up to 128
            px, then 14, 6, 3.
        learning_rate: the learning rate of Adam(0, 0.99), for both networks.
        loss: "wgan-gp", or "r1": non-saturating, with a penalty at every 16th step.
        r1_gamma: the weight of the R1 penalty.
        average_decay: the decay per step of the moving average of the generator's weights, in
            (0, 1).
        flips: whether images are mirrored at random.
        precision: "float32", or "bfloat16": autocast in both networks.
        seed: the seed of weights, latents and the order of the images.

    Raises:
        ValueError: an argument is out of range; the message names it, what was expected and what
            came.
    """

    resolution: int
    channels: int | None = None
    latent_size: int = 512
    fmap_base: int = 8192
    fmap_max: int = 512
    feature_maps: Sequence[int] | None = None
    discriminator_maps: Sequence[int] | None = None
    phase_images: int = 600_000
    total_images: int = 12_000_000
    batch: int | Mapping[int, int] | None = None
    learning_rate: float = 1e-3
    loss: str = "wgan-gp"
    r1_gamma: float = R1_GAMMA
    average_decay: float = 0.999
    flips: bool = False
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        self._settle("resolution", check_count("resolution", self.resolution))
        if self.resolution not in RESOLUTIONS:
            raise ValueError(
                f"resolution: expected a power of two in 4 ... 1024, got {shown(self.resolution)}"
            )
        if self.channels is not None and check_count("channels", self.channels) not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {shown(self.channels)}")
        # NumPy's numbers become Python's, which JSON can represent.
        for name in ("latent_size", "fmap_base", "fmap_max", "phase_images", "total_images"):
            self._settle(name, check_count(name, getattr(self, name)))
        for name in ("learning_rate", "r1_gamma"):
            self._settle(name, check_number(name, getattr(self, name), above=0.0))
        self._settle(
            "average_decay", check_number("average_decay", self.average_decay, above=0.0, below=1.0)
        )
        check_choice("loss", self.loss, LOSSES)
        check_choice("precision", self.precision, PRECISIONS)
        check_flag("flips", self.flips)
        self._settle("seed", check_seed(self.seed))
        self._settle("feature_maps", self._maps("feature_maps", None))
        self._settle("discriminator_maps", self._maps("discriminator_maps", self.feature_maps))
        self._settle("batch", self._batches())
        grown = self.phases[-1].start
        if self.total_images <= grown:
            raise ValueError(
                f"total_images: expected more than {grown}, the number of images of all phases "
                f"before the last (phase_images={self.phase_images}), got {self.total_images}"
            )

    def _settle(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _maps(self, name: str, default: Sequence[int] | None) -> tuple[int, ...]:
        maps = getattr(self, name)
        if maps is None:
            return tuple(
                default or feature_maps_per_stage(self.resolution, self.fmap_base, self.fmap_max)
            )
        stages = RESOLUTIONS.index(self.resolution) + 1
        if isinstance(maps, str) or not isinstance(maps, Sequence) or len(maps) != stages:
            raise ValueError(
                f"{name}: expected {stages} numbers for resolution {self.resolution}, got "
                f"{shown(maps)}"
            )
        return tuple(check_count(name, count) for count in maps)

    def _batches(self) -> dict[int, int]:
        """The batch size at every resolution."""
        given = self.batch
        if given is None:
            given = _PUBLISHED_BATCH | {RESOLUTIONS[0]: _SMALL_BATCH}
        elif not isinstance(given, Mapping):
            given = {RESOLUTIONS[0]: given}
        for side, count in given.items():
            if side not in RESOLUTIONS:
                raise ValueError(f"batch: expected powers of two in 4 ... 1024, got {shown(side)}")
            check_count("batch", count)
        lowest = min(given, default=0)
        batches = {}
        for side in RESOLUTIONS[: RESOLUTIONS.index(self.resolution) + 1]:
            if lowest == 0 or side < lowest:
                raise ValueError(f"batch: expected a number for resolution {side} too, got none")
            batches[side] = int(given[max(s for s in given if s <= side)])
            if batches[side] > self.phase_images:
                raise ValueError(
                    f"batch: expected at most phase_images={self.phase_images}, got "
                    f"{batches[side]} at resolution {side}"
                )
        return batches

    def batch_at(self, resolution: int) -> int:
        """Images per step at ``resolution``, over all processes together."""
        assert isinstance(self.batch, dict)
        count: int = self.batch[resolution]
        return count

    @cached_property  # every step reads it
    def phases(self) -> list[Phase]:
        """The phases in order: 4 px; then each further resolution, fading in first."""
        phases, start = [], 0
        for resolution in RESOLUTIONS[: RESOLUTIONS.index(self.resolution) + 1]:
            for fades in (False,) if resolution == RESOLUTIONS[0] else (True, False):
                phases.append(Phase(resolution, fades, start, self.phase_images))
                start += self.phase_images
        last = phases.pop()
        return [*phases, Phase(last.resolution, False, last.start, self.total_images - last.start)]

    def phase(self, shown: int) -> Phase:
        """The phase of the training after ``shown`` images."""
        return next(p for p in reversed(self.phases) if p.start <= shown)

    def maps(self, name: str, resolution: int) -> list[int]:
        """``feature_maps`` or ``discriminator_maps`` of a network grown to ``resolution``."""
        return list(getattr(self, name)[: RESOLUTIONS.index(resolution) + 1])

    def as_dict(self) -> dict[str, Any]:
        """All settings, JSON-ready.

        `TrainingConfig(**d)` is equal; after a round trip through JSON the keys of ``batch`` have
        to be made integers again.
        """
        return asdict(self)

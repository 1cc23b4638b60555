"""The two networks of a progressive training, and one step of it (Karras et al. 2018).

Every draw (weights, latents, order of the images, flips) is a function of the seed and of how many
steps and images have been done, so a killed training that continues from its checkpoint makes the
same steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast.generators.progressive import RESOLUTIONS, ProgressiveGenerator, upsample
from cogen_fast.support.layout import Whole, check_integer
from cogen_fast.training.config import Phase, TrainingConfig
from cogen_fast.training.datasets import Images
from cogen_fast.training.discriminator import ProgressiveDiscriminator
from cogen_fast.training.distributed import Processes
from cogen_fast.training.losses import R1_EVERY, DiscriminatorLoss, GeneratorLoss

_Module = TypeVar("_Module", bound=nn.Module)
_BETAS = (0.0, 0.99)
_WEIGHTS, _ORDER, _STEP = range(3)  # what a draw is for; part of its seed


@dataclass(frozen=True)
class Batch:
    """The input of one step of ``n`` images.

    ``real`` is ``(n, C, R, R)``; ``latents`` are two sets ``(n, d)``, the discriminator's and the
    generator's; ``mix`` ``(n, 1, 1, 1)`` in [0, 1] says where between real and generated images a
    penalty takes the gradient.
    """

    real: Tensor
    latents: tuple[Tensor, Tensor]
    mix: Tensor


class Trainer:
    """Generator, discriminator and the generator's moving average, as they grow.

    ``step()`` shows ``config.batch`` images; ``shown`` and ``steps`` count what has been done.
    ``state()`` is all that `restore` needs, as tensors and plain values.
    """

    def __init__(self, config: TrainingConfig, images: Images, processes: Processes) -> None:
        _check_images(config, images, processes)
        self.config, self.images, self.processes = config, images, processes
        self.shown = self.steps = 0
        self.phase = config.phases[0]
        self._build()
        self._prepare()

    def step(self) -> dict[str, Tensor]:
        """One update of each network; returns losses and the gap between scores, as scalars."""
        if (phase := self.config.phase(self.shown)) != self.phase:
            self._enter_phase(phase)
        self._set_alpha(self.phase.alpha(self.shown))
        batch = self.next_batch()
        with self._autocast():
            with torch.no_grad():
                fake = self.generator(batch.latents[0]).to(batch.real.dtype)
            loss, gap = self.discriminator_loss(batch.real, fake, batch.mix, self._penalty_due())
        _update(self._discriminator_adam, loss)
        with without_gradients(self.discriminator):
            with self._autocast():
                generator_loss = self._generator_loss(batch.latents[1])
            _update(self._generator_adam, generator_loss)
        self._update_average()
        self.shown += self.config.batch_at(self.phase.resolution)
        self.steps += 1
        return {
            "loss_discriminator": loss.detach(),
            "loss_generator": generator_loss.detach(),
            "scores_apart": gap,
        }

    def state(self) -> dict[str, Any]:
        """The state of the training, for `restore`."""
        return {
            "shown": self.shown,
            "steps": self.steps,
            "phase": self.config.phases.index(self.phase),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``.

        Raises an error of Python or torch for the state of another training.
        """
        phases = self.config.phases
        for name in ("shown", "steps"):
            check_integer(name, state[name], Whole(), {})
        check_integer("phase", state["phase"], Whole(high=len(phases) - 1), {})
        self.shown, self.steps = state["shown"], state["steps"]
        self.phase = phases[state["phase"]]
        self._build()
        self._prepare()
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                _check_moments(name, part, state[name])
            elif not all(bool(value.isfinite().all()) for value in state[name].values()):
                raise ValueError(f"{name}: expected finite weights, got some that are not")
            part.load_state_dict(state[name])
        self._set_alpha(self.phase.alpha(self.shown))

    def check_sound(self) -> None:
        """Raise ValueError if a weight is not finite any more."""
        weights = (*self.generator.parameters(), *self.discriminator.parameters())
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise self.diverged("weights are not finite")

    def diverged(self, sign: str) -> ValueError:
        """The error of a training that has diverged; ``sign`` says in what this shows."""
        return ValueError(
            f"learning_rate: training has diverged, {sign} after {self.shown} images; expected a "
            f"rate below {self.config.learning_rate:g}"
        )

    def snapshot(self, *, average: bool) -> ProgressiveGenerator:
        """A copy of the generator as it is now, or of its average, on the CPU, in eval mode.

        Once a resolution has faded in, the copy does not have the colour layer of the previous one.
        """
        source = self.averaged if average else self.generator
        config = source.config | {"fades": source.alpha < 1.0}
        found = ProgressiveGenerator(**config)
        names = found.state_dict().keys()
        found.load_state_dict({n: t for n, t in source.state_dict().items() if n in names})
        return found.eval().requires_grad_(False)

    def _parts(self) -> dict[str, Any]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "averaged": self.averaged,
            "generator_adam": self._generator_adam,
            "discriminator_adam": self._discriminator_adam,
        }

    def _build(self) -> None:
        """Make networks of this phase's resolution, with fresh weights."""
        resolution, config = self.phase.resolution, self.config
        fades = resolution > RESOLUTIONS[0]
        assert config.channels is not None  # `_check_images` compares it with the images' number
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(_derived_seed(config.seed, _WEIGHTS, resolution))
            generator = ProgressiveGenerator(
                resolution,
                channels=config.channels,
                latent_size=config.latent_size,
                feature_maps=config.maps("feature_maps", resolution),
                fades=fades,
            )
            discriminator = ProgressiveDiscriminator(
                resolution, config.channels, config.maps("discriminator_maps", resolution), fades
            )
        self.generator, self.discriminator = (
            self._on_device(generator),
            self._on_device(discriminator),
        )
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False)

    def _on_device(self, module: _Module) -> _Module:
        """The module on this process's device, in the memory layout that is fastest there."""
        module.to(self.processes.device)
        if self.processes.device.type == "cuda":
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

    def _enter_phase(self, phase: Phase) -> None:
        grows = phase.resolution != self.phase.resolution
        before = (self.generator, self.discriminator, self.averaged)
        self.phase = phase
        if grows:
            self._build()
            inherit_weights(self.generator, before[0], "to_rgb")
            inherit_weights(self.discriminator, before[1], "from_rgb")
            self.averaged = copy.deepcopy(self.generator).requires_grad_(False)
            inherit_weights(self.averaged, before[2], "to_rgb")
        self._prepare(keep_moments=not grows)

    def _prepare(self, keep_moments: bool = False) -> None:
        """Make optimisers and losses; Adam starts anew with each resolution, as published."""
        for colours in (self.generator.to_rgb_previous, self.discriminator.from_rgb_previous):
            if colours is not None:
                colours.requires_grad_(self.phase.fades)
        loss, gamma = self.config.loss, self.config.r1_gamma * R1_EVERY
        self.discriminator_loss = self.processes.data_parallel(
            DiscriminatorLoss(self.discriminator, loss, gamma)
        )
        self._generator_loss = self.processes.data_parallel(
            GeneratorLoss(self.generator, self.discriminator, loss)
        )
        if not keep_moments:
            self._generator_adam = self._adam(self.generator, 1.0)
            # A lazy penalty counts as one more step in R1_EVERY (Karras et al. 2020, appendix B).
            lazy = R1_EVERY / (R1_EVERY + 1) if loss == "r1" else 1.0
            self._discriminator_adam = self._adam(self.discriminator, lazy)

    def _adam(self, module: nn.Module, share: float) -> torch.optim.Adam:
        return torch.optim.Adam(
            module.parameters(),
            lr=self.config.learning_rate * share,
            betas=(_BETAS[0], _BETAS[1] ** share),
        )

    def _set_alpha(self, alpha: float) -> None:
        if self.generator.fades:
            self.generator.alpha = self.averaged.alpha = self.discriminator.alpha = alpha

    def _penalty_due(self) -> bool:
        return self.config.loss == "wgan-gp" or self.steps % R1_EVERY == 0

    def _autocast(self) -> torch.autocast:
        half = self.config.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=half)

    def next_batch(self) -> Batch:
        """This process's part of the batch of a step."""
        count = self.config.batch_at(self.phase.resolution)
        random = torch.Generator().manual_seed(_derived_seed(self.config.seed, _STEP, self.steps))
        size = self.config.latent_size
        latents = [torch.randn(count, size, generator=random) for _ in range(2)]
        mix = torch.rand(count, 1, 1, 1, generator=random)
        flip = torch.rand(count, generator=random) < 0.5
        mine = slice(self.processes.rank, None, self.processes.size)
        device = self.processes.device
        real = self.images.batch(
            self.next_images(count)[mine],
            self.phase.resolution,
            flip[mine] if self.config.flips else None,
        ).to(device)
        alpha = self.discriminator.alpha
        if alpha < 1.0:  # generated images have this fade-in too
            real = torch.lerp(upsample(F.avg_pool2d(real, 2)), real, alpha)
        first, second = (z[mine].to(device) for z in latents)
        return Batch(real, (first, second), mix[mine].to(device))

    def next_images(self, count: int) -> Tensor:
        """The numbers of the next ``count`` images; each epoch has every image once, reshuffled."""
        places = torch.arange(self.shown, self.shown + count)
        size = len(self.images)
        chosen = [
            _permutation(_derived_seed(self.config.seed, _ORDER, epoch), size)[
                places[places // size == epoch] % size
            ]
            for epoch in range(self.shown // size, (self.shown + count - 1) // size + 1)
        ]
        return torch.cat(chosen)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average towards the generator."""
        pairs = zip(self.averaged.parameters(), self.generator.parameters(), strict=True)
        for mean, now in pairs:
            mean.lerp_(now, 1.0 - self.config.average_decay)


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Switch off gradients of the module's weights; gradients still flow through the module."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _check_images(config: TrainingConfig, images: Images, processes: Processes) -> None:
    if not len(images):
        raise ValueError("images: expected at least one, got none")
    if images.channels != config.channels:
        raise ValueError(
            f"channels: expected {images.channels} as the images have, got {config.channels}"
        )
    if images.resolution < config.resolution:
        raise ValueError(
            f"resolution: expected at most {images.resolution} as the images have, got "
            f"{config.resolution}"
        )
    for phase in config.phases:
        if (count := config.batch_at(phase.resolution)) % processes.size:
            raise ValueError(
                f"batch: expected multiples of the {processes.size} processes, got {count} at "
                f"resolution {phase.resolution}"
            )


def _update(adam: torch.optim.Adam, loss: Tensor) -> None:
    adam.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    adam.step()


def inherit_weights(new: nn.Module, old: nn.Module, colours: str) -> None:
    """Copy the weights of the lower resolutions; the old colour layer becomes the previous one."""
    previous = f"{colours}_previous."
    kept = {
        name.replace(f"{colours}.", previous): tensor
        for name, tensor in old.state_dict().items()
        if not name.startswith(previous)
    }
    unknown = new.load_state_dict(kept, strict=False).unexpected_keys
    assert not unknown, unknown


def _check_moments(name: str, fresh: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """ValueError unless ``state`` has the parameters and the settings of ``fresh``."""
    if state["param_groups"] != fresh.state_dict()["param_groups"]:
        raise ValueError(f"{name}: expected the optimiser settings of this training, got others")
    weights = [weight for group in fresh.param_groups for weight in group["params"]]
    for number, moments in state["state"].items():
        for kind, value in moments.items():
            shape = weights[number].shape if kind != "step" else ()
            if value.shape != shape or not bool(value.isfinite().all()):
                raise ValueError(
                    f"{name}: expected finite {kind} {tuple(shape)} of weight {number}, got "
                    f"{tuple(value.shape)}"
                )


def _derived_seed(*words: int) -> int:
    """A 64-bit seed for a tuple of numbers; other tuples have other seeds."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=2)
def _permutation(seed: int, size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))

"""What a user asks for: the picture, which part is hidden, and the settings of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cogen_fast.app.offers import Offer
from cogen_fast.app.picture import Painted, Shape
from cogen_fast.support.arguments import check_choice, check_number, check_whole

FILL, ENLARGE = TASKS = ("fill", "enlarge")
MOST_CHAINS, MOST_BUDGET, MOST_SEED, MOST_NOISE = 64, 100_000, 2**32 - 1, 10.0


@dataclass(frozen=True)
class Settings:
    """The settings of a run; ``budget`` 0 is none, and ``factor`` is of enlarging."""

    task: str = FILL
    factor: int = 4
    chains: int = 16
    noise_std: float = 0.3
    budget: int = 0
    seed: int = 0

    def shape(self, offer: Offer) -> Shape:
        """The shape of the picture that the task takes."""
        return offer.shape if self.task == FILL else offer.small_shape(self.factor)


def settings(
    offer: Offer, task: Any, factor: Any, chains: Any, noise_std: Any, budget: Any, seed: Any
) -> Settings:
    """Settings from the page or its address. ValueError naming the first wrong one."""
    check_choice("task", task, TASKS)
    factor = _whole("factor", factor, 1, 2**16)
    if task == ENLARGE and factor not in offer.factors:
        known = ", ".join(map(str, offer.factors))
        wanted = f"one of {known}" if known else "a generator whose images have even sides"
        raise ValueError(f"factor: expected {wanted}, got {factor}")
    return Settings(
        task,
        factor,
        _whole("completions", chains, 1, MOST_CHAINS),
        check_number("noise", noise_std, 0.0, MOST_NOISE),
        _whole("gradients", budget, 0, MOST_BUDGET),
        _whole("seed", seed, 0, MOST_SEED),
    )


@dataclass(frozen=True)
class Setup:
    """A run that can be started: checked settings, and a picture which suits them."""

    offer: Offer
    settings: Settings
    picture: Painted

    def __post_init__(self) -> None:
        hidden = self.picture.hidden
        if hidden is None:
            return
        if not hidden.any():
            raise ValueError("Nothing is hidden yet: paint over a part of the picture first.")
        if hidden.all():
            raise ValueError("Everything is hidden: leave a part of the picture visible.")

    def options(self) -> dict[str, Any]:
        """The options of `cogen_fast.cogenerate` that stand for this."""
        chosen, latent_shape = self.settings, self.offer.latent_shape
        options = {"noise_std": chosen.noise_std, "chains": chosen.chains, "seed": chosen.seed}
        options["polish"] = 0  # it could not be stopped
        if chosen.budget:
            options["budget"] = chosen.budget
        return options if latent_shape is None else options | {"latent_shape": latent_shape}


def _whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number; the page's fields send it as 4 or 4.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return check_whole(name, value, least, most)

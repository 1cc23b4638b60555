"""NUTS from many starts, for comparison: its gradients, its draws, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cogen_fast import Result
from cogen_fast.experiments.evaluate.nuts import DRAWS, NUTS, nuts_multi
from cogen_fast.experiments.exact_models import LinearGaussian
from cogen_fast.problem.compute import gathered

pytest.importorskip("pyro")
pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, NOISE = 20, 0.3
MODEL = LinearGaussian.named("iso", SIZE, NOISE)


class Counting:
    """The model's generator, counting the latents that it is given."""

    def __init__(self) -> None:
        self.seen, self.generator = 0, MODEL.generator

    def __call__(self, z: Tensor) -> Tensor:
        self.seen += len(z)
        return self.generator(z)


def run(G: Any = None, ids: range = range(3), **changes: Any) -> Result:
    x = MODEL.data(ids)
    options: dict[str, Any] = {
        "latent_shape": SIZE,
        "noise_std": NOISE,
        "starts": 50,
        "gradients": 1_500,
        "observation_ids": list(ids),
    }
    return nuts_multi(
        G or MODEL.generator, x, torch.ones(x.shape[1]), **gathered(options | changes)
    )


@pytest.mark.slow
def test_it_draws_from_the_posterior_in_twenty_latents() -> None:
    ids = range(10)
    result, x = run(ids=ids), MODEL.data(ids)
    assert result.energies.shape == (10, DRAWS)
    # Chains are independent, and the scatter of their means includes the effect of autocorrelation.
    off = result.energies.mean(1) - MODEL.mean_energy(x)
    assert abs(float(off.mean())) < 4.0 * float(off.std()) / 10**0.5
    assert float(off.std()) < 1.5


def test_gradients_are_counted() -> None:
    few, many = Counting(), Counting()
    short, long = run(few, gradients=40), run(many, gradients=140)
    assert many.seen - few.seen == 3 * 100
    for result, gradients in ((short, 40), (long, 140)):
        assert result.gradients == gradients
        assert result.cost == 50 + 2 * gradients
        assert result.settings["method"] == NUTS
        assert result.latents.isfinite().all()


@pytest.mark.slow
def test_a_chain_depends_on_its_observation_only() -> None:
    together, alone = run(gradients=300), run(ids=range(1, 2), gradients=300)
    torch.testing.assert_close(together.latents[1:2], alone.latents)
    assert not torch.equal(together.latents, run(gradients=300, seed=1).latents)


def test_without_moves_every_draw_is_the_best_start() -> None:
    result = run(gradients=1)
    assert (result.latents == result.latents[:, :1]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gradients": 0}, "gradients: expected a whole number of at least 1, got 0"),
        ({"starts": 0}, "starts: expected a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed: expected"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(**changes)


def test_without_pyro_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyro.infer.mcmc", None)
    with pytest.raises(ImportError, match=r"pip install 'cogen-fast\[peers\]'"):
        run()

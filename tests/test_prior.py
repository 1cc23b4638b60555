"""Latent spaces, noise maps, conditions and outputs of generators: what `Prior` makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_same
from torch import Tensor, nn

from cogen_fast import Checkpoint, Compute, Paper, Prior, cogenerate
from cogen_fast.generators import StyleGAN2Generator
from cogen_fast.problem.problem import prepared


def styled(**options: Any) -> StyleGAN2Generator:
    """A small network with random weights, in float64."""
    settings: dict[str, Any] = {
        "resolution": 8,
        "latent_size": 5,
        "mapping": [12, 6],
        "feature_maps": [4, 3],
    }
    random = torch.Generator().manual_seed(3)
    generator = StyleGAN2Generator(**(settings | options)).double()
    for name, tensor in generator.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=random, dtype=torch.float64)
        tensor.copy_(1.0 + 0.3 * drawn if name.endswith("style_bias") else 0.5 * drawn)
    return generator.eval().requires_grad_(False)


def draws(count: int, size: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=random, dtype=torch.float64)


def coordinates(prior: Prior, w: Tensor) -> Tensor:
    """The whitened coordinates of styles, from the definition."""
    v = torch.where(w < 0.0, w / 0.2, w) - prior.style_centre
    return torch.linalg.solve(prior.style_basis.T, v.T).T


def test_in_z_it_is_the_generator() -> None:
    generator = styled()
    prior = Prior(generator)
    z = draws(3, 5)
    assert torch.equal(prior(z), generator(z))
    assert prior.describe() == []


def test_coordinates_of_w_are_white_and_give_back_every_style() -> None:
    generator = styled()
    prior = Prior(generator, space="w", draws=20_000)
    z = draws(50_000, 5, seed=1)
    y = coordinates(prior, generator.styles(z))
    bound = 5.0 * math.sqrt(1 / 20_000 + 1 / 50_000)
    assert y.mean(0).abs().max() < bound
    # The fourth moment of the coordinates (3 for a Gaussian) gives the variance of their squares.
    spread = ((y**4).mean() - 1.0).sqrt()
    assert (torch.cov(y.T) - torch.eye(6)).abs().max() < float(spread) * bound
    torch.testing.assert_close(prior(y[:4]), generator(z[:4]))
    torch.testing.assert_close(prior.styles(y[:4]), generator.styles(z[:4]))
    variances = (prior.style_basis**2).sum(1)
    assert (variances.diff() <= 0).all(), "the widest coordinate comes first"


def test_styles_of_layers_are_tied_as_the_spread_says() -> None:
    generator = styled()
    common = Prior(generator, space="w", draws=1000)
    tied = Prior(generator, space="w+", draws=1000, spread=0.6)
    assert tied.latent_size == 6 * (1 + generator.style_layers)
    y = draws(20_000, 6 * (1 + generator.style_layers))
    each = torch.stack([coordinates(tied, w) for w in tied.styles(y).unbind(1)], 1)
    bound = 5.0 * math.sqrt(2 / 20_000)
    assert (each.var(0) - 1.0).abs().max() < bound
    between = (each[:, 0] * each[:, 1]).mean(0)
    assert (between - (1.0 - 0.6**2)).abs().max() < bound
    alike = torch.cat([y[:2, :6], torch.zeros(2, 6 * generator.style_layers).double()], 1)
    torch.testing.assert_close(tied(alike), common(0.8 * y[:2, :6]))


@pytest.mark.parametrize("space", ["z", "w", "w+"])
def test_noise_maps_may_be_latents(space: Any) -> None:
    generator = styled()
    fixed = Prior(generator, space=space, draws=1000)
    prior = Prior(generator, space=space, noise="latent", draws=1000)
    leading = {"z": 5, "w": 6, "w+": 6 * (1 + generator.style_layers)}[space]
    sides = generator.noise_sides
    assert sides == [4, 8, 8]
    assert prior.latent_size == leading + 16 + 64 + 64
    y = draws(2, leading)
    layers = [layer for block in generator.blocks for layer in block.layers]
    stored = torch.cat([layer.noise.flatten() for layer in layers]).expand(2, -1)
    torch.testing.assert_close(prior(torch.cat([y, stored], 1)), fixed(y))
    other = prior(torch.cat([y, draws(2, 144, seed=3)], 1))
    assert not torch.allclose(other, fixed(y))


def test_truncation_holds_in_every_space() -> None:
    generator = styled()
    generator.truncation = 0.0
    for space, size in (("z", 5), ("w", 6)):
        prior = Prior(generator, space=space, draws=1000)  # type: ignore[arg-type]
        images = prior(draws(2, size))
        torch.testing.assert_close(images[0], images[1])


class Conditional(nn.Module):
    """A linear generator whose outputs are shifted by a label."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4).double()

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        labels = y.double().reshape(len(y), -1)[:, :1]
        moved: Tensor = self.linear(z) + 10.0 * labels
        return moved


def test_a_condition_that_all_share() -> None:
    generator = Conditional()
    for conditions in (2, torch.tensor([2]), [2.0]):
        prior = Prior(generator, conditions=conditions)
        assert not prior.per_observation
        z = draws(3, 3)
        assert torch.equal(prior(z), generator(z, torch.full((3,), 2)))


def test_a_condition_for_each_observation() -> None:
    generator = Conditional()
    prior = Prior(generator, conditions=torch.tensor([0, 1, 2]))
    truth = prior(draws(3, 3), torch.arange(3))
    assert torch.equal(prior(draws(3, 3)[1:2], 1), truth[1:2])
    result = cogenerate(
        prior, truth, torch.ones(4), noise_std=0.1, budget=100, chains=16, progress=False
    )
    middle = result.mean().mean(-1).double()
    torch.testing.assert_close(middle, truth.detach().mean(-1), atol=0.3, rtol=0)
    alone = cogenerate(
        Prior(generator, conditions=torch.tensor([1])),
        truth[1],
        torch.ones(4),
        noise_std=0.1,
        budget=100,
        chains=16,
        progress=False,
        observation_ids=[1],
    )
    assert alone.images.shape == (1, 16, 4)


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda x: (None, x), 1),
        (lambda x: {"sample": x}, "sample"),
        (lambda x: type("Output", (), {"images": x})(), "images"),
        (lambda x: [[x]], lambda found: found[0][0]),
    ],
    ids=["index", "key", "attribute", "function"],
)
def test_outputs_may_be_parts(wrap: Any, output: Any) -> None:
    generator = styled()
    prior = Prior(lambda z: wrap(generator(z)), output=output)
    z = draws(2, 5)
    assert torch.equal(prior(z), generator(z))


def test_arguments_are_checked() -> None:
    generator = styled()
    for options, error, message in [
        ({"space": "W"}, ValueError, "space: expected one of"),
        ({"noise": "none"}, ValueError, "noise: expected one of"),
        ({"spread": 0.0}, ValueError, "spread: expected"),
        ({"spread": 1.5}, ValueError, "spread: expected at most 1"),
        ({"draws": 0}, ValueError, "draws: expected"),
        ({"output": 1.5}, TypeError, "output: expected an index"),
        ({"conditions": "cat"}, TypeError, "conditions: expected a tensor"),
        ({"conditions": torch.zeros(0)}, ValueError, "conditions: expected at least one"),
        (
            {"space": "w", "draws": 6},
            ValueError,
            "draws: expected more than 6",
        ),
    ]:
        with pytest.raises(error, match=message):
            Prior(generator, **options)
    with pytest.raises(ValueError, match="conditions: expected one for all"):
        Prior(styled(classes=2), space="w", conditions=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="without styles, synthesise"):
        Prior(nn.Linear(2, 3), space="w")
    with pytest.raises(TypeError, match="output: expected a tensor in what G returns"):
        Prior(lambda z: (z, None), output=1)(draws(1, 2))
    with pytest.raises(
        ValueError, match="index: expected the observation of each row, as there are 2"
    ):
        Prior(Conditional(), conditions=[0, 1])(draws(1, 3))


def test_the_space_is_sampled_and_named() -> None:
    generator = styled()
    prior = Prior(generator, space="w", draws=1000)
    truth = prior(draws(1, 6))[0]
    mask = torch.ones(3, 8, 8)
    result = cogenerate(prior, truth, mask, noise_std=0.3, budget=60, chains=16, progress=False)
    assert result.latents.shape == (1, 16, 6)
    torch.testing.assert_close(prior(result.latents[0]), result.images[0], rtol=1e-6, atol=1e-6)
    assert any("whitened coordinates of the style w" in note for note in result.notes)


def test_conditions_are_held_to_the_classes_of_the_generator() -> None:
    generator, plain = styled(classes=3), styled()
    for conditions, message in [
        (None, "conditions: expected one of 3 classes, got none"),
        (3, r"conditions: expected whole numbers in \[0, 3\)"),
        ([0.5], r"conditions: expected whole numbers, or shape \(1 or B, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            Prior(generator, conditions=conditions)
    with pytest.raises(ValueError, match="conditions: expected none, as G is unconditional"):
        Prior(plain, conditions=1)
    with pytest.raises(
        TypeError, match=r"G: StyleGAN2Generator is conditional \(3 classes\); give"
    ):
        cogenerate(generator, torch.zeros(3, 8, 8), torch.ones(8, 8), noise_std=1.0)
    with pytest.raises(TypeError, match="G: expected a callable or module, got Prior"):
        Prior(Prior(plain))


class Named(nn.Module):
    """A generator that gives the size of its latents another name."""

    nz = 3

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return torch.cat([z, c.to(z.dtype)], 1)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_conditions_say_nothing_of_types_and_sizes(dtype: Any) -> None:
    prior = Prior(Named(), conditions=np.ones((1, 1), dtype))
    options: dict[str, Any] = {"noise_std": 0.5, "budget": 40, "chains": 4, "progress": False}
    result = cogenerate(prior, torch.zeros(4), torch.ones(4), **options)
    assert result.latents.shape[-1] == 3
    assert result.images.dtype == torch.float32


def test_conditions_of_each_observation_reach_energies_of_another_type() -> None:
    prior = Prior(Named(), conditions=np.arange(3.0, dtype=np.float32)[:, None])
    prior.generator.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    result = cogenerate(
        prior,
        torch.zeros(3, 4),
        torch.ones(4),
        noise_std=0.5,
        budget=40,
        chains=4,
        progress=False,
        compute=Compute(energy_dtype="float64"),
    )
    assert torch.equal(result.images[:, :, 3], torch.arange(3.0)[:, None].expand(3, 4))


@pytest.mark.parametrize("space", ["z", "w"])
def test_gradients_of_a_float16_network_do_not_overflow(space: Any) -> None:
    # A residual of 1 has the gradient 10^4 at a noise of 0.01, and the largest float16 is 65504.
    generator = styled().half()
    x_obs = generator(draws(1, 5).half())[0].float()
    prior = Prior(generator, space=space, draws=1000)
    how: dict[str, Any] = {"chains": 2, "budget": 40, "seed": 1, "progress": False}
    result = cogenerate(prior, x_obs, torch.ones(x_obs.shape), noise_std=0.01, **how)
    assert result.energies.isfinite().all()
    assert float(result.acceptance.mean()) > 0.1
    scaled = "gradients are computed in G's own type of scaled energies, as they would overflow"
    assert any(note.startswith(scaled) for note in result.notes)
    blunt = cogenerate(prior, x_obs, torch.ones(x_obs.shape), noise_std=10.0, **how)
    assert not any("scaled" in note for note in blunt.notes)


def test_scaled_gradients_of_a_float16_network_are_those_of_float64() -> None:
    generator = styled()
    x_obs = generator(draws(1, 5))[0]
    grads = []
    for each in (generator, styled().half()):
        prior = Prior(each, space="w", draws=1000)
        with prepared(prior, x_obs, torch.ones(x_obs.shape), noise_std=0.01) as problem:
            z = draws(4, 6, seed=2).to(problem.adapter.dtype)
            _, grad = problem.target.energy_and_grad(z[None])
            grads.append(grad[0].double())
    # Half precision has a relative error of 5e-4 for each of some ten layers of operations.
    errors = (grads[1] - grads[0]).norm(dim=1) / grads[0].norm(dim=1)
    assert errors.max() < 0.05


class Breaking(StyleGAN2Generator):
    """Ends a run at call number ``at`` of its synthesis."""

    calls, at = 0, 0

    def synthesise(self, w: Tensor, **how: Any) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return super().synthesise(w, **how)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["paper", "adaptive"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_a_run_in_w_goes_on_bit_for_bit(method: str, share: float, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"latent_size": 5, "mapping": [12, 6], "feature_maps": [4, 3]}
    generator = Breaking(8, **settings).double()
    generator.load_state_dict(styled().state_dict())
    x_obs = generator(draws(1, 5))[0].detach()
    prior = Prior(generator, space="w", draws=1000)
    how: dict[str, Any] = {"noise_std": 0.3, "chains": 3, "seed": 2, "progress": False}
    if method == "paper":
        how |= {"method": Paper(ais_steps=12, leapfrog_steps=3)}
    else:
        how |= {"budget": 60}
    mask = torch.ones(x_obs.shape)
    generator.calls = 0
    whole = cogenerate(prior, x_obs, mask, **how)
    count = generator.calls
    generator.at = count + int(share * count)
    file = tmp_path / "run.safetensors"
    how |= {"checkpoint": Checkpoint(file, seconds=0.0)}
    with pytest.raises(KeyboardInterrupt):
        cogenerate(prior, x_obs, mask, **how)
    assert file.exists()
    # The whitening is fitted again: it is the same, as its draws have a seed of their own.
    again = Prior(generator, space="w", draws=1000)
    before = generator.calls
    assert_same(cogenerate(again, x_obs, mask, **how), whole)
    assert generator.calls - before < count, "it went on, and did not begin anew"
    with pytest.raises(ValueError, match="checkpoint"):
        cogenerate(Prior(generator), x_obs, mask, **how)

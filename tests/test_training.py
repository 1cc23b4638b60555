"""The parts of a progressive training: discriminator, losses, settings, one trainer's steps."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from discs import discs
from torch import Tensor, nn

from cogen_fast.generators.progressive import ProgressiveGenerator, upsample
from cogen_fast.training import losses, progressive
from cogen_fast.training.config import Phase, TrainingConfig
from cogen_fast.training.discriminator import ProgressiveDiscriminator, minibatch_std
from cogen_fast.training.distributed import Processes
from cogen_fast.training.losses import DiscriminatorLoss, GeneratorLoss
from cogen_fast.training.progressive import Trainer, without_gradients

pytestmark = pytest.mark.usefixtures("one_thread")
ALONE = Processes(0, 1, torch.device("cpu"))
SMALL: dict[str, Any] = {
    "resolution": 16,
    "channels": 1,
    "latent_size": 6,
    "feature_maps": (8, 6, 4),
    "phase_images": 16,
    "total_images": 96,
    "batch": 8,
}


def config(**other: Any) -> TrainingConfig:
    return TrainingConfig(**(SMALL | other))


def trainer(**other: Any) -> Trainer:
    return Trainer(config(**other), discs(), ALONE)


def seeded(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64)


# --- discriminator --------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "group"), [(8, 4), (4, 4), (6, 3), (9, 3), (5, 1), (2, 2)])
def test_minibatch_deviation_is_the_mean_over_each_group(count: int, group: int) -> None:
    x = seeded((count, 3, 2, 5))
    found = minibatch_std(x)
    assert torch.equal(found[:, :3], x)
    groups = count // group
    for image in range(count):
        members = x[[i for i in range(count) if i % groups == image % groups]].numpy()
        expected = np.sqrt(members.astype(np.float32).var(0) + 1e-8).mean()
        np.testing.assert_allclose(found[image, 3].numpy(), expected, rtol=1e-5)


def naive_discriminator(net: ProgressiveDiscriminator, x: Tensor, alpha: float) -> Tensor:
    """Table 2 of the paper from the weights alone, without our modules."""
    w = {name: t.double() for name, t in net.state_dict().items()}

    def scaled(name: str, gain: float = 2.0) -> Tensor:
        fan_in = w[f"{name}.weight"][0].numel()
        return w[f"{name}.weight"] * (gain / fan_in) ** 0.5

    def conv(name: str, x: Tensor) -> Tensor:
        weight = scaled(name)
        x = F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)
        return torch.maximum(x, 0.2 * x)

    def halved(x: Tensor) -> Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    new = conv("from_rgb", x)
    for stage in range(len(net.blocks) - 1, -1, -1):
        new = halved(conv(f"blocks.{stage}.conv1", conv(f"blocks.{stage}.conv0", new)))
        if stage == len(net.blocks) - 1 and alpha < 1.0:
            new = alpha * new + (1.0 - alpha) * conv("from_rgb_previous", halved(x))
    new = conv("head.conv", minibatch_std(new)).flatten(1)
    new = new @ scaled("head.dense").T + w["head.dense.bias"]
    new = torch.maximum(new, 0.2 * new)
    return (new @ scaled("head.score", 1.0).T + w["head.score.bias"])[:, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_discriminator_is_that_of_the_paper(alpha: float) -> None:
    torch.manual_seed(0)
    net = ProgressiveDiscriminator(16, 3, (7, 5, 3), fades=alpha < 1.0).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    net.alpha = alpha
    x = seeded((4, 3, 16, 16))
    torch.testing.assert_close(net(x), naive_discriminator(net, x, alpha), rtol=1e-6, atol=1e-6)


def test_growing_changes_nothing_at_first() -> None:
    torch.manual_seed(0)
    small = ProgressiveGenerator(8, channels=1, latent_size=5, feature_maps=(6, 4), fades=True)
    large = ProgressiveGenerator(16, channels=1, latent_size=5, feature_maps=(6, 4, 3), alpha=0.0)
    critic = ProgressiveDiscriminator(8, 1, (6, 4), fades=True)
    larger = ProgressiveDiscriminator(16, 1, (6, 4, 3), fades=True)
    for net in (small, large, critic, larger):
        net.double()
    critic.alpha = 1.0
    progressive.inherit_weights(large, small, "to_rgb")
    progressive.inherit_weights(larger, critic, "from_rgb")
    z, x = seeded((4, 5)), seeded((4, 1, 16, 16))
    assert torch.equal(large(z), upsample(small(z)))
    assert torch.equal(larger(x), critic(F.avg_pool2d(x, 2)))


# --- losses ---------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Scores ``<w, x>``: the gradient is w everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(seeded((2, 3, 3), 5))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sum((1, 2, 3))


class Half(nn.Module):
    """Scores ``|x|^2 / 2``: the gradient is x."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum((1, 2, 3))


REAL, FAKE = seeded((4, 2, 3, 3), 1), seeded((4, 2, 3, 3), 2)
MIX = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)[:, None, None, None]


def test_wgan_gp_of_a_linear_discriminator() -> None:
    critic = Linear()
    loss, apart = DiscriminatorLoss(critic, "wgan-gp")(REAL, FAKE, MIX, True)
    real, fake, w = critic(REAL), critic(FAKE), critic.w
    expected = fake.mean() - real.mean() + 10.0 * (w.norm() - 1.0) ** 2 + 1e-3 * (real**2).mean()
    torch.testing.assert_close(loss, expected.float(), check_dtype=False, rtol=1e-6, atol=0)
    torch.testing.assert_close(apart, (real.mean() - fake.mean()).detach(), check_dtype=False)
    # The loss must also have the gradient of the formula.
    found = torch.autograd.grad(loss, critic.w)[0]
    (true,) = torch.autograd.grad(expected, critic.w)
    torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-6)


def test_wgan_gp_looks_between_real_and_fake() -> None:
    critic = Half()
    loss, _ = DiscriminatorLoss(critic, "wgan-gp")(REAL, FAKE, MIX, True)
    slopes = ((1.0 - MIX) * REAL + MIX * FAKE).flatten(1).norm(dim=1)
    real, fake = critic(REAL), critic(FAKE)
    expected = fake.mean() - real.mean() + 1e-3 * (real**2).mean()
    expected = expected + 10.0 * ((slopes - 1.0) ** 2).mean()
    torch.testing.assert_close(loss, expected, check_dtype=False, rtol=1e-5, atol=0)


@pytest.mark.parametrize("penalise", [True, False])
def test_r1_is_half_gamma_times_the_squared_slope_at_real_images(penalise: bool) -> None:
    critic = Half()
    loss, _ = DiscriminatorLoss(critic, "r1", r1_gamma=3.0)(REAL, FAKE, MIX, penalise)
    expected = F.softplus(critic(FAKE)).mean() + F.softplus(-critic(REAL)).mean()
    if penalise:
        expected = expected + 1.5 * REAL.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss, expected, check_dtype=False, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("loss", "formula"),
    [("wgan-gp", lambda s: -s.mean()), ("r1", lambda s: torch.log1p(torch.exp(-s)).mean())],
)
def test_the_generator_wants_high_scores(loss: str, formula: Callable[[Tensor], Tensor]) -> None:
    critic, generator = Linear(), nn.Unflatten(1, (2, 3, 3))
    z = seeded((5, 18), 7) / 4
    module = GeneratorLoss(generator, critic, loss)
    assert not list(module.parameters())  # the critic's parameters are not among them
    with without_gradients(critic):
        found = module(z.requires_grad_(True))
        found.backward()
    assert critic.w.grad is None and critic.w.requires_grad and z.grad is not None
    expected = formula(critic(generator(z))).float()
    torch.testing.assert_close(found, expected, check_dtype=False, rtol=1e-5, atol=0)


# --- settings -------------------------------------------------------------------------------------


def test_phases_grow_from_four_pixels() -> None:
    assert config().phases == [
        Phase(4, False, 0, 16),
        Phase(8, True, 16, 16),
        Phase(8, False, 32, 16),
        Phase(16, True, 48, 16),
        Phase(16, False, 64, 32),
    ]
    assert [config().phase(n).start for n in (0, 15, 16, 63, 64, 10_000)] == [0, 0, 16, 48, 64, 64]
    fading, grown = Phase(8, True, 16, 16), Phase(8, False, 32, 16)
    assert [fading.alpha(n) for n in (16, 20, 32, 99)] == [0.0, 0.25, 1.0, 1.0]
    assert grown.alpha(32) == 1.0


def test_defaults_are_the_published_ones() -> None:
    found = TrainingConfig(1024)
    sides = [4 << s for s in range(9)]
    assert [found.batch_at(side) for side in sides] == [16] * 6 + [14, 6, 3]
    assert found.feature_maps == (512, 512, 512, 512, 256, 128, 64, 32, 16)
    assert found.discriminator_maps == found.feature_maps
    assert (found.loss, found.average_decay, found.learning_rate) == ("wgan-gp", 0.999, 1e-3)


def test_a_batch_holds_from_its_resolution_up() -> None:
    found = config(batch={4: 16, 16: 8})
    assert [found.batch_at(side) for side in (4, 8, 16)] == [16, 16, 8]


def test_settings_survive_json() -> None:
    found = config(
        batch={4: np.int64(16), 16: 8},
        discriminator_maps=[9, 8, 7],
        total_images=np.int64(96),
        learning_rate=np.float32(0.001),
        seed=np.uint64(3),
    )
    text = json.dumps(found.as_dict())
    again = json.loads(text)
    again["batch"] = {int(side): count for side, count in again["batch"].items()}
    assert TrainingConfig(**again) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resolution": 24}, "resolution: expected a power of two in 4 ... 1024, got 24"),
        ({"resolution": True}, "resolution: .* got True"),
        ({"resolution": 16.0}, "resolution: .* got .*16.0"),
        ({"channels": True}, "channels: .* got True"),
        ({"channels": 2}, "channels: expected 1 or 3, got 2"),
        ({"latent_size": 0}, "latent_size: .* got 0"),
        ({"feature_maps": (8, 6)}, "feature_maps: expected 3 numbers for resolution 16"),
        ({"feature_maps": "864"}, "feature_maps: expected 3 numbers"),
        ({"discriminator_maps": (8, 6, 0)}, "discriminator_maps: .* got 0"),
        ({"feature_maps": None, "fmap_base": 4}, "fmap_base: expected at least 8"),
        ({"phase_images": 1.5}, "phase_images: .* got 1.5"),
        ({"total_images": 64}, "total_images: expected more than 64"),
        ({"batch": 17}, "batch: expected at most phase_images=16, got 17 at resolution 4"),
        ({"batch": 0}, "batch: .* got 0"),
        ({"batch": {8: 4}}, "batch: expected a number for resolution 4 too"),
        ({"batch": {}}, "batch: expected a number for resolution 4 too"),
        ({"batch": {5: 4}}, "batch: expected powers of two in 4 ... 1024, got 5"),
        ({"learning_rate": -1.0}, "learning_rate: .* got -1.0"),
        ({"r1_gamma": float("nan")}, "r1_gamma: .* got nan"),
        ({"average_decay": 1.0}, "average_decay: .* got 1.0"),
        ({"loss": "hinge"}, "loss: expected .*'r1'.*'hinge'"),
        ({"precision": "half"}, "precision: expected .*'bfloat16'.*'half'"),
        ({"flips": 1}, "flips: .* got 1"),
        ({"seed": -1}, "seed: .* got -1"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        config(**given)


# --- a trainer ------------------------------------------------------------------------------------


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def run(found: Trainer, steps: int) -> Trainer:
    for _ in range(steps):
        found.step()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["wgan-gp", "r1"])
@pytest.mark.parametrize("split", [1, 2, 3, 4, 6, 7, 8, 11])
def test_a_restored_trainer_makes_the_same_steps(loss: str, split: int) -> None:
    """It is saved within every phase and at every border; the whole training has 12 steps."""
    straight = run(trainer(loss=loss, flips=True), 12)
    first = run(trainer(loss=loss, flips=True), split)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = trainer(loss=loss, flips=True)
    second.restore(torch.load(file, weights_only=True))
    assert same(run(second, 12 - split).state(), straight.state())
    assert straight.shown == 96 and straight.phase == straight.config.phases[-1]


def test_the_seed_decides_and_no_global_state_does() -> None:
    torch.manual_seed(1)
    a = run(trainer(), 4)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b = run(trainer(), 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(a.state(), b.state())
    assert not torch.equal(weights(a.generator), weights(run(trainer(seed=1), 4).generator))


def test_the_average_follows_the_generator() -> None:
    found = trainer(average_decay=0.9)
    mean = weights(found.generator).clone()
    for _ in range(2):
        found.step()
        mean = 0.9 * mean + 0.1 * weights(found.generator)
    torch.testing.assert_close(weights(found.averaged), mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights(found.averaged), weights(found.generator))


def test_what_has_been_learnt_stays_when_a_resolution_is_added() -> None:
    # 8 px, fully faded in; the steps are too small to change the output
    found = run(trainer(learning_rate=1e-12), 4)
    assert found.phase == Phase(8, False, 32, 16) or found.shown == 32
    run(found, 2)
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    before = {average: upsample(found.snapshot(average=average)(z)) for average in (False, True)}
    found.step()
    assert found.phase == Phase(16, True, 48, 16)
    for average, images in before.items():
        after = found.snapshot(average=average)
        assert after.alpha == 0.0 and after.resolution == 16
        torch.testing.assert_close(after(z), images, rtol=0, atol=1e-6)


def test_adam_starts_anew_with_each_resolution_only() -> None:
    found = trainer()
    steps = []
    for _ in range(12):
        found.step()
        state = found.state()
        steps.append({int(s["step"]) for s in state["generator_adam"]["state"].values()})
    # Adam's steps are 2 at 4 px, 4 at 8 px (the colour layer that fades out learns in the first 2)
    # and 6 at 16 px.
    assert [max(s) for s in steps] == [1, 2, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6]
    assert min(steps[5]) == 2 and min(steps[11]) == 2


def test_every_image_is_shown_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = discs(11)
    found = Trainer(config(total_images=10_000), images, ALONE)
    shown: list[int] = []
    original = type(images).batch

    def recorded(self: Any, indices: Any, *rest: Any) -> Tensor:
        shown.extend(int(i) for i in indices)
        return original(self, indices, *rest)

    monkeypatch.setattr(type(images), "batch", recorded)
    run(found, 5)
    epochs = [shown[i : i + 11] for i in range(0, 33, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def seen_by_the_critic(found: Trainer, steps: int) -> list[Tensor]:
    seen: list[Tensor] = []
    hook = found.discriminator.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    run(found, steps)
    hook.remove()
    return seen


def test_flips_mirror_about_half_of_the_images() -> None:
    unflipped, flipped = (
        seen_by_the_critic(trainer(flips=flips, batch=96, phase_images=960, total_images=9600), 1)
        for flips in (False, True)
    )
    plain, other = unflipped[0], flipped[0]
    as_is = (other == plain).all(-1).all(-1).flatten()
    mirrored = (other == plain.flip(-1)).all(-1).all(-1).flatten()
    assert bool((as_is | mirrored).all())
    symmetric = int((as_is & mirrored).sum())
    # Binomial(96, 1/2) has a standard deviation of 4.9, five of which are 25.
    assert abs(int(mirrored.sum()) - symmetric / 2 - 48) < 25


@pytest.mark.slow
def test_the_lazy_penalty_comes_every_sixteenth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = losses.squared_gradient

    def counted(scores: Tensor, images: Tensor) -> Tensor:
        calls.append(found.steps)
        return original(scores, images)

    monkeypatch.setattr(losses, "squared_gradient", counted)
    found = trainer(loss="r1", total_images=400)
    run(found, 34)
    assert calls == [0, 16, 32]
    calls.clear()
    found = trainer(total_images=400)
    run(found, 5)
    assert calls == [0, 1, 2, 3, 4]


def test_a_snapshot_is_a_copy_and_drops_what_has_faded_out() -> None:
    found = run(trainer(), 9)
    snapshot = found.snapshot(average=False)
    assert not snapshot.fades and snapshot.resolution == 16 and not snapshot.training
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    expected = found.generator(z).detach()
    assert torch.equal(snapshot(z), expected)
    found.step()
    assert torch.equal(snapshot(z), expected)
    assert not torch.equal(found.snapshot(average=False)(z), expected)
    halfway = run(trainer(), 4).snapshot(average=True)
    assert halfway.fades and halfway.alpha == 0.5


def test_half_precision_gives_nearly_the_same_losses() -> None:
    half = trainer(loss="r1", precision="bfloat16").step()
    for name, value in trainer(loss="r1").step().items():
        assert half[name].dtype == torch.float32
        assert abs(half[name] - value) < 0.02 * (1.0 + abs(value))
        assert half[name] != value


def test_real_images_fade_with_the_weight_of_the_new_resolution() -> None:
    found = run(trainer(phase_images=32, total_images=192), 5)
    real = seen_by_the_critic(found, 1)[0]  # alpha was 1 / 4 in this step
    sharp = discs().batch(torch.arange(96), 8)
    mixed = 0.25 * sharp + 0.75 * upsample(F.avg_pool2d(sharp, 2))
    assert (real[:, None] - mixed[None]).abs().amax((2, 3, 4)).amin(1).max() < 1e-5


def test_the_critics_step_keeps_no_graph_of_the_generator() -> None:
    found, kept = trainer(loss="r1"), []
    found.discriminator.register_forward_pre_hook(lambda _, x: kept.append(x[0].requires_grad))
    found.step()
    # Real images, for the penalty; generated ones; those of the generator's loss.
    assert kept == [True, False, True]


@pytest.mark.parametrize(("loss", "share"), [("wgan-gp", 1.0), ("r1", 16 / 17)])
def test_adams_settings_account_for_the_lazy_penalty(loss: str, share: float) -> None:
    state = trainer(loss=loss, r1_gamma=3.0, learning_rate=0.01).state()
    for player, part in (("generator", 1.0), ("discriminator", share)):
        (group,) = state[f"{player}_adam"]["param_groups"]
        assert group["lr"] == pytest.approx(0.01 * part, rel=1e-9)
        assert group["betas"] == pytest.approx((0.0, 0.99**part), rel=1e-9)
    if loss == "r1":
        assert trainer(loss=loss, r1_gamma=3.0).discriminator_loss.r1_gamma == 48.0


def test_both_networks_and_the_average_grow_from_their_own_weights() -> None:
    found = run(trainer(average_decay=0.9, learning_rate=1e-2), 2)
    mean = found.averaged.base.dense.weight.clone()
    critic = found.discriminator.head.dense.weight.detach().clone()
    found.step()
    assert found.phase.resolution == 8
    expected = 0.9 * mean + 0.1 * found.generator.base.dense.weight
    torch.testing.assert_close(found.averaged.base.dense.weight, expected, rtol=1e-5, atol=1e-6)
    moved = (found.discriminator.head.dense.weight - critic).abs().max()
    assert moved < 0.02  # one step of Adam(0, 0.99) moves a weight by 0.01


def drawn(found: Trainer) -> dict[str, Any]:
    batch = found.next_batch()
    return {
        "weights": weights(found.generator).detach(),
        "critic": weights(found.discriminator).detach(),
        "order": found.next_images(8),
        "first": batch.latents[0],
        "second": batch.latents[1],
        "mix": batch.mix,
    }


def test_every_draw_is_of_the_seed_and_its_purpose() -> None:
    one, other = drawn(trainer()), drawn(trainer(seed=1))
    for name, value in one.items():
        assert not torch.equal(value, other[name]), name
    assert not torch.equal(one["first"], one["second"])
    found = trainer()
    found.steps += 1
    later = drawn(found)
    for name in ("first", "second", "mix"):
        assert not torch.equal(one[name], later[name]), name


def test_processes_take_strided_parts_of_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "data_parallel", lambda self, module: module)
    device = torch.device("cpu")
    settings = config(flips=True)
    whole = Trainer(settings, discs(), ALONE).next_batch()
    for rank in range(2):
        part = Trainer(settings, discs(), Processes(rank, 2, device)).next_batch()
        assert torch.equal(part.real, whole.real[rank::2])
        assert torch.equal(part.mix, whole.mix[rank::2])
        for mine, all_of_them in zip(part.latents, whole.latents, strict=True):
            assert torch.equal(mine, all_of_them[rank::2])


@pytest.mark.parametrize("loss", ["wgan-gp", "r1"])
def test_bfloat16_is_what_both_networks_compute_in(loss: str) -> None:
    found, types = trainer(loss=loss, precision="bfloat16"), set()
    for net in (found.generator.base.conv, found.discriminator.head.conv):
        net.register_forward_hook(lambda _, x, y: types.add(y.dtype))
    found.step()
    assert types == {torch.bfloat16}


@pytest.mark.parametrize(
    ("images", "processes", "message"),
    [
        (discs(0), ALONE, "images: expected at least one, got none"),
        (discs(channels=3), ALONE, "channels: expected 3 as the images have, got 1"),
        (discs(side=8), ALONE, "resolution: expected at most 8 as the images have, got 16"),
        (
            discs(),
            Processes(0, 3, torch.device("cpu")),
            "batch: expected multiples of the 3 processes",
        ),
    ],
)
def test_images_and_settings_must_fit(images: Any, processes: Processes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Trainer(config(), images, processes)

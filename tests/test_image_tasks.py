"""Hidden parts of images: their places, sizes and random numbers, and that solvers accept them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cogen_fast import AveragePool, Mask, Paper, Stride, cogenerate, inpaint, super_resolve
from cogen_fast.experiments.evaluate.tasks import (
    PUBLISHED,
    Block,
    Half,
    Pixels,
    SuperResolve,
    Task,
    pose,
    task_named,
)
from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.methods.baselines import reconstruct
from cogen_fast.methods.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: list[Task] = [
    Block(), Block(3, 5), Half("left"), Half("bottom"), Pixels(0.1), SuperResolve(4),
    SuperResolve(4, "stride"),
]  # fmt: skip
every_task = pytest.mark.parametrize("task", TASKS, ids=str)


def images(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    random = torch.Generator().manual_seed(7)
    return torch.rand(count, channels, height, width, generator=random) * 2.0 - 1.0


def hidden_of(task: Task, count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return pose(task, images(count, 1, height, width), range(count), seed).hidden[:, 0]


# --- the noise ------------------------------------------------------------------------------------


@every_task
def test_what_is_hidden_depends_on_seed_and_number_only(task: Task) -> None:
    all_images = images(6)
    together = pose(task, all_images, range(6), seed=3)
    order = [4, 1, 5]
    some = pose(task, all_images[order], order, seed=3)
    assert torch.equal(some.hidden, together.hidden[order])
    alone = pose(task, all_images[4:5], [4], seed=3)
    assert torch.equal(alone.x_obs.nan_to_num(9.0), together.x_obs[4:5].nan_to_num(9.0))
    before = torch.get_rng_state()
    again = pose(task, all_images, range(6), seed=3)
    assert torch.equal(again.hidden, together.hidden)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("task", [Block(), Pixels(0.3)], ids=str)
def test_images_and_seeds_draw_apart(task: Task) -> None:
    first, second = (hidden_of(task, 30, 32, 32, seed) for seed in (0, 1))
    assert len({row.numpy().tobytes() for row in first}) >= 29
    assert not torch.equal(first, second)


@every_task
def test_noise_is_added_to_what_is_observed(task: Task) -> None:
    truth = images(40)
    plain, noisy = (pose(task, truth, range(40), 2, noise_std=s) for s in (0.0, 0.3))
    assert torch.equal(plain.hidden, noisy.hidden) and torch.equal(noisy.truth, truth)
    assert torch.equal(plain.x_obs.isnan(), noisy.x_obs.isnan())
    z = (noisy.x_obs - plain.x_obs)[~plain.x_obs.isnan()].double() / 0.3
    assert abs(float(z.mean())) < 4.0 / len(z) ** 0.5
    assert abs(float(z.square().mean()) - 1.0) < 4.0 * (2.0 / len(z)) ** 0.5
    alone = pose(task, truth[7:8], [7], 2, noise_std=0.3)
    assert torch.equal(alone.x_obs.nan_to_num(9.0), noisy.x_obs[7:8].nan_to_num(9.0))
    with pytest.raises(ValueError, match=r"^noise_std: expected 0 or"):
        pose(task, truth, range(40), noise_std=-0.1)


# --- blocks ---------------------------------------------------------------------------------------


def corners(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """First row and column, and sides, of blocks ``(B, H, W)``; fails where one is no block."""
    down, across = hidden.any(2), hidden.any(1)
    sides = torch.stack([down.sum(1), across.sum(1)], 1)
    first = torch.stack([down.int().argmax(1), across.int().argmax(1)], 1)
    assert (hidden.sum((1, 2)) == sides.prod(1)).all()
    for axis, each in enumerate((down, across)):
        last = each.shape[1] - each.flip(1).int().argmax(1)
        assert (last - first[:, axis] == sides[:, axis]).all()
    return first, sides


def chi_square(values: Tensor, count: int) -> float:
    """The z-score of the chi-square of values that should be uniform below ``count``."""
    found = torch.bincount(values, minlength=count).double()
    assert len(found) == count
    expected = len(values) / count
    statistic = float(((found - expected) ** 2 / expected).sum())
    return (statistic - (count - 1)) / (2.0 * (count - 1)) ** 0.5


def test_sides_and_places_of_blocks_are_uniform() -> None:
    first, sides = corners(hidden_of(Block(4, 9), 6000, 20, 26))
    for axis, length in enumerate((20, 26)):
        assert abs(chi_square(sides[:, axis] - 4, 6)) < 4.0
        for side in (4, 9):
            places = first[sides[:, axis] == side, axis]  # about 1,000
            assert abs(chi_square(places, length - side + 1)) < 4.0
    # Height and width are uncorrelated, and so are the two coordinates of the place.
    pairs = torch.stack([*sides.T, *first.T]).double()
    spread = 1.0 / 6000**0.5
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 4.0 * spread
    assert abs(float(torch.corrcoef(pairs)[2, 3])) < 4.0 * spread


@pytest.mark.parametrize(
    ("side", "bounds"),
    [
        (16, (4, 8)),
        (32, (8, 15)),
        (64, (15, 30)),
        (128, (30, 60)),
        (256, (50, 80)),
        (512, (100, 160)),
        (1024, (200, 320)),
    ],
)
def test_bounds_scale_with_the_image(side: int, bounds: tuple[int, int]) -> None:
    assert Block().bounds(side) == bounds
    assert Block(3, 7).bounds(side) == (3, 7)
    _, sides = corners(hidden_of(Block(), 200 if side < 256 else 8, side, side))
    assert bounds[0] <= int(sides.min()) and int(sides.max()) <= bounds[1]
    if side < 128:
        assert (int(sides.min()), int(sides.max())) == bounds


# --- the other tasks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "rows", "columns"),
    [
        ("left", slice(None), slice(0, 3)),
        ("right", slice(None), slice(4, 7)),
        ("top", slice(0, 2), slice(None)),
        ("bottom", slice(3, 5), slice(None)),
    ],
)
def test_halves(side: Any, rows: slice, columns: slice) -> None:
    expected = torch.zeros(2, 5, 7, dtype=torch.bool)
    expected[:, rows, columns] = True
    assert torch.equal(hidden_of(Half(side), 2, 5, 7), expected)


@pytest.mark.parametrize(("share", "seen"), [(0.1, 2), (0.5, 10), (0.001, 1), (0.99, 20)])
def test_as_many_pixels_are_seen_as_were_asked_for(share: float, seen: int) -> None:
    hidden = hidden_of(Pixels(share), 40, 4, 5)
    assert ((~hidden).sum((1, 2)) == seen).all()


def test_every_pixel_is_as_likely_to_be_seen() -> None:
    seen = ~hidden_of(Pixels(0.25), 4000, 4, 6)
    shares = seen.double().mean(0)
    assert float((shares - 0.25).abs().max()) < 4.5 * (0.25 * 0.75 / 4000) ** 0.5


def test_small_images_are_those_of_the_operators() -> None:
    truth = images(2)
    average = pose(SuperResolve(4), truth, [0, 1])
    torch.testing.assert_close(average.x_obs, torch.nn.functional.avg_pool2d(truth, 4))
    assert isinstance(average.operator, AveragePool) and bool(average.hidden.all())
    stride = pose(SuperResolve(4, "stride"), truth, [0, 1])
    assert torch.equal(stride.x_obs, truth[..., ::4, ::4])
    assert isinstance(stride.operator, Stride)
    assert not bool(stride.hidden[..., ::4, ::4].any())
    assert int(stride.hidden.sum()) == 2 * (32 * 32 - 64)


# --- solvers take them ----------------------------------------------------------------------------


@every_task
def test_solvers_take_what_is_posed(task: Task) -> None:
    generator = pretrained("fashion-32")
    with torch.no_grad():
        truth = generator(torch.randn(2, 64, generator=torch.Generator().manual_seed(1)))
    case = pose(task, truth, [11, 12])
    assert torch.equal(case.truth, truth)
    fit = reconstruct(
        generator, case.x_obs, case.operator, method="gd", steps=1, learning_rate=1e-3, weight=1.0
    )
    quick: dict[str, Any] = {"method": Paper(ais_steps=1, leapfrog_steps=1), "chains": 1}
    solve: Callable[..., Any] = inpaint if isinstance(case.operator, Mask) else cogenerate
    result = solve(generator, case.x_obs, case.operator, weight=1.0, progress=False, **quick)
    for found in (fit, result):
        assert found.images.shape == (2, 1, 1, 32, 32)
        if isinstance(case.operator, Mask):
            assert torch.equal(found.observed, ~case.hidden)
            pasted = found.completed[:, 0]
            assert torch.equal(pasted[~case.hidden], truth[~case.hidden])


# --- names, published tasks, errors ---------------------------------------------------------------


@every_task
def test_names_are_read_as_they_are_written(task: Task) -> None:
    assert task_named(str(task)) == task


@pytest.mark.parametrize(
    "name",
    ["", "hole", "block-3", "block-3-5-7", "block-a-b", "half", "half-left-right", "pixels",
     "stride", "average-4.5", "Block", None, 3],
)  # fmt: skip
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^task: expected block, block-LOW-HIGH, half-SIDE"):
        task_named(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task_named("half-middle"), "side: expected one of .*'middle'"),
        (lambda: task_named("pixels-1.5"), "observed: expected .*1.5"),
        (lambda: task_named("pixels-nan"), "observed: expected .*nan"),
        (lambda: task_named("average-1"), "factor: expected at least 2, got 1"),
        (lambda: Block(5, 4), "high: expected at least low=5, got 4"),
        (lambda: Block(0, 4), "low: expected"),
        (lambda: Block(low=4), "block: expected both bounds or none"),
        (lambda: SuperResolve(4, "cubic"), "downsample: expected one of"),  # type: ignore[arg-type]
        (lambda: pose(Block(3, 32), images(1), [0]), "block: expected sides below 32 x 32, .* 32"),
        (lambda: pose(SuperResolve(5), images(1), [0]), "factor: expected a divisor"),
        (lambda: pose(Block(), images(1)[0], [0]), r"truth: expected shape \(B, C, H, W\)"),
        (lambda: pose(Block(), images(2), [0]), "observation_ids: expected 2 different numbers"),
        (lambda: pose(Block(), images(2), [0, 0]), "observation_ids: expected 2 different"),
        (lambda: pose(Block(), images(1), [0], seed=-1), "seed: expected"),
    ],
)
def test_errors_name_the_argument(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        make()
    with pytest.raises(TypeError, match=r"^truth: expected floating-point values, got torch.uint8"):
        pose(Block(), images(1).byte(), [0])


def test_published_tasks_are_the_paper_s() -> None:
    assert {name: (p.resolution, str(p.task), p.latent_size) for name, p in PUBLISHED.items()} == {
        "celeba-128": (128, "block-30-60", 512),
        "celeba-128-program": (128, "block-30-60", 512),
        "lsun-256": (256, "block-50-80", 512),
        "celebahq-1024-sisr": (1024, "average-8", 512),
    }
    assert set(PUBLISHED) == {name for name in PRESETS if not name.startswith("five-gaussians")}


def test_published_networks_have_the_paper_s_cost() -> None:
    """2.16 G multiply-adds for CelebA; the usual network at 128 pixels has 20.9 G."""
    celeba = PUBLISHED["celeba-128"]
    network = ProgressiveGenerator(celeba.resolution, fmap_base=celeba.fmap_base)
    assert network.multiply_adds() == pytest.approx(2.16e9, rel=0.01)
    assert network.latent_size == celeba.latent_size
    usual = ProgressiveGenerator(128, fmap_base=PUBLISHED["lsun-256"].fmap_base)
    assert usual.multiply_adds() == pytest.approx(20.9e9, rel=0.01)


@pytest.mark.slow
def test_a_published_run_goes_through_its_whole_network() -> None:
    """Random weights, one temperature of one leapfrog step; everything else is the preset's."""
    published, preset = PUBLISHED["celeba-128"], PRESETS["celeba-128"]
    generator = ProgressiveGenerator(published.resolution, fmap_base=published.fmap_base).eval()
    with torch.no_grad():
        truth = generator(torch.randn(1, 512, generator=torch.Generator().manual_seed(1)))
    case = pose(published.task, truth.clamp(-1.0, 1.0), [0])
    result = inpaint(
        generator,
        case.x_obs,
        case.operator,
        method=Paper(preset="celeba-128", ais_steps=1, leapfrog_steps=1),
        progress=False,
    )
    assert result.images.shape == (1, preset.chains, 3, 128, 128)
    assert result.settings["form"] == preset.form and result.settings["noise"] == "weight 1"
    assert result.cost == preset.chains * 2 * 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("populations", r"; give method=Adaptive\(populations=\.\.\.\)$"),
        (
            "hmc_steps",
            r"; give method=Adaptive\(hmc_steps=\.\.\.\) or method=Paper\(hmc_steps=\.\.\.\)$",
        ),
        ("backend", r"; give compute=Compute\(backend=\.\.\.\)$"),
        ("seconds", r"; give checkpoint=Checkpoint\(seconds=\.\.\.\)$"),
        ("colour", "$"),
    ],
)
def test_a_setting_in_the_wrong_place_is_shown_its_place(name: str, hint: str) -> None:
    message = f"^{name}: expected an option of cogenerate, got another name{hint}"
    with pytest.raises(TypeError, match=message):
        inpaint(lambda z: z, torch.zeros(3), torch.ones(3), **{name: 2})
    with pytest.raises(TypeError, match=message):
        super_resolve(lambda z: z, torch.zeros(1, 2, 2), 2, **{name: 2})

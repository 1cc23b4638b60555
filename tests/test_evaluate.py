"""Evaluation of many images: groups, shards, resuming, corrupt images, and the table."""

from __future__ import annotations

import csv
import errno
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cogen_fast.experiments.evaluate import evaluate as evaluation
from cogen_fast.experiments.evaluate import shards as evaluation_shards
from cogen_fast.experiments.evaluate import table as evaluation_table
from cogen_fast.experiments.evaluate.data import Data, of_generator, open_data
from cogen_fast.experiments.evaluate.evaluate import Method, Study, evaluate, gather
from cogen_fast.experiments.evaluate.pictures import draw
from cogen_fast.experiments.evaluate.tasks import Block, SuperResolve, pose
from cogen_fast.experiments.evaluate.tuning import Grid, tuned
from cogen_fast.methods.baselines import reconstruct
from cogen_fast.methods.settings import keywords
from cogen_fast.problem.compute import gathered
from cogen_fast.results import grids, metrics
from cogen_fast.support.digests import without_digest
from cogen_fast.support.files import parse_json
from cogen_fast.tasks import cogenerate

pytest.importorskip("pytorch_msssim")
pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 16
METHODS = (
    Method("gd", "gd", {"steps": 4, "learning_rate": 0.02, "chains": 2}),
    Method("sir", "sir", {"starts": 30, "chains": 3}),
    Method("paper", "paper", {"ais_steps": 3, "leapfrog_steps": 2, "chains": 3}),
)
STUDY = Study(Block(4, 6), METHODS, {"noise_std": 0.3}, seed=5, group=2)
QUIET: dict[str, Any] = {"progress": False}


class Net(nn.Module):
    """A generator of 16 x 16 images from 4 latents that counts its calls and is stopped at one."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.layer, self.calls, self.stop = nn.Linear(4, SIDE * SIDE), 0, stop
        self.latent_size = 4
        random = torch.Generator().manual_seed(1)
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=random)
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return torch.tanh(self.layer(z)).reshape(-1, 1, SIDE, SIDE)


def data(count: int = 5, broken: Sequence[int] = ()) -> Data:
    own = of_generator(Net(), 4, count, seed=77)

    def load(i: int) -> Tensor:
        if i in broken:
            raise ValueError(f"image {i} cannot be read")
        return own.load(i)

    return Data(own.names, load)


def timeless(records: Any) -> Any:
    """The records without times, which differ from run to run."""
    if isinstance(records, dict):
        return {key: timeless(each) for key, each in records.items() if key != "seconds"}
    return [timeless(each) for each in records] if isinstance(records, list) else records


def kept(out: Path) -> Any:
    """The content of a folder without times."""
    return timeless(list(gather(out)))


def run(out: Path, study: Study = STUDY, images: Data | None = None, **how: Any) -> Any:
    evaluate(Net(), data() if images is None else images, study, out, **QUIET | how)
    return kept(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


# --- records --------------------------------------------------------------------------------------


def test_records_are_what_direct_calls_give(whole: Path) -> None:
    records = list(gather(whole))
    assert [record["image"] for record in records] == [0, 1, 2, 3, 4]
    assert [record["name"] for record in records] == [f"own-{i}" for i in range(5)]
    assert {record["task"] for record in records} == {"block-4-6"}
    images = torch.stack([data().load(i) for i in (2, 3)])
    case = pose(STUDY.task, images, [2, 3], seed=5)
    common: dict[str, Any] = {"noise_std": 0.3, "seed": 5, "observation_ids": [2, 3]}
    fit = reconstruct(
        Net(),
        case.x_obs,
        case.operator,
        **gathered({"method": "gd", "steps": 4, "learning_rate": 0.02, "chains": 2, **common}),
    )
    sampled = cogenerate(
        Net(),
        case.x_obs,
        case.operator,
        **keywords(
            {"method": "paper", "ais_steps": 3, "leapfrog_steps": 2, "chains": 3, **common, **QUIET}
        ),
    )
    for name, result in (("gd", fit), ("paper", sampled)):
        for b, number in enumerate((2, 3)):
            found = records[number]["methods"][name]
            weights = result.weights[b] if name == "paper" else None
            hidden = case.hidden[b]
            expected = metrics.summarise(
                result.images[b], images[b], result.energies[b], hidden, weights=weights
            )
            assert timeless(found["metrics"]) == json.loads(
                json.dumps(expected), parse_constant=lambda _: None
            )
            assert found["cost"] == result.cost
            assert found["energies"] == result.energies[b].tolist()
            assert found["diagnosis"] == result.diagnose()
            if name == "paper":
                assert found["acceptance"] == [pytest.approx(float(sampled.acceptance[-1, b]))]
                share = metrics.coverage(result.images[b], images[b], hidden, weights=weights)
                assert found["coverage"]["0.5"] in (None, float(share[0]))
                assert found["coverage"]["0.95"] is None  # three samples are too few for 95 %
    with np.load(whole / "gd" / "group-000001.npz") as pictures:
        assert pictures["image"].tolist() == [2, 3]
        levels = ((fit.best_images.clamp(-1, 1) + 1) * 127.5).round().numpy()
        np.testing.assert_array_equal(pictures["best"], levels)
        assert pictures["mean"].dtype == np.uint8


def test_best_fits_have_no_coverage(whole: Path) -> None:
    methods = next(gather(whole))["methods"]
    assert "coverage" not in methods["gd"] and "acceptance" not in methods["gd"]
    assert "coverage" in methods["sir"] and "acceptance" not in methods["sir"]


def test_methods_see_the_noise_that_is_added(tmp_path: Path) -> None:
    study = replace(STUDY, methods=METHODS[:1], added_noise=0.2)
    records = run(tmp_path, study)
    truth = torch.stack([data().load(i) for i in (0, 1)])
    case = pose(STUDY.task, truth, [0, 1], 5, noise_std=0.2)
    expected = reconstruct(
        Net(),
        case.x_obs,
        case.operator,
        **gathered({"method": "gd", "noise_std": 0.3, "seed": 5, **(METHODS[0].options)}),
    )
    found = records[1]["methods"]["gd"]
    assert found["energies"] == expected.energies[1].tolist()
    assert found["metrics"]["chains"]["mse"] == metrics.mse(expected.images[1], truth[1]).tolist()


def test_a_method_s_own_options_win(whole: Path, tmp_path: Path) -> None:
    own = replace(METHODS[0], options={**METHODS[0].options, "noise_std": None, "weight": 1.0})
    records = run(tmp_path, replace(STUDY, methods=(own,)))
    case = pose(STUDY.task, torch.stack([data().load(i) for i in (0, 1)]), [0, 1], seed=5)
    expected = reconstruct(
        Net(), case.x_obs, case.operator, method="gd", seed=5, steps=4, learning_rate=0.02,
        chains=2, weight=1.0,
    )  # fmt: skip
    assert records[1]["methods"]["gd"]["energies"] == expected.energies[1].tolist()


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_number_of_processes_changes_nothing(
    world_size: int, whole: Path, tmp_path: Path
) -> None:
    for rank in range(world_size):
        run(tmp_path, rank=rank, world_size=world_size)
    assert kept(tmp_path) == kept(whole)
    for shard in whole.glob("*/*.npz"):
        with np.load(shard) as a, np.load(tmp_path / shard.parent.name / shard.name) as b:
            assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_each_process_does_its_own_groups(tmp_path: Path) -> None:
    run(tmp_path, rank=1, world_size=2)
    assert sorted(p.name for p in (tmp_path / "gd").glob("*.jsonl")) == ["group-000001.jsonl"]


# --- resuming -------------------------------------------------------------------------------------


def test_what_is_there_is_not_done_again(whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    net = Net()
    evaluate(net, data(broken=range(5)), STUDY, tmp_path, **QUIET)  # the images are not even read
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert net.calls <= 4  # one call finds the latent's shape, the others are checks


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4, 8, 12])
def test_a_run_stopped_while_it_reads_goes_on(stop: int, whole: Path, tmp_path: Path) -> None:
    calls = 0

    def load(i: int) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return data().load(i)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, images=Data(data().names, load))
    assert not list(tmp_path.rglob(".*"))  # nothing half-written is left
    assert run(tmp_path) == kept(whole)


@pytest.mark.slow
def test_a_run_stopped_in_the_generator_goes_on(whole: Path, tmp_path: Path) -> None:
    """The run is stopped in the checks, in a descent, or in the sampler, which has a checkpoint."""
    counted = Net()
    evaluate(counted, data(), STUDY, tmp_path / "counted", **QUIET)
    saved = 0
    for number, stop in enumerate(range(5, counted.calls, 6)):
        out = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            evaluate(Net(stop), data(), STUDY, out, **QUIET)
        saved += len(list(out.rglob("*.checkpoint.safetensors")))
        assert run(out) == kept(whole)
        assert not list(out.rglob("*.checkpoint.safetensors"))
    assert saved > 0


def test_images_and_methods_are_added_to_what_is_there(whole: Path, tmp_path: Path) -> None:
    evaluate(Net(), data(), replace(STUDY, methods=METHODS[:1]), tmp_path, images=4, **QUIET)
    assert [set(record["methods"]) for record in gather(tmp_path)] == [{"gd"}] * 4
    assert run(tmp_path) == kept(whole)


@pytest.mark.slow
def test_a_group_that_was_not_full_is_done_again_with_more_images(
    whole: Path, tmp_path: Path
) -> None:
    evaluate(Net(), data(), STUDY, tmp_path, images=3, **QUIET)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/group-000000.*")}
    assert [record["image"] for record in gather(tmp_path)] == [0, 1, 2]
    assert run(tmp_path) == kept(whole)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    counted = Net()
    # All of these fewer images have been evaluated.
    evaluate(counted, data(), STUDY, tmp_path, images=3, **QUIET)
    assert counted.calls <= 4


@pytest.mark.slow
def test_an_unfinished_group_with_more_images_starts_anew(whole: Path, tmp_path: Path) -> None:
    counted = Net()
    evaluate(counted, data(), STUDY, tmp_path / "counted", images=3, **QUIET)
    for stop in range(counted.calls, 0, -1):
        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(Net(stop), data(), STUDY, out, images=3, **QUIET)
        if list(out.glob("paper/group-000001.*.checkpoint.safetensors")):
            break
    else:
        raise AssertionError("no checkpoint of the last group")
    assert run(out) == kept(whole)


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
import test_evaluate as t
t.evaluate(t.Net(), t.data(), t.STUDY, Path({out!r}), progress=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_nothing_that_was_done(whole: Path, tmp_path: Path) -> None:
    code = _KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    # The current folder is not the checkout's root, whose sources have no compiled extension.
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/group-*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = {path: path.read_bytes() for path in tmp_path.glob("*/group-*.jsonl")}
    assert done
    assert run(tmp_path) == kept(whole)
    assert {path: path.read_bytes() for path in done} == done


# --- corrupt images -------------------------------------------------------------------------------


def test_a_corrupt_image_is_reported_and_left_out(whole: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"image 3 \(own-3\) is left out: image 3 cannot be read"):
        records = run(tmp_path, images=data(broken=[3]))
    assert records[3] == {
        "image": 3, "name": "own-3", "task": "block-4-6", "error": "image 3 cannot be read",
    }  # fmt: skip
    others = [record for record in kept(whole) if record["image"] != 3]
    assert [record["image"] for record in records if "methods" in record] == [0, 1, 2, 4]
    # Groups without the image have equal calls. Its own group is one image smaller, so that
    # rounding differs.
    for found, expected in zip([r for r in records if "methods" in r], others, strict=True):
        assert found["methods"]["gd"]["energies"] == pytest.approx(
            expected["methods"]["gd"]["energies"], rel=1e-4
        )
    text = evaluation_table.tabulated(gather(tmp_path)).text()
    assert "left out: own-3: image 3 cannot be read" in text


@pytest.mark.parametrize("number", [1, 4])  # an evaluated image, and one used for tuning
def test_an_image_that_cannot_be_read_now_is_not_given_up(number: int, tmp_path: Path) -> None:
    images = data()

    def fails(i: int) -> Tensor:
        if i == number:
            raise OSError(errno.EIO, "Input/output error")
        return images.load(i)

    tuning = replace(STUDY, methods=(Method("gd", "gd", {"steps": 4}),))
    told = pytest.raises(OSError, match="Input/output error")
    for load, expected in ((fails, told), (images.load, nullcontext())):
        found = replace(images, load=load)
        with expected:
            study = tuned(Net(), found, tuning, tmp_path, images=4, grid=Grid(1), **QUIET)
            evaluate(Net(), found, study, tmp_path, images=4, **QUIET)
    assert ["error" in record for record in gather(tmp_path)] == [False] * 4


def test_a_group_of_corrupt_images_is_done(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="left out"):
        records = run(tmp_path, images=data(2, broken=[0, 1]))
    assert ["error" in record for record in records] == [True, True]
    assert "no image is done" in evaluation_table.tabulated(records).text()


# --- data -----------------------------------------------------------------------------------------


def test_folders_are_read_image_by_image(tmp_path: Path) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (2, 40, 24, 3), dtype=np.uint8)
    for name, pixels in zip(("b.png", "a.png"), levels, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    found = open_data(tmp_path, 16, channels=1)
    assert found.names == ("a.png", "b.png", "c.png")
    image = found.load(0)
    expected = Image.fromarray(levels[1]).convert("L").crop((0, 8, 24, 32)).resize((16, 16), 1)
    np.testing.assert_allclose(image[0], np.asarray(expected) / 127.5 - 1.0, atol=1e-6)
    assert image.shape == (1, 16, 16) and image.dtype == torch.float32
    with pytest.raises(ValueError, match=r"c.png: corrupt"):
        found.load(2)


def test_arrays_are_read_too(tmp_path: Path) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", levels)
    found = open_data(tmp_path / "images.npz", 16, channels=1, cache=tmp_path / "cache")
    assert len(found) == 3
    np.testing.assert_allclose(found.load(2)[0], levels[2] / 127.5 - 1.0, atol=1e-6)


def test_a_generator_s_own_images_depend_on_number_and_seed() -> None:
    first, again, other = (of_generator(Net(), 4, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(first.load(2), again.load(2))
    assert not torch.equal(first.load(2), first.load(1))
    assert not torch.equal(first.load(2), other.load(2))
    assert of_generator(Net().double(), 4, 3, 1).load(2).dtype == torch.float64
    with pytest.raises(ValueError, match=r"^generator: expected eval mode"):
        of_generator(Net().train(), 4, 3, 1)


# --- the table ------------------------------------------------------------------------------------


def test_the_table_is_means_over_images(whole: Path, tmp_path: Path) -> None:
    records = list(gather(whole))
    rows = {(row.method, row.taken): row for row in evaluation_table.tabulated(records).rows}
    assert set(rows) == {(m, t) for m in ("gd", "sir", "paper") for t in evaluation_table.TAKEN}
    each = [record["methods"]["paper"]["metrics"] for record in records]
    for taken in evaluation_table.TAKEN:
        row = rows["paper", taken]
        values = [float(np.mean(metric[taken]["hidden_mse"])) for metric in each]
        expected = (np.mean(values), np.std(values, ddof=1) / math.sqrt(5))
        assert row.values["hidden_mse"] == pytest.approx(expected)
        assert row.images == 5 and row.cost == 3 * 2 * (1 + 3 * 2)
    assert rows["paper", "oracle"].values["mse"] <= rows["paper", "best"].values["mse"]
    assert rows["gd", "best"].acceptance is None and rows["gd", "best"].coverage is None
    evaluation_table.tabulated(records).write(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 4 * 7
    (line,) = (
        ln for ln in lines if (ln["method"], ln["taken"], ln["metric"]) == ("sir", "mean", "ssim")
    )
    assert float(line["mean"]) == rows["sir", "mean"].values["ssim"][0]
    text = evaluation_table.tabulated(records).text()
    assert f"{rows['gd', 'best'].values['mse'][0]:.4f}" in text
    assert "coverage of paper: 0.5:" in text and "0.95: too few samples" in text


def test_records_are_read_group_by_group(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def spied(shard: Path) -> Any:
        seen.append(shard)
        return evaluation_shards.read(shard)

    monkeypatch.setattr(evaluation, "read", spied)
    records = gather(whole)
    for number, groups in enumerate((1, 1, 2, 2, 3)):
        assert next(records)["image"] == number
        assert len(seen) == 3 * groups  # a group has one file for each method
    assert next(records, None) is None


def test_the_table_is_of_images_that_every_method_has_done(whole: Path) -> None:
    records = list(gather(whole))
    del records[2]["methods"]["gd"]
    assert {row.images for row in evaluation_table.tabulated(records).rows} == {4}
    assert "1 images are not done by every method yet" in evaluation_table.tabulated(records).text()


def test_pictures_show_truth_observed_and_the_best_of_each_method(whole: Path) -> None:
    picture = np.asarray(draw(data(), STUDY, whole, [3, 0]))
    case = pose(STUDY.task, torch.stack([data().load(3)]), [3], seed=5)
    # Tiles of 16 pixels are enlarged to 112; columns and rows have gaps.
    factor, cell = 7, 4 + 7 * SIDE
    assert picture.shape == (2 * (cell + 18) + 4, 5 * cell + 4, 3)

    def tile(row: int, column: int) -> Any:
        top, left = 4 + 18 + row * (cell + 18), 4 + column * cell
        return picture[top : top + 7 * SIDE : factor, left : left + 7 * SIDE : factor]

    np.testing.assert_array_equal(tile(0, 0), grids.to_pixels(case.truth[0].numpy()))
    seen = ~case.hidden[0, 0].numpy()
    np.testing.assert_array_equal(tile(0, 1)[seen], tile(0, 0)[seen])
    assert (tile(0, 1)[~seen] == tile(0, 1)[~seen][0]).all()
    for column, method in enumerate(("gd", "sir", "paper"), start=2):
        with np.load(whole / method / "group-000001.npz") as file:
            expected = np.repeat(file["best"][1].transpose(1, 2, 0), 3, axis=2)
        np.testing.assert_array_equal(tile(0, column), expected)
    with pytest.raises(ValueError, match=r"^images: expected images that gd has .*got 9"):
        draw(data(), STUDY, whole, [9])


def test_pictures_of_small_images(tmp_path: Path) -> None:
    study = replace(STUDY, task=SuperResolve(4), methods=METHODS[1:2])
    evaluate(Net(), data(), study, tmp_path, images=1, **QUIET)
    picture = np.asarray(draw(data(), study, tmp_path, [0]))
    low = pose(study.task, data().load(0)[None], [0]).x_obs[0].numpy()
    shown = picture[22 : 22 + 112 : 28, 4 + 116 : 4 + 116 + 112 : 28]
    np.testing.assert_array_equal(shown, grids.to_pixels(low))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": SuperResolve(2)}, r"out: .* task 'block-4-6', got 'average-2'"),
        ({"seed": 6}, r"out: .* seed 5, got 6"),
        ({"group": 3}, r"out: .* group 2, got 3"),
        ({"added_noise": 0.1}, r"out: .* added_noise 0.0, got 0.1"),
        ({"common": {"noise_std": 0.4}}, r"out: .* common .*0.3.*0.4"),
        ({"methods": (replace(METHODS[0], options={"steps": 5}),)}, r"out: .*gd .* options .*"),
        ({"methods": (replace(METHODS[0], solver="adam"),)}, r"out: .*gd .* solver 'gd', got"),
    ],
    ids=["task", "seed", "group", "added_noise", "common", "options", "solver"],
)
def test_another_plan_is_refused(change: dict[str, Any], message: str, whole: Path) -> None:
    before = kept(whole)
    with pytest.raises(ValueError, match="^" + message):
        run(whole, replace(STUDY, **change))
    with pytest.raises(ValueError, match=r"^out: .* data"):
        run(whole, images=data(4))
    other = Net()
    other.layer.bias.data += 0.1
    with pytest.raises(ValueError, match=r"^out: .* generator"):
        evaluate(other, data(), STUDY, whole, **QUIET)
    assert kept(whole) == before


def exchange(folder: Path, one: str, other: str) -> None:
    """Exchange the first lines of two files of records; each record keeps its digest."""
    rows = [(folder / name).read_text().splitlines(keepends=True) for name in (one, other)]
    rows[0][0], rows[1][0] = rows[1][0], rows[0][0]
    for name, lines in zip((one, other), rows, strict=True):
        (folder / name).write_text("".join(lines))


def rewrite(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


FIRST, SECOND, OTHERS = "gd/group-000000.jsonl", "gd/group-000001.jsonl", "paper/group-000000.jsonl"


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: shutil.copy(out / OTHERS, out / FIRST),
        lambda out: shutil.copy(out / FIRST, out / SECOND),
        lambda out: exchange(out, FIRST, OTHERS),
        lambda out: exchange(out, FIRST, SECOND),
        lambda out: rewrite(out, FIRST, lambda lines: [lines[0], lines[0]]),
        lambda out: rewrite(out, FIRST, lambda lines: lines[::-1]),
        lambda out: rewrite(out, FIRST, lambda lines: lines[:1]),
        lambda out: rewrite(out, FIRST, lambda lines: []),
        lambda out: shutil.copy(out / "gd/plan.json", out / "plan.json"),
        lambda out: shutil.copy(out / "plan.json", out / "gd/plan.json"),
        lambda out: shutil.copy(out / "paper/plan.json", out / "gd/plan.json"),
        lambda out: shutil.copy(out / "gd/plan.json", out / FIRST),
    ],
)
def test_files_in_the_place_of_others_are_told(damage: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    damage(out)
    with pytest.raises(ValueError, match=r"^out: .*(plan\.json|group-00000[01]\.jsonl)"):
        list(gather(out))
    with pytest.raises(ValueError, match=r"^out: "):
        run(out)


def test_nesting_of_any_depth_is_told() -> None:
    # Writing JSON uses slightly more of the stack than reading it, so that nesting near the limit
    # fails in one of them only.
    for depth in (*range(900, 1001), 100_000):
        text = '{"x": ' + "[" * depth + "]" * depth + "}"
        with pytest.raises(ValueError, match=r"^file"):
            without_digest("file", parse_json("file", text), "place")


def test_other_names_are_no_records(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "gd" / "group-x.jsonl").touch()
    assert kept(out) == kept(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: shutil.copy(path.parents[1] / "paper" / path.name, path),
        lambda path: shutil.copy(path.with_name("group-000001.npz"), path),
        lambda path: inverted(path),
    ],
)
def test_damaged_pictures_are_told(damage: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    damage(out / "gd" / "group-000000.npz")
    with pytest.raises(ValueError, match=r"^out: .*gd.group-000000\.npz is damaged: "):
        draw(data(), STUDY, out, [0])


def inverted(path: Path) -> None:
    """Change the pixels of a file and leave their digest as it was."""
    with np.load(path) as archive:
        held = {name: archive[name] for name in archive.files}
    np.savez_compressed(path, **held | {"best": 255 - held["best"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan.json", "gd/plan.json", "gd/group-000000.jsonl"])
def test_a_digit_that_has_changed_is_told(name: str, tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / name
    text = path.read_text()
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    for place in digits[:: max(1, len(digits) // 40)]:
        # Digits change by five, because a change by one in the last digit may round to the same
        # number.
        path.write_text(text[:place] + str((int(text[place]) + 5) % 10) + text[place + 1 :])
        with pytest.raises(ValueError, match=r"^out: .*"):
            list(gather(tmp_path))
            run(tmp_path)
    path.write_text(text)
    run(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: Method("../x", "gd"), "name: expected letters"),
        (lambda out: Method("x", "annealing"), "solver: expected one of"),
        (lambda out: Study(Block(), ()), "methods: expected at least one"),
        (lambda out: Study(Block(), (METHODS[0], METHODS[0])), "methods: .* different names"),
        (lambda out: Study(Block(), METHODS, group=0), "group: expected"),
        (lambda out: Study(Block(), METHODS, seed=-1), "seed: expected"),
        (lambda out: Study(Block(), METHODS, added_noise=-1.0), "added_noise: expected"),
        (lambda out: run(out, images=data(0)), "count: expected"),
        (lambda out: run(out, images=None, rank=2, world_size=2), "rank: expected at most 1"),
        (lambda out: run(out, images=None, world_size=0), "world_size: expected"),
        (lambda out: evaluate(Net(), data(), STUDY, out, images=6), "images: expected at most 5"),
    ],
)
def test_errors_name_the_argument(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^" + message):
        make(tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""The image study: its plan, runs, resuming, report and figures; and the published presets."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studies import SCOPE, SNAPSHOTS, TINY, network

from cogen_fast.cli.main import main
from cogen_fast.experiments.evaluate import evaluate
from cogen_fast.experiments.evaluate import tuning as evaluation_tuning
from cogen_fast.experiments.evaluate.nuts import NUTS
from cogen_fast.experiments.evaluate.record import record_of
from cogen_fast.experiments.evaluate.tasks import PUBLISHED, pose
from cogen_fast.experiments.images import figures as image_study_figures
from cogen_fast.experiments.images import published
from cogen_fast.experiments.images import report as image_study_report
from cogen_fast.experiments.images import study as image_study
from cogen_fast.experiments.images.plan import (
    CURVES,
    DEFAULT,
    GROUP,
    KINDS,
    METHODS,
    MULTI_STARTS,
    NOISE_STD,
    OPTIMISERS,
    QUICK,
    RATES,
    SCALED,
    TASKS,
    Effort,
    Part,
    Scope,
    Snapshot,
)
from cogen_fast.experiments.images.results import (
    METRICS,
    Line,
    PartResults,
    curve,
    errors,
    lines,
    part_results,
)
from cogen_fast.generators.pretrained import FASHION_STAGES, held_out_images
from cogen_fast.generators.progressive import ProgressiveGenerator
from cogen_fast.methods.presets import PRESETS

pytest.importorskip("pytorch_msssim")
pytestmark = pytest.mark.usefixtures("one_thread")

OTHER = Snapshot("late", 3_000, network(3))


def run(out: Path, **how: Any) -> str:
    options: dict[str, Any] = {
        "effort": TINY,
        "scope": SCOPE,
        "progress": False,
        "processes": 1,
    } | how
    return image_study.reproduce(out, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("study")
    with warnings.catch_warnings():
        # The report mentions learning rates; a warning about them would be an error here.
        warnings.filterwarnings("error", ".*learning rate")
        (out / "told.txt").write_text(run(out))
    return out


def parts(effort: Effort = TINY) -> tuple[Part, ...]:
    real = image_study.real_images(None, SCOPE)
    return image_study.plan(SCOPE, real, effort, seed=0)


@pytest.fixture(scope="module")
def results(whole: Path) -> list[PartResults]:
    return [part_results(part, whole, TINY, seed=0) for part in parts()]


def main_of(results: list[PartResults], kind: str, task: str) -> PartResults:
    (one,) = (r for r in results if r.is_main and r.kind == kind and str(r.part.task) == task)
    return one


# --- the plan -------------------------------------------------------------------------------------


def test_the_paper_s_method_has_the_paper_s_settings() -> None:
    method, scaled = (parts()[0].method(name, Effort()) for name in ("paper", SCALED))
    preset = PRESETS["celeba-128"]
    assert method.solver == "paper"
    assert method.options == {
        "preset": "celeba-128",
        "ais_steps": preset.ais_steps,
        "leapfrog_steps": preset.leapfrog_steps,
    }
    assert scaled.solver == "paper" and scaled.options == {**method.options, "weight": 48.0}
    assert preset.weight == 1.0 and 48 * 32 * 32 == 3 * 128 * 128
    assert (preset.ais_steps, preset.leapfrog_steps, preset.chains) == (499, 20, 1)
    assert Effort().starts == 5_000
    assert [str(task) for task in TASKS] == ["block", "average-4", "average-8"]
    block: Any = TASKS[0]
    assert block.bounds(32) == (8, 15)  # a block side of 30 to 60 pixels at 128


def test_the_curve_has_the_shipped_stages() -> None:
    assert tuple(snapshot.shown for snapshot in image_study.shipped().snapshots) == FASHION_STAGES


def test_every_kind_of_images_has_all_tasks_and_the_curve_s_snapshots() -> None:
    found_parts = [(p.kind, str(p.task), p.snapshot.name, p.methods, p.images) for p in parts()]
    longest = [(kind, str(task), "late", METHODS, 2) for kind in KINDS for task in TASKS]
    assert found_parts == longest + [(kind, "block", "early", CURVES, 1) for kind in KINDS]


@pytest.mark.slow
def test_rates_are_tuned_on_images_that_are_not_evaluated(whole: Path) -> None:
    """These are the last two; the plan leaves them out, however many images are evaluated."""
    for part in parts():
        for name in set(part.methods) & set(OPTIMISERS):
            tuning = json.loads((part.folder(whole) / name / "tuning.json").read_text())
            assert tuning["images"] == [len(part.data) - 2, len(part.data) - 1]
    for part in parts(Effort(images=8)):
        assert part.images <= len(part.data) - 2


def test_kinds_are_what_they_are_called() -> None:
    for part in parts():
        image = part.data.load(1)
        if part.kind == "real":
            assert torch.equal(image, list(held_out_images("fashion-32").values())[1])
        else:  # images in the range of the snapshot that they are evaluated on
            other = SNAPSHOTS[0 if part.snapshot is SNAPSHOTS[1] else 1]
            own = image_study.data_of("own", part.snapshot, part.data, 0).load(1)
            assert torch.equal(image, own)
            assert not torch.equal(image, image_study.data_of("own", other, part.data, 0).load(1))


def test_smaller_real_images_get_a_black_border(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    levels = np.random.default_rng(1).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", levels)
    data = image_study.real_images(tmp_path / "images.npz", SCOPE)
    assert len(data) == 5
    expected = np.pad(levels[3] / 127.5 - 1.0, 2, constant_values=-1.0)
    np.testing.assert_allclose(data.load(3)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, r"^images: expected a whole number of at least 1, got 0"),
        ({"leapfrog_steps": 1.5}, r"^leapfrog_steps: expected a whole number"),
        ({"ais_steps": 10}, r"^ais_steps: expected a run that costs at least 5004, got 402"),
    ],
)
def test_efforts_name_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Effort(**change)


def test_more_images_leave_groups_as_they_are() -> None:
    for images in (1, GROUP, GROUP + 3, 8 * GROUP):
        part = replace(parts()[0], images=images)
        assert part.study(Effort(images=images), 0).group == GROUP


# --- runs -----------------------------------------------------------------------------------------


def test_every_method_has_the_paper_s_cost(results: list[PartResults]) -> None:
    for result in results:
        for record in result.records:
            costs = {name: run["cost"] for name, run in record["methods"].items()}
            assert costs["paper"] == TINY.budget == 2 * (1 + 12 * 5)
            for name, cost in costs.items():
                # 16 particles spend so small a budget only in part.
                least = 0.5 if name in ("adaptive", DEFAULT) else 0.98
                assert least * TINY.budget <= cost <= TINY.budget


def test_adaptive_particles_share_the_paper_s_cost() -> None:
    for name in ("adaptive", DEFAULT):
        method = parts()[0].method(name, Effort())
        spent = 2 * method.options["budget"] * method.options["chains"]
        assert 0.99 * Effort().budget < spent <= Effort().budget == 19_962
        assert method.options["noise_std"] == NOISE_STD and method.options["weight"] is None
    assert method.options["polish"] == "auto"


def test_nuts_has_the_paper_s_cost_if_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("pyro")
    part = parts(replace(TINY, nuts=True))[0]
    assert part.methods == (*METHODS, NUTS)
    study = part.study(TINY, 0)
    (method,) = (each for each in study.methods if each.name == NUTS)
    case = evaluate.posed(study, {0: part.data.load(0)})
    given = {"seed": 0, "observation_ids": [0], **study.common}
    result = method.solve(part.snapshot.generator, case, tmp_path / "none", **given)
    assert TINY.budget - 1 <= result.cost <= TINY.budget
    assert "noise_std 0.1" in result.settings["noise"]
    assert set(record_of(result, case, 0)["coverage"]) == {"0.5", "0.8", "0.9", "0.95"}


def test_grids_and_rates_are_written_down(whole: Path) -> None:
    there = json.loads((whole / image_study.TUNING).read_text())
    assert set(there) == {
        f"{part.name}/{name}" for part in parts() for name in part.methods if name in OPTIMISERS
    }
    for key, tuning in there.items():
        method = key.rpartition("/")[2]
        assert tuple(rate for rate, _ in tuning["log"]) == RATES[method.removesuffix("-multi")]
        scores = {rate: score for rate, score in tuning["log"] if score is not None}
        assert tuning["learning_rate"] == min(scores, key=lambda rate: scores[rate])
        plan = json.loads((whole / "runs" / key / "plan.json").read_text())
        assert plan["options"]["learning_rate"] == tuning["learning_rate"]


def test_scores_are_errors_on_the_tuning_images(whole: Path) -> None:
    part = parts()[0]
    numbers = [len(part.data) - 2, len(part.data) - 1]
    truth = torch.stack([part.data.load(i) for i in numbers])
    case = pose(part.task, truth, numbers, 0)
    tuning = json.loads((whole / image_study.TUNING).read_text())[f"{part.name}/adam"]
    rate, score = tuning["log"][2]
    result = evaluate.reconstruct(
        part.snapshot.generator, case.x_obs, case.operator, method="adam", weight=1.0, chains=2,
        steps=2, learning_rate=rate, observation_ids=numbers,
    )  # fmt: skip
    error = (result.images.clamp(-1.0, 1.0) - truth[:, None]).square().mean()
    assert score == pytest.approx(float(error), rel=1e-5)


class Stop(Exception):
    """The exception that stands for a killed process."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that allows so many pieces of work, and stops before the next one."""
    solve, tune = evaluate.Method.solve, evaluation_tuning.tune

    def stop_at(pieces: int) -> list[int]:
        left = [pieces]

        def counted(function: Any) -> Any:
            def piece(*given: Any, **options: Any) -> Any:
                if left[0] == 0:
                    raise Stop
                left[0] -= 1
                return function(*given, **options)

            return piece

        monkeypatch.setattr(evaluate.Method, "solve", counted(solve))
        monkeypatch.setattr(evaluation_tuning, "tune", counted(tune))
        return left

    yield stop_at


@pytest.mark.slow
def test_what_is_done_is_not_done_again(whole: Path, stopped: Any) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    stopped(0)
    assert run(whole) == (whole / "told.txt").read_text()
    after = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.slow
def test_a_study_stopped_at_times_goes_on(whole: Path, stopped: Any, tmp_path: Path) -> None:
    stops = 0
    for pieces in (3, 0, 6, 11, 1_000):
        left = stopped(pieces)
        try:
            run(tmp_path)
        except Stop:
            stops += 1
    assert stops == 4 and left[0] > 900  # the last run needed less than 100 pieces
    assert timeless(tmp_path) == timeless(whole)


@pytest.mark.slow
def test_processes_change_nothing(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, processes=3)
    assert timeless(tmp_path) == timeless(whole)


def timeless(out: Path) -> dict[str, Any]:
    """All records and rates, without the seconds and the digests that go with them."""
    found_files: dict[str, Any] = {"rates": json.loads((out / image_study.TUNING).read_text())}
    for shard in sorted(out.rglob("*.jsonl")):
        records = [json.loads(row) for row in shard.read_text().splitlines()]
        assert all(record.pop("seconds") >= 0.0 and record.pop("digest") for record in records)
        found_files[str(shard.relative_to(out))] = records
    return found_files


_PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_image_study as t
from tqdm import tqdm
from cogen_fast.experiments.workers import run_in_processes

if __name__ == "__main__":
    with tqdm(disable=True) as bar:
        run_in_processes(t.wait_in, 2, 2, bar)
"""


def wait_in(piece: int) -> None:
    """Write the id of this process, and wait."""
    Path(os.environ["COGEN_FAST_WAITS"], str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script, waits = tmp_path / "parent.py", tmp_path / "waits"
    script.write_text(_PARENT.format(tests=str(Path(__file__).parent)))
    waits.mkdir()
    environment = {**os.environ, "COGEN_FAST_WAITS": str(waits)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        assert within(120, lambda: len(list(waits.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    assert within(30, lambda: not any(alive(path.name) for path in waits.iterdir()))


def within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)
    return done()


def alive(process: str) -> bool:
    try:
        return " Z " not in Path("/proc", process, "stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"seed": 1}, "an evaluation with seed 0, got 1"),
        ({"effort": replace(TINY, starts=30)}, r"a learning .* plan .*'starts': 20.* 'starts': 30"),
        ({"effort": replace(TINY, ais_steps=13)}, r"an evaluation .*'starts': 122.*'starts': 132"),
        ({"effort": replace(TINY, leapfrog_steps=6)}, "an evaluation with options"),
        ({"effort": replace(TINY, tuning_steps=3)}, r"a learning .* grid .*'steps': 2.*'steps': 3"),
        ({"scope": Scope((SNAPSHOTS[0], OTHER))}, "an evaluation with generator"),
    ],
)
def test_a_folder_holds_one_study(
    whole: Path, stopped: Any, how: dict[str, Any], told: str
) -> None:
    stopped(0)
    with pytest.raises(ValueError, match=f"^out: .* holds {told}"):
        run(whole, **how)


def test_a_folder_holds_one_study_s_images(
    whole: Path, stopped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.savez(tmp_path / "other.npz", np.zeros((10, 32, 32), np.uint8))
    stopped(0)
    with pytest.raises(ValueError, match=r"^out: .* holds an evaluation with data"):
        run(whole, data=tmp_path / "other.npz")


def test_every_part_is_looked_at_before_work(whole: Path, stopped: Any, tmp_path: Path) -> None:
    """An error in the last part is found before the first one is run."""
    last = parts()[-1].folder(tmp_path)
    shutil.copytree(parts()[-1].folder(whole), last)
    stopped(0)
    with pytest.raises(ValueError, match=r"^out: .* holds a learning rate with grid"):
        run(tmp_path, effort=replace(TINY, tuning_steps=3))
    assert not (tmp_path / "runs" / parts()[0].name).exists()


@pytest.mark.slow
def test_images_are_added(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, effort=replace(TINY, images=1))
    run(tmp_path)
    assert timeless(tmp_path) == timeless(whole)


@pytest.mark.slow
def test_too_few_real_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.savez(tmp_path / "few.npz", np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(ValueError, match=r"^images: expected at most 1, which leaves 2 to tune on"):
        run(tmp_path / "out", data=tmp_path / "few.npz")
    assert not (tmp_path / "out").exists()


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), [("real", "block"), ("own", "average-4")])
def test_residuals_are_errors_of_what_is_observed(
    results: list[PartResults], kind: str, task: str
) -> None:
    result = main_of(results, kind, task)
    truth = torch.stack([result.part.data.load(i) for i in (0, 1)])
    case = evaluate.posed(result.study, dict(enumerate(truth)))
    for name in ("gd", "sir", SCALED, "adaptive"):
        with np.load(result.out / name / "group-000000.npz") as pictures:
            best = torch.from_numpy(pictures["best"]).double() / 127.5 - 1.0
        if task == "block":
            off = torch.where(case.hidden, 0.0, best - truth)
        else:
            off = torch.nn.functional.avg_pool2d(best, 4) - case.x_obs
        entries = case.x_obs.isfinite().flatten(1).sum(1)
        expected = (off.square().flatten(1).sum(1) / entries).sqrt()
        assert result.residuals[name] == pytest.approx(expected.tolist(), abs=0.01)


def test_lines_are_of_the_records(results: list[PartResults]) -> None:
    result = main_of(results, "real", "block")
    by_name = {(line.method, line.taken): line for line in lines(result)}
    means = {("adaptive", "mean"), (DEFAULT, "mean")}
    assert set(by_name) == {(name, "best") for name in METHODS} | means
    for (name, taken), line in by_name.items():
        mine = errors(result.records, name, taken, "mse")
        difference = np.subtract(mine, errors(result.records, DEFAULT, "mean", "mse"))
        assert line.values["mse"][0] == pytest.approx(np.mean(mine))
        assert line.excess == pytest.approx((difference.mean(), difference.std(ddof=1) / 2**0.5))
        assert (line.acceptance is None) == (name in (*OPTIMISERS, "sir"))


def test_stuck_runs_are_counted(results: list[PartResults]) -> None:
    result = main_of(results, "real", "block")
    records = json.loads(json.dumps(result.records))
    for record, rate in zip(records, ([0.7, 0.01], [0.02, None]), strict=True):
        record["methods"]["paper"]["acceptance"] = rate
    (line,) = (li for li in lines(replace(result, records=tuple(records))) if li.method == "paper")
    assert line.stuck == pytest.approx(2 / 3)


def test_curves_are_over_the_first_images_of_every_snapshot(results: list[PartResults]) -> None:
    for kind in KINDS:
        points = curve(results, kind, 1)
        assert [shown for shown, _ in points] == [1_000, 3_000]
        late = main_of(results, kind, "block").records[0]["methods"]
        for name in CURVES:
            for metric in METRICS:
                value = points[1][1][name][metric][0]
                taken = "mean" if name == DEFAULT else "best"
                assert value == late[name]["metrics"][taken][metric][0]


def line(method: str, above: tuple[float, float], taken: str = "best") -> Line:
    return Line(method, taken, 1.0, 1.0, None, {"mse": (0.1, 0.1)}, above, None, None)


def test_verdicts_need_two_standard_errors() -> None:
    told = image_study_report.verdicts(
        [
            line("gd", (0.3, 0.1)),
            line(DEFAULT, (0.0, 0.0), "mean"),
            line(DEFAULT, (0.3, 0.1)),
            line("sir", (0.15, 0.1)),
            line("paper", (-0.15, 0.1)),
            line("adaptive", (-0.21, 0.1), "mean"),
        ]
    )
    assert told == [
        "Better than the default's estimate: adaptive (mean image).",
        "Not distinguished from the default's estimate: sir, paper.",
        "Worse than the default's estimate: gd, default.",
    ]
    (one,) = image_study_report.verdicts([line("gd", (0.1, math.nan))])
    assert one == "Not compared, with one image, with the default's estimate: gd."


def test_aims_are_counted(results: list[PartResults], monkeypatch: pytest.MonkeyPatch) -> None:
    clear = {name: line(name, (0.3, 0.1)) for name in MULTI_STARTS}
    near = clear | {"adam-multi": line("adam-multi", (0.1, 0.1))}
    beaten = clear | {"sir": line("sir", (-0.3, 0.1))}
    told = iter([clear, clear, near, beaten, clear, near])
    monkeypatch.setattr(image_study_report, "lines", lambda _: list(next(told).values()))
    said = image_study_report.summary_of(results)
    one = {"gd": line("gd", (0.3, math.nan))}
    monkeypatch.setattr(image_study_report, "lines", lambda _: list(one.values()))
    assert (
        image_study_report.summary_of(results) == "With one image no methods can be distinguished."
    )
    assert "No method beats the default's estimate in 5 of 6 cells" in said
    assert "beats every multi-start (gd-multi, adam-multi, lbfgs-multi) in 4." in said


def test_the_report_keeps_real_and_own_apart(whole: Path, results: list[PartResults]) -> None:
    report = (whole / "report.md").read_text()
    assert (whole / "told.txt").read_text().startswith(report.rstrip("\n"))
    _, real, own = report.split("\n## ")
    for kind, block in (("real", real), ("own", own)):
        assert block.lower().startswith(KINDS[kind].lower())
        assert [ln[4:] for ln in block.splitlines() if ln.startswith("### ")] == [
            *(str(task) for task in TASKS),
            "block, over the training",
        ]
        *tables, training = block.split("\n### ")[1:]
        for shown, values in curve(results, kind, 1):
            for name in CURVES:
                start = f"| {shown:,} | {name} | {values[name]['mse'][0]:.4f} | "
                assert sum(ln.startswith(start) for ln in training.splitlines()) == 1
        for task, table in zip(TASKS, tables, strict=True):
            for each in lines(main_of(results, kind, str(task))):
                (row,) = (
                    ln
                    for ln in table.splitlines()
                    if ln.startswith(f"| {each.method} | {each.taken} ")
                )
                assert f"| {each.values['mse'][0]:.4f} (" in row


def test_the_csv_has_every_digit(whole: Path, results: list[PartResults]) -> None:
    with (whole / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["images_of"], r["task"], r["generator"]) for r in rows} == {
        (p.kind, str(p.task), p.snapshot.name) for p in parts()
    }
    for result in results:
        part = result.part
        (row,) = (
            r
            for r in rows
            if (r["images_of"], r["task"], r["generator"]) == tuple(part.name.split("/"))
            and (r["method"], r["taken"], r["metric"]) == ("gd", "best", "ssim")
        )
        mean = np.mean(errors(result.records, "gd", "best", "ssim"))
        assert float(row["mean"]) == pytest.approx(mean, rel=1e-12)
        assert int(row["images"]) == part.images
    text = (whole / "table.txt").read_text()
    assert all(f"{part.name}: {KINDS[part.kind]}" in text for part in parts())


# --- another generator ----------------------------------------------------------------------------


class Deep(torch.nn.Module):
    """Latents ``(n, 5, 1, 1)`` to colour pictures of 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.ConvTranspose2d(5, 3, 32)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(z))


@pytest.mark.slow
def test_another_generator_is_studied_on_its_own_images(tmp_path: Path) -> None:
    scope = image_study.of_one(Deep().eval(), (5, 1, 1))
    report = run(tmp_path, scope=scope)
    assert {p.name for p in tmp_path.iterdir()} == {*image_study.files(scope), "runs"}
    assert not any(name.startswith("figure4") for name in image_study.files(scope))
    assert "2 images of each kind and task.\n" in report
    titles = [ln for ln in report.splitlines() if ln.startswith("#")]
    assert titles == [
        "# Image study",
        "## Images of the generator's own, whose answer lies in its range",
        "### half-right",
        "### block",
        "### average-4",
    ]


def test_another_generator_is_studied_on_photographs_too(tmp_path: Path) -> None:
    scope = image_study.of_one(network(3), photographs=True)
    # A progressive generator is taken as it is, and not wrapped in `OnRows`.
    assert isinstance(scope.snapshots[0].generator, ProgressiveGenerator)
    np.savez(tmp_path / "some.npz", np.zeros((5, 32, 32), np.uint8))
    real = image_study.real_images(tmp_path / "some.npz", scope)
    found_parts = image_study.plan(scope, real, TINY, seed=0)
    assert [(p.kind, str(p.task)) for p in found_parts] == [
        (kind, task) for kind in KINDS for task in ("half-right", "block", "average-4")
    ]


def test_a_generator_that_makes_no_images_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "images", "--out", str(tmp_path), "--generator", "five-gaussians"]
    assert main(command) == 2
    assert "generator: expected images" in capsys.readouterr().err


# --- figures --------------------------------------------------------------------------------------


def test_figures_are_written_and_not_blank(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()} - {"told.txt"}
    assert names == {*image_study.files(SCOPE), "runs"}
    for name in image_study_figures.files(SCOPE):
        with Image.open(whole / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[0] > 250 and pixels.shape[1] > 900
        for part in np.array_split(pixels, 3, 1):
            assert part.std() > 5.0


def test_curves_show_the_means(results: list[PartResults]) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figures = dict(image_study_figures.draw(plt, results, TINY))
    for kind in KINDS:
        figure = figures[f"figure4_{kind}.png"]
        assert KINDS[kind] in figure.get_suptitle()
        for panel, metric in zip(figure.axes, METRICS, strict=True):
            points = curve(results, kind, 1)
            drawn = [bars.lines[0] for bars in panel.containers]
            for name, drawn_line in zip(CURVES, drawn, strict=True):
                assert list(drawn_line.get_xdata()) == [1.0, 3.0]
                expected = [values[name][metric][0] for _, values in points]
                assert list(drawn_line.get_ydata()) == pytest.approx(expected)
        misfits = figures[f"misfit_{kind}.png"]
        for panel, task in zip(misfits.axes, TASKS, strict=True):
            result = main_of(results, kind, str(task))
            for name, dots in zip(METHODS, panel.collections, strict=True):
                hidden = np.sqrt(errors(result.records, name, "best", "hidden_mse"))
                expected = np.stack([result.residuals[name], hidden], 1)
                np.testing.assert_allclose(np.asarray(dots.get_offsets()), expected)
    for figure in figures.values():
        plt.close(figure)


def test_panels_have_a_row_for_each_image(results: list[PartResults]) -> None:
    pictures = dict(image_study_figures.panels(results))
    assert len(pictures) == len(KINDS) * len(TASKS)
    cell = 128 + 4
    for picture in pictures.values():
        assert picture.size == (cell * (2 + len(METHODS)) + 4, (cell + 18) * TINY.images + 4)


# --- the command ----------------------------------------------------------------------------------


def test_command_gets_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        image_study, "reproduce", lambda *given, **how: calls.append((given, how)) or "report"
    )
    command = ["reproduce", "images", "--out", str(tmp_path)]
    assert main(command) == 0
    assert main([*command, "--quick", "--seed", "3", "--data", "a.npz"]) == 0
    assert main([*command, "--images", "16"]) == 0
    assert main([*command, "--nuts"]) == 0
    assert capsys.readouterr().out == "report\n" * 4
    efforts = [how.pop("effort") for _, how in calls]
    assert efforts == [Effort(), QUICK, Effort(images=16), Effort(nuts=True)]
    scopes = [how.pop("scope") for _, how in calls]
    assert [len(scope.snapshots) for scope in scopes] == [len(FASHION_STAGES)] * 4
    assert calls[1] == ((tmp_path, Path("a.npz"), 3), {"progress": False})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--images", "9"], "images: expected at most 8, which leaves 2 to tune on, got 9"),
        (["--images", "0"], "images: expected a whole number of at least 1, got 0"),
        (["--seed", "-1"], "seed: expected a whole number in"),
        (["--data", "absent"], "absent"),
    ],
)
def test_wrong_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "images", "--out", "out", *more]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("cogen-fast: error: ") and told in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("library", "extra"), [("matplotlib", "plots"), ("pytorch_msssim", "metrics")]
)
def test_missing_libraries_are_named_before_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    library: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["reproduce", "images", "--out", str(tmp_path / "out")]) == 2
    assert f"pip install 'cogen-fast[{extra}]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_tuning_file_is_named(tmp_path: Path) -> None:
    path = parts()[0].folder(tmp_path) / "gd" / "tuning.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"^out: .*tuning\.json: expected JSON, got"):
        run(tmp_path)


# --- the published presets ------------------------------------------------------------------------


@pytest.mark.slow
def test_celeba_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "presets", "--out", str(tmp_path), "--preset", "celeba-128"]
    assert main(command) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    cost = 2 * (1 + published.AIS_STEPS * published.LEAPFROG_STEPS)
    assert row[:8] == ["celeba-128", "3", "x", "128", "x", "128", "block-30-60", "1"]
    assert row[8:10] == ["2,157", str(cost)] and float(row[10]) > 0.0
    (record,) = evaluate.gather(tmp_path / "celeba-128")
    run_of_it = record["methods"]["paper"]
    assert math.isfinite(run_of_it["energies"][0]) and run_of_it["cost"] == cost
    plan = json.loads((tmp_path / "celeba-128" / "paper" / "plan.json").read_text())
    assert plan["options"] == {"preset": "celeba-128", "ais_steps": 2, "leapfrog_steps": 1}
    with Image.open(tmp_path / "celeba-128" / "picture.png") as picture:
        assert picture.size == (3 * (128 + 4) + 4, 128 + 4 + 18 + 4)


def test_networks_are_the_published_ones() -> None:
    weights = [published.network("celeba-128").state_dict() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    found_network = published.network("celeba-128")
    assert found_network.output_shape == (3, 128, 128)
    assert found_network.latent_size == PUBLISHED["celeba-128"].latent_size


def test_unknown_presets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["reproduce", "presets", "--out", str(tmp_path / "out"), "--preset"]
    assert main([*given, "five-gaussians"]) == 2
    assert "invalid choice: 'five-gaussians'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^preset: expected one of"):
        published.reproduce(tmp_path, ["five-gaussians"], progress=False)
